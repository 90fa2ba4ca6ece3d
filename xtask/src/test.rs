//! `cargo xtask test`: everything that CI runs, in tiers, with one count over all.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::lab::Release;
use crate::packages;
use crate::program::{self, cargo};

/// What a tier came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// A part of the tests, which counts its own.
type Tier = fn(&Path) -> Result<Count>;

/// Runs all tiers. Returns whether everything has passed.
///
/// A test that is ignored counts as failed: whoever ignores one has to say here why it needs not run.
///
/// # Errors
/// What the tests need can't be had.
pub fn run(workspace: &Path) -> Result<bool> {
    let started = Instant::now();
    program::prepare(workspace)?;
    // Whatever builds the whole workspace builds libFuzzer.
    packages::need(&[("c++", "g++")], &workspace.join("target/lab/logs/install.log"))?;
    let tiers: [(&str, Tier); 9] = [
        ("style", style),
        ("unit", unit),
        ("fake", fake),
        ("headers", headers),
        ("xl", xl),
        ("pains", pains),
        ("fuzz", fuzz),
        ("debian", debian),
        ("lab", lab),
    ];
    let (mut all, mut lines) = (Count::default(), Vec::new());
    for (name, tier) in tiers {
        println!("\n=== {name}");
        let began = Instant::now();
        let count = tier(workspace).unwrap_or_else(|e| {
            println!("error: {e:?}");
            Count { passed: 0, failed: 1 }
        });
        let line = format!("{name:<8} {count} ({} s)", began.elapsed().as_secs());
        println!("=== {line}");
        lines.push(line);
        all += count;
    }
    println!("\n{}", lines.join("\n"));
    println!("in {} s", started.elapsed().as_secs());
    println!("{all}");
    Ok(all.failed == 0 && all.passed > 0)
}

/// Formatting, lints and documentation, as one check each.
fn style(workspace: &Path) -> Result<Count> {
    let mut all = Count::default();
    for arguments in [
        &["fmt", "--all", "--", "--check"][..],
        &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
        &["doc", "--workspace", "--no-deps", "--quiet"],
    ] {
        let mut command = Command::new(cargo());
        command.current_dir(workspace).args(arguments).env("RUSTDOCFLAGS", "-D warnings");
        let ok = command.status().context("start cargo")?.success();
        println!("test cargo {} ... {}", arguments[0], if ok { "ok" } else { "FAILED" });
        all += Count { passed: ok.into(), failed: (!ok).into() };
    }
    Ok(all)
}

fn unit(workspace: &Path) -> Result<Count> {
    let programs = [("ip", "iproute2"), ("losetup", "mount")];
    packages::need(&programs, &workspace.join("target/lab/logs/install.log"))?;
    let mut all = cargo_test(workspace, &["--lib", "--bins"], &[])?;
    all += cargo_test(workspace, &["--doc"], &[])?;
    Ok(all)
}

fn fake(workspace: &Path) -> Result<Count> {
    // To kill the program at a system call.
    packages::need(&[("strace", "strace")], &workspace.join("target/lab/logs/install.log"))?;
    // xenlight-sys has its integration tests in the next tier, because some of them need Xen's headers.
    cargo_test(workspace, &["--exclude", "xenlight-sys", "--no-fail-fast", "--test", "*"], &[])
}

/// Our declarations against the headers of each supported release.
fn headers(workspace: &Path) -> Result<Count> {
    let mut found = Vec::new();
    for release in Release::ALL {
        let root = packages::xen(workspace, release)?;
        found.push(format!("{release}={}", root.join("usr/include").display()));
    }
    cargo_test(
        workspace,
        &[
            "--no-fail-fast",
            "--test",
            "headers",
            "--test",
            "library",
            "--test",
            "logger",
            "--test",
            "dlopen_note",
            "--",
            "--include-ignored",
        ],
        &[("XENLIGHT_PROOF_HEADERS", &found.join(":"))],
    )
}

/// Our reading of guests' files against the xl of each supported release.
fn xl(workspace: &Path) -> Result<Count> {
    counted(&mut Command::new(test_program(workspace, "xl-differential")?))
}

/// Each parser for half a minute.
fn fuzz(workspace: &Path) -> Result<Count> {
    let (passed, failed) = crate::fuzz::run(workspace, 30)?;
    Ok(Count { passed, failed })
}

/// The Debian package: built without network, looked at, put over Debian's own xendomains and taken away again.
fn debian(workspace: &Path) -> Result<Count> {
    let (passed, failed) = crate::shipped::check::run(workspace, false);
    Ok(Count { passed, failed })
}

/// The scripts' known defects, with the scripts and with the program.
fn pains(workspace: &Path) -> Result<Count> {
    with_program(workspace, "pains", &[])
}

/// The scenarios of `tests/lab` on a real Xen host.
fn lab(workspace: &Path) -> Result<Count> {
    with_program(workspace, "lab-tests", &[])
}

/// Has the same work done on a lab host by the program, by libxl's calls alone and, if wanted, by the scripts, for each of
/// these numbers of guests, and prints what it took. Returns whether that could be measured.
///
/// # Errors
/// Something can't be built or started.
pub fn bench(workspace: &Path, guests: &[usize], rounds: usize, scripts: bool) -> Result<bool> {
    let mut command = on_program(workspace, "lab-tests")?;
    let guests: Vec<String> = guests.iter().map(ToString::to_string).collect();
    command.args(["--compare", &guests.join(","), "--rounds", &rounds.to_string()]);
    if !scripts {
        command.arg("--without-scripts");
    }
    Ok(command.status().context("start lab-tests")?.success())
}

fn with_program(workspace: &Path, package: &str, arguments: &[&str]) -> Result<Count> {
    counted(on_program(workspace, package)?.args(arguments))
}

/// A package of tests that is a program, and is told which `xendomains` to test.
fn on_program(workspace: &Path, package: &str) -> Result<Command> {
    let program = program::build(workspace)?;
    let mut command = Command::new(test_program(workspace, package)?);
    command.current_dir(workspace).arg("--program").arg(program);
    Ok(command)
}

/// What most tiers are built from. It is the same everywhere because cargo builds dependencies anew for each choice of
/// packages that wants other features of them.
///
/// The fuzz targets have libFuzzer's main function: as tests they would run for ever.
const PACKAGES: [&str; 3] = ["--workspace", "--exclude", "fuzz-targets"];

/// Builds a package of tests that is a program.
fn test_program(workspace: &Path, package: &str) -> Result<PathBuf> {
    let mut build = Command::new(cargo());
    build.current_dir(workspace).args(["build", "--quiet", "--bins"]).args(PACKAGES);
    ensure!(build.status().context("start cargo")?.success(), "{package} can't be built");
    Ok(program::target_directory(workspace)?.join("debug").join(package))
}

fn cargo_test(workspace: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Count> {
    let mut command = Command::new(cargo());
    command.current_dir(workspace).arg("test").args(PACKAGES).args(arguments).envs(environment.iter().copied());
    counted(&mut command)
}

/// Runs a test command, shows what it says and adds up the counts in it. A command that fails without a failed test
/// counts as one.
fn counted(command: &mut Command) -> Result<Count> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("start cargo")?;
    let output = child.stdout.take().context("cargo's output")?;
    let mut count = Count::default();
    let mut stdout = std::io::stdout().lock();
    for line in BufReader::new(output).lines() {
        let line = line.context("read cargo's output")?;
        writeln!(stdout, "{line}").context("write")?;
        if let Some(more) = parse(&line) {
            count += more;
        }
    }
    let ok = child.wait().context("wait for cargo")?.success();
    if !ok && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// Reads cargo's `test result: ok. 3 passed; 0 failed; 1 ignored; …` and our `3 passed, 0 failed`.
fn parse(line: &str) -> Option<Count> {
    let words: Vec<&str> = match line.strip_prefix("test result: ") {
        Some(rest) => rest.split_once(". ")?.1.split("; ").collect(),
        None => line.split(", ").collect(),
    };
    let number = |what: &str| -> Option<usize> {
        words.iter().find_map(|word| word.strip_suffix(what)?.trim().parse().ok())
    };
    let (passed, failed) = (number(" passed")?, number(" failed")?);
    Some(Count { passed, failed: failed + number(" ignored").unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_off_both_kinds_of_result_line() {
        let cargo =
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.1s";
        assert_eq!(parse(cargo), Some(Count { passed: 12, failed: 0 }));
        assert_eq!(parse("7 passed, 2 failed"), Some(Count { passed: 7, failed: 2 }));
        assert_eq!(parse("test a ... ok"), None);
        assert_eq!(parse("we passed, they failed"), None);
    }

    #[test]
    fn an_ignored_test_is_a_failed_one() {
        let cargo = "test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(parse(cargo), Some(Count { passed: 1, failed: 2 }));
    }
}
