//! The program's tests on a real Xen host.
//!
//! Every scenario gets a freshly booted host (a snapshot, restored in seconds) with the program installed, does what
//! an admin would do, and looks at the result with `xl`, xenstore, the guests' consoles and the file system.
//!
//! `lab-tests --program FILE [--xen RELEASE] [FILTER…]`; the last line counts: `N passed, N failed`.
//!
//! `lab-tests --program FILE [--xen RELEASE] --compare GUESTS [--rounds NUMBER] [--without-scripts]` measures instead.

mod bench;
mod configs;
mod crash;
mod devices;
mod faults;
mod guests;
mod lifecycle;
mod memory;
mod migrate;
mod pains;
mod scenarios;
mod speed;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use xtask::lab::{Host, Lab, Machine, Release};

use bench::Bench;
use scenarios::Scenario;
use speed::Comparison;

struct Arguments {
    program: PathBuf,
    release: Release,
    filters: Vec<String>,
    comparison: Option<Comparison>,
}

fn arguments() -> Result<Arguments> {
    let mut program = None;
    let mut release = Release::V4_17;
    let (mut filters, mut guests) = (Vec::new(), None);
    let (mut rounds, mut scripts) = (1, true);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--program" => program = Some(PathBuf::from(value()?)),
            "--xen" => release = value()?.parse().map_err(anyhow::Error::msg)?,
            "--compare" => guests = Some(value()?.parse().context("--compare takes a number of guests")?),
            "--rounds" => rounds = value()?.parse().context("--rounds takes a number")?,
            "--without-scripts" => scripts = false,
            option if option.starts_with('-') => bail!("{option} is not known"),
            _ => filters.push(word),
        }
    }
    let program = program.context("--program FILE is missing: the xendomains to test")?;
    let comparison = guests.map(|guests| Comparison { guests, rounds, scripts });
    Ok(Arguments { program, release, filters, comparison })
}

/// The scenarios of a module, by the name that is printed.
type Scenarios = &'static [(&'static str, Scenario)];

/// Hosts that are alike, and what is done on them.
struct Group {
    /// Processors of each host.
    cpus: u32,
    /// How many hosts a scenario has: the one under test, and others to migrate guests to.
    hosts: usize,
    /// Scenarios at the same time. QEMU emulates each host in one thread.
    at_once: usize,
    /// Only those that are asked for by name.
    by_name: bool,
    /// In the order in which they are begun.
    scenarios: &'static [Scenarios],
}

/// All scenarios, one group after the other.
const ALL: &[Group] = &[
    Group {
        cpus: 2,
        hosts: 1,
        at_once: 2,
        by_name: false,
        scenarios: &[
            configs::ALL,
            crash::ALL,
            scenarios::ALL,
            guests::ALL,
            lifecycle::ALL,
            faults::ALL,
            devices::ALL,
            memory::ALL,
            pains::ALL,
        ],
    },
    Group { cpus: 1, hosts: 3, at_once: 1, by_name: false, scenarios: &[guests::PVH, migrate::ALL] },
    Group { cpus: 1, hosts: 1, at_once: 1, by_name: true, scenarios: &[guests::HVM] },
    Group { cpus: 1, hosts: 3, at_once: 1, by_name: true, scenarios: &[migrate::BY_NAME] },
];

/// Scenarios with their names.
type Named = Vec<&'static (&'static str, Scenario)>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of the scenarios.
#[derive(Default)]
struct Outcomes {
    passed: AtomicUsize,
    failed: Mutex<Vec<&'static str>>,
}

impl Outcomes {
    /// Does these scenarios on hosts of their own.
    fn group(&self, lab: &Lab, group: &Group, waiting: Named, arguments: &Arguments) -> Result<()> {
        let waiting = Mutex::new(waiting);
        std::thread::scope(|scope| {
            let on_hosts = |numbers: Range<usize>| -> Result<()> {
                let release = arguments.release;
                let machine = Machine { cpus: group.cpus, ..Machine::default() };
                let name = |number| format!("test-4-{}-{}-{number}", release.minor(), group.cpus);
                let mut hosts = numbers
                    .map(|number| lab.host(&name(number), release)?.machine(machine).up())
                    .collect::<Result<Vec<_>>>()?;
                self.work(&waiting, &mut hosts, &arguments.program);
                hosts.into_iter().try_for_each(Host::down)
            };
            let at_most = group.at_once.min(lock(&waiting).len());
            let at_work: Vec<_> = (0..at_most)
                .map(|place| place * group.hosts + 1..(place + 1) * group.hosts + 1)
                .map(|numbers| scope.spawn(move || on_hosts(numbers)))
                .collect();
            at_work.into_iter().try_for_each(|work| work.join().map_err(|_| anyhow!("a thread has panicked"))?)
        })
    }

    /// Does scenarios on these hosts until none is left.
    fn work(&self, waiting: &Mutex<Named>, hosts: &mut [Host], program: &Path) {
        loop {
            // The guard is gone before the scenario begins.
            let next = lock(waiting).pop();
            let Some((name, scenario)) = next else { return };
            let started = Instant::now();
            let outcome = attempts(name, hosts, program, scenario);
            let seconds = started.elapsed().as_secs_f32();
            match outcome {
                Ok(()) => {
                    self.passed.fetch_add(1, Ordering::Relaxed);
                    println!("test {name} ... ok ({seconds:.1} s)");
                }
                Err(error) => {
                    println!("test {name} ... FAILED ({seconds:.1} s)\n{error:?}");
                    lock(&self.failed).push(name);
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

/// Does something on fresh hosts, and again after a fault of the emulator.
pub fn attempts<T>(
    what: &str,
    hosts: &mut [Host],
    program: &Path,
    work: impl Fn(&Bench<'_>) -> Result<T>,
) -> Result<T> {
    for again in 1.. {
        match attempt(hosts, program, &work) {
            Err(Failure { emulator: Some(fault), .. }) if again < ATTEMPTS => {
                println!("test {what}: {fault}, which the emulator brings about; again ({again})");
            }
            outcome => return outcome.map_err(|failure| failure.error),
        }
    }
    bail!("{what} was not tried")
}

fn attempt<T>(hosts: &mut [Host], program: &Path, work: impl Fn(&Bench<'_>) -> Result<T>) -> Result<T, Failure> {
    let unusable = |error| Failure { error, emulator: None };
    hosts.iter_mut().try_for_each(Host::reset).map_err(unusable)?;
    let bench = Bench::install(hosts, program).map_err(unusable)?;
    work(&bench).map_err(|error| {
        let emulator = bench.emulator_fault().unwrap_or_default();
        Failure { error: error.context(bench.transcript()), emulator }
    })
}

fn run() -> Result<bool> {
    let arguments = arguments()?;
    let workspace = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let lab = Lab::open(&workspace)?;
    if let Some(comparison) = &arguments.comparison {
        let mut hosts = [lab.host("compare", arguments.release)?.up()?];
        speed::compare(&mut hosts, &arguments.program, comparison)?;
        return hosts.into_iter().try_for_each(Host::down).map(|()| true);
    }
    let wanted =
        |name: &str| arguments.filters.is_empty() || arguments.filters.iter().any(|f| name.contains(f.as_str()));
    let outcomes = Outcomes::default();
    let mut found = false;
    for group in ALL {
        if group.by_name && arguments.filters.is_empty() {
            continue;
        }
        let waiting: Named =
            group.scenarios.iter().copied().flatten().rev().filter(|(name, _)| wanted(name)).collect();
        if !waiting.is_empty() {
            found = true;
            outcomes.group(&lab, group, waiting, &arguments)?;
        }
    }
    if !found {
        bail!("no scenario has a name like that");
    }
    let failed = outcomes.failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    for name in &failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", outcomes.passed.into_inner(), failed.len());
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
