//! Safe binding to libxl (libxenlight), the library that Xen's own `xl` is made of.
//!
//! [`Library`] finds and opens the libxl that belongs to the running hypervisor; [`Context`] connects to it. Long
//! work comes back as an [`Operation`], which completes from libxl's own completion callback and can be waited for
//! with a deadline, awaited or aborted. [`DomainEvents`] tells when domains end. Configurations travel as libxl's
//! JSON in [`DomainConfig`].
//!
//! The crate has no policy: it never decides what to do with a guest.
//!
//! # Saving a guest
//! ```no_run
//! use std::time::{Duration, Instant};
//! use xenlight::{Children, Context, Library, SaveEnd, SaveFlags};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = Context::open(&Library::open_running()?, Children::LibxlReapsOwn, None)?;
//! let domid = context.find("web")?.ok_or("web is not running")?;
//! let file = std::fs::File::create("/var/tmp/web.stream")?;
//! let save = context.save(domid, file.into(), SaveFlags::default())?;
//! let outcome = save.wait_until(Some(Instant::now() + Duration::from_secs(300)));
//! // Aborts a save that is not done, and lets a guest run on that was not saved.
//! match context.end_save(domid, outcome) {
//!     SaveEnd::Saved(stream) => {
//!         std::fs::File::from(stream).sync_all()?;
//!         context.destroy(domid)?.wait()?;
//!     }
//!     SaveEnd::Running(why) => println!("not saved, runs on: {why}"),
//!     other => return Err(format!("not saved: {other:?}").into()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Watching for the end of guests
//! ```no_run
//! use xenlight::{Children, Context, Library};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = Context::open(&Library::open_running()?, Children::LibxlReapsOwn, None)?;
//! let events = context.domain_events();
//! for domain in context.list()? {
//!     events.watch(domain.domid, domain.uuid)?;
//! }
//! while let Some(event) = events.next_until(None)? {
//!     println!("domain {} ({}): {:?}", event.domid, event.uuid, event.change);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Threads and processes
//! Everything may be used from several threads. libxl locks a context while it works with it: a call waits for the others
//! with the same context, and for none with another. Functions that block for longer than a moment say so, and for how long.
//!
//! Code of the caller's runs in three places. A panic there is caught and becomes a log line, and the work goes on.
//!
//! | code | called | may |
//! |---|---|---|
//! | [`LogSink`] | inside libxl, with its locks held, on any thread | not call libxl, nor wait for a thread that does: refused with [`Cause::NotAllowed`]. Handles may be dropped |
//! | a task's [`Waker`](std::task::Waker) | outside libxl, on the thread that has just left it, often the event thread | do everything but wait for an operation or an event on the event thread, which is refused too |
//! | [`Library::open_in`]'s library | as libxl | |
//!
//! libxl starts processes (save helper, hotplug scripts, device models): [`Children`] says who reaps them. Some of its
//! children go on inside libxl's libraries, whose locks another thread may hold when it forks. So each child first proves that
//! it can take them; one that can't is killed and another is forked. Nothing waits for that, whatever other threads do in libxl.

#![deny(missing_docs)]

mod call;
mod children;
mod config;
mod context;
mod cpus;
mod domain;
mod error;
mod events;
mod fork;
mod library;
mod log;
mod operation;
mod sync;

/// The traits that [`DomainEvents`] implements come from this crate.
pub use futures_core;

pub use self::log::{LogFacade, LogLevel, LogRecord, LogSink, Progress};
pub use children::Children;
pub use config::DomainConfig;
pub use context::{Context, Version};
pub use cpus::HostCpus;
pub use domain::{DomainInfo, Domid, SaveEnd, SaveFlags, ShutdownReason, Trigger};
pub use error::{Cause, Error, ErrorCode, Result, Wait};
pub use events::{DomainChange, DomainEvent, DomainEvents, EjectedDisk};
pub use library::{Library, LibraryError};
pub use operation::Operation;
pub use xenlight_sys::{OpenError, Release, ReleaseError};
