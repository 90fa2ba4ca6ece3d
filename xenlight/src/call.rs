//! Entering libxl, and the work that a thread puts off until it has left.
//!
//! libxl calls back on threads that are inside it, partly with its locks held. Two rules keep those calls harmless:
//! - The caller's [`LogSink`](crate::LogSink) runs with libxl's locks held. As long as it runs, [`Call::enter`] refuses its
//!   thread, and [`is_inside`] makes drops hand their work to the event thread.
//! - A task's waker is the caller's code too. [`wake`] keeps it until the thread has left libxl.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

use xenlight_sys::libxl::Libxenlight;

use crate::error::Cause;
use crate::log::{LogLevel, Logger, panic_text};

thread_local! {
    /// Number of calls of libxl that this thread is inside of. Callbacks may call libxl again.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// Set while a log sink runs on this thread.
    static IN_SINK: Cell<bool> = const { Cell::new(false) };
    /// Wakers to be called when this thread has left libxl.
    static WAKERS: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// Permission to call libxl, held during the call. Dropping the outermost one of a thread calls the wakers that came up.
///
/// Whoever drops one must hold no lock that a waker could want.
pub(crate) struct Call<'a> {
    lib: &'a Libxenlight,
    /// Logger for wakers that panic. Without a context there is none, and there are no wakers.
    logger: Option<&'a Logger>,
    /// Counted for one thread, so it must stay there.
    _thread: PhantomData<*const ()>,
}

impl<'a> Call<'a> {
    /// Enters libxl, unless this thread runs a log sink.
    pub(crate) fn enter(lib: &'a Libxenlight, logger: Option<&'a Logger>) -> Result<Self, Cause> {
        if IN_SINK.get() {
            return Err(Cause::NotAllowed("a log sink must not call libxl, which is waiting for it"));
        }
        Ok(Self::new(lib, logger))
    }

    /// Enters libxl on a thread of this crate, which runs no log sink.
    pub(crate) fn new(lib: &'a Libxenlight, logger: Option<&'a Logger>) -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self { lib, logger, _thread: PhantomData }
    }
}

impl Deref for Call<'_> {
    type Target = Libxenlight;

    fn deref(&self) -> &Libxenlight {
        self.lib
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        leave(self.logger);
    }
}

fn leave(logger: Option<&Logger>) {
    let depth = DEPTH.get() - 1;
    DEPTH.set(depth);
    if depth > 0 {
        return;
    }
    loop {
        // A thread that ends has no list any more, and then nothing in it either.
        let wakers = WAKERS.try_with(RefCell::take).unwrap_or_default();
        if wakers.is_empty() {
            return;
        }
        wakers.into_iter().for_each(|waker| run(logger, waker));
    }
}

/// Runs a callback of libxl's, which may be on a thread that did not enter libxl through this crate.
pub(crate) fn called_back(f: impl FnOnce()) {
    DEPTH.set(DEPTH.get() + 1);
    f();
    leave(None);
}

/// Returns whether this thread is inside libxl or in a log sink, where it must not wait for another thread.
pub(crate) fn is_inside() -> bool {
    DEPTH.get() > 0 || IN_SINK.get()
}

/// Returns whether this thread runs a log sink.
pub(crate) fn is_in_sink() -> bool {
    IN_SINK.get()
}

/// Runs a log sink, or other code that must not call libxl.
pub(crate) fn in_sink<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            IN_SINK.set(self.0);
        }
    }
    let _restore = Restore(IN_SINK.replace(true));
    f()
}

/// Calls a waker as soon as this thread is outside libxl, which may be now. A panic in it becomes a log line.
pub(crate) fn wake(logger: &Logger, waker: Waker) {
    let mut waker = Some(waker);
    if is_inside() {
        // A thread that ends has no list any more. Its wakers are called at once.
        let _ = WAKERS.try_with(|wakers| wakers.borrow_mut().extend(waker.take()));
    }
    if let Some(waker) = waker {
        run(Some(logger), waker);
    }
}

fn run(logger: Option<&Logger>, waker: Waker) {
    let outcome = catch_unwind(AssertUnwindSafe(|| waker.wake()));
    if let (Err(panic), Some(logger)) = (outcome, logger) {
        logger.note(LogLevel::Critical, format!("a task's waker panicked: {}", panic_text(&*panic)));
    }
}
