//! The grammar of xl.cfg and xl.conf, the same language that libxlutil reads.
//!
//! ```text
//! file       = { [assignment] (newline | ";") } [assignment]
//! assignment = name ("=" | "+=") value
//! value      = string | number | "[" [value {"," value} [","]] "]"
//! name       = [a-z][._0-9a-z]*            number = [0-9][0-9a-fx]*
//! string     = "…" or '…' on one line      comment = "#" up to and with its newline
//! ```
//!
//! Newlines and comments may stand between the parts of a list, nowhere else inside an assignment. Of several
//! assignments to a name the last one counts; `+=` joins strings with strings and lists with lists.
//!
//! A single byte that starts nothing is overlooked if it is the very last one of the file; so does libxlutil.
//! Two things that libxlutil takes are refused here, because it loses data with them: octal escapes (it drops
//! the character) and NUL bytes in strings (it drops the rest).

use std::collections::HashMap;

/// How deep lists may be nested. xl has no key that needs more than two levels.
const NESTING_LIMIT: u32 = 64;

/// The right side of an assignment. Numbers are kept as they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A string or a number: bytes, which need not be UTF-8.
    Text(Vec<u8>),
    /// A list of values.
    List(Vec<Value>),
}

/// What a name ended up with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The name.
    pub(super) name: String,
    /// Where the value starts, counted from 1.
    pub(super) line: u32,
    /// The last assignment was a `+=`: xl doesn't read such a value as a number.
    pub(super) added: bool,
    /// Its value.
    pub(super) value: Value,
}

/// A file that is not in the language: where and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// The line, counted from 1.
    pub(super) line: u32,
    /// The character in that line, counted from 1.
    pub(super) column: u32,
    /// What is wrong, and what is accepted.
    pub(super) message: String,
}

/// All settings of a file, in the order in which their names first appear.
#[derive(Debug, Default)]
pub(super) struct Document {
    settings: Vec<Setting>,
    index: HashMap<String, usize>,
}

impl Document {
    /// Reads a whole file.
    pub(super) fn parse(text: &[u8]) -> Result<Self, SyntaxError> {
        let mut parser = Parser { lexer: Lexer { text, at: 0, line: 1 }, document: Self::default() };
        parser.file()?;
        Ok(parser.document)
    }

    /// The setting of this name.
    pub(super) fn get(&self, name: &str) -> Option<&Setting> {
        self.index.get(name).map(|&i| &self.settings[i])
    }

    /// All settings.
    pub(super) fn settings(&self) -> &[Setting] {
        &self.settings
    }

    /// Stores an assignment. An error is the reason why `+=` can't join the values.
    fn store(&mut self, name: &str, added: bool, line: u32, value: Value) -> Result<(), &'static str> {
        let Some(&i) = self.index.get(name) else {
            self.index.insert(name.to_owned(), self.settings.len());
            self.settings.push(Setting { name: name.to_owned(), line, added, value });
            return Ok(());
        };
        let setting = &mut self.settings[i];
        if added {
            match (&mut setting.value, value) {
                (Value::Text(old), Value::Text(new)) => old.extend(new),
                (Value::List(old), Value::List(new)) => old.extend(new),
                (Value::Text(_), Value::List(_)) => return Err("a list can't be added to a single value"),
                (Value::List(_), Value::Text(_)) => return Err("a single value can't be added to a list"),
            }
        } else {
            setting.value = value;
        }
        setting.line = line;
        setting.added = added;
        Ok(())
    }
}

/// One piece of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece<'a> {
    Name(&'a str),
    Number(&'a [u8]),
    Text(Vec<u8>),
    Comma,
    Open,
    Close,
    Assign,
    Add,
    Semicolon,
    Newline,
    End,
}

/// A piece and where it starts.
struct Token<'a> {
    piece: Piece<'a>,
    at: usize,
    line: u32,
}

impl Token<'_> {
    /// The piece in words, for errors.
    fn describe(&self) -> String {
        match &self.piece {
            Piece::Name(name) => format!("the word `{name}`"),
            Piece::Number(digits) => format!("the number `{}`", String::from_utf8_lossy(digits)),
            Piece::Text(_) => "a string".to_owned(),
            Piece::Comma => "`,`".to_owned(),
            Piece::Open => "`[`".to_owned(),
            Piece::Close => "`]`".to_owned(),
            Piece::Assign => "`=`".to_owned(),
            Piece::Add => "`+=`".to_owned(),
            Piece::Semicolon => "`;`".to_owned(),
            Piece::Newline => "the end of the line".to_owned(),
            Piece::End => "the end of the file".to_owned(),
        }
    }
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    line: u32,
}

impl<'a> Lexer<'a> {
    /// An error at this place of the line that is being read.
    fn error(&self, at: usize, line: u32, message: impl Into<String>) -> SyntaxError {
        let start = self.text[..at].iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        let characters = self.text[start..at].iter().filter(|&&b| b & 0xc0 != 0x80).count();
        let column = u32::try_from(characters).unwrap_or(u32::MAX).saturating_add(1);
        SyntaxError { line, column, message: message.into() }
    }

    /// How many bytes from here on belong to `class`.
    fn run(&self, class: impl Fn(u8) -> bool) -> usize {
        self.text[self.at..].iter().take_while(|&&b| class(b)).count()
    }

    /// The next piece; blanks are skipped, a comment is part of its newline.
    fn next(&mut self) -> Result<Token<'a>, SyntaxError> {
        self.at += self.run(|b| b == b' ' || b == b'\t');
        let (at, line) = (self.at, self.line);
        let token = |piece| Token { piece, at, line };
        let Some(&first) = self.text.get(at) else { return Ok(token(Piece::End)) };
        let single = match first {
            b',' => Some(Piece::Comma),
            b'[' => Some(Piece::Open),
            b']' => Some(Piece::Close),
            b'=' => Some(Piece::Assign),
            b';' => Some(Piece::Semicolon),
            _ => None,
        };
        if let Some(piece) = single {
            self.at += 1;
            return Ok(token(piece));
        }
        let last = at + 1 == self.text.len();
        match first {
            b'+' if self.text.get(at + 1) == Some(&b'=') => {
                self.at += 2;
                Ok(token(Piece::Add))
            }
            b'\n' => {
                self.at += 1;
                self.line += 1;
                Ok(token(Piece::Newline))
            }
            b'#' if !last => {
                self.at += self.run(|b| b != b'\n');
                if self.at == self.text.len() {
                    return Err(self.error(at, line, "the last line is a comment without a newline at its end"));
                }
                self.at += 1;
                self.line += 1;
                Ok(token(Piece::Newline))
            }
            b'a'..=b'z' => {
                self.at += self.run(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_'));
                // All of these bytes are ASCII.
                Ok(token(Piece::Name(std::str::from_utf8(&self.text[at..self.at]).unwrap_or_default())))
            }
            b'0'..=b'9' => {
                self.at += self.run(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'x'));
                Ok(token(Piece::Number(&self.text[at..self.at])))
            }
            b'\'' | b'"' if !last => Ok(token(Piece::Text(self.string(first)?))),
            _ if last => {
                self.at += 1;
                Ok(token(Piece::End))
            }
            _ => Err(self.error(at, line, self.stray(first))),
        }
    }

    /// The string that starts here; ends behind its closing quote.
    fn string(&mut self, quote: u8) -> Result<Vec<u8>, SyntaxError> {
        let start = self.at;
        let mut value = Vec::new();
        self.at += 1;
        loop {
            let open = "the string is not closed in its line";
            match self.text.get(self.at) {
                None | Some(b'\n') => return Err(self.error(start, self.line, open)),
                Some(0) => return Err(self.error(self.at, self.line, "a NUL byte in a string")),
                Some(&b) if b == quote => {
                    self.at += 1;
                    return Ok(value);
                }
                Some(b'\\') => {
                    let plain = match self.text.get(self.at + 1) {
                        None | Some(b'\n') => return Err(self.error(start, self.line, open)),
                        Some(&b @ (b'"' | b'\'' | b'\\')) => b,
                        Some(b'a') => 0x07,
                        Some(b'b') => 0x08,
                        Some(b'f') => 0x0c,
                        Some(b'n') => b'\n',
                        Some(b'r') => b'\r',
                        Some(b't') => b'\t',
                        Some(b'v') => 0x0b,
                        Some(_) => {
                            let accepted =
                                r#"this escape is not accepted; these are: \\ \' \" \a \b \f \n \r \t \v"#;
                            return Err(self.error(self.at, self.line, accepted));
                        }
                    };
                    value.push(plain);
                    self.at += 2;
                }
                Some(&b) => {
                    value.push(b);
                    self.at += 1;
                }
            }
        }
    }

    /// What to say about a byte that can't start anything.
    fn stray(&self, byte: u8) -> String {
        match byte {
            b'\r' => "a carriage return: the file has DOS line ends; xl takes plain newlines only".to_owned(),
            0xef if self.at == 0 && self.text.starts_with(b"\xef\xbb\xbf") => {
                "a byte order mark: save the file without it".to_owned()
            }
            b'A'..=b'Z' => {
                let word = self.run(|b| b.is_ascii_alphanumeric() || b == b'_').min(40);
                let word = String::from_utf8_lossy(&self.text[self.at..self.at + word]);
                format!("`{word}` is not accepted: names are lower case, text is quoted, yes and no are 1 and 0")
            }
            b'-' => {
                "`-` is not accepted: names have no `-`, and negative numbers are quoted, as in \"-1\"".to_owned()
            }
            b'+' | b'.' | b'(' | b')' | b':' => {
                format!("`{}` is not accepted outside of strings (Python code is not supported)", char::from(byte))
            }
            0x20..=0x7e => format!("`{}` is not accepted outside of strings", char::from(byte)),
            _ => format!("the byte 0x{byte:02x} is not accepted outside of strings"),
        }
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    document: Document,
}

impl<'a> Parser<'a> {
    fn unexpected(&self, token: &Token<'a>, expected: &str) -> SyntaxError {
        let message = format!("{expected} is expected here, not {}", token.describe());
        self.lexer.error(token.at, token.line, message)
    }

    fn file(&mut self) -> Result<(), SyntaxError> {
        loop {
            let token = self.lexer.next()?;
            match token.piece {
                Piece::Newline | Piece::Semicolon => {}
                Piece::End => return Ok(()),
                Piece::Name(name) => {
                    self.assignment(name)?;
                    let token = self.lexer.next()?;
                    match token.piece {
                        Piece::Newline | Piece::Semicolon => {}
                        Piece::End => return Ok(()),
                        _ => return Err(self.unexpected(&token, "a new line or `;`")),
                    }
                }
                _ => return Err(self.unexpected(&token, "a name")),
            }
        }
    }

    fn assignment(&mut self, name: &str) -> Result<(), SyntaxError> {
        let operator = self.lexer.next()?;
        let added = match operator.piece {
            Piece::Assign => false,
            Piece::Add => true,
            _ => return Err(self.unexpected(&operator, &format!("`=` or `+=` behind `{name}`"))),
        };
        let first = self.lexer.next()?;
        let (at, line) = (first.at, first.line);
        let value = self.value(first, 0)?;
        let stored = self.document.store(name, added, line, value);
        stored.map_err(|why| self.lexer.error(at, line, format!("{name}: {why}")))
    }

    /// The value that starts with `first`.
    fn value(&mut self, first: Token<'a>, depth: u32) -> Result<Value, SyntaxError> {
        match first.piece {
            Piece::Text(text) => Ok(Value::Text(text)),
            Piece::Number(digits) => Ok(Value::Text(digits.to_vec())),
            Piece::Open if depth == NESTING_LIMIT => {
                let message = format!("lists are nested deeper than {NESTING_LIMIT} levels");
                Err(self.lexer.error(first.at, first.line, message))
            }
            Piece::Open => self.list(depth + 1),
            _ => Err(self.unexpected(&first, "a number, a quoted string or a `[list]`")),
        }
    }

    /// The rest of a list, behind its `[`.
    fn list(&mut self, depth: u32) -> Result<Value, SyntaxError> {
        let mut values = Vec::new();
        loop {
            let token = self.beyond_newlines()?;
            if token.piece == Piece::Close {
                return Ok(Value::List(values));
            }
            values.push(self.value(token, depth)?);
            let token = self.beyond_newlines()?;
            match token.piece {
                Piece::Comma => {}
                Piece::Close => return Ok(Value::List(values)),
                _ => return Err(self.unexpected(&token, "`,` or `]`")),
            }
        }
    }

    fn beyond_newlines(&mut self) -> Result<Token<'a>, SyntaxError> {
        loop {
            let token = self.lexer.next()?;
            if token.piece != Piece::Newline {
                return Ok(token);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(value: &str) -> Value {
        Value::Text(value.as_bytes().to_vec())
    }

    fn list(values: &[&str]) -> Value {
        Value::List(values.iter().map(|v| text(v)).collect())
    }

    fn value_of(source: &str, name: &str) -> Value {
        let document = Document::parse(source.as_bytes()).unwrap_or_else(|e| panic!("{source:?}: {e:?}"));
        document.get(name).unwrap_or_else(|| panic!("{source:?}: no {name}")).value.clone()
    }

    #[test]
    fn accepted() {
        let table: &[(&str, Value)] = &[
            ("a=1\n", text("1")),
            ("a=1", text("1")),
            ("a=1;", text("1")),
            ("a = 0x1f\n", text("0x1f")),
            ("a=1ffx\n", text("1ffx")),
            ("\ta\t=\t'x' ;\n", text("x")),
            ("a='#;[],='", text("#;[],=")),
            ("a=\"it's\"", text("it's")),
            (r#"a="\\\'\"\a\b\f\n\r\t\v""#, text("\\'\"\x07\x08\x0c\n\r\t\x0b")),
            ("a='-1'", text("-1")),
            ("a=''", text("")),
            ("# only\n\n ;; \n a=1 # more\n", text("1")),
            ("a=[]", list(&[])),
            ("a=[ ]\n", list(&[])),
            ("a=[\n]\n", list(&[])),
            ("a=[1]", list(&["1"])),
            ("a=['x',\"y\",3]", list(&["x", "y", "3"])),
            ("a=['x',]", list(&["x"])),
            ("a=['x',\n]", list(&["x"])),
            ("a=[ # c\n 'x' # c\n , # c\n 'y' # c\n ]", list(&["x", "y"])),
            ("a=1\na=2\n", text("2")),
            ("a=1;a=2", text("2")),
            ("a=[1]\na=2\n", text("2")),
            ("a+=1", text("1")),
            ("a='x'\na+='y'\n", text("xy")),
            ("a=['x']\na+=['y','z']\n", list(&["x", "y", "z"])),
            ("b=7\na=1", text("1")),
            ("vif.default.bridge='a'\na=1", text("1")),
            ("a_1.b=2\na=1", text("1")),
            ("a=1\n#", text("1")),
            ("a=1\r", text("1")),
            ("a=1 '", text("1")),
            ("a=1\n-", text("1")),
        ];
        for (source, expected) in table {
            assert_eq!(&value_of(source, "a"), expected, "{source:?}");
        }
        assert_eq!(value_of("a=[[1],[[]]]", "a"), Value::List(vec![list(&["1"]), Value::List(vec![list(&[])])]));
        assert_eq!(Document::parse(b"").unwrap().settings().len(), 0);
        assert_eq!(Document::parse(b"a=\"\xff\"").unwrap().get("a").unwrap().value, Value::Text(vec![0xff]));
    }

    #[test]
    fn refused() {
        // Source, line, column, a word of the message.
        let table: &[(&[u8], u32, u32, &str)] = &[
            (b"A=1\n", 1, 1, "lower case"),
            (b"a-b=1\n", 1, 2, "`-`"),
            (b"a=True\n", 1, 3, "`True`"),
            (b"a=foo\n", 1, 3, "the word `foo`"),
            (b"a=-1\n", 1, 3, "quoted"),
            (b"a=1.5\n", 1, 4, "Python"),
            (b"a=0X10\n", 1, 4, "`X10`"),
            (b"a=0xFF\n", 1, 5, "`FF`"),
            (b"a=1g\n", 1, 4, "the word `g`"),
            (b"\n\n  a='x\n'\n", 3, 5, "not closed"),
            (b"a='x\\\n'\n", 1, 3, "not closed"),
            (b"a='x\\", 1, 3, "not closed"),
            (b"a='\\x41'\n", 1, 4, "escape"),
            (b"a='\\101'\n", 1, 4, "escape"),
            (b"a='\\q'\n", 1, 4, "escape"),
            (b"a='\0'\n", 1, 4, "NUL"),
            (b"a=[,]\n", 1, 4, "a number, a quoted string"),
            (b"a=[1 2]\n", 1, 6, "`,` or `]`"),
            (b"a=[1,,2]\n", 1, 6, "not `,`"),
            (b"a=[1\n", 2, 1, "end of the file"),
            (b"a=[1;]\n", 1, 5, "`;`"),
            (b"a=(1)\n", 1, 3, "Python"),
            (b"a='x'+'y'\n", 1, 6, "Python"),
            (b"a='''x'''\n", 1, 5, "new line or `;`"),
            (b"a=\n1\n", 1, 3, "the end of the line"),
            (b"a\n", 1, 2, "`=` or `+=`"),
            (b"a==1\n", 1, 3, "`=`"),
            (b"a=1 b=2\n", 1, 5, "new line or `;`"),
            (b"a=1 # no newline", 1, 5, "comment"),
            (b"a=1\r\n", 1, 4, "carriage return"),
            (b"a=-", 1, 3, "the end of the file"),
            (b"a=[1#", 1, 5, "the end of the file"),
            (b"\xef\xbb\xbfa=1\n", 1, 1, "byte order mark"),
            (b"a=1\\\n", 1, 4, "`\\`"),
            (b"a=\"\xc3\xa4\" x\n", 1, 7, "the word `x`"),
            (b"a='x'\na+=['y']\n", 2, 4, "can't be added"),
            (b"a=['x']\na+='y'\n", 2, 4, "can't be added"),
            (b"1=1\n", 1, 1, "a name"),
            (b"import os\n", 1, 8, "behind `import`"),
            (b"a={}\n", 1, 3, "`{`"),
            (b"a=1\x01\n", 1, 4, "0x01"),
        ];
        for (source, line, column, word) in table {
            let shown = String::from_utf8_lossy(source);
            let error = Document::parse(source).expect_err(&shown);
            assert_eq!((error.line, error.column), (*line, *column), "{shown:?}: {error:?}");
            assert!(error.message.contains(word), "{shown:?}: {error:?}");
        }
    }

    #[test]
    fn nesting_is_limited() {
        let nested = |n: usize| format!("a={}{}", "[".repeat(n), "]".repeat(n));
        assert!(Document::parse(nested(NESTING_LIMIT as usize).as_bytes()).is_ok());
        let error = Document::parse(nested(1_000_000).as_bytes()).unwrap_err();
        assert!(error.message.contains("nested"), "{error:?}");
    }

    #[test]
    fn the_line_is_that_of_the_value() {
        let document = Document::parse(b"a=1\n\nb=[\n1,\n2]\na+='x'\n").unwrap();
        assert_eq!((document.get("a").unwrap().line, document.get("b").unwrap().line), (6, 3));
        assert!(document.get("a").unwrap().added);
    }

    /// Writes a value so that it reads back the same.
    fn print(value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::Text(text) => {
                out.push(b'"');
                for &b in text {
                    match b {
                        b'"' | b'\\' => out.extend([b'\\', b]),
                        b'\n' => out.extend(b"\\n"),
                        _ => out.push(b),
                    }
                }
                out.push(b'"');
            }
            Value::List(values) => {
                out.push(b'[');
                for value in values {
                    print(value, out);
                    out.extend(b",\n");
                }
                out.push(b']');
            }
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop::collection::vec(1u8.., 0..12).prop_map(Value::Text);
        leaf.prop_recursive(5, 40, 6, |inner| prop::collection::vec(inner, 0..6).prop_map(Value::List))
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Document::parse(&bytes);
        }

        #[test]
        fn never_panics_on_likely_text(source in r#"([a-c]|=|\+=|\[|\]|,|;|#|"|'|\\|\n| |[0-9x]){0,60}"#) {
            let _ = Document::parse(source.as_bytes());
        }

        #[test]
        fn printed_values_read_back(value in any_value()) {
            let mut source = b"x = ".to_vec();
            print(&value, &mut source);
            let document = Document::parse(&source).unwrap();
            prop_assert_eq!(&document.get("x").unwrap().value, &value);
        }
    }
}
