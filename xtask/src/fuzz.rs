//! Fuzzing everything that parses: `tests/fuzz`, built with libFuzzer's instrumentation.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};

use crate::program::cargo;
use crate::{exec, packages, progress};

/// The targets, each with the directories that hold its seeds.
const TARGETS: &[(&str, &[&str])] = &[
    ("settings", &["tests/fuzz/seeds/settings"]),
    ("xl-cfg", &["tests/configs"]),
    ("disk", &["tests/fuzz/seeds/disk"]),
    ("devices", &["tests/fuzz/seeds/devices"]),
    ("image", &["tests/fuzz/seeds/image"]),
    ("sxp", &["tests/stand-ins/samples"]),
];

/// Targets at work at the same time.
const JOBS: usize = 2;

/// What makes the compiler count edges and watch comparisons, which is what guides libFuzzer. All of it is in the stable
/// compiler; only the addresses of memory errors need another one, and safe Rust has none.
const INSTRUMENTATION: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
];

/// Fuzzes each target for this many seconds. Returns how many held, and how many did not.
///
/// # Errors
/// They can't be built.
pub fn run(workspace: &Path, seconds: u32) -> Result<(usize, usize)> {
    packages::need(&[("c++", "g++")], &workspace.join("target/lab/logs/install.log"))?;
    let directory = workspace.join("target/fuzz");
    let programs = build(workspace, &directory)?;
    let waiting = Mutex::new(TARGETS.iter());
    let (passed, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    // The guard is gone before the target runs.
                    let next = waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    let Some((name, seeds)) = next else { return };
                    let outcome = fuzz(workspace, &directory, &programs, name, seeds, seconds);
                    let counter = if outcome.is_ok() { &passed } else { &failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                    match outcome {
                        Ok(runs) => println!("test fuzz {name} ... ok ({runs})"),
                        Err(error) => println!("test fuzz {name} ... FAILED\n{error:?}"),
                    }
                }
            });
        }
    });
    Ok((passed.into_inner(), failed.into_inner()))
}

/// Builds the targets and returns the directory of the programs.
fn build(workspace: &Path, directory: &Path) -> Result<PathBuf> {
    let triple = exec::output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let triple = String::from_utf8(triple).context("rustc's host")?.trim().to_owned();
    progress::step("building the fuzz targets", || {
        exec::logged(
            Command::new(cargo())
                .current_dir(workspace)
                .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f"))
                // With a target, build scripts and macros are not instrumented.
                .args(["build", "--release", "--package", "fuzz-targets", "--target", &triple, "--target-dir"])
                .arg(directory),
            &workspace.join("target/lab/logs/fuzz-build.log"),
        )
    })?;
    Ok(directory.join(triple).join("release"))
}

/// Runs one target; gives libFuzzer's own last words.
fn fuzz(
    workspace: &Path,
    directory: &Path,
    programs: &Path,
    name: &str,
    seeds: &[&str],
    seconds: u32,
) -> Result<String> {
    let corpus = directory.join("corpus").join(name);
    std::fs::create_dir_all(&corpus).with_context(|| format!("make {}", corpus.display()))?;
    let log = workspace.join(format!("target/lab/logs/fuzz-{name}.log"));
    exec::logged(
        Command::new(programs.join(format!("fuzz-{name}")))
            .current_dir(workspace)
            .args([
                format!("-max_total_time={seconds}"),
                "-timeout=5".to_owned(),
                "-rss_limit_mb=512".to_owned(),
                "-malloc_limit_mb=64".to_owned(),
                "-print_final_stats=1".to_owned(),
                // An input that fails is kept here; give its file to the target to see it again.
                format!("-artifact_prefix={}/{name}-", directory.display()),
            ])
            .arg(&corpus)
            .args(seeds),
        &log,
    )?;
    let said = std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    let done = said.lines().rev().find(|line| line.starts_with("Done ")).context("libFuzzer has not finished")?;
    Ok(done.trim_start_matches("Done ").to_owned())
}
