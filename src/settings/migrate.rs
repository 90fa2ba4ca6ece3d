//! `XENDOMAINS_MIGRATE`: what an admin has written for `xm migrate` or `xl migrate`.
//!
//! The scripts put the value behind these commands as it stands, so it is a target host among options, in any order.
//! The two commands do not mean the same by all of their options:
//!
//! | word | xm | xl | here |
//! |---|---|---|---|
//! | `--live`, `-l` | copy while the guest runs | only `--live`, always on | always on |
//! | `-s CMD` | (`-s` is `--ssl`) | the command in the place of `ssh` | as xl; also `--ssh` |
//! | `-p N`, `--port` | the port to connect to | (`-p` leaves the guest paused) | as xm: `ssh -p N` |
//! | `-e` | – | nothing watches the guest on the target | as xl |
//! | `-C FILE` | – | this configuration instead of the guest's own | for the guest that the file is for |
//! | `--debug` | – | the target logs more | as xl |
//! | `--ssl`, `-r`, `-n`, `-c` and their long forms | several | – | refused: nothing is migrated |
//!
//! Words are separated by blanks, as for a shell. Quotes keep what has blanks together, which the scripts could not do.

use std::path::PathBuf;

/// Where guests are migrated to, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrate {
    /// The hosts, in the order in which they are tried. There is at least one.
    pub targets: Vec<String>,
    /// What connects to them.
    pub transport: TransportKind,
    /// `-e`: nothing is to watch the guest on the target.
    pub unmonitored: bool,
    /// `--debug`: the target logs more.
    pub debug: bool,
    /// `-C`: the configuration that one guest is to have on the target.
    pub config: Option<PathBuf>,
}

/// What connects this host to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransportKind {
    /// `ssh`, with this port if it is not the usual one.
    Ssh {
        /// `-p`.
        port: Option<u16>,
    },
    /// `-s`: this command, followed by the target and the command to be run there.
    Command(String),
    /// `-s ''`: each target is a whole command, which ends up at a `xl migrate-receive`.
    Target,
}

/// Options of the two commands that ask for something that can't be done here.
const REFUSED: &[(char, &str, &str)] = &[
    ('\0', "ssl", "xend's encryption; what ssh carries is encrypted"),
    ('r', "resource", "xend's limit for the bandwidth; ssh has none"),
    ('n', "node", "xend's choice of a NUMA node; the target chooses itself"),
    ('c', "change_home_server", "a mark of xend's managed domains"),
    ('D', "preserve-domid", "the target chooses a number that is free"),
];

const ACCEPTED: &str = "accepted: --live, -s COMMAND, -p PORT, -e, -C FILE, --debug";

/// Reads the value. `None`: there is nothing in it.
pub(super) fn read(value: &str) -> Result<Option<Migrate>, String> {
    let mut words = words(value)?.into_iter();
    let mut found = Found::default();
    let mut any = false;
    while let Some(word) = words.next() {
        any = true;
        if let Some(name) = word.text().strip_prefix("--").filter(|_| !word.quoted) {
            found.long(name, &mut words)?;
        } else if let Some(letters) = word.text().strip_prefix('-').filter(|_| !word.quoted) {
            found.short(letters, &mut words)?;
        } else {
            found.targets.extend(word.parts.into_iter().filter(|part| !part.is_empty()));
        }
    }
    if any { found.finish().map(Some) } else { Ok(None) }
}

#[derive(Default)]
struct Found {
    targets: Vec<String>,
    command: Option<String>,
    port: Option<u16>,
    unmonitored: bool,
    debug: bool,
    config: Option<PathBuf>,
}

impl Found {
    fn long(&mut self, word: &str, more: &mut impl Iterator<Item = Word>) -> Result<(), String> {
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        let option = match name {
            "live" => 'l',
            "ssh" => 's',
            "port" => 'p',
            "debug" => 'd',
            _ => return Err(refusal(&format!("--{word}"), |(_, long, _)| *long == name)),
        };
        match value {
            Some(_) if matches!(option, 'l' | 'd') => Err(format!("`--{word}`: takes no value")),
            _ => self.set(option, &format!("--{name}"), value.map(str::to_owned), more),
        }
    }

    /// One letter after the other, the last perhaps with a value.
    fn short(&mut self, letters: &str, more: &mut impl Iterator<Item = Word>) -> Result<(), String> {
        if letters.is_empty() {
            return Err(format!("`-`: not an option; {ACCEPTED}"));
        }
        for (at, letter) in letters.char_indices() {
            let option = format!("-{letter}");
            match letter {
                'l' | 'e' => self.set(letter, &option, None, more)?,
                's' | 'p' | 'C' => {
                    let rest = &letters[at + 1..];
                    let value = Some(rest).filter(|rest| !rest.is_empty()).map(str::to_owned);
                    return self.set(letter, &option, value, more);
                }
                _ => return Err(refusal(&option, |(short, _, _)| *short == letter)),
            }
        }
        Ok(())
    }

    fn set(
        &mut self,
        option: char,
        shown: &str,
        value: Option<String>,
        more: &mut impl Iterator<Item = Word>,
    ) -> Result<(), String> {
        let needed = |what: &str| {
            let value = value.or_else(|| more.next().map(|word| word.text()));
            value.ok_or_else(|| format!("`{shown}`: needs {what} behind it"))
        };
        match option {
            'l' => {}
            'e' => self.unmonitored = true,
            'd' => self.debug = true,
            's' => self.command = Some(needed("a command")?),
            'C' => {
                let file = needed("a file")?;
                if !file.starts_with('/') {
                    return Err(format!("`{shown} {file}`: must be an absolute path"));
                }
                self.config = Some(file.into());
            }
            _ => {
                let port = needed("a number")?;
                let number = port.parse().ok().filter(|&number| number != 0);
                self.port = Some(number.ok_or_else(|| format!("`{shown} {port}`: not the number of a port"))?);
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<Migrate, String> {
        if self.targets.is_empty() {
            return Err("names no host to migrate to".to_owned());
        }
        // A program that is given such a target would take it for an option.
        if let Some(target) = self.targets.iter().find(|target| target.starts_with('-')) {
            return Err(format!("`{target}`: not a host; {ACCEPTED}"));
        }
        let transport = match (self.command, self.port) {
            (Some(_), Some(port)) => {
                return Err(format!("`-p {port}`: the port of ssh, but `-s` has another command: give it there"));
            }
            (Some(command), None) if command.trim().is_empty() => TransportKind::Target,
            (Some(command), None) => TransportKind::Command(command),
            (None, port) => TransportKind::Ssh { port },
        };
        let Found { targets, unmonitored, debug, config, .. } = self;
        Ok(Migrate { targets, transport, unmonitored, debug, config })
    }
}

fn refusal(option: &str, is_it: impl Fn(&&(char, &str, &str)) -> bool) -> String {
    match REFUSED.iter().find(is_it) {
        Some((_, _, what)) => format!("`{option}`: can't be honoured ({what}); {ACCEPTED}"),
        None => format!("`{option}`: not an option; {ACCEPTED}"),
    }
}

/// What stands between blanks.
#[derive(Debug, Default)]
struct Word {
    /// What stands between commas outside of quotes.
    parts: Vec<String>,
    /// Whether it begins with a quote, so that it is no option.
    quoted: bool,
}

impl Word {
    /// The commas with it.
    fn text(&self) -> String {
        self.parts.join(",")
    }
}

fn words(value: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        if letter.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let is_quote = matches!(letter, '\'' | '"');
        let word = word.get_or_insert_with(|| Word { parts: vec![String::new()], quoted: is_quote });
        if letter == ',' {
            word.parts.push(String::new());
            continue;
        }
        let Some(part) = word.parts.last_mut() else { continue };
        if !is_quote {
            part.push(letter);
            continue;
        }
        loop {
            match letters.next() {
                None => return Err(format!("the quote {letter} is not closed")),
                Some(end) if end == letter => break,
                Some(inside) => part.push(inside),
            }
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(targets: &[&str]) -> Migrate {
        Migrate {
            targets: targets.iter().map(|target| (*target).to_owned()).collect(),
            transport: TransportKind::Ssh { port: None },
            unmonitored: false,
            debug: false,
            config: None,
        }
    }

    fn valid(value: &str) -> Migrate {
        read(value).unwrap_or_else(|error| panic!("{value}: {error}")).expect("not empty")
    }

    #[test]
    fn hosts_and_options_in_any_order() {
        for value in ["10.0.0.2", "10.0.0.2 --live", "--live 10.0.0.2", " -l\t10.0.0.2 ", "10.0.0.2,"] {
            assert_eq!(valid(value), to(&["10.0.0.2"]), "{value}");
        }
        for value in ["a b root@c", "a,b,root@c", "a, b --live , root@c", "'a','b' \"root@c\""] {
            assert_eq!(valid(value), to(&["a", "b", "root@c"]), "{value}");
        }
        for value in ["", "  ", "\t"] {
            assert_eq!(read(value), Ok(None), "{value}");
        }
    }

    #[test]
    fn options_of_both_commands() {
        let port = Migrate { transport: TransportKind::Ssh { port: Some(2222) }, ..to(&["h"]) };
        for value in ["-p 2222 h", "-p2222 h", "--port=2222 h", "--port 2222 h", "h -lp 2222"] {
            assert_eq!(valid(value), port, "{value}");
        }
        let command = |text: &str| Migrate { transport: TransportKind::Command(text.to_owned()), ..to(&["h"]) };
        for value in
            ["-s /bin/mine h", "-s/bin/mine h", "--ssh=/bin/mine h", "h --ssh /bin/mine", "h -ls /bin/mine"]
        {
            assert_eq!(valid(value), command("/bin/mine"), "{value}");
        }
        assert_eq!(valid("-s 'ssh -o A=b,c' h"), command("ssh -o A=b,c"));
        assert_eq!(valid("--ssh='ssh -4' h"), command("ssh -4"));
        let whole = Migrate { transport: TransportKind::Target, ..to(&["ssh a xl migrate-receive", "b"]) };
        assert_eq!(valid("-s '' 'ssh a xl migrate-receive' b"), whole);
        assert_eq!(
            valid("h -e --debug -C /etc/xen/web.cfg"),
            Migrate { unmonitored: true, debug: true, config: Some("/etc/xen/web.cfg".into()), ..to(&["h"]) }
        );
    }

    #[test]
    fn what_cant_be_honoured_is_named() {
        for (value, words) in [
            ("h --ssl", &["`--ssl`", "can't be honoured"][..]),
            ("h --resource=100", &["`--resource=100`", "bandwidth"]),
            ("h -r 100", &["`-r`", "bandwidth"]),
            ("h -n 1", &["`-n`", "NUMA"]),
            ("h --node=1", &["`--node=1`", "NUMA"]),
            ("h -c", &["`-c`", "managed"]),
            ("h -D", &["`-D`"]),
            ("h --lvie", &["`--lvie`", "not an option", "accepted: --live"]),
            ("h -x", &["`-x`", "not an option"]),
            ("h -", &["`-`"]),
            ("h --", &["`--`"]),
            ("h --live=1", &["takes no value"]),
            ("h -s", &["`-s`: needs a command"]),
            ("h -p", &["needs a number"]),
            ("h -p ssh", &["not the number of a port"]),
            ("h -p 0", &["not the number of a port"]),
            ("h -p 70000", &["not the number of a port"]),
            ("h -s mine -p 3", &["give it there"]),
            ("h -C web.cfg", &["absolute"]),
            ("--live", &["names no host"]),
            (",", &["names no host"]),
            ("'-oProxyCommand=x'", &["not a host"]),
            ("a,-b", &["`-b`", "not a host"]),
            ("h 'x", &["not closed"]),
        ] {
            let error = read(value).expect_err(value);
            assert!(words.iter().all(|word| error.contains(word)), "{value}: {error}");
        }
    }
}
