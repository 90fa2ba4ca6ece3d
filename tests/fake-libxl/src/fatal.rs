//! The configurations on which libxl does not return: assertions, memory that can't be had, memory that is not its own.

use serde_json::{Map, Value};

/// The unions: a list or struct with such members, and what their names begin with.
const UNIONS: [(&str, &str); 2] = [("/b_info", "type."), ("/channels", "connection.")];

/// A document as libxl's parser sees it: texts and names end at a NUL, and of members with one name it looks at the
/// first.
pub fn as_c(value: &Value) -> Value {
    let until_nul = |text: &str| text.split('\0').next().unwrap_or_default().to_owned();
    match value {
        Value::String(text) => Value::String(until_nul(text)),
        Value::Array(items) => Value::Array(items.iter().map(as_c).collect()),
        Value::Object(members) => {
            let mut seen = Map::new();
            for (name, member) in members {
                seen.entry(until_nul(name)).or_insert_with(|| as_c(member));
            }
            Value::Object(seen)
        }
        other => other.clone(),
    }
}

/// Why libxl does not return from reading this document.
pub fn reading(document: &Value) -> Option<String> {
    for (place, prefix) in UNIONS {
        let place = document.pointer(place).unwrap_or(&Value::Null);
        for holder in std::iter::once(place).chain(items(place)) {
            let members = holder.as_object().into_iter().flatten();
            let chosen = members.filter(|(name, member)| name.starts_with(prefix) && member.is_object());
            // The union of that name is chosen, and none is as good as no choice.
            if chosen.filter(|(name, _)| *name != "connection.unknown").count() > 1 {
                return Some(format!("assertion: a union with the key {prefix} is chosen twice"));
            }
        }
    }
    let build = &document["b_info"];
    let mut bitmaps = vec![&build["avail_vcpus"], &build["cpumap"], &build["nodemap"]];
    bitmaps.extend(["viridian_enable", "viridian_disable"].map(|name| &build["type.hvm"][name]));
    bitmaps.extend(items(&build["vcpu_hard_affinity"]).chain(items(&build["vcpu_soft_affinity"])));
    bitmaps.extend(items(&build["vnuma_nodes"]).map(|node| &node["vcpus"]));
    // As many bits as its last number says, in a C int; memory for a negative number of bytes can't be had.
    let bytes = |bitmap: &Value| {
        let last = items(bitmap).last()?.as_i64()?;
        #[allow(clippy::cast_possible_truncation, reason = "as in C")]
        let bits = (last as i32).wrapping_add(1);
        Some(bits.wrapping_add(7) / 8)
    };
    bitmaps
        .iter()
        .filter_map(|bitmap| bytes(bitmap))
        .find(|bytes| *bytes < 0)
        .map(|bytes| format!("allocation of {bytes} bytes for a bitmap"))
}

/// Why libxl does not return from writing this configuration, or not with what is in it.
pub fn writing(config: &Value) -> Option<String> {
    let policy = &config["b_info"]["cpuid"];
    let leaves = items(policy).chain(items(&policy["cpuid"]));
    let mut registers = leaves.flat_map(|leaf| ["eax", "ebx", "ecx", "edx"].map(|register| &leaf[register]));
    let short = registers.find(|bits| bits.as_str().is_some_and(|bits| bits.len() < 32))?;
    Some(format!("it reads 32 characters of the CPUID register {short}"))
}

/// Why libxl does not survive the filling in of defaults.
pub fn filling_in(config: &Value) -> Option<String> {
    let build = &config["b_info"];
    let created = config["c_info"]["type"].as_str().unwrap_or("invalid");
    if build["type.pv"].is_object() && created != "pv" {
        return Some(format!("assertion: nested_hvm has no default, for a PV domain is created as {created}"));
    }
    if items(&build["cpumap"]).next().is_some() && items(&build["vcpu_hard_affinity"]).next().is_none() {
        return Some("a list made of cpumap is freed twice".to_owned());
    }
    None
}

/// Why libxl does not survive the creation of this domain.
pub fn creating(config: &Value) -> Option<String> {
    if let Some(why) = filling_in(config) {
        return Some(why);
    }
    if items(&config["disks"]).any(|disk| !disk["vdev"].is_string()) {
        return Some("it compares the name of a disk's device, which is NULL".to_owned());
    }
    let nodes = &config["b_info"]["vnuma_nodes"];
    let distances = |node: &Value| items(&node["distances"]).count();
    if items(nodes).any(|node| distances(node) != items(nodes).count()) {
        return Some("assertion: a virtual node has a distance to each".to_owned());
    }
    None
}

fn items(value: &Value) -> std::slice::Iter<'_, Value> {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn libxl_does_not_return_from_what_it_asserts_or_can_not_allocate() {
        for document in [
            json!({"b_info": {"type.pv": {}, "type.hvm": {}}}),
            json!({"b_info": {"type.pv": {}, "type.hvm\0": {}}}),
            json!({"channels": [{}, {"connection.pty": {}, "connection.socket": {}}]}),
            json!({"b_info": {"avail_vcpus": [-100]}}),
            json!({"b_info": {"nodemap": [0, i32::MAX]}}),
            json!({"b_info": {"vcpu_soft_affinity": [[0], [-16]]}}),
        ] {
            assert!(reading(&as_c(&document)).is_some(), "{document}");
        }
        for document in [
            json!({"b_info": {"type.pv": {}, "type.hvm": 1}}),
            json!({"channels": [{"connection.unknown": {}, "connection.pty": {}}, {"connection.socket": {}}]}),
            json!({"b_info": {"avail_vcpus": [-100, 3]}}),
        ] {
            assert_eq!(reading(&as_c(&document)), None, "{document}");
        }
        assert!(writing(&json!({"b_info": {"cpuid": [{"leaf": 1, "eax": "short"}]}})).is_some());
        assert!(filling_in(&json!({"c_info": {"type": "pvh"}, "b_info": {"type.pv": {}}})).is_some());
        assert!(filling_in(&json!({"b_info": {"cpumap": [0]}})).is_some());
        assert!(creating(&json!({"disks": [{"pdev_path": "/dev/x"}]})).is_some());
        assert!(creating(&json!({"b_info": {"vnuma_nodes": [{"distances": []}]}})).is_some());
    }
}
