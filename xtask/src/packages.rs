//! What has to be installed on the developer's machine: Debian packages, and only those that are missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::exec;
use crate::lab::{Release, cache};
use crate::progress;

/// The mirror of a machine that says nothing about its own.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// Makes sure that every program is there, and installs the Debian package of those that are not.
///
/// # Errors
/// A program is missing and can't be installed: not root, no apt, no network.
pub fn need(programs: &[(&str, &str)], log: &Path) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        bail!(
            "these packages are missing: {list}\nInstall them: sudo apt-get install --no-install-recommends {list}"
        );
    }
    progress::step(&format!("installing {list}"), || {
        let install = || {
            exec::logged(
                Command::new("apt-get")
                    .env("DEBIAN_FRONTEND", "noninteractive")
                    .args(["install", "--yes", "--no-install-recommends"])
                    .args(&missing),
                log,
            )
        };
        // The package lists may be missing, or so old that the mirror no longer has what they name.
        if package_lists_present() && install().is_ok() {
            return Ok(());
        }
        exec::logged(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").arg("update"), log)?;
        install()
    })
}

/// The program's file, searched as a shell would, and where administrators' programs are.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

fn package_lists_present() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// Debian mirrors, as the machine's own apt uses them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// The archive's address, without a slash at the end.
    pub main: String,
    /// The address of the archive of security updates.
    pub security: String,
}

impl Mirror {
    /// Asks the machine's apt which mirrors it uses.
    ///
    /// # Errors
    /// apt-get can't be run.
    pub fn of_this_machine() -> Result<Self> {
        let listing = exec::output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(LABEL)|$(SITE)",
            "Created-By: Packages",
        ]))
        .context("ask apt for the Debian mirror")?;
        Ok(Self::from_targets(&String::from_utf8_lossy(&listing)))
    }

    /// Reads lines of `label|site`.
    fn from_targets(listing: &str) -> Self {
        let site = |label: &str| {
            listing
                .lines()
                .filter_map(|line| line.split_once('|'))
                .find(|(found, site)| *found == label && !site.is_empty())
                .map(|(_, site)| site.trim_end_matches('/').to_owned())
        };
        let main = site("Debian").unwrap_or_else(|| DEFAULT_MIRROR.to_owned());
        let security = site("Debian-Security").unwrap_or_else(|| format!("{main}-security"));
        Self { main, security }
    }

    /// The lines of sources.list for a suite.
    #[must_use]
    pub fn sources(&self, suite: &str, with_security: bool) -> Vec<String> {
        let mut lines = vec![format!("deb {} {suite} main", self.main)];
        if with_security {
            lines.push(format!("deb {} {suite}-security main", self.security));
        }
        lines
    }
}

/// mmdebstrap, to put packages into a folder, in process and mount namespaces of its own: when this process ends,
/// however it ends, the kernel ends everything that mmdebstrap has started, and what it has mounted goes with it.
/// So a later build finds a half-made folder that nobody writes to, and removing it can't reach this machine's `/dev`.
///
/// # Errors
/// Not root, or apt-config can't be run.
pub fn mmdebstrap() -> Result<Command> {
    if !rustix::process::geteuid().is_root() {
        bail!("unpacking Debian packages with their owners needs root");
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--"])
        .args(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .args(["mmdebstrap", "--mode=unshare", "--format=directory"])
        .args(proxy_options()?);
    Ok(command)
}

/// Gives a folder with these packages of a suite and all that they need, unpacked and not installed. Nothing is done if it
/// is there.
///
/// # Errors
/// The packages can't be had.
pub fn unpack(packages: &str, suite: &str, target: &Path, log: &Path) -> Result<()> {
    cache::folder(target, |part| {
        need(&[("mmdebstrap", "mmdebstrap")], log)?;
        progress::step(&format!("unpacking {packages} of {suite}"), || {
            exec::logged(
                mmdebstrap()?
                    .arg("--variant=extract")
                    .arg(format!("--include={packages}"))
                    .arg(suite)
                    .arg(part)
                    .args(Mirror::of_this_machine()?.sources(suite, false)),
                log,
            )
        })
    })
}

/// The folder with the xl and the headers of a release of Xen, unpacked from its Debian packages.
///
/// # Errors
/// The packages can't be had.
pub fn xen(workspace: &Path, release: Release) -> Result<PathBuf> {
    let suite = release.suite();
    let packages = format!("xen-utils-{release},libxen-dev");
    let key = cache::Key::default().with("packages", &packages).with("suite", suite).finish();
    let directory = workspace.join("target/xen");
    let root = directory.join(format!("{release}-{key}"));
    unpack(&packages, suite, &root, &directory.join(format!("{release}.log")))?;
    Ok(root)
}

/// Gives a folder with these files of a source package of a suite, as its authors have published them: before
/// Debian's changes. Nothing is done if it is there.
///
/// # Errors
/// The package can't be had, or has no such files.
pub fn unpack_source(package: &str, files: &[&str], suite: &str, target: &Path, log: &Path) -> Result<()> {
    cache::folder(target, |part| {
        need(&[("mmdebstrap", "mmdebstrap")], log)?;
        let wanted: Vec<_> = files.iter().map(|file| format!("'*/{file}'")).collect();
        let hook = format!(
            "cd \"$1\" && APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\" apt-get source --download-only {package} && \
             tar -xf {package}_*.orig.tar.* --strip-components=1 --wildcards {} && rm {package}_*",
            wanted.join(" ")
        );
        let sources = Mirror::of_this_machine()?.sources(suite, false);
        progress::step(&format!("unpacking the source of {package} of {suite}"), || {
            exec::logged(
                mmdebstrap()?
                    .args(["--variant=extract", &format!("--extract-hook={hook}"), suite])
                    .arg(part)
                    .args(sources.iter().map(|line| line.replacen("deb ", "deb-src ", 1)))
                    .args(&sources),
                log,
            )
        })
    })
}

/// The machine's apt proxy settings as `--aptopt` arguments of mmdebstrap, which has a configuration of its own.
///
/// # Errors
/// apt-config can't be run.
pub fn proxy_options() -> Result<Vec<String>> {
    let dump = exec::output(Command::new("apt-config").arg("dump")).context("ask apt for its proxy")?;
    Ok(String::from_utf8_lossy(&dump)
        .lines()
        .filter(|line| line.starts_with("Acquire::http::Proxy") || line.starts_with("Acquire::https::Proxy"))
        .map(|line| format!("--aptopt={line}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_from_apt() {
        let mirror = Mirror::from_targets(
            "Other|https://example.org/x\nDebian|http://mirror.example/debian/\nDebian|http://second.example/debian\nDebian-Security|http://sec.example/s\n",
        );
        assert_eq!(mirror.main, "http://mirror.example/debian");
        assert_eq!(mirror.security, "http://sec.example/s");
    }

    #[test]
    fn without_an_answer_the_default_mirror_is_used() {
        let mirror = Mirror::from_targets("");
        assert_eq!(mirror.main, DEFAULT_MIRROR);
        assert_eq!(mirror.security, format!("{DEFAULT_MIRROR}-security"));
        assert_eq!(
            mirror.sources("bookworm", true)[1],
            format!("deb {DEFAULT_MIRROR}-security bookworm-security main")
        );
        assert_eq!(mirror.sources("bookworm", false).len(), 1);
    }

    #[test]
    fn programs_are_found_where_shells_find_them() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-here").is_none());
    }
}
