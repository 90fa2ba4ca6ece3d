//! The program is killed, or the host loses its power, while guests are saved or restored: each of them then runs
//! once, from where it was or freshly booted.

use anyhow::{Result, ensure};

use crate::bench::{Bench, Kind, PROGRAM};
use crate::scenarios::{SAVE, Scenario};

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("a_stop_that_is_killed_when_it_writes_to_the_disk", |bench| stops_killed_at(bench, "fsync", 7)),
    ("a_stop_that_is_killed_when_it_renames", |bench| stops_killed_at(bench, "renameat2,rename", 3)),
    ("a_start_that_is_killed_when_it_writes_to_the_disk", |bench| starts_killed_at(bench, "fsync", 3)),
    ("a_start_that_is_killed_when_it_renames_or_removes", |bench| {
        starts_killed_at(bench, "renameat2", 2)?;
        starts_killed_at(bench, "unlink", 3)
    }),
    ("the_power_fails_during_a_stop", |bench| power_fails(bench, "stop", 4)),
    ("the_power_fails_during_a_start", |bench| power_fails(bench, "start", 2)),
];

const GUESTS: [&str; 2] = ["alpha", "beta"];

/// Two guests that run, of which one thread of the program saves or restores one after the other: strace counts the
/// calls of each thread.
fn two_guests(bench: &Bench<'_>) -> Result<()> {
    bench.settings("XENDOMAINS_SAVE_JOBS=1\nXENDOMAINS_START_JOBS=1\n")?;
    bench.auto(&[
        ("alpha", Kind::Pv, "xendomains = [ \"order=1\" ]\n"),
        ("beta", Kind::Pv, "xendomains = [ \"order=2\" ]\n"),
    ])?;
    bench.xendomains("start", 0)?;
    all_count(bench)
}

fn all_count(bench: &Bench<'_>) -> Result<()> {
    GUESTS.iter().try_for_each(|name| bench.wait_for_tick(name, 2))
}

/// Runs the program under strace, which sends it a signal when it makes one of these calls for the `nth` time.
fn under_strace(action: &str, calls: &str, nth: usize, signal: &str) -> String {
    format!(
        "strace -f -qq -o /tmp/strace -e trace={calls} -e inject={calls}:signal={signal}:when={nth} {PROGRAM} {action}"
    )
}

/// Kills the program at the `nth` of these calls.
fn kill(bench: &Bench<'_>, action: &str, calls: &str, nth: usize) -> Result<()> {
    let code = bench.run(&under_strace(action, calls, nth, "SIGKILL"))?.status;
    ensure!(code == 137, "{action} makes less than {nth} calls of {calls}: it ended with {code}");
    Ok(())
}

/// Every guest runs once, and goes on counting; nothing is left to be restored.
fn expect_running(bench: &Bench<'_>) -> Result<()> {
    bench.expect_guests(&GUESTS)?;
    for name in GUESTS {
        let before = bench.ticks(name).unwrap_or_default();
        bench.wait_for_tick(name, before + 2)?;
    }
    let left = bench.files(SAVE)?;
    ensure!(left.iter().all(|file| file.ends_with(".restored")), "left in {SAVE}: {left:?}");
    Ok(())
}

fn stops_killed_at(bench: &Bench<'_>, calls: &str, times: usize) -> Result<()> {
    two_guests(bench)?;
    for nth in 1..=times {
        kill(bench, "stop", calls, nth)?;
        bench.xendomains("start", 0)?;
        expect_running(bench)?;
    }
    let boots = GUESTS.iter().map(|name| bench.boots(name)).collect::<Result<Vec<_>>>()?;
    ensure!(boots == [1, 1], "the host was up all the time, so no guest loses its state: booted {boots:?} times");
    Ok(())
}

fn starts_killed_at(bench: &Bench<'_>, calls: &str, times: usize) -> Result<()> {
    two_guests(bench)?;
    for nth in 1..=times {
        bench.xendomains("stop", 0)?;
        kill(bench, "start", calls, nth)?;
        bench.xendomains("start", 0)?;
        expect_running(bench)?;
    }
    Ok(())
}

/// The program is stopped at the `nth` fsync, and then the host loses its power.
fn power_fails(bench: &Bench<'_>, action: &str, nth: usize) -> Result<()> {
    two_guests(bench)?;
    if action == "start" {
        bench.xendomains("stop", 0)?;
    }
    let stopped = under_strace(action, "fsync", nth, "SIGSTOP");
    bench.ok(&format!("(setsid {stopped} >/tmp/said 2>&1 &) >/dev/null 2>&1"))?;
    bench.wait_for_line("/tmp/strace", "SIGSTOP")?;
    bench.lose_power()?;
    bench.xendomains("start", 0)?;
    expect_running(bench)
}
