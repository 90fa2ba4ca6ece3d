//! The program as a distribution ships it: the Debian package is installed, and systemd or sysvinit drives it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::lab::Release;
use xtask::{packages, shipped};

use crate::bench::{Bench, Kind, expect};
use crate::monitor::wait_for_boot;
use crate::scenarios::{SAVE, Scenario};

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[("package_takes_guests_over_a_reboot", package_takes_guests_over_a_reboot)];

/// Those that take long.
pub const BY_NAME: &[(&str, Scenario)] = &[
    ("package_save_longer_than_systemd_waits", package_save_longer_than_systemd_waits),
    ("package_deaf_guest_does_not_hold_up_a_reboot", package_deaf_guest_does_not_hold_up_a_reboot),
    ("package_systemctl_verbs", package_systemctl_verbs),
    ("package_systemctl_while_it_stops", package_systemctl_while_it_stops),
    ("package_libvirt_is_started", package_libvirt_is_started),
    ("package_save_on_a_mount_made_by_hand", package_save_on_a_mount_made_by_hand),
    ("package_off_switch", package_off_switch),
    ("package_sysvinit", package_sysvinit),
    ("package_xen_was_upgraded", package_xen_was_upgraded),
];

const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

/// How long a host may take to go down when nothing holds it up, under emulation.
const GOING_DOWN: Duration = Duration::from_secs(300);

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The Debian package, built once.
fn deb() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    match &*built {
        Some(deb) => Ok(deb.clone()),
        None => Ok(built.insert(shipped::debian::build(workspace())?.deb).clone()),
    }
}

/// Installs the package over Debian's own xendomains, with three guests to start.
fn install(bench: &Bench<'_>) -> Result<()> {
    bench.push(&deb()?, "/root/xendomains.deb")?;
    bench.settings("XENDOMAINS_MONITOR=true\n")?;
    let settings = bench.read("/etc/default/xendomains")?;
    bench.ok("DEBIAN_FRONTEND=noninteractive dpkg -i /root/xendomains.deb")?;
    ensure!(bench.read("/etc/default/xendomains")? == settings, "the package has changed the admin's settings");
    ensure!(bench.ok("systemctl is-enabled xendomains")?.trim() == "enabled", "the unit is not enabled");
    bench.auto(&NAMES.map(|name| (name, Kind::Pv, "")))?;
    bench.expect_guests(&[])
}

fn ticks(bench: &Bench<'_>) -> Result<Vec<u64>> {
    NAMES.iter().try_for_each(|name| bench.wait_for_tick(name, 3))?;
    NAMES.iter().map(|name| bench.ticks(name)).collect()
}

fn expect_all_continued(bench: &Bench<'_>, before: &[u64]) -> Result<()> {
    bench.expect_guests(&NAMES)?;
    NAMES.iter().zip(before).try_for_each(|(name, before)| bench.expect_continued(name, *before))
}

/// What systemd says about the unit.
fn show(bench: &Bench<'_>, property: &str) -> Result<String> {
    Ok(bench.ok(&format!("systemctl show xendomains --property {property} --value"))?.trim().to_owned())
}

fn package_takes_guests_over_a_reboot(bench: &Bench<'_>) -> Result<()> {
    install(bench)?;
    bench.ok("systemctl start xendomains")?;
    let before = ticks(bench)?;
    bench.reboot("systemctl reboot", GOING_DOWN)?;
    // Nobody has done anything by hand.
    bench.ok("until systemctl is-active --quiet xendomains; do sleep 1; done")?;
    expect_all_continued(bench, &before)?;
    ensure!(bench.files(SAVE)?.is_empty(), "left in {SAVE}: {:?}", bench.files(SAVE)?);
    expect(&bench.ok("journalctl --unit xendomains --output cat")?, &["alpha: restored", "start: 3 restored"])?;
    expect(&show(bench, "StatusText")?, &["start: 3 restored"])
}

/// systemd gives a unit 90 seconds to stop, unless it says something else. The unit's own share of the disk is made so
/// small that an image takes longer than that.
fn package_save_longer_than_systemd_waits(bench: &Bench<'_>) -> Result<()> {
    install(bench)?;
    bench.settings("XENDOMAINS_STOP_MAXWAIT=900\n")?;
    bench.ok(
        "rm /etc/xen/auto/beta.cfg /etc/xen/auto/gamma.cfg; mkdir -p /etc/systemd/system/xendomains.service.d",
    )?;
    bench.write(
        "/etc/systemd/system/xendomains.service.d/slow.conf",
        "[Service]\nIOWriteBandwidthMax=/dev/vda 1M\n",
    )?;
    bench.ok("systemctl daemon-reload && systemctl start xendomains")?;
    bench.wait_for_tick("alpha", 3)?;
    let before = bench.ticks("alpha")?;
    let took = bench.reboot("systemctl reboot", Duration::from_secs(900))?;
    ensure!(took > Duration::from_secs(100), "the disk was not slow: {} s", took.as_secs());
    bench.ok("until systemctl is-active --quiet xendomains; do sleep 1; done")?;
    bench.expect_guests(&["alpha"])?;
    bench.expect_continued("alpha", before)
}

fn package_deaf_guest_does_not_hold_up_a_reboot(bench: &Bench<'_>) -> Result<()> {
    install(bench)?;
    let limits = "XENDOMAINS_STOP_MAXWAIT=20\nXENDOMAINS_STOP_TIMEOUT=60\n";
    bench.settings(&format!("XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN_ALL=\n{limits}"))?;
    bench.ok("rm /etc/xen/auto/beta.cfg /etc/xen/auto/gamma.cfg")?;
    bench.guest("deaf", Kind::Pv, "ignore_shutdown", "")?;
    bench.ok("systemctl start xendomains")?;
    ["alpha", "deaf"].iter().try_for_each(|name| bench.wait_for_tick(name, 3))?;
    let took = bench.reboot("systemctl reboot", GOING_DOWN)?;
    ensure!(took > Duration::from_secs(20), "deaf was not waited for: {} s", took.as_secs());
    bench.ok("until systemctl is-active --quiet xendomains; do sleep 1; done")?;
    bench.expect_guests(&["alpha", "deaf"])?;
    // It has been created, and may not have said so yet.
    wait_for_boot(bench, "alpha", 1)?;
    ensure!(bench.boots("alpha")? == 2, "alpha has booted {} times", bench.boots("alpha")?);
    Ok(())
}

/// The process that serves the disk of a guest, and its control group.
fn device_model(bench: &Bench<'_>, name: &str) -> Result<(String, String)> {
    let pid = bench.ok(&format!("pgrep -f -- \"-xen-domid $(xl domid {name}) \""))?;
    let pid = pid.lines().next().context("there is no device model")?.to_owned();
    let group = bench.ok(&format!("cat /proc/{pid}/cgroup"))?;
    Ok((pid, group))
}

/// With a disk that a device model in dom0 serves.
fn add_disk(bench: &Bench<'_>, name: &str) -> Result<()> {
    bench.ok(&format!("dd if=/dev/zero of=/var/tmp/{name}.raw bs=1M count=4 status=none"))?;
    let disk = format!("disk = [ \"/var/tmp/{name}.raw,raw,xvda,w,backendtype=qdisk\" ]\n");
    bench.guest(name, Kind::Pv, "disks", &disk)
}

fn expect_writes_on(bench: &Bench<'_>, name: &str) -> Result<()> {
    let before = bench.ticks(name)?;
    let writes = bench.writes(&format!("{name}.raw"), name)?;
    bench.wait_for_tick(name, before + 3)?;
    ensure!(bench.writes(&format!("{name}.raw"), name)? > writes, "{name} has lost its disk");
    Ok(())
}

fn package_systemctl_verbs(bench: &Bench<'_>) -> Result<()> {
    install(bench)?;
    add_disk(bench, "alpha")?;
    bench.ok("systemctl start xendomains")?;
    let before = ticks(bench)?;
    let (pid, group) = device_model(bench, "alpha")?;
    expect(&group, &["/xendomains-guests-"])?;

    // kill: there is no process of the unit, and the device model is none. The monitor is started again.
    let monitors = "systemctl show xendomains-monitor --value --property";
    let watches = format!("until {monitors} StatusText | grep -q 'watching 3 guests'; do sleep 1; done");
    bench.ok(&watches)?;
    let monitor = bench.ok(&format!("{monitors} MainPID"))?;
    bench.ok("systemctl kill xendomains && systemctl kill --signal KILL xendomains-monitor")?;
    bench.ok("systemctl daemon-reexec")?;
    bench.ok(&format!("until [ $({monitors} NRestarts) = 1 ]; do sleep 1; done; {watches}"))?;
    ensure!(bench.ok(&format!("{monitors} MainPID"))? != monitor, "the monitor was not killed");
    bench.ok("systemctl restart xendomains-monitor")?;
    bench.ok(&watches)?;
    ensure!(bench.ok("xendomains status")?.matches(" monitor ").count() == 3, "not all guests are watched");
    ensure!(device_model(bench, "alpha")?.0 == pid, "the device model is another one");
    expect_writes_on(bench, "alpha")?;

    // A shutdown ends what lives in login sessions after the guests.
    bench.ok("(setsid systemd-run --scope --unit session-lab.scope sleep 60) >/dev/null 2>&1 </dev/null &")?;
    bench.ok("until systemctl is-active --quiet session-lab.scope; do sleep 1; done")?;
    expect(&bench.ok("systemctl show session-lab.scope --property Before")?, &["xendomains.service"])?;
    ensure!(show(bench, "ActiveState")? == "active", "it is {}", show(bench, "ActiveState")?);

    // reload: starts what is missing and stops nothing, but not with wrong settings.
    bench.guest("late", Kind::Pv, "", "")?;
    bench.ok("systemctl start xendomains")?;
    bench.expect_guests(&NAMES)?;
    let settings = bench.read("/etc/default/xendomains")?;
    bench.write("/etc/default/xendomains", "XENDOMAINS_USLEEP=soon\n")?;
    ensure!(!bench.run("systemctl reload xendomains")?.success(), "wrong settings were not noticed");
    bench.expect_guests(&NAMES)?;
    bench.write("/etc/default/xendomains", &settings)?;
    bench.ok("systemctl reload xendomains && systemctl reload xendomains")?;
    bench.expect_guests(&["alpha", "beta", "gamma", "late"])?;
    ensure!(show(bench, "ActiveState")? == "active", "it is {}", show(bench, "ActiveState")?);
    bench.ok("rm /etc/xen/auto/late.cfg; xl destroy late")?;
    expect_all_continued(bench, &before)?;

    // A guest that can't be started: the others are stopped later all the same.
    let broken = "name = \"broken\"\nmemory = = 3\n";
    bench.write("/etc/xen/auto/broken.cfg", broken)?;
    let before = ticks(bench)?;
    bench.ok("systemctl restart xendomains")?;
    expect_all_continued(bench, &before)?;
    expect_writes_on(bench, "alpha")?;
    let status = bench.ok("systemctl status --lines 50 --no-pager xendomains")?;
    expect(&status, &["Status: \"start: 3 restored, 1 failure", "broken.cfg:2", "alpha: restored"])?;
    bench.ok("rm /etc/xen/auto/broken.cfg")?;

    bench.ok("systemctl stop xendomains")?;
    bench.expect_guests(&[])?;
    ensure!(bench.files(SAVE)? == NAMES, "images: {:?}", bench.files(SAVE)?);
    bench.ok("systemctl start xendomains && /etc/init.d/xendomains status")?;
    let before = ticks(bench)?;

    // Removed and purged, guests run on, and Debian's own is back.
    bench
        .ok("DEBIAN_FRONTEND=noninteractive dpkg -P xendomains && grep -q 'xen restore' /etc/init.d/xendomains")?;
    expect_all_continued(bench, &before)
}

fn package_systemctl_while_it_stops(bench: &Bench<'_>) -> Result<()> {
    install(bench)?;
    bench.settings("XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN_ALL=\nXENDOMAINS_STOP_MAXWAIT=0\n")?;
    bench.ok("rm /etc/xen/auto/beta.cfg /etc/xen/auto/gamma.cfg")?;
    add_disk(bench, "alpha")?;
    bench.ok("cp /etc/xen/auto/alpha.cfg /root/alpha.cfg")?;
    let deaf = bench.read("/root/alpha.cfg")?.replace("guest=alpha", "guest=alpha ignore_shutdown");
    bench.write("/etc/xen/auto/alpha.cfg", &deaf)?;
    bench.ok("systemctl start xendomains")?;
    bench.wait_for_tick("alpha", 3)?;

    // systemd is executed anew while the guest is asked to shut down, and then the stop is told to end.
    bench.ok("mkfifo /root/stopped")?;
    let stop = "systemctl stop xendomains; echo $? >/root/stopped";
    bench.ok(&format!("(setsid sh -c '{stop}') >/dev/null 2>&1 </dev/null &"))?;
    let doing = "systemctl show xendomains --property StatusText --value";
    bench.ok(&format!("until {doing} | grep 'shutting down alpha'; do sleep 1; done"))?;
    expect(&show(bench, "StatusText")?, &["0 of 1 stopped; shutting down alpha"])?;
    bench.ok("systemctl daemon-reexec && systemctl kill xendomains && cat /root/stopped")?;
    // It is known that not everything was stopped, and the guest has all that it had.
    bench.ok("until systemctl is-failed --quiet xendomains; do sleep 1; done")?;
    bench.expect_guests(&["alpha"])?;
    expect_writes_on(bench, "alpha")?;

    // A crash of start: the guests that it has started are stopped by the next stop.
    bench.settings("XENDOMAINS_CREATE_USLEEP=3600000000\n")?;
    bench.auto(&[("beta", Kind::Pv, ""), ("gamma", Kind::Pv, "")])?;
    bench.ok("systemctl start --no-block xendomains")?;
    bench.wait_for_tick("beta", 3)?;
    bench.ok("pkill -KILL -f '^/usr/sbin/xendomains start'")?;
    bench.ok("until systemctl is-active --quiet xendomains; do sleep 1; done")?;
    bench.expect_guests(&["alpha", "beta"])?;
    bench.ok("systemctl stop xendomains")?;
    bench.expect_guests(&[])?;

    // A stop during a start: what has been started is stopped too.
    bench.ok("systemctl start --no-block xendomains")?;
    let image = format!("{SAVE}/alpha");
    bench.ok(&format!("while [ -e {image} ]; do sleep 1; done; systemctl stop xendomains"))?;
    bench.expect_guests(&[])
}

/// A daemon as libvirt has it, which says that it conflicts with our unit: its start, by hand or by an update, leaves all
/// guests running, and a shutdown saves them all the same.
fn package_libvirt_is_started(bench: &Bench<'_>) -> Result<()> {
    install(bench)?;
    let unit = "[Unit]\nConflicts=xendomains.service\n[Service]\nExecStart=/bin/sleep infinity\n";
    bench.write("/etc/systemd/system/libvirtd.service", unit)?;
    bench.ok("systemctl daemon-reload && systemctl start xendomains")?;
    let before = ticks(bench)?;
    bench.ok("systemctl start libvirtd")?;
    expect_all_continued(bench, &before)?;
    ensure!(show(bench, "ActiveState")? == "inactive", "it is {}", show(bench, "ActiveState")?);
    bench.ok("systemctl is-active xendomains-left")?;
    expect(
        &bench.ok("journalctl --unit xendomains --output cat")?,
        &["because libvirtd.service, which conflicts"],
    )?;
    bench.reboot("systemctl reboot", GOING_DOWN)?;
    bench.ok("until systemctl is-active --quiet xendomains; do sleep 1; done")?;
    expect_all_continued(bench, &before)?;
    // When the unit is active, stop stops as ever.
    bench.ok("systemctl stop xendomains")?;
    bench.expect_guests(&[])
}

/// It is still mounted when the guests are stopped, and after a boot nothing is started before it is mounted again.
fn package_save_on_a_mount_made_by_hand(bench: &Bench<'_>) -> Result<()> {
    install(bench)?;
    bench.settings("XENDOMAINS_SAVE=/srv/save\n")?;
    bench.ok("rm /etc/xen/auto/beta.cfg /etc/xen/auto/gamma.cfg; mkdir -p /srv/save")?;
    bench.ok(
        "dd if=/dev/zero of=/var/tmp/save.img bs=1M count=300 status=none && mkfs.ext4 -q /var/tmp/save.img",
    )?;
    let mount = "mount -o loop /var/tmp/save.img /srv/save";
    bench.ok(&format!("{mount} && systemctl start xendomains"))?;
    bench.wait_for_tick("alpha", 3)?;
    let before = bench.ticks("alpha")?;
    bench.reboot("systemctl reboot", GOING_DOWN)?;
    bench.ok("until systemctl is-active --quiet xendomains; do sleep 1; done")?;
    bench.expect_guests(&[])?;
    expect(&bench.ok("journalctl --unit xendomains --output cat")?, &["nothing is mounted at /srv/save"])?;
    bench.ok(&format!("{mount} && systemctl reload xendomains"))?;
    bench.expect_guests(&["alpha"])?;
    bench.expect_continued("alpha", before)
}

fn package_off_switch(bench: &Bench<'_>) -> Result<()> {
    install(bench)?;
    bench.ok("touch /etc/xen/xendomains.skip_autostart && systemctl start xendomains")?;
    bench.expect_guests(&[])?;
    expect(
        &bench.ok("journalctl --unit xendomains --output cat")?,
        &["skip_autostart exists: no guest is started"],
    )?;
    // What was started by hand is stopped all the same.
    bench.ok("xl create /etc/xen/auto/alpha.cfg")?;
    bench.wait_for_tick("alpha", 3)?;
    bench.ok("systemctl stop xendomains")?;
    bench.expect_guests(&[])?;
    bench.ok("rm /etc/xen/xendomains.skip_autostart && systemctl start xendomains")?;
    bench.expect_guests(&NAMES)
}

/// What sysvinit does first, in the place of Debian's scripts, which look for hardware: the lab's network and folders.
const SYSINIT: &str = "#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/sshd /dev/pts
mount -t devpts -o mode=620,gid=5 devpts /dev/pts
while read -r module; do modprobe \"$module\"; done </etc/modules-load.d/lab.conf
hostname lab
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
ip link add xenbr0 type bridge
ip link set xenbr0 up
";

const INITTAB: &str = "id:2:initdefault:
si::sysinit:/usr/local/lib/lab-sysinit
l0:0:wait:/lib/init/rc 0
l2:2:wait:/lib/init/rc 2
l6:6:wait:/lib/init/rc 6
lr:2:once:/usr/local/lib/lab-ready
";

/// Makes it a host that boots by sysvinit, from Debian's packages.
fn boot_by_sysvinit(bench: &Bench<'_>) -> Result<()> {
    let suite = bench.release().suite();
    let root = workspace().join(format!("target/packages/sysvinit-{suite}"));
    let log = workspace().join("target/packages/sysvinit.log");
    packages::unpack("sysvinit-core,sysv-rc,initscripts", suite, &root, &log)?;
    for program in ["init", "telinit", "shutdown", "halt", "reboot"] {
        bench.push(&root.join("sbin").join(program), &format!("/root/sysvinit/{program}"))?;
    }
    for script in ["reboot", "halt", "sendsigs"] {
        bench.push(&root.join("etc/init.d").join(script), &format!("/etc/init.d/{script}"))?;
    }
    bench.push_directory(&root.join("lib/init"), "/lib/init")?;
    bench.write("/usr/local/lib/lab-sysinit", SYSINIT)?;
    bench.write("/etc/inittab", INITTAB)?;
    bench.ok("chmod 755 /usr/local/lib/lab-sysinit; rm -f /etc/rc?.d/*")?;
    for (level, links) in [
        ("2", &["S01ssh", "S02xen", "S03xendomains"][..]),
        ("0", &["K01xendomains", "K02xen", "S90halt"]),
        ("6", &["K01xendomains", "K02xen", "S80sendsigs", "S90reboot"]),
    ] {
        for link in links {
            bench.ok(&format!("ln -s ../init.d/{} /etc/rc{level}.d/{link}", &link[3..]))?;
        }
    }
    Ok(())
}

fn package_sysvinit(bench: &Bench<'_>) -> Result<()> {
    install(bench)?;
    boot_by_sysvinit(bench)?;
    // systemd's last act: its programs are still what they were until then.
    let replace = "for file in /root/sysvinit/*; do rm -f /sbin/${file##*/}; cp $file /sbin/; done";
    bench.reboot(&format!("{replace}; sync; kill -s RTMIN+5 1"), GOING_DOWN)?;
    ensure!(bench.ok("cat /proc/1/comm")?.trim() == "init", "systemd is at work");
    let before = ticks(bench)?;
    bench.ok("/etc/init.d/xendomains status && [ -e /var/lock/xendomains -o -e /var/lock/subsys/xendomains ]")?;
    bench.reboot("reboot", GOING_DOWN)?;
    expect_all_continued(bench, &before)?;
    let before = ticks(bench)?;
    bench.ok("/etc/init.d/xendomains force-reload")?;
    expect_all_continued(bench, &before)?;
    bench.ok("/etc/init.d/xendomains stop")?;
    bench.expect_guests(&[])?;
    bench.ok("[ ! -e /var/lock/xendomains ] && [ ! -e /var/lock/subsys/xendomains ]")?;
    let output = bench.run("/etc/init.d/xendomains status")?;
    ensure!(output.status == 3, "status ended with {}", output.status);
    Ok(())
}

/// The files of a newer release come beside those of the running one, as the packages bring them; what both share by name
/// has a stable interface, and needs a newer C library than this host has.
fn package_xen_was_upgraded(bench: &Bench<'_>) -> Result<()> {
    let newer = match bench.release() {
        Release::V4_14 => Release::V4_17,
        Release::V4_17 | Release::V4_20 => Release::V4_20,
    };
    install(bench)?;
    bench.ok("systemctl start xendomains")?;
    let before = ticks(bench)?;
    if newer != bench.release() {
        let root = packages::xen(workspace(), newer)?;
        bench.push_directory(&root.join(format!("usr/lib/xen-{newer}")), &format!("/usr/lib/xen-{newer}"))?;
        let directory = "usr/lib/x86_64-linux-gnu";
        let ending = format!(".so.{newer}.0");
        for entry in std::fs::read_dir(root.join(directory)).context("list the libraries")? {
            let entry = entry.context("list the libraries")?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(library) = name.strip_suffix(&ending).filter(|name| name.starts_with("libxen")) {
                bench.push(&entry.path(), &format!("/{directory}/{name}"))?;
                bench.ok(&format!("ln -sf {name} /{directory}/{library}.so.{newer}"))?;
            }
        }
        bench.ok(&format!("ls /{directory}/libxenlight.so.{newer}"))?;
    }
    bench.xendomains("status", 0)?;
    bench.ok("systemctl restart xendomains")?;
    expect_all_continued(bench, &before)?;
    bench.ok("systemctl stop xendomains")?;
    bench.expect_guests(&[])?;
    ensure!(bench.files(SAVE)? == NAMES, "images: {:?}", bench.files(SAVE)?);
    Ok(())
}
