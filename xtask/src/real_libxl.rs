//! Programs run with the real libxl of a release and without Xen: its packages are unpacked, and a library of ours stands
//! in for hypervisor and xenstored (`tests/xl-differential/src/stand_in.c`).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::lab::Release;
use crate::{exec, packages};

/// The CPUs of the hypervisor that is stood in for.
pub const CPUS: u32 = 8;

/// Its NUMA nodes, which have equal parts of them.
pub const NODES: u32 = 2;

/// Where a release's packages may have their libraries.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// A release's libxl.
pub struct RealLibxl {
    /// The folder with the release's packages.
    pub root: PathBuf,
    stand_in: PathBuf,
}

impl RealLibxl {
    /// Unpacks the release's packages, and builds what stands in for the hypervisor into `directory`. A program that
    /// runs with it is ended after `limit` seconds; 0 is no limit.
    ///
    /// # Errors
    /// The packages can't be had, or there is no C compiler.
    pub fn ready(workspace: &Path, release: Release, directory: &Path, limit: u32) -> Result<Self> {
        let root = packages::xen(workspace, release)?;
        let stand_in = directory.join(format!("stand-in-{release}.so"));
        let real = Self { root, stand_in };
        // A function that the release does not declare would be one that its libxl never calls. And linked without the
        // machine's own libraries, of which newer ones may have symbols that the release lacks.
        exec::output(
            Command::new("cc")
                .args(["-shared", "-fPIC", "-O", "-std=gnu11", "-Werror=missing-prototypes"])
                .arg(format!("-DXEN_MINOR={}", release.minor()))
                .arg(format!("-DCPUS={CPUS}"))
                .arg(format!("-DNODES={NODES}"))
                .arg(format!("-DLIMIT_SECONDS={limit}"))
                .arg("-isystem")
                .arg(real.root.join("usr/include"))
                .arg("-nostdlib")
                .arg(workspace.join("tests/xl-differential/src/stand_in.c"))
                .arg("-o")
                .arg(&real.stand_in)
                .arg(real.library("libdl.so.2")?)
                .arg(real.library("libc.so.6")?),
        )
        .context("compile what stands in for the hypervisor")?;
        Ok(real)
    }

    fn library(&self, name: &str) -> Result<PathBuf> {
        let mut places = LIBRARIES.iter().map(|directory| self.root.join(directory).join(name));
        places
            .find(|path| path.exists())
            .with_context(|| format!("the packages in {} have no {name}", self.root.display()))
    }

    /// A command that runs this program with the release's libraries. They are loaded by its own loader and C library,
    /// which may be newer than this machine's but not older than those that the program was built with.
    ///
    /// # Errors
    /// The packages have no loader.
    pub fn command(&self, program: &Path) -> Result<Command> {
        let mut command = Command::new(self.library("ld-linux-x86-64.so.2")?);
        let libraries: Vec<_> = LIBRARIES.iter().map(|directory| self.root.join(directory)).collect();
        command
            .arg("--library-path")
            .arg(std::env::join_paths(libraries).context("the path of libraries")?)
            .arg("--preload")
            .arg(&self.stand_in)
            .arg(program);
        Ok(command)
    }
}
