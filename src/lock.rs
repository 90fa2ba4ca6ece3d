//! The lock that lets one process at a time start or stop guests.
//!
//! It belongs to the process, so the kernel frees it however the process ends. A second `start` is not made to wait: it
//! would start what a `stop` has just stopped. It is told who is at work. A `stop` means that the host is going down and
//! can't be sent away: it tells a `start` to end, and waits.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::process::{Pid, Signal, kill_process};

use crate::interrupt::Interrupt;

/// The lock, held as long as this exists.
#[derive(Debug)]
pub struct Lock(File);

/// Who has the lock, as far as it can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: Option<u32>,
    /// What it does: `start`, `stop` or `restart`.
    pub work: Option<String>,
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has it.
    #[error("{0}")]
    Busy(Holder),
    /// It was asked to end while it waited.
    #[error("told to end while another xendomains was at work")]
    Interrupted,
    /// The lock file can't be used.
    #[error("lock file: {0}")]
    Io(#[from] io::Error),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another xendomains ")?;
        if let Some(work) = &self.work {
            write!(f, "{work} ")?;
        }
        f.write_str("is at work")?;
        match self.pid {
            Some(pid) => write!(f, " (process {pid})"),
            None => Ok(()),
        }
    }
}

impl Lock {
    /// Takes the lock for this work (a word), or says at once who has it.
    ///
    /// # Errors
    /// [`Error::Busy`] and [`Error::Io`].
    pub fn acquire(path: &Path, work: &str) -> Result<Lock, Error> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Lock::taken(file, work),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Busy(Holder::read(&file))),
            Err(errno) => Err(Error::Io(errno.into())),
        }
    }

    /// Waits for the lock, until the program is asked to end.
    ///
    /// # Errors
    /// [`Error::Interrupted`] and [`Error::Io`].
    pub fn wait(path: &Path, work: &str, interrupt: &Interrupt) -> Result<Lock, Error> {
        let file = open(path)?;
        let result = Arc::new(OnceLock::new());
        let waiting = {
            // The kernel offers no wait for a lock that anything else can end; so another thread waits. If it is still
            // waiting when the program ends, it ends with it.
            let (result, file, waiter) = (Arc::clone(&result), file.try_clone()?, thread::current());
            move || {
                let _ = result.set(flock(&file, FlockOperation::LockExclusive));
                waiter.unpark();
            }
        };
        let _parked = interrupt.unparks_this_thread();
        thread::Builder::new().name("lock".to_owned()).spawn(waiting)?;
        loop {
            match result.get() {
                Some(Ok(())) => return Lock::taken(file, work),
                Some(Err(errno)) => return Err(Error::Io((*errno).into())),
                None if interrupt.is_asked() => return Err(Error::Interrupted),
                None => thread::park(),
            }
        }
    }

    /// The lock is ours: says so in the file.
    fn taken(mut file: File, work: &str) -> Result<Lock, Error> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{} {work}", std::process::id())?;
        Ok(Lock(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would do, were there no child process that has just been forked and has it open too.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Holder {
    /// What the file says, if the kernel agrees that this process has the lock: one that was killed has left its own.
    fn read(mut file: &File) -> Holder {
        let mut text = String::new();
        let said = file.rewind().and_then(|()| file.take(40).read_to_string(&mut text));
        let mut words = text.split_whitespace();
        let pid = words.next().and_then(|word| word.parse().ok());
        match (said, pid, file.metadata()) {
            (Ok(_), Some(pid), Ok(metadata)) if has_lock(pid, metadata.ino()) => {
                Holder { pid: Some(pid), work: words.next().map(str::to_owned) }
            }
            _ => Holder::default(),
        }
    }

    /// Asks it to end, with SIGTERM.
    ///
    /// # Errors
    /// It is not known who it is, or it can't be signalled.
    pub fn tell_to_end(&self) -> io::Result<()> {
        let pid = self.pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::NotFound)?;
        Ok(kill_process(pid, Signal::TERM)?)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o644).custom_flags(no_follow).open(path)
}

/// Whether the process has a lock on the file of this number, going by `/proc/locks`.
fn has_lock(pid: u32, inode: u64) -> bool {
    let Ok(locks) = fs::read_to_string("/proc/locks") else { return false };
    let end = format!(":{inode}");
    locks.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // `1: FLOCK ADVISORY WRITE 123 fe:00:456 0 EOF`; who waits has an arrow behind the number.
        matches!(&words[..], [_, "FLOCK", _, _, holder, file, ..]
            if holder.parse() == Ok(pid) && file.ends_with(&end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_first_and_gets_it_afterwards() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        fs::write(&path, "99999999 left over from a process that is gone").expect("write");
        let first = Lock::acquire(&path, "start").expect("free");
        let second = Lock::acquire(&path, "stop").expect_err("taken");
        let expected = format!("another xendomains start is at work (process {})", std::process::id());
        assert_eq!(second.to_string(), expected);
        drop(first);
        Lock::acquire(&path, "stop").expect("free again");
    }

    #[test]
    fn what_a_killed_process_has_written_is_not_believed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let _first = Lock::acquire(&path, "start").expect("free");
        fs::write(&path, "1 start\n").expect("write");
        let Err(Error::Busy(holder)) = Lock::acquire(&path, "stop") else { panic!("taken") };
        assert_eq!(holder, Holder::default());
        assert!(holder.tell_to_end().is_err());
    }

    #[test]
    fn it_can_be_waited_for_until_told_to_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let interrupt = Interrupt::new().expect("a descriptor");
        let first = Lock::acquire(&path, "start").expect("free");
        thread::scope(|scope| {
            let waiting = scope.spawn(|| Lock::wait(&path, "stop", &interrupt));
            drop(first);
            let second = waiting.join().expect("no panic").expect("free");
            let waiting = scope.spawn(|| Lock::wait(&path, "stop", &interrupt));
            interrupt.ask();
            assert!(matches!(waiting.join().expect("no panic"), Err(Error::Interrupted)));
            drop(second);
        });
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, target) = (dir.path().join("lock"), dir.path().join("target"));
        std::os::unix::fs::symlink(&target, &path).expect("link");
        assert!(matches!(Lock::acquire(&path, "stop"), Err(Error::Io(_))));
        assert!(!target.exists());
    }
}
