//! What is remembered of a migration, in a file for each guest, so that nobody lets a guest run here that may be running
//! elsewhere.
//!
//! | after | the domain | the record | what to do with the guest |
//! |---|---|---|---|
//! | 1. the record is written | runs | *begun* | – |
//! | 2. libxl has sent the guest | suspended | *begun* | resume it |
//! | 3. the record is written again | suspended | *going* | resume it: it still has its name |
//! | 4. the target has built the guest | suspended | *going* | the same |
//! | 5. the domain is renamed | suspended, `--migratedaway` | *going* | leave it alone: GO may have been written |
//! | 6. GO | the same | *going* | the same |
//! | 7. the target says that the guest runs there | the same | *going* | the same |
//! | 8. the record is written again | the same | *moved* | destroy the domain |
//! | 9. the domain is destroyed | none | *moved* | it is there: don't start it here |
//!
//! When the target gives a guest back after step 6, or the domain can't be used after step 5, the record is *begun* again
//! before the domain gets its name back, and is removed when the guest runs. Step 3 is taken while the target builds the
//! guest, because the disk may be slow and the guest is suspended by then.
//!
//! The domain's name says what the record alone does not, and it is gone when the host has lost its power. The record is
//! then all there is: a guest that was *going* may be running there, one that was only *begun* can't be.
//!
//! A record counts as long as the guest is nowhere to be seen on this host. One whose guest runs here again, because it
//! was migrated back or because somebody has started it, is removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::durable;
use crate::image::{Guest, guest_key};
use serde::{Deserialize, Serialize};

const VERSION: u64 = 1;

/// The end of a record's name, which begins with the guest's UUID and name.
const SUFFIX: &str = "migration";

/// How far a migration has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// The target can't have been told to let the guest run, or has destroyed its copy.
    Begun,
    /// It may have been told to.
    Going,
    /// It lets the guest run.
    Moved,
}

/// What is remembered of a guest's migration. As JSON it is read by later releases too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u64,
    /// Which guest, as which domain, in which boot of the host.
    #[serde(flatten)]
    pub guest: Guest,
    /// Where to.
    pub target: String,
    /// How far it has come.
    pub stage: Stage,
    /// When it began, in seconds since 1970.
    pub begun: u64,
}

/// The directory of records.
#[derive(Clone, Debug)]
pub struct Records(PathBuf);

/// A record that can't be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: what became of a guest that was migrated can't be read: {why}", path.display())]
pub struct Unreadable {
    path: PathBuf,
    why: String,
}

impl Record {
    pub(super) fn new(guest: Guest, target: &str) -> Record {
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Record { version: VERSION, guest, target: target.to_owned(), stage: Stage::Begun, begun }
    }
}

impl Records {
    /// Those in this directory, which need not be there.
    pub fn in_directory(path: &Path) -> Records {
        Records(path.to_owned())
    }

    /// Where the record of this guest is.
    pub fn path(&self, guest: &Guest) -> PathBuf {
        let path = self.0.join(format!("{}.{SUFFIX}", guest_key(guest.uuid, &guest.name)));
        // So an earlier version has named it.
        let by_uuid = self.0.join(format!("{}.{SUFFIX}", guest.uuid));
        let is_it = || read(&by_uuid).is_ok_and(|record| record.guest.name == guest.name);
        if !path.exists() && is_it() { by_uuid } else { path }
    }

    /// All records.
    pub fn all(&self) -> Vec<Result<Record, Unreadable>> {
        let unreadable = |path: &Path, why: String| Unreadable { path: path.to_owned(), why };
        let mut paths = Vec::new();
        match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return vec![Err(unreadable(&self.0, error.to_string()))],
            Ok(entries) => paths.extend(entries.filter_map(Result::ok).map(|entry| entry.path())),
        }
        paths.retain(|path| path.extension().is_some_and(|end| end == SUFFIX));
        paths.sort();
        let read = |path: &PathBuf| match read(path) {
            // It has just been removed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            read => Some(read.map_err(|error| unreadable(path, error.to_string()))),
        };
        paths.iter().filter_map(read).collect()
    }

    /// The record of this guest as another domain of the same boot.
    pub(super) fn of(&self, guest: &Guest) -> Option<Record> {
        let record = read(&self.path(guest)).ok()?;
        (record.guest.boot_id == guest.boot_id && record.guest.domid != guest.domid).then_some(record)
    }

    /// Puts a record in the place of an older one, durably: whatever happens, one of them is there as a whole.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.guest);
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        durable::replace(&path, &serde_json::to_vec_pretty(record)?).map_err(failed)
    }

    /// Removes a guest's record, durably. None there is a success.
    pub fn remove(&self, guest: &Guest) -> io::Result<()> {
        let path = self.path(guest);
        durable::remove(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }
}

fn read(path: &Path) -> io::Result<Record> {
    let json: serde_json::Value = serde_json::from_slice(&fs::read(path)?)?;
    match json["version"].as_u64() {
        Some(version) if version > VERSION => {
            Err(io::Error::other(format!("it was written by a newer release (version {version})")))
        }
        _ => Ok(serde_json::from_value(json)?),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::*;

    fn record(name: &str) -> Record {
        let uuid = Uuid::from_u128(7);
        let guest = Guest { name: name.to_owned(), uuid, domid: 3, boot_id: "b00710".to_owned() };
        Record::new(guest, "10.0.0.2")
    }

    #[test]
    fn what_is_written_is_read() {
        let home = tempfile::tempdir().unwrap();
        let records = Records::in_directory(&home.path().join("a/b"));
        assert!(records.all().is_empty());
        records.remove(&record("web").guest).unwrap();
        let mut web = record("web");
        records.write(&web).unwrap();
        web.stage = Stage::Going;
        records.write(&web).unwrap();
        let [Ok(read)] = &records.all()[..] else { panic!("{:?}", records.all()) };
        assert_eq!(*read, web);
        let path = records.path(&web.guest);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // An interface between releases of this program.
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (key, value) in [("version", "1"), ("name", "\"web\""), ("domid", "3"), ("boot_id", "\"b00710\"")] {
            assert_eq!(json[key].to_string(), value);
        }
        assert_eq!((&json["stage"], &json["target"]), (&"going".into(), &"10.0.0.2".into()));
        json["more"] = 5.into();
        fs::write(&path, json.to_string()).unwrap();
        assert!(records.all()[0].is_ok());
        json["version"] = 2.into();
        fs::write(&path, json.to_string()).unwrap();
        assert!(records.all()[0].as_ref().is_err_and(|error| error.to_string().contains("newer release")));
        records.remove(&web.guest).unwrap();
        assert!(records.all().is_empty());
    }

    #[test]
    fn two_guests_with_one_uuid_have_a_record_each_and_one_of_an_earlier_version_is_found() {
        let home = tempfile::tempdir().unwrap();
        let records = Records::in_directory(home.path());
        let (web, copy) = (record("web"), record("copy"));
        let earlier = home.path().join(format!("{}.migration", web.guest.uuid));
        fs::write(&earlier, serde_json::to_vec(&web).unwrap()).unwrap();
        records.write(&copy).unwrap();
        records.write(&web).unwrap();
        assert_eq!((records.all().len(), records.path(&web.guest)), (2, earlier));
        records.remove(&web.guest).unwrap();
        let [Ok(left)] = &records.all()[..] else { panic!("{:?}", records.all()) };
        assert_eq!(*left, copy);
    }

    #[test]
    fn what_cant_be_written_or_read_is_named() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let records = Records::in_directory(&file.join("sub"));
        assert!(records.write(&record("web")).unwrap_err().to_string().contains("file/sub"));
        let records = Records::in_directory(home.path());
        fs::write(records.path(&record("web").guest), "{").unwrap();
        let error = records.all().remove(0).unwrap_err().to_string();
        assert!(error.contains(".migration: ") && error.contains("migrated"), "{error}");
    }
}
