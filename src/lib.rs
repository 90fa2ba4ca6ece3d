//! `xendomains` starts a Xen host's guests when the host boots and stops them when it shuts down.
//!
//! [`run`] is the whole program: everything outside of it (the toolstack, the places of files, where messages go) is
//! handed in.

pub mod cli;
mod durable;
pub mod guest_config;
pub mod host;
pub mod image;
pub mod interrupt;
pub mod lifecycle;
pub mod lock;
pub mod migrate;
pub mod monitor;
pub mod needs;
mod process;
pub mod report;
pub mod runs;
pub mod settings;
pub mod spelling;
pub mod sxp;
mod systemd;
pub mod toolstack;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use cli::{Cli, Command};
use guest_config::{GuestConfig, NEWEST, XenHost, XlConf};
use host::Host;
use interrupt::Interrupt;
use lifecycle::Run;
use lock::Lock;
use monitor::Watcher;
use report::{Exit, Reporter};
use settings::{Settings, ToolstackChoice, Unset};
use toolstack::Toolstack;
use toolstack::choose::may_come;

const NO_TOOLSTACK: &str = "no usable toolstack";

/// Number of times that a start tries to reach Xen while the host boots, and the wait between them. Nobody tells when xenstored
/// is there: it may be a process of dom0 or a domain of its own.
const XEN_TRIES: u32 = 60;
const XEN_PAUSE: Duration = Duration::from_secs(1);

/// Opens the toolstack that was chosen, for a host with this xl.conf; the last argument is whether its own log is wanted.
pub type OpenToolstack<'a> =
    &'a dyn Fn(ToolstackChoice, &XlConf, bool) -> Result<Box<dyn Toolstack>, Box<dyn std::error::Error>>;

/// Starts a monitor and returns when it is ready; the argument is the settings file, if it is not one of the usual ones.
pub type SpawnMonitor<'a> = &'a (dyn Fn(Option<&Path>) -> io::Result<()> + Sync);

/// What the program works with.
pub struct Program<'a> {
    /// The machine.
    pub host: &'a Host,
    /// How to get a toolstack.
    pub open: OpenToolstack<'a>,
    /// Where messages and answers go.
    pub report: &'a Reporter,
    /// Whether to come to an end.
    pub interrupt: &'a Interrupt,
    /// How to wait between two guests or two SysRq letters.
    pub sleep: &'a (dyn Fn(Duration) + Sync),
    /// How to start a monitor that goes by this settings file. `None`: start does not see to it that one runs.
    pub spawn_monitor: Option<SpawnMonitor<'a>>,
    /// How long a stop may go on beyond the limit of the whole before the process is ended: [`PATIENCE`].
    pub patience: Duration,
}

/// Beyond the limit of a whole stop, a guest that was asked to suspend may still do so, and a call that was aborted come
/// back: a minute each. What takes longer does not come back.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// What reports to those who have started this process with this command line.
pub fn reporter(cli: &Cli) -> Reporter {
    use Command as C;
    let acts = matches!(cli.command, C::Start(_) | C::Stop(_) | C::Restart(_) | C::Reload(_) | C::Monitor(_));
    // The toolstack's own log is written beside the reporter.
    Reporter::of_process(acts, !cli.verbose)
}

/// Does what the command line says.
pub fn run(program: &Program<'_>, cli: &Cli) -> Exit {
    match &cli.command {
        Command::Start(output)
        | Command::Stop(output)
        | Command::Restart(output)
        | Command::Reload(output)
        | Command::Check(cli::Check { output, .. })
            if output.json =>
        {
            program.report.as_json();
        }
        _ => {}
    }
    let ended = match &cli.command {
        Command::Start(_) => program.act(cli, &[Purpose::Start]),
        Command::Stop(_) => program.act(cli, &[Purpose::Stop]),
        Command::Restart(_) | Command::Reload(_) => program.act(cli, &[Purpose::Stop, Purpose::Start]),
        Command::Status(options) => program.status(cli, options.json),
        Command::Monitor(options) => program.monitor(cli, options),
        Command::Plan(options) => program.plan(cli, options),
        Command::Check(options) => program.check(cli, &options.files),
        Command::Accept(options) => program.accept(cli, &options.guests),
        Command::Config(options) => program.config(cli, options),
    };
    let exit = ended.unwrap_or_else(|exit| exit);
    match program.report.finish(exit) {
        Ok(()) => exit,
        Err(error) => program.refuse(&format!("standard output: {error}"), Exit::Failed),
    }
}

/// Work on guests.
#[derive(Clone, Copy, PartialEq)]
enum Purpose {
    /// Starting them.
    Start,
    /// Stopping them.
    Stop,
}

/// `Err` is an early end.
type Ended = Result<Exit, Exit>;

impl Program<'_> {
    /// Does start, stop, or both. What is found wrong beforehand keeps a start from touching any guest, but never a stop.
    fn act(&self, cli: &Cli, purposes: &[Purpose]) -> Ended {
        let starts = purposes.contains(&Purpose::Start);
        if let Err(reason) = self.host.is_dom0() {
            self.report.note(&format!("{reason}: nothing to do"));
            return Err(Exit::Done);
        }
        if !self.host.root {
            return Err(self.refuse("only root may start and stop guests", Exit::NotRoot));
        }
        if let (false, Some(unit)) = (starts, systemd::displaced_by(self.host)) {
            return self.leave_running(&unit);
        }
        if let Some(why) = self.host.is_switched_off().filter(|_| starts) {
            // Not to start again what was stopped would be no restart.
            self.report.note(&format!("{why}: no guest is started, and none is stopped to be started again"));
            lifecycle::mark_if_needed(self.host, self.report);
            lifecycle::skip(self.host, self.report);
            return Err(Exit::Done);
        }
        let found = self.settings(cli);
        if starts {
            self.refuse_to_start(found.as_ref())?;
        }
        let settings = found.clone().unwrap_or_else(Settings::defaults);
        for purpose in purposes {
            self.tell_unset(&settings, *purpose);
        }
        let xl_conf = self.xl_conf(starts)?;
        let _lock = self.lock(purposes).map_err(|error| self.refuse(&error.to_string(), Exit::Failed))?;
        let tries = if starts { XEN_TRIES } else { 1 };
        let toolstack = self.toolstack_within(tries, cli, &settings, &xl_conf, Exit::NoToolstack)?;
        if found.is_none() {
            self.tell_no_settings(&*toolstack);
        }
        if let Some(differences) = toolstack.differences() {
            self.report
                .note(&format!("with {} some things are done otherwise: {differences}", toolstack.describe()));
        }
        let xen_host = self.this_host(xl_conf, Some(&*toolstack), None);
        let spawn = self.spawn_monitor.map(|spawn| move || spawn(cli.config.as_deref()));
        let run = Run {
            spawn_monitor: spawn.as_ref().map(|spawn| spawn as _),
            ..self.run(&settings, &xen_host, &*toolstack)
        };
        for purpose in purposes {
            match purpose {
                Purpose::Start => lifecycle::start(&run),
                Purpose::Stop => self.within(settings.stop_timeout.value, || lifecycle::stop(&run)),
            }
        }
        Ok(self.report.exit())
    }

    /// Stops nothing, because systemd has us stop only for the start of another unit.
    fn leave_running(&self, unit: &str) -> Ended {
        let left = systemd::LEFT;
        self.report.warn(&format!(
            "systemd stops xendomains.service because {unit}, which conflicts with it, is started: all guests are left \
             running. {left} stops them at shutdown, `systemctl stop {left}` at once"
        ));
        let program = std::env::current_exe().map_err(|error| error.to_string());
        let kept = program.and_then(|program| systemd::stop_at_shutdown(self.host, &program));
        kept.map_err(|error| {
            let hint = "start xendomains.service again, or a shutdown will not stop the guests";
            self.refuse(&format!("{left} can't be started: {error}; {hint}"), Exit::Failed)
        })?;
        Ok(Exit::Done)
    }

    /// Does work that ends by itself when its limit is over, unless a call of the toolstack never comes back. As nothing
    /// can end such a call, the process then ends: whoever shuts the host down counts on the limit.
    fn within(&self, limit: Option<Duration>, work: impl FnOnce()) {
        let Some(limit) = limit else { return work() };
        let (report, longest) = (self.report, limit.saturating_add(self.patience));
        let (done, is_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                if is_done.recv_timeout(longest) == Err(RecvTimeoutError::Timeout) {
                    report.error(&format!(
                        "XENDOMAINS_STOP_TIMEOUT is over for {} s, and a call into the toolstack does not come back: \
                         giving up. Guests without a line above may still run, or be suspended; see whether xenstored \
                         still works. The next start or stop puts right what is left half done",
                        longest.saturating_sub(limit).as_secs()
                    ));
                    // There is nobody left to tell if even this fails.
                    let _ = report.finish(Exit::Failed);
                    std::process::exit(Exit::Failed.code().into());
                }
            });
            work();
            drop(done);
        });
    }

    fn run<'a>(&'a self, settings: &'a Settings, xen_host: &'a XenHost, toolstack: &'a dyn Toolstack) -> Run<'a> {
        let Program { host, report, interrupt, sleep, .. } = *self;
        Run { host, settings, xen_host, toolstack, report, interrupt, sleep, spawn_monitor: None }
    }

    fn monitor(&self, cli: &Cli, options: &cli::Monitor) -> Ended {
        if let Err(reason) = self.host.is_dom0() {
            return Err(self.refuse(&format!("{reason}: there is nothing to watch"), Exit::NoToolstack));
        }
        if !self.host.root {
            return Err(self.refuse("only root may watch guests", Exit::NotRoot));
        }
        let settings = self.settings_or_defaults(cli);
        let xl_conf = self.xl_conf(false)?;
        let toolstack = self.toolstack(cli, &settings, &xl_conf, Exit::NoToolstack)?;
        let xen_host = self.this_host(xl_conf, Some(&*toolstack), None);
        let Program { host, report, interrupt, .. } = *self;
        let watcher =
            Watcher { host, settings: &settings, xen_host: &xen_host, toolstack: &*toolstack, report, interrupt };
        let ready = || {
            report.ready();
            if options.detached {
                if let Err(error) = monitor::ready() {
                    report.warn(&format!("whoever has started the monitor can't be told: {error}"));
                }
            }
        };
        // What failed for a guest was said when it did, and is no failure of the monitor.
        monitor::monitor(&watcher, ready).map_err(|error| self.refuse(&error, Exit::Failed))?;
        Ok(Exit::Done)
    }

    fn status(&self, cli: &Cli, json: bool) -> Ended {
        if let Err(reason) = self.host.is_dom0() {
            let answer = if json { lifecycle::Overview::not_xen(&reason) } else { format!("{reason}\n") };
            self.answer(&answer, Exit::NoneRunning)?;
            return Err(Exit::NoneRunning);
        }
        let settings = self.settings_or_defaults(cli);
        let xl_conf = XlConf::read(&self.host.xl_conf).unwrap_or_else(|error| {
            self.report.warn(&error.to_string());
            XlConf::default()
        });
        let toolstack = self.toolstack(cli, &settings, &xl_conf, Exit::Unknown)?;
        let xen_host = self.this_host(xl_conf, Some(&*toolstack), None);
        let overview = lifecycle::overview(self.host, &settings, &xen_host, &*toolstack, self.report)
            .map_err(|error| self.refuse(&error.to_string(), Exit::Unknown))?;
        let answer = if json { overview.json() } else { overview.table() };
        self.answer(&answer, Exit::Unknown)?;
        match overview.exit() {
            Exit::AllRunning | Exit::SomeMissing if !settings.unknown.is_empty() => Ok(Exit::Unknown),
            exit => Ok(exit),
        }
    }

    fn plan(&self, cli: &Cli, options: &cli::Plan) -> Ended {
        if let Err(reason) = self.host.is_dom0() {
            self.report.note(&format!("{reason}: nothing to do"));
            return Err(Exit::Done);
        }
        let (purpose, plan): (_, fn(&Run<'_>) -> _) = match options.what {
            cli::Planned::Start => (Purpose::Start, lifecycle::plan_start),
            cli::Planned::Stop => (Purpose::Stop, lifecycle::plan_stop),
        };
        let settings = self.settings_or_defaults(cli);
        if purpose == Purpose::Start {
            self.refuse_to_start(Some(&settings))?;
        }
        self.tell_unset(&settings, purpose);
        let xl_conf = self.xl_conf(purpose == Purpose::Start)?;
        let toolstack = self.toolstack(cli, &settings, &xl_conf, Exit::NoToolstack)?;
        let xen_host = self.this_host(xl_conf, Some(&*toolstack), None);
        let plan = plan(&self.run(&settings, &xen_host, &*toolstack))
            .map_err(|error| self.refuse(&error.to_string(), Exit::Failed))?;
        let answer = if options.json { plan.json() } else { plan.text() };
        self.answer(&answer, Exit::Failed)?;
        Ok(self.report.exit())
    }

    fn check(&self, cli: &Cli, files: &[PathBuf]) -> Ended {
        let on_host = self.host.is_dom0().is_ok();
        let xl_conf = XlConf::read(&self.host.xl_conf).unwrap_or_else(|error| {
            self.report.error(&error.to_string());
            XlConf::default()
        });
        let toolstack = self.toolstack_if_any(cli, &xl_conf);
        let xen_host = self.this_host(xl_conf, toolstack.as_deref(), None);
        if !files.is_empty() {
            for file in files {
                match GuestConfig::read(file, &xen_host) {
                    Ok(guest) => lifecycle::check_guest(&guest, on_host, self.report),
                    Err(error) => self.report.error(&error.to_string()),
                }
            }
            return Ok(self.report.exit());
        }
        let settings = self.settings_or_defaults(cli);
        self.tell_unset(&settings, Purpose::Start);
        self.tell_unset(&settings, Purpose::Stop);
        let domains = toolstack.map_or(Ok(Vec::new()), |toolstack| toolstack.domains());
        let domains = domains.unwrap_or_else(|error| {
            self.report.warn(&format!("which guests run can't be told: {error}"));
            Vec::new()
        });
        lifecycle::check(self.host, &settings, &xen_host, on_host, &domains, self.report);
        lifecycle::warn_of_drop_ins(self.host, self.report);
        if settings.mistakes.is_empty() { Ok(self.report.exit()) } else { Ok(Exit::Settings) }
    }

    fn accept(&self, cli: &Cli, guests: &[String]) -> Ended {
        if !self.host.root {
            return Err(self.refuse("only root may decide about images", Exit::NotRoot));
        }
        let settings = self.settings_or_defaults(cli);
        let _lock = self.lock(&[Purpose::Start]).map_err(|error| self.refuse(&error.to_string(), Exit::Failed))?;
        lifecycle::accept(&settings, self.host, guests, self.report);
        Ok(self.report.exit())
    }

    fn config(&self, cli: &Cli, options: &cli::Config) -> Ended {
        let xl_conf =
            XlConf::read(&self.host.xl_conf).map_err(|error| self.refuse(&error.to_string(), Exit::Failed))?;
        let toolstack = self.toolstack_if_any(cli, &xl_conf);
        // xm does not say what a file means to libxl.
        let xen_host = XenHost { reader: None, ..self.this_host(xl_conf, toolstack.as_deref(), options.xen) };
        let guest = GuestConfig::read(&options.file, &xen_host)
            .map_err(|error| self.refuse(&error.to_string(), Exit::Failed))?;
        for warning in &guest.warnings {
            self.report.warn(&warning.to_string());
        }
        self.answer(&format!("{:#}\n", guest.json), Exit::Failed)?;
        Ok(Exit::Done)
    }

    /// The settings, after telling what in them is doubtful or not understood. `None`: there is no file.
    fn settings(&self, cli: &Cli) -> Option<Settings> {
        let settings = Settings::load(cli.config.as_deref(), &self.host.settings_files)?;
        settings.warnings.iter().for_each(|warning| self.report.warn(warning));
        settings.mistakes.iter().for_each(|mistake| self.report.error(mistake));
        Some(settings)
    }

    /// The same for what touches no guest: without a file it goes by the defaults, and says so.
    fn settings_or_defaults(&self, cli: &Cli) -> Settings {
        self.settings(cli).unwrap_or_else(|| {
            self.report.warn(&format!("{}: going by the defaults", self.no_settings_file()));
            Settings::defaults()
        })
    }

    /// Refuses to start guests where it is not known which, or from what: a guest could be booted over its image.
    fn refuse_to_start(&self, settings: Option<&Settings>) -> Result<(), Exit> {
        let Some(settings) = settings else {
            return Err(self.refuse(&self.no_settings_file(), Exit::Settings));
        };
        if settings.unknown.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = settings.unknown.iter().map(|known| format!("XENDOMAINS_{}", known.name)).collect();
        let message = format!("no guest is started: {} can't be known; mend the settings", names.join(", "));
        Err(self.refuse(&message, Exit::Settings))
    }

    /// Warns about names that are not set in a file made for the scripts, where that meant something else.
    fn tell_unset(&self, settings: &Settings, purpose: Purpose) {
        let means = |known: &&settings::Known| match (&known.unset, purpose) {
            (Some(Unset::Start(means)), Purpose::Start) | (Some(Unset::Stop(means)), Purpose::Stop) => {
                Some(format!("XENDOMAINS_{} ({means})", known.name))
            }
            _ => None,
        };
        let names: Vec<_> = settings.unset.iter().filter_map(means).collect();
        if !names.is_empty() {
            self.report.warn(&format!(
                "not set, which was off for the scripts and here means the default: {}; set each to what you want",
                names.join(", ")
            ));
        }
    }

    /// Says what stop does without a settings file. It is a failure only if there is anything to be done.
    fn tell_no_settings(&self, toolstack: &dyn Toolstack) {
        let message = format!("{}: stopping guests by the defaults", self.no_settings_file());
        match toolstack.domains() {
            Ok(domains) if !domains.iter().any(toolstack::Domain::is_manageable) => self.report.note(&message),
            // A toolstack that can't be asked is reported by stop.
            _ => self.report.error(&message),
        }
    }

    fn no_settings_file(&self) -> String {
        let files: Vec<_> = self.host.settings_files.iter().map(|file| file.display().to_string()).collect();
        format!("no settings file ({})", files.join(", "))
    }

    /// One start or stop at a time. A stop waits for another one, and tells a start to end.
    fn lock(&self, purposes: &[Purpose]) -> Result<Lock, lock::Error> {
        let path = &self.host.lock_file;
        let work = match purposes {
            [Purpose::Stop] => "stop",
            [Purpose::Start] => "start",
            _ => "restart",
        };
        let holder = match Lock::acquire(path, work) {
            Err(lock::Error::Busy(holder)) if work == "stop" => holder,
            other => return other,
        };
        if holder.work.as_deref() == Some("stop") {
            self.report.note(&format!("{holder}: waiting for it"));
        } else {
            self.report.note(&format!("{holder}: telling it to end, and waiting for it"));
            // That it can't be told means that it is about to end, or that one can only wait for it.
            let _ = holder.tell_to_end();
        }
        Lock::wait(path, work, self.interrupt)
    }

    /// A broken xl.conf keeps guests from being started, as it does with `xl create`, but never from being stopped.
    fn xl_conf(&self, starts: bool) -> Result<XlConf, Exit> {
        match XlConf::read(&self.host.xl_conf) {
            Ok(xl_conf) => Ok(xl_conf),
            Err(error) if starts => Err(self.refuse(&error.to_string(), Exit::Settings)),
            Err(error) => {
                self.report.warn(&error.to_string());
                Ok(XlConf::default())
            }
        }
    }

    /// The toolstack, after telling if it is not libxl. It is always told with the option for details.
    fn toolstack(
        &self,
        cli: &Cli,
        settings: &Settings,
        xl_conf: &XlConf,
        exit: Exit,
    ) -> Result<Box<dyn Toolstack>, Exit> {
        self.toolstack_within(1, cli, settings, xl_conf, exit)
    }

    /// The same, tried so many times while xenstored is yet to come.
    fn toolstack_within(
        &self,
        tries: u32,
        cli: &Cli,
        settings: &Settings,
        xl_conf: &XlConf,
        exit: Exit,
    ) -> Result<Box<dyn Toolstack>, Exit> {
        let choice = cli.toolstack.map_or(settings.toolstack.value, Into::into);
        let open = || (self.open)(choice, xl_conf, cli.verbose);
        let mut opened = open();
        for tried in 1..tries {
            let Some(error) = opened.as_ref().err().filter(|error| may_come(&***error)) else { break };
            if self.interrupt.is_asked() {
                break;
            }
            if tried == 1 {
                let longest = (XEN_PAUSE * tries).as_secs();
                self.report.warn(&format!("{error}: waiting for xenstored, at most {longest} s"));
            }
            (self.sleep)(XEN_PAUSE);
            opened = open();
        }
        let toolstack = opened.map_err(|error| self.refuse(&format!("{NO_TOOLSTACK}: {error}"), exit))?;
        let name = toolstack.describe();
        match toolstack.why() {
            Some(why) => self.report.warn(&format!("the toolstack is {name}: {why}")),
            None if cli.verbose => {
                self.report.warn(&format!("the toolstack is {name}: it is that of the running Xen"));
            }
            None => {}
        }
        Ok(toolstack)
    }

    /// The toolstack, for what can do without it: on another machine, or without root, nothing is asked.
    fn toolstack_if_any(&self, cli: &Cli, xl_conf: &XlConf) -> Option<Box<dyn Toolstack>> {
        if !self.host.root || self.host.is_dom0().is_err() {
            return None;
        }
        let choice = cli.toolstack.map_or(ToolstackChoice::Auto, Into::into);
        let opened = (self.open)(choice, xl_conf, cli.verbose);
        opened.inspect_err(|error| self.report.warn(&format!("{NO_TOOLSTACK}: {error}"))).ok()
    }

    /// This machine as a Xen host of a release: the one given, else the one that runs. Without a toolstack its CPUs are
    /// those that Linux sees. What xl would warn about whatever guest it makes is said.
    fn this_host(&self, xl_conf: XlConf, toolstack: Option<&dyn Toolstack>, release: Option<u32>) -> XenHost {
        let runs = toolstack.and_then(Toolstack::xen_release).or_else(|| self.host.xen_release());
        let release = release.or(runs).unwrap_or(NEWEST);
        let cpus = match toolstack.map(Toolstack::cpus) {
            Some(Ok(cpus)) => Some(cpus),
            Some(Err(error)) => {
                self.report.warn(&error.to_string());
                None
            }
            None => self.host.cpus(),
        };
        let update = if runs == Some(release) { self.host.xen_update() } else { None };
        let firmware_dir = self.host.firmware_dir(release);
        let reader = toolstack.and_then(Toolstack::reader);
        let xen_host = XenHost { xl_conf, release, update, cpus, firmware_dir, reader };
        xen_host.warnings().iter().for_each(|warning| self.report.warn(&warning.to_string()));
        xen_host
    }

    fn answer(&self, text: &str, exit: Exit) -> Result<(), Exit> {
        self.report.answer(text).map_err(|error| self.refuse(&format!("standard output: {error}"), exit))
    }

    fn refuse(&self, message: &str, exit: Exit) -> Exit {
        self.report.error(message);
        exit
    }
}

impl From<cli::Toolstack> for ToolstackChoice {
    fn from(toolstack: cli::Toolstack) -> Self {
        match toolstack {
            cli::Toolstack::Auto => Self::Auto,
            cli::Toolstack::Libxl => Self::Libxl,
            cli::Toolstack::Xl => Self::Xl,
            cli::Toolstack::Xm => Self::Xm,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;
    use crate::host::fake_dom0;
    use crate::lifecycle::mock::Mock;
    use crate::report::Buffer;
    use crate::toolstack::{ShutdownReason, State};

    struct Machine {
        dir: tempfile::TempDir,
        host: Host,
        /// The guest `web`, if there is one.
        guest: Option<State>,
    }

    struct Said {
        exit: Exit,
        out: String,
        err: String,
        /// What was done to guests; `None`: the toolstack was not even opened.
        calls: Option<Vec<String>>,
    }

    impl Machine {
        /// A dom0 with a running guest `web`, and these settings.
        fn new(settings: &str) -> Machine {
            let dir = tempfile::tempdir().expect("a directory");
            let host = fake_dom0(dir.path());
            let (auto, save) = (dir.path().join("auto"), dir.path().join("save"));
            fs::create_dir(&auto).expect("directory");
            let text = format!("XENDOMAINS_AUTO={}\nXENDOMAINS_SAVE={}\n", auto.display(), save.display());
            fs::write(&host.settings_files[0], text + settings).expect("write");
            Machine { dir, host, guest: Some(State::Running) }
        }

        fn run(&self, words: &[&str]) -> Said {
            self.run_while_xen_boots(words, 0).0
        }

        /// So often the toolstack can't connect. Also gives how often that was waited for.
        fn run_while_xen_boots(&self, words: &[&str], times: usize) -> (Said, usize) {
            use std::sync::atomic::{AtomicUsize, Ordering};
            let (failed, slept) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let (out, err) = (Buffer::default(), Buffer::default());
            let mock = std::sync::Arc::new(Mock::default());
            if let Some(state) = self.guest {
                mock.domain("web", state);
            }
            let opened = std::sync::atomic::AtomicBool::new(false);
            let open = |_: ToolstackChoice,
                        _: &XlConf,
                        _: bool|
             -> Result<Box<dyn Toolstack>, Box<dyn std::error::Error>> {
                if failed.fetch_add(1, Ordering::Relaxed) < times {
                    let error = xenlight::DomainConfig::from_json(serde_json::Value::Null).expect_err("no object");
                    return Err(Box::new(toolstack::libxl::OpenError::Connect(error)));
                }
                opened.store(true, std::sync::atomic::Ordering::Relaxed);
                Ok(Box::new(std::sync::Arc::clone(&mock)))
            };
            let cli = Cli::try_parse_from(["xendomains"].iter().chain(words)).expect("usage");
            let report = Reporter::new(Box::new(out.clone()), Box::new(err.clone()));
            let interrupt = Interrupt::new().expect("a descriptor");
            let exit = run(
                &Program {
                    host: &self.host,
                    open: &open,
                    report: &report,
                    interrupt: &interrupt,
                    sleep: &|time| {
                        assert_eq!(time, XEN_PAUSE);
                        slept.fetch_add(1, Ordering::Relaxed);
                    },
                    patience: PATIENCE,
                    spawn_monitor: None,
                },
                &cli,
            );
            let calls = opened.into_inner().then(|| mock.calls());
            (Said { exit, out: out.text(), err: err.text(), calls }, slept.into_inner())
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["xendomains"]).is_err_and(|error| error.exit_code() == 2));
        assert!(Cli::try_parse_from(["xendomains", "begin"]).is_err_and(|error| error.exit_code() == 2));
    }

    #[test]
    fn a_machine_without_xen_has_nothing_to_do() {
        let machine = Machine::new("");
        fs::remove_file(&machine.host.hypervisor_type).expect("remove");
        for (word, exit) in [("start", 0), ("stop", 0), ("restart", 0), ("status", 3)] {
            let said = machine.run(&[word]);
            assert_eq!((said.exit.code(), said.calls), (exit, None), "{word}");
            assert!(said.out.contains("does not run under Xen"), "{word}: {}", said.out);
        }
        let json: serde_json::Value = serde_json::from_str(&machine.run(&["status", "--json"]).out).expect("JSON");
        assert_eq!(json["toolstack"], serde_json::Value::Null);
        assert_eq!(json["guests"], serde_json::json!([]));
    }

    #[test]
    fn where_nothing_is_to_be_started_nothing_is_even_read() {
        let machine = Machine::new("oops");
        fs::write(&machine.host.kernel_command_line, "ro xendomains.skip_autostart").expect("write");
        for word in ["start", "restart", "reload"] {
            let said = machine.run(&[word]);
            assert_eq!((said.exit, said.calls), (Exit::Done, None), "{word}: {}", said.err);
            assert!(said.out.contains("command line: no guest is started"), "{}", said.out);
        }
        assert_eq!(machine.run(&["stop"]).exit, Exit::Failed);
        let machine = Machine::new("");
        fs::write(&machine.host.off_switch, "").expect("write");
        assert_eq!(machine.run(&["start"]).calls, None);
        assert!(!machine.host.mark_file().exists(), "nobody looks for it");
        fs::create_dir(&machine.host.subsys_dir).expect("directory");
        assert_eq!(machine.run(&["start"]).calls, None);
        assert!(machine.host.mark_file().exists(), "what is started by hand is to be stopped");
        assert_eq!(machine.run(&["stop"]).calls.expect("opened"), ["save web", "destroy web"]);
    }

    #[test]
    fn a_start_waits_for_xenstored_with_a_limit_and_a_later_one_does_it() {
        let machine = Machine::new("");
        let (said, slept) = machine.run_while_xen_boots(&["start"], 3);
        assert_eq!((said.exit, slept), (Exit::Done, 3), "{}", said.err);
        assert_eq!(said.err.matches("waiting for xenstored, at most 60 s").count(), 1, "{}", said.err);
        let (said, slept) = machine.run_while_xen_boots(&["start"], usize::MAX);
        assert_eq!((said.exit, slept, said.calls), (Exit::NoToolstack, 59, None), "{}", said.err);
        assert!(said.err.contains("no usable toolstack: "), "{}", said.err);
        assert_eq!(machine.run(&["start"]).exit, Exit::Done);
        // Who stops or looks has nothing to wait for.
        for word in ["stop", "status"] {
            let (said, slept) = machine.run_while_xen_boots(&[word], usize::MAX);
            assert_eq!((said.calls, slept), (None, 0), "{word}: {}", said.err);
        }
    }

    #[test]
    fn only_root_starts_and_stops() {
        let mut machine = Machine::new("");
        machine.host.root = false;
        for word in ["start", "stop", "restart", "reload"] {
            let said = machine.run(&[word]);
            assert_eq!((said.exit, said.calls), (Exit::NotRoot, None), "{word}");
        }
        assert_eq!(machine.run(&["status"]).exit, Exit::AllRunning);
    }

    #[test]
    fn without_settings_stop_stops_guests_and_start_starts_none() {
        let mut machine = Machine::new("");
        // To save a guest that runs would be to write to the default directory of the machine that tests this.
        machine.guest = Some(State::Shutdown(ShutdownReason::Poweroff));
        fs::remove_file(&machine.host.settings_files[0]).expect("remove");
        let directory = machine.dir.path().to_str().expect("text").to_owned();
        for (options, message) in [
            (&[][..], "no settings file"),
            (&["--config", "/nonexistent/settings"], "/nonexistent/settings: No such file"),
            (&["--config", &directory], "Is a directory"),
        ] {
            for word in ["start", "restart", "reload"] {
                let said = machine.run(&[&[word], options].concat());
                assert_eq!((said.exit, said.calls), (Exit::Settings, None), "{word} {options:?}");
                assert!(said.err.contains(message), "{word}: {}", said.err);
            }
            let said = machine.run(&[&["stop"], options].concat());
            assert_eq!((said.exit, said.calls.expect("opened")), (Exit::Failed, vec!["destroy web".to_owned()]));
            assert!(said.err.contains(message) && said.err.contains("defaults"), "{}", said.err);
        }
        machine.guest = None;
        let said = machine.run(&["stop"]);
        assert_eq!((said.exit, said.calls), (Exit::Done, Some(vec![])), "there is nothing to be done");
        assert!(said.out.contains("no settings file"), "{}", said.out);
        assert_eq!(machine.run(&["stop", "--config", "/nonexistent/settings"]).exit, Exit::Failed);
    }

    #[test]
    fn mistakes_in_the_settings_keep_start_from_losing_something_and_nobody_from_stopping() {
        let start = ["start", "restart", "reload"];
        for (settings, refused) in [
            ("XENDOMAINS_STOP_MAXWAIT=300s", &[][..]),
            ("XENDOMAINS_SYSRQ=seiuo", &[]),
            ("XENDOMAINS_SHUTDOWN=--halt --wait", &[]),
            ("XENDOMAINS_MIGRATE=\"b --ssl\"", &[]),
            ("XENDOMAINS_MIGRATE='host -C /nonexistent/web.cfg'", &[]),
            ("XENDOMAINS_MIGRATE=$(hostname)", &[]),
            ("XENDOMAINS_USLEEP=\"100000", &[]),
            ("XENDOMAINS_START_JOBS=many", &[]),
            ("XENDOMAINS_RESTORE=true\r\n", &[]),
            ("XENDOMAINS_RESTORE=$(x)", &start),
            ("XENDOMAINS_SAVE=$(x)\nXENDOMAINS_SAVE='", &start),
            ("if true; then", &start),
            ("\0", &start),
        ] {
            let mut machine = Machine::new(settings);
            if settings.contains("SAVE") {
                // To save it would be to write to the default directory of the machine that tests this.
                machine.guest = Some(State::Shutdown(ShutdownReason::Poweroff));
            }
            let at =
                format!("/settings:{}: ", if settings.ends_with('\n') { 3 } else { settings.lines().count() + 2 });
            for word in ["start", "restart", "reload", "stop"] {
                let said = machine.run(&[word]);
                // A file that can't be read is looked at when it is needed.
                let is_fine = settings.contains("-C") && word == "start";
                assert_eq!(said.err.contains(&at), !is_fine, "{settings} {word}: {}", said.err);
                if refused.contains(&word) {
                    assert_eq!((said.exit, said.calls), (Exit::Settings, None), "{settings} {word}");
                    continue;
                }
                let exit = if is_fine { Exit::Done } else { Exit::Failed };
                assert_eq!(said.exit, exit, "{settings} {word}: {}", said.err);
                let calls = said.calls.expect("opened");
                let expected = match (word, settings.contains("SAVE")) {
                    ("start", _) => "",
                    (_, false) => "save web, destroy web",
                    (_, true) => "destroy web",
                };
                assert!(calls.join(", ").starts_with(expected), "{settings} {word}: {calls:?}");
            }
        }
    }

    #[test]
    fn what_only_looks_goes_by_what_it_understands() {
        let machine = Machine::new("XENDOMAINS_MIGRATE='b --ssl'");
        let said = machine.run(&["status"]);
        assert_eq!(said.exit, Exit::AllRunning);
        assert!(said.err.contains("/settings:3: ") && said.out.contains("web"), "{}{}", said.out, said.err);
        assert_eq!(machine.run(&["plan", "start"]).exit, Exit::Failed);
        let said = machine.run(&["plan", "stop"]);
        assert_eq!(said.exit, Exit::Failed);
        assert!(said.out.contains("save (at most") && !said.out.contains("migrate"), "{}", said.out);
        assert_eq!(machine.run(&["check"]).exit, Exit::Settings);
        let machine = Machine::new("oops");
        assert_eq!(machine.run(&["status"]).exit, Exit::Unknown, "another guest may be wanted");
        assert_eq!(machine.run(&["plan", "start"]).exit, Exit::Settings);
        let said = machine.run(&["plan", "stop"]);
        assert!(said.exit == Exit::Failed && said.out.contains("save (at most"), "{}{}", said.out, said.err);
        let said = machine.run(&["check"]);
        assert_eq!(said.exit, Exit::Settings);
    }

    #[test]
    fn names_that_were_off_without_being_set_are_told() {
        let machine = Machine::new("#XENDOMAINS_RESTORE=true\n#XENDOMAINS_SHUTDOWN_ALL=x\n");
        let expect = |words: &[&str], named: &[&str], not: &[&str]| {
            let said = machine.run(words);
            let warning: Vec<_> = said.err.lines().filter(|line| line.contains("off for the scripts")).collect();
            let warning = warning.join("");
            assert!(named.iter().all(|name| warning.contains(&format!("XENDOMAINS_{name} ("))), "{warning}");
            assert!(!not.iter().any(|name| warning.contains(&format!("XENDOMAINS_{name} ("))), "{warning}");
        };
        expect(&["start"], &["RESTORE", "CREATE_USLEEP"], &["AUTO", "SAVE", "SHUTDOWN_ALL"]);
        expect(&["stop"], &["SHUTDOWN", "SHUTDOWN_ALL", "STOP_MAXWAIT"], &["SAVE", "RESTORE"]);
        expect(&["restart"], &["RESTORE", "SHUTDOWN_ALL"], &["SAVE"]);
        expect(&["check"], &["RESTORE", "SHUTDOWN_ALL"], &["SAVE"]);
        expect(&["status"], &[], &["RESTORE", "SHUTDOWN_ALL"]);
    }

    #[test]
    fn a_broken_xl_conf_keeps_from_starting_but_not_from_stopping() {
        let machine = Machine::new("");
        fs::write(&machine.host.xl_conf, "autoballoon = ").expect("write");
        assert_eq!(machine.run(&["start"]).exit, Exit::Settings);
        let said = machine.run(&["stop"]);
        assert_eq!(said.exit, Exit::Done, "{}", said.err);
        assert!(said.err.contains("xl.conf"), "{}", said.err);
    }

    #[test]
    fn the_second_is_told_who_is_at_work() {
        let machine = Machine::new("");
        let lock = Lock::acquire(&machine.host.lock_file, "stop").expect("free");
        let said = machine.run(&["start"]);
        assert_eq!((said.exit, said.calls), (Exit::Failed, None));
        assert!(said.err.contains(&format!("process {}", std::process::id())), "{}", said.err);
        assert_eq!(machine.run(&["status"]).exit, Exit::AllRunning);
        drop(lock);
        assert_eq!(machine.run(&["stop"]).calls.expect("opened"), ["save web", "destroy web"]);
    }

    #[test]
    fn the_start_of_another_unit_stops_no_guest() {
        let mut machine = Machine::new("");
        machine.host.stopped_unit = Some("xendomains.service".to_owned());
        let (host, log) = (&machine.host, machine.dir.path().join("log"));
        systemd::tests::jobs(host, "8 libvirtd.service start waiting");
        systemd::tests::stand_in(&host.systemd_run, &format!("echo \"$*\" >{}", log.display()));
        let said = machine.run(&["stop"]);
        assert_eq!((said.exit, said.calls), (Exit::Done, None), "{}", said.err);
        assert!(
            said.err.contains("because libvirtd.service, which conflicts with it, is started"),
            "{}",
            said.err
        );
        let log = fs::read_to_string(log).expect("it was run");
        assert!(log.contains("--unit xendomains-left.service ") && log.contains(" stop "), "{log}");
        // If nobody would stop them at shutdown, that is a failure.
        systemd::tests::stand_in(&host.systemd_run, "echo no >&2; exit 1");
        let said = machine.run(&["stop"]);
        assert_eq!((said.exit, said.calls), (Exit::Failed, None), "{}", said.err);
        systemd::tests::jobs(host, "8 libvirtd.service stop waiting");
        assert_eq!(machine.run(&["stop"]).calls.expect("opened"), ["save web", "destroy web"]);
    }

    #[test]
    fn restart_stops_and_starts() {
        let machine = Machine::new("");
        for word in ["restart", "reload"] {
            let said = machine.run(&[word]);
            assert_eq!(said.exit, Exit::Done, "{}", said.err);
            let expected = ["save web", "destroy web", "restore web", "unpause web"];
            assert_eq!(said.calls.expect("opened"), expected);
            assert!(said.out.contains("stop: 1 saved") && said.out.contains("start: 1 restored"), "{}", said.out);
        }
    }

    #[test]
    fn without_a_toolstack_nothing_can_be_done() {
        let machine = Machine::new("");
        let (out, err) = (Buffer::default(), Buffer::default());
        let report = Reporter::new(Box::new(out), Box::new(err.clone()));
        let open = |_: ToolstackChoice, _: &XlConf, _: bool| Err("no libxl".into());
        let interrupt = Interrupt::new().expect("a descriptor");
        let program = Program {
            host: &machine.host,
            open: &open,
            report: &report,
            interrupt: &interrupt,
            sleep: &|_| {},
            patience: PATIENCE,
            spawn_monitor: None,
        };
        for (word, exit) in [("start", Exit::NoToolstack), ("stop", Exit::NoToolstack), ("status", Exit::Unknown)]
        {
            let cli = Cli::try_parse_from(["xendomains", word]).expect("usage");
            assert_eq!(run(&program, &cli), exit);
        }
        assert!(err.text().contains("no usable toolstack: no libxl"));
    }

    #[test]
    fn plan_touches_nothing() {
        let machine = Machine::new("");
        for (words, expected) in [
            (&["plan", "start"][..], "nothing to do\n"),
            (&["plan", "stop"], "1. no order given\n   web  save (at most 300 s), else"),
            (&["plan", "stop", "--json"], "{\n  \"command\": \"stop\""),
        ] {
            let said = machine.run(words);
            assert_eq!((said.exit, said.calls), (Exit::Done, Some(vec![])), "{words:?}: {}", said.err);
            assert!(said.out.starts_with(expected), "{words:?}: {}", said.out);
        }
        assert!(!machine.dir.path().join("save").exists());
    }

    #[test]
    fn check_looks_at_everything_and_touches_nothing() {
        let mut machine = Machine::new("XENDOMAINS_SAEV=/x\nXENDOMAINS_MIGRATE='far -C /nonexistent/x'");
        machine.host.root = false;
        fs::remove_file(&machine.host.hypervisor_type).expect("remove");
        let bad = machine.dir.path().join("auto/bad");
        fs::write(&bad, "name = \"db\"\nkernel = \"/k\"\nvpcus = 2\nmemory = \"-1\"\n").expect("write");
        let said = machine.run(&["check"]);
        assert_eq!((said.exit, said.calls), (Exit::Failed, None));
        for word in ["settings:3: ", "did you mean XENDOMAINS_SAVE?", "settings:4: ", "auto/bad:4: memory"] {
            assert!(said.err.contains(word), "{word}: {}", said.err);
        }
        let bad = bad.to_str().expect("text");
        let good = machine.dir.path().join("good");
        fs::write(&good, "name = \"db\"\nkernel = \"/k\"\nvpcus = 2\n").expect("write");
        let said = machine.run(&["check", good.to_str().expect("text")]);
        assert_eq!(said.exit, Exit::Done, "{}", said.err);
        assert!(said.err.contains("good:3: vpcus: unknown, did you mean vcpus?"), "{}", said.err);
        assert_eq!(machine.run(&["check", good.to_str().expect("text"), bad]).exit, Exit::Failed);
        fs::write(&machine.host.settings_files[0], "oops").expect("write");
        assert_eq!(machine.run(&["check"]).exit, Exit::Settings);
    }

    #[test]
    fn as_json_there_is_one_document_whatever_happens() {
        let read = |said: &Said| -> serde_json::Value {
            let json: serde_json::Value = serde_json::from_str(&said.out).expect("one document");
            assert_eq!(json["exit"], said.exit.code());
            assert!(json["seconds"].is_number());
            json
        };
        let machine = Machine::new("XENDOMAINS_SAEV=/x\n");
        for word in ["stop", "restart"] {
            let said = machine.run(&[word, "--json"]);
            let json = read(&said);
            let actions = json["actions"].as_array().expect("a list");
            assert_eq!(actions.len(), if word == "stop" { 1 } else { 2 }, "{json}");
            let seconds = actions[0]["seconds"].as_f64().expect("a number");
            assert!((0.0..60.0).contains(&seconds));
            assert_eq!(
                actions[0],
                serde_json::json!({"guest": "web", "action": "save", "result": "done", "seconds": seconds, "reason": null})
            );
            assert_eq!(json["messages"][0]["level"], "warning");
            assert!(said.err.starts_with("warning: "), "{}", said.err);
        }
        // A file that can't be used; the message is also where it is without the option.
        fs::write(machine.dir.path().join("auto/bad"), "name = ").expect("write");
        let said = machine.run(&["check", "--json"]);
        let json = read(&said);
        assert_eq!((said.exit, &json["actions"]), (Exit::Failed, &serde_json::json!([])));
        assert_eq!(
            (&json["messages"][0]["level"], &json["messages"][3]["level"]),
            (&"warning".into(), &"error".into())
        );
        assert!(said.err.contains("auto/bad:1: "), "{}", said.err);
        // An end before anything is done.
        fs::write(&machine.host.settings_files[0], "oops").expect("write");
        let said = machine.run(&["start", "--json"]);
        assert_eq!(said.exit, Exit::Settings);
        assert_eq!(read(&said)["messages"][0]["level"], "error");
    }

    #[test]
    fn config_reads_a_file_for_this_host_or_for_a_release() {
        let machine = Machine::new("");
        let file = machine.dir.path().join("db");
        fs::write(&file, "name = \"db\"\nkernel = \"/k\"\nvcpus = 1\ncpus = \"node:1\"\nvpmu = 1\n")
            .expect("write");
        let file = file.to_str().expect("text");
        let json =
            |said: &Said| serde_json::from_str::<serde_json::Value>(&said.out).expect("JSON")["b_info"].clone();
        // In dom0 the toolstack knows the CPUs.
        let said = machine.run(&["config", file]);
        assert_eq!((said.exit, said.calls.clone()), (Exit::Done, Some(vec![])), "{}", said.err);
        assert_eq!(json(&said)["vcpu_hard_affinity"], serde_json::json!([[2, 3]]));
        assert_eq!((&json(&said)["vpmu"], said.err.as_str()), (&"True".into(), ""));
        // The release is that of the hypervisor, or as given.
        let version = machine.dir.path().join("version");
        fs::create_dir(&version).expect("directory");
        fs::write(version.join("major"), "4\n").expect("write");
        fs::write(version.join("minor"), "15\n").expect("write");
        let said = machine.run(&["config", file]);
        assert!(json(&said)["vpmu"].is_null() && said.err.contains("needs Xen 4.16"), "{}", said.err);
        let said = machine.run(&["config", "--xen", "4.22", file]);
        assert_eq!((&json(&said)["xenstore_quota"], said.err.as_str()), (&serde_json::json!({}), ""));
        // Elsewhere the CPUs are the machine's own.
        fs::remove_file(&machine.host.hypervisor_type).expect("remove");
        let said = machine.run(&["config", file]);
        assert_eq!(said.exit, Exit::Failed);
        assert!(said.err.contains("cpus: in `node:1`: the host's CPUs are not known"), "{}", said.err);
        for (name, text) in
            [("cpu/possible", "0-1"), ("cpu/online", "0-1"), ("node/online", "0-1"), ("node/node1/cpulist", "1")]
        {
            let path = machine.host.devices.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directory");
            fs::write(path, text).expect("write");
        }
        let said = machine.run(&["config", "--xen", "4.17", file]);
        assert_eq!((said.exit, said.calls.clone()), (Exit::Done, None), "{}", said.err);
        assert_eq!(json(&said)["vcpu_hard_affinity"], serde_json::json!([[1]]));
        assert!(said.err.contains("db:4: cpus: Xen can't be asked; the CPUs of this machine"), "{}", said.err);
    }

    #[test]
    fn releases_that_can_be_named_are_those_that_are_known() {
        let release = |text: &str| {
            let cli = Cli::try_parse_from(["xendomains", "config", "--xen", text, "file"]).ok()?;
            if let Command::Config(options) = cli.command { options.xen } else { None }
        };
        for minor in 0..40 {
            let known = guest_config::KNOWN.contains(&minor);
            assert_eq!(release(&format!("4.{minor}")), known.then_some(minor), "4.{minor}");
        }
        for text in ["17", "4.17.1", "5.17", "4.", ""] {
            assert_eq!(release(text), None, "{text}");
        }
    }

    #[test]
    fn cpu_masks_of_xl_conf_are_told_about_once_and_keep_guests_to_them() {
        let machine = Machine::new("XENDOMAINS_RESTORE=false\n");
        fs::write(&machine.host.xl_conf, "vm.cpumask = \"0-9\"\n").expect("write");
        for name in ["a", "b"] {
            let text = format!("name = \"{name}\"\nkernel = \"/dev/null\"\nvcpus = 1\ncpus = \"^0\"\n");
            fs::write(machine.dir.path().join("auto").join(name), text).expect("write");
        }
        let said = machine.run(&["start"]);
        assert_eq!(said.exit, Exit::Failed);
        assert_eq!(said.err.matches("vm.cpumask: in `0-9`: the host has no CPU 9").count(), 1, "{}", said.err);
        assert_eq!(said.err.matches("there is no CPU that virtual CPU 0 may run on").count(), 2, "{}", said.err);
    }

    #[test]
    fn config_prints_what_a_file_means_on_any_machine() {
        let mut machine = Machine::new("oops");
        machine.host.root = false;
        fs::remove_file(&machine.host.hypervisor_type).expect("remove");
        let file = machine.dir.path().join("db");
        fs::write(&file, "name = \"db\"\ntype = \"pvh\"\nkernel = \"/k\"\nmemory = 9\n").expect("write");
        let file = file.to_str().expect("text");
        let said = machine.run(&["config", file]);
        assert_eq!((said.exit, said.calls), (Exit::Done, None), "{}", said.err);
        let json: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
        assert_eq!(json["c_info"]["name"], "db");
        let said = machine.run(&["config", "/nonexistent/db"]);
        assert_eq!(said.exit, Exit::Failed);
        assert!(said.err.contains("/nonexistent/db"), "{}", said.err);
    }
}
