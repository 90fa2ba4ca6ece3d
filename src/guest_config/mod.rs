//! Guests' configuration files: the text of an xl.cfg file becomes a domain configuration in libxl's JSON.
//!
//! libxl has no function for this; the rules are in the `xl` program. They are written here a second time, so
//! that `xl create -q -n FILE` and [`GuestConfig::read`] give the same values. The module knows no toolstack and
//! needs no Xen.
//!
//! - `syntax`: the grammar
//! - `keys`: typed access with xl's rules for warnings and errors
//! - `table`: every key of xl, and what becomes of it; `rules`: the keys that need more than a line in the table
//! - `devices`: the keys that describe devices; `disk`, `vif`, `pci` and others: the languages of their items
//! - `cpuid`, `vnuma`, `resources`, `affinity` (with `cpu_set`): other keys with a language of their own; `scan`: numbers
//!   inside of them
//! - [`auto`]: the directory of guests to start at boot

mod affinity;
pub mod auto;
mod channel;
mod cpu_set;
mod cpuid;
mod cpuid_names;
mod devices;
mod disk;
mod display;
mod dom0_mem;
mod items;
mod keys;
mod mapping;
mod p9;
mod pci;
mod per_guest;
mod reader;
mod resources;
mod rules;
mod scan;
mod syntax;
mod table;
mod usb;
mod vif;
mod virtio;
mod vnuma;
mod vsnd;
mod xen_host;
mod xl_conf;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use uuid::Uuid;

pub use affinity::MaskError;
pub use per_guest::{PerGuest, StopAction};
pub use reader::Reader;
pub use xen_host::{Cpus, KNOWN, NEWEST, XenHost, debian_firmware_dir};
pub use xl_conf::{Autoballoon, XlConf};

/// Files longer than this are not read: they are no configuration.
const SIZE_LIMIT: u64 = 4 << 20;

/// Why a configuration file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is a directory, a device or something else that is no regular file.
    #[error("{}: not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It is too long to be a configuration.
    #[error("{}: longer than {SIZE_LIMIT} bytes, which no configuration file is", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The text is not in the language of xl.cfg.
    #[error("{}:{line}: {message} (column {column})", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u32,
        /// The character in the line, from 1.
        column: u32,
        /// What is wrong, and what is accepted.
        message: String,
    },
    /// The toolstack was asked to read it, and can't.
    #[error("{}: {message}", path.display())]
    Asked {
        /// The file.
        path: PathBuf,
        /// What the toolstack says.
        message: String,
    },
    /// A key has a value that can't be used.
    #[error("{}:{line}: {key}: {message}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The line of its value, from 1.
        line: u32,
        /// The key.
        key: String,
        /// What is wrong, and what is accepted.
        message: String,
    },
    /// A key that is needed is not there.
    #[error("{}: {key}: {message}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is missing.
        message: String,
    },
}

/// Something in a file that xl would warn about and go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1, if the key stands in the file.
    pub line: Option<u32>,
    /// What is odd, and what is made of it.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.message)
    }
}

/// A key that neither xl nor this program knows, often a typing mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKey {
    /// The key.
    pub name: String,
    /// The line of its value, from 1.
    pub line: u32,
    /// The known key that may have been meant.
    pub nearest: Option<&'static str>,
}

/// A guest, as its configuration file describes it.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// The file.
    pub path: PathBuf,
    /// The guest's name.
    pub name: String,
    /// Its UUID: the file's, or a random one, which is another one each time the file is read.
    pub uuid: Uuid,
    /// Whether the file gives the UUID.
    pub uuid_given: bool,
    /// The `libxl_domain_config` in libxl's JSON.
    pub json: Value,
    /// What this program does with the guest.
    pub per_guest: PerGuest,
    /// What xl would warn about.
    pub warnings: Vec<Diagnostic>,
    /// Keys that nobody knows, which xl ignores without a word.
    pub unknown_keys: Vec<UnknownKey>,
}

impl GuestConfig {
    /// Reads a guest's file. `host` is the host that the guest is for.
    pub fn read(path: &Path, host: &XenHost) -> Result<Self, Error> {
        match &host.reader {
            Some(reader) => reader.read(path, host),
            None => Self::parse(path, &read_file(path)?, host),
        }
    }

    /// Reads the text of a guest's file; `path` is for messages.
    pub fn parse(path: &Path, text: &[u8], host: &XenHost) -> Result<Self, Error> {
        let mut keys = keys::Keys::parse(path, text)?;
        let json = Value::Object(mapping::build(&mut keys, host)?);
        let per_guest = PerGuest::read(&mut keys)?;
        let created = |field: &str| json["c_info"][field].as_str().unwrap_or_default();
        let name = created("name").to_owned();
        let uuid = Uuid::try_parse(created("uuid")).unwrap_or_default();
        let uuid_given = matches!(keys.value("uuid"), Some(syntax::Value::Text(_)));
        let unknown_keys = mapping::unknown(&keys);
        let path = path.to_owned();
        Ok(Self { path, name, uuid, uuid_given, json, per_guest, warnings: keys.into_warnings(), unknown_keys })
    }
}

/// The whole of a regular file. Links are followed; a FIFO is never opened.
fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let file = std::fs::metadata(path).map_err(read)?;
    if !file.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    // In one piece, and room to see that there is no more.
    let mut text = Vec::with_capacity(usize::try_from(file.len().min(SIZE_LIMIT)).unwrap_or_default() + 1);
    File::open(path).map_err(read)?.take(SIZE_LIMIT + 1).read_to_end(&mut text).map_err(read)?;
    if text.len() as u64 > SIZE_LIMIT {
        return Err(Error::TooLong { path: path.to_owned() });
    }
    Ok(text)
}

/// A `libxl_defbool` that is set.
fn defbool(on: bool) -> Value {
    json!(if on { "True" } else { "False" })
}

#[cfg(test)]
mod tests;
