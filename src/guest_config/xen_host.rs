//! What of a Xen host decides what a guest's file means.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::Diagnostic;
use super::affinity::{self, MaskError};
use super::reader::Reader;
use super::xl_conf::XlConf;

/// The newest release of Xen 4 whose xl is known here, as its minor number. It is taken for the host's where nobody says
/// which one it is.
pub const NEWEST: u32 = 22;

/// The releases of Xen 4 whose xl is known here, as their minor numbers.
pub const KNOWN: RangeInclusive<u32> = 14..=NEWEST;

/// Asks libxl for a domain number at random.
const RANDOM_DOMID: u32 = u32::MAX - 1;

/// The physical CPUs of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// How many CPUs the hypervisor can have: the highest CPU number, plus one.
    pub count: u32,
    /// How many CPUs are online.
    pub online: u32,
    /// The CPUs of each NUMA node, by the node's number.
    pub nodes: Vec<Vec<u32>>,
    /// Whether Xen has told this. If not, these are the CPUs of the machine that the program runs on.
    pub from_xen: bool,
}

/// The host for which a guest's file is read. The default is a host of the newest known release, without an xl.conf.
#[derive(Clone, Debug)]
pub struct XenHost {
    /// Its xl.conf.
    pub xl_conf: XlConf,
    /// Which release of Xen 4 it runs: 17 for Xen 4.17. What a key means depends on it here and there.
    pub release: u32,
    /// Which update of the release: 5 for Xen 4.17.5. If it is not known, the release's last one is assumed.
    pub update: Option<u32>,
    /// Its CPUs, if they are known. Files that name NUMA nodes or `all` CPUs need them.
    pub cpus: Option<Cpus>,
    /// Where its Xen has boot programs for guests, if known; else the place in Debian's packages is assumed.
    pub firmware_dir: Option<PathBuf>,
    /// Who reads guests' files, if not this program.
    pub reader: Option<Reader>,
}

impl Default for XenHost {
    fn default() -> Self {
        Self::of(XlConf::default())
    }
}

impl XenHost {
    /// A host of the newest known release with this xl.conf.
    pub fn of(xl_conf: XlConf) -> Self {
        Self { xl_conf, release: NEWEST, update: None, cpus: None, firmware_dir: None, reader: None }
    }

    /// What xl would warn about whatever guest it makes.
    pub fn warnings(&self) -> Vec<Diagnostic> {
        self.xl_conf.warnings.iter().cloned().chain(affinity::mask_warnings(self)).collect()
    }

    /// Makes a configuration one of this host, as xl does with that of a saved guest: keeps it to the CPUs that xl.conf
    /// has for its type, and has its number chosen as xl.conf says.
    pub fn before_creation(&self, config: &mut Value) -> Result<(), MaskError> {
        let Some(config) = config.as_object_mut() else { return Ok(()) };
        affinity::apply_masks(self, config)?;
        self.choose_number(config);
        Ok(())
    }

    /// Only what xl does with the configuration of a guest that it restarts.
    pub fn before_restart(&self, config: &mut Value) {
        if let Some(config) = config.as_object_mut() {
            self.choose_number(config);
        }
    }

    fn choose_number(&self, config: &mut Map<String, Value>) {
        let info = config.get_mut("c_info").and_then(Value::as_object_mut);
        if let Some(info) = info.filter(|_| self.xl_conf.random_domid) {
            info.insert("domid".to_owned(), RANDOM_DOMID.into());
        }
    }

    /// Whether it runs an older release than this one; 14 stands for "4.14 or earlier".
    pub(super) fn is_before(&self, since: u8) -> bool {
        since > 14 && self.release < u32::from(since)
    }

    /// Whether its update is older than the one that is listed for its release.
    pub(super) fn is_older_than_update(&self, updates: &[(u32, u32)]) -> bool {
        let listed = updates.iter().find(|(release, _)| *release == self.release);
        listed.is_some_and(|(_, since)| self.update.is_some_and(|update| update < *since))
    }

    /// Where its Xen has boot programs for guests.
    pub(super) fn firmware_dir(&self) -> PathBuf {
        self.firmware_dir.clone().unwrap_or_else(|| debian_firmware_dir(self.release))
    }
}

/// Where Debian's packages of a release have boot programs for guests.
pub fn debian_firmware_dir(release: u32) -> PathBuf {
    format!("/usr/lib/xen-4.{release}/boot").into()
}
