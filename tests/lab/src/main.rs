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
mod pains;
mod scenarios;
mod speed;

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
    /// Hosts at work at the same time. QEMU emulates each in one thread.
    hosts: usize,
    /// Only those that are asked for by name.
    by_name: bool,
    /// In the order in which they are begun.
    scenarios: &'static [Scenarios],
}

/// All scenarios.
const ALL: &[Group] = &[
    Group {
        cpus: 2,
        hosts: 2,
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
    Group { cpus: 1, hosts: 1, by_name: false, scenarios: &[guests::PVH] },
    Group { cpus: 1, hosts: 1, by_name: true, scenarios: &[guests::HVM] },
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
            let on_a_host = |number: usize| -> Result<()> {
                let release = arguments.release;
                let name = format!("test-{}-{}-{number}", release.to_string().replace('.', "-"), group.cpus);
                let machine = Machine { cpus: group.cpus, ..Machine::default() };
                let mut host = lab.host(&name, release)?.machine(machine).up()?;
                self.work(&waiting, &mut host, &arguments.program);
                host.down()
            };
            let at_most = group.hosts.min(lock(&waiting).len());
            let hosts: Vec<_> = (1..=at_most).map(|number| scope.spawn(move || on_a_host(number))).collect();
            hosts.into_iter().try_for_each(|host| host.join().map_err(|_| anyhow!("a thread has panicked"))?)
        })
    }

    /// Does scenarios on this host until none is left.
    fn work(&self, waiting: &Mutex<Named>, host: &mut Host, program: &Path) {
        loop {
            // The guard is gone before the scenario begins.
            let next = lock(waiting).pop();
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
    if let Some(comparison) = &arguments.comparison {
        let mut host = lab.host("compare", arguments.release)?.up()?;
        let bench = Bench::install(&mut host, &arguments.program)?;
        speed::compare(&bench, comparison).map_err(|error| error.context(bench.transcript()))?;
        return host.down().map(|()| true);
    }
    let wanted =
        |name: &str| arguments.filters.is_empty() || arguments.filters.iter().any(|f| name.contains(f.as_str()));
    let outcomes = Outcomes::default();
    let mut groups = Vec::new();
    for group in ALL {
        if group.by_name && arguments.filters.is_empty() {
            continue;
        }
        let waiting: Named =
            group.scenarios.iter().copied().flatten().rev().filter(|(name, _)| wanted(name)).collect();
        if !waiting.is_empty() {
            groups.push((group, waiting));
        }
    }
    if groups.is_empty() {
        bail!("no scenario has a name like that");
    }
    std::thread::scope(|scope| {
        let at_work: Vec<_> = groups
            .into_iter()
            .map(|(group, waiting)| scope.spawn(|| outcomes.group(&lab, group, waiting, &arguments)))
            .collect();
        at_work.into_iter().try_for_each(|group| group.join().map_err(|_| anyhow!("a thread has panicked"))?)
    })?;
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
