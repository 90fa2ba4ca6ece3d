//! Configurations, given to the real libxl of a release: whatever is in them, it may refuse them but neither end the
//! process nor keep memory. `RELEASE` in the environment says which; `xtask` runs this with that release's libraries.
#![no_main]

use std::path::Path;
use std::str;
use std::sync::LazyLock;

use fuzz_targets::json::{Random, change};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use xendomains::guest_config::{GuestConfig, XenHost};
use xenlight::{Cause, Children, Context, DomainConfig, Library, Release};

/// How often an input is given again that seems to have left memory behind.
const AGAIN: usize = 4;

static MINOR: LazyLock<u32> = LazyLock::new(|| {
    let release = std::env::var("RELEASE").expect("RELEASE is set, like 4.17");
    release.strip_prefix("4.").and_then(|minor| minor.parse().ok()).expect("RELEASE is like 4.17")
});

static LIBRARY: LazyLock<Library> =
    LazyLock::new(|| Library::open(Release::new(4, *MINOR)).expect("the release's libxl"));

/// Reads an input: libxl's JSON, or a guest's file, of which the corpus begins with many.
fn configuration(input: &[u8]) -> Option<DomainConfig> {
    if let Some(config) = str::from_utf8(input).ok().and_then(|text| DomainConfig::from_text(text).ok()) {
        return Some(config);
    }
    let host = XenHost { release: *MINOR, ..XenHost::default() };
    let guest = GuestConfig::parse(Path::new("guest.cfg"), input, &host).ok()?;
    DomainConfig::from_json(guest.json).ok()
}

/// Has libxl read and write a configuration, and fill in what is missing. The context is its own, which keeps log lines.
fn give(config: &DomainConfig) {
    let context = Context::open(&LIBRARY, Children::Application, None).expect("a hypervisor that is stood in for");
    if let Err(error) = config.check(&context) {
        if let Cause::BadConfig(why) = error.cause() {
            assert!(why.starts_with('/') || why.starts_with("it is "), "it does not say where: {why}");
        }
        return;
    }
    // Refused or not: it has come back.
    let _ = context.needed_memory_kib(config);
}

/// Bytes that are allocated now.
fn allocated() -> usize {
    // SAFETY: it has no arguments, and only looks.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

fuzz_target!(|input: &[u8]| {
    let Some(config) = configuration(input) else { return };
    let before = allocated();
    give(&config);
    if allocated() > before {
        let growth: [usize; AGAIN] = std::array::from_fn(|_| {
            let before = allocated();
            give(&config);
            allocated().saturating_sub(before)
        });
        assert!(growth.contains(&0), "each time it is read, {growth:?} bytes are left behind");
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 8 != 0 {
        if let Some(config) = configuration(&data[..size]) {
            let mut json = config.into_json();
            change(&mut json, &mut Random::new(seed));
            let text = json.to_string();
            if text.len() <= max_size {
                data[..text.len()].copy_from_slice(text.as_bytes());
                return text.len();
            }
        }
    }
    fuzzer_mutate(data, size, max_size)
});
