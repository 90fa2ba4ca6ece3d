//! Running a program to its end, with limits.
//!
//! A program is given its arguments one by one, never through a shell, in a process group of its own. Its output is read
//! as it comes, and no more of it is kept than anybody needs. When its time is over it is ended together with everything
//! that it has started: first its helpers are, so that it can put right itself what it was doing; then it is.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};

use crate::interrupt::Interrupt;

/// More than a command prints about any number of guests.
const OUTPUT_LIMIT: usize = 64 << 20;

/// Of what a command complains about, this many lines are kept.
const LINES_KEPT: usize = 8;

/// Longer lines are cut into several.
const LINE_LIMIT: usize = 4096;

/// How long a program may take to end when it is told to.
const LEAVE_WHEN_TOLD: Duration = Duration::from_secs(2);

/// How long the kernel may take to end a process. One that takes longer is stuck in it.
const KILLED: Duration = Duration::from_secs(5);

/// Has no read and no write wait.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

/// Waits for a descriptor. `false`: the deadline has passed, or `other` is readable and the descriptor is not ready.
pub fn wait(
    fd: BorrowedFd<'_>,
    what: PollFlags,
    deadline: Option<Instant>,
    other: Option<BorrowedFd<'_>>,
) -> Result<bool, Errno> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(timeout);
        let mut fds = vec![PollFd::from_borrowed_fd(fd, what)];
        fds.extend(other.map(|other| PollFd::from_borrowed_fd(other, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(0) if left.is_some_and(|left| left.as_secs() < 1 << 30) => return Ok(false),
            Ok(0) => {}
            Ok(_) => return Ok(!fds[0].revents().is_empty()),
        }
    }
}

/// A time as `poll` wants it. A poll of longer than this is begun again.
fn timeout(left: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX).min(1 << 30),
        tv_nsec: left.subsec_nanos().into(),
    }
}

/// What is run, and for how long.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The program's file.
    pub program: &'a Path,
    /// What it is given.
    pub arguments: &'a [OsString],
    /// The end of its time.
    pub deadline: Option<Instant>,
    /// Ends it early.
    pub interrupt: Option<&'a Interrupt>,
    /// Says, when its time is over, how long it may go on all the same.
    pub go_on: &'a dyn Fn() -> Duration,
    /// How long it may go on when its helpers have been ended, to put right what it was doing.
    pub clean_up: Duration,
    /// Is given each line that it writes to its standard error.
    pub hear: &'a (dyn Fn(&str) + Sync),
}

/// How a program has ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code or signal.
    pub status: ExitStatus,
    /// What it has printed.
    pub output: Vec<u8>,
    /// What it has complained of last.
    pub complaints: String,
}

/// Why nothing is known of a program's end.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It could not be started.
    #[error("can't be run: {0}")]
    NotRun(io::Error),
    /// It was ended because its time was over, or because this program was asked to end.
    #[error("it was ended before it was done{0}")]
    TooSlow(Said),
    /// It was to be ended, and is still there.
    #[error("it can't be ended: process {0} is stuck in the kernel")]
    Stuck(u32),
    /// It prints without end.
    #[error("it printed more than {OUTPUT_LIMIT} bytes")]
    TooMuch,
    /// The machine is out of something.
    #[error("can't wait for it: {0}")]
    Io(#[from] io::Error),
}

/// What a program has complained of, to be put behind a message.
#[derive(Debug)]
pub struct Said(String);

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

/// Runs a program to its end.
pub fn run(job: Job<'_>) -> Result<Ended, Failed> {
    let mut running = Running::start(job)?;
    let done = match running.attend(job.deadline, job.interrupt) {
        Ok(false) => match (job.go_on)() {
            Duration::ZERO => Ok(false),
            more => running.attend(Instant::now().checked_add(more), None),
        },
        done => done,
    };
    match done {
        Ok(true) => {
            let status = running.reap()?;
            Ok(Ended { status, output: std::mem::take(&mut running.output), complaints: running.complaints() })
        }
        Ok(false) => {
            running.end(job.clean_up)?;
            Err(Failed::TooSlow(Said(running.complaints())))
        }
        Err(failed) => {
            running.end(Duration::ZERO)?;
            Err(failed)
        }
    }
}

/// A program that runs.
struct Running<'a> {
    child: Child,
    group: Pid,
    /// Readable when it has ended.
    ended: Arc<OwnedFd>,
    from: Option<OwnedFd>,
    errors: Option<OwnedFd>,
    output: Vec<u8>,
    line: Vec<u8>,
    lines: VecDeque<String>,
    hear: &'a (dyn Fn(&str) + Sync),
}

impl<'a> Running<'a> {
    fn start(job: Job<'a>) -> Result<Self, Failed> {
        let ended = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?);
        let mut command = Command::new(job.program);
        command
            .args(job.arguments)
            // What it prints is read, so that it must not be in the admin's language.
            .env("LC_ALL", "C")
            .env_remove("LANGUAGE")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().map_err(Failed::NotRun)?;
        let (from, errors) = (child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from));
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let group = group.ok_or_else(|| io::Error::other("a process without a number"))?;
        let (line, lines, output, hear) = (Vec::new(), VecDeque::new(), Vec::new(), job.hear);
        let mut running = Running { child, group, ended, from, errors, output, line, lines, hear };
        if let Err(error) = running.prepare() {
            running.end(Duration::ZERO)?;
            return Err(error.into());
        }
        Ok(running)
    }

    fn prepare(&self) -> io::Result<()> {
        for pipe in [&self.from, &self.errors].into_iter().flatten() {
            set_nonblocking(pipe.as_fd())?;
        }
        let (group, ended) = (self.group, Arc::clone(&self.ended));
        // The process is not reaped by this, so that its number and that of its group stay what they are.
        thread::Builder::new().name("child".to_owned()).spawn(move || {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(group), options), Err(Errno::INTR)) {}
            let _ = rustix::io::write(&*ended, &1u64.to_ne_bytes());
        })?;
        Ok(())
    }

    /// Reads what it says until it has ended. `false`: the deadline has passed, or this program was asked to end.
    fn attend(&mut self, deadline: Option<Instant>, interrupt: Option<&Interrupt>) -> Result<bool, Failed> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let mut fds = vec![PollFd::new(&*self.ended, PollFlags::IN)];
            fds.extend(interrupt.map(|interrupt| PollFd::from_borrowed_fd(interrupt.event(), PollFlags::IN)));
            let others = fds.len();
            let pipes = [&self.from, &self.errors];
            fds.extend(pipes.into_iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            match poll(&mut fds, left.map(timeout).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            let told: Vec<bool> = fds[..others].iter().map(|fd| !fd.revents().is_empty()).collect();
            // Whoever it has left behind may keep the pipes open for ever: what is in them now is all that counts.
            self.read()?;
            if told[0] {
                self.end_line();
                return Ok(true);
            }
            if told.get(1) == Some(&true) || left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
        }
    }

    /// Reads what there is.
    fn read(&mut self) -> Result<(), Failed> {
        let mut buffer = [0; 16384];
        while let Some(pipe) = &self.from {
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => self.from = None,
                Ok(read) if self.output.len() + read > OUTPUT_LIMIT => return Err(Failed::TooMuch),
                Ok(read) => self.output.extend(&buffer[..read]),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        while let Some(pipe) = &self.errors {
            match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => self.errors = None,
                Ok(read) => buffer[..read].iter().for_each(|&byte| self.hear_byte(byte)),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn hear_byte(&mut self, byte: u8) {
        let ends = matches!(byte, b'\n' | b'\r');
        if !ends {
            self.line.push(byte);
        }
        if ends || self.line.len() == LINE_LIMIT {
            self.end_line();
        }
    }

    fn end_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line).trim().to_owned();
        self.line.clear();
        if !text.is_empty() {
            (self.hear)(&text);
            self.lines.push_back(text);
            if self.lines.len() > LINES_KEPT {
                self.lines.pop_front();
            }
        }
    }

    fn complaints(&self) -> String {
        Vec::from_iter(self.lines.iter().map(String::as_str)).join("; ")
    }

    /// Ends it, and everything that it has started. Its helpers are ended first if it has so much time.
    fn end(&mut self, clean_up: Duration) -> Result<(), Failed> {
        let gone = |running: &mut Self, time: Duration| {
            running.attend(Instant::now().checked_add(time), None).unwrap_or(false)
        };
        let helpers = if clean_up.is_zero() { Vec::new() } else { members(self.group) };
        for helper in &helpers {
            let _ = kill_process(*helper, Signal::TERM);
            // One that is stopped would not hear it.
            let _ = kill_process(*helper, Signal::CONT);
        }
        if helpers.is_empty() || !gone(self, clean_up) {
            let _ = kill_process_group(self.group, Signal::TERM);
            let _ = kill_process_group(self.group, Signal::CONT);
            gone(self, LEAVE_WHEN_TOLD);
        }
        // What it has left of its group has no use any more.
        let _ = kill_process_group(self.group, Signal::KILL);
        if gone(self, KILLED) {
            self.reap()?;
            return Ok(());
        }
        Err(Failed::Stuck(self.child.id()))
    }

    fn reap(&mut self) -> Result<ExitStatus, Failed> {
        Ok(self.child.wait()?)
    }
}

/// The processes of a group but the one that it is called after.
fn members(group: Pid) -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let others = numbers.filter(|&number: &i32| number != group.as_raw_pid() && is_in(number, group));
    others.filter_map(Pid::from_raw).collect()
}

fn is_in(process: i32, group: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may have anything in it: the state, the parent, the group.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let mut fields = rest.split_whitespace();
    let (state, its_group) = (fields.next(), fields.nth(1));
    state != Some("Z") && its_group.and_then(|field| field.parse().ok()) == Some(group.as_raw_pid())
}

/// How a program has ended, for people.
pub fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "it ended for no known reason".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    /// Arguments of any kind, one by one.
    fn words<const N: usize>(words: [&dyn AsRef<OsStr>; N]) -> Vec<OsString> {
        words.into_iter().map(|word| word.as_ref().to_owned()).collect()
    }

    fn shell<'a>(script: &'a [OsString], deadline: Option<Duration>) -> Job<'a> {
        Job {
            program: Path::new("/bin/sh"),
            arguments: script,
            deadline: deadline.map(|limit| Instant::now() + limit),
            interrupt: None,
            go_on: &|| Duration::ZERO,
            clean_up: Duration::from_secs(20),
            hear: &|_| {},
        }
    }

    const SOON: Option<Duration> = Some(Duration::from_millis(200));

    #[test]
    fn what_it_says_and_how_it_ends() {
        let script = words([&"-c", &"echo $LC_ALL; cat; echo oops >&2; exit 3"]);
        let ended = run(shell(&script, None)).expect("ends");
        assert_eq!((&*ended.output, ended.complaints.as_str()), (&b"C\n"[..], "oops"));
        assert_eq!(how(ended.status), "exit code 3");
        let script = words([&"-c", &"kill -KILL $$"]);
        assert_eq!(how(run(shell(&script, None)).expect("ends").status), "killed by signal 9");
        let script: [OsString; 0] = [];
        let job = Job { program: Path::new("/nonexistent/xl"), ..shell(&script, None) };
        assert!(matches!(run(job), Err(Failed::NotRun(_))));
    }

    #[test]
    fn words_stay_what_they_are() {
        let script = words([&"-c", &"printf '<%s>' \"$@\"", &"sh", &"a b", &"$HOME;", &""]);
        assert_eq!(run(shell(&script, None)).expect("ends").output, b"<a b><$HOME;><>");
    }

    #[test]
    fn much_output_does_not_stop_it() {
        let script = words([&"-c", &"head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2"]);
        let ended = run(shell(&script, None)).expect("ends");
        assert_eq!(ended.output.len(), 1_000_000);
    }

    #[test]
    fn who_is_left_behind_with_the_pipes_is_not_waited_for() {
        let script = words([&"-c", &"(exec sleep 777) & echo $!"]);
        let ended = run(shell(&script, None)).expect("ends");
        let pid = String::from_utf8(ended.output).expect("a number").trim().parse().ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a number"), Signal::KILL).expect("it lives");
    }

    /// Runs a script that is asked to end when it has complained for the first time. Gives that, and how it has ended.
    fn ended_when_it_complains(script: &str, clean_up: Duration) -> (String, Failed) {
        let script = words([&"-c", &script]);
        let interrupt = Interrupt::new().expect("a descriptor");
        let first = std::sync::Mutex::new(None);
        let hear = |line: &str| {
            first.lock().expect("whole").get_or_insert_with(|| line.to_owned());
            interrupt.ask();
        };
        let job = Job { hear: &hear, interrupt: Some(&interrupt), clean_up, ..shell(&script, None) };
        let failed = run(job).expect_err("it was asked to end");
        (first.into_inner().expect("whole").expect("it has complained"), failed)
    }

    #[test]
    fn with_its_helpers_gone_it_can_put_things_right() {
        // The second is stopped, as one is that has tried to read from a terminal.
        for helper in ["sleep 777 &", "sleep 777 & kill -STOP $!;"] {
            let script = format!("{helper} echo begun >&2; wait $!; echo put right >&2");
            let (_, failed) = ended_when_it_complains(&script, Duration::from_secs(600));
            assert!(failed.to_string().ends_with("put right"), "{failed}");
        }
    }

    #[test]
    fn nothing_is_left_of_one_that_does_not_want_to_end() {
        let script = "trap '' TERM; sleep 777 & echo $$ >&2; while :; do wait; done";
        let (group, failed) = ended_when_it_complains(script, Duration::ZERO);
        assert!(matches!(failed, Failed::TooSlow(_)), "{failed}");
        let group = group.parse().ok().and_then(Pid::from_raw).expect("a number");
        // They have been killed; when they are gone is the kernel's business.
        let end = Instant::now() + Duration::from_secs(60);
        while !members(group).is_empty() && Instant::now() < end {
            thread::yield_now();
        }
        assert_eq!(members(group), []);
        assert!(!Path::new(&format!("/proc/{}", group.as_raw_pid())).exists());
    }

    #[test]
    fn one_that_may_go_on_does() {
        let script = words([&"-c", &"sleep 1; echo done"]);
        let go_on = || Duration::from_secs(60);
        let ended = run(Job { go_on: &go_on, ..shell(&script, SOON) }).expect("ends");
        assert_eq!(ended.output, b"done\n");
    }

    #[test]
    fn being_asked_to_end_ends_it() {
        let interrupt = Interrupt::new().expect("a descriptor");
        interrupt.ask();
        let script = words([&"-c", &"exec sleep 77"]);
        let failed = run(Job { interrupt: Some(&interrupt), ..shell(&script, None) });
        assert!(matches!(failed, Err(Failed::TooSlow(_))));
    }
}
