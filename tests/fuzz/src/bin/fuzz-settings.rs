//! Settings files, and xl.conf.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use xendomains::guest_config::XlConf;
use xendomains::settings::{Error, Settings};

fuzz_target!(|text: &[u8]| {
    let lines = 1 + text.iter().filter(|&&byte| byte == b'\n').count();
    match Settings::parse(Path::new("settings"), text) {
        Ok(settings) => {
            let again = Settings::parse(Path::new("settings"), text).expect("it was valid a moment ago");
            assert_eq!(again, settings);
        }
        Err(Error::Invalid { line, message, .. }) => {
            assert!(line > 0 && line as usize <= lines, "line {line} of {lines}");
            assert!(!message.is_empty());
        }
        Err(other) => panic!("no file was read, and yet: {other}"),
    }
    let _ = XlConf::parse(Path::new("xl.conf"), text);
});
