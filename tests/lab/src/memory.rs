//! Memory that dom0 gives back for guests, and the lock that `xl create` and we hold meanwhile.

use anyhow::{Context, Result, ensure};

use crate::bench::{Bench, Kind, PROGRAM, expect, xl_cfg};
use crate::scenarios::Scenario;

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("memory_comes_from_dom0", memory_comes_from_dom0),
    ("memory_for_too_large_a_guest_is_refused", memory_for_too_large_a_guest_is_refused),
    ("memory_lock_of_xl_is_respected_both_ways", memory_lock_of_xl_is_respected_both_ways),
];

/// What the lab gives to dom0, MiB.
const DOM0: u64 = 1024;

/// Lets dom0 give memory back: the lab's `dom0_mem` would keep it from that.
fn autoballoon(bench: &Bench<'_>) -> Result<()> {
    bench.ok("echo 'autoballoon = \"on\"' >> /etc/xen/xl.conf").map(drop)
}

/// A guest with another amount of memory, MiB.
fn sized(name: &str, kind: Kind, mib: u64) -> String {
    xl_cfg(name, kind, "").replace("memory = 128", &format!("memory = {mib}"))
}

/// Memory that nobody uses, MiB.
fn free(bench: &Bench<'_>) -> Result<u64> {
    let text = bench.ok("xl info free_memory")?;
    text.trim().parse().with_context(|| format!("xl info free_memory says {text:?}"))
}

/// dom0's memory, MiB.
fn dom0(bench: &Bench<'_>) -> Result<u64> {
    let text = bench.ok("xl list 0 | awk 'NR == 2 { print $3 }'")?;
    text.trim().parse().with_context(|| format!("xl list shows {text:?}"))
}

/// Has xl make a guest that leaves about this much memory free, MiB. It never runs; PVH, because that is built fastest.
fn fill(bench: &Bench<'_>, name: &str, left: u64) -> Result<()> {
    let free = free(bench)?;
    ensure!(free > left, "only {free} MiB are free");
    bench.write(&format!("/tmp/{name}.cfg"), &sized(name, Kind::Pvh, free - left))?;
    bench.ok(&format!("xl create -q -p /tmp/{name}.cfg")).map(drop)
}

/// Created and restored guests take from dom0 what they lack, several at once as well.
fn memory_comes_from_dom0(bench: &Bench<'_>) -> Result<()> {
    autoballoon(bench)?;
    bench.settings("XENDOMAINS_START_JOBS=2\nXENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN_ALL=\n")?;
    bench.auto(&[("alpha", Kind::Pv, ""), ("beta", Kind::Pv, "")])?;
    fill(bench, "filler", 100)?;
    let (free_before, dom0_before) = (free(bench)?, dom0(bench)?);
    ensure!(free_before < 200 && dom0_before == DOM0, "{free_before} MiB are free, dom0 has {dom0_before}");
    bench.xendomains("start", 0)?;
    bench.expect_guests(&["alpha", "beta", "filler"])?;
    // 128 MiB and the little that a PV guest costs besides, twice; no more than that was taken.
    let taken = dom0_before - dom0(bench)?;
    let lacked = 2 * 128 - free_before;
    ensure!((lacked..lacked + 32).contains(&taken), "dom0 gave {taken} MiB where {lacked} were missing");
    bench.wait_for_tick("alpha", 3)?;
    bench.wait_for_tick("beta", 3)?;

    bench.xendomains("stop", 0)?;
    bench.expect_guests(&["filler"])?;
    fill(bench, "more", 20)?;
    let dom0_before = dom0(bench)?;
    let before = [bench.ticks("alpha")?, bench.ticks("beta")?];
    bench.xendomains("start", 0)?;
    bench.expect_continued("alpha", before[0])?;
    bench.expect_continued("beta", before[1])?;
    let taken = dom0_before - dom0(bench)?;
    ensure!(taken > 200, "dom0 gave {taken} MiB for two guests of 128 MiB");
    Ok(())
}

/// A guest that is too large costs neither dom0 nor the others anything.
fn memory_for_too_large_a_guest_is_refused(bench: &Bench<'_>) -> Result<()> {
    autoballoon(bench)?;
    bench.auto(&[("beta", Kind::Pv, "")])?;
    bench.write("/etc/xen/auto/alpha.cfg", &sized("alpha", Kind::Pv, 6000))?;
    let said = bench.xendomains("start", 1)?;
    expect(&said, &["alpha: start FAILED", "not enough memory for alpha: needs 60", "dom0 can't give more"])?;
    bench.expect_guests(&["beta"])?;
    ensure!(dom0(bench)? == DOM0, "dom0 has {} MiB", dom0(bench)?);
    let target = bench.run("xenstore-read /local/domain/0/memory/target")?.stdout;
    ensure!(target.trim().is_empty() || target.trim() == "1048576", "dom0's target is {target}");
    bench.wait_for_tick("beta", 1)?;
    // As the lab's hosts are: dom0 keeps its memory, and nobody locks anything.
    bench.xendomains("stop", 0)?;
    bench.ok("sed -i /autoballoon/d /etc/xen/xl.conf && rm /var/lock/xl /etc/xen/auto/beta.cfg")?;
    let said = bench.xendomains("start", 1)?;
    expect(&said, &["alpha: start FAILED", "libxl"])?;
    // beta's image is restored.
    bench.expect_guests(&["beta"])?;
    bench.ok("test ! -e /var/lock/xl").map(drop)
}

/// In a shell: waits until /proc/locks has such a line about xl's lock.
fn until_locks_show(line: &str) -> String {
    let look = format!("grep -qe \"{line} .*:$(stat -c %i /var/lock/xl) 0 EOF\" /proc/locks");
    format!("for i in $(seq 200); do {look} && break; sleep 0.1; done")
}

/// Whoever comes second waits for xl's lock, says so if it is us, and both succeed.
fn memory_lock_of_xl_is_respected_both_ways(bench: &Bench<'_>) -> Result<()> {
    autoballoon(bench)?;
    // Large enough to take a while.
    let large = free(bench)? - 400;
    bench.ok(": >> /var/lock/xl")?;
    let (held, waited_for) = (until_locks_show("[0-9]: POSIX"), until_locks_show("-> POSIX"));

    // xl is first.
    bench.write("/tmp/large.cfg", &sized("large", Kind::Pv, large))?;
    bench.auto(&[("alpha", Kind::Pv, "")])?;
    let said = bench.ok(&format!(
        "xl create -q /tmp/large.cfg & xl=$!; {held}; {PROGRAM} start; code=$?; echo xl is $xl; wait $xl && exit $code"
    ))?;
    let xl = said.rsplit("xl is ").next().unwrap_or_default().trim();
    expect(
        &said,
        &["alpha: started", &format!("alpha: waits for xl's lock /var/lock/xl, held by process {xl}\n")],
    )?;
    bench.expect_guests(&["alpha", "large"])?;
    bench.wait_for_tick("alpha", 1)?;
    bench.ok("xl destroy large && xl destroy alpha")?;

    // We are first.
    bench.ok("mv /tmp/large.cfg /etc/xen/auto/alpha.cfg")?;
    bench.write("/tmp/small.cfg", &sized("small", Kind::Pv, 128))?;
    let said = bench.ok(&format!(
        "{PROGRAM} start & us=$!; {held}; xl create -q /tmp/small.cfg & xl=$!; {waited_for}; \
         grep POSIX /proc/locks; xl list; wait $us && wait $xl"
    ))?;
    let meanwhile = said.split("large: started").next().unwrap_or_default();
    expect(meanwhile, &["-> POSIX"])?;
    ensure!(!meanwhile.contains("small"), "xl did not wait for us:\n{said}");
    bench.expect_guests(&["large", "small"])?;
    bench.wait_for_tick("small", 1)
}
