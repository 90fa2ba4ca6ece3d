//! Guests' files put together at random from likely pieces, each language of xl.cfg in its turn.

/// A file, and the xl.conf of the host that it is for.
pub struct Case {
    /// The guest's file.
    pub config: Vec<u8>,
    /// The xl.conf.
    pub xl_conf: Option<String>,
}

/// Random numbers that are the same for the same seed on every machine (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not zero.
    fn below(&mut self, limit: usize) -> usize {
        // The remainder is below a usize; a little more weight on small numbers doesn't matter here.
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    /// A number from `first` to `last`.
    fn from(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    /// Happens in so many of a hundred cases.
    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<'a, T: ?Sized>(&mut self, pieces: &[&'a T]) -> &'a T {
        pieces[self.below(pieces.len())]
    }

    /// Some of the pieces, with something between them.
    fn join(&mut self, pieces: &[&str], count: usize, between: &str) -> String {
        let some: Vec<_> = (0..count).map(|_| self.pick(pieces)).collect();
        some.join(between)
    }
}

/// What makes the part of a file that is random.
type Language = fn(&mut Random, &[String]) -> Case;

const LANGUAGES: &[Language] = &[keys, mix, grammar, disk, vif, devices, devices, pci, cpus, vnuma, cpuid, lists];

/// Makes a number of files. `keys` are all that xl reads.
pub fn files(seed: u64, count: usize, keys: &[String]) -> Vec<Case> {
    let mut random = Random(seed);
    (0..count).map(|i| LANGUAGES[i % LANGUAGES.len()](&mut random, keys)).collect()
}

/// A small guest with `more` in its file.
fn guest(kind: &str, more: impl AsRef<[u8]>) -> Case {
    let kernel = if kind == "hvm" { "" } else { "kernel = \"/k\"\n" };
    let uuid = "11111111-2222-3333-4444-555555555555";
    let mut config = format!("name = \"g\"\nuuid = \"{uuid}\"\ntype = \"{kind}\"\n{kernel}").into_bytes();
    config.extend_from_slice(more.as_ref());
    Case { config, xl_conf: None }
}

const TYPES: &[&str] = &["pv", "pvh", "hvm"];

const NUMBERS: &[&str] =
    &["0", "1", "2", "3", "5", "64", "010", "\"-1\"", "\"0xFF\"", "\"09\"", "4294967295", "\" 7\""];

/// One key with one value of any kind.
fn keys(random: &mut Random, keys: &[String]) -> Case {
    const VALUES: &[&str] = &[
        "0",
        "1",
        "2",
        "3",
        "64",
        "010",
        "4294967295",
        "\"-1\"",
        "\"0xFF\"",
        "\"09\"",
        "\"\"",
        "\"x\"",
        "\"a b  c\"",
        "\"/path\"",
        "[]",
        "[\"a\"]",
        "[\"a\", \"b\"]",
        "[1, 2]",
        "[[\"a\"]]",
        "\"native\"",
        "\"default\"",
        "\"DEFAULT\"",
        "\"none\"",
        "\"generate\"",
        "\"destroy\"",
        "\"coredump-restart\"",
        "\"qemu-xen\"",
        "\"stdvga\"",
        "\"ovmf\"",
        "\"uefi\"",
        "\"pvgrub64\"",
        "\"ahci\"",
        "\"igd\"",
        "\"enabled\"",
        "\"ALWAYS_EMULATE\"",
        "\"strategy=host\"",
        "\"host,aes=0\"",
    ];
    let kind = random.pick(TYPES);
    let key = &keys[random.below(keys.len())];
    let added = if random.percent(10) { format!("{key} += {}\n", random.pick(VALUES)) } else { String::new() };
    guest(kind, format!("{key} = {}\n{added}", random.pick(VALUES)))
}

/// Several keys that have to do with each other.
fn mix(random: &mut Random, _: &[String]) -> Case {
    const LINES: &[&str] = &[
        "memory = #",
        "maxmem = #",
        "vcpus = #",
        "maxvcpus = #",
        "cap = #",
        "cpu_weight = #",
        "rtc_timeoffset = #",
        "root = \"/dev/x\"",
        "extra = \"e\"",
        "cmdline = \"c\"",
        "builder = \"hvm\"",
        "builder = \"generic\"",
        "kernel = \"/x/hvmloader\"",
        "bootloader = \"/b\"",
        "bootloader_args = \"-a  b\"",
        "bootloader_args = [ \"x\" ]",
        "bootloader_restrict = #",
        "localtime = #",
        "tsc_mode = #",
        "timer_mode = #",
        "on_crash = \"preserve\"",
        "on_reboot = \"rename-restart\"",
        "max_grant_frames = #",
        "max_grant_version = #",
        "max_event_channels = #",
        "vnc = #",
        "vncdisplay = #",
        "vnclisten = \"1.2.3.4\"",
        "vnclisten = \"1.2.3.4:#\"",
        "vncpasswd = \"p\"",
        "sdl = #",
        "opengl = #",
        "keymap = \"de\"",
        "vfb = [ \"vnc=#\" ]",
        "vkb = [ \"backend-type=qemu\" ]",
        "stdvga = #",
        "vga = \"qxl\"",
        "usbdevice = \"tablet\"",
        "usbdevice = [ \"a\" ]",
        "serial = \"pty\"",
        "serial = [ \"a\", \"b\" ]",
        "viridian = #",
        "viridian = [ \"base\" ]",
        "hap = #",
        "device_model_override = \"/q\"",
        "device_model_version = \"qemu-xen\"",
        "device_model_args = [ \"a\" ]",
        "firmware = \"bios\"",
        "firmware = \"seabios\"",
        "firmware = \"pvgrub64\"",
        "bios = \"ovmf\"",
        "bios_path_override = \"/b\"",
        "gfx_passthru = #",
        "gfx_passthru = \"igd\"",
        "seclabel = \"a\"",
        "init_seclabel = \"b\"",
        "passthrough = \"Sync_PT\"",
        "shadow_memory = #",
        "spice = #",
        "spiceport = #",
        "acpi = #",
        "pvshim = #",
        "altp2m = #",
        "altp2mhvm = #",
        "msr_relaxed = #",
        "vpmu = #",
        "e820_host = #",
        "pci = [ \"01:00.0\" ]",
        "pci_permissive = #",
        "rdm = \"strategy=host\"",
        "cpus = \"0-3\"",
        "cpus_soft = [ \"1\" ]",
        "disk = [ \"/d,raw,xvda,w\" ]",
        "vif = [ \"bridge=b\" ]",
    ];
    const XL_CONF: &[&str] = &[
        "vif.default.bridge = \"x\"",
        "defaultbridge = \"y\"",
        "vif.default.backend = \"d\"",
        "claim_mode = #",
        "run_hotplug_scripts = #",
        "max_grant_frames = #",
        "max_grant_version = #",
        "bootloader_restrict = #",
        "blkdev_start = \"xvdb\"",
    ];
    let fill = |random: &mut Random, pieces: &[&str], count: usize| -> String {
        let lines: Vec<_> = (0..count)
            .map(|_| {
                random.pick(pieces).replace("\"#", "\"").replace('#', random.pick(&["0", "1", "2", "3", "64"]))
            })
            .collect();
        lines.join("\n") + "\n"
    };
    let kind = random.pick(TYPES);
    let count = random.from(1, 9);
    let lines = fill(random, LINES, count);
    let count = random.from(1, 3);
    let xl_conf = random.percent(30).then(|| fill(random, XL_CONF, count));
    Case { xl_conf, ..guest(kind, lines) }
}

/// The grammar of the file.
fn grammar(random: &mut Random, _: &[String]) -> Case {
    const TOKENS: &[&str] = &[
        "a", "memory", "=", "+=", "[", "]", ",", ",", ";", "\n", "#c\n", "\"x\"", "'y'", "12", "0x1f", " ", "\t",
        "foo", "extra", "\"\\n\"", "\"\\q\"", "'", "-", "True", "1.5", "\r", "\"a'b\"", "vcpus", "5", "#", "\\",
        "\"\"\"", "(", "\u{e4}", "!",
    ];
    const VALUES: &[&str] =
        &["\"x\"", "'y'", "1", "[\"a\",\"b\"]", "[\n1,\n]", "[]", "[[1],2]", "\"-3\"", "0x10", "[ # c\n'z' ]"];
    const NAMES: &[&str] = &["extra", "memory", "a", "bootloader_args", "vcpus", "x.y_1"];
    let mut text = String::new();
    if random.percent(50) {
        let count = random.from(1, 9);
        text += &random.join(TOKENS, count, "");
    } else {
        for _ in 0..random.from(1, 4) {
            let end = random.pick(&["\n", ";", "\n\n", " # c\n", "", " ; "]);
            text += random.pick(NAMES);
            text += random.pick(&[" = ", "+=", "="]);
            text += random.pick(VALUES);
            text += end;
            if random.percent(15) {
                text += random.pick(TOKENS);
            }
        }
    }
    guest("pv", text)
}

/// A list with one or more items of a language.
fn list(random: &mut Random, key: &str, pieces: &[&str]) -> String {
    let items: Vec<_> = (0..random.from(1, 2))
        .map(|_| {
            let count = random.from(0, 4);
            let between = random.pick(&[",", ",", ", ", ",,"]);
            format!("\"{}\"", random.join(pieces, count, between))
        })
        .collect();
    format!("{key} = [ {} ]\n", items.join(", "))
}

fn disk(random: &mut Random, _: &[String]) -> Case {
    const PARTS: &[&str] = &[
        "/dev/vg/x",
        "raw",
        "qcow2",
        "xvda",
        "hdc:cdrom",
        "sda:disk",
        "rw",
        "w",
        "r",
        "ro",
        "",
        "cdrom",
        "vdev=xvdb",
        "format=raw",
        "format=qcow2",
        "access=ro",
        "target=/x,y",
        "target=",
        "backend=dom",
        "backendtype=phy",
        "backendtype=qdisk",
        "backendtype=standalone",
        "script=block-x",
        "direct-io-safe",
        "discard",
        "no-discard",
        "trusted",
        "untrusted",
        "grant_usage=1",
        "devtype=cdrom",
        "devtype=disk",
        "devtype=x",
        "foo=bar",
        "foo=",
        "phy:/dev/x",
        "file:/img",
        "tap:aio:/img",
        "tap:qcow2:/i",
        "drbd:r",
        "nfs:/x",
        "hda:bad",
        "a:b:c",
        "raw:/x",
        "vdev=",
        "format=",
        "access=",
        "specification=virtio",
        "specification=xen",
        "colo",
        "colo-port=7",
        "colo-port=7x",
        "colo-port=70000",
        "colo-port= 8",
        "colo-port=+9",
        "colo-port=-9",
        "/x=y",
        "empty",
        "iqn.2:x",
        "enbd:z",
    ];
    let mut item = if random.percent(50) {
        let first = [
            random.pick(&["/dev/vg/x", "phy:/dev/x", "/img", ""]),
            random.pick(&["raw", "qcow2", "", "xvda"]),
            random.pick(&["xvda", "hdc:cdrom", "hdc"]),
            random.pick(&["rw", "r", "w", ""]),
        ];
        let count = random.from(1, 4);
        let more = random.below(3);
        let mut parts = first[..count].to_vec();
        parts.extend((0..more).map(|_| random.pick(PARTS)));
        parts.join(",")
    } else {
        let count = random.from(1, 6);
        let between = random.pick(&[",", ",", ",", ", ", ",\\n"]);
        random.join(PARTS, count, between)
    };
    if random.percent(10) {
        item = format!(" {item} ");
    }
    guest("pv", format!("disk = [ \"{item}\" ]\n"))
}

fn vif(random: &mut Random, _: &[String]) -> Case {
    const PARTS: &[&str] = &[
        "mac=00:16:3E:01:02:03",
        "mac=0:1:2:3:4:5",
        "mac=00-16-3e-00-00-01",
        "mac=00:16:3e:zz:02:03",
        "mac=00:16:3e:1ff:2:3",
        "bridge=br0",
        "bridge=",
        "script=s",
        "ip=1.2.3.4",
        "type=ioemu",
        "type=vif",
        "type=x",
        "rate=10Mb/s",
        "rate=250KB/s@20ms",
        "rate=010KB/s@1s",
        "rate=1GB/s@100us",
        "rate=1B/s",
        "rate=8b/s@2",
        "rate=x",
        "rate=10MB/s@",
        "rate=0129Mb/s@1s",
        "vifname=v",
        "model=e1000",
        "backend=d",
        "gatewaydev=e",
        "netdev=n",
        "devid=5",
        "devid=x",
        "devid=+5",
        "devid= 6",
        "devid=-5",
        "devid=4294967297",
        "mtu=9000",
        "mtu=0",
        "mtu=12x",
        "mtu=-2",
        "mtu=99999999999999999999",
        "vlan=10p/20",
        "trusted",
        "untrusted",
        "trusted=1",
        "accel=1",
        "foo",
        "foo=1",
        "",
        " ",
        "colo_compare_out=x",
        "forwarddev=f",
    ];
    let text = list(random, "vif", PARTS);
    let xl_conf =
        random.percent(20).then(|| "vif.default.bridge = \"x\"\nvif.default.script = \"y\"\n".to_owned());
    Case { xl_conf, ..guest("pv", text) }
}

/// The devices whose items are parameters with commas between.
fn devices(random: &mut Random, _: &[String]) -> Case {
    const VFB: &[&str] = &[
        "vnc=1",
        "vnc=0",
        "vnc=x",
        "vnclisten=1.2.3.4",
        "vnclisten=0:3",
        "vncpasswd=p",
        "vncdisplay=4",
        "vncdisplay=4x",
        "vncdisplay=-4",
        "vncdisplay=4294967300",
        "vnc= 1",
        "vncunused=1",
        "keymap=de",
        "sdl=1",
        "opengl=1",
        "display=:0",
        "xauthority=/x",
        "type=vnc",
        "foo",
        "",
    ];
    const VKB: &[&str] = &[
        "backend-type=qemu",
        "backend-type=LINUX",
        "backend-type=linux",
        "backend-type=x",
        "backend=d",
        "unique-id=u",
        "feature-disable-keyboard=1",
        "feature-disable-pointer=0",
        "feature-abs-pointer=2",
        "feature-raw-pointer=x",
        "feature-multi-touch=1",
        "multi-touch-width=640",
        "multi-touch-height=0x1e0",
        "multi-touch-num-contacts=010",
        "width=1",
        "width=-1",
        "width=4294967296",
        "height=2x",
        "foo=1",
    ];
    const USBCTRL: &[&str] = &[
        "type=auto",
        "type=PV",
        "type=devicemodel",
        "type=x",
        "version=1",
        "version=3x",
        "ports=8",
        "ports=-1",
        "ports=4294967297",
        "ports=",
        "foo=1",
        "",
    ];
    const USBDEV: &[&str] = &[
        "type=hostdev",
        "hostbus=1",
        "hostbus=0x1f",
        "hostbus=-1",
        "hostbus=4294967297",
        "hostaddr=010",
        "hostaddr=x",
        "controller=0",
        "port=2",
        "foo=1",
        "",
    ];
    const CHANNEL: &[&str] = &[
        "connection=pty",
        "connection=socket",
        "connection=PTY",
        " connection = pty ",
        "path=/run/x",
        "name=n",
        "name=a=b",
        "name=",
        "backend=d",
        "foo=1",
        "foo",
        "",
    ];
    const VTPM: &[&str] =
        &["backend=d", "backend=", "uuid=6b2c1a5e-9d64-4a0f-8f0a-2b9b1c3d4e5f", "uuid=1", "foo=1", "foo", ""];
    const P9: &[&str] = &[
        "tag=t",
        "security_model=none",
        "path=/p",
        "tag=t,security_model=none,path=/p",
        " tag = t ",
        "backend=d",
        "type=xen_9pfsd",
        "type=QEMU",
        "max-files=5",
        "max-open-files=6x",
        "max-open-files=-1",
        "max-open-files=4294967296",
        "max-files= 7",
        "max-space=x",
        "auto-delete=1",
        "tag=",
        "foo=1",
        "foo",
        "",
    ];
    const PVCALLS: &[&str] = &["backend=d", "backend=e", "backend=", "foo=1", "foo", ""];
    const VDISPL: &[&str] = &[
        "backend=d",
        "be-alloc=1",
        "be-alloc=x",
        "connectors=id0:1920x1080",
        "connectors=id0:1920x1080;id1:800x600",
        "connectors=a:640x480;b:1x2x3",
        "connectors=a:640x",
        "foo=1",
    ];
    const VIRTIO: &[&str] = &[
        "backend=d",
        "type=virtio,device22",
        "type=virtio,device1a",
        "type=other",
        "transport=mmio",
        "transport=MMIO",
        "transport=pci",
        "grant_usage=1",
        "grant_usage=0",
        "foo=1",
    ];
    const DTDEV: &[&str] = &["/soc/x@1", "/soc/y", ""];
    const SND: &[&str] = &[
        "short-name=a",
        "long-name=b c",
        "name=n",
        "unique-id=u",
        "type=p",
        "type=C",
        "type=x",
        "backend=d",
        "sample-rates=8000;22050",
        "sample-rates=x",
        "sample-formats=s16_le;S8",
        "sample-formats=x",
        "channels-min=1",
        "channels-max=8x",
        "buffer-size=0x400",
        "buffer-size=-1",
        "sample-rates=;;8000;",
        "foo=1",
    ];
    const ALL: &[(&str, &[&str])] = &[
        ("vfb", VFB),
        ("vkb", VKB),
        ("usbctrl", USBCTRL),
        ("usbdev", USBDEV),
        ("channel", CHANNEL),
        ("vtpm", VTPM),
        ("p9", P9),
        ("pvcalls", PVCALLS),
        ("vdispl", VDISPL),
        ("virtio", VIRTIO),
        ("dtdev", DTDEV),
        ("vsnd", SND),
    ];
    let (key, pieces) = ALL[random.below(ALL.len())];
    let text = if key == "vsnd" {
        let items: Vec<_> = (0..random.from(1, 4))
            .map(|_| {
                let count = random.from(0, 2);
                let parts = random.join(pieces, count, ", ");
                let between = if count == 0 { "" } else { ", " };
                format!(
                    "\"{}{between}{parts}\"",
                    random.pick(&["CARD", "PCM", "STREAM", "card", "pcm", "stream", "x"])
                )
            })
            .collect();
        format!("vsnd = [ [ {} ] ]\n", items.join(", "))
    } else {
        list(random, key, pieces)
    };
    guest(random.pick(TYPES), text)
}

fn pci(random: &mut Random, _: &[String]) -> Case {
    // Not 0x at an end, which some C libraries take for a number.
    const DEVICES: &[&str] = &[
        "01:00.0",
        "0000:01:00.1",
        "1:a.7",
        "10a0:ff:1f.7",
        "01:00.*",
        "01:20.0",
        "100:00.0",
        "01:00.8",
        "01:00",
        "x",
        "",
        "name=nic",
        "bdf=02:00.0",
        " 01:00.0",
        "01:00.0y",
        "01:00.f",
    ];
    const SLOTS: &[&str] = &["", "", "", "@1f", "@5", "@20", "@x", "@", "@05"];
    const OPTIONS: &[&str] = &[
        "msitranslate=1",
        "power_mgmt=1",
        "permissive=0",
        "permissive=1x",
        "seize=1",
        "seize=",
        "rdm_policy=strict",
        "rdm_policy=RELAXED",
        "rdm_policy=relaxed",
        "rdm_policy=x",
        "vslot=1e",
        "name=n",
        "foo=1",
        "foo",
        "",
    ];
    let mut item = format!("{}{}", random.pick(DEVICES), random.pick(SLOTS));
    for _ in 0..random.below(3) {
        item += ",";
        item += random.pick(OPTIONS);
    }
    let mut text = format!("pci = [ \"{item}\" ]\n");
    for key in ["pci_msitranslate", "pci_power_mgmt", "pci_permissive", "pci_seize"] {
        if random.percent(15) {
            text += &format!("{key} = {}\n", random.pick(&["0", "1", "2", "\"x\""]));
        }
    }
    if random.percent(25) {
        const RDM: &[&str] = &[
            "strategy=host",
            "strategy=x",
            "policy=strict",
            "policy=relaxed",
            "policy=x",
            "strategy",
            "",
            "foo=1",
        ];
        let count = random.from(1, 2);
        text += &format!("rdm = \"{}\"\n", random.join(RDM, count, ","));
    }
    guest(random.pick(TYPES), text)
}

/// Numbers of virtual CPUs, where they run, and what xl.conf says about that.
fn cpus(random: &mut Random, _: &[String]) -> Case {
    const PARTS: &[&str] = &[
        "0",
        "1",
        "3",
        "7",
        "9",
        "0-3",
        "2-5",
        "6-9",
        "all",
        "^0",
        "^2-3",
        "^7",
        "node:0",
        "nodes:1",
        "nodes:0-1",
        "^node:0",
        "nodes:all",
        "^all",
        "3-1",
        "x",
        "",
        " 2",
        "+1",
        "0x1",
        "2-",
        "node:2",
        "^",
        "-1",
        "node: 1",
        "4 ",
    ];
    fn mask(random: &mut Random) -> String {
        let count = random.from(1, 3);
        random.join(PARTS, count, ",")
    }
    let mut text = String::new();
    for key in ["vcpus", "maxvcpus"] {
        if random.percent(60) {
            text += &format!("{key} = {}\n", random.pick(&["0", "1", "2", "3", "4", "\"2\"", "\"x\""]));
        }
    }
    for key in ["cpus", "cpus_soft"] {
        match random.below(5) {
            0 | 1 => text += &format!("{key} = \"{}\"\n", mask(random)),
            2 => {
                let masks: Vec<_> = (0..random.below(5)).map(|_| format!("\"{}\"", mask(random))).collect();
                text += &format!("{key} = [ {} ]\n", masks.join(", "));
            }
            _ => {}
        }
    }
    let mut xl_conf = String::new();
    for key in ["vm.cpumask", "vm.hvm.cpumask", "vm.pv.cpumask"] {
        if random.percent(15) {
            xl_conf += &format!("{key} = \"{}\"\n", mask(random));
        }
    }
    Case { xl_conf: Some(xl_conf).filter(|text| !text.is_empty()), ..guest(random.pick(TYPES), text) }
}

fn vnuma(random: &mut Random, _: &[String]) -> Case {
    let count = random.from(1, 3);
    // More distances than nodes would be written past the end of an array of xl's.
    let distances = ["10", "10,20", "10,20,30"][random.below(count)];
    let distance = format!("vdistances={distances}");
    let parts: &[&str] = &[
        "pnode=0",
        "pnode=1",
        "pnode=2",
        "pnode=x",
        "size=64",
        "size=128",
        "size=64",
        "size=x",
        "vcpus=0",
        "vcpus=0-1",
        "vcpus=2-3",
        "vcpus=0,2",
        "vcpus=1-0",
        &distance,
        "vdistances=x",
        " pnode = 1 ",
        "foo=1",
        "foo",
        "size=",
    ];
    let mut nodes = Vec::new();
    for i in 0..count {
        let options: Vec<String> = if random.percent(50) {
            vec![format!("pnode={}", i % 2), "size=64".to_owned(), format!("vcpus={i}"), distance.clone()]
        } else {
            (0..random.below(4)).map(|_| (*random.pick(parts)).to_owned()).collect()
        };
        let options: Vec<_> = options.iter().map(|option| format!("\"{option}\"")).collect();
        nodes.push(format!("[ {} ]", options.join(", ")));
    }
    let mut text = format!("vnuma = [ {} ]\n", nodes.join(", "));
    for (key, values) in [
        ("memory", ["64", "128", "192"]),
        ("maxmem", ["64", "128", "192"]),
        ("vcpus", ["1", "2", "3"]),
        ("maxvcpus", ["1", "2", "4"]),
    ] {
        if random.percent(30) {
            text += &format!("{key} = {}\n", random.pick(&values));
        }
    }
    guest(random.pick(TYPES), text)
}

fn cpuid(random: &mut Random, _: &[String]) -> Case {
    const FLAGS: &[&str] = &[
        "aes",
        "sse2",
        "sse3",
        "pni",
        "sse4_1",
        "sse4.1",
        "avx",
        "avx2",
        "avx512f",
        "fpu",
        "tm",
        "mmx",
        "lm",
        "nx",
        "xsave",
        "invtsc",
        "maxleaf",
        "family",
        "model",
        "stepping",
        "brandid",
        "clflush",
        "proccount",
        "localapicid",
        "apicidsize",
        "nc",
        "procpkg",
        "maxhvleaf",
        "svm_npt",
        "svm",
        "vmx",
        "ibrsb",
        "ssbd",
        "arat",
        "umip",
        "rdtscp",
        "page1gb",
        "psn",
        "est",
        "cntxid",
        "cmpxchg16",
        "cmpxchg8",
        "syscall",
        "3dnow",
        "lahfsahf",
        "cmplegacy",
        "tsc_adjust",
        "erms",
        "smep",
        "turbo",
        "lfence+",
        "rdcl-no",
        "amx-tile",
        "hypervisor",
        "monitor",
        "osxsave",
        "fsgsbase",
        "cet-ss",
        "ppin",
        "clzero",
    ];
    const VALUES: &[&str] = &["0", "1", "x", "k", "s", "y", "", "0x1f", "15", "16", "23", "255", "256", "010"];
    const BITS: &[&str] = &[
        "00000000000000000000000000001101",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx0",
        "kkkkkkkkkkkkkkkkssssssssssssssss",
        "01",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    ];
    let text = if random.percent(60) {
        let mut text = random.pick(&["host", "host", "host", "host", "native", ""]).to_owned();
        for _ in 0..random.below(5) {
            let equals = if random.percent(95) { "=" } else { "" };
            text += &format!(",{}{equals}{}", random.pick(FLAGS), random.pick(VALUES));
        }
        format!("cpuid = \"{text}\"\n")
    } else {
        let mut leaves = Vec::new();
        for _ in 0..random.from(1, 3) {
            let mut leaf =
                random.pick(&["0", "1", "0x80000001", "4,0", "7,1", "0xd,0x1", "x", "4,x", "010"]).to_owned();
            leaf += random.pick(&[":", ":", ":", ":", ""]);
            let registers: Vec<_> = (0..random.from(1, 2))
                .map(|_| {
                    let register = random.pick(&["eax", "ebx", "ecx", "edx", "esx", "rax", "eax "]);
                    format!("{register}={}", random.pick(BITS))
                })
                .collect();
            leaf += &registers.join(random.pick(&[",", ", ", ",\\n"]));
            leaves.push(format!("\"{leaf}\""));
        }
        format!("cpuid = [ {} ]\n", leaves.join(", "))
    };
    guest(random.pick(TYPES), text)
}

/// The keys that have lists of words or numbers.
fn lists(random: &mut Random, _: &[String]) -> Case {
    const VIRIDIAN: &[&str] = &[
        "all",
        "defaults",
        "base",
        "freq",
        "time_ref_count",
        "reference_tsc",
        "Hcall_Remote_Tlb_Flush",
        "apic_assist",
        "crash_ctl",
        "synic",
        "stimer",
        "hcall_ipi",
        "ex_processor_masks",
        "no_vp_limit",
        "cpu_hotplug",
        "!base",
        "!freq",
        "!all",
        "!!base",
        "x",
        "",
    ];
    const IOPORTS: &[&str] =
        &["2f8-2ff", "3f8", "0x60-0x64", "60-50", "x", "3f8x", "2f8-", "2f8-2ffx", " 80", "ffffffff", "-1"];
    const IRQS: &[&str] = &["5", "11", "0x5", "010", "5a", "x", " 7", "", "4294967295", "4294967294"];
    const IOMEM: &[&str] = &[
        "a0,1",
        "f0000,10@80",
        "0xfe000,0x1",
        "a0",
        "a0,1@",
        "a0,1x",
        "x",
        "a0,1@80x",
        " a0, 1",
        "a0 ,1",
        "ffffffffffffffff,1",
    ];
    const LLC_COLORS: &[&str] = &["0", "0-2", "5-4", "x", "3x", "1-2-3", " 6", "", "-1", "0x3", "2 - 5"];
    const SMBIOS: &[&str] = &[
        "bios_vendor=Xen",
        "OEM=a",
        "oem=b=c",
        "system_version=1.0",
        "oem=",
        "oem",
        "x=y",
        "=z",
        "battery_device_name=d",
    ];
    const MCA: &[&str] = &["lmce", "LMCE", "x", ""];
    const ALL: &[(&str, &[&str])] = &[
        ("viridian", VIRIDIAN),
        ("ioports", IOPORTS),
        ("irqs", IRQS),
        ("iomem", IOMEM),
        ("llc_colors", LLC_COLORS),
        ("smbios", SMBIOS),
        ("mca_caps", MCA),
        ("device_model_args", VIRIDIAN),
    ];
    let (key, words) = ALL[random.below(ALL.len())];
    let text = match random.below(20) {
        0 => format!("{key} = {}\n", random.pick(NUMBERS)),
        1 => format!("{key} = \"{}\"\n", random.pick(words)),
        2 => format!("{key} = [ \"{}\", [ \"{}\" ] ]\n", random.pick(words), random.pick(words)),
        _ => {
            let items: Vec<_> = (0..random.below(5)).map(|_| format!("\"{}\"", random.pick(words))).collect();
            format!("{key} = [ {} ]\n", items.join(", "))
        }
    };
    guest(random.pick(&["hvm", "hvm", "pv", "pvh"]), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_files() {
        let keys = ["memory".to_owned(), "disk".to_owned()];
        let texts =
            |seed| files(seed, 200, &keys).into_iter().map(|case| (case.config, case.xl_conf)).collect::<Vec<_>>();
        assert_eq!(texts(1), texts(1));
        assert_ne!(texts(1), texts(2));
        assert!(texts(1).iter().any(|(_, xl_conf)| xl_conf.is_some()));
    }
}
