//! The C logger, called as libxl calls it: in this process and in forked children.

use std::ffi::{CStr, CString, c_char, c_int, c_ulong, c_void};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Mutex;

use xenlight_sys::libxl::{XTL_DEBUG, XTL_ERROR, XTL_INFO, XTL_WARN, xentoollog_level};
use xenlight_sys::logger::{
    ChildRecord, Parsed, XENLIGHT_CHILD_RECORD_MAX, xenlight_logger, xenlight_logger_emit, xenlight_logger_init,
};

#[derive(Debug, PartialEq)]
enum Seen {
    Message { level: xentoollog_level, errnoval: c_int, context: Option<String>, text: String },
    Progress { context: Option<String>, what: String, percent: c_int, done: c_ulong, total: c_ulong },
}

/// A logger that collects what it gets.
struct Collector {
    logger: Box<xenlight_logger>,
    seen: Box<Mutex<Vec<Seen>>>,
}

/// # Safety
/// Null, or a string that lives during the call.
unsafe fn string(text: *const c_char) -> Option<String> {
    // SAFETY: passed on.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned())
}

unsafe extern "C" fn message(
    data: *mut c_void,
    level: xentoollog_level,
    errnoval: c_int,
    context: *const c_char,
    text: *const c_char,
) {
    // SAFETY: `data` is the collector's boxed list, which outlives the logger; the strings are the shim's.
    let (seen, context, text) = unsafe { (&*data.cast::<Mutex<Vec<Seen>>>(), string(context), string(text)) };
    seen.lock().unwrap().push(Seen::Message { level, errnoval, context, text: text.unwrap() });
    // A sink that does anything at all changes errno.
    set_errno(1);
}

unsafe extern "C" fn progress(
    data: *mut c_void,
    context: *const c_char,
    what: *const c_char,
    percent: c_int,
    done: c_ulong,
    total: c_ulong,
) {
    // SAFETY: as in `message`.
    let (seen, context, what) = unsafe { (&*data.cast::<Mutex<Vec<Seen>>>(), string(context), string(what)) };
    seen.lock().unwrap().push(Seen::Progress { context, what: what.unwrap(), percent, done, total });
}

fn errno() -> c_int {
    // SAFETY: gives the address of this thread's errno, always valid.
    unsafe { *libc::__errno_location() }
}

fn set_errno(value: c_int) {
    // SAFETY: as in `errno`.
    unsafe { *libc::__errno_location() = value }
}

impl Collector {
    fn new(min_level: xentoollog_level, child_fd: c_int) -> Self {
        let mut logger = Box::<xenlight_logger>::new_uninit();
        let mut seen = Box::new(Mutex::new(Vec::new()));
        let data = (&raw mut *seen).cast();
        // SAFETY: fills the whole of `logger`; `data` points into a box that lives as long as the logger.
        let logger = unsafe {
            xenlight_logger_init(logger.as_mut_ptr(), Some(message), Some(progress), data, min_level, child_fd);
            logger.assume_init()
        };
        Self { logger, seen }
    }

    fn emit(&mut self, level: xentoollog_level, errnoval: c_int, context: Option<&CStr>, text: &CStr) {
        let context = context.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: the logger is initialised and stays in its box; the strings live during the call.
        unsafe { xenlight_logger_emit(&raw mut self.logger.vtable, level, errnoval, context, text.as_ptr()) };
    }

    fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// Runs in a forked child of this process, as libxl runs its own children, and waits for its end.
    fn in_child(&mut self, body: impl FnOnce(&mut Self)) {
        // SAFETY: the child runs only `body`, which is a call into the shim, and ends with _exit.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: plain system calls. The alarm ends a child that hangs.
            unsafe { libc::alarm(10) };
            body(self);
            // SAFETY: ends the child without running anything of the test harness.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0, "the child hung or died");
    }
}

fn pipe() -> (File, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: fills the array with two new descriptors, which are ours alone.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK), 0);
        (File::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

/// What the children wrote so far.
fn read_all(pipe: &mut File) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = pipe.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..n]);
    }
    bytes
}

#[test]
fn messages_reach_the_sink_whole() {
    let mut collector = Collector::new(XTL_INFO, -1);
    let long = CString::new("x".repeat(100_000)).unwrap();
    collector.emit(XTL_DEBUG, -1, Some(c"libxl"), c"below the least level");
    collector.emit(XTL_INFO, -1, Some(c"libxl"), c"100% of %s %n");
    collector.emit(XTL_ERROR, libc::ENOSPC, None, &long);
    for edge in [1022, 1023, 1024, 1025] {
        collector.emit(XTL_WARN, 0, Some(c"xc"), &CString::new("y".repeat(edge)).unwrap());
    }

    let message = |level, errnoval, context: Option<&str>, text: String| {
        let context = context.map(str::to_owned);
        Seen::Message { level, errnoval, context, text }
    };
    let mut expected = vec![
        message(XTL_INFO, -1, Some("libxl"), "100% of %s %n".to_owned()),
        message(XTL_ERROR, libc::ENOSPC, None, "x".repeat(100_000)),
    ];
    expected.extend([1022, 1023, 1024, 1025].map(|edge| message(XTL_WARN, 0, Some("xc"), "y".repeat(edge))));
    assert_eq!(collector.take(), expected);
}

#[test]
fn progress_reaches_the_sink_and_destroy_is_there() {
    let mut collector = Collector::new(XTL_INFO, -1);
    let (progress, destroy) =
        (collector.logger.vtable.progress.unwrap(), collector.logger.vtable.destroy.unwrap());
    // SAFETY: an initialised logger and strings that live during the calls; destroy frees nothing.
    unsafe {
        progress(&raw mut collector.logger.vtable, c"xc".as_ptr(), c"Saving memory".as_ptr(), 50, 2, 4);
        destroy(&raw mut collector.logger.vtable);
    }
    let (context, what) = (Some("xc".to_owned()), "Saving memory".to_owned());
    assert_eq!(collector.take(), [Seen::Progress { context, what, percent: 50, done: 2, total: 4 }]);

    collector.logger.progress = None;
    // SAFETY: as before.
    unsafe { progress(&raw mut collector.logger.vtable, ptr::null(), c"".as_ptr(), 0, 0, 0) };
    assert_eq!(collector.take(), []);
}

#[test]
fn errno_survives_logging() {
    let (_read, write) = pipe();
    let mut collector = Collector::new(XTL_INFO, write.as_raw_fd());
    set_errno(libc::EDOM);
    collector.emit(XTL_ERROR, -1, None, c"text");
    assert_eq!(errno(), libc::EDOM);

    // In a child too, whose write fails here.
    collector.logger.child_fd = 1_000_000;
    collector.in_child(|collector| {
        set_errno(libc::EDOM);
        collector.emit(XTL_ERROR, -1, None, c"text");
        assert_eq!(errno(), libc::EDOM);
    });
}

#[test]
fn children_write_records_while_locks_are_held() {
    let (mut read, write) = pipe();
    let mut collector = Collector::new(XTL_INFO, write.as_raw_fd());
    let seen: *const Mutex<Vec<Seen>> = &raw const *collector.seen;
    // SAFETY: the box lives until the end of the test. Held while forking, as another thread could do.
    let held = unsafe { (*seen).lock().unwrap() };
    collector.in_child(|collector| {
        collector.emit(XTL_DEBUG, -1, Some(c"libxl"), c"below the least level");
        collector.emit(XTL_WARN, libc::EIO, Some(c"libxl"), c"first: %d");
        collector.emit(XTL_ERROR, -1, None, c"");
    });
    drop(held);
    assert_eq!(collector.take(), [], "the sink must not be called in a child");

    let bytes = read_all(&mut read);
    let Parsed::Record(first, used) = ChildRecord::parse(&bytes) else { panic!("no first record in {bytes:?}") };
    assert!(first.pid > 0 && first.pid != i32::try_from(std::process::id()).unwrap());
    let expected = ChildRecord {
        pid: first.pid,
        level: XTL_WARN,
        errnoval: Some(libc::EIO),
        context: Some(b"libxl"),
        text: b"first: %d",
        truncated: false,
    };
    assert_eq!(first, expected);
    let Parsed::Record(second, last) = ChildRecord::parse(&bytes[used..]) else {
        panic!("no second in {bytes:?}")
    };
    let expected = ChildRecord { level: XTL_ERROR, errnoval: None, context: None, text: b"", ..expected };
    assert_eq!(second, expected);
    assert_eq!(used + last, bytes.len());
}

#[test]
fn long_messages_of_children_are_cut_to_one_record() {
    let (mut read, write) = pipe();
    let mut collector = Collector::new(XTL_INFO, write.as_raw_fd());
    let text = CString::new("z".repeat(10_000)).unwrap();
    let context = CString::new("c".repeat(10_000)).unwrap();
    collector.in_child(|collector| collector.emit(XTL_INFO, -1, Some(&context), &text));

    let bytes = read_all(&mut read);
    assert!(bytes.len() <= XENLIGHT_CHILD_RECORD_MAX as usize);
    let Parsed::Record(record, used) = ChildRecord::parse(&bytes) else { panic!("no record in {bytes:?}") };
    assert!(record.truncated);
    assert_eq!(used, bytes.len());
    assert!(record.text.len() > 1900 && record.text.iter().all(|&b| b == b'z'));
    assert!(record.context.unwrap().iter().all(|&b| b == b'c'));
}

#[test]
fn children_do_without_a_pipe_and_don_t_wait_for_a_full_one() {
    let mut collector = Collector::new(XTL_INFO, -1);
    collector.in_child(|collector| collector.emit(XTL_ERROR, -1, None, c"nowhere to go"));

    let (mut read, write) = pipe();
    let mut collector = Collector::new(XTL_INFO, write.as_raw_fd());
    collector.in_child(|collector| {
        for _ in 0..5_000 {
            collector.emit(XTL_ERROR, -1, Some(c"libxl"), c"more than the pipe holds");
        }
    });
    // What did fit is whole.
    let bytes = read_all(&mut read);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let Parsed::Record(record, used) = ChildRecord::parse(rest) else { panic!("cut record") };
        assert_eq!(record.text, b"more than the pipe holds");
        rest = &rest[used..];
    }
}
