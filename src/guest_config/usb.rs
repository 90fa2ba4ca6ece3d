//! The languages of `usbctrl` and `usbdev`: USB controllers, and devices of the host that are given to the guest.

use serde_json::{Map, Value, json};

use super::items::{self, Form, Parameter};

const CONTROLLER: &[Parameter] = &[
    Parameter("type", "type", Form::Word(Some("auto"), &["auto", "pv", "devicemodel", "qusb"])),
    Parameter("version", "version", Form::Int(0)),
    Parameter("ports", "ports", Form::Int(0)),
];

const DEVICE: &[Parameter] = &[
    Parameter("type", "type", Form::Word(None, &["hostdev"])),
    Parameter("hostbus", "hostbus", Form::Unsigned(u8::MAX as u32)),
    Parameter("hostaddr", "hostaddr", Form::Unsigned(u8::MAX as u32)),
    Parameter("controller", "ctrl", Form::Int(-1)),
    Parameter("port", "port", Form::Int(0)),
];

/// Reads an item of `usbctrl = [ … ]` into a `libxl_device_usbctrl`.
pub(super) fn controller(item: &str, number: usize, warnings: &mut Vec<String>) -> Result<Value, String> {
    let mut controller = Map::new();
    controller.insert("devid".to_owned(), json!(number));
    items::read(CONTROLLER, item, &mut controller, warnings)?;
    Ok(Value::Object(controller))
}

/// Reads an item of `usbdev = [ … ]` into a `libxl_device_usbdev`.
///
/// A device of which no type is given is one of the host too. libxl knows that only when it adds the device, and has
/// lost the rest by then if it was printed as JSON; so the type is always written.
pub(super) fn device(item: &str, warnings: &mut Vec<String>) -> Result<Value, String> {
    let mut device = Map::new();
    items::read(DEVICE, item, &mut device, warnings)?;
    device.remove("type");
    let mut host = Map::new();
    for field in ["hostbus", "hostaddr"] {
        if let Some(number) = device.remove(field) {
            host.insert(field.to_owned(), number);
        }
    }
    device.insert("type.hostdev".to_owned(), Value::Object(host));
    Ok(Value::Object(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers() {
        for (item, expected) in [
            ("", json!({ "devid": 2 })),
            ("type=auto,version=2,ports=8", json!({ "devid": 2, "version": 2, "ports": 8 })),
            (" type=QUSB,,version=3,version=0", json!({ "devid": 2, "type": "qusb" })),
            ("type=devicemodel,ports=-3", json!({ "devid": 2, "type": "devicemodel", "ports": -3 })),
            ("type=pv,type=auto", json!({ "devid": 2 })),
        ] {
            let mut warnings = Vec::new();
            assert_eq!((controller(item, 2, &mut warnings), warnings.len()), (Ok(expected), 0), "{item:?}");
        }
        let mut warnings = Vec::new();
        assert_eq!(controller("ports=8z", 0, &mut warnings), Ok(json!({ "devid": 0, "ports": 8 })));
        assert_eq!(warnings, ["`ports=8z` is taken for 8: a number is expected"]);
        for (item, expected) in [
            ("type=usb", "`usb` is not accepted for type; accepted: auto, pv, devicemodel, qusb"),
            ("ports=4294967304", "out of range"),
            ("speed=1", "`speed=1` is not known; accepted: type, version, ports"),
            ("ports", "`ports` is not known"),
        ] {
            let error = controller(item, 0, &mut Vec::new()).expect_err(item);
            assert!(error.contains(expected), "{item:?}: {error}");
        }
    }

    #[test]
    fn devices() {
        for (item, expected) in [
            ("", json!({ "type.hostdev": {} })),
            ("hostbus=1,hostaddr=0x10", json!({ "type.hostdev": { "hostbus": 1, "hostaddr": 16 } })),
            (
                "type=HostDev, hostbus=1,hostaddr=3,controller=0,port=4",
                json!({ "type.hostdev": { "hostbus": 1, "hostaddr": 3 }, "ctrl": 0, "port": 4 }),
            ),
            ("controller=5,controller=-1,hostbus=1,hostbus=0", json!({ "type.hostdev": {} })),
        ] {
            let mut warnings = Vec::new();
            assert_eq!((device(item, &mut warnings), warnings.len()), (Ok(expected), 0), "{item:?}");
        }
        for (item, expected) in [
            ("type=guestdev", "`guestdev` is not accepted for type; accepted: hostdev"),
            ("hostbus=256", "`hostbus=256` is out of range; accepted: 0 to 255"),
            ("vendor=1", "`vendor=1` is not known; accepted: type, hostbus, hostaddr, controller, port"),
        ] {
            let error = device(item, &mut Vec::new()).expect_err(item);
            assert!(error.contains(expected), "{item:?}: {error}");
        }
    }
}
