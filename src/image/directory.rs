//! The directory of images, `/var/lib/xen/save`.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::change::sync_directory;
use super::name::{RECORD, RECORDING, RESTORED, SAVING, is_hidden};
use super::new_image::{NewImage, Reservations, room};
use super::{Guest, Image, ImageError, Problem, io_error, parent};
use crate::guest_config::auto::leftover;

/// What a file of the directory is.
#[derive(Debug)]
pub enum ScanEntry {
    /// An image of a guest.
    Image(Image),
    /// Something else, or an image that can't be restored.
    Skipped {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: SkipReason,
    },
}

/// Why a file of the directory is not restored.
#[derive(Debug, thiserror::Error)]
pub enum SkipReason {
    /// A directory, or a link to one.
    #[error("a directory")]
    Directory,
    /// Its name starts with a dot.
    #[error("a hidden file")]
    Hidden,
    /// What fsck finds.
    #[error("the lost+found of a file system")]
    LostAndFound,
    /// What an editor or the package manager leaves behind.
    #[error("a left-over file ({0})")]
    Leftover(&'static str),
    /// A link to nothing.
    #[error("a link to a file that doesn't exist")]
    DanglingLink,
    /// A device, a socket, a FIFO.
    #[error("not a regular file")]
    NotAFile,
    /// A save that is under way, or that was ended by a crash.
    #[error("a guest that is being saved, or the rest of a save that was cut off")]
    Unfinished,
    /// An image whose guest had been built when a crash came: the guest may have run since.
    #[error("an image that has been restored already: its guest may have run since")]
    AlreadyRestored,
    /// There is a newer image of the same guest.
    #[error("an older image of the guest of {}", by.display())]
    Superseded {
        /// The newer one.
        by: PathBuf,
    },
    /// No image, or one that can't be restored.
    #[error("{}", .0.problem)]
    Bad(ImageError),
}

impl SkipReason {
    /// Whether a guest may wait for this file: it looks like an image and can't be restored.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Directory | Self::Hidden | Self::LostAndFound | Self::Leftover(_) | Self::NotAFile => false,
            Self::Unfinished => false,
            Self::DanglingLink | Self::AlreadyRestored | Self::Superseded { .. } | Self::Bad(_) => true,
        }
    }
}

/// The directory of images. Copies of it share what is known of the saves under way.
#[derive(Clone)]
pub struct SaveDirectory {
    path: PathBuf,
    mode: u32,
    reservations: Arc<Reservations>,
}

impl SaveDirectory {
    /// Opens the directory; a missing one is made, for root only.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        if let Some(directory) = Self::existing(path)? {
            return Ok(directory);
        }
        let create = || {
            fs::create_dir_all(parent(path))?;
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other?,
            }
            sync_directory(parent(path))
        };
        create().map_err(io_error(path, "make the directory"))?;
        let missing = || io_error(path, "open it")(io::Error::from(io::ErrorKind::NotFound));
        Self::existing(path)?.ok_or_else(missing)
    }

    /// The directory, if there is one.
    pub fn existing(path: &Path) -> Result<Option<Self>, ImageError> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // A link to nothing is a disk that is not there, and nothing that we should make.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => return Ok(None),
            Err(error) => return Err(io_error(path, "open it")(error)),
        };
        if !metadata.is_dir() {
            return Err(Problem::NotADirectory.at(path));
        }
        let mode = metadata.permissions().mode();
        Ok(Some(Self { path: path.to_owned(), mode, reservations: Arc::default() }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes that are free in its file system.
    pub fn room(&self) -> Result<u64, ImageError> {
        room(&self.path)
    }

    /// Tells whether what is written there is gone after a reboot.
    pub fn is_in_memory(&self) -> bool {
        const TMPFS: rustix::fs::FsWord = 0x0102_1994;
        rustix::fs::statfs(&self.path).is_ok_and(|system| system.f_type == TMPFS)
    }

    /// Its permissions, if others than its owner may look into it: images hold all of a guest's memory.
    pub fn open_to_others(&self) -> Option<u32> {
        Some(self.mode & 0o7777).filter(|mode| mode & 0o077 != 0)
    }

    /// Looks at every file but the records, in the order of their names. Of several images of a guest only the newest
    /// one counts.
    pub fn scan(&self) -> Result<Vec<ScanEntry>, ImageError> {
        let names =
            self.names()?.into_iter().filter(|name| !is_hidden(name, RECORD) && !is_hidden(name, RECORDING));
        let mut entries: Vec<_> = names.map(|name| self.look_at(&name)).collect();
        let images = |entries: &[ScanEntry]| -> Vec<(usize, Image)> {
            let images = entries.iter().enumerate().filter_map(|(i, entry)| match entry {
                ScanEntry::Image(image) => Some((i, image.clone())),
                ScanEntry::Skipped { .. } => None,
            });
            images.collect()
        };
        let mut newest_first = images(&entries);
        // The sort is stable: of images of the same age the first by name counts.
        newest_first.sort_by_key(|(_, image)| std::cmp::Reverse(image.mtime));
        for (place, (i, image)) in newest_first.iter().enumerate() {
            let newer = newest_first[..place].iter().map(|(_, newer)| newer);
            let mut same = newer.filter(|newer| newer.is_of_same_guest(image));
            if let Some(by) = same.next() {
                let reason = SkipReason::Superseded { by: by.path.clone() };
                entries[*i] = ScanEntry::Skipped { path: image.path.clone(), reason };
            }
        }
        Ok(entries)
    }

    /// Starts an image of a guest: makes sure that there is room for it, and makes its temporary file.
    ///
    /// `expected_bytes` is the guest's memory.
    pub fn begin(&self, guest: &Guest, expected_bytes: u64) -> Result<NewImage, ImageError> {
        NewImage::begin(&self.path, &self.reservations, guest, expected_bytes)
    }

    /// All names in the directory, sorted.
    pub(super) fn names(&self) -> Result<Vec<std::ffi::OsString>, ImageError> {
        let failed = io_error(&self.path, "list it");
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(&failed)? {
            names.push(entry.map_err(&failed)?.file_name());
        }
        names.sort();
        Ok(names)
    }

    fn look_at(&self, name: &OsStr) -> ScanEntry {
        let path = self.path.join(name);
        let reason = match fs::metadata(&path) {
            _ if name == "lost+found" => SkipReason::LostAndFound,
            Ok(metadata) if metadata.is_dir() => SkipReason::Directory,
            Ok(metadata) if !metadata.is_file() => SkipReason::NotAFile,
            _ if is_hidden(name, SAVING) => SkipReason::Unfinished,
            _ if is_hidden(name, RESTORED) => SkipReason::AlreadyRestored,
            _ if name.as_bytes().starts_with(b".") => SkipReason::Hidden,
            Err(error) if error.kind() == io::ErrorKind::NotFound => SkipReason::DanglingLink,
            Err(error) => SkipReason::Bad(io_error(&path, "read its metadata")(error)),
            Ok(_) => match leftover(name) {
                Some(suffix) => SkipReason::Leftover(suffix),
                None => match Image::open(&path) {
                    Ok(image) => return ScanEntry::Image(image),
                    Err(error) => SkipReason::Bad(error),
                },
            },
        };
        ScanEntry::Skipped { path, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::tests::{image, image_of};
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, SystemTime};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_missing_directory_is_made_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b/save");
        assert!(SaveDirectory::existing(&path).unwrap().is_none());
        assert!(!home.path().join("a").exists());
        let directory = SaveDirectory::open(&path).unwrap();
        assert_eq!((directory.path(), mode(&path)), (path.as_path(), 0o700));
        assert_eq!(directory.open_to_others(), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(SaveDirectory::open(&path).unwrap().open_to_others(), Some(0o755));
    }

    #[test]
    fn what_is_no_directory() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("file"), "").unwrap();
        let problem = |name: &str| SaveDirectory::open(&home.path().join(name)).map(|_| ()).unwrap_err().problem;
        assert!(matches!(problem("file"), Problem::NotADirectory));
        assert!(matches!(problem("file/sub"), Problem::Io { .. }));
        symlink(home.path().join("unmounted"), home.path().join("link")).unwrap();
        assert!(matches!(problem("link"), Problem::Io { .. }));
    }

    #[test]
    fn each_kind_of_file() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::write(at("web"), image("web")).unwrap();
        fs::write(at("any name"), image_of("db", &uuid::Uuid::from_u128(7).to_string())).unwrap();
        fs::create_dir(at("lost+found")).unwrap();
        fs::create_dir(at("directory")).unwrap();
        for name in
            ["web~", "web.bak", "web.dpkg-old", ".web", ".web.0123456789ab.saving", ".web.0123456789ab.restored"]
        {
            fs::write(at(name), image("web")).unwrap();
        }
        fs::write(at(".web.0123456789ab.record"), "{}").unwrap();
        fs::write(at(".web.0123456789ab.recording"), "{").unwrap();
        symlink(at("nothing"), at("dangling")).unwrap();
        fs::write(at("empty"), "").unwrap();
        fs::write(at("half"), &image("half")[..100]).unwrap();
        fs::write(at("xend"), "LinuxGuestRecord....").unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        let shown =
            SaveDirectory::open(home.path()).unwrap().scan().unwrap().into_iter().map(|entry| match entry {
                ScanEntry::Image(image) => {
                    format!("{}: guest {}", image.path.file_name().unwrap().to_str().unwrap(), image.name)
                }
                ScanEntry::Skipped { path, reason } => {
                    format!("{}: {reason}: {}", path.file_name().unwrap().to_str().unwrap(), reason.is_failure())
                }
            });
        let shown: Vec<String> = shown.collect();
        let expected = [
            ".web: a hidden file: false",
            ".web.0123456789ab.restored: an image that has been restored already: its guest may have run since: true",
            ".web.0123456789ab.saving: a guest that is being saved, or the rest of a save that was cut off: false",
            "any name: guest db",
            "dangling: a link to a file that doesn't exist: true",
            "directory: a directory: false",
            "empty: the file is empty: true",
            "fifo: not a regular file: false",
            "half: not a complete image: the file ends after 100 bytes, within the guest's configuration: true",
            "lost+found: the lost+found of a file system: false",
            "web: guest web",
            "web.bak: a left-over file (.bak): false",
            "web.dpkg-old: a left-over file (.dpkg-old): false",
            "web~: a left-over file (~): false",
            "xend: the header is damaged: 774778414 bytes of configuration: true",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn the_newest_image_of_a_guest_counts() {
        let home = tempfile::tempdir().unwrap();
        for (name, age) in [("a", 20), ("b", 10), ("c", 30)] {
            fs::write(home.path().join(name), image("web")).unwrap();
            let file = fs::File::options().append(true).open(home.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        let entries = SaveDirectory::open(home.path()).unwrap().scan().unwrap();
        let by = |entry: &ScanEntry| match entry {
            ScanEntry::Skipped { reason: SkipReason::Superseded { by }, .. } => by.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(by(&entries[0]), home.path().join("b"));
        assert!(matches!(&entries[1], ScanEntry::Image(image) if image.path == home.path().join("b")));
        assert_eq!(by(&entries[2]), home.path().join("b"));
    }
}
