//! QEMU and busybox, from Debian packages, unpacked with everything that they need into a folder of ours.
//!
//! QEMU is the one of Debian 12 (7.2) on purpose: 10.0 has an SVM fault that halts PVH and HVM guests at their
//! first page fault. Unpacking it with its whole dependency closure, C library included, keeps it apart from what
//! the machine has installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::cache::{self, Key};
use crate::exec;
use crate::packages::{self, Mirror};
use crate::progress;

/// Raise when the way of unpacking changes.
const FORMAT: &str = "1";
const SUITE: &str = "bookworm";
const PACKAGES: &str = "qemu-system-x86,qemu-utils,busybox-static";

/// The programs that the machine must have, and their Debian packages.
const NEEDED: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("gzip", "gzip"),
];

/// The unpacked folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tools {
    root: PathBuf,
}

impl Tools {
    /// Installs what the machine lacks and unpacks the tools if that has not been done yet.
    ///
    /// # Errors
    /// Packages can't be installed or downloaded.
    pub fn ready(lab: &Path) -> Result<Self> {
        let logs = lab.join("logs");
        packages::need(NEEDED, &logs.join("install.log"))?;
        let key = Key::default().with("format", FORMAT).with("suite", SUITE).with("packages", PACKAGES).finish();
        let root = lab.join(format!("qemu-{key}"));
        cache::folder(&root, |part| {
            progress::step("unpacking QEMU 7.2", || {
                let mirror = Mirror::of_this_machine()?;
                exec::logged(
                    packages::mmdebstrap()?
                        .arg("--variant=extract")
                        .arg(format!("--include={PACKAGES}"))
                        .arg(SUITE)
                        .arg(part)
                        .args(mirror.sources(SUITE, true)),
                    &logs.join("qemu.log"),
                )
            })
        })?;
        Ok(Self { root })
    }

    /// A statically linked busybox.
    #[must_use]
    pub fn busybox(&self) -> PathBuf {
        self.root.join("bin/busybox")
    }

    /// `qemu-system-x86_64`, with its firmware's places.
    #[must_use]
    pub fn qemu(&self) -> Command {
        let mut command = self.program("usr/bin/qemu-system-x86_64");
        // QEMU looks for firmware beside its own file, which here is the dynamic linker.
        for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.root.join(firmware));
        }
        command
    }

    /// `qemu-img`.
    #[must_use]
    pub fn qemu_img(&self) -> Command {
        self.program("usr/bin/qemu-img")
    }

    /// A program of the folder, run by the folder's own dynamic linker and libraries.
    fn program(&self, path: &str) -> Command {
        let libraries = self.root.join("lib/x86_64-linux-gnu");
        let more = self.root.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command
            .env("QEMU_MODULE_DIR", more.join("qemu"))
            .arg("--library-path")
            .arg(format!("{}:{}", libraries.display(), more.display()))
            .arg(self.root.join(path));
        command
    }
}
