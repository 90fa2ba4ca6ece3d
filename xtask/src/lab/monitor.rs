//! QEMU's control socket (QMP): JSON, one object a line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A connection to QEMU's monitor, ready for commands.
pub struct Monitor {
    reader: BufReader<UnixStream>,
}

impl Monitor {
    /// Takes the greeting and switches to command mode.
    ///
    /// # Errors
    /// The other side isn't QEMU's monitor, or went away.
    pub fn new(stream: UnixStream) -> Result<Self> {
        let mut monitor = Self { reader: BufReader::new(stream) };
        monitor.message().context("QEMU's greeting")?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Runs a command and returns its answer.
    ///
    /// # Errors
    /// QEMU refuses it or went away.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let mut request = json!({ "execute": command, "arguments": arguments }).to_string();
        request.push('\n');
        self.reader.get_mut().write_all(request.as_bytes()).with_context(|| format!("send {command} to QEMU"))?;
        loop {
            let message = self.message().with_context(|| format!("QEMU's answer to {command}"))?;
            if let Some(answer) = answer(&message)? {
                return Ok(answer);
            }
        }
    }

    /// Runs a command of the human monitor, which has some that QMP lacks, and returns what it prints.
    ///
    /// # Errors
    /// As [`execute`](Self::execute); a failed human command is not an error here, it only prints.
    pub fn human(&mut self, command: &str) -> Result<String> {
        let answer = self.execute("human-monitor-command", &json!({ "command-line": command }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Runs a human command that prints nothing unless it fails.
    ///
    /// # Errors
    /// It printed something.
    pub fn human_quiet(&mut self, command: &str) -> Result<()> {
        let said = self.human(command)?;
        if !said.trim().is_empty() {
            bail!("QEMU's {command}: {}", said.trim());
        }
        Ok(())
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU has ended");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU said {line:?}"))
    }
}

/// The result in a message, nothing if it is an event, or the error that it reports.
fn answer(message: &Value) -> Result<Option<Value>> {
    if let Some(error) = message.get("error") {
        bail!("QEMU: {}", error.get("desc").and_then(Value::as_str).unwrap_or("error without a description"));
    }
    Ok(message.get("return").cloned())
}

/// The port that QEMU's user network listens on, out of the output of `info usernet`.
#[must_use]
pub fn forwarded_port(usernet: &str) -> Option<u16> {
    // Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
    usernet.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "TCP[HOST_FORWARD]").then_some(())?;
        words.nth(2)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_no_answers() {
        assert_eq!(answer(&json!({ "event": "RESUME" })).expect("event"), None);
        assert_eq!(answer(&json!({ "return": {} })).expect("answer"), Some(json!({})));
        assert!(answer(&json!({ "error": { "desc": "no" } })).is_err());
    }

    #[test]
    fn the_forwarded_port_is_in_the_listing() {
        let listing = "Hub -1 (n0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  TCP[ESTABLISHED]   22       127.0.0.1 53210       10.0.2.15    22     0     0\r\n  TCP[HOST_FORWARD]  13       127.0.0.1 40519       10.0.2.15    22     0     0\r\n";
        assert_eq!(forwarded_port(listing), Some(40519));
        assert_eq!(forwarded_port(""), None);
    }
}
