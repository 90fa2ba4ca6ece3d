//! Numbers inside of values, as C finds them at the start of a text.

/// Says that a text doesn't start with a number.
pub(super) const NOT_A_NUMBER: &str = "not a number";
/// Says that a text starts with a minus sign and digits.
pub(super) const NEGATIVE: &str = "a negative number is not accepted";
/// Says that a number has too many digits.
pub(super) const TOO_BIG: &str = "the number is too big";

/// The number at the start of a text and what follows it. Blanks and a `+` may come before it, with base 16 or 0 also
/// `0x`; base 0 takes a leading 0 for octal.
///
/// `strtoul`, which xl uses, takes a minus sign too and then wraps around, and has too big numbers end at its largest
/// one. Both is refused here: no such number is meant.
pub(super) fn number(text: &str, base: u32) -> Result<(u64, &str), &'static str> {
    let text = text.trim_start_matches(is_blank);
    if text.strip_prefix('-').is_some_and(|text| text.starts_with(|c: char| c.is_digit(base.max(10)))) {
        return Err(NEGATIVE);
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let hexadecimal = hexadecimal.filter(|digits| digits.starts_with(|c: char| c.is_ascii_hexdigit()));
    let (base, text) = match (base, hexadecimal) {
        (0 | 16, Some(digits)) => (16, digits),
        (0, None) if text.starts_with('0') => (8, text),
        (0, None) => (10, text),
        (base, _) => (base, text),
    };
    let end = text.find(|c: char| !c.is_digit(base)).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Err(NOT_A_NUMBER);
    }
    u64::from_str_radix(digits, base).map(|number| (number, rest)).map_err(|_| TOO_BIG)
}

/// The same where nothing may follow the number.
pub(super) fn whole_number(text: &str, base: u32) -> Result<u64, &'static str> {
    match number(text, base)? {
        (number, "") => Ok(number),
        _ => Err(NOT_A_NUMBER),
    }
}

/// Whether C takes it for white space.
pub(super) fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (text, base, expected) in [
            ("12", 10, Ok((12, ""))),
            (" \t+12x", 10, Ok((12, "x"))),
            ("0x1F,", 16, Ok((31, ","))),
            ("1f-2f", 16, Ok((31, "-2f"))),
            ("0xg", 16, Ok((0, "xg"))),
            ("0x10", 10, Ok((0, "x10"))),
            ("0x10", 0, Ok((16, ""))),
            ("010", 0, Ok((8, ""))),
            ("09", 0, Ok((0, "9"))),
            ("0", 0, Ok((0, ""))),
            ("18446744073709551615", 10, Ok((u64::MAX, ""))),
            ("18446744073709551616", 10, Err(TOO_BIG)),
            ("-1", 10, Err(NEGATIVE)),
            (" -0x1", 0, Err(NEGATIVE)),
            ("-", 10, Err(NOT_A_NUMBER)),
            ("-f", 16, Err(NEGATIVE)),
            ("-f", 0, Err(NOT_A_NUMBER)),
            ("", 10, Err(NOT_A_NUMBER)),
            ("+ 1", 10, Err(NOT_A_NUMBER)),
            ("x", 16, Err(NOT_A_NUMBER)),
        ] {
            assert_eq!(number(text, base), expected, "{text:?} {base}");
        }
        assert_eq!(whole_number(" 7", 10), Ok(7));
        assert_eq!(whole_number("7 ", 10), Err(NOT_A_NUMBER));
    }
}
