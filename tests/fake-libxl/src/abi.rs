//! The parts of libxl's binary interface that the fake reads and writes by layout.
//!
//! Written down here once more, from the facts about libxl and not from `xenlight-sys`, so that a mistake in either
//! shows when one drives the other.

use std::ffi::{c_char, c_int, c_short, c_void};

/// Error codes of libxl.
pub mod error {
    pub const VERSION: i32 = -2;
    pub const FAIL: i32 = -3;
    pub const NOMEM: i32 = -5;
    pub const INVAL: i32 = -6;
    pub const GUEST_TIMEDOUT: i32 = -8;
    pub const TIMEDOUT: i32 = -9;
    pub const NOPARAVIRT: i32 = -10;
    pub const NOT_READY: i32 = -11;
    pub const BUFFERFULL: i32 = -13;
    pub const UNKNOWN_CHILD: i32 = -14;
    pub const LOCK_FAIL: i32 = -15;
    pub const DOMAIN_NOTFOUND: i32 = -21;
    pub const ABORTED: i32 = -22;
    pub const NOTFOUND: i32 = -23;
}

/// What `libxl_error_to_string` says.
pub const ERROR_NAMES: &[(i32, &std::ffi::CStr)] = &[
    (-1, c"NONSPECIFIC"),
    (-2, c"VERSION"),
    (-3, c"FAIL"),
    (-4, c"NI"),
    (-5, c"NOMEM"),
    (-6, c"INVAL"),
    (-7, c"BADFAIL"),
    (-8, c"GUEST_TIMEDOUT"),
    (-9, c"TIMEDOUT"),
    (-10, c"NOPARAVIRT"),
    (-11, c"NOT_READY"),
    (-12, c"OSEVENT_REG_FAIL"),
    (-13, c"BUFFERFULL"),
    (-14, c"UNKNOWN_CHILD"),
    (-15, c"LOCK_FAIL"),
    (-16, c"JSON_CONFIG_EMPTY"),
    (-17, c"DEVICE_EXISTS"),
    (-20, c"VNUMA_CONFIG_INVALID"),
    (-21, c"DOMAIN_NOTFOUND"),
    (-22, c"ABORTED"),
    (-23, c"NOTFOUND"),
    (-24, c"DOMAIN_DESTROYED"),
    (-25, c"FEATURE_REMOVED"),
];

/// Event types.
pub mod event {
    pub const DOMAIN_SHUTDOWN: i32 = 1;
    pub const DOMAIN_DEATH: i32 = 2;
    pub const DISK_EJECT: i32 = 3;
    pub const OPERATION_COMPLETE: i32 = 4;
    pub const CONSOLE_AVAILABLE: i32 = 5;

    // Offsets inside `libxl_event`, the same in every release.
    pub const DOMID: usize = 16;
    pub const UUID: usize = 20;
    pub const FOR_USER: usize = 40;
    pub const TYPE: usize = 48;
    pub const UNION: usize = 56;
    pub const EJECT_DISK: usize = 64;
}

/// Offsets inside `libxl_device_disk`, the same in every release.
pub mod disk {
    pub const BACKEND_DOMID: usize = 0;
    pub const PDEV_PATH: usize = 16;
    pub const VDEV: usize = 24;
}

/// Offsets inside `libxl_dominfo`.
pub mod dominfo {
    pub const UUID: usize = 0;
    pub const DOMID: usize = 16;
    pub const SSID_LABEL: usize = 24;
    pub const RUNNING: usize = 32;
    pub const BLOCKED: usize = 33;
    pub const PAUSED: usize = 34;
    pub const SHUTDOWN: usize = 35;
    pub const DYING: usize = 36;
    pub const NEVER_STOP: usize = 37;
    pub const SHUTDOWN_REASON: usize = 40;
    pub const CURRENT_MEMKB: usize = 56;
    pub const MAX_MEMKB: usize = 80;
    pub const CPU_TIME: usize = 88;
    pub const VCPU_MAX_ID: usize = 96;
    pub const VCPU_ONLINE: usize = 100;
}

/// What depends on the release.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    pub major: u32,
    pub minor: u32,
}

impl Release {
    pub fn dominfo_size(self) -> usize {
        if self.minor < 16 { 112 } else { 120 }
    }

    pub fn domain_type_offset(self) -> usize {
        if self.minor < 16 { 108 } else { 112 }
    }

    pub fn event_size(self) -> usize {
        if self.minor < 17 { 184 } else { 208 }
    }

    pub fn physinfo_size(self) -> usize {
        if self.minor < 18 { 128 } else { 136 }
    }

    /// Reads `libxenlight.so.4.17` and the like.
    pub fn of_file_name(path: &str) -> Option<Release> {
        let name = path.rsplit('/').next()?;
        let mut parts = name.strip_prefix("libxenlight.so.")?.split('.');
        Some(Release { major: parts.next()?.parse().ok()?, minor: parts.next()?.parse().ok()? })
    }
}

pub const INVALID_DOMID: u32 = u32::MAX;
/// As `libxl_domain_suspend`'s flag.
pub const SUSPEND_LIVE: c_int = 2;
/// `b_info` memory fields at their default.
pub const MEMKB_DEFAULT: u64 = u64::MAX;

/// `libxl_shutdown_reason`.
pub mod reason {
    pub const POWEROFF: i32 = 0;
    pub const REBOOT: i32 = 1;
    pub const SUSPEND: i32 = 2;
    pub const CRASH: i32 = 3;
    pub const WATCHDOG: i32 = 4;
    pub const SOFT_RESET: i32 = 5;
}

/// `libxl_uuid`, which one function takes by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Uuid {
    pub bytes: [u8; 16],
}

pub type OpCallback = unsafe extern "C" fn(ctx: *mut c_void, rc: c_int, for_callback: *mut c_void);

/// `libxl_asyncop_how`; `u` is `for_event` or `for_callback`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AsyncopHow {
    pub callback: Option<OpCallback>,
    pub u: u64,
}

pub type ProgressCallback = unsafe extern "C" fn(ctx: *mut c_void, event: *mut c_void, for_callback: *mut c_void);

/// `libxl_asyncprogress_how`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AsyncprogressHow {
    pub callback: Option<ProgressCallback>,
    pub for_event: u64,
    pub for_callback: *mut c_void,
}

// SAFETY: the pointer is only handed back, to a callback that by libxl's contract may be called on any thread.
unsafe impl Send for AsyncprogressHow {}

/// `libxl_domain_restore_params`.
#[repr(C)]
pub struct RestoreParams {
    pub checkpointed_stream: i32,
    pub stream_version: u32,
    pub colo_proxy_script: *mut c_char,
    pub userspace_colo_proxy: c_int,
}

/// `libxl_event_hooks`.
#[repr(C)]
pub struct EventHooks {
    pub event_occurs_mask: u64,
    pub event_occurs: Option<unsafe extern "C" fn(user: *mut c_void, event: *mut c_void)>,
    pub disaster:
        Option<unsafe extern "C" fn(user: *mut c_void, type_: c_int, msg: *const c_char, errnoval: c_int)>,
}

/// `libxl_childproc_hooks`.
#[repr(C)]
pub struct ChildHooks {
    pub chldowner: c_int,
    pub fork_replacement: Option<unsafe extern "C" fn(user: *mut c_void) -> libc::pid_t>,
    pub reaped_callback: Option<unsafe extern "C" fn(pid: libc::pid_t, status: c_int, user: *mut c_void) -> c_int>,
}

/// `libxl_sigchld_owner_libxl_always`.
pub const LIBXL_ALWAYS: c_int = 2;
/// `libxl_sigchld_owner`: the mode in which several contexts may have children.
pub const SELECTIVE_REAP: c_int = 3;
/// `libxl_sigchld_owner_mainloop`.
pub const MAINLOOP: c_int = 1;

/// `libxl_osevent_hooks`.
#[repr(C)]
pub struct OsHooks {
    pub fd_register:
        Option<unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_void, c_short, *mut c_void) -> c_int>,
    pub fd_modify: Option<unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_void, c_short) -> c_int>,
    pub fd_deregister: Option<unsafe extern "C" fn(*mut c_void, c_int, *mut c_void)>,
    pub timeout_register:
        Option<unsafe extern "C" fn(*mut c_void, *mut *mut c_void, libc::timeval, *mut c_void) -> c_int>,
    pub timeout_modify: Option<unsafe extern "C" fn(*mut c_void, *mut *mut c_void, libc::timeval) -> c_int>,
    pub timeout_deregister: Option<unsafe extern "C" fn(*mut c_void, *mut c_void)>,
}

/// A C struct known by offsets only.
#[derive(Clone, Copy)]
pub struct Raw(pub *mut u8);

impl Raw {
    /// # Safety
    /// The block must hold a `T` at `offset`.
    pub unsafe fn put<T>(self, offset: usize, value: T) {
        // SAFETY: the caller's promise; unaligned because only the caller knows the block's alignment.
        unsafe { self.0.add(offset).cast::<T>().write_unaligned(value) }
    }

    /// # Safety
    /// The block must hold an initialised `T` at `offset`.
    pub unsafe fn get<T: Copy>(self, offset: usize) -> T {
        // SAFETY: as for `put`.
        unsafe { self.0.add(offset).cast::<T>().read_unaligned() }
    }
}

/// malloc'ed copy for a caller that frees with `free`.
pub fn c_string(text: &str) -> *mut c_char {
    let clean: String = text.chars().filter(|&c| c != '\0').collect();
    let c = std::ffi::CString::new(clean).unwrap_or_default();
    // SAFETY: `c` is a valid string for the length of the call.
    unsafe { libc::strdup(c.as_ptr()) }
}

/// # Safety
/// `p` must be NULL or a NUL-terminated string.
pub unsafe fn text(p: *const c_char) -> Option<String> {
    if p.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { std::ffi::CStr::from_ptr(p) }.to_string_lossy().into_owned())
}
