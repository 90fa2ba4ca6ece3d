//! Defects of the scripts that need a real hypervisor to be shown; the others are in `tests/pains`. Each begins with what
//! the real `xl` does, so that the scenario is known to show the defect.

use anyhow::{Context, Result, ensure};

use crate::bench::{Bench, Kind, PROGRAM, expect, xl_cfg};
use crate::scenarios::Scenario;

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("an_image_is_private_and_durable", an_image_is_private_and_durable),
    ("an_older_image_is_never_truncated", an_older_image_is_never_truncated),
    (
        "one_that_does_not_answer_keeps_no_other_from_being_asked",
        one_that_does_not_answer_keeps_no_other_from_being_asked,
    ),
    ("an_admins_own_save_is_left_alone", an_admins_own_save_is_left_alone),
];

const SAVE: &str = "/var/lib/xen/save";

/// The number of the first of these lines that contains all of `parts`.
fn line_with(lines: &[&str], parts: &[&str]) -> Result<usize> {
    let found = lines.iter().position(|line| parts.iter().all(|part| line.contains(part)));
    found.with_context(|| format!("no line with {parts:?} in:\n{}", lines.join("\n")))
}

/// 18: `xl save` writes a file that everyone can read and syncs nothing.
fn an_image_is_private_and_durable(bench: &Bench<'_>) -> Result<()> {
    let trace = |file: &str| format!("strace -f -y -qq -e trace=fsync,fdatasync,rename -o {file}");
    bench.auto(&[("alpha", Kind::Pv, "")])?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 2)?;
    bench.ok(&format!("umask 022; {} xl save -c alpha /tmp/alpha.img", trace("/tmp/xl")))?;
    ensure!(bench.ok("stat -c %a /tmp/alpha.img")? == "644\n", "xl's image is private");
    ensure!(!bench.read("/tmp/xl")?.contains("sync("), "xl syncs its image");

    let output = bench.run(&format!("umask 022; {} {PROGRAM} stop", trace("/tmp/ours")))?;
    ensure!(output.status == 0, "stop ended with {}", output.status);
    ensure!(bench.ok(&format!("stat -c %a {SAVE} {SAVE}/alpha"))? == "700\n600\n", "others can read the image");
    let calls = bench.read("/tmp/ours")?;
    let calls: Vec<_> = calls.lines().collect();
    let synced = line_with(&calls, &["fsync(", &format!("<{SAVE}/.alpha.")])?;
    let named = line_with(&calls, &["rename(", &format!("\"{SAVE}/alpha\"")])?;
    // The directory is synced for the image's record before that, too.
    let directory = named + line_with(&calls[named..], &["fsync(", &format!("<{SAVE}>")])?;
    ensure!(synced < named && named < directory, "not in this order:\n{}", calls.join("\n"));
    Ok(())
}

/// 18: `xl save` truncates what is there before it begins, and leaves the part that it has written.
fn an_older_image_is_never_truncated(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&[("alpha", Kind::Pv, "")])?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 2)?;
    bench.xendomains("stop", 0)?;
    let before = bench.ok(&format!("sha256sum < {SAVE}/alpha"))?;
    // Restored by hand, so that its image stays; a limit on the size of files then breaks the next save off.
    bench.ok(&format!("cp {SAVE}/alpha /tmp/alpha.img && xl restore {SAVE}/alpha"))?;
    let output = bench.run("ulimit -f 20480; xl save alpha /tmp/alpha.img")?;
    ensure!(output.status != 0, "xl could write the whole image");
    ensure!(bench.ok("sha256sum < /tmp/alpha.img")? != before, "xl has left the older image alone");
    bench.expect_guests(&["alpha"])?;

    let output = bench.run(&format!("ulimit -f 20480; {PROGRAM} stop"))?;
    ensure!(output.status == 1, "stop ended with {}", output.status);
    let kept = bench.ok(&format!("for file in {SAVE}/.alpha.*; do sha256sum < \"$file\"; done"))?;
    ensure!(kept.contains(&before), "the older image is gone: {:?}", bench.files(SAVE)?);
    Ok(())
}

/// 17: the first guest that can't be asked ends `xl shutdown --all`, here one that is paused and so can't answer.
fn one_that_does_not_answer_keeps_no_other_from_being_asked(bench: &Bench<'_>) -> Result<()> {
    bench.settings("XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN=\n")?;
    // The guest with the lowest domain id is asked first.
    for name in ["mute", "alpha"] {
        bench.write(&format!("/tmp/{name}.cfg"), &xl_cfg(name, Kind::Pv, ""))?;
        bench.ok(&format!("xl create /tmp/{name}.cfg"))?;
        bench.wait_for_tick(name, 2)?;
    }
    bench.ok("xl pause mute")?;
    let output = bench.run("xl shutdown --all --wait")?;
    ensure!(output.status != 0, "xl has asked all guests");
    bench.expect_guests(&["mute", "alpha"])?;

    bench.run(&format!("{PROGRAM} stop"))?;
    bench.expect_guests(&[])
}

/// 19: the watchdog of upstream's script ends the first `xl save` that it finds.
fn an_admins_own_save_is_left_alone(bench: &Bench<'_>) -> Result<()> {
    bench.settings(
        "XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\nXENDOMAINS_STOP_MAXWAIT=1\n",
    )?;
    bench.auto(&[("alpha", Kind::Pv, "")])?;
    bench.xendomains("start", 0)?;
    bench.write("/tmp/mine.cfg", &xl_cfg("mine", Kind::Pv, ""))?;
    bench.ok("xl create /tmp/mine.cfg")?;
    for name in ["alpha", "mine"] {
        bench.wait_for_tick(name, 2)?;
    }
    let command = format!("xl save mine /tmp/mine.img & {PROGRAM} stop; echo stop: $?; wait $!; echo save: $?");
    // Its own save was ended by the limit of a second, and by nothing else.
    expect(&bench.ok(&command)?, &["stop: 1\n", "save: 0\n"])?;
    bench.expect_guests(&["alpha"])?;
    let before = bench.ticks("mine")?;
    bench.ok("xl restore /tmp/mine.img")?;
    bench.expect_continued("mine", before)
}
