//! Changes of JSON documents that keep them JSON: what libFuzzer does to bytes seldom gets past the first brace.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

/// The changes of one document, at most.
const CHANGES: u64 = 4;

/// The names of members of all documents that have been seen.
static NAMES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Numbers that follow from a seed (SplitMix64).
pub struct Random(u64);

impl Random {
    /// Those of this seed.
    pub fn new(seed: u32) -> Self {
        Self(seed.into())
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % end.max(1) as u64).unwrap_or_default()
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Changes a document in a few places.
pub fn change(document: &mut Value, random: &mut Random) {
    remember(document);
    for _ in 0..=random.below(CHANGES as usize) {
        let other = pick(document, random).clone();
        let place = pick(document, random);
        match random.below(8) {
            0 | 1 => *place = scalar(random),
            2 => near(place, random),
            3 => *place = other,
            4 => *place = nested(place.take(), random),
            5 | 6 => grow(place, other, random),
            _ => shrink(place, random),
        }
    }
}

/// Any value of a document, each as likely as the others.
fn pick<'v>(document: &'v mut Value, random: &mut Random) -> &'v mut Value {
    fn count(value: &Value) -> usize {
        1 + match value {
            Value::Array(items) => items.iter().map(count).sum(),
            Value::Object(members) => members.values().map(count).sum(),
            _ => 0,
        }
    }
    fn find<'v>(value: &'v mut Value, left: &mut usize) -> Option<&'v mut Value> {
        if *left == 0 {
            return Some(value);
        }
        *left -= 1;
        match value {
            Value::Array(items) => items.iter_mut().find_map(|item| find(item, left)),
            Value::Object(members) => members.values_mut().find_map(|member| find(member, left)),
            _ => None,
        }
    }
    let mut left = random.below(count(document));
    find(document, &mut left).expect("there are as many as were counted")
}

fn remember(value: &Value) {
    match value {
        Value::Array(items) => items.iter().for_each(remember),
        Value::Object(members) => {
            let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
            if names.len() < 4096 {
                names.extend(members.keys().cloned());
            }
            drop(names);
            members.values().for_each(remember);
        }
        _ => {}
    }
}

fn name(random: &mut Random) -> String {
    const UNIONS: [&str; 8] = [
        "type.hvm",
        "type.pv",
        "type.pvh",
        "type.invalid",
        "type.hostdev",
        "connection.pty",
        "connection.socket",
        "connection.unknown",
    ];
    let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut name = match random.below(4) {
        0 => (*random.one_of(&UNIONS)).to_owned(),
        _ => names.iter().nth(random.below(names.len())).cloned().unwrap_or_default(),
    };
    if random.below(32) == 0 {
        name.push_str("\0x");
    }
    name
}

fn scalar(random: &mut Random) -> Value {
    const NUMBERS: [i64; 20] = [
        0,
        1,
        2,
        -1,
        -8,
        -9,
        -16,
        -100,
        127,
        255,
        256,
        65_535,
        65_536,
        i32::MAX as i64,
        i32::MIN as i64,
        u32::MAX as i64,
        u32::MAX as i64 + 1,
        u32::MAX as i64 + 6,
        i64::MAX,
        i64::MIN,
    ];
    const WORDS: [&str; 24] = [
        "",
        "0",
        "-1",
        "True",
        "False",
        "<default>",
        "hvm",
        "pv",
        "pvh",
        "invalid",
        "unknown",
        "default",
        "qemu_xen",
        "qemu_xen_traditional",
        "rombios",
        "seabios",
        "xvda",
        "/bin/true",
        "00:16:3e:00:00:01",
        "c57b1d5e-7e2f-4f0b-8d7c-0d9b5c0f2f11",
        "%s%n",
        "a\0b",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    ];
    match random.below(16) {
        0..=6 => json!(*random.one_of(&NUMBERS)),
        7..=11 => json!(*random.one_of(&WORDS)),
        12 => json!("é".repeat(random.below(40))),
        13 => json!("x".repeat(random.below(5000))),
        14 => [json!(u64::MAX), json!(1.5), json!(-1e300), json!(1e17)][random.below(4)].clone(),
        _ => [Value::Null, json!(true), json!(false), json!([]), json!({})][random.below(5)].clone(),
    }
}

/// Changes a value a little.
fn near(value: &mut Value, random: &mut Random) {
    match value {
        Value::Number(number) => {
            let step = *random.one_of(&[-1, 1, -32, 32, i64::from(i32::MAX)]);
            *value = json!(number.as_i64().unwrap_or_default().wrapping_add(step));
        }
        Value::String(text) => match random.below(3) {
            0 => drop(text.pop()),
            1 => text.push('0'),
            _ => *text = text.to_uppercase(),
        },
        Value::Bool(truth) => *truth = !*truth,
        Value::Array(items) if !items.is_empty() => items.rotate_left(1),
        _ => *value = scalar(random),
    }
}

/// A value inside of others.
fn nested(mut value: Value, random: &mut Random) -> Value {
    let levels = if random.below(8) == 0 { 120 } else { 1 };
    for _ in 0..=random.below(levels) {
        value = if random.below(2) == 0 { json!([value]) } else { json!({name(random): value}) };
    }
    value
}

/// Adds items or members.
fn grow(place: &mut Value, other: Value, random: &mut Random) {
    let times = if random.below(16) == 0 { 200 } else { 1 };
    let more = if random.below(2) == 0 { other } else { scalar(random) };
    match place {
        Value::Array(items) => items.extend(std::iter::repeat_n(more, 1 + random.below(times))),
        Value::Object(members) => drop(members.insert(name(random), more)),
        _ => *place = json!([more]),
    }
}

/// Takes an item or member away.
fn shrink(place: &mut Value, random: &mut Random) {
    match place {
        Value::Array(items) if !items.is_empty() => drop(items.remove(random.below(items.len()))),
        Value::Object(members) => {
            if let Some(name) = members.keys().nth(random.below(members.len())).cloned() {
                members.remove(&name);
            }
        }
        _ => *place = Value::Null,
    }
}
