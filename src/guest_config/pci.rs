//! The languages of `pci` and `rdm`: PCI devices of the host that are given to the guest, and what happens to the
//! memory that such devices have reserved.
//!
//! Since Xen 4.15 an item is `BDF[@VSLOT],name=value,…`, where the first part can be written with names too; see
//! xl-pci-configuration(5). Before that it was `BDF[@VSLOT],name=value,…` only, with less care for what is wrong.

use serde_json::{Map, Value, json};

use super::items::{self, Base, Form, Parameter};

/// The function of a device that stands for all of them; libxl looks them up when it adds the device.
const ALL_FUNCTIONS: u32 = u32::MAX;

const OPTIONS: &[Parameter] = &[
    Parameter("permissive", "permissive", Form::Flag(Base::Ten)),
    Parameter("msitranslate", "msitranslate", Form::Flag(Base::Ten)),
    Parameter("seize", "seize", Form::Flag(Base::Ten)),
    Parameter("power_mgmt", "power_mgmt", Form::Flag(Base::Ten)),
    Parameter("rdm_policy", "rdm_policy", Form::Word(Some("invalid"), &["strict", "relaxed"])),
];

/// Reads an item of `pci = [ … ]` into a `libxl_device_pci` that has its defaults already.
pub(super) fn parse(
    item: &str,
    defaults: Map<String, Value>,
    release: u32,
    warnings: &mut Vec<String>,
) -> Result<Value, String> {
    let mut device = defaults;
    if release >= 15 {
        since_15(item, &mut device, warnings)?;
    } else {
        until_14(item, &mut device, warnings)?;
    }
    Ok(Value::Object(device))
}

/// Sets numbers of the device. libxl's JSON leaves zeros out.
fn put<const N: usize>(device: &mut Map<String, Value>, fields: [(&str, u32); N]) {
    for (field, number) in fields {
        match number {
            0 => device.remove(field),
            _ => device.insert(field.to_owned(), json!(number)),
        };
    }
}

fn since_15(item: &str, device: &mut Map<String, Value>, warnings: &mut Vec<String>) -> Result<(), String> {
    let mut at_host = false;
    let mut rest = item;
    let mut no_address = None;
    match address(item, device) {
        Ok(after) => {
            at_host = true;
            rest = after;
            if let Some(slot) = rest.strip_prefix('@') {
                rest = virtual_slot(slot, device)?;
            }
            rest = match rest.strip_prefix(',') {
                Some(options) => options,
                None if rest.is_empty() => rest,
                None => return Err(format!("`{rest}` can't stand there; accepted: BDF[@VSLOT],name=value,…")),
            };
        }
        Err(why) => no_address = Some(why),
    }
    let mut name = None;
    while !rest.is_empty() {
        // What is no parameter was meant to be an address.
        let Some((parameter, after)) = rest.split_once('=') else {
            return Err(no_address.unwrap_or_else(|| format!("`{rest}` has no value")));
        };
        let (value, after) = after.split_once(',').unwrap_or((after, ""));
        rest = after;
        let ignored = match (parameter, Parameter::find(OPTIONS, parameter)) {
            ("bdf", _) => {
                at_host = true;
                address(value, device)?
            }
            ("vslot", _) => virtual_slot(value, device)?,
            ("name", _) => {
                name = Some(value);
                ""
            }
            (_, Some(known)) => {
                known.put(device, value, warnings)?;
                ""
            }
            (_, None) => {
                let known = ["bdf", "vslot", "name"].into_iter().chain(items::names(OPTIONS));
                let unknown = items::unknown(parameter, known);
                return Err(no_address.filter(|_| parameter.contains(':')).unwrap_or(unknown));
            }
        };
        if !ignored.is_empty() {
            warnings.push(format!("`{ignored}` in `{parameter}={value}` is ignored"));
        }
    }
    match (at_host, name) {
        (true, Some(_)) => Err("both an address and a name are given".to_owned()),
        (false, None) => Err("neither an address like 01:00.0 nor a name is given".to_owned()),
        (true, None) => Ok(()),
        (false, Some(name)) => {
            device.insert("name".to_owned(), json!(name));
            Ok(())
        }
    }
}

/// A number in hexadecimal, not above the limit, and what follows it.
fn hexadecimal<'a>(text: &'a str, limit: u32, what: &str) -> Result<(u32, &'a str), String> {
    match items::leading_number(text, Base::Sixteen) {
        (Some(number), rest) => match u32::try_from(number) {
            Ok(number) if number <= limit => Ok((number, rest)),
            _ => Err(format!("the {what} is out of range; accepted: 0 to {limit:x}")),
        },
        (None, _) => Err(format!("`{text}`: a {what} in hexadecimal is expected")),
    }
}

/// `[DDDD:]BB:SS.F`; gives what follows it.
fn address<'a>(text: &'a str, device: &mut Map<String, Value>) -> Result<&'a str, String> {
    let wrong = || format!("`{text}` is not an address like 01:00.0 or 0000:01:00.0");
    let start = text.bytes().take_while(|&b| b == b':' || b.is_ascii_hexdigit());
    let (domain, rest) = match start.filter(|&b| b == b':').count() {
        1 => (0, text),
        2 => {
            let (domain, rest) = hexadecimal(text, 0xffff, "domain")?;
            (domain, rest.strip_prefix(':').ok_or_else(wrong)?)
        }
        _ => return Err(wrong()),
    };
    let (bus, rest) = hexadecimal(rest, 0xff, "bus")?;
    let (slot, rest) = hexadecimal(rest.strip_prefix(':').ok_or_else(wrong)?, 0x1f, "device")?;
    let rest = rest.strip_prefix('.').ok_or_else(wrong)?;
    let (function, mask, rest) = match rest.strip_prefix('*') {
        Some(rest) => (0, ALL_FUNCTIONS, rest),
        None => {
            let (function, rest) = hexadecimal(rest, 7, "function")?;
            (function, 1, rest)
        }
    };
    put(device, [("domain", domain), ("bus", bus), ("dev", slot), ("func", function), ("vfunc_mask", mask)]);
    Ok(rest)
}

/// The slot in the guest; gives what follows it.
fn virtual_slot<'a>(text: &'a str, device: &mut Map<String, Value>) -> Result<&'a str, String> {
    let (slot, rest) = hexadecimal(text, 0x1f, "virtual slot")?;
    put(device, [("vdevfn", slot << 3)]);
    Ok(rest)
}

fn until_14(item: &str, device: &mut Map<String, Value>, warnings: &mut Vec<String>) -> Result<(), String> {
    if let Some(name) = ["bdf", "name"].into_iter().find(|name| item.split('=').next() == Some(*name)) {
        return Err(format!("`{name}=` needs Xen 4.15; accepted: BDF[@VSLOT],name=value,…"));
    }
    let wrong = || format!("`{item}` is not a PCI device like 01:00.0 or 0000:01:00.0@5,permissive=1");
    let all = |text: &str, limit, what| match hexadecimal(text, limit, what)? {
        (number, "") => Ok(number),
        (_, rest) => Err(format!("`{rest}` in the {what} is wrong")),
    };
    let (first, rest) = item.split_once(':').ok_or_else(wrong)?;
    // Which comes first, the dot of BB:SS.F or the second colon of DDDD:BB:SS.F?
    let (domain, bus, rest) = match rest.find([':', '.']) {
        Some(end) if rest[end..].starts_with(':') => {
            (all(first, 0xffff, "domain")?, all(&rest[..end], 0xff, "bus")?, &rest[end + 1..])
        }
        Some(_) => (0, all(first, 0xff, "bus")?, rest),
        None => return Err(wrong()),
    };
    let (slot, rest) = rest.split_once('.').ok_or_else(wrong)?;
    let slot = all(slot, 0xff, "device")?;
    let (place, options) = match rest.split_once(',') {
        Some((place, options)) => (place, Some(options)),
        None => (rest, None),
    };
    let (function, virtual_slot) = match place.split_once('@') {
        Some((function, slot)) => (function, all(slot, 0xff, "virtual slot")?),
        None => (place, 0),
    };
    let (function, mask) = match function {
        "*" => (0, ALL_FUNCTIONS),
        _ => (all(function, 7, "function")?, 1),
    };
    put(device, [("domain", domain), ("bus", bus), ("dev", slot), ("func", function)]);
    put(device, [("vfunc_mask", mask), ("vdevfn", virtual_slot << 3)]);
    let Some(mut rest) = options else { return Ok(()) };
    loop {
        let (name, after) = rest.split_once('=').ok_or_else(|| format!("`{rest}` has no value"))?;
        let (value, after) = match after.split_once(',') {
            Some((value, after)) => (value, Some(after)),
            None => (after, None),
        };
        match (name, Parameter::find(OPTIONS, name)) {
            ("rdm_policy", _) if !matches!(value, "strict" | "relaxed") => {
                return Err(format!("`{value}` is not accepted for rdm_policy; accepted: strict, relaxed"));
            }
            (_, Some(known)) => known.put(device, value, warnings)?,
            ("bdf" | "vslot" | "name", None) => {
                warnings.push(format!("`{name}={value}` is ignored: it needs Xen 4.15"));
            }
            (_, None) => warnings.push(format!("`{name}={value}` is not known; it is ignored")),
        }
        match after {
            Some(after) => rest = after,
            None => return Ok(()),
        }
    }
}

/// What `rdm` says: which reserved memory of the host is kept free in the guest, and what a conflict means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reserve {
    /// `strategy=host`: all of it, not only that of the devices given to the guest.
    pub(super) all_of_host: bool,
    /// `policy=`
    pub(super) policy: Option<&'static str>,
}

/// Reads the value of `rdm`. xl ignores a wrong one as a whole.
pub(super) fn reserve(text: &str, release: u32, warnings: &mut Vec<String>) -> Result<Reserve, String> {
    let mut reserve = Reserve::default();
    let mut rest = text;
    loop {
        let (name, after) = rest.split_once('=').ok_or_else(|| format!("`{rest}` has no value"))?;
        let (value, after) = match after.split_once(',') {
            Some((value, after)) => (value, Some(after)),
            None => (after, None),
        };
        match (name, value) {
            ("strategy", "host") => reserve.all_of_host = true,
            ("strategy", _) => return Err(format!("`{value}` is not accepted for strategy; accepted: host")),
            ("policy", _) if release >= 15 => {
                // The test for a valid word is the wrong way round in these releases.
                if items::word(name, value, Some("invalid"), &["strict", "relaxed"]).is_ok() {
                    return Err(format!("since Xen 4.15 xl can't read `policy={value}`; leave it out"));
                }
                warnings.push(format!("`policy={value}` is not known; it is ignored"));
            }
            ("policy", "strict") => reserve.policy = Some("strict"),
            ("policy", "relaxed") => reserve.policy = Some("relaxed"),
            ("policy", _) => {
                return Err(format!("`{value}` is not accepted for policy; accepted: strict, relaxed"));
            }
            _ => return Err(items::unknown(name, ["strategy", "policy"])),
        }
        match after {
            Some(after) => rest = after,
            None => return Ok(reserve),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(item: &str, release: u32) -> (Result<Value, String>, Vec<String>) {
        let mut warnings = Vec::new();
        let device = parse(item, Map::new(), release, &mut warnings);
        (device, warnings)
    }

    fn all(release: u32, table: &[(&str, Value)]) {
        for (item, expected) in table {
            let (device, warnings) = read(item, release);
            assert_eq!((device.as_ref(), warnings.len()), (Ok(expected), 0), "{item:?} {release}: {warnings:?}");
        }
    }

    fn none(release: u32, table: &[(&str, &str)]) {
        for (item, expected) in table {
            let error = read(item, release).0.expect_err(item);
            assert!(error.contains(expected), "{item:?} {release}: {error}");
        }
    }

    #[test]
    fn in_all_releases() {
        for release in 14..=22 {
            all(
                release,
                &[
                    ("01:00.0", json!({ "bus": 1, "vfunc_mask": 1 })),
                    ("00:1f.7", json!({ "dev": 31, "func": 7, "vfunc_mask": 1 })),
                    ("000a:3:2.1", json!({ "domain": 10, "bus": 3, "dev": 2, "func": 1, "vfunc_mask": 1 })),
                    ("01:02.*", json!({ "bus": 1, "dev": 2, "vfunc_mask": 4_294_967_295_u32 })),
                    ("01:00.0@1f", json!({ "bus": 1, "vfunc_mask": 1, "vdevfn": 248 })),
                    ("01:00.0@0x5", json!({ "bus": 1, "vfunc_mask": 1, "vdevfn": 40 })),
                    (
                        "01:00.0@5,permissive=1,msitranslate=2,seize=1,power_mgmt=1,rdm_policy=relaxed,seize=0",
                        json!({
                            "bus": 1, "vfunc_mask": 1, "vdevfn": 40, "permissive": true, "msitranslate": true,
                            "power_mgmt": true, "rdm_policy": "relaxed"
                        }),
                    ),
                    ("01: 00.+1", json!({ "bus": 1, "func": 1, "vfunc_mask": 1 })),
                ],
            );
            none(
                release,
                &[
                    ("", ""),
                    ("01:00", ""),
                    ("01.0", ""),
                    ("1:2:3:4.0", ""),
                    ("01:00.8", "the function is out of range; accepted: 0 to 7"),
                    ("100:00.0", "the bus is out of range; accepted: 0 to ff"),
                    ("10000:00:00.0", "the domain is out of range; accepted: 0 to ffff"),
                    ("01:100.0", "the device is out of range"),
                    ("01:00.x", "`x`: a function in hexadecimal is expected"),
                    ("100000001:00.0", "the bus is out of range"),
                    ("01:00.0@", "a virtual slot in hexadecimal is expected"),
                    ("01:00.0@100", "the virtual slot is out of range"),
                    ("01:00.0 ", "` `"),
                    ("01:00.0,permissive", "`permissive` has no value"),
                    ("01:00.0,rdm_policy=x", "`x` is not accepted for rdm_policy; accepted: strict, relaxed"),
                    ("01:00.0,permissive=4294967296", "out of range"),
                ],
            );
            let (device, warnings) = read("01:00.0,permissive=yes", release);
            assert_eq!(device, Ok(json!({ "bus": 1, "vfunc_mask": 1 })));
            assert_eq!(warnings, ["`permissive=yes` is taken for 0: a number is expected"]);
        }
    }

    #[test]
    fn until_14() {
        all(
            14,
            &[
                ("01:20.0@20", json!({ "bus": 1, "dev": 32, "vfunc_mask": 1, "vdevfn": 256 })),
                (" 0x1:00.0", json!({ "bus": 1, "vfunc_mask": 1 })),
            ],
        );
        none(
            14,
            &[
                ("01:00.0,", "`` has no value"),
                ("01:00.0x", "`x` in the function is wrong"),
                ("01:00.0,rdm_policy=STRICT", "accepted: strict, relaxed"),
                ("bdf=01:00.0", "`bdf=` needs Xen 4.15; accepted: BDF[@VSLOT],name=value,…"),
                ("name=n", "`name=` needs Xen 4.15"),
            ],
        );
        let (device, warnings) = read("01:00.0,vslot=5, seize=1", 14);
        assert_eq!(device, Ok(json!({ "bus": 1, "vfunc_mask": 1 })));
        let expected = ["`vslot=5` is ignored: it needs Xen 4.15", "` seize=1` is not known; it is ignored"];
        assert_eq!(warnings, expected);
    }

    #[test]
    fn since_15() {
        all(
            15,
            &[
                ("01:00.0,", json!({ "bus": 1, "vfunc_mask": 1 })),
                ("bdf=01:00.0,vslot=5", json!({ "bus": 1, "vfunc_mask": 1, "vdevfn": 40 })),
                ("seize=1,bdf=01:00.0,bdf=02:00.0", json!({ "bus": 2, "vfunc_mask": 1, "seize": true })),
                ("01:00.0@5,vslot=0", json!({ "bus": 1, "vfunc_mask": 1 })),
                ("01:00.0,rdm_policy=STRICT", json!({ "bus": 1, "vfunc_mask": 1, "rdm_policy": "strict" })),
                ("01:00.0,rdm_policy=strict,rdm_policy=invalid", json!({ "bus": 1, "vfunc_mask": 1 })),
                ("name=card,permissive=1", json!({ "name": "card", "permissive": true })),
            ],
        );
        none(
            15,
            &[
                ("", "neither an address like 01:00.0 nor a name is given"),
                ("seize=1", "neither an address"),
                ("name=n,bdf=01:00.0", "both an address and a name are given"),
                ("01:00.0,name=n", "both an address and a name are given"),
                ("01:00.0x", "`x` can't stand there"),
                ("01:00.0@5 ", "` ` can't stand there"),
                ("01:20.0", "the device is out of range; accepted: 0 to 1f"),
                ("01:20.0,seize=1", "the device is out of range; accepted: 0 to 1f"),
                ("01:00.0@20", "the virtual slot is out of range; accepted: 0 to 1f"),
                (" 01:00.0", "is not an address like 01:00.0"),
                ("0x1:00.0", "is not an address like 01:00.0"),
                ("01:00.0, seize=1", "` seize` is not known; accepted: bdf, vslot, name, permissive"),
                ("01:00.0,,seize=1", "`,seize` is not known"),
                ("bdf=x", "`x` is not an address"),
            ],
        );
        let (device, warnings) = read("bdf=01:00.0@5,vslot=6x", 15);
        assert_eq!(device, Ok(json!({ "bus": 1, "vfunc_mask": 1, "vdevfn": 48 })));
        assert_eq!(warnings, ["`@5` in `bdf=01:00.0@5` is ignored", "`x` in `vslot=6x` is ignored"]);
    }

    #[test]
    fn reserves() {
        let read = |text: &str, release| {
            let mut warnings = Vec::new();
            reserve(text, release, &mut warnings)
                .map(|reserve| (reserve.all_of_host, reserve.policy, warnings.len()))
        };
        assert_eq!(read("strategy=host", 14), Ok((true, None, 0)));
        assert_eq!(read("strategy=host,policy=relaxed", 14), Ok((true, Some("relaxed"), 0)));
        assert_eq!(read("policy=strict", 14), Ok((false, Some("strict"), 0)));
        assert_eq!(read("strategy=host", 20), Ok((true, None, 0)));
        assert_eq!(read("strategy=host,policy=x", 20), Ok((true, None, 1)));
        for (text, release, expected) in [
            ("", 20, "`` has no value"),
            ("strategy=host,", 20, "`` has no value"),
            ("strategy=all", 20, "`all` is not accepted for strategy; accepted: host"),
            ("x,policy=strict", 14, "`x,policy` is not known; accepted: strategy, policy"),
            ("policy=Strict", 14, "`Strict` is not accepted for policy; accepted: strict, relaxed"),
            ("strategy=host,policy=Strict", 15, "since Xen 4.15 xl can't read `policy=Strict`; leave it out"),
        ] {
            let error = read(text, release).expect_err(text);
            assert!(error.contains(expected), "{text:?} {release}: {error}");
        }
    }
}
