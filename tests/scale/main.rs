//! A thousand guests over the fake libxl: what status, plan and stop cost in time and memory grows with the number of
//! guests and not faster.

#[path = "../dom0/mod.rs"]
mod dom0;
#[path = "../program/mod.rs"]
#[expect(dead_code, reason = "nothing is waited for while the program runs")]
mod program;

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fake_libxl::Control;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use xendomains::interrupt::Interrupt;
use xenlight::{Library, Release};

use program::{Said, libxl, program};

const FEW: usize = 250;
const MANY: usize = 1000;

/// How much more than so many times the few the many may cost, for what caches and other processes do to it.
const SLACK: f64 = 2.0;

/// What a command may need for a guest more, KiB: its thread, while it is stopped, and what the fake itself notes.
const PER_GUEST: u64 = 64;

/// What a command took.
#[derive(Debug)]
struct Cost {
    /// Time of this process's threads on a CPU.
    cpu: Duration,
    /// The most memory of this process.
    peak_kib: u64,
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().expect("positive"), time.tv_nsec.try_into().expect("positive"))
}

/// Forgets how much memory this process has had.
fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").expect("the kernel does that");
}

fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Has the commands run with so many guests that run, each with a file in AUTO.
fn costs(guests: usize) -> Vec<(&'static str, Cost)> {
    let directory = tempfile::tempdir().expect("a directory");
    let host = dom0::lay_out(directory.path(), "XENDOMAINS_SAVE=\n");
    let path = fake_libxl::install(directory.path(), "4.17");
    // SAFETY: the fake behaves like libxl.
    let library = unsafe { Library::open_in(directory.path(), Release::new(4, 17)) }.expect("the fake opens");
    let control = Control::open(&path);
    let names: Vec<String> = (0..guests).map(|number| format!("guest{number}")).collect();
    control.host(json!({ "domains": names.iter().map(|name| json!({ "name": name })).collect::<Value>() }));
    for name in &names {
        dom0::add_guest(directory.path(), name, "");
    }
    let interrupt = Arc::new(Interrupt::new().expect("a descriptor"));
    let open = libxl(&library, &interrupt);
    let mut costs = Vec::new();
    for words in [&["status"][..], &["plan", "start"], &["plan", "stop"], &["stop"]] {
        let said = Said::default();
        forget_peak();
        let (begun, worked) = (Instant::now(), cpu_time());
        let code = program(&host, &open, words, &interrupt, &said.reporter());
        let cpu = cpu_time() - worked;
        assert_eq!(code, 0, "{words:?}: {}", said.text());
        let cost = Cost { cpu, peak_kib: peak_kib() };
        println!("{guests} guests, {words:?}: {:?}, {cost:?}", begun.elapsed());
        costs.push((*words.last().expect("a word"), cost));
    }
    assert_eq!(program(&host, &open, &["status"], &interrupt, &Said::default().reporter()), 3, "guests are left");
    costs
}

#[test]
fn what_a_thousand_guests_cost_is_four_times_that_of_a_quarter() {
    let times = MANY as f64 / FEW as f64;
    // What is loaded and allocated only once is there then.
    costs(8);
    for ((command, few), (_, many)) in costs(FEW).into_iter().zip(costs(MANY)) {
        let (short, long) = (few.cpu.as_secs_f64(), many.cpu.as_secs_f64());
        assert!(long <= short * times * SLACK, "{command}: {short} s for {FEW} guests, {long} s for {MANY}");
        let more = many.peak_kib.saturating_sub(few.peak_kib) / (MANY - FEW) as u64;
        assert!(more <= PER_GUEST, "{command}: {more} KiB more for each guest");
    }
}
