//! The keys of a guest's file that are more than a copy into one of libxl's fields, one function each.

use std::collections::BTreeSet;

use rustix::rand::GetRandomFlags;
use serde_json::{Value, json};
use uuid::Uuid;

use super::keys::{Keys, Number};
use super::mapping::{Mapping, Type};
use super::syntax;
use super::table::{Field, Place};
use super::{Error, affinity, defbool, scan, xl_conf};

type Done = Result<(), Error>;

/// More virtual CPUs than any Xen gives to a guest.
pub(super) const VCPU_LIMIT: i64 = 8192;

/// The firmwares that libxl knows by name; the first one stands for its own choice.
pub(super) const BIOS: &[&str] = &["unknown", "rombios", "seabios", "ovmf"];

/// The lengths of SVE vectors on ARM; the first one stands for none.
pub(super) const SVE: &[&str] = &[
    "disabled", "hw", "128", "256", "384", "512", "640", "768", "896", "1024", "1152", "1280", "1408", "1536",
    "1664", "1792", "1920", "2048",
];

/// What of Hyper-V a guest can be shown, by number, and the minor number of the first Xen 4 release that has it.
const ENLIGHTENMENTS: &[(&str, u8)] = &[
    ("base", 14),
    ("freq", 14),
    ("time_ref_count", 14),
    ("reference_tsc", 14),
    ("hcall_remote_tlb_flush", 14),
    ("apic_assist", 14),
    ("crash_ctl", 14),
    ("synic", 14),
    ("stimer", 14),
    ("hcall_ipi", 14),
    ("ex_processor_masks", 15),
    ("no_vp_limit", 15),
    ("cpu_hotplug", 15),
];

/// How many of them libxl has room for.
const ENLIGHTENMENT_ROOM: usize = 64;

/// What of the firmware's tables can be set.
const SMBIOS: &[&str] = &[
    "bios_vendor",
    "bios_version",
    "system_manufacturer",
    "system_product_name",
    "system_version",
    "system_serial_number",
    "baseboard_manufacturer",
    "baseboard_product_name",
    "baseboard_version",
    "baseboard_serial_number",
    "baseboard_asset_tag",
    "baseboard_location_in_chassis",
    "enclosure_manufacturer",
    "enclosure_serial_number",
    "enclosure_asset_tag",
    "battery_manufacturer",
    "battery_device_name",
    "oem",
];

/// How many `oem` strings these tables have room for.
const OEM_LIMIT: usize = 99;

const ALTP2M: &[&str] = &["disabled", "mixed", "external", "limited"];

const TSC_MODES: &[&str] = &["default", "always_emulate", "native", "native_paravirt"];

const TIMER_MODES: &[&str] =
    &["delay_for_missed_ticks", "no_delay_for_missed_ticks", "no_missed_ticks_pending", "one_missed_tick_pending"];

/// The words for `on_poweroff` and its kind, and libxl's for them.
const ACTIONS: &[(&str, &str)] = &[
    ("destroy", "destroy"),
    ("restart", "restart"),
    ("rename-restart", "restart_rename"),
    ("preserve", "preserve"),
    ("coredump-destroy", "coredump_destroy"),
    ("coredump-restart", "coredump_restart"),
    ("soft-reset", "soft_reset"),
];

/// `type` and `builder`, and what is the same for all guests.
pub(super) fn guest_type(m: &mut Mapping<'_>) -> Done {
    // xl compares over the length of the given text only: any start of a word stands for it.
    let mut kind = None;
    if let Some(text) = m.keys.text("type")? {
        let words = [("hvm", Type::Hvm), ("pv", Type::Pv), ("pvh", Type::Pvh)];
        match words.iter().find(|(word, _)| word.starts_with(&text)) {
            Some((_, found)) => kind = Some(*found),
            None => {
                return Err(m.keys.error("type", format!("`{text}` is not a guest type; accepted: pv, pvh, hvm")));
            }
        }
    }
    if let Some(text) = m.keys.text("builder")? {
        let words = [("hvm", Type::Hvm), ("generic", Type::Pv)];
        let Some((_, found)) = words.iter().find(|(word, _)| word.starts_with(&text)) else {
            return Err(m.keys.error("builder", format!("`{text}` is not a builder; accepted: hvm, generic")));
        };
        if kind.is_some_and(|kind| kind != *found) {
            return Err(m.keys.error("builder", "it contradicts `type`"));
        }
        kind = Some(*found);
    }
    let default = if cfg!(any(target_arch = "arm", target_arch = "aarch64")) { Type::Pvh } else { Type::Pv };
    let kind = kind.unwrap_or(default);
    m.set_kind(kind);
    let word = match kind {
        Type::Hvm => "hvm",
        Type::Pvh => "pvh",
        _ => "pv",
    };
    m.put(Field(Place::Create, "type"), word);
    m.put(Field(Place::Create, "run_hotplug_scripts"), defbool(m.host.xl_conf.run_hotplug_scripts));
    m.put(Field(Place::Build, "claim_mode"), defbool(m.host.xl_conf.claim_mode));
    if let Some(device) = &m.host.xl_conf.blkdev_start {
        m.put(Field(Place::Build, "blkdev_start"), device.as_str());
    }
    Ok(())
}

/// `init_seclabel` and `seclabel`.
pub(super) fn seclabel(m: &mut Mapping<'_>) -> Done {
    let initial = m.keys.text("init_seclabel")?;
    let label = m.keys.text("seclabel")?;
    let (create, exec) = match initial {
        Some(initial) => (Some(initial), label),
        None => (label, None),
    };
    if let Some(label) = create {
        m.put(Field(Place::Create, "ssid_label"), label);
    }
    if let Some(label) = exec {
        m.put(Field(Place::Build, "exec_ssid_label"), label);
    }
    Ok(())
}

/// `name`
pub(super) fn name(m: &mut Mapping<'_>) -> Done {
    match m.keys.text("name")? {
        None => Err(m.keys.error("name", "the guest's name is not given")),
        Some(name) if name.is_empty() => Err(m.keys.error("name", "the guest's name is empty")),
        Some(name) => {
            m.put(Field(Place::Create, "name"), name);
            Ok(())
        }
    }
}

/// `uuid`
pub(super) fn uuid(m: &mut Mapping<'_>) -> Done {
    let uuid = match m.keys.text("uuid")? {
        None => Uuid::new_v4(),
        Some(text) => {
            // The crate takes more forms than xl does.
            let given = Uuid::try_parse(&text).ok().filter(|uuid| text.len() == 36 && !uuid.is_nil());
            given.ok_or_else(|| {
                let like = "11111111-2222-3333-4444-555555555555";
                m.keys.error("uuid", format!("`{text}` is not a UUID like {like}"))
            })?
        }
    };
    m.put(Field(Place::Create, "uuid"), uuid.to_string());
    Ok(())
}

/// A size in MiB as KiB.
pub(super) fn mebibytes(keys: &mut Keys, key: &str) -> Result<Option<i64>, Error> {
    let size = keys.number_in(key, 0..=i64::MAX / 1024 / 1024)?;
    Ok(size.map(|mebibytes| mebibytes * 1024))
}

/// `memory` and `maxmem`
pub(super) fn memory(m: &mut Mapping<'_>) -> Done {
    let target = mebibytes(m.keys, "memory")?;
    let limit = mebibytes(m.keys, "maxmem")?;
    if let Some(target) = target {
        m.put(Field(Place::Build, "target_memkb"), target);
    }
    if let Some(limit) = limit.or(target) {
        m.put(Field(Place::Build, "max_memkb"), limit);
    }
    Ok(())
}

/// `vcpus` and `maxvcpus`
pub(super) fn vcpus(m: &mut Mapping<'_>) -> Done {
    let online = m.keys.number_in("vcpus", 0..=VCPU_LIMIT)?;
    let limit = m.keys.number_in("maxvcpus", 0..=VCPU_LIMIT)?.filter(|&limit| limit != 0);
    // From Xen 4.22 on xl has a default of its own.
    let least = i64::from(!m.host.is_before(22));
    let count = online.unwrap_or(0).max(least);
    if limit.is_some_and(|limit| limit < count) {
        return Err(m.keys.error("maxvcpus", format!("it is lower than vcpus ({count})")));
    }
    if count > 0 {
        m.put(Field(Place::Build, "avail_vcpus"), (0..count).collect::<Vec<_>>());
    }
    let limit = limit.unwrap_or(count);
    if limit > 0 {
        m.put(Field(Place::Build, "max_vcpus"), limit);
    }
    Ok(())
}

/// A limit of the grant tables, by default that of xl.conf.
fn grant_limit(m: &mut Mapping<'_>, key: &'static str, global: Option<u32>) -> Done {
    if let Some(limit) = xl_conf::limit(m.keys, key)?.or(global) {
        m.put(Field(Place::Build, key), limit);
    }
    Ok(())
}

/// `max_grant_frames`
pub(super) fn max_grant_frames(m: &mut Mapping<'_>) -> Done {
    grant_limit(m, "max_grant_frames", m.host.xl_conf.max_grant_frames)
}

/// `max_maptrack_frames`
pub(super) fn max_maptrack_frames(m: &mut Mapping<'_>) -> Done {
    grant_limit(m, "max_maptrack_frames", m.host.xl_conf.max_maptrack_frames)
}

/// `max_grant_version`
pub(super) fn max_grant_version(m: &mut Mapping<'_>) -> Done {
    grant_limit(m, "max_grant_version", m.host.xl_conf.max_grant_version)
}

/// `on_poweroff` and its kind.
pub(super) fn action(m: &mut Mapping<'_>, key: &'static str, default: &'static str) -> Done {
    let given = m.keys.text(key)?;
    let text = given.as_deref().unwrap_or(default);
    let Some((_, word)) = ACTIONS.iter().find(|(known, _)| *known == text) else {
        let words: Vec<_> = ACTIONS.iter().map(|(word, _)| *word).collect();
        let message = format!("`{text}` is not a known action; accepted: {}", words.join(", "));
        return Err(m.keys.error(key, message));
    };
    // libxl's default, which its JSON leaves out.
    if *word != "destroy" {
        m.root.insert(key.to_owned(), json!(word));
    }
    Ok(())
}

/// A word of libxl, for which the number of its place is accepted too, with a warning.
fn word_or_number(
    m: &mut Mapping<'_>,
    key: &str,
    words: &'static [&'static str],
) -> Result<Option<&'static str>, Error> {
    match m.keys.as_number(key) {
        Number::Is(number) => match usize::try_from(number).ok().and_then(|i| words.get(i)) {
            Some(word) => {
                m.keys.warn(key, format_args!("giving it as a number is deprecated; use \"{word}\""));
                Ok(Some(word))
            }
            None => Err(m.keys.error(key, format!("{number} is not accepted; accepted: {}", words.join(", ")))),
        },
        _ => match m.keys.text(key)? {
            Some(text) => m.word(key, &text, words).map(Some),
            None => Ok(None),
        },
    }
}

/// `tsc_mode`
pub(super) fn tsc_mode(m: &mut Mapping<'_>) -> Done {
    if let Some(word) = word_or_number(m, "tsc_mode", TSC_MODES)?.filter(|word| *word != "default") {
        m.put(Field(Place::Build, "tsc_mode"), word);
    }
    Ok(())
}

/// `timer_mode`
pub(super) fn timer_mode(m: &mut Mapping<'_>) -> Done {
    if m.kind == Type::Pv && m.keys.text("timer_mode")?.is_some() {
        return Err(m.keys.error("timer_mode", "PV guests don't have it"));
    }
    // libxl's word for the default.
    if m.keys.text("timer_mode")?.is_some_and(|text| text.eq_ignore_ascii_case("unknown")) {
        return Ok(());
    }
    if let Some(word) = word_or_number(m, "timer_mode", TIMER_MODES)? {
        m.put(Field(Place::Build, "timer_mode"), word);
    }
    Ok(())
}

/// `rtc_timeoffset`, in seconds; a negative one is stored as its two's complement.
pub(super) fn rtc_timeoffset(m: &mut Mapping<'_>) -> Done {
    let offset = m.keys.number_in("rtc_timeoffset", i64::from(i32::MIN)..=i64::from(u32::MAX))?;
    if let Some(offset) = offset.filter(|&offset| offset != 0) {
        m.put(Field(Place::Build, "rtc_timeoffset"), offset & i64::from(u32::MAX));
    }
    Ok(())
}

/// `kernel`
pub(super) fn kernel(m: &mut Mapping<'_>) -> Done {
    let Some(kernel) = m.keys.text("kernel")? else { return Ok(()) };
    if m.kind == Type::Hvm && kernel.rsplit('/').next() == Some("hvmloader") {
        m.keys.warn(
            "kernel",
            "hvmloader is not a kernel; it is ignored (use firmware_override for another firmware)",
        );
        return Ok(());
    }
    m.put(Field(Place::Build, "kernel"), kernel);
    Ok(())
}

/// `cmdline`, `root` and `extra`
pub(super) fn cmdline(m: &mut Mapping<'_>) -> Done {
    let cmdline = m.keys.text("cmdline")?;
    let root = m.keys.text("root")?;
    let extra = m.keys.text("extra")?;
    if cmdline.is_some() && (root.is_some() || extra.is_some()) {
        m.keys.warn("cmdline", "root and extra are ignored beside it");
    }
    let line = match (cmdline, root, extra) {
        (Some(cmdline), _, _) => cmdline,
        (None, Some(root), Some(extra)) => format!("root={root} {extra}"),
        (None, Some(root), None) => format!("root={root}"),
        (None, None, Some(extra)) => extra,
        (None, None, None) => return Ok(()),
    };
    m.put(Field(Place::Build, "cmdline"), line);
    Ok(())
}

/// `bootloader_restrict`, by default that of xl.conf.
pub(super) fn bootloader_restrict(m: &mut Mapping<'_>) -> Done {
    if let Some(on) = m.keys.flag("bootloader_restrict").or(m.host.xl_conf.bootloader_restrict) {
        m.put(Field(Place::Build, "bootloader_restrict"), defbool(on));
    }
    Ok(())
}

/// `bootloader_args`: a list, or (deprecated) a string with blanks between the arguments.
pub(super) fn bootloader_args(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "bootloader_args";
    let args = if let Some(syntax::Value::Text(_)) = m.keys.value(KEY) {
        m.keys.warn(KEY, "giving it as a string is deprecated; use a list");
        let text = m.keys.text(KEY)?.unwrap_or_default();
        let args: Vec<_> =
            text.split([' ', '\t', '\n']).filter(|arg| !arg.is_empty()).map(str::to_owned).collect();
        // What xl dies of.
        if args.is_empty() {
            return Err(m
                .keys
                .error(KEY, "there are no arguments; accepted: a list of strings, also an empty one"));
        }
        args
    } else {
        m.keys.texts(KEY)?.unwrap_or_default()
    };
    if !args.is_empty() {
        m.put(Field(Place::Build, KEY), args);
    }
    Ok(())
}

/// `viridian`: a flag, or a list of words: `all`, `defaults`, or an enlightenment that is wanted or (behind `!`) not.
pub(super) fn viridian(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "viridian";
    if m.kind != Type::Hvm {
        return Ok(());
    }
    let Some(syntax::Value::List(_)) = m.keys.value(KEY) else {
        if let Some(on) = m.keys.flag(KEY) {
            m.put(Field(Place::Hvm, KEY), defbool(on));
        }
        return Ok(());
    };
    let (mut enable, mut disable) = (BTreeSet::new(), BTreeSet::new());
    for word in m.keys.texts(KEY)?.unwrap_or_default() {
        match word.as_str() {
            "all" => enable.extend(0..ENLIGHTENMENT_ROOM),
            "defaults" => m.put(Field(Place::Hvm, KEY), defbool(true)),
            word => {
                let (on, name) = word.strip_prefix('!').map_or((true, word), |name| (false, name));
                let number = enlightenment(m, KEY, name)?;
                let (to, from) = if on { (&mut enable, &mut disable) } else { (&mut disable, &mut enable) };
                to.insert(number);
                from.remove(&number);
            }
        }
    }
    for (field, set) in [("viridian_enable", enable), ("viridian_disable", disable)] {
        if !set.is_empty() {
            m.put(Field(Place::Hvm, field), json!(set));
        }
    }
    Ok(())
}

fn enlightenment(m: &Mapping<'_>, key: &str, name: &str) -> Result<usize, Error> {
    let known = ENLIGHTENMENTS.iter().position(|(known, _)| known.eq_ignore_ascii_case(name));
    let number = known.ok_or_else(|| {
        let words: Vec<_> = ENLIGHTENMENTS.iter().map(|(word, _)| *word).collect();
        m.keys.error(key, format!("`{name}` is not accepted; accepted: all, defaults, {}", words.join(", ")))
    })?;
    check_release(m, key, name, ENLIGHTENMENTS[number].1)?;
    Ok(number)
}

/// A word that older releases refuse.
fn check_release(m: &Mapping<'_>, key: &str, word: &str, since: u8) -> Done {
    if m.host.is_before(since) {
        return Err(m.keys.error(key, format!("`{word}` needs Xen 4.{since} or newer")));
    }
    Ok(())
}

/// `mmio_hole`, in MiB: the room for devices below 4 GiB.
pub(super) fn mmio_hole(m: &mut Mapping<'_>) -> Done {
    if m.kind == Type::Hvm {
        if let Some(mebibytes) = m.keys.number_in("mmio_hole", 256..=3840)? {
            m.put(Field(Place::Hvm, "mmio_hole_memkb"), mebibytes * 1024);
        }
    }
    Ok(())
}

/// `smbios`: a list of `NAME=TEXT`.
pub(super) fn smbios(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "smbios";
    if m.kind != Type::Hvm {
        return Ok(());
    }
    if let Some(syntax::Value::Text(_)) = m.keys.value(KEY) {
        return Err(m.keys.error(KEY, "a list of strings is expected"));
    }
    let mut entries = Vec::new();
    let mut oem = 0;
    for item in m.keys.texts(KEY)?.unwrap_or_default() {
        let Some((name, text)) = item.split_once('=').filter(|(_, text)| !text.is_empty()) else {
            return Err(m.keys.error(KEY, format!("in `{item}`: a name, `=` and a text are expected")));
        };
        let name = m.word(KEY, name, SMBIOS)?;
        oem += usize::from(name == "oem");
        entries.push(json!({ "key": name, "value": text }));
    }
    if oem > OEM_LIMIT {
        return Err(m.keys.error(KEY, format!("there is only room for {OEM_LIMIT} oem strings")));
    }
    if !entries.is_empty() {
        m.put(Field(Place::Hvm, KEY), entries);
    }
    Ok(())
}

/// `mca_caps`: a list of what the guest's machine check architecture can do, of which there is one.
pub(super) fn mca_caps(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "mca_caps";
    const ACCEPTED: &str = "accepted: a list with lmce in it";
    if m.kind != Type::Hvm {
        return Ok(());
    }
    if let Some(syntax::Value::Text(_)) = m.keys.value(KEY) {
        return Err(m.keys.error(KEY, ACCEPTED));
    }
    let words = m.keys.texts(KEY)?.unwrap_or_default();
    if let Some(word) = words.iter().find(|word| *word != "lmce") {
        return Err(m.keys.error(KEY, format!("`{word}` is not accepted; {ACCEPTED}")));
    }
    if !words.is_empty() {
        m.put(Field(Place::Hvm, KEY), 1);
    }
    Ok(())
}

/// `altp2mhvm`
pub(super) fn altp2mhvm(m: &mut Mapping<'_>) -> Done {
    if m.kind == Type::Hvm {
        if let Some(on) = m.keys.flag("altp2mhvm") {
            m.keys.warn("altp2mhvm", "this key is deprecated; use altp2m");
            m.put(Field(Place::Hvm, "altp2m"), defbool(on));
        }
    }
    Ok(())
}

/// `altp2m`: a word, or the number of its place.
pub(super) fn altp2m(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "altp2m";
    let word = match m.keys.as_number(KEY) {
        Number::Is(number) => match usize::try_from(number).ok().and_then(|place| ALTP2M.get(place)) {
            Some(word) => word,
            None => {
                let message = format!("{number} is not accepted; accepted: {}", ALTP2M.join(", "));
                return Err(m.keys.error(KEY, message));
            }
        },
        _ => match m.keys.text(KEY)? {
            Some(text) => m.word(KEY, &text, ALTP2M)?,
            None => return Ok(()),
        },
    };
    if word != ALTP2M[0] {
        m.put(Field(Place::Build, KEY), word);
    }
    Ok(())
}

/// `altp2m_count`
pub(super) fn altp2m_count(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "altp2m_count";
    if let Some(count) = m.keys.number_in(KEY, 0..=i64::from(u16::MAX))? {
        m.put(Field(Place::Build, KEY), count);
    }
    Ok(())
}

/// `ms_vm_genid`: a new one each time that the file is read.
pub(super) fn ms_vm_genid(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "ms_vm_genid";
    if m.kind != Type::Hvm {
        return Ok(());
    }
    match m.keys.text(KEY)?.as_deref() {
        None | Some("none") => Ok(()),
        Some("generate") => {
            let mut id = [0_u8; 16];
            rustix::rand::getrandom(&mut id, GetRandomFlags::empty())
                .map_err(|error| m.keys.error(KEY, format!("no random number can be had: {error}")))?;
            m.put(Field(Place::Hvm, KEY), json!(id));
            Ok(())
        }
        Some(other) => Err(m.keys.error(KEY, format!("`{other}` is not accepted; accepted: generate, none"))),
    }
}

/// `firmware`: for HVM a firmware's name or path; for the others the name of a boot program that comes with Xen.
pub(super) fn firmware(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "firmware";
    let Some(text) = m.keys.text(KEY)? else { return Ok(()) };
    if m.kind != Type::Hvm {
        if m.get(Field(Place::Build, "kernel")).is_some() {
            return Err(m.keys.error(KEY, "it can't be given beside kernel"));
        }
        // xl compares over the length of the given text only.
        if !["pvgrub32", "pvgrub64"].iter().any(|word| word.starts_with(&text)) {
            return Err(m.keys.error(KEY, format!("`{text}` is not accepted; accepted: pvgrub32, pvgrub64")));
        }
        let path = m.host.firmware_dir().join(format!("{text}.bin"));
        m.put(Field(Place::Build, "kernel"), path.to_string_lossy());
        return Ok(());
    }
    if let Some(name) = BIOS.iter().find(|name| name.eq_ignore_ascii_case(&text)) {
        match *name {
            "unknown" => m.remove(Field(Place::Hvm, "bios")),
            name => m.put(Field(Place::Hvm, "bios"), name),
        }
    } else if "uefi".starts_with(&text) {
        m.put(Field(Place::Hvm, "bios"), "ovmf");
    } else if !"bios".starts_with(&text) {
        m.put(Field(Place::Hvm, "firmware"), text);
    }
    Ok(())
}

/// `bios`
pub(super) fn bios(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "bios";
    if m.kind != Type::Hvm {
        return Ok(());
    }
    match m.keys.text(KEY)? {
        Some(text) => {
            let word = m.word(KEY, &text, BIOS)?;
            if word != BIOS[0] {
                m.put(Field(Place::Hvm, KEY), word);
            }
        }
        None if m.get(Field(Place::Hvm, "system_firmware")).is_some() => {
            m.keys.warn("bios_path_override", "it is given without bios");
        }
        None => {}
    }
    Ok(())
}

/// `xenstore_feature_mask`; all bits set is libxl's default.
pub(super) fn xenstore_feature_mask(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "xenstore_feature_mask";
    let mask = m.keys.number_in(KEY, 0..=i64::from(u32::MAX))?;
    if let Some(mask) = mask.filter(|&mask| mask != i64::from(u32::MAX)) {
        m.put(Field(Place::Build, KEY), mask);
    }
    Ok(())
}

/// `xenstore_quota`: a list of `NAME=NUMBER`.
pub(super) fn xenstore_quota(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "xenstore_quota";
    let mut quota = Vec::new();
    for item in m.keys.texts(KEY)?.unwrap_or_default() {
        let wrong = |why: &str| m.keys.error(KEY, format!("in `{item}`: {why}"));
        let (name, number) = item.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
        let number = scan::whole_number(number, 0).map_err(wrong)?;
        let number = u32::try_from(number).map_err(|_| wrong(scan::TOO_BIG))?;
        let mut entry = json!({ "name": name });
        if number != 0 {
            entry["val"] = number.into();
        }
        quota.push(entry);
    }
    if !quota.is_empty() {
        m.put(Field(Place::Build, KEY), json!({ "quota": quota }));
    }
    Ok(())
}

/// `tee`: ARM's trusted execution environment.
pub(super) fn tee(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "tee";
    let Some(text) = m.keys.text(KEY)? else { return Ok(()) };
    let word = m.word(KEY, &text, &["none", "optee", "ffa"])?;
    if word == "ffa" {
        check_release(m, KEY, word, 18)?;
    }
    if word != "none" {
        m.put(Field(Place::Build, KEY), word);
    }
    Ok(())
}

/// `nr_spis`: interrupts for devices on ARM.
pub(super) fn nr_spis(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "nr_spis";
    let default = if m.host.is_before(21) { 0 } else { u32::MAX };
    let count = m.keys.number_in(KEY, 0..=i64::from(u32::MAX))?;
    if let Some(count) = count.filter(|&count| count != i64::from(default)) {
        m.put(Field(Place::Arm, KEY), count);
    }
    Ok(())
}

/// `arm_sci`: `type=WORD`, and nothing else so far.
pub(super) fn arm_sci(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "arm_sci";
    let Some(text) = m.keys.text(KEY)? else { return Ok(()) };
    let mut sci = json!({});
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let Some(word) = part.strip_prefix("type=") else {
            m.keys.warn(KEY, format_args!("`{part}` is not known and ignored; accepted: type="));
            continue;
        };
        match m.word(KEY, word, &["none", "scmi_smc"])? {
            "none" => sci = json!({}),
            word => sci = json!({ "type": word }),
        }
    }
    m.put(Field(Place::Arm, KEY), sci);
    Ok(())
}

/// `msr_relaxed`
pub(super) fn msr_relaxed(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "msr_relaxed";
    if let Some(on) = m.keys.flag(KEY) {
        m.keys
            .warn(KEY, "this key is going to be removed; tell xen-devel@lists.xenproject.org what it helps with");
        m.put(Field(Place::X86, KEY), defbool(on));
    }
    Ok(())
}

/// `device_model_version`
pub(super) fn device_model_version(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "device_model_version";
    match m.keys.text(KEY)?.as_deref() {
        Some("qemu-xen") => m.put(Field(Place::Build, KEY), "qemu_xen"),
        Some("qemu-xen-traditional") if m.host.is_before(21) => {
            m.put(Field(Place::Build, KEY), "qemu_xen_traditional");
        }
        Some(other) => {
            let older = if m.host.is_before(21) { ", qemu-xen-traditional" } else { "" };
            return Err(m.keys.error(KEY, format!("`{other}` is not accepted; accepted: qemu-xen{older}")));
        }
        None if m.get(Field(Place::Build, "device_model")).is_some() => {
            m.keys.warn("device_model_override", "it is given without device_model_version");
        }
        None => {}
    }
    Ok(())
}

/// `vga`, else `stdvga`
pub(super) fn vga(m: &mut Mapping<'_>) -> Done {
    if m.kind != Type::Hvm {
        return Ok(());
    }
    let kind = match m.keys.text("vga")?.as_deref() {
        Some("stdvga") => "std",
        Some("cirrus") => "cirrus",
        Some("none") => "none",
        Some("qxl") => "qxl",
        Some(other) => {
            let message = format!("`{other}` is not accepted; accepted: stdvga, cirrus, none, qxl");
            return Err(m.keys.error("vga", message));
        }
        None => match m.keys.flag("stdvga") {
            Some(true) => "std",
            Some(false) => "cirrus",
            None => return Ok(()),
        },
    };
    m.put(Field(Place::Vga, "kind"), kind);
    Ok(())
}

/// `gfx_passthru`: a flag or the kind of device.
pub(super) fn gfx_passthru(m: &mut Mapping<'_>) -> Done {
    const KEY: &str = "gfx_passthru";
    if m.kind != Type::Hvm {
        return Ok(());
    }
    if let Number::Is(number) = m.keys.as_number(KEY) {
        m.put(Field(Place::Hvm, KEY), defbool(number != 0));
    } else if let Some(text) = m.keys.text(KEY)? {
        let word = m.word(KEY, &text, &["default", "igd"])?;
        if word != "default" {
            m.put(Field(Place::Hvm, "gfx_passthru_kind"), word);
        }
        m.put(Field(Place::Hvm, KEY), defbool(true));
    }
    Ok(())
}

/// A string, or a list of strings with a field of its own.
fn text_or_list(m: &mut Mapping<'_>, key: &'static str, list: &'static str) -> Done {
    if m.kind != Type::Hvm {
        return Ok(());
    }
    if let Some(syntax::Value::List(_)) = m.keys.value(key) {
        let texts = m.keys.texts(key)?.unwrap_or_default();
        if !texts.is_empty() {
            m.put(Field(Place::Hvm, list), texts);
        }
    } else if let Some(text) = m.keys.text(key)? {
        m.put(Field(Place::Hvm, key), text);
    }
    Ok(())
}

/// `serial`
pub(super) fn serial(m: &mut Mapping<'_>) -> Done {
    text_or_list(m, "serial", "serial_list")
}

/// `usbdevice`
pub(super) fn usbdevice(m: &mut Mapping<'_>) -> Done {
    text_or_list(m, "usbdevice", "usbdevice_list")
}

/// What can be checked only when all keys have been read.
pub(super) fn finish(m: &mut Mapping<'_>) -> Done {
    affinity::masks(m)?;
    if m.kind == Type::Hvm {
        let listen =
            m.get(Field(Place::Vnc, "listen")).and_then(Value::as_str).is_some_and(|text| text.contains(':'));
        if listen && m.get(Field(Place::Vnc, "display")).is_some() {
            return Err(m.keys.error("vncdisplay", "the display is given in vnclisten too"));
        }
    } else if m.get(Field(Place::Build, "kernel")).is_none() && m.get(Field(Place::Build, "bootloader")).is_none()
    {
        return Err(m.keys.error("kernel", "neither a kernel nor a bootloader is given"));
    }
    Ok(())
}
