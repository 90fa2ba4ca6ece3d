//! What the AUTO and SAVE directories have for us, and what about them people must be told.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Identity;
use crate::guest_config::auto::{self, AutoEntry, ScanError, SkipReason};
use crate::guest_config::{GuestConfig, XenHost};
use crate::image::{self, Consumed, Image, SaveDirectory, ScanEntry};
use crate::report::Reporter;

/// Messages about a directory.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// Something that the admin probably wanted can't be used.
    pub(super) failures: Vec<String>,
    /// Something is doubtful.
    pub(super) warnings: Vec<String>,
    /// Something is passed over, as it should be.
    pub(super) notes: Vec<String>,
}

impl Messages {
    /// Says everything; the failures count as such.
    pub(super) fn tell(&self, report: &Reporter) {
        self.failures.iter().for_each(|message| report.error(message));
        self.warnings.iter().for_each(|message| report.warn(message));
        self.notes.iter().for_each(|message| report.note(message));
    }
}

/// The guests of the AUTO directory.
#[derive(Debug, Default)]
pub(super) struct AutoGuests {
    /// In the order in which they are to be started.
    pub(super) guests: Vec<GuestConfig>,
    pub(super) messages: Messages,
}

/// Reads the AUTO directory. Without one there are no guests to start.
pub(super) fn auto_guests(directory: Option<&Path>, xen_host: &XenHost) -> AutoGuests {
    let mut found = AutoGuests::default();
    let Some(directory) = directory else { return found };
    let messages = &mut found.messages;
    match auto::scan(directory, xen_host) {
        Ok(entries) => {
            for entry in entries {
                match entry {
                    AutoEntry::Guest(guest) => found.guests.push(guest),
                    AutoEntry::Skipped { path, reason } => {
                        let list = match &reason {
                            SkipReason::Duplicate { .. } => &mut messages.warnings,
                            reason if reason.is_failure() => &mut messages.failures,
                            _ => &mut messages.notes,
                        };
                        list.push(skipped(&path, &reason.to_string()));
                    }
                }
            }
        }
        Err(error @ ScanError::Missing { .. }) => messages.notes.push(error.to_string()),
        Err(error) => messages.failures.push(error.to_string()),
    }
    let copied = copied_uuids(&found.guests);
    for guest in found.guests.iter().filter(|guest| guest.uuid_given && copied.contains(&guest.uuid)) {
        let (path, name, uuid) = (guest.path.display(), &guest.name, guest.uuid);
        let why =
            "another guest has it too, so that both are known by their names alone; give each one of its own";
        messages.warnings.push(format!("{path}: {name}: uuid {uuid}: {why}"));
    }
    found
}

/// The UUIDs that files of several guests give.
pub(super) fn copied_uuids(guests: &[GuestConfig]) -> HashSet<Uuid> {
    let given = guests.iter().filter(|guest| guest.uuid_given);
    several(given.map(|guest| (guest.uuid, guest.name.as_str())))
}

/// The UUIDs that come with several names.
pub(super) fn several<'a>(guests: impl Iterator<Item = (Uuid, &'a str)>) -> HashSet<Uuid> {
    let mut names = HashMap::new();
    let mut several = HashSet::new();
    for (uuid, name) in guests {
        if *names.entry(uuid).or_insert(name) != name {
            several.insert(uuid);
        }
    }
    several
}

/// The images of the SAVE directory.
#[derive(Debug, Default)]
pub(super) struct Images {
    /// By file name.
    pub(super) images: Vec<Image>,
    /// Files that are probably images but can't be read.
    pub(super) unreadable: Vec<PathBuf>,
    /// Older images of guests that have a newer one.
    pub(super) superseded: Vec<PathBuf>,
    /// Whether the directory itself could not be read, so that nothing is known about images.
    pub(super) unknown: bool,
    pub(super) messages: Messages,
}

/// Reads the SAVE directory. Without one there are no images.
pub(super) fn images(directory: Option<&Path>) -> Images {
    let mut found = Images::default();
    let Some(directory) = directory else { return found };
    let entries = SaveDirectory::existing(directory).and_then(|directory| match directory {
        Some(directory) => directory.scan(),
        None => Ok(Vec::new()),
    });
    match entries {
        Ok(entries) => entries.into_iter().for_each(|entry| found.add(entry)),
        Err(error) => {
            found.unknown = true;
            found.messages.failures.push(error.to_string());
        }
    }
    found
}

impl Images {
    fn add(&mut self, entry: ScanEntry) {
        match entry {
            ScanEntry::Image(image) => self.images.push(image),
            ScanEntry::Skipped { reason: image::SkipReason::LostAndFound, .. } => {}
            ScanEntry::Skipped { path, reason: image::SkipReason::Superseded { .. } } => {
                self.superseded.push(path);
            }
            // Nothing waits for it: its guest may have run since.
            ScanEntry::Skipped { path, reason: reason @ image::SkipReason::AlreadyRestored } => {
                self.messages.warnings.push(skipped(&path, &reason.to_string()));
            }
            ScanEntry::Skipped { path, reason } if reason.is_failure() => {
                self.messages.failures.push(skipped(&path, &reason.to_string()));
                self.unreadable.push(path);
            }
            ScanEntry::Skipped { path, reason } => {
                self.messages.notes.push(skipped(&path, &reason.to_string()));
            }
        }
    }
}

/// The file whose name is that of the guest's image, if it is among those that can't be read.
pub(super) fn unreadable_image_of<'a>(guest: &Identity, unreadable: &'a [PathBuf]) -> Option<&'a Path> {
    let file = image::encode_name(&guest.name);
    unreadable.iter().map(PathBuf::as_path).find(|path| path.file_name() == Some(&*file))
}

/// Takes an image out of the way that must never be restored, because its guest has run since. It stays on the disk
/// under a hidden name, for whoever wants to look at it.
pub(super) fn set_aside(image: Image, why: &str, report: &Reporter) {
    let path = image.path.clone();
    match image.consume() {
        Ok(aside) => tell_aside(&path, why, &aside, report),
        Err(error) => report.error(&format!("{}: {why}, but can't be set aside: {error}", path.display())),
    }
}

/// Says that an image was set aside.
pub(super) fn tell_aside(path: &Path, why: &str, aside: &Consumed, report: &Reporter) {
    let (path, aside) = (path.display(), aside.path().display());
    report.warn(&format!("{path}: {why}; it is never restored but kept as {aside}"));
}

/// Some reasons begin with the path themselves.
fn skipped(path: &Path, reason: &str) -> String {
    let path = path.display().to_string();
    if reason.starts_with(&path) { format!("skipped: {reason}") } else { format!("skipped: {path}: {reason}") }
}
