//! Migration by a toolstack that talks to the other host itself, as the commands do.
//!
//! What it says to the target is not seen, so that the record is *going* from the beginning. What has become of the guest
//! is told by its domain: `xl migrate` renames it before it tells the target to let the guest run.

use super::{Guest, Migration, Offer, Outcome, Record, Stage, With, is_over, undecided};
use crate::migrate::targets::Approach;
use crate::toolstack::{self, AWAY, Domain, Migrator, ShutdownReason, State, To};

/// What the domain tells.
enum Seen {
    /// It is gone.
    Gone,
    /// It runs, or has come to its end.
    Here,
    /// It is suspended and can't run elsewhere.
    Suspended,
    /// It is suspended, and may.
    Away,
}

fn look(domain: &Domain, with: With<'_>) -> Result<Seen, toolstack::Error> {
    let domains = with.toolstack.domains()?;
    let now = domains.into_iter().find(|now| now.domid == domain.domid && now.uuid == domain.uuid);
    let Some(now) = now.filter(|now| now.state != State::Dying) else { return Ok(Seen::Gone) };
    if now.state != State::Shutdown(ShutdownReason::Suspend) {
        return Ok(Seen::Here);
    }
    // The name is the first that goes when a domain is destroyed.
    Ok(if now.name.is_some_and(|name| !name.ends_with(AWAY)) { Seen::Suspended } else { Seen::Away })
}

impl Migration<'_> {
    /// Has a guest migrated to one target.
    pub(super) fn hand_over(
        &self,
        migrator: &dyn Migrator,
        guest: Guest<'_>,
        place: usize,
        target: &str,
        with: With<'_>,
    ) -> Offer {
        match self.targets.approach(place, guest.deadline) {
            Approach::Reached | Approach::First => {}
            Approach::Dead(why) => return Offer::Refused(format!("not tried again: {why}")),
            Approach::TooLate => return Offer::Refused("the time is over".to_owned()),
        }
        let mut record = Record::new(guest.known.clone(), target);
        record.stage = Stage::Going;
        if let Err(error) = self.records.write(&record) {
            self.targets.not_known(place);
            return Offer::Refused(error.to_string());
        }
        let for_it = self.config.as_ref().filter(|config| guest.domain.name.as_ref() == Some(&config.name));
        let name = &guest.known.name;
        let hear = |line: &str| with.report.note(&format!("{name}: {target}: {line}"));
        let config = for_it.map(|config| config.path.as_path());
        let to = To { target, options: self.options, config, hear: &hear };
        let moved = migrator.migrate(guest.domain, to, guest.deadline);
        let unreached =
            |error: &toolstack::Error| error.cause.contains(NO_BANNER) && !is_over(with, guest.deadline);
        match &moved {
            Err(error) if unreached(error) => self.targets.dead(place, &error.cause),
            Err(error) if error.timed_out => self.targets.not_known(place),
            _ => self.targets.reached(place),
        }
        let unknown = |why: String| Offer::Taken(Outcome::Unknown { why: undecided(guest.known, target, &why) });
        match (moved, look(guest.domain, with)) {
            (Ok(()), Ok(Seen::Gone | Seen::Away)) => Offer::Taken(self.finish(&guest, record, with)),
            (Ok(()), Ok(Seen::Here | Seen::Suspended)) => unknown("it was migrated, but is still here".to_owned()),
            (Err(error), Ok(Seen::Here)) => {
                self.forget(guest.known, with);
                Offer::Refused(error.cause)
            }
            (Err(error), Ok(Seen::Suspended)) => match with.toolstack.resume(guest.domain.domid) {
                Ok(()) => {
                    self.forget(guest.known, with);
                    Offer::Refused(error.cause)
                }
                Err(e) => {
                    let left = "the guest is left SUSPENDED, it could not be resumed";
                    Offer::Taken(Outcome::Suspended { why: format!("{target}: {}; {left}: {e}", error.cause) })
                }
            },
            (Err(error), Ok(Seen::Away)) => unknown(error.cause),
            (Err(error), Ok(Seen::Gone)) => {
                let why =
                    format!("{target}: {}; its domain here is gone: it is on {target}, or has ended", error.cause);
                Offer::Taken(Outcome::Unknown { why })
            }
            (moved, Err(error)) => {
                let why = moved.err().map_or(String::new(), |error| format!("{}; ", error.cause));
                unknown(format!("{why}the domains can't be listed: {error}"))
            }
        }
    }
}

/// xl says this when the target has not answered at all.
const NO_BANNER: &str = "banner";
