//! Messages to the system's log, where no systemd takes them from our output.
//!
//! What is sent is `<PRIORITY>xendomains[PID]: TEXT` (RFC 3164) to /dev/log. The time is left to the receiver, which has
//! the same clock: the format has local time without its zone, which a program with threads can't safely learn.

use std::io::{self, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sink::Level;

/// `LOG_DAEMON`
const FACILITY: u8 = 3 << 3;

/// How long a receiver that is stuck may hold us up, for each message.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to the log. It is opened for the first message, and again if the receiver was started anew.
pub(super) struct Syslog {
    path: PathBuf,
    socket: Option<Socket>,
}

enum Socket {
    Datagram(UnixDatagram),
    /// As some older set-ups have it. A message ends with a zero byte.
    Stream(UnixStream),
}

impl Default for Syslog {
    fn default() -> Syslog {
        Syslog::at(Path::new("/dev/log"))
    }
}

impl Syslog {
    pub(super) fn at(path: &Path) -> Syslog {
        Syslog { path: path.to_owned(), socket: None }
    }

    /// Sends a line. If nobody takes it, it has still been written to where this process writes.
    pub(super) fn send(&mut self, level: Level, line: &str) {
        let message = format!("<{}>xendomains[{}]: {line}", FACILITY | level as u8, std::process::id());
        if self.socket.as_mut().is_some_and(|socket| socket.send(&message).is_ok()) {
            return;
        }
        self.socket = Socket::open(&self.path).ok();
        if let Some(socket) = &mut self.socket {
            let _ = socket.send(&message);
        }
    }
}

impl Socket {
    fn open(path: &Path) -> io::Result<Socket> {
        let socket = UnixDatagram::unbound()?;
        match socket.connect(path) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PROTOTYPE.raw_os_error()) => {
                let socket = UnixStream::connect(path)?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Ok(Socket::Stream(socket))
            }
            connected => {
                connected?;
                socket.set_write_timeout(Some(PATIENCE))?;
                Ok(Socket::Datagram(socket))
            }
        }
    }

    fn send(&mut self, message: &str) -> io::Result<()> {
        match self {
            Socket::Datagram(socket) => socket.send(message.as_bytes()).map(drop),
            Socket::Stream(socket) => socket.write_all(format!("{message}\0").as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn received(log: &UnixDatagram) -> String {
        let mut got = [0; 100];
        let length = log.recv(&mut got).expect("a message");
        String::from_utf8_lossy(&got[..length]).replace(&std::process::id().to_string(), "PID")
    }

    #[test]
    fn a_receiver_that_comes_late_or_is_started_anew_gets_what_comes_then() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut syslog = Syslog::at(&path);
        syslog.send(Level::Info, "nobody is there");
        let first = UnixDatagram::bind(&path).expect("bind");
        syslog.send(Level::Info, "one");
        assert_eq!(received(&first), "<30>xendomains[PID]: one");
        drop(first);
        std::fs::remove_file(&path).expect("remove");
        let second = UnixDatagram::bind(&path).expect("bind");
        syslog.send(Level::Warning, "two");
        assert_eq!(received(&second), "<28>xendomains[PID]: two");
    }

    #[test]
    fn a_receiver_may_want_a_stream() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let listener = UnixListener::bind(&path).expect("bind");
        let mut syslog = Syslog::at(&path);
        syslog.send(Level::Error, "one");
        syslog.send(Level::Error, "two");
        drop(syslog);
        let mut text = String::new();
        listener.accept().expect("a connection").0.read_to_string(&mut text).expect("text");
        let text = text.replace(&std::process::id().to_string(), "PID");
        assert_eq!(text, "<27>xendomains[PID]: one\0<27>xendomains[PID]: two\0");
    }
}
