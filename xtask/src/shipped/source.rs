//! The two tarballs that everything is built from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::directory;
use crate::lab::cache::{self, Key};
use crate::program::cargo;
use crate::{exec, progress};

/// The tarballs, and which version they are.
#[derive(Debug, Clone)]
pub struct Source {
    /// As in Cargo.toml.
    pub version: String,
    /// The files of the workspace.
    pub tarball: PathBuf,
    /// The crates that it needs.
    pub vendor: PathBuf,
}

impl Source {
    /// Packs the workspace as it is now, and the crates if Cargo.lock has changed since they were packed.
    ///
    /// # Errors
    /// git or tar fails, or a crate can't be had.
    pub fn pack(workspace: &Path) -> Result<Source> {
        let directory = directory(workspace);
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let version = version(workspace)?;
        let name = format!("xendomains-{version}");
        let tarball = directory.join(format!("{name}.tar.gz"));
        let files = exec::output(Command::new("git").current_dir(workspace).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--deduplicate",
        ]))?;
        // A file that was removed and not yet committed is still named.
        let there = files.split(|byte| *byte == 0).filter(|file| {
            let file = workspace.join(String::from_utf8_lossy(file).as_ref());
            file.is_file() || file.is_symlink()
        });
        let list = directory.join("files");
        fs::write(&list, there.collect::<Vec<_>>().join(&0)).context("write the list of files")?;
        exec::output(
            Command::new("tar")
                .current_dir(workspace)
                .args(["--null", "--no-recursion", "--owner=0", "--group=0", "--numeric-owner", "--sort=name"])
                // Not of what links lead to.
                .arg(format!("--transform=flags=r;s,^,{name}/,"))
                .arg("--files-from")
                .arg(&list)
                .arg("-czf")
                .arg(&tarball),
        )?;
        let vendor = directory.join(format!("{name}-vendor.tar.gz"));
        let lock = fs::read(workspace.join("Cargo.lock")).context("read Cargo.lock")?;
        let kept = directory.join(format!("vendor-{}", Key::default().with("lock", lock).finish()));
        cache::folder(&kept, |part| {
            progress::step("packing the crates", || {
                let vendor = Command::new(cargo())
                    .current_dir(workspace)
                    .args(["vendor", "--quiet", "--locked", "--versioned-dirs"])
                    .arg(part.join("vendor"))
                    .stdout(Stdio::null())
                    .status()
                    .context("start cargo")?;
                ensure!(vendor.success(), "cargo vendor failed");
                exec::output(
                    Command::new("tar")
                        .args(["--owner=0", "--group=0", "--numeric-owner", "--sort=name", "-czf"])
                        .arg(part.join("vendor.tar.gz"))
                        .arg("-C")
                        .arg(part)
                        .arg("vendor"),
                )
                .map(drop)
            })
        })?;
        fs::copy(kept.join("vendor.tar.gz"), &vendor).with_context(|| format!("write {}", vendor.display()))?;
        Ok(Source { version, tarball, vendor })
    }
}

fn version(workspace: &Path) -> Result<String> {
    let mut command = Command::new(cargo());
    command.current_dir(workspace).args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: serde_json::Value =
        serde_json::from_slice(&exec::output(&mut command)?).context("read metadata")?;
    let packages = metadata["packages"].as_array().context("cargo names no packages")?;
    let ours = packages.iter().find(|package| package["name"] == "xendomains");
    let version = ours.and_then(|package| package["version"].as_str());
    version.map(str::to_owned).context("cargo names no package xendomains")
}
