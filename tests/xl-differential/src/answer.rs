//! What xl and we make of a file, and how the two differ.

use std::fmt;

use serde_json::Value;

use crate::stricter::{self, Deviation};

/// What reading a file came to.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The guest's configuration in libxl's JSON.
    Config(Value),
    /// The file is refused, with these words.
    Refused(String),
    /// Reading it ended in a signal.
    Died(String),
}

/// A value that is not the same on both sides.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    place: String,
    xl: String,
    ours: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: xl: {}; we: {}", self.place, self.xl, self.ours)
    }
}

/// What comparing two answers came to.
#[derive(Debug)]
pub enum Verdict {
    /// The same configuration.
    Same,
    /// Both refuse the file, each with its words.
    BothRefuse(String),
    /// xl takes it, and we refuse it for a reason that is on the list.
    Stricter(&'static Deviation),
    /// xl dies of what we take, which is on the list too.
    XlDies(&'static str),
    /// They differ. There is at least one difference.
    Different(Vec<Difference>),
}

/// Compares what xl and we make of the same text.
#[must_use]
pub fn compare(text: &[u8], xl: &Answer, ours: &Answer) -> Verdict {
    match (xl, ours) {
        (Answer::Config(xl), Answer::Config(ours)) => {
            let (mut xl, mut ours) = (xl.clone(), ours.clone());
            level_random_values(text, &mut xl, &mut ours);
            level_lost_values(text, &mut xl, &mut ours);
            let mut differences = Vec::new();
            walk("", Some(&xl), Some(&ours), &mut differences);
            if differences.is_empty() { Verdict::Same } else { Verdict::Different(differences) }
        }
        (Answer::Refused(xl) | Answer::Died(xl), Answer::Refused(ours)) => {
            Verdict::BothRefuse(format!("xl: {xl}; we: {ours}"))
        }
        (Answer::Died(how), Answer::Config(_)) => match stricter::deadly(text) {
            Some(what) => Verdict::XlDies(what),
            None => whole(how.clone(), "take it".to_owned()),
        },
        (_, Answer::Died(how)) => whole("goes on".to_owned(), how.clone()),
        (Answer::Config(_), Answer::Refused(why)) => match stricter::find(why) {
            Some(deviation) => Verdict::Stricter(deviation),
            None => whole("takes it".to_owned(), format!("refused: {why}")),
        },
        (Answer::Refused(why), Answer::Config(_)) => whole(format!("refused: {why}"), "take it".to_owned()),
    }
}

fn whole(xl: String, ours: String) -> Verdict {
    // In one line, also where a message repeats text of the file.
    let [xl, ours] = [xl, ours].map(|said| said.replace('\n', "\\n"));
    Verdict::Different(vec![Difference { place: "the file".to_owned(), xl, ours }])
}

/// Whether a word is somewhere in a text.
pub(crate) fn says(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window == word.as_bytes())
}

/// Makes equal what both make up anew at each reading, if both have it in the right form.
fn level_random_values(text: &[u8], xl: &mut Value, ours: &mut Value) {
    let mut level = |pointer: &str, right: fn(&Value) -> bool| {
        if let (Some(xl), Some(ours)) = (xl.pointer_mut(pointer), ours.pointer_mut(pointer)) {
            if right(xl) && right(ours) {
                *ours = xl.take();
                *xl = ours.clone();
            }
        }
    };
    if !says(text, "uuid") {
        level("/c_info/uuid", |value| value.as_str().is_some_and(|uuid| uuid.len() == 36));
    }
    if says(text, "generate") {
        let bytes = |value: &Value| {
            let byte = |value: &Value| value.as_u64().is_some_and(|byte| byte < 256);
            value.as_array().is_some_and(|bytes| bytes.len() == 16 && bytes.iter().all(byte))
        };
        level("/b_info/type.hvm/ms_vm_genid", bytes);
    }
}

/// Takes away what only one side has because of xl's two known faults in printing:
///
/// - Of `rdm` it sets both parts, also the one that the file does not have, which is then whatever was in memory.
/// - Of an item of `usbdev` without a type it prints nothing, though it has read it; we print the rest too, because
///   the JSON is all that libxl gets from us.
fn level_lost_values(text: &[u8], xl: &mut Value, ours: &mut Value) {
    if says(text, "rdm") {
        let mut places =
            vec![("/b_info/type.hvm/rdm".to_owned(), "strategy"), ("/b_info/type.hvm/rdm".to_owned(), "policy")];
        places.extend((0..len(xl, "pcidevs")).map(|i| (format!("/pcidevs/{i}"), "rdm_policy")));
        for (place, field) in places {
            // No word is a value that nobody has set.
            if xl.pointer(&place).is_some_and(|place| place.get(field) == Some(&Value::Null)) {
                drop_field(ours.pointer_mut(&place), field);
            }
            drop_if_alone(xl.pointer_mut(&place), ours.pointer(&place), field);
        }
    }
    for i in 0..len(ours, "usbdevs") {
        let place = format!("/usbdevs/{i}");
        drop_if_alone(ours.pointer_mut(&place), xl.pointer(&place), "type.hostdev");
    }
}

fn len(config: &Value, devices: &str) -> usize {
    config[devices].as_array().map_or(0, Vec::len)
}

/// Takes a field away that the other side does not have.
fn drop_if_alone(from: Option<&mut Value>, other: Option<&Value>, field: &str) {
    if other.is_some_and(|other| other.get(field).is_none()) {
        drop_field(from, field);
    }
}

fn drop_field(from: Option<&mut Value>, field: &str) {
    if let Some(from) = from.and_then(Value::as_object_mut) {
        from.remove(field);
    }
}

/// Notes the differences of two values at a place, each as far down as it is.
fn walk(place: &str, xl: Option<&Value>, ours: Option<&Value>, differences: &mut Vec<Difference>) {
    match (xl, ours) {
        (Some(Value::Object(xl)), Some(Value::Object(ours))) => {
            let join = |name: &str| if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
            for (name, value) in xl {
                walk(&join(name), Some(value), ours.get(name), differences);
            }
            for (name, value) in ours.iter().filter(|(name, _)| !xl.contains_key(*name)) {
                walk(&join(name), None, Some(value), differences);
            }
        }
        (Some(Value::Array(xl)), Some(Value::Array(ours))) if xl.len() == ours.len() => {
            for (i, (xl, ours)) in xl.iter().zip(ours).enumerate() {
                walk(&format!("{place}[{i}]"), Some(xl), Some(ours), differences);
            }
        }
        _ if xl == ours => {}
        _ => {
            let shown = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
            differences.push(Difference { place: place.to_owned(), xl: shown(xl), ours: shown(ours) });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn differences(text: &str, xl: Value, ours: Value) -> Vec<String> {
        match compare(text.as_bytes(), &Answer::Config(xl), &Answer::Config(ours)) {
            Verdict::Different(differences) => differences.iter().map(ToString::to_string).collect(),
            Verdict::Same => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_difference_is_named_with_both_values() {
        let xl = json!({ "a": { "b": 1, "c": [1, 2], "d": "x" }, "disks": [{ "vdev": "xvda" }] });
        let ours = json!({ "a": { "b": "1", "c": [1, 2, 3], "e": null }, "disks": [{ "vdev": "xvdb" }] });
        let expected = [
            "a.b: xl: 1; we: \"1\"",
            "a.c: xl: [1,2]; we: [1,2,3]",
            "a.d: xl: \"x\"; we: nothing",
            "a.e: xl: nothing; we: null",
            "disks[0].vdev: xl: \"xvda\"; we: \"xvdb\"",
        ];
        assert_eq!(differences("", xl.clone(), ours), expected);
        assert!(differences("", xl.clone(), xl).is_empty());
    }

    #[test]
    fn random_values_need_only_be_in_the_right_form() {
        let guest = |uuid: &str, id: &[u8]| json!({ "c_info": { "uuid": uuid }, "b_info": { "type.hvm": { "ms_vm_genid": id } } });
        let (a, b) = ("8f3a2c11-5d0e-4b7a-9c44-1e6b7d2f0a95", "8f3a2c11-5d0e-4b7a-9c44-1e6b7d2f0a96");
        let (x, y) = (guest(a, &[1; 16]), guest(b, &[2; 16]));
        assert!(differences("ms_vm_genid = 'generate'", x.clone(), y.clone()).is_empty());
        assert_eq!(differences("", x.clone(), y.clone()).len(), 16);
        assert_eq!(differences("uuid, generate", x.clone(), y).len(), 1);
        assert_eq!(differences("generate", x.clone(), guest("", &[2; 16])).len(), 1);
        assert_eq!(differences("generate", x, guest(b, &[2; 15])).len(), 1);
    }

    #[test]
    fn known_faults_of_printing_hide_nothing_else() {
        let rdm = |fields: Value| json!({ "b_info": { "type.hvm": { "rdm": fields } } });
        let (garbage, wrong) = (json!({ "strategy": "host", "policy": null }), json!({ "policy": "strict" }));
        let ours = || rdm(json!({ "strategy": "host" }));
        assert!(differences("rdm = 'strategy=host'", rdm(garbage.clone()), ours()).is_empty());
        assert_eq!(differences("", rdm(garbage), ours()).len(), 1);
        assert_eq!(differences("rdm", rdm(wrong), ours()).len(), 1);
        let of_pv = |policy: Value| json!({ "pcidevs": [{ "rdm_policy": policy }] });
        assert!(differences("rdm", of_pv(Value::Null), of_pv(json!("strict"))).is_empty());
        assert_eq!(differences("rdm", of_pv(json!("relaxed")), of_pv(json!("strict"))).len(), 1);
        let device = |fields: Value| json!({ "usbdevs": [fields] });
        let ours = device(json!({ "ctrl": 1, "type.hostdev": { "hostbus": 1 } }));
        assert!(differences("", device(json!({ "ctrl": 1 })), ours.clone()).is_empty());
        assert_eq!(differences("", device(json!({})), ours.clone()).len(), 1);
        assert_eq!(differences("", device(json!({ "ctrl": 1, "type.hostdev": {} })), ours).len(), 1);
    }

    #[test]
    fn what_only_one_refuses_differs_unless_we_mean_to() {
        let taken = Answer::Config(json!({}));
        let refused = |why: &str| Answer::Refused(why.to_owned());
        assert!(matches!(compare(b"", &refused("a"), &refused("b")), Verdict::BothRefuse(_)));
        assert!(matches!(compare(b"", &refused("a"), &taken), Verdict::Different(_)));
        assert!(matches!(compare(b"", &taken, &refused("not supported")), Verdict::Different(_)));
        let died = || Answer::Died("dies".to_owned());
        assert!(matches!(compare(b"", &died(), &refused("b")), Verdict::BothRefuse(_)));
        assert!(matches!(compare(b"", &died(), &taken), Verdict::Different(_)));
        assert!(matches!(compare(b"", &taken, &died()), Verdict::Different(_)));
        assert!(matches!(compare(b"pci = [ '1:0.*' ]", &died(), &taken), Verdict::XlDies(_)));
        let meant = "x.cfg:1: cap: 4294967297 is out of range; accepted: 0 to 9";
        assert!(matches!(compare(b"", &taken, &refused(meant)), Verdict::Stricter(_)));
    }
}
