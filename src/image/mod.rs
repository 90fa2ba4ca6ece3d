//! Saved guests: xl's file format, the directory of images, and the rules that keep an image from being lost, from
//! being half there, and from running twice. Knows no toolstack.
//!
//! The life of an image:
//! 1. [`SaveDirectory::begin`] checks the room and makes a hidden temporary file, and a record beside it that says whose
//!    save this is. The toolstack writes the header and the stream into it. [`NewImage::commit`] checks that it is
//!    whole, makes it durable, has the record say how the guest's disks are, and gives it its name; only then is the
//!    guest destroyed, and [`Saved::destroyed`] looks at the disks once more. If anything fails before that, the
//!    guest is resumed, and the temporary file and the record go away. What a crash in between leaves is told by
//!    [`SaveDirectory::left_behind`].
//! 2. [`SaveDirectory::scan`] finds it after the boot; [`Image::verdict`] says whether the guest's disks are still those
//!    that it was saved with; the guest is built from [`Image::stream`], paused.
//! 3. [`Image::consume`] renames it away, durably, **before** the guest is unpaused: from here on no crash can run it
//!    a second time. [`Consumed::remove`] deletes it.

mod change;
mod consume;
mod directory;
mod disks;
mod hash;
mod header;
mod left_behind;
mod name;
mod new_image;
mod partitions;
mod record;
mod time;
mod verdict;
mod xend;

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::Value;
use uuid::Uuid;

pub use consume::{Consumed, put_back_unused, set_aside};
pub use directory::{SaveDirectory, ScanEntry, SkipReason};
pub(crate) use header::encode as encode_header;
pub use left_behind::LeftBehind;
pub use name::{encode_name, guest_key};
pub use new_image::{NewImage, Saved};
pub use record::{Guest, ImageId};
pub use verdict::Verdict;

use record::{Details, RecordFile, Stage};

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct ImageError {
    /// The image or the directory.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: Problem,
}

/// What can be wrong with an image or its directory.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A system call failed.
    #[error("can't {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Not a regular file.
    #[error("not a regular file")]
    NotAFile,
    /// Not a directory.
    #[error("not a directory")]
    NotADirectory,
    /// The file is empty.
    #[error("the file is empty")]
    Empty,
    /// The file is cut off: a save that failed half-way.
    #[error("not a complete image: the file ends after {length} bytes, within {part}")]
    Truncated {
        /// What it ends in.
        part: Part,
        /// How long the file is.
        length: u64,
    },
    /// Another program's file.
    #[error("{0}")]
    Foreign(Foreign),
    /// Written on a machine of the other byte order.
    #[error("the image was written on a machine with another byte order")]
    ByteOrder,
    /// Flags that a reader must understand.
    #[error("the image needs features that are not known here (flags {0:#x}); it was written by a newer Xen")]
    UnknownFlags(u32),
    /// Written by Xen 4.4 or older.
    #[error("the image was written by Xen 4.4 or older; `xl restore` may be able to read it")]
    OldConfig,
    /// Written by Xen 4.5.
    #[error("the image was written by Xen 4.5; `xl restore` may be able to convert it")]
    OldStream,
    /// The header asks for more configuration than there can be.
    #[error("the header is damaged: {length} bytes of configuration")]
    ConfigTooLong {
        /// The length that the header gives.
        length: u64,
    },
    /// There is no configuration.
    #[error("the image has no guest configuration")]
    NoConfig,
    /// The configuration is longer than the part of the file that holds it.
    #[error("the header is damaged: {length} bytes of configuration are more than there is room for")]
    ConfigBeyondData {
        /// The length that the header gives.
        length: u32,
    },
    /// The configuration is not JSON.
    #[error("the guest configuration in the image is damaged: {0}")]
    ConfigNotJson(serde_json::Error),
    /// The configuration is not what xend writes.
    #[error("the guest configuration in the image is damaged: {0}")]
    ConfigNotSxp(String),
    /// The configuration lacks the name or the UUID.
    #[error("the guest configuration in the image has no valid {0}")]
    ConfigWithout(&'static str),
    /// libxl's stream doesn't start as it should.
    #[error("the part of the image that libxl has written is of an unknown kind")]
    UnknownStream,
    /// Not the file that it was before.
    #[error("the file has been replaced meanwhile")]
    Replaced,
    /// The image is of another guest than was asked to be saved.
    #[error("the image is of the guest {found}, not of {expected}")]
    WrongGuest {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// The name of the image is taken by something that must not be overwritten.
    #[error("the name is taken by {0}, which is not overwritten")]
    NameTaken(String),
    /// The file system is too full.
    #[error(
        "not enough room: {needed} MiB needed, {available} MiB available, of which saves under way need {reserved} MiB"
    )]
    NoRoom {
        /// Needed for this image.
        needed: u64,
        /// Free in the file system.
        available: u64,
        /// What saves under way are still going to write.
        reserved: u64,
    },
}

/// The parts of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// xl's header.
    Header,
    /// The guest's configuration.
    Config,
    /// The header of libxl's stream.
    StreamHeader,
    /// The guest's memory and devices.
    Stream,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Header => "its header",
            Self::Config => "the guest's configuration",
            Self::StreamHeader => "the header of the guest's state",
            Self::Stream => "the guest's state",
        })
    }
}

/// Whose file it is, if it is no image of xl's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// libvirt.
    Libvirt,
    /// Nobody knows.
    Unknown,
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Libvirt => "an image of libvirt; use libvirt to restore it",
            Self::Unknown => "not a saved guest",
        })
    }
}

impl Problem {
    fn at(self, path: &Path) -> ImageError {
        ImageError { path: path.to_owned(), problem: self }
    }
}

/// Turns a failed system call into an error.
fn io_error<E: Into<io::Error>>(path: &Path, action: &'static str) -> impl Fn(E) -> ImageError {
    move |source| Problem::Io { action, source: source.into() }.at(path)
}

/// Who has written an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// xl, or this program.
    Xl,
    /// xend, the toolstack behind xm.
    Xend,
}

/// Which file it is, independent of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A whole image of a guest.
#[derive(Clone, Debug)]
pub struct Image {
    /// The file.
    pub path: PathBuf,
    /// The guest's name, out of the image.
    pub name: String,
    /// The guest's UUID, out of the image.
    pub uuid: Uuid,
    /// The guest's configuration, in libxl's JSON.
    pub config: Value,
    /// Who has written it, and can restore it.
    pub format: Format,
    /// How long the file is.
    pub size: u64,
    /// When it was written.
    pub mtime: SystemTime,
    /// Where libxl's stream starts in the file.
    pub stream_offset: u64,
    id: FileId,
    /// What [`stream`](Self::stream) has handed out last. Whoever reads that moves the position of this too.
    handed_out: Arc<Mutex<Option<File>>>,
}

impl Image {
    /// Reads what the file says about itself, and checks that it is whole. The stream itself is not read.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        Self::inspect(path, &open_file(path)?)
    }

    /// The same for a file that is open already.
    fn inspect(path: &Path, file: &File) -> Result<Self, ImageError> {
        let metadata = file.metadata().map_err(io_error(path, "read its metadata"))?;
        let header = header::read(&file).map_err(|problem| problem.at(path))?;
        Ok(Self {
            path: path.to_owned(),
            name: header.name,
            uuid: header.uuid,
            config: header.config,
            format: header.format,
            size: metadata.len(),
            mtime: metadata.modified().map_err(io_error(path, "read its metadata"))?,
            stream_offset: header.stream_offset,
            id: FileId::of(&metadata),
            handed_out: Arc::default(),
        })
    }

    /// Marks by which an image is known under any name.
    pub fn id(&self) -> ImageId {
        ImageId::of(self)
    }

    /// The domain that was saved, if the image has a record.
    pub fn saved_as(&self) -> Option<Guest> {
        record::of_image(self).ok().flatten().map(|file| file.record.guest)
    }

    /// A disk that the guest may write to and that does not show whether it has: only a file says when it was changed.
    pub fn disk_that_tells_nothing(&self) -> Option<String> {
        disks::not_telling(&self.config)
    }

    /// Records the guest's disks as they are now, because the admin says that the image belongs to them.
    pub fn accept(&self) -> Result<(), ImageError> {
        let found = record::of_image(self).ok().flatten();
        let mut file = found.unwrap_or_else(|| RecordFile::of_stranger(self));
        file.record.stage = Stage::Destroyed(Details::of(self)?);
        file.write()
    }

    /// Returns whether the other is an image of the same guest, perhaps under another name. Two names with one UUID and no disk in
    /// common that is written to are two guests: somebody has copied a guest's file.
    pub fn is_of_same_guest(&self, other: &Image) -> bool {
        let disks = |image: &Image| disks::written_to(&image.config);
        self.name == other.name || (self.uuid == other.uuid && !disks(self).is_disjoint(&disks(other)))
    }

    /// The number by which its file system knows the file under any name.
    pub fn file_number(&self) -> u64 {
        self.id.inode
    }

    /// The file, positioned at libxl's stream. An error if another file has taken its place.
    pub fn stream(&self) -> io::Result<File> {
        let mut file = File::open(&self.path)?;
        if FileId::of(&file.metadata()?) != self.id {
            return Err(io::Error::other(Problem::Replaced.to_string()));
        }
        file.seek(SeekFrom::Start(self.stream_offset))?;
        *self.handed_out.lock().unwrap_or_else(PoisonError::into_inner) = file.try_clone().ok();
        Ok(file)
    }

    /// Tells how much of the file has been read through [`stream`](Self::stream), in bytes, also by another process that
    /// was given it.
    pub fn read_so_far(&self) -> impl Fn() -> u64 + Send + use<> {
        let handed_out = Arc::clone(&self.handed_out);
        move || {
            let file = handed_out.lock().unwrap_or_else(PoisonError::into_inner);
            file.as_ref().and_then(|mut file| file.stream_position().ok()).unwrap_or(0)
        }
    }

    /// Renames the file away, durably, so that it is no image any more. To be called when the guest has been built
    /// and before it is unpaused.
    pub fn consume(self) -> Result<Consumed, ImageError> {
        Consumed::take(self)
    }
}

/// Opens a regular file for reading; never waits, not even for a FIFO.
fn open_file(path: &Path) -> Result<File, ImageError> {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(io_error(path, "open it"))?;
    if file.metadata().map_err(io_error(path, "read its metadata"))?.is_file() {
        Ok(file)
    } else {
        Err(Problem::NotAFile.at(path))
    }
}

/// The directory that a file is in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
