//! The keys of a guest's file that describe devices. Most of them are lists of items; what an item may say is in a
//! module of its own for each key.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::mapping::{Mapping, Type};
use super::table::{Field, Place};
use super::{Error, channel, defbool, disk, display, items, p9, pci, syntax, usb, vif, virtio, vsnd};

type Done = Result<(), Error>;

/// Reads the item of this number; what xl warns about goes into the last argument.
type Read<'a> = dyn FnMut(&str, usize, &mut Vec<String>) -> Result<Value, String> + 'a;

/// A list of strings, each of which makes a device in this list of libxl.
fn list(m: &mut Mapping<'_>, key: &str, name: &str, read: &mut Read<'_>) -> Done {
    let mut warnings = Vec::new();
    for item in m.keys.texts(key)?.unwrap_or_default() {
        let number = count(m, name);
        let device = read(&item, number, &mut warnings);
        for warning in warnings.drain(..) {
            m.keys.warn(key, format_args!("in `{item}`: {warning}"));
        }
        match device {
            Ok(device) => add(m, name, device),
            Err(why) => return Err(m.keys.error(key, format!("in `{item}`: {why}"))),
        }
    }
    Ok(())
}

/// How many devices a list of libxl has.
fn count(m: &Mapping<'_>, name: &str) -> usize {
    m.root.get(name).and_then(Value::as_array).map_or(0, Vec::len)
}

/// Adds a device to a list of libxl, which its JSON has only when it isn't empty.
fn add(m: &mut Mapping<'_>, name: &str, device: Value) {
    if let Value::Array(devices) = m.root.entry(name).or_insert_with(|| json!([])) {
        devices.push(device);
    }
}

/// `disk`
pub(super) fn disk(m: &mut Mapping<'_>) -> Done {
    let release = m.host.release;
    list(m, "disk", "disks", &mut |item, _, warnings| disk::parse(item, release, warnings))
}

/// `vif`
pub(super) fn vif(m: &mut Mapping<'_>) -> Done {
    let host = m.host;
    list(m, "vif", "nics", &mut |item, number, warnings| vif::parse(item, number, host, warnings))
}

/// `pci`, `rdm` and the defaults for all PCI devices.
pub(super) fn pci(m: &mut Mapping<'_>) -> Done {
    let release = m.host.release;
    let mut defaults = Map::new();
    for (key, field) in [
        ("pci_msitranslate", "msitranslate"),
        ("pci_power_mgmt", "power_mgmt"),
        ("pci_permissive", "permissive"),
        ("pci_seize", "seize"),
    ] {
        let number = m.keys.number_in(key, i64::from(i32::MIN)..=i64::from(i32::MAX))?;
        if number.is_some_and(|number| number != 0) {
            defaults.insert(field.to_owned(), json!(true));
        }
    }
    // What only HVM guests have is zero in the others, and for the policy that means `strict`.
    let mut policy = (m.kind != Type::Hvm).then_some("strict");
    if let Some(text) = m.keys.text("rdm")? {
        let mut warnings = Vec::new();
        let reserve = pci::reserve(&text, release, &mut warnings);
        for warning in warnings {
            m.keys.warn("rdm", warning);
        }
        match reserve {
            Ok(reserve) => {
                policy = reserve.policy.or(policy);
                let mut rdm = Map::new();
                if reserve.all_of_host {
                    rdm.insert("strategy".to_owned(), json!("host"));
                }
                if let Some(policy) = reserve.policy {
                    rdm.insert("policy".to_owned(), json!(policy));
                }
                m.put(Field(Place::Hvm, "rdm"), rdm);
            }
            Err(why) => m.keys.warn("rdm", format_args!("it is ignored: {why}")),
        }
    }
    if let Some(policy) = policy {
        defaults.insert("rdm_policy".to_owned(), json!(policy));
    }
    list(m, "pci", "pcidevs", &mut |item, _, warnings| pci::parse(item, defaults.clone(), release, warnings))?;
    if count(m, "pcidevs") > 0 {
        m.put(Field(Place::Pv, "e820_host"), defbool(true));
    }
    Ok(())
}

/// `dtdev`
pub(super) fn dtdev(m: &mut Mapping<'_>) -> Done {
    list(m, "dtdev", "dtdevs", &mut |item, _, _| Ok(json!({ "path": item })))
}

/// `vtpm`
pub(super) fn vtpm(m: &mut Mapping<'_>) -> Done {
    list(m, "vtpm", "vtpms", &mut |item, number, warnings| {
        let mut device = Map::new();
        device.insert("devid".to_owned(), json!(number));
        for (name, value) in items::pairs_until_a_word(item, warnings) {
            match name {
                "backend" => device.insert("backend_domname".to_owned(), json!(value)),
                "uuid" => {
                    let uuid = Uuid::try_parse(value).ok().filter(|_| value.len() == 36);
                    match uuid.ok_or_else(|| format!("`{value}` is not a UUID"))? {
                        // libxl doesn't print a UUID of zeros: it stands for none.
                        uuid if uuid.is_nil() => device.remove("uuid"),
                        uuid => device.insert("uuid".to_owned(), json!(uuid)),
                    }
                }
                _ => return Err(items::unknown(&format!("{name}={value}"), ["backend", "uuid"])),
            };
        }
        if device.contains_key("backend_domname") {
            Ok(Value::Object(device))
        } else {
            Err("no backend is given".to_owned())
        }
    })
}

/// `p9`
pub(super) fn p9(m: &mut Mapping<'_>) -> Done {
    let release = m.host.release;
    let name = m.get(Field(Place::Create, "name")).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut previous = Map::new();
    list(m, "p9", "p9s", &mut |item, _, warnings| p9::parse(item, &mut previous, &name, release, warnings))
}

/// `vdispl`
pub(super) fn vdispl(m: &mut Mapping<'_>) -> Done {
    let release = m.host.release;
    list(m, "vdispl", "vdispls", &mut |item, number, warnings| display::display(item, number, release, warnings))
}

/// `pvcalls`
pub(super) fn pvcalls(m: &mut Mapping<'_>) -> Done {
    list(m, "pvcalls", "pvcallsifs", &mut |item, number, warnings| {
        let mut device = Map::new();
        device.insert("devid".to_owned(), json!(number));
        for (name, value) in items::pairs_until_a_word(item, warnings) {
            if name != "backend" {
                return Err(items::unknown(&format!("{name}={value}"), ["backend"]));
            }
            device.insert("backend_domname".to_owned(), json!(value));
        }
        Ok(Value::Object(device))
    })
}

/// `vsnd`: a list of lists.
pub(super) fn vsnd(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "vsnd";
    for (number, card) in m.keys.list(KEY).unwrap_or_default().into_iter().enumerate() {
        let syntax::Value::List(items) = card else {
            let message = format!("item {} of the list is a string; a list of strings is expected", number + 1);
            return Err(m.keys.error(KEY, message));
        };
        let items = m.keys.strings(KEY, &format!("card {}", number + 1), items)?;
        let mut warnings = Vec::new();
        let device = vsnd::card(&items, number, &mut warnings);
        for warning in warnings {
            m.keys.warn(KEY, warning);
        }
        let device = device.map_err(|why| m.keys.error(KEY, why))?;
        add(m, "vsnds", device);
    }
    Ok(())
}

/// `channel`
pub(super) fn channel(m: &mut Mapping<'_>) -> Done {
    let release = m.host.release;
    list(m, "channel", "channels", &mut |item, number, warnings| channel::parse(item, number, release, warnings))
}

/// `vfb`: each item makes a frame buffer, and a keyboard that belongs to it.
pub(super) fn vfb(m: &mut Mapping<'_>) -> Done {
    list(m, "vfb", "vfbs", &mut display::frame_buffer)?;
    for number in 0..count(m, "vfbs") {
        add(m, "vkbs", json!({ "devid": number }));
    }
    Ok(())
}

/// `vnc`: for HVM a field. For PV without `vfb` it makes a frame buffer of this and related keys, and a keyboard.
pub(super) fn vnc(m: &mut Mapping<'_>) -> Done {
    if m.kind == Type::Pvh || (m.kind == Type::Pv && count(m, "vfbs") > 0) {
        return Ok(());
    }
    let Some(on) = m.keys.flag("vnc") else { return Ok(()) };
    if m.kind == Type::Hvm {
        m.put(Field(Place::Vnc, "enable"), defbool(on));
    } else if on {
        let device = display::frame_buffer_of_keys(m.keys)?;
        add(m, "vfbs", device);
        add(m, "vkbs", json!({ "devid": 0 }));
    }
    Ok(())
}

/// `usbctrl`
pub(super) fn usbctrl(m: &mut Mapping<'_>) -> Done {
    list(m, "usbctrl", "usbctrls", &mut usb::controller)
}

/// `usbdev`
pub(super) fn usbdev(m: &mut Mapping<'_>) -> Done {
    list(m, "usbdev", "usbdevs", &mut |item, _, warnings| usb::device(item, warnings))
}

/// `vkb`
pub(super) fn vkb(m: &mut Mapping<'_>) -> Done {
    list(m, "vkb", "vkbs", &mut display::keyboard)
}

/// `virtio`
pub(super) fn virtio(m: &mut Mapping<'_>) -> Done {
    list(m, "virtio", "virtios", &mut virtio::parse)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::{GuestConfig, XenHost};
    use super::*;

    fn parse(kind: &str, more: &str, release: u32) -> Result<GuestConfig, String> {
        let host = XenHost { release, ..XenHost::default() };
        let source = format!("name = 'g'\ntype = '{kind}'\nkernel = '/k'\n{more}\n");
        GuestConfig::parse(Path::new("t.cfg"), source.as_bytes(), &host).map_err(|error| error.to_string())
    }

    /// The configuration of a file without a warning.
    fn json(kind: &str, more: &str) -> Value {
        let config = parse(kind, more, 20).unwrap_or_else(|error| panic!("{more}: {error}"));
        assert_eq!(config.warnings, [], "{more}");
        config.json
    }

    #[test]
    fn each_key_makes_its_list() {
        for (key, item, list, device) in [
            (
                "disk",
                "'/x,raw,xvda'",
                "disks",
                json!({ "pdev_path": "/x", "vdev": "xvda", "format": "raw", "readwrite": 1 }),
            ),
            ("vif", "'bridge=b'", "nics", json!({ "devid": 0, "bridge": "b" })),
            ("dtdev", "'/a'", "dtdevs", json!({ "path": "/a" })),
            ("vtpm", "'backend=d'", "vtpms", json!({ "devid": 0, "backend_domname": "d" })),
            (
                "p9",
                "'tag=t,path=/p,security_model=none'",
                "p9s",
                json!({ "tag": "t", "path": "/p", "security_model": "none" }),
            ),
            (
                "vdispl",
                "'connectors=a:1x1'",
                "vdispls",
                json!({ "devid": 0, "connectors": [{ "unique_id": "a", "width": 1, "height": 1 }] }),
            ),
            ("pvcalls", "'backend=d'", "pvcallsifs", json!({ "devid": 0, "backend_domname": "d" })),
            ("vsnd", "[]", "vsnds", json!({ "devid": 0, "params": {} })),
            ("channel", "'connection=pty'", "channels", json!({ "connection.pty": {} })),
            ("vfb", "''", "vfbs", json!({ "devid": 0, "vnc": {}, "sdl": {} })),
            ("usbctrl", "''", "usbctrls", json!({ "devid": 0 })),
            ("usbdev", "''", "usbdevs", json!({ "type.hostdev": {} })),
            ("vkb", "'backend-type=qemu'", "vkbs", json!({ "devid": 0, "backend_type": "qemu" })),
            ("virtio", "''", "virtios", json!({ "devid": 0 })),
        ] {
            for kind in ["pv", "pvh", "hvm"] {
                assert_eq!(json(kind, &format!("{key} = [ {item} ]"))[list], json!([device]), "{key}");
                assert_eq!(json(kind, &format!("{key} = []"))[list], Value::Null, "{key}");
                let more = parse(kind, &format!("{key} = 'x'"), 20).unwrap();
                assert_eq!((&more.json[list], more.warnings.len()), (&Value::Null, 1), "{key}");
            }
        }
    }

    #[test]
    fn errors_and_warnings_name_the_item() {
        let error = parse("pv", "usbctrl = [ '',\n'x' ]", 20).unwrap_err();
        assert_eq!(error, "t.cfg:4: usbctrl: in `x`: `x` is not known; accepted: type, version, ports");
        let error = parse("pv", "vtpm = [ ['x'] ]", 20).unwrap_err();
        assert_eq!(error, "t.cfg:4: vtpm: item 1 of the list is a list; a string is expected");
        let error = parse("pv", "vsnd = [ [], 'card' ]", 20).unwrap_err();
        assert_eq!(error, "t.cfg:4: vsnd: item 2 of the list is a string; a list of strings is expected");
        let error = parse("pv", "vsnd = [ [], ['card', []] ]", 20).unwrap_err();
        assert_eq!(error, "t.cfg:4: vsnd: item 2 of card 2 is a list; a string is expected");
        let error = parse("pv", "vsnd = [ ['card', 'x'] ]", 20).unwrap_err();
        assert_eq!(error, "t.cfg:4: vsnd: in `x`: `x` can't start an item; accepted: card, pcm, stream");
        let warnings = parse("pv", "vfb = [ 'type=vnc' ]", 20).unwrap().warnings;
        assert_eq!(warnings[0].to_string(), "t.cfg:4: vfb: in `type=vnc`: `type=vnc` is not known; it is ignored");
    }

    #[test]
    fn a_frame_buffer_has_a_keyboard() {
        let more = json("hvm", "vfb = [ 'vnc=1', '' ]\nvkb = [ 'backend-type=linux' ]\nvnc = 1");
        assert_eq!(more["vfbs"][1]["devid"], 1);
        assert_eq!(more["vkbs"], json!([{ "devid": 0 }, { "devid": 1 }, { "devid": 2, "backend_type": "linux" }]));
        assert_eq!(more["b_info"]["type.hvm"]["vnc"], json!({ "enable": "True" }));
    }

    #[test]
    fn vnc_of_a_pv_guest() {
        let keys = "vnclisten = '::'\nvncpasswd = 'p'\nvncdisplay = 3\nvncunused = 0\nsdl = 1\nkeymap = 'de'";
        let more = json("pv", &format!("vnc = 1\n{keys}"));
        let frame_buffer = json!({
            "devid": 0, "sdl": { "enable": "True" }, "keymap": "de",
            "vnc": { "enable": "True", "listen": "::", "passwd": "p", "display": 3, "findunused": "False" }
        });
        assert_eq!((&more["vfbs"], &more["vkbs"]), (&json!([frame_buffer]), &json!([{ "devid": 0 }])));
        // Only `vnc` makes one, and only if there is no other.
        assert_eq!(json("pv", keys)["vfbs"], Value::Null);
        assert_eq!(json("pv", "vnc = 0\nsdl = 1")["vfbs"], Value::Null);
        assert_eq!(json("pvh", "vnc = 1")["vfbs"], Value::Null);
        let other = json!([{ "devid": 0, "vnc": {}, "sdl": { "enable": "False" } }]);
        assert_eq!(json("pv", "vnc = 1\nvfb = [ 'sdl=0' ]")["vfbs"], other);
    }

    #[test]
    fn pci_devices() {
        let device = json!({ "bus": 1, "vfunc_mask": 1 });
        assert_eq!(json("hvm", "pci = [ '01:00.0' ]")["pcidevs"], json!([device]));
        // PV guests need the host's memory map for them.
        let of_pv = json!([{ "bus": 1, "vfunc_mask": 1, "rdm_policy": "strict" }]);
        let more = json("pv", "pci = [ '01:00.0' ]\ne820_host = 0");
        assert_eq!((&more["pcidevs"], &more["b_info"]["type.pv"]["e820_host"]), (&of_pv, &json!("True")));
        assert_eq!(json("pv", "pci = []")["b_info"]["type.pv"], json!({}));
        assert_eq!(json("pvh", "pci = [ '01:00.0' ]")["pcidevs"], of_pv);
        let more = "pci = [ '01:00.0', '02:00.0,seize=0' ]\n\
                    pci_permissive = 0\npci_msitranslate = 1\npci_seize = 2\npci_power_mgmt = '-1'";
        let on = json!({ "bus": 1, "vfunc_mask": 1, "msitranslate": true, "seize": true, "power_mgmt": true });
        let second = json!({ "bus": 2, "vfunc_mask": 1, "msitranslate": true, "power_mgmt": true });
        assert_eq!(json("hvm", more)["pcidevs"], json!([on, second]));
        let error = parse("hvm", "pci = [ '01:00' ]", 20).unwrap_err();
        assert!(error.starts_with("t.cfg:4: pci: in `01:00`: "), "{error}");
        assert!(parse("hvm", "pci_seize = 4294967296", 20).unwrap_err().contains("out of range"));
    }

    #[test]
    fn reserved_memory() {
        let read = |kind: &str, value: &str, release| {
            let more =
                format!("rdm = '{value}'\nrdm_mem_boundary = 5\npci = [ '01:00.0', '02:00.0,rdm_policy=strict' ]");
            let config = parse(kind, &more, release).unwrap();
            let union = &config.json["b_info"][format!("type.{kind}")];
            let policies = [0, 1].map(|i| config.json["pcidevs"][i]["rdm_policy"].clone());
            (union["rdm"].clone(), policies, config.warnings.len())
        };
        let strict = || json!("strict");
        assert_eq!(read("hvm", "strategy=host", 20), (json!({ "strategy": "host" }), [Value::Null, strict()], 0));
        assert_eq!(read("hvm", "policy=relaxed", 20), (json!({}), [Value::Null, strict()], 1));
        let relaxed = json!({ "strategy": "host", "policy": "relaxed" });
        assert_eq!(read("hvm", "policy=relaxed,strategy=host", 14), (relaxed, [json!("relaxed"), strict()], 0));
        assert_eq!(read("pv", "policy=relaxed", 14), (Value::Null, [json!("relaxed"), strict()], 0));
        assert_eq!(read("pvh", "strategy=host", 17), (Value::Null, [strict(), strict()], 0));
        let boundary = |kind| {
            json(kind, "rdm_mem_boundary = 5")["b_info"][format!("type.{kind}")]["rdm_mem_boundary_memkb"].clone()
        };
        assert_eq!((boundary("hvm"), boundary("pv")), (json!(5120), Value::Null));
    }

    #[test]
    fn trusted_platform_modules() {
        let uuid = "11111111-2222-3333-4444-5555555555AB";
        let more = json("pv", &format!("vtpm = [ 'uuid={uuid}, backend=d', 'backend=,uuid={}' ]", Uuid::nil()));
        let first = json!({ "devid": 0, "backend_domname": "d", "uuid": uuid.to_lowercase() });
        assert_eq!(more["vtpms"], json!([first, { "devid": 1, "backend_domname": "" }]));
        for (item, expected) in [
            ("", "no backend is given"),
            ("uuid=x", "`x` is not a UUID"),
            ("backend=d,uuid=11111111222233334444555555555555", "is not a UUID"),
            ("backend=d,foo=1", "`foo=1` is not known; accepted: backend, uuid"),
        ] {
            let error = parse("pv", &format!("vtpm = [ '{item}' ]"), 20).unwrap_err();
            assert!(error.contains(expected), "{item:?}: {error}");
        }
    }

    #[test]
    fn pv_calls() {
        let config = parse("pv", "pvcalls = [ '', 'backend=a,backend=b', 'foo,backend=c' ]", 20).unwrap();
        let expected = json!([{ "devid": 0 }, { "devid": 1, "backend_domname": "b" }, { "devid": 2 }]);
        assert_eq!((&config.json["pvcallsifs"], config.warnings.len()), (&expected, 1));
        let error = parse("pv", "pvcalls = [ 'port=1' ]", 20).unwrap_err();
        assert!(error.contains("`port=1` is not known; accepted: backend"), "{error}");
    }

    const KEYS: &[&str] = &[
        "vfb", "vkb", "vtpm", "p9", "channel", "usbctrl", "usbdev", "vdispl", "vsnd", "pvcalls", "virtio", "pci",
        "rdm", "dtdev",
    ];

    fn never_panics(key: &str, text: &str, release: u32) {
        let quoted: String = text
            .chars()
            .map(|c| match c {
                '\n' => "\\n".to_owned(),
                '"' | '\\' => format!("\\{c}"),
                c => c.to_string(),
            })
            .collect();
        let value = match key {
            "rdm" => format!("\"{quoted}\""),
            "vsnd" => format!("[[\"{quoted}\", \"stream, {quoted}\"]]"),
            _ => format!("[\"{quoted}\"]"),
        };
        let _ = parse("hvm", &format!("{key} = {value}"), release);
    }

    proptest! {
        #[test]
        fn never_panics_on_any_text(
            key in prop::sample::select(KEYS),
            text in any::<String>(),
            release in 14..23u32,
        ) {
            never_panics(key, &text, release);
        }

        #[test]
        fn never_panics_on_likely_text(
            key in prop::sample::select(KEYS),
            text in concat!(
                r"(01:00|\.0|@|\*|,|=|;|:|x| |-|0x|[0-9]{1,12}|ä|type=|vnc=|backend=|backend-type=qemu|width=|path=|",
                r"connection=|connectors=|a:1x1|sample-rates=|sample-formats=|bdf=|vslot=|policy=|strict|virtio){0,12}",
            ),
            release in 14..23u32,
        ) {
            never_panics(key, &text, release);
        }
    }
}
