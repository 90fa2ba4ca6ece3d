//! Memory for guests on a host where dom0 gives it back ("autoballoon" in xl.conf): before a guest is built, dom0's
//! target is lowered by what is missing, as xl does.
//!
//! xl builds one guest at a time, because it holds its lock ([`CreateLock`]) until the guest is there. Here several are
//! built at once: the process has the lock as long as any is. Then what is free is not what there is to give: to a build
//! that is under way memory has been promised that it has not yet taken. So memory is asked for by one thread at a time,
//! and what has been promised counts as needed too.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;
use xenlight::Context;

use super::create_lock::{self, CreateLock, Held};
use super::{Domid, Note};
use crate::interrupt::Interrupt;

const DOM0: Domid = 0;

/// How long dom0 may go without giving anything back.
const PATIENCE: Duration = Duration::from_secs(10);

/// When so much time has been spent in waiting for dom0, it is not asked again.
const LIMIT: Duration = Duration::from_secs(30);

/// What a wait counts at least: libxl looks that often.
const STEP: Duration = Duration::from_secs(2);

/// Why there is no memory for a guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// xl's lock can't be had.
    #[error(transparent)]
    Lock(#[from] create_lock::Error),
    /// libxl could not be asked.
    #[error(transparent)]
    Libxl(#[from] xenlight::Error),
    /// There is not enough, and no guest is being built that might leave some.
    #[error(
        "not enough memory for {guest}: needs {} MiB, free {} MiB, dom0 can't give more: {why}",
        need_kib.div_ceil(1024), free_kib / 1024
    )]
    TooLittle {
        /// The guest.
        guest: String,
        /// What it needs.
        need_kib: u64,
        /// What was free when dom0 was last asked.
        free_kib: u64,
        /// How dom0 failed to give the rest.
        why: String,
    },
    /// There was not enough until the deadline, or when the program was asked to end.
    #[error("{guest} has not got the {} MiB of memory that it needs in time", need_kib.div_ceil(1024))]
    Deadline {
        /// The guest.
        guest: String,
        /// What it needs.
        need_kib: u64,
    },
}

impl Error {
    /// Whether it failed because of the deadline.
    pub fn timed_out(&self) -> bool {
        matches!(self, Error::Deadline { .. } | Error::Lock(create_lock::Error::Deadline { .. }))
    }
}

/// A guest that is to be built.
pub struct Demand<'a> {
    /// Its name.
    pub guest: &'a str,
    /// Its UUID, by which its domain is found once there is one.
    pub uuid: Uuid,
    /// What building it takes.
    pub need_kib: u64,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// dom0 as the source of memory.
pub struct Memory {
    context: Context,
    lock: CreateLock,
    shared: Arc<Shared>,
    interrupt: Arc<Interrupt>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// A turn or a build has ended, or the program is to end.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// It is some thread's turn to ask for memory.
    taken: bool,
    builds: Vec<Build>,
    begun: u64,
    ended: u64,
}

/// A guest that is being built.
#[derive(Clone, Copy)]
struct Build {
    number: u64,
    uuid: Uuid,
    need_kib: u64,
}

/// Memory for a guest, and xl's lock, until it has been built (or has failed to be): then this is to be dropped.
pub struct Room<'a> {
    memory: &'a Memory,
    number: u64,
    _lock: Held,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut state = self.memory.state();
        state.builds.retain(|build| build.number != self.number);
        state.ended += 1;
        self.memory.shared.changed.notify_all();
    }
}

/// The turn to ask for memory.
struct Turn<'a>(&'a Memory);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().taken = false;
        self.0.shared.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // What a panicking thread has left is whole: nothing that is done with it locked can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    /// Asks through this context, under the lock of this file. `interrupt` ends waiting.
    pub fn new(context: Context, lock: &Path, interrupt: Arc<Interrupt>) -> Memory {
        let shared = Arc::new(Shared::default());
        let waked = Arc::clone(&shared);
        interrupt.when_asked(move || {
            drop(waked.state());
            waked.changed.notify_all();
        });
        Memory { context, lock: CreateLock::new(lock, Arc::clone(&interrupt)), shared, interrupt }
    }

    /// Sees to it that the memory for a guest is free. `note` is told what that waits for, if it may take long.
    pub fn make_room(&self, demand: &Demand<'_>, note: Note<'_>) -> Result<Room<'_>, Error> {
        let lock = self.lock.acquire(demand.deadline, note)?;
        let mut told = false;
        loop {
            let (turn, ended) = self.turn(demand)?;
            let error = match self.free(demand, note) {
                Ok(()) => return Ok(Room { memory: self, number: self.begin(demand), _lock: lock }),
                Err(error) => error,
            };
            drop(turn);
            let Error::TooLittle { free_kib, .. } = error else { return Err(error) };
            if !self.is_building(ended) {
                return Err(error);
            }
            if !told {
                told = true;
                let (need, free) = (demand.need_kib.div_ceil(1024), free_kib / 1024);
                note(&format!("waits for memory: needs {need} MiB, free {free} MiB, others are being built"));
            }
            drop(self.wait(demand, |state| state.ended != ended)?);
        }
    }

    /// Only xl's lock, for a guest that keeps the memory that it has.
    pub fn lock(&self, deadline: Option<Instant>, note: Note<'_>) -> Result<Held, Error> {
        Ok(self.lock.acquire(deadline, note)?)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    fn wait(&self, demand: &Demand<'_>, done: impl Fn(&State) -> bool) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = self.state();
        while !done(&state) {
            if self.interrupt.is_asked() {
                return Err(demand.too_late());
            }
            state = match demand.left() {
                None => self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Err(demand.too_late()),
                Some(left) => {
                    self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Ok(state)
    }

    /// Waits for the turn. Also says how many builds have ended so far.
    fn turn(&self, demand: &Demand<'_>) -> Result<(Turn<'_>, u64), Error> {
        let mut state = self.wait(demand, |state| !state.taken)?;
        state.taken = true;
        Ok((Turn(self), state.ended))
    }

    fn begin(&self, demand: &Demand<'_>) -> u64 {
        let mut state = self.state();
        state.begun += 1;
        let number = state.begun;
        state.builds.push(Build { number, uuid: demand.uuid, need_kib: demand.need_kib });
        number
    }

    /// Whether a guest is being built, or has been since so many had ended.
    fn is_building(&self, ended: u64) -> bool {
        let state = self.state();
        !state.builds.is_empty() || state.ended != ended
    }

    /// Makes memory free. If that can't be done, dom0's target is what it was.
    fn free(&self, demand: &Demand<'_>, note: Note<'_>) -> Result<(), Error> {
        let mut lowered_kib = 0;
        let outcome = self.lower_dom0(demand, &mut lowered_kib);
        if outcome.is_err() && lowered_kib > 0 {
            if let Err(error) = self.context.change_memory_target_kib(DOM0, lowered_kib, false) {
                note(&format!("dom0's memory target stays lowered by {} MiB: {error}", lowered_kib / 1024));
            }
        }
        outcome
    }

    fn lower_dom0(&self, demand: &Demand<'_>, lowered_kib: &mut i64) -> Result<(), Error> {
        let mut waited = Duration::ZERO;
        loop {
            // In this order: what a build takes in between then counts twice, and not not at all.
            let promised_kib = self.promised_kib()?;
            let free_kib = self.context.free_memory_kib()?;
            let missing_kib = demand.need_kib.saturating_add(promised_kib).saturating_sub(free_kib);
            if missing_kib == 0 {
                return Ok(());
            }
            let too_little = |why: String| Error::TooLittle {
                guest: demand.guest.to_owned(),
                need_kib: demand.need_kib,
                free_kib,
                why,
            };
            if self.interrupt.is_asked() {
                return Err(demand.too_late());
            }
            if waited >= LIMIT {
                return Err(too_little(format!("it has had {} s", LIMIT.as_secs())));
            }
            let patience = demand.left().map_or(PATIENCE, |left| left.min(PATIENCE));
            if patience.is_zero() {
                return Err(demand.too_late());
            }
            let missing_kib = i64::try_from(missing_kib).unwrap_or(i64::MAX);
            self.context
                .change_memory_target_kib(DOM0, -missing_kib, false)
                .map_err(|error| too_little(error.to_string()))?;
            *lowered_kib += missing_kib;
            let began = Instant::now();
            if let Err(error) = self.context.wait_for_memory_target(DOM0, patience) {
                let is_late = demand.left().is_some_and(|left| left.is_zero());
                return Err(if is_late { demand.too_late() } else { too_little(error.to_string()) });
            }
            waited += began.elapsed().max(STEP);
        }
    }

    /// What has been promised to guests that are being built and is not theirs yet.
    fn promised_kib(&self) -> Result<u64, Error> {
        let builds = self.state().builds.clone();
        if builds.is_empty() {
            return Ok(0);
        }
        let domains = self.context.list()?;
        let taken_kib = |build: &Build| -> u64 {
            // What is kept of an earlier life of the guest has its UUID too.
            let built = domains.iter().filter(|it| it.uuid == build.uuid && it.shutdown.is_none() && !it.dying);
            built.map(|domain| domain.current_kib).sum()
        };
        Ok(builds.iter().map(|build| build.need_kib.saturating_sub(taken_kib(build))).sum())
    }
}

impl Demand<'_> {
    /// The time that is left, if there is a limit.
    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    fn too_late(&self) -> Error {
        Error::Deadline { guest: self.guest.to_owned(), need_kib: self.need_kib }
    }
}
