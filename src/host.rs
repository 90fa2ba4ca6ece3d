//! What this machine is, and where things are on it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;
use xenlight::Release;

use crate::guest_config::Cpus;

/// Above the number of any CPU or NUMA node.
const NUMBER_LIMIT: u32 = 1 << 16;

/// On the kernel's command line, and as a file of this name in Xen's directory, it keeps guests from being started.
pub const OFF_WORD: &str = "xendomains.skip_autostart";

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
    /// Where the commands of a toolstack are looked for first.
    pub sbin: Vec<PathBuf>,
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
    /// What the boot loader has told the kernel: [`is_switched_off`](Self::is_switched_off).
    pub kernel_command_line: PathBuf,
    /// If this exists, no guest is started: [`is_switched_off`](Self::is_switched_off).
    pub off_switch: PathBuf,
    /// Changes with every boot: [`boot_id`](Self::boot_id).
    pub boot_id: PathBuf,
    /// Locked by the process that starts or stops guests.
    pub lock_file: PathBuf,
    /// For what is not to outlive the boot.
    pub run_dir: PathBuf,
    /// For what is to be remembered over boots.
    pub state_dir: PathBuf,
    /// Where Xen keeps the memory of guests that have crashed.
    pub dump_dir: PathBuf,
    /// Where Linux shows its processes.
    pub processes: PathBuf,
    /// Where init scripts keep their marks, if it exists.
    pub subsys_dir: PathBuf,
    /// Where the mark goes otherwise.
    pub lock_dir: PathBuf,
    /// Where libvirt has the guests that it starts at boot.
    pub libvirt_autostart: PathBuf,
    /// Where libvirt notes the guests that it runs.
    pub libvirt_state: PathBuf,
    /// systemd's command for units.
    pub systemctl: PathBuf,
    /// systemd's command for units without a file.
    pub systemd_run: PathBuf,
    /// The unit that systemd stops by running this process.
    pub stopped_unit: Option<String>,
    /// Where an admin's units are, and drop-ins for other units.
    pub unit_dirs: Vec<PathBuf>,
    /// There while systemd is the init system; see sd_booted(3).
    pub systemd_dir: PathBuf,
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
            sbin: ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from).to_vec(),
            usr_lib: "/usr/lib".into(),
            hotplug_paths: "/etc/xen/scripts/hotplugpath.sh".into(),
            hypervisor_type: "/sys/hypervisor/type".into(),
            hypervisor_uuid: "/sys/hypervisor/uuid".into(),
            xen_capabilities: "/proc/xen/capabilities".into(),
            kernel_command_line: "/proc/cmdline".into(),
            off_switch: format!("/etc/xen/{OFF_WORD}").into(),
            boot_id: "/proc/sys/kernel/random/boot_id".into(),
            lock_file: "/run/xendomains.lock".into(),
            run_dir: "/run/xendomains".into(),
            state_dir: "/var/lib/xendomains".into(),
            dump_dir: "/var/lib/xen/dump".into(),
            processes: "/proc".into(),
            subsys_dir: "/var/lock/subsys".into(),
            lock_dir: "/var/lock".into(),
            libvirt_autostart: "/etc/libvirt/libxl/autostart".into(),
            libvirt_state: "/run/libvirt/libxl".into(),
            systemctl: "systemctl".into(),
            systemd_run: "systemd-run".into(),
            stopped_unit: crate::systemd::stopped_unit(),
            unit_dirs: [
                "/etc/systemd/system",
                "/etc/systemd/system.control",
                "/run/systemd/system",
                "/run/systemd/system.control",
                "/usr/local/lib/systemd/system",
            ]
            .map(PathBuf::from)
            .to_vec(),
            systemd_dir: "/run/systemd/system".into(),
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

    /// Whether whoever has booted the machine wants no guest to be started: what says so.
    pub fn is_switched_off(&self) -> Option<String> {
        let is_off = |word: &str| match word.strip_prefix(OFF_WORD) {
            Some("") => true,
            Some(value) => {
                value.strip_prefix('=').is_some_and(|value| !matches!(value, "0" | "no" | "off" | "false"))
            }
            None => false,
        };
        if read(&self.kernel_command_line).is_ok_and(|line| line.split_whitespace().any(is_off)) {
            return Some(format!("{OFF_WORD} is on the kernel's command line"));
        }
        // A link counts too, wherever it leads.
        let exists = std::fs::symlink_metadata(&self.off_switch).is_ok();
        exists.then(|| format!("{} exists", self.off_switch.display()))
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

    /// The names of guests that an `xl` process watches which `xl create` has left behind: it writes what happens to
    /// `xl-NAME.log`. Nothing else tells of it.
    pub fn watched_by_xl(&self) -> HashSet<String> {
        let processes = std::fs::read_dir(&self.processes).into_iter().flatten().filter_map(Result::ok);
        let name = |process: std::fs::DirEntry| {
            let path = process.path();
            if read(&path.join("comm")).ok()? != "xl" {
                return None;
            }
            let log = std::fs::read_link(path.join("fd/1")).ok()?;
            let name = log.file_name()?.to_str()?.strip_prefix("xl-")?;
            // It may have been renamed for a newer one.
            Some(name.rsplit_once(".log")?.0.to_owned())
        };
        processes.filter_map(name).collect()
    }

    /// Returns whether a process is there that may be building a domain at this moment: an `xl` that has not become the one that
    /// watches its guest, or a daemon of libvirt's that builds guests whenever it is asked to.
    pub fn may_be_building(&self) -> bool {
        let processes = std::fs::read_dir(&self.processes).into_iter().flatten().filter_map(Result::ok);
        let watches = |path: &Path| {
            let log = std::fs::read_link(path.join("fd/1")).ok();
            let name = log.as_ref().and_then(|log| log.file_name()?.to_str());
            name.is_some_and(|name| name.starts_with("xl-"))
        };
        processes.map(|process| process.path()).any(|path| match read(&path.join("comm")).as_deref() {
            Ok("xl") => !watches(&path),
            Ok("libvirtd" | "virtxend") => true,
            _ => false,
        })
    }

    /// Memory that processes in dom0 can still get, KiB, if Linux says so.
    pub fn available_memory_kib(&self) -> Option<u64> {
        let text = read(&self.processes.join("meminfo")).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        value.strip_suffix("kB")?.trim().parse().ok()
    }

    /// The file that is a mark for init scripts: [`mark`](Self::mark) and [`unmark`](Self::unmark).
    pub fn mark_file(&self) -> PathBuf {
        let dir = if self.open_subsys_dir().is_some() { &self.subsys_dir } else { &self.lock_dir };
        dir.join(MARK)
    }

    /// Tells whether the init system asks only services with a mark to stop. systemd does not, and where there is no
    /// directory for marks nobody looks for them.
    pub fn needs_mark(&self) -> bool {
        !self.systemd_dir.is_dir() && self.open_subsys_dir().is_some()
    }

    /// Makes the mark. The boot id inside tells one that a crash has left behind from a current one.
    pub fn mark(&self) -> io::Result<()> {
        let boot_id = self.boot_id()?;
        self.unmark()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let mut file = File::from(openat(self.open_mark_dir()?, MARK, flags, mode)?);
        file.write_all(format!("{boot_id}\n").as_bytes())
    }

    /// Removes the mark.
    pub fn unmark(&self) -> io::Result<()> {
        match unlinkat(self.open_mark_dir()?, MARK, AtFlags::empty()) {
            Err(errno) if errno != Errno::NOENT => Err(errno.into()),
            _ => Ok(()),
        }
    }

    fn open_mark_dir(&self) -> io::Result<OwnedFd> {
        match self.open_subsys_dir() {
            Some(dir) => Ok(dir),
            None => Ok(openat(CWD, &self.lock_dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?),
        }
    }

    /// Opens the directory for marks. Where everybody may write to `/var/lock`, a link of this name, or somebody else's
    /// directory, is not it.
    fn open_subsys_dir(&self) -> Option<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(CWD, &self.subsys_dir, flags, Mode::empty()).ok()?;
        let is_ours = fstat(&dir).is_ok_and(|stat| stat.st_uid == geteuid().as_raw());
        is_ours.then_some(dir)
    }
}

/// The name of the mark in its directory.
const MARK: &str = "xendomains";

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
        sbin: vec![dir.join("sbin")],
        usr_lib: dir.join("lib"),
        hotplug_paths: dir.join("hotplugpath.sh"),
        hypervisor_type: file("type", "xen\n"),
        hypervisor_uuid: file("uuid", "00000000-0000-0000-0000-000000000000\n"),
        xen_capabilities: file("capabilities", "control_d\n"),
        kernel_command_line: file("cmdline", "root=/dev/sda1 ro\n"),
        off_switch: dir.join(OFF_WORD),
        boot_id: file("boot_id", "b00710\n"),
        lock_file: dir.join("run.lock"),
        run_dir: dir.join("run"),
        state_dir: dir.join("state"),
        dump_dir: dir.join("dump"),
        processes: dir.join("processes"),
        subsys_dir: dir.join("subsys"),
        lock_dir: dir.to_owned(),
        libvirt_autostart: dir.join("libvirt/autostart"),
        libvirt_state: dir.join("libvirt/run"),
        systemctl: dir.join("systemctl"),
        systemd_run: dir.join("systemd-run"),
        stopped_unit: None,
        unit_dirs: vec![dir.join("units"), dir.join("more-units")],
        systemd_dir: dir.join("systemd"),
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
    fn the_off_switch_is_a_word_or_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = fake_dom0(dir.path());
        assert_eq!(host.is_switched_off(), None);
        for (line, off) in [
            ("ro xendomains.skip_autostart quiet", true),
            ("xendomains.skip_autostart=1", true),
            ("xendomains.skip_autostart=yes\n", true),
            ("xendomains.skip_autostart=0", false),
            ("xendomains.skip_autostart=off", false),
            ("xendomains.skip_autostarts", false),
            ("my.xendomains.skip_autostart", false),
            ("", false),
        ] {
            std::fs::write(&host.kernel_command_line, line).expect("write");
            assert_eq!(host.is_switched_off().is_some(), off, "{line}");
        }
        std::os::unix::fs::symlink("/nonexistent", &host.off_switch).expect("link");
        let why = host.is_switched_off().expect("off");
        assert!(why.ends_with("xendomains.skip_autostart exists"), "{why}");
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
    fn guests_that_xl_watches_are_known_by_its_logs() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = fake_dom0(dir.path());
        assert!(host.watched_by_xl().is_empty());
        for (pid, program, output) in [
            ("1", "xl", "/var/log/xen/xl-web.log"),
            ("2", "xl", "/var/log/xen/xl-my.log.log.3"),
            ("3", "xl", "/dev/pts/0"),
            ("4", "tail", "/var/log/xen/xl-db.log"),
        ] {
            let process = host.processes.join(pid);
            std::fs::create_dir_all(process.join("fd")).expect("directory");
            std::fs::write(process.join("comm"), format!("{program}\n")).expect("write");
            std::os::unix::fs::symlink(output, process.join("fd/1")).expect("link");
        }
        let expected: HashSet<String> = ["web".to_owned(), "my.log".to_owned()].into();
        assert_eq!(host.watched_by_xl(), expected);
    }

    #[test]
    fn the_mark_has_the_boot_id_and_is_where_init_scripts_look() {
        let dir = tempfile::tempdir().expect("a directory");
        let host = fake_dom0(dir.path());
        host.unmark().expect("nothing to remove");
        host.mark().expect("mark");
        assert_eq!(read(&dir.path().join("xendomains")).expect("mark"), "b00710");
        assert!(!host.needs_mark(), "nobody looks for it");
        host.mark().expect("mark once more");
        host.unmark().expect("remove");
        assert!(!dir.path().join("xendomains").exists());
        std::fs::create_dir(&host.subsys_dir).expect("directory");
        host.mark().expect("mark");
        assert!(dir.path().join("subsys/xendomains").exists());
        assert!(host.needs_mark());
        std::fs::create_dir(&host.systemd_dir).expect("directory");
        assert!(!host.needs_mark());
    }

    #[test]
    fn no_link_is_followed_to_make_or_remove_the_mark() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().expect("a directory");
        let host = fake_dom0(dir.path());
        let (victim, elsewhere) = (dir.path().join("victim"), dir.path().join("elsewhere"));
        std::fs::write(&victim, "precious").expect("write");
        symlink(&victim, dir.path().join("xendomains")).expect("link");
        host.mark().expect("mark");
        assert_eq!(read(&victim).expect("read"), "precious");
        assert!(dir.path().join("xendomains").symlink_metadata().expect("mark").is_file());
        host.unmark().expect("remove");
        symlink(&victim, dir.path().join("xendomains")).expect("link");
        host.unmark().expect("remove");
        assert!(victim.exists() && dir.path().join("xendomains").symlink_metadata().is_err());
        // The directory can be a link too.
        std::fs::create_dir(&elsewhere).expect("directory");
        std::fs::write(elsewhere.join("xendomains"), "precious").expect("write");
        symlink(&elsewhere, &host.subsys_dir).expect("link");
        host.mark().expect("mark");
        host.unmark().expect("remove");
        assert!(!host.needs_mark());
        assert_eq!(read(&elsewhere.join("xendomains")).expect("read"), "precious");
    }
}
