//! Guests that can't be saved, nor migrated, which takes the same.

use serde_json::Value;

/// Xen can't save guests on Arm.
const ON_ARM: bool = cfg!(any(target_arch = "arm", target_arch = "aarch64"));

/// Says why a guest can't be saved, as far as its configuration (libxl's JSON) tells.
pub(super) fn obstacle(configuration: &Value) -> Option<&'static str> {
    obstacle_on(ON_ARM, configuration)
}

fn obstacle_on(arm: bool, configuration: &Value) -> Option<&'static str> {
    let has_any = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    if arm {
        Some("Xen on Arm saves no guests")
    } else if has_any(&configuration["pcidevs"]) {
        Some("it has PCI devices of this host")
    } else if has_any(&configuration["b_info"]["vnuma_nodes"]) {
        Some("it has virtual NUMA nodes")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pci_devices_virtual_numa_and_arm_forbid_it() {
        for (arm, configuration, word) in [
            (false, json!({"pcidevs": [{"bus": 1}]}), Some("PCI")),
            (false, json!({"b_info": {"vnuma_nodes": [{"memkb": 1024}]}}), Some("NUMA")),
            (true, json!({}), Some("Arm")),
            (false, json!({"pcidevs": [], "b_info": {"vnuma_nodes": []}, "disks": [{}]}), None),
            (false, Value::Null, None),
        ] {
            let found = obstacle_on(arm, &configuration);
            assert_eq!(found.is_some(), word.is_some(), "{configuration}");
            assert!(found.is_none_or(|found| found.contains(word.unwrap_or_default())), "{configuration}");
        }
    }
}
