//! Building the program for a lab host.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

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

/// Builds the program as it is shipped, and returns its file.
///
/// # Errors
/// It can't be built; the error has the compiler's last lines.
pub fn build(workspace: &Path) -> Result<PathBuf> {
    prepare(workspace)?;
    progress::step("building xendomains", || {
        exec::logged(
            Command::new(cargo()).current_dir(workspace).args(["build", "--release", "--package", "xendomains"]),
            &workspace.join("target/lab/logs/build.log"),
        )
    })?;
    target_directory(workspace).map(|target| target.join("release/xendomains"))
}

/// The cargo that runs us.
#[must_use]
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// Where cargo puts what it builds, which the developer may have changed.
pub(crate) fn target_directory(workspace: &Path) -> Result<PathBuf> {
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
