//! Which physical CPUs a guest's virtual CPUs may run on: `cpus`, `cpus_soft` and the masks of xl.conf.

use serde_json::{Map, Value, json};

use super::cpu_set::{self, CpuSet};
use super::mapping::Mapping;
use super::table::{Field, Place};
use super::xen_host::XenHost;
use super::xl_conf::Mask;
use super::{Diagnostic, Error, defbool, syntax};

/// The field of the CPUs that a virtual CPU must run on.
const HARD: &str = "vcpu_hard_affinity";

/// Says that a value was read for CPUs that may not be those of the guest's host.
pub(super) const NOT_XENS_CPUS: &str = "Xen can't be asked; the CPUs of this machine are taken for the host's";

/// `cpus`: where the virtual CPUs must run.
pub(super) fn cpus(m: &mut Mapping<'_>) -> Result<(), Error> {
    affinity(m, "cpus", HARD)
}

/// `cpus_soft`: where they had best run.
pub(super) fn cpus_soft(m: &mut Mapping<'_>) -> Result<(), Error> {
    affinity(m, "cpus_soft", "vcpu_soft_affinity")
}

/// A string is for all virtual CPUs, the items of a list are for one each.
fn affinity(m: &mut Mapping<'_>, key: &'static str, field: &'static str) -> Result<(), Error> {
    let count = m.get(Field(Place::Build, "max_vcpus")).and_then(Value::as_u64).unwrap_or(0);
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let mut sets = Vec::new();
    let placed;
    if let Some(syntax::Value::List(_)) = m.keys.value(key) {
        let texts = m.keys.texts(key)?.unwrap_or_default();
        if texts.len() > count {
            m.keys.warn(key, format_args!("there are only {count} virtual CPUs; the other items are ignored"));
        }
        for text in texts.iter().take(count) {
            sets.push(json!(set(m, key, text)?));
        }
        placed = true;
    } else if let Some(text) = m.keys.text(key)? {
        let set = json!(set(m, key, &text)?);
        if count == 0 {
            m.keys.warn(key, "it is ignored, because neither vcpus nor maxvcpus is given");
        }
        sets = vec![set; count];
        placed = field != HARD;
    } else {
        return Ok(());
    }
    if !sets.is_empty() {
        m.put(Field(Place::Build, field), sets);
    }
    if placed {
        m.put(Field(Place::Build, "numa_placement"), defbool(false));
    }
    Ok(())
}

fn set(m: &mut Mapping<'_>, key: &str, text: &str) -> Result<CpuSet, Error> {
    let (mut set, mut warnings) = (CpuSet::new(), Vec::new());
    let cpus = m.host.cpus.as_ref();
    cpu_set::add(&mut set, text, cpus, &mut warnings).map_err(|why| m.keys.error(key, why))?;
    if cpus.is_some_and(|cpus| !cpus.from_xen) {
        m.keys.warn(key, NOT_XENS_CPUS);
    }
    for warning in warnings {
        m.keys.warn(key, warning);
    }
    Ok(set)
}

/// Takes the CPUs that xl.conf keeps from guests of this type out of the guest's.
pub(super) fn masks(m: &mut Mapping<'_>) -> Result<(), Error> {
    apply_masks(m.host, &mut m.root).map_err(|error| match error {
        MaskError::Mask(error) => error,
        empty @ MaskError::Empty(_) => m.keys.error("cpus", empty.to_string()),
    })
}

/// Why a guest can't be kept to the CPUs of xl.conf.
#[derive(Debug, thiserror::Error)]
pub enum MaskError {
    /// Nothing is left for a virtual CPU.
    #[error("there is no CPU that virtual CPU {0} may run on")]
    Empty(usize),
    /// A mask can't be read without the host's CPUs.
    #[error(transparent)]
    Mask(Error),
}

/// Applies the masks of xl.conf to a configuration in libxl's JSON.
pub(super) fn apply_masks(host: &XenHost, config: &mut Map<String, Value>) -> Result<(), MaskError> {
    let pv = config.get("c_info").is_some_and(|info| info["type"] == "pv");
    let mut allowed: Option<CpuSet> = None;
    for mask in host.xl_conf.masks.iter().filter(|mask| mask.applies_to(pv)) {
        let Some(set) = mask_set(host, mask, &mut Vec::new()).map_err(MaskError::Mask)? else { continue };
        allowed = Some(match allowed {
            Some(allowed) => &allowed & &set,
            None => set,
        });
    }
    let Some(build) = config.get_mut("b_info").and_then(Value::as_object_mut) else { return Ok(()) };
    if let (Some(allowed), false) = (&allowed, build.contains_key(HARD)) {
        let count = build.get("max_vcpus").and_then(Value::as_u64).unwrap_or(0);
        if count > 0 {
            build.insert(HARD.to_owned(), json!(vec![allowed; usize::try_from(count).unwrap_or(usize::MAX)]));
        }
    }
    let room = cpu_set::room(host.cpus.as_ref());
    let stays = |cpu: &Value| {
        let cpu = cpu.as_u64().and_then(|cpu| u32::try_from(cpu).ok()).filter(|&cpu| cpu < room);
        cpu.is_some_and(|cpu| allowed.as_ref().is_none_or(|allowed| allowed.contains(&cpu)))
    };
    let sets = build.get_mut(HARD).and_then(Value::as_array_mut).into_iter().flatten();
    for (vcpu, set) in sets.filter_map(Value::as_array_mut).enumerate() {
        set.retain(stays);
        if set.is_empty() {
            return Err(MaskError::Empty(vcpu));
        }
    }
    Ok(())
}

/// What is odd about the masks of xl.conf.
pub(super) fn mask_warnings(host: &XenHost) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for mask in &host.xl_conf.masks {
        // That a mask can't be read at all is an error of each guest.
        let _ = mask_set(host, mask, &mut warnings);
    }
    warnings
}

/// The CPUs of a mask; `None` when they are all there are. Of a mask that is wrong somewhere, what stands before counts.
fn mask_set(host: &XenHost, mask: &Mask, warnings: &mut Vec<Diagnostic>) -> Result<Option<CpuSet>, Error> {
    if mask.text == "all" {
        return Ok(None);
    }
    let (path, cpus) = (&host.xl_conf.path, host.cpus.as_ref());
    let (mut set, mut odd) = (CpuSet::new(), Vec::new());
    match (cpu_set::add(&mut set, &mask.text, cpus, &mut odd), cpus) {
        (Err(message), None) => {
            return Err(Error::Key { path: path.clone(), line: mask.line, key: mask.key.to_owned(), message });
        }
        (Err(why), Some(_)) => odd.push(format!("{why}; only what stands before it counts")),
        (Ok(()), _) => {}
    }
    warnings.extend(odd.into_iter().map(|what| Diagnostic {
        path: path.clone(),
        line: Some(mask.line),
        message: format!("{}: {what}", mask.key),
    }));
    Ok(if cpus.is_some_and(|cpus| set == cpu_set::all(cpus)) { None } else { Some(set) })
}
