//! The whole program over the fake libxl: what happens to guests when calls fail, stall or never come back.

#[path = "../dom0/mod.rs"]
mod dom0;
mod memory;
mod migrate;
#[path = "../target/mod.rs"]
mod target;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use fake_libxl::Control;
use serde_json::{Value, json};
use tempfile::TempDir;
use xendomains::cli::Cli;
use xendomains::guest_config::XlConf;
use xendomains::host::Host;
use xendomains::interrupt::Interrupt;
use xendomains::report::Reporter;
use xendomains::toolstack::Toolstack;
use xendomains::toolstack::libxl::Libxl;
use xendomains::{PATIENCE, Program, run};
use xenlight::{Library, Release};

/// A dom0 of files, with a fake hypervisor of its own.
struct Dom0 {
    directory: TempDir,
    host: Host,
    library: Library,
    control: Control,
    interrupt: Arc<Interrupt>,
}

/// How a run of the program ended and what it said.
struct Ended {
    code: u8,
    said: String,
    took: Duration,
}

#[derive(Clone, Default)]
struct Said(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Said {
    fn text(&self) -> String {
        String::from_utf8(self.0.0.lock().expect("not poisoned").clone()).expect("UTF-8")
    }

    /// Waits until this has been said.
    fn wait_for(&self, words: &str) {
        let (said, more) = &*self.0;
        let not_yet = |said: &mut Vec<u8>| !String::from_utf8_lossy(said).contains(words);
        let said = said.lock().expect("not poisoned");
        let (said, waited) =
            more.wait_timeout_while(said, Duration::from_secs(20), not_yet).expect("not poisoned");
        assert!(!waited.timed_out(), "{words:?} is missing in:\n{}", String::from_utf8_lossy(&said));
    }
}

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (said, more) = &*self.0;
        let written = said.lock().expect("not poisoned").write(bytes);
        more.notify_all();
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Dom0 {
    /// With these running guests, and these lines in the settings file.
    fn new(guests: Value, settings: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let host = dom0::lay_out(directory.path(), settings);
        let path = fake_libxl::install(directory.path(), "4.17");
        let library = Library::open_in(directory.path(), Release::new(4, 17)).expect("the fake opens");
        let control = Control::open(&path);
        control.host(json!({ "domains": guests }));
        let interrupt = Arc::new(Interrupt::new().expect("a descriptor"));
        Self { directory, host, library, control, interrupt }
    }

    fn run(&self, action: &str) -> Ended {
        self.run_and_say(action, &Said::default())
    }

    /// Runs the program; what it says can be read meanwhile.
    fn run_and_say(&self, action: &str, said: &Said) -> Ended {
        let report = Reporter::new(Box::new(said.clone()), Box::new(said.clone()));
        let cli = Cli::try_parse_from(["xendomains", action]).expect("usage");
        let interrupt = &self.interrupt;
        let open = |xl_conf: &XlConf, verbose: bool| -> Result<Box<dyn Toolstack>, Box<dyn std::error::Error>> {
            let interrupt = Arc::clone(interrupt);
            Ok(Box::new(Libxl::with_library(self.library.clone(), xl_conf, verbose, interrupt)?))
        };
        let begun = Instant::now();
        let program = Program {
            host: &self.host,
            open: &open,
            report: &report,
            interrupt,
            sleep: &std::thread::sleep,
            patience: PATIENCE,
        };
        let code = run(&program, &cli).code();
        let took = begun.elapsed();
        Ended { code, said: said.text(), took }
    }

    fn auto(&self, name: &str) {
        dom0::add_guest(self.directory.path(), name, "");
    }

    fn save(&self) -> PathBuf {
        self.directory.path().join("save")
    }

    /// What is in the SAVE directory, hidden files too, but for the records beside the images.
    fn images(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.save()) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.retain(|name| !name.ends_with(".record"));
        names.sort();
        names
    }

    /// The guests that there are: name, and whether each runs (and is not suspended, shut down or paused).
    fn guests(&self) -> Vec<(String, bool)> {
        target::guests(&self.control.state())
    }

    /// Whether this was called for a guest.
    fn called(&self, call: &str, guest: &str) -> bool {
        called(&self.control.state(), call, guest)
    }

    /// No guest ran twice, or from an image that was not its last state, and libxl was not misused.
    fn expect_sound(&self) {
        let state = self.control.state();
        assert_eq!(state["violations"], json!([]));
        assert_eq!(state["refusals"], json!([]));
    }
}

fn eight() -> Value {
    (1..=8).map(|n| json!({"name": format!("g{n}")})).collect()
}

fn called(state: &Value, call: &str, guest: &str) -> bool {
    state["calls"].as_array().expect("calls").iter().any(|made| made["call"] == call && made["name"] == guest)
}

/// Everything but `g3` was dealt with as usual.
fn others(names: &[String]) -> Vec<String> {
    (1..=8).filter(|n| *n != 3).map(|n| format!("g{n}")).filter(|name| names.contains(name)).collect()
}

#[test]
fn guests_are_saved_and_come_back_exactly_once() {
    let dom0 = Dom0::new(eight(), "");
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (0, vec![]), "{}", stop.said);
    assert_eq!(dom0.images().len(), 8);
    let start = dom0.run("start");
    assert_eq!(start.code, 0, "{}", start.said);
    assert_eq!(dom0.guests().iter().filter(|(_, runs)| *runs).count(), 8);
    assert_eq!(dom0.images(), [""; 0]);
    let again = dom0.run("start");
    assert_eq!((again.code, dom0.guests().len()), (0, 8), "{}", again.said);
    dom0.expect_sound();
}

#[test]
fn one_of_eight_saves_that_fails_costs_the_others_nothing() {
    for fault in [
        json!({"call": "libxl_domain_suspend", "domain": "g3", "start_error": -3}),
        json!({"call": "libxl_domain_suspend", "domain": "g3", "error": -3, "partial_bytes": 100}),
        json!({"call": "libxl_domain_suspend", "domain": "g3", "error": -8}),
        json!({"call": "libxl_domain_suspend", "domain": "g3", "complete": "never", "partial_bytes": 100}),
        json!({"call": "libxl_retrieve_domain_configuration", "domain": "g3", "error": -16}),
    ] {
        let dom0 = Dom0::new(eight(), "XENDOMAINS_STOP_MAXWAIT=2\n");
        dom0.control.script(fault.clone());
        let stop = dom0.run("stop");
        assert_eq!(stop.code, 1, "{fault}: {}", stop.said);
        assert!(stop.said.contains("g3"), "{fault}: {}", stop.said);
        // The next step of the chain: it was shut down instead.
        assert_eq!(dom0.guests(), [], "{fault}: {}", stop.said);
        let images = dom0.images();
        assert_eq!(others(&images).len(), 7, "{fault}: {images:?}");
        assert_eq!(images.len(), 7, "nothing partial is left: {images:?}");
        assert!(stop.took < Duration::from_secs(30), "{fault}: {:?}", stop.took);
        dom0.expect_sound();
    }
}

#[test]
fn a_guest_that_is_not_to_be_shut_down_runs_on_after_a_failed_save() {
    let settings = "XENDOMAINS_STOP_MAXWAIT=1\nXENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n";
    let dom0 = Dom0::new(json!([{"name": "web"}]), settings);
    dom0.control.script(json!({"call": "libxl_domain_suspend", "complete": "never", "partial_bytes": 4096}));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert_eq!(dom0.guests(), [("web".to_owned(), true)], "{}", stop.said);
    assert_eq!(dom0.images(), [""; 0]);
    dom0.expect_sound();
}

#[test]
fn a_guest_that_suspends_after_the_save_was_given_up_is_resumed_too() {
    let settings = "XENDOMAINS_STOP_MAXWAIT=1\nXENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n";
    let guests = json!([{"name": "web", "guest": {"suspend_ms": 2500}}]);
    let dom0 = Dom0::new(guests, settings);
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    let took = stop.took.as_millis();
    assert!((2400..20_000).contains(&took), "waited for the suspend and no longer: {took} ms");
    assert_eq!(dom0.guests(), [("web".to_owned(), true)], "{}", stop.said);
    dom0.expect_sound();
}

#[test]
fn a_guest_that_can_not_be_resumed_is_reported_and_left_alone() {
    let dom0 = Dom0::new(json!([{"name": "web"}, {"name": "db"}]), "XENDOMAINS_STOP_MAXWAIT=2\n");
    dom0.control.script(json!([
        {"call": "libxl_domain_suspend", "domain": "web", "error": -3},
        {"call": "libxl_domain_resume", "domain": "web", "error": -3},
    ]));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert!(stop.said.contains("web") && stop.said.contains("SUSPENDED"), "{}", stop.said);
    assert_eq!(dom0.guests(), [("web".to_owned(), false)], "db is done, web is still there: {}", stop.said);
    assert!(!dom0.called("libxl_domain_shutdown", "web"), "it can't answer a shutdown request");
    dom0.expect_sound();
}

#[test]
fn a_deaf_guest_takes_its_limit_and_the_others_do_not_wait_for_it() {
    let mut guests = eight();
    guests[2]["guest"] = json!({"shutdown": "ignore"});
    let settings = "XENDOMAINS_SAVE=\nXENDOMAINS_STOP_MAXWAIT=1\nXENDOMAINS_SHUTDOWN_ALL=\n";
    let dom0 = Dom0::new(guests, settings);
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert_eq!(dom0.guests(), [("g3".to_owned(), true)], "{}", stop.said);
    assert!(stop.took < Duration::from_secs(10), "{:?}", stop.took);
}

#[test]
fn a_request_that_went_unanswered_is_repeated() {
    // The first request times out, as when the guest is still booting; the second is obeyed.
    let dom0 = Dom0::new(json!([{"name": "web"}]), "XENDOMAINS_SAVE=\n");
    dom0.control.script(json!({"call": "libxl_domain_shutdown", "nth": 1, "error": -9, "delay_ms": 50}));
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (0, vec![]), "{}", stop.said);
}

#[test]
fn a_guest_without_pv_drivers_gets_the_power_button() {
    let guests = json!([{"name": "win", "type": "hvm", "guest": {"pv_drivers": false}}]);
    let dom0 = Dom0::new(guests, "XENDOMAINS_SAVE=\n");
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (0, vec![]), "{}", stop.said);
    assert!(dom0.called("libxl_send_trigger", "win"));
}

#[test]
fn a_broken_restore_keeps_the_image_and_starts_nothing_over_it() {
    for fault in [
        json!({"call": "libxl_domain_create_restore", "nth": 1, "error": -3}),
        json!({"call": "libxl_domain_create_restore", "nth": 1, "start_error": -6}),
        json!({"call": "libxl_domain_unpause", "nth": 1, "error": -3}),
    ] {
        let dom0 = Dom0::new(json!([{"name": "web"}, {"name": "db"}]), "XENDOMAINS_START_JOBS=1\n");
        dom0.auto("web");
        dom0.auto("db");
        assert_eq!(dom0.run("stop").code, 0);
        assert_eq!(dom0.images(), ["db", "web"]);
        dom0.control.script(fault.clone());
        let start = dom0.run("start");
        assert_eq!(start.code, 1, "{fault}: {}", start.said);
        // db was first, and failed; its image is where it was.
        assert_eq!(dom0.guests(), [("web".to_owned(), true)], "{fault}: {}", start.said);
        assert_eq!(dom0.images(), ["db"], "{fault}");
        // The next start finds nothing wrong any more.
        let again = dom0.run("start");
        assert_eq!(again.code, 0, "{fault}: {}", again.said);
        assert_eq!(dom0.guests().len(), 2);
        assert_eq!(dom0.images(), [""; 0]);
        dom0.expect_sound();
    }
}

#[test]
fn a_creation_that_fails_leaves_no_half_made_domain() {
    let dom0 = Dom0::new(json!([]), "");
    for name in ["a", "b", "c"] {
        dom0.auto(name);
    }
    dom0.control.script(json!({"call": "libxl_domain_create_new", "nth": 2, "error": -3,
                               "log": [{"level": 8, "text": "no bridge xenbr7"}]}));
    let start = dom0.run("start");
    assert_eq!(start.code, 1, "{}", start.said);
    assert!(start.said.contains("b:") && start.said.contains("no bridge xenbr7"), "{}", start.said);
    assert_eq!(dom0.guests(), [("a".to_owned(), true), ("c".to_owned(), true)]);
}

#[test]
fn a_broken_hypervisor_connection_is_an_error_and_not_an_empty_host() {
    let dom0 = Dom0::new(json!([{"name": "web"}]), "");
    dom0.control.script(json!({"call": "libxl_list_domain", "start_error": -3}));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    let status = dom0.run("status");
    assert_eq!(status.code, 4, "{}", status.said);
    let dom0 = Dom0::new(json!([{"name": "web"}]), "");
    dom0.control.script(json!({"call": "libxl_ctx_alloc", "start_error": -3}));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 5, "{}", stop.said);
}

#[test]
fn a_disaster_in_the_middle_of_a_stop_ends_it_with_an_error() {
    let dom0 = Dom0::new(json!([{"name": "web"}, {"name": "db"}]), "");
    dom0.control.script(json!({"call": "libxl_domain_suspend", "domain": "web", "disaster": "xenstored is gone",
                               "complete": "never"}));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert!(stop.said.contains("xenstored is gone"), "{}", stop.said);
    assert!(stop.took < Duration::from_secs(30), "{:?}", stop.took);
}

#[test]
fn migrations_stub_domains_and_xenstore_domains_are_not_touched() {
    let guests = json!([
        {"name": "web--migratedaway", "shutdown": 2}, {"name": "db--incoming", "paused": true},
        {"name": "Xenstore", "never_stop": true}, {"name": "win"}, {"name": "win-dm", "stubdom_of": 4},
    ]);
    let dom0 = Dom0::new(guests, "XENDOMAINS_SAVE=\n");
    let stop = dom0.run("stop");
    let left: Vec<String> = dom0.guests().into_iter().map(|(name, _)| name).collect();
    for kept in ["web--migratedaway", "db--incoming", "Xenstore", "win-dm"] {
        assert!(left.iter().any(|name| name == kept), "{kept} is gone: {left:?}\n{}", stop.said);
    }
    assert!(!left.iter().any(|name| name == "win"), "{left:?}");
}

#[test]
fn told_to_end_a_stop_lets_the_guests_run_on_that_it_was_saving() {
    for (settings, fault) in [
        ("", json!({"call": "libxl_domain_suspend", "complete": "never", "partial_bytes": 4096})),
        ("XENDOMAINS_SAVE=\n", json!({"call": "libxl_domain_shutdown", "complete": "never"})),
    ] {
        let guests = json!([{"name": "web", "guest": {"shutdown": "ignore"}}]);
        let dom0 = Dom0::new(guests, &format!("XENDOMAINS_STOP_MAXWAIT=0\n{settings}"));
        dom0.control.script(fault.clone());
        let call = fault["call"].as_str().expect("a name");
        let stop = std::thread::scope(|scope| {
            let stop = scope.spawn(|| dom0.run("stop"));
            // A guest that is saved has got as far as being suspended: what was asked for can't be taken back.
            let is_suspended = |state: &Value| state["domains"]["1"]["shutdown"] == 2;
            dom0.control.wait(|state| called(state, call, "web") && (!settings.is_empty() || is_suspended(state)));
            dom0.interrupt.ask();
            stop.join().expect("no panic")
        });
        assert_eq!(stop.code, 1, "{}", stop.said);
        assert!(stop.said.contains("told to end"), "{}", stop.said);
        assert_eq!(dom0.guests(), [("web".to_owned(), true)], "{}", stop.said);
        assert_eq!(dom0.images(), [""; 0]);
        assert!(stop.took < Duration::from_secs(10), "{:?}", stop.took);
        dom0.expect_sound();
    }
}

#[test]
fn one_of_eight_guests_broken_in_any_way_costs_the_others_nothing() {
    let broken: [(&str, &str, Value, Value); 5] = [
        ("reboots instead", "", json!({"shutdown": "reboot"}), json!([])),
        ("crashes instead", "", json!({"shutdown": "crash"}), json!([])),
        ("crashes while it is saved", "/save", json!({"suspend": "crash"}), json!([])),
        ("ignores the suspend", "/save", json!({"suspend": "ignore", "timeout_ms": 500}), json!([])),
        (
            "can't be destroyed",
            "/save",
            json!({}),
            json!([{"call": "libxl_domain_destroy", "domain": "g3", "nth": 1, "error": -3}]),
        ),
    ];
    for (what, save, behaviour, script) in broken {
        let mut guests = eight();
        guests[2]["guest"] = behaviour;
        let dom0 = Dom0::new(guests, "XENDOMAINS_STOP_MAXWAIT=3\n");
        if save.is_empty() {
            let file = dom0.directory.path().join("settings");
            let text = fs::read_to_string(&file).expect("the settings") + "XENDOMAINS_SAVE=\n";
            fs::write(file, text).expect("a file");
        }
        dom0.control.script(script);
        let stop = dom0.run("stop");
        // A reboot or a crash is an end too; the rest is a failure that names the guest.
        let is_end = save.is_empty();
        assert_eq!(stop.code, u8::from(!is_end), "{what}: {}", stop.said);
        assert!(is_end || stop.said.contains("g3: "), "{what}: {}", stop.said);
        let others: Vec<_> = dom0.guests().into_iter().filter(|(name, _)| name != "g3").collect();
        assert_eq!(others, [], "{what}: {}", stop.said);
        assert!(stop.took < Duration::from_secs(20), "{what}: {:?}", stop.took);
        dom0.expect_sound();
    }
}

#[test]
fn guests_of_one_order_stop_before_those_of_the_next_begin() {
    let dom0 =
        Dom0::new(json!([{"name": "dns", "guest": {"down_ms": 20}}, {"name": "web"}]), "XENDOMAINS_SAVE=\n");
    for (name, order) in [("dns", 1), ("web", 2)] {
        dom0.auto(name);
        let file = dom0.directory.path().join("auto").join(name);
        let text = fs::read_to_string(&file).expect("a file");
        fs::write(file, format!("{text}xendomains = [ \"order={order}\" ]\n")).expect("a file");
    }
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (0, vec![]), "{}", stop.said);
    let calls = dom0.control.state()["calls"].clone();
    let made = |call: &str, guest: &str| {
        let calls = calls.as_array().expect("calls");
        calls.iter().position(|made| made["call"] == call && made["name"] == guest)
    };
    assert!(made("libxl_domain_destroy", "web") < made("libxl_domain_shutdown", "dns"), "{calls}");
}

#[test]
fn guests_are_kept_to_the_cpus_of_xl_conf_when_they_are_made_and_when_they_come_back() {
    let dom0 = Dom0::new(json!([]), "");
    dom0.control.host(json!({"cpus": 4, "nodes": 2}));
    let at = |name: &str| dom0.directory.path().join(name);
    let conf = |text: &str| fs::write(at("xl.conf"), text).expect("a file");
    conf("vm.hvm.cpumask = \"node:1\"\n");
    dom0.auto("web");
    let text = fs::read_to_string(at("auto/web")).expect("a file") + "vcpus = 1\n";
    fs::write(at("auto/web"), text).expect("a file");
    let made = |call: &str| {
        let state = dom0.control.state();
        let calls = state["calls"].as_array().expect("calls");
        let call = calls.iter().rfind(|made| made["call"] == call).unwrap_or_else(|| panic!("{call}: {calls:?}"));
        let config = &call["args"]["config"];
        (config["b_info"]["vcpu_hard_affinity"].clone(), config["c_info"]["domid"].clone())
    };
    let start = dom0.run("start");
    assert_eq!(start.code, 0, "{}", start.said);
    assert_eq!(made("libxl_domain_create_new"), (json!([[2, 3]]), Value::Null));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 0, "{}", stop.said);
    conf("vm.hvm.cpumask = \"3\"\ndomid_policy = \"random\"\n");
    let start = dom0.run("start");
    assert_eq!(start.code, 0, "{}", start.said);
    assert_eq!(made("libxl_domain_create_restore"), (json!([[3]]), json!(4_294_967_294_u32)));
    dom0.expect_sound();
}
