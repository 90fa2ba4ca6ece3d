//! A fake libxl of its own for each test, with its own host.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fake_libxl::Control;
use serde_json::{Value, json};
use tempfile::TempDir;
use xenlight::{Children, Context, DomainConfig, Library, LogRecord, LogSink, Release, Wait};

/// A libxl of its own, with its own host, and a context on it.
pub struct Fake {
    pub control: Control,
    pub library: Library,
    pub directory: TempDir,
}

impl Fake {
    pub fn new(host: Value) -> Self {
        Self::of(Release::new(4, 17), host)
    }

    pub fn of(release: Release, host: Value) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = fake_libxl::install(directory.path(), &release.to_string());
        // SAFETY: the fake behaves like libxl.
        let library = unsafe { Library::open_in(directory.path(), release) }.expect("the fake opens");
        let control = Control::open(&path);
        control.host(host);
        Self { control, library, directory }
    }

    pub fn web() -> (Self, Context) {
        let fake = Self::new(json!({"domains": [{"name": "web"}, {"name": "db"}]}));
        let context = fake.context(None);
        (fake, context)
    }

    pub fn context(&self, sink: Option<Box<dyn LogSink>>) -> Context {
        Context::open(&self.library, Children::LibxlReapsOwn, sink).expect("a context")
    }

    pub fn file(&self, name: &str) -> OwnedFd {
        File::create(self.directory.path().join(name)).expect("a file").into()
    }

    /// What is alive in the fake after everything was dropped.
    pub fn expect_nothing_left(&self) {
        let state = self.control.wait(|state| state["live"]["contexts"] == 0);
        let live = state["live"].as_object().expect("counters");
        for (what, count) in live {
            assert!(*count == 0 || *count == json!([]), "{what} left: {state}");
        }
        assert_eq!(state["refusals"], json!([]));
    }
}

pub fn config(name: &str) -> DomainConfig {
    DomainConfig::from_json(json!({
        "c_info": {"type": "pvh", "name": name, "uuid": "c57b1d5e-7e2f-4f0b-8d7c-0d9b5c0f2f11"},
        "b_info": {"max_vcpus": 1, "max_memkb": 131072, "target_memkb": 131072, "kernel": "/k", "type.pvh": {}},
        "on_reboot": "restart"
    }))
    .expect("an object")
}

pub fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

pub fn done<T>(wait: Wait<T>) -> xenlight::Result<T> {
    match wait {
        Wait::Done(result) => result,
        Wait::Pending(_) => panic!("still pending after ten seconds"),
    }
}

/// Keeps all lines.
#[derive(Clone, Default)]
pub struct Lines(pub Arc<Mutex<Vec<LogRecord>>>);

impl LogSink for Lines {
    fn record(&self, record: &LogRecord) {
        self.0.lock().expect("not poisoned").push(record.clone());
    }
}

impl Lines {
    pub fn has(&self, part: &str) -> bool {
        self.0.lock().expect("not poisoned").iter().any(|r| r.text.contains(part))
    }

    pub fn wait_for(&self, part: &str) {
        let begun = Instant::now();
        while !self.has(part) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{part:?} never came: {:?}", self.0);
            thread::yield_now();
        }
    }
}
