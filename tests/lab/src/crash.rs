//! The program is killed, or the host loses its power, while guests are saved, shut down or restored: each of them then
//! runs once, from where it was or freshly booted. A disk proves it: nobody has written there but the guest itself.

use anyhow::{Result, ensure};
use xtask::lab::console_log;

use crate::bench::{Bench, Kind, PROGRAM, expect, xl_cfg};
use crate::scenarios::{SAVE, Scenario};

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("a_stop_that_is_killed_when_it_renames", |bench| stops_killed_at(bench, "rename", 4)),
    ("a_start_that_is_killed_when_it_syncs", |bench| starts_killed_at(bench, "fsync", 2)),
    ("the_power_fails_when_a_stop_renames", |bench| power_fails(bench, "stop", "rename", 2)),
    ("the_power_fails_when_a_start_removes", |bench| power_fails(bench, "start", "unlink", 1)),
];

/// Those with which there are 23 cut points: the fake has all of them and more, in seconds.
pub const BY_NAME: &[(&str, Scenario)] = &[
    ("a_stop_that_is_killed_when_it_syncs", |bench| stops_killed_at(bench, "fsync", 6)),
    ("a_stop_that_is_killed_while_it_shuts_down", a_stop_that_is_killed_while_it_shuts_down),
    ("a_start_that_is_killed_when_it_renames", |bench| starts_killed_at(bench, "rename", 1)),
    ("a_start_that_is_killed_when_it_removes", |bench| starts_killed_at(bench, "unlink", 3)),
    ("the_power_fails_when_a_stop_syncs", |bench| power_fails(bench, "stop", "fsync", 2)),
    ("the_power_fails_when_a_start_renames", |bench| power_fails(bench, "start", "rename", 1)),
];

/// What the guest is called, and its disk.
const GUEST: &str = "alpha";

/// A guest that runs, and counts on its disk. With more than one the calls would be made by several threads, and strace
/// counts those of each thread; the fake has the cuts between guests.
fn one_guest(bench: &Bench<'_>, settings: &str) -> Result<()> {
    bench.settings(settings)?;
    bench.ok(&format!("truncate -s 1M /var/tmp/{GUEST}"))?;
    bench.guest(GUEST, Kind::Pv, "disks", &format!("disk = [\"/var/tmp/{GUEST},raw,xvda,w\"]\n"))?;
    bench.xendomains("start", 0)?;
    expect_running(bench)
}

/// The guest runs once and goes on writing to its disk, and nobody else has; nothing is left to be restored.
fn expect_running(bench: &Bench<'_>) -> Result<()> {
    bench.expect_guests(&[GUEST])?;
    let before = bench.writes(GUEST, GUEST).unwrap_or_default();
    let write = format!("{GUEST} disk xvda write ");
    let goes_on = |line: &str| {
        let count = line.trim().strip_prefix(&write).and_then(|count| count.parse::<u64>().ok());
        count.is_some_and(|count| count > before + 1)
    };
    bench.wait_for_console(GUEST, goes_on)?;
    let strangers = bench.run(&format!("grep 'disk xvda has write' {}", console_log(GUEST)))?;
    ensure!(!strangers.success(), "{GUEST} has run twice, or from an old image: {}", strangers.stdout);
    let left = bench.files(SAVE)?;
    ensure!(left.iter().all(|file| file.ends_with(".restored")), "left in {SAVE}: {left:?}");
    Ok(())
}

/// The guest has not lost its state.
fn expect_one_boot(bench: &Bench<'_>) -> Result<()> {
    let boots = bench.boots(GUEST)?;
    ensure!(boots == 1, "the host was up all the time, and yet {GUEST} has booted {boots} times");
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
    one_guest(bench, "")?;
    for nth in 1..=times {
        kill(bench, "stop", call, nth)?;
        bench.xendomains("start", 0)?;
        expect_running(bench)?;
    }
    expect_one_boot(bench)
}

fn starts_killed_at(bench: &Bench<'_>, call: &str, times: usize) -> Result<()> {
    one_guest(bench, "")?;
    for nth in 1..=times {
        bench.xendomains("stop", 0)?;
        kill(bench, "start", call, nth)?;
        bench.xendomains("start", 0)?;
        expect_running(bench)?;
    }
    expect_one_boot(bench)
}

/// One guest has been shut down, and another one does not hear that it should; the next stop and start go on from there.
fn a_stop_that_is_killed_while_it_shuts_down(bench: &Bench<'_>) -> Result<()> {
    one_guest(bench, "XENDOMAINS_SAVE=\n")?;
    bench.write(
        "/tmp/deaf.cfg",
        &xl_cfg("deaf", Kind::Pv, "").replace("guest=deaf", "guest=deaf ignore_shutdown"),
    )?;
    bench.ok("xl create /tmp/deaf.cfg")?;
    bench.wait_for_tick("deaf", 1)?;
    bench.ok(&format!(": >/tmp/stop; (setsid {PROGRAM} stop >/tmp/stop 2>&1 &) >/dev/null 2>&1"))?;
    bench.wait_for_line("/tmp/stop", &format!("{GUEST}: shut down"))?;
    bench.ok("pkill -KILL -x xendomains")?;
    bench.expect_guests(&["deaf"])?;
    bench.settings("XENDOMAINS_SAVE=\nXENDOMAINS_STOP_MAXWAIT=3\nXENDOMAINS_DESTROY=true\n")?;
    expect(&bench.xendomains("stop", 1)?, &["deaf: destroyed"])?;
    bench.expect_guests(&[])?;
    bench.xendomains("start", 0)?;
    expect_running(bench)
}

/// The program is held at the `nth` of these calls, and then the host loses its power.
fn power_fails(bench: &Bench<'_>, action: &str, call: &str, nth: usize) -> Result<()> {
    one_guest(bench, "")?;
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
