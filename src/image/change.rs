//! The system calls that change the directory of images, all of them. A crash can come between any two of them, so
//! tests end the process there ([`cut`]).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, openat, renameat_with};
use rustix::io::Errno;

/// Makes a new file for root only, open for reading and writing.
pub(super) fn create(path: &Path) -> io::Result<File> {
    open(path, OFlags::EXCL)
}

/// The same over a file that may be there and is emptied.
pub(super) fn create_over(path: &Path) -> io::Result<File> {
    open(path, OFlags::TRUNC)
}

fn open(path: &Path, how: OFlags) -> io::Result<File> {
    cut();
    let flags = how | OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(File::from(openat(CWD, path, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Appends to a file.
pub(super) fn write(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    cut();
    file.write_all(bytes)
}

/// Frees the room that a file takes.
pub(super) fn empty(file: &File) -> io::Result<()> {
    cut();
    file.set_len(0)
}

/// Makes a file's content durable.
pub(super) fn sync(file: &File) -> io::Result<()> {
    cut();
    file.sync_all()
}

/// Makes changes to a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    cut();
    File::open(path)?.sync_all()
}

/// Renames a file; one that has the name goes away.
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    cut();
    fs::rename(from, to)
}

/// Renames a file to a name that must be free; otherwise the error is [`io::ErrorKind::AlreadyExists`].
pub(super) fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    cut();
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that doesn't know the flag.
        Err(Errno::INVAL) if fs::symlink_metadata(to).is_ok() => Err(Errno::EXIST.into()),
        Err(Errno::INVAL) => fs::rename(from, to),
        other => Ok(other?),
    }
}

/// Removes a file.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    cut();
    fs::remove_file(path)
}

#[cfg(not(test))]
fn cut() {}

#[cfg(test)]
pub(super) use tests::cut;

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    /// How many more calls this process lives for.
    static LEFT: AtomicUsize = AtomicUsize::new(usize::MAX);

    const DIRECTORY: &str = "XENDOMAINS_CUT_DIRECTORY";
    const CALLS: &str = "XENDOMAINS_CUT_CALLS";

    /// A place where a crash may come.
    pub(in super::super) fn cut() {
        if LEFT.fetch_sub(1, Ordering::SeqCst) == 0 {
            kill_process(getpid(), Signal::KILL).expect("this process may be killed");
        }
    }

    /// Has this test (its full name) run in a process of its own, which is killed after each number of calls in turn,
    /// until there is one that comes to its end. Each time, `prepare` makes what the process works on in a directory,
    /// `act` is what it does, and `look` looks at what that left and is told whether it came to its end.
    pub(in super::super) fn at_every_cut(
        test: &str,
        prepare: impl Fn(&Path),
        act: impl Fn(&Path),
        mut look: impl FnMut(&Path, bool),
    ) {
        if let (Some(directory), Ok(calls)) = (std::env::var_os(DIRECTORY), std::env::var(CALLS)) {
            LEFT.store(calls.parse().expect("a number"), Ordering::SeqCst);
            return act(Path::new(&directory));
        }
        for calls in 0.. {
            let directory = tempfile::tempdir().expect("a directory");
            prepare(directory.path());
            let ended = Command::new(std::env::current_exe().expect("this program"))
                .args(["--exact", test])
                .env(DIRECTORY, directory.path())
                .env(CALLS, calls.to_string())
                .stdout(Stdio::null())
                .status()
                .expect("this program runs");
            let killed = ended.signal() == Some(Signal::KILL.as_raw());
            assert!(killed || ended.success(), "after {calls} calls: {ended}");
            look(directory.path(), !killed);
            if !killed {
                assert!(calls > 0, "there was no such test as {test}, or it did nothing");
                return;
            }
        }
    }
}
