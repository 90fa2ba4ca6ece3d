//! The longest that a stop can take, and whether a shutdown of the host leaves it that long.

use std::time::Duration;

use super::directories::auto_guests;
use super::order::{Key, levels};
use super::status::duration;
use super::stop::{Chain, RETURNS, shared, step_limit};
use super::unsavable::obstacle;
use super::watching::RESTARTS;
use super::{Identity, Run};
use crate::PATIENCE;
use crate::guest_config::{GuestConfig, PerGuest};
use crate::host::Host;
use crate::report::Reporter;
use crate::settings::Settings;
use crate::systemd;
use crate::toolstack::ANSWER;

/// Beyond the limit of a save or a migration: the call that was aborted has to come back, and the guest may still suspend.
const BEYOND: Duration = Duration::from_secs(120);

/// The same over a command: it puts right what it was doing, the guest may still suspend, and another one resumes it.
const BEYOND_OVER_COMMAND: Duration = Duration::from_secs(330);

/// The time after which systemd forces a shutdown, unless it is told otherwise.
const USUAL_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Time that a shutdown needs besides the guests.
const REST_OF_SHUTDOWN: Duration = Duration::from_secs(60);

/// A guest that runs, as far as it matters here.
pub(super) struct Member {
    /// Wishes of its file.
    pub(super) wish: PerGuest,
    /// Why it can't be saved.
    pub(super) obstacle: Option<&'static str>,
    /// Set if it is stopped by the chain, and not only by SHUTDOWN_ALL.
    pub(super) selected: bool,
}

impl Member {
    /// A guest of AUTO, which the chain stops.
    pub(super) fn of_auto(guest: &GuestConfig) -> Member {
        Member { wish: guest.per_guest.clone(), obstacle: obstacle(&guest.json), selected: true }
    }
}

/// Adds up the longest time of a stop whose every step reaches its limit. `None`: there is no limit.
///
/// Syncing a whole image to its disk has none, and is not in it.
pub(super) fn longest_stop(settings: &Settings, levels: &[Vec<Member>], over_command: bool) -> Option<Duration> {
    let steps = || {
        let mut sum = if settings.monitor.value && !over_command { RESTARTS } else { Duration::ZERO };
        for level in levels {
            sum += chain_time(settings, level, if over_command { BEYOND_OVER_COMMAND } else { BEYOND })?;
        }
        sum += returns(settings)?;
        if settings.shutdown_all.value.is_some_and(|options| options.wait) {
            for level in levels {
                let limits = level.iter().map(|guest| step_limit(settings, &guest.wish));
                sum += limits.collect::<Option<Vec<_>>>()?.into_iter().max().unwrap_or_default();
            }
            sum += returns(settings)?;
        }
        Some(sum)
    };
    // A stop that reaches its limit may go on for as long as the process is left alone.
    let whole = settings.stop_timeout.value.map(|limit| limit.saturating_add(PATIENCE));
    if levels.iter().all(Vec::is_empty) {
        return Some(Duration::ZERO);
    }
    [steps(), whole].into_iter().flatten().min()
}

/// The guests that come back by a reboot have one limit together.
fn returns(settings: &Settings) -> Option<Duration> {
    settings.stop_maxwait.value.map(|limit| limit + RETURNS)
}

/// The longest that the guests of a level can take side by side, of which only so many are migrated or saved at once.
fn chain_time(settings: &Settings, level: &[Member], beyond: Duration) -> Option<Duration> {
    let (mut moves, mut saves) = (Vec::new(), Vec::new());
    let mut shutdown = Duration::ZERO;
    let mut sysrq = Duration::ZERO;
    let beside = level.iter().filter(|guest| guest.selected).count();
    for guest in level.iter().filter(|guest| guest.selected) {
        let chain = Chain::new(settings, &guest.wish, guest.obstacle);
        if chain.at_once {
            continue;
        }
        sysrq =
            settings.usleep.value.saturating_mul(u32::try_from(settings.sysrq.value.len()).unwrap_or(u32::MAX));
        let limit = step_limit(settings, &guest.wish);
        if chain.migrate {
            // The other host has to answer, too.
            moves.push(shared(limit, settings.migrate_jobs.value, beside)? + beyond + ANSWER);
        }
        if chain.save {
            saves.push(shared(limit, settings.save_jobs.value, beside)? + beyond);
        }
        if chain.shutdown.is_some_and(|options| options.wait) {
            shutdown = shutdown.max(limit?);
        }
    }
    let turns = |mut limits: Vec<Duration>, jobs: usize| -> Duration {
        limits.sort_unstable();
        limits.rchunks(jobs).filter_map(|turn| turn.last()).sum()
    };
    let moves = turns(moves, settings.migrate_jobs.value.get());
    let saves = turns(saves, settings.save_jobs.value.get());
    Some(sysrq + moves + saves + shutdown)
}

/// Warns if a stop of all guests of AUTO, and of `others` that have no file there, can take longer than systemd waits before
/// it forces a shutdown.
pub(super) fn warn_of_long_stop(
    host: &Host,
    settings: &Settings,
    mut guests: Vec<Member>,
    others: usize,
    over_command: bool,
    report: &Reporter,
) {
    let selected = !settings.auto_only.value;
    guests.extend((0..others).map(|_| Member { wish: PerGuest::default(), obstacle: None, selected }));
    let placed = |guest: Member| {
        let order = guest.wish.order;
        (guest, Key { driver: None, order })
    };
    let levels: Vec<_> = levels(guests.into_iter().map(placed)).into_iter().map(|level| level.guests).collect();
    let longest = longest_stop(settings, &levels, over_command);
    let fits_into = |limit: Duration| longest.is_some_and(|longest| longest + REST_OF_SHUTDOWN <= limit);
    // systemd is only asked, which takes a process, if its usual limit is too short.
    if fits_into(USUAL_LIMIT) {
        return;
    }
    let Some(forced) = systemd::shutdown_limit(host).filter(|forced| !fits_into(*forced)) else { return };
    let takes = longest.map_or("has no limit".to_owned(), |longest| format!("can take {}", duration(longest)));
    let fits = forced.saturating_sub(PATIENCE + REST_OF_SHUTDOWN).as_secs();
    let wait = longest.map_or("infinity".to_owned(), |longest| (longest + REST_OF_SHUTDOWN).as_secs().to_string());
    let within = if fits > 0 { format!("set XENDOMAINS_STOP_TIMEOUT={fits}, or ") } else { String::new() };
    report.warn(&format!(
        "a stop of all guests ({}) {takes}, and systemd forces a shutdown after {}, with all guests that still run: {within}put \
         the lines [Unit] and JobTimeoutSec={wait} into /etc/systemd/system/poweroff.target.d/xendomains.conf and \
         /etc/systemd/system/reboot.target.d/xendomains.conf",
        levels.iter().map(Vec::len).sum::<usize>(),
        duration(forced),
    ));
}

/// The same for the guests that run now.
pub(super) fn warn_of_long_stop_now(run: &Run<'_>) {
    let Ok(mut domains) = run.toolstack.domains() else { return };
    domains.retain(|domain| domain.is_manageable() && super::is_alive(domain));
    // What is wrong with the guests' files is said elsewhere.
    let mut guests = auto_guests(run.settings.auto.value.as_deref(), run.xen_host).guests;
    guests.retain(|guest| {
        let identity = Identity::of_config(guest);
        let place = domains.iter().position(|domain| identity.find(std::slice::from_ref(domain)).is_some());
        place.map(|place| domains.swap_remove(place)).is_some()
    });
    let guests = guests.iter().map(Member::of_auto).collect();
    let over_command = run.toolstack.monitoring().is_none();
    warn_of_long_stop(run.host, run.settings, guests, domains.len(), over_command, run.report);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::mock::Bench;
    use super::*;
    use crate::systemd::tests::stand_in;
    use crate::toolstack::State;

    fn longest(settings: &str, levels: &[usize], over_command: bool) -> Option<u64> {
        let settings = Settings::parse(Path::new("settings"), settings.as_bytes());
        let member = || Member { wish: PerGuest::default(), obstacle: None, selected: true };
        let levels: Vec<Vec<_>> = levels.iter().map(|count| (0..*count).map(|_| member()).collect()).collect();
        longest_stop(&settings, &levels, over_command).map(|longest| longest.as_secs())
    }

    #[test]
    fn the_longest_time_of_a_stop_has_all_that_can_add_to_it() {
        const TEN: &str =
            "XENDOMAINS_STOP_MAXWAIT=10\nXENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN_ALL=\nXENDOMAINS_MONITOR=false\n";
        // Guests that come back: three pauses, and one limit.
        let returns = 10 + 9;
        for (more, levels, over_command, expected) in [
            ("", &[2][..], false, Some(10 + returns)),
            ("XENDOMAINS_MONITOR=true\n", &[2], false, Some(60 + 10 + returns)),
            ("XENDOMAINS_MONITOR=true\n", &[2], true, Some(10 + returns)),
            ("", &[2, 1], false, Some(20 + returns)),
            ("XENDOMAINS_SYSRQ='s u'\nXENDOMAINS_USLEEP=2000000\n", &[2, 1], false, Some(28 + returns)),
            ("XENDOMAINS_SAVE=/s\n", &[1], false, Some(10 + 120 + 10 + returns)),
            ("XENDOMAINS_SAVE=/s\n", &[2], false, Some(20 + 120 + 10 + returns)),
            ("XENDOMAINS_SAVE=/s\n", &[2], true, Some(20 + 330 + 10 + returns)),
            ("XENDOMAINS_SAVE=/s\n", &[3], false, Some(2 * (20 + 120) + 10 + returns)),
            ("XENDOMAINS_MIGRATE=far\n", &[1], false, Some(10 + 180 + 10 + returns)),
            ("XENDOMAINS_SHUTDOWN_ALL='--all --wait'\n", &[1], false, Some(20 + 2 * returns)),
            ("XENDOMAINS_SHUTDOWN=--halt\n", &[1], false, Some(returns)),
            ("XENDOMAINS_STOP_TIMEOUT=5\n", &[99], false, Some(10 + returns)),
            ("XENDOMAINS_SAVE=/s\nXENDOMAINS_STOP_TIMEOUT=500\n", &[99], false, Some(500 + 180)),
            ("XENDOMAINS_STOP_MAXWAIT=0\n", &[1], false, None),
            ("XENDOMAINS_STOP_MAXWAIT=0\nXENDOMAINS_STOP_TIMEOUT=500\n", &[1], false, Some(680)),
            ("XENDOMAINS_STOP_MAXWAIT=0\n", &[], false, Some(0)),
        ] {
            assert_eq!(longest(&format!("{TEN}{more}"), levels, over_command), expected, "{more} {levels:?}");
        }
    }

    #[test]
    fn start_and_check_warn_when_systemd_does_not_wait_for_a_stop() {
        for (settings, guests, limit, hint) in [
            (
                "",
                3,
                "30min",
                Some("a stop of all guests (3) can take 0:51:18, and systemd forces a shutdown after 0:30:00"),
            ),
            (
                "",
                3,
                "30min",
                Some("XENDOMAINS_STOP_TIMEOUT=1560, or put the lines [Unit] and JobTimeoutSec=3138 into"),
            ),
            ("", 3, "1h", None),
            ("", 3, "infinity", None),
            ("XENDOMAINS_STOP_MAXWAIT=200\n", 1, "30min", None),
            ("XENDOMAINS_STOP_TIMEOUT=1560\n", 3, "30min", None),
            ("XENDOMAINS_STOP_MAXWAIT=0\n", 1, "30min", Some("a stop of all guests (1) has no limit")),
        ] {
            let mut bench = Bench::new();
            bench.settings.push_str(&format!("XENDOMAINS_TOOLSTACK=xl\n{settings}"));
            stand_in(&bench.host.systemctl, &format!("echo infinity; echo; echo {limit}"));
            for name in &["web", "db", "mail"][..guests] {
                bench.auto(name, name);
            }
            bench.start();
            let started = bench.err();
            bench.run(|run| super::super::check(run.host, run.settings, run.xen_host, true, &[], run.report));
            let checked = bench.err();
            let checked = checked.strip_prefix(&started).expect("more");
            for said in [&started, checked] {
                match hint {
                    Some(hint) => assert!(said.contains(hint), "{settings} {limit}: {said}"),
                    None => assert!(!said.contains("systemd forces"), "{settings} {limit}: {said}"),
                }
            }
        }
    }

    #[test]
    fn guests_that_have_no_file_count_too() {
        let bench = Bench::new();
        stand_in(&bench.host.systemctl, "echo 30min");
        for name in ["web", "db", "mail"] {
            bench.toolstack.domain(name, State::Running);
        }
        bench.start();
        assert!(bench.err().contains("a stop of all guests (3)"), "{}", bench.err());
    }
}
