//! The mark by which the monitor knows its guests: a few facts that libxl keeps with the domain, until that is gone.

use std::path::{Path, PathBuf};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::toolstack::{Domid, Error, Monitoring, ShutdownReason};

/// The name under which libxl keeps it.
const ID: &str = "xendomains";

/// The name under which libvirt keeps what it knows of a guest of its own.
const LIBVIRT_ID: &str = "libvirt-xml";

const VERSION: u32 = 1;

/// What is known of a guest that the monitor watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub(super) version: u32,
    /// The file that the guest was started from, if it was one.
    pub file: Option<PathBuf>,
    /// When it was let run, in seconds since the host was booted.
    pub started: u64,
    /// How often it has been restarted since it was started from its file or image.
    pub restarts: u32,
    /// Why it was restarted last.
    pub reason: Option<String>,
    /// How often in a row, up to that, it had ended soon after its start.
    pub soon: u32,
    /// These are the remains of a guest, which are to stay as they are.
    #[serde(default)]
    pub kept: bool,
}

/// Seconds since the host was booted.
pub fn since_boot() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or_default()
}

impl Mark {
    /// Of a guest that is started now.
    pub fn new(file: Option<&Path>) -> Mark {
        let file = file.map(Path::to_owned);
        let started = since_boot();
        Mark { version: VERSION, file, started, restarts: 0, reason: None, soon: 0, kept: false }
    }

    /// Of the guest when it has been restarted for this reason.
    pub fn restarted(&self, reason: ShutdownReason, soon: u32) -> Mark {
        Mark {
            started: since_boot(),
            restarts: self.restarts.saturating_add(1),
            reason: Some(word(reason)),
            soon,
            ..self.clone()
        }
    }

    /// The mark of a domain. `None`: it has none.
    pub fn of(domid: Domid, monitoring: &dyn Monitoring) -> Result<Option<Mark>, Error> {
        let Some(text) = monitoring.userdata(domid, ID)? else { return Ok(None) };
        let unreadable = |why: String| Error::new("read the mark", why);
        let mark: Mark = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        if mark.version == VERSION {
            Ok(Some(mark))
        } else {
            Err(unreadable(format!("it is of version {}, which another xendomains has made", mark.version)))
        }
    }

    /// Puts it on a domain, in the place of the one that it has.
    pub fn put(&self, domid: Domid, monitoring: &dyn Monitoring) -> Result<(), Error> {
        let text = serde_json::to_vec(self).map_err(|error| Error::new("mark", error.to_string()))?;
        monitoring.keep_userdata(domid, ID, &text)
    }
}

/// Whether libvirt has made the domain, and does for it what the monitor would.
pub fn is_libvirts(domid: Domid, monitoring: &dyn Monitoring) -> Result<bool, Error> {
    Ok(monitoring.userdata(domid, LIBVIRT_ID)?.is_some())
}

/// Returns whether a domain that has never run is not complete and whoever was building it is gone: libxl writes down the
/// configuration of a domain when it has built it.
pub fn is_abandoned(domid: Domid, monitoring: &dyn Monitoring, host: &Host) -> bool {
    matches!(monitoring.kept_configuration(domid), Ok(None)) && !host.may_be_building()
}

/// A reason in a word or two.
pub fn word(reason: ShutdownReason) -> String {
    let word = match reason {
        ShutdownReason::Poweroff => "poweroff",
        ShutdownReason::Reboot => "reboot",
        ShutdownReason::Suspend => "suspend",
        ShutdownReason::Crash => "crash",
        ShutdownReason::Watchdog => "watchdog",
        ShutdownReason::SoftReset => "soft-reset",
        ShutdownReason::Other(code) => return format!("unknown reason {code}"),
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_restarts_and_keeps_the_rest() {
        let first = Mark::new(Some(Path::new("/etc/xen/auto/web")));
        let second = first.restarted(ShutdownReason::Crash, 1).restarted(ShutdownReason::SoftReset, 0);
        assert_eq!((second.restarts, second.reason.as_deref(), second.soon), (2, Some("soft-reset"), 0));
        assert_eq!(second.file, first.file);
        let text = serde_json::to_string(&second).expect("JSON");
        assert_eq!(serde_json::from_str::<Mark>(&text).expect("a mark"), second);
        assert!(text.len() < 300, "{text}");
    }
}
