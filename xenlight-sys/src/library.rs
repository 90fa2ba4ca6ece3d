//! Opening the libraries of the release that runs.

use std::ffi::OsStr;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};

use crate::VERIFIED;
use crate::libxl::Libxenlight;
use crate::release::Release;
use crate::xlu::Libxlutil;

/// libxl of one release, with all the functions of [`Libxenlight`].
pub struct Library {
    release: Release,
    path: PathBuf,
    // Never closed. The first context registers pthread_atfork handlers, which stay registered: with the library gone,
    // the next fork of the process would jump into nothing.
    functions: ManuallyDrop<Libxenlight>,
}

/// libxlutil of one release, with all the functions of [`Libxlutil`].
pub struct Utility {
    release: Release,
    path: PathBuf,
    // Never closed either: it is linked to libxl, and its closing could be the last that keeps libxl open.
    functions: ManuallyDrop<Libxlutil>,
}

impl Library {
    /// Opens `libxenlight.so.MAJOR.MINOR` of this release where the system's linker looks for libraries.
    ///
    /// # Errors
    /// See [`OpenError`]. None of them leaves anything behind that matters.
    pub fn open(release: Release) -> Result<Self, OpenError> {
        Self::open_path(release, release.libxenlight().into())
    }

    /// Opens it in this directory only. The libraries that it needs are still found the linker's way.
    ///
    /// # Errors
    /// As [`Library::open`].
    ///
    /// # Safety
    /// The file of that name in the directory is the library of that release, or behaves like it: its code runs in this
    /// process from now on, and nothing but its name is checked.
    pub unsafe fn open_in(dir: &Path, release: Release) -> Result<Self, OpenError> {
        Self::open_path(release, dir.join(release.libxenlight()))
    }

    fn open_path(release: Release, path: PathBuf) -> Result<Self, OpenError> {
        let handle = open_handle(release, &path)?;
        // SAFETY: the file is libxl of `release` by its soname, and the signatures of all functions were compared with
        // the headers of every release that `open_handle` lets pass.
        let functions = unsafe { Libxenlight::from_library(handle) }
            .map_err(|source| OpenError::MissingFunction { path: path.clone(), source })?;
        Ok(Self { release, path, functions: ManuallyDrop::new(functions) })
    }

    /// The release that was asked for.
    #[must_use]
    pub fn release(&self) -> Release {
        self.release
    }

    /// What was opened: a file name, or with [`Library::open_in`] a path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Utility {
    /// Opens `libxlutil.so.MAJOR.MINOR` of this release where the system's linker looks for libraries.
    ///
    /// # Errors
    /// As [`Library::open`].
    pub fn open(release: Release) -> Result<Self, OpenError> {
        Self::open_path(release, release.libxlutil().into())
    }

    /// Opens it in this directory only.
    ///
    /// # Errors
    /// As [`Library::open`].
    ///
    /// # Safety
    /// The file of that name in the directory is the library of that release, or behaves like it: its code runs in this
    /// process from now on, and nothing but its name is checked.
    pub unsafe fn open_in(dir: &Path, release: Release) -> Result<Self, OpenError> {
        Self::open_path(release, dir.join(release.libxlutil()))
    }

    fn open_path(release: Release, path: PathBuf) -> Result<Self, OpenError> {
        let handle = open_handle(release, &path)?;
        // SAFETY: the file is libxlutil of `release` by its soname, and the signatures of all functions were compared
        // with the headers of every release that `open_handle` lets pass.
        let functions = unsafe { Libxlutil::from_library(handle) }
            .map_err(|source| OpenError::MissingFunction { path: path.clone(), source })?;
        Ok(Self { release, path, functions: ManuallyDrop::new(functions) })
    }

    /// The release that was asked for.
    #[must_use]
    pub fn release(&self) -> Release {
        self.release
    }

    /// What was opened: a file name, or with [`Utility::open_in`] a path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Deref for Library {
    type Target = Libxenlight;

    fn deref(&self) -> &Libxenlight {
        &self.functions
    }
}

impl Deref for Utility {
    type Target = Libxlutil;

    fn deref(&self) -> &Libxlutil {
        &self.functions
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").field("release", &self.release).field("path", &self.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for Utility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Utility").field("release", &self.release).field("path", &self.path).finish_non_exhaustive()
    }
}

fn open_handle(release: Release, path: &Path) -> Result<Handle, OpenError> {
    if !release.is_verified() {
        return Err(OpenError::Unverified { release });
    }
    // RTLD_NOW: better an error here than the end of the process when a function is first called.
    // RTLD_LOCAL: libraries of two releases have the same names in them.
    // SAFETY: runs the library's initialisers, and those of the Xen libraries that it needs, which only set up data of
    // their own.
    unsafe { Handle::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|source| {
        let path = path.to_path_buf();
        if is_missing(&path, &source) {
            OpenError::NotInstalled { path, release, source }
        } else {
            OpenError::Unusable { path, source }
        }
    })
}

/// Whether the file itself wasn't found, rather than one that it needs. The linker tells only in words, which begin with
/// the file concerned.
fn is_missing(path: &Path, error: &libloading::Error) -> bool {
    let text = error.to_string();
    let concerned = text.split_once(": ").map_or("", |(file, _)| file);
    OsStr::new(concerned) == path.as_os_str() && text.contains("No such file or directory")
}

/// Why a library can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// We don't know this release.
    #[error(
        "Xen {release} is not among the releases that this program was verified with ({} to {}); \
         a newer version of it may know it",
        VERIFIED.start(), VERIFIED.end()
    )]
    Unverified {
        /// The release asked for.
        release: Release,
    },
    /// There is no such file.
    #[error(
        "{} is not installed; the running hypervisor is Xen {release} and needs exactly this version \
         (Debian, Ubuntu: libxenmisc{release}; Fedora, openSUSE: xen-libs; Arch: xen)",
        path.display()
    )]
    NotInstalled {
        /// What was tried.
        path: PathBuf,
        /// The release asked for.
        release: Release,
        /// What the linker says.
        source: libloading::Error,
    },
    /// The file is there, but the linker can't load it: damaged, of another machine, or something that it needs is
    /// missing.
    #[error("{} can't be loaded; reinstall the package that it is from", path.display())]
    Unusable {
        /// What was tried.
        path: PathBuf,
        /// What the linker says.
        source: libloading::Error,
    },
    /// The library lacks a function that every verified release has.
    #[error("{} is not the library that its name promises: it lacks a function", path.display())]
    MissingFunction {
        /// What was tried.
        path: PathBuf,
        /// Which function.
        source: libloading::Error,
    },
}
