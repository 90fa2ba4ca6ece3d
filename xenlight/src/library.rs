//! The libxl that is used.

use std::path::Path;
use std::sync::{Arc, Mutex};

use xenlight_sys as sys;
use xenlight_sys::{OpenError, Release, ReleaseError};

use crate::inside::Inside;

/// An opened libxl. Clones share it; it stays loaded until the process ends.
#[derive(Clone, Debug)]
pub struct Library(Arc<sys::Library>);

/// Why there is no libxl to use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// The running hypervisor's release can't be told, usually because none is running.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// There is no usable libxl of that release.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl Library {
    /// Opens the libxl that belongs to the running hypervisor, whatever other releases are installed: no other one
    /// can talk to it.
    ///
    /// # Errors
    /// When this machine does not run under Xen, and as [`Library::open`].
    pub fn open_running() -> Result<Self, LibraryError> {
        Self::open(Release::running()?)
    }

    /// Opens the libxl of a release.
    ///
    /// # Errors
    /// When the release is not one that this crate is verified with, or its library is not installed.
    pub fn open(release: Release) -> Result<Self, LibraryError> {
        Ok(Self(Arc::new(sys::Library::open(release)?)))
    }

    /// Opens the libxl of a release from a directory.
    ///
    /// # Errors
    /// As [`Library::open`].
    pub fn open_in(directory: &Path, release: Release) -> Result<Self, LibraryError> {
        Ok(Self(Arc::new(sys::Library::open_in(directory, release)?)))
    }

    /// The release.
    pub fn release(&self) -> Release {
        self.0.release()
    }

    /// Permission to call it, for one call; `turn` is the context's.
    pub(crate) fn inside<'a>(&'a self, turn: Option<&'a Mutex<()>>) -> Inside<'a> {
        Inside::enter(&self.0, turn)
    }
}
