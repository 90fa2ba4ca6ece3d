//! The lab's guests: a small kernel image and an initial RAM disk whose init shows what a test wants to see.
//!
//! Both are baked into dom0 at [`DIRECTORY`].

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::initrd::Initrd;

/// Where dom0 has the guests' `initrd` and their kernel: `vmlinux` for PV and PVH, and `vmlinuz` for HVM, whose boot ROM
/// wants a bzImage.
pub const DIRECTORY: &str = "/var/lib/lab/guest";

/// What the guest runs; also part of the image's key.
pub const SCRIPTS: &[(&str, &str)] = &[
    ("init", include_str!("files/guest-init")),
    ("sbin/poweroff", include_str!("files/guest-poweroff")),
    ("sbin/reboot", include_str!("files/guest-reboot")),
];

/// The modules that make disks and network interfaces visible, and Xen's watchdog.
pub const MODULES: &[&str] = &["xen-netfront", "xen-blkfront", "xen_wdt"];

/// Offsets in the header of a bzImage (the kernel's Documentation/arch/x86/boot.rst).
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The guests' initial RAM disk.
///
/// # Errors
/// busybox or the modules can't be read.
pub fn initrd(busybox: &Path, modules: &Path) -> Result<Vec<u8>> {
    let [(_, init), scripts @ ..] = SCRIPTS else {
        bail!("the guest has no scripts");
    };
    Initrd { busybox, modules, load: MODULES, init, scripts }.build()
}

/// Unpacks the kernel's ELF file out of a bzImage into `target`: Xen's own unpacking takes ten seconds
/// for every guest under emulation.
///
/// # Errors
/// The file is no bzImage, or its payload is in a form that is not known.
pub fn unpack_kernel(bzimage: &Path, target: &Path) -> Result<()> {
    let image = fs::read(bzimage).with_context(|| format!("read {}", bzimage.display()))?;
    let payload = payload(&image).with_context(|| format!("{} is no bzImage", bzimage.display()))?;
    let program = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => bail!("{} is packed with something other than xz or zstd", bzimage.display()),
    };
    let packed = target.with_extension("packed");
    fs::write(&packed, payload).with_context(|| format!("write {}", packed.display()))?;
    let input = fs::File::open(&packed).context("reopen the packed kernel")?;
    let output = fs::File::create(target).with_context(|| format!("create {}", target.display()))?;
    let status = Command::new(program)
        .arg("-dc")
        .stdin(input)
        .stdout(output)
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("start {program}"))?;
    if !status.success() {
        bail!("{program} could not unpack the kernel {} ({status})", bzimage.display());
    }
    fs::remove_file(&packed).context("remove the packed kernel")
}

/// The packed kernel inside a bzImage, without the size that the kernel's build appends to it.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let start = (usize::from(*image.get(SETUP_SECTORS)?) + 1) * 512 + number(PAYLOAD_OFFSET)?;
    let length = number(PAYLOAD_LENGTH)?.checked_sub(4)?;
    image.get(start..start.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_found_by_the_header() {
        let mut image = vec![0u8; 2048];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&9u32.to_le_bytes());
        image[1024 + 16..1024 + 21].copy_from_slice(b"\xfd7zXZ");
        assert_eq!(payload(&image), Some(&b"\xfd7zXZ"[..]));
    }

    #[test]
    fn other_files_have_no_payload() {
        assert_eq!(payload(b"short"), None);
        assert_eq!(payload(&[0; 4096]), None);
    }
}
