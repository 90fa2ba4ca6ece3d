//! The directory of guests to start at boot, `/etc/xen/auto`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Error, GuestConfig, XenHost};

/// What a file of the directory is.
#[derive(Debug)]
pub enum AutoEntry {
    /// A guest to start.
    Guest(GuestConfig),
    /// Something else, or a guest that can't be started.
    Skipped {
        /// The file.
        path: PathBuf,
        /// Why it is not started.
        reason: SkipReason,
    },
}

/// Why a file of the directory is not started.
#[derive(Debug, thiserror::Error)]
pub enum SkipReason {
    /// A directory, or a link to one.
    #[error("a directory")]
    Directory,
    /// Its name starts with a dot.
    #[error("a hidden file")]
    Hidden,
    /// What an editor or the package manager leaves behind.
    #[error("a left-over file ({0})")]
    Leftover(&'static str),
    /// A link to nothing.
    #[error("a link to a file that doesn't exist")]
    DanglingLink,
    /// A file that can't be read or is not a usable configuration.
    #[error("{0}")]
    Unusable(Error),
    /// Another file, which comes first by name, is for the same guest.
    #[error("the guest's name, {name}, is that of {} already", first.display())]
    Duplicate {
        /// The name that both have.
        name: String,
        /// The file that counts.
        first: PathBuf,
    },
}

impl SkipReason {
    /// Whether the admin probably wanted a guest to be started: true for what should be there and isn't usable,
    /// false for what is no configuration at all.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Directory | Self::Hidden | Self::Leftover(_) => false,
            Self::DanglingLink | Self::Unusable(_) | Self::Duplicate { .. } => true,
        }
    }
}

/// Why the directory can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// It doesn't exist.
    #[error("{}: there is no such directory", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{}: not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The ends of names of files that editors (the first ones), dpkg and rpm leave behind.
const LEFTOVERS: [&str; 14] = [
    "~",
    ".bak",
    ".orig",
    ".swp",
    ".dpkg-old",
    ".dpkg-new",
    ".dpkg-tmp",
    ".dpkg-dist",
    ".dpkg-bak",
    ".dpkg-backup",
    ".dpkg-remove",
    ".rpmsave",
    ".rpmnew",
    ".rpmorig",
];

/// If this is the name of a file that an editor or a package manager leaves behind: what gives it away.
pub(crate) fn leftover(name: &OsStr) -> Option<&'static str> {
    LEFTOVERS.into_iter().find(|end| name.as_bytes().ends_with(end.as_bytes()))
}

/// Reads all files of the directory.
///
/// Guests come first, in the order in which they are to be started: by the `order` that their file gives, those
/// without one last, and by file name. Then comes what is skipped, by file name.
pub fn scan(directory: &Path, host: &XenHost) -> Result<Vec<AutoEntry>, ScanError> {
    let path = || directory.to_owned();
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ScanError::Missing { path: path() },
        io::ErrorKind::NotADirectory => ScanError::NotADirectory { path: path() },
        _ => ScanError::Read { path: path(), source },
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name());
    }
    names.sort();
    let mut guests: Vec<GuestConfig> = Vec::new();
    let mut skipped = Vec::new();
    let mut by_name: HashMap<String, PathBuf> = HashMap::new();
    for name in names {
        let path = directory.join(&name);
        match look_at(&path, &name, host) {
            Ok(guest) => {
                if let Some(first) = by_name.get(&guest.name) {
                    let reason = SkipReason::Duplicate { name: guest.name, first: first.clone() };
                    skipped.push(AutoEntry::Skipped { path, reason });
                } else {
                    by_name.insert(guest.name.clone(), path);
                    guests.push(guest);
                }
            }
            Err(reason) => skipped.push(AutoEntry::Skipped { path, reason }),
        }
    }
    // The sort is stable: guests of the same order stay sorted by file name.
    guests.sort_by_key(|guest| (guest.per_guest.order.is_none(), guest.per_guest.order));
    Ok(guests.into_iter().map(AutoEntry::Guest).chain(skipped).collect())
}

fn look_at(path: &Path, name: &OsStr, host: &XenHost) -> Result<GuestConfig, SkipReason> {
    if name.as_bytes().starts_with(b".") {
        return Err(SkipReason::Hidden);
    }
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return Err(SkipReason::Directory),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => {
            return Err(SkipReason::DanglingLink);
        }
        Err(source) => return Err(SkipReason::Unusable(Error::Read { path: path.to_owned(), source })),
    }
    if let Some(suffix) = leftover(name) {
        return Err(SkipReason::Leftover(suffix));
    }
    GuestConfig::read(path, host).map_err(SkipReason::Unusable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn guest(name: &str, more: &str) -> String {
        format!("name = '{name}'\nkernel = '/boot/vmlinuz'\n{more}\n")
    }

    /// The names of guests in order, and `file: reason` for what is skipped.
    fn shown(directory: &Path) -> (Vec<String>, Vec<String>) {
        let (mut guests, mut skipped) = (Vec::new(), Vec::new());
        for entry in scan(directory, &XenHost::default()).unwrap() {
            match entry {
                AutoEntry::Guest(guest) => {
                    assert!(skipped.is_empty());
                    guests.push(guest.name);
                }
                AutoEntry::Skipped { path, reason } => {
                    skipped.push(format!("{}: {reason}", path.file_name().unwrap().to_string_lossy()));
                }
            }
        }
        (guests, skipped)
    }

    #[test]
    fn each_kind_of_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("20-web.cfg"), guest("web", "")).unwrap();
        fs::write(at("10-db"), guest("db", "")).unwrap();
        fs::write(at("zz-copy"), guest("web", "")).unwrap();
        fs::write(at("broken"), "name = web\n").unwrap();
        fs::write(at("nameless"), "kernel = '/x'\n").unwrap();
        for name in
            ["web~", "web.bak", "web.orig", "web.swp", "web.dpkg-old", "web.dpkg-dist", "web.rpmsave", ".web"]
        {
            fs::write(at(name), guest("other", "")).unwrap();
        }
        fs::create_dir(at("directory")).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("mail"), guest("mail", "")).unwrap();
        symlink(elsewhere.path().join("mail"), at("mail")).unwrap();
        symlink(elsewhere.path().join("gone"), at("gone")).unwrap();
        symlink(elsewhere.path(), at("linked-directory")).unwrap();
        symlink(at("loop"), at("loop")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        let (guests, skipped) = shown(directory.path());
        assert_eq!(guests, ["db", "web", "mail"]);
        let expected = [
            (".web", "a hidden file"),
            ("broken", "the word `web`"),
            ("directory", "a directory"),
            ("fifo", "not a regular file"),
            ("gone", "a link to a file that doesn't exist"),
            ("linked-directory", "a directory"),
            ("loop", "loop"),
            ("nameless", "name: the guest's name is not given"),
            ("web.bak", "a left-over file (.bak)"),
            ("web.dpkg-dist", "a left-over file (.dpkg-dist)"),
            ("web.dpkg-old", "a left-over file (.dpkg-old)"),
            ("web.orig", "a left-over file (.orig)"),
            ("web.rpmsave", "a left-over file (.rpmsave)"),
            ("web.swp", "a left-over file (.swp)"),
            ("web~", "a left-over file (~)"),
            ("zz-copy", "the guest's name, web, is that of"),
        ];
        assert_eq!(skipped.len(), expected.len(), "{skipped:#?}");
        for (line, (name, word)) in skipped.iter().zip(expected) {
            assert!(line.starts_with(&format!("{name}: ")) && line.contains(word), "{line} <> {name}: {word}");
        }
    }

    #[test]
    fn what_only_looks_like_a_left_over_file_is_a_guest_s() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["ci.rpm", "ci.rpmbuild", "deb.dpkg", "deb.dpkg-test", "old.bak.cfg", "rpmsave", "x.rpmsave2"];
        for name in names {
            fs::write(directory.path().join(name), guest(name, "")).unwrap();
        }
        let (guests, skipped) = shown(directory.path());
        assert_eq!(guests, names);
        assert_eq!(skipped, [""; 0]);
    }

    #[test]
    fn the_order_of_starting() {
        let directory = tempfile::tempdir().unwrap();
        for (file, order) in [
            ("a", ""),
            ("b", "xendomains=['order=10']"),
            ("c", "xendomains=['order=-1']"),
            ("d", "xendomains=['order=10']"),
            ("e", ""),
        ] {
            fs::write(directory.path().join(file), guest(file, order)).unwrap();
        }
        assert_eq!(shown(directory.path()).0, ["c", "b", "d", "a", "e"]);
    }

    #[test]
    fn two_names_are_two_guests_also_with_one_uuid() {
        let directory = tempfile::tempdir().unwrap();
        let uuid = "uuid='11111111-2222-3333-4444-555555555555'";
        for file in ["a", "b"] {
            fs::write(directory.path().join(file), guest(file, uuid)).unwrap();
        }
        let (guests, skipped) = shown(directory.path());
        assert_eq!((guests, skipped), (vec!["a".to_owned(), "b".to_owned()], vec![]));
    }

    #[test]
    fn the_directory_itself() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(shown(directory.path()), (vec![], vec![]));
        let missing = scan(&directory.path().join("no"), &XenHost::default());
        assert!(matches!(missing, Err(ScanError::Missing { .. })));
        fs::write(directory.path().join("file"), "").unwrap();
        let file = scan(&directory.path().join("file"), &XenHost::default());
        assert!(matches!(file, Err(ScanError::NotADirectory { .. })));
    }
}
