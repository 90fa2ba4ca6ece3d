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
    /// Every `pnode`, also one that a later one of its node replaces.
    places: Vec<u32>,
    vcpus: u64,
    kib: i64,
}

/// `vnuma`
pub(super) fn vnuma(m: &mut Mapping<'_>) -> Result<(), Error> {
    let Some(items) = m.keys.list(KEY).filter(|items| !items.is_empty()) else { return Ok(()) };
    let (mut nodes, mut sum) = (Vec::new(), Sum::default());
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
        }
        nodes.push(node);
    }
    check_places(m, &sum.places)?;
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
    if !sum.places.is_empty() {
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
    match places.iter().find(|&&place| place as usize >= cpus.nodes.len()) {
        None => Ok(()),
        Some(place) => Err(m.keys.error(KEY, format!("the host has no NUMA node {place}"))),
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
            "pnode" => {
                let place = number(value)?;
                self.pnode = Some(place);
                sum.places.push(place);
            }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::{Cpus, GuestConfig, XenHost};
    use super::*;

    fn host(release: u32) -> XenHost {
        let nodes = vec![(0..4).collect(), (4..8).collect()];
        XenHost { release, cpus: Some(Cpus { count: 8, online: 8, nodes, from_xen: true }), ..XenHost::default() }
    }

    fn read(more: &str, host: &XenHost) -> Result<(Value, Vec<String>), String> {
        let source = format!("name='g'; kernel='/k'\n{more}\n");
        let guest = GuestConfig::parse(Path::new("t.cfg"), source.as_bytes(), host).map_err(|e| e.to_string())?;
        Ok((guest.json["b_info"].clone(), guest.warnings.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn nodes() {
        let more = "memory=512; vcpus=2\n\
            vnuma=[['pnode=0','size=512','vcpus=0-1,4','vdistances=10,20'], ['vdistances= 20','pnode=1','vcpus= 2 ,3']]";
        assert!(read(more, &host(20)).is_err_and(|error| error.contains("in `vcpus= 2 ,3`: not a number")));
        let (build, warnings) = read(&more.replace("2 ,", "2,"), &host(20)).unwrap();
        let expected = json!([
            { "memkb": 524_288, "distances": [10, 20], "vcpus": [0, 1, 4] },
            { "distances": [20, 0], "pnode": 1, "vcpus": [2, 3] }
        ]);
        assert_eq!(build["vnuma_nodes"], expected);
        assert_eq!((&build["max_vcpus"], &build["avail_vcpus"]), (&json!(5), &json!([0, 1])));
        assert_eq!((&build["max_memkb"], &build["target_memkb"]), (&json!(524_288), &json!(524_288)));
        assert_eq!((&build["numa_placement"], warnings), (&json!("False"), vec![]));
        let (build, _) = read("maxvcpus=1; maxmem=64; vnuma=[['size=64','vcpus=0']]", &host(20)).unwrap();
        assert_eq!(build["vnuma_nodes"], json!([{ "memkb": 65536, "distances": [0], "vcpus": [0] }]));
        assert_eq!((&build["max_vcpus"], &build["max_memkb"]), (&json!(1), &json!(65536)));
        assert_eq!(build["numa_placement"], Value::Null);
        let (build, _) = read("vcpus=3; vnuma=[[]]", &host(20)).unwrap();
        assert_eq!((&build["max_vcpus"], &build["max_memkb"]), (&json!(3), &json!(0)));
        assert_eq!(read("vcpus=3; vnuma=[]", &host(20)).unwrap().0["vnuma_nodes"], Value::Null);
    }

    #[test]
    fn options_by_release() {
        for (release, option, expected) in [
            (17, "size==64", Ok(65536)),
            (17, "=size=64", Ok(65536)),
            (17, "size=64=2", Ok(65536)),
            (17, "size=", Err("a value are expected")),
            (18, "size = 64", Ok(65536)),
            (18, "size==64", Err("not a number")),
            (18, "size=64=2", Err("not a number")),
            (18, "size=", Err("a value are expected")),
        ] {
            let read = read(&format!("vcpus=1; vnuma=[['{option}','vcpus=0']]"), &host(release));
            match (read, expected) {
                (Ok((build, _)), Ok(kib)) => assert_eq!(build["vnuma_nodes"][0]["memkb"], json!(kib), "{option}"),
                (Err(error), Err(words)) => assert!(error.contains(words), "{option}: {error}"),
                (read, _) => panic!("4.{release}: {option}: {read:?}"),
            }
        }
        let (_, warnings) = read("vcpus=1; vnuma=[['vcpus=0','x=1',['y']]]", &host(20)).unwrap();
        assert!(
            warnings.len() == 2 && warnings[0].contains("node 0: `x=1` is not known and ignored"),
            "{warnings:?}"
        );
    }

    #[test]
    fn mistakes() {
        for (more, words) in [
            ("vnuma=['x']", "t.cfg:2: vnuma: node 0: a list is expected"),
            ("vnuma=[['x']]", "in `x`: a name, `=` and a value are expected"),
            ("vnuma=[[],['pnode=2']]", "the host has no NUMA node 2"),
            ("vnuma=[['pnode=9', 'pnode=1']]", "the host has no NUMA node 9"),
            ("vnuma=[['pnode=-1']]", "negative"),
            ("vnuma=[['size=1x']]", "node 0: in `size=1x`: not a number"),
            ("vnuma=[['size=4294967296']]", "too big"),
            ("vnuma=[['vcpus=2-1']]", "lower than the first"),
            ("vnuma=[['vcpus=0-9']]", "10 virtual CPUs together, but the host has 8 CPUs; give maxvcpus"),
            ("vnuma=[['vcpus=8']]", "there is no virtual CPU 8"),
            ("vnuma=[['vcpus=0-99999999']]", "there is no virtual CPU 99999999 in any guest"),
            ("maxvcpus=3; vnuma=[['vcpus=0-1']]", "2 virtual CPUs together, but maxvcpus is 3"),
            ("vcpus=3; vnuma=[['vcpus=0-1']]", "2 virtual CPUs together, but vcpus is 3"),
            ("maxmem=65; vnuma=[['size=64']]", "64 MiB together, but maxmem is 65"),
            ("vnuma=[['vdistances=1,2']]", "there are only 1 nodes"),
        ] {
            let error = read(more, &host(20)).expect_err(more);
            assert!(error.contains(words), "{more}: {error}");
        }
        // Without the host's CPUs it is libxl that finds this.
        let unknown = XenHost { cpus: None, ..host(20) };
        assert!(read("vnuma=[['pnode=5','vcpus=0-99']]", &unknown).is_ok());
    }

    proptest! {
        #[test]
        fn never_panics(
            options in proptest::collection::vec(r"(pnode|size|vcpus|vdistances|x)?=?[0-9,= -]{0,12}", 0..5),
            maxvcpus in proptest::option::of(0..9),
            release in 14_u32..24,
        ) {
            let options: Vec<_> = options.iter().map(|option| format!("'{option}'")).collect();
            let maxvcpus = maxvcpus.map(|count| format!("maxvcpus={count}")).unwrap_or_default();
            let _ = read(&format!("{maxvcpus}\nvnuma=[[{}],['vcpus=0']]", options.join(",")), &host(release));
        }
    }
}
