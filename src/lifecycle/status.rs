//! status: what runs, what should run, what is saved.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use uuid::Uuid;

use super::directories::{AutoGuests, Images, Messages, auto_guests, images};
use super::migrations::elsewhere;
use super::{Copied, Identity, is_alive, judged, name, remember, state_word, watchers};
use crate::guest_config::XenHost;
use crate::host::Host;
use crate::image::{Image, Verdict};
use crate::monitor::Restarts;
use crate::report::{Exit, Reporter, one_line};
use crate::runs::Runs;
use crate::settings::Settings;
use crate::toolstack::{Domain, Error, State, Toolstack};

/// What `status` answers. As JSON, its fields are an interface: they are added to, but not renamed or removed.
///
/// ```json
/// {
///   "toolstack": "libxl 4.17",      what was asked; null when this is no Xen host
///   "complete": true,               false: a file of AUTO or an image could not be read (see the messages)
///   "guests": [ … ]                 sorted by name
/// }
/// ```
#[derive(Debug, Serialize)]
pub struct Overview {
    toolstack: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    complete: bool,
    guests: Vec<Guest>,
}

/// One guest. What is only known of a domain is null for a guest without one.
#[derive(Debug, Serialize)]
pub(super) struct Guest {
    /// Null for a domain that has none.
    name: Option<String>,
    /// Null when neither domain nor file tells it.
    uuid: Option<Uuid>,
    /// Domain id.
    pub(super) id: Option<u32>,
    /// `running`, `paused`, `shutdown`, `rebooting`, `suspended`, `crashed`, `dying`; `down` without a domain, or `moved`
    /// if it was migrated, or `restarting`.
    state: &'static str,
    memory_kib: Option<u64>,
    max_memory_kib: Option<u64>,
    vcpus: Option<u32>,
    cpu_seconds: Option<f64>,
    pub(super) uptime_seconds: Option<u64>,
    /// Whether a file of the AUTO directory is for it, and which.
    auto: bool,
    auto_file: Option<String>,
    /// The saved image that waits to be restored.
    image: Option<String>,
    image_bytes: Option<u64>,
    /// How long ago it was written; null when that is in the future.
    image_age_seconds: Option<u64>,
    /// Fate of it at the next start: `restore`, `set aside` because it is stale or its guest runs, or `keep` because a disk is
    /// not there or a domain is in the way.
    image_fate: Option<&'static str>,
    /// Why it would not be restored, or what of it can't be looked at.
    image_reason: Option<String>,
    /// The host that it was migrated to and runs on.
    migrated_to: Option<String>,
    /// The host that it may run on: whether a migration has come to its end there is not known.
    may_run_on: Option<String>,
    /// Who does what its file says when it ends: `monitor`, `xl` (a process of its own), `xend`, `libvirt`, or `nobody` if that
    /// should be the monitor, which is not there. Null: nobody, as far as can be told.
    pub(super) watched_by: Option<&'static str>,
    /// How often the monitor has restarted it.
    pub(super) restarts: Option<u32>,
    /// Why it did that the last time.
    pub(super) last_restart_reason: Option<String>,
    /// Why the monitor could not restart it and has given up.
    restart_failed: Option<String>,
    #[serde(skip)]
    alive: bool,
}

/// Asks the toolstack and looks into the directories. What can't be read there is reported as a warning.
pub fn overview(
    host: &Host,
    settings: &Settings,
    xen_host: &XenHost,
    toolstack: &dyn Toolstack,
    report: &Reporter,
) -> Result<Overview, Error> {
    let mut domains = toolstack.domains()?;
    remember(host, &domains, report);
    domains.retain(|domain| domain.domid != 0 && !domain.stubdom && !domain.never_stop);
    let mut overview = Overview {
        toolstack: Some(toolstack.describe()),
        message: None,
        complete: true,
        guests: domains.iter().map(Guest::of_domain).collect(),
    };
    let auto = auto_guests(settings.auto.value.as_deref(), xen_host);
    let images = images(settings.save.value.as_deref());
    let copied = Copied::new(&auto.guests, &images.images, &domains);
    overview.add_auto(auto, &copied, report);
    overview.add_images(images, host, &domains, &copied, report);
    overview.add_migrations(host, &domains, &copied, report);
    watchers::add(&mut overview.guests, host, &domains, toolstack, report);
    overview.add_restarts(host, &copied, report);
    overview.guests.sort_by(|one, other| (&one.name, one.id).cmp(&(&other.name, other.id)));
    Ok(overview)
}

impl Overview {
    /// The answer, as JSON, of a machine that is no Xen host.
    pub fn not_xen(reason: &str) -> String {
        let message = Some(reason.to_owned());
        Overview { toolstack: None, message, complete: true, guests: Vec::new() }.json()
    }

    fn add_auto(&mut self, found: AutoGuests, copied: &Copied, report: &Reporter) {
        self.take(&found.messages, report);
        for config in found.guests {
            let guest = self.find_or_add(&copied.config(&config));
            guest.auto = true;
            guest.auto_file = Some(shown(&config.path));
        }
    }

    fn add_images(&mut self, found: Images, host: &Host, domains: &[Domain], copied: &Copied, report: &Reporter) {
        self.take(&found.messages, report);
        for image in found.images {
            let guest = self.find_or_add(&copied.image(&image));
            guest.image = Some(shown(&image.path));
            guest.image_bytes = Some(image.size);
            guest.image_age_seconds = age(&image).map(|age| age.as_secs());
            let (fate, reason) = fate(&image, host, domains, copied);
            (guest.image_fate, guest.image_reason) = (Some(fate), reason);
        }
    }

    /// Guests that run elsewhere are named if they belong here, and those that may run elsewhere in any case.
    fn add_migrations(&mut self, host: &Host, domains: &[Domain], copied: &Copied, report: &Reporter) {
        let (guests, unreadable) = elsewhere(host, domains);
        unreadable.iter().for_each(|message| report.warn(message));
        self.complete &= unreadable.is_empty();
        for away in guests {
            let guest = self.find_or_add(&copied.identity(away.identity()));
            if guest.id.is_none() {
                guest.state = MOVED;
            }
            if away.undecided {
                report.warn(&away.describe());
                guest.may_run_on = Some(away.record.target);
            } else {
                guest.migrated_to = Some(away.record.target);
            }
        }
    }

    /// Guests that the monitor restarts, or could not restart.
    fn add_restarts(&mut self, host: &Host, copied: &Copied, report: &Reporter) {
        let (restarts, unreadable) = Restarts::new(&host.run_dir).all();
        unreadable.iter().for_each(|message| report.warn(message));
        for restart in restarts.into_iter().filter(|restart| restart.is_under_way() || restart.failed.is_some()) {
            let identity = Identity { name: restart.name, uuid: Some(restart.uuid) };
            let guest = self.find_or_add(&copied.identity(identity));
            if guest.alive {
                continue;
            }
            if restart.failed.is_none() {
                guest.state = RESTARTING;
            }
            guest.restarts = Some(restart.mark.restarts);
            guest.last_restart_reason = restart.mark.reason;
            guest.restart_failed = restart.failed;
        }
    }

    /// What can't be used makes the answer incomplete; what is passed over is nobody's question here.
    fn take(&mut self, messages: &Messages, report: &Reporter) {
        for message in messages.failures.iter().chain(&messages.warnings) {
            report.warn(message);
        }
        self.complete &= messages.failures.is_empty();
    }

    fn find_or_add(&mut self, identity: &Identity) -> &mut Guest {
        let place = self.guests.iter().position(|guest| guest.is(identity)).unwrap_or_else(|| {
            self.guests.push(Guest::down(identity));
            self.guests.len() - 1
        });
        &mut self.guests[place]
    }

    /// What follows from it for the exit code.
    pub fn exit(&self) -> Exit {
        if !self.guests.iter().any(|guest| guest.alive) {
            return Exit::NoneRunning;
        }
        let missing = |guest: &Guest| {
            (guest.auto && !guest.alive)
                || guest.image.is_some()
                || guest.may_run_on.is_some()
                || guest.restart_failed.is_some()
        };
        if !self.complete || self.guests.iter().any(missing) { Exit::SomeMissing } else { Exit::AllRunning }
    }

    /// As JSON, with a newline at the end.
    pub fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self);
        text.map_or_else(|error| format!("{{\"message\": \"{error}\"}}\n"), |text| text + "\n")
    }

    /// As a table, one line a guest.
    pub fn table(&self) -> String {
        let mut rows = vec![HEAD.map(str::to_owned)];
        rows.extend(self.guests.iter().map(Guest::row));
        let mut widths = [0; HEAD.len()];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut table = String::new();
        for row in &rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                // Numbers are aligned to the right.
                let _ = match column {
                    1 | 3..=5 => write!(line, "{cell:>width$}  "),
                    _ => write!(line, "{cell:<width$}  "),
                };
            }
            table.push_str(line.trim_end());
            table.push('\n');
        }
        table
    }
}

impl Guest {
    fn of_domain(domain: &Domain) -> Guest {
        Guest {
            name: domain.name.clone(),
            uuid: Some(domain.uuid),
            id: Some(domain.domid),
            state: state_word(domain.state),
            memory_kib: Some(domain.memory_kib),
            max_memory_kib: Some(domain.max_memory_kib),
            vcpus: Some(domain.vcpus),
            cpu_seconds: Some(domain.cpu_time.as_secs_f64()),
            uptime_seconds: None,
            auto: false,
            auto_file: None,
            image: None,
            image_bytes: None,
            image_age_seconds: None,
            image_fate: None,
            image_reason: None,
            migrated_to: None,
            may_run_on: None,
            watched_by: None,
            restarts: None,
            last_restart_reason: None,
            restart_failed: None,
            alive: is_alive(domain),
        }
    }

    fn down(identity: &Identity) -> Guest {
        Guest {
            name: Some(identity.name.clone()),
            uuid: identity.uuid,
            id: None,
            state: "down",
            memory_kib: None,
            max_memory_kib: None,
            vcpus: None,
            cpu_seconds: None,
            uptime_seconds: None,
            auto: false,
            auto_file: None,
            image: None,
            image_bytes: None,
            image_age_seconds: None,
            image_fate: None,
            image_reason: None,
            migrated_to: None,
            may_run_on: None,
            watched_by: None,
            restarts: None,
            last_restart_reason: None,
            restart_failed: None,
            alive: false,
        }
    }

    /// Whether it is this guest. A domain that is going away is not; the guest may be on its way to come back.
    fn is(&self, identity: &Identity) -> bool {
        let same =
            self.name.as_ref() == Some(&identity.name) || (identity.uuid.is_some() && self.uuid == identity.uuid);
        same && self.state != "dying"
    }

    fn row(&self) -> [String; HEAD.len()] {
        fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
            value.map_or_else(|| "-".to_owned(), show)
        }
        [
            one_line(self.name.as_deref().unwrap_or("(no name)")),
            or_dash(self.id, |id| id.to_string()),
            self.state.to_owned(),
            or_dash(self.memory_kib, |kib| format!("{} MiB", kib.div_ceil(1024))),
            or_dash(self.vcpus, |vcpus| vcpus.to_string()),
            or_dash(self.uptime_seconds, |seconds| duration(Duration::from_secs(seconds))),
            if self.auto { "yes" } else { "no" }.to_owned(),
            self.watched_by.unwrap_or("-").to_owned(),
            match (&self.restart_failed, self.restarts, &self.last_restart_reason) {
                (Some(why), ..) => one_line(&format!("FAILED: {why}")),
                (None, Some(count), Some(reason)) => one_line(&format!("{count} ({reason})")),
                (None, Some(count), None) => count.to_string(),
                (None, None, _) => "-".to_owned(),
            },
            or_dash(self.image.as_deref(), |path| match (self.image_fate, &self.image_reason) {
                (Some(RESTORE) | None, _) | (_, None) => one_line(path),
                (Some(fate), Some(reason)) => one_line(&format!("{path} (start would {fate} it: {reason})")),
            }),
        ]
    }
}

/// JSON has no other text than Unicode.
fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(super) const RESTORE: &str = "restore";

const MOVED: &str = "moved";

const RESTARTING: &str = "restarting";

const HEAD: [&str; 10] =
    ["NAME", "ID", "STATE", "MEMORY", "VCPUS", "UPTIME", "AUTO", "WATCHED BY", "RESTARTS", "IMAGE"];

/// Fate of an image at the next start, and why or in spite of what.
pub(super) fn fate(
    image: &Image,
    host: &Host,
    domains: &[Domain],
    copied: &Copied,
) -> (&'static str, Option<String>) {
    match copied.image(image).find(domains) {
        Some(domain) if domain.state == State::Running && domain.is_manageable() => {
            return ("set aside", Some(format!("its guest runs already, as domain {}", domain.domid)));
        }
        Some(domain) => {
            let (id, other, state) = (domain.domid, name(domain), state_word(domain.state));
            return ("keep", Some(format!("domain {id} ({other}) is in the way: it is {state}")));
        }
        None => {}
    }
    match judged(image, host) {
        Verdict::Fresh | Verdict::Unknown(_) if Runs::of(host).needs_a_word(image).is_some() => {
            ("keep", Runs::of(host).needs_a_word(image))
        }
        Verdict::Fresh => (RESTORE, None),
        Verdict::Unknown(what) => (RESTORE, Some(what)),
        Verdict::Stale(why) => ("set aside", Some(why)),
        Verdict::DiskMissing(what) | Verdict::OtherDisk(what) => ("keep", Some(what)),
    }
}

/// How long ago an image was written. One from the future tells of a wrong clock; its age is then nothing to go by.
pub(super) fn age(image: &Image) -> Option<Duration> {
    SystemTime::now().duration_since(image.mtime).ok()
}

/// A time for people, as in `3d 4:05:06`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    let clock = format!("{hours}:{minutes:02}:{:02}", seconds % 60);
    if days > 0 { format!("{days}d {clock}") } else { clock }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::mock::Bench;
    use super::*;
    use crate::toolstack::{ShutdownReason, State};

    fn look(bench: &Bench) -> Overview {
        let mut found = None;
        bench.run(|run| found = Some(overview(run.host, run.settings, run.xen_host, run.toolstack, run.report)));
        found.expect("asked").expect("answered")
    }

    #[test]
    fn the_table_has_what_runs_what_should_and_what_is_saved() {
        let bench = Bench::new();
        bench.auto("web.cfg", "web");
        bench.auto("db.cfg", "db");
        bench.image("mail");
        bench.image("db");
        bench.toolstack.domain("web", State::Running);
        bench.toolstack.domain("a\u{1b}b", State::Shutdown(ShutdownReason::Crash));
        let save = bench.path("save");
        let save = save.display();
        let expected = format!(
            "NAME      ID  STATE    MEMORY  VCPUS      UPTIME  AUTO  WATCHED BY  RESTARTS  IMAGE\n\
             a\\u{{1b}}b   4  crashed   1 MiB      1  1d 1:01:01  no    -           -         -\n\
             db         -  down          -      -           -  yes   -           -         {save}/db\n\
             mail       -  down          -      -           -  no    -           -         {save}/mail\n\
             web        3  running   1 MiB      1  1d 1:01:01  yes   -           -         -\n"
        );
        assert_eq!(look(&bench).table(), expected);
    }

    #[test]
    fn the_json_has_stable_names() {
        let bench = Bench::new();
        bench.auto("web.cfg", "web");
        bench.toolstack.domain("web", State::Paused);
        let json: serde_json::Value = serde_json::from_str(&look(&bench).json()).expect("JSON");
        let expected = serde_json::json!({
            "toolstack": "mock 1",
            "complete": true,
            "guests": [{
                "name": "web",
                "uuid": super::super::mock::uuid_of("web"),
                "id": 1,
                "state": "paused",
                "memory_kib": 1024,
                "max_memory_kib": 2048,
                "vcpus": 1,
                "cpu_seconds": 1.5,
                "uptime_seconds": 90061,
                "auto": true,
                "auto_file": bench.path("auto/web.cfg"),
                "image": null,
                "image_bytes": null,
                "image_age_seconds": null,
                "image_fate": null,
                "image_reason": null,
                "migrated_to": null,
                "may_run_on": null,
                "watched_by": null,
                "restarts": null,
                "last_restart_reason": null,
                "restart_failed": null,
            }],
        });
        assert_eq!(json, expected);
    }

    #[test]
    fn the_exit_code_says_whether_all_is_as_wanted() {
        let bench = Bench::new();
        assert_eq!(look(&bench).exit(), Exit::NoneRunning);
        bench.toolstack.domain("husk", State::Shutdown(ShutdownReason::Poweroff));
        assert_eq!(look(&bench).exit(), Exit::NoneRunning);
        bench.toolstack.domain("web", State::Running);
        bench.auto("web", "web");
        assert_eq!(look(&bench).exit(), Exit::AllRunning);
        bench.auto("husk", "husk");
        assert_eq!(look(&bench).exit(), Exit::SomeMissing);
        fs::remove_file(bench.path("auto/husk")).expect("remove");
        bench.image("mail");
        assert_eq!(look(&bench).exit(), Exit::SomeMissing);
        fs::remove_file(bench.path("save/mail")).expect("remove");
        assert_eq!(look(&bench).exit(), Exit::AllRunning);
        fs::write(bench.path("auto/broken"), "name = ").expect("write");
        assert_eq!(look(&bench).exit(), Exit::SomeMissing);
        assert!(bench.err().contains("auto/broken"));
    }
}
