//! The scenarios of the program over libxl, over the stand-in for `xl`.

macro_rules! unless_over_the_one_at_hand {
    ($($scenario:tt)*) => { unless_over! { xl $($scenario)* } };
}

// Some of it only scenarios use that make no sense over xl.
#[allow(dead_code)]
#[macro_use]
#[path = "../../faults/main.rs"]
mod scenarios;
#[allow(dead_code)]
#[path = "../../faults/migrate.rs"]
mod migrate;

use scenarios::{Dom0, Ended, Said, at_most, called, is_over, target};
use serde_json::json;

/// The command, and the stand-in for it.
const COMMAND: Option<(&str, &str)> = Some(("xl", env!("CARGO_BIN_EXE_xl-stand-in")));

#[test]
fn there_is_no_monitor() {
    let dom0 = Dom0::new(json!([]), "");
    dom0.auto("web");
    let start = dom0.run("start");
    assert_eq!(start.code, 0, "{}", start.said);
    let status = dom0.run("status");
    assert!(status.code == 0 && !status.said.contains("nobody"), "{}", status.said);
    let monitor = dom0.run("monitor");
    assert_eq!(monitor.code, 1, "{}", monitor.said);
    assert!(monitor.said.contains("no monitor is needed"), "{}", monitor.said);
}
