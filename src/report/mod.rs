//! What people and init systems see of start and stop.
//!
//! Every line is written whole, whichever thread it comes from: what was done goes to standard output, what failed to
//! standard error. The exit code is taken from what was reported, so that nothing can fail without being said, or be
//! said without changing the exit code.

mod exit;

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use exit::Exit;

/// Something that is done with a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Build it from its image and let it run.
    Restore,
    /// Create it from its configuration and let it run.
    Create,
    /// Send it SysRq letters.
    SysRq,
    /// Write its image and destroy it.
    Save,
    /// Ask it to shut down, and wait.
    ShutDown,
    /// Ask it to shut down.
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
            Action::Save => "save",
            Action::ShutDown => "shutdown",
            Action::AskToShutDown => "shutdown request",
            Action::Destroy => "destruction",
            Action::CleanUp => "cleaning up",
            Action::Stop => "stop",
        }
    }

    /// For a success.
    fn done(self) -> &'static str {
        match self {
            Action::Restore => "restored",
            Action::Create => "started",
            Action::SysRq => "SysRq sent",
            Action::Save => "saved",
            Action::ShutDown => "shut down",
            Action::AskToShutDown => "asked to shut down",
            Action::Destroy => "destroyed",
            Action::CleanUp => "cleaned up",
            Action::Stop => "stopped",
        }
    }
}

/// Writes the lines, and counts.
pub struct Reporter {
    inner: Mutex<Inner>,
}

struct Inner {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    /// Successes and failures since the last summary.
    done: Vec<(Action, usize)>,
    failed: usize,
    /// Whether anything has failed at all.
    any_failed: bool,
}

impl Reporter {
    /// Writes what was done to `out` and what failed to `err`.
    pub fn new(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> Reporter {
        Reporter { inner: Mutex::new(Inner { out, err, done: Vec::new(), failed: 0, any_failed: false }) }
    }

    /// This was done with a guest.
    pub fn done(&self, action: Action, guest: &str, took: Duration) {
        let mut inner = self.lock();
        match inner.done.iter_mut().find(|(known, _)| *known == action) {
            Some((_, count)) => *count += 1,
            None => inner.done.push((action, 1)),
        }
        inner.say(&format!("{guest}: {} ({})", action.done(), seconds(took)));
    }

    /// This failed for a guest.
    pub fn failed(&self, action: Action, guest: &str, took: Duration, reason: &str) {
        let mut inner = self.lock();
        inner.count_failure();
        inner.complain(&format!("{guest}: {} FAILED ({}): {reason}", action.name(), seconds(took)));
    }

    /// Something failed that is not about one guest.
    pub fn error(&self, message: &str) {
        let mut inner = self.lock();
        inner.count_failure();
        inner.complain(&format!("error: {message}"));
    }

    /// Something is doubtful, but nothing has failed.
    pub fn warn(&self, message: &str) {
        self.lock().complain(&format!("warning: {message}"));
    }

    /// Something worth knowing.
    pub fn note(&self, message: &str) {
        self.lock().say(message);
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
        inner.say(&format!("{command}: {} ({})", parts.join(", "), seconds(took)));
    }

    /// The exit code that follows from what was reported.
    pub fn exit(&self) -> Exit {
        if self.lock().any_failed { Exit::Failed } else { Exit::Done }
    }

    /// Writes the answer to a question, such as a table. A reader who has gone away has read enough.
    pub fn answer(&self, text: &str) -> io::Result<()> {
        let out = &mut self.lock().out;
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panicking thread has left are whole lines and counts.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn count_failure(&mut self) {
        self.failed += 1;
        self.any_failed = true;
    }

    fn say(&mut self, line: &str) {
        print_line(&mut *self.out, line);
    }

    fn complain(&mut self, line: &str) {
        print_line(&mut *self.err, line);
    }
}

/// Writes one line in one piece. That nobody reads it (a closed pipe, a full disk under a log) is no reason to leave
/// guests alone, and there is no place left to say it.
fn print_line(to: &mut dyn Write, line: &str) {
    let mut text = one_line(line);
    text.push('\n');
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
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
