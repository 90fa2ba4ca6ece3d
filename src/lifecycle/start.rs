//! start: restore the images, then create the guests of the AUTO directory that don't run yet.

use std::path::PathBuf;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use super::directories::{auto_guests, images, set_aside, tell_aside, unreadable_image_of};
use super::workers::{in_order, lock};
use super::{Identity, Run, is_alive, name, reason, state_word};
use crate::guest_config::GuestConfig;
use crate::image::{Consumed, Image};
use crate::report::Action;
use crate::settings::{DEFAULT_CREATE_JOBS, DEFAULT_RESTORE_JOBS};
use crate::toolstack::{Domain, Domid, Error, State};

/// Starts guests. What runs already is left alone, and a guest whose image is there but could not be restored is not
/// booted over it.
pub fn start(run: &Run<'_>) {
    let begun = Instant::now();
    let start = Start { run, marked: Once::new() };
    if let Err(error) = start.all() {
        run.report.error(&reason(&error));
    }
    run.report.summary("start", begun.elapsed());
}

struct Start<'a> {
    run: &'a Run<'a>,
    marked: Once,
}

/// What restoring has left in the SAVE directory.
#[derive(Default)]
struct Left {
    /// Guests whose image could not be restored. They are not booted.
    kept: Vec<Identity>,
    /// Files that are probably images. Guests that they are named after are not booted.
    unreadable: Vec<PathBuf>,
    /// The directory can't be read: any guest may have an image, so that none is booted.
    unknown: bool,
    /// Images that are not wanted (RESTORE). They are set aside when their guest is booted.
    unwanted: Mutex<Vec<Image>>,
}

impl Start<'_> {
    fn all(&self) -> Result<(), Error> {
        let before = self.run.toolstack.domains()?;
        let left = self.restore_images(&before);
        // Restoring may have taken long: look again.
        self.create_guests(&before, &self.run.toolstack.domains()?, &left);
        Ok(())
    }

    fn restore_images(&self, domains: &[Domain]) -> Left {
        let settings = self.run.settings;
        let found = images(settings.save.value.as_deref());
        found.messages.tell(self.run.report);
        let mut left = Left { unreadable: found.unreadable, unknown: found.unknown, ..Left::default() };
        if settings.restore.value {
            // Once the newer image is used up, the older one would count.
            for image in found.superseded.iter().filter_map(|path| Image::open(path).ok()) {
                set_aside(image, "there is a newer image of its guest", self.run.report);
            }
            let waiting = self.without_running(found.images, domains);
            left.kept = self.restore_all(waiting);
        } else {
            left.unwanted = Mutex::new(found.images);
        }
        left
    }

    /// The images of guests that don't run. An image whose guest runs is outdated.
    fn without_running(&self, images: Vec<Image>, domains: &[Domain]) -> Vec<Image> {
        let mut waiting = Vec::new();
        for image in images {
            match Identity::of_image(&image).find(domains) {
                None => waiting.push(image),
                Some(domain) if domain.state == State::Running && domain.is_manageable() => {
                    let why = format!("its guest runs already, as domain {}", domain.domid);
                    set_aside(image, &why, self.run.report);
                }
                Some(domain) => self.report_in_the_way(&image, domain),
            }
        }
        waiting
    }

    /// A guest that is paused or moving may be on its way to run; one that has ended is not.
    fn report_in_the_way(&self, image: &Image, domain: &Domain) {
        let (id, other, state) = (domain.domid, name(domain), state_word(domain.state));
        let reason = format!("domain {id} ({other}) is in the way: it is {state}");
        if is_alive(domain) {
            self.run.report.warn(&format!("{}: not restored: {reason}", image.path.display()));
        } else {
            self.run.report.failed(Action::Restore, &image.name, Duration::ZERO, &reason);
        }
    }

    /// Restores all these, and returns the guests for which that has failed.
    fn restore_all(&self, images: Vec<Image>) -> Vec<Identity> {
        let failed = Mutex::new(Vec::new());
        let jobs = self.run.settings.start_jobs.value.unwrap_or(DEFAULT_RESTORE_JOBS);
        in_order(jobs, images, |image, _| {
            let guest = Identity::of_image(&image);
            if !self.restore(image, &guest.name) {
                lock(&failed).push(guest);
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn restore(&self, image: Image, guest: &str) -> bool {
        let begun = Instant::now();
        match self.try_to_restore(image) {
            Ok(()) => {
                self.run.report.done(Action::Restore, guest, begun.elapsed());
                true
            }
            Err(reason) => {
                self.run.report.failed(Action::Restore, guest, begun.elapsed(), &reason);
                false
            }
        }
    }

    fn try_to_restore(&self, mut image: Image) -> Result<(), String> {
        self.run.xen_host.before_creation(&mut image.config).map_err(|error| error.to_string())?;
        let domid = self.run.toolstack.restore(&image, None).map_err(|error| reason(&error))?;
        if let Some(consumed) = self.let_run(domid, Some(image))? {
            // It will never be restored again, whether it can be removed or not.
            if let Err(error) = consumed.remove() {
                self.run.report.warn(&format!("the restored image is still there: {error}"));
            }
        }
        Ok(())
    }

    /// Lets a new guest run. Its image is out of the way before it runs, so that nothing can run it a second time, and
    /// back in its place if the guest can't be let run.
    fn let_run(&self, domid: Domid, image: Option<Image>) -> Result<Option<Consumed>, String> {
        let toolstack = self.run.toolstack;
        let consumed = match image.map(Image::consume).transpose() {
            Ok(consumed) => consumed,
            Err(error) => return Err(self.give_up(domid, error.to_string()).0),
        };
        let Err(error) = toolstack.unpause(domid) else {
            self.mark();
            return Ok(consumed);
        };
        let (mut reason, is_gone) = self.give_up(domid, reason(&error));
        match consumed {
            Some(consumed) if is_gone => {
                if let Err(error) = consumed.put_back() {
                    reason.push_str(&format!("; {error}"));
                }
            }
            // Somebody might let the guest run after all.
            Some(consumed) => reason.push_str(&format!("; its image is now {}", consumed.path().display())),
            None => {}
        }
        Err(reason)
    }

    /// Destroys a guest that has not run yet. Also says whether that was possible.
    fn give_up(&self, domid: Domid, mut why: String) -> (String, bool) {
        let destroyed = self.run.toolstack.destroy(domid);
        if let Err(error) = &destroyed {
            why.push_str(&format!("; it is left paused as domain {domid}: {}", reason(error)));
        }
        (why, destroyed.is_ok())
    }

    fn create_guests(&self, before: &[Domain], domains: &[Domain], left: &Left) {
        let settings = self.run.settings;
        let found = auto_guests(settings.auto.value.as_deref(), self.run.xen_host);
        found.messages.tell(self.run.report);
        if left.unknown && !found.guests.is_empty() {
            self.run.report.error("no guest is started: any of them may have an image that can't be seen");
            return;
        }
        let mut waiting = found.guests;
        waiting.retain(|guest| self.is_to_be_created(guest, before, domains, left));
        let jobs = settings.start_jobs.value.unwrap_or(DEFAULT_CREATE_JOBS);
        in_order(jobs, waiting, |guest, more| {
            if self.create(&guest, left) && more() {
                self.run.pause(settings.create_usleep.value);
            }
        });
    }

    /// Whether it does not run and nothing stands in its way. What does is reported.
    fn is_to_be_created(&self, guest: &GuestConfig, before: &[Domain], domains: &[Domain], left: &Left) -> bool {
        let identity = Identity::of_config(guest);
        let refuse = |reason: &str| {
            self.run.report.failed(Action::Create, &guest.name, Duration::ZERO, reason);
            false
        };
        if let Some(kept) = left.kept.iter().find(|kept| kept.is_same_guest(&identity)) {
            self.run.report.note(&format!("{}: not started over its image, which is kept", kept.name));
            return false;
        }
        if let Some(image) = unreadable_image_of(&identity, &left.unreadable) {
            return refuse(&format!("not started over its unusable image {}", image.display()));
        }
        match identity.find(domains) {
            None => true,
            Some(domain) if is_alive(domain) && domain.is_manageable() => {
                // One that was restored just now has been reported.
                if identity.find(before).is_some() {
                    self.run.report.note(&format!("{}: runs already as domain {}", guest.name, domain.domid));
                }
                false
            }
            Some(domain) => {
                let (id, name, state) = (domain.domid, name(domain), state_word(domain.state));
                refuse(&format!("domain {id} ({name}) is in the way: it is {state}"))
            }
        }
    }

    fn create(&self, guest: &GuestConfig, left: &Left) -> bool {
        for warning in &guest.warnings {
            self.run.report.warn(&warning.to_string());
        }
        let begun = Instant::now();
        match self.try_to_create(guest, left) {
            Ok(()) => {
                self.run.report.done(Action::Create, &guest.name, begun.elapsed());
                true
            }
            Err(reason) => {
                self.run.report.failed(Action::Create, &guest.name, begun.elapsed(), &reason);
                false
            }
        }
    }

    fn try_to_create(&self, guest: &GuestConfig, left: &Left) -> Result<(), String> {
        if let Some((key, path)) = guest.missing_files().first() {
            return Err(format!("{}: {key}: there is no file {}", guest.path.display(), path.display()));
        }
        let mut guest = guest.clone();
        self.run.xen_host.before_creation(&mut guest.json).map_err(|error| error.to_string())?;
        let domid = self.run.toolstack.create(&guest, None).map_err(|error| reason(&error))?;
        if let Some(aside) = self.let_run(domid, left.take_unwanted(&guest))? {
            let why = "its guest was started without it, because RESTORE is not true";
            tell_aside(&aside.image().path, why, &aside, self.run.report);
        }
        Ok(())
    }

    /// Makes the mark for init scripts, as soon as there is something to stop.
    fn mark(&self) {
        self.marked.call_once(|| {
            if let Err(error) = self.run.host.mark() {
                self.run.report.warn(&format!("{}: {error}", self.run.host.mark_file().display()));
            }
        });
    }
}

impl Left {
    fn take_unwanted(&self, guest: &GuestConfig) -> Option<Image> {
        let guest = Identity::of_config(guest);
        let mut unwanted = lock(&self.unwanted);
        let place = unwanted.iter().position(|image| Identity::of_image(image).is_same_guest(&guest))?;
        Some(unwanted.swap_remove(place))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use super::super::mock::{Bench, Fault, uuid_of};
    use super::*;
    use crate::report::Exit;
    use crate::toolstack::ShutdownReason;

    fn with_settings(settings: &str) -> Bench {
        let mut bench = Bench::new();
        bench.settings.push_str(settings);
        bench
    }

    #[test]
    fn images_come_first_and_leave_before_their_guest_runs() {
        let bench = with_settings("XENDOMAINS_START_JOBS=1\n");
        bench.auto("10-db.cfg", "db");
        bench.auto("20-web.cfg", "web");
        bench.image("web");
        bench.image("mail");
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        let expected = ["restore mail", "unpause mail", "restore web", "unpause web", "create db", "unpause db"];
        assert_eq!(bench.toolstack.calls(), expected);
        assert_eq!(bench.saved(), Vec::<String>::new());
        assert_eq!(bench.toolstack.left(), ["db Running", "mail Running", "web Running"]);
        assert!(bench.has_mark());
        assert!(!bench.out().contains("runs already"), "what was restored just now is no news: {}", bench.out());
        assert!(bench.out().contains("start: 2 restored, 1 started ("), "{}", bench.out());
        assert_eq!(bench.err(), "");
    }

    #[test]
    fn a_second_start_starts_nothing() {
        let bench = Bench::new();
        bench.auto("db", "db");
        bench.image("web");
        assert_eq!(bench.start(), Exit::Done);
        let calls = bench.toolstack.calls();
        assert_eq!(bench.start(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), calls);
        assert!(bench.out().ends_with("start: nothing to do (0.0 s)\n"), "{}", bench.out());
    }

    #[test]
    fn one_failure_does_not_keep_the_others_down() {
        let bench = Bench::new();
        for name in ["a", "b", "c", "d"] {
            bench.auto(name, name);
        }
        for name in ["r", "s", "t"] {
            bench.image(name);
        }
        fs::write(bench.path("auto/broken"), "name = \"x\nmemory = 1").expect("write");
        fs::write(bench.path("auto/b.bak"), "").expect("write");
        bench.toolstack.fault("create b", Fault::Fails);
        bench.toolstack.fault("unpause c", Fault::Fails);
        bench.toolstack.fault("restore s", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.left(), ["a Running", "d Running", "r Running", "t Running"]);
        assert_eq!(bench.saved(), ["s"]);
        let err = bench.err();
        for part in ["b: start FAILED", "c: start FAILED", "s: restore FAILED", "auto/broken:1"] {
            assert!(err.contains(part), "{part}: {err}");
        }
        assert!(!err.contains("b.bak") && bench.out().contains("b.bak"), "a left-over is passed over: {err}");
        assert!(bench.out().contains("2 restored, 2 started, 4 failures"), "{}", bench.out());
    }

    #[test]
    fn a_missing_kernel_is_that_guests_failure() {
        let bench = Bench::new();
        bench.auto("a", "a");
        bench.auto("b", "b");
        let text = fs::read_to_string(bench.path("auto/a")).expect("read").replace("/kernel", "/no-kernel");
        fs::write(bench.path("auto/a"), text).expect("write");
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["create b", "unpause b"]);
        let err = bench.err();
        assert!(
            err.contains("a: start FAILED") && err.contains("auto/a: kernel") && err.contains("/no-kernel"),
            "{err}"
        );
    }

    #[test]
    fn a_guest_is_not_booted_over_the_image_that_could_not_be_restored() {
        let bench = Bench::new();
        // Known by its UUID: the file has another name for it.
        bench.auto("file.cfg", "web");
        bench.image("web");
        bench.toolstack.fault("restore web", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["restore web"]);
        assert_eq!(bench.saved(), ["web"]);
        assert!(!bench.has_mark());
        bench.toolstack.no_fault("restore web");
        bench.start();
        assert_eq!(bench.toolstack.left(), ["web Running"]);
    }

    #[test]
    fn a_guest_is_not_booted_over_an_image_that_cant_be_read() {
        let bench = Bench::new();
        bench.auto("file.cfg", "web");
        bench.auto("other.cfg", "db");
        bench.image("web");
        fs::write(bench.path("save/web"), "half an im").expect("write");
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.left(), ["db Running"]);
        assert!(bench.err().contains("web: start FAILED"), "{}", bench.err());
        assert_eq!(bench.saved(), ["web"]);
    }

    #[test]
    fn nothing_is_booted_when_images_cant_be_seen() {
        let bench = Bench::new();
        bench.auto("db", "db");
        fs::write(bench.path("save"), "not a directory").expect("write");
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
    }

    #[test]
    fn an_image_of_a_running_guest_is_set_aside_and_of_another_left_alone() {
        let bench = Bench::new();
        for name in ["web", "db", "mail"] {
            bench.image(name);
        }
        let domid = bench.toolstack.domain("renamed", State::Running);
        bench.toolstack.change(domid, |domain| domain.uuid = uuid_of("web"));
        bench.toolstack.domain("db", State::Paused);
        bench.toolstack.domain("mail--incoming", State::Running);
        assert_eq!(bench.start(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        let saved = bench.saved();
        assert_eq!(saved.len(), 3);
        assert!(saved[0].starts_with(".web.") && saved[1..] == ["db", "mail"], "{saved:?}");
        let err = bench.err();
        assert!(err.contains("save/web: its guest runs already, as domain 4; it is never restored"), "{err}");
        assert!(err.contains("save/db: not restored: domain 5 (db) is in the way: it is paused"), "{err}");
        assert!(err.contains("save/mail: not restored: domain 6 (mail--incoming) is in the way"), "{err}");
        // It does not stand in anybody's way, but is named each time.
        assert_eq!(bench.start(), Exit::Done);
        assert!(bench.err().contains("restored already"), "{}", bench.err());
    }

    #[test]
    fn an_image_of_a_guest_that_is_stuck_is_a_failure() {
        let bench = Bench::new();
        bench.image("web");
        bench.toolstack.domain("web", State::Shutdown(ShutdownReason::Suspend));
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.saved(), ["web"]);
        let err = bench.err();
        assert!(
            err.contains("web: restore FAILED (0.0 s): domain 2 (web) is in the way: it is suspended"),
            "{err}"
        );
    }

    #[test]
    fn an_older_image_never_gets_its_turn() {
        let bench = Bench::new();
        bench.image("web");
        fs::rename(bench.path("save/web"), bench.path("save/a-copy")).expect("rename");
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        fs::File::open(bench.path("save/a-copy")).and_then(|file| file.set_modified(old)).expect("set");
        bench.image("web");
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.calls(), ["restore web", "unpause web"]);
        let saved = bench.saved();
        assert!(saved.len() == 1 && saved[0].starts_with(".a-copy."), "{saved:?}");
    }

    #[test]
    fn a_guest_that_cant_be_let_run_gets_its_image_back() {
        let bench = Bench::new();
        bench.image("web");
        bench.toolstack.fault("unpause web", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["restore web", "unpause web", "destroy web"]);
        assert_eq!(bench.saved(), ["web"]);
    }

    #[test]
    fn a_guest_that_may_still_run_does_not_get_its_image_back() {
        let bench = Bench::new();
        bench.image("web");
        bench.toolstack.fault("unpause web", Fault::Fails);
        bench.toolstack.fault("destroy web", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        assert!(!bench.saved().contains(&"web".to_owned()));
        assert!(bench.err().contains("left paused") && bench.err().contains(".restored"), "{}", bench.err());
    }

    #[test]
    fn without_restore_the_image_is_set_aside_when_its_guest_is_booted() {
        let bench = with_settings("XENDOMAINS_RESTORE=false\n");
        bench.auto("web", "web");
        bench.image("web");
        bench.image("mail");
        assert_eq!(bench.start(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), ["create web", "unpause web"]);
        let saved = bench.saved();
        assert!(!saved.contains(&"web".to_owned()) && saved.contains(&"mail".to_owned()), "{saved:?}");
        assert!(saved.iter().any(|file| file.ends_with(".restored")), "{saved:?}");
        assert!(bench.err().contains("save/web: its guest was started without it"), "{}", bench.err());
    }

    #[test]
    fn without_save_no_directory_is_looked_at() {
        let bench = with_settings("XENDOMAINS_SAVE=\n");
        bench.auto("web", "web");
        bench.image("web");
        assert_eq!(bench.start(), Exit::Done);
        assert_eq!(bench.saved(), ["web"]);
    }

    #[test]
    fn the_wait_is_after_each_creation_but_the_last() {
        let bench = with_settings("XENDOMAINS_CREATE_USLEEP=7\n");
        for name in ["a", "b", "c"] {
            bench.auto(name, name);
        }
        bench.image("r");
        bench.toolstack.fault("create b", Fault::Fails);
        bench.start();
        assert_eq!(bench.slept().len(), 1, "after a; b was not created, c is the last");
        assert_eq!(bench.slept()[0].as_micros(), 7);
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let bench = Bench::new();
        for name in ["husk", "zombie", "moved"] {
            bench.auto(name, name);
        }
        bench.toolstack.domain("husk", State::Shutdown(ShutdownReason::Crash));
        bench.toolstack.domain("zombie", State::Dying);
        bench.toolstack.domain("moved--migratedaway", State::Paused);
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["create zombie", "unpause zombie"]);
        let err = bench.err();
        assert!(err.contains("husk: start FAILED (0.0 s): domain 1 (husk) is in the way: it is crashed"), "{err}");
        assert!(
            err.contains("moved: start FAILED (0.0 s): domain 3 (moved--migratedaway) is in the way"),
            "{err}"
        );
    }

    #[test]
    fn no_auto_directory_is_no_failure_but_an_unreadable_one_is() {
        let bench = Bench::new();
        fs::remove_dir(bench.path("auto")).expect("remove");
        assert_eq!(bench.start(), Exit::Done);
        assert!(bench.out().contains("there is no such directory"), "{}", bench.out());
        fs::write(bench.path("auto"), "").expect("write");
        assert_eq!(bench.start(), Exit::Failed);
    }

    #[test]
    fn a_toolstack_that_cant_list_is_a_failure() {
        let bench = Bench::new();
        bench.image("web");
        bench.toolstack.fault("list domains", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
    }
}
