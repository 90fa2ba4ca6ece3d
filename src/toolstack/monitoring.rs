//! What the monitor needs of a toolstack: to hear when guests end, and to do what their configurations ask for then.

use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use uuid::Uuid;

use super::{Domid, Error, Note, ShutdownReason, State};

/// What happened to a guest that is watched.
pub enum Change {
    /// It has shut down, for this reason, and is still there as [`State::Shutdown`]. A suspend may be told more than once.
    Shutdown(ShutdownReason),
    /// It is not there any more.
    Gone,
    /// It has opened a drive.
    Ejected(Box<dyn Ejected>),
}

/// Something happened to a guest.
pub struct Event {
    /// Its number.
    pub domid: Domid,
    /// Its UUID.
    pub uuid: Uuid,
    /// What it was.
    pub change: Change,
}

/// A drive that a guest has opened.
pub trait Ejected: Send {
    /// What the guest calls it.
    fn vdev(&self) -> &str;

    /// Takes the medium out.
    fn take_out(self: Box<Self>) -> Result<(), Error>;
}

/// The guests that are watched, and what happens to them.
pub trait Watch: Send + Sync {
    /// Watches the domain with this number and UUID. That it has shut down or is gone already comes as an event too.
    fn add(&self, domid: Domid, uuid: Uuid) -> Result<(), Error>;

    /// Also watches a drive of a domain that is watched.
    fn add_drive(&self, domid: Domid, vdev: &str) -> Result<(), Error>;

    /// Ends watching. What has happened by then may still come.
    fn remove(&self, domid: Domid);

    /// Waits for the next event. `None`: the program is asked to end.
    fn next(&self) -> Option<Result<Event, Error>>;
}

/// What the monitor does besides what start and stop do. Calls may be made from several threads at once.
pub trait Monitoring: Send + Sync {
    /// Makes something that watches nothing yet.
    fn watch(&self) -> Box<dyn Watch>;

    /// What the domain with this number is, if there is one: its UUID, and what it does.
    fn look(&self, domid: Domid) -> Result<Option<(Uuid, State)>, Error>;

    /// The configuration that libxl keeps of a domain, as it was when it was last changed. `None`: it keeps none.
    fn kept_configuration(&self, domid: Domid) -> Result<Option<Value>, Error>;

    /// What is kept with a domain under this name.
    fn userdata(&self, domid: Domid, id: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Keeps this with a domain, until it is gone. Nothing at all is kept by removing what there was.
    fn keep_userdata(&self, domid: Domid, id: &str, data: &[u8]) -> Result<(), Error>;

    /// Keeps a domain that has shut down aside: under its name with a suffix, which makes place for a new one.
    fn preserve(&self, domid: Domid, name: &str, suffix: &str) -> Result<(), Error>;

    /// Writes the memory of a domain into a file.
    fn dump_core(&self, domid: Domid, file: &Path) -> Result<(), Error>;

    /// Restarts a guest in place that has shut down for that, and leaves it paused. After an error the domain is of no
    /// use any more.
    fn soft_reset(
        &self,
        domid: Domid,
        config: Value,
        deadline: Option<Instant>,
        note: Note<'_>,
    ) -> Result<(), Error>;
}
