//! The program's tests on a real Xen host.
//!
//! Every scenario gets a freshly booted host (a snapshot, restored in seconds) with the program installed, does what
//! an admin would do, and looks at the result with `xl`, xenstore, the guests' consoles and the file system.
//!
//! `lab-tests --program FILE [--xen RELEASE] [FILTER…]`; the last line counts: `N passed, N failed`.

mod bench;
mod configs;
mod devices;
mod guests;
mod lifecycle;
mod memory;
mod pains;
mod scenarios;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use xtask::lab::{Host, Lab, Release};

use bench::Bench;
use scenarios::Scenario;

struct Arguments {
    program: PathBuf,
    release: Release,
    filters: Vec<String>,
}

fn arguments() -> Result<Arguments> {
    let mut program = None;
    let mut release = Release::V4_17;
    let mut filters = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--program" => program = Some(PathBuf::from(value()?)),
            "--xen" => release = value()?.parse().map_err(anyhow::Error::msg)?,
            option if option.starts_with('-') => bail!("{option} is not known"),
            _ => filters.push(word),
        }
    }
    let program = program.context("--program FILE is missing: the xendomains to test")?;
    Ok(Arguments { program, release, filters })
}

/// All scenarios, in the order in which they are begun.
const ALL: &[&[(&str, Scenario)]] =
    &[scenarios::ALL, guests::ALL, lifecycle::ALL, devices::ALL, memory::ALL, pains::ALL];

/// Hosts at work at the same time. QEMU emulates each in one thread.
const HOSTS: usize = 2;

/// The scenarios that are left to do, and what became of those that are done.
struct Queue {
    waiting: Mutex<Vec<&'static (&'static str, Scenario)>>,
    passed: AtomicUsize,
    failed: Mutex<Vec<&'static str>>,
}

impl Queue {
    /// Does scenarios on this host until none is left.
    fn work(&self, host: &mut Host, program: &Path) {
        loop {
            // The guard is gone before the scenario begins.
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((name, scenario)) = next else { return };
            let started = Instant::now();
            let mut outcome = attempt(host, program, scenario);
            for again in 1..ATTEMPTS {
                let Err(Failure { emulator: Some(fault), .. }) = &outcome else { break };
                println!("test {name}: {fault}, which the emulator brings about; again ({again})");
                outcome = attempt(host, program, scenario);
            }
            let seconds = started.elapsed().as_secs_f32();
            match outcome {
                Ok(()) => {
                    self.passed.fetch_add(1, Ordering::Relaxed);
                    println!("test {name} ... ok ({seconds:.1} s)");
                }
                Err(failure) => {
                    println!("test {name} ... FAILED ({seconds:.1} s)\n{:?}", failure.error);
                    self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(name);
                }
            }
        }
    }
}

/// How often a scenario may be tried that shows one of the emulator's known faults. They come at random; what looks like
/// one and is our doing comes every time.
const ATTEMPTS: usize = 3;

struct Failure {
    error: anyhow::Error,
    emulator: Option<&'static str>,
}

/// One scenario on a fresh host.
fn attempt(host: &mut Host, program: &Path, scenario: &Scenario) -> Result<(), Failure> {
    let unusable = |error| Failure { error, emulator: None };
    host.reset().map_err(unusable)?;
    let bench = Bench::install(host, program).map_err(unusable)?;
    scenario(&bench).map_err(|error| {
        let emulator = bench.emulator_fault().unwrap_or_default();
        Failure { error: error.context(bench.transcript()), emulator }
    })
}

fn run() -> Result<bool> {
    let arguments = arguments()?;
    let workspace = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let lab = Lab::open(&workspace)?;
    let wanted =
        |name: &str| arguments.filters.is_empty() || arguments.filters.iter().any(|f| name.contains(f.as_str()));
    let waiting: Vec<_> = ALL.iter().copied().flatten().rev().filter(|(name, _)| wanted(name)).collect();
    if waiting.is_empty() {
        bail!("no scenario has a name like that");
    }
    let mut hosts = Vec::new();
    for number in 1..=HOSTS.min(waiting.len()) {
        let name = format!("test-{}-{number}", arguments.release.to_string().replace('.', "-"));
        hosts.push(lab.host(&name, arguments.release)?.up()?);
    }
    let queue =
        Queue { waiting: Mutex::new(waiting), passed: AtomicUsize::new(0), failed: Mutex::new(Vec::new()) };
    std::thread::scope(|scope| {
        for host in &mut hosts {
            scope.spawn(|| queue.work(host, &arguments.program));
        }
    });
    for host in hosts {
        host.down()?;
    }
    let failed = queue.failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    for name in &failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", queue.passed.into_inner(), failed.len());
    Ok(failed.is_empty())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("lab-tests: {e:?}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}
