//! What an earlier start or stop has left half done, because it was killed: guests that are suspended for a save that
//! never ended or had just ended, guests that were being migrated, and guests that were being built.
//!
//! A guest that is being built has a note in a directory that does not outlive the boot. It is written before the build
//! begins, gets the number of the domain as soon as that is there, and is removed when the guest runs or nothing of it is
//! left. A domain with this number and UUID that has never run is therefore nobody's: it is destroyed, and its image, if
//! it was just being taken out of the way, is put back. Without the number, a domain with this UUID may as well be
//! somebody else's (`xl create -p`, an `xl restore` under way): it is removed only if it is not complete and nobody is there
//! who could be building it, and named otherwise.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::directories::tell_aside;
use super::migrations::recover_migrated;
use super::{Run, name, reason};
use crate::image::{self, Image, LeftBehind, SaveDirectory, guest_key};
use crate::monitor::is_abandoned;
use crate::toolstack::{AfterSave, Domain, Domid, Error, Made, ShutdownReason, State};

/// The note that a guest is being built.
#[must_use = "it is to be removed when the build has come to its end"]
pub(super) struct Building {
    path: PathBuf,
    uuid: Uuid,
    note: Arc<File>,
}

impl Building {
    /// Notes the number of each domain that is made for the guest.
    pub(super) fn made(&self) -> Made {
        let note = Arc::clone(&self.note);
        Arc::new(move |domid| {
            // Without its number, a domain that is left behind is named and not removed.
            let _ = (&*note).write_all(format!("{domid}\n").as_bytes());
        })
    }

    /// Removes the note, unless a domain is left of a build that has failed: the next start or stop sees to that.
    pub(super) fn ended(self, run: &Run<'_>, runs: bool) {
        let is_left = || {
            let (_, numbers) = read_note(&self.path);
            let is_it = |domain: &Domain| is_half_built(domain, self.uuid) && numbers.contains(&domain.domid);
            run.toolstack.domains().map_or(true, |domains| domains.iter().any(is_it))
        };
        if runs || !is_left() {
            // If it stays, the next start or stop sees that the guest has run, or is gone, and removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Notes that a guest is going to be built, from this image if there is one.
pub(super) fn begin_building(
    run: &Run<'_>,
    uuid: Uuid,
    guest: &str,
    image: Option<&Image>,
) -> io::Result<Building> {
    let directory = &run.host.run_dir;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let path = directory.join(guest_key(uuid, guest));
    let number = image.map(Image::file_number).map_or(String::new(), |number| number.to_string());
    fs::write(&path, number + "\n")?;
    let note = Arc::new(File::options().append(true).open(&path)?);
    Ok(Building { path, uuid, note })
}

/// Reads a note: the number of the image, and those of the domains that were made.
fn read_note(path: &Path) -> (Option<u64>, Vec<Domid>) {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines().map(str::trim);
    let image = lines.next().and_then(|line| line.parse().ok());
    (image, lines.filter_map(|line| line.parse().ok()).collect())
}

/// Returns whether the domain has this UUID and has not run yet. What is kept of an earlier life of the guest has its UUID too.
fn is_half_built(domain: &Domain, uuid: Uuid) -> bool {
    domain.domid != 0 && domain.uuid == uuid && domain.has_never_run() && !domain.is_half_of_a_migration()
}

/// Puts right what was left half done, before anything else is done, and returns the domains that there are then.
pub(super) fn recover(run: &Run<'_>) -> Result<Vec<Domain>, Error> {
    let domains = run.toolstack.domains()?;
    let save = run.settings.save.value.as_deref();
    let directory = match save.map(SaveDirectory::existing).transpose() {
        Ok(directory) => directory.flatten(),
        // Who needs it says so.
        Err(_) => None,
    };
    let mut changed = forget_builds(run, &domains, save);
    changed |= recover_migrated(run, &domains);
    if let Some(directory) = &directory {
        for domain in domains.iter().filter(|domain| is_suspended(domain) || is_half_destroyed(domain)) {
            changed |= recover_saved(run, directory, domain);
        }
        for domain in domains.iter().filter(|domain| may_be_paused_by_save(run, domain)) {
            changed |= recover_paused(run, directory, domain);
        }
    }
    if let (Some(directory), AfterSave::Gone) = (&directory, run.toolstack.after_save()) {
        claim(run, directory, &domains);
    }
    let domains = if changed { run.toolstack.domains()? } else { domains };
    if let Some(directory) = &directory {
        tidy(run, directory, &domains);
    }
    Ok(domains)
}

fn is_suspended(domain: &Domain) -> bool {
    domain.is_manageable() && domain.state == State::Shutdown(ShutdownReason::Suspend)
}

/// Whether a save of ours may have paused it.
fn may_be_paused_by_save(run: &Run<'_>, domain: &Domain) -> bool {
    run.toolstack.after_save() == AfterSave::Paused && domain.is_manageable() && domain.state == State::Paused
}

/// A suspended guest that is being destroyed, or whose destroyer has died: its name goes first.
fn is_half_destroyed(domain: &Domain) -> bool {
    domain.domid != 0 && domain.name.is_none() && domain.state == State::Shutdown(ShutdownReason::Suspend)
}

/// What a save has left of a guest that stands still.
fn left_behind(run: &Run<'_>, directory: &SaveDirectory, domain: &Domain) -> Result<LeftBehind, String> {
    let domain = run.domain(domain).map_err(|error| format!("the boot id: {error}"))?;
    directory.left_behind(&domain).map_err(|error| error.to_string())
}

/// A suspended guest: has a save of ours brought it there? Says whether something was done.
fn recover_saved(run: &Run<'_>, directory: &SaveDirectory, domain: &Domain) -> bool {
    let guest = name(domain);
    let left = left_behind(run, directory, domain);
    if is_half_destroyed(domain) && !matches!(left, Ok(LeftBehind::Husk(_))) {
        return false; // It can't be resumed any more, and whoever wants it gone is not us.
    }
    let left = match left {
        Ok(LeftBehind::Victim | LeftBehind::Husk(_)) if run.host.is_being_saved(domain.domid) => {
            LeftBehind::BeingSaved
        }
        Ok(left) => left,
        Err(error) => {
            run.report.warn(&format!("{guest}: it is suspended, and why can't be told: {error}"));
            return false;
        }
    };
    match left {
        LeftBehind::Nothing => false,
        LeftBehind::BeingSaved => {
            run.report.warn(&format!("{guest}: it is being saved by another process"));
            false
        }
        LeftBehind::Victim => match run.toolstack.resume(domain.domid) {
            Ok(()) => {
                run.report.warn(&format!("{guest}: resumed; an earlier stop was killed while it saved it"));
                true
            }
            Err(error) => {
                run.report
                    .error(&format!("{guest}: left SUSPENDED by a save that was killed: {}", reason(&error)));
                false
            }
        },
        LeftBehind::Husk(saved) => match run.toolstack.destroy(domain.domid) {
            Ok(()) => {
                let (guest, path) = (saved.image().name.clone(), saved.image().path.clone());
                if let Err(error) = saved.destroyed() {
                    run.report.warn(&error.to_string());
                }
                let what =
                    "its image is complete; an earlier stop was killed before it removed the suspended guest";
                run.report.note(&format!("{guest}: {what} ({})", path.display()));
                true
            }
            Err(error) => {
                let guest = &saved.image().name;
                run.report
                    .error(&format!("{guest}: saved, but its suspended remains are there: {}", reason(&error)));
                false
            }
        },
        LeftBehind::ImageGone => {
            run.report.warn(&format!("{guest}: it is suspended, and its image was taken away: left alone"));
            false
        }
    }
}

/// A paused guest: has a save of ours brought it there? It is not certain that it has not run since, so that its image, if
/// it has got that far, is not used: the guest itself runs on. Says whether something was done.
fn recover_paused(run: &Run<'_>, directory: &SaveDirectory, domain: &Domain) -> bool {
    let guest = name(domain);
    match left_behind(run, directory, domain) {
        Ok(LeftBehind::Nothing | LeftBehind::ImageGone) => return false,
        Ok(LeftBehind::BeingSaved) => {
            run.report.warn(&format!("{guest}: it is being saved by another process"));
            return false;
        }
        Ok(LeftBehind::Victim) => {}
        Ok(LeftBehind::Husk(saved)) => match saved.image().clone().consume() {
            Ok(aside) => {
                let why = "its guest is still there, and may have run since";
                tell_aside(&saved.image().path, why, &aside, run.report);
            }
            Err(error) => {
                run.report.error(&format!("{guest}: left paused, as its image can't be set aside: {error}"));
                return false;
            }
        },
        Err(error) => {
            run.report.warn(&format!("{guest}: it is paused, and why can't be told: {error}"));
            return false;
        }
    }
    match run.toolstack.unpause(domain.domid) {
        Ok(()) => {
            run.report.warn(&format!("{guest}: runs on; an earlier stop was killed while it saved it"));
            true
        }
        Err(error) => {
            run.report.error(&format!("{guest}: left paused by a save that was killed: {}", reason(&error)));
            false
        }
    }
}

/// Takes up images of guests that were gone before their image had its name.
fn claim(run: &Run<'_>, directory: &SaveDirectory, domains: &[Domain]) {
    match directory.claim_saved_by_xend(|uuid| domains.iter().any(|domain| domain.uuid == uuid)) {
        Ok(claimed) => claimed.iter().for_each(|path| {
            let what = "an earlier stop was killed while its guest was saved. Whether it is whole is not known";
            run.report.warn(&format!("{}: {what}", path.display()));
        }),
        Err(error) => run.report.warn(&error.to_string()),
    }
}

/// Frees the room that saves have left taken which were killed.
fn tidy(run: &Run<'_>, directory: &SaveDirectory, domains: &[Domain]) {
    let is_left = |domain: &&Domain| {
        let is_written =
            || run.toolstack.after_save() != AfterSave::Suspended && run.host.is_being_saved(domain.domid);
        is_suspended(domain) || may_be_paused_by_save(run, domain) || is_written()
    };
    let suspended = domains.iter().filter(is_left).map(|domain| run.domain(domain));
    // Without knowing whose is whose, nothing is removed.
    let Ok(suspended) = suspended.collect::<io::Result<Vec<_>>>() else { return };
    match directory.remove_stale_temporaries(&suspended) {
        Ok(removed) => removed.iter().for_each(|file| {
            run.report.note(&format!("{}: removed, a save that was never completed", file.display()));
        }),
        Err(error) => run.report.warn(&error.to_string()),
    }
}

/// Destroys guests that were being built when an earlier start was killed. Says whether there were any.
fn forget_builds(run: &Run<'_>, domains: &[Domain], save: Option<&Path>) -> bool {
    let Ok(notes) = fs::read_dir(&run.host.run_dir) else { return false };
    let mut any = false;
    for note in notes.filter_map(Result::ok) {
        let file_name = note.file_name();
        let uuid = file_name.to_str().and_then(|name| Uuid::try_parse(name.split('.').next()?).ok());
        let Some(uuid) = uuid else { continue };
        let (number, made) = read_note(&note.path());
        let is_of_note = |domain: &&Domain| {
            let has_name = |name: &String| *guest_key(uuid, name) == *file_name;
            is_half_built(domain, uuid) && domain.name.as_ref().is_none_or(has_name)
        };
        let candidates: Vec<_> = domains.iter().filter(is_of_note).collect();
        // Whoever was building it may have died before the number was known.
        let is_abandoned = |domain: &Domain| {
            let monitoring = run.toolstack.monitoring();
            made.is_empty() && monitoring.is_some_and(|with| is_abandoned(domain.domid, with, run.host))
        };
        let is_ours = |domain: &&&Domain| made.contains(&domain.domid) || is_abandoned(domain);
        let ours = candidates.iter().find(is_ours).copied();
        if let (true, None, Some(domain)) = (made.is_empty(), ours, candidates.first()) {
            let (guest, domid) = (name(domain), domain.domid);
            run.report.error(&format!(
                "{guest}: domain {domid} was left half built by a start that was killed, or is being built by somebody \
                 else; if nobody is, `xl destroy {domid}` and start again"
            ));
            continue;
        }
        if let Some(domain) = ours {
            any = true;
            let guest = domain.name.clone().unwrap_or_else(|| uuid.to_string());
            if let Err(error) = run.toolstack.destroy(domain.domid) {
                run.report.error(&format!("{guest}: half built by a start that was killed: {}", reason(&error)));
                continue;
            }
            run.report.warn(&format!("{guest}: removed, an earlier start was killed while it built it"));
            if let (Some(number), Some(save)) = (number, save) {
                put_back(run, save, number);
            }
        }
        let _ = fs::remove_file(note.path());
    }
    any
}

/// Gives the image of a guest that has not run its name again, if it had lost it.
fn put_back(run: &Run<'_>, save: &Path, number: u64) {
    match image::put_back_unused(save, number) {
        Ok(Some((image, true))) => {
            run.report.note(&format!("{}: put back, its guest has not run", image.path.display()));
        }
        Ok(_) => {}
        Err(error) => run.report.error(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::mock::{Bench, Fault, uuid_of, write_image};
    use super::*;
    use crate::image::{Guest, NewImage};
    use crate::report::Exit;

    const SUSPENDED: State = State::Shutdown(ShutdownReason::Suspend);

    #[test]
    fn a_guest_that_a_killed_save_has_left_paused_runs_on() {
        for command in ["start", "stop"] {
            for complete in [false, true] {
                let mut bench = Bench::new();
                bench.toolstack.after_save = Some(AfterSave::Paused);
                let mut image = being_saved(&bench, "web");
                let domid = bench.toolstack.get_by_name("web").domid;
                bench.toolstack.change(domid, |domain| domain.state = State::Paused);
                if complete {
                    drop(image.commit().expect("whole"));
                } else {
                    image.guest_stays_suspended();
                }
                let exit = if command == "start" { bench.start() } else { bench.stop() };
                assert_eq!(exit, Exit::Done, "{}", bench.err());
                assert!(bench.err().contains("web: runs on; an earlier stop was killed"), "{}", bench.err());
                match command {
                    "start" => assert_eq!(
                        (bench.toolstack.left(), bench.toolstack.calls().len()),
                        (vec!["web Running".to_owned()], 1)
                    ),
                    _ => assert_eq!(bench.toolstack.calls(), ["unpause web", "save web", "destroy web"]),
                }
            }
        }
        // Somebody else's pause.
        let mut bench = Bench::new();
        bench.toolstack.after_save = Some(AfterSave::Paused);
        bench.toolstack.domain("web", State::Paused);
        bench.start();
        assert_eq!(bench.toolstack.calls(), [""; 0]);
    }

    /// A guest in the middle of its save: suspended, with its image written and not yet in its place.
    fn being_saved(bench: &Bench, name: &str) -> NewImage {
        let domid = bench.toolstack.domain(name, SUSPENDED);
        let boot_id = bench.host.boot_id().expect("a boot id");
        let guest = Guest { name: name.to_owned(), uuid: uuid_of(name), domid, boot_id };
        let directory = SaveDirectory::open(&bench.path("save")).expect("directory");
        let mut image = directory.begin(&guest, 4096).expect("room");
        let domain = bench.toolstack.get(domid);
        write_image(&mut image, &domain);
        image
    }

    #[test]
    fn a_guest_whose_save_was_killed_runs_on() {
        for command in ["start", "stop"] {
            let bench = Bench::new();
            being_saved(&bench, "web").guest_stays_suspended();
            let exit = if command == "start" { bench.start() } else { bench.stop() };
            assert_eq!(exit, Exit::Done, "{}", bench.err());
            assert!(bench.err().contains("web: resumed; an earlier stop was killed"), "{}", bench.err());
            match command {
                "start" => assert_eq!(bench.toolstack.left(), ["web Running"]),
                _ => assert_eq!(bench.toolstack.calls(), ["resume web", "save web", "destroy web"]),
            }
        }
    }

    #[test]
    fn the_remains_of_a_guest_whose_save_was_complete_make_way_for_its_image() {
        for command in ["start", "stop"] {
            let bench = Bench::new();
            drop(being_saved(&bench, "web").commit().expect("whole"));
            let exit = if command == "start" { bench.start() } else { bench.stop() };
            assert_eq!(exit, Exit::Done, "{}", bench.err());
            match command {
                "start" => {
                    assert_eq!(bench.toolstack.calls(), ["destroy web", "restore web", "unpause web"]);
                    assert_eq!(bench.saved(), [""; 0]);
                }
                _ => {
                    assert_eq!(bench.toolstack.calls(), ["destroy web"]);
                    assert_eq!(bench.saved(), ["web"]);
                }
            }
        }
    }

    #[test]
    fn a_guest_that_somebody_else_saves_is_left_alone() {
        let bench = Bench::new();
        being_saved(&bench, "web").guest_stays_suspended();
        let process = bench.host.processes.join("4711");
        fs::create_dir_all(&process).expect("directory");
        let domid = bench.toolstack.get_by_name("web").domid;
        let command = format!("/usr/lib/xen/bin/libxl-save-helper\0--save-domain\0{domid}\0");
        fs::write(process.join("cmdline"), command).expect("write");
        bench.start();
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert!(bench.err().contains("web: it is being saved by another process"), "{}", bench.err());
    }

    #[test]
    fn a_guest_that_was_being_built_is_removed_and_started_anew() {
        // Killed before the image was taken out of the way, and after.
        for consumed in [false, true] {
            let bench = Bench::new();
            bench.image("web");
            bench.auto("db", "db");
            let image = Image::open(&bench.path("save/web")).expect("an image");
            bench.run(|run| {
                for (name, image) in [("web", Some(&image)), ("db", None)] {
                    let building = begin_building(run, uuid_of(name), name, image).expect("a note");
                    // The first attempt came to nothing.
                    building.made()(90);
                    building.made()(never_run(&bench, name));
                }
            });
            if consumed {
                image.consume().map(drop).expect("renamed");
            }
            assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
            assert_eq!(bench.toolstack.left(), ["db Running", "web Running"]);
            assert_eq!(bench.toolstack.calls_of("web"), ["destroy web", "restore web", "unpause web"]);
            assert_eq!(bench.saved(), [""; 0]);
            assert_eq!(bench.out().contains("put back"), consumed, "{}", bench.out());
            assert_eq!(fs::read_dir(&bench.host.run_dir).expect("notes").count(), 0);
        }
    }

    /// A domain that was made and not let run.
    fn never_run(bench: &Bench, name: &str) -> Domid {
        let domid = bench.toolstack.domain(name, State::Paused);
        bench.toolstack.change(domid, |domain| domain.cpu_time = std::time::Duration::ZERO);
        domid
    }

    fn notes(bench: &Bench) -> usize {
        fs::read_dir(&bench.host.run_dir).map_or(0, Iterator::count)
    }

    #[test]
    fn a_build_that_failed_and_left_nothing_leaves_no_note() {
        for fault in [Fault::Fails, Fault::TimesOut] {
            let bench = Bench::new();
            bench.auto("db", "db");
            bench.image("web");
            bench.toolstack.fault("create db", fault);
            bench.toolstack.fault("unpause web", fault);
            assert_eq!(bench.start(), Exit::Failed);
            assert_eq!(notes(&bench), 0);
            // What somebody else makes then is nobody's remains.
            never_run(&bench, "db");
            never_run(&bench, "web--incoming");
            bench.toolstack.change(bench.toolstack.get_by_name("web--incoming").domid, |domain| {
                domain.uuid = uuid_of("web");
            });
            let before = bench.toolstack.calls().len();
            for command in [Bench::start, Bench::stop] {
                command(&bench);
                assert_eq!(bench.toolstack.left(), ["db Paused", "web--incoming Paused"]);
            }
            assert_eq!(bench.toolstack.calls()[before..], [""; 0]);
        }
    }

    #[test]
    fn a_build_that_leaves_its_domain_keeps_its_note_until_that_is_gone() {
        let bench = Bench::new();
        bench.image("web");
        bench.toolstack.fault("unpause web", Fault::Fails);
        bench.toolstack.fault("destroy web", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!((notes(&bench), bench.toolstack.left()), (1, vec!["web Paused".to_owned()]));
        bench.toolstack.no_fault("unpause web");
        bench.toolstack.no_fault("destroy web");
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!((notes(&bench), bench.toolstack.left()), (0, vec!["web Running".to_owned()]));
    }

    #[test]
    fn only_the_domain_whose_number_is_noted_is_removed() {
        for number in [None, Some(70)] {
            let bench = Bench::new();
            bench.auto("web", "web");
            bench.run(|run| {
                let building = begin_building(run, uuid_of("web"), "web", None).expect("a note");
                number.into_iter().for_each(|number| building.made()(number));
            });
            let domid = never_run(&bench, "web");
            let exit = bench.start();
            assert_eq!(bench.toolstack.left(), ["web Paused"]);
            assert_eq!(bench.toolstack.calls(), [""; 0]);
            let advice = format!("`xl destroy {domid}` and start again");
            // Without a number it may be what a killed start has left, which only a person can tell.
            let expected = if number.is_none() { (Exit::Failed, true, 1) } else { (Exit::Done, false, 0) };
            assert_eq!((exit, bench.err().contains(&advice), notes(&bench)), expected, "{}", bench.err());
            let in_the_way = format!("web: not started: domain {domid} (web) is in the way: it was never let run");
            assert!(bench.err().contains(&in_the_way), "{}", bench.err());
        }
    }

    #[test]
    fn a_guest_that_has_run_is_nobodys_half_built_one() {
        let bench = Bench::new();
        // The mock's guests have used CPU time.
        let domid = bench.toolstack.domain("web", State::Paused);
        bench.run(|run| begin_building(run, uuid_of("web"), "web", None).expect("a note").made()(domid));
        bench.start();
        assert_eq!(bench.toolstack.left(), ["web Paused"]);
        assert_eq!(fs::read_dir(&bench.host.run_dir).expect("notes").count(), 0);
    }

    #[test]
    fn a_saved_guest_that_was_half_destroyed_is_destroyed_and_restored() {
        let bench = Bench::new();
        let web = bench.toolstack.domain("web", State::Running);
        bench.toolstack.fault("destroy web", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        bench.toolstack.change(web, |domain| domain.name = None);
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert!(bench.out().contains("web: its image is complete"), "{}", bench.out());
        assert_eq!(bench.toolstack.left(), ["web Running"]);
        assert_eq!(bench.saved(), [""; 0]);
    }

    #[test]
    fn a_half_destroyed_guest_that_we_have_not_saved_is_left_alone() {
        let bench = Bench::new();
        let web = bench.toolstack.domain("web", State::Shutdown(ShutdownReason::Suspend));
        bench.toolstack.change(web, |domain| domain.name = None);
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.calls(), [""; 0]);
    }
}
