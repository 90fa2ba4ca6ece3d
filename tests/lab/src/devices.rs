//! Guests whose disks and bridges are not there yet when the host boots.

use anyhow::{Result, ensure};

use crate::bench::{Bench, Kind, PROGRAM, expect};
use crate::scenarios::Scenario;

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("devices_that_come_late_are_waited_for", devices_that_come_late_are_waited_for),
    ("devices_that_never_come_cost_only_their_guests", devices_that_never_come_cost_only_their_guests),
    ("a_saved_guest_waits_for_its_disk", a_saved_guest_waits_for_its_disk),
];

/// One guest on a block device whose link is made later, one on a file system that is mounted and a bridge that is made
/// later, and one that needs nothing. By their names the last one would have its turn last.
const GUESTS: &[(&str, Kind, &str)] = &[
    ("alpha", Kind::Pv, "disk = [\"/dev/late/alpha,raw,xvda,w\"]\n"),
    ("beta", Kind::Pv, "disk = [\"/srv/late/beta.img,raw,xvda,w\"]\nvif = [\"bridge=late0\"]\n"),
    ("gamma", Kind::Pv, ""),
];

/// What makes it appear.
const LINK: &str = "mkdir -p /dev/late && ln -s /dev/loop7 /dev/late/alpha";
const MOUNT: &str = "mount -o loop /var/tmp/late.ext4 /srv/late";
const BRIDGE: &str = "ip link add late0 type bridge && ip link set late0 up";

/// Prepares everything but what the names of the guests' devices lead to.
fn prepare(bench: &Bench<'_>, device_wait: u32) -> Result<()> {
    bench.settings(&format!("XENDOMAINS_DEVICE_WAIT={device_wait}\n"))?;
    bench.auto(GUESTS)?;
    bench.ok("truncate -s 16M /var/tmp/alpha.img && losetup /dev/loop7 /var/tmp/alpha.img")?;
    bench.ok("truncate -s 64M /var/tmp/late.ext4 && mkfs.ext4 -q /var/tmp/late.ext4 && mkdir /srv/late")?;
    bench.ok(&format!("{MOUNT} && truncate -s 16M /srv/late/beta.img && umount /srv/late"))?;
    Ok(())
}

/// `start`, beside which something is done after some seconds; it must end with 0.
fn start_while(bench: &Bench<'_>, seconds: u32, later: &str) -> Result<String> {
    let output = bench.run(&format!(
        "(sleep {seconds}; {later}) > /tmp/later.log 2>&1 & {PROGRAM} start; CODE=$?; wait; exit $CODE"
    ))?;
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(
        output.status == 0,
        "start ended with {} and said:\n{said}\n{}",
        output.status,
        bench.read("/tmp/later.log")?
    );
    Ok(said)
}

/// Guests wait for their own devices only.
fn devices_that_come_late_are_waited_for(bench: &Bench<'_>) -> Result<()> {
    prepare(bench, 30)?;
    let said = start_while(bench, 10, &format!("{LINK}; {MOUNT}; {BRIDGE}"))?;
    let started = |name: &str| said.find(&format!("{name}: started"));
    ensure!(
        started("gamma") < started("alpha") && started("gamma") < started("beta") && started("gamma").is_some(),
        "gamma was held up:\n{said}"
    );
    bench.expect_guests(&["alpha", "beta", "gamma"])?;
    for (name, count) in [("alpha", 1), ("beta", 1), ("gamma", 1)] {
        bench.wait_for_tick(name, count)?;
    }
    // 16 MiB in sectors of 512 bytes.
    expect(&bench.console("alpha")?, &["alpha disk xvda 32768"])?;
    expect(&bench.console("beta")?, &["beta disk xvda 32768", "beta net eth0"])?;
    expect(&bench.ok("ip link show master late0")?, &["vif"])
}

/// The time is over: that is the failure of the guests that have waited, by the names of what they have waited for.
fn devices_that_never_come_cost_only_their_guests(bench: &Bench<'_>) -> Result<()> {
    prepare(bench, 2)?;
    let said = bench.xendomains("start", 1)?;
    expect(
        &said,
        &[
            "alpha: start FAILED",
            "disk xvda: /dev/late/alpha",
            "beta: start FAILED",
            "disk xvda: /srv/late/beta.img",
            "bridge late0",
            "gamma: started",
        ],
    )?;
    bench.expect_guests(&["gamma"])?;
    bench.ok(&format!("{LINK} && {MOUNT} && {BRIDGE}"))?;
    bench.xendomains("start", 0)?;
    bench.expect_guests(&["alpha", "beta", "gamma"])
}

/// A saved guest goes on with its disk, so it waits for it too.
fn a_saved_guest_waits_for_its_disk(bench: &Bench<'_>) -> Result<()> {
    prepare(bench, 30)?;
    bench.ok(&format!("rm /etc/xen/auto/beta.cfg && {LINK}"))?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 2)?;
    bench.xendomains("stop", 0)?;
    let before = [bench.ticks("alpha")?, bench.ticks("gamma")?];
    bench.ok("rm -r /dev/late")?;
    let said = start_while(bench, 10, LINK)?;
    expect(&said, &["alpha: restored", "gamma: restored"])?;
    ensure!(said.find("gamma: restored") < said.find("alpha: restored"), "gamma was held up:\n{said}");
    bench.expect_continued("alpha", before[0])?;
    bench.expect_continued("gamma", before[1])
}
