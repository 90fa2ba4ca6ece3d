//! The guests' files of `tests/configs`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::answer::Verdict;

/// What a file shows, by the directory that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// xl and we take it, with the same result.
    Accepted,
    /// Both refuse it.
    Refused,
    /// xl takes it and we refuse it.
    Stricter,
}

const DIRECTORIES: [(&str, Kind); 3] =
    [("accepted", Kind::Accepted), ("refused", Kind::Refused), ("stricter", Kind::Stricter)];

/// A guest's file.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its path from the corpus on.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What it shows.
    pub kind: Kind,
    /// The xl.conf of the host that it is for, if the host has one.
    pub xl_conf: Option<PathBuf>,
}

/// The corpus of a workspace.
#[must_use]
pub fn directory(workspace: &Path) -> PathBuf {
    workspace.join("tests/configs")
}

/// Reads the list of all files, in the order of their names.
///
/// # Errors
/// It can't be read, or there is something in it that does not belong there.
pub fn read(root: &Path) -> Result<Vec<Config>> {
    let mut configs = Vec::new();
    for (name, kind) in DIRECTORIES {
        let directory = root.join(name);
        for topic in entries(&directory)? {
            for path in entries(&topic)? {
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if let Some(stem) = file.strip_suffix(".xl.conf") {
                    let config = topic.join(format!("{stem}.cfg"));
                    ensure!(config.is_file(), "{} is the xl.conf of no file", path.display());
                    continue;
                }
                ensure!(file.ends_with(".cfg"), "{} is no guest's file", path.display());
                says_what_it_shows(&path)?;
                let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                let xl_conf = xl_conf_of(&path);
                configs.push(Config { name, path, kind, xl_conf });
            }
        }
    }
    Ok(configs)
}

/// The xl.conf beside a guest's file, if there is one.
#[must_use]
pub fn xl_conf_of(config: &Path) -> Option<PathBuf> {
    Some(config.with_extension("xl.conf")).filter(|path| path.is_file())
}

/// What is in a directory, by name.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let listing = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let paths: std::io::Result<Vec<_>> = listing.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.with_context(|| format!("list {}", directory.display()))?;
    paths.sort();
    Ok(paths)
}

/// A file begins with a comment, unless it is empty or in an encoding that xl can't read.
fn says_what_it_shows(path: &Path) -> Result<()> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let utf_16 = text.starts_with(b"\xff\xfe");
    ensure!(
        text.is_empty() || utf_16 || text.starts_with(b"# "),
        "{} does not begin with a comment",
        path.display()
    );
    Ok(())
}

/// Checks that a file shows what its directory says. `newest` is whether the release is the newest one: older ones need
/// only do as we do.
///
/// # Errors
/// It does not; the error has a line for each difference.
pub fn check(kind: Kind, newest: bool, verdict: &Verdict) -> Result<()> {
    match (kind, verdict) {
        (_, Verdict::Different(differences)) => {
            let lines: Vec<_> = differences.iter().map(ToString::to_string).collect();
            bail!("{}", lines.join("\n"))
        }
        (Kind::Accepted, Verdict::Same)
        | (Kind::Refused, Verdict::BothRefuse(_))
        | (Kind::Stricter, Verdict::Stricter(_)) => Ok(()),
        (Kind::Accepted | Kind::Refused, Verdict::Stricter(deviation)) => {
            bail!("the file: xl: takes it and {}; we: refused", deviation.xl)
        }
        _ if !newest => Ok(()),
        (_, Verdict::XlDies(what)) => bail!("xl dies of it: {what}"),
        (_, Verdict::Same) => bail!("both take it, and it is in the directory for {}", shown(kind)),
        (_, Verdict::BothRefuse(words)) => {
            bail!("both refuse it, and it is in the directory for {} ({words})", shown(kind))
        }
    }
}

fn shown(kind: Kind) -> &'static str {
    match kind {
        Kind::Accepted => "what both take",
        Kind::Refused => "what both refuse",
        Kind::Stricter => "what only we refuse",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stricter;

    #[test]
    fn a_file_must_do_what_its_directory_says() {
        let both = Verdict::BothRefuse(String::new());
        let stricter = Verdict::Stricter(&stricter::ALL[0]);
        let different = Verdict::Different(Vec::new());
        for (kind, right, wrong) in [
            (Kind::Accepted, &Verdict::Same, [&both, &stricter, &different]),
            (Kind::Refused, &both, [&Verdict::Same, &stricter, &different]),
            (Kind::Stricter, &stricter, [&Verdict::Same, &both, &different]),
        ] {
            assert!(check(kind, true, right).is_ok(), "{kind:?}");
            for verdict in wrong {
                assert!(check(kind, true, verdict).is_err(), "{kind:?} {verdict:?}");
            }
        }
    }

    #[test]
    fn older_releases_need_only_do_as_we_do() {
        let both = Verdict::BothRefuse(String::new());
        let stricter = Verdict::Stricter(&stricter::ALL[0]);
        assert!(check(Kind::Accepted, false, &both).is_ok());
        assert!(check(Kind::Refused, false, &Verdict::Same).is_ok());
        assert!(check(Kind::Accepted, false, &stricter).is_err());
        assert!(check(Kind::Accepted, false, &Verdict::Different(Vec::new())).is_err());
    }

    #[test]
    fn the_corpus_is_complete() {
        let configs = read(&directory(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))).expect("the corpus");
        for kind in [Kind::Accepted, Kind::Refused, Kind::Stricter] {
            assert!(configs.iter().any(|config| config.kind == kind), "{kind:?}");
        }
        assert!(configs.iter().any(|config| config.xl_conf.is_some()));
    }
}
