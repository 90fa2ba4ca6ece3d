//! The `xendomains` key of a guest's file: what this program does with the guest. xl ignores it.

use std::time::Duration;

use super::Error;
use super::keys::Keys;
use super::syntax::Value;

/// The key's name.
pub(super) const KEY: &str = "xendomains";

/// The first step to take when the guest is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopAction {
    /// Move it to another host.
    Migrate,
    /// Save it to an image.
    Save,
    /// Ask it to shut down.
    Shutdown,
    /// End it at once.
    Destroy,
}

/// What `xendomains = [ "order=10", "delay=5", "stop=shutdown", "stop_timeout=120", "destroy=true" ]` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerGuest {
    /// Guests start in this order, lowest first, and stop in reverse. Those without one start last.
    pub order: Option<i32>,
    /// How long to wait after the guest was started, instead of the settings' value.
    pub delay: Option<Duration>,
    /// How to stop it, instead of what the settings say.
    pub stop: Option<StopAction>,
    /// How long each step of stopping it may take, instead of the settings' value; zero is no limit.
    pub stop_timeout: Option<Duration>,
    /// Whether to destroy it when nothing else has stopped it, instead of the settings' value.
    pub destroy: Option<bool>,
}

impl PerGuest {
    /// Reads the key out of a guest's file.
    pub(super) fn read(keys: &mut Keys) -> Result<Self, Error> {
        let mut found = Self::default();
        if let Some(Value::Text(_)) = keys.value(KEY) {
            return Err(keys.error(KEY, "a list is expected, as in [ \"order=10\" ]"));
        }
        let Some(items) = keys.texts(KEY)? else { return Ok(found) };
        for item in items {
            let parsed = item.split_once('=').ok_or("has no `=`").and_then(|(name, value)| {
                let value = value.trim();
                match name.trim() {
                    "order" => set(&mut found.order, value.parse().map_err(|_| "needs a whole number")?),
                    "delay" => set(&mut found.delay, seconds(value)?),
                    "stop" => set(&mut found.stop, stop_action(value)?),
                    "stop_timeout" => set(&mut found.stop_timeout, seconds(value)?),
                    "destroy" => set(&mut found.destroy, truth(value)?),
                    _ => Err("is not known; accepted: order=, delay=, stop=, stop_timeout=, destroy="),
                }
            });
            if let Err(why) = parsed {
                return Err(keys.error(KEY, format!("`{item}` {why}")));
            }
        }
        Ok(found)
    }
}

fn set<T>(place: &mut Option<T>, value: T) -> Result<(), &'static str> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err("is given a second time"),
    }
}

fn seconds(value: &str) -> Result<Duration, &'static str> {
    value.parse().map(|seconds: u32| Duration::from_secs(seconds.into())).map_err(|_| "needs a number of seconds")
}

fn stop_action(value: &str) -> Result<StopAction, &'static str> {
    match value {
        "migrate" => Ok(StopAction::Migrate),
        "save" => Ok(StopAction::Save),
        "shutdown" => Ok(StopAction::Shutdown),
        "destroy" => Ok(StopAction::Destroy),
        _ => Err("needs one of migrate, save, shutdown, destroy"),
    }
}

fn truth(value: &str) -> Result<bool, &'static str> {
    match value {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err("needs true or false"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(source: &str) -> Result<PerGuest, String> {
        let mut keys = Keys::parse(Path::new("t.cfg"), source.as_bytes()).unwrap();
        PerGuest::read(&mut keys).map_err(|e| e.to_string())
    }

    #[test]
    fn all_of_it() {
        let source =
            "xendomains = [ 'order=10', 'delay = 5', 'stop=shutdown', 'stop_timeout=120', 'destroy=true' ]";
        let expected = PerGuest {
            order: Some(10),
            delay: Some(Duration::from_secs(5)),
            stop: Some(StopAction::Shutdown),
            stop_timeout: Some(Duration::from_secs(120)),
            destroy: Some(true),
        };
        assert_eq!(read(source), Ok(expected));
        assert_eq!(read("name='x'\n"), Ok(PerGuest::default()));
        assert_eq!(read("xendomains=[]"), Ok(PerGuest::default()));
        assert_eq!(read("xendomains=['order=-3']").unwrap().order, Some(-3));
    }

    #[test]
    fn mistakes_are_named() {
        for (source, word) in [
            ("xendomains='order=1'", "a list is expected"),
            ("xendomains=['order']", "`order` has no `=`"),
            ("xendomains=['order=x']", "whole number"),
            ("xendomains=['prio=1']", "accepted: order="),
            ("xendomains=['delay=-1']", "number of seconds"),
            ("xendomains=['stop=kill']", "one of migrate"),
            ("xendomains=['destroy=maybe']", "true or false"),
            ("xendomains=['order=1','order=2']", "second time"),
            ("xendomains=[['order=1']]", "is a list"),
        ] {
            let error = read(source).unwrap_err();
            assert!(error.starts_with("t.cfg:1: xendomains: ") && error.contains(word), "{source}: {error}");
        }
    }
}
