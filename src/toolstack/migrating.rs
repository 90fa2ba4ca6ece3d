//! Migration by a toolstack that talks to the other host itself, as the commands do, and what every migration has in common.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Domain, Error};
use crate::settings::Migrate;

/// What is put behind the name of a domain whose guest may run elsewhere.
pub const AWAY: &str = "--migratedaway";

/// How long an answer is waited for, at the least, once the target was told to let the guest run. All that it does in
/// that time is to rename and to unpause it.
pub const ANSWER: Duration = Duration::from_secs(60);

/// How long it is still waited for when the program is told to end.
pub const ANSWER_ONCE_TOLD: Duration = Duration::from_secs(10);

/// What ssh is told. It can't ask anybody anything; hosts and keys are what the admin has configured. A host that has
/// gone away is noticed within a minute.
pub const SSH_OPTIONS: [&str; 4] =
    ["BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4"];

/// What a shell makes more of than an ordinary letter.
pub const FOR_A_SHELL: &str = "|&;<>()$`\\\"'*?[]#~{}\n";

/// Where a guest is to go.
#[derive(Clone, Copy)]
pub struct To<'a> {
    /// The host.
    pub target: &'a str,
    /// How it is reached, and what else was asked for.
    pub options: &'a Migrate,
    /// What the guest is to be there.
    pub config: Option<&'a Path>,
    /// Is given each line that is said on the way.
    pub hear: &'a (dyn Fn(&str) + Sync),
}

/// A toolstack that migrates guests itself.
pub trait Migrator {
    /// Migrates a guest. Whatever this returns, what has become of the guest is to be looked at.
    ///
    /// # Errors
    /// What the toolstack says. [`Error::timed_out`] if it was ended because the deadline has passed.
    fn migrate(&self, domain: &Domain, to: To<'_>, deadline: Option<Instant>) -> Result<(), Error>;

    /// Whether the other hosts can be asked with `xl info`.
    fn target_has_xl(&self) -> bool;
}
