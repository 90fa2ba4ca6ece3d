//! What the fuzz targets have in common.
//!
//! Each target in `src/bin` is a program that libFuzzer feeds with inputs: `cargo xtask test` builds them with its
//! instrumentation (which stable Rust can do) and runs each for a minute. A target fails on a panic, on an input that
//! takes more than a few seconds, on too much memory, and where an answer contradicts itself.

pub mod json;

use std::path::Path;

use xendomains::guest_config::{Error, GuestConfig, KNOWN, XenHost};

/// Reads the text of a guest's file and checks what must be true of every answer.
pub fn read_guest(text: &[u8], host: &XenHost) {
    let lines = 1 + text.iter().filter(|&&byte| byte == b'\n').count();
    let line = match GuestConfig::parse(Path::new("guest.cfg"), text, host) {
        Ok(guest) => {
            assert!(!guest.name.is_empty(), "a guest without a name");
            assert_eq!(guest.json["c_info"]["name"], guest.name.as_str());
            // What can't be written can't be given to libxl either.
            let printed = guest.json.to_string();
            let again: serde_json::Value = serde_json::from_str(&printed).expect("our JSON reads back");
            assert_eq!(again, guest.json);
            return;
        }
        Err(Error::Syntax { line, column, .. }) => {
            assert!(column > 0);
            line
        }
        Err(Error::Key { line, key, message, .. }) => {
            assert!(!key.is_empty() && !message.is_empty());
            line
        }
        Err(Error::Missing { key, .. }) => {
            assert!(!key.is_empty());
            return;
        }
        Err(other) => panic!("no file was read, and yet: {other}"),
    };
    assert!(line > 0 && line as usize <= lines, "line {line} of {lines}");
}

/// The host that the first byte of an input stands for, and the rest of the input.
pub fn host(input: &[u8]) -> Option<(XenHost, &[u8])> {
    let (first, rest) = input.split_first()?;
    let releases = KNOWN.end() - KNOWN.start() + 1;
    Some((XenHost { release: KNOWN.start() + u32::from(*first) % releases, ..XenHost::default() }, rest))
}

/// The text of a guest's file in which `key` is a list of this one item.
pub fn with_item(key: &str, item: &[u8]) -> Vec<u8> {
    let mut text = b"name = 'g'\nkernel = '/k'\n".to_vec();
    text.extend(key.as_bytes());
    text.extend(b" = [ \"");
    for &byte in item {
        match byte {
            b'"' | b'\\' => text.extend([b'\\', byte]),
            b'\n' => text.extend(b"\\n"),
            _ => text.push(byte),
        }
    }
    text.extend(b"\" ]\n");
    text
}
