//! What a person sees of long work: which step, and how long it took.

use std::time::Instant;

use anyhow::Result;

/// Runs `work` as a named step: says that it began and, when it succeeded, how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    eprintln!("[   …   ] {what}");
    let result = work();
    if result.is_ok() {
        eprintln!("[{:6.1}s] {what}", begun.elapsed().as_secs_f64());
    }
    result
}
