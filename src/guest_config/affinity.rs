//! Which physical CPUs a guest's virtual CPUs may run on: `cpus`, `cpus_soft` and the masks of xl.conf.

use serde_json::{Map, Value, json};

use super::cpu_set::{self, CpuSet};
use super::mapping::Mapping;
use super::rules::VCPU_LIMIT;
use super::table::{Field, Place};
use super::xen_host::XenHost;
use super::xl_conf::Mask;
use super::{Diagnostic, Error, defbool, syntax};

/// The field of the CPUs that a virtual CPU must run on.
const HARD: &str = "vcpu_hard_affinity";

/// Says that a value was read for CPUs that may not be those of the guest's host.
pub(super) const NOT_XENS_CPUS: &str = "Xen can't be asked; the CPUs of this machine are taken for the host's";

/// `cpus`: where the virtual CPUs must run.
pub(super) fn cpus(m: &mut Mapping<'_>) -> Result<(), Error> {
    affinity(m, "cpus", HARD)
}

/// `cpus_soft`: where they had best run.
pub(super) fn cpus_soft(m: &mut Mapping<'_>) -> Result<(), Error> {
    affinity(m, "cpus_soft", "vcpu_soft_affinity")
}

/// A string is for all virtual CPUs, the items of a list are for one each.
fn affinity(m: &mut Mapping<'_>, key: &'static str, field: &'static str) -> Result<(), Error> {
    let count = vcpu_count(m.get(Field(Place::Build, "max_vcpus")));
    let mut sets = Vec::new();
    let placed;
    if let Some(syntax::Value::List(_)) = m.keys.value(key) {
        let texts = m.keys.texts(key)?.unwrap_or_default();
        if texts.len() > count {
            m.keys.warn(key, format_args!("there are only {count} virtual CPUs; the other items are ignored"));
        }
        for text in texts.iter().take(count) {
            sets.push(json!(set(m, key, text)?));
        }
        placed = true;
    } else if let Some(text) = m.keys.text(key)? {
        let set = json!(set(m, key, &text)?);
        if count == 0 {
            m.keys.warn(key, "it is ignored, because neither vcpus nor maxvcpus is given");
        }
        sets = vec![set; count];
        placed = field != HARD;
    } else {
        return Ok(());
    }
    if !sets.is_empty() {
        m.put(Field(Place::Build, field), sets);
    }
    if placed {
        m.put(Field(Place::Build, "numa_placement"), defbool(false));
    }
    Ok(())
}

/// How many virtual CPUs the guest has, by libxl's field for it.
fn vcpu_count(field: Option<&Value>) -> usize {
    let count = field.and_then(Value::as_u64).unwrap_or(0).min(VCPU_LIMIT.unsigned_abs());
    usize::try_from(count).unwrap_or(0)
}

fn set(m: &mut Mapping<'_>, key: &str, text: &str) -> Result<CpuSet, Error> {
    let (mut set, mut warnings) = (CpuSet::new(), Vec::new());
    let cpus = m.host.cpus.as_ref();
    cpu_set::add(&mut set, text, cpus, &mut warnings).map_err(|why| m.keys.error(key, why))?;
    if cpus.is_some_and(|cpus| !cpus.from_xen) {
        m.keys.warn(key, NOT_XENS_CPUS);
    }
    for warning in warnings {
        m.keys.warn(key, warning);
    }
    Ok(set)
}

/// Takes the CPUs that xl.conf keeps from guests of this type out of the guest's.
pub(super) fn masks(m: &mut Mapping<'_>) -> Result<(), Error> {
    apply_masks(m.host, &mut m.root).map_err(|error| match error {
        MaskError::Mask(error) => error,
        empty @ MaskError::Empty(_) => m.keys.error("cpus", empty.to_string()),
    })
}

/// Why a guest can't be kept to the CPUs of xl.conf.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// Nothing is left for a virtual CPU.
    #[error("there is no CPU that virtual CPU {0} may run on")]
    Empty(usize),
    /// A mask can't be read without the host's CPUs.
    #[error(transparent)]
    Mask(Error),
}

/// Applies the masks of xl.conf to a configuration in libxl's JSON.
pub(super) fn apply_masks(host: &XenHost, config: &mut Map<String, Value>) -> Result<(), MaskError> {
    let pv = config.get("c_info").is_some_and(|info| info["type"] == "pv");
    let mut allowed: Option<CpuSet> = None;
    for mask in host.xl_conf.masks.iter().filter(|mask| mask.applies_to(pv)) {
        let Some(set) = mask_set(host, mask, &mut Vec::new()).map_err(MaskError::Mask)? else { continue };
        allowed = Some(match allowed {
            Some(allowed) => &allowed & &set,
            None => set,
        });
    }
    let Some(build) = config.get_mut("b_info").and_then(Value::as_object_mut) else { return Ok(()) };
    if let (Some(allowed), false) = (&allowed, build.contains_key(HARD)) {
        let count = vcpu_count(build.get("max_vcpus"));
        if count > 0 {
            build.insert(HARD.to_owned(), json!(vec![allowed; count]));
        }
    }
    let room = cpu_set::room(host.cpus.as_ref());
    let stays = |cpu: &Value| {
        let cpu = cpu.as_u64().and_then(|cpu| u32::try_from(cpu).ok()).filter(|&cpu| cpu < room);
        cpu.is_some_and(|cpu| allowed.as_ref().is_none_or(|allowed| allowed.contains(&cpu)))
    };
    let sets = build.get_mut(HARD).and_then(Value::as_array_mut).into_iter().flatten();
    for (vcpu, set) in sets.filter_map(Value::as_array_mut).enumerate() {
        set.retain(stays);
        if set.is_empty() {
            return Err(MaskError::Empty(vcpu));
        }
    }
    Ok(())
}

/// What is odd about the masks of xl.conf.
pub(super) fn mask_warnings(host: &XenHost) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for mask in &host.xl_conf.masks {
        // That a mask can't be read at all is an error of each guest.
        let _ = mask_set(host, mask, &mut warnings);
    }
    warnings
}

/// The CPUs of a mask; `None` when they are all there are. Of a mask that is wrong somewhere, what stands before counts.
fn mask_set(host: &XenHost, mask: &Mask, warnings: &mut Vec<Diagnostic>) -> Result<Option<CpuSet>, Error> {
    if mask.text == "all" {
        return Ok(None);
    }
    let (path, cpus) = (&host.xl_conf.path, host.cpus.as_ref());
    let (mut set, mut odd) = (CpuSet::new(), Vec::new());
    match (cpu_set::add(&mut set, &mask.text, cpus, &mut odd), cpus) {
        (Err(message), None) => {
            return Err(Error::Key { path: path.clone(), line: mask.line, key: mask.key.to_owned(), message });
        }
        (Err(why), Some(_)) => odd.push(format!("{why}; only what stands before it counts")),
        (Ok(()), _) => {}
    }
    warnings.extend(odd.into_iter().map(|what| Diagnostic {
        path: path.clone(),
        line: Some(mask.line),
        message: format!("{}: {what}", mask.key),
    }));
    Ok(if cpus.is_some_and(|cpus| set == cpu_set::all(cpus)) { None } else { Some(set) })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Cpus, GuestConfig, XlConf};
    use super::*;

    fn host(xl_conf: &str) -> XenHost {
        let nodes = vec![(0..4).collect(), (4..6).collect()];
        let xl_conf = XlConf::parse(Path::new("xl.conf"), xl_conf.as_bytes()).expect("valid");
        XenHost { cpus: Some(Cpus { count: 6, online: 6, nodes, from_xen: true }), ..XenHost::of(xl_conf) }
    }

    fn read(more: &str, host: &XenHost) -> Result<(Value, Vec<String>), String> {
        let source = format!("name='g'; kernel='/k'\n{more}\n");
        let guest = GuestConfig::parse(Path::new("t.cfg"), source.as_bytes(), host).map_err(|e| e.to_string())?;
        Ok((guest.json["b_info"].clone(), guest.warnings.iter().map(ToString::to_string).collect()))
    }

    /// The CPUs of each virtual CPU, and whether libxl is kept from placing the guest.
    fn sets(more: &str, field: &str, host: &XenHost) -> (Value, bool) {
        let (build, warnings) = read(more, host).expect(more);
        assert_eq!(warnings, Vec::<String>::new(), "{more}");
        (build[field].clone(), build["numa_placement"] == "False")
    }

    #[test]
    fn cpus_of_the_file() {
        let host = host("");
        for (value, expected, hard, soft) in [
            ("'0-1'", json!([[0, 1], [0, 1]]), false, true),
            ("5", json!([[5], [5]]), false, true),
            ("'node:1'", json!([[4, 5], [4, 5]]), false, true),
            ("'all,^0-5'", json!([[6, 7], [6, 7]]), false, true),
            ("['0', '2,3']", json!([[0], [2, 3]]), true, true),
            ("['1']", json!([[1]]), true, true),
            ("[]", Value::Null, true, true),
        ] {
            let file = |key: &str| format!("vcpus=2; {key}={value}");
            assert_eq!(sets(&file("cpus"), HARD, &host), (expected.clone(), hard), "{value}");
            assert_eq!(sets(&file("cpus_soft"), "vcpu_soft_affinity", &host), (expected, soft), "{value}");
        }
        let without = "vcpus=1; cpus_soft=''";
        assert_eq!(sets(without, "vcpu_soft_affinity", &host), (json!([[]]), true));
    }

    #[test]
    fn what_is_passed_over() {
        for (more, words) in [
            ("vcpus=1; cpus=['0','x']", "cpus: there are only 1 virtual CPUs"),
            ("vcpus=1; cpus='3-6'", "cpus: in `3-6`: the host has no CPU 6"),
            ("vcpus=1; cpus='0,node:2'", "the host has no NUMA node 2"),
        ] {
            let (_, warnings) = read(more, &host("")).expect(more);
            assert!(warnings.len() == 1 && warnings[0].contains(words), "{more}: {warnings:?}");
        }
        let mut host = host("");
        host.cpus.as_mut().expect("set").from_xen = false;
        let (build, warnings) = read("vcpus=1; cpus='1'", &host).expect("valid");
        assert_eq!(build[HARD], json!([[1]]));
        assert!(warnings.len() == 1 && warnings[0].contains("the CPUs of this machine"), "{warnings:?}");
        // xl of 4.22 always has a virtual CPU to give them to.
        assert_eq!(read("cpus='1'", &host).expect("valid").0[HARD], json!([[1]]));
        let (build, warnings) = read("cpus='1'", &XenHost { release: 21, ..host }).expect("valid");
        assert!(build[HARD].is_null());
        let words = "cpus: it is ignored, because neither vcpus nor maxvcpus is given";
        assert!(warnings.iter().any(|warning| warning.contains(words)), "{warnings:?}");
    }

    #[test]
    fn mistakes() {
        for (more, words) in [
            ("cpus='x'", "t.cfg:2: cpus: in `x`: not a number"),
            ("vcpus=1; cpus=['0',['1']]", "item 2 of the list is a list"),
            ("vcpus=1; cpus=''", "cpus: there is no CPU that virtual CPU 0 may run on"),
            ("vcpus=2; cpus=['1','1,^1']", "there is no CPU that virtual CPU 1 may run on"),
            ("cpus_soft='^all'", "cpus_soft: in `^all`"),
        ] {
            let error = read(more, &host("")).expect_err(more);
            assert!(error.contains(words), "{more}: {error}");
        }
    }

    #[test]
    fn masks_of_the_host() {
        for (conf, more, expected) in [
            ("vm.cpumask='all'", "vcpus=1", Value::Null),
            ("vm.cpumask='0-7'", "vcpus=1", Value::Null),
            ("vm.cpumask='0-2'", "vcpus=2", json!([[0, 1, 2], [0, 1, 2]])),
            ("vm.cpumask='0-2'", "vcpus=0", json!([[0, 1, 2]])),
            ("vm.pv.cpumask='0-2'", "vcpus=2; cpus=['0-5']", json!([[0, 1, 2]])),
            ("vm.pv.cpumask='0-2'\nvm.cpumask='node:0,^0'", "vcpus=1", json!([[1, 2]])),
            ("vm.hvm.cpumask='0-2'", "vcpus=1", Value::Null),
            ("vm.hvm.cpumask='0-2'", "vcpus=1; type='pvh'", json!([[0, 1, 2]])),
            ("vm.hvm.cpumask='0-2'", "vcpus=1; type='hvm'", json!([[0, 1, 2]])),
        ] {
            assert_eq!(sets(more, HARD, &host(conf)).0, expected, "{conf}: {more}");
        }
        let before = XenHost { release: 21, ..host("vm.cpumask='0-2'") };
        assert_eq!(sets("vcpus=0", HARD, &before).0, Value::Null);
        let left = read("vcpus=1; cpus='3'", &host("vm.cpumask='0-2'"));
        assert!(left.is_err_and(|error| error.contains("t.cfg:2: cpus: there is no CPU that virtual CPU 0")));
        let none = read("vcpus=1", &host("vm.cpumask='x'"));
        assert_eq!(none.unwrap_err(), "t.cfg: cpus: there is no CPU that virtual CPU 0 may run on");
    }

    #[test]
    fn masks_that_are_wrong_somewhere() {
        let conf = host("\nvm.cpumask='0-1,x'\nvm.pv.cpumask='0-9'");
        let shown: Vec<_> = conf.warnings().iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        assert!(
            shown[0].starts_with("xl.conf:2: vm.cpumask: in `x`: not a number; ") && shown[0].contains("before")
        );
        assert!(shown[1].starts_with("xl.conf:3: vm.pv.cpumask: in `0-9`: the host has no CPU 9"), "{shown:?}");
        assert_eq!(sets("vcpus=1", HARD, &conf).0, json!([[0, 1]]));
        // Without the host's CPUs numbers can be used, nodes can't.
        let unknown = XenHost { cpus: None, ..conf };
        assert!(read("vcpus=1", &unknown).is_err_and(|error| error.starts_with("xl.conf:2: vm.cpumask: in `x`")));
        let unknown = XenHost { cpus: None, ..host("vm.cpumask='0-1'") };
        assert_eq!(sets("vcpus=1", HARD, &unknown).0, json!([[0, 1]]));
        let unknown = XenHost { cpus: None, ..host("vm.cpumask='node:0'") };
        assert!(read("vcpus=1", &unknown).is_err_and(|error| error.contains("CPUs are not known")));
    }

    #[test]
    fn what_a_host_does_to_a_guest_that_is_restored() {
        let host = host("vm.hvm.cpumask='0-2'\ndomid_policy='random'");
        let mut config = json!({ "c_info": { "type": "hvm" }, "b_info": { "max_vcpus": 1 } });
        host.before_creation(&mut config).expect("possible");
        assert_eq!(config["b_info"][HARD], json!([[0, 1, 2]]));
        assert_eq!(config["c_info"]["domid"], 4_294_967_294_u32);
        let mut config = json!({ "c_info": { "type": "pv" }, "b_info": { HARD: [[0, 99], [99]] } });
        let error = host.before_creation(&mut config).expect_err("nothing is left");
        assert_eq!(error.to_string(), "there is no CPU that virtual CPU 1 may run on");
        let mut config = json!({});
        XenHost::default().before_creation(&mut config).expect("possible");
        assert_eq!(config, json!({}));
    }
}
