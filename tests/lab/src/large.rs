//! Guests of several GiB beside others: nobody waits for what takes long with one of them.

use anyhow::{Context, Result, ensure};
use xtask::lab::quote;

use crate::bench::{Bench, Kind, PROGRAM, xl_cfg};
use crate::scenarios::{SAVE, Scenario};

/// All of them, by the name that is printed. They take their time, and a host of their own.
pub const BY_NAME: &[(&str, Scenario)] = &[
    ("a_large_guest_crashes_beside_others", a_large_guest_crashes_beside_others),
    ("eight_guests_ten_times", eight_guests_ten_times),
];

/// No limit that the emulator could reach.
const SETTINGS: &str =
    "XENDOMAINS_STOP_MAXWAIT=0\nXENDOMAINS_START_MAXWAIT=0\nXENDOMAINS_MONITOR=true\nXENDOMAINS_RESTART_SOON=0\n";

const LARGE: &str = "large";

/// Puts a guest with a disk and a network there.
fn guest(bench: &Bench<'_>, name: &str, memory_mib: u32, more: &str) -> Result<()> {
    bench.ok(&format!("truncate -s 4M /var/tmp/{name}"))?;
    let devices = format!("disk = [\"/var/tmp/{name},raw,xvda,w\"]\nvif = [\"bridge=xenbr0\"]\n{more}");
    let file = xl_cfg(name, Kind::Pv, &devices)
        .replace("memory = 128", &format!("memory = {memory_mib}"))
        .replace(&format!("guest={name}"), &format!("guest={name} disks sysrq_always_enabled"));
    bench.write(&format!("/etc/xen/auto/{name}.cfg"), &file)
}

/// Runs the program with libxl's log. Nothing may be tried twice, and no script killed.
fn smoothly(bench: &Bench<'_>, command: &str) -> Result<()> {
    let said = bench.xendomains(&format!("-v {command}"), 0)?;
    for sign in ["killing execution", "timed out", "tried again", "FAILED"] {
        ensure!(!said.contains(sign), "`{command}` was not smooth: {sign:?} in\n{said}");
    }
    Ok(())
}

/// Eight guests, one of 4 GiB, are started, saved, restored and shut down together, ten times.
fn eight_guests_ten_times(bench: &Bench<'_>) -> Result<()> {
    const ROUNDS: u32 = 10;
    let names = [LARGE, "a", "b", "c", "d", "e", "f", "g"];
    for name in names {
        guest(bench, name, if name == LARGE { 4096 } else { 128 }, "")?;
    }
    for round in 1..=ROUNDS {
        let all = || -> Result<()> {
            bench.settings(SETTINGS)?;
            smoothly(bench, "start")?;
            bench.expect_guests(&names)?;
            let before: Vec<u64> = names
                .iter()
                .map(|name| bench.wait_for_tick(name, 1).and_then(|()| bench.ticks(name)))
                .collect::<Result<_>>()?;
            smoothly(bench, "stop")?;
            bench.expect_guests(&[])?;
            ensure!(bench.files(SAVE)?.len() == names.len(), "images: {:?}", bench.files(SAVE)?);
            smoothly(bench, "start")?;
            for (name, before) in names.iter().zip(before) {
                bench.wait_for_tick(name, before + 2)?;
            }
            bench.settings(&format!("{SETTINGS}XENDOMAINS_SAVE=\n"))?;
            smoothly(bench, "stop")?;
            bench.expect_guests(&[])
        };
        all().with_context(|| format!("round {round} of {ROUNDS}"))?;
    }
    Ok(())
}

/// A guest of 4 GiB crashes and its memory is dumped, which is one call of libxl. Meanwhile others are restarted by the
/// same process, started, and saved.
fn a_large_guest_crashes_beside_others(bench: &Bench<'_>) -> Result<()> {
    bench.settings(SETTINGS)?;
    guest(bench, LARGE, 4096, "on_crash = \"coredump-restart\"\n")?;
    guest(bench, "alpha", 128, "")?;
    guest(bench, "beta", 128, "")?;
    smoothly(bench, "start")?;
    for name in [LARGE, "alpha", "beta"] {
        bench.wait_for_tick(name, 1)?;
    }
    let old = bench.ok(&format!("xl domid {LARGE}"))?;
    bench.ok(&format!("xl sysrq {LARGE} c"))?;
    until(bench, 120, &format!("test -s /var/lib/xen/dump/.{LARGE}.dumping"))?;
    let dump_goes_on = |what: &str| -> Result<()> {
        let now = bench.ok(&format!("xl domid {LARGE}"))?;
        ensure!(now == old, "the dump was over before {what}, so that nothing was shown");
        Ok(())
    };

    // The monitor, which dumps, restarts another: its disk and network need scripts.
    let domid = bench.ok("xl domid alpha")?;
    bench.ok("xl sysrq alpha b")?;
    until(bench, 30, &format!("test \"$(xl domid alpha 2>/dev/null)\" -gt {}", domid.trim()))?;
    dump_goes_on("another guest was restarted")?;
    // Another process starts one. That the large one can't be started is its failure.
    guest(bench, "gamma", 128, "")?;
    let said = bench.xendomains("-v start", 1)?;
    ensure!(said.contains("gamma: started") && !said.contains("killing execution"), "gamma: {said}");
    dump_goes_on("another guest was started")?;
    bench.ok("xl save beta /var/tmp/beta.image && rm /var/tmp/beta.image")?;
    dump_goes_on("another guest was saved")?;

    until(bench, 900, &format!("test \"$(xl domid {LARGE} 2>/dev/null)\" -gt {}", old.trim()))?;
    bench.wait_for_tick(LARGE, 1)?;
    let restarted =
        bench.ok("journalctl --no-pager | grep xendomains || cat /var/log/syslog 2>/dev/null || true")?;
    ensure!(!restarted.contains("killing execution"), "a script was killed:\n{restarted}");
    bench.ok(&format!("{PROGRAM} status --json"))?;
    Ok(())
}

/// Waits in dom0, at most so many seconds, until a shell's condition holds.
fn until(bench: &Bench<'_>, seconds: u32, condition: &str) -> Result<()> {
    let script = format!("until {condition}; do sleep 0.1; done");
    bench
        .ok(&format!("timeout {seconds} bash -c {}", quote(&script)))
        .map(drop)
        .with_context(|| condition.to_owned())
}
