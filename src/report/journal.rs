//! Messages to systemd's journal that are shown with a unit though this process is not in its control group.
//!
//! start lives in a scope, together with the device models that it leaves running. What it writes to its streams would
//! be found there, and not by `systemctl status xendomains`. The journal takes `OBJECT_SYSTEMD_UNIT` from root as the
//! unit that a message is about. The format is that of systemd's native journal protocol: `NAME=VALUE`, line by line.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::sink::Level;

/// How long a journal that is stuck may hold us up, for each message.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    unit: String,
}

impl Journal {
    /// `None`: the unit file does not say which unit this process works for.
    pub(super) fn of_process() -> Option<Journal> {
        let unit = std::env::var("XENDOMAINS_UNIT").ok()?;
        Journal::at(Path::new("/run/systemd/journal/socket"), &unit)
    }

    fn at(path: &Path, unit: &str) -> Option<Journal> {
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || ":-_.\\@".contains(letter);
        if unit.is_empty() || !unit.chars().all(is_name) {
            return None;
        }
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_write_timeout(Some(PATIENCE)).ok()?;
        Some(Journal { socket, path: path.to_owned(), unit: unit.to_owned() })
    }

    /// Sends a line, which has no line break in it.
    pub(super) fn send(&self, level: Level, line: &str) -> io::Result<()> {
        let message = format!(
            "PRIORITY={}\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=xendomains\nOBJECT_SYSTEMD_UNIT={}\nMESSAGE={line}\n",
            level as u8, self.unit
        );
        self.socket.send_to(message.as_bytes(), &self.path).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_about_the_unit() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let journal = Journal::at(&path, "xendomains.service").expect("a name");
        journal.send(Level::Info, "nobody is there").expect_err("no journal");
        let receiver = UnixDatagram::bind(&path).expect("bind");
        journal.send(Level::Warning, "web: saved").expect("sent");
        let mut got = [0; 500];
        let length = receiver.recv(&mut got).expect("a message");
        let text = String::from_utf8_lossy(&got[..length]);
        assert_eq!(
            text,
            "PRIORITY=4\nSYSLOG_FACILITY=3\nSYSLOG_IDENTIFIER=xendomains\n\
             OBJECT_SYSTEMD_UNIT=xendomains.service\nMESSAGE=web: saved\n"
        );
        for odd in ["", "x\nPRIORITY=0", "a b"] {
            assert!(Journal::at(&path, odd).is_none(), "{odd}");
        }
    }
}
