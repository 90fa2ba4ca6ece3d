//! The host's processors.

use std::ffi::c_int;

use xenlight_sys::Block;
use xenlight_sys::libxl as sys;

use crate::context::Context;
use crate::error::{Cause, ErrorCode, Result};

/// What libxl gives as the node of a processor that isn't there.
const NO_NODE: u32 = u32::MAX;

/// The processors of a host, as [`Context::host_cpus`] tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostCpus {
    /// One more than the highest number that a processor of this host can have.
    pub count: u32,
    /// How many are online.
    pub online: u32,
    /// How many NUMA nodes there are, those without processors too.
    pub nodes: u32,
    /// The NUMA node of each processor, by the processor's number; `None` for one that isn't there. Numbers behind the
    /// last processor may be missing.
    pub node_of: Vec<Option<u32>>,
}

/// # The host
impl Context {
    /// The host's physical processors and NUMA nodes.
    ///
    /// These are the hypervisor's, not the ones that dom0 sees. They change when processors are taken on- or offline.
    /// May be called from any thread; it asks the hypervisor twice and waits for nothing else.
    ///
    /// # Errors
    /// When the hypervisor can't be asked.
    ///
    /// Wraps `libxl_get_physinfo` and `libxl_get_cpu_topology`.
    #[doc(alias = "libxl_get_physinfo")]
    #[doc(alias = "libxl_get_cpu_topology")]
    #[doc(alias = "libxl_get_max_cpus")]
    #[doc(alias = "libxl_get_online_cpus")]
    pub fn host_cpus(&self) -> Result<HostCpus> {
        const ACTION: &str = "query the host's processors";
        let user = &self.user;
        let mut room = Block::zeroed();
        let raw: *mut sys::libxl_physinfo = room.as_mut_ptr();
        let lib = user.enter(ACTION, None)?;
        let mark = user.logger.mark();
        // SAFETY: `room` is large and aligned enough for the structure of every release; the context is alive.
        let rc = unsafe {
            lib.libxl_physinfo_init(raw);
            lib.libxl_get_physinfo(user.ctx(), raw)
        };
        // SAFETY: the structure has been initialised, and libxl has filled it in if `rc` is 0. Its first fields, which are
        // numbers, are the same in every release. What it owns is freed once.
        let (highest, online, nodes) = unsafe {
            let numbers = ((*raw).max_cpu_id, (*raw).nr_cpus, (*raw).nr_nodes);
            lib.libxl_physinfo_dispose(raw);
            numbers
        };
        user.check(ACTION, None, mark, rc)?;

        let mark = user.logger.mark();
        let mut count: c_int = 0;
        // SAFETY: the context is alive; `count` is a place for the number of entries.
        let list = unsafe { lib.libxl_get_cpu_topology(user.ctx(), &mut count) };
        if list.is_null() {
            return Err(user.failed(ACTION, None, mark, Cause::Libxl(ErrorCode::Fail)));
        }
        // SAFETY: libxl returned `count` entries, whose layout is the same in every release.
        let entries = unsafe { std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0)) };
        let node_of = entries.iter().map(|entry| Some(entry.node).filter(|&node| node != NO_NODE)).collect();
        // SAFETY: the list came from libxl with this count and is not used any more.
        unsafe { lib.libxl_cputopology_list_free(list, count) };
        Ok(HostCpus { count: highest.saturating_add(1), online, nodes, node_of })
    }
}
