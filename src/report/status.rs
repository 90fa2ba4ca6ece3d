//! The one line that tells a service manager how far a start or stop is:
//! `2 of 12 stopped; saving web, db: at most 140 s`.

use std::collections::HashSet;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Action;
use super::notify::Notify;

/// How often the line follows the clock.
const TICK: Duration = Duration::from_secs(5);

/// The guests that are named; of more the line has the number.
const NAMED: usize = 3;

/// Tells it, if there is a service manager.
#[derive(Default)]
pub(super) struct Status(Option<Teller>);

struct Teller {
    state: Arc<Mutex<State>>,
    /// To a thread that follows the clock: there is something with a limit. The thread ends when this is dropped.
    clock: Sender<()>,
}

struct State {
    notify: Notify,
    /// What it comes to for a guest: `started`, `stopped`.
    aim: &'static str,
    wanted: HashSet<String>,
    reached: HashSet<String>,
    under_way: Vec<UnderWay>,
    /// For [`Work`].
    last: u64,
}

struct UnderWay {
    number: u64,
    action: Action,
    guest: String,
    deadline: Option<Instant>,
}

/// Work on a guest, which is named in the line until this is dropped.
#[must_use]
pub struct Work(Option<(Arc<Mutex<State>>, u64)>);

impl Status {
    /// By way of this.
    pub(super) fn new(notify: Notify) -> Status {
        let (wanted, reached, under_way) = (HashSet::new(), HashSet::new(), Vec::new());
        let state = State { notify, aim: "", wanted, reached, under_way, last: 0 };
        let state = Arc::new(Mutex::new(state));
        let (clock, begun) = channel();
        let ticking = Arc::clone(&state);
        let tick = move || {
            while begun.recv().is_ok() {
                loop {
                    match begun.recv_timeout(TICK) {
                        Ok(()) => continue,
                        Err(RecvTimeoutError::Disconnected) => return,
                        Err(RecvTimeoutError::Timeout) => {}
                    }
                    let state = lock(&ticking);
                    if state.under_way.iter().all(|work| work.deadline.is_none()) {
                        break;
                    }
                    state.tell();
                }
            }
        };
        let _ = thread::Builder::new().name("status".into()).spawn(tick);
        Status(Some(Teller { state, clock }))
    }

    /// These guests are to be brought to something: `started`, `stopped`.
    pub(super) fn expect(&self, aim: &'static str, guests: impl Iterator<Item = String>) {
        let Some(mut state) = self.state() else { return };
        if state.aim != aim {
            state.aim = aim;
            state.wanted.clear();
            state.reached.clear();
        }
        state.wanted.extend(guests);
        state.tell();
    }

    /// It has been done with this guest.
    pub(super) fn reached(&self, guest: &str) {
        let Some(mut state) = self.state() else { return };
        state.reached.insert(guest.to_owned());
        state.tell();
    }

    /// This is being done with a guest.
    pub(super) fn work(&self, action: Action, guest: &str, deadline: Option<Instant>) -> Work {
        let (Some(teller), Some(mut state)) = (&self.0, self.state()) else { return Work(None) };
        state.last += 1;
        let number = state.last;
        state.under_way.push(UnderWay { number, action, guest: guest.to_owned(), deadline });
        state.tell();
        if deadline.is_some() {
            // Without that thread the line is as old as the last change.
            let _ = teller.clock.send(());
        }
        Work(Some((Arc::clone(&teller.state), number)))
    }

    /// This process is as far as whoever has started it waits for.
    pub(super) fn ready(&self) {
        if let Some(state) = self.state() {
            state.notify.ready();
        }
    }

    /// This line, until something else happens.
    pub(super) fn say(&self, text: &str) {
        if let Some(state) = self.state() {
            state.notify.status(text);
        }
    }

    fn state(&self) -> Option<MutexGuard<'_, State>> {
        self.0.as_ref().map(|teller| lock(&teller.state))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let Some((state, number)) = &self.0 else { return };
        let mut state = lock(state);
        state.under_way.retain(|work| work.number != *number);
        // What comes next, or the result, is told in a moment.
    }
}

impl State {
    fn tell(&self) {
        self.notify.status(&self.line(Instant::now()));
    }

    fn line(&self, now: Instant) -> String {
        let mut line = String::new();
        if !self.wanted.is_empty() {
            let reached = self.reached.intersection(&self.wanted).count();
            line = format!("{reached} of {} {}", self.wanted.len(), self.aim);
        }
        let mut actions: Vec<Action> = Vec::new();
        for work in &self.under_way {
            if !actions.contains(&work.action) {
                actions.push(work.action);
            }
        }
        for action in actions {
            let works: Vec<_> = self.under_way.iter().filter(|work| work.action == action).collect();
            let guests: Vec<_> = works.iter().take(NAMED).map(|work| work.guest.as_str()).collect();
            let separator = if line.is_empty() { "" } else { "; " };
            line.push_str(&format!("{separator}{} {}", action.doing(), guests.join(", ")));
            if works.len() > NAMED {
                line.push_str(&format!(" and {} more", works.len() - NAMED));
            }
            // One without a limit may take for ever.
            let deadlines: Option<Vec<_>> = works.iter().map(|work| work.deadline).collect();
            if let Some(last) = deadlines.and_then(|deadlines| deadlines.into_iter().max()) {
                line.push_str(&format!(": at most {} s", last.saturating_duration_since(now).as_secs()));
            }
        }
        line
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // What a panicking thread has left is whole.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::notify::tests::{manager, received};
    use super::*;

    #[test]
    fn the_line_says_how_far_it_is() {
        let (manager, notify) = manager();
        let status = Status::new(notify);
        status.expect("stopped", ["web", "db", "mail", "dns", "ftp"].map(str::to_owned).into_iter());
        assert_eq!(received(&manager), "STATUS=0 of 5 stopped");
        let deadline = Instant::now().checked_add(Duration::from_millis(140_900));
        let web = status.work(Action::Save, "web", deadline);
        assert_eq!(received(&manager), "STATUS=0 of 5 stopped; saving web: at most 140 s");
        let _db = status.work(Action::Save, "db", None);
        assert_eq!(received(&manager), "STATUS=0 of 5 stopped; saving web, db");
        drop(web);
        status.reached("web");
        assert_eq!(received(&manager), "STATUS=1 of 5 stopped; saving db");
        let _rest: Vec<_> =
            ["mail", "dns", "ftp"].map(|guest| status.work(Action::Save, guest, None)).into_iter().collect();
        let _xm = status.work(Action::ShutDown, "xm", None);
        for _ in 0..3 {
            received(&manager);
        }
        assert_eq!(received(&manager), "STATUS=1 of 5 stopped; saving db, mail, dns and 1 more; shutting down xm");
        // Another command, in the same process.
        status.expect("started", ["web".to_owned()].into_iter());
        assert!(received(&manager).starts_with("STATUS=0 of 1 started; "));
        status.say("start: 1 started");
        assert_eq!(received(&manager), "STATUS=start: 1 started");
    }

    #[test]
    fn without_a_service_manager_nothing_is_kept() {
        let status = Status::default();
        status.expect("stopped", ["web".to_owned()].into_iter());
        let work = status.work(Action::Save, "web", None);
        assert!(work.0.is_none());
        status.reached("web");
        status.say("done");
    }
}
