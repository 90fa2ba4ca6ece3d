//! The RPM package.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Source, build_directory, directory, offline};
use crate::lab::cache;
use crate::{exec, packages, program, progress};

/// Builds the source package and the package, and returns the directory that has them. Requirements of the build are not
/// looked at: they are names of another distribution's packages.
///
/// # Errors
/// It can't be built.
pub fn build(workspace: &Path) -> Result<PathBuf> {
    program::prepare(workspace)?;
    packages::need(
        &[("rpmbuild", "rpm"), ("unshare", "util-linux")],
        &workspace.join("target/lab/logs/install.log"),
    )?;
    let source = Source::pack(workspace)?;
    let top = directory(workspace).join("rpm");
    cache::remove_all(&top)?;
    let builds = directory(workspace).join("debian");
    fs::create_dir_all(&builds).with_context(|| format!("make {}", builds.display()))?;
    let sources = top.join("SOURCES");
    fs::create_dir_all(&sources).with_context(|| format!("make {}", sources.display()))?;
    for tarball in [&source.tarball, &source.vendor] {
        let to = sources.join(tarball.file_name().context("a tarball has a name")?);
        fs::copy(tarball, &to).with_context(|| format!("write {}", to.display()))?;
    }
    progress::step("building the RPM package", || {
        exec::logged(
            offline("rpmbuild")?
                .args(["-ba", "--nodeps"])
                .arg(format!("--define=_topdir {}", top.display()))
                .arg(format!("--define=upstream_version {}", source.version))
                // Where the Debian package was built: crates in another place cargo would build anew.
                .arg(format!("--define=_builddir {}", builds.display()))
                .arg(workspace.join("packaging/rpm/xendomains.spec"))
                .env("CARGO_TARGET_DIR", build_directory(workspace)),
            &top.join("build.log"),
        )
    })?;
    Ok(top)
}
