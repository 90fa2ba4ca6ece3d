//! What this machine is, and where things are on it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

/// The paths that the program uses besides those of the settings file, and who runs it. [`Host::default`] is the real
/// machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// The settings file is the first of these that exists.
    pub settings_files: Vec<PathBuf>,
    /// The defaults for guest configurations.
    pub xl_conf: PathBuf,
    /// Says `xen` on every Xen guest, dom0 included.
    pub hypervisor_type: PathBuf,
    /// All zero in dom0.
    pub hypervisor_uuid: PathBuf,
    /// Says `control_d` in dom0, if xenfs is mounted.
    pub xen_capabilities: PathBuf,
    /// Changes with every boot: [`boot_id`](Self::boot_id).
    pub boot_id: PathBuf,
    /// Locked by the process that starts or stops guests.
    pub lock_file: PathBuf,
    /// Where init scripts keep their marks, if it exists.
    pub subsys_dir: PathBuf,
    /// Where the mark goes otherwise.
    pub lock_dir: PathBuf,
    /// Whether the program may do anything at all.
    pub root: bool,
}

impl Default for Host {
    fn default() -> Host {
        Host {
            settings_files: vec!["/etc/default/xendomains".into(), "/etc/sysconfig/xendomains".into()],
            xl_conf: "/etc/xen/xl.conf".into(),
            hypervisor_type: "/sys/hypervisor/type".into(),
            hypervisor_uuid: "/sys/hypervisor/uuid".into(),
            xen_capabilities: "/proc/xen/capabilities".into(),
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
            lock_file: "/run/xendomains.lock".into(),
            subsys_dir: "/var/lock/subsys".into(),
            lock_dir: "/var/lock".into(),
            root: geteuid().is_root(),
        }
    }
}

impl Host {
    /// `Err` says why this is not a host of Xen guests.
    pub fn is_dom0(&self) -> Result<(), String> {
        match read(&self.hypervisor_type).as_deref() {
            Ok("xen") => {}
            Ok(other) => return Err(format!("this machine runs under {other}, not under Xen")),
            Err(_) => return Err("this machine does not run under Xen".to_owned()),
        }
        let capabilities = read(&self.xen_capabilities);
        if let Ok(text) = &capabilities {
            if text.split(',').any(|word| word.trim() == "control_d") {
                return Ok(());
            }
        }
        // Without xenfs there is no such file (and on a Xen guest it is empty); dom0 is then known by its UUID.
        if capabilities.is_err() && self.has_dom0_uuid() {
            return Ok(());
        }
        Err("this machine is a Xen guest, not the Xen host (dom0)".to_owned())
    }

    fn has_dom0_uuid(&self) -> bool {
        read(&self.hypervisor_uuid).is_ok_and(|uuid| uuid.parse().is_ok_and(|uuid: uuid::Uuid| uuid.is_nil()))
    }

    /// Which boot of the machine this is.
    pub fn boot_id(&self) -> io::Result<String> {
        read(&self.boot_id)
    }

    /// The mark for init scripts that guests were started: [`mark`](Self::mark) and [`unmark`](Self::unmark).
    pub fn mark_file(&self) -> PathBuf {
        let dir = if self.subsys_dir.is_dir() { &self.subsys_dir } else { &self.lock_dir };
        dir.join("xendomains")
    }

    /// Makes the mark. The boot id inside tells one that a crash has left behind from a current one.
    pub fn mark(&self) -> io::Result<()> {
        let boot_id = self.boot_id()?;
        std::fs::write(self.mark_file(), format!("{boot_id}\n"))
    }

    /// Removes the mark.
    pub fn unmark(&self) -> io::Result<()> {
        match std::fs::remove_file(self.mark_file()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

/// A machine in a directory, for tests.
#[cfg(test)]
pub(crate) fn fake_dom0(dir: &Path) -> Host {
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("write");
        path
    };
    Host {
        settings_files: vec![dir.join("settings"), dir.join("sysconfig-settings")],
        xl_conf: dir.join("xl.conf"),
        hypervisor_type: file("type", "xen\n"),
        hypervisor_uuid: file("uuid", "00000000-0000-0000-0000-000000000000\n"),
        xen_capabilities: file("capabilities", "control_d\n"),
        boot_id: file("boot_id", "b00710\n"),
        lock_file: dir.join("run.lock"),
        subsys_dir: dir.join("subsys"),
        lock_dir: dir.to_owned(),
        root: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dom0_is_known_with_and_without_xenfs() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = fake_dom0(dir.path());
        assert_eq!(host.is_dom0(), Ok(()));
        std::fs::remove_file(&host.xen_capabilities).expect("remove");
        assert_eq!(host.is_dom0(), Ok(()));
        std::fs::write(&host.hypervisor_uuid, "6e2b0ed5-7f0b-4b43-a6bb-ec0d1bd0d2a6\n").expect("write");
        assert!(host.is_dom0().is_err_and(|reason| reason.contains("guest")));
    }

    #[test]
    fn everything_else_is_not_dom0() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = fake_dom0(dir.path());
        std::fs::write(&host.xen_capabilities, "").expect("write");
        assert!(host.is_dom0().is_err_and(|reason| reason.contains("guest")));
        std::fs::write(&host.hypervisor_type, "kvm\n").expect("write");
        assert!(host.is_dom0().is_err_and(|reason| reason.contains("kvm")));
        std::fs::remove_file(&host.hypervisor_type).expect("remove");
        assert!(host.is_dom0().is_err_and(|reason| reason.contains("not run under Xen")));
    }

    #[test]
    fn the_mark_has_the_boot_id_and_is_where_init_scripts_look() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = fake_dom0(dir.path());
        host.unmark().expect("nothing to remove");
        host.mark().expect("mark");
        assert_eq!(read(&dir.path().join("xendomains")).expect("mark"), "b00710");
        host.unmark().expect("remove");
        assert!(!dir.path().join("xendomains").exists());
        std::fs::create_dir(&host.subsys_dir).expect("directory");
        host.mark().expect("mark");
        assert!(dir.path().join("subsys/xendomains").exists());
    }
}
