//! The whole program, killed wherever that can make a difference, and run again: every guest then runs exactly once.
//!
//! The program is this test executable in another role, over the fake libxl, whose host is in a file and outlives it. It
//! is killed by strace at every system call that changes a file, of which some are the fake hypervisor's own: that
//! covers the time between any two things that the program does. Within what libxl does, the fake itself dies.

#[path = "../dom0/mod.rs"]
mod dom0;
mod migrate;
mod monitor;
#[path = "../target/mod.rs"]
mod target;

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use fake_libxl::StateFile;
use serde_json::{Value, json};
use tempfile::TempDir;
use xendomains::cli::Cli;
use xendomains::guest_config::XlConf;
use xendomains::interrupt::Interrupt;
use xendomains::report::Reporter;
use xendomains::settings::ToolstackChoice;
use xendomains::toolstack::Toolstack;
use xendomains::toolstack::libxl::Libxl;
use xendomains::{Program, run};
use xenlight::{Library, Release};

/// The system calls that change files, but for those that write into them: what is written counts when it gets its name.
const CHANGES: &[&str] = &["rename", "renameat2", "unlink", "mkdir", "fsync", "fallocate", "ftruncate"];

/// The calls in which the fake dies.
const CALLS: &[&str] = &[
    "libxl_domain_suspend",
    "libxl_domain_destroy",
    "libxl_domain_create_restore",
    "libxl_domain_create_new",
    "libxl_domain_unpause",
];

/// Each of the tests here must find at least so many cut points, which makes a hundred.
const FEWEST: usize = 20;

const GUESTS: [(&str, &str); 2] =
    [("db", "4b1d7a52-6c2e-4f0a-9d53-1f0c7a7e0a01"), ("web", "4b1d7a52-6c2e-4f0a-9d53-1f0c7a7e0a02")];

/// The signal that can't be caught.
const KILL: i32 = 9;

/// In a child: the program. Otherwise: one that is told nonsense must fail, or the other tests would prove nothing.
#[test]
fn play() {
    let Ok(action) = std::env::var("CRASH_ACTION") else {
        let dom0 = Dom0::new();
        let ended = dom0.program("nonsense", &Death::None);
        assert!(!ended.status.success() && dom0.run("start").0 == 0, "{ended:?}");
        return;
    };
    let directory = PathBuf::from(std::env::var_os("CRASH_DOM0").expect("a directory"));
    // SAFETY: the fake behaves like libxl.
    let library = unsafe { Library::open_in(&directory, Release::new(4, 17)) }.expect("the fake opens");
    let report = Reporter::new(Box::new(std::io::stdout()), Box::new(std::io::stderr()));
    let interrupt = Arc::new(Interrupt::new().expect("a descriptor"));
    let open = |_: ToolstackChoice,
                xl_conf: &XlConf,
                verbose: bool|
     -> Result<Box<dyn Toolstack>, Box<dyn std::error::Error>> {
        Ok(Box::new(Libxl::with_library(library.clone(), xl_conf, verbose, Arc::clone(&interrupt))?))
    };
    let program = Program {
        host: &dom0::host(&directory),
        open: &open,
        report: &report,
        interrupt: &interrupt,
        sleep: &std::thread::sleep,
        patience: Duration::from_secs(1),
        spawn_monitor: None,
    };
    if action == "monitor" {
        monitor::end_with_standard_input(&interrupt);
    }
    let cli = Cli::try_parse_from(["xendomains", &action]).expect("usage");
    std::process::exit(run(&program, &cli).code().into());
}

/// How a run of the program is to end.
#[derive(Clone, Debug)]
enum Death {
    /// By itself.
    None,
    /// When it makes this system call for the so-many-th time, which is then not made.
    Change(&'static str, usize),
    /// By these rules of the fake.
    Call(Value),
}

/// A host in a directory, with its guests in AUTO.
struct Dom0 {
    directory: TempDir,
    state: StateFile,
}

impl Dom0 {
    fn new() -> Dom0 {
        // In memory, because the program syncs all that it writes, and what a sync does to a disk is not the question.
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let home = directory.path();
        // One guest at a time, so that most is done by one thread: strace counts the calls of each.
        dom0::lay_out(home, "XENDOMAINS_SAVE_JOBS=1\nXENDOMAINS_START_JOBS=1\n");
        for (order, (name, uuid)) in GUESTS.iter().enumerate() {
            let more = format!("uuid = \"{uuid}\"\nxendomains = [ \"order={order}\" ]\n");
            dom0::add_guest(home, name, &more);
        }
        symlink(fake_libxl::built(), home.join("libxenlight.so.4.17")).expect("a link");
        let state = StateFile::new(&home.join("state"));
        Dom0 { directory, state }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs the program in a process of its own.
    fn program(&self, action: &str, death: &Death) -> Output {
        self.command(action, death).output().expect("starts; a missing strace is in the package of that name")
    }

    fn command(&self, action: &str, death: &Death) -> Command {
        let this = std::env::current_exe().expect("a test knows its own path");
        let mut command = match death {
            Death::Change(call, nth) => {
                let mut strace = Command::new("strace");
                let (only, kill) = (format!("trace={call}"), format!("inject={call}:signal=SIGKILL:when={nth}"));
                strace.args(["-f", "-o", "/dev/null", "-e", &only, "-e", &kill]).arg(this);
                strace
            }
            _ => Command::new(this),
        };
        if let Death::Call(rules) = death {
            fs::write(self.path("script"), rules.to_string()).expect("a file");
            command.env("FAKE_LIBXL_SCRIPT", self.path("script"));
        }
        command
            .args(["--exact", "play", "--nocapture", "--test-threads=1"])
            .env("CRASH_ACTION", action)
            .env("CRASH_DOM0", self.directory.path())
            .env("FAKE_LIBXL_STATE", self.path("state"))
            .env("RUST_BACKTRACE", "0");
        command
    }

    /// Runs the program to its end: its exit code, and what it said.
    fn run(&self, action: &str) -> (i32, String) {
        let ended = self.program(action, &Death::None);
        let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
        (ended.status.code().unwrap_or(-1), said.into_owned())
    }

    /// Runs the program, which must succeed.
    fn succeeds(&self, action: &str) -> String {
        let (code, said) = self.run(action);
        assert_eq!(code, 0, "{action}: {said}");
        said
    }

    /// The host has lost its power and is up again: all guests are gone, and what does not outlive a boot.
    fn cut_power(&self) {
        for domid in self.domains().iter().map(|domain| &domain["domid"]) {
            self.state.guest(&json!({"domain": domid, "does": "vanish"}));
        }
        fs::write(self.path("boot_id"), "7c9a4a3e-2f0f-4c1b-9f67-0a3f4f0f6a02\n").expect("a file");
        for gone in ["run", "lock"] {
            let _ = fs::remove_dir_all(self.path(gone));
        }
        fs::create_dir(self.path("lock")).expect("a directory");
    }

    fn domains(&self) -> Vec<Value> {
        let state = self.state.state();
        let domains = state["domains"].as_object().expect("domains");
        domains.values().filter(|domain| domain["domid"] != 0).cloned().collect()
    }

    /// Every guest runs once, and from nothing but its last state.
    fn expect_running(&self) {
        let mut runs: Vec<_> = self.domains().into_iter().collect();
        runs.sort_by_key(|domain| domain["name"].to_string());
        let names: Vec<_> = runs.iter().map(|domain| domain["name"].as_str().unwrap_or("(none)")).collect();
        assert_eq!(names, GUESTS.map(|(name, _)| name));
        assert!(runs.iter().all(|domain| domain["shutdown"].is_null() && domain["paused"] == false), "{runs:?}");
        let state = self.state.state();
        assert_eq!(state["violations"], json!([]));
        assert_eq!(state["refusals"], json!([]));
    }

    /// What is in the SAVE directory.
    fn files(&self) -> Vec<String> {
        files(&self.path("save"))
    }
}

fn files(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<_> = entries.map(|entry| name(entry).into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// What happens after the program was killed.
#[derive(Clone, Copy, Debug)]
enum After {
    Start,
    StopAndStart,
    PowerCut,
}

/// Has the program killed wherever it can be: at changes of files, and in these calls. `is_cut` does so, with a number that
/// counts the deaths, and says whether the program has died.
fn at_every_cut(what: &str, calls: &[&str], is_cut: impl Fn(&Death, usize) -> bool + Sync) {
    let changes = || {
        // The last one of each is never reached.
        let is_reached = |call, nth| is_cut(&Death::Change(call, nth), nth);
        CHANGES.iter().map(|call| (1..).take_while(|nth| is_reached(call, *nth)).count()).sum::<usize>()
    };
    let calls = || {
        let mut cuts = 0;
        for (call, nth) in calls.iter().flat_map(|call| [(call, 1), (call, 2)]) {
            for point in ["before", "during", "after"] {
                let rule = json!([{"call": call, "nth": nth, "die": point, "signal": KILL}]);
                cuts += usize::from(is_cut(&Death::Call(rule), cuts));
            }
        }
        cuts
    };
    // Mostly the program waits for strace, or strace for it.
    let (changes, calls) = std::thread::scope(|scope| {
        let changes = scope.spawn(changes);
        let calls = calls();
        (changes.join().expect("no other thread has failed"), calls)
    });
    let cuts = changes + calls;
    println!("{what}: {cuts} cut points, {changes} of them at changes of files");
    assert!(cuts >= FEWEST, "{what}: only {cuts} cut points");
}

/// The same for a start or stop of such a host, and each time goes on in another way.
fn killed_at_every_cut(what: &str, prepare: impl Fn(&Dom0) + Sync, action: &str) {
    at_every_cut(what, CALLS, |death, number| is_cut(&prepare, action, death, number));
}

/// One death, and what comes after it. Says whether the program has died of it.
fn is_cut(prepare: &impl Fn(&Dom0), action: &str, death: &Death, number: usize) -> bool {
    // Every second death is followed by a power cut as well.
    let ways: &[After] = if number % 2 == 0 { &[After::Start, After::PowerCut] } else { &[After::StopAndStart] };
    for &after in ways {
        let dom0 = Dom0::new();
        prepare(&dom0);
        let ended = dom0.program(action, death);
        if ended.status.code() == Some(0) {
            return false;
        }
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.signal(), Some(KILL), "{death:?}: {:?}: {said}", ended.status);
        let case = format!("{action}, {death:?}, {after:?}, then {:?}", files(&dom0.path("save")));
        let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| go_on(&dom0, after)));
        assert!(passed.is_ok(), "in this case: {case}");
    }
    true
}

fn go_on(dom0: &Dom0, after: After) {
    match after {
        After::Start => {}
        After::StopAndStart => drop(dom0.succeeds("stop")),
        After::PowerCut => dom0.cut_power(),
    }
    let said = dom0.succeeds("start");
    dom0.expect_running();
    let left = dom0.files();
    // What was restored or replaced may be kept, but is nothing that a start would look at.
    assert!(left.iter().all(|name| name.ends_with(".restored") || name.ends_with(".record")), "{left:?}\n{said}");
    // A whole stop and start leave no more than they found.
    if !matches!(after, After::StopAndStart) {
        dom0.succeeds("stop");
        dom0.succeeds("start");
        dom0.expect_running();
    }
    let aside = |files: &[String]| files.iter().filter(|name| name.ends_with(".restored")).count();
    let end = dom0.files();
    assert_eq!(aside(&end), aside(&left), "{left:?} {end:?}");
    assert!(end.iter().all(|name| name.ends_with(".restored") || name.ends_with(".record")), "{end:?}");
    assert!(end.len() <= 2 * aside(&end), "records of nothing: {end:?}");
}

/// Two guests that run.
fn running(dom0: &Dom0) {
    let domains: Vec<_> = GUESTS.iter().map(|(name, uuid)| json!({"name": name, "uuid": uuid})).collect();
    dom0.state.host(&json!({ "domains": domains }));
}

#[test]
fn a_stop_that_is_killed_while_it_saves() {
    killed_at_every_cut("stop", running, "stop");
}

#[test]
fn a_start_that_is_killed_while_it_restores() {
    let saved = |dom0: &Dom0| {
        running(dom0);
        dom0.succeeds("stop");
    };
    killed_at_every_cut("start of saved guests", saved, "start");
}

#[test]
fn a_start_that_is_killed_while_it_creates() {
    killed_at_every_cut("start of guests from AUTO", |_| {}, "start");
}

/// libxl does not come back from a call in the middle of a stop that has a limit: that ends, says so, and the next ones
/// put right what it has left.
#[test]
fn a_stop_whose_call_never_comes_back_ends() {
    for call in ["libxl_retrieve_domain_configuration", "libxl_domain_suspend", "libxl_domain_destroy"] {
        let dom0 = Dom0::new();
        running(&dom0);
        let mut settings = fs::read_to_string(dom0.path("settings")).expect("settings");
        settings += "XENDOMAINS_STOP_TIMEOUT=1\n";
        fs::write(dom0.path("settings"), settings).expect("a file");
        let began = Instant::now();
        let ended = dom0.program("stop", &Death::Call(json!([{"call": call, "stall_ms": 600_000}])));
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{call}: {said}");
        assert!(said.contains("does not come back: giving up"), "{call}: {said}");
        assert!(began.elapsed() < Duration::from_secs(60), "{call}");
        dom0.succeeds("start");
        dom0.expect_running();
    }
}

/// After a first death, so that the second one comes while the program puts right what that has left.
#[test]
fn a_stop_that_is_killed_after_one_that_was() {
    let rule = json!([{"call": "libxl_domain_suspend", "nth": 1, "die": "after", "signal": KILL}]);
    let interrupted = |dom0: &Dom0| {
        running(dom0);
        dom0.program("stop", &Death::Call(rule.clone()));
    };
    killed_at_every_cut("stop after a killed one", interrupted, "stop");
}

#[test]
fn a_start_that_is_killed_after_one_that_was() {
    let rule = json!([{"call": "libxl_domain_unpause", "nth": 1, "die": "before", "signal": KILL}]);
    let interrupted = |dom0: &Dom0| {
        running(dom0);
        dom0.succeeds("stop");
        dom0.program("start", &Death::Call(rule.clone()));
    };
    killed_at_every_cut("start after a killed one", interrupted, "start");
}
