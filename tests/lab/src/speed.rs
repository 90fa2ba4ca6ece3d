//! The time that the same work takes on the same host: by upstream's script, by Debian's, by this program, and by hand
//! with `xl`, so many commands at a time.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use xtask::lab::{Host, quote};

use crate::bench::{Bench, Kind, PROGRAM, xl_cfg};
use crate::scenarios::SAVE;
use crate::{Arguments, attempts};

/// What is compared.
pub struct Comparison {
    /// Guests at work at the same time.
    pub guests: usize,
    /// How often each does everything.
    pub rounds: usize,
    /// With the scripts, which are slow.
    pub scripts: bool,
}

/// Who does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Worker {
    Upstream,
    Debian,
    Ours,
    /// `xl`, so many at a time.
    ByHand(usize),
}

/// So many `xl` at a time.
const AT_A_TIME: [usize; 4] = [1, 2, 4, 8];

impl Worker {
    fn name(self) -> String {
        match self {
            Worker::Upstream => "upstream's script".to_owned(),
            Worker::Debian => "Debian's script".to_owned(),
            Worker::Ours => "xendomains".to_owned(),
            Worker::ByHand(jobs) => format!("xl by hand, {jobs} at a time"),
        }
    }

    /// The command that does this in dom0.
    fn command(self, work: Work) -> String {
        let xendomains = |program: &str| {
            let word = match work {
                Work::Create | Work::Restore => "start",
                Work::Status => "status",
                Work::Save | Work::ShutDown => "stop",
            };
            format!("{program} {word}")
        };
        match self {
            Worker::Upstream => xendomains("/usr/lib/xen-*/bin/xendomains"),
            // Otherwise Debian's script hands the work over to systemd.
            Worker::Debian => xendomains("SYSTEMCTL_SKIP_REDIRECT=1 /etc/init.d/xendomains"),
            Worker::Ours => xendomains(PROGRAM),
            Worker::ByHand(jobs) => {
                let each = |list: &str, xl: &str| format!("{list} | xargs -P {jobs} -I @ {xl}");
                let names = "xl list | awk 'NR > 2 { print $1 }'";
                match work {
                    Work::Create => each("ls /etc/xen/auto/*", "xl create -q @"),
                    Work::Status => "xl list".to_owned(),
                    Work::Save => each(names, &format!("xl save @ {SAVE}/@")),
                    Work::Restore => each(&format!("ls {SAVE}"), &format!("xl restore {SAVE}/@")),
                    Work::ShutDown => each(names, "xl shutdown -w @"),
                }
            }
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
}

/// The time and the processes that something took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    seconds: f64,
    processes: u64,
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

fn names(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("guest{number}")).collect()
}

/// Runs a command and reads the clock and the kernel's count of processes in dom0 around it.
fn measure(bench: &Bench<'_>, command: &str) -> Result<Cost> {
    let state = "echo ${EPOCHREALTIME/,/.} $(awk '$1 == \"processes\" { print $2 }' /proc/stat)";
    let script = format!("{state}; {{ {command}; }} >/tmp/said 2>&1; code=$?; {state}; exit $code");
    let output = bench.run(&format!("bash -c {}", quote(&script)))?;
    if !output.success() {
        bail!("it failed and said:\n{}", bench.ok("cat /tmp/said")?);
    }
    let output = output.stdout;
    let numbers: Vec<f64> = output.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [begun, before, ended, after] = numbers[..] else {
        bail!("no times and counts in {output:?}");
    };
    // Those that read the first count and the second one.
    let own = 4.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of processes")]
    Ok(Cost { seconds: ended - begun, processes: (after - before - own).max(0.0) as u64 })
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

/// One worker does everything once, and `done` is what it has done.
fn round(bench: &Bench<'_>, worker: Worker, count: usize, done: &RefCell<BTreeMap<Work, Cost>>) -> Result<()> {
    done.take();
    let names = names(count);
    let expected: Vec<&str> = names.iter().map(String::as_str).collect();
    bench.ok(&format!("mkdir -p -m 700 {SAVE}"))?;
    for name in &names {
        bench.write(&format!("/etc/xen/auto/{name}"), &xl_cfg(name, Kind::Pv, ""))?;
    }
    for work in Work::ALL {
        bench.write("/etc/default/xendomains", &settings(if work == Work::ShutDown { "" } else { SAVE }))?;
        let before: Vec<u64> = names.iter().map(|name| bench.ticks(name).unwrap_or_default()).collect();
        let cost =
            measure(bench, &worker.command(work)).with_context(|| format!("{}: {work:?}", worker.name()))?;
        match work {
            Work::Create | Work::Restore => {
                bench.expect_guests(&expected)?;
                // They are at rest before the next work begins.
                for (name, before) in names.iter().zip(before) {
                    bench.wait_for_tick(name, before + 2)?;
                }
                bench.ok(&format!("rm -f {SAVE}/* && sync"))?;
            }
            Work::Save => {
                bench.expect_guests(&[])?;
                ensure!(
                    bench.files(SAVE)?.len() == count,
                    "not every guest has an image: {:?}",
                    bench.files(SAVE)?
                );
            }
            Work::ShutDown => {
                bench.expect_guests(&[])?;
                if worker == Worker::Ours {
                    let (whole, slowest) = shutdown_times(bench)?;
                    println!(
                        "  a stop of {whole:.1} s, {:.2} of its slowest guest's {slowest:.1} s",
                        whole / slowest
                    );
                }
            }
            Work::Status => {}
        }
        done.borrow_mut().insert(work, cost);
    }
    Ok(())
}

/// Has all of them do the same, in turn, and prints what it took.
///
/// Each begins on a fresh host, which is always the same one.
pub fn compare(hosts: &mut [Host], arguments: &Arguments, comparison: &Comparison) -> Result<()> {
    let count = comparison.guests;
    let mut workers = vec![Worker::Ours];
    workers.extend(AT_A_TIME.iter().filter(|jobs| **jobs <= count).map(|jobs| Worker::ByHand(*jobs)));
    if comparison.scripts {
        workers.extend([Worker::Upstream, Worker::Debian]);
    }
    let mut costs: BTreeMap<(Worker, Work), Vec<Cost>> = BTreeMap::new();
    for number in 1..=comparison.rounds {
        for &worker in &workers {
            println!("round {number} of {}: {}", comparison.rounds, worker.name());
            let done = RefCell::default();
            let end = attempts(&worker.name(), hosts, arguments, |bench| round(bench, worker, count, &done));
            for (work, cost) in done.take() {
                costs.entry((worker, work)).or_default().push(cost);
            }
            match end {
                // With so many at a time xl may come to one of libxl's limits. What it did until then is counted.
                Err(error) if worker != Worker::Ours => println!("  {error:#}"),
                end => end?,
            }
        }
    }
    println!("\n{count} guests; the median of {} in seconds (from, to), processes started", comparison.rounds);
    print!("{:<24}", "");
    for work in Work::ALL {
        print!(" {:>28}", format!("{work:?}").to_lowercase());
    }
    println!();
    for worker in workers {
        print!("{:<24}", worker.name());
        for work in Work::ALL {
            print!(" {:>28}", costs.get(&(worker, work)).map_or_else(String::new, |costs| summary(costs)));
        }
        println!();
    }
    Ok(())
}

/// The median, the spread and the processes.
fn summary(costs: &[Cost]) -> String {
    let mut seconds: Vec<f64> = costs.iter().map(|cost| cost.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let (least, most) =
        (seconds.first().copied().unwrap_or_default(), seconds.last().copied().unwrap_or_default());
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
    let processes = costs.iter().map(|cost| cost.processes).max().unwrap_or_default();
    format!("{median:.2} ({least:.2}, {most:.2}) {processes}")
}
