//! The defects, each with its number and what shows it.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::dom0::{Beside, Parts, Whose};
use crate::scenario::{Expect::*, Host, Step, admin, guest, power_cut, start, status, stop, xl_cfg};

/// What is known of a script.
#[derive(Clone, Copy, Debug)]
pub enum Known {
    /// It has the defect: this is among what is not as it should be.
    HasIt(&'static str),
    /// It does not have it.
    Free,
    /// It can't be shown here.
    NotShown(&'static str),
}

/// What shows a defect.
pub enum Evidence {
    /// It is run.
    Scenario(Host, Vec<Step>),
    /// It is read.
    Reading(fn(&Parts, Whose) -> Result<Vec<String>>),
    /// Nothing here.
    None,
}

use Evidence::{Reading, Scenario};
use Known::{Free, HasIt, NotShown};

pub struct Pain {
    pub number: u8,
    pub title: &'static str,
    pub upstream: Known,
    pub debian: Known,
    /// Ours must be free of it. What is not yet so is written here all the same, and does not count as passed.
    pub ours: Known,
    /// What else is to be known of ours.
    pub note: &'static str,
    pub evidence: Evidence,
}

/// In the place of ssh: another host that takes a guest, is told to let it run, and is not heard of any more.
const GONE_AFTER_GO: &str = r"#!/bin/sh
printf 'xl migration receiver ready, send binary domain data.\ndomain received, ready to unpause\000'
exec grep -qz 'you are cleared to unpause'
";

/// `off` is not to be started again by start, but by nobody.
const UNTIL_RESTARTED: &str = r#"set -e
rm /etc/xen/auto/off
/program start
until /program status | grep "running .* monitor *1 (reboot)"; do sleep 0.1; done
until ! /program status | grep "^off"; do sleep 0.1; done"#;

/// What need not be said of most.
const OURS_IS_FREE: Pain =
    Pain { number: 0, title: "", upstream: Free, debian: Free, ours: Free, note: "", evidence: Evidence::None };

impl Pain {
    /// What is known of it.
    pub fn known(&self, whose: Whose) -> Known {
        match whose {
            Whose::Upstream => self.upstream,
            Whose::Debian => self.debian,
            Whose::Ours => self.ours,
        }
    }
}

/// Settings with which only the guests of AUTO are touched.
const AUTO_ONLY: &str = "XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=";

/// Settings with which everything is left to `shutdown --all`.
const ALL_AT_ONCE: &str = "XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN=";

const NO_AUTO_ONLY: Known = NotShown("it has no AUTO_ONLY: see 6");

/// All of them.
pub fn all() -> Vec<Pain> {
    let breaks_off =
        || json!({"call": "libxl_domain_suspend", "domain": "web", "error": -3, "partial_bytes": 4096});
    let restore_fails = |guest: &str| json!({"call": "libxl_domain_create_restore", "domain": guest, "error": -3});
    vec![
        Pain {
            number: 1,
            title: "a guest that can't be saved, restored or created does not show in the exit code",
            upstream: HasIt("start: exit code 0"),
            debian: HasIt("start: exit code 0"),
            evidence: Scenario(
                Host::default().runs("web").runs("mail").auto("db", "db"),
                vec![
                    stop().fault(breaks_off()).expect([Failure]),
                    start()
                        .fault(restore_fails("mail"))
                        .fault(json!({"call": "libxl_domain_create_new", "domain": "db", "error": -3}))
                        .expect([Failure, Says("mail"), Says("db")]),
                ],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 2,
            title: "when Xen can't be asked, stop does nothing, says nothing and ends with 0",
            upstream: HasIt("stop: exit code 0"),
            debian: HasIt("stop: exit code 0"),
            evidence: Scenario(
                Host::default().runs("web"),
                vec![stop().fault(json!({"call": "libxl_list_domain", "start_error": -3})).expect([Failure])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 3,
            title: "half an image of a save that failed keeps its guest down at every boot",
            upstream: HasIt("start: web does not run"),
            debian: HasIt("start: web does not run"),
            evidence: Scenario(
                Host::default().runs("web").auto("web", "web"),
                vec![
                    stop().fault(breaks_off()).expect([Down("web"), NoPartialImage]),
                    start().expect([Runs("web")]),
                ],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 4,
            title: "a guest whose file has another name than it is booted over its image, which is restored later",
            upstream: HasIt("a stale image of"),
            debian: Free,
            evidence: Scenario(
                Host::default().runs("web").auto("web.cfg", "web"),
                vec![
                    stop(),
                    start().fault(restore_fails("web")).expect([Down("web")]),
                    power_cut(),
                    start().expect([Continued(&["web"])]),
                ],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 5,
            title: "`db` is not started when there was an image of `db-test`",
            upstream: HasIt("start: {\"db-test\"} run"),
            debian: Free,
            evidence: Scenario(
                Host::default().runs("db-test").auto("db", "db"),
                vec![stop(), start().expect([Run(&["db", "db-test"])])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 6,
            title: "AUTO_ONLY with an empty AUTO directory: all guests are saved",
            upstream: HasIt("stop: other does not run"),
            debian: HasIt("stop: other does not run"),
            evidence: Scenario(
                Host::default().settings(AUTO_ONLY).runs("other"),
                vec![stop().expect([Runs("other"), Images(&[])])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 7,
            title: "AUTO_ONLY with a file in AUTO that is no configuration: all guests are saved",
            upstream: HasIt("stop: {} run, not {\"other\"}"),
            debian: NO_AUTO_ONLY,
            evidence: Scenario(
                Host::default()
                    .settings(AUTO_ONLY)
                    .runs("web")
                    .runs("other")
                    .auto("web", "web")
                    .file("/etc/xen/auto/zz.bak", "nonsense"),
                vec![stop().expect([Run(&["other"]), Images(&["web"])])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 8,
            title: "the name of a guest counts as a pattern: `we*` in AUTO has `webshop` saved",
            upstream: HasIt("stop: webshop does not run"),
            debian: NO_AUTO_ONLY,
            evidence: Scenario(
                Host::default().settings(AUTO_ONLY).runs("webshop").auto("we", "we*"),
                vec![stop().expect([Runs("webshop")])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 9,
            title: "the name of a guest's channel counts as a guest: `backup` is not started, and web saved twice",
            upstream: HasIt("start: backup does not run"),
            debian: Free,
            evidence: Scenario(
                Host::default().domain(with_channel("web", "backup")).auto("backup", "backup"),
                vec![
                    start().expect([Runs("backup")]),
                    stop().expect([Exit(0), DoesNotSay("error"), Images(&["backup", "web"])]),
                ],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 10,
            title: "a lock file that was left behind: no guest is started, exit code 0",
            upstream: HasIt("start: web does not run"),
            debian: Free,
            evidence: Scenario(
                Host::default().file("/var/lock/xendomains", "").auto("web", "web"),
                vec![start().expect([Runs("web")])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 11,
            title: "left-over files in AUTO are started: `web~`, `web.dpkg-old`",
            upstream: HasIt("{\"old-web\", \"older-web\", \"web\"} run"),
            debian: HasIt("{\"old-web\", \"older-web\", \"web\"} run"),
            evidence: Scenario(
                Host::default().auto("web", "web").auto("web.dpkg-old", "old-web").auto("web~", "older-web"),
                vec![start().expect([Run(&["web"])])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 12,
            title: "RESTORE=false restores",
            upstream: Free,
            debian: HasIt("start: web runs"),
            evidence: Scenario(
                Host::default().settings("XENDOMAINS_RESTORE=false").runs("web"),
                vec![stop(), start().expect([Down("web")])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 13,
            title: "STOP_MAXWAIT=0 interrupts a save after a second instead of never",
            upstream: Free,
            debian: HasIt("stop: the save of web was cut off"),
            evidence: Scenario(
                Host::default()
                    .settings("XENDOMAINS_STOP_MAXWAIT=0")
                    .domain(json!({"name": "web", "guest": {"suspend_ms": 4000}})),
                vec![stop().expect([Saved("web"), NoPartialImage]), start().expect([Continued(&["web"])])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 14,
            title: "a guest with a space in its name is not saved, or over the image of another one",
            upstream: HasIt("did not go on where they were saved"),
            debian: HasIt("did not go on where they were saved"),
            evidence: Scenario(
                Host::default().runs("other").runs("other guest"),
                vec![stop().expect([Exit(0)]), start().expect([Continued(&["other", "other guest"])])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 14,
            title: "a guest with a space in its name is not waited for",
            upstream: Free,
            debian: HasIt("stop: other guest runs"),
            evidence: Scenario(
                Host::default()
                    .settings("XENDOMAINS_SAVE=")
                    .domain(json!({"name": "other guest", "guest": {"down_ms": 6000}})),
                vec![stop().expect([Down("other guest")])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 15,
            title: "a file that can't be parsed is an error of the shell; no status; no SYSRQ",
            upstream: Free,
            debian: HasIt("start: says \"bad array subscript\""),
            evidence: Scenario(
                Host::default()
                    .settings("XENDOMAINS_SYSRQ=s")
                    .auto("web", "web")
                    .file("/etc/xen/auto/bad", "name ="),
                vec![
                    start().expect([Runs("web"), DoesNotSay("bad array subscript")]),
                    status().expect([Says("web")]),
                    stop().expect([Calls("libxl_send_sysrq", "web", 1)]),
                ],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 16,
            title: "the systemd unit: 90 s for a stop, failures hidden, reload stops all guests, no word of virtxend",
            upstream: HasIt("no TimeoutStopSec"),
            debian: NotShown("systemd makes its unit of the init script, and gives a stop 5 minutes"),
            evidence: Reading(unit),
            ..OURS_IS_FREE
        },
        Pain {
            number: 17,
            title: "shutdown --all ends at a guest without PV drivers: the others are not asked",
            upstream: HasIt("stop: web runs"),
            debian: Free,
            evidence: Scenario(
                Host::default()
                    .settings(ALL_AT_ONCE)
                    .domain(json!({"name": "win", "type": "hvm", "guest": {"pv_drivers": false}}))
                    .runs("web"),
                vec![stop().expect([Down("web")])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 17,
            title: "shutdown --all ends at a guest that does not answer: the others are not asked",
            upstream: HasIt("stop: web runs"),
            debian: Free,
            evidence: Scenario(
                Host::default().settings(ALL_AT_ONCE).domain(deaf("deaf")).runs("web"),
                vec![stop().expect([Down("web")])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 18,
            title: "an image can be read by everyone, and a save begins by truncating the one from before",
            upstream: HasIt("has mode 644, not 600"),
            debian: HasIt("has mode 644, not 600"),
            evidence: Scenario(
                Host::default().runs("web"),
                vec![
                    stop().expect([Mode("/var/lib/xen/save/web", 0o600)]),
                    admin(&["xl", "restore", "/var/lib/xen/save/web"]).expect([Runs("web")]),
                    stop().fault(breaks_off()).expect([Kept("/var/lib/xen/save/web")]),
                ],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 19,
            title: "the watchdog kills an admin's own `xl save`",
            upstream: HasIt("stop: the save of mine was cut off"),
            debian: Free,
            evidence: Scenario(
                Host::default()
                    .settings(AUTO_ONLY)
                    .settings("XENDOMAINS_STOP_MAXWAIT=1")
                    // Deaf, because Debian's script, which has no AUTO_ONLY, would end it by a shutdown.
                    .domain(json!({"name": "mine", "guest": {"suspend_ms": 12_000, "shutdown": "ignore", "timeout_ms": 1000}}))
                    .domain(json!({"name": "web", "guest": {"suspend_ms": 14_000}}))
                    .auto("web", "web"),
                vec![
                    stop()
                        .beside(Beside {
                            command: "/usr/sbin/xl save mine /root/mine",
                            call: "libxl_domain_suspend",
                            awaited: true,
                        })
                        .expect([Saved("mine")]),
                ],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 20,
            title: "zombies are known by a variable that is never set",
            upstream: HasIt("`$state` is read but never set"),
            debian: NotShown("it has no word of zombies"),
            evidence: Reading(state_variable),
            ..OURS_IS_FREE
        },
        Pain {
            number: 20,
            title: "a zombie is asked to shut down, and keeps the others from being asked",
            upstream: HasIt("stop: web runs"),
            debian: Free,
            evidence: Scenario(
                Host::default().settings(ALL_AT_ONCE).domain(zombie()).runs("web"),
                vec![stop().expect([Exit(0), Down("web")])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 20,
            title: "what goes wrong while guests are stopped is not said",
            upstream: HasIt("stop: says nothing of \"auto/bad\""),
            debian: NotShown("it does not read AUTO to stop guests"),
            evidence: Scenario(
                Host::default()
                    .settings(AUTO_ONLY)
                    .auto("web", "web")
                    .file("/etc/xen/auto/bad", "name =")
                    .runs("web"),
                vec![stop().expect([Says("auto/bad")])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 21,
            title: "a migration with an unknown outcome is followed by a save: the guest may run twice",
            upstream: HasIt("stop: the images are {\"web\"}, not {}"),
            debian: HasIt("stop: the images are {\"web--migratedaway\"}, not {}"),
            note: "the domain stays as it is, and start, stop and status name it until a person has decided",
            evidence: Scenario(
                Host::default()
                    .settings("XENDOMAINS_MIGRATE=\"elsewhere -s /root/transport\"")
                    .file("/root/transport", GONE_AFTER_GO)
                    .runs("web"),
                vec![stop().expect([Failure, Images(&[])])],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 22,
            title: "nobody restarts guests that reboot, and cleans up after those that power off",
            upstream: NotShown("a defect of what calls libxl: the scripts have xl's daemons"),
            debian: NotShown("a defect of what calls libxl: the scripts have xl's daemons"),
            note: "start leaves one monitor behind, and the next one makes up for what none has seen",
            evidence: Scenario(
                Host::default().auto("web", "web").auto("off", "off"),
                vec![
                    start().expect([Exit(0), Runs("web"), Runs("off")]),
                    guest("web", "reboot"),
                    guest("off", "poweroff").expect([Down("web"), Down("off")]),
                    // Everything that is run ends with the command here, the monitor too.
                    admin(&["/bin/sh", "-c", UNTIL_RESTARTED])
                        .expect([Run(&["web"]), Calls("libxl_domain_create_new", "web", 2), Says("monitor")]),
                ],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 23,
            title: "a guest that never gets built, where dom0 gives memory: later starts wait for xl's lock for ever",
            upstream: HasIt("start: has not ended"),
            debian: HasIt("start: has not ended"),
            note: "it says whom it waits for, and waits no longer than START_MAXWAIT",
            evidence: Scenario(
                Host::default().settings("XENDOMAINS_START_MAXWAIT=3\n").dom0_gives_memory().auto("web", "web").file("/root/slow.cfg", &xl_cfg("slow")),
                vec![
                    start()
                        .fault(never_built("slow"))
                        .beside(Beside {
                            command: "/usr/sbin/xl create /root/slow.cfg",
                            call: "libxl_domain_create_new",
                            awaited: false,
                        })
                        .within(10)
                        .expect([Failure, Says("/var/lock/xl")]),
                ],
            ),
            ..OURS_IS_FREE
        },
        Pain {
            number: 23,
            title: "a guest that never gets built: those after it are not started",
            upstream: HasIt("start: has not ended"),
            debian: HasIt("start: has not ended"),
            note: "a create has a limit (START_MAXWAIT), and then the next guest has its turn",
            evidence: Scenario(
                Host::default().settings("XENDOMAINS_START_MAXWAIT=3\n").auto("slow", "slow").auto("web", "web"),
                vec![start().fault(never_built("slow")).within(10).expect([Failure, Says("slow"), Runs("web")])],
            ),
            ..OURS_IS_FREE
        },
    ]
}

/// A rule by which this guest's creation does not come to an end.
fn never_built(name: &str) -> serde_json::Value {
    json!({"call": "libxl_domain_create_new", "domain": name, "complete": "never"})
}

/// A guest that does not react to a request. What libxl waits 60 s for takes a second here.
fn deaf(name: &str) -> serde_json::Value {
    json!({"name": name, "guest": {"shutdown": "ignore", "timeout_ms": 1000}})
}

/// A domain that has been destroyed but is not gone: libxl has forgotten its name and configuration.
fn zombie() -> serde_json::Value {
    let mut zombie = deaf("");
    zombie["name"] = json!(null);
    zombie["config"] = json!(null);
    zombie["dying"] = json!(true);
    zombie
}

/// A guest with a channel of this name.
fn with_channel(name: &str, channel: &str) -> serde_json::Value {
    let uuid = crate::scenario::uuid_of(name).to_string();
    json!({"name": name, "config": {
        "c_info": {"type": "pvh", "name": name, "uuid": uuid},
        "b_info": {"max_vcpus": 1, "max_memkb": 131_072, "target_memkb": 131_072, "type.pvh": {}},
        "channels": [{"devid": 0, "name": channel, "connection.socket": {"path": "/run/channel"}}],
    }})
}

/// What is wrong with a unit.
fn unit(parts: &Parts, whose: Whose) -> Result<Vec<String>> {
    let text = match whose {
        Whose::Ours => {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd/xendomains.service");
            std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?
        }
        _ => parts.upstream_unit()?,
    };
    Ok(unit_defects(&text))
}

fn unit_defects(unit: &str) -> Vec<String> {
    let values = |key: &str| -> Vec<&str> {
        unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    let value = |key: &str| values(key).first().copied();
    let mut found = Vec::new();
    let mut defect = |is: bool, text: &str| {
        if is {
            found.push(text.to_owned());
        }
    };
    // A step of the chain may take 300 s, for each guest.
    let limits = [value("TimeoutStopSec"), value("TimeoutSec")];
    defect(limits == [None, None], "no TimeoutStopSec: systemd kills the stop after 90 s");
    defect(limits.into_iter().flatten().any(|limit| limit != "infinity"), "TimeoutStopSec is not infinite");
    // A unit that has failed is not stopped at shutdown, with all the guests that it did start. One that counts as active
    // all the same has to say in `systemctl status` that guests are missing.
    let hidden = value("ExecStart").is_some_and(|command| command.starts_with('-'));
    defect(hidden && value("NotifyAccess").is_none(), "a start that fails counts as done, and nothing says so");
    let stops = |command: &&str| ["restart", "reload", "stop"].iter().any(|word| command.contains(word));
    defect(values("ExecReload").iter().any(stops), "a reload stops all guests");
    // By each of these the start, stop, restart or crash of another unit stops this one. A mount is stopped when its device
    // goes away.
    for key in
        ["Conflicts", "PartOf", "BindsTo", "Requires", "Requisite", "RequiresMountsFor", "StopPropagatedFrom"]
    {
        for unit in values(key).iter().flat_map(|units| units.split_whitespace()) {
            defect(true, &format!("{key}={unit}: what is done to that stops all guests"));
        }
    }
    found
}

/// A variable that a script reads and never sets.
fn state_variable(parts: &Parts, whose: Whose) -> Result<Vec<String>> {
    if whose == Whose::Ours {
        return Ok(Vec::new());
    }
    let script = parts.script(whose)?;
    let broken = script.contains("$state") && !script.contains("state=");
    Ok(broken.then(|| "`$state` is read but never set".to_owned()).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_there() {
        let mut numbers: Vec<u8> = all().iter().map(|pain| pain.number).collect();
        numbers.dedup();
        assert_eq!(numbers, (1..=23).collect::<Vec<_>>());
    }

    #[test]
    fn a_unit_is_read() {
        let bad = "[Service]\nExecStart=-/x start\nExecReload=/x restart\nConflicts=libvirtd.service\n";
        assert_eq!(unit_defects(bad).len(), 4);
        let good = "ExecStart=/x start\nExecReload=/x start\nTimeoutStopSec=infinity\nWants=a.service\n";
        assert_eq!(unit_defects(good), [""; 0]);
        assert_eq!(unit_defects(&good.replace("infinity", "5min")).len(), 1);
        let active = good.replace("=/x", "=-/x");
        assert_eq!(unit_defects(&active).len(), 1);
        assert_eq!(unit_defects(&format!("{active}NotifyAccess=exec\n")), [""; 0]);
    }
}
