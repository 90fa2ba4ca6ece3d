//! What is done with a guest that has ended, and when: what its configuration says, as xl reads it, but no restart after
//! the other without a pause.

use std::time::Duration;

use serde_json::Value;

use super::mark::Mark;
use crate::settings::Settings;
use crate::toolstack::ShutdownReason;

/// The first pause of a guest that ends soon again and again, and the first one before a restart is tried again. Each
/// one after it is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What becomes of what is left of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is removed.
    Destroy,
    /// It is removed, and the guest made anew.
    Restart,
    /// It is kept under another name, and the guest made anew.
    Rename,
    /// It stays as it is.
    Preserve,
    /// The guest goes on in it.
    SoftReset,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// Its memory is written into a file first.
    pub dump: bool,
    /// What comes then.
    pub fate: Fate,
}

/// What a guest's configuration (libxl's JSON) says for this reason. `None`: a suspend, which is no end.
pub fn action(config: &Value, reason: ShutdownReason) -> Option<Action> {
    let key = match reason {
        ShutdownReason::Poweroff => "on_poweroff",
        ShutdownReason::Reboot => "on_reboot",
        ShutdownReason::Crash => "on_crash",
        ShutdownReason::Watchdog => "on_watchdog",
        ShutdownReason::SoftReset => "on_soft_reset",
        ShutdownReason::Suspend => return None,
        ShutdownReason::Other(_) => "",
    };
    let (dump, fate) = match config[key].as_str() {
        Some("restart") => (false, Fate::Restart),
        Some("restart_rename") => (false, Fate::Rename),
        Some("preserve") => (false, Fate::Preserve),
        Some("coredump_destroy") => (true, Fate::Destroy),
        Some("coredump_restart") => (true, Fate::Restart),
        Some("soft_reset") => (false, Fate::SoftReset),
        // libxl does not write down what is its default.
        _ => (false, Fate::Destroy),
    };
    Some(Action { dump, fate })
}

/// Returns whether what is left of a guest that ended for this reason is of no use to anybody, by its configuration: it is neither
/// to be kept nor to be dumped.
pub fn nobody_misses_it(config: &Value, reason: ShutdownReason) -> bool {
    let is_useless = |action: Action| !action.dump && matches!(action.fate, Fate::Destroy | Fate::Restart);
    action(config, reason).is_some_and(is_useless)
}

impl Fate {
    /// Whether the guest runs on afterwards.
    pub fn restarts(self) -> bool {
        matches!(self, Fate::Restart | Fate::Rename | Fate::SoftReset)
    }
}

/// How often in a row the guest has ended soon, now that it has ended once more, and how long its restart is to wait.
pub fn pace(mark: &Mark, now: u64, settings: &Settings) -> (u32, Duration) {
    let lived = Duration::from_secs(now.saturating_sub(mark.started));
    if lived >= settings.restart_soon.value {
        return (0, Duration::ZERO);
    }
    let soon = mark.soon.saturating_add(1);
    let over = soon.saturating_sub(settings.restart_burst.value);
    let pause = if over == 0 { Duration::ZERO } else { growing(over - 1) };
    (soon, pause.min(settings.restart_pause.value))
}

/// How long to wait when a restart has failed so many times.
pub fn pause_after(failures: usize, settings: &Settings) -> Duration {
    let times = u32::try_from(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    growing(times).min(settings.restart_pause.value)
}

fn growing(times: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(times))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[test]
    fn each_reason_has_its_own_action() {
        let config = json!({"on_reboot": "restart", "on_crash": "coredump_restart", "on_watchdog": "preserve",
                            "on_soft_reset": "soft_reset"});
        let of = |reason| action(&config, reason).map(|action| (action.dump, action.fate));
        assert_eq!(of(ShutdownReason::Poweroff), Some((false, Fate::Destroy)));
        assert_eq!(of(ShutdownReason::Reboot), Some((false, Fate::Restart)));
        assert_eq!(of(ShutdownReason::Crash), Some((true, Fate::Restart)));
        assert_eq!(of(ShutdownReason::Watchdog), Some((false, Fate::Preserve)));
        assert_eq!(of(ShutdownReason::SoftReset), Some((false, Fate::SoftReset)));
        assert_eq!(of(ShutdownReason::Other(9)), Some((false, Fate::Destroy)));
        assert_eq!(of(ShutdownReason::Suspend), None);
    }

    #[test]
    fn a_guest_that_ends_soon_again_and_again_is_slowed_down() {
        let text = b"XENDOMAINS_RESTART_BURST=2\nXENDOMAINS_RESTART_PAUSE=5\n";
        let settings = Settings::parse(Path::new("settings"), text);
        let mut mark = Mark::new(None);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let (soon, pause) = pace(&mark, mark.started + 59, &settings);
            pauses.push(pause.as_secs());
            mark = mark.restarted(ShutdownReason::Crash, soon);
        }
        assert_eq!(pauses, [0, 0, 1, 2, 4, 5, 5]);
        // It has lived long enough.
        assert_eq!(pace(&mark, mark.started + 60, &settings), (0, Duration::ZERO));
        let never = Settings::parse(Path::new("settings"), b"XENDOMAINS_RESTART_SOON=0\n");
        assert_eq!(pace(&mark, mark.started, &never), (0, Duration::ZERO));
        mark.soon = u32::MAX;
        assert_eq!(pace(&mark, mark.started, &settings), (u32::MAX, Duration::from_secs(5)));
    }

    #[test]
    fn tries_get_rarer() {
        let settings = Settings::defaults();
        let pauses: Vec<_> = [1, 2, 3, 9, 10, 100].map(|n| pause_after(n, &settings).as_secs()).into();
        assert_eq!(pauses, [1, 2, 4, 256, 300, 300]);
    }
}
