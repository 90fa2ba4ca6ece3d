//! What of the host's hardware a guest may use directly: `ioports`, `irqs`, `iomem`, and colors of the last cache.

use serde_json::{Map, Value, json};

use super::mapping::Mapping;
use super::table::{Field, Place};
use super::{Error, scan};

/// More cache colors than any host has.
const COLOR_LIMIT: u64 = 1 << 16;

/// Reads each item of a list.
fn each<T>(m: &mut Mapping<'_>, key: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Error> {
    let items = m.keys.texts(key)?.unwrap_or_default();
    let read = |item: &String| read(item).map_err(|why| m.keys.error(key, format!("in `{item}`: {why}")));
    items.iter().map(read).collect()
}

/// Sets a field to a list, unless the list is empty.
fn put_list(m: &mut Mapping<'_>, key: &'static str, items: Vec<Value>) {
    if !items.is_empty() {
        m.put(Field(Place::Build, key), items);
    }
}

/// A structure of libxl's JSON, which leaves out fields that are zero.
fn structure(fields: &[(&str, u64)]) -> Value {
    let fields = fields.iter().filter(|(_, value)| *value != 0);
    Value::Object(fields.map(|(name, value)| ((*name).to_owned(), json!(value))).collect::<Map<_, _>>())
}

/// `ioports`: hexadecimal numbers and ranges.
pub(super) fn ioports(m: &mut Mapping<'_>) -> Result<(), Error> {
    const KEY: &str = "ioports";
    let ranges = each(m, KEY, |item| {
        let (first, rest) = port(item)?;
        let Some(last) = rest.strip_prefix('-') else {
            let odd = (!rest.is_empty()).then(|| format!("in `{item}`: `{rest}` is ignored"));
            return Ok((first, first, odd));
        };
        match port(last)? {
            (last, "") if last >= first => Ok((first, last, None)),
            (_, "") => Err("the second number is lower than the first".to_owned()),
            _ => Err(scan::NOT_A_NUMBER.to_owned()),
        }
    })?;
    for odd in ranges.iter().filter_map(|(.., odd)| odd.as_ref()) {
        m.keys.warn(KEY, odd);
    }
    let range = |(first, last, _)| structure(&[("first", first), ("number", last - first + 1)]);
    put_list(m, KEY, ranges.into_iter().map(range).collect());
    Ok(())
}

/// The number of a port at the start of a text, and what follows it.
fn port(text: &str) -> Result<(u64, &str), &'static str> {
    scan::number(text, 16).and_then(
        |(port, rest)| {
            if port < u64::from(u32::MAX) { Ok((port, rest)) } else { Err(scan::TOO_BIG) }
        },
    )
}

/// `irqs`: decimal numbers.
pub(super) fn irqs(m: &mut Mapping<'_>) -> Result<(), Error> {
    const KEY: &str = "irqs";
    let irqs = each(m, KEY, |item| match scan::whole_number(item, 10)? {
        irq if irq < u64::from(u32::MAX) => Ok(json!(irq)),
        _ => Err(scan::TOO_BIG.to_owned()),
    })?;
    put_list(m, KEY, irqs);
    Ok(())
}

/// `iomem`: `START,COUNT[@GUEST_START]`, numbers of pages, hexadecimal.
pub(super) fn iomem(m: &mut Mapping<'_>) -> Result<(), Error> {
    const KEY: &str = "iomem";
    let ranges = each(m, KEY, |item| {
        let (start, rest) = scan::number(item, 16)?;
        let rest = rest.strip_prefix(',').ok_or("`,` and a number are expected behind the first number")?;
        let (number, rest) = scan::number(rest, 16)?;
        let guest = match rest.strip_prefix('@') {
            Some(guest) => Some(scan::whole_number(guest, 16)?),
            None if rest.is_empty() => None,
            None => return Err(scan::NOT_A_NUMBER.to_owned()),
        };
        let mut range = structure(&[("start", start), ("number", number)]);
        // libxl has its largest number stand for "the same place".
        if let Some(guest) = guest.filter(|&guest| guest != u64::MAX) {
            range["gfn"] = json!(guest);
        }
        Ok(range)
    })?;
    put_list(m, KEY, ranges);
    Ok(())
}

/// `llc_colors`: decimal numbers and ranges.
pub(super) fn llc_colors(m: &mut Mapping<'_>) -> Result<(), Error> {
    const KEY: &str = "llc_colors";
    let ranges = each(m, KEY, |item| {
        let (first, last) = super::cpu_set::range(item)?;
        if last >= COLOR_LIMIT { Err(scan::TOO_BIG.to_owned()) } else { Ok(first..=last) }
    })?;
    let colors: Vec<_> =
        ranges.into_iter().flatten().take(COLOR_LIMIT as usize + 1).map(|color| json!(color)).collect();
    if colors.len() > COLOR_LIMIT as usize {
        return Err(m.keys.error(KEY, "these are more colors than any host has"));
    }
    put_list(m, KEY, colors);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::super::{GuestConfig, XenHost};
    use super::*;

    fn read(more: &str) -> Result<(Value, Vec<String>), String> {
        let source = format!("name='g'; kernel='/k'\n{more}\n");
        let guest = GuestConfig::parse(Path::new("t.cfg"), source.as_bytes(), &XenHost::default());
        let guest = guest.map_err(|error| error.to_string())?;
        Ok((guest.json["b_info"].clone(), guest.warnings.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn what_is_given() {
        for (key, value, expected) in [
            (
                "ioports",
                "['3f8', '0x2F8-2ff', 60]",
                json!([{ "first": 0x3f8, "number": 1 }, { "first": 0x2f8, "number": 8 }, { "first": 0x60, "number": 1 }]),
            ),
            ("ioports", "['0']", json!([{ "number": 1 }])),
            ("ioports", "[]", Value::Null),
            ("irqs", "[5, '0', ' +7']", json!([5, 0, 7])),
            (
                "iomem",
                "['fd,1', '0xa0000,20@a1', '0,0@0']",
                json!([{ "start": 0xfd, "number": 1 }, { "start": 0xa_0000, "number": 0x20, "gfn": 0xa1 }, { "gfn": 0 }]),
            ),
            ("iomem", "['ffffffffffffffff,1@ffffffffffffffff']", json!([{ "start": u64::MAX, "number": 1 }])),
            ("llc_colors", "['1-3', 7, '2']", json!([1, 2, 3, 7, 2])),
        ] {
            let (build, warnings) = read(&format!("{key}={value}")).expect(value);
            assert_eq!((&build[key], warnings), (&expected, vec![]), "{value}");
        }
        let (build, warnings) = read("ioports=['3f8 uart']").unwrap();
        assert_eq!(build["ioports"], json!([{ "first": 0x3f8, "number": 1 }]));
        assert_eq!(warnings, ["t.cfg:2: ioports: in `3f8 uart`: ` uart` is ignored"]);
    }

    #[test]
    fn mistakes() {
        for (more, words) in [
            ("ioports=['x']", "t.cfg:2: ioports: in `x`: not a number"),
            ("ioports=['2-1']", "lower than the first"),
            ("ioports=['1-2x']", "not a number"),
            ("ioports=['ffffffff']", "too big"),
            ("ioports=[['1']]", "item 1 of the list is a list"),
            ("irqs=['5-6']", "not a number"),
            ("irqs=[4294967295]", "too big"),
            ("iomem=['1']", "`,` and a number are expected"),
            ("iomem=['1,2@']", "not a number"),
            ("iomem=['1,2x']", "not a number"),
            ("iomem=['1,10000000000000000']", "too big"),
            ("llc_colors=['3-1']", "lower than the first"),
            ("llc_colors=['0-65536']", "too big"),
            ("llc_colors=['0-65535','0']", "more colors than any host has"),
        ] {
            let error = read(more).expect_err(more);
            assert!(error.contains(words), "{more}: {error}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(key in "ioports|irqs|iomem|llc_colors", item in r"[0-9a-fx,@ +-]{0,20}") {
            let _ = read(&format!("{key}=['{item}']"));
        }
    }
}
