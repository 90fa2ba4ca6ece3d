//! The program is killed, or the host loses its power, while guests are saved, shut down or restored: each of them then
//! runs once, from where it was or freshly booted. A disk proves it: nobody has written there but the guest itself.

use anyhow::{Result, ensure};
use xtask::lab::console_log;

use crate::bench::{Bench, Kind, PROGRAM, expect};
use crate::scenarios::{SAVE, Scenario};

/// All of them, by the name that is printed. Together they have 20 cut points.
pub const ALL: &[(&str, Scenario)] = &[
    ("a_stop_that_is_killed_when_it_syncs", |bench| stops_killed_at(bench, "fsync", 4)),
    ("a_stop_that_is_killed_when_it_renames", |bench| stops_killed_at(bench, "rename", 3)),
    ("a_stop_that_is_killed_while_it_shuts_down", a_stop_that_is_killed_while_it_shuts_down),
    ("a_start_that_is_killed_when_it_syncs", |bench| starts_killed_at(bench, "fsync", 3)),
    ("a_start_that_is_killed_when_it_renames", |bench| starts_killed_at(bench, "rename", 2)),
    ("a_start_that_is_killed_when_it_removes", |bench| starts_killed_at(bench, "unlink", 3)),
    ("the_power_fails_when_a_stop_syncs", |bench| power_fails(bench, "stop", "fsync", 2)),
    ("the_power_fails_when_a_stop_renames", |bench| power_fails(bench, "stop", "rename", 2)),
    ("the_power_fails_when_a_start_renames", |bench| power_fails(bench, "start", "rename", 1)),
    ("the_power_fails_when_a_start_removes", |bench| power_fails(bench, "start", "unlink", 1)),
];

/// In the order in which they start.
const GUESTS: [&str; 2] = ["alpha", "beta"];

/// Two guests that run, of which one thread of the program saves or restores one after the other: strace counts the
/// calls of each thread. The one that has its turn first, and so meets most of the cuts, has a disk.
fn two_guests(bench: &Bench<'_>, with_disk: &str, settings: &str) -> Result<()> {
    bench.settings(&format!("XENDOMAINS_SAVE_JOBS=1\nXENDOMAINS_START_JOBS=1\n{settings}"))?;
    for (order, name) in GUESTS.iter().enumerate() {
        let disk = if *name == with_disk {
            bench.ok(&format!("truncate -s 1M /var/tmp/{name}"))?;
            format!("disk = [\"/var/tmp/{name},raw,xvda,w\"]\n")
        } else {
            String::new()
        };
        bench.guest(name, Kind::Pv, "disks", &format!("{disk}xendomains = [ \"order={order}\" ]\n"))?;
    }
    bench.xendomains("start", 0)?;
    expect_running(bench, with_disk)
}

/// Every guest runs once. The one with a disk goes on writing there, and nobody else has; nothing is left to be restored.
fn expect_running(bench: &Bench<'_>, with_disk: &str) -> Result<()> {
    bench.expect_guests(&GUESTS)?;
    let before = bench.writes(with_disk, with_disk).unwrap_or_default();
    let write = format!("{with_disk} disk xvda write ");
    let goes_on = |line: &str| {
        let count = line.trim().strip_prefix(&write).and_then(|count| count.parse::<u64>().ok());
        count.is_some_and(|count| count > before + 1)
    };
    bench.wait_for_console(with_disk, goes_on)?;
    let strangers = bench.run(&format!("grep 'disk xvda has write' {}", console_log(with_disk)))?;
    ensure!(!strangers.success(), "{with_disk} has run twice, or from an old image: {}", strangers.stdout);
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
    two_guests(bench, "beta", "")?;
    for nth in 1..=times {
        kill(bench, "stop", call, nth)?;
        bench.xendomains("start", 0)?;
        expect_running(bench, "beta")?;
    }
    expect_one_boot(bench)
}

fn starts_killed_at(bench: &Bench<'_>, call: &str, times: usize) -> Result<()> {
    two_guests(bench, "alpha", "")?;
    for nth in 1..=times {
        bench.xendomains("stop", 0)?;
        kill(bench, "start", call, nth)?;
        bench.xendomains("start", 0)?;
        expect_running(bench, "alpha")?;
    }
    expect_one_boot(bench)
}

/// One guest has been shut down, and the other one does not hear that it should; the next stop and start go on from there.
fn a_stop_that_is_killed_while_it_shuts_down(bench: &Bench<'_>) -> Result<()> {
    two_guests(bench, "beta", "XENDOMAINS_SAVE=\n")?;
    bench.ok("xl destroy alpha")?;
    bench.guest("alpha", Kind::Pv, "ignore_shutdown", "xendomains = [ \"order=0\" ]\n")?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 2)?;
    bench.ok(&format!(": >/tmp/stop; (setsid {PROGRAM} stop >/tmp/stop 2>&1 &) >/dev/null 2>&1"))?;
    bench.wait_for_line("/tmp/stop", "beta: shut down")?;
    bench.ok("pkill -KILL -x xendomains")?;
    bench.expect_guests(&["alpha"])?;
    bench.settings("XENDOMAINS_SAVE=\nXENDOMAINS_STOP_MAXWAIT=3\nXENDOMAINS_DESTROY=true\n")?;
    expect(&bench.xendomains("stop", 1)?, &["alpha: destroyed"])?;
    bench.expect_guests(&[])?;
    bench.xendomains("start", 0)?;
    expect_running(bench, "beta")
}

/// The program is held at the `nth` of these calls, and then the host loses its power.
fn power_fails(bench: &Bench<'_>, action: &str, call: &str, nth: usize) -> Result<()> {
    let with_disk = if action == "start" { "alpha" } else { "beta" };
    two_guests(bench, with_disk, "")?;
    if action == "start" {
        bench.xendomains("stop", 0)?;
    }
    bench.ok(": >/tmp/strace; sync")?;
    let held = under_strace(action, call, nth, "SIGSTOP");
    bench.ok(&format!("(setsid sh -c '{held}' >/tmp/said 2>&1 &) >/dev/null 2>&1"))?;
    bench.wait_for_line("/tmp/strace", "SIGSTOP")?;
    bench.lose_power()?;
    bench.xendomains("start", 0)?;
    expect_running(bench, with_disk)
}
