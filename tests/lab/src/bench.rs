//! A host with the program installed, and what scenarios do with it.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use xtask::counter;
use xtask::exec;
use xtask::lab::{Host, Output, Release, console_log, guest, quote};

/// Where the program is in dom0.
pub const PROGRAM: &str = "/usr/sbin/xendomains";

/// What a guest is to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pv,
    Pvh,
}

/// A guest's xl.cfg: the lab's kernel and a counter on its console.
pub fn xl_cfg(name: &str, kind: Kind, more: &str) -> String {
    let (kind, words) = match kind {
        Kind::Pv => ("type = \"pv\"", ""),
        Kind::Pvh => ("type = \"pvh\"\ntsc_mode = \"native\"", " clocksource=xen tsc=nowatchdog"),
    };
    let directory = guest::DIRECTORY;
    format!(
        "name = \"{name}\"\n{kind}\nkernel = \"{directory}/vmlinux\"\nramdisk = \"{directory}/initrd\"\n\
         memory = 128\nvcpus = 1\nextra = \"console=hvc0{words} guest={name}\"\n{more}"
    )
}

/// A host under test.
pub struct Bench<'h> {
    host: RefCell<&'h mut Host>,
    /// More hosts, to migrate guests to.
    pub others: Vec<Bench<'h>>,
    transcript: RefCell<String>,
}

impl<'h> Bench<'h> {
    /// Puts the program, a settings file without pauses and an empty directory of guests onto fresh hosts.
    pub fn install(hosts: &'h mut [Host], program: &Path) -> Result<Self> {
        let [host, others @ ..] = hosts else { bail!("there is no host") };
        host.push(program, PROGRAM, Some(0o755))?;
        let others = others.iter_mut().map(|other| Bench::install(std::slice::from_mut(other), program));
        let others = others.collect::<Result<_>>()?;
        let bench = Self { host: RefCell::new(host), others, transcript: RefCell::default() };
        bench.ok("mkdir -p /etc/xen/auto && rm -f /etc/xen/auto/* /etc/default/xendomains")?;
        bench.settings("")?;
        Ok(bench)
    }

    /// Has the program told to work with this toolstack, whatever it is started with.
    pub fn use_toolstack(&self, toolstack: &str) -> Result<()> {
        let real = "/usr/libexec/xendomains-under-test/xendomains";
        self.ok(&format!("mkdir -p /usr/libexec/xendomains-under-test && mv {PROGRAM} {real}"))?;
        self.write(PROGRAM, &format!("#!/bin/sh\nexec {real} --toolstack {toolstack} \"$@\"\n"))?;
        self.ok(&format!("chmod 755 {PROGRAM}"))?;
        self.others.iter().try_for_each(|other| other.use_toolstack(toolstack))
    }

    /// The release of Xen that runs.
    pub fn release(&self) -> Release {
        self.host.borrow().release()
    }

    /// What was run so far and what it said, for failures.
    pub fn transcript(&self) -> String {
        let mut text = format!("what was done on {}:\n{}", self.host.borrow().name(), self.transcript.borrow());
        text.extend(self.others.iter().map(Bench::transcript));
        text
    }

    /// The port at 10.0.2.2 where other hosts reach its sshd.
    pub fn port(&self) -> u16 {
        self.host.borrow().port()
    }

    /// Cuts the host's power.
    pub fn switch_off(&self) -> Result<()> {
        *self.transcript.borrow_mut() += "(the host lost its power)\n";
        self.host.borrow_mut().power_cut()
    }

    /// Cuts the host's power and boots it again.
    pub fn lose_power(&self) -> Result<()> {
        self.switch_off()?;
        *self.transcript.borrow_mut() += "(it was booted)\n";
        self.host.borrow_mut().boot()
    }

    /// Has the host go down by this command, at most `limit` long, and boots it again. Says how long it took to go down.
    pub fn reboot(&self, command: &str, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        // The host may be gone before it has answered.
        let _ = self.host.borrow().run(command);
        let went_off = self.host.borrow_mut().wait_until_off(limit)?;
        let took = begun.elapsed();
        let seconds = took.as_secs();
        *self.transcript.borrow_mut() += &format!("# {command}\n(the host went down within {seconds} s)\n");
        ensure!(went_off, "the host has not gone down within {seconds} s");
        self.host.borrow_mut().boot()?;
        *self.transcript.borrow_mut() += "(it was booted)\n";
        Ok(took)
    }

    /// Copies a file to dom0.
    pub fn push(&self, local: &Path, remote: &str) -> Result<()> {
        self.host.borrow().push(local, remote, None)
    }

    /// How often a guest has booted, as its console tells.
    pub fn boots(&self, name: &str) -> Result<usize> {
        counter::boots(&self.host.borrow(), name)
    }

    /// Runs a command in dom0's shell.
    pub fn run(&self, command: &str) -> Result<Output> {
        let begun = Instant::now();
        let output = self.host.borrow().run(command)?;
        let (code, seconds) = (output.status, begun.elapsed().as_secs_f32());
        let mut transcript = self.transcript.borrow_mut();
        *transcript += &format!("# {command} ({seconds:.1} s)\n{}{}", output.stdout, output.stderr);
        if code != 0 {
            *transcript += &format!("(exit code {code})\n");
        }
        Ok(output)
    }

    /// Runs a command that must succeed, and gives its standard output.
    pub fn ok(&self, command: &str) -> Result<String> {
        Ok(self.run(command)?.check()?.stdout)
    }

    /// A file's text, kept out of the transcript.
    pub fn read(&self, path: &str) -> Result<String> {
        Ok(self.host.borrow().run(&format!("cat {}", quote(path)))?.check()?.stdout)
    }

    /// What the emulator has done to the scenario, if anything: it loses the state of a PVH guest now and then, whose
    /// kernel then dies, and on a busy machine dom0 is too slow for the ten seconds that libxl gives its console daemon.
    pub fn emulator_fault(&self) -> Result<Option<&'static str>> {
        for host in self.others.iter().filter(|other| other.host.borrow().is_running().unwrap_or_default()) {
            if let Some(fault) = host.emulator_fault()? {
                return Ok(Some(fault));
            }
        }
        if !self.host.borrow().answers()? {
            return Ok(Some("dom0 does nothing any more"));
        }
        if self.transcript.borrow().contains("console tty: timed out") {
            return Ok(Some("dom0's console daemon was slower than libxl waits"));
        }
        // A panic that a SysRq letter has brought about was asked for.
        let died = "grep -hs 'Kernel panic' /var/log/xen/console/* | grep -qv 'sysrq triggered crash' || \
                    xl dmesg | grep -q 'Triple fault'";
        if self.host.borrow().run(died)?.success() {
            return Ok(Some("a guest's kernel died"));
        }
        // The guests only count: booting costs them less than twenty seconds, and then next to nothing.
        let spins = "xl list | awk 'NR > 2 && $NF > 60 { found = 1 } END { exit !found }'";
        Ok(self.host.borrow().run(spins)?.success().then_some("a guest's kernel hangs"))
    }

    /// Runs the program; it must end with `code`. Gives standard output and standard error together.
    pub fn xendomains(&self, arguments: &str, code: i32) -> Result<String> {
        let output = self.run(&format!("{PROGRAM} {arguments}"))?;
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(
            output.status == code,
            "`xendomains {arguments}` ended with {} instead of {code} and said:\n{said}",
            output.status
        );
        ensure!(!said.contains("panicked"), "`xendomains {arguments}` panicked:\n{said}");
        Ok(said)
    }

    /// `status --json`, which must end with `code`.
    pub fn status(&self, code: i32) -> Result<Value> {
        let output = self.run(&format!("{PROGRAM} status --json"))?;
        ensure!(output.status == code, "status ended with {} instead of {code}", output.status);
        serde_json::from_str(&output.stdout).context("status --json is not JSON")
    }

    /// Writes a file in dom0.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        self.host.borrow().run_with_input(&format!("cat > {}", quote(path)), text.as_bytes())?.check()?;
        Ok(())
    }

    /// Copies all that is in a directory of this machine into one of dom0's.
    pub fn push_directory(&self, local: &Path, remote: &str) -> Result<()> {
        let packed = exec::output(Command::new("tar").arg("-C").arg(local).args(["-cf", "-", "."]))?;
        let archive = format!("{remote}.tar");
        self.host.borrow().write(&archive, &packed, 0o644)?;
        let (remote, archive) = (quote(remote), quote(&archive));
        self.ok(&format!("mkdir -p {remote} && tar -C {remote} -xf {archive} && rm {archive}"))?;
        Ok(())
    }

    /// Copies all that is in a directory of dom0 into one of this machine's.
    pub fn pull_directory(&self, remote: &str, local: &Path) -> Result<()> {
        let archive = local.join("archive.tar.gz");
        let packed = format!("{remote}.tar.gz");
        self.ok(&format!("tar -C {} -czf {} .", quote(remote), quote(&packed)))?;
        self.host.borrow().pull(&packed, &archive)?;
        exec::output(Command::new("tar").arg("-C").arg(local).arg("-xzf").arg(&archive))?;
        std::fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))
    }

    /// Writes the settings file: no pauses, a limit that a test can wait for, no monitor, whose calls a scenario that
    /// counts calls would count too, and these lines.
    pub fn settings(&self, lines: &str) -> Result<()> {
        self.write(
            "/etc/default/xendomains",
            &format!("XENDOMAINS_CREATE_USLEEP=0\nXENDOMAINS_STOP_MAXWAIT=90\nXENDOMAINS_MONITOR=false\n{lines}"),
        )
    }

    /// Puts guests into the directory of guests to start.
    pub fn auto(&self, guests: &[(&str, Kind, &str)]) -> Result<()> {
        for (name, kind, more) in guests {
            self.write(&format!("/etc/xen/auto/{name}.cfg"), &xl_cfg(name, *kind, more))?;
        }
        Ok(())
    }

    /// Puts a guest there that is told `words` on its kernel's command line.
    pub fn guest(&self, name: &str, kind: Kind, words: &str, more: &str) -> Result<()> {
        let file = xl_cfg(name, kind, more).replace(&format!("guest={name}"), &format!("guest={name} {words}"));
        self.write(&format!("/etc/xen/auto/{name}.cfg"), &file)
    }

    /// The names that `xl list` shows, dom0 left out, sorted.
    pub fn xl_names(&self) -> Result<Vec<String>> {
        let list = self.ok("xl list")?;
        let mut names: Vec<String> = list
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| *name != "Domain-0")
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    /// `xl list` must show exactly these guests.
    pub fn expect_guests(&self, expected: &[&str]) -> Result<()> {
        let mut expected: Vec<_> = expected.iter().map(|name| (*name).to_owned()).collect();
        expected.sort();
        let real = self.xl_names()?;
        ensure!(real == expected, "xl list shows {real:?} instead of {expected:?}");
        Ok(())
    }

    /// The last count on a guest's console.
    pub fn ticks(&self, name: &str) -> Result<u64> {
        counter::last(&self.host.borrow(), name)
    }

    /// All that a guest has written to its console.
    pub fn console(&self, name: &str) -> Result<String> {
        counter::console(&self.host.borrow(), name)
    }

    /// Waits until a file in dom0 has such a line, and gives that line.
    pub fn wait_for(&self, file: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.host.borrow().wait_for_line(file, wanted, counter::PATIENCE)
    }

    /// Waits until a guest has written such a line to its console.
    pub fn wait_for_console(&self, name: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        self.wait_for(&console_log(name), wanted).map(drop)
    }

    /// Waits until a guest that has come from elsewhere counts here, and gives the first count.
    pub fn wait_for_first_tick(&self, name: &str) -> Result<u64> {
        let tick = format!("{name} tick ");
        let line = self.wait_for(&console_log(name), |line| line.starts_with(&tick))?;
        line.trim()[tick.len()..].parse().with_context(|| format!("{line:?} is no count"))
    }

    /// Waits until a guest has counted to at least `count`.
    pub fn wait_for_tick(&self, name: &str, count: u64) -> Result<()> {
        counter::wait(&self.host.borrow(), name, count)
    }

    /// The guest goes on counting from `before`, without a second boot.
    pub fn expect_continued(&self, name: &str, before: u64) -> Result<()> {
        self.wait_for_tick(name, before + 3)?;
        let boots = counter::boots(&self.host.borrow(), name)?;
        ensure!(boots == 1, "{name} has booted {boots} times, so it was started anew");
        Ok(())
    }

    /// How often a guest with the word `disks` has written to this disk, a file in `/var/tmp`: the count in its second
    /// sector, which goes on when the guest boots anew.
    pub fn writes(&self, file: &str, name: &str) -> Result<u64> {
        let text = self.ok(&format!("dd if=/var/tmp/{file} bs=512 skip=1 count=1 status=none | tr -d '\\0'"))?;
        let count = text.trim().strip_prefix(name).and_then(|rest| rest.strip_prefix(" write ")?.parse().ok());
        count.with_context(|| format!("{file}: its second sector has {text:?} instead of a count"))
    }

    /// Waits until a file in dom0 has a line with this text.
    pub fn wait_for_line(&self, file: &str, text: &str) -> Result<()> {
        self.wait_for(file, |line| line.contains(text)).map(drop)
    }

    /// What is in a directory, hidden files too but for the records beside images, sorted; nothing if there is none.
    pub fn files(&self, directory: &str) -> Result<Vec<String>> {
        let list = self.ok(&format!("ls -A {} 2>/dev/null || true", quote(directory)))?;
        let names = list.lines().filter(|name| !name.ends_with(".record"));
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }
}

/// `text` must contain each of `parts`.
pub fn expect(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    Ok(())
}
