//! Which Xen runs here.

use std::fmt;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::libxl::{
    XENLIGHT_DOMINFO_STRIDE_4_14, XENLIGHT_DOMINFO_STRIDE_4_16, XENLIGHT_DOMINFO_TYPE_OFFSET_4_14,
    XENLIGHT_DOMINFO_TYPE_OFFSET_4_16,
};

#[path = "../build/verified.rs"]
mod verified;

/// Where Linux says which hypervisor it runs on.
const SYSFS: &str = "/sys/hypervisor";

/// The releases whose headers our declarations were compared with.
pub const VERIFIED: RangeInclusive<Release> =
    Release::new(4, verified::FIRST_MINOR)..=Release::new(4, verified::LAST_MINOR);

/// A release of Xen, like 4.17. Hypervisor and libraries must be of the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release {
    /// 4 of "4.17".
    pub major: u32,
    /// 17 of "4.17".
    pub minor: u32,
}

impl Release {
    /// The release `major.minor`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The release of the hypervisor that runs now, from `/sys/hypervisor`.
    ///
    /// After a package upgrade that is another one than the installed tools' until the next boot.
    ///
    /// # Errors
    /// [`ReleaseError::NotXen`] when this machine didn't boot under Xen; the others when the kernel's answer makes no
    /// sense.
    pub fn running() -> Result<Self, ReleaseError> {
        Self::from_sysfs(Path::new(SYSFS))
    }

    /// The same from another directory than `/sys/hypervisor`, for tests.
    ///
    /// # Errors
    /// As [`Release::running`].
    pub fn from_sysfs(dir: &Path) -> Result<Self, ReleaseError> {
        let kind_path = dir.join("type");
        let kind = match fs::read_to_string(&kind_path) {
            Ok(kind) => kind,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ReleaseError::NotXen { dir: dir.to_path_buf() });
            }
            Err(source) => return Err(ReleaseError::Read { path: kind_path, source }),
        };
        if kind.trim() != "xen" {
            return Err(ReleaseError::NotXen { dir: dir.to_path_buf() });
        }
        Ok(Self { major: read_number(dir.join("version/major"))?, minor: read_number(dir.join("version/minor"))? })
    }

    /// Whether our declarations were compared with this release's headers.
    #[must_use]
    pub fn is_verified(self) -> bool {
        VERIFIED.contains(&self)
    }

    /// File name of this release's libxl, like `libxenlight.so.4.17`.
    #[must_use]
    pub fn libxenlight(self) -> String {
        format!("libxenlight.so.{self}")
    }

    /// File name of this release's libxlutil, like `libxlutil.so.4.17`.
    #[must_use]
    pub fn libxlutil(self) -> String {
        format!("libxlutil.so.{self}")
    }

    /// Distance in bytes between two elements of the array from `libxl_list_domain`.
    #[must_use]
    pub fn dominfo_stride(self) -> usize {
        let stride =
            if self < Self::new(4, 16) { XENLIGHT_DOMINFO_STRIDE_4_14 } else { XENLIGHT_DOMINFO_STRIDE_4_16 };
        stride as usize
    }

    /// Where a `libxl_dominfo` has its `libxl_domain_type`, in bytes from its start.
    ///
    /// The declared struct ends before it, because its place differs by release.
    #[must_use]
    pub fn dominfo_type_offset(self) -> usize {
        let offset = if self < Self::new(4, 16) {
            XENLIGHT_DOMINFO_TYPE_OFFSET_4_14
        } else {
            XENLIGHT_DOMINFO_TYPE_OFFSET_4_16
        };
        offset as usize
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Release {
    type Err = ReleaseError;

    /// Reads "4.17"; anything after a second dot ("4.17.1") is not part of the release.
    fn from_str(text: &str) -> Result<Self, ReleaseError> {
        let invalid = || ReleaseError::Invalid { text: text.to_owned() };
        let mut parts = text.splitn(3, '.');
        let mut number = || parts.next().and_then(parse_number).ok_or_else(invalid);
        Ok(Self { major: number()?, minor: number()? })
    }
}

/// Digits only: `u32::from_str` would take a sign too.
fn parse_number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn read_number(path: PathBuf) -> Result<u32, ReleaseError> {
    match fs::read_to_string(&path) {
        Ok(text) => parse_number(text.trim()).ok_or(ReleaseError::Malformed { path, text }),
        Err(source) => Err(ReleaseError::Read { path, source }),
    }
}

/// Why the release isn't known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// There is no Xen.
    #[error("not running under Xen ({} doesn't say so)", dir.display())]
    NotXen {
        /// Where we looked.
        dir: PathBuf,
    },
    /// The kernel doesn't tell.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel tells something odd.
    #[error("{} has {text:?} where a number is expected", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is in it.
        text: String,
    },
    /// The text is no release.
    #[error("{text:?} is not a release of Xen, like \"4.17\"")]
    Invalid {
        /// The text.
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    /// A directory like `/sys/hypervisor`.
    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("version")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn reads_the_running_release() {
        let dir = sysfs(&[("type", "xen\n"), ("version/major", "4\n"), ("version/minor", "17\n")]);
        let release = Release::from_sysfs(dir.path()).unwrap();
        assert_eq!(release, Release::new(4, 17));
        assert_eq!(release.to_string(), "4.17");
        assert_eq!(release.libxenlight(), "libxenlight.so.4.17");
        assert_eq!(release.libxlutil(), "libxlutil.so.4.17");
    }

    #[test]
    fn says_that_there_is_no_xen() {
        let dir = sysfs(&[("version/major", "4\n")]);
        let error = Release::from_sysfs(dir.path()).unwrap_err();
        assert!(matches!(error, ReleaseError::NotXen { .. }), "{error:?}");
        assert!(error.to_string().starts_with("not running under Xen"), "{error}");
        assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");

        let dir = sysfs(&[("type", "z/VM\n"), ("version/major", "4\n"), ("version/minor", "17\n")]);
        let error = Release::from_sysfs(dir.path()).unwrap_err();
        assert!(matches!(error, ReleaseError::NotXen { .. }), "{error:?}");
    }

    #[test]
    fn says_what_is_odd_about_the_kernel_s_answer() {
        let dir = sysfs(&[("type", "xen\n"), ("version/major", "4\n")]);
        let error = Release::from_sysfs(dir.path()).unwrap_err();
        assert!(matches!(error, ReleaseError::Read { .. }), "{error:?}");
        assert!(error.to_string().ends_with("version/minor"), "{error}");
        assert!(error.source().is_some());

        for text in ["", "\n", "+4", "-4", "4.17", "four", "99999999999"] {
            let dir = sysfs(&[("type", "xen\n"), ("version/major", text), ("version/minor", "17\n")]);
            let error = Release::from_sysfs(dir.path()).unwrap_err();
            assert!(matches!(error, ReleaseError::Malformed { .. }), "{text:?}: {error:?}");
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn reads_releases_from_text() {
        for (text, release) in
            [("4.17", Release::new(4, 17)), ("4.20.3-rc1", Release::new(4, 20)), ("5.0", Release::new(5, 0))]
        {
            assert_eq!(text.parse::<Release>().unwrap(), release);
        }
        for text in ["", "4", "4.", ".17", "4.x", "+4.17", "4.-1", " 4.17", "4. 17", "4.17-rc1", "4.99999999999"] {
            let error = text.parse::<Release>().unwrap_err();
            assert!(matches!(error, ReleaseError::Invalid { .. }), "{text:?}: {error:?}");
        }
    }

    #[test]
    fn compares_numbers_not_text() {
        assert!(Release::new(4, 9) < Release::new(4, 14));
        assert!(Release::new(4, 20) < Release::new(5, 0));
        let verified: Vec<bool> =
            [(4, 13), (4, 14), (4, 22), (4, 23), (5, 15)].map(|(a, b)| Release::new(a, b).is_verified()).into();
        assert_eq!(verified, [false, true, true, false, false]);
    }

    #[test]
    fn dominfo_grew_in_4_16() {
        for (minor, stride, offset) in [(14, 112, 108), (15, 112, 108), (16, 120, 112), (22, 120, 112)] {
            let release = Release::new(4, minor);
            assert_eq!((release.dominfo_stride(), release.dominfo_type_offset()), (stride, offset), "{release}");
            assert!(size_of::<crate::libxl::libxl_dominfo>() <= stride);
        }
    }
}
