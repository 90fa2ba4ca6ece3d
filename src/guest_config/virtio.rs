//! The language of `virtio`: devices that the guest finds by virtio, from a backend that is no part of Xen.

use serde_json::{Map, Value, json};

use super::items::{self, Base, Form, Parameter};

const PARAMETERS: &[Parameter] = &[
    Parameter("backend", "backend_domname", Form::Text),
    Parameter("type", "type", Form::Text),
    Parameter("transport", "transport", Form::Word(Some("unknown"), &["mmio"])),
    Parameter("grant_usage", "grant_usage", Form::Defbool(Base::Any)),
];

/// Reads an item of `virtio = [ … ]` into a `libxl_device_virtio`.
pub(super) fn parse(item: &str, number: usize, warnings: &mut Vec<String>) -> Result<Value, String> {
    let mut device = Map::new();
    device.insert("devid".to_owned(), json!(number));
    let mut parts = items::parts(item, ',');
    while let Some(part) = parts.next() {
        let parameter = part.trim_start_matches(' ');
        match parameter.strip_prefix("type=").filter(|kind| kind.starts_with("virtio")) {
            // A type like `virtio,device22` has a comma in it.
            Some(kind) => {
                let id =
                    parts.next().ok_or_else(|| format!("`{parameter}` is not a type like virtio,device22"))?;
                device.insert("type".to_owned(), json!(format!("{kind},{id}")));
            }
            None => items::take(PARAMETERS, parameter, &mut device, warnings)?,
        }
    }
    Ok(Value::Object(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted() {
        for (item, expected) in [
            ("", json!({ "devid": 0 })),
            (
                "backend=d, type=virtio,device22, transport=MMIO,grant_usage=1",
                json!({
                    "devid": 0, "backend_domname": "d", "type": "virtio,device22", "transport": "mmio",
                    "grant_usage": "True"
                }),
            ),
            ("type=other,transport=mmio,transport=unknown", json!({ "devid": 0, "type": "other" })),
            ("type=virtio,transport=mmio", json!({ "devid": 0, "type": "virtio,transport=mmio" })),
        ] {
            let mut warnings = Vec::new();
            assert_eq!((parse(item, 0, &mut warnings), warnings.len()), (Ok(expected), 0), "{item:?}");
        }
    }

    #[test]
    fn refused() {
        for (item, expected) in [
            ("type=virtio", "`type=virtio` is not a type like virtio,device22"),
            ("type=other,device22", "`device22` is not known; accepted: backend, type, transport, grant_usage"),
            ("transport=pci", "`pci` is not accepted for transport; accepted: mmio"),
            ("type=x, ", "`` is not known"),
            ("irq=1", "`irq=1` is not known"),
        ] {
            let error = parse(item, 0, &mut Vec::new()).expect_err(item);
            assert!(error.contains(expected), "{item:?}: {error}");
        }
    }
}
