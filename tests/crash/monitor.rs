//! A monitor that is killed wherever it changes something, while guests end: the next one goes on, so that each guest that
//! is to run again does so, and each was started once more and not twice.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xendomains::interrupt::Interrupt;

use super::{Death, Dom0, GUESTS, KILL, at_every_cut};

/// The calls in which the fake dies.
const CALLS: &[&str] = &[
    "libxl_domain_destroy",
    "libxl_domain_create_new",
    "libxl_domain_unpause",
    "libxl_domain_preserve",
    "libxl_domain_core_dump",
    "libxl_domain_soft_reset",
    "libxl_userdata_store",
];

/// In a child that is a monitor: ends it when the test closes its standard input.
pub fn end_with_standard_input(interrupt: &Arc<Interrupt>) {
    let interrupt = Arc::clone(interrupt);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        interrupt.ask();
    });
}

/// What a guest does, and what its file says for that.
#[derive(Clone, Copy)]
struct Case {
    does: &'static str,
    kind: &'static str,
    says: &'static str,
    /// Whether it runs again.
    returns: bool,
    /// Whether what is left of it is kept.
    kept: bool,
    /// Whether that is another life, and not the same one gone on with.
    anew: bool,
}

impl Case {
    const fn new(does: &'static str, says: &'static str) -> Case {
        Case { does, kind: "pvh", says, returns: true, kept: false, anew: true }
    }
}

/// A host with two guests that have ended while nobody was there.
fn host(cases: &[Case; 2]) -> Dom0 {
    let dom0 = Dom0::new();
    for ((name, uuid), case) in GUESTS.iter().zip(cases) {
        let kernel = dom0.path("type");
        let text = format!(
            "name = \"{name}\"\nuuid = \"{uuid}\"\ntype = \"{}\"\n{}memory = 128\n{}\n",
            case.kind,
            if case.kind == "hvm" { String::new() } else { format!("kernel = \"{}\"\n", kernel.display()) },
            case.says
        );
        fs::write(dom0.path("auto").join(name), text).expect("a file");
    }
    dom0.succeeds("start");
    for ((name, _), case) in GUESTS.iter().zip(cases) {
        dom0.state.guest(&json!({"domain": name, "does": case.does}));
    }
    dom0
}

/// Everything has come to its end.
fn is_done(dom0: &Dom0, state: &Value, cases: &[Case; 2]) -> bool {
    let of = |name: &str| {
        let domains = state["domains"].as_object().expect("domains");
        domains.values().find(|domain| domain["name"] == name).cloned()
    };
    let no_restarts = fs::read_dir(dom0.path("run/restarts")).map_or(0, |entries| {
        entries.flatten().filter(|e| !e.file_name().to_string_lossy().starts_with('.')).count()
    }) == 0;
    no_restarts
        && GUESTS.iter().zip(cases).all(|((name, _), case)| match of(name) {
            Some(domain) => case.returns && domain["shutdown"].is_null() && domain["paused"] == false,
            None => !case.returns,
        })
}

/// Runs a monitor until it has died or everything is done.
fn run(dom0: &Dom0, death: &Death, cases: &[Case; 2]) -> ExitStatus {
    let mut command = dom0.command("monitor", death);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts; a missing strace is in the package of that name");
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if is_done(dom0, &dom0.state.state(), cases) {
            drop(child.stdin.take());
            return child.wait().expect("a child");
        }
        assert!(Instant::now() < end, "{death:?}: {:#}", dom0.state.state()["domains"]);
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One death, and the monitor after it. Says whether the first one has died of it.
fn is_cut(cases: &[Case; 2], death: &Death, number: usize) -> bool {
    let dom0 = host(cases);
    // Where both are to run, a start that finds no monitor may come before the next one.
    let start_between = number % 2 == 1 && cases.iter().all(|case| case.returns && !case.kept);
    let status = run(&dom0, death, cases);
    if status.code() == Some(0) {
        return false;
    }
    assert_eq!(status.signal(), Some(KILL), "{death:?}: {status:?}");
    let context = format!("{death:?} (number {number})");
    if start_between {
        // What is left may be in its way.
        dom0.run("start");
    }
    assert_eq!(run(&dom0, &Death::None, cases).code(), Some(0), "{context}");
    let state = dom0.state.state();
    assert_eq!((&state["violations"], &state["refusals"]), (&json!([]), &json!([])), "{context}");
    let domains = state["domains"].as_object().expect("domains");
    for ((name, uuid), case) in GUESTS.iter().zip(cases) {
        let runs = state["runs"][uuid].as_array().map_or(0, Vec::len);
        assert_eq!(runs, if case.returns && case.anew { 2 } else { 1 }, "{context}: {name}");
        let all = domains.values().filter(|domain| domain["uuid"] == *uuid).count();
        assert_eq!(all, usize::from(case.returns) + usize::from(case.kept), "{context}: {name}");
        let marked = domains.values().filter(|domain| domain["name"] == *name);
        for mark in marked.map(|domain| domain["userdata"]["xendomains"].as_str().unwrap_or_default()) {
            let mark: Value = serde_json::from_str(mark).expect("a mark");
            let restarts = mark["restarts"].as_u64().expect("a number");
            assert!(restarts == 1 || (start_between && restarts == 0), "{context}: {name}: {restarts} restarts");
            assert_eq!(mark["kept"], false, "{context}: {name}");
        }
        if case.says.contains("coredump") {
            assert!(dom0.path("dump").join(name).is_file(), "{context}: {name}");
        }
    }
    let hidden = |path: &str| {
        let entries = fs::read_dir(dom0.path(path)).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with('.')).count()
    };
    assert_eq!(hidden("dump"), 0, "{context}");
    true
}

fn killed_at_every_cut(what: &str, cases: &[Case; 2]) {
    at_every_cut(what, CALLS, |death, number| is_cut(cases, death, number));
}

#[test]
fn a_monitor_that_is_killed_while_guests_reboot() {
    let renamed = Case { kept: true, ..Case::new("reboot", "on_reboot = \"rename-restart\"") };
    killed_at_every_cut("monitor, reboots", &[Case::new("reboot", ""), renamed]);
}

#[test]
fn a_monitor_that_is_killed_while_guests_crash() {
    let gone = Case { returns: false, ..Case::new("poweroff", "on_poweroff = \"coredump-destroy\"") };
    killed_at_every_cut("monitor, crashes", &[Case::new("crash", "on_crash = \"coredump-restart\""), gone]);
}

#[test]
fn a_monitor_that_is_killed_before_a_start() {
    killed_at_every_cut(
        "monitor, then start",
        &[Case::new("reboot", ""), Case::new("crash", "on_crash = \"restart\"")],
    );
}

/// A reset that was cut off in the middle ends as a restart.
#[test]
fn a_monitor_that_is_killed_while_it_resets_a_guest() {
    let reset = Case { kind: "hvm", anew: false, ..Case::new("soft_reset", "") };
    let dom0 = host(&[reset, Case::new("reboot", "")]);
    let cases = [reset, Case::new("reboot", "")];
    assert_eq!(run(&dom0, &Death::None, &cases).code(), Some(0));
    // The fake's reset has no middle.
    for (call, point) in [
        ("libxl_domain_soft_reset", "before"),
        ("libxl_domain_soft_reset", "after"),
        ("libxl_domain_unpause", "before"),
        ("libxl_domain_unpause", "after"),
    ] {
        let dom0 = host(&cases);
        let rule = json!([{"call": call, "nth": 1, "domain": GUESTS[0].0, "die": point, "signal": KILL}]);
        assert_eq!(run(&dom0, &Death::Call(rule), &cases).signal(), Some(KILL), "{call} {point}");
        assert_eq!(run(&dom0, &Death::None, &cases).code(), Some(0), "{call} {point}");
        let state = dom0.state.state();
        assert_eq!((&state["violations"], &state["refusals"]), (&json!([]), &json!([])), "{call} {point}");
        let runs = state["runs"][GUESTS[0].1].as_array().map_or(0, Vec::len);
        assert!((1..=2).contains(&runs), "{call} {point}: {runs}");
    }
}
