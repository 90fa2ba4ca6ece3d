//! The imaginary host: domains, memory, images, and what every guest has done so far.
//!
//! It lives in this process's memory, or in a file where several processes share it as they share a hypervisor.
//! Time passes in it without anyone's help: what is due is done when somebody next looks.

use crate::abi::{INVALID_DOMID, reason};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970: the only clock that several processes share.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// How a guest behaves.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guest {
    /// To a shutdown request: `poweroff`, `reboot`, `crash`, `ack_only` (clears the request and stays up), `ignore`.
    pub shutdown: String,
    /// To a reboot request, with the same values.
    pub reboot: String,
    /// To the power button: `poweroff`, `ignore`.
    pub power_button: String,
    /// To the reset button: `reboot`, `ignore`.
    pub reset_button: String,
    /// Whether an HVM guest has PV drivers. Others always have.
    pub pv_drivers: bool,
    /// From the request to its acknowledgement.
    pub ack_ms: u64,
    /// From the acknowledgement to being down.
    pub down_ms: u64,
    /// What stands for the 60 s that libxl waits for an acknowledgement.
    pub timeout_ms: u64,
    /// To a suspend request: `ok`, `ignore`, `crash`.
    pub suspend: String,
    /// From the suspend request to being suspended.
    pub suspend_ms: u64,
    /// The size of the memory in an image.
    pub payload_bytes: u64,
    /// Destroying leaves a dying domain behind.
    pub zombie: bool,
}

impl Default for Guest {
    fn default() -> Guest {
        Guest {
            shutdown: "poweroff".into(),
            reboot: "reboot".into(),
            power_button: "poweroff".into(),
            reset_button: "reboot".into(),
            pv_drivers: true,
            ack_ms: 5,
            down_ms: 5,
            timeout_ms: 60_000,
            suspend: "ok".into(),
            suspend_ms: 0,
            payload_bytes: 65_536,
            zombie: false,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Domain {
    pub domid: u32,
    pub uuid: String,
    pub name: Option<String>,
    /// pv, pvh or hvm.
    #[serde(rename = "type")]
    pub kind: String,
    /// The stored configuration; none as with a domain that libxl did not make.
    pub config: Option<Value>,
    pub memory_kb: u64,
    pub max_kb: u64,
    pub target_kb: u64,
    pub vcpus: u32,
    pub paused: bool,
    pub shutdown: Option<i32>,
    /// A shutdown or reboot request that the guest has not cleared.
    pub request: Option<String>,
    /// Set if there is a request to suspend that the guest has not obeyed.
    pub asked_to_suspend: bool,
    pub dying: bool,
    pub never_stop: bool,
    /// The domain whose device model this is.
    pub stubdom_of: Option<u32>,
    pub ssid_label: Option<String>,
    pub cpu_time_ns: u64,
    /// Seconds since 1970.
    pub start_time: u64,
    pub sysrq: String,
    pub triggers: Vec<String>,
    pub userdata: BTreeMap<String, Value>,
    pub guest: Guest,
    /// Whether this domain is still being made.
    pub building: bool,
    /// The image that it was restored from.
    pub image: Option<String>,
    /// Whether it has run since it was made.
    pub has_run: bool,
}

impl Default for Domain {
    fn default() -> Domain {
        Domain {
            domid: INVALID_DOMID,
            uuid: String::new(),
            name: None,
            kind: "pvh".into(),
            config: None,
            memory_kb: 131_072,
            max_kb: 131_072,
            target_kb: 131_072,
            vcpus: 1,
            paused: false,
            shutdown: None,
            request: None,
            asked_to_suspend: false,
            dying: false,
            never_stop: false,
            stubdom_of: None,
            ssid_label: None,
            cpu_time_ns: 1_500_000_000,
            start_time: now_ms() / 1000,
            sysrq: String::new(),
            triggers: Vec::new(),
            userdata: BTreeMap::new(),
            guest: Guest::default(),
            building: false,
            image: None,
            has_run: false,
        }
    }
}

impl Domain {
    pub fn live(&self) -> bool {
        !self.paused && self.shutdown.is_none() && !self.dying && !self.building
    }
}

/// A saved memory image, wherever its bytes are.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Image {
    pub uuid: String,
    pub domid: u32,
    pub name: String,
    /// All of its stream was written.
    pub complete: bool,
    /// How many domains ran from it.
    pub runs: u32,
    /// The guest has run since the image was made, so that the image no longer fits its disks.
    pub stale: bool,
}

/// One time that a guest came to run: booted, or continued from an image.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Run {
    pub domid: u32,
    pub name: Option<String>,
    pub image: Option<String>,
}

/// Something that is going to happen by itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Due {
    pub at_ms: u64,
    pub domid: u32,
    /// `ack`, or what `World::guest_does` takes.
    pub what: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Call {
    pub call: String,
    pub pid: u32,
    pub domid: Option<u32>,
    pub name: Option<String>,
    pub args: Value,
    /// What the call returned; none while it hasn't.
    pub rc: Option<i32>,
    /// What the operation ended with.
    pub completed: Option<i32>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct World {
    pub domains: BTreeMap<u32, Domain>,
    pub next_domid: u32,
    pub total_kb: u64,
    pub free_kb: u64,
    /// How far dom0 can come down: the rest it uses itself.
    pub dom0_floor_kb: u64,
    pub cpus: u32,
    /// NUMA nodes, over which the processors are spread evenly.
    pub nodes: u32,
    pub xen_commandline: String,
    /// Behaviour of guests by name, `*` for all others.
    pub guests: BTreeMap<String, Guest>,
    /// How often a domain shut down or went away.
    pub releases: u64,
    pub due: Vec<Due>,
    pub calls: Vec<Call>,
    pub refusals: Vec<String>,
    pub runs: BTreeMap<String, Vec<Run>>,
    pub images: BTreeMap<String, Image>,
    /// What must never happen to a guest and did.
    pub violations: Vec<String>,
    /// CDs that guests asked to eject: domid and virtual device.
    pub ejects: Vec<(u32, String)>,
    pub images_made: u64,
    /// How often calls were made that a rule counts over all processes.
    #[serde(default)]
    pub seen: BTreeMap<String, u64>,
    /// Something has become due since somebody has asked for this.
    #[serde(skip)]
    pub has_advanced: bool,
}

impl Default for World {
    fn default() -> World {
        let mut world = World {
            domains: BTreeMap::new(),
            next_domid: 1,
            total_kb: 16 << 20,
            free_kb: 12 << 20,
            dom0_floor_kb: 512 << 10,
            cpus: 4,
            nodes: 1,
            // A host whose dom0 keeps its memory: what wants it to give some back says so.
            xen_commandline: "placeholder dom0_mem=2G,max:2G".into(),
            guests: BTreeMap::new(),
            releases: 0,
            due: Vec::new(),
            calls: Vec::new(),
            refusals: Vec::new(),
            runs: BTreeMap::new(),
            images: BTreeMap::new(),
            violations: Vec::new(),
            ejects: Vec::new(),
            images_made: 0,
            seen: BTreeMap::new(),
            has_advanced: false,
        };
        world.domains.insert(
            0,
            Domain {
                domid: 0,
                uuid: uuid::Uuid::nil().to_string(),
                name: Some("Domain-0".into()),
                kind: "pv".into(),
                memory_kb: 2 << 20,
                max_kb: 2 << 20,
                target_kb: 2 << 20,
                vcpus: 4,
                has_run: true,
                ..Domain::default()
            },
        );
        world
    }
}

impl World {
    /// Takes `{"domains": […], "guests": {…}, "free_kb": …, …}`: domains are added, the rest is replaced.
    pub fn set_up(&mut self, value: &Value) -> Result<(), String> {
        let object = value.as_object().ok_or("a host is an object")?;
        let mut own = serde_json::to_value(&*self).map_err(|e| e.to_string())?;
        let mut domains = Vec::new();
        for (key, v) in object {
            if key == "domains" {
                domains = v.as_array().ok_or("domains is an array")?.clone();
            } else if own.get(key).is_some() {
                own[key] = v.clone();
            } else {
                return Err(format!("a host has no {key:?}"));
            }
        }
        *self = serde_json::from_value(own).map_err(|e| e.to_string())?;
        for given in domains {
            self.add(given)?;
        }
        Ok(())
    }

    fn add(&mut self, given: Value) -> Result<(), String> {
        let has = |key: &str| given.get(key).is_some();
        let (no_guest, no_config, no_domid, no_max, no_target) =
            (!has("guest"), !has("config"), !has("domid"), !has("max_kb"), !has("target_kb"));
        let mut domain: Domain =
            serde_json::from_value(given.clone()).map_err(|e| format!("domain {given}: {e}"))?;
        if no_domid {
            domain.domid = self.next_domid;
        }
        self.next_domid = self.next_domid.max(domain.domid.wrapping_add(1));
        if domain.uuid.is_empty() {
            // Not random, so that tests are the same every time.
            domain.uuid =
                uuid::Uuid::from_u128(0xfa4e_0000_0000_4000_8000_0000_0000_0000 + u128::from(domain.domid))
                    .to_string();
        }
        if no_max {
            domain.max_kb = domain.memory_kb;
        }
        if no_target {
            domain.target_kb = domain.memory_kb;
        }
        if no_guest {
            domain.guest = self.behaviour(domain.name.as_deref());
        }
        if no_config && domain.domid != 0 && domain.stubdom_of.is_none() {
            let kind = domain.kind.clone();
            domain.config = Some(json!({
                "c_info": {"type": kind, "name": domain.name, "uuid": domain.uuid},
                "b_info": {"max_vcpus": domain.vcpus, "max_memkb": domain.max_kb, "target_memkb": domain.target_kb,
                           (format!("type.{kind}")): {}},
                "on_reboot": "restart",
            }));
        }
        self.free_kb = self.free_kb.saturating_sub(domain.memory_kb);
        let id = domain.domid;
        self.domains.insert(id, domain);
        self.went_live(id);
        Ok(())
    }

    pub fn behaviour(&self, name: Option<&str>) -> Guest {
        name.and_then(|n| self.guests.get(n)).or_else(|| self.guests.get("*")).cloned().unwrap_or_default()
    }

    /// Sets what a balloon driver aims at, and lets it come as near as it can: at once, it is a quick one.
    pub fn set_target(&mut self, domid: u32, wanted_kb: u64) {
        let floor = if domid == 0 { self.dom0_floor_kb } else { 0 };
        let Some(domain) = self.domains.get_mut(&domid) else {
            return;
        };
        domain.target_kb = wanted_kb;
        let before = domain.memory_kb;
        domain.memory_kb = if wanted_kb < before {
            wanted_kb.max(floor.min(before))
        } else {
            before + self.free_kb.min(wanted_kb - before)
        };
        self.free_kb = self.free_kb + before - domain.memory_kb;
    }

    pub fn by_name(&self, name: &str) -> Option<u32> {
        self.domains.values().find(|d| d.name.as_deref() == Some(name)).map(|d| d.domid)
    }

    pub fn name(&self, domid: u32) -> Option<String> {
        self.domains.get(&domid)?.name.clone()
    }

    /// To be called after every change that may have let `domid` run.
    pub fn went_live(&mut self, domid: u32) {
        let Some(domain) = self.domains.get(&domid).filter(|d| d.live() && d.domid != 0).cloned() else {
            return;
        };
        let twin = self.domains.values().find(|d| d.domid != domid && d.uuid == domain.uuid && d.live());
        if let Some(twin) = twin {
            let text = format!("{} runs as domain {domid} and as domain {}", domain.uuid, twin.domid);
            self.violations.push(text);
        }
        for (id, image) in &mut self.images {
            if image.uuid == domain.uuid && domain.image.as_ref() != Some(id) {
                image.stale = true;
            }
        }
        if domain.has_run {
            // Whatever image was made of this run (also the one it came from) is behind it now.
            for image in self.images.values_mut().filter(|i| i.uuid == domain.uuid) {
                image.stale = true;
            }
            return;
        }
        if let Some(image) = domain.image.as_ref().and_then(|id| self.images.get_mut(id)) {
            image.runs += 1;
            if image.uuid != domain.uuid {
                self.violations.push(format!("the image of {} runs as {}", image.uuid, domain.uuid));
            }
            if image.runs > 1 {
                self.violations.push(format!("an image of {} runs for the {}. time", image.uuid, image.runs));
            } else if image.stale {
                self.violations.push(format!("a stale image of {} runs: the guest has run since", image.uuid));
            }
        }
        self.runs.entry(domain.uuid.clone()).or_default().push(Run {
            domid,
            name: domain.name.clone(),
            image: domain.image.clone(),
        });
        if let Some(domain) = self.domains.get_mut(&domid) {
            domain.has_run = true;
        }
    }

    /// The guest is down, for `why`.
    pub fn shut(&mut self, domid: u32, why: i32) -> bool {
        let Some(domain) = self.domains.get_mut(&domid) else {
            return false;
        };
        if domain.shutdown.is_some() || domain.dying {
            return false;
        }
        domain.shutdown = Some(why);
        domain.request = None;
        domain.asked_to_suspend = false;
        self.releases += 1;
        true
    }

    /// A guest obeys a request to suspend itself, if there still is one.
    pub fn suspend(&mut self, domid: u32) -> bool {
        let asked = self.domains.get(&domid).is_some_and(|domain| domain.asked_to_suspend);
        asked && self.shut(domid, reason::SUSPEND)
    }

    /// The domain's end.
    pub fn destroy(&mut self, domid: u32) -> bool {
        let Some(domain) = self.domains.get_mut(&domid) else {
            return false;
        };
        self.free_kb += domain.memory_kb;
        domain.memory_kb = 0;
        self.due.retain(|d| d.domid != domid);
        if domain.guest.zombie {
            domain.dying = true;
            domain.name = None;
            domain.config = None;
            domain.userdata.clear();
        } else {
            self.domains.remove(&domid);
        }
        self.releases += 1;
        true
    }

    pub fn later(&mut self, ms: u64, domid: u32, what: &str) {
        self.due.push(Due { at_ms: now_ms() + ms, domid, what: what.into() });
        self.due.sort_by_key(|d| d.at_ms);
    }

    /// Does what has become due.
    pub fn advance(&mut self) {
        let now = now_ms();
        while let Some(at) = self.due.iter().position(|d| {
            // A paused guest does nothing until it runs again.
            d.at_ms <= now && self.domains.get(&d.domid).is_none_or(|d| !d.paused)
        }) {
            let due = self.due.remove(at);
            self.has_advanced = true;
            self.guest_does(due.domid, &due.what);
        }
    }

    /// When the next thing happens by itself.
    pub fn next_due(&self) -> Option<u64> {
        self.due.iter().filter(|d| self.domains.get(&d.domid).is_some_and(|d| !d.paused)).map(|d| d.at_ms).min()
    }

    /// A guest does something of its own. False if it makes no sense.
    pub fn guest_does(&mut self, domid: u32, what: &str) -> bool {
        match what {
            "ack" => {
                let Some(domain) = self.domains.get_mut(&domid) else {
                    return false;
                };
                domain.request = None;
                true
            }
            "poweroff" => self.shut(domid, reason::POWEROFF),
            "suspend" => self.suspend(domid),
            "reboot" => self.shut(domid, reason::REBOOT),
            "crash" => self.shut(domid, reason::CRASH),
            "watchdog" => self.shut(domid, reason::WATCHDOG),
            "soft_reset" => self.shut(domid, reason::SOFT_RESET),
            // As when someone else destroys it.
            "vanish" => self.destroy(domid),
            _ => match what.strip_prefix("eject:") {
                Some(vdev) => {
                    self.ejects.push((domid, vdev.to_owned()));
                    true
                }
                None => false,
            },
        }
    }

    /// Something that a guest, or someone else on the host, does now.
    pub fn guest(&mut self, value: &Value) -> Result<(), String> {
        let wanted = value.get("domain").ok_or("which domain?")?;
        let domid = match wanted {
            Value::Number(n) => n.as_u64().and_then(|n| u32::try_from(n).ok()),
            Value::String(name) => self.by_name(name),
            _ => None,
        }
        .ok_or_else(|| format!("no domain {wanted}"))?;
        let what = value.get("does").and_then(Value::as_str).ok_or("does what?")?;
        if let Some(ms) = value.get("after_ms").and_then(Value::as_u64) {
            self.later(ms, domid, what);
        } else if !self.guest_does(domid, what) {
            return Err(format!("domain {domid} can't {what} now"));
        }
        Ok(())
    }
}

/// Where the world is kept.
pub enum Store {
    Memory(Box<Mutex<World>>),
    File { path: PathBuf, here: Mutex<()> },
}

fn unpoisoned<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    pub fn memory() -> Store {
        Store::Memory(Box::default())
    }

    pub fn file(path: &Path) -> Store {
        Store::File { path: path.to_owned(), here: Mutex::new(()) }
    }

    /// Looks at the world and changes it; everyone else waits meanwhile.
    pub fn with<R>(&self, f: impl FnOnce(&mut World) -> R) -> R {
        match self {
            Store::Memory(world) => {
                let mut world = unpoisoned(world);
                world.advance();
                f(&mut world)
            }
            Store::File { path, here } => {
                let _here = unpoisoned(here);
                let _everywhere = lock_file(path);
                let before = fs::read_to_string(path).unwrap_or_default();
                let mut world: World = if before.trim().is_empty() {
                    World::default()
                } else {
                    serde_json::from_str(&before).unwrap_or_else(|e| panic!("fake-libxl: {}: {e}", path.display()))
                };
                world.advance();
                let result = f(&mut world);
                let after = serde_json::to_string(&world).expect("a world prints as JSON");
                if after != before {
                    let temporary = sibling(path, "new");
                    fs::write(&temporary, after)
                        .and_then(|()| fs::rename(&temporary, path))
                        .unwrap_or_else(|e| panic!("fake-libxl: {}: {e}", path.display()));
                }
                result
            }
        }
    }
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn lock_file(path: &Path) -> File {
    let lock = sibling(path, "lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock)
        .unwrap_or_else(|e| panic!("fake-libxl: {}: {e}", lock.display()));
    // SAFETY: flock takes a descriptor that is open here; it is released when `file` is closed.
    while unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } != 0 {
        let error = std::io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::EINTR), "fake-libxl: {error}");
    }
    file
}
