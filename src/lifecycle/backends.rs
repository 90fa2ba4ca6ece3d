//! Guests that serve others their disks or networks (driver domains). They start before those and stop after them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::order::Key;
use crate::toolstack::{Domain, Domid};

/// A domain in which a device has its other end, as the guest's configuration names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Backend<'a> {
    /// Its name.
    Name(&'a str),
    /// Its number.
    Number(u64),
}

impl Backend<'_> {
    fn is(self, name: Option<&str>, domid: Option<Domid>) -> bool {
        match self {
            Backend::Name(wanted) => name == Some(wanted),
            Backend::Number(wanted) => domid.is_some_and(|domid| u64::from(domid) == wanted),
        }
    }

    /// Finds it among the domains that there are.
    pub(super) fn find(self, domains: &[Domain]) -> Option<&Domain> {
        domains.iter().find(|domain| self.is(domain.name.as_deref(), Some(domain.domid)))
    }
}

impl std::fmt::Display for Backend<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Backend::Name(name) => f.write_str(name),
            Backend::Number(number) => write!(f, "domain {number}"),
        }
    }
}

/// The other domains that serve a guest, each of them once. `configuration` is its `libxl_domain_config` in libxl's JSON.
pub(super) fn backends(configuration: &Value) -> Vec<Backend<'_>> {
    let lists = configuration.as_object().into_iter().flat_map(|fields| fields.values());
    let devices = lists.filter_map(Value::as_array).flatten();
    let backend = |device| {
        let device: &Value = device;
        // libxl goes by the name if there is one, and takes one of digits for a number.
        let name = device["backend_domname"].as_str().filter(|name| !name.is_empty());
        let number = match name {
            Some(name) => name.parse().ok().filter(|_| name.bytes().all(|byte| byte.is_ascii_digit())),
            None => device["backend_domid"].as_u64(),
        };
        match (number, name) {
            (Some(0), _) | (None, Some("Domain-0") | None) => None,
            (Some(number), _) => Some(Backend::Number(number)),
            (None, Some(name)) => Some(Backend::Name(name)),
        }
    };
    let mut backends: Vec<_> = devices.filter_map(backend).collect();
    backends.sort_unstable();
    backends.dedup();
    backends
}

/// A guest that may serve others or be served by them.
pub(super) struct Party<'a> {
    pub(super) name: Option<&'a str>,
    /// `None`: it does not run.
    pub(super) domid: Option<Domid>,
    pub(super) configuration: &'a Value,
}

/// The place of a guest among those that serve each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// It serves nobody.
    None,
    /// It serves others, or is meant to. It comes after those of a lower number, which serve it.
    Driver(usize),
    /// It would have to come before itself, or after a guest of which that is true: the names on that way.
    Circle(Vec<String>),
}

impl Service {
    /// The key by which [`levels`](super::order::levels) sorts a guest with this order.
    pub(super) fn key(&self, order: Option<i32>) -> Key {
        let driver = match self {
            Service::Driver(place) => Some(*place),
            Service::None | Service::Circle(_) => None,
        };
        Key { driver, order }
    }
}

/// Finds out who serves whom. The answers are in the order of the guests.
pub(super) fn services(parties: &[Party<'_>]) -> Vec<Service> {
    let servers: Vec<Vec<usize>> = parties
        .iter()
        .map(|party| {
            let backends = backends(party.configuration);
            let serves = |other: &Party<'_>| backends.iter().any(|backend| backend.is(other.name, other.domid));
            (0..parties.len()).filter(|&place| serves(&parties[place])).collect()
        })
        .collect();
    let mut places = BTreeMap::new();
    loop {
        let before = places.len();
        for (party, servers) in servers.iter().enumerate() {
            let after: Option<Vec<usize>> = servers.iter().map(|server| places.get(server).copied()).collect();
            if let Some(after) = after {
                let place = after.into_iter().max().map_or(0, |place| place + 1);
                places.entry(party).or_insert(place);
            }
        }
        if places.len() == before {
            break;
        }
    }
    let is_driver = |party: usize| {
        parties[party].configuration["c_info"]["driver_domain"] == "True"
            || servers.iter().any(|servers| servers.contains(&party))
    };
    let name = |party: usize| parties[party].name.unwrap_or_default().to_owned();
    (0..parties.len())
        .map(|party| match places.get(&party) {
            Some(&place) if is_driver(party) => Service::Driver(place),
            Some(_) => Service::None,
            None => {
                let next =
                    |party: &usize| servers[*party].iter().find(|server| !places.contains_key(server)).copied();
                let mut way = Vec::new();
                let mut at = Some(party);
                while let Some(party) = at {
                    let was_there = way.contains(&party);
                    way.push(party);
                    at = next(&party).filter(|_| !was_there);
                }
                Service::Circle(way.into_iter().map(name).collect())
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_device_has_a_backend() {
        let configuration = json!({
            "c_info": {"name": "web"},
            "disks": [{"vdev": "xvda", "backend_domname": "store"}, {"vdev": "xvdb"}, {"backend_domname": "Domain-0"}],
            "nics": [{"backend_domname": "net"}, {"backend_domname": "0"}, {"backend_domid": 0}],
            "p9s": [{"backend_domname": "store"}],
            "vtpms": [{"backend_domid": 7}],
            "vkbs": [{"backend_domname": "9", "backend_domid": 3}],
        });
        use Backend::{Name, Number};
        assert_eq!(backends(&configuration), [Name("net"), Name("store"), Number(7), Number(9)]);
        assert_eq!(backends(&Value::Null), []);
    }

    fn found(parties: &[(&str, Value)]) -> Vec<Service> {
        let party = |(name, configuration)| Party { name: Some(name), domid: None, configuration };
        services(&parties.iter().map(|(name, configuration)| party((name, configuration))).collect::<Vec<_>>())
    }

    fn disk_of(name: &str) -> Value {
        json!({"disks": [{"backend_domname": name}]})
    }

    #[test]
    fn who_serves_comes_before_those_it_serves() {
        let services = found(&[
            ("web", json!({"nics": [{"backend_domname": "net"}], "disks": [{"backend_domname": "store"}]})),
            ("net", disk_of("store")),
            ("idle", json!({"c_info": {"driver_domain": "True"}})),
            ("store", json!({})),
            ("other", disk_of("elsewhere")),
        ]);
        use Service::{Driver, None};
        assert_eq!(services, [None, Driver(1), Driver(0), Driver(0), None]);
    }

    #[test]
    fn a_circle_is_only_that_of_its_clients() {
        let circle = |names: &[&str]| Service::Circle(names.iter().map(|&name| name.to_owned()).collect());
        let services = found(&[
            ("a", disk_of("b")),
            ("b", disk_of("a")),
            ("web", disk_of("a")),
            ("self", disk_of("self")),
            ("store", json!({})),
            ("db", disk_of("store")),
        ]);
        let expected = [
            circle(&["a", "b", "a"]),
            circle(&["b", "a", "b"]),
            circle(&["web", "a", "b", "a"]),
            circle(&["self", "self"]),
            Service::Driver(0),
            Service::None,
        ];
        assert_eq!(services, expected);
    }
}
