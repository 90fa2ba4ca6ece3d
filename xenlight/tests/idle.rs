//! What a context does not do as long as nothing is to be waited for. Alone in its process, whose threads it counts.

use std::fs;

use fake_libxl::Control;
use serde_json::json;
use xenlight::{Children, Context, Library, Operation, Release};

/// All of them: a new thread gets its name only when it runs.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").expect("this process").count()
}

#[test]
fn a_context_that_is_only_asked_has_no_thread() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = fake_libxl::install(directory.path(), "4.17");
    // SAFETY: the fake behaves like libxl.
    let library = unsafe { Library::open_in(directory.path(), Release::new(4, 17)) }.expect("the fake opens");
    let control = Control::open(&path);
    control.host(json!({"domains": [{"name": "web", "paused": true}]}));
    let open = || Context::open(&library, Children::LibxlReapsOwn, None).expect("a context");

    let before = threads();
    let asked = open();
    assert_eq!(asked.name(1).as_deref(), Some("web"));
    assert_eq!(threads(), before);
    // With nobody else to free it, whoever drops it does.
    drop(asked);
    assert_eq!(control.state()["live"]["contexts"], 0);

    let driven = open();
    driven.unpause(1).and_then(Operation::wait).expect("runs");
    assert_eq!(threads(), before + 1);
    let events = driven.domain_events();
    events.watch(1, driven.info(1).expect("web").uuid).expect("watched");
    assert_eq!(threads(), before + 1, "one is enough");

    let watching = open();
    let more = watching.domain_events();
    assert_eq!(threads(), before + 1);
    more.watch(1, watching.info(1).expect("web").uuid).expect("watched");
    assert_eq!(threads(), before + 2, "a watch needs it as well");
    // A thread that has ended may be listed for a moment; what it had to free is gone.
    drop((events, driven, more, watching));
    assert_eq!(control.state()["live"]["contexts"], 0);
}
