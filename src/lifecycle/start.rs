//! start: restore the images, and create the guests of the AUTO directory that don't run yet.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::backends::{Backend, Party, Service, backends, services};
use super::directories::{Images, auto_guests, images, set_aside, tell_aside, unreadable_image_of};
use super::libvirt::warn_of_libvirt;
use super::longest::warn_of_long_stop_now;
use super::migrations::{Elsewhere, ask_for, elsewhere};
use super::order::{Level, levels};
use super::recovery::{Building, begin_building, recover};
use super::save_place::{look_at_save, remember_save, warn_of_early_unmount};
use super::watchers::is_ownerless;
use super::watching::Watching;
use super::workers::{Places, all_at_once, in_order, lock};
use super::{Copied, Identity, Run, is_alive, is_finished, judged, name, reason, saw, saw_one, state_word};
use crate::guest_config::GuestConfig;
use crate::host::Host;
use crate::image::{self, Consumed, Image, Verdict};
use crate::monitor::nobody_misses_it;
use crate::needs::{self, Need};
use crate::report::{Action, Reporter};
use crate::runs::Runs;
use crate::settings::{DEFAULT_START_JOBS, RestoreFailed};
use crate::toolstack::{Domain, Domid, Error, Monitoring, State};

/// Creations at once for each of dom0's processors: one that works while another waits.
const CREATIONS_PER_CPU: u64 = 2;

/// What a creation is expected to need of dom0's memory, KiB: the kernel and the initial RAM disk of a distribution,
/// unpacked, until they are in the guest.
const CREATION_KIB: u64 = 96 * 1024;

/// How often a start that failed for a reason that may pass is tried again.
const RETRIES: u32 = 4;

/// Time that such a reason is given to pass for the first time; each time after that it is twice as long.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Starts guests. What runs already is left alone, and a guest whose image is there but could not be restored is not
/// booted over it unless the settings say so.
///
/// Guests start in the order that their files give, those with the same order side by side: first those with an image,
/// then the others by file name.
pub fn start(run: &Run<'_>) {
    let begun = Instant::now();
    mark_if_needed(run.host, run.report);
    warn_of_libvirt(run.host, run.report);
    if is_save_there(run) {
        let start = Start::new(run, false);
        if let Err(error) = start.all() {
            run.report.error(&reason(&error));
        }
        start.pass_over_images();
    }
    mark_if_any_runs(run);
    warn_of_long_stop_now(run);
    run.report.summary("start", begun.elapsed());
}

/// Tells whether the images can be there that are to be restored, and remembers where they are.
fn is_save_there(run: &Run<'_>) -> bool {
    let Some(save) = run.settings.save.value.as_deref() else { return true };
    match look_at_save(run.host, save, run.report) {
        Ok(()) => {
            remember_save(run, save);
            warn_of_early_unmount(run.host, save, run.report);
            true
        }
        Err(why) if run.settings.restore.value => {
            run.report.error(&format!("no guest is started: {why}"));
            false
        }
        Err(why) => {
            run.report.warn(&why);
            true
        }
    }
}

/// Makes the mark where the init system calls no stop without it. There it is made whether a guest runs or not: somebody
/// may start one by hand later.
pub fn mark_if_needed(host: &Host, report: &Reporter) {
    if host.needs_mark() {
        tell_of_mark(host.mark(), host, report);
    }
}

/// Makes the mark if there is a guest, or removes the one of an earlier boot. Elsewhere it only tells who looks.
fn mark_if_any_runs(run: &Run<'_>) {
    if run.host.needs_mark() {
        return;
    }
    // An error leaves it open: there may be one.
    let any = run.toolstack.domains().map_or(true, |domains| domains.iter().any(Domain::is_manageable));
    let done = if any { run.host.mark() } else { run.host.unmark() };
    tell_of_mark(done, run.host, run.report);
}

/// Warns if the mark could not be made or removed.
pub(super) fn tell_of_mark(done: io::Result<()>, host: &Host, report: &Reporter) {
    if let Err(error) = done {
        report.warn(&format!("{}: {error}", host.mark_file().display()));
    }
}

/// What start would do, level by level, in each with images first. Nothing is touched; what start would complain about
/// is said.
pub(super) fn planned(run: &Run<'_>) -> Result<Vec<Level<Job>>, Error> {
    let start = Start::new(run, true);
    Ok(start.levels(&run.toolstack.domains()?, &[]))
}

struct Start<'a> {
    run: &'a Run<'a>,
    watching: Watching<'a>,
    /// Only look.
    dry: bool,
    /// Guests that nobody has begun to start.
    waiting: AtomicUsize,
    /// Guests that the monitor was restarting when it was asked last.
    restarting: Mutex<Vec<Identity>>,
    /// Guests that were migrated away, and would be started otherwise.
    moved: Mutex<Vec<Elsewhere>>,
    /// Guests of a level whose start has failed for a reason that may pass.
    again: Mutex<Vec<Job>>,
    /// Guests whose image could not be restored and is kept. They are not booted.
    kept: Mutex<Vec<Identity>>,
    /// Remains of guests that were removed, or would be.
    cleared: Mutex<Vec<Domid>>,
    /// Guests that were not even begun because the program was asked to end.
    not_begun: Mutex<Vec<String>>,
    /// The UUIDs that several guests have, once the guests to start are known.
    copied: OnceLock<Copied>,
}

/// One guest to be started: from its image, or else from its file.
pub(super) struct Job {
    pub(super) identity: Identity,
    pub(super) image: Option<Image>,
    pub(super) config: Option<GuestConfig>,
    /// An image that is not to be restored, because the settings say so. It is set aside when its guest is booted.
    unwanted: Option<Image>,
    /// A file that is probably its image and can't be read.
    unreadable: Option<PathBuf>,
    /// Number of times that it was tried.
    tries: u32,
}

/// Why a guest could not be started.
struct Failure {
    reason: String,
    /// It may be over a little later.
    may_pass: bool,
}

impl From<String> for Failure {
    fn from(reason: String) -> Failure {
        Failure { reason, may_pass: false }
    }
}

impl Job {
    fn of_image(image: Image, copied: &Copied) -> Job {
        let identity = copied.image(&image);
        Job { identity, image: Some(image), config: None, unwanted: None, unreadable: None, tries: 0 }
    }

    fn of_config(config: GuestConfig, copied: &Copied) -> Job {
        let identity = copied.config(&config);
        Job { identity, image: None, config: Some(config), unwanted: None, unreadable: None, tries: 0 }
    }

    /// Returns the action that starts it.
    fn action(&self) -> Action {
        if self.image.is_some() { Action::Restore } else { Action::Create }
    }

    /// Its configuration, in libxl's JSON.
    pub(super) fn configuration(&self) -> Option<&Value> {
        let of_image = self.image.as_ref().map(|image| &image.config);
        of_image.or(self.config.as_ref().map(|config| &config.json))
    }

    fn party(&self) -> Party<'_> {
        let configuration = self.configuration().unwrap_or(&Value::Null);
        Party { name: Some(&self.identity.name), domid: None, configuration }
    }

    /// What must be there to start it.
    fn needs(&self) -> Vec<Need> {
        match (&self.image, &self.config) {
            (Some(image), _) => needs::needs_to_restore(&image.config),
            (None, Some(config)) => needs::needs(&config.json),
            (None, None) => Vec::new(),
        }
    }

    pub(super) fn order(&self) -> Option<i32> {
        self.config.as_ref().and_then(|config| config.per_guest.order)
    }

    pub(super) fn delay(&self) -> Option<Duration> {
        self.config.as_ref().and_then(|config| config.per_guest.delay)
    }
}

impl<'a> Start<'a> {
    fn new(run: &'a Run<'a>, dry: bool) -> Start<'a> {
        Start {
            run,
            watching: if dry { Watching::none(run) } else { Watching::begin(run) },
            dry,
            waiting: AtomicUsize::new(0),
            restarting: Mutex::default(),
            moved: Mutex::default(),
            again: Mutex::default(),
            kept: Mutex::default(),
            cleared: Mutex::default(),
            not_begun: Mutex::default(),
            copied: OnceLock::new(),
        }
    }

    fn all(&self) -> Result<(), Error> {
        let (before, restarting) = self.watching.look(recover(self.run)?)?;
        saw(self.run, &before);
        let levels = self.levels(&before, &restarting);
        let jobs = || levels.iter().flat_map(|level| &level.guests);
        self.waiting.store(jobs().count(), Ordering::Relaxed);
        self.run.report.expect("started", jobs().map(|job| job.identity.name.clone()));
        for level in levels {
            self.start_level(level.guests, &before)?;
        }
        // After all others, who need not wait for a host that is not there.
        ask_for(self.run, &std::mem::take(&mut *lock(&self.moved)));
        let not_begun = lock(&self.not_begun).join(", ");
        if !not_begun.is_empty() {
            let guests = not_begun;
            self.run.report.error(&format!("told to end: these guests were not started: {guests}"));
        }
        Ok(())
    }

    /// Remembers which images are still there: their guests may be booted by somebody else from now on. One that was not even
    /// begun with is left to the next start.
    fn pass_over_images(&self) {
        let not_begun = lock(&self.not_begun).clone();
        for image in images(self.run.settings.save.value.as_deref()).images {
            if not_begun.contains(&image.name) {
                continue;
            }
            if let Err(error) = Runs::of(self.run.host).pass_over(&image) {
                self.run.report.warn(&format!("that an image was not restored can't be remembered: {error}"));
            }
        }
    }

    /// What is to be started, in which order.
    fn levels(&self, domains: &[Domain], restarting: &[Identity]) -> Vec<Level<Job>> {
        let mut jobs = self.jobs(domains);
        self.leave_elsewhere(&mut jobs, domains);
        self.leave_restarting(&mut jobs, restarting);
        jobs.retain(|job| job.image.is_some() || self.is_to_be_created(job, domains, domains));
        if self.dry {
            self.leave_unserved(&mut jobs, domains);
        }
        let services = services(&jobs.iter().map(Job::party).collect::<Vec<_>>());
        let mut sorted = Vec::new();
        for (job, service) in jobs.into_iter().zip(services) {
            let key = service.key(job.order());
            if let Service::Circle(way) = service {
                let reason = format!("its disks or networks come from a circle of guests: {}", way.join(", "));
                self.run.report.failed(job.action(), &job.identity.name, Duration::ZERO, &reason);
                continue;
            }
            sorted.push((job, key));
        }
        levels(sorted)
    }

    /// Takes out the guests of which a start would find that nobody serves them.
    fn leave_unserved(&self, jobs: &mut Vec<Job>, domains: &[Domain]) {
        let names: Vec<_> = jobs.iter().map(|job| job.identity.name.clone()).collect();
        jobs.retain(|job| {
            let backends = job.configuration().map(backends).unwrap_or_default();
            let is_served = |backend: &Backend<'_>| {
                backend.find(domains).is_some() || names.iter().any(|name| *backend == Backend::Name(name))
            };
            let unserved = backends.into_iter().find(|backend| !is_served(backend));
            if let Some(backend) = unserved {
                self.run.report.failed(job.action(), &job.identity.name, Duration::ZERO, &not_there(backend));
            }
            unserved.is_none()
        });
    }

    /// Takes out the guests that were migrated away: they run on another host, or may.
    fn leave_elsewhere(&self, jobs: &mut Vec<Job>, domains: &[Domain]) {
        let (guests, _) = elsewhere(self.run.host, domains);
        for guest in guests {
            let identity = guest.identity();
            let before = jobs.len();
            jobs.retain(|job| !job.identity.is_same_guest(&identity));
            match (jobs.len() < before, guest.undecided, self.dry) {
                (true, true, true) => self.run.report.warn(&guest.describe()),
                (true, false, true) => self.run.report.note(&guest.describe()),
                (true, false, false) => lock(&self.moved).push(guest),
                // It was said before anything was done, or need not be said.
                (true, true, false) | (false, ..) => {}
            }
        }
    }

    /// Takes out the guests that the monitor is restarting.
    fn leave_restarting(&self, jobs: &mut Vec<Job>, restarting: &[Identity]) {
        jobs.retain(|job| {
            let restarts = restarting.iter().any(|guest| job.identity.is_same_guest(guest));
            if restarts {
                self.run.report.note(&format!("{}: is being restarted by the monitor", job.identity.name));
            }
            !restarts
        });
        restarting.clone_into(&mut lock(&self.restarting));
    }

    /// What is to be started, images before files.
    fn jobs(&self, domains: &[Domain]) -> Vec<Job> {
        let settings = self.run.settings;
        let found = images(settings.save.value.as_deref());
        found.messages.tell(self.run.report);
        let auto = auto_guests(settings.auto.value.as_deref(), self.run.xen_host);
        auto.messages.tell(self.run.report);
        let Images { images, unreadable, superseded, unknown, .. } = found;
        let copied = self.copied.get_or_init(|| Copied::new(&auto.guests, &images, domains));
        if !self.dry {
            if let Err(error) = Runs::of(self.run.host).take_skipped(&images) {
                self.run.report.warn(&format!("which images were passed over can't be remembered: {error}"));
            }
        }
        let mut jobs = Vec::new();
        let mut unwanted = Vec::new();
        if settings.restore.value {
            // Once the newer image is used up, the older one would count.
            for image in superseded.iter().filter_map(|path| Image::open(path).ok()) {
                self.set_aside(image, "there is a newer image of its guest");
            }
            let waiting = self.without_running(images, domains, copied);
            jobs.extend(waiting.into_iter().map(|image| Job::of_image(image, copied)));
        } else {
            unwanted = images;
        }
        if unknown && !auto.guests.is_empty() {
            self.run.report.error("no guest is started: any of them may have an image that can't be seen");
            return jobs;
        }
        for config in auto.guests {
            let guest = copied.config(&config);
            match jobs.iter_mut().find(|job| job.identity.is_same_guest(&guest)) {
                Some(job) => job.config = Some(config),
                None => {
                    let mut job = Job::of_config(config, copied);
                    let place = unwanted.iter().position(|image| copied.image(image).is_same_guest(&guest));
                    job.unwanted = place.map(|place| unwanted.swap_remove(place));
                    job.unreadable = unreadable_image_of(&guest, &unreadable).map(PathBuf::from);
                    jobs.push(job);
                }
            }
        }
        jobs
    }

    /// Returns whether the domain is what is left of a guest that has ended, is of no use to anybody, and has no owner who would
    /// remove it. It is then removed.
    fn is_cleared_away(&self, domain: &Domain) -> bool {
        let Run { host, toolstack, report, .. } = *self.run;
        let State::Shutdown(reason) = domain.state else { return false };
        if lock(&self.cleared).contains(&domain.domid) {
            return true;
        }
        if !is_finished(domain) || !domain.is_manageable() || !is_ownerless(domain, host, toolstack, report) {
            return false;
        }
        let kept = |monitoring: &dyn Monitoring| monitoring.kept_configuration(domain.domid).ok().flatten();
        let config = match toolstack.monitoring() {
            Some(monitoring) => kept(monitoring),
            None => toolstack.configuration(domain.domid).ok(),
        };
        if !config.is_some_and(|config| config.is_object() && nobody_misses_it(&config, reason)) {
            return false;
        }
        let (guest, domid, state) = (name(domain), domain.domid, state_word(domain.state));
        if self.dry {
            report.note(&format!("{guest}: domain {domid}, which is {state}, would be removed"));
            lock(&self.cleared).push(domid);
            return true;
        }
        match toolstack.destroy(domid) {
            Ok(()) => {
                lock(&self.cleared).push(domid);
                report
                    .note(&format!("{guest}: removed domain {domid}, which is {state} and which nobody watches"));
                true
            }
            Err(error) => {
                report.warn(&format!("{guest}: domain {domid}, which is {state}: {}", self::reason(&error)));
                false
            }
        }
    }

    /// The images of guests that don't run. An image whose guest runs is outdated, and so is one whose guest's disks have
    /// been written to since.
    fn without_running(&self, images: Vec<Image>, domains: &[Domain], copied: &Copied) -> Vec<Image> {
        let mut waiting = Vec::new();
        for image in images {
            match copied.image(&image).find(domains) {
                None => match judged(&image, self.run.host) {
                    Verdict::Stale(why) => self.set_aside(image, &why),
                    // What is not there yet may come: it is looked at again when it is needed.
                    Verdict::Fresh | Verdict::Unknown(_) | Verdict::DiskMissing(_) | Verdict::OtherDisk(_) => {
                        waiting.push(image);
                    }
                },
                Some(domain) if domain.state == State::Running && domain.is_manageable() => {
                    let why = format!("its guest runs already, as domain {}", domain.domid);
                    self.set_aside(image, &why);
                }
                Some(domain) if self.is_cleared_away(domain) => {
                    self.set_aside(image, &format!("its guest has run since, as domain {}", domain.domid));
                }
                Some(domain) => {
                    self.report_in_the_way(&image, domain);
                    lock(&self.kept).push(copied.image(&image));
                }
            }
        }
        waiting
    }

    fn set_aside(&self, image: Image, why: &str) {
        if self.dry {
            self.run.report.warn(&format!("{}: {why}; it would be set aside", image.path.display()));
        } else {
            set_aside(image, why, self.run.report);
        }
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

    /// Guests of one order: those with an image first, then the others, and at last those of both that are to be tried
    /// again.
    fn start_level(&self, level: Vec<Job>, before: &[Domain]) -> Result<(), Error> {
        let settings = self.run.settings;
        let (restores, mut creations): (Vec<_>, Vec<_>) = level.into_iter().partition(|job| job.image.is_some());
        let mut jobs = settings.start_jobs.value.unwrap_or(DEFAULT_START_JOBS);
        self.side_by_side(jobs, restores);
        if !creations.is_empty() {
            // What came before may have taken long: look again.
            let (domains, restarting) = self.watching.look(self.run.toolstack.domains()?)?;
            let wanted = creations.len();
            self.leave_restarting(&mut creations, &restarting);
            self.waiting.fetch_sub(wanted - creations.len(), Ordering::Relaxed);
            creations.retain(|job| {
                let wanted = self.is_to_be_created(job, before, &domains);
                if !wanted {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                }
                wanted
            });
            jobs = self.creations_at_once(&creations);
            self.side_by_side(jobs, creations);
        }
        self.try_again(jobs);
        Ok(())
    }

    /// Tries again what has failed for a reason that may pass: each time after a longer pause and fewer at once, down to
    /// one.
    fn try_again(&self, jobs: NonZeroUsize) {
        for retry in 1..=RETRIES {
            let again = std::mem::take(&mut *lock(&self.again));
            if again.is_empty() {
                return;
            }
            let fewer = if retry == RETRIES { 1 } else { jobs.get() >> retry };
            let fewer = NonZeroUsize::new(fewer).unwrap_or(NonZeroUsize::MIN);
            let pause = RETRY_PAUSE * (1 << (retry - 1));
            let guests: Vec<_> = again.iter().map(|job| job.identity.name.as_str()).collect();
            let (guests, seconds) = (guests.join(", "), pause.as_secs());
            self.run.report.note(&format!(
                "trying again in {seconds} s, {fewer} at a time (retry {retry} of {RETRIES}): {guests}"
            ));
            self.run.pause(pause);
            let again = self.still_to_be_started(again);
            self.waiting.fetch_add(again.len(), Ordering::Relaxed);
            self.side_by_side(fewer, again);
        }
    }

    /// Takes out the guests that somebody else has started, or is starting.
    fn still_to_be_started(&self, mut jobs: Vec<Job>) -> Vec<Job> {
        let looked = self.run.toolstack.domains().and_then(|domains| self.watching.look(domains));
        let (domains, restarting) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                let reason = format!("not tried again: {}", reason(&error));
                for job in jobs {
                    self.run.report.failed(job.action(), &job.identity.name, Duration::ZERO, &reason);
                }
                return Vec::new();
            }
        };
        self.leave_restarting(&mut jobs, &restarting);
        jobs.retain_mut(|job| {
            if let (Some(image), Some(copied)) = (job.image.take(), self.copied.get()) {
                job.image = self.without_running(vec![image], &domains, copied).pop();
            }
            job.image.is_some() || (job.config.is_some() && self.is_to_be_created(job, &domains, &domains))
        });
        jobs
    }

    /// How many guests are created at the same time, if the settings do not say: one where there are pauses, which are
    /// meant to keep the next one waiting, and no more than dom0 has processors and memory for. Those that are ready boot
    /// beside those that are being created, and what dom0 has no time for libxl gives up.
    fn creations_at_once(&self, creations: &[Job]) -> NonZeroUsize {
        if let Some(jobs) = self.run.settings.start_jobs.value {
            return jobs;
        }
        if creations.iter().any(|job| !self.pause_after_creation(job).is_zero()) {
            return NonZeroUsize::MIN;
        }
        let host = self.run.host;
        let by_cpus = host.cpus().map(|cpus| u64::from(cpus.online) * CREATIONS_PER_CPU);
        let by_memory = host.available_memory_kib().map(|available| available / CREATION_KIB);
        let fit = by_cpus.into_iter().chain(by_memory).filter_map(|fit| usize::try_from(fit).ok());
        let fit = fit.map(|fit| NonZeroUsize::new(fit).unwrap_or(NonZeroUsize::MIN));
        fit.chain([DEFAULT_START_JOBS]).min().unwrap_or(DEFAULT_START_JOBS)
    }

    /// Starts guests in their order, at most `jobs` at once. Those whose disks or bridges are yet to come follow when
    /// these are there, without holding up the others.
    fn side_by_side(&self, jobs: NonZeroUsize, guests: Vec<Job>) {
        let places = Places::new(jobs);
        let begin = |job| {
            let _place = places.take(None);
            self.begin(job);
        };
        let (late, ready): (Vec<_>, Vec<_>) = guests.into_iter().partition(|job| self.is_late(job));
        thread::scope(|scope| {
            if !late.is_empty() {
                scope.spawn(|| {
                    all_at_once(late, |job| {
                        self.wait_for_needs(&job);
                        begin(job);
                    });
                });
            }
            in_order(jobs, ready, begin);
        });
    }

    /// Whether something that the guest needs has to be waited for.
    fn is_late(&self, job: &Job) -> bool {
        !self.run.settings.device_wait.value.is_zero() && !needs::missing(&job.needs()).is_empty()
    }

    /// Waits for what the guest needs. Whether it has come is seen when the guest is built.
    fn wait_for_needs(&self, job: &Job) {
        let limit = self.run.settings.device_wait.value;
        let needs = job.needs();
        let missing: Vec<_> = needs::missing(&needs).iter().map(ToString::to_string).collect();
        let (guest, missing) = (&job.identity.name, missing.join(", "));
        self.run.report.note(&format!("{guest}: waits for {missing}, at most {} s", limit.as_secs()));
        if let Some(deadline) = Instant::now().checked_add(limit) {
            let _ = needs::wait(&needs, deadline, self.run.interrupt);
        }
    }

    /// Starts a guest in one of two ways, and then waits as long as is asked for, unless it was the last one.
    fn begin(&self, mut job: Job) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.run.interrupt.is_asked() {
            lock(&self.not_begun).push(job.identity.name);
            return;
        }
        job.tries += 1;
        let pause = if job.image.is_some() { self.restore(job) } else { self.create(job) };
        if let Some(pause) = pause.filter(|_| self.waiting.load(Ordering::Relaxed) > 0) {
            self.run.pause(pause);
        }
    }

    /// Puts a guest off until after the others, if its failure may pass and it was not tried too often. Gives it back
    /// otherwise, with the reason.
    fn put_off(&self, job: Job, failure: Failure) -> Option<(Job, String)> {
        let Failure { reason, may_pass } = failure;
        if !may_pass || job.tries > RETRIES || self.run.interrupt.is_asked() {
            let tries = if job.tries > 1 { format!(" (tried {} times)", job.tries) } else { String::new() };
            return Some((job, reason + &tries));
        }
        self.run.report.warn(&format!("{}: {reason}; it is tried again after the others", job.identity.name));
        lock(&self.again).push(job);
        None
    }

    /// Restores a guest. A success gives the time to wait before the next one.
    fn restore(&self, job: Job) -> Option<Duration> {
        let begun = Instant::now();
        let image = job.image.clone()?;
        let (guest, path) = (image.name.clone(), image.path.clone());
        let mut progress = self.run.report.progress(Action::Restore, &guest);
        progress.follow(image.size, image.read_so_far());
        if let Verdict::OtherDisk(why) = image.verdict() {
            let why = format!("{why}. The image is kept, and the guest is not booted on the wrong disk either");
            self.run.report.failed(Action::Restore, &guest, begun.elapsed(), &why);
            lock(&self.kept).push(job.identity);
            return None;
        }
        match self.try_to_restore(image, job.config.as_ref()) {
            Ok(()) => {
                self.run.report.done(Action::Restore, &guest, begun.elapsed());
                Some(job.delay().unwrap_or_default())
            }
            Err(failure) => {
                let (mut job, reason) = self.put_off(job, failure)?;
                self.run.report.failed(Action::Restore, &guest, begun.elapsed(), &reason);
                if self.run.interrupt.is_asked() {
                    lock(&self.not_begun).push(guest);
                }
                job.image = None;
                self.start_without_image(job, &path)
            }
        }
    }

    /// Boots a guest whose image could not be restored, if the settings say so.
    fn start_without_image(&self, job: Job, image: &Path) -> Option<Duration> {
        let start = self.run.settings.restore_failed.value == RestoreFailed::Start;
        if !start || job.config.is_none() || self.run.interrupt.is_asked() {
            lock(&self.kept).push(job.identity);
            return None;
        }
        match image::set_aside(image) {
            Ok(aside) => {
                let (path, aside) = (image.display(), aside.display());
                let why = "could not be restored, so that its guest is booted without it (RESTORE_FAILED)";
                self.run.report.warn(&format!("{path}: {why}; it is kept as {aside}"));
                self.create(job)
            }
            Err(error) => {
                self.run.report.error(&format!("{}: not started over its image: {error}", job.identity.name));
                lock(&self.kept).push(job.identity);
                None
            }
        }
    }

    /// Builds a guest within its limit.
    fn build(
        &self,
        action: Action,
        guest: &str,
        attempt: impl Fn(Option<Instant>) -> Result<Domid, Error>,
    ) -> Result<Domid, Failure> {
        let limit = self.run.settings.start_maxwait.value;
        let limit = limit.and_then(|limit| Instant::now().checked_add(limit));
        let _work = self.run.report.work(action, guest, limit);
        // What took all the time that the settings give it is not given the same once more.
        attempt(limit)
            .map_err(|error| Failure { reason: reason(&error), may_pass: error.transient && !error.timed_out })
    }

    /// Sees to it that the domains run that serve a guest. One that is on its way may be there a little later.
    fn look_for_backends(&self, configuration: &Value) -> Result<(), Failure> {
        let backends = backends(configuration);
        if backends.is_empty() {
            return Ok(());
        }
        let domains = self.run.toolstack.domains().map_err(|error| reason(&error))?;
        for backend in backends {
            let restarts = lock(&self.restarting).iter().any(|guest| Backend::Name(&guest.name) == backend);
            let found = match backend {
                // Also where it is just coming from another host.
                Backend::Name(name) => Identity { name: name.to_owned(), uuid: None }.find(&domains),
                Backend::Number(_) => backend.find(&domains),
            };
            let what = match found {
                Some(domain) if domain.state == State::Running => continue,
                Some(domain) => state_word(domain.state),
                None if restarts => "being restarted",
                None => return Err(not_there(backend).into()),
            };
            let reason = format!("{backend}, which serves its disks or networks, is {what}");
            return Err(Failure { reason, may_pass: true });
        }
        Ok(())
    }

    /// Whether everything is there that a guest needs.
    fn look_for(&self, needs: &[Need]) -> Result<(), String> {
        let missing: Vec<_> = needs::missing(needs).iter().map(|need| format!("{need} is not there")).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let waited = match self.run.settings.device_wait.value.as_secs() {
            0 => String::new(),
            seconds => format!(" (waited {seconds} s)"),
        };
        Err(missing.join(", ") + &waited)
    }

    /// Says what the toolstack waits for before it builds a guest.
    fn note(&self, guest: &str) -> impl Fn(&str) {
        move |text| self.run.report.note(&format!("{guest}: {text}"))
    }

    fn no_note(&self, error: &std::io::Error) -> String {
        format!("{}: {error}", self.run.host.run_dir.display())
    }

    /// After a restore that came to nothing, a device model may have written into the files that it opened.
    fn look_at_disks_again(&self, image: &Image) {
        if let Err(error) = image.restore_failed() {
            self.run.report.warn(&error.to_string());
        }
    }

    fn try_to_restore(&self, image: Image, config: Option<&GuestConfig>) -> Result<(), Failure> {
        self.look_for_backends(&image.config)?;
        self.look_for(&needs::needs_to_restore(&image.config))?;
        if let Verdict::Stale(why) | Verdict::DiskMissing(why) | Verdict::OtherDisk(why) = image.verdict() {
            return Err(why.into());
        }
        if let Some(why) = Runs::of(self.run.host).needs_a_word(&image) {
            return Err(why.into());
        }
        let building = begin_building(self.run, image.uuid, &image.name, Some(&image))
            .map_err(|error| self.no_note(&error))?;
        let restored = self.restore_noted(image, config, &building);
        building.ended(self.run, restored.is_ok());
        restored
    }

    fn restore_noted(
        &self,
        mut image: Image,
        config: Option<&GuestConfig>,
        building: &Building,
    ) -> Result<(), Failure> {
        self.run.xen_host.before_creation(&mut image.config).map_err(|error| error.to_string())?;
        let restore = |limit| self.run.toolstack.restore(&image, limit, &self.note(&image.name), building.made());
        let domid =
            self.build(Action::Restore, &image.name, restore).inspect_err(|_| self.look_at_disks_again(&image))?;
        building.made()(domid);
        let identity = Identity::of_image(&image);
        if let Some(consumed) = self.let_run(domid, &identity, Some(image), config)? {
            // It will never be restored again, whether it can be removed or not.
            if let Err(error) = consumed.remove() {
                self.run.report.warn(&format!("the restored image is still there: {error}"));
            }
        }
        Ok(())
    }

    /// Lets a new guest run. Its image is out of the way before it runs, so that nothing can run it a second time, and
    /// back in its place if the guest can't be let run.
    fn let_run(
        &self,
        domid: Domid,
        guest: &Identity,
        image: Option<Image>,
        config: Option<&GuestConfig>,
    ) -> Result<Option<Consumed>, String> {
        let toolstack = self.run.toolstack;
        self.watching.add(domid, guest, config);
        let consumed = match image.map(Image::consume).transpose() {
            Ok(consumed) => consumed,
            Err(error) => return Err(self.give_up(domid, error.to_string()).0),
        };
        let Err(error) = toolstack.unpause(domid) else {
            saw_one(self.run, domid, guest);
            return Ok(consumed);
        };
        let (mut reason, is_gone) = self.give_up(domid, reason(&error));
        match consumed {
            Some(consumed) if is_gone => match consumed.put_back() {
                Ok(image) => self.look_at_disks_again(&image),
                Err(error) => reason.push_str(&format!("; {error}")),
            },
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

    /// Whether it does not run and nothing stands in its way. What does is reported.
    fn is_to_be_created(&self, job: &Job, before: &[Domain], domains: &[Domain]) -> bool {
        let identity = &job.identity;
        let refuse = |reason: &str| {
            self.run.report.failed(Action::Create, &identity.name, Duration::ZERO, reason);
            false
        };
        if let Some(kept) = lock(&self.kept).iter().find(|kept| kept.is_same_guest(identity)) {
            self.run.report.note(&format!("{}: not started over its image, which is kept", kept.name));
            return false;
        }
        if let (Some(image), RestoreFailed::Keep) = (&job.unreadable, self.run.settings.restore_failed.value) {
            return refuse(&format!("not started over its unusable image {}", image.display()));
        }
        match identity.find(domains) {
            None => true,
            // Somebody may be about to let it run.
            Some(domain) if domain.has_never_run() && domain.is_manageable() => {
                let (id, other) = (domain.domid, name(domain));
                let reason =
                    format!("domain {id} ({other}) is in the way: it was never let run, or is being built");
                self.run.report.warn(&format!("{}: not started: {reason}", identity.name));
                false
            }
            Some(domain) if is_alive(domain) && domain.is_manageable() => {
                // One that was started just now has been reported.
                if identity.find(before).is_some() {
                    self.run.report.note(&format!("{}: runs already as domain {}", identity.name, domain.domid));
                }
                false
            }
            Some(domain) if self.is_cleared_away(domain) => true,
            Some(domain) => {
                let (id, name, state) = (domain.domid, name(domain), state_word(domain.state));
                refuse(&format!("domain {id} ({name}) is in the way: it is {state}"))
            }
        }
    }

    fn pause_after_creation(&self, job: &Job) -> Duration {
        job.delay().unwrap_or(self.run.settings.create_usleep.value)
    }

    /// Creates a guest from its file. A success gives the time to wait before the next one.
    fn create(&self, job: Job) -> Option<Duration> {
        if let Some(path) = &job.unreadable {
            return self.start_without_image(Job { unreadable: None, ..job }, &path.clone());
        }
        let pause = self.pause_after_creation(&job);
        let guest = job.config.as_ref()?;
        for warning in guest.warnings.iter().filter(|_| job.tries == 1) {
            self.run.report.warn(&warning.to_string());
        }
        let begun = Instant::now();
        match self.try_to_create(guest, job.unwanted.clone()) {
            Ok(()) => {
                self.run.report.done(Action::Create, &guest.name, begun.elapsed());
                Some(pause)
            }
            Err(failure) => {
                let (job, reason) = self.put_off(job, failure)?;
                self.run.report.failed(Action::Create, &job.identity.name, begun.elapsed(), &reason);
                None
            }
        }
    }

    fn try_to_create(&self, guest: &GuestConfig, unwanted: Option<Image>) -> Result<(), Failure> {
        self.look_for_backends(&guest.json)?;
        self.look_for(&needs::needs(&guest.json))
            .map_err(|reason| format!("{}: {reason}", guest.path.display()))?;
        let building =
            begin_building(self.run, guest.uuid, &guest.name, None).map_err(|error| self.no_note(&error))?;
        let created = self.create_noted(guest.clone(), unwanted, &building);
        building.ended(self.run, created.is_ok());
        created
    }

    fn create_noted(
        &self,
        mut guest: GuestConfig,
        unwanted: Option<Image>,
        building: &Building,
    ) -> Result<(), Failure> {
        self.run.xen_host.before_creation(&mut guest.json).map_err(|error| error.to_string())?;
        let create = |limit| self.run.toolstack.create(&guest, limit, &self.note(&guest.name), building.made());
        let domid = self.build(Action::Create, &guest.name, create)?;
        building.made()(domid);
        let identity = Identity { name: guest.name.clone(), uuid: Some(guest.uuid) };
        if let Some(aside) = self.let_run(domid, &identity, unwanted, Some(&guest))? {
            let why = "its guest was started without it, because RESTORE is not true";
            tell_aside(&aside.image().path, why, &aside, self.run.report);
        }
        Ok(())
    }
}

fn not_there(backend: Backend<'_>) -> String {
    format!("{backend}, which serves its disks or networks, does not run, and start starts no such guest")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use serde_json::json;

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
    fn what_is_kept_of_an_earlier_life_is_not_the_guest() {
        let bench = Bench::new();
        bench.auto("db", "db");
        let kept = bench.toolstack.domain("db", State::Shutdown(ShutdownReason::Crash));
        bench.toolstack.change(kept, |domain| domain.name = Some("db-20260102T0304Z".to_owned()));
        bench.toolstack.domain("db", State::Running);
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert!(bench.out().contains("db: runs already as domain 2"), "{}", bench.out());
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
        assert!(!bench.has_mark(), "nothing was started, and nothing runs");
        bench.toolstack.no_fault("restore web");
        bench.start();
        assert_eq!(bench.toolstack.left(), ["web Running"]);
    }

    #[test]
    fn the_mark_is_there_if_a_guest_is_or_the_init_system_goes_by_it() {
        let bench = Bench::new();
        bench.host.mark().expect("left over from an earlier boot");
        assert_eq!(bench.start(), Exit::Done);
        assert!(!bench.has_mark(), "nothing was started, and nothing runs");
        bench.toolstack.domain("by-hand", State::Running);
        assert_eq!(bench.start(), Exit::Done);
        assert!(bench.has_mark(), "a guest runs");

        let bench = Bench::new();
        fs::create_dir(&bench.host.subsys_dir).expect("directory");
        assert_eq!(bench.start(), Exit::Done);
        assert!(bench.has_mark(), "without it no stop is called");
        assert_eq!(bench.stop(), Exit::Done);
        fs::create_dir(&bench.host.systemd_dir).expect("directory");
        assert_eq!(bench.start(), Exit::Done);
        assert!(!bench.has_mark(), "systemd calls stop in any case");
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
    fn a_guest_is_neither_restored_nor_booted_on_another_disk() {
        for settings in ["", "XENDOMAINS_RESTORE_FAILED=start\n"] {
            let bench = with_settings(settings);
            bench.auto("web", "web");
            bench.image_on("web", &bench.path("disk"));
            bench.change_recorded_disk(|disk| {
                disk["kind"] = "block".into();
                disk["identity"] = "LVM-abc".into();
            });
            for _ in 0..2 {
                assert_eq!(bench.start(), Exit::Failed);
                assert_eq!((bench.toolstack.calls(), bench.saved()), (vec![], vec!["web".to_owned()]));
            }
            let why = format!(
                "disk xvda ({}) was a block device when the guest was saved",
                bench.path("disk").display()
            );
            assert!(bench.err().contains(&why), "{}", bench.err());
            assert!(bench.err().contains("not booted on the wrong disk"), "{}", bench.err());
            bench.run(|run| crate::lifecycle::check(run.host, run.settings, run.xen_host, false, &[], run.report));
            assert!(bench.err().contains("start would keep it: disk xvda"), "{}", bench.err());
        }
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
    fn as_many_guests_are_created_at_once_as_dom0_can_do_and_one_where_there_is_a_pause() {
        for (settings, wishes, cpus, available, expected) in [
            ("XENDOMAINS_CREATE_USLEEP=0\n", "", "", "", 8),
            ("XENDOMAINS_CREATE_USLEEP=7\n", "", "", "", 1),
            ("XENDOMAINS_CREATE_USLEEP=7\n", "'delay=0'", "", "", 8),
            ("XENDOMAINS_CREATE_USLEEP=0\n", "'delay=7'", "", "", 1),
            ("XENDOMAINS_CREATE_USLEEP=7\nXENDOMAINS_START_JOBS=3\n", "", "0", "MemAvailable:  1 kB\n", 3),
            ("XENDOMAINS_CREATE_USLEEP=0\n", "", "0-63", "MemFree: 1 kB\nMemAvailable:  9000000 kB\n", 8),
            ("XENDOMAINS_CREATE_USLEEP=0\n", "", "0-1", "MemFree: 1 kB\nMemAvailable:  9000000 kB\n", 4),
            ("XENDOMAINS_CREATE_USLEEP=0\n", "", "0-63", "MemFree: 1 kB\nMemAvailable:   294912 kB\n", 3),
            ("XENDOMAINS_CREATE_USLEEP=0\n", "", "0", "MemFree: 1 kB\nMemAvailable:    1000 kB\n", 1),
        ] {
            let bench = with_settings(settings);
            fs::create_dir_all(&bench.host.processes).expect("directory");
            fs::write(bench.host.processes.join("meminfo"), available).expect("write");
            fs::create_dir_all(bench.host.devices.join("cpu")).expect("directory");
            for which in ["possible", "online"] {
                fs::write(bench.host.devices.join("cpu").join(which), cpus).expect("write");
            }
            bench.auto("web", "web");
            let file = bench.path("auto").join("web");
            let text = fs::read_to_string(&file).expect("read");
            fs::write(&file, format!("{text}xendomains = [ {wishes} ]\n")).expect("write");
            bench.run(|run| {
                let levels = planned(run).expect("a plan");
                assert_eq!(
                    Start::new(run, true).creations_at_once(&levels[0].guests).get(),
                    expected,
                    "{settings}{wishes}"
                );
            });
        }
    }

    #[test]
    fn guests_start_by_their_order_each_level_with_its_images_first() {
        let bench = with_settings("XENDOMAINS_START_JOBS=1\nXENDOMAINS_CREATE_USLEEP=3000000\n");
        for (file, wishes) in [
            ("a", ""),
            ("b", "'order=2', 'delay=7'"),
            ("c", "'order=2'"),
            ("d", "'order=1', 'delay=0'"),
            ("e", ""),
        ] {
            bench.auto(file, file);
            let text = fs::read_to_string(bench.path("auto").join(file)).expect("read");
            let text = format!("{text}xendomains = [ {wishes} ]\n");
            fs::write(bench.path("auto").join(file), text).expect("write");
        }
        bench.image("c");
        bench.image("e");
        bench.image("stranger");
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        let mut calls = bench.toolstack.calls();
        calls.retain(|call| !call.starts_with("unpause"));
        assert_eq!(calls, ["create d", "restore c", "create b", "restore e", "restore stranger", "create a"]);
        // d asks for none, images have none of their own, b for its own, and a is the last.
        assert_eq!(bench.slept(), [Duration::from_secs(7)]);
    }

    const DISK_OF_STORE: &str = "disk = [ 'vdev=xvda,backend=store,target=/dev/vg/x' ]";

    fn without_unpause(bench: &Bench) -> Vec<String> {
        let mut calls = bench.toolstack.calls();
        calls.retain(|call| !call.starts_with("unpause"));
        calls
    }

    #[test]
    fn driver_domains_start_before_those_they_serve_also_before_images_of_these() {
        let bench = with_settings("XENDOMAINS_START_JOBS=1\nXENDOMAINS_CREATE_USLEEP=0\n");
        for name in ["a-web", "net", "store", "z-idle"] {
            bench.auto(name, name);
        }
        bench.add_line("a-web", "xendomains = [ 'order=-1' ]");
        bench.add_line("a-web", "vif = [ 'backend=net' ]");
        bench.add_line("net", DISK_OF_STORE);
        bench.add_line("z-idle", "driver_domain = 1");
        bench.image_with("db", json!({"disks": [{"vdev": "xvda", "backend_domname": "store"}]}));
        bench.image("other");
        let planned = bench.run(|run| {
            let levels = planned(run).expect("a plan");
            let shown = |level: &Level<Job>| {
                let names: Vec<_> = level.guests.iter().map(|job| job.identity.name.clone()).collect();
                format!("{}: {}", level.key.driver.is_some(), names.join(" "))
            };
            let shown: Vec<_> = levels.iter().map(shown).collect();
            assert_eq!(shown, ["true: store z-idle", "true: net", "false: a-web", "false: db other"]);
        });
        assert_eq!(planned, Exit::Done, "{}", bench.err());
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        let expected =
            ["create store", "create z-idle", "create net", "create a-web", "restore db", "restore other"];
        assert_eq!(without_unpause(&bench), expected);
    }

    #[test]
    fn a_backend_that_is_nowhere_or_in_a_circle_costs_only_its_clients() {
        let bench = with_settings("XENDOMAINS_START_JOBS=1\nXENDOMAINS_CREATE_USLEEP=0\n");
        for name in ["a", "b", "c", "other", "web"] {
            bench.auto(name, name);
        }
        bench.add_line("a", "vif = [ 'backend=b' ]");
        bench.add_line("b", "vif = [ 'backend=a' ]");
        bench.add_line("c", "vif = [ 'backend=77' ]");
        bench.add_line("web", DISK_OF_STORE);
        bench.image_with("db", json!({"nics": [{"backend_domname": "store"}]}));
        for plans in [true, false] {
            let exit = bench.run(|run| {
                if plans {
                    planned(run).expect("a plan");
                } else {
                    start(run);
                }
            });
            assert_eq!(exit, Exit::Failed);
            let err = bench.err();
            for said in [
                "a: start FAILED (0.0 s): its disks or networks come from a circle of guests: a, b, a",
                "b: start FAILED (0.0 s): its disks or networks come from a circle of guests: b, a, b",
                "c: start FAILED (0.0 s): domain 77, which serves its disks or networks, does not run",
                "db: restore FAILED (0.0 s): store, which serves its disks or networks, does not run",
                "web: start FAILED (0.0 s): store, which serves its disks or networks, does not run",
            ] {
                assert_eq!(err.matches(said).count(), if plans { 1 } else { 2 }, "{said}: {err}");
            }
        }
        assert_eq!(bench.toolstack.left(), ["other Running"]);
        assert_eq!(bench.saved(), ["db"]);
        assert_eq!(bench.slept(), [], "what can't pass is not waited for");
    }

    #[test]
    fn a_backend_that_is_on_its_way_is_waited_for() {
        for state in [State::Paused, State::Shutdown(ShutdownReason::Reboot)] {
            let bench = with_settings("XENDOMAINS_CREATE_USLEEP=0\n");
            bench.auto("web", "web");
            bench.add_line("web", DISK_OF_STORE);
            bench.image_with("db", json!({"nics": [{"backend_domname": "store"}]}));
            let store = bench.toolstack.domain("store", state);
            let comes = |_: Duration| bench.toolstack.change(store, |domain| domain.state = State::Running);
            let exit = bench.run(|run| start(&Run { sleep: &comes, ..*run }));
            assert_eq!(exit, Exit::Done, "{}", bench.err());
            assert_eq!(bench.toolstack.left(), ["db Running", "store Running", "web Running"]);
            let said = format!("web: store, which serves its disks or networks, is {}", state_word(state));
            assert!(bench.err().contains(&said), "{}", bench.err());
        }
    }

    #[test]
    fn a_driver_domain_that_does_not_start_costs_only_those_it_serves() {
        let bench = with_settings("XENDOMAINS_CREATE_USLEEP=0\n");
        for name in ["other", "store", "web"] {
            bench.auto(name, name);
        }
        bench.add_line("web", DISK_OF_STORE);
        bench.toolstack.fault("create store", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.left(), ["other Running"]);
        assert!(bench.err().contains("web: start FAILED (0.0 s): store, which serves"), "{}", bench.err());
    }

    #[test]
    fn what_a_guest_needs_is_waited_for_without_holding_up_the_others() {
        let bench = with_settings("XENDOMAINS_DEVICE_WAIT=1\n");
        bench.auto("a-late", "late");
        bench.auto("b", "b");
        let needs = bench.path("late-kernel");
        let text = fs::read_to_string(bench.path("auto/a-late")).expect("read");
        let text = text.replace(&bench.path("kernel").display().to_string(), &needs.display().to_string());
        fs::write(bench.path("auto/a-late"), text).expect("write");
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["create b", "unpause b"]);
        assert!(
            bench.out().contains("late: waits for kernel: ") && bench.out().contains("at most 1 s"),
            "{}",
            bench.out()
        );
        let missing = format!("kernel: {} is not there (waited 1 s)", needs.display());
        assert!(bench.err().contains(&missing), "{}", bench.err());
        fs::write(&needs, "").expect("write");
        assert_eq!(bench.run(super::start), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), ["b Running", "late Running"]);
    }

    #[test]
    fn a_failure_that_may_pass_is_tried_again_after_the_others() {
        let bench = with_settings("XENDOMAINS_START_JOBS=1\nXENDOMAINS_CREATE_USLEEP=0\n");
        for name in ["a", "b"] {
            bench.auto(name, name);
        }
        bench.image("r");
        bench.toolstack.fault("create a", Fault::IsBusy(1));
        bench.toolstack.fault("restore r", Fault::IsBusy(1));
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        let mut calls = bench.toolstack.calls();
        calls.retain(|call| !call.starts_with("unpause"));
        assert_eq!(calls, ["restore r", "create a", "create b", "restore r", "create a"]);
        assert_eq!(bench.toolstack.left(), ["a Running", "b Running", "r Running"]);
        assert_eq!(bench.err().matches("it is tried again after the others").count(), 2, "{}", bench.err());
        let said = "trying again in 5 s, 1 at a time (retry 1 of 4): r, a\n";
        assert!(bench.out().contains(said), "{}", bench.out());
        assert_eq!(bench.slept(), [RETRY_PAUSE]);
        assert_eq!(bench.saved(), [""; 0]);
    }

    #[test]
    fn what_does_not_pass_is_tried_ever_fewer_at_a_time_and_given_up_in_the_end() {
        let bench = with_settings("XENDOMAINS_CREATE_USLEEP=0\nXENDOMAINS_RESTORE_FAILED=start\n");
        bench.auto("web", "web");
        bench.auto("db", "db");
        bench.image("db");
        bench.toolstack.fault("create web", Fault::IsBusy(9));
        bench.toolstack.fault("restore db", Fault::IsBusy(9));
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.calls_of("web"), ["create web"; 5]);
        let mut of_db = vec!["restore db"; 5];
        of_db.extend(["create db", "unpause db"]);
        assert_eq!(bench.toolstack.calls_of("db"), of_db);
        for said in ["5 s, 4 at a time", "10 s, 2 at a time", "20 s, 1 at a time", "40 s, 1 at a time"] {
            assert!(bench.out().contains(&format!("trying again in {said}")), "{said}: {}", bench.out());
        }
        assert_eq!(bench.slept(), [5, 10, 20, 40].map(Duration::from_secs));
        let err = bench.err();
        assert!(err.contains("web: start FAILED") && err.contains("IsBusy(5) (tried 5 times)"), "{err}");
    }

    #[test]
    fn what_cannot_pass_is_not_tried_again() {
        for fault in [Fault::Fails, Fault::TimesOut] {
            let bench = Bench::new();
            bench.auto("web", "web");
            bench.toolstack.fault("create web", fault);
            assert_eq!(bench.start(), Exit::Failed);
            assert_eq!(bench.toolstack.calls(), ["create web"], "{fault:?}");
        }
    }

    #[test]
    fn a_guest_that_somebody_else_has_started_meanwhile_is_not_tried_again() {
        let bench = Bench::new();
        bench.auto("web", "web");
        bench.image("db");
        bench.toolstack.fault("create web", Fault::IsBusy(1));
        bench.toolstack.fault("restore db", Fault::IsBusy(1));
        let by_hand = |_: Duration| {
            for name in ["web", "db"] {
                bench.toolstack.domain(name, State::Running);
            }
        };
        let exit = bench.run(|run| start(&Run { sleep: &by_hand, ..*run }));
        assert_eq!(exit, Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), ["db Running", "web Running"]);
        assert!(bench.out().contains("web: runs already"), "{}", bench.out());
        assert!(bench.err().contains("save/db: its guest runs already"), "{}", bench.err());
    }

    #[test]
    fn a_guest_whose_image_is_no_use_is_booted_if_the_settings_say_so() {
        let bench = with_settings("XENDOMAINS_RESTORE_FAILED=start\n");
        for name in ["web", "broken"] {
            bench.auto(name, name);
            bench.image(name);
        }
        bench.image("stranger");
        fs::write(bench.path("save/broken"), "half an im").expect("write");
        bench.toolstack.fault("restore web", Fault::Fails);
        bench.toolstack.fault("restore stranger", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.left(), ["broken Running", "web Running"]);
        let saved = bench.saved();
        assert_eq!(saved.iter().filter(|name| name.ends_with(".restored")).count(), 2, "{saved:?}");
        assert!(saved.contains(&"stranger".to_owned()), "there is nothing to boot it from: {saved:?}");
        assert!(
            bench.err().contains("save/web: could not be restored, so that its guest is booted"),
            "{}",
            bench.err()
        );
    }

    #[test]
    fn told_to_end_it_begins_nothing_more_and_says_what_is_left() {
        let bench = Bench::new();
        bench.auto("web", "web");
        bench.image("db");
        bench.interrupt.ask();
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert!(bench.err().contains("these guests were not started: db, web"), "{}", bench.err());
        assert_eq!(bench.saved(), ["db"]);
    }

    #[test]
    fn guests_with_a_copied_uuid_are_started_and_kept_each_by_its_name() {
        let bench = with_settings("XENDOMAINS_START_JOBS=1\nXENDOMAINS_SAVE_JOBS=1\n");
        bench.auto("web", "web");
        bench.copied_auto("web", "copy");
        let both = ["copy Running", "web Running"];
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), both);
        assert!(bench.err().contains("auto/copy: copy: uuid "), "{}", bench.err());
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!((bench.toolstack.left().len(), bench.saved()), (0, vec!["copy".to_owned(), "web".to_owned()]));
        // One comes back and is stopped again: that says nothing of the other one's image.
        bench.run(|run| {
            for image in images(Some(&bench.path("save"))).images.into_iter().filter(|image| image.name == "web") {
                let domid =
                    run.toolstack.restore(&image, None, &|_| {}, std::sync::Arc::new(|_| {})).expect("built");
                image.consume().and_then(Consumed::remove).expect("consumed");
                run.toolstack.unpause(domid).expect("runs");
                bench.toolstack.change(domid, |domain| domain.cpu_time = Duration::from_secs(1));
            }
        });
        assert_eq!(bench.stop(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.saved(), ["copy", "web"]);
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!((bench.toolstack.left(), bench.saved()), (both.map(str::to_owned).to_vec(), vec![]));
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), both);
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
    fn what_is_left_of_a_guest_that_has_ended_and_has_no_owner_makes_way() {
        let poweroff = State::Shutdown(ShutdownReason::Poweroff);
        for (config, watched, state, makes_way) in [
            (json!({"c_info": {}}), false, poweroff, true),
            (json!({"on_poweroff": "preserve"}), false, poweroff, false),
            (json!({"c_info": {}}), true, poweroff, false),
            (json!({"on_reboot": "restart"}), false, State::Shutdown(ShutdownReason::Reboot), true),
            (json!({"on_crash": "coredump_restart"}), false, State::Shutdown(ShutdownReason::Crash), false),
            (json!({"c_info": {}}), false, State::Shutdown(ShutdownReason::Suspend), false),
        ] {
            let bench = Bench::new();
            bench.auto("web", "web");
            bench.toolstack.domain("web", state);
            bench.toolstack.configure("web", config.clone());
            if watched {
                let process = bench.host.processes.join("4711");
                fs::create_dir_all(process.join("fd")).expect("directory");
                fs::write(process.join("comm"), "xl\n").expect("write");
                std::os::unix::fs::symlink("/var/log/xen/xl-web.log", process.join("fd/1")).expect("link");
            }
            bench.run(|run| drop(planned(run)));
            assert_eq!(bench.toolstack.calls(), [""; 0], "a plan touches nothing");
            let expected =
                if makes_way { (Exit::Done, "web Running") } else { (Exit::Failed, &*format!("web {state:?}")) };
            assert_eq!((bench.start(), &*bench.toolstack.left()[0]), expected, "{config} {watched} {state:?}");
        }
    }

    #[test]
    fn an_image_of_a_guest_that_has_run_since_and_has_ended_is_set_aside() {
        let bench = Bench::new();
        bench.auto("web", "web");
        bench.image("web");
        bench.toolstack.domain("web", State::Shutdown(ShutdownReason::Poweroff));
        bench.toolstack.configure("web", json!({"c_info": {}}));
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.calls(), ["destroy web", "create web", "unpause web"]);
        assert!(bench.err().contains("save/web: its guest has run since, as domain 2"), "{}", bench.err());
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
