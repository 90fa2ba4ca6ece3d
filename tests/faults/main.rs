//! The whole program over the fake libxl: what happens to guests when calls fail, stall or never come back.
//!
//! Where this is built along with stand-ins for the commands, the program works with one of these instead of with libxl.

/// Makes a test of a scenario, unless the first word, which is the toolstack at hand, is among those behind the scenario's
/// name.
macro_rules! unless_over {
    (libxl $scenario:ident libxl $($others:ident)*) => {};
    (xl $scenario:ident xl $($others:ident)*) => {};
    (xm $scenario:ident xm $($others:ident)*) => {};
    ($toolstack:ident $scenario:ident $other:ident $($others:ident)*) => {
        unless_over! { $toolstack $scenario $($others)* }
    };
    ($toolstack:ident $scenario:ident) => {
        #[test]
        fn $scenario() {
            super::$scenario();
        }
    };
}

/// Says which toolstack that is. A command's own tests say it themselves.
#[cfg(not(over_command))]
macro_rules! unless_over_the_one_at_hand {
    ($($scenario:tt)*) => { unless_over! { libxl $($scenario)* } };
}

/// The scenarios, and over which toolstacks they make no sense, and why.
macro_rules! scenarios {
    ($($scenario:ident $(: not over $($toolstack:ident)and+, $why:literal)?;)+) => {
        mod over_it {
            $(unless_over_the_one_at_hand! { $scenario $($($toolstack)+)? })+
        }
    };
}

#[path = "../dom0/mod.rs"]
mod dom0;
mod fake;
// The commands see to dom0's memory themselves.
#[cfg(not(over_command))]
mod memory;
// Where it makes sense, a command's own tests have it.
#[cfg(not(over_command))]
mod migrate;
#[path = "../program/mod.rs"]
mod program;
#[path = "../target/mod.rs"]
pub mod target;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use xendomains::OpenToolstack;
use xendomains::host::Host;
use xendomains::interrupt::Interrupt;
use xendomains::report::Reporter;
use xendomains::settings::ToolstackChoice;
use xendomains::toolstack::choose;
use xenlight::{Library, Release};

#[cfg(over_command)]
use crate::COMMAND;
use fake::Fake;
pub use program::Said;
use program::{libxl, program};

/// The command that the scenarios are to use instead of libxl, and the stand-in for it.
#[cfg(not(over_command))]
const COMMAND: Option<(&str, &str)> = None;

/// A limit that only what is broken reaches. A command is a process for each call, on a machine that has much to do.
fn seconds(seconds: u64) -> u64 {
    if COMMAND.is_some() { seconds * 8 } else { seconds }
}

/// How long what has a limit may take, in seconds. Over a command that is up to the machine, which has a process to start for
/// each call; there it counts that it ends.
pub fn at_most(seconds: u64) -> Duration {
    if COMMAND.is_some() { Duration::MAX } else { Duration::from_secs(seconds) }
}

/// Whether the scenarios are run over this command.
pub fn is_over(command: &str) -> bool {
    COMMAND.is_some_and(|(name, _)| name == command)
}

/// A dom0 of files, with a fake hypervisor of its own.
pub struct Dom0 {
    pub directory: TempDir,
    pub host: Host,
    pub library: Library,
    pub control: Fake,
    pub interrupt: Arc<Interrupt>,
}

/// How a run of the program ended and what it said.
pub struct Ended {
    pub code: u8,
    pub said: String,
    pub took: Duration,
}

impl Dom0 {
    /// With these running guests, and these lines in the settings file.
    pub fn new(guests: Value, settings: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let host = dom0::lay_out(directory.path(), settings);
        let path = fake_libxl::install(directory.path(), "4.17");
        // SAFETY: the fake behaves like libxl.
        let library = unsafe { Library::open_in(directory.path(), Release::new(4, 17)) }.expect("the fake opens");
        let control = Fake::new(directory.path(), &path);
        control.host(json!({ "domains": guests }));
        let interrupt = Arc::new(Interrupt::new().expect("a descriptor"));
        Self { directory, host, library, control, interrupt }
    }

    pub fn run(&self, action: &str) -> Ended {
        self.run_and_say(action, &Said::default())
    }

    /// Runs the program; what it says can be read meanwhile.
    pub fn run_and_say(&self, action: &str, said: &Said) -> Ended {
        let begun = Instant::now();
        let code = self.run_and_report(action, &said.reporter());
        let took = begun.elapsed();
        Ended { code, said: said.text(), took }
    }

    /// Runs the program, and gives its exit code.
    fn run_and_report(&self, action: &str, report: &Reporter) -> u8 {
        let interrupt = &self.interrupt;
        let words = [action];
        match COMMAND {
            None => program(&self.host, &libxl(&self.library, interrupt), &words, interrupt, report),
            Some(_) => {
                let choice = if is_over("xm") { ToolstackChoice::Xm } else { ToolstackChoice::Xl };
                let open: OpenToolstack<'_> =
                    &|_, xl_conf, verbose| Ok(choose::open(choice, &self.host, xl_conf, verbose, interrupt)?);
                program(&self.host, open, &words, interrupt, report)
            }
        }
    }

    pub fn auto(&self, name: &str) {
        dom0::add_guest(self.directory.path(), name, "");
    }

    /// Puts a guest into AUTO with a wish of its own.
    fn wish(&self, name: &str, wish: &str) {
        self.auto(name);
        let file = self.directory.path().join("auto").join(name);
        let text = fs::read_to_string(&file).expect("a file");
        fs::write(file, format!("{text}xendomains = [ \"{wish}\" ]\n")).expect("a file");
    }

    pub fn save(&self) -> PathBuf {
        self.directory.path().join("save")
    }

    /// What is in the SAVE directory, hidden files too, but for the records beside the images.
    pub fn images(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.save()) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
        names.retain(|name| !name.ends_with(".record"));
        names.sort();
        names
    }

    /// The guests that there are: name, and whether each runs (and is not suspended, shut down or paused).
    pub fn guests(&self) -> Vec<(String, bool)> {
        target::guests(&self.control.state())
    }

    /// Whether this was called for a guest.
    pub fn called(&self, call: &str, guest: &str) -> bool {
        called(&self.control.state(), call, guest)
    }

    /// No guest ran twice, or from an image that was not its last state, and libxl was not misused.
    pub fn expect_sound(&self) {
        let state = self.control.state();
        assert_eq!(state["violations"], json!([]));
        assert_eq!(state["refusals"], json!([]));
    }
}

scenarios! {
    guests_are_saved_and_come_back_exactly_once;
    one_of_eight_saves_that_fails_costs_the_others_nothing;
    one_of_eight_saves_that_stalls_costs_the_others_nothing:
        not over xm, "xend goes on with a save when nobody waits for it any more";
    a_guest_that_is_not_to_be_shut_down_runs_on_after_a_failed_save:
        not over xm, "xend goes on with a save when nobody waits for it any more";
    a_guest_that_suspends_after_the_save_was_given_up_is_resumed_too:
        not over xl and xm, "with the process that has asked it, the fake forgets that a guest was asked";
    a_guest_that_can_not_be_resumed_is_reported_and_left_alone;
    a_deaf_guest_takes_its_limit_and_the_others_do_not_wait_for_it;
    output_that_nobody_reads_holds_up_no_guest;
    a_request_that_went_unanswered_is_repeated: not over xm, "xm does not say whether a guest has heard it";
    a_guest_without_pv_drivers_gets_the_power_button: not over xm, "what such a guest gets is xend's business";
    a_guest_whose_device_model_is_dead_is_not_suspended:
        not over xl and xm, "a command asks for the configuration when it saves, out of sight";
    a_broken_restore_keeps_the_image_and_starts_nothing_over_it;
    guests_that_are_saved_at_once_have_the_time_that_they_had_one_after_the_other:
        not over xm, "xend goes on with a save when nobody waits for it any more";
    a_slow_restore_is_not_given_up_and_one_that_stands_still_is:
        not over xl and xm, "how far a command is can't be seen, so it has no limit";
    an_image_on_which_libxl_would_end_the_process_costs_only_its_own_guest:
        not over xl and xm, "each guest has a process of its own to lose";
    a_creation_that_fails_leaves_no_half_made_domain;
    what_somebody_else_is_building_is_not_stopped_and_its_image_stays;
    a_build_that_failed_costs_nobody_else_a_domain;
    a_guest_that_ran_by_hand_after_its_restore_had_failed_is_not_restored:
        not over xl and xm, "what their stand-ins save has no disks";
    what_a_start_was_building_before_it_knew_its_number_is_removed_if_nobody_builds:
        not over xl and xm, "only libxl tells whether a domain is complete";
    what_a_busy_host_had_no_time_for_is_tried_again:
        not over xm, "xend waits by itself";
    a_broken_hypervisor_connection_is_an_error_and_not_an_empty_host;
    a_start_waits_for_a_xenstored_that_is_yet_to_come:
        not over xl and xm, "a command does not tell what it lacks";
    a_disaster_in_the_middle_of_a_stop_ends_it_with_an_error: not over xm, "there is no libxl that could tell of one";
    migrations_stub_domains_and_xenstore_domains_are_not_touched: not over xm, "xend has none of them";
    told_to_end_a_stop_lets_the_guest_run_on_that_it_was_saving:
        not over xm, "xend goes on with a save when nobody waits for it any more";
    told_to_end_a_stop_lets_the_guest_run_on_that_it_was_shutting_down;
    one_of_eight_guests_broken_in_any_way_costs_the_others_nothing;
    guests_of_one_order_stop_before_those_of_the_next_begin;
    a_mistake_in_the_settings_leaves_no_guest_behind_at_a_stop;
    a_mistake_in_what_only_stop_uses_keeps_no_guest_down;
    guests_are_kept_to_the_cpus_of_xl_conf_when_they_are_made_and_when_they_come_back:
        not over xl and xm, "xl reads xl.conf itself, and xend has none";
}

fn eight() -> Value {
    (1..=8).map(|n| json!({"name": format!("g{n}")})).collect()
}

pub fn called(state: &Value, call: &str, guest: &str) -> bool {
    state["calls"].as_array().expect("calls").iter().any(|made| made["call"] == call && made["name"] == guest)
}

/// Everything but `g3` was dealt with as usual.
fn others(names: &[String]) -> Vec<String> {
    (1..=8).filter(|n| *n != 3).map(|n| format!("g{n}")).filter(|name| names.contains(name)).collect()
}

fn guests_are_saved_and_come_back_exactly_once() {
    let dom0 = Dom0::new(eight(), "");
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (0, vec![]), "{}", stop.said);
    assert_eq!(dom0.images().len(), 8);
    let start = dom0.run("start");
    assert_eq!(start.code, 0, "{}", start.said);
    assert_eq!(dom0.guests().iter().filter(|(_, runs)| *runs).count(), 8);
    assert_eq!(dom0.images(), [""; 0]);
    let again = dom0.run("start");
    assert_eq!((again.code, dom0.guests().len()), (0, 8), "{}", again.said);
    dom0.expect_sound();
}

fn one_of_eight_saves_that_fails_costs_the_others_nothing() {
    for fault in [
        json!({"call": "libxl_domain_suspend", "domain": "g3", "start_error": -3}),
        json!({"call": "libxl_domain_suspend", "domain": "g3", "error": -3, "partial_bytes": 100}),
        json!({"call": "libxl_domain_suspend", "domain": "g3", "error": -8}),
        json!({"call": "libxl_retrieve_domain_configuration", "domain": "g3", "error": -16}),
    ] {
        expect_others_saved(&Dom0::new(eight(), ""), &fault);
    }
}

fn one_of_eight_saves_that_stalls_costs_the_others_nothing() {
    let fault = json!({"call": "libxl_domain_suspend", "domain": "g3", "complete": "never", "partial_bytes": 100});
    let dom0 = Dom0::new(eight(), "");
    // The others have all the time that they need.
    dom0.wish("g3", &format!("stop_timeout={}", seconds(2)));
    expect_others_saved(&dom0, &fault);
}

/// With this fault, by which `g3` can't be saved.
fn expect_others_saved(dom0: &Dom0, fault: &Value) {
    dom0.control.script(fault.clone());
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{fault}: {}", stop.said);
    assert!(stop.said.contains("g3"), "{fault}: {}", stop.said);
    // The next step of the chain: it was shut down instead.
    assert_eq!(dom0.guests(), [], "{fault}: {}", stop.said);
    let images = dom0.images();
    assert_eq!(others(&images).len(), 7, "{fault}: {images:?}");
    assert_eq!(images.len(), 7, "nothing partial is left: {images:?}");
    assert!(stop.took < at_most(30), "{fault}: {:?}", stop.took);
    dom0.expect_sound();
}

fn a_guest_that_is_not_to_be_shut_down_runs_on_after_a_failed_save() {
    let settings = "XENDOMAINS_STOP_MAXWAIT=1\nXENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n";
    let dom0 = Dom0::new(json!([{"name": "web"}]), settings);
    dom0.control.script(json!({"call": "libxl_domain_suspend", "complete": "never", "partial_bytes": 4096}));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert_eq!(dom0.guests(), [("web".to_owned(), true)], "{}", stop.said);
    assert_eq!(dom0.images(), [""; 0]);
    dom0.expect_sound();
}

fn a_guest_that_suspends_after_the_save_was_given_up_is_resumed_too() {
    let settings = "XENDOMAINS_STOP_MAXWAIT=1\nXENDOMAINS_SHUTDOWN=\nXENDOMAINS_SHUTDOWN_ALL=\n";
    let guests = json!([{"name": "web", "guest": {"suspend_ms": 2500}}]);
    let dom0 = Dom0::new(guests, settings);
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    let took = stop.took.as_millis();
    assert!((2400..20_000).contains(&took), "waited for the suspend and no longer: {took} ms");
    assert_eq!(dom0.guests(), [("web".to_owned(), true)], "{}", stop.said);
    dom0.expect_sound();
}

fn a_guest_that_can_not_be_resumed_is_reported_and_left_alone() {
    let settings = format!("XENDOMAINS_STOP_MAXWAIT={}\n", seconds(2));
    let dom0 = Dom0::new(json!([{"name": "web"}, {"name": "db"}]), &settings);
    dom0.control.script(json!([
        {"call": "libxl_domain_suspend", "domain": "web", "error": -3},
        {"call": "libxl_domain_resume", "domain": "web", "error": -3},
    ]));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert!(stop.said.contains("web") && stop.said.contains("SUSPENDED"), "{}", stop.said);
    assert_eq!(dom0.guests(), [("web".to_owned(), false)], "db is done, web is still there: {}", stop.said);
    assert!(!dom0.called("libxl_domain_shutdown", "web"), "it can't answer a shutdown request");
    dom0.expect_sound();
}

fn a_deaf_guest_takes_its_limit_and_the_others_do_not_wait_for_it() {
    let mut guests = eight();
    guests[2]["guest"] = json!({"shutdown": "ignore"});
    let dom0 = Dom0::new(guests, "XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN_ALL=\n");
    dom0.wish("g3", "stop_timeout=1");
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert_eq!(dom0.guests(), [("g3".to_owned(), true)], "{}", stop.said);
    assert!(stop.took < at_most(10), "{:?}", stop.took);
}

/// As when the console was stopped by Ctrl-S.
fn output_that_nobody_reads_holds_up_no_guest() {
    let mut guests = eight();
    guests[2]["guest"] = json!({"shutdown": "ignore"});
    let dom0 = Dom0::new(guests, "XENDOMAINS_SAVE=\nXENDOMAINS_SHUTDOWN_ALL=\n");
    dom0.wish("g3", "stop_timeout=1");
    let (mut full, nobody) = UnixStream::pair().expect("a socket");
    full.set_nonblocking(true).expect("a socket");
    while full.write(&[b'.'; 4096]).is_ok() {}
    full.set_nonblocking(false).expect("a socket");
    let err = full.try_clone().expect("a descriptor");
    let report = Reporter::new(Box::new(full), Box::new(err));
    let begun = Instant::now();
    assert_eq!(dom0.run_and_report("stop", &report), 1);
    // The last lines are waited for, but not for ever.
    assert!(begun.elapsed() < at_most(20), "{:?}", begun.elapsed());
    assert_eq!(dom0.guests(), [("g3".to_owned(), true)]);
    // Nothing is lost if somebody reads after all.
    let reading = thread::spawn(move || {
        let mut said = String::new();
        (&nobody).read_to_string(&mut said).map(|_| said)
    });
    drop(report);
    let said = reading.join().expect("no panic").expect("text");
    assert!(said.contains("g1: shut down") && said.contains("g3: shutdown FAILED"), "{said}");
}

fn a_request_that_went_unanswered_is_repeated() {
    // The first request times out, as when the guest is still booting; the second is obeyed.
    let dom0 = Dom0::new(json!([{"name": "web"}]), "XENDOMAINS_SAVE=\n");
    dom0.control.script(json!({"call": "libxl_domain_shutdown", "nth": 1, "error": -9, "delay_ms": 50}));
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (0, vec![]), "{}", stop.said);
}

fn a_guest_without_pv_drivers_gets_the_power_button() {
    let guests = json!([{"name": "win", "type": "hvm", "guest": {"pv_drivers": false}}]);
    let dom0 = Dom0::new(guests, "XENDOMAINS_SAVE=\n");
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (0, vec![]), "{}", stop.said);
    assert!(dom0.called("libxl_send_trigger", "win"));
}

/// It could not be resumed after a failed save, and would stay suspended for ever. libxl asks the device model of an HVM
/// guest for its processors when it is asked for the guest's configuration.
fn a_guest_whose_device_model_is_dead_is_not_suspended() {
    let dom0 = Dom0::new(json!([{"name": "win", "type": "hvm"}]), "");
    let said = "Domain 1:Failed to connect to QMP socket /var/run/xen/qmp-libxl-1";
    dom0.control.script(json!({"call": "libxl_retrieve_domain_configuration", "domain": "win", "error": -3,
                               "log": [{"level": 8, "text": said}]}));
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (1, vec![]), "{}", stop.said);
    assert!(stop.said.contains("win: save FAILED") && stop.said.contains(said), "{}", stop.said);
    assert!(!dom0.called("libxl_domain_suspend", "win"));
    assert!(dom0.called("libxl_domain_shutdown", "win"));
    dom0.expect_sound();
}

fn a_broken_restore_keeps_the_image_and_starts_nothing_over_it() {
    for fault in [
        json!({"call": "libxl_domain_create_restore", "nth": 1, "error": -3}),
        json!({"call": "libxl_domain_create_restore", "nth": 1, "start_error": -6}),
        json!({"call": "libxl_domain_unpause", "nth": 1, "error": -3}),
    ] {
        let dom0 = Dom0::new(json!([{"name": "web"}, {"name": "db"}]), "XENDOMAINS_START_JOBS=1\n");
        dom0.auto("web");
        dom0.auto("db");
        assert_eq!(dom0.run("stop").code, 0);
        assert_eq!(dom0.images(), ["db", "web"]);
        dom0.control.script(fault.clone());
        let start = dom0.run("start");
        assert_eq!(start.code, 1, "{fault}: {}", start.said);
        // db was first, and failed; its image is where it was.
        assert_eq!(dom0.guests(), [("web".to_owned(), true)], "{fault}: {}", start.said);
        assert_eq!(dom0.images(), ["db"], "{fault}");
        // The next start finds nothing wrong any more.
        let again = dom0.run("start");
        assert_eq!(again.code, 0, "{fault}: {}", again.said);
        assert_eq!(dom0.guests().len(), 2);
        assert_eq!(dom0.images(), [""; 0]);
        dom0.expect_sound();
    }
}

fn guests_that_are_saved_at_once_have_the_time_that_they_had_one_after_the_other() {
    // A save takes longer than the limit, as it does on a disk that two share, and less than twice as long.
    let limit = 4;
    for (guests, saved) in [(&["web", "db"][..], true), (&["web"], false)] {
        let domains: Vec<_> = guests.iter().map(|name| json!({"name": name})).collect();
        let dom0 = Dom0::new(json!(domains), &format!("XENDOMAINS_STOP_MAXWAIT={limit}\n"));
        dom0.control.script(json!({"call": "libxl_domain_suspend", "delay_ms": limit * 1400}));
        let stop = dom0.run("stop");
        assert_eq!(dom0.guests(), [], "{}", stop.said);
        assert_eq!((stop.code, dom0.images().len()), if saved { (0, 2) } else { (1, 0) }, "{}", stop.said);
    }
}

fn a_slow_restore_is_not_given_up_and_one_that_stands_still_is() {
    let guests = json!([{"name": "web", "guest": {"payload_bytes": 1_310_720}}, {"name": "db"}]);
    let dom0 = Dom0::new(guests, "XENDOMAINS_START_MAXWAIT=1\n");
    assert_eq!(dom0.run("stop").code, 0);
    dom0.control.script(json!([
        // Twenty chunks and some more, in four times the limit.
        {"call": "libxl_domain_create_restore", "nth": 1, "domain": "web", "chunk_ms": 120},
        {"call": "libxl_domain_create_restore", "domain": "db", "partial_bytes": 4096, "complete": "never"},
    ]));
    let begun = Instant::now();
    let start = dom0.run("start");
    assert!(begun.elapsed() > Duration::from_secs(2), "it was not slow");
    assert_eq!((start.code, dom0.guests()), (1, vec![("web".to_owned(), true)]), "{}", start.said);
    assert!(start.said.contains("db: "), "{}", start.said);
    assert_eq!(dom0.images(), ["db"], "{}", start.said);
}

/// Gives an image another configuration, as if it had been damaged or made by somebody else.
fn change_image(dom0: &Dom0, name: &str, change: impl Fn(&mut Value)) {
    const LENGTHS: usize = 44;
    const TEXT: usize = 52;
    let path = dom0.save().join(name);
    let image = fs::read(&path).expect("an image");
    let word = |at: usize| u32::from_ne_bytes(image[at..at + 4].try_into().expect("four bytes"));
    let end = LENGTHS + 4 + word(LENGTHS) as usize;
    let text = &image[TEXT..TEXT + word(TEXT - 4) as usize - 1];
    let mut config = serde_json::from_slice(text).expect("libxl's JSON");
    change(&mut config);
    let text = config.to_string();
    let length = u32::try_from(text.len() + 1).expect("short");
    let words = [length + 4, length].map(u32::to_ne_bytes).concat();
    fs::write(&path, [&image[..LENGTHS], &words, text.as_bytes(), b"\0", &image[end..]].concat()).expect("a file");
}

fn an_image_on_which_libxl_would_end_the_process_costs_only_its_own_guest() {
    type Damage = fn(&mut Value);
    let kinds: [(&str, Damage); 3] = [
        ("/b_info/avail_vcpus/0", |config| config["b_info"]["avail_vcpus"] = json!([-100])),
        ("/b_info/type.", |config| {
            for kind in ["type.pv", "type.hvm"] {
                config["b_info"][kind] = json!({});
            }
        }),
        ("/disks/0/vdev", |config| config["disks"] = json!([{"format": "empty", "is_cdrom": 1}])),
    ];
    for (place, change) in kinds {
        let dom0 = Dom0::new(json!([{"name": "web"}, {"name": "db"}, {"name": "mail"}]), "");
        assert_eq!(dom0.run("stop").code, 0);
        change_image(&dom0, "db", change);
        let start = dom0.run("start");
        assert_eq!(start.code, 1, "{place}: {}", start.said);
        assert!(start.said.lines().any(|line| line.contains("db") && line.contains(place)), "{}", start.said);
        let mut guests = dom0.guests();
        guests.sort();
        assert_eq!(guests, [("mail".to_owned(), true), ("web".to_owned(), true)], "{place}: {}", start.said);
        assert_eq!(dom0.images(), ["db"], "{place}");
        dom0.expect_sound();
    }
}

fn a_creation_that_fails_leaves_no_half_made_domain() {
    // In this order.
    let dom0 = Dom0::new(json!([]), "XENDOMAINS_START_JOBS=1\n");
    for name in ["a", "b", "c"] {
        dom0.auto(name);
    }
    dom0.control.script(json!({"call": "libxl_domain_create_new", "nth": 2, "error": -3,
                               "log": [{"level": 8, "text": "no bridge xenbr7"}]}));
    let start = dom0.run("start");
    assert_eq!(start.code, 1, "{}", start.said);
    assert!(start.said.contains("b:") && start.said.contains("no bridge xenbr7"), "{}", start.said);
    assert_eq!(dom0.guests(), [("a".to_owned(), true), ("c".to_owned(), true)]);
}

fn what_a_busy_host_had_no_time_for_is_tried_again() {
    let script = "/etc/xen/scripts/block add";
    for said in [
        "domain 1 console tty: timed out".to_owned(),
        format!("killing execution of {script} because of timeout"),
        format!("{script} [217] exited with error status 1"),
    ] {
        let dom0 = Dom0::new(json!([]), "");
        dom0.auto("web");
        dom0.control.script(json!({"call": "libxl_domain_create_new", "nth": 1, "error": -3,
                                   "log": [{"level": 8, "text": said}]}));
        let start = dom0.run("start");
        assert_eq!(start.code, 0, "{}", start.said);
        let expected = format!("{said}; it is tried again after the others");
        assert!(start.said.contains(&expected), "{}", start.said);
        assert_eq!(dom0.guests(), [("web".to_owned(), true)]);
    }
}

/// As `xl create -p`, an `xl restore` under way and an incoming migration are seen by others.
fn never_run(name: &str, uuid: &str) -> Value {
    json!({"name": name, "uuid": uuid, "paused": true, "cpu_time_ns": 0, "building": true})
}

const WEB: &str = "4b1d7a52-6c2e-4f0a-9d53-1f0c7a7e0a02";

fn what_somebody_else_is_building_is_not_stopped_and_its_image_stays() {
    let dom0 = Dom0::new(json!([{"name": "web", "uuid": WEB}]), "");
    assert_eq!(dom0.run("stop").code, 0);
    dom0.control.host(json!({"domains": [never_run("web", WEB), {"name": "db"}]}));
    let stop = dom0.run("stop");
    assert_eq!((dom0.guests(), dom0.images()), (vec![("web".to_owned(), false)], vec!["db".into(), "web".into()]));
    // Only libxl tells that a domain is not complete yet; what is complete and has never run loses nothing.
    let building = COMMAND.is_none();
    assert_eq!(stop.code, u8::from(building), "{}", stop.said);
    let expected = if building { "somebody else is building it as domain" } else { "it was never let run" };
    assert!(stop.said.contains(expected), "{}", stop.said);
    let start = dom0.run("start");
    assert!(start.said.contains("web: not restored: domain"), "{}", start.said);
    assert_eq!((dom0.guests().len(), dom0.images()), (2, vec!["web".to_owned()]), "{}", start.said);
    assert!(!dom0.called("libxl_domain_unpause", "web"));
}

fn what_a_start_was_building_before_it_knew_its_number_is_removed_if_nobody_builds() {
    for (building, process, removed) in [(true, "bash", true), (true, "xl", false), (false, "bash", false)] {
        let dom0 = Dom0::new(json!([]), "");
        let mut domain = never_run("web", WEB);
        domain["building"] = building.into();
        dom0.control.host(json!({"domains": [domain]}));
        for (file, text) in [("run/".to_owned() + WEB + ".web", "\n"), ("processes/4711/comm".to_owned(), process)]
        {
            let file = dom0.directory.path().join(file);
            fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
            fs::write(file, text).expect("a file");
        }
        let start = dom0.run("start");
        let left = if removed { vec![] } else { vec![("web".to_owned(), false)] };
        assert_eq!((start.code, dom0.guests()), (u8::from(!removed), left), "{}", start.said);
        assert_eq!(start.said.contains("xl destroy 1` and start again"), !removed, "{}", start.said);
    }
}

fn a_guest_that_ran_by_hand_after_its_restore_had_failed_is_not_restored() {
    // What the disk tells is nothing in both cases.
    let disk = json!([{"vdev": "xvda", "pdev_path": "iqn", "script": "block-iscsi", "readwrite": 1}]);
    let web = |name: &str| {
        let config = json!({"c_info": {"type": "pvh", "name": name, "uuid": WEB}, "b_info": {"type.pvh": {}}, "disks": disk});
        json!({"name": name, "uuid": WEB, "config": config})
    };
    for seen in [true, false] {
        let dom0 = Dom0::new(json!([web("web")]), "");
        assert_eq!(dom0.run("stop").code, 0);
        dom0.control.script(json!({"call": "libxl_domain_create_restore", "nth": 1, "error": -3}));
        assert_eq!(dom0.run("start").code, 1);
        dom0.control.host(json!({"domains": [web("web")]}));
        if seen {
            assert_eq!(dom0.run("status").code, 1);
        }
        dom0.control.guest(json!({"domain": "web", "does": "vanish"}));
        let start = dom0.run("start");
        let (code, said) =
            if seen { (0, "its guest has run since, and was seen at") } else { (1, "`xendomains accept web`") };
        assert!(start.code == code && start.said.contains(said), "{}", start.said);
        assert_eq!((dom0.guests(), dom0.images() == ["web"]), (vec![], !seen), "{}", start.said);
    }
}

fn a_build_that_failed_costs_nobody_else_a_domain() {
    for name in ["web", "web--incoming"] {
        let dom0 = Dom0::new(json!([]), "");
        dom0::add_guest(dom0.directory.path(), "web", &format!("uuid = \"{WEB}\"\n"));
        dom0.control.script(json!({"call": "libxl_domain_create_new", "nth": 1, "error": -3}));
        let start = dom0.run("start");
        assert_eq!((start.code, dom0.guests()), (1, vec![]), "{}", start.said);
        dom0.control.host(json!({"domains": [never_run(name, WEB)]}));
        for command in ["start", "stop"] {
            let ended = dom0.run(command);
            assert_eq!(dom0.guests(), [(name.to_owned(), false)], "{command}: {}", ended.said);
        }
    }
}

fn a_broken_hypervisor_connection_is_an_error_and_not_an_empty_host() {
    let dom0 = Dom0::new(json!([{"name": "web"}]), "");
    dom0.control.script(json!({"call": "libxl_list_domain", "start_error": -3}));
    let stop = dom0.run("stop");
    // A command that can't list the domains is none that can be used.
    assert_eq!(stop.code, if COMMAND.is_some() { 5 } else { 1 }, "{}", stop.said);
    let status = dom0.run("status");
    assert_eq!(status.code, 4, "{}", status.said);
    let dom0 = Dom0::new(json!([{"name": "web"}]), "");
    dom0.control.script(json!({"call": "libxl_ctx_alloc", "start_error": -3}));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 5, "{}", stop.said);
}

fn a_start_waits_for_a_xenstored_that_is_yet_to_come() {
    let dom0 = Dom0::new(json!([]), "");
    dom0.auto("web");
    dom0.control.script(json!({"call": "libxl_ctx_alloc", "nth": 1, "start_error": -3}));
    let start = dom0.run("start");
    assert_eq!(start.code, 0, "{}", start.said);
    assert!(start.said.contains("waiting for xenstored, at most 60 s"), "{}", start.said);
    assert_eq!(dom0.guests(), [("web".to_owned(), true)]);
}

fn a_disaster_in_the_middle_of_a_stop_ends_it_with_an_error() {
    let dom0 = Dom0::new(json!([{"name": "web"}, {"name": "db"}]), "");
    dom0.control.script(json!({"call": "libxl_domain_suspend", "domain": "web", "disaster": "xenstored is gone",
                               "complete": "never"}));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert!(stop.said.contains("xenstored is gone"), "{}", stop.said);
    assert!(stop.took < at_most(30), "{:?}", stop.took);
}

fn migrations_stub_domains_and_xenstore_domains_are_not_touched() {
    let guests = json!([
        {"name": "web--migratedaway", "shutdown": 2}, {"name": "db--incoming", "paused": true},
        {"name": "Xenstore", "never_stop": true}, {"name": "win"}, {"name": "win-dm", "stubdom_of": 4},
    ]);
    let dom0 = Dom0::new(guests, "XENDOMAINS_SAVE=\n");
    let stop = dom0.run("stop");
    let left: Vec<String> = dom0.guests().into_iter().map(|(name, _)| name).collect();
    for kept in ["web--migratedaway", "db--incoming", "Xenstore", "win-dm"] {
        assert!(left.iter().any(|name| name == kept), "{kept} is gone: {left:?}\n{}", stop.said);
    }
    assert!(!left.iter().any(|name| name == "win"), "{left:?}");
}

fn told_to_end_a_stop_lets_the_guest_run_on_that_it_was_saving() {
    // What was asked for can't be taken back.
    let is_suspended = |state: &Value| state["domains"]["1"]["shutdown"] == 2;
    let fault = json!({"call": "libxl_domain_suspend", "complete": "never", "partial_bytes": 4096});
    expect_told_to_end("", &fault, is_suspended);
}

fn told_to_end_a_stop_lets_the_guest_run_on_that_it_was_shutting_down() {
    expect_told_to_end(
        "XENDOMAINS_SAVE=\n",
        &json!({"call": "libxl_domain_shutdown", "complete": "never"}),
        |_| true,
    );
}

/// With this fault, by which a stop would take for ever, and told to end when it has got so far.
fn expect_told_to_end(settings: &str, fault: &Value, so_far: impl Fn(&Value) -> bool + Sync) {
    let guests = json!([{"name": "web", "guest": {"shutdown": "ignore"}}]);
    let dom0 = Dom0::new(guests, &format!("XENDOMAINS_STOP_MAXWAIT=0\n{settings}"));
    dom0.control.script(fault.clone());
    let call = fault["call"].as_str().expect("a name");
    let stop = std::thread::scope(|scope| {
        let stop = scope.spawn(|| dom0.run("stop"));
        dom0.control.wait(|state| called(state, call, "web") && so_far(state));
        dom0.interrupt.ask();
        stop.join().expect("no panic")
    });
    assert_eq!(stop.code, 1, "{}", stop.said);
    assert!(stop.said.contains("told to end"), "{}", stop.said);
    assert_eq!(dom0.guests(), [("web".to_owned(), true)], "{}", stop.said);
    assert_eq!(dom0.images(), [""; 0]);
    assert!(stop.took < at_most(10), "{:?}", stop.took);
    dom0.expect_sound();
}

fn one_of_eight_guests_broken_in_any_way_costs_the_others_nothing() {
    let broken: [(&str, &str, Value, Value); 5] = [
        ("reboots instead", "", json!({"shutdown": "reboot"}), json!([])),
        ("crashes instead", "", json!({"shutdown": "crash"}), json!([])),
        ("crashes while it is saved", "/save", json!({"suspend": "crash"}), json!([])),
        ("ignores the suspend", "/save", json!({"suspend": "ignore", "timeout_ms": 500}), json!([])),
        (
            "can't be destroyed",
            "/save",
            json!({}),
            json!([{"call": "libxl_domain_destroy", "domain": "g3", "nth": 1, "error": -3}]),
        ),
    ];
    for (what, save, behaviour, script) in broken {
        let mut guests = eight();
        guests[2]["guest"] = behaviour;
        let dom0 = Dom0::new(guests, "");
        if save.is_empty() {
            let file = dom0.directory.path().join("settings");
            let text = fs::read_to_string(&file).expect("the settings") + "XENDOMAINS_SAVE=\n";
            fs::write(file, text).expect("a file");
        }
        dom0.control.script(script);
        let stop = dom0.run("stop");
        // A reboot or a crash is an end too; the rest is a failure that names the guest.
        let is_end = save.is_empty();
        assert_eq!(stop.code, u8::from(!is_end), "{what}: {}", stop.said);
        assert!(is_end || stop.said.contains("g3: "), "{what}: {}", stop.said);
        let others: Vec<_> = dom0.guests().into_iter().filter(|(name, _)| name != "g3").collect();
        assert_eq!(others, [], "{what}: {}", stop.said);
        assert!(stop.took < at_most(20), "{what}: {:?}", stop.took);
        dom0.expect_sound();
    }
}

fn guests_of_one_order_stop_before_those_of_the_next_begin() {
    let dom0 =
        Dom0::new(json!([{"name": "dns", "guest": {"down_ms": 20}}, {"name": "web"}]), "XENDOMAINS_SAVE=\n");
    for (name, order) in [("dns", 1), ("web", 2)] {
        dom0.wish(name, &format!("order={order}"));
    }
    let stop = dom0.run("stop");
    assert_eq!((stop.code, dom0.guests()), (0, vec![]), "{}", stop.said);
    let calls = dom0.control.state()["calls"].clone();
    let made = |call: &str, guest: &str| {
        let calls = calls.as_array().expect("calls");
        calls.iter().position(|made| made["call"] == call && made["name"] == guest)
    };
    assert!(made("libxl_domain_destroy", "web") < made("libxl_domain_shutdown", "dns"), "{calls}");
}

/// Lines of a settings file that can't be understood, each with whether start refuses to go on.
const MISTAKES: &[(&str, bool)] = &[
    ("XENDOMAINS_STOP_MAXWAIT=300s\n", false),
    ("XENDOMAINS_SYSRQ=\"seiuo\"\n", false),
    ("XENDOMAINS_SHUTDOWN=--halt --wait\n", false),
    ("XENDOMAINS_MIGRATE=\"b --ssl\"\n", false),
    ("XENDOMAINS_MIGRATE=\"b -C /nonexistent/web.cfg\"\n", false),
    ("XENDOMAINS_MIGRATE=$(hostname)\n", false),
    ("XENDOMAINS_SYSRQ=\"s e i u o\n# It's the host's last word.\n", false),
    ("XENDOMAINS_AUTO_ONLY=false\r\nXENDOMAINS_USLEEP=0\r\n", false),
    ("XENDOMAINS_RESTORE=`cat /etc/restore`\n", true),
    ("[ -e /etc/xen/other ] && . /etc/xen/other\n", true),
    ("\0\0\0", true),
];

fn a_mistake_in_the_settings_leaves_no_guest_behind_at_a_stop() {
    for (mistake, _) in MISTAKES {
        let dom0 = Dom0::new(json!([{"name": "web"}, {"name": "db"}]), mistake);
        let stop = dom0.run("stop");
        assert_eq!((stop.code, dom0.guests()), (1, vec![]), "{mistake:?}: {}", stop.said);
        assert_eq!(dom0.images(), ["db", "web"], "{mistake:?}: {}", stop.said);
        assert!(stop.said.contains("/settings:4: "), "{mistake:?}: {}", stop.said);
    }
}

fn a_mistake_in_what_only_stop_uses_keeps_no_guest_down() {
    for (mistake, refused) in MISTAKES {
        let dom0 = Dom0::new(json!([]), mistake);
        dom0.auto("web");
        let start = dom0.run("start");
        let (code, guests) = match (*refused, mistake.contains("-C")) {
            (true, _) => (6, vec![]),
            // The file is looked at when it is needed.
            (false, true) => (0, vec![("web".to_owned(), true)]),
            (false, false) => (1, vec![("web".to_owned(), true)]),
        };
        assert_eq!((start.code, dom0.guests()), (code, guests), "{mistake:?}: {}", start.said);
    }
}

fn guests_are_kept_to_the_cpus_of_xl_conf_when_they_are_made_and_when_they_come_back() {
    let dom0 = Dom0::new(json!([]), "");
    dom0.control.host(json!({"cpus": 4, "nodes": 2}));
    let at = |name: &str| dom0.directory.path().join(name);
    let conf = |text: &str| fs::write(at("xl.conf"), text).expect("a file");
    conf("vm.hvm.cpumask = \"node:1\"\n");
    dom0.auto("web");
    let text = fs::read_to_string(at("auto/web")).expect("a file") + "vcpus = 1\n";
    fs::write(at("auto/web"), text).expect("a file");
    let made = |call: &str| {
        let state = dom0.control.state();
        let calls = state["calls"].as_array().expect("calls");
        let call = calls.iter().rfind(|made| made["call"] == call).unwrap_or_else(|| panic!("{call}: {calls:?}"));
        let config = &call["args"]["config"];
        (config["b_info"]["vcpu_hard_affinity"].clone(), config["c_info"]["domid"].clone())
    };
    let start = dom0.run("start");
    assert_eq!(start.code, 0, "{}", start.said);
    assert_eq!(made("libxl_domain_create_new"), (json!([[2, 3]]), Value::Null));
    let stop = dom0.run("stop");
    assert_eq!(stop.code, 0, "{}", stop.said);
    conf("vm.hvm.cpumask = \"3\"\ndomid_policy = \"random\"\n");
    let start = dom0.run("start");
    assert_eq!(start.code, 0, "{}", start.said);
    assert_eq!(made("libxl_domain_create_restore"), (json!([[3]]), json!(4_294_967_294_u32)));
    dom0.expect_sound();
}
