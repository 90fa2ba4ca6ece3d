//! The control interface: what tests call in the same copy of the library, through [`crate::Control`].
//!
//! Each takes JSON text and returns NULL or a malloc'ed message that says what was wrong.

use crate::abi::{c_string, text};
use crate::runtime::{self, FAKE, locked, world};
use serde_json::{Value, json};
use std::ffi::c_char;

fn with_json(given: *const c_char, f: impl FnOnce(&Value) -> Result<(), String>) -> *mut c_char {
    // SAFETY: a string by these functions' contract.
    let given = unsafe { text(given) }.unwrap_or_default();
    let result = serde_json::from_str::<Value>(&given).map_err(|e| format!("{given}: {e}")).and_then(|v| f(&v));
    result.err().map_or(std::ptr::null_mut(), |e| c_string(&e))
}

/// Adds rules.
#[unsafe(no_mangle)]
pub extern "C" fn fake_script(given: *const c_char) -> *mut c_char {
    with_json(given, |v| locked(&FAKE.script).add(v))
}

/// Adds domains and sets the host's values.
#[unsafe(no_mangle)]
pub extern "C" fn fake_host(given: *const c_char) -> *mut c_char {
    with_json(given, |v| {
        let result = world(|w| w.set_up(v));
        runtime::each_context(|ctx| ctx.look_soon());
        result
    })
}

/// A guest does something now.
#[unsafe(no_mangle)]
pub extern "C" fn fake_guest(given: *const c_char) -> *mut c_char {
    with_json(given, |v| world(|w| w.guest(v)))
}

/// Ends operations that are still waiting: `{"call": …, "domid": … or null, "error": … or null}`.
#[unsafe(no_mangle)]
pub extern "C" fn fake_finish(given: *const c_char) -> *mut c_char {
    with_json(given, |v| {
        let call = v["call"].as_str().ok_or("which call?")?;
        let domid = v["domid"].as_u64().and_then(|d| u32::try_from(d).ok());
        let error = v["error"].as_i64().and_then(|e| i32::try_from(e).ok());
        let mut n = 0;
        runtime::each_context(|ctx| n += ctx.finish_now(call, domid, error));
        if n == 0 { Err(format!("no {call} in progress")) } else { Ok(()) }
    })
}

/// Forgets rules, the host, and what has been counted.
#[unsafe(no_mangle)]
pub extern "C" fn fake_reset() {
    runtime::reset();
}

/// Everything there is to know, as malloc'ed JSON.
#[unsafe(no_mangle)]
pub extern "C" fn fake_state() -> *mut c_char {
    let mut state = runtime::state();
    state["release"] = json!(format!("{}.{}", runtime::release().major, runtime::release().minor));
    c_string(&state.to_string())
}
