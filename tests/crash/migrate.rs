//! A stop that is killed while it migrates: the guest runs on one host at the most, whatever comes afterwards, and where it
//! can't be known on which, everybody says so and nobody touches it.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use serde_json::json;

use super::target::{Target, Wrong, guests, relay};
use super::{Death, Dom0, GUESTS, KILL, at_every_cut};

/// The calls in which the fake dies.
const CALLS: &[&str] =
    &["libxl_domain_suspend", "libxl_domain_rename", "libxl_domain_resume", "libxl_domain_destroy"];

const AWAY: &str = "web--migratedaway";

/// A guest `web` that runs here and another host.
fn hosts() -> (Dom0, Target) {
    let dom0 = Dom0::new();
    let directory = dom0.directory.path();
    let settings = directory.join("settings");
    let text = fs::read_to_string(&settings).expect("the settings");
    let migrate = format!("XENDOMAINS_MIGRATE='-s {} b'\n", relay(directory).display());
    fs::write(settings, text + &migrate).expect("a file");
    fs::remove_file(directory.join("auto/db")).expect("a guest");
    let target = Target::new(directory, "b");
    let (name, uuid) = GUESTS[1];
    dom0.state.host(&json!({"domains": [{"name": name, "uuid": uuid}]}));
    (dom0, target)
}

fn is_running(guests: &[(String, bool)]) -> bool {
    guests.iter().any(|(_, runs)| *runs)
}

/// One death. Says whether the program has died of it.
fn is_cut(wrong: &Wrong, death: &Death, number: usize) -> bool {
    for power_cut in [false, true] {
        let (dom0, target) = hosts();
        target.next(wrong.clone());
        let ended = dom0.program("stop", death);
        if ended.status.code().is_some() {
            return false;
        }
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.signal(), Some(KILL), "{death:?}: {said}");
        let there = is_running(&target.guests());
        let here = guests(&dom0.state.state());
        let case = format!("{death:?} (number {number}), power cut: {power_cut}, there: {there}, here: {here:?}");
        let left_away = here.iter().any(|(name, _)| name == AWAY);
        assert!(!(there && is_running(&here)), "{case}");
        if power_cut {
            dom0.cut_power();
        }
        // A second start changes nothing any more.
        for _ in 0..2 {
            let (code, said) = dom0.run("start");
            let here = guests(&dom0.state.state());
            assert!(!(there && is_running(&here)), "it runs twice: {case}: {said}");
            let open = said.contains("NOT KNOWN");
            assert_eq!(code == 1, open, "{case}: {said}");
            assert!(there || open || is_running(&here), "it runs nowhere, and nobody says so: {case}: {said}");
            // As long as it has its name it can't have been given away.
            assert!(!open || left_away || (power_cut && !is_running(&here)), "{case}: {said}");
            if !power_cut && !left_away && !there {
                assert_eq!((code, here), (0, vec![("web".to_owned(), true)]), "{case}: {said}");
            }
        }
        assert_eq!(dom0.state.state()["violations"], json!([]), "{case}");
        assert_eq!(target.control.state()["violations"], json!([]), "{case}");
    }
    true
}

fn killed_at_every_cut(what: &str, wrong: &Wrong) {
    at_every_cut(what, CALLS, |death, number| is_cut(wrong, death, number));
}

#[test]
fn a_stop_that_is_killed_while_it_migrates() {
    killed_at_every_cut("stop that migrates", &Wrong::default());
}

#[test]
fn a_stop_that_is_killed_while_it_takes_a_guest_back() {
    killed_at_every_cut("stop that takes a guest back", &Wrong { cant_unpause: true, ..Wrong::default() });
}
