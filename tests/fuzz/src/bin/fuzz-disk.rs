//! Items of `disk = [ … ]`.
#![no_main]

use fuzz_targets::{host, read_guest, with_item};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Some((host, item)) = host(input) {
        read_guest(&with_item("disk", item), &host);
    }
});
