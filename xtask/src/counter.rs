//! The lab guests' counters, read off their consoles: a count that goes on proves that a guest was continued.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::{Host, console_log, quote};

/// How long a guest may take to get somewhere, under emulation, before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(180);

/// The last count on a guest's console.
///
/// # Errors
/// It has not counted yet.
pub fn last(host: &Host, name: &str) -> Result<u64> {
    let log = console(host, name)?;
    let start = format!("{name} tick ");
    log.lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix(&start)?.parse().ok())
        .with_context(|| format!("{name} has not counted yet"))
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
/// It does not within three minutes.
pub fn wait(host: &Host, name: &str, count: u64) -> Result<()> {
    // tail follows by inotify; awk ends at the first line that will do.
    let watch = format!(
        "awk '$2 == \"tick\" && $3 + 0 >= {count} {{ found = 1; exit }} END {{ exit !found }}' \
         < <(exec tail -n +1 -F {} 2>/dev/null)",
        quote(&console_log(name))
    );
    let limit = PATIENCE.as_secs();
    if !host.run(&format!("timeout {limit} bash -c {}", quote(&watch)))?.success() {
        bail!("{name} did not count to {count} within {limit} s; its console:\n{}", console(host, name)?);
    }
    Ok(())
}
