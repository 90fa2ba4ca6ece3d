//! `cargo xtask test`: everything that CI runs, in tiers, with one count over all.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    /// Formatting, lints and documentation
    Style,
    /// Unit tests, and the examples in the documentation
    Unit,
    /// Faults and races, on a stand-in for libxl
    Fake,
    /// The tests of the binding and of the stand-in once more, under valgrind
    Sanitize,
    /// Our C declarations against Xen's headers
    Headers,
    /// Our reading of guests' files against xl's
    Xl,
    /// The shell scripts' known defects, with the scripts and with us
    Pains,
    /// Random input to everything that parses
    Fuzz,
    /// The Debian package, installed and removed
    Debian,
    /// Scenarios on a real Xen host
    Lab,
}

impl Tier {
    /// The name on the command line.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn run(self, workspace: &Path) -> Result<Count> {
        match self {
            Tier::Style => style(workspace),
            Tier::Unit => unit(workspace),
            Tier::Fake => fake(workspace),
            Tier::Sanitize => sanitize(workspace),
            Tier::Headers => headers(workspace),
            Tier::Xl => xl(workspace),
            Tier::Pains => pains(workspace),
            Tier::Fuzz => fuzz(workspace),
            Tier::Debian => debian(workspace),
            Tier::Lab => lab(workspace),
        }
    }
}

/// Runs these tiers, or all if none is named, in the order in which `Tier` has them. Returns whether everything has passed.
///
/// A test that is ignored counts as failed: whoever ignores one has to say here why it needs not run.
///
/// # Errors
/// What the tests need can't be had.
pub fn run(workspace: &Path, wanted: &[Tier]) -> Result<bool> {
    let started = Instant::now();
    program::prepare(workspace)?;
    // Whatever builds the whole workspace builds libFuzzer.
    packages::need(&[("c++", "g++")], &workspace.join("target/lab/logs/install.log"))?;
    let (mut all, mut lines) = (Count::default(), Vec::new());
    for tier in Tier::value_variants().iter().filter(|tier| wanted.is_empty() || wanted.contains(tier)) {
        let name = tier.name();
        println!("\n=== {name}");
        let began = Instant::now();
        let count = tier.run(workspace).unwrap_or_else(|e| {
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

/// Test programs that prove nothing under valgrind, and the reasons.
const WITHOUT_VALGRIND: [(&str, &str); 1] =
    [("forks", "its tests are about how soon a forked child runs, and valgrind runs it many times slower")];

/// The tests that drive libxl's interface over the fake, under valgrind's memcheck: a use of memory that isn't ours, a value
/// that nobody has set, and what is lost when the test program ends. What a test starts as a process of its own runs
/// without: these processes are killed or abort, and lose what they have.
///
/// There is no list of errors to be ignored, because none is needed. It is memcheck alone because helgrind and DRD know
/// locks by the functions of pthread, and those of Rust's library are atomics and futexes: each use of what a lock guards
/// is a race to them, a thousand in one test program.
fn sanitize(workspace: &Path) -> Result<Count> {
    packages::need(&[("valgrind", "valgrind")], &workspace.join("target/lab/logs/install.log"))?;
    let logs = workspace.join("target/sanitize");
    match fs::remove_dir_all(&logs) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", logs.display()));
        }
        _ => fs::create_dir_all(&logs).with_context(|| format!("make {}", logs.display()))?,
    }
    let log_file = format!("--log-file={}/%p", logs.display());
    let valgrind = [
        "valgrind",
        "--quiet",
        &log_file,
        "--num-callers=40",
        // A thread that waits for its turn gets it before the tests' deadlines.
        "--fair-sched=yes",
        "--leak-check=full",
        "--show-leak-kinds=definite",
        // A forked child has lost the stacks of all other threads, so that what only these pointed to seems lost. It tells
        // an error by its exit code, which the fake looks at, and leaks not at all.
        "--child-silent-after-fork=yes",
        "--error-exitcode=99",
        "--errors-for-leak-kinds=none",
    ];
    let runner = format!("target.'cfg(all())'.runner = {}", serde_json::to_string(&valgrind)?);
    let mut arguments = vec!["--no-fail-fast", "--config", &runner];
    let mut tests = integration_tests(workspace, &["xenlight", "tests/fake-libxl"])?;
    for (name, why) in WITHOUT_VALGRIND {
        ensure!(tests.remove(name), "there is no test program {name} to be left out");
        println!("{name} is left out: {why}");
    }
    arguments.extend(tests.iter().flat_map(|test| ["--test", test]));
    let mut count = cargo_test(workspace, &arguments, &[])?;
    count += findings(&logs)?;
    Ok(count)
}

/// The names of these packages' integration tests.
fn integration_tests(workspace: &Path, packages: &[&str]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for package in packages {
        let directory = workspace.join(package).join("tests");
        for entry in fs::read_dir(&directory).with_context(|| format!("read {}", directory.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(ToOwned::to_owned));
            }
        }
    }
    Ok(names)
}

/// Reads valgrind's logs, one of each process, and shows those that have something in them, which counts as a failed test.
fn findings(logs: &Path) -> Result<Count> {
    let (mut processes, mut failed) = (0, 0);
    for entry in fs::read_dir(logs).with_context(|| format!("read {}", logs.display()))? {
        let path = entry?.path();
        let log = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        processes += 1;
        if !log.is_empty() {
            println!("{}", String::from_utf8_lossy(&log));
            failed += 1;
        }
    }
    // Nothing at all means that the tests ran without it.
    ensure!(processes > 0, "valgrind has left no log in {}", logs.display());
    println!("test valgrind ... {}", if failed == 0 { "ok" } else { "FAILED" });
    Ok(Count { passed: (failed == 0).into(), failed })
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

/// Each parser for twenty seconds.
fn fuzz(workspace: &Path) -> Result<Count> {
    let (passed, failed) = crate::fuzz::run(workspace, 20, None)?;
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
    fn what_valgrind_says_is_a_failure_and_so_is_its_silence_about_all() {
        let logs = tempfile::tempdir().expect("a directory");
        findings(logs.path()).expect_err("it has not run");
        fs::write(logs.path().join("1"), "").expect("written");
        assert_eq!(findings(logs.path()).expect("readable"), Count { passed: 1, failed: 0 });
        fs::write(logs.path().join("2"), "==2== Invalid read of size 8").expect("written");
        assert_eq!(findings(logs.path()).expect("readable"), Count { passed: 0, failed: 1 });
    }

    #[test]
    fn an_ignored_test_is_a_failed_one() {
        let cargo = "test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(parse(cargo), Some(Count { passed: 1, failed: 2 }));
    }
}
