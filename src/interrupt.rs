//! Being asked to come to an end early: SIGTERM; SIGINT and SIGHUP too, unless whoever has started us ignores them.
//!
//! Every wait of the program ends when that happens, as if its limit had been reached: what is under way is ended
//! through libxl's own abort, guests are left as they are after any failure, and what has been done is reported.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

/// Whether the program has been asked to end, and what wakes those who wait for something else meanwhile.
pub struct Interrupt {
    asked: AtomicBool,
    /// Threads that are parked while they wait.
    parked: Mutex<Vec<Thread>>,
    /// Wakes [`pause`](Self::pause).
    changed: Condvar,
    /// What else is to be done.
    wakers: Mutex<Vec<Waker>>,
    /// Readable once it was asked for, for those who wait with `poll`.
    event: OwnedFd,
}

/// Wakes those who wait for something else.
type Waker = Box<dyn Fn() + Send>;

/// While it exists its thread is unparked when the program is asked to end.
pub struct Parked<'a>(&'a Interrupt);

impl Interrupt {
    /// Nothing has been asked for.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Interrupt> {
        Ok(Interrupt {
            asked: AtomicBool::new(false),
            parked: Mutex::default(),
            changed: Condvar::new(),
            wakers: Mutex::default(),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Whether the program was asked to end.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Asks it to end, and wakes everybody who waits.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        // It can only fail when it is readable already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        for thread in &*self.threads() {
            thread.unpark();
        }
        self.changed.notify_all();
        for wake in &*self.wakers() {
            wake();
        }
    }

    /// Has this done when the program is asked to end, to wake who waits in other ways. It must not wait itself.
    pub fn when_asked(&self, wake: impl Fn() + Send + 'static) {
        self.wakers().push(Box::new(wake));
    }

    /// Becomes readable, and stays so, when the program is asked to end.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Has this thread unparked when the program is asked to end.
    pub fn unparks_this_thread(&self) -> Parked<'_> {
        self.threads().push(thread::current());
        Parked(self)
    }

    /// Waits for this long, or until the program is asked to end.
    pub fn pause(&self, time: Duration) {
        let end = Instant::now().checked_add(time);
        let mut threads = self.threads();
        while !self.is_asked() {
            threads = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => return,
                Some(left) => self.changed.wait_timeout(threads, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(threads).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn threads(&self) -> MutexGuard<'_, Vec<Thread>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        let id = thread::current().id();
        let mut threads = self.0.threads();
        if let Some(place) = threads.iter().position(|thread| thread.id() == id) {
            threads.swap_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn is_readable(interrupt: &Interrupt) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(interrupt.event(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") == 1
    }

    #[test]
    fn everybody_who_waits_is_woken() {
        let interrupt = Interrupt::new().expect("a descriptor");
        assert!(!interrupt.is_asked() && !is_readable(&interrupt));
        thread::scope(|scope| {
            let parked = scope.spawn(|| {
                let _parked = interrupt.unparks_this_thread();
                while !interrupt.is_asked() {
                    thread::park();
                }
            });
            let pausing = scope.spawn(|| interrupt.pause(Duration::MAX));
            let brief = scope.spawn(|| interrupt.pause(Duration::from_millis(1)));
            brief.join().expect("it ends by itself");
            let (woken, news) = std::sync::mpsc::channel();
            interrupt.when_asked(move || woken.send(()).unwrap_or_default());
            interrupt.ask();
            parked.join().expect("woken");
            pausing.join().expect("woken");
            news.recv().expect("woken");
        });
        assert!(interrupt.is_asked() && is_readable(&interrupt) && is_readable(&interrupt));
        assert!(interrupt.threads().is_empty());
        // Too late to wait.
        interrupt.pause(Duration::MAX);
    }
}
