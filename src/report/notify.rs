//! Words to the service manager: that a service is ready, and the text that `systemctl status` shows; see sd_notify(3).
//!
//! The protocol is one datagram to the socket that the manager names, so it is spoken here: a library for it would be
//! larger than this.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::one_line;

/// How long a manager that does not read may hold us up, for each message.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to the service manager that has started this process.
#[derive(Debug)]
pub(super) struct Notify {
    socket: UnixDatagram,
    manager: SocketAddr,
}

impl Notify {
    /// `None`: there is no service manager that wants to know.
    pub(super) fn of_process() -> Option<Notify> {
        Notify::to(&std::env::var_os("NOTIFY_SOCKET")?)
    }

    /// `address` is a path, or a name with `@` in front.
    fn to(address: &OsStr) -> Option<Notify> {
        let manager = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok()?,
            [b'/', ..] => SocketAddr::from_pathname(address).ok()?,
            _ => return None,
        };
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_write_timeout(Some(PATIENCE)).ok()?;
        Some(Notify { socket, manager })
    }

    /// What is going on.
    pub(super) fn status(&self, text: &str) {
        self.tell(&format!("STATUS={}", one_line(text)));
    }

    /// This process is as far as whoever has started it waits for.
    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    /// If nobody takes it, it is lost.
    fn tell(&self, message: &str) {
        let _ = self.socket.send_to_addr(message.as_bytes(), &self.manager);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a service manager has got.
    pub(in super::super) fn received(manager: &UnixDatagram) -> String {
        let mut got = [0; 500];
        let length = manager.recv(&mut got).expect("a message");
        String::from_utf8_lossy(&got[..length]).into_owned()
    }

    /// A service manager, and the way to it.
    pub(in super::super) fn manager() -> (UnixDatagram, Notify) {
        let name = format!("xendomains-test-{}", uuid::Uuid::new_v4());
        let address = SocketAddr::from_abstract_name(&name).expect("an address");
        let manager = UnixDatagram::bind_addr(&address).expect("bind");
        let notify = Notify::to(OsStr::new(&format!("@{name}"))).expect("an address");
        (manager, notify)
    }

    #[test]
    fn both_kinds_of_address_are_reached() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).expect("bind");
        Notify::to(path.as_os_str()).expect("an address").status("one\nREADY=1");
        assert_eq!(received(&by_path), "STATUS=one; READY=1");
        let (by_name, notify) = manager();
        notify.status("two");
        assert_eq!(received(&by_name), "STATUS=two");
        notify.ready();
        assert_eq!(received(&by_name), "READY=1");
        // The manager is gone.
        drop(by_name);
        notify.status("three");
    }

    #[test]
    fn other_addresses_are_left_alone() {
        for odd in ["", "notify", "vsock:2:1234"] {
            assert!(Notify::to(OsStr::new(odd)).is_none(), "{odd}");
        }
    }
}
