//! Compares what the real xl of each release and we make of guests' files: of those in `tests/configs`, and of as many
//! random ones. No Xen is needed: a library of ours stands in for the hypervisor (`stand_in.c`).
//!
//! `xl-differential [--xen RELEASE] [--random COUNT] [--seed NUMBER] [FILE…]`
//!
//! Every difference has a line with both values. Random files that differ are kept in `target/xl-differential`; name
//! them, or any guest's file, on the command line to compare only those. A table counts the configs of the corpus for
//! every key that xl asks for, and a key without one is a failure. The last line counts: `N passed, N failed`.

mod random;
mod xl;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};
use xl_differential::answer::{self, Verdict};
use xl_differential::corpus::{self, Config, Kind};
use xl_differential::stricter;
use xtask::lab::Release;
use xtask::program;

use xl::Xl;

/// Random files for each release, if nothing else is said.
const RANDOM: usize = 3000;

/// Random files that differ are shown up to this many for each release; the others are only kept.
const SHOWN: usize = 40;

/// xl's key for the form of what it prints; we read only one.
const OF_PRINTING: &str = "output_format";

struct Arguments {
    releases: Vec<Release>,
    random: usize,
    seed: u64,
    files: Vec<PathBuf>,
}

fn arguments() -> Result<Arguments> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("this machine's clock")?;
    let mut arguments = Arguments { releases: Vec::new(), random: RANDOM, seed: now.as_secs(), files: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--xen" => arguments.releases.push(value()?.parse().map_err(anyhow::Error::msg)?),
            "--random" => arguments.random = value()?.parse().context("--random takes a number")?,
            "--seed" => arguments.seed = value()?.parse().context("--seed takes a number")?,
            option if option.starts_with('-') => bail!("{option} is not known"),
            _ => arguments.files.push(word.into()),
        }
    }
    if arguments.releases.is_empty() {
        arguments.releases = Release::ALL.to_vec();
    }
    Ok(arguments)
}

/// Does something with each item, on all CPUs. The results are in the order of the items.
fn for_each<T: Sync, R: Send>(items: &[T], work: impl Fn(usize, &T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return };
                    let result = work(index, item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).insert(index, result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}

/// How many configs set a key, by release.
type Counts = BTreeMap<String, BTreeMap<u32, usize>>;

/// What all that was compared came to.
#[derive(Default)]
struct Outcome {
    passed: usize,
    failed: usize,
    /// Keys of guests' files.
    keys: Counts,
    /// Keys of xl.conf.
    xl_conf_keys: Counts,
    /// The deviations that a file of the corpus has shown: key and message.
    stricter: BTreeSet<(&'static str, &'static str)>,
}

impl Outcome {
    fn count(&mut self, passed: bool) {
        *(if passed { &mut self.passed } else { &mut self.failed }) += 1;
    }

    fn fail(&mut self, name: &str, release: Release, why: &str) {
        self.count(false);
        for line in why.lines() {
            println!("{name}, Xen {release}: {line}");
        }
    }

    /// The corpus, as this release's xl and we read it.
    fn corpus(&mut self, xl: &Xl, configs: &[Config]) -> Result<()> {
        let newest = Release::ALL.last() == Some(&xl.release);
        let compared = for_each(configs, |_, config| {
            let text = fs::read(&config.path).with_context(|| format!("read {}", config.path.display()))?;
            let (theirs, questions) = xl.read(&config.path, config.xl_conf.as_deref(), true)?;
            let ours = xl.ours(&config.path, &text, config.xl_conf.as_deref());
            Ok((answer::compare(&text, &theirs, &ours), matches!(theirs, answer::Answer::Config(_)), questions))
        })?;
        for (config, (verdict, taken, questions)) in configs.iter().zip(compared) {
            if let Verdict::Stricter(deviation) = &verdict {
                if config.kind == Kind::Stricter {
                    self.stricter.insert((deviation.key, deviation.message));
                }
            }
            match corpus::check(config.kind, newest, &verdict) {
                Ok(()) => self.count(true),
                Err(why) => self.fail(&config.name, xl.release, &why.to_string()),
            }
            let counts = taken && config.kind == Kind::Accepted;
            let mut set = BTreeSet::new();
            for question in questions {
                let keys = if question.file == "xl.conf" { &mut self.xl_conf_keys } else { &mut self.keys };
                let count = keys.entry(question.name.clone()).or_default().entry(xl.release.minor()).or_default();
                if question.set && counts && set.insert((question.file, question.name)) {
                    *count += 1;
                }
            }
        }
        Ok(())
    }

    /// Random files, as this release's xl and we read them.
    fn random(&mut self, xl: &Xl, arguments: &Arguments, work: &Path, keep: &Path) -> Result<()> {
        let keys: Vec<String> = self.keys.keys().filter(|key| *key != "name" && *key != "uuid").cloned().collect();
        let cases = random::files(arguments.seed, arguments.random, &keys);
        let compared = for_each(&cases, |index, case| {
            let file = work.join(format!("{}-{}-{index}.cfg", xl.release, arguments.seed));
            let xl_conf = case.xl_conf.as_ref().map(|_| file.with_extension("xl.conf"));
            fs::write(&file, &case.config).context("write a random file")?;
            if let (Some(path), Some(text)) = (&xl_conf, &case.xl_conf) {
                fs::write(path, text).context("write a random file")?;
            }
            let (theirs, _) = xl.read(&file, xl_conf.as_deref(), false)?;
            let ours = xl.ours(&file, &case.config, xl_conf.as_deref());
            let verdict = answer::compare(&case.config, &theirs, &ours);
            for path in [Some(&file), xl_conf.as_ref()].into_iter().flatten() {
                if let (Verdict::Different(_), Some(name)) = (&verdict, path.file_name()) {
                    fs::copy(path, keep.join(name)).context("keep a random file")?;
                }
                fs::remove_file(path).context("remove a random file")?;
            }
            Ok((file, verdict))
        })?;
        let mut different = 0;
        for (file, verdict) in compared {
            let Verdict::Different(differences) = verdict else {
                self.count(true);
                continue;
            };
            different += 1;
            if different > SHOWN {
                self.count(false);
                continue;
            }
            let lines: Vec<_> = differences.iter().map(ToString::to_string).collect();
            let kept = keep.join(file.file_name().unwrap_or_default());
            self.fail(&kept.display().to_string(), xl.release, &lines.join("\n"));
        }
        if different > SHOWN {
            println!("… and {} more random files that differ are in {}", different - SHOWN, keep.display());
        }
        Ok(())
    }

    /// Every key that xl asks for is set by a config, and every deviation has one.
    fn coverage(&mut self, releases: &[Release]) {
        for (what, keys) in [("xl.cfg", &self.keys), ("xl.conf", &self.xl_conf_keys)] {
            let head: Vec<_> = releases.iter().map(|release| format!("{:>5}", release.to_string())).collect();
            println!("\nconfigs that set a key of {what} {:>width$}", head.join(""), width = 54 - what.len());
            for (key, counts) in keys {
                let counts: Vec<_> = releases
                    .iter()
                    .map(|release| counts.get(&release.minor()).map_or("-".to_owned(), ToString::to_string))
                    .map(|count| format!("{count:>5}"))
                    .collect();
                println!("  {key:<48}{}", counts.join(""));
            }
        }
        println!();
        let mut missing = Vec::new();
        for (what, keys) in [("xl.cfg", &self.keys), ("xl.conf", &self.xl_conf_keys)] {
            for (key, counts) in keys.iter().filter(|(key, _)| *key != OF_PRINTING) {
                for (release, _) in counts.iter().filter(|(_, count)| **count == 0) {
                    missing.push(format!("{key}: xl of 4.{release} reads it in {what}, and no config sets it"));
                }
            }
        }
        // An older release does not read all of those keys.
        if releases.last() == Release::ALL.last() {
            for deviation in stricter::ALL.iter().filter(|d| !self.stricter.contains(&(d.key, d.message))) {
                missing.push(format!(
                    "{} \"{}\": no config in `stricter` is refused so",
                    deviation.key, deviation.message
                ));
            }
        }
        for line in missing {
            println!("{line}");
            self.failed += 1;
        }
    }
}

fn run() -> Result<bool> {
    let arguments = arguments()?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().context("the workspace")?;
    program::prepare(&workspace)?;
    let work = tempfile::tempdir().context("make a directory")?;
    let keep = workspace.join("target/xl-differential");
    fs::create_dir_all(&keep).with_context(|| format!("make {}", keep.display()))?;
    let configs = corpus::read(&corpus::directory(&workspace))?;
    let mut outcome = Outcome::default();
    for &release in &arguments.releases {
        let xl = Xl::ready(&workspace, release, work.path())?;
        let began = Instant::now();
        if arguments.files.is_empty() {
            outcome.corpus(&xl, &configs)?;
            outcome.random(&xl, &arguments, work.path(), &keep)?;
            println!(
                "Xen {release}: {} configs and {} random ones (--seed {}) in {} s",
                configs.len(),
                arguments.random,
                arguments.seed,
                began.elapsed().as_secs()
            );
        }
        for file in &arguments.files {
            let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
            let xl_conf = corpus::xl_conf_of(file);
            let (theirs, _) = xl.read(file, xl_conf.as_deref(), false)?;
            match answer::compare(&text, &theirs, &xl.ours(file, &text, xl_conf.as_deref())) {
                Verdict::Different(differences) => {
                    let lines: Vec<_> = differences.iter().map(ToString::to_string).collect();
                    outcome.fail(&file.display().to_string(), release, &lines.join("\n"));
                }
                other => {
                    outcome.count(true);
                    println!("{}, Xen {release}: {other:?}", file.display());
                }
            }
        }
    }
    if arguments.files.is_empty() {
        outcome.coverage(&arguments.releases);
    }
    println!("{} passed, {} failed", outcome.passed, outcome.failed);
    Ok(outcome.failed == 0 && outcome.passed > 0)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("xl-differential: {e:?}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}
