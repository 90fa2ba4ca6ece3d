//! Whole files against the JSON that xl prints for them.

use super::*;
use proptest::prelude::*;

fn parse_with(source: &str, host: &XenHost) -> Result<GuestConfig, Error> {
    GuestConfig::parse(Path::new("t.cfg"), source.as_bytes(), host)
}

fn parse(source: &str) -> GuestConfig {
    parse_with(source, &XenHost::default()).unwrap_or_else(|e| panic!("{source}: {e}"))
}

/// A file for a small guest of this type with `more` in it.
fn guest(kind: &str, more: &str) -> GuestConfig {
    parse(&format!("name = 'g'\ntype = '{kind}'\nkernel = '/k'\n{more}\n"))
}

fn error(more: &str) -> String {
    let source = format!("name = 'g'\nkernel = '/k'\n{more}\n");
    parse_with(&source, &XenHost::default()).expect_err(more).to_string()
}

#[test]
fn a_pv_guest() {
    let source = r#"
name = "web"
uuid = "11111111-2222-3333-4444-555555555555"
memory = 256
vcpus = 2
kernel = "/boot/vmlinuz"
extra = "console=hvc0"
root = "/dev/xvda ro"
disk = [ "/dev/vg/web,raw,xvda,rw" ]
vif = [ "mac=00:16:3e:01:02:03,bridge=xenbr0" ]
on_crash = "coredump-destroy"
"#;
    let config = parse(source);
    let expected = json!({
        "c_info": {
            "type": "pv", "name": "web", "uuid": "11111111-2222-3333-4444-555555555555", "run_hotplug_scripts": "True"
        },
        "b_info": {
            "max_vcpus": 2, "avail_vcpus": [0, 1], "max_memkb": 262_144, "target_memkb": 262_144,
            "sched_params": {}, "claim_mode": "True",
            "kernel": "/boot/vmlinuz", "cmdline": "root=/dev/xvda ro console=hvc0",
            "type.pv": {}, "arch_arm": { "arm_sci": {} }, "arch_x86": {}, "xenstore_quota": {}
        },
        "disks": [ { "pdev_path": "/dev/vg/web", "vdev": "xvda", "format": "raw", "readwrite": 1 } ],
        "nics": [ { "devid": 0, "mac": "00:16:3e:01:02:03", "bridge": "xenbr0" } ],
        "on_reboot": "restart", "on_crash": "coredump_destroy", "on_soft_reset": "soft_reset"
    });
    assert_eq!(config.json, expected);
    assert_eq!((config.name.as_str(), config.uuid_given), ("web", true));
    assert_eq!(config.uuid.to_string(), "11111111-2222-3333-4444-555555555555");
    assert_eq!((config.warnings, config.unknown_keys), (vec![], vec![]));
}

#[test]
fn a_pvh_guest() {
    let source = r#"
type = "pvh"; name = "n"; maxmem = 512; memory = 256; maxvcpus = 4; vcpus = 1
bootloader = "pygrub"; bootloader_args = [ "-q", "x" ]
cpu_weight = 512; cap = 50; pool = "p"; nomigrate = 1; localtime = 0; rtc_timeoffset = "-3600"
tsc_mode = "Native"; max_event_channels = 4096; max_grant_frames = 64
on_poweroff = "preserve"; on_reboot = "destroy"; on_watchdog = "restart"; on_soft_reset = "rename-restart"
pvshim = 1; acpi = 0; hpet = 1
"#;
    let config = parse(source);
    let expected = json!({
        "c_info": {
            "type": "pvh", "name": "n", "uuid": config.uuid.to_string(), "run_hotplug_scripts": "True", "pool_name": "p"
        },
        "b_info": {
            "max_vcpus": 4, "avail_vcpus": [0], "max_memkb": 524_288, "target_memkb": 262_144,
            "sched_params": { "weight": 512, "cap": 50 }, "claim_mode": "True",
            "bootloader": "pygrub", "bootloader_args": ["-q", "x"],
            "disable_migrate": "True", "localtime": "False", "rtc_timeoffset": 4_294_963_696_u32,
            "tsc_mode": "native", "event_channels": 4096, "max_grant_frames": 64, "acpi": "False",
            "type.pvh": { "pvshim": "True" }, "arch_arm": { "arm_sci": {} }, "arch_x86": {}, "xenstore_quota": {}
        },
        "on_poweroff": "preserve", "on_watchdog": "restart", "on_soft_reset": "restart_rename"
    });
    assert_eq!(config.json, expected);
    assert!(!config.uuid_given && !config.uuid.is_nil());
}

#[test]
fn an_hvm_guest() {
    let source = r#"
builder = "hvm"; name = "n"; memory = 64
kernel = "/usr/lib/xen/boot/hvmloader"
boot = "cd"; vnc = 1; vnclisten = "0.0.0.0"; stdvga = 1; usbdevice = [ "tablet" ]; serial = "pty"; firmware = "uefi"
apic = 1; viridian = 1; device_model_version = "qemu-xen"; device_model_args = [ "-x" ]; timer_mode = 2; hap = 0
"#;
    let config = parse(source);
    let expected = json!({
        "c_info": {
            "type": "hvm", "name": "n", "uuid": config.uuid.to_string(), "run_hotplug_scripts": "True", "hap": "False"
        },
        "b_info": {
            "max_vcpus": 1, "avail_vcpus": [0], "max_memkb": 65536, "target_memkb": 65536,
            "sched_params": {}, "claim_mode": "True", "apic": "True",
            "device_model_version": "qemu_xen", "extra": ["-x"], "timer_mode": "no_missed_ticks_pending",
            "type.hvm": {
                "bios": "ovmf", "viridian": "True", "boot": "cd", "serial": "pty", "usbdevice_list": ["tablet"],
                "vga": { "kind": "std" }, "vnc": { "enable": "True", "listen": "0.0.0.0" },
                "sdl": {}, "spice": {}, "rdm": {}
            },
            "arch_arm": { "arm_sci": {} }, "arch_x86": {}, "xenstore_quota": {}
        },
        "on_reboot": "restart", "on_soft_reset": "soft_reset"
    });
    assert_eq!(config.json, expected);
    // hvmloader, and the number of timer_mode.
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
}

#[test]
fn types() {
    for (text, expected) in [("", "hvm"), ("h", "hvm"), ("hvm", "hvm"), ("p", "pv"), ("pv", "pv"), ("pvh", "pvh")]
    {
        assert_eq!(guest(text, "").json["c_info"]["type"], expected, "{text:?}");
    }
    assert_eq!(guest("pv", "builder='generic'").json["c_info"]["type"], "pv");
    assert!(error("type='xen'").contains("t.cfg:3: type: `xen` is not a guest type"));
    assert!(error("type='PV'").contains("not a guest type"));
    assert!(error("builder='linux'").contains("not a builder"));
    assert!(error("type='pvh'\nbuilder='generic'").contains("contradicts"));
}

#[test]
fn the_hosts_defaults() {
    let host = XenHost::of(XlConf {
        run_hotplug_scripts: false,
        claim_mode: false,
        blkdev_start: Some("xvdb".to_owned()),
        max_grant_frames: Some(32),
        max_maptrack_frames: Some(512),
        bootloader_restrict: Some(true),
        vif_bridge: Some("br1".to_owned()),
        ..XlConf::default()
    });
    let source = "name='g'; kernel='/k'; max_grant_frames=8; vif=['', 'bridge=b']";
    let json = parse_with(source, &host).unwrap().json;
    assert_eq!(json["c_info"]["run_hotplug_scripts"], "False");
    let build = &json["b_info"];
    assert_eq!((&build["claim_mode"], &build["blkdev_start"]), (&json!("False"), &json!("xvdb")));
    assert_eq!((&build["max_grant_frames"], &build["max_maptrack_frames"]), (&json!(8), &json!(512)));
    assert_eq!(build["bootloader_restrict"], "True");
    assert_eq!(json["nics"], json!([{ "devid": 0, "bridge": "br1" }, { "devid": 1, "bridge": "b" }]));
}

#[test]
fn command_lines() {
    for (more, expected) in [
        ("", Value::Null),
        ("cmdline='a b'", json!("a b")),
        ("root='/dev/x'", json!("root=/dev/x")),
        ("extra='3'", json!("3")),
        ("root='/dev/x'; extra='3'", json!("root=/dev/x 3")),
        ("cmdline=''", json!("")),
    ] {
        assert_eq!(guest("pv", more).json["b_info"]["cmdline"], expected, "{more}");
    }
    let both = guest("pv", "cmdline='a'; extra='b'");
    assert_eq!(both.json["b_info"]["cmdline"], "a");
    assert_eq!(both.warnings.len(), 1);
}

#[test]
fn processors() {
    for (release, more, online, limit) in [
        (21, "", Value::Null, Value::Null),
        (21, "vcpus=0", Value::Null, Value::Null),
        (21, "maxvcpus=4", Value::Null, json!(4)),
        (22, "", json!([0]), json!(1)),
        (22, "vcpus=0", json!([0]), json!(1)),
        (22, "maxvcpus=4", json!([0]), json!(4)),
        (22, "vcpus=3", json!([0, 1, 2]), json!(3)),
        (22, "vcpus=1; maxvcpus=4", json!([0]), json!(4)),
    ] {
        let host = XenHost { release, ..XenHost::default() };
        let config = parse_with(&format!("name='g'; type='pv'; kernel='/k'; {more}"), &host).expect(more);
        let build = &config.json["b_info"];
        assert_eq!((&build["avail_vcpus"], &build["max_vcpus"]), (&online, &limit), "4.{release}: {more}");
    }
    assert!(error("vcpus=4; maxvcpus=2").contains("maxvcpus: it is lower than vcpus (4)"));
    assert!(error("vcpus='-1'").contains("out of range"));
    assert!(error("vcpus=1000000").contains("out of range"));
}

#[test]
fn what_xl_only_warns_about() {
    let config =
        guest("pv", "memory = 'much'\nvcpus = [2]\ndisk = 'phy:/x,xvda,w'\nvif2 = []\nbootloader_args = '-a  -b'");
    assert_eq!(config.json["b_info"]["target_memkb"], Value::Null);
    assert_eq!(config.json["disks"], Value::Null);
    assert_eq!(config.json["b_info"]["bootloader_args"], json!(["-a", "-b"]));
    let shown: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 5, "{shown:#?}");
    assert!(shown.contains(&"t.cfg:4: memory: not a valid number; it is ignored".to_owned()), "{shown:#?}");
}

#[test]
fn what_is_an_error() {
    for (more, expected) in [
        ("name = ''", "t.cfg:3: name: the guest's name is empty"),
        ("name = \"\\t\"; name = ['x']", "t.cfg: name"),
        ("uuid = 'x'", "t.cfg:3: uuid: `x` is not a UUID"),
        ("uuid = '11111111222233334444555555555555'", "not a UUID"),
        ("uuid = '00000000-0000-0000-0000-000000000000'", "not a UUID"),
        ("memory = '-5'", "t.cfg:3: memory: -5 is out of range"),
        ("on_crash = 'Destroy'", "on_crash: `Destroy` is not a known action; accepted: destroy, restart"),
        ("tsc_mode = 4", "tsc_mode: 4 is not accepted"),
        ("tsc_mode = 'x'", "tsc_mode: `x` is not accepted here; accepted: default, always_emulate"),
        ("max_grant_frames = 'x'", "max_grant_frames: not a valid number"),
        ("max_maptrack_frames = '-1'", "out of range"),
        ("disk = ['/x,raw']", "t.cfg:3: disk: in `/x,raw`: no vdev is given"),
        ("disk = [['/x,raw,xvda']]", "item 1 of the list is a list"),
        ("vif = ['mac=5']", "t.cfg:3: vif: in `mac=5`: `5` is not a MAC address"),
        ("device_model_version = 'qemu'", "accepted: qemu-xen"),
        ("device_model_args = 'x'", "a list of strings is expected"),
        ("timer_mode = 1", "PV guests don't have it"),
        ("type = 'hvm'; vga = 'x'", "accepted: stdvga"),
        ("type = 'hvm'; vnclisten = '0:1'; vncdisplay = 2", "the display is given in vnclisten too"),
        ("cpu_weight = 4294967552", "out of range"),
        ("xendomains = ['order=x']", "t.cfg:3: xendomains: `order=x` needs a whole number"),
    ] {
        let shown = error(more);
        if expected == "t.cfg: name" {
            // A list is no name: xl warns, and then misses it.
            assert!(shown.contains("name: the guest's name is not given"), "{shown}");
        } else {
            assert!(shown.contains(expected), "{more}: {shown}");
        }
    }
    let shown = parse_with("name='g'\n", &XenHost::default()).unwrap_err().to_string();
    assert_eq!(shown, "t.cfg: kernel: neither a kernel nor a bootloader is given");
    let shown = parse_with("kernel='/k'\n", &XenHost::default()).unwrap_err().to_string();
    assert_eq!(shown, "t.cfg: name: the guest's name is not given");
    let shown = parse_with("name = 'g'\nmemory = True\n", &XenHost::default()).unwrap_err().to_string();
    assert!(shown.starts_with("t.cfg:2: `True` is not accepted") && shown.ends_with("(column 10)"), "{shown}");
}

#[test]
fn keys_of_other_types_of_guests_are_not_looked_at() {
    guest("pv", "mca_caps = ['lmc']\nviridian = ['x']\nms_vm_genid = 'y'\nmmio_hole = 1");
    guest("hvm", "ms_vm_genid = 'none'");
}

/// The field that a key becomes, with a host of this release.
fn field(release: u32, kind: &str, more: &str, pointer: &str) -> (Value, Vec<String>) {
    let host = XenHost { release, ..XenHost::default() };
    let source = format!("name='g'; type='{kind}'; bootloader='/b'\n{more}\n");
    let config = parse_with(&source, &host).unwrap_or_else(|e| panic!("{more}: {e}"));
    let value = config.json.pointer(pointer).cloned().unwrap_or_default();
    (value, config.warnings.iter().map(ToString::to_string).collect())
}

#[test]
fn keys_of_later_releases_are_ignored() {
    for (key, since, value, pointer) in [
        ("msr_relaxed", 15, "1", "/b_info/arch_x86/msr_relaxed"),
        ("vmtrace_buf_kb", 15, "64", "/b_info/vmtrace_buf_kb"),
        ("max_grant_version", 16, "1", "/b_info/max_grant_version"),
        ("stubdomain_cmdline", 16, "'x'", "/b_info/stubdomain_cmdline"),
        ("vpmu", 16, "1", "/b_info/vpmu"),
        ("bootloader_restrict", 18, "1", "/b_info/bootloader_restrict"),
        ("bootloader_user", 18, "'x'", "/b_info/bootloader_user"),
        ("smbios", 18, "['oem=x']", "/b_info/type.hvm/smbios"),
        ("sve", 18, "'hw'", "/b_info/arch_arm/sve_vl"),
        ("hvm_pirq", 19, "1", "/b_info/type.hvm/pirq"),
        ("nr_spis", 19, "64", "/b_info/arch_arm/nr_spis"),
        ("llc_colors", 20, "['1-2']", "/b_info/llc_colors"),
        ("altp2m_count", 21, "5", "/b_info/altp2m_count"),
        ("arm_sci", 21, "'type=scmi_smc'", "/b_info/arch_arm/arm_sci/type"),
        ("trap_unmapped_accesses", 21, "1", "/b_info/trap_unmapped_accesses"),
        ("xen_platform_pci_bar_uc", 21, "0", "/b_info/type.hvm/xen_platform_pci_bar_uc"),
        ("xenstore_feature_mask", 21, "3", "/b_info/xenstore_feature_mask"),
        ("xenstore_quota", 22, "['nodes=9']", "/b_info/xenstore_quota/quota"),
    ] {
        let more = format!("{key} = {value}");
        assert_ne!(field(since, "hvm", &more, pointer).0, Value::Null, "{key}");
        let (absent, warnings) = field(since - 1, "hvm", &more, pointer);
        let warning = format!("t.cfg:2: {key}: this key needs Xen 4.{since} or newer; it is ignored");
        assert_eq!((absent, warnings), (Value::Null, vec![warning]));
    }
    // The host's defaults are for such a key too, and 4.13 is none of those known.
    let xl_conf = XlConf { bootloader_restrict: Some(true), max_grant_version: Some(1), ..XlConf::default() };
    for (release, restricted) in [(13, false), (17, false), (18, true)] {
        let host = XenHost { release, ..XenHost::of(xl_conf.clone()) };
        let config = parse_with("name='g'; bootloader='/b'; memory=1; cpus_soft='1'; vcpus=1", &host).unwrap();
        assert_eq!(config.json["b_info"]["bootloader_restrict"].is_string(), restricted);
        assert_eq!(config.warnings, []);
    }
}

#[test]
fn what_each_release_prints_of_an_empty_guest() {
    let printed = |release| {
        let source = "name='g'; bootloader='/b'; uuid='11111111-2222-3333-4444-555555555555'";
        parse_with(source, &XenHost { release, ..XenHost::default() }).unwrap().json["b_info"].clone()
    };
    let mut expected = json!({
        "bootloader": "/b", "claim_mode": "True", "sched_params": {}, "type.pv": {}, "arch_arm": {}
    });
    assert_eq!(printed(14), expected);
    expected["arch_x86"] = json!({});
    for release in 15..=20 {
        assert_eq!(printed(release), expected);
    }
    expected["arch_arm"]["arm_sci"] = json!({});
    assert_eq!(printed(21), expected);
    expected["xenstore_quota"] = json!({});
    expected["avail_vcpus"] = json!([0]);
    expected["max_vcpus"] = json!(1);
    assert_eq!(printed(22), expected);
}

#[test]
fn small_keys() {
    let genid = field(20, "hvm", "ms_vm_genid = 'generate'", "/b_info/type.hvm/ms_vm_genid").0;
    assert_eq!(genid.as_array().map(Vec::len), Some(16), "{genid}");
    assert_ne!(genid, field(20, "hvm", "ms_vm_genid = 'generate'", "/b_info/type.hvm/ms_vm_genid").0);
    for (kind, more, pointer, expected) in [
        ("hvm", "viridian=['base', '!FREQ', 'freq', '!base']", "/b_info/type.hvm/viridian_enable", json!([1])),
        ("hvm", "viridian=['base', '!FREQ', 'freq', '!base']", "/b_info/type.hvm/viridian_disable", json!([0])),
        ("hvm", "viridian=['!base', 'all']", "/b_info/type.hvm/viridian_enable/63", json!(63)),
        (
            "hvm",
            "viridian=['defaults']",
            "/b_info/type.hvm",
            json!({"viridian": "True", "vga": {}, "vnc": {}, "sdl": {}, "spice": {}, "rdm": {}}),
        ),
        ("hvm", "viridian=[]", "/b_info/type.hvm/viridian", Value::Null),
        ("hvm", "viridian=0", "/b_info/type.hvm/viridian", json!("False")),
        ("hvm", "mmio_hole=256", "/b_info/type.hvm/mmio_hole_memkb", json!(262_144)),
        ("hvm", "mca_caps=['lmce','lmce']", "/b_info/type.hvm/mca_caps", json!(1)),
        ("hvm", "mca_caps=[]", "/b_info/type.hvm/mca_caps", Value::Null),
        (
            "hvm",
            "smbios=['OEM=a=b','bios_vendor=c']",
            "/b_info/type.hvm/smbios",
            json!([{"key": "oem", "value": "a=b"}, {"key": "bios_vendor", "value": "c"}]),
        ),
        ("pv", "smbios='x'", "/b_info/type.pv", json!({})),
        ("pv", "altp2m=2", "/b_info/altp2m", json!("external")),
        ("pv", "altp2m='Limited'", "/b_info/altp2m", json!("limited")),
        ("pv", "altp2m=0", "/b_info/altp2m", Value::Null),
        ("pv", "tee='ffa'", "/b_info/tee", json!("ffa")),
        ("pv", "tee='none'", "/b_info/tee", Value::Null),
        (
            "pv",
            "gic_version='V3'; vuart='sbsa_uart'; sve=256",
            "/b_info/arch_arm",
            json!({"gic_version": "v3", "vuart": "sbsa_uart", "sve_vl": "256"}),
        ),
        ("pv", "gic_version='default'; vuart='unknown'; sve='disabled'; nr_spis=0", "/b_info/arch_arm", json!({})),
        (
            "pv",
            "device_model_version='qemu-xen-traditional'",
            "/b_info/device_model_version",
            json!("qemu_xen_traditional"),
        ),
        ("hvm", "bios_path_override='/p'; bios='ovmf'", "/b_info/type.hvm/bios", json!("ovmf")),
    ] {
        assert_eq!(field(20, kind, more, pointer), (expected, vec![]), "{more}");
    }
    for (kind, more, pointer, expected) in [
        ("pv", "nr_spis=0", "/b_info/arch_arm/nr_spis", json!(0)),
        ("pv", "nr_spis=4294967295", "/b_info/arch_arm/nr_spis", Value::Null),
        ("pv", "altp2m_count=0", "/b_info/altp2m_count", json!(0)),
        ("pv", "xenstore_feature_mask=4294967295", "/b_info/xenstore_feature_mask", Value::Null),
        (
            "pv",
            "xenstore_quota=['a=0x10','=0']",
            "/b_info/xenstore_quota/quota",
            json!([{"name": "a", "val": 16}, {"name": ""}]),
        ),
        ("pv", "arm_sci='type=scmi_smc,type=none'", "/b_info/arch_arm/arm_sci", json!({})),
    ] {
        assert_eq!(field(22, kind, more, pointer), (expected, vec![]), "{more}");
    }
    for (kind, more, words) in [
        ("pv", "msr_relaxed = 1", "msr_relaxed: this key is going to be removed"),
        ("hvm", "bios_path_override = '/p'", "bios_path_override: it is given without bios"),
        ("pv", "arm_sci = 'x'", "arm_sci: `x` is not known and ignored"),
        ("pv", "vnuma = 'x'", "vnuma: a list is expected"),
    ] {
        let warnings = field(22, kind, more, "").1;
        assert!(warnings.len() == 1 && warnings[0].contains(words), "{warnings:?}");
    }
}

#[test]
fn small_keys_that_are_wrong() {
    for (release, more, words) in [
        (20, "viridian=['x']", "viridian: `x` is not accepted; accepted: all, defaults, base"),
        (14, "viridian=['no_vp_limit']", "`no_vp_limit` needs Xen 4.15 or newer"),
        (20, "mmio_hole=255", "out of range; accepted: 256 to 3840"),
        (20, "mca_caps='lmce'", "accepted: a list with lmce"),
        (20, "mca_caps=['x']", "`x` is not accepted"),
        (20, "smbios='oem=x'", "a list of strings is expected"),
        (20, "smbios=['oem=']", "a name, `=` and a text are expected"),
        (20, "smbios=['x=y']", "accepted: bios_vendor"),
        (20, "ms_vm_genid='x'", "accepted: generate, none"),
        (20, "altp2m=4", "4 is not accepted; accepted: disabled"),
        (20, "altp2m='x'", "`x` is not accepted here"),
        (21, "altp2m_count=65536", "out of range"),
        (17, "tee='ffa'", "`ffa` needs Xen 4.18 or newer"),
        (20, "gic_version='v4'", "accepted: default, v2, v3"),
        (20, "vuart='x'", "accepted: unknown, sbsa_uart"),
        (20, "sve='129'", "accepted: disabled, hw, 128"),
        (20, "nr_spis='-1'", "out of range"),
        (21, "arm_sci='type=x'", "accepted: none, scmi_smc"),
        (22, "xenstore_quota=['a']", "in `a`: there is no `=`"),
        (22, "xenstore_quota=['a=x']", "in `a=x`: not a number"),
        (22, "xenstore_quota=['a=4294967296']", "too big"),
        (21, "device_model_version='qemu-xen-traditional'", "accepted: qemu-xen"),
        (20, "bios='x'", "bios: `x` is not accepted here"),
        (22, "maxvcpus=2; vcpus=3", "lower than vcpus (3)"),
    ] {
        let host = XenHost { release, ..XenHost::default() };
        let source = format!("name='g'; type='hvm'\n{more}\n");
        let shown = parse_with(&source, &host).expect_err(more).to_string();
        assert!(shown.starts_with("t.cfg:2: ") && shown.contains(words), "{more}: {shown}");
    }
    let many = "smbios=[".to_owned() + &"'oem=x',".repeat(100) + "]";
    assert!(parse_with(&format!("name='g'; type='hvm'; {many}"), &XenHost::default()).is_err());
}

#[test]
fn boot_programs_of_xen() {
    let host = |release, dir: Option<&str>| XenHost {
        release,
        firmware_dir: dir.map(PathBuf::from),
        ..XenHost::default()
    };
    let kernel = |host: &XenHost, more: &str| {
        let config = parse_with(&format!("name='g'\n{more}"), host);
        config.map(|config| config.json["b_info"]["kernel"].clone()).map_err(|error| error.to_string())
    };
    assert_eq!(kernel(&host(17, None), "firmware='pvgrub64'"), Ok(json!("/usr/lib/xen-4.17/boot/pvgrub64.bin")));
    let pvh = "type='pvh'; firmware='pvgrub32'";
    assert_eq!(kernel(&host(20, Some("/usr/lib/xen/boot")), pvh), Ok(json!("/usr/lib/xen/boot/pvgrub32.bin")));
    for (more, words) in [
        ("firmware='ovmf'", "t.cfg:2: firmware: `ovmf` is not accepted; accepted: pvgrub32, pvgrub64"),
        ("kernel='/k'; firmware='pvgrub64'", "firmware: it can't be given beside kernel"),
    ] {
        assert!(kernel(&host(20, None), more).is_err_and(|error| error.contains(words)), "{more}");
    }
}

#[test]
fn unknown_keys_are_collected() {
    let config = guest("pv", "memroy = 5\nxendomains = ['order=3']\nvif.extra = 1");
    let expected = ["memroy", "vif.extra"];
    assert_eq!(config.unknown_keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), expected);
    assert_eq!(config.unknown_keys[0].line, 4);
    assert_eq!(config.per_guest.order, Some(3));
}

#[test]
fn files() {
    let directory = tempfile::tempdir().unwrap();
    let host = XenHost::default();
    let read = |path: &Path| GuestConfig::read(path, &host);
    assert!(matches!(read(directory.path()), Err(Error::NotAFile { .. })));
    assert!(matches!(read(Path::new("/dev/null")), Err(Error::NotAFile { .. })));
    assert!(matches!(read(&directory.path().join("no")), Err(Error::Read { .. })));
    let long = directory.path().join("long");
    std::fs::write(&long, vec![b'\n'; 5 << 20]).unwrap();
    assert!(matches!(read(&long), Err(Error::TooLong { .. })));
    let good = directory.path().join("good");
    std::fs::write(&good, "name='g'; kernel='/k'").unwrap();
    assert_eq!(read(&good).unwrap().name, "g");
}

proptest! {
    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut source = b"name='g'; kernel='/k'\n".to_vec();
        source.extend(bytes);
        let _ = GuestConfig::parse(Path::new("t.cfg"), &source, &XenHost::default());
    }

    #[test]
    fn never_panics_on_any_value(key in 0..table::KEYS.len(), value in r"'[ -&(-\[\]-~]{0,12}'|[0-9]{1,20}|\['[a-z0-9=,:]{0,9}'\]") {
        let source = format!("name='g'\nkernel='/k'\ntype='hvm'\n{}={value}\n", table::KEYS[key].name);
        let _ = GuestConfig::parse(Path::new("t.cfg"), source.as_bytes(), &XenHost::default());
    }
}
