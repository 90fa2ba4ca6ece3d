//! The program is killed, or the host loses its power, while guests are saved, shut down or restored: each of them then
//! runs once, from where it was or freshly booted. Their disks prove it: nobody has written there but they themselves.

use anyhow::{Result, ensure};
use xtask::lab::console_log;

use crate::bench::{Bench, Kind, PROGRAM};
use crate::scenarios::{SAVE, Scenario};

/// All of them, by the name that is printed. Together they have 26 cut points.
pub const ALL: &[(&str, Scenario)] = &[
    ("a_stop_that_is_killed_when_it_syncs", |bench| stops_killed_at(bench, "fsync", 6)),
    ("a_stop_that_is_killed_when_it_renames", |bench| stops_killed_at(bench, "rename", 4)),
    ("a_stop_that_is_killed_while_it_shuts_down", a_stop_that_is_killed_while_it_shuts_down),
    ("a_start_that_is_killed_when_it_syncs", |bench| starts_killed_at(bench, "fsync", 4)),
    ("a_start_that_is_killed_when_it_renames", |bench| starts_killed_at(bench, "rename", 3)),
    ("a_start_that_is_killed_when_it_removes", |bench| starts_killed_at(bench, "unlink", 4)),
    ("the_power_fails_when_a_stop_syncs", |bench| power_fails(bench, "stop", "fsync", 2)),
    ("the_power_fails_when_a_stop_renames", |bench| power_fails(bench, "stop", "rename", 2)),
    ("the_power_fails_when_a_start_renames", |bench| power_fails(bench, "start", "rename", 1)),
    ("the_power_fails_when_a_start_removes", |bench| power_fails(bench, "start", "unlink", 1)),
];

const GUESTS: [&str; 2] = ["alpha", "beta"];

/// Two guests that run, of which one thread of the program saves or restores one after the other: strace counts the
/// calls of each thread.
fn two_guests(bench: &Bench<'_>, settings: &str) -> Result<()> {
    bench.settings(&format!("XENDOMAINS_SAVE_JOBS=1\nXENDOMAINS_START_JOBS=1\n{settings}"))?;
    for (order, name) in GUESTS.iter().enumerate() {
        bench.ok(&format!("truncate -s 1M /var/tmp/{name}"))?;
        let more = format!("disk = [\"/var/tmp/{name},raw,xvda,w\"]\nxendomains = [ \"order={order}\" ]\n");
        bench.guest(name, Kind::Pv, "disks", &more)?;
    }
    bench.xendomains("start", 0)?;
    expect_running(bench)
}

/// Every guest runs once, and goes on writing; nobody else has written to its disk, and nothing is left to be restored.
fn expect_running(bench: &Bench<'_>) -> Result<()> {
    bench.expect_guests(&GUESTS)?;
    for name in GUESTS {
        let before = bench.writes(name, name).unwrap_or_default();
        let write = format!("{name} disk xvda write ");
        let counts = |line: &str| {
            let count = line.trim().strip_prefix(&write).and_then(|count| count.parse::<u64>().ok());
            count.is_some_and(|count| count > before + 1)
        };
        bench.wait_for_console(name, counts)?;
        let strangers = bench.run(&format!("grep 'disk xvda has write' {}", console_log(name)))?;
        ensure!(!strangers.success(), "{name} has run twice, or from an old image: {}", strangers.stdout);
    }
    let left = bench.files(SAVE)?;
    ensure!(left.iter().all(|file| file.ends_with(".restored")), "left in {SAVE}: {left:?}");
    Ok(())
}

/// None of them has lost its state.
fn expect_one_boot(bench: &Bench<'_>) -> Result<()> {
    for name in GUESTS {
        let boots = bench.boots(name)?;
        ensure!(boots == 1, "the host was up all the time, and yet {name} has booted {boots} times");
    }
    Ok(())
}

/// Runs the program under strace, which sends it a signal when it makes this call for the `nth` time.
fn under_strace(action: &str, call: &str, nth: usize, signal: &str) -> String {
    let inject = format!("inject={call}:signal={signal}:when={nth}");
    // strace ends by the signal that has ended the program; the shell says so in its exit code.
    format!("strace -f -qq -o /tmp/strace -e trace={call} -e {inject} {PROGRAM} {action}; exit $?")
}

/// Kills the program at the `nth` of these calls.
fn kill(bench: &Bench<'_>, action: &str, call: &str, nth: usize) -> Result<()> {
    let code = bench.run(&under_strace(action, call, nth, "SIGKILL"))?.status;
    ensure!(code == 137, "{action} makes less than {nth} calls of {call}: it ended with {code}");
    Ok(())
}

fn stops_killed_at(bench: &Bench<'_>, call: &str, times: usize) -> Result<()> {
    two_guests(bench, "")?;
    for nth in 1..=times {
        kill(bench, "stop", call, nth)?;
        bench.xendomains("start", 0)?;
        expect_running(bench)?;
    }
    expect_one_boot(bench)
}

fn starts_killed_at(bench: &Bench<'_>, call: &str, times: usize) -> Result<()> {
    two_guests(bench, "")?;
    for nth in 1..=times {
        bench.xendomains("stop", 0)?;
        kill(bench, "start", call, nth)?;
        bench.xendomains("start", 0)?;
        expect_running(bench)?;
    }
    expect_one_boot(bench)
}

/// One guest has been shut down and the other one is about to be; the next stop and start go on from there.
fn a_stop_that_is_killed_while_it_shuts_down(bench: &Bench<'_>) -> Result<()> {
    two_guests(bench, "XENDOMAINS_SAVE=\n")?;
    bench.ok(&format!(": >/tmp/stop; (setsid {PROGRAM} stop >/tmp/stop 2>&1 &) >/dev/null 2>&1"))?;
    bench.wait_for_line("/tmp/stop", "beta: shut down")?;
    bench.ok("pkill -KILL -x xendomains")?;
    bench.xendomains("stop", 0)?;
    bench.expect_guests(&[])?;
    bench.xendomains("start", 0)?;
    expect_running(bench)
}

/// The program is held at the `nth` of these calls, and then the host loses its power.
fn power_fails(bench: &Bench<'_>, action: &str, call: &str, nth: usize) -> Result<()> {
    two_guests(bench, "")?;
    if action == "start" {
        bench.xendomains("stop", 0)?;
    }
    bench.ok(": >/tmp/strace; sync")?;
    let held = under_strace(action, call, nth, "SIGSTOP");
    bench.ok(&format!("(setsid sh -c '{held}' >/tmp/said 2>&1 &) >/dev/null 2>&1"))?;
    bench.wait_for_line("/tmp/strace", "SIGSTOP")?;
    bench.lose_power()?;
    bench.xendomains("start", 0)?;
    expect_running(bench)
}
