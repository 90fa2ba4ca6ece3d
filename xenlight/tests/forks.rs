//! Forks of libxl beside calls that take long, on the fake libxl.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{Fake, Lines, config, done, soon};
use serde_json::json;
use xenlight::{Context, Operation, SaveFlags};

/// Time that a call may take beside others that are inside libxl.
const PROMPT: Duration = Duration::from_secs(2);

/// Runs a call on a context of its own that does not return while the test runs.
fn never_returns(fake: &Fake, call: impl FnOnce(Context) + Send + 'static) {
    let context = fake.context(None);
    thread::spawn(move || call(context));
}

#[test]
fn no_guest_waits_for_the_build_the_dump_or_the_memory_of_another() {
    let names = ["web", "db", "mail"];
    let fake = Fake::new(json!({"domains": names.map(|name| json!({"name": name}))}));
    fake.control.script(json!([
        {"call": "libxl_domain_create_new", "domain": "big", "stall_ms": 90_000},
        {"call": "libxl_domain_core_dump", "stall_ms": 90_000},
        {"call": "libxl_wait_for_memory_target", "stall_ms": 90_000},
        // Scripts, save helpers and the children that destroy domains.
        {"call": "libxl_domain_create_new", "forks": true},
        {"call": "libxl_domain_suspend", "forks": true},
        {"call": "libxl_domain_destroy", "forks": true},
    ]));
    never_returns(&fake, |context| drop(context.create(&config("big"))));
    never_returns(&fake, |context| drop(context.dump_core(3, "/dev/null".as_ref())));
    never_returns(&fake, |context| drop(context.wait_for_memory_target(0, Duration::from_secs(90))));
    let inside = ["libxl_domain_create_new", "libxl_domain_core_dump", "libxl_wait_for_memory_target"];
    fake.control.wait(|state| {
        let calls = state["calls"].as_array().into_iter().flatten();
        calls.filter(|call| inside.iter().any(|name| call["call"] == *name)).count() == inside.len()
    });

    let context = fake.context(None);
    let prompt = |what: &str, f: &dyn Fn()| {
        let begun = Instant::now();
        f();
        assert!(begun.elapsed() < PROMPT, "{what} took {:?}", begun.elapsed());
    };
    for name in ["new", "other"] {
        prompt("a creation", &|| {
            let context = fake.context(None);
            done(context.create(&config(name)).expect("starts").wait_until(soon())).expect("created");
        });
    }
    prompt("a save", &|| {
        let save = context.save(1, fake.file("image"), SaveFlags::default()).expect("starts");
        drop(done(save.wait_until(soon())).expect("saved"));
    });
    prompt("a shutdown", &|| done(context.shutdown(2).expect("starts").wait_until(soon())).expect("obeyed"));
    prompt("a destruction", &|| done(context.destroy(1).expect("starts").wait_until(soon())).expect("gone"));
    assert_eq!(fake.control.state()["refusals"], json!([]));
}

#[test]
fn a_child_that_lacks_a_lock_is_replaced_by_one_that_has_it() {
    let lines = Lines::default();
    let fake = Fake::new(json!({"domains": [{"name": "web"}]}));
    let context = fake.context(Some(Box::new(lines.clone())));
    fake.control.script(json!([
        // One hypercall that takes longer than the first child is waited for.
        {"call": "libxl_domain_create_new", "stall_ms": 600, "hypercall_ms": 600},
        {"call": "libxl_domain_destroy", "forks": true},
    ]));
    let builder = fake.context(None);
    thread::scope(|scope| {
        scope.spawn(|| builder.create(&config("mail")).and_then(Operation::wait).expect("created"));
        fake.control.wait(|state| state["calls"].as_array().is_some_and(|calls| !calls.is_empty()));
        done(context.destroy(1).expect("starts").wait_until(soon())).expect("destroyed");
    });
    assert!(lines.has("could not take its libraries' locks"), "the first child had the lock");
    drop((context, builder));
    fake.expect_nothing_left();
}

#[test]
fn many_forks_beside_many_hypercalls_leave_no_child_behind() {
    let fake =
        Fake::new(json!({"domains": (0..20).map(|n| json!({"name": format!("g{n}")})).collect::<Vec<_>>()}));
    fake.control.script(json!([
        {"call": "libxl_domain_create_new", "stall_ms": 1500},
        {"call": "libxl_domain_destroy", "forks": true},
    ]));
    let context = fake.context(None);
    thread::scope(|scope| {
        for builder in 0..3 {
            let own = fake.context(None);
            let name = format!("new{builder}");
            scope.spawn(move || own.create(&config(&name)).and_then(Operation::wait).expect("created"));
        }
        for domid in 1..=20 {
            done(context.destroy(domid).expect("starts").wait_until(soon())).expect("destroyed");
        }
    });
    drop(context);
    fake.expect_nothing_left();
}
