//! xl's lock: who creates or restores a guest holds it while dom0 gives memory back and until the guest has been built,
//! so that the memory is not taken by another `xl create` meanwhile.
//!
//! As xl's it is a POSIX record lock on the whole file, which belongs to the process. So all threads of this process
//! have it together, and the kernel frees it when the process ends, however that comes about. (A lock on the open file,
//! which threads could have each for itself, would be inherited by what libxl forks: after a `kill -9` of this process
//! the one that started a device model would keep it as long as the guest lives.)
//!
//! Its price: closing any descriptor of the file frees the process's lock. So there is one at most, and it is only opened
//! and closed with the state locked.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};

use super::Note;
use crate::interrupt::Interrupt;

/// Where xl has it, if xl.conf doesn't say otherwise.
pub const DEFAULT: &str = "/var/lock/xl";

/// Why it can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was still another's at the deadline, or when the program was asked to end.
    #[error("xl's lock {} is still held by {}", path.display(), process(*owner))]
    Deadline {
        /// The file.
        path: PathBuf,
        /// Who has it, if that can be told.
        owner: Option<Pid>,
    },
    /// The file can't be used.
    #[error("xl's lock {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The lock of this process.
pub struct CreateLock {
    path: PathBuf,
    shared: Arc<Shared>,
    interrupt: Arc<Interrupt>,
}

/// It is this process's as long as any of these is there.
pub struct Held(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// The lock was got, or can't be got.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Threads that have it or wait for it.
    users: usize,
    file: Option<LockFile>,
    /// Why waiting for it came to nothing.
    failed: Option<Errno>,
}

struct LockFile {
    file: Arc<File>,
    /// Whether it is ours. If not, a thread waits for it.
    locked: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // What a panicking thread has left is whole: nothing that is done with it locked can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has those who wait look again.
    fn wake(&self) {
        drop(self.state());
        self.changed.notify_all();
    }

    /// Waits for the lock, on a thread of its own: the kernel knows no such waiting with a deadline. If nobody wants it
    /// any more, it is given back at once.
    fn wait(&self, file: Arc<File>) {
        let outcome = retry_on_intr(|| fcntl_lock(&file, FlockOperation::LockExclusive));
        let mut state = self.state();
        drop(file);
        match outcome {
            Ok(()) if state.users > 0 => state.file.iter_mut().for_each(|file| file.locked = true),
            Ok(()) => state.file = None,
            Err(errno) => {
                state.file = None;
                state.failed = Some(errno);
            }
        }
        self.changed.notify_all();
    }
}

impl Held {
    /// Counts a user. The lock is not there yet.
    fn begin(shared: &Arc<Shared>) -> Held {
        shared.state().users += 1;
        Held(Arc::clone(shared))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.users -= 1;
        if state.users == 0 && state.file.as_ref().is_some_and(|file| file.locked) {
            // Closing frees the lock.
            state.file = None;
        }
    }
}

impl CreateLock {
    /// The lock on this file, which need not exist. A process has at most one of these for a file. `interrupt` ends
    /// waiting for it.
    pub fn new(path: &Path, interrupt: Arc<Interrupt>) -> CreateLock {
        let shared = Arc::new(Shared::default());
        let waked = Arc::clone(&shared);
        interrupt.when_asked(move || waked.wake());
        CreateLock { path: path.to_owned(), shared, interrupt }
    }

    /// Takes it, when other processes have done with it. `note` is told whom it waits for.
    pub fn acquire(&self, deadline: Option<Instant>, note: Note<'_>) -> Result<Held, Error> {
        let held = Held::begin(&self.shared);
        let mut told = false;
        let mut state = self.shared.state();
        loop {
            let file = match &state.file {
                Some(file) if file.locked => return Ok(held),
                Some(file) => file,
                None => {
                    self.begin(&mut state).map_err(|source| self.unusable(source))?;
                    continue;
                }
            };
            if !told {
                told = true;
                let owner = owner(&file.file);
                drop(state);
                note(&format!("waits for xl's lock {}, held by {}", self.path.display(), process(owner)));
                state = self.shared.state();
                continue;
            }
            let too_late = || Error::Deadline { path: self.path.clone(), owner: owner(&file.file) };
            if self.interrupt.is_asked() {
                return Err(too_late());
            }
            state = match deadline {
                None => self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now()).ok_or_else(too_late)?;
                    self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
            if let (None, Some(errno)) = (&state.file, state.failed) {
                return Err(self.unusable(errno.into()));
            }
        }
    }

    /// Takes the lock, if it is free, or has a thread wait for it.
    fn begin(&self, state: &mut State) -> io::Result<()> {
        // Everybody may be able to write to its directory: neither a link there nor a FIFO gets hold of this process.
        let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or_default();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o200).custom_flags(flags);
        let file = Arc::new(options.open(&self.path)?);
        let locked = match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => true,
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let (shared, file) = (Arc::clone(&self.shared), Arc::clone(&file));
                thread::Builder::new().name("xl's lock".into()).spawn(move || shared.wait(file))?;
                false
            }
            Err(errno) => return Err(errno.into()),
        };
        state.file = Some(LockFile { file, locked });
        state.failed = None;
        Ok(())
    }

    fn unusable(&self, source: io::Error) -> Error {
        Error::Io { path: self.path.clone(), source }
    }
}

/// The process that has it. `None`: nobody any more, or one that can't be seen from here.
fn owner(file: &File) -> Option<Pid> {
    fcntl_getlk(file, &Flock::from(FlockType::WriteLock)).ok()??.pid
}

fn process(owner: Option<Pid>) -> String {
    owner.map_or("another process".to_owned(), |pid| format!("process {}", pid.as_raw_nonzero()))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Lines, Write};
    use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    /// This program once more, as one that knows POSIX locks only.
    struct Other {
        child: Child,
        ask: ChildStdin,
        answers: Lines<BufReader<ChildStdout>>,
    }

    impl Other {
        fn start(path: &Path) -> Other {
            let mut child = Command::new(std::env::current_exe().expect("knows its path"))
                .args(["--exact", "toolstack::create_lock::tests::play", "--nocapture"])
                .env("XL_LOCK", path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("starts");
            let ask = child.stdin.take().expect("piped");
            let answers = BufReader::new(child.stdout.take().expect("piped")).lines();
            Other { child, ask, answers }
        }

        /// `lock` waits for the lock, `try` doesn't, `unlock` gives it back.
        fn does(&mut self, what: &str) -> bool {
            writeln!(self.ask, "{what}").expect("it reads");
            let answer = self.answers.by_ref().map(|line| line.expect("text")).find_map(|line| {
                // Behind what the test harness says.
                Some(line.split_once("answer: ")?.1.to_owned())
            });
            answer.expect("an answer") == "yes"
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// In a child: what it is told. Otherwise: that it does as it is told, or the other tests would prove nothing.
    #[test]
    fn play() {
        let Some(path) = std::env::var_os("XL_LOCK") else {
            let dir = tempfile::tempdir().expect("a directory");
            let (mut one, mut two) = (Other::start(&dir.path().join("xl")), Other::start(&dir.path().join("xl")));
            assert!(one.does("try") && !two.does("try"));
            assert!(one.does("unlock") && two.does("lock") && !one.does("try"));
            return;
        };
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).expect("a file");
        for line in io::stdin().lines() {
            let operation = match line.expect("text").as_str() {
                "lock" => FlockOperation::LockExclusive,
                "unlock" => FlockOperation::Unlock,
                _ => FlockOperation::NonBlockingLockExclusive,
            };
            println!("answer: {}", if fcntl_lock(&file, operation).is_ok() { "yes" } else { "no" });
        }
    }

    fn lock_on(path: &Path) -> CreateLock {
        CreateLock::new(path, Arc::new(Interrupt::new().expect("a descriptor")))
    }

    fn silent(text: &str) {
        panic!("nothing to wait for: {text}");
    }

    #[test]
    fn the_process_has_it_as_long_as_any_of_its_threads() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("xl");
        let lock = lock_on(&path);
        // Before the other process makes the file.
        drop(lock.acquire(None, &silent).expect("free"));
        let mut other = Other::start(&path);
        for _ in 0..2 {
            let first = lock.acquire(None, &silent).expect("free");
            let second = lock.acquire(None, &silent).expect("ours");
            assert!(!other.does("try"));
            drop(first);
            assert!(!other.does("try"));
            drop(second);
            assert!(other.does("try") && other.does("unlock"));
        }
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).expect("made").permissions().mode();
        assert_eq!(mode & 0o7777, 0o200, "as xl makes it");
    }

    #[test]
    fn another_process_is_named_and_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("xl");
        let (lock, mut other) = (lock_on(&path), Other::start(&path));
        assert!(other.does("lock"));
        let expected = format!("waits for xl's lock {}, held by process {}", path.display(), other.child.id());
        let (told, notes) = mpsc::channel();
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..3)
                .map(|_| {
                    let told = told.clone();
                    let lock = &lock;
                    scope.spawn(move || lock.acquire(None, &|text| told.send(text.to_owned()).expect("heard")))
                })
                .collect();
            for _ in 0..3 {
                assert_eq!(notes.recv().expect("a note"), expected);
            }
            assert!(other.does("unlock"));
            let held: Vec<_> = waiting.into_iter().map(|thread| thread.join().expect("no panic")).collect();
            assert!(held.iter().all(Result::is_ok) && !other.does("try"));
        });
        assert!(other.does("try"));
        assert!(notes.try_recv().is_err(), "each tells it once");
    }

    #[test]
    fn a_deadline_ends_the_waiting_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("xl");
        let (lock, mut other, mut third) = (lock_on(&path), Other::start(&path), Other::start(&path));
        assert!(other.does("lock"));
        let id = other.child.id();
        for _ in 0..2 {
            let begun = Instant::now();
            let soon = Some(begun + Duration::from_millis(40));
            let Err(error) = lock.acquire(soon, &|_| {}) else { panic!("it is another's") };
            assert!(begun.elapsed() >= Duration::from_millis(40) && matches!(error, Error::Deadline { .. }));
            assert!(error.to_string().ends_with(&format!("is still held by process {id}")), "{error}");
        }
        // The thread that still waits for it passes it on, whoever comes first.
        assert!(other.does("unlock") && third.does("lock") && third.does("unlock"));
        let held = lock.acquire(None, &|_| {}).expect("free");
        assert!(!third.does("try"));
        drop(held);
        assert!(third.does("try"));
    }

    #[test]
    fn being_asked_to_end_ends_the_waiting() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("xl");
        let (lock, mut other) = (lock_on(&path), Other::start(&path));
        assert!(other.does("lock"));
        let (told, notes) = mpsc::channel();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| lock.acquire(None, &|_| told.send(()).expect("heard")).err());
            notes.recv().expect("a note");
            lock.interrupt.ask();
            assert!(matches!(waiting.join().expect("no panic"), Some(Error::Deadline { .. })));
        });
    }

    #[test]
    fn a_killed_process_has_no_lock() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("xl");
        let (lock, mut other) = (lock_on(&path), Other::start(&path));
        assert!(other.does("lock"));
        drop(other);
        lock.acquire(None, &silent).expect("free");
    }

    #[test]
    fn a_link_is_not_followed_and_a_fifo_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, victim) = (dir.path().join("xl"), dir.path().join("victim"));
        let acquire = || {
            let lock = CreateLock::new(&path, Arc::new(Interrupt::new().expect("a descriptor")));
            lock.acquire(None, &|_| {}).err().map(|error| error.to_string())
        };
        std::os::unix::fs::symlink(&victim, &path).expect("link");
        assert!(acquire().is_some_and(|error| error.contains("/xl: ")));
        assert!(!victim.exists());
        std::fs::remove_file(&path).expect("remove");
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).expect("FIFO");
        assert!(acquire().is_some_and(|error| error.contains("/xl: ")));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let lock = lock_on(Path::new("/nonexistent/xl"));
        for _ in 0..2 {
            let Err(error) = lock.acquire(None, &silent) else { panic!("there is no such directory") };
            assert!(error.to_string().starts_with("xl's lock /nonexistent/xl: No such file"), "{error}");
        }
    }
}
