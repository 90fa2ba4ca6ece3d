//! Restarts that are under way, or have failed for good, as files: between the end of the old domain and the life of the
//! new one there is nothing else that knows of the guest. So it is while a domain is only removed: its mark goes first,
//! its memory last. They are in a directory that does not outlive the boot.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::mark::Mark;
use crate::image::guest_key;
use crate::toolstack::{Domid, Made};

const VERSION: u32 = 1;

/// The end of the name of a file that is being written.
const TEMPORARY: &str = ".new";

/// The end of the name of a file with a domain's number.
const NUMBER: &str = ".domain";

/// How the guest comes to run again, if it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// Its old domain is destroyed.
    Destroy,
    /// Its old domain is kept under another name.
    Rename,
    /// In its old domain.
    SoftReset,
    /// Not at all: its domain is destroyed, and that is it.
    Remove,
}

/// A guest that is to run again, or to be removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    version: u32,
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// The domain that has ended.
    pub old: Domid,
    /// What that was called.
    pub old_name: String,
    /// How it comes to run again.
    pub how: How,
    /// The mark that it gets.
    pub mark: Mark,
    /// Its configuration.
    pub config: Value,
    /// Why it was given up, if it was.
    pub failed: Option<String>,
}

impl Restart {
    /// One that begins now.
    pub fn new(old: Domid, old_name: &str, uuid: Uuid, how: How, mark: Mark, config: Value) -> Restart {
        let name = config["c_info"]["name"].as_str().unwrap_or(old_name).to_owned();
        let old_name = old_name.to_owned();
        Restart { version: VERSION, name, uuid, old, old_name, how, mark, config, failed: None }
    }

    /// Whether the guest is on its way to run again.
    pub fn is_under_way(&self) -> bool {
        self.failed.is_none() && self.how != How::Remove
    }
}

/// The directory of all of them.
#[derive(Clone, Debug)]
pub struct Restarts(PathBuf);

impl Restarts {
    /// Below the directory for what does not outlive the boot.
    pub fn new(run_dir: &Path) -> Restarts {
        Restarts(run_dir.join("restarts"))
    }

    /// Writes one down, whole or not at all.
    pub fn put(&self, restart: &Restart) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let temporary = self.hidden(restart.uuid, &restart.name, TEMPORARY);
        // A configuration can have passwords in it.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(restart)?)?;
        fs::rename(&temporary, self.path(restart.uuid, &restart.name))
    }

    /// The guest runs, or is nobody's concern any more.
    pub fn remove(&self, uuid: Uuid, name: &str) -> io::Result<()> {
        // No other domain gets this number as long as the one that has it is there.
        let _ = fs::remove_file(self.hidden(uuid, name, NUMBER));
        // So an earlier version has named it.
        let _ = fs::remove_file(self.0.join(uuid.to_string()));
        match fs::remove_file(self.path(uuid, name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All that are written down. What can't be read is told by its path.
    pub fn all(&self) -> (Vec<Restart>, Vec<String>) {
        let (mut restarts, mut unreadable) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (restarts, unreadable),
            Err(error) => return (restarts, vec![format!("{}: {error}", self.0.display())]),
        };
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if path.file_name().is_some_and(|name| name.as_bytes().starts_with(b".")) {
                continue;
            }
            match read(&path) {
                Ok(restart) => restarts.push(restart),
                // It has just been removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => unreadable.push(format!("{}: {error}", path.display())),
            }
        }
        restarts.sort_by(|one, other| one.name.cmp(&other.name));
        (restarts, unreadable)
    }

    /// Writes down the number of the domain that is made for a guest, as soon as it has one.
    pub fn made(&self, uuid: Uuid, name: &str) -> Made {
        let path = self.hidden(uuid, name, NUMBER);
        Arc::new(move |domid| {
            // Without it, a domain that is left half made is named and not removed.
            let _ = fs::write(&path, domid.to_string());
        })
    }

    /// The number of the domain that was made for a guest, if that was written down.
    pub fn number(&self, uuid: Uuid, name: &str) -> Option<Domid> {
        fs::read_to_string(self.hidden(uuid, name, NUMBER)).ok()?.parse().ok()
    }

    fn path(&self, uuid: Uuid, name: &str) -> PathBuf {
        self.0.join(guest_key(uuid, name))
    }

    /// A file that is no restart.
    fn hidden(&self, uuid: Uuid, name: &str, end: &str) -> PathBuf {
        self.0.join(format!(".{}{end}", guest_key(uuid, name)))
    }
}

fn read(path: &Path) -> io::Result<Restart> {
    let restart: Restart = serde_json::from_slice(&fs::read(path)?)?;
    if restart.version == VERSION {
        Ok(restart)
    } else {
        Err(io::Error::other(format!("of version {}, which another xendomains has made", restart.version)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    #[test]
    fn two_guests_with_one_uuid_have_one_each() {
        let dir = tempfile::tempdir().expect("a directory");
        let restarts = Restarts::new(dir.path());
        let uuid = Uuid::new_v4();
        for (old, name) in [(7, "web"), (8, "copy")] {
            restarts
                .put(&Restart::new(old, name, uuid, How::Destroy, Mark::new(None), json!({})))
                .expect("written");
            restarts.made(uuid, name)(old + 10);
        }
        restarts.remove(uuid, "web").expect("removed");
        let numbers = ["web", "copy"].map(|name| restarts.number(uuid, name));
        assert_eq!((restarts.all().0.len(), numbers), (1, [None, Some(18)]));
    }

    #[test]
    fn what_is_written_down_is_found_until_it_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let restarts = Restarts::new(&dir.path().join("run"));
        assert_eq!(restarts.all(), (vec![], vec![]));
        let uuid = Uuid::new_v4();
        let config = json!({"c_info": {"name": "web2"}});
        let mut restart = Restart::new(7, "web", uuid, How::Rename, Mark::new(None), config);
        assert_eq!(restart.name, "web2");
        restarts.put(&restart).expect("written");
        assert_eq!(restarts.all(), (vec![restart.clone()], vec![]));
        restart.failed = Some("no memory".to_owned());
        restarts.put(&restart).expect("written again");
        assert_eq!(restarts.all(), (vec![restart], vec![]));
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        let directory = dir.path().join("run/restarts");
        assert_eq!((mode(&directory), mode(&directory.join(format!("{uuid}.web2")))), (0o700, 0o600));
        restarts.remove(uuid, "web2").expect("removed");
        restarts.remove(uuid, "web2").expect("nothing to remove");
        assert_eq!(restarts.all(), (vec![], vec![]));
        // One that was killed while it wrote, and one that nobody can read.
        fs::write(directory.join(format!(".{uuid}.new")), "{").expect("write");
        fs::write(directory.join("x"), "{").expect("write");
        let (none, unreadable) = restarts.all();
        assert_eq!((none.len(), unreadable.len()), (0, 1), "{unreadable:?}");
    }
}
