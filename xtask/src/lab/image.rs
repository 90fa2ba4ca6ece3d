//! The host image: dom0's disk, Xen, dom0's kernel and initial RAM disk, and the guests' kernel, from Debian packages.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::cache::{self, Key};
use super::guest;
use super::initrd::Initrd;
use super::tools::Tools;
use super::{Release, ssh};
use crate::exec;
use crate::packages::{self, Mirror};
use crate::progress;

/// Raise when the way of building changes without a change of the inputs that the key sees.
const FORMAT: &str = "2";

/// The size of dom0's disk; only what is used takes room.
const DISK_BYTES: u64 = 8 << 30;

/// What dom0 has besides Xen's packages.
const PACKAGES: &[&str] = &[
    "linux-image-amd64",
    "systemd-sysv",
    "udev",
    "dbus",
    "openssh-server",
    "iproute2",
    "kmod",
    "procps",
    "strace",
    "e2fsprogs",
    "util-linux",
];

/// The modules that dom0 needs to find its disk; the network card comes along so that it is there from the start.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "virtio_net", "crc32c_generic", "ext4"];

const INIT: &str = include_str!("files/dom0-initrd-init");

/// Files of dom0's disk: path, permissions, content.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/fstab", 0o644, "/dev/vda / ext4 rw,noatime 0 0\n"),
    ("etc/hostname", 0o644, "lab\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost lab\n"),
    ("etc/ssh/sshd_config.d/lab.conf", 0o644, include_str!("files/sshd.conf")),
    ("etc/systemd/journald.conf.d/lab.conf", 0o644, "[Journal]\nStorage=volatile\n"),
    (
        "etc/modules-load.d/lab.conf",
        0o644,
        "bridge\nloop\nxen-blkback\nxen-evtchn\nxen-gntalloc\nxen-gntdev\nxen-netback\n",
    ),
    ("etc/systemd/system/systemd-udev-trigger.service.d/lab.conf", 0o644, include_str!("files/udev-trigger.conf")),
    ("etc/systemd/system/lab-net.service", 0o644, include_str!("files/lab-net.service")),
    ("etc/systemd/system/lab-ready.service", 0o644, include_str!("files/lab-ready.service")),
    ("usr/local/lib/lab-ready", 0o755, include_str!("files/lab-ready")),
];

/// Folders that Debian's packages leave to others: without this one xenconsoled writes no guest's console.
const DIRECTORIES: &[&str] = &["var/log/xen/console"];

/// Added to Debian's file of settings for the Xen daemons: guests' consoles go to files, which tests read.
const XEN_DEFAULTS: &str = "\nXENCONSOLED_ARGS=\"--log=guest --timestamp=none\"\n";

const ENABLED: &[&str] = &["lab-net.service", "lab-ready.service"];

/// What would wait for hardware that isn't there, or spend emulated time on nothing that the lab needs.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "networking.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@hvc0.service",
    "serial-getty@ttyS0.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-sysusers.service",
    "systemd-timesyncd.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
];

/// A finished image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// The folder with everything below.
    pub directory: PathBuf,
}

impl Image {
    /// Builds the image of a release if that has not been done yet.
    ///
    /// # Errors
    /// Not root, or packages can't be downloaded or installed into the image.
    pub fn ready(lab: &Path, tools: &Tools, release: Release) -> Result<Self> {
        let public_key = ssh::public_key(lab)?;
        let directory = lab.join("images").join(format!("xen-{release}-{}", key(release, &public_key)));
        cache::folder(&directory, |part| {
            progress::step(
                &format!("building the host image: Xen {release} on Debian {}", release.suite()),
                || build(lab, tools, release, &public_key, part),
            )
        })?;
        Ok(Self { directory })
    }

    /// The hypervisor, as QEMU starts it.
    #[must_use]
    pub fn xen(&self) -> PathBuf {
        self.directory.join("xen")
    }

    /// dom0's kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// dom0's initial RAM disk.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.directory.join("initrd")
    }

    /// dom0's disk as it was built; hosts write to overlays.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.directory.join("dom0.qcow2")
    }

    /// The ssh host key that the image was built with.
    #[must_use]
    pub fn known_hosts(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }
}

/// The key of everything that an image is made of.
fn key(release: Release, public_key: &str) -> String {
    let mut key = Key::default()
        .with("format", FORMAT)
        .with("release", release.to_string())
        .with("suite", release.suite())
        .with("packages", package_list(release))
        .with("modules", MODULES.join(","))
        .with("guest modules", guest::MODULES.join(","))
        .with("init", INIT)
        .with("xen defaults", XEN_DEFAULTS)
        .with("directories", DIRECTORIES.join(","))
        .with("enabled", ENABLED.join(","))
        .with("masked", MASKED.join(","))
        .with("ssh", public_key)
        .with("size", DISK_BYTES.to_le_bytes());
    for (path, mode, content) in FILES {
        key = key.with(path, content).with("mode", mode.to_le_bytes());
    }
    for (path, content) in guest::SCRIPTS {
        key = key.with(path, content);
    }
    key.finish()
}

fn package_list(release: Release) -> String {
    let mut list = vec![
        format!("xen-utils-{release}"),
        "xen-utils-common".to_owned(),
        format!("xen-hypervisor-{release}-amd64"),
        device_model(release).to_owned(),
    ];
    list.extend(PACKAGES.iter().map(|package| (*package).to_owned()));
    list.join(",")
}

/// The package with the QEMU that libxl starts, as disk backend and for HVM guests.
fn device_model(release: Release) -> &'static str {
    match release {
        // Debian 11 has no QEMU for Xen alone.
        Release::V4_14 => "qemu-system-x86",
        Release::V4_17 | Release::V4_20 => "qemu-system-xen",
    }
}

/// Builds everything in the folder `part`.
fn build(lab: &Path, tools: &Tools, release: Release, public_key: &str, part: &Path) -> Result<()> {
    let tree = part.join("tree");
    unpack(lab, release, &tree)?;
    configure(&tree, public_key)?;

    let kernel = only_file(&tree.join("boot"), "vmlinuz-")?;
    let version = kernel
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_prefix("vmlinuz-"))
        .context("the kernel's version")?;
    let modules = tree.join("lib/modules").join(version);

    let guests = tree.join(guest::DIRECTORY.trim_start_matches('/'));
    write(&guests.join("initrd"), 0o644, guest::initrd(&tools.busybox(), &modules)?)?;
    guest::unpack_kernel(&kernel, &guests.join("vmlinux"))?;
    fs::hard_link(&kernel, guests.join("vmlinuz")).context("link the guests' kernel")?;

    let initrd = Initrd { busybox: &tools.busybox(), modules: &modules, load: MODULES, init: INIT, scripts: &[] };
    write(&part.join("initrd"), 0o644, initrd.build()?)?;
    fs::copy(&kernel, part.join("vmlinuz")).context("copy dom0's kernel")?;
    let xen =
        exec::output(Command::new("gzip").arg("-dc").arg(tree.join(format!("boot/xen-{release}-amd64.gz"))))?;
    write(&part.join("xen"), 0o644, xen)?;

    let host_key = fs::read_to_string(tree.join("etc/ssh/ssh_host_ed25519_key.pub"))
        .context("read the image's ssh host key")?;
    write(&part.join("known_hosts"), 0o644, format!("{} {host_key}", ssh::HOST_ALIAS))?;

    let raw = part.join("dom0.raw");
    File::create(&raw)
        .and_then(|file| file.set_len(DISK_BYTES))
        .with_context(|| format!("create {}", raw.display()))?;
    // Nothing is left for the kernel to initialise in the background, so that a booted host is a quiet one.
    exec::logged(
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-L", "dom0"])
            .args(["-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg("-d")
            .arg(&tree)
            .arg(&raw),
        &lab.join("logs/mke2fs.log"),
    )?;
    exec::logged(
        tools.qemu_img().args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(part.join("dom0.qcow2")),
        &lab.join("logs/qemu-img.log"),
    )?;
    fs::remove_file(&raw).context("remove the raw disk")?;
    cache::remove_all(&tree)
}

/// Installs the packages into `tree`.
fn unpack(lab: &Path, release: Release, tree: &Path) -> Result<()> {
    let mirror = Mirror::of_this_machine()?;
    let attempt = |with_security: bool| {
        cache::remove_all(tree)?;
        exec::logged(
            packages::mmdebstrap()?
                // The initial RAM disk is ours; Debian's would take half of the build's time.
                .env("INITRD", "No")
                .arg("--variant=minbase")
                .arg(format!("--include={}", package_list(release)))
                .arg(release.suite())
                .arg(tree)
                .args(mirror.sources(release.suite(), with_security)),
            &lab.join(format!("logs/image-{release}.log")),
        )
    };
    match attempt(true) {
        // An old suite's security updates leave the mirrors before the suite does.
        Err(first) if release.is_archived() => attempt(false).map_err(|_| first),
        result => result,
    }
}

/// Makes Debian's installation into the lab's dom0.
fn configure(tree: &Path, public_key: &str) -> Result<()> {
    for (path, mode, content) in FILES {
        write(&tree.join(path), *mode, content)?;
    }
    for directory in DIRECTORIES {
        fs::create_dir_all(tree.join(directory)).with_context(|| format!("make {directory}"))?;
    }
    let keys = tree.join("root/.ssh/authorized_keys");
    write(&keys, 0o600, public_key)?;
    fs::set_permissions(tree.join("root/.ssh"), fs::Permissions::from_mode(0o700))
        .context("protect root's .ssh")?;

    let defaults = tree.join("etc/default/xen");
    let mut settings = fs::read_to_string(&defaults).with_context(|| format!("read {}", defaults.display()))?;
    settings.push_str(XEN_DEFAULTS);
    write(&defaults, 0o644, settings)?;

    let units = tree.join("etc/systemd/system");
    let wanted = units.join("multi-user.target.wants");
    fs::create_dir_all(&wanted).context("make multi-user.target.wants")?;
    for unit in ENABLED {
        symlink(Path::new("..").join(unit), wanted.join(unit)).with_context(|| format!("enable {unit}"))?;
    }
    for unit in MASKED {
        let path = units.join(unit);
        // Debian enables some of them by a link of the same name.
        let _ = fs::remove_file(&path);
        symlink("/dev/null", &path).with_context(|| format!("mask {unit}"))?;
    }
    disable_init_script(tree, "xendomains")
}

/// Takes the start links of an init script away: it can still be run by hand, and a unit of its name is not masked.
fn disable_init_script(tree: &Path, name: &str) -> Result<()> {
    for level in ["0", "1", "2", "3", "4", "5", "6", "S"] {
        let directory = tree.join(format!("etc/rc{level}.d"));
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            if entry.file_name().to_string_lossy().get(3..) == Some(name) {
                fs::remove_file(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
            }
        }
    }
    Ok(())
}

/// The only file of a folder whose name begins so.
fn only_file(directory: &Path, beginning: &str) -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .with_context(|| format!("list {}", directory.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning)))
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(file), true) => Ok(file),
        _ => bail!("{} should have exactly one {beginning}*", directory.display()),
    }
}

/// Writes a file with its folders and permissions.
fn write(path: &Path, mode: u32, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the permissions of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_the_release_and_the_ssh_key() {
        assert_eq!(key(Release::V4_17, "a"), key(Release::V4_17, "a"));
        assert_ne!(key(Release::V4_17, "a"), key(Release::V4_20, "a"));
        assert_ne!(key(Release::V4_17, "a"), key(Release::V4_17, "b"));
    }

    #[test]
    fn the_packages_follow_the_release() {
        let list = package_list(Release::V4_20);
        assert!(list.starts_with("xen-utils-4.20,xen-utils-common,xen-hypervisor-4.20-amd64,"));
    }
}
