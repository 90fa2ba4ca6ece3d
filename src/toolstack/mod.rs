//! What the lifecycle needs of a toolstack, as one trait.
//!
//! [`libxl`] implements it in-process, [`command`] with the commands `xl` and `xm`; [`choose`] says which of them this host
//! has. Everything above this module is written against [`Toolstack`] only.

pub mod choose;
pub mod command;
mod create_lock;
pub mod libxl;
mod memory;
mod migrating;
mod monitoring;
mod xenstored;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use crate::guest_config::{Cpus, GuestConfig, Reader};
use crate::image::{Format, Image, NewImage};

pub use migrating::{ANSWER, ANSWER_ONCE_TOLD, AWAY, FOR_A_SHELL, Migrator, SSH_OPTIONS, To};
pub use monitoring::{Change, Ejected, Event, Monitoring, Watch};

/// A domain id as the hypervisor numbers them. Domain 0 is dom0.
pub type Domid = u32;

/// Why a domain has shut down, as the hypervisor reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// The guest powered itself off.
    Poweroff,
    /// The guest asked to be rebooted.
    Reboot,
    /// The guest is suspended: a save or a migration is under way, or one has failed half-way.
    Suspend,
    /// The guest crashed.
    Crash,
    /// The guest's watchdog expired.
    Watchdog,
    /// The guest asked for a soft reset.
    SoftReset,
    /// A code that this program does not know.
    Other(i32),
}

/// What a domain is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Running, blocked or runnable: alive.
    Running,
    /// Paused by the toolstack.
    Paused,
    /// Shut down for this reason, not destroyed: it still holds its memory.
    Shutdown(ShutdownReason),
    /// Destroyed, but something still holds references to its memory (a zombie).
    Dying,
}

/// One domain as the toolstack lists it.
#[derive(Clone, Debug, PartialEq)]
pub struct Domain {
    /// Its number; a new one each time the guest is created.
    pub domid: Domid,
    /// Its UUID, which stays the same over reboot, save and migration.
    pub uuid: Uuid,
    /// Its name. `None` while the domain is being destroyed, and for domains that nobody has named.
    pub name: Option<String>,
    /// What it is doing.
    pub state: State,
    /// The hypervisor forbids to stop it (a xenstore domain).
    pub never_stop: bool,
    /// It runs a device model for another domain, with which it comes and goes.
    pub stubdom: bool,
    /// Memory it holds now, KiB.
    pub memory_kib: u64,
    /// Memory it may have, KiB.
    pub max_memory_kib: u64,
    /// Virtual CPUs that are online.
    pub vcpus: u32,
    /// CPU time used by all its vCPUs.
    pub cpu_time: Duration,
    /// How long ago it was started, if the list tells; [`Toolstack::uptime`] asks for it otherwise.
    pub uptime: Option<Duration>,
}

impl Domain {
    /// Whether start and stop may ever act on it: a guest with a name that no migration is moving.
    ///
    /// Domain 0, domains that must never be stopped, device model stub domains, nameless domains (being
    /// destroyed, or not ours) and the two halves of a migration (`--incoming`, `--migratedaway`) are not.
    pub fn is_manageable(&self) -> bool {
        self.domid != 0
            && self.name.is_some()
            && !self.never_stop
            && !self.stubdom
            && self.state != State::Dying
            && !self.is_half_of_a_migration()
    }

    /// Returns whether its name says that a migration is moving it here or away.
    pub fn is_half_of_a_migration(&self) -> bool {
        self.name.as_deref().is_some_and(|name| name.ends_with("--incoming") || name.ends_with(AWAY))
    }

    /// Returns whether it has not been let run since it was made: somebody is still building it, or has left it paused. There is
    /// nothing in it that could be lost. The hypervisor makes every domain paused and counts each moment for which a
    /// virtual CPU of it has run; xl shows tenths of a second.
    pub fn has_never_run(&self) -> bool {
        self.state == State::Paused && self.cpu_time.is_zero()
    }
}

/// A failed toolstack call: which guest, what was tried, why it failed, what it left behind.
#[derive(Debug, thiserror::Error)]
#[error("{action} failed: {cause}")]
pub struct Error {
    /// What was tried, e.g. `save`, `create`, `list domains`.
    pub action: &'static str,
    /// The toolstack's own words, with the log lines that belong to the call.
    pub cause: String,
    /// The call was ended because its limit was reached, or because the program was asked to end.
    pub timed_out: bool,
    /// Set when the guest was left suspended because it could not be resumed after the failure.
    pub left_suspended: bool,
    /// The same call may well succeed a little later: something was busy, slow or short.
    pub transient: bool,
}

impl Error {
    /// A failure of the ordinary kind.
    pub fn new(action: &'static str, cause: impl Into<String>) -> Self {
        Self { action, cause: cause.into(), timed_out: false, left_suspended: false, transient: false }
    }
}

/// Words of libxl when it did not want to wait any longer: for xenconsoled, a device model, a backend (10 to 60 seconds)
/// or a script of a disk or network card (40 seconds), to which a host with much to do may not get. The code of a creation
/// that fails of that is the one of all other failures.
const OUT_OF_TIME: [&str; 5] =
    ["timed out", "because of timeout", "rc=-9", "did not start: -9", "unable to add device with path"];

/// Name that libxl gives the script of a disk or network card that has failed: with its action and its process.
const SCRIPTS: [&str; 2] = [" add [", " online ["];

/// Tells from a line of libxl's log whether a failure may pass: libxl ran out of time, or a script has failed, which may
/// have found something busy or not there yet.
fn may_pass(log: &str) -> bool {
    let has_failed = |line: &str| line.contains("exited with error status") || line.contains("died due to");
    let is_of_script = |line: &str| SCRIPTS.iter().any(|script| line.contains(script)) && has_failed(line);
    log.lines().any(|line| OUT_OF_TIME.iter().any(|words| line.contains(words)) || is_of_script(line))
}

/// How a guest came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It has shut down, for this reason, and is still there as [`State::Shutdown`].
    Shutdown(ShutdownReason),
    /// It is not there any more: somebody else has destroyed it.
    Gone,
}

/// What a guest is when [`Toolstack::save`] has succeeded. It does not run in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterSave {
    /// Suspended.
    Suspended,
    /// Paused: it has been resumed, and would run from where it was saved.
    Paused,
    /// Not there any more.
    Gone,
}

/// Is told what a call waits for, when that is not the guest's own doing and may take long.
pub type Note<'a> = &'a dyn Fn(&str);

/// Is told the number of a domain as soon as it has one, while it is still being built. It may be called with libxl's lock
/// held, more than once for a build that is tried again.
pub type Made = Arc<dyn Fn(Domid) + Send + Sync>;

/// Domain numbers from here on stand for something else than a domain.
const FIRST_RESERVED_DOMID: u64 = 0x7ff0;

/// The number a domain had is nothing to ask for when it comes back, or elsewhere: it may be another's by then.
pub(crate) fn without_domid(mut config: Value) -> Value {
    if let Some(info) = config.get_mut("c_info").and_then(Value::as_object_mut) {
        if info.get("domid").and_then(Value::as_u64).is_none_or(|domid| domid < FIRST_RESERVED_DOMID) {
            info.remove("domid");
        }
    }
    config
}

/// Refuses what only `xm restore` can read.
fn not_of_xend(action: &'static str, image: &Image) -> Result<(), Error> {
    match image.format {
        Format::Xl => Ok(()),
        Format::Xend => Err(Error::new(action, "xend (xm) has written the image, and only xm can restore it")),
    }
}

/// What libxl or a command restores, if it still is the file that was looked at.
fn stream_of(action: &'static str, image: &Image) -> Result<File, Error> {
    image.stream().map_err(|e| Error::new(action, format!("can't read {}: {e}", image.path.display())))
}

/// What start, stop and status need of a toolstack.
///
/// Calls block until libxl (or the command) reports completion and may be made from several threads at once. A
/// `deadline` of `None` is no limit; when it passes, the call is ended through the toolstack's own abort and the
/// error has `timed_out` set.
pub trait Toolstack: Send + Sync {
    /// Which toolstack this is, for people, e.g. `libxl 4.17`.
    fn describe(&self) -> String;

    /// Why it is this one, if it was not the first choice or was asked for.
    fn why(&self) -> Option<String> {
        None
    }

    /// What people have to know who are used to libxl. `None`: it is libxl.
    fn differences(&self) -> Option<&'static str> {
        None
    }

    /// What a save leaves of a guest.
    fn after_save(&self) -> AfterSave {
        AfterSave::Suspended
    }

    /// Who reads guests' files, if not this program.
    fn reader(&self) -> Option<Reader> {
        None
    }

    /// The release of Xen 4 that it is made for, as its minor number: 17 for Xen 4.17. `None` if it tells nothing.
    fn xen_release(&self) -> Option<u32>;

    /// The host's physical CPUs, by the hypervisor's numbers.
    fn cpus(&self) -> Result<Cpus, Error>;

    /// All domains, dom0 included.
    fn domains(&self) -> Result<Vec<Domain>, Error>;

    /// How long ago a domain was started. `None` when nobody recorded it.
    fn uptime(&self, domain: &Domain) -> Option<Duration> {
        domain.uptime
    }

    /// Creates a guest and leaves it paused. After an error no half-made domain is left. Not every toolstack tells `made`.
    fn create(
        &self,
        guest: &GuestConfig,
        deadline: Option<Instant>,
        note: Note<'_>,
        made: Made,
    ) -> Result<Domid, Error>;

    /// Builds a guest from a saved image and leaves it paused; the image file is only read. After an error no
    /// half-made domain is left. Not every toolstack tells `made`.
    ///
    /// The time until `deadline` is the longest that may pass without any of the image being read. How fast it is read depends
    /// on the disk and on the other guests that are restored from it.
    fn restore(
        &self,
        image: &Image,
        deadline: Option<Instant>,
        note: Note<'_>,
        made: Made,
    ) -> Result<Domid, Error>;

    /// Lets a paused guest run.
    fn unpause(&self, domid: Domid) -> Result<(), Error>;

    /// Writes the guest's image (header and stream) into `target` and leaves the guest as [`after_save`](Self::after_save)
    /// says.
    ///
    /// After an error the guest has been resumed and runs on, unless `left_suspended` says otherwise. The caller
    /// makes the image durable and only then destroys the guest.
    fn save(&self, domain: &Domain, target: &mut NewImage, deadline: Option<Instant>) -> Result<(), Error>;

    /// Writes the guest's state into `stream`, to be built from it at the other end, and leaves the guest suspended. It
    /// runs meanwhile, but for the last part. `debug` has more logged.
    ///
    /// After an error the guest has been resumed and runs on, unless `left_suspended` says otherwise.
    fn send(&self, domain: &Domain, stream: OwnedFd, debug: bool, deadline: Option<Instant>) -> Result<(), Error>;

    /// Who migrates guests, if it is not this program by [`send`](Self::send).
    fn migrator(&self) -> Option<&dyn Migrator> {
        None
    }

    /// Gives a domain that is called `from` another name.
    fn rename(&self, domid: Domid, from: &str, to: &str) -> Result<(), Error>;

    /// Lets a guest that a save or a migration has left suspended run on.
    fn resume(&self, domid: Domid) -> Result<(), Error>;

    /// Asks a guest to shut down and returns at once. A guest without PV drivers gets the ACPI power button.
    fn request_shutdown(&self, domain: &Domain) -> Result<(), Error>;

    /// Asks a guest to shut down and waits until it has come to its end.
    fn shutdown(&self, domain: &Domain, deadline: Option<Instant>) -> Result<Ending, Error>;

    /// Ends a domain at once and frees what it holds. A domain that is gone already is a success.
    fn destroy(&self, domid: Domid) -> Result<(), Error>;

    /// The guest's configuration as it is now, as a `libxl_domain_config` in libxl's JSON.
    fn configuration(&self, domid: Domid) -> Result<Value, Error>;

    /// Sends a SysRq letter to a guest.
    fn sysrq(&self, domid: Domid, letter: char) -> Result<(), Error>;

    /// What it takes to watch guests. `None`: the toolstack has somebody watch each guest that it makes.
    fn monitoring(&self) -> Option<&dyn Monitoring> {
        None
    }

    /// Who watches each guest there is, if the toolstack has a service that does.
    fn watches_all(&self) -> Option<&'static str> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_and_a_script_s_failure_may_pass_and_nothing_else() {
        for line in [
            "libxl_aoutils.c:539:async_exec_timeout: killing execution of /etc/xen/scripts/block add because of timeout",
            "libxl_exec.c:117:libxl_report_child_exitstatus: /etc/xen/scripts/block add [217] exited with error status 1",
            "libxl_exec.c:127:libxl_report_child_exitstatus: /etc/xen/scripts/vif-bridge online [7] died due to fatal signal Killed",
            "libxl_create.c:1974:console_xswait_callback: domain 1 console tty: timed out",
            "libxl_exec.c:403:spawn_watch_event: domain 3 device model: startup timed out",
            "libxl_create.c:1894:domcreate_devmodel_started: Domain 3:device model did not start: -9",
            "libxl_dm.c:3369:device_model_postconfig_done: Domain 3:Post DM startup configs failed, rc=-9",
            "libxl_device.c:1163:device_backend_callback: Domain 3:unable to add device with path /local/domain/2/backend/vif/3/0",
            "libxl_bootloader.c:737:bootloader_timeout: Domain 3:killing bootloader because of timeout",
        ] {
            assert!(may_pass(line), "{line}");
            assert!(may_pass(&format!("something\n{line}\nmore")), "{line}");
        }
        for line in [
            "",
            "libxl_create.c:1894:domcreate_devmodel_started: Domain 3:device model did not start: -3",
            "libxl_exec.c:117:libxl_report_child_exitstatus: bootloader [217] exited with error status 1",
            "libxl_dom.c:1: xc_dom_kernel_file: No such file or directory",
            "unable to add disk devices",
        ] {
            assert!(!may_pass(line), "{line}");
        }
    }

    #[test]
    fn the_number_is_left_out_of_what_comes_back() {
        let config = serde_json::json!({"c_info": {"domid": 7, "name": "web"}});
        assert_eq!(without_domid(config), serde_json::json!({"c_info": {"name": "web"}}));
        // libxl chooses one at random.
        let config = serde_json::json!({"c_info": {"domid": 4_294_967_294_u32}});
        assert_eq!(without_domid(config.clone()), config);
    }
}
