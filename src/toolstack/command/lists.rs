//! Asking for the list of domains again and again, since a command can't tell when a guest has ended.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::interrupt::Interrupt;
use crate::toolstack::{Domain, Ending, Error, ShutdownReason, State};

/// How long it is until the list is asked for once more, at first and at most.
const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(2);

/// After this time a guest that has not reacted is asked again, as one has to be that was still booting.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// So often in a row a list may fail.
const FAILURES: u32 = 3;

/// The last list, for all who wait for something in it.
pub(super) struct Lists<T> {
    last: Mutex<Option<(Instant, Arc<T>)>>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Lists { last: Mutex::new(None) }
    }
}

impl<T> Lists<T> {
    /// The last list if it is not older than this, else a new one. Only one is asked for at a time.
    pub(super) fn no_older_than(
        &self,
        age: Duration,
        list: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Arc<T>, Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((begun, list)) = last.as_ref().filter(|(begun, _)| begun.elapsed() < age) {
            let _ = begun;
            return Ok(Arc::clone(list));
        }
        let begun = Instant::now();
        let new = Arc::new(list()?);
        *last = Some((begun, Arc::clone(&new)));
        Ok(new)
    }
}

/// Asks a guest to shut down, and looks for its end in lists until it has come. `look` is given how old its answer may be;
/// it finds nothing if the domain is gone. `ask` says whether the guest is to be asked again at once.
pub(super) fn shut_down(
    domain: &Domain,
    ask: impl Fn(&Domain) -> Result<Asked, Error>,
    look: impl Fn(Duration) -> Result<Option<State>, Error>,
    deadline: Option<Instant>,
    interrupt: &Interrupt,
) -> Result<Ending, Error> {
    let ending = |state: Option<State>| match state {
        None | Some(State::Dying) => Some(Ending::Gone),
        Some(State::Shutdown(ShutdownReason::Suspend)) => None,
        Some(State::Shutdown(why)) => Some(Ending::Shutdown(why)),
        Some(State::Running | State::Paused) => None,
    };
    let mut asked = None;
    let mut interval = FIRST;
    let mut failures = 0;
    loop {
        if asked.is_none_or(|asked: Instant| asked.elapsed() >= ASK_AGAIN) {
            match ask(domain) {
                Ok(Asked::Yes) => asked = Some(Instant::now()),
                Ok(Asked::Unheard) => asked = None,
                // It may have come to its end before it could be asked.
                Err(error) => {
                    return look(Duration::ZERO)?
                        .map_or(Ok(Ending::Gone), |state| ending(Some(state)).ok_or(error));
                }
            }
        }
        match look(interval / 2) {
            Ok(state) => {
                failures = 0;
                if let Some(ending) = ending(state) {
                    return Ok(ending);
                }
            }
            Err(error) => {
                failures += 1;
                if failures == FAILURES {
                    return Err(error);
                }
            }
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) || interrupt.is_asked() {
            return Err(Error { timed_out: true, ..Error::new("shutdown", "it has not shut down") });
        }
        interrupt.pause(left.map_or(interval, |left| left.min(interval)));
        interval = interval.mul_f32(1.5).min(LAST);
    }
}

/// Whether a guest has been asked to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// It was told, and reacts or not.
    Yes,
    /// It has not heard it, as when it is still booting.
    Unheard,
}
