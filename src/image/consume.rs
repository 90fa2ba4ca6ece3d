//! Using an image up.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::name::{RESTORED, hidden};
use super::{FileId, Image, ImageError, Problem, io_error, parent, sync_directory};

/// An image that can't be restored any more, because its guest has been (or is about to be) let run.
///
/// A crash leaves the file under its hidden name: it is then no image any more, but named by a scan.
#[derive(Debug)]
#[must_use = "remove it when the guest runs, or put it back when it doesn't"]
pub struct Consumed {
    image: Image,
    path: PathBuf,
}

impl Consumed {
    pub(super) fn take(image: Image) -> Result<Self, ImageError> {
        let directory = parent(&image.path);
        let Some(name) = image.path.file_name() else { return Err(Problem::NotAFile.at(&image.path)) };
        let path = directory.join(hidden(name, RESTORED));
        let metadata = fs::metadata(&image.path).map_err(io_error(&image.path, "read its metadata"))?;
        if FileId::of(&metadata) != image.id {
            return Err(Problem::Replaced.at(&image.path));
        }
        rename_to_new(&image.path, &path)?;
        let consumed = Self { image, path };
        match sync_directory(parent(&consumed.path)) {
            Ok(()) => Ok(consumed),
            Err(source) => {
                // It is not certain that it would stay away after a crash, so the guest must not run.
                let error = Problem::Io { action: "make its removal durable", source }.at(&consumed.image.path);
                consumed.put_back()?;
                Err(error)
            }
        }
    }

    /// What it was.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Where it is now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Deletes it. To be called when the guest runs.
    pub fn remove(self) -> Result<(), ImageError> {
        fs::remove_file(&self.path).map_err(io_error(&self.path, "remove it"))?;
        sync_directory(parent(&self.path)).map_err(io_error(&self.path, "make its removal durable"))
    }

    /// Makes it an image again. To be called only when the guest has not run at all and is destroyed.
    pub fn put_back(self) -> Result<Image, ImageError> {
        rename_to_new(&self.path, &self.image.path)?;
        sync_directory(parent(&self.path)).map_err(io_error(&self.image.path, "make its return durable"))?;
        Ok(self.image)
    }
}

/// Takes a file out of the way that is no image, or none that can be restored, and keeps it under a hidden name, which
/// is returned.
pub fn set_aside(path: &Path) -> Result<PathBuf, ImageError> {
    let Some(name) = path.file_name() else { return Err(Problem::NotAFile.at(path)) };
    let aside = parent(path).join(hidden(name, RESTORED));
    rename_to_new(path, &aside)?;
    sync_directory(parent(path)).map_err(io_error(path, "make its removal durable"))?;
    Ok(aside)
}

/// Renames a file to a name that must be free.
fn rename_to_new(from: &Path, to: &Path) -> Result<(), ImageError> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that doesn't know the flag.
        Err(rustix::io::Errno::INVAL) => {
            if fs::symlink_metadata(to).is_ok() {
                return Err(Problem::NameTaken("another file".to_owned()).at(to));
            }
            fs::rename(from, to).map_err(io_error(from, "rename it"))
        }
        Err(rustix::io::Errno::EXIST) => Err(Problem::NameTaken("another file".to_owned()).at(to)),
        other => other.map_err(io_error(from, "rename it")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::tests::image;
    use super::super::{SaveDirectory, ScanEntry, SkipReason};
    use super::*;

    fn saved(directory: &Path) -> Image {
        fs::write(directory.join("web"), image("web")).unwrap();
        Image::open(&directory.join("web")).unwrap()
    }

    #[test]
    fn an_image_is_gone_once_it_is_consumed() {
        let directory = tempfile::tempdir().unwrap();
        let consumed = saved(directory.path()).consume().unwrap();
        assert!(!directory.path().join("web").exists() && consumed.path().exists());
        // This is what a crash leaves.
        let entries = SaveDirectory::open(directory.path()).unwrap().scan().unwrap();
        assert!(
            matches!(&entries[..], [ScanEntry::Skipped { reason: SkipReason::AlreadyRestored, .. }]),
            "{entries:?}"
        );
        let path = consumed.path().to_owned();
        consumed.remove().unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn it_can_be_put_back() {
        let directory = tempfile::tempdir().unwrap();
        let consumed = saved(directory.path()).consume().unwrap();
        assert_eq!(consumed.image().name, "web");
        let image = consumed.put_back().unwrap();
        assert_eq!(Image::open(&image.path).unwrap().name, "web");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn it_is_not_put_back_over_another_image() {
        let directory = tempfile::tempdir().unwrap();
        let consumed = saved(directory.path()).consume().unwrap();
        let hidden = consumed.path().to_owned();
        fs::write(directory.path().join("web"), "other").unwrap();
        assert!(matches!(consumed.put_back().unwrap_err().problem, Problem::NameTaken(_)));
        assert_eq!(fs::read(directory.path().join("web")).unwrap(), b"other");
        assert!(hidden.exists());
    }

    #[test]
    fn another_file_in_its_place_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let old = saved(directory.path());
        fs::write(directory.path().join("new"), image("web")).unwrap();
        fs::rename(directory.path().join("new"), directory.path().join("web")).unwrap();
        assert!(old.stream().is_err());
        assert!(matches!(old.consume().unwrap_err().problem, Problem::Replaced));
        assert!(directory.path().join("web").exists());
    }
}
