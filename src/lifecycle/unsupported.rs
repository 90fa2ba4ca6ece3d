//! Settings that are understood but not yet acted on. Where one of them would change what happens, nothing is done at
//! all rather than something else than asked for.

use crate::settings::{Setting, Settings, ToolstackChoice};

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
    let Settings { toolstack, migrate, .. } = settings;
    let command = matches!(toolstack.value, ToolstackChoice::Xl | ToolstackChoice::Xm);
    refuse(command, "TOOLSTACK", " other than `auto` or `libxl`", &toolstack.origin);
    match purpose {
        Purpose::Stop => {
            let Setting { value, origin } = migrate;
            let somewhere = !value.as_encoded_bytes().trim_ascii().is_empty();
            refuse(somewhere, "MIGRATE", &format!("={}", value.to_string_lossy()), origin);
        }
        Purpose::Start | Purpose::Status => {}
    }
    found
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
            ("XENDOMAINS_DESTROY=true", &[]),
            ("XENDOMAINS_RESTORE_FAILED=start", &[]),
            ("XENDOMAINS_DEVICE_WAIT=3", &[]),
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
