//! Each behaviour that the fake promises.

mod common;

use common::*;
use serde_json::json;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::ptr::null;
use std::thread;
use std::time::{Duration, Instant};
use xenlight_sys::libxl::*;
use xenlight_sys::{Block, Release};

fn web() -> (Fake, Ctx, u32) {
    let fake = fake();
    fake.control.host(json!({"domains": [{"name": "web"}]}));
    let ctx = fake.selective();
    let domid = fake.domid(ctx, "web").expect("web is there");
    (fake, ctx, domid)
}

#[test]
fn every_release_opens_and_lists() {
    for minor in 14..=22 {
        let release = Release::new(4, minor);
        let fake = fake_of(release);
        fake.control.host(json!({"domains": [{"name": "a", "ssid_label": "label"}, {"name": "b", "paused": true},
                                             {"name": "c", "shutdown": 1}]}));
        assert_eq!(fake.control.state()["release"], format!("4.{minor}"));
        let ctx = fake.ctx();
        let mut n = 0;
        // SAFETY: a place for the count; the list has elements at the release's stride and is freed as it came.
        let seen: Vec<_> = unsafe {
            let list = fake.lib.libxl_list_domain(ctx.get(), &raw mut n);
            let seen = (0..n)
                .map(|i| {
                    let at = list.cast::<u8>().add(usize::try_from(i).expect("small") * release.dominfo_stride());
                    let info = &*at.cast::<libxl_dominfo>();
                    (info.domid, info.paused, info.shutdown, info.shutdown_reason, info.current_memkb)
                })
                .collect();
            fake.lib.libxl_dominfo_list_free(list, n);
            seen
        };
        assert_eq!(
            seen,
            [
                (0, false, false, -1, 2 << 20),
                (1, false, false, -1, 131_072),
                (2, true, false, -1, 131_072),
                (3, false, true, LIBXL_SHUTDOWN_REASON_REBOOT, 131_072)
            ]
        );
        let mut block = Block::zeroed();
        // SAFETY: a block that is large enough; disposed of again.
        unsafe {
            let info: *mut libxl_dominfo = block.as_mut_ptr();
            fake.lib.libxl_dominfo_init(info);
            assert_eq!(fake.lib.libxl_domain_info(ctx.get(), info, 1), 0);
            assert_eq!((*info).domid, 1);
            fake.lib.libxl_dominfo_dispose(info);
            assert_eq!(fake.lib.libxl_domain_info(ctx.get(), info, 99), ERROR_DOMAIN_NOTFOUND);
        }
        fake.free(ctx);
    }
}

#[test]
fn creates_paused_and_counts_runs() {
    let fake = fake();
    let ctx = fake.selective();
    let looped = Loop::start(&fake, ctx);
    let config = fake.config(ctx, &guest_config("new"));
    let (op, mut domid) = (Op::new(), 0);
    // SAFETY: everything lives until the operation ends.
    let rc =
        unsafe { fake.lib.libxl_domain_create_new(ctx.get(), config.ptr(), &raw mut domid, op.how(), null()) };
    assert_eq!((rc, op.wait()), (0, 0));
    let state = fake.control.state();
    let new = &state["domains"][domid.to_string()];
    assert_eq!((&new["name"], &new["paused"]), (&json!("new"), &json!(true)));
    assert_eq!(state["runs"], json!({}));
    // SAFETY: a synchronous call beside the loop's thread.
    assert_eq!(unsafe { fake.lib.libxl_domain_unpause(ctx.get(), domid, null()) }, 0);
    assert_eq!(
        fake.control.state()["runs"]["11111111-2222-4333-8444-555555555555"].as_array().map(Vec::len),
        Some(1)
    );
    assert_eq!(config.json(ctx)["b_info"]["claim_mode"], "False");

    // The same name again: started, and then refused.
    let again = fake.config(ctx, &guest_config("new"));
    let op = Op::new();
    // SAFETY: as above.
    let rc = unsafe { fake.lib.libxl_domain_create_new(ctx.get(), again.ptr(), &raw mut domid, op.how(), null()) };
    assert_eq!((rc, op.wait(), domid), (0, ERROR_INVAL, INVALID_DOMID));
    drop((config, again, looped));
    fake.free(ctx);
    let live = &fake.control.state()["live"];
    assert_eq!((&live["configs"], &live["contexts"], &live["events"]), (&json!(0), &json!(0), &json!(0)));
}

#[test]
fn completes_where_the_script_says() {
    let (fake, ctx, domid) = web();
    fake.control.script(json!([
        {"call": "libxl_domain_pause", "nth": 1, "complete": "before_return"},
        {"call": "libxl_domain_pause", "nth": 2, "complete": "other_thread", "delay_ms": 5},
        {"call": "libxl_domain_pause", "nth": 3, "complete": "event_loop"},
        {"call": "libxl_domain_pause", "nth": 4, "start_error": ERROR_NOMEM},
        {"call": "libxl_domain_pause", "nth": 5, "error": ERROR_FAIL},
    ]));
    // SAFETY: hows live until their completion.
    let pause = |op: &Op| unsafe { fake.lib.libxl_domain_pause(ctx.get(), domid, op.how()) };

    let op = Op::new();
    assert_eq!(pause(&op), 0);
    let done = op.done.try_recv().expect("completed before the call returned");
    assert_eq!((done.rc, done.thread), (0, thread::current().id()));

    let op = Op::new();
    assert_eq!(pause(&op), 0);
    let done = op.done.recv_timeout(Duration::from_secs(5)).expect("completes without a loop");
    assert_ne!(done.thread, thread::current().id());

    let op = Op::new();
    assert_eq!(pause(&op), 0);
    op.nothing_for(30);
    let looped = Loop::start(&fake, ctx);
    let done = op.done.recv_timeout(Duration::from_secs(5)).expect("completes in the loop");
    assert_eq!(done.thread, looped.thread());

    let op = Op::new();
    assert_eq!(pause(&op), ERROR_NOMEM);
    op.nothing_for(30);

    let op = Op::new();
    assert_eq!((pause(&op), op.wait()), (0, ERROR_FAIL));
    drop(looped);
    fake.free(ctx);
}

#[test]
fn never_completes_until_aborted() {
    let (fake, ctx, domid) = web();
    let looped = Loop::start(&fake, ctx);
    fake.control.script(json!({"call": "libxl_domain_suspend", "complete": "never", "partial_bytes": 100}));
    let file = File::create(fake.scratch.0.join("image")).expect("creates a file");
    let op = Op::new();
    // SAFETY: the file and the how live until the completion.
    unsafe {
        assert_eq!(fake.lib.libxl_domain_suspend(ctx.get(), domid, file.as_raw_fd(), 0, op.how()), 0);
        let end = Instant::now() + Duration::from_secs(10);
        while file.metadata().expect("exists").len() != 100 {
            assert!(Instant::now() < end, "it gets as far as the rule says");
            thread::sleep(Duration::from_millis(1));
        }
        op.nothing_for(50);
        assert_eq!(file.metadata().expect("exists").len(), 100);
        assert_eq!(fake.lib.libxl_ao_abort(ctx.get(), op.how()), 0);
        assert_eq!(op.wait(), ERROR_ABORTED);
        assert_eq!(fake.lib.libxl_ao_abort(ctx.get(), op.how()), ERROR_NOTFOUND);
        // By then the guest was suspended.
        assert_eq!(fake.lib.libxl_domain_resume(ctx.get(), domid, 1, null()), 0);
        assert_eq!(fake.lib.libxl_domain_resume(ctx.get(), domid, 1, null()), ERROR_FAIL);
    }

    // One that doesn't listen says that it was asked before.
    fake.control.script(json!({"call": "libxl_domain_destroy", "complete": "never", "ignore_abort": true}));
    let op = Op::new();
    // SAFETY: as above.
    unsafe {
        assert_eq!(fake.lib.libxl_domain_destroy(ctx.get(), domid, op.how()), 0);
        assert_eq!(fake.lib.libxl_ao_abort(ctx.get(), op.how()), 0);
        assert_eq!(fake.lib.libxl_ao_abort(ctx.get(), op.how()), ERROR_ABORTED);
    }
    op.nothing_for(30);
    fake.control.finish(json!({"call": "libxl_domain_destroy"}));
    assert_eq!(op.wait(), 0);
    drop(looped);
    fake.free(ctx);
}

#[test]
fn an_aborted_create_leaves_the_domain() {
    let fake = fake();
    let ctx = fake.selective();
    fake.control.script(json!({"call": "libxl_domain_create_new", "complete": "never"}));
    let config = fake.config(ctx, &guest_config("half"));
    let (op, mut domid) = (Op::new(), 0);
    // SAFETY: everything lives until the operation ends.
    unsafe {
        assert_eq!(fake.lib.libxl_domain_create_new(ctx.get(), config.ptr(), &raw mut domid, op.how(), null()), 0);
        assert_eq!(fake.lib.libxl_ao_abort(ctx.get(), op.how()), 0);
    }
    assert_eq!(op.wait(), ERROR_ABORTED);
    assert_eq!(fake.domid(ctx, "half"), Some(domid));
    drop(config);
    fake.free(ctx);
}

/// Saves web into a file and returns it, rewound.
fn saved(fake: &Fake, ctx: Ctx, domid: u32) -> File {
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(fake.scratch.0.join("image"))
        .expect("opens a file");
    // SAFETY: the file lives.
    assert_eq!(unsafe { fake.lib.libxl_domain_suspend(ctx.get(), domid, file.as_raw_fd(), 0, null()) }, 0);
    file.rewind().expect("rewinds");
    file
}

fn restored(fake: &Fake, ctx: Ctx, config: &Config, file: &File) -> (i32, u32) {
    let (mut domid, mut params) = (0, libxl_domain_restore_params::default());
    // SAFETY: all of these live for the synchronous call.
    unsafe {
        fake.lib.libxl_domain_restore_params_init(&raw mut params);
        assert_eq!(params.stream_version, 1);
        params.stream_version = 2;
        let rc = fake.lib.libxl_domain_create_restore(
            ctx.get(),
            config.ptr(),
            &raw mut domid,
            file.as_raw_fd(),
            -1,
            &raw const params,
            null(),
            null(),
        );
        fake.lib.libxl_domain_restore_params_dispose(&raw mut params);
        (rc, domid)
    }
}

#[test]
fn saves_and_restores_once() {
    let (fake, ctx, domid) = web();
    let mut file = saved(&fake, ctx, domid);
    let state = fake.control.state();
    assert_eq!(state["domains"][domid.to_string()]["shutdown"], LIBXL_SHUTDOWN_REASON_SUSPEND);
    let bytes = std::fs::read(fake.scratch.0.join("image")).expect("reads");
    assert_eq!(&bytes[..12], b"LibxlFmt\0\0\0\x02");
    assert_eq!(bytes[bytes.len() - 8..], [0; 8]);
    assert!(bytes.len() > 65_536);

    let config = Config::new(fake.lib.clone());
    // SAFETY: an initialised block; a domain's number.
    unsafe {
        assert_eq!(fake.lib.libxl_retrieve_domain_configuration(ctx.get(), domid, config.ptr(), null()), 0);
        assert_eq!(fake.lib.libxl_domain_destroy(ctx.get(), domid, null()), 0);
        assert_eq!(fake.lib.libxl_domain_destroy(ctx.get(), domid, null()), ERROR_DOMAIN_NOTFOUND);
    }
    assert_eq!(config.json(ctx)["c_info"]["name"], "web");

    let (rc, domid) = restored(&fake, ctx, &config, &file);
    assert_eq!((rc, Some(domid)), (0, fake.domid(ctx, "web")));
    // It took exactly its stream, so that more can follow.
    assert_eq!(file.stream_position().expect("has one"), bytes.len() as u64);
    // SAFETY: a domain's number.
    unsafe { assert_eq!(fake.lib.libxl_domain_unpause(ctx.get(), domid, null()), 0) };
    let state = fake.control.state();
    assert_eq!(state["violations"], json!([]));
    let uuid = state["domains"][domid.to_string()]["uuid"].as_str().expect("has one").to_owned();
    assert_eq!(state["runs"][uuid].as_array().map(Vec::len), Some(2));

    // Once more from the same image: what must never happen is noticed.
    // SAFETY: as above.
    unsafe { assert_eq!(fake.lib.libxl_domain_destroy(ctx.get(), domid, null()), 0) };
    file.rewind().expect("rewinds");
    let (rc, domid) = restored(&fake, ctx, &config, &file);
    assert_eq!(rc, 0);
    // SAFETY: as above.
    unsafe { assert_eq!(fake.lib.libxl_domain_unpause(ctx.get(), domid, null()), 0) };
    assert_eq!(fake.control.state()["violations"].as_array().map(Vec::len), Some(1));
    drop(config);
    fake.free(ctx);
}

#[test]
fn a_guest_that_ran_on_makes_its_image_stale() {
    let (fake, ctx, domid) = web();
    let file = saved(&fake, ctx, domid);
    let config = Config::new(fake.lib.clone());
    // SAFETY: an initialised block; a domain's number.
    unsafe {
        assert_eq!(fake.lib.libxl_retrieve_domain_configuration(ctx.get(), domid, config.ptr(), null()), 0);
        assert_eq!(fake.lib.libxl_domain_resume(ctx.get(), domid, 1, null()), 0);
        assert_eq!(fake.lib.libxl_domain_destroy(ctx.get(), domid, null()), 0);
    }
    let (rc, domid) = restored(&fake, ctx, &config, &file);
    assert_eq!(rc, 0);
    // SAFETY: a domain's number.
    unsafe { assert_eq!(fake.lib.libxl_domain_unpause(ctx.get(), domid, null()), 0) };
    let violations = fake.control.state()["violations"].to_string();
    assert!(violations.contains("stale"), "{violations}");
    drop(config);
    fake.free(ctx);
}

#[test]
fn broken_images_leave_no_domain() {
    let (fake, ctx, domid) = web();
    let mut file = saved(&fake, ctx, domid);
    // SAFETY: a domain's number.
    unsafe { assert_eq!(fake.lib.libxl_domain_destroy(ctx.get(), domid, null()), 0) };
    let whole = std::fs::read(fake.scratch.0.join("image")).expect("reads");
    let mut flipped = whole.clone();
    flipped[40_000] ^= 1;
    for bytes in [&whole[..0], &whole[..10], &whole[..1000], &whole[..whole.len() - 1], &flipped] {
        let mut broken = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(fake.scratch.0.join("broken"))
            .expect("opens a file");
        broken.write_all(bytes).expect("writes");
        broken.rewind().expect("rewinds");
        let config = fake.config(ctx, &guest_config("web"));
        let free = fake.control.state()["free_kb"].clone();
        assert_eq!(restored(&fake, ctx, &config, &broken), (ERROR_FAIL, INVALID_DOMID), "{} bytes", bytes.len());
        assert_eq!(fake.domid(ctx, "web"), None);
        assert_eq!(fake.control.state()["free_kb"], free);
    }
    file.rewind().expect("rewinds");
    fake.free(ctx);
}

#[test]
fn save_fails_on_broken_pipes_and_full_disks() {
    let (fake, ctx, domid) = web();
    let (reader, writer) = pipe();
    drop(reader);
    // SAFETY: the descriptors live for the synchronous calls. Rust's programs ignore SIGPIPE.
    unsafe {
        assert_eq!(fake.lib.libxl_domain_suspend(ctx.get(), domid, writer.as_raw_fd(), 0, null()), ERROR_FAIL);
        // Nothing was written, so the guest had not been asked yet.
        assert_eq!(fake.lib.libxl_domain_resume(ctx.get(), domid, 1, null()), ERROR_FAIL);
        let full = File::options().write(true).open("/dev/full").expect("Linux has it");
        assert_eq!(fake.lib.libxl_domain_suspend(ctx.get(), domid, full.as_raw_fd(), 0, null()), ERROR_FAIL);
    }
    fake.free(ctx);
}

#[test]
fn a_slow_reader_holds_up_nothing_else() {
    let (fake, ctx, domid) = web();
    let looped = Loop::start(&fake, ctx);
    let (mut reader, writer) = pipe();
    let op = Op::new();
    // SAFETY: the pipe lives until the completion.
    unsafe {
        assert_eq!(fake.lib.libxl_domain_suspend(ctx.get(), domid, writer.as_raw_fd(), 0, op.how()), 0);
        op.nothing_for(30);
        assert_eq!(fake.lib.libxl_domain_pause(ctx.get(), 0, null()), 0);
    }
    let mut bytes = Vec::new();
    let read = thread::spawn(move || {
        std::io::Read::read_to_end(&mut reader, &mut bytes).expect("reads");
        bytes.len()
    });
    assert_eq!(op.wait(), 0);
    drop(writer);
    assert!(read.join().expect("ends") > 65_536);
    drop(looped);
    fake.free(ctx);
}

#[test]
fn events_come_as_in_libxl() {
    let fake = fake();
    fake.control.host(json!({"domains": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}));
    let ctx = fake.selective();
    let events = listen(&fake, ctx);
    let looped = Loop::start(&fake, ctx);
    let enable = |domid, user| {
        let mut generator = std::ptr::null_mut();
        // SAFETY: a place for the generator.
        let rc = unsafe { fake.lib.libxl_evenable_domain_death(ctx.get(), domid, user, &raw mut generator) };
        assert_eq!(rc, 0);
        generator
    };
    looped.go_round();
    // The first generator looks at once; a later one doesn't.
    fake.control.guest(json!({"domain": "a", "does": "poweroff"}));
    // What has happened before the generator was there has woken the loop by now.
    looped.go_round();
    let first = enable(1, 100);
    // Who waits already is not told that there is more to wait for.
    no_event(&events, 50);
    looped.wake();
    assert_eq!(next(&events), Told::Shutdown { domid: 1, user: 100, reason: 0 });
    fake.control.guest(json!({"domain": "b", "does": "crash"}));
    looped.go_round();
    enable(2, 200);
    no_event(&events, 50);
    // The next release of any domain tells.
    fake.control.guest(json!({"domain": "c", "does": "vanish"}));
    assert_eq!(next(&events), Told::Shutdown { domid: 2, user: 200, reason: 3 });
    // Once only, and then the death.
    // SAFETY: domains' numbers; the generator is one of ours.
    unsafe { assert_eq!(fake.lib.libxl_domain_destroy(ctx.get(), 2, null()), 0) };
    assert_eq!(next(&events), Told::Death { domid: 2, user: 200 });
    // A suspend uses a generator up.
    fake.control.host(json!({"domains": [{"name": "d"}]}));
    enable(4, 400);
    // SAFETY: as above.
    unsafe {
        assert_eq!(fake.lib.libxl_domain_suspend_only(ctx.get(), 4, null()), 0);
        assert_eq!(next(&events), Told::Shutdown { domid: 4, user: 400, reason: 2 });
        assert_eq!(fake.lib.libxl_domain_resume(ctx.get(), 4, 1, null()), 0);
    }
    fake.control.guest(json!({"domain": "d", "does": "poweroff"}));
    looped.go_round();
    no_event(&events, 50);
    enable(4, 401);
    no_event(&events, 50);
    // SAFETY: as above.
    unsafe {
        fake.lib.libxl_evdisable_domain_death(ctx.get(), first);
        assert_eq!(fake.lib.libxl_domain_destroy(ctx.get(), 4, null()), 0);
    }
    assert_eq!(next(&events), Told::Death { domid: 4, user: 400 });
    assert_eq!(next(&events), Told::Death { domid: 4, user: 401 });
    drop(looped);
    fake.free(ctx);
    assert_eq!(fake.control.state()["live"]["events"], 0);
}

#[test]
fn events_wait_in_the_queue_and_wake_a_waiter() {
    let (fake, ctx, domid) = web();
    let mut generator = std::ptr::null_mut();
    let mut event = std::ptr::null_mut();
    let all = u64::MAX;
    // SAFETY: places for what the calls give; the event is freed.
    unsafe {
        assert_eq!(fake.lib.libxl_evenable_domain_death(ctx.get(), domid, 7, &raw mut generator), 0);
        let not_yet = fake.lib.libxl_event_check(ctx.get(), &raw mut event, all, None, std::ptr::null_mut());
        assert_eq!(not_yet, ERROR_NOT_READY);
        fake.control.guest(json!({"domain": "web", "does": "reboot", "after_ms": 30}));
        let rc = fake.lib.libxl_event_wait(ctx.get(), &raw mut event, all, None, std::ptr::null_mut());
        assert_eq!(rc, 0);
        assert_eq!(((*event).domid, (*event).u.domain_shutdown.shutdown_reason), (domid, 1));
        fake.lib.libxl_event_free(ctx.get(), event);

        // A how without callback makes an event too.
        let how = libxl_asyncop_how { callback: None, u: libxl_asyncop_how__bindgen_ty_1 { for_event: 42 } };
        assert_eq!(fake.lib.libxl_domain_destroy(ctx.get(), domid, &raw const how), 0);
        let mask = 1 << LIBXL_EVENT_TYPE_OPERATION_COMPLETE;
        let rc = fake.lib.libxl_event_wait(ctx.get(), &raw mut event, mask, None, std::ptr::null_mut());
        assert_eq!((rc, (*event).for_user, (*event).u.operation_complete.rc), (0, 42, 0));
        fake.lib.libxl_event_free(ctx.get(), event);
    }
    fake.free(ctx);
}

#[test]
fn guests_react_to_shutdown_each_in_its_way() {
    let fake = fake();
    fake.control.host(json!({"domains": [
        {"name": "good"},
        {"name": "deaf", "guest": {"shutdown": "ignore", "timeout_ms": 60}},
        {"name": "reboots", "guest": {"shutdown": "reboot"}},
        {"name": "stays", "guest": {"shutdown": "ack_only"}},
        {"name": "bare", "type": "hvm", "guest": {"pv_drivers": false}},
    ]}));
    let ctx = fake.ctx();
    // SAFETY: domains' numbers.
    let ask = |domid| unsafe { fake.lib.libxl_domain_shutdown(ctx.get(), domid, null()) };
    let down = |domid: u32| fake.control.state()["domains"][domid.to_string()]["shutdown"].clone();
    assert_eq!(ask(1), 0);
    fake.control.wait(|s| s["domains"]["1"]["shutdown"] == 0);
    let start = Instant::now();
    assert_eq!(ask(2), ERROR_TIMEDOUT);
    assert!(start.elapsed() >= Duration::from_millis(55));
    // The request is still there, and may be obeyed late.
    assert_eq!(fake.control.state()["domains"]["2"]["request"], "poweroff");
    assert_eq!(ask(3), 0);
    fake.control.wait(|s| s["domains"]["3"]["shutdown"] == 1);
    assert_eq!(ask(4), 0);
    assert_eq!(ask(5), ERROR_NOPARAVIRT);
    // SAFETY: as above.
    unsafe { assert_eq!(fake.lib.libxl_send_trigger(ctx.get(), 5, LIBXL_TRIGGER_POWER, 0, null()), 0) };
    fake.control.wait(|s| s["domains"]["5"]["shutdown"] == 0);
    assert_eq!(down(4), json!(null));
    assert_eq!(ask(99), ERROR_FAIL);
    // SAFETY: as above.
    unsafe { assert_eq!(fake.lib.libxl_send_sysrq(ctx.get(), 4, b's' as libc::c_char), 0) };
    assert_eq!(fake.control.state()["domains"]["4"]["sysrq"], "s");
    fake.free(ctx);
}

#[test]
fn a_shutdown_can_be_aborted() {
    let (fake, ctx, domid) = web();
    fake.control.host(json!({"domains": [{"name": "deaf", "guest": {"shutdown": "ignore"}}]}));
    let (op, deaf) = (Op::new(), fake.domid(ctx, "deaf").expect("there"));
    // SAFETY: the how lives until the completion.
    unsafe {
        assert_eq!(fake.lib.libxl_domain_shutdown(ctx.get(), deaf, op.how()), 0);
        assert_eq!(fake.lib.libxl_ao_abort(ctx.get(), op.how()), 0);
    }
    // Told from inside the abort: no loop runs here.
    assert_eq!(op.done.try_recv().expect("told").rc, ERROR_ABORTED);
    // From another thread, against a synchronous call.
    let lib = fake.lib.clone();
    let blocked = thread::spawn(move || {
        // SAFETY: a domain's number.
        unsafe { lib.libxl_domain_shutdown(ctx.get(), deaf, null()) }
    });
    fake.control.wait(|s| s["live"]["operations"].as_array().is_some_and(|a| !a.is_empty()));
    // SAFETY: null is the synchronous call.
    unsafe { assert_eq!(fake.lib.libxl_ao_abort(ctx.get(), null()), 0) };
    assert_eq!(blocked.join().expect("ends"), ERROR_ABORTED);
    assert!(domid > 0);
    fake.free(ctx);
}

#[test]
fn a_stall_blocks_the_whole_context() {
    let (fake, ctx, domid) = web();
    fake.control.script(json!({"call": "libxl_domain_create_new", "stall_ms": 200}));
    let config = fake.config(ctx, &guest_config("slow"));
    let (lib, block) = (fake.lib.clone(), config.ptr() as usize);
    let start = Instant::now();
    let create = thread::spawn(move || {
        let mut made = 0;
        // SAFETY: the configuration lives until this thread is joined.
        unsafe { lib.libxl_domain_create_new(ctx.get(), block as *mut _, &raw mut made, null(), null()) }
    });
    fake.control
        .wait(|s| s["calls"].as_array().is_some_and(|c| c.iter().any(|c| c["call"] == "libxl_domain_create_new")));
    // SAFETY: a domain's number.
    unsafe { assert_eq!(fake.lib.libxl_domain_pause(ctx.get(), domid, null()), 0) };
    assert!(start.elapsed() >= Duration::from_millis(190), "{:?}", start.elapsed());
    assert_eq!(create.join().expect("ends"), 0);
    drop(config);
    fake.free(ctx);
}

#[test]
fn json_is_forgiving_as_libxl_is() {
    let fake = fake();
    let ctx = fake.ctx();
    let config = Config::new(fake.lib.clone());
    assert_eq!(config.load(ctx, r#"{"c_info":{"name":5,"typo":1,"type":"PVH"},"b_info":{"max_vcpus":3}}"#), 0);
    let printed = config.json(ctx);
    assert_eq!(printed["c_info"], json!({"type": "pvh"}));
    assert_eq!(printed["b_info"]["max_vcpus"], 3);
    assert_eq!(printed["b_info"]["sched_params"], json!({}));
    let config = Config::new(fake.lib.clone());
    assert_eq!(config.load(ctx, r#"{"on_crash":"explode"}"#), ERROR_FAIL);
    let copy = Config::new(fake.lib.clone());
    let from = fake.config(ctx, &guest_config("x"));
    // SAFETY: two initialised blocks.
    unsafe { fake.lib.libxl_domain_config_copy(ctx.get(), copy.ptr(), from.ptr()) };
    assert_eq!(copy.json(ctx), from.json(ctx));
    drop((config, copy, from));
    fake.free(ctx);
}

#[test]
fn userdata_memory_names_and_host() {
    let (fake, ctx, domid) = web();
    let data = b"ours";
    let (mut out, mut n, mut kb) = (std::ptr::null_mut(), 0, 0);
    // SAFETY: strings, places for the answers, and a block that is freed.
    unsafe {
        let lib = &fake.lib;
        let id = c"xendomains".as_ptr();
        assert_eq!(lib.libxl_userdata_retrieve(ctx.get(), domid, id, &raw mut out, &raw mut n), 0);
        assert!(out.is_null() && n == 0);
        assert_eq!(lib.libxl_userdata_store(ctx.get(), domid, id, data.as_ptr(), 4), 0);
        assert_eq!(lib.libxl_userdata_retrieve(ctx.get(), domid, id, &raw mut out, &raw mut n), 0);
        assert_eq!(std::slice::from_raw_parts(out, 4), data);
        libc::free(out.cast());
        assert_eq!(lib.libxl_userdata_unlink(ctx.get(), domid, id), 0);
        assert_eq!(lib.libxl_userdata_store(ctx.get(), 99, id, data.as_ptr(), 4), ERROR_LOCK_FAIL);

        assert_eq!(lib.libxl_set_memory_target(ctx.get(), domid, -1024, 1, 0), 0);
        assert_eq!(lib.libxl_get_memory_target(ctx.get(), domid, &raw mut kb), 0);
        assert_eq!(kb, 131_072 - 1024);
        assert_eq!(lib.libxl_wait_for_memory_target(ctx.get(), domid, 1), 0);
        assert_eq!(lib.libxl_set_memory_target(ctx.get(), 99, 1024, 0, 0), ERROR_LOCK_FAIL);

        let name = lib.libxl_domid_to_name(ctx.get(), domid);
        assert_eq!(std::ffi::CStr::from_ptr(name), c"web");
        libc::free(name.cast());
        assert!(lib.libxl_domid_to_name(ctx.get(), 99).is_null());
        assert_eq!(lib.libxl_domain_rename(ctx.get(), domid, c"web".as_ptr(), c"w2".as_ptr()), 0);
        assert_eq!(fake.domid(ctx, "web"), None);

        let from = fake.config(ctx, &json!({"c_info": {"name": "w2"}}));
        let uuid = libxl_uuid::default();
        assert_eq!(lib.libxl_domain_preserve(ctx.get(), domid, from.ptr().cast(), c"-old".as_ptr(), uuid), 0);
        assert_eq!(fake.domid(ctx, "w2-old"), Some(domid));
        assert_eq!(fake.call("libxl_domain_preserve")["args"]["suffix"], "-old");

        let info = lib.libxl_get_version_info(ctx.get());
        assert_eq!(((*info).xen_version_major, (*info).xen_version_minor), (4, 17));
        let mut block = Block::zeroed();
        let physinfo: *mut libxl_physinfo = block.as_mut_ptr();
        lib.libxl_physinfo_init(physinfo);
        assert_eq!(lib.libxl_get_physinfo(ctx.get(), physinfo), 0);
        assert_eq!(((*physinfo).nr_cpus, (*physinfo).total_pages), (4, 4 << 20));
    }
    fake.free(ctx);
}

#[test]
fn ejects_reach_their_generator() {
    let fake = fake();
    fake.control.host(json!({"domains": [{"name": "win", "type": "hvm"}]}));
    let ctx = fake.ctx();
    let mut generator = std::ptr::null_mut();
    let mut event = std::ptr::null_mut();
    // SAFETY: strings and places for answers; the event lives until the insert has ended.
    unsafe {
        assert_eq!(fake.lib.libxl_evenable_disk_eject(ctx.get(), 1, c"hdc".as_ptr(), 5, &raw mut generator), 0);
        fake.control.guest(json!({"domain": "win", "does": "eject:hdc"}));
        let rc = fake.lib.libxl_event_wait(ctx.get(), &raw mut event, u64::MAX, None, std::ptr::null_mut());
        assert_eq!(rc, 0);
        let disk = (&raw mut (*event).u.disk_eject.disk).cast::<libxl_device_disk>();
        assert_eq!(fake.lib.libxl_cdrom_insert(ctx.get(), 1, disk, null()), 0);
        fake.lib.libxl_event_free(ctx.get(), event);
        fake.lib.libxl_evdisable_disk_eject(ctx.get(), generator);
    }
    assert_eq!(fake.call("libxl_cdrom_insert")["args"], json!({"vdev": "hdc", "path": ""}));
    fake.free(ctx);
}

#[test]
fn a_disaster_is_told() {
    let (fake, ctx, _) = web();
    let events = listen(&fake, ctx);
    fake.control.script(json!({"call": "libxl_domain_pause", "disaster": "xenstore is gone"}));
    // SAFETY: a domain's number.
    unsafe { assert_eq!(fake.lib.libxl_domain_pause(ctx.get(), 0, null()), 0) };
    assert_eq!(next(&events), Told::Disaster("xenstore is gone".into()));
    fake.free(ctx);
}

#[test]
fn shutdown_requests_obey_rules() {
    let (fake, ctx, domid) = web();
    fake.control.script(json!([
        {"call": "libxl_domain_shutdown", "nth": 1, "error": ERROR_TIMEDOUT},
        {"call": "libxl_domain_shutdown", "nth": 2, "complete": "before_return"},
    ]));
    fake.control.host(json!({"domains": [{"name": "second"}]}));
    let op = Op::new();
    // SAFETY: domains' numbers; the how lives.
    unsafe {
        assert_eq!(fake.lib.libxl_domain_shutdown(ctx.get(), domid, null()), ERROR_TIMEDOUT);
        assert_eq!(fake.lib.libxl_domain_shutdown(ctx.get(), domid + 1, op.how()), 0);
    }
    assert_eq!(op.done.try_recv().expect("before the return").rc, 0);
    fake.free(ctx);
}

/// The caller's own loop: what the hooks were told.
#[derive(Default)]
struct OwnLoop {
    fd: i32,
    for_libxl: usize,
    timeouts: usize,
}

#[test]
fn a_loop_may_be_given_by_hooks() {
    use std::ffi::c_void;
    unsafe extern "C" fn fd_register(
        user: *mut c_void,
        fd: i32,
        _app: *mut *mut c_void,
        _events: i16,
        libxl: *mut c_void,
    ) -> i32 {
        // SAFETY: the argument of the registration, used by one thread.
        let own = unsafe { &mut *user.cast::<OwnLoop>() };
        (own.fd, own.for_libxl) = (fd, libxl as usize);
        0
    }
    unsafe extern "C" fn timeout_register(
        user: *mut c_void,
        _app: *mut *mut c_void,
        _abs: libc::timeval,
        _libxl: *mut c_void,
    ) -> i32 {
        // SAFETY: as above.
        unsafe { (*user.cast::<OwnLoop>()).timeouts += 1 };
        0
    }
    unsafe extern "C" fn fd_deregister(user: *mut c_void, fd: i32, _app: *mut c_void) {
        // SAFETY: as above.
        let own = unsafe { &mut *user.cast::<OwnLoop>() };
        assert_eq!(own.fd, fd);
        own.fd = -1;
    }
    let fake = fake();
    let ctx = fake.ctx();
    let own = Box::into_raw(Box::new(OwnLoop::default()));
    let hooks = libxl_osevent_hooks {
        fd_register: Some(fd_register),
        fd_deregister: Some(fd_deregister),
        timeout_register: Some(timeout_register),
        ..Default::default()
    };
    fake.control.script(json!({"call": "libxl_domain_pause", "delay_ms": 500}));
    let op = Op::new();
    // SAFETY: the table, its argument and the how live; one thread does everything.
    unsafe {
        fake.lib.libxl_osevent_register_hooks(ctx.get(), &raw const hooks, own.cast());
        assert_eq!(fake.lib.libxl_domain_pause(ctx.get(), 0, op.how()), 0);
        assert!((*own).timeouts > 0);
        let mut fd = libc::pollfd { fd: (*own).fd, events: libc::POLLIN, revents: 0 };
        libc::poll(&raw mut fd, 1, 1000);
        assert_eq!(fd.revents, libc::POLLIN);
        fake.lib.libxl_osevent_occurred_fd(ctx.get(), (*own).for_libxl as *mut c_void, fd.fd, 1, 1);
        op.nothing_for(0);
        thread::sleep(Duration::from_millis(505));
        fake.lib.libxl_osevent_occurred_timeout(ctx.get(), (*own).for_libxl as *mut c_void);
        assert_eq!(op.done.try_recv().expect("its time had come").rc, 0);
    }
    fake.free(ctx);
    // SAFETY: made above; nobody else has it any more.
    assert_eq!(unsafe { Box::from_raw(own) }.fd, -1);
}
