//! Domain configurations: what libxl's JSON parser keeps, drops and refuses, and what its writer prints.
//!
//! A configuration is kept as the JSON object of everything in it that is not at its default. That is enough, because
//! callers never see the struct: they only pass it around and convert it.

use crate::abi::MEMKB_DEFAULT;
use crate::fatal;
use crate::runtime::refuse;
use serde_json::{Map, Value, json};

/// The type of one configuration field.
enum Kind {
    Text,
    /// An integer with its default.
    Int(i128),
    /// An integer of 64 bits, or the number of a domain.
    Wide(i128),
    Bool,
    DefBool,
    /// An enumeration: all names, and the one that is the default.
    Enum(&'static [&'static str], &'static str),
    Uuid,
    Mac,
    /// An array of numbers.
    Bitmap,
    Texts,
    /// An object of strings.
    Pairs,
    /// An array, of anything, kept as it is.
    Raw,
    List(&'static Kind),
    Struct(&'static [Field]),
}

type Field = (&'static str, Kind);

use Kind::{Bitmap, Bool, DefBool, Enum, Int, List, Mac, Pairs, Raw, Struct, Text, Texts, Uuid, Wide};

const NO_GRANTS: i128 = u32::MAX as i128;
const MEMKB: Kind = Wide(MEMKB_DEFAULT as i128);
const ACTION: Kind = Enum(
    &["destroy", "restart", "restart_rename", "preserve", "coredump_destroy", "coredump_restart", "soft_reset"],
    "destroy",
);
const TYPE: Kind = Enum(&["invalid", "hvm", "pv", "pvh"], "invalid");
const RDM_POLICY: Kind = Enum(&["invalid", "strict", "relaxed"], "invalid");
const TIMER_MODE: Kind = Enum(
    &[
        "default",
        "unknown",
        "delay_for_missed_ticks",
        "no_delay_for_missed_ticks",
        "no_missed_ticks_pending",
        "one_missed_tick_pending",
    ],
    "default",
);

const CREATE: &[Field] = &[
    ("type", TYPE),
    ("hap", DefBool),
    ("oos", DefBool),
    ("ssidref", Int(0)),
    ("ssid_label", Text),
    ("name", Text),
    ("domid", Wide(0)),
    ("uuid", Uuid),
    ("xsdata", Pairs),
    ("platformdata", Pairs),
    ("poolid", Int(0)),
    ("pool_name", Text),
    ("run_hotplug_scripts", DefBool),
    ("driver_domain", DefBool),
    ("passthrough", Enum(&["default", "disabled", "enabled", "sync_pt", "share_pt"], "default")),
    ("xend_suspend_evtchn_compat", DefBool),
];

const SCHEDULER: Kind = Enum(&["unknown", "sedf", "credit", "credit2", "arinc653", "rtds", "null"], "unknown");

const SCHED: &[Field] = &[
    ("sched", SCHEDULER),
    ("weight", Int(-1)),
    ("cap", Int(-1)),
    ("period", Int(-1)),
    ("budget", Int(-1)),
    ("extratime", Int(-1)),
    ("slice", Int(-1)),
    ("latency", Int(-1)),
];

const VNC: &[Field] =
    &[("enable", DefBool), ("listen", Text), ("passwd", Text), ("display", Int(0)), ("findunused", DefBool)];

const SDL: &[Field] = &[("enable", DefBool), ("opengl", DefBool), ("display", Text), ("xauthority", Text)];

const HVM: &[Field] = &[
    ("firmware", Text),
    ("bios", Enum(&["unknown", "rombios", "seabios", "ovmf"], "unknown")),
    ("pae", DefBool),
    ("apic", DefBool),
    ("acpi", DefBool),
    ("acpi_s3", DefBool),
    ("acpi_s4", DefBool),
    ("acpi_laptop_slate", DefBool),
    ("nx", DefBool),
    ("viridian", DefBool),
    ("viridian_enable", Bitmap),
    ("viridian_disable", Bitmap),
    ("timeoffset", Text),
    ("hpet", DefBool),
    ("vpt_align", DefBool),
    ("mmio_hole_memkb", MEMKB),
    ("altp2m", DefBool),
    ("system_firmware", Text),
    ("smbios_firmware", Text),
    ("smbios", Raw),
    ("acpi_firmware", Text),
    ("hdtype", Enum(&["ide", "ahci"], "ide")),
    ("nographic", DefBool),
    ("vga", Struct(&[("kind", Enum(&["unknown", "cirrus", "std", "none", "qxl"], "unknown"))])),
    ("vnc", Struct(VNC)),
    ("keymap", Text),
    ("sdl", Struct(SDL)),
    (
        "spice",
        Struct(&[
            ("enable", DefBool),
            ("port", Int(0)),
            ("tls_port", Int(0)),
            ("host", Text),
            ("disable_ticketing", DefBool),
            ("passwd", Text),
            ("agent_mouse", DefBool),
            ("vdagent", DefBool),
            ("clipboard_sharing", DefBool),
            ("usbredirection", Int(0)),
            ("image_compression", Text),
            ("streaming_video", Text),
        ]),
    ),
    ("gfx_passthru", DefBool),
    ("gfx_passthru_kind", Enum(&["default", "igd"], "default")),
    ("serial", Text),
    ("boot", Text),
    ("usb", DefBool),
    ("usbversion", Int(0)),
    ("usbdevice", Text),
    ("vkb_device", DefBool),
    ("soundhw", Text),
    ("xen_platform_pci", DefBool),
    ("usbdevice_list", Texts),
    ("vendor_device", Enum(&["none", "xenserver"], "none")),
    ("ms_vm_genid", Raw),
    ("serial_list", Texts),
    ("rdm", Struct(&[("strategy", Enum(&["ignore", "host"], "ignore")), ("policy", RDM_POLICY)])),
    ("rdm_mem_boundary_memkb", MEMKB),
    ("mca_caps", Int(0)),
    ("pirq", DefBool),
];

const PV: &[Field] = &[("slack_memkb", MEMKB), ("e820_host", DefBool)];

const PVH: &[Field] =
    &[("pvshim", DefBool), ("pvshim_path", Text), ("pvshim_cmdline", Text), ("pvshim_extra", Text)];

const BUILD: &[Field] = &[
    ("max_vcpus", Int(0)),
    ("avail_vcpus", Bitmap),
    ("cpumap", Bitmap),
    ("nodemap", Bitmap),
    ("vcpu_hard_affinity", List(&Bitmap)),
    ("vcpu_soft_affinity", List(&Bitmap)),
    ("numa_placement", DefBool),
    ("tsc_mode", Enum(&["default", "always_emulate", "native", "native_paravirt"], "default")),
    ("max_memkb", MEMKB),
    ("target_memkb", MEMKB),
    ("video_memkb", MEMKB),
    ("shadow_memkb", MEMKB),
    ("iommu_memkb", MEMKB),
    ("rtc_timeoffset", Int(0)),
    ("exec_ssidref", Int(0)),
    ("exec_ssid_label", Text),
    ("localtime", DefBool),
    ("disable_migrate", DefBool),
    ("cpuid", Raw),
    ("blkdev_start", Text),
    ("vnuma_nodes", Raw),
    ("max_grant_frames", Int(NO_GRANTS)),
    ("max_maptrack_frames", Int(NO_GRANTS)),
    ("max_grant_version", Int(-1)),
    ("device_model_version", Enum(&["unknown", "qemu_xen_traditional", "qemu_xen"], "unknown")),
    ("device_model_stubdomain", DefBool),
    ("stubdomain_memkb", MEMKB),
    ("stubdomain_kernel", Text),
    ("stubdomain_cmdline", Text),
    ("stubdomain_ramdisk", Text),
    ("device_model", Text),
    ("device_model_ssidref", Int(0)),
    ("device_model_ssid_label", Text),
    ("device_model_user", Text),
    ("extra", Texts),
    ("extra_pv", Texts),
    ("extra_hvm", Texts),
    ("sched_params", Struct(SCHED)),
    ("ioports", Raw),
    ("irqs", Bitmap),
    ("iomem", Raw),
    ("llc_colors", Bitmap),
    ("claim_mode", DefBool),
    ("event_channels", Int(0)),
    ("kernel", Text),
    ("cmdline", Text),
    ("ramdisk", Text),
    ("device_tree", Text),
    ("acpi", DefBool),
    ("bootloader", Text),
    ("bootloader_args", Texts),
    ("bootloader_restrict", DefBool),
    ("bootloader_user", Text),
    ("timer_mode", TIMER_MODE),
    ("nested_hvm", DefBool),
    ("apic", DefBool),
    ("dm_restrict", DefBool),
    ("tee", Enum(&["none", "optee", "ffa"], "none")),
    (
        "arch_arm",
        Struct(&[
            ("gic_version", Enum(&["default", "v2", "v3"], "default")),
            ("vuart", Enum(&["unknown", "sbsa_uart"], "unknown")),
        ]),
    ),
    ("arch_x86", Struct(&[("msr_relaxed", DefBool)])),
    ("altp2m", Enum(&["disabled", "mixed", "external", "limited"], "disabled")),
    ("vmtrace_buf_kb", Int(0)),
    ("vpmu", DefBool),
];

/// The keys of the guest type's union inside `b_info`, in the order in which libxl looks for them.
const UNION: &[(&str, &[Field])] = &[("type.hvm", HVM), ("type.pv", PV), ("type.pvh", PVH), ("type.invalid", &[])];

const DISK: &[Field] = &[
    ("backend_domid", Wide(0)),
    ("backend_domname", Text),
    ("pdev_path", Text),
    ("vdev", Text),
    ("backend", Enum(&["unknown", "phy", "tap", "qdisk", "standalone"], "unknown")),
    ("format", Enum(&["unknown", "qcow", "qcow2", "vhd", "raw", "empty", "qed"], "unknown")),
    ("script", Text),
    ("removable", Int(0)),
    ("readwrite", Int(0)),
    ("is_cdrom", Int(0)),
    ("direct_io_safe", Bool),
    ("discard_enable", DefBool),
    ("specification", Enum(&["unknown", "xen", "virtio"], "unknown")),
    ("transport", Enum(&["unknown", "mmio"], "unknown")),
    ("irq", Int(0)),
    ("base", Wide(0)),
    ("trusted", DefBool),
    ("grant_usage", DefBool),
];

const NIC: &[Field] = &[
    ("backend_domid", Wide(0)),
    ("backend_domname", Text),
    ("devid", Int(-1)),
    ("mtu", Int(0)),
    ("vlan", Text),
    ("model", Text),
    ("mac", Mac),
    ("ip", Text),
    ("bridge", Text),
    ("ifname", Text),
    ("script", Text),
    ("nictype", Enum(&["unknown", "vif_ioemu", "vif"], "unknown")),
    ("rate_bytes_per_interval", Wide(0)),
    ("rate_interval_usecs", Int(0)),
    ("gatewaydev", Text),
    ("trusted", DefBool),
];

const PCI: &[Field] = &[
    ("func", Int(0)),
    ("dev", Int(0)),
    ("bus", Int(0)),
    ("domain", Int(0)),
    ("vdevfn", Int(0)),
    ("vfunc_mask", Int(0)),
    ("msitranslate", Bool),
    ("power_mgmt", Bool),
    ("permissive", Bool),
    ("seize", Bool),
    ("rdm_policy", RDM_POLICY),
    ("name", Text),
];

const VFB: &[Field] = &[
    ("backend_domid", Wide(0)),
    ("backend_domname", Text),
    ("devid", Int(-1)),
    ("vnc", Struct(VNC)),
    ("sdl", Struct(SDL)),
    ("keymap", Text),
];

const VKB: &[Field] = &[
    ("backend_domid", Wide(0)),
    ("backend_domname", Text),
    ("devid", Int(-1)),
    ("backend_type", Enum(&["unknown", "qemu", "linux"], "unknown")),
    ("unique_id", Text),
    ("feature_disable_keyboard", Bool),
    ("feature_disable_pointer", Bool),
    ("feature_abs_pointer", Bool),
    ("feature_raw_pointer", Bool),
    ("feature_multi_touch", Bool),
    ("width", Int(0)),
    ("height", Int(0)),
    ("multi_touch_width", Int(0)),
    ("multi_touch_height", Int(0)),
    ("multi_touch_num_contacts", Int(0)),
];

const VTPM: &[Field] =
    &[("backend_domid", Wide(0)), ("backend_domname", Text), ("devid", Int(-1)), ("uuid", Uuid)];

const P9: &[Field] = &[
    ("backend_domid", Wide(0)),
    ("backend_domname", Text),
    ("tag", Text),
    ("path", Text),
    ("security_model", Text),
    ("devid", Int(-1)),
    ("type", Enum(&["unknown", "qemu", "xen_9pfsd"], "unknown")),
    ("max_space", Wide(0)),
    ("max_files", Int(0)),
    ("max_open_files", Int(0)),
    ("auto_delete", Bool),
];

const USBCTRL: &[Field] = &[
    ("type", Enum(&["auto", "pv", "devicemodel", "qusb"], "auto")),
    ("devid", Int(-1)),
    ("version", Int(0)),
    ("ports", Int(0)),
    ("backend_domid", Wide(0)),
    ("backend_domname", Text),
];

const CONFIG: &[Field] = &[
    ("c_info", Struct(CREATE)),
    ("b_info", Struct(BUILD)),
    ("disks", List(&Struct(DISK))),
    ("nics", List(&Struct(NIC))),
    ("pcidevs", List(&Struct(PCI))),
    ("rdms", List(&Struct(&[("start", Wide(0)), ("size", Wide(0)), ("policy", RDM_POLICY)]))),
    ("dtdevs", List(&Struct(&[("path", Text)]))),
    ("vfbs", List(&Struct(VFB))),
    ("vkbs", List(&Struct(VKB))),
    ("virtios", Raw),
    ("vtpms", List(&Struct(VTPM))),
    ("p9s", List(&Struct(P9))),
    ("pvcallsifs", Raw),
    ("vdispls", Raw),
    ("vsnds", Raw),
    ("channels", Raw),
    ("usbctrls", List(&Struct(USBCTRL))),
    ("usbdevs", Raw),
    ("on_poweroff", ACTION),
    ("on_reboot", ACTION),
    ("on_watchdog", ACTION),
    ("on_crash", ACTION),
    ("on_soft_reset", ACTION),
];

/// A value that makes libxl give up the whole configuration.
#[derive(Debug)]
pub struct Bad(pub String);

/// What libxl would have in its struct after parsing `text` into a fresh one.
pub fn parse(text: &str) -> Result<Value, Bad> {
    let value: Value = serde_json::from_str(text).map_err(|e| Bad(format!("not JSON: {e}")))?;
    let value = fatal::as_c(&value);
    if let Some(why) = fatal::reading(&value) {
        refuse(&format!("a configuration that ends the process: {why}"));
        return Err(Bad(why));
    }
    let Some(object) = value.as_object() else {
        return Ok(json!({}));
    };
    let mut config = parse_struct(CONFIG, object)?;
    if let Some(build) = object.get("b_info").and_then(Value::as_object) {
        for (key, fields) in UNION {
            if let Some(member) = build.get(*key).and_then(Value::as_object) {
                let member = parse_struct(fields, member)?;
                config
                    .entry("b_info")
                    .or_insert_with(|| json!({}))
                    .as_object_mut()
                    .expect("only objects are stored as structs")
                    .insert((*key).to_owned(), Value::Object(member));
                break;
            }
        }
    }
    Ok(Value::Object(config))
}

fn parse_struct(fields: &[Field], object: &Map<String, Value>) -> Result<Map<String, Value>, Bad> {
    let mut out = Map::new();
    for (name, kind) in fields {
        if let Some(value) = object.get(*name) {
            if let Some(kept) = parse_value(name, kind, value)? {
                out.insert((*name).to_owned(), kept);
            }
        }
    }
    Ok(out)
}

/// The value to keep; none for what libxl skips and for defaults.
fn parse_value(name: &str, kind: &Kind, value: &Value) -> Result<Option<Value>, Bad> {
    let kept = match kind {
        Text => value.as_str().map(|s| json!(s)),
        Int(default) | Wide(default) => {
            let number = value.as_i64().map(i128::from).or(value.as_u64().map(i128::from));
            number.filter(|n| n != default).map(|_| value.clone())
        }
        Bool => value.as_bool().filter(|&b| b).map(|b| json!(b)),
        DefBool => match value.as_str() {
            None => None,
            Some(s) if s.starts_with("<default>") => None,
            Some(s) if s.starts_with("True") => Some(json!("True")),
            Some(s) if s.starts_with("False") => Some(json!("False")),
            Some(s) => return Err(Bad(format!("{name}: {s:?} is no defbool"))),
        },
        Enum(names, default) => match value.as_str() {
            None => None,
            Some(s) => match names.iter().find(|n| n.eq_ignore_ascii_case(s)) {
                None => return Err(Bad(format!("{name}: no such value: {s:?}"))),
                Some(known) => Some(*known).filter(|k| k != default).map(|k| json!(k)),
            },
        },
        Uuid => match value.as_str() {
            None => None,
            Some(s) => {
                let id = uuid::Uuid::parse_str(s).map_err(|_| Bad(format!("{name}: {s:?} is no UUID")))?;
                (!id.is_nil()).then(|| json!(id.to_string()))
            }
        },
        Mac => match value.as_str() {
            None => None,
            Some(s) => {
                let bytes: Vec<_> = s.split(':').map(|b| u8::from_str_radix(b, 16)).collect();
                if bytes.len() != 6 || bytes.iter().any(Result::is_err) {
                    return Err(Bad(format!("{name}: {s:?} is no MAC address")));
                }
                Some(json!(s.to_lowercase()))
            }
        },
        Bitmap => value.as_array().filter(|a| !a.is_empty() && a.iter().all(Value::is_u64)).map(|_| value.clone()),
        Texts => {
            value.as_array().filter(|a| !a.is_empty() && a.iter().all(Value::is_string)).map(|_| value.clone())
        }
        Pairs => value.as_object().filter(|o| !o.is_empty()).map(|_| value.clone()),
        Raw => (value.is_array() || value.is_object()).then(|| value.clone()),
        List(of) => match value.as_array() {
            None => None,
            Some(array) => {
                let mut out = Vec::new();
                for element in array {
                    // An element of the wrong type is an element at its defaults.
                    out.push(parse_value(name, of, element)?.unwrap_or_else(|| match of {
                        Struct(_) => json!({}),
                        _ => json!([]),
                    }));
                }
                (!out.is_empty()).then_some(Value::Array(out))
            }
        },
        Struct(fields) => match value.as_object() {
            None => None,
            Some(object) => Some(Value::Object(parse_struct(fields, object)?)),
        },
    };
    Ok(kept)
}

/// As libxl prints it: defaults left out, but every struct present.
pub fn print(config: &Value, minor: u32) -> String {
    let empty = Map::new();
    let object = config.as_object().unwrap_or(&empty);
    let signed = minor > 20;
    let mut out = complete(CONFIG, object, signed);
    if let Some(build) = out.get_mut("b_info").and_then(Value::as_object_mut) {
        let given = object.get("b_info").and_then(Value::as_object).unwrap_or(&empty);
        let (key, fields) = UNION.iter().find(|(key, _)| given.contains_key(*key)).unwrap_or(&UNION[3]);
        let member = given.get(*key).and_then(Value::as_object).unwrap_or(&empty);
        build.insert((*key).to_owned(), Value::Object(complete(fields, member, signed)));
    }
    // Since 4.21 it is json-c that writes.
    let indent: &[u8] = if minor > 20 { b"  " } else { b"    " };
    let mut text = Vec::new();
    let mut writer =
        serde_json::Serializer::with_formatter(&mut text, serde_json::ser::PrettyFormatter::with_indent(indent));
    serde::Serialize::serialize(&Value::Object(out), &mut writer).expect("a JSON value always prints");
    let mut text = String::from_utf8(text).expect("JSON is UTF-8");
    if minor > 20 {
        // Slashes are in texts only.
        return text.replace('/', "\\/");
    }
    text.push('\n');
    text
}

fn complete(fields: &[Field], object: &Map<String, Value>, signed: bool) -> Map<String, Value> {
    let empty = Map::new();
    let mut out = Map::new();
    for (name, kind) in fields {
        match (kind, object.get(*name)) {
            (Struct(inner), value) => {
                let value = value.and_then(Value::as_object).unwrap_or(&empty);
                out.insert((*name).to_owned(), Value::Object(complete(inner, value, signed)));
            }
            (List(Struct(inner)), Some(Value::Array(elements))) => {
                let elements = elements
                    .iter()
                    .map(|e| Value::Object(complete(inner, e.as_object().unwrap_or(&empty), signed)))
                    .collect();
                out.insert((*name).to_owned(), Value::Array(elements));
            }
            (Int(_) | Bitmap | Raw, Some(value)) if signed && *name != "iomem" => {
                out.insert((*name).to_owned(), with_sign(value));
            }
            (_, Some(value)) => {
                out.insert((*name).to_owned(), value.clone());
            }
            (_, None) => {}
        }
    }
    out
}

/// Numbers as libxl gives them to json-c: as an `int`, also those that have no sign.
fn with_sign(value: &Value) -> Value {
    match value {
        Value::Number(number) => {
            let number = number.as_u64().and_then(|n| u32::try_from(n).ok());
            number.map_or_else(|| value.clone(), |n| json!(i32::from_ne_bytes(n.to_ne_bytes())))
        }
        Value::Array(items) => Value::Array(items.iter().map(with_sign).collect()),
        Value::Object(members) => {
            Value::Object(members.iter().map(|(key, value)| (key.clone(), with_sign(value))).collect())
        }
        _ => value.clone(),
    }
}

/// Something in `section` of a configuration.
pub fn get<'a>(config: &'a Value, section: &str, key: &str) -> Option<&'a Value> {
    config.get(section)?.get(key)
}

/// Sets something in `section`; none removes it.
pub fn set(config: &mut Value, section: &str, key: &str, value: Option<Value>) {
    if !config.is_object() {
        *config = json!({});
    }
    let section = &mut config[section];
    if !section.is_object() {
        *section = json!({});
    }
    let object = section.as_object_mut().expect("made an object above");
    match value {
        Some(value) => object.insert(key.to_owned(), value),
        None => object.remove(key),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgives_what_libxl_forgives() {
        let config = parse(r#"{"c_info":{"name":5,"nmae":"x","type":"PVH"},"b_info":{"max_vcpus":"2"},"x":1}"#)
            .expect("nothing here is an error to libxl");
        assert_eq!(config, json!({"c_info": {"type": "pvh"}, "b_info": {}}));
    }

    #[test]
    fn refuses_unknown_names_and_bad_text() {
        for text in [
            r#"{"c_info":{"type":"pvx"}}"#,
            r#"{"on_crash":"rename-restart"}"#,
            r#"{"c_info":{"hap":"yes"}}"#,
            r#"{"c_info":{"#,
        ] {
            parse(text).expect_err(text);
        }
    }

    #[test]
    fn prints_structs_but_no_defaults() {
        let config = parse(r#"{"c_info":{"type":"hvm","uuid":"00000000-0000-0000-0000-000000000000"},"b_info":{"type.hvm":{}},"on_crash":"destroy","on_reboot":"restart","disks":[{}],"nics":[]}"#)
            .expect("valid");
        let printed: Value = serde_json::from_str(&print(&config, 17)).expect("prints JSON");
        assert_eq!(printed["c_info"], json!({"type": "hvm"}));
        assert_eq!(printed["b_info"]["type.hvm"]["vnc"], json!({}));
        assert_eq!(printed["b_info"]["arch_x86"], json!({}));
        assert_eq!(printed["on_reboot"], "restart");
        assert_eq!(printed["disks"], json!([{}]));
        assert!(printed.get("on_crash").is_none() && printed.get("nics").is_none());
    }

    #[test]
    fn prints_as_json_c_does_since_4_21() {
        let config = parse(
            r#"{"c_info":{"domid":4294967294},"b_info":{"rtc_timeoffset":4294963696,"target_memkb":4294963696,
                "kernel":"/k","cpuid":{"cpuid":[{"leaf":2147483649}],"msr":[]}}}"#,
        )
        .expect("valid");
        for (minor, clock, leaf) in
            [(20, json!(4_294_963_696_u32), json!(2_147_483_649_u32)), (21, json!(-3600), json!(-2_147_483_647))]
        {
            let text = print(&config, minor);
            let printed: Value = serde_json::from_str(&text).expect("prints JSON");
            assert_eq!(printed["c_info"]["domid"], 4_294_967_294_u32);
            assert_eq!(printed["b_info"]["target_memkb"], 4_294_963_696_u32);
            assert_eq!(printed["b_info"]["rtc_timeoffset"], clock);
            assert_eq!(printed["b_info"]["cpuid"]["cpuid"][0]["leaf"], leaf);
            assert_eq!((text.contains("\\/k"), text.ends_with('\n')), (minor > 20, minor < 21));
        }
    }
}
