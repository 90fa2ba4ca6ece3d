//! The lock that lets one process at a time start or stop guests.
//!
//! It belongs to the process, so the kernel frees it however the process ends. Who comes second is not made to wait:
//! `start` would then start what a `stop` has just stopped, or the other way round. It is told who is at work.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};

/// The lock, held as long as this exists.
#[derive(Debug)]
pub struct Lock(File);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("another xendomains is at work{}", .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Busy {
        /// Its number, if it can be told.
        pid: Option<u32>,
    },
    /// The lock file can't be used.
    #[error("lock file: {0}")]
    Io(#[from] io::Error),
}

impl Lock {
    /// Takes the lock, or says at once who has it.
    pub fn acquire(path: &Path) -> Result<Lock, Error> {
        let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(no_follow)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Only for the message: whatever stands there, the lock is taken.
                let _ = file.take(20).read_to_string(&mut pid);
                return Err(Error::Busy { pid: pid.trim().parse().ok() });
            }
            Err(errno) => return Err(Error::Io(errno.into())),
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Lock(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would do, were there no child process that has just been forked and has it open too.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_first_and_gets_it_afterwards() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        std::fs::write(&path, "99999999 left over from a process that is gone").expect("write");
        let first = Lock::acquire(&path).expect("free");
        let second = Lock::acquire(&path).expect_err("taken");
        assert_eq!(second.to_string(), format!("another xendomains is at work (process {})", std::process::id()));
        drop(first);
        Lock::acquire(&path).expect("free again");
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, target) = (dir.path().join("lock"), dir.path().join("target"));
        std::os::unix::fs::symlink(&target, &path).expect("link");
        assert!(matches!(Lock::acquire(&path), Err(Error::Io(_))));
        assert!(!target.exists());
    }
}
