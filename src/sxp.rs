//! S-expressions as xend writes them: what `xm list -l` and `xm create -n` print, and what stands in xend's images.
//!
//! An expression is an atom or a list of expressions in parentheses. An atom stands bare, or between quotes of either kind
//! with the escapes of C. `#` begins a comment.

use std::iter::Peekable;
use std::slice::Iter;

/// Lists in lists in lists: more than this no tool writes.
const DEPTH_LIMIT: usize = 100;

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sxp {
    /// A word.
    Atom(String),
    /// Several of them.
    List(Vec<Sxp>),
}

impl Sxp {
    /// Reads all expressions of a text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_all(text: &[u8]) -> Result<Vec<Sxp>, String> {
        let mut parser = Parser { bytes: text.iter().peekable() };
        let mut found = Vec::new();
        while let Some(sxp) = parser.next(0)? {
            found.push(sxp);
        }
        Ok(found)
    }

    /// The word.
    pub fn atom(&self) -> Option<&str> {
        match self {
            Sxp::Atom(atom) => Some(atom),
            Sxp::List(_) => None,
        }
    }

    /// What is in the list.
    pub fn list(&self) -> &[Sxp] {
        match self {
            Sxp::Atom(_) => &[],
            Sxp::List(list) => list,
        }
    }

    /// The first word of the list.
    pub fn name(&self) -> Option<&str> {
        self.list().first()?.atom()
    }

    /// The lists in it that begin with this word.
    pub fn children<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sxp> {
        self.list().iter().filter(move |child| child.name() == Some(name))
    }

    /// The word behind this one, in the first list that begins with it.
    pub fn value<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.children(name).next()?.list().get(1)?.atom()
    }
}

struct Parser<'a> {
    bytes: Peekable<Iter<'a, u8>>,
}

impl Parser<'_> {
    fn next(&mut self, depth: usize) -> Result<Option<Sxp>, String> {
        loop {
            match self.bytes.peek() {
                None => return Ok(None),
                Some(b'#') => while self.bytes.next().is_some_and(|&byte| byte != b'\n') {},
                Some(byte) if is_space(**byte) => {
                    self.bytes.next();
                }
                Some(b'(') => {
                    self.bytes.next();
                    return self.list(depth).map(Some);
                }
                Some(b')') => return if depth > 0 { Ok(None) } else { Err("a `)` too many".to_owned()) },
                Some(&&quote @ (b'"' | b'\'')) => {
                    self.bytes.next();
                    return self.quoted(quote).map(Some);
                }
                Some(_) => return Ok(Some(self.bare())),
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Sxp, String> {
        if depth == DEPTH_LIMIT {
            return Err(format!("lists are {DEPTH_LIMIT} deep"));
        }
        let mut found = Vec::new();
        while let Some(sxp) = self.next(depth + 1)? {
            found.push(sxp);
        }
        match self.bytes.next() {
            Some(_) => Ok(Sxp::List(found)),
            None => Err("a list has no end".to_owned()),
        }
    }

    fn bare(&mut self) -> Sxp {
        let mut atom = Vec::new();
        while let Some(&&byte) = self.bytes.peek() {
            if is_space(byte) || matches!(byte, b'(' | b')') {
                break;
            }
            atom.push(byte);
            self.bytes.next();
        }
        text(&atom)
    }

    fn quoted(&mut self, quote: u8) -> Result<Sxp, String> {
        const NO_END: &str = "a text has no closing quote";
        let mut atom = Vec::new();
        loop {
            match *self.bytes.next().ok_or(NO_END)? {
                byte if byte == quote => return Ok(text(&atom)),
                b'\\' => {
                    let byte = *self.bytes.next().ok_or(NO_END)?;
                    self.escaped(byte, &mut atom)?;
                }
                byte => atom.push(byte),
            }
        }
    }

    fn escaped(&mut self, byte: u8, atom: &mut Vec<u8>) -> Result<(), String> {
        let plain = match byte {
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            b'\\' | b'\'' | b'"' => byte,
            b'x' => self.number(16, 2, 0)?,
            b'0'..=b'7' => self.number(8, 2, u32::from(byte - b'0'))?,
            other => {
                atom.push(b'\\');
                other
            }
        };
        atom.push(plain);
        Ok(())
    }

    /// A byte by its number, of which at most so many digits follow.
    fn number(&mut self, base: u32, digits: usize, begun: u32) -> Result<u8, String> {
        let mut number = begun;
        for _ in 0..digits {
            let Some(digit) = self.bytes.peek().and_then(|byte| char::from(**byte).to_digit(base)) else { break };
            number = number * base + digit;
            self.bytes.next();
        }
        u8::try_from(number).map_err(|_| format!("{number} is no byte"))
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 11 | 12 | b'\r')
}

fn text(bytes: &[u8]) -> Sxp {
    Sxp::Atom(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn atom(text: &str) -> Sxp {
        Sxp::Atom(text.to_owned())
    }

    fn one(text: &str) -> Sxp {
        let mut all = Sxp::parse_all(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0)
    }

    #[test]
    fn atoms() {
        for (text, expected) in [
            ("web", "web"),
            ("12.5", "12.5"),
            ("''", ""),
            ("'my guest'", "my guest"),
            (r#""it's""#, "it's"),
            (r"'it\'s'", "it's"),
            (r"'a\tb\n'", "a\tb\n"),
            (r"'\x41\101\0'", "AA\0"),
            (r"'\303\244'", "ä"),
            (r"'\q'", r"\q"),
            ("-b----", "-b----"),
            ("/dev/vg0/a'b", "/dev/vg0/a'b"),
        ] {
            assert_eq!(one(text), atom(expected), "{text}");
        }
    }

    #[test]
    fn lists() {
        let list = Sxp::List;
        assert_eq!(one("()"), list(vec![]));
        assert_eq!(one("(bootloader_args )"), list(vec![atom("bootloader_args")]));
        assert_eq!(one("(a(b c)'d')"), list(vec![atom("a"), list(vec![atom("b"), atom("c")]), atom("d")]));
        assert_eq!(Sxp::parse_all(b" # nothing\n(a)\n(b) ").map(|all| all.len()), Ok(2));
        assert_eq!(Sxp::parse_all(b""), Ok(vec![]));
    }

    #[test]
    fn what_is_looked_up() {
        let sxp =
            one("(domain (domid 3) (name web) (device (vbd (dev xvda))) (device (vif)) (empty) (cpus ((1) (2))))");
        assert_eq!((sxp.name(), sxp.value("domid"), sxp.value("name")), (Some("domain"), Some("3"), Some("web")));
        assert_eq!((sxp.value("empty"), sxp.value("cpus"), sxp.value("none")), (None, None, None));
        assert_eq!(sxp.children("device").count(), 2);
        let vbd = sxp.children("device").find_map(|device| device.children("vbd").next());
        assert_eq!(vbd.and_then(|vbd| vbd.value("dev")), Some("xvda"));
    }

    #[test]
    fn what_is_wrong() {
        let deep = "(".repeat(1_000_000);
        for text in ["(", ")", "(a", "a)", "'a", "('a)", "'a\\", r"'\777'", &deep] {
            assert!(Sxp::parse_all(text.as_bytes()).is_err(), "{}", &text[..text.len().min(9)]);
        }
        assert!(Sxp::parse_all(&[b"(".repeat(100), b")".repeat(100)].concat()).is_ok());
    }

    fn written(sxp: &Sxp) -> String {
        match sxp {
            Sxp::Atom(atom) => format!("'{}'", atom.replace('\\', "\\\\").replace('\'', "\\'")),
            Sxp::List(list) => format!("({})", Vec::from_iter(list.iter().map(written)).join(" ")),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Sxp::parse_all(&bytes);
        }

        #[test]
        fn any_signs_are_read_or_refused(text in r#"[()'"\\#x07 a\n]{0,60}"#) {
            let _ = Sxp::parse_all(text.as_bytes());
        }

        #[test]
        fn what_is_written_is_read(
            sxp in "(?s).{0,12}".prop_map(Sxp::Atom).prop_recursive(4, 30, 5, |inner| {
                prop::collection::vec(inner, 0..5).prop_map(Sxp::List)
            })
        ) {
            prop_assert_eq!(Sxp::parse_all(written(&sxp).as_bytes()), Ok(vec![sxp]));
        }
    }
}
