//! The Debian package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Source, build_directory, directory, offline, unpack};
use crate::lab::cache::{self, Key};
use crate::{exec, packages, program, progress};

/// What builds it.
const NEEDED: &[(&str, &str)] =
    &[("dpkg-buildpackage", "dpkg-dev"), ("dh", "debhelper"), ("fakeroot", "fakeroot"), ("unshare", "util-linux")];

/// The package, and what describes the whole build.
#[derive(Debug, Clone)]
pub struct Package {
    /// What is installed.
    pub deb: PathBuf,
    /// What lintian looks at.
    pub changes: PathBuf,
}

/// Builds the package for this machine's Debian, if it is not there already: made of the same source and crates with the same
/// compiler. Build dependencies are not looked at: a developer's compiler need not be
/// Debian's. All that a source package is made of is beside it, but to pack the crates anew and to have lintian look at
/// them would take minutes.
///
/// # Errors
/// It can't be built.
pub fn build(workspace: &Path) -> Result<Package> {
    program::prepare(workspace)?;
    packages::need(NEEDED, &workspace.join("target/lab/logs/install.log"))?;
    let source = Source::pack(workspace)?;
    let parent = directory(workspace).join("debian");
    let compiler = exec::output(Command::new("rustc").arg("--version"))?;
    let content = |file: &Path| fs::read(file).with_context(|| format!("read {}", file.display()));
    let made_of = Key::default()
        .with("source", content(&source.tarball)?)
        .with("crates", content(&source.vendor)?)
        .with("compiler", compiler)
        .finish();
    let stamp = parent.join("made-of");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == made_of) {
        return found(&parent);
    }
    cache::remove_all(&parent)?;
    let version = &source.version;
    let tree = parent.join(format!("xendomains-{version}"));
    unpack(&source.tarball, &tree)?;
    unpack(&source.vendor, &tree.join("vendor"))?;
    exec::output(Command::new("cp").arg("-a").arg(tree.join("packaging/debian")).arg(tree.join("debian")))?;
    for (from, name) in [(&source.tarball, "orig"), (&source.vendor, "orig-vendor")] {
        let to = parent.join(format!("xendomains_{version}.{name}.tar.gz"));
        fs::copy(from, &to).with_context(|| format!("write {}", to.display()))?;
    }
    progress::step("building the Debian package", || {
        exec::logged(
            offline("dpkg-buildpackage")?
                .current_dir(&tree)
                .args(["--build=binary", "--no-check-builddeps", "--unsigned-source", "--unsigned-changes"])
                .env("DEB_BUILD_OPTIONS", "nocheck noautodbgsym")
                .env("CARGO_TARGET_DIR", build_directory(workspace)),
            &parent.join("build.log"),
        )
    })?;
    let package = found(&parent)?;
    fs::write(&stamp, made_of).with_context(|| format!("write {}", stamp.display()))?;
    Ok(package)
}

/// What the last build has made.
fn found(parent: &Path) -> Result<Package> {
    Ok(Package { deb: ending(parent, "deb")?, changes: ending(parent, "changes")? })
}

/// The file with this ending.
fn ending(directory: &Path, ending: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    let found = paths.find(|path| path.extension().is_some_and(|found| found == ending));
    found.with_context(|| format!("no .{ending} in {}", directory.display()))
}
