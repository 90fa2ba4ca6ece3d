//! `vnuma`: the NUMA nodes that a guest sees.
//!
//! ```text
//! [ [ "pnode=NODE", "size=MIB", "vcpus=CPUS", "vdistances=DISTANCE,…" ], … ]      CPUS: numbers and ranges, as 0-2,5
//! ```

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::affinity::NOT_XENS_CPUS;
use super::mapping::Mapping;
use super::rules::{VCPU_LIMIT, mebibytes};
use super::table::{Field, Place};
use super::{Error, cpu_set, defbool, scan, syntax};

const KEY: &str = "vnuma";

/// A node.
#[derive(Default)]
struct Node {
    pnode: Option<u32>,
    kib: Option<i64>,
    vcpus: BTreeSet<u64>,
    distances: Vec<u32>,
}

/// What the nodes have together.
#[derive(Default)]
struct Sum {
    vcpus: u64,
    kib: i64,
}

/// `vnuma`
pub(super) fn vnuma(m: &mut Mapping<'_>) -> Result<(), Error> {
    let Some(items) = m.keys.list(KEY).filter(|items| !items.is_empty()) else { return Ok(()) };
    let (mut nodes, mut places, mut sum) = (Vec::new(), Vec::new(), Sum::default());
    for (i, item) in items.iter().enumerate() {
        let syntax::Value::List(options) = item else {
            return Err(m.keys.error(KEY, format!("node {i}: a list is expected")));
        };
        let mut node = Node::default();
        for option in options {
            let syntax::Value::Text(bytes) = option else {
                m.keys.warn(KEY, format_args!("node {i}: a list inside of it is ignored"));
                continue;
            };
            let text = String::from_utf8_lossy(bytes);
            let wrong = |why| m.keys.error(KEY, format!("node {i}: in `{text}`: {why}"));
            let (name, value) = split(&text, m.host.release).map_err(wrong)?;
            if !node.set(name, value, items.len(), &mut sum).map_err(wrong)? {
                let accepted = "accepted: pnode=, size=, vcpus=, vdistances=";
                m.keys.warn(KEY, format_args!("node {i}: `{text}` is not known and ignored; {accepted}"));
            }
            // Each one counts, also if another one follows.
            places.extend(node.pnode);
        }
        nodes.push(node);
    }
    check_places(m, &places)?;
    let vcpus = check_vcpus(m, &nodes, &sum)?;
    match mebibytes(m.keys, "maxmem")? {
        Some(limit) if limit != sum.kib => {
            let (nodes, limit) = (sum.kib / 1024, limit / 1024);
            return Err(m.keys.error(KEY, format!("its nodes have {nodes} MiB together, but maxmem is {limit}")));
        }
        _ => m.put(Field(Place::Build, "max_memkb"), sum.kib),
    }
    if vcpus > 0 {
        m.put(Field(Place::Build, "max_vcpus"), vcpus);
    }
    if nodes.iter().any(|node| node.pnode.is_some()) {
        m.put(Field(Place::Build, "numa_placement"), defbool(false));
    }
    let count = nodes.len();
    let nodes: Vec<_> = nodes.into_iter().map(|node| node.json(count)).collect();
    m.put(Field(Place::Build, "vnuma_nodes"), nodes);
    Ok(())
}

/// Each node must lie in one that the host has.
fn check_places(m: &mut Mapping<'_>, places: &[u32]) -> Result<(), Error> {
    let Some(cpus) = &m.host.cpus else { return Ok(()) };
    if !cpus.from_xen {
        m.keys.warn(KEY, NOT_XENS_CPUS);
    }
    match places.iter().find(|&&pnode| pnode as usize >= cpus.nodes.len()) {
        None => Ok(()),
        Some(pnode) => Err(m.keys.error(KEY, format!("the host has no NUMA node {pnode}"))),
    }
}

/// How many virtual CPUs the nodes have, which must be as many as the guest.
fn check_vcpus(m: &mut Mapping<'_>, nodes: &[Node], sum: &Sum) -> Result<u64, Error> {
    let wrong = |why: String| Err(m.keys.error(KEY, why));
    let limit = m.keys.strict_number("maxvcpus", 0..=VCPU_LIMIT).ok().flatten().filter(|&limit| limit > 0);
    let room = match (limit, &m.host.cpus) {
        (Some(limit), _) if limit.unsigned_abs() != sum.vcpus => {
            return wrong(format!("its nodes have {} virtual CPUs together, but maxvcpus is {limit}", sum.vcpus));
        }
        (None, Some(cpus)) if u64::from(cpus.online) < sum.vcpus => {
            let (vcpus, online) = (sum.vcpus, cpus.online);
            return wrong(format!(
                "its nodes have {vcpus} virtual CPUs together, but the host has {online} CPUs; give maxvcpus if it is meant"
            ));
        }
        (Some(limit), _) => limit.unsigned_abs(),
        (None, Some(cpus)) => cpus.count.into(),
        (None, None) => VCPU_LIMIT.unsigned_abs(),
    };
    if let Some(vcpu) = nodes.iter().flat_map(|node| &node.vcpus).find(|&&vcpu| vcpu >= room.next_multiple_of(8)) {
        return wrong(format!("there is no virtual CPU {vcpu}"));
    }
    let given = m.keys.strict_number("vcpus", 0..=VCPU_LIMIT).ok().flatten().unwrap_or(0).unsigned_abs();
    if sum.vcpus > 0 && sum.vcpus < given {
        return wrong(format!("its nodes have {} virtual CPUs together, but vcpus is {given}", sum.vcpus));
    }
    Ok(sum.vcpus)
}

/// The name and the value of an option. Up to Xen 4.17 any number of `=` stands between them, and the value ends at the
/// next one.
fn split(text: &str, release: u32) -> Result<(&str, &str), String> {
    const EXPECTED: &str = "a name, `=` and a value are expected";
    let pair = if release < 18 {
        let mut parts = text.split('=').filter(|part| !part.is_empty());
        parts.next().zip(parts.next())
    } else {
        text.split_once('=')
    };
    let (name, value) = pair.ok_or(EXPECTED)?;
    let (name, value) = (name.trim_matches(scan::is_blank), value.trim_matches(scan::is_blank));
    if value.is_empty() { Err(EXPECTED.to_owned()) } else { Ok((name, value)) }
}

impl Node {
    /// Takes an option; says whether it is known.
    fn set(&mut self, name: &str, value: &str, nodes: usize, sum: &mut Sum) -> Result<bool, String> {
        let number = |text: &str| -> Result<u32, String> {
            let number = scan::whole_number(text, 10)?;
            u32::try_from(number).map_err(|_| scan::TOO_BIG.to_owned())
        };
        match name {
            "pnode" => self.pnode = Some(number(value)?),
            "size" => {
                let kib = i64::from(number(value)?) * 1024;
                self.kib = Some(kib);
                sum.kib += kib;
            }
            "vcpus" => {
                for range in value.split(',').filter(|range| !range.is_empty()) {
                    let (first, last) = cpu_set::range(range)?;
                    if last >= VCPU_LIMIT.unsigned_abs() {
                        return Err(format!("there is no virtual CPU {last} in any guest"));
                    }
                    sum.vcpus += last - first + 1;
                    self.vcpus.extend(first..=last);
                }
            }
            "vdistances" => {
                let distances = value.split(',').filter(|distance| !distance.is_empty()).map(number);
                let distances = distances.collect::<Result<Vec<_>, _>>()?;
                if distances.len() > nodes {
                    return Err(format!("there are only {nodes} nodes"));
                }
                for (place, distance) in distances.into_iter().enumerate() {
                    self.distances.resize(self.distances.len().max(place + 1), 0);
                    self.distances[place] = distance;
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn json(mut self, nodes: usize) -> Value {
        let mut node = Map::new();
        if let Some(kib) = self.kib {
            node.insert("memkb".to_owned(), kib.into());
        }
        self.distances.resize(nodes, 0);
        node.insert("distances".to_owned(), json!(self.distances));
        if let Some(pnode) = self.pnode.filter(|&pnode| pnode != 0) {
            node.insert("pnode".to_owned(), pnode.into());
        }
        if !self.vcpus.is_empty() {
            node.insert("vcpus".to_owned(), json!(self.vcpus));
        }
        Value::Object(node)
    }
}
