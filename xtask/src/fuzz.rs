//! Fuzzing everything that parses, and what we give to the real libxl: `tests/fuzz`, built with libFuzzer's
//! instrumentation.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};

use crate::lab::Release;
use crate::program::cargo;
use crate::real_libxl::RealLibxl;
use crate::{exec, packages, progress};

/// A target.
struct Target {
    /// Its name.
    name: &'static str,
    /// The program, without its `fuzz-`.
    program: &'static str,
    /// The directories that hold its seeds.
    seeds: &'static [&'static str],
    /// The release with whose libxl it runs.
    libxl: Option<Release>,
}

const fn parser(name: &'static str, seeds: &'static [&'static str]) -> Target {
    Target { name, program: name, seeds, libxl: None }
}

const fn configuration(name: &'static str, release: Release) -> Target {
    let seeds = &["tests/configs/accepted", "tests/fuzz/seeds/configuration"];
    Target { name, program: "configuration", seeds, libxl: Some(release) }
}

const TARGETS: &[Target] = &[
    parser("settings", &["tests/fuzz/seeds/settings"]),
    parser("xl-cfg", &["tests/configs"]),
    parser("disk", &["tests/fuzz/seeds/disk"]),
    parser("devices", &["tests/fuzz/seeds/devices"]),
    parser("image", &["tests/fuzz/seeds/image"]),
    parser("sxp", &["tests/stand-ins/samples"]),
    configuration("configuration-4.17", Release::V4_17),
    configuration("configuration-4.20", Release::V4_20),
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

/// Fuzzes each target, or the one of this name, for this many seconds. Returns how many held, and how many did not.
///
/// # Errors
/// They can't be built, or none has this name.
pub fn run(workspace: &Path, seconds: u32, only: Option<&str>) -> Result<(usize, usize)> {
    let targets: Vec<_> = TARGETS.iter().filter(|target| only.is_none_or(|name| name == target.name)).collect();
    if targets.is_empty() {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        bail!("the targets are {}", names.join(", "));
    }
    packages::need(&[("c++", "g++")], &workspace.join("target/lab/logs/install.log"))?;
    let directory = workspace.join("target/fuzz");
    let programs = build(workspace, &directory)?;
    let waiting = Mutex::new(targets.iter());
    let (passed, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    // The guard is gone before the target runs.
                    let next = waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    let Some(target) = next else { return };
                    let outcome = fuzz(workspace, &directory, &programs, target, seconds);
                    let name = target.name;
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
fn fuzz(workspace: &Path, directory: &Path, programs: &Path, target: &Target, seconds: u32) -> Result<String> {
    let name = target.name;
    let corpus = directory.join("corpus").join(name);
    std::fs::create_dir_all(&corpus).with_context(|| format!("make {}", corpus.display()))?;
    let log = workspace.join(format!("target/lab/logs/fuzz-{name}.log"));
    let program = programs.join(format!("fuzz-{}", target.program));
    let mut command = match target.libxl {
        None => Command::new(program),
        Some(release) => {
            let mut command = RealLibxl::ready(workspace, release, directory, 0)?.command(&program)?;
            // What is freed is given back at once, so that what is not can be counted.
            command.env("RELEASE", release.to_string()).env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");
            // As long as a configuration with everything. libxl reads each again for every part that it seems to ignore.
            command.arg("-max_len=16384");
            command
        }
    };
    exec::logged(
        command
            .current_dir(workspace)
            .args([
                format!("-max_total_time={seconds}"),
                format!("-timeout={}", if target.libxl.is_some() { 30 } else { 5 }),
                "-rss_limit_mb=512".to_owned(),
                "-malloc_limit_mb=64".to_owned(),
                "-print_final_stats=1".to_owned(),
                // An input that fails is kept here; give its file to the target to see it again.
                format!("-artifact_prefix={}/{name}-", directory.display()),
            ])
            .arg(&corpus)
            .args(target.seeds),
        &log,
    )?;
    let said = std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
    let done = said.lines().rev().find(|line| line.starts_with("Done ")).context("libFuzzer has not finished")?;
    Ok(done.trim_start_matches("Done ").to_owned())
}
