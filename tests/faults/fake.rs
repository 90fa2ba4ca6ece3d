//! The fake hypervisor of a scenario: in this process for libxl, in a file for a command.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use fake_libxl::{Control, StateFile};
use serde_json::{Value, json};
use xenlight::{Children, Context, Library};

use super::COMMAND;

/// One fake hypervisor.
pub enum Fake {
    /// In this process.
    Process(Control),
    /// In a file.
    File {
        /// The command.
        command: PathBuf,
        /// Its guests.
        state: StateFile,
        /// The file of its rules, and what is in it.
        rules: (PathBuf, Mutex<Vec<Value>>),
    },
}

impl Fake {
    /// One whose libxl is this file. A stand-in for a command is installed in this directory.
    pub fn new(directory: &Path, library: &Path) -> Fake {
        let Some((name, stand_in)) = COMMAND else { return Fake::Process(Control::open(library)) };
        let at = |name: &str| directory.join(name);
        fs::create_dir(at("sbin")).expect("a directory");
        let root = directory.display();
        let script = format!(
            "#!/bin/sh\nXL_STAND_IN_LIBRARY={root} XL_STAND_IN_RESUMES=yes FAKE_LIBXL_STATE={root}/world \
             FAKE_LIBXL_SCRIPT={root}/rules XM_STAND_IN_MANAGED={root}/managed exec {stand_in} \"$@\"\n"
        );
        let command = at("sbin").join(name);
        fs::write(&command, script).expect("a file");
        fs::set_permissions(&command, fs::Permissions::from_mode(0o755)).expect("a script");
        fs::write(at("rules"), "[]").expect("a file");
        Fake::File { command, state: StateFile::new(&at("world")), rules: (at("rules"), Mutex::default()) }
    }

    pub fn host(&self, host: Value) {
        match self {
            Fake::Process(control) => control.host(host),
            Fake::File { state, .. } => state.host(&host),
        }
    }

    pub fn guest(&self, action: Value) {
        match self {
            Fake::Process(control) => control.guest(action),
            Fake::File { state, .. } => state.guest(&action),
        }
    }

    /// Gives a domain another name, as an admin would.
    pub fn rename(&self, library: &Library, domid: u32, name: &str) {
        match self {
            Fake::Process(_) => {
                let context = Context::open(library, Children::LibxlReapsOwn, None).expect("a connection");
                context.rename(domid, None, name).expect("renamed");
            }
            Fake::File { command, .. } => {
                let status = Command::new(command).args(["rename", &domid.to_string(), name]).status();
                assert!(status.expect("it runs").success());
            }
        }
    }

    pub fn finish(&self, which: Value) {
        match self {
            Fake::Process(control) => control.finish(which),
            Fake::File { .. } => panic!("another process waits for this: {which}"),
        }
    }

    /// Adds rules.
    pub fn script(&self, new: Value) {
        match self {
            Fake::Process(control) => control.script(new),
            Fake::File { rules: (path, rules), .. } => {
                let mut rules = rules.lock().expect("not poisoned");
                let new = if let Value::Array(new) = new { new } else { vec![new] };
                rules.extend(new.into_iter().map(|mut rule| {
                    if !rule["nth"].is_null() {
                        rule["shared"] = true.into();
                    }
                    rule
                }));
                fs::write(path, json!(*rules).to_string()).expect("a file");
            }
        }
    }

    pub fn state(&self) -> Value {
        match self {
            Fake::Process(control) => control.state(),
            Fake::File { state, .. } => state.state(),
        }
    }

    pub fn wait(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        match self {
            Fake::Process(control) => control.wait(wanted),
            Fake::File { state, .. } => state.wait(wanted),
        }
    }
}
