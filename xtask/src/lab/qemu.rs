//! The QEMU process: how it is started, found again, watched and ended.
//!
//! A QEMU must never outlive its purpose. One that belongs to this process ([`Life::Ours`]) gets
//! `PR_SET_PDEATHSIG`: the kernel kills it when the thread that started it ends. That thread is one that lives as
//! long as the process ([`spawner`]), so the event is the end of this process, however it ends, kill -9 included.
//! One that is to stay ([`Life::Detached`]) gets a session of its own; its pid and start time are recorded, so that
//! a later process can end it and never hits a stranger that got the same pid.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
    setsid,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::image::Image;
use super::lines::{Lines, readable};
use super::monitor::{Monitor, forwarded_port};
use super::tools::Tools;
use crate::exec;

/// EPYC for SVM (PVH and HVM guests), less what QEMU's emulation gets wrong under Xen: with XSAVE and AVX dom0's programs
/// die at random, `monitor` panics Xen in mwait, `smap` kills dom0, `rdtscp` panics PVH guests in pvclock.
const CPU: &str =
    "EPYC,+svm,-monitor,-smap,-smep,-xsaves,-rdtscp,-xsave,-xsaveopt,-xsavec,-xgetbv1,-avx,-avx2,-f16c,-fma";

/// Raise when the machine that [`Start::command`] describes changes: a snapshot fits one machine only.
const MACHINE_FORMAT: u32 = 1;

/// What dom0's kernel is told.
const DOM0_ARGUMENTS: &str =
    "root=/dev/vda rw console=hvc0 mitigations=off net.ifnames=0 loglevel=5 systemd.show_status=error";

/// The name of the snapshot that hosts start from.
pub const SNAPSHOT: &str = "booted";

/// The console's output, kept.
pub const SERIAL_LOG: &str = "serial.log";
/// What QEMU itself says.
const QEMU_LOG: &str = "qemu.log";
/// The disk, in the host's folder.
pub const DISK: &str = "disk.qcow2";
/// QEMU connects to these two when it starts, which is the event that it is there.
const START_MONITOR: &str = "start.sock";
const CONSOLE: &str = "console.sock";
/// QEMU listens here for later commands.
const MONITOR: &str = "monitor.sock";

/// How long QEMU may take to start and load a snapshot.
const START: Duration = Duration::from_secs(120);

/// What dom0 writes to its console when everything is up, and when it isn't.
const READY: &str = "LAB-READY";
const FAILED: &str = "LAB-FAILED";

/// What a host has.
///
/// QEMU runs several processors in turn, and what it does to change over brings a fault of its SVM to light: an interrupt
/// that Xen has injected into a PVH or HVM guest is injected once more if QEMU leaves the processor before the guest has
/// left to Xen, whatever the guest then does. HVM guests never get out of their BIOS that way, and PVH guests die now and
/// then: they need a host with one processor. dom0 and PV guests don't run under VMRUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processors; dom0 sees all of them.
    pub cpus: u32,
    /// All memory, MiB.
    pub memory: u32,
    /// dom0's memory, MiB; guests share the rest.
    pub dom0_memory: u32,
    /// What runs the processors.
    pub threads: Threads,
}

/// What runs an emulated host's processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
pub enum Threads {
    /// One thread of QEMU runs all of them, in turn, which leaves this machine's other processors to other hosts.
    #[default]
    One,
    /// A thread for each, so that they work side by side as real ones do. It is for PV guests only: one PVH guest in seven
    /// ends in its first seconds with a triple fault in the instruction behind Xen's VMRUN, the hypervisor's registers
    /// being taken for the guest's. In one thread none of thirty did, in the same time.
    Each,
}

impl Threads {
    /// QEMU's name for it.
    fn accelerator(self) -> &'static str {
        match self {
            Threads::One => "tcg,thread=single",
            Threads::Each => "tcg,thread=multi",
        }
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self { cpus: 2, memory: 4096, dom0_memory: 1024, threads: Threads::One }
    }
}

/// How long a QEMU lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// As long as this process.
    Ours,
    /// Until somebody ends it.
    Detached,
}

/// What to start.
pub struct Start<'a> {
    /// QEMU.
    pub tools: &'a Tools,
    /// Hypervisor, kernel and the disk behind the overlay.
    pub image: &'a Image,
    /// The host's folder, with [`DISK`] in it.
    pub directory: &'a Path,
    /// What it has.
    pub machine: Machine,
    /// Go on from [`SNAPSHOT`] rather than boot.
    pub restore: bool,
    /// How long it lives.
    pub life: Life,
}

/// A QEMU process that has been started or found again.
pub struct Qemu {
    directory: PathBuf,
    identity: Identity,
    process: OwnedFd,
    /// Present when it is our child, which has to be reaped.
    child: Option<Child>,
}

/// What tells a process from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since the machine's boot.
    pub start_time: u64,
}

/// A QEMU that has just been started, with its console.
pub struct Started {
    /// The process.
    pub qemu: Qemu,
    /// The port on 127.0.0.1 that leads to dom0's ssh.
    pub port: u16,
    console: UnixStream,
}

impl Start<'_> {
    /// What the snapshot depends on, for its key.
    #[must_use]
    pub fn signature(tools: &Tools, machine: Machine) -> String {
        format!("{MACHINE_FORMAT} {CPU} {DOM0_ARGUMENTS} {machine:?} {:?}", tools.qemu().get_program())
    }

    /// Starts QEMU and lets the machine run; `started` is told about the process before anything else happens.
    ///
    /// # Errors
    /// QEMU can't be started, or ends at once; the error has what it said.
    pub fn run(&self, started: impl FnOnce(Identity) -> Result<()>) -> Result<Started> {
        let directory = Directory::open(self.directory)?;
        let monitor = directory.listen(START_MONITOR)?;
        let console = directory.listen(CONSOLE)?;
        // A socket file of an earlier run would be in QEMU's way.
        let _ = fs::remove_file(self.directory.join(MONITOR));

        let log_path = self.directory.join(QEMU_LOG);
        let log = File::create(&log_path).with_context(|| format!("create {}", log_path.display()))?;
        let mut command = self.command()?;
        command.stdin(Stdio::null()).stdout(log.try_clone().context("duplicate QEMU's log")?).stderr(log);
        match self.life {
            Life::Ours => die_with_us(&mut command),
            Life::Detached => own_session(&mut command),
        }
        let child = spawn(command).context("start QEMU")?;
        let pid = i32::try_from(child.id()).context("QEMU's pid")?;
        let mut qemu = Qemu {
            directory: self.directory.to_owned(),
            identity: Identity { pid, start_time: start_time(pid).context("QEMU's start time")? },
            process: open_process(pid).context("open QEMU's process")?,
            child: Some(child),
        };
        let result = (|| {
            started(qemu.identity)?;
            let deadline = Instant::now() + START;
            let console = qemu.connection(&console, deadline)?;
            let stream = qemu.connection(&monitor, deadline)?;
            stream.set_read_timeout(Some(START)).context("set a deadline")?;
            let mut monitor = Monitor::new(stream)?;
            let usernet = monitor.human("info usernet")?;
            let port =
                forwarded_port(&usernet).with_context(|| format!("no ssh port in QEMU's answer:\n{usernet}"))?;
            monitor.execute("cont", &json!({}))?;
            Ok((port, console))
        })();
        match result {
            Ok((port, console)) => Ok(Started { qemu, port, console }),
            Err(error) => {
                // The process is of no use to anybody; its log says why.
                let _ = qemu.kill();
                Err(qemu.explain(error))
            }
        }
    }

    fn command(&self) -> Result<Command> {
        let mut command = self.tools.qemu();
        // Paths relative to the folder: socket addresses have room for 107 bytes only.
        command.current_dir(self.directory);
        command
            .args(["-accel", self.machine.threads.accelerator(), "-cpu", CPU])
            .args(["-smp", &self.machine.cpus.to_string(), "-m", &self.machine.memory.to_string()])
            // Every device less is one less for dom0 to find and load a driver for.
            .args(["-nodefaults", "-vga", "none", "-display", "none"])
            .args(["-no-reboot", "-S"])
            .arg("-kernel")
            .arg(self.image.xen())
            .args(["-append", &xen_arguments(self.machine)])
            .arg("-initrd")
            .arg(format!("{} {DOM0_ARGUMENTS},{}", escape(&self.image.kernel())?, escape(&self.image.initrd())?))
            .arg("-drive")
            .arg(format!(
                "file={DISK},format=qcow2,backing.driver=qcow2,backing.file.filename={},if=virtio,cache=unsafe",
                escape(&self.image.disk())?
            ))
            .args(["-netdev", "user,id=n0,hostfwd=tcp:127.0.0.1:0-:22"])
            .args(["-device", "virtio-net-pci,netdev=n0"])
            .args([
                "-chardev",
                &format!("socket,id=console,path={CONSOLE},server=off,logfile={SERIAL_LOG},logappend=on"),
                "-serial",
                "chardev:console",
            ])
            .args([
                "-chardev",
                &format!("socket,id=start,path={START_MONITOR},server=off"),
                "-mon",
                "chardev=start,mode=control",
            ])
            .args(["-qmp", &format!("unix:{MONITOR},server=on,wait=off")]);
        if self.restore {
            command.args(["-loadvm", SNAPSHOT]);
        }
        Ok(command)
    }
}

impl Started {
    /// Reads the console until dom0 says that it is ready.
    ///
    /// # Errors
    /// It says that it isn't, QEMU ends, or the deadline passes; the error has the console's last lines.
    pub fn wait_until_booted(mut self, deadline: Instant) -> Result<(Qemu, u16)> {
        match self.read_console(deadline) {
            Ok(()) => Ok((self.qemu, self.port)),
            Err(error) => Err(self.qemu.explain(error)),
        }
    }

    fn read_console(&mut self, deadline: Instant) -> Result<()> {
        let marker = |line: &str| line.contains(READY) || line.contains(FAILED);
        let mut lines = Lines::new(&self.console);
        match lines.find(marker, deadline)? {
            Some(line) if line.contains(READY) => Ok(()),
            Some(line) => bail!("dom0 came up broken: {line}"),
            None if Instant::now() >= deadline => bail!("dom0 was not ready in time"),
            None => bail!("QEMU ended before dom0 was ready"),
        }
    }

    /// For a restored host, whose console has nothing to say.
    #[must_use]
    pub fn running(self) -> (Qemu, u16) {
        (self.qemu, self.port)
    }
}

impl Qemu {
    /// Finds a process again, if it still runs.
    #[must_use]
    pub fn find(directory: &Path, identity: Identity) -> Option<Self> {
        let process = open_process(identity.pid).ok()?;
        // The descriptor now holds whatever process has that pid, and a start time read after it is this process's.
        (start_time(identity.pid)? == identity.start_time).then(|| Self {
            directory: directory.to_owned(),
            identity,
            process,
            child: None,
        })
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn is_running(&self) -> Result<bool> {
        Ok(!readable(&[self.process.as_fd()], Duration::ZERO)?[0])
    }

    /// Waits for it to end by itself, and says whether it did.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn wait(&mut self, limit: Duration) -> Result<bool> {
        let ended = readable(&[self.process.as_fd()], limit)?[0];
        if ended {
            self.reap()?;
        }
        Ok(ended)
    }

    /// Ends it at once, as a power cut would, and returns when it is gone.
    ///
    /// # Errors
    /// It can't be killed.
    pub fn kill(&mut self) -> Result<()> {
        match pidfd_send_signal(&self.process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                return Err(io::Error::from(error))
                    .with_context(|| format!("kill QEMU, pid {}", self.identity.pid));
            }
        }
        if !self.wait(Duration::from_secs(60))? {
            bail!("QEMU, pid {}, does not die", self.identity.pid);
        }
        Ok(())
    }

    /// A new connection to its monitor.
    ///
    /// # Errors
    /// It does not answer.
    pub fn monitor(&self) -> Result<Monitor> {
        let stream = Directory::open(&self.directory)?.connect(MONITOR)?;
        stream.set_read_timeout(Some(START)).context("set a deadline")?;
        Monitor::new(stream)
    }

    fn reap(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.wait().context("wait for QEMU")?;
        }
        Ok(())
    }

    /// Waits until QEMU connects, or ends instead.
    fn connection(&self, listener: &UnixListener, deadline: Instant) -> Result<UnixStream> {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = readable(&[listener.as_fd(), self.process.as_fd()], left)?;
        if ready[0] {
            let (stream, _) = listener.accept().context("QEMU's connection")?;
            return Ok(stream);
        }
        if ready[1] {
            bail!("QEMU ended at once");
        }
        bail!("QEMU did not start in time");
    }

    /// Adds to an error what the logs say.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let mut text = format!("{error:#}");
        for name in [QEMU_LOG, SERIAL_LOG] {
            let log = self.directory.join(name);
            let tail = exec::tail(&log);
            if !tail.is_empty() {
                text.push_str(&format!("\n{}:\n{tail}", log.display()));
            }
        }
        anyhow!(text)
    }
}

/// A host's folder, opened, so that the sockets inside have short addresses whatever the folder's path is.
struct Directory {
    file: File,
}

impl Directory {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { file })
    }

    fn address(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.file.as_raw_fd()))
    }

    fn listen(&self, name: &str) -> Result<UnixListener> {
        let address = self.address(name);
        let _ = fs::remove_file(&address);
        UnixListener::bind(&address).with_context(|| format!("listen on {name}"))
    }

    fn connect(&self, name: &str) -> Result<UnixStream> {
        UnixStream::connect(self.address(name)).with_context(|| format!("connect to {name}"))
    }
}

fn open_process(pid: i32) -> Result<OwnedFd> {
    let pid = Pid::from_raw(pid).context("not a pid")?;
    Ok(pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?)
}

fn start_time(pid: i32) -> Option<u64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The 22nd field of `/proc/PID/stat`; the second is a name in parentheses that may contain anything.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// A path inside one of QEMU's option lists, where a comma is written twice.
fn escape(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.replace(',', ",,"))
}

/// `dom0_mem` also switches xl's autoballoon off.
fn xen_arguments(machine: Machine) -> String {
    format!("console=com1 dom0_mem={0}M,max:{0}M sched=credit", machine.dom0_memory)
}

/// Makes the kernel kill the process when the thread that starts it ends.
fn die_with_us(command: &mut Command) {
    let us = getpid();
    // SAFETY: between fork and exec only system calls are made, which is safe whatever locks other threads held.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // We may have ended before the line above; then nobody would kill the new process.
            if getppid() == Some(us) { Ok(()) } else { Err(io::Error::other("the parent has ended")) }
        });
    }
}

/// Takes the process out of the terminal's reach.
fn own_session(command: &mut Command) {
    // SAFETY: between fork and exec only one system call is made.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            Ok(())
        });
    }
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// The thread that starts processes: it lives until the process ends, so that the kernel's "parent has died", which
/// means the parent *thread*, happens exactly then.
fn spawner() -> &'static Mutex<mpsc::Sender<Order>> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, reply) in inbox {
                // Nobody waits for the answer only when that thread has panicked.
                let _ = reply.send(command.spawn());
            }
        });
        Mutex::new(orders)
    })
}

fn spawn(command: Command) -> io::Result<Child> {
    let gone = || io::Error::other("the thread that starts processes has ended");
    let (reply, answer) = mpsc::channel();
    spawner().lock().map_err(|_| gone())?.send((command, reply)).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";
        assert_eq!(parse_start_time(stat), Some(98765));
        assert_eq!(parse_start_time("17 (a"), None);
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        assert_eq!(escape(Path::new("/a,b/c")).expect("path"), "/a,,b/c");
    }

    #[test]
    fn a_process_is_found_by_pid_and_start_time_only() {
        let pid = i32::try_from(std::process::id()).expect("pid");
        let time = start_time(pid).expect("start time");
        let find = |start_time| Qemu::find(Path::new("/"), Identity { pid, start_time });
        assert!(find(time).is_some_and(|found| found.is_running().expect("poll")));
        assert!(find(time + 1).is_none());
    }
}
