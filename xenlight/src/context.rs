//! The libxl context and the thread that drives its events.

use std::collections::HashMap;
use std::ffi::{c_char, c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread::{JoinHandle, ThreadId};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, eventfd};
use xenlight_sys::Release;
use xenlight_sys::libxl as sys;

use crate::Domid;
use crate::call::{self, Call};
use crate::children::{Children, Registered};
use crate::error::{Cause, Error, ErrorCode, Result};
use crate::events::{Generator, Registry, disable};
use crate::fork;
use crate::library::Library;
use crate::log::{LogLevel, LogSink, Logger};
use crate::sync::lock;

/// The hypervisor's version, as libxl reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major number, e.g. 4.
    pub major: u32,
    /// Minor number, e.g. 17.
    pub minor: u32,
    /// The hypervisor's command line.
    pub commandline: String,
}

/// Something that must hear when the event machinery breaks.
pub(crate) trait Interrupt: Send + Sync {
    fn interrupt(&self, logger: &Logger, why: &str);
}

/// What a context's users share. The [`Pump`] owns the C context and frees it.
pub(crate) struct Shared {
    lib: Library,
    ctx: NonNull<sys::libxl_ctx>,
    /// The process that the context was opened in.
    pub(crate) pid: libc::pid_t,
    children: Children,
    pub(crate) logger: Logger,
    /// Handles, operations and event streams. The context is freed when there are none left.
    users: AtomicUsize,
    wake: OwnedFd,
    pub(crate) registry: Registry,
    disaster: Mutex<Option<String>>,
    waiting: Mutex<HashMap<usize, Weak<dyn Interrupt>>>,
    /// Until the event thread has it, which is not started before there is something to wait for.
    idle: Mutex<Option<Pump>>,
    /// The event thread.
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The event thread's number, once it runs.
    thread_id: OnceLock<ThreadId>,
    /// Generators to be given up, which the event thread does.
    given_up: Mutex<Vec<Generator>>,
    version: Mutex<Option<Version>>,
}

// SAFETY: libxl documents its context as usable from several threads at once (it has a lock of its own); the
// exceptions, version query and hook registration, are done once in `Context::open` before any sharing.
unsafe impl Send for Shared {}
// SAFETY: as above; everything else in here is behind mutexes or atomic.
unsafe impl Sync for Shared {}

impl Shared {
    /// Enters libxl with this context, for one call.
    pub(crate) fn enter(&self, action: &'static str, domid: Option<Domid>) -> Result<Call<'_>> {
        self.lib.enter(Some(&self.logger)).map_err(|cause| Error::new(action, domid, cause))
    }

    /// libxl's functions, for those that neither use a context nor call back.
    pub(crate) fn lib(&self) -> &sys::Libxenlight {
        self.lib.functions()
    }

    /// Refuses to wait where that would be for ever: in a log sink, which libxl waits for, and on the event thread.
    pub(crate) fn may_wait(&self, action: &'static str, domid: Option<Domid>) -> Result<()> {
        let why = if call::is_in_sink() {
            "a log sink must not wait for libxl, which is waiting for it"
        } else if self.is_event_thread() {
            "the event thread, which runs a task's waker, must not wait for itself"
        } else {
            return Ok(());
        };
        Err(Error::new(action, domid, Cause::NotAllowed(why)))
    }

    fn is_event_thread(&self) -> bool {
        self.thread_id.get() == Some(&std::thread::current().id())
    }

    /// Makes the event thread give up a generator, wherever this is called.
    pub(crate) fn give_up(&self, generator: Generator) {
        lock(&self.given_up).push(generator);
        self.wake_pump();
    }

    pub(crate) fn ctx(&self) -> *mut sys::libxl_ctx {
        self.ctx.as_ptr()
    }

    pub(crate) fn release(&self) -> Release {
        self.lib.release()
    }

    pub(crate) fn children(&self) -> Children {
        self.children
    }

    pub(crate) fn disaster(&self) -> Option<String> {
        lock(&self.disaster).clone()
    }

    /// Has `waiter` told when the event machinery breaks, until it is dropped or has left.
    pub(crate) fn register_waiter(&self, key: usize, waiter: Weak<dyn Interrupt>) {
        lock(&self.waiting).insert(key, waiter);
    }

    pub(crate) fn unregister_waiter(&self, key: usize) {
        lock(&self.waiting).remove(&key);
    }

    fn declare_disaster(&self, why: &str) {
        lock(&self.disaster).get_or_insert_with(|| why.to_owned());
        self.logger.note(LogLevel::Critical, format!("libxl's event handling broke: {why}"));
        let waiting: Vec<_> = lock(&self.waiting).values().filter_map(Weak::upgrade).collect();
        for waiter in waiting {
            waiter.interrupt(&self.logger, why);
        }
        self.registry.interrupt_all(&self.logger);
    }

    /// Sees to it that the event thread runs, which drives what is going to be started.
    pub(crate) fn drive(&self, action: &'static str, domid: Option<Domid>) -> Result<()> {
        let mut thread = lock(&self.thread);
        let Some(shared) = lock(&self.idle).as_ref().map(|pump| Arc::clone(&pump.shared)) else { return Ok(()) };
        if thread.is_none() {
            let run = move || {
                // Nobody else sets it.
                let _ = shared.thread_id.set(std::thread::current().id());
                let pump = lock(&shared.idle).take();
                drop(shared);
                if let Some(pump) = pump {
                    pump.run();
                }
            };
            let started = std::thread::Builder::new().name("libxl events".into()).spawn(run);
            *thread = Some(started.map_err(|e| Error::new(action, domid, Cause::System(e)))?);
        }
        Ok(())
    }

    /// Has the thread that waits for libxl ask it anew what to wait for.
    pub(crate) fn wake_pump(&self) {
        // An eventfd write can only fail when its counter is full, and then the reader is woken anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Turns a return value into a result, with what libxl logged since `mark`.
    pub(crate) fn check(
        &self,
        action: &'static str,
        domid: Option<Domid>,
        mark: crate::log::Mark,
        rc: c_int,
    ) -> Result<()> {
        if rc == 0 {
            return Ok(());
        }
        Err(self.failed(action, domid, mark, Cause::Libxl(ErrorCode::from_raw(rc))))
    }

    pub(crate) fn failed(
        &self,
        action: &'static str,
        domid: Option<Domid>,
        mark: crate::log::Mark,
        cause: Cause,
    ) -> Error {
        let mut error = Error::new(action, domid, cause);
        error.log = self.logger.since(mark, domid);
        error
    }
}

/// A counted reference that keeps the C context alive: one per handle, operation and event stream.
pub(crate) struct User(Arc<Shared>);

impl std::ops::Deref for User {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Clone for User {
    fn clone(&self) -> Self {
        // A new user can only come from an existing one, so the count can't rise again from zero.
        self.0.users.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.0.users.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        self.0.wake_pump();
        if call::is_inside() || self.0.is_event_thread() {
            // A thread inside libxl may hold what the event thread waits for, so it leaves the rest to that. There is one
            // unless nothing was ever started. Where none can be made, the context stays open.
            let _ = self.0.drive("close libxl", None);
            return;
        }
        // Anyone else waits, so that a dropped context is really gone.
        let thread = lock(&self.0.thread).take();
        match thread {
            // Panics on the event thread are caught there.
            Some(thread) => drop(thread.join()),
            // There was nothing to wait for, and nobody else can begin anything any more.
            None => {
                let pump = lock(&self.0.idle).take();
                drop(pump);
            }
        }
    }
}

/// A connection to libxl: logger, event thread and everything that can be asked.
///
/// Clones share one libxl context. From its first [`Operation`] or watch of a domain on it has one event thread, which
/// sleeps in `poll` until libxl has something to do; completion callbacks run on it. The C context is freed when the
/// last clone, [`Operation`] and [`DomainEvents`] is gone: an operation that was started goes on even if nobody keeps a
/// handle.
///
/// libxl builds a new domain's memory, and dumps a core, inside the *calling* thread with the context locked, so guests
/// that are created side by side need one context each. Everything else overlaps on one. No call with one context keeps
/// another context waiting.
///
/// Wraps `libxl_ctx`.
///
/// [`Operation`]: crate::Operation
/// [`DomainEvents`]: crate::DomainEvents
#[derive(Clone)]
pub struct Context {
    pub(crate) user: User,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("release", &self.user.release()).finish_non_exhaustive()
    }
}

/// The hooks handed to libxl, which keeps pointers to them for the life of the context.
struct Hooks {
    events: sys::libxl_event_hooks,
    children: sys::libxl_childproc_hooks,
}

impl Context {
    /// Connects to the hypervisor and to xenstored through `library`.
    ///
    /// `children` says who handles SIGCHLD in this process; `sink`, if given, receives every log line.
    ///
    /// Blocks until xenstored has taken the connection, without a limit.
    ///
    /// # Errors
    /// When libxl can't open the hypervisor's privileged interface or xenstored (not dom0, not root, xenstored not
    /// running), or a system resource is missing. The log lines in the error say which. [`Cause::NotAllowed`] when
    /// `children` does not go with what this process has: another SIGCHLD handler, or contexts that reap.
    ///
    /// Wraps `libxl_ctx_alloc`, `libxl_event_register_callbacks`, `libxl_childproc_setmode`.
    #[doc(alias = "libxl_ctx_alloc")]
    pub fn open(library: &Library, children: Children, sink: Option<Box<dyn LogSink>>) -> Result<Self> {
        Self::open_with(library, children, sink.map(Arc::from))
    }

    /// Opens a context beside this one, with the same choices.
    pub(crate) fn open_another(&self) -> Result<Self> {
        Self::open_with(&self.user.lib, self.user.children, self.user.logger.sink())
    }

    fn open_with(library: &Library, children: Children, sink: Option<Arc<dyn LogSink>>) -> Result<Self> {
        const ACTION: &str = "open libxl";
        let system = |e: std::io::Error| Error::new(ACTION, None, Cause::System(e));
        let logger = Logger::new(sink).map_err(system)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::new(ACTION, None, Cause::System(e.into())))?;
        let mark = logger.mark();
        let mut raw = std::ptr::null_mut();
        let lib = library.enter(None).map_err(|cause| Error::new(ACTION, None, cause))?;
        // SAFETY: `raw` is a place for the result; the logger is owned by `Shared`, which is dropped after the
        // `Pump` has freed the context.
        let rc = unsafe { lib.libxl_ctx_alloc(&mut raw, sys::LIBXL_VERSION as c_int, 0, logger.as_raw()) };
        let Some(ctx) = NonNull::new(raw).filter(|_| rc == 0) else {
            let mut error = Error::new(ACTION, None, Cause::Libxl(ErrorCode::from_raw(rc)));
            error.log = logger.since(mark, None);
            return Err(error);
        };
        let code = lib.libxl_ctx_alloc as usize;
        let (registered, permission) = Registered::take(code, children).map_err(|cause| {
            // SAFETY: nobody else has the new context, and no operation was started with it.
            unsafe { lib.libxl_ctx_free(ctx.as_ptr()) };
            Error::new(ACTION, None, cause)
        })?;
        let shared = Arc::new(Shared {
            lib: library.clone(),
            ctx,
            // SAFETY: asks for a number.
            pid: unsafe { libc::getpid() },
            children,
            logger,
            users: AtomicUsize::new(1),
            wake,
            registry: Registry::default(),
            disaster: Mutex::new(None),
            waiting: Mutex::new(HashMap::new()),
            idle: Mutex::new(None),
            thread: Mutex::new(None),
            thread_id: OnceLock::new(),
            given_up: Mutex::default(),
            version: Mutex::new(None),
        });
        let hooks = Box::pin(Hooks {
            events: sys::libxl_event_hooks {
                event_occurs_mask: 1 << sys::LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN
                    | 1 << sys::LIBXL_EVENT_TYPE_DOMAIN_DEATH
                    | 1 << sys::LIBXL_EVENT_TYPE_DISK_EJECT,
                event_occurs: Some(on_event),
                disaster: Some(on_disaster),
            },
            children: sys::libxl_childproc_hooks {
                chldowner: children.raw(),
                fork_replacement: Some(fork::tested),
                reaped_callback: None,
            },
        });
        let user_data = Arc::as_ptr(&shared).cast_mut().cast::<c_void>();
        // SAFETY: `hooks` and `shared` go to the `Pump` below, which frees the context before it drops them, so both
        // pointers stay good as long as the context does. Nothing else uses the context yet.
        unsafe {
            lib.libxl_event_register_callbacks(ctx.as_ptr(), &hooks.events, user_data);
            lib.libxl_childproc_setmode(ctx.as_ptr(), &hooks.children, user_data);
        }
        drop(permission);
        // SAFETY: the context is valid and not shared yet, as this call, which fills a cache, requires.
        let version = unsafe { read_version(lib.libxl_get_version_info(ctx.as_ptr())) };
        *lock(&shared.version) = version;

        *lock(&shared.idle) = Some(Pump { shared: Arc::clone(&shared), _hooks: hooks, _registered: registered });
        Ok(Self { user: User(shared) })
    }

    /// The libxl release that this context uses.
    pub fn release(&self) -> Release {
        self.user.release()
    }

    /// The running hypervisor's version.
    ///
    /// # Errors
    /// When the hypervisor did not answer the query, which is made once, in [`Context::open`].
    ///
    /// Wraps `libxl_get_version_info`.
    #[doc(alias = "libxl_get_version_info")]
    pub fn version(&self) -> Result<Version> {
        lock(&self.user.version)
            .clone()
            .ok_or_else(|| Error::new("query the hypervisor's version", None, Cause::Libxl(ErrorCode::Fail)))
    }

    /// Tells libxl that the application has reaped a child. Only for [`Children::Application`].
    ///
    /// Returns whether the child was one of libxl's. Must not be called from a signal handler.
    ///
    /// # Errors
    /// [`Cause::NotAllowed`] for a context that was opened with another choice.
    ///
    /// Wraps `libxl_childproc_reaped`.
    #[doc(alias = "libxl_childproc_reaped")]
    pub fn child_exited(&self, pid: i32, status: i32) -> Result<bool> {
        const ACTION: &str = "report a child's exit to libxl";
        if self.user.children != Children::Application {
            let cause = Cause::NotAllowed("libxl reaps the children of this context itself");
            return Err(Error::new(ACTION, None, cause));
        }
        let mark = self.user.logger.mark();
        let lib = self.user.enter(ACTION, None)?;
        // SAFETY: the context is alive as long as `self.user`; the other arguments are plain numbers.
        let rc = unsafe { lib.libxl_childproc_reaped(self.user.ctx(), pid, status) };
        if rc == sys::ERROR_UNKNOWN_CHILD {
            return Ok(false);
        }
        self.user.check(ACTION, None, mark, rc).map(|()| true)
    }
}

/// # Safety
/// `info` is null or points to a `libxl_version_info` that stays valid during the call.
unsafe fn read_version(info: *const sys::libxl_version_info) -> Option<Version> {
    // SAFETY: as the caller promises.
    let info = unsafe { info.as_ref() }?;
    Some(Version {
        major: u32::try_from(info.xen_version_major).ok()?,
        minor: u32::try_from(info.xen_version_minor).ok()?,
        // SAFETY: a string of libxl's that belongs to the context, or null.
        commandline: unsafe { string(info.commandline) }.unwrap_or_default(),
    })
}

/// Copies a C string. Bytes that are not UTF-8 become replacement characters.
///
/// # Safety
/// `s` is null or a NUL-terminated string that stays valid during the call.
pub(crate) unsafe fn string(s: *const c_char) -> Option<String> {
    if s.is_null() {
        return None;
    }
    // SAFETY: not null, and NUL-terminated as the caller promises.
    Some(unsafe { std::ffi::CStr::from_ptr(s) }.to_string_lossy().into_owned())
}

/// What the event thread does: owns the C context, drives it while there are users, and frees it.
struct Pump {
    shared: Arc<Shared>,
    _hooks: Pin<Box<Hooks>>,
    _registered: Registered,
}

impl Drop for Pump {
    fn drop(&mut self) {
        // SAFETY: the context is ours alone now: there are no users left, and every operation in flight and every event
        // generator counts as one. Nothing uses `ctx` afterwards.
        let rc = unsafe { self.enter().libxl_ctx_free(self.shared.ctx()) };
        debug_assert_eq!(rc, 0, "libxl_ctx_free has no documented failure");
    }
}

impl Pump {
    /// Enters libxl on the thread that drives it. No log sink runs on that when it comes here.
    fn enter(&self) -> Call<'_> {
        self.shared.lib.enter_own(&self.shared.logger)
    }

    /// Gives up the generators that nobody wants any more.
    fn disable(&self) {
        let given_up = std::mem::take(&mut *lock(&self.shared.given_up));
        for generator in given_up {
            // SAFETY: the generator is of this context, whose only user of it is gone.
            unsafe { disable(&self.enter(), self.shared.ctx(), generator) };
        }
    }

    fn run(self) {
        let own = |fd: c_int| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let wake = own(self.shared.wake.as_raw_fd());
        let children = own(std::os::fd::AsFd::as_fd(&self.shared.logger.child_fd()).as_raw_fd());
        // The first two are ours, the rest libxl fills in.
        let mut fds = vec![own(-1); 18];
        // After a disaster a broken descriptor stays readable for ever; it is then left out.
        let mut broken: Vec<c_int> = Vec::new();
        while self.shared.users.load(Ordering::Acquire) > 0 {
            fds[0] = wake;
            fds[1] = children;
            self.disable();
            let Some((count, timeout)) = self.prepare(&mut fds) else { return self.retire() };
            for fd in &mut fds[2..2 + count] {
                if broken.contains(&fd.fd) {
                    fd.fd = -1;
                }
            }
            // SAFETY: `fds` holds at least `2 + count` initialised entries.
            let ready = unsafe { libc::poll(fds.as_mut_ptr(), (2 + count) as libc::nfds_t, timeout) };
            if ready < 0 {
                let e = std::io::Error::last_os_error();
                if e.kind() != std::io::ErrorKind::Interrupted {
                    self.shared.declare_disaster(&format!("poll: {e}"));
                    return self.retire();
                }
                for fd in &mut fds {
                    fd.revents = 0;
                }
            }
            if fds[0].revents != 0 {
                let mut count = [0u8; 8];
                // Only resets the counter; that it was woken is all that matters.
                let _ = rustix::io::read(&self.shared.wake, &mut count);
            }
            if fds[1].revents != 0 {
                self.shared.logger.drain_children();
            }
            // SAFETY: these are the entries that `prepare` had filled in for this round.
            unsafe {
                self.enter().libxl_osevent_afterpoll(self.shared.ctx(), count as c_int, fds[2..].as_ptr(), now());
            }
            if self.shared.disaster().is_some() {
                let bad = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;
                broken.extend(fds[2..2 + count].iter().filter(|fd| fd.revents & bad != 0).map(|fd| fd.fd));
            }
        }
        self.disable();
    }

    /// Asks libxl what to wait for: how many descriptors (after the first two) and how long in ms.
    fn prepare(&self, fds: &mut Vec<libc::pollfd>) -> Option<(usize, c_int)> {
        loop {
            let mut count = (fds.len() - 2) as c_int;
            let mut timeout: c_int = -1;
            // SAFETY: `fds[2..]` has room for `count` entries; both numbers are places for libxl's answers.
            let rc = unsafe {
                self.enter().libxl_osevent_beforepoll(
                    self.shared.ctx(),
                    &mut count,
                    fds[2..].as_mut_ptr(),
                    &mut timeout,
                    now(),
                )
            };
            match (rc, usize::try_from(count)) {
                (0, Ok(count)) => return Some((count, timeout)),
                (sys::ERROR_BUFFERFULL, Ok(needed)) if needed + 2 > fds.len() => {
                    fds.resize(needed + 2, fds[0]);
                }
                _ => {
                    self.shared.declare_disaster(&format!(
                        "libxl can't say what to wait for: {}",
                        ErrorCode::from_raw(rc)
                    ));
                    return None;
                }
            }
        }
    }

    /// Gives up driving libxl, without freeing a context that may have operations in flight.
    fn retire(self) {
        std::mem::forget(self);
    }
}

fn now() -> libc::timeval {
    // libxl takes wall-clock time here. A clock before 1970 counts as its start.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    libc::timeval { tv_sec: since.as_secs() as i64, tv_usec: i64::from(since.subsec_micros()) }
}

/// `libxl_event_hooks.event_occurs`: may be called on any thread that is inside libxl, and may call libxl.
unsafe extern "C" fn on_event(user: *mut c_void, event: *mut sys::libxl_event) {
    // SAFETY: `user` is the `Shared` that the event thread keeps until it has freed the context.
    let shared = unsafe { &*user.cast::<Shared>() };
    call::called_back(|| {
        // SAFETY: libxl hands over a valid event, which is ours until it is freed below, or by whoever has kept it.
        let kept = unsafe { shared.registry.deliver(shared, event) };
        if !kept {
            // SAFETY: the event came from libxl and is not used any more. The call uses no context.
            unsafe { shared.lib().libxl_event_free(shared.ctx(), event) };
        }
    });
}

/// `libxl_event_hooks.disaster`: called with libxl's locks held. Nothing of the caller's runs here: wakers are called when
/// this thread has left libxl.
unsafe extern "C" fn on_disaster(
    user: *mut c_void,
    _type: sys::libxl_event_type,
    message: *const c_char,
    errnoval: c_int,
) {
    // SAFETY: as in `on_event`.
    let shared = unsafe { &*user.cast::<Shared>() };
    // SAFETY: libxl passes a string that lives during the call.
    let mut why = unsafe { string(message) }.unwrap_or_else(|| "no reason given".into());
    if errnoval > 0 {
        why = format!("{why}: {}", std::io::Error::from_raw_os_error(errnoval));
    }
    call::called_back(|| shared.declare_disaster(&why));
}
