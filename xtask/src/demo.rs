//! `cargo xtask demo`: the main job, shown on a Xen host in a box.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, ensure};

use crate::lab::{Host, Lab, Machine, Release, Threads, console_log, guest};
use crate::{counter, program, progress};

const GUESTS: [&str; 3] = ["web", "db", "mail"];

/// Boots a Xen host and starts, lists, saves and restores three guests on it, with the real program.
///
/// # Errors
/// Something can't be built or booted, or the guests do not go on counting where they were.
pub fn run(workspace: &Path) -> Result<()> {
    let started = Instant::now();
    let program = program::build(workspace)?;
    // It is alone on this machine, and its guests are PV.
    let machine = Machine { threads: Threads::Each, ..Machine::default() };
    let host = Lab::open(workspace)?.host("demo", Release::V4_17)?.machine(machine).up()?;
    progress::step("installing xendomains and three guests in dom0", || install(&host, &program))?;

    println!("\nA host that has just booted. Its guests are named in /etc/xen/auto:");
    show(&host, "xl list; ls /etc/xen/auto")?;
    println!("\nstart creates them:");
    show(&host, "xendomains start")?;
    for name in GUESTS {
        counter::wait(&host, name, 3)?;
    }
    show(&host, "xendomains status")?;

    println!("\nThe host goes down: stop saves every guest with what it was doing:");
    show(&host, "xendomains stop")?;
    show(&host, "xl list; ls -l /var/lib/xen/save")?;
    let before = GUESTS.iter().map(|name| counter::last(&host, name)).collect::<Result<Vec<_>>>()?;
    println!("\nWhere the guests' own counters stopped:");
    for (name, tick) in GUESTS.iter().zip(&before) {
        println!("    {name} tick {tick}");
    }

    println!("\nThe host comes up again: start restores them:");
    show(&host, "xendomains start")?;
    show(&host, "xendomains status")?;
    println!("\nThe guests' consoles from there on:");
    for (name, tick) in GUESTS.iter().zip(&before) {
        counter::wait(&host, name, tick + 2)?;
        // The first count is line 1.
        let lines = format!("{tick},{}p", tick + 2);
        show(&host, &format!("grep '{name} tick' {} | sed -n {lines}", console_log(name)))?;
        ensure!(counter::boots(&host, name)? == 1, "{name} was started anew instead of going on");
    }
    println!(
        "\nAll three guests went on where they were. This took {} s; the host is gone again.",
        started.elapsed().as_secs()
    );
    println!("To try it by hand: cargo xtask lab up; cargo xtask lab --help");
    host.down()
}

fn install(host: &Host, program: &Path) -> Result<()> {
    host.push(program, "/usr/sbin/xendomains", Some(0o755))?;
    host.write(
        "/etc/default/xendomains",
        b"# What is commented out here is the default.\nXENDOMAINS_CREATE_USLEEP=0\nXENDOMAINS_STOP_TIMEOUT=1500\n",
        0o644,
    )?;
    host.run("mkdir -p /etc/xen/auto")?.check()?;
    let directory = guest::DIRECTORY;
    for name in GUESTS {
        let config = format!(
            "name = \"{name}\"\ntype = \"pv\"\nkernel = \"{directory}/vmlinux\"\nramdisk = \"{directory}/initrd\"\n\
             memory = 128\nvcpus = 1\nextra = \"console=hvc0 guest={name}\"\n"
        );
        host.write(&format!("/etc/xen/auto/{name}.cfg"), config.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Runs a command in dom0 and shows it as a person there would have seen it.
fn show(host: &Host, command: &str) -> Result<()> {
    println!("  # {command}");
    let started = Instant::now();
    let output = host.run(command)?.check()?;
    for line in output.stdout.lines().chain(output.stderr.lines()) {
        println!("    {line}");
    }
    if command.starts_with("xendomains") {
        println!("    ({:.1} s)", started.elapsed().as_secs_f32());
    }
    Ok(())
}
