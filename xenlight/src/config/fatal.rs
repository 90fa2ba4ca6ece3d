//! Configurations that would end the process inside libxl.
//!
//! libxl asserts that some values fit together, and ends the process when memory can't be had: on data alone, which
//! also comes out of saved images. The rules here are those of its sources from 4.14 to 4.22: the JSON readers that it
//! generates, its readers of lists and bitmaps, its writers, and what the creation of a domain does with the values.

use std::collections::BTreeMap;

use serde_json::Value;
use xenlight_sys::Release;

use super::{Step, pointer};

/// Levels of nesting: those that json-c reads. libxl's own structures have ten.
const LEVELS: usize = 32;

/// The longest text, in bytes. libxl takes several allocations for each value, searches all of them at each new one,
/// and asserts that they are not too many.
const LENGTH: usize = 2 << 20;

/// Bits of a bitmap, which libxl allocates up to the highest that is named: more than any release has processors,
/// virtual processors or NUMA nodes.
const BITS: u64 = 1 << 16;

/// The registers of a CPUID policy. libxl prints 32 characters of each, without looking for an end.
const REGISTERS: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

/// The answer to one question: where the value is, and why it can't be given to libxl.
type Answer = Result<(), String>;

/// Checks a configuration for this release.
pub(super) fn check(config: &Value, release: Release) -> Answer {
    everywhere(config, &mut Vec::new())?;
    let (create, build) = (&config["c_info"], &config["b_info"]);
    kinds(create, build, release)?;
    processors(build)?;
    cpuid(build)?;
    given(config, "disks", "vdev")?;
    given(config, "dtdevs", "path")
}

/// Checks the length of a configuration's text.
pub(super) fn check_length(text: &str) -> Answer {
    if text.len() <= LENGTH { Ok(()) } else { Err(format!("it is longer than {} MiB", LENGTH >> 20)) }
}

/// Checks what holds for every value, wherever it is.
fn everywhere(value: &Value, path: &mut Vec<Step>) -> Answer {
    let refuse = |path: &[Step], why: &str| Err(format!("{}: {why}", pointer(path)));
    if path.len() > LEVELS {
        return refuse(path, &format!("more than {LEVELS} levels of nesting"));
    }
    match value {
        // Texts end at it in libxl, so that two names can become one.
        Value::String(text) if text.contains('\0') => refuse(path, "it contains a NUL character"),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                path.push(Step::Index(index));
                everywhere(item, path)?;
                path.pop();
            }
            Ok(())
        }
        Value::Object(members) => {
            let mut chosen = BTreeMap::new();
            for (key, member) in members {
                path.push(Step::Key(key.clone()));
                if key.contains('\0') {
                    return refuse(path, "its name contains a NUL character");
                }
                // The members of a union, like "type.hvm" and "type.pv": libxl asserts that it is chosen once.
                if let (Some((union, _)), Value::Object(_)) = (key.split_once('.'), member) {
                    if let Some(other) = chosen.insert(union, key) {
                        return refuse(path, &format!("it excludes {other}, which is there too"));
                    }
                }
                everywhere(member, path)?;
                path.pop();
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Checks the kinds of the domain and of its device model.
fn kinds(create: &Value, build: &Value, release: Release) -> Answer {
    // libxl asserts on defaults that it has set for the one kind and looks at for the other. It stops in time if a
    // domain is built as nothing, but not if it is created as nothing.
    let created = create["type"].as_str().unwrap_or("invalid");
    for (key, _) in build.as_object().into_iter().flatten().filter(|(_, value)| value.is_object()) {
        let built = key.strip_prefix("type.").filter(|built| *built != "invalid");
        if built.is_some_and(|built| !built.eq_ignore_ascii_case(created)) {
            return Err(format!("/b_info/{key}: /c_info/type is {created}"));
        }
    }
    // It still has the name, and aborts on it.
    let traditional =
        build["device_model_version"].as_str().is_some_and(|v| v.eq_ignore_ascii_case("qemu_xen_traditional"));
    if traditional && build["type.hvm"].is_object() && release >= Release::new(4, 21) {
        return Err(format!("/b_info/device_model_version: Xen {release} no longer has qemu_xen_traditional"));
    }
    Ok(())
}

/// Checks the number of virtual processors and all bitmaps.
fn processors(build: &Value) -> Answer {
    let count = &build["max_vcpus"];
    if count.is_number() && count.as_u64().is_none_or(|count| count > BITS) {
        return Err(format!("/b_info/max_vcpus: it must be from 0 to {BITS}"));
    }
    for name in ["avail_vcpus", "cpumap", "nodemap"] {
        bitmap(&build[name], &format!("/b_info/{name}"), BITS)?;
    }
    // libxl makes it a list with one for each processor, which it frees, and keeps it.
    if items(&build["cpumap"]).len() > 0 && items(&build["vcpu_hard_affinity"]).len() == 0 {
        return Err("/b_info/cpumap: only vcpu_hard_affinity can be used".to_owned());
    }
    for name in ["vcpu_hard_affinity", "vcpu_soft_affinity"] {
        for (index, map) in items(&build[name]).enumerate() {
            bitmap(map, &format!("/b_info/{name}/{index}"), BITS)?;
        }
    }
    for name in ["viridian_enable", "viridian_disable"] {
        bitmap(&build["type.hvm"][name], &format!("/b_info/type.hvm/{name}"), BITS)?;
    }
    let nodes = items(&build["vnuma_nodes"]).len();
    for (index, node) in items(&build["vnuma_nodes"]).enumerate() {
        let node_pointer = format!("/b_info/vnuma_nodes/{index}");
        // libxl writes them to an array that is as long as there are processors, at least one.
        let processors = count.as_u64().unwrap_or_default().max(1);
        bitmap(&node["vcpus"], &format!("{node_pointer}/vcpus"), processors)?;
        if items(&node["distances"]).len() != nodes {
            return Err(format!("{node_pointer}: it must have {nodes} distances, one to each node"));
        }
    }
    Ok(())
}

fn bitmap(map: &Value, map_pointer: &str, bits: u64) -> Answer {
    match items(map).position(|bit| bit.as_u64().is_none_or(|bit| bit >= bits)) {
        None => Ok(()),
        Some(index) => Err(format!("{map_pointer}/{index}: it must be a number from 0 to {}", bits - 1)),
    }
}

/// Checks the CPUID policy: a list, since Xen 4.18 an object with that list.
fn cpuid(build: &Value) -> Answer {
    let whole = &build["cpuid"];
    let (leaves, list_pointer) =
        if whole.is_object() { (&whole["cpuid"], "/b_info/cpuid/cpuid") } else { (whole, "/b_info/cpuid") };
    for (index, leaf) in items(leaves).enumerate().filter(|(_, leaf)| leaf.is_object()) {
        // libxl ends the list at a leaf of 0xffffffff, or without number, and forgets the rest of it. What it has
        // written itself with json-c has negative numbers.
        let number = leaf["leaf"].as_i64().filter(|n| *n != -1 && *n >= i32::MIN.into() && *n < u32::MAX.into());
        if number.is_none() {
            return Err(format!("{list_pointer}/{index}/leaf: there must be a number of 32 bits, not all set"));
        }
        for register in REGISTERS {
            if leaf[register].as_str().is_some_and(|bits| bits.len() != 32 || !bits.is_ascii()) {
                return Err(format!(
                    "{list_pointer}/{index}/{register}: it must have 32 characters, one for each bit"
                ));
            }
        }
    }
    Ok(())
}

/// Checks that each device of a list has a text that libxl reads without looking whether it is there.
fn given(config: &Value, list: &str, name: &str) -> Answer {
    match items(&config[list]).position(|device| !device[name].is_string()) {
        None => Ok(()),
        Some(index) => Err(format!("/{list}/{index}/{name}: it must be given, as text")),
    }
}

/// The items of an array; none of anything else.
fn items(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NEWEST: Release = Release::new(4, 22);

    fn refused(config: &Value) -> String {
        check(config, NEWEST).expect_err("refused")
    }

    #[test]
    fn a_union_is_chosen_once() {
        let both = json!({"b_info": {"type.pv": {}, "type.hvm": {}}});
        assert!(refused(&both).starts_with("/b_info/type.pv: it excludes type.hvm"), "{}", refused(&both));
        let channel =
            json!({"channels": [{"connection.pty": {}}, {"connection.pty": {}, "connection.socket": {}}]});
        assert!(refused(&channel).starts_with("/channels/1/connection.socket: "), "{}", refused(&channel));
        // libxl takes a member of another type for no member.
        check(&json!({"c_info": {"type": "pv"}, "b_info": {"type.pv": {}, "type.hvm": 1}}), NEWEST).expect("one");
        // A name that becomes another one at its NUL.
        let hidden = json!({"b_info": {"type.pv\0": {}, "type.hvm": {}}});
        assert!(refused(&hidden).contains("NUL"), "{}", refused(&hidden));
    }

    #[test]
    fn the_domain_is_created_as_it_is_built() {
        let config = |create: Value, build: &str| json!({"c_info": {"type": create}, "b_info": {build: {}}});
        check(&config(json!("PV"), "type.pv"), NEWEST).expect("the same");
        check(&config(json!("pv"), "type.invalid"), NEWEST).expect("libxl refuses it");
        assert_eq!(refused(&config(json!("hvm"), "type.pv")), "/b_info/type.pv: /c_info/type is hvm");
        assert_eq!(refused(&config(Value::Null, "type.pvh")), "/b_info/type.pvh: /c_info/type is invalid");
    }

    #[test]
    fn bitmaps_are_small_and_hold_no_negative_numbers() {
        for wrong in
            [json!(-100), json!(-1), json!(BITS), json!(i32::MAX), json!(u64::MAX), json!("1"), json!([0])]
        {
            for (config, pointer) in [
                (json!({"b_info": {"avail_vcpus": [0, wrong]}}), "/b_info/avail_vcpus/1"),
                (json!({"b_info": {"cpumap": [wrong, 0]}}), "/b_info/cpumap/0"),
                (json!({"b_info": {"nodemap": [wrong]}}), "/b_info/nodemap/0"),
                (json!({"b_info": {"vcpu_hard_affinity": [[0], [wrong]]}}), "/b_info/vcpu_hard_affinity/1/0"),
                (json!({"b_info": {"vcpu_soft_affinity": [[wrong]]}}), "/b_info/vcpu_soft_affinity/0/0"),
                (
                    json!({"c_info": {"type": "hvm"}, "b_info": {"type.hvm": {"viridian_enable": [wrong]}}}),
                    "/b_info/type.hvm/viridian_enable/0",
                ),
                (
                    json!({"c_info": {"type": "hvm"}, "b_info": {"type.hvm": {"viridian_disable": [wrong]}}}),
                    "/b_info/type.hvm/viridian_disable/0",
                ),
                (
                    json!({"b_info": {"vnuma_nodes": [{"vcpus": [wrong], "distances": [10]}]}}),
                    "/b_info/vnuma_nodes/0/vcpus/0",
                ),
            ] {
                assert!(refused(&config).starts_with(&format!("{pointer}: ")), "{}", refused(&config));
            }
        }
        let fine = json!({"b_info": {"avail_vcpus": [0, BITS - 1], "cpumap": [], "nodemap": "x"}});
        assert!(refused(&json!({"b_info": {"cpumap": [0]}})).starts_with("/b_info/cpumap: "));
        check(&fine, NEWEST).expect("in bounds");
    }

    #[test]
    fn a_domain_has_no_more_processors_than_a_bitmap() {
        for wrong in [json!(-1), json!(BITS + 1), json!(i32::MAX)] {
            let config = json!({"b_info": {"max_vcpus": wrong, "cpumap": [0]}});
            assert!(refused(&config).starts_with("/b_info/max_vcpus: "), "{}", refused(&config));
        }
        check(&json!({"b_info": {"max_vcpus": 0}}), NEWEST).expect("libxl makes it one");
    }

    #[test]
    fn virtual_nodes_have_the_domain_s_processors_and_all_distances() {
        let config = |vcpus: Value, distances: Value| {
            json!({"b_info": {"max_vcpus": 2, "vnuma_nodes": [
                {"vcpus": vcpus, "distances": distances},
                {"vcpus": [1], "distances": [20, 10]},
            ]}})
        };
        check(&config(json!([0]), json!([10, 20])), NEWEST).expect("two nodes");
        assert!(refused(&config(json!([0, 2]), json!([10, 20]))).starts_with("/b_info/vnuma_nodes/0/vcpus/1: "));
        assert!(refused(&config(json!([0]), json!([10]))).starts_with("/b_info/vnuma_nodes/0: "));
        assert!(refused(&config(json!([0]), Value::Null)).starts_with("/b_info/vnuma_nodes/0: "));
    }

    #[test]
    fn cpuid_policies_are_complete() {
        let bits = "x".repeat(32);
        for list in [
            |leaf: Value| json!({"b_info": {"cpuid": [leaf]}}),
            |leaf: Value| json!({"b_info": {"cpuid": {"cpuid": [leaf], "msr": []}}}),
        ] {
            check(&list(json!({"leaf": 1, "eax": bits})), NEWEST).expect("complete");
            check(&list(json!({"leaf": 0x8000_0001_u32, "edx": bits})), NEWEST).expect("complete");
            check(&list(json!({"leaf": i32::MIN, "edx": bits})), NEWEST).expect("as json-c writes it");
            for register in REGISTERS {
                for wrong in ["", "x", &"x".repeat(31), &"x".repeat(33), &"é".repeat(16)] {
                    let why = refused(&list(json!({"leaf": 1, register: wrong})));
                    assert!(why.contains(&format!("/0/{register}: ")), "{why}");
                }
            }
            for leaf in [Value::Null, json!(-1), json!(u32::MAX), json!(1_u64 << 32), json!(i64::MIN), json!("1")]
            {
                let why = refused(&list(json!({"leaf": leaf, "eax": bits})));
                assert!(why.contains("/0/leaf: "), "{why}");
            }
        }
    }

    #[test]
    fn devices_have_what_libxl_reads_unseen() {
        check(&json!({"disks": [{"vdev": "xvda"}], "dtdevs": [{"path": "/x"}]}), NEWEST).expect("all there");
        for (config, why) in [
            (json!({"disks": [{"vdev": "xvda"}, {}]}), "/disks/1/vdev: "),
            (json!({"disks": [5]}), "/disks/0/vdev: "),
            (json!({"dtdevs": [{"path": null}]}), "/dtdevs/0/path: "),
        ] {
            assert!(refused(&config).starts_with(why), "{}", refused(&config));
        }
    }

    #[test]
    fn the_traditional_device_model_ends_with_4_21() {
        let config = json!({"c_info": {"type": "hvm"},
            "b_info": {"type.hvm": {}, "device_model_version": "QEMU_XEN_TRADITIONAL"}});
        check(&config, Release::new(4, 20)).expect("it has it");
        assert!(refused(&config).starts_with("/b_info/device_model_version: "));
    }

    #[test]
    fn nesting_and_length_have_an_end() {
        let mut deep = json!(0);
        for _ in 0..LEVELS + 1 {
            deep = json!([deep]);
        }
        assert!(refused(&json!({"deep": deep})).contains("levels"), "{}", refused(&json!({"deep": deep})));
        assert!(refused(&json!({"c_info": {"name": "a\0b"}})).starts_with("/c_info/name: "));
        check_length("{}").expect("short");
        check_length(&" ".repeat(LENGTH + 1)).expect_err("long");
    }
}
