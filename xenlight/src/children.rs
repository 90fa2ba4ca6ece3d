//! SIGCHLD, which a process has one of: who handles it, and what libxl would end the process for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use xenlight_sys::libxl as sys;

use crate::error::Cause;
use crate::sync::lock;

/// Choice of who takes care of SIGCHLD and of the processes that libxl starts.
///
/// The choice concerns the whole process, so it has no default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Children {
    /// libxl keeps a SIGCHLD handler and reaps **every** child of this process, so that `std::process::Child::wait` fails.
    /// Only one context may be open then. For programs that do nothing else.
    LibxlReapsAll,
    /// libxl keeps a SIGCHLD handler and reaps its own children only. Several contexts may do so side by side, and
    /// the process may have other children as long as it waits for each by its pid, as `std::process` does. No
    /// other SIGCHLD handler may be installed (signal-hook and tokio install one).
    LibxlReapsOwn,
    /// The application handles SIGCHLD and calls [`Context::child_exited`](crate::Context::child_exited) for each child that
    /// it has reaped.
    Application,
}

impl Children {
    pub(crate) fn raw(self) -> sys::libxl_sigchld_owner {
        match self {
            Self::LibxlReapsAll => sys::libxl_sigchld_owner_libxl_always,
            Self::LibxlReapsOwn => sys::libxl_sigchld_owner_libxl_always_selective_reap,
            Self::Application => sys::libxl_sigchld_owner_mainloop,
        }
    }
}

/// Contexts of one library that have libxl handle SIGCHLD.
#[derive(Clone, Copy, Default)]
struct Open {
    reap_all: usize,
    reap_own: usize,
}

/// All of them, by the address of the library's code.
static OPEN: Mutex<Option<HashMap<usize, Open>>> = Mutex::new(None);

/// The place of a context among those that have libxl handle SIGCHLD. Dropped when the context is gone.
pub(crate) struct Registered {
    library: usize,
    children: Children,
}

/// Permission to tell libxl the choice. Nobody else can meanwhile.
pub(crate) struct Permission {
    _open: MutexGuard<'static, Option<HashMap<usize, Open>>>,
}

impl Registered {
    /// Takes a place for a context, if libxl can have SIGCHLD. It would end the process otherwise.
    pub(crate) fn take(library: usize, children: Children) -> Result<(Self, Permission), Cause> {
        let mut open = lock(&OPEN);
        let place = open.get_or_insert_default().entry(library).or_default();
        let (alone, free) = match children {
            Children::Application => (true, true),
            Children::LibxlReapsOwn => (place.reap_all == 0, place.reap_own > 0 || has_default_action()),
            Children::LibxlReapsAll => (place.reap_all + place.reap_own == 0, has_default_action()),
        };
        if !alone {
            return Err(Cause::NotAllowed("a context that reaps all children can't be open beside others"));
        }
        if !free {
            return Err(Cause::NotAllowed(
                "this process has a SIGCHLD handler already; with that, use Children::Application",
            ));
        }
        match children {
            Children::Application => {}
            Children::LibxlReapsOwn => place.reap_own += 1,
            Children::LibxlReapsAll => place.reap_all += 1,
        }
        Ok((Self { library, children }, Permission { _open: open }))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut open = lock(&OPEN);
        let Some(place) = open.as_mut().and_then(|open| open.get_mut(&self.library)) else { return };
        match self.children {
            Children::Application => {}
            Children::LibxlReapsOwn => place.reap_own -= 1,
            Children::LibxlReapsAll => place.reap_all -= 1,
        }
    }
}

/// Returns whether SIGCHLD does what it does by default, or is ignored. libxl accepts nothing else.
fn has_default_action() -> bool {
    // SAFETY: all-zero is a valid value of this structure, in which the present action is put.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut action);
        action
    };
    action.sa_flags & libc::SA_SIGINFO == 0 && matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
}
