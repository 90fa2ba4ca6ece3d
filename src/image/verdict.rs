//! Whether an image is still its guest's last state.
//!
//! A guest that goes on with a memory that is older than its disks destroys the file systems on them. That comes about
//! when the guest has run since it was saved, or when somebody has repaired or changed its disks meanwhile.

use std::cmp::Ordering;
use std::time::Duration;

use super::disks::{Disk, Seen};
use super::record::{self, Details, Stage};
use super::time::Time;
use super::{Image, ImageError};

/// A file that was changed so long after its guest was saved was changed by somebody else. Until then it may have been
/// the guest's backend, which writes what it still has when the guest is destroyed.
const LAST_WRITES: Duration = Duration::from_secs(60);

/// How much longer than libxl's call a device model may take to close a file in which it keeps tables of its own.
const CLOSING: Duration = Duration::from_secs(10);

/// Whether an image may be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The disks are as they were when the guest was saved, as far as that can be seen.
    Fresh,
    /// Nothing speaks against it, but not all could be looked at. It says what.
    Unknown(String),
    /// Restoring it would damage the guest's disks. It says why.
    Stale(String),
    /// A disk is not there, so that the guest can't be restored now. It says which; the image is worth keeping.
    DiskMissing(String),
    /// What a disk's name leads to may be another disk: neither the image nor the guest's file fits it. It says which; the
    /// image is worth keeping, and its guest is not to be booted on the wrong disk.
    OtherDisk(String),
}

impl Verdict {
    /// Returns whether the disks are certainly, or possibly, not as they were.
    pub(super) fn is_against_it(&self) -> bool {
        matches!(self, Verdict::Stale(_) | Verdict::OtherDisk(_))
    }
}

impl Image {
    /// Looks at the guest's disks. The image's record says how they were; an image without one, as `xl save` makes it,
    /// is judged by the time at which it was written.
    pub fn verdict(&self) -> Verdict {
        match record::of_image(self) {
            Ok(Some(file)) => recorded(&file.record.stage),
            Ok(None) => self.unrecorded("it has no record of how its guest's disks were"),
            Err(why) => self.unrecorded(&why),
        }
    }

    /// Records the disks anew. To be called after a restore that has failed, when nothing of its domain is left: the guest
    /// has not run, but a device model may have written into its files as it opened and closed them.
    pub fn restore_failed(&self) -> Result<(), ImageError> {
        let Ok(Some(mut file)) = record::of_image(self) else { return Ok(()) };
        let Some((details, destroyed)) = file.record.stage.details() else { return Ok(()) };
        let speaks_against_it =
            |disk: &Disk| compare(disk, &disk.look_again(), details, destroyed).is_against_it();
        // To these only guests write, and others who must not.
        if details.disks.iter().filter(|disk| disk.is_raw()).any(speaks_against_it) {
            return Ok(());
        }
        file.record.stage = Stage::Destroyed(Details::of(self)?);
        file.write()
    }

    fn unrecorded(&self, why: &str) -> Verdict {
        let limit = Time::from(self.mtime).plus(LAST_WRITES);
        let disks = Disk::all(&self.config);
        let verdicts = disks.iter().map(|disk| match &disk.seen {
            Seen::Missing => missing(disk),
            Seen::File { modified, .. } if disk.writable && *modified > limit => {
                let saved = Time::from(self.mtime);
                Verdict::Stale(format!("{} was written to at {modified}, the image at {saved}", shown(disk)))
            }
            _ => Verdict::Fresh,
        });
        worst(verdicts.chain([Verdict::Unknown(why.to_owned())]))
    }
}

/// The verdict on an image with a record.
pub(super) fn recorded(stage: &Stage) -> Verdict {
    let Some((details, destroyed)) = stage.details() else {
        return Verdict::Unknown("its save was not completed".to_owned());
    };
    worst(details.disks.iter().map(|disk| compare(disk, &disk.look_again(), details, destroyed)))
}

/// What speaks most against it.
fn worst(verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    let weight = |verdict: &Verdict| match verdict {
        Verdict::Fresh => 0,
        Verdict::Unknown(_) => 1,
        Verdict::DiskMissing(_) => 2,
        Verdict::Stale(_) => 3,
        Verdict::OtherDisk(_) => 4,
    };
    verdicts.reduce(|one, other| if weight(&other) > weight(&one) { other } else { one }).unwrap_or(Verdict::Fresh)
}

fn missing(disk: &Disk) -> Verdict {
    Verdict::DiskMissing(format!("{} is not there", shown(disk)))
}

/// A disk, for people.
fn shown(disk: &Disk) -> String {
    format!("disk {} ({})", disk.vdev, disk.target)
}

/// What a disk that was recorded and is found like this means for the image.
fn compare(disk: &Disk, found: &Seen, details: &Details, destroyed: bool) -> Verdict {
    let stale = |why: &str| Verdict::Stale(format!("{} {why}", shown(disk)));
    let other = |why: &str| Verdict::OtherDisk(format!("{} {why}", shown(disk)));
    let unknown = |why: &str| Verdict::Unknown(format!("{} {why}", shown(disk)));
    match (&disk.seen, found) {
        (Seen::NotKnown { .. }, _) if !disk.writable => Verdict::Fresh,
        (Seen::NotKnown { why }, _) => unknown(&format!("could not be looked at when the guest was saved: {why}")),
        (_, Seen::Missing) => missing(disk),
        // What the guest can't write to, it does not damage.
        _ if !disk.writable => Verdict::Fresh,
        (Seen::Missing, _) => unknown("was not there when the guest was saved"),
        (_, Seen::NotKnown { why }) => unknown(&format!("can't be looked at: {why}")),
        (
            Seen::File { size: old_size, modified: old, inode: old_inode, .. },
            Seen::File { size, modified: new, inode, .. },
        ) => {
            let latest = match (destroyed, disk.is_raw()) {
                (true, true) => *old,
                (true, false) => details.looked.plus(CLOSING),
                (false, _) => details.looked.plus(LAST_WRITES),
            };
            let what = match (new.cmp(old), inode == old_inode) {
                (Ordering::Equal, _) => None,
                (Ordering::Less, _) => Some("is older than when the guest was saved"),
                (Ordering::Greater, _) if *new <= latest => None,
                (Ordering::Greater, true) => Some("has been written to since the save"),
                (Ordering::Greater, false) => Some("has been replaced since the save"),
            };
            if let Some(what) = what {
                stale(&format!("{what}: its time was {old}, it is {new}"))
            } else if disk.is_raw() && size != old_size {
                stale(&format!(
                    "has another size than when the guest was saved: then {old_size} bytes, now {size}"
                ))
            } else {
                Verdict::Fresh
            }
        }
        (
            Seen::Block { identity: old_identity, size: old_size, digest: old, .. },
            Seen::Block { identity, size, digest: new, .. },
        ) => {
            let both = old_identity.as_ref().zip(identity.as_ref());
            match (both, old.as_ref().zip(new.as_ref())) {
                (Some((old, new)), _) if old != new => {
                    other(&format!("is another device than when the guest was saved: then {old}, now {new}"))
                }
                // A volume may be extended.
                (both, _) if size < old_size || (size > old_size && both.is_none()) => other(&format!(
                    "has another size than when the guest was saved: then {old_size} bytes, now {size}"
                )),
                (Some(_), Some((old, new))) if old != new => {
                    stale("has been written to since the save: the beginning of what is on it is not the same")
                }
                (None, Some((old, new))) if old != new => other(
                    "is another device, or has been written to since the save: the beginning of what is on it is not the \
                     same, and the kernel knows no lasting name of it",
                ),
                (_, Some(_)) => Verdict::Fresh,
                (_, None) => unknown("can't be checked for having been written to"),
            }
        }
        (Seen::File { .. }, Seen::Block { .. }) => {
            other("was a file when the guest was saved and is a block device now")
        }
        (Seen::Block { .. }, Seen::File { .. }) => {
            other("was a block device when the guest was saved and is a file now")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};
    use std::time::SystemTime;

    use serde_json::{Value, json};

    use super::super::disks::tests::{Loop, of};
    use super::super::header;
    use super::super::header::tests::{UUID, stream};
    use super::super::record::tests::guest;
    use super::super::record::{ImageId, RecordFile};
    use super::*;

    /// An image of a guest with these disks.
    fn image(directory: &Path, disks: &Value) -> Image {
        let config = json!({ "c_info": { "name": "web", "uuid": UUID }, "disks": disks });
        let mut bytes = header::encode(&config).unwrap();
        bytes.extend(stream(b"memory"));
        fs::write(directory.join("web"), bytes).unwrap();
        Image::open(&directory.join("web")).unwrap()
    }

    /// What a record says, and what is found when it is looked at again.
    struct Recorded {
        home: tempfile::TempDir,
        disk: PathBuf,
        details: Details,
    }

    impl Recorded {
        /// A disk that was written to an hour ago and looked at now.
        fn new(change: impl FnOnce(&mut Value)) -> Self {
            let home = tempfile::tempdir().unwrap();
            let disk = home.path().join("disk");
            fs::write(&disk, [5; 4096]).unwrap();
            let recorded = Self::of(home, disk, change);
            recorded.written(-3600.0);
            Self { details: Details { disks: look_at(&recorded.details), ..recorded.details.clone() }, ..recorded }
        }

        fn of(home: tempfile::TempDir, disk: PathBuf, change: impl FnOnce(&mut Value)) -> Self {
            let mut json = json!({ "vdev": "xvda", "pdev_path": disk, "format": "raw", "readwrite": 1 });
            change(&mut json);
            let image = ImageId::of(&image(home.path(), &json!([])));
            Self { home, disk, details: Details { image, looked: Time::now(), disks: of(json) } }
        }

        /// The disk gets the time so many seconds after it was looked at.
        fn written(&self, seconds: f64) {
            let now = SystemTime::now();
            let length = Duration::from_secs_f64(seconds.abs());
            let time = if seconds < 0.0 { now - length } else { now + length };
            File::open(&self.disk).unwrap().set_modified(time).unwrap();
        }

        fn destroyed(&self) -> Verdict {
            recorded(&Stage::Destroyed(self.details.clone()))
        }

        fn suspended(&self) -> Verdict {
            recorded(&Stage::Suspended(self.details.clone()))
        }
    }

    fn look_at(details: &Details) -> Vec<Disk> {
        let look = |disk: &Disk| Disk { seen: disk.look_again(), ..disk.clone() };
        details.disks.iter().map(look).collect()
    }

    fn is_stale(verdict: &Verdict, words: &str) -> bool {
        matches!(verdict, Verdict::Stale(why) if why.starts_with("disk xvda (/") && why.contains(words))
    }

    fn is_other(verdict: &Verdict, words: &str) -> bool {
        matches!(verdict, Verdict::OtherDisk(why) if why.starts_with("disk xvda (/") && why.contains(words))
    }

    #[test]
    fn a_disk_that_nobody_has_touched() {
        let recorded = Recorded::new(|_| {});
        assert_eq!((recorded.destroyed(), recorded.suspended()), (Verdict::Fresh, Verdict::Fresh));
    }

    #[test]
    fn a_raw_file_does_not_change_any_more_once_its_guest_is_gone() {
        let recorded = Recorded::new(|_| {});
        for (seconds, destroyed, suspended) in [(-1.0, true, false), (50.0, true, false), (70.0, true, true)] {
            recorded.written(seconds);
            let words = "has been written to since the save: its time was 20";
            assert_eq!(is_stale(&recorded.destroyed(), words), destroyed, "{seconds}");
            assert_eq!(is_stale(&recorded.suspended(), words), suspended, "{seconds}");
        }
        recorded.written(-7200.0);
        for verdict in [recorded.destroyed(), recorded.suspended()] {
            assert!(is_stale(&verdict, "is older than when the guest was saved"), "{verdict:?}");
        }
    }

    #[test]
    fn a_device_model_may_close_its_files_a_little_later() {
        let recorded = Recorded::new(|disk| disk["format"] = json!("qcow2"));
        for (seconds, destroyed, suspended) in [(5.0, false, false), (20.0, true, false), (70.0, true, true)] {
            recorded.written(seconds);
            assert_eq!(is_stale(&recorded.destroyed(), "written to"), destroyed, "{seconds}");
            assert_eq!(is_stale(&recorded.suspended(), "written to"), suspended, "{seconds}");
        }
    }

    #[test]
    fn a_file_that_was_replaced_or_cut() {
        let recorded = Recorded::new(|_| {});
        let time = fs::metadata(&recorded.disk).unwrap().modified().unwrap();
        File::options().write(true).open(&recorded.disk).unwrap().set_len(100).unwrap();
        File::open(&recorded.disk).unwrap().set_modified(time).unwrap();
        assert!(is_stale(&recorded.destroyed(), "then 4096 bytes, now 100"), "{:?}", recorded.destroyed());
        let other = recorded.home.path().join("other");
        fs::write(&other, [5; 4096]).unwrap();
        fs::rename(&other, &recorded.disk).unwrap();
        assert!(is_stale(&recorded.destroyed(), "has been replaced since the save"), "{:?}", recorded.destroyed());
        // A copy with everything the same, on another file system say, is as good as the file itself.
        File::open(&recorded.disk).unwrap().set_modified(time).unwrap();
        assert_eq!(recorded.destroyed(), Verdict::Fresh);
    }

    #[test]
    fn a_disk_that_is_only_read_never_makes_an_image_stale() {
        for (key, value) in [("readwrite", json!(0)), ("is_cdrom", json!(1))] {
            let recorded = Recorded::new(|disk| disk[key] = value);
            recorded.written(5000.0);
            assert_eq!((recorded.destroyed(), recorded.suspended()), (Verdict::Fresh, Verdict::Fresh));
            fs::remove_file(&recorded.disk).unwrap();
            assert!(matches!(recorded.destroyed(), Verdict::DiskMissing(_)));
        }
    }

    #[test]
    fn a_disk_that_is_missing_does_not_make_the_image_stale() {
        let recorded = Recorded::new(|_| {});
        fs::remove_file(&recorded.disk).unwrap();
        let expected = Verdict::DiskMissing(format!("disk xvda ({}) is not there", recorded.disk.display()));
        assert_eq!((recorded.destroyed(), recorded.suspended()), (expected.clone(), expected));
    }

    #[test]
    fn a_disk_that_cant_be_looked_at_is_not_known() {
        let recorded = Recorded::new(|disk| disk["script"] = json!("block-iscsi"));
        recorded.written(5000.0);
        let verdict = recorded.destroyed();
        assert!(matches!(&verdict, Verdict::Unknown(why) if why.contains("block-iscsi")), "{verdict:?}");
        let recorded = Recorded::new(|disk| {
            disk["script"] = json!("block-iscsi");
            disk["readwrite"] = json!(0);
        });
        assert_eq!(recorded.destroyed(), Verdict::Fresh);
        // Later, something else is in its place.
        let recorded = Recorded::new(|_| {});
        fs::remove_file(&recorded.disk).unwrap();
        fs::create_dir(&recorded.disk).unwrap();
        assert!(matches!(recorded.destroyed(), Verdict::Unknown(_)));
    }

    #[test]
    fn a_restore_that_failed_does_not_make_its_image_stale() {
        for (format, late) in [("qcow2", false), ("raw", true)] {
            let recorded = Recorded::new(|disk| disk["format"] = json!(format));
            let disk = json!([{ "vdev": "xvda", "pdev_path": recorded.disk, "format": format, "readwrite": 1 }]);
            let image = image(recorded.home.path(), &disk);
            image.restore_failed().unwrap();
            let mut file =
                RecordFile::beside(&recorded.home.path().join(".web.0123456789ab.saving"), &guest("web"));
            file.record.stage =
                Stage::Destroyed(Details { image: ImageId::of(&image), ..recorded.details.clone() });
            file.write().unwrap();
            recorded.written(20.0);
            assert!(is_stale(&image.verdict(), "written to"));
            image.restore_failed().unwrap();
            assert_eq!(is_stale(&image.verdict(), "written to"), late, "{format}");
        }
    }

    fn device(mib: u64) -> (Loop, Recorded) {
        let device = Loop::new(mib);
        let recorded = Recorded::of(tempfile::tempdir().unwrap(), device.path.clone(), |_| {});
        (device, recorded)
    }

    #[test]
    fn a_device_whose_file_system_was_mounted() {
        let (device, recorded) = device(4);
        assert_eq!((recorded.destroyed(), recorded.suspended()), (Verdict::Fresh, Verdict::Fresh));
        device.write(1024 + 0x2c, &[1]);
        for verdict in [recorded.destroyed(), recorded.suspended()] {
            assert!(is_other(&verdict, "is another device, or has been written to since the save"), "{verdict:?}");
        }
    }

    #[test]
    fn a_device_of_another_size() {
        let (device, mut recorded) = device(4);
        let mut resize = |mib: u64, identity: Option<&str>| {
            if let Seen::Block { identity: recorded, size, .. } = &mut recorded.details.disks[0].seen {
                *recorded = identity.map(str::to_owned);
                *size = mib << 20;
            }
            recorded.destroyed()
        };
        assert!(is_other(&resize(5, None), "then 5242880 bytes, now 4194304"));
        assert!(is_other(&resize(3, None), "another size"));
        // What it is known by now can't be told of a loop device.
        assert!(is_other(&resize(3, Some("LVM-abc")), "another size"));
        assert_eq!(resize(4, Some("LVM-abc")), Verdict::Fresh);
        drop(device);
    }

    #[test]
    fn a_volume_is_known_by_its_identity_and_may_be_extended() {
        let (_device, recorded) = device(4);
        let disk = &recorded.details.disks[0];
        let now = |identity: &str, mib: u64| {
            let Seen::Block { path, digest, .. } = disk.seen.clone() else { panic!("{disk:?}") };
            Seen::Block { path, digest, identity: Some(identity.to_owned()), size: mib << 20 }
        };
        let disk = Disk { seen: now("LVM-abc", 4), ..disk.clone() };
        let verdict = |found: &Seen| compare(&disk, found, &recorded.details, true);
        assert_eq!(verdict(&now("LVM-abc", 4)), Verdict::Fresh);
        assert_eq!(verdict(&now("LVM-abc", 6)), Verdict::Fresh);
        assert!(is_other(&verdict(&now("LVM-abc", 3)), "another size"));
        let mut written = now("LVM-abc", 4);
        if let Seen::Block { digest, .. } = &mut written {
            *digest = Some("0".to_owned());
        }
        assert!(is_stale(&verdict(&written), "has been written to since the save"));
        assert!(is_other(
            &verdict(&now("LVM-abd", 4)),
            "is another device than when the guest was saved: then LVM-abc"
        ));
        let mut unreadable = now("LVM-abc", 4);
        if let Seen::Block { digest, .. } = &mut unreadable {
            *digest = None;
        }
        assert!(matches!(verdict(&unreadable), Verdict::Unknown(_)));
    }

    #[test]
    fn a_file_in_the_place_of_a_device() {
        let (device, mut recorded) = device(1);
        let disk = &mut recorded.details.disks[0];
        disk.target = device.backing.path().to_str().unwrap().to_owned();
        assert!(is_other(&recorded.destroyed(), "was a block device when the guest was saved and is a file now"));
        let mut recorded = Recorded::new(|_| {});
        recorded.details.disks[0].target = device.path.to_str().unwrap().to_owned();
        assert!(is_other(&recorded.destroyed(), "was a file when the guest was saved and is a block device now"));
    }

    #[test]
    fn an_image_without_a_record_is_judged_by_its_age() {
        let home = tempfile::tempdir().unwrap();
        let disk = home.path().join("disk");
        fs::write(&disk, "5").unwrap();
        let judged = |seconds: u64, change: &dyn Fn(&mut Value)| {
            let mut json = json!({ "vdev": "xvda", "pdev_path": disk, "format": "raw", "readwrite": 1 });
            change(&mut json);
            let image = image(home.path(), &json!([json]));
            let _ = File::open(&disk).map(|disk| disk.set_modified(image.mtime + Duration::from_secs(seconds)));
            image.verdict()
        };
        assert!(matches!(judged(50, &|_| {}), Verdict::Unknown(why) if why.contains("no record")));
        assert!(is_stale(&judged(70, &|_| {}), "was written to at 20"));
        assert!(matches!(judged(70, &|disk| disk["readwrite"] = json!(0)), Verdict::Unknown(_)));
        assert!(matches!(judged(70, &|disk| disk["is_cdrom"] = json!(1)), Verdict::Unknown(_)));
        assert!(matches!(judged(70, &|disk| disk["backend_domname"] = json!("nas")), Verdict::Unknown(_)));
        // A record that can't be read is as good as none.
        fs::write(home.path().join(".web.0123456789ab.record"), "{").unwrap();
        assert!(matches!(judged(50, &|_| {}), Verdict::Unknown(why) if why.contains("it is damaged")));
        assert!(matches!(judged(70, &|_| {}), Verdict::Stale(_)));
        fs::remove_file(&disk).unwrap();
        assert!(matches!(judged(0, &|_| {}), Verdict::DiskMissing(_)));
    }

    #[test]
    fn the_worst_counts() {
        let [unknown, stale, missing, other] =
            [Verdict::Unknown, Verdict::Stale, Verdict::DiskMissing, Verdict::OtherDisk]
                .map(|verdict| verdict("why".to_owned()));
        let all = [Verdict::Fresh, unknown, missing, stale, other];
        for (i, one) in all.iter().enumerate() {
            for (j, other) in all.iter().enumerate() {
                assert_eq!(worst([one.clone(), other.clone()].into_iter()), all[i.max(j)]);
            }
        }
        assert_eq!(worst([].into_iter()), Verdict::Fresh);
    }
}
