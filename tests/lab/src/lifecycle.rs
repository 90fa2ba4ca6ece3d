//! Order, wishes of single guests, and two at work at once.

use anyhow::{Context, Result, ensure};

use crate::bench::{Bench, Kind, PROGRAM, expect, xl_cfg};
use crate::scenarios::Scenario;

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("guests_start_by_their_order_and_stop_in_reverse", guests_start_by_their_order_and_stop_in_reverse),
    ("each_guest_is_stopped_in_its_own_way", each_guest_is_stopped_in_its_own_way),
    ("a_stop_tells_a_start_to_end", a_stop_tells_a_start_to_end),
    ("sigterm_lets_guests_run_on", sigterm_lets_guests_run_on),
    ("plan_and_check_say_what_then_happens", plan_and_check_say_what_then_happens),
];

/// A guest that does not react to a shutdown request.
fn deaf(name: &str, more: &str) -> String {
    xl_cfg(name, Kind::Pv, more).replace(&format!("guest={name}"), &format!("guest={name} ignore_shutdown"))
}

/// Each of these is in the text, in this order.
fn in_this_order(text: &str, parts: &[&str]) -> Result<()> {
    let mut rest = text;
    for part in parts {
        let at =
            rest.find(part).with_context(|| format!("{part:?} is missing, or comes too early, in:\n{text}"))?;
        rest = &rest[at + part.len()..];
    }
    Ok(())
}

fn guests_start_by_their_order_and_stop_in_reverse(bench: &Bench<'_>) -> Result<()> {
    bench.settings("XENDOMAINS_SAVE=\nXENDOMAINS_START_JOBS=3\n")?;
    bench.auto(&[
        ("alpha", Kind::Pv, "xendomains = [ \"order=2\" ]\n"),
        ("beta", Kind::Pv, "xendomains = [ \"order=1\", \"delay=1\" ]\n"),
        ("gamma", Kind::Pv, ""),
    ])?;
    let plan = bench.xendomains("plan start", 0)?;
    in_this_order(&plan, &["1. order 1", "beta", "2. order 2", "alpha", "3. no order given", "gamma"])?;
    in_this_order(&bench.xendomains("start", 0)?, &["beta: started", "alpha: started", "gamma: started"])?;
    for name in ["alpha", "beta", "gamma"] {
        bench.wait_for_tick(name, 2)?;
    }
    let said = bench.xendomains("stop", 0)?;
    in_this_order(&said, &["gamma: shut down", "alpha: shut down", "beta: shut down"])?;
    bench.expect_guests(&[])
}

fn each_guest_is_stopped_in_its_own_way(bench: &Bench<'_>) -> Result<()> {
    bench.settings("")?;
    bench.auto(&[("alpha", Kind::Pv, "xendomains = [ \"stop=shutdown\" ]\n"), ("beta", Kind::Pv, "")])?;
    let wish = "xendomains = [ \"stop=shutdown\", \"stop_timeout=3\", \"destroy=true\" ]\n";
    bench.write("/etc/xen/auto/deaf.cfg", &deaf("deaf", wish))?;
    bench.xendomains("start", 0)?;
    for name in ["alpha", "beta", "deaf"] {
        bench.wait_for_tick(name, 2)?;
    }
    let said = bench.xendomains("stop", 1)?;
    expect(&said, &["alpha: shut down", "beta: saved", "deaf: shutdown FAILED", "deaf: destroyed"])?;
    bench.expect_guests(&[])?;
    ensure!(bench.files("/var/lib/xen/save")? == ["beta"], "images: {:?}", bench.files("/var/lib/xen/save")?);
    Ok(())
}

fn a_stop_tells_a_start_to_end(bench: &Bench<'_>) -> Result<()> {
    // The first guest is followed by a pause in which the start would stay for an hour.
    bench.settings("XENDOMAINS_CREATE_USLEEP=3600000000\n")?;
    bench.auto(&[("alpha", Kind::Pv, ""), ("beta", Kind::Pv, "")])?;
    bench.ok("mkfifo /tmp/ended")?;
    bench.ok(&format!("(setsid {PROGRAM} start >/tmp/start 2>&1; echo $? >/tmp/ended) >/dev/null 2>&1 &"))?;
    bench.wait_for_tick("alpha", 2)?;
    let said = bench.xendomains("stop", 0)?;
    expect(&said, &["another xendomains start is at work (process ", "telling it to end", "alpha: saved"])?;
    ensure!(bench.ok("cat /tmp/ended")? == "1\n", "the start has not failed");
    expect(&bench.read("/tmp/start")?, &["alpha: started", "told to end: these guests were not started: beta"])?;
    bench.expect_guests(&[])
}

fn sigterm_lets_guests_run_on(bench: &Bench<'_>) -> Result<()> {
    bench.settings("XENDOMAINS_SAVE=\nXENDOMAINS_STOP_MAXWAIT=0\n")?;
    bench.auto(&[("alpha", Kind::Pv, "")])?;
    bench.write("/etc/xen/auto/deaf.cfg", &deaf("deaf", ""))?;
    bench.xendomains("start", 0)?;
    for name in ["alpha", "deaf"] {
        bench.wait_for_tick(name, 2)?;
    }
    bench.ok("mkfifo /tmp/ended")?;
    bench.ok(&format!("(setsid {PROGRAM} stop >/tmp/stop 2>&1; echo $? >/tmp/ended) >/dev/null 2>&1 &"))?;
    bench.wait_for_line("/tmp/stop", "alpha: shut down")?;
    bench.ok("pkill -TERM -x xendomains")?;
    ensure!(bench.ok("cat /tmp/ended")? == "1\n", "the stop has not failed");
    expect(&bench.read("/tmp/stop")?, &["deaf: stop FAILED", "told to end: it is still running as domain"])?;
    bench.expect_guests(&["deaf"])?;
    let before = bench.ticks("deaf")?;
    bench.expect_continued("deaf", before)
}

fn plan_and_check_say_what_then_happens(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&[("alpha", Kind::Pv, "memroy = 64\n")])?;
    bench.write("/etc/xen/auto/lost.cfg", &xl_cfg("lost", Kind::Pv, "").replace("vmlinux", "no-kernel"))?;
    let said = bench.xendomains("check", 1)?;
    expect(
        &said,
        &["alpha.cfg:8: memroy: unknown, did you mean memory?", "lost.cfg: kernel: ", "guest alpha (pv, 128 MiB"],
    )?;
    bench.ok("rm /etc/xen/auto/lost.cfg")?;
    expect(&bench.xendomains("plan start", 0)?, &["alpha  create from /etc/xen/auto/alpha.cfg", "128 MiB"])?;
    bench.expect_guests(&[])?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 2)?;
    let plan = bench.xendomains("plan stop", 0)?;
    expect(
        &plan,
        &["alpha  save (at most 90 s), else shutdown (at most 90 s)", "room for images: ", "at the longest: "],
    )?;
    bench.expect_guests(&["alpha"])?;
    bench.xendomains("stop", 0)?;
    expect(&bench.xendomains("plan start", 0)?, &["alpha  restore from /var/lib/xen/save/alpha"])?;
    expect(&bench.xendomains("check", 0)?, &["/var/lib/xen/save/alpha: image of alpha ("])
}
