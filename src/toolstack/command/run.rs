//! Running one command of the toolstack.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::interrupt::Interrupt;
use crate::process::{Failed, Job, how, run};
use crate::toolstack::{Error, may_pass};

/// The limit of what only asks or changes something small. A loaded host is slow.
const SHORT: Duration = Duration::from_secs(120);

/// The limit of a guest's destruction: the hypervisor frees its memory page by page.
const LARGE: Duration = Duration::from_secs(600);

/// How long a command may take to put right what it was doing when its helpers have been ended: libxl itself gives a guest
/// that was asked to suspend a minute to do so.
const CLEAN_UP: Duration = Duration::from_secs(90);

/// One of the two commands.
pub(super) struct Runner {
    program: PathBuf,
    verbose: bool,
    interrupt: Arc<Interrupt>,
}

impl Runner {
    pub(super) fn new(program: PathBuf, verbose: bool, interrupt: Arc<Interrupt>) -> Runner {
        Runner { program, verbose, interrupt }
    }

    /// The command's file.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// The command.
    pub(super) fn name(&self) -> Cow<'_, str> {
        self.program.file_name().unwrap_or_default().to_string_lossy()
    }

    pub(super) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Runs what does not take long, whether the program was asked to end or not. Returns what it prints.
    pub(super) fn short(&self, action: &'static str, words: &[&dyn AsRef<OsStr>]) -> Result<Vec<u8>, Error> {
        self.run(action, words, Instant::now().checked_add(SHORT), None, Duration::ZERO)
    }

    /// Runs what only waits after this time, so that it need not be waited for.
    pub(super) fn at_most(
        &self,
        action: &'static str,
        words: &[&dyn AsRef<OsStr>],
        deadline: Option<Instant>,
    ) -> Result<Vec<u8>, Error> {
        self.run(action, words, deadline, Some(&self.interrupt), Duration::ZERO)
    }

    /// Runs what may take as long as it is allowed to. If it is ended, it is given time to put things right.
    pub(super) fn long(
        &self,
        action: &'static str,
        words: &[&dyn AsRef<OsStr>],
        deadline: Option<Instant>,
    ) -> Result<Vec<u8>, Error> {
        self.run(action, words, deadline, Some(&self.interrupt), CLEAN_UP)
    }

    /// The same for what may have come to a point from which it is not to be brought back.
    pub(super) fn long_that_may_go_on(
        &self,
        action: &'static str,
        words: &[&dyn AsRef<OsStr>],
        deadline: Option<Instant>,
        go_on: &dyn Fn() -> Duration,
        hear: &(dyn Fn(&str) + Sync),
    ) -> Result<Vec<u8>, Error> {
        let limits = Limits { deadline, interrupt: Some(&self.interrupt), go_on, clean_up: CLEAN_UP };
        self.run_and_hear(action, words, &limits, hear)
    }

    /// The same for what must be brought to its end even when the program was asked to end.
    pub(super) fn long_in_any_case(
        &self,
        action: &'static str,
        words: &[&dyn AsRef<OsStr>],
        deadline: Option<Instant>,
    ) -> Result<Vec<u8>, Error> {
        self.run(action, words, deadline, None, CLEAN_UP)
    }

    /// Runs what takes the longer the more memory a guest has, in any case.
    pub(super) fn short_but_large(
        &self,
        action: &'static str,
        words: &[&dyn AsRef<OsStr>],
    ) -> Result<Vec<u8>, Error> {
        self.run(action, words, Instant::now().checked_add(LARGE), None, Duration::ZERO)
    }

    fn run(
        &self,
        action: &'static str,
        words: &[&dyn AsRef<OsStr>],
        deadline: Option<Instant>,
        interrupt: Option<&Interrupt>,
        clean_up: Duration,
    ) -> Result<Vec<u8>, Error> {
        self.run_and_hear(
            action,
            words,
            &Limits { deadline, interrupt, go_on: &|| Duration::ZERO, clean_up },
            &|_| {},
        )
    }

    fn run_and_hear(
        &self,
        action: &'static str,
        words: &[&dyn AsRef<OsStr>],
        limits: &Limits<'_>,
        listener: &(dyn Fn(&str) + Sync),
    ) -> Result<Vec<u8>, Error> {
        let Limits { deadline, interrupt, go_on, clean_up } = *limits;
        let arguments: Vec<OsString> = words.iter().map(|word| word.as_ref().to_owned()).collect();
        let name = self.name();
        let verb = arguments.first().map(|verb| verb.to_string_lossy()).unwrap_or_default();
        let hear = |line: &str| {
            listener(line);
            if self.verbose {
                eprintln!("{name} {verb}: {line}");
            }
        };
        let job = Job {
            program: &self.program,
            arguments: &arguments,
            deadline,
            interrupt,
            go_on,
            clean_up,
            hear: &hear,
        };
        let fail = |cause: String| Error::new(action, format!("{name} {verb}: {cause}"));
        match run(job) {
            Ok(ended) if ended.status.success() => Ok(ended.output),
            Ok(ended) => {
                let said =
                    if ended.complaints.is_empty() { String::new() } else { format!(": {}", ended.complaints) };
                let passes = ended.status.code().is_some_and(|code| TRANSIENT.contains(&code));
                let transient = passes || may_pass(&ended.complaints);
                Err(Error { transient, ..fail(format!("{}{said}", how(ended.status))) })
            }
            Err(failed @ Failed::TooSlow(_)) => Err(Error { timed_out: true, ..fail(failed.to_string()) }),
            Err(failed) => Err(fail(failed.to_string())),
        }
    }
}

/// How long a command may take.
struct Limits<'a> {
    deadline: Option<Instant>,
    interrupt: Option<&'a Interrupt>,
    go_on: &'a dyn Fn() -> Duration,
    clean_up: Duration,
}

/// With these `xl create` says that something was short, busy or slow: libxl's errors without their sign.
const TRANSIENT: [i32; 5] = [5, 8, 9, 11, 15];
