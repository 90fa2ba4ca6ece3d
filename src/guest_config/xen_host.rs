//! What of a Xen host decides what a guest's file means.

use super::xl_conf::XlConf;

/// The newest release of Xen 4 whose xl is known here, as its minor number. A key that no release has yet is said to
/// need the next one.
pub const NEWEST: u32 = 20;

/// The physical CPUs of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// How many CPUs the hypervisor can have: the highest CPU number, plus one.
    pub count: u32,
    /// The CPUs of each NUMA node, by the node's number.
    pub nodes: Vec<Vec<u32>>,
}

/// The host for which a guest's file is read. The default is a host of the newest known release, without an xl.conf.
#[derive(Clone, Debug)]
pub struct XenHost {
    /// Its xl.conf.
    pub xl_conf: XlConf,
    /// Which release of Xen 4 it runs: 17 for Xen 4.17. What a key means depends on it here and there.
    pub release: u32,
    /// Its CPUs, if Xen could be asked. Files that name NUMA nodes or `all` CPUs need them.
    pub cpus: Option<Cpus>,
}

impl Default for XenHost {
    fn default() -> Self {
        Self::of(XlConf::default())
    }
}

impl XenHost {
    /// A host of the newest known release with this xl.conf.
    pub fn of(xl_conf: XlConf) -> Self {
        Self { xl_conf, release: NEWEST, cpus: None }
    }
}
