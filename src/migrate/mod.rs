//! Live migration to another host, where a stock `xl migrate-receive` takes the guest.
//!
//! - `transport`: the process that connects to the other host, ssh as a rule
//! - `handshake`: what the two sides say to each other, as a table
//! - `targets`: which of several hosts takes a guest
//! - `ask`: which guests another host has
//! - `by_command`: the same with a command that does all of it
//! - `record`: what is remembered, so that no guest ever runs twice

mod ask;
mod by_command;
mod handshake;
mod record;
mod targets;
mod transport;

use std::cell::Cell;
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guest_config::{GuestConfig, XenHost};
use crate::image::{self, encode_header};
use crate::interrupt::Interrupt;
use crate::report::{Action, Reporter};
use crate::settings::{Migrate, Setting, TransportKind};
use crate::toolstack::{self, ANSWER, ANSWER_ONCE_TOLD, AWAY, Domain, Migrator, Toolstack, without_domid};
pub use ask::{GuestsThere, guests_there};
use handshake::{Found, Limit, Local, RunHere, State, Verdict, shake_hands};
pub use record::{Record, Records, Stage, Unreadable};
use targets::{Approach, Targets, free_memory_kib};
use transport::{Farewell, Transport, converse};

/// How long it may take until the other side is ready for a guest. A host that takes longer is not there.
const CONNECT: Duration = Duration::from_secs(30);

/// More than `xl info` says.
const INFO_LIMIT: usize = 64 << 10;

/// What a migration works with.
#[derive(Clone, Copy)]
pub struct With<'a> {
    /// Who has the guests.
    pub toolstack: &'a dyn Toolstack,
    /// Who is told.
    pub report: &'a Reporter,
    /// Whether to come to an end.
    pub interrupt: &'a Interrupt,
}

/// What has become of a guest that was to be migrated.
#[derive(Debug)]
pub enum Outcome {
    /// It runs on this host.
    Moved {
        /// Which one.
        target: String,
        /// Its domain here could not be destroyed.
        remains: Option<toolstack::Error>,
    },
    /// It runs on here.
    Stays {
        /// Why.
        why: String,
    },
    /// It is here, suspended, and could not be resumed.
    Suspended {
        /// Why.
        why: String,
    },
    /// Nobody knows whether it runs there.
    Unknown {
        /// Why, and what the admin can do.
        why: String,
    },
}

/// Everything about migration that is the same for all guests of a stop.
pub struct Migration<'a> {
    options: &'a Migrate,
    targets: Targets,
    records: Records,
    /// Whether guests are to be spread over the targets by their memory.
    spreads: bool,
    asked: Once,
    /// What one guest is to be on the target.
    config: Option<GuestConfig>,
}

impl<'a> Migration<'a> {
    /// By the settings. `None`: guests are not migrated. `Err` says what in them can't be used.
    pub fn new(
        setting: &'a Setting<Option<Migrate>>,
        jobs: usize,
        records: Records,
        xen_host: &XenHost,
    ) -> Result<Option<Migration<'a>>, String> {
        let Some(options) = &setting.value else { return Ok(None) };
        let config = options.config.as_deref().map(|path| GuestConfig::read(path, xen_host)).transpose();
        let config = config.map_err(|error| format!("{}: XENDOMAINS_MIGRATE: -C: {error}", setting.origin))?;
        let targets = Targets::new(&options.targets);
        let spreads = jobs > 1 && options.targets.len() > 1 && options.transport != TransportKind::Target;
        Ok(Some(Migration { options, targets, records, spreads, asked: Once::new(), config }))
    }

    /// Migrates a guest to the first target that takes it. `known` says which domain it is.
    pub fn migrate(
        &self,
        domain: &Domain,
        known: &image::Guest,
        with: With<'_>,
        deadline: Option<Instant>,
    ) -> Outcome {
        let stays = |why: String| Outcome::Stays { why };
        let migrator = with.toolstack.migrator();
        let header = match migrator {
            // It asks for what it needs.
            Some(_) => Ok(Vec::new()),
            None => self.header(domain, with),
        };
        let header = match header {
            Ok(header) => header,
            Err(error) => return stays(error),
        };
        if self.spreads && migrator.is_none_or(<dyn Migrator>::target_has_xl) {
            self.asked.call_once(|| self.ask_for_memory(with, deadline));
        }
        if let Some(other) = self.records.of(known) {
            let (other, to) = (other.guest.domid, other.target);
            return stays(format!("domain {other} is what is left of its migration to {to}, and undecided"));
        }
        let guest = Guest { domain, known, header: &header, deadline };
        let mut offered = Vec::new();
        let mut reasons = String::new();
        while let Some((place, target)) = self.targets.choose(&offered, domain.memory_kib) {
            offered.push(place);
            let outcome = match migrator {
                Some(migrator) => self.hand_over(migrator, guest, place, &target, with),
                None => self.offer(guest, place, &target, with),
            };
            let why = match outcome {
                Offer::Taken(outcome) => return outcome,
                Offer::Refused(why) => why,
            };
            self.targets.give_back(place, domain.memory_kib);
            let _ = write!(reasons, "{}{target}: {why}", if reasons.is_empty() { "" } else { "; " });
            if is_over(with, deadline) {
                break;
            }
        }
        stays(reasons)
    }

    /// What is sent before the guest itself.
    fn header(&self, domain: &Domain, with: With<'_>) -> Result<Vec<u8>, String> {
        let config = with.toolstack.configuration(domain.domid).map_err(|error| error.to_string())?;
        encode_header(&self.sent_config(domain, config)).map_err(|error| error.to_string())
    }

    /// What the target is to make of the guest.
    fn sent_config(&self, domain: &Domain, own: Value) -> Value {
        let other = self.config.as_ref().filter(|config| domain.name.as_ref() == Some(&config.name));
        let Some(other) = other else { return without_domid(own) };
        let mut config = other.json.clone();
        config["c_info"]["uuid"] = domain.uuid.to_string().into();
        without_domid(config)
    }

    /// Asks all targets at once how much memory they have.
    fn ask_for_memory(&self, with: With<'_>, deadline: Option<Instant>) {
        let names = self.targets.names();
        thread::scope(|scope| {
            for (place, name) in names.iter().enumerate() {
                let ask = move || self.ask_one(place, name, with, deadline);
                // Without another thread it is just not asked.
                let _ = thread::Builder::new().spawn_scoped(scope, ask);
            }
        });
    }

    fn ask_one(&self, place: usize, target: &str, with: With<'_>, deadline: Option<Instant>) {
        if self.targets.approach(place, deadline) != Approach::First {
            return;
        }
        let mut command = transport::command(&self.options.transport, target, &["xl", "info"]);
        let connect = Limit { deadline: earlier(deadline, CONNECT), once_told: Duration::ZERO };
        let asked = converse(&mut command, with.interrupt, &|_| {}, |peer| {
            peer.close();
            peer.read_to_end(INFO_LIMIT, connect)
        });
        match asked {
            Ok((Ok(info), farewell)) if farewell.status.is_none() => {
                self.targets.reached(place);
                if let Some(kib) = free_memory_kib(&String::from_utf8_lossy(&info)) {
                    self.targets.has_free(place, kib);
                }
            }
            Ok((Ok(_) | Err(_), _)) if is_over(with, deadline) => self.targets.not_known(place),
            // Another command than ssh may be good for nothing but a migration.
            Ok((Ok(_), _)) if !self.is_ssh() => self.targets.not_known(place),
            Ok((Ok(_), farewell)) => self.targets.dead(place, &with_farewell("xl info failed".into(), &farewell)),
            Ok((Err(broken), farewell)) => self.targets.dead(place, &with_farewell(broken.to_string(), &farewell)),
            Err(error) => self.targets.dead(place, &error.to_string()),
        }
    }

    fn is_ssh(&self) -> bool {
        matches!(self.options.transport, TransportKind::Ssh { .. })
    }

    /// Offers a guest to one target.
    fn offer(&self, guest: Guest<'_>, place: usize, target: &str, with: With<'_>) -> Offer {
        match self.targets.approach(place, guest.deadline) {
            Approach::Reached | Approach::First => {}
            Approach::Dead(why) => return Offer::Refused(format!("not tried again: {why}")),
            Approach::TooLate => return Offer::Refused("the time is over".to_owned()),
        }
        let mut record = Record::new(guest.known.clone(), target);
        if let Err(error) = self.records.write(&record) {
            self.targets.not_known(place);
            return Offer::Refused(error.to_string());
        }
        let mut remote = vec!["xl", "migrate-receive"];
        remote.extend(self.options.unmonitored.then_some("-e"));
        remote.extend(self.options.debug.then_some("-d"));
        let mut command = transport::command(&self.options.transport, target, &remote);
        let name = &guest.known.name;
        let hear = |line: &str| with.report.note(&format!("{name}: {target}: {line}"));
        let talk = |peer: &mut Transport<'_>| {
            let mut progress = with.report.progress(Action::Migrate, name);
            progress.follow(guest.domain.memory_kib.saturating_mul(1024), peer.taken_so_far());
            let connected = || self.targets.reached(place);
            let mut here = Here {
                guest,
                with,
                debug: self.options.debug,
                stream: peer.stream().ok(),
                records: &self.records,
                record: &mut record,
                connected: &connected,
                connect: earlier(guest.deadline, CONNECT),
                answer: Cell::new(None),
                left_suspended: false,
            };
            let verdict = shake_hands(&mut here, peer);
            let left_suspended = here.left_suspended;
            drop(here);
            match verdict {
                Verdict::There => Told::There,
                Verdict::Unknown { why } => Told::Unknown(why),
                Verdict::Here { right, found, state, why } => {
                    // The target need not wait for more.
                    peer.close();
                    let suspended = match found {
                        Found::Running => left_suspended.then(String::new),
                        Found::Suspended => self.take_back(right, &guest, &mut record, false, with).err(),
                        Found::Renamed => self.take_back(right, &guest, &mut record, true, with).err(),
                    };
                    Told::Here { state, why, suspended }
                }
            }
        };
        let (told, farewell) = match converse(&mut command, with.interrupt, &hear, talk) {
            Ok(conversation) => conversation,
            Err(error) => {
                self.forget(guest.known, with);
                let program = command.get_program().to_string_lossy().into_owned();
                let why = format!("{program}: {error}");
                self.targets.dead(place, &why);
                return Offer::Refused(why);
            }
        };
        match told {
            Told::There => Offer::Taken(self.finish(&guest, record, with)),
            Told::Unknown(why) => {
                let why = undecided(guest.known, target, &with_farewell(why, &farewell));
                Offer::Taken(Outcome::Unknown { why })
            }
            Told::Here { state, why, suspended } => {
                let why = with_farewell(why, &farewell);
                match (state, is_over(with, guest.deadline)) {
                    (State::Connecting, true) => self.targets.not_known(place),
                    (State::Connecting, false) => self.targets.dead(place, &why),
                    _ => {}
                }
                match suspended {
                    Some(more) => Offer::Taken(Outcome::Suspended { why: format!("{target}: {why}{more}") }),
                    None => {
                        self.forget(guest.known, with);
                        Offer::Refused(why)
                    }
                }
            }
        }
    }

    /// Lets a guest run on that the target does not have. An error says why it can't.
    fn take_back(
        &self,
        right: RunHere,
        guest: &Guest<'_>,
        record: &mut Record,
        renamed: bool,
        with: With<'_>,
    ) -> Result<(), String> {
        record.stage = Stage::Begun;
        let noted = self.records.write(record).map_err(|error| error.to_string());
        let name = &guest.known.name;
        if renamed {
            let back = with.toolstack.rename(guest.domain.domid, &format!("{name}{AWAY}"), name);
            if let Err(error) = back {
                with.report.warn(&format!("{name}: it keeps the name {name}{AWAY}: {error}"));
            }
        }
        resume(right, with.toolstack, guest.domain.domid)
            .map_err(|error| format!("; the guest is left SUSPENDED, it could not be resumed: {error}"))?;
        if let Err(error) = noted {
            with.report.warn(&format!("{name}: {error}"));
        }
        Ok(())
    }

    /// The guest runs on the target: what is left of it here goes.
    fn finish(&self, guest: &Guest<'_>, mut record: Record, with: With<'_>) -> Outcome {
        record.stage = Stage::Moved;
        if let Err(error) = self.records.write(&record) {
            with.report
                .warn(&format!("{}: that it was migrated can't be written down: {error}", guest.known.name));
        }
        let remains = with.toolstack.destroy(guest.domain.domid).err();
        Outcome::Moved { target: record.target, remains }
    }

    fn forget(&self, guest: &image::Guest, with: With<'_>) {
        if let Err(error) = self.records.remove(guest) {
            with.report.warn(&format!("{}: {error}", guest.name));
        }
    }
}

/// Lets a suspended guest run here. The right to do so is used up.
fn resume(_: RunHere, toolstack: &dyn Toolstack, domid: u32) -> Result<(), toolstack::Error> {
    toolstack.resume(domid)
}

/// Whether nothing more is to be begun.
fn is_over(with: With<'_>, deadline: Option<Instant>) -> bool {
    with.interrupt.is_asked() || deadline.is_some_and(|deadline| deadline <= Instant::now())
}

/// What to do about a guest of which nobody knows where it runs.
pub fn undecided(guest: &image::Guest, target: &str, why: &str) -> String {
    let (name, domid) = (&guest.name, guest.domid);
    format!(
        "it is NOT KNOWN whether it runs on {target} now: {why}. Here it stays suspended as domain {domid} \
         ({name}{AWAY}) and is not touched any more. Look on {target}, with `xl list`. If {name} runs there: \
         `xl destroy {domid}` here. If it does not, and {name}--incoming is not there either (`xl destroy` it there \
         first): `xl rename {domid} {name}` here, and the next xendomains start or stop lets it run on. It must never \
         run on both"
    )
}

/// A guest to be migrated.
#[derive(Clone, Copy)]
struct Guest<'a> {
    domain: &'a Domain,
    known: &'a image::Guest,
    header: &'a [u8],
    deadline: Option<Instant>,
}

/// What one target has made of it.
enum Offer {
    /// It need not be offered to another.
    Taken(Outcome),
    /// The guest runs on here.
    Refused(String),
}

/// What a conversation has come to.
enum Told {
    There,
    Unknown(String),
    Here {
        state: State,
        why: String,
        /// It could not be let run. What is to be added to the reason.
        suspended: Option<String>,
    },
}

/// This side of a conversation.
struct Here<'a> {
    guest: Guest<'a>,
    with: With<'a>,
    debug: bool,
    stream: Option<OwnedFd>,
    records: &'a Records,
    record: &'a mut Record,
    connected: &'a dyn Fn(),
    /// The end of the time for the connection.
    connect: Option<Instant>,
    /// The end of the time for the answer to GO, once that is written.
    answer: Cell<Option<Instant>>,
    left_suspended: bool,
}

impl Local for Here<'_> {
    fn connected(&mut self) {
        (self.connected)();
    }

    fn description(&mut self) -> Result<Vec<u8>, String> {
        Ok(self.guest.header.to_vec())
    }

    fn stream(&mut self) -> Result<(), String> {
        let stream = self.stream.take().ok_or("there is no pipe for the guest")?;
        let Guest { domain, deadline, .. } = self.guest;
        self.with.toolstack.send(domain, stream, self.debug, deadline).map_err(|error| {
            self.left_suspended = error.left_suspended;
            let what = if error.timed_out { "time limit reached, or told to end: " } else { "" };
            let suspended = if error.left_suspended { "; the guest is left SUSPENDED" } else { "" };
            format!("{what}{error}{suspended}")
        })
    }

    fn note(&mut self) -> Result<(), String> {
        self.record.stage = Stage::Going;
        self.records.write(self.record).map_err(|error| error.to_string())
    }

    fn rename(&mut self) -> Result<(), String> {
        let name = &self.guest.known.name;
        let renamed = self.with.toolstack.rename(self.guest.domain.domid, name, &format!("{name}{AWAY}"));
        renamed.map_err(|error| error.to_string())
    }

    fn limit(&self, state: State) -> Limit {
        let deadline = self.guest.deadline;
        match state {
            State::Connecting => Limit { deadline: self.connect, once_told: Duration::ZERO },
            State::Going | State::Reporting | State::Judging | State::Returning => {
                if self.answer.get().is_none() {
                    let least = Instant::now().checked_add(ANSWER);
                    self.answer.set(deadline.and_then(|deadline| least.map(|least| least.max(deadline))));
                }
                Limit { deadline: self.answer.get(), once_told: ANSWER_ONCE_TOLD }
            }
            _ => Limit { deadline, once_told: Duration::ZERO },
        }
    }
}

/// The deadline, or so long from now if that is earlier.
fn earlier(deadline: Option<Instant>, time: Duration) -> Option<Instant> {
    [deadline, Instant::now().checked_add(time)].into_iter().flatten().min()
}

fn with_farewell(mut why: String, farewell: &Farewell) -> String {
    if let Some(status) = farewell.status {
        let _ = write!(why, " ({status})");
    }
    if let Some(words) = &farewell.last_words {
        let _ = write!(why, "; the last it said: {words}");
    }
    why
}
