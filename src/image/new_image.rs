//! Writing an image.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock, statvfs};
use serde_json::Value;
use uuid::Uuid;

use super::change::{self, sync_directory};
use super::name::{SAVING, encode_name, hidden};
use super::record::{self, Details, Guest, RecordFile, Stage};
use super::verdict::recorded;
use super::{Image, ImageError, Problem, header, io_error};

/// Kept free beside what a guest needs, for the configuration, the device model's state and the records around the
/// pages; a share of the guest's memory comes on top.
const RESERVE: u64 = 16 << 20;
const RESERVE_SHARE: u64 = 64;

/// A save under way.
struct Reservation {
    bytes: u64,
    file: Arc<File>,
}

impl Reservation {
    /// What it is still going to write.
    fn outstanding(&self) -> u64 {
        let written = self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        self.bytes.saturating_sub(written)
    }
}

/// All saves under way in one directory.
#[derive(Default)]
pub(super) struct Reservations {
    running: Mutex<HashMap<PathBuf, Reservation>>,
}

impl Reservations {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Reservation>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes that are free in the directory's file system.
pub(super) fn room(directory: &Path) -> Result<u64, ImageError> {
    let room = statvfs(directory).map_err(io_error(directory, "ask for the room in it"))?;
    Ok(room.f_bavail.saturating_mul(room.f_frsize))
}

/// An image that is being written, into a hidden temporary file with a lock on it. Its record says whose save it is.
///
/// Dropped before it is committed, it takes the record and the temporary file with it. So it is to be kept until the
/// guest has been resumed; if that fails, [`guest_stays_suspended`](Self::guest_stays_suspended).
pub struct NewImage {
    directory: PathBuf,
    reservations: Arc<Reservations>,
    name: OsString,
    path: PathBuf,
    file: Arc<File>,
    record: RecordFile,
    /// It has got its final name, or is needed to tell what has become of the guest: there is nothing to clean up.
    stays: bool,
}

impl NewImage {
    pub(super) fn begin(
        directory: &Path,
        reservations: &Arc<Reservations>,
        guest: &Guest,
        expected_bytes: u64,
    ) -> Result<Self, ImageError> {
        let name = encode_name(&guest.name);
        check_target(&directory.join(&name), &guest.name)?;
        let needed = expected_bytes.saturating_add(expected_bytes / RESERVE_SHARE).saturating_add(RESERVE);
        // One after the other, so that two can't take the same room.
        let mut running = reservations.lock();
        let available = room(directory)?;
        let reserved = running.values().fold(0, |sum: u64, save| sum.saturating_add(save.outstanding()));
        if available.saturating_sub(reserved) < needed {
            let mib = |bytes: u64| bytes >> 20;
            let (needed, available, reserved) = (mib(needed), mib(available), mib(reserved));
            return Err(Problem::NoRoom { needed, available, reserved }.at(directory));
        }
        let (path, file) = create_temporary(directory, &name)?;
        let file = Arc::new(file);
        running.insert(path.clone(), Reservation { bytes: needed, file: Arc::clone(&file) });
        drop(running);
        let record = RecordFile::beside(&path, guest);
        let (directory, reservations) = (directory.to_owned(), Arc::clone(reservations));
        let new = Self { directory, reservations, name, path, file, record, stays: false };
        new.record.write()?;
        Ok(new)
    }

    /// The temporary file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The temporary file, behind what was written last.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Tells how much of it has been written, in bytes, whoever writes.
    pub fn written_so_far(&self) -> impl Fn() -> u64 + Send + use<> {
        let file = Arc::clone(&self.file);
        move || file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Writes everything that comes before libxl's stream. `config` is the guest's configuration in libxl's JSON.
    pub fn write_header(&mut self, config: &Value) -> io::Result<()> {
        let (name, uuid) = header::identity(config).map_err(|problem| io::Error::other(problem.to_string()))?;
        self.check_guest(&name, uuid).map_err(|problem| io::Error::other(problem.to_string()))?;
        change::write(&self.file, &header::encode(config)?)
    }

    fn check_guest(&self, name: &str, uuid: Uuid) -> Result<(), Problem> {
        let expected = &self.record.record.guest;
        if (name, uuid) == (&expected.name, expected.uuid) {
            return Ok(());
        }
        let shown = |name: &str, uuid| format!("{name} ({uuid})");
        Err(Problem::WrongGuest { found: shown(name, uuid), expected: shown(&expected.name, expected.uuid) })
    }

    /// Checks that the image is whole, makes it and what the guest has written to its disks durable, and gives it its
    /// name. The guest must be suspended, and is destroyed next. After an error there is no image, and an older one is as
    /// it was; only when the directory itself can't be synced is an older one gone.
    pub fn commit(&mut self) -> Result<Saved, ImageError> {
        let target = self.directory.join(&self.name);
        change::sync(&self.file).map_err(io_error(&self.path, "write it to the disk"))?;
        let image = Image::inspect(&self.path, &self.file)?;
        self.check_guest(&image.name, image.uuid).map_err(|problem| problem.at(&self.path))?;
        let replaced =
            check_target(&target, &image.name)?.and_then(|older| record::of_image(&older).ok().flatten());
        self.record.record.stage = Stage::Suspended(Details::of(&image)?);
        self.record.write()?;
        change::rename(&self.path, &target).map_err(io_error(&target, "give the image its name"))?;
        if let Err(source) = sync_directory(&self.directory) {
            // The guest is going to run on, so the image must not stay. If it does, so does what tells that it is stale.
            self.stays = true;
            change::rename(&target, &self.path)
                .map_err(io_error(&target, "remove an image that is not durable"))?;
            self.stays = false;
            return Err(Problem::Io { action: "make its name durable", source }.at(&target));
        }
        self.stays = true;
        if let Some(replaced) = replaced {
            // Should this fail, it goes with the next temporary files.
            let _ = change::remove(&replaced.path);
        }
        let record = RecordFile { path: self.record.path.clone(), record: self.record.record.clone() };
        Ok(Saved {
            image: Image { path: target, ..image },
            record,
            sound: true,
            _lock: SaveLock(Arc::clone(&self.file)),
        })
    }

    /// The guest is not there any more, or is still being written by somebody: keeps the file, whatever it is.
    pub fn keep(mut self) -> PathBuf {
        self.stays = true;
        unlock(&self.file);
        self.path.clone()
    }

    /// The guest could not be resumed: keeps what proves that it was this save that has suspended it, so that it can be
    /// tried again.
    pub fn guest_stays_suspended(mut self) {
        self.stays = true;
        // The record is enough, unless it says that the image may have got its name: then the temporary file shows that
        // it has not. Should this fail, the room is freed when the record goes.
        let _ = match self.record.record.stage {
            Stage::Begun => change::remove(&self.path),
            Stage::Suspended(_) | Stage::Destroyed(_) => change::empty(&self.file),
        };
        unlock(&self.file);
    }
}

impl Drop for NewImage {
    fn drop(&mut self) {
        self.reservations.lock().remove(&self.path);
        if !self.stays {
            // Should this fail, the next scan names the file, and the next start removes both.
            let _ = change::remove(&self.record.path);
            let _ = change::remove(&self.path);
        }
    }
}

/// An image that is in place, whole and durable, while its guest is still there, suspended. Nobody else takes it for
/// the remains of a save as long as this exists.
#[must_use = "the guest is to be destroyed, and its disks are to be looked at again"]
#[derive(Debug)]
pub struct Saved {
    image: Image,
    record: RecordFile,
    /// The disks are still as they were recorded.
    sound: bool,
    _lock: SaveLock,
}

/// What keeps others from taking the image for the remains of a save.
#[derive(Debug)]
struct SaveLock(Arc<File>);

impl Drop for SaveLock {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

/// Gives the lock of a save back. Closing the file would do, were there no child process that has just been forked and
/// has it open too.
fn unlock(file: &File) {
    let _ = flock(file, FlockOperation::Unlock);
}

impl Saved {
    /// The image of a save that was cut off after it had got its name.
    pub(super) fn found(image: Image, record: RecordFile, lock: File) -> Self {
        // Disks that somebody else has written to meanwhile are not recorded a second time as if that were right.
        let sound = !recorded(&record.record.stage).is_against_it();
        Self { image, record, sound, _lock: SaveLock(Arc::new(lock)) }
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Records how the disks are now that nothing of the guest has them open any more. To be called when its domain has
    /// been destroyed. The image is good even after an error; only changes to the disks are seen less exactly.
    pub fn destroyed(mut self) -> Result<Image, ImageError> {
        if self.sound {
            self.record.record.stage = Stage::Destroyed(Details::of(&self.image)?);
            self.record.write()?;
        }
        Ok(self.image)
    }
}

/// Whether the guest's image may take this name: it is free, or has an older image of the same guest (which is
/// returned), or one that nobody can restore.
fn check_target(path: &Path, guest: &str) -> Result<Option<Image>, ImageError> {
    let taken = |by: String| Err(Problem::NameTaken(by).at(path));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Problem::Io { action: "read its metadata", source }.at(path)),
        Ok(metadata) if metadata.is_dir() => return taken("a directory".to_owned()),
        Ok(_) => {}
    }
    match Image::open(path) {
        Ok(image) if image.name == guest => Ok(Some(image)),
        Ok(image) => taken(format!("the image of the guest {}", image.name)),
        Err(ImageError { problem: Problem::Empty | Problem::Truncated { .. }, .. }) => Ok(None),
        Err(ImageError { problem: Problem::Foreign(what), .. }) => taken(format!("a file that is {what}")),
        Err(ImageError { problem, .. }) => taken(format!("a file that can't be checked ({problem})")),
    }
}

/// Makes a new file with a lock on it.
fn create_temporary(directory: &Path, name: &OsString) -> Result<(PathBuf, File), ImageError> {
    loop {
        let path = directory.join(hidden(name, SAVING));
        let file = change::create(&path).map_err(io_error(&path, "create it"))?;
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        let metadata = file.metadata().map_err(io_error(&path, "read its metadata"))?;
        match locked {
            // Somebody who cleans up may have taken it for left over before it was locked.
            Ok(()) if metadata.nlink() > 0 => return Ok((path, file)),
            Ok(()) | Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(source) => {
                let _ = change::remove(&path);
                return Err(io_error(&path, "lock it")(source));
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::header::tests::{config, image, image_of, stream};
    use super::super::name::{RECORD, is_hidden};
    use super::super::record::tests::guest;
    use super::super::{LeftBehind, Part, SaveDirectory, Verdict};
    use super::*;
    use std::ffi::OsStr;
    use std::io::Write;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    /// Does what the toolstack does.
    fn write(new: &mut NewImage, name: &str) {
        new.write_header(&config(name)).unwrap();
        new.file().try_clone().unwrap().write_all(&stream(b"memory")).unwrap();
    }

    fn names(directory: &Path) -> Vec<String> {
        let names =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// The files that are no records.
    fn files(directory: &Path) -> Vec<String> {
        names(directory).into_iter().filter(|name| !is_hidden(OsStr::new(name), RECORD)).collect()
    }

    /// How many records there are.
    fn records(directory: &Path) -> usize {
        names(directory).len() - files(directory).len()
    }

    #[test]
    fn a_committed_image_has_its_name_and_is_private() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let mut new = directory.begin(&guest("my guest"), 1 << 20).unwrap();
        assert!(new.path().file_name().unwrap().to_str().unwrap().starts_with(".my%20guest."));
        write(&mut new, "my guest");
        let saved = new.commit().unwrap().destroyed().unwrap();
        assert_eq!((files(home.path()), records(home.path())), (vec!["my%20guest".to_owned()], 1));
        assert_eq!(saved.verdict(), Verdict::Fresh);
        assert_eq!((saved.name.as_str(), saved.path), ("my guest", home.path().join("my%20guest")));
        let again = Image::open(&home.path().join("my%20guest")).unwrap();
        assert_eq!(again.id, saved.id);
        assert_eq!(fs::metadata(&again.path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut again.stream().unwrap(), &mut bytes).unwrap();
        assert_eq!(bytes, stream(b"memory"));
    }

    #[test]
    fn how_much_is_written_and_read_can_be_told_meanwhile() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let mut new = directory.begin(&guest("web"), 1 << 20).unwrap();
        let written = new.written_so_far();
        assert_eq!(written(), 0);
        write(&mut new, "web");
        let image = new.commit().unwrap().destroyed().unwrap();
        assert_eq!(written(), image.size);
        let read = image.read_so_far();
        assert_eq!(read(), 0);
        let mut stream = image.stream().unwrap();
        assert_eq!(read(), image.stream_offset);
        io::Read::read_exact(&mut stream.try_clone().unwrap(), &mut [0; 4]).unwrap();
        assert_eq!(read(), image.stream_offset + 4);
        io::Read::read_to_end(&mut stream, &mut Vec::new()).unwrap();
        assert_eq!(read(), image.size);
    }

    #[test]
    fn a_dropped_image_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let mut new = directory.begin(&guest("web"), 1 << 20).unwrap();
        write(&mut new, "web");
        assert_eq!(records(home.path()), 1);
        drop(new);
        assert_eq!(names(home.path()), [""; 0]);
    }

    #[test]
    fn an_incomplete_image_is_refused_and_the_older_one_stays() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        fs::write(home.path().join("web"), image("web")).unwrap();
        let mut new = directory.begin(&guest("web"), 1 << 20).unwrap();
        new.write_header(&config("web")).unwrap();
        new.file().write_all_at(b"LibxlFmt", new.file().metadata().unwrap().len()).unwrap();
        let error = new.commit().unwrap_err();
        assert!(matches!(error.problem, Problem::Truncated { part: Part::StreamHeader, .. }), "{error}");
        drop(new);
        assert_eq!(names(home.path()), ["web"]);
        assert_eq!(fs::read(home.path().join("web")).unwrap(), image("web"));
    }

    #[test]
    fn an_older_image_is_replaced_by_the_finished_one_only() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        fs::write(home.path().join("web"), image("web")).unwrap();
        let old = Image::open(&home.path().join("web")).unwrap();
        let mut new = directory.begin(&guest("web"), 1 << 20).unwrap();
        write(&mut new, "web");
        assert_eq!(Image::open(&home.path().join("web")).unwrap().id, old.id);
        let first = new.commit().unwrap().destroyed().unwrap();
        assert_ne!(Image::open(&home.path().join("web")).unwrap().id, old.id);
        assert_eq!(files(home.path()), ["web"]);
        // So is its record.
        let mut new = directory.begin(&guest("web"), 1 << 20).unwrap();
        write(&mut new, "web");
        assert_eq!((records(home.path()), first.verdict()), (2, Verdict::Fresh));
        let second = new.commit().unwrap().destroyed().unwrap();
        assert_eq!((records(home.path()), second.verdict()), (1, Verdict::Fresh));
    }

    #[test]
    fn nothing_else_is_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let begin = |name: &str| directory.begin(&guest(name), 1 << 20).map(|new| new.path().to_owned());
        fs::write(home.path().join("web"), image("db")).unwrap();
        fs::write(home.path().join("foreign"), "text").unwrap();
        fs::create_dir(home.path().join("directory")).unwrap();
        fs::write(home.path().join("empty"), "").unwrap();
        fs::write(home.path().join("half"), &image("half")[..60]).unwrap();
        for (name, word) in [("web", "guest db"), ("foreign", "not a saved guest"), ("directory", "a directory")] {
            let error = begin(name).unwrap_err();
            assert!(matches!(error.problem, Problem::NameTaken(_)) && error.to_string().contains(word), "{error}");
        }
        assert!(begin("empty").is_ok() && begin("half").is_ok());
        // It may also be taken while the guest is being saved.
        let mut new = directory.begin(&guest("late"), 1 << 20).unwrap();
        write(&mut new, "late");
        fs::write(home.path().join("late"), image("other")).unwrap();
        assert!(matches!(new.commit().unwrap_err().problem, Problem::NameTaken(_)));
        assert_eq!(fs::read(home.path().join("late")).unwrap(), image("other"));
    }

    #[test]
    fn the_image_must_be_of_the_guest() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let mut new = directory.begin(&guest("web"), 1 << 20).unwrap();
        assert!(new.write_header(&config("db")).is_err());
        assert!(new.write_header(&serde_json::json!({})).is_err());
        for other in [image("db"), image_of("web", "11111111-2222-3333-4444-555555555556")] {
            new.file().set_len(0).unwrap();
            new.file().write_all_at(&other, 0).unwrap();
            assert!(matches!(new.commit().unwrap_err().problem, Problem::WrongGuest { .. }));
        }
        drop(new);
        assert_eq!(names(home.path()), [""; 0]);
    }

    #[test]
    fn only_files_that_nobody_writes_are_stale() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let new = directory.begin(&guest("web"), 1 << 20).unwrap();
        fs::write(home.path().join(".db.0123456789ab.saving"), "left by a crash").unwrap();
        fs::write(home.path().join(".other"), "").unwrap();
        let removed = directory.remove_stale_temporaries(&[]).unwrap();
        assert_eq!(removed, [home.path().join(".db.0123456789ab.saving")]);
        assert!(new.path().exists() && home.path().join(".other").exists());
        // The lock belongs to the open file: it also holds as long as a helper of libxl's has it.
        let helper = new.file().try_clone().unwrap();
        let path = new.path().to_owned();
        std::mem::forget(new);
        assert_eq!(directory.remove_stale_temporaries(&[]).unwrap(), [""; 0].map(PathBuf::from));
        assert!(path.exists() && records(home.path()) == 1);
        drop(helper);
    }

    #[test]
    fn a_guest_that_cant_be_resumed_is_known_later() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let found = || directory.left_behind(&guest("web")).unwrap();
        let mut new = directory.begin(&guest("web"), 1 << 20).unwrap();
        write(&mut new, "web");
        assert!(matches!(found(), LeftBehind::BeingSaved));
        new.guest_stays_suspended();
        assert_eq!((files(home.path()), records(home.path())), (vec![], 1));
        assert!(matches!(found(), LeftBehind::Victim));
        directory.remove_stale_temporaries(&[]).unwrap();
        assert!(matches!(found(), LeftBehind::Nothing));

        // The image is recorded, but does not get its name.
        let mut new = directory.begin(&guest("web"), 1 << 20).unwrap();
        let path = new.path().to_owned();
        write(&mut new, "web");
        new.record.record.stage = Stage::Suspended(Details::of(&Image::open(&path).unwrap()).unwrap());
        new.record.write().unwrap();
        new.guest_stays_suspended();
        assert_eq!(fs::metadata(path).unwrap().len(), 0, "its room is free");
        assert!(matches!(found(), LeftBehind::Victim));
    }

    /// A small file system of its own, gone at the end.
    pub(in super::super) struct Tmpfs(pub(in super::super) tempfile::TempDir);

    impl Tmpfs {
        pub(in super::super) fn new(mib: u64) -> Self {
            let home = tempfile::tempdir().unwrap();
            let options = std::ffi::CString::new(format!("size={mib}m,mode=0700")).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("tmpfs", home.path(), "tmpfs", flags, Some(options.as_c_str()))
                .expect("this test needs root, to mount a tmpfs");
            Self(home)
        }
    }

    impl Drop for Tmpfs {
        fn drop(&mut self) {
            rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
        }
    }

    #[test]
    fn room_is_checked_over_all_saves_under_way() {
        let home = Tmpfs::new(64);
        let directory = SaveDirectory::open(home.0.path()).unwrap();
        let error = directory.begin(&guest("big"), 60 << 20).map(|_| ()).unwrap_err();
        assert!(matches!(error.problem, Problem::NoRoom { needed: 76, reserved: 0, .. }), "{error}");
        assert_eq!(files(home.0.path()), [""; 0]);

        // 20 + 16 MiB of 64 are taken by the first one, which leaves no room for a second one…
        let first = directory.begin(&guest("first"), 20 << 20).unwrap();
        let error = directory.clone().begin(&guest("second"), 20 << 20).map(|_| ()).unwrap_err();
        assert!(matches!(error.problem, Problem::NoRoom { reserved: 36, .. }), "{error}");
        // …even if it has written half of it, because that has become used room…
        first.file().write_all_at(&vec![1; 10 << 20], 0).unwrap();
        let error = directory.begin(&guest("second"), 20 << 20).map(|_| ()).unwrap_err();
        assert!(matches!(error.problem, Problem::NoRoom { reserved: 26, available: 54 | 53, .. }), "{error}");
        // …until it ends.
        drop(first);
        drop(directory.begin(&guest("second"), 20 << 20).unwrap());
    }

    #[test]
    fn a_disk_that_gets_full_leaves_the_older_image() {
        let home = Tmpfs::new(32);
        let directory = SaveDirectory::open(home.0.path()).unwrap();
        fs::write(home.0.path().join("web"), image("web")).unwrap();
        let mut new = directory.begin(&guest("web"), 1 << 20).unwrap();
        new.write_header(&config("web")).unwrap();
        let full = new.file().try_clone().unwrap().write_all(&vec![1; 40 << 20]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(new.commit().is_err());
        drop(new);
        assert_eq!(names(home.0.path()), ["web"]);
        assert_eq!(Image::open(&home.0.path().join("web")).unwrap().name, "web");
    }
}
