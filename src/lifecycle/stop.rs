//! stop: save the guests, or shut them down.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::directories::{auto_guests, images, tell_aside};
use super::workers::{Places, all_at_once, lock};
use super::{Identity, Run, is_alive, is_finished, name, reason};
use crate::image::{self, Consumed, Image, SaveDirectory};
use crate::report::Action;
use crate::settings::ShutdownOptions;
use crate::toolstack::{Domain, Error, ShutdownReason, State};

/// Stops guests: each selected one is sent the SysRq letters, then saved or, if that is not wanted or fails, shut down;
/// in the end SHUTDOWN_ALL sees to everything that still runs. All guests are handled side by side.
pub fn stop(run: &Run<'_>) {
    let begun = Instant::now();
    let stop = Stop {
        run,
        deadline: run.settings.stop_timeout.value.and_then(|limit| begun.checked_add(limit)),
        saves: Places::new(run.settings.save_jobs.value),
        outdated: Mutex::default(),
        begun,
    };
    if let Err(error) = stop.all() {
        run.report.error(&reason(&error));
    }
    if let Err(error) = run.host.unmark() {
        run.report.warn(&format!("{}: {error}", run.host.mark_file().display()));
    }
    run.report.summary("stop", begun.elapsed());
}

struct Stop<'a> {
    run: &'a Run<'a>,
    begun: Instant,
    /// The end of the time for the whole stop.
    deadline: Option<Instant>,
    /// Places for guests that are being saved.
    saves: Places,
    /// Images from before, of guests that have run since.
    outdated: Mutex<Vec<Consumed>>,
}

/// What is left to do for a guest.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// The next step of the chain.
    NextStep,
    /// Nothing, or nothing that could be done.
    Nothing,
}

impl Stop<'_> {
    fn all(&self) -> Result<(), Error> {
        let guests = self.guests()?;
        self.set_outdated_aside(&guests);
        let suspended = self.suspended(&guests);
        let selected = self.select(guests);
        let directory = self.save_directory(&selected, &suspended);
        all_at_once(selected.iter().collect(), |guest| self.stop_guest(guest, directory.as_ref()));
        self.shut_down_rest()?;
        self.finish(&selected)
    }

    /// All domains that stop may act on.
    fn guests(&self) -> Result<Vec<Domain>, Error> {
        let mut guests = self.run.toolstack.domains()?;
        guests.retain(Domain::is_manageable);
        Ok(guests)
    }

    /// All guests, or with AUTO_ONLY those whose name a file of the AUTO directory has. If that can't be known, it is
    /// none of them.
    fn select(&self, mut guests: Vec<Domain>) -> Vec<Domain> {
        if self.run.settings.auto_only.value {
            let wanted = self.auto_names();
            guests.retain(|guest| wanted.contains(name(guest)));
        }
        guests
    }

    fn auto_names(&self) -> HashSet<String> {
        let report = self.run.report;
        let Some(dir) = &self.run.settings.auto.value else {
            report.note("AUTO_ONLY is set but AUTO is not: no guest is selected");
            return HashSet::new();
        };
        let found = auto_guests(Some(dir), self.run.xen_host);
        found.messages.tell(report);
        if found.guests.is_empty() {
            report.note(&format!("AUTO_ONLY is set but {} has no guests: no guest is selected", dir.display()));
        }
        found.guests.into_iter().map(|guest| guest.name).collect()
    }

    /// The guests that somebody has suspended.
    fn suspended(&self, guests: &[Domain]) -> Vec<image::Guest> {
        let is_suspended = |guest: &&Domain| guest.state == State::Shutdown(ShutdownReason::Suspend);
        guests.iter().filter(is_suspended).filter_map(|guest| self.run.domain(guest).ok()).collect()
    }

    /// The directory to save into, if guests are to be saved and can be.
    fn save_directory(&self, selected: &[Domain], suspended: &[image::Guest]) -> Option<SaveDirectory> {
        if !selected.iter().any(is_alive) {
            return None;
        }
        let path = self.run.settings.save.value.as_deref()?;
        match SaveDirectory::open(path) {
            Ok(directory) => {
                self.tidy(&directory, suspended);
                Some(directory)
            }
            Err(error) => {
                self.run.report.error(&format!("no guest can be saved: {error}"));
                None
            }
        }
    }

    /// Frees the room that saves of an earlier run have left taken when it was killed.
    fn tidy(&self, directory: &SaveDirectory, suspended: &[image::Guest]) {
        let report = self.run.report;
        match directory.remove_stale_temporaries(suspended) {
            Ok(removed) => removed.iter().for_each(|file| {
                report.note(&format!("{}: removed, a save that was never completed", file.display()));
            }),
            Err(error) => report.warn(&error.to_string()),
        }
        if let Some(mode) = directory.open_to_others() {
            let path = directory.path().display();
            report.warn(&format!("{path}: others than root may look into it (mode {mode:04o})"));
        }
    }

    /// Takes images out of the way whose guest runs: if it is now shut down instead of saved, the next start must not
    /// restore an image that is older than what the guest has written to its disks.
    fn set_outdated_aside(&self, guests: &[Domain]) {
        // What can't be read there is reported by start and status.
        for image in images(self.run.settings.save.value.as_deref()).images {
            if !Identity::of_image(&image).find(guests).is_some_and(is_alive) {
                continue;
            }
            match image.consume() {
                Ok(aside) => lock(&self.outdated).push(aside),
                Err(error) => self.run.report.error(&format!("an outdated image is still there: {error}")),
            }
        }
    }

    /// Removes what a new image of the guest replaces.
    fn remove_outdated(&self, new: &Image) {
        let guest = Identity::of_image(new);
        let is_older = |aside: &Consumed| Identity::of_image(aside.image()).is_same_guest(&guest);
        let mut outdated = lock(&self.outdated);
        let (older, others): (Vec<_>, _) = std::mem::take(&mut *outdated).into_iter().partition(is_older);
        *outdated = others;
        drop(outdated);
        for aside in older {
            if let Err(error) = aside.remove() {
                self.run.report.warn(&error.to_string());
            }
        }
    }

    /// The whole chain for one guest.
    fn stop_guest(&self, guest: &Domain, directory: Option<&SaveDirectory>) {
        if is_finished(guest) {
            return self.clean_up(guest);
        }
        let Some(guest) = self.send_sysrq(guest) else { return };
        if !is_alive(&guest) {
            return; // suspended: it can't answer. The end of the stop reports it.
        }
        let shutdown = self.run.settings.shutdown.value;
        if directory.is_some() || shutdown.is_some() {
            self.wake(&guest);
        }
        let then = directory.map_or(Then::NextStep, |directory| self.save(&guest, directory));
        if let (Then::NextStep, Some(options)) = (then, shutdown) {
            self.shut_down(&guest, options);
        }
    }

    /// Sends the SysRq letters, and looks what they have done to the guest. `None`: it is gone.
    fn send_sysrq(&self, guest: &Domain) -> Option<Domain> {
        let letters = &self.run.settings.sysrq.value;
        if letters.is_empty() || !is_alive(guest) {
            return Some(guest.clone());
        }
        let begun = Instant::now();
        for letter in letters {
            if let Err(error) = self.run.toolstack.sysrq(guest.domid, *letter) {
                let reason = format!("letter {letter}: {}", reason(&error));
                self.run.report.failed(Action::SysRq, name(guest), begun.elapsed(), &reason);
                break;
            }
            self.run.pause(self.run.settings.usleep.value);
        }
        let now = match self.guests() {
            Ok(guests) => guests.into_iter().find(|now| now.domid == guest.domid && now.uuid == guest.uuid),
            // Not to know is no reason not to try.
            Err(_) => Some(guest.clone()),
        };
        match now {
            Some(now) if is_finished(&now) => self.clean_up(&now),
            Some(now) => return Some(now),
            None => self.run.report.done(Action::Stop, name(guest), begun.elapsed()),
        }
        None
    }

    /// Lets a paused guest run: it must, to acknowledge that it is going to be suspended or shut down.
    fn wake(&self, guest: &Domain) {
        if guest.state != State::Paused {
            return;
        }
        match self.run.toolstack.unpause(guest.domid) {
            Ok(()) => self.run.report.note(&format!("{}: was paused, runs now to be stopped", name(guest))),
            Err(error) => self.run.report.warn(&format!("{}: {}", name(guest), reason(&error))),
        }
    }

    fn save(&self, guest: &Domain, directory: &SaveDirectory) -> Then {
        let waiting = Instant::now();
        let place = self.saves.take(self.deadline).filter(|_| !self.is_over());
        let Some(_place) = place else {
            let reason = "the time for the whole stop is over";
            self.run.report.failed(Action::Save, name(guest), waiting.elapsed(), reason);
            return Then::NextStep;
        };
        let begun = Instant::now();
        match self.try_to_save(guest, directory) {
            Ok(()) => {
                self.run.report.done(Action::Save, name(guest), begun.elapsed());
                Then::Nothing
            }
            Err((reason, then)) => {
                self.run.report.failed(Action::Save, name(guest), begun.elapsed(), &reason);
                then
            }
        }
    }

    /// The guest is destroyed only when its image is safe on the disk. If it can't be brought that far, it runs on.
    fn try_to_save(&self, guest: &Domain, directory: &SaveDirectory) -> Result<(), (String, Then)> {
        let toolstack = self.run.toolstack;
        let next_step = |reason: String| (reason, Then::NextStep);
        let domain = self.run.domain(guest).map_err(|error| next_step(format!("the boot id: {error}")))?;
        let mut image = directory
            .begin(&domain, guest.memory_kib.saturating_mul(1024))
            .map_err(|error| next_step(error.to_string()))?;
        if let Err(error) = toolstack.save(guest, &mut image, self.limit()) {
            let mut then = Then::NextStep;
            if error.left_suspended {
                image.guest_stays_suspended();
                then = Then::Nothing;
            }
            return Err((reason(&error), then));
        }
        let saved = match image.commit() {
            Ok(saved) => saved,
            Err(error) => {
                let (reason, then) = self.run_on(guest, error.to_string());
                if then == Then::Nothing {
                    image.guest_stays_suspended();
                }
                return Err((reason, then));
            }
        };
        self.remove_outdated(saved.image());
        toolstack.destroy(guest.domid).map_err(|error| {
            let reason =
                format!("its image is complete, but the suspended guest is still there: {}", reason(&error));
            (reason, Then::Nothing)
        })?;
        if let Err(error) = saved.destroyed() {
            self.run.report.warn(&error.to_string());
        }
        Ok(())
    }

    /// Resumes a guest that is suspended for nothing.
    fn run_on(&self, guest: &Domain, mut why: String) -> (String, Then) {
        match self.run.toolstack.resume(guest.domid) {
            Ok(()) => (why, Then::NextStep),
            Err(error) => {
                why.push_str(&format!("; the guest is left SUSPENDED: {}", reason(&error)));
                (why, Then::Nothing)
            }
        }
    }

    fn shut_down(&self, guest: &Domain, options: ShutdownOptions) {
        let toolstack = self.run.toolstack;
        let begun = Instant::now();
        // When all the time is over, the guest is still told that the host goes down.
        let (action, result) = if options.wait && !self.is_over() {
            let down = toolstack.shutdown(guest, self.limit());
            (Action::ShutDown, down.and_then(|()| toolstack.destroy(guest.domid)))
        } else {
            (Action::AskToShutDown, toolstack.request_shutdown(guest))
        };
        match result {
            Ok(()) => self.run.report.done(action, name(guest), begun.elapsed()),
            Err(error) => self.run.report.failed(action, name(guest), begun.elapsed(), &reason(&error)),
        }
    }

    /// Frees what is left of a guest that has come to its end by itself.
    fn clean_up(&self, guest: &Domain) {
        if let State::Shutdown(ShutdownReason::Crash | ShutdownReason::Watchdog) = guest.state {
            self.run.report.warn(&format!("{}: has crashed", name(guest)));
        }
        let begun = Instant::now();
        match self.run.toolstack.destroy(guest.domid) {
            Ok(()) => self.run.report.done(Action::CleanUp, name(guest), begun.elapsed()),
            Err(error) => {
                self.run.report.failed(Action::CleanUp, name(guest), begun.elapsed(), &reason(&error));
            }
        }
    }

    /// SHUTDOWN_ALL: everything that still runs, selected or not.
    fn shut_down_rest(&self) -> Result<(), Error> {
        let Some(options) = self.run.settings.shutdown_all.value else { return Ok(()) };
        let mut rest = self.guests()?;
        rest.retain(is_alive);
        all_at_once(rest, |guest| {
            self.wake(&guest);
            self.shut_down(&guest, options);
        });
        Ok(())
    }

    /// Looks once more: what has come to its end meanwhile is cleaned up, what is still there is reported.
    fn finish(&self, selected: &[Domain]) -> Result<(), Error> {
        for aside in lock(&self.outdated).drain(..) {
            tell_aside(&aside.image().path, "its guest has run since", &aside, self.run.report);
        }
        let settings = self.run.settings;
        let everything = settings.shutdown_all.value.is_some() || !settings.auto_only.value;
        for guest in self.guests()? {
            let meant = everything || selected.iter().any(|selected| selected.uuid == guest.uuid);
            if !meant {
                self.run.report.note(&format!("{}: left running, it is not of AUTO", name(&guest)));
            } else if is_finished(&guest) {
                self.clean_up(&guest);
            } else {
                self.report_left(&guest);
            }
        }
        Ok(())
    }

    fn report_left(&self, guest: &Domain) {
        let settings = self.run.settings;
        let last_step = settings.shutdown_all.value.or(settings.shutdown.value);
        match last_step {
            None if settings.save.value.is_none() => {
                self.run.report.note(&format!("{}: left running, as the settings say", name(guest)));
            }
            Some(ShutdownOptions { wait: false }) if is_alive(guest) => {
                self.run.report.note(&format!("{}: still runs; it was asked to shut down", name(guest)));
            }
            _ => {
                let what = if is_alive(guest) { "still running" } else { "SUSPENDED, neither running nor saved," };
                let reason = format!("it is {what} as domain {}", guest.domid);
                self.run.report.failed(Action::Stop, name(guest), self.begun.elapsed(), &reason);
            }
        }
    }

    /// The end of a step that begins now.
    fn limit(&self) -> Option<Instant> {
        let step = self.run.settings.stop_maxwait.value;
        let step = step.and_then(|limit: Duration| Instant::now().checked_add(limit));
        [step, self.deadline].into_iter().flatten().min()
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::mock::{Bench, Fault};
    use super::*;
    use crate::report::Exit;

    fn with_settings(settings: &str) -> Bench {
        let mut bench = Bench::new();
        bench.settings.push_str(settings);
        bench
    }

    fn running(bench: &Bench, names: &[&str]) {
        for name in names {
            bench.toolstack.domain(name, State::Running);
        }
    }

    #[test]
    fn guests_are_saved_and_gone_and_come_back() {
        let bench = Bench::new();
        running(&bench, &["web", "db", "mail"]);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.calls_of("web"), ["save web", "destroy web"]);
        assert_eq!(bench.toolstack.left(), [""; 0]);
        assert_eq!(bench.saved(), ["db", "mail", "web"]);
        assert!(bench.out().contains("stop: 3 saved ("), "{}", bench.out());
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), ["db Running", "mail Running", "web Running"]);
        assert!(bench.has_mark());
        assert_eq!(bench.stop(), Exit::Done);
        assert!(!bench.has_mark());
    }

    #[test]
    fn a_guest_that_cant_be_saved_is_shut_down_and_the_others_are_saved() {
        let bench = Bench::new();
        running(&bench, &["bad", "good"]);
        bench.toolstack.fault("save bad", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("bad"), ["save bad", "shutdown bad", "destroy bad"]);
        assert_eq!(bench.saved(), ["good"]);
        assert_eq!(bench.toolstack.left(), [""; 0]);
        assert!(bench.err().contains("bad: save FAILED") && bench.err().contains("Fails"), "{}", bench.err());
        assert!(bench.out().contains("1 saved") && bench.out().contains("1 shut down"), "{}", bench.out());
    }

    #[test]
    fn a_guest_that_is_left_suspended_is_reported_and_not_asked() {
        let bench = Bench::new();
        running(&bench, &["web"]);
        bench.toolstack.fault("save web", Fault::LeavesSuspended);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["save web"]);
        assert_eq!(bench.saved(), [""; 0]);
        let err = bench.err();
        assert!(err.contains("left SUSPENDED") && err.contains("web: stop FAILED"), "{err}");
    }

    #[test]
    fn an_image_that_cant_be_completed_lets_the_guest_run_on_and_be_shut_down() {
        let bench = Bench::new();
        running(&bench, &["web"]);
        // The image can't take a place that a directory has.
        fs::create_dir_all(bench.path("save/web")).expect("directory");
        assert_eq!(bench.stop(), Exit::Failed);
        let calls = bench.toolstack.calls();
        assert!(calls.ends_with(&["shutdown web".to_owned(), "destroy web".to_owned()]), "{calls:?}");
        if calls.contains(&"save web".to_owned()) {
            assert!(calls.contains(&"resume web".to_owned()), "{calls:?}");
        }
        assert_eq!(bench.saved(), ["web"]);
    }

    #[test]
    fn a_guest_with_an_image_is_never_let_run_on() {
        let bench = Bench::new();
        running(&bench, &["web"]);
        bench.toolstack.fault("destroy web", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["save web", "destroy web"]);
        assert_eq!(bench.saved(), ["web"]);
        assert!(bench.err().contains("its image is complete"), "{}", bench.err());
    }

    #[test]
    fn an_image_from_before_is_replaced_by_a_new_one_and_never_survives_a_shutdown() {
        let bench = Bench::new();
        for name in ["web", "db", "mail"] {
            bench.image(name);
        }
        running(&bench, &["web", "db"]);
        bench.toolstack.fault("save db", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        let saved = bench.saved();
        assert!(saved.len() == 3 && saved[0].starts_with(".db.") && saved[1..] == ["mail", "web"], "{saved:?}");
        assert!(bench.err().contains("save/db: its guest has run since; it is never restored"), "{}", bench.err());
        bench.toolstack.no_fault("save db");
        assert_eq!(bench.start(), Exit::Done);
        assert_eq!(bench.toolstack.left(), ["mail Running", "web Running"]);
    }

    #[test]
    fn a_save_directory_that_cant_be_used_means_shutdown() {
        let bench = Bench::new();
        running(&bench, &["web", "db"]);
        fs::write(bench.path("save"), "not a directory").expect("write");
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("web"), ["shutdown web", "destroy web"]);
        assert_eq!(bench.toolstack.left(), [""; 0]);
        assert_eq!(bench.err().matches("no guest can be saved").count(), 1);
    }

    #[test]
    fn only_guests_are_touched() {
        let bench = Bench::new();
        running(&bench, &["store", "web-dm", "web--incoming", "db--migratedaway"]);
        bench.toolstack.domain("zombie", State::Dying);
        bench.toolstack.change(1, |domain| domain.never_stop = true);
        bench.toolstack.change(2, |domain| domain.stubdom = true);
        assert_eq!(bench.stop(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert!(bench.out().contains("nothing to do"));
    }

    #[test]
    fn auto_only_saves_only_guests_of_auto_and_shutdown_all_sees_to_the_rest() {
        let bench = with_settings("XENDOMAINS_AUTO_ONLY=true\n");
        bench.auto("web.cfg", "web");
        running(&bench, &["web", "webshop", "we", "web.cfg"]);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.saved(), ["web"]);
        for name in ["webshop", "we", "web.cfg"] {
            assert_eq!(bench.toolstack.calls_of(name), [format!("shutdown {name}"), format!("destroy {name}")]);
        }
    }

    #[test]
    fn auto_only_without_shutdown_all_leaves_the_rest_alone() {
        let bench = with_settings("XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN_ALL=\n");
        bench.auto("web.cfg", "web");
        running(&bench, &["web", "other"]);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), ["other Running"]);
        assert_eq!(bench.toolstack.calls_of("other"), [""; 0]);
        assert!(bench.out().contains("other: left running"), "{}", bench.out());
    }

    #[test]
    fn auto_only_selects_none_when_auto_is_empty_missing_or_broken() {
        for (what, exit) in
            [("empty", Exit::Done), ("missing", Exit::Done), ("file", Exit::Failed), ("junk", Exit::Failed)]
        {
            let bench = with_settings("XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN_ALL=\nXENDOMAINS_SYSRQ=s\n");
            let auto = bench.path("auto");
            match what {
                "missing" => fs::remove_dir(auto).expect("remove"),
                "file" => fs::remove_dir(&auto).and_then(|()| fs::write(auto, "")).expect("write"),
                "junk" => fs::write(auto.join("web"), "name = ").expect("write"),
                _ => {}
            }
            running(&bench, &["web", "other"]);
            assert_eq!(bench.stop(), exit, "{what}");
            assert_eq!(bench.toolstack.calls(), [""; 0], "{what}");
            let said = bench.out() + &bench.err();
            assert!(said.contains("no guest is selected"), "{what}: {said}");
        }
        let bench = with_settings("XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_AUTO=\n");
        running(&bench, &["web"]);
        assert_eq!(bench.stop(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), ["shutdown web", "destroy web"]);
    }

    #[test]
    fn sysrq_letters_come_first_each_with_its_wait() {
        let bench = with_settings("XENDOMAINS_SYSRQ='s u'\nXENDOMAINS_USLEEP=9\n");
        running(&bench, &["web"]);
        assert_eq!(bench.stop(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), ["sysrq web s", "sysrq web u", "save web", "destroy web"]);
        assert_eq!(bench.slept(), [Duration::from_micros(9); 2]);
    }

    #[test]
    fn a_guest_that_sysrq_has_ended_is_cleaned_up() {
        let bench = with_settings("XENDOMAINS_SYSRQ='s o'\n");
        running(&bench, &["web", "db"]);
        bench.toolstack.fault("sysrq web o", Fault::PowersOff);
        bench.toolstack.fault("sysrq db s", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("web"), ["sysrq web s", "sysrq web o", "destroy web"]);
        assert_eq!(bench.toolstack.calls_of("db"), ["sysrq db s", "save db", "destroy db"]);
    }

    #[test]
    fn paused_guests_are_let_run_and_ended_ones_cleaned_up() {
        let bench = Bench::new();
        bench.toolstack.domain("paused", State::Paused);
        bench.toolstack.domain("off", State::Shutdown(ShutdownReason::Poweroff));
        bench.toolstack.domain("crashed", State::Shutdown(ShutdownReason::Crash));
        bench.toolstack.domain("saving", State::Shutdown(ShutdownReason::Suspend));
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("paused"), ["unpause paused", "save paused", "destroy paused"]);
        assert_eq!(bench.toolstack.calls_of("off"), ["destroy off"]);
        assert_eq!(bench.toolstack.calls_of("crashed"), ["destroy crashed"]);
        assert_eq!(bench.toolstack.calls_of("saving"), [""; 0]);
        assert!(bench.err().contains("crashed: has crashed"));
        assert!(bench.err().contains("saving: stop FAILED"), "{}", bench.err());
    }

    #[test]
    fn without_wait_guests_are_only_asked() {
        let settings = "XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN=--halt\nXENDOMAINS_SHUTDOWN_ALL=\n";
        let bench = with_settings(settings);
        running(&bench, &["slow", "quick"]);
        bench.toolstack.fault("request quick", Fault::PowersOff);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.calls_of("slow"), ["request slow"]);
        assert_eq!(bench.toolstack.calls_of("quick"), ["request quick", "destroy quick"]);
        assert!(bench.out().contains("slow: still runs; it was asked"), "{}", bench.out());
    }

    #[test]
    fn a_guest_that_comes_back_is_met_by_shutdown_all() {
        let bench = with_settings("XENDOMAINS_SAVE=\n");
        running(&bench, &["web"]);
        bench.toolstack.fault("shutdown web", Fault::Reboots);
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), [""; 0]);
    }

    #[test]
    fn what_still_runs_in_the_end_is_a_failure() {
        let bench = with_settings("XENDOMAINS_SAVE=\n");
        running(&bench, &["stubborn", "good"]);
        bench.toolstack.fault("shutdown stubborn", Fault::TimesOut);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("stubborn"), ["shutdown stubborn", "shutdown stubborn"]);
        assert_eq!(bench.toolstack.left(), ["stubborn Running"]);
        let err = bench.err();
        assert!(err.contains("time limit reached"), "{err}");
        assert!(err.contains("stubborn: stop FAILED") && err.contains("still running as domain 1"), "{err}");
    }

    #[test]
    fn settings_that_ask_for_nothing_get_nothing() {
        let bench = with_settings("XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n");
        bench.toolstack.domain("web", State::Paused);
        assert_eq!(bench.stop(), Exit::Done);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert!(bench.out().contains("web: left running, as the settings say"), "{}", bench.out());
    }

    #[test]
    fn every_step_has_its_limit_and_the_stop_another() {
        for (settings, expected) in [
            ("", Some(300)),
            ("XENDOMAINS_STOP_MAXWAIT=7\n", Some(7)),
            ("XENDOMAINS_STOP_MAXWAIT=0\n", None),
            ("XENDOMAINS_STOP_TIMEOUT=5\n", Some(5)),
            ("XENDOMAINS_STOP_MAXWAIT=0\nXENDOMAINS_STOP_TIMEOUT=5\n", Some(5)),
            ("XENDOMAINS_STOP_MAXWAIT=3\nXENDOMAINS_STOP_TIMEOUT=5\n", Some(3)),
        ] {
            let bench = with_settings(settings);
            running(&bench, &["web", "bad"]);
            bench.toolstack.fault("save bad", Fault::TimesOut);
            bench.stop();
            for call in ["save web", "save bad", "shutdown bad"] {
                let limit = bench.toolstack.limit(call);
                let rounded = limit.map(|limit| limit.as_secs_f64().ceil() as u64);
                assert_eq!(rounded, expected, "{settings} {call}: {limit:?}");
            }
        }
    }

    #[test]
    fn when_all_the_time_is_over_guests_are_still_asked_to_shut_down() {
        let bench = Bench::new();
        running(&bench, &["web"]);
        bench.run(|run| {
            let now = Instant::now();
            let saves = Places::new(run.settings.save_jobs.value);
            let stop = Stop { run, begun: now, deadline: Some(now), saves, outdated: Mutex::default() };
            stop.all().expect("listed");
        });
        assert_eq!(bench.toolstack.calls(), ["request web", "request web"]);
        assert_eq!(bench.saved(), [""; 0]);
        assert!(bench.err().contains("web: save FAILED (0.0 s): the time for the whole stop is over"));
        assert!(bench.err().contains("web: stop FAILED"), "{}", bench.err());
    }

    #[test]
    fn a_toolstack_that_cant_list_is_a_failure() {
        let bench = Bench::new();
        running(&bench, &["web"]);
        bench.toolstack.fault("list domains", Fault::Fails);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
    }
}
