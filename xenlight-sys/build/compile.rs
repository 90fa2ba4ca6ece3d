//! How the proof is compiled. Shared by the build and the tests.

use std::path::Path;
use std::process::Command;

/// Has the compiler look at the proof, with our headers in `ours` and Xen's in `theirs` (none: where the compiler looks
/// anyway), of the release `4.minor`. Nothing is written. The error is what the compiler says.
pub fn check(
    compiler: &mut Command,
    proof: &Path,
    ours: &Path,
    theirs: &[&Path],
    minor: u32,
) -> Result<(), String> {
    compiler
        .args(["-std=gnu11", "-fsyntax-only", "-Wall", "-Werror", "-x", "c"])
        .arg(format!("-DXENLIGHT_PROOF_MINOR={minor}"))
        .arg("-I")
        .arg(ours);
    for dir in theirs {
        compiler.arg("-isystem").arg(dir);
    }
    let output = compiler.arg(proof).output().map_err(|e| format!("can't run {compiler:?}: {e}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
