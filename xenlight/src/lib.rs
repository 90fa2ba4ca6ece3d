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
//! use xenlight::{Children, Context, Library, SaveFlags, Wait};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let context = Context::open(&Library::open_running()?, Children::LibxlReapsOwn, None)?;
//! let domid = context.find("web")?.ok_or("web is not running")?;
//! let file = std::fs::File::create("/var/tmp/web.stream")?;
//! let save = context.save(domid, file.into(), SaveFlags::default())?;
//! match save.wait_until(Some(Instant::now() + Duration::from_secs(300))) {
//!     Wait::Done(Ok(fd)) => {
//!         std::fs::File::from(fd).sync_all()?;
//!         context.destroy(domid)?.wait()?;
//!     }
//!     Wait::Done(Err(e)) => {
//!         context.resume(domid, true)?.wait()?;
//!         return Err(e.into());
//!     }
//!     Wait::Pending(save) => {
//!         save.abort()?;
//!         let outcome = save.wait();
//!         context.resume(domid, true)?.wait()?;
//!         outcome?;
//!     }
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
//! Everything may be used from several threads. Callbacks of the caller's (a [`LogSink`], a task's waker) run on
//! whichever thread is inside libxl; a panic in one is caught and becomes a log line, and the work goes on.
//! With one context only one thread at a time is inside libxl, so a callback must not wait for a thread that calls libxl.
//! libxl starts processes (save helper, hotplug scripts, device models): [`Children`] says who reaps them. When it forks, it
//! waits until no other thread is inside libxl, with this or another context: the child may need what that thread has locked.
//! Only the building of a domain, which is one call, keeps it waiting for more than a moment; it forks after a minute in any
//! case.

#![deny(missing_docs)]

mod config;
mod context;
mod cpus;
mod domain;
mod error;
mod events;
mod inside;
mod library;
mod log;
mod operation;

/// The traits that [`DomainEvents`] implements come from this crate.
pub use futures_core;

pub use self::log::{LogFacade, LogLevel, LogRecord, LogSink, Progress};
pub use config::DomainConfig;
pub use context::{Children, Context, Version};
pub use cpus::HostCpus;
pub use domain::{DomainInfo, Domid, SaveFlags, ShutdownReason, Trigger};
pub use error::{Cause, Error, ErrorCode, Result, Wait};
pub use events::{DomainChange, DomainEvent, DomainEvents, EjectedDisk};
pub use library::{Library, LibraryError};
pub use operation::Operation;
pub use xenlight_sys::{OpenError, Release, ReleaseError};
