//! stop: migrate the guests, save them, or shut them down.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::backends::{Party, Service, services};
use super::directories::{auto_guests, images, tell_aside};
use super::migrations::records;
use super::order::{Level, levels};
use super::recovery::recover;
use super::save_place::{look_at_save, remember_save};
use super::start::tell_of_mark;
use super::unsavable::obstacle;
use super::watching;
use super::workers::{Place, Places, all_at_once, lock};
use super::{Copied, Run, is_alive, is_finished, name, reason, saw};
use crate::guest_config::{GuestConfig, PerGuest, StopAction};
use crate::image::{Consumed, Image, SaveDirectory};
use crate::migrate::{Migration, Outcome, With};
use crate::report::Action;
use crate::settings::{Settings, ShutdownOptions};
use crate::toolstack::{AfterSave, Domain, Domid, Ending, Error, ShutdownReason, State};

/// How often guests that come back (by a reboot, or because somebody starts them) are stopped again.
const ROUNDS: usize = 4;

/// How long a guest that reboots may be away before it is there again: its xl waits for two seconds.
const REBOOT: Duration = Duration::from_secs(3);

/// The pauses for guests that come back, in all rounds.
pub(super) const RETURNS: Duration = REBOOT.saturating_mul(ROUNDS as u32 - 1);

/// What a step that may take all the time leaves to each one after it, if there is as much.
const RESERVE: Duration = Duration::from_secs(60);

/// Stops guests, in the reverse of the order in which they start, those with the same order side by side and driver
/// domains last: each selected one is sent the SysRq letters, then migrated, saved or shut down, the next of these where
/// one is not wanted or fails.
/// In the end SHUTDOWN_ALL sees to everything that still runs, and DESTROY to what is left even then.
pub fn stop(run: &Run<'_>) {
    let begun = Instant::now();
    let stop = Stop::new(run, begun);
    if let Err(error) = stop.all() {
        stop.left.store(true, Ordering::Relaxed);
        run.report.error(&reason(&error));
    }
    // With the mark an init system tries again.
    if !stop.left.load(Ordering::Relaxed) {
        tell_of_mark(run.host.unmark(), run.host, run.report);
    }
    run.report.summary("stop", begun.elapsed());
}

pub(super) struct Stop<'a> {
    run: &'a Run<'a>,
    begun: Instant,
    /// The end of the time for the whole stop.
    deadline: Option<Instant>,
    auto: Auto,
    /// Places for guests that are being saved.
    saves: Places,
    /// Places for guests that are being migrated.
    moves: Places,
    /// Images from before, of guests that have run since.
    outdated: Mutex<Vec<Consumed>>,
    /// Whether a guest may be about to come back: it has rebooted, or somebody else took it away.
    may_return: AtomicBool,
    /// Set when a guest is left behind that was to be stopped.
    left: AtomicBool,
    /// The guests that the monitor watches and does not bring back now.
    watched: Mutex<Vec<(Domid, uuid::Uuid)>>,
}

/// What is left to do for a guest.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// The next step of the chain.
    NextStep,
    /// Nothing, or nothing that could be done.
    Nothing,
}

/// What is tried with a guest, one after the other.
pub(super) struct Chain {
    /// Destroy it, and nothing else.
    pub(super) at_once: bool,
    /// Migrate it.
    pub(super) migrate: bool,
    /// Save it.
    pub(super) save: bool,
    /// Why it is neither migrated nor saved, although one of both is asked for.
    pub(super) obstacle: Option<&'static str>,
    /// Shut it down.
    pub(super) shutdown: Option<ShutdownOptions>,
    /// Destroy it if it is there even in the end.
    pub(super) destroy: bool,
}

impl Chain {
    /// By the settings, by what the guest's file asks for, and by what stands against saving it.
    pub(super) fn new(settings: &Settings, wish: &PerGuest, obstacle: Option<&'static str>) -> Chain {
        let shut_down = wish.stop == Some(StopAction::Shutdown);
        let stays = shut_down || wish.stop == Some(StopAction::Save);
        let shutdown = settings.shutdown.value.filter(|_| !shut_down);
        let migrate = settings.migrate.value.is_some() && !stays;
        let save = settings.save.value.is_some() && !shut_down;
        Chain {
            at_once: wish.stop == Some(StopAction::Destroy),
            migrate: migrate && obstacle.is_none(),
            save: save && obstacle.is_none(),
            obstacle: obstacle.filter(|_| migrate || save),
            shutdown: shutdown.or_else(|| shut_down.then_some(ShutdownOptions { wait: true })),
            destroy: wish.destroy.unwrap_or(settings.destroy.value),
        }
    }
}

/// The limit of a step: the guest's own or that of the settings.
pub(super) fn step_limit(settings: &Settings, wish: &PerGuest) -> Option<Duration> {
    match wish.stop_timeout {
        Some(limit) => Some(limit).filter(|limit| !limit.is_zero()),
        None => settings.stop_maxwait.value,
    }
}

/// The limit of a step that `guests` take, at most `jobs` of them at once. They share a disk or a network, so that each
/// gets as much time as it would have one after the other.
pub(super) fn shared(limit: Option<Duration>, jobs: NonZeroUsize, guests: usize) -> Option<Duration> {
    let at_once = u32::try_from(jobs.get().min(guests.max(1))).unwrap_or(u32::MAX);
    limit.map(|limit| limit.saturating_mul(at_once))
}

/// Where guests can go.
struct Ways<'a> {
    /// To another host.
    migration: Option<Migration<'a>>,
    /// Into images.
    directory: Option<SaveDirectory>,
}

/// A guest in the order of the stop.
#[derive(Clone, Copy)]
pub(super) struct Guest<'a> {
    pub(super) domain: &'a Domain,
    /// Why it can't be saved.
    pub(super) obstacle: Option<&'static str>,
}

/// One guest on its way down.
struct Task<'a> {
    guest: &'a Domain,
    /// Why it can't be saved.
    obstacle: Option<&'static str>,
    /// What its file asks for.
    wish: PerGuest,
    /// The end of the time for this step of the stop.
    deadline: Option<Instant>,
    /// Number of guests that are stopped side by side, with this one.
    beside: usize,
}

/// The guests of the AUTO directory, and where each is among them.
struct Auto {
    guests: Vec<GuestConfig>,
    by_name: HashMap<String, usize>,
    by_uuid: HashMap<Uuid, usize>,
}

impl Auto {
    fn new(guests: Vec<GuestConfig>) -> Auto {
        let (mut by_name, mut by_uuid) = (HashMap::new(), HashMap::new());
        let copied = Copied::new(&guests, &[], &[]);
        for (place, guest) in guests.iter().enumerate() {
            let identity = copied.config(guest);
            by_name.entry(identity.name).or_insert(place);
            if let Some(uuid) = identity.uuid {
                by_uuid.entry(uuid).or_insert(place);
            }
        }
        Auto { guests, by_name, by_uuid }
    }

    /// The one that is this guest.
    fn find(&self, guest: &Domain) -> Option<&GuestConfig> {
        let place = self.by_name.get(name(guest)).or_else(|| self.by_uuid.get(&guest.uuid));
        place.and_then(|place| self.guests.get(*place))
    }
}

impl<'a> Stop<'a> {
    pub(super) fn new(run: &'a Run<'a>, begun: Instant) -> Stop<'a> {
        Stop {
            run,
            begun,
            deadline: run.settings.stop_timeout.value.and_then(|limit| begun.checked_add(limit)),
            auto: Auto::new(read_auto(run)),
            saves: Places::new(run.settings.save_jobs.value),
            moves: Places::new(run.settings.migrate_jobs.value),
            outdated: Mutex::default(),
            may_return: AtomicBool::new(false),
            left: AtomicBool::new(false),
            watched: Mutex::default(),
        }
    }

    fn all(&self) -> Result<(), Error> {
        let hold = watching::hold(self.run, self.deadline);
        if let Some(hold) = &hold {
            *lock(&self.watched) = hold.watched.iter().map(|guest| (guest.domid, guest.uuid)).collect();
        }
        let result = self.stop_all();
        if let Ok(selected) = &result {
            let selected = selected.iter().map(|(_, name)| name);
            let stopped: Vec<_> = self.auto.by_name.keys().chain(selected).cloned().collect();
            let stopped = Some(stopped).filter(|_| !self.is_about_all());
            match hold {
                Some(hold) => watching::release(self.run, hold, stopped),
                None => watching::forget_restarts(self.run, stopped.as_deref()),
            }
        }
        result.map(drop)
    }

    /// Whether all guests are to be stopped, and not only those of AUTO.
    fn is_about_all(&self) -> bool {
        let settings = self.run.settings;
        settings.shutdown_all.value.is_some() || !settings.auto_only.value
    }

    /// Returns the UUIDs and names of the guests that were selected.
    fn stop_all(&self) -> Result<HashSet<(Uuid, String)>, Error> {
        let settings = self.run.settings;
        let migration = self.migration();
        let mut guests = recover(self.run)?;
        saw(self.run, &guests);
        guests.retain(is_to_be_stopped);
        self.set_outdated_aside(&guests);
        let directory = self.save_directory(&self.select(guests));
        let ways = Ways { migration, directory };
        let shutdown_all = settings.shutdown_all.value;
        let selected = self.in_rounds(
            |guests| self.select(guests),
            |guests, deadline| self.stop_levels(guests, &ways, deadline, u32::from(shutdown_all.is_some())),
        )?;
        if let Some(options) = shutdown_all {
            let alive = |mut guests: Vec<Domain>| {
                guests.retain(is_alive);
                guests
            };
            self.in_rounds(alive, |guests, deadline| self.shut_down_rest(guests, deadline, options))?;
        }
        self.finish(&selected)?;
        Ok(selected)
    }

    /// The way to other hosts, if guests are to be migrated and can be.
    pub(super) fn migration(&self) -> Option<Migration<'a>> {
        let settings = self.run.settings;
        let jobs = settings.migrate_jobs.value.get();
        let migration = Migration::new(&settings.migrate, jobs, records(self.run.host), self.run.xen_host);
        migration.unwrap_or_else(|message| {
            self.run.report.error(&format!("{message}; guests are not migrated"));
            None
        })
    }

    /// Has `stop` stop the guests that `select` takes of those that are there, and looks again until no new one is. A
    /// guest counts as new when it has another domain id than before, so that one that reboots is met again and one
    /// that can't be stopped is not. Returns the UUIDs and names of all.
    fn in_rounds(
        &self,
        select: impl Fn(Vec<Domain>) -> Vec<Domain>,
        stop: impl Fn(&[Domain], Option<Instant>),
    ) -> Result<HashSet<(Uuid, String)>, Error> {
        let mut met = HashSet::new();
        let mut selected = HashSet::new();
        let mut deadline = self.deadline;
        for round in 0..ROUNDS {
            let mut guests = select(self.guests()?);
            guests.retain(|guest| met.insert((guest.domid, guest.uuid)));
            if guests.is_empty() || self.is_told_to_end() {
                break;
            }
            selected.extend(guests.iter().map(|guest| (guest.uuid, name(guest).to_owned())));
            self.run.report.expect("stopped", guests.iter().map(|guest| name(guest).to_owned()));
            self.may_return.store(false, Ordering::Relaxed);
            if round == 1 {
                deadline = self.limit(&PerGuest::default(), deadline);
            }
            stop(&guests, deadline);
            if self.may_return.load(Ordering::Relaxed) && !is_over(self.deadline) {
                self.run.pause(REBOOT);
            }
        }
        Ok(selected)
    }

    /// All domains that stop may act on.
    pub(super) fn guests(&self) -> Result<Vec<Domain>, Error> {
        let mut guests = self.run.toolstack.domains()?;
        guests.retain(is_to_be_stopped);
        Ok(guests)
    }

    /// All guests, or with AUTO_ONLY those for which a file of the AUTO directory is: by its name, or else by its UUID, for
    /// a guest that was renamed. If that can't be known, it is none of them.
    pub(super) fn select(&self, mut guests: Vec<Domain>) -> Vec<Domain> {
        if self.run.settings.auto_only.value {
            guests.retain(|guest| self.auto.find(guest).is_some());
        }
        guests
    }

    /// What the guest's file asks for.
    pub(super) fn wish(&self, guest: &Domain) -> PerGuest {
        self.auto.find(guest).map(|config| config.per_guest.clone()).unwrap_or_default()
    }

    /// The directory to save into, if guests are to be saved and can be.
    fn save_directory(&self, selected: &[Domain]) -> Option<SaveDirectory> {
        if !selected.iter().any(is_alive) {
            return None;
        }
        let path = self.run.settings.save.value.as_deref()?;
        if let Err(why) = look_at_save(self.run.host, path, self.run.report) {
            self.run.report.error(&format!("no guest can be saved: {why}"));
            return None;
        }
        match SaveDirectory::open(path) {
            Ok(directory) => {
                remember_save(self.run, path);
                if let Some(mode) = directory.open_to_others() {
                    let path = path.display();
                    self.run.report.warn(&format!("{path}: others than root may look into it (mode {mode:04o})"));
                }
                Some(directory)
            }
            Err(error) => {
                self.run.report.error(&format!("no guest can be saved: {error}"));
                None
            }
        }
    }

    /// Takes images out of the way whose guest runs: if it is now shut down instead of saved, the next start must not
    /// restore an image that is older than what the guest has written to its disks.
    fn set_outdated_aside(&self, guests: &[Domain]) {
        // What can't be read there is reported by start and status.
        let found = images(self.run.settings.save.value.as_deref()).images;
        let copied = Copied::new(&self.auto.guests, &found, guests);
        for image in found {
            if !copied.image(&image).find(guests).is_some_and(is_alive) {
                continue;
            }
            match image.consume() {
                Ok(aside) => lock(&self.outdated).push(aside),
                Err(error) => self.run.report.error(&format!("an outdated image is still there: {error}")),
            }
        }
    }

    /// Removes what a new image of the guest replaces.
    fn remove_outdated(&self, new: &Image) {
        let is_older = |aside: &Consumed| new.is_of_same_guest(aside.image());
        let mut outdated = lock(&self.outdated);
        let (older, others): (Vec<_>, _) = std::mem::take(&mut *outdated).into_iter().partition(is_older);
        *outdated = others;
        drop(outdated);
        for aside in older {
            if let Err(error) = aside.remove() {
                self.run.report.warn(&error.to_string());
            }
        }
    }

    /// Stops guests level by level within a time; `later` steps of the stop come after them.
    fn stop_levels(&self, guests: &[Domain], ways: &Ways<'_>, deadline: Option<Instant>, later: u32) {
        let mut levels = self.stop_order(guests);
        while let Some(level) = levels.pop() {
            if self.is_told_to_end() {
                return;
            }
            let later = later + u32::try_from(levels.len()).unwrap_or(u32::MAX);
            let deadline = deadline.map(|deadline| share(deadline, later));
            let beside = level.guests.len();
            all_at_once(level.guests, |guest| {
                self.stop_guest(&self.task(guest, deadline, beside), ways);
            });
        }
    }

    /// The levels in which guests stop, the first of them last: driver domains, then the others in their order.
    pub(super) fn stop_order<'g>(&self, guests: &'g [Domain]) -> Vec<Level<Guest<'g>>> {
        let configurations = self.configurations(guests);
        let party = |(guest, configuration): (&'g Domain, _)| Party {
            name: guest.name.as_deref(),
            domid: Some(guest.domid),
            configuration,
        };
        let services = services(&guests.iter().zip(&configurations).map(party).collect::<Vec<_>>());
        let placed = |((domain, configuration), service): ((&'g Domain, &Value), Service)| {
            let guest = Guest { domain, obstacle: obstacle(configuration) };
            (guest, service.key(self.wish(domain).order))
        };
        levels(guests.iter().zip(&configurations).zip(services).map(placed))
    }

    fn task<'g>(&self, guest: Guest<'g>, deadline: Option<Instant>, beside: usize) -> Task<'g> {
        let Guest { domain, obstacle } = guest;
        Task { guest: domain, obstacle, wish: self.wish(domain), deadline, beside }
    }

    /// The guests' configurations. Whoever made a domain without libxl has none for it; nothing is known of it then.
    fn configurations(&self, guests: &[Domain]) -> Vec<Value> {
        let toolstack = self.run.toolstack;
        let mut configurations = vec![Value::Null; guests.len()];
        let places = guests.iter().zip(&mut configurations);
        match toolstack.monitoring() {
            // libxl's file of it: to look up a domain's devices takes libxl a while.
            Some(monitoring) => places.for_each(|(guest, configuration)| {
                let kept = monitoring.kept_configuration(guest.domid);
                *configuration = kept.ok().flatten().unwrap_or_default();
            }),
            // A command may stall, each until its own limit.
            None => all_at_once(places.collect(), |(guest, configuration)| {
                *configuration = toolstack.configuration(guest.domid).unwrap_or_default();
            }),
        }
        configurations
    }

    /// The whole chain for one guest.
    fn stop_guest(&self, task: &Task<'_>, ways: &Ways<'_>) {
        let guest = task.guest;
        if is_finished(guest) {
            return self.clean_up(guest);
        }
        let chain = Chain::new(self.run.settings, &task.wish, task.obstacle);
        if chain.at_once {
            return self.destroy(guest);
        }
        let Some(guest) = self.send_sysrq(guest) else { return };
        if !is_alive(&guest) || self.is_told_to_end() {
            return; // Suspended: it can't answer. The end of the stop reports it.
        }
        let task = Task { guest: &guest, wish: task.wish.clone(), ..*task };
        if let Some(obstacle) = chain.obstacle {
            self.run.report.note(&format!("{}: neither migrated nor saved: {obstacle}", name(&guest)));
        }
        let migration = ways.migration.as_ref().filter(|_| chain.migrate);
        let (directory, shutdown) = (ways.directory.as_ref().filter(|_| chain.save), chain.shutdown);
        if migration.is_some() || directory.is_some() || shutdown.is_some() {
            self.wake(&guest);
        }
        let last = u32::from(shutdown.is_some());
        let later = last + u32::from(directory.is_some());
        let mut then = migration.map_or(Then::NextStep, |migration| self.migrate(&task, migration, later));
        if let (Then::NextStep, Some(directory), false) = (then, directory, self.is_told_to_end()) {
            then = self.save(&task, directory, last);
        }
        if let (Then::NextStep, Some(options), false) = (then, shutdown, self.is_told_to_end()) {
            self.shut_down(&task, options);
        }
    }

    /// Sends the SysRq letters, and looks what they have done to the guest. `None`: it is gone.
    fn send_sysrq(&self, guest: &Domain) -> Option<Domain> {
        let letters = &self.run.settings.sysrq.value;
        if letters.is_empty() || !is_alive(guest) {
            return Some(guest.clone());
        }
        let begun = Instant::now();
        for letter in letters {
            if let Err(error) = self.run.toolstack.sysrq(guest.domid, *letter) {
                let reason = format!("letter {letter}: {}", reason(&error));
                self.run.report.failed(Action::SysRq, name(guest), begun.elapsed(), &reason);
                break;
            }
            self.run.pause(self.run.settings.usleep.value);
        }
        let now = match self.guests() {
            Ok(guests) => guests.into_iter().find(|now| now.domid == guest.domid && now.uuid == guest.uuid),
            // Not to know is no reason not to try.
            Err(_) => Some(guest.clone()),
        };
        match now {
            Some(now) if is_finished(&now) => self.clean_up(&now),
            Some(now) => return Some(now),
            None => {
                self.may_return.store(true, Ordering::Relaxed);
                self.run.report.done(Action::Stop, name(guest), begun.elapsed());
            }
        }
        None
    }

    /// Lets a paused guest run: it must, to acknowledge that it is going to be suspended or shut down.
    fn wake(&self, guest: &Domain) {
        if guest.state != State::Paused {
            return;
        }
        match self.run.toolstack.unpause(guest.domid) {
            Ok(()) => self.run.report.note(&format!("{}: was paused, runs now to be stopped", name(guest))),
            Err(error) => self.run.report.warn(&format!("{}: {}", name(guest), reason(&error))),
        }
    }

    fn migrate(&self, task: &Task<'_>, migration: &Migration<'_>, later: u32) -> Then {
        let guest = task.guest;
        let deadline = task.deadline.map(|deadline| share(deadline, later));
        let Some(_place) = self.place(&self.moves, Action::Migrate, guest, deadline) else {
            return Then::NextStep;
        };
        let begun = Instant::now();
        let fail = |reason: &str| self.run.report.failed(Action::Migrate, name(guest), begun.elapsed(), reason);
        let known = match self.run.domain(guest) {
            Ok(known) => known,
            Err(error) => {
                fail(&format!("the boot id: {error}"));
                return Then::NextStep;
            }
        };
        let Run { toolstack, report, interrupt, .. } = *self.run;
        let with = With { toolstack, report, interrupt };
        let limit = self.shared_limit(task, self.run.settings.migrate_jobs.value, deadline);
        let _work = report.work(Action::Migrate, name(guest), limit);
        match migration.migrate(guest, &known, with, limit) {
            Outcome::Moved { target, remains } => {
                report.note(&format!("{}: runs on {target} now", name(guest)));
                report.done(Action::Migrate, name(guest), begun.elapsed());
                if let Some(error) = remains {
                    let left = "it was migrated, but its suspended remains are still there";
                    fail(&format!("{left}: {}", reason(&error)));
                }
                Then::Nothing
            }
            Outcome::Stays { why } => {
                fail(&why);
                Then::NextStep
            }
            Outcome::Suspended { why } | Outcome::Unknown { why } => {
                fail(&why);
                Then::Nothing
            }
        }
    }

    /// Waits for a place among those that do the same. `None`: there was none in time, which is reported.
    fn place<'p>(
        &self,
        places: &'p Places,
        action: Action,
        guest: &Domain,
        deadline: Option<Instant>,
    ) -> Option<Place<'p>> {
        let waiting = Instant::now();
        let place = places.take(deadline).filter(|_| !is_over(deadline) && !self.is_told_to_end());
        if place.is_none() {
            let reason = if self.is_told_to_end() { "told to end" } else { "the time for the whole stop is over" };
            self.run.report.failed(action, name(guest), waiting.elapsed(), reason);
        }
        place
    }

    fn save(&self, task: &Task<'_>, directory: &SaveDirectory, later: u32) -> Then {
        let guest = task.guest;
        let deadline = task.deadline.map(|deadline| share(deadline, later));
        let Some(_place) = self.place(&self.saves, Action::Save, guest, deadline) else { return Then::NextStep };
        let begun = Instant::now();
        let limit = self.shared_limit(task, self.run.settings.save_jobs.value, deadline);
        let _work = self.run.report.work(Action::Save, name(guest), limit);
        match self.try_to_save(guest, directory, limit) {
            Ok(()) => {
                self.run.report.done(Action::Save, name(guest), begun.elapsed());
                Then::Nothing
            }
            Err((reason, then)) => {
                self.run.report.failed(Action::Save, name(guest), begun.elapsed(), &reason);
                then
            }
        }
    }

    /// The guest is destroyed only when its image is safe on the disk. If it can't be brought that far, it runs on.
    fn try_to_save(
        &self,
        guest: &Domain,
        directory: &SaveDirectory,
        limit: Option<Instant>,
    ) -> Result<(), (String, Then)> {
        let toolstack = self.run.toolstack;
        let next_step = |reason: String| (reason, Then::NextStep);
        let domain = self.run.domain(guest).map_err(|error| next_step(format!("the boot id: {error}")))?;
        let mut image = directory
            .begin(&domain, guest.memory_kib.saturating_mul(1024))
            .map_err(|error| next_step(error.to_string()))?;
        let mut progress = self.run.report.progress(Action::Save, name(guest));
        progress.follow(guest.memory_kib.saturating_mul(1024), image.written_so_far());
        if let Err(error) = toolstack.save(guest, &mut image, limit) {
            let mut then = Then::NextStep;
            if error.left_suspended {
                then = Then::Nothing;
                if toolstack.after_save() == AfterSave::Gone {
                    // It may still be written.
                    let kept = image.keep();
                    return Err((
                        format!("{}; what there is of its image is {}", reason(&error), kept.display()),
                        then,
                    ));
                }
                image.guest_stays_suspended();
            }
            return Err((reason(&error), then));
        }
        let saved = match image.commit() {
            Ok(saved) => saved,
            Err(error) if toolstack.after_save() == AfterSave::Gone => {
                let kept = image.keep();
                return Err((
                    format!("{error}; the guest is gone, its image is {}", kept.display()),
                    Then::Nothing,
                ));
            }
            Err(error) => {
                let (reason, then) = self.run_on(guest, error.to_string());
                if then == Then::Nothing {
                    image.guest_stays_suspended();
                }
                return Err((reason, then));
            }
        };
        self.remove_outdated(saved.image());
        toolstack.destroy(guest.domid).map_err(|error| {
            let reason =
                format!("its image is complete, but the suspended guest is still there: {}", reason(&error));
            (reason, Then::Nothing)
        })?;
        if let Err(error) = saved.destroyed() {
            self.run.report.warn(&error.to_string());
        }
        Ok(())
    }

    /// Resumes a guest that is suspended for nothing.
    fn run_on(&self, guest: &Domain, mut why: String) -> (String, Then) {
        match self.run.toolstack.resume(guest.domid) {
            Ok(()) => (why, Then::NextStep),
            Err(error) => {
                why.push_str(&format!("; the guest is left SUSPENDED: {}", reason(&error)));
                (why, Then::Nothing)
            }
        }
    }

    fn shut_down(&self, task: &Task<'_>, options: ShutdownOptions) {
        let (toolstack, guest) = (self.run.toolstack, task.guest);
        let begun = Instant::now();
        // When all the time is over, the guest is still told that the host goes down.
        let (action, result) = if options.wait && !is_over(task.deadline) {
            let limit = self.limit(&task.wish, task.deadline);
            let _work = self.run.report.work(Action::ShutDown, name(guest), limit);
            let down = toolstack.shutdown(guest, limit);
            (Action::ShutDown, down.and_then(|ending| self.see_off(guest, ending)))
        } else {
            (Action::AskToShutDown, toolstack.request_shutdown(guest))
        };
        match result {
            Ok(()) => self.run.report.done(action, name(guest), begun.elapsed()),
            Err(error) => self.run.report.failed(action, name(guest), begun.elapsed(), &reason(&error)),
        }
    }

    /// Frees what is left of a guest that has shut down, and remembers if it may come back all the same.
    fn see_off(&self, guest: &Domain, ending: Ending) -> Result<(), Error> {
        let may_return = match ending {
            Ending::Gone => true,
            Ending::Shutdown(ShutdownReason::Reboot) => !lock(&self.watched).contains(&(guest.domid, guest.uuid)),
            Ending::Shutdown(_) => false,
        };
        if may_return {
            self.may_return.store(true, Ordering::Relaxed);
        }
        self.run.toolstack.destroy(guest.domid)
    }

    /// Frees what is left of a guest that has come to its end by itself.
    fn clean_up(&self, guest: &Domain) {
        if let State::Shutdown(ShutdownReason::Crash | ShutdownReason::Watchdog) = guest.state {
            self.run.report.warn(&format!("{}: has crashed", name(guest)));
        }
        let begun = Instant::now();
        match self.run.toolstack.destroy(guest.domid) {
            Ok(()) => self.run.report.done(Action::CleanUp, name(guest), begun.elapsed()),
            Err(error) => self.failed_to_end(Action::CleanUp, guest, begun, &reason(&error)),
        }
    }

    /// Ends a guest at once, because that is what was asked for.
    fn destroy(&self, guest: &Domain) {
        let begun = Instant::now();
        match self.run.toolstack.destroy(guest.domid) {
            Ok(()) => self.run.report.done(Action::Destroy, name(guest), begun.elapsed()),
            Err(error) => self.failed_to_end(Action::Destroy, guest, begun, &reason(&error)),
        }
    }

    /// Reports a guest that is left behind.
    fn failed_to_end(&self, action: Action, guest: &Domain, begun: Instant, reason: &str) {
        self.left.store(true, Ordering::Relaxed);
        self.run.report.failed(action, name(guest), begun.elapsed(), reason);
    }

    /// SHUTDOWN_ALL: everything that still runs, selected or not.
    fn shut_down_rest(&self, guests: &[Domain], deadline: Option<Instant>, options: ShutdownOptions) {
        let mut levels = self.stop_order(guests);
        while let Some(level) = levels.pop() {
            let later = u32::try_from(levels.len()).unwrap_or(u32::MAX);
            let deadline = deadline.map(|deadline| share(deadline, later));
            let beside = level.guests.len();
            all_at_once(level.guests, |guest| {
                if !self.is_told_to_end() {
                    self.wake(guest.domain);
                    self.shut_down(&self.task(guest, deadline, beside), options);
                }
            });
        }
    }

    /// Looks once more: what has come to its end meanwhile is cleaned up, what is still there is destroyed if that was
    /// asked for, and otherwise reported.
    fn finish(&self, selected: &HashSet<(Uuid, String)>) -> Result<(), Error> {
        for aside in lock(&self.outdated).drain(..) {
            tell_aside(&aside.image().path, "its guest has run since", &aside, self.run.report);
        }
        let settings = self.run.settings;
        let everything = self.is_about_all();
        let mut guests = self.run.toolstack.domains()?;
        guests.retain(Domain::is_manageable);
        let (never_run, guests): (Vec<_>, Vec<_>) = guests.into_iter().partition(Domain::has_never_run);
        let never_run = if everything { never_run } else { self.select(never_run) };
        never_run.iter().for_each(|domain| self.report_never_run(domain));
        all_at_once(guests.iter().collect(), |guest: &Domain| {
            let destroy = Chain::new(settings, &self.wish(guest), None).destroy;
            if !everything && !selected.contains(&(guest.uuid, name(guest).to_owned())) {
                self.run.report.note(&format!("{}: left running, it is not of AUTO", name(guest)));
            } else if is_finished(guest) {
                self.clean_up(guest);
            } else if destroy && !self.is_told_to_end() {
                self.destroy(guest);
            } else {
                self.report_left(guest);
            }
        });
        Ok(())
    }

    /// Names a domain that somebody else is building or has left paused. To let it run would be to use it half built, and
    /// nothing is in it that is not still where it is built from.
    fn report_never_run(&self, domain: &Domain) {
        let (guest, domid) = (name(domain), domain.domid);
        // libxl writes it down when it has built a domain.
        let kept = self.run.toolstack.monitoring().map(|monitoring| monitoring.kept_configuration(domid));
        if let Some(Ok(None)) = kept {
            let reason =
                format!("left alone, somebody else is building it as domain {domid}; it may run any moment");
            self.run.report.failed(Action::Stop, guest, self.begun.elapsed(), &reason);
        } else {
            self.run.report.warn(&format!("{guest}: left paused as domain {domid}: it was never let run"));
        }
    }

    fn report_left(&self, guest: &Domain) {
        let settings = self.run.settings;
        let last_step = settings.shutdown_all.value.or(settings.shutdown.value);
        match last_step {
            None if settings.save.value.is_none() => {
                self.run.report.note(&format!("{}: left running, as the settings say", name(guest)));
            }
            Some(ShutdownOptions { wait: false }) if is_alive(guest) => {
                self.run.report.note(&format!("{}: still runs; it was asked to shut down", name(guest)));
            }
            _ => {
                let what = if is_alive(guest) { "still running" } else { "SUSPENDED, neither running nor saved," };
                let why = if self.is_told_to_end() { "told to end: " } else { "" };
                let reason = format!("{why}it is {what} as domain {}", guest.domid);
                self.failed_to_end(Action::Stop, guest, self.begun, &reason);
            }
        }
    }

    /// The end of a step that begins now: by the guest's own limit or that of the settings, and by the deadline.
    fn limit(&self, wish: &PerGuest, deadline: Option<Instant>) -> Option<Instant> {
        Self::end(step_limit(self.run.settings, wish), deadline)
    }

    /// The same for a step of which the guest has its share only.
    fn shared_limit(&self, task: &Task<'_>, jobs: NonZeroUsize, deadline: Option<Instant>) -> Option<Instant> {
        Self::end(shared(step_limit(self.run.settings, &task.wish), jobs, task.beside), deadline)
    }

    fn end(step: Option<Duration>, deadline: Option<Instant>) -> Option<Instant> {
        let step = step.and_then(|limit| Instant::now().checked_add(limit));
        [step, deadline].into_iter().flatten().min()
    }

    fn is_told_to_end(&self) -> bool {
        self.run.interrupt.is_asked()
    }
}

/// Returns whether stop may act on a domain. One that has never run is not a guest yet.
fn is_to_be_stopped(domain: &Domain) -> bool {
    domain.is_manageable() && !domain.has_never_run()
}

/// The guests of the AUTO directory, for what their files ask for and, with AUTO_ONLY, to select guests by.
fn read_auto(run: &Run<'_>) -> Vec<GuestConfig> {
    let (settings, report) = (run.settings, run.report);
    let only = settings.auto_only.value;
    let found = auto_guests(settings.auto.value.as_deref(), run.xen_host);
    // Without AUTO_ONLY a broken file changes nothing but its guest's own wishes, which start has complained about.
    if only {
        found.messages.tell(report);
    } else {
        found.messages.failures.iter().for_each(|message| report.warn(message));
    }
    match &settings.auto.value {
        None if only => report.note("AUTO_ONLY is set but AUTO is not: no guest is selected"),
        Some(directory) if only && found.guests.is_empty() => {
            let directory = directory.display();
            report.note(&format!("AUTO_ONLY is set but {directory} has no guests: no guest is selected"));
        }
        _ => {}
    }
    found.guests
}

/// The end of a step after which `later` others need time too: it leaves a minute to each of them, or the same as it has
/// itself if that is less.
fn share(deadline: Instant, later: u32) -> Instant {
    let left = deadline.saturating_duration_since(Instant::now());
    let reserve = (left / later.saturating_add(1)).min(RESERVE);
    deadline.checked_sub(reserve.saturating_mul(later)).unwrap_or(deadline)
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::super::mock::{Bench, Fault};
    use super::*;
    use crate::report::Exit;

    fn with_settings(settings: &str) -> Bench {
        let mut bench = Bench::new();
        bench.settings.push_str(settings);
        bench
    }

    fn running(bench: &Bench, names: &[&str]) {
        for name in names {
            bench.toolstack.domain(name, State::Running);
        }
    }

    #[test]
    fn guests_are_saved_and_gone_and_come_back() {
        let bench = Bench::new();
        running(&bench, &["web", "db", "mail"]);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.calls_of("web"), ["save web", "destroy web"]);
        assert_eq!(bench.toolstack.left(), [""; 0]);
        assert_eq!(bench.saved(), ["db", "mail", "web"]);
        assert!(bench.out().contains("stop: 3 saved ("), "{}", bench.out());
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), ["db Running", "mail Running", "web Running"]);
        assert!(bench.has_mark());
        assert_eq!(bench.stop(), Exit::Done);
        assert!(!bench.has_mark());
    }

    #[test]
    fn a_stop_that_leaves_a_guest_behind_keeps_the_mark() {
        let bench = with_settings("XENDOMAINS_SAVE=\n");
        running(&bench, &["web"]);
        bench.host.mark().expect("mark");
        bench.toolstack.fault("shutdown web", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        assert!(bench.has_mark(), "{}", bench.err());
        bench.toolstack.no_fault("shutdown web");
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert!(!bench.has_mark());
        // A guest that is not to be stopped is not left behind.
        let bench = with_settings("XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN_ALL=\n");
        running(&bench, &["web"]);
        bench.host.mark().expect("mark");
        assert_eq!(bench.stop(), Exit::Done);
        assert!(!bench.has_mark());
    }

    #[test]
    fn a_guest_that_cant_be_saved_is_shut_down_and_the_others_are_saved() {
        let bench = Bench::new();
        running(&bench, &["bad", "good"]);
        bench.toolstack.fault("save bad", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("bad"), ["save bad", "shutdown bad", "destroy bad"]);
        assert_eq!(bench.saved(), ["good"]);
        assert_eq!(bench.toolstack.left(), [""; 0]);
        assert!(bench.err().contains("bad: save FAILED") && bench.err().contains("Fails"), "{}", bench.err());
        assert!(bench.out().contains("1 saved") && bench.out().contains("1 shut down"), "{}", bench.out());
    }

    #[test]
    fn a_guest_that_is_left_suspended_is_reported_and_not_asked() {
        let bench = Bench::new();
        running(&bench, &["web"]);
        bench.toolstack.fault("save web", Fault::LeavesSuspended);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["save web"]);
        assert_eq!(bench.saved(), [""; 0]);
        let err = bench.err();
        assert!(err.contains("left SUSPENDED") && err.contains("web: stop FAILED"), "{err}");
    }

    #[test]
    fn an_image_that_cant_be_completed_lets_the_guest_run_on_and_be_shut_down() {
        let bench = Bench::new();
        running(&bench, &["web"]);
        // The image can't take a place that a directory has.
        fs::create_dir_all(bench.path("save/web")).expect("directory");
        assert_eq!(bench.stop(), Exit::Failed);
        let calls = bench.toolstack.calls();
        assert!(calls.ends_with(&["shutdown web".to_owned(), "destroy web".to_owned()]), "{calls:?}");
        if calls.contains(&"save web".to_owned()) {
            assert!(calls.contains(&"resume web".to_owned()), "{calls:?}");
        }
        assert_eq!(bench.saved(), ["web"]);
    }

    #[test]
    fn a_guest_with_an_image_is_never_let_run_on() {
        let bench = Bench::new();
        running(&bench, &["web"]);
        bench.toolstack.fault("destroy web", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["save web", "destroy web"]);
        assert_eq!(bench.saved(), ["web"]);
        assert!(bench.err().contains("its image is complete"), "{}", bench.err());
    }

    #[test]
    fn an_image_from_before_is_replaced_by_a_new_one_and_never_survives_a_shutdown() {
        let bench = Bench::new();
        for name in ["web", "db", "mail"] {
            bench.image(name);
        }
        running(&bench, &["web", "db"]);
        bench.toolstack.fault("save db", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        let saved = bench.saved();
        assert!(saved.len() == 3 && saved[0].starts_with(".db.") && saved[1..] == ["mail", "web"], "{saved:?}");
        assert!(bench.err().contains("save/db: its guest has run since; it is never restored"), "{}", bench.err());
        bench.toolstack.no_fault("save db");
        assert_eq!(bench.start(), Exit::Done);
        assert_eq!(bench.toolstack.left(), ["mail Running", "web Running"]);
    }

    #[test]
    fn a_save_directory_that_cant_be_used_means_shutdown() {
        let bench = Bench::new();
        running(&bench, &["web", "db"]);
        fs::write(bench.path("save"), "not a directory").expect("write");
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("web"), ["shutdown web", "destroy web"]);
        assert_eq!(bench.toolstack.left(), [""; 0]);
        assert_eq!(bench.err().matches("no guest can be saved").count(), 1);
    }

    #[test]
    fn only_guests_are_touched() {
        let bench = Bench::new();
        running(&bench, &["store", "web-dm", "web--incoming", "db--migratedaway"]);
        bench.toolstack.domain("zombie", State::Dying);
        bench.toolstack.change(1, |domain| domain.never_stop = true);
        bench.toolstack.change(2, |domain| domain.stubdom = true);
        assert_eq!(bench.stop(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert!(bench.out().contains("nothing to do"));
    }

    #[test]
    fn auto_only_saves_only_guests_of_auto_and_shutdown_all_sees_to_the_rest() {
        let bench = with_settings("XENDOMAINS_AUTO_ONLY=true\n");
        bench.auto("web.cfg", "web");
        running(&bench, &["web", "webshop", "we", "web.cfg"]);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.saved(), ["web"]);
        for name in ["webshop", "we", "web.cfg"] {
            assert_eq!(bench.toolstack.calls_of(name), [format!("shutdown {name}"), format!("destroy {name}")]);
        }
    }

    #[test]
    fn auto_only_without_shutdown_all_leaves_the_rest_alone() {
        let bench = with_settings("XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN_ALL=\n");
        bench.auto("web.cfg", "web");
        running(&bench, &["web", "other"]);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), ["other Running"]);
        assert_eq!(bench.toolstack.calls_of("other"), [""; 0]);
        assert!(bench.out().contains("other: left running"), "{}", bench.out());
    }

    #[test]
    fn auto_only_selects_none_when_auto_is_empty_missing_or_broken() {
        for (what, exit) in
            [("empty", Exit::Done), ("missing", Exit::Done), ("file", Exit::Failed), ("junk", Exit::Failed)]
        {
            let bench = with_settings("XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN_ALL=\nXENDOMAINS_SYSRQ=s\n");
            let auto = bench.path("auto");
            match what {
                "missing" => fs::remove_dir(auto).expect("remove"),
                "file" => fs::remove_dir(&auto).and_then(|()| fs::write(auto, "")).expect("write"),
                "junk" => fs::write(auto.join("web"), "name = ").expect("write"),
                _ => {}
            }
            running(&bench, &["web", "other"]);
            assert_eq!(bench.stop(), exit, "{what}");
            assert_eq!(bench.toolstack.calls(), [""; 0], "{what}");
            let said = bench.out() + &bench.err();
            assert!(said.contains("no guest is selected"), "{what}: {said}");
        }
        let bench = with_settings("XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_AUTO=\n");
        running(&bench, &["web"]);
        assert_eq!(bench.stop(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), ["shutdown web", "destroy web"]);
    }

    #[test]
    fn sysrq_letters_come_first_each_with_its_wait() {
        let bench = with_settings("XENDOMAINS_SYSRQ='s u'\nXENDOMAINS_USLEEP=9\n");
        running(&bench, &["web"]);
        assert_eq!(bench.stop(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), ["sysrq web s", "sysrq web u", "save web", "destroy web"]);
        assert_eq!(bench.slept(), [Duration::from_micros(9); 2]);
    }

    #[test]
    fn a_guest_that_sysrq_has_ended_is_cleaned_up() {
        let bench = with_settings("XENDOMAINS_SYSRQ='s o'\n");
        running(&bench, &["web", "db"]);
        bench.toolstack.fault("sysrq web o", Fault::PowersOff);
        bench.toolstack.fault("sysrq db s", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("web"), ["sysrq web s", "sysrq web o", "destroy web"]);
        assert_eq!(bench.toolstack.calls_of("db"), ["sysrq db s", "save db", "destroy db"]);
    }

    #[test]
    fn paused_guests_are_let_run_and_ended_ones_cleaned_up() {
        let bench = Bench::new();
        bench.toolstack.domain("paused", State::Paused);
        bench.toolstack.domain("off", State::Shutdown(ShutdownReason::Poweroff));
        bench.toolstack.domain("crashed", State::Shutdown(ShutdownReason::Crash));
        bench.toolstack.domain("saving", State::Shutdown(ShutdownReason::Suspend));
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("paused"), ["unpause paused", "save paused", "destroy paused"]);
        assert_eq!(bench.toolstack.calls_of("off"), ["destroy off"]);
        assert_eq!(bench.toolstack.calls_of("crashed"), ["destroy crashed"]);
        assert_eq!(bench.toolstack.calls_of("saving"), [""; 0]);
        assert!(bench.err().contains("crashed: has crashed"));
        assert!(bench.err().contains("saving: stop FAILED"), "{}", bench.err());
    }

    #[test]
    fn with_auto_only_a_renamed_guest_is_still_one_of_auto() {
        let bench = with_settings("XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN_ALL=\n");
        bench.auto("web", "web");
        running(&bench, &["web", "other"]);
        bench.toolstack.change(bench.toolstack.get_by_name("web").domid, |domain| {
            domain.name = Some("web2".to_owned());
        });
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!((bench.toolstack.left(), bench.saved()), (vec!["other Running".into()], vec!["web2".into()]));
        // With a copied UUID only the name tells.
        bench.copied_auto("web", "copy");
        running(&bench, &["web2"]);
        bench.toolstack.change(bench.toolstack.get_by_name("web2").domid, |domain| {
            domain.uuid = super::super::mock::uuid_of("web");
        });
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), ["other Running", "web2 Running"]);
    }

    #[test]
    fn a_domain_that_was_never_let_run_is_left_alone_and_so_is_its_image() {
        for settings in ["", "XENDOMAINS_DESTROY=true\n", "XENDOMAINS_MIGRATE=far\n"] {
            let bench = with_settings(settings);
            bench.image("web");
            let domid = bench.toolstack.domain("web", State::Paused);
            bench.toolstack.change(domid, |domain| domain.cpu_time = Duration::ZERO);
            assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
            assert_eq!(bench.toolstack.calls(), [""; 0]);
            assert_eq!((bench.toolstack.left(), bench.saved()), (vec!["web Paused".into()], vec!["web".into()]));
            assert!(bench.err().contains("web: left paused as domain 2: it was never let run"), "{}", bench.err());
        }
    }

    #[test]
    fn without_wait_guests_are_only_asked() {
        let settings = "XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN=--halt\nXENDOMAINS_SHUTDOWN_ALL=\n";
        let bench = with_settings(settings);
        running(&bench, &["slow", "quick"]);
        bench.toolstack.fault("request quick", Fault::PowersOff);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.calls_of("slow"), ["request slow"]);
        assert_eq!(bench.toolstack.calls_of("quick"), ["request quick", "destroy quick"]);
        assert!(bench.out().contains("slow: still runs; it was asked"), "{}", bench.out());
    }

    #[test]
    fn a_guest_that_comes_back_is_met_by_shutdown_all() {
        let bench = with_settings("XENDOMAINS_SAVE=\n");
        running(&bench, &["web"]);
        bench.toolstack.fault("shutdown web", Fault::Reboots);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), [""; 0]);
    }

    #[test]
    fn what_still_runs_in_the_end_is_a_failure() {
        let bench = with_settings("XENDOMAINS_SAVE=\n");
        running(&bench, &["stubborn", "good"]);
        bench.toolstack.fault("shutdown stubborn", Fault::TimesOut);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("stubborn"), ["shutdown stubborn", "shutdown stubborn"]);
        assert_eq!(bench.toolstack.left(), ["stubborn Running"]);
        let err = bench.err();
        assert!(err.contains("time limit reached"), "{err}");
        assert!(err.contains("stubborn: stop FAILED") && err.contains("still running as domain 1"), "{err}");
    }

    #[test]
    fn settings_that_ask_for_nothing_get_nothing() {
        let bench = with_settings("XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n");
        bench.toolstack.domain("web", State::Paused);
        assert_eq!(bench.stop(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert!(bench.out().contains("web: left running, as the settings say"), "{}", bench.out());
    }

    #[test]
    fn every_step_has_its_limit_and_leaves_time_to_what_comes_after_it() {
        // The limits of save, of which two are done at once, and of shutdown; SHUTDOWN_ALL comes after both.
        for (settings, save, shutdown) in [
            ("", Some(600), Some(300)),
            ("XENDOMAINS_SAVE_JOBS=1\n", Some(300), Some(300)),
            ("XENDOMAINS_SAVE_JOBS=9\n", Some(900), Some(300)),
            ("XENDOMAINS_STOP_MAXWAIT=7\n", Some(14), Some(7)),
            ("XENDOMAINS_STOP_MAXWAIT=0\n", None, None),
            ("XENDOMAINS_STOP_TIMEOUT=400\n", Some(280), Some(300)),
            ("XENDOMAINS_STOP_MAXWAIT=0\nXENDOMAINS_STOP_TIMEOUT=400\n", Some(280), Some(340)),
            ("XENDOMAINS_STOP_MAXWAIT=0\nXENDOMAINS_STOP_TIMEOUT=40\n", Some(10), Some(20)),
            ("XENDOMAINS_STOP_MAXWAIT=3\nXENDOMAINS_STOP_TIMEOUT=400\n", Some(6), Some(3)),
        ] {
            let mut bench = with_settings(settings);
            wishes(&mut bench, "quick", "'stop_timeout=9'");
            running(&bench, &["web", "bad", "quick"]);
            bench.toolstack.fault("save bad", Fault::TimesOut);
            bench.stop();
            for (call, expected) in [("save web", save), ("save bad", save), ("shutdown bad", shutdown)] {
                let limit = bench.toolstack.limit(call);
                let rounded = limit.map(|limit| limit.as_secs_f64().ceil() as u64);
                assert_eq!(rounded, expected, "{settings} {call}: {limit:?}");
            }
            let quick = bench.toolstack.limit("save quick").expect("limited").as_secs_f64().ceil() as u64;
            let at_once = if settings.contains("JOBS=1") {
                1
            } else if settings.contains("JOBS=9") {
                3
            } else {
                2
            };
            let share = if settings.contains("TIMEOUT=40\n") { 10 } else { 9 * at_once };
            assert_eq!(quick, share, "{settings}");
        }
    }

    #[test]
    fn a_guest_that_cant_be_saved_is_shut_down_at_once_and_that_is_no_failure() {
        for (settings, migrates) in [("", false), ("XENDOMAINS_MIGRATE=far\n", true)] {
            let bench = with_settings(settings);
            running(&bench, &["pci", "numa"]);
            bench.toolstack.configure("pci", json!({ "pcidevs": [ { "bus": 1 } ] }));
            bench.toolstack.configure("numa", json!({ "b_info": { "vnuma_nodes": [ { "memkb": 1024 } ] } }));
            assert_eq!(bench.stop(), Exit::Done, "{migrates}: {}", bench.err());
            for name in ["pci", "numa"] {
                let calls = bench.toolstack.calls_of(name);
                assert_eq!(calls, [format!("shutdown {name}"), format!("destroy {name}")]);
            }
            assert_eq!(bench.saved(), [""; 0]);
            assert!(
                bench.out().contains("pci: neither migrated nor saved: it has PCI devices"),
                "{}",
                bench.out()
            );
        }
        // Where it is not to be saved, that is no news; and where it is not to be shut down, it is left, which is told.
        let bench = with_settings("XENDOMAINS_SAVE=\n");
        running(&bench, &["pci"]);
        bench.toolstack.configure("pci", json!({ "pcidevs": [ { "bus": 1 } ] }));
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert!(!bench.out().contains("neither"), "{}", bench.out());
        let bench = with_settings("XENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n");
        running(&bench, &["pci"]);
        bench.toolstack.configure("pci", json!({ "pcidevs": [ { "bus": 1 } ] }));
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.left(), ["pci Running"]);
    }

    /// Puts a guest into AUTO that asks for something of its own.
    fn wishes(bench: &mut Bench, name: &str, wishes: &str) {
        bench.auto(name, name);
        let file = bench.path("auto").join(name);
        let text = fs::read_to_string(&file).expect("read");
        fs::write(&file, format!("{text}xendomains = [ {wishes} ]\n")).expect("write");
    }

    #[test]
    fn guests_stop_in_the_reverse_order_and_driver_domains_last() {
        let mut bench = with_settings("XENDOMAINS_SAVE=\n");
        for (name, order) in [("dns", 1), ("db", 5), ("web", 9)] {
            wishes(&mut bench, name, &format!("'order={order}'"));
        }
        running(&bench, &["storage", "net", "dns", "web", "db", "other"]);
        bench.toolstack.configure("storage", json!({ "c_info": { "driver_domain": "True" } }));
        let nic = json!({ "nics": [ { "devid": 0, "backend_domname": "net" } ] });
        bench.toolstack.configure("db", nic);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        let mut calls = bench.toolstack.calls();
        calls.retain(|call| call.starts_with("shutdown"));
        // The two drivers are on one level.
        calls[4..].sort();
        let expected = ["other", "web", "db", "dns", "net", "storage"].map(|name| format!("shutdown {name}"));
        assert_eq!(calls, expected);
    }

    #[test]
    fn a_driver_domain_stops_before_the_one_that_serves_it() {
        let bench = with_settings("XENDOMAINS_SAVE=\n");
        running(&bench, &["store", "net", "web"]);
        bench.toolstack.configure("net", json!({ "disks": [ { "backend_domname": "store" } ] }));
        bench.toolstack.configure("web", json!({ "nics": [ { "backend_domid": 2 } ] }));
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        let mut calls = bench.toolstack.calls();
        calls.retain(|call| call.starts_with("shutdown"));
        assert_eq!(calls, ["web", "net", "store"].map(|name| format!("shutdown {name}")));
    }

    #[test]
    fn a_guests_own_way_to_stop() {
        let mut bench = Bench::new();
        for (name, wish) in [("a", "save"), ("b", "shutdown"), ("c", "destroy"), ("d", "migrate")] {
            wishes(&mut bench, name, &format!("'stop={wish}'"));
        }
        running(&bench, &["a", "b", "c", "d"]);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.calls_of("a"), ["save a", "destroy a"]);
        assert_eq!(bench.toolstack.calls_of("b"), ["shutdown b", "destroy b"]);
        assert_eq!(bench.toolstack.calls_of("c"), ["destroy c"]);
        assert_eq!(bench.toolstack.calls_of("d"), ["save d", "destroy d"]);
        assert!(bench.out().contains("c: destroyed ("), "{}", bench.out());
    }

    #[test]
    fn what_is_left_is_destroyed_only_where_that_is_asked_for() {
        for (settings, wish, gone) in [
            ("XENDOMAINS_DESTROY=true\n", "", true),
            ("XENDOMAINS_DESTROY=true\n", "'destroy=false'", false),
            ("", "'destroy=true'", true),
            ("", "", false),
        ] {
            let mut bench = with_settings(&format!("XENDOMAINS_SAVE=\n{settings}"));
            wishes(&mut bench, "deaf", wish);
            running(&bench, &["deaf"]);
            bench.toolstack.fault("shutdown deaf", Fault::TimesOut);
            assert_eq!(bench.stop(), Exit::Failed, "the shutdown has failed in any case");
            assert_eq!(bench.toolstack.left().is_empty(), gone, "{settings} {wish}");
            assert_eq!(bench.out().contains("deaf: destroyed ("), gone, "{}", bench.out());
            assert_eq!(bench.err().contains("deaf: stop FAILED"), !gone, "{}", bench.err());
        }
    }

    #[test]
    fn a_guest_that_reboots_is_stopped_again_but_not_for_ever() {
        let bench = with_settings("XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN_ALL=\n");
        running(&bench, &["web"]);
        bench.toolstack.fault("shutdown web", Fault::Reboots);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), [""; 0]);
        assert_eq!(bench.slept(), [REBOOT]);

        let bench = with_settings("XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN_ALL=\n");
        running(&bench, &["web"]);
        bench.toolstack.fault("shutdown web", Fault::KeepsRebooting);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("web"), ["shutdown web"; ROUNDS]);
        assert!(bench.err().contains("web: stop FAILED"), "{}", bench.err());
    }

    #[test]
    fn told_to_end_it_begins_nothing_more_and_says_what_is_left() {
        let bench = Bench::new();
        running(&bench, &["web", "db"]);
        bench.interrupt.ask();
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert!(
            bench.err().contains("web: stop FAILED") && bench.err().contains("told to end"),
            "{}",
            bench.err()
        );
    }

    #[test]
    fn each_step_leaves_a_minute_to_those_after_it_or_as_much_as_it_has() {
        let now = Instant::now();
        let seconds = |left: u64, later| {
            let end = share(now + Duration::from_secs(left), later);
            (end - now).as_secs_f64().round() as u64
        };
        assert_eq!(seconds(400, 0), 400);
        assert_eq!(seconds(400, 2), 280);
        assert_eq!(seconds(90, 2), 30);
        assert_eq!(seconds(0, 9), 0);
    }

    #[test]
    fn when_all_the_time_is_over_guests_are_still_asked_to_shut_down() {
        let bench = Bench::new();
        running(&bench, &["web"]);
        bench.run(|run| {
            let now = Instant::now();
            let stop = Stop { deadline: Some(now), ..Stop::new(run, now) };
            stop.all().expect("listed");
        });
        assert_eq!(bench.toolstack.calls(), ["request web", "request web"]);
        assert_eq!(bench.saved(), [""; 0]);
        assert!(bench.err().contains("web: save FAILED (0.0 s): the time for the whole stop is over"));
        assert!(bench.err().contains("web: stop FAILED"), "{}", bench.err());
    }

    #[test]
    fn a_toolstack_that_cant_list_is_a_failure() {
        let bench = Bench::new();
        running(&bench, &["web"]);
        bench.toolstack.fault("list domains", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
    }
}
