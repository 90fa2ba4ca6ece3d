//! What a failed libxl call reports.

use std::fmt;

use xenlight_sys::libxl as sys;

use crate::log::LogRecord;
use crate::{Domid, Operation};

/// A libxl error code. Codes that this crate has no name for are kept as [`ErrorCode::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// No particular reason given.
    NonSpecific,
    /// libxl and its caller disagree about the interface's version.
    Version,
    /// The call failed; the log lines say why.
    Fail,
    /// Not implemented.
    NotImplemented,
    /// Out of memory.
    NoMemory,
    /// An argument or the configuration is invalid.
    Invalid,
    /// The call failed and could not clean up after itself.
    BadFail,
    /// The guest did not answer within libxl's limit.
    GuestTimedOut,
    /// libxl's own limit was reached.
    TimedOut,
    /// The guest has no PV drivers that could answer.
    NoParavirt,
    /// Not ready.
    NotReady,
    /// An event could not be registered.
    OsEventRegistration,
    /// A buffer is too small.
    BufferFull,
    /// A child process that libxl does not know.
    UnknownChild,
    /// A lock could not be taken.
    LockFail,
    /// The domain has no stored configuration.
    NoStoredConfig,
    /// The device exists already.
    DeviceExists,
    /// The vNUMA configuration is invalid.
    VnumaInvalid,
    /// No such domain.
    DomainNotFound,
    /// The operation was aborted.
    Aborted,
    /// Not found.
    NotFound,
    /// The domain was destroyed meanwhile.
    DomainDestroyed,
    /// The feature has been removed from libxl.
    FeatureRemoved,
    /// A code without a name here.
    Other(i32),
}

impl ErrorCode {
    /// The code for a return value of libxl.
    pub fn from_raw(raw: i32) -> Self {
        match raw {
            sys::ERROR_NONSPECIFIC => Self::NonSpecific,
            sys::ERROR_VERSION => Self::Version,
            sys::ERROR_FAIL => Self::Fail,
            sys::ERROR_NI => Self::NotImplemented,
            sys::ERROR_NOMEM => Self::NoMemory,
            sys::ERROR_INVAL => Self::Invalid,
            sys::ERROR_BADFAIL => Self::BadFail,
            sys::ERROR_GUEST_TIMEDOUT => Self::GuestTimedOut,
            sys::ERROR_TIMEDOUT => Self::TimedOut,
            sys::ERROR_NOPARAVIRT => Self::NoParavirt,
            sys::ERROR_NOT_READY => Self::NotReady,
            sys::ERROR_OSEVENT_REG_FAIL => Self::OsEventRegistration,
            sys::ERROR_BUFFERFULL => Self::BufferFull,
            sys::ERROR_UNKNOWN_CHILD => Self::UnknownChild,
            sys::ERROR_LOCK_FAIL => Self::LockFail,
            sys::ERROR_JSON_CONFIG_EMPTY => Self::NoStoredConfig,
            sys::ERROR_DEVICE_EXISTS => Self::DeviceExists,
            sys::ERROR_VNUMA_CONFIG_INVALID => Self::VnumaInvalid,
            sys::ERROR_DOMAIN_NOTFOUND => Self::DomainNotFound,
            sys::ERROR_ABORTED => Self::Aborted,
            sys::ERROR_NOTFOUND => Self::NotFound,
            sys::ERROR_DOMAIN_DESTROYED => Self::DomainDestroyed,
            sys::ERROR_FEATURE_REMOVED => Self::FeatureRemoved,
            _ => Self::Other(raw),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NonSpecific => "unspecified error",
            Self::Version => "libxl does not support this interface version",
            Self::Fail => "libxl reported a failure",
            Self::NotImplemented => "not implemented by libxl",
            Self::NoMemory => "out of memory",
            Self::Invalid => "invalid argument or configuration",
            Self::BadFail => "failed, and cleaning up failed too",
            Self::GuestTimedOut => "the guest did not answer in time",
            Self::TimedOut => "timed out",
            Self::NoParavirt => "the guest has no PV drivers",
            Self::NotReady => "not ready",
            Self::OsEventRegistration => "an event could not be registered",
            Self::BufferFull => "buffer too small",
            Self::UnknownChild => "unknown child process",
            Self::LockFail => "a lock could not be taken",
            Self::NoStoredConfig => "the domain has no stored configuration",
            Self::DeviceExists => "the device exists already",
            Self::VnumaInvalid => "invalid vNUMA configuration",
            Self::DomainNotFound => "no such domain",
            Self::Aborted => "aborted",
            Self::NotFound => "not found",
            Self::DomainDestroyed => "the domain was destroyed",
            Self::FeatureRemoved => "libxl no longer has this feature",
            Self::Other(raw) => return write!(f, "libxl error {raw}"),
        })
    }
}

/// What went wrong with a call, apart from libxl's words about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// libxl returned this code.
    #[error("{0}")]
    Libxl(ErrorCode),
    /// libxl's event machinery broke (xenstored gone, hypervisor not answering): the context is of no more use.
    #[error("libxl's event handling broke: {0}")]
    Disaster(String),
    /// libxl accepted the configuration but ignored these parts of it, as JSON pointers.
    #[error("this libxl ignores {}", .0.join(", "))]
    ConfigDropped(Vec<String>),
    /// The configuration is not what libxl's JSON must be.
    #[error("bad domain configuration: {0}")]
    BadConfig(String),
    /// An argument contains a NUL byte or is otherwise not something that C can take.
    #[error("bad argument: {0}")]
    BadArgument(String),
    /// libxl returned something that this crate can't read.
    #[error("libxl returned {0}")]
    BadAnswer(String),
    /// A system call of this crate failed.
    #[error("{0}")]
    System(#[from] std::io::Error),
    /// The operation did not end although it was aborted.
    #[error("{0}")]
    Stuck(String),
    /// The call can't be made here or now, for this reason. Nothing has happened.
    #[error("{0}")]
    NotAllowed(&'static str),
}

/// A failed libxl call: which, for which domain, why, and what libxl logged about it.
#[derive(Debug)]
pub struct Error {
    pub(crate) action: &'static str,
    pub(crate) domid: Option<Domid>,
    pub(crate) cause: Cause,
    pub(crate) log: Vec<LogRecord>,
    pub(crate) leftover: Option<Domid>,
}

/// What fallible calls of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(action: &'static str, domid: Option<Domid>, cause: Cause) -> Self {
        Self { action, domid, cause, log: Vec::new(), leftover: None }
    }

    /// What was tried, e.g. `create domain`.
    pub fn action(&self) -> &'static str {
        self.action
    }

    /// The domain concerned, when the call named one.
    pub fn domid(&self) -> Option<Domid> {
        self.domid
    }

    /// What went wrong.
    pub fn cause(&self) -> &Cause {
        &self.cause
    }

    /// libxl's code, when libxl returned one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self.cause {
            Cause::Libxl(code) => Some(code),
            _ => None,
        }
    }

    /// What libxl logged (warnings and errors) while the call was under way, oldest first: the lines that name
    /// its domain and those that name none.
    pub fn log(&self) -> &[LogRecord] {
        &self.log
    }

    /// The half-made domain that an aborted creation has left behind. The caller must destroy it.
    pub fn leftover(&self) -> Option<Domid> {
        self.leftover
    }

    /// Whether the operation ended because [`Operation::abort`] was called.
    pub fn is_aborted(&self) -> bool {
        self.code() == Some(ErrorCode::Aborted)
    }
}

impl fmt::Display for Error {
    /// One line: the action, the domain, the cause and libxl's last error line, which usually says most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action)?;
        if let Some(domid) = self.domid {
            write!(f, " (domain {domid})")?;
        }
        write!(f, ": {}", self.cause)?;
        let errors = self.log.iter().filter(|r| r.level >= crate::LogLevel::Error);
        if let Some(first) = errors.clone().next() {
            write!(f, ": {}", first.text.trim_end())?;
        }
        let more = errors.skip(1).count();
        if more > 0 {
            write!(f, " (and {more} more)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::System(e) => Some(e),
            _ => None,
        }
    }
}

/// How waiting with a deadline ended.
#[derive(Debug)]
pub enum Wait<T> {
    /// The operation has completed.
    Done(Result<T>),
    /// The deadline passed first; the operation is still under way.
    Pending(Operation<T>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_text() {
        let mut texts: Vec<String> = (-33..0).map(|raw| ErrorCode::from_raw(raw).to_string()).collect();
        texts.sort();
        let before = texts.len();
        texts.dedup();
        assert_eq!(texts.len(), before);
        assert_eq!(ErrorCode::from_raw(-22), ErrorCode::Aborted);
        assert_eq!(ErrorCode::from_raw(-21), ErrorCode::DomainNotFound);
        assert_eq!(ErrorCode::from_raw(-999), ErrorCode::Other(-999));
        assert_eq!(ErrorCode::from_raw(7), ErrorCode::Other(7));
    }

    #[test]
    fn display_names_action_domain_cause_and_first_error_line() {
        let record =
            |level, text: &str| LogRecord { level, errno: None, context: Some("libxl".into()), text: text.into() };
        let mut error = Error::new("save domain", Some(7), Cause::Libxl(ErrorCode::Fail));
        assert_eq!(error.to_string(), "save domain (domain 7): libxl reported a failure");
        error.log = vec![
            record(crate::LogLevel::Warn, "careful"),
            record(crate::LogLevel::Error, "disk full\n"),
            record(crate::LogLevel::Error, "gave up"),
        ];
        assert_eq!(error.to_string(), "save domain (domain 7): libxl reported a failure: disk full (and 1 more)");
    }
}
