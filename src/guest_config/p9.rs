//! The language of `p9`: directories of the host that the guest can mount by the 9P protocol.

use serde_json::{Map, Value, json};

use super::items::{self, Base, Form, Parameter};

const PARAMETERS: &[Parameter] = &[
    Parameter("tag", "tag", Form::Text),
    Parameter("path", "path", Form::Text),
    Parameter("security_model", "security_model", Form::Text),
    Parameter("backend", "backend_domname", Form::Text),
];

/// What the xl of Xen 4.19 knows too.
const SINCE_19: &[Parameter] = &[
    Parameter("type", "type", Form::Word(Some("unknown"), &["qemu", "xen_9pfsd"])),
    Parameter("max-files", "max_files", Form::Natural),
    Parameter("max-open-files", "max_open_files", Form::Natural),
    Parameter("max-space", "max_space", Form::Natural),
    Parameter("auto-delete", "auto_delete", Form::Flag(Base::Any)),
];

/// Where Xen keeps its logs; xl has no better place for files of a guest.
const LOG_DIRECTORY: &str = "/var/log/xen";

const NEEDED: &[&str] = &["tag", "path", "security_model"];

/// Reads an item of `p9 = [ … ]` into a `libxl_device_p9`. It gets no number: xl sets one and forgets it again.
///
/// Up to Xen 4.17 what an item doesn't say is taken from the one before it, which is `previous`.
pub(super) fn parse(
    item: &str,
    previous: &mut Map<String, Value>,
    guest: &str,
    release: u32,
    warnings: &mut Vec<String>,
) -> Result<Value, String> {
    if release < 18 {
        until_17(item, previous, warnings)?;
        return Ok(Value::Object(previous.clone()));
    }
    let mut device = Map::new();
    since_18(item, &mut device, release, warnings)?;
    let missing = NEEDED.iter().copied().filter(|name| !device.contains_key(*name)).collect::<Vec<_>>();
    let own_daemon = device.get("type").is_some_and(|kind| kind == "xen_9pfsd");
    for name in missing {
        match name {
            "path" if own_daemon => {
                device.insert("path".to_owned(), json!(format!("{LOG_DIRECTORY}/guests/{guest}")));
            }
            "tag" if own_daemon => {}
            _ if release < 19 => return Err(missing_parameter(name)),
            _ => warnings.push(format!("{}; libxl will refuse the device", missing_parameter(name))),
        }
    }
    Ok(Value::Object(device))
}

fn missing_parameter(name: &str) -> String {
    format!("no {name} is given")
}

fn unknown(parameter: &str, name: &str, release: u32) -> String {
    match Parameter::find(SINCE_19, name) {
        Some(_) => format!("`{parameter}` needs Xen 4.19"),
        None if release < 19 => items::unknown(parameter, items::names(PARAMETERS)),
        None => items::unknown(parameter, items::names(PARAMETERS).chain(items::names(SINCE_19))),
    }
}

fn until_17(item: &str, device: &mut Map<String, Value>, warnings: &mut Vec<String>) -> Result<(), String> {
    let pairs = items::pairs_until_a_word(item, warnings);
    for (name, value) in &pairs {
        match Parameter::find(PARAMETERS, name) {
            Some(known) => known.put(device, value, warnings)?,
            None => return Err(unknown(&format!("{name}={value}"), name, 17)),
        }
    }
    if let Some(name) = NEEDED.iter().find(|name| !device.contains_key(**name)) {
        return Err(missing_parameter(name));
    }
    for Parameter(name, field, _) in PARAMETERS {
        if device.contains_key(*field) && pairs.iter().all(|(given, _)| given != name) {
            warnings.push(format!("{}; that of an earlier item is taken", missing_parameter(name)));
        }
    }
    Ok(())
}

fn since_18(
    item: &str,
    device: &mut Map<String, Value>,
    release: u32,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let mut parameters = items::parts(item, ',').peekable();
    if parameters.peek().is_none() {
        return Err("it is empty".to_owned());
    }
    for parameter in parameters {
        let Some((name, value)) = items::split_pair(parameter, '=', release, warnings) else {
            return Err(format!("`{parameter}` has no value"));
        };
        let (name, value) = (name.trim_matches(items::is_blank), value.trim_matches(items::is_blank));
        let later = Parameter::find(SINCE_19, name).filter(|_| release >= 19);
        let Some(known) = Parameter::find(PARAMETERS, name).or(later) else {
            return Err(unknown(parameter, name, release));
        };
        known.put(device, value, warnings)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "tag=t,path=/p,security_model=none";

    fn read(item: &str, release: u32) -> (Result<Value, String>, Vec<String>) {
        let mut warnings = Vec::new();
        let device = parse(item, &mut Map::new(), "guest", release, &mut warnings);
        (device, warnings)
    }

    fn plain(more: Value) -> Value {
        let mut device = json!({ "tag": "t", "path": "/p", "security_model": "none" });
        if let (Value::Object(device), Value::Object(more)) = (&mut device, more) {
            device.extend(more);
        }
        device
    }

    #[test]
    fn in_all_releases() {
        for release in 14..=22 {
            let with_backend = plain(json!({ "backend_domname": "d" }));
            assert_eq!(read(PLAIN, release), (Ok(plain(json!({}))), vec![]));
            assert_eq!(read(&format!("{PLAIN}, backend=d"), release), (Ok(with_backend), vec![]));
            let error = read(&format!("{PLAIN},foo=1"), release).0.unwrap_err();
            assert!(
                error.contains("`foo=1` is not known; accepted: tag, path, security_model, backend"),
                "{error}"
            );
        }
    }

    #[test]
    fn until_17() {
        let (device, warnings) = read(&format!("{PLAIN},foo,bar=1"), 17);
        assert_eq!((device, warnings.len()), (Ok(plain(json!({}))), 1));
        for (item, expected) in [
            ("", "no tag is given"),
            ("tag=t,path=/p", "no security_model is given"),
            ("tag=t, path =/p", "`path =/p` is not known"),
            ("tag=t,type=qemu", "`type=qemu` needs Xen 4.19"),
        ] {
            let error = read(item, 17).0.expect_err(item);
            assert!(error.contains(expected), "{item:?}: {error}");
        }
        // What an item doesn't say is that of the one before it.
        let (mut previous, mut warnings) = (Map::new(), Vec::new());
        parse("tag=t,path=/p,security_model=none,backend=d", &mut previous, "", 17, &mut warnings).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let second = parse("tag=u,security_model=none", &mut previous, "", 17, &mut warnings);
        assert_eq!(second, Ok(plain(json!({ "tag": "u", "backend_domname": "d" }))));
        let of_earlier = |name: &str| format!("no {name} is given; that of an earlier item is taken");
        assert_eq!(warnings, [of_earlier("path"), of_earlier("backend")]);
    }

    #[test]
    fn since_18() {
        let (device, warnings) = read("tag = t , path=/a=b,security_model=none", 18);
        assert_eq!((device, warnings.len()), (Ok(plain(json!({ "path": "/a=b" }))), 0));
        for (item, expected) in [
            ("", "it is empty"),
            ("tag=", "`tag=` has no value"),
            ("tag", "`tag` has no value"),
            ("tag=t,path=/p", "no security_model is given"),
            ("type=qemu", "`type=qemu` needs Xen 4.19"),
        ] {
            let error = read(item, 18).0.expect_err(item);
            assert!(error.contains(expected), "{item:?}: {error}");
        }
    }

    #[test]
    fn since_19() {
        let (device, warnings) =
            read("type=XEN_9pfsd,security_model=none,max-files=5,auto-delete=1,max-space=0", 19);
        let expected = json!({
            "type": "xen_9pfsd", "security_model": "none", "path": "/var/log/xen/guests/guest", "max_files": 5,
            "auto_delete": true
        });
        assert_eq!((device, warnings), (Ok(expected), vec![]));
        let (device, warnings) = read("tag=t", 19);
        assert_eq!((device, warnings.len()), (Ok(json!({ "tag": "t" })), 2), "{warnings:?}");
        for (item, expected) in [
            ("type=nfs", "`nfs` is not accepted for type; accepted: qemu, xen_9pfsd"),
            ("max-files=many", "`max-files=many`: a number is expected"),
            ("max-space=4294967297", "out of range"),
            ("foo=1", "accepted: tag, path, security_model, backend, type, max-files"),
        ] {
            let error = read(item, 19).0.expect_err(item);
            assert!(error.contains(expected), "{item:?}: {error}");
        }
    }
}
