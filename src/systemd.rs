//! Questions to systemd about our unit, by way of its commands. Where systemd does not run there is no answer.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::process::{self, Job};

/// The limit of a question.
const LIMIT: Duration = Duration::from_secs(10);

/// The unit that stops guests at shutdown which were left running when another unit displaced ours.
pub const LEFT: &str = "xendomains-left.service";

/// The target that everything ends for at shutdown.
const SHUTDOWN: &str = "shutdown.target";

/// Tells which unit systemd stops by running this process: the one that `XENDOMAINS_UNIT` names, in a command of its that
/// systemd runs at the end. Only those get `SERVICE_RESULT`.
pub fn stopped_unit() -> Option<String> {
    std::env::var_os("SERVICE_RESULT")?;
    std::env::var("XENDOMAINS_UNIT").ok()
}

/// Tells for the start of which other unit systemd stops ours: one that conflicts with it, as libvirt's daemons say that
/// they do.
///
/// A shutdown is never taken for that.
pub fn displaced_by(host: &Host) -> Option<String> {
    let unit = host.stopped_unit.as_deref()?;
    let conflicts = ask(host, &["show", "--property=Conflicts", "--property=ConflictedBy", "--value", unit])?;
    let conflicts: HashSet<&str> = conflicts.split_whitespace().collect();
    let jobs = ask(host, &["list-jobs", "--no-legend", "--plain", "--full"])?;
    // A line has the number of the job, the unit, and what is done with it.
    let started: Vec<&str> = jobs
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (unit, kind) = (words.next()?, words.next()?);
            matches!(kind, "start" | "restart").then_some(unit)
        })
        .collect();
    if started.contains(&SHUTDOWN) {
        return None;
    }
    started.into_iter().find(|unit| conflicts.contains(unit)).map(str::to_owned)
}

/// Makes systemd stop the guests at shutdown though our unit is not active any more: a unit that does nothing else is
/// started, and is stopped before everything that ours is stopped before.
pub fn stop_at_shutdown(host: &Host, program: &Path) -> Result<(), String> {
    let Some(unit) = host.stopped_unit.as_deref() else { return Ok(()) };
    if ask(host, &["is-active", LEFT]).is_some() {
        return Ok(());
    }
    let after = ask(host, &["show", "--property=After", "--value", unit]).unwrap_or_default();
    let stop = format!("--property=ExecStop={} stop", program.display());
    let words = [
        "--quiet",
        "--no-block",
        "--unit",
        LEFT,
        "--description=Xen guests that were left running: stop them at shutdown",
        "--property=Type=oneshot",
        "--property=RemainAfterExit=yes",
        &format!("--property=After={}", after.trim()),
        &stop,
        "--property=TimeoutStopSec=infinity",
        "--property=KillMode=process",
        "--",
        "true",
    ];
    run(&host.systemd_run, &words).map(drop)
}

/// Names the unit of a mount that systemd may unmount at shutdown before our unit has stopped the guests. Others are ordered by
/// one of the targets that our unit comes after, also those that were mounted by hand; those of fstab with `nofail` are not.
pub fn unordered_mount(host: &Host, mount_point: &Path) -> Option<String> {
    let answer = ask(host, &["show", "--property=Id", "--property=Before", "--", mount_point.to_str()?])?;
    let value = |name: &str| answer.lines().find_map(|line| line.strip_prefix(name));
    let (id, mut before) = (value("Id=")?, value("Before=")?.split_whitespace());
    let is_ordered =
        before.any(|unit| ["local-fs.target", "remote-fs.target", "xendomains.service"].contains(&unit));
    (!is_ordered).then(|| id.to_owned())
}

/// Tells after how long systemd forces a shutdown or reboot that is not through. `None`: never, or it can't be known.
pub fn shutdown_limit(host: &Host) -> Option<Duration> {
    let limits = ask(host, &["show", "--property=JobTimeoutUSec", "--value", "poweroff.target", "reboot.target"])?;
    limits.lines().filter_map(time_span).min()
}

/// Reads a time as systemd prints it: `1h 30min`.
fn time_span(text: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    for part in text.split_whitespace() {
        let (number, unit) = part.split_at(part.find(|letter: char| !letter.is_ascii_digit())?);
        let seconds = match unit {
            "d" => 24 * 60 * 60,
            "h" => 60 * 60,
            "min" => 60,
            "s" => 1,
            // Less than a second.
            "ms" | "us" => continue,
            // More than a shutdown takes, or no time.
            _ => return None,
        };
        sum += Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?);
    }
    (!sum.is_zero()).then_some(sum)
}

/// Asks `systemctl`. `None`: it has no answer, or a negative one.
fn ask(host: &Host, words: &[&str]) -> Option<String> {
    run(&host.systemctl, words).ok()
}

fn run(program: &Path, words: &[&str]) -> Result<String, String> {
    let arguments: Vec<OsString> = words.iter().map(OsString::from).collect();
    let ended = process::run(Job {
        program,
        arguments: &arguments,
        deadline: Instant::now().checked_add(LIMIT),
        interrupt: None,
        go_on: &|| Duration::ZERO,
        clean_up: Duration::ZERO,
        hear: &|_| {},
    })
    .map_err(|error| format!("{}: {error}", program.display()))?;
    if !ended.status.success() {
        let how = process::how(ended.status);
        return Err(format!("{} {}: {how}: {}", program.display(), words.join(" "), ended.complaints));
    }
    Ok(String::from_utf8_lossy(&ended.output).into_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::host::fake_dom0;

    /// Puts a command into the place of one of systemd's.
    pub(crate) fn stand_in(path: &Path, script: &str) {
        fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("write");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a script");
    }

    /// A `systemctl` for a unit that libvirtd conflicts with, with these jobs.
    pub(crate) fn jobs(host: &Host, jobs: &str) {
        let script = format!(
            "case $1 in\nshow) echo 'shutdown.target virtxend.service'; echo libvirtd.service ;;\n\
             list-jobs) echo '{jobs}' ;;\nis-active) exit 3 ;;\nesac"
        );
        stand_in(&host.systemctl, &script);
    }

    #[test]
    fn times_are_read_as_systemd_prints_them() {
        for (text, seconds) in [
            ("30min", Some(1800)),
            ("1h 30min", Some(5400)),
            ("2d 1h 1min 40s 5ms", Some(176_500)),
            ("infinity", None),
            ("0", None),
            ("1w", None),
            ("", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(time_span(text), seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn only_the_start_of_a_unit_that_conflicts_displaces_ours() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut host = fake_dom0(dir.path());
        let ours = "7 xendomains.service stop running";
        let shutdown = "8 libvirtd.service start waiting\n9 shutdown.target start waiting";
        for (unit, others, displaced) in [
            (Some("xendomains.service"), "8 libvirtd.service start waiting", Some("libvirtd.service")),
            (Some("xendomains.service"), "8 virtxend.service restart waiting", Some("virtxend.service")),
            (Some("xendomains.service"), "8 libvirtd.service stop waiting", None),
            (Some("xendomains.service"), "8 cron.service start waiting", None),
            (Some("xendomains.service"), shutdown, None),
            (Some("xendomains.service"), "", None),
            (None, "8 libvirtd.service start waiting", None),
        ] {
            host.stopped_unit = unit.map(str::to_owned);
            jobs(&host, &format!("{ours}\n{others}"));
            assert_eq!(displaced_by(&host).as_deref(), displaced, "{unit:?} {others}");
        }
        host.stopped_unit = Some("xendomains.service".to_owned());
        fs::remove_file(&host.systemctl).expect("remove");
        assert_eq!(displaced_by(&host), None, "without systemd guests are stopped");
    }
}
