//! Drop-ins that an admin has made for the unit that was there before ours: they apply to ours too, and may be wrong.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::Host;
use crate::report::Reporter;

const UNIT: &str = "xendomains.service";

/// Why a time limit is wrong for our unit.
const LIMIT: &str = "a limit of systemd's kills a save half-way; the settings have limits for each step, and \
                     XENDOMAINS_STOP_TIMEOUT for the whole stop";

/// Why a command is.
const COMMAND: &str = "it is run instead of, or beside, what this package runs";

/// Why the rest is.
const WAY: &str = "the unit relies on its own way to run and to end";

/// The settings that are wrong, and why.
const WRONG: &[(&str, &str)] = &[
    ("ExecCondition", COMMAND),
    ("ExecStartPre", COMMAND),
    ("ExecStart", COMMAND),
    ("ExecStartPost", COMMAND),
    ("ExecReload", COMMAND),
    ("ExecStop", COMMAND),
    ("ExecStopPost", COMMAND),
    ("TimeoutSec", LIMIT),
    ("TimeoutStartSec", LIMIT),
    ("TimeoutStopSec", LIMIT),
    ("TimeoutAbortSec", LIMIT),
    ("RuntimeMaxSec", LIMIT),
    ("JobTimeoutSec", LIMIT),
    ("JobRunningTimeoutSec", LIMIT),
    ("Type", WAY),
    ("RemainAfterExit", WAY),
    ("Restart", WAY),
    ("KillMode", WAY),
    ("KillSignal", WAY),
    ("SendSIGKILL", WAY),
];

/// Warns about drop-ins for our unit that were made for another one of its name, and about such a unit in its place.
pub fn warn_of_drop_ins(host: &Host, report: &Reporter) {
    for dir in &host.unit_dirs {
        let unit = dir.join(UNIT);
        // A link to /dev/null masks it, which is nobody's mistake.
        if unit.is_file() {
            let unit = unit.display();
            report.warn(&format!("{unit}: takes the place of this package's unit; move it away if it is older"));
        }
        let drop_ins = dir.join(format!("{UNIT}.d"));
        match conf_files(&drop_ins) {
            Ok(files) => files.iter().for_each(|file| warn_of(file, report)),
            Err(error) => report.warn(&format!("{}: {error}", drop_ins.display())),
        }
    }
}

fn conf_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(|file| file.extension().is_some_and(|end| end == "conf") && file.is_file());
    files.sort();
    Ok(files)
}

fn warn_of(file: &Path, report: &Reporter) {
    let path = file.display();
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) => return report.warn(&format!("{path}: {error}")),
    };
    for (number, line) in String::from_utf8_lossy(&text).lines().enumerate() {
        let Some((name, value)) = line.split_once('=') else { continue };
        let Some((name, why)) = WRONG.iter().find(|(wrong, _)| *wrong == name.trim()) else { continue };
        let value = value.trim();
        if *why == LIMIT && matches!(value, "infinity" | "0") {
            continue;
        }
        let number = number + 1;
        report
            .warn(&format!("{path}:{number}: {name}={value}: {why}; take it out if it was made for another unit"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::mock::Bench;
    use super::*;
    use crate::report::Exit;

    #[test]
    fn what_was_made_for_the_unit_before_ours_is_named_with_file_and_line() {
        let bench = Bench::new();
        let said = |bench: &Bench| {
            assert_eq!(bench.run(|run| warn_of_drop_ins(run.host, run.report)), Exit::Done);
            bench.err()
        };
        assert_eq!(said(&bench), "");
        let (etc, run) = (&bench.host.unit_dirs[0], &bench.host.unit_dirs[1]);
        let drop_ins = etc.join("xendomains.service.d");
        fs::create_dir_all(&drop_ins).expect("directory");
        fs::create_dir_all(run).expect("directory");
        for (name, text) in [
            ("10-time.conf", "[Service]\n# TimeoutStopSec=1\nTimeoutStopSec=10min\nTimeoutStartSec=infinity\n"),
            ("20-stop.conf", "[Service]\n ExecStop = /etc/init.d/xendomains stop\n"),
            (
                "30-fine.conf",
                "[Unit]\nRequiresMountsFor=/srv\nAfter=x.service\n[Service]\nEnvironment=ExecStop=1\n",
            ),
            ("40-old.conf.bak", "[Service]\nExecStop=x\n"),
        ] {
            fs::write(drop_ins.join(name), text).expect("write");
        }
        std::os::unix::fs::symlink("/dev/null", run.join("xendomains.service")).expect("link");
        let err = said(&bench);
        let lines: Vec<_> = err.lines().collect();
        assert_eq!(lines.len(), 2, "{err}");
        assert!(lines[0].contains("10-time.conf:3: TimeoutStopSec=10min: a limit"), "{err}");
        assert!(lines[1].contains("20-stop.conf:2: ExecStop=/etc/init.d/xendomains stop: it is run"), "{err}");
        fs::write(etc.join("xendomains.service"), "").expect("write");
        assert!(said(&bench).contains("/xendomains.service: takes the place"));
    }
}
