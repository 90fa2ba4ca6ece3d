//! Contexts and how operations run in them: the lock, the event loop, completions, events.
//!
//! As in libxl, everything of a context happens under one recursive lock, and everything that the caller is told
//! (completions, events, disasters) is told by whichever thread releases that lock for good, after releasing it.

use crate::abi::{self, AsyncopHow, EventHooks, OsHooks, Raw, Release, error, event};
use crate::calls::misc::VersionInfo;
use crate::script::{Complete, Point, Rule, Script};
use crate::world::{Call, Store, World, now_ms};
use serde_json::{Value, json};
use std::cell::Cell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{CString, c_char, c_int, c_short, c_void};
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn fake_shim_message(
        logger: *mut c_void,
        level: c_int,
        errnoval: c_int,
        context: *const c_char,
        text: *const c_char,
    );
    fn fake_shim_progress(
        logger: *mut c_void,
        context: *const c_char,
        doing: *const c_char,
        percent: c_int,
        done: libc::c_ulong,
        total: libc::c_ulong,
    );
}

pub fn locked<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---------------------------------------------------------------------------------------------------------------
// What this copy of the library knows.

pub struct Fake {
    pub script: Mutex<Script>,
    store: Mutex<Arc<Store>>,
    contexts: Mutex<HashMap<usize, Arc<Ctx>>>,
    freed: Mutex<HashSet<usize>>,
    /// Refusals that were recorded instead of being fatal.
    pub refusals: Mutex<Vec<String>>,
    pub events_alive: Mutex<HashSet<usize>>,
    pub configs: Mutex<HashMap<u64, Value>>,
    pub next_config: AtomicU64,
    environment: AtomicBool,
    state_directory: Mutex<Option<std::path::PathBuf>>,
}

pub static FAKE: LazyLock<Fake> = LazyLock::new(|| Fake {
    script: Mutex::default(),
    store: Mutex::new(Arc::new(Store::memory())),
    contexts: Mutex::default(),
    freed: Mutex::default(),
    refusals: Mutex::default(),
    events_alive: Mutex::default(),
    configs: Mutex::default(),
    next_config: AtomicU64::new(1),
    environment: AtomicBool::new(false),
    state_directory: Mutex::default(),
});

/// The release whose library this copy stands for: by its file name.
pub fn release() -> Release {
    static RELEASE: LazyLock<Release> = LazyLock::new(|| {
        let mut info = libc::Dl_info {
            dli_fname: std::ptr::null(),
            dli_fbase: std::ptr::null_mut(),
            dli_sname: std::ptr::null(),
            dli_saddr: std::ptr::null_mut(),
        };
        // SAFETY: dladdr fills `info`, whose strings belong to the loader and live as long as this code.
        let path = unsafe {
            libc::dladdr(release as *const c_void, &raw mut info);
            abi::text(info.dli_fname)
        };
        path.and_then(|p| Release::of_file_name(&p)).unwrap_or(Release { major: 4, minor: 17 })
    });
    *RELEASE
}

/// The caller did what the real library would not survive.
pub fn refuse(what: &str) {
    eprintln!("fake-libxl: refused: {what}");
    locked(&FAKE.refusals).push(what.to_owned());
    let store = locked(&FAKE.store).clone();
    store.with(|w| w.refusals.push(what.to_owned()));
    if !locked(&FAKE.script).record_refusals {
        std::process::abort();
    }
}

/// Reads FAKE_LIBXL_SCRIPT and FAKE_LIBXL_STATE, once.
pub fn read_environment() {
    if FAKE.environment.swap(true, Ordering::SeqCst) {
        return;
    }
    if let Some(path) = std::env::var_os("FAKE_LIBXL_STATE") {
        let path = Path::new(&path);
        *locked(&FAKE.store) = Arc::new(Store::file(path));
        *locked(&FAKE.state_directory) = Some(match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => ".".into(),
        });
    }
    if let Some(path) = std::env::var_os("FAKE_LIBXL_SCRIPT") {
        let result = std::fs::read_to_string(&path)
            .map_err(|e| e.to_string())
            .and_then(|text| serde_json::from_str::<Value>(&text).map_err(|e| e.to_string()))
            .and_then(|v| locked(&FAKE.script).add(&v));
        if let Err(e) = result {
            // A script that isn't obeyed would let a test pass for the wrong reason.
            eprintln!("fake-libxl: {}: {e}", Path::new(&path).display());
            std::process::abort();
        }
    }
}

/// Looks at the world or changes it, and wakes who waits for what changed.
pub fn world<R>(f: impl FnOnce(&mut World) -> R) -> R {
    let store = locked(&FAKE.store).clone();
    let mut changed = false;
    let result = store.with(|w| {
        let before = (w.releases, w.due.len(), w.ejects.len());
        // What has become due on the way here is somebody's news as well.
        let advanced = std::mem::take(&mut w.has_advanced);
        let result = f(w);
        changed = advanced || before != (w.releases, w.due.len(), w.ejects.len());
        result
    });
    if changed {
        for ctx in all_contexts() {
            ctx.hear();
        }
    }
    result
}

fn all_contexts() -> Vec<Arc<Ctx>> {
    locked(&FAKE.contexts).values().cloned().collect()
}

/// Forgets rules, the world and everything counted. Contexts stay as they are.
pub fn reset() {
    *locked(&FAKE.script) = Script::default();
    locked(&FAKE.refusals).clear();
    world(|w| *w = World::default());
    for ctx in all_contexts() {
        locked(&ctx.inner).releases_seen = 0;
    }
}

/// What `fake_state` answers.
pub fn state() -> Value {
    let contexts = all_contexts();
    let mut operations = Vec::new();
    let mut generators = 0;
    for ctx in &contexts {
        let inner = locked(&ctx.inner);
        generators += inner.generators.len();
        for op in &inner.ops {
            operations.push(json!({"call": op.call, "domid": op.domid, "aborted": op.aborted,
                                   "synchronous": matches!(op.how, How::Sync(_))}));
        }
    }
    let mut value = world(|w| serde_json::to_value(w).expect("a world is JSON"));
    value["refusals"] = json!(*locked(&FAKE.refusals));
    value["live"] = json!({
        "contexts": contexts.len(),
        "operations": operations,
        "generators": generators,
        "events": locked(&FAKE.events_alive).len(),
        "configs": locked(&FAKE.configs).len(),
    });
    value
}

// ---------------------------------------------------------------------------------------------------------------
// The locks.

/// Lock of libxencall for the buffers of all contexts of a process, which each hypercall takes for a moment.
static BUFFERS: Mutex<()> = Mutex::new(());

/// Takes the lock of a hypercall. For ever, in a child that was forked while another thread had it.
pub fn use_buffers() {
    drop(locked(&BUFFERS));
}

#[derive(Default)]
struct RecursiveLock {
    holder: Mutex<(Option<ThreadId>, u32)>,
    freed: Condvar,
}

impl RecursiveLock {
    fn lock(&self) {
        let me = thread::current().id();
        let mut holder = locked(&self.holder);
        while holder.0.is_some_and(|h| h != me) {
            holder = self.freed.wait(holder).unwrap_or_else(PoisonError::into_inner);
        }
        *holder = (Some(me), holder.1 + 1);
    }

    /// True if that was the last of this thread's holds: it then still holds the lock and must `release` it.
    fn last(&self) -> bool {
        let mut holder = locked(&self.holder);
        if holder.1 > 1 {
            holder.1 -= 1;
            return false;
        }
        true
    }

    fn release(&self) {
        *locked(&self.holder) = (None, 0);
        self.freed.notify_one();
    }

    fn mine(&self) -> bool {
        locked(&self.holder).0 == Some(thread::current().id())
    }
}

/// Spends so long inside a call, as building a domain does: with hypercalls, which take a tenth of the time.
fn stall(time: Duration, hypercall: Duration) {
    let end = Instant::now() + time;
    let pause = |time: Duration| thread::sleep(time.min(end.saturating_duration_since(Instant::now())));
    while Instant::now() < end {
        let buffers = locked(&BUFFERS);
        pause(hypercall);
        drop(buffers);
        pause(hypercall * 9);
    }
}

fn default_sigchld() -> bool {
    // SAFETY: asks for the present action, for which all-zero is a valid start.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut action);
        action.sa_sigaction == libc::SIG_DFL
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Contexts.

/// A signal to a thread of ours that waits or copies data.
pub struct Cancel {
    fd: RawFd,
    pub cancelled: AtomicBool,
}

impl Cancel {
    fn new() -> Arc<Cancel> {
        Arc::new(Cancel { fd: eventfd(), cancelled: AtomicBool::new(false) })
    }

    fn set(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        poke(self.fd);
    }

    pub fn is_set(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Waits so long, or for ever; true if cancelled.
    pub fn wait(&self, time: Option<Duration>) -> bool {
        wait_for(&mut [(self.fd, libc::POLLIN)], time);
        self.is_set()
    }

    /// Waits until `fd` is ready for `events`; false if cancelled first.
    pub fn ready(&self, fd: RawFd, events: c_short) -> bool {
        wait_for(&mut [(self.fd, libc::POLLIN), (fd, events)], None);
        !self.is_set()
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and nobody else closes it.
        unsafe { libc::close(self.fd) };
    }
}

fn eventfd() -> RawFd {
    // SAFETY: takes numbers, returns a descriptor.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0, "fake-libxl: eventfd: {}", std::io::Error::last_os_error());
    fd
}

fn poke(fd: RawFd) {
    let one = 1u64;
    // SAFETY: writes 8 bytes from a local; a full counter is as good as a written one.
    unsafe { libc::write(fd, (&raw const one).cast(), 8) };
}

fn drain(fd: RawFd) -> bool {
    let mut buffer = [0u64; 512];
    let mut any = false;
    // SAFETY: reads into a local buffer of the given size; the descriptors are non-blocking.
    while unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), size_of_val(&buffer)) } > 0 {
        any = true;
    }
    any
}

/// poll(2) on a few descriptors.
fn wait_for(fds: &mut [(RawFd, c_short)], time: Option<Duration>) {
    let end = time.map(|t| Instant::now() + t);
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|&(fd, events)| libc::pollfd { fd, events, revents: 0 }).collect();
    loop {
        let ms = end.map_or(-1, |end| {
            let left = end.saturating_duration_since(Instant::now());
            // Rounded up, so that a wait of under a millisecond doesn't spin.
            c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX)
        });
        // SAFETY: the array is ours and has that many elements.
        let n = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, ms) };
        if n >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return;
        }
    }
}

pub struct Ctx {
    /// The address that the caller knows this context by.
    pub handle: usize,
    logger: usize,
    lock: RecursiveLock,
    pub inner: Mutex<Inner>,
    app_poller: RawFd,
    inotify: Option<RawFd>,
}

#[derive(Default)]
pub struct Inner {
    ops: Vec<Op>,
    next_op: u64,
    timers: Vec<(Instant, Work)>,
    work: VecDeque<Work>,
    outbox: VecDeque<Delivery>,
    /// Events for `libxl_event_check` and `_wait`.
    pub queue: VecDeque<usize>,
    pub generators: Vec<Generator>,
    /// Whether the watch for the end of domains is set.
    watching: bool,
    /// Whether somebody waits who knows that what happens on the host is watched.
    watch_is_known: bool,
    /// The watch's first firing, which comes of setting it.
    fire: bool,
    releases_seen: u64,
    event_hooks: Option<(usize, usize)>,
    os_hooks: Option<(usize, usize)>,
    os_fds: Vec<(RawFd, usize)>,
    pub child_mode: c_int,
    pub child_hooks: Option<(usize, usize)>,
    hows: HashSet<(usize, u64)>,
    pollers: Vec<RawFd>,
    /// Who is telling the caller something, and whether that is a thread of ours.
    delivering: Vec<(ThreadId, bool)>,
    /// Until when a timeout is registered with the caller's loop for what is due in the world.
    os_due: Option<u64>,
    pub version_info: Option<Box<VersionInfo>>,
    alive: bool,
}

impl Inner {
    /// Whether what happens on the host is of interest.
    fn watches(&self) -> bool {
        !self.generators.is_empty() || !self.ops.is_empty()
    }
}

/// An event generator.
pub struct Generator {
    pub handle: usize,
    pub domid: u32,
    pub user: u64,
    pub vdev: Option<String>,
    shutdown_reported: bool,
    death_reported: bool,
}

#[derive(Clone)]
enum How {
    Sync(Arc<Mutex<Option<c_int>>>),
    Async(AsyncopHow),
}

/// How an operation came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself: do what it does and say what came of it.
    Natural,
    /// As a rule says: fail with this.
    Error(c_int),
    /// By `libxl_ao_abort`.
    Aborted,
}

/// What data copying came to, for `Parts::io`.
pub type Io = Box<dyn FnOnce(&Cancel) -> End + Send>;

/// What an operation consists of.
pub struct Parts {
    /// Whether libxl has child processes while it runs.
    pub children: bool,
    /// How long it takes if no rule says.
    pub delay_ms: u64,
    /// What it does on a helper's side, outside the lock.
    pub io: Option<Io>,
    /// What ends it early, unless a rule says when it ends.
    pub until: Option<fn(&World, u32) -> bool>,
    /// Applies the outcome and returns the result.
    pub finish: Box<dyn FnOnce(End) -> c_int + Send>,
}

struct Op {
    id: u64,
    call: String,
    domid: u32,
    how: How,
    aborted: bool,
    children: bool,
    rule: Rule,
    record: usize,
    /// Set while a thread of ours works for the operation.
    cancel: Option<Arc<Cancel>>,
    until: Option<fn(&World, u32) -> bool>,
    finish: Option<Box<dyn FnOnce(End) -> c_int + Send>>,
}

#[derive(Clone, Copy)]
enum Work {
    End(u64, End),
    /// Runs what has become due in the world.
    Look,
}

enum Delivery {
    Completion { how: AsyncopHow, rc: c_int },
    Event(usize),
    Progress { how: abi::AsyncprogressHow, event: usize },
    Disaster { kind: i32, text: String },
}

/// The context's lock, held.
pub struct Held(Arc<Ctx>);

impl std::ops::Deref for Held {
    type Target = Arc<Ctx>;
    fn deref(&self) -> &Arc<Ctx> {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.0.lock.last() {
            return;
        }
        let me = thread::current().id();
        let outbox = {
            let mut inner = locked(&self.0.inner);
            let outbox = std::mem::take(&mut inner.outbox);
            if !outbox.is_empty() {
                inner.delivering.push((me, OURS.get()));
            }
            outbox
        };
        self.0.lock.release();
        if outbox.is_empty() {
            return;
        }
        for delivery in outbox {
            self.0.deliver(delivery);
        }
        let mut inner = locked(&self.0.inner);
        if let Some(at) = inner.delivering.iter().rposition(|(thread, _)| *thread == me) {
            inner.delivering.remove(at);
        }
    }
}

thread_local! {
    /// Whether this thread is inside a hook of the caller's event loop.
    static IN_HOOK: Cell<bool> = const { Cell::new(false) };
    /// Set while this thread is inside the caller's logger.
    static IN_LOGGER: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread is one that the fake made.
    static OURS: Cell<bool> = const { Cell::new(false) };
}

/// The context behind a caller's pointer.
pub fn context(handle: *mut c_void, call: &str) -> Option<Arc<Ctx>> {
    let found = locked(&FAKE.contexts).get(&(handle as usize)).cloned();
    if found.is_none() {
        let why = if locked(&FAKE.freed).contains(&(handle as usize)) {
            "a freed context"
        } else {
            "something that is no context"
        };
        refuse(&format!("{call} on {why}"));
    }
    found
}

/// Takes a context's lock.
pub fn enter(handle: *mut c_void, call: &str) -> Option<Held> {
    if IN_LOGGER.get() {
        refuse(&format!("{call} from inside the logger, with libxl's locks held"));
        return None;
    }
    context(handle, call).map(Ctx::hold)
}

/// Makes a context.
pub fn alloc(logger: *mut c_void) -> *mut c_void {
    // Leaked, so that no later context has the same address and use after free shows.
    let handle = Box::into_raw(Box::new(0u64)) as usize;
    let inotify = locked(&FAKE.state_directory).as_deref().and_then(watch_directory);
    let ctx = Arc::new(Ctx {
        handle,
        logger: logger as usize,
        lock: RecursiveLock::default(),
        inner: Mutex::new(Inner { alive: true, ..Inner::default() }),
        app_poller: eventfd(),
        inotify,
    });
    locked(&ctx.inner).pollers.push(ctx.app_poller);
    locked(&FAKE.contexts).insert(handle, ctx);
    handle as *mut c_void
}

fn watch_directory(path: &Path) -> Option<RawFd> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: a valid string and numbers; the descriptor is closed with the context.
    unsafe {
        let fd = libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC);
        (fd >= 0 && libc::inotify_add_watch(fd, path.as_ptr(), libc::IN_MOVED_TO) >= 0).then_some(fd)
    }
}

/// Ends a context.
pub fn free(handle: *mut c_void) {
    let Some(ctx) = context(handle, "libxl_ctx_free") else {
        return;
    };
    {
        // The caller can't join our threads; it can join its own.
        let end = Instant::now() + Duration::from_secs(5);
        while locked(&ctx.inner).delivering.iter().any(|(t, ours)| *ours && *t != thread::current().id())
            && Instant::now() < end
        {
            thread::sleep(Duration::from_millis(1));
        }
        let inner = locked(&ctx.inner);
        if let Some(op) = inner.ops.first() {
            let text = format!("libxl_ctx_free while {} of domain {} is in progress", op.call, op.domid);
            drop(inner);
            return refuse(&text);
        }
        let (delivering, waiting) = (!inner.delivering.is_empty(), inner.pollers.len() > 1);
        drop(inner);
        if delivering {
            return refuse("libxl_ctx_free while one of the context's callbacks runs");
        }
        if waiting {
            return refuse("libxl_ctx_free while a thread waits in the context");
        }
        if ctx.lock.mine() {
            return refuse("libxl_ctx_free from inside a hook");
        }
    }
    let hooks = {
        let mut inner = locked(&ctx.inner);
        inner.alive = false;
        inner.generators.clear();
        inner.version_info = None;
        (inner.os_hooks, std::mem::take(&mut inner.os_fds))
    };
    if let (Some((table, user)), fds) = hooks {
        // SAFETY: the caller promised at registration that the table outlives the context.
        let table = unsafe { &*(table as *const OsHooks) };
        for (fd, for_app) in fds {
            if let Some(f) = table.fd_deregister {
                // SAFETY: the hook gets back what it gave at registration.
                unsafe { f(user as *mut c_void, fd, for_app as *mut c_void) };
            }
        }
    }
    locked(&FAKE.contexts).remove(&ctx.handle);
    locked(&FAKE.freed).insert(ctx.handle);
    for event in std::mem::take(&mut locked(&ctx.inner).queue) {
        crate::calls::events::free_event(event as *mut c_void);
    }
}

impl Drop for Ctx {
    fn drop(&mut self) {
        // SAFETY: these descriptors are the context's own.
        unsafe {
            libc::close(self.app_poller);
            if let Some(fd) = self.inotify {
                libc::close(fd);
            }
        }
    }
}

impl Ctx {
    pub fn hold(self: Arc<Ctx>) -> Held {
        self.lock.lock();
        Held(self)
    }

    // ---- talking to the caller

    /// A line to the caller's logger.
    pub fn log(&self, level: i32, errnoval: i32, text: &str) {
        if self.logger == 0 {
            return;
        }
        let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
        let outer = IN_LOGGER.replace(true);
        // SAFETY: the logger outlives the context by contract; the strings live for the call.
        unsafe {
            fake_shim_message(self.logger as *mut c_void, level, errnoval, c"libxl".as_ptr(), text.as_ptr());
        }
        IN_LOGGER.set(outer);
    }

    /// An error line as libxl prefixes it.
    pub fn error(&self, call: &str, domid: Option<u32>, text: &str) {
        let domain = domid.map(|d| format!("Domain {d}:")).unwrap_or_default();
        self.log(8, -1, &format!("fake_libxl.c:1:{call}: {domain}{text}"));
    }

    fn progress(&self, steps: u64) {
        if self.logger == 0 || steps == 0 {
            return;
        }
        let outer = IN_LOGGER.replace(true);
        for step in 0..=steps {
            // SAFETY: as for `log`.
            unsafe {
                fake_shim_progress(
                    self.logger as *mut c_void,
                    c"xc".as_ptr(),
                    c"Frames".as_ptr(),
                    c_int::try_from(step * 100 / steps).unwrap_or(100),
                    step,
                    steps,
                );
            }
        }
        IN_LOGGER.set(outer);
    }

    /// Logs from forked children, as libxl does, while other threads keep the parent's locks busy.
    fn log_in_child(&self) {
        if self.logger == 0 {
            return;
        }
        let stop = AtomicBool::new(false);
        let wrong = thread::scope(|scope| {
            for n in 0..4 {
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        self.log(1, -1, &format!("fake_libxl.c:1:busy: thread {n}"));
                    }
                });
            }
            let mut wrong = None;
            for _ in 0..20 {
                // SAFETY: the child only calls the logger, as libxl's children do, and leaves with _exit.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    self.log(8, -1, "fake_libxl.c:1:child: from a forked child");
                    // SAFETY: ends the child without running the parent's exit handlers.
                    unsafe { libc::_exit(0) };
                }
                assert!(pid > 0, "fake-libxl: fork: {}", std::io::Error::last_os_error());
                // Under valgrind a child that ends looks for leaks first.
                let end = Instant::now() + Duration::from_secs(10);
                let mut status = 0;
                // SAFETY: waits for the child made above, which nobody else knows.
                while unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == 0 {
                    if Instant::now() > end {
                        wrong = Some("does not return");
                        // SAFETY: the child has not been waited for, so the id is still its own.
                        unsafe {
                            libc::kill(pid, libc::SIGKILL);
                            libc::waitpid(pid, &raw mut status, 0);
                        }
                        break;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                if status != 0 {
                    wrong = wrong.or(Some("fails"));
                    break;
                }
            }
            stop.store(true, Ordering::Relaxed);
            wrong
        });
        if let Some(wrong) = wrong {
            refuse(&format!("the logger {wrong} in a forked child"));
        }
    }

    fn deliver(self: &Arc<Ctx>, delivery: Delivery) {
        if self.lock.mine() {
            refuse("a callback called with the context locked");
        }
        let ctx = self.handle as *mut c_void;
        match delivery {
            Delivery::Completion { how, rc } => {
                if let Some(callback) = how.callback {
                    // SAFETY: what the caller gave for exactly this.
                    unsafe { callback(ctx, rc, how.u as *mut c_void) };
                }
            }
            Delivery::Event(event) => {
                let hooks = locked(&self.inner).event_hooks;
                match hooks {
                    // SAFETY: the caller keeps the table while it is registered.
                    Some((table, user)) => match unsafe { &*(table as *const EventHooks) }.event_occurs {
                        // SAFETY: the event is a live block that now belongs to the caller.
                        Some(f) => unsafe { f(user as *mut c_void, event as *mut c_void) },
                        None => refuse("event hooks with a mask and no function"),
                    },
                    None => locked(&self.inner).queue.push_back(event),
                }
            }
            Delivery::Progress { how, event } => {
                if let Some(callback) = how.callback {
                    // SAFETY: what the caller gave for exactly this.
                    unsafe { callback(ctx, event as *mut c_void, how.for_callback) };
                }
            }
            Delivery::Disaster { kind, text } => {
                let hooks = locked(&self.inner).event_hooks;
                let c_text = CString::new(text.as_str()).unwrap_or_default();
                let disaster = hooks.and_then(|(table, user)| {
                    // SAFETY: the caller keeps the table while it is registered.
                    let table = unsafe { &*(table as *const EventHooks) };
                    table.disaster.map(|f| (f, user))
                });
                match disaster {
                    // SAFETY: what the caller gave for exactly this; the text lives for the call.
                    Some((f, user)) => unsafe { f(user as *mut c_void, kind, c_text.as_ptr(), libc::EIO) },
                    None => {
                        eprintln!("fake-libxl: disaster without a hook: {text}");
                        std::process::exit(-1);
                    }
                }
            }
        }
    }

    // ---- events

    pub fn set_event_hooks(&self, table: usize, user: usize) {
        locked(&self.inner).event_hooks = (table != 0).then_some((table, user));
    }

    /// Tells the caller of an event: by callback if it wants this type so, else in the queue.
    pub fn occurred(&self, event: usize, kind: i32) {
        let mut inner = locked(&self.inner);
        let by_callback = inner.event_hooks.is_some_and(|(table, _)| {
            // SAFETY: the caller keeps the table while it is registered.
            unsafe { &*(table as *const EventHooks) }.event_occurs_mask & (1 << kind) != 0
        });
        if by_callback {
            inner.outbox.push_back(Delivery::Event(event));
        } else {
            inner.queue.push_back(event);
        }
        drop(inner);
        self.wake();
    }

    pub fn console_available(&self, how: Option<abi::AsyncprogressHow>, domid: u32) {
        let Some(how) = how else { return };
        let event = new_event(event::CONSOLE_AVAILABLE, domid, "", how.for_event);
        if how.callback.is_some() {
            locked(&self.inner).outbox.push_back(Delivery::Progress { how, event });
        } else {
            self.occurred(event, event::CONSOLE_AVAILABLE);
        }
    }

    pub fn disaster(&self, text: &str) {
        locked(&self.inner).outbox.push_back(Delivery::Disaster { kind: 0, text: text.to_owned() });
    }

    pub fn enable(&self, domid: u32, user: u64, vdev: Option<String>) -> usize {
        /// Numbers in place of pointers: none is used twice, so that disabling one twice is noticed.
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let handle = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut inner = locked(&self.inner);
        if vdev.is_none() && !inner.watching {
            // Only setting the watch leads to a first look at the domains.
            inner.watching = true;
            inner.fire = true;
        }
        // As with libxl nobody who waits already is told that there is something more to wait for.
        inner.watch_is_known &= inner.watches();
        inner.generators.push(Generator {
            handle,
            domid,
            user,
            vdev,
            shutdown_reported: false,
            death_reported: false,
        });
        inner.generators.sort_by_key(|g| g.domid);
        handle
    }

    pub fn disable(&self, handle: usize, eject: bool) {
        let mut inner = locked(&self.inner);
        let before = inner.generators.len();
        inner.generators.retain(|g| g.handle != handle || g.vdev.is_some() != eject);
        if inner.generators.len() == before {
            drop(inner);
            return refuse("disabling an event generator that is not enabled in this context");
        }
        if !inner.generators.iter().any(|g| g.vdev.is_none() && !g.death_reported) {
            inner.watching = false;
            inner.fire = false;
        }
    }

    /// What libxl does when a domain is released.
    fn look_at_domains(&self) {
        let mut told = Vec::new();
        world(|w| {
            let mut inner = locked(&self.inner);
            let fire = std::mem::take(&mut inner.fire) || (inner.watching && inner.releases_seen != w.releases);
            inner.releases_seen = w.releases;
            if fire {
                for g in inner.generators.iter_mut().filter(|g| g.vdev.is_none() && !g.death_reported) {
                    match w.domains.get(&g.domid).filter(|d| !d.dying) {
                        None => {
                            g.death_reported = true;
                            told.push((event::DOMAIN_DEATH, g.domid, g.user, 0, None));
                        }
                        Some(d) => {
                            if let (Some(reason), false) = (d.shutdown, g.shutdown_reported) {
                                g.shutdown_reported = true;
                                told.push((event::DOMAIN_SHUTDOWN, g.domid, g.user, reason, None));
                            }
                        }
                    }
                }
            }
            w.ejects.retain(|(domid, vdev)| {
                let generator =
                    inner.generators.iter().find(|g| g.domid == *domid && g.vdev.as_ref() == Some(vdev));
                if let Some(g) = generator {
                    told.push((event::DISK_EJECT, *domid, g.user, 0, Some(vdev.clone())));
                }
                generator.is_none()
            });
        });
        for (kind, domid, user, reason, vdev) in told {
            let uuid = world(|w| w.domains.get(&domid).map(|d| d.uuid.clone()).unwrap_or_default());
            let event = new_event(kind, domid, &uuid, user);
            let raw = Raw(event as *mut u8);
            // SAFETY: the block is a new event of the current release's size, which has these fields.
            unsafe {
                if kind == event::DOMAIN_SHUTDOWN {
                    raw.put(event::UNION, u8::try_from(reason).unwrap_or(u8::MAX));
                }
                if let Some(vdev) = vdev {
                    raw.put(event::UNION, abi::c_string(&vdev));
                    raw.put(event::EJECT_DISK + abi::disk::BACKEND_DOMID, 0u32);
                    raw.put(event::EJECT_DISK + abi::disk::PDEV_PATH, abi::c_string(""));
                    raw.put(event::EJECT_DISK + abi::disk::VDEV, abi::c_string(&vdev));
                }
            }
            self.occurred(event, kind);
        }
    }

    // ---- the event loop

    /// Wakes every thread that waits in this context.
    pub fn wake(&self) {
        let inner = locked(&self.inner);
        if inner.alive {
            for &fd in &inner.pollers {
                poke(fd);
            }
        }
    }

    /// Something has happened on the host: whoever knows that there is something to wait for wakes.
    fn hear(&self) {
        if locked(&self.inner).watch_is_known {
            self.wake();
        }
    }

    fn post(&self, work: Work) {
        locked(&self.inner).work.push_back(work);
        self.wake();
    }

    fn after(&self, time: Duration, work: Work) {
        let at = Instant::now() + time;
        let hooks = {
            let mut inner = locked(&self.inner);
            inner.timers.push((at, work));
            inner.os_hooks
        };
        self.wake();
        if let Some((table, user)) = hooks {
            let mut now = libc::timeval { tv_sec: 0, tv_usec: 0 };
            // SAFETY: fills a local.
            unsafe { libc::gettimeofday(&raw mut now, std::ptr::null_mut()) };
            let us = now.tv_usec + libc::suseconds_t::from(time.subsec_micros());
            now.tv_sec += libc::time_t::try_from(time.as_secs()).unwrap_or(0) + us / 1_000_000;
            now.tv_usec = us % 1_000_000;
            // SAFETY: the caller keeps the table for the context's life.
            let table = unsafe { &*(table as *const OsHooks) };
            if let Some(f) = table.timeout_register {
                let mut for_app = std::ptr::null_mut();
                IN_HOOK.set(true);
                // SAFETY: the hook as registered; any address that stays ours identifies a timeout.
                unsafe { f(user as *mut c_void, &raw mut for_app, now, self.handle as *mut c_void) };
                IN_HOOK.set(false);
            }
        }
    }

    /// One turn of the loop: everything that can be done now. The caller is told when `self` is released.
    pub fn turn(self: &Arc<Ctx>) {
        let held = self.clone().hold();
        if let Some(fd) = held.inotify {
            if drain(fd) {
                held.wake();
            }
        }
        loop {
            let now = Instant::now();
            let work = {
                let mut inner = locked(&held.inner);
                while let Some(due) = inner.timers.iter().position(|(at, _)| *at <= now) {
                    let (_, work) = inner.timers.swap_remove(due);
                    inner.work.push_back(work);
                }
                inner.work.pop_front()
            };
            match work {
                Some(Work::End(id, end)) => held.end(id, end),
                Some(Work::Look) => locked(&held.inner).os_due = None,
                None => break,
            }
        }
        held.look_at_domains();
        for id in held.come_true() {
            locked(&held.inner).timers.retain(|(_, work)| !matches!(work, Work::End(of, _) if *of == id));
            held.end(id, End::Natural);
        }
        held.register_due();
    }

    /// A loop of the caller's own has to be told of what is due in the world.
    fn register_due(&self) {
        if locked(&self.inner).os_hooks.is_none() {
            return;
        }
        let due = world(|w| w.next_due());
        let known = std::mem::replace(&mut locked(&self.inner).os_due, due);
        if let Some(at) = due.filter(|_| known != due) {
            self.after(Duration::from_millis(at.saturating_sub(now_ms())), Work::Look);
        }
    }

    /// Operations that need not wait for their time.
    fn come_true(&self) -> Vec<u64> {
        let waiting: Vec<_> = locked(&self.inner)
            .ops
            .iter()
            .filter_map(|op| op.until.map(|until| (op.id, op.domid, until)))
            .collect();
        if waiting.is_empty() {
            return Vec::new();
        }
        world(|w| waiting.iter().filter(|(_, domid, until)| until(w, *domid)).map(|(id, ..)| *id).collect())
    }

    /// How long the loop may sleep.
    fn sleep(&self) -> Option<Duration> {
        let due = world(|w| w.next_due()).map(|at| Duration::from_millis(at.saturating_sub(now_ms())));
        let inner = locked(&self.inner);
        if !inner.work.is_empty() {
            return Some(Duration::ZERO);
        }
        let timer = inner.timers.iter().map(|(at, _)| at.saturating_duration_since(Instant::now())).min();
        match (due, timer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Runs the loop in this thread until `done`.
    pub fn run_until(self: &Arc<Ctx>, done: impl Fn() -> bool) {
        let poller = eventfd();
        {
            let mut inner = locked(&self.inner);
            inner.pollers.push(poller);
            inner.watch_is_known = true;
        }
        loop {
            self.turn();
            if done() {
                break;
            }
            let mut fds = vec![(poller, libc::POLLIN)];
            fds.extend(self.inotify.map(|fd| (fd, libc::POLLIN)));
            wait_for(&mut fds, self.sleep());
            drain(poller);
        }
        locked(&self.inner).pollers.retain(|&fd| fd != poller);
        // SAFETY: made above, and out of the list that others use.
        unsafe { libc::close(poller) };
    }

    pub fn before_poll(&self, fds: &mut [libc::pollfd], timeout: &mut c_int) -> Result<usize, usize> {
        let wanted: Vec<RawFd> = {
            let mut inner = locked(&self.inner);
            // What happens on the host is only heard of by who watches for it.
            let watches = inner.watches();
            if watches && !inner.watch_is_known {
                inner.watch_is_known = true;
                // What has happened between the last look and now has woken nobody.
                poke(self.app_poller);
            }
            std::iter::once(self.app_poller).chain(self.inotify.filter(|_| watches)).collect()
        };
        if let Some(sleep) = self.sleep() {
            let ms = c_int::try_from(sleep.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX);
            if *timeout < 0 || *timeout > ms {
                *timeout = ms;
            }
        }
        if fds.len() < wanted.len() {
            return Err(wanted.len());
        }
        for (slot, fd) in fds.iter_mut().zip(&wanted) {
            *slot = libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
        }
        Ok(wanted.len())
    }

    pub fn after_poll(self: &Arc<Ctx>, fds: &[libc::pollfd]) {
        if fds.iter().any(|f| f.fd == self.app_poller && f.revents != 0) {
            drain(self.app_poller);
        }
        self.turn();
    }

    pub fn set_os_hooks(self: &Arc<Ctx>, table: usize, user: usize) {
        let wanted: Vec<RawFd> = std::iter::once(self.app_poller).chain(self.inotify).collect();
        let held = self.clone().hold();
        {
            let mut inner = locked(&held.inner);
            if inner.os_hooks.is_some() || !inner.ops.is_empty() {
                drop(inner);
                return refuse("libxl_osevent_register_hooks twice, or while something is in progress");
            }
            inner.os_hooks = Some((table, user));
        }
        // SAFETY: the caller keeps the table for the context's life.
        let table = unsafe { &*(table as *const OsHooks) };
        for fd in wanted {
            let mut for_app = std::ptr::null_mut();
            if let Some(f) = table.fd_register {
                IN_HOOK.set(true);
                // SAFETY: the hook as registered.
                unsafe {
                    f(user as *mut c_void, fd, &raw mut for_app, libc::POLLIN, self.handle as *mut c_void);
                }
                IN_HOOK.set(false);
            }
            locked(&held.inner).os_fds.push((fd, for_app as usize));
        }
    }

    /// The caller's own loop saw one of our descriptors or timeouts.
    pub fn os_occurred(self: &Arc<Ctx>) {
        if IN_HOOK.get() {
            return refuse("libxl_osevent_occurred_* from inside a hook");
        }
        drain(self.app_poller);
        self.turn();
    }

    // ---- operations

    /// Writes down a call; its place in the list.
    pub fn record(call: &str, domid: Option<u32>, name: Option<String>, args: Value) -> usize {
        world(|w| {
            let name = name.or_else(|| domid.and_then(|d| w.name(d)));
            w.calls.push(Call {
                call: call.into(),
                pid: std::process::id(),
                domid,
                name,
                args,
                rc: None,
                completed: None,
            });
            w.calls.len() - 1
        })
    }

    pub fn returned(record: usize, rc: c_int) -> c_int {
        world(|w| {
            if let Some(call) = w.calls.get_mut(record) {
                call.rc = Some(rc);
            }
        });
        rc
    }

    /// The start of every call: finds its rule and does what that says should come first.
    pub fn begin(&self, call: &str, domid: Option<u32>, name: Option<&str>) -> Rule {
        let known = name.map(str::to_owned).or_else(|| domid.and_then(|d| world(|w| w.name(d))));
        let mut rule = locked(&FAKE.script).rule_for(call, domid, known.as_deref());
        call.clone_into(&mut rule.call);
        for line in &rule.log {
            let domain = domid.map(|d| format!("Domain {d}:")).unwrap_or_default();
            self.log(line.level, line.errno, &format!("fake_libxl.c:1:{call}: {domain}{}", line.text));
        }
        self.progress(rule.progress);
        if rule.log_in_child {
            self.log_in_child();
        }
        if let Some(text) = &rule.disaster {
            self.disaster(text);
        }
        if rule.forks {
            self.fork();
        }
        if rule.stall_ms > 0 {
            stall(Duration::from_millis(rule.stall_ms), Duration::from_millis(rule.hypercall_ms.unwrap_or(1)));
        }
        rule.die_at(Point::Before);
        rule
    }

    /// Forks a child that makes hypercalls, and forks once more, as the one does that starts a device model.
    fn fork(&self) {
        /// Long enough for any fork, s.
        const LIMIT: u32 = 30;
        // SAFETY: the caller's hooks, which stay valid as long as the context.
        let hook = locked(&self.inner).child_hooks.and_then(|(hooks, user)| unsafe {
            let hook = (*(hooks as *const abi::ChildHooks)).fork_replacement?;
            Some((hook, user as *mut c_void))
        });
        // SAFETY: the hook is to do what `fork` does; the children only fork, try a lock and leave with `_exit`.
        let fork = || unsafe { hook.map_or_else(|| libc::fork(), |(hook, user)| hook(user)) };
        let failed = |pid| {
            let mut status = 0;
            // SAFETY: waits for a child made here, which nobody else knows.
            unsafe { libc::waitpid(pid, &raw mut status, 0) != pid || status != 0 }
        };
        let pid = fork();
        if pid == 0 {
            // SAFETY: ends a child that hangs.
            unsafe { libc::alarm(LIMIT) };
            // libxl's handler belongs to the parent, and its mutex may be locked.
            let stuck = BUFFERS.try_lock().is_err() || !default_sigchld();
            let again = fork();
            let stuck = stuck || (again != 0 && failed(again));
            // SAFETY: ends the children without running the parent's exit handlers.
            unsafe { libc::_exit(c_int::from(stuck)) };
        }
        assert!(pid > 0, "fake-libxl: fork: {}", std::io::Error::last_os_error());
        if failed(pid) {
            refuse("a child forked while another thread made hypercalls, or one that forks again, waits for ever");
        }
    }

    fn check_children(self: &Arc<Ctx>) {
        let my_mode = locked(&self.inner).child_mode;
        for other in all_contexts() {
            if Arc::ptr_eq(&other, self) {
                continue;
            }
            let inner = locked(&other.inner);
            let bad = inner.ops.iter().any(|op| op.children)
                && (my_mode != abi::SELECTIVE_REAP || inner.child_mode != abi::SELECTIVE_REAP);
            drop(inner);
            if bad {
                refuse("two contexts have children, and not both reap selectively");
            }
        }
    }

    pub fn children(&self) -> bool {
        locked(&self.inner).ops.iter().any(|op| op.children)
    }

    /// Starts an operation under the lock that the caller of this holds. Gives its cell if it is synchronous.
    fn start(self: &Arc<Ctx>, how: How, domid: u32, rule: Rule, record: usize, parts: Parts) {
        if parts.children {
            self.check_children();
        }
        let complete = rule.complete.unwrap_or(Complete::EventLoop);
        let delay = Duration::from_millis(rule.delay_ms.unwrap_or(parts.delay_ms));
        let error = rule.error;
        let threaded = parts.io.is_some() || complete == Complete::OtherThread;
        let cancel = Cancel::new();
        let by_rule = rule.complete.is_some() || rule.delay_ms.is_some() || error.is_some();
        let id = {
            let mut inner = locked(&self.inner);
            inner.next_op += 1;
            let id = inner.next_op;
            inner.ops.push(Op {
                id,
                call: rule.call.clone(),
                domid,
                how,
                aborted: false,
                children: parts.children,
                rule,
                record,
                cancel: threaded.then(|| cancel.clone()),
                until: parts.until.filter(|_| !by_rule),
                finish: Some(parts.finish),
            });
            id
        };
        // An operation tells those who wait that there is more to wait for.
        self.wake();
        let natural = error.map_or(End::Natural, End::Error);
        let io = parts.io;
        // What a helper does: copy, wait, and know the end.
        let work = move || -> Option<End> {
            let mut end = match io {
                Some(io) => io(&cancel),
                None => End::Natural,
            };
            if end == End::Natural && complete == Complete::Never {
                cancel.wait(None);
            }
            if cancel.wait(Some(delay)) {
                end = End::Aborted;
            }
            Some(match end {
                End::Natural => natural,
                other => other,
            })
        };
        match complete {
            Complete::BeforeReturn => {
                if let Some(end) = work() {
                    self.end(id, end);
                }
            }
            Complete::OtherThread => {
                let ctx = self.clone();
                thread::spawn(move || {
                    OURS.set(true);
                    if let Some(end) = work() {
                        ctx.hold().end(id, end);
                    }
                });
            }
            Complete::EventLoop | Complete::Never if threaded => {
                let ctx = self.clone();
                thread::spawn(move || {
                    OURS.set(true);
                    if let Some(end) = work() {
                        ctx.post(Work::End(id, end));
                    }
                });
            }
            Complete::EventLoop => self.after(delay, Work::End(id, natural)),
            Complete::Never => {}
        }
    }

    /// The end of an operation, under the lock.
    fn end(self: &Arc<Ctx>, id: u64, end: End) {
        let finish = {
            let mut inner = locked(&self.inner);
            let op = inner.ops.iter_mut().find(|op| op.id == id);
            op.and_then(|op| op.finish.take())
        };
        // None: something else ended it first.
        let Some(finish) = finish else { return };
        let rc = finish(end);
        let (op, mode) = {
            let mut inner = locked(&self.inner);
            let at = inner.ops.iter().position(|op| op.id == id);
            let op = at.map(|at| inner.ops.remove(at));
            (op, inner.child_mode)
        };
        let Some(op) = op else { return };
        if let Some(cancel) = &op.cancel {
            // A thread that still works for it has no reason to go on.
            cancel.set();
        }
        op.rule.die_at(Point::After);
        world(|w| {
            if let Some(call) = w.calls.get_mut(op.record) {
                call.completed = Some(rc);
            }
        });
        if op.children && mode != abi::SELECTIVE_REAP && mode != abi::MAINLOOP {
            self.reap_all();
        }
        self.tell(&op.how, op.domid, rc);
        if op.rule.twice {
            refuse(&format!("{} of domain {} completed twice", op.call, op.domid));
            self.tell(&op.how, op.domid, rc);
        }
        self.wake();
    }

    fn tell(&self, how: &How, domid: u32, rc: c_int) {
        match how {
            How::Sync(cell) => *locked(cell) = Some(rc),
            How::Async(how) if how.callback.is_some() => {
                locked(&self.inner).outbox.push_back(Delivery::Completion { how: *how, rc });
            }
            How::Async(how) => {
                let event = new_event(event::OPERATION_COMPLETE, domid, "", how.u);
                // SAFETY: a new event, which has this field.
                unsafe { Raw(event as *mut u8).put(event::UNION, rc) };
                self.occurred(event, event::OPERATION_COMPLETE);
            }
        }
    }

    /// What libxl's default mode does when a child of its own ends: reaps whatever there is.
    fn reap_all(&self) {
        loop {
            let mut status = 0;
            // SAFETY: fills a local.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            let hooks = locked(&self.inner).child_hooks;
            if let Some((table, user)) = hooks {
                // SAFETY: the caller keeps the table while it is set.
                if let Some(f) = unsafe { &*(table as *const abi::ChildHooks) }.reaped_callback {
                    // SAFETY: the hook as given.
                    unsafe { f(pid, status, user as *mut c_void) };
                }
            }
        }
    }

    /// `libxl_ao_abort`.
    pub fn abort(self: &Arc<Ctx>, wanted: Option<AsyncopHow>) -> c_int {
        let key = wanted.map(|how| (how.callback.map_or(0, |f| f as usize), how.u));
        let found = {
            let mut inner = locked(&self.inner);
            let known = key.is_none_or(|key| inner.hows.contains(&key));
            let op = inner.ops.iter_mut().find(|op| match (&op.how, key) {
                (How::Sync(_), None) => true,
                (How::Async(how), Some(key)) => (how.callback.map_or(0, |f| f as usize), how.u) == key,
                _ => false,
            });
            match op {
                Some(op) if op.aborted => return error::ABORTED,
                Some(op) => {
                    op.aborted = true;
                    Some((op.id, op.rule.ignore_abort, op.cancel.clone()))
                }
                None if known => return error::NOTFOUND,
                None => None,
            }
        };
        match found {
            None => {
                refuse("libxl_ao_abort of a how that no operation was ever started with");
                error::NOTFOUND
            }
            Some((_, true, _)) => 0,
            Some((_, _, Some(cancel))) => {
                cancel.set();
                0
            }
            // Nobody works for it: it ends here and now, and the caller hears of it before the abort returns.
            Some((id, _, None)) => {
                locked(&self.inner).timers.retain(|(_, work)| !matches!(work, Work::End(of, _) if *of == id));
                self.end(id, End::Aborted);
                0
            }
        }
    }

    /// Lets operations that wait for ever (or for long) end now. How many there were.
    pub fn finish_now(self: &Arc<Ctx>, call: &str, domid: Option<u32>, error: Option<c_int>) -> usize {
        let ids: Vec<u64> = locked(&self.inner)
            .ops
            .iter()
            .filter(|op| op.call == call && domid.is_none_or(|d| d == op.domid))
            .map(|op| op.id)
            .collect();
        let end = error.map_or(End::Natural, End::Error);
        for &id in &ids {
            self.post(Work::End(id, end));
        }
        ids.len()
    }

    pub fn look_soon(&self) {
        self.post(Work::Look);
    }
}

/// Every asynchronous call: `prepare` runs under the lock once the rule has had its say, and either refuses to start
/// with an error or gives the operation's parts.
pub fn operation(
    handle: *mut c_void,
    call: &str,
    domid: u32,
    name: Option<&str>,
    how: *const AsyncopHow,
    args: Value,
    prepare: impl FnOnce(&Arc<Ctx>, &Rule) -> Result<Parts, c_int>,
) -> c_int {
    // SAFETY: NULL or the caller's struct, which is copied here as libxl does.
    let how = unsafe { how.as_ref() }.copied();
    let Some(held) = enter(handle, call) else {
        return error::INVAL;
    };
    let ctx = held.clone();
    let known_domid = (domid != abi::INVALID_DOMID).then_some(domid);
    let record = Ctx::record(call, known_domid, name.map(str::to_owned), args);
    let cell = Arc::new(Mutex::new(None));
    let (op_how, synchronous) = match how {
        Some(how) => {
            let key = (how.callback.map_or(0, |f| f as usize), how.u);
            locked(&held.inner).hows.insert(key);
            (How::Async(how), false)
        }
        None => (How::Sync(cell.clone()), true),
    };
    let rule = held.begin(call, known_domid, name);
    if let Some(error) = rule.start_error {
        return Ctx::returned(record, error);
    }
    match prepare(&ctx, &rule) {
        Err(error) => return Ctx::returned(record, error),
        Ok(parts) => {
            let event_domid = known_domid.unwrap_or(0);
            held.start(op_how, event_domid, rule, record, parts);
        }
    }
    // From here on the caller may hear of the end, perhaps before this returns.
    drop(held);
    if !synchronous {
        return Ctx::returned(record, 0);
    }
    ctx.run_until(|| locked(&cell).is_some());
    let rc = locked(&cell).unwrap_or(error::FAIL);
    Ctx::returned(record, rc)
}

/// Every call that is done when it returns and that tests may script.
pub fn simple(
    handle: *mut c_void,
    call: &str,
    domid: Option<u32>,
    args: Value,
    quiet: bool,
    body: impl FnOnce(&Arc<Ctx>) -> c_int,
) -> c_int {
    let Some(held) = enter(handle, call) else {
        return error::INVAL;
    };
    let record = (!quiet).then(|| Ctx::record(call, domid, None, args));
    let rule = held.begin(call, domid, None);
    rule.die_at(Point::During);
    let rc = match rule.start_error.or(rule.error) {
        Some(error) => {
            if rule.effect {
                body(&held);
            }
            error
        }
        None => body(&held),
    };
    if let Some(ms) = rule.delay_ms {
        thread::sleep(Duration::from_millis(ms));
    }
    rule.die_at(Point::After);
    match record {
        Some(record) => Ctx::returned(record, rc),
        None => rc,
    }
}

/// A new event, to be freed with `libxl_event_free`.
pub fn new_event(kind: i32, domid: u32, uuid: &str, user: u64) -> usize {
    // SAFETY: calloc returns a zeroed block of the size that an event of this release has, or NULL.
    let block = unsafe { libc::calloc(1, release().event_size()) };
    assert!(!block.is_null(), "fake-libxl: out of memory");
    let raw = Raw(block.cast());
    let uuid = uuid::Uuid::parse_str(uuid).unwrap_or_default();
    // SAFETY: offsets of an event's fields, inside the new block.
    unsafe {
        raw.put(event::DOMID, domid);
        raw.put(event::UUID, *uuid.as_bytes());
        raw.put(event::FOR_USER, user);
        raw.put(event::TYPE, kind);
    }
    locked(&FAKE.events_alive).insert(block as usize);
    block as usize
}

/// Calls `f` with every context of this process.
pub fn each_context(mut f: impl FnMut(&Arc<Ctx>)) {
    for ctx in all_contexts() {
        f(&ctx);
    }
}
