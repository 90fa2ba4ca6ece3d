//! What is built once and kept: a key for its inputs, a lock for its builder, a name only when it is whole.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

/// A key over named inputs: the same inputs, in the same order, give the same key.
#[derive(Default)]
pub struct Key(Sha256);

impl Key {
    /// Adds an input.
    #[must_use]
    pub fn with(mut self, name: &str, content: impl AsRef<[u8]>) -> Self {
        for part in [name.as_bytes(), content.as_ref()] {
            // The length keeps neighbours apart: ("ab", "c") is not ("a", "bc").
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The key, short enough for a path.
    #[must_use]
    pub fn finish(self) -> String {
        self.0.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A lock on a name, held until dropped; the kernel frees it when the process ends, however it ends.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, and says so when it has to wait for another process.
    ///
    /// # Errors
    /// The lock file can't be made.
    pub fn take(path: &Path) -> Result<Self> {
        let file = Self::open(path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            eprintln!("[   …   ] waiting for another process that holds {}", path.display());
            flock(&file, FlockOperation::LockExclusive).with_context(|| format!("lock {}", path.display()))?;
        }
        Ok(Self { _file: file })
    }

    /// Takes the lock if nobody has it.
    ///
    /// # Errors
    /// The lock file can't be made.
    pub fn try_take(path: &Path) -> Result<Option<Self>> {
        let file = Self::open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(io::Error::from(error)).with_context(|| format!("lock {}", path.display())),
        }
    }

    fn open(path: &Path) -> Result<File> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .with_context(|| format!("open the lock {}", path.display()))
    }
}

/// Gives the finished folder `target`, and builds it first if there is none: in a folder beside it that gets the
/// name when everything is there, so that an interrupted build leaves nothing that looks finished.
///
/// # Errors
/// `build` fails, or the folder can't be made or renamed.
pub fn folder(target: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if target.is_dir() {
        return Ok(());
    }
    let _lock = Lock::take(&beside(target, "lock"))?;
    if target.is_dir() {
        return Ok(());
    }
    let part = beside(target, "part");
    remove_all(&part)?;
    fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
    build(&part)?;
    fs::rename(&part, target).with_context(|| format!("name {}", target.display()))
}

/// The path with an ending of ours.
#[must_use]
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// Removes a folder with everything in it; none is fine.
///
/// # Errors
/// It can't be removed, or something is mounted in it: that is never ours to remove.
pub fn remove_all(path: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the list of mounts")?;
    if let Some(mounted) = mounted_inside(&mounts, path) {
        bail!("something is mounted at {0}; unmount it first: umount -R {0}", mounted.display());
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A mount point at or below the path; the fifth field of a line of mountinfo.
fn mounted_inside<'a>(mountinfo: &'a str, path: &Path) -> Option<&'a Path> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(Path::new)
        .find(|mounted| mounted.starts_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_inputs_apart() {
        let key = |parts: &[(&str, &str)]| {
            parts.iter().fold(Key::default(), |key, (name, content)| key.with(name, content)).finish()
        };
        assert_eq!(key(&[("a", "b")]), key(&[("a", "b")]));
        assert_ne!(key(&[("ab", "c")]), key(&[("a", "bc")]));
        assert_ne!(key(&[("a", "1"), ("b", "2")]), key(&[("b", "2"), ("a", "1")]));
        assert_eq!(key(&[]).len(), 16);
    }

    #[test]
    fn an_interrupted_build_leaves_nothing_finished() {
        let root = std::env::temp_dir().join(format!("xtask-cache-{}", std::process::id()));
        let target = root.join("thing");
        let failed = folder(&target, |part| {
            fs::write(part.join("half"), "x")?;
            anyhow::bail!("interrupted")
        });
        assert!(failed.is_err());
        assert!(!target.exists());
        folder(&target, |part| Ok(fs::write(part.join("whole"), "x")?)).expect("second build");
        assert!(target.join("whole").exists());
        assert!(!target.join("half").exists());
        remove_all(&root).expect("clean up");
    }

    #[test]
    fn mounts_inside_are_seen() {
        let list = "21 1 0:20 / /proc rw - proc proc rw\n25 1 0:5 / /lab/x.part/tree/dev rw - devtmpfs udev rw\n";
        assert_eq!(mounted_inside(list, Path::new("/lab/x.part")), Some(Path::new("/lab/x.part/tree/dev")));
        assert_eq!(mounted_inside(list, Path::new("/lab/x")), None);
    }

    #[test]
    fn a_lock_keeps_others_out_until_dropped() {
        let path = std::env::temp_dir().join(format!("xtask-lock-{}", std::process::id()));
        let lock = Lock::try_take(&path).expect("lock file");
        assert!(lock.is_some());
        assert!(Lock::try_take(&path).expect("lock file").is_none());
        drop(lock);
        assert!(Lock::try_take(&path).expect("lock file").is_some());
        fs::remove_file(&path).expect("clean up");
    }
}
