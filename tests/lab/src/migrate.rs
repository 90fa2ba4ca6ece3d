//! Guests go to another host, whose stock `xl` takes them, over a real ssh: there and back, to several hosts, and not at
//! all because of what breaks on the way. Only PVH guests can: Debian's Xen can't tell what a running PV guest writes.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xtask::lab::{console_log, guest, quote};

use crate::bench::{Bench, Kind, PROGRAM, expect, xl_cfg};
use crate::scenarios::{SAVE, Scenario};

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("a_guest_migrates_and_comes_back", a_guest_migrates_and_comes_back),
    ("a_guest_is_saved_when_its_stream_breaks_off", a_guest_is_saved_when_its_stream_breaks_off),
    ("a_guest_that_may_run_elsewhere_is_left_alone", a_guest_that_may_run_elsewhere_is_left_alone),
    ("a_guest_that_xl_sends_is_stopped_like_any_other", a_guest_that_xl_sends_is_stopped_like_any_other),
];

/// Those that have to be asked for. They take four minutes and more each; the choice among several hosts, and a guest that
/// finds no room, are also shown with the fake.
pub const BY_NAME: &[(&str, Scenario)] = &[
    ("three_guests_migrate_to_two_hosts", three_guests_migrate_to_two_hosts),
    ("a_guest_is_saved_when_the_target_has_no_memory", a_guest_is_saved_when_the_target_has_no_memory),
    ("a_migration_beside_that_of_xl", a_migration_beside_that_of_xl),
];

/// The other hosts' names in each host's ssh configuration.
const NAMES: [&str; 2] = ["north", "south"];
/// What they call the host under test.
const HOME: &str = "home";

/// Lets one host reach others as root, under these names.
fn introduce(bench: &Bench<'_>, others: &[(&str, &Bench<'_>)]) -> Result<()> {
    bench.ok("test -e /root/.ssh/id_ed25519 || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")?;
    let key = bench.read("/root/.ssh/id_ed25519.pub")?;
    // All have the disk, and so the host key, that the image has. The emulated processor is three times as fast with
    // this cipher, for which it has instructions, as with the one that ssh prefers.
    let mut hosts = "UserKnownHostsFile /etc/ssh/lab_known_hosts\nHostKeyAlias lab\nHostName 10.0.2.2\n\
                     Ciphers aes128-gcm@openssh.com\n"
        .to_owned();
    bench.ok("sed 's/^/lab /' /etc/ssh/ssh_host_ed25519_key.pub >/etc/ssh/lab_known_hosts")?;
    for (name, other) in others {
        other.ok(&format!("echo {} >>/root/.ssh/authorized_keys", quote(key.trim())))?;
        hosts += &format!("Host {name}\nPort {}\n", other.port());
    }
    bench.write("/root/.ssh/config", &hosts)
}

/// The other hosts, which the one under test can reach.
fn neighbours<'b, 'h>(bench: &'b Bench<'h>) -> Result<[&'b Bench<'h>; 2]> {
    let [north, south] = &bench.others[..] else { bail!("there are not two other hosts") };
    introduce(bench, &[(NAMES[0], north), (NAMES[1], south)])?;
    Ok([north, south])
}

/// Guests that run and count.
fn running(bench: &Bench<'_>, names: &[&str]) -> Result<()> {
    for name in names {
        bench.auto(&[(name, Kind::Pvh, "")])?;
    }
    bench.xendomains("start", 0)?;
    names.iter().try_for_each(|name| bench.wait_for_tick(name, 2))
}

/// The guest goes on from `counted` on a host where it has not booted.
fn expect_arrived(bench: &Bench<'_>, name: &str, counted: u64) -> Result<()> {
    // xl gives it its name only when all of it is there, and its console's log is called by what it was before.
    let [old, new] = [console_log(&format!("{name}--incoming")), console_log(name)];
    bench.ok(&format!("ln -sfT {old} {new}"))?;
    let first = bench.wait_for_first_tick(name)?;
    // The switch may cost a line on the console, and no more.
    ensure!(
        (counted..=counted + 2).contains(&first),
        "it counted to {counted}, and from {first} after the migration"
    );
    bench.wait_for_tick(name, first + 2)?;
    ensure!(bench.boots(name)? == 0, "{name} was started anew");
    Ok(())
}

/// What `status --json` says of a guest.
fn status_of(bench: &Bench<'_>, code: i32, name: &str) -> Result<Value> {
    let status = bench.status(code)?;
    let guests = status["guests"].as_array().context("status has no guests")?;
    guests.iter().find(|guest| guest["name"] == name).cloned().with_context(|| format!("no {name} in {status}"))
}

fn a_guest_migrates_and_comes_back(bench: &Bench<'_>) -> Result<()> {
    let [north, _] = neighbours(bench)?;
    introduce(north, &[(HOME, bench)])?;
    bench.settings("XENDOMAINS_MIGRATE='north --live'\nXENDOMAINS_STOP_MAXWAIT=0\n")?;
    running(bench, &["alpha"])?;
    expect(&bench.xendomains("stop", 0)?, &["alpha: runs on north now", "alpha: migrated"])?;
    bench.expect_guests(&[])?;
    ensure!(bench.files(SAVE)?.is_empty(), "images: {:?}", bench.files(SAVE)?);
    expect_arrived(north, "alpha", bench.ticks("alpha")?)?;
    let there = status_of(north, 0, "alpha")?;
    ensure!(there["state"] == "running" && there["auto"] == false, "on the target it is {there}");

    // It is the other host's now.
    expect(&bench.xendomains("start", 0)?, &["alpha: was migrated to north and is not started here"])?;
    bench.expect_guests(&[])?;
    let here = status_of(bench, 3, "alpha")?;
    ensure!(here["migrated_to"] == "north", "where it came from it is {here}");

    north.settings(&format!("XENDOMAINS_MIGRATE={HOME}\nXENDOMAINS_STOP_MAXWAIT=0\n"))?;
    expect(&north.xendomains("stop", 0)?, &["alpha: runs on home now", "alpha: migrated"])?;
    north.expect_guests(&[])?;
    bench.expect_guests(&["alpha"])?;
    expect_arrived(bench, "alpha", north.ticks("alpha")?)?;
    let here = status_of(bench, 0, "alpha")?;
    ensure!(here["auto"] == true && here["migrated_to"].is_null(), "back home it is {here}");
    // And a guest like any other.
    bench.settings("")?;
    expect(&bench.xendomains("stop", 0)?, &["alpha: saved"])
}

/// Each of the two gets one at once, and the third goes where it fits.
fn three_guests_migrate_to_two_hosts(bench: &Bench<'_>) -> Result<()> {
    let names = ["alpha", "beta", "gamma"];
    let others = neighbours(bench)?;
    bench.settings("XENDOMAINS_MIGRATE='north, south'\nXENDOMAINS_STOP_MAXWAIT=0\n")?;
    running(bench, &names)?;
    bench.xendomains("stop", 0)?;
    bench.expect_guests(&[])?;
    let there = [others[0].xl_names()?, others[1].xl_names()?];
    let mut all = there.concat();
    all.sort();
    ensure!(all == names && there.iter().all(|some| !some.is_empty()), "on the two hosts are {there:?}");
    for (other, names) in others.iter().zip(&there) {
        names.iter().try_for_each(|name| expect_arrived(other, name, bench.ticks(name)?))?;
    }
    Ok(())
}

/// What the bar of a migration shows, in MiB.
fn sent(line: &str) -> Option<f64> {
    // Something that clears the line may come before it.
    let (done, _) = line.split_once("alpha: migrating")?.1.split_once("] ")?.1.split_once(" MiB/")?;
    done.parse().ok()
}

/// ssh is killed, the network goes down, and the target does, while the guest is under way: it runs on, and is saved.
fn a_guest_is_saved_when_its_stream_breaks_off(bench: &Bench<'_>) -> Result<()> {
    let [north, south] = neighbours(bench)?;
    bench.settings("XENDOMAINS_MIGRATE=north\nXENDOMAINS_STOP_MAXWAIT=0\n")?;
    running(bench, &["alpha"])?;
    let no_way = |port| {
        let nothing_to = format!("protocol ip u32 match ip dport {port} 0xffff action drop");
        bench.ok(&format!("tc qdisc add dev eth0 clsact && tc filter add dev eth0 egress {nothing_to}"))
    };
    let breaks: [(&str, &dyn Fn() -> Result<()>); 3] = [
        ("north", &|| bench.ok("pkill -KILL -x ssh").map(drop)),
        ("south", &|| no_way(south.port()).map(drop)),
        ("north", &|| north.switch_off()),
    ];
    for (target, break_off) in breaks {
        bench.settings(&format!("XENDOMAINS_MIGRATE={target}\nXENDOMAINS_STOP_MAXWAIT=0\n"))?;
        // With a terminal, which shows how far it is.
        bench.ok(&format!(
            "rm -f /tmp/stop; (TERM=linux setsid script -qefc '{PROGRAM} stop; echo ended with $?' /dev/null </dev/null 2>&1 | \
             stdbuf -o0 tr '\\r' '\\n' >/tmp/stop &) >/dev/null 2>&1"
        ))?;
        bench.wait_for("/tmp/stop", |line| sent(line).is_some_and(|mib| mib > 8.0))?;
        break_off()?;
        bench.wait_for("/tmp/stop", |line| line == "ended with 1")?;
        let said = bench.read("/tmp/stop")?;
        expect(&said, &["alpha: migration FAILED", &format!("{target}: "), "alpha: saved"])?;
        bench.expect_guests(&[])?;
        let before = bench.ticks("alpha")?;
        expect(&bench.xendomains("start", 0)?, &["alpha: restored"])?;
        bench.expect_continued("alpha", before)?;
    }
    Ok(())
}

/// There is room for one guest, not for two.
fn a_guest_is_saved_when_the_target_has_no_memory(bench: &Bench<'_>) -> Result<()> {
    let [north, _] = neighbours(bench)?;
    let free: u64 = north.ok("xl info free_memory")?.trim().parse().context("free memory")?;
    let directory = guest::DIRECTORY;
    let filler = format!(
        "name = \"filler\"\ntype = \"pv\"\nkernel = \"{directory}/vmlinux\"\nmemory = {}\n",
        free.saturating_sub(220)
    );
    north.write("/tmp/filler.cfg", &filler)?;
    north.ok("xl create -p /tmp/filler.cfg")?;
    bench.settings("XENDOMAINS_MIGRATE=north\nXENDOMAINS_MIGRATE_JOBS=1\nXENDOMAINS_STOP_MAXWAIT=0\n")?;
    running(bench, &["alpha", "beta"])?;
    let said = bench.xendomains("stop", 1)?;
    let (goes, stays) = if said.contains("alpha: migrated") { ("alpha", "beta") } else { ("beta", "alpha") };
    let moved = format!("{goes}: migrated");
    expect(&said, &[&moved, &format!("{stays}: migration FAILED"), &format!("{stays}: saved")])?;
    expect_arrived(north, goes, bench.ticks(goes)?)?;
    north.expect_guests(&["filler", goes])?;
    ensure!(bench.files(SAVE)? == [stays], "images: {:?}", bench.files(SAVE)?);
    Ok(())
}

/// The connection ends just after the target was told to go.
fn a_guest_that_may_run_elsewhere_is_left_alone(bench: &Bench<'_>) -> Result<()> {
    let [north, _] = neighbours(bench)?;
    // The banner has 54 bytes and the word that it has the guest 34; nothing more comes through.
    north.write("/usr/local/sbin/xl", "#!/bin/sh\n/usr/sbin/xl \"$@\" | stdbuf -o0 head -c 88\n")?;
    north.ok("chmod 755 /usr/local/sbin/xl")?;
    bench.settings("XENDOMAINS_MIGRATE=north\nXENDOMAINS_STOP_MAXWAIT=0\n")?;
    running(bench, &["alpha"])?;
    let said = bench.xendomains("stop", 1)?;
    expect(&said, &["alpha: migration FAILED", "it is NOT KNOWN whether it runs on north now", "xl destroy 1"])?;
    bench.expect_guests(&["alpha--migratedaway"])?;
    ensure!(bench.files(SAVE)?.is_empty(), "images: {:?}", bench.files(SAVE)?);
    for action in ["stop", "start"] {
        expect(&bench.xendomains(action, 1)?, &["alpha: it is NOT KNOWN whether it runs on north now"])?;
        bench.expect_guests(&["alpha--migratedaway"])?;
    }
    status_of(bench, 3, "alpha--migratedaway")?;
    // It does run there, and the admin does what the message says.
    expect_arrived(north, "alpha", bench.ticks("alpha")?)?;
    bench.ok("xl destroy 1")?;
    // start asks north, which can answer again.
    north.ok("rm /usr/local/sbin/xl")?;
    expect(&bench.xendomains("start", 0)?, &["alpha: was migrated to north and is not started here"])?;
    bench.expect_guests(&[])
}

/// `xl migrate` to a host where the program is: the guest is one of those that status shows and stop saves.
fn a_guest_that_xl_sends_is_stopped_like_any_other(bench: &Bench<'_>) -> Result<()> {
    let [north, _] = neighbours(bench)?;
    running(bench, &["alpha"])?;
    bench.ok("xl migrate alpha north")?;
    bench.expect_guests(&[])?;
    expect_arrived(north, "alpha", bench.ticks("alpha")?)?;
    let there = status_of(north, 0, "alpha")?;
    ensure!(there["state"] == "running" && there["auto"] == false, "on the target it is {there}");
    expect(&north.xendomains("stop", 0)?, &["alpha: saved"])?;
    let before = north.ticks("alpha")?;
    expect(&north.xendomains("start", 0)?, &["alpha: restored"])?;
    north.wait_for_tick("alpha", before + 2)
}

/// Migrates a guest by a command, and gives the seconds that it took, and those for which the guest stood still.
const TIMED: &str = r#"
coproc watch { exec xenstore-watch -n 3 @releaseDomain; }
read -r _ <&"${watch[0]}" # It is registered.
begun=$EPOCHREALTIME
$migrate >/tmp/said 2>&1 &
read -r _ <&"${watch[0]}"; suspended=$EPOCHREALTIME
read -r _ <&"${watch[0]}"; gone=$EPOCHREALTIME
wait $! || exit
awk -v a="$begun" -v b="$suspended" -v c="$gone" -v d="$EPOCHREALTIME" 'BEGIN { print d - a, c - b }'
"#;

/// The same guest goes over the same connection by `xl migrate` and by `stop`, in turn.
fn a_migration_beside_that_of_xl(bench: &Bench<'_>) -> Result<()> {
    let [north, _] = neighbours(bench)?;
    bench.settings("XENDOMAINS_MIGRATE=north\nXENDOMAINS_STOP_MAXWAIT=0\n")?;
    bench.write("/root/alpha.cfg", &xl_cfg("alpha", Kind::Pvh, ""))?;
    let commands = ["xl migrate alpha north", &format!("{PROGRAM} stop")];
    let mut times: [Vec<(f64, f64)>; 2] = Default::default();
    for _ in 0..3 {
        for (command, times) in commands.iter().zip(&mut times) {
            bench.ok(&format!("rm -f {} && xl create -q /root/alpha.cfg", console_log("alpha")))?;
            bench.wait_for_tick("alpha", 3)?;
            let said = bench.ok(&format!("migrate={} bash -c {}", quote(command), quote(TIMED)))?;
            let seconds: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let [whole, still] = seconds[..] else { bail!("no times in {said:?}") };
            println!("  {command}: {whole:.1} s, of which the guest stood still for {still:.1} s");
            times.push((whole, still));
            north.ok("xl destroy alpha")?;
        }
    }
    let median = |times: &[(f64, f64)], which: fn(&(f64, f64)) -> f64| {
        let mut sorted: Vec<f64> = times.iter().map(which).collect();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    for (what, which) in [("whole", (|time| time.0) as fn(&(f64, f64)) -> f64), ("downtime", |time| time.1)] {
        let [xl, ours] = [median(&times[0], which), median(&times[1], which)];
        println!("  {what}: xl {xl:.1} s, xendomains {ours:.1} s");
        ensure!(ours < xl * 1.25, "{what}: {ours:.1} s, with xl {xl:.1} s");
    }
    Ok(())
}
