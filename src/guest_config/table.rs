//! All keys that xl reads in a guest's file, and what becomes of them.
//!
//! A key that is a plain copy into one of libxl's fields is one line here. A key with rules of its own names the
//! function in `rules` or `devices` that has them.

use super::mapping::Mapping;
use super::{Error, affinity, cpuid, devices, resources, rules, vnuma};

/// The structures of libxl's configuration. Those of the union exist only for guests of that type; fields in a
/// structure that the guest doesn't have are not set, as in xl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Create,
    Build,
    /// In the build information, but only for HVM guests.
    BuildOfHvm,
    Sched,
    Arm,
    /// From Xen 4.15 on.
    X86,
    Pv,
    Pvh,
    Hvm,
    Vga,
    Vnc,
    Sdl,
    Spice,
}

/// A field of libxl's configuration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field(pub(super) Place, pub(super) &'static str);

/// What becomes of a key.
#[derive(Clone, Copy)]
pub(super) enum Rule {
    /// Copied as text.
    Text(Field),
    /// A number that says yes or no.
    Flag(Field),
    /// A C `int`. The given value is libxl's default, which its JSON leaves out.
    Int(Field, i64),
    /// A C `uint32_t`; zero is the default.
    Uint32(Field),
    /// A size in MiB, which libxl wants in KiB.
    Mebibytes(Field),
    /// A list of strings; anything else is an error.
    Texts(Field),
    /// One of libxl's words, in any case. The first one is the default, which its JSON leaves out.
    Word(Field, &'static [&'static str]),
    /// What to do when the guest ends: the default of xl.
    Action(&'static str),
    /// Has rules of its own.
    Own(fn(&mut Mapping<'_>) -> Result<(), Error>),
    /// The rule of another key reads it.
    Elsewhere,
    /// xl warns and ignores it.
    Ignored(&'static str),
}

/// A key that xl reads.
pub(super) struct Key {
    /// Its name.
    pub(super) name: &'static str,
    /// The minor number of the first Xen 4 release that reads it; 14 stands for "4.14 or earlier".
    pub(super) since: u8,
    /// What becomes of it.
    pub(super) rule: Rule,
}

const fn key(name: &'static str, since: u8, rule: Rule) -> Key {
    Key { name, since, rule }
}

use Place::{Arm, Build, BuildOfHvm, Create, Hvm, Pv, Pvh, Sched, Sdl, Spice, Vnc};
use Rule::{Action, Elsewhere, Flag, Ignored, Int, Mebibytes, Own, Text, Texts, Uint32, Word};

/// In the order in which xl reads them, except that the type comes first.
pub(super) const KEYS: &[Key] = &[
    key("type", 14, Own(rules::guest_type)),
    key("builder", 14, Elsewhere),
    key("init_seclabel", 14, Elsewhere),
    key("seclabel", 14, Own(rules::seclabel)),
    key("hap", 14, Flag(Field(Create, "hap"))),
    key("name", 14, Own(rules::name)),
    key("uuid", 14, Own(rules::uuid)),
    key("oos", 14, Flag(Field(Create, "oos"))),
    key("pool", 14, Text(Field(Create, "pool_name"))),
    key("xenstore_feature_mask", 21, Own(rules::xenstore_feature_mask)),
    key("xenstore_quota", 22, Own(rules::xenstore_quota)),
    key("pvshim", 14, Flag(Field(Pvh, "pvshim"))),
    key("pvshim_path", 14, Text(Field(Pvh, "pvshim_path"))),
    key("pvshim_cmdline", 14, Text(Field(Pvh, "pvshim_cmdline"))),
    key("pvshim_extra", 14, Text(Field(Pvh, "pvshim_extra"))),
    key("cpu_weight", 14, Int(Field(Sched, "weight"), -1)),
    key("cap", 14, Int(Field(Sched, "cap"), -1)),
    key("period", 14, Int(Field(Sched, "period"), -1)),
    key("slice", 14, Int(Field(Sched, "slice"), -1)),
    key("latency", 14, Int(Field(Sched, "latency"), -1)),
    key("extratime", 14, Int(Field(Sched, "extratime"), -1)),
    key("memory", 14, Own(rules::memory)),
    key("maxmem", 14, Elsewhere),
    key("llc_colors", 20, Own(resources::llc_colors)),
    key("vcpus", 14, Own(rules::vcpus)),
    key("maxvcpus", 14, Elsewhere),
    key("vuart", 14, Word(Field(Arm, "vuart"), &["unknown", "sbsa_uart"])),
    key("vnuma", 14, Own(vnuma::vnuma)),
    key("cpus", 14, Own(affinity::cpus)),
    key("cpus_soft", 14, Own(affinity::cpus_soft)),
    key("max_grant_frames", 14, Own(rules::max_grant_frames)),
    key("max_maptrack_frames", 14, Own(rules::max_maptrack_frames)),
    key("max_grant_version", 16, Own(rules::max_grant_version)),
    key("on_poweroff", 14, Action("destroy")),
    key("on_reboot", 14, Action("restart")),
    key("on_watchdog", 14, Action("destroy")),
    key("on_crash", 14, Action("destroy")),
    key("on_soft_reset", 14, Action("soft-reset")),
    key("e820_host", 14, Flag(Field(Pv, "e820_host"))),
    key("pci_msitranslate", 14, Elsewhere),
    key("pci_power_mgmt", 14, Elsewhere),
    key("pci_permissive", 14, Elsewhere),
    key("pci_seize", 14, Elsewhere),
    key("rdm", 14, Elsewhere),
    key("pci", 14, Own(devices::pci)),
    key("dtdev", 14, Own(devices::dtdev)),
    key(
        "passthrough",
        14,
        Word(Field(Create, "passthrough"), &["default", "disabled", "enabled", "sync_pt", "share_pt"]),
    ),
    key("shadow_memory", 14, Mebibytes(Field(Build, "shadow_memkb"))),
    key("nomigrate", 14, Flag(Field(Build, "disable_migrate"))),
    key("tsc_mode", 14, Own(rules::tsc_mode)),
    key("rtc_timeoffset", 14, Own(rules::rtc_timeoffset)),
    key("vncviewer", 14, Ignored("xl opens a viewer only on request")),
    key("localtime", 14, Flag(Field(Build, "localtime"))),
    key("videoram", 14, Mebibytes(Field(Build, "video_memkb"))),
    key("max_event_channels", 14, Uint32(Field(Build, "event_channels"))),
    key("kernel", 14, Own(rules::kernel)),
    key("ramdisk", 14, Text(Field(Build, "ramdisk"))),
    key("device_tree", 14, Text(Field(Build, "device_tree"))),
    key("cmdline", 14, Own(rules::cmdline)),
    key("root", 14, Elsewhere),
    key("extra", 14, Elsewhere),
    key("driver_domain", 14, Flag(Field(Create, "driver_domain"))),
    key("acpi", 14, Flag(Field(Build, "acpi"))),
    key("bootloader", 14, Text(Field(Build, "bootloader"))),
    key("bootloader_restrict", 18, Own(rules::bootloader_restrict)),
    key("bootloader_user", 18, Text(Field(Build, "bootloader_user"))),
    key("bootloader_args", 14, Own(rules::bootloader_args)),
    key("timer_mode", 14, Own(rules::timer_mode)),
    key("nestedhvm", 14, Flag(Field(Build, "nested_hvm"))),
    key("firmware_override", 14, Text(Field(Hvm, "firmware"))),
    key("bios_path_override", 14, Text(Field(Hvm, "system_firmware"))),
    key("bios", 14, Own(rules::bios)),
    key("pae", 14, Flag(Field(Hvm, "pae"))),
    key("acpi_s3", 14, Flag(Field(Hvm, "acpi_s3"))),
    key("acpi_s4", 14, Flag(Field(Hvm, "acpi_s4"))),
    key("acpi_laptop_slate", 14, Flag(Field(Hvm, "acpi_laptop_slate"))),
    key("nx", 14, Flag(Field(Hvm, "nx"))),
    key("hpet", 14, Flag(Field(Hvm, "hpet"))),
    key("vpt_align", 14, Flag(Field(Hvm, "vpt_align"))),
    key("apic", 14, Flag(Field(BuildOfHvm, "apic"))),
    key("hvm_pirq", 19, Flag(Field(Hvm, "pirq"))),
    key("viridian", 14, Own(rules::viridian)),
    key("mmio_hole", 14, Own(rules::mmio_hole)),
    key("altp2mhvm", 14, Own(rules::altp2mhvm)),
    key("smbios_firmware", 14, Text(Field(Hvm, "smbios_firmware"))),
    key("acpi_firmware", 14, Text(Field(Hvm, "acpi_firmware"))),
    key("smbios", 18, Own(rules::smbios)),
    key("ms_vm_genid", 14, Own(rules::ms_vm_genid)),
    key("rdm_mem_boundary", 14, Mebibytes(Field(Hvm, "rdm_mem_boundary_memkb"))),
    key("mca_caps", 14, Own(rules::mca_caps)),
    key("firmware", 14, Own(rules::firmware)),
    key("altp2m", 14, Own(rules::altp2m)),
    key("altp2m_count", 21, Own(rules::altp2m_count)),
    key("vmtrace_buf_kb", 15, Int(Field(Build, "vmtrace_buf_kb"), 0)),
    key("ioports", 14, Own(resources::ioports)),
    key("irqs", 14, Own(resources::irqs)),
    key("iomem", 14, Own(resources::iomem)),
    key("disk", 14, Own(devices::disk)),
    key("vtpm", 14, Own(devices::vtpm)),
    key("p9", 14, Own(devices::p9)),
    key("vdispl", 14, Own(devices::vdispl)),
    key("vsnd", 14, Own(devices::vsnd)),
    key("pvcalls", 14, Own(devices::pvcalls)),
    key("channel", 14, Own(devices::channel)),
    key("vif", 14, Own(devices::vif)),
    key("vif2", 14, Ignored("netchannel2 is not supported by xl")),
    key("vfb", 14, Own(devices::vfb)),
    key("usbctrl", 14, Own(devices::usbctrl)),
    key("usbdev", 14, Own(devices::usbdev)),
    key("cpuid", 14, Own(cpuid::cpuid)),
    key("device_model", 14, Ignored("use device_model_override for another device model")),
    key("device_model_override", 14, Text(Field(Build, "device_model"))),
    key("device_model_version", 14, Own(rules::device_model_version)),
    key("device_model_stubdomain_override", 14, Flag(Field(Build, "device_model_stubdomain"))),
    key("device_model_stubdomain_seclabel", 14, Text(Field(Build, "device_model_ssid_label"))),
    key("device_model_user", 14, Text(Field(Build, "device_model_user"))),
    key("stubdomain_kernel", 14, Text(Field(Build, "stubdomain_kernel"))),
    key("stubdomain_cmdline", 16, Text(Field(Build, "stubdomain_cmdline"))),
    key("stubdomain_ramdisk", 14, Text(Field(Build, "stubdomain_ramdisk"))),
    key("stubdomain_memory", 14, Mebibytes(Field(Build, "stubdomain_memkb"))),
    key("device_model_args", 14, Texts(Field(Build, "extra"))),
    key("device_model_args_pv", 14, Texts(Field(Build, "extra_pv"))),
    key("device_model_args_hvm", 14, Texts(Field(Build, "extra_hvm"))),
    key("vnc", 14, Own(devices::vnc)),
    key("vnclisten", 14, Text(Field(Vnc, "listen"))),
    key("vncpasswd", 14, Text(Field(Vnc, "passwd"))),
    key("vncdisplay", 14, Int(Field(Vnc, "display"), 0)),
    key("vncunused", 14, Flag(Field(Vnc, "findunused"))),
    key("sdl", 14, Flag(Field(Sdl, "enable"))),
    key("opengl", 14, Flag(Field(Sdl, "opengl"))),
    key("display", 14, Text(Field(Sdl, "display"))),
    key("xauthority", 14, Text(Field(Sdl, "xauthority"))),
    key("dm_restrict", 14, Flag(Field(Build, "dm_restrict"))),
    key("vga", 14, Own(rules::vga)),
    key("stdvga", 14, Elsewhere),
    key("hdtype", 14, Word(Field(Hvm, "hdtype"), &["ide", "ahci"])),
    key("keymap", 14, Text(Field(Hvm, "keymap"))),
    key("spice", 14, Flag(Field(Spice, "enable"))),
    key("spiceport", 14, Int(Field(Spice, "port"), 0)),
    key("spicetls_port", 14, Int(Field(Spice, "tls_port"), 0)),
    key("spicehost", 14, Text(Field(Spice, "host"))),
    key("spicedisable_ticketing", 14, Flag(Field(Spice, "disable_ticketing"))),
    key("spicepasswd", 14, Text(Field(Spice, "passwd"))),
    key("spiceagent_mouse", 14, Flag(Field(Spice, "agent_mouse"))),
    key("spicevdagent", 14, Flag(Field(Spice, "vdagent"))),
    key("spice_clipboard_sharing", 14, Flag(Field(Spice, "clipboard_sharing"))),
    key("spiceusbredirection", 14, Int(Field(Spice, "usbredirection"), 0)),
    key("spice_image_compression", 14, Text(Field(Spice, "image_compression"))),
    key("spice_streaming_video", 14, Text(Field(Spice, "streaming_video"))),
    key("nographic", 14, Flag(Field(Hvm, "nographic"))),
    key("gfx_passthru", 14, Own(rules::gfx_passthru)),
    key("serial", 14, Own(rules::serial)),
    key("boot", 14, Text(Field(Hvm, "boot"))),
    key("usb", 14, Flag(Field(Hvm, "usb"))),
    key("usbversion", 14, Int(Field(Hvm, "usbversion"), 0)),
    key("usbdevice", 14, Own(rules::usbdevice)),
    key("vkb_device", 14, Flag(Field(Hvm, "vkb_device"))),
    key("soundhw", 14, Text(Field(Hvm, "soundhw"))),
    key("xen_platform_pci", 14, Flag(Field(Hvm, "xen_platform_pci"))),
    key("xen_platform_pci_bar_uc", 21, Flag(Field(Hvm, "xen_platform_pci_bar_uc"))),
    key("vendor_device", 14, Word(Field(Hvm, "vendor_device"), &["none", "xenserver"])),
    key("gic_version", 14, Word(Field(Arm, "gic_version"), &["default", "v2", "v3"])),
    key("tee", 14, Own(rules::tee)),
    key("sve", 18, Word(Field(Arm, "sve_vl"), rules::SVE)),
    key("nr_spis", 19, Own(rules::nr_spis)),
    key("trap_unmapped_accesses", 21, Flag(Field(Build, "trap_unmapped_accesses"))),
    key("arm_sci", 21, Own(rules::arm_sci)),
    key("vkb", 14, Own(devices::vkb)),
    key("virtio", 18, Own(devices::virtio)),
    key("xend_suspend_evtchn_compat", 14, Flag(Field(Create, "xend_suspend_evtchn_compat"))),
    key("msr_relaxed", 15, Own(rules::msr_relaxed)),
    key("vpmu", 16, Flag(Field(Build, "vpmu"))),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (i, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..i].iter().all(|other| other.name != key.name), "{} twice", key.name);
        }
    }

    /// The keys that the sources of xl name, by release.
    #[test]
    fn complete() {
        const SINCE_14: &str = "acpi acpi_firmware acpi_laptop_slate acpi_s3 acpi_s4 altp2m altp2mhvm apic bios \
            bios_path_override boot bootloader bootloader_args builder cap channel cmdline cpu_weight cpuid cpus \
            cpus_soft device_model device_model_args device_model_args_hvm device_model_args_pv \
            device_model_override device_model_stubdomain_override device_model_stubdomain_seclabel \
            device_model_user device_model_version device_tree disk display dm_restrict driver_domain dtdev \
            e820_host extra extratime firmware firmware_override gfx_passthru gic_version hap hdtype hpet \
            init_seclabel iomem ioports irqs kernel keymap latency localtime max_event_channels max_grant_frames \
            max_maptrack_frames maxmem maxvcpus mca_caps memory mmio_hole ms_vm_genid name nestedhvm nographic \
            nomigrate nx on_crash on_poweroff on_reboot on_soft_reset on_watchdog oos opengl p9 pae passthrough pci \
            pci_msitranslate pci_permissive pci_power_mgmt pci_seize period pool pvcalls pvshim pvshim_cmdline \
            pvshim_extra pvshim_path ramdisk rdm rdm_mem_boundary root rtc_timeoffset sdl seclabel serial \
            shadow_memory slice smbios_firmware soundhw spice spice_clipboard_sharing spice_image_compression \
            spice_streaming_video spiceagent_mouse spicedisable_ticketing spicehost spicepasswd spiceport \
            spicetls_port spiceusbredirection spicevdagent stdvga stubdomain_kernel stubdomain_memory \
            stubdomain_ramdisk tee timer_mode tsc_mode type usb usbctrl usbdev usbdevice usbversion uuid vcpus \
            vdispl vendor_device vfb vga videoram vif vif2 viridian vkb vkb_device vnc vncdisplay vnclisten \
            vncpasswd vncunused vncviewer vnuma vpt_align vsnd vtpm vuart xauthority xen_platform_pci \
            xend_suspend_evtchn_compat";
        const LATER: &str = "max_grant_version msr_relaxed stubdomain_cmdline vmtrace_buf_kb vpmu \
            bootloader_restrict bootloader_user hvm_pirq llc_colors nr_spis smbios sve virtio altp2m_count arm_sci \
            trap_unmapped_accesses xen_platform_pci_bar_uc xenstore_feature_mask xenstore_quota";
        for (names, late) in [(SINCE_14, false), (LATER, true)] {
            for name in names.split_whitespace() {
                let key = KEYS.iter().find(|key| key.name == name).unwrap_or_else(|| panic!("{name} is missing"));
                assert_eq!(key.since > 14, late, "{name}");
            }
        }
        assert_eq!(KEYS.len(), SINCE_14.split_whitespace().count() + LATER.split_whitespace().count());
    }
}
