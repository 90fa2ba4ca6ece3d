//! From the words of the file to typed values.

use std::collections::HashMap;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::known::{KNOWN, Known};
use super::shell::{Assignment, Loses, Script};
use super::{DEFAULT_RESTART_BURST, DEFAULT_RESTART_TRIES, DEFAULT_STOP_JOBS};
use super::{Origin, RestoreFailed, Setting, Settings, ToolstackChoice, migrate};
use crate::spelling;

const PREFIX: &str = "XENDOMAINS_";

/// How to shut a guest down: what is left of the options of `xm shutdown` and `xl shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownOptions {
    /// Wait until the guest has shut down.
    pub wait: bool,
}

/// The assignments of a file, by name.
#[derive(Default)]
pub(super) struct Values {
    /// `None` when there is no file.
    path: Option<Arc<Path>>,
    assigned: HashMap<String, Assignment>,
    /// The last line that may have set any name to anything.
    anything: Option<u32>,
    warnings: Vec<String>,
    mistakes: Vec<String>,
    /// Names of which the value can't be used.
    wrong: Vec<&'static str>,
}

impl Values {
    pub(super) fn new(path: &Arc<Path>, script: Script) -> Values {
        let mut values = Values { path: Some(Arc::clone(path)), ..Values::default() };
        for (name, line) in script.unset {
            values.warn(line, &format!("${name} is used, but nothing is assigned to it: it counts as empty"));
        }
        for assignment in script.assignments {
            if let Some(name) = assignment.name.strip_prefix(PREFIX) {
                if KNOWN.iter().any(|known| known.name == name) {
                    values.assigned.insert(name.to_owned(), assignment);
                } else {
                    values.warn_unknown(name, assignment.line);
                }
            }
        }
        for error in script.errors {
            if error.loses == Loses::Anything {
                values.anything = Some(error.line);
            }
            let is_lost = |known: &&Known| {
                let is_named = error.names.iter().any(|name| name.strip_prefix(PREFIX) == Some(known.name));
                is_named && values.assigned.get(known.name).is_some_and(|last| last.value.is_none())
            };
            let lost: Vec<_> = KNOWN.iter().filter(is_lost).collect();
            values.mistake(error.line, &error.message, &lost);
        }
        values
    }

    /// Types everything. What is not understood has its default.
    pub(super) fn settings(mut self) -> Settings {
        let mut settings = Settings {
            sysrq: self.setting("SYSRQ", Vec::new(), sysrq_letters),
            usleep: self.setting("USLEEP", Duration::from_millis(100), microseconds),
            create_usleep: self.setting("CREATE_USLEEP", Duration::from_secs(5), microseconds),
            migrate: self.setting("MIGRATE", None, |bytes| migrate::read(text(bytes)?)),
            save: self.setting("SAVE", Some("/var/lib/xen/save".into()), directory),
            shutdown: self.setting("SHUTDOWN", Some(ShutdownOptions { wait: true }), shutdown_options),
            shutdown_all: self.setting("SHUTDOWN_ALL", Some(ShutdownOptions { wait: true }), shutdown_options),
            restore: self.truth("RESTORE", true),
            auto: self.setting("AUTO", Some("/etc/xen/auto".into()), directory),
            auto_only: self.truth("AUTO_ONLY", false),
            stop_maxwait: self.setting("STOP_MAXWAIT", Some(Duration::from_secs(300)), limit),
            start_maxwait: self.setting("START_MAXWAIT", Some(Duration::from_secs(600)), limit),
            start_jobs: self.setting("START_JOBS", None, jobs),
            save_jobs: self.setting("SAVE_JOBS", DEFAULT_STOP_JOBS, stop_jobs),
            migrate_jobs: self.setting("MIGRATE_JOBS", DEFAULT_STOP_JOBS, stop_jobs),
            stop_timeout: self.setting("STOP_TIMEOUT", None, limit),
            destroy: self.truth("DESTROY", false),
            restore_failed: self.setting("RESTORE_FAILED", RestoreFailed::Keep, restore_failed),
            toolstack: self.setting("TOOLSTACK", ToolstackChoice::Auto, toolstack),
            device_wait: self.setting("DEVICE_WAIT", Duration::ZERO, seconds),
            monitor: self.truth("MONITOR", true),
            restart_soon: self.setting("RESTART_SOON", Duration::from_secs(60), seconds),
            restart_burst: self.setting("RESTART_BURST", DEFAULT_RESTART_BURST, burst),
            restart_pause: self.setting("RESTART_PAUSE", Duration::from_secs(300), seconds),
            restart_tries: self.setting("RESTART_TRIES", DEFAULT_RESTART_TRIES, tries),
            warnings: Vec::new(),
            mistakes: Vec::new(),
            unknown: KNOWN.iter().filter(|known| known.start_needs && self.is_unknown(known.name)).collect(),
            unset: Vec::new(),
        };
        if !self.assigned.is_empty() {
            settings.unset = KNOWN.iter().filter(|known| !self.assigned.contains_key(known.name)).collect();
        }
        (settings.warnings, settings.mistakes) = (self.warnings, self.mistakes);
        settings
    }

    fn setting<T>(&mut self, name: &str, default: T, read: impl FnOnce(&[u8]) -> Result<T, String>) -> Setting<T> {
        let defaulted = |value| Setting { value, origin: Origin::Default };
        let Some(Assignment { value: Some(value), line, .. }) = self.assigned.get(name) else {
            return defaulted(default);
        };
        let line = *line;
        match read(value) {
            Ok(value) => Setting { value, origin: Origin::File(self.path(), line) },
            Err(message) => {
                let known: Vec<_> = KNOWN.iter().filter(|known| known.name == name).collect();
                self.wrong.extend(known.iter().map(|known| known.name));
                self.mistake(line, &message, &known);
                defaulted(default)
            }
        }
    }

    /// `true` is true and everything else false, as the scripts always had it; words that look as if they meant
    /// something else are warned about.
    fn truth(&mut self, name: &str, default: bool) -> Setting<bool> {
        let Some(Assignment { value: Some(value), line, .. }) = self.assigned.get(name) else {
            return Setting { value: default, origin: Origin::Default };
        };
        let (value, line) = (value.clone(), *line);
        if !matches!(&value[..], b"true" | b"false" | b"") {
            let word = value.escape_ascii();
            self.warn(line, &format!("{PREFIX}{name}: `{word}` counts as false; only `true` is true"));
        }
        Setting { value: value == b"true", origin: Origin::File(self.path(), line) }
    }

    /// Tells whether the file sets the name to something that is not understood, or may do so.
    fn is_unknown(&self, name: &str) -> bool {
        let last = self.assigned.get(name);
        let not_understood = last.is_some_and(|last| last.value.is_none()) || self.wrong.contains(&name);
        // A value that a later line sets for certain counts, whatever an earlier line may do.
        not_understood || self.anything.is_some_and(|line| last.is_none_or(|last| last.line <= line))
    }

    fn warn_unknown(&mut self, name: &str, line: u32) {
        let hint = match spelling::nearest(name, KNOWN.iter().map(|known| known.name)) {
            Some(known) => format!("; did you mean {PREFIX}{known}?"),
            None => String::new(),
        };
        self.warn(line, &format!("{PREFIX}{name} is not a setting{hint}"));
    }

    fn warn(&mut self, line: u32, message: &str) {
        let origin = Origin::File(self.path(), line);
        self.warnings.push(format!("{origin}: {message}"));
    }

    /// Tells what is not understood on a line, and what it means for these settings.
    fn mistake(&mut self, line: u32, message: &str, lost: &[&Known]) {
        let origin = Origin::File(self.path(), line);
        let mut text = match lost {
            [known] => format!("{origin}: {PREFIX}{}: {message}; {}", known.name, known.instead()),
            _ => format!("{origin}: {message}"),
        };
        if lost.len() > 1 {
            let each = lost.iter().map(|known| format!("{PREFIX}{}: {}", known.name, known.instead()));
            text = format!("{text}; {}", each.collect::<Vec<_>>().join("; "));
        }
        self.mistakes.push(text);
    }

    fn path(&self) -> Arc<Path> {
        self.path.clone().unwrap_or_else(|| Path::new("").into())
    }
}

/// The value as text, for everything that is not a path.
fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| unknown(bytes, "not UTF-8 text"))
}

fn unknown(word: &[u8], wanted: &str) -> String {
    format!("`{}`: {wanted}", word.escape_ascii())
}

/// A number; empty is none at all.
fn number(bytes: &[u8], wanted: &str) -> Result<Option<u64>, String> {
    let word = bytes.trim_ascii();
    if word.is_empty() {
        return Ok(None);
    }
    // More than a century of microseconds is a mistake, and does not fit into every clock either.
    let number = text(word)?.parse().ok().filter(|number| *number < 1 << 52);
    if number.is_none() || !word[0].is_ascii_digit() {
        return Err(unknown(word, wanted));
    }
    Ok(number)
}

fn microseconds(bytes: &[u8]) -> Result<Duration, String> {
    let number = number(bytes, "not a number of microseconds")?;
    Ok(Duration::from_micros(number.unwrap_or(0)))
}

fn seconds(bytes: &[u8]) -> Result<Duration, String> {
    let number = number(bytes, "not a number of seconds")?;
    Ok(Duration::from_secs(number.unwrap_or(0)))
}

/// Seconds, where none or 0 is no limit.
fn limit(bytes: &[u8]) -> Result<Option<Duration>, String> {
    Ok(Some(seconds(bytes)?).filter(|limit| !limit.is_zero()))
}

fn jobs(bytes: &[u8]) -> Result<Option<NonZeroUsize>, String> {
    let Some(number) = number(bytes, "not a number of guests")? else { return Ok(None) };
    let number = usize::try_from(number).ok().and_then(NonZeroUsize::new);
    number.map(Some).ok_or_else(|| "must be at least 1".to_owned())
}

fn stop_jobs(bytes: &[u8]) -> Result<NonZeroUsize, String> {
    Ok(jobs(bytes)?.unwrap_or(DEFAULT_STOP_JOBS))
}

fn burst(bytes: &[u8]) -> Result<u32, String> {
    const WANTED: &str = "not a number of restarts";
    let number = number(bytes, WANTED)?.map_or(Ok(DEFAULT_RESTART_BURST), u32::try_from);
    number.map_err(|_| unknown(bytes, WANTED))
}

fn tries(bytes: &[u8]) -> Result<NonZeroUsize, String> {
    Ok(jobs(bytes)?.unwrap_or(DEFAULT_RESTART_TRIES))
}

fn directory(bytes: &[u8]) -> Result<Option<PathBuf>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(OsString::from_vec(bytes.to_vec()));
    if path.is_relative() {
        return Err(unknown(bytes, "must be an absolute path"));
    }
    Ok(Some(path))
}

fn sysrq_letters(bytes: &[u8]) -> Result<Vec<char>, String> {
    let letter = |word: &str| match word.as_bytes() {
        [letter] if letter.is_ascii_alphanumeric() => Ok(char::from(*letter)),
        word => Err(unknown(word, "not a SysRq letter (they are separated by blanks)")),
    };
    text(bytes)?.split_whitespace().map(letter).collect()
}

/// Options of `xm shutdown` and `xl shutdown`; none at all is no shutdown.
///
/// Only waiting makes a difference to us: which guests are meant is decided elsewhere, halting is what a shutdown
/// does, and the ACPI power button (`-F`) is used for every guest that needs it.
fn shutdown_options(bytes: &[u8]) -> Result<Option<ShutdownOptions>, String> {
    let mut options = None;
    for word in text(bytes)?.split_whitespace() {
        let options = options.get_or_insert(ShutdownOptions { wait: false });
        match word {
            "--wait" => options.wait = true,
            "--all" | "--halt" => {}
            "--reboot" => return Err(unknown(word.as_bytes(), "guests would come back instead of stopping")),
            _ => short_shutdown_options(word, options)?,
        }
    }
    Ok(options)
}

fn short_shutdown_options(word: &str, options: &mut ShutdownOptions) -> Result<(), String> {
    let letters = word.strip_prefix('-').filter(|letters| !letters.is_empty());
    for letter in letters.unwrap_or("?").chars() {
        match letter {
            'w' => options.wait = true,
            'a' | 'H' | 'F' => {}
            'R' => return Err(unknown(word.as_bytes(), "guests would come back instead of stopping")),
            _ => return Err(unknown(word.as_bytes(), "not an option of `xl shutdown` or `xm shutdown`")),
        }
    }
    Ok(())
}

fn restore_failed(bytes: &[u8]) -> Result<RestoreFailed, String> {
    match bytes {
        b"" | b"keep" => Ok(RestoreFailed::Keep),
        b"start" => Ok(RestoreFailed::Start),
        _ => Err(unknown(bytes, "must be `keep` or `start`")),
    }
}

fn toolstack(bytes: &[u8]) -> Result<ToolstackChoice, String> {
    match bytes {
        b"" | b"auto" => Ok(ToolstackChoice::Auto),
        b"libxl" => Ok(ToolstackChoice::Libxl),
        b"xl" => Ok(ToolstackChoice::Xl),
        b"xm" => Ok(ToolstackChoice::Xm),
        _ => Err(unknown(bytes, "must be `auto`, `libxl`, `xl` or `xm`")),
    }
}
