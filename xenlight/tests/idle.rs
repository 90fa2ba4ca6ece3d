//! What a context does not do as long as nothing is to be waited for. Alone in its process, whose threads it counts.

use std::fs;

use fake_libxl::Control;
use serde_json::json;
use xenlight::{Children, Context, Library, Operation, Release};

fn event_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").expect("this process").flatten();
    tasks
        .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "libxl events\n"))
        .count()
}

#[test]
fn a_context_that_is_only_asked_has_no_thread() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = fake_libxl::install(directory.path(), "4.17");
    let library = Library::open_in(directory.path(), Release::new(4, 17)).expect("the fake opens");
    let control = Control::open(&path);
    control.host(json!({"domains": [{"name": "web", "paused": true}]}));
    let open = || Context::open(&library, Children::LibxlReapsOwn, None).expect("a context");

    let context = open();
    assert_eq!(context.name(1).as_deref(), Some("web"));
    assert_eq!(event_threads(), 0);
    // With nobody else to free it, whoever drops it does.
    drop(context);
    assert_eq!(control.state()["live"]["contexts"], 0);

    let context = open();
    context.unpause(1).and_then(Operation::wait).expect("runs");
    assert_eq!(event_threads(), 1);
    let events = context.domain_events();
    events.watch(1, context.info(1).expect("web").uuid).expect("watched");
    assert_eq!(event_threads(), 1);
    drop((events, context));
    assert_eq!((event_threads(), &control.state()["live"]["contexts"]), (0, &json!(0)));

    // A watch needs it as well.
    let context = open();
    let events = context.domain_events();
    events.watch(1, context.info(1).expect("web").uuid).expect("watched");
    assert_eq!(event_threads(), 1);
}
