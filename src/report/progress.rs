//! Bars that show a person at a terminal how far long work is.
//!
//! libxl tells how far a save is only in frames of the guest's address space, holes included, and of a restore nothing.
//! How much of the image has been written or read tells both, so a bar follows that ([`Progress::follow`]).

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a bar looks how far the work is.
const LOOK: Duration = Duration::from_millis(200);

/// The terminal, if there is one for bars.
pub(super) struct Bars(Option<MultiProgress>);

impl Bars {
    pub(super) fn none() -> Bars {
        Bars(None)
    }

    pub(super) fn on(target: ProgressDrawTarget) -> Bars {
        Bars(Some(MultiProgress::with_draw_target(target)))
    }

    /// Writes to the terminal while no bar is on it.
    pub(super) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    pub(super) fn begin(&self, what: String) -> Progress {
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {bytes}/{total_bytes}");
        let shown = self.0.as_ref().zip(style.ok()).map(|(bars, style)| {
            let bar = ProgressBar::no_length().with_style(style.progress_chars("=> ")).with_prefix(what);
            Shown { bars: bars.clone(), bar: bars.add(bar) }
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

struct Shown {
    bars: MultiProgress,
    bar: ProgressBar,
}

impl Progress {
    /// This much is done, in bytes.
    pub fn set(&self, done: u64, total: u64) {
        if let Some(Shown { bar, .. }) = &self.shown {
            show(bar, done, total);
        }
    }

    /// Shows from now on what `done` tells, in bytes, of a total that may be an estimate.
    pub fn follow(&mut self, total: u64, done: impl Fn() -> u64 + Send + 'static) {
        let Some(Shown { bar, .. }) = &self.shown else { return };
        let bar = bar.clone();
        let (stop, stopped) = channel();
        let look = move || {
            loop {
                show(&bar, done(), total);
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

fn show(bar: &ProgressBar, done: u64, total: u64) {
    if bar.length() != Some(total) {
        bar.set_length(total);
    }
    bar.set_position(done.min(total));
}

impl Drop for Progress {
    fn drop(&mut self) {
        // Its thread may be stuck in a look at a file. It is not waited for; a bar that is gone from the terminal is not
        // drawn any more.
        self.following = None;
        if let Some(Shown { bars, bar }) = self.shown.take() {
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
        let bars = Bars::on(ProgressDrawTarget::term_like(Box::new(term.clone())));
        let report = Reporter::new(screen(), screen()).with_bars(bars);
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
        let shown = term.contents();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[..2], ["hello", "warning: hm"], "{shown}");
        assert!(
            lines[2].starts_with("web\\u{1b}[2J: saving [=======>") && lines[2].ends_with("1.00 MiB/4.00 MiB")
        );
        assert!(lines[3].starts_with("db: restoring [====") && lines[3].ends_with("4 B/4 B"), "{shown}");
        assert_eq!(lines.len(), 4, "{shown}");
        drop(web);
        report.done(Action::Save, "web", Duration::ZERO);
        drop(db);
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
        assert!(term.contents().contains("1.00 MiB/3.00 MiB"), "{}", term.contents());
        drop(progress);
        drop(answer);
        // Until nobody looks any more.
        while looked.recv().is_ok() {}
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
