//! Settings that are understood but can't be acted on, or not yet. Where one of them would change what happens, nothing
//! is done at all rather than something else than asked for.

use crate::settings::Settings;

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
    let migrate = &settings.migrate;
    let config = migrate.value.as_ref().and_then(|migrate| migrate.config.as_deref());
    if let Some(path) = config.filter(|path| purpose == Purpose::Stop && !path.exists()) {
        found.push(format!("{}: XENDOMAINS_MIGRATE: -C {} is not there", migrate.origin, path.display()));
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
            ("XENDOMAINS_MIGRATE=host", &[][..]),
            ("XENDOMAINS_MIGRATE='host -C /nonexistent/web.cfg'", &[Stop]),
            ("XENDOMAINS_MIGRATE=' '", &[]),
            ("XENDOMAINS_DESTROY=true", &[]),
            ("XENDOMAINS_RESTORE_FAILED=start", &[]),
            ("XENDOMAINS_DEVICE_WAIT=3", &[]),
            ("XENDOMAINS_TOOLSTACK=xl", &[]),
            ("XENDOMAINS_TOOLSTACK=xm", &[]),
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
