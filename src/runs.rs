//! Memory of guests over boots, in a file for each: as which domain it was last seen running, and which image of
//! it a start has passed over.
//!
//! The disks do not always show that a guest has run since it was saved. So whoever of us sees a guest running says so here:
//! start, stop, status, and the monitor. An image is older than its guest if the guest was seen running later, as another
//! domain than the one that was saved. As that is not seen when nobody of us is there, an image that is still there when a
//! start has ended, and whose guest's disks show nothing, waits for a word from the admin ([`Runs::accept`]).
//!
//! Guests are known by their names here: a guest whose file gives no UUID has another one each time that xl creates it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::host::Host;
use crate::image::{Guest, Image, ImageId, encode_name};
use crate::toolstack::{Domain, ShutdownReason, State};

const VERSION: u64 = 1;

/// The end of a file's name, which begins with the guest's.
const SUFFIX: &str = ".guest";

/// The file whose time says when a start has passed over all images.
const SKIPPED: &str = "start-skipped";

/// Time in which nothing is written again for the same run of a guest: each time costs a write to the disk. A clock
/// that was wrong is noticed by then.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// A guest's file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Known {
    version: u64,
    /// The run in which it was seen last.
    last: Option<Run>,
    /// The image that a start has left where it is.
    passed_over: Option<ImageId>,
    /// The one that was passed over before the guest was seen running.
    outdated: Option<ImageId>,
}

/// A guest that was seen running.
#[derive(Debug, Serialize, Deserialize)]
struct Run {
    #[serde(flatten)]
    guest: Guest,
    /// When that was.
    seen: SystemTime,
}

/// The directory of what is remembered.
#[derive(Clone, Debug)]
pub struct Runs(PathBuf);

impl Runs {
    /// Opens the memory of this host's guests.
    pub fn of(host: &Host) -> Runs {
        Runs(host.state_dir.join("guests"))
    }

    fn path(&self, guest: &str) -> PathBuf {
        let mut name: OsString = encode_name(guest);
        name.push(SUFFIX);
        self.0.join(name)
    }

    /// Returns what is known of a guest. A file that can't be read is nothing that could be known; the disks are then all there is.
    fn known(&self, guest: &str) -> Known {
        let text = fs::read(self.path(guest)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn write(&self, guest: &str, known: Known) -> io::Result<()> {
        let path = self.path(guest);
        let text = serde_json::to_vec_pretty(&Known { version: VERSION, ..known })?;
        durable::replace(&path, &text)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Remembers that a guest runs as this domain.
    pub fn saw(&self, guest: &Guest) -> io::Result<()> {
        let known = self.known(&guest.name);
        let now = SystemTime::now();
        // One from the future is of a wrong clock.
        let is_fresh = |run: &Run| {
            run.guest.is_same_domain(guest) && now.duration_since(run.seen).is_ok_and(|age| age < FRESH)
        };
        if known.last.as_ref().is_some_and(is_fresh) {
            return Ok(());
        }
        let same_run = known.last.as_ref().is_some_and(|run| run.guest.is_same_domain(guest));
        let last = Some(Run { guest: guest.clone(), seen: now });
        let known = match known.passed_over {
            Some(image) if !same_run => Known { last, passed_over: None, outdated: Some(image), ..known },
            _ => Known { last, ..known },
        };
        self.write(&guest.name, known)
    }

    /// Returns whether an image was passed over whose guest has not been seen since.
    pub fn is_any_passed_over(&self) -> bool {
        let files = fs::read_dir(&self.0).into_iter().flatten().filter_map(Result::ok);
        files
            .filter_map(|file| fs::read(file.path()).ok())
            .any(|text| serde_json::from_slice::<Known>(&text).is_ok_and(|known| known.passed_over.is_some()))
    }

    /// Remembers all guests of these domains that run, or have run as they are. Returns what could not be written.
    pub fn saw_all(&self, domains: &[Domain], boot_id: &str) -> Vec<io::Error> {
        let has_run = |domain: &&Domain| {
            let suspended = domain.state == State::Shutdown(ShutdownReason::Suspend);
            domain.is_manageable() && !domain.has_never_run() && !suspended
        };
        let saw = |domain: &Domain| {
            let name = domain.name.clone().unwrap_or_default();
            let guest = Guest { name, uuid: domain.uuid, domid: domain.domid, boot_id: boot_id.to_owned() };
            self.saw(&guest).err()
        };
        domains.iter().filter(has_run).filter_map(saw).collect()
    }

    /// Why an image is older than what its guest has done, if the guest was seen running since.
    pub fn has_run_since(&self, image: &Image) -> Option<String> {
        let known = self.known(&image.name);
        let run = known.last?;
        let is_that_run = image.saved_as().is_some_and(|saved| saved.is_same_domain(&run.guest));
        // Without the order of events there is only the time of day.
        let is_older = known.outdated == Some(image.id()) || run.seen > image.mtime;
        if is_that_run || !is_older {
            return None;
        }
        let (seen, domid) = (DateTime::<Utc>::from(run.seen), run.guest.domid);
        let seen = seen.format("%Y-%m-%d %H:%M:%S UTC");
        Some(format!("its guest has run since, and was seen at {seen}, as domain {domid}"))
    }

    /// Why an image is not to be restored without a word from the admin: a start has passed over it, and the disks don't show
    /// whether the guest has run since.
    pub fn needs_a_word(&self, image: &Image) -> Option<String> {
        let is_skipped = || self.skipped().is_some_and(|skipped| image.mtime <= skipped);
        if self.known(&image.name).passed_over != Some(image.id()) && !is_skipped() {
            return None;
        }
        let disk = image.disk_that_tells_nothing()?;
        let name = &image.name;
        Some(format!(
            "an earlier start did not restore it, and whether its guest has run since can't be told: {disk}. If it has not, \
             `xendomains accept {name}`; if it has, remove the image"
        ))
    }

    /// Remembers that a start has left an image where it is.
    pub fn pass_over(&self, image: &Image) -> io::Result<()> {
        let known = self.known(&image.name);
        if known.passed_over == Some(image.id()) {
            return Ok(());
        }
        self.write(&image.name, Known { passed_over: Some(image.id()), ..known })
    }

    /// Forgets all that speaks against an image of this guest: the admin says that it is the guest's last state.
    pub fn accept(&self, guest: &str) -> io::Result<()> {
        durable::remove(&self.path(guest))
    }

    /// Remembers that no guest was started now: all images that are there are passed over.
    pub fn skip(&self) -> io::Result<()> {
        durable::replace(&self.0.join(SKIPPED), b"")
    }

    /// Makes the images that were there when guests were not started count as passed over.
    pub fn take_skipped(&self, images: &[Image]) -> io::Result<()> {
        let Some(skipped) = self.skipped() else { return Ok(()) };
        for image in images.iter().filter(|image| image.mtime <= skipped) {
            self.pass_over(image)?;
        }
        durable::remove(&self.0.join(SKIPPED))
    }

    /// When no guest was started, if no start has come since.
    fn skipped(&self) -> Option<SystemTime> {
        fs::metadata(self.0.join(SKIPPED)).and_then(|metadata| metadata.modified()).ok()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn guest(domid: u32) -> Guest {
        Guest { name: "web".to_owned(), uuid: Uuid::from_u128(7), domid, boot_id: "b00710".to_owned() }
    }

    #[test]
    fn the_last_run_is_remembered_and_what_is_known_is_not_written_again() {
        let home = tempfile::tempdir().unwrap();
        let runs = Runs(home.path().join("a/b"));
        runs.accept("web").unwrap();
        runs.saw(&guest(3)).unwrap();
        let path = runs.path("web");
        let text = fs::read_to_string(&path).unwrap();
        runs.saw(&guest(3)).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        runs.saw(&guest(4)).unwrap();
        assert_eq!(runs.known("web").last.unwrap().guest, guest(4));
        // An interface between releases of this program.
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            (&json["version"], &json["last"]["name"], &json["last"]["domid"]),
            (&1.into(), &"web".into(), &4.into())
        );
        runs.accept("web").unwrap();
        assert!(runs.known("web").last.is_none());
        fs::write(&path, "{").unwrap();
        assert!(runs.known("web").last.is_none());
    }

    #[test]
    fn what_cant_be_written_is_named() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Runs(file.join("sub")).saw(&guest(1)).unwrap_err().to_string();
        assert!(error.contains("file/sub/web.guest: "), "{error}");
    }
}
