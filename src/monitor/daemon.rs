//! A monitor that nobody has at a terminal: how it is started, and how it says that it is there.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// What it writes when it watches.
const READY: &str = "ready";

/// How long it may take to get there.
const LIMIT: Duration = Duration::from_secs(60);

/// The monitor's unit.
const UNIT: &str = "xendomains-monitor.service";

/// There while systemd is the init system; see sd_booted(3).
const SYSTEMD: &str = "/run/systemd/system";

/// Starts a monitor, and waits until it watches. It goes on when this process ends.
///
/// It is systemd that starts it where that can: the monitor is none of a login session's processes then, and is started
/// again if it crashes. Its unit goes by the usual settings.
///
/// # Errors
/// It has ended, and has said why, or it does not get ready in time.
pub fn spawn(settings: Option<&Path>) -> io::Result<()> {
    if settings.is_none() && Path::new(SYSTEMD).is_dir() && start_unit().is_ok() {
        return Ok(());
    }
    start_program(settings)
}

/// Has systemd start the monitor's unit, and waits until it watches.
fn start_unit() -> io::Result<()> {
    let mut command = Command::new("systemctl");
    command.args(["start", "--quiet", "--no-ask-password", UNIT]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    wait_for_success(command.spawn()?, LIMIT)
}

/// Waits for a process that writes nothing.
fn wait_for_success(mut child: Child, limit: Duration) -> io::Result<()> {
    let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput)?;
    if let Some(said) = child.stdout.take() {
        // Its output is closed when it ends.
        if poll(&mut [PollFd::new(&said, PollFlags::IN)], Some(&limit))? == 0 {
            child.kill()?;
        }
    }
    let status = child.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
}

/// Starts this program as a monitor, and waits until it watches.
fn start_program(settings: Option<&Path>) -> io::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(settings) = settings {
        command.arg("--config").arg(std::path::absolute(settings)?);
    }
    // Whoever starts it works with libxl, whatever the settings say.
    command.args(["--toolstack", "libxl", "monitor", "--detached"]);
    // What it says there would be about whoever has started this process.
    command.env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    wait_until_ready(command.spawn()?)
}

fn wait_until_ready(mut child: Child) -> io::Result<()> {
    let (Some(mut said), Some(mut complaints)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(io::Error::other("the monitor can't be heard"));
    };
    let deadline = Instant::now() + LIMIT;
    let mut text: Vec<u8> = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else { return Err(io::ErrorKind::TimedOut.into()) };
        let mut fds = [PollFd::new(&said, PollFlags::IN)];
        if poll(&mut fds, Some(&left))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the monitor does not get ready"));
        }
        let mut bytes = [0; 4096];
        let count = said.read(&mut bytes)?;
        text.extend(&bytes[..count]);
        if text.split(|byte| *byte == b'\n').any(|line| line == READY.as_bytes()) {
            return Ok(());
        }
        if count == 0 {
            // It has ended, or will at once.
            let mut why = String::new();
            let _ = BufReader::new(&mut complaints).read_line(&mut why);
            let why = why.trim_start_matches("error: ").trim_end();
            child.wait()?;
            return Err(io::Error::other(if why.is_empty() { "the monitor has ended at once" } else { why }));
        }
    }
}

/// Leaves the session and the directory of whoever has started this process.
///
/// # Errors
/// It can't.
pub fn detach() -> io::Result<()> {
    // It fails for who leads a group of its own already, as who is started by systemd does.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/")
}

/// Says that it watches, and gives the streams back.
pub fn ready() -> io::Result<()> {
    rustix::io::write(io::stdout().as_fd(), format!("{READY}\n").as_bytes())?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(script: &str) -> io::Result<()> {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        wait_until_ready(command.spawn().expect("sh"))
    }

    #[test]
    fn a_process_is_waited_for_but_not_for_ever() {
        let wait = |script: &str, limit| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::piped());
            wait_for_success(command.spawn().expect("sh"), limit)
        };
        wait("exit 0", LIMIT).expect("success");
        wait("exit 4", LIMIT).expect_err("no such unit");
        wait("exec sleep 600", Duration::from_millis(10)).expect_err("it is stuck");
    }

    #[test]
    fn it_is_waited_for_until_it_watches_or_has_said_why_not() {
        // It goes on afterwards, and what it says in between is not what is waited for.
        started("echo watching 3 guests; echo ready; exec >/dev/null 2>&1; sleep 0.1").expect("ready");
        for (script, why) in [
            (
                "echo already; echo 'error: no usable toolstack: x' >&2; echo more >&2; exit 5",
                "no usable toolstack: x",
            ),
            ("exit 0", "the monitor has ended at once"),
            ("echo not ready; exit 1", "the monitor has ended at once"),
        ] {
            assert_eq!(started(script).expect_err(script).to_string(), why, "{script}");
        }
    }
}
