//! libxl's log: captured per context, so that an error can carry the lines that explain it.

use std::collections::{HashSet, VecDeque};
use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::pipe::{PipeFlags, pipe_with};
use xenlight_sys::libxl::{XTL_DEBUG, xentoollog_level, xentoollog_logger};
use xenlight_sys::logger::{ChildRecord, Parsed, xenlight_logger, xenlight_logger_init};

use crate::Domid;
use crate::call::in_sink;
use crate::sync::lock;

/// Warnings and errors kept per context. Operations pick theirs out of these; older ones are dropped first.
const KEPT_RECORDS: usize = 1024;

/// How important a log line is, in libxl's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// For libxl's developers.
    Debug,
    /// Chatty.
    Verbose,
    /// Details.
    Detail,
    /// How far a long operation is.
    Progress,
    /// Worth knowing.
    Info,
    /// Worth noticing.
    Notice,
    /// Something is odd, libxl goes on.
    Warn,
    /// Something failed.
    Error,
    /// Something failed badly.
    Critical,
}

impl LogLevel {
    fn from_raw(raw: xentoollog_level) -> Self {
        match raw {
            ..=1 => Self::Debug,
            2 => Self::Verbose,
            3 => Self::Detail,
            4 => Self::Progress,
            5 => Self::Info,
            6 => Self::Notice,
            7 => Self::Warn,
            8 => Self::Error,
            9.. => Self::Critical,
        }
    }
}

/// One line of libxl's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// How important it is.
    pub level: LogLevel,
    /// The `errno` that goes with it.
    pub errno: Option<i32>,
    /// The part of libxl that speaks: `libxl` or `xc`.
    pub context: Option<String>,
    /// The text, usually with libxl's source position and `Domain N:` in front.
    pub text: String,
}

impl LogRecord {
    /// The domain that the line says it is about.
    pub fn domid(&self) -> Option<Domid> {
        let rest = &self.text[self.text.find("Domain ")? + "Domain ".len()..];
        let end = rest.find(':')?;
        rest[..end].parse().ok()
    }
}

impl fmt::Display for LogRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(context) = &self.context {
            write!(f, "{context}: ")?;
        }
        Text(self).fmt(f)
    }
}

/// A line without the part of libxl that speaks.
struct Text<'a>(&'a LogRecord);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.text.trim_end())?;
        if let Some(errno) = self.0.errno {
            write!(f, ": {}", std::io::Error::from_raw_os_error(errno))?;
        }
        Ok(())
    }
}

/// How far a long operation (the copying of a guest's memory) is. libxl does not say which domain it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The part of libxl that speaks.
    pub context: Option<String>,
    /// What is being done.
    pub doing: String,
    /// Per cent done.
    pub percent: i32,
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}

/// Receives every log line and progress report of a context.
///
/// Its functions are called by whichever thread is inside libxl, with libxl's lock held, so they must be quick and must not
/// wait for another thread that uses the context. They can't call libxl: all that does is refused with
/// [`Cause::NotAllowed`](crate::Cause::NotAllowed), or returns `None` where it has no error. Handles of this crate may be
/// dropped in them: the event thread does later what belongs to that.
///
/// A panic is caught and becomes a log record. The sink is not called again, and the operation that was logging goes on.
pub trait LogSink: Send + Sync {
    /// A log line.
    fn record(&self, record: &LogRecord);

    /// A progress report. The default ignores it.
    fn progress(&self, progress: &Progress) {
        let _ = progress;
    }
}

/// Hands each line of libxl's log to the `log` crate, for whatever logger the program has. The target is `libxl`, or
/// `libxl::xc` for the part of that name.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogFacade;

impl LogSink for LogFacade {
    fn record(&self, record: &LogRecord) {
        let level = match record.level {
            LogLevel::Debug | LogLevel::Verbose | LogLevel::Detail => ::log::Level::Debug,
            // Those who want bars implement `progress`.
            LogLevel::Progress => ::log::Level::Trace,
            LogLevel::Info | LogLevel::Notice => ::log::Level::Info,
            LogLevel::Warn => ::log::Level::Warn,
            LogLevel::Error | LogLevel::Critical => ::log::Level::Error,
        };
        let target = if record.context.as_deref() == Some("xc") { "libxl::xc" } else { "libxl" };
        ::log::log!(target: target, level, "{}", Text(record));
    }
}

/// A position in a context's log, taken before a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(u64);

struct Kept {
    next: u64,
    records: VecDeque<(u64, LogRecord)>,
}

/// What the C side's callbacks get as `data`.
struct State {
    kept: Mutex<Kept>,
    sink: Option<Arc<dyn LogSink>>,
    sink_failed: AtomicBool,
    /// Domains that libxl has asked to suspend themselves, since the last save of each began.
    asked_to_suspend: Mutex<HashSet<Domid>>,
}

/// Part of the line with which libxl says, in every release so far, that it asks a guest to suspend itself.
const ASKS_TO_SUSPEND: &str = " suspend request via ";

thread_local! {
    /// Set while this thread asks libxl something whose error is an answer and not news.
    static MUTED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `f` without recording what libxl logs on this thread meanwhile.
pub(crate) fn muted<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            MUTED.set(self.0);
        }
    }
    let _restore = Restore(MUTED.replace(true));
    f()
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }

    fn keep(&self, record: LogRecord) {
        let mut kept = self.lock();
        let number = kept.next;
        kept.next += 1;
        if record.level >= LogLevel::Warn {
            if kept.records.len() == KEPT_RECORDS {
                kept.records.pop_front();
            }
            kept.records.push_back((number, record));
        }
    }

    fn with_sink(&self, f: impl FnOnce(&dyn LogSink)) {
        let Some(sink) = &self.sink else { return };
        if self.sink_failed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| in_sink(|| f(sink.as_ref())))) {
            self.sink_failed.store(true, Ordering::Relaxed);
            self.keep(LogRecord {
                level: LogLevel::Critical,
                errno: None,
                context: Some("xenlight".into()),
                text: format!("the log sink panicked and is not called any more: {}", panic_text(&*panic)),
            });
        }
    }

    fn accept(&self, record: LogRecord) {
        if MUTED.get() {
            return;
        }
        if record.level == LogLevel::Debug && record.text.contains(ASKS_TO_SUSPEND) {
            lock(&self.asked_to_suspend).extend(record.domid());
        }
        self.with_sink(|sink| sink.record(&record));
        self.keep(record);
    }
}

/// The message of a caught panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}

/// The logger that a libxl context is given. It must outlive that context.
pub(crate) struct Logger {
    /// Both boxes stay where they are while C holds pointers to them; they are freed in `drop`.
    shim: *mut xenlight_logger,
    state: *mut State,
    child_read: OwnedFd,
    /// Kept open for the forked children that write to it.
    _child_write: OwnedFd,
}

// SAFETY: the shim is written only while it is made; `State` is Sync (mutex, atomics, a Sync sink).
unsafe impl Send for Logger {}
// SAFETY: as above: all that is shared after construction is behind `State`'s mutex and atomics.
unsafe impl Sync for Logger {}

impl Logger {
    pub(crate) fn new(sink: Option<Arc<dyn LogSink>>) -> std::io::Result<Self> {
        let (child_read, child_write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let state = Box::into_raw(Box::new(State {
            kept: Mutex::new(Kept { next: 0, records: VecDeque::new() }),
            sink,
            sink_failed: AtomicBool::new(false),
            asked_to_suspend: Mutex::default(),
        }));
        // SAFETY: all-zero is a valid value of this plain C struct (null function pointers, zero integers).
        let shim = Box::into_raw(Box::new(unsafe { std::mem::zeroed::<xenlight_logger>() }));
        // SAFETY: `shim` was just allocated with the struct's size, `state` lives until `drop`, which runs after
        // the context is gone, and both callbacks have the types that the shim declares.
        unsafe {
            xenlight_logger_init(
                shim,
                Some(on_message),
                Some(on_progress),
                state.cast(),
                XTL_DEBUG,
                child_write.as_raw_fd(),
            );
        }
        Ok(Self { shim, state, child_read, _child_write: child_write })
    }

    /// The caller's sink, for another context.
    pub(crate) fn sink(&self) -> Option<Arc<dyn LogSink>> {
        self.state().sink.clone()
    }

    /// Forgets that a domain was asked to suspend itself.
    pub(crate) fn begin_save(&self, domid: Domid) {
        lock(&self.state().asked_to_suspend).remove(&domid);
    }

    /// Returns whether libxl has asked a domain to suspend itself since its last save began.
    pub(crate) fn was_asked_to_suspend(&self, domid: Domid) -> bool {
        lock(&self.state().asked_to_suspend).contains(&domid)
    }

    /// What libxl wants as its logger.
    pub(crate) fn as_raw(&self) -> *mut xentoollog_logger {
        self.shim.cast()
    }

    fn state(&self) -> &State {
        // SAFETY: `state` came from a Box that only `drop` frees.
        unsafe { &*self.state }
    }

    /// Readable when a forked child of libxl has logged something.
    pub(crate) fn child_fd(&self) -> BorrowedFd<'_> {
        self.child_read.as_fd()
    }

    /// Takes in what forked children have logged.
    pub(crate) fn drain_children(&self) {
        // Records are written whole and the pipe is read whole, so a record never ends in the next read: whatever
        // fits a pipe fits the buffer.
        let mut buffer = vec![0u8; 1 << 16];
        while let Ok(n @ 1..) = rustix::io::read(&self.child_read, &mut buffer[..]) {
            let mut rest = &buffer[..n];
            while let Parsed::Record(record, used) = ChildRecord::parse(rest) {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                self.state().accept(LogRecord {
                    level: LogLevel::from_raw(record.level),
                    errno: record.errnoval,
                    context: record.context.map(text),
                    text: text(record.text),
                });
                rest = &rest[used..];
            }
        }
    }

    /// The present position, to be handed to [`Logger::since`].
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.state().lock().next)
    }

    /// Warnings and errors logged since `mark` that name `domid` or no domain. Without a `domid`: all.
    pub(crate) fn since(&self, mark: Mark, domid: Option<Domid>) -> Vec<LogRecord> {
        let kept = self.state().lock();
        kept.records
            .iter()
            .filter(|(number, _)| *number >= mark.0)
            .map(|(_, record)| record)
            .filter(|record| domid.is_none() || record.domid().is_none_or(|d| Some(d) == domid))
            .cloned()
            .collect()
    }

    pub(crate) fn note(&self, level: LogLevel, text: String) {
        self.state().accept(LogRecord { level, errno: None, context: Some("xenlight".into()), text });
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        // SAFETY: both came from `Box::into_raw` in `new`; the context that used them has been freed before its
        // logger, so C holds no pointer to them any more.
        unsafe {
            drop(Box::from_raw(self.shim));
            drop(Box::from_raw(self.state));
        }
    }
}

fn text(s: *const c_char) -> Option<String> {
    if s.is_null() {
        return None;
    }
    // SAFETY: not null, and the shim hands over NUL-terminated strings that live during the call.
    Some(unsafe { CStr::from_ptr(s) }.to_string_lossy().into_owned())
}

/// The shim's message sink. Called in this process only, never in a forked child.
unsafe extern "C" fn on_message(
    data: *mut c_void,
    level: xentoollog_level,
    errnoval: c_int,
    context: *const c_char,
    message: *const c_char,
) {
    // SAFETY: `data` is the `State` that `Logger::new` registered; the logger outlives the context that calls us.
    let state = unsafe { &*data.cast::<State>() };
    let record = LogRecord {
        level: LogLevel::from_raw(level),
        errno: (errnoval >= 0).then_some(errnoval),
        context: text(context),
        text: text(message).unwrap_or_default(),
    };
    state.accept(record);
}

/// The shim's progress sink.
unsafe extern "C" fn on_progress(
    data: *mut c_void,
    context: *const c_char,
    doing: *const c_char,
    percent: c_int,
    done: c_ulong,
    total: c_ulong,
) {
    // SAFETY: as in `on_message`.
    let state = unsafe { &*data.cast::<State>() };
    let progress =
        Progress { context: text(context), doing: text(doing).unwrap_or_default(), percent, done, total };
    state.with_sink(|sink| sink.progress(&progress));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(level: LogLevel, text: &str) -> LogRecord {
        LogRecord { level, errno: None, context: None, text: text.into() }
    }

    #[test]
    fn the_domain_is_read_out_of_the_text() {
        let d = |s| record(LogLevel::Error, s).domid();
        assert_eq!(d("libxl_exec.c:117:libxl_report_child_exitstatus: Domain 12:no helper"), Some(12));
        assert_eq!(d("Domain with a strange name: x"), None);
        assert_eq!(d("nothing"), None);
    }

    #[test]
    fn lines_of_other_domains_are_left_out() {
        let logger = Logger::new(None).expect("logger");
        logger.state().accept(record(LogLevel::Error, "before"));
        let mark = logger.mark();
        for line in ["Domain 1:mine", "Domain 2:theirs", "nobody's"] {
            logger.state().accept(record(LogLevel::Error, line));
        }
        logger.state().accept(record(LogLevel::Info, "Domain 1:chatter"));
        let lines: Vec<_> = logger.since(mark, Some(1)).into_iter().map(|r| r.text).collect();
        assert_eq!(lines, ["Domain 1:mine", "nobody's"]);
        assert_eq!(logger.since(mark, None).len(), 3);
    }

    #[test]
    fn a_panicking_sink_is_reported_once_and_never_called_again() {
        struct Bad;
        impl LogSink for Bad {
            fn record(&self, _: &LogRecord) {
                panic!("no room");
            }
        }
        let logger = Logger::new(Some(Arc::new(Bad))).expect("logger");
        let mark = logger.mark();
        logger.state().accept(record(LogLevel::Error, "one"));
        logger.state().accept(record(LogLevel::Error, "two"));
        let lines: Vec<_> = logger.since(mark, None).into_iter().map(|r| r.text).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains("no room"), "{lines:?}");
        assert_eq!(lines[1..], ["one", "two"]);
    }

    #[test]
    fn the_programs_own_logger_gets_the_lines() {
        struct Collector(Mutex<Vec<String>>);
        impl ::log::Log for Collector {
            fn enabled(&self, _: &::log::Metadata<'_>) -> bool {
                true
            }

            fn log(&self, record: &::log::Record<'_>) {
                let line = format!("{} {}: {}", record.level(), record.target(), record.args());
                self.0.lock().expect("whole").push(line);
            }

            fn flush(&self) {}
        }
        static COLLECTOR: Collector = Collector(Mutex::new(Vec::new()));
        ::log::set_logger(&COLLECTOR).expect("no other test has a logger");
        ::log::set_max_level(::log::LevelFilter::Debug);
        let logger = Logger::new(Some(Arc::new(LogFacade))).expect("logger");
        let full = LogRecord { errno: Some(28), context: Some("xc".into()), ..record(LogLevel::Error, "write\n") };
        for line in [full, record(LogLevel::Notice, "Domain 1:web"), record(LogLevel::Progress, "5%")] {
            logger.state().accept(line);
        }
        assert_eq!(
            *COLLECTOR.0.lock().expect("whole"),
            ["ERROR libxl::xc: write: No space left on device (os error 28)", "INFO libxl: Domain 1:web"]
        );
    }

    #[test]
    fn muted_lines_leave_no_trace() {
        let logger = Logger::new(None).expect("logger");
        let mark = logger.mark();
        muted(|| logger.state().accept(record(LogLevel::Error, "expected")));
        logger.state().accept(record(LogLevel::Error, "news"));
        assert_eq!(logger.since(mark, None).len(), 1);
    }
}
