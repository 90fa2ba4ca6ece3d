//! The program over the command `xl`: where libxl can't be used, and with `--toolstack xl` in the other scenarios.

use anyhow::{Result, ensure};

use crate::bench::{Bench, Kind, PROGRAM, expect};
use crate::scenarios::{SAVE, Scenario};

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("on_a_xen_that_is_too_new_xl_does_the_work", on_a_xen_that_is_too_new_xl_does_the_work),
    ("without_a_libxenlight_that_can_be_found_xl_does_the_work", without_a_libxenlight_xl_does_the_work),
    ("a_stop_over_xl_that_was_killed_while_it_saved_loses_nothing", a_killed_stop_over_xl_loses_nothing),
    ("xl_resumes_a_guest_that_a_killed_save_left_suspended", xl_resumes_a_suspended_guest),
];

/// Scenarios that make no sense with `--toolstack xl`, and why.
pub const NOT_OVER_XL: &[(&str, &[&str])] = &[
    (
        "they say themselves over which toolstack they are",
        &[
            "on_a_xen_that_is_too_new_xl_does_the_work",
            "without_a_libxenlight_that_can_be_found_xl_does_the_work",
            "a_stop_over_xl_that_was_killed_while_it_saved_loses_nothing",
            "xl_resumes_a_guest_that_a_killed_save_left_suspended",
        ],
    ),
    (
        "no toolstack has a part in it",
        &["accepted_configs_are_read_as_xl_reads_them", "refused_configs_are_read_as_xl_reads_them"],
    ),
    ("each command is a process, and lists are asked for by the clock", &["no_process_and_no_periodic_wakeup"]),
    (
        "there is no monitor over a command",
        &[
            "guests_that_end_are_treated_as_by_xl",
            "guests_that_power_off_are_treated_as_by_xl",
            "guests_that_reboot_are_treated_as_by_xl",
            "guests_that_crash_are_treated_as_by_xl",
            "guests_that_hang_are_treated_as_by_xl",
            "a_monitor_that_is_killed_again_and_again",
            "a_stop_is_not_undone_by_the_monitor",
            "the_monitor_costs_less_than_xls_processes",
            "a_hundred_reboots_of_one_guest",
            "twenty_guests_reboot_together",
        ],
    ),
    (
        "strace would wait for the process that xl leaves behind with each guest, or hold xl, which makes the same call",
        &[
            "a_start_that_is_killed_when_it_syncs",
            "a_start_that_is_killed_when_it_renames",
            "a_start_that_is_killed_when_it_removes",
            "the_power_fails_when_a_start_renames",
            "the_power_fails_when_a_start_removes",
        ],
    ),
    (
        "xl sees to the memory and to its lock itself, and says so in other words or not at all",
        &["memory_for_too_large_a_guest_is_refused", "memory_lock_of_xl_is_respected_both_ways"],
    ),
    (
        "the package brings the program, which nobody tells the toolstack",
        &[
            "package_takes_guests_over_a_reboot",
            "package_save_longer_than_systemd_waits",
            "package_deaf_guest_does_not_hold_up_a_reboot",
            "package_systemctl_verbs",
            "package_systemctl_while_it_stops",
            "package_libvirt_is_started",
            "package_save_on_a_mount_made_by_hand",
            "package_off_switch",
            "package_sysvinit",
            "package_xen_was_upgraded",
        ],
    ),
    ("it measures libxl against xl", &["a_migration_beside_that_of_xl"]),
    ("xl does not show how much it has sent", &["a_guest_is_saved_when_its_stream_breaks_off"]),
];

/// What is said of the toolstack, in one line.
const SAID: &str = "the toolstack is xl (";

fn on_a_xen_that_is_too_new_xl_does_the_work(bench: &Bench<'_>) -> Result<()> {
    let names = ["alpha", "beta"];
    bench.auto(&[("alpha", Kind::Pv, ""), ("beta", Kind::Pv, "")])?;
    bench.ok("echo 99 >/run/minor")?;
    // Debian's own xl would not find its release either, with which is looked at what has become of the guests.
    let too_new = |action: &str, code: i32| -> Result<String> {
        bench.ok("mount --bind /run/minor /sys/hypervisor/version/minor")?;
        let said = bench.xendomains(action, code)?;
        bench.ok("umount /sys/hypervisor/version/minor")?;
        ensure!(
            said.matches(SAID).count() == 1 && said.contains("4.99"),
            "{action} does not say why it is xl:\n{said}"
        );
        Ok(said)
    };
    too_new("status", 3)?;
    expect(&too_new("start", 0)?, &["alpha: started", "beta: started"])?;
    bench.expect_guests(&names)?;
    names.iter().try_for_each(|name| bench.wait_for_tick(name, 3))?;
    expect(&too_new("status", 0)?, &names)?;
    expect(&too_new("stop", 0)?, &["alpha: saved", "beta: saved"])?;
    bench.expect_guests(&[])?;
    ensure!(bench.files(SAVE)? == names, "images: {:?}", bench.files(SAVE)?);
    let before = bench.ticks("alpha")?;
    // The images are libxl's, too.
    let said = bench.xendomains("start", 0)?;
    ensure!(!said.contains(SAID), "libxl is not used though it is there:\n{said}");
    bench.expect_continued("alpha", before)?;
    bench.expect_guests(&names)
}

fn without_a_libxenlight_xl_does_the_work(bench: &Bench<'_>) -> Result<()> {
    // As where Xen was built into a place of its own: nobody but an xl that is told of it finds the library there. The xl in
    // /usr/sbin finds nothing any more.
    bench.ok("xl=$(ls /usr/lib/xen-*/bin/xl | tail -n 1); lib=$(ldd $xl | awk '/libxenlight/ { print $3 }'); \
         mkdir /opt/xen && cp -L $lib /opt/xen/ && rm $lib && \
         printf '#!/bin/sh\nLD_LIBRARY_PATH=/opt/xen exec %s \"$@\"\n' $xl >/usr/local/sbin/xl && \
         chmod 755 /usr/local/sbin/xl && ! /usr/sbin/xl list")?;
    bench.auto(&[("alpha", Kind::Pv, "")])?;
    let said = bench.xendomains("status", 3)?;
    ensure!(
        said.matches(SAID).count() == 1 && said.contains("libxenlight"),
        "status does not say why it is xl:\n{said}"
    );
    expect(&bench.xendomains("start", 0)?, &[SAID, "/usr/local/sbin/xl", "alpha: started"])?;
    bench.expect_guests(&["alpha"])?;
    bench.wait_for_tick("alpha", 3)?;
    expect(&bench.xendomains("stop", 0)?, &[SAID, "alpha: saved"])?;
    bench.expect_guests(&[])?;
    let before = bench.ticks("alpha")?;
    expect(&bench.xendomains("start", 0)?, &["alpha: restored"])?;
    bench.expect_continued("alpha", before)
}

fn a_killed_stop_over_xl_loses_nothing(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&[("alpha", Kind::Pv, "")])?;
    bench.xendomains("--toolstack xl start", 0)?;
    bench.wait_for_tick("alpha", 3)?;
    // It is killed as soon as there is an image; xl goes on.
    bench.ok(&format!(
        "(setsid {PROGRAM} --toolstack xl stop >/tmp/stop 2>&1 &); \
         until ls -A {SAVE} 2>/dev/null | grep -q saving; do sleep 0.05; done; pkill -KILL -x xendomains; \
         while pgrep -f '[l]ibxl-save-helper|[x]l save'; do sleep 0.2; done"
    ))?;
    let before = bench.ticks("alpha")?;
    bench.xendomains("--toolstack xl start", 0)?;
    bench.expect_guests(&["alpha"])?;
    bench.expect_continued("alpha", before)
}

fn xl_resumes_a_suspended_guest(bench: &Bench<'_>) -> Result<()> {
    bench.auto(&[("alpha", Kind::Pv, "")])?;
    bench.xendomains("--toolstack xl start", 0)?;
    bench.wait_for_tick("alpha", 3)?;
    // All that is at work is killed while the guest is suspended and its memory is being written.
    let left = bench.ok(&format!(
        "(setsid {PROGRAM} --toolstack xl stop >/tmp/stop 2>&1 &); until xl list alpha | grep -q -- '---ss-'; do :; done; \
         pkill -STOP -f '[l]ibxl-save-helper'; pkill -KILL -x xendomains; pkill -KILL -x xl; \
         pkill -KILL -f '[l]ibxl-save-helper'; xl list alpha"
    ))?;
    expect(&left, &["---ss-"])?;
    let before = bench.ticks("alpha")?;
    bench.xendomains("--toolstack xl start", 0)?;
    bench.expect_guests(&["alpha"])?;
    bench.expect_continued("alpha", before)
}
