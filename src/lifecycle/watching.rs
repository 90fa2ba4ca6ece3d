//! What start and stop have to do with the monitor: it is told of each new guest, and starts none while a stop is at work.

use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{Identity, Run, reason};
use crate::guest_config::GuestConfig;
use crate::monitor::client::{Client, Hold};
use crate::monitor::protocol::Guest;
use crate::monitor::{Mark, Restart, Restarts};
use crate::toolstack::{Domain, Domid};

use super::workers::lock;

/// How long a stop waits for restarts that are under way.
pub(super) const RESTARTS: Duration = Duration::from_secs(60);

/// The connection of a start to the monitor.
pub(super) struct Watching<'a> {
    run: &'a Run<'a>,
    /// Whether guests get the mark.
    marks: bool,
    client: Mutex<Option<Client>>,
}

impl<'a> Watching<'a> {
    /// Nobody is told anything.
    pub(super) fn none(run: &'a Run<'a>) -> Watching<'a> {
        Watching { run, marks: false, client: Mutex::new(None) }
    }

    /// Sees to it that there is a monitor, if there is to be one.
    pub(super) fn begin(run: &'a Run<'a>) -> Watching<'a> {
        if run.toolstack.monitoring().is_none() {
            // The monitor of a time when there was libxl may still be there, and restart guests.
            let client = Client::connect(&run.host.run_dir).unwrap_or_else(|error| {
                run.report.warn(&format!("the monitor may restart guests meanwhile: {error}"));
                None
            });
            return Watching { run, marks: false, client: Mutex::new(client) };
        }
        if !run.settings.monitor.value {
            return Watching::none(run);
        }
        let client = connect(run).unwrap_or_else(|error| {
            run.report.error(&format!("no guest is watched, the monitor can't be reached: {error}"));
            None
        });
        Watching { run, marks: true, client: Mutex::new(client) }
    }

    /// The domains that there are, and guests that are only just not there, because they are being restarted. `before` are
    /// the domains that there were a moment ago.
    pub(super) fn look(
        &self,
        before: Vec<Domain>,
    ) -> Result<(Vec<Domain>, Vec<Identity>), crate::toolstack::Error> {
        let waiting = match &mut *lock(&self.client) {
            None => return Ok((before, Vec::new())),
            // If the connection is lost, who adds a guest says so.
            Some(client) => client.settle().unwrap_or_default(),
        };
        let noted =
            || restarts(self.run).into_iter().filter(Restart::is_under_way).map(|restart| identity(&restart));
        let mut away: Vec<_> = noted().collect();
        let mut now = self.run.toolstack.domains()?;
        let is_it = |now: &Domain, domain: &Domain| now.uuid == domain.uuid && now.name == domain.name;
        let is_gone = |domain: &Domain| domain.is_manageable() && !now.iter().any(|now| is_it(now, domain));
        if before.iter().any(is_gone) {
            // It was removed; or its restart had just begun, and then it is noted by now, or runs again.
            away.extend(noted());
            now = self.run.toolstack.domains()?;
        }
        away.extend(waiting.into_iter().map(|guest| Identity { name: guest.name, uuid: Some(guest.uuid) }));
        // By its name: another guest with a copied UUID is not the one that has come back.
        let by_name = |guest: &Identity| Identity { uuid: None, ..guest.clone() };
        away.retain(|guest| by_name(guest).find(&now).is_none_or(|domain| !super::is_alive(domain)));
        Ok((now, away))
    }

    /// Puts the mark on a guest before it runs, and has it watched.
    pub(super) fn add(&self, domid: Domid, guest: &Identity, config: Option<&GuestConfig>) {
        let (Some(monitoring), true) = (self.run.toolstack.monitoring(), self.marks) else { return };
        let Some(uuid) = guest.uuid else { return };
        let name = &guest.name;
        let warn = |why: &str| self.run.report.warn(&format!("{name}: nobody watches it: {why}"));
        if let Err(error) = Mark::new(config.map(|config| &*config.path)).put(domid, monitoring) {
            return warn(&reason(&error));
        }
        forget_failed(self.run, guest);
        let mut client = lock(&self.client);
        let Some(connected) = &mut *client else { return };
        match connected.watch(&Guest { domid, uuid, name: name.clone() }) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => warn(&why),
            Err(error) => {
                *client = None;
                let then = "the next monitor watches what is started from now on";
                self.run.report.warn(&format!("the connection to the monitor is lost: {error}; {then}"));
            }
        }
    }
}

fn connect(run: &Run<'_>) -> io::Result<Option<Client>> {
    let run_dir = &run.host.run_dir;
    let (None, Some(spawn)) = (Client::connect(run_dir)?, run.spawn_monitor) else {
        return Client::connect(run_dir);
    };
    // Another one may be there by now, so that this one has ended.
    let spawned = spawn();
    match Client::connect(run_dir)? {
        Some(client) => Ok(Some(client)),
        None => Err(spawned.err().unwrap_or_else(|| io::Error::other("it has ended at once"))),
    }
}

fn identity(restart: &Restart) -> Identity {
    Identity { name: restart.name.clone(), uuid: Some(restart.uuid) }
}

fn restarts(run: &Run<'_>) -> Vec<Restart> {
    // What can't be read is reported by the monitor and by status.
    Restarts::new(&run.host.run_dir).all().0
}

/// The guest runs again: that the monitor could not restart it is over.
fn forget_failed(run: &Run<'_>, guest: &Identity) {
    let is_over = |restart: &Restart| restart.failed.is_some() && identity(restart).is_same_guest(guest);
    for restart in restarts(run).iter().filter(|restart| is_over(restart)) {
        // If it stays, status sees that the guest runs.
        let _ = Restarts::new(&run.host.run_dir).remove(restart.uuid, &restart.name);
    }
}

/// Has the monitor start nothing. `None`: there is none.
pub(super) fn hold(run: &Run<'_>, deadline: Option<Instant>) -> Option<Hold> {
    let warn = |why: &str| {
        run.report.warn(&format!("the monitor may restart guests while they are stopped: {why}"));
    };
    let client = match Client::connect(&run.host.run_dir) {
        Ok(client) => client?,
        Err(error) => {
            warn(&error.to_string());
            return None;
        }
    };
    let left = deadline.map_or(RESTARTS, |deadline| deadline.saturating_duration_since(Instant::now()) / 2);
    match client.hold(RESTARTS.min(left)) {
        Ok(hold) => {
            if !hold.is_complete {
                run.report.warn("restarts by the monitor are still under way");
            }
            Some(hold)
        }
        // One that has ended restarts nothing.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
        Err(error) => {
            warn(&error.to_string());
            None
        }
    }
}

/// Without a monitor: what one has left that was killed does not bring back guests of these names (or any).
pub(super) fn forget_restarts(run: &Run<'_>, stopped: Option<&[String]>) {
    for restart in restarts(run).iter().filter(|restart| restart.is_under_way()) {
        if stopped.is_none_or(|names| names.contains(&restart.name)) {
            if let Err(error) = Restarts::new(&run.host.run_dir).remove(restart.uuid, &restart.name) {
                run.report.warn(&format!("{}: the next monitor will restart it: {error}", restart.name));
            }
        }
    }
}

/// Lets the monitor go on, but not with guests of these names (or any), which were stopped.
pub(super) fn release(run: &Run<'_>, hold: Hold, stopped: Option<Vec<String>>) {
    match hold.release(stopped) {
        Ok(seen) => {
            for (guest, reason) in seen {
                if let Some(reason @ ("crash" | "watchdog" | "reboot")) = reason.as_deref() {
                    run.report.note(&format!("{}: ended by itself meanwhile ({reason})", guest.name));
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => run.report.warn(&format!("the monitor: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::thread::{self, JoinHandle};

    use super::super::mock::{Bench, uuid_of};
    use super::super::overview;
    use super::*;
    use crate::monitor::protocol::{Answer, Request, Watched, line};
    use crate::monitor::since_boot;
    use crate::report::Exit;
    use crate::toolstack::State;

    /// A monitor that watches one guest and answers so many connections. It tells in the end what it was asked.
    fn monitor(run_dir: &Path, guest: Guest, connections: usize) -> JoinHandle<Vec<Request>> {
        std::fs::create_dir_all(run_dir).expect("a directory");
        let listener = UnixListener::bind(run_dir.join("monitor.sock")).expect("a socket");
        thread::spawn(move || {
            let mut asked = Vec::new();
            for stream in listener.incoming().take(connections) {
                let mut stream: UnixStream = stream.expect("a connection");
                for text in BufReader::new(stream.try_clone().expect("a descriptor")).lines() {
                    let request = serde_json::from_str(&text.expect("text")).expect("a request");
                    let guests = vec![guest.clone()];
                    let answer = match &request {
                        Request::Hold => Answer::Held { guests },
                        Request::Release { .. } => Answer::Released,
                        Request::Status => {
                            let (started, reason) = (Some(since_boot()), Some("crash".to_owned()));
                            let watched = |guest| Watched { guest, started, restarts: 3, reason: reason.clone() };
                            Answer::Status { pid: 7, guests: guests.into_iter().map(watched).collect() }
                        }
                        Request::Settle => Answer::Settled { waiting: Vec::new() },
                        Request::Watch(guest) => Answer::Watching { domid: guest.domid },
                    };
                    asked.push(request);
                    stream.write_all(line(&answer).as_bytes()).expect("answered");
                }
            }
            asked
        })
    }

    /// As when libxl was removed while a monitor runs. The mock has nothing for one to work with, as a command.
    #[test]
    fn a_monitor_of_a_time_with_libxl_is_reckoned_with() {
        let bench = Bench::new();
        bench.auto("web.cfg", "web");
        let domid = bench.toolstack.domain("web", State::Running);
        let guest = Guest { domid, uuid: uuid_of("web"), name: "web".to_owned() };
        let monitor = monitor(&bench.host.run_dir, guest, 3);
        let mut table = String::new();
        bench.run(|run| {
            let seen = overview(run.host, run.settings, run.xen_host, run.toolstack, run.report);
            table = seen.expect("answered").table();
        });
        assert!(table.contains("monitor") && table.contains("3 (crash)"), "{table}");
        assert!(table.contains(" 0:00:0"), "the monitor knows since when it runs: {table}");
        assert_eq!((bench.start(), bench.stop()), (Exit::Done, Exit::Done), "{}", bench.err());
        let expected = [Request::Status, Request::Settle, Request::Hold, Request::Release { stopped: None }];
        assert_eq!(monitor.join().expect("no panic"), expected);
    }
}
