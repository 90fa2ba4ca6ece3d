//! The part of shell syntax that a settings file is written in, read without a shell.
//!
//! What is read: assignments (`NAME=VALUE`, several on a line, separated by blanks or `;`), `export NAME=VALUE` and
//! `export NAME`, `:`, comments; in values the quoting of `sh`, backslash-newline, and `$NAME` or `${NAME}` of names
//! that were assigned before. Everything else would need a shell to know what it means, and is an error.
//!
//! The meaning is that of `sh`, with four differences, all of them on the side of saying so:
//! - The environment does not count: a name that the file did not assign is empty, and is warned about.
//! - `export NAME=$OTHER` is an assignment as in POSIX.1-2024 and bash; older shells split and glob such a value.
//! - An unquoted `~` where a shell would put a home directory is an error.
//! - A byte order mark and DOS line ends are read as if they were not there, and are an error.
//!
//! An error costs its line and no more: reading goes on with the next one. A quote that is not closed would swallow the
//! lines behind it, so it counts as a mistake in the line that it opens on if the file makes no sense otherwise, or if a
//! line in it begins as a setting does. Names on a lost line have an unknown value from there on, and so has whatever
//! is made of them.

use std::borrow::Cow;
use std::collections::HashMap;

/// One `NAME=VALUE`, its value with all quoting removed and all names expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The name.
    pub name: String,
    /// The value. Bytes, because paths are. `None`: its line is not understood.
    pub value: Option<Vec<u8>>,
    /// The line that it starts on, from 1.
    pub line: u32,
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The assignments in the order of the file; of two to the same name the later one counts.
    pub assignments: Vec<Assignment>,
    /// Names that were used before anything was assigned to them, with the line.
    pub unset: Vec<(String, u32)>,
    /// Pieces that are not understood. Each name in one is among the assignments, without a value.
    pub errors: Vec<SyntaxError>,
}

/// Something that is not an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// The line that it is on, from 1.
    pub line: u32,
    /// What is wrong with it.
    pub message: String,
    /// Which values are not known because of it.
    pub loses: Loses,
    /// The names that are on the line.
    pub names: Vec<String>,
}

/// The values that a mistake makes unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loses {
    /// None: it is clear what is meant.
    Nothing,
    /// Those of names that are on the line.
    Named,
    /// Any: a command may do anything.
    Anything,
}

/// The beginning of the name of each setting.
const SETTING: &[u8] = b"XENDOMAINS_";

/// Reads a file of shell assignments.
pub fn parse(text: &[u8]) -> Script {
    let mut errors = Vec::new();
    let mut clear = |line, message: &str| {
        errors.push(SyntaxError { loses: Loses::Nothing, ..error_on(line, message.to_owned()) });
    };
    let text = text
        .strip_prefix(b"\xef\xbb\xbf")
        .inspect(|_| clear(1, "byte order mark; it is left out"))
        .unwrap_or(text);
    let mut text = Cow::Borrowed(text);
    if let Some(at) = text.windows(2).position(|pair| pair == b"\r\n") {
        clear(line_at(&text, at), "the file has DOS line ends; they are left out");
        text = unix_lines(&text).into();
    }
    // From a line with a NUL byte on it is no text.
    let nul = text.iter().position(|byte| *byte == 0);
    let nul = nul.map(|at| text[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
    let (text, no_text) = text.split_at(nul.unwrap_or(text.len()));
    let (known, script) = (HashMap::new(), Script { errors, ..Script::default() });
    let mut parser = Parser { text, at: 0, line: 1, known, script, open: None };
    loop {
        let (start, line, count) = (parser.at, parser.line, parser.script.assignments.len());
        match parser.command() {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => parser.give_up(error, start, line, count),
        }
    }
    if !no_text.is_empty() {
        let message = "NUL byte: not a text file, not read from here on".to_owned();
        parser.lose(no_text, error_on(line_at(text, text.len()), message));
    }
    parser.script
}

/// The number of the line that has this byte.
fn line_at(text: &[u8], at: usize) -> u32 {
    text[..at].iter().fold(1, |line, byte| line + u32::from(*byte == b'\n'))
}

/// The text without the carriage returns at the end of lines.
fn unix_lines(text: &[u8]) -> Vec<u8> {
    let mut lines: Vec<_> = text.split(|byte| *byte == b'\n').collect();
    lines.iter_mut().for_each(|line| *line = line.strip_suffix(b"\r").unwrap_or(line));
    lines.join(&b'\n')
}

/// What kind of command a line has turned out to be.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// `NAME=VALUE …`
    Assignments,
    /// `export NAME=VALUE NAME …`
    Export,
    /// `: …`
    Colon,
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    line: u32,
    /// `None`: the value is not known, because of a mistake.
    known: HashMap<String, Option<Vec<u8>>>,
    script: Script,
    /// The first quote of this command that is not closed on its line: the line, and the quote.
    open: Option<(u32, char)>,
}

impl Parser<'_> {
    /// Leaves a command behind that is not understood, and goes on with the next line. It began here, after so many
    /// assignments.
    fn give_up(&mut self, error: SyntaxError, start: usize, line: u32, count: usize) {
        // Blank lines and comments before it are no part of it.
        (self.at, self.line) = (start, line);
        self.skip_to_command();
        let (start, line) = (self.at, self.line);
        let rest = &self.text[start..];
        let ends = |(at, byte): (usize, &u8)| *byte == b'\n' && !rest[..at].ends_with(b"\\");
        let lost = &rest[..rest.iter().enumerate().position(ends).unwrap_or(rest.len())];
        self.script.assignments.truncate(count);
        let error = self.open.take().map_or(error, |(line, quote)| unclosed(line, quote));
        let loses = if is_about_a_name(lost) { Loses::Named } else { Loses::Anything };
        self.lose(lost, SyntaxError { loses, ..error });
        self.line = line + line_at(lost, lost.len()) - 1;
        self.at = start + lost.len();
    }

    /// Notes that a piece of the file is not understood.
    fn lose(&mut self, lost: &[u8], error: SyntaxError) {
        let names: Vec<_> = names_in(lost).collect();
        for name in &names {
            self.known.insert(name.clone(), None);
            self.script.assignments.push(Assignment { name: name.clone(), value: None, line: error.line });
        }
        self.script.errors.push(SyntaxError { names, ..error });
    }

    /// Passes over blank lines and comments. False at the end of the file.
    fn skip_to_command(&mut self) -> bool {
        loop {
            self.skip_blanks_and_comment();
            match self.peek() {
                Some(b'\n') => self.advance(),
                next => return next.is_some(),
            }
        }
    }

    /// Reads one command with its terminator. False at the end of the file.
    fn command(&mut self) -> Result<bool, SyntaxError> {
        self.open = None;
        if !self.skip_to_command() {
            return Ok(false);
        }
        if self.peek() == Some(b';') {
            return Err(self.error("`;` without anything before it"));
        }
        let mut kind = None;
        // `export` expands all its words before it assigns any of them.
        let mut pending = Vec::new();
        while !self.at_end_of_command()? {
            match kind {
                None => kind = Some(self.first_word(&mut pending)?),
                Some(Kind::Assignments) => self.assignment_word(&mut pending)?,
                Some(Kind::Export) => self.export_word(&mut pending)?,
                Some(Kind::Colon) => drop(self.value(false)?),
            }
            if kind == Some(Kind::Assignments) {
                self.assign(&mut pending);
            }
            self.skip_blanks_and_comment();
        }
        self.assign(&mut pending);
        if self.peek().is_some() {
            self.advance();
        }
        Ok(true)
    }

    /// Whether a newline, `;` or the end of the file comes now.
    fn at_end_of_command(&mut self) -> Result<bool, SyntaxError> {
        match self.peek() {
            None | Some(b'\n') => Ok(true),
            Some(b';') => {
                if self.second() == Some(b';') {
                    return Err(self.error("`;;` is not an assignment"));
                }
                Ok(true)
            }
            Some(_) => Ok(false),
        }
    }

    fn first_word(&mut self, pending: &mut Vec<Assignment>) -> Result<Kind, SyntaxError> {
        let (line, start) = (self.line, self.at);
        let word = self.name();
        if self.peek() == Some(b'=') && is_name(&word) {
            pending.push(self.assigned_value(word, line)?);
            return Ok(Kind::Assignments);
        }
        if word == "export" && self.at_blank() {
            self.skip_blanks_and_comment();
            if self.at_end_of_command()? {
                return Err(self.error("`export` without a name"));
            }
            self.export_word(pending)?;
            return Ok(Kind::Export);
        }
        if word.is_empty() && self.peek() == Some(b':') {
            self.advance();
            if self.at_blank() {
                return Ok(Kind::Colon);
            }
        }
        Err(self.not_an_assignment(line, start))
    }

    fn assignment_word(&mut self, pending: &mut Vec<Assignment>) -> Result<(), SyntaxError> {
        let (line, start) = (self.line, self.at);
        let word = self.name();
        if self.peek() != Some(b'=') || !is_name(&word) {
            return Err(self.not_an_assignment(line, start));
        }
        pending.push(self.assigned_value(word, line)?);
        Ok(())
    }

    fn export_word(&mut self, pending: &mut Vec<Assignment>) -> Result<(), SyntaxError> {
        let (line, start) = (self.line, self.at);
        let word = self.name();
        if !is_name(&word) {
            return Err(self.not_an_assignment(line, start));
        }
        if self.peek() == Some(b'=') {
            pending.push(self.assigned_value(word, line)?);
        } else if !self.at_blank() {
            return Err(self.not_an_assignment(line, start));
        }
        Ok(())
    }

    /// Reads `=VALUE`.
    fn assigned_value(&mut self, name: String, line: u32) -> Result<Assignment, SyntaxError> {
        self.advance();
        if self.peek() == Some(b'(') {
            return Err(self.error(&format!("{name} is an array; only plain values are read here")));
        }
        let value = self.value(true)?;
        Ok(Assignment { name, value: Some(value), line })
    }

    fn assign(&mut self, pending: &mut Vec<Assignment>) {
        for assignment in pending.drain(..) {
            self.known.insert(assignment.name.clone(), assignment.value.clone());
            self.script.assignments.push(assignment);
        }
    }

    /// Reads the rest of a word: up to a blank, newline or `;` outside quotes.
    fn value(&mut self, assigned: bool) -> Result<Vec<u8>, SyntaxError> {
        let mut value = Vec::new();
        let mut home_here = assigned;
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\n' | b';' => break,
                b'\'' => self.single_quoted(&mut value)?,
                b'"' => self.double_quoted(&mut value)?,
                b'\\' => {
                    self.advance();
                    // Backslash-newline never gets here: `peek` has passed over it. At the end of the file there
                    // is nothing to quote.
                    value.push(self.raw().unwrap_or(b'\\'));
                    self.advance();
                }
                b'$' => self.dollar(&mut value, false)?,
                b'~' if home_here => {
                    return Err(self.error("`~` is not expanded here: write the path, or quote the `~`"));
                }
                b'`' => return Err(self.error("command substitution with `…` is not read here")),
                b'&' | b'|' | b'<' | b'>' | b'(' | b')' => {
                    return Err(self.error(&format!(
                        "`{}` outside quotes: only assignments are read here",
                        char::from(byte)
                    )));
                }
                b'\r' => return Err(self.error("carriage return outside quotes")),
                _ => {
                    value.push(byte);
                    self.advance();
                }
            }
            home_here = assigned && byte == b':';
        }
        Ok(value)
    }

    fn single_quoted(&mut self, value: &mut Vec<u8>) -> Result<(), SyntaxError> {
        let line = self.line;
        self.advance();
        loop {
            match self.raw() {
                None => return Err(unclosed(line, '\'')),
                Some(b'\'') => break,
                Some(b'\n') => {
                    self.goes_on(line, '\'')?;
                    value.push(b'\n');
                }
                Some(byte) => value.push(byte),
            }
            self.advance();
        }
        self.advance();
        Ok(())
    }

    /// Takes note that a quote goes on behind its line. An error if the next line is meant for a setting.
    fn goes_on(&mut self, line: u32, quote: char) -> Result<(), SyntaxError> {
        self.open.get_or_insert((line, quote));
        let next = self.text[self.at + 1..].trim_ascii_start();
        let next = next.strip_prefix(b"#").or(next.strip_prefix(b"export")).unwrap_or(next).trim_ascii_start();
        if next.starts_with(SETTING) { Err(unclosed(line, quote)) } else { Ok(()) }
    }

    fn double_quoted(&mut self, value: &mut Vec<u8>) -> Result<(), SyntaxError> {
        let line = self.line;
        self.advance();
        loop {
            match self.peek() {
                None => return Err(unclosed(line, '"')),
                Some(b'"') => break,
                Some(b'\\') => {
                    self.advance();
                    match self.raw() {
                        Some(byte @ (b'$' | b'`' | b'"' | b'\\')) => {
                            value.push(byte);
                            self.advance();
                        }
                        _ => value.push(b'\\'),
                    }
                }
                Some(b'$') => self.dollar(value, true)?,
                Some(b'`') => return Err(self.error("command substitution with `…` is not read here")),
                Some(byte) => {
                    if byte == b'\n' {
                        self.goes_on(line, '"')?;
                    }
                    value.push(byte);
                    self.advance();
                }
            }
        }
        self.advance();
        Ok(())
    }

    /// Reads `$NAME`, `${NAME}` or a `$` that stands for itself.
    fn dollar(&mut self, value: &mut Vec<u8>, quoted: bool) -> Result<(), SyntaxError> {
        let line = self.line;
        self.advance();
        match self.peek() {
            Some(byte) if byte == b'_' || byte.is_ascii_alphabetic() => {
                let name = self.name();
                self.expand(name, line, value)?;
            }
            Some(b'{') => {
                self.advance();
                let name = self.name();
                if !is_name(&name) || self.peek() != Some(b'}') {
                    return Err(error_on(line, "of `${…}` only `${NAME}` is read here".to_owned()));
                }
                self.advance();
                self.expand(name, line, value)?;
            }
            Some(b'(' | b'[') => return Err(self.error("command substitution and arithmetic are not read here")),
            Some(b'\'' | b'"') if !quoted => {
                return Err(self.error("`$` before a quote means different things in different shells"));
            }
            Some(byte @ (b'0'..=b'9' | b'@' | b'*' | b'#' | b'?' | b'-' | b'$' | b'!')) => {
                return Err(self.error(&format!("`${}` has no meaning here", char::from(byte))));
            }
            _ => value.push(b'$'),
        }
        Ok(())
    }

    fn expand(&mut self, name: String, line: u32, value: &mut Vec<u8>) -> Result<(), SyntaxError> {
        let may_be_set = self.script.errors.iter().find(|error| error.loses == Loses::Anything);
        match (self.known.get(&name), may_be_set) {
            (Some(Some(known)), _) => value.extend_from_slice(known),
            (Some(None), _) => {
                return Err(error_on(line, format!("${name}: the line that sets it is not understood")));
            }
            (None, Some(SyntaxError { line: other, .. })) => {
                return Err(error_on(line, format!("${name}: line {other}, which is not understood, may set it")));
            }
            (None, None) => self.script.unset.push((name, line)),
        }
        Ok(())
    }

    /// Reads the letters, digits and underscores that come now.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(byte) = self.peek() {
            if byte != b'_' && !byte.is_ascii_alphanumeric() {
                break;
            }
            name.push(char::from(byte));
            self.advance();
        }
        name
    }

    fn skip_blanks_and_comment(&mut self) {
        while let Some(b' ' | b'\t') = self.peek() {
            self.advance();
        }
        // A backslash does not continue a comment.
        if self.peek() == Some(b'#') {
            while !matches!(self.raw(), None | Some(b'\n')) {
                self.advance();
            }
        }
    }

    fn at_blank(&mut self) -> bool {
        matches!(self.peek(), None | Some(b' ' | b'\t' | b'\n' | b';'))
    }

    /// The next byte, after passing over any backslash-newline.
    fn peek(&mut self) -> Option<u8> {
        while self.text[self.at..].starts_with(b"\\\n") {
            self.at += 2;
            self.line += 1;
        }
        self.raw()
    }

    /// The byte after the next one.
    fn second(&self) -> Option<u8> {
        self.text.get(self.at + 1).copied()
    }

    /// The next byte as it stands.
    fn raw(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn advance(&mut self) {
        if let Some(byte) = self.raw() {
            self.line += u32::from(byte == b'\n');
            self.at += 1;
        }
    }

    fn error(&self, message: &str) -> SyntaxError {
        error_on(self.line, message.to_owned())
    }

    /// The error for a command, with its first word.
    fn not_an_assignment(&self, line: u32, start: usize) -> SyntaxError {
        let rest = &self.text[start..];
        let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len()).min(40);
        let word = rest[..end].escape_ascii();
        error_on(line, format!("`{word}` is not an assignment: commands are not run here"))
    }
}

/// An error of which it is not known yet what it costs.
fn error_on(line: u32, message: String) -> SyntaxError {
    SyntaxError { line, message, loses: Loses::Anything, names: Vec::new() }
}

/// The names in a piece of a file that look as if something were assigned to them, and the settings among the others.
fn names_in(text: &[u8]) -> impl Iterator<Item = String> + '_ {
    let is_name_byte = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < text.len() {
            let start = at;
            let length = text[at..].iter().position(|byte| !is_name_byte(*byte)).unwrap_or(text.len() - at);
            let (word, rest) = text[at..].split_at(length);
            at += length.max(1);
            let is_assigned = matches!(rest, [b'=', ..] | [b'+', b'=', ..] | [b'[', ..]);
            // `$NAME` is only looked up.
            let is_used = text[..start].ends_with(b"$") || text[..start].ends_with(b"${");
            if (is_assigned || word.starts_with(SETTING)) && !is_used {
                if let Some(name) = std::str::from_utf8(word).ok().filter(|word| is_name(word)) {
                    return Some(name.to_owned());
                }
            }
        }
        None
    })
}

/// Tells whether a command is about the names that are in it and nothing else: an assignment, or meant for one.
fn is_about_a_name(text: &[u8]) -> bool {
    let mut words = text.split(|byte| byte.is_ascii_whitespace() || *byte == b';');
    if words.any(|word| matches!(word, b"." | b"source" | b"eval")) {
        return false;
    }
    let text = match text.strip_prefix(b"export") {
        Some(rest) if rest.starts_with(b" ") || rest.starts_with(b"\t") => rest.trim_ascii_start(),
        _ => text,
    };
    let length = text.iter().position(|byte| *byte != b'_' && !byte.is_ascii_alphanumeric()).unwrap_or(text.len());
    let (word, rest) = text.split_at(length);
    let is_assigned = matches!(rest, [b'=', ..] | [b'+', b'=', ..] | [b'[', ..]);
    std::str::from_utf8(word).is_ok_and(is_name) && (is_assigned || word.starts_with(SETTING))
}

fn is_name(word: &str) -> bool {
    word.starts_with(|first: char| first == '_' || first.is_ascii_alphabetic())
}

fn unclosed(line: u32, quote: char) -> SyntaxError {
    error_on(line, format!("this {quote} is not closed on its line"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// The values that our reader leaves behind, if it understands everything.
    fn ours(text: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, SyntaxError> {
        let script = parse(text);
        match script.errors.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(script.assignments.into_iter().filter_map(|one| Some((one.name, one.value?))).collect()),
        }
    }

    /// The values that a shell leaves behind, of the names that our reader found. `None`: the shell refused it.
    fn shells(shell: &str, text: &[u8], names: &BTreeMap<String, Vec<u8>>) -> Option<BTreeMap<String, Vec<u8>>> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text).expect("write");
        let show: String = names.keys().map(|name| format!("printf '%s\\0' \"${name}\"\n")).collect();
        let output = Command::new(shell)
            .args(["-c", &format!(". \"$1\"\n{show}"), shell])
            .arg(file.path())
            .env_clear()
            .output()
            .expect("a shell");
        if !output.status.success() || !output.stderr.is_empty() {
            return None;
        }
        let values = output.stdout.split(|byte| *byte == 0).map(<[u8]>::to_vec);
        Some(names.keys().cloned().zip(values).collect())
    }

    /// Files that a shell and we must understand alike.
    const ALIKE: &[&[u8]] = &[
        b"",
        b"\n\n# only a comment\n",
        b"A=1",
        b"A=1\nB=2\n",
        b"A=1 B=2; C=3;D=4;\n",
        b"  \t A=1\t# comment\nB=#not-a-comment\nC=x#y # but this\n",
        b"A=\nB=''\nC=\"\"\n",
        b"A='single $X `not` \\ \"here\"'\n",
        b"A=\"double \\$X \\`q\\` \\\\ \\\" \\n 'x'\"\n",
        b"A=un\\ quoted\\$\\'\\\"\\\\\\n\n",
        b"A=a'b'\"c\"d\\e\n",
        b"A=one\nB=$A\nC=${A}two\nD=\"$A ${A}\"\nE='$A'\n",
        b"A=1\nA=2\nB=$A\nA=3\n",
        b"A=1 B=$A C=$B$B\n",
        b"export A=1\nexport B\nexport C='x y' D=\"$A\" E\n",
        b"A=old\nexport A=new B=$A\n",
        b"A=one\\\ntwo\nB=\"one\\\ntwo\"\nC='one\\\ntwo'\n",
        b"A\\\nB=joined\n",
        b"A=1\nB=$\\\nA\n",
        b"A=1 \\\n  B=2\n",
        b"A='multi\nline'\nB=after\n",
        b"# comment with a backslash \\\nA=1\n",
        b"# isn't \"closed\" `here` $(there)\nA=1\n",
        b":\n: nothing at all\n: $UNSET 'x'\nA=1\n",
        b"A=$\nB=\"$\"\nC=a$.b\nD=\"a$ b\"\nE=\"$%\"\n",
        b"A=$UNSET\nB=x${UNSET}y\nC=\"$UNSET\"\n",
        b"A=* B=? C=[a-z] D={a,b} E=a=b=c F=a:b\n",
        b"A=!x B=%x C=@x D=^ E=+ F=, G=- H=/ I=] J=} K={\n",
        b"A='~' B=\"~/x\" C=\\~ D=a~b\n",
        b"A=\"--all --halt --wait\"\nB=--wait\n",
        b"_=x\n_A1=y\na=lower\n",
        b"A=x\\",
        b"A=\"x\\y\"\n",
        b"A=1;B=2 # c ; D=4\nC=3\n",
        b"export A=1;B=2\n",
        b"A=\xe4\xf6\xfc\nB='\xff\xfe'\n# \xe4\n",
        b"A='a'\\''b'\n",
        b"A=\"a\"\"b\"'c'\n",
        b"XENDOMAINS_SYSRQ=\"s e i u o\"\nXENDOMAINS_SAVE=/var/lib/xen/save\nXENDOMAINS_MIGRATE=\"\"\n",
        b"A=\x0bvt\x0cff\n",
        b"A=then B=if C=done\n",
    ];

    /// Files that need a shell, with a piece of what we say about them.
    const REFUSED: &[(&[u8], u32, &str)] = &[
        (b"A=1\nls\n", 2, "`ls` is not an assignment"),
        (b"if true; then A=1; fi\n", 1, "`if`"),
        (b"\n\n. /etc/default/other\n", 3, "`.`"),
        (b"A=1 ls\n", 1, "`ls`"),
        (b"A=$(hostname)\n", 1, "command substitution"),
        (b"A=\"x\n$(hostname)\"\n", 1, "not closed on its line"),
        (b"A=`hostname`\n", 1, "command substitution"),
        (b"A=\"`hostname`\"\n", 1, "command substitution"),
        (b"A=$((1+1))\n", 1, "arithmetic"),
        (b"A=$[1+1]\n", 1, "arithmetic"),
        (b"A=${B:-c}\n", 1, "${NAME}"),
        (b"A=${}\n", 1, "${NAME}"),
        (b"A=${1}\n", 1, "${NAME}"),
        (b"A=${B\n", 1, "${NAME}"),
        (b"A=$1\n", 1, "`$1`"),
        (b"A=$$\n", 1, "`$$`"),
        (b"A=$'x'\n", 1, "quote"),
        (b"A=(a b)\n", 1, "array"),
        (b"A+=x\n", 1, "`A+=x`"),
        (b"A[0]=x\n", 1, "`A[0]=x`"),
        (b"1A=x\n", 1, "`1A=x`"),
        (b"=x\n", 1, "`=x`"),
        (b"A = x\n", 1, "`A`"),
        (b"A=x | y\n", 1, "`|`"),
        (b"A=x & B=y\n", 1, "`&`"),
        (b"A=x&&B=y\n", 1, "`&`"),
        (b"A=x > /tmp/y\n", 1, "`>`"),
        (b"(A=x)\n", 1, "`(A=x)`"),
        (b"A='x\n\n", 1, "not closed"),
        (b"A=1\nB=\"x\n\n", 2, "not closed"),
        (b"A='x", 1, "not closed"),
        (b"A=1;;B=2\n", 1, "`;;`"),
        (b"; A=1\n", 1, "`;`"),
        (b"A=~/x\n", 1, "`~`"),
        (b"A=x:~/x\n", 1, "`~`"),
        (b"A=1\nB=true\r\n", 2, "DOS"),
        (b"A=x\ry\n", 1, "carriage return"),
        (b"\xef\xbb\xbfA=1\n", 1, "byte order mark"),
        (b"export\n", 1, "without a name"),
        (b"export -n A\n", 1, "`-n`"),
        (b"export \"A=1\"\n", 1, "is not an assignment"),
        (b"export A+=1\n", 1, "is not an assignment"),
        (b"\"A\"=1\n", 1, "is not an assignment"),
        (b"\\A=1\n", 1, "is not an assignment"),
        (b"A=\0\n", 1, "NUL"),
        (b"A='\0'\n", 1, "NUL"),
        (b"exportA\n", 1, "`exportA`"),
        (b"test -n \"$A\" && B=1\n", 1, "`test`"),
    ];

    #[test]
    fn reads_what_a_shell_reads() {
        for shell in ["sh", "bash"] {
            for text in ALIKE {
                let shown = text.escape_ascii().to_string();
                let ours = ours(text).unwrap_or_else(|error| panic!("{shown}: {error:?}"));
                if shell == "bash" && (ours.contains_key("_") || text.contains(&0x0b)) {
                    continue; // bash sets `_` itself, and has its own idea of blanks in some locales
                }
                let theirs = shells(shell, text, &ours).unwrap_or_else(|| panic!("{shell} refuses {shown}"));
                assert_eq!(ours, theirs, "{shell}: {shown}");
            }
        }
    }

    #[test]
    fn refuses_what_needs_a_shell() {
        for (text, line, message) in REFUSED {
            let shown = text.escape_ascii();
            let error = ours(text).expect_err(&shown.to_string());
            assert_eq!(error.line, *line, "{shown}: {error:?}");
            assert!(error.message.contains(message), "{shown}: {error:?}");
        }
    }

    #[test]
    fn names_the_line_an_assignment_starts_on() {
        let script = parse(b"# c\nA='x\ny'\nB=1 \\\nC=2\n");
        let lines: Vec<_> = script.assignments.iter().map(|a| (a.name.as_str(), a.line)).collect();
        assert_eq!(lines, [("A", 2), ("B", 4), ("C", 5)]);
    }

    #[test]
    fn names_what_was_used_unset() {
        let script = parse(b"A=$B\nB=1\nC=${B}$D\n");
        assert_eq!(script.unset, [("B".to_owned(), 1), ("D".to_owned(), 3)]);
    }

    /// The names in the end with their values, and what each mistake loses.
    fn left(text: &[u8]) -> (String, Vec<(u32, Loses)>) {
        let script = parse(text);
        let last: BTreeMap<_, _> = script.assignments.into_iter().map(|one| (one.name, one.value)).collect();
        let show = |(name, value): (String, Option<Vec<u8>>)| match value {
            Some(value) => format!("{name}={}", value.escape_ascii()),
            None => format!("{name}?"),
        };
        let errors = script.errors.iter().map(|error| (error.line, error.loses)).collect();
        (last.into_iter().map(show).collect::<Vec<_>>().join(" "), errors)
    }

    #[test]
    fn a_mistake_costs_its_line_and_no_more() {
        use Loses::{Anything, Named, Nothing};
        for (text, values, errors) in [
            // All of the line is lost, and an earlier value with it.
            (&b"A=0\nA=$(x)\nB=1\n"[..], "A? B=1", &[(2, Named)][..]),
            (b"A=$(x)\nA=1\n", "A=1", &[(1, Named)]),
            (b"A=--halt --wait\nB=1", "A? B=1", &[(1, Named)]),
            (b"A=1 B=$(x) C=2\nD=3", "A? B? C? D=3", &[(1, Named)]),
            (b"A=1; B=$(x); export C=2\nD=3", "A=1 B? C? D=3", &[(1, Named)]),
            (b"export A=1 B=`x`\nC=2", "A? B? C=2", &[(1, Named)]),
            (b"A=$(x) \\\n  B=1\nC=2", "A? B? C=2", &[(1, Named)]),
            (b"XENDOMAINS_A = 3\nB=1", "B=1 XENDOMAINS_A?", &[(1, Named)]),
            (b"A+=1\nB[0]=1\nC=1\n", "A? B? C=1", &[(1, Named), (2, Named)]),
            // A value made of one that is not known is not known either.
            (b"A=$(x)\nB=$A/y C=1\nD=2", "A? B? C? D=2", &[(1, Named), (2, Named)]),
            // Commands may do anything.
            (b"if x; then\n  A=1\nfi\n", "A=1", &[(1, Anything), (3, Anything)]),
            (b". /x\nA=$B\nC=1\n", "A? C=1", &[(1, Anything), (2, Named)]),
            (b"A=$(x); . /x\n", "A?", &[(1, Anything)]),
            (b"test x && A=1\nB=1\n", "A? B=1", &[(1, Anything)]),
            (b"\"A\"=1\nB=1\n", "B=1", &[(1, Anything)]),
            // A quote that is not closed.
            (b"A=\"x\nB=1\nC=2\n", "A? B=1 C=2", &[(1, Named)]),
            (b"A=\"x\n# it's `so`\nB=\"y\"\nC=2\n", "A? B=y C=2", &[(1, Named)]),
            (b"A='x\n\n# isn't it so\nB='y'\n", "A? B=y", &[(1, Named)]),
            (b"A=1\nB='x\nC=1", "A=1 B? C=1", &[(2, Named)]),
            (b"A=\"x\nXENDOMAINS_B=\"y\nC=1\n", "A? C=1 XENDOMAINS_B?", &[(1, Named), (2, Named)]),
            (b"A='x\n#XENDOMAINS_B=1\n'\nC=1\n", "A? C=1", &[(1, Named), (3, Anything)]),
            // The meaning is clear, or there is nothing more that could be read.
            (b"A=1\r\nB='x'\r\n\r\n# c\r\n", "A=1 B=x", &[(1, Nothing)]),
            (b"\xef\xbb\xbf# c\nA=1\n", "A=1", &[(1, Nothing)]),
            (b"A=1\nB=\0\nC=1\n", "A=1 B? C?", &[(2, Anything)]),
            (b"\xff\xfeA\0=\x001\0\n\0", "", &[(1, Anything)]),
        ] {
            let shown = text.escape_ascii();
            assert_eq!(left(text), (values.to_owned(), errors.to_vec()), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let lines = line_at(&text, text.len());
            for error in parse(&text).errors {
                prop_assert!((1..=lines).contains(&error.line), "{:?}", error);
            }
        }

        /// Pieces that matter, in any order: what we accept, `sh` accepts with the same values.
        #[test]
        fn agrees_with_sh(pieces in proptest::collection::vec(prop::sample::select(vec![
            "A", "B", "A=", "B=", "=", " ", "\t", "\n", ";", "#", "'", "\"", "\\", "\\\n", "$", "$A", "${B}", "{", "}",
            "x", "y z", "*", "~", ":", "-", "export ", "export A", ": ",
        ]), 0..14)) {
            let text = pieces.concat();
            // `export A=$B` with blanks or patterns in B is where shells differ (see the module's text).
            prop_assume!(!(text.contains("export") && text.contains('$')));
            if let Ok(ours) = ours(text.as_bytes()) {
                let theirs = shells("sh", text.as_bytes(), &ours);
                prop_assert_eq!(Some(ours), theirs);
            }
        }
    }
}
