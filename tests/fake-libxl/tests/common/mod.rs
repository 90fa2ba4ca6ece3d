//! Drives the fake as a wrapper does: through `xenlight-sys`, with an event loop in a thread of its own.

#![allow(dead_code, reason = "each test program uses its part")]

use fake_libxl::Control;
use serde_json::{Value, json};
use std::ffi::{CStr, CString, c_int, c_void};
use std::fs::File;
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;
use xenlight_sys::libxl::*;
use xenlight_sys::{Block, Library, Release};

/// A directory that goes away.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static N: AtomicU32 = AtomicU32::new(0);
        let n = N.fetch_add(1, Ordering::SeqCst);
        // A process that is going to die works in the directory of one that isn't.
        let base = std::env::var_os("SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = base.join(format!("fake-libxl-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).expect("makes a directory");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A pipe: what to read from and what to write to.
pub fn pipe() -> (File, File) {
    let mut fds = [0; 2];
    // SAFETY: fills two descriptors, which nobody else owns.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1]))
    }
}

/// A copy of the fake of its own, opened both ways.
pub struct Fake {
    pub lib: Arc<Library>,
    pub control: Control,
    pub scratch: Scratch,
}

pub fn fake_of(release: Release) -> Fake {
    let scratch = Scratch::new();
    let path = fake_libxl::install(&scratch.0, &release.to_string());
    // SAFETY: the fake behaves like libxl.
    let lib = unsafe { Library::open_in(&scratch.0, release) }.unwrap_or_else(|e| panic!("{e:?}"));
    let control = Control::open(&path);
    Fake { lib: Arc::new(lib), control, scratch }
}

pub fn fake() -> Fake {
    fake_of(Release::new(4, 17))
}

#[derive(Clone, Copy)]
pub struct Ctx(pub *mut libxl_ctx);

// SAFETY: libxl's contexts may be used from any thread.
unsafe impl Send for Ctx {}
// SAFETY: as above.
unsafe impl Sync for Ctx {}

impl Ctx {
    pub fn get(self) -> *mut libxl_ctx {
        self.0
    }
}

impl Fake {
    pub fn ctx(&self) -> Ctx {
        let mut ctx = std::ptr::null_mut();
        // SAFETY: a place for the context; no logger.
        let rc = unsafe { self.lib.libxl_ctx_alloc(&raw mut ctx, 0, 0, std::ptr::null_mut()) };
        assert_eq!(rc, 0);
        Ctx(ctx)
    }

    /// A context that may have children beside others.
    pub fn selective(&self) -> Ctx {
        static HOOKS: libxl_childproc_hooks = libxl_childproc_hooks {
            chldowner: libxl_sigchld_owner_libxl_always_selective_reap,
            fork_replacement: None,
            reaped_callback: None,
        };
        let ctx = self.ctx();
        // SAFETY: the table is static.
        unsafe { self.lib.libxl_childproc_setmode(ctx.get(), &raw const HOOKS, std::ptr::null_mut()) };
        ctx
    }

    pub fn free(&self, ctx: Ctx) {
        // SAFETY: a context of this library.
        assert_eq!(unsafe { self.lib.libxl_ctx_free(ctx.get()) }, 0);
    }

    pub fn config(&self, ctx: Ctx, value: &Value) -> Config {
        let config = Config::new(self.lib.clone());
        assert_eq!(config.load(ctx, &value.to_string()), 0);
        config
    }

    pub fn domid(&self, ctx: Ctx, name: &str) -> Option<u32> {
        let name = CString::new(name).expect("no NUL");
        let mut domid = 0;
        // SAFETY: a string and a place for the answer.
        let rc = unsafe { self.lib.libxl_name_to_domid(ctx.get(), name.as_ptr(), &raw mut domid) };
        (rc == 0).then_some(domid)
    }

    /// The last call of that name in the list of calls.
    pub fn call(&self, name: &str) -> Value {
        let state = self.control.state();
        let calls = state["calls"].as_array().expect("an array").clone();
        calls.into_iter().rev().find(|c| c["call"] == name).unwrap_or_else(|| panic!("no call of {name}"))
    }
}

pub fn guest_config(name: &str) -> Value {
    json!({
        "c_info": {"type": "pvh", "name": name, "uuid": "11111111-2222-4333-8444-555555555555"},
        "b_info": {"max_memkb": 262_144, "target_memkb": 262_144, "max_vcpus": 2, "kernel": "/vmlinuz", "type.pvh": {}},
        "on_reboot": "restart",
    })
}

pub struct Config {
    lib: Arc<Library>,
    block: Box<Block>,
}

impl Config {
    pub fn new(lib: Arc<Library>) -> Config {
        let mut block = Block::zeroed();
        // SAFETY: a zeroed block.
        unsafe { lib.libxl_domain_config_init(block.as_mut_ptr()) };
        Config { lib, block }
    }

    pub fn ptr(&self) -> *mut libxl_domain_config {
        (&raw const *self.block).cast_mut().cast()
    }

    pub fn load(&self, ctx: Ctx, text: &str) -> c_int {
        let text = CString::new(text).expect("no NUL");
        // SAFETY: an initialised block and a string.
        unsafe { self.lib.libxl_domain_config_from_json(ctx.get(), self.ptr(), text.as_ptr()) }
    }

    pub fn json(&self, ctx: Ctx) -> Value {
        // SAFETY: an initialised block; the string is ours to free.
        let text = unsafe {
            let p = self.lib.libxl_domain_config_to_json(ctx.get(), self.ptr());
            let text = CStr::from_ptr(p).to_string_lossy().into_owned();
            libc::free(p.cast());
            text
        };
        serde_json::from_str(&text).expect("prints JSON")
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`.
        unsafe { self.lib.libxl_domain_config_dispose(self.ptr()) };
    }
}

/// What a completion callback was told.
#[derive(Debug)]
pub struct Done {
    pub rc: c_int,
    pub thread: ThreadId,
}

/// An asynchronous operation's `how`, and where its completion arrives.
pub struct Op {
    pub how: libxl_asyncop_how,
    pub done: Receiver<Done>,
}

/// Leaks what callbacks are given, and keeps its address so that valgrind doesn't take it for lost.
fn leaked<T>(value: T) -> *mut c_void {
    static LEAKED: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let at = Box::into_raw(Box::new(value));
    LEAKED.lock().expect("not poisoned").push(at as usize);
    at.cast()
}

unsafe extern "C" fn completed(_ctx: *mut libxl_ctx, rc: c_int, for_callback: *mut c_void) {
    // SAFETY: `Op::new` leaked it, so that a second completion is no worse than wrong.
    let sender = unsafe { &*for_callback.cast::<Sender<Done>>() };
    let _ = sender.send(Done { rc, thread: thread::current().id() });
}

impl Op {
    pub fn new() -> Op {
        let (sender, done) = channel();
        let how = libxl_asyncop_how {
            callback: Some(completed),
            u: libxl_asyncop_how__bindgen_ty_1 { for_callback: leaked(sender) },
        };
        Op { how, done }
    }

    pub fn how(&self) -> *const libxl_asyncop_how {
        &raw const self.how
    }

    #[track_caller]
    pub fn wait(&self) -> c_int {
        self.done.recv_timeout(Duration::from_secs(10)).expect("completes").rc
    }

    #[track_caller]
    pub fn nothing_for(&self, ms: u64) {
        if let Ok(done) = self.done.recv_timeout(Duration::from_millis(ms)) {
            panic!("completed: {done:?}");
        }
    }
}

/// The event loop's thread.
pub struct Loop {
    stop: Arc<AtomicBool>,
    /// How often it has asked what there is to wait for.
    asked: Arc<AtomicU32>,
    wake: c_int,
    thread: Option<JoinHandle<()>>,
}

impl Loop {
    pub fn start(fake: &Fake, ctx: Ctx) -> Loop {
        let stop = Arc::new(AtomicBool::new(false));
        // SAFETY: numbers.
        let wake = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        assert!(wake >= 0);
        let asked = Arc::new(AtomicU32::new(0));
        let (lib, stopping, asking) = (fake.lib.clone(), stop.clone(), asked.clone());
        let thread = thread::spawn(move || {
            while !stopping.load(Ordering::SeqCst) {
                turn(&lib, ctx, wake, &asking);
            }
        });
        Loop { stop, asked, wake, thread: Some(thread) }
    }

    /// Has the loop ask anew what there is to wait for.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes to our eventfd, which is open as long as `self` lives.
        assert_eq!(unsafe { libc::write(self.wake, (&raw const one).cast(), 8) }, 8);
    }

    /// Waits until the loop has gone all round and waits again.
    pub fn go_round(&self) {
        // What it does when this begins may be half done.
        for _ in 0..2 {
            let before = self.asked.load(Ordering::SeqCst);
            self.wake();
            while self.asked.load(Ordering::SeqCst) == before {
                assert!(self.thread.as_ref().is_some_and(|t| !t.is_finished()), "the loop doesn't panic");
                thread::yield_now();
            }
        }
    }

    pub fn thread(&self) -> ThreadId {
        self.thread.as_ref().expect("runs").thread().id()
    }
}

/// One turn: ask, poll, tell.
fn turn(lib: &Library, ctx: Ctx, wake: c_int, asked: &AtomicU32) {
    let zero = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut room = 0;
    loop {
        let mut fds = vec![libc::pollfd { fd: -1, events: 0, revents: 0 }; room + 1];
        let (mut n, mut timeout) = (c_int::try_from(room).expect("few"), -1);
        // SAFETY: an array of `n` elements.
        let rc = unsafe {
            lib.libxl_osevent_beforepoll(ctx.get(), &raw mut n, fds.as_mut_ptr(), &raw mut timeout, zero)
        };
        let used = usize::try_from(n).expect("a count");
        if rc == ERROR_BUFFERFULL {
            assert!(used > room);
            room = used;
            continue;
        }
        assert_eq!(rc, 0);
        asked.fetch_add(1, Ordering::SeqCst);
        fds[used] = libc::pollfd { fd: wake, events: libc::POLLIN, revents: 0 };
        // SAFETY: an array of that length.
        unsafe { libc::poll(fds.as_mut_ptr(), used as libc::nfds_t + 1, timeout) };
        if fds[used].revents != 0 {
            let mut count = 0u64;
            // SAFETY: eight bytes for the eventfd's count, which is there to be read.
            assert_eq!(unsafe { libc::read(wake, (&raw mut count).cast(), 8) }, 8);
        }
        // SAFETY: the array as polled.
        unsafe { lib.libxl_osevent_afterpoll(ctx.get(), n, fds.as_ptr(), zero) };
        return;
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
        // SAFETY: our eventfd, closed once the thread has ended.
        unsafe {
            let ended = self.thread.take().expect("runs").join();
            libc::close(self.wake);
            if !thread::panicking() {
                ended.expect("the loop doesn't panic");
            }
        }
    }
}

/// What event callbacks told.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    Shutdown { domid: u32, user: u64, reason: u8 },
    Death { domid: u32, user: u64 },
    Eject { domid: u32, vdev: String },
    Other(u32),
    Disaster(String),
}

struct Listener {
    lib: Arc<Library>,
    ctx: Ctx,
    sender: Sender<Told>,
}

unsafe extern "C" fn occurs(user: *mut c_void, event: *mut libxl_event) {
    // SAFETY: `listen` leaked the listener; the event is ours to free.
    let (listener, e) = unsafe { (&*user.cast::<Listener>(), &*event) };
    // SAFETY: the union's member is chosen by the type.
    let told = unsafe {
        match e.type_ {
            LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN => {
                Told::Shutdown { domid: e.domid, user: e.for_user, reason: e.u.domain_shutdown.shutdown_reason }
            }
            LIBXL_EVENT_TYPE_DOMAIN_DEATH => Told::Death { domid: e.domid, user: e.for_user },
            LIBXL_EVENT_TYPE_DISK_EJECT => Told::Eject {
                domid: e.domid,
                vdev: CStr::from_ptr(e.u.disk_eject.vdev).to_string_lossy().into_owned(),
            },
            other => Told::Other(other),
        }
    };
    let _ = listener.sender.send(told);
    // SAFETY: frees what we were given, in the context that gave it.
    unsafe { listener.lib.libxl_event_free(listener.ctx.get(), event) };
}

unsafe extern "C" fn disaster(
    user: *mut c_void,
    _type: libxl_event_type,
    msg: *const libc::c_char,
    _errno: c_int,
) {
    // SAFETY: as above, and a string.
    let (listener, text) = unsafe { (&*user.cast::<Listener>(), CStr::from_ptr(msg)) };
    let _ = listener.sender.send(Told::Disaster(text.to_string_lossy().into_owned()));
}

/// Has all events of a context told.
pub fn listen(fake: &Fake, ctx: Ctx) -> Receiver<Told> {
    static HOOKS: libxl_event_hooks =
        libxl_event_hooks { event_occurs_mask: u64::MAX, event_occurs: Some(occurs), disaster: Some(disaster) };
    let (sender, receiver) = channel();
    let listener = leaked(Listener { lib: fake.lib.clone(), ctx, sender });
    // SAFETY: the table is static and the listener leaked.
    unsafe { fake.lib.libxl_event_register_callbacks(ctx.get(), &raw const HOOKS, listener) };
    receiver
}

#[track_caller]
pub fn next(events: &Receiver<Told>) -> Told {
    events.recv_timeout(Duration::from_secs(10)).expect("an event")
}

#[track_caller]
pub fn no_event(events: &Receiver<Told>, ms: u64) {
    if let Ok(told) = events.recv_timeout(Duration::from_millis(ms)) {
        panic!("{told:?}");
    }
}
