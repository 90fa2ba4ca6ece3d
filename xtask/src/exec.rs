//! Running other programs so that a failure says everything a person needs.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many of a log's last lines an error repeats.
const TAIL_LINES: usize = 25;

/// Runs a command to its end with all of its output in the file `log`.
///
/// # Errors
/// The command can't be started or fails; the error has the last lines of the log and its place.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    let out = File::create(log).with_context(|| format!("create the log {}", log.display()))?;
    let err = out.try_clone().context("duplicate the log's descriptor")?;
    let status = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .status()
        .with_context(|| format!("start {}", describe(command)))?;
    if !status.success() {
        bail!("{} failed ({status})\n{}\nThe whole log: {}", describe(command), tail(log), log.display());
    }
    Ok(())
}

/// Runs a command to its end and returns what it wrote to its standard output.
///
/// # Errors
/// The command can't be started or fails; the error has what it wrote to its standard error.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("start {}", describe(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed ({})\n{}",
            describe(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(output.stdout)
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn tail(log: &Path) -> String {
    match fs::read(log) {
        Ok(content) => last_lines(&String::from_utf8_lossy(&content), TAIL_LINES),
        Err(error) => format!("  ({} can't be read: {error})", log.display()),
    }
}

/// The last `count` lines that are not empty, indented.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> =
        text.lines().map(|line| line.trim_end_matches('\r')).filter(|line| !line.trim().is_empty()).collect();
    let mut result = String::new();
    for line in &lines[lines.len().saturating_sub(count)..] {
        if !result.is_empty() {
            result.push('\n');
        }
        // Writing to a String can't fail.
        let _ = write!(result, "  | {line}");
    }
    result
}

/// The command as a person would type it, shortened to its beginning.
fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    if text.chars().count() > 300 {
        text = text.chars().take(300).collect();
        text.push_str(" …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_leaves_out_empty_ones_and_carriage_returns() {
        assert_eq!(last_lines("a\r\n\r\nb\n\nc\n", 2), "  | b\n  | c");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn a_failing_command_is_named_with_its_standard_error() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).expect_err("exit code 3");
        let text = format!("{error:#}");
        assert!(text.contains("broken"), "{text}");
        assert!(text.contains("exit 3"), "{text}");
    }
}
