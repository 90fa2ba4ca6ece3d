//! What ends or spans processes: misuse, death, a host that several share. Each part is played by this program itself,
//! started once more.

mod common;

use common::*;
use fake_libxl::StateFile;
use serde_json::{Value, json};
use std::ffi::{c_char, c_int, c_void};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use xenlight_sys::libxl::*;
use xenlight_sys::logger::*;

/// Starts this program in a role.
fn command(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("knows its path"));
    command.args(["--exact", "play", "--nocapture"]).env("ROLE", role);
    command
}

fn play_role(role: &str) -> Output {
    let scratch = Scratch::new();
    command(role).env("SCRATCH", &scratch.0).output().expect("starts")
}

/// In a child: its part. Otherwise: a part that nobody knows must fail, or the other tests would prove nothing.
#[test]
fn play() {
    let Ok(role) = std::env::var("ROLE") else {
        let output = play_role("no such role");
        assert!(!output.status.success(), "{output:?}");
        return;
    };
    let fake = fake();
    if role.starts_with("record:") {
        fake.control.script(json!({"refuse": "record"}));
    }
    match role.trim_start_matches("record:") {
        "free_busy" => {
            fake.control.host(json!({"domains": [{"name": "web"}]}));
            let ctx = fake.ctx();
            fake.control.script(json!({"call": "libxl_domain_destroy", "complete": "never"}));
            let op = Op::new();
            // SAFETY: the how lives.
            unsafe { fake.lib.libxl_domain_destroy(ctx.get(), 1, op.how()) };
            fake.free(ctx);
        }
        "twice" => {
            let ctx = fake.ctx();
            fake.control.script(json!({"call": "libxl_domain_pause", "twice": true, "complete": "before_return"}));
            let op = Op::new();
            // SAFETY: the how lives.
            unsafe { fake.lib.libxl_domain_pause(ctx.get(), 0, op.how()) };
            assert_eq!(op.done.try_iter().count(), 2);
        }
        "unknown_abort" => {
            let (ctx, op) = (fake.ctx(), Op::new());
            // SAFETY: the how lives.
            unsafe { fake.lib.libxl_ao_abort(ctx.get(), op.how()) };
        }
        "freed_ctx" => {
            let ctx = fake.ctx();
            fake.free(ctx);
            // SAFETY: the fake knows its freed contexts.
            unsafe { fake.lib.libxl_domain_pause(ctx.get(), 0, null()) };
        }
        "raw_block" => {
            let ctx = fake.ctx();
            let mut block = xenlight_sys::Block::zeroed();
            // SAFETY: the fake looks before it uses the block.
            unsafe { fake.lib.libxl_domain_config_from_json(ctx.get(), block.as_mut_ptr(), c"{}".as_ptr()) };
        }
        "disposed_early" => {
            let ctx = fake.ctx();
            let (op, mut domid) = (Op::new(), 0);
            let config = fake.config(ctx, &guest_config("x"));
            fake.control.script(json!({"call": "libxl_domain_create_new", "delay_ms": 20}));
            // SAFETY: the fake knows which configurations are alive.
            unsafe { fake.lib.libxl_domain_create_new(ctx.get(), config.ptr(), &raw mut domid, op.how(), null()) };
            drop(config);
            let _loop = Loop::start(&fake, ctx);
            op.wait();
        }
        "free_in_callback" => {
            unsafe extern "C" fn free(ctx: *mut libxl_ctx, _rc: c_int, fake: *mut c_void) {
                // SAFETY: the fake that the caller passed.
                unsafe { (*fake.cast::<Fake>()).lib.libxl_ctx_free(ctx) };
            }
            let ctx = fake.ctx();
            let how = libxl_asyncop_how {
                callback: Some(free),
                u: libxl_asyncop_how__bindgen_ty_1 { for_callback: (&raw const fake).cast_mut().cast() },
            };
            fake.control.script(json!({"call": "libxl_domain_pause", "complete": "before_return"}));
            // SAFETY: the how lives.
            unsafe { fake.lib.libxl_domain_pause(ctx.get(), 0, &raw const how) };
        }
        "children_of_two" => {
            fake.control.host(json!({"domains": [{"name": "a"}, {"name": "b"}]}));
            fake.control.script(json!({"call": "libxl_domain_destroy", "complete": "never"}));
            let (one, two) = (fake.ctx(), fake.selective());
            // SAFETY: the hows live.
            unsafe {
                fake.lib.libxl_domain_destroy(one.get(), 1, Op::new().how());
                fake.lib.libxl_domain_destroy(two.get(), 2, Op::new().how());
            }
        }
        "hook" => {
            unsafe extern "C" fn register(
                user: *mut c_void,
                fd: c_int,
                _app: *mut *mut c_void,
                _events: i16,
                libxl: *mut c_void,
            ) -> c_int {
                // SAFETY: what the caller passed.
                unsafe {
                    let (fake, ctx) = *user.cast::<(*const Fake, Ctx)>();
                    (*fake).lib.libxl_osevent_occurred_fd(ctx.get(), libxl, fd, 1, 1);
                }
                0
            }
            let ctx = fake.ctx();
            let hooks = libxl_osevent_hooks { fd_register: Some(register), ..Default::default() };
            let mut user = (&raw const fake, ctx);
            // SAFETY: the table and the argument live.
            unsafe {
                fake.lib.libxl_osevent_register_hooks(ctx.get(), &raw const hooks, (&raw mut user).cast());
            }
        }
        "stuck_logger" => {
            // A logger that waits for a lock. The va_list is one word to it, which it doesn't look at.
            #[repr(C)]
            struct Table(
                unsafe extern "C" fn(*mut Table, c_int, c_int, *const c_char, *const c_char, *const c_void),
                Option<unsafe extern "C" fn()>,
                unsafe extern "C" fn(*mut Table),
            );
            static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
            unsafe extern "C" fn message(
                _table: *mut Table,
                _level: c_int,
                _errno: c_int,
                _context: *const c_char,
                _format: *const c_char,
                _args: *const c_void,
            ) {
                let _held = LOCK.lock();
                std::thread::sleep(Duration::from_millis(1));
            }
            unsafe extern "C" fn destroy(_table: *mut Table) {}
            let mut table = Table(message, None, destroy);
            let mut ctx = null_mut();
            fake.control.script(json!({"call": "libxl_domain_pause", "log_in_child": true}));
            // SAFETY: a table as xentoollog's, and a place for the context.
            unsafe {
                fake.lib.libxl_ctx_alloc(&raw mut ctx, 0, 0, (&raw mut table).cast());
                fake.lib.libxl_domain_pause(ctx, 0, null());
            }
        }
        "default_mode" => {
            // libxl takes the end of a child that isn't its own.
            fake.control.host(json!({"domains": [{"name": "web"}]}));
            let ctx = fake.ctx();
            let mut child = Command::new("true").spawn().expect("starts");
            // SAFETY: a child of ours and a place for the answer; the child is only looked at.
            unsafe {
                let mut info = std::mem::zeroed();
                assert_eq!(libc::waitid(libc::P_PID, child.id(), &raw mut info, libc::WEXITED | libc::WNOWAIT), 0);
            }
            // SAFETY: a domain's number.
            unsafe { assert_eq!(fake.lib.libxl_domain_destroy(ctx.get(), 1, null()), 0) };
            assert_eq!(child.wait().expect_err("taken").raw_os_error(), Some(libc::ECHILD));
            fake.free(ctx);
            println!("DONE");
        }
        "no_disaster_hook" => {
            let ctx = fake.ctx();
            fake.control.script(json!({"call": "libxl_domain_pause", "disaster": "gone"}));
            // SAFETY: a domain's number.
            unsafe { fake.lib.libxl_domain_pause(ctx.get(), 0, null()) };
        }
        "save" => {
            let ctx = fake.selective();
            let file = File::create(std::env::var_os("IMAGE").expect("given")).expect("creates");
            let domid = fake.domid(ctx, "web").expect("there");
            // SAFETY: the file lives.
            let rc = unsafe { fake.lib.libxl_domain_suspend(ctx.get(), domid, file.as_raw_fd(), 0, null()) };
            fake.free(ctx);
            println!("RC {rc}");
        }
        "watch" => {
            let ctx = fake.ctx();
            let (mut generator, mut event) = (null_mut(), null_mut());
            // SAFETY: places for what the calls give.
            unsafe {
                assert_eq!(fake.lib.libxl_evenable_domain_death(ctx.get(), 1, 0, &raw mut generator), 0);
                assert_eq!(fake.lib.libxl_event_wait(ctx.get(), &raw mut event, u64::MAX, None, null_mut()), 0);
                println!("REASON {}", (*event).u.domain_shutdown.shutdown_reason);
                fake.lib.libxl_event_free(ctx.get(), event);
            }
            fake.free(ctx);
        }
        other => panic!("no role {other}"),
    }
    if role.starts_with("record:") {
        println!("REFUSALS {}", fake.control.state()["refusals"]);
    }
}

const MISUSE: &[(&str, &str)] = &[
    ("free_busy", "libxl_ctx_free while libxl_domain_destroy"),
    ("twice", "completed twice"),
    ("unknown_abort", "libxl_ao_abort of a how"),
    ("freed_ctx", "on a freed context"),
    ("raw_block", "un-initialised"),
    ("disposed_early", "disposed of before the operation ended"),
    ("free_in_callback", "while one of the context's callbacks runs"),
    ("children_of_two", "not both reap selectively"),
    ("hook", "from inside a hook"),
    ("stuck_logger", "does not return in a forked child"),
];

#[test]
fn misuse_is_fatal() {
    for (role, words) in MISUSE {
        let output = play_role(role);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{role}: {text}");
        assert!(text.contains("fake-libxl: refused: ") && text.contains(words), "{role}: {text}");
    }
}

#[test]
fn misuse_is_only_recorded_where_a_test_asks() {
    for (role, words) in [MISUSE[1], MISUSE[2], MISUSE[4]] {
        let output = play_role(&format!("record:{role}"));
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{role}: {text}");
        let line = text.lines().find(|l| l.contains("REFUSALS")).unwrap_or_default();
        assert!(line.contains(words), "{role}: {line}");
    }
}

#[test]
fn the_default_mode_takes_other_children() {
    let output = play_role("default_mode");
    assert!(String::from_utf8_lossy(&output.stdout).contains("DONE"), "{output:?}");
}

#[test]
fn a_disaster_without_a_hook_ends_the_process() {
    assert_eq!(play_role("no_disaster_hook").status.code(), Some(255));
}

/// A host in a file, and a command that runs in it.
fn shared(role: &str, rules: &Value) -> (Scratch, StateFile, Command) {
    let scratch = Scratch::new();
    let state = StateFile::new(&scratch.0.join("state"));
    state.host(&json!({"domains": [{"name": "web"}]}));
    std::fs::write(scratch.0.join("script"), rules.to_string()).expect("writes");
    let mut command = command(role);
    command
        .env("FAKE_LIBXL_STATE", scratch.0.join("state"))
        .env("FAKE_LIBXL_SCRIPT", scratch.0.join("script"))
        .env("SCRATCH", &scratch.0)
        .env("IMAGE", scratch.0.join("image"));
    (scratch, state, command)
}

#[test]
fn the_host_outlives_the_process() {
    let (scratch, state, mut command) = shared("save", &json!([]));
    let output = command.output().expect("starts");
    assert!(String::from_utf8_lossy(&output.stdout).contains("RC 0"), "{output:?}");
    let now = state.state();
    assert_eq!(now["domains"]["1"]["shutdown"], 2);
    assert_eq!(now["images"]["image-1"]["complete"], true);
    let call = &now["calls"][0];
    assert_eq!(
        (&call["call"], &call["rc"], &call["completed"]),
        (&json!("libxl_domain_suspend"), &json!(0), &json!(0))
    );
    assert!(scratch.0.join("image").metadata().expect("there").len() > 65_536);
}

#[test]
fn processes_die_where_the_script_says() {
    for (at, size, shutdown, complete) in [
        ("before", 0..1, json!(null), json!(null)),
        ("during", 1..65_536, json!(2), json!(false)),
        ("after", 65_536..90_000, json!(2), json!(true)),
    ] {
        let rule = json!([{"call": "libxl_domain_suspend", "die": at, "signal": libc::SIGKILL}]);
        let (scratch, state, mut command) = shared("save", &rule);
        let status = command.output().expect("starts").status;
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{at}");
        let now = state.state();
        assert_eq!(now["domains"]["1"]["shutdown"], shutdown, "{at}");
        assert_eq!(now["images"]["image-1"]["complete"], complete, "{at}");
        assert_eq!(now["calls"][0]["rc"], json!(null), "{at}");
        let written = scratch.0.join("image").metadata().expect("there").len();
        assert!(size.contains(&written), "{at}: {written}");
    }
}

#[test]
fn events_of_other_processes_are_noticed() {
    let (_scratch, state, mut command) = shared("watch", &json!([]));
    let child = command.stdout(std::process::Stdio::piped()).spawn().expect("starts");
    state.wait(|s| s["calls"].as_array().is_some_and(|c| !c.is_empty() && c[0]["rc"] == 0));
    state.guest(&json!({"domain": "web", "does": "crash"}));
    let output = child.wait_with_output().expect("ends");
    assert!(String::from_utf8_lossy(&output.stdout).contains("REASON 3"), "{output:?}");
}

#[test]
fn a_script_that_makes_no_sense_is_fatal() {
    let (_scratch, _state, mut command) = shared("save", &json!([{"call": "libxl_domain_suspend", "erorr": -3}]));
    let output = command.output().expect("starts");
    assert_eq!(output.status.signal(), Some(libc::SIGABRT));
    assert!(String::from_utf8_lossy(&output.stderr).contains("erorr"), "{output:?}");
}

static LINES: AtomicUsize = AtomicUsize::new(0);
static STEPS: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn line(
    _data: *mut c_void,
    level: xentoollog_level,
    _errno: c_int,
    _context: *const c_char,
    text: *const c_char,
) {
    // SAFETY: a string.
    let text = unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy();
    if level == XTL_ERROR && text.ends_with("Domain 0:said %s so") {
        LINES.fetch_add(1, Ordering::SeqCst);
    }
}

unsafe extern "C" fn step(
    _data: *mut c_void,
    _context: *const c_char,
    _doing: *const c_char,
    percent: c_int,
    _done: libc::c_ulong,
    _total: libc::c_ulong,
) {
    STEPS.fetch_add(usize::try_from(percent).expect("not negative"), Ordering::SeqCst);
}

#[test]
fn the_logger_hears_in_the_parent_and_in_children() {
    let fake = fake();
    let (mut reader, writer) = pipe();
    // SAFETY: zero is a valid value of the struct, which init then fills; it stays in its place until the context ends.
    let mut logger: Box<xenlight_logger> = Box::new(unsafe { std::mem::zeroed() });
    let mut ctx = null_mut();
    fake.control.script(json!({"call": "libxl_domain_pause", "log_in_child": true, "progress": 4,
                               "log": [{"level": XTL_ERROR, "text": "said %s so"}]}));
    // SAFETY: as above; a place for the context.
    unsafe {
        xenlight_logger_init(&raw mut *logger, Some(line), Some(step), null_mut(), XTL_DEBUG, writer.as_raw_fd());
        assert_eq!(fake.lib.libxl_ctx_alloc(&raw mut ctx, 0, 0, (&raw mut logger.vtable).cast()), 0);
        assert_eq!(fake.lib.libxl_domain_pause(ctx, 0, null()), 0);
        assert_eq!(fake.lib.libxl_ctx_free(ctx), 0);
    }
    drop(writer);
    let mut records = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut records).expect("reads");
    let text = String::from_utf8_lossy(&records);
    assert_eq!(text.matches("from a forked child").count(), 20);
    assert_eq!((LINES.load(Ordering::SeqCst), STEPS.load(Ordering::SeqCst)), (1, 25 + 50 + 75 + 100));
    assert_eq!(fake.control.state()["refusals"], json!([]));
}
