//! The races and faults of libxl that a real hypervisor can't be made to show on demand, on the fake libxl.

mod common;

use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as Task, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use common::{Fake, Lines, config, done, soon};
use fake_libxl::Control;
use serde_json::{Value, json};
use xenlight::{
    Cause, Children, Context, DomainChange, DomainConfig, ErrorCode, Library, LogLevel, LogRecord, LogSink,
    Operation, Release, SaveFlags, ShutdownReason, Trigger, Wait,
};

#[test]
fn completion_may_come_before_the_call_returns_in_the_event_loop_or_on_another_thread() {
    for way in ["before_return", "event_loop", "other_thread"] {
        let (fake, context) = Fake::web();
        fake.control.script(json!({"call": "libxl_domain_destroy", "complete": way}));
        let domid = context.find("web").expect("a list").expect("web");
        done(context.destroy(domid).expect("starts").wait_until(soon())).expect(way);
        assert_eq!(context.find("web").expect("a list"), None);
        drop(context);
        fake.expect_nothing_left();
    }
}

#[test]
fn a_refused_start_never_calls_back_and_leaks_nothing() {
    let (fake, context) = Fake::web();
    fake.control.script(json!({"call": "libxl_domain_suspend", "start_error": -6,
                               "log": [{"level": 8, "text": "no way"}]}));
    let error = context.save(1, fake.file("a"), SaveFlags::default()).expect_err("refused");
    assert_eq!(error.code(), Some(ErrorCode::Invalid));
    assert_eq!(error.domid(), Some(1));
    assert!(
        error.to_string().starts_with("save domain (domain 1): invalid argument or configuration: "),
        "{error}"
    );
    assert!(error.to_string().ends_with("no way"), "{error}");
    drop(context);
    fake.expect_nothing_left();
}

#[test]
fn an_error_has_the_lines_of_its_own_domain_only() {
    let (fake, context) = Fake::web();
    fake.control.script(json!([
        {"call": "libxl_domain_suspend", "complete": "never"},
        {"call": "libxl_domain_pause", "error": -3, "log": [{"level": 8, "text": "no pause"}]},
    ]));
    let save = context.save(1, fake.file("a"), SaveFlags::default()).expect("starts");
    let other = context.pause(2).and_then(Operation::wait).expect_err("fails");
    assert!(other.log().iter().any(|line| line.text.contains("no pause")), "{other:?}");
    fake.control.finish(json!({"call": "libxl_domain_suspend", "error": -3}));
    let error = done(save.wait_until(soon())).expect_err("fails");
    assert!(!error.log().iter().any(|line| line.text.contains("no pause")), "{error:?}");
}

#[test]
fn a_deadline_gives_the_operation_back_and_an_abort_ends_it() {
    let (fake, context) = Fake::web();
    fake.control.script(json!({"call": "libxl_domain_suspend", "complete": "never", "partial_bytes": 100}));
    let save = context.save(1, fake.file("a"), SaveFlags::default()).expect("starts");
    let begun = Instant::now();
    let Wait::Pending(save) = save.wait_until(Some(begun + Duration::from_millis(50))) else {
        panic!("it never completes")
    };
    assert!(begun.elapsed() >= Duration::from_millis(50));
    assert!(!save.is_done());
    assert!(save.abort().expect("aborts"));
    let error = done(save.wait_until(soon())).expect_err("aborted");
    assert!(error.is_aborted(), "{error}");
    drop(context);
    fake.expect_nothing_left();
}

#[test]
fn an_abort_after_completion_hits_nothing() {
    let (fake, context) = Fake::web();
    fake.control.script(json!({"call": "libxl_domain_pause", "nth": 1, "complete": "before_return"}));
    let first = context.pause(1).expect("starts");
    assert!(first.is_done());
    // Another operation is under way by now; the late abort must not find it.
    fake.control.script(json!({"call": "libxl_domain_suspend", "complete": "never"}));
    let second = context.save(2, fake.file("a"), SaveFlags::default()).expect("starts");
    assert!(!first.abort().expect("no error"), "there was nothing to abort");
    assert!(!second.is_done());
    first.wait().expect("paused");
    second.abort().expect("aborts");
    assert!(done(second.wait_until(soon())).expect_err("aborted").is_aborted());
    drop(context);
    fake.expect_nothing_left();
}

#[test]
fn a_context_dropped_with_operations_in_flight_lives_until_they_are_done() {
    let (fake, context) = Fake::web();
    fake.control.script(json!({"call": "libxl_domain_suspend", "complete": "never"}));
    let save = context.save(1, fake.file("a"), SaveFlags::default()).expect("starts");
    drop(context);
    assert_eq!(fake.control.state()["live"]["contexts"], 1);
    // The handle goes too: libxl still owns the operation.
    drop(save);
    assert_eq!(fake.control.state()["live"]["contexts"], 1);
    fake.control.finish(json!({"call": "libxl_domain_suspend"}));
    // The completion was the last user, on the event thread itself, which then frees the context.
    fake.expect_nothing_left();
}

#[test]
fn contexts_come_and_go_from_many_threads() {
    let (fake, context) = Fake::web();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let own = fake.context(None);
                    own.list().expect("a list");
                    own.pause(1).expect("starts").wait().expect("pauses");
                    own.unpause(1).expect("starts").wait().expect("unpauses");
                }
            });
        }
    });
    drop(context);
    fake.expect_nothing_left();
}

#[derive(Default)]
struct Counting(AtomicUsize);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn an_operation_is_a_future() {
    let (fake, context) = Fake::web();
    fake.control.script(json!({"call": "libxl_domain_pause", "complete": "never"}));
    let counting = Arc::new(Counting::default());
    let waker = Waker::from(Arc::clone(&counting));
    let mut operation = pin!(context.pause(1).expect("starts"));
    assert!(operation.as_mut().poll(&mut Task::from_waker(&waker)).is_pending());
    fake.control.finish(json!({"call": "libxl_domain_pause"}));
    let begun = Instant::now();
    while counting.0.load(Ordering::SeqCst) == 0 && begun.elapsed() < Duration::from_secs(10) {
        thread::yield_now();
    }
    assert_eq!(counting.0.load(Ordering::SeqCst), 1, "woken once, by the completion");
    assert!(matches!(operation.as_mut().poll(&mut Task::from_waker(&waker)), Poll::Ready(Ok(()))));
}

struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        panic!("the executor is gone");
    }
}

#[test]
fn a_panic_in_a_waker_stays_out_of_libxl() {
    let sink = Lines::default();
    let fake = Fake::new(json!({"domains": [{"name": "web"}]}));
    let context = fake.context(Some(Box::new(sink.clone())));
    fake.control.script(json!({"call": "libxl_domain_pause", "complete": "never"}));
    let waker = Waker::from(Arc::new(PanickingWaker));
    let mut operation = Box::pin(context.pause(1).expect("starts"));
    assert!(operation.as_mut().poll(&mut Task::from_waker(&waker)).is_pending());
    fake.control.finish(json!({"call": "libxl_domain_pause"}));
    sink.wait_for("the executor is gone");
    // The operation has its result, and the event thread goes on.
    assert!(operation.is_done());
    context.unpause(1).expect("starts").wait().expect("the event thread is alive");
}

#[test]
fn forked_children_log_without_touching_the_parents_locks() {
    let lines = Lines::default();
    let fake = Fake::new(json!({"domains": [{"name": "web"}]}));
    let context = fake.context(Some(Box::new(lines.clone())));
    fake.control.script(json!({"call": "libxl_domain_destroy", "log_in_child": true,
                               "log": [{"level": 8, "text": "Domain 1:said by a child"}]}));
    thread::scope(|scope| {
        let stop = Arc::new(AtomicUsize::new(0));
        // Other threads hold the logger's and the allocator's locks most of the time, so that a child that waited for
        // one of them would hang.
        for _ in 0..2 {
            let (context, stop) = (context.clone(), Arc::clone(&stop));
            scope.spawn(move || {
                while stop.load(Ordering::SeqCst) == 0 {
                    let _ = context.info(999);
                    let _ = context.list();
                }
            });
        }
        let outcome = done(context.destroy(1).expect("starts").wait_until(soon()));
        stop.store(1, Ordering::SeqCst);
        outcome.expect("destroyed");
    });
    lines.wait_for("said by a child");
}

#[test]
fn a_disaster_ends_every_wait_and_every_later_call() {
    let (fake, context) = Fake::web();
    fake.control.script(json!({"call": "libxl_domain_suspend", "complete": "never"}));
    let save = context.save(1, fake.file("a"), SaveFlags::default()).expect("starts");
    let events = context.domain_events();
    events.watch(2, context.info(2).expect("db").uuid).expect("watches");
    let waiting = thread::spawn(move || events.next_until(None).map(drop));
    fake.control.script(json!({"call": "libxl_domain_pause", "disaster": "xenstored is gone"}));
    let _ = context.pause(2);
    let error = done(save.wait_until(soon())).expect_err("broken");
    assert!(matches!(error.cause(), Cause::Disaster(why) if why.contains("xenstored is gone")), "{error}");
    let error = waiting.join().expect("no panic").expect_err("broken");
    assert!(matches!(error.cause(), Cause::Disaster(_)), "{error}");
    let error = context.unpause(1).expect_err("the context is of no more use");
    assert!(matches!(error.cause(), Cause::Disaster(_)), "{error}");
}

#[test]
fn what_libxl_ignores_of_a_configuration_is_found() {
    let (fake, context) = Fake::web();
    config("fine").check(&context).expect("all of it is understood");
    let mut odd = config("odd").into_json();
    odd["b_info"]["flux_capacitor"] = json!(88);
    odd["c_info"]["name"] = json!(5);
    odd["b_info"]["max_vcpus"] = json!(0);
    odd["b_info"]["event_channels"] = json!(2.0);
    odd["on_poweroff"] = json!("destroy");
    let odd = DomainConfig::from_json(odd).expect("an object");
    let error = context.create(&odd).expect_err("parts would be ignored");
    let Cause::ConfigDropped(dropped) = error.cause() else { panic!("{error}") };
    // Values that are the default do not come back either, but they are understood.
    assert_eq!(dropped, &["/b_info/event_channels", "/b_info/flux_capacitor", "/c_info/name"]);
    assert_eq!(context.list().expect("a list").len(), 3, "nothing was created");
    drop((context, error));
    fake.expect_nothing_left();
}

#[test]
fn numbers_that_libxl_gives_a_sign_are_not_taken_for_ignored() {
    for minor in [20, 21, 22] {
        let fake = Fake::of(Release::new(4, minor), json!({"domains": []}));
        let context = fake.context(None);
        let mut given = config("new").into_json();
        given["c_info"]["domid"] = json!(u32::MAX - 1);
        // A clock that is an hour late, and features of the processor that are off.
        given["b_info"]["rtc_timeoffset"] = json!(4_294_963_696_u32);
        given["b_info"]["cpuid"] = json!({"cpuid": [{"leaf": 0x8000_0001_u32, "edx": "x".repeat(32)}], "msr": []});
        let config = |json: &Value| DomainConfig::from_json(json.clone()).expect("an object");
        config(&given).check(&context).unwrap_or_else(|error| panic!("4.{minor}: {error}"));
        // What libxl says of it can be used again.
        let domid = context.create(&config(&given)).expect("starts").wait().expect("created");
        let stored = context.configuration(domid).expect("starts").wait().expect("a configuration");
        stored.check(&context).unwrap_or_else(|error| panic!("4.{minor}: {error}"));
        // What is ignored is still found.
        given["b_info"]["event_channel"] = json!(4_294_963_696_u32);
        let error = config(&given).check(&context).expect_err("it is ignored");
        let Cause::ConfigDropped(dropped) = error.cause() else { panic!("{error}") };
        assert_eq!(dropped, &["/b_info/event_channel"], "4.{minor}");
    }
}

#[test]
fn a_guest_is_created_saved_and_restored() {
    let fake = Fake::new(json!({"domains": []}));
    let context = fake.context(None);
    let domid = context.create(&config("new")).expect("starts").wait().expect("created");
    assert!(context.info(domid).expect("it").paused);
    assert_eq!(context.name(domid).as_deref(), Some("new"));
    context.unpause(domid).expect("starts").wait().expect("runs");
    let stored = context.configuration(domid).expect("starts").wait().expect("a configuration");
    assert_eq!((stored.name(), stored.uuid()), (Some("new"), config("new").uuid()));
    let fd = context.save(domid, fake.file("image"), SaveFlags::default()).expect("starts").wait().expect("saved");
    File::from(fd).sync_all().expect("synced");
    assert_eq!(context.info(domid).expect("it").shutdown, Some(ShutdownReason::Suspend));
    context.destroy(domid).expect("starts").wait().expect("destroyed");

    let image = || OwnedFd::from(File::open(fake.directory.path().join("image")).expect("the image"));
    let again = context.restore(&stored, image()).expect("starts").wait().expect("restored");
    assert!(context.info(again).expect("it").paused);
    context.destroy(again).expect("starts").wait().expect("destroyed");

    let short = fake.file("short");
    drop(short);
    let short = File::open(fake.directory.path().join("short")).expect("the empty image");
    let error = context.restore(&stored, short.into()).and_then(Operation::wait).expect_err("no stream in it");
    assert_eq!(error.code(), Some(ErrorCode::Fail));
    assert_eq!(context.list().expect("a list").len(), 1, "only dom0 is left");
    drop(context);
    fake.expect_nothing_left();
}

#[test]
fn an_aborted_creation_names_the_domain_it_leaves() {
    let fake = Fake::new(json!({"domains": []}));
    let context = fake.context(None);
    fake.control.script(json!({"call": "libxl_domain_create_new", "complete": "never"}));
    let create = context.create(&config("half")).expect("starts");
    create.abort().expect("aborts");
    let error = done(create.wait_until(soon())).expect_err("aborted");
    let leftover = error.leftover().expect("a half-made domain");
    context.destroy(leftover).expect("starts").wait().expect("destroyed");
    assert_eq!(context.list().expect("a list").len(), 1);
}

#[test]
fn a_failed_save_leaves_the_guest_to_be_resumed() {
    let (fake, context) = Fake::web();
    fake.control.script(json!({"call": "libxl_domain_suspend", "partial_bytes": 64, "error": -3}));
    let save = context.save(1, fake.file("a"), SaveFlags::default()).expect("starts");
    assert_eq!(done(save.wait_until(soon())).expect_err("fails").code(), Some(ErrorCode::Fail));
    context.resume(1, true).expect("starts").wait().expect("resumed");
    assert_eq!(context.info(1).expect("web").shutdown, None);
    let error = context.resume(1, true).and_then(Operation::wait).expect_err("it is not suspended");
    assert_eq!(error.code(), Some(ErrorCode::Fail));
}

#[test]
fn domain_ends_arrive_once_each_even_those_before_the_watch() {
    let (fake, context) = Fake::web();
    let (web, db) = (context.info(1).expect("web"), context.info(2).expect("db"));
    fake.control.guest(json!({"domain": "db", "does": "crash"}));
    let events = context.domain_events();
    events.watch(1, web.uuid).expect("watches");
    // libxl does not tell a later generator of what has happened already.
    events.watch(2, db.uuid).expect("watches");
    events.watch(2, db.uuid).expect("a second time changes nothing");
    let event = events.next_until(soon()).expect("no disaster").expect("an event");
    assert_eq!((event.domid, event.uuid), (2, db.uuid));
    assert_eq!(event.change, DomainChange::Shutdown(ShutdownReason::Crash));

    fake.control.guest(json!({"domain": "web", "does": "reboot"}));
    let event = events.next_until(soon()).expect("no disaster").expect("an event");
    assert_eq!((event.domid, event.change), (1, DomainChange::Shutdown(ShutdownReason::Reboot)));
    context.destroy(1).expect("starts").wait().expect("destroyed");
    let event = events.next_until(soon()).expect("no disaster").expect("an event");
    assert_eq!((event.domid, event.change), (1, DomainChange::Death));
    let none = events.next_until(Some(Instant::now() + Duration::from_millis(50))).expect("no disaster");
    assert_eq!(none, None, "nothing is reported twice");
    drop((events, context));
    fake.expect_nothing_left();
}

#[test]
fn a_domain_that_is_not_the_one_that_was_meant_counts_as_gone() {
    let (_fake, context) = Fake::web();
    let (web, db) = (context.info(1).expect("web"), context.info(2).expect("db"));
    let events = context.domain_events();
    events.watch(1, db.uuid).expect("watches");
    let event = events.next_until(soon()).expect("no disaster").expect("an event");
    assert_eq!((event.domid, event.change), (1, DomainChange::Death));
    events.watch(77, web.uuid).expect("watches");
    let event = events.next_until(soon()).expect("no disaster").expect("an event");
    assert_eq!((event.domid, event.change), (77, DomainChange::Death));
}

#[test]
fn a_guest_that_was_suspended_and_resumed_is_still_watched() {
    let (fake, context) = Fake::web();
    let events = context.domain_events();
    events.watch(1, context.info(1).expect("web").uuid).expect("watches");
    context.save(1, fake.file("a"), SaveFlags::default()).expect("starts").wait().expect("saved");
    let event = events.next_until(soon()).expect("no disaster").expect("an event");
    assert_eq!(event.change, DomainChange::Shutdown(ShutdownReason::Suspend));
    context.resume(1, true).expect("starts").wait().expect("resumed");
    fake.control.guest(json!({"domain": "web", "does": "poweroff"}));
    loop {
        let event = events.next_until(soon()).expect("no disaster").expect("the end is reported");
        match event.change {
            DomainChange::Shutdown(ShutdownReason::Suspend) => {}
            change => {
                assert_eq!(change, DomainChange::Shutdown(ShutdownReason::Poweroff));
                break;
            }
        }
    }
}

#[test]
fn an_opened_drive_is_reported_and_emptied_even_if_nobody_listens_any_more() {
    let fake = Fake::new(json!({"domains": [{"name": "win", "type": "hvm"}]}));
    let context = fake.context(None);
    let events = context.domain_events();
    let error = events.watch_drive(1, "hdc").expect_err("the domain is not watched");
    assert!(matches!(error.cause(), Cause::BadArgument(_)), "{error}");
    events.watch(1, context.info(1).expect("win").uuid).expect("watches");
    events.watch_drive(1, "hdc").expect("watches");
    let eject = || fake.control.guest(json!({"domain": "win", "does": "eject:hdc"}));
    eject();
    let event = events.next_until(soon()).expect("no disaster").expect("an event");
    let DomainChange::Ejected(disk) = event.change else { panic!("{event:?}") };
    assert_eq!((event.domid, disk.vdev()), (1, "hdc"));
    disk.take_medium_out().expect("starts").wait().expect("taken out");
    // One that nobody wants, one that nobody takes, and one that comes too late.
    eject();
    drop(events.next_until(soon()).expect("no disaster").expect("an event"));
    eject();
    fake.control.wait(|state| state["live"]["events"] == 1);
    events.unwatch(1);
    eject();
    drop((events, context));
    fake.expect_nothing_left();
    let state = fake.control.state();
    let calls = state["calls"].as_array().expect("calls");
    assert_eq!(calls.iter().filter(|call| call["call"] == "libxl_cdrom_insert").count(), 1);
}

#[test]
fn what_is_done_with_a_guest_that_has_ended() {
    let fake = Fake::new(json!({"domains": [{"name": "win", "type": "hvm"}, {"name": "web"}]}));
    let context = fake.context(None);
    let file = fake.directory.path().join("core");
    context.dump_core(2, &file).expect("starts").wait().expect("dumped");
    assert!(file.is_file());
    context.dump_core(2, &file.join("x")).and_then(Operation::wait).expect_err("not below a file");
    for domain in ["win", "web"] {
        fake.control.guest(json!({"domain": domain, "does": "soft_reset"}));
    }
    let of = |domid| context.configuration(domid).expect("starts").wait().expect("a configuration");
    context.soft_reset(1, &of(1)).expect("starts").wait().expect("reset");
    let info = context.info(1).expect("win");
    assert_eq!((info.shutdown, info.paused), (None, true));
    let error = context.soft_reset(2, &of(2)).and_then(Operation::wait).expect_err("not HVM");
    assert_eq!(error.code(), Some(ErrorCode::Invalid));
    context.preserve(2, "web", "-old", uuid::Uuid::from_u128(1)).expect("kept");
    assert_eq!(context.name(2).as_deref(), Some("web-old"));
    context.preserve(2, "web", "-older", uuid::Uuid::from_u128(1)).expect_err("it is not called so");
    drop(context);
    fake.expect_nothing_left();
}

#[test]
fn short_calls_do_what_they_say() {
    let (fake, context) = Fake::web();
    assert_eq!(context.release(), Release::new(4, 17));
    assert_eq!(
        (context.version().expect("a version").major, context.version().expect("a version").minor),
        (4, 17)
    );
    assert!(context.free_memory_kib().expect("a number") > 0);
    assert!(context.needed_memory_kib(&config("x")).expect("a number") >= 131_072);
    assert!(context.memory_target_kib(1).expect("a number") > 0);
    assert_eq!(context.userdata(1, "ours").expect("readable"), None);
    context.store_userdata(1, "ours", b"mark").expect("stored");
    assert_eq!(context.userdata(1, "ours").expect("readable").as_deref(), Some(&b"mark"[..]));
    context.remove_userdata(1, "ours").expect("removed");
    assert_eq!(context.userdata(1, "ours").expect("readable"), None);
    context.rename(1, Some("web"), "www").expect("renamed");
    assert_eq!(context.name(1).as_deref(), Some("www"));
    context.rename(1, Some("web"), "x").expect_err("it is not called web any more");
    context.sysrq(1, 's').expect("sent");
    assert!(matches!(context.sysrq(1, 'ß').expect_err("not ASCII").cause(), Cause::BadArgument(_)));
    assert!(matches!(context.find("a\0b").expect_err("a NUL").cause(), Cause::BadArgument(_)));
    assert_eq!(context.find("nobody").expect("a list"), None);
    assert_eq!(context.info(99).expect_err("no such domain").code(), Some(ErrorCode::DomainNotFound));
    assert_eq!(context.name(99), None);
    assert_eq!(context.stubdom_target(1), None);
    assert!(context.start_time(1).is_some());
    assert_eq!(context.start_time(99), None);
    context.trigger(1, Trigger::Power, 0).map(Operation::wait).ok();
    assert!(
        fake.control.state()["calls"].as_array().expect("calls").iter().any(|c| c["call"] == "libxl_send_sysrq")
    );
    drop(context);
    fake.expect_nothing_left();
}

#[test]
fn a_domain_gives_memory_back_as_far_as_it_can() {
    let fake = Fake::new(json!({"free_kb": 1 << 20, "dom0_floor_kb": 1 << 20}));
    let context = fake.context(None);
    let dom0 = || (context.memory_target_kib(0).expect("a target"), context.info(0).expect("dom0").current_kib);
    let patience = Duration::from_millis(9500);
    context.change_memory_target_kib(0, -(512 << 10), false).expect("it may");
    context.wait_for_memory_target(0, patience).expect("it can");
    assert_eq!((dom0(), context.free_memory_kib().expect("a number")), ((1536 << 10, 1536 << 10), 1536 << 10));
    context.set_memory_target_kib(0, 512 << 10, false).expect("it may");
    let error = context.wait_for_memory_target(0, patience).expect_err("it can't");
    assert_eq!((error.domid(), error.code()), (Some(0), Some(ErrorCode::Fail)));
    assert_eq!(dom0(), (512 << 10, 1 << 20));
    // Less than libxl leaves to dom0, and more than there is of it: nothing changes.
    context.change_memory_target_kib(0, -(512 << 10), false).expect_err("nothing left for dom0");
    context.set_memory_target_kib(0, 4 << 20, true).expect_err("above its maximum");
    let error = context.set_memory_target_kib(0, u64::MAX, false).expect_err("no such amount");
    assert!(matches!(error.cause(), Cause::BadArgument(_)), "{error}");
    assert_eq!(dom0(), (512 << 10, 1 << 20));
    let calls = fake.control.state()["calls"].as_array().expect("calls").clone();
    let of = |name: &str| -> Vec<Value> {
        calls.iter().filter(|call| call["call"] == name).map(|call| call["args"].clone()).collect()
    };
    assert_eq!(of("libxl_wait_for_memory_target"), [json!({"seconds": 10}), json!({"seconds": 10})]);
    let targets = of("libxl_set_memory_target");
    assert_eq!(targets[0], json!({"target_kb": -524_288, "relative": true, "enforce": false}));
    assert_eq!(targets[1], json!({"target_kb": 524_288, "relative": false, "enforce": false}));
    assert_eq!(targets[3], json!({"target_kb": 4_194_304, "relative": false, "enforce": true}));
    assert_eq!(targets.len(), 4);
}

#[test]
fn asking_what_a_guest_needs_does_not_change_its_configuration() {
    let (_fake, context) = Fake::web();
    let config = config("x");
    let before = config.as_json().clone();
    context.needed_memory_kib(&config).expect("a number");
    assert_eq!(*config.as_json(), before);
}

#[test]
fn every_release_lists_its_domains() {
    for minor in 14..=22 {
        let directory = tempfile::tempdir().expect("a directory");
        let release = Release::new(4, minor);
        let path = fake_libxl::install(directory.path(), &release.to_string());
        // SAFETY: the fake behaves like libxl.
        let library = unsafe { Library::open_in(directory.path(), release) }.expect("the fake opens");
        Control::open(&path).host(json!({"domains": [{"name": "a"}, {"name": "b", "paused": true}]}));
        let context = Context::open(&library, Children::LibxlReapsOwn, None).expect("a context");
        let list = context.list().expect("a list");
        let seen: Vec<_> = list.iter().map(|d| (d.domid, d.paused, d.current_kib)).collect();
        assert_eq!(seen, [(0, false, 2 << 20), (1, false, 131_072), (2, true, 131_072)], "{release}");
        assert_eq!(context.info(2).expect("b").uuid, list[2].uuid);
    }
}

#[test]
fn a_log_sink_that_panics_is_left_alone_from_then_on() {
    struct Bad(Arc<AtomicUsize>);
    impl LogSink for Bad {
        fn record(&self, _: &LogRecord) {
            self.0.fetch_add(1, Ordering::SeqCst);
            panic!("out of paper");
        }
    }
    let calls = Arc::new(AtomicUsize::new(0));
    let fake = Fake::new(json!({"domains": [{"name": "web"}]}));
    let context = fake.context(Some(Box::new(Bad(Arc::clone(&calls)))));
    fake.control.script(json!({"call": "libxl_domain_pause", "error": -3, "log": [
        {"level": 8, "text": "first line"}, {"level": 8, "text": "second line"}]}));
    let error = context.pause(1).and_then(Operation::wait).expect_err("fails");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let texts: Vec<_> = error.log().iter().map(|r| (r.level, r.text.clone())).collect();
    assert!(texts.iter().any(|(level, text)| *level == LogLevel::Critical && text.contains("out of paper")));
    assert!(texts.iter().any(|(_, text)| text.ends_with("first line")));
    assert!(texts.iter().any(|(_, text)| text.ends_with("second line")));
}

#[test]
fn the_hosts_processors() {
    let fake = Fake::new(json!({"cpus": 6, "nodes": 2}));
    let context = fake.context(None);
    let cpus = context.host_cpus().expect("an answer");
    assert_eq!((cpus.count, cpus.online, cpus.nodes), (6, 6, 2));
    assert_eq!(cpus.node_of, [Some(0), Some(0), Some(0), Some(1), Some(1), Some(1)]);
    for call in ["libxl_get_physinfo", "libxl_get_cpu_topology"] {
        fake.control.script(json!({"call": call, "nth": 1, "error": -3}));
        let error = context.host_cpus().expect_err(call);
        assert_eq!(error.code(), Some(ErrorCode::Fail), "{call}");
        assert!(error.to_string().contains("query the host's processors"), "{error}");
    }
    assert!(context.host_cpus().is_ok());
    drop(context);
    fake.expect_nothing_left();
}
