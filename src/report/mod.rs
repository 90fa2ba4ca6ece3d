//! What people and init systems see of start and stop.
//!
//! Every line is written whole, whichever thread it comes from: what was done goes to standard output, what failed to
//! standard error. The exit code is taken from what was reported, so that nothing can fail without being said, or be
//! said without changing the exit code.
//!
//! The `log` facade has no part in it: what is said is about guests, and each line has one way out. libxl's own log is
//! the only other, with `-v`, and comes from libxl's logger; other programs get that from `xenlight` through the facade.
//!
//! - `sink`: where lines go: the streams, the `journal`, `syslog`; by way of an `outlet`, so that nobody waits for a reader
//! - `progress`: bars on a terminal
//! - `record`: everything as one JSON document instead
//! - `status`: one line for the service manager, and that we are ready, by way of `notify`

mod exit;
mod journal;
mod notify;
mod outlet;
mod progress;
mod record;
mod sink;
mod status;
mod syslog;

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

pub use exit::Exit;
use notify::Notify;
use progress::Bars;
pub use progress::Progress;
use record::Record;
use sink::{Level, Sink};
use status::Status;
pub use status::Work;

/// Something that is done with a guest. Its name in JSON is part of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Build it from its image and let it run.
    Restore,
    /// Create it from its configuration and let it run.
    #[serde(rename = "start")]
    Create,
    /// Send it SysRq letters.
    #[serde(rename = "sysrq")]
    SysRq,
    /// Move it to another host, while it runs.
    Migrate,
    /// Write its image and destroy it.
    Save,
    /// Ask it to shut down, and wait.
    #[serde(rename = "shutdown")]
    ShutDown,
    /// Ask it to shut down.
    #[serde(rename = "shutdown-request")]
    AskToShutDown,
    /// End it at once.
    Destroy,
    /// Free what is left of a guest that has shut down by itself.
    CleanUp,
    /// All of it: see it gone.
    Stop,
}

impl Action {
    /// For "failed".
    fn name(self) -> &'static str {
        match self {
            Action::Restore => "restore",
            Action::Create => "start",
            Action::SysRq => "SysRq",
            Action::Migrate => "migration",
            Action::Save => "save",
            Action::ShutDown => "shutdown",
            Action::AskToShutDown => "shutdown request",
            Action::Destroy => "destruction",
            Action::CleanUp => "cleaning up",
            Action::Stop => "stop",
        }
    }

    /// For work under way.
    fn doing(self) -> &'static str {
        match self {
            Action::Restore => "restoring",
            Action::Create => "starting",
            Action::SysRq => "sending SysRq",
            Action::Migrate => "migrating",
            Action::Save => "saving",
            Action::ShutDown => "shutting down",
            Action::AskToShutDown => "asking to shut down",
            Action::Destroy => "destroying",
            Action::CleanUp => "cleaning up",
            Action::Stop => "stopping",
        }
    }

    /// Whether a guest has been stopped or started by it.
    fn is_last(self) -> bool {
        !matches!(self, Action::SysRq | Action::AskToShutDown)
    }

    /// For a success.
    fn done(self) -> &'static str {
        match self {
            Action::Restore => "restored",
            Action::Create => "started",
            Action::SysRq => "SysRq sent",
            Action::Migrate => "migrated",
            Action::Save => "saved",
            Action::ShutDown => "shut down",
            Action::AskToShutDown => "asked to shut down",
            Action::Destroy => "destroyed",
            Action::CleanUp => "cleaned up",
            Action::Stop => "stopped",
        }
    }
}

/// Time that the last lines are waited for in the end, if nobody takes them.
const LAST_LINES: Duration = Duration::from_secs(5);

/// Time that the reader of the JSON of start or stop has.
const DOCUMENT: Duration = Duration::from_secs(60);

/// Writes the lines, and counts.
pub struct Reporter {
    inner: Mutex<Inner>,
    status: Status,
}

struct Inner {
    out: Sink,
    err: Sink,
    bars: Bars,
    /// What takes the place of the lines on standard output, if that is to be JSON.
    record: Option<Record>,
    /// Successes and failures since the last summary.
    done: Vec<(Action, usize)>,
    failed: usize,
    /// Whether anything has failed at all.
    any_failed: bool,
}

impl Reporter {
    /// Writes what was done to `out` and what failed to `err`.
    pub fn new(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Reporter {
        Reporter::over(Sink::plain(out, err))
    }

    /// Writes to this process's standard output and standard error, and to the system's log where those are nobody's to
    /// read. `acts` is whether the command starts or stops guests; `alone` is whether nothing but the reporter writes to
    /// the terminal, so that bars can be drawn there.
    pub fn of_process(acts: bool, alone: bool) -> Reporter {
        let mut report = Reporter::over(Sink::of_process(io::stdout(), io::stderr(), acts));
        if let Some(notify) = Notify::of_process().filter(|_| acts) {
            report.status = Status::new(notify);
        }
        let is_dumb = std::env::var_os("TERM").is_some_and(|kind| kind == "dumb");
        if alone && !is_dumb && io::stderr().is_terminal() {
            let err = report.lock().err.clone();
            report.with_bars(Bars::on_terminal(err))
        } else {
            report
        }
    }

    fn over((out, err): (Sink, Sink)) -> Reporter {
        let (done, bars) = (Vec::new(), Bars::none());
        let inner = Inner { out, err, bars, record: None, done, failed: 0, any_failed: false };
        Reporter { inner: Mutex::new(inner), status: Status::default() }
    }

    fn with_bars(self, bars: Bars) -> Reporter {
        self.lock().bars = bars;
        self
    }

    /// From now on, nothing is written to standard output until [`finish`](Self::finish).
    pub fn as_json(&self) {
        self.lock().record = Some(Record::new());
    }

    /// Ends the program's report: writes the JSON, if that was asked for, and waits a while for the last lines.
    pub fn finish(&self, exit: Exit) -> io::Result<()> {
        let record = self.lock().record.take();
        let written = record.map_or(Ok(()), |record| self.deliver(&record.json(exit), Some(DOCUMENT)));
        self.flush();
        written
    }

    /// Waits until every line is written, but not for ever.
    pub fn flush(&self) {
        let (out, err) = self.sinks();
        let deadline = Instant::now() + LAST_LINES;
        out.flush(deadline);
        err.flush(deadline);
    }

    /// This was done with a guest.
    pub fn done(&self, action: Action, guest: &str, took: Duration) {
        let mut inner = self.lock();
        match inner.done.iter_mut().find(|(known, _)| *known == action) {
            Some((_, count)) => *count += 1,
            None => inner.done.push((action, 1)),
        }
        if let Some(record) = &mut inner.record {
            record.action(action, guest, took.as_secs_f64(), None);
        }
        inner.say(&format!("{guest}: {} ({})", action.done(), seconds(took)));
        drop(inner);
        if action.is_last() {
            self.status.reached(guest);
        }
    }

    /// This failed for a guest.
    pub fn failed(&self, action: Action, guest: &str, took: Duration, reason: &str) {
        let mut inner = self.lock();
        inner.count_failure();
        if let Some(record) = &mut inner.record {
            record.action(action, guest, took.as_secs_f64(), Some(reason));
        }
        let line = format!("{guest}: {} FAILED ({}): {reason}", action.name(), seconds(took));
        inner.complain(Level::Error, &line);
    }

    /// Something failed that is not about one guest.
    pub fn error(&self, message: &str) {
        let mut inner = self.lock();
        inner.count_failure();
        inner.message(Level::Error, message);
        inner.complain(Level::Error, &format!("error: {message}"));
    }

    /// Something is doubtful, but nothing has failed.
    pub fn warn(&self, message: &str) {
        let mut inner = self.lock();
        inner.message(Level::Warning, message);
        inner.complain(Level::Warning, &format!("warning: {message}"));
    }

    /// Something worth knowing.
    pub fn note(&self, message: &str) {
        let mut inner = self.lock();
        inner.message(Level::Info, message);
        inner.say(message);
    }

    /// This is being done with a guest, and can tell how far it is.
    pub fn progress(&self, action: Action, guest: &str) -> Progress {
        self.lock().bars.begin(one_line(&format!("{guest}: {}", action.doing())))
    }

    /// For the service manager: these guests are to be brought to something, `started` or `stopped`. There may be more
    /// later.
    pub fn expect(&self, aim: &'static str, guests: impl Iterator<Item = String>) {
        self.status.expect(aim, guests);
    }

    /// For the service manager: this is being done with a guest, and has to come to an end by then.
    pub fn work(&self, action: Action, guest: &str, deadline: Option<Instant>) -> Work {
        self.status.work(action, guest, deadline)
    }

    /// For the service manager: this process is as far as whoever has started it waits for.
    pub fn ready(&self) {
        // The streams may be given up now.
        self.flush();
        self.status.ready();
    }

    /// For the service manager: what is going on, in a line.
    pub fn state(&self, text: &str) {
        self.status.say(text);
    }

    /// Ends a command: one line that sums it up.
    pub fn summary(&self, command: &str, took: Duration) {
        let mut inner = self.lock();
        let mut parts: Vec<String> = Vec::new();
        for (action, count) in &inner.done {
            parts.push(format!("{count} {}", action.done()));
        }
        if inner.failed > 0 {
            let noun = if inner.failed == 1 { "failure" } else { "failures" };
            parts.push(format!("{} {noun}", inner.failed));
        }
        if parts.is_empty() {
            parts.push("nothing to do".to_owned());
        }
        inner.done.clear();
        inner.failed = 0;
        let line = format!("{command}: {} ({})", parts.join(", "), seconds(took));
        inner.say(&line);
        drop(inner);
        self.status.say(&line);
    }

    /// The exit code that follows from what was reported.
    pub fn exit(&self) -> Exit {
        if self.lock().any_failed { Exit::Failed } else { Exit::Done }
    }

    /// Writes the answer to a question, such as a table. A reader who has gone away has read enough.
    pub fn answer(&self, text: &str) -> io::Result<()> {
        self.deliver(text, None)
    }

    fn deliver(&self, text: &str, limit: Option<Duration>) -> io::Result<()> {
        let (out, _) = self.sinks();
        match out.answer(text, limit) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    fn sinks(&self) -> (Sink, Sink) {
        let inner = self.lock();
        (inner.out.clone(), inner.err.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panicking thread has left are whole lines and counts.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.flush();
        let (out, err) = self.sinks();
        out.close();
        err.close();
    }
}

impl Inner {
    fn count_failure(&mut self) {
        self.failed += 1;
        self.any_failed = true;
    }

    fn message(&mut self, level: Level, text: &str) {
        if let Some(record) = &mut self.record {
            record.message(level, text);
        }
    }

    fn say(&mut self, line: &str) {
        if self.record.is_some() {
            self.out.log(Level::Info, line);
        } else {
            self.bars.aside(|| self.out.line(Level::Info, line));
        }
    }

    fn complain(&mut self, level: Level, line: &str) {
        self.bars.aside(|| self.err.line(level, line));
    }
}

/// Makes one line of it: names and messages come from guests and tools, and must not move a terminal's cursor or forge
/// further lines.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for (number, part) in text.lines().filter(|part| !part.trim().is_empty()).enumerate() {
        if number > 0 {
            line.push_str("; ");
        }
        for letter in part.chars() {
            if letter.is_control() {
                line.extend(letter.escape_default());
            } else {
                line.push(letter);
            }
        }
    }
    line
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

/// A place to write to and to read back from, for tests.
#[cfg(test)]
#[derive(Clone, Default)]
pub(crate) struct Buffer(std::sync::Arc<Mutex<Vec<u8>>>);

#[cfg(test)]
impl Buffer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("whole").clone()).expect("text")
    }
}

#[cfg(test)]
impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("whole").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(tell: impl FnOnce(&Reporter)) -> (String, String) {
        let (out, err) = (Buffer::default(), Buffer::default());
        tell(&Reporter::new(Box::new(out.clone()), Box::new(err.clone())));
        (out.text(), err.text())
    }

    #[test]
    fn successes_and_failures_are_lines_counts_and_the_exit_code() {
        let (out, err) = reported(|report| {
            report.done(Action::Restore, "web", Duration::from_millis(3210));
            report.done(Action::Create, "db", Duration::ZERO);
            report.done(Action::Restore, "mail", Duration::from_secs(1));
            assert_eq!(report.exit(), Exit::Done);
            report.warn("hm");
            assert_eq!(report.exit(), Exit::Done);
            report.failed(Action::Create, "bad", Duration::from_secs(2), "no\nkernel\n");
            assert_eq!(report.exit(), Exit::Failed);
            report.summary("start", Duration::from_secs(9));
        });
        assert_eq!(
            out,
            "web: restored (3.2 s)\ndb: started (0.0 s)\nmail: restored (1.0 s)\n\
             start: 2 restored, 1 started, 1 failure (9.0 s)\n"
        );
        assert_eq!(err, "warning: hm\nbad: start FAILED (2.0 s): no; kernel\n");
    }

    #[test]
    fn as_json_the_lines_on_standard_output_are_one_document() {
        let (out, err) = reported(|report| {
            report.as_json();
            report.done(Action::AskToShutDown, "web\n", Duration::from_secs(2));
            report.failed(Action::Save, "db", Duration::from_millis(1500), "no\nroom");
            report.note("left running");
            report.error("lost");
            report.summary("stop", Duration::ZERO);
            report.finish(report.exit()).expect("written");
            report.note("afterwards");
        });
        assert_eq!(err, "db: save FAILED (1.5 s): no; room\nerror: lost\n");
        let document = out.strip_suffix("afterwards\n").expect("the document comes first");
        let mut json: serde_json::Value = serde_json::from_str(document).expect("JSON");
        assert!(json["seconds"].take().is_number());
        assert_eq!(
            json,
            serde_json::json!({
                "exit": 1,
                "seconds": null,
                "actions": [
                    {"guest": "web\n", "action": "shutdown-request", "result": "done", "seconds": 2.0, "reason": null},
                    {"guest": "db", "action": "save", "result": "failed", "seconds": 1.5, "reason": "no\nroom"},
                ],
                "messages": [{"level": "note", "text": "left running"}, {"level": "error", "text": "lost"}],
            })
        );
    }

    #[test]
    fn every_action_is_named_in_json_as_the_manual_page_says() {
        let names = [
            (Action::Restore, "restore"),
            (Action::Create, "start"),
            (Action::SysRq, "sysrq"),
            (Action::Migrate, "migrate"),
            (Action::Save, "save"),
            (Action::ShutDown, "shutdown"),
            (Action::AskToShutDown, "shutdown-request"),
            (Action::CleanUp, "clean-up"),
            (Action::Stop, "stop"),
        ];
        for (action, name) in names {
            assert_eq!(serde_json::to_value(action).expect("JSON"), name);
        }
    }

    #[test]
    fn nothing_to_do_is_said() {
        let (out, _) = reported(|report| report.summary("stop", Duration::ZERO));
        assert_eq!(out, "stop: nothing to do (0.0 s)\n");
    }

    #[test]
    fn names_cannot_forge_lines_or_move_the_cursor() {
        let (out, _) = reported(|report| report.note("a\u{1b}[2Jb\nerror: x"));
        assert_eq!(out, "a\\u{1b}[2Jb; error: x\n");
    }

    #[test]
    fn a_reader_who_went_away_is_no_failure() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let report = Reporter::new(Box::new(Closed), Box::new(Closed));
        report.done(Action::Save, "web", Duration::ZERO);
        assert_eq!(report.exit(), Exit::Done);
        assert!(report.answer("x").is_ok());
    }
}
