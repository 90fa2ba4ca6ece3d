//! What a guest's file asks for, seen from inside the guest, in xenstore and with `xl`.

use anyhow::{Context, Result, ensure};

use crate::bench::{Bench, Kind, expect};
use crate::scenarios::{SAVE, Scenario};

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("disks_of_all_kinds", disks_of_all_kinds),
    ("disk_and_network_survive_a_restore", disk_and_network_survive_a_restore),
    ("processors_and_memory", processors_and_memory),
    ("pygrub_boots_from_the_disk", pygrub_boots_from_the_disk),
    ("bootloaders_that_fail_or_hang", bootloaders_that_fail_or_hang),
];

/// PVH: needs a host with one processor, see [`xtask::lab::Machine`].
pub const PVH: &[(&str, Scenario)] = &[("pvh_guests_are_saved_and_restored", pvh_guests_are_saved_and_restored)];

/// HVM: so does this, and under emulation it takes minutes until firmware and kernel are through.
pub const HVM: &[(&str, Scenario)] = &[("hvm_guests_are_saved_and_restored", hvm_guests_are_saved_and_restored)];

/// dom0's address on the guests' bridge, and the guest's.
const DOM0: &str = "192.168.7.1/24";
const GUEST: &str = "192.168.7.2";

/// Makes a disk of 4 MiB with a line in its first sector.
fn disk(bench: &Bench<'_>, file: &str) -> Result<()> {
    bench.ok(&format!("echo content of {file} > /var/tmp/{file} && truncate -s 4M /var/tmp/{file}"))?;
    Ok(())
}

fn domid(bench: &Bench<'_>, name: &str) -> Result<String> {
    Ok(bench.ok(&format!("xl domid {name}"))?.trim().to_owned())
}

/// Nodes of a device's backend must have these values.
fn expect_backend(bench: &Bench<'_>, kind: &str, domid: &str, device: u32, nodes: &[(&str, &str)]) -> Result<()> {
    let directory = format!("/local/domain/0/backend/{kind}/{domid}/{device}");
    let paths: Vec<_> = nodes.iter().map(|(node, _)| format!("{directory}/{node}")).collect();
    let values = bench.ok(&format!("xenstore-read {}", paths.join(" ")))?;
    for ((_, value), (path, real)) in nodes.iter().zip(paths.iter().zip(values.lines())) {
        ensure!(real == *value, "{path} is {real:?} instead of {value:?}");
    }
    Ok(())
}

/// Sends a line to the guest over the bridge, which must send it back.
fn expect_echo(bench: &Bench<'_>, line: &str) -> Result<()> {
    let talk = format!("exec 3<>/dev/tcp/{GUEST}/7 && echo {line} >&3 && head -n 1 <&3");
    let answer = bench.ok(&format!("timeout 60 bash -c '{talk}'"))?;
    ensure!(answer.trim_end() == line, "the guest answered {answer:?} to {line:?}");
    Ok(())
}

/// A file behind a loop device, one behind QEMU, one that must not be written, and a CD.
fn disks_of_all_kinds(bench: &Bench<'_>) -> Result<()> {
    for file in ["loop", "qdisk", "readonly", "cdrom"] {
        disk(bench, file)?;
    }
    bench.ok("cp /var/tmp/readonly /var/tmp/cdrom /tmp")?;
    let disks = "disk = [\n\
        \"/var/tmp/loop,raw,xvda,w\",\n\
        \"format=raw, vdev=xvdb, access=rw, backendtype=qdisk, target=/var/tmp/qdisk\",\n\
        \"format=raw, vdev=xvdc, access=ro, target=/var/tmp/readonly\",\n\
        \"file:/var/tmp/cdrom,xvdd:cdrom,r\" ]\n";
    bench.guest("alpha", Kind::Pv, "disks", disks)?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 3)?;

    let console = bench.console("alpha")?;
    for (disk, file) in [("xvda", "loop"), ("xvdb", "qdisk"), ("xvdc", "readonly"), ("xvdd", "cdrom")] {
        // 4 MiB in sectors of 512 bytes.
        expect(&console, &[&format!("disk {disk} 8192"), &format!("disk {disk} says content of {file}")])?;
    }
    expect(&console, &["disk xvdc refuses to be written", "disk xvdd refuses to be written"])?;
    bench.writes("loop", "alpha")?;
    bench.writes("qdisk", "alpha")?;
    bench.ok("cmp /tmp/readonly /var/tmp/readonly && cmp /tmp/cdrom /var/tmp/cdrom")?;

    let id = domid(bench, "alpha")?;
    expect_backend(bench, "vbd", &id, 51712, &[("params", "/var/tmp/loop"), ("mode", "w"), ("type", "phy")])?;
    expect_backend(bench, "qdisk", &id, 51728, &[("params", "aio:/var/tmp/qdisk"), ("mode", "w")])?;
    expect_backend(bench, "vbd", &id, 51744, &[("params", "/var/tmp/readonly"), ("mode", "r")])?;
    expect_backend(bench, "vbd", &id, 51760, &[("mode", "r"), ("device-type", "cdrom"), ("removable", "1")])
}

/// One disk and one interface: the disk goes on being written and the network goes on answering after a restore.
fn disk_and_network_survive_a_restore(bench: &Bench<'_>) -> Result<()> {
    const MAC: &str = "00:16:3e:00:00:01";
    disk(bench, "disk")?;
    bench.ok(&format!("ip address add {DOM0} dev xenbr0"))?;
    let more = format!(
        "disk = [\"/var/tmp/disk,raw,xvda,w\"]\n\
         vif = [\"bridge=xenbr0,mac={MAC},vifname=alpha0,rate=10Mb/s,script=vif-bridge\"]\n"
    );
    bench.guest("alpha", Kind::Pv, &format!("disks net={GUEST}/24"), &more)?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 1)?;
    expect(&bench.console("alpha")?, &["alpha disk xvda 8192", &format!("alpha net eth0 {MAC}")])?;
    expect_echo(bench, "before")?;
    let expect_vif = || {
        let nodes = [
            ("mac", MAC),
            ("bridge", "xenbr0"),
            ("vifname", "alpha0"),
            ("script", "/etc/xen/scripts/vif-bridge"),
            // Bytes in 50 ms, and the 50 ms.
            ("rate", "62500,50000"),
        ];
        expect_backend(bench, "vif", &domid(bench, "alpha")?, 0, &nodes)?;
        expect(&bench.ok("ip link show alpha0")?, &["master xenbr0"])
    };
    expect_vif()?;

    bench.xendomains("stop", 0)?;
    bench.expect_guests(&[])?;
    ensure!(bench.files(SAVE)? == ["alpha"], "images: {:?}", bench.files(SAVE)?);
    let left = bench.ok("losetup --list --noheadings; ip -brief link show master xenbr0")?;
    ensure!(left.is_empty(), "left of the guest's devices:\n{left}");
    let before = bench.ticks("alpha")?;
    let on_disk = bench.writes("disk", "alpha")?;
    ensure!(before - 1 <= on_disk, "tick {before} was counted, and {on_disk} is on the disk");

    bench.xendomains("start", 0)?;
    bench.expect_continued("alpha", before)?;
    let on_disk = bench.writes("disk", "alpha")?;
    ensure!(on_disk > before, "the disk has tick {on_disk}, as before the save ({before})");
    expect_echo(bench, "after")?;
    expect_vif()?;
    expect(&bench.ok("xl network-list alpha && xl block-list alpha")?, &[MAC, "51712"])
}

/// Fewer processors than possible ones, pinned; less memory than possible, which grows.
fn processors_and_memory(bench: &Bench<'_>) -> Result<()> {
    let more = "vcpus = 2\nmaxvcpus = 3\ncpus = \"1\"\nmaxmem = 192\n";
    bench.guest("alpha", Kind::Pv, "", more)?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 1)?;
    expect(&bench.console("alpha")?, &["alpha has cpus 0-1, memory "])?;
    let vcpus = bench.ok("xl vcpu-list alpha")?;
    // Name, ID, VCPU, CPU, state, time, hard affinity, "/", soft affinity.
    let rows: Vec<Vec<&str>> = vcpus.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    ensure!(rows.len() == 3, "there are not three VCPUs:\n{vcpus}");
    for (number, row) in rows.iter().enumerate() {
        let (cpu, state, affinity) = (row.get(3), row.get(4), row.get(6..).unwrap_or_default().join(" "));
        ensure!(affinity == "1 / all", "VCPU {number} has the affinity {affinity:?}:\n{vcpus}");
        let online = cpu == Some(&"1");
        let offline = cpu == Some(&"-") && state == Some(&"--p");
        ensure!(if number < 2 { online } else { offline }, "VCPU {number} is not where it should be:\n{vcpus}");
    }

    let memory = |list: &str| -> Option<u64> { list.lines().nth(1)?.split_whitespace().nth(2)?.parse().ok() };
    let list = bench.ok("xl list alpha")?;
    ensure!(memory(&list) == Some(128), "it does not have 128 MiB:\n{list}");
    let seen = memory_inside(&bench.console("alpha")?)?;
    bench.ok("xl mem-set alpha 192")?;
    bench.wait_for_console("alpha", |line| memory_inside(line).is_ok_and(|kib| kib == seen + (64 << 10)))?;
    let list = bench.ok("xl list alpha")?;
    ensure!(memory(&list) == Some(192), "it does not have 192 MiB:\n{list}");
    let refused = bench.run("xl mem-set alpha 256")?;
    ensure!(!refused.success(), "it was given more than maxmem");
    Ok(())
}

/// What the guest's kernel last said about its memory, in KiB.
fn memory_inside(console: &str) -> Result<u64> {
    let last = console.lines().rev().find_map(|line| {
        let (_, rest) = line.split_once(" memory ")?;
        rest.trim_end().strip_suffix(" KiB")?.parse().ok()
    });
    last.with_context(|| format!("no word about memory in:\n{console}"))
}

/// HVM: a device model loads the kernel through the BIOS; the guest has a PV disk and goes on from its image.
fn hvm_guests_are_saved_and_restored(bench: &Bench<'_>) -> Result<()> {
    disk(bench, "disk")?;
    let directory = xtask::lab::guest::DIRECTORY;
    bench.write(
        "/etc/xen/auto/alpha.cfg",
        &format!(
            "name = \"alpha\"\ntype = \"hvm\"\nkernel = \"{directory}/vmlinuz\"\nramdisk = \"{directory}/initrd\"\n\
             memory = 192\nvcpus = 1\nvga = \"none\"\nserial = \"none\"\ntsc_mode = \"native\"\n\
             disk = [\"/var/tmp/disk,raw,xvda,w\"]\n\
             extra = \"console=hvc0 clocksource=xen tsc=nowatchdog guest=alpha disks\"\n"
        ),
    )?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("alpha", 2)?;
    expect(&bench.console("alpha")?, &["alpha disk xvda 8192"])?;
    let models = || bench.ok("pgrep -c qemu-system || true");
    ensure!(models()? == "1\n", "there is not one device model: {:?}", models()?);
    let before = bench.writes("disk", "alpha")?;
    expect(&bench.xendomains("stop", 0)?, &["alpha: saved"])?;
    bench.expect_guests(&[])?;
    ensure!(models()? == "0\n", "its device model is left: {:?}", models()?);
    let ticks = bench.ticks("alpha")?;
    expect(&bench.xendomains("start", 0)?, &["alpha: restored"])?;
    bench.expect_continued("alpha", ticks)?;
    ensure!(bench.writes("disk", "alpha")? > before, "the disk is not written after the restore");
    bench.settings("XENDOMAINS_SAVE=\n")?;
    expect(&bench.xendomains("stop", 0)?, &["alpha: shut down"])?;
    bench.expect_guests(&[])?;
    ensure!(models()? == "0\n", "its device model is left: {:?}", models()?);
    Ok(())
}

/// PVH: seen from inside, saved by us and restored by xl, saved by xl and restored by us.
fn pvh_guests_are_saved_and_restored(bench: &Bench<'_>) -> Result<()> {
    const MAC: &str = "00:16:3e:00:00:01";
    bench.ok("truncate -s 16M /var/tmp/disk.img")?;
    let more = format!("disk = [\"/var/tmp/disk.img,raw,xvda,w\"]\nvif = [\"bridge=xenbr0,mac={MAC}\"]\n");
    bench.auto(&[("beta", Kind::Pvh, &more)])?;
    bench.xendomains("start", 0)?;
    bench.wait_for_tick("beta", 2)?;
    expect(&bench.console("beta")?, &["beta disk xvda 32768", &format!("beta net eth0 {MAC}")])?;
    bench.xendomains("stop", 0)?;
    let before = bench.ticks("beta")?;
    bench.ok(&format!("xl restore {SAVE}/beta"))?;
    bench.expect_continued("beta", before)?;
    bench.ok(&format!("xl save beta {SAVE}/beta"))?;
    let before = bench.ticks("beta")?;
    bench.xendomains("start", 0)?;
    bench.expect_continued("beta", before)?;
    bench.expect_guests(&["beta"])
}

/// Makes disks that guests can be booted from: a file system with the kernel, its initial RAM disk and a menu.
fn boot_disks(bench: &Bench<'_>, names: [&str; 2]) -> Result<()> {
    bench.ok("mkdir -p /tmp/tree/boot/grub && ln /var/lib/lab/guest/* /tmp/tree/boot")?;
    let menu = "set timeout=1\nmenuentry \"Lab\" {\n\
                linux /boot/vmlinux console=hvc0 disks\ninitrd /boot/initrd\n}\n";
    bench.write("/tmp/tree/boot/grub/grub.cfg", menu)?;
    let [one, other] = names.map(|name| format!("/var/tmp/{name}"));
    bench.ok(&format!("mke2fs -q -t ext4 -d /tmp/tree {one} 128M && cp --sparse=always {one} {other}"))?;
    Ok(())
}

/// A PV guest's file with a bootloader instead of a kernel.
fn bootloader_cfg(name: &str, bootloader: &str) -> String {
    format!(
        "name = \"{name}\"\ntype = \"pv\"\nbootloader = \"{bootloader}\"\nmemory = 128\nextra = \"guest={name}\"\n\
         disk = [\"/var/tmp/{name},raw,xvda,w\"]\n"
    )
}

/// Kernel and command line come from the disk: libxl runs pygrub as a child of ours, two of them at the same time.
fn pygrub_boots_from_the_disk(bench: &Bench<'_>) -> Result<()> {
    let names = ["alpha", "beta"];
    bench.settings("XENDOMAINS_START_JOBS=2\n")?;
    boot_disks(bench, names)?;
    for name in names {
        bench.write(&format!("/etc/xen/auto/{name}.cfg"), &bootloader_cfg(name, "pygrub"))?;
    }
    expect(&bench.xendomains("start", 0)?, &names)?;
    for name in names {
        bench.wait_for_tick(name, 2)?;
        bench.writes(name, name)?;
    }
    // libxl has removed the kernels that pygrub had taken out of the disks.
    let left = bench.files("/var/lib/xen")?;
    ensure!(!left.iter().any(|name| name.starts_with("bootloader")), "left in /var/lib/xen: {left:?}");
    bench.xendomains("stop", 0)?;
    let before = [bench.ticks("alpha")?, bench.ticks("beta")?];
    bench.xendomains("start", 0)?;
    bench.expect_continued("alpha", before[0])?;
    bench.expect_continued("beta", before[1])
}

/// One that fails, one that does not end, and one that does not even end when it is asked to: they cost only their guests.
fn bootloaders_that_fail_or_hang(bench: &Bench<'_>) -> Result<()> {
    bench.settings("XENDOMAINS_START_JOBS=4\nXENDOMAINS_START_MAXWAIT=20\n")?;
    for (name, script) in [
        ("fails", "echo no kernel found >&2; exit 3"),
        ("hangs", "exec sleep 1000"),
        ("stubborn", "trap '' TERM; sleep 1000"),
    ] {
        disk(bench, name)?;
        let loader = format!("/var/tmp/{name}.sh");
        bench.write(&loader, &format!("#!/bin/sh\n{script}\n"))?;
        bench.ok(&format!("chmod 755 {loader}"))?;
        bench.write(&format!("/etc/xen/auto/{name}.cfg"), &bootloader_cfg(name, &loader))?;
    }
    bench.auto(&[("alpha", Kind::Pv, "")])?;
    let said = bench.xendomains("start", 1)?;
    expect(
        &said,
        &[
            "alpha: started",
            "fails: start FAILED",
            "hangs: start FAILED",
            "stubborn: start FAILED",
            "consult logfile /var/log/xen/bootloader.",
        ],
    )?;
    expect(&bench.ok("cat /var/log/xen/bootloader.*.log")?, &["no kernel found"])?;
    // What is left of the last one ends with the program, and the next start removes the half-made domain.
    bench.ok("rm /etc/xen/auto/[!a]*")?;
    bench.xendomains("start", 0)?;
    bench.expect_guests(&["alpha"])
}
