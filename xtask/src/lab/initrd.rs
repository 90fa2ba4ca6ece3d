//! Initial RAM disks: a cpio archive written here, with busybox and the kernel modules that a system needs first.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::exec;

/// The programs of busybox that our init scripts use.
const APPLETS: &[&str] = &[
    "cat",
    "dd",
    "grep",
    "insmod",
    "ip",
    "mount",
    "nc",
    "poweroff",
    "reboot",
    "sh",
    "sleep",
    "switch_root",
    "watchdog",
];

/// File type bits of a cpio entry's mode.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Writes an archive in cpio's "newc" form, the one that Linux unpacks.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, REGULAR | permissions, content);
    }

    fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, target.as_bytes());
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let fields: [usize; 13] = [
            self.entries as usize, // inode
            mode as usize,
            0, // user
            0, // group
            1, // links
            0, // time
            content.len(),
            0, // device
            0,
            0, // device that the entry stands for
            0,
            path.len() + 1,
            0, // checksum, unused in this form
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// What goes into an initial RAM disk.
pub struct Initrd<'a> {
    /// Debian's statically linked busybox.
    pub busybox: &'a Path,
    /// `/lib/modules/VERSION` of the kernel that will run it.
    pub modules: &'a Path,
    /// Names of modules to load, in this order, each after what it depends on. Those that the kernel
    /// has built in, or does not have at all, are left out.
    pub load: &'a [&'a str],
    /// The first process.
    pub init: &'a str,
    /// More scripts: path, content.
    pub scripts: &'a [(&'a str, &'a str)],
}

impl Initrd<'_> {
    /// The archive's bytes, uncompressed: unpacking costs more than loading under emulation.
    ///
    /// # Errors
    /// busybox or a module can't be read or unpacked.
    pub fn build(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for directory in ["bin", "dev", "modules", "proc", "root", "sbin", "sys", "tmp"] {
            archive.directory(directory);
        }
        let busybox =
            fs::read(self.busybox).with_context(|| format!("read busybox from {}", self.busybox.display()))?;
        archive.file("bin/busybox", 0o755, &busybox);
        for applet in APPLETS {
            archive.symlink(&format!("bin/{applet}"), "busybox");
        }
        archive.file("init", 0o755, self.init.as_bytes());
        for (path, content) in self.scripts {
            archive.file(path, 0o755, content.as_bytes());
        }

        let list = self.modules.join("modules.dep");
        let dependencies = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
        let mut order = String::new();
        for path in load_order(&dependencies, self.load) {
            let name = module_name(path);
            let file = self.modules.join(path);
            let content = if path.ends_with(".xz") {
                exec::output(Command::new("xz").arg("-dc").arg(&file))?
            } else {
                fs::read(&file).with_context(|| format!("read {}", file.display()))?
            };
            archive.file(&format!("modules/{name}.ko"), 0o644, &content);
            order.push_str(name);
            order.push_str(".ko\n");
        }
        archive.file("modules/order", 0o644, order.as_bytes());
        Ok(archive.finish())
    }
}

/// The module's name without folder and endings.
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

/// The files to load for the wanted modules, dependencies first, each once. `modules.dep` names for each
/// module what it needs, the most basic last.
fn load_order<'a>(modules_dep: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let mut order = Vec::new();
    let mut seen = HashSet::new();
    for name in wanted {
        let line = modules_dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(path, _)| module_name(path).replace('-', "_") == name.replace('-', "_"));
        if let Some((path, needs)) = line {
            for file in needs.split_whitespace().rev().chain([path]) {
                if seen.insert(file) {
                    order.push(file);
                }
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let dep = "kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/jbd2/jbd2.ko\n\
                   kernel/fs/jbd2/jbd2.ko:\n\
                   kernel/lib/crc16.ko:\n\
                   kernel/net/xen-netfront.ko.xz: kernel/lib/crc16.ko\n";
        assert_eq!(
            load_order(dep, &["ext4", "builtin", "xen_netfront"]),
            [
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/lib/crc16.ko",
                "kernel/fs/ext4/ext4.ko",
                "kernel/net/xen-netfront.ko.xz"
            ]
        );
    }

    #[test]
    fn an_archive_has_aligned_entries_and_a_trailer() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        // 110 bytes of header and "a\0" make 112; five bytes of content are padded to eight.
        assert_eq!(&bytes[112..117], b"hello");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
