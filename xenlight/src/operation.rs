//! Asynchronous operations: started once, completed by libxl's callback.

use std::ffi::{c_int, c_void};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use xenlight_sys::libxl as sys;

use crate::Domid;
use crate::call;
use crate::context::{Interrupt, User};
use crate::error::{Cause, Error, ErrorCode, Result, Wait};
use crate::log::{Logger, Mark};
use crate::sync::lock;

/// Work of libxl's that is under way.
///
/// It completes from libxl's own completion callback; nothing polls. It can be waited for ([`wait`],
/// [`wait_until`]), awaited as a [`Future`] on any executor, and aborted. Dropping it neither stops the work nor
/// waits for it: libxl goes on, and the context stays alive until it is done.
///
/// [`wait`]: Operation::wait
/// [`wait_until`]: Operation::wait_until
#[must_use = "the operation goes on, but its result is lost"]
pub struct Operation<T> {
    outcome: Arc<Outcome<T>>,
    name: Name,
    user: User,
    action: &'static str,
    domid: Option<Domid>,
    mark: Mark,
}

impl<T> std::fmt::Debug for Operation<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operation")
            .field("action", &self.action)
            .field("domid", &self.domid)
            .field("done", &self.is_done())
            .finish_non_exhaustive()
    }
}

/// The way in which an operation is named to libxl, to abort it.
enum Name {
    /// By the address that libxl calls back with. The count keeps that from being used again while this handle exists, so
    /// that an abort can never hit another operation.
    Slot(Arc<Slot>),
    /// As the only synchronous call of its context.
    Synchronous,
}

enum Progress<T> {
    Running(Option<Waker>),
    Done(Result<T>),
    Taken,
}

/// Where the result appears.
struct Outcome<T> {
    progress: Mutex<Progress<T>>,
    done: Condvar,
}

impl<T> Outcome<T> {
    /// Stores the result unless there is one (a disaster was reported before the completion came).
    fn settle(&self, result: Result<T>) -> Option<Waker> {
        let mut progress = lock(&self.progress);
        let Progress::Running(waker) = &mut *progress else { return None };
        let waker = waker.take();
        *progress = Progress::Done(result);
        self.done.notify_all();
        waker
    }

    fn take(&self) -> Option<Result<T>> {
        let mut progress = lock(&self.progress);
        match std::mem::replace(&mut *progress, Progress::Taken) {
            Progress::Done(result) => Some(result),
            other => {
                *progress = other;
                None
            }
        }
    }
}

struct Interruptible<T> {
    outcome: Arc<Outcome<T>>,
    action: &'static str,
    domid: Option<Domid>,
}

impl<T: Send> Interrupt for Interruptible<T> {
    fn interrupt(&self, logger: &Logger, why: &str) {
        let error = Error::new(self.action, self.domid, Cause::Disaster(why.to_owned()));
        if let Some(waker) = self.outcome.settle(Err(error)) {
            call::wake(logger, waker);
        }
    }
}

/// What is to be done with the return code.
type Completion = Box<dyn FnOnce(c_int) + Send>;

/// What libxl's callback finds at `for_callback`.
struct Slot {
    complete: Mutex<Option<Completion>>,
}

/// The arguments of a call, which libxl reads and writes until completion; they stay at one address.
///
/// A raw pointer rather than a Box, because C holds the same pointer all the time.
struct Arguments<A>(*mut A);

// SAFETY: the pointer is the sole owner on the Rust side; C uses it only through libxl's own locking.
unsafe impl<A: Send> Send for Arguments<A> {}

impl<A> Arguments<A> {
    fn into_inner(self) -> A {
        let raw = self.0;
        std::mem::forget(self);
        // SAFETY: `raw` came from `Box::into_raw` and `self`, its only owner, is gone.
        *unsafe { Box::from_raw(raw) }
    }
}

impl<A> Drop for Arguments<A> {
    fn drop(&mut self) {
        // SAFETY: `self.0` came from `Box::into_raw`, and `into_inner` forgets `self`.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// Starts an asynchronous libxl call.
///
/// `call` makes the call with the context, the arguments' address and the completion request; `finish` turns the arguments
/// into the result once libxl has reported success, and sees them on failure too (to name a leftover domain).
///
/// libxl may keep every pointer it gets until completion, but for the request, so all of them must point into the arguments.
/// And nothing that libxl itself keeps on its stack may be written at completion: see [`run`] for the call that does.
pub(crate) fn start<A, T>(
    user: &User,
    action: &'static str,
    domid: Option<Domid>,
    arguments: A,
    call: impl FnOnce(&sys::Libxenlight, *mut sys::libxl_ctx, *mut A, *const sys::libxl_asyncop_how) -> c_int,
    finish: impl FnOnce(&User, A, Result<()>) -> Result<T> + Send + 'static,
) -> Result<Operation<T>>
where
    A: Send + 'static,
    T: Send + 'static,
{
    if let Some(why) = user.disaster() {
        return Err(Error::new(action, domid, Cause::Disaster(why)));
    }
    let lib = user.enter(action, domid)?;
    user.drive(action, domid)?;
    let mark = user.logger.mark();
    let outcome = Arc::new(Outcome { progress: Mutex::new(Progress::Running(None)), done: Condvar::new() });
    let slot = Arc::new(Slot { complete: Mutex::new(None) });
    let key = Arc::as_ptr(&slot).addr();
    let arguments = Arguments(Box::into_raw(Box::new(arguments)));
    let raw_arguments = arguments.0;

    let interrupt: Arc<dyn Interrupt> = Arc::new(Interruptible { outcome: Arc::clone(&outcome), action, domid });
    user.register_waiter(key, Arc::downgrade(&interrupt));
    *lock(&slot.complete) = Some({
        let (user, outcome) = (user.clone(), Arc::clone(&outcome));
        Box::new(move |rc| {
            user.unregister_waiter(key);
            drop(interrupt);
            let status = user.check(action, domid, mark, rc);
            let result = finish(&user, arguments.into_inner(), status);
            if let Some(waker) = outcome.settle(result) {
                call::wake(&user.logger, waker);
            }
        })
    });

    // Nothing from here to the call can fail: from the call on libxl owns one count of `slot`.
    let how = request(Arc::into_raw(Arc::clone(&slot)));
    let rc = call(&lib, user.ctx(), raw_arguments, &how);
    if rc != 0 {
        // libxl refused: the callback will never come, so the count and the arguments are ours again.
        // SAFETY: this is the pointer made above, and libxl has not kept it.
        drop(unsafe { Arc::from_raw(Arc::as_ptr(&slot)) });
        user.unregister_waiter(key);
        let complete = lock(&slot.complete).take();
        drop(complete);
        return Err(user.failed(action, domid, mark, Cause::Libxl(ErrorCode::from_raw(rc))));
    }
    Ok(Operation { outcome, name: Name::Slot(slot), user: user.clone(), action, domid, mark })
}

/// Runs a libxl call that can only be made synchronously, on a thread of its own. `user` is of a context of its own too, so
/// that the call is the only synchronous one there, and an abort can name it.
///
/// `call` makes the call with the context and the arguments' address, and without a completion request.
pub(crate) fn run<A, T>(
    user: &User,
    action: &'static str,
    domid: Option<Domid>,
    mut arguments: A,
    call: impl FnOnce(&sys::Libxenlight, *mut sys::libxl_ctx, &mut A) -> c_int + Send + 'static,
    finish: impl FnOnce(A, Result<()>) -> Result<T> + Send + 'static,
) -> Result<Operation<T>>
where
    A: Send + 'static,
    T: Send + 'static,
{
    let mark = user.logger.mark();
    let outcome = Arc::new(Outcome { progress: Mutex::new(Progress::Running(None)), done: Condvar::new() });
    let interrupt: Arc<dyn Interrupt> = Arc::new(Interruptible { outcome: Arc::clone(&outcome), action, domid });
    let key = Arc::as_ptr(&outcome).addr();
    user.register_waiter(key, Arc::downgrade(&interrupt));
    let work = {
        let (user, outcome) = (user.clone(), Arc::clone(&outcome));
        move || {
            let status = user.enter(action, domid).and_then(|lib| {
                let rc = call(&lib, user.ctx(), &mut arguments);
                user.check(action, domid, mark, rc)
            });
            user.unregister_waiter(key);
            drop(interrupt);
            if let Some(waker) = outcome.settle(finish(arguments, status)) {
                call::wake(&user.logger, waker);
            }
        }
    };
    if let Err(e) = std::thread::Builder::new().name("libxl call".into()).spawn(work) {
        user.unregister_waiter(key);
        return Err(Error::new(action, domid, Cause::System(e)));
    }
    Ok(Operation { outcome, name: Name::Synchronous, user: user.clone(), action, domid, mark })
}

fn request(slot: *const Slot) -> sys::libxl_asyncop_how {
    sys::libxl_asyncop_how {
        callback: Some(on_complete),
        u: sys::libxl_asyncop_how__bindgen_ty_1 { for_callback: slot.cast_mut().cast() },
    }
}

/// `libxl_asyncop_how.callback`: comes exactly once, on any thread that is inside libxl, perhaps before the
/// starting call has returned.
unsafe extern "C" fn on_complete(_ctx: *mut sys::libxl_ctx, rc: c_int, for_callback: *mut c_void) {
    call::called_back(|| {
        // SAFETY: `start` gave libxl one count of this Arc, and libxl calls back once.
        let slot = unsafe { Arc::from_raw(for_callback.cast_const().cast::<Slot>()) };
        let complete = lock(&slot.complete).take();
        if let Some(complete) = complete {
            // None of the caller's code runs in there: its waker is called when this thread has left libxl.
            complete(rc);
        }
    });
}

impl<T> Operation<T> {
    /// Waits until the operation has completed. Blocks for as long as that takes; each call that starts one says how long
    /// libxl lets it take.
    ///
    /// # Errors
    /// Those of the operation; [`Cause::Disaster`] at once if libxl's event handling breaks meanwhile.
    /// [`Cause::NotAllowed`] when the result was taken before, through the [`Future`], and when this thread must not wait:
    /// in a log sink, and in a waker that the event thread calls. A result that is there is given there too.
    pub fn wait(self) -> Result<T> {
        loop {
            if let Some(result) = self.block(None) {
                return result;
            }
        }
    }

    /// Waits until the operation has completed or `deadline` has passed. `None` is no deadline.
    ///
    /// A deadline that passes changes nothing: the operation comes back in [`Wait::Pending`], to be waited for
    /// again, aborted or dropped. Errors are those of [`wait`](Operation::wait).
    pub fn wait_until(self, deadline: Option<Instant>) -> Wait<T> {
        self.block(deadline).map_or_else(|| Wait::Pending(self), Wait::Done)
    }

    /// Waits for the result and takes it. `None` when the deadline has passed.
    fn block(&self, deadline: Option<Instant>) -> Option<Result<T>> {
        let mut progress = lock(&self.outcome.progress);
        loop {
            match std::mem::replace(&mut *progress, Progress::Taken) {
                Progress::Done(result) => return Some(result),
                Progress::Taken => return Some(Err(self.not_allowed("the operation's result was taken before"))),
                running => *progress = running,
            }
            if let Err(error) = self.user.may_wait(self.action, self.domid) {
                return Some(Err(error));
            }
            let done = &self.outcome.done;
            progress = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => done.wait(progress).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return None,
                Some(left) => done.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    fn not_allowed(&self, why: &'static str) -> Error {
        Error::new(self.action, self.domid, Cause::NotAllowed(why))
    }

    /// Whether the result is there.
    pub fn is_done(&self) -> bool {
        !matches!(*lock(&self.outcome.progress), Progress::Running(_))
    }

    /// Stops waiting for an operation that does not come back, even after an abort. libxl keeps it, with all its
    /// arguments, and the context stays alive for it. Returns the error that says so.
    pub fn give_up(self) -> Error {
        let why = "libxl did not end the operation after an abort; it may still be under way".to_owned();
        self.user.failed(self.action, self.domid, self.mark, Cause::Stuck(why))
    }

    /// Aborts the operation and waits so long for its end, after which it is given up.
    pub(crate) fn abort_and_wait(self, grace: Duration) -> Result<T> {
        // Where libxl does not take the abort, the wait has a limit all the same.
        let refused = self.abort().err();
        match self.wait_until(Some(Instant::now() + grace)) {
            Wait::Done(result) => result,
            Wait::Pending(operation) => Err(refused.unwrap_or_else(|| operation.give_up())),
        }
    }

    /// Asks libxl to end the operation early. It still has to be waited for: it ends with
    /// [`ErrorCode::Aborted`], or as if nothing had happened when it could not be stopped any more.
    ///
    /// Returns whether libxl took the request: `false` when the operation had completed already. A domain build
    /// and a core dump can't be interrupted. To end a save use [`Context::end_save`](crate::Context::end_save), which sees to
    /// the guest as well: it may be suspended, still running, or about to suspend itself. After the abort of a creation
    /// [`Error::leftover`] may name a domain to destroy.
    ///
    /// Waits for calls with this context that hold its lock, such as the building of a domain.
    ///
    /// # Errors
    /// Codes that libxl does not document; [`Cause::NotAllowed`] in a log sink.
    ///
    /// Wraps `libxl_ao_abort`.
    #[doc(alias = "libxl_ao_abort")]
    pub fn abort(&self) -> Result<bool> {
        const ACTION: &str = "abort";
        let lib = self.user.enter(ACTION, self.domid)?;
        let mark = self.user.logger.mark();
        let how = match &self.name {
            Name::Slot(slot) => Some(request(Arc::as_ptr(slot))),
            Name::Synchronous => None,
        };
        let how = how.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the context is alive through `self.user`; what `how` points to is only compared with those in progress.
        let rc = unsafe { lib.libxl_ao_abort(self.user.ctx(), how) };
        match ErrorCode::from_raw(rc) {
            ErrorCode::NotFound => Ok(false),
            ErrorCode::Aborted => Ok(true),
            _ => self.user.check(ACTION, self.domid, mark, rc).map(|()| true),
        }
    }
}

impl<T> Future for Operation<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.outcome.take() {
            return Poll::Ready(result);
        }
        let mut progress = lock(&self.outcome.progress);
        match &mut *progress {
            Progress::Running(waker) => {
                match waker {
                    Some(old) => old.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            // It completed between the two locks; come again.
            Progress::Done(_) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Progress::Taken => panic!("Operation polled after it was ready"),
        }
    }
}

// `Weak` is only used through the trait object that `start` registers.
const _: fn() = || {
    fn sendable<T: Send>() {}
    sendable::<Operation<()>>();
    sendable::<Weak<dyn Interrupt>>();
};
