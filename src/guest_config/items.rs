//! What the languages of device items have in common: parameters between commas, and values as C reads them.
//!
//! In all of them the last value of a parameter counts. xl reads numbers from the start of a value and looks at
//! nothing else, which is worth a warning here; a number that it would cut off is an error.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::defbool;

/// How the value of a parameter is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// As it is.
    Text,
    /// One of these words of libxl, in any case. The first argument is the word for the default, if there is one.
    Word(Option<&'static str>, &'static [&'static str]),
    /// A decimal C `int`; the given one is the default.
    Int(i32),
    /// A decimal number from 0, the default, to the highest C `int`. There has to be one.
    Natural,
    /// A number from 0, the default, to this one. It may be hexadecimal or octal.
    Unsigned(u32),
    /// A number that says yes or no, in this base. No is the default.
    Flag(Base),
    /// Such a number for a `libxl_defbool`.
    Defbool(Base),
}

/// The base in which a number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Decimal.
    Ten,
    /// Hexadecimal, with or without `0x`.
    Sixteen,
    /// Decimal, hexadecimal after `0x`, or octal after `0`.
    Any,
}

/// A parameter: its name, the field of libxl's structure that it goes to, and how it is read.
pub(super) struct Parameter(pub(super) &'static str, pub(super) &'static str, pub(super) Form);

impl Parameter {
    /// The parameter of this name.
    pub(super) fn find<'t>(table: &'t [Self], name: &str) -> Option<&'t Self> {
        table.iter().find(|parameter| parameter.0 == name)
    }

    /// Reads a value into a structure. libxl's JSON leaves defaults out.
    pub(super) fn put(
        &self,
        structure: &mut Map<String, Value>,
        value: &str,
        warnings: &mut Vec<String>,
    ) -> Result<(), String> {
        match self.2.read(self.0, value, warnings)? {
            Some(read) => structure.insert(self.1.to_owned(), read),
            None => structure.remove(self.1),
        };
        Ok(())
    }
}

impl Form {
    /// Reads the value of the parameter of this name; `None` stands for the default.
    fn read(self, name: &str, value: &str, warnings: &mut Vec<String>) -> Result<Option<Value>, String> {
        Ok(match self {
            Self::Text => Some(json!(value)),
            Self::Word(default, words) => word(name, value, default, words)?.map(|word| json!(word)),
            Self::Int(default) => {
                let number = int(name, value, warnings)?;
                (number != default).then(|| json!(number))
            }
            Self::Natural => {
                let number = natural(name, value, warnings)?;
                (number != 0).then(|| json!(number))
            }
            Self::Unsigned(limit) => {
                let number = unsigned(name, value, limit, warnings)?;
                (number != 0).then(|| json!(number))
            }
            Self::Flag(base) => flag(name, value, base, warnings)?.then_some(Value::Bool(true)),
            Self::Defbool(base) => Some(defbool(flag(name, value, base, warnings)?)),
        })
    }
}

/// The parameters of an item, without the blanks before them. Empty ones don't count.
pub(super) fn parameters(item: &str) -> impl Iterator<Item = &str> {
    parts(item, ',').map(|parameter| parameter.trim_start_matches(' '))
}

/// The parts of a text between delimiters. Empty ones don't count.
pub(super) fn parts(text: &str, delimiter: char) -> impl Iterator<Item = &str> {
    text.split(delimiter).filter(|part| !part.is_empty())
}

/// The names and values of an item up to the first parameter without a value: there xl stops reading it.
pub(super) fn pairs_until_a_word<'a>(item: &'a str, warnings: &mut Vec<String>) -> Vec<(&'a str, &'a str)> {
    let mut pairs = Vec::new();
    for parameter in parameters(item) {
        match parameter.split_once('=') {
            Some(pair) => pairs.push(pair),
            None => {
                if !parameter.is_empty() {
                    warnings.push(format!("`{parameter}` has no value; it and what follows it is ignored"));
                }
                break;
            }
        }
    }
    pairs
}

/// Splits a text in two at a delimiter; neither part may be empty, except the first one since Xen 4.18. Before that,
/// delimiters at the start don't count, and a second delimiter ends the second part.
pub(super) fn split_pair<'a>(
    text: &'a str,
    delimiter: char,
    release: u32,
    warnings: &mut Vec<String>,
) -> Option<(&'a str, &'a str)> {
    if release >= 18 {
        return text.split_once(delimiter).filter(|(_, second)| !second.is_empty());
    }
    let (first, rest) = text.trim_start_matches(delimiter).split_once(delimiter)?;
    let rest = rest.trim_start_matches(delimiter);
    let second = match rest.split_once(delimiter) {
        Some((second, _)) => {
            warnings.push(format!("`{text}` is cut off at the second `{delimiter}`; not so since Xen 4.18"));
            second
        }
        None => rest,
    };
    if second.is_empty() { None } else { Some((first, second)) }
}

/// What C takes for a blank.
pub(super) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// One of libxl's words, in any case. `None` stands for the default.
pub(super) fn word(
    name: &str,
    value: &str,
    default: Option<&'static str>,
    words: &'static [&'static str],
) -> Result<Option<&'static str>, String> {
    let same = |word: &&str| word.eq_ignore_ascii_case(value);
    if default.as_ref().is_some_and(same) {
        return Ok(None);
    }
    match words.iter().copied().find(same) {
        Some(word) => Ok(Some(word)),
        None => Err(format!("`{value}` is not accepted for {name}; accepted: {}", words.join(", "))),
    }
}

/// The number at the start of a text as `strtol` reads it, if there is one, and what follows it.
pub(super) fn leading_number(text: &str, base: Base) -> (Option<i128>, &str) {
    let start = text.trim_start_matches(is_blank);
    let (negative, unsigned) = match start.as_bytes().first() {
        Some(b'-') => (true, &start[1..]),
        Some(b'+') => (false, &start[1..]),
        _ => (false, start),
    };
    let hexadecimal = match unsigned.as_bytes() {
        [b'0', b'x' | b'X', digit, ..] if base != Base::Ten && digit.is_ascii_hexdigit() => Some(&unsigned[2..]),
        _ => None,
    };
    let (radix, digits) = match (hexadecimal, base) {
        (Some(digits), _) => (16, digits),
        (None, Base::Sixteen) => (16, unsigned),
        (None, Base::Any) if unsigned.starts_with('0') => (8, unsigned),
        (None, _) => (10, unsigned),
    };
    let rest = digits.trim_start_matches(|c: char| c.is_digit(radix));
    let digits = &digits[..digits.len() - rest.len()];
    if digits.is_empty() {
        return (None, text);
    }
    // Far beyond any limit it doesn't matter which number it is.
    let number = i128::from_str_radix(digits, radix).unwrap_or(i128::MAX);
    (Some(if negative { -number } else { number }), rest)
}

/// The number that xl takes a value for.
fn number(name: &str, value: &str, base: Base, warnings: &mut Vec<String>) -> i128 {
    let (number, rest) = leading_number(value, base);
    let read = number.unwrap_or(0);
    if number.is_none() || !rest.is_empty() {
        warnings.push(format!("`{name}={value}` is taken for {read}: a number is expected"));
    }
    read
}

/// A decimal C `int`.
pub(super) fn int(name: &str, value: &str, warnings: &mut Vec<String>) -> Result<i32, String> {
    let number = number(name, value, Base::Ten, warnings);
    i32::try_from(number).map_err(|_| out_of_range(name, value, i64::from(i32::MIN)..=i64::from(i32::MAX)))
}

/// A decimal number from 0 to the highest C `int`. There has to be one.
pub(super) fn natural(name: &str, value: &str, warnings: &mut Vec<String>) -> Result<i32, String> {
    if leading_number(value, Base::Ten).0.is_none() {
        return Err(format!("`{name}={value}`: a number is expected"));
    }
    let number = int(name, value, warnings).ok().filter(|number| *number >= 0);
    number.ok_or_else(|| out_of_range(name, value, 0..=i64::from(i32::MAX)))
}

/// A number from 0 to this one, in any base.
pub(super) fn unsigned(name: &str, value: &str, limit: u32, warnings: &mut Vec<String>) -> Result<u32, String> {
    match u32::try_from(number(name, value, Base::Any, warnings)) {
        Ok(number) if number <= limit => Ok(number),
        _ => Err(out_of_range(name, value, 0..=i64::from(limit))),
    }
}

fn out_of_range(name: &str, value: &str, range: RangeInclusive<i64>) -> String {
    format!("`{name}={value}` is out of range; accepted: {} to {}", range.start(), range.end())
}

/// A number that says yes or no. In base 10 it has to be a C `int`.
fn flag(name: &str, value: &str, base: Base, warnings: &mut Vec<String>) -> Result<bool, String> {
    match base {
        Base::Ten => Ok(int(name, value, warnings)? != 0),
        _ => Ok(number(name, value, base, warnings) != 0),
    }
}

/// The error for a parameter that is in none of the tables.
pub(super) fn unknown<'a>(parameter: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<_> = known.into_iter().collect();
    format!("`{parameter}` is not known; accepted: {}", known.join(", "))
}

/// The names in a table.
pub(super) fn names(table: &[Parameter]) -> impl Iterator<Item = &str> {
    table.iter().map(|parameter| parameter.0)
}

/// Reads an item whose parameters are all in a table, each with its value.
pub(super) fn read(
    table: &[Parameter],
    item: &str,
    structure: &mut Map<String, Value>,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    parameters(item).try_for_each(|parameter| take(table, parameter, structure, warnings))
}

/// Reads a parameter that has to be in a table, with its value.
pub(super) fn take(
    table: &[Parameter],
    parameter: &str,
    structure: &mut Map<String, Value>,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    match parameter.split_once('=').and_then(|(name, value)| Some((Parameter::find(table, name)?, value))) {
        Some((known, value)) => known.put(structure, value, warnings),
        None => Err(unknown(parameter, names(table))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_numbers() {
        use Base::{Any, Sixteen, Ten};
        let table: &[(&str, Base, Option<i128>, &str)] = &[
            ("10", Ten, Some(10), ""),
            ("010", Ten, Some(10), ""),
            ("010", Any, Some(8), ""),
            ("09", Any, Some(0), "9"),
            ("0x1f", Ten, Some(0), "x1f"),
            ("0x1f", Any, Some(31), ""),
            ("0X1Fg", Sixteen, Some(31), "g"),
            ("1f", Sixteen, Some(31), ""),
            ("0x", Any, Some(0), "x"),
            ("0xg", Sixteen, Some(0), "xg"),
            (" \t\r-5 ", Ten, Some(-5), " "),
            ("+5", Ten, Some(5), ""),
            ("- 5", Ten, None, "- 5"),
            ("", Any, None, ""),
            ("ä", Any, None, "ä"),
            ("99999999999999999999999999999999999999999", Ten, Some(i128::MAX), ""),
        ];
        for (text, base, number, rest) in table {
            assert_eq!(leading_number(text, *base), (*number, *rest), "{text:?} {base:?}");
        }
    }

    #[test]
    fn values() {
        let table: &[(Form, &str, Option<Value>, usize)] = &[
            (Form::Text, "", Some(json!("")), 0),
            (Form::Text, " a=b ", Some(json!(" a=b ")), 0),
            (Form::Word(None, &["p", "c"]), "P", Some(json!("p")), 0),
            (Form::Word(Some("auto"), &["auto", "pv"]), "AUTO", None, 0),
            (Form::Int(0), "-7", Some(json!(-7)), 0),
            (Form::Int(0), "0", None, 0),
            (Form::Int(-1), "0", Some(json!(0)), 0),
            (Form::Int(0), "8z", Some(json!(8)), 1),
            (Form::Int(5), "", Some(json!(0)), 1),
            (Form::Natural, "7 ", Some(json!(7)), 1),
            (Form::Unsigned(255), "0xff", Some(json!(255)), 0),
            (Form::Unsigned(255), "x", None, 1),
            (Form::Flag(Base::Ten), "2", Some(json!(true)), 0),
            (Form::Flag(Base::Ten), "yes", None, 1),
            (Form::Flag(Base::Any), "0x10", Some(json!(true)), 0),
            (Form::Flag(Base::Any), "99999999999", Some(json!(true)), 0),
            (Form::Defbool(Base::Ten), "0", Some(json!("False")), 0),
            (Form::Defbool(Base::Any), "1", Some(json!("True")), 0),
        ];
        for (form, text, expected, warned) in table {
            let mut warnings = Vec::new();
            assert_eq!(form.read("n", text, &mut warnings).as_ref(), Ok(expected), "{form:?} {text:?}");
            assert_eq!(warnings.len(), *warned, "{form:?} {text:?}: {warnings:?}");
        }
    }

    #[test]
    fn wrong_values() {
        for (form, text, expected) in [
            (Form::Int(0), "4294967296", "`n=4294967296` is out of range; accepted: -2147483648 to 2147483647"),
            (Form::Flag(Base::Ten), "4294967296", "out of range"),
            (Form::Unsigned(255), "256", "`n=256` is out of range; accepted: 0 to 255"),
            (Form::Unsigned(u32::MAX), "-1", "out of range; accepted: 0 to 4294967295"),
            (Form::Natural, "-1", "out of range; accepted: 0 to 2147483647"),
            (Form::Natural, "x", "`n=x`: a number is expected"),
            (Form::Word(Some("unknown"), &["qemu", "linux"]), "x", "not accepted for n; accepted: qemu, linux"),
        ] {
            let error = form.read("n", text, &mut Vec::new()).expect_err(text);
            assert!(error.contains(expected), "{form:?} {text:?}: {error}");
        }
    }

    #[test]
    fn the_last_value_counts() {
        let mut structure = Map::new();
        let table = &[Parameter("a", "b", Form::Int(0))];
        read(table, "a=1,, a=2", &mut structure, &mut Vec::new()).unwrap();
        assert_eq!(Value::Object(structure.clone()), json!({ "b": 2 }));
        read(table, "a=0", &mut structure, &mut Vec::new()).unwrap();
        assert!(structure.is_empty());
        for item in ["a", "b=1", " ", "a =1", "=1"] {
            let error = read(table, item, &mut structure, &mut Vec::new()).expect_err(item);
            assert!(error.ends_with("is not known; accepted: a"), "{error}");
        }
    }

    #[test]
    fn pairs() {
        let mut warnings = Vec::new();
        assert_eq!(pairs_until_a_word("a=1,, b==2,", &mut warnings), [("a", "1"), ("b", "=2")]);
        assert_eq!(pairs_until_a_word("a=1, ,b=2", &mut warnings), [("a", "1")]);
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(pairs_until_a_word("a=1,b,c=2", &mut warnings), [("a", "1")]);
        assert_eq!(warnings, ["`b` has no value; it and what follows it is ignored"]);
    }

    #[test]
    fn pairs_by_release() {
        for (text, until_17, since_18) in [
            ("a=b", Some(("a", "b")), Some(("a", "b"))),
            ("a=b=c", Some(("a", "b")), Some(("a", "b=c"))),
            ("a=b=", Some(("a", "b")), Some(("a", "b="))),
            ("==a==b", Some(("a", "b")), Some(("", "=a==b"))),
            ("=a", None, Some(("", "a"))),
            ("a=", None, None),
            ("a", None, None),
            ("", None, None),
        ] {
            let mut warnings = Vec::new();
            assert_eq!(split_pair(text, '=', 17, &mut warnings), until_17, "{text:?}");
            assert_eq!(warnings.len(), usize::from(text.starts_with("a=b=")), "{text:?}: {warnings:?}");
            assert_eq!(split_pair(text, '=', 18, &mut Vec::new()), since_18, "{text:?}");
        }
    }
}
