//! A guest's disks as dom0 sees them, and what shows that one has been written to since the guest was saved.
//!
//! A file says when it was changed last. A block device does not, so that the beginnings of what is on it are compared:
//! whoever mounts a file system for writing, or checks it, changes its superblock. That does not see everything:
//! not the inside of LVM in the guest, and not file systems like NTFS that keep their state elsewhere.

use std::collections::HashSet;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, major, minor, open};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::partitions::Layout;
use super::time::Time;
use super::{ImageError, hash, io_error};

/// So much of each file system is compared. The superblock of ext4 and XFS is in the first KiBs, that of btrfs at
/// 64 KiB, that of ZFS ends at 256 KiB.
const BEGINNING: u64 = 256 << 10;

/// What memory and places are multiples of when the page cache is gone around.
const ALIGNMENT: usize = 4096;

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Disk {
    /// Its name in the guest.
    pub(super) vdev: String,
    /// What the guest's configuration says where it is.
    pub(super) target: String,
    /// Whether the guest may write to it.
    pub(super) writable: bool,
    /// `raw`, or what a device model makes a disk from.
    pub(super) format: String,
    /// How it was found.
    #[serde(flatten)]
    pub(super) seen: Seen,
}

/// What is found where a disk should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Seen {
    /// A regular file.
    File {
        /// Where it really is.
        path: String,
        /// Numbers that may be others after a boot.
        device: u64,
        inode: u64,
        size: u64,
        modified: Time,
    },
    /// A block device.
    Block {
        /// Where it really is, which may be elsewhere after a boot.
        path: String,
        /// What the kernel knows it by, if that stays the same over a boot.
        identity: Option<String>,
        size: u64,
        /// Of the beginnings of what is on it. `None`: they can't be read, or tell nothing.
        digest: Option<String>,
    },
    /// Nothing is there.
    Missing,
    /// It can't be looked at.
    NotKnown { why: String },
}

impl Disk {
    /// The disks of a guest, out of its configuration in libxl's JSON, as they are now. A drive without a disk in it is
    /// none.
    pub(super) fn all(config: &Value) -> Vec<Disk> {
        let mut disks = Self::listed(config);
        for disk in &mut disks {
            disk.seen = disk.look_again();
        }
        disks
    }

    /// The same, after what the guest has written to them has been stored for good. The guest's memory relies on that:
    /// after a power failure it would otherwise go on with disks that are older than itself.
    pub(super) fn all_stored(config: &Value) -> Result<Vec<Disk>, ImageError> {
        Self::listed(config).iter().try_for_each(Disk::store)?;
        Ok(Self::all(config))
    }

    /// The disks, not looked at yet.
    fn listed(config: &Value) -> Vec<Disk> {
        let disks = config["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
        disks.iter().filter_map(Self::of).collect()
    }

    fn of(json: &Value) -> Option<Disk> {
        let text = |key: &str| json[key].as_str().filter(|text| !text.is_empty());
        let set = |key: &str| json[key].as_i64().is_some_and(|number| number != 0);
        let target = text("pdev_path")?;
        let elsewhere = elsewhere(target, text("backend_domname"), set("backend_domid"), text("script"));
        Some(Disk {
            vdev: text("vdev").unwrap_or("(no name)").to_owned(),
            target: target.to_owned(),
            writable: set("readwrite") && !set("is_cdrom"),
            format: text("format").unwrap_or("raw").to_owned(),
            seen: elsewhere.map_or(Seen::Missing, |why| Seen::NotKnown { why }),
        })
    }

    /// How a disk that was recorded is now. One that could not be looked at then is not looked at now either.
    pub(super) fn look_again(&self) -> Seen {
        match &self.seen {
            seen @ Seen::NotKnown { .. } => seen.clone(),
            _ => self.look(),
        }
    }

    fn look(&self) -> Seen {
        let path = Path::new(&self.target);
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Seen::Missing,
            Err(error) => return Seen::NotKnown { why: error.to_string() },
        };
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned();
        if metadata.is_file() {
            Seen::File {
                path: real,
                device: metadata.dev(),
                inode: metadata.ino(),
                size: metadata.len(),
                modified: Time::modified(&metadata),
            }
        } else if metadata.file_type().is_block_device() {
            let device = PathBuf::from(format!("/sys/dev/block/{}", numbers(&metadata)));
            let Some(size) = size(&device) else {
                return Seen::NotKnown { why: format!("{}/size can't be read", device.display()) };
            };
            let digest = || digest(&open_block(path, &metadata).ok()?, sector(&device), size).ok();
            // A drive is not made to load its disk, and a device model's tables change with every use.
            let digest = if self.writable && self.is_raw() { digest() } else { None };
            let digest = digest.map(|digest| format!("{digest:032x}"));
            Seen::Block { path: real, identity: identity(&device), size, digest }
        } else {
            Seen::NotKnown { why: "it is neither a file nor a block device".to_owned() }
        }
    }

    /// Whether what the guest writes is all that is written to it.
    pub(super) fn is_raw(&self) -> bool {
        !matches!(self.format.as_str(), "qcow" | "qcow2" | "vhd" | "qed")
    }

    fn store(&self) -> Result<(), ImageError> {
        let path = Path::new(&self.target);
        let is_disk = |metadata: Metadata| metadata.is_file() || metadata.file_type().is_block_device();
        let here = !matches!(self.seen, Seen::NotKnown { .. }) && fs::metadata(path).is_ok_and(is_disk);
        if !here || !self.writable {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match open(path, flags, Mode::empty()) {
            Ok(disk) => File::from(disk).sync_all().map_err(io_error(path, "have what its guest wrote stored")),
            // It is broken: nothing can be done for it.
            Err(_) => Ok(()),
        }
    }
}

/// A disk that a guest may write to and that does not show when it was changed.
pub(super) fn not_telling(config: &Value) -> Option<String> {
    let disk =
        Disk::all(config).into_iter().find(|disk| disk.writable && !matches!(disk.seen, Seen::File { .. }))?;
    let what = match disk.seen {
        Seen::Block { .. } => "a block device does not show when it was written to",
        Seen::NotKnown { .. } => "it can't be looked at",
        Seen::Missing | Seen::File { .. } => "it is not there",
    };
    Some(format!("disk {} ({}): {what}", disk.vdev, disk.target))
}

/// Where the disks are that a guest may write to, as its configuration says.
pub(super) fn written_to(config: &Value) -> HashSet<String> {
    let disks = Disk::listed(config).into_iter().filter(|disk| disk.writable);
    disks.map(|disk| disk.target).collect()
}

/// Why a disk is nothing that can be looked at here.
fn elsewhere(target: &str, backend: Option<&str>, not_dom0: bool, script: Option<&str>) -> Option<String> {
    let backend = backend.filter(|name| !["0", "Domain-0"].contains(name));
    let own_script = script.filter(|script| Path::new(script).file_name() != Some("block".as_ref()));
    if let Some(name) = backend {
        Some(format!("the domain {name} has it"))
    } else if not_dom0 {
        Some("another domain has it".to_owned())
    } else if let Some(script) = own_script {
        Some(format!("only the script {script} knows where it is"))
    } else if !target.starts_with('/') {
        Some("its target is no path".to_owned())
    } else {
        None
    }
}

/// The device's numbers as /sys has them.
fn numbers(metadata: &Metadata) -> String {
    format!("{}:{}", major(metadata.rdev()), minor(metadata.rdev()))
}

/// A device's length in bytes; /sys counts in units of 512 whatever the device does.
fn size(device: &Path) -> Option<u64> {
    line(device.join("size"))?.parse::<u64>().ok()?.checked_mul(512)
}

/// The unit of its partition table.
fn sector(device: &Path) -> u64 {
    let read = |path: &str| line(device.join(path))?.parse().ok();
    // A partition has that of its disk.
    read("queue/logical_block_size").or_else(|| read("../queue/logical_block_size")).unwrap_or(512)
}

/// What the kernel knows a device by over all boots. `device` is its directory in /sys.
fn identity(device: &Path) -> Option<String> {
    if let Some(number) = line(device.join("partition")) {
        // The directory is a link: its real parent is that of the whole disk.
        let disk = fs::canonicalize(device).ok()?;
        return identity(disk.parent()?).map(|disk| format!("{disk}, partition {number}"));
    }
    ["dm/uuid", "wwid", "device/wwid"].iter().find_map(|name| line(device.join(name)))
}

/// The one line of a file in /sys.
fn line(path: PathBuf) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// Opens a block device for reading, without waiting for a medium and around the page cache: what the guest's backend
/// has written is not in there.
fn open_block(path: &Path, expected: &Metadata) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match open(path, flags | OFlags::DIRECT, Mode::empty()) {
        Err(rustix::io::Errno::INVAL) => open(path, flags, Mode::empty())?,
        other => other?,
    };
    let file = File::from(opened);
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() && metadata.rdev() == expected.rdev() {
        Ok(file)
    } else {
        Err(io::Error::other("another device has taken its place"))
    }
}

/// A digest of the beginnings of the disk and of its partitions.
fn digest(disk: &File, sector: u64, size: u64) -> io::Result<u128> {
    let mut buffer = vec![0; usize::try_from(BEGINNING).map_err(io::Error::other)? + ALIGNMENT];
    let aligned = buffer.as_ptr().align_offset(ALIGNMENT) % ALIGNMENT;
    let buffer = &mut buffer[aligned..];
    let mut read = |place: u64, length: u64| -> io::Result<Vec<u8>> {
        let length = usize::try_from(length.min(BEGINNING).min(size.saturating_sub(place))).unwrap_or_default();
        disk.read_exact_at(&mut buffer[..length], place)?;
        Ok(buffer[..length].to_vec())
    };
    let head = read(0, BEGINNING)?;
    let partitions = Layout { head: &head, sector, size }.partitions(|place| read(place, sector))?;
    let mut digest = hash::of(&head);
    for place in partitions {
        digest = hash::continued(digest, &read(place, BEGINNING)?);
    }
    Ok(digest)
}

#[cfg(test)]
pub(super) mod tests {
    use std::process::Command;

    use serde_json::json;

    use super::super::new_image::tests::Tmpfs;
    use super::super::partitions::tests::mbr;
    use super::*;

    /// A block device that a file is behind.
    pub(in super::super) struct Loop {
        pub(in super::super) path: PathBuf,
        pub(in super::super) backing: tempfile::NamedTempFile,
    }

    impl Loop {
        pub(in super::super) fn new(mib: u64) -> Self {
            Self::over(tempfile::NamedTempFile::new().unwrap(), mib)
        }

        fn over(backing: tempfile::NamedTempFile, mib: u64) -> Self {
            backing.as_file().set_len(mib << 20).unwrap();
            let made = Command::new("losetup").args(["--find", "--show"]).arg(backing.path()).output();
            let made = made.expect("this test needs losetup (util-linux)");
            let said = String::from_utf8_lossy(&made.stderr);
            assert!(made.status.success(), "this test needs root and loop devices: {said}");
            Self { path: String::from_utf8(made.stdout).unwrap().trim().into(), backing }
        }

        /// Writes as a guest's backend does: what the page cache has of the device does not change.
        pub(in super::super) fn write(&self, at: u64, bytes: &[u8]) {
            self.backing.as_file().write_all_at(bytes, at).unwrap();
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
        }
    }

    pub(in super::super) fn of(json: Value) -> Vec<Disk> {
        Disk::all(&json!({ "disks": [json] }))
    }

    fn at(path: &Path) -> Value {
        json!({ "vdev": "xvda", "pdev_path": path, "format": "raw", "readwrite": 1 })
    }

    fn digest_of(device: &Loop) -> String {
        match &of(at(&device.path))[0].seen {
            Seen::Block { digest: Some(digest), .. } => digest.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_configuration_says_of_disks() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = json!({ "disks": [
            { "vdev": "xvda", "pdev_path": file.path(), "format": "qcow2", "readwrite": 1 },
            { "vdev": "xvdb", "pdev_path": file.path() },
            { "vdev": "hdc", "pdev_path": file.path(), "format": "raw", "readwrite": 1, "is_cdrom": 1 },
            { "vdev": "hdd", "format": "empty", "is_cdrom": 1 },
            { "vdev": "hde", "pdev_path": "", "is_cdrom": 1 },
            { "pdev_path": "/nonexistent/disk", "backend_domid": 0, "script": "/etc/xen/scripts/block", "readwrite": 1 },
        ]});
        let disks = Disk::all(&config);
        let shown: Vec<_> = disks
            .iter()
            .map(|disk| {
                let kind = match disk.seen {
                    Seen::File { .. } => "file",
                    Seen::Missing => "missing",
                    _ => "other",
                };
                (disk.vdev.as_str(), disk.format.as_str(), disk.writable, disk.is_raw(), kind)
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("xvda", "qcow2", true, false, "file"),
                ("xvdb", "raw", false, true, "file"),
                ("hdc", "raw", false, true, "file"),
                ("(no name)", "raw", true, true, "missing"),
            ]
        );
        assert_eq!(Disk::all(&json!({})), []);
        assert_eq!(Disk::all_stored(&config).unwrap(), disks);
    }

    #[test]
    fn what_is_not_here_is_not_opened() {
        // It would wait for a writer.
        let home = tempfile::tempdir().unwrap();
        let fifo = home.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        for (key, value, word) in [
            ("backend_domname", json!("storage"), "the domain storage has it"),
            ("backend_domid", json!(3), "another domain has it"),
            ("script", json!("block-iscsi"), "only the script block-iscsi knows"),
            ("pdev_path", json!("iqn.2001-05.com.example:disk"), "no path"),
            ("vdev", json!("xvda"), "neither a file nor a block device"),
        ] {
            let mut disk = at(&fifo);
            disk[key] = value;
            let config = json!({ "disks": [disk] });
            let found = Disk::all_stored(&config).unwrap();
            assert!(matches!(&found[0].seen, Seen::NotKnown { why } if why.contains(word)), "{found:?}");
            assert_eq!(found[0].look_again(), found[0].seen);
        }
    }

    #[test]
    fn a_file_is_known_by_its_inode_size_and_time() {
        let home = tempfile::tempdir().unwrap();
        let (file, link) = (home.path().join("file"), home.path().join("link"));
        fs::write(&file, "12345").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let disk = &of(at(&link))[0];
        let metadata = fs::metadata(&file).unwrap();
        let expected = Seen::File {
            path: fs::canonicalize(&file).unwrap().to_str().unwrap().to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: 5,
            modified: metadata.modified().unwrap().into(),
        };
        assert_eq!(disk.seen, expected);
        let text = serde_json::to_string(disk).unwrap();
        assert_eq!(&serde_json::from_str::<Disk>(&text).unwrap(), disk);
    }

    #[test]
    fn a_device_is_known_by_its_size_and_the_superblock_on_it() {
        let device = Loop::new(8);
        let disk = &of(at(&device.path))[0];
        assert!(matches!(&disk.seen, Seen::Block { size, identity: None, .. } if *size == 8 << 20), "{disk:?}");
        let text = serde_json::to_string(disk).unwrap();
        assert_eq!(&serde_json::from_str::<Disk>(&text).unwrap(), disk);
        let before = digest_of(&device);
        // Somebody has it open and has read it, so that it is in the page cache.
        let reader = File::open(&device.path).unwrap();
        reader.read_exact_at(&mut [0; 8192], 0).unwrap();
        // As far as ext4, XFS, btrfs and ZFS keep it.
        for place in [1024 + 0x38, 0, (64 << 10) + 0x40, (256 << 10) - 1] {
            device.write(place, &[1]);
            assert_ne!(digest_of(&device), before, "{place}");
            device.write(place, &[0]);
            assert_eq!(digest_of(&device), before, "{place}");
        }
        device.write(1 << 20, &[1]);
        assert_eq!(digest_of(&device), before, "far behind it");
    }

    #[test]
    fn what_a_guest_wrote_and_can_not_be_stored_is_an_error() {
        let room = Tmpfs::new(2);
        let device = Loop::over(tempfile::NamedTempFile::new_in(room.0.path()).unwrap(), 1);
        let config = json!({ "disks": [at(&device.path)] });
        Disk::all_stored(&config).unwrap();
        let full = fs::write(room.0.path().join("other"), vec![1; 3 << 20]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let guest = File::options().write(true).open(&device.path).unwrap();
        guest.write_all_at(&[1; 4096], 512 << 10).expect("it is only in memory yet");
        let error = Disk::all_stored(&config).unwrap_err();
        assert!(error.to_string().contains("have what its guest wrote stored"), "{error}");
    }

    #[test]
    fn a_device_is_known_by_the_file_systems_in_its_partitions() {
        let device = Loop::new(16);
        device.write(0, &mbr(&[(0x83, 2048), (0x05, 16384)]));
        device.write(16384 * 512, &mbr(&[(0x83, 2048)]));
        let before = digest_of(&device);
        for partition in [2048, 16384 + 2048] {
            device.write(partition * 512 + 1024 + 0x2c, &[1]);
            assert_ne!(digest_of(&device), before, "{partition}");
            device.write(partition * 512 + 1024 + 0x2c, &[0]);
        }
        assert_eq!(digest_of(&device), before);
    }

    #[test]
    fn a_device_that_is_shorter_than_a_beginning_is_read_to_its_end() {
        let device = Loop::new(1);
        device.backing.as_file().set_len(100 << 10).unwrap();
        Command::new("losetup").arg("--set-capacity").arg(&device.path).status().unwrap();
        let disk = &of(at(&device.path))[0];
        assert!(matches!(&disk.seen, Seen::Block { size: 102_400, digest: Some(_), .. }), "{disk:?}");
    }

    #[test]
    fn what_tells_nothing_or_makes_a_drive_work_is_not_read() {
        let device = Loop::new(1);
        for (key, value) in [("readwrite", json!(0)), ("is_cdrom", json!(1)), ("format", json!("qcow2"))] {
            let mut disk = at(&device.path);
            disk[key] = value;
            let disk = &of(disk)[0];
            assert!(matches!(&disk.seen, Seen::Block { digest: None, .. }), "{disk:?}");
        }
    }

    #[test]
    fn a_device_of_the_kernel_is_known_by_what_stays_over_a_boot() {
        let home = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = home.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("dm-3/dm/uuid", "LVM-abc\n");
        write("nvme0n1/wwid", "eui.0025\n");
        write("sda/device/wwid", " t10.ATA     QEMU  1 \n");
        write("sda/queue/logical_block_size", "4096\n");
        write("sda/sda2/partition", "2\n");
        write("sda/sda2/size", "2048\n");
        write("loop1/size", "8\n");
        write("dm-4/dm/uuid", "\n");
        std::os::unix::fs::symlink(home.path().join("sda/sda2"), home.path().join("8:2")).unwrap();
        let identity = |name: &str| identity(&home.path().join(name));
        assert_eq!(identity("dm-3").as_deref(), Some("LVM-abc"));
        assert_eq!(identity("nvme0n1").as_deref(), Some("eui.0025"));
        assert_eq!(identity("sda").as_deref(), Some("t10.ATA     QEMU  1"));
        assert_eq!(identity("8:2").as_deref(), Some("t10.ATA     QEMU  1, partition 2"));
        assert_eq!((identity("loop1"), identity("dm-4")), (None, None));
        assert_eq!((size(&home.path().join("8:2")), sector(&home.path().join("8:2"))), (Some(1 << 20), 4096));
        assert_eq!(sector(&home.path().join("loop1")), 512);
    }
}
