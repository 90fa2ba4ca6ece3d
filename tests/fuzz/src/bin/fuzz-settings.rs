//! Settings files, and xl.conf.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use xendomains::guest_config::XlConf;
use xendomains::settings::{Settings, shell};

fuzz_target!(|text: &[u8]| {
    let lines = 1 + text.iter().filter(|&&byte| byte == b'\n').count();
    for error in shell::parse(text).errors {
        assert!(error.line > 0 && error.line as usize <= lines, "line {} of {lines}", error.line);
        assert!(!error.message.is_empty());
    }
    let settings = Settings::parse(Path::new("settings"), text);
    assert_eq!(Settings::parse(Path::new("settings"), text), settings);
    let _ = XlConf::parse(Path::new("xl.conf"), text);
});
