//! A dom0 of files in a directory.

use std::fs;
use std::path::Path;

use xendomains::host::Host;

/// Makes the files of a host, and a settings file with these lines besides the directories `auto` and `save`.
pub fn lay_out(directory: &Path, settings: &str) -> Host {
    let at = |name: &str| directory.join(name);
    for (file, text) in [
        ("type", "xen\n"),
        ("uuid", "00000000-0000-0000-0000-000000000000\n"),
        ("capabilities", "control_d\n"),
        ("boot_id", "7c9a4a3e-2f0f-4c1b-9f67-0a3f4f0f6a01\n"),
    ] {
        fs::write(at(file), text).expect("a file");
    }
    for name in ["auto", "lock"] {
        fs::create_dir(at(name)).expect("a directory");
    }
    let text = format!(
        "XENDOMAINS_AUTO={}\nXENDOMAINS_SAVE={}\nXENDOMAINS_CREATE_USLEEP=0\n{settings}",
        at("auto").display(),
        at("save").display()
    );
    fs::write(at("settings"), text).expect("a file");
    host(directory)
}

/// The host in a directory that was laid out.
pub fn host(directory: &Path) -> Host {
    let at = |name: &str| directory.join(name);
    Host {
        settings_files: vec![at("settings")],
        xl_conf: at("xl.conf"),
        hypervisor: at("hypervisor"),
        devices: at("devices"),
        sbin: vec![at("sbin")],
        usr_lib: at("lib"),
        hotplug_paths: at("hotplugpath.sh"),
        hypervisor_type: at("type"),
        hypervisor_uuid: at("uuid"),
        xen_capabilities: at("capabilities"),
        kernel_command_line: at("cmdline"),
        off_switch: at("xendomains.skip_autostart"),
        boot_id: at("boot_id"),
        lock_file: at("lock/xendomains.lock"),
        run_dir: at("run"),
        state_dir: at("remembered"),
        dump_dir: at("dump"),
        processes: at("processes"),
        subsys_dir: at("lock/subsys"),
        lock_dir: at("lock"),
        libvirt_autostart: at("libvirt/autostart"),
        libvirt_state: at("libvirt/run"),
        systemctl: at("systemctl"),
        systemd_run: at("systemd-run"),
        stopped_unit: None,
        unit_dirs: vec![at("units")],
        systemd_dir: at("systemd"),
        root: true,
    }
}

/// Puts a guest's file into the directory of guests to start.
pub fn add_guest(directory: &Path, name: &str, more: &str) {
    let kernel = directory.join("type");
    let text =
        format!("name = \"{name}\"\ntype = \"pvh\"\nkernel = \"{}\"\nmemory = 128\n{more}", kernel.display());
    fs::write(directory.join("auto").join(name), text).expect("a file");
}
