//! The toolstack over `xl`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::info;
use super::lists::{Asked, Lists, shut_down};
use super::run::Runner;
use super::same::{Built, was_asked};
use super::xl_list::{Row, configurations, table};
use crate::guest_config::{Cpus, GuestConfig};
use crate::image::{Image, NewImage};
use crate::interrupt::Interrupt;
use crate::settings::TransportKind;
use crate::toolstack::{
    ANSWER, ANSWER_ONCE_TOLD, AWAY, AfterSave, Domain, Domid, Ending, Error, FOR_A_SHELL, Made, Migrator, Note,
    SSH_OPTIONS, ShutdownReason, State, To, Toolstack, not_of_xend, stream_of, xenstored,
};

/// How long `xl shutdown` is waited for. It waits for the guest's acknowledgement, which is nothing to anybody: the guest
/// has been told.
const REQUEST: Duration = Duration::from_secs(10);

/// It has told the guest by then.
const TELL: Duration = Duration::from_secs(4);

/// How long a guest that has been asked to suspend may still do so after the save was ended: libxl's own limit.
const LATE_SUSPEND: Duration = Duration::from_secs(60);

/// What `xl save` says when it lets the guest run on itself, which it does when its helper has been ended.
const RESUMES: &str = "resuming domain";

/// How long a guest that is suspended may take to run on. `xl save` gives up after a minute.
const RESUME: Duration = Duration::from_secs(180);

/// So long a configuration that was read counts as what it is now.
const FRESH: Duration = Duration::from_secs(5);

/// What `xl shutdown` says of a guest that has not reacted in a minute: libxl's error for a time that is over.
const UNHEARD: &str = "(rc=-9)";

/// The command `xl`.
pub struct Xl {
    run: Runner,
    why: String,
    states: Lists<Vec<Row>>,
    configurations: Lists<HashMap<Domid, Value>>,
}

impl Xl {
    /// Uses this file, if it works: if it can list the domains. `why` says why it is it and not libxl.
    ///
    /// # Errors
    /// It can't.
    pub fn open(program: &Path, why: &str, verbose: bool, interrupt: Arc<Interrupt>) -> Result<Xl, Error> {
        let run = Runner::new(program.to_owned(), verbose, interrupt);
        let xl = Xl { run, why: why.to_owned(), states: Lists::default(), configurations: Lists::default() };
        xl.rows()?;
        Ok(xl)
    }

    fn rows(&self) -> Result<Vec<Row>, Error> {
        const ACTION: &str = "list domains";
        let text = self.run.short(ACTION, &[&"list", &"-v"])?;
        table(&String::from_utf8_lossy(&text)).map_err(|error| Error::new(ACTION, format!("xl list -v: {error}")))
    }

    fn all_configurations(&self) -> Result<HashMap<Domid, Value>, Error> {
        const ACTION: &str = "read the configurations";
        let text = self.run.short(ACTION, &[&"list", &"-l"])?;
        configurations(&text).map_err(|error| Error::new(ACTION, format!("xl list -l: {error}")))
    }

    /// What a domain is doing. `None`: it is gone.
    fn state(&self, domid: Domid, uuid: Option<Uuid>, age: Duration) -> Result<Option<State>, Error> {
        let rows = self.states.no_older_than(age, || self.rows())?;
        let is_it = |row: &&Row| row.domid == domid && uuid.is_none_or(|uuid| uuid == row.uuid);
        Ok(rows.iter().find(is_it).map(|row| row.state))
    }

    fn state_now(&self, domid: Domid) -> Result<Option<State>, Error> {
        self.state(domid, None, Duration::ZERO)
    }

    /// Builds a guest, which is left paused. What a failure has left of it is removed.
    fn build(
        &self,
        action: &'static str,
        words: &[&dyn AsRef<OsStr>],
        (uuid, guest): (Uuid, &str),
        deadline: Option<Instant>,
    ) -> Result<Domid, Error> {
        let find = || {
            let rows = self.rows()?;
            let row = rows.iter().find(|row| {
                row.uuid == uuid && row.name.as_deref() == Some(guest.trim_end()) && row.state != State::Dying
            });
            Ok(row.map(|row| Built {
                domid: row.domid,
                half_made: row.state == State::Paused && row.cpu_time.is_zero(),
            }))
        };
        self.run.build(action, words, deadline, find, |domid| self.destroy(domid))
    }

    fn ask_to_shut_down(&self, domain: &Domain, deadline: Option<Instant>) -> Result<Asked, Error> {
        let now = Instant::now();
        // The guest is to be told in any case.
        let limit = deadline.unwrap_or(now + REQUEST).clamp(now + TELL, now + REQUEST);
        match self.run.at_most("shutdown", &[&"shutdown", &"-F", &domain.domid.to_string()], Some(limit)) {
            Ok(_) => Ok(Asked::Yes),
            Err(error) if error.timed_out => Ok(Asked::Yes),
            Err(error) if error.cause.contains(UNHEARD) => Ok(Asked::Unheard),
            Err(error) => Err(error),
        }
    }

    /// Sees to a guest whose save has failed, and which xl should have let run on.
    fn after_failed_save(&self, domid: Domid, mut error: Error) -> Error {
        let mut state = self.state_now(domid);
        if error.timed_out && !error.cause.contains(RESUMES) {
            // It may be on its way into the suspend that it was asked for, which nobody would take it out of.
            let end = Instant::now() + LATE_SUSPEND;
            while matches!(state, Ok(Some(State::Running))) && Instant::now() < end {
                std::thread::sleep(Duration::from_secs(1));
                state = self.state_now(domid);
            }
        }
        match state {
            Ok(Some(State::Shutdown(ShutdownReason::Suspend) | State::Paused)) => {
                if let Err(e) = self.resume(domid) {
                    error.left_suspended = true;
                    error.cause += &format!("; it could not be resumed either: {e}");
                }
            }
            Ok(_) => {}
            Err(e) => error.cause += &format!("; what became of it is not known: {e}"),
        }
        error
    }
}

impl Toolstack for Xl {
    fn describe(&self) -> String {
        format!("xl ({})", self.run.program().display())
    }

    fn why(&self) -> Option<String> {
        Some(self.why.clone())
    }

    fn differences(&self) -> Option<&'static str> {
        Some(
            "guests' ends are looked for every 0.2 to 2 s; a guest that was saved is paused, not suspended, until its image \
             is safe on the disk; each guest is watched by a process of xl's own",
        )
    }

    fn xen_release(&self) -> Option<u32> {
        None
    }

    fn after_save(&self) -> AfterSave {
        AfterSave::Paused
    }

    fn cpus(&self) -> Result<Cpus, Error> {
        const ACTION: &str = "ask for the host's CPUs";
        let text = self.run.short(ACTION, &[&"info", &"-n"])?;
        let cpus = info::cpus(&String::from_utf8_lossy(&text));
        cpus.ok_or_else(|| Error::new(ACTION, "xl info does not say how many there are"))
    }

    fn domains(&self) -> Result<Vec<Domain>, Error> {
        // The configurations first: a domain that has come since has a name in the table all the same.
        let configurations = self.configurations.no_older_than(Duration::ZERO, || self.all_configurations());
        let configurations = match configurations {
            Ok(configurations) => configurations,
            // Names are in the table too, and what is only in the configuration can be done without.
            Err(_) => Arc::new(HashMap::new()),
        };
        let rows = self.states.no_older_than(Duration::ZERO, || self.rows())?;
        let xenstore: Option<Domid> =
            xenstored::read("/tool/xenstored/domid").and_then(|domid| domid.parse().ok());
        let domain = |row: &Row| {
            let own = |config: &&Value| {
                config["c_info"]["uuid"].as_str().and_then(|uuid| Uuid::try_parse(uuid).ok()) == Some(row.uuid)
            };
            let config = configurations.get(&row.domid).filter(own);
            let exact = config.and_then(|config| config["c_info"]["name"].as_str());
            let name = row.name.as_deref().map(|name| exact_name(name, exact).to_owned());
            let max_memory = config.and_then(|config| config["b_info"]["max_memkb"].as_u64());
            Domain {
                domid: row.domid,
                uuid: row.uuid,
                // It is the first that goes when a domain does.
                never_stop: row.domid != 0 && (Some(row.domid) == xenstore || name.as_deref() == Some("Xenstore")),
                stubdom: config.is_none() && is_stubdom(row),
                name,
                state: row.state,
                memory_kib: row.memory_kib,
                max_memory_kib: max_memory.unwrap_or(row.memory_kib),
                vcpus: row.vcpus,
                cpu_time: row.cpu_time,
                uptime: None,
            }
        };
        Ok(rows.iter().map(domain).collect())
    }

    fn create(
        &self,
        guest: &GuestConfig,
        deadline: Option<Instant>,
        _: Note<'_>,
        _: Made,
    ) -> Result<Domid, Error> {
        // Without it xl would choose one of its own each time.
        let uuid = format!("uuid=\"{}\"", guest.uuid);
        self.build(
            "create",
            &[&"create", &"-q", &"-p", &"-f", &guest.path, &uuid],
            (guest.uuid, &guest.name),
            deadline,
        )
    }

    fn restore(&self, image: &Image, _: Option<Instant>, _: Note<'_>, _: Made) -> Result<Domid, Error> {
        not_of_xend("restore", image)?;
        // Whether it still is the file that was looked at.
        stream_of("restore", image)?;
        // How far the command is can't be seen, so only the program's end ends it.
        self.build("restore", &[&"restore", &"-p", &image.path], (image.uuid, &image.name), None)
    }

    fn unpause(&self, domid: Domid) -> Result<(), Error> {
        self.run.unpause(domid)
    }

    fn save(&self, domain: &Domain, target: &mut NewImage, deadline: Option<Instant>) -> Result<(), Error> {
        const ACTION: &str = "save";
        let saved = self.run.long(ACTION, &[&"save", &"-p", &domain.domid.to_string(), &target.path()], deadline);
        saved.map_err(|error| self.after_failed_save(domain.domid, error))?;
        match self.state(domain.domid, Some(domain.uuid), Duration::ZERO) {
            Ok(Some(State::Paused | State::Shutdown(ShutdownReason::Suspend))) => Ok(()),
            Ok(Some(_)) => Err(Error::new(ACTION, "xl has let it run on, so that its image is older than it")),
            Ok(None) => Err(Error::new(ACTION, "xl has destroyed it, or it has come to its end")),
            Err(error) => {
                let why = format!("whether it stands still is not known: {error}");
                Err(self.after_failed_save(domain.domid, Error::new(ACTION, why)))
            }
        }
    }

    fn send(&self, _: &Domain, _: OwnedFd, _: bool, _: Option<Instant>) -> Result<(), Error> {
        Err(Error::new("migrate", "xl can't send a guest to anybody but another xl"))
    }

    fn migrator(&self) -> Option<&dyn Migrator> {
        Some(self)
    }

    fn rename(&self, domid: Domid, _: &str, to: &str) -> Result<(), Error> {
        self.run.rename(domid, to)
    }

    /// Only xl 4.20 and later have a command for this. What the others have is a save that leaves the guest running,
    /// whether it succeeds or, since a suspended guest can't be asked to suspend itself, fails.
    fn resume(&self, domid: Domid) -> Result<(), Error> {
        const ACTION: &str = "resume";
        let number = domid.to_string();
        let limit = || Instant::now().checked_add(RESUME);
        let mut said = String::new();
        let commands: [&[&dyn AsRef<OsStr>]; 2] =
            [&[&"resume", &number], &[&"save", &"-c", &number, &"/dev/null"]];
        let mut left = commands.iter();
        loop {
            match self.state_now(domid)? {
                None => return Err(Error::new(ACTION, format!("it is not there any more{said}"))),
                Some(State::Paused) => return self.unpause(domid),
                Some(State::Shutdown(ShutdownReason::Suspend)) => {}
                Some(_) => return Ok(()),
            }
            let Some(words) = left.next() else {
                return Err(Error::new(ACTION, format!("it stays suspended{said}")));
            };
            if let Err(error) = self.run.long_in_any_case(ACTION, words, limit()) {
                said = format!("; {}", error.cause);
            }
        }
    }

    fn request_shutdown(&self, domain: &Domain) -> Result<(), Error> {
        let look = || self.state(domain.domid, Some(domain.uuid), Duration::ZERO);
        was_asked(self.ask_to_shut_down(domain, None), look)
    }

    fn shutdown(&self, domain: &Domain, deadline: Option<Instant>) -> Result<Ending, Error> {
        let look = |age| self.state(domain.domid, Some(domain.uuid), age);
        shut_down(domain, |domain| self.ask_to_shut_down(domain, deadline), look, deadline, self.run.interrupt())
    }

    fn destroy(&self, domid: Domid) -> Result<(), Error> {
        self.run.destroy(domid, || self.state_now(domid))
    }

    fn configuration(&self, domid: Domid) -> Result<Value, Error> {
        let all = self.configurations.no_older_than(FRESH, || self.all_configurations())?;
        all.get(&domid).cloned().ok_or_else(|| Error::new("read the configuration", "xl list -l does not have it"))
    }

    fn sysrq(&self, domid: Domid, letter: char) -> Result<(), Error> {
        self.run.sysrq(domid, letter)
    }
}

impl Migrator for Xl {
    fn migrate(&self, domain: &Domain, to: To<'_>, deadline: Option<Instant>) -> Result<(), Error> {
        const ACTION: &str = "migrate";
        let ssh = |port: &Option<u16>| {
            let mut words = vec!["ssh".to_owned()];
            words.extend(SSH_OPTIONS.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]));
            words.extend(port.iter().flat_map(|port| ["-p".to_owned(), port.to_string()]));
            words.join(" ")
        };
        let command = match &to.options.transport {
            TransportKind::Ssh { port } => ssh(port),
            TransportKind::Command(command) => command.clone(),
            TransportKind::Target => String::new(),
        };
        // xl hands it to a shell as it stands. With `-s ''` it is meant so.
        let odd = |letter: char| letter.is_whitespace() || FOR_A_SHELL.contains(letter);
        if to.options.transport != TransportKind::Target && to.target.contains(odd) {
            return Err(Error::new(ACTION, format!("`{}` is no host that xl can be given", to.target)));
        }
        let mut words: Vec<&dyn AsRef<OsStr>> = vec![&"migrate", &"-s", &command];
        if to.options.unmonitored {
            words.push(&"-e");
        }
        if to.options.debug {
            words.push(&"--debug");
        }
        if let Some(config) = &to.config {
            words.push(&"-C");
            words.push(config);
        }
        let domid = domain.domid.to_string();
        words.push(&domid);
        words.push(&to.target);
        // The target may have been told to let the guest run: its answer decides.
        let go_on = || {
            let told = |row: &Row| {
                row.domid == domain.domid && row.name.as_ref().is_some_and(|name| name.ends_with(AWAY))
            };
            let is_told = self.rows().is_ok_and(|rows| rows.iter().any(told));
            match (is_told, self.run.interrupt().is_asked()) {
                (true, false) => ANSWER,
                (true, true) => ANSWER_ONCE_TOLD,
                (false, _) => Duration::ZERO,
            }
        };
        self.run.long_that_may_go_on(ACTION, &words, deadline, &go_on, to.hear).map(drop)
    }

    fn target_has_xl(&self) -> bool {
        true
    }
}

/// A name, of which the table may have less than the configuration. If they are not the same, it has been changed after
/// the configurations were read.
fn exact_name<'a>(name: &'a str, exact: Option<&'a str>) -> &'a str {
    exact.filter(|exact| exact.trim_end() == name.trim_end()).unwrap_or(name)
}

/// Whether a domain without a configuration runs a device model for another one.
fn is_stubdom(row: &Row) -> bool {
    if xenstored::read(&format!("/local/domain/{}/target", row.domid)).is_some() {
        return true;
    }
    row.name.as_deref().is_some_and(|name| name.ends_with("-dm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_the_table_when_it_was_changed_meanwhile() {
        assert_eq!(exact_name("web", Some("web  ")), "web  ");
        assert_eq!(exact_name("web--migratedaway", Some("web")), "web--migratedaway");
        assert_eq!(exact_name("web", None), "web");
    }
}
