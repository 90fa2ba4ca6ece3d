//! Typed access to the settings of one file, with xl's rules for what is a warning and what is an error.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::syntax::{Document, Setting, Value};
use super::{Diagnostic, Error};

/// How a setting reads as a number.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// The key is not set.
    Absent,
    /// It is set to something else.
    Not(&'static str),
    /// It is this number.
    Is(i64),
}

/// The settings of a file, and the warnings that reading them gave.
#[derive(Debug)]
pub(super) struct Keys {
    path: PathBuf,
    document: Document,
    warnings: Vec<Diagnostic>,
}

impl Keys {
    /// Reads the text of a file.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self, Error> {
        let document = Document::parse(text).map_err(|error| Error::Syntax {
            path: path.to_owned(),
            line: error.line,
            column: error.column,
            message: error.message,
        })?;
        Ok(Self { path: path.to_owned(), document, warnings: Vec::new() })
    }

    /// All settings.
    pub(super) fn settings(&self) -> &[Setting] {
        self.document.settings()
    }

    /// The value of a key, whatever it is.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.document.get(key).map(|setting| &setting.value)
    }

    /// What was worth a warning.
    pub(super) fn into_warnings(self) -> Vec<Diagnostic> {
        self.warnings
    }

    /// An error about this key, or about its absence.
    pub(super) fn error(&self, key: &str, message: impl Into<String>) -> Error {
        let (path, key, message) = (self.path.clone(), key.to_owned(), message.into());
        match self.document.get(&key) {
            Some(setting) => Error::Key { path, line: setting.line, key, message },
            None => Error::Missing { path, key, message },
        }
    }

    /// Notes a warning about a key, once.
    pub(super) fn warn(&mut self, key: &str, message: impl std::fmt::Display) {
        let line = self.document.get(key).map(|setting| setting.line);
        let warning = Diagnostic { path: self.path.clone(), line, message: format!("{key}: {message}") };
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// A single value, as text. A list gives a warning and counts as not set.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, Error> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::List(_)) => {
                self.warn(key, "a single value is expected, not a list; it is ignored");
                Ok(None)
            }
            Some(Value::Text(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => Err(self.error(key, "the value is not UTF-8 text")),
            },
        }
    }

    /// Whether and how a key reads as a number, without a warning.
    pub(super) fn as_number(&self, key: &str) -> Number {
        match self.document.get(key) {
            None => Number::Absent,
            Some(Setting { value: Value::List(_), .. }) => Number::Not("a number is expected, not a list"),
            Some(Setting { added: true, .. }) => Number::Not("`+=` can't be used with numbers"),
            Some(Setting { value: Value::Text(text), .. }) => match parse_long(text) {
                Ok(number) => Number::Is(number),
                Err(why) => Number::Not(why),
            },
        }
    }

    /// A number. Anything else gives a warning and counts as not set.
    pub(super) fn number(&mut self, key: &str) -> Option<i64> {
        match self.as_number(key) {
            Number::Absent => None,
            Number::Is(number) => Some(number),
            Number::Not(why) => {
                self.warn(key, format_args!("{why}; it is ignored"));
                None
            }
        }
    }

    /// A number that must be in this range. Outside of it is an error: xl would cut off the upper bits.
    pub(super) fn number_in(&mut self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Error> {
        match self.number(key) {
            Some(number) if !range.contains(&number) => Err(self.out_of(key, number, &range)),
            other => Ok(other),
        }
    }

    /// A number in this range, where xl takes anything else for an error.
    pub(super) fn strict_number(&self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, Error> {
        match self.as_number(key) {
            Number::Absent => Ok(None),
            Number::Is(number) if range.contains(&number) => Ok(Some(number)),
            Number::Is(number) => Err(self.out_of(key, number, &range)),
            Number::Not(why) => Err(self.error(key, why)),
        }
    }

    fn out_of(&self, key: &str, number: i64, range: &RangeInclusive<i64>) -> Error {
        let message = format!("{number} is out of range; accepted: {} to {}", range.start(), range.end());
        self.error(key, message)
    }

    /// A yes or no, written as a number.
    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        self.number(key).map(|number| number != 0)
    }

    /// A list. A single value gives a warning and counts as not set.
    pub(super) fn list(&mut self, key: &str) -> Option<Vec<Value>> {
        match self.value(key) {
            None => None,
            Some(Value::List(values)) => Some(values.clone()),
            Some(Value::Text(_)) => {
                self.warn(key, "a list is expected, not a single value; it is ignored");
                None
            }
        }
    }

    /// A list of strings. A single value gives a warning and counts as not set.
    pub(super) fn texts(&mut self, key: &str) -> Result<Option<Vec<String>>, Error> {
        match self.list(key) {
            Some(values) => self.strings(key, "the list", values).map(Some),
            None => Ok(None),
        }
    }

    /// The values of this list, which all have to be strings.
    pub(super) fn strings(&self, key: &str, list: &str, values: Vec<Value>) -> Result<Vec<String>, Error> {
        let mut texts = Vec::with_capacity(values.len());
        for (i, value) in values.into_iter().enumerate() {
            let wrong = |what| self.error(key, format!("item {} of {list} {what}", i + 1));
            match value {
                Value::List(_) => return Err(wrong("is a list; a string is expected")),
                Value::Text(bytes) => {
                    texts.push(String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8 text"))?);
                }
            }
        }
        Ok(texts)
    }
}

/// Reads a C `long` as `strtol` with base 0 does, all of the text: 0x is hexadecimal, a leading 0 octal.
fn parse_long(text: &[u8]) -> Result<i64, &'static str> {
    const NOT: &str = "not a valid number";
    let text = std::str::from_utf8(text).map_err(|_| NOT)?;
    let text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(base)) {
        return Err(NOT);
    }
    let number = i128::from_str_radix(digits, base).map_err(|_| "the number is too big")?;
    i64::try_from(if negative { -number } else { number }).map_err(|_| "the number is too big")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(source: &str) -> Keys {
        Keys::parse(Path::new("t.cfg"), source.as_bytes()).unwrap()
    }

    #[test]
    fn numbers() {
        let table: &[(&str, Option<i64>)] = &[
            ("10", Some(10)),
            ("010", Some(8)),
            ("09", None),
            ("0x1f", Some(31)),
            ("'0xFF'", Some(255)),
            ("'0XfF'", Some(255)),
            ("0x", None),
            ("'-1'", Some(-1)),
            ("'+7'", Some(7)),
            ("' \\t12'", Some(12)),
            ("'12 '", None),
            ("'1.5'", None),
            ("''", None),
            ("'-'", None),
            ("0", Some(0)),
            ("'--1'", None),
            ("1f", None),
            ("9223372036854775807", Some(i64::MAX)),
            ("'-9223372036854775808'", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("99999999999999999999999999999999999999999999999999", None),
        ];
        for (source, expected) in table {
            let mut keys = keys(&format!("a = {source}\n"));
            assert_eq!(keys.number("a"), *expected, "{source}");
            assert_eq!(keys.into_warnings().len(), usize::from(expected.is_none()), "{source}");
        }
    }

    #[test]
    fn wrong_kinds_are_warnings() {
        let mut keys = keys("\na = [1]\nb = 'x'\nc = 1\nc += 2\n");
        assert_eq!(keys.number("a"), None);
        assert_eq!(keys.text("a").unwrap(), None);
        assert_eq!(keys.list("b"), None);
        assert_eq!(keys.flag("c"), None);
        assert_eq!(keys.number("c"), None);
        assert_eq!(keys.text("c").unwrap(), Some("12".to_owned()));
        let shown: Vec<_> = keys.into_warnings().iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 4, "{shown:?}");
        assert!(shown[0].starts_with("t.cfg:2: a: "), "{shown:?}");
        assert!(shown[3].starts_with("t.cfg:5: c: "), "{shown:?}");
    }

    #[test]
    fn errors_name_the_place() {
        let keys = Keys::parse(Path::new("t.cfg"), b"\na = \"\xff\"\nn = 5\nl = ['x', ['y']]\n");
        let mut keys = keys.unwrap();
        let shown = |error: Error| error.to_string();
        assert_eq!(shown(keys.text("a").unwrap_err()), "t.cfg:2: a: the value is not UTF-8 text");
        assert_eq!(
            shown(keys.number_in("n", 0..=4).unwrap_err()),
            "t.cfg:3: n: 5 is out of range; accepted: 0 to 4"
        );
        assert_eq!(
            shown(keys.texts("l").unwrap_err()),
            "t.cfg:4: l: item 2 of the list is a list; a string is expected"
        );
        assert_eq!(shown(keys.error("name", "is missing")), "t.cfg: name: is missing");
    }
}
