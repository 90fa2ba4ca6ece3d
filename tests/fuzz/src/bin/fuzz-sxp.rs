//! S-expressions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xendomains::sxp::Sxp;

/// As it would be written.
fn write(sxp: &Sxp, text: &mut String) {
    match sxp {
        Sxp::Atom(atom) => {
            text.push('\'');
            text.push_str(&atom.replace('\\', "\\\\").replace('\'', "\\'"));
            text.push('\'');
        }
        Sxp::List(list) => {
            text.push('(');
            for part in list {
                write(part, text);
                text.push(' ');
            }
            text.push(')');
        }
    }
}

fuzz_target!(|input: &[u8]| {
    if let Ok(all) = Sxp::parse_all(input) {
        let mut text = String::new();
        all.iter().for_each(|sxp| {
            write(sxp, &mut text);
            text.push('\n');
        });
        assert_eq!(Sxp::parse_all(text.as_bytes()), Ok(all));
    }
});
