//! Who watches which guest, and since when it runs, for status.

use std::cell::LazyCell;
use std::collections::HashMap;

use uuid::Uuid;

use super::is_alive;
use super::status::Guest;
use crate::host::Host;
use crate::monitor::client::Client;
use crate::monitor::protocol::Watched;
use crate::monitor::{Mark, is_libvirts, since_boot};
use crate::report::Reporter;
use crate::toolstack::{Domain, Domid, Error, Monitoring, Toolstack};

/// Adds to each guest that has a domain who watches it, how often it was restarted, and how long it has run.
pub(super) fn add(
    guests: &mut [Guest],
    host: &Host,
    domains: &[Domain],
    toolstack: &dyn Toolstack,
    report: &Reporter,
) {
    let domains: HashMap<_, _> = domains.iter().map(|domain| (Some(domain.domid), domain)).collect();
    let mut watched = watched(host, report);
    // Looked for only where nobody else watches a guest: it takes a look at every process.
    let by_xl = LazyCell::new(|| host.watched_by_xl());
    for guest in guests {
        let Some(domain) = domains.get(&guest.id) else { continue };
        // There may be a monitor although this toolstack has none: one of a time when there was libxl.
        let watched = watched.remove(&(domain.domid, domain.uuid));
        // The monitor knows; for each of the others xenstored has to be asked several times.
        let uptime = match watched.as_ref().and_then(|watched| watched.started) {
            Some(started) => Some(since_boot().saturating_sub(started)),
            None => toolstack.uptime(domain).map(|uptime| uptime.as_secs()),
        };
        guest.uptime_seconds = uptime;
        if let Some(watched) = watched {
            guest.watched_by = Some("monitor");
            guest.restarts = Some(watched.restarts);
            guest.last_restart_reason = watched.reason;
            continue;
        }
        let is_xls = || domain.name.as_ref().is_some_and(|name| by_xl.contains(name)).then_some("xl");
        let Some(monitoring) = toolstack.monitoring() else {
            guest.watched_by = toolstack.watches_all().or_else(is_xls);
            continue;
        };
        let (by, mark) = match who(domain, monitoring) {
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

/// Returns whether nobody is left who would do with a guest that has ended what its configuration says: no monitor watches it, no
/// xl of its own, no libvirt, and it is not one that was kept on purpose.
pub(super) fn is_ownerless(domain: &Domain, host: &Host, toolstack: &dyn Toolstack, report: &Reporter) -> bool {
    let by_name = |name: &String| host.watched_by_xl().contains(name);
    if toolstack.watches_all().is_some() || domain.name.as_ref().is_none_or(by_name) {
        return false;
    }
    let Some(monitoring) = toolstack.monitoring() else { return true };
    let watched = || watched(host, report).contains_key(&(domain.domid, domain.uuid));
    match who(domain, monitoring) {
        Ok((Some("libvirt"), _)) | Err(_) => false,
        Ok((_, Some(mark))) if mark.kept => false,
        Ok(_) => !watched(),
    }
}

/// The guests that the monitor watches; none if there is no monitor.
fn watched(host: &Host, report: &Reporter) -> HashMap<(Domid, Uuid), Watched> {
    let asked =
        Client::connect(&host.run_dir).and_then(|client| client.map(|mut client| client.watched()).transpose());
    let watched = asked.map(Option::unwrap_or_default).unwrap_or_else(|error| {
        report.warn(&format!("the monitor: {error}"));
        Vec::new()
    });
    watched.into_iter().map(|watched| ((watched.guest.domid, watched.guest.uuid), watched)).collect()
}

/// Who else watches it, by what libxl keeps with the domain.
fn who(domain: &Domain, monitoring: &dyn Monitoring) -> Result<(Option<&'static str>, Option<Mark>), Error> {
    let mark = Mark::of(domain.domid, monitoring)?;
    if is_libvirts(domain.domid, monitoring)? {
        return Ok((Some("libvirt"), None));
    }
    let is_marked = mark.as_ref().is_some_and(|mark| !mark.kept);
    Ok((is_marked.then_some("nobody"), mark))
}
