//! What breaks around the program.

use anyhow::{Result, ensure};

use crate::bench::{Bench, Kind, PROGRAM, expect, xl_cfg};
use crate::scenarios::{SAVE, Scenario};

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("a_read_only_save_directory_means_shutdown", a_read_only_save_directory_means_shutdown),
    ("a_silent_xenstored_ends_the_program_before_it_begins", a_silent_xenstored_ends_the_program_before_it_begins),
    ("two_stops_at_once_stop_each_guest_once", two_stops_at_once_stop_each_guest_once),
    ("creations_that_fail_side_by_side_all_end", creations_that_fail_side_by_side_all_end),
];

/// Guests that run and count.
fn running(bench: &Bench<'_>, names: &[&str]) -> Result<()> {
    for name in names {
        bench.auto(&[(name, Kind::Pv, "")])?;
    }
    bench.xendomains("start", 0)?;
    names.iter().try_for_each(|name| bench.wait_for_tick(name, 2))
}

fn a_read_only_save_directory_means_shutdown(bench: &Bench<'_>) -> Result<()> {
    running(bench, &["alpha", "beta"])?;
    bench.ok(&format!("mkdir -p {SAVE} && mount -t tmpfs -o ro tmpfs {SAVE}"))?;
    let said = bench.xendomains("stop", 1)?;
    expect(&said, &[SAVE, "Read-only file system", "alpha: shut down", "beta: shut down"])?;
    bench.expect_guests(&[])?;
    ensure!(bench.files(SAVE)?.is_empty(), "left in {SAVE}: {:?}", bench.files(SAVE)?);
    Ok(())
}

fn a_silent_xenstored_ends_the_program_before_it_begins(bench: &Bench<'_>) -> Result<()> {
    running(bench, &["alpha"])?;
    let before = bench.ticks("alpha")?;
    for (action, code) in [("stop", 5), ("status", 4)] {
        let command =
            format!("pkill -STOP xenstored; {PROGRAM} {action}; code=$?; pkill -CONT xenstored; exit $code");
        let output = bench.run(&command)?;
        ensure!(output.status == code, "{action} ended with {} instead of {code}", output.status);
        expect(&output.stderr, &["xenstored does not answer", "/xenstored/socket"])?;
    }
    bench.expect_continued("alpha", before)?;
    expect(&bench.xendomains("stop", 0)?, &["alpha: saved"])
}

fn two_stops_at_once_stop_each_guest_once(bench: &Bench<'_>) -> Result<()> {
    running(bench, &["alpha", "beta"])?;
    let both = format!(
        "{PROGRAM} stop >/tmp/one 2>&1 & {PROGRAM} stop >/tmp/other 2>&1; code=$?; wait $!; test $? = 0 && exit $code"
    );
    ensure!(bench.run(&both)?.success(), "one of the two has failed");
    bench.expect_guests(&[])?;
    let said = bench.read("/tmp/one")? + &bench.read("/tmp/other")?;
    for saved in ["alpha: saved", "beta: saved"] {
        ensure!(said.matches(saved).count() == 1, "not once: {saved:?} in\n{said}");
    }
    ensure!(bench.files(SAVE)? == ["alpha", "beta"], "images: {:?}", bench.files(SAVE)?);
    Ok(())
}

/// Each that fails has libxl fork for the destroy of what it has built, while others build.
fn creations_that_fail_side_by_side_all_end(bench: &Bench<'_>) -> Result<()> {
    const GUESTS: usize = 40;
    bench.settings("XENDOMAINS_CREATE_USLEEP=0\nXENDOMAINS_START_JOBS=8\nXENDOMAINS_START_MAXWAIT=120\n")?;
    for number in 1..=GUESTS {
        let name = format!("guest{number}");
        // The kernel does not fit.
        let text = xl_cfg(&name, Kind::Pv, "").replace("memory = 128", "memory = 40");
        bench.write(&format!("/etc/xen/auto/{name}"), &text)?;
    }
    let said = bench.xendomains("start", 1)?;
    let failures = said.lines().filter(|line| line.contains(": start FAILED")).count();
    ensure!(failures == GUESTS, "{failures} of {GUESTS} have failed:\n{said}");
    ensure!(!said.contains("time limit reached"), "not all failed by themselves:\n{said}");
    bench.expect_guests(&[])
}
