//! The file system of the SAVE directory.
//!
//! Where a file system should be mounted and is not, there is still its empty mount point: a directory that has no images
//! at start, and to which a guest could be saved at stop and never be found again. So start and stop remember where the
//! file system of SAVE was mounted, and go by that.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Run;
use crate::host::Host;
use crate::image::SaveDirectory;
use crate::report::Reporter;
use crate::systemd;

/// Place of the SAVE directory, as it is remembered.
#[derive(PartialEq, Serialize, Deserialize)]
struct Place {
    directory: PathBuf,
    mount_point: PathBuf,
}

/// Warns if images would be kept in memory. `Err` says that the file system on which SAVE was is not mounted.
pub(super) fn look_at_save(host: &Host, save: &Path, report: &Reporter) -> Result<(), String> {
    let file = file(host);
    // What can't be read says nothing: it is written anew.
    let known = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Place>(&text).ok());
    if let Some(Place { mount_point, .. }) = known.filter(|known| known.directory == save) {
        if !is_mount_point(&mount_point) {
            return Err(format!(
                "nothing is mounted at {}, where the file system of {} was when guests were started or saved last. Mount \
                 it, or remove {} if the images there are not needed any more",
                mount_point.display(),
                save.display(),
                file.display()
            ));
        }
    }
    if let Ok(Some(directory)) = SaveDirectory::existing(save) {
        // On a system that has nothing but memory that is no news.
        let is_alone = || mount_point(save).ok() != mount_point(&host.state_dir).ok();
        if directory.is_in_memory() && is_alone() {
            report.warn(&format!("{}: is in memory (tmpfs): its images are gone after a reboot", save.display()));
        }
    }
    Ok(())
}

/// Warns if systemd may unmount the file system of SAVE before stop is through.
pub(super) fn warn_of_early_unmount(host: &Host, save: &Path, report: &Reporter) {
    let Ok(mount_point) = mount_point(save) else { return };
    // The root stays.
    if mount_point.parent().is_none() {
        return;
    }
    let Some(unit) = systemd::unordered_mount(host, &mount_point) else { return };
    report.warn(&format!(
        "{}, which {} is on, may be unmounted at a shutdown before the guests are saved: put the lines [Unit] and \
         After={unit} into /etc/systemd/system/xendomains.service.d/save.conf",
        mount_point.display(),
        save.display()
    ));
}

/// Remembers where the file system of SAVE is mounted now.
pub(super) fn remember_save(run: &Run<'_>, save: &Path) {
    let file = file(run.host);
    let remember = || {
        let place = Place { directory: save.to_owned(), mount_point: mount_point(save)? };
        let known = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if known.is_some_and(|known: Place| known == place) {
            return Ok(());
        }
        fs::create_dir_all(&run.host.state_dir)?;
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_vec(&place)?)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, &file)
    };
    if let Err(error) = remember() {
        run.report.warn(&format!("{}: can't be written: {error}", file.display()));
    }
}

fn file(host: &Host) -> PathBuf {
    host.state_dir.join("save-directory.json")
}

/// Where the file system is mounted that has this path, or the nearest directory above that exists.
fn mount_point(path: &Path) -> io::Result<PathBuf> {
    let mut place = path.ancestors().find_map(|path| path.canonicalize().ok()).ok_or(io::ErrorKind::NotFound)?;
    while !is_mount_point(&place) {
        place.pop();
    }
    Ok(place)
}

/// Returns whether another file system begins here than that of the directory above.
fn is_mount_point(path: &Path) -> bool {
    let Some(parent) = path.parent() else { return true };
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    device(path).is_some_and(|here| device(parent) != Some(here))
}

#[cfg(test)]
mod tests {
    use super::super::mock::Bench;
    use super::*;
    use crate::report::Exit;
    use crate::toolstack::State;

    /// A file system of its own, on this directory.
    struct Mounted(PathBuf);

    impl Mounted {
        fn on(path: PathBuf) -> Mounted {
            fs::create_dir_all(&path).expect("directory");
            rustix::mount::mount("tmpfs", &path, "tmpfs", rustix::mount::MountFlags::empty(), None)
                .expect("mount");
            Mounted(path)
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).expect("unmount");
        }
    }

    fn save_on_srv() -> (Bench, Mounted) {
        let mut bench = Bench::new();
        let srv = Mounted::on(bench.path("srv"));
        bench.settings.push_str(&format!("XENDOMAINS_SAVE={}\n", srv.0.join("save").display()));
        bench.auto("web.cfg", "web");
        (bench, srv)
    }

    #[test]
    fn nothing_is_saved_into_the_mount_point_of_a_file_system_that_is_gone() {
        let (bench, srv) = save_on_srv();
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        drop(srv);
        assert_eq!(bench.stop(), Exit::Failed);
        assert!(bench.err().contains("no guest can be saved: nothing is mounted at "), "{}", bench.err());
        assert!(!bench.path("srv/save").exists());
        assert_eq!(bench.toolstack.left(), [""; 0], "it is shut down");
    }

    #[test]
    fn no_guest_is_started_while_its_image_may_be_on_a_file_system_that_is_not_mounted() {
        let (bench, srv) = save_on_srv();
        bench.toolstack.domain("web", State::Running);
        bench.run(|run| remember_save(run, &srv.0.join("save")));
        drop(srv);
        bench.toolstack.change(0, |domain| domain.state = State::Dying);
        assert_eq!(bench.start(), Exit::Failed);
        assert!(bench.err().contains("no guest is started: nothing is mounted at "), "{}", bench.err());
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        bench.run(|run| {
            super::super::check(run.host, run.settings, run.xen_host, true, &[], run.report);
            assert_eq!(run.report.exit(), Exit::Failed);
        });
        // Mounted again, or given up, it is no matter.
        let srv = Mounted::on(bench.path("srv"));
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        drop(srv);
        fs::remove_file(file(&bench.host)).expect("remove");
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
    }

    #[test]
    fn images_in_memory_are_warned_of() {
        let (bench, srv) = save_on_srv();
        fs::create_dir(srv.0.join("save")).expect("directory");
        bench.start();
        let check =
            |run: &Run<'_>| super::super::check(run.host, run.settings, run.xen_host, true, &[], run.report);
        bench.run(check);
        bench.stop();
        assert_eq!(bench.err().matches("srv/save: is in memory (tmpfs)").count(), 3, "{}", bench.err());
    }

    #[test]
    fn a_file_system_that_may_be_unmounted_too_early_is_warned_of() {
        for (before, is_said) in [
            ("umount.target", true),
            ("", true),
            ("local-fs.target umount.target", false),
            ("remote-fs.target umount.target", false),
            ("umount.target xendomains.service", false),
        ] {
            let (bench, srv) = save_on_srv();
            let script = format!(
                "case \"$*\" in *Before*{}) echo Id=srv.mount; echo Before={before} ;; *) exit 1 ;; esac",
                srv.0.display()
            );
            crate::systemd::tests::stand_in(&bench.host.systemctl, &script);
            bench.start();
            bench.run(|run| super::super::check(run.host, run.settings, run.xen_host, true, &[], run.report));
            let said =
                bench.err().matches("After=srv.mount into /etc/systemd/system/xendomains.service.d").count();
            assert_eq!(said, if is_said { 2 } else { 0 }, "{before}: {}", bench.err());
        }
    }
}
