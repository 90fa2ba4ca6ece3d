//! The memory of a guest that has crashed, in a file: written under a temporary name, so that what has the guest's name
//! is whole, and only where there is room for all of it.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
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
    let of_directory = |error: std::io::Error| format!("{}: {error}", directory.display());
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
    let written = monitoring.dump_core(domid, &temporary).map_err(|error| error.to_string()).and_then(|()| {
        let moved = File::open(&temporary)
            .and_then(|file| file.sync_all())
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
