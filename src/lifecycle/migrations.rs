//! What migrations have left: guests that an earlier stop was killed over, guests of which nobody knows where they run,
//! and guests that run on another host now.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Instant;

use super::{Identity, Run};
use crate::host::Host;
use crate::migrate::{GuestsThere, Record, Records, Stage, guests_there, undecided};
use crate::report::{Action, Reporter};
use crate::toolstack::{AWAY, Domain, ShutdownReason, State};

/// Where what is remembered of migrations is.
pub(super) fn records(host: &Host) -> Records {
    Records::in_directory(&host.state_dir)
}

/// What a record means for a guest, with the domains that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nothing any more: the guest is here, or was lost with the host before anything could go wrong.
    Nothing,
    /// It is suspended here and can't run elsewhere: it is to run on.
    Victim,
    /// It runs elsewhere; its domain here is still to be destroyed.
    Husk,
    /// It may run elsewhere. Only a person can tell.
    Undecided,
    /// Its domain was kept because it may run elsewhere, and somebody has destroyed it: it runs elsewhere.
    Decided,
    /// It runs elsewhere.
    Moved,
}

fn left(record: &Record, boot_id: &str, domains: &[Domain]) -> Left {
    let guest = &record.guest;
    let same_boot = guest.boot_id == boot_id;
    let is_ours = |domain: &&Domain| same_boot && domain.domid == guest.domid && domain.uuid == guest.uuid;
    if let Some(domain) = domains.iter().filter(|domain| domain.state != State::Dying).find(is_ours) {
        if domain.state != State::Shutdown(ShutdownReason::Suspend) {
            return Left::Nothing; // Somebody has let it run.
        }
        // The name is the first that goes when a domain is destroyed.
        let has_own_name = domain.name.as_ref().is_some_and(|name| !name.ends_with(AWAY));
        return match (record.stage, has_own_name) {
            (Stage::Begun, _) | (Stage::Going, true) => Left::Victim,
            (Stage::Moved, false) => Left::Husk,
            (Stage::Going, false) | (Stage::Moved, true) => Left::Undecided,
        };
    }
    let is_back = |domain: &Domain| {
        // Another name is another guest's: somebody may have copied its file.
        domain.uuid == guest.uuid && domain.is_manageable() && domain.name.as_ref() == Some(&guest.name)
    };
    if domains.iter().any(is_back) {
        return Left::Nothing;
    }
    match (record.stage, same_boot) {
        (Stage::Begun, _) => Left::Nothing,
        (Stage::Going, false) => Left::Undecided,
        (Stage::Going, true) => Left::Decided,
        (Stage::Moved, _) => Left::Moved,
    }
}

/// A guest that must not be started here.
pub(super) struct Elsewhere {
    pub(super) record: Record,
    /// Whether that is not even known.
    pub(super) undecided: bool,
    /// What remembers it.
    pub(super) file: PathBuf,
    /// Whether its domain is still here.
    has_domain: bool,
}

impl Elsewhere {
    pub(super) fn identity(&self) -> Identity {
        Identity { name: self.record.guest.name.clone(), uuid: Some(self.record.guest.uuid) }
    }

    /// What it is, and what can be done about it.
    pub(super) fn describe(&self) -> String {
        let Record { guest, target, .. } = &self.record;
        let (name, file) = (&guest.name, self.file.display());
        match (self.undecided, self.has_domain) {
            (true, true) => {
                let why = format!("{target} was told to let it run, and has not answered");
                format!("{name}: {}", undecided(guest, target, &why))
            }
            (true, false) => format!(
                "{name}: it is NOT KNOWN whether it runs on {target} now: it was being migrated there when this host went \
                 down. It is not started here. Look on {target}, with `xl list`. If it does not run there, and \
                 {name}--incoming is not there either (`xl destroy` it there first), remove {file} and start it"
            ),
            (false, _) => format!(
                "{name}: was migrated to {target} and is not started here; if it does not run there any more, remove {file}"
            ),
        }
    }
}

impl Elsewhere {
    /// Says why it is not started, by what the host that it was migrated to has answered. `Err`: it can't be known
    /// whether it runs at all.
    fn judge(&self, answer: Result<&GuestsThere, &String>) -> Result<String, String> {
        let Record { guest, target, .. } = &self.record;
        let (name, file) = (&guest.name, self.file.display());
        match answer {
            Ok(there) if there.has(guest.uuid) => {
                Ok(format!("{name}: was migrated to {target} and is not started here: {target} has it"))
            }
            Ok(_) => Err(format!(
                "it was migrated to {target}, which does not have it any more. It is not started here: it may run on a third \
                 host, or {target} may have an image of it. If neither is so, remove {file} and start it"
            )),
            Err(why) => Err(format!(
                "it was migrated to {target}, and whether it is still there can't be known: {why}. It is not started here. If \
                 it does not run there any more, remove {file} and start it"
            )),
        }
    }
}

/// Asks the hosts that these guests were migrated to, each of them once, and says what has become of the guests.
pub(super) fn ask_for(run: &Run<'_>, guests: &[Elsewhere]) {
    let mut answers = HashMap::new();
    for guest in guests {
        let begun = Instant::now();
        let Record { guest: known, target, .. } = &guest.record;
        let migrate = run.settings.migrate.value.as_ref();
        let answer = answers.entry(target).or_insert_with(|| guests_there(migrate, target, run.interrupt));
        match guest.judge(answer.as_ref()) {
            Ok(text) => run.report.note(&text),
            Err(why) => run.report.failed(Action::Create, &known.name, begun.elapsed(), &why),
        }
    }
}

/// The guests that must not be started here, and what can't be read of them.
pub(super) fn elsewhere(host: &Host, domains: &[Domain]) -> (Vec<Elsewhere>, Vec<String>) {
    let records = records(host);
    // Without knowing it every boot is another one.
    let boot_id = host.boot_id().unwrap_or_default();
    let (mut found, mut messages) = (Vec::new(), Vec::new());
    for record in records.all() {
        match record {
            Err(error) => messages.push(error.to_string()),
            Ok(record) => {
                let undecided = match left(&record, &boot_id, domains) {
                    Left::Nothing | Left::Victim => continue,
                    Left::Husk | Left::Decided | Left::Moved => false,
                    Left::Undecided => true,
                };
                let is_here =
                    |domain: &Domain| domain.domid == record.guest.domid && domain.uuid == record.guest.uuid;
                let has_domain = record.guest.boot_id == boot_id && domains.iter().any(is_here);
                let file = records.path(&record.guest);
                found.push(Elsewhere { record, undecided, file, has_domain });
            }
        }
    }
    (found, messages)
}

/// Puts right what a killed stop has left of migrations, and names what nobody but a person can put right. Says whether
/// any domain was touched.
pub(super) fn recover_migrated(run: &Run<'_>, domains: &[Domain]) -> bool {
    let records = records(run.host);
    let boot_id = match run.host.boot_id() {
        Ok(boot_id) => boot_id,
        Err(error) => {
            run.report.warn(&format!("the boot id: {error}"));
            return false;
        }
    };
    let mut changed = false;
    for record in records.all().into_iter().flatten() {
        let name = &record.guest.name;
        match left(&record, &boot_id, domains) {
            Left::Nothing => forget(&records, &record, run.report),
            Left::Victim => changed |= resume(run, &records, &record, domains),
            Left::Husk => match run.toolstack.destroy(record.guest.domid) {
                Ok(()) => {
                    changed = true;
                    let what = "an earlier stop was killed before it removed the suspended remains";
                    run.report.note(&format!("{name}: runs on {}; {what}", record.target));
                }
                Err(error) => {
                    let remains = "but its suspended remains are there";
                    run.report.error(&format!("{name}: runs on {}, {remains}: {error}", record.target));
                }
            },
            Left::Decided => {
                let mut moved = record.clone();
                moved.stage = Stage::Moved;
                if let Err(error) = records.write(&moved) {
                    run.report.warn(&format!("{name}: {error}"));
                }
            }
            Left::Undecided | Left::Moved => {}
        }
    }
    let (found, unreadable) = elsewhere(run.host, domains);
    unreadable.iter().for_each(|message| run.report.error(message));
    found.iter().filter(|guest| guest.undecided).for_each(|guest| run.report.error(&guest.describe()));
    changed
}

fn forget(records: &Records, record: &Record, report: &Reporter) {
    if let Err(error) = records.remove(&record.guest) {
        report.warn(&format!("{}: {error}", record.guest.name));
    }
}

/// Lets a guest run on that can't run elsewhere. Says whether it does.
fn resume(run: &Run<'_>, records: &Records, record: &Record, domains: &[Domain]) -> bool {
    let (name, domid) = (&record.guest.name, record.guest.domid);
    if run.host.is_being_saved(domid) {
        run.report.warn(&format!("{name}: it is being saved or migrated by another process"));
        return false;
    }
    let away = format!("{name}{AWAY}");
    if domains.iter().any(|domain| domain.domid == domid && domain.name.as_ref() == Some(&away)) {
        if let Err(error) = run.toolstack.rename(domid, &away, name) {
            run.report.warn(&format!("{name}: it keeps the name {away}: {error}"));
        }
    }
    match run.toolstack.resume(domid) {
        Ok(()) => {
            let target = &record.target;
            run.report.warn(&format!("{name}: resumed; an earlier stop has not brought it to {target}"));
            forget(records, record, run.report);
            true
        }
        Err(error) => {
            run.report.error(&format!("{name}: left SUSPENDED by a migration that was killed: {error}"));
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::super::mock::{Bench, Fault, uuid_of};
    use super::*;
    use crate::image::Guest;
    use crate::report::Exit;

    const SUSPENDED: State = State::Shutdown(ShutdownReason::Suspend);

    /// A record of `web` as domain 1 of this boot, or of another one.
    fn remember(bench: &Bench, stage: Stage, this_boot: bool) {
        let boot_id = if this_boot { bench.host.boot_id().expect("a boot id") } else { "b00709".to_owned() };
        let guest = Guest { name: "web".to_owned(), uuid: uuid_of("web"), domid: 1, boot_id };
        let record = json!({
            "version": 1, "name": guest.name, "uuid": guest.uuid, "domid": guest.domid, "boot_id": guest.boot_id,
            "target": "far", "stage": stage, "begun": 7,
        });
        fs::create_dir_all(&bench.host.state_dir).expect("a directory");
        fs::write(records(&bench.host).path(&guest), record.to_string()).expect("a file");
    }

    fn domain(bench: &Bench, name: &str, state: State) {
        let domid = bench.toolstack.domain(name, state);
        bench.toolstack.change(domid, |domain| domain.uuid = uuid_of("web"));
    }

    fn found(bench: &Bench) -> Left {
        let mut found = None;
        bench.run(|run| {
            let record = records(run.host).all().remove(0).expect("readable");
            let domains = run.toolstack.domains().expect("listed");
            found = Some(left(&record, &run.host.boot_id().expect("a boot id"), &domains));
        });
        found.expect("looked")
    }

    #[test]
    fn what_a_record_means() {
        use Left::{Decided, Husk, Moved, Nothing, Undecided, Victim};
        use Stage::{Begun, Going};
        let away = "web--migratedaway";
        // The domains, and then what it means for each stage; last when the host has gone down since.
        for (domains, this_boot, begun, going, moved) in [
            (&[][..], true, Nothing, Decided, Moved),
            (&[("web", State::Running)], true, Nothing, Nothing, Nothing),
            (&[("web", State::Paused)], true, Nothing, Nothing, Nothing),
            (&[("web", SUSPENDED)], true, Victim, Victim, Undecided),
            (&[(away, SUSPENDED)], true, Victim, Undecided, Husk),
            // Somebody has resumed it.
            (&[(away, State::Running)], true, Nothing, Nothing, Nothing),
            (&[("web", State::Dying)], true, Nothing, Decided, Moved),
            // It has come back, and what is left of it is still there.
            (&[(away, SUSPENDED), ("web", State::Running)], true, Victim, Undecided, Husk),
            (&[], false, Nothing, Undecided, Moved),
            (&[("web", State::Running)], false, Nothing, Nothing, Nothing),
            // It is about to come back; whether it does will be seen.
            (&[("web--incoming", State::Paused)], false, Nothing, Undecided, Moved),
        ] {
            for (stage, expected) in [(Begun, begun), (Going, going), (Stage::Moved, moved)] {
                let bench = Bench::new();
                domains.iter().for_each(|(name, state)| domain(&bench, name, *state));
                remember(&bench, stage, this_boot);
                assert_eq!(found(&bench), expected, "{domains:?} {this_boot} {stage:?}");
            }
        }
    }

    #[test]
    fn another_guest_with_a_copied_uuid_does_not_bring_it_back() {
        let bench = Bench::new();
        domain(&bench, "copy", State::Running);
        remember(&bench, Stage::Moved, false);
        assert_eq!(found(&bench), Left::Moved);
    }

    #[test]
    fn a_domain_that_is_being_destroyed_has_no_name() {
        for (stage, expected) in [(Stage::Going, Left::Undecided), (Stage::Moved, Left::Husk)] {
            let bench = Bench::new();
            domain(&bench, "web--migratedaway", SUSPENDED);
            bench.toolstack.change(1, |domain| domain.name = None);
            remember(&bench, stage, true);
            assert_eq!(found(&bench), expected);
        }
    }

    #[test]
    fn a_guest_that_cant_run_elsewhere_runs_on() {
        for (name, stage) in [("web", Stage::Begun), ("web", Stage::Going), ("web--migratedaway", Stage::Begun)] {
            let bench = Bench::new();
            domain(&bench, name, SUSPENDED);
            remember(&bench, stage, true);
            assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
            assert_eq!(bench.toolstack.left(), ["web Running"]);
            assert!(bench.err().contains("web: resumed"), "{}", bench.err());
            assert!(records(&bench.host).all().is_empty());
        }
    }

    #[test]
    fn a_guest_that_somebody_else_saves_is_left_alone() {
        let bench = Bench::new();
        domain(&bench, "web", SUSPENDED);
        remember(&bench, Stage::Begun, true);
        let process = bench.host.processes.join("4711");
        fs::create_dir_all(&process).expect("directory");
        fs::write(process.join("cmdline"), "/usr/lib/xen/bin/libxl-save-helper\0--save-domain\x001\0")
            .expect("write");
        bench.start();
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert!(bench.err().contains("web: it is being saved or migrated by another process"), "{}", bench.err());
    }

    #[test]
    fn a_guest_that_may_run_elsewhere_is_named_and_not_touched() {
        let bench = Bench::new();
        bench.auto("web", "web");
        domain(&bench, "web--migratedaway", SUSPENDED);
        remember(&bench, Stage::Going, true);
        for _ in 0..2 {
            assert_eq!(bench.start(), Exit::Failed);
            assert_eq!(bench.stop(), Exit::Failed);
        }
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert_eq!(
            bench.err().matches("web: it is NOT KNOWN whether it runs on far now").count(),
            4,
            "{}",
            bench.err()
        );
        assert!(
            bench.err().contains("xl destroy 1") && bench.err().contains("xl rename 1 web"),
            "{}",
            bench.err()
        );
    }

    #[test]
    fn a_guest_that_was_migrated_away_is_asked_for_and_not_started() {
        let headings = "UUID ID name";
        let there = format!("echo '{headings}'; echo '{}  3    web'", uuid_of("web"));
        let elsewhere = format!("echo '{headings}'; echo '{}  3    web'", uuid_of("db"));
        for (answer, exit, said) in [
            (there.as_str(), Exit::Done, "web: was migrated to far and is not started here: far has it"),
            (
                &elsewhere,
                Exit::Failed,
                "web: start FAILED (0.0 s): it was migrated to far, which does not have it any more",
            ),
            (
                "echo no route >&2; exit 255",
                Exit::Failed,
                "whether it is still there can't be known: xl vm-list failed",
            ),
        ] {
            let mut bench = Bench::new();
            let script = bench.path("ask");
            fs::write(&script, format!("#!/bin/sh\n[ \"$*\" = 'far xl vm-list' ] || exit 1\n{answer}\n"))
                .expect("a file");
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a script");
            bench.settings.push_str(&format!("XENDOMAINS_MIGRATE='-s {} far'\n", script.display()));
            bench.auto("web", "web");
            bench.auto("db", "db");
            remember(&bench, Stage::Moved, false);
            assert_eq!(bench.start(), exit, "{}", bench.err());
            assert_eq!(bench.toolstack.left(), ["db Running"]);
            let all = bench.out() + &bench.err();
            assert!(all.contains(said), "{all}");
            assert_eq!(all.contains(".migration and start it"), exit == Exit::Failed, "{all}");
        }
    }

    #[test]
    fn what_is_left_of_a_guest_that_runs_elsewhere_is_destroyed() {
        let bench = Bench::new();
        domain(&bench, "web--migratedaway", SUSPENDED);
        remember(&bench, Stage::Moved, true);
        bench.toolstack.fault("destroy web--migratedaway", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        assert!(bench.err().contains("web: runs on far, but its suspended remains are there"), "{}", bench.err());
        bench.toolstack.no_fault("destroy web--migratedaway");
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!(bench.toolstack.left(), [""; 0]);
    }

    #[test]
    fn a_record_that_cant_be_read_is_a_failure() {
        let bench = Bench::new();
        fs::create_dir_all(&bench.host.state_dir).expect("a directory");
        fs::write(bench.host.state_dir.join("web.migration"), "{").expect("a file");
        assert_eq!(bench.start(), Exit::Failed);
        assert!(bench.err().contains(".migration: "), "{}", bench.err());
    }
}
