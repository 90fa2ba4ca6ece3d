//! Having somebody else read guests' files.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use uuid::Uuid;

use super::{Error, GuestConfig, PerGuest, XenHost};

/// A guest's name, and its UUID if the file gives it.
type Read = dyn Fn(&Path) -> Result<(String, Option<Uuid>), String> + Send + Sync;

/// Reads files that are programs, for the toolstack that runs them.
#[derive(Clone)]
pub struct Reader(Arc<Read>);

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

impl Reader {
    /// Reads with this, which gives a guest's name, and its UUID if the file gives that.
    pub fn new(read: impl Fn(&Path) -> Result<(String, Option<Uuid>), String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// A guest of which nothing else is known than what the toolstack says. What this program does with it is read from
    /// the file if that is written like one for xl.
    pub(super) fn read(&self, path: &Path, host: &XenHost) -> Result<GuestConfig, Error> {
        let (name, uuid) = (self.0)(path).map_err(|message| Error::Asked { path: path.to_owned(), message })?;
        let own = XenHost { reader: None, ..host.clone() };
        let own = GuestConfig::read(path, &own).ok();
        let per_guest = own.map_or_else(PerGuest::default, |guest| guest.per_guest);
        let uuid_given = uuid.is_some();
        let uuid = uuid.unwrap_or_else(Uuid::new_v4);
        Ok(GuestConfig {
            path: path.to_owned(),
            json: json!({ "c_info": { "name": name, "uuid": uuid } }),
            name,
            uuid,
            uuid_given,
            per_guest,
            warnings: Vec::new(),
            unknown_keys: Vec::new(),
        })
    }
}
