//! The way into dom0: one ssh connection for a host, shared by all commands, so that a command costs milliseconds
//! instead of an emulated handshake.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cache::Lock;
use crate::exec;

/// The name that host keys are known by; the address is always the same, the port never.
pub const HOST_ALIAS: &str = "lab";

/// In the host's folder; relative, because socket addresses are short.
const CONTROL: &str = "ssh.ctl";
const CONFIG: &str = "ssh_config";

/// What a command in dom0 did.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Its exit code; 255 is also ssh's own failure.
    pub status: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Whether it ended with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// Turns a failure into an error that has everything the command said.
    ///
    /// # Errors
    /// The exit code isn't 0.
    pub fn check(self) -> Result<Self> {
        if self.success() { Ok(self) } else { bail!("{self}") }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` in dom0: exit code {}", self.command, self.status)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.trim().is_empty() {
                write!(f, "\n{name}:\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// The lab's own key, made when it is first needed; returns the public half.
///
/// # Errors
/// ssh-keygen fails.
pub fn public_key(lab: &Path) -> Result<String> {
    let directory = lab.join("ssh");
    let private = private_key(lab);
    let public = directory.join("id_ed25519.pub");
    let _lock = Lock::take(&directory.join("lock"))?;
    if !public.exists() {
        // ssh-keygen asks before it writes over a file; half a pair is of no use.
        let _ = fs::remove_file(&private);
        exec::output(
            Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"])
                .arg(&private)
                .stdin(Stdio::null()),
        )?;
    }
    fs::read_to_string(&public).with_context(|| format!("read {}", public.display()))
}

fn private_key(lab: &Path) -> PathBuf {
    lab.join("ssh/id_ed25519")
}

/// Writes the host's ssh configuration.
///
/// # Errors
/// The file can't be written.
pub fn configure(lab: &Path, directory: &Path, known_hosts: &Path, port: u16) -> Result<()> {
    let text = format!(
        "Host {HOST_ALIAS}\n\
         HostName 127.0.0.1\n\
         Port {port}\n\
         User root\n\
         IdentityFile \"{}\"\n\
         IdentitiesOnly yes\n\
         IdentityAgent none\n\
         BatchMode yes\n\
         HostKeyAlias {HOST_ALIAS}\n\
         UserKnownHostsFile \"{}\"\n\
         GlobalKnownHostsFile /dev/null\n\
         StrictHostKeyChecking yes\n\
         ConnectTimeout 60\n\
         LogLevel ERROR\n",
        private_key(lab).display(),
        known_hosts.display()
    );
    let path = directory.join(CONFIG);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// An ssh command for the host in this folder that uses the shared connection, with its options before the destination.
fn ssh(directory: &Path, options: &[&str]) -> Command {
    let mut command = Command::new("ssh");
    command.current_dir(directory).args(["-F", CONFIG, "-S", CONTROL]).args(options).arg(HOST_ALIAS);
    command
}

/// Opens the shared connection and returns when it is there.
///
/// # Errors
/// dom0 does not answer.
pub fn connect(directory: &Path) -> Result<()> {
    let _ = fs::remove_file(directory.join(CONTROL));
    let log = directory.join("ssh.log");
    exec::logged(&mut ssh(directory, &["-M", "-N", "-f"]), &log)
}

/// Closes the shared connection; none is fine.
pub fn disconnect(directory: &Path) {
    if directory.join(CONTROL).exists() {
        let _ = ssh(directory, &["-O", "exit"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Whether the shared connection is there.
fn connected(directory: &Path) -> bool {
    ssh(directory, &["-O", "check"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A command that runs `remote` in dom0's shell, to be started as the caller likes.
#[must_use]
pub fn command(directory: &Path, remote: impl AsRef<OsStr>) -> Command {
    let mut command = ssh(directory, &["-o", "ControlMaster=no"]);
    command.arg("--").arg(remote);
    command
}

/// A login shell in dom0, on this terminal.
#[must_use]
pub fn interactive(directory: &Path) -> Command {
    ssh(directory, &["-o", "ControlMaster=no", "-t"])
}

/// How long a command may take. The longest ones wait three minutes for a guest; beyond that the host does not answer.
pub const LIMIT: Duration = Duration::from_secs(600);

/// Runs `remote` in dom0's shell to its end.
///
/// # Errors
/// ssh itself can't be run, loses dom0, or takes longer than `limit`; the command's failure is in the output.
pub fn run(directory: &Path, remote: &str, input: &[u8], limit: Duration) -> Result<Output> {
    let ssh = command(directory, remote);
    let began = Instant::now();
    let mut child = Command::new("timeout")
        .args(["--signal=KILL", &limit.as_secs().to_string()])
        .arg(ssh.get_program())
        .args(ssh.get_args())
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ssh")?;
    let mut stdin = child.stdin.take().context("ssh's standard input")?;
    let output = std::thread::scope(|scope| {
        // On a thread of its own: the command may write before it has read everything.
        scope.spawn(move || {
            // A command that does not read its input ends the pipe, which is its business.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output()
    })
    .context("wait for ssh")?;
    if began.elapsed() >= limit {
        bail!("dom0 has not done this within {} s: {remote}", limit.as_secs());
    }
    let status = output.status.code().unwrap_or(255);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    // ssh's own failures have the same code as a command that ends with 255; only they lose the connection.
    if status == 255 && !connected(directory) {
        bail!("the connection to dom0 is lost: {}", stderr.trim_end());
    }
    Ok(Output {
        command: remote.to_owned(),
        status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr,
    })
}

/// Text as one word of a shell's command line.
#[must_use]
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_keeps_a_word_together() {
        assert_eq!(quote("a b"), "'a b'");
        assert_eq!(quote("it's"), r"'it'\''s'");
    }

    #[test]
    fn a_failed_command_says_everything() {
        let output = Output {
            command: "xl list".to_owned(),
            status: 1,
            stdout: String::new(),
            stderr: "no xen\n".to_owned(),
        };
        let text = output.check().expect_err("exit code 1").to_string();
        assert_eq!(text, "`xl list` in dom0: exit code 1\nstderr:\nno xen");
    }
}
