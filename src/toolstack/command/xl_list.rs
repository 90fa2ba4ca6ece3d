//! What `xl list -v` and `xl list -l` print.
//!
//! The JSON of `-l` has each domain's configuration, and not its state; that stands in the table of `-v`, whose columns
//! are the same in every release from 4.2 on. A table is read from the right, since the name on the left may have
//! anything in it; names are taken from the JSON.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::toolstack::{Domid, ShutdownReason, State};

/// A line of the table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// As it is printed: blanks at its end are lost.
    pub(super) name: Option<String>,
    pub(super) domid: Domid,
    pub(super) uuid: Uuid,
    pub(super) memory_kib: u64,
    pub(super) vcpus: u32,
    pub(super) state: State,
    pub(super) cpu_time: Duration,
}

/// What xl prints for a name that is not there.
const NO_NAME: &str = "(null)";

/// How the table begins.
const TITLE: &str = "Name ";

/// Reads the table of `xl list -v`.
pub(super) fn table(text: &str) -> Result<Vec<Row>, String> {
    let mut rows: Vec<Row> = Vec::new();
    let mut lines = text.lines();
    match lines.next() {
        Some(title) if title.starts_with(TITLE) => {}
        other => return Err(format!("no table of domains, but {:?}", other.unwrap_or_default())),
    }
    // A name may have line breaks in it.
    let mut begun = String::new();
    for line in lines {
        let whole = format!("{begun}{line}");
        match row(&whole) {
            Some(row) => {
                if rows.iter().any(|other| other.domid == row.domid) {
                    return Err(format!("two lines for domain {}", row.domid));
                }
                rows.push(row);
                begun.clear();
            }
            None => begun = whole + "\n",
        }
    }
    if begun.is_empty() { Ok(rows) } else { Err(format!("a line that can't be read: {:?}", begun.trim_end())) }
}

fn row(line: &str) -> Option<Row> {
    let mut rest = line;
    let mut last = || {
        let (before, word) = rest.trim_end().rsplit_once(char::is_whitespace)?;
        rest = before;
        Some(word)
    };
    // Behind the UUID come the reason of a shutdown and a security label, which may be of several words.
    let uuid = std::iter::repeat_with(&mut last).take(8).flatten().find_map(|word| Uuid::try_parse(word).ok())?;
    let cpu_time = Duration::try_from_secs_f64(last()?.parse().ok()?).ok()?;
    let state = state(last()?)?;
    let vcpus = last()?.parse().ok()?;
    let memory_kib = last()?.parse::<u64>().ok()?.checked_mul(1024)?;
    // The number is printed over five places behind a blank, the name over forty before that.
    let (name, domid) = rest.trim_end().rsplit_once(' ')?;
    let domid = domid.parse().ok()?;
    let name = Some(name.trim_end_matches(' ')).filter(|name| *name != NO_NAME).map(str::to_owned);
    Some(Row { name, domid, uuid, memory_kib, vcpus, state, cpu_time })
}

/// Six letters or dashes: running, blocked, paused, shut down, why, dying.
fn state(letters: &str) -> Option<State> {
    let flags: [u8; 6] = letters.as_bytes().try_into().ok()?;
    let flag = |place: usize, letter: u8| match flags[place] {
        b'-' => Some(false),
        found => (found == letter).then_some(true),
    };
    let (_, _) = (flag(0, b'r')?, flag(1, b'b')?);
    let (paused, down, dying) = (flag(2, b'p')?, flag(3, b's')?, flag(5, b'd')?);
    let why = match flags[4] {
        b'-' => ShutdownReason::Poweroff,
        b'r' => ShutdownReason::Reboot,
        b's' => ShutdownReason::Suspend,
        b'c' => ShutdownReason::Crash,
        b'w' => ShutdownReason::Watchdog,
        b'S' => ShutdownReason::SoftReset,
        b'?' => ShutdownReason::Other(-1),
        _ => return None,
    };
    Some(match (dying, down, paused) {
        (true, ..) => State::Dying,
        (false, true, _) => State::Shutdown(why),
        (false, false, true) => State::Paused,
        (false, false, false) => State::Running,
    })
}

/// Reads the JSON of `xl list -l`: the configurations of all domains that have one.
pub(super) fn configurations(text: &[u8]) -> Result<HashMap<Domid, Value>, String> {
    let start = text.iter().find(|byte| !byte.is_ascii_whitespace());
    if start == Some(&b'(') {
        return Err("it is not JSON: xl.conf has output_format=\"sxp\", which must be \"json\"".to_owned());
    }
    // Names are printed as they are, in whatever encoding the admin has.
    let list: Vec<Value> = serde_json::from_str(&String::from_utf8_lossy(text))
        .map_err(|error| format!("it is not a list in JSON: {error}"))?;
    list.into_iter()
        .map(|mut domain| {
            let domid = domain["domid"].as_u64().and_then(|domid| Domid::try_from(domid).ok());
            let domid = domid.ok_or("a domain without a number")?;
            Ok((domid, domain["config"].take()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const UUID: &str = "0f5a3d0e-9c3e-4a0d-8a53-6f6a1d0c7b11";

    fn title() -> String {
        "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            Reason-Code\tSecurity Label\n".to_owned()
    }

    /// As xl prints it.
    fn line(name: &str, domid: u32, state: &str) -> String {
        let (reason, label) = if &state[3..4] == "s" { ("2", "system_u:system_r:domU_t") } else { ("-", "-") };
        format!(
            "{name:<40} {domid:5} {:5} {:5}     {state}  {:8.1} {UUID} {reason:>8} {label:>16}\n",
            512, 2, 12.3
        )
    }

    fn only(text: &str) -> Row {
        let mut rows = table(&(title() + text)).expect("a table");
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.remove(0)
    }

    #[test]
    fn a_line_has_what_json_lacks() {
        let expected = Row {
            name: Some("web".into()),
            domid: 7,
            uuid: Uuid::try_parse(UUID).expect("a UUID"),
            memory_kib: 512 << 10,
            vcpus: 2,
            state: State::Running,
            cpu_time: Duration::from_secs_f64(12.3),
        };
        assert_eq!(only(&line("web", 7, "-b----")), expected);
    }

    #[test]
    fn states() {
        use ShutdownReason as Why;
        for (letters, expected) in [
            ("r-----", State::Running),
            ("------", State::Running),
            ("--p---", State::Paused),
            ("---s--", State::Shutdown(Why::Poweroff)),
            ("---sr-", State::Shutdown(Why::Reboot)),
            ("--pss-", State::Shutdown(Why::Suspend)),
            ("---sc-", State::Shutdown(Why::Crash)),
            ("---sw-", State::Shutdown(Why::Watchdog)),
            ("---sS-", State::Shutdown(Why::SoftReset)),
            ("---s?-", State::Shutdown(Why::Other(-1))),
            ("--ps-d", State::Dying),
        ] {
            assert_eq!(only(&line("web", 1, letters)).state, expected, "{letters}");
        }
        for letters in ["r----", "x-----", "---sx-", "r------", "R-----"] {
            assert_eq!(state(letters), None, "{letters}");
        }
    }

    #[test]
    fn odd_names() {
        let long = "n".repeat(60);
        for name in ["my guest", "1 2 3", "line\nbreak", "a\nb\nc", "Name  x", "größer", &long, "-b---- 1.0"] {
            assert_eq!(only(&line(name, 3, "-b----")).name.as_deref(), Some(name));
        }
        assert_eq!(only(&line("(null)", 3, "--ps-d")).name, None);
        assert_eq!(only(&line("", 3, "-b----")).name.as_deref(), Some(""));
    }

    #[test]
    fn what_is_no_table_is_an_error() {
        for text in ["", "xl: cannot open", "Error: Unable to connect to xend"] {
            assert!(table(text).is_err(), "{text}");
        }
        assert!(table(&(title() + "web 7\n")).is_err());
        // One that tries to look like two.
        let evil = format!("x\n{}y", line("dom", 1, "-b----"));
        let text = title() + &line("web", 1, "-b----") + &line(&evil, 2, "-b----");
        assert!(table(&text).is_err());
        assert_eq!(table(&title()), Ok(vec![]));
    }

    #[test]
    fn configurations_are_known_by_number() {
        let text = json!([{"domid": 0, "config": {}}, {"domid": 3, "config": {"c_info": {"name": "web"}}}]);
        let found = configurations(text.to_string().as_bytes()).expect("JSON");
        assert_eq!(found[&3]["c_info"]["name"], "web");
        assert_eq!(found.len(), 2);
        let error = configurations(b"(domain\n\t(domid 3)\n)").expect_err("SXP");
        assert!(error.contains("output_format"), "{error}");
        let found =
            configurations(b"[{\"domid\": 3, \"config\": {\"c_info\": {\"name\": \"w\xe4b\"}}}]").expect("JSON");
        assert_eq!(found[&3]["c_info"]["name"], "w\u{fffd}b");
        for text in ["", "{", "{}", "[{\"domid\": -1}]", "[1]", "[{\"config\": {}}]"] {
            assert!(configurations(text.as_bytes()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,200}") {
            let _ = table(&text);
            let _ = table(&(title() + &text));
            let _ = configurations(text.as_bytes());
        }

        #[test]
        fn any_name_in_one_line_comes_back(name in "[^\\s][^\\n\\r\u{b}\u{c}\u{85}\u{2028}\u{2029}]{0,50}") {
            let name = name.trim_end();
            prop_assume!(name != NO_NAME);
            let text = title() + &line(name, 9, "-b----");
            let rows = table(&text).expect("a table");
            prop_assert_eq!(rows[0].name.as_deref(), Some(name));
        }
    }
}
