//! The program's tests on a real Xen host.
//!
//! Every scenario gets a freshly booted host (a snapshot, restored in seconds) with the program installed, does what
//! an admin would do, and looks at the result with `xl`, xenstore, the guests' consoles and the file system.
//!
//! `lab-tests --program FILE [--xen RELEASE] [--toolstack xl] [FILTER…]`; the last line counts: `N passed, N failed`.
//!
//! `lab-tests --program FILE [--xen RELEASE] --compare GUESTS,… [--rounds NUMBER] [--without-scripts]` measures instead.

mod bench;
mod configs;
mod crash;
mod devices;
mod faults;
mod guests;
mod host;
mod large;
mod lifecycle;
mod memory;
mod migrate;
mod monitor;
mod pains;
mod scenarios;
mod speed;
mod toolstack;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use xtask::lab::{Host, Lab, Machine, Release, Threads};

use bench::Bench;
use scenarios::Scenario;
use speed::Comparison;

pub struct Arguments {
    program: PathBuf,
    release: Release,
    /// What the program is told to work with.
    toolstack: Option<String>,
    filters: Vec<String>,
    comparison: Option<Comparison>,
}

fn arguments() -> Result<Arguments> {
    let mut program = None;
    let mut release = Release::V4_17;
    let mut toolstack = None;
    let (mut filters, mut guests) = (Vec::new(), None);
    let (mut rounds, mut scripts) = (1, true);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--program" => program = Some(PathBuf::from(value()?)),
            "--toolstack" => toolstack = Some(value()?),
            "--xen" => release = value()?.parse().map_err(anyhow::Error::msg)?,
            "--compare" => {
                let numbers = value()?.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>();
                guests = Some(numbers.context("--compare takes numbers of guests, as in 1,8")?);
            }
            "--rounds" => rounds = value()?.parse().context("--rounds takes a number")?,
            "--without-scripts" => scripts = false,
            option if option.starts_with('-') => bail!("{option} is not known"),
            _ => filters.push(word),
        }
    }
    let program = program.context("--program FILE is missing: the xendomains to test")?;
    let comparison = guests.map(|guests| Comparison { guests, rounds, scripts });
    Ok(Arguments { program, release, toolstack, filters, comparison })
}

/// The scenarios of a module, by the name that is printed.
type Scenarios = &'static [(&'static str, Scenario)];

/// Hosts that are alike, and what is done on them.
struct Group {
    machine: Machine,
    /// How many hosts a scenario has: the one under test, and others to migrate guests to.
    hosts: usize,
    /// How many of its scenarios may be done at the same time.
    at_once: usize,
    /// Only those that are asked for by name.
    by_name: bool,
    /// In the order in which they are begun.
    scenarios: &'static [Scenarios],
}

/// Scenarios at the same time. QEMU emulates each host in one thread.
const AT_ONCE: usize = 2;

/// The most hosts that a scenario has.
const MOST_HOSTS: usize = 3;

/// A host with one processor: PVH and HVM guests die on more now and then.
const ONE: Machine = Machine { cpus: 1, memory: 4096, dom0_memory: 1024, threads: Threads::One };

/// A host for PV guests.
const TWO: Machine = Machine { cpus: 2, ..ONE };

/// A host for a PV guest of 4 GiB beside others.
const LARGE: Machine = Machine { memory: 8192, threads: Threads::Each, ..TWO };

/// All scenarios, the last group first.
const ALL: &[Group] = &[
    Group {
        machine: TWO,
        hosts: 1,
        at_once: 2,
        by_name: false,
        scenarios: &[
            host::ALL,
            configs::ALL,
            crash::ALL,
            scenarios::ALL,
            guests::ALL,
            lifecycle::ALL,
            faults::ALL,
            devices::ALL,
            memory::ALL,
            monitor::ALL,
            pains::ALL,
            toolstack::ALL,
        ],
    },
    Group { machine: ONE, hosts: 3, at_once: 1, by_name: false, scenarios: &[guests::PVH, migrate::ALL] },
    Group { machine: ONE, hosts: 1, at_once: 1, by_name: true, scenarios: &[guests::HVM] },
    Group { machine: ONE, hosts: 3, at_once: 1, by_name: true, scenarios: &[migrate::BY_NAME] },
    Group {
        machine: TWO,
        hosts: 1,
        at_once: 2,
        by_name: true,
        scenarios: &[crash::BY_NAME, host::BY_NAME, monitor::BY_NAME],
    },
    Group { machine: LARGE, hosts: 1, at_once: 1, by_name: true, scenarios: &[large::BY_NAME] },
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
    /// Does what is left of these scenarios on hosts of its own, whose names begin with this number.
    fn on_hosts(
        &self,
        lab: &Lab,
        group: &Group,
        waiting: &Mutex<Named>,
        first: usize,
        arguments: &Arguments,
    ) -> Result<()> {
        if lock(waiting).is_empty() {
            return Ok(());
        }
        let release = arguments.release;
        let Machine { cpus, memory, .. } = group.machine;
        let name = |number| format!("test-4-{}-{cpus}-{memory}-{number}", release.minor());
        let mut hosts = (first..first + group.hosts)
            .map(|number| lab.host(&name(number), release)?.machine(group.machine).up())
            .collect::<Result<Vec<_>>>()?;
        self.work(waiting, &mut hosts, arguments);
        hosts.into_iter().try_for_each(Host::down)
    }

    /// Does scenarios on these hosts until none is left.
    fn work(&self, waiting: &Mutex<Named>, hosts: &mut [Host], arguments: &Arguments) {
        loop {
            // The guard is gone before the scenario begins.
            let next = lock(waiting).pop();
            let Some((name, scenario)) = next else { return };
            let started = Instant::now();
            let outcome = attempts(name, hosts, arguments, scenario);
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
    arguments: &Arguments,
    work: impl Fn(&Bench<'_>) -> Result<T>,
) -> Result<T> {
    for again in 1.. {
        match attempt(hosts, arguments, &work) {
            Err(Failure { emulator: Some(fault), .. }) if again < ATTEMPTS => {
                println!("test {what}: {fault}, which the emulator brings about; again ({again})");
            }
            outcome => return outcome.map_err(|failure| failure.error),
        }
    }
    bail!("{what} was not tried")
}

fn attempt<T>(
    hosts: &mut [Host],
    arguments: &Arguments,
    work: impl Fn(&Bench<'_>) -> Result<T>,
) -> Result<T, Failure> {
    let unusable = |error| Failure { error, emulator: None };
    hosts.iter_mut().try_for_each(Host::reset).map_err(unusable)?;
    let bench = Bench::install(hosts, &arguments.program).map_err(unusable)?;
    if let Some(toolstack) = &arguments.toolstack {
        bench.use_toolstack(toolstack).map_err(unusable)?;
    }
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
        let machine = comparison.machine();
        let mut hosts = [lab.host("compare", arguments.release)?.machine(machine).up()?];
        speed::compare(&mut hosts, &arguments, comparison)?;
        return hosts.into_iter().try_for_each(Host::down).map(|()| true);
    }
    let not_over_xl = |name: &str| toolstack::NOT_OVER_XL.iter().any(|(_, names)| names.contains(&name));
    let over = |name: &str| arguments.toolstack.is_none() || !not_over_xl(name);
    let wanted =
        |name: &str| arguments.filters.is_empty() || arguments.filters.iter().any(|f| name.contains(f.as_str()));
    let outcomes = Outcomes::default();
    let chosen: Vec<(&Group, Mutex<Named>)> = ALL
        .iter()
        .filter(|group| !group.by_name || !arguments.filters.is_empty())
        .map(|group| {
            let scenarios = group.scenarios.iter().copied().flatten().rev();
            (group, Mutex::new(scenarios.filter(|(name, _)| wanted(name) && over(name)).collect()))
        })
        .collect();
    // Those of several hosts are begun first, and last longest.
    let crews: Vec<_> = chosen
        .iter()
        .flat_map(|work| std::iter::repeat_n(work, work.0.at_once.min(lock(&work.1).len())))
        .collect();
    if crews.is_empty() {
        bail!("no scenario has a name like that");
    }
    let crews = Mutex::new(crews);
    std::thread::scope(|scope| {
        let on_hosts = |place: usize| -> Result<()> {
            loop {
                // The guard is gone before they begin.
                let next = lock(&crews).pop();
                let Some((group, waiting)) = next else { return Ok(()) };
                outcomes.on_hosts(&lab, group, waiting, place * MOST_HOSTS + 1, &arguments)?;
            }
        };
        let at_work: Vec<_> = (0..AT_ONCE).map(|place| scope.spawn(move || on_hosts(place))).collect();
        at_work.into_iter().try_for_each(|work| work.join().map_err(|_| anyhow!("a thread has panicked"))?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scenarios_that_there_are_are_left_out() {
        let all: Vec<&str> =
            ALL.iter().flat_map(|group| group.scenarios).copied().flatten().map(|(name, _)| *name).collect();
        for (why, names) in toolstack::NOT_OVER_XL {
            let unknown: Vec<_> = names.iter().filter(|name| !all.contains(name)).collect();
            assert!(unknown.is_empty(), "{why}: {unknown:?}");
        }
    }
}
