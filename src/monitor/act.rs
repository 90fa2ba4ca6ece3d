//! What is done with one guest that has ended. Each step can be repeated, so that whoever finds a restart written down
//! goes on with it from the beginning.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::mark::{Mark, is_abandoned, since_boot, word};
use super::policy::{self, Fate};
use super::restart::{How, Restart, Restarts};
use super::{Watcher, dump};
use crate::guest_config::{GuestConfig, PerGuest};
use crate::needs;
use crate::toolstack::{Domain, Domid, Error, Monitoring, ShutdownReason, State, Toolstack, without_domid};

/// Under which name `xl config-update` keeps a guest's new configuration.
const UPDATED: &str = "xl";

/// How long what is left of a domain may take to vanish. What it holds, the new one may need.
const REMAINS: Duration = Duration::from_secs(5);

/// How often that is looked at, at most: nobody tells when the last reference to a domain's memory is gone.
const LOOK: Duration = Duration::from_millis(200);

/// A guest that has ended.
#[derive(Clone)]
pub struct Ended {
    pub domid: Domid,
    pub uuid: Uuid,
    pub name: String,
    pub reason: ShutdownReason,
    /// How often in a row it has ended soon.
    pub soon: u32,
    pub mark: Mark,
    /// Its configuration, as far as it is known.
    pub config: Value,
}

/// What has become of it.
pub enum Outcome {
    /// It is gone, or there was nothing to be done.
    Over,
    /// It runs, as this domain, and is called this.
    Runs(Domid, String),
    /// Its domain is there as it was; this has failed.
    Stays(String),
    /// It could not be restarted.
    Failed(Box<Restart>, String),
    /// It is not there, and is not to be made yet.
    PutOff(Box<Restart>),
}

/// Does what is to be done with one guest.
#[derive(Clone, Copy)]
pub struct Worker<'a> {
    pub watcher: &'a Watcher<'a>,
    pub monitoring: &'a dyn Monitoring,
    /// Whether nothing is to be started at present.
    pub held: &'a AtomicBool,
}

impl Worker<'_> {
    fn toolstack(&self) -> &dyn Toolstack {
        self.watcher.toolstack
    }

    fn warn(&self, guest: &str, text: &str) {
        self.watcher.report.warn(&format!("{guest}: {text}"));
    }

    fn note(&self, guest: &str, text: &str) {
        self.watcher.report.note(&format!("{guest}: {text}"));
    }

    fn restarts(&self) -> Restarts {
        Restarts::new(&self.watcher.host.run_dir)
    }

    /// Does what a guest's configuration says for its end.
    ///
    /// `dumped` is called when its memory has been dumped, if it was to be, which may take minutes.
    pub fn end(&self, ended: &Ended, dumped: impl FnOnce()) -> Outcome {
        let domains = match self.toolstack().domains() {
            Ok(domains) => domains,
            Err(error) => return Outcome::Stays(error.to_string()),
        };
        let is_it = |domain: &&Domain| domain.domid == ended.domid && domain.uuid == ended.uuid;
        let Some(domain) = domains.iter().find(is_it).filter(|it| it.state == State::Shutdown(ended.reason))
        else {
            // It is gone, or somebody has done something with it meanwhile.
            return Outcome::Over;
        };
        let Some(action) = policy::action(&ended.config, ended.reason) else { return Outcome::Over };
        if action.dump {
            self.dump(ended, domain.memory_kib);
            dumped();
        }
        let how = match action.fate {
            Fate::Preserve => return self.keep(ended),
            Fate::Destroy => How::Remove,
            Fate::Restart => How::Destroy,
            Fate::Rename => How::Rename,
            Fate::SoftReset => How::SoftReset,
        };
        let Ended { domid, uuid, .. } = ended;
        let name = domain.name.as_ref().unwrap_or(&ended.name);
        let restart = if how == How::Remove {
            Restart::new(*domid, name, *uuid, how, ended.mark.clone(), Value::Null)
        } else {
            self.note(name, &format!("has ended ({}): it is restarted", word(ended.reason)));
            let mark = ended.mark.restarted(ended.reason, ended.soon);
            Restart::new(*domid, name, *uuid, how, mark, self.config(ended))
        };
        if let Err(error) = self.restarts().put(&restart) {
            // It would be lost if this process died before it runs again; not to restart it would lose it for sure.
            self.warn(name, &format!("what is done with it can't be written down: {error}"));
        }
        let outcome = self.go_on(restart);
        if let Outcome::Over = outcome {
            self.note(name, &format!("has ended ({}): it was removed", word(ended.reason)));
        }
        outcome
    }

    /// Leaves it as it is, and sees to it that it is not looked at again.
    fn keep(&self, ended: &Ended) -> Outcome {
        let mark = Mark { kept: true, reason: Some(word(ended.reason)), ..ended.mark.clone() };
        match mark.put(ended.domid, self.monitoring) {
            Ok(()) => {
                self.note(&ended.name, &format!("has ended ({}): it is kept as it is", word(ended.reason)));
                Outcome::Over
            }
            Err(error) => Outcome::Stays(error.to_string()),
        }
    }

    fn dump(&self, ended: &Ended, memory_kib: u64) {
        let directory = &self.watcher.host.dump_dir;
        match dump::dump(directory, ended.domid, &ended.name, memory_kib, self.monitoring) {
            Ok(path) => self.note(&ended.name, &format!("its memory is in {}", path.display())),
            Err(error) => self.warn(&ended.name, &format!("its memory could not be dumped: {error}")),
        }
    }

    /// The configuration with which it is restarted: the one that `xl config-update` has left, else what libxl knows of
    /// the domain as it is, else what is known of it as it was.
    fn config(&self, ended: &Ended) -> Value {
        let name = &ended.name;
        let present = match self.toolstack().configuration(ended.domid) {
            // Without a name it is of a domain that is half gone.
            Ok(config) if config["c_info"]["name"].is_string() => config,
            Ok(_) => ended.config.clone(),
            Err(error) => {
                self.warn(name, &format!("{error}; it is restarted as it was started"));
                ended.config.clone()
            }
        };
        let updated = match self.monitoring.userdata(ended.domid, UPDATED) {
            Ok(text) => text.filter(|text| !text.is_empty()),
            Err(error) => {
                self.warn(name, &format!("whether its configuration was updated can't be told: {error}"));
                None
            }
        };
        let config = match updated {
            Some(text) => self.updated(ended, &text, &present).unwrap_or(present),
            None => present,
        };
        let mut config = without_domid(config);
        self.watcher.xen_host.before_restart(&mut config);
        config
    }

    /// `None`: it can't be used, which is said.
    fn updated(&self, ended: &Ended, text: &[u8], present: &Value) -> Option<Value> {
        let guest = match GuestConfig::parse(Path::new("<updated>"), text, self.watcher.xen_host) {
            Ok(guest) => guest,
            Err(error) => {
                self.warn(&ended.name, &format!("`xl config-update`: {error}; it is restarted as it was"));
                return None;
            }
        };
        for warning in &guest.warnings {
            self.warn(&ended.name, &warning.to_string());
        }
        if let Err(error) = self.monitoring.keep_userdata(ended.domid, UPDATED, &[]) {
            self.warn(&ended.name, &format!("its updated configuration is still there: {error}"));
        }
        Some(same_identity(guest, ended.uuid, present))
    }

    /// Goes on with a restart, whatever of it has been done.
    pub fn go_on(&self, restart: Restart) -> Outcome {
        let begun = Instant::now();
        let outcome = match self.try_to_go_on(&restart) {
            Ok(Some(domid)) => {
                let (took, count) = (begun.elapsed().as_secs_f64(), restart.mark.restarts);
                self.note(&restart.name, &format!("restarted as domain {domid} ({took:.1} s, restart {count})"));
                Outcome::Runs(domid, restart.name.clone())
            }
            Ok(None) if restart.how == How::Remove => Outcome::Over,
            Ok(None) => return Outcome::PutOff(Box::new(restart)),
            Err(why) => return Outcome::Failed(Box::new(restart), why),
        };
        if let Err(error) = self.restarts().remove(restart.uuid, &restart.name) {
            self.warn(&restart.name, &format!("the note of what was done with it is still there: {error}"));
        }
        outcome
    }

    /// `None`: it is not to be made, or not yet.
    fn try_to_go_on(&self, restart: &Restart) -> Result<Option<Domid>, String> {
        let gone = |error: Error| error.to_string();
        let toolstack = self.toolstack();
        let domains = toolstack.domains().map_err(gone)?;
        let of_guest = |domain: &&Domain| domain.domid != 0 && domain.uuid == restart.uuid;
        let old = domains.iter().filter(of_guest).find(|domain| domain.domid == restart.old);
        match (&restart.how, old) {
            // Whoever has made it live again knows better.
            (How::Destroy | How::Rename, Some(old)) if old.state == State::Running => {
                return Ok(Some(old.domid));
            }
            (How::SoftReset, Some(old)) => match self.soft_reset(restart, old) {
                Some(domid) => return Ok(Some(domid)),
                None => toolstack.destroy(old.domid).map_err(gone)?,
            },
            (How::Rename, Some(old)) => self.set_aside(restart, old, &domains).map_err(gone)?,
            (How::Destroy | How::Remove, Some(old)) => toolstack.destroy(old.domid).map_err(gone)?,
            (_, None) => {}
        }
        if restart.how == How::Remove {
            return Ok(None);
        }
        if old.is_some() && restart.how != How::Rename {
            self.wait_for_remains(restart.old, restart.uuid);
        }
        let has_name = |name: Option<&String>| name.is_none_or(|name| *name == restart.name);
        for other in domains.iter().filter(|domain| domain.domid != restart.old && domain.domid != 0) {
            let is_half_made = other.uuid == restart.uuid && other.has_never_run();
            let is_ours = || match self.restarts().number(restart.uuid, &restart.name) {
                Some(number) => number == other.domid,
                // Whoever was building it may have died before it had the number.
                None => is_abandoned(other.domid, self.monitoring, self.watcher.host),
            };
            if is_half_made && has_name(other.name.as_ref()) && is_ours() {
                toolstack.destroy(other.domid).map_err(gone)?;
            } else if other.has_never_run() && other.name.as_deref() == Some(&restart.name) {
                let why = "is in the way: it was never let run, or is being built by somebody else";
                return Err(format!("domain {} {why}", other.domid));
            } else if other.state != State::Dying && other.name.as_deref() == Some(&restart.name) {
                // Let run already, or started by somebody else.
                return Ok(Some(other.domid));
            }
        }
        if self.held.load(Ordering::SeqCst) {
            return Ok(None);
        }
        self.make(restart).map(Some)
    }

    /// Makes the guest anew and lets it run.
    fn make(&self, restart: &Restart) -> Result<Domid, String> {
        let (toolstack, settings) = (self.toolstack(), self.watcher.settings);
        let needs = needs::needs(&restart.config);
        if !settings.device_wait.value.is_zero() {
            if let Some(deadline) = Instant::now().checked_add(settings.device_wait.value) {
                let _ = needs::wait(&needs, deadline, self.watcher.interrupt);
            }
        }
        let missing: Vec<_> = needs::missing(&needs).iter().map(|need| format!("{need} is not there")).collect();
        if !missing.is_empty() {
            return Err(missing.join(", "));
        }
        let guest = GuestConfig {
            path: restart.mark.file.clone().unwrap_or_else(|| PathBuf::from(&restart.name)),
            name: restart.name.clone(),
            uuid: restart.uuid,
            uuid_given: true,
            json: restart.config.clone(),
            per_guest: PerGuest::default(),
            warnings: Vec::new(),
            unknown_keys: Vec::new(),
        };
        let deadline = settings.start_maxwait.value.and_then(|limit| Instant::now().checked_add(limit));
        let note = |text: &str| self.note(&restart.name, text);
        let domid = toolstack
            .create(&guest, deadline, &note, self.restarts().made(restart.uuid, &restart.name))
            .map_err(|error| error.to_string())?;
        self.mark(restart, domid);
        toolstack.unpause(domid).map_err(|error| {
            let destroyed = toolstack.destroy(domid).err();
            let left = destroyed.map(|error| format!("; it is left paused as domain {domid}: {error}"));
            format!("{error}{}", left.unwrap_or_default())
        })?;
        Ok(domid)
    }

    fn mark(&self, restart: &Restart, domid: Domid) {
        let mark = Mark { started: since_boot(), ..restart.mark.clone() };
        if let Err(error) = mark.put(domid, self.monitoring) {
            self.warn(&restart.name, &format!("nobody watches it from now on: {error}"));
        }
    }

    /// Has the guest go on in its domain. `None`: that is not possible, and the domain is of no use any more.
    fn soft_reset(&self, restart: &Restart, old: &Domain) -> Option<Domid> {
        let warn = |error: &dyn std::fmt::Display| {
            self.warn(&restart.name, &format!("{error}; it is restarted in a new domain instead"));
        };
        match old.state {
            State::Shutdown(ShutdownReason::SoftReset) => {}
            // It had been let run before that could be noted.
            State::Running => return Some(old.domid),
            // How far the reset had come can't be told.
            _ => return None,
        }
        let limit = self.watcher.settings.start_maxwait.value;
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let note = |text: &str| self.note(&restart.name, text);
        let reset =
            self.monitoring.soft_reset(old.domid, restart.config.clone(), deadline, &note).and_then(|()| {
                self.mark(restart, old.domid);
                self.toolstack().unpause(old.domid)
            });
        reset.inspect_err(|error| warn(error)).ok().map(|()| old.domid)
    }

    /// Makes place for the new domain by renaming the old one, unless that was done.
    fn set_aside(&self, restart: &Restart, old: &Domain, domains: &[Domain]) -> Result<(), Error> {
        if old.name.as_deref() != Some(&restart.old_name) {
            return Ok(());
        }
        let kept = Mark { kept: true, ..restart.mark.clone() };
        kept.put(old.domid, self.monitoring)?;
        let name = |suffix: &str| Some(format!("{}{suffix}", restart.old_name));
        let is_taken = |suffix: &str| domains.iter().any(|domain| domain.name == name(suffix));
        let mut suffix = suffix(false);
        if is_taken(&suffix) {
            suffix = self::suffix(true);
        }
        self.monitoring.preserve(old.domid, &restart.old_name, &suffix)
    }

    /// Waits until a domain that was destroyed is gone, for what it holds is needed again.
    fn wait_for_remains(&self, domid: Domid, uuid: Uuid) {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(5);
        while matches!(self.monitoring.look(domid), Ok(Some((found, _))) if found == uuid) {
            if begun.elapsed() >= REMAINS || self.watcher.interrupt.is_asked() {
                return;
            }
            self.watcher.interrupt.pause(pause);
            pause = (pause * 2).min(LOOK);
        }
    }
}

/// A configuration from a file that need not give a UUID and the addresses of network cards: those are what they were.
fn same_identity(guest: GuestConfig, uuid: Uuid, present: &Value) -> Value {
    let mut config = guest.json;
    config["c_info"]["uuid"] = uuid.to_string().into();
    let address = |index: usize| present["nics"].get(index).and_then(|nic| nic.get("mac"));
    for (index, nic) in config["nics"].as_array_mut().into_iter().flatten().enumerate() {
        if let (None, Some(mac)) = (nic.get("mac"), address(index)) {
            nic["mac"] = mac.clone();
        }
    }
    config
}

/// What xl puts behind the name of what it keeps: the time, in UTC. Where a guest ends twice in a minute, xl fails; with
/// the seconds, it does not.
fn suffix(with_seconds: bool) -> String {
    let now = DateTime::<Utc>::from(SystemTime::now());
    now.format(if with_seconds { "-%Y%m%dT%H%M%SZ" } else { "-%Y%m%dT%H%MZ" }).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::guest_config::XenHost;

    #[test]
    fn what_is_kept_has_the_time_in_its_name() {
        assert_eq!(suffix(false).len(), "-20260102T0304Z".len());
        assert_eq!(suffix(true).len(), "-20260102T030405Z".len());
    }

    #[test]
    fn an_updated_configuration_keeps_uuid_and_addresses() {
        let text = "name = 'web'\ntype = 'pvh'\nkernel = '/k'\nvif = [ 'bridge=a', 'bridge=b,mac=00:16:3e:00:00:09', 'bridge=c' ]\n";
        let guest = GuestConfig::parse(Path::new("x"), text.as_bytes(), &XenHost::default()).expect("valid");
        let uuid = Uuid::new_v4();
        let present = json!({"nics": [{"mac": "00:16:3e:00:00:01"}, {"mac": "00:16:3e:00:00:02"}]});
        let config = same_identity(guest, uuid, &present);
        assert_eq!(config["c_info"]["uuid"], uuid.to_string());
        assert_eq!(config["nics"][0]["mac"], "00:16:3e:00:00:01");
        assert_eq!(config["nics"][1]["mac"], "00:16:3e:00:00:09");
        assert_eq!(config["nics"][2].get("mac"), None);
    }
}
