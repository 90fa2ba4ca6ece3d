//! The record of a save: a small file beside the image that tells which domain was saved, and how its disks were then.
//!
//! It is called `.NAME.XXXXXXXXXXXX.record` for its whole life, like the temporary file `.NAME.XXXXXXXXXXXX.saving` of the
//! same save. Which image it belongs to is not a matter of names but of what it says: the image with this guest, size
//! and time. So an image that another program has put in the place of ours has no record, and one that is renamed
//! keeps its own.
//!
//! ```json
//! {
//!   "version": 1,
//!   "name": "web", "uuid": "…",
//!   "domid": 7, "boot_id": "…",       which domain it was, in which boot of the host
//!   "since_boot": 81253004217,        when the save began, in nanoseconds since then
//!   "stage": "destroyed",             how far it came: begun, suspended, destroyed; all below is missing in begun
//!   "image": { "size": …, "modified": … },
//!   "looked": 1787576829000000000,    when the disks were looked at, in nanoseconds since 1970
//!   "disks": [ … ]
//! }
//! ```

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::disks::Disk;
use super::name::{RECORD, RECORDING, SAVING, encode_name, hidden, is_hidden, sibling, stem};
use super::time::Time;
use super::{Image, ImageError, change, io_error, parent};

const VERSION: u64 = 1;

/// More than any record has.
const LENGTH_LIMIT: u64 = 1 << 20;

/// A guest that is saved: what it is known by, and which domain it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// The number of its domain, which no other domain has in this boot of the host.
    pub domid: u32,
    /// Which boot of the host it is.
    pub boot_id: String,
}

impl Guest {
    /// Whether it is this very domain. Its name may have been changed.
    pub(crate) fn is_same_domain(&self, other: &Guest) -> bool {
        (self.uuid, self.domid, &self.boot_id) == (other.uuid, other.domid, &other.boot_id)
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u64,
    #[serde(flatten)]
    pub(super) guest: Guest,
    /// Of two saves of a domain the later one counts. The time of day can be set back, this one can't.
    pub(super) since_boot: u64,
    #[serde(flatten)]
    pub(super) stage: Stage,
}

/// How far a save has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub(super) enum Stage {
    /// The guest is going to be suspended.
    Begun,
    /// The image is whole and durable and is going to get its name; the domain is still there.
    Suspended(Details),
    /// The domain is gone, so that nothing has its disks open any more.
    Destroyed(Details),
}

impl Stage {
    /// What is known of the image, once there is one, and whether its domain is gone.
    pub(super) fn details(&self) -> Option<(&Details, bool)> {
        match self {
            Self::Begun => None,
            Self::Suspended(details) => Some((details, false)),
            Self::Destroyed(details) => Some((details, true)),
        }
    }
}

/// An image and the disks that belong to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Details {
    pub(super) image: ImageId,
    /// When the disks were looked at.
    pub(super) looked: Time,
    pub(super) disks: Vec<Disk>,
}

/// Marks by which an image is known under any name: its size and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageId {
    size: u64,
    modified: Time,
}

impl ImageId {
    pub(super) fn of(image: &Image) -> Self {
        Self { size: image.size, modified: image.mtime.into() }
    }

    pub(super) fn of_file(metadata: &Metadata) -> Self {
        Self { size: metadata.len(), modified: Time::modified(metadata) }
    }
}

impl Details {
    /// Has what the guest wrote to its disks stored, and looks how they are then.
    pub(super) fn of(image: &Image) -> Result<Self, ImageError> {
        let disks = Disk::all_stored(&image.config)?;
        Ok(Self { image: ImageId::of(image), looked: Time::now(), disks })
    }
}

impl Record {
    /// What it says of an image, once there is one.
    pub(super) fn details(&self) -> Option<&Details> {
        self.stage.details().map(|(details, _)| details)
    }

    pub(super) fn is_of(&self, image: &Image) -> bool {
        let this = self.details().is_some_and(|details| details.image == ImageId::of(image));
        this && self.guest.uuid == image.uuid
    }
}

/// Why a record can't be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    #[error("it was written by a newer release (version {0})")]
    Newer(u64),
}

/// A record and its file.
#[derive(Debug)]
pub(super) struct RecordFile {
    pub(super) path: PathBuf,
    pub(super) record: Record,
}

impl RecordFile {
    /// The record of a save that begins, not written yet. `temporary` is the file for its image.
    pub(super) fn beside(temporary: &Path, guest: &Guest) -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let now = now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec);
        let record = Record {
            version: VERSION,
            guest: guest.clone(),
            since_boot: u64::try_from(now).unwrap_or_default(),
            stage: Stage::Begun,
        };
        Self { path: sibling(temporary, SAVING, RECORD), record }
    }

    /// A record of an image that somebody else has made, not written yet.
    pub(super) fn of_stranger(image: &Image) -> Self {
        // Of no boot, so that it is of no domain.
        let guest = Guest { name: image.name.clone(), uuid: image.uuid, domid: 0, boot_id: String::new() };
        let name = hidden(&encode_name(&image.name), SAVING);
        Self::beside(&parent(&image.path).join(name), &guest)
    }

    /// Writes it in the place of the one that is there: whatever happens, one of them is there as a whole. One that has
    /// only just begun means nothing after a crash of the host and need not be durable.
    pub(super) fn write(&self) -> Result<(), ImageError> {
        let durable = self.record.stage != Stage::Begun;
        let text = serde_json::to_vec_pretty(&self.record).map_err(io_error(&self.path, "write it"))?;
        let new = sibling(&self.path, RECORD, RECORDING);
        let write = || {
            let file = change::create_over(&new)?;
            change::write(&file, &text)?;
            if durable {
                change::sync(&file)?;
            }
            change::rename(&new, &self.path)?;
            if durable { change::sync_directory(parent(&self.path)) } else { Ok(()) }
        };
        write().map_err(|source| {
            // Nobody needs what there is of it; should this fail, it is removed by the next start.
            let _ = change::remove(&new);
            io_error(&self.path, "write it")(source)
        })
    }
}

/// Reads a record.
pub(super) fn read(path: &Path) -> Result<Record, Unreadable> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut text = Vec::new();
    file.take(LENGTH_LIMIT).read_to_end(&mut text)?;
    let json: serde_json::Value = serde_json::from_slice(&text)?;
    match json["version"].as_u64() {
        Some(version) if version > VERSION => Err(Unreadable::Newer(version)),
        _ => Ok(serde_json::from_value(json)?),
    }
}

/// The records in a directory whose names are wanted, read or not, by name.
pub(super) fn all(
    directory: &Path,
    wanted: impl Fn(&OsStr) -> bool,
) -> io::Result<Vec<(PathBuf, Result<Record, Unreadable>)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name());
    }
    names.retain(|name| is_hidden(name, RECORD) && wanted(name));
    names.sort();
    let records = names.into_iter().map(|name| directory.join(name)).map(|path| {
        let record = read(&path);
        (path, record)
    });
    // It may just have gone.
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    Ok(records.filter(|(_, record)| !matches!(record, Err(Unreadable::Io(error)) if gone(error))).collect())
}

/// The record of an image. `Ok(None)`: there is none; `Err` says why it can't be told.
pub(super) fn of_image(image: &Image) -> Result<Option<RecordFile>, String> {
    let guest = encode_name(&image.name);
    let records = all(parent(&image.path), |name| stem(name, RECORD) == Some(&*guest));
    let mut problem = None;
    for (path, record) in records.map_err(|error| format!("its record can't be looked for: {error}"))? {
        match record {
            Ok(record) if record.is_of(image) => return Ok(Some(RecordFile { path, record })),
            Ok(_) => {}
            Err(error) => problem = Some(format!("{}: {error}", path.display())),
        }
    }
    problem.map_or(Ok(None), Err)
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};

    use serde_json::{Value, json};

    use super::super::disks::Seen;
    use super::super::header::tests::{UUID, image};
    use super::*;

    pub(in super::super) fn guest(name: &str) -> Guest {
        Guest { name: name.to_owned(), uuid: UUID.parse().unwrap(), domid: 7, boot_id: "b00710".to_owned() }
    }

    /// A record that was written for the image at `path`.
    fn written(directory: &Path, of: &Path) -> RecordFile {
        let mut file = RecordFile::beside(&directory.join(".web.0123456789ab.saving"), &guest("web"));
        let image = ImageId::of(&Image::open(of).unwrap());
        let seen = Seen::NotKnown { why: "a test".to_owned() };
        let disk = Disk {
            vdev: "xvda".to_owned(),
            target: "/dev/vg/web".to_owned(),
            writable: true,
            format: "raw".to_owned(),
            seen,
        };
        file.record.stage = Stage::Destroyed(Details { image, looked: Time::now(), disks: vec![disk] });
        file.write().unwrap();
        file
    }

    fn an_image(directory: &Path) -> PathBuf {
        let path = directory.join("web");
        fs::write(&path, image("web")).unwrap();
        path
    }

    #[test]
    fn what_is_written_is_read() {
        let home = tempfile::tempdir().unwrap();
        let path = an_image(home.path());
        let file = written(home.path(), &path);
        assert_eq!(file.path, home.path().join(".web.0123456789ab.record"));
        assert_eq!(read(&file.path).unwrap(), file.record);
        assert_eq!(fs::metadata(&file.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2, "nothing else is left");

        // An interface between releases of this program.
        let mut json: Value = serde_json::from_slice(&fs::read(&file.path).unwrap()).unwrap();
        for (key, value) in [
            ("version", json!(1)),
            ("name", json!("web")),
            ("uuid", json!(UUID)),
            ("domid", json!(7)),
            ("boot_id", json!("b00710")),
            ("stage", json!("destroyed")),
        ] {
            assert_eq!(json[key], value, "{key}");
        }
        assert_eq!(json["image"]["size"], fs::metadata(&path).unwrap().len());
        assert!(json["image"]["modified"].is_i64() && json["looked"].is_i64() && json["since_boot"].is_u64());
        let disk = &json["disks"][0];
        assert_eq!((&disk["vdev"], &disk["kind"]), (&json!("xvda"), &json!("not-known")));

        // A later release may add to it.
        json["more"] = json!(5);
        fs::write(&file.path, json.to_string()).unwrap();
        assert_eq!(read(&file.path).unwrap(), file.record);
        json["version"] = json!(2);
        fs::write(&file.path, json.to_string()).unwrap();
        assert!(matches!(read(&file.path), Err(Unreadable::Newer(2))));
    }

    #[test]
    fn a_record_that_has_just_begun_says_less() {
        let home = tempfile::tempdir().unwrap();
        let file = RecordFile::beside(&home.path().join(".web.0123456789ab.saving"), &guest("web"));
        file.write().unwrap();
        assert_eq!(read(&file.path).unwrap(), file.record);
        let later = RecordFile::beside(&home.path().join(".web.0123456789ac.saving"), &guest("web"));
        assert!(file.record.since_boot < later.record.since_boot);
    }

    #[test]
    fn anything_else_is_no_record() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".web.0123456789ab.record");
        for text in ["", "{", "{}", "[1]", "{\"version\": 1, \"stage\": \"begun\"}", "\u{0}"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(read(&path), Err(Unreadable::Damaged(_))), "{text}");
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(an_image(home.path()), &path).unwrap();
        assert!(matches!(read(&path), Err(Unreadable::Io(_))), "a link is not followed");
    }

    #[test]
    fn an_image_has_the_record_that_knows_it() {
        let home = tempfile::tempdir().unwrap();
        let path = an_image(home.path());
        let file = written(home.path(), &path);
        let found = || of_image(&Image::open(&path).unwrap()).map(|file| file.map(|file| file.path));
        assert_eq!(found(), Ok(Some(file.path.clone())));
        // Others of the same guest don't matter, nor does one that can't be read.
        RecordFile::beside(&home.path().join(".web.000000000000.saving"), &guest("web")).write().unwrap();
        fs::write(home.path().join(".web.000000000001.record"), "{").unwrap();
        assert_eq!(found(), Ok(Some(file.path.clone())));
        // Only when the right one is not there, it could be that one.
        fs::write(&path, image("web")).unwrap();
        fs::File::open(&path).unwrap().set_modified(SystemTime::now() + Duration::from_secs(1)).unwrap();
        assert!(found().unwrap_err().contains(".web.000000000001.record: it is damaged"));
        fs::remove_file(home.path().join(".web.000000000001.record")).unwrap();
        assert_eq!(found(), Ok(None), "the image was written again");
    }
}
