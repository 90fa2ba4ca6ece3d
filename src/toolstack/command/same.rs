//! What is the same with both commands.

use std::ffi::OsStr;
use std::time::Instant;

use super::lists::Asked;
use super::run::Runner;
use crate::toolstack::{Domid, Error, State};

/// The domain of a guest that was to be built.
#[derive(Clone, Copy)]
pub(super) struct Built {
    pub(super) domid: Domid,
    /// It has never been let run.
    pub(super) half_made: bool,
}

impl Runner {
    /// Builds a guest, which is left paused. What a failure has left of it is removed. `find` looks for its domain.
    pub(super) fn build(
        &self,
        action: &'static str,
        words: &[&dyn AsRef<OsStr>],
        deadline: Option<Instant>,
        find: impl FnOnce() -> Result<Option<Built>, Error>,
        destroy: impl FnOnce(Domid) -> Result<(), Error>,
    ) -> Result<Domid, Error> {
        let done = self.long(action, words, deadline);
        match (done, find()) {
            (Ok(_), Ok(Some(built))) => Ok(built.domid),
            (Ok(_), Ok(None)) => {
                Err(Error::new(action, format!("{} reports success, but the guest is not there", self.name())))
            }
            (Ok(_), Err(error)) => {
                Err(Error::new(action, format!("which domain it has become is not known: {error}")))
            }
            (Err(mut error), found) => {
                if let Some(Built { domid, .. }) = found.ok().flatten().filter(|built| built.half_made) {
                    if let Err(e) = destroy(domid) {
                        error.cause += &format!("; its half-made domain {domid} could not be removed: {e}");
                    }
                }
                Err(error)
            }
        }
    }

    pub(super) fn unpause(&self, domid: Domid) -> Result<(), Error> {
        self.short("unpause", &[&"unpause", &domid.to_string()]).map(drop)
    }

    pub(super) fn rename(&self, domid: Domid, to: &str) -> Result<(), Error> {
        self.short("rename", &[&"rename", &domid.to_string(), &to]).map(drop)
    }

    pub(super) fn sysrq(&self, domid: Domid, letter: char) -> Result<(), Error> {
        self.short("sysrq", &[&"sysrq", &domid.to_string(), &letter.to_string()]).map(drop)
    }

    /// `look` says what the domain is doing.
    pub(super) fn destroy(
        &self,
        domid: Domid,
        look: impl FnOnce() -> Result<Option<State>, Error>,
    ) -> Result<(), Error> {
        let destroyed = self.short_but_large("destroy", &[&"destroy", &domid.to_string()]);
        destroyed.map(drop).or_else(|error| match look() {
            Ok(None | Some(State::Dying)) => Ok(()),
            _ => Err(error),
        })
    }
}

/// Whether a guest was asked to shut down, or need not be any more. `look` says what its domain is doing.
pub(super) fn was_asked(
    asked: Result<Asked, Error>,
    look: impl FnOnce() -> Result<Option<State>, Error>,
) -> Result<(), Error> {
    asked.map(drop).or_else(|error| match look()? {
        Some(State::Running | State::Paused) => Err(error),
        _ => Ok(()),
    })
}
