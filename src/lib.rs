//! `xendomains` starts a Xen host's guests when the host boots and stops them when it shuts down.
//!
//! [`run`] is the whole program: everything outside of it (the toolstack, the places of files, where messages go) is
//! handed in.

pub mod cli;
pub mod guest_config;
pub mod host;
pub mod image;
pub mod lifecycle;
pub mod lock;
pub mod report;
pub mod settings;
pub mod toolstack;

use std::time::Duration;

use cli::{Cli, Command};
use guest_config::{GuestConfig, NEWEST, XenHost, XlConf};
use host::Host;
use lifecycle::{Purpose, Run};
use lock::Lock;
use report::{Exit, Reporter};
use settings::Settings;
use toolstack::Toolstack;

const NO_TOOLSTACK: &str = "no usable toolstack";

/// Opens the toolstack; the argument is whether its own log is wanted.
pub type OpenToolstack<'a> = &'a dyn Fn(bool) -> Result<Box<dyn Toolstack>, Box<dyn std::error::Error>>;

/// What the program works with.
pub struct Program<'a> {
    /// The machine.
    pub host: &'a Host,
    /// How to get a toolstack.
    pub open: OpenToolstack<'a>,
    /// Where messages and answers go.
    pub report: &'a Reporter,
    /// How to wait between two guests or two SysRq letters.
    pub sleep: &'a (dyn Fn(Duration) + Sync),
}

/// Does what the command line says.
pub fn run(program: &Program<'_>, cli: &Cli) -> Exit {
    let ended = match &cli.command {
        Command::Start => program.act(cli, &[Purpose::Start]),
        Command::Stop => program.act(cli, &[Purpose::Stop]),
        Command::Restart | Command::Reload => program.act(cli, &[Purpose::Stop, Purpose::Start]),
        Command::Status(options) => program.status(cli, options.json),
        Command::Config(options) => program.config(cli, options),
    };
    ended.unwrap_or_else(|exit| exit)
}

/// `Err` is an early end.
type Ended = Result<Exit, Exit>;

impl Program<'_> {
    /// start, stop, or both. Everything that can be found wrong beforehand is found before any guest is touched.
    fn act(&self, cli: &Cli, purposes: &[Purpose]) -> Ended {
        let starts = purposes.contains(&Purpose::Start);
        if let Err(reason) = self.host.is_dom0() {
            self.report.note(&format!("{reason}: nothing to do"));
            return Err(Exit::Done);
        }
        if !self.host.root {
            return Err(self.refuse("only root may start and stop guests", Exit::NotRoot));
        }
        let Some(settings) = self.settings(cli, purposes, Exit::Settings)? else {
            if !starts {
                self.report.note("no settings file: nothing to do");
                return Err(Exit::Done);
            }
            return Err(self.refuse(&self.no_settings_file(), Exit::Settings));
        };
        let _lock =
            Lock::acquire(&self.host.lock_file).map_err(|error| self.refuse(&error.to_string(), Exit::Failed))?;
        let toolstack = self.toolstack(cli.verbose, Exit::NoToolstack)?;
        let xen_host = self.xen_host(starts, &*toolstack)?;
        self.refuse_all(&lifecycle::unsupported_in_auto(&settings, &xen_host), Exit::Settings)?;
        let run = Run {
            host: self.host,
            settings: &settings,
            xen_host: &xen_host,
            toolstack: &*toolstack,
            report: self.report,
            sleep: self.sleep,
        };
        for purpose in purposes {
            match purpose {
                Purpose::Start => lifecycle::start(&run),
                Purpose::Stop => lifecycle::stop(&run),
                Purpose::Status => {}
            }
        }
        Ok(self.report.exit())
    }

    fn status(&self, cli: &Cli, json: bool) -> Ended {
        if let Err(reason) = self.host.is_dom0() {
            let answer = if json { lifecycle::Overview::not_xen(&reason) } else { format!("{reason}\n") };
            self.answer(&answer, Exit::NoneRunning)?;
            return Err(Exit::NoneRunning);
        }
        let settings = self.settings(cli, &[Purpose::Status], Exit::Unknown)?.unwrap_or_else(|| {
            self.report.warn(&format!("{}: going by the defaults", self.no_settings_file()));
            Settings::defaults()
        });
        let toolstack = self.toolstack(cli.verbose, Exit::Unknown)?;
        let xl_conf = XlConf::read(&self.host.xl_conf).unwrap_or_else(|error| {
            self.report.warn(&error.to_string());
            XlConf::default()
        });
        let xen_host = self.this_host(xl_conf, Some(&*toolstack), None);
        let overview = lifecycle::overview(&settings, &xen_host, &*toolstack, self.report)
            .map_err(|error| self.refuse(&error.to_string(), Exit::Unknown))?;
        let answer = if json { overview.json() } else { overview.table() };
        self.answer(&answer, Exit::Unknown)?;
        Ok(overview.exit())
    }

    fn config(&self, cli: &Cli, options: &cli::Config) -> Ended {
        let xl_conf =
            XlConf::read(&self.host.xl_conf).map_err(|error| self.refuse(&error.to_string(), Exit::Failed))?;
        let toolstack = if self.host.root && self.host.is_dom0().is_ok() {
            (self.open)(cli.verbose)
                .inspect_err(|error| self.report.warn(&format!("{NO_TOOLSTACK}: {error}")))
                .ok()
        } else {
            None
        };
        let xen_host = self.this_host(xl_conf, toolstack.as_deref(), options.xen);
        xen_host.warnings().iter().for_each(|warning| self.report.warn(&warning.to_string()));
        let guest = GuestConfig::read(&options.file, &xen_host)
            .map_err(|error| self.refuse(&error.to_string(), Exit::Failed))?;
        for warning in &guest.warnings {
            self.report.warn(&warning.to_string());
        }
        self.answer(&format!("{:#}\n", guest.json), Exit::Failed)?;
        Ok(Exit::Done)
    }

    /// The settings, after telling what is doubtful and refusing what can't be done.
    fn settings(&self, cli: &Cli, purposes: &[Purpose], exit: Exit) -> Result<Option<Settings>, Exit> {
        let settings = Settings::load(cli.config.as_deref(), &self.host.settings_files)
            .map_err(|error| self.refuse(&error.to_string(), exit))?;
        let Some(settings) = settings else { return Ok(None) };
        for warning in &settings.warnings {
            self.report.warn(warning);
        }
        let refused: Vec<_> =
            purposes.iter().flat_map(|purpose| lifecycle::unsupported(&settings, *purpose)).collect();
        self.refuse_all(&refused, exit)?;
        Ok(Some(settings))
    }

    fn no_settings_file(&self) -> String {
        let files: Vec<_> = self.host.settings_files.iter().map(|file| file.display().to_string()).collect();
        format!("no settings file ({})", files.join(", "))
    }

    /// A broken xl.conf keeps guests from being started, as it does with `xl create`, but never from being stopped.
    fn xen_host(&self, starts: bool, toolstack: &dyn Toolstack) -> Result<XenHost, Exit> {
        match XlConf::read(&self.host.xl_conf) {
            Ok(xl_conf) => {
                let xen_host = self.this_host(xl_conf, Some(toolstack), None);
                xen_host.warnings().iter().for_each(|warning| self.report.warn(&warning.to_string()));
                Ok(xen_host)
            }
            Err(error) if starts => Err(self.refuse(&error.to_string(), Exit::Settings)),
            Err(error) => {
                self.report.warn(&error.to_string());
                Ok(self.this_host(XlConf::default(), Some(toolstack), None))
            }
        }
    }

    /// This machine as a Xen host of a release: the one given, else the one that runs. Without a toolstack its CPUs are
    /// those that Linux sees.
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
        XenHost { xl_conf, release, update, cpus, firmware_dir }
    }

    fn toolstack(&self, verbose: bool, exit: Exit) -> Result<Box<dyn Toolstack>, Exit> {
        (self.open)(verbose).map_err(|error| self.refuse(&format!("{NO_TOOLSTACK}: {error}"), exit))
    }

    fn answer(&self, text: &str, exit: Exit) -> Result<(), Exit> {
        self.report.answer(text).map_err(|error| self.refuse(&format!("standard output: {error}"), exit))
    }

    fn refuse_all(&self, messages: &[String], exit: Exit) -> Result<(), Exit> {
        messages.iter().for_each(|message| self.report.error(message));
        if messages.is_empty() { Ok(()) } else { Err(exit) }
    }

    fn refuse(&self, message: &str, exit: Exit) -> Exit {
        self.report.error(message);
        exit
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
    use crate::toolstack::State;

    struct Machine {
        dir: tempfile::TempDir,
        host: Host,
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
            Machine { dir, host }
        }

        fn run(&self, words: &[&str]) -> Said {
            let (out, err) = (Buffer::default(), Buffer::default());
            let mock = std::sync::Arc::new(Mock::default());
            mock.domain("web", State::Running);
            let opened = std::sync::atomic::AtomicBool::new(false);
            let open = |_: bool| -> Result<Box<dyn Toolstack>, Box<dyn std::error::Error>> {
                opened.store(true, std::sync::atomic::Ordering::Relaxed);
                Ok(Box::new(std::sync::Arc::clone(&mock)))
            };
            let cli = Cli::try_parse_from(["xendomains"].iter().chain(words)).expect("usage");
            let report = Reporter::new(Box::new(out.clone()), Box::new(err.clone()));
            let exit = run(&Program { host: &self.host, open: &open, report: &report, sleep: &|_| {} }, &cli);
            let calls = opened.into_inner().then(|| mock.calls());
            Said { exit, out: out.text(), err: err.text(), calls }
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
    fn without_settings_stop_is_done_and_start_is_not() {
        let machine = Machine::new("");
        fs::remove_file(&machine.host.settings_files[0]).expect("remove");
        for (word, exit) in [("start", 6), ("stop", 0), ("restart", 6), ("reload", 6)] {
            let said = machine.run(&[word]);
            assert_eq!((said.exit.code(), said.calls), (exit, None), "{word}");
            assert!((said.out + &said.err).contains("no settings file"), "{word}");
        }
        let said = machine.run(&["stop", "--config", "/nonexistent/settings"]);
        assert_eq!((said.exit, said.calls), (Exit::Settings, None));
    }

    #[test]
    fn wrong_settings_are_named_before_any_guest_is_touched() {
        for (settings, words) in [
            ("if true; then", &["start", "stop", "restart", "reload"][..]),
            ("XENDOMAINS_USLEEP=x", &["start", "stop", "restart"]),
            ("XENDOMAINS_MIGRATE=host", &["stop", "restart"]),
            ("XENDOMAINS_DESTROY=true", &["stop"]),
            ("XENDOMAINS_DEVICE_WAIT=3", &["start", "restart"]),
            ("XENDOMAINS_TOOLSTACK=xm", &["start", "stop"]),
        ] {
            let machine = Machine::new(settings);
            for word in words {
                let said = machine.run(&[word]);
                assert_eq!((said.exit, said.calls), (Exit::Settings, None), "{settings} {word}");
                assert!(said.err.contains("/settings:3: "), "{settings} {word}: {}", said.err);
            }
        }
        let machine = Machine::new("oops");
        assert_eq!(machine.run(&["status"]).exit, Exit::Unknown);
    }

    #[test]
    fn per_guest_keys_are_refused() {
        let machine = Machine::new("");
        let text = "name = \"db\"\ntype = \"pvh\"\nkernel = \"/k\"\nmemory = 9\nxendomains = [ \"order=1\" ]\n";
        fs::write(machine.dir.path().join("auto/db"), text).expect("write");
        for word in ["start", "stop"] {
            let said = machine.run(&[word]);
            assert_eq!((said.exit, said.calls), (Exit::Settings, Some(vec![])), "{}", said.err);
            assert!(said.err.contains("auto/db: the key `xendomains`"), "{}", said.err);
        }
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
        let lock = Lock::acquire(&machine.host.lock_file).expect("free");
        let said = machine.run(&["stop"]);
        assert_eq!((said.exit, said.calls), (Exit::Failed, None));
        assert!(said.err.contains(&format!("process {}", std::process::id())), "{}", said.err);
        assert_eq!(machine.run(&["status"]).exit, Exit::AllRunning);
        drop(lock);
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
        let open = |_: bool| Err("no libxl".into());
        let program = Program { host: &machine.host, open: &open, report: &report, sleep: &|_| {} };
        for (word, exit) in [("start", Exit::NoToolstack), ("stop", Exit::NoToolstack), ("status", Exit::Unknown)]
        {
            let cli = Cli::try_parse_from(["xendomains", word]).expect("usage");
            assert_eq!(run(&program, &cli), exit);
        }
        assert!(err.text().contains("no usable toolstack: no libxl"));
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
