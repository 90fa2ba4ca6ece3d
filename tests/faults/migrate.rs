//! Guests that are migrated to another host, which is a fake as well: whatever goes wrong, no guest runs twice, and one
//! that is not taken runs on here.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::target::{Target, Wrong, relay};
use super::{Dom0, Ended, Said, at_most, called, is_over};

/// Where in all that a target says its messages begin: the banner, ready, the report, the status, the permission.
const MESSAGES: [usize; 6] = [0, 54, 88, 127, 128, 172];

/// Nothing but the migration, so that what becomes of the guest by it can be seen.
const ONLY: &str = "XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n";

/// This host, with guests, and others.
struct Hosts {
    here: Dom0,
    there: Vec<Target>,
}

impl Hosts {
    /// Guests of these names here, and hosts of those names.
    fn new(guests: &[&str], hosts: &[&str], settings: &str) -> Hosts {
        let guests: Vec<_> = guests
            .iter()
            .enumerate()
            .map(|(number, name)| {
                let uuid = format!("4b1d7a52-6c2e-4f0a-9d53-1f0c7a7e0a{number:02}");
                json!({"name": name, "uuid": uuid})
            })
            .collect();
        let here = Dom0::new(guests.into(), "");
        let directory = here.directory.path().to_owned();
        let relay = relay(&directory);
        let file = directory.join("settings");
        let text = fs::read_to_string(&file).expect("the settings");
        let migrate = format!("XENDOMAINS_MIGRATE='-s {} {} --live'\n", relay.display(), hosts.join(" "));
        fs::write(&file, text + &migrate + settings).expect("a file");
        let there =
            hosts.iter().filter(|name| !name.starts_with("dead")).map(|name| Target::new(&directory, name));
        let there = there.collect();
        Hosts { here, there }
    }

    fn one(settings: &str) -> Hosts {
        Hosts::new(&["web"], &["b"], settings)
    }

    fn stop(&self) -> Ended {
        self.here.run("stop")
    }

    /// The guests that run, with the host of each: 0 is this one.
    fn running(&self) -> Vec<(String, usize)> {
        let lists = std::iter::once(self.here.guests()).chain(self.there.iter().map(Target::guests));
        let guests =
            lists.enumerate().flat_map(|(host, guests)| guests.into_iter().map(move |guest| (guest, host)));
        let mut running: Vec<_> =
            guests.filter(|((_, runs), _)| *runs).map(|((name, _), host)| (name, host)).collect();
        running.sort();
        running
    }

    fn records(&self) -> usize {
        let files = fs::read_dir(self.here.directory.path().join("remembered")).into_iter().flatten();
        files
            .filter(|file| file.as_ref().is_ok_and(|file| file.path().extension() == Some("migration".as_ref())))
            .count()
    }

    fn expect_sound(&self) {
        self.here.expect_sound();
        for target in &self.there {
            target.offers();
            let state = target.control.state();
            assert_eq!((&state["violations"], &state["refusals"]), (&json!([]), &json!([])));
        }
    }
}

fn runs(name: &str, host: usize) -> Vec<(String, usize)> {
    vec![(name.to_owned(), host)]
}

scenarios! {
    a_guest_is_migrated_and_is_not_started_here_again;
    every_byte_that_does_not_come_or_is_another_one:
        not over xl, "the bytes are xl's business";
    a_target_that_cant_let_it_run_gives_it_back;
    a_guest_that_is_not_taken_is_saved;
    a_target_that_stalls_costs_the_limit_and_the_guest_runs_on;
    the_answer_to_go_is_waited_for_longer_than_the_limit;
    told_to_end_a_migration_is_given_up_before_go_but_not_after_it;
    what_is_not_known_is_said_by_everybody_and_touched_by_nobody_until_it_is_decided;
    a_host_that_went_down_undecided_does_not_start_the_guest;
    a_guest_that_comes_back_is_a_guest_like_any_other;
    what_is_left_of_a_moved_guest_goes_with_the_next_start:
        not over xl, "xl does not say that it could not destroy the rest; the same stop then does";
    a_guest_that_cant_be_resumed_after_it_was_not_taken_is_resumed_by_the_next_start;
    a_target_that_is_not_there_is_tried_once;
    guests_are_spread_by_the_memory_that_the_targets_have;
    a_guest_that_one_target_refuses_goes_to_the_next;
    a_guest_may_ask_not_to_be_migrated;
    a_record_that_cant_be_written_keeps_the_guest_here;
    flags_and_configuration_are_those_of_a_live_migration;
}

fn a_guest_is_migrated_and_is_not_started_here_again() {
    let hosts = Hosts::one("");
    hosts.here.auto("web");
    let stop = hosts.stop();
    assert_eq!((stop.code, hosts.here.guests()), (0, vec![]), "{}", stop.said);
    assert_eq!(hosts.running(), runs("web", 1), "{}", stop.said);
    assert!(stop.said.contains("web: runs on b now") && stop.said.contains("stop: 1 migrated"), "{}", stop.said);
    // What the other side says is passed on.
    assert!(stop.said.contains("web: b: connecting to b: b xl migrate-receive"), "{}", stop.said);
    assert_eq!(hosts.here.images(), [""; 0]);
    let start = hosts.here.run("start");
    assert_eq!((start.code, hosts.here.guests()), (0, vec![]), "{}", start.said);
    assert!(start.said.contains("web: was migrated to b and is not started here: b has it"), "{}", start.said);
    // It may run there or not: nobody says.
    fs::remove_file(hosts.here.directory.path().join("b.vm-list")).expect("a file");
    let start = hosts.here.run("start");
    assert_eq!((start.code, hosts.here.guests()), (1, vec![]), "{}", start.said);
    assert!(start.said.contains("whether it is still there can't be known: xl vm-list failed"), "{}", start.said);
    let status = hosts.here.run("status");
    assert_eq!(status.code, 3, "{}", status.said);
    // As it says: without the record it is a guest like any other.
    fs::remove_dir_all(hosts.here.directory.path().join("remembered")).expect("a directory");
    let start = hosts.here.run("start");
    assert_eq!((start.code, hosts.here.guests().len()), (0, 1), "{}", start.said);
    hosts.expect_sound();
}

/// What becomes of the only guest when something has gone wrong, and what everybody is told then.
fn expect_fate(hosts: &Hosts, stop: &Ended, from: usize, what: &str) {
    assert_eq!(stop.code, 1, "{what}: {}", stop.said);
    hosts.expect_sound();
    let running = hosts.running();
    if from < MESSAGES[2] {
        assert_eq!(running, runs("web", 0), "{what}: {}", stop.said);
        assert_eq!(hosts.records(), 0, "{what}: {}", stop.said);
        return;
    }
    assert!(
        running.len() <= 1 && running.iter().all(|(_, host)| *host == 1),
        "{what}: {running:?}: {}",
        stop.said
    );
    assert_eq!(hosts.here.guests(), [("web--migratedaway".to_owned(), false)], "{what}: {}", stop.said);
    assert!(
        stop.said.contains("web: migration FAILED") && stop.said.contains("NOT KNOWN"),
        "{what}: {}",
        stop.said
    );
    assert!(stop.said.contains("xl destroy 1") && stop.said.contains("xl rename 1 web"), "{what}: {}", stop.said);
    assert!(!called(&hosts.here.control.state(), "libxl_domain_resume", "web--migratedaway"), "{what}");
}

fn every_byte_that_does_not_come_or_is_another_one() {
    // Two halves side by side: mostly they wait for processes.
    let at = |from: usize| {
        for position in from..MESSAGES[5] {
            if position % 2 != from {
                continue;
            }
            // The permission is only given when the guest could not be let run.
            let cant_unpause = position >= MESSAGES[4];
            let cases = [
                Wrong { dies_after: Some(position), cant_unpause, ..Wrong::default() },
                Wrong { byte: Some(position), cant_unpause, ..Wrong::default() },
            ];
            for wrong in cases {
                let what = format!("{wrong:?}");
                let hosts = Hosts::one(ONLY);
                hosts.there[0].next(wrong);
                let stop = hosts.stop();
                expect_fate(&hosts, &stop, position, &what);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| at(1));
        at(0);
    });
}

fn a_target_that_cant_let_it_run_gives_it_back() {
    let hosts = Hosts::one(ONLY);
    hosts.there[0].next(Wrong { cant_unpause: true, ..Wrong::default() });
    let stop = hosts.stop();
    assert_eq!((stop.code, hosts.running()), (1, runs("web", 0)), "{}", stop.said);
    let said = if is_over("xl") { "target reports" } else { "could not let it run (status 253)" };
    assert!(stop.said.contains(said), "{}", stop.said);
    assert_eq!(hosts.records(), 0);
    hosts.expect_sound();
}

fn a_guest_that_is_not_taken_is_saved() {
    for wrong in [
        Wrong { dies_after: Some(3), ..Wrong::default() },
        Wrong { no_memory: true, ..Wrong::default() },
        Wrong { reads: Some((1000, false)), ..Wrong::default() },
        Wrong { byte: Some(60), ..Wrong::default() },
        Wrong { cant_unpause: true, ..Wrong::default() },
    ] {
        let hosts = Hosts::one("");
        hosts.there[0].next(wrong.clone());
        let stop = hosts.stop();
        assert_eq!(stop.code, 1, "{wrong:?}: {}", stop.said);
        assert_eq!((hosts.here.guests(), hosts.here.images()), (vec![], vec!["web".to_owned()]), "{}", stop.said);
        assert!(stop.said.contains("web: migration FAILED") && stop.said.contains("web: saved"), "{}", stop.said);
        assert_eq!(hosts.running(), [], "{wrong:?}");
        let start = hosts.here.run("start");
        assert_eq!((start.code, hosts.running()), (0, runs("web", 0)), "{}", start.said);
        hosts.expect_sound();
    }
}

fn a_target_that_stalls_costs_the_limit_and_the_guest_runs_on() {
    let long = Duration::from_secs(600);
    for wrong in [
        Wrong { waits: Some((0, long)), ..Wrong::default() },
        Wrong { waits: Some((53, long)), ..Wrong::default() },
        Wrong { reads: Some((0, true)), ..Wrong::default() },
        Wrong { reads: Some((9000, true)), ..Wrong::default() },
        Wrong { waits: Some((MESSAGES[1], long)), ..Wrong::default() },
        Wrong { waits: Some((MESSAGES[2] - 1, long)), ..Wrong::default() },
    ] {
        let hosts = Hosts::one(&format!("{ONLY}XENDOMAINS_STOP_MAXWAIT=1\n"));
        // More than fits into the pipes.
        hosts.here.control.script(json!({"call": "libxl_domain_suspend", "payload_bytes": 2 << 20}));
        hosts.there[0].next(wrong.clone());
        let stop = hosts.stop();
        assert_eq!(stop.code, 1, "{wrong:?}: {}", stop.said);
        assert_eq!(hosts.here.guests(), [("web".to_owned(), true)], "{wrong:?}: {}", stop.said);
        assert!(stop.took < at_most(20), "{wrong:?}: {:?}", stop.took);
        assert_eq!(hosts.records(), 0);
        hosts.here.expect_sound();
    }
}

fn the_answer_to_go_is_waited_for_longer_than_the_limit() {
    let hosts = Hosts::one(&format!("{ONLY}XENDOMAINS_STOP_MAXWAIT=2\n"));
    hosts.there[0].next(Wrong { waits: Some((MESSAGES[2], Duration::from_secs(3))), ..Wrong::default() });
    let stop = hosts.stop();
    assert_eq!((stop.code, hosts.running()), (0, runs("web", 1)), "{}", stop.said);
    hosts.expect_sound();
}

fn told_to_end_a_migration_is_given_up_before_go_but_not_after_it() {
    for (position, code, host) in [(0, 1, 0), (MESSAGES[1], 1, 0), (MESSAGES[2], 0, 1)] {
        let hosts = Hosts::one(&format!("{ONLY}XENDOMAINS_STOP_MAXWAIT=0\n"));
        let time = Duration::from_secs(if code == 0 { 2 } else { 600 });
        hosts.there[0].next(Wrong { waits: Some((position, time)), ..Wrong::default() });
        let said = Said::default();
        let stop = std::thread::scope(|scope| {
            let stop = scope.spawn(|| hosts.here.run_and_say("stop", &said));
            match position {
                0 => said.wait_for("connecting to b", 1),
                at if at == MESSAGES[1] => {
                    hosts.here.control.wait(|state| state["domains"]["1"]["shutdown"] == 2);
                }
                _ => {
                    let away = |state: &serde_json::Value| state["domains"]["1"]["name"] == "web--migratedaway";
                    hosts.here.control.wait(away);
                    hosts.there[0].control.wait(|state| state["domains"]["1"]["paused"] == false);
                }
            }
            hosts.here.interrupt.ask();
            stop.join().expect("no panic")
        });
        assert_eq!(stop.code, code, "{position}: {}", stop.said);
        let runs_here = hosts.here.guests() == [("web".to_owned(), true)];
        assert_eq!(runs_here, host == 0, "{position}: {}", stop.said);
        assert!(stop.took < at_most(20), "{position}: {:?}", stop.took);
        hosts.here.expect_sound();
    }
}

/// Whether a call does something with a guest, and does not only look.
fn acts(call: &serde_json::Value) -> bool {
    let name = call["call"].as_str().unwrap_or_default();
    ["create", "destroy", "pause", "rename", "resume", "shutdown", "suspend"].iter().any(|act| name.contains(act))
}

fn what_is_not_known_is_said_by_everybody_and_touched_by_nobody_until_it_is_decided() {
    for runs_there in [true, false] {
        let hosts = Hosts::one("XENDOMAINS_DESTROY=true\n");
        hosts.here.auto("web");
        let wrong = if runs_there {
            Wrong { dies_after: Some(MESSAGES[2]), ..Wrong::default() }
        } else {
            // It dies with the guest destroyed and before it says so.
            Wrong { dies_after: Some(MESSAGES[4]), cant_unpause: true, ..Wrong::default() }
        };
        hosts.there[0].next(wrong);
        let stop = hosts.stop();
        assert_eq!(stop.code, 1, "{}", stop.said);
        assert_eq!(hosts.running().len(), usize::from(runs_there), "{}", stop.said);
        let calls = |hosts: &Hosts| {
            hosts.here.control.state()["calls"].as_array().expect("calls").iter().filter(|call| acts(call)).count()
        };
        let before = calls(&hosts);
        for (action, code) in [("status", 3), ("start", 1), ("stop", 1), ("status", 3), ("start", 1)] {
            let ended = hosts.here.run(action);
            assert_eq!(ended.code, code, "{action}: {}", ended.said);
            assert!(
                ended.said.contains("web: it is NOT KNOWN whether it runs on b now"),
                "{action}: {}",
                ended.said
            );
        }
        assert_eq!(calls(&hosts), before, "nothing was done");
        assert_eq!(hosts.here.guests(), [("web--migratedaway".to_owned(), false)]);
        if runs_there {
            // xl destroy
            hosts.here.control.guest(json!({"domain": "web--migratedaway", "does": "vanish"}));
            for _ in 0..2 {
                let start = hosts.here.run("start");
                assert_eq!((start.code, hosts.running()), (0, runs("web", 1)), "{}", start.said);
                assert!(start.said.contains("is not started here"), "{}", start.said);
            }
        } else {
            // xl rename
            hosts.here.control.rename(&hosts.here.library, 1, "web");
            let start = hosts.here.run("start");
            assert_eq!((start.code, hosts.running()), (0, runs("web", 0)), "{}", start.said);
            assert!(start.said.contains("web: resumed"), "{}", start.said);
            assert_eq!(hosts.records(), 0);
        }
        hosts.expect_sound();
    }
}

fn a_host_that_went_down_undecided_does_not_start_the_guest() {
    let hosts = Hosts::one(ONLY);
    hosts.here.auto("web");
    hosts.there[0].next(Wrong { dies_after: Some(MESSAGES[2]), ..Wrong::default() });
    assert_eq!(hosts.stop().code, 1);
    // The power is lost, and the host comes up again.
    hosts.here.control.guest(json!({"domain": 1, "does": "vanish"}));
    fs::write(&hosts.here.host.boot_id, "7c9a4a3e-2f0f-4c1b-9f67-0a3f4f0f6a02\n").expect("a file");
    let start = hosts.here.run("start");
    assert_eq!((start.code, hosts.running()), (1, runs("web", 1)), "{}", start.said);
    assert!(
        start.said.contains("web: it is NOT KNOWN") && start.said.contains(".migration and start it"),
        "{}",
        start.said
    );
    let status = hosts.here.run("status");
    assert!(status.said.contains("moved"), "{}", status.said);
}

fn a_guest_that_comes_back_is_a_guest_like_any_other() {
    let hosts = Hosts::one(ONLY);
    hosts.here.auto("web");
    assert_eq!(hosts.stop().code, 0);
    assert_eq!(hosts.records(), 1);
    // The other host sends it back, to a stock xl.
    hosts.here.control.host(json!({"domains": [{"name": "web", "uuid": "4b1d7a52-6c2e-4f0a-9d53-1f0c7a7e0a00"}]}));
    let start = hosts.here.run("start");
    assert_eq!((start.code, hosts.records()), (0, 0), "{}", start.said);
    let status = hosts.here.run("status");
    assert_eq!(status.code, 0, "{}", status.said);
}

fn what_is_left_of_a_moved_guest_goes_with_the_next_start() {
    let hosts = Hosts::one(ONLY);
    hosts.here.control.script(json!({"call": "libxl_domain_destroy", "nth": 1, "error": -3}));
    let stop = hosts.stop();
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert!(stop.said.contains("web: migrated") && stop.said.contains("remains are still there"), "{}", stop.said);
    assert_eq!(hosts.here.guests(), [("web--migratedaway".to_owned(), false)]);
    let start = hosts.here.run("start");
    assert_eq!((start.code, hosts.here.guests()), (0, vec![]), "{}", start.said);
    assert_eq!(hosts.running(), runs("web", 1));
    hosts.expect_sound();
}

fn a_guest_that_cant_be_resumed_after_it_was_not_taken_is_resumed_by_the_next_start() {
    for wrong in [
        Wrong { dies_after: Some(MESSAGES[1]), ..Wrong::default() },
        Wrong { cant_unpause: true, ..Wrong::default() },
        Wrong { reads: Some((1000, false)), ..Wrong::default() },
    ] {
        let hosts = Hosts::one("");
        hosts.here.control.script(json!([
            {"call": "libxl_domain_suspend", "payload_bytes": 2 << 20},
            {"call": "libxl_domain_resume", "nth": 1, "error": -3},
        ]));
        // In the last case it fails when it is suspended.
        hosts.there[0].next(wrong.clone());
        let stop = hosts.stop();
        assert_eq!(stop.code, 1, "{wrong:?}: {}", stop.said);
        if hosts.here.guests().is_empty() {
            // It had not been suspended yet, and was saved.
            continue;
        }
        assert!(stop.said.contains("SUSPENDED"), "{wrong:?}: {}", stop.said);
        assert!(!called(&hosts.here.control.state(), "libxl_domain_shutdown", "web"), "it can't answer");
        let start = hosts.here.run("start");
        assert_eq!((start.code, hosts.running()), (0, runs("web", 0)), "{wrong:?}: {}", start.said);
        assert_eq!(hosts.records(), 0);
        hosts.expect_sound();
    }
}

fn a_target_that_is_not_there_is_tried_once() {
    let guests = ["a", "b", "c", "d"];
    for jobs in [1, 2, 4] {
        let hosts = Hosts::new(&guests, &["dead", "live"], &format!("{ONLY}XENDOMAINS_MIGRATE_JOBS={jobs}\n"));
        // It can't say how much memory it has either.
        let stop = hosts.stop();
        assert_eq!((stop.code, hosts.running().len()), (0, 4), "{}", stop.said);
        assert!(hosts.running().iter().all(|(_, host)| *host == 1));
        let tried = fs::read_to_string(hosts.here.directory.path().join("dead.tried")).unwrap_or_default();
        assert_eq!(tried.lines().count(), 1, "{}", stop.said);
        hosts.expect_sound();
    }
}

fn guests_are_spread_by_the_memory_that_the_targets_have() {
    let hosts = Hosts::new(&["a", "b", "c"], &["one", "two"], &format!("{ONLY}XENDOMAINS_MIGRATE_JOBS=3\n"));
    for (host, mib) in [("one", 200), ("two", 400)] {
        let info = format!("host                   : {host}\nfree_memory            : {mib}\n");
        fs::write(hosts.here.directory.path().join(format!("{host}.info")), info).expect("a file");
    }
    let stop = hosts.stop();
    assert_eq!(stop.code, 0, "{}", stop.said);
    // Of 128 MiB each: two, one, two.
    assert_eq!(
        [1, 2].map(|n| hosts.running().iter().filter(|(_, host)| *host == n).count()),
        [1, 2],
        "{}",
        stop.said
    );
    hosts.expect_sound();
}

fn a_guest_that_one_target_refuses_goes_to_the_next() {
    let hosts = Hosts::new(&["web"], &["one", "two"], ONLY);
    hosts.there[0].next(Wrong { no_memory: true, ..Wrong::default() });
    let stop = hosts.stop();
    assert_eq!((stop.code, hosts.running()), (0, runs("web", 2)), "{}", stop.said);
    hosts.expect_sound();
}

fn a_guest_may_ask_not_to_be_migrated() {
    let hosts = Hosts::new(&["a", "b", "c"], &["there"], "XENDOMAINS_SAVE_JOBS=1\n");
    for (name, wish) in [("a", "save"), ("b", "shutdown"), ("c", "migrate")] {
        hosts.here.auto(name);
        let file = hosts.here.directory.path().join("auto").join(name);
        let text = fs::read_to_string(&file).expect("a file");
        fs::write(file, format!("{text}xendomains = [ \"stop={wish}\" ]\n")).expect("a file");
    }
    let stop = hosts.stop();
    assert_eq!((stop.code, hosts.running()), (0, runs("c", 1)), "{}", stop.said);
    assert_eq!(hosts.here.images(), ["a"]);
}

fn a_record_that_cant_be_written_keeps_the_guest_here() {
    let hosts = Hosts::one(ONLY);
    fs::write(hosts.here.directory.path().join("remembered"), "").expect("a file");
    let stop = hosts.stop();
    assert_eq!((stop.code, hosts.running()), (1, runs("web", 0)), "{}", stop.said);
    assert!(!called(&hosts.here.control.state(), "libxl_domain_suspend", "web"));
    assert_eq!(hosts.there[0].offers(), 0);
}

fn flags_and_configuration_are_those_of_a_live_migration() {
    let hosts = Hosts::one(ONLY);
    assert_eq!(hosts.stop().code, 0);
    let state = hosts.here.control.state();
    let calls = state["calls"].as_array().expect("calls");
    let suspend = calls.iter().find(|call| call["call"] == "libxl_domain_suspend").expect("suspended");
    assert_eq!(suspend["args"]["flags"], 2, "LIVE");
    let there = hosts.there[0].control.state();
    assert_eq!(there["domains"]["1"]["uuid"], "4b1d7a52-6c2e-4f0a-9d53-1f0c7a7e0a00");
}
