//! The languages of `vfb`, `vkb` and `vdispl`: frame buffers, keyboards with pointers, and virtual displays.

use serde_json::{Map, Value, json};

use super::items::{self, Base, Form, Parameter};
use super::keys::Keys;
use super::{Error, defbool};

const VNC: &[Parameter] = &[
    Parameter("vnc", "enable", Form::Defbool(Base::Ten)),
    Parameter("vnclisten", "listen", Form::Text),
    Parameter("vncpasswd", "passwd", Form::Text),
    Parameter("vncdisplay", "display", Form::Int(0)),
    Parameter("vncunused", "findunused", Form::Defbool(Base::Ten)),
];

const SDL: &[Parameter] = &[
    Parameter("sdl", "enable", Form::Defbool(Base::Ten)),
    Parameter("opengl", "opengl", Form::Defbool(Base::Ten)),
    Parameter("display", "display", Form::Text),
    Parameter("xauthority", "xauthority", Form::Text),
];

const FRAME_BUFFER: &[Parameter] = &[Parameter("keymap", "keymap", Form::Text)];

const KEYBOARD: &[Parameter] = &[
    Parameter("backend", "backend_domname", Form::Text),
    Parameter("backend-type", "backend_type", Form::Word(Some("unknown"), &["qemu", "linux"])),
    Parameter("unique-id", "unique_id", Form::Text),
    Parameter("feature-disable-keyboard", "feature_disable_keyboard", Form::Flag(Base::Any)),
    Parameter("feature-disable-pointer", "feature_disable_pointer", Form::Flag(Base::Any)),
    Parameter("feature-abs-pointer", "feature_abs_pointer", Form::Flag(Base::Any)),
    Parameter("feature-raw-pointer", "feature_raw_pointer", Form::Flag(Base::Any)),
    Parameter("feature-multi-touch", "feature_multi_touch", Form::Flag(Base::Any)),
    Parameter("width", "width", Form::Unsigned(u32::MAX)),
    Parameter("height", "height", Form::Unsigned(u32::MAX)),
    Parameter("multi-touch-width", "multi_touch_width", Form::Unsigned(u32::MAX)),
    Parameter("multi-touch-height", "multi_touch_height", Form::Unsigned(u32::MAX)),
    Parameter("multi-touch-num-contacts", "multi_touch_num_contacts", Form::Unsigned(u32::MAX)),
];

const DISPLAY: &[Parameter] = &[
    Parameter("backend", "backend_domname", Form::Text),
    Parameter("be-alloc", "be_alloc", Form::Flag(Base::Any)),
];

/// Reads an item of `vfb = [ … ]` into a `libxl_device_vfb`.
pub(super) fn frame_buffer(item: &str, number: usize, warnings: &mut Vec<String>) -> Result<Value, String> {
    let (mut vnc, mut sdl, mut device) = (Map::new(), Map::new(), Map::new());
    device.insert("devid".to_owned(), json!(number));
    for (name, value) in items::pairs_until_a_word(item, warnings) {
        let structures = [(VNC, &mut vnc), (SDL, &mut sdl), (FRAME_BUFFER, &mut device)];
        let mut known =
            structures.into_iter().filter_map(|(table, map)| Some((Parameter::find(table, name)?, map)));
        match known.next() {
            Some((parameter, structure)) => parameter.put(structure, value, warnings)?,
            None => warnings.push(format!("`{name}={value}` is not known; it is ignored")),
        }
    }
    device.insert("vnc".to_owned(), Value::Object(vnc));
    device.insert("sdl".to_owned(), Value::Object(sdl));
    Ok(Value::Object(device))
}

/// The frame buffer of a PV guest that has `vnc` and no `vfb`. The keys have the names of the parameters of an item.
pub(super) fn frame_buffer_of_keys(keys: &mut Keys) -> Result<Value, Error> {
    let mut structure = |table: &[Parameter]| {
        let mut fields = Map::new();
        for Parameter(key, field, form) in table {
            let value = match form {
                Form::Text => keys.text(key)?.map(Value::from),
                Form::Defbool(_) => keys.flag(key).map(defbool),
                _ => {
                    let number = keys.number_in(key, i64::from(i32::MIN)..=i64::from(i32::MAX))?;
                    number.filter(|&number| number != 0).map(Value::from)
                }
            };
            if let Some(value) = value {
                fields.insert((*field).to_owned(), value);
            }
        }
        Ok(fields)
    };
    let (vnc, sdl, mut device) = (structure(VNC)?, structure(SDL)?, structure(FRAME_BUFFER)?);
    device.insert("devid".to_owned(), json!(0));
    device.insert("vnc".to_owned(), Value::Object(vnc));
    device.insert("sdl".to_owned(), Value::Object(sdl));
    Ok(Value::Object(device))
}

/// Reads an item of `vkb = [ … ]` into a `libxl_device_vkb`.
pub(super) fn keyboard(item: &str, number: usize, warnings: &mut Vec<String>) -> Result<Value, String> {
    let mut device = Map::new();
    device.insert("devid".to_owned(), json!(number));
    items::read(KEYBOARD, item, &mut device, warnings)?;
    if !device.contains_key("backend_type") {
        return Err("no backend-type is given; accepted: qemu, linux".to_owned());
    }
    let multi_touch = ["multi_touch_width", "multi_touch_height", "multi_touch_num_contacts"];
    if multi_touch.iter().any(|field| device.contains_key(*field)) {
        device.insert("feature_multi_touch".to_owned(), json!(true));
    } else if device.contains_key("feature_multi_touch") {
        return Err("feature-multi-touch needs multi-touch-width, multi-touch-height or multi-touch-num-contacts"
            .to_owned());
    }
    Ok(Value::Object(device))
}

/// Reads an item of `vdispl = [ … ]` into a `libxl_device_vdispl`.
pub(super) fn display(
    item: &str,
    number: usize,
    release: u32,
    warnings: &mut Vec<String>,
) -> Result<Value, String> {
    let mut device = Map::new();
    device.insert("devid".to_owned(), json!(number));
    for parameter in items::parameters(item) {
        if let Some(list) = parameter.strip_prefix("connectors=") {
            device.insert("connectors".to_owned(), connectors(list, release, warnings)?);
            continue;
        }
        let known =
            parameter.split_once('=').and_then(|(name, value)| Some((Parameter::find(DISPLAY, name)?, value)));
        match known {
            Some((known, value)) => known.put(&mut device, value, warnings)?,
            None => return Err(items::unknown(parameter, items::names(DISPLAY).chain(["connectors"]))),
        }
    }
    if !device.contains_key("connectors") {
        return Err("no connectors are given, like connectors=id0:1920x1080;id1:800x600".to_owned());
    }
    Ok(Value::Object(device))
}

/// `ID:WIDTHxHEIGHT;ID:WIDTHxHEIGHT…`
fn connectors(list: &str, release: u32, warnings: &mut Vec<String>) -> Result<Value, String> {
    let texts: Vec<_> = items::parts(list, ';').collect();
    if texts.is_empty() {
        return Err("connectors= is empty".to_owned());
    }
    let mut connectors = Vec::new();
    for text in &texts {
        let Some((id, resolution)) = items::split_pair(text, ':', release, warnings) else {
            return Err(format!("`{text}` is not a connector like id0:1920x1080"));
        };
        let mut connector = Map::new();
        connector.insert("unique_id".to_owned(), json!(id));
        let read = self::resolution(resolution)?;
        for (field, size) in ["width", "height"].into_iter().zip(read.into_iter().flatten()) {
            if size != 0 {
                connector.insert(field.to_owned(), json!(size));
            }
        }
        connectors.push(Value::Object(connector));
        if read.is_none() {
            warnings.push(format!(
                "`{resolution}` is not a resolution like 1920x1080; `{text}` and the connectors after it get none"
            ));
            break;
        }
    }
    connectors.resize(texts.len(), json!({}));
    Ok(Value::Array(connectors))
}

/// Width and height; `None` if there is no number at all, with which xl goes on.
fn resolution(text: &str) -> Result<Option<[u32; 2]>, String> {
    let wrong = || format!("`{text}` is not a resolution like 1920x1080");
    let (width, rest) = items::leading_number(text, Base::Ten);
    let Some(width) = width else {
        return if text.chars().all(items::is_blank) { Err(wrong()) } else { Ok(None) };
    };
    let (height, _) = items::leading_number(rest.strip_prefix('x').ok_or_else(wrong)?, Base::Ten);
    let sizes = [width, height.ok_or_else(wrong)?].map(u32::try_from);
    match sizes {
        [Ok(width), Ok(height)] => Ok(Some([width, height])),
        _ => Err(format!("`{text}` is out of range; accepted: 0x0 to {0}x{0}", u32::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(result: impl FnOnce(&mut Vec<String>) -> T) -> (T, Vec<String>) {
        let mut warnings = Vec::new();
        let read = result(&mut warnings);
        (read, warnings)
    }

    #[test]
    fn frame_buffers() {
        let table = [
            ("", json!({ "devid": 3, "vnc": {}, "sdl": {} }), 0),
            (
                "vnc=1, vnclisten=0.0.0.0,vncpasswd=,vncdisplay=2,vncunused=0,keymap=de",
                json!({
                    "devid": 3, "sdl": {}, "keymap": "de",
                    "vnc": { "enable": "True", "listen": "0.0.0.0", "passwd": "", "display": 2, "findunused": "False" }
                }),
                0,
            ),
            (
                "sdl=1,opengl=2,display=:0,xauthority=/x,vncdisplay=5,vncdisplay=0",
                json!({
                    "devid": 3, "vnc": {},
                    "sdl": { "enable": "True", "opengl": "True", "display": ":0", "xauthority": "/x" }
                }),
                0,
            ),
            ("type=vnc,vnc=yes", json!({ "devid": 3, "vnc": { "enable": "False" }, "sdl": {} }), 2),
            ("sdl,vnc=1", json!({ "devid": 3, "vnc": {}, "sdl": {} }), 1),
        ];
        for (item, expected, warned) in table {
            let (device, warnings) = read(|warnings| frame_buffer(item, 3, warnings));
            assert_eq!((device, warnings.len()), (Ok(expected), warned), "{item:?}: {warnings:?}");
        }
        let error = frame_buffer("vncdisplay=4294967296", 0, &mut Vec::new()).unwrap_err();
        assert!(error.contains("out of range"), "{error}");
    }

    #[test]
    fn keyboards() {
        let table = [
            ("backend-type=qemu", json!({ "devid": 1, "backend_type": "qemu" })),
            (
                "backend=d, backend-type=Linux,unique-id=u,feature-disable-keyboard=1,feature-disable-pointer=0,\
                 feature-abs-pointer=1,feature-raw-pointer=1,width=0x400,height=768",
                json!({
                    "devid": 1, "backend_domname": "d", "backend_type": "linux", "unique_id": "u", "width": 1024,
                    "height": 768, "feature_disable_keyboard": true, "feature_abs_pointer": true,
                    "feature_raw_pointer": true
                }),
            ),
            (
                "backend-type=qemu,multi-touch-width=5",
                json!({ "devid": 1, "backend_type": "qemu", "multi_touch_width": 5, "feature_multi_touch": true }),
            ),
            (
                "backend-type=qemu,feature-multi-touch=1,multi-touch-height=5,multi-touch-num-contacts=2",
                json!({
                    "devid": 1, "backend_type": "qemu", "feature_multi_touch": true, "multi_touch_height": 5,
                    "multi_touch_num_contacts": 2
                }),
            ),
        ];
        for (item, expected) in table {
            let (device, warnings) = read(|warnings| keyboard(item, 1, warnings));
            assert_eq!((device, warnings.len()), (Ok(expected), 0), "{item:?}: {warnings:?}");
        }
        for (item, expected) in [
            ("", "no backend-type is given; accepted: qemu, linux"),
            ("backend-type=unknown", "no backend-type is given"),
            ("backend-type=xen", "`xen` is not accepted for backend-type; accepted: qemu, linux"),
            ("backend-type=qemu,feature-multi-touch=1", "needs multi-touch-width"),
            ("backend-type=qemu,multi-touch-width=0,feature-multi-touch=1", "needs multi-touch-width"),
            ("backend-type=qemu,width=-1", "`width=-1` is out of range"),
            ("backend-type=qemu,depth=1", "`depth=1` is not known; accepted: backend, backend-type, unique-id"),
        ] {
            let error = keyboard(item, 0, &mut Vec::new()).expect_err(item);
            assert!(error.contains(expected), "{item:?}: {error}");
        }
    }

    #[test]
    fn displays() {
        let connector =
            |id: &str, width: u32, height: u32| json!({ "unique_id": id, "width": width, "height": height });
        let two = json!([connector("id0", 1920, 1080), connector("id1", 800, 600)]);
        let table = [
            ("connectors=id0:1920x1080;id1:800x600", json!({ "devid": 0, "connectors": two }), 0),
            (
                "backend=d, be-alloc=1,connectors=a:1x1,connectors=;id0:1920x1080;;id1: 800x600;",
                json!({ "devid": 0, "backend_domname": "d", "be_alloc": true, "connectors": two }),
                0,
            ),
            ("connectors=a:0x5", json!({ "devid": 0, "connectors": [{ "unique_id": "a", "height": 5 }] }), 0),
            // xl goes on here.
            ("connectors=a:big;b:1x1", json!({ "devid": 0, "connectors": [{ "unique_id": "a" }, {}] }), 1),
        ];
        for release in [14, 17, 18, 20] {
            for (item, expected, warned) in &table {
                let (device, warnings) = read(|warnings| display(item, 0, release, warnings));
                assert_eq!((device.as_ref(), warnings.len()), (Ok(expected), *warned), "{item:?}: {warnings:?}");
            }
            for (item, expected) in [
                ("", "no connectors are given, like connectors=id0:1920x1080"),
                ("connectors=", "connectors= is empty"),
                ("connectors=;", "connectors= is empty"),
                ("connectors=id0", "`id0` is not a connector like id0:1920x1080"),
                ("connectors=id0:", "`id0:` is not a connector"),
                ("connectors=id0:800", "`800` is not a resolution like 1920x1080"),
                ("connectors=id0:800X600", "`800X600` is not a resolution"),
                ("connectors=id0:800x", "`800x` is not a resolution"),
                ("connectors=id0:-1x1", "`-1x1` is out of range"),
                ("connectors=id0:1x1,foo=1", "`foo=1` is not known; accepted: backend, be-alloc, connectors"),
            ] {
                let error = display(item, 0, release, &mut Vec::new()).expect_err(item);
                assert!(error.contains(expected), "{item:?}: {error}");
            }
        }
        // Without a name, and with a second colon.
        assert!(display("connectors=:1x1", 0, 17, &mut Vec::new()).is_err());
        let named = display("connectors=:1x1", 0, 18, &mut Vec::new());
        assert_eq!(named, Ok(json!({ "devid": 0, "connectors": [connector("", 1, 1)] })));
        let (device, warnings) = read(|warnings| display("connectors=a:1x1:2x2", 0, 17, warnings));
        assert_eq!(device, Ok(json!({ "devid": 0, "connectors": [connector("a", 1, 1)] })));
        assert_eq!(warnings, ["`a:1x1:2x2` is cut off at the second `:`; not so since Xen 4.18"]);
    }
}
