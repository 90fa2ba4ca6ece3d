//! The monitor over the fake libxl: what becomes of guests that end, and how it goes together with start, stop and status.

#[path = "../dom0/mod.rs"]
mod dom0;
#[path = "../program/mod.rs"]
mod program;

use std::fs;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fake_libxl::Control;
use serde_json::{Value, json};
use tempfile::TempDir;
use xendomains::host::Host;
use xendomains::interrupt::Interrupt;
use xendomains::monitor::client::Client;
use xenlight::{Children, Context, Library, Release};

use program::{Said, libxl, program};

/// A dom0 of files, with a fake hypervisor of its own.
struct Dom0 {
    directory: TempDir,
    host: Host,
    library: Library,
    control: Control,
}

/// A monitor on a thread of this process.
struct Monitor {
    interrupt: Arc<Interrupt>,
    said: Said,
    thread: Option<JoinHandle<u8>>,
}

impl Monitor {
    /// Ends it, as SIGTERM does.
    fn end(mut self) -> u8 {
        self.interrupt.ask();
        self.thread.take().expect("not ended").join().expect("no panic")
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.interrupt.ask();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How a run of the program ended and what it said.
struct Ended {
    code: u8,
    said: String,
}

impl Dom0 {
    /// With these lines in the settings file.
    fn new(settings: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let host = dom0::lay_out(directory.path(), &format!("XENDOMAINS_RESTART_PAUSE=0\n{settings}"));
        let path = fake_libxl::install(directory.path(), "4.17");
        // SAFETY: the fake behaves like libxl.
        let library = unsafe { Library::open_in(directory.path(), Release::new(4, 17)) }.expect("the fake opens");
        let control = Control::open(&path);
        Self { directory, host, library, control }
    }

    fn run(&self, words: &[&str]) -> Ended {
        let (said, interrupt) = (Said::default(), Arc::new(Interrupt::new().expect("a descriptor")));
        let code = program(&self.host, &libxl(&self.library, &interrupt), words, &interrupt, &said.reporter());
        Ended { code, said: said.text() }
    }

    #[track_caller]
    fn succeeds(&self, words: &[&str]) -> String {
        let ended = self.run(words);
        assert_eq!(ended.code, 0, "{words:?}: {}", ended.said);
        ended.said
    }

    /// Starts a monitor, and returns when it watches.
    #[track_caller]
    fn monitor(&self) -> Monitor {
        let (said, interrupt) = (Said::default(), Arc::new(Interrupt::new().expect("a descriptor")));
        let (host, library) = (self.host.clone(), self.library.clone());
        let (of_thread, heard) = (Arc::clone(&interrupt), said.clone());
        let thread = std::thread::spawn(move || {
            program(&host, &libxl(&library, &of_thread), &["monitor"], &of_thread, &heard.reporter())
        });
        said.wait_for("watching ", 1);
        Monitor { interrupt, said, thread: Some(thread) }
    }

    /// Puts a guest into AUTO, with these lines in its file.
    fn auto(&self, name: &str, more: &str) {
        let more = format!("uuid = \"{}\"\n{more}\n", uuid_of(name));
        dom0::add_guest(self.directory.path(), name, &more);
    }

    /// The same, with a guest that is fully virtualized.
    fn auto_hvm(&self, name: &str, more: &str) {
        let text =
            format!("name = \"{name}\"\ntype = \"hvm\"\nmemory = 16\nuuid = \"{}\"\n{more}\n", uuid_of(name));
        fs::write(self.directory.path().join("auto").join(name), text).expect("a file");
    }

    fn does(&self, guest: &str, what: &str) {
        self.control.guest(json!({"domain": guest, "does": what}));
    }

    /// The domain that is called so.
    fn domain(&self, name: &str) -> Option<Value> {
        domain(&self.control.state(), name)
    }

    fn domid(&self, name: &str) -> u64 {
        self.domain(name).expect("there")["domid"].as_u64().expect("a number")
    }

    /// Waits until a guest runs in another domain than this one.
    #[track_caller]
    fn wait_for_another(&self, name: &str, old: u64) -> Value {
        let state = self
            .control
            .wait(|state| domain(state, name).is_some_and(|domain| domain["domid"] != old && runs(&domain)));
        domain(&state, name).expect("there")
    }

    #[track_caller]
    fn wait_until_gone(&self, name: &str) {
        self.control.wait(|state| domain(state, name).is_none());
    }

    fn restarts(&self) -> usize {
        fs::read_dir(self.host.run_dir.join("restarts")).map_or(0, Iterator::count)
    }

    /// What status says of a guest.
    fn status(&self, name: &str) -> (u8, Value) {
        let ended = self.run(&["status", "--json"]);
        // What is doubtful comes before it.
        let json = &ended.said[ended.said.find("{\n").expect("JSON")..];
        let json: Value = serde_json::from_str(json).expect("JSON");
        let guests = json["guests"].as_array().expect("guests");
        (ended.code, guests.iter().find(|guest| guest["name"] == name).cloned().unwrap_or_default())
    }

    /// No guest ran twice, and libxl was not misused.
    #[track_caller]
    fn expect_sound(&self) {
        let state = self.control.state();
        assert_eq!(state["violations"], json!([]));
        assert_eq!(state["refusals"], json!([]));
    }
}

fn uuid_of(name: &str) -> uuid::Uuid {
    uuid::Uuid::from_u128(name.bytes().fold(7, |sum: u128, byte| sum.wrapping_mul(31) + u128::from(byte)))
}

fn domains(state: &Value) -> impl Iterator<Item = &Value> {
    state["domains"].as_object().expect("domains").values().filter(|domain| domain["domid"] != 0)
}

fn domain(state: &Value, name: &str) -> Option<Value> {
    domains(state).find(|domain| domain["name"] == name).cloned()
}

fn runs(domain: &Value) -> bool {
    domain["shutdown"].is_null() && domain["paused"] == false
}

const REASONS: [(&str, &str); 5] = [
    ("poweroff", "on_poweroff"),
    ("reboot", "on_reboot"),
    ("crash", "on_crash"),
    ("watchdog", "on_watchdog"),
    ("soft_reset", "on_soft_reset"),
];

const ACTIONS: [&str; 7] =
    ["destroy", "restart", "rename-restart", "preserve", "coredump-destroy", "coredump-restart", "soft-reset"];

#[test]
fn each_reason_has_each_action() {
    let dom0 = Dom0::new("");
    let cases: Vec<_> = REASONS
        .iter()
        .flat_map(|(reason, key)| ACTIONS.map(|action| (format!("{reason}-{action}"), reason, key, action)))
        .collect();
    for (name, _, key, action) in &cases {
        dom0.auto_hvm(name, &format!("{key} = \"{action}\"\nvif = [ 'bridge=,mac=00:16:3e:00:00:07' ]"));
    }
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    let before = dom0.control.state();
    for (name, reason, ..) in &cases {
        assert_eq!(dom0.status(name).1["watched_by"], "monitor", "{name}");
        dom0.does(name, reason);
    }
    let is_done = |state: &Value, (name, reason, _, action): &(String, &&str, &&str, &str)| {
        let old = domain(&before, name).expect("was there");
        let now = domain(state, name);
        let in_another = || {
            now.as_ref().is_some_and(|now| runs(now) && now["domid"] != old["domid"] && now["uuid"] == old["uuid"])
        };
        let kept = |name: &str| {
            domains(state).any(|domain| {
                domain["domid"] == old["domid"]
                    && !domain["shutdown"].is_null()
                    && domain["name"].as_str() == Some(name)
            })
        };
        let suffixed = || {
            domains(state).find(|domain| domain["domid"] == old["domid"]).and_then(|domain| {
                let suffix = domain["name"].as_str()?.strip_prefix(&format!("{name}-2"))?.to_owned();
                (suffix.len() == "0260102T0304Z".len() && suffix.ends_with('Z')).then_some(())
            })
        };
        let dumped = || dom0.host.dump_dir.join(name).is_file();
        match *action {
            "destroy" => now.is_none(),
            "restart" => in_another(),
            "rename-restart" => in_another() && suffixed().is_some(),
            "preserve" => kept(name),
            "coredump-destroy" => now.is_none() && dumped(),
            "coredump-restart" => in_another() && dumped(),
            // Only a guest that asks for it can be reset in its place.
            _ if **reason == "soft_reset" => {
                now.as_ref().is_some_and(|now| runs(now) && now["domid"] == old["domid"])
            }
            _ => in_another(),
        }
    };
    let state = dom0.control.wait(|state| cases.iter().all(|case| is_done(state, case)));
    monitor.said.wait_for("it is kept as it is", 5);
    monitor.said.wait_for("restarted as domain", 20);
    for (name, reason, _, action) in &cases {
        let now = domain(&state, name);
        if action.contains("restart") || *action == "soft-reset" {
            let (_, guest) = dom0.status(name);
            assert_eq!(
                (&guest["restarts"], &guest["last_restart_reason"]),
                (&json!(1), &json!(reason.replace('_', "-")))
            );
            assert_eq!(guest["watched_by"], "monitor", "{name}");
            assert!(guest["uptime_seconds"].as_u64().is_some_and(|seconds| seconds < 600), "{name}: {guest}");
            let mac = |domain: Option<Value>| domain.expect("there")["config"]["nics"][0]["mac"].clone();
            assert_eq!(mac(now), mac(domain(&before, name)), "{name}");
        } else if *action == "preserve" {
            assert_eq!(dom0.status(name).1["watched_by"], Value::Null, "what is kept is nobody's");
        }
    }
    assert_eq!(dom0.restarts(), 0);
    assert_eq!(monitor.end(), 0);
    // The next monitor finds nothing to be done, not even with what is kept.
    let domids = |state: &Value| domains(state).map(|domain| domain["domid"].clone()).collect::<Vec<_>>();
    let again = dom0.monitor();
    assert!(again.said.text().contains("watching 20 guests"), "{}", again.said.text());
    assert_eq!(again.end(), 0);
    assert_eq!(domids(&dom0.control.state()), domids(&state));
    dom0.expect_sound();
}

#[test]
fn a_restart_that_fails_is_tried_again_and_then_shown() {
    let dom0 = Dom0::new("XENDOMAINS_RESTART_TRIES=3\n");
    dom0.auto("web", "");
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    let first = dom0.domid("web");
    let script = "/etc/xen/scripts/vif-bridge online [217] exited with error status 1";
    dom0.control.script(json!([
        {"call": "libxl_domain_create_new", "nth": 1, "error": -3, "log": [{"level": 8, "text": script}]},
        {"call": "libxl_domain_unpause", "nth": 1, "error": -3},
    ]));
    dom0.does("web", "reboot");
    let second = dom0.wait_for_another("web", first);
    monitor.said.wait_for("restarted as domain", 1);
    assert!(monitor.said.text().contains(script), "{}", monitor.said.text());
    assert_eq!(dom0.restarts(), 0);
    // For good.
    dom0.control.script(json!({"call": "libxl_domain_create_new", "error": -3}));
    dom0.does("web", "reboot");
    monitor.said.wait_for("web: is DOWN, it could not be restarted 3 times", 1);
    let (code, guest) = dom0.status("web");
    assert_eq!((code, &guest["state"]), (3, &json!("down")));
    assert!(guest["restart_failed"].as_str().is_some_and(|why| why.contains("create")), "{guest}");
    let table = dom0.run(&["status"]).said;
    assert!(table.contains("FAILED: create"), "{table}");
    // It is not tried again by another monitor, and a start brings it back.
    assert_eq!(monitor.end(), 0);
    let monitor = dom0.monitor();
    assert!(dom0.domain("web").is_none());
    dom0.control.reset();
    dom0.succeeds(&["start"]);
    let (code, guest) = dom0.status("web");
    assert_eq!((code, &guest["restart_failed"], &guest["watched_by"]), (0, &Value::Null, &json!("monitor")));
    assert_eq!(dom0.restarts(), 0);
    assert_ne!(second["domid"], first);
    drop(monitor);
    dom0.expect_sound();
}

#[test]
fn a_crash_loop_is_slowed_down() {
    let dom0 = Dom0::new("XENDOMAINS_RESTART_PAUSE=1\nXENDOMAINS_RESTART_BURST=1\n");
    dom0.auto("web", "on_crash = \"restart\"");
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    let mut domid = dom0.domid("web");
    let mut took = Vec::new();
    for round in 1..=3 {
        dom0.does("web", "crash");
        let began = Instant::now();
        domid = dom0.wait_for_another("web", domid)["domid"].as_u64().expect("a number");
        monitor.said.wait_for("restarted as domain", round);
        took.push(began.elapsed());
    }
    // A start does not take the guest for one that is in the way.
    dom0.does("web", "crash");
    monitor.said.wait_for("4 times in a row", 1);
    let said = dom0.succeeds(&["start"]);
    assert!(said.contains("web: is being restarted by the monitor"), "{said}");
    assert!(took[0] < Duration::from_secs(1) && took[1] >= Duration::from_secs(1), "{took:?}");
    monitor
        .said
        .wait_for("web: has ended (crash) within 60 s of its start 2 times in a row: it is restarted in 1 s", 1);
    assert_eq!(dom0.status("web").1["restarts"], 3);
}

#[test]
fn a_guest_that_waits_and_is_taken_away_is_nobodys() {
    let dom0 = Dom0::new("XENDOMAINS_RESTART_PAUSE=300\nXENDOMAINS_RESTART_BURST=0\n");
    dom0.auto("web", "");
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    dom0.does("web", "reboot");
    monitor.said.wait_for("1 times in a row", 1);
    dom0.does("web", "vanish");
    // Until the monitor has heard of it, it waits.
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let mut client = Client::connect(&dom0.host.run_dir).expect("no error").expect("a monitor");
        if client.settle().expect("an answer").is_empty() {
            break;
        }
        assert!(Instant::now() < end, "{}", monitor.said.text());
    }
    assert!(dom0.succeeds(&["start"]).contains("web: started"));
    dom0.expect_sound();
}

#[test]
fn a_guest_that_is_kept_twice_in_a_minute_has_two_names() {
    let dom0 = Dom0::new("");
    dom0.auto("web", "on_reboot = \"rename-restart\"");
    let _monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    let mut domid = dom0.domid("web");
    for _ in 0..2 {
        dom0.does("web", "reboot");
        domid = dom0.wait_for_another("web", domid)["domid"].as_u64().expect("a number");
    }
    let state = dom0.control.state();
    let names: std::collections::BTreeSet<_> = domains(&state).map(|domain| domain["name"].to_string()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    // start is not led astray by what is kept of the guest.
    assert!(dom0.succeeds(&["start"]).contains("web: runs already"));
    dom0.expect_sound();
}

#[test]
fn a_start_waits_until_the_monitor_has_dealt_with_what_it_has_found() {
    let dom0 = Dom0::new("");
    for name in ["web", "off"] {
        dom0.auto(name, "");
    }
    dom0.succeeds(&["start"]);
    dom0.does("web", "reboot");
    dom0.does("off", "poweroff");
    let monitor = dom0.monitor();
    let said = dom0.succeeds(&["start"]);
    let both = format!("{said}\n{}", monitor.said.text());
    assert!(said.contains("off: started") && !said.contains("web: started"), "{both}");
    assert!(runs(&dom0.domain("web").expect("there")), "{said}");
    dom0.expect_sound();
}

#[test]
fn what_happens_without_a_monitor_is_made_up_for() {
    let dom0 = Dom0::new("");
    for name in ["off", "reboots", "runs"] {
        dom0.auto(name, "");
    }
    // start marks guests whether there is a monitor or not.
    dom0.succeeds(&["start"]);
    assert_eq!(dom0.status("runs").1["watched_by"], "nobody");
    let first = dom0.domid("reboots");
    dom0.does("off", "poweroff");
    dom0.does("reboots", "reboot");
    let monitor = dom0.monitor();
    dom0.wait_until_gone("off");
    let second = dom0.wait_for_another("reboots", first)["domid"].as_u64().expect("a number");
    monitor.said.wait_for("restarted as domain", 1);
    assert_eq!(monitor.end(), 0);
    dom0.does("reboots", "reboot");
    let monitor = dom0.monitor();
    dom0.wait_for_another("reboots", second);
    monitor.said.wait_for("restarted as domain", 1);
    assert_eq!(dom0.status("reboots").1["restarts"], 2);
    drop(monitor);
    dom0.expect_sound();
}

#[test]
fn a_second_monitor_leaves_the_first_one_alone() {
    let dom0 = Dom0::new("");
    dom0.auto("web", "");
    dom0.succeeds(&["start"]);
    let monitor = dom0.monitor();
    let second = dom0.run(&["monitor"]);
    assert_eq!(second.code, 1, "{}", second.said);
    assert!(second.said.contains("another xendomains monitor is at work"), "{}", second.said);
    assert_eq!(dom0.status("web").1["watched_by"], "monitor", "the socket is still the first one's");
    assert_eq!(monitor.end(), 0);
    assert_eq!(dom0.status("web").1["watched_by"], "nobody");
}

#[test]
fn without_xen_there_is_nothing_to_watch() {
    let dom0 = Dom0::new("");
    fs::remove_file(&dom0.host.hypervisor_type).expect("removed");
    let monitor = dom0.run(&["monitor"]);
    assert_eq!(monitor.code, 5, "{}", monitor.said);
    assert!(monitor.said.contains("does not run under Xen: there is nothing to watch"), "{}", monitor.said);
    let dom0 = Dom0::new("");
    dom0.control.script(json!({"call": "libxl_ctx_alloc", "start_error": -3}));
    let monitor = dom0.run(&["monitor"]);
    assert_eq!(monitor.code, 5, "{}", monitor.said);
    assert!(monitor.said.contains("no usable toolstack"), "{}", monitor.said);
}

#[test]
fn a_broken_event_machine_ends_the_monitor() {
    let dom0 = Dom0::new("");
    dom0.auto("web", "");
    dom0.succeeds(&["start"]);
    let mut monitor = dom0.monitor();
    dom0.control
        .script(json!({"call": "libxl_domain_destroy", "disaster": "xenstored is gone", "complete": "never"}));
    dom0.does("web", "poweroff");
    let code = monitor.thread.take().expect("not ended").join().expect("no panic");
    assert_eq!(code, 1, "{}", monitor.said.text());
    assert!(monitor.said.text().contains("xenstored is gone"), "{}", monitor.said.text());
}

#[test]
fn guests_of_others_are_not_touched() {
    let dom0 = Dom0::new("");
    let mark = json!({"version": 1, "file": null, "started": 0, "restarts": 0, "reason": null, "soon": 0});
    let of = |name: &str, userdata: Value| json!({"name": name, "userdata": userdata});
    dom0.control.host(json!({"domains": [
        of("xl", json!({})),
        of("virt", json!({"xendomains": mark.to_string(), "libvirt-xml": "<domain/>"})),
        of("newer", json!({"xendomains": mark.to_string().replace("\"version\":1", "\"version\":2")})),
        of("odd", json!({"xendomains": "oops"})),
        of("ours", json!({"xendomains": mark.to_string()})),
    ]}));
    let monitor = dom0.monitor();
    let said = monitor.said.text();
    assert!(said.contains("newer: not watched") && said.contains("odd: not watched"), "{said}");
    assert!(said.contains("watching 1 guest\n"), "{said}");
    let ours = dom0.domid("ours");
    for name in ["xl", "virt", "newer", "odd", "ours"] {
        dom0.does(name, "poweroff");
    }
    // Its name goes before the domain does.
    dom0.control.wait(|state| domains(state).all(|domain| domain["domid"] != ours));
    assert_eq!(domains(&dom0.control.state()).count(), 4);
    assert_eq!(dom0.status("virt").1["watched_by"], "libvirt");
    assert_eq!(dom0.status("xl").1["watched_by"], Value::Null);
}

#[test]
fn guests_of_others_are_seen_running() {
    let dom0 = Dom0::new("");
    dom0.control.host(json!({"domains": [{"name": "xls"}, {"name": "new", "paused": true, "cpu_time_ns": 0}]}));
    let monitor = dom0.monitor();
    assert_eq!(monitor.end(), 0);
    let seen = fs::read_dir(dom0.host.state_dir.join("guests")).expect("a directory");
    let seen: Vec<_> = seen.map(|file| file.expect("a file").file_name()).collect();
    assert_eq!(seen, ["xls.guest"]);
}

#[test]
fn a_guest_that_was_destroyed_by_somebody_is_forgotten() {
    let dom0 = Dom0::new("");
    dom0.auto("web", "");
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    dom0.does("web", "vanish");
    let run_dir = dom0.host.run_dir.clone();
    // The monitor does one thing after the other: what it is asked comes behind what it was told by libxl, at last.
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let mut client = Client::connect(&run_dir).expect("no error").expect("a monitor");
        if client.watched().expect("an answer").is_empty() {
            break;
        }
        assert!(Instant::now() < end, "{}", monitor.said.text());
    }
    assert!(dom0.domain("web").is_none());
}

#[test]
fn an_opened_drive_is_emptied() {
    let dom0 = Dom0::new("");
    let iso = dom0.directory.path().join("type");
    let disk = format!("disk = [ '{},raw,hdc:cdrom,r' ]", iso.display());
    dom0.auto_hvm("win", &disk);
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    for times in 1..=2 {
        dom0.does("win", "eject:hdc");
        monitor.said.wait_for("win: has opened the drive hdc, the medium was taken out", times);
    }
    let state = dom0.control.state();
    let calls = state["calls"].as_array().expect("calls");
    let inserts: Vec<_> = calls.iter().filter(|call| call["call"] == "libxl_cdrom_insert").collect();
    assert_eq!(inserts.len(), 2);
    assert_eq!(inserts[0]["args"], json!({"vdev": "hdc", "path": ""}));
    assert_eq!(monitor.end(), 0);
    let state = dom0.control.wait(|state| state["live"]["events"] == 0);
    assert_eq!(state["live"]["generators"], 0, "{}", state["live"]);
    dom0.expect_sound();
}

#[test]
fn an_updated_configuration_is_used_once() {
    let dom0 = Dom0::new("");
    dom0.auto("web", "vif = [ 'bridge=,mac=00:16:3e:00:00:07' ]");
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    let first = dom0.domain("web").expect("there");
    let context = Context::open(&dom0.library, Children::LibxlReapsOwn, None).expect("a connection");
    let kernel = dom0.directory.path().join("type");
    let text = format!(
        "name = \"web\"\ntype = \"pvh\"\nkernel = \"{}\"\nmemory = 32\nvcpus = 3\nvif = [ 'bridge=' ]\n",
        kernel.display()
    );
    let domid = |domain: &Value| domain["domid"].as_u64().expect("a number");
    let number = u32::try_from(domid(&first)).expect("a domid");
    context.store_userdata(number, "xl", text.as_bytes()).expect("stored");
    dom0.does("web", "reboot");
    let second = dom0.wait_for_another("web", domid(&first));
    assert_eq!((&second["vcpus"], &second["uuid"]), (&json!(3), &first["uuid"]));
    assert_eq!(second["config"]["nics"][0]["mac"], first["config"]["nics"][0]["mac"]);
    monitor.said.wait_for("restarted as domain", 1);
    // One that can't be used is no reason to leave the guest down.
    let number = u32::try_from(domid(&second)).expect("a domid");
    context.store_userdata(number, "xl", b"name = ").expect("stored");
    dom0.does("web", "reboot");
    let third = dom0.wait_for_another("web", domid(&second));
    assert_eq!(third["vcpus"], 3);
    monitor.said.wait_for("<updated>:1", 1);
}

#[test]
fn during_a_stop_nothing_is_restarted() {
    let dom0 = Dom0::new("XENDOMAINS_SAVE=\n");
    dom0.control.host(json!({"guests": {"*": {"shutdown": "reboot"}}}));
    for name in ["a", "b", "c"] {
        dom0.auto(name, "");
    }
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    let began = Instant::now();
    dom0.succeeds(&["stop"]);
    assert_eq!(domains(&dom0.control.state()).count(), 0);
    // It knows that none of them comes back.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(!monitor.said.text().contains("restart"), "{}", monitor.said.text());
    // The monitor is there for the next start.
    dom0.succeeds(&["start"]);
    let first = dom0.domid("a");
    dom0.does("a", "reboot");
    dom0.wait_for_another("a", first);
    dom0.expect_sound();
}

#[test]
fn a_stop_waits_for_a_restart_that_is_under_way() {
    let dom0 = Dom0::new("XENDOMAINS_SAVE=\n");
    dom0.auto("web", "");
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    dom0.control.script(json!({"call": "libxl_domain_create_new", "delay_ms": 500}));
    dom0.does("web", "reboot");
    dom0.control.wait(|state| {
        let calls = state["calls"].as_array().expect("calls");
        calls.iter().filter(|call| call["call"] == "libxl_domain_create_new").count() == 2
    });
    let said = dom0.succeeds(&["stop"]);
    assert!(said.contains("web: shut down"), "the restarted guest was stopped: {said}");
    assert_eq!(domains(&dom0.control.state()).count(), 0);
    assert_eq!(dom0.restarts(), 0);
    drop(monitor);
    dom0.expect_sound();
}

#[test]
fn a_restart_that_waits_is_given_up_by_a_stop() {
    let dom0 = Dom0::new("XENDOMAINS_SAVE=\nXENDOMAINS_RESTART_PAUSE=300\n");
    for name in ["web", "db"] {
        dom0.auto(name, "");
    }
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    dom0.control.script(json!({"call": "libxl_domain_create_new", "error": -3}));
    dom0.does("web", "reboot");
    monitor.said.wait_for("web: create failed", 1);
    assert_eq!(dom0.status("web").1["state"], "restarting");
    // A start leaves it to the monitor.
    let said = dom0.succeeds(&["start"]);
    assert!(said.contains("web: is being restarted by the monitor"), "{said}");
    dom0.succeeds(&["stop"]);
    assert_eq!(dom0.restarts(), 0);
    dom0.control.reset();
    let said = dom0.succeeds(&["start"]);
    assert!(said.contains("start: 2 started"), "{said}");
    drop(monitor);
    dom0.expect_sound();
}

#[test]
fn a_stop_that_was_killed_holds_nothing_any_more() {
    let dom0 = Dom0::new("");
    dom0.auto("web", "");
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    let first = dom0.domid("web");
    let client = Client::connect(&dom0.host.run_dir).expect("no error").expect("a monitor");
    let hold = client.hold(Duration::from_secs(10)).expect("held");
    assert!(hold.is_complete);
    assert_eq!(hold.watched.len(), 1);
    dom0.does("web", "reboot");
    // What is asked comes behind what libxl told before; two holds at once are no harm.
    let client = Client::connect(&dom0.host.run_dir).expect("no error").expect("a monitor");
    drop(client.hold(Duration::from_secs(10)).expect("held"));
    assert_eq!(dom0.domid("web"), first);
    drop(hold);
    dom0.wait_for_another("web", first);
    monitor.said.wait_for("restarted as domain", 1);
}

#[test]
fn a_guest_whose_save_failed_stays_watched() {
    let dom0 = Dom0::new("XENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n");
    dom0.auto("web", "");
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    let first = dom0.domid("web");
    for _ in 0..3 {
        dom0.control.script(json!({"call": "libxl_domain_suspend", "error": -3}));
        assert_eq!(dom0.run(&["stop"]).code, 1);
        assert!(runs(&dom0.domain("web").expect("there")));
    }
    dom0.does("web", "reboot");
    dom0.wait_for_another("web", first);
    monitor.said.wait_for("restarted as domain", 1);
    dom0.expect_sound();
}

#[test]
fn a_guest_that_is_restored_is_watched_too() {
    let dom0 = Dom0::new("");
    dom0.auto("web", "");
    let _monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    dom0.succeeds(&["stop"]);
    let said = dom0.succeeds(&["start"]);
    assert!(said.contains("web: restored"), "{said}");
    let restored = dom0.domain("web").expect("there");
    let mark: Value =
        serde_json::from_str(restored["userdata"]["xendomains"].as_str().expect("a mark")).expect("JSON");
    assert!(mark["file"].as_str().is_some_and(|file| file.ends_with("/auto/web")), "{mark}");
    let domid = dom0.domid("web");
    dom0.does("web", "reboot");
    dom0.wait_for_another("web", domid);
    dom0.expect_sound();
}

#[test]
fn a_dump_needs_room_and_its_failure_keeps_nothing_down() {
    let dom0 = Dom0::new("");
    dom0.auto("web", "on_crash = \"coredump-restart\"");
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    let mut domid = dom0.domid("web");
    dom0.control.script(json!({"call": "libxl_domain_core_dump", "nth": 1, "error": -3}));
    dom0.does("web", "crash");
    domid = dom0.wait_for_another("web", domid)["domid"].as_u64().expect("a number");
    monitor.said.wait_for("restarted as domain", 1);
    assert!(monitor.said.text().contains("web: its memory could not be dumped"), "{}", monitor.said.text());
    assert_eq!(fs::read_dir(&dom0.host.dump_dir).expect("a directory").count(), 0);
    // A directory that is none.
    fs::remove_dir(&dom0.host.dump_dir).expect("removed");
    fs::write(&dom0.host.dump_dir, "").expect("a file");
    dom0.does("web", "crash");
    dom0.wait_for_another("web", domid);
    monitor.said.wait_for("its memory could not be dumped", 2);
}

#[test]
fn a_dump_that_takes_long_keeps_nobody_waiting() {
    let dom0 = Dom0::new("XENDOMAINS_RESTART_SOON=0\n");
    dom0.auto("large", "on_crash = \"coredump-restart\"");
    dom0.auto("web", "");
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    let (large, web) = (dom0.domid("large"), dom0.domid("web"));
    dom0.control.script(json!([
        {"call": "libxl_domain_core_dump", "stall_ms": 8000},
        {"call": "libxl_domain_create_new", "forks": true},
    ]));
    dom0.does("large", "crash");
    dom0.control.wait(|state| {
        state["calls"].as_array().into_iter().flatten().any(|call| call["call"] == "libxl_domain_core_dump")
    });
    let begun = Instant::now();
    // One restarted by the process that dumps, one started by another.
    dom0.does("web", "reboot");
    dom0.wait_for_another("web", web);
    dom0.auto("db", "");
    let start = dom0.run(&["start"]);
    assert!(start.said.contains("db: started") && start.said.contains("(large) is in the way"), "{}", start.said);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}: {}", begun.elapsed(), start.said);
    dom0.wait_for_another("large", large);
    monitor.said.wait_for("its memory is in", 1);
    dom0.expect_sound();
}

#[test]
fn twenty_guests_that_reboot_together_all_come_back() {
    let dom0 = Dom0::new("");
    let names: Vec<_> = (1..=20).map(|n| format!("g{n}")).collect();
    names.iter().for_each(|name| dom0.auto(name, ""));
    let monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    for round in 1..=3 {
        let before = dom0.control.state();
        names.iter().for_each(|name| dom0.does(name, "reboot"));
        monitor.said.wait_for("restarted as domain", 20 * round);
        let now = dom0.control.state();
        for name in &names {
            let (old, new) = (domain(&before, name).expect("was there"), domain(&now, name).expect("is there"));
            assert!(runs(&new) && new["domid"] != old["domid"], "{name}");
        }
    }
    dom0.expect_sound();
}

#[test]
fn without_the_setting_nobody_is_told() {
    let dom0 = Dom0::new("XENDOMAINS_MONITOR=false\n");
    dom0.auto("web", "");
    let _monitor = dom0.monitor();
    dom0.succeeds(&["start"]);
    assert_eq!(dom0.domain("web").expect("there")["userdata"], json!({}));
    assert_eq!(dom0.status("web").1["watched_by"], Value::Null);
}
