//! The settings by name, and what a mistake in each means: definition only, because `build.rs` includes this file to
//! write the man page's table from it.

/// A setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The name, without `XENDOMAINS_`.
    pub name: &'static str,
    /// The default, as it is written in the file.
    pub default: &'static str,
    /// The consequence of an empty default, for the settings that have one.
    pub left_out: Option<&'static str>,
    /// True if start could lose a guest's state without knowing the value, so that it starts nothing.
    pub start_needs: bool,
    /// The meaning of the default where the scripts did nothing for a name that the file does not set.
    pub unset: Option<Unset>,
}

/// The meaning of a default that the scripts did not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unset {
    /// One for a start.
    Start(&'static str),
    /// One for a stop.
    Stop(&'static str),
}

impl Known {
    /// A value that is not understood means this.
    pub fn instead(&self) -> String {
        match self.left_out {
            Some(consequence) => consequence.to_owned(),
            None => format!("{} counts instead", self.default),
        }
    }
}

const fn known(name: &'static str, default: &'static str) -> Known {
    Known { name, default, left_out: None, start_needs: false, unset: None }
}

const fn step(name: &'static str, left_out: &'static str) -> Known {
    Known { left_out: Some(left_out), ..known(name, "") }
}

/// All settings, in the order of the template.
pub const KNOWN: &[Known] = &[
    step("SYSRQ", "no SysRq is sent"),
    known("USLEEP", "100000"),
    step("MIGRATE", "guests are not migrated"),
    known("MIGRATE_JOBS", "2"),
    Known {
        start_needs: true,
        unset: Some(Unset::Stop("guests are saved to /var/lib/xen/save")),
        ..known("SAVE", "/var/lib/xen/save")
    },
    Known {
        unset: Some(Unset::Stop("guests that are not saved are shut down")),
        ..known("SHUTDOWN", "--halt --wait")
    },
    Known {
        unset: Some(Unset::Stop("whatever still runs in the end is shut down")),
        ..known("SHUTDOWN_ALL", "--all --halt --wait")
    },
    known("AUTO_ONLY", "false"),
    Known { unset: Some(Unset::Stop("each step is ended after 300 s")), ..known("STOP_MAXWAIT", "300") },
    known("STOP_TIMEOUT", "0"),
    known("DESTROY", "false"),
    known("SAVE_JOBS", "2"),
    Known {
        start_needs: true,
        unset: Some(Unset::Start("saved images are restored")),
        ..known("RESTORE", "true")
    },
    known("RESTORE_FAILED", "keep"),
    Known {
        start_needs: true,
        unset: Some(Unset::Start("the guests of /etc/xen/auto are started")),
        ..known("AUTO", "/etc/xen/auto")
    },
    Known {
        unset: Some(Unset::Start("there is a pause of 5 s after each creation")),
        ..known("CREATE_USLEEP", "5000000")
    },
    known("DEVICE_WAIT", "0"),
    known("START_MAXWAIT", "600"),
    step("START_JOBS", "as many as without it"),
    known("MONITOR", "true"),
    known("RESTART_SOON", "60"),
    known("RESTART_BURST", "5"),
    known("RESTART_PAUSE", "300"),
    known("RESTART_TRIES", "8"),
    known("TOOLSTACK", "auto"),
];
