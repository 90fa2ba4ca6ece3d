//! Files that are to be there as a whole whenever the machine stops.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Puts a file into the place of an older one, for root only, durably: whatever happens, one of them is there as a whole. The
/// directory is made if it is not there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

/// Removes a file, durably. None there is a success.
pub fn remove(path: &Path) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    match fs::remove_file(path).and_then(|()| File::open(directory)?.sync_all()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
