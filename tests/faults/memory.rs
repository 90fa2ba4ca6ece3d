//! Memory for new guests: what dom0 gives back, what is promised to guests that are being built, and xl's lock.

use std::io::{self, BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::thread;

use rustix::fs::{FlockOperation, fcntl_lock};
use xendomains::guest_config::{GuestConfig, XenHost, XlConf};
use xendomains::toolstack::Toolstack;
use xendomains::toolstack::libxl::Libxl;

use super::*;

/// What the fake says that a guest of [`Dom0::auto`] needs: its 128 MiB, and 2 MiB.
const NEED: u64 = 130 << 10;
/// dom0's memory in the fake.
const DOM0: u64 = 2 << 20;

/// A host where dom0 gives memory back, as its command line doesn't fix it.
fn dom0(free_mib: u64, floor_mib: u64, settings: &str) -> Dom0 {
    let dom0 = Dom0::new(json!([]), settings);
    dom0.control.host(json!({
        "xen_commandline": "placeholder console=com1", "free_kb": free_mib << 10, "dom0_floor_kb": floor_mib << 10,
    }));
    dom0.xl_conf("");
    dom0
}

impl Dom0 {
    /// With a lock of its own.
    fn xl_conf(&self, lines: &str) {
        let text = format!("lockfile = \"{}\"\n{lines}", self.xl_lock().display());
        fs::write(&self.host.xl_conf, text).expect("a file");
    }

    fn xl_lock(&self) -> PathBuf {
        self.directory.path().join("lock/xl")
    }

    /// What dom0 was asked to change its memory target by, KiB.
    fn changes(&self) -> Vec<i64> {
        let state = self.control.state();
        let calls = state["calls"].as_array().expect("calls").iter();
        calls
            .filter(|call| call["call"] == "libxl_set_memory_target")
            .map(|call| {
                assert_eq!((&call["domid"], &call["args"]["relative"]), (&json!(0), &json!(true)));
                assert_eq!(call["args"]["enforce"], json!(false));
                call["args"]["target_kb"].as_i64().expect("a number")
            })
            .collect()
    }

    /// dom0's memory and its target, KiB.
    fn memory(&self) -> (u64, u64) {
        let dom0 = &self.control.state()["domains"]["0"];
        let kib = |key: &str| dom0[key].as_u64().expect("a number");
        (kib("memory_kb"), kib("target_kb"))
    }

    fn libxl(&self) -> Libxl {
        let xl_conf = XlConf::read(&self.host.xl_conf).expect("valid");
        Libxl::with_library(self.library.clone(), &xl_conf, false, Arc::clone(&self.interrupt)).expect("opens")
    }

    /// Waits until libxl has been asked for this guest.
    fn wait_for_call(&self, name: &str, guest: &str) {
        self.control.wait(|state| {
            let mut calls = state["calls"].as_array().expect("calls").iter();
            calls.any(|call| call["call"] == name && call["name"] == guest)
        });
    }

    /// Waits until so many guests have their memory and are still being built.
    fn wait_for_builds(&self, count: usize) {
        self.control.wait(|state| {
            let calls = state["calls"].as_array().expect("calls").iter();
            let builds = |call: &&Value| call["call"] == "libxl_domain_create_new" && call["completed"].is_null();
            calls.filter(builds).filter(|call| call["rc"] == 0).count() == count
        });
    }
}

/// A guest as [`Dom0::auto`] makes them.
fn guest(name: &str) -> GuestConfig {
    let text = format!("name = \"{name}\"\ntype = \"pvh\"\nkernel = \"/bin/sh\"\nmemory = 128\n");
    GuestConfig::parse(Path::new(name), text.as_bytes(), &XenHost::default()).expect("valid")
}

/// Later than a test ever takes, so that it fails and doesn't hang.
fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(30))
}

/// A rule for these calls.
fn rule(call: &str, does: &Value) -> Value {
    let mut rule = does.clone();
    rule["call"] = json!(call);
    rule
}

fn minus(kib: u64) -> i64 {
    -i64::try_from(kib).expect("not that much")
}

/// Another process that has xl's lock, as `xl create` has it. Ends, and frees it, with its standard input.
struct Holder {
    child: Child,
    input: Option<ChildStdin>,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Holder {
    fn start(lock: &Path) -> Holder {
        let mut child = Command::new(std::env::current_exe().expect("knows its path"))
            .args(["--exact", "memory::hold", "--nocapture"])
            .env("XL_LOCK", lock)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let input = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("piped")).lines();
        Holder { child, input, answers }
    }

    /// Whether it has got the lock. It doesn't wait for it.
    fn has_it(&mut self) -> bool {
        let mut lines = self.answers.by_ref().map(|line| line.expect("text"));
        // Behind what the test harness says.
        let answer = lines.find_map(|line| Some(line.split_once("lock: ")?.1.to_owned()));
        answer.expect("an answer") == "got"
    }

    fn end(&mut self) {
        drop(self.input.take());
        self.child.wait().expect("ends");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.end();
    }
}

/// In a child: has the lock until its standard input ends. Otherwise: that it does, or other tests would prove nothing.
#[test]
fn hold() {
    let Some(lock) = std::env::var_os("XL_LOCK") else {
        let dir = tempfile::tempdir().expect("a directory");
        let lock = dir.path().join("xl");
        let mut holder = Holder::start(&lock);
        assert!(holder.has_it() && !Holder::start(&lock).has_it());
        holder.end();
        assert!(Holder::start(&lock).has_it());
        return;
    };
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(lock).expect("a file");
    let got = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    println!("lock: {}", if got { "got" } else { "taken" });
    io::copy(&mut io::stdin(), &mut io::sink()).expect("readable");
}

#[test]
fn dom0_gives_exactly_what_is_missing() {
    let dom0 = dom0(64, 512, "");
    dom0.auto("web");
    let start = dom0.run("start");
    assert_eq!((start.code, dom0.guests()), (0, vec![("web".to_owned(), true)]), "{}", start.said);
    let missing = NEED - (64 << 10);
    assert_eq!(dom0.changes(), [minus(missing)]);
    assert_eq!(dom0.memory(), (DOM0 - missing, DOM0 - missing));
    let state = dom0.control.state();
    let waited = state["calls"].as_array().expect("calls").iter();
    let waited: Vec<_> = waited.filter(|call| call["call"] == "libxl_wait_for_memory_target").collect();
    assert_eq!(waited.len(), 1);
    assert_eq!(waited[0]["args"], json!({"seconds": 10}));
    dom0.expect_sound();

    // What is free is used first.
    let dom0 = self::dom0(130, 512, "");
    dom0.auto("web");
    assert_eq!(dom0.run("start").code, 0);
    assert_eq!((dom0.changes(), dom0.memory()), (vec![], (DOM0, DOM0)));
}

#[test]
fn restoring_takes_memory_too() {
    let dom0 = Dom0::new(json!([{"name": "web"}]), "");
    assert_eq!(dom0.run("stop").code, 0);
    dom0.control.host(json!({"xen_commandline": "placeholder", "free_kb": 0}));
    dom0.xl_conf("");
    let start = dom0.run("start");
    assert_eq!((start.code, dom0.guests()), (0, vec![("web".to_owned(), true)]), "{}", start.said);
    assert_eq!(dom0.changes(), [minus(NEED)]);
    dom0.expect_sound();
}

#[test]
fn dom0_keeps_its_memory_where_xl_leaves_it() {
    for (xl_conf, command_line) in [
        ("autoballoon = \"off\"", "placeholder"),
        ("autoballoon = \"auto\"", "placeholder dom0_mem=2G,max:2G"),
        ("", "dom0_mem=2G"),
    ] {
        let dom0 = dom0(64, 512, "");
        dom0.control.host(json!({"xen_commandline": command_line}));
        dom0.xl_conf(xl_conf);
        dom0.auto("web");
        let start = dom0.run("start");
        assert_eq!((start.code, dom0.guests()), (1, vec![]), "{xl_conf}: {}", start.said);
        assert!(start.said.contains("not enough free memory"), "libxl's own words: {}", start.said);
        assert_eq!((dom0.changes(), dom0.xl_lock().exists()), (vec![], false), "{xl_conf}");
    }
    // And where it is told to, it takes it from a dom0 whose memory is fixed.
    let dom0 = dom0(64, 512, "");
    dom0.control.host(json!({"xen_commandline": "dom0_mem=2G"}));
    dom0.xl_conf("autoballoon = \"on\"");
    dom0.auto("web");
    assert_eq!((dom0.run("start").code, dom0.changes().len()), (0, 1));
}

#[test]
fn too_large_a_guest_is_refused_and_dom0_is_left_as_it_was() {
    // dom0 may not have so little; it can't come down so far; it does, but somebody else is faster.
    for (free, floor, wait, why) in [
        (64, 128, 0, "set memory target"),
        (64, 2000, 0, "wait for memory target"),
        (64, 128, -3, "wait for memory target"),
    ] {
        let dom0 = dom0(free, floor, "XENDOMAINS_START_JOBS=1\n");
        dom0.auto("web");
        dom0.auto("zeta");
        let large = "name = \"alpha\"\ntype = \"pvh\"\nkernel = \"/bin/sh\"\nmemory = ";
        let memory = if why.starts_with("set") { 4096 } else { 500 };
        fs::write(dom0.directory.path().join("auto/alpha"), format!("{large}{memory}\n")).expect("a file");
        if wait != 0 {
            dom0.control.script(json!({"call": "libxl_wait_for_memory_target", "nth": 1, "error": wait}));
        }
        let start = dom0.run("start");
        assert_eq!(start.code, 1, "{why}: {}", start.said);
        let message = format!(
            "create failed: not enough memory for alpha: needs {} MiB, free {free} MiB, dom0 can't give more: {why} \
             (domain 0): ",
            memory + 2
        );
        assert!(start.said.contains(&message), "{message}\n{}", start.said);
        let missing = ((memory + 2) << 10) - (free << 10);
        let changes = dom0.changes();
        assert_eq!(changes[0], minus(missing), "{why}");
        if !why.starts_with("set") {
            assert_eq!(changes[1], -minus(missing), "{why}: it gets back what it gave");
        }
        if floor == 128 {
            // The others take what they need, as if nothing had been.
            assert_eq!(
                dom0.guests(),
                [("web".to_owned(), true), ("zeta".to_owned(), true)],
                "{why}: {}",
                start.said
            );
            let taken = 2 * 131_072 + 2048 - (free << 10);
            assert_eq!(dom0.memory(), (DOM0 - taken, DOM0 - taken), "{why}");
        }
        dom0.expect_sound();
    }
}

#[test]
fn dom0_is_not_asked_for_ever() {
    // It says that it has come down, but somebody else has what it gave.
    let dom0 = dom0(64, 512, "");
    dom0.control.script(json!({"call": "libxl_set_memory_target", "error": 0}));
    let error =
        dom0.libxl().create(&guest("web"), soon(), &|_| {}, Arc::new(|_| {})).expect_err("there is nothing");
    assert!(error.cause.ends_with("dom0 can't give more: it has had 30 s") && !error.timed_out, "{error}");
    // Each wait takes libxl two seconds at least.
    let missing = NEED - (64 << 10);
    let mut expected = vec![minus(missing); 15];
    expected.push(-15 * minus(missing));
    assert_eq!(dom0.changes(), expected);
}

#[test]
fn what_is_promised_to_a_build_is_not_given_to_another() {
    // The first has taken its 128 MiB, and is promised 2 MiB more; or has taken nothing yet.
    for build in [json!({"complete": "never"}), json!({"complete": "never", "stall_ms": 300})] {
        let dom0 = dom0(64, 512, "");
        dom0.control.script(rule("libxl_domain_create_new", &build));
        let libxl = dom0.libxl();
        thread::scope(|scope| {
            let builds = ["a", "b"].map(|name| {
                let build = scope.spawn(|| libxl.create(&guest(name), soon(), &|_| {}, Arc::new(|_| {})));
                dom0.wait_for_call("libxl_domain_create_new", name);
                build
            });
            dom0.wait_for_builds(2);
            assert_eq!(dom0.changes(), [minus(NEED - (64 << 10)), minus(NEED)], "{build}");
            dom0.control.finish(json!({"call": "libxl_domain_create_new"}));
            for build in builds {
                build.join().expect("no panic").expect("there was room for both");
            }
        });
        dom0.expect_sound();
    }
}

#[test]
fn a_guest_waits_for_the_end_of_another_s_build_before_it_gives_up() {
    for fails in [true, false] {
        // Enough for one of them: dom0 can give 80 MiB.
        let dom0 = dom0(64, 2048 - 80, "");
        dom0.control.script(json!({"call": "libxl_domain_create_new", "nth": 1, "complete": "never"}));
        let libxl = dom0.libxl();
        thread::scope(|scope| {
            let first = scope.spawn(|| libxl.create(&guest("a"), soon(), &|_| {}, Arc::new(|_| {})));
            dom0.wait_for_builds(1);
            let before = dom0.memory();
            let notes = Mutex::new(Vec::new());
            let note = |text: &str| {
                assert_eq!(dom0.memory(), before, "dom0 has back what was not enough");
                notes.lock().expect("not poisoned").push(text.to_owned());
                let error = if fails { json!(-3) } else { Value::Null };
                dom0.control.finish(json!({"call": "libxl_domain_create_new", "error": error}));
            };
            let second = libxl.create(&guest("b"), soon(), &note, Arc::new(|_| {}));
            let notes = notes.into_inner().expect("not poisoned");
            assert_eq!(notes, ["waits for memory: needs 130 MiB, free 2 MiB, others are being built"]);
            assert_eq!(first.join().expect("no panic").is_err(), fails);
            match second {
                Ok(_) => assert!(fails),
                Err(error) => assert!(!fails && error.cause.starts_with("not enough memory for b"), "{error}"),
            }
        });
        dom0.expect_sound();
    }
}

#[test]
fn xl_s_lock_is_waited_for_and_its_owner_named() {
    let dom0 = dom0(64, 512, "");
    dom0.auto("web");
    let said = Said::default();
    thread::scope(|scope| {
        let mut xl = Holder::start(&dom0.xl_lock());
        assert!(xl.has_it());
        let start = scope.spawn(|| dom0.run_and_say("start", &said));
        let (lock, id) = (dom0.xl_lock(), xl.child.id());
        said.wait_for(&format!("web: waits for xl's lock {}, held by process {id}\n", lock.display()), 1);
        assert_eq!((dom0.changes(), dom0.guests()), (vec![], vec![]));
        xl.end();
        let start = start.join().expect("no panic");
        assert_eq!((start.code, dom0.guests().len()), (0, 1), "{}", start.said);
    });
    assert!(Holder::start(&dom0.xl_lock()).has_it(), "it is free afterwards");
}

#[test]
fn xl_s_lock_is_held_until_the_last_build_has_ended() {
    let dom0 = dom0(1024, 512, "");
    dom0.control.script(json!([
        {"call": "libxl_domain_create_new", "domain": "a", "complete": "never"},
        {"call": "libxl_domain_create_new", "domain": "b", "error": -3},
    ]));
    let libxl = dom0.libxl();
    thread::scope(|scope| {
        let first = scope.spawn(|| libxl.create(&guest("a"), soon(), &|_| {}, Arc::new(|_| {})));
        dom0.wait_for_builds(1);
        libxl.create(&guest("b"), soon(), &|_| {}, Arc::new(|_| {})).expect_err("it is told to fail");
        assert!(!Holder::start(&dom0.xl_lock()).has_it(), "a is still being built");
        dom0.control.finish(json!({"call": "libxl_domain_create_new"}));
        first.join().expect("no panic").expect("built");
    });
    let mut xl = Holder::start(&dom0.xl_lock());
    assert!(xl.has_it());
    // Nothing but creating and restoring waits for it.
    assert_eq!((dom0.run("status").code, dom0.run("stop").code), (0, 0));
}

#[test]
fn waiting_ends_at_the_deadline() {
    let dom0 = dom0(64, 512, "");
    let libxl = dom0.libxl();
    let error = libxl
        .create(&guest("web"), Some(Instant::now()), &|_| {}, Arc::new(|_| {}))
        .expect_err("no time for dom0");
    assert!(error.timed_out && error.cause.contains("has not got the 130 MiB"), "{error}");
    let mut xl = Holder::start(&dom0.xl_lock());
    assert!(xl.has_it());
    let begun = Instant::now();
    let limit = Duration::from_millis(50);
    let error =
        libxl.create(&guest("web"), Some(begun + limit), &|_| {}, Arc::new(|_| {})).expect_err("it is xl's");
    assert!(begun.elapsed() >= limit && error.timed_out, "{error}");
    let expected = format!("is still held by process {}", xl.child.id());
    assert!(error.cause.ends_with(&expected), "{error}");
    xl.end();
    assert_eq!(dom0.changes(), [0; 0]);
    libxl.create(&guest("web"), soon(), &|_| {}, Arc::new(|_| {})).expect("time enough");
    assert_eq!(dom0.changes().len(), 1);
    assert!(Holder::start(&dom0.xl_lock()).has_it());
}
