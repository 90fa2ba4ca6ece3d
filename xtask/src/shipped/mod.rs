//! What distributions get, as they get it: the source and its crates as tarballs, and the packages that are built from
//! nothing else, without network.
//!
//! Everything is under `target/packages`:
//!
//! | what | made of |
//! |---|---|
//! | `xendomains-VERSION.tar.gz` | the files of the workspace that git knows |
//! | `xendomains-VERSION-vendor.tar.gz` | the crates that Cargo.lock names |
//! | `debian/`, `rpm/` | the packages; the source that the last one was built from is in the former |
//! | `build/` | what cargo has built for both |
//! | `dom0-KEY/` | a Debian with Xen's tools, to install the package in |
//! | `trixie-KEY/` | Debian 13's compiler |

pub mod check;
pub mod debian;
pub mod rpm;
mod source;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::exec;
use crate::program::cargo;

pub use source::Source;

/// Where all of it is.
fn directory(workspace: &Path) -> PathBuf {
    workspace.join("target/packages")
}

/// What cargo builds is kept here for the next time: the packages are built in new folders, but from the same crates.
fn build_directory(workspace: &Path) -> PathBuf {
    directory(workspace).join("build")
}

/// A program without network, and with the cargo that runs us: a package's build has a home of its own, in which rustup
/// would find no compiler.
fn offline(program: &str) -> Result<Command> {
    if !rustix::process::geteuid().is_root() {
        bail!("building packages with the network taken away needs root");
    }
    let cargo = cargo();
    let toolchain = cargo.parent().context("cargo has no directory")?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(toolchain.to_owned()).chain(std::env::split_paths(&path)))
        .context("the search path")?;
    let mut command = Command::new("unshare");
    command.args(["--net", "--", program]).env("PATH", path);
    // What cargo tells the programs that it runs must not reach the cargo that they run.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO") || name.starts_with("RUST") {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// Unpacks a tarball into a folder without the folder that is in it.
fn unpack(tarball: &Path, target: &Path) -> Result<()> {
    std::fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    exec::output(Command::new("tar").arg("-xf").arg(tarball).arg("-C").arg(target).arg("--strip-components=1"))?;
    Ok(())
}
