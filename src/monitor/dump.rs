//! The memory of a guest that has crashed, in a file: written under a temporary name, so that what has the guest's name
//! is whole, and only where there is room for all of it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use crate::image::encode_name;
use crate::toolstack::{Domid, Monitoring};

/// What is to be left free, for the headers around the memory and for everybody else.
const RESERVE: u64 = 64 << 20;

const SUFFIX: &str = ".dumping";

/// Writes it to `directory`, under the guest's name, as xl does. An older one is replaced. Returns the file.
pub fn dump(
    directory: &Path,
    domid: Domid,
    name: &str,
    memory_kib: u64,
    monitoring: &dyn Monitoring,
) -> Result<PathBuf, String> {
    let of_directory = |error: io::Error| format!("{}: {error}", directory.display());
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(of_directory)?;
    let room = statvfs(directory).map_err(|errno| of_directory(errno.into()))?;
    let (room, needed) = (room.f_bavail.saturating_mul(room.f_frsize), memory_kib.saturating_mul(1024));
    if room < needed.saturating_add(RESERVE) {
        let (needed, room) = (needed >> 20, room >> 20);
        return Err(format!("{}: {needed} MiB are needed, {room} MiB are free", directory.display()));
    }
    let name = encode_name(name);
    let mut hidden = OsString::from(".");
    hidden.push(&name);
    hidden.push(SUFFIX);
    let (temporary, path) = (directory.join(hidden), directory.join(name));
    let file = create(&temporary).map_err(|error| format!("{}: {error}", temporary.display()))?;
    let written = monitoring.dump_core(domid, &temporary).map_err(|error| error.to_string()).and_then(|()| {
        let moved = file
            .sync_all()
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| File::open(directory)?.sync_all());
        moved.map_err(|error| format!("{}: {error}", path.display()))
    });
    if let Err(error) = written {
        // It is of no use to anybody.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(path)
}

/// Makes the file that libxl then opens by its name: what others have put there, a link for one, is not written to.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::options().write(true).create_new(true).mode(0o600).open(path),
    }
}

/// Removes what a monitor has left that was killed while it wrote.
pub fn tidy(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        let is_left =
            entry.file_name().to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(SUFFIX));
        if is_left {
            // If it stays, it costs room.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_is_followed_to_write_a_dump() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, victim) = (dir.path().join(".web.dumping"), dir.path().join("victim"));
        fs::write(&victim, "precious").expect("write");
        std::os::unix::fs::symlink(&victim, &path).expect("link");
        create(&path).expect("made");
        // libxl opens it by its name.
        fs::write(&path, "memory").expect("write");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "precious");
        create(&path).expect("made once more");
        assert_eq!(fs::read(&path).expect("read"), b"");
    }
}
