//! The signals that ask the program to end, and those that whoever starts it wants ignored.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, mkfifoat};

const HUP: u64 = 1;
const INT: u64 = 1 << 1;
const TERM: u64 = 1 << 14;

/// Starts the program after these words of a shell, and gives the signals that it ignores and those that it handles.
fn signals(dir: &Path, before: &str) -> (u64, u64) {
    let fifo = dir.join("settings");
    mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).expect("FIFO");
    let mut child = Command::new("sh")
        .args(["-c", &format!("{before} exec \"$0\" check --config \"$1\"")])
        .args([Path::new(env!("CARGO_BIN_EXE_xendomains")), &fifo])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    // The program reads the file when it has seen to signals, and goes on when this is closed.
    let writer = File::options().write(true).open(&fifo).expect("somebody reads");
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("status");
    drop(writer);
    child.wait().expect("it ends");
    fs::remove_file(&fifo).expect("remove");
    let mask = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        u64::from_str_radix(mask.trim(), 16).expect("a mask") & (HUP | INT | TERM)
    };
    (mask("SigIgn:"), mask("SigCgt:"))
}

#[test]
fn signals_that_are_ignored_stay_so_but_for_the_one_that_stop_sends() {
    let dir = tempfile::tempdir().expect("a directory");
    for (before, ignored, handled) in [
        ("", 0, HUP | INT | TERM),
        ("trap '' HUP;", HUP, INT | TERM),
        ("trap '' HUP INT;", HUP | INT, TERM),
        ("trap '' TERM;", 0, HUP | INT | TERM),
    ] {
        assert_eq!(signals(dir.path(), before), (ignored, handled), "{before}");
    }
}
