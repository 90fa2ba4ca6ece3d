//! Output that is on its way: a queue, and a thread that writes it.
//!
//! A console that was stopped by Ctrl-S, or a pipe that nobody reads, blocks who writes to it for as long as it likes. That
//! must not be those who stop guests, nor those who watch over their limits. They put their lines into a queue; the order
//! is kept, and only when very many wait are new ones left out, and counted. At the end the queue is waited for, but
//! not for ever.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use super::sink::Level;

/// The most that waits.
const LIMIT: usize = 10_000;

/// More waits than a reader who keeps up leaves waiting.
const BEHIND: usize = 50;

/// Something to be written.
pub(super) enum Item {
    /// A line.
    Line(Level, String),
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// The same, and whoever waits for it is told how it went.
    Answer(Vec<u8>, Sender<io::Result<()>>),
}

/// Writes an item to one of several places that share an outlet, so that the order is kept between them.
pub(super) type Write = Box<dyn FnMut(usize, Item) + Send>;

/// The queue. Its copies are the same one.
#[derive(Clone)]
pub(super) struct Outlet(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    waiting: VecDeque<(usize, Item)>,
    /// Whoever writes has it meanwhile.
    write: Option<Write>,
    is_running: bool,
    /// Something is being written.
    is_writing: bool,
    written: u64,
    /// Lines that were left out.
    lost: usize,
    /// Number of items that were written when the last wait for the end was given up.
    stuck_at: Option<u64>,
    is_closed: bool,
}

impl Outlet {
    pub(super) fn new(write: Write) -> Outlet {
        let state = State {
            waiting: VecDeque::new(),
            write: Some(write),
            is_running: false,
            is_writing: false,
            written: 0,
            lost: 0,
            stuck_at: None,
            is_closed: false,
        };
        Outlet(Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }))
    }

    /// Queues an item for the place of this number.
    pub(super) fn push(&self, place: usize, item: Item) {
        let mut state = self.0.lock();
        if state.waiting.len() >= LIMIT && !matches!(item, Item::Answer(..)) {
            state.lost += 1;
            return;
        }
        state.waiting.push_back((place, item));
        if !state.is_running {
            let shared = Arc::clone(&self.0);
            let spawned = thread::Builder::new().name("output".into()).spawn(move || shared.work(true));
            state.is_running = spawned.is_ok();
            if !state.is_running {
                // Better late than never.
                drop(state);
                return self.0.work(false);
            }
        }
        self.0.changed.notify_all();
    }

    /// Queues an answer; the returned channel gets how its writing went.
    pub(super) fn answer(&self, place: usize, bytes: Vec<u8>) -> Receiver<io::Result<()>> {
        let (done, is_done) = channel();
        self.push(place, Item::Answer(bytes, done));
        is_done
    }

    /// Waits until everything is written, at most until then. Where nothing has moved since a wait that was given up,
    /// there is no other one.
    pub(super) fn flush(&self, deadline: Instant) -> bool {
        let mut state = self.0.lock();
        while state.is_writing || state.lost > 0 || !state.waiting.is_empty() {
            if state.stuck_at == Some(state.written) {
                return false;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.stuck_at = Some(state.written);
                return false;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Returns whether the reader does not keep up.
    pub(super) fn is_behind(&self) -> bool {
        self.0.lock().waiting.len() > BEHIND
    }

    /// Ends the thread when everything is written.
    pub(super) fn close(&self) {
        self.0.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    /// Writes what waits, and then what comes, if this is to stay.
    fn work(&self, stays: bool) {
        let mut state = self.lock();
        let Some(mut write) = state.write.take() else { return };
        loop {
            let (place, item) = match state.waiting.pop_front() {
                Some(next) => next,
                None if state.lost > 0 => {
                    let lost = mem::take(&mut state.lost);
                    (0, Item::Line(Level::Warning, format!("warning: {lost} lines are missing, nobody took them")))
                }
                None if state.is_closed || !stays => break,
                None => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            };
            state.is_writing = true;
            drop(state);
            write(place, item);
            state = self.lock();
            state.is_writing = false;
            state.written += 1;
            self.changed.notify_all();
        }
        state.write = Some(write);
        state.is_running = false;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is done while it is held that could leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn line(number: usize) -> Item {
        Item::Line(Level::Info, number.to_string())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn nobody_waits_for_a_reader_who_is_stuck_and_what_is_too_much_is_counted() {
        let (go, wait) = channel::<()>();
        let (write, written) = channel();
        let outlet = Outlet::new(Box::new(move |place, item| {
            let _ = wait.recv();
            if let Item::Line(_, text) = item {
                let _ = write.send((place, text));
            }
        }));
        outlet.push(1, line(0));
        for number in 1..LIMIT + 100 {
            outlet.push(1, line(number));
        }
        assert!(outlet.is_behind());
        assert!(!outlet.flush(soon()));
        // Once given up it is not waited for again.
        assert!(!outlet.flush(late()));
        drop(go);
        // When the second line is written, it is known that the first one was.
        let mut lines: Vec<_> = written.iter().take(2).collect();
        assert!(outlet.flush(late()));
        lines.extend(written.try_iter());
        let (last, lines) = lines.split_last().expect("lines");
        assert!(lines.len() == LIMIT || lines.len() == LIMIT + 1, "{}", lines.len());
        assert!(lines.iter().enumerate().all(|(number, line)| *line == (1, number.to_string())));
        let lost = LIMIT + 100 - lines.len();
        assert_eq!(last.1, format!("warning: {lost} lines are missing, nobody took them"));
    }

    #[test]
    fn what_is_pushed_after_the_end_is_written_too() {
        let (write, written) = channel();
        let outlet = Outlet::new(Box::new(move |place, _| {
            let _ = write.send(place);
        }));
        outlet.push(0, line(0));
        outlet.close();
        assert!(outlet.flush(late()));
        outlet.push(1, line(1));
        assert!(outlet.flush(late()));
        assert_eq!(written.try_iter().collect::<Vec<_>>(), [0, 1]);
    }
}
