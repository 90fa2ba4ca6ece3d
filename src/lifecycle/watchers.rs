//! Who watches which guest, for status.

use std::cell::LazyCell;

use super::is_alive;
use super::status::Guest;
use crate::host::Host;
use crate::monitor::client::Client;
use crate::monitor::{Mark, is_libvirts, protocol};
use crate::report::Reporter;
use crate::toolstack::{Domain, Error, Monitoring, Toolstack};

/// Adds to each guest that has a domain who watches it, and how often it was restarted.
pub(super) fn add(
    guests: &mut [Guest],
    host: &Host,
    domains: &[Domain],
    toolstack: &dyn Toolstack,
    report: &Reporter,
) {
    let watched = watched(host, report);
    // Looked for only where nobody else watches a guest: it takes a look at every process.
    let by_xl = LazyCell::new(|| host.watched_by_xl());
    for guest in guests {
        let Some(domain) = domains.iter().find(|domain| Some(domain.domid) == guest.id) else { continue };
        let is_it = |guest: &protocol::Guest| (guest.domid, guest.uuid) == (domain.domid, domain.uuid);
        let is_watched = watched.iter().any(is_it);
        let is_xls = || domain.name.as_ref().is_some_and(|name| by_xl.contains(name)).then_some("xl");
        let Some(monitoring) = toolstack.monitoring() else {
            // The monitor of a time when there was libxl may still be there.
            let by_monitor = is_watched.then_some("monitor");
            guest.watched_by = by_monitor.or_else(|| toolstack.watches_all()).or_else(is_xls);
            continue;
        };
        let (by, mark) = match who(domain, is_watched, monitoring) {
            Ok(found) => found,
            // It is going away.
            Err(_) if domain.name.is_none() || !is_alive(domain) => continue,
            Err(error) => {
                let name = domain.name.as_deref().unwrap_or_default();
                report.warn(&format!("{name}: who watches it can't be told: {error}"));
                continue;
            }
        };
        guest.watched_by = by.or_else(is_xls);
        guest.restarts = mark.as_ref().map(|mark| mark.restarts);
        guest.last_restart_reason = mark.and_then(|mark| mark.reason);
    }
}

/// The guests that the monitor watches; none if there is no monitor.
fn watched(host: &Host, report: &Reporter) -> Vec<protocol::Guest> {
    let asked =
        Client::connect(&host.run_dir).and_then(|client| client.map(|mut client| client.watched()).transpose());
    asked.map(Option::unwrap_or_default).unwrap_or_else(|error| {
        report.warn(&format!("the monitor: {error}"));
        Vec::new()
    })
}

fn who(
    domain: &Domain,
    is_watched: bool,
    monitoring: &dyn Monitoring,
) -> Result<(Option<&'static str>, Option<Mark>), Error> {
    let mark = Mark::of(domain.domid, monitoring)?;
    let is_marked = mark.as_ref().is_some_and(|mark| !mark.kept);
    // The monitor has looked whether it is libvirt's.
    if is_marked && is_watched {
        return Ok((Some("monitor"), mark));
    }
    if is_libvirts(domain.domid, monitoring)? {
        return Ok((Some("libvirt"), None));
    }
    Ok((is_marked.then_some("nobody"), mark))
}
