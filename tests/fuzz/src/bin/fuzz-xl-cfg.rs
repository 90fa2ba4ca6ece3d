//! Whole guest configuration files.
#![no_main]

use fuzz_targets::{host, read_guest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // A file of the corpus is read as it is, too.
    read_guest(input, &xendomains::guest_config::XenHost::default());
    if let Some((host, text)) = host(input) {
        read_guest(text, &host);
    }
});
