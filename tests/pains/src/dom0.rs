//! A dom0 of files for one run of a scenario: Debian's packages, read-only, and directories of its own for all that is
//! written, seen by processes in namespaces of their own. So the scripts run as they are, and can touch nothing of this
//! machine, its processes included.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fake_libxl::StateFile;
use serde_json::Value;
use tempfile::TempDir;
use xtask::lab::cache;
use xtask::packages;

/// Raise when the way of unpacking changes.
const FORMAT: &str = "1";
const SUITE: &str = "bookworm";
/// The release of Xen in it.
const RELEASE: (&str, &str) = ("4", "17");
/// What the scripts come with, and what they call.
const PACKAGES: &str =
    "bash,coreutils,dash,grep,procps,sed,sysvinit-utils,xen-utils-4.17,xen-utils-common,xenstore-utils";
const UNIT: &str = "tools/hotplug/Linux/systemd/xendomains.service.in";

/// Whose xendomains it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The script of Xen itself, which Debian ships too, configured and otherwise unchanged, beside its own.
    Upstream,
    /// The script that Debian installs as the init script.
    Debian,
    /// This program.
    Ours,
}

impl Whose {
    pub const ALL: [Whose; 3] = [Whose::Upstream, Whose::Debian, Whose::Ours];

    pub fn name(self) -> &'static str {
        match self {
            Whose::Upstream => "upstream",
            Whose::Debian => "Debian",
            Whose::Ours => "ours",
        }
    }

    /// Where it is in the dom0.
    fn program(self) -> &'static str {
        match self {
            Whose::Upstream => "/usr/lib/xen-4.17/bin/xendomains",
            Whose::Debian => "/etc/init.d/xendomains",
            Whose::Ours => "/program",
        }
    }
}

/// What the runs have in common: the packages, and the programs of this workspace.
pub struct Parts {
    packages: PathBuf,
    source: PathBuf,
    /// This program's xendomains.
    pub program: PathBuf,
    /// The stand-in for `xl`: this program under another name.
    pub xl: PathBuf,
}

impl Parts {
    /// Fetches what is not there yet.
    pub fn fetch(workspace: &Path, program: PathBuf) -> Result<Parts> {
        let key = |content: &str| {
            let key = cache::Key::default().with("format", FORMAT).with("suite", SUITE).with("content", content);
            format!("{SUITE}-{}", key.finish())
        };
        let directory = workspace.join("target/pains");
        let unpacked = directory.join(key(PACKAGES));
        packages::unpack(PACKAGES, SUITE, &unpacked, &directory.join("packages.log"))?;
        let source = directory.join(key(UNIT));
        packages::unpack_source("xen", &[UNIT], SUITE, &source, &directory.join("source.log"))?;
        let program = program.canonicalize().with_context(|| program.display().to_string())?;
        let xl = std::env::current_exe().context("this program's file")?;
        Ok(Parts { packages: unpacked, source, program, xl })
    }

    /// The systemd unit of upstream, which Debian does not ship.
    pub fn upstream_unit(&self) -> Result<String> {
        read(&self.source.join(UNIT))
    }

    /// The text of a script.
    pub fn script(&self, whose: Whose) -> Result<String> {
        read(&self.packages.join(whose.program().trim_start_matches('/')))
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Makes the root directory what processes are to see, and runs a command in it.
const ENTER: &str = r#"set -e
cd "$ROOT"
for directory in bin lib lib64 sbin usr; do mount --bind "$PACKAGES/$directory" $directory; done
mount --bind "$XL" usr/lib/xen-common/bin/xen-utils-wrapper
mount --bind "$PROGRAM" program
mount --bind /dev/null dev/null
mount -t proc proc proc
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LD_LIBRARY_PATH=/fake \
    FAKE_LIBXL_STATE=/world FAKE_LIBXL_SCRIPT=/faults chroot . "$@""#;

/// Runs a command for so many seconds at most, perhaps beside another one that has come so far that libxl was called.
const RUN: &str = r#"limit=$1 beside=$2 call=$3 awaited=$4
shift 4
if [ -n "$beside" ]; then
    $beside &
    until grep -q "$call" /world; do sleep 0.1; done
fi
timeout --signal KILL "$limit" "$@"
code=$?
[ -z "$awaited" ] || wait
exit $code"#;

/// The exit code of `timeout` when it had to kill.
const KILLED: i32 = 137;

/// Something that an admin does at the same time.
#[derive(Clone)]
pub struct Beside {
    pub command: &'static str,
    /// The libxl function that it has called before the script starts.
    pub call: &'static str,
    /// Whether the run lasts until it has ended, too.
    pub awaited: bool,
}

/// How a command ended.
pub struct Ended {
    /// None: it had to be killed at its limit.
    pub code: Option<i32>,
    /// Standard output and standard error.
    pub said: String,
    pub took: Duration,
}

/// One dom0.
pub struct Dom0<'p> {
    parts: &'p Parts,
    root: TempDir,
    whose: Whose,
}

impl<'p> Dom0<'p> {
    pub fn new(parts: &'p Parts, whose: Whose) -> Result<Self> {
        let above = parts.packages.parent().unwrap_or(Path::new("/"));
        let dom0 = Dom0 { parts, root: tempfile::tempdir_in(above).context("a directory")?, whose };
        for directory in [
            "bin",
            "dev/xen",
            "etc/default",
            "etc/init.d",
            "etc/xen/auto",
            "etc/xen/scripts",
            "lib",
            "lib64",
            "proc",
            "root",
            "run",
            "sbin",
            "sys/hypervisor/version",
            "tmp",
            "usr",
            "var/lib/xen",
            "var/lock",
        ] {
            fs::create_dir_all(dom0.path(directory)).with_context(|| format!("make {directory}"))?;
        }
        let hotplug_path = "etc/xen/scripts/hotplugpath.sh";
        for (file, text) in [
            ("dev/null", ""),
            ("dev/xen/privcmd", ""),
            ("faults", "[]"),
            (hotplug_path, &read(&parts.packages.join(hotplug_path))?),
            ("kernel", ""),
            ("program", ""),
            ("sys/hypervisor/type", "xen\n"),
            ("sys/hypervisor/uuid", "00000000-0000-0000-0000-000000000000\n"),
            ("sys/hypervisor/version/major", &format!("{}\n", RELEASE.0)),
            ("sys/hypervisor/version/minor", &format!("{}\n", RELEASE.1)),
        ] {
            dom0.write(file, text)?;
        }
        symlink("/proc/self/fd", dom0.path("dev/fd")).context("make dev/fd")?;
        fake_libxl::install(&dom0.path("fake"), &format!("{}.{}", RELEASE.0, RELEASE.1));
        if whose == Whose::Debian {
            dom0.install_script()?;
        }
        Ok(dom0)
    }

    /// Debian's script, with one change: it looks for a file of xenfs, which can't be mounted without Xen.
    fn install_script(&self) -> Result<()> {
        let script = self.parts.script(Whose::Debian)?;
        ensure!(script.contains("/proc/xen/privcmd"), "Debian's script has changed: look at it");
        let place = Whose::Debian.program();
        self.write(place, &script.replace("/proc/xen/privcmd", "/dev/xen/privcmd"))
    }

    /// A path of the dom0, as this machine sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// Writes a file; a script (`#!`) can be executed.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        fs::write(self.path(path), text).with_context(|| format!("write {path}"))?;
        if text.starts_with("#!") {
            let executable = fs::Permissions::from_mode(0o755);
            fs::set_permissions(self.path(path), executable).with_context(|| format!("make {path} executable"))?;
        }
        Ok(())
    }

    /// The hypervisor and its guests.
    pub fn world(&self) -> StateFile {
        StateFile::new(&self.path("world"))
    }

    /// Runs `xendomains ACTION`.
    pub fn xendomains(&self, action: &str, faults: &Value, beside: Option<&Beside>, limit: u32) -> Result<Ended> {
        self.run(&[self.whose.program(), action], faults, beside, limit)
    }

    /// Runs a command, with these rules for the fake libxl.
    pub fn run(&self, command: &[&str], faults: &Value, beside: Option<&Beside>, limit: u32) -> Result<Ended> {
        self.write("faults", &faults.to_string())?;
        let output = self.path("output");
        let out = File::create(&output).context("create the output's file")?;
        let err = out.try_clone().context("duplicate its descriptor")?;
        let begun = Instant::now();
        let status = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--"])
            .args(["sh", "-c", ENTER, "sh", "/bin/sh", "-c", RUN, "sh", &limit.to_string()])
            .args(beside.map_or([""; 3], |b| [b.command, b.call, if b.awaited { "yes" } else { "" }]))
            .args(command)
            .env("ROOT", self.root.path())
            .env("PACKAGES", &self.parts.packages)
            .env("XL", &self.parts.xl)
            .env("PROGRAM", &self.parts.program)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .status()
            .context("start setpriv")?;
        let said = fs::read(&output).context("read the output")?;
        Ok(Ended {
            code: status.code().filter(|code| *code != KILLED),
            said: String::from_utf8_lossy(&said).into_owned(),
            took: begun.elapsed(),
        })
    }
}
