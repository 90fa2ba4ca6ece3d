//! Guests of libvirt on the same host.
//!
//! libvirt and this program know nothing of each other: libvirt starts its guests at boot by itself, and stop acts on
//! every guest. libvirt's daemon alone means nothing, many hosts have it installed; its files tell whether it has guests
//! of Xen: a link for each guest that it starts at boot, and a note for each one that it runs.

use std::collections::BTreeSet;
use std::path::Path;

use crate::host::Host;
use crate::report::Reporter;

/// Warns if libvirt manages guests of this host.
pub fn warn_of_libvirt(host: &Host, report: &Reporter) {
    let mut guests = guests_in(&host.libvirt_autostart);
    guests.extend(guests_in(&host.libvirt_state));
    if guests.is_empty() {
        return;
    }
    let guests: Vec<_> = guests.into_iter().collect();
    report.warn(&format!(
        "libvirt manages Xen guests of this host too: {}. stop saves or shuts down these as well, behind libvirt's back; \
         with XENDOMAINS_AUTO_ONLY=true and an empty XENDOMAINS_SHUTDOWN_ALL it leaves all guests alone that are not of AUTO",
        guests.join(", ")
    ));
}

/// The names of the guests that libvirt has a file for in this directory.
fn guests_in(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".xml")?.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::mock::Bench;

    #[test]
    fn guests_of_libvirt_are_warned_of_at_start_and_keep_none_down() {
        let bench = Bench::new();
        bench.auto("web.cfg", "web");
        bench.start();
        assert!(!bench.err().contains("libvirt"), "{}", bench.err());

        let bench = Bench::new();
        bench.auto("web.cfg", "web");
        for (directory, name) in
            [(&bench.host.libvirt_autostart, "vm1.xml"), (&bench.host.libvirt_state, "vm2.xml")]
        {
            fs::create_dir_all(directory).expect("directory");
            fs::write(directory.join(name), "").expect("write");
            fs::write(directory.join("driver.pid"), "").expect("write");
        }
        bench.start();
        assert!(bench.err().contains("warning: libvirt manages Xen guests of this host too: vm1, vm2."));
        assert_eq!(bench.toolstack.left(), ["web Running"]);
    }
}
