//! What a guest needs of the host before it can be built: the files that it is booted from, its disks and its network.
//!
//! Both say what libxl and the scripts that it runs would look for, so that nothing is waited for that the guest could
//! do without. Disks and network cards that another domain serves are that domain's concern, and a disk with a script
//! of its own has a target that only the script understands.

mod network;
mod wait;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub use wait::wait;

/// Something that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// A file that the guest is booted from.
    BootFile {
        /// The key that names it.
        key: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// The file or block device behind a disk.
    Disk {
        /// The disk, as the guest sees it.
        vdev: String,
        /// Where it is.
        path: PathBuf,
    },
    /// The bridge of a network card.
    Bridge(String),
    /// The network device whose IPv4 address a routed network card uses as its own.
    Gateway(String),
}

impl Need {
    /// Looks whether it is there now.
    pub fn is_there(&self) -> bool {
        match self {
            Need::BootFile { path, .. } => path.is_file(),
            Need::Disk { path, .. } => path.exists(),
            Need::Bridge(name) => is_bridge_there(name),
            Need::Gateway(name) => network::has_ipv4_address(name),
        }
    }

    /// What appears when it does, if it is something with a path.
    fn path(&self) -> Option<&Path> {
        match self {
            Need::BootFile { path, .. } | Need::Disk { path, .. } => Some(path),
            Need::Bridge(_) | Need::Gateway(_) => None,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::BootFile { key, path } => write!(f, "{key}: {}", path.display()),
            Need::Disk { vdev, path } => write!(f, "disk {vdev}: {}", path.display()),
            Need::Bridge(name) => write!(f, "bridge {name}"),
            Need::Gateway(name) => write!(f, "network device {name} with an IPv4 address"),
        }
    }
}

/// What is needed to create a guest. `config` is its `libxl_domain_config` in libxl's JSON.
pub fn needs(config: &Value) -> Vec<Need> {
    // A bootloader gets kernel and ramdisk from inside the guest's disk. An HVM guest never has one.
    let from_disk = config["b_info"]["bootloader"].is_string() && !is_hvm(config);
    let mut needs = if from_disk { Vec::new() } else { boot_files(config) };
    add_devices(config, &mut needs);
    needs
}

/// What is needed to restore a guest whose saved configuration is `config`. Its kernel is in its memory already; only
/// QEMU opens the files once more.
pub fn needs_to_restore(config: &Value) -> Vec<Need> {
    let mut needs = if is_hvm(config) { boot_files(config) } else { Vec::new() };
    add_devices(config, &mut needs);
    needs
}

/// What of it is not there now.
pub fn missing(needs: &[Need]) -> Vec<&Need> {
    needs.iter().filter(|need| !need.is_there()).collect()
}

fn boot_files(config: &Value) -> Vec<Need> {
    let file = |key: &'static str| {
        let path = config["b_info"][key].as_str()?;
        Some(Need::BootFile { key, path: path.into() })
    };
    ["kernel", "ramdisk"].into_iter().filter_map(file).collect()
}

fn add_devices(config: &Value, needs: &mut Vec<Need>) {
    let list = |name: &str| config[name].as_array().map(Vec::as_slice).unwrap_or_default().iter();
    let disks = list("disks").filter(|disk| is_served_here(disk)).filter_map(|disk| disk_need(disk, config));
    let nics = list("nics").filter(|nic| is_served_here(nic)).filter_map(nic_need);
    for need in disks.chain(nics) {
        if !needs.contains(&need) {
            needs.push(need);
        }
    }
}

fn is_hvm(config: &Value) -> bool {
    config["c_info"]["type"] == "hvm"
}

/// Whether dom0 serves the device.
fn is_served_here(device: &Value) -> bool {
    let other_name = device["backend_domname"].as_str().is_some_and(|name| {
        let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { name.bytes().any(|byte| byte != b'0') } else { name != "Domain-0" }
    });
    !other_name && device["backend_domid"].as_u64().unwrap_or(0) == 0
}

/// libxl looks for the target as it stands, so that one without a slash in front is relative to the directory that the
/// program runs in, not to /dev. It leaves the target to QEMU if that serves the disk; there, anything but an absolute
/// path may be the address of something that is no file.
fn disk_need(disk: &Value, config: &Value) -> Option<Need> {
    let path = disk["pdev_path"].as_str().filter(|path| !path.is_empty())?;
    if disk["script"].is_string() || disk["format"] == "empty" {
        return None;
    }
    let is_cdrom = disk["is_cdrom"].as_u64().is_some_and(|is| is != 0);
    let is_qemus = disk["backend"] == "qdisk" || (is_cdrom && is_hvm(config));
    if is_qemus && !path.starts_with('/') {
        return None;
    }
    let vdev = disk["vdev"].as_str().unwrap_or_default().to_owned();
    Some(Need::Disk { vdev, path: path.into() })
}

/// What the script of a network card looks for. Of a script that is not Xen's, nothing is known.
fn nic_need(nic: &Value) -> Option<Need> {
    let script = nic["script"].as_str().unwrap_or("vif-bridge");
    // libxl's own default.
    let bridge = nic["bridge"].as_str().unwrap_or("xenbr0");
    match script.rsplit('/').next().unwrap_or_default() {
        // With an empty name it takes the first bridge that it finds.
        "vif-bridge" if !bridge.is_empty() => Some(Need::Bridge(bridge.to_owned())),
        "vif-openvswitch" => open_vswitch_bridge(bridge).map(|name| Need::Bridge(name.to_owned())),
        "vif-route" => {
            let device = nic["gatewaydev"].as_str().filter(|device| !device.is_empty());
            Some(Need::Gateway(device.unwrap_or("eth0").to_owned()))
        }
        _ => None,
    }
}

/// The bridge of `BRIDGE[.VLAN][:TRUNK[:TRUNK…]]`. `None`: the script refuses it.
fn open_vswitch_bridge(text: &str) -> Option<&str> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (place, trunks) = text.split_once(':').map_or((text, None), |(place, trunks)| (place, Some(trunks)));
    let (name, vlan) = place.split_once('.').map_or((place, None), |(name, vlan)| (name, Some(vlan)));
    let valid = !name.is_empty()
        && vlan.is_none_or(is_number)
        && trunks.is_none_or(|trunks| trunks.split(':').all(is_number));
    valid.then_some(name)
}

/// Like Xen's script, which takes `xenbr0` for `eth0` where that is the bridge, as it once was everywhere.
fn is_bridge_there(name: &str) -> bool {
    let older = || {
        let number = name.strip_prefix("xenbr")?;
        Some(Path::new("/sys/class/net").join(format!("eth{number}")).join("bridge"))
    };
    network::is_there(name) || older().is_some_and(|older| older.exists())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::guest_config::{GuestConfig, XenHost};

    fn config(kind: &str, text: &str) -> Value {
        let text = format!("name = 'g'\ntype = '{kind}'\n{text}\n");
        GuestConfig::parse(Path::new("g"), text.as_bytes(), &XenHost::default()).expect("valid").json
    }

    fn shown(needs: &[Need]) -> Vec<String> {
        needs.iter().map(ToString::to_string).collect()
    }

    fn of_disk(item: &str) -> Vec<String> {
        shown(&needs(&config("hvm", &format!("disk = [ '{item}' ]"))))
    }

    fn of_nic(item: &str) -> Vec<String> {
        shown(&needs(&config("pv", &format!("kernel = '/k'\nvif = [ '{item}' ]"))))[1..].to_vec()
    }

    #[test]
    fn boot_files_are_needed_unless_a_bootloader_finds_them() {
        let files = "kernel = '/k'\nramdisk = '/r'";
        assert_eq!(shown(&needs(&config("pv", files))), ["kernel: /k", "ramdisk: /r"]);
        assert_eq!(shown(&needs(&config("pv", &format!("{files}\nbootloader = 'pygrub'")))), [""; 0]);
        let json = json!({"c_info": {"type": "hvm"}, "b_info": {"bootloader": "pygrub", "kernel": "/k"}});
        assert_eq!(shown(&needs(&json)), ["kernel: /k"]);
    }

    #[test]
    fn only_qemu_wants_boot_files_when_a_guest_is_restored() {
        let files = "kernel = '/k'\ndisk = [ '/d,raw,xvda,w' ]";
        assert_eq!(shown(&needs_to_restore(&config("pvh", files))), ["disk xvda: /d"]);
        assert_eq!(shown(&needs_to_restore(&config("hvm", files))), ["kernel: /k", "disk xvda: /d"]);
    }

    #[test]
    fn disks_of_this_host_are_needed() {
        for (item, expected) in [
            ("/dev/vg/web,raw,xvda,w", Some("disk xvda: /dev/vg/web")),
            ("phy:/dev/vg/web,xvda,w", Some("disk xvda: /dev/vg/web")),
            ("/i.qcow2,qcow2,hda,w", Some("disk hda: /i.qcow2")),
            ("backendtype=qdisk,vdev=hda,target=/i.raw", Some("disk hda: /i.raw")),
            ("/cd.iso,raw,hdc:cdrom,r", Some("disk hdc: /cd.iso")),
            // libxl does not put /dev in front.
            ("vg/web,raw,xvda,w", Some("disk xvda: vg/web")),
            (",,hdc:cdrom,r", None),
            ("format=empty,vdev=hdc,cdrom", None),
            ("backend=storage,vdev=xvda,target=/dev/vg/web", None),
            ("backend=7,vdev=xvda,target=/dev/vg/web", None),
            ("backend=0,vdev=xvda,target=/dev/vg/web", Some("disk xvda: /dev/vg/web")),
            ("backend=Domain-0,vdev=xvda,target=/dev/vg/web", Some("disk xvda: /dev/vg/web")),
            ("script=block-iscsi,vdev=xvda,target=iqn=iqn.2014-01.a:b,portal=10.0.0.1", None),
            ("script=block-drbd,vdev=xvda,target=/web", None),
            ("backendtype=qdisk,vdev=hda,target=nbd:storage:10809", None),
            ("format=raw,vdev=hdc,devtype=cdrom,target=nbd:storage:10809", None),
        ] {
            assert_eq!(of_disk(item), expected.into_iter().collect::<Vec<_>>(), "{item}");
        }
        // As libxl writes it into images.
        let json = json!({"disks": [{"vdev": "xvda", "pdev_path": "/d", "backend_domid": 3}]});
        assert_eq!(needs(&json), []);
    }

    #[test]
    fn what_the_script_of_a_network_card_looks_for_is_needed() {
        for (item, expected) in [
            ("bridge=br7", Some("bridge br7")),
            ("mac=00:16:3e:00:00:01", Some("bridge xenbr0")),
            ("bridge=br7,script=vif-bridge", Some("bridge br7")),
            ("bridge=br7,script=/etc/xen/scripts/vif-bridge", Some("bridge br7")),
            ("bridge=", None),
            ("bridge=br7,backend=net", None),
            ("bridge=ovs,script=vif-openvswitch", Some("bridge ovs")),
            ("bridge=ovs.12:3:45,script=vif-openvswitch", Some("bridge ovs")),
            ("bridge=ovs:3,script=vif-openvswitch", Some("bridge ovs")),
            ("bridge=ovs.x,script=vif-openvswitch", None),
            ("bridge=ovs:3:,script=vif-openvswitch", None),
            ("script=vif-route,gatewaydev=eth7", Some("network device eth7 with an IPv4 address")),
            ("script=vif-route,bridge=br7", Some("network device eth0 with an IPv4 address")),
            ("script=vif-nat,bridge=br7", None),
            ("script=vif-ours,bridge=br7", None),
        ] {
            assert_eq!(of_nic(item), expected.into_iter().collect::<Vec<_>>(), "{item}");
        }
        let two = "kernel = '/k'\nvif = [ 'bridge=br7', 'bridge=br8', 'bridge=br7' ]";
        assert_eq!(shown(&needs(&config("pv", two)))[1..], ["bridge br7", "bridge br8"]);
    }

    #[test]
    fn what_is_there_is_not_missing() {
        let dir = tempfile::tempdir().expect("a directory");
        let there = dir.path().join("there");
        std::fs::write(&there, "").expect("write");
        let disk = |path: &Path| Need::Disk { vdev: "xvda".to_owned(), path: path.to_owned() };
        let kernel = |path: &Path| Need::BootFile { key: "kernel", path: path.to_owned() };
        let needs = [
            kernel(&there),
            kernel(dir.path()),
            disk(&there),
            disk(&there.join("x")),
            Need::Bridge("lo".to_owned()),
            Need::Bridge("no such bridge".to_owned()),
            Need::Gateway("no-such-device".to_owned()),
        ];
        assert_eq!(missing(&needs), [&needs[1], &needs[3], &needs[5], &needs[6]]);
    }
}
