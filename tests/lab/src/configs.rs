//! The corpus of guests' files, as the host's xl and the program read it there: with the host's own CPUs and xl.conf.
//!
//! A host reads every eighth file, because emulation is slow: one of the newest release others than one of the oldest.
//! All of it is compared with the xl of each release in `tests/xl-differential`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use xl_differential::answer::{self, Answer, Verdict};
use xl_differential::corpus;
use xtask::lab::{Release, quote};

use crate::bench::{Bench, PROGRAM};
use crate::scenarios::Scenario;

/// All of them, by the name that is printed.
pub const ALL: &[(&str, Scenario)] = &[
    ("accepted_configs_are_read_as_xl_reads_them", accepted_configs_are_read_as_xl_reads_them),
    ("refused_configs_are_read_as_xl_reads_them", refused_configs_are_read_as_xl_reads_them),
];

/// Where the corpus is in dom0.
const REMOTE: &str = "/var/tmp/configs";

/// What both say of each file, and the code that each ends with, in files beside it. It is one command for
/// many files, because even a process costs a tenth of a second in dom0.
const ASK: &str = r#"
cd /var/tmp/configs
xl=$(ls /usr/lib/xen-*/bin/xl | head -n 1)
rm -f /etc/xen/xl.conf
for file in $files; do
    conf=${file%.cfg}.xl.conf
    [ ! -e "$conf" ] || cp "$conf" /etc/xen/xl.conf
    "$xl" create -q -n "$file" >"$file.xl" 2>"$file.xl.error" </dev/null; echo $? >"$file.xl.code"
    "$program" config "$file" >"$file.ours" 2>"$file.ours.error"; echo $? >"$file.ours.code"
    [ ! -e "$conf" ] || rm /etc/xen/xl.conf
done
"#;

/// So many files are asked about with one command.
const AT_ONCE: usize = 100;

/// One file of so many is asked about.
const PART: usize = 8;

/// `xl create -n` and `config` mean the same by every file that both take.
fn accepted_configs_are_read_as_xl_reads_them(bench: &Bench<'_>) -> Result<()> {
    let (same, all) = compare(bench, &["accepted"], |verdict| matches!(verdict, Verdict::Same))?;
    ensure!(same * 10 > all * 9, "only {same} of {all} files are taken by both");
    Ok(())
}

/// What xl refuses is refused by `config`.
fn refused_configs_are_read_as_xl_reads_them(bench: &Bench<'_>) -> Result<()> {
    let refused = |verdict: &Verdict| matches!(verdict, Verdict::BothRefuse(_) | Verdict::Stricter(_));
    let (refused, all) = compare(bench, &["refused", "stricter"], refused)?;
    ensure!(refused * 10 > all * 9, "only {refused} of {all} files are refused by both");
    // They would be too where the two do nothing at all.
    bench.ok(&format!("xl create -q -n {REMOTE}/accepted/types/pv.cfg"))?;
    bench.xendomains(&format!("config {REMOTE}/accepted/types/pv.cfg"), 0)?;
    Ok(())
}

/// Has both read the files of some directories of the corpus, and compares what they say. Gives how many verdicts are
/// as they mostly should be, and how many there are.
///
/// Which files xl takes depends on the host's CPUs, so a file may be in the wrong directory for this host.
fn compare(
    bench: &Bench<'_>,
    directories: &[&str],
    as_expected: impl Fn(&Verdict) -> bool,
) -> Result<(usize, usize)> {
    let root = corpus::directory(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    let mut configs = corpus::read(&root)?;
    configs.retain(|config| directories.iter().any(|directory| Path::new(&config.name).starts_with(directory)));
    let first = Release::ALL.iter().position(|release| *release == bench.release()).unwrap_or_default();
    let configs: Vec<_> = configs.into_iter().skip(first).step_by(PART).collect();
    bench.push_directory(&root, REMOTE)?;
    for some in configs.chunks(AT_ONCE) {
        let files: Vec<_> = some.iter().map(|config| config.name.as_str()).collect();
        bench.ok(&format!("program={PROGRAM}; files={}{ASK}", quote(&files.join(" "))))?;
    }
    let answers = tempfile::tempdir().context("make a directory")?;
    bench.pull_directory(REMOTE, answers.path())?;
    let (mut expected, mut wrong) = (0, Vec::new());
    for config in &configs {
        let text = fs::read(&config.path).with_context(|| format!("read {}", config.path.display()))?;
        let file = answers.path().join(&config.name);
        let verdict = answer::compare(&text, &read(&file, "xl")?, &read(&file, "ours")?);
        expected += usize::from(as_expected(&verdict));
        if let Err(differences) = corpus::check(config.kind, false, &verdict) {
            wrong.extend(differences.to_string().lines().map(|line| format!("{}: {line}", config.name)));
        }
    }
    if !wrong.is_empty() {
        bail!("xl and we differ:\n{}", wrong.join("\n"));
    }
    Ok((expected, configs.len()))
}

/// What one of the two has said of a file.
fn read(file: &Path, who: &str) -> Result<Answer> {
    let part = |ending: &str| {
        let path = format!("{}.{who}{ending}", file.display());
        fs::read(&path).with_context(|| format!("read {path}"))
    };
    let code = part(".code")?;
    match code.trim_ascii() {
        b"0" => {
            let text = part("")?;
            let lossy = || String::from_utf8_lossy(&text).into_owned().into();
            Ok(Answer::Config(serde_json::from_slice(&text).unwrap_or_else(|_| lossy())))
        }
        b"126" | b"127" => bail!("{who} could not be run"),
        // How a shell tells of a signal.
        code if code.len() == 3 => Ok(Answer::Died(format!("it ends with {}", String::from_utf8_lossy(code)))),
        _ => Ok(Answer::Refused(String::from_utf8_lossy(&part(".error")?).trim().to_owned())),
    }
}
