//! The program's tests on a real Xen host.
//!
//! Every scenario gets a freshly booted host (a snapshot, restored in seconds) with the program installed, does what
//! an admin would do, and looks at the result with `xl`, xenstore, the guests' consoles and the file system.
//!
//! `lab-tests --program FILE [--xen RELEASE] [FILTER…]`; the last line counts: `N passed, N failed`.

mod bench;
mod scenarios;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use xtask::lab::{Lab, Release};

use bench::Bench;

struct Arguments {
    program: PathBuf,
    release: Release,
    filters: Vec<String>,
}

fn arguments() -> Result<Arguments> {
    let mut program = None;
    let mut release = Release::V4_17;
    let mut filters = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--program" => program = Some(PathBuf::from(value()?)),
            "--xen" => release = value()?.parse().map_err(anyhow::Error::msg)?,
            option if option.starts_with('-') => bail!("{option} is not known"),
            _ => filters.push(word),
        }
    }
    let program = program.context("--program FILE is missing: the xendomains to test")?;
    Ok(Arguments { program, release, filters })
}

fn run() -> Result<bool> {
    let arguments = arguments()?;
    let workspace = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let lab = Lab::open(&workspace)?;
    let name = format!("test-{}", arguments.release);
    let mut host = lab.host(&name.replace('.', "-"), arguments.release)?.up()?;
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, scenario) in scenarios::ALL {
        if !arguments.filters.is_empty() && !arguments.filters.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        let started = Instant::now();
        let outcome = host
            .reset()
            .and_then(|()| Bench::install(&host, &arguments.program))
            .and_then(|bench| scenario(&bench).map_err(|e| e.context(bench.transcript())));
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({seconds:.1} s)");
            }
            Err(e) => {
                println!("test {name} ... FAILED ({seconds:.1} s)\n{e:?}");
                failed.push(*name);
            }
        }
    }
    host.down()?;
    if passed + failed.len() == 0 {
        bail!("no scenario has a name like that");
    }
    for name in &failed {
        println!("failed: {name}");
    }
    println!("{passed} passed, {} failed", failed.len());
    Ok(failed.is_empty())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("lab-tests: {e:?}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}
