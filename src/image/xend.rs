//! What stands at the start of an image that xend has written.
//!
//! ```text
//!  0  16  "LinuxGuestRecord"
//! 16   4  length of the configuration, big-endian
//! 20      the configuration, an S-expression: (domain (name …) (uuid …) …)
//!      …  the guest's state as libxc writes it, and that of its device model
//! ```
//!
//! Nothing at its end tells whether such a file is whole.

use serde_json::{Value, json};
use uuid::Uuid;

use super::header::{CONFIG_LIMIT, Header, Source};
use super::{Format, Part, Problem};
use crate::sxp::Sxp;

pub(super) const MAGIC: &[u8; 16] = b"LinuxGuestRecord";
const LENGTH: u64 = 20;

/// Reads the header.
pub(super) fn read(source: &impl Source, length: u64) -> Result<Header, Problem> {
    let io = |source| Problem::Io { action: "read", source };
    let truncated = |part| Problem::Truncated { part, length };
    if length < LENGTH {
        return Err(truncated(Part::Header));
    }
    let mut word = [0; 4];
    source.read(16, &mut word).map_err(io)?;
    let config_length = u64::from(u32::from_be_bytes(word));
    if config_length > CONFIG_LIMIT {
        return Err(Problem::ConfigTooLong { length: config_length });
    }
    let stream_offset = LENGTH + config_length;
    if length < stream_offset {
        return Err(truncated(Part::Config));
    }
    if length == stream_offset {
        return Err(truncated(Part::Stream));
    }
    let mut text = vec![0; usize::try_from(config_length).unwrap_or_default()];
    source.read(LENGTH, &mut text).map_err(io)?;
    let all = Sxp::parse_all(&text).map_err(Problem::ConfigNotSxp)?;
    let domain = all.first().ok_or(Problem::NoConfig)?;
    let name = domain.value("name").filter(|name| !name.is_empty()).ok_or(Problem::ConfigWithout("name"))?;
    let uuid = domain.value("uuid").and_then(|uuid| Uuid::try_parse(uuid).ok()).filter(|uuid| !uuid.is_nil());
    let uuid = uuid.ok_or(Problem::ConfigWithout("uuid"))?;
    let config = config(domain, name, uuid);
    Ok(Header { name: name.to_owned(), uuid, config, stream_offset, format: Format::Xend })
}

/// What of the configuration somebody may ask for, in libxl's JSON: the guest's disks.
fn config(domain: &Sxp, name: &str, uuid: Uuid) -> Value {
    let devices =
        domain.children("device").flat_map(|device| ["vbd", "tap", "tap2"].map(|kind| device.children(kind)));
    let disks: Vec<Value> = devices.flatten().filter_map(disk).collect();
    let memory =
        domain.value("memory").and_then(|mib| mib.parse::<u64>().ok()).map(|mib| mib.saturating_mul(1024));
    json!({
        "c_info": { "name": name, "uuid": uuid },
        "b_info": { "max_memkb": memory, "target_memkb": memory },
        "disks": disks,
    })
}

fn disk(device: &Sxp) -> Option<Value> {
    let (kind, target) = device.value("uname")?.split_once(':')?;
    let path = match kind {
        "phy" if target.starts_with('/') => target.to_owned(),
        "phy" => format!("/dev/{target}"),
        "file" => target.to_owned(),
        // What blktap calls its kinds of files.
        "tap" | "tap2" => target.rsplit_once(':').map_or(target, |(_, path)| path).to_owned(),
        _ => return None,
    };
    let writes = device.value("mode").is_some_and(|mode| mode.starts_with('w'));
    let vdev = device.value("dev").unwrap_or_default();
    let (vdev, is_cdrom) = vdev.split_once(':').map_or((vdev, false), |(vdev, kind)| (vdev, kind == "cdrom"));
    Some(
        json!({ "pdev_path": path, "vdev": vdev, "readwrite": i32::from(writes), "is_cdrom": i32::from(is_cdrom) }),
    )
}

#[cfg(test)]
pub(in super::super) mod tests {
    use super::*;

    /// What xend writes, but for the guest's state.
    pub(in super::super) fn image(name: &str) -> Vec<u8> {
        let uuid = super::super::header::tests::UUID;
        let config = format!(
            "(domain (domid 3) (uuid {uuid}) (vcpus 1) (name '{name}') (memory 512) (device (vif (bridge eth0))) \
             (device (vbd (uname phy:vg0/web) (dev xvda:disk) (mode w))) (device (tap (uname tap:aio:/srv/a b.img) \
             (dev xvdb:cdrom) (mode r))))"
        );
        let mut bytes = MAGIC.to_vec();
        bytes.extend(u32::try_from(config.len()).unwrap().to_be_bytes());
        bytes.extend(config.bytes());
        bytes.extend(b"the guest's state");
        bytes
    }

    #[test]
    fn whose_it_is_and_which_disks_it_has() {
        let bytes = image("my guest");
        let header = read(&&bytes[..], bytes.len() as u64).unwrap();
        assert_eq!((header.name.as_str(), header.format), ("my guest", Format::Xend));
        assert_eq!(&bytes[usize::try_from(header.stream_offset).unwrap()..], b"the guest's state");
        assert_eq!(header.config["b_info"]["max_memkb"], 512 << 10);
        // The second one's name is cut by the blank: it stands without quotes.
        assert_eq!(
            header.config["disks"],
            json!([
                { "pdev_path": "/dev/vg0/web", "vdev": "xvda", "readwrite": 1, "is_cdrom": 0 },
                { "pdev_path": "/srv/a", "vdev": "xvdb", "readwrite": 0, "is_cdrom": 1 },
            ])
        );
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let bytes = image("web");
        let end = bytes.len() - b"the guest's state".len();
        for length in [16, 19, 20, 50, end - 1, end] {
            let cut = &bytes[..length];
            assert!(matches!(read(&cut, length as u64), Err(Problem::Truncated { .. })), "{length}");
        }
        for config in ["", "(domain", "(domain (name web))", "(domain (name web) (uuid 0))"] {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(u32::try_from(config.len()).unwrap().to_be_bytes());
            bytes.extend(config.bytes());
            bytes.extend(b"state");
            assert!(read(&&bytes[..], bytes.len() as u64).is_err(), "{config}");
        }
    }
}
