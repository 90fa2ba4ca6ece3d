//! The scenarios of the program over libxl, over the stand-in for `xm`, and what there is only with xm.

use std::fs;

use scenarios::Dom0;
use serde_json::json;

macro_rules! unless_over_the_one_at_hand {
    ($($scenario:tt)*) => { unless_over! { xm $($scenario)* } };
}

// Some of it only scenarios use that make no sense over xm: among them all of `migrate`, since xend moves guests itself, to
// another xend, by a protocol of its own.
#[allow(dead_code)]
#[path = "../../faults/main.rs"]
mod scenarios;

/// The command, and the stand-in for it.
const COMMAND: Option<(&str, &str)> = Some(("xm", env!("CARGO_BIN_EXE_xm-stand-in")));

#[test]
fn a_file_that_is_a_program_is_run_by_xm() {
    let dom0 = Dom0::new(json!([]), "");
    let file = dom0.directory.path().join("auto/computed");
    let kernel = dom0.directory.path().join("type");
    let program = format!("import os\nname = 'comp' + \"uted\"\nkernel = '{}'\nmemory = 128\n", kernel.display());
    fs::write(&file, program).expect("a file");
    let start = dom0.run("start");
    assert_eq!((start.code, dom0.guests()), (0, vec![("computed".to_owned(), true)]), "{}", start.said);
    // It is known again: it is not started twice, and is one of AUTO.
    let again = dom0.run("start");
    assert_eq!((again.code, dom0.guests().len()), (0, 1), "{}", again.said);
    fs::write(&file, "name = undefined + 'x'\n").expect("a file");
    let start = dom0.run("start");
    assert_eq!(start.code, 1, "{}", start.said);
    assert!(
        start.said.contains("auto/computed: ") && start.said.contains("name is not defined"),
        "{}",
        start.said
    );
    dom0.expect_sound();
}

#[test]
fn a_domain_that_is_only_defined_is_not_there() {
    let dom0 = Dom0::new(json!([{"name": "web"}]), "");
    dom0.auto("defined");
    let managed =
        "(domain\n    (uuid 52da5902-fa44-ffeb-1b9f-e595b0b25a5f)\n    (name defined)\n    (status 0)\n)\n";
    fs::write(dom0.directory.path().join("managed"), managed).expect("a file");
    let status = dom0.run("status");
    assert_eq!(status.code, 1, "{}", status.said);
    assert!(status.said.contains(" xend "), "who watches it: {}", status.said);
    let start = dom0.run("start");
    assert_eq!((start.code, dom0.guests().len()), (0, 2), "{}", start.said);
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (0, vec![]), "{}", stop.said);
    assert_eq!(dom0.images(), ["defined", "web"]);
    dom0.expect_sound();
}

#[test]
fn odd_names_stay_what_they_are() {
    let names = ["my guest", "it's", "(a) b", "ä#ö"];
    let guests = names.iter().map(|name| json!({ "name": name })).collect();
    let dom0 = Dom0::new(guests, "");
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (0, vec![]), "{}", stop.said);
    let start = dom0.run("start");
    assert_eq!(start.code, 0, "{}", start.said);
    let running: std::collections::BTreeSet<_> = dom0.guests().into_iter().map(|(name, _)| name).collect();
    assert_eq!(running, names.map(str::to_owned).into());
    dom0.expect_sound();
}

#[test]
fn an_image_that_a_killed_stop_did_not_name_is_taken_up() {
    let dom0 = Dom0::new(json!([{"name": "web"}]), "");
    assert_eq!(dom0.run("stop").code, 0);
    // As if it had been killed before the image got its name.
    let save = dom0.save();
    fs::rename(save.join("web"), save.join(".web.0123456789ab.saving")).expect("a file");
    let start = dom0.run("start");
    assert_eq!((start.code, dom0.guests()), (0, vec![("web".to_owned(), true)]), "{}", start.said);
    assert!(start.said.contains("an earlier stop was killed"), "{}", start.said);
    assert_eq!(dom0.images(), [""; 0]);
    dom0.expect_sound();
}

#[test]
fn a_guest_whose_save_xend_may_still_be_at_is_left_alone_with_its_file() {
    let dom0 = Dom0::new(json!([{"name": "web"}]), "XENDOMAINS_STOP_MAXWAIT=2\n");
    dom0.control.script(json!({"call": "libxl_domain_suspend", "complete": "never", "partial_bytes": 100}));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert_eq!(dom0.guests(), [("web".to_owned(), false)], "{}", stop.said);
    assert!(stop.said.contains("xend may still be at it"), "{}", stop.said);
    let images = dom0.images();
    assert!(matches!(&images[..], [one] if one.ends_with(".saving")), "{images:?}");
    // Neither start nor stop takes it away from xend.
    dom0.run("start");
    assert_eq!(dom0.images(), images);
}

#[test]
fn a_guest_that_was_to_become_another_one_is_saved_instead() {
    let dom0 = Dom0::new(json!([{"name": "web"}]), "");
    dom0.auto("web");
    let settings = &dom0.host.settings_files[0];
    let file = dom0.directory.path().join("auto/web");
    let text = fs::read_to_string(settings).expect("a file");
    fs::write(settings, format!("{text}XENDOMAINS_MIGRATE='far -C {}'\n", file.display())).expect("a file");
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (1, vec![]), "{}", stop.said);
    assert!(stop.said.contains("-C FILE is for xl"), "{}", stop.said);
    assert_eq!(dom0.images(), ["web"]);
    dom0.expect_sound();
}
