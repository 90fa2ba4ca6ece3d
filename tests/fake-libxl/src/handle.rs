//! For tests: putting a copy of the fake in place, and driving it.

use crate::world::Store;
use serde_json::Value;
use std::ffi::{CStr, CString, c_char};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The name of the built library.
const BUILT: &str = "libfake_libxl.so";

/// The cdylib that cargo built along with this crate: beside the test, or in the profile's directory above it.
///
/// # Panics
/// If it isn't there, with the places that were searched. `FAKE_LIBXL_SO` names it where it can't be found so.
pub fn built() -> PathBuf {
    if let Some(path) = std::env::var_os("FAKE_LIBXL_SO") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("a test knows its own path");
    let mut tried = Vec::new();
    for directory in exe.ancestors().skip(1).take(3) {
        for path in [directory.join("deps").join(BUILT), directory.join(BUILT)] {
            if path.is_file() {
                return path;
            }
            tried.push(path.display().to_string());
        }
    }
    panic!(
        "{BUILT} is not built: it comes with the dev-dependency `fake-libxl`, or with `cargo build -p fake-libxl`. \
         Looked for {}",
        tried.join(", ")
    );
}

/// Copies the fake to `directory` (which is made) as libxl of `release`, `4.17` for example. Its path.
///
/// A copy of its own in a directory of its own has statics of its own, so that tests of one process which each install
/// into their own directory don't see each other's hosts and rules.
///
/// # Panics
/// If that can't be done.
pub fn install(directory: &Path, release: &str) -> PathBuf {
    let to = directory.join(format!("libxenlight.so.{release}"));
    let from = built();
    fs::create_dir_all(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    // Never over a file that may be mapped somewhere.
    let _ = fs::remove_file(&to);
    fs::copy(&from, &to).unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
    to
}

type WithJson = unsafe extern "C" fn(*const c_char) -> *mut c_char;

/// The control interface of one copy of the fake in this process.
#[derive(Debug)]
pub struct Control {
    library: libloading::Library,
}

impl Control {
    /// Opens the copy at `path`, or finds it if the program under test has opened it already.
    ///
    /// # Panics
    /// If it can't be loaded.
    pub fn open(path: &Path) -> Control {
        // SAFETY: the fake runs nothing when it is loaded.
        let library = unsafe { libloading::Library::new(path) };
        Control { library: library.unwrap_or_else(|e| panic!("{}: {e}", path.display())) }
    }

    fn function<T: Copy>(&self, name: &str) -> T {
        // SAFETY: the callers below name the types that `exports` has.
        let found = unsafe { self.library.get::<T>(name.as_bytes()) };
        *found.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn tell(&self, name: &str, value: &Value) {
        let f: WithJson = self.function(name);
        let text = CString::new(value.to_string()).expect("JSON text has no NUL");
        // SAFETY: a valid string for the length of the call.
        if let Some(message) = taken(unsafe { f(text.as_ptr()) }) {
            panic!("{name}: {message}");
        }
    }

    /// Adds rules.
    ///
    /// # Panics
    /// As all of these: if the fake doesn't understand.
    #[track_caller]
    pub fn script(&self, rules: Value) {
        self.tell("fake_script", &rules);
    }

    /// Adds domains and sets the host's values.
    #[track_caller]
    pub fn host(&self, host: Value) {
        self.tell("fake_host", &host);
    }

    /// A guest does something now (or after `after_ms`): `{"domain": "web", "does": "poweroff"}`.
    #[track_caller]
    pub fn guest(&self, action: Value) {
        self.tell("fake_guest", &action);
    }

    /// Ends operations that are still waiting: `{"call": "libxl_domain_suspend", "error": -3}`.
    #[track_caller]
    pub fn finish(&self, which: Value) {
        self.tell("fake_finish", &which);
    }

    /// Forgets rules, the host, and what has been counted.
    pub fn reset(&self) {
        let f: unsafe extern "C" fn() = self.function("fake_reset");
        // SAFETY: takes nothing.
        unsafe { f() };
    }

    /// Everything there is to know.
    pub fn state(&self) -> Value {
        let f: unsafe extern "C" fn() -> *mut c_char = self.function("fake_state");
        // SAFETY: takes nothing.
        let text = taken(unsafe { f() }).expect("there always is a state");
        serde_json::from_str(&text).expect("the state is JSON")
    }

    /// Waits until the state is as wanted.
    ///
    /// # Panics
    /// After ten seconds, with the last state.
    #[track_caller]
    pub fn wait(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        wait(|| self.state(), wanted)
    }
}

/// A malloc'ed string's text.
fn taken(p: *mut c_char) -> Option<String> {
    if p.is_null() {
        return None;
    }
    // SAFETY: a NUL-terminated block from malloc that is ours now.
    let text = unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned();
    // SAFETY: as above.
    unsafe { libc::free(p.cast()) };
    Some(text)
}

#[track_caller]
fn wait(state: impl Fn() -> Value, wanted: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let now = state();
        if wanted(&now) {
            return now;
        }
        assert!(Instant::now() < end, "not in 10 s; the state is {now:#}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The host that spawned programs share through `FAKE_LIBXL_STATE`, seen from the test.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// A host at `path`, which need not exist yet.
    pub fn new(path: &Path) -> StateFile {
        StateFile { path: path.to_owned() }
    }

    /// Adds domains and sets the host's values.
    ///
    /// # Panics
    /// If the host is not understood or the file can't be written.
    #[track_caller]
    pub fn host(&self, host: &Value) {
        Store::file(&self.path).with(|w| w.set_up(host)).unwrap_or_else(|e| panic!("{e}"));
    }

    /// A guest does something now.
    ///
    /// # Panics
    /// If it can't, or the file can't be written.
    #[track_caller]
    pub fn guest(&self, action: &Value) {
        Store::file(&self.path).with(|w| w.guest(action)).unwrap_or_else(|e| panic!("{e}"));
    }

    /// The host as it is now.
    ///
    /// # Panics
    /// If the file can't be read.
    pub fn state(&self) -> Value {
        Store::file(&self.path).with(|w| serde_json::to_value(w)).expect("a host is JSON")
    }

    /// Waits until the state is as wanted.
    ///
    /// # Panics
    /// After ten seconds, with the last state.
    #[track_caller]
    pub fn wait(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        wait(|| self.state(), wanted)
    }
}
