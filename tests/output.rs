//! What the program writes where, as a process of its own.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `check` on two guests' files, of which one is not there, with these as its streams; gives what each got.
fn check(dir: &Path, options: &[&str], journal: impl FnOnce(&File, &File) -> String) -> (String, String) {
    let stream = |name: &str| File::create(dir.join(name)).expect("file");
    let (out, err) = (stream("out"), stream("err"));
    let good = dir.join("good");
    fs::write(&good, "name = \"web\"\ntype = \"pvh\"\nkernel = \"/k\"\nvpcus = 2\n").expect("write");
    let status = Command::new(env!("CARGO_BIN_EXE_xendomains"))
        .arg("check")
        .args(options)
        .args([&good, &dir.join("bad")])
        .env("JOURNAL_STREAM", journal(&out, &err))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .status()
        .expect("the program");
    assert_eq!(status.code(), Some(1));
    let read = |name: &str| fs::read_to_string(dir.join(name)).expect("text");
    (read("out"), read("err"))
}

fn name(file: &File) -> String {
    let metadata = file.metadata().expect("metadata");
    format!("{}:{}", metadata.dev(), metadata.ino())
}

#[test]
fn the_journal_gets_priorities_and_anything_else_gets_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let starts = |text: &str| text.lines().map(|line| line[..3].to_owned()).collect::<Vec<_>>();
    let (out, err) = check(dir.path(), &[], |_, err| name(err));
    assert_eq!(
        (out.starts_with('/'), starts(&err)),
        (true, vec!["<4>".to_owned(), "<3>".to_owned()]),
        "{out}{err}"
    );
    let (out, err) = check(dir.path(), &[], |out, _| name(out));
    assert_eq!((starts(&out), err.starts_with("warning: ")), (vec!["<6>".to_owned()], true), "{out}{err}");
    let (out, err) = check(dir.path(), &[], |_, _| "1:1".to_owned());
    assert!(!out.contains('<') && !err.contains('<'), "{out}{err}");
}

#[test]
fn json_is_the_only_thing_on_standard_output_and_has_no_priority() {
    let dir = tempfile::tempdir().expect("a directory");
    let (out, err) = check(dir.path(), &["--json"], |out, _| name(out));
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let levels: Vec<_> = json["messages"].as_array().expect("a list").iter().map(|m| m["level"].clone()).collect();
    assert_eq!((json["exit"].as_u64(), levels), (Some(1), vec!["warning".into(), "note".into(), "error".into()]));
    assert_eq!(err.lines().count(), 2, "{err}");
}
