//! Using an image up.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};

use super::change::{self, sync_directory};
use super::name::{RESTORED, encode_name, hidden, is_hidden};
use super::{FileId, Image, ImageError, Problem, io_error, parent, record};

/// An image that can't be restored any more, because its guest has been (or is about to be) let run.
///
/// A crash leaves the file under its hidden name: it is then no image any more, but named by a scan. Its record knows
/// it under any name, and is removed after it.
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

    /// Deletes it, with its record. To be called when the guest runs.
    pub fn remove(self) -> Result<(), ImageError> {
        let record = record::of_image(&self.image);
        change::remove(&self.path).map_err(io_error(&self.path, "remove it"))?;
        if let Ok(Some(record)) = record {
            // Should this fail, it goes with the next temporary files.
            let _ = change::remove(&record.path);
        }
        sync_directory(parent(&self.path)).map_err(io_error(&self.path, "make its removal durable"))
    }

    /// Makes it an image again. To be called only when the guest has not run at all and is destroyed.
    pub fn put_back(self) -> Result<Image, ImageError> {
        rename_to_new(&self.path, &self.image.path)?;
        sync_directory(parent(&self.path)).map_err(io_error(&self.image.path, "make its return durable"))?;
        Ok(self.image)
    }
}

/// Finds the image with this [file number](Image::file_number), of a guest whose build was cut off before the guest could
/// run, and whose domain has been destroyed: makes it an image again if it had been taken out of the way, and records the
/// disks anew, which a device model may have opened. Says whether it was out of the way.
pub fn put_back_unused(directory: &Path, number: u64) -> Result<Option<(Image, bool)>, ImageError> {
    let list = io_error(directory, "list it");
    for entry in fs::read_dir(directory).map_err(&list)? {
        let entry = entry.map_err(&list)?;
        if entry.ino() != number {
            continue;
        }
        let hidden = is_hidden(&entry.file_name(), RESTORED);
        let mut image = Image::open(&entry.path())?;
        if hidden {
            let target = directory.join(encode_name(&image.name));
            image = Consumed { image: Image { path: target, ..image }, path: entry.path() }.put_back()?;
        }
        image.restore_failed()?;
        return Ok(Some((image, hidden)));
    }
    Ok(None)
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
    change::rename_to_new(from, to).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Problem::NameTaken("another file".to_owned()).at(to),
        _ => io_error(from, "rename it")(error),
    })
}

#[cfg(test)]
mod tests {
    use super::super::change::cut;
    use super::super::change::tests::at_every_cut;
    use super::super::header::tests::image;
    use super::super::name::{RECORD, is_hidden};
    use super::super::record::tests::guest;
    use super::super::{SaveDirectory, ScanEntry, SkipReason, Verdict};
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

    /// An image with a record.
    fn recorded(directory: &Path) {
        let mut new = SaveDirectory::open(directory).unwrap().begin(&guest("web"), 1 << 20).unwrap();
        change::write(new.file(), &image("web")).unwrap();
        new.commit().unwrap().destroyed().unwrap();
    }

    fn the_image(directory: &Path) -> Option<Image> {
        Image::open(&directory.join("web")).ok()
    }

    /// Tidies up, and says whether the image can be restored. Its record is there as long as it is.
    fn is_restorable(directory: &Path) -> bool {
        let save = SaveDirectory::open(directory).unwrap();
        assert_eq!(save.remove_stale_temporaries(&[]).unwrap(), Vec::<PathBuf>::new());
        let (records, images): (Vec<_>, Vec<_>) =
            save.names().unwrap().into_iter().partition(|name| is_hidden(name, RECORD));
        assert!(images.len() <= 1 && records.len() == images.len(), "{images:?} {records:?}");
        let image = the_image(directory);
        assert!(image.as_ref().is_none_or(|image| image.verdict() == Verdict::Fresh));
        image.is_some()
    }

    #[test]
    fn using_an_image_up_can_be_cut_off_anywhere() {
        let mut restorable = Vec::new();
        at_every_cut(
            "image::consume::tests::using_an_image_up_can_be_cut_off_anywhere",
            recorded,
            |home| the_image(home).unwrap().consume().unwrap().remove().unwrap(),
            |home, complete| {
                restorable.push(is_restorable(home));
                assert!(!complete || fs::read_dir(home).unwrap().count() == 0);
            },
        );
        // Once it is not, it never is again.
        assert!(restorable.is_sorted_by(|before, after| before >= after), "{restorable:?}");
    }

    #[test]
    fn an_image_never_runs_twice_wherever_a_crash_comes() {
        at_every_cut(
            "image::consume::tests::an_image_never_runs_twice_wherever_a_crash_comes",
            recorded,
            |home| {
                let consumed = the_image(home).unwrap().consume().unwrap();
                cut();
                fs::write(home.join("web.bak"), "the guest runs").unwrap();
                cut();
                consumed.remove().unwrap();
            },
            |home, _| {
                let runs = fs::remove_file(home.join("web.bak")).is_ok();
                assert!(!(runs && is_restorable(home)));
            },
        );
    }

    #[test]
    fn putting_an_image_back_can_be_cut_off_anywhere() {
        at_every_cut(
            "image::consume::tests::putting_an_image_back_can_be_cut_off_anywhere",
            recorded,
            |home| drop(the_image(home).unwrap().consume().unwrap().put_back().unwrap()),
            |home, complete| assert!(is_restorable(home) || !complete),
        );
    }

    #[test]
    fn the_record_of_a_newer_image_stays_when_the_older_one_is_removed() {
        let home = tempfile::tempdir().unwrap();
        recorded(home.path());
        let older = the_image(home.path()).unwrap().consume().unwrap();
        recorded(home.path());
        older.remove().unwrap();
        assert!(is_restorable(home.path()));
    }
}
