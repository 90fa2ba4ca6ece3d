//! The libxl that is used.

use std::path::Path;
use std::sync::Arc;

use xenlight_sys as sys;
use xenlight_sys::{OpenError, Release, ReleaseError};

use crate::call::Call;
use crate::error::Cause;
use crate::log::Logger;

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
    ///
    /// # Safety
    /// The directory's `libxenlight.so.MAJOR.MINOR` is libxl of that release, or behaves like it in every respect: its code
    /// runs in this process from now on, and nothing but its name is checked.
    pub unsafe fn open_in(directory: &Path, release: Release) -> Result<Self, LibraryError> {
        // SAFETY: as the caller promises.
        Ok(Self(Arc::new(unsafe { sys::Library::open_in(directory, release) }?)))
    }

    /// The release.
    pub fn release(&self) -> Release {
        self.0.release()
    }

    /// Enters libxl. Wakers that come up meanwhile, and panic, are told to `logger`.
    pub(crate) fn enter<'a>(&'a self, logger: Option<&'a Logger>) -> Result<Call<'a>, Cause> {
        Call::enter(&self.0, logger)
    }

    /// Enters libxl on a thread of this crate.
    pub(crate) fn enter_own<'a>(&'a self, logger: &'a Logger) -> Call<'a> {
        Call::new(&self.0, Some(logger))
    }

    /// libxl's functions, for those that neither use a context nor call back: they only work on memory that they are given.
    pub(crate) fn functions(&self) -> &sys::libxl::Libxenlight {
        &self.0
    }
}
