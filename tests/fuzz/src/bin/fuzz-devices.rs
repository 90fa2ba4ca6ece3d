//! Items of the other lists whose items have a language of their own.
#![no_main]

use fuzz_targets::{host, read_guest, with_item};
use libfuzzer_sys::fuzz_target;

const KEYS: &[&str] = &[
    "vif",
    "pci",
    "vfb",
    "vkb",
    "usbctrl",
    "usbdev",
    "channel",
    "vtpm",
    "p9",
    "pvcalls",
    "vdispl",
    "vsnd",
    "dtdev",
    "virtio",
    "rdm",
    "cpuid",
    "cpus",
    "cpus_soft",
    "vnuma",
    "ioports",
    "iomem",
    "irqs",
    "viridian",
    "smbios",
    "xendomains",
];

fuzz_target!(|input: &[u8]| {
    let Some((host, input)) = host(input) else { return };
    let Some((key, item)) = input.split_first() else { return };
    read_guest(&with_item(KEYS[usize::from(*key) % KEYS.len()], item), &host);
});
