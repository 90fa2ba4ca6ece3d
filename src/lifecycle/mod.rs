//! What is done with guests, and in which order: start, stop, status. Policy only: everything that touches a guest goes
//! through the [`Toolstack`] trait.

mod accept;
mod backends;
mod check;
mod directories;
mod drop_ins;
mod libvirt;
mod longest;
mod migrations;
#[cfg(test)]
pub(crate) mod mock;
mod order;
mod plan;
mod recovery;
mod save_place;
mod start;
mod status;
mod stop;
mod unsavable;
mod watchers;
mod watching;
mod workers;

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use uuid::Uuid;

use directories::{copied_uuids, several};

use crate::guest_config::{GuestConfig, XenHost};
use crate::host::Host;
use crate::image::{self, Image, Verdict};
use crate::interrupt::Interrupt;
use crate::report::Reporter;
use crate::runs::Runs;
use crate::settings::Settings;
use crate::toolstack::{self, AWAY, Domain, ShutdownReason, State, Toolstack};

pub use accept::{accept, skip};
pub use check::{check, check_guest};
pub use drop_ins::warn_of_drop_ins;
pub use plan::{plan_start, plan_stop};
pub use start::{mark_if_needed, start};
pub use status::{Overview, overview};
pub use stop::stop;

/// What start, stop and status work with.
pub struct Run<'a> {
    /// The machine.
    pub host: &'a Host,
    /// What the admin wants.
    pub settings: &'a Settings,
    /// The host for which guest configurations are read.
    pub xen_host: &'a XenHost,
    /// Who does it.
    pub toolstack: &'a dyn Toolstack,
    /// Who is told.
    pub report: &'a Reporter,
    /// Whether to come to an end.
    pub interrupt: &'a Interrupt,
    /// How to wait between two guests or two SysRq letters.
    pub sleep: &'a (dyn Fn(Duration) + Sync),
    /// How to start a monitor. `None`: start does not see to it that one runs.
    pub spawn_monitor: Option<&'a (dyn Fn() -> io::Result<()> + Sync)>,
}

impl Run<'_> {
    fn pause(&self, time: Duration) {
        if !time.is_zero() {
            (self.sleep)(time);
        }
    }

    /// What the images know a domain by.
    fn domain(&self, domain: &Domain) -> io::Result<image::Guest> {
        let boot_id = self.host.boot_id()?;
        Ok(image::Guest { name: name(domain).to_owned(), uuid: domain.uuid, domid: domain.domid, boot_id })
    }
}

/// The UUIDs that several guests have: somebody has copied a guest's file and changed the name, but not the UUID. Two
/// names are two guests for xl. But a guest that runs under another name than its file or image has is the same guest, so
/// that only names that are there side by side count.
#[derive(Debug, Default)]
struct Copied(HashSet<Uuid>);

impl Copied {
    fn new(auto: &[GuestConfig], images: &[Image], domains: &[Domain]) -> Copied {
        let mut copied = copied_uuids(auto);
        copied.extend(several(images.iter().map(|image| (image.uuid, image.name.as_str()))));
        let guests = domains.iter().filter(|domain| domain.is_manageable() && is_alive(domain));
        copied.extend(several(guests.map(|domain| (domain.uuid, name(domain)))));
        Copied(copied)
    }

    fn contains(&self, uuid: Uuid) -> bool {
        self.0.contains(&uuid)
    }

    /// Returns the identity of an image's guest.
    fn image(&self, image: &Image) -> Identity {
        self.identity(Identity::of_image(image))
    }

    /// Returns the identity of the guest of a file.
    fn config(&self, guest: &GuestConfig) -> Identity {
        self.identity(Identity::of_config(guest))
    }

    fn identity(&self, guest: Identity) -> Identity {
        Identity { uuid: guest.uuid.filter(|uuid| !self.contains(*uuid)), ..guest }
    }
}

/// Marks by which a guest is known. One whose file leaves the UUID to the toolstack, or whose UUID is another guest's too, is known
/// by its name alone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    name: String,
    uuid: Option<Uuid>,
}

impl Identity {
    fn of_image(image: &Image) -> Identity {
        Identity { name: image.name.clone(), uuid: Some(image.uuid) }
    }

    fn of_config(guest: &GuestConfig) -> Identity {
        Identity { name: guest.name.clone(), uuid: guest.uuid_given.then_some(guest.uuid) }
    }

    fn is_same_guest(&self, other: &Identity) -> bool {
        self.name == other.name || (self.uuid.is_some() && self.uuid == other.uuid)
    }

    /// The domain that is this guest, or stands in its way: one that has its UUID or name, also as one half of a
    /// migration. A domain that is only not quite gone yet (a zombie) does not count.
    fn find<'a>(&self, domains: &'a [Domain]) -> Option<&'a Domain> {
        let is_it = |domain: &&Domain| {
            let name = domain.name.as_deref().unwrap_or_default();
            let name = name.strip_suffix("--incoming").unwrap_or(name);
            let name = name.strip_suffix(AWAY).unwrap_or(name);
            name == self.name || Some(domain.uuid) == self.uuid
        };
        let found =
            domains.iter().filter(|domain| domain.domid != 0 && domain.state != State::Dying).filter(is_it);
        // What is kept of an earlier life has the same UUID.
        found.min_by_key(|domain| !is_alive(domain))
    }
}

/// Remembers the guests that run now.
fn saw(run: &Run<'_>, domains: &[Domain]) {
    remember(run.host, domains, run.report);
}

/// The same for who only looks.
fn remember(host: &Host, domains: &[Domain], report: &Reporter) {
    match host.boot_id() {
        Ok(boot_id) => {
            Runs::of(host).saw_all(domains, &boot_id).iter().for_each(|error| cant_remember(error, report));
        }
        Err(error) => cant_remember(&error, report),
    }
}

/// Remembers a guest that has just been let run.
fn saw_one(run: &Run<'_>, domid: toolstack::Domid, guest: &Identity) {
    let saw = |boot_id| {
        let (name, uuid) = (guest.name.clone(), guest.uuid.unwrap_or_default());
        Runs::of(run.host).saw(&image::Guest { name, uuid, domid, boot_id })
    };
    if let Err(error) = run.host.boot_id().and_then(saw) {
        cant_remember(&error, run.report);
    }
}

fn cant_remember(error: &io::Error, report: &Reporter) {
    report.warn(&format!("that a guest runs can't be remembered: {error}"));
}

/// Judges whether an image may be restored, by what was seen of its guest and by its guest's disks.
fn judged(image: &Image, host: &Host) -> Verdict {
    Runs::of(host).has_run_since(image).map_or_else(|| image.verdict(), Verdict::Stale)
}

fn name(domain: &Domain) -> &str {
    domain.name.as_deref().unwrap_or("(no name)")
}

fn is_alive(domain: &Domain) -> bool {
    matches!(domain.state, State::Running | State::Paused)
}

/// Whether the guest has come to its end, so that only its remains are there. One that is suspended or in the middle of
/// a soft reset has not.
fn is_finished(domain: &Domain) -> bool {
    match domain.state {
        State::Shutdown(ShutdownReason::Suspend | ShutdownReason::SoftReset) => false,
        State::Shutdown(_) => true,
        State::Running | State::Paused | State::Dying => false,
    }
}

/// The state in a word.
fn state_word(state: State) -> &'static str {
    match state {
        State::Running => "running",
        State::Paused => "paused",
        State::Dying => "dying",
        State::Shutdown(ShutdownReason::Poweroff | ShutdownReason::Other(_)) => "shutdown",
        State::Shutdown(ShutdownReason::Reboot | ShutdownReason::SoftReset) => "rebooting",
        State::Shutdown(ShutdownReason::Suspend) => "suspended",
        State::Shutdown(ShutdownReason::Crash | ShutdownReason::Watchdog) => "crashed",
    }
}

/// Why a call failed, for people.
fn reason(error: &toolstack::Error) -> String {
    let mut reason = error.to_string();
    if error.timed_out {
        reason.insert_str(0, "time limit reached, or told to end: ");
    }
    if error.left_suspended {
        reason.push_str("; the guest is left SUSPENDED, it could not be resumed");
    }
    reason
}
