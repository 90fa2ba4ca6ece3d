//! Domains that shut down and die, as a stream.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use uuid::Uuid;
use xenlight_sys::libxl as sys;

use crate::Domid;
use crate::context::{Context, Shared, User, lock};
use crate::domain::ShutdownReason;
use crate::error::{Cause, Error, ErrorCode, Result};

/// What happened to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainChange {
    /// It has shut down for this reason. It still exists and holds its memory until someone destroys it.
    Shutdown(ShutdownReason),
    /// It is gone.
    Death,
}

/// A change of a watched domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainEvent {
    /// The domain's number.
    pub domid: Domid,
    /// The UUID that was watched under this number.
    pub uuid: Uuid,
    /// What happened.
    pub change: DomainChange,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<DomainEvent>,
    waker: Option<Waker>,
    broken: bool,
}

#[derive(Default)]
struct Stream {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Stream {
    fn push(&self, event: Option<DomainEvent>) {
        let waker = {
            let mut queue = lock(&self.queue);
            match event {
                Some(event) => queue.events.push_back(event),
                None => queue.broken = true,
            }
            self.arrived.notify_all();
            queue.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// libxl's generator, which reports one domain's end.
struct Generator(*mut sys::libxl_evgen_domain_death);

// SAFETY: a generator is only a token for libxl, which locks its context whenever it is used.
unsafe impl Send for Generator {}

struct Watched {
    domid: Domid,
    uuid: Uuid,
    stream: Arc<Stream>,
    generator: Option<Generator>,
    /// What was reported last, so that a check and an event that see the same thing report it once.
    last: Option<DomainChange>,
}

/// All watches of a context, by the number that libxl hands back with each event.
#[derive(Default)]
pub(crate) struct Registry {
    watches: Mutex<(u64, HashMap<u64, Watched>)>,
}

impl Registry {
    fn add(&self, watched: Watched) -> u64 {
        let mut watches = lock(&self.watches);
        watches.0 += 1;
        let number = watches.0;
        watches.1.insert(number, watched);
        number
    }

    fn remove(&self, number: u64) -> Option<Watched> {
        lock(&self.watches).1.remove(&number)
    }

    /// Reports a change once.
    fn report(&self, number: u64, change: DomainChange) {
        let mut watches = lock(&self.watches);
        let Some(watched) = watches.1.get_mut(&number) else { return };
        if watched.last == Some(change) || watched.last == Some(DomainChange::Death) {
            return;
        }
        watched.last = Some(change);
        let event = DomainEvent { domid: watched.domid, uuid: watched.uuid, change };
        let stream = Arc::clone(&watched.stream);
        drop(watches);
        stream.push(Some(event));
    }

    /// Takes an event of libxl's.
    pub(crate) fn deliver(&self, shared: &Shared, event: &sys::libxl_event) {
        let number = event.for_user;
        match event.type_ {
            sys::LIBXL_EVENT_TYPE_DOMAIN_DEATH => self.report(number, DomainChange::Death),
            sys::LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN => {
                // SAFETY: the event's type says that this member of the union is the one that is set.
                let code = unsafe { event.u.domain_shutdown.shutdown_reason };
                let reason = ShutdownReason::from_raw(i32::from(code));
                self.report(number, DomainChange::Shutdown(reason));
                if reason == ShutdownReason::Suspend {
                    self.renew(shared, number);
                }
            }
            _ => {}
        }
    }

    /// After it has reported a suspend a generator reports no later shutdown. A new one does; it is made before
    /// the old one is given up, because libxl's watch would otherwise start anew and report the suspend again.
    fn renew(&self, shared: &Shared, number: u64) {
        let Some(domid) = lock(&self.watches).1.get(&number).map(|w| w.domid) else { return };
        match generate(shared, domid, number) {
            Ok(new) => {
                let mut watches = lock(&self.watches);
                let old = match watches.1.get_mut(&number) {
                    Some(watched) => {
                        watched.last = None;
                        watched.generator.replace(new)
                    }
                    // Given up meanwhile.
                    None => Some(new),
                };
                drop(watches);
                if let Some(old) = old {
                    disable(shared, domid, old);
                }
                // The guest may have been resumed and have ended before the new generator was there.
                self.check(shared, number);
            }
            Err(e) => shared
                .logger
                .note(crate::LogLevel::Error, format!("Domain {domid}:no longer watched after its suspend: {e}")),
        }
    }

    /// Looks for itself, because a generator does not report what had happened before it was made.
    fn check(&self, shared: &Shared, number: u64) {
        let Some((domid, uuid)) = lock(&self.watches).1.get(&number).map(|w| (w.domid, w.uuid)) else { return };
        match crate::domain::info(shared, domid) {
            Ok(info) if info.uuid != uuid || info.dying => self.report(number, DomainChange::Death),
            Ok(info) => match info.shutdown {
                // A suspend is news only when it happens: it is a save or a migration under way.
                None | Some(ShutdownReason::Suspend) => {}
                Some(reason) => self.report(number, DomainChange::Shutdown(reason)),
            },
            Err(e) if e.code() == Some(ErrorCode::DomainNotFound) => self.report(number, DomainChange::Death),
            Err(e) => shared.logger.note(
                crate::LogLevel::Error,
                format!("Domain {domid}:can't be looked at while it is watched: {e}"),
            ),
        }
    }

    /// Tells every stream that no events will come any more.
    pub(crate) fn interrupt_all(&self) {
        let streams: Vec<_> = lock(&self.watches).1.values().map(|w| Arc::clone(&w.stream)).collect();
        for stream in streams {
            stream.push(None);
        }
    }
}

fn generate(shared: &Shared, domid: Domid, number: u64) -> Result<Generator> {
    let mark = shared.logger.mark();
    let mut generator = std::ptr::null_mut();
    // SAFETY: the context is alive (the caller is a user of it, or libxl itself calls); `generator` is a place for
    // the result.
    let rc = unsafe { shared.lib().libxl_evenable_domain_death(shared.ctx(), domid, number, &mut generator) };
    shared.check("watch domain", Some(domid), mark, rc)?;
    Ok(Generator(generator))
}

fn disable(shared: &Shared, _domid: Domid, generator: Generator) {
    // SAFETY: the generator belongs to this context, and taking it by value shows that it is given up only once.
    unsafe { shared.lib().libxl_evdisable_domain_death(shared.ctx(), generator.0) };
}

/// Watches domains and yields what happens to them.
///
/// Made by [`Context::domain_events`]. Use [`next_until`](DomainEvents::next_until) from a thread, or the
/// [`Stream`](futures_core::Stream) implementation from a task. Nothing polls: libxl learns of a domain's end from
/// the hypervisor through xenstore.
///
/// A suspend is reported as [`ShutdownReason::Suspend`]; the domain stays watched, so that its later end is
/// reported too. A suspend may be reported more than once while other domains end.
pub struct DomainEvents {
    stream: Arc<Stream>,
    watches: Mutex<HashMap<Domid, u64>>,
    user: User,
}

impl std::fmt::Debug for DomainEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let watched: Vec<_> = lock(&self.watches).keys().copied().collect();
        f.debug_struct("DomainEvents").field("watched", &watched).finish_non_exhaustive()
    }
}

impl Context {
    /// A stream of domain ends, which watches nothing yet.
    pub fn domain_events(&self) -> DomainEvents {
        DomainEvents { stream: Arc::default(), watches: Mutex::default(), user: self.user.clone() }
    }
}

impl DomainEvents {
    /// Watches the domain that has this number and UUID.
    ///
    /// If it has shut down or is gone already (or another domain has its number by now), that is reported too.
    /// Watching a domain twice changes nothing.
    ///
    /// # Errors
    /// When libxl can't watch, e.g. because xenstored is gone.
    ///
    /// Wraps `libxl_evenable_domain_death`.
    #[doc(alias = "libxl_evenable_domain_death")]
    pub fn watch(&self, domid: Domid, uuid: Uuid) -> Result<()> {
        if let Some(why) = self.user.disaster() {
            return Err(Error::new("watch domain", Some(domid), Cause::Disaster(why)));
        }
        let mut watches = lock(&self.watches);
        if watches.contains_key(&domid) {
            return Ok(());
        }
        let registry = &self.user.registry;
        let number =
            registry.add(Watched { domid, uuid, stream: Arc::clone(&self.stream), generator: None, last: None });
        let generator = match generate(&self.user, domid, number) {
            Ok(generator) => generator,
            Err(e) => {
                registry.remove(number);
                return Err(e);
            }
        };
        watches.insert(domid, number);
        drop(watches);
        // The generator may have reported a suspend by now and have been renewed; the newer one then stays.
        let surplus = {
            let mut all = lock(&registry.watches);
            match all.1.get_mut(&number) {
                Some(watched) if watched.generator.is_none() => {
                    watched.generator = Some(generator);
                    None
                }
                _ => Some(generator),
            }
        };
        if let Some(surplus) = surplus {
            disable(&self.user, domid, surplus);
        }
        registry.check(&self.user, number);
        Ok(())
    }

    /// Stops watching a domain. Events that have come already stay in the stream.
    ///
    /// Wraps `libxl_evdisable_domain_death`.
    #[doc(alias = "libxl_evdisable_domain_death")]
    pub fn unwatch(&self, domid: Domid) {
        let number = lock(&self.watches).remove(&domid);
        if let Some(number) = number {
            self.give_up(domid, number);
        }
    }

    fn give_up(&self, domid: Domid, number: u64) {
        let watched = self.user.registry.remove(number);
        if let Some(generator) = watched.and_then(|w| w.generator) {
            disable(&self.user, domid, generator);
        }
    }

    fn broken(&self) -> Error {
        let why = self.user.disaster().unwrap_or_default();
        Error::new("wait for domain events", None, Cause::Disaster(why))
    }

    /// The next event. `Ok(None)` when `deadline` has passed first; a `deadline` of `None` waits for ever.
    ///
    /// # Errors
    /// [`Cause::Disaster`] when libxl's event handling broke and no event is left in the stream.
    pub fn next_until(&self, deadline: Option<Instant>) -> Result<Option<DomainEvent>> {
        let mut queue = lock(&self.stream.queue);
        loop {
            if let Some(event) = queue.events.pop_front() {
                return Ok(Some(event));
            }
            if queue.broken {
                return Err(self.broken());
            }
            queue = match deadline {
                None => self.stream.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    self.stream.arrived.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl futures_core::Stream for DomainEvents {
    type Item = Result<DomainEvent>;

    /// Never ends by itself; after a disaster it yields that error each time.
    fn poll_next(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = lock(&self.stream.queue);
        if let Some(event) = queue.events.pop_front() {
            return Poll::Ready(Some(Ok(event)));
        }
        if queue.broken {
            return Poll::Ready(Some(Err(self.broken())));
        }
        queue.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for DomainEvents {
    fn drop(&mut self) {
        let watches = std::mem::take(&mut *lock(&self.watches));
        for (domid, number) in watches {
            self.give_up(domid, number);
        }
    }
}
