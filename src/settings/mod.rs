//! The settings file: `/etc/default/xendomains` or `/etc/sysconfig/xendomains`.
//!
//! The file is shell assignments, read without a shell (see [`shell`]). Every setting has a type and a default, and
//! remembers where its value comes from, so that messages can name file and line.
//!
//! A file is always read to its end, whatever is in it. A setting that is not understood has its default ([`KNOWN`] says
//! which), so that stop can stop. Who starts guests goes no further if [`Settings::unknown`] names any.

mod known;
mod migrate;
pub mod shell;
mod value;

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use known::{KNOWN, Known, Unset};
pub use migrate::{Migrate, TransportKind};
pub use value::ShutdownOptions;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The file does not mention it.
    Default,
    /// It is assigned here.
    File(Arc<Path>, u32),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path, line) => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// One effective value with its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value that counts.
    pub value: T,
    /// Where it comes from.
    pub origin: Origin,
}

/// What to do with a guest whose image could not be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreFailed {
    /// Leave the guest down and the image in place.
    Keep,
    /// Set the image aside and boot the guest.
    Start,
}

/// Which toolstack to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolstackChoice {
    /// libxl if it is usable, otherwise a command.
    Auto,
    /// libxl in-process.
    Libxl,
    /// The command `xl`.
    Xl,
    /// The command `xm`.
    Xm,
}

/// All settings, each with its effective value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `XENDOMAINS_SYSRQ`: letters sent to each guest first on stop.
    pub sysrq: Setting<Vec<char>>,
    /// `XENDOMAINS_USLEEP`: the wait after each letter.
    pub usleep: Setting<Duration>,
    /// `XENDOMAINS_CREATE_USLEEP`: the wait after each creation but the last.
    pub create_usleep: Setting<Duration>,
    /// `XENDOMAINS_MIGRATE`: where to migrate guests to on stop; `None` for nowhere.
    pub migrate: Setting<Option<Migrate>>,
    /// `XENDOMAINS_SAVE`: the directory for images; `None` for no saving.
    pub save: Setting<Option<PathBuf>>,
    /// `XENDOMAINS_SHUTDOWN`: how to shut a guest down; `None` for not at all.
    pub shutdown: Setting<Option<ShutdownOptions>>,
    /// `XENDOMAINS_SHUTDOWN_ALL`: how to shut down what is still running in the end; `None` for not at all.
    pub shutdown_all: Setting<Option<ShutdownOptions>>,
    /// `XENDOMAINS_RESTORE`: whether start restores images.
    pub restore: Setting<bool>,
    /// `XENDOMAINS_AUTO`: the directory of guests to start; `None` for none.
    pub auto: Setting<Option<PathBuf>>,
    /// `XENDOMAINS_AUTO_ONLY`: whether stop is only about guests of the AUTO directory.
    pub auto_only: Setting<bool>,
    /// `XENDOMAINS_STOP_MAXWAIT`: the limit of each step of stopping a guest; `None` for no limit.
    pub stop_maxwait: Setting<Option<Duration>>,
    /// `XENDOMAINS_START_MAXWAIT`: the limit of each creation, and of the time in which a restore reads nothing of its image;
    /// `None` for no limit.
    pub start_maxwait: Setting<Option<Duration>>,
    /// `XENDOMAINS_START_JOBS`: guests restored or created at once; `None` for [`DEFAULT_START_JOBS`], or fewer when
    /// creating them on a host with little to do it with, or with pauses.
    pub start_jobs: Setting<Option<NonZeroUsize>>,
    /// `XENDOMAINS_SAVE_JOBS`: guests saved at once.
    pub save_jobs: Setting<NonZeroUsize>,
    /// `XENDOMAINS_MIGRATE_JOBS`: guests migrated at once.
    pub migrate_jobs: Setting<NonZeroUsize>,
    /// `XENDOMAINS_STOP_TIMEOUT`: the limit of the whole stop; `None` for no limit.
    pub stop_timeout: Setting<Option<Duration>>,
    /// `XENDOMAINS_DESTROY`: whether stop destroys what is left in the end.
    pub destroy: Setting<bool>,
    /// `XENDOMAINS_RESTORE_FAILED`: what to do with a guest whose image could not be restored.
    pub restore_failed: Setting<RestoreFailed>,
    /// `XENDOMAINS_TOOLSTACK`: which toolstack to use.
    pub toolstack: Setting<ToolstackChoice>,
    /// `XENDOMAINS_DEVICE_WAIT`: how long start waits for a guest's disks and bridges.
    pub device_wait: Setting<Duration>,
    /// `XENDOMAINS_MONITOR`: whether start sees to it that a monitor runs.
    pub monitor: Setting<bool>,
    /// `XENDOMAINS_RESTART_SOON`: a guest that ends within this time of its start ends soon; zero: none does.
    pub restart_soon: Setting<Duration>,
    /// `XENDOMAINS_RESTART_BURST`: so many soon ends in a row are not slowed down.
    pub restart_burst: Setting<u32>,
    /// `XENDOMAINS_RESTART_PAUSE`: the longest pause before a restart.
    pub restart_pause: Setting<Duration>,
    /// `XENDOMAINS_RESTART_TRIES`: how often a restart that fails is tried in all.
    pub restart_tries: Setting<NonZeroUsize>,
    /// What the file says that is probably not what its author meant, each with file and line.
    pub warnings: Vec<String>,
    /// Mistakes in the file, each with file and line, and with the value that counts instead.
    pub mistakes: Vec<String>,
    /// Settings without which start could lose something, and of which it is not known what the file says.
    pub unknown: Vec<&'static Known>,
    /// Settings that the file does not mention, if it mentions any.
    pub unset: Vec<&'static Known>,
}

/// Restores at once when `XENDOMAINS_START_JOBS` is not set, and creations if nothing speaks against it. A guest that runs
/// takes CPU from the builds that are still to come, so many at once are done sooner than a few at a time; but libxl
/// gives a device no more than 10 s.
pub const DEFAULT_START_JOBS: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// Saves (and migrations) at once when the file does not say: one that writes while another prepares.
const DEFAULT_STOP_JOBS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// Tries of a restart when the file does not say: with their pauses, two minutes.
const DEFAULT_RESTART_TRIES: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// Soon ends in a row that are not slowed down when the file does not say.
const DEFAULT_RESTART_BURST: u32 = 5;

/// The line in a settings file that says that a name in a comment has its default.
const IS_OURS: &[u8] = b"# What is commented out here is the default.";

impl Settings {
    /// Reads the file `explicit` if given, otherwise the first of `usual` that exists. `None`: none of them does. What
    /// can't be read counts as a file in which nothing is understood.
    pub fn load(explicit: Option<&Path>, usual: &[PathBuf]) -> Option<Settings> {
        let read = |path: &Path| (path.to_owned(), std::fs::read(path));
        let (path, text) = match explicit {
            Some(path) => read(path),
            None => usual
                .iter()
                .map(|path| read(path))
                .find(|(_, text)| !matches!(text, Err(error) if error.kind() == io::ErrorKind::NotFound))?,
        };
        Some(match text {
            Ok(text) => Settings::parse(&path, &text),
            Err(error) => Settings {
                mistakes: vec![format!("{}: {error}; the defaults count", path.display())],
                unknown: KNOWN.iter().filter(|known| known.start_needs).collect(),
                ..Settings::defaults()
            },
        })
    }

    /// What counts when there is no file.
    pub fn defaults() -> Settings {
        value::Values::default().settings()
    }

    /// Reads the text of a file; `path` is for messages.
    pub fn parse(path: &Path, text: &[u8]) -> Settings {
        let mut settings = value::Values::new(&path.into(), shell::parse(text)).settings();
        // Our template has told its author the meaning of the others.
        if text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii_end() == IS_OURS) {
            settings.unset.clear();
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Settings {
        Settings::parse(Path::new("/etc/default/xendomains"), text.as_bytes())
    }

    fn valid(text: &str) -> Settings {
        let settings = parse(text);
        assert_eq!((&settings.warnings, &settings.mistakes), (&vec![], &vec![]), "{text:?}");
        assert_eq!(settings.unknown, Vec::<&Known>::new(), "{text:?}");
        settings
    }

    fn names(known: &[&Known]) -> String {
        known.iter().map(|known| known.name).collect::<Vec<_>>().join(" ")
    }

    /// The settings without what the file says about each.
    fn values(settings: Settings) -> String {
        let settings = Settings { mistakes: vec![], unknown: vec![], unset: vec![], ..settings };
        format!("{settings:?}").replace("File(\"/etc/default/xendomains\", 1)", "Default")
    }

    fn with_and_without_wait() -> [Option<ShutdownOptions>; 3] {
        [Some(ShutdownOptions { wait: true }), Some(ShutdownOptions { wait: false }), None]
    }

    #[test]
    fn an_empty_file_has_the_documented_defaults() {
        let settings = valid("");
        let [waiting, _, _] = with_and_without_wait();
        assert_eq!(settings.sysrq.value, []);
        assert_eq!(settings.usleep.value, Duration::from_millis(100));
        assert_eq!(settings.create_usleep.value, Duration::from_secs(5));
        assert_eq!(settings.migrate.value, None);
        assert_eq!(settings.save.value.as_deref(), Some(Path::new("/var/lib/xen/save")));
        assert_eq!(settings.shutdown.value, waiting);
        assert_eq!(settings.shutdown_all.value, waiting);
        assert!(settings.restore.value);
        assert_eq!(settings.auto.value.as_deref(), Some(Path::new("/etc/xen/auto")));
        assert!(!settings.auto_only.value);
        assert_eq!(settings.stop_maxwait.value, Some(Duration::from_secs(300)));
        assert_eq!(settings.start_maxwait.value, Some(Duration::from_secs(600)));
        assert_eq!(settings.start_jobs.value, None);
        assert_eq!(settings.save_jobs.value.get(), 2);
        assert_eq!(settings.stop_timeout.value, None);
        assert!(!settings.destroy.value);
        assert_eq!(settings.restore_failed.value, RestoreFailed::Keep);
        assert_eq!(settings.toolstack.value, ToolstackChoice::Auto);
        assert_eq!(settings.device_wait.value, Duration::ZERO);
        assert!(settings.monitor.value);
        assert_eq!(settings.restart_soon.value, Duration::from_secs(60));
        assert_eq!(settings.restart_burst.value, 5);
        assert_eq!(settings.restart_pause.value, Duration::from_secs(300));
        assert_eq!(settings.restart_tries.value.get(), 8);
        assert_eq!(settings.save.origin, Origin::Default);
        assert_eq!(settings, Settings::defaults());
    }

    #[test]
    fn values_are_typed_and_know_their_line() {
        let settings = valid(
            "XENDOMAINS_SYSRQ=\"s e i  u o\"\nXENDOMAINS_USLEEP=1\nXENDOMAINS_CREATE_USLEEP=0\nXENDOMAINS_MIGRATE='--live h'\n\
             XENDOMAINS_SAVE=/srv/save\nXENDOMAINS_SHUTDOWN=--wait\nXENDOMAINS_SHUTDOWN_ALL=\"\"\nXENDOMAINS_RESTORE=false\n\
             XENDOMAINS_AUTO=''\nXENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_STOP_MAXWAIT=0\nXENDOMAINS_START_JOBS=3\n\
             XENDOMAINS_SAVE_JOBS=5\nXENDOMAINS_MIGRATE_JOBS=6\nXENDOMAINS_STOP_TIMEOUT=90\nXENDOMAINS_DESTROY=true\n\
             XENDOMAINS_RESTORE_FAILED=start\nXENDOMAINS_TOOLSTACK=xm\nXENDOMAINS_DEVICE_WAIT=7\n\
             XENDOMAINS_START_MAXWAIT=8\nXENDOMAINS_MONITOR=false\nXENDOMAINS_RESTART_SOON=9\n\
             XENDOMAINS_RESTART_BURST=0\nXENDOMAINS_RESTART_PAUSE=10\nXENDOMAINS_RESTART_TRIES=1\n",
        );
        let file = |line| Origin::File(Path::new("/etc/default/xendomains").into(), line);
        assert_eq!(settings.sysrq.value, ['s', 'e', 'i', 'u', 'o']);
        assert_eq!(settings.usleep.value, Duration::from_micros(1));
        assert_eq!(settings.create_usleep.value, Duration::ZERO);
        assert_eq!(settings.migrate.value.expect("given").targets, ["h"]);
        assert_eq!(settings.migrate.origin, file(4));
        assert_eq!(settings.save.value.as_deref(), Some(Path::new("/srv/save")));
        assert_eq!(settings.shutdown.value, Some(ShutdownOptions { wait: true }));
        assert_eq!(settings.shutdown_all.value, None);
        assert!(!settings.restore.value);
        assert_eq!(settings.auto.value, None);
        assert!(settings.auto_only.value);
        assert_eq!(settings.stop_maxwait.value, None);
        assert_eq!(settings.start_jobs.value.map(NonZeroUsize::get), Some(3));
        assert_eq!(settings.save_jobs.value.get(), 5);
        assert_eq!(settings.migrate_jobs.value.get(), 6);
        assert_eq!(settings.stop_timeout.value, Some(Duration::from_secs(90)));
        assert!(settings.destroy.value);
        assert_eq!(settings.restore_failed.value, RestoreFailed::Start);
        assert_eq!(settings.toolstack.value, ToolstackChoice::Xm);
        assert_eq!(settings.device_wait.value, Duration::from_secs(7));
        assert_eq!(settings.start_maxwait.value, Some(Duration::from_secs(8)));
        assert!(!settings.monitor.value);
        assert_eq!(settings.restart_soon.value, Duration::from_secs(9));
        assert_eq!((settings.restart_burst.value, settings.restart_tries.value.get()), (0, 1));
        assert_eq!(settings.restart_pause.value, Duration::from_secs(10));
        assert_eq!(settings.device_wait.origin.to_string(), "/etc/default/xendomains:19");
    }

    #[test]
    fn the_last_assignment_counts_with_its_line() {
        let settings = valid("XENDOMAINS_SAVE=/a\nXENDOMAINS_SAVE=/b\n");
        assert_eq!(settings.save.value.as_deref(), Some(Path::new("/b")));
        assert!(settings.save.origin.to_string().ends_with(":2"));
        // An earlier value that would be an error does not count at all.
        assert_eq!(valid("XENDOMAINS_USLEEP=x\nXENDOMAINS_USLEEP=4").usleep.value.as_micros(), 4);
    }

    #[test]
    fn shutdown_options_of_both_commands_are_known() {
        let [waiting, asking, none] = with_and_without_wait();
        for (text, expected) in [
            ("", none),
            ("   ", none),
            ("--halt --wait", waiting),
            ("--all --halt --wait", waiting),
            ("--wait", waiting),
            ("-w", waiting),
            ("-H -w", waiting),
            ("-aw", waiting),
            ("-F -w", waiting),
            ("--all", asking),
            ("--halt", asking),
            ("-H", asking),
        ] {
            assert_eq!(valid(&format!("XENDOMAINS_SHUTDOWN='{text}'")).shutdown.value, expected, "{text}");
            assert_eq!(valid(&format!("XENDOMAINS_SHUTDOWN_ALL='{text}'")).shutdown_all.value, expected, "{text}");
        }
    }

    #[test]
    fn bad_values_name_file_and_line() {
        for (text, message) in [
            ("XENDOMAINS_SHUTDOWN=--wiat", "XENDOMAINS_SHUTDOWN: `--wiat`"),
            ("XENDOMAINS_SHUTDOWN=-wx", "`-wx`"),
            ("XENDOMAINS_SHUTDOWN=--reboot", "would come back"),
            ("XENDOMAINS_SHUTDOWN_ALL=-R", "would come back"),
            ("XENDOMAINS_USLEEP=fast", "XENDOMAINS_USLEEP: `fast`"),
            ("XENDOMAINS_USLEEP=-1", "`-1`"),
            ("XENDOMAINS_USLEEP=1.5", "`1.5`"),
            ("XENDOMAINS_STOP_MAXWAIT=99999999999999999999", "`99999999999999999999`"),
            ("XENDOMAINS_SYSRQ='s ei'", "`ei`"),
            ("XENDOMAINS_SYSRQ='s ;'", "`;`"),
            ("XENDOMAINS_SAVE=save", "absolute"),
            ("XENDOMAINS_AUTO=auto", "absolute"),
            ("XENDOMAINS_START_JOBS=0", "at least 1"),
            ("XENDOMAINS_SAVE_JOBS=many", "`many`"),
            ("XENDOMAINS_RESTART_TRIES=0", "at least 1"),
            ("XENDOMAINS_RESTART_BURST=-1", "`-1`"),
            ("XENDOMAINS_RESTART_BURST=4294967296", "`4294967296`"),
            ("XENDOMAINS_RESTORE_FAILED=retry", "`retry`"),
            ("XENDOMAINS_TOOLSTACK=xend", "`xend`"),
            ("XENDOMAINS_MIGRATE='h --ssl'", "XENDOMAINS_MIGRATE: `--ssl`"),
            ("echo hello", "`echo`"),
        ] {
            let settings = parse(&format!("# first\n{text}\n"));
            let [error] = &settings.mistakes[..] else { panic!("{text}: {:?}", settings.mistakes) };
            assert!(error.starts_with("/etc/default/xendomains:2: "), "{error}");
            assert!(error.contains(message), "{text}: {error}");
            assert_eq!(values(settings), values(Settings::defaults()), "{text}");
        }
    }

    #[test]
    fn mistakes_say_what_counts_instead_and_start_refuses_what_it_must_know() {
        for (text, said, unknown) in [
            ("XENDOMAINS_STOP_MAXWAIT=300s", "`300s`: not a number of seconds; 300 counts instead", ""),
            ("XENDOMAINS_SYSRQ=seiuo", "no SysRq is sent", ""),
            ("XENDOMAINS_MIGRATE='b --ssl'", "guests are not migrated", ""),
            ("XENDOMAINS_SHUTDOWN=--halt --wait", "XENDOMAINS_SHUTDOWN: `--wait` is not an assignment", ""),
            ("XENDOMAINS_SHUTDOWN=--halt --wait", "; --halt --wait counts instead", ""),
            ("XENDOMAINS_MIGRATE=$(hostname)", "XENDOMAINS_MIGRATE: command substitution", ""),
            ("XENDOMAINS_MIGRATE=\"a\nXENDOMAINS_USLEEP=100000", "this \" is not closed on its line; guests", ""),
            ("XENDOMAINS_RESTORE=true\r\nXENDOMAINS_AUTO_ONLY=false\r", "DOS line ends", ""),
            ("XENDOMAINS_MIGRATE='\u{fffd}'$1", "XENDOMAINS_MIGRATE", ""),
            ("XENDOMAINS_SAEV=$(x)", "command substitution", ""),
            ("BASE=$(x) # of XENDOMAINS", "command substitution", ""),
            ("XENDOMAINS_SAVE=save", "`save`: must be an absolute path; /var/lib/xen/save counts instead", "SAVE"),
            ("XENDOMAINS_SAVE=$(x)", "/var/lib/xen/save counts instead", "SAVE"),
            ("XENDOMAINS_RESTORE=`x`", "true counts instead", "RESTORE"),
            ("XENDOMAINS_AUTO=a b", "`b` is not an assignment", "AUTO"),
            ("XENDOMAINS_AUTO=a XENDOMAINS_SAVE=$(x)", "XENDOMAINS_SAVE: /var/lib/xen/save counts", "SAVE AUTO"),
            (". /etc/default/other", "`.` is not an assignment", "SAVE RESTORE AUTO"),
            ("\0", "not a text file", "SAVE RESTORE AUTO"),
            ("x\nXENDOMAINS_SAVE=/var/lib/xen/save\nXENDOMAINS_AUTO=/etc/xen/auto", "`x`", "RESTORE"),
        ] {
            let settings = parse(text);
            let [mistake] = &settings.mistakes[..] else { panic!("{text}: {:?}", settings.mistakes) };
            assert!(mistake.starts_with("/etc/default/xendomains:1: ") && mistake.contains(said), "{mistake}");
            assert_eq!(names(&settings.unknown), unknown, "{text}");
        }
        // The last one counts, but a mistake is one.
        let settings = parse("XENDOMAINS_SAVE=$(x)\nXENDOMAINS_SAVE=/a");
        assert_eq!((settings.mistakes.len(), settings.unknown.len()), (1, 0));
        assert_eq!(settings.save.value.as_deref(), Some(Path::new("/a")));
        // Other bytes than UTF-8 are text all the same.
        let settings = Settings::parse(Path::new("/s"), b"# \xe4\nXENDOMAINS_SAVE=/\xe4\nXENDOMAINS_MIGRATE=\xe4");
        assert_eq!((settings.mistakes.len(), settings.unknown.len()), (1, 0), "{:?}", settings.mistakes);
        assert!(
            settings.mistakes[0].contains("not UTF-8 text; guests are not migrated"),
            "{:?}",
            settings.mistakes
        );
    }

    #[test]
    fn the_table_has_the_defaults_and_a_mistake_in_any_setting_costs_that_one() {
        for known in KNOWN {
            let given = parse(&format!("XENDOMAINS_{}='{}'", known.name, known.default));
            assert_eq!(values(given), values(Settings::defaults()), "{}", known.name);
            let mistaken = parse(&format!("XENDOMAINS_DESTROY=true\nXENDOMAINS_{}=$(x)", known.name));
            assert_eq!(mistaken.mistakes.len(), 1, "{:?}", mistaken.mistakes);
            assert!(mistaken.mistakes[0].contains(&known.instead()), "{:?}", mistaken.mistakes);
            assert_eq!(mistaken.destroy.value, known.name != "DESTROY");
            assert_eq!(!mistaken.unknown.is_empty(), known.start_needs, "{}", known.name);
        }
    }

    #[test]
    fn names_that_an_old_file_does_not_mention_are_known() {
        assert_eq!(parse("OPTIONS=x\n#XENDOMAINS_SAVE=/x").unset, Vec::<&Known>::new());
        let old = parse("XENDOMAINS_RESTORE=true\n#XENDOMAINS_SAVE=/x");
        assert!(old.unset.iter().any(|known| known.name == "SAVE"));
        assert!(!old.unset.iter().any(|known| known.name == "RESTORE"));
        // Our own template says what a commented-out name means.
        let template = include_str!("../../packaging/xendomains.default");
        assert_eq!(parse(&format!("{template}\nXENDOMAINS_RESTORE=true\n")).unset, Vec::<&Known>::new());
    }

    #[test]
    fn doubtful_lines_are_warned_about() {
        for (text, message) in [
            ("XENDOMAINS_RESTORE=yes", "`yes` counts as false"),
            ("XENDOMAINS_AUTO_ONLY=TRUE", "`TRUE` counts as false"),
            ("XENDOMAINS_SAEV=/srv", "XENDOMAINS_SAVE"),
            ("XENDOMAINS_SAVE=$SAVEDIR/x", "SAVEDIR"),
        ] {
            let settings = parse(&format!("\n{text}\n"));
            let [warning] = &settings.warnings[..] else { panic!("{text}: {:?}", settings.warnings) };
            assert!(warning.starts_with("/etc/default/xendomains:2: "), "{warning}");
            assert!(warning.contains(message), "{text}: {warning}");
        }
    }

    #[test]
    fn other_names_are_nobodys_business() {
        let settings = valid("OPTIONS=x\nBASE=/srv/xen\nXENDOMAINS_SAVE=$BASE/save\nXENDOMAINS_RESTORE=\n");
        assert_eq!(settings.save.value.as_deref(), Some(Path::new("/srv/xen/save")));
        assert!(!settings.restore.value);
    }

    #[test]
    fn an_empty_number_is_none_and_an_empty_choice_the_default() {
        let settings =
            valid("XENDOMAINS_STOP_MAXWAIT=\nXENDOMAINS_USLEEP=\nXENDOMAINS_START_JOBS=\nXENDOMAINS_TOOLSTACK=");
        assert_eq!(settings.stop_maxwait.value, None);
        assert_eq!(settings.usleep.value, Duration::ZERO);
        assert_eq!(settings.start_jobs.value, None);
        assert_eq!(settings.toolstack.value, ToolstackChoice::Auto);
    }

    #[test]
    fn the_first_file_that_exists_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let usual = [dir.path().join("default"), dir.path().join("sysconfig")];
        assert_eq!(Settings::load(None, &usual), None);
        std::fs::write(&usual[1], "XENDOMAINS_SAVE=/second").expect("write");
        let found = Settings::load(None, &usual).expect("found");
        assert_eq!(found.save.value.as_deref(), Some(Path::new("/second")));
        std::fs::write(&usual[0], "oops").expect("write");
        assert_eq!(Settings::load(None, &usual).expect("found").mistakes.len(), 1);
        // A file that can't be read is no reason to take another one.
        std::fs::remove_file(&usual[0]).expect("remove");
        std::fs::create_dir(&usual[0]).expect("directory");
        for (explicit, words) in [(None, "directory"), (Some(dir.path().join("explicit")), "No such file")] {
            let found = Settings::load(explicit.as_deref(), &usual).expect("found");
            let [mistake] = &found.mistakes[..] else { panic!("{:?}", found.mistakes) };
            assert!(mistake.contains(words) && mistake.contains("the defaults count"), "{mistake}");
            assert_eq!(names(&found.unknown), "SAVE RESTORE AUTO");
            assert_eq!(values(found), values(Settings::defaults()));
        }
    }

    proptest! {
        #[test]
        fn never_panics(known in prop::sample::select(KNOWN), value in "\\PC{0,20}") {
            let quoted = value.replace('\'', "");
            let _ = parse(&format!("XENDOMAINS_{}='{quoted}'", known.name));
        }
    }
}
