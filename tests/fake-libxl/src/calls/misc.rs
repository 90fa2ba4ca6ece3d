//! Contexts, memory, the host, small things.

use super::config as blocks;
use crate::abi::{self, ChildHooks, ERROR_NAMES, INVALID_DOMID, Raw, error, event};
use crate::config;
use crate::fatal;
use crate::runtime::{self, Ctx, enter, locked, refuse, release, simple, world};
use serde_json::{Value, json};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::time::{Duration, Instant};

// ---- contexts

#[unsafe(no_mangle)]
pub extern "C" fn libxl_ctx_alloc(
    out: *mut *mut c_void,
    version: c_int,
    _flags: c_uint,
    logger: *mut c_void,
) -> c_int {
    runtime::read_environment();
    // SAFETY: an out pointer by the function's contract.
    unsafe { *out = std::ptr::null_mut() };
    if version != 0 {
        return error::VERSION;
    }
    let rule = locked(&runtime::FAKE.script).rule_for("libxl_ctx_alloc", None, None);
    if let Some(error) = rule.start_error.or(rule.error) {
        return error;
    }
    // SAFETY: as above.
    unsafe { *out = runtime::alloc(logger) };
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_ctx_free(ctx: *mut c_void) -> c_int {
    if !ctx.is_null() {
        runtime::free(ctx);
    }
    0
}

/// libxl's answer, which belongs to the context and ends with it.
pub struct VersionInfo {
    block: [u64; 12],
    /// What `block` points to.
    _strings: [CString; 2],
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_get_version_info(ctx: *mut c_void) -> *const c_void {
    let Some(held) = enter(ctx, "libxl_get_version_info") else {
        return std::ptr::null();
    };
    let commandline = world(|w| w.xen_commandline.clone());
    let mut inner = locked(&held.inner);
    let info = inner.version_info.get_or_insert_with(|| {
        let strings = [CString::default(), CString::new(commandline).unwrap_or_default()];
        let mut block = [0; 12];
        let raw = Raw((&raw mut block).cast());
        // SAFETY: `block` is as long as the struct: numbers at 0, 4, 64 and 72, strings elsewhere. They live as long.
        unsafe {
            raw.put(0, c_int::try_from(release().major).unwrap_or(4));
            raw.put(4, c_int::try_from(release().minor).unwrap_or(0));
            for offset in [8, 16, 24, 32, 40, 48, 56, 88] {
                raw.put(offset, strings[0].as_ptr());
            }
            raw.put(72, 4096i32);
            raw.put(80, strings[1].as_ptr());
        }
        Box::new(VersionInfo { block, _strings: strings })
    });
    (&raw const info.block).cast()
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_error_to_string(code: c_int) -> *const c_char {
    ERROR_NAMES.iter().find(|(known, _)| *known == code).map_or(std::ptr::null(), |(_, name)| name.as_ptr())
}

// ---- children

#[unsafe(no_mangle)]
pub extern "C" fn libxl_childproc_setmode(ctx: *mut c_void, hooks: *const ChildHooks, user: *mut c_void) {
    let Some(held) = enter(ctx, "libxl_childproc_setmode") else {
        return;
    };
    if held.children() {
        return refuse("libxl_childproc_setmode while libxl has children");
    }
    // SAFETY: NULL or the caller's struct.
    let mode = unsafe { hooks.as_ref() }.map_or(0, |h| h.chldowner);
    if matches!(mode, abi::LIBXL_ALWAYS | abi::SELECTIVE_REAP) && !sigchld_is_free() {
        return refuse("libxl is to handle SIGCHLD, and the process has a handler of its own");
    }
    let mut inner = locked(&held.inner);
    inner.child_mode = mode;
    inner.child_hooks = (!hooks.is_null()).then_some((hooks as usize, user as usize));
}

/// Returns whether libxl could install its handler. The fake does not.
fn sigchld_is_free() -> bool {
    // SAFETY: all-zero is a valid value of this structure, in which the present action is put.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut action);
        action
    };
    action.sa_flags & libc::SA_SIGINFO == 0 && matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_childproc_reaped(ctx: *mut c_void, _pid: libc::pid_t, _status: c_int) -> c_int {
    // The fake's helpers are threads.
    if mainloop(ctx, "libxl_childproc_reaped") { error::UNKNOWN_CHILD } else { error::INVAL }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_childproc_sigchld_occurred(ctx: *mut c_void) {
    mainloop(ctx, "libxl_childproc_sigchld_occurred");
}

/// Refuses what libxl asserts not to be called unless the application reaps.
fn mainloop(ctx: *mut c_void, call: &str) -> bool {
    let Some(held) = enter(ctx, call) else {
        return false;
    };
    let is_mainloop = locked(&held.inner).child_mode == abi::MAINLOOP;
    if !is_mainloop {
        refuse(&format!("{call} in another mode than that of the application"));
    }
    is_mainloop
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_postfork_child_noexec(_ctx: *mut c_void) {}

// ---- libxenctrl

#[unsafe(no_mangle)]
pub extern "C" fn xc_interface_open(_logger: *mut c_void, _builder: *mut c_void, _flags: c_uint) -> *mut c_void {
    runtime::use_buffers();
    Box::into_raw(Box::new(0u64)).cast()
}

#[unsafe(no_mangle)]
pub extern "C" fn xc_interface_close(xch: *mut c_void) -> c_int {
    if !xch.is_null() {
        runtime::use_buffers();
        // SAFETY: made by `xc_interface_open`, and closed once.
        drop(unsafe { Box::from_raw(xch.cast::<u64>()) });
    }
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn xc_strerror(_xch: *mut c_void, _errcode: c_int) -> *const c_char {
    runtime::use_buffers();
    c"an error".as_ptr()
}

// ---- userdata

#[unsafe(no_mangle)]
pub extern "C" fn libxl_userdata_store(
    ctx: *mut c_void,
    domid: u32,
    id: *const c_char,
    data: *const u8,
    length: c_int,
) -> c_int {
    let n = usize::try_from(length).unwrap_or(0);
    // SAFETY: a string, and an array of so many bytes, by the function's contract.
    let (id, bytes) = unsafe {
        let bytes = if n == 0 { &[][..] } else { std::slice::from_raw_parts(data, n) };
        (abi::text(id).unwrap_or_default(), bytes)
    };
    let value = match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!(bytes),
    };
    let args = json!({"id": id, "data": value});
    simple(ctx, "libxl_userdata_store", Some(domid), args, false, |_| {
        world(|w| match w.domains.get_mut(&domid) {
            None => error::LOCK_FAIL,
            Some(d) => {
                if bytes.is_empty() {
                    d.userdata.remove(&id);
                } else {
                    d.userdata.insert(id, value);
                }
                0
            }
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_userdata_retrieve(
    ctx: *mut c_void,
    domid: u32,
    id: *const c_char,
    data: *mut *mut u8,
    length: *mut c_int,
) -> c_int {
    // SAFETY: a string by the function's contract.
    let id = unsafe { abi::text(id) }.unwrap_or_default();
    simple(ctx, "libxl_userdata_retrieve", Some(domid), json!({}), true, |_| {
        let kept = |d: &crate::world::Domain| match id.as_str() {
            // With the byte that ends a string in C. Of a domain that is being built there is none yet.
            "libxl-json" if d.building => None,
            "libxl-json" => d.config.as_ref().map(|config| json!(format!("{config}\0"))),
            _ => d.userdata.get(&id).cloned(),
        };
        let value = match world(|w| w.domains.get(&domid).map(kept)) {
            None => return error::LOCK_FAIL,
            Some(value) => value,
        };
        let bytes: Vec<u8> = match value {
            Some(Value::String(s)) => s.into_bytes(),
            Some(value) => serde_json::from_value(value).unwrap_or_default(),
            None => Vec::new(),
        };
        // SAFETY: out pointers by the function's contract; the copy goes into a block of its size.
        unsafe {
            let copy = if bytes.is_empty() {
                std::ptr::null_mut()
            } else {
                let block = libc::malloc(bytes.len());
                libc::memcpy(block, bytes.as_ptr().cast(), bytes.len());
                block
            };
            *data = copy.cast();
            *length = c_int::try_from(bytes.len()).unwrap_or(0);
        }
        0
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_userdata_unlink(ctx: *mut c_void, domid: u32, id: *const c_char) -> c_int {
    // SAFETY: a string by the function's contract.
    let id = unsafe { abi::text(id) }.unwrap_or_default();
    let args = json!({"id": id});
    simple(ctx, "libxl_userdata_unlink", Some(domid), args, false, |_| {
        world(|w| match w.domains.get_mut(&domid) {
            None => error::LOCK_FAIL,
            // What is not there can't be deleted.
            Some(d) => d.userdata.remove(&id).map_or(error::FAIL, |_| 0),
        })
    })
}

// ---- memory

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_need_memory(
    ctx: *mut c_void,
    block: *mut c_void,
    _domid: u32,
    need: *mut u64,
) -> c_int {
    let call = "libxl_domain_need_memory";
    let Some((number, mut value)) = blocks::read(block, call) else {
        return error::INVAL;
    };
    blocks::expect_survival(fatal::filling_in(&value), call);
    simple(ctx, call, None, json!({}), true, |_| {
        let kb = config::get(&value, "b_info", "target_memkb")
            .or_else(|| config::get(&value, "b_info", "max_memkb"))
            .and_then(Value::as_u64)
            .unwrap_or(32 * 1024);
        // It fills in defaults, which callers must not be surprised by.
        config::set(&mut value, "b_info", "shadow_memkb", Some(json!(1024)));
        blocks::store(number, value, call);
        // SAFETY: an out pointer by the function's contract.
        unsafe { *need = kb + 2048 };
        0
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_get_free_memory(ctx: *mut c_void, free: *mut u64) -> c_int {
    simple(ctx, "libxl_get_free_memory", None, json!({}), true, |_| {
        // SAFETY: an out pointer by the function's contract.
        unsafe { *free = world(|w| w.free_kb) };
        0
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_set_memory_target(
    ctx: *mut c_void,
    domid: u32,
    target_kb: i64,
    relative: c_int,
    enforce: c_int,
) -> c_int {
    let args = json!({"target_kb": target_kb, "relative": relative != 0, "enforce": enforce != 0});
    simple(ctx, "libxl_set_memory_target", Some(domid), args, false, |_| {
        world(|w| {
            let Some(d) = w.domains.get(&domid) else {
                return error::LOCK_FAIL;
            };
            let wanted = if relative == 0 {
                u64::try_from(target_kb).ok()
            } else {
                Some(d.target_kb.saturating_add_signed(target_kb))
            };
            match wanted {
                Some(wanted) if wanted <= d.max_kb && (domid != 0 || wanted >= 128 * 1024) => {
                    w.set_target(domid, wanted);
                    0
                }
                _ => error::INVAL,
            }
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_get_memory_target(ctx: *mut c_void, domid: u32, target: *mut u64) -> c_int {
    simple(ctx, "libxl_get_memory_target", Some(domid), json!({}), true, |_| {
        match world(|w| w.domains.get(&domid).map(|d| d.target_kb)) {
            Some(kb) => {
                // SAFETY: an out pointer by the function's contract.
                unsafe { *target = kb };
                0
            }
            None => error::FAIL,
        }
    })
}

/// Without the context's lock, as in libxl. The fake's balloon drivers have done all that they can when they have been
/// told; libxl would wait in vain for as many seconds as it is given.
#[unsafe(no_mangle)]
pub extern "C" fn libxl_wait_for_memory_target(ctx: *mut c_void, domid: u32, seconds: c_int) -> c_int {
    let call = "libxl_wait_for_memory_target";
    let Some(ctx) = runtime::context(ctx, call) else {
        return error::INVAL;
    };
    let record = Ctx::record(call, Some(domid), None, json!({"seconds": seconds}));
    let rule = ctx.begin(call, Some(domid), None);
    let reached = world(|w| w.domains.get(&domid).map(|d| d.memory_kb <= d.target_kb));
    let rc = match reached {
        Some(true) => 0,
        Some(false) => error::FAIL,
        None => error::DOMAIN_NOTFOUND,
    };
    Ctx::returned(record, rule.start_error.or(rule.error).unwrap_or(rc))
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_wait_for_free_memory(ctx: *mut c_void, _domid: u32, kb: u64, seconds: c_int) -> c_int {
    if runtime::context(ctx, "libxl_wait_for_free_memory").is_none() {
        return error::INVAL;
    }
    // Polls, as libxl does, without the context's lock.
    let end = Instant::now() + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    while world(|w| w.free_kb) < kb {
        if Instant::now() >= end {
            return error::NOMEM;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    0
}

// ---- the host

#[unsafe(no_mangle)]
pub extern "C" fn libxl_physinfo_init(info: *mut c_void) {
    // SAFETY: the caller's block holds a struct of this release.
    unsafe { libc::memset(info, 0, release().physinfo_size()) };
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_physinfo_dispose(info: *mut c_void) {
    libxl_physinfo_init(info);
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_get_physinfo(ctx: *mut c_void, info: *mut c_void) -> c_int {
    simple(ctx, "libxl_get_physinfo", None, json!({}), true, |_| {
        let (cpus, nodes, total, free) = world(|w| (w.cpus, w.nodes, w.total_kb, w.free_kb));
        let raw = Raw(info.cast());
        // SAFETY: the caller's block holds a struct of this release, with these fields.
        unsafe {
            raw.put(0, 1u32);
            raw.put(4, cpus);
            raw.put(8, cpus - 1);
            raw.put(12, cpus);
            raw.put(24, total / 4);
            raw.put(32, free / 4);
            raw.put(80, nodes);
        }
        0
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_get_cpu_topology(ctx: *mut c_void, count: *mut c_int) -> *mut c_void {
    let mut list = std::ptr::null_mut();
    simple(ctx, "libxl_get_cpu_topology", None, json!({}), true, |_| {
        let (cpus, nodes) = world(|w| (w.cpus, w.nodes));
        let of_a_node = cpus.div_ceil(nodes.max(1)).max(1);
        // SAFETY: an array of core, socket and node for each processor; an out pointer by the function's contract.
        unsafe {
            let block: *mut u32 = libc::calloc(cpus as usize, 12).cast();
            for n in 0..cpus {
                *block.add(n as usize * 3) = n;
                *block.add(n as usize * 3 + 2) = n / of_a_node;
            }
            *count = c_int::try_from(cpus).unwrap_or(0);
            list = block.cast();
        }
        0
    });
    list
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_cputopology_list_free(list: *mut c_void, _count: c_int) {
    // SAFETY: an array that `libxl_get_cpu_topology` made.
    unsafe { libc::free(list) };
}

// ---- small things

/// Into the directory of FAKE_LIBXL_LOGS, so that tests don't write to /var/log.
#[unsafe(no_mangle)]
pub extern "C" fn libxl_create_logfile(
    ctx: *mut c_void,
    name: *const c_char,
    full_name: *mut *mut c_char,
) -> c_int {
    // SAFETY: a string by the function's contract.
    let name = unsafe { abi::text(name) }.unwrap_or_default();
    simple(ctx, "libxl_create_logfile", None, json!({}), true, |_| {
        let directory =
            std::env::var("FAKE_LIBXL_LOGS").unwrap_or_else(|_| std::env::temp_dir().display().to_string());
        // SAFETY: an out pointer by the function's contract.
        unsafe { *full_name = abi::c_string(&format!("{directory}/{name}.log")) };
        0
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_read_file_contents(
    ctx: *mut c_void,
    path: *const c_char,
    data: *mut *mut c_void,
    length: *mut c_int,
) -> c_int {
    let Some(_held) = enter(ctx, "libxl_read_file_contents") else {
        return error::INVAL;
    };
    // SAFETY: a string by the function's contract.
    let path = unsafe { abi::text(path) }.unwrap_or_default();
    match std::fs::read(path) {
        Ok(bytes) => {
            // SAFETY: out pointers by the function's contract; the copy goes into a block of its size.
            unsafe {
                if !data.is_null() {
                    let block = libc::malloc(bytes.len().max(1));
                    libc::memcpy(block, bytes.as_ptr().cast(), bytes.len());
                    *data = block;
                }
                if !length.is_null() {
                    *length = c_int::try_from(bytes.len()).unwrap_or(0);
                }
            }
            0
        }
        // errno, not an error code of libxl's.
        Err(e) => e.raw_os_error().unwrap_or(libc::EIO),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_uuid_generate(uuid: *mut abi::Uuid) {
    let mut bytes = [0; 16];
    // SAFETY: fills a local of that size.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    let made = uuid::Builder::from_random_bytes(bytes).into_uuid();
    // SAFETY: an out pointer by the function's contract.
    unsafe { *uuid = abi::Uuid { bytes: made.into_bytes() } };
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_uuid_from_string(uuid: *mut abi::Uuid, text: *const c_char) -> c_int {
    // SAFETY: a string by the function's contract.
    let text = unsafe { abi::text(text) }.unwrap_or_default();
    match uuid::Uuid::parse_str(&text) {
        Ok(parsed) => {
            // SAFETY: an out pointer by the function's contract.
            unsafe { *uuid = abi::Uuid { bytes: parsed.into_bytes() } };
            0
        }
        Err(_) => -1,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_event_to_json(ctx: *mut c_void, event: *mut c_void) -> *mut c_char {
    let Some(_held) = enter(ctx, "libxl_event_to_json") else {
        return std::ptr::null_mut();
    };
    let raw = Raw(event.cast());
    // SAFETY: a live event.
    let (kind, domid, user) =
        unsafe { (raw.get::<i32>(event::TYPE), raw.get::<u32>(event::DOMID), raw.get::<u64>(event::FOR_USER)) };
    let kind = match kind {
        event::DOMAIN_SHUTDOWN => "domain_shutdown",
        event::DOMAIN_DEATH => "domain_death",
        event::DISK_EJECT => "disk_eject",
        event::OPERATION_COMPLETE => "operation_complete",
        _ => "domain_create_console_available",
    };
    let domid = (domid != INVALID_DOMID).then_some(domid);
    abi::c_string(&json!({"domid": domid, "for_user": user, "type": kind}).to_string())
}
