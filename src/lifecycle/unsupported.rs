//! Settings that are understood but not yet acted on. Where one of them would change what happens, nothing is done at
//! all rather than something else than asked for.

use crate::guest_config::auto::{self, AutoEntry};
use crate::guest_config::{PerGuest, XenHost};
use crate::settings::{RestoreFailed, Setting, Settings, ToolstackChoice};

/// What the settings are going to be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Starting guests.
    Start,
    /// Stopping guests.
    Stop,
    /// Looking at guests.
    Status,
}

/// The settings that would have to be acted on for this purpose, each as a message.
pub fn unsupported(settings: &Settings, purpose: Purpose) -> Vec<String> {
    let mut found = Vec::new();
    let mut refuse = |asked: bool, name: &str, value: &str, origin: &dyn std::fmt::Display| {
        if asked {
            found.push(format!("{origin}: XENDOMAINS_{name}{value} is not supported yet"));
        }
    };
    let Settings { toolstack, migrate, destroy, restore_failed, device_wait, .. } = settings;
    let command = matches!(toolstack.value, ToolstackChoice::Xl | ToolstackChoice::Xm);
    refuse(command, "TOOLSTACK", " other than `auto` or `libxl`", &toolstack.origin);
    match purpose {
        Purpose::Start => {
            let start = restore_failed.value == RestoreFailed::Start;
            refuse(start, "RESTORE_FAILED", "=start", &restore_failed.origin);
            refuse(!device_wait.value.is_zero(), "DEVICE_WAIT", " other than 0", &device_wait.origin);
        }
        Purpose::Stop => {
            let Setting { value, origin } = migrate;
            let somewhere = !value.as_encoded_bytes().trim_ascii().is_empty();
            refuse(somewhere, "MIGRATE", &format!("={}", value.to_string_lossy()), origin);
            refuse(destroy.value, "DESTROY", "=true", &destroy.origin);
        }
        Purpose::Status => {}
    }
    found
}

/// The guests of the AUTO directory whose files ask for something of their own, each as a message.
pub fn unsupported_in_auto(settings: &Settings, xen_host: &XenHost) -> Vec<String> {
    let Some(directory) = &settings.auto.value else { return Vec::new() };
    // That a file or the directory can't be read is reported by who needs it.
    let entries = auto::scan(directory, xen_host).unwrap_or_default();
    let asks = |entry: AutoEntry| match entry {
        AutoEntry::Guest(guest) if guest.per_guest != PerGuest::default() => {
            Some(format!("{}: the key `xendomains` is not supported yet", guest.path.display()))
        }
        _ => None,
    };
    entries.into_iter().filter_map(asks).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn each_is_refused_where_it_would_change_what_happens_and_only_there() {
        use Purpose::{Start, Status, Stop};
        for (text, refused) in [
            ("XENDOMAINS_MIGRATE=host", &[Stop][..]),
            ("XENDOMAINS_MIGRATE=' '", &[]),
            ("XENDOMAINS_DESTROY=true", &[Stop]),
            ("XENDOMAINS_DESTROY=false", &[]),
            ("XENDOMAINS_RESTORE_FAILED=start", &[Start]),
            ("XENDOMAINS_RESTORE_FAILED=keep", &[]),
            ("XENDOMAINS_DEVICE_WAIT=3", &[Start]),
            ("XENDOMAINS_DEVICE_WAIT=0", &[]),
            ("XENDOMAINS_TOOLSTACK=xl", &[Start, Stop, Status]),
            ("XENDOMAINS_TOOLSTACK=xm", &[Start, Stop, Status]),
            ("XENDOMAINS_TOOLSTACK=libxl", &[]),
            ("XENDOMAINS_MIGRATE_JOBS=7", &[]),
        ] {
            let settings = Settings::parse(Path::new("/s"), text.as_bytes()).expect("valid");
            for purpose in [Start, Stop, Status] {
                let messages = unsupported(&settings, purpose);
                assert_eq!(!messages.is_empty(), refused.contains(&purpose), "{text} {purpose:?}");
                let name = text.split('=').next().unwrap_or_default();
                assert!(messages.iter().all(|m| m.starts_with("/s:1: ") && m.contains(name)), "{messages:?}");
            }
        }
        assert_eq!(unsupported(&Settings::defaults(), Start), Vec::<String>::new());
        assert_eq!(unsupported(&Settings::defaults(), Stop), Vec::<String>::new());
    }
}
