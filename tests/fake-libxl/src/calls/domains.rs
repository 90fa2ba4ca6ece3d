//! Looking at domains.

use crate::abi::{self, Raw, dominfo, error};
use crate::runtime::{enter, refuse, release, simple, world};
use crate::world::Domain;
use serde_json::json;
use std::ffi::{c_char, c_int, c_void};

fn uuid_bytes(text: &str) -> [u8; 16] {
    uuid::Uuid::parse_str(text).unwrap_or_default().into_bytes()
}

/// # Safety
/// `to` must hold a `libxl_dominfo` of this release.
unsafe fn fill(to: Raw, d: &Domain) {
    // Only the HVM flag is known to the hypervisor, and PVH guests have it too.
    let kind = if d.kind == "pv" { 2i32 } else { 1 };
    // SAFETY: the caller's promise.
    unsafe {
        to.put(dominfo::UUID, uuid_bytes(&d.uuid));
        to.put(dominfo::DOMID, d.domid);
        let label = d.ssid_label.as_deref().map_or(std::ptr::null_mut(), abi::c_string);
        to.put(dominfo::SSID_LABEL, label);
        to.put(dominfo::RUNNING, d.live() && d.domid == 0);
        to.put(dominfo::BLOCKED, d.live() && d.domid != 0);
        to.put(dominfo::PAUSED, d.paused);
        to.put(dominfo::SHUTDOWN, d.shutdown.is_some());
        to.put(dominfo::DYING, d.dying);
        to.put(dominfo::NEVER_STOP, d.never_stop);
        to.put(dominfo::SHUTDOWN_REASON, d.shutdown.unwrap_or(-1));
        to.put(dominfo::CURRENT_MEMKB, d.memory_kb);
        to.put(dominfo::MAX_MEMKB, d.max_kb);
        to.put(dominfo::CPU_TIME, d.cpu_time_ns);
        to.put(dominfo::VCPU_MAX_ID, d.vcpus.saturating_sub(1));
        to.put(dominfo::VCPU_ONLINE, d.vcpus);
        to.put(release().domain_type_offset(), kind);
    }
}

fn wipe(block: *mut c_void, size: usize) {
    // SAFETY: by the contract of the function that this is for, the caller's block holds a whole struct.
    unsafe { libc::memset(block, 0, size) };
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_dominfo_init(info: *mut c_void) {
    wipe(info, release().dominfo_size());
    // SAFETY: as in `wipe`.
    unsafe {
        Raw(info.cast()).put(dominfo::SHUTDOWN_REASON, -1i32);
        Raw(info.cast()).put(release().domain_type_offset(), -1i32);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_dominfo_dispose(info: *mut c_void) {
    // SAFETY: an initialised struct; its label is NULL or malloc'ed.
    unsafe { libc::free(Raw(info.cast()).get(dominfo::SSID_LABEL)) };
    wipe(info, release().dominfo_size());
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_dominfo_to_json(ctx: *mut c_void, info: *mut c_void) -> *mut c_char {
    let Some(_held) = enter(ctx, "libxl_dominfo_to_json") else {
        return std::ptr::null_mut();
    };
    let raw = Raw(info.cast());
    // SAFETY: an initialised struct.
    let value = unsafe {
        json!({
            "uuid": uuid::Uuid::from_bytes(raw.get(dominfo::UUID)).to_string(),
            "domid": raw.get::<u32>(dominfo::DOMID),
            "paused": raw.get::<u8>(dominfo::PAUSED) != 0,
            "shutdown": raw.get::<u8>(dominfo::SHUTDOWN) != 0,
            "dying": raw.get::<u8>(dominfo::DYING) != 0,
        })
    };
    abi::c_string(&value.to_string())
}

/// calloc for an array that the caller frees.
fn array(n: usize, size: usize) -> *mut c_void {
    // SAFETY: takes numbers; never asked for nothing, which could answer NULL.
    unsafe { libc::calloc(n.max(1), size) }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_list_domain(ctx: *mut c_void, count: *mut c_int) -> *mut c_void {
    let mut list = std::ptr::null_mut();
    simple(ctx, "libxl_list_domain", None, json!({}), true, |_| {
        let domains: Vec<Domain> = world(|w| w.domains.values().cloned().collect());
        let stride = release().dominfo_size();
        list = array(domains.len(), stride);
        for (n, domain) in domains.iter().enumerate() {
            // SAFETY: the array has room for so many structs.
            unsafe { fill(Raw(list.cast::<u8>().add(n * stride)), domain) };
        }
        // SAFETY: an out pointer by the function's contract.
        unsafe { *count = c_int::try_from(domains.len()).unwrap_or(0) };
        0
    });
    list
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_dominfo_list_free(list: *mut c_void, count: c_int) {
    if list.is_null() && count > 0 {
        return refuse("libxl_dominfo_list_free of a NULL list that has elements");
    }
    let stride = release().dominfo_size();
    for n in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: an array that `libxl_list_domain` made, with its length.
        libxl_dominfo_dispose(unsafe { list.cast::<u8>().add(n * stride) }.cast());
    }
    // SAFETY: as above.
    unsafe { libc::free(list) };
}

const VMINFO_SIZE: usize = 20;

#[unsafe(no_mangle)]
pub extern "C" fn libxl_list_vm(ctx: *mut c_void, count: *mut c_int) -> *mut c_void {
    let mut list = std::ptr::null_mut();
    simple(ctx, "libxl_list_vm", None, json!({}), true, |_| {
        let domains: Vec<Domain> =
            world(|w| w.domains.values().filter(|d| d.stubdom_of.is_none()).cloned().collect());
        list = array(domains.len(), VMINFO_SIZE);
        for (n, domain) in domains.iter().enumerate() {
            // SAFETY: the array has room for so many structs.
            unsafe {
                let element = Raw(list.cast::<u8>().add(n * VMINFO_SIZE));
                element.put(0, uuid_bytes(&domain.uuid));
                element.put(16, domain.domid);
            }
        }
        // SAFETY: an out pointer by the function's contract.
        unsafe { *count = c_int::try_from(domains.len()).unwrap_or(0) };
        0
    });
    list
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_vminfo_list_free(list: *mut c_void, _count: c_int) {
    // SAFETY: an array that `libxl_list_vm` made.
    unsafe { libc::free(list) };
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_info(ctx: *mut c_void, info: *mut c_void, domid: u32) -> c_int {
    simple(ctx, "libxl_domain_info", Some(domid), json!({}), true, |ctx| {
        match world(|w| w.domains.get(&domid).cloned()) {
            Some(domain) => {
                if !info.is_null() {
                    // SAFETY: the caller's block, which holds a struct of this release.
                    unsafe { fill(Raw(info.cast()), &domain) };
                }
                0
            }
            None => {
                if release().minor >= 18 {
                    ctx.error("libxl_domain_info", Some(domid), "Getting domain info failed");
                }
                error::DOMAIN_NOTFOUND
            }
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domid_to_name(ctx: *mut c_void, domid: u32) -> *mut c_char {
    let mut name = std::ptr::null_mut();
    simple(ctx, "libxl_domid_to_name", Some(domid), json!({}), true, |_| {
        name = world(|w| w.name(domid)).map_or(std::ptr::null_mut(), |n| abi::c_string(&n));
        0
    });
    name
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_name_to_domid(ctx: *mut c_void, name: *const c_char, domid: *mut u32) -> c_int {
    // SAFETY: a string by the function's contract.
    let name = unsafe { abi::text(name) }.unwrap_or_default();
    simple(ctx, "libxl_name_to_domid", None, json!({}), true, |_| {
        match world(|w| w.by_name(&name)) {
            Some(found) => {
                // SAFETY: an out pointer by the function's contract.
                unsafe { *domid = found };
                0
            }
            None => error::INVAL,
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_qualifier_to_domid(
    ctx: *mut c_void,
    name: *const c_char,
    domid: *mut u32,
) -> c_int {
    // SAFETY: a string by the function's contract.
    let text = unsafe { abi::text(name) }.unwrap_or_default();
    if text.bytes().all(|b| b.is_ascii_digit()) {
        // SAFETY: an out pointer by the function's contract.
        unsafe { *domid = text.parse().unwrap_or(0) };
        return 0;
    }
    libxl_name_to_domid(ctx, name, domid)
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_is_stubdom(ctx: *mut c_void, domid: u32, target: *mut u32) -> c_int {
    let Some(_held) = enter(ctx, "libxl_is_stubdom") else {
        return 0;
    };
    match world(|w| w.domains.get(&domid).and_then(|d| d.stubdom_of)) {
        Some(of) => {
            if !target.is_null() {
                // SAFETY: an out pointer by the function's contract.
                unsafe { *target = of };
            }
            1
        }
        None => 0,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_get_stubdom_id(ctx: *mut c_void, guest: c_int) -> c_int {
    let Some(_held) = enter(ctx, "libxl_get_stubdom_id") else {
        return 0;
    };
    let guest = u32::try_from(guest).ok();
    let found = world(|w| w.domains.values().find(|d| guest.is_some() && d.stubdom_of == guest).map(|d| d.domid));
    found.and_then(|d| c_int::try_from(d).ok()).unwrap_or(0)
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_vm_get_start_time(ctx: *mut c_void, domid: u32) -> u32 {
    let Some(_held) = enter(ctx, "libxl_vm_get_start_time") else {
        return u32::MAX;
    };
    world(|w| w.domains.get(&domid).map(|d| d.start_time)).and_then(|t| u32::try_from(t).ok()).unwrap_or(u32::MAX)
}
