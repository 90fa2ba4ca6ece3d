//! The corpus of guests' files, as the host's xl and the program read it there: with the host's own CPUs and xl.conf.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use xl_differential::answer::{self, Answer, Verdict};
use xl_differential::corpus::{self, Kind};

use crate::bench::{Bench, PROGRAM};

/// Where the corpus is in dom0.
const REMOTE: &str = "/var/tmp/configs";

/// What both say of each file, and the code that each ends with, in files beside it. It is one command, because even a
/// process costs a tenth of a second in dom0.
const ASK: &str = r#"
cd /var/tmp/configs
xl=$(ls /usr/lib/xen-*/bin/xl | head -n 1)
rm -f /etc/xen/xl.conf
for file in */*/*.cfg; do
    conf=${file%.cfg}.xl.conf
    [ ! -e "$conf" ] || cp "$conf" /etc/xen/xl.conf
    "$xl" create -q -n "$file" >"$file.xl" 2>"$file.xl.error" </dev/null; echo $? >"$file.xl.code"
    "$program" config "$file" >"$file.ours" 2>"$file.ours.error"; echo $? >"$file.ours.code"
    [ ! -e "$conf" ] || rm /etc/xen/xl.conf
done
"#;

/// `xl create -n` and `config` mean the same by every file of the corpus.
///
/// Which they take depends on the host's CPUs, so it is not asked whether a file is in the right directory, only that
/// nearly all of those that can be taken are.
pub fn configs_are_read_as_xl_reads_them(bench: &Bench<'_>) -> Result<()> {
    let root = corpus::directory(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    let configs = corpus::read(&root)?;
    bench.push_directory(&root, REMOTE)?;
    bench.ok(&format!("program={PROGRAM}{ASK}"))?;
    let answers = tempfile::tempdir().context("make a directory")?;
    bench.pull_directory(REMOTE, answers.path())?;
    let (mut same, mut wrong) = (0, Vec::new());
    for config in &configs {
        let text = fs::read(&config.path).with_context(|| format!("read {}", config.path.display()))?;
        let file = answers.path().join(&config.name);
        let verdict = answer::compare(&text, &read(&file, "xl")?, &read(&file, "ours")?);
        same += usize::from(matches!(verdict, Verdict::Same));
        if let Err(differences) = corpus::check(config.kind, false, &verdict) {
            wrong.extend(differences.to_string().lines().map(|line| format!("{}: {line}", config.name)));
        }
    }
    if !wrong.is_empty() {
        bail!("xl and we differ:\n{}", wrong.join("\n"));
    }
    let accepted = configs.iter().filter(|config| config.kind == Kind::Accepted).count();
    ensure!(same * 10 > accepted * 9, "only {same} of {accepted} files are taken by both");
    Ok(())
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
