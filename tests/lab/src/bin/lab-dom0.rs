//! What the measurements of `lab-tests --compare` run in dom0: a stop watch for commands, libxl's calls alone, and the time
//! until a guest's end has been seen to.
//!
//! ```text
//! lab-dom0 measure COMMAND            what it took, in JSON; what it says goes to /tmp/said
//! lab-dom0 resident PROGRAM           the memory of all processes of that name, in KiB
//! lab-dom0 list
//! lab-dom0 create JOBS FILE…          from libxl's JSON
//! lab-dom0 save JOBS DIRECTORY NAME…  and destroy
//! lab-dom0 restore JOBS DIRECTORY NAME…
//! lab-dom0 shutdown NAME…             and destroy; says the seconds that the slowest guest took to go down
//! lab-dom0 power-off NAME             from the guest's own end until the domain is gone, in seconds
//! lab-dom0 reboot NAME                from the guest's own end until the new domain writes to its console
//! lab-dom0 abort DIRECTORY COMMAND    from SIGTERM, when a file there has 8 MiB, until the command has ended
//! ```
//!
//! The guests of `save` and `restore` have a file `NAME.json` beside their image, and no other header.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use xenlight::{
    Children, Context, DomainChange, DomainConfig, DomainEvents, Domid, Library, Operation, SaveFlags,
    ShutdownReason,
};

/// From when on a save is at work.
const BEGUN: u64 = 8 << 20;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["measure", command] => measure(command),
        ["resident", program] => {
            println!("{}", resident_kib(program)?);
            Ok(())
        }
        ["list"] => {
            println!("{}", open()?.list()?.len());
            Ok(())
        }
        ["create", jobs, ref files @ ..] => at_once(jobs, files, |context, file| create(context, Path::new(file))),
        ["save", jobs, directory, ref names @ ..] => at_once(jobs, names, |context, name| {
            let domid = domid(context, name)?;
            save(context, domid, &Path::new(directory).join(name))?;
            Ok(context.destroy(domid)?.wait()?)
        }),
        ["restore", jobs, directory, ref names @ ..] => {
            at_once(jobs, names, |context, name| restore(context, &Path::new(directory).join(name)))
        }
        ["shutdown", ref names @ ..] => shut_down(names),
        ["power-off", name] => power_off(name),
        ["reboot", name] => reboot(name),
        ["abort", directory, command] => abort(Path::new(directory), command),
        _ => bail!("usage: see the source"),
    }
}

/// dom0's counters.
struct Counters {
    /// Processes and threads started since boot.
    started: u64,
    /// Time that dom0's processors worked, s.
    worked: f64,
}

impl Counters {
    fn read() -> Result<Self> {
        /// The kernel counts in hundredths of a second.
        const PER_SECOND: f64 = 100.0;
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let line = |name: &str| {
            let found = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            found.with_context(|| format!("/proc/stat has no line {name}"))
        };
        let times: Vec<f64> = line("cpu")?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, ..] = times[..] else {
            bail!("/proc/stat: too few times: {times:?}");
        };
        let started = line("processes")?.trim().parse().context("/proc/stat: processes")?;
        Ok(Self { started, worked: (user + nice + system + irq + softirq) / PER_SECOND })
    }
}

/// What a command takes.
fn measure(command: &str) -> Result<()> {
    let said = File::create("/tmp/said").context("create /tmp/said")?;
    let mut shell = Command::new("bash");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
    let (before, begun) = (Counters::read()?, Instant::now());
    let status = shell.status().context("start bash")?;
    let (seconds, after) = (begun.elapsed().as_secs_f64(), Counters::read()?);
    let took = json!({
        "code": status.code(),
        "seconds": seconds,
        // Without the shell.
        "started": after.started - before.started - 1,
        "cpu": after.worked - before.worked,
        "peak_kib": peak_kib(),
    });
    println!("{took}");
    Ok(())
}

/// The most memory that any one of the processes had which this one has waited for, and those that they have waited for.
fn peak_kib() -> i64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a place for the result, and all-zero is a valid one if nothing is written.
    unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init().ru_maxrss
    }
}

/// The processes' share of memory: what several share is divided between them.
fn resident_kib(program: &str) -> Result<u64> {
    let mut kib = 0;
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let of = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if of("comm").trim() == program {
            let rollup = of("smaps_rollup");
            let share = rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
            kib += share.and_then(|share| share.parse::<u64>().ok()).unwrap_or_default();
        }
    }
    Ok(kib)
}

fn open() -> Result<Context> {
    Ok(Context::open(&Library::open_running()?, Children::LibxlReapsOwn, None)?)
}

fn domid(context: &Context, name: &str) -> Result<Domid> {
    context.find(name)?.with_context(|| format!("there is no domain {name}"))
}

/// Does this with all of them, so many at the same time, each with a context of its own: libxl does much of the work with
/// its context locked.
fn at_once(jobs: &str, what: &[&str], work: impl Fn(&Context, &str) -> Result<()> + Sync) -> Result<()> {
    let jobs: usize = jobs.parse().context("JOBS is a number")?;
    let waiting = Mutex::new(what.iter());
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            let context = open()?;
            loop {
                // The guard is gone before the work begins.
                let next = waiting.lock().map_err(|_| anyhow!("a thread has panicked"))?.next();
                let Some(what) = next else { return Ok(()) };
                work(&context, what).with_context(|| (*what).to_owned())?;
            }
        };
        let workers: Vec<_> = (0..jobs.min(what.len())).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a thread has panicked"))?)
    })
}

fn configuration(file: &Path) -> Result<DomainConfig> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    Ok(DomainConfig::from_text(&text)?)
}

fn create(context: &Context, file: &Path) -> Result<()> {
    let domid = context.create(&configuration(file)?)?.wait()?;
    Ok(context.unpause(domid)?.wait()?)
}

fn save(context: &Context, domid: Domid, image: &Path) -> Result<()> {
    let configuration = context.configuration(domid)?.wait()?;
    fs::write(image.with_extension("json"), configuration.as_json().to_string())?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(image)?;
    let file = context.save(domid, file.into(), SaveFlags::default())?.wait()?;
    Ok(File::from(file).sync_all()?)
}

fn restore(context: &Context, image: &Path) -> Result<()> {
    let configuration = configuration(&image.with_extension("json"))?;
    let domid = context.restore(&configuration, OwnedFd::from(File::open(image)?))?.wait()?;
    Ok(context.unpause(domid)?.wait()?)
}

fn shut_down(names: &[&str]) -> Result<()> {
    let context = open()?;
    let (events, begun) = (context.domain_events(), Instant::now());
    let uuids: Vec<_> = context.list()?.into_iter().map(|domain| (domain.domid, domain.uuid)).collect();
    let (mut left, mut requests, mut slowest) = (BTreeSet::new(), Vec::new(), Duration::ZERO);
    for name in names {
        let domid = domid(&context, name)?;
        let (_, uuid) = uuids.iter().find(|(found, _)| *found == domid).context("it has just gone")?;
        events.watch(domid, *uuid)?;
        requests.push(context.shutdown(domid)?);
        left.insert(domid);
    }
    let mut ends = Vec::new();
    while !left.is_empty() {
        let event = events.next_until(None)?.context("libxl has no more events")?;
        if matches!(event.change, DomainChange::Shutdown(_)) && left.remove(&event.domid) {
            slowest = begun.elapsed();
            ends.push(context.destroy(event.domid)?);
        }
    }
    requests.into_iter().chain(ends).try_for_each(Operation::wait)?;
    println!("{:.3}", slowest.as_secs_f64());
    Ok(())
}

/// Asks the guest to end, by this, and waits until it has, for this reason.
fn ended(
    context: &Context,
    name: &str,
    ask: impl FnOnce(Domid) -> xenlight::Result<()>,
    reason: ShutdownReason,
) -> Result<(DomainEvents, Instant)> {
    let domid = domid(context, name)?;
    let events = context.domain_events();
    events.watch(domid, context.info(domid)?.uuid)?;
    ask(domid)?;
    let event = events.next_until(None)?.context("libxl has no more events")?;
    let ended = Instant::now();
    ensure!(event.change == DomainChange::Shutdown(reason), "{name} has ended otherwise: {:?}", event.change);
    Ok((events, ended))
}

fn power_off(name: &str) -> Result<()> {
    let context = open()?;
    let ask = |domid| context.shutdown(domid)?.wait();
    let (events, ended) = ended(&context, name, ask, ShutdownReason::Poweroff)?;
    while events.next_until(None)?.context("libxl has no more events")?.change != DomainChange::Death {}
    println!("{:.3}", ended.elapsed().as_secs_f64());
    Ok(())
}

fn reboot(name: &str) -> Result<()> {
    let console = PathBuf::from(format!("/var/log/xen/console/guest-{name}.log"));
    let mut file = File::open(&console).with_context(|| format!("open {}", console.display()))?;
    let changes = Changes::of(&console)?;
    let context = open()?;
    let (_, ended) = ended(&context, name, |domid| context.sysrq(domid, 'b'), ShutdownReason::Reboot)?;
    file.seek(SeekFrom::End(0))?;
    let mut text = String::new();
    // The last words of the old one may come late; a kernel's first ones are these.
    while !text.contains("Linux version") {
        changes.wait()?;
        file.read_to_string(&mut text)?;
    }
    println!("{:.3}", ended.elapsed().as_secs_f64());
    Ok(())
}

fn abort(directory: &Path, command: &str) -> Result<()> {
    let changes = Changes::of(directory)?;
    let mut words = command.split_whitespace();
    let said = File::create("/tmp/said").context("create /tmp/said")?;
    let mut child = Command::new(words.next().context("no command")?)
        .args(words)
        .stdin(Stdio::null())
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()?;
    while !fs::read_dir(directory)?.flatten().any(|entry| entry.metadata().is_ok_and(|file| file.len() > BEGUN)) {
        changes.wait()?;
    }
    let begun = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM)?;
    child.wait()?;
    println!("{:.3}", begun.elapsed().as_secs_f64());
    Ok(())
}

/// The changes of a file, or of the files of a directory.
struct Changes(OwnedFd);

impl Changes {
    fn of(path: &Path) -> Result<Self> {
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(changes.as_fd(), path, inotify::WatchFlags::MODIFY)?;
        Ok(Self(changes))
    }

    /// Waits until something has changed since the last time.
    fn wait(&self) -> Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        inotify::Reader::new(self.0.as_fd(), &mut buffer).next()?;
        Ok(())
    }
}
