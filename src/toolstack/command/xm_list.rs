//! What `xm list -l` and `xm create -n` print.

use std::time::Duration;

use uuid::Uuid;

use crate::sxp::Sxp;
use crate::toolstack::{Domain, Domid, ShutdownReason, State};

/// What xend calls a domain while it saves or migrates it, before its name.
const MOVING: &str = "migrating-";

/// Reads the list of domains. Those that are only defined, and don't run, are left out. `now` is the time, in seconds since
/// 1970.
pub(super) fn domains(text: &[u8], now: f64) -> Result<Vec<Domain>, String> {
    let all = Sxp::parse_all(text)?;
    let mut found = Vec::new();
    for sxp in all {
        if sxp.name() != Some("domain") {
            return Err(format!("no domain, but {:?}", sxp.name().or(sxp.atom()).unwrap_or("a list")));
        }
        let name = sxp.value("name").unwrap_or("(no name)");
        if let Some(domain) = domain(&sxp, now).map_err(|what| format!("{name}: {what}"))? {
            found.push(domain);
        }
    }
    Ok(found)
}

/// `Ok(None)`: it does not run.
fn domain(sxp: &Sxp, now: f64) -> Result<Option<Domain>, String> {
    let Some(domid) = sxp.value("domid") else { return Ok(None) };
    let Ok(domid) = domid.parse::<Domid>() else {
        return if domid.parse() == Ok(-1) { Ok(None) } else { Err(format!("the number {domid}")) };
    };
    let number = |name: &str| sxp.value(name).and_then(|value| value.parse::<f64>().ok()).filter(|n| *n >= 0.0);
    let seconds = |name: &str| number(name).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let kib = |name: &str| {
        sxp.value(name).and_then(|mib| mib.parse::<u64>().ok()).map_or(0, |mib| mib.saturating_mul(1024))
    };
    let count = |name: &str| sxp.value(name).and_then(|count| count.parse().ok());
    let uuid = sxp.value("uuid").and_then(|uuid| Uuid::try_parse(uuid).ok());
    // Dom0 has one of zeros, or in some releases none.
    let uuid = uuid.or((domid == 0).then(Uuid::nil)).ok_or("no UUID")?;
    let name = sxp.value("name").filter(|name| !name.is_empty()).map(str::to_owned);
    let running_since = number("start_time").and_then(|begun| Duration::try_from_secs_f64(now - begun).ok());
    Ok(Some(Domain {
        domid,
        uuid,
        state: state(sxp.value("state").ok_or("no state")?, sxp.value("shutdown_reason"))?,
        // Nobody is to do anything to a guest that xend moves.
        never_stop: name.as_ref().is_some_and(|name| name.starts_with(MOVING)),
        stubdom: name.as_ref().is_some_and(|name| name.starts_with("stubdom-") || name.ends_with("-dm")),
        name,
        memory_kib: kib("memory"),
        max_memory_kib: kib("maxmem"),
        vcpus: count("online_vcpus").or_else(|| count("vcpus")).unwrap_or(0),
        cpu_time: seconds("cpu_time").unwrap_or_default(),
        uptime: running_since,
    }))
}

/// Letters for all that is true of a domain, and dashes.
fn state(letters: &str, reason: Option<&str>) -> Result<State, String> {
    if !letters.chars().all(|letter| "rbpscd-".contains(letter)) {
        return Err(format!("the state {letters}"));
    }
    let is = |letter: char| letters.contains(letter);
    Ok(if is('d') {
        State::Dying
    } else if is('c') {
        State::Shutdown(ShutdownReason::Crash)
    } else if is('s') {
        State::Shutdown(match reason {
            Some("poweroff") => ShutdownReason::Poweroff,
            Some("reboot") => ShutdownReason::Reboot,
            Some("crash") => ShutdownReason::Crash,
            Some("watchdog") => ShutdownReason::Watchdog,
            // xend removes a guest that has come to its end. One that it does not remove may be suspended, and is then
            // not to be destroyed.
            _ => ShutdownReason::Suspend,
        })
    } else if is('p') {
        State::Paused
    } else {
        State::Running
    })
}

/// The name and the UUID of the guest that a dry run describes. What is printed before it is no part of it.
pub(super) fn dry_run(text: &[u8]) -> Result<(String, Option<Uuid>), String> {
    let begin = match text.first() {
        Some(b'(') => 0,
        _ => text.windows(2).position(|two| two == b"\n(").ok_or("xm has printed no configuration")? + 1,
    };
    let all = Sxp::parse_all(&text[begin..])?;
    let vm = all.iter().find(|sxp| sxp.name() == Some("vm")).ok_or("xm has printed no configuration")?;
    let name = vm.value("name").filter(|name| !name.is_empty()).ok_or("the guest has no name")?;
    let uuid = vm.value("uuid").and_then(|uuid| Uuid::try_parse(uuid).ok());
    Ok((name.to_owned(), uuid))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The structure is that of what users of Xen 3.3 to 4.1 have published; the guests are our own.
    const LIST: &str = include_str!("../../../tests/stand-ins/samples/xm-list-long.sxp");
    const DRY_RUN: &str = include_str!("../../../tests/stand-ins/samples/xm-create-dry-run.txt");

    #[test]
    fn what_runs_is_listed_and_what_is_only_defined_is_not() {
        let domains = domains(LIST.as_bytes(), 1_230_492_642.0).expect("a list");
        let names: Vec<_> = domains.iter().map(|domain| (domain.domid, domain.name.as_deref())).collect();
        let expected = [(0, "Domain-0"), (15, "web"), (16, "my guest"), (17, "migrating-db"), (18, "it's")];
        assert_eq!(names, expected.map(|(domid, name)| (domid, Some(name))));
        let web = &domains[1];
        assert_eq!(web.uuid.to_string(), "d9a1b362-c834-67ab-4e9d-d4b706699297");
        assert_eq!((web.memory_kib, web.max_memory_kib, web.vcpus), (1024 << 10, 2048 << 10, 1));
        assert_eq!(web.uptime.map(|uptime| uptime.as_secs()), Some(3600));
        assert_eq!(web.cpu_time, Duration::from_secs_f64(5.977_945_576));
        let states: Vec<_> = domains.iter().map(|domain| domain.state).collect();
        let suspended = State::Shutdown(ShutdownReason::Suspend);
        let crashed = State::Shutdown(ShutdownReason::Crash);
        assert_eq!(states, [State::Running, State::Running, State::Paused, suspended, crashed]);
        let manageable: Vec<_> = domains.iter().map(Domain::is_manageable).collect();
        assert_eq!(manageable, [false, true, true, false, true]);
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        for text in
            ["Error: Unable to connect to xend", "(host)", "(domain (domid x))", "(domain (domid 1))", "(domain"]
        {
            assert!(domains(text.as_bytes(), 0.0).is_err(), "{text}");
        }
        assert!(domains(b"", 0.0).is_ok_and(|list| list.is_empty()));
        for text in ["(domain)", "(domain (name a))", "(domain (domid -1))"] {
            assert!(domains(text.as_bytes(), 0.0).is_ok_and(|list| list.is_empty()), "{text}");
        }
    }

    #[test]
    fn a_dry_run_tells_the_name() {
        let uuid = Uuid::try_parse("4b1d7a52-6c2e-4f0a-9d53-1f0c7a7e0a00").expect("a UUID");
        assert_eq!(dry_run(DRY_RUN.as_bytes()), Ok(("computed-7".to_owned(), Some(uuid))));
        assert_eq!(dry_run(b"(vm (name 'my guest'))"), Ok(("my guest".to_owned(), None)));
        for text in ["", "Error: no kernel", "(vm)", "hello\n(domain (name x))", "x\n(vm (name"] {
            assert!(dry_run(text.as_bytes()).is_err(), "{text}");
        }
    }
}
