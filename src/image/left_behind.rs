//! What a save that was cut off has left: a suspended domain, and files.
//!
//! A save does these things in this order. A crash of the program, or its being killed, can come after any of them:
//!
//! | after | the domain | the directory | [`left_behind`](SaveDirectory::left_behind) | to be done |
//! |---|---|---|---|---|
//! | 1. the temporary file is made | runs | temporary file | – | remove the file |
//! | 2. the record is written: *begun* | runs | temporary file, record | – | remove both |
//! | 3. the guest is suspended, its state is being or has been written | suspended | the same | [`Victim`](LeftBehind::Victim) | resume it, remove both |
//! | 4. the record is written again: *suspended*, with size and time of the image | suspended | the same | `Victim` | the same |
//! | 5. the temporary file gets the image's name | suspended | image, record | [`Husk`](LeftBehind::Husk) | destroy it, complete the record |
//! | 6. the directory is synced | suspended | the same | `Husk` | the same |
//! | 7. the domain is destroyed | none | the same | – | restore the image; its disks may have been closed after they were recorded |
//! | 8. the record is written again: *destroyed* | none | the same | – | restore the image |
//!
//! A domain that was being destroyed has lost its name already, and can't be resumed any more: a `Husk` is recognised
//! without one.
//!
//! If a step fails, the program itself resumes the guest and then removes the record and the temporary file. After a
//! crash between the two the guest runs, and both are removed as after step 2. If the guest can't be resumed, it stays a
//! `Victim`, as after step 3 or 4.
//!
//! The record proves whose work it was: the domain in it has the same number and UUID in the same boot of the host. It
//! is there before the guest is suspended, and the file beside it is locked by whoever writes it, helpers of libxl
//! included. What the record does not prove is that nobody else is saving or migrating the same domain right now: after
//! our save had died while the guest still ran, or after somebody had resumed it by hand. So a record without an image is
//! removed as soon as its domain is seen alive ([`remove_stale_temporaries`](SaveDirectory::remove_stale_temporaries)),
//! and whoever starts or stops guests takes the image of a living guest out of the way.
//!
//! After a crash of the host there are no domains, and the boot is another one: what is left of steps 1 to 4 is
//! removed, and what is left of the others is an image with its record. A temporary file that lost its name with a
//! directory that was not yet synced counts as before step 5; the guest was still there and is lost like any that ran.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use uuid::Uuid;

use super::change::{self, sync_directory};
use super::name::{RECORD, RECORDING, SAVING, encode_name, is_hidden, sibling};
use super::record::{self, Guest, ImageId, Record, RecordFile, Unreadable};
use super::{Format, Image, ImageError, SaveDirectory, Saved, io_error, xend};

/// What a save has left of a guest whose domain is suspended.
#[derive(Debug)]
pub enum LeftBehind {
    /// No save of ours: somebody else has suspended it.
    Nothing,
    /// Its image is being written at this moment.
    BeingSaved,
    /// The save has died on the way. There is no image; the guest may be resumed.
    Victim,
    /// The save had come to its end: this is the image, durable and whole, and the domain is to be destroyed.
    Husk(Box<Saved>),
    /// The save had come to its end, but the image is not there any more. Somebody has taken it away, and may have
    /// restored it: neither the domain nor the files are to be touched.
    ImageGone,
}

impl SaveDirectory {
    /// Finds out how a suspended domain came to be so.
    pub fn left_behind(&self, domain: &Guest) -> Result<LeftBehind, ImageError> {
        let mut latest: Option<RecordFile> = None;
        let records = record::all(self.path(), |_| true).map_err(io_error(self.path(), "list it"))?;
        for (path, record) in records {
            match record {
                Ok(record) if record.guest.is_same_domain(domain) => {
                    if latest.as_ref().is_none_or(|latest| latest.record.since_boot < record.since_boot) {
                        latest = Some(RecordFile { path, record });
                    }
                }
                // It was never whole, so that no save went on after it.
                Ok(_) | Err(Unreadable::Damaged(_)) => {}
                Err(error) => return Err(io_error(&path, "read it")(io::Error::other(error))),
            }
        }
        let Some(file) = latest else { return Ok(LeftBehind::Nothing) };
        match lock(&sibling(&file.path, RECORD, SAVING))? {
            Lock::Taken => return Ok(LeftBehind::BeingSaved),
            Lock::Free(_) => return Ok(LeftBehind::Victim),
            Lock::NoFile => {}
        }
        match file.record.details() {
            None => Ok(LeftBehind::Victim),
            Some(details) => self.husk(details.image, file),
        }
    }

    /// The domain of a save whose image has got its name.
    fn husk(&self, expected: ImageId, record: RecordFile) -> Result<LeftBehind, ImageError> {
        let path = self.path().join(encode_name(&record.record.guest.name));
        let file = match lock(&path)? {
            Lock::Taken => return Ok(LeftBehind::BeingSaved),
            Lock::Free(file) => file,
            Lock::NoFile => return Ok(LeftBehind::ImageGone),
        };
        let metadata = file.metadata().map_err(io_error(&path, "read its metadata"))?;
        if ImageId::of_file(&metadata) != expected {
            return Ok(LeftBehind::ImageGone);
        }
        let image = Image::inspect(&path, &file)?;
        if !record.record.is_of(&image) {
            return Ok(LeftBehind::ImageGone);
        }
        // The crash may have come before the name was durable.
        change::sync(&file).map_err(io_error(&path, "write it to the disk"))?;
        sync_directory(self.path()).map_err(io_error(&path, "make its name durable"))?;
        Ok(LeftBehind::Husk(Box::new(Saved::found(image, record, file))))
    }

    /// Removes what saves have left that were cut off, and says what; records that belong to no image are removed too.
    /// A file that is still written is left alone, and so is what tells how one of the `suspended` domains came to be
    /// suspended.
    pub fn remove_stale_temporaries(&self, suspended: &[Guest]) -> Result<Vec<PathBuf>, ImageError> {
        let is_suspended = |record: &Record| suspended.iter().any(|domain| domain.is_same_domain(&record.guest));
        let mut removed = Vec::new();
        for path in self.hidden(SAVING)? {
            let record = record::read(&sibling(&path, SAVING, RECORD));
            let needed = record.is_ok_and(|record| is_suspended(&record));
            // Of a guest that xend has saved there may be nothing else: it is removed before we know.
            if !needed && !is_of_xend(&path) && remove_if_free(&path)? {
                removed.push(path);
            }
        }
        for path in self.hidden(RECORDING)? {
            if !sibling(&path, RECORDING, SAVING).exists() {
                remove(&path)?;
            }
        }
        let images = self.image_ids()?;
        for path in self.hidden(RECORD)? {
            let useless = match record::read(&path) {
                Ok(record) if is_suspended(&record) => false,
                Ok(record) => record.details().is_none_or(|details| !images.contains(&details.image)),
                Err(Unreadable::Damaged(_)) => true,
                Err(Unreadable::Io(_) | Unreadable::Newer(_)) => false,
            };
            // With its temporary file it belongs to a save that is under way.
            if useless && !sibling(&path, RECORD, SAVING).exists() {
                remove(&path)?;
            }
        }
        Ok(removed)
    }

    /// Gives images of xend their names whose guest is not there any more: it was saved, and the save was cut off before
    /// that. `is_there` knows the guests. Says what they are called.
    pub fn claim_saved_by_xend(&self, is_there: impl Fn(Uuid) -> bool) -> Result<Vec<PathBuf>, ImageError> {
        let mut claimed = Vec::new();
        for path in self.hidden(SAVING)? {
            let Lock::Free(_file) = lock(&path)? else { continue };
            let Ok(image) = Image::open(&path) else { continue };
            if image.format != Format::Xend || is_there(image.uuid) {
                continue;
            }
            let target = self.path().join(encode_name(&image.name));
            change::rename_to_new(&path, &target).map_err(io_error(&target, "give the image its name"))?;
            sync_directory(self.path()).map_err(io_error(&target, "make its name durable"))?;
            claimed.push(target);
        }
        Ok(claimed)
    }

    /// The regular files with a name that ends like this.
    fn hidden(&self, suffix: &str) -> Result<Vec<PathBuf>, ImageError> {
        let names = self.names()?.into_iter().filter(|name| is_hidden(name, suffix));
        let paths = names.map(|name| self.path().join(name));
        Ok(paths.filter(|path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())).collect())
    }

    /// What could be images, also used ones.
    fn image_ids(&self) -> Result<HashSet<ImageId>, ImageError> {
        let names = self.names()?;
        let metadata = names.iter().filter_map(|name| fs::metadata(self.path().join(name)).ok());
        Ok(metadata.filter(fs::Metadata::is_file).map(|metadata| ImageId::of_file(&metadata)).collect())
    }
}

fn is_of_xend(path: &Path) -> bool {
    let mut magic = [0; xend::MAGIC.len()];
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).unwrap_or_default();
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let read = opened.and_then(|mut file| io::Read::read_exact(&mut file, &mut magic));
    read.is_ok() && magic == *xend::MAGIC
}

/// Whether somebody writes a file.
enum Lock {
    NoFile,
    Taken,
    /// Now it is ours, as long as the file is open.
    Free(File),
}

fn lock(path: &Path) -> Result<Lock, ImageError> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).unwrap_or_default();
    let open = |write| File::options().read(true).write(write).custom_flags(flags).open(path);
    // NFS refuses an exclusive lock on what was opened to be read only.
    let opened = open(true).or_else(|error| match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => open(false),
        _ => Err(error),
    });
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Lock::NoFile),
        Err(error) => return Err(io_error(path, "open it")(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock::Free(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(Lock::Taken),
        Err(source) => Err(io_error(path, "lock it")(source)),
    }
}

/// Removes a temporary file if nobody writes it any more.
fn remove_if_free(path: &Path) -> Result<bool, ImageError> {
    match lock(path)? {
        Lock::Free(_locked) => remove(path),
        Lock::Taken | Lock::NoFile => Ok(false),
    }
}

/// `false`: it was gone already.
fn remove(path: &Path) -> Result<bool, ImageError> {
    match change::remove(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error(path, "remove it")(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    use serde_json::{Value, json};

    use super::super::change::tests::at_every_cut;
    use super::super::header::tests::{UUID, stream};
    use super::super::record::tests::guest;
    use super::super::{NewImage, Verdict};
    use super::change::cut;
    use super::*;

    /// The only guest of a host in a directory: its domain is in the file `domain`, its disk is the file `disk`.
    struct Dom0<'a>(&'a Path);

    impl Dom0<'_> {
        fn prepare(&self) {
            fs::create_dir(self.0.join("save")).unwrap();
            fs::write(self.0.join("domain"), "runs").unwrap();
            fs::write(self.0.join("disk"), [7; 4096]).unwrap();
        }

        fn save(&self) -> SaveDirectory {
            SaveDirectory::open(&self.0.join("save")).unwrap()
        }

        fn domain(&self) -> String {
            fs::read_to_string(self.0.join("domain")).unwrap()
        }

        /// What the toolstack does to the domain.
        fn becomes(&self, state: &str) {
            cut();
            fs::write(self.0.join("domain"), state).unwrap();
            cut();
        }

        fn config(&self) -> Value {
            let disk = json!({"vdev": "xvda", "pdev_path": self.0.join("disk"), "format": "raw", "readwrite": 1});
            json!({ "c_info": { "name": "web", "uuid": UUID }, "disks": [disk] })
        }

        /// Suspends the guest and writes its image, or only a part of it.
        fn write(&self, whole: bool) -> NewImage {
            let mut new = self.save().begin(&guest("web"), 1 << 20).unwrap();
            new.write_header(&self.config()).unwrap();
            self.becomes("suspended");
            let stream = stream(b"memory");
            change::write(new.file(), &stream[..20]).unwrap();
            if whole {
                change::write(new.file(), &stream[20..]).unwrap();
            }
            new
        }

        fn save_guest(&self) {
            let saved = self.write(true).commit().unwrap();
            self.becomes("gone");
            saved.destroyed().unwrap();
        }

        /// Names of files; the random part of hidden ones is left out.
        fn files(&self) -> Vec<String> {
            let shown = |name: std::ffi::OsString| {
                let name = name.into_string().unwrap();
                let dots: Vec<_> = name.match_indices('.').map(|(at, _)| at).collect();
                if name.starts_with('.') { format!("{}{}", &name[..dots[1]], &name[dots[2]..]) } else { name }
            };
            self.save().names().unwrap().into_iter().map(shown).collect()
        }

        fn tidy(&self, suspended: &[Guest]) {
            self.save().remove_stale_temporaries(suspended).unwrap();
        }

        fn image(&self) -> Option<Image> {
            Image::open(&self.0.join("save/web")).ok()
        }

        /// What a start or a stop finds and does after the program has died.
        fn recover(&self) -> String {
            let found = self.domain();
            let mut outcome = found.clone();
            if found == "suspended" {
                // What is tidied up before it is dealt with does not matter.
                self.tidy(&[guest("web")]);
                match self.save().left_behind(&guest("web")).unwrap() {
                    LeftBehind::Victim => {
                        assert!(self.image().is_none(), "the guest is in the image");
                        fs::write(self.0.join("domain"), "runs").unwrap();
                        outcome = "victim".to_owned();
                    }
                    LeftBehind::Husk(saved) => {
                        assert_eq!(saved.image().path, self.0.join("save/web"));
                        fs::write(self.0.join("domain"), "gone").unwrap();
                        saved.destroyed().unwrap();
                        outcome = "husk".to_owned();
                    }
                    other => panic!("{other:?}"),
                }
            }
            self.tidy(&[]);
            outcome
        }

        /// The guest is either running or in an image, and nothing else is left.
        fn expect_one_guest(&self, runs: bool) {
            if runs {
                assert_eq!(self.files(), [""; 0]);
            } else {
                assert_eq!(self.files(), [".web.record", "web"]);
                assert_eq!(self.image().unwrap().verdict(), Verdict::Fresh);
            }
        }
    }

    #[test]
    fn a_save_that_dies_is_recognised_wherever_that_was() {
        let mut seen = BTreeSet::new();
        at_every_cut(
            "image::left_behind::tests::a_save_that_dies_is_recognised_wherever_that_was",
            |home| Dom0(home).prepare(),
            |home| Dom0(home).save_guest(),
            |home, complete| {
                let dom0 = Dom0(home);
                let outcome = dom0.recover();
                dom0.expect_one_guest(dom0.domain() == "runs");
                assert!(!complete || outcome == "gone");
                seen.insert(outcome);
            },
        );
        assert!(seen.is_empty() || seen.iter().eq(["gone", "husk", "runs", "victim"]), "{seen:?}");
    }

    #[test]
    fn a_host_that_dies_leaves_an_image_or_nothing() {
        at_every_cut(
            "image::left_behind::tests::a_host_that_dies_leaves_an_image_or_nothing",
            |home| Dom0(home).prepare(),
            |home| Dom0(home).save_guest(),
            |home, _| {
                let dom0 = Dom0(home);
                // A domain of the next boot that has the same number, and is suspended by somebody else.
                let other = Guest { boot_id: "b00711".to_owned(), ..guest("web") };
                assert!(matches!(dom0.save().left_behind(&other).unwrap(), LeftBehind::Nothing));
                dom0.tidy(&[other]);
                dom0.expect_one_guest(dom0.image().is_none());
            },
        );
    }

    #[test]
    fn a_save_that_fails_and_dies_leaves_no_guest_suspended() {
        at_every_cut(
            "image::left_behind::tests::a_save_that_fails_and_dies_leaves_no_guest_suspended",
            |home| Dom0(home).prepare(),
            |home| {
                let dom0 = Dom0(home);
                let mut new = dom0.write(false);
                assert!(new.commit().is_err());
                dom0.becomes("runs");
                drop(new);
            },
            |home, complete| {
                let dom0 = Dom0(home);
                let outcome = dom0.recover();
                assert!(["runs", "victim"].contains(&outcome.as_str()), "{outcome}");
                dom0.expect_one_guest(true);
                assert!(!complete || outcome == "runs");
            },
        );
    }

    #[test]
    fn an_older_image_keeps_its_record_until_it_is_replaced() {
        at_every_cut(
            "image::left_behind::tests::an_older_image_keeps_its_record_until_it_is_replaced",
            |home| {
                let dom0 = Dom0(home);
                dom0.prepare();
                dom0.save_guest();
                dom0.becomes("runs");
            },
            |home| Dom0(home).save_guest(),
            |home, _| {
                let dom0 = Dom0(home);
                assert_eq!(dom0.image().unwrap().verdict(), Verdict::Fresh);
                dom0.tidy(&[]);
                dom0.expect_one_guest(false);
            },
        );
    }

    #[test]
    fn the_later_save_counts() {
        let home = tempfile::tempdir().unwrap();
        let dom0 = Dom0(home.path());
        dom0.prepare();
        let found = || dom0.save().left_behind(&guest("web")).unwrap();
        // The first one was killed, and the guest resumed, but nobody tidied up.
        dom0.write(true).guest_stays_suspended();
        assert!(matches!(found(), LeftBehind::Victim));
        let saved = dom0.write(true).commit().unwrap();
        assert!(matches!(found(), LeftBehind::BeingSaved), "the process is still at it");
        drop(saved);
        assert!(matches!(found(), LeftBehind::Husk(_)));
        dom0.write(true).guest_stays_suspended();
        assert!(matches!(found(), LeftBehind::Victim));
    }

    #[test]
    fn other_domains_are_none_of_our_business() {
        let home = tempfile::tempdir().unwrap();
        let dom0 = Dom0(home.path());
        dom0.prepare();
        dom0.write(true).guest_stays_suspended();
        let found = |domain: Guest| dom0.save().left_behind(&domain).unwrap();
        assert!(matches!(found(Guest { name: "renamed".to_owned(), ..guest("web") }), LeftBehind::Victim));
        for other in [
            Guest { domid: 8, ..guest("web") },
            Guest { uuid: uuid::Uuid::from_u128(5), ..guest("web") },
            Guest { boot_id: "b00711".to_owned(), ..guest("web") },
        ] {
            assert!(matches!(found(other), LeftBehind::Nothing));
        }
        // A record that can't be read may be the one.
        let record = dom0.0.join("save/.web.0123456789ab.record");
        fs::write(&record, r#"{"version": 2}"#).unwrap();
        assert!(dom0.save().left_behind(&guest("web")).is_err());
        dom0.tidy(&[]);
        assert!(record.exists(), "and is not ours to remove");
        fs::write(&record, "{").unwrap();
        dom0.tidy(&[]);
        assert_eq!(dom0.files(), [""; 0]);
    }

    #[test]
    fn an_image_that_was_taken_away_is_nobodys_to_replace() {
        let home = tempfile::tempdir().unwrap();
        let dom0 = Dom0(home.path());
        dom0.prepare();
        drop(dom0.write(true).commit().unwrap());
        let found = || dom0.save().left_behind(&guest("web")).unwrap();
        // It is not, as long as it is there under its name.
        assert!(matches!(found(), LeftBehind::Husk(_)));
        let consumed = dom0.image().unwrap().consume().unwrap();
        assert!(matches!(found(), LeftBehind::ImageGone));
        let image = consumed.put_back().unwrap();
        assert!(matches!(found(), LeftBehind::Husk(_)));
        fs::rename(&image.path, dom0.0.join("elsewhere")).unwrap();
        assert!(matches!(found(), LeftBehind::ImageGone));
        fs::copy(dom0.0.join("elsewhere"), &image.path).unwrap();
        assert!(matches!(found(), LeftBehind::ImageGone), "another one of the same content");
    }

    #[test]
    fn what_is_locked_is_open_to_be_written_as_nfs_wants_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, "image").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let Ok(Lock::Free(file)) = lock(&path) else { panic!("it is free") };
        assert!(rustix::fs::fcntl_getfl(&file).unwrap().contains(OFlags::RDWR));
        assert_eq!(fs::read(&path).unwrap(), b"image");
    }

    #[test]
    fn disks_that_were_written_to_behind_a_husk_are_not_recorded_as_right() {
        let home = tempfile::tempdir().unwrap();
        let dom0 = Dom0(home.path());
        dom0.prepare();
        drop(dom0.write(true).commit().unwrap());
        let late = std::time::SystemTime::now() + std::time::Duration::from_secs(100);
        File::open(dom0.0.join("disk")).unwrap().set_modified(late).unwrap();
        let LeftBehind::Husk(saved) = dom0.save().left_behind(&guest("web")).unwrap() else { panic!("no husk") };
        let image = saved.destroyed().unwrap();
        assert!(matches!(image.verdict(), Verdict::Stale(_)));
    }

    #[test]
    fn a_fifo_among_the_images_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".web.0123456789ab.saving");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
        assert!(!is_of_xend(&path));
    }
}
