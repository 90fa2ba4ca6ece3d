//! One process that does for all our guests what `xl create` leaves a process of its own behind for with each: when a
//! guest ends, it does what the guest's configuration says for that, and it takes media out of drives that guests open.
//!
//! Our guests are those with a [`Mark`], which start puts on each before it runs. It is kept with the domain, so that a
//! monitor that comes later knows them too, and nobody else's guest has it. All else that has to outlive the monitor is a
//! note of each restart that is under way ([`Restarts`]). So a monitor can end at any moment, and the next one goes on.
//!
//! It sleeps until something happens: libxl reports the end of guests, and start, stop and status speak through a
//! [socket](protocol). The clock only wakes it while a restart waits for its time.
//!
//! - `mark`, `restart`: what outlives the monitor
//! - `policy`: what is to be done, and when; `act`: doing it, for one guest; `dump`: the memory of a crashed one
//! - `watcher`: all guests, and who wants something of them; `socket`: the other end of [`client`]

mod act;
pub mod client;
mod daemon;
mod dump;
mod mark;
mod policy;
pub mod protocol;
mod restart;
mod socket;
mod watcher;

use std::path::{Path, PathBuf};

pub use daemon::{detach, ready, spawn};
pub use mark::{Mark, is_abandoned, is_libvirts, since_boot};
pub use policy::nobody_misses_it;
pub use restart::{Restart, Restarts};
pub use watcher::monitor;

use crate::guest_config::XenHost;
use crate::host::Host;
use crate::interrupt::Interrupt;
use crate::report::Reporter;
use crate::settings::Settings;
use crate::toolstack::Toolstack;

/// What the monitor works with.
pub struct Watcher<'a> {
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
}

/// Where the monitor listens.
fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("monitor.sock")
}

/// Locked by the one monitor.
fn lock_path(run_dir: &Path) -> PathBuf {
    run_dir.join("monitor.lock")
}
