//! The defects of the `xendomains` scripts, by number: the same scenario is run with upstream's script, Debian's script
//! and this program, and the three results are printed side by side.
//!
//! `pains --program FILE [-v] [NUMBER…]`; the last line counts: `N passed, N failed`. A defect has passed if this program
//! is free of it, and the scripts are what is written of them in [`pains`].

mod dom0;
mod pains;
mod scenario;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use dom0::{Parts, Whose};
use pains::{Evidence, Known, Pain};
use stand_ins::xl;

struct Arguments {
    program: PathBuf,
    verbose: bool,
    numbers: Vec<u8>,
}

fn arguments() -> Result<Arguments> {
    let (mut program, mut verbose, mut numbers) = (None, false, Vec::new());
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--program" => program = words.next().map(PathBuf::from),
            "-v" => verbose = true,
            number => numbers.push(number.parse().with_context(|| format!("{number} is no number of a defect"))?),
        }
    }
    let program = program.context("--program FILE is missing: the xendomains to test")?;
    Ok(Arguments { program, verbose, numbers })
}

/// Defects that are looked at at the same time. Mostly a script sleeps.
const JOBS: usize = 4;

/// How one of the three does.
struct Seen {
    /// A word for the table.
    word: &'static str,
    /// Why, for people.
    why: String,
    /// It is as expected.
    right: bool,
}

/// The word for what is known of ours and comes later.
const NOT_YET: &str = "not yet";

/// Looks at one of the three, and also tells what it said.
fn look(parts: &Parts, whose: Whose, pain: &Pain) -> Result<(Seen, String)> {
    let (differences, transcript) = match (&pain.evidence, pain.known(whose)) {
        (_, Known::NotShown(why)) => {
            let word = if whose == Whose::Ours { NOT_YET } else { "-" };
            return Ok((Seen { word, why: why.to_owned(), right: true }, String::new()));
        }
        (Evidence::Scenario(host, steps), _) => scenario::run(parts, whose, host, steps)?,
        (Evidence::Reading(read), _) => (read(parts, whose)?, String::new()),
        (Evidence::None, _) => bail!("nothing is there to look at"),
    };
    let shows = |part: &str| differences.iter().any(|difference| difference.contains(part));
    let (word, right) = match (pain.known(whose), differences.is_empty()) {
        (Known::HasIt(part), false) if whose == Whose::Ours => (NOT_YET, shows(part)),
        (Known::HasIt(part), false) => ("has it", shows(part)),
        (Known::HasIt(_), true) => ("free", false),
        (_, is_free) => (if is_free { "free" } else { "has it" }, is_free),
    };
    let mut remarks = differences;
    if whose == Whose::Ours && !pain.note.is_empty() {
        remarks.push(pain.note.to_owned());
    }
    if let (Known::HasIt(part), false) = (pain.known(whose), right) {
        remarks.push(format!("what is known of it is {part:?}"));
    }
    Ok((Seen { word, why: remarks.join("; "), right }, transcript))
}

/// All three, for one defect.
fn examine(parts: &Parts, pain: &Pain, verbose: bool) -> [Seen; 3] {
    Whose::ALL.map(|whose| match look(parts, whose, pain) {
        Ok((mut seen, transcript)) => {
            if verbose || !seen.right {
                seen.why += &format!("\n{transcript}");
            }
            seen
        }
        Err(error) => Seen { word: "error", why: format!("{error:?}"), right: false },
    })
}

fn run() -> Result<bool> {
    let arguments = arguments()?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().context("the workspace")?;
    let parts = Parts::fetch(&workspace, arguments.program)?;
    let mut pains = pains::all();
    pains.retain(|pain| arguments.numbers.is_empty() || arguments.numbers.contains(&pain.number));
    if pains.is_empty() {
        bail!("there is no defect with such a number");
    }
    let waiting = Mutex::new(pains.iter().enumerate());
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    // The guard is gone before the scenario begins.
                    let next = lock(&waiting).next();
                    let Some((place, pain)) = next else { return };
                    let seen = examine(&parts, pain, arguments.verbose);
                    lock(&results).insert(place, seen);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(report(&pains, results.values()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints the table with the reasons, and whether all is as expected.
fn report<'a>(pains: &[Pain], results: impl Iterator<Item = &'a [Seen; 3]>) -> bool {
    let (mut passed, mut failed, mut later) = (0, 0, Vec::new());
    let [upstream, debian, ours] = Whose::ALL.map(Whose::name);
    println!("{upstream:<9} {debian:<9} {ours:<9} defect");
    for (pain, seen) in pains.iter().zip(results) {
        let [upstream, debian, ours] = seen.each_ref().map(|seen| seen.word);
        let right = seen.iter().all(|seen| seen.right);
        println!("{upstream:<9} {debian:<9} {ours:<9} {}: {}", pain.number, pain.title);
        for (whose, seen) in Whose::ALL.iter().zip(seen).filter(|(_, seen)| !seen.why.is_empty()) {
            let mark = if seen.right { "" } else { "UNEXPECTED, " };
            println!("{:30}{mark}{}: {}", "", whose.name(), seen.why);
        }
        match right {
            false => failed += 1,
            true if ours == NOT_YET => later.push(pain.number.to_string()),
            true => passed += 1,
        }
    }
    if !later.is_empty() {
        println!("not yet: {}", later.join(", "));
    }
    println!("{passed} passed, {failed} failed");
    failed == 0
}

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == "xl") {
        return xl::main(&arguments.collect::<Vec<_>>());
    }
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("pains: {e:?}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(directory: &Path, text: &mut String) {
        for entry in
            std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() && !entry.ends_with("target") {
                source(&entry, text);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                *text += &std::fs::read_to_string(&entry).expect("text");
            }
        }
    }

    /// Names with underscores are those of tests, and there are tests of these names.
    #[test]
    fn the_readme_names_tests_that_there_are() {
        let mut all = String::new();
        for directory in ["../../src", "../../tests"] {
            source(&Path::new(env!("CARGO_MANIFEST_DIR")).join(directory), &mut all);
        }
        let readme = include_str!("../README.md");
        let quoted = readme.split('`').skip(1).step_by(2);
        let is_name = |word: &&str| word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        // A function, or a scenario in a table.
        let is_there =
            |name: &&str| all.contains(&format!("fn {name}(")) || all.contains(&format!("(\"{name}\", "));
        let missing: Vec<_> = quoted.filter(is_name).filter(|name| !is_there(name)).collect();
        assert_eq!(missing, [""; 0]);
    }
}
