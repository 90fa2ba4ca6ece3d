//! What the same work takes on the same host: by upstream's script, by Debian's, by this program, and by libxl's calls
//! alone, which nothing that uses libxl can be faster than.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use xtask::lab::{Host, Machine, Threads, quote};

use crate::bench::{Bench, Kind, PROGRAM, xl_cfg};
use crate::scenarios::SAVE;
use crate::{Arguments, attempts};

/// What is compared.
pub struct Comparison {
    /// Numbers of guests, each measured on its own.
    pub guests: Vec<usize>,
    /// How often each does everything.
    pub rounds: usize,
    /// With the scripts, which are slow.
    pub scripts: bool,
}

/// The memory of a guest, MiB, and what Xen needs for it besides.
const MEMORY: u32 = 128;
const OVERHEAD: u32 = 12;

/// From so many guests on they are as small as their kernel lets them be and count only now and then, or else their counting
/// would leave dom0 next to nothing of an emulated machine; and nobody but the program is measured, for the scripts take an
/// hour.
const MANY: usize = 33;
const SMALL: u32 = 96;
const SELDOM: &str = "pause=20";

/// How often is looked at what takes next to no time.
const LOOKS: usize = 5;

impl Comparison {
    /// A host with room for all of them, whose processors work side by side: that dom0 does several things at once is what
    /// is measured.
    pub fn machine(&self) -> Machine {
        let most = self.guests.iter().copied().max().unwrap_or_default();
        let usual = Machine::default();
        let guests = u32::try_from(most).unwrap_or(u32::MAX).saturating_mul(memory(most) + OVERHEAD);
        let needed = usual.dom0_memory.saturating_add(guests).saturating_add(512);
        Machine { memory: usual.memory.max(needed), threads: Threads::Each, ..usual }
    }
}

fn memory(guests: usize) -> u32 {
    if guests < MANY { MEMORY } else { SMALL }
}

/// The helper of the measurements in dom0; see its source.
const HELPER: &str = "/usr/local/bin/lab-dom0";

/// The guests' configurations as libxl's JSON, for libxl's calls alone, and where these save guests to.
const CONFIGURATIONS: &str = "/root/configurations";
const IMAGES: &str = "/var/lib/xen/images-of-libxl-alone";

/// What the program does at once if nothing is set and dom0 has two processors.
const CREATE_JOBS: u32 = 4;
const RESTORE_JOBS: u32 = 8;
const SAVE_JOBS: u32 = 2;

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worker {
    Upstream,
    Debian,
    Ours,
    /// libxl's calls and nothing else, as many at the same time as the program makes.
    Libxl,
}

impl Worker {
    fn name(self) -> &'static str {
        match self {
            Worker::Upstream => "upstream's script",
            Worker::Debian => "Debian's script",
            Worker::Ours => "xendomains",
            Worker::Libxl => "libxl's calls alone",
        }
    }

    /// The command that does this in dom0.
    fn command(self, work: Work, names: &[String]) -> String {
        let xendomains = |program: &str| {
            let word = match work {
                Work::Create | Work::Restore => "start",
                Work::Status => "status",
                Work::Save | Work::ShutDown => "stop",
            };
            format!("exec {program} {word}")
        };
        match self {
            Worker::Upstream => xendomains("/usr/lib/xen-*/bin/xendomains"),
            // Otherwise Debian's script hands the work over to systemd.
            Worker::Debian => xendomains("env SYSTEMCTL_SKIP_REDIRECT=1 /etc/init.d/xendomains"),
            Worker::Ours => xendomains(PROGRAM),
            Worker::Libxl => {
                let all = names.join(" ");
                match work {
                    Work::Create => {
                        let files: Vec<_> =
                            names.iter().map(|name| format!("{CONFIGURATIONS}/{name}.json")).collect();
                        format!("exec {HELPER} create {CREATE_JOBS} {}", files.join(" "))
                    }
                    Work::Status => format!("exec {HELPER} list"),
                    Work::Save => format!("exec {HELPER} save {SAVE_JOBS} {IMAGES} {all}"),
                    Work::Restore => format!("exec {HELPER} restore {RESTORE_JOBS} {IMAGES} {all}"),
                    Work::ShutDown => format!("exec {HELPER} shutdown {all}"),
                }
            }
        }
    }

    fn can(self, work: Work) -> bool {
        (self, work) != (Worker::Debian, Work::Status)
    }

    /// The processes that watch the guests which it has started.
    fn watchers(self) -> Option<&'static str> {
        match self {
            Worker::Upstream | Worker::Debian => Some("xl"),
            Worker::Ours => Some("xendomains"),
            Worker::Libxl => None,
        }
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Create,
    Status,
    Save,
    Restore,
    ShutDown,
}

impl Work {
    /// In an order in which each finds what it needs.
    const ALL: [Work; 5] = [Work::Create, Work::Status, Work::Save, Work::Restore, Work::ShutDown];

    fn name(self) -> &'static str {
        match self {
            Work::Create => "start, creating",
            Work::Status => "status",
            Work::Save => "stop, saving",
            Work::Restore => "start, restoring",
            Work::ShutDown => "stop, shutting down",
        }
    }
}

/// What `lab-dom0 measure` tells.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Cost {
    code: Option<i32>,
    /// By the clock.
    seconds: f64,
    /// Processes and threads.
    started: u64,
    /// Time that dom0's processors worked, s.
    cpu: f64,
    /// Of the largest process.
    peak_kib: u64,
}

/// What was measured in one round.
#[derive(Default)]
struct Round {
    costs: BTreeMap<(Work, Worker), Cost>,
    /// All processes that watch guests, KiB.
    resident: BTreeMap<Worker, f64>,
    /// Bytes like those of the images written and synced, as many at a time as images are: s.
    written: Option<f64>,
    /// A stop by shutdown, and the slowest guest of it: s.
    slowest: Option<(f64, f64)>,
    /// What could not do it, and why.
    failed: Vec<String>,
}

/// The settings of all three, so that they do the same work.
fn settings(save: &str) -> String {
    format!(
        "XENDOMAINS_SYSRQ=\"\"\nXENDOMAINS_USLEEP=100000\nXENDOMAINS_CREATE_USLEEP=0\nXENDOMAINS_MIGRATE=\"\"\n\
         XENDOMAINS_SAVE=\"{save}\"\nXENDOMAINS_SHUTDOWN=\"--wait\"\nXENDOMAINS_SHUTDOWN_ALL=\"--all --wait\"\n\
         XENDOMAINS_RESTORE=true\nXENDOMAINS_AUTO=/etc/xen/auto\nXENDOMAINS_AUTO_ONLY=false\n\
         XENDOMAINS_STOP_MAXWAIT=600\n"
    )
}

/// Runs a command in dom0 that must succeed.
fn measure(bench: &Bench<'_>, command: &str) -> Result<Cost> {
    let told = bench.ok(&format!("{HELPER} measure {}", quote(command)))?;
    let cost: Cost = serde_json::from_str(&told).with_context(|| format!("the helper says {told:?}"))?;
    if cost.code != Some(0) {
        bail!("it failed and said:\n{}", bench.read("/tmp/said")?);
    }
    Ok(cost)
}

/// The same command several times: the run that took the median of the times.
fn measure_often(bench: &Bench<'_>, command: &str) -> Result<Cost> {
    let mut costs = (0..LOOKS).map(|_| measure(bench, command)).collect::<Result<Vec<_>>>()?;
    costs.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
    Ok(costs[LOOKS / 2])
}

/// What a command that tells seconds says.
fn seconds(bench: &Bench<'_>, command: &str) -> Result<f64> {
    let told = bench.ok(command)?;
    told.trim().parse().with_context(|| format!("`{command}` says {told:?}"))
}

/// How long a stop by shutdown and the slowest guest of it took, as the program says: `NAME: shut down (2.1 s)` and, in
/// the end, `stop: 2 shut down (2.3 s)`.
fn shutdown_times(bench: &Bench<'_>) -> Result<(f64, f64)> {
    let said = bench.read("/tmp/said")?;
    let time = |line: &str| line.rsplit_once('(')?.1.strip_suffix(" s)")?.parse::<f64>().ok();
    let (all, guests): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.starts_with("stop: "));
    let whole = all.into_iter().find_map(time);
    let slowest = guests.into_iter().filter_map(time).max_by(f64::total_cmp);
    whole.zip(slowest).with_context(|| format!("no times in:\n{said}"))
}

/// Nothing is left of whoever worked before.
fn clean_up(bench: &Bench<'_>) -> Result<()> {
    bench.ok(&format!(
        "pkill -x xendomains; xl list | awk 'NR > 2 {{ print $1 }}' | xargs -r -n 1 -P 8 xl destroy; \
         rm -rf {SAVE} {IMAGES} /var/lock/xendomains /var/lock/subsys/xendomains; \
         mkdir -m 700 {SAVE} {IMAGES}; rm -f /var/log/xen/console/*.log; sync"
    ))?;
    bench.expect_guests(&[])
}

/// Each guest counts on, so that all are at rest before the next work begins.
fn wait_until_at_rest(bench: &Bench<'_>, names: &[String], before: &[u64]) -> Result<()> {
    names.iter().zip(before).try_for_each(|(name, before)| bench.wait_for_tick(name, before + 2))
}

fn ticks(bench: &Bench<'_>, names: &[String]) -> Vec<u64> {
    // One that has not run yet has no count.
    names.iter().map(|name| bench.ticks(name).unwrap_or_default()).collect()
}

/// One worker does everything once.
fn cycle(bench: &Bench<'_>, worker: Worker, names: &[String], round: &mut Round) -> Result<()> {
    let expected: Vec<&str> = names.iter().map(String::as_str).collect();
    clean_up(bench)?;
    for work in Work::ALL.into_iter().filter(|work| worker.can(*work)) {
        bench.write("/etc/default/xendomains", &settings(if work == Work::ShutDown { "" } else { SAVE }))?;
        if matches!(work, Work::Save | Work::ShutDown) && matches!(worker, Worker::Upstream) {
            // A stop without it does nothing.
            bench.ok("touch /var/lock/xendomains")?;
        }
        let before = ticks(bench, names);
        let command = worker.command(work, names);
        let is_short = work == Work::Status && matches!(worker, Worker::Ours | Worker::Libxl);
        let cost = if is_short { measure_often(bench, &command) } else { measure(bench, &command) };
        let cost = cost.with_context(|| work.name())?;
        round.costs.insert((work, worker), cost);
        let saved = if worker == Worker::Libxl { IMAGES } else { SAVE };
        match work {
            Work::Create | Work::Restore => {
                bench.expect_guests(&expected)?;
                wait_until_at_rest(bench, names, &before)?;
                if let (Work::Create, Some(program)) = (work, worker.watchers()) {
                    round.resident.insert(worker, seconds(bench, &format!("{HELPER} resident {program}"))?);
                }
                // A start with this lock does nothing.
                bench.ok(&format!("rm -f {saved}/* /var/lock/xendomains && sync"))?;
            }
            Work::Save => {
                bench.expect_guests(&[])?;
                let images = bench.files(saved)?;
                let images = images.iter().filter(|name| !name.ends_with(".json")).count();
                ensure!(images == names.len(), "{images} guests have an image");
                bench.ok("rm -f /var/lock/xendomains")?;
            }
            Work::ShutDown => {
                bench.expect_guests(&[])?;
                if worker == Worker::Ours {
                    round.slowest = Some(shutdown_times(bench)?);
                }
            }
            Work::Status => {}
        }
    }
    if worker == Worker::Libxl {
        let megabytes = memory(names.len());
        let write = format!(
            "printf '%s\\n' {} | xargs -P {SAVE_JOBS} -I @ dd if=/dev/zero of={IMAGES}/@ bs=1M count={megabytes} \
             conv=fsync status=none",
            names.join(" ")
        );
        round.written = Some(measure(bench, &write).context("write as many bytes")?.seconds);
        bench.ok(&format!("rm -f {IMAGES}/*"))?;
    }
    Ok(())
}

/// All workers do everything once, one after the other, on the same host.
fn round(bench: &Bench<'_>, workers: &[Worker], guests: usize) -> Result<Round> {
    let mut round = Round::default();
    let names: Vec<String> = (1..=guests).map(|number| format!("guest{number}")).collect();
    prepare(bench, &names)?;
    for &worker in workers {
        let done = cycle(bench, worker, &names, &mut round);
        match done.with_context(|| worker.name()) {
            // A script that can't do it can be compared in what it has done.
            Err(error)
                if matches!(worker, Worker::Upstream | Worker::Debian) && bench.emulator_fault()?.is_none() =>
            {
                round.failed.push(format!("{error:#}"));
            }
            done => done?,
        }
    }
    Ok(round)
}

/// Puts the helper and the guests' files there.
fn prepare(bench: &Bench<'_>, names: &[String]) -> Result<()> {
    let helper = std::env::current_exe().context("where this program is")?.with_file_name("lab-dom0");
    bench.push(&helper, HELPER)?;
    bench.ok(&format!("chmod 755 {HELPER} && mkdir -p {CONFIGURATIONS}"))?;
    for name in names {
        let file = format!("/etc/xen/auto/{name}");
        let mut text =
            xl_cfg(name, Kind::Pv, "").replace("memory = 128", &format!("memory = {}", memory(names.len())));
        if names.len() >= MANY {
            text = text.replace(&format!("guest={name}"), &format!("guest={name} {SELDOM}"));
        }
        bench.write(&file, &text)?;
        bench.ok(&format!("{PROGRAM} config {file} > {CONFIGURATIONS}/{name}.json"))?;
    }
    Ok(())
}

/// Until something has been seen to, with the program's monitor and with xl's process for each guest: what, by whom, s.
fn reactions(bench: &Bench<'_>) -> Result<Vec<(&'static str, &'static str, f64)>> {
    let names = ["guest1".to_owned(), "guest2".to_owned()];
    prepare(bench, &names)?;
    let mut seen = Vec::new();
    for (worker, who) in [(Worker::Ours, "xendomains"), (Worker::Upstream, "xl")] {
        clean_up(bench)?;
        bench.write("/etc/default/xendomains", &settings(SAVE))?;
        measure(bench, &worker.command(Work::Create, &names))?;
        wait_until_at_rest(bench, &names, &[0, 0])?;
        let mut react = |what, command: &str| -> Result<()> {
            seen.push((what, who, seconds(bench, &format!("{HELPER} {command}"))?));
            Ok(())
        };
        react("a guest has powered off: its domain is gone", "power-off guest1")?;
        react("a guest has rebooted: its kernel's first line", "reboot guest2")?;
        if worker == Worker::Ours {
            bench.wait_for(&xtask::lab::console_log("guest2"), |line| line.contains("guest2 tick 2"))?;
            let command = format!("abort {SAVE} '{PROGRAM} stop'");
            react("a save is broken off: the guest runs on", &command)?;
            ensure!(bench.files(SAVE)?.is_empty(), "part of an image is left");
            let before = bench.ticks("guest2")?;
            bench.wait_for_tick("guest2", before + 2)?;
        }
    }
    Ok(seen)
}

/// The median, and the range if there is one: `2.0 (1.9–2.4)`.
fn summary(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let digits = |value: f64| match value {
        value if value < 10.0 => format!("{value:.2}"),
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    };
    match values[..] {
        [] => "–".to_owned(),
        [value] => digits(value),
        [least, .., most] => {
            let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
            format!("{} ({}–{})", digits(median), digits(least), digits(most))
        }
    }
}

/// The tables of one number of guests.
fn report(guests: usize, workers: &[Worker], rounds: &[Round]) -> Result<String> {
    let mut text = String::new();
    let of = |work, worker| rounds.iter().filter_map(move |round| round.costs.get(&(work, worker)));
    let ratios = |work, one: Worker, other: Worker| {
        summary(rounds.iter().filter_map(|round| {
            Some(round.costs.get(&(work, one))?.seconds / round.costs.get(&(work, other))?.seconds)
        }))
    };
    let scripts: Vec<Worker> = workers.iter().copied().filter(|worker| *worker < Worker::Ours).collect();
    let count = rounds.len();
    writeln!(text, "\n{guests} guests of {} MiB, {count} rounds: seconds, median (range)\n", memory(guests))?;
    let mut head = vec![String::new()];
    head.extend(workers.iter().map(|worker| worker.name().to_owned()));
    head.extend(scripts.iter().map(|script| format!("{} : ours", script.name())));
    head.push("ours : libxl alone".to_owned());
    writeln!(text, "| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()))?;
    for work in Work::ALL {
        let mut row = vec![work.name().to_owned()];
        row.extend(workers.iter().map(|&worker| summary(of(work, worker).map(|cost| cost.seconds))));
        row.extend(scripts.iter().map(|&script| ratios(work, script, Worker::Ours)));
        row.push(ratios(work, Worker::Ours, Worker::Libxl));
        writeln!(text, "| {} |", row.join(" | "))?;
    }
    writeln!(text, "\nprocesses and threads started / dom0's CPU time, s / the largest process, MiB\n")?;
    head.truncate(1 + workers.len());
    writeln!(text, "| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()))?;
    for work in Work::ALL {
        let mut row = vec![work.name().to_owned()];
        row.extend(workers.iter().map(|&worker| {
            let started = of(work, worker).map(|cost| cost.started).max().unwrap_or_default();
            let cpu = summary(of(work, worker).map(|cost| cost.cpu));
            let peak = of(work, worker).map(|cost| cost.peak_kib).max().unwrap_or_default() / 1024;
            format!("{started} / {cpu} / {peak}")
        }));
        writeln!(text, "| {} |", row.join(" | "))?;
    }
    writeln!(text)?;
    for worker in workers.iter().filter(|worker| worker.watchers().is_some()) {
        let resident = summary(rounds.iter().filter_map(|round| round.resident.get(worker).copied()));
        writeln!(text, "memory (PSS) of the processes that watch the guests, {}: {resident} KiB", worker.name())?;
    }
    let slowest = summary(rounds.iter().filter_map(|round| round.slowest).map(|(whole, slowest)| whole / slowest));
    writeln!(text, "stop by shutting down, in times its slowest guest's shutdown: {slowest}")?;
    let written = summary(rounds.iter().filter_map(|round| round.written));
    writeln!(
        text,
        "as many bytes as the images have, written and synced by dd, {SAVE_JOBS} at a time: {written} s"
    )?;
    rounds.iter().flat_map(|round| &round.failed).try_for_each(|why| writeln!(text, "not done: {why}"))?;
    Ok(text)
}

/// Has all of them do the same, in turn, and prints what it took.
pub fn compare(hosts: &mut [Host], arguments: &Arguments, comparison: &Comparison) -> Result<()> {
    for &guests in &comparison.guests {
        let workers = match guests {
            MANY.. => vec![Worker::Ours],
            _ if comparison.scripts => vec![Worker::Upstream, Worker::Debian, Worker::Ours, Worker::Libxl],
            _ => vec![Worker::Ours, Worker::Libxl],
        };
        let mut rounds = Vec::new();
        for number in 1..=comparison.rounds {
            println!("{guests} guests, round {number} of {}", comparison.rounds);
            // Each begins once.
            let mut workers = workers.clone();
            let first = (number - 1) % workers.len();
            workers.rotate_left(first);
            rounds.push(attempts("the comparison", hosts, arguments, |bench| round(bench, &workers, guests))?);
        }
        print!("{}", report(guests, &workers, &rounds)?);
    }
    let mut seen: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for _ in 0..comparison.rounds {
        for (what, who, seconds) in attempts("the reactions", hosts, arguments, reactions)? {
            seen.entry((what, who)).or_default().push(seconds);
        }
    }
    println!("\n| until it has been seen to | by | seconds |\n|---|---|---|");
    for ((what, who), values) in seen {
        println!("| {what} | {who} | {} |", summary(values.into_iter()));
    }
    Ok(())
}
