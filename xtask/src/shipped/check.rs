//! Whether what distributions get is as it should be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Source, debian, directory, offline, rpm, unpack};
use crate::lab::Release;
use crate::lab::cache::{self, Key};
use crate::packages::{self, Mirror};
use crate::program::cargo;
use crate::{exec, progress};

/// A check, by the name that is printed.
type Check = (&'static str, fn(&Path) -> Result<()>);

/// What CI does, in this order: the first one builds what the others look at.
const DEBIAN: &[Check] = &[
    ("deb", lintian),
    ("manual_pages", manual_pages),
    ("completions", completions),
    ("deb_takes_over_and_leaves", takes_over_and_leaves),
];

/// What builds the same again, in other ways.
const OTHERS: &[Check] = &[("rpm", rpm), ("msrv", msrv), ("publish", publish)];

/// Checks the Debian package, and if it is wanted the others too. Returns how many checks held, and how many did not.
pub fn run(workspace: &Path, others: bool) -> (usize, usize) {
    let mut checks = DEBIAN.to_vec();
    if others {
        checks.extend(OTHERS);
    }
    let mut failed = 0;
    for (name, check) in &checks {
        match check(workspace) {
            Ok(()) => println!("test packages {name} ... ok"),
            Err(error) => {
                failed += 1;
                println!("test packages {name} ... FAILED\n{error:?}");
            }
        }
    }
    (checks.len() - failed, failed)
}

fn log(workspace: &Path, name: &str) -> PathBuf {
    directory(workspace).join(format!("{name}.log"))
}

fn need(workspace: &Path, programs: &[(&str, &str)]) -> Result<()> {
    packages::need(programs, &workspace.join("target/lab/logs/install.log"))
}

/// The Debian package can be built without network, and Debian's own check finds no error in it.
fn lintian(workspace: &Path) -> Result<()> {
    need(workspace, &[("lintian", "lintian")])?;
    let package = debian::build(workspace)?;
    exec::logged(
        Command::new("lintian").args(["--allow-root", "--fail-on", "error"]).arg(package.changes),
        &log(workspace, "lintian"),
    )
}

/// The files that the build has made out of the command line and the settings.
fn assets(workspace: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let directory = unpacked(workspace)?.join("debian/assets");
    let entries = fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.to_string_lossy().ends_with(ending));
    ensure!(!files.is_empty(), "no file in {} ends in {ending}", directory.display());
    Ok(files)
}

/// Where the Debian package was built.
fn unpacked(workspace: &Path) -> Result<PathBuf> {
    let directory = directory(workspace).join("debian");
    let entries = fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths.find(|path| path.is_dir()).with_context(|| format!("nothing is unpacked in {}", directory.display()))
}

/// They are made, whole, and understood by both programs that show them.
fn manual_pages(workspace: &Path) -> Result<()> {
    need(workspace, &[("mandoc", "mandoc"), ("man", "man-db")])?;
    let mut pages = assets(workspace, ".8")?;
    ensure!(pages.len() > 5, "there is not a page for each command: {pages:?}");
    pages.extend(assets(workspace, ".5")?);
    exec::output(Command::new("mandoc").args(["-T", "lint", "-W", "error"]).args(&pages))?;
    for page in &pages {
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"]).arg(page).env("MANROFFSEQ", "");
        let output = man.output().context("start man")?;
        let warnings = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && warnings.is_empty(), "{}: {warnings}", page.display());
    }
    Ok(())
}

/// Each shell can read its own.
fn completions(workspace: &Path) -> Result<()> {
    need(workspace, &[("bash", "bash"), ("zsh", "zsh"), ("fish", "fish")])?;
    for (shell, ending) in [("bash", "xendomains.bash"), ("zsh", "_xendomains"), ("fish", "xendomains.fish")] {
        for file in assets(workspace, ending)? {
            exec::output(Command::new(shell).arg("-n").arg(file))?;
        }
    }
    Ok(())
}

/// Installs the package over Debian's own xendomains and takes it away again, as dpkg does it.
fn takes_over_and_leaves(workspace: &Path) -> Result<()> {
    need(workspace, &[("mmdebstrap", "mmdebstrap"), ("mandoc", "mandoc")])?;
    let deb = debian::build(workspace)?.deb;
    let key = Key::default().with("packages", DOM0).finish();
    let clean = directory(workspace).join(format!("dom0-{key}"));
    cache::folder(&clean, |part| {
        progress::step("installing Debian's own xendomains in a folder", || {
            let sources = Mirror::of_this_machine()?.sources(Release::V4_17.suite(), true);
            exec::logged(
                packages::mmdebstrap()?
                    .args(["--variant=minbase", &format!("--include={DOM0}")])
                    // To be installed again, over ours.
                    .arg("--customize-hook=chroot \"$1\" sh -c 'cd /root && apt-get download xen-utils-common'")
                    .arg(Release::V4_17.suite())
                    .arg(part)
                    .args(sources),
                &log(workspace, "dom0"),
            )
        })
    })?;
    let root = directory(workspace).join("dom0");
    cache::remove_all(&root)?;
    exec::output(Command::new("cp").arg("-a").arg(&clean).arg(&root))?;
    fs::copy(&deb, root.join("root/ours.deb")).context("copy the package")?;
    exec::logged(
        Command::new("unshare")
            .args(["--net", "--mount", "--", "chroot"])
            .arg(&root)
            .args(["sh", "-exc", TAKE_OVER])
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        &log(workspace, "take-over"),
    )?;
    cache::remove_all(&root)
}

/// What Debian's xendomains is part of, and what asks the units.
const DOM0: &str = "xen-utils-common,systemd-sysv,insserv,startpar";

/// The admin has settings of their own, with a mistake, which stay what they are whatever happens.
const TAKE_OVER: &str = r#"
state() { for place in /etc /usr/lib/systemd /usr/share/xendomains /var/lib/dpkg/diversions /var/lib/xendomains; do
    [ ! -e $place ] || find $place -type f ! -name '*-old' ! -name ld.so.cache -exec md5sum {} +
    [ ! -e $place ] || find $place -type l -printf '%p -> %l\n'
done | sort; }
printf '%s\n' 'XENDOMAINS_SAVE=/srv/save' 'XENDOMAINS_STOP_MAXWAIT=300s' >>/etc/default/xendomains
mkdir /etc/systemd/system/xendomains.service.d
printf '%s\n' '[Service]' 'TimeoutStopSec=300' >/etc/systemd/system/xendomains.service.d/old.conf
state >/tmp/before
dpkg -i /root/ours.deb >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }
# What is wrong is shown, and the installation goes on.
cat /tmp/said
grep '^error: /etc/default/xendomains:.* 300 counts instead' /tmp/said
grep '^warning: .*/old.conf:2: TimeoutStopSec=300' /tmp/said
grep -q /srv/save /etc/default/xendomains
[ "$(readlink /etc/init.d/xendomains)" = /usr/share/xendomains/init.d/xendomains ]
/etc/init.d/xendomains status || [ $? = 3 ]
/etc/init.d/xendomains stop
/etc/init.d/xendomains nonsense || [ $? = 2 ]
ls /etc/rc2.d/S*xendomains /etc/rc6.d/K*xendomains
[ -L /etc/systemd/system/multi-user.target.wants/xendomains.service ]
grep -q ExecStopPost /usr/lib/systemd/system/xendomains.service
systemd-analyze verify --man=no xendomains.service xendomains-monitor.service 2>/tmp/units || cat /tmp/units
if grep -i xendomains /tmp/units; then exit 1; fi
# Xen's own package again, as in an update: it neither asks nor takes its place back.
dpkg -i /root/xen-utils-common_*.deb
[ -L /etc/init.d/xendomains ]
grep -q /srv/save /etc/default/xendomains
dpkg -i /root/ours.deb
dpkg -r xendomains
grep -q 'xen restore' /etc/init.d/xendomains
grep -q /srv/save /etc/default/xendomains
dpkg -i /root/ours.deb
mkdir -p /var/lib/xendomains/migrated
dpkg -P xendomains
state >/tmp/after
diff /tmp/before /tmp/after
"#;

/// The RPM package can be built without network, and has what the Debian one has.
fn rpm(workspace: &Path) -> Result<()> {
    let top = rpm::build(workspace)?;
    let packages = exec::output(Command::new("find").arg(top.join("RPMS")).args(["-name", "*.rpm"]))?;
    let packages = String::from_utf8(packages).context("a path")?;
    let listing = exec::output(Command::new("rpm").args(["-qpl"]).args(packages.lines()))?;
    let listing = String::from_utf8(listing).context("a list of files")?;
    for file in [
        "bin/xendomains",
        "/man5/xendomains.5",
        "/man8/xendomains-start.8",
        "/systemd/system/xendomains-monitor.service",
        "/systemd/system/xendomains.service.d/10-xendomains.conf",
        "/systemd/system/xendomains-guests-.scope.d/10-guests.conf",
        "/systemd/system/session-.scope.d/10-xendomains.conf",
        "/bash-completion/completions/xendomains",
    ] {
        ensure!(listing.contains(file), "no {file} in the package:\n{listing}");
    }
    Ok(())
}

/// With the machine's devices in a root directory, which are not there for anybody else.
const IN_ROOT: &str = r#"
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc"
exec chroot "$0" sh -ec 'cd /tmp/xendomains && exec cargo check --frozen -p xendomains -p xenlight'
"#;

/// The compiler of Debian 13 builds the program and the two crates, out of the crates that we ship.
fn msrv(workspace: &Path) -> Result<()> {
    let suite = Release::V4_20.suite();
    // The first ones are what it needs to be a root directory: the links to the loader, and a shell.
    let compiler = "base-files,dash,coreutils,cargo,rustc,gcc,libc6-dev,libclang-dev";
    let key = Key::default().with("packages", compiler).finish();
    let root = directory(workspace).join(format!("{suite}-{key}"));
    packages::unpack(compiler, suite, &root, &log(workspace, suite))?;
    let source = Source::pack(workspace)?;
    let tree = root.join("tmp/xendomains");
    cache::remove_all(&tree)?;
    unpack(&source.tarball, &tree)?;
    unpack(&source.vendor, &tree.join("vendor"))?;
    fs::create_dir_all(tree.join(".cargo-home")).context("make cargo's directory")?;
    fs::copy(tree.join("packaging/debian/cargo-config.toml"), tree.join(".cargo-home/config.toml"))
        .context("write cargo's configuration")?;
    progress::step("building with Debian 13's compiler", || {
        exec::logged(
            offline("unshare")?
                .args(["--mount", "--", "sh", "-ec", IN_ROOT])
                .arg(&root)
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .env("CARGO_HOME", "/tmp/xendomains/.cargo-home")
                .env("CARGO_TARGET_DIR", "/tmp/build")
                // The packages are unpacked, not set up: nothing has the name cc.
                .env("CC", "gcc")
                .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER", "gcc"),
            &log(workspace, "msrv"),
        )
    })
}

/// crates.io would take the two crates: as they are packed, each builds by itself.
fn publish(workspace: &Path) -> Result<()> {
    exec::logged(
        Command::new(cargo()).current_dir(workspace).args([
            "publish",
            "--dry-run",
            "--allow-dirty",
            "--locked",
            "-p",
            "xenlight-sys",
            "-p",
            "xenlight",
        ]),
        &log(workspace, "publish"),
    )
}
