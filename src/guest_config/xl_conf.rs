//! The host's xl.conf, as far as it decides what a guest becomes and how it is created.

use std::path::{Path, PathBuf};

use super::keys::{Keys, Number};
use super::{Diagnostic, Error, dom0_mem};

/// Whether memory is taken from dom0 when a guest needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Autoballoon {
    /// Off if the hypervisor was started with a fixed `dom0_mem`, else on.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl Autoballoon {
    /// Whether memory is taken from dom0 on a host of Xen 4.`release` with this command line of the hypervisor. `None`:
    /// the hypervisor could not be asked.
    pub fn is_on(self, release: u32, xen_command_line: Option<&str>) -> bool {
        match self {
            Self::On => true,
            Self::Off => false,
            Self::Auto => !xen_command_line.is_some_and(|line| dom0_mem::is_fixed(line, release)),
        }
    }
}

/// The CPUs that all guests of a kind are kept to.
#[derive(Clone, Debug)]
pub(super) struct Mask {
    pub(super) key: &'static str,
    pub(super) line: u32,
    pub(super) text: String,
}

impl Mask {
    /// Whether it is for PV guests, or for the others.
    pub(super) fn applies_to(&self, pv: bool) -> bool {
        match self.key {
            "vm.hvm.cpumask" => !pv,
            "vm.pv.cpumask" => pv,
            _ => true,
        }
    }
}

/// What xl.conf says; the default is that of a host without the file.
#[derive(Clone, Debug)]
pub struct XlConf {
    /// The file it was read from.
    pub path: PathBuf,
    /// `autoballoon`.
    pub autoballoon: Autoballoon,
    /// `lockfile`: what xl locks while it creates a guest with autoballoon on. `None`: xl's built-in path.
    pub lockfile: Option<PathBuf>,
    /// `run_hotplug_scripts`.
    pub run_hotplug_scripts: bool,
    /// `claim_mode`.
    pub claim_mode: bool,
    /// `blkdev_start`.
    pub blkdev_start: Option<String>,
    /// `vif.default.script`.
    pub vif_script: Option<String>,
    /// `vif.default.bridge`.
    pub vif_bridge: Option<String>,
    /// `vif.default.gatewaydev`.
    pub vif_gatewaydev: Option<String>,
    /// `vif.default.backend`.
    pub vif_backend: Option<String>,
    /// `max_grant_frames`.
    pub max_grant_frames: Option<u32>,
    /// `max_maptrack_frames`.
    pub max_maptrack_frames: Option<u32>,
    /// `max_grant_version`.
    pub max_grant_version: Option<u32>,
    /// `bootloader_restrict`.
    pub bootloader_restrict: Option<bool>,
    /// `domid_policy`: new guests get numbers at random instead of the next free one.
    pub random_domid: bool,
    /// What xl would warn about.
    pub warnings: Vec<Diagnostic>,
    pub(super) masks: Vec<Mask>,
}

impl Default for XlConf {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            autoballoon: Autoballoon::Auto,
            lockfile: None,
            run_hotplug_scripts: true,
            claim_mode: true,
            blkdev_start: None,
            vif_script: None,
            vif_bridge: None,
            vif_gatewaydev: None,
            vif_backend: None,
            max_grant_frames: None,
            max_maptrack_frames: None,
            max_grant_version: None,
            bootloader_restrict: None,
            random_domid: false,
            warnings: Vec::new(),
            masks: Vec::new(),
        }
    }
}

impl XlConf {
    /// Reads the file; a missing one gives the defaults.
    pub fn read(path: &Path) -> Result<Self, Error> {
        match super::read_file(path) {
            Ok(text) => Self::parse(path, &text),
            Err(Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self { path: path.to_owned(), ..Self::default() })
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the text of a file; `path` is for messages.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, Error> {
        let mut keys = Keys::parse(path, text)?;
        let mut conf = Self { path: path.to_owned(), ..Self::default() };
        conf.autoballoon = match keys.text("autoballoon")?.as_deref() {
            None | Some("auto") => Autoballoon::Auto,
            Some("on" | "1") => Autoballoon::On,
            Some("off" | "0") => Autoballoon::Off,
            Some(_) => {
                keys.warn("autoballoon", "`auto`, `on` or `off` is expected; taken as `auto`");
                Autoballoon::Auto
            }
        };
        conf.lockfile = keys.text("lockfile")?.map(PathBuf::from);
        conf.run_hotplug_scripts = keys.flag("run_hotplug_scripts").unwrap_or(true);
        conf.claim_mode = keys.flag("claim_mode").unwrap_or(true);
        conf.blkdev_start = keys.text("blkdev_start")?;
        conf.vif_script = newer(&mut keys, "vifscript", "vif.default.script")?;
        conf.vif_bridge = newer(&mut keys, "defaultbridge", "vif.default.bridge")?;
        conf.vif_gatewaydev = keys.text("vif.default.gatewaydev")?;
        conf.vif_backend = keys.text("vif.default.backend")?;
        conf.max_grant_frames = limit(&keys, "max_grant_frames")?;
        conf.max_maptrack_frames = limit(&keys, "max_maptrack_frames")?;
        conf.max_grant_version = limit(&keys, "max_grant_version")?;
        conf.bootloader_restrict = keys.flag("bootloader_restrict");
        for key in ["vm.cpumask", "vm.hvm.cpumask", "vm.pv.cpumask"] {
            if let Some(text) = keys.text(key)? {
                let line = keys.settings().iter().find(|s| s.name == key).map_or(0, |s| s.line);
                conf.masks.push(Mask { key, line, text });
            }
        }
        match keys.text("domid_policy")?.as_deref() {
            None | Some("xen") => {}
            Some("random") => conf.random_domid = true,
            Some(_) => keys.warn("domid_policy", "`xen` or `random` is expected; taken as `xen`"),
        }
        conf.warnings = keys.into_warnings();
        Ok(conf)
    }
}

/// The value of a key that has an older name.
fn newer(keys: &mut Keys, old: &str, new: &str) -> Result<Option<String>, Error> {
    let fallback = keys.text(old)?;
    if fallback.is_some() {
        keys.warn(old, format_args!("this name is deprecated; use {new}"));
    }
    Ok(keys.text(new)?.or(fallback))
}

/// A limit of the hypervisor's grant tables.
pub(super) fn limit(keys: &Keys, key: &str) -> Result<Option<u32>, Error> {
    if keys.as_number(key) == Number::Absent {
        return Ok(None);
    }
    let number = keys.strict_number(key, 0..=i64::from(i32::MAX))?;
    Ok(number.and_then(|number| u32::try_from(number).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(source: &str) -> Result<XlConf, Error> {
        XlConf::parse(Path::new("xl.conf"), source.as_bytes())
    }

    #[test]
    fn a_missing_file_gives_the_defaults() {
        let conf = XlConf::read(Path::new("/nonexistent/xl.conf")).unwrap();
        assert!(conf.run_hotplug_scripts && conf.claim_mode && conf.vif_bridge.is_none());
        assert_eq!(conf.autoballoon, Autoballoon::Auto);
    }

    #[test]
    fn its_keys() {
        let conf = parse(
            "autoballoon=0\nlockfile='/x'\nrun_hotplug_scripts=0\nclaim_mode=0\nblkdev_start='xvdb'\n\
             vifscript='old'\nvif.default.script='new'\ndefaultbridge='br9'\nvif.default.gatewaydev='eth0'\n\
             vif.default.backend='net'\nmax_grant_frames=64\nmax_maptrack_frames=1024\nmax_grant_version=1\n",
        )
        .unwrap();
        assert_eq!(conf.autoballoon, Autoballoon::Off);
        assert_eq!(conf.lockfile.as_deref(), Some(Path::new("/x")));
        assert!(!conf.run_hotplug_scripts && !conf.claim_mode);
        assert_eq!(conf.vif_script.as_deref(), Some("new"));
        assert_eq!(conf.vif_bridge.as_deref(), Some("br9"));
        assert_eq!(
            (conf.max_grant_frames, conf.max_maptrack_frames, conf.max_grant_version),
            (Some(64), Some(1024), Some(1))
        );
        assert_eq!(conf.warnings.len(), 2);
        assert!(parse("domid_policy='random'\n").unwrap().random_domid);
        let masks = parse("\nvm.pv.cpumask='0-1'\nvm.cpumask='all'").unwrap().masks;
        let shown: Vec<_> = masks.iter().map(|mask| (mask.key, mask.line, mask.text.as_str())).collect();
        assert_eq!(shown, [("vm.cpumask", 3, "all"), ("vm.pv.cpumask", 2, "0-1")]);
    }

    #[test]
    fn memory_is_taken_from_dom0_unless_it_is_fixed() {
        let fixed = Some("placeholder dom0_mem=1G");
        for (autoballoon, line, expected) in [
            (Autoballoon::On, fixed, true),
            (Autoballoon::Off, None, false),
            (Autoballoon::Auto, fixed, false),
            (Autoballoon::Auto, Some("placeholder"), true),
            (Autoballoon::Auto, None, true),
        ] {
            assert_eq!(autoballoon.is_on(17, line), expected, "{autoballoon:?} {line:?}");
        }
    }

    #[test]
    fn what_xl_refuses() {
        assert!(parse("max_grant_frames='-1'\n").is_err());
        assert!(parse("claim_mode=True\n").is_err());
        assert_eq!(parse("autoballoon='maybe'\n").unwrap().warnings.len(), 1);
        assert_eq!(parse("domid_policy='maybe'\n").unwrap().warnings.len(), 1);
    }
}
