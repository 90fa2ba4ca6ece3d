//! Lines out of a stream as they come, with a deadline.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How many lines are kept for an error message.
const KEPT: usize = 20;

/// Reads lines; needs no text encoding and no particular line ending.
pub struct Lines<S> {
    stream: S,
    rest: Vec<u8>,
    last: VecDeque<String>,
}

impl<S: Read + AsFd> Lines<S> {
    /// Lines of this stream.
    pub fn new(stream: S) -> Self {
        Self { stream, rest: Vec::new(), last: VecDeque::new() }
    }

    /// The first line that is wanted; nothing when the stream ends or the deadline passes before.
    ///
    /// # Errors
    /// The stream can't be read.
    pub fn find(&mut self, wanted: impl Fn(&str) -> bool, deadline: Instant) -> Result<Option<String>> {
        let mut buffer = [0; 8192];
        loop {
            while let Some(line) = self.take_line() {
                if wanted(&line) {
                    return Ok(Some(line));
                }
                if self.last.len() == KEPT {
                    self.last.pop_front();
                }
                self.last.push_back(line);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !readable(&[self.stream.as_fd()], left)?[0] {
                return Ok(None);
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => self.rest.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read a line"),
            }
        }
    }

    /// The last lines that were not wanted.
    #[must_use]
    pub fn last(&self) -> String {
        Vec::from_iter(self.last.iter().map(String::as_str)).join("\n")
    }

    fn take_line(&mut self) -> Option<String> {
        let end = self.rest.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.rest.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

/// Waits until one of the descriptors is readable (a pidfd: the process has ended), and says which are.
pub fn readable<const N: usize>(descriptors: &[BorrowedFd<'_>; N], limit: Duration) -> Result<[bool; N]> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let mut set = descriptors.map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
        match poll(&mut set, Some(&timeout)) {
            Ok(_) => return Ok(set.map(|entry| !entry.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error)).context("wait for an event"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_line_is_found_and_those_before_it_are_kept() {
        let (mut writer, reader) = UnixStream::pair().expect("socket pair");
        writer.write_all(b"one\r\ntwo\nthree\nrest").expect("write");
        let mut lines = Lines::new(reader);
        let far = Instant::now() + Duration::from_secs(60);
        assert_eq!(lines.find(|line| line == "two", far).expect("read"), Some("two".to_owned()));
        assert_eq!(lines.last(), "one");
        drop(writer);
        assert_eq!(lines.find(|line| line == "rest", far).expect("read"), None);
        assert_eq!(lines.last(), "one\nthree");
    }

    #[test]
    fn the_deadline_ends_the_wait() {
        let (_writer, reader) = UnixStream::pair().expect("socket pair");
        let mut lines = Lines::new(reader);
        let soon = Instant::now() + Duration::from_millis(20);
        assert_eq!(lines.find(|_| true, soon).expect("read"), None);
    }
}
