//! The lab guests' counters, read off their consoles: a count that goes on proves that a guest was continued.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::{Host, console_log, quote};

/// How long a guest may take to get somewhere, under emulation, before it counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The last count on a guest's console.
///
/// # Errors
/// It has not counted yet.
pub fn last(host: &Host, name: &str) -> Result<u64> {
    let log = console(host, name)?;
    log.lines().rev().find_map(|line| count_in(line, name)).with_context(|| format!("{name} has not counted yet"))
}

fn count_in(line: &str, name: &str) -> Option<u64> {
    line.trim().strip_prefix(name)?.strip_prefix(" tick ")?.parse().ok()
}

/// How often a guest has booted.
///
/// # Errors
/// Its console can't be read.
pub fn boots(host: &Host, name: &str) -> Result<usize> {
    Ok(console(host, name)?.matches("GUEST READY").count())
}

/// All that a guest has written to its console.
///
/// # Errors
/// It has none.
pub fn console(host: &Host, name: &str) -> Result<String> {
    Ok(host.run(&format!("cat {}", quote(&console_log(name))))?.check()?.stdout)
}

/// Waits until a guest has counted to at least `count`.
///
/// # Errors
/// It does not within five minutes.
pub fn wait(host: &Host, name: &str, count: u64) -> Result<()> {
    let counted = |line: &str| count_in(line, name).is_some_and(|n| n >= count);
    host.wait_for_line(&console_log(name), counted, PATIENCE)?;
    Ok(())
}
