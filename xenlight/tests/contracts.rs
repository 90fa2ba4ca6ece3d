//! Contracts of this crate that libxl alone does not have, on the fake libxl.

mod common;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context as Task, Waker};
use std::time::{Duration, Instant};

use common::{Fake, done, soon};
use serde_json::json;
use xenlight::{
    Cause, Children, Context, DomainChange, ErrorCode, Operation, SaveEnd, SaveFlags, ShutdownReason, Wait,
};

/// A deadline that has all but passed.
fn shortly() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(50))
}

#[test]
fn a_guest_that_does_not_answer_a_save_is_not_suspended_by_it_later() {
    let fake = Fake::new(json!({"domains": [{"name": "web", "guest": {"suspend": "ignore", "timeout_ms": 400}}]}));
    let context = fake.context(None);
    let save = context.save(1, fake.file("image"), SaveFlags::default()).expect("starts");
    let outcome = save.wait_until(shortly());
    assert!(matches!(outcome, Wait::Pending(_)));
    let SaveEnd::Running(error) = context.end_save(1, outcome) else { panic!("it runs") };
    assert!(error.is_aborted(), "{error}");
    // The guest gets round to it after all, and there is nothing left for it to do.
    let events = context.domain_events();
    events.watch(1, context.info(1).expect("web").uuid).expect("watches");
    fake.control.guest(json!({"domain": "web", "does": "suspend", "after_ms": 10}));
    assert_eq!(events.next_until(Some(Instant::now() + Duration::from_millis(300))).expect("no disaster"), None);
    assert_eq!(context.info(1).expect("web").shutdown, None);
    drop((events, context));
    fake.expect_nothing_left();
}

#[test]
fn a_guest_that_answers_a_save_late_runs_on_afterwards() {
    let fake = Fake::new(json!({"domains": [{"name": "web", "guest": {"suspend_ms": 300}}]}));
    let context = fake.context(None);
    let save = context.save(1, fake.file("image"), SaveFlags::default()).expect("starts");
    let end = context.end_save(1, save.wait_until(shortly()));
    assert!(matches!(end, SaveEnd::Running(_)), "{end:?}");
    assert_eq!(context.info(1).expect("web").shutdown, None);
    // It is asked once for each save: nothing comes later.
    let events = context.domain_events();
    events.watch(1, context.info(1).expect("web").uuid).expect("watches");
    let later = events.next_until(Some(Instant::now() + Duration::from_millis(600))).expect("no disaster");
    assert_eq!(later, None);
}

#[test]
fn every_end_of_a_save_is_told() {
    let fake =
        Fake::new(json!({"domains": [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}, {"name": "e"}]}));
    let context = fake.context(None);
    fake.control.script(json!([
        {"call": "libxl_domain_suspend", "domain": "b", "partial_bytes": 64, "error": -3},
        {"call": "libxl_domain_suspend", "domain": "c", "partial_bytes": 64, "error": -3},
        {"call": "libxl_domain_resume", "domain": "c", "error": -3},
        {"call": "libxl_domain_suspend", "domain": "d", "partial_bytes": 64, "complete": "never"},
        {"call": "libxl_domain_suspend", "domain": "e", "complete": "never"},
    ]));
    let end_by = |deadline, domid, name: &str| {
        let save = context.save(domid, fake.file(name), SaveFlags::default()).expect("starts");
        context.end_save(domid, save.wait_until(deadline))
    };
    let end = |domid, name: &str| end_by(soon(), domid, name);
    assert!(matches!(end(1, "a"), SaveEnd::Saved(_)));
    assert_eq!(context.info(1).expect("it").shutdown, Some(ShutdownReason::Suspend));
    assert!(matches!(end(2, "b"), SaveEnd::Running(_)));
    assert_eq!(context.info(2).expect("it").shutdown, None);
    assert!(matches!(end(3, "c"), SaveEnd::Suspended { .. }));
    // In the middle of its memory, and so suspended.
    assert!(matches!(end_by(shortly(), 4, "d"), SaveEnd::Running(error) if error.is_aborted()));
    assert_eq!(context.info(4).expect("it").shutdown, None);
    let save = context.save(5, fake.file("e"), SaveFlags::default()).expect("starts");
    fake.control.guest(json!({"domain": "e", "does": "vanish"}));
    assert!(matches!(context.end_save(5, save.wait_until(shortly())), SaveEnd::Ended(_)));
}

#[test]
fn a_domain_without_a_stored_configuration_is_told_from_one_that_is_gone() {
    let fake = Fake::new(json!({"domains": [{"name": "plain", "config": null}]}));
    let context = fake.context(None);
    let code = |domid| context.configuration(domid).and_then(Operation::wait).expect_err("none").code();
    assert_eq!(code(1), Some(ErrorCode::NoStoredConfig));
    assert_eq!(code(77), Some(ErrorCode::DomainNotFound));
}

#[test]
fn removing_userdata_that_is_not_there_is_a_success() {
    let (_fake, context) = Fake::web();
    context.remove_userdata(1, "ours").expect("nothing there");
    context.store_userdata(1, "ours", b"x").expect("stored");
    context.remove_userdata(1, "ours").expect("removed");
    assert_eq!(context.userdata(1, "ours").expect("readable"), None);
    context.remove_userdata(77, "ours").expect_err("no such domain");
}

#[test]
fn a_domain_that_takes_over_a_number_is_watched_beside_the_one_before() {
    let (fake, context) = Fake::web();
    let old = context.info(1).expect("web").uuid;
    let events = context.domain_events();
    events.watch(1, old).expect("watches");
    // As after a wrap of the numbers: nobody heard of the end of the first.
    let new = context.info(2).expect("db").uuid;
    events.watch(1, new).expect("watches");
    let event = events.next_until(soon()).expect("no disaster").expect("an event");
    assert_eq!((event.domid, event.uuid, event.change), (1, new, DomainChange::Death), "it is not that one");
    fake.control.guest(json!({"domain": "web", "does": "poweroff"}));
    let event = events.next_until(soon()).expect("no disaster").expect("an event");
    assert_eq!((event.domid, event.uuid), (1, old), "the first is still watched");
    events.unwatch(1);
    drop((events, context));
    fake.expect_nothing_left();
}

#[test]
fn the_result_of_an_operation_is_there_once() {
    let (_fake, context) = Fake::web();
    let mut operation = context.pause(1).expect("starts");
    let mut task = Task::from_waker(Waker::noop());
    let begun = Instant::now();
    while Pin::new(&mut operation).poll(&mut task).is_pending() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    let error = operation.wait().expect_err("it was taken");
    assert!(matches!(error.cause(), Cause::NotAllowed(_)), "{error}");
}

#[test]
fn a_guest_that_was_soft_reset_is_still_watched() {
    let fake = Fake::new(json!({"domains": [{"name": "web", "type": "hvm"}]}));
    let context = fake.context(None);
    let events = context.domain_events();
    events.watch(1, context.info(1).expect("web").uuid).expect("watches");
    let config = context.configuration(1).and_then(Operation::wait).expect("a configuration");
    fake.control.guest(json!({"domain": "web", "does": "soft_reset"}));
    let event = events.next_until(soon()).expect("no disaster").expect("an event");
    assert_eq!(event.change, DomainChange::Shutdown(ShutdownReason::SoftReset));
    done(context.soft_reset(1, &config).expect("starts").wait_until(soon())).expect("reset");
    context.unpause(1).and_then(Operation::wait).expect("runs");
    fake.control.guest(json!({"domain": "web", "does": "poweroff"}));
    loop {
        let event = events.next_until(soon()).expect("no disaster").expect("the end is reported");
        match event.change {
            DomainChange::Shutdown(ShutdownReason::SoftReset) => {}
            change => {
                assert_eq!(change, DomainChange::Shutdown(ShutdownReason::Poweroff));
                break;
            }
        }
    }
    drop((events, context));
    fake.expect_nothing_left();
}

#[test]
fn a_soft_reset_can_be_aborted_and_keeps_no_other_call_waiting() {
    let fake = Fake::new(json!({"domains": [{"name": "web", "type": "hvm"}, {"name": "db"}]}));
    let context = fake.context(None);
    let config = context.configuration(1).and_then(Operation::wait).expect("a configuration");
    fake.control.guest(json!({"domain": "web", "does": "soft_reset"}));
    fake.control.script(json!({"call": "libxl_domain_soft_reset", "complete": "never"}));
    let reset = context.soft_reset(1, &config).expect("starts");
    fake.control.wait(|state| state["live"]["operations"].as_array().is_some_and(|all| !all.is_empty()));
    done(context.pause(2).expect("starts").wait_until(soon())).expect("paused");
    assert!(reset.abort().expect("aborts"));
    assert!(done(reset.wait_until(soon())).expect_err("aborted").is_aborted());
    drop(context);
    fake.expect_nothing_left();
}

#[test]
fn children_that_nobody_could_reap_are_refused() {
    let fake = Fake::new(json!({"domains": [{"name": "web", "type": "hvm"}]}));
    let open = |children| Context::open(&fake.library, children, None);
    let not_allowed = |error: xenlight::Error| matches!(error.cause(), Cause::NotAllowed(_));

    let own = open(Children::LibxlReapsOwn).expect("the first");
    let beside = open(Children::LibxlReapsOwn).expect("beside it");
    assert!(not_allowed(open(Children::LibxlReapsAll).expect_err("it would reap theirs")));
    assert!(not_allowed(own.child_exited(1, 0).expect_err("libxl would end the process")));
    drop((own, beside));

    let all = open(Children::LibxlReapsAll).expect("alone");
    assert!(not_allowed(open(Children::LibxlReapsAll).expect_err("it would reap the first one's")));
    assert!(not_allowed(open(Children::LibxlReapsOwn).expect_err("its children would be reaped by the first")));
    let config = all.configuration(1).and_then(Operation::wait).expect("a configuration");
    assert!(not_allowed(all.soft_reset(1, &config).expect_err("it needs another context")));
    drop(all);

    let application = open(Children::Application).expect("alone");
    assert!(!application.child_exited(1, 0).expect("it is not libxl's"));
    drop(application);
    fake.expect_nothing_left();
}
