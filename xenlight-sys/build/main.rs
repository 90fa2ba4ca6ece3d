//! Generates the bindings from our own headers, compiles the C shim, and proves the headers against Xen's, if installed.

mod bindings;
mod compile;
mod inventory;
mod proof;
mod system;
mod verified;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What each step gets.
struct Build {
    /// The crate: `csrc`, `vendor-headers`.
    root: PathBuf,
    /// Where everything made goes.
    out: PathBuf,
}

impl Build {
    fn headers(&self) -> PathBuf {
        self.root.join("vendor-headers")
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // `error` is shown also when cargo hides the script's output.
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let build =
        Build { root: PathBuf::from(env_var("CARGO_MANIFEST_DIR")?), out: PathBuf::from(env_var("OUT_DIR")?) };
    for input in ["build", "csrc", "vendor-headers"] {
        rerun_if_changed(&build.root.join(input))?;
    }

    let list = bindings::generate(&build)?;
    compile_shim(&build);

    // Always written: the tests compile it against headers of other releases.
    let proof = build.out.join("proof.c");
    fs::write(&proof, proof::source(&list)).map_err(|e| format!("can't write {}: {e}", proof.display()))?;
    system::prove(&build, &proof)?;

    println!("cargo::metadata=include={}", build.headers().display());
    Ok(())
}

fn env_var(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("cargo didn't set {name}: {e}"))
}

/// Names every file itself: cargo only looks at the time of a directory that is reached through a link.
fn rerun_if_changed(path: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-changed={}", path.display());
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(|e| format!("can't read {}: {e}", path.display()))?;
        for entry in entries {
            let entry = entry.map_err(|e| format!("can't read {}: {e}", path.display()))?;
            rerun_if_changed(&entry.path())?;
        }
    }
    Ok(())
}

fn compile_shim(build: &Build) {
    cc::Build::new()
        .file(build.root.join("csrc/logger.c"))
        .include(build.root.join("csrc"))
        .include(build.headers())
        .std("c11")
        .define("_GNU_SOURCE", None)
        .extra_warnings(true)
        .compile("xenlight_logger");
}
