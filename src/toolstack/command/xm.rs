//! The toolstack over `xm`, which talks to xend.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use uuid::Uuid;

use super::info;
use super::lists::{Asked, Lists, shut_down};
use super::run::Runner;
use super::same::{Built, was_asked};
use super::xm_list::{domains, dry_run};
use crate::guest_config::{Cpus, GuestConfig, Reader};
use crate::image::{Format, Image, NewImage};
use crate::interrupt::Interrupt;
use crate::settings::TransportKind;
use crate::toolstack::{
    AfterSave, Domain, Domid, Ending, Error, Made, Migrator, Note, ShutdownReason, State, To, Toolstack, stream_of,
};

/// The command `xm`.
pub struct Xm {
    run: Arc<Runner>,
    why: String,
    lists: Lists<Vec<Domain>>,
}

impl Xm {
    /// Uses this file, if it works: if it can list the domains. `why` says why it is it and not libxl.
    ///
    /// # Errors
    /// It can't.
    pub fn open(program: &Path, why: &str, verbose: bool, interrupt: Arc<Interrupt>) -> Result<Xm, Error> {
        let run = Arc::new(Runner::new(program.to_owned(), verbose, interrupt));
        let xm = Xm { run, why: why.to_owned(), lists: Lists::default() };
        xm.list()?;
        Ok(xm)
    }

    fn list(&self) -> Result<Vec<Domain>, Error> {
        const ACTION: &str = "list domains";
        let text = self.run.short(ACTION, &[&"list", &"-l"])?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        domains(&text, now).map_err(|error| Error::new(ACTION, format!("xm list -l: {error}")))
    }

    /// What a domain is doing. `None`: it is gone.
    fn state(&self, domid: Domid, age: Duration) -> Result<Option<State>, Error> {
        let domains = self.lists.no_older_than(age, || self.list())?;
        Ok(domains.iter().find(|domain| domain.domid == domid).map(|domain| domain.state))
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
            let domains = self.list()?;
            let domain =
                domains.iter().find(|domain| domain.uuid == uuid && domain.name.as_deref() == Some(guest));
            Ok(domain.map(|domain| Built {
                domid: domain.domid,
                half_made: domain.state == State::Paused && domain.cpu_time < HARDLY_RUN,
            }))
        };
        self.run.build(action, words, deadline, find, |domid| self.destroy(domid))
    }

    fn ask_to_shut_down(&self, domain: &Domain) -> Result<Asked, Error> {
        self.run.short("shutdown", &[&"shutdown", &"--halt", &domain.domid.to_string()]).map(|_| Asked::Yes)
    }
}

/// A guest that was never let run has used less time than this.
const HARDLY_RUN: Duration = Duration::from_millis(10);

impl Toolstack for Xm {
    fn describe(&self) -> String {
        format!("xm ({})", self.run.program().display())
    }

    fn why(&self) -> Option<String> {
        Some(self.why.clone())
    }

    fn differences(&self) -> Option<&'static str> {
        Some(
            "guests' ends are looked for every 0.2 to 2 s; xend removes a guest that it has saved before its image is safe on \
             the disk; guests' files may be programs, which xm runs to learn their names; xend watches the guests",
        )
    }

    fn reader(&self) -> Option<Reader> {
        let run = Arc::clone(&self.run);
        Some(Reader::new(move |path| {
            let text = run.short("read", &[&"create", &"-n", &"-f", &path]).map_err(|error| error.cause)?;
            dry_run(&text)
        }))
    }

    fn xen_release(&self) -> Option<u32> {
        None
    }

    fn watches_all(&self) -> Option<&'static str> {
        Some("xend")
    }

    fn after_save(&self) -> AfterSave {
        AfterSave::Gone
    }

    fn cpus(&self) -> Result<Cpus, Error> {
        const ACTION: &str = "ask for the host's CPUs";
        let text = self.run.short(ACTION, &[&"info"])?;
        let cpus = info::cpus(&String::from_utf8_lossy(&text));
        cpus.ok_or_else(|| Error::new(ACTION, "xm info does not say how many there are"))
    }

    fn domains(&self) -> Result<Vec<Domain>, Error> {
        self.lists.no_older_than(Duration::ZERO, || self.list()).map(|domains| domains.to_vec())
    }

    fn create(
        &self,
        guest: &GuestConfig,
        deadline: Option<Instant>,
        _: Note<'_>,
        _: Made,
    ) -> Result<Domid, Error> {
        // Without it xend would choose one of its own.
        let uuid = format!("uuid={}", guest.uuid);
        self.build(
            "create",
            &[&"create", &"-q", &"-p", &"-f", &guest.path, &uuid],
            (guest.uuid, &guest.name),
            deadline,
        )
    }

    fn restore(&self, image: &Image, _: Option<Instant>, _: Note<'_>, _: Made) -> Result<Domid, Error> {
        const ACTION: &str = "restore";
        if image.format != Format::Xend {
            return Err(Error::new(ACTION, "xl or this program has written the image; xm can't restore it"));
        }
        // Whether it still is the file that was looked at.
        stream_of(ACTION, image)?;
        // How far the command is can't be seen, so only the program's end ends it.
        self.build(ACTION, &[&"restore", &"-p", &image.path], (image.uuid, &image.name), None)
    }

    fn unpause(&self, domid: Domid) -> Result<(), Error> {
        self.run.unpause(domid)
    }

    /// The command only waits for xend, which goes on with a save when nobody waits for it any more.
    fn save(&self, domain: &Domain, target: &mut NewImage, deadline: Option<Instant>) -> Result<(), Error> {
        const ACTION: &str = "save";
        let saved = self.run.long(ACTION, &[&"save", &domain.domid.to_string(), &target.path()], deadline);
        let state = self.state(domain.domid, Duration::ZERO);
        match (saved, state) {
            (Ok(_), Ok(None | Some(State::Dying))) => Ok(()),
            (Ok(_), Ok(Some(_))) => Err(Error::new(ACTION, "xm reports success, but the guest is still there")),
            (Ok(_), Err(error)) => Err(Error {
                left_suspended: true,
                ..Error::new(ACTION, format!("what became of it is not known: {error}"))
            }),
            // xend was done before it could be told that nobody waits.
            (Err(error), Ok(None | Some(State::Dying))) if error.timed_out => Ok(()),
            (Err(mut error), Ok(Some(State::Shutdown(ShutdownReason::Suspend)))) => {
                error.left_suspended = true;
                error.cause += "; xend may still be at it";
                Err(error)
            }
            (Err(error), Ok(_)) => Err(error),
            (Err(mut error), Err(e)) => {
                error.left_suspended = true;
                error.cause += &format!("; what became of it is not known: {e}");
                Err(error)
            }
        }
    }

    fn send(&self, _: &Domain, _: OwnedFd, _: bool, _: Option<Instant>) -> Result<(), Error> {
        Err(Error::new("migrate", "xm can't send a guest to anybody but another xend"))
    }

    fn migrator(&self) -> Option<&dyn Migrator> {
        Some(self)
    }

    fn rename(&self, domid: Domid, _: &str, to: &str) -> Result<(), Error> {
        self.run.rename(domid, to)
    }

    /// xend does this itself; nobody else can.
    fn resume(&self, domid: Domid) -> Result<(), Error> {
        const ACTION: &str = "resume";
        match self.state(domid, Duration::ZERO)? {
            None => Err(Error::new(ACTION, "it is not there any more")),
            Some(State::Shutdown(_) | State::Dying) => Err(Error::new(ACTION, "xend has not resumed it")),
            Some(State::Running | State::Paused) => Ok(()),
        }
    }

    fn request_shutdown(&self, domain: &Domain) -> Result<(), Error> {
        was_asked(self.ask_to_shut_down(domain), || self.state(domain.domid, Duration::ZERO))
    }

    fn shutdown(&self, domain: &Domain, deadline: Option<Instant>) -> Result<Ending, Error> {
        let look = |age| self.state(domain.domid, age);
        shut_down(domain, |domain| self.ask_to_shut_down(domain), look, deadline, self.run.interrupt())
    }

    fn destroy(&self, domid: Domid) -> Result<(), Error> {
        self.run.destroy(domid, || self.state(domid, Duration::ZERO))
    }

    fn configuration(&self, _: Domid) -> Result<Value, Error> {
        Err(Error::new("read the configuration", "xend has none that libxl would understand"))
    }

    fn sysrq(&self, domid: Domid, letter: char) -> Result<(), Error> {
        self.run.sysrq(domid, letter)
    }
}

impl Migrator for Xm {
    /// `-e` and `--debug` are about processes that only xl has.
    fn migrate(&self, domain: &Domain, to: To<'_>, deadline: Option<Instant>) -> Result<(), Error> {
        const ACTION: &str = "migrate";
        let TransportKind::Ssh { port } = &to.options.transport else {
            return Err(Error::new(ACTION, "-s COMMAND is for xl: xend connects to the other xend itself"));
        };
        if to.config.is_some() {
            return Err(Error::new(ACTION, "-C FILE is for xl: xend gives a guest to another xend as it is"));
        }
        let port = port.map(|port| format!("--port={port}"));
        let domid = domain.domid.to_string();
        let mut words: Vec<&dyn AsRef<OsStr>> = vec![&"migrate", &"--live"];
        if let Some(port) = &port {
            words.push(port);
        }
        words.push(&domid);
        words.push(&to.target);
        self.run.long_that_may_go_on(ACTION, &words, deadline, &|| Duration::ZERO, to.hear).map(drop)
    }

    fn target_has_xl(&self) -> bool {
        false
    }
}
