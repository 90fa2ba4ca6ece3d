//! The monitor: what becomes of guests that end is what becomes of the same guests under `xl create`, whatever happens to
//! the monitor meanwhile.
//!
//! Guests end by themselves, at a SysRq letter that dom0 sends: the kernel then does what it also does at a letter in
//! `/proc/sysrq-trigger`. Xen's watchdog they start themselves.

use anyhow::{Context, Result, ensure};
use xtask::lab::{console_log, quote};

use crate::bench::{Bench, Kind, expect, xl_cfg};
use crate::scenarios::Scenario;

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("guests_that_end_are_treated_as_by_xl", |bench| as_by_xl(bench, &SOME)),
    ("a_monitor_that_is_killed_again_and_again", a_monitor_that_is_killed_again_and_again),
    ("a_stop_is_not_undone_by_the_monitor", a_stop_is_not_undone_by_the_monitor),
];

/// These take their time.
pub const BY_NAME: &[(&str, Scenario)] = &[
    ("guests_that_power_off_are_treated_as_by_xl", |bench| as_by_xl(bench, &each_action(POWEROFF))),
    ("guests_that_reboot_are_treated_as_by_xl", |bench| as_by_xl(bench, &each_action(REBOOT))),
    ("guests_that_crash_are_treated_as_by_xl", |bench| as_by_xl(bench, &each_action(CRASH))),
    ("guests_that_hang_are_treated_as_by_xl", |bench| as_by_xl(bench, &each_action(WATCHDOG))),
    ("the_monitor_costs_less_than_xls_processes", the_monitor_costs_less_than_xls_processes),
    ("a_hundred_reboots_of_one_guest", a_hundred_reboots_of_one_guest),
    ("twenty_guests_reboot_together", twenty_guests_reboot_together),
];

/// Why a guest ends.
#[derive(Clone, Copy)]
struct Reason {
    /// The key of its configuration that says what is then done.
    key: &'static str,
    /// Words on its kernel's command line.
    words: &'static str,
    /// The SysRq letter that ends it. Without one, it ends by itself.
    letter: Option<char>,
}

/// On the kernel's command line: every letter does something.
const OBEY: &str = "sysrq_always_enabled";

const POWEROFF: Reason = Reason { key: "on_poweroff", words: OBEY, letter: Some('o') };
const REBOOT: Reason = Reason { key: "on_reboot", words: OBEY, letter: Some('b') };
const CRASH: Reason = Reason { key: "on_crash", words: OBEY, letter: Some('c') };
const WATCHDOG: Reason = Reason { key: "on_watchdog", words: "watchdog=30", letter: None };

const ACTIONS: [&str; 7] =
    ["destroy", "restart", "rename-restart", "preserve", "coredump-destroy", "coredump-restart", "soft-reset"];

fn each_action(reason: Reason) -> [(Reason, &'static str); 7] {
    ACTIONS.map(|action| (reason, action))
}

/// Each letter once, with actions that differ.
const SOME: [(Reason, &str); 3] = [(POWEROFF, "destroy"), (REBOOT, "restart"), (CRASH, "rename-restart")];

/// Guests end as fast as this is done, and are to be restarted at once.
const SETTINGS: &str = "XENDOMAINS_MONITOR=true\nXENDOMAINS_RESTART_SOON=0\nXENDOMAINS_SAVE=\n";

/// Waits in dom0 until a shell's condition holds. A dump of a guest's memory takes minutes.
fn wait(bench: &Bench<'_>, condition: &str) -> Result<()> {
    let script = format!("until {condition}; do sleep 0.1; done");
    bench.ok(&format!("timeout 540 bash -c {}", quote(&script))).map(drop).with_context(|| condition.to_owned())
}

fn domid(bench: &Bench<'_>, name: &str) -> Result<u32> {
    let text = bench.ok(&format!("xl domid {name}"))?;
    text.trim().parse().with_context(|| format!("{text:?} is no domain's number"))
}

/// A condition: the guest runs, as another domain than this one.
fn runs_as_another(name: &str, old: u32) -> String {
    // Name, ID, Mem, VCPUs, State, Time(s).
    format!(
        "xl list | awk -v name={name} -v old={old} \
         \"\\$1 == name && \\$2 != old && \\$5 !~ /[psc]/ {{ found = 1 }} END {{ exit !found }}\""
    )
}

/// What there is of a guest: its domains with their states, and the dump of its memory. A time in a name is left out.
fn remains(bench: &Bench<'_>, name: &str, old: u32) -> Result<Vec<String>> {
    let mut remains = Vec::new();
    for line in bench.ok("xl list")?.lines().skip(1) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [found, id, _, _, state, ..] = words[..] else { continue };
        let Some(rest) = found.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with("-2")) else {
            continue;
        };
        let ended: String = state.chars().filter(|flag| "pscd".contains(*flag)).collect();
        let (rest, age) =
            (if rest.is_empty() { "" } else { "-TIME" }, if id == old.to_string() { "old" } else { "new" });
        // The name in xenstore too, and which UUID it has there.
        let vm = bench.ok(&format!("xenstore-read /local/domain/{id}/name /local/domain/{id}/vm"))?;
        ensure!(vm.lines().next() == Some(found), "{found} is called {vm} in xenstore");
        remains.push(format!("{age} domain{rest} {ended}"));
    }
    if bench.run(&format!("test -s /var/lib/xen/dump/{name}"))?.success() {
        remains.push("dump".to_owned());
    }
    remains.sort();
    Ok(remains)
}

/// A condition: nothing changes any more. That is what the action comes to.
fn is_over(name: &str, action: &str, old: u32) -> String {
    match action {
        "destroy" | "coredump-destroy" => format!("! xl domid {name} >/dev/null 2>&1"),
        "preserve" => format!("xl list {name} | grep -q -- \"--[-p]s\""),
        _ => runs_as_another(name, old),
    }
}

/// The same guest with us and with xl ends for a reason while its configuration asks for an action.
fn as_by_xl(bench: &Bench<'_>, cases: &[(Reason, &str)]) -> Result<()> {
    bench.settings(SETTINGS)?;
    for (Reason { key, words, letter }, action) in cases {
        let names = ["ours", "theirs"].map(|whose| format!("{whose}-{key}-{action}"));
        let [ours, theirs] = &names;
        let more = format!("{key} = \"{action}\"\n");
        bench.guest(ours, Kind::Pv, words, &more)?;
        let config = xl_cfg(theirs, Kind::Pv, &more);
        let guest = format!("guest={theirs}");
        bench.write("/tmp/theirs.cfg", &config.replace(&guest, &format!("{guest} {words}")))?;
        bench.xendomains("start", 0)?;
        bench.ok("xl create -q /tmp/theirs.cfg")?;
        let mut before = Vec::new();
        for name in &names {
            bench.wait_for_tick(name, 1)?;
            before.push((domid(bench, name)?, bench.ok(&format!("xl list -l {name}"))?));
        }
        for (name, letter) in names.iter().filter_map(|name| Some((name, (*letter)?))) {
            bench.ok(&format!("xl sysrq {name} {letter}"))?;
        }
        let mut found = Vec::new();
        for (name, (old, config)) in names.iter().zip(before) {
            if *action == "soft-reset" && name == theirs {
                // A soft reset is for HVM guests. xl loses others; we restart them.
                wait(bench, &format!("! xl domid {name} >/dev/null 2>&1"))?;
                continue;
            }
            wait(bench, &is_over(name, action, old))?;
            found.push(remains(bench, name, old)?);
            if !matches!(*action, "destroy" | "coredump-destroy" | "preserve") {
                let again = bench.ok(&format!("xl list -l {name}"))?;
                for part in ["\"uuid\"", "\"on_"] {
                    let of = |text: &str| text.lines().filter(|line| line.contains(part)).collect::<String>();
                    ensure!(of(&config) == of(&again), "{name} has another {part}:\n{config}\n{again}");
                }
            }
        }
        println!("{key} = {action}: {found:?}");
        let expected = found.get(1).cloned().unwrap_or_else(|| vec!["new domain ".to_owned()]);
        ensure!(found[0] == expected, "{key} = {action}: {:?} with us, {expected:?} with xl", found[0]);
        // What is left makes way for the next.
        bench.ok(&format!(
            "rm /etc/xen/auto/{ours}*; xl list | awk 'NR > 2 {{ print $2 }}' | xargs -r -n 1 xl destroy"
        ))?;
        wait(bench, "test $(xl list | wc -l) = 2")?;
    }
    Ok(())
}

/// Guests with disks on which each counts; nobody else writes there.
fn counting_guests(bench: &Bench<'_>, names: &[&str], settings: &str) -> Result<()> {
    bench.settings(&format!("{SETTINGS}{settings}"))?;
    for name in names {
        bench.ok(&format!("truncate -s 1M /var/tmp/{name}"))?;
        // Without the scripts of a loop device, which take dom0 half a minute for each restart.
        let disk = format!("disk = [\"/var/tmp/{name},raw,xvda,w,backendtype=qdisk\"]\n");
        bench.guest(name, Kind::Pv, &format!("{OBEY} disks"), &disk)?;
    }
    bench.xendomains("start", 0)?;
    names.iter().try_for_each(|name| bench.wait_for_tick(name, 1))
}

/// Each guest is there once, and has not run twice at the same time.
fn expect_all_running(bench: &Bench<'_>, names: &[&str]) -> Result<()> {
    for name in names {
        wait(bench, &runs_as_another(name, 0))?;
    }
    bench.expect_guests(names)?;
    let strangers = bench.run("grep 'disk xvda has write' /var/log/xen/console/guest-*.log")?;
    ensure!(!strangers.success(), "a guest has run twice: {}", strangers.stdout);
    for guest in bench.status(0)?["guests"].as_array().context("guests")? {
        ensure!(guest["watched_by"] == "monitor", "{} is watched by {}", guest["name"], guest["watched_by"]);
    }
    Ok(())
}

/// The monitor's process.
fn monitor(bench: &Bench<'_>) -> Result<String> {
    Ok(bench.ok("pgrep -f '^[^ ]*xendomains.* monitor'")?.trim().to_owned())
}

/// Kills the monitor at a moment between a guest's last breath and its next first one, another one in each round, and has
/// `start` bring a new one.
fn kill_monitor(bench: &Bench<'_>, round: u32) -> Result<()> {
    let pid = monitor(bench)?;
    let moment = f64::from(round * 7 % 20) / 4.0;
    bench.ok(&format!("sleep {moment}; kill -KILL {pid}"))?;
    bench.xendomains("start", 0)?;
    ensure!(monitor(bench)? != pid, "there is no new monitor");
    Ok(())
}

/// Waits until a guest has booted more often than this: it then obeys the next letter.
pub fn wait_for_boot(bench: &Bench<'_>, name: &str, booted: usize) -> Result<()> {
    wait(bench, &format!("test $(grep -c \"GUEST READY\" {}) -gt {booted}", console_log(name)))
}

fn a_monitor_that_is_killed_again_and_again(bench: &Bench<'_>) -> Result<()> {
    let names = ["alpha", "beta"];
    counting_guests(bench, &names, "")?;
    for round in 1..=3 {
        let name = names[round as usize % names.len()];
        let (old, booted) = (domid(bench, name)?, bench.boots(name)?);
        bench.ok(&format!("xl sysrq {name} b"))?;
        kill_monitor(bench, round)?;
        wait(bench, &runs_as_another(name, old))?;
        wait_for_boot(bench, name, booted)?;
    }
    expect_all_running(bench, &names)
}

fn a_stop_is_not_undone_by_the_monitor(bench: &Bench<'_>) -> Result<()> {
    let names = ["alpha", "beta"];
    counting_guests(bench, &names, "")?;
    // One reboots while both are stopped.
    bench.ok("xl sysrq alpha b")?;
    bench.xendomains("stop", 0)?;
    bench.expect_guests(&[])?;
    bench.ok("sleep 5")?;
    bench.expect_guests(&[])?;
    bench.xendomains("start", 0)?;
    expect_all_running(bench, &names)
}

/// In every second of them the monitor is killed.
fn a_hundred_reboots_of_one_guest(bench: &Bench<'_>) -> Result<()> {
    let name = "alpha";
    bench.settings(SETTINGS)?;
    bench.guest(name, Kind::Pv, OBEY, "")?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick(name, 1)?;
    for round in 1..=100 {
        let old = domid(bench, name)?;
        bench.ok(&format!("xl sysrq {name} b"))?;
        if round % 2 == 0 {
            kill_monitor(bench, round)?;
        }
        wait(bench, &runs_as_another(name, old))?;
        wait_for_boot(bench, name, round as usize)?;
    }
    expect_all_running(bench, &[name])?;
    let (boots, status) = (bench.boots(name)?, bench.status(0)?);
    println!("{boots} boots; {}", status["guests"][0]);
    ensure!(boots == 101, "{name} has booted {boots} times");
    ensure!(status["guests"][0]["restarts"] == 100, "{status}");
    Ok(())
}

fn twenty_guests_reboot_together(bench: &Bench<'_>) -> Result<()> {
    // With as many that count every second, dom0 gets nothing done on an emulated processor.
    let words = format!("{OBEY} pause=30");
    bench.settings(SETTINGS)?;
    let names: Vec<_> = (1..=20).map(|number| format!("g{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    for name in &names {
        bench.guest(name, Kind::Pv, &words, "")?;
    }
    bench.xendomains("start", 0)?;
    let mut old = Vec::new();
    for name in &names {
        bench.wait_for_tick(name, 1)?;
        old.push(domid(bench, name)?);
    }
    bench.ok(&format!("for name in {}; do xl sysrq $name b & done; wait", names.join(" ")))?;
    for (name, old) in names.iter().zip(old) {
        wait(bench, &runs_as_another(name, old))?;
    }
    expect_all_running(bench, &names)
}

/// Of these processes: memory that is theirs (their share of what is shared), KiB, and how often they have slept.
fn cost(bench: &Bench<'_>, pids: &str) -> Result<(u64, u64)> {
    let script = format!(
        "for pid in {pids}; do awk '/^Pss:/ {{ print $2, 0 }}' /proc/$pid/smaps_rollup; \
         awk '/^voluntary_ctxt_switches/ {{ print 0, $2 }}' /proc/$pid/task/*/status; done"
    );
    let text = bench.ok(&script)?;
    let mut sums = (0, 0);
    for line in text.lines() {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [pss, slept] = numbers[..] else { continue };
        sums = (sums.0 + pss, sums.1 + slept);
    }
    Ok(sums)
}

/// The time from a guest's reboot to when its new domain was let run, in seconds, in dom0's eyes.
fn reboot_time(bench: &Bench<'_>, name: &str) -> Result<f64> {
    let old = domid(bench, name)?;
    let script = format!(
        "begun=${{EPOCHREALTIME/,/.}}; xl sysrq {name} b; until {}; do sleep 0.02; done; \
         echo $begun ${{EPOCHREALTIME/,/.}}",
        runs_as_another(name, old)
    );
    let text = bench.ok(&format!("timeout 540 bash -c {}", quote(&script)))?;
    let times: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [begun, ended] = times[..] else { anyhow::bail!("no times in {text:?}") };
    Ok(ended - begun)
}

/// Eight guests on the same host, first with `xl create` and then the same with us.
fn the_monitor_costs_less_than_xls_processes(bench: &Bench<'_>) -> Result<()> {
    bench.settings(SETTINGS)?;
    let mut figures = Vec::new();
    for ours in [false, true] {
        let names: Vec<_> =
            (1..=8).map(|number| format!("{}{number}", if ours { "ours" } else { "theirs" })).collect();
        for name in &names {
            bench.guest(name, Kind::Pv, OBEY, "")?;
        }
        if ours {
            bench.xendomains("start", 0)?;
        } else {
            bench.ok("for file in /etc/xen/auto/*; do xl create -q $file; done")?;
        }
        for name in &names {
            bench.wait_for_tick(name, 1)?;
        }
        let pids = if ours { monitor(bench)? } else { bench.ok("pgrep -x xl")?.replace('\n', " ") };
        ensure!(pids.split_whitespace().count() == if ours { 1 } else { names.len() }, "processes: {pids}");
        let (pss, before) = cost(bench, &pids)?;
        bench.ok("sleep 60")?;
        let (_, after) = cost(bench, &pids)?;
        let mut times = Vec::new();
        for name in &names[..3] {
            times.push(reboot_time(bench, name)?);
        }
        times.sort_by(f64::total_cmp);
        let who = if ours { "one monitor" } else { "eight xl" };
        println!(
            "{who}: {pss} KiB (PSS), {} wake-ups in an idle minute, {times:.2?} s from a reboot to the new domain",
            after - before
        );
        figures.push((pss, after - before, times[1]));
        bench.ok("rm /etc/xen/auto/*; xl list | awk 'NR > 2 { print $2 }' | xargs -r -n 1 xl destroy")?;
        wait(bench, "test $(xl list | wc -l) = 2")?;
    }
    let [(xl, _, slow), (ours, slept, fast)] = figures[..] else { anyhow::bail!("no figures") };
    ensure!(slept == 0, "the monitor has woken up {slept} times in an idle minute");
    ensure!(ours < xl, "the monitor has {ours} KiB, xl has {xl} KiB");
    ensure!(fast < slow, "a reboot takes {fast} s, and {slow} s with xl");
    let said = bench.ok("journalctl --no-pager -t xendomains")?;
    expect(&said, &["restarted as domain"])
}
