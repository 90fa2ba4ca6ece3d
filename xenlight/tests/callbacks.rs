//! Code of the caller's that runs in callbacks, on the fake libxl: what it may do, and what is refused.

mod common;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context as Task, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use common::{Fake, Lines, config, done, soon};
use serde_json::json;
use xenlight::futures_core::Stream;
use xenlight::{Cause, Context, DomainEvents, LogRecord, LogSink, Operation, SaveFlags};

/// Longest time for what another thread does at once.
const SOON: Duration = Duration::from_secs(10);

/// Attempt that a sink makes when it sees a certain line.
type Attempt = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// A sink that tries something and says what came of it.
struct Trying {
    what: Arc<OnceLock<Attempt>>,
    outcome: Mutex<Sender<Vec<String>>>,
}

impl LogSink for Trying {
    fn record(&self, record: &LogRecord) {
        if record.text.contains("now") {
            if let Some(what) = self.what.get() {
                let _ = self.outcome.lock().expect("not poisoned").send(what());
            }
        }
    }
}

/// A context with such a sink.
fn trying(fake: &Fake) -> (Context, Arc<OnceLock<Attempt>>, Receiver<Vec<String>>) {
    let what = Arc::new(OnceLock::new());
    let (outcome, outcomes) = channel();
    let sink = Trying { what: Arc::clone(&what), outcome: Mutex::new(outcome) };
    (fake.context(Some(Box::new(sink))), what, outcomes)
}

fn refused<T>(result: xenlight::Result<T>) -> String {
    match result {
        Err(e) if matches!(e.cause(), Cause::NotAllowed(_)) => "refused".into(),
        Err(e) => format!("error: {e}"),
        Ok(_) => "done".into(),
    }
}

#[test]
fn a_log_sink_can_call_nothing_of_libxl() {
    let fake = Fake::new(json!({"domains": [{"name": "web"}, {"name": "db"}]}));
    let (context, what, outcomes) = trying(&fake);
    let other = fake.context(None);
    let events = Arc::new(context.domain_events());
    let uuid = context.info(1).expect("web").uuid;
    events.watch(1, uuid).expect("watches");
    fake.control.script(json!([
        {"call": "libxl_domain_pause", "log": [{"level": 8, "text": "now"}]},
        {"call": "libxl_domain_suspend", "complete": "never"},
    ]));
    let save = Mutex::new(Some(other.save(1, fake.file("image"), SaveFlags::default()).expect("starts")));
    let library = fake.library.clone();
    let (own, shared) = (context.clone(), Arc::clone(&events));
    let attempt = move || {
        vec![
            refused(own.list()),
            refused(own.info(1)),
            refused(own.pause(2)),
            refused(own.sysrq(1, 's')),
            refused(own.create(&config("new"))),
            refused(own.free_memory_kib()),
            refused(own.host_cpus()),
            refused(own.userdata(1, "x")),
            refused(own.configuration(1)),
            refused(other.list()),
            refused(shared.watch(2, uuid)),
            refused(shared.watch_drive(1, "hdc")),
            refused(shared.next_until(None)),
            refused(save.lock().expect("not poisoned").take().map_or(Ok(()), |save| save.wait().map(drop))),
            refused(Context::open(&library, xenlight::Children::LibxlReapsOwn, None)),
            format!("{:?}", own.name(1)),
            // Watches may be given up anywhere.
            format!("{:?}", shared.unwatch(1)),
        ]
    };
    assert!(what.set(Box::new(attempt)).is_ok());
    done(context.pause(2).expect("starts").wait_until(soon())).expect("paused");
    let outcome = outcomes.recv_timeout(SOON).expect("the sink returns");
    assert_eq!(outcome[..15], ["refused"; 15]);
    assert_eq!(outcome[15..], ["None", "()"]);
    // The event thread gives the watch up, and no call of the sink's has reached libxl.
    let state = fake.control.wait(|state| state["live"]["generators"] == 0);
    assert_eq!(state["refusals"], json!([]));
    // All goes on as before.
    done(context.unpause(2).expect("starts").wait_until(soon())).expect("unpaused");
}

#[test]
fn a_log_sink_may_drop_the_last_handle_of_a_context() {
    let fake = Fake::new(json!({"domains": [{"name": "web"}]}));
    let (context, what, outcomes) = trying(&fake);
    // One with an event thread and a watch, one without.
    let (driven, idle) = (fake.context(None), fake.context(None));
    let events = driven.domain_events();
    events.watch(1, driven.info(1).expect("web").uuid).expect("watches");
    let handles = Mutex::new(Some((driven, events, idle)));
    let attempt = move || {
        drop(handles.lock().expect("not poisoned").take());
        vec!["dropped".into()]
    };
    assert!(what.set(Box::new(attempt)).is_ok());
    fake.control.script(json!({"call": "libxl_domain_pause", "log": [{"level": 8, "text": "now"}]}));
    done(context.pause(1).expect("starts").wait_until(soon())).expect("paused");
    assert_eq!(outcomes.recv_timeout(SOON).expect("the sink returns"), ["dropped"]);
    fake.control.wait(|state| state["live"]["contexts"] == 1);
    drop(context);
    fake.expect_nothing_left();
}

/// A waker that does something once.
struct Doing<F>(Mutex<Option<F>>);

impl<F: FnOnce() + Send + 'static> Wake for Doing<F> {
    fn wake(self: Arc<Self>) {
        let it = self.0.lock().expect("not poisoned").take();
        if let Some(it) = it {
            it();
        }
    }
}

fn doing<F: FnOnce() + Send + 'static>(f: F) -> Waker {
    Waker::from(Arc::new(Doing(Mutex::new(Some(f)))))
}

fn poll_event(events: &DomainEvents, waker: &Waker) -> bool {
    let mut events = events;
    Pin::new(&mut events).poll_next(&mut Task::from_waker(waker)).is_ready()
}

#[test]
fn a_waker_may_drop_the_last_handles_on_the_event_thread() {
    let (fake, context) = Fake::web();
    fake.control.script(json!({"call": "libxl_domain_pause", "complete": "never"}));
    let mut operation = Box::pin(context.pause(1).expect("starts"));
    let slot = Arc::new(Mutex::new(None));
    let (said, heard) = channel();
    let waker = {
        let slot = Arc::clone(&slot);
        doing(move || {
            drop(slot.lock().expect("not poisoned").take());
            let _ = said.send(thread::current().name().map(str::to_owned));
        })
    };
    assert!(operation.as_mut().poll(&mut Task::from_waker(&waker)).is_pending());
    *slot.lock().expect("not poisoned") = Some((operation, context));
    fake.control.finish(json!({"call": "libxl_domain_pause"}));
    let thread = heard.recv_timeout(SOON).expect("the waker returns");
    assert_eq!(thread.as_deref(), Some("libxl events"));
    fake.expect_nothing_left();
}

#[test]
fn a_waker_may_use_the_stream_that_another_thread_is_adding_to() {
    let (fake, context) = Fake::web();
    let events = Arc::new(context.domain_events());
    let uuids = [context.info(1).expect("web").uuid, context.info(2).expect("db").uuid];
    events.watch(1, uuids[0]).expect("watches");
    let (said, heard) = channel();
    let waker = {
        let events = Arc::clone(&events);
        doing(move || {
            // The other thread gets so far as it can while this one is in its callback.
            let adding = {
                let events = Arc::clone(&events);
                thread::spawn(move || events.watch(2, uuids[1]))
            };
            thread::sleep(Duration::from_millis(100));
            events.unwatch(1);
            let shown = format!("{events:?}");
            adding.join().expect("no panic").expect("watches");
            let _ = said.send(shown);
        })
    };
    assert!(!poll_event(&events, &waker));
    fake.control.guest(json!({"domain": "web", "does": "poweroff"}));
    heard.recv_timeout(SOON).expect("neither waits for the other");
    fake.control.guest(json!({"domain": "db", "does": "poweroff"}));
    let mut ended = Vec::new();
    while let Some(event) = events.next_until(soon()).expect("no disaster") {
        ended.push(event.domid);
        if event.domid == 2 {
            break;
        }
    }
    assert_eq!(ended.last(), Some(&2), "{ended:?}");
    drop((events, context));
    fake.expect_nothing_left();
}

#[test]
fn a_waker_on_the_event_thread_can_do_all_but_wait_for_itself() {
    let (fake, context) = Fake::web();
    fake.control.script(json!({"call": "libxl_domain_pause", "nth": 1, "complete": "never"}));
    let mut operation = pin!(context.pause(1).expect("starts"));
    let (said, heard) = channel();
    let waker = {
        let context = context.clone();
        doing(move || {
            let pause = context.pause(2).and_then(Operation::wait);
            let _ = said.send([refused(context.list()), refused(pause)]);
        })
    };
    assert!(operation.as_mut().poll(&mut Task::from_waker(&waker)).is_pending());
    fake.control.finish(json!({"call": "libxl_domain_pause"}));
    assert_eq!(heard.recv_timeout(SOON).expect("the waker returns"), ["done", "refused"]);
    drop(waker);
}

#[test]
fn a_disaster_reaches_every_waiter_whatever_the_wakers_before_it_do() {
    let lines = Lines::default();
    let fake = Fake::new(json!({"domains": [{"name": "web"}, {"name": "db"}]}));
    let context = fake.context(Some(Box::new(lines.clone())));
    fake.control.script(json!([
        {"call": "libxl_domain_suspend", "complete": "never"},
        {"call": "libxl_domain_reboot", "disaster": "xenstored is gone"},
    ]));
    let save = |name: &str| Box::pin(context.save(1, fake.file(name), SaveFlags::default()).expect("starts"));
    let streams: Vec<_> = (0..3).map(|_| context.domain_events()).collect();
    for stream in &streams {
        stream.watch(2, context.info(2).expect("db").uuid).expect("watches");
    }
    let mut saves: Vec<_> = (0..4).map(|n| save(&format!("image{n}"))).collect();
    for save in &mut saves {
        let waker = doing(|| panic!("this task is gone"));
        assert!(save.as_mut().poll(&mut Task::from_waker(&waker)).is_pending());
    }
    let plain = context.save(1, fake.file("plain"), SaveFlags::default()).expect("starts");
    let waiting = thread::spawn(move || plain.wait().map(drop));
    for stream in &streams {
        let waker = doing(|| panic!("this task is gone"));
        assert!(!poll_event(stream, &waker));
    }
    let _ = context.reboot(1);
    let error = waiting.join().expect("no panic").expect_err("broken");
    assert!(matches!(error.cause(), Cause::Disaster(_)), "{error}");
    for mut save in saves {
        let ready = save.as_mut().poll(&mut Task::from_waker(Waker::noop()));
        assert!(matches!(ready, Poll::Ready(Err(_))), "every operation is told");
    }
    for stream in &streams {
        let error = stream.next_until(soon()).expect_err("every stream is told");
        assert!(matches!(error.cause(), Cause::Disaster(_)), "{error}");
    }
    lines.wait_for("this task is gone");
}
