//! Events, the event loop, aborting.

use crate::abi::{AsyncopHow, Raw, disk, error, event};
use crate::runtime::{FAKE, enter, locked, refuse, simple};
use serde_json::json;
use std::ffi::{c_char, c_int, c_short, c_void};

type Predicate = unsafe extern "C" fn(event: *const c_void, user: *mut c_void) -> c_int;

#[unsafe(no_mangle)]
pub extern "C" fn libxl_event_register_callbacks(ctx: *mut c_void, hooks: *const c_void, user: *mut c_void) {
    if let Some(held) = enter(ctx, "libxl_event_register_callbacks") {
        held.set_event_hooks(hooks as usize, user as usize);
    }
}

/// The first queued event that the caller wants.
fn take(ctx: &crate::runtime::Ctx, mask: u64, predicate: Option<Predicate>, user: *mut c_void) -> Option<usize> {
    let queued: Vec<usize> = locked(&ctx.inner).queue.iter().copied().collect();
    for event in queued {
        // SAFETY: queued events are live blocks with a type.
        let kind: i32 = unsafe { Raw(event as *mut u8).get(event::TYPE) };
        let wanted = mask & (1 << kind) != 0
            // SAFETY: the caller's predicate on a live event.
            && predicate.is_none_or(|p| unsafe { p(event as *const c_void, user) } != 0);
        if wanted {
            let mut inner = locked(&ctx.inner);
            if let Some(at) = inner.queue.iter().position(|&e| e == event) {
                inner.queue.remove(at);
                return Some(event);
            }
        }
    }
    None
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_event_check(
    ctx: *mut c_void,
    out: *mut *mut c_void,
    mask: u64,
    predicate: Option<Predicate>,
    user: *mut c_void,
) -> c_int {
    let Some(held) = enter(ctx, "libxl_event_check") else {
        return error::INVAL;
    };
    match take(&held, mask, predicate, user) {
        Some(event) => {
            // SAFETY: an out pointer by the function's contract.
            unsafe { *out = event as *mut c_void };
            0
        }
        None => error::NOT_READY,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_event_wait(
    ctx: *mut c_void,
    out: *mut *mut c_void,
    mask: u64,
    predicate: Option<Predicate>,
    user: *mut c_void,
) -> c_int {
    let Some(held) = enter(ctx, "libxl_event_wait") else {
        return error::INVAL;
    };
    let ctx = held.clone();
    drop(held);
    let found = std::cell::Cell::new(None);
    ctx.run_until(|| {
        let held = ctx.clone().hold();
        found.set(take(&held, mask, predicate, user));
        found.get().is_some()
    });
    if let Some(event) = found.get() {
        // SAFETY: an out pointer by the function's contract.
        unsafe { *out = event as *mut c_void };
    }
    0
}

/// Frees an event that this library made.
pub fn free_event(event: *mut c_void) {
    if !locked(&FAKE.events_alive).remove(&(event as usize)) {
        return refuse("libxl_event_free of something that is no event, or not any more");
    }
    let raw = Raw(event.cast());
    // SAFETY: a live event of ours; its strings were made by strdup and nobody else frees them.
    unsafe {
        if raw.get::<i32>(event::TYPE) == event::DISK_EJECT {
            libc::free(raw.get(event::UNION));
            libc::free(raw.get(event::EJECT_DISK + disk::PDEV_PATH));
            libc::free(raw.get(event::EJECT_DISK + disk::VDEV));
        }
        libc::free(event);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_event_free(ctx: *mut c_void, event: *mut c_void) {
    if let Some(_held) = enter(ctx, "libxl_event_free") {
        free_event(event);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_evenable_domain_death(
    ctx: *mut c_void,
    domid: u32,
    user: u64,
    out: *mut *mut c_void,
) -> c_int {
    simple(ctx, "libxl_evenable_domain_death", Some(domid), json!({}), false, |ctx| {
        // SAFETY: an out pointer by the function's contract.
        unsafe { *out = ctx.enable(domid, user, None) as *mut c_void };
        0
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_evdisable_domain_death(ctx: *mut c_void, generator: *mut c_void) {
    if let Some(held) = enter(ctx, "libxl_evdisable_domain_death") {
        held.disable(generator as usize, false);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_evenable_disk_eject(
    ctx: *mut c_void,
    domid: u32,
    vdev: *const c_char,
    user: u64,
    out: *mut *mut c_void,
) -> c_int {
    // SAFETY: a string by the function's contract.
    let vdev = unsafe { crate::abi::text(vdev) }.unwrap_or_default();
    let args = json!({"vdev": vdev});
    simple(ctx, "libxl_evenable_disk_eject", Some(domid), args, false, |ctx| {
        // SAFETY: an out pointer by the function's contract.
        unsafe { *out = ctx.enable(domid, user, Some(vdev)) as *mut c_void };
        0
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_evdisable_disk_eject(ctx: *mut c_void, generator: *mut c_void) {
    if let Some(held) = enter(ctx, "libxl_evdisable_disk_eject") {
        held.disable(generator as usize, true);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_ao_abort(ctx: *mut c_void, how: *const AsyncopHow) -> c_int {
    let Some(held) = enter(ctx, "libxl_ao_abort") else {
        return error::INVAL;
    };
    // SAFETY: NULL or the caller's struct.
    held.abort(unsafe { how.as_ref() }.copied())
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_osevent_register_hooks(ctx: *mut c_void, hooks: *const c_void, user: *mut c_void) {
    if let Some(held) = enter(ctx, "libxl_osevent_register_hooks") {
        held.set_os_hooks(hooks as usize, user as usize);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_osevent_occurred_fd(
    ctx: *mut c_void,
    _for_libxl: *mut c_void,
    _fd: c_int,
    _events: c_short,
    _revents: c_short,
) {
    if let Some(ctx) = crate::runtime::context(ctx, "libxl_osevent_occurred_fd") {
        ctx.os_occurred();
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_osevent_occurred_timeout(ctx: *mut c_void, _for_libxl: *mut c_void) {
    if let Some(ctx) = crate::runtime::context(ctx, "libxl_osevent_occurred_timeout") {
        ctx.os_occurred();
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_osevent_beforepoll(
    ctx: *mut c_void,
    nfds: *mut c_int,
    fds: *mut libc::pollfd,
    timeout: *mut c_int,
    _now: libc::timeval,
) -> c_int {
    let Some(held) = enter(ctx, "libxl_osevent_beforepoll") else {
        return error::INVAL;
    };
    // SAFETY: in and out pointers by the function's contract; `fds` has as many elements as `nfds` says.
    let (slots, timeout) = unsafe {
        let n = usize::try_from(*nfds).unwrap_or(0);
        let slots = if n == 0 { &mut [][..] } else { std::slice::from_raw_parts_mut(fds, n) };
        (slots, &mut *timeout)
    };
    let (n, rc) = match held.before_poll(slots, timeout) {
        Ok(n) => (n, 0),
        Err(n) => (n, error::BUFFERFULL),
    };
    // SAFETY: as above.
    unsafe { *nfds = c_int::try_from(n).unwrap_or(c_int::MAX) };
    rc
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_osevent_afterpoll(
    ctx: *mut c_void,
    nfds: c_int,
    fds: *const libc::pollfd,
    _now: libc::timeval,
) {
    let Some(held) = enter(ctx, "libxl_osevent_afterpoll") else {
        return;
    };
    let n = usize::try_from(nfds).unwrap_or(0);
    // SAFETY: an array of so many elements by the function's contract.
    let fds = if n == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(fds, n) } };
    held.after_poll(fds);
}
