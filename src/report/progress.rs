//! Bars that show a person at a terminal how far long work is.
//!
//! libxl tells how far a save is only in frames of the guest's address space, holes included, and of a restore nothing.
//! How much of the image has been written or read tells both, so a bar follows that ([`Progress::follow`]).

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io, thread};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use rustix::termios::tcgetwinsize;

use super::sink::Sink;

/// How often a bar looks how far the work is.
const LOOK: Duration = Duration::from_millis(200);

/// Drawings in a second.
const DRAWINGS: u8 = 20;

/// The terminal, if there is one for bars.
pub(super) struct Bars {
    bars: Option<MultiProgress>,
    /// By way of which they are drawn. While nobody looks they stand still.
    sink: Option<Sink>,
}

impl Bars {
    pub(super) fn none() -> Bars {
        Bars { bars: None, sink: None }
    }

    /// Bars on the terminal that this leads to.
    pub(super) fn on_terminal(sink: Sink) -> Bars {
        let terminal = Terminal { sink: sink.clone(), drawing: Mutex::default(), size };
        Bars::on(ProgressDrawTarget::term_like_with_hz(Box::new(terminal), DRAWINGS), sink)
    }

    fn on(target: ProgressDrawTarget, sink: Sink) -> Bars {
        Bars { bars: Some(MultiProgress::with_draw_target(target)), sink: Some(sink) }
    }

    /// Writes to the terminal while no bar is on it.
    pub(super) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    pub(super) fn begin(&self, what: String) -> Progress {
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {bytes}/{total_bytes}");
        let shown = self.bars.as_ref().zip(style.ok()).map(|(bars, style)| {
            let bar = ProgressBar::no_length().with_style(style.progress_chars("=> ")).with_prefix(what);
            Shown { bars: bars.clone(), bar: bars.add(bar), sink: self.sink.clone() }
        });
        Progress { shown, following: None }
    }
}

/// The bar of one piece of work, which is gone from the terminal when this is dropped. Without a terminal it does nothing.
pub struct Progress {
    shown: Option<Shown>,
    /// A thread looks how far it is until this is dropped.
    following: Option<Sender<()>>,
}

#[derive(Clone)]
struct Shown {
    bars: MultiProgress,
    bar: ProgressBar,
    sink: Option<Sink>,
}

impl Shown {
    fn show(&self, done: u64, total: u64) {
        if self.sink.as_ref().is_some_and(Sink::is_behind) {
            return;
        }
        if self.bar.length() != Some(total) {
            self.bar.set_length(total);
        }
        self.bar.set_position(done.min(total));
    }
}

impl Progress {
    /// This much is done, in bytes.
    pub fn set(&self, done: u64, total: u64) {
        if let Some(shown) = &self.shown {
            shown.show(done, total);
        }
    }

    /// Shows from now on what `done` tells, in bytes, of a total that may be an estimate.
    pub fn follow(&mut self, total: u64, done: impl Fn() -> u64 + Send + 'static) {
        let Some(shown) = self.shown.clone() else { return };
        let (stop, stopped) = channel();
        let look = move || {
            loop {
                shown.show(done(), total);
                if stopped.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        // Without another thread there is a bar that stands still.
        if thread::Builder::new().name("progress".into()).spawn(look).is_ok() {
            self.following = Some(stop);
        }
    }
}

/// The terminal for indicatif, which would wait for it: what is drawn goes the way of the lines.
struct Terminal {
    sink: Sink,
    drawing: Mutex<String>,
    /// Its rows and columns.
    size: fn() -> (u16, u16),
}

/// The size of this process's terminal.
fn size() -> (u16, u16) {
    let size = tcgetwinsize(io::stderr()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

impl Terminal {
    fn draw(&self, text: &str) -> io::Result<()> {
        self.drawing.lock().unwrap_or_else(PoisonError::into_inner).push_str(text);
        Ok(())
    }

    /// Moves the cursor, in the direction that this letter stands for.
    fn step(&self, count: usize, direction: char) -> io::Result<()> {
        if count == 0 { Ok(()) } else { self.draw(&format!("\u{1b}[{count}{direction}")) }
    }
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Terminal")
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        (self.size)().1
    }

    fn height(&self) -> u16 {
        (self.size)().0
    }

    fn move_cursor_up(&self, count: usize) -> io::Result<()> {
        self.step(count, 'A')
    }

    fn move_cursor_down(&self, count: usize) -> io::Result<()> {
        self.step(count, 'B')
    }

    fn move_cursor_right(&self, count: usize) -> io::Result<()> {
        self.step(count, 'C')
    }

    fn move_cursor_left(&self, count: usize) -> io::Result<()> {
        self.step(count, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(&format!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw("\r\u{1b}[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let drawing = std::mem::take(&mut *self.drawing.lock().unwrap_or_else(PoisonError::into_inner));
        if !drawing.is_empty() {
            self.sink.bytes(drawing.into_bytes());
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // Its thread may be stuck in a look at a file. It is not waited for; a bar that is gone from the terminal is not
        // drawn any more.
        self.following = None;
        if let Some(Shown { bars, bar, .. }) = self.shown.take() {
            bar.finish_and_clear();
            bars.remove(&bar);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use indicatif::{InMemoryTerm, TermLike};

    use super::super::{Action, Reporter};
    use super::*;

    struct Screen(InMemoryTerm);

    impl std::io::Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            // A terminal begins a new line at its left edge.
            self.0.write_str(&String::from_utf8_lossy(bytes).replace('\n', "\r\n"))?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Both streams and the bars on one screen.
    fn on_screen() -> (InMemoryTerm, Reporter) {
        let term = InMemoryTerm::new(10, 100);
        let screen = || Box::new(Screen(term.clone()));
        let report = Reporter::new(screen(), screen());
        let (_, err) = report.sinks();
        let terminal = Terminal { sink: err.clone(), drawing: Mutex::default(), size: || (10, 100) };
        let report = report.with_bars(Bars::on(ProgressDrawTarget::term_like(Box::new(terminal)), err));
        (term, report)
    }

    #[test]
    fn each_piece_of_work_has_its_bar_and_lines_stand_above_them() {
        let (term, report) = on_screen();
        let web = report.progress(Action::Save, "web\u{1b}[2J");
        web.set(1 << 20, 4 << 20);
        let db = report.progress(Action::Restore, "db");
        db.set(9, 4);
        report.note("hello");
        report.warn("hm");
        report.flush();
        let shown = term.contents();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[..2], ["hello", "warning: hm"], "{shown}");
        assert!(
            lines[2].starts_with("web\\u{1b}[2J: saving [=======>") && lines[2].ends_with("1.00 MiB/4.00 MiB"),
            "{shown}"
        );
        assert!(lines[3].starts_with("db: restoring [====") && lines[3].ends_with("4 B/4 B"), "{shown}");
        assert_eq!(lines.len(), 4, "{shown}");
        drop(web);
        report.done(Action::Save, "web", Duration::ZERO);
        drop(db);
        report.flush();
        assert_eq!(term.contents(), "hello\nwarning: hm\nweb: saved (0.0 s)");
    }

    #[test]
    fn a_bar_follows_the_work_until_it_is_gone() {
        let (term, report) = on_screen();
        let mut progress = report.progress(Action::Save, "web");
        let number = AtomicU64::new(0);
        let (looks, looked) = channel();
        let (answer, answers) = channel::<()>();
        progress.follow(3 << 20, move || {
            let number = number.fetch_add(1, Ordering::SeqCst);
            let _ = looks.send(number);
            let _ = answers.recv();
            number << 20
        });
        for _ in 0..2 {
            looked.recv().expect("somebody looks");
            answer.send(()).expect("somebody waits");
        }
        // What the second look has found is drawn, and nothing is drawn until the third is answered.
        assert_eq!(looked.recv(), Ok(2));
        report.flush();
        assert!(term.contents().contains("1.00 MiB/3.00 MiB"), "{}", term.contents());
        drop(progress);
        drop(answer);
        // Until nobody looks any more.
        while looked.recv().is_ok() {}
        report.flush();
        assert_eq!(term.contents(), "");
    }

    #[test]
    fn without_a_terminal_nobody_looks() {
        let (out, err) = (super::super::Buffer::default(), super::super::Buffer::default());
        let report = Reporter::new(Box::new(out.clone()), Box::new(err.clone()));
        let mut progress = report.progress(Action::Save, "web");
        progress.set(1, 2);
        progress.follow(1, || panic!("looked"));
        drop(progress);
        assert_eq!(out.text() + &err.text(), "");
    }
}
