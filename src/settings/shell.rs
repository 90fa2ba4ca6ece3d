//! The part of shell syntax that a settings file is written in, read without a shell.
//!
//! What is read: assignments (`NAME=VALUE`, several on a line, separated by blanks or `;`), `export NAME=VALUE` and
//! `export NAME`, `:`, comments; in values the quoting of `sh`, backslash-newline, and `$NAME` or `${NAME}` of names
//! that were assigned before. Everything else would need a shell to know what it means, and is an error.
//!
//! The meaning is that of `sh`, with three differences, all of them on the side of saying so:
//! - The environment does not count: a name that the file did not assign is empty, and is warned about.
//! - `export NAME=$OTHER` is an assignment as in POSIX.1-2024 and bash; older shells split and glob such a value.
//! - An unquoted `~` where a shell would put a home directory, and a carriage return outside quotes (a file with DOS
//!   line ends), are errors.

use std::collections::HashMap;

/// One `NAME=VALUE`, its value with all quoting removed and all names expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The name.
    pub name: String,
    /// The value. Bytes, because paths are.
    pub value: Vec<u8>,
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
}

/// Something that is not an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// The line that it is on, from 1.
    pub line: u32,
    /// What is wrong with it.
    pub message: String,
}

/// Reads a file of shell assignments.
pub fn parse(text: &[u8]) -> Result<Script, SyntaxError> {
    let mut parser = Parser { text, at: 0, line: 1, known: HashMap::new(), script: Script::default() };
    while parser.command()? {}
    Ok(parser.script)
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
    known: HashMap<String, Vec<u8>>,
    script: Script,
}

impl Parser<'_> {
    /// Reads one command with its terminator. False at the end of the file.
    fn command(&mut self) -> Result<bool, SyntaxError> {
        loop {
            self.skip_blanks_and_comment();
            match self.peek() {
                Some(b'\n') => self.advance(),
                Some(b';') => return Err(self.error("`;` without anything before it")),
                Some(_) => break,
                None => return Ok(false),
            }
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
        Ok(Assignment { name, value, line })
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
                b'\r' => return Err(self.error("carriage return: the file has DOS line ends")),
                0 => return Err(self.error("NUL byte: not a text file")),
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
                Some(0) => return Err(self.error("NUL byte: not a text file")),
                Some(byte) => value.push(byte),
            }
            self.advance();
        }
        self.advance();
        Ok(())
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
                Some(0) => return Err(self.error("NUL byte: not a text file")),
                Some(byte) => {
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
                self.expand(name, line, value);
            }
            Some(b'{') => {
                self.advance();
                let name = self.name();
                if !is_name(&name) || self.peek() != Some(b'}') {
                    return Err(SyntaxError {
                        line, message: "of `${…}` only `${NAME}` is read here".to_owned()
                    });
                }
                self.advance();
                self.expand(name, line, value);
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

    fn expand(&mut self, name: String, line: u32, value: &mut Vec<u8>) {
        match self.known.get(&name) {
            Some(known) => value.extend_from_slice(known),
            None => self.script.unset.push((name, line)),
        }
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
        SyntaxError { line: self.line, message: message.to_owned() }
    }

    /// The error for a command, with its first word.
    fn not_an_assignment(&self, line: u32, start: usize) -> SyntaxError {
        let rest = &self.text[start..];
        let end = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len()).min(40);
        let word = rest[..end].escape_ascii();
        SyntaxError { line, message: format!("`{word}` is not an assignment: commands are not run here") }
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|first: char| first == '_' || first.is_ascii_alphabetic())
}

fn unclosed(line: u32, quote: char) -> SyntaxError {
    SyntaxError { line, message: format!("this {quote} is never closed") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// The values that our reader leaves behind.
    fn ours(text: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, SyntaxError> {
        let script = parse(text)?;
        Ok(script.assignments.into_iter().map(|assignment| (assignment.name, assignment.value)).collect())
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
        (b"A=\"x\n$(hostname)\"\n", 2, "command substitution"),
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
        (b"A='x\n\n", 1, "never closed"),
        (b"A=1\nB=\"x\n\n", 2, "never closed"),
        (b"A=1;;B=2\n", 1, "`;;`"),
        (b"; A=1\n", 1, "`;`"),
        (b"A=~/x\n", 1, "`~`"),
        (b"A=x:~/x\n", 1, "`~`"),
        (b"A=true\r\n", 1, "DOS"),
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
            let error = parse(text).expect_err(&shown.to_string());
            assert_eq!(error.line, *line, "{shown}: {error:?}");
            assert!(error.message.contains(message), "{shown}: {error:?}");
        }
    }

    #[test]
    fn names_the_line_an_assignment_starts_on() {
        let script = parse(b"# c\nA='x\ny'\nB=1 \\\nC=2\n").expect("valid");
        let lines: Vec<_> = script.assignments.iter().map(|a| (a.name.as_str(), a.line)).collect();
        assert_eq!(lines, [("A", 2), ("B", 4), ("C", 5)]);
    }

    #[test]
    fn names_what_was_used_unset() {
        let script = parse(b"A=$B\nB=1\nC=${B}$D\n").expect("valid");
        assert_eq!(script.unset, [("B".to_owned(), 1), ("D".to_owned(), 3)]);
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&text);
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
