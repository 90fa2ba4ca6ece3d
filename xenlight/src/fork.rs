//! Forking for libxl, so that no child waits for a lock that nobody will release.
//!
//! libxl forks in a process with many threads. Most children exec at once. Some go on inside libxl's libraries: the child
//! that has the hypervisor destroy a domain opens libxenctrl and makes hypercalls. These libraries guard data of the whole
//! process with mutexes: libxencall its buffers, libxentoolcore its list of handles, libxenctrl the texts of errors. Each is
//! held for a moment only, but by any thread, whatever its context. A child that was forked in such a moment has a copy of
//! the locked mutex, whose holder does not exist in it, and waits for ever.
//!
//! No thread can be asked to stay out of libxl for a fork: building a guest or dumping its memory is one call, which takes
//! minutes for a large guest, while libxl's own limits (40 s for a hotplug script, 60 s for a device model) run already when
//! it forks. So nobody waits. Instead [`tested`] has each child prove that it can take those locks, before libxl gets it. A
//! child has one thread, so a lock that it could take once stays free. One that can't is killed and another is forked.

use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

use crate::context::Shared;
use crate::log::LogLevel;

/// Time that the first child has for its proof, which takes it a millisecond. Each further child has twice the time of the
/// one before, for hosts that are slow to run a new process.
const FIRST_PATIENCE: Duration = Duration::from_millis(250);

/// Number of children that are tried. Together they take less than eight seconds, which is less than any limit of libxl.
const ATTEMPTS: u32 = 5;

/// Forks like `fork(2)`, and returns in the child only when that can take the locks of libxl's libraries.
///
/// The function for `libxl_childproc_hooks.fork_replacement`.
///
/// # Safety
/// `user` points to the [`Shared`] of the context that forks.
pub(crate) unsafe extern "C" fn tested(user: *mut c_void) -> libc::pid_t {
    // SAFETY: as the caller promises.
    let shared = unsafe { &*user.cast::<Shared>() };
    // SAFETY: asks for a number.
    if unsafe { libc::getpid() } != shared.pid {
        // A child of libxl's that forks again. It has one thread and has proved itself.
        // SAFETY: libxl asks for a fork and sees to it that the child does only what a child may.
        return unsafe { libc::fork() };
    }
    let mut patience = FIRST_PATIENCE;
    for _ in 0..ATTEMPTS {
        match attempt(shared, patience) {
            Ok(pid) => return pid,
            Err(Unproven::Errno(errno)) => return failed(errno),
            Err(Unproven::Child) => {}
        }
        shared
            .logger
            .note(LogLevel::Info, "a forked child could not take its libraries' locks: forking again".into());
        patience *= 2;
    }
    failed(libc::EAGAIN)
}

fn failed(errno: c_int) -> libc::pid_t {
    // SAFETY: this thread's own errno, by which libxl says why it could not fork.
    unsafe { *libc::__errno_location() = errno };
    -1
}

fn errno() -> c_int {
    // SAFETY: this thread's own errno.
    unsafe { *libc::__errno_location() }
}

/// Reason for which there is no usable child.
enum Unproven {
    /// A system call failed.
    Errno(c_int),
    /// The child could not take the locks, or died. It has been reaped.
    Child,
}

/// Forks one child. In that, returns 0 when it has taken the locks.
fn attempt(shared: &Shared, patience: Duration) -> Result<libc::pid_t, Unproven> {
    let mut ends = [-1; 2];
    // SAFETY: a place for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(Unproven::Errno(errno()));
    }
    let [proof, prover] = ends;
    // SAFETY: the child calls only what a child of many threads may: system calls and, as libxl's children do, libxenctrl.
    let child = unsafe { libc::fork() };
    if child == 0 {
        prove(shared);
        // SAFETY: both descriptors are the child's own copies; the byte lives during the call.
        unsafe {
            libc::write(prover, [1u8].as_ptr().cast(), 1);
            libc::close(prover);
            libc::close(proof);
        }
        return Ok(0);
    }
    let why = errno();
    // SAFETY: the descriptor is ours and not used again.
    unsafe { libc::close(prover) };
    let proven = child > 0 && has_byte(proof, patience);
    // SAFETY: as above.
    unsafe { libc::close(proof) };
    match child {
        -1 => Err(Unproven::Errno(why)),
        _ if proven => Ok(child),
        _ => {
            end(child);
            Err(Unproven::Child)
        }
    }
}

/// Takes and releases each lock that a child of libxl's may want, and leaves SIGCHLD to the system.
///
/// For ever, if another thread of the parent held one of them at the fork.
fn prove(shared: &Shared) {
    let lib = shared.lib();
    // SAFETY: the logger lives as long as the context and can be used in a child. The interface is closed once. SIGCHLD's
    // handler is libxl's for the parent, with a mutex of its own; children of libxl that have children wait for them by pid.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let xch = lib.xc_interface_open(shared.logger.as_raw(), std::ptr::null_mut(), 0);
        if !xch.is_null() {
            lib.xc_strerror(xch, libc::EAGAIN);
            lib.xc_interface_close(xch);
        }
    }
}

/// Waits for a byte. `false` when the time is over or the other end is closed.
fn has_byte(fd: c_int, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now()).as_millis();
        let mut waiting = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives during the call.
        match unsafe { libc::poll(&mut waiting, 1, c_int::try_from(left).unwrap_or(c_int::MAX)) } {
            0 => return false,
            1.. => {
                let mut byte = 0u8;
                // SAFETY: a place for one byte. The descriptor is readable, or its other end closed.
                return unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } == 1;
            }
            _ if errno() == libc::EINTR => {}
            _ => return false,
        }
    }
}

/// Kills and reaps a child that nobody else knows.
fn end(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the child has not been reaped, so its number is still its own; `status` is a place for its status.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        while libc::waitpid(child, &raw mut status, 0) == -1 && errno() == libc::EINTR {}
    }
}
