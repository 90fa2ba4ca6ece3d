//! Domain configurations as C sees them: a block whose inside is nobody's business.

use crate::abi::{self, AsyncopHow, Raw, error};
use crate::config;
use crate::fatal;
use crate::runtime::{End, FAKE, Parts, enter, locked, operation, refuse, release, simple, world};
use serde_json::{Value, json};
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::Ordering;

const INITIALISED: u64 = 0xc0ff_1c0d_e55e_d001;
const DISPOSED: u64 = 0xa5a5_a5a5_a5a5_a5a5;

/// The number that an initialised block holds; its configuration is kept under it.
fn number(block: *mut c_void, call: &str) -> Option<u64> {
    if block.is_null() {
        refuse(&format!("{call} of a NULL configuration"));
        return None;
    }
    let raw = Raw(block.cast());
    // SAFETY: libxl's struct is longer than these two words, so the caller's block is too.
    let (state, number): (u64, u64) = unsafe { (raw.get(0), raw.get(8)) };
    if state == INITIALISED && locked(&FAKE.configs).contains_key(&number) {
        return Some(number);
    }
    let what = if state == DISPOSED { "disposed" } else { "un-initialised" };
    refuse(&format!("{call} of a configuration that is {what}"));
    None
}

/// What is in a caller's block, and the number to ask later whether it is still there.
pub fn read(block: *mut c_void, call: &str) -> Option<(u64, Value)> {
    let number = number(block, call)?;
    let value = locked(&FAKE.configs).get(&number).cloned()?;
    Some((number, value))
}

/// Changes the configuration of an operation that ends; refuses if the caller has disposed of it meanwhile.
pub fn store(number: u64, value: Value, call: &str) {
    let gone = match locked(&FAKE.configs).get_mut(&number) {
        Some(place) => {
            *place = value;
            false
        }
        None => true,
    };
    if gone {
        refuse(&format!("{call}: the configuration was disposed of before the operation ended"));
    }
}

/// Refuses a configuration that ends the process.
pub fn expect_survival(why: Option<String>, call: &str) {
    if let Some(why) = why {
        refuse(&format!("{call} of a configuration that ends the process: {why}"));
    }
}

fn init(block: *mut c_void, value: Value) {
    let number = FAKE.next_config.fetch_add(1, Ordering::SeqCst);
    locked(&FAKE.configs).insert(number, value);
    let raw = Raw(block.cast());
    // SAFETY: as in `number`.
    unsafe {
        raw.put(0, INITIALISED);
        raw.put(8, number);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_config_init(block: *mut c_void) {
    if block.is_null() {
        return refuse("libxl_domain_config_init of NULL");
    }
    init(block, json!({}));
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_config_dispose(block: *mut c_void) {
    if let Some(number) = number(block, "libxl_domain_config_dispose") {
        locked(&FAKE.configs).remove(&number);
        // SAFETY: as in `number`.
        unsafe { Raw(block.cast()).put(0, DISPOSED) };
    }
}

/// Like libxl's, it fills `to` from scratch: what was in it is lost.
#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_config_copy(ctx: *mut c_void, to: *mut c_void, from: *const c_void) {
    let Some(_held) = enter(ctx, "libxl_domain_config_copy") else {
        return;
    };
    let target = number(to, "libxl_domain_config_copy (to)");
    if let (Some(target), Some((_, value))) = (target, read(from.cast_mut(), "libxl_domain_config_copy (from)")) {
        locked(&FAKE.configs).insert(target, value);
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_config_to_json(ctx: *mut c_void, block: *mut c_void) -> *mut c_char {
    let Some(_held) = enter(ctx, "libxl_domain_config_to_json") else {
        return std::ptr::null_mut();
    };
    match read(block, "libxl_domain_config_to_json") {
        Some((_, value)) => {
            expect_survival(fatal::writing(&value), "libxl_domain_config_to_json");
            abi::c_string(&config::print(&value, release().minor))
        }
        None => std::ptr::null_mut(),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_config_from_json(
    ctx: *mut c_void,
    block: *mut c_void,
    text: *const c_char,
) -> c_int {
    let name = "libxl_domain_config_from_json";
    let Some(number) = number(block, name) else {
        return error::INVAL;
    };
    if locked(&FAKE.configs).get(&number).is_some_and(|v| *v != json!({})) {
        refuse("libxl_domain_config_from_json into a configuration that is not fresh");
    }
    // SAFETY: a string by the function's contract.
    let text = unsafe { abi::text(text) }.unwrap_or_default();
    simple(ctx, name, None, json!({}), true, |ctx| match config::parse(&text) {
        Ok(value) => {
            locked(&FAKE.configs).insert(number, value);
            0
        }
        Err(config::Bad(why)) => {
            ctx.error(name, None, &format!("unable to parse domain configuration: {why}"));
            error::FAIL
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_retrieve_domain_configuration(
    ctx: *mut c_void,
    domid: u32,
    block: *mut c_void,
    how: *const AsyncopHow,
) -> c_int {
    let name = "libxl_retrieve_domain_configuration";
    let Some(number) = number(block, name) else {
        return error::INVAL;
    };
    operation(ctx, name, domid, None, how, json!({}), |_, _| {
        Ok(Parts {
            children: false,
            delay_ms: 0,
            io: None,
            until: None,
            finish: Box::new(move |end| match end {
                End::Natural => match current(domid) {
                    Ok(value) => {
                        store(number, value, name);
                        0
                    }
                    Err(rc) => rc,
                },
                End::Error(rc) => rc,
                End::Aborted => error::ABORTED,
            }),
        })
    })
}

/// The stored configuration of a domain, with what has changed since.
pub fn current(domid: u32) -> Result<Value, c_int> {
    world(|w| {
        let domain = w.domains.get(&domid).ok_or(error::LOCK_FAIL)?;
        // libxl does not tell one failure from another.
        let mut value = domain.config.clone().ok_or(error::FAIL)?;
        if let Some(name) = &domain.name {
            config::set(&mut value, "c_info", "name", Some(json!(name)));
            config::set(&mut value, "c_info", "uuid", Some(json!(domain.uuid)));
            config::set(&mut value, "b_info", "target_memkb", Some(json!(domain.target_kb)));
            config::set(&mut value, "b_info", "max_memkb", Some(json!(domain.max_kb)));
        }
        // Through libxl's own parser, as the stored file is.
        config::parse(&value.to_string()).map_err(|_| error::FAIL)
    })
}
