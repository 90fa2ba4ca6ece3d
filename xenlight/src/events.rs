//! Domains that shut down and die, and drives that guests open, as a stream.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use uuid::Uuid;
use xenlight_sys::libxl as sys;

use crate::Domid;
use crate::call;
use crate::context::{Context, Shared, User, string};
use crate::domain::ShutdownReason;
use crate::error::{Cause, Error, ErrorCode, Result};
use crate::log::Logger;
use crate::operation::{Operation, start};
use crate::sync::lock;

/// What happened to a domain.
#[derive(Debug, PartialEq, Eq)]
pub enum DomainChange {
    /// It has shut down for this reason. It still exists and holds its memory until someone destroys it.
    Shutdown(ShutdownReason),
    /// It is gone.
    Death,
    /// The guest has opened a drive that is watched too. The medium stays until [`EjectedDisk::take_medium_out`] is called.
    Ejected(EjectedDisk),
}

/// A drive that a guest has opened.
pub struct EjectedDisk {
    domid: Domid,
    vdev: String,
    event: RawEvent,
    /// Keeps the context alive, to which the event belongs.
    user: User,
}

impl EjectedDisk {
    /// What the guest calls the drive, e.g. `hdc`.
    pub fn vdev(&self) -> &str {
        &self.vdev
    }
}

impl std::fmt::Debug for EjectedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EjectedDisk").field("vdev", &self.vdev).finish_non_exhaustive()
    }
}

impl PartialEq for EjectedDisk {
    fn eq(&self, other: &Self) -> bool {
        self.event.0 == other.event.0
    }
}

impl Eq for EjectedDisk {}

impl Drop for EjectedDisk {
    fn drop(&mut self) {
        // SAFETY: the event came from this context, which is alive through `user`, and this is its only owner. The call uses
        // no context.
        unsafe { self.user.lib().libxl_event_free(self.user.ctx(), self.event.0) };
    }
}

/// An event of libxl's that is ours to free.
pub(crate) struct RawEvent(*mut sys::libxl_event);

// SAFETY: an event is plain memory with strings of its own; nothing in it is bound to a thread.
unsafe impl Send for RawEvent {}

/// A change of a watched domain.
#[derive(Debug, PartialEq, Eq)]
pub struct DomainEvent {
    /// The domain's number.
    pub domid: Domid,
    /// The UUID that was watched under this number.
    pub uuid: Uuid,
    /// What happened.
    pub change: DomainChange,
}

/// What has happened, as it lies in the queue.
enum News {
    Shutdown(ShutdownReason),
    Death,
    Ejected(RawEvent),
}

struct Queued {
    domid: Domid,
    uuid: Uuid,
    news: News,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Queued>,
    waker: Option<Waker>,
    broken: bool,
    /// Nobody takes anything out any more.
    closed: bool,
}

#[derive(Default)]
struct Stream {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Stream {
    /// Says whether it was taken.
    fn push(&self, logger: &Logger, event: Option<Queued>) -> bool {
        let waker = {
            let mut queue = lock(&self.queue);
            match event {
                _ if queue.closed => return false,
                Some(event) => queue.events.push_back(event),
                None => queue.broken = true,
            }
            self.arrived.notify_all();
            queue.waker.take()
        };
        if let Some(waker) = waker {
            call::wake(logger, waker);
        }
        true
    }
}

/// libxl's generator: of one domain's end, or of what is done to one of its drives.
pub(crate) enum Generator {
    Death(*mut sys::libxl_evgen_domain_death),
    Eject(*mut sys::libxl_evgen_disk_eject),
}

// SAFETY: a generator is only a token for libxl, which locks its context whenever it is used.
unsafe impl Send for Generator {}

struct Watched {
    domid: Domid,
    uuid: Uuid,
    stream: Arc<Stream>,
    generator: Option<Generator>,
    /// What was reported last, so that a check and an event that see the same thing report it once.
    last: Option<End>,
}

/// The end of a domain, or of one of its lives.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Shutdown(ShutdownReason),
    Death,
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
    fn report(&self, logger: &Logger, number: u64, end: End) {
        let mut watches = lock(&self.watches);
        let Some(watched) = watches.1.get_mut(&number) else { return };
        if watched.last == Some(end) || watched.last == Some(End::Death) {
            return;
        }
        watched.last = Some(end);
        let news = match end {
            End::Shutdown(reason) => News::Shutdown(reason),
            End::Death => News::Death,
        };
        let event = Queued { domid: watched.domid, uuid: watched.uuid, news };
        let stream = Arc::clone(&watched.stream);
        drop(watches);
        stream.push(logger, Some(event));
    }

    /// Hands an eject on, with libxl's event, which has the drive. Says whether it was taken.
    fn report_eject(&self, logger: &Logger, number: u64, event: *mut sys::libxl_event) -> bool {
        let watches = lock(&self.watches);
        let Some(watched) = watches.1.get(&number) else { return false };
        let news = News::Ejected(RawEvent(event));
        let event = Queued { domid: watched.domid, uuid: watched.uuid, news };
        let stream = Arc::clone(&watched.stream);
        drop(watches);
        stream.push(logger, Some(event))
    }

    /// Takes an event of libxl's. Says whether it was kept; if not, the caller frees it.
    ///
    /// # Safety
    /// `event` is an event of this context that nobody has freed.
    pub(crate) unsafe fn deliver(&self, shared: &Shared, event: *mut sys::libxl_event) -> bool {
        let raw = event;
        // SAFETY: as the caller promises.
        let event = unsafe { &*raw };
        let number = event.for_user;
        match event.type_ {
            sys::LIBXL_EVENT_TYPE_DISK_EJECT => return self.report_eject(&shared.logger, number, raw),
            sys::LIBXL_EVENT_TYPE_DOMAIN_DEATH => self.report(&shared.logger, number, End::Death),
            sys::LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN => {
                // SAFETY: the event's type says that this member of the union is the one that is set.
                let code = unsafe { event.u.domain_shutdown.shutdown_reason };
                let reason = ShutdownReason::from_raw(i32::from(code));
                self.report(&shared.logger, number, End::Shutdown(reason));
                if matches!(reason, ShutdownReason::Suspend | ShutdownReason::SoftReset) {
                    self.renew(shared, number);
                }
            }
            _ => {}
        }
        false
    }

    /// Replaces a generator that has reported a shutdown after which the domain may run again (a suspend or a soft reset):
    /// it reports no later one. The new one is made before the old one is given up, because libxl's watch would otherwise
    /// start anew and report the same shutdown again.
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
                    shared.give_up(old);
                }
                // The guest may have been resumed and have ended before the new generator was there.
                self.check(shared, number);
            }
            Err(e) => shared.logger.note(
                crate::LogLevel::Error,
                format!("Domain {domid}:no longer watched after it was suspended or reset: {e}"),
            ),
        }
    }

    /// Looks for itself, because a generator does not report what had happened before it was made.
    fn check(&self, shared: &Shared, number: u64) {
        let Some((domid, uuid)) = lock(&self.watches).1.get(&number).map(|w| (w.domid, w.uuid)) else { return };
        match crate::domain::info(shared, domid) {
            Ok(info) if info.uuid != uuid || info.dying => self.report(&shared.logger, number, End::Death),
            Ok(info) => match info.shutdown {
                // A suspend is news only when it happens: it is a save or a migration under way.
                None | Some(ShutdownReason::Suspend) => {}
                Some(reason) => self.report(&shared.logger, number, End::Shutdown(reason)),
            },
            Err(e) if e.code() == Some(ErrorCode::DomainNotFound) => {
                self.report(&shared.logger, number, End::Death);
            }
            Err(e) => shared.logger.note(
                crate::LogLevel::Error,
                format!("Domain {domid}:can't be looked at while it is watched: {e}"),
            ),
        }
    }

    /// Tells every stream that no events will come any more.
    pub(crate) fn interrupt_all(&self, logger: &Logger) {
        let streams: Vec<_> = lock(&self.watches).1.values().map(|w| Arc::clone(&w.stream)).collect();
        for stream in streams {
            stream.push(logger, None);
        }
    }
}

fn generate(shared: &Shared, domid: Domid, number: u64) -> Result<Generator> {
    const ACTION: &str = "watch domain";
    shared.drive(ACTION, Some(domid))?;
    let mark = shared.logger.mark();
    let mut generator = std::ptr::null_mut();
    // SAFETY: the context is alive (the caller is a user of it, or libxl itself calls); `generator` is a place for
    // the result.
    let rc = unsafe {
        shared.enter(ACTION, Some(domid))?.libxl_evenable_domain_death(shared.ctx(), domid, number, &mut generator)
    };
    shared.check(ACTION, Some(domid), mark, rc)?;
    // libxl may have opened its watch of xenstore just now, and tells nobody who is waiting already.
    shared.wake_pump();
    Ok(Generator::Death(generator))
}

fn generate_ejects(shared: &Shared, domid: Domid, vdev: &str, number: u64) -> Result<Generator> {
    const ACTION: &str = "watch drive";
    let vdev = CString::new(vdev).map_err(|_| {
        Error::new(ACTION, Some(domid), Cause::BadArgument(format!("{vdev:?} contains a NUL byte")))
    })?;
    shared.drive(ACTION, Some(domid))?;
    let mark = shared.logger.mark();
    let mut generator = std::ptr::null_mut();
    // SAFETY: the context is alive (the caller is a user of it); the name lives during the call; `generator` is a place
    // for the result.
    let rc = unsafe {
        shared.enter(ACTION, Some(domid))?.libxl_evenable_disk_eject(
            shared.ctx(),
            domid,
            vdev.as_ptr(),
            number,
            &mut generator,
        )
    };
    shared.check(ACTION, Some(domid), mark, rc)?;
    shared.wake_pump();
    Ok(Generator::Eject(generator))
}

/// Makes libxl give up a generator.
///
/// # Safety
/// The generator is of this context, and nobody else uses it.
pub(crate) unsafe fn disable(lib: &sys::Libxenlight, ctx: *mut sys::libxl_ctx, generator: Generator) {
    // SAFETY: as the caller promises. Taking the generator by value shows that it is given up only once.
    unsafe {
        match generator {
            Generator::Death(raw) => lib.libxl_evdisable_domain_death(ctx, raw),
            Generator::Eject(raw) => lib.libxl_evdisable_disk_eject(ctx, raw),
        }
    }
}

/// Watches domains and yields what happens to them.
///
/// Made by [`Context::domain_events`]. Use [`next_until`](DomainEvents::next_until) from a thread, or the
/// [`Stream`](futures_core::Stream) implementation from a task. Nothing polls: libxl learns of a domain's end from
/// the hypervisor through xenstore.
///
/// A suspend is reported as [`ShutdownReason::Suspend`], a soft reset as [`ShutdownReason::SoftReset`]. The domain stays
/// watched, so that its later end is reported too. Both may be reported more than once while other domains end.
pub struct DomainEvents {
    stream: Arc<Stream>,
    /// The watches of each domain. libxl is never called with this locked.
    watches: Mutex<HashMap<Domid, Vec<WatchedDomain>>>,
    user: User,
}

/// A domain that a stream watches.
struct WatchedDomain {
    uuid: Uuid,
    /// The numbers of its watches: of its end, then of its drives.
    numbers: Vec<u64>,
}

impl std::fmt::Debug for DomainEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let watched: Vec<_> = lock(&self.watches).keys().copied().collect();
        f.debug_struct("DomainEvents").field("watched", &watched).finish_non_exhaustive()
    }
}

impl Context {
    /// A stream of domain events, which watches nothing yet.
    pub fn domain_events(&self) -> DomainEvents {
        DomainEvents { stream: Arc::default(), watches: Mutex::default(), user: self.user.clone() }
    }
}

impl DomainEvents {
    /// Watches the domain that has this number and UUID.
    ///
    /// If it has shut down or is gone already (or another domain has its number by now), that is reported too.
    /// Watching a domain twice changes nothing. A domain that was watched under this number before, with another UUID,
    /// stays watched, and its death is reported.
    ///
    /// Waits for calls with this context that hold its lock, such as the building of a domain.
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
        let is_watched = |watches: &HashMap<Domid, Vec<WatchedDomain>>| {
            watches.get(&domid).is_some_and(|all| all.iter().any(|watched| watched.uuid == uuid))
        };
        if is_watched(&lock(&self.watches)) {
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
        let superfluous = {
            let mut watches = lock(&self.watches);
            let superfluous = is_watched(&watches);
            if !superfluous {
                watches.entry(domid).or_default().push(WatchedDomain { uuid, numbers: vec![number] });
            }
            superfluous
        };
        if superfluous {
            // Another thread was faster.
            registry.remove(number);
            self.user.give_up(generator);
            return Ok(());
        }
        self.keep(number, generator);
        registry.check(&self.user, number);
        // Another domain with this number has taken it over, if there was one.
        let others: Vec<u64> = lock(&self.watches)
            .get(&domid)
            .into_iter()
            .flatten()
            .filter(|watched| watched.uuid != uuid)
            .filter_map(|watched| watched.numbers.first().copied())
            .collect();
        others.into_iter().for_each(|other| registry.check(&self.user, other));
        Ok(())
    }

    /// Keeps a generator with its watch. One that has reported something by now may have been renewed, and the newer one then
    /// stays; and the watch may have been given up.
    fn keep(&self, number: u64, generator: Generator) {
        let surplus = {
            let mut all = lock(&self.user.registry.watches);
            match all.1.get_mut(&number) {
                Some(watched) if watched.generator.is_none() => {
                    watched.generator = Some(generator);
                    None
                }
                _ => Some(generator),
            }
        };
        if let Some(surplus) = surplus {
            self.user.give_up(surplus);
        }
    }

    /// Watches a drive of a domain that is watched already, by its name in the guest (`hdc`): the guest's eject is
    /// reported from now on, as often as it comes.
    ///
    /// Waits as [`watch`](DomainEvents::watch) does.
    ///
    /// # Errors
    /// When the domain is not watched, or libxl can't watch.
    ///
    /// Wraps `libxl_evenable_disk_eject`.
    #[doc(alias = "libxl_evenable_disk_eject")]
    pub fn watch_drive(&self, domid: Domid, vdev: &str) -> Result<()> {
        const ACTION: &str = "watch drive";
        if let Some(why) = self.user.disaster() {
            return Err(Error::new(ACTION, Some(domid), Cause::Disaster(why)));
        }
        let registry = &self.user.registry;
        // The last one is the domain that has the number now.
        let uuid = lock(&self.watches).get(&domid).and_then(|all| Some(all.last()?.uuid));
        let Some(uuid) = uuid else {
            return Err(Error::new(ACTION, Some(domid), Cause::BadArgument("the domain is not watched".into())));
        };
        let number =
            registry.add(Watched { domid, uuid, stream: Arc::clone(&self.stream), generator: None, last: None });
        let generator = match generate_ejects(&self.user, domid, vdev, number) {
            Ok(generator) => generator,
            Err(e) => {
                registry.remove(number);
                return Err(e);
            }
        };
        let still_watched = {
            let mut watches = lock(&self.watches);
            let watched = watches.get_mut(&domid).and_then(|all| all.iter_mut().find(|it| it.uuid == uuid));
            watched.map(|watched| watched.numbers.push(number)).is_some()
        };
        if !still_watched {
            // Another thread has called `unwatch` meanwhile, which is for all of the domain.
            registry.remove(number);
        }
        self.keep(number, generator);
        Ok(())
    }

    /// Stops watching the domains of this number and their drives. Events that have come already stay in the stream.
    ///
    /// Does not wait: the event thread tells libxl.
    ///
    /// Wraps `libxl_evdisable_domain_death` and `libxl_evdisable_disk_eject`.
    #[doc(alias = "libxl_evdisable_domain_death")]
    #[doc(alias = "libxl_evdisable_disk_eject")]
    pub fn unwatch(&self, domid: Domid) {
        let watched = lock(&self.watches).remove(&domid);
        watched.into_iter().flatten().for_each(|watched| self.give_up(watched));
    }

    fn give_up(&self, watched: WatchedDomain) {
        for number in watched.numbers {
            let watched = self.user.registry.remove(number);
            if let Some(generator) = watched.and_then(|w| w.generator) {
                self.user.give_up(generator);
            }
        }
    }

    /// Makes an event of what was in the queue.
    fn event(&self, Queued { domid, uuid, news }: Queued) -> DomainEvent {
        let change = match news {
            News::Shutdown(reason) => DomainChange::Shutdown(reason),
            News::Death => DomainChange::Death,
            News::Ejected(event) => {
                // SAFETY: an event of this kind, which is ours; its string is its own, or null.
                let vdev = unsafe { string((*event.0).u.disk_eject.vdev) }.unwrap_or_default();
                DomainChange::Ejected(EjectedDisk { domid, vdev, event, user: self.user.clone() })
            }
        };
        DomainEvent { domid, uuid, change }
    }

    fn broken(&self) -> Error {
        let why = self.user.disaster().unwrap_or_default();
        Error::new("wait for domain events", None, Cause::Disaster(why))
    }

    /// Waits for the next event. `Ok(None)` when `deadline` has passed first; a `deadline` of `None` waits for ever.
    ///
    /// # Errors
    /// [`Cause::Disaster`] when libxl's event handling broke and no event is left in the stream. [`Cause::NotAllowed`] in a
    /// log sink, and in a waker that the event thread calls.
    pub fn next_until(&self, deadline: Option<Instant>) -> Result<Option<DomainEvent>> {
        self.user.may_wait("wait for domain events", None)?;
        let mut queue = lock(&self.stream.queue);
        loop {
            if let Some(event) = queue.events.pop_front() {
                return Ok(Some(self.event(event)));
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
        Pin::new(&mut &*self).poll_next(cx)
    }
}

/// For a task that shares the stream with those who add to what it watches. One task at a time may wait.
impl futures_core::Stream for &DomainEvents {
    type Item = Result<DomainEvent>;

    /// As for [`DomainEvents`].
    fn poll_next(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = lock(&self.stream.queue);
        if let Some(event) = queue.events.pop_front() {
            return Poll::Ready(Some(Ok(self.event(event))));
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
        watches.into_values().flatten().for_each(|watched| self.give_up(watched));
        let left = {
            let mut queue = lock(&self.stream.queue);
            queue.closed = true;
            std::mem::take(&mut queue.events)
        };
        // Frees what libxl's events among them hold, while the context is there.
        left.into_iter().for_each(|queued| drop(self.event(queued)));
    }
}

impl EjectedDisk {
    /// Takes the medium out of the drive, as a person would.
    ///
    /// # Errors
    /// libxl's reasons, e.g. a guest that is not HVM.
    ///
    /// Wraps `libxl_cdrom_insert`.
    #[doc(alias = "libxl_cdrom_insert")]
    pub fn take_medium_out(self) -> Result<Operation<()>> {
        let (user, domid) = (self.user.clone(), self.domid);
        start(
            &user,
            "take medium out",
            Some(domid),
            self,
            |lib, ctx, disk, how| {
                // SAFETY: libxl keeps the drive's address until completion and changes what is there. `disk` stays where it is
                // until then, and with it libxl's event, which is of this context and in which the empty drive begins at
                // this address.
                unsafe {
                    let event = (*disk).event.0;
                    let drive = (&raw mut (*event).u.disk_eject.disk).cast::<sys::libxl_device_disk>();
                    lib.libxl_cdrom_insert(ctx, domid, drive, how)
                }
            },
            |_, _disk, status| status,
        )
    }
}
