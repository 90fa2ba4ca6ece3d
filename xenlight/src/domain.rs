//! Everything that is asked of domains.

use std::ffi::{CString, c_char, c_int};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;
use xenlight_sys::Block;
use xenlight_sys::libxl as sys;

use crate::children::Children;
use crate::config::{DomainConfig, RawConfig, retrieve, take_string};
use crate::context::{Context, Shared};
use crate::error::{Cause, Error, ErrorCode, Result, Wait};
use crate::operation::{self, Operation, start};

/// A domain's number. The hypervisor gives each new domain another one; 0 is dom0.
pub type Domid = u32;

/// Why a domain has shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ShutdownReason {
    /// It powered itself off.
    Poweroff,
    /// It asked to be rebooted.
    Reboot,
    /// It is suspended, for a save or a migration.
    Suspend,
    /// It crashed.
    Crash,
    /// Its watchdog expired.
    Watchdog,
    /// It asked for a soft reset.
    SoftReset,
    /// A reason without a name here.
    Other(i32),
}

impl ShutdownReason {
    pub(crate) fn from_raw(raw: i32) -> Self {
        match raw {
            0 => Self::Poweroff,
            1 => Self::Reboot,
            2 => Self::Suspend,
            3 => Self::Crash,
            4 => Self::Watchdog,
            5 => Self::SoftReset,
            other => Self::Other(other),
        }
    }
}

/// A button or signal for an emulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The ACPI power button.
    Power,
    /// The ACPI sleep button.
    Sleep,
    /// A non-maskable interrupt.
    Nmi,
    /// An INIT signal.
    Init,
    /// The reset button.
    Reset,
    /// Resume from S3.
    S3Resume,
}

impl Trigger {
    fn raw(self) -> sys::libxl_trigger {
        match self {
            Self::Power => sys::LIBXL_TRIGGER_POWER,
            Self::Sleep => sys::LIBXL_TRIGGER_SLEEP,
            Self::Nmi => sys::LIBXL_TRIGGER_NMI,
            Self::Init => sys::LIBXL_TRIGGER_INIT,
            Self::Reset => sys::LIBXL_TRIGGER_RESET,
            Self::S3Resume => sys::LIBXL_TRIGGER_S3RESUME,
        }
    }
}

/// What the hypervisor knows of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its number.
    pub domid: Domid,
    /// Its UUID.
    pub uuid: Uuid,
    /// One of its vCPUs is on a CPU right now.
    pub running: bool,
    /// All its vCPUs wait for something.
    pub blocked: bool,
    /// The toolstack has paused it.
    pub paused: bool,
    /// It has shut down, for this reason, and waits to be destroyed (or resumed, if it is suspended).
    pub shutdown: Option<ShutdownReason>,
    /// It has been destroyed, but something still refers to its memory.
    pub dying: bool,
    /// It is a xenstore domain, which must never be stopped.
    pub never_stop: bool,
    /// Memory it is still to get, KiB.
    pub outstanding_kib: u64,
    /// Memory it has, KiB.
    pub current_kib: u64,
    /// Memory it may have, KiB.
    pub max_kib: u64,
    /// CPU time that its vCPUs have used together.
    pub cpu_time: Duration,
    /// vCPUs that are online.
    pub vcpus_online: u32,
}

impl DomainInfo {
    fn from_raw(raw: &sys::libxl_dominfo) -> Self {
        Self {
            domid: raw.domid,
            uuid: Uuid::from_bytes(raw.uuid.uuid),
            running: raw.running,
            blocked: raw.blocked,
            paused: raw.paused,
            shutdown: raw.shutdown.then(|| ShutdownReason::from_raw(raw.shutdown_reason)),
            dying: raw.dying,
            never_stop: raw.never_stop,
            outstanding_kib: raw.outstanding_memkb,
            current_kib: raw.current_memkb,
            max_kib: raw.max_memkb,
            cpu_time: Duration::from_nanos(raw.cpu_time),
            vcpus_online: raw.vcpu_online,
        }
    }
}

/// How a guest's state is to be written by [`Context::save`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaveFlags {
    /// Copy the memory while the guest runs, and suspend it only for the rest (live migration).
    pub live: bool,
    /// Log more.
    pub debug: bool,
}

pub(crate) fn info(shared: &Shared, domid: Domid) -> Result<DomainInfo> {
    const ACTION: &str = "query domain";
    let mut room = Block::zeroed();
    let raw: *mut sys::libxl_dominfo = room.as_mut_ptr();
    let lib = shared.enter(ACTION, Some(domid))?;
    let mark = shared.logger.mark();
    // SAFETY: `room` is large and aligned enough for the structure of every release; the context is alive, because
    // the caller is a user of it.
    let rc = unsafe {
        lib.libxl_dominfo_init(raw);
        lib.libxl_domain_info(shared.ctx(), raw, domid)
    };
    // SAFETY: the structure has been initialised, and libxl has filled it in if `rc` is 0. Its first fields are the
    // same in every release. What it owns is freed once.
    let info = unsafe {
        let info = DomainInfo::from_raw(&*raw);
        lib.libxl_dominfo_dispose(raw);
        info
    };
    shared.check(ACTION, Some(domid), mark, rc)?;
    Ok(info)
}

/// Reads what is kept with a domain.
pub(crate) fn userdata(shared: &Shared, domid: Domid, id: &str) -> Result<Option<Vec<u8>>> {
    const ACTION: &str = "read userdata";
    let id = c_string(ACTION, id)?;
    let mut data: *mut u8 = std::ptr::null_mut();
    let mut length: c_int = 0;
    let lib = shared.enter(ACTION, Some(domid))?;
    let mark = shared.logger.mark();
    // SAFETY: the context is alive (the caller is a user of it), `id` lives during the call, the other two are places for the
    // result.
    let rc = unsafe { lib.libxl_userdata_retrieve(shared.ctx(), domid, id.as_ptr(), &mut data, &mut length) };
    shared.check(ACTION, Some(domid), mark, rc)?;
    if data.is_null() {
        return Ok(None);
    }
    // SAFETY: libxl returned a block of `length` bytes from malloc, which is ours to free.
    let copy = unsafe {
        let copy = std::slice::from_raw_parts(data, usize::try_from(length).unwrap_or(0)).to_vec();
        libc::free(data.cast());
        copy
    };
    Ok(Some(copy))
}

fn c_string(action: &'static str, text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::new(action, None, Cause::BadArgument(format!("{text:?} contains a NUL byte"))))
}

/// # Lists and queries
impl Context {
    /// All domains, dom0 and device model stub domains included, by rising number.
    ///
    /// # Errors
    /// When the hypervisor can't be asked.
    ///
    /// Wraps `libxl_list_domain`.
    #[doc(alias = "libxl_list_domain")]
    pub fn list(&self) -> Result<Vec<DomainInfo>> {
        const ACTION: &str = "list domains";
        let user = &self.user;
        let lib = user.enter(ACTION, None)?;
        let mark = user.logger.mark();
        let mut count: c_int = 0;
        // SAFETY: the context is alive; `count` is a place for the number of entries.
        let list = unsafe { lib.libxl_list_domain(user.ctx(), &mut count) };
        if list.is_null() {
            return Err(user.failed(ACTION, None, mark, Cause::Libxl(ErrorCode::Fail)));
        }
        let stride = user.release().dominfo_stride();
        let domains = (0..usize::try_from(count).unwrap_or(0))
            .map(|i| {
                // SAFETY: libxl returned `count` entries, which lie `stride` bytes apart in this release and begin
                // with the fields that are read.
                let raw = unsafe { &*list.byte_add(i * stride) };
                DomainInfo::from_raw(raw)
            })
            .collect();
        // SAFETY: the list came from libxl with this count and is not used any more.
        unsafe { lib.libxl_dominfo_list_free(list, count) };
        Ok(domains)
    }

    /// What the hypervisor knows of one domain.
    ///
    /// # Errors
    /// [`ErrorCode::DomainNotFound`] when there is none with this number.
    ///
    /// Wraps `libxl_domain_info`.
    #[doc(alias = "libxl_domain_info")]
    pub fn info(&self, domid: Domid) -> Result<DomainInfo> {
        info(&self.user, domid)
    }

    /// A domain's name. `None` while it is being destroyed, when it does not exist, and when nobody has named it.
    ///
    /// Wraps `libxl_domid_to_name`.
    #[doc(alias = "libxl_domid_to_name")]
    pub fn name(&self, domid: Domid) -> Option<String> {
        let lib = self.user.enter("query name", Some(domid)).ok()?;
        // SAFETY: the context is alive; the string is ours to free.
        unsafe { take_string(lib.libxl_domid_to_name(self.user.ctx(), domid)) }
    }

    /// The domain that has exactly this name.
    ///
    /// # Errors
    /// When the list of domains can't be had, or the name contains a NUL byte.
    ///
    /// Wraps `libxl_name_to_domid`.
    #[doc(alias = "libxl_name_to_domid")]
    pub fn find(&self, name: &str) -> Result<Option<Domid>> {
        const ACTION: &str = "find domain by name";
        let name = c_string(ACTION, name)?;
        let lib = self.user.enter(ACTION, None)?;
        let mark = self.user.logger.mark();
        let mut domid = 0;
        // SAFETY: the context is alive; the name lives during the call; `domid` is a place for the result.
        let rc = unsafe { lib.libxl_name_to_domid(self.user.ctx(), name.as_ptr(), &mut domid) };
        match ErrorCode::from_raw(rc) {
            // What libxl returns for a name that no domain has.
            ErrorCode::Invalid => Ok(None),
            _ => self.user.check(ACTION, None, mark, rc).map(|()| Some(domid)),
        }
    }

    /// The domain that this one runs the device model for, if it is a stub domain.
    ///
    /// Wraps `libxl_is_stubdom`.
    #[doc(alias = "libxl_is_stubdom")]
    pub fn stubdom_target(&self, domid: Domid) -> Option<Domid> {
        let lib = self.user.enter("query stub domain", Some(domid)).ok()?;
        let mut target = 0;
        // SAFETY: the context is alive; `target` is a place for the result.
        let is = unsafe { lib.libxl_is_stubdom(self.user.ctx(), domid, &mut target) };
        (is != 0).then_some(target)
    }

    /// When a guest was started, as its creator has recorded it. `None` for domains without a record (dom0).
    ///
    /// Wraps `libxl_vm_get_start_time`.
    #[doc(alias = "libxl_vm_get_start_time")]
    pub fn start_time(&self, domid: Domid) -> Option<SystemTime> {
        let lib = self.user.enter("query start time", Some(domid)).ok()?;
        // That there is no record is an answer here, though libxl logs it as an error.
        let seconds = crate::log::muted(|| {
            // SAFETY: the context is alive.
            unsafe { lib.libxl_vm_get_start_time(self.user.ctx(), domid) }
        });
        (seconds != 0 && seconds != u32::MAX).then(|| UNIX_EPOCH + Duration::from_secs(seconds.into()))
    }

    /// The configuration a domain was made from, brought up to date with what has changed since.
    ///
    /// The operation waits for changes of the domain's devices that are under way, and 10 s for an emulated machine's device
    /// model.
    ///
    /// # Errors
    /// [`ErrorCode::NoStoredConfig`] for domains that libxl has no configuration of, [`ErrorCode::DomainNotFound`] when the
    /// domain is gone.
    ///
    /// Wraps `libxl_retrieve_domain_configuration`.
    #[doc(alias = "libxl_retrieve_domain_configuration")]
    pub fn configuration(&self, domid: Domid) -> Result<Operation<DomainConfig>> {
        retrieve(&self.user, domid)
    }
}

/// What libxl reads and writes while it creates a domain.
struct Creation {
    config: RawConfig,
    domid: u32,
    /// Of a restore: where the stream comes from, and its parameters.
    restore: Option<(OwnedFd, sys::libxl_domain_restore_params)>,
}

// SAFETY: the parameters hold no pointer of ours, and what libxl puts there belongs to the structure alone.
unsafe impl Send for Creation {}

fn created(creation: Creation, status: Result<()>) -> Result<Domid> {
    match status {
        Ok(()) => Ok(creation.domid),
        Err(mut error) => {
            // An aborted creation leaves the domain to its caller; any other failed one has none left.
            if error.is_aborted() && creation.domid != 0 && creation.domid != sys::INVALID_DOMID {
                error.leftover = Some(creation.domid);
            }
            Err(error)
        }
    }
}

/// # Creation, save and restore
impl Context {
    /// Creates a domain and leaves it paused.
    ///
    /// With a direct kernel, and for HVM, its memory is built inside this call, with the thread blocked and the context
    /// locked. That can't be aborted, and takes minutes for a guest of hundreds of GiB. With a bootloader the event thread does
    /// it. So use a context of its own. Devices are then set up by the operation, within libxl's limits (40 s for a hotplug
    /// script, 60 s for a device model). Nothing watches the new domain: when it shuts down someone must destroy it.
    ///
    /// # Errors
    /// [`Cause::ConfigDropped`] when this libxl would ignore part of the configuration; libxl's own reasons. After
    /// an abort [`Error::leftover`] may name a domain that the caller must destroy.
    ///
    /// Wraps `libxl_domain_create_new`.
    #[doc(alias = "libxl_domain_create_new")]
    pub fn create(&self, config: &DomainConfig) -> Result<Operation<Domid>> {
        let config = RawConfig::from_config(&self.user, config)?;
        start(
            &self.user,
            "create domain",
            None,
            Creation { config, domid: sys::INVALID_DOMID, restore: None },
            |lib, ctx, creation, how| {
                // SAFETY: libxl keeps the addresses of the configuration and of the place for the number, and writes to both
                // until completion. `creation` stays where it is until then, and with it both.
                unsafe {
                    lib.libxl_domain_create_new(
                        ctx,
                        (*creation).config.as_ptr(),
                        &raw mut (*creation).domid,
                        how,
                        std::ptr::null(),
                    )
                }
            },
            |_, creation, status| created(creation, status),
        )
    }

    /// Builds a domain from a saved state and leaves it paused.
    ///
    /// `stream` is positioned at the start of libxl's stream (in a file of `xl save`: behind its header). It is
    /// read and finally closed.
    ///
    /// # Errors
    /// As for [`Context::create`]; a truncated or foreign stream is a failure and leaves no domain.
    ///
    /// Wraps `libxl_domain_create_restore`.
    #[doc(alias = "libxl_domain_create_restore")]
    pub fn restore(&self, config: &DomainConfig, stream: OwnedFd) -> Result<Operation<Domid>> {
        /// The stream format that every supported release writes.
        const STREAM_VERSION: u32 = 2;
        let config = RawConfig::from_config(&self.user, config)?;
        // SAFETY: a plain structure of integers and pointers, for which all-zero is valid.
        let mut params: sys::libxl_domain_restore_params = unsafe { std::mem::zeroed() };
        // SAFETY: `params` is the structure that this initialises, of the same layout in every release. The call uses no
        // context.
        unsafe { self.user.lib().libxl_domain_restore_params_init(&mut params) };
        params.stream_version = STREAM_VERSION;
        start(
            &self.user,
            "restore domain",
            None,
            Creation { config, domid: sys::INVALID_DOMID, restore: Some((stream, params)) },
            |lib, ctx, creation, how| {
                // SAFETY: `creation` stays where it is until completion, and with it all that is pointed to.
                let (config, domid, restore) = unsafe {
                    ((*creation).config.as_ptr(), &raw mut (*creation).domid, (*creation).restore.as_ref())
                };
                let Some((stream, params)) = restore else { return sys::ERROR_INVAL };
                // SAFETY: as for a creation. The descriptor stays open until completion; libxl copies the parameters.
                unsafe {
                    lib.libxl_domain_create_restore(
                        ctx,
                        config,
                        domid,
                        stream.as_raw_fd(),
                        -1,
                        params,
                        how,
                        std::ptr::null(),
                    )
                }
            },
            |_, creation, status| created(creation, status),
        )
    }

    /// Writes a guest's state to `stream` and leaves the guest suspended.
    ///
    /// On success the operation gives the descriptor back (to be synced). Whatever the outcome, the guest does not
    /// run on by itself: give what came of waiting to [`Context::end_save`], and after a success resume or destroy the guest.
    ///
    /// libxl waits 60 s for the guest to take the request to suspend itself, and 60 s more until it is suspended. The copying
    /// of its memory has no limit.
    ///
    /// # Errors
    /// Errors of the descriptor (disk full, peer gone), [`ErrorCode::TimedOut`] or [`ErrorCode::GuestTimedOut`] when the guest
    /// does not suspend, libxl's other reasons.
    ///
    /// Wraps `libxl_domain_suspend`.
    #[doc(alias = "libxl_domain_suspend")]
    pub fn save(&self, domid: Domid, stream: OwnedFd, flags: SaveFlags) -> Result<Operation<OwnedFd>> {
        let mut raw_flags = 0;
        if flags.live {
            raw_flags |= sys::LIBXL_SUSPEND_LIVE;
        }
        if flags.debug {
            raw_flags |= sys::LIBXL_SUSPEND_DEBUG;
        }
        self.user.logger.begin_save(domid);
        start(
            &self.user,
            "save domain",
            Some(domid),
            stream,
            |lib, ctx, stream, how| {
                // SAFETY: libxl keeps the descriptor's number, which is the operation's and stays open until completion.
                unsafe { lib.libxl_domain_suspend(ctx, domid, (*stream).as_raw_fd(), raw_flags as c_int, how) }
            },
            |_, stream, status| status.map(|()| stream),
        )
    }

    /// Sees to a guest after a save: ends a save that is still under way, and lets the guest run on unless it was saved.
    ///
    /// `outcome` is what came of waiting for the save. A pending one is aborted. libxl does not take its request to the guest
    /// back then, so a guest that has not obeyed by now may suspend itself later, when nobody looks, for ever. Such a guest is
    /// suspended once more: it obeys, or libxl's limit passes, with which libxl does take the request back.
    ///
    /// Blocks, not with libxl's lock held: up to 60 s until an aborted save has ended, and up to 120 s for a guest that does
    /// not answer.
    ///
    /// Wraps `libxl_ao_abort`, `libxl_domain_suspend_only` and `libxl_domain_resume`.
    #[doc(alias = "libxl_ao_abort")]
    pub fn end_save(&self, domid: Domid, outcome: Wait<OwnedFd>) -> SaveEnd {
        let error = match outcome {
            Wait::Done(Ok(stream)) => return SaveEnd::Saved(stream),
            Wait::Done(Err(error)) => error,
            Wait::Pending(save) => match save.abort_and_wait(ABORTED_SAVE) {
                // It was done before the abort reached it.
                Ok(stream) => return SaveEnd::Saved(stream),
                Err(error) => error,
            },
        };
        let is_suspended = |info: &DomainInfo| info.shutdown == Some(ShutdownReason::Suspend);
        let withdrawn = matches!(error.code(), Some(ErrorCode::TimedOut | ErrorCode::GuestTimedOut));
        let may_obey_later = !withdrawn
            && self.user.logger.was_asked_to_suspend(domid)
            && self.info(domid).is_ok_and(|info| info.shutdown.is_none());
        if may_obey_later {
            // Both ends are good ones: it is suspended, or the request is gone.
            let _ = self.suspend_only(domid).and_then(Operation::wait);
        }
        match self.resume(domid, true).and_then(Operation::wait) {
            Ok(()) => SaveEnd::Running(error),
            // libxl refuses, and changes nothing, when the guest is not suspended.
            Err(resume) => match self.info(domid) {
                Ok(info) if is_suspended(&info) => SaveEnd::Suspended { error, resume },
                Ok(info) if info.shutdown.is_none() && !info.dying => SaveEnd::Running(error),
                Ok(_) => SaveEnd::Ended(error),
                Err(e) if e.code() == Some(ErrorCode::DomainNotFound) => SaveEnd::Ended(error),
                Err(_) => SaveEnd::Suspended { error, resume },
            },
        }
    }
}

/// Time that libxl gets to end an aborted save. Its own steps are limited to less.
const ABORTED_SAVE: Duration = Duration::from_secs(60);

/// Fate of a guest after a save, told by [`Context::end_save`].
#[derive(Debug)]
#[non_exhaustive]
pub enum SaveEnd {
    /// The guest was saved and is suspended. The descriptor of its stream is still to be synced.
    Saved(OwnedFd),
    /// The save failed for this reason, and the guest runs.
    Running(Error),
    /// The save failed, and the guest is suspended, because it could not be resumed; or nothing can be told of it.
    Suspended {
        /// Why the save failed.
        error: Error,
        /// Why the guest could not be resumed.
        resume: Error,
    },
    /// The save failed for this reason, and the guest has shut down or is gone.
    Ended(Error),
}

/// # What is done with a domain that has shut down
impl Context {
    /// Restarts a guest in place, with its memory kept, after it has shut down for [`ShutdownReason::SoftReset`]. It is
    /// left paused.
    ///
    /// The reset happens on a thread and with a context of its own, so nothing else waits for it. libxl limits its steps: 60 s for a
    /// device model that does not come up, 10 s for each device.
    ///
    /// # Errors
    /// libxl's reasons, e.g. a guest that is not HVM. What is left of the domain may then be in any state: destroy it.
    /// [`Cause::NotAllowed`] for a context that reaps all children, or none: there can be no other context beside it that
    /// learns of its own.
    ///
    /// Wraps `libxl_domain_soft_reset`.
    #[doc(alias = "libxl_domain_soft_reset")]
    pub fn soft_reset(&self, domid: Domid, config: &DomainConfig) -> Result<Operation<()>> {
        const ACTION: &str = "soft reset domain";
        if self.user.children() != Children::LibxlReapsOwn {
            let cause = Cause::NotAllowed("a soft reset needs a context with Children::LibxlReapsOwn");
            return Err(Error::new(ACTION, Some(domid), cause));
        }
        let own = self.open_another()?;
        let config = RawConfig::from_config(&own.user, config)?;
        operation::run(
            &own.user,
            ACTION,
            Some(domid),
            config,
            move |lib, ctx, config| {
                // SAFETY: the context is alive as long as the operation, and the configuration lives during the call. Without a
                // completion request libxl returns only when all is done. With one, in all releases, it would write the
                // domain's number to a place on the stack of a function that has returned long before.
                unsafe {
                    lib.libxl_domain_soft_reset(ctx, config.as_ptr(), domid, std::ptr::null(), std::ptr::null())
                }
            },
            |_config, status| status,
        )
    }

    /// Writes a domain's memory into a file. An existing file is overwritten.
    ///
    /// All of it happens inside this call, with the thread blocked and the context locked, and can't be aborted. It takes as
    /// long as the file's disk does, so use a context of its own.
    ///
    /// # Errors
    /// When the file can't be written, or the domain can't be read.
    ///
    /// Wraps `libxl_domain_core_dump`.
    #[doc(alias = "libxl_domain_core_dump")]
    pub fn dump_core(&self, domid: Domid, file: &Path) -> Result<Operation<()>> {
        const ACTION: &str = "dump core";
        let file = CString::new(file.as_os_str().as_bytes()).map_err(|_| {
            Error::new(ACTION, Some(domid), Cause::BadArgument(format!("{file:?} contains a NUL byte")))
        })?;
        start(
            &self.user,
            ACTION,
            Some(domid),
            file,
            |lib, ctx, file, how| {
                // SAFETY: the context is alive as long as the operation. libxl needs the name during the call only.
                unsafe { lib.libxl_domain_core_dump(ctx, domid, (*file).as_ptr(), how) }
            },
            |_, _file, status| status,
        )
    }

    /// Keeps the remains of a guest called `name` aside: as `name` with `suffix` behind it, and with another UUID in
    /// xenstore. The hypervisor goes on to know the domain by its own UUID.
    ///
    /// # Errors
    /// When it is not called `name`, or another domain has the new name.
    ///
    /// Wraps `libxl_domain_preserve`.
    #[doc(alias = "libxl_domain_preserve")]
    pub fn preserve(&self, domid: Domid, name: &str, suffix: &str, uuid: Uuid) -> Result<()> {
        const ACTION: &str = "preserve domain";
        let suffix = c_string(ACTION, suffix)?;
        let config = DomainConfig::from_json(serde_json::json!({"c_info": {"name": name}}))?;
        let config = RawConfig::from_config(&self.user, &config)?;
        let lib = self.user.enter(ACTION, Some(domid))?;
        let mark = self.user.logger.mark();
        // SAFETY: the context is alive, and configuration and string live during the call. A configuration begins with
        // what the call wants, of which it reads the name.
        let rc = unsafe {
            lib.libxl_domain_preserve(
                self.user.ctx(),
                domid,
                config.as_ptr().cast(),
                suffix.as_ptr(),
                sys::libxl_uuid { uuid: *uuid.as_bytes() },
            )
        };
        self.user.check(ACTION, Some(domid), mark, rc)
    }
}

/// One-domain operations that differ only in the C function.
macro_rules! simple_operations {
    ($($(#[$doc:meta])+ $name:ident($($arg:ident: $type:ty),*) = $action:literal, $c:ident($($c_arg:expr),*);)*) => {
        /// # Operations on one domain
        impl Context {
            $(
                $(#[$doc])+
                #[doc = ""]
                #[doc = concat!("Wraps `", stringify!($c), "`.")]
                pub fn $name(&self, domid: Domid $(, $arg: $type)*) -> Result<Operation<()>> {
                    start(
                        &self.user,
                        $action,
                        Some(domid),
                        (),
                        |lib, ctx, _, how| {
                            // SAFETY: the context is alive as long as the operation; all else are plain numbers, and libxl
                            // writes nothing but its own memory.
                            unsafe { lib.$c(ctx, domid, $($c_arg,)* how) }
                        },
                        |_, (), status| status,
                    )
                }
            )*
        }
    };
}

simple_operations! {
    /// Lets a suspended guest run on as if nothing had happened (`cooperative`: the guest knows that its suspend was
    /// cancelled, which every current guest does).
    ///
    /// # Errors
    /// When the domain is not suspended; nothing changes then.
    #[doc(alias = "libxl_domain_resume")]
    resume(cooperative: bool) = "resume domain", libxl_domain_resume(c_int::from(cooperative));
    /// Suspends a guest without saving it. libxl waits 60 s for the guest to take the request, which it then takes back, and
    /// 60 s more until the guest is suspended.
    ///
    /// # Errors
    /// [`ErrorCode::GuestTimedOut`] when the guest does not suspend.
    #[doc(alias = "libxl_domain_suspend_only")]
    suspend_only() = "suspend domain", libxl_domain_suspend_only();
    /// Asks the guest to power off. Completes when the guest has acknowledged, which is long before it has shut
    /// down; for that see [`Context::domain_events`].
    ///
    /// # Errors
    /// [`ErrorCode::TimedOut`] when it has not acknowledged within 60 s (the request stays, it may still obey);
    /// [`ErrorCode::NoParavirt`] for an HVM guest without PV drivers: see [`Context::trigger`].
    #[doc(alias = "libxl_domain_shutdown")]
    shutdown() = "shut domain down", libxl_domain_shutdown();
    /// Asks the guest to reboot. As [`Context::shutdown`].
    ///
    /// # Errors
    /// As [`Context::shutdown`].
    #[doc(alias = "libxl_domain_reboot")]
    reboot() = "reboot domain", libxl_domain_reboot();
    /// Ends the domain at once and frees what it holds. Takes as long as the hypervisor needs for its memory, seconds for
    /// tens of GiB, and up to 10 s for each device whose backend does not let go.
    ///
    /// # Errors
    /// [`ErrorCode::DomainNotFound`] when it is gone already.
    #[doc(alias = "libxl_domain_destroy")]
    destroy() = "destroy domain", libxl_domain_destroy();
    /// Stops the domain's vCPUs. An emulated machine's device model gets 10 s to answer.
    ///
    /// # Errors
    /// libxl's reasons, e.g. no such domain.
    #[doc(alias = "libxl_domain_pause")]
    pause() = "pause domain", libxl_domain_pause();
    /// Lets a paused domain run. An emulated machine's device model gets 10 s to answer.
    ///
    /// # Errors
    /// libxl's reasons, e.g. no such domain.
    #[doc(alias = "libxl_domain_unpause")]
    unpause() = "unpause domain", libxl_domain_unpause();
    /// Presses a button of an emulated machine, or sends a signal to one of its vCPUs.
    ///
    /// # Errors
    /// libxl's reasons, e.g. a PV guest, which has no such buttons.
    #[doc(alias = "libxl_send_trigger")]
    trigger(trigger: Trigger, vcpu: u32) = "send trigger", libxl_send_trigger(trigger.raw(), vcpu);
}

/// # Short calls
impl Context {
    /// Sends a SysRq letter to a guest.
    ///
    /// # Errors
    /// When the letter is not ASCII. libxl itself never reports a failure here, not even for a domain that does not
    /// exist.
    ///
    /// Wraps `libxl_send_sysrq`.
    #[doc(alias = "libxl_send_sysrq")]
    pub fn sysrq(&self, domid: Domid, letter: char) -> Result<()> {
        const ACTION: &str = "send SysRq";
        let Some(byte) = u8::try_from(letter).ok().filter(u8::is_ascii_graphic) else {
            return Err(Error::new(
                ACTION,
                Some(domid),
                Cause::BadArgument(format!("{letter:?} is no SysRq letter")),
            ));
        };
        let lib = self.user.enter(ACTION, Some(domid))?;
        let mark = self.user.logger.mark();
        // SAFETY: the context is alive; the rest are numbers.
        let rc = unsafe { lib.libxl_send_sysrq(self.user.ctx(), domid, byte as c_char) };
        self.user.check(ACTION, Some(domid), mark, rc)
    }

    /// Gives a domain another name. With `from`, only if it has that name now.
    ///
    /// # Errors
    /// When it is not called `from`, or another domain is called `to`.
    ///
    /// Wraps `libxl_domain_rename`.
    #[doc(alias = "libxl_domain_rename")]
    pub fn rename(&self, domid: Domid, from: Option<&str>, to: &str) -> Result<()> {
        const ACTION: &str = "rename domain";
        let from = from.map(|from| c_string(ACTION, from)).transpose()?;
        let to = c_string(ACTION, to)?;
        let lib = self.user.enter(ACTION, Some(domid))?;
        let mark = self.user.logger.mark();
        // SAFETY: the context is alive, both strings live during the call, and the old name may be null.
        let rc = unsafe {
            lib.libxl_domain_rename(
                self.user.ctx(),
                domid,
                from.as_ref().map_or(std::ptr::null(), |s| s.as_ptr()),
                to.as_ptr(),
            )
        };
        self.user.check(ACTION, Some(domid), mark, rc)
    }

    /// Keeps `data` with a domain until it is destroyed, under a short name (`id`), in a file of libxl's.
    ///
    /// Waits, with the context locked, for another process that works with the domain's files, as do reading and removing.
    ///
    /// # Errors
    /// When the domain is gone, or the file can't be written.
    ///
    /// Wraps `libxl_userdata_store`.
    #[doc(alias = "libxl_userdata_store")]
    pub fn store_userdata(&self, domid: Domid, id: &str, data: &[u8]) -> Result<()> {
        const ACTION: &str = "store userdata";
        let id = c_string(ACTION, id)?;
        let length = c_int::try_from(data.len())
            .map_err(|_| Error::new(ACTION, Some(domid), Cause::BadArgument("more than 2 GiB".into())))?;
        let lib = self.user.enter(ACTION, Some(domid))?;
        let mark = self.user.logger.mark();
        // SAFETY: the context is alive; `id` and the `length` bytes of `data` live during the call.
        let rc = unsafe { lib.libxl_userdata_store(self.user.ctx(), domid, id.as_ptr(), data.as_ptr(), length) };
        self.user.check(ACTION, Some(domid), mark, rc)
    }

    /// What [`Context::store_userdata`] has kept. `None` when there is nothing under this name.
    ///
    /// # Errors
    /// When the domain is gone, or the file can't be read.
    ///
    /// Wraps `libxl_userdata_retrieve`.
    #[doc(alias = "libxl_userdata_retrieve")]
    pub fn userdata(&self, domid: Domid, id: &str) -> Result<Option<Vec<u8>>> {
        userdata(&self.user, domid, id)
    }

    /// Removes what [`Context::store_userdata`] has kept. Nothing there is a success.
    ///
    /// # Errors
    /// When the domain is gone, or the file can't be removed.
    ///
    /// Wraps `libxl_userdata_unlink`.
    #[doc(alias = "libxl_userdata_unlink")]
    pub fn remove_userdata(&self, domid: Domid, id: &str) -> Result<()> {
        const ACTION: &str = "remove userdata";
        // libxl reports a failure for what is not there.
        if self.userdata(domid, id)?.is_none() {
            return Ok(());
        }
        let c_id = c_string(ACTION, id)?;
        let lib = self.user.enter(ACTION, Some(domid))?;
        let mark = self.user.logger.mark();
        // SAFETY: the context is alive, and `c_id` lives during the call.
        let rc = unsafe { lib.libxl_userdata_unlink(self.user.ctx(), domid, c_id.as_ptr()) };
        self.user.check(ACTION, Some(domid), mark, rc).or_else(|error| {
            // Somebody else may have removed it meanwhile.
            if self.userdata(domid, id)?.is_none() { Ok(()) } else { Err(error) }
        })
    }
}

const SET_TARGET: &str = "set memory target";

/// # Memory
impl Context {
    /// Memory that no domain uses, KiB.
    ///
    /// # Errors
    /// When the hypervisor can't be asked.
    ///
    /// Wraps `libxl_get_free_memory`.
    #[doc(alias = "libxl_get_free_memory")]
    pub fn free_memory_kib(&self) -> Result<u64> {
        let lib = self.user.enter("query free memory", None)?;
        let mark = self.user.logger.mark();
        let mut kib = 0;
        // SAFETY: the context is alive; `kib` is a place for the result.
        let rc = unsafe { lib.libxl_get_free_memory(self.user.ctx(), &mut kib) };
        self.user.check("query free memory", None, mark, rc)?;
        Ok(kib)
    }

    /// Memory that a guest with this configuration needs in all, KiB.
    ///
    /// # Errors
    /// When libxl does not accept the configuration.
    ///
    /// Wraps `libxl_domain_need_memory`.
    #[doc(alias = "libxl_domain_need_memory")]
    pub fn needed_memory_kib(&self, config: &DomainConfig) -> Result<u64> {
        // libxl fills defaults in; this is a copy of its own.
        let raw = RawConfig::from_config(&self.user, config)?;
        let lib = self.user.enter("query needed memory", None)?;
        let mark = self.user.logger.mark();
        let mut kib = 0;
        // SAFETY: the context is alive, the configuration is initialised, `kib` is a place for the result.
        let rc =
            unsafe { lib.libxl_domain_need_memory(self.user.ctx(), raw.as_ptr(), sys::INVALID_DOMID, &mut kib) };
        self.user.check("query needed memory", None, mark, rc)?;
        Ok(kib)
    }

    /// The memory that a domain is to have, KiB.
    ///
    /// # Errors
    /// When the domain has no target.
    ///
    /// Wraps `libxl_get_memory_target`.
    #[doc(alias = "libxl_get_memory_target")]
    pub fn memory_target_kib(&self, domid: Domid) -> Result<u64> {
        let lib = self.user.enter("query memory target", Some(domid))?;
        let mark = self.user.logger.mark();
        let mut kib = 0;
        // SAFETY: the context is alive; `kib` is a place for the result.
        let rc = unsafe { lib.libxl_get_memory_target(self.user.ctx(), domid, &mut kib) };
        self.user.check("query memory target", Some(domid), mark, rc)?;
        Ok(kib)
    }

    /// Tells a domain how much memory to have from now on, KiB, its video memory included. Its balloon driver then gives
    /// memory back to the hypervisor or takes some, as far as it can and in its own time: see
    /// [`Context::wait_for_memory_target`]. `enforce` also makes it the hypervisor's limit for the domain.
    ///
    /// Waits for other changes of the domain's configuration, in any process, with the context locked.
    ///
    /// # Errors
    /// More than the domain's maximum, less than 128 MiB for dom0, or no such domain. Nothing has changed then.
    ///
    /// Wraps `libxl_set_memory_target`.
    #[doc(alias = "libxl_set_memory_target")]
    pub fn set_memory_target_kib(&self, domid: Domid, kib: u64, enforce: bool) -> Result<()> {
        let Ok(target) = i64::try_from(kib) else {
            let cause = Cause::BadArgument(format!("{kib} KiB is more than libxl can take"));
            return Err(Error::new(SET_TARGET, Some(domid), cause));
        };
        self.memory_target(domid, target, false, enforce)
    }

    /// As [`Context::set_memory_target_kib`], with the difference to the target that the domain has now. What would be
    /// less than nothing is nothing.
    ///
    /// # Errors
    /// As [`Context::set_memory_target_kib`].
    ///
    /// Wraps `libxl_set_memory_target`.
    #[doc(alias = "libxl_set_memory_target")]
    pub fn change_memory_target_kib(&self, domid: Domid, by_kib: i64, enforce: bool) -> Result<()> {
        self.memory_target(domid, by_kib, true, enforce)
    }

    fn memory_target(&self, domid: Domid, kib: i64, relative: bool, enforce: bool) -> Result<()> {
        let lib = self.user.enter(SET_TARGET, Some(domid))?;
        let mark = self.user.logger.mark();
        let (relative, enforce) = (c_int::from(relative), c_int::from(enforce));
        // SAFETY: the context is alive; all else are plain numbers.
        let rc = unsafe { lib.libxl_set_memory_target(self.user.ctx(), domid, kib, relative, enforce) };
        self.user.check(SET_TARGET, Some(domid), mark, rc)
    }

    /// Waits until a domain has no more memory than its target says. `patience`, in whole seconds (rounded up), is how
    /// long it may go without giving any back.
    ///
    /// Blocks this thread, and no other: libxl looks every two seconds, without its lock, for the first time after two. So a
    /// slow domain that goes on giving memory back takes longer than `patience`.
    ///
    /// # Errors
    /// [`ErrorCode::Fail`] when the patience was used up, or the domain's memory grew meanwhile.
    ///
    /// Wraps `libxl_wait_for_memory_target`.
    #[doc(alias = "libxl_wait_for_memory_target")]
    pub fn wait_for_memory_target(&self, domid: Domid, patience: Duration) -> Result<()> {
        let seconds = patience.as_secs() + u64::from(patience.subsec_nanos() > 0);
        let seconds = c_int::try_from(seconds).unwrap_or(c_int::MAX);
        let lib = self.user.enter("wait for memory target", Some(domid))?;
        let mark = self.user.logger.mark();
        // SAFETY: the context is alive; all else are plain numbers.
        let rc = unsafe { lib.libxl_wait_for_memory_target(self.user.ctx(), domid, seconds) };
        self.user.check("wait for memory target", Some(domid), mark, rc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_hypervisors_numbers() {
        assert_eq!(ShutdownReason::from_raw(0), ShutdownReason::Poweroff);
        assert_eq!(ShutdownReason::from_raw(2), ShutdownReason::Suspend);
        assert_eq!(ShutdownReason::from_raw(5), ShutdownReason::SoftReset);
        assert_eq!(ShutdownReason::from_raw(255), ShutdownReason::Other(255));
    }
}
