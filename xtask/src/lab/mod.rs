//! A real Xen host in QEMU: hypervisor, dom0 and guests, on a machine without KVM.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::path::Path;
//! use xtask::lab::{Lab, Release};
//!
//! let lab = Lab::open(Path::new("."))?;
//! let mut host = lab.host("example", Release::V4_17)?.up()?;
//! println!("{}", host.run("xl list")?.check()?.stdout);
//! host.reset()?; // as it was when `up` returned
//! host.down()?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything is built from Debian packages once and kept under `target/lab`:
//!
//! | what | made of |
//! |---|---|
//! | `qemu-KEY/` | QEMU 7.2 and busybox with all that they need |
//! | `images/xen-RELEASE-KEY/` | dom0's disk, Xen, kernel, guests' kernel |
//! | `images/xen-RELEASE-KEY/booted-KEY/` | an overlay of that disk with a snapshot of the booted host |
//! | `hosts/NAME/` | a host: its copy of the overlay, sockets, logs |

pub mod cache;
pub mod guest;
mod image;
mod initrd;
mod lines;
mod monitor;
mod qemu;
mod ssh;
mod tools;

use std::fmt;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::exec;
use crate::progress;
use cache::{Key, Lock};
use image::Image;
use lines::Lines;
use qemu::{DISK, Identity, Life, Qemu, SNAPSHOT, Start};
use tools::Tools;

pub use qemu::{Machine, Threads};
pub use ssh::{Output, quote};

/// How long a cold boot may take: 60 s on a quiet machine, several times that on a busy one.
const BOOT: Duration = Duration::from_secs(600);

const STATE: &str = "host.json";

/// From this size on files go to dom0 over a plain connection: ssh's cryptography is slow under emulation.
const PLAIN_FROM: usize = 256 << 10;

/// A release of Xen, with the Debian release that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Release {
    /// Debian 11.
    V4_14,
    /// Debian 12.
    V4_17,
    /// Debian 13.
    V4_20,
}

impl Release {
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::V4_14, Self::V4_17, Self::V4_20];

    /// The name of the Debian release.
    #[must_use]
    pub fn suite(self) -> &'static str {
        match self {
            Self::V4_14 => "bullseye",
            Self::V4_17 => "bookworm",
            Self::V4_20 => "trixie",
        }
    }

    /// Its number after "4.".
    #[must_use]
    pub fn minor(self) -> u32 {
        match self {
            Self::V4_14 => 14,
            Self::V4_17 => 17,
            Self::V4_20 => 20,
        }
    }

    /// Whether Debian has moved, or may have moved, parts of it off its mirrors.
    fn is_archived(self) -> bool {
        self == Self::V4_14
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "4.{}", self.minor())
    }
}

impl FromStr for Release {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|release| release.to_string() == text)
            .ok_or_else(|| "the lab has Xen 4.14, 4.17 and 4.20".to_owned())
    }
}

/// The place where everything is kept: `target/lab`.
#[derive(Debug, Clone)]
pub struct Lab {
    root: PathBuf,
}

impl Lab {
    /// Opens the lab of a workspace, which need not exist yet.
    ///
    /// # Errors
    /// The folder can't be made.
    pub fn open(workspace: &Path) -> Result<Self> {
        let root = workspace.join("target/lab");
        fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("find {}", root.display()))?;
        Ok(Self { root })
    }

    /// A host by name; [`HostSpec::up`] makes it run.
    ///
    /// # Errors
    /// The name can't be a host's name.
    pub fn host(&self, name: &str, release: Release) -> Result<HostSpec> {
        check_name(name)?;
        Ok(HostSpec {
            lab: self.clone(),
            name: name.to_owned(),
            release,
            machine: Machine::default(),
            life: Life::Ours,
        })
    }

    /// A host that was brought up before, by whatever process. Dropping the handle does nothing to it.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn attach(&self, name: &str) -> Result<Host> {
        check_name(name)?;
        let directory = self.host_directory(name);
        let state = State::load(&directory)?.with_context(|| {
            format!("there is no host {name:?}; start it with: cargo xtask lab up --name {name}")
        })?;
        Ok(Host {
            spec: HostSpec {
                lab: self.clone(),
                name: name.to_owned(),
                release: state.release,
                machine: state.machine,
                life: Life::Detached,
            },
            qemu: Qemu::find(&directory, state.identity),
            directory,
            state,
            lock: None,
        })
    }

    /// The names of all hosts that have a folder here.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn names(&self) -> Result<Vec<String>> {
        let hosts = self.root.join("hosts");
        fs::create_dir_all(&hosts).with_context(|| format!("make {}", hosts.display()))?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&hosts).with_context(|| format!("list {}", hosts.display()))? {
            let entry = entry.with_context(|| format!("list {}", hosts.display()))?;
            if entry.path().join(STATE).exists() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn host_directory(&self, name: &str) -> PathBuf {
        self.root.join("hosts").join(name)
    }

    fn host_lock(&self, name: &str) -> Result<Lock> {
        let path = cache::beside(&self.host_directory(name), "lock");
        Lock::try_take(&path)?
            .with_context(|| format!("another xtask is using the host {name:?} (it holds {})", path.display()))
    }
}

/// Names become folders and host names.
fn check_name(name: &str) -> Result<()> {
    let good = !name.is_empty()
        && name.len() <= 40
        && !name.starts_with('-')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !good {
        bail!("{name:?} can't be a host's name: small letters, digits and '-', at most 40");
    }
    Ok(())
}

/// What a host is to be.
#[derive(Debug, Clone)]
pub struct HostSpec {
    lab: Lab,
    name: String,
    release: Release,
    machine: Machine,
    life: Life,
}

impl HostSpec {
    /// Sets what it has.
    #[must_use]
    pub fn machine(mut self, machine: Machine) -> Self {
        self.machine = machine;
        self
    }

    /// Lets it run on when this process ends, until somebody takes it down.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.life = Life::Detached;
        self
    }

    /// Builds what is missing, starts the host from the snapshot of a booted one, and returns when it can be used.
    /// A detached host that already runs is returned as it is.
    ///
    /// # Errors
    /// Something can't be built, or the host does not come up; or its name is in use.
    pub fn up(self) -> Result<Host> {
        let lock = self.lab.host_lock(&self.name)?;
        let directory = self.lab.host_directory(&self.name);
        if let Some(state) = State::load(&directory)? {
            if let Some(mut qemu) = Qemu::find(&directory, state.identity) {
                if state.ready && state.detached {
                    return self.running(directory, state, qemu, lock);
                }
                // Left over from an `up` that was interrupted.
                qemu.kill()?;
            }
        }
        let tools = Tools::ready(&self.lab.root)?;
        let image = Image::ready(&self.lab.root, &tools, self.release)?;
        let booted = booted(&self.lab.root, &tools, &image, self.machine)?;
        let what = format!("host {}: Xen {}", self.name, self.release);
        progress::step(&what, || {
            cache::remove_all(&directory)?;
            fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
            let mut host = Host {
                state: State {
                    identity: Identity { pid: 0, start_time: 0 },
                    port: 0,
                    release: self.release,
                    machine: self.machine,
                    image: image.clone(),
                    tools: tools.clone(),
                    booted,
                    detached: self.life == Life::Detached,
                    ready: false,
                },
                spec: self,
                directory,
                qemu: None,
                lock: Some(lock),
            };
            match host.restore() {
                Ok(()) => Ok(host),
                Err(error) => {
                    // A host that is not usable must not stay, whatever its life was to be.
                    host.kill()?;
                    Err(error)
                }
            }
        })
    }

    fn running(self, directory: PathBuf, state: State, qemu: Qemu, lock: Lock) -> Result<Host> {
        if self.life == Life::Ours || state.release != self.release || state.machine != self.machine {
            bail!(
                "a host {0:?} with Xen {1}, {2} processors, {3} MiB is running; end it first: cargo xtask lab down --name {0}",
                self.name,
                state.release,
                state.machine.cpus,
                state.machine.memory
            );
        }
        Ok(Host { spec: self, directory, state, qemu: Some(qemu), lock: Some(lock) })
    }
}

/// The folder with the disk overlay that has the snapshot of the booted host; boots it if there is none.
fn booted(lab: &Path, tools: &Tools, image: &Image, machine: Machine) -> Result<PathBuf> {
    let key = Key::default().with("start", Start::signature(tools, machine)).finish();
    let target = image.directory.join(format!("booted-{key}"));
    cache::folder(&target, |part| {
        exec::logged(
            tools
                .qemu_img()
                .args(["create", "-f", "qcow2", "-F", "qcow2", "-b"])
                .arg(image.disk())
                .arg(part.join(DISK)),
            &lab.join("logs/qemu-img.log"),
        )?;
        let start = Start { tools, image, directory: part, machine, restore: false, life: Life::Ours };
        let (mut qemu, port) = progress::step("booting it for the first time", || {
            start.run(|_| Ok(()))?.wait_until_booted(Instant::now() + BOOT)
        })?;
        progress::step("saving the booted host", || {
            // Once through ssh and back: what that needs is then in dom0's memory for every restored host.
            ssh::configure(lab, part, &image.known_hosts(), port)?;
            ssh::connect(part)?;
            ssh::run(part, "xl info >/dev/null; date >/dev/null; sync", &[], ssh::LIMIT)?.check()?;
            ssh::disconnect(part);
            qemu.monitor()?.human_quiet(&format!("savevm {SNAPSHOT}"))?;
            qemu.kill()
        })
    })?;
    Ok(target)
}

/// What a later process has to know about a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    identity: Identity,
    port: u16,
    release: Release,
    machine: Machine,
    image: Image,
    tools: Tools,
    booted: PathBuf,
    detached: bool,
    ready: bool,
}

impl State {
    fn load(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(STATE);
        match fs::read(&path) {
            Ok(content) => {
                serde_json::from_slice(&content).with_context(|| format!("read {}", path.display())).map(Some)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    fn save(&self, directory: &Path) -> Result<()> {
        let path = directory.join(STATE);
        let part = cache::beside(&path, "part");
        let content = serde_json::to_vec_pretty(self).context("write the host's state")?;
        fs::write(&part, content).with_context(|| format!("write {}", part.display()))?;
        fs::rename(&part, &path).with_context(|| format!("name {}", path.display()))
    }
}

/// A host. Dropped, it is ended, unless it is [detached](HostSpec::detached).
pub struct Host {
    spec: HostSpec,
    directory: PathBuf,
    state: State,
    qemu: Option<Qemu>,
    lock: Option<Lock>,
}

impl Host {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its release of Xen.
    #[must_use]
    pub fn release(&self) -> Release {
        self.spec.release
    }

    /// The port on 127.0.0.1 that leads to its ssh; another host reaches it at 10.0.2.2.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.state.port
    }

    /// Its folder, with the logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What its console has shown.
    #[must_use]
    pub fn serial_log(&self) -> PathBuf {
        self.directory.join(qemu::SERIAL_LOG)
    }

    /// Whether its QEMU runs.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn is_running(&self) -> Result<bool> {
        self.qemu.as_ref().map_or(Ok(false), Qemu::is_running)
    }

    /// Runs a command in dom0's shell. A command that fails is no error: see [`Output::check`].
    ///
    /// # Errors
    /// dom0 can't be reached.
    pub fn run(&self, command: &str) -> Result<Output> {
        self.run_with_input(command, &[])
    }

    /// Whether dom0 still does anything at all, which a machine that has lost its way does not.
    ///
    /// # Errors
    /// The host is off.
    pub fn answers(&self) -> Result<bool> {
        self.reachable()?;
        Ok(ssh::run(&self.directory, "true", &[], Duration::from_secs(60)).is_ok_and(|output| output.success()))
    }

    /// As [`run`](Self::run), with something on its standard input.
    ///
    /// # Errors
    /// dom0 can't be reached.
    pub fn run_with_input(&self, command: &str, input: &[u8]) -> Result<Output> {
        self.reachable()?;
        ssh::run(&self.directory, command, input, ssh::LIMIT)
            .with_context(|| format!("run {command:?} in {}", self.spec.name))
    }

    /// A command in dom0's shell that the caller starts as it likes: in the background, with its output as it comes.
    ///
    /// # Errors
    /// The host does not run.
    pub fn command(&self, command: &str) -> Result<Command> {
        self.reachable()?;
        Ok(ssh::command(&self.directory, command))
    }

    /// A shell in dom0 on this terminal.
    ///
    /// # Errors
    /// The host does not run.
    pub fn shell(&self) -> Result<Command> {
        self.reachable()?;
        Ok(ssh::interactive(&self.directory))
    }

    /// Copies a file to dom0; it appears there whole, with the permissions given or those that it has here.
    ///
    /// # Errors
    /// It can't be read here or written there.
    pub fn push(&self, local: &Path, remote: &str, mode: Option<u32>) -> Result<()> {
        let content = fs::read(local).with_context(|| format!("read {}", local.display()))?;
        let mode = match mode {
            Some(mode) => mode,
            None => {
                fs::metadata(local).with_context(|| format!("look at {}", local.display()))?.permissions().mode()
                    & 0o7777
            }
        };
        self.write(remote, &content, mode).with_context(|| format!("push {} to {remote}", local.display()))
    }

    /// Writes a file in dom0; it appears there whole.
    ///
    /// # Errors
    /// It can't be written.
    pub fn write(&self, remote: &str, content: &[u8], mode: u32) -> Result<()> {
        let target = quote(remote);
        let part = quote(&format!("{remote}.part"));
        let receive = format!("mkdir -p \"$(dirname {target})\" && cat >{part}");
        let place = format!("chmod {mode:o} {part} && mv -T {part} {target}");
        if content.len() < PLAIN_FROM {
            self.run_with_input(&format!("{receive} && {place}"), content)?.check()?;
            return Ok(());
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for dom0")?;
        let address = listener.local_addr().context("the port to listen on")?;
        let command = format!(
            "exec 3<>/dev/tcp/10.0.2.2/{port} && {receive} <&3 && [ $(stat -c %s {part}) -eq {size} ] && {place}",
            port = address.port(),
            size = content.len()
        );
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if let Ok((mut stream, _)) = listener.accept() {
                    // What goes wrong here shows as a wrong size there.
                    let _ = stream.write_all(content);
                }
            });
            let output = self.run(&format!("bash -c {}", quote(&command)));
            // When dom0 never came, somebody has to, or the thread above waits for ever.
            let _ = TcpStream::connect(address);
            output
        })?
        .check()?;
        Ok(())
    }

    /// Copies a file from dom0.
    ///
    /// # Errors
    /// It can't be read there or written here.
    pub fn pull(&self, remote: &str, local: &Path) -> Result<()> {
        let content = exec::output(&mut self.command(&format!("cat {}", quote(remote)))?)
            .with_context(|| format!("pull {remote}"))?;
        fs::write(local, content).with_context(|| format!("write {}", local.display()))
    }

    /// Waits until a file in dom0 has a line that is wanted, and returns that line. The file is read from its beginning
    /// and need not exist yet. Guests' consoles are such files: see [`console_log`].
    ///
    /// # Errors
    /// The limit passes; the error has the file's last lines.
    pub fn wait_for_line(&self, file: &str, wanted: impl Fn(&str) -> bool, limit: Duration) -> Result<String> {
        // One process in dom0, because every one costs a tenth of a second there; it follows the file by inotify.
        let mut follower = self
            .command(&format!("exec tail -n +1 -F {} 2>/dev/null", quote(file)))?
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("start ssh")?;
        let output = follower.stdout.take().context("ssh's output")?;
        let mut lines = Lines::new(output);
        let found = lines.find(wanted, Instant::now() + limit);
        // Without its reader the tail in dom0 ends when it has something to write.
        let _ = follower.kill();
        follower.wait().context("wait for ssh")?;
        if let Some(line) = found? {
            return Ok(line);
        }
        bail!(
            "the line that was waited for did not come in {file} within {} s; its last lines:\n{}",
            limit.as_secs(),
            lines.last()
        )
    }

    /// Brings it back to what it was when [`up`](HostSpec::up) returned, whatever has happened since.
    ///
    /// In a new QEMU: the snapshot does not have the time-stamp counter, which in a running QEMU would go on from where
    /// it is. To the host that is a jump in time as long as it has run, after which its timers, and so libxl's limits,
    /// are wrong.
    ///
    /// # Errors
    /// It does not come back.
    pub fn reset(&mut self) -> Result<()> {
        self.exclusive()?;
        ssh::disconnect(&self.directory);
        self.kill()?;
        self.restore()
    }

    /// Cuts its power. The disk stays as it was; [`boot`](Self::boot) starts it again.
    ///
    /// # Errors
    /// QEMU can't be killed.
    pub fn power_cut(&mut self) -> Result<()> {
        self.exclusive()?;
        self.kill()
    }

    /// Waits until it switches itself off or reboots, which ends QEMU too, and says whether it did.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn wait_until_off(&mut self, limit: Duration) -> Result<bool> {
        self.qemu.as_mut().map_or(Ok(true), |qemu| qemu.wait(limit))
    }

    /// Boots it from its disk as that is: after a power cut, or after it switched itself off.
    ///
    /// # Errors
    /// It still runs, or does not come up.
    pub fn boot(&mut self) -> Result<()> {
        self.exclusive()?;
        if self.is_running()? {
            bail!("the host {:?} is running", self.spec.name);
        }
        progress::step(&format!("host {}: booting", self.spec.name), || {
            let started = self.start(false)?;
            let (qemu, port) = started.wait_until_booted(Instant::now() + BOOT)?;
            self.qemu = Some(qemu);
            self.state.port = port;
            self.welcome()
        })
    }

    /// Ends it and forgets its disk; the logs stay.
    ///
    /// # Errors
    /// QEMU can't be killed.
    pub fn down(mut self) -> Result<()> {
        self.exclusive()?;
        self.kill()?;
        self.forget()
    }

    /// Starts from a fresh copy of the booted host's disk.
    fn restore(&mut self) -> Result<()> {
        let disk = self.directory.join(DISK);
        fs::copy(self.state.booted.join(DISK), &disk)
            .with_context(|| format!("copy the booted host's disk to {}", disk.display()))?;
        // What the console said up to the snapshot; QEMU appends.
        fs::copy(self.state.booted.join(qemu::SERIAL_LOG), self.serial_log())
            .context("copy the booted host's console")?;
        let (qemu, port) = self.start(true)?.running();
        self.qemu = Some(qemu);
        self.state.port = port;
        self.welcome()
    }

    fn start(&mut self, restore: bool) -> Result<qemu::Started> {
        self.state.ready = false;
        let state = &mut self.state;
        let (image, tools, machine) = (state.image.clone(), state.tools.clone(), state.machine);
        Start { tools: &tools, image: &image, directory: &self.directory, machine, restore, life: self.spec.life }
            .run(|identity| {
                state.identity = identity;
                state.save(&self.directory)
            })
    }

    /// The first words with a host that has just started or been reset: the shared connection, and what a snapshot can't
    /// know: the time and its name.
    fn welcome(&mut self) -> Result<()> {
        ssh::configure(&self.spec.lab.root, &self.directory, &self.state.image.known_hosts(), self.state.port)?;
        ssh::connect(&self.directory)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("this machine's clock")?;
        self.run(&format!(
            "date -s @{}.{:03} >/dev/null && hostname {}",
            now.as_secs(),
            now.subsec_millis(),
            self.spec.name
        ))?
        .check()?;
        self.state.ready = true;
        self.state.save(&self.directory)
    }

    fn reachable(&self) -> Result<()> {
        if self.is_running()? {
            return Ok(());
        }
        bail!(
            "the host {0:?} is off (its console: {1}); cargo xtask lab reset --name {0} brings it back",
            self.spec.name,
            self.serial_log().display()
        )
    }

    /// Makes sure that nobody else is changing this host.
    fn exclusive(&mut self) -> Result<()> {
        if self.lock.is_none() {
            self.lock = Some(self.spec.lab.host_lock(&self.spec.name)?);
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        if let Some(qemu) = &mut self.qemu {
            qemu.kill()?;
        }
        // Its connection is gone with it; the ssh that held it ends by itself.
        self.qemu = None;
        Ok(())
    }

    fn forget(&self) -> Result<()> {
        for name in [DISK, STATE] {
            let path = self.directory.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.spec.life == Life::Ours {
            // Nobody is left to tell; the kernel kills QEMU with this process in any case.
            let _ = self.kill();
            let _ = self.forget();
        }
    }
}

/// Where dom0 has what a guest wrote to its console.
#[must_use]
pub fn console_log(guest: &str) -> String {
    format!("/var/log/xen/console/guest-{guest}.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_written_as_xen_does() {
        for release in Release::ALL {
            assert_eq!(release.to_string().parse(), Ok(release));
        }
        assert!("4.16".parse::<Release>().is_err());
    }

    #[test]
    fn names_are_safe_as_folders_and_host_names() {
        for good in ["a", "xen-4", "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "..", "a/b", "A", "-a", "a b", "a_b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
