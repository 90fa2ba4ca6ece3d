//! What the exit codes mean. They are those of the LSB for init scripts.

use std::process::ExitCode;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: everything was done. Also: this is not a Xen host (start and stop).
    Done,
    /// 1: something failed for at least one guest, the settings have mistakes, or another xendomains is at work.
    Failed,
    /// 2: wrong usage. (The command line parser ends the program itself with this code.)
    Usage,
    /// 4: only root may do this.
    NotRoot,
    /// 5: there is no usable toolstack.
    NoToolstack,
    /// 6: no guest was touched, because the settings are missing or start can't know what it must.
    Settings,
    /// `status` 0: guests run, and every guest of the AUTO directory does.
    AllRunning,
    /// `status` 1: guests run, but one of the AUTO directory does not, an image waits, or a guest may run elsewhere.
    SomeMissing,
    /// `status` 3: no guest runs.
    NoneRunning,
    /// `status` 4: not known, because Xen can't be asked or the settings don't say what should run.
    Unknown,
}

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done | Exit::AllRunning => 0,
            Exit::Failed | Exit::SomeMissing => 1,
            Exit::Usage => 2,
            Exit::NoneRunning => 3,
            Exit::NotRoot | Exit::Unknown => 4,
            Exit::NoToolstack => 5,
            Exit::Settings => 6,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        exit.code().into()
    }
}
