//! The toolstack over libxl, in this process.

mod monitoring;

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io::Seek;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use xenlight::{
    Cause, Children, Context, DomainChange, DomainConfig, DomainEvent, DomainEvents, DomainInfo, ErrorCode,
    Library, LogLevel, LogRecord, LogSink, Operation, Release, SaveEnd, SaveFlags, Trigger, Wait,
};

use super::create_lock;
use super::memory::{Demand, Memory, Room};
use super::xenstored;
use super::{
    Domain, Domid, Ending, Error, Made, Monitoring, Note, ShutdownReason, State, Toolstack, may_pass, not_of_xend,
    stream_of, without_domid,
};
use crate::guest_config::{Cpus, GuestConfig, XlConf};
use crate::image::{Image, NewImage};
use crate::interrupt::Interrupt;

/// How long an aborted call may take to come back. libxl's own steps are limited to less; beyond this something is
/// stuck, and the guest is reported instead of waited for.
const ABORT_GRACE: Duration = Duration::from_secs(60);

/// More NUMA nodes than any host has.
const NODE_LIMIT: usize = 4096;

/// Why libxl can't be used on this host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no libxl that fits the running hypervisor.
    #[error(transparent)]
    Library(#[from] xenlight::LibraryError),
    /// xenstored is there and does not answer.
    #[error(transparent)]
    NoAnswer(#[from] xenstored::NoAnswer),
    /// libxl could not connect to the hypervisor or to xenstored.
    #[error("{0}; is this dom0, is xenstored running, and are you root?")]
    Connect(xenlight::Error),
}

/// libxl of the running hypervisor's release.
pub struct Libxl {
    library: Library,
    context: Context,
    verbose: bool,
    interrupt: Arc<Interrupt>,
    /// Where memory for guests comes from. `None`: from what is free only.
    memory: Option<Memory>,
}

/// Words of libxl about a domain, in every release so far, when it has just been made and nothing is in it yet.
const IS_MADE: &str = "running bootloader";

/// Listens to libxl's log.
struct Log {
    /// Whether it is written to standard error as it comes.
    verbose: bool,
    /// Listener for the number of the domain that is being built, of a context that builds one.
    made: Option<Made>,
}

impl LogSink for Log {
    fn record(&self, record: &LogRecord) {
        if self.verbose && record.level != LogLevel::Progress {
            eprintln!("{record}");
        }
        if let (Some(made), LogLevel::Debug, true) = (&self.made, record.level, record.text.contains(IS_MADE)) {
            record.domid().into_iter().for_each(&**made);
        }
    }
}

fn connect(library: &Library, verbose: bool, made: Option<Made>) -> Result<Context, xenlight::Error> {
    let wanted = verbose || made.is_some();
    let sink = wanted.then(|| Box::new(Log { verbose, made }) as Box<dyn LogSink>);
    // Several contexts, each with children: the one mode in which libxl allows that.
    Context::open(library, Children::LibxlReapsOwn, sink)
}

impl Libxl {
    /// Opens the libxl of the running hypervisor. xl.conf says whether dom0 gives memory back for guests, and which lock
    /// is xl's. `verbose` has libxl's log written to standard error; `interrupt` ends every wait that has a limit.
    ///
    /// # Errors
    /// When there is no such library, its release is not one that is known to work, or it can't connect. A xenstored that
    /// does not answer it waits for without a limit, so that is to be asked first.
    pub fn open(xl_conf: &XlConf, verbose: bool, interrupt: Arc<Interrupt>) -> Result<Self, OpenError> {
        Self::with_library(Library::open_running()?, xl_conf, verbose, interrupt)
    }

    /// Uses an opened library.
    ///
    /// # Errors
    /// When libxl can't connect to the hypervisor or to xenstored.
    pub fn with_library(
        library: Library,
        xl_conf: &XlConf,
        verbose: bool,
        interrupt: Arc<Interrupt>,
    ) -> Result<Self, OpenError> {
        let context = connect(&library, verbose, None).map_err(OpenError::Connect)?;
        let version = context.version().ok();
        let command_line = version.as_ref().map(|version| version.commandline.as_str());
        let memory = xl_conf.autoballoon.is_on(context.release().minor, command_line).then(|| {
            let lock = xl_conf.lockfile.as_deref().unwrap_or(Path::new(create_lock::DEFAULT));
            Memory::new(context.clone(), lock, Arc::clone(&interrupt))
        });
        Ok(Self { library, context, verbose, interrupt, memory })
    }

    /// The release in use.
    pub fn release(&self) -> Release {
        self.context.release()
    }

    /// A context of its own for a call that builds a domain: libxl does that with the context locked, so on a shared
    /// one builds would wait for each other, and all other calls for them.
    fn builder(&self, action: &'static str, made: Option<Made>) -> Result<Context, Error> {
        connect(&self.library, self.verbose, made).map_err(|e| failed(action, &e))
    }

    /// Sees to it that there is memory for a guest, where that is done. Keeps xl's lock and the memory until dropped.
    fn make_room(
        &self,
        context: &Context,
        action: &'static str,
        config: &DomainConfig,
        deadline: Option<Instant>,
        note: Note<'_>,
    ) -> Result<Option<Room<'_>>, Error> {
        let Some(memory) = &self.memory else { return Ok(None) };
        let need_kib = context.needed_memory_kib(config).map_err(|e| failed(action, &e))?;
        let guest = config.name().unwrap_or_default();
        let demand = Demand { guest, uuid: config.uuid().unwrap_or_default(), need_kib, deadline };
        memory
            .make_room(&demand, note)
            .map(Some)
            .map_err(|e| Error { timed_out: e.timed_out(), ..Error::new(action, e.to_string()) })
    }

    fn finish_build(
        &self,
        context: &Context,
        action: &'static str,
        build: xenlight::Result<Operation<Domid>>,
        made: &OnceLock<Domid>,
        limit: impl FnMut() -> Option<Instant>,
    ) -> Result<Domid, Error> {
        let (outcome, timed_out) = self.within(build, limit);
        outcome.map_err(|e| {
            let mut error = failed(action, &e);
            error.timed_out = timed_out;
            let stuck = matches!(e.cause(), Cause::Stuck(_));
            // A build that does not come back does not say which domain it was making. Left alone that would look like
            // a guest that somebody has paused.
            if let Some(leftover) = e.leftover().or_else(|| made.get().copied().filter(|_| stuck)) {
                if let Err(e) = context.destroy(leftover).and_then(Operation::wait) {
                    error.cause += &format!("; its half-made domain {leftover} could not be removed: {e}");
                }
            }
            error
        })
    }

    /// Writes a guest's state to a file or to whoever is at the other end of a pipe, and leaves it suspended. After an
    /// error it runs on, if it can be let run.
    fn suspend_to(
        &self,
        action: &'static str,
        domid: Domid,
        stream: OwnedFd,
        flags: SaveFlags,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let mut save = match self.context.save(domid, stream, flags) {
            Ok(save) => save,
            Err(e) => return Err(failed(action, &e)),
        };
        let outcome = block_until(&mut save, deadline, Some(&self.interrupt));
        let timed_out = outcome.is_none();
        let outcome = outcome.map_or_else(|| Wait::Pending(save), Wait::Done);
        match self.context.end_save(domid, outcome) {
            SaveEnd::Saved(_) => Ok(()),
            SaveEnd::Running(e) | SaveEnd::Ended(e) => Err(Error { timed_out, ..failed(action, &e) }),
            SaveEnd::Suspended { error, resume } => {
                let mut error = Error { timed_out, left_suspended: true, ..failed(action, &error) };
                error.cause += &format!("; it could not be resumed either: {resume}");
                Err(error)
            }
            other => Err(Error::new(action, format!("an outcome that this program does not know: {other:?}"))),
        }
    }

    /// Waits for an operation until its limit is over or until the program is asked to end, then aborts it. Says whether it
    /// was aborted.
    ///
    /// `limit` is asked for the deadline at first, and again each time that one has passed. `None`: there is no limit.
    fn within<T: Send>(
        &self,
        operation: xenlight::Result<Operation<T>>,
        mut limit: impl FnMut() -> Option<Instant>,
    ) -> (xenlight::Result<T>, bool) {
        let mut operation = match operation {
            Ok(operation) => operation,
            Err(e) => return (Err(e), false),
        };
        let mut deadline = limit();
        loop {
            if let Some(result) = block_until(&mut operation, deadline, Some(&self.interrupt)) {
                return (result, false);
            }
            let later = limit();
            if self.interrupt.is_asked() || later <= deadline {
                break;
            }
            deadline = later;
        }
        if let Err(e) = operation.abort() {
            return (Err(e), true);
        }
        match operation.wait_until(Some(Instant::now() + ABORT_GRACE)) {
            // It was done before the abort reached it.
            Wait::Done(Ok(value)) => (Ok(value), false),
            Wait::Done(Err(e)) => (Err(e), true),
            Wait::Pending(operation) => (Err(operation.give_up()), true),
        }
    }

    fn press_power_button(&self, domid: Domid) -> xenlight::Result<()> {
        self.context.trigger(domid, Trigger::Power, 0)?.wait()
    }

    /// Sends one request. `None`: it needs no acknowledgement.
    fn ask_to_shut_down(&self, domid: Domid) -> xenlight::Result<Option<Operation<()>>> {
        match self.context.shutdown(domid) {
            Ok(request) => Ok(Some(request)),
            Err(e) if e.code() == Some(ErrorCode::NoParavirt) => self.press_power_button(domid).map(|()| None),
            Err(e) => Err(e),
        }
    }
}

/// Remembers the number of a domain that is being built, besides telling it.
fn remembered(made: Made) -> (Arc<OnceLock<Domid>>, Made) {
    let number = Arc::new(OnceLock::new());
    let remember = Arc::clone(&number);
    let tell = move |domid| {
        let _ = remember.set(domid);
        made(domid);
    };
    (number, Arc::new(tell))
}

fn failed(action: &'static str, e: &xenlight::Error) -> Error {
    use ErrorCode::{GuestTimedOut, LockFail, NoMemory, NotReady, TimedOut};
    let passes = matches!(e.code(), Some(GuestTimedOut | LockFail | NoMemory | NotReady | TimedOut));
    let transient = passes || e.log().iter().any(|record| may_pass(&record.text));
    Error { transient, ..Error::new(action, e.to_string()) }
}

fn reason(reason: xenlight::ShutdownReason) -> ShutdownReason {
    use xenlight::ShutdownReason as R;
    match reason {
        R::Poweroff => ShutdownReason::Poweroff,
        R::Reboot => ShutdownReason::Reboot,
        R::Suspend => ShutdownReason::Suspend,
        R::Crash => ShutdownReason::Crash,
        R::Watchdog => ShutdownReason::Watchdog,
        R::SoftReset => ShutdownReason::SoftReset,
        R::Other(code) => ShutdownReason::Other(code),
        _ => ShutdownReason::Other(-1),
    }
}

fn state(info: &DomainInfo) -> State {
    if info.dying {
        State::Dying
    } else if let Some(why) = info.shutdown {
        State::Shutdown(reason(why))
    } else if info.paused {
        State::Paused
    } else {
        State::Running
    }
}

/// A limit on the time in which `position` does not change. Each deadline is so long after the last change that was seen.
fn while_it_moves(
    patience: Option<Duration>,
    position: impl Fn() -> Option<u64>,
) -> impl FnMut() -> Option<Instant> {
    let mut seen = None;
    let mut deadline = None;
    move || {
        let now = position();
        if deadline.is_none() || (now.is_some() && now != seen) {
            seen = now;
            deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        }
        deadline
    }
}

/// What a wait for a shutdown sees next.
enum Seen {
    Domain(xenlight::Result<DomainEvent>),
    Answer(xenlight::Result<()>),
}

/// The next domain event or the answer to the request, whichever comes first; `None` when the deadline has passed.
fn next(
    events: &mut DomainEvents,
    request: &mut Option<Operation<()>>,
    deadline: Option<Instant>,
    interrupt: &Interrupt,
) -> Option<Seen> {
    use xenlight::futures_core::Stream;
    let either = poll_fn(|cx| {
        if let Poll::Ready(Some(event)) = Pin::new(&mut *events).poll_next(cx) {
            return Poll::Ready(Seen::Domain(event));
        }
        let Some(pending) = request else { return Poll::Pending };
        Pin::new(pending).poll(cx).map(|answer| {
            *request = None;
            Seen::Answer(answer)
        })
    });
    block_until(either, deadline, Some(interrupt))
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread until it is ready, the deadline has passed or the program is asked to end.
fn block_until<F: Future>(
    future: F,
    deadline: Option<Instant>,
    interrupt: Option<&Interrupt>,
) -> Option<F::Output> {
    let _parked = interrupt.map(Interrupt::unparks_this_thread);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = std::task::Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Some(output);
        }
        if interrupt.is_some_and(Interrupt::is_asked) {
            return None;
        }
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => std::thread::park(),
            Some(left) if left.is_zero() => return None,
            Some(left) => std::thread::park_timeout(left),
        }
    }
}

impl Toolstack for Libxl {
    fn describe(&self) -> String {
        format!("libxl {}", self.release())
    }

    fn xen_release(&self) -> Option<u32> {
        Some(self.release().minor)
    }

    fn cpus(&self) -> Result<Cpus, Error> {
        let host = self.context.host_cpus().map_err(|e| failed("ask for the host's CPUs", &e))?;
        let mut nodes = vec![Vec::new(); host.nodes as usize];
        for (cpu, node) in (0..).zip(&host.node_of) {
            let Some(node) = node.and_then(|node| usize::try_from(node).ok()).filter(|&node| node < NODE_LIMIT)
            else {
                continue;
            };
            if node >= nodes.len() {
                nodes.resize(node + 1, Vec::new());
            }
            nodes[node].push(cpu);
        }
        Ok(Cpus { count: host.count, online: host.online, nodes, from_xen: true })
    }

    fn domains(&self) -> Result<Vec<Domain>, Error> {
        let list = self.context.list().map_err(|e| failed("list domains", &e))?;
        Ok(list
            .into_iter()
            .map(|info| {
                let name = self.context.name(info.domid);
                // xenstored is asked for each of these, so no more is asked than everybody needs. A stub domain has its
                // guest's name with this ending, also when the guest is renamed.
                let may_be_stubdom = name.as_ref().is_none_or(|name| name.ends_with("-dm"));
                Domain {
                    domid: info.domid,
                    uuid: info.uuid,
                    name,
                    state: state(&info),
                    never_stop: info.never_stop,
                    stubdom: may_be_stubdom && self.context.stubdom_target(info.domid).is_some(),
                    memory_kib: info.current_kib + info.outstanding_kib,
                    max_memory_kib: info.max_kib,
                    vcpus: info.vcpus_online,
                    cpu_time: info.cpu_time,
                    uptime: None,
                }
            })
            .collect())
    }

    fn uptime(&self, domain: &Domain) -> Option<Duration> {
        // One that lies in the future tells of a wrong clock.
        SystemTime::now().duration_since(self.context.start_time(domain.domid)?).ok()
    }

    fn create(
        &self,
        guest: &GuestConfig,
        deadline: Option<Instant>,
        note: Note<'_>,
        made: Made,
    ) -> Result<Domid, Error> {
        const ACTION: &str = "create";
        let (number, made) = remembered(made);
        let context = self.builder(ACTION, Some(made))?;
        let config = DomainConfig::from_json(guest.json.clone()).map_err(|e| failed(ACTION, &e))?;
        let _room = self.make_room(&context, ACTION, &config, deadline, note)?;
        self.finish_build(&context, ACTION, context.create(&config), &number, || deadline)
    }

    fn restore(
        &self,
        image: &Image,
        deadline: Option<Instant>,
        note: Note<'_>,
        made: Made,
    ) -> Result<Domid, Error> {
        const ACTION: &str = "restore";
        not_of_xend(ACTION, image)?;
        let (number, made) = remembered(made);
        let context = self.builder(ACTION, Some(made))?;
        let stream = stream_of(ACTION, image)?;
        let config =
            DomainConfig::from_json(without_domid(image.config.clone())).map_err(|e| failed(ACTION, &e))?;
        let patience = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let _room = self.make_room(&context, ACTION, &config, deadline, note)?;
        // libxl and its helper read through the same description of the file, whose position tells how far they are.
        let position =
            stream.try_clone().map_err(|e| Error::new(ACTION, format!("can't follow its progress: {e}")))?;
        let limit = while_it_moves(patience, move || (&position).stream_position().ok());
        self.finish_build(&context, ACTION, context.restore(&config, stream.into()), &number, limit)
    }

    fn unpause(&self, domid: Domid) -> Result<(), Error> {
        self.context.unpause(domid).and_then(Operation::wait).map_err(|e| failed("unpause", &e))
    }

    fn save(&self, domain: &Domain, target: &mut NewImage, deadline: Option<Instant>) -> Result<(), Error> {
        const ACTION: &str = "save";
        let (config, timed_out) = self.within(self.context.configuration(domain.domid), || deadline);
        let config = config.map_err(|e| Error { timed_out, ..failed(ACTION, &e) })?;
        let prepared: std::io::Result<File> =
            target.write_header(&without_domid(config.into_json())).and_then(|()| target.file().try_clone());
        let stream =
            prepared.map_err(|e| Error::new(ACTION, format!("can't write {}: {e}", target.path().display())))?;
        self.suspend_to(ACTION, domain.domid, stream.into(), SaveFlags::default(), deadline)
    }

    fn send(&self, domain: &Domain, stream: OwnedFd, debug: bool, deadline: Option<Instant>) -> Result<(), Error> {
        self.suspend_to("migrate", domain.domid, stream, SaveFlags { live: true, debug }, deadline)
    }

    fn rename(&self, domid: Domid, from: &str, to: &str) -> Result<(), Error> {
        self.context.rename(domid, Some(from), to).map_err(|e| failed("rename", &e))
    }

    fn resume(&self, domid: Domid) -> Result<(), Error> {
        self.context.resume(domid, true).and_then(Operation::wait).map_err(|e| failed("resume", &e))
    }

    fn request_shutdown(&self, domain: &Domain) -> Result<(), Error> {
        // The request is in xenstore once the call has returned; the guest's answer is not waited for.
        match self.ask_to_shut_down(domain.domid) {
            Err(e) if e.code() == Some(ErrorCode::DomainNotFound) => Ok(()),
            asked => asked.map(drop).map_err(|e| failed("shutdown", &e)),
        }
    }

    fn shutdown(&self, domain: &Domain, deadline: Option<Instant>) -> Result<Ending, Error> {
        const ACTION: &str = "shutdown";
        let fail = |e: xenlight::Error| failed(ACTION, &e);
        let mut events = self.context.domain_events();
        events.watch(domain.domid, domain.uuid).map_err(fail)?;
        let mut request = match self.ask_to_shut_down(domain.domid) {
            Ok(request) => request,
            Err(e) if e.code() == Some(ErrorCode::DomainNotFound) => return Ok(Ending::Gone),
            Err(e) => return Err(fail(e)),
        };
        loop {
            match next(&mut events, &mut request, deadline, &self.interrupt) {
                Some(Seen::Domain(event)) => match event.map_err(fail)?.change {
                    DomainChange::Shutdown(xenlight::ShutdownReason::Suspend) => {}
                    DomainChange::Shutdown(why) => return Ok(Ending::Shutdown(reason(why))),
                    DomainChange::Death => return Ok(Ending::Gone),
                    DomainChange::Ejected(_) => {}
                },
                Some(Seen::Answer(Ok(()))) => {}
                // It did not react, as a guest does that is still booting: ask again.
                Some(Seen::Answer(Err(e))) if e.code() == Some(ErrorCode::TimedOut) => {
                    request = self.ask_to_shut_down(domain.domid).map_err(fail)?;
                }
                // It was gone before it could answer, which its event will say.
                Some(Seen::Answer(Err(e)))
                    if matches!(e.code(), Some(ErrorCode::DomainNotFound | ErrorCode::DomainDestroyed)) => {}
                Some(Seen::Answer(Err(e))) => return Err(fail(e)),
                None => {
                    let error = Error::new(ACTION, "it has not shut down");
                    return Err(Error { timed_out: true, ..error });
                }
            }
        }
    }

    fn destroy(&self, domid: Domid) -> Result<(), Error> {
        match self.context.destroy(domid).and_then(Operation::wait) {
            Err(e) if e.code() == Some(ErrorCode::DomainNotFound) => Ok(()),
            other => other.map_err(|e| failed("destroy", &e)),
        }
    }

    fn configuration(&self, domid: Domid) -> Result<Value, Error> {
        let config = self.context.configuration(domid).and_then(Operation::wait);
        config.map(DomainConfig::into_json).map_err(|e| failed("read the configuration", &e))
    }

    fn sysrq(&self, domid: Domid, letter: char) -> Result<(), Error> {
        self.context.sysrq(domid, letter).map_err(|e| failed("sysrq", &e))
    }

    fn monitoring(&self) -> Option<&dyn Monitoring> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_ends_waiting_for_a_future_that_never_comes() {
        let before = Instant::now();
        let limit = Duration::from_millis(30);
        assert_eq!(block_until(std::future::pending::<()>(), Some(before + limit), None), None);
        assert!(before.elapsed() >= limit);
    }

    #[test]
    fn being_asked_to_end_ends_waiting() {
        let interrupt = Interrupt::new().expect("a descriptor");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| block_until(std::future::pending::<()>(), None, Some(&interrupt)));
            interrupt.ask();
            assert_eq!(waiting.join().expect("no panic"), None);
        });
        // What is there already counts all the same.
        assert_eq!(block_until(std::future::ready(1), None, Some(&interrupt)), Some(1));
    }
}
