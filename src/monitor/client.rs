//! How start, stop and status speak with the monitor.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::protocol::{Answer, Guest, Request, Waiting, Watched, line};
use super::socket_path;

/// How long the monitor may take to answer something that takes no time. It does one thing after the other.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long who starts guests waits until nothing is done with any.
const SETTLING: Duration = Duration::from_secs(10);

/// A connection to the monitor.
pub struct Client {
    stream: BufReader<UnixStream>,
    /// What was told while something else was waited for.
    told: Vec<(Guest, Option<String>)>,
}

impl Client {
    /// Connects. `Ok(None)`: there is no monitor.
    pub fn connect(run_dir: &Path) -> io::Result<Option<Client>> {
        match UnixStream::connect(socket_path(run_dir)) {
            Ok(stream) => {
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Some(Client { stream: BufReader::new(stream), told: Vec::new() }))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn ask(&mut self, request: &Request) -> io::Result<()> {
        self.stream.get_mut().write_all(line(request).as_bytes())
    }

    /// The next answer that `wanted` takes. What is told in between is kept.
    fn answer<T>(&mut self, limit: Duration, wanted: impl Fn(Answer) -> Option<T>) -> io::Result<T> {
        let deadline = Instant::now() + limit;
        let late = || io::Error::new(io::ErrorKind::TimedOut, "the monitor does not answer");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(late());
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            let mut text = String::new();
            match self.stream.read_line(&mut text) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the monitor has ended")),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(late());
                }
                Err(error) => return Err(error),
            }
            match serde_json::from_str(&text)? {
                Answer::Ended { guest, reason } => self.told.push((guest, reason)),
                Answer::Unknown { why } => return Err(io::Error::other(why)),
                answer => {
                    if let Some(answer) = wanted(answer) {
                        return Ok(answer);
                    }
                }
            }
        }
    }

    /// Has a guest watched that has the mark. `Ok(Err(…))` says why it is not.
    pub fn watch(&mut self, guest: &Guest) -> io::Result<Result<(), String>> {
        self.ask(&Request::Watch(guest.clone()))?;
        let about = guest.domid;
        self.answer(PATIENCE, |answer| match answer {
            Answer::Watching { domid } if domid == about => Some(Ok(())),
            Answer::NotWatching { domid, why } if domid == about => Some(Err(why)),
            _ => None,
        })
    }

    /// The guests that are watched.
    pub fn watched(&mut self) -> io::Result<Vec<Watched>> {
        self.ask(&Request::Status)?;
        self.answer(
            PATIENCE,
            |answer| if let Answer::Status { guests, .. } = answer { Some(guests) } else { None },
        )
    }

    /// Waits until nothing is done with any guest, and tells which are to be restarted later. One with which that takes
    /// long is not waited for: it is [written down](super::Restarts).
    pub fn settle(&mut self) -> io::Result<Vec<Waiting>> {
        self.ask(&Request::Settle)?;
        let settled = |answer| if let Answer::Settled { waiting } = answer { Some(waiting) } else { None };
        match self.answer(SETTLING, settled) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Vec::new()),
            answer => answer,
        }
    }

    /// Has nothing started until [`release`](Hold::release), or until this process ends. Waits for restarts that are
    /// under way, but no longer than this.
    pub fn hold(mut self, limit: Duration) -> io::Result<Hold> {
        self.ask(&Request::Hold)?;
        match self.answer(limit, |answer| if let Answer::Held { guests } = answer { Some(guests) } else { None }) {
            Ok(watched) => Ok(Hold { client: self, watched, is_complete: true }),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                Ok(Hold { client: self, watched: Vec::new(), is_complete: false })
            }
            Err(error) => Err(error),
        }
    }
}

/// As long as it is there the monitor starts nothing.
pub struct Hold {
    client: Client,
    /// The guests that are watched, and would have been restarted otherwise.
    pub watched: Vec<Guest>,
    /// Whether restarts that were under way have come to their end.
    pub is_complete: bool,
}

impl Hold {
    /// Guests with these names (or all) are not to come back; otherwise the monitor goes on where it was. Returns what it
    /// has seen meanwhile: which guests have ended by themselves or were ended, and why they have.
    pub fn release(mut self, stopped: Option<Vec<String>>) -> io::Result<Vec<(Guest, Option<String>)>> {
        self.client.ask(&Request::Release { stopped })?;
        self.client.answer(PATIENCE, |answer| (answer == Answer::Released).then_some(()))?;
        Ok(self.client.told)
    }
}
