//! What this machine is, and where things are on it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use xenlight::Release;

use crate::guest_config::Cpus;

/// Above the number of any CPU or NUMA node.
const NUMBER_LIMIT: u32 = 1 << 16;

/// The paths that the program uses besides those of the settings file, and who runs it. [`Host::default`] is the real
/// machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// The settings file is the first of these that exists.
    pub settings_files: Vec<PathBuf>,
    /// The defaults for guest configurations.
    pub xl_conf: PathBuf,
    /// Where Linux tells about the hypervisor: its release among others.
    pub hypervisor: PathBuf,
    /// Where Linux tells about the machine's own CPUs and NUMA nodes.
    pub devices: PathBuf,
    /// Where Debian has a directory for each release of Xen.
    pub usr_lib: PathBuf,
    /// Where Xen's scripts look up its other directories.
    pub hotplug_paths: PathBuf,
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
    /// For what is not to outlive the boot.
    pub run_dir: PathBuf,
    /// For what is to be remembered over boots.
    pub state_dir: PathBuf,
    /// Where Linux shows its processes.
    pub processes: PathBuf,
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
            hypervisor: "/sys/hypervisor".into(),
            devices: "/sys/devices/system".into(),
            usr_lib: "/usr/lib".into(),
            hotplug_paths: "/etc/xen/scripts/hotplugpath.sh".into(),
            hypervisor_type: "/sys/hypervisor/type".into(),
            hypervisor_uuid: "/sys/hypervisor/uuid".into(),
            xen_capabilities: "/proc/xen/capabilities".into(),
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
            lock_file: "/run/xendomains.lock".into(),
            run_dir: "/run/xendomains".into(),
            state_dir: "/var/lib/xendomains".into(),
            processes: "/proc".into(),
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

    /// Which release of Xen 4 runs, as its minor number: 17 for Xen 4.17.
    pub fn xen_release(&self) -> Option<u32> {
        Release::from_sysfs(&self.hypervisor)
            .ok()
            .filter(|release| release.major == 4)
            .map(|release| release.minor)
    }

    /// Which update of the release runs: 5 for Xen 4.17.5.
    pub fn xen_update(&self) -> Option<u32> {
        let extra = read(&self.hypervisor.join("version/extra")).ok()?;
        let digits = extra.strip_prefix('.')?.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    }

    /// The CPUs and NUMA nodes of the machine, as Linux sees them.
    pub fn cpus(&self) -> Option<Cpus> {
        let numbers = |name: &str| number_list(&read(&self.devices.join(name)).ok()?);
        let (possible, online) = (numbers("cpu/possible")?, numbers("cpu/online")?);
        let mut nodes = Vec::new();
        for node in numbers("node/online").unwrap_or_default() {
            nodes.resize(nodes.len().max(node as usize + 1), Vec::new());
            nodes[node as usize] = numbers(&format!("node/node{node}/cpulist")).unwrap_or_default();
        }
        if nodes.is_empty() {
            nodes.push(online.clone());
        }
        let count = possible.iter().max()? + 1;
        Some(Cpus { count, online: u32::try_from(online.len()).ok()?, nodes, from_xen: false })
    }

    /// Where the Xen of this release has boot programs for guests.
    pub fn firmware_dir(&self, release: u32) -> Option<PathBuf> {
        let debian = self.usr_lib.join(format!("xen-4.{release}/boot"));
        if debian.is_dir() {
            return Some(debian);
        }
        let script = read(&self.hotplug_paths).ok()?;
        let dir = script.lines().find_map(|line| line.trim().strip_prefix("XENFIRMWAREDIR="))?;
        Some(PathBuf::from(dir.trim_matches(['"', '\'']))).filter(|dir| dir.is_absolute())
    }

    /// Whether a helper of libxl is writing this domain's state to somewhere, for whichever program.
    pub fn is_being_saved(&self, domid: u32) -> bool {
        let Ok(processes) = std::fs::read_dir(&self.processes) else { return false };
        let domid = domid.to_string();
        processes.filter_map(Result::ok).any(|process| {
            // It says --save-domain and then numbers, among them the domain's.
            let Ok(command) = std::fs::read(process.path().join("cmdline")) else { return false };
            let mut words = command.split(|&byte| byte == 0);
            let is_helper = words.next().is_some_and(|program| program.ends_with(b"/libxl-save-helper"));
            is_helper && words.next() == Some(b"--save-domain") && words.any(|word| word == domid.as_bytes())
        })
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

/// Numbers and ranges of them, as in `0-3,8`.
fn number_list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        numbers.extend(first..=last.min(NUMBER_LIMIT));
    }
    Some(numbers).filter(|numbers| numbers.iter().all(|&number| number < NUMBER_LIMIT))
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
        hypervisor: dir.to_owned(),
        devices: dir.join("devices"),
        usr_lib: dir.join("lib"),
        hotplug_paths: dir.join("hotplugpath.sh"),
        hypervisor_type: file("type", "xen\n"),
        hypervisor_uuid: file("uuid", "00000000-0000-0000-0000-000000000000\n"),
        xen_capabilities: file("capabilities", "control_d\n"),
        boot_id: file("boot_id", "b00710\n"),
        lock_file: dir.join("run.lock"),
        run_dir: dir.join("run"),
        state_dir: dir.join("state"),
        processes: dir.join("processes"),
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

    /// A machine of these files.
    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            std::fs::write(path, text).expect("write");
        }
        let host = fake_dom0(dir.path());
        (dir, host)
    }

    #[test]
    fn which_xen_runs() {
        let version = |extra| [("version/major", "4\n"), ("version/minor", "17\n"), ("version/extra", extra)];
        for (extra, update) in [(".5\n", Some(5)), (".7-pre\n", Some(7)), ("-unstable\n", None), ("\n", None)] {
            let (_dir, host) = machine(&version(extra));
            assert_eq!((host.xen_release(), host.xen_update()), (Some(17), update), "{extra}");
        }
        let (_dir, host) = machine(&[]);
        assert_eq!((host.xen_release(), host.xen_update()), (None, None));
    }

    #[test]
    fn the_machines_own_cpus() {
        let (_dir, host) = machine(&[
            ("devices/cpu/possible", "0-7\n"),
            ("devices/cpu/online", "0-3,6\n"),
            ("devices/node/online", "0,2\n"),
            ("devices/node/node0/cpulist", "0-1,6\n"),
            ("devices/node/node2/cpulist", "2-3\n"),
        ]);
        let nodes = vec![vec![0, 1, 6], vec![], vec![2, 3]];
        assert_eq!(host.cpus(), Some(Cpus { count: 8, online: 5, nodes, from_xen: false }));
        let (_dir, host) = machine(&[("devices/cpu/possible", "0-1"), ("devices/cpu/online", "1")]);
        assert_eq!(host.cpus(), Some(Cpus { count: 2, online: 1, nodes: vec![vec![1]], from_xen: false }));
        for text in ["", "x", "0-4294967295", "3-2"] {
            let (_dir, host) = machine(&[("devices/cpu/possible", text), ("devices/cpu/online", "0")]);
            assert_eq!(host.cpus(), None, "{text}");
        }
    }

    #[test]
    fn where_boot_programs_are() {
        let (dir, host) = machine(&[]);
        assert_eq!(host.firmware_dir(17), None);
        let script = "bindir=\"/usr/bin\"\nXENFIRMWAREDIR=\"/usr/libexec/xen/boot\"\n";
        std::fs::write(&host.hotplug_paths, script).expect("write");
        assert_eq!(host.firmware_dir(17), Some("/usr/libexec/xen/boot".into()));
        let debian = dir.path().join("lib/xen-4.17/boot");
        std::fs::create_dir_all(&debian).expect("directory");
        assert_eq!(host.firmware_dir(17), Some(debian));
    }

    #[test]
    fn a_save_by_anybody_is_known_by_libxls_helper() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = fake_dom0(dir.path());
        assert!(!host.is_being_saved(7));
        for (pid, command) in [
            ("1", "/sbin/init 7 "),
            ("2", "/usr/lib/xen/bin/libxl-save-helper --restore-domain 3 7 "),
            ("3", "/usr/lib/xen/bin/libxl-save-helper --save-domain 3 4 12 0 "),
        ] {
            std::fs::create_dir_all(host.processes.join(pid)).expect("directory");
            let command = command.replace(' ', "\0");
            std::fs::write(host.processes.join(pid).join("cmdline"), command).expect("write");
        }
        assert!(host.is_being_saved(12) && !host.is_being_saved(7) && !host.is_being_saved(1));
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
