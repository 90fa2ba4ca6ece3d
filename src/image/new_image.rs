//! Writing an image.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, openat, statvfs};
use serde_json::Value;

use super::name::{SAVING, encode_name, hidden};
use super::{Image, ImageError, Problem, header, io_error, sync_directory};

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

/// An image that is being written, into a hidden temporary file with a lock on it.
///
/// Dropped before it is committed, it takes the temporary file with it.
pub struct NewImage {
    directory: PathBuf,
    reservations: Arc<Reservations>,
    guest: String,
    name: OsString,
    path: PathBuf,
    file: Arc<File>,
    /// It has got its final name: there is nothing to clean up.
    committed: bool,
}

impl NewImage {
    pub(super) fn begin(
        directory: &Path,
        reservations: &Arc<Reservations>,
        guest: &str,
        expected_bytes: u64,
    ) -> Result<Self, ImageError> {
        let name = encode_name(guest);
        check_target(&directory.join(&name), guest)?;
        let needed = expected_bytes.saturating_add(expected_bytes / RESERVE_SHARE).saturating_add(RESERVE);
        // One after the other, so that two can't take the same room.
        let mut running = reservations.lock();
        let room = statvfs(directory).map_err(io_error(directory, "ask for the room in it"))?;
        let available = room.f_bavail.saturating_mul(room.f_frsize);
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
        let (directory, reservations) = (directory.to_owned(), Arc::clone(reservations));
        Ok(Self { directory, reservations, guest: guest.to_owned(), name, path, file, committed: false })
    }

    /// The temporary file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The temporary file, behind what was written last.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes everything that comes before libxl's stream. `config` is the guest's configuration in libxl's JSON.
    pub fn write_header(&mut self, config: &Value) -> io::Result<()> {
        let found = header::identity(config).map_err(|problem| io::Error::other(problem.to_string()))?;
        self.check_guest(&found.0).map_err(|problem| io::Error::other(problem.to_string()))?;
        (&*self.file).write_all(&header::encode(config)?)
    }

    fn check_guest(&self, found: &str) -> Result<(), Problem> {
        if found == self.guest {
            return Ok(());
        }
        Err(Problem::WrongGuest { found: found.to_owned(), expected: self.guest.clone() })
    }

    /// Checks that the image is whole, makes it durable and gives it its name. After an error there is no image, and
    /// an older one is as it was; only when the directory itself can't be synced is an older one gone.
    pub fn commit(mut self) -> Result<Image, ImageError> {
        let target = self.directory.join(&self.name);
        let image = Image::inspect(&self.path, &self.file)?;
        self.check_guest(&image.name).map_err(|problem| problem.at(&self.path))?;
        self.file.sync_all().map_err(io_error(&self.path, "write it to the disk"))?;
        check_target(&target, &self.guest)?;
        fs::rename(&self.path, &target).map_err(io_error(&target, "give the image its name"))?;
        self.committed = true;
        if let Err(source) = sync_directory(&self.directory) {
            // The guest is going to run on, so the image must not stay.
            fs::remove_file(&target).map_err(io_error(&target, "remove an image that is not durable"))?;
            return Err(Problem::Io { action: "make its name durable", source }.at(&target));
        }
        Ok(Image { path: target, ..image })
    }
}

impl Drop for NewImage {
    fn drop(&mut self) {
        self.reservations.lock().remove(&self.path);
        if !self.committed {
            // Should this fail, the next scan names the file, and the next start removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the guest's image may take this name: it is free, or has an older image of the same guest, or one that
/// nobody can restore.
fn check_target(path: &Path, guest: &str) -> Result<(), ImageError> {
    let taken = |by: String| Err(Problem::NameTaken(by).at(path));
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Problem::Io { action: "read its metadata", source }.at(path)),
        Ok(metadata) if metadata.is_dir() => return taken("a directory".to_owned()),
        Ok(_) => {}
    }
    match Image::open(path) {
        Ok(image) if image.name == guest => Ok(()),
        Ok(image) => taken(format!("the image of the guest {}", image.name)),
        Err(ImageError { problem: Problem::Empty | Problem::Truncated { .. }, .. }) => Ok(()),
        Err(ImageError { problem: Problem::Foreign(what), .. }) => taken(format!("a file that is {what}")),
        Err(ImageError { problem, .. }) => taken(format!("a file that can't be checked ({problem})")),
    }
}

/// Makes a new file with a lock on it.
fn create_temporary(directory: &Path, name: &OsString) -> Result<(PathBuf, File), ImageError> {
    loop {
        let path = directory.join(hidden(name, SAVING));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let opened = openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(opened.map_err(io_error(&path, "create it"))?);
        let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
        let metadata = file.metadata().map_err(io_error(&path, "read its metadata"))?;
        match locked {
            // Somebody who cleans up may have taken it for left over before it was locked.
            Ok(()) if metadata.nlink() > 0 => return Ok((path, file)),
            Ok(()) | Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(source) => {
                let _ = fs::remove_file(&path);
                return Err(io_error(&path, "lock it")(source));
            }
        }
    }
}

/// Removes a temporary file if nobody writes it any more. `false`: it is in use, or gone.
pub(super) fn remove_if_stale(path: &Path) -> Result<bool, ImageError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(io_error(path, "open it")(error)),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
        Err(source) => return Err(io_error(path, "lock it")(source)),
    }
    fs::remove_file(path).map(|()| true).map_err(io_error(path, "remove it"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::header::tests::{config, image, stream};
    use super::super::{Part, SaveDirectory};
    use super::*;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    /// Does what the toolstack does.
    fn write(new: &mut NewImage, guest: &str) {
        new.write_header(&config(guest)).unwrap();
        new.file().try_clone().unwrap().write_all(&stream(b"memory")).unwrap();
    }

    fn files(directory: &Path) -> Vec<String> {
        let names =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_committed_image_has_its_name_and_is_private() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let mut new = directory.begin("my guest", 1 << 20).unwrap();
        assert!(new.path().file_name().unwrap().to_str().unwrap().starts_with(".my%20guest."));
        write(&mut new, "my guest");
        let saved = new.commit().unwrap();
        assert_eq!(files(home.path()), ["my%20guest"]);
        assert_eq!((saved.name.as_str(), saved.path), ("my guest", home.path().join("my%20guest")));
        let again = Image::open(&home.path().join("my%20guest")).unwrap();
        assert_eq!(again.id, saved.id);
        assert_eq!(fs::metadata(&again.path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut again.stream().unwrap(), &mut bytes).unwrap();
        assert_eq!(bytes, stream(b"memory"));
    }

    #[test]
    fn a_dropped_image_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let mut new = directory.begin("web", 1 << 20).unwrap();
        write(&mut new, "web");
        drop(new);
        assert_eq!(files(home.path()), [""; 0]);
    }

    #[test]
    fn an_incomplete_image_is_refused_and_the_older_one_stays() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        fs::write(home.path().join("web"), image("web")).unwrap();
        let mut new = directory.begin("web", 1 << 20).unwrap();
        new.write_header(&config("web")).unwrap();
        new.file().write_all_at(b"LibxlFmt", new.file().metadata().unwrap().len()).unwrap();
        let error = new.commit().unwrap_err();
        assert!(matches!(error.problem, Problem::Truncated { part: Part::StreamHeader, .. }), "{error}");
        assert_eq!(files(home.path()), ["web"]);
        assert_eq!(fs::read(home.path().join("web")).unwrap(), image("web"));
    }

    #[test]
    fn an_older_image_is_replaced_by_the_finished_one_only() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        fs::write(home.path().join("web"), image("web")).unwrap();
        let old = Image::open(&home.path().join("web")).unwrap();
        let mut new = directory.begin("web", 1 << 20).unwrap();
        write(&mut new, "web");
        assert_eq!(Image::open(&home.path().join("web")).unwrap().id, old.id);
        new.commit().unwrap();
        assert_ne!(Image::open(&home.path().join("web")).unwrap().id, old.id);
        assert_eq!(files(home.path()), ["web"]);
    }

    #[test]
    fn nothing_else_is_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let begin = |guest: &str| directory.begin(guest, 1 << 20).map(|new| new.path().to_owned());
        fs::write(home.path().join("web"), image("db")).unwrap();
        fs::write(home.path().join("foreign"), "text").unwrap();
        fs::create_dir(home.path().join("directory")).unwrap();
        fs::write(home.path().join("empty"), "").unwrap();
        fs::write(home.path().join("half"), &image("half")[..60]).unwrap();
        for (guest, word) in [("web", "guest db"), ("foreign", "not a saved guest"), ("directory", "a directory")]
        {
            let error = begin(guest).unwrap_err();
            assert!(matches!(error.problem, Problem::NameTaken(_)) && error.to_string().contains(word), "{error}");
        }
        assert!(begin("empty").is_ok() && begin("half").is_ok());
        // It may also be taken while the guest is being saved.
        let mut new = directory.begin("late", 1 << 20).unwrap();
        write(&mut new, "late");
        fs::write(home.path().join("late"), image("other")).unwrap();
        assert!(matches!(new.commit().unwrap_err().problem, Problem::NameTaken(_)));
        assert_eq!(fs::read(home.path().join("late")).unwrap(), image("other"));
    }

    #[test]
    fn the_image_must_be_of_the_guest() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let mut new = directory.begin("web", 1 << 20).unwrap();
        assert!(new.write_header(&config("db")).is_err());
        assert!(new.write_header(&serde_json::json!({})).is_err());
        new.file().write_all_at(&image("db"), 0).unwrap();
        assert!(matches!(new.commit().unwrap_err().problem, Problem::WrongGuest { .. }));
        assert_eq!(files(home.path()), [""; 0]);
    }

    #[test]
    fn only_files_that_nobody_writes_are_stale() {
        let home = tempfile::tempdir().unwrap();
        let directory = SaveDirectory::open(home.path()).unwrap();
        let new = directory.begin("web", 1 << 20).unwrap();
        fs::write(home.path().join(".db.0123456789ab.saving"), "left by a crash").unwrap();
        fs::write(home.path().join(".other"), "").unwrap();
        let removed = directory.remove_stale_temporaries().unwrap();
        assert_eq!(removed, [home.path().join(".db.0123456789ab.saving")]);
        assert!(new.path().exists() && home.path().join(".other").exists());
        // The lock belongs to the open file: it also holds as long as a helper of libxl's has it.
        let helper = new.file().try_clone().unwrap();
        let path = new.path().to_owned();
        std::mem::forget(new);
        assert!(!remove_if_stale(&path).unwrap());
        drop(helper);
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
        let error = directory.begin("big", 60 << 20).map(|_| ()).unwrap_err();
        assert!(matches!(error.problem, Problem::NoRoom { needed: 76, reserved: 0, .. }), "{error}");
        assert_eq!(files(home.0.path()), [""; 0]);

        // 20 + 16 MiB of 64 are taken by the first one, which leaves no room for a second one…
        let first = directory.begin("first", 20 << 20).unwrap();
        let error = directory.clone().begin("second", 20 << 20).map(|_| ()).unwrap_err();
        assert!(matches!(error.problem, Problem::NoRoom { reserved: 36, .. }), "{error}");
        // …even if it has written half of it, because that has become used room…
        first.file().write_all_at(&vec![1; 10 << 20], 0).unwrap();
        let error = directory.begin("second", 20 << 20).map(|_| ()).unwrap_err();
        assert!(matches!(error.problem, Problem::NoRoom { reserved: 26, available: 54 | 53, .. }), "{error}");
        // …until it ends.
        drop(first);
        drop(directory.begin("second", 20 << 20).unwrap());
    }

    #[test]
    fn a_disk_that_gets_full_leaves_the_older_image() {
        let home = Tmpfs::new(32);
        let directory = SaveDirectory::open(home.0.path()).unwrap();
        fs::write(home.0.path().join("web"), image("web")).unwrap();
        let mut new = directory.begin("web", 1 << 20).unwrap();
        new.write_header(&config("web")).unwrap();
        let full = new.file().try_clone().unwrap().write_all(&vec![1; 40 << 20]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert!(new.commit().is_err());
        assert_eq!(files(home.0.path()), ["web"]);
        assert_eq!(Image::open(&home.0.path().join("web")).unwrap().name, "web");
    }
}
