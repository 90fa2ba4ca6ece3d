//! What the program must do on a real Xen host.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::bench::{Bench, Kind, PROGRAM, expect, xl_cfg};

/// What a scenario is: a host to work on, and an error when it is not as it should be.
pub type Scenario = fn(&Bench<'_>) -> Result<()>;

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("start_creates_stop_saves_start_restores", start_creates_stop_saves_start_restores),
    ("starting_twice_starts_nothing_twice", starting_twice_starts_nothing_twice),
    ("without_save_guests_are_shut_down", without_save_guests_are_shut_down),
    ("our_image_is_restored_by_xl", our_image_is_restored_by_xl),
    ("an_image_of_xl_is_restored_by_us", an_image_of_xl_is_restored_by_us),
    ("a_guest_of_ours_obeys_xl", a_guest_of_ours_obeys_xl),
    ("no_process_and_no_periodic_wakeup", no_process_and_no_periodic_wakeup),
    ("mistakes_in_the_settings_leave_no_guest_behind", mistakes_in_the_settings_leave_no_guest_behind),
    ("a_broken_guest_config_costs_only_itself", a_broken_guest_config_costs_only_itself),
    ("unreadable_images_are_named_and_kept", unreadable_images_are_named_and_kept),
    ("a_full_save_directory_means_shutdown", a_full_save_directory_means_shutdown),
    ("a_save_that_breaks_off_leaves_the_guest_running", a_save_that_breaks_off_leaves_the_guest_running),
    ("a_save_past_its_limit_is_aborted", a_save_past_its_limit_is_aborted),
    ("a_deaf_guest_is_reported_after_its_limit", a_deaf_guest_is_reported_after_its_limit),
    ("auto_only_leaves_the_others_alone", auto_only_leaves_the_others_alone),
    ("paused_guests_are_stopped_too", paused_guests_are_stopped_too),
    ("sysrq_reaches_the_guest", sysrq_reaches_the_guest),
    ("not_root_and_not_xen", not_root_and_not_xen),
];

/// Where images go.
pub const SAVE: &str = "/var/lib/xen/save";
/// PV guests, which the emulator handles best. What is special to PVH has a scenario of its own.
const TRIO: &[(&str, Kind, &str)] = &[("alpha", Kind::Pv, ""), ("beta", Kind::Pv, ""), ("gamma", Kind::Pv, "")];

fn wait_for(bench: &Bench<'_>, names: &[&str], count: u64) -> Result<()> {
    names.iter().try_for_each(|name| bench.wait_for_tick(name, count))
}

fn guests(status: &Value) -> Result<&Vec<Value>> {
    status.get("guests").and_then(Value::as_array).context("status --json has no guests")
}

/// The main job: create, list, save, restore, with the guests' counters going on.
fn start_creates_stop_saves_start_restores(bench: &Bench<'_>) -> Result<()> {
    let names = ["alpha", "beta", "gamma"];
    bench.auto(TRIO)?;
    bench.xendomains("status", 3)?;
    expect(&bench.xendomains("start", 0)?, &names)?;
    bench.expect_guests(&names)?;
    wait_for(bench, &names, 3)?;
    expect(&bench.xendomains("status", 0)?, &names)?;
    let status = bench.status(0)?;
    ensure!(guests(&status)?.len() == 3, "status --json does not list three guests: {status}");

    expect(&bench.xendomains("stop", 0)?, &names)?;
    bench.expect_guests(&[])?;
    ensure!(bench.files(SAVE)? == names, "images: {:?}", bench.files(SAVE)?);
    let modes = bench.ok(&format!("stat -c '%a' {SAVE} {SAVE}/*"))?;
    ensure!(modes == "700\n600\n600\n600\n", "modes of directory and images are {modes:?}");
    let before = names.map(|name| bench.ticks(name));
    bench.xendomains("status", 3)?;

    expect(&bench.xendomains("start", 0)?, &names)?;
    bench.expect_guests(&names)?;
    ensure!(bench.files(SAVE)?.is_empty(), "left in {SAVE}: {:?}", bench.files(SAVE)?);
    for (name, before) in names.iter().zip(before) {
        bench.expect_continued(name, before?)?;
    }
    bench.xendomains("status", 0)?;
    Ok(())
}

fn starting_twice_starts_nothing_twice(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&TRIO[..2])?;
    // The same guest under a second file name is still one guest.
    bench.write("/etc/xen/auto/second-alpha", &xl_cfg("alpha", Kind::Pv, ""))?;
    bench.xendomains("start", 0)?;
    let before = bench.ok("xl list")?;
    bench.xendomains("start", 0)?;
    let ids = |list: &str| -> Vec<String> {
        list.lines().map(|l| l.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect()
    };
    let after = bench.ok("xl list")?;
    ensure!(ids(&before) == ids(&after), "domains changed:\n{before}{after}");
    // Two at the same time: one works, the other says so or finds nothing left to do.
    bench.xendomains("stop", 0)?;
    bench.run(&format!("{PROGRAM} start & {PROGRAM} start; wait"))?;
    bench.expect_guests(&["alpha", "beta"])
}

fn without_save_guests_are_shut_down(bench: &Bench<'_>) -> Result<()> {
    bench.settings("XENDOMAINS_SAVE=\"\"\n")?;
    bench.auto(TRIO)?;
    bench.xendomains("start", 0)?;
    wait_for(bench, &["alpha", "beta", "gamma"], 1)?;
    let said = bench.xendomains("stop", 0)?;
    expect(&said, &["alpha", "beta", "gamma"])?;
    bench.expect_guests(&[])?;
    ensure!(bench.files(SAVE)?.is_empty(), "images were written though SAVE is empty");
    Ok(())
}

fn our_image_is_restored_by_xl(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&TRIO[..2])?;
    bench.xendomains("start", 0)?;
    wait_for(bench, &["alpha", "beta"], 3)?;
    bench.xendomains("stop", 0)?;
    for name in ["alpha", "beta"] {
        let before = bench.ticks(name)?;
        bench.ok(&format!("xl restore {SAVE}/{name}"))?;
        bench.expect_continued(name, before)?;
    }
    bench.expect_guests(&["alpha", "beta"])
}

fn an_image_of_xl_is_restored_by_us(bench: &Bench<'_>) -> Result<()> {
    bench.ok(&format!("mkdir -p -m 700 {SAVE}"))?;
    for (name, kind, _) in &TRIO[..2] {
        bench.write(&format!("/tmp/{name}.cfg"), &xl_cfg(name, *kind, ""))?;
        bench.ok(&format!("xl create /tmp/{name}.cfg"))?;
        bench.wait_for_tick(name, 3)?;
        bench.ok(&format!("xl save {name} {SAVE}/{name}"))?;
    }
    let before = [bench.ticks("alpha")?, bench.ticks("beta")?];
    expect(&bench.xendomains("start", 0)?, &["alpha", "beta"])?;
    bench.expect_guests(&["alpha", "beta"])?;
    bench.expect_continued("alpha", before[0])?;
    bench.expect_continued("beta", before[1])
}

fn a_guest_of_ours_obeys_xl(bench: &Bench<'_>) -> Result<()> {
    bench.auto(TRIO)?;
    bench.xendomains("start", 0)?;
    wait_for(bench, &["alpha", "beta", "gamma"], 2)?;
    // A terminal for `xl console`, which ends when its input does.
    let console = bench.ok("timeout 5 script -qec 'xl console beta' /dev/null < /dev/null || true")?;
    expect(&console, &["beta tick"])?;
    bench.ok("xl save alpha /tmp/alpha.img")?;
    bench.ok("xl shutdown -w beta")?;
    bench.ok("xl destroy gamma")?;
    let left: Vec<String> = bench.xl_names()?;
    ensure!(!left.iter().any(|name| name == "alpha" || name == "gamma"), "still listed: {left:?}");
    if left.contains(&"beta".to_owned()) {
        // Nobody watches it yet, so it keeps its memory until the next stop; it must have shut down, though.
        let list = bench.ok("xl list beta")?;
        ensure!(list.contains("---s--"), "beta has not shut down:\n{list}");
        bench.xendomains("stop", 0)?;
        bench.expect_guests(&[])?;
    }
    let before = bench.ticks("alpha")?;
    bench.ok("xl restore /tmp/alpha.img")?;
    bench.expect_continued("alpha", before)
}

/// The processes that libxl itself starts; anything else is one of ours.
const LIBXL_STARTS: &[&str] = &[
    "libxl-save-helper",
    "/etc/xen/scripts/",
    "qemu",
    // What the hotplug scripts run is theirs: found by its parent, see `foreign_processes`.
];

/// The programs executed by the process tree of a strace, without those started by libxl's scripts.
fn foreign_processes(strace: &str) -> Vec<String> {
    let mut theirs: Vec<&str> = Vec::new();
    let mut foreign = Vec::new();
    for line in strace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(call) = rest.find("execve(\"").map(|at| &rest[at + 8..]) {
            let program = call.split('"').next().unwrap_or_default();
            if LIBXL_STARTS.iter().any(|known| program.contains(known)) {
                theirs.push(pid);
            } else if !theirs.contains(&pid) && program != PROGRAM {
                foreign.push(program.to_owned());
            }
        } else if theirs.contains(&pid) && ["fork", "clone"].iter().any(|call| rest.contains(call)) {
            let child = rest.rsplit("= ").next().and_then(|c| c.split_whitespace().next()).unwrap_or_default();
            if !child.is_empty() && child.chars().all(|c| c.is_ascii_digit()) {
                theirs.push(child);
            }
        }
    }
    foreign
}

fn no_process_and_no_periodic_wakeup(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&TRIO[..2])?;
    for (step, code) in [("start", 0), ("status", 0), ("stop", 0), ("start", 0)] {
        let trace = format!("/tmp/{step}.strace");
        let command = format!(
            "strace -f -qq -ttt -e trace=execve,fork,vfork,clone,clone3,poll,ppoll,select,pselect6,nanosleep,\
             clock_nanosleep,futex -o {trace} {PROGRAM} {step}"
        );
        let output = bench.run(&command)?;
        ensure!(output.status == code, "{step} under strace ended with {}", output.status);
        let text = bench.read(&trace)?;
        let untimed: String = text
            .lines()
            .filter_map(|line| {
                let (pid, rest) = line.split_once(char::is_whitespace)?;
                let (_, call) = rest.trim_start().split_once(' ')?;
                Some(format!("{pid} {call}\n"))
            })
            .collect();
        let foreign = foreign_processes(&untimed);
        ensure!(foreign.is_empty(), "{step} started {foreign:?}");
        let helpers = helper_pids(&untimed);
        let sleeps: Vec<&str> = untimed
            .lines()
            .filter(|l| !helpers.iter().any(|p| l.starts_with(&format!("{p} "))))
            .filter(|l| l.contains("nanosleep("))
            .collect();
        ensure!(sleeps.is_empty(), "{step} sleeps:\n{}", sleeps.join("\n"));
        // A wait that times out and is made again is polling.
        let timeouts = untimed
            .lines()
            .filter(|l| !helpers.iter().any(|p| l.starts_with(&format!("{p} "))))
            .filter(|l| l.contains("ETIMEDOUT") || (l.contains("poll") && l.contains("= 0 (Timeout)")))
            .count();
        ensure!(timeouts <= 2, "{step} woke up {timeouts} times because a wait had timed out");
        wait_for(bench, &["alpha", "beta"], 1)?;
    }
    Ok(())
}

/// The processes that execute something else than the program: libxl's helpers and what they start.
fn helper_pids(untimed: &str) -> Vec<String> {
    untimed
        .lines()
        .filter(|l| l.contains("execve(\"") && !l.contains(PROGRAM))
        .filter_map(|l| l.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

fn mistakes_in_the_settings_leave_no_guest_behind(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&TRIO[..1])?;
    for (lines, what, start) in [
        ("XENDOMAINS_SAVE=\"/var/lib/xen/save\n", "/etc/default/xendomains:4", 6),
        ("if true; then XENDOMAINS_SAVE=; fi\n", "/etc/default/xendomains:4", 6),
        ("XENDOMAINS_STOP_MAXWAIT=soon\n", "XENDOMAINS_STOP_MAXWAIT", 1),
        ("XENDOMAINS_AUTO=$(ls)\n", "/etc/default/xendomains:4", 6),
        ("XENDOMAINS_SHUTDOWN=\"--hlat\"\n", "--hlat", 1),
        ("XENDOMAINS_MIGRATE=\"b --ssl\"\r\n", "--ssl", 1),
    ] {
        bench.settings("")?;
        bench.xendomains("start", 0)?;
        bench.settings(lines)?;
        expect(&bench.xendomains("start", start)?, &[what])?;
        expect(&bench.xendomains("stop", 1)?, &[what, "alpha: saved"])?;
        bench.expect_guests(&[])?;
        bench.xendomains("start", start)?;
    }
    expect(&bench.xendomains("--config /nonexistent start", 6)?, &["/nonexistent"])?;
    bench.settings("")?;
    bench.xendomains("start", 0)?;
    bench.ok("rm /etc/default/xendomains")?;
    bench.xendomains("start", 6)?;
    bench.expect_guests(&["alpha"])?;
    expect(&bench.xendomains("stop", 1)?, &["no settings file", "alpha: saved"])?;
    bench.expect_guests(&[])?;
    expect(&bench.xendomains("stop", 0)?, &["no settings file"])?;
    bench.xendomains("halt", 2)?;
    Ok(())
}

fn a_broken_guest_config_costs_only_itself(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&TRIO[..2])?;
    let broken = "name = \"broken\"\nmemory = = 3\n";
    bench.write("/etc/xen/auto/broken.cfg", broken)?;
    bench.write(
        "/etc/xen/auto/nokernel.cfg",
        &xl_cfg("nokernel", Kind::Pv, "").replace("/vmlinux", "/no-such-kernel"),
    )?;
    bench.write("/etc/xen/auto/alpha.cfg~", &xl_cfg("leftover", Kind::Pv, ""))?;
    bench.ok("mkdir /etc/xen/auto/folder && ln -s /nowhere /etc/xen/auto/dangling")?;
    let said = bench.xendomains("start", 1)?;
    expect(
        &said,
        &["/etc/xen/auto/broken.cfg:2", "nokernel", "no-such-kernel", "alpha.cfg~", "folder", "dangling"],
    )?;
    bench.expect_guests(&["alpha", "beta"])?;
    bench.xendomains("status", 1)?;
    Ok(())
}

fn unreadable_images_are_named_and_kept(bench: &Bench<'_>) -> Result<()> {
    bench.auto(TRIO)?;
    bench.xendomains("start", 0)?;
    wait_for(bench, &["alpha", "beta", "gamma"], 2)?;
    bench.xendomains("stop", 0)?;
    // alpha's is cut off in the middle, beta's is cut in its header; gamma's is whole. Others are not ours at all.
    bench.ok(&format!("truncate -s 30M {SAVE}/alpha && truncate -s 40 {SAVE}/beta"))?;
    bench.write(&format!("{SAVE}/old"), "LinuxGuestRecord\0\0\0\x10(vm (name old))")?;
    bench.write(&format!("{SAVE}/notes"), "remember the milk\n")?;
    bench.ok(&format!("mkdir {SAVE}/lost+found"))?;
    let before = bench.ticks("gamma")?;
    let said = bench.xendomains("start", 1)?;
    expect(&said, &["alpha", "beta", "old", "notes"])?;
    bench.expect_continued("gamma", before)?;
    // A guest whose image can't be restored is not booted over it.
    bench.expect_guests(&["gamma"])?;
    ensure!(
        bench.files(SAVE)? == ["alpha", "beta", "lost+found", "notes", "old"],
        "left: {:?}",
        bench.files(SAVE)?
    );
    bench.xendomains("status", 1)?;
    Ok(())
}

fn a_full_save_directory_means_shutdown(bench: &Bench<'_>) -> Result<()> {
    bench.ok(&format!("mkdir -p {SAVE} && mount -t tmpfs -o size=300m,mode=700 tmpfs {SAVE}"))?;
    bench.auto(&TRIO[..2])?;
    bench.xendomains("start", 0)?;
    wait_for(bench, &["alpha", "beta"], 1)?;
    bench.ok(&format!("dd if=/dev/zero of={SAVE}/ballast bs=1M count=250 status=none"))?;
    let said = bench.xendomains("stop", 1)?;
    expect(&said, &["alpha", "beta", SAVE])?;
    bench.expect_guests(&[])?;
    ensure!(bench.files(SAVE)? == ["ballast"], "left behind: {:?}", bench.files(SAVE)?);
    Ok(())
}

/// The room was there when it was checked, but the image can't be written to its end: a limit on the size of files
/// ends the save helper with a signal in the middle of the stream.
fn a_save_that_breaks_off_leaves_the_guest_running(bench: &Bench<'_>) -> Result<()> {
    bench.settings("XENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n")?;
    bench.auto(&TRIO[..2])?;
    bench.xendomains("start", 0)?;
    wait_for(bench, &["alpha", "beta"], 2)?;
    let before = [bench.ticks("alpha")?, bench.ticks("beta")?];
    let output = bench.run(&format!("ulimit -f 20480; {PROGRAM} stop"))?;
    ensure!(output.status == 1, "stop ended with {}", output.status);
    expect(&format!("{}{}", output.stdout, output.stderr), &["alpha", "beta"])?;
    bench.expect_guests(&["alpha", "beta"])?;
    ensure!(bench.files(SAVE)?.is_empty(), "a partial image was left: {:?}", bench.files(SAVE)?);
    bench.expect_continued("alpha", before[0])?;
    bench.expect_continued("beta", before[1])
}

fn a_save_past_its_limit_is_aborted(bench: &Bench<'_>) -> Result<()> {
    // A 1 s limit is far below what writing 128 MiB takes here; the shutdown that follows gets its own second.
    bench.settings("XENDOMAINS_STOP_MAXWAIT=1\nXENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n")?;
    bench.auto(&TRIO[..1])?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 2)?;
    let before = bench.ticks("alpha")?;
    let said = bench.xendomains("stop", 1)?;
    expect(&said, &["alpha"])?;
    bench.expect_guests(&["alpha"])?;
    ensure!(bench.files(SAVE)?.is_empty(), "a partial image was left: {:?}", bench.files(SAVE)?);
    bench.expect_continued("alpha", before)
}

fn a_deaf_guest_is_reported_after_its_limit(bench: &Bench<'_>) -> Result<()> {
    bench.settings("XENDOMAINS_SAVE=\nXENDOMAINS_STOP_MAXWAIT=5\nXENDOMAINS_SHUTDOWN_ALL=\n")?;
    bench.auto(&TRIO[..2])?;
    let deaf = xl_cfg("deaf", Kind::Pv, "").replace("guest=deaf", "guest=deaf ignore_shutdown");
    bench.write("/etc/xen/auto/deaf.cfg", &deaf)?;
    bench.xendomains("start", 0)?;
    wait_for(bench, &["alpha", "beta", "deaf"], 1)?;
    let said = bench.xendomains("stop", 1)?;
    expect(&said, &["deaf"])?;
    bench.expect_guests(&["deaf"])
}

fn auto_only_leaves_the_others_alone(bench: &Bench<'_>) -> Result<()> {
    bench.settings("XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN_ALL=\n")?;
    bench.auto(&TRIO[..1])?;
    // A neighbour's broken file must not widen the choice, as it does with the script.
    bench.write("/etc/xen/auto/zz.bak", "nonsense")?;
    bench.write("/tmp/alpha-test.cfg", &xl_cfg("alpha-test", Kind::Pv, ""))?;
    bench.ok("xl create /tmp/alpha-test.cfg")?;
    bench.xendomains("start", 0)?;
    wait_for(bench, &["alpha", "alpha-test"], 1)?;
    bench.xendomains("stop", 0)?;
    bench.expect_guests(&["alpha-test"])?;
    ensure!(bench.files(SAVE)? == ["alpha"], "images: {:?}", bench.files(SAVE)?);
    Ok(())
}

fn paused_guests_are_stopped_too(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&TRIO[..2])?;
    bench.xendomains("start", 0)?;
    wait_for(bench, &["alpha", "beta"], 2)?;
    bench.ok("xl pause alpha && xl pause beta")?;
    let before = [bench.ticks("alpha")?, bench.ticks("beta")?];
    bench.xendomains("stop", 0)?;
    bench.expect_guests(&[])?;
    bench.xendomains("start", 0)?;
    bench.expect_continued("alpha", before[0])?;
    bench.expect_continued("beta", before[1])
}

fn sysrq_reaches_the_guest(bench: &Bench<'_>) -> Result<()> {
    bench.settings("XENDOMAINS_SYSRQ=\"s h\"\nXENDOMAINS_SAVE=\n")?;
    bench.auto(&TRIO[..1])?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 1)?;
    bench.xendomains("stop", 0)?;
    let console = bench.console("alpha")?;
    ensure!(console.to_lowercase().contains("sysrq"), "the guest's kernel has seen no SysRq");
    Ok(())
}

fn not_root_and_not_xen(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&TRIO[..1])?;
    for action in ["start", "stop"] {
        let output = bench.run(&format!("setpriv --reuid 65534 --clear-groups {PROGRAM} {action}"))?;
        ensure!(output.status == 4, "{action} as nobody ended with {}", output.status);
        expect(&output.stderr, &["root"])?;
    }
    bench.expect_guests(&[])?;
    // A machine without Xen, by hiding the hypervisor from one process.
    let hidden = |action: &str| {
        format!("unshare -m sh -c 'mount -t tmpfs tmpfs /sys/hypervisor && exec {PROGRAM} {action}'")
    };
    for (action, code) in [("start", 0), ("stop", 0), ("status", 3)] {
        let output = bench.run(&hidden(action))?;
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(output.status == code, "{action} without Xen ended with {}: {said}", output.status);
        expect(&said, &["Xen"])?;
    }
    if !bench.xl_names()?.is_empty() {
        bail!("guests were started");
    }
    Ok(())
}
