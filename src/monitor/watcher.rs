//! All guests that are watched, and who wants something of them: one loop that takes what has happened, one thing after
//! the other. What takes time is done by threads of its own, a bounded number at once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::act::{Ended, Outcome, Worker};
use super::client::Client;
use super::mark::{Mark, is_libvirts, since_boot, word};
use super::protocol::{Answer, Guest, Request, Waiting};
use super::restart::{How, Restart, Restarts};
use super::socket::{self, Heard};
use super::{Watcher, dump, lock_path, policy, socket_path};
use crate::lock::{self, Lock};
use crate::runs::Runs;
use crate::toolstack::{Change, Domid, Ejected, Error, Event, Monitoring, ShutdownReason, State, Watch};

/// What the lock is for.
const WORK: &str = "monitor";

/// Time between two looks at all guests while it matters which of them run.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Guests that something is done with at once.
const AT_ONCE: usize = 8;

/// Watches our guests until the program is asked to end. `ready` is called when all are watched.
///
/// # Errors
/// There is a monitor already, the toolstack can't be used, or libxl's event handling has broken.
pub fn monitor(watcher: &Watcher<'_>, ready: impl FnOnce()) -> Result<(), String> {
    let Some(monitoring) = watcher.toolstack.monitoring() else {
        let toolstack = watcher.toolstack.describe();
        return Err(format!("with {toolstack} no monitor is needed: xl and xend watch their guests themselves"));
    };
    let run_dir = &watcher.host.run_dir;
    let of_directory = |error: std::io::Error| format!("{}: {error}", run_dir.display());
    DirBuilder::new().recursive(true).mode(0o700).create(run_dir).map_err(of_directory)?;
    let _lock = take_lock(watcher).map_err(|error| error.to_string())?;
    let path = socket_path(run_dir);
    let of_socket = |error: std::io::Error| format!("{}: {error}", path.display());
    let listener = socket::bind(&path).map_err(of_socket)?;
    dump::tidy(&watcher.host.dump_dir);
    let watch = monitoring.watch();
    let held = AtomicBool::new(false);
    let (sender, news) = channel();
    let result = thread::scope(|scope| {
        let worker = Worker { watcher, monitoring, held: &held };
        let mut guests = Guests {
            worker,
            watch: &*watch,
            scope,
            sender: sender.clone(),
            watched: HashMap::new(),
            next: VecDeque::new(),
            later: Vec::new(),
            at_work: 0,
            dumping: 0,
            failures: HashMap::new(),
            clients: HashMap::new(),
            holders: HashMap::new(),
            settlers: HashSet::new(),
            looked: None,
            image_waits: false,
        };
        let result = guests.take_over().map_err(|error| error.to_string()).and_then(|()| {
            let of_thread = |error: std::io::Error| format!("a thread: {error}");
            let (watch, events) = (&*watch, sender.clone());
            let wait = move || {
                while let Some(event) = watch.next() {
                    let broken = event.is_err();
                    if events.send(News::Event(event)).is_err() || broken {
                        return;
                    }
                }
                // Nobody waits for it any more otherwise.
                let _ = events.send(News::End);
            };
            thread::Builder::new().name("events".to_owned()).spawn_scoped(scope, wait).map_err(of_thread)?;
            socket::listen(scope, listener, watcher.interrupt, sender).map_err(of_thread)?;
            ready();
            guests.run(&news)
        });
        // Everybody else waits for this.
        watcher.interrupt.ask();
        guests.finish(&news);
        result
    });
    // Only as long as we have the lock it is ours to remove; the next monitor would do so too.
    let _ = fs::remove_file(&path);
    result
}

/// Makes this the one monitor.
fn take_lock(watcher: &Watcher<'_>) -> Result<Lock, lock::Error> {
    let path = lock_path(&watcher.host.run_dir);
    match Lock::acquire(&path, WORK) {
        // What libxl has forked for a monitor that was killed keeps the lock until it is done, and answers nobody.
        Err(lock::Error::Busy(_)) if matches!(Client::connect(&watcher.host.run_dir), Ok(None)) => {
            watcher.report.note("another monitor has just ended, or begun: waiting for it");
            Lock::wait(&path, WORK, watcher.interrupt)
        }
        other => other,
    }
}

/// What has happened.
enum News {
    Event(Result<Event, Error>),
    Heard(Heard),
    /// A guest's memory has been dumped, or could not be.
    Dumped,
    /// Something that was done has come to its end.
    Done(Job, Outcome),
    /// The program is asked to end.
    End,
}

impl From<Heard> for News {
    fn from(heard: Heard) -> News {
        News::Heard(heard)
    }
}

/// UUID and name, by which a guest is known: a copied guest has the same UUID.
type Key = (Uuid, String);

/// Something to be done with a guest.
#[derive(Clone)]
enum Job {
    /// It has ended.
    End(Box<Ended>),
    /// It is to run again.
    Restart(Box<Restart>),
}

impl Job {
    fn uuid(&self) -> Uuid {
        match self {
            Job::End(ended) => ended.uuid,
            Job::Restart(restart) => restart.uuid,
        }
    }

    fn key(&self) -> Key {
        (self.uuid(), self.name().to_owned())
    }

    fn name(&self) -> &str {
        match self {
            Job::End(ended) => &ended.name,
            Job::Restart(restart) => &restart.name,
        }
    }

    /// Returns whether the guest's memory is dumped first.
    fn dumps(&self) -> bool {
        match self {
            Job::End(ended) => policy::action(&ended.config, ended.reason).is_some_and(|action| action.dump),
            Job::Restart(_) => false,
        }
    }
}

/// A guest that is watched.
struct Watched {
    guest: Guest,
    mark: Mark,
    /// Its configuration, as text, which takes less room.
    config: String,
    /// It has ended, and what is to be done is being done, or waits for its time.
    busy: bool,
    /// It has ended while nothing was to be started.
    ended: Option<ShutdownReason>,
}

struct Guests<'a, 'scope, 'env> {
    worker: Worker<'a>,
    watch: &'a dyn Watch,
    scope: &'scope Scope<'scope, 'env>,
    sender: Sender<News>,
    watched: HashMap<Domid, Watched>,
    /// What is to be done as soon as there is a place.
    next: VecDeque<Job>,
    /// What is to be done at its time.
    later: Vec<(Instant, Job)>,
    /// Number of guests that something is done with, but for those whose memory is dumped first.
    at_work: usize,
    /// Number of guests whose memory is dumped. That may take minutes, in which nothing else becomes of them.
    dumping: usize,
    /// How often something has failed for a guest in a row.
    failures: HashMap<Key, usize>,
    clients: HashMap<u64, UnixStream>,
    /// Those for whom nothing is started, and whether they know.
    holders: HashMap<u64, bool>,
    /// Those who wait until nothing is being done.
    settlers: HashSet<u64>,
    /// When all guests were looked at, ours and others.
    looked: Option<Instant>,
    /// Set if an image waits that is out of date once its guest runs.
    image_waits: bool,
}

impl<'a: 'scope, 'scope> Guests<'a, 'scope, '_> {
    fn monitoring(&self) -> &'a dyn Monitoring {
        self.worker.monitoring
    }

    fn warn(&self, text: &str) {
        self.worker.watcher.report.warn(text);
    }

    fn error(&self, text: &str) {
        self.worker.watcher.report.error(text);
    }

    fn restarts(&self) -> Restarts {
        Restarts::new(&self.worker.watcher.host.run_dir)
    }

    /// Takes over what earlier monitors have left: guests, and restarts that had not come to their end.
    fn take_over(&mut self) -> Result<(), Error> {
        let domains = self.worker.watcher.toolstack.domains()?;
        let (restarts, unreadable) = self.restarts().all();
        unreadable.iter().for_each(|message| self.error(message));
        let mut under_way = HashSet::new();
        for restart in restarts {
            if restart.failed.is_none() {
                let what = if restart.how == How::Remove { "removed" } else { "restarted" };
                self.warn(&format!("{}: was being {what} when its monitor ended: going on", restart.name));
                under_way.insert((restart.uuid, restart.old_name.clone()));
                under_way.insert((restart.uuid, restart.name.clone()));
                self.next.push_back(Job::Restart(Box::new(restart)));
            }
        }
        for domain in domains.iter().filter(|domain| domain.domid != 0) {
            // One without a name is being destroyed.
            let Some(name) = &domain.name else { continue };
            if under_way.contains(&(domain.uuid, name.clone())) {
                continue;
            }
            match (self.adopt(domain.domid, domain.uuid, name), domain.state) {
                (Err(error), _) => self.error(&format!("{name}: not watched: {error}")),
                // It will be told as an event too; who asks before that is to know.
                (Ok(true), State::Shutdown(reason)) if reason != ShutdownReason::Suspend => {
                    self.ended(domain.domid, reason);
                }
                (Ok(_), _) => {}
            }
        }
        self.worker.watcher.report.note(&self.state());
        Ok(())
    }

    fn state(&self) -> String {
        let count = self.watched.len();
        let plural = if count == 1 { "" } else { "s" };
        format!("watching {count} guest{plural}")
    }

    /// Watches a guest if it has the mark. Says whether it has.
    fn adopt(&mut self, domid: Domid, uuid: Uuid, name: &str) -> Result<bool, Error> {
        if let Some(watched) = self.watched.get(&domid) {
            if watched.guest.uuid == uuid {
                return Ok(true);
            }
            // Another domain has its number by now.
            self.forget(domid);
        }
        let monitoring = self.monitoring();
        if monitoring.look(domid)?.is_none_or(|(found, _)| found != uuid) {
            return Ok(false);
        }
        let Some(mark) = Mark::of(domid, monitoring)?.filter(|mark| !mark.kept) else { return Ok(false) };
        if is_libvirts(domid, monitoring)? {
            return Ok(false);
        }
        // Without it, what is to be done with the guest is not known.
        let config = monitoring.kept_configuration(domid)?;
        let config = config.ok_or_else(|| Error::new("read the configuration", "libxl has none"))?;
        let guest = Guest { domid, uuid, name: name.to_owned() };
        let (drives, config) = (drives(&config), config.to_string());
        // Before it is watched: that it has ended may be told at once.
        self.watched.insert(domid, Watched { guest, mark, config, busy: false, ended: None });
        if let Err(error) = self.watch.add(domid, uuid) {
            self.watched.remove(&domid);
            return Err(error);
        }
        for vdev in drives {
            if let Err(error) = self.watch.add_drive(domid, &vdev) {
                self.warn(&format!("{name}: when it opens the drive {vdev} is not noticed: {error}"));
            }
        }
        Ok(true)
    }

    fn forget(&mut self, domid: Domid) {
        if self.watched.remove(&domid).is_some() {
            self.watch.remove(domid);
        }
    }

    /// Until the program is asked to end, or nothing more would be heard of guests.
    fn run(&mut self, news: &Receiver<News>) -> Result<(), String> {
        let mut told = None;
        loop {
            self.begin_what_is_due();
            self.answer_settlers();
            self.look_at_all();
            if told.replace(self.watched.len()) != Some(self.watched.len()) {
                self.worker.watcher.report.state(&self.state());
            }
            let next = match self.next_time() {
                None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(time) => news.recv_timeout(time.saturating_duration_since(Instant::now())),
            };
            match next {
                Ok(News::Event(Ok(event))) => self.see(event),
                Ok(News::Event(Err(error))) => return Err(error.to_string()),
                Ok(News::Heard(heard)) => self.hear(heard),
                Ok(News::Dumped) => self.dumped(),
                Ok(News::Done(job, outcome)) => self.done(job, outcome),
                Ok(News::End) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits for what is being done: it ends early, and is gone on with by the next monitor.
    fn finish(&mut self, news: &Receiver<News>) {
        while self.at_work + self.dumping > 0 {
            match news.recv() {
                Ok(News::Dumped) => self.dumped(),
                Ok(News::Done(job, outcome)) => {
                    self.at_work -= 1;
                    if let Outcome::Failed(_, why) = outcome {
                        self.warn(&format!("{}: its restart is left to the next monitor: {why}", job.name()));
                    }
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    fn is_held(&self) -> bool {
        !self.holders.is_empty()
    }

    fn next_time(&self) -> Option<Instant> {
        let jobs = self.later.iter().map(|(time, _)| *time).min().filter(|_| !self.is_held());
        let look = self.looked.filter(|_| self.image_waits).and_then(|looked| looked.checked_add(LOOK_AGAIN));
        jobs.into_iter().chain(look).min()
    }

    /// Remembers which guests run, those of xl too: an image that a start has left in its place is out of date when its guest
    /// has run. Nobody tells when xl makes a guest, so that they are looked for again as long as such an image waits.
    fn look_at_all(&mut self) {
        let watcher = self.worker.watcher;
        let runs = Runs::of(watcher.host);
        self.image_waits = runs.is_any_passed_over();
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_AGAIN) {
            return;
        }
        self.looked = Some(Instant::now());
        let looked = watcher.toolstack.domains().map_err(|error| error.to_string());
        let boot_id = watcher.host.boot_id().map_err(|error| error.to_string());
        match looked.and_then(|domains| Ok((domains, boot_id?))) {
            Ok((domains, boot_id)) => {
                for error in runs.saw_all(&domains, &boot_id) {
                    self.warn(&format!("that a guest runs can't be remembered: {error}"));
                }
            }
            Err(error) => self.warn(&format!("which guests run can't be told: {error}")),
        }
    }

    fn begin_what_is_due(&mut self) {
        if self.is_held() {
            return;
        }
        let now = Instant::now();
        for (time, job) in std::mem::take(&mut self.later) {
            if time <= now {
                self.next.push_back(job);
            } else {
                self.later.push((time, job));
            }
        }
        while self.at_work < AT_ONCE {
            let Some(job) = self.next.pop_front() else { return };
            let (worker, sender, kept) = (self.worker, self.sender.clone(), job.clone());
            let dumps = job.dumps();
            let work = move || {
                let mut left = dumps.then(|| sender.clone());
                // The loop waits for all that are at work.
                let mut dumped = || {
                    if let Some(sender) = left.take() {
                        let _ = sender.send(News::Dumped);
                    }
                };
                let outcome = match &job {
                    Job::End(ended) => worker.end(ended, &mut dumped),
                    Job::Restart(restart) => worker.go_on((**restart).clone()),
                };
                // It may have been gone before it could be dumped.
                dumped();
                let _ = sender.send(News::Done(job, outcome));
            };
            match thread::Builder::new().name("guest".to_owned()).spawn_scoped(self.scope, work) {
                Ok(_) if dumps => self.dumping += 1,
                Ok(_) => self.at_work += 1,
                Err(error) => {
                    self.warn(&format!("{}: no thread for it: {error}", kept.name()));
                    return self.later(kept, Duration::from_secs(1));
                }
            }
        }
    }

    fn later(&mut self, job: Job, pause: Duration) {
        let now = Instant::now();
        self.later.push((now.checked_add(pause).unwrap_or(now), job));
    }

    /// Something has happened to a guest.
    fn see(&mut self, event: Event) {
        let Some(watched) = self.watched.get_mut(&event.domid).filter(|watched| watched.guest.uuid == event.uuid)
        else {
            return;
        };
        match event.change {
            Change::Ejected(disk) => self.take_out(event.domid, disk),
            // It is saved or migrated: either it goes on, or it goes away.
            Change::Shutdown(ShutdownReason::Suspend) => {}
            Change::Shutdown(_) if watched.busy => {}
            Change::Shutdown(reason) if self.holders.is_empty() => self.ended(event.domid, reason),
            Change::Shutdown(reason) => {
                watched.ended = Some(reason);
                let guest = watched.guest.clone();
                self.tell_holders(&guest, Some(word(reason)));
            }
            Change::Gone => {
                let busy = watched.busy;
                if !self.call_off(event.domid) && busy {
                    return; // That is our own doing.
                }
                let Some(Watched { guest, .. }) = self.watched.remove(&event.domid) else { return };
                self.watch.remove(event.domid);
                self.failures.remove(&(guest.uuid, guest.name.clone()));
                self.tell_holders(&guest, None);
            }
        }
    }

    /// Takes back what was to be done with a guest that has ended. Says whether that had not begun.
    fn call_off(&mut self, domid: Domid) -> bool {
        let is_it = |job: &Job| matches!(job, Job::End(ended) if ended.domid == domid);
        let before = self.next.len() + self.later.len();
        self.next.retain(|job| !is_it(job));
        self.later.retain(|(_, job)| !is_it(job));
        before != self.next.len() + self.later.len()
    }

    fn tell_holders(&self, guest: &Guest, reason: Option<String>) {
        for stream in self.holders.keys().filter_map(|number| self.clients.get(number)) {
            socket::answer(stream, &Answer::Ended { guest: guest.clone(), reason: reason.clone() });
        }
    }

    fn take_out(&self, domid: Domid, disk: Box<dyn Ejected>) {
        let report = self.worker.watcher.report;
        let name = self.watched.get(&domid).map(|watched| watched.guest.name.clone()).unwrap_or_default();
        let vdev = disk.vdev().to_owned();
        let work = move || match disk.take_out() {
            Ok(()) => report.note(&format!("{name}: has opened the drive {vdev}, the medium was taken out")),
            Err(error) => report.warn(&format!("{name}: has opened the drive {vdev}: {error}")),
        };
        if let Err(error) = thread::Builder::new().name("drive".to_owned()).spawn_scoped(self.scope, work) {
            self.warn(&format!("domain {domid} has opened a drive, and there is no thread for it: {error}"));
        }
    }

    /// A guest has ended: what is to be done is done now, or later if it has ended too soon too often.
    fn ended(&mut self, domid: Domid, reason: ShutdownReason) {
        let Some(watched) = self.watched.get_mut(&domid) else { return };
        watched.busy = true;
        watched.ended = None;
        let config: Value = serde_json::from_str(&watched.config).unwrap_or_default();
        let Guest { uuid, name, .. } = watched.guest.clone();
        let settings = self.worker.watcher.settings;
        let restarts = policy::action(&config, reason).is_some_and(|action| action.fate.restarts());
        let (soon, pause) = policy::pace(&watched.mark, since_boot(), settings);
        let mark = watched.mark.clone();
        let job = Job::End(Box::new(Ended { domid, uuid, name: name.clone(), reason, soon, mark, config }));
        if restarts && !pause.is_zero() {
            let (times, within, pause_s) = (soon, settings.restart_soon.value.as_secs(), pause.as_secs());
            self.warn(&format!(
                "{name}: has ended ({}) within {within} s of its start {times} times in a row: it is restarted in {pause_s} s",
                word(reason)
            ));
            self.later(job, pause);
        } else {
            self.next.push_back(job);
        }
    }

    fn dumped(&mut self) {
        self.dumping -= 1;
        self.at_work += 1;
    }

    /// What was to be done has been done, or has failed.
    fn done(&mut self, job: Job, outcome: Outcome) {
        self.at_work -= 1;
        let (uuid, key) = (job.uuid(), job.key());
        match (&job, &outcome) {
            // It is tried again.
            (Job::End(_), Outcome::Stays(_)) | (Job::Restart(_), _) => {}
            (Job::End(ended), _) => self.forget(ended.domid),
        }
        match outcome {
            Outcome::Over => {
                self.failures.remove(&key);
                if let Job::End(ended) = job {
                    // Somebody may have let it run on.
                    self.look_again(ended.domid, uuid, &ended.name);
                }
            }
            Outcome::Runs(domid, name) => {
                self.failures.remove(&key);
                self.look_again(domid, uuid, &name);
            }
            Outcome::PutOff(restart) => self.next.push_back(Job::Restart(restart)),
            Outcome::Failed(restart, why) => self.failed(Job::Restart(restart), &why),
            Outcome::Stays(why) => self.failed(job, &why),
        }
        self.answer_holders();
    }

    /// Watches what is there under this number, if it is ours.
    fn look_again(&mut self, domid: Domid, uuid: Uuid, name: &str) {
        if let Err(error) = self.adopt(domid, uuid, name) {
            self.error(&format!("{name}: not watched: {error}"));
        }
    }

    /// Tries again later, or gives up.
    fn failed(&mut self, job: Job, why: &str) {
        let settings = self.worker.watcher.settings;
        let failures = self.failures.entry(job.key()).or_default();
        *failures += 1;
        let (failures, name) = (*failures, job.name().to_owned());
        if failures < settings.restart_tries.value.get() {
            let pause = policy::pause_after(failures, settings);
            self.warn(&format!("{name}: {why}; trying again in {} s", pause.as_secs()));
            return self.later(job, pause);
        }
        self.failures.remove(&job.key());
        match job {
            Job::End(ended) => {
                self.error(&format!("{name}: has ended ({}), and is left as it is: {why}", word(ended.reason)));
            }
            Job::Restart(mut restart) => {
                self.error(&match restart.how {
                    How::Remove => format!("{name}: what is left of it could not be removed: {why}"),
                    _ => format!("{name}: is DOWN, it could not be restarted {failures} times: {why}"),
                });
                restart.failed = Some(why.to_owned());
                if let Err(error) = self.restarts().put(&restart) {
                    self.error(&format!("{name}: status will not show that: {error}"));
                }
            }
        }
    }

    /// Somebody speaks.
    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Connected(number, stream) => {
                self.clients.insert(number, stream);
            }
            Heard::Closed(number) => {
                self.clients.remove(&number);
                self.settlers.remove(&number);
                self.release(number);
            }
            Heard::Asked(number, request) => match request {
                Ok(Request::Watch(Guest { domid, uuid, name })) => {
                    let answer = match self.adopt(domid, uuid, &name) {
                        Ok(true) => Answer::Watching { domid },
                        Ok(false) => Answer::NotWatching { domid, why: "it has no mark, or is gone".to_owned() },
                        Err(error) => Answer::NotWatching { domid, why: error.to_string() },
                    };
                    self.answer(number, &answer);
                }
                Ok(Request::Hold) => {
                    self.worker.held.store(true, Ordering::SeqCst);
                    self.holders.insert(number, false);
                    self.answer_holders();
                }
                Ok(Request::Release { stopped }) => {
                    self.drop_restarts(stopped.as_deref());
                    self.release(number);
                    self.answer(number, &Answer::Released);
                }
                Ok(Request::Status) => {
                    let guests = self.watched.values().map(|watched| super::protocol::Watched {
                        guest: watched.guest.clone(),
                        started: Some(watched.mark.started),
                        restarts: watched.mark.restarts,
                        reason: watched.mark.reason.clone(),
                    });
                    let answer = Answer::Status { pid: std::process::id(), guests: guests.collect() };
                    self.answer(number, &answer);
                }
                Ok(Request::Settle) => {
                    self.settlers.insert(number);
                }
                Err(why) => self.answer(number, &Answer::Unknown { why }),
            },
        }
    }

    /// Tells those who wait for it that nothing is being done. A guest whose memory is dumped is there until then, and not
    /// waited for.
    fn answer_settlers(&mut self) {
        if self.settlers.is_empty() || self.at_work > 0 || !(self.next.is_empty() || self.is_held()) {
            return;
        }
        let jobs = self.next.iter().chain(self.later.iter().map(|(_, job)| job));
        let restarts = jobs.filter(|job| !matches!(job, Job::Restart(restart) if restart.how == How::Remove));
        let waiting: Vec<_> =
            restarts.map(|job| Waiting { uuid: job.uuid(), name: job.name().to_owned() }).collect();
        for number in std::mem::take(&mut self.settlers) {
            self.answer(number, &Answer::Settled { waiting: waiting.clone() });
        }
    }

    fn answer(&self, number: u64, answer: &Answer) {
        if let Some(stream) = self.clients.get(&number) {
            socket::answer(stream, answer);
        }
    }

    /// Tells those who hold, when nothing is being done any more.
    fn answer_holders(&mut self) {
        if self.at_work + self.dumping > 0 {
            return;
        }
        let guests = self.guests();
        for (number, told) in &mut self.holders {
            if let (false, Some(stream)) = (*told, self.clients.get(number)) {
                *told = true;
                socket::answer(stream, &Answer::Held { guests: guests.clone() });
            }
        }
    }

    fn guests(&self) -> Vec<Guest> {
        let mut guests: Vec<_> = self.watched.values().map(|watched| watched.guest.clone()).collect();
        guests.sort_by(|one, other| one.name.cmp(&other.name));
        guests
    }

    /// Guests that were stopped stay down: restarts that wait are given up.
    fn drop_restarts(&mut self, stopped: Option<&[String]>) {
        let is_stopped = |job: &Job| match job {
            Job::Restart(restart) => {
                restart.how != How::Remove && stopped.is_none_or(|names| names.contains(&restart.name))
            }
            // It is looked at when its turn comes.
            Job::End(_) => false,
        };
        let waiting = self.next.iter().chain(self.later.iter().map(|(_, job)| job));
        let dropped: Vec<_> = waiting.filter(|job| is_stopped(job)).map(Job::key).collect();
        self.next.retain(|job| !is_stopped(job));
        self.later.retain(|(_, job)| !is_stopped(job));
        for key in dropped {
            self.failures.remove(&key);
            if let Err(error) = self.restarts().remove(key.0, &key.1) {
                self.warn(&format!("the note of a restart that is not to be is still there: {error}"));
            }
        }
    }

    /// Somebody does not hold any more. What has happened meanwhile is made up for.
    fn release(&mut self, number: u64) {
        if self.holders.remove(&number).is_none() || self.is_held() {
            return;
        }
        self.worker.held.store(false, Ordering::SeqCst);
        let ended: Vec<_> =
            self.watched.values().filter_map(|watched| Some((watched.guest.domid, watched.ended?))).collect();
        for (domid, reason) in ended {
            self.ended(domid, reason);
        }
    }
}

/// The drives of a guest whose media can be taken out.
fn drives(config: &Value) -> Vec<String> {
    let disks = config["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
    let removable = disks.iter().filter(|disk| disk["removable"].as_i64().is_some_and(|is| is != 0));
    removable.filter_map(|disk| disk["vdev"].as_str().map(str::to_owned)).collect()
}
