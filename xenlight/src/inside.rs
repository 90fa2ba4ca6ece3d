//! Who is inside libxl, so that it forks only when no other thread is.
//!
//! Some of the children that libxl forks go on inside libxl and its libraries; the one that has the hypervisor destroy a
//! domain is the most frequent. libxencall guards its buffers with one mutex for all contexts of the process. If another
//! thread holds that mutex when the child is forked, nobody will ever release it in the child, and the destroy does not end.
//! libxl's context lock does not prevent this: each context has its own, and what only asks takes none. So here each
//! thread that calls libxl is counted, and libxl forks through [`fork_alone`], which waits until the others have left.

use std::cell::Cell;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use xenlight_sys::libxl::Libxenlight;

use crate::context::lock;

/// How long a fork waits for other threads. Building a large domain is one call, which others should not have to wait for
/// without a limit; and whatever libxl might one day lock while it forks, it goes on after this.
const PATIENCE: Duration = Duration::from_secs(60);

struct Threads {
    /// Inside libxl.
    inside: usize,
    /// Those of them that are about to fork.
    forking: usize,
}

/// Of the whole process, as the mutex is that this is about.
static THREADS: Mutex<Threads> = Mutex::new(Threads { inside: 0, forking: 0 });
static CHANGED: Condvar = Condvar::new();

thread_local! {
    /// How many calls of libxl this thread is inside of: libxl's callbacks may call libxl.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Permission to call libxl, for one call.
pub(crate) struct Inside<'a> {
    lib: &'a Libxenlight,
    /// Dropped after this thread is out. `None` in a callback, whose thread has it already, and without a context.
    _turn: Option<MutexGuard<'a, ()>>,
    /// It counts for its thread.
    _thread: PhantomData<*const ()>,
}

impl<'a> Inside<'a> {
    /// Waits until nobody forks. Whoever holds `turn`, which each context has one of, is the only one to call libxl with
    /// that context: a thread that waited for libxl's own lock would be inside.
    pub(crate) fn enter(lib: &'a Libxenlight, turn: Option<&'a Mutex<()>>) -> Self {
        let depth = DEPTH.get();
        let turn = turn.filter(|_| depth == 0).map(lock);
        if depth == 0 {
            let threads = lock(&THREADS);
            let mut threads =
                CHANGED.wait_while(threads, |threads| threads.forking > 0).unwrap_or_else(PoisonError::into_inner);
            threads.inside += 1;
        }
        DEPTH.set(depth + 1);
        Self { lib, _turn: turn, _thread: PhantomData }
    }
}

impl Deref for Inside<'_> {
    type Target = Libxenlight;

    fn deref(&self) -> &Libxenlight {
        self.lib
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let depth = DEPTH.get() - 1;
        DEPTH.set(depth);
        if depth == 0 {
            let mut threads = lock(&THREADS);
            threads.inside -= 1;
            if threads.forking > 0 {
                CHANGED.notify_all();
            }
        }
    }
}

/// `libxl_childproc_hooks.fork_replacement`: forks when all other threads that are inside libxl want to fork too, one after
/// the other.
pub(crate) unsafe extern "C" fn fork_alone(_user: *mut c_void) -> libc::pid_t {
    let mut threads = lock(&THREADS);
    threads.forking += 1;
    let others = |threads: &mut Threads| threads.inside > threads.forking;
    let mut threads =
        CHANGED.wait_timeout_while(threads, PATIENCE, others).unwrap_or_else(PoisonError::into_inner).0;
    // SAFETY: libxl asks for a fork and sees to it that the child does only what a child may.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // This thread is the only one of the child, which may fork again: the one that starts a device model does.
        *threads = Threads { inside: 1, forking: 0 };
        return child;
    }
    // SAFETY: this thread's own errno, by which libxl says why it could not fork.
    let errno = unsafe { *libc::__errno_location() };
    threads.forking -= 1;
    drop(threads);
    CHANGED.notify_all();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    child
}
