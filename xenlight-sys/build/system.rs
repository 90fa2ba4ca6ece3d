//! The proof against the headers of the Xen that is installed here, if there is one.

use std::path::Path;

use crate::{Build, compile, verified};

/// Compiles the proof against what pkg-config finds; without Xen's headers there is nothing to do.
pub fn prove(build: &Build, proof: &Path) -> Result<(), String> {
    let find = |name| pkg_config::Config::new().cargo_metadata(false).env_metadata(true).probe(name);
    // The second is for its directory only; usually the same.
    let (Ok(xenlight), Ok(xlutil)) = (find("xenlight"), find("xlutil")) else {
        return Ok(());
    };
    let Some(minor) = minor(&xenlight.version) else {
        println!("cargo::warning=pkg-config says that xenlight has version {:?}: not compared", xenlight.version);
        return Ok(());
    };

    let mut dirs: Vec<&Path> = Vec::new();
    for dir in xenlight.include_paths.iter().chain(&xlutil.include_paths) {
        println!("cargo::rerun-if-changed={}", dir.join("libxl.h").display());
        dirs.push(dir);
    }
    let mut compiler = cc::Build::new().warnings(false).get_compiler().to_command();
    let Err(said) = compile::check(&mut compiler, proof, &build.headers(), &dirs, minor) else {
        return Ok(());
    };

    let differs =
        format!("the installed Xen {} headers differ from xenlight-sys's declarations", xenlight.version);
    // Of these a difference is our mistake. The library refuses others at run time.
    if (verified::FIRST_MINOR..=verified::LAST_MINOR).contains(&minor) {
        Err(format!(
            "{differs}.\nUsing them together could corrupt memory, so the build stops here. Please report this to \
             xenlight-sys with the compiler's words:\n{said}"
        ))
    } else {
        println!("cargo::warning={differs}; that release is not supported, and will be refused at run time");
        Ok(())
    }
}

/// 17 of "4.17.0".
fn minor(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("4.")?;
    rest.split('.').next()?.parse().ok()
}
