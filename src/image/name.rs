//! Names of files in the directory of images.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::hash;
use crate::guest_config::auto::leftover;

/// Longer encoded names are cut, so that a prefix and a suffix still fit the 255 bytes of a file name.
const LENGTH_LIMIT: usize = 200;

/// The end of the name of an image that is being written.
pub(super) const SAVING: &str = ".saving";
/// The end of the name of an image whose guest has been restored.
pub(super) const RESTORED: &str = ".restored";
/// The end of the name of a record.
pub(super) const RECORD: &str = ".record";
/// The end of the name of a record that is being written.
pub(super) const RECORDING: &str = ".recording";

/// The file name for a guest's image.
///
/// Ordinary names stay as they are: ASCII letters, digits and `- _ . + @ : = ,`. All other bytes become `%XX`, and so does
/// the one byte that makes a name special: a leading dot, the dot before a suffix like `.bak`, the `+` of
/// `lost+found`. Two guests never share a file name, except that overlong names are cut and told apart by a hash;
/// saving checks whose an existing file is.
pub fn encode_name(guest: &str) -> OsString {
    let mut encoded = String::with_capacity(guest.len());
    for byte in guest.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => encoded.push(char::from(byte)),
            b'-' | b'_' | b'.' | b'+' | b'@' | b':' | b'=' | b',' => encoded.push(char::from(byte)),
            _ => push_escape(&mut encoded, byte),
        }
    }
    let special = if encoded.starts_with('.') {
        Some(0)
    } else if encoded == "lost+found" {
        encoded.find('+')
    } else if leftover(OsStr::new(&encoded)).is_some() {
        encoded.rfind('.')
    } else {
        None
    };
    if let Some(at) = special {
        let mut escape = String::new();
        push_escape(&mut escape, encoded.as_bytes()[at]);
        encoded.replace_range(at..=at, &escape);
    }
    if encoded.is_empty() {
        // Not an escape, so it is no other guest's name.
        encoded.push('%');
    }
    if encoded.len() > LENGTH_LIMIT {
        // `%~` is not an escape either.
        encoded.truncate(LENGTH_LIMIT - 34);
        encoded.push_str(&format!("%~{:032x}", hash::of(guest.as_bytes())));
    }
    encoded.into()
}

/// The beginning of the name of a file about a guest. A UUID alone does not do: somebody may have copied a guest's file and
/// changed nothing but the name and the disks.
pub fn guest_key(uuid: Uuid, name: &str) -> String {
    format!("{uuid}.{}", encode_name(name).to_string_lossy())
}

fn push_escape(text: &mut String, byte: u8) {
    text.push_str(&format!("%{byte:02X}"));
}

/// A hidden name beside `name` that nobody else has.
pub(super) fn hidden(name: &OsStr, suffix: &str) -> OsString {
    let name = name.as_bytes();
    let mut hidden = b".".to_vec();
    hidden.extend(&name[..name.len().min(LENGTH_LIMIT)]);
    let random = uuid::Uuid::new_v4().simple().to_string();
    hidden.extend(format!(".{}{suffix}", &random[..12]).into_bytes());
    OsString::from_vec(hidden)
}

/// Whether it is a name that [`hidden`] makes with this suffix.
pub(super) fn is_hidden(name: &OsStr, suffix: &str) -> bool {
    stem(name, suffix).is_some()
}

/// Beside which name it is, if it is a name that [`hidden`] makes with this suffix.
pub(super) fn stem<'a>(name: &'a OsStr, suffix: &str) -> Option<&'a OsStr> {
    let rest = name.as_bytes().strip_prefix(b".")?.strip_suffix(suffix.as_bytes())?;
    let (stem, random) = rest.split_at(rest.len().checked_sub(13)?);
    let is_it = !stem.is_empty() && random[0] == b'.' && random[1..].iter().all(u8::is_ascii_hexdigit);
    is_it.then(|| OsStr::from_bytes(stem))
}

/// The file whose hidden name has another suffix in the place of this one.
pub(super) fn sibling(path: &Path, old: &str, new: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().as_bytes();
    let mut other = name.strip_suffix(old.as_bytes()).unwrap_or(name).to_vec();
    other.extend(new.as_bytes());
    path.with_file_name(OsString::from_vec(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(guest: &str) -> String {
        encode_name(guest).into_string().unwrap()
    }

    /// The guest of a file name that was not cut.
    fn decode(file: &str) -> Option<String> {
        if file == "%" {
            return Some(String::new());
        }
        let mut bytes = Vec::new();
        let mut rest = file.as_bytes();
        while let Some((&first, more)) = rest.split_first() {
            if first == b'%' {
                bytes.push(u8::from_str_radix(std::str::from_utf8(more.get(..2)?).ok()?, 16).ok()?);
                rest = &more[2..];
            } else {
                bytes.push(first);
                rest = more;
            }
        }
        String::from_utf8(bytes).ok()
    }

    #[test]
    fn plain_names_stay_plain() {
        for name in
            ["web", "web-1.example.org", "DB_02", "a+b@c:d=e,f", "rpm", "web.cfg", "bak", "web.old", "x.dpkg"]
        {
            assert_eq!(encoded(name), name);
        }
    }

    #[test]
    fn odd_names() {
        for (name, expected) in [
            ("my guest", "my%20guest"),
            ("a/b", "a%2Fb"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            (".", "%2E"),
            ("..", "%2E."),
            (".hidden", "%2Ehidden"),
            ("100%", "100%25"),
            ("a\nb\0", "a%0Ab%00"),
            ("ä", "%C3%A4"),
            ("web~", "web%7E"),
            ("web.bak", "web%2Ebak"),
            ("web.v2.orig", "web.v2%2Eorig"),
            ("web.dpkg-old", "web%2Edpkg-old"),
            ("web.rpmsave", "web%2Erpmsave"),
            ("lost+found", "lost%2Bfound"),
            (".web.0123456789ab.saving", "%2Eweb.0123456789ab.saving"),
            ("", "%"),
        ] {
            assert_eq!(encoded(name), expected);
            assert_eq!(decode(expected).as_deref(), Some(name));
        }
    }

    #[test]
    fn long_names_are_told_apart() {
        let (a, b) = (encoded(&format!("{}a", "x".repeat(300))), encoded(&format!("{}b", "x".repeat(300))));
        assert_ne!(a, b);
        assert_eq!((a.len(), b.len()), (LENGTH_LIMIT, LENGTH_LIMIT));
        assert_eq!(encoded(&"x".repeat(200)), "x".repeat(200));
        assert!(hidden(OsStr::new(&a), RESTORED).len() <= 255);
        assert!(hidden(OsStr::new(&"y".repeat(255)), RESTORED).len() <= 255);
    }

    #[test]
    fn hidden_names_are_recognised() {
        let name = hidden(OsStr::new("web"), SAVING);
        assert!(is_hidden(&name, SAVING) && !is_hidden(&name, RESTORED));
        assert_ne!(hidden(OsStr::new("web"), SAVING), name);
        let record = sibling(&Path::new("/save").join(&name), SAVING, RECORD);
        assert_eq!(stem(record.file_name().unwrap(), RECORD), Some(OsStr::new("web")));
        assert_eq!(sibling(&record, RECORD, SAVING), Path::new("/save").join(&name));
        for other in [
            "web",
            ".saving",
            "..saving",
            ".web.saving",
            ".web.0123456789ag.saving",
            ".0123456789ab.saving",
            ".web.0123456789ab.savingx",
        ] {
            assert!(!is_hidden(OsStr::new(other), SAVING), "{other}");
        }
    }

    proptest! {
        #[test]
        fn names_are_safe_and_decodable(name in any::<String>()) {
            let file = encode_name(&name);
            prop_assert!(file.len() <= LENGTH_LIMIT && !file.is_empty());
            prop_assert!(!file.as_bytes().contains(&b'/') && !file.as_bytes().starts_with(b"."));
            prop_assert!(file.is_ascii() && leftover(&file).is_none() && file != "lost+found");
            if name.len() * 3 <= LENGTH_LIMIT {
                prop_assert_eq!(decode(file.to_str().unwrap()), Some(name));
            }
        }

        #[test]
        fn different_names_have_different_files(a in "[a-z%.~+/ ]{0,6}", b in "[a-z%.~+/ ]{0,6}") {
            prop_assert_eq!(encode_name(&a) == encode_name(&b), a == b);
        }
    }
}
