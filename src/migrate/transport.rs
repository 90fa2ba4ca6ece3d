//! The process that connects this host to a target: `ssh`, or what the admin has put in its place.
//!
//! It is the only process that is started. It has a process group of its own, which is killed when the conversation is
//! over, however it has ended, so that nothing of it is left.
//!
//! No shell is needed for it: the arguments are handed over one by one, and a target can't be more than an argument. Only
//! a command of the admin's own (`-s`) that has something for a shell in it, such as `$HOME` or a quote, is handed to
//! `sh`, as xl does with all of them; the target is handed to it as an argument even then.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::handshake::{Broken, Limit, Peer};
use crate::interrupt::Interrupt;
use crate::process::{set_nonblocking, wait};
use crate::settings::TransportKind;
use crate::toolstack::{FOR_A_SHELL, SSH_OPTIONS};

/// How long the process may take to end by itself when nobody needs it any more.
const LEAVE: Duration = Duration::from_secs(2);

/// How long it may take to end when it is told to.
const LEAVE_WHEN_TOLD: Duration = Duration::from_secs(1);

/// Longer lines are cut into several.
const LINE_LIMIT: usize = 4096;

/// The command that has `remote` run on the target, with its standard input and output.
pub(super) fn command(kind: &TransportKind, target: &str, remote: &[&str]) -> Command {
    match kind {
        TransportKind::Ssh { port } => {
            let mut ssh = Command::new("ssh");
            for option in SSH_OPTIONS {
                ssh.args(["-o", option]);
            }
            if let Some(port) = port {
                ssh.args(["-p", &port.to_string()]);
            }
            ssh.arg(target).args(remote);
            ssh
        }
        TransportKind::Command(text) => {
            let mut command = words_of(text);
            command.arg(target).args(remote);
            command
        }
        TransportKind::Target => words_of(target),
    }
}

/// A command that an admin has written. What comes behind it is still to be added.
fn words_of(text: &str) -> Command {
    if text.contains(|letter| FOR_A_SHELL.contains(letter)) {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {text} \"$@\""), "sh"]);
        return shell;
    }
    let mut words = text.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// The process while the conversation lasts. When it is dropped, the process is gone.
pub(super) struct Transport<'a> {
    child: Child,
    /// To the target. `None`: closed.
    to: Option<OwnedFd>,
    /// From the target.
    from: OwnedFd,
    /// Ends the thread that listens to what the process complains of.
    hush: &'a OwnedFd,
    interrupt: &'a Interrupt,
    /// It was waited for long enough.
    too_slow: bool,
    /// Readable when the process has ended. `None`: this kernel has no such thing.
    process: Option<OwnedFd>,
    /// It had to be killed.
    killed: bool,
    /// How the process has ended, when it has.
    ended: Option<ExitStatus>,
}

/// Of the two pipes.
#[derive(Clone, Copy)]
enum End {
    From,
    To,
}

/// What is heard of a process beside the conversation.
pub(super) struct Farewell {
    /// What it said last on its standard error.
    pub(super) last_words: Option<String>,
    /// How it ended, if that was its own doing and not well.
    pub(super) status: Option<ExitStatus>,
}

/// Starts the process, and has `talk` talk to the target. Each line that the process writes to its standard error is
/// given to `hear`. Afterwards the process is gone.
pub(super) fn converse<T>(
    command: &mut Command,
    interrupt: &Interrupt,
    hear: &(dyn Fn(&str) + Sync),
    talk: impl FnOnce(&mut Transport<'_>) -> T,
) -> io::Result<(T, Farewell)> {
    let hush = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let last_words = Mutex::new(None);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    thread::scope(|scope| {
        let mut child = command.spawn()?;
        let missing = || io::Error::other("a pipe is missing");
        let (to, from, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (to, from) = (to.ok_or_else(missing)?, from.ok_or_else(missing)?);
        let errors = errors.ok_or_else(missing)?;
        let (to, from) = (OwnedFd::from(to), OwnedFd::from(from));
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        // From here on it is ended whatever happens.
        let mut transport = Transport {
            child,
            to: Some(to),
            from,
            hush: &hush,
            interrupt,
            too_slow: false,
            process,
            killed: false,
            ended: None,
        };
        transport.prepare()?;
        let listener = || {
            listen(errors, &hush, &|line| {
                *last_words.lock().unwrap_or_else(PoisonError::into_inner) = Some(line.to_owned());
                hear(line);
            });
        };
        thread::Builder::new().name("transport".to_owned()).spawn_scoped(scope, listener)?;
        let told = talk(&mut transport);
        transport.end();
        let status = transport.ended.filter(|status| !status.success() && !transport.killed);
        drop(transport);
        Ok((told, status))
    })
    .map(|(told, status)| {
        let last_words = last_words.into_inner().unwrap_or_else(PoisonError::into_inner);
        (told, Farewell { last_words, status })
    })
}

impl Transport<'_> {
    /// Nobody must ever wait in a read or a write.
    fn prepare(&self) -> io::Result<()> {
        set_nonblocking(self.from.as_fd())?;
        self.to.as_ref().map_or(Ok(()), |to| set_nonblocking(to.as_fd()))
    }

    /// Where libxl is to write the guest. Whoever has it has to close it.
    pub(super) fn stream(&self) -> io::Result<OwnedFd> {
        self.to.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?.try_clone()
    }

    /// Tells how much the process has read of what was sent, in bytes: it reads little else.
    pub(super) fn taken_so_far(&self) -> impl Fn() -> u64 + Send + use<> {
        let counters = format!("/proc/{}/io", self.child.id());
        move || {
            let counters = std::fs::read_to_string(&counters).unwrap_or_default();
            let read = counters.lines().find_map(|line| line.strip_prefix("rchar: "));
            read.and_then(|number| number.parse().ok()).unwrap_or_default()
        }
    }

    /// All that comes until the end, but no more than `most`.
    pub(super) fn read_to_end(&mut self, most: usize, limit: Limit) -> Result<Vec<u8>, Broken> {
        let mut all = vec![0; most];
        let mut at = 0;
        while at < most {
            match self.read(&mut all[at..], limit) {
                Ok(read) => at += read,
                Err(Broken::Ended) => break,
                Err(broken) => return Err(broken),
            }
        }
        all.truncate(at);
        Ok(all)
    }

    /// Nothing more is sent.
    pub(super) fn close(&mut self) {
        self.to = None;
    }

    fn signal(&self, signal: Signal) {
        // Until it is waited for, nobody else can have its number.
        let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let (Some(group), None) = (group, self.ended) {
            let _ = kill_process_group(group, signal);
        }
    }

    /// Ends the process and everything that it has started.
    fn end(&mut self) {
        if self.ended.is_some() {
            return;
        }
        self.close();
        if self.too_slow || !self.is_gone_within(LEAVE) {
            self.killed = true;
            self.signal(Signal::TERM);
            self.is_gone_within(LEAVE_WHEN_TOLD);
        }
        self.signal(Signal::KILL);
        self.ended = self.child.wait().ok();
    }

    /// Waits for its end. What it still says is of no use to anybody.
    fn is_gone_within(&mut self, time: Duration) -> bool {
        let end = Instant::now().checked_add(time);
        let mut ignored = [0; 512];
        let mut says_more = true;
        loop {
            while says_more {
                match rustix::io::read(&self.from, &mut ignored) {
                    Ok(1..) | Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Ok(0) | Err(_) => says_more = false,
                }
            }
            let from = says_more.then(|| self.from.as_fd());
            let (awaited, other) = match (&self.process, from) {
                (Some(process), from) => (process.as_fd(), from),
                (None, Some(from)) => (from, None),
                // Without a descriptor for the process this is as near to its end as can be seen.
                (None, None) => return true,
            };
            match wait(awaited, PollFlags::IN, end, other) {
                Ok(true) if self.process.is_some() => return true,
                Ok(_) if end.is_none_or(|end| Instant::now() < end) => {}
                Ok(_) | Err(_) => return false,
            }
        }
    }

    /// Waits until something can be read or written.
    fn wait(&mut self, end: End, limit: Limit) -> Result<(), Broken> {
        loop {
            let (fd, what) = match end {
                End::From => (self.from.as_fd(), PollFlags::IN),
                End::To => (self.to.as_ref().ok_or(Broken::Ended)?.as_fd(), PollFlags::OUT),
            };
            let told = self.interrupt.is_asked();
            let deadline = if told {
                [limit.deadline, Instant::now().checked_add(limit.once_told)].into_iter().flatten().min()
            } else {
                limit.deadline
            };
            let interrupt = (!told).then(|| self.interrupt.event());
            match wait(fd, what, deadline, interrupt) {
                Ok(true) => return Ok(()),
                Ok(false) if !told && self.interrupt.is_asked() => {}
                Ok(false) => {
                    self.too_slow = true;
                    return Err(if told { Broken::ToldToEnd } else { Broken::TimedOut });
                }
                Err(error) => return Err(broken(error)),
            }
        }
    }
}

impl Peer for Transport<'_> {
    fn read(&mut self, buffer: &mut [u8], limit: Limit) -> Result<usize, Broken> {
        loop {
            self.wait(End::From, limit)?;
            match rustix::io::read(&self.from, &mut *buffer) {
                Ok(0) => return Err(Broken::Ended),
                Ok(read) => return Ok(read),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }

    fn write(&mut self, mut bytes: &[u8], limit: Limit) -> Result<(), Broken> {
        while !bytes.is_empty() {
            self.wait(End::To, limit)?;
            let to = self.to.as_ref().ok_or(Broken::Ended)?;
            match rustix::io::write(to, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(())
    }

    fn look(&mut self, limit: Limit) -> Result<(), Broken> {
        self.wait(End::To, limit)?;
        let to = self.to.as_ref().ok_or(Broken::Ended)?;
        let mut both = [PollFd::new(to, PollFlags::OUT), PollFd::new(&self.from, PollFlags::IN)];
        poll(&mut both, Some(&Timespec::default())).map_err(broken)?;
        if both[0].revents().contains(PollFlags::ERR) {
            return Err(Broken::Ended);
        }
        if !both[1].revents().is_empty() {
            // Nothing is to be said there now.
            let mut found = [0];
            return match rustix::io::read(&self.from, &mut found) {
                Ok(1) => Err(Broken::Wrong { at: 1, found: found[0] }),
                Err(Errno::AGAIN | Errno::INTR) => Ok(()),
                _ => Err(Broken::Ended),
            };
        }
        Ok(())
    }
}

impl Drop for Transport<'_> {
    fn drop(&mut self) {
        self.end();
        // It can only fail when it is readable already.
        let _ = rustix::io::write(self.hush, &1u64.to_ne_bytes());
    }
}

fn broken(error: Errno) -> Broken {
    if error == Errno::PIPE { Broken::Ended } else { Broken::Io(io::Error::from(error).to_string()) }
}

/// Gives each line to `hear`, until the end or until it is hushed. A process that goes on in the background may keep the
/// pipe open for ever.
fn listen(mut errors: ChildStderr, hush: &OwnedFd, hear: &dyn Fn(&str)) {
    if set_nonblocking(errors.as_fd()).is_err() {
        return;
    }
    let mut line = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        match errors.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                for &byte in &buffer[..read] {
                    let ends = matches!(byte, b'\n' | b'\r');
                    if !ends {
                        line.push(byte);
                    }
                    if ends || line.len() == LINE_LIMIT {
                        say(&mut line, hear);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !matches!(wait(errors.as_fd(), PollFlags::IN, None, Some(hush.as_fd())), Ok(true)) {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    say(&mut line, hear);
}

fn say(line: &mut Vec<u8>, hear: &dyn Fn(&str)) {
    let text = String::from_utf8_lossy(line).trim().to_owned();
    line.clear();
    if !text.is_empty() {
        hear(&text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn shown(kind: &TransportKind, target: &str) -> Vec<String> {
        let command = command(kind, target, &["xl", "migrate-receive"]);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        words.map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn what_is_run() {
        let options = "-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=15 -o ServerAliveCountMax=4";
        let ssh = |port| shown(&TransportKind::Ssh { port }, "root@b").join(" ");
        assert_eq!(ssh(None), format!("ssh {options} root@b xl migrate-receive"));
        assert_eq!(ssh(Some(7)), format!("ssh {options} -p 7 root@b xl migrate-receive"));
        let own = |text: &str| shown(&TransportKind::Command(text.to_owned()), "b; rm");
        assert_eq!(own("/bin/mine -o A=%h"), ["/bin/mine", "-o", "A=%h", "b; rm", "xl", "migrate-receive"]);
        assert_eq!(
            own("ssh -i $HOME/key"),
            ["sh", "-c", "exec ssh -i $HOME/key \"$@\"", "sh", "b; rm", "xl", "migrate-receive"]
        );
        assert_eq!(shown(&TransportKind::Target, "nc b 7"), ["nc", "b", "7"]);
    }

    const FOREVER: Limit = Limit { deadline: None, once_told: Duration::ZERO };

    fn within(time: Duration) -> Limit {
        Limit { deadline: Some(Instant::now() + time), ..FOREVER }
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn talked<T>(script: &str, talk: impl FnOnce(&mut Transport<'_>) -> T) -> (T, Farewell, Vec<String>) {
        let interrupt = Interrupt::new().unwrap();
        let heard = Mutex::new(Vec::new());
        let hear = |line: &str| heard.lock().unwrap().push(line.to_owned());
        let (told, farewell) = converse(&mut shell(script), &interrupt, &hear, talk).unwrap();
        (told, farewell, heard.into_inner().unwrap())
    }

    #[test]
    fn a_conversation() {
        let (all, farewell, heard) =
            talked("read a; echo $a >&2; echo back; printf 'x\\n\\ny' >&2; exit 3", |peer| {
                peer.write(b"hello\n", FOREVER).unwrap();
                peer.read_to_end(100, FOREVER).unwrap()
            });
        assert_eq!(all, b"back\n");
        assert_eq!(heard, ["hello", "x", "y"]);
        assert_eq!(farewell.last_words.as_deref(), Some("y"));
        assert_eq!(farewell.status.and_then(|status| status.code()), Some(3));
    }

    #[test]
    fn nobody_waits_longer_than_allowed() {
        let begun = Instant::now();
        let brief = Duration::from_millis(50);
        let (outcome, ..) = talked("sleep 60", |peer| {
            let outcome = peer.read(&mut [0; 9], within(brief));
            // More than fits into the pipe.
            (outcome, peer.write(&[0; 1 << 20], within(brief)))
        });
        assert_eq!(outcome, (Err(Broken::TimedOut), Err(Broken::TimedOut)));
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn being_told_to_end_ends_a_wait_at_once_or_a_little_later() {
        for once_told in [Duration::ZERO, Duration::from_millis(30)] {
            let interrupt = Interrupt::new().unwrap();
            let waits = AtomicUsize::new(0);
            let (outcome, _) = converse(&mut shell("exec sleep 60"), &interrupt, &|_| {}, |peer| {
                thread::scope(|scope| {
                    scope.spawn(|| interrupt.ask());
                    let begun = Instant::now();
                    let outcome = peer.read(&mut [0], Limit { deadline: None, once_told });
                    waits.store(usize::from(begun.elapsed() >= once_told), Ordering::Relaxed);
                    outcome
                })
            })
            .unwrap();
            assert_eq!((outcome, waits.into_inner()), (Err(Broken::ToldToEnd), 1));
        }
    }

    #[test]
    fn an_end_is_seen_by_both_directions() {
        let (outcome, ..) = talked("exit 0", |peer| {
            assert_eq!(peer.read(&mut [0], FOREVER), Err(Broken::Ended));
            let look = peer.look(FOREVER);
            // A process that another test is just starting may have the pipe open for a moment.
            let write = std::iter::repeat_with(|| peer.write(b"x", FOREVER)).find(Result::is_err);
            (look, write)
        });
        assert_eq!(outcome, (Err(Broken::Ended), Some(Err(Broken::Ended))));
        // It still reads, but has said more than it should.
        let (outcome, ..) = talked("echo x; cat", |peer| {
            let mut pipe = [PollFd::new(&peer.from, PollFlags::IN)];
            poll(&mut pipe, None).unwrap();
            peer.look(FOREVER)
        });
        assert_eq!(outcome, Err(Broken::Wrong { at: 1, found: b'x' }));
        let (outcome, ..) = talked("cat", |peer| peer.look(FOREVER));
        assert_eq!(outcome, Ok(()));
    }

    #[test]
    fn nothing_of_it_is_left() {
        // Two processes that do not want to end.
        let script = "trap '' TERM; sleep 100 & echo $!; wait; sleep 100";
        let (second, ..) = talked(script, |peer| {
            let mut text = [0; 32];
            let size = peer.read(&mut text, FOREVER).unwrap();
            assert_eq!(peer.read(&mut [0], within(Duration::ZERO)), Err(Broken::TimedOut));
            let pid = String::from_utf8_lossy(&text[..size]).trim().parse().unwrap();
            pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap()
        });
        // It was told, and needs a CPU once more to end.
        let end = Instant::now().checked_add(Duration::from_secs(60));
        assert!(super::wait(second.as_fd(), PollFlags::IN, end, None).unwrap(), "it lives");
    }

    #[test]
    fn a_process_in_the_background_that_keeps_the_pipe_is_not_waited_for() {
        let begun = Instant::now();
        let (_, _, heard) = talked("setsid sh -c 'echo mine >&2; exec sleep 30' <&- >&- & echo hm >&2", |peer| {
            let _ = peer.read_to_end(9, FOREVER);
        });
        assert!(heard.iter().any(|line| line == "hm"), "{heard:?}");
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_command_that_is_not_there() {
        let interrupt = Interrupt::new().unwrap();
        let outcome = converse(&mut Command::new("/nonexistent/ssh"), &interrupt, &|_| {}, |_| ());
        assert!(outcome.is_err_and(|error| error.kind() == io::ErrorKind::NotFound));
    }
}
