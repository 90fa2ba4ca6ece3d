//! Building the program for a lab host.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::lab::{Release, cache};
use crate::{exec, packages, progress};

/// What the workspace needs to be built, apart from Rust: a C compiler, and libclang for bindgen.
const NEEDED: &[(&str, &str)] = &[("cc", "gcc"), ("clang", "clang")];

/// Installs what the machine lacks to build the workspace.
///
/// # Errors
/// Packages can't be installed.
pub fn prepare(workspace: &Path) -> Result<()> {
    packages::need(NEEDED, &workspace.join("target/lab/logs/install.log"))
}

/// The oldest Debian that the lab has; its C library is the oldest that the program must run with.
const OLDEST: Release = Release::V4_14;

/// Raise when the way of unpacking changes.
const FORMAT: &str = "1";

/// Named for cargo, so that what is linked against the old C library stays apart from build scripts, which run here.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the program as it is shipped, once for all hosts of the lab, and returns its file.
///
/// It is linked against the C library of the oldest of them, since a program runs with newer ones but not with older.
///
/// # Errors
/// It can't be built; the error has the compiler's last lines.
pub fn build(workspace: &Path) -> Result<PathBuf> {
    prepare(workspace)?;
    let libc = oldest_libc(workspace)?;
    progress::step("building xendomains", || {
        exec::logged(
            Command::new(cargo())
                .current_dir(workspace)
                .args(["build", "--release", "--package", "xendomains", "--target", TARGET])
                .env(
                    "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                    format!("-Clink-arg=--sysroot={} -Cstrip=symbols", libc.display()),
                ),
            &workspace.join("target/lab/logs/build.log"),
        )
    })?;
    target_directory(workspace).map(|target| target.join(TARGET).join("release/xendomains"))
}

/// A C library to link against, unpacked and not installed.
fn oldest_libc(workspace: &Path) -> Result<PathBuf> {
    let suite = OLDEST.suite();
    let key = cache::Key::default().with("format", FORMAT).with("suite", suite).finish();
    let lab = workspace.join("target/lab");
    let root = lab.join(format!("libc-{suite}-{key}"));
    packages::unpack("libc6-dev,libgcc-s1", suite, &root, &lab.join("logs/libc.log"))?;
    Ok(root)
}

/// The cargo that runs us.
#[must_use]
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// Where cargo puts what it builds, which the developer may have changed.
fn target_directory(workspace: &Path) -> Result<PathBuf> {
    let metadata = exec::output(Command::new(cargo()).current_dir(workspace).args([
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
    ]))?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata).context("read cargo's metadata")?;
    let directory = metadata["target_directory"].as_str().context("cargo names no target directory")?;
    Ok(directory.into())
}
