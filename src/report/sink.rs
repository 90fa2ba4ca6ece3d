//! Where the lines of start and stop go, so that they are found by whoever looks for them, once.
//!
//! | the stream is | the command | somebody is at a terminal | a line goes to |
//! |---|---|---|---|
//! | systemd's journal | any | any | the journal, for our unit; else the stream, with its priority in front (sd-daemon(3)) |
//! | anything else | start, stop, restart, reload, monitor | no | the stream and syslog |
//! | anything else | start, stop, restart, reload, monitor | yes | the stream |
//! | anything else | any other | any | the stream |
//!
//! A process has a controlling terminal when a person has started it, and then the person reads what it says, or has
//! directed it to a place of their own. An init system starts it without one: whatever it gives as output (the console,
//! a pipe, nothing), an admin will look into the log of the system. The other commands answer a question; who asks every
//! minute does not want the answers in the log.
//!
//! Each of the two streams is looked at by itself. A line goes to one of them, so that it can't come twice to the same
//! place when both are the same.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::journal::Journal;
use super::one_line;
use super::outlet::{Item, Outlet};
use super::syslog::Syslog;

/// How much a line matters, with syslog's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// Something failed.
    Error = 3,
    /// Something is doubtful.
    Warning = 4,
    /// Something was done, or is worth knowing.
    Info = 6,
}

/// What is done with the lines for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Stream,
    Journal,
    StreamAndSyslog,
}

fn place(is_journal: bool, acts: bool, has_terminal: bool) -> Place {
    match (is_journal, acts, has_terminal) {
        (true, _, _) => Place::Journal,
        (false, true, false) => Place::StreamAndSyslog,
        (false, _, _) => Place::Stream,
    }
}

/// One of the two streams, and what else its lines go to.
#[derive(Clone)]
pub(super) struct Sink {
    outlet: Outlet,
    /// The stream's number among those of the outlet.
    number: usize,
    syslog: Option<Outlet>,
}

/// Place that an outlet writes to.
struct Stream {
    stream: Box<dyn Write + Send>,
    place: Place,
    journal: Option<Journal>,
}

impl Sink {
    /// Only these streams, with their lines in order.
    pub(super) fn plain(out: Box<dyn Write + Send>, err: Box<dyn Write + Send>) -> (Sink, Sink) {
        let stream = |stream| Stream { stream, place: Place::Stream, journal: None };
        let outlet = outlet(vec![stream(out), stream(err)]);
        let sink = |number| Sink { outlet: outlet.clone(), number, syslog: None };
        (sink(0), sink(1))
    }

    /// The streams that this process was started with. `acts` is whether the command starts or stops guests. Where both are
    /// the same, their lines come in order; where not, neither waits for the other.
    pub(super) fn of_process<S: Write + AsFd + Send + 'static, T: Write + AsFd + Send + 'static>(
        out: S,
        err: T,
        acts: bool,
    ) -> (Sink, Sink) {
        let has_terminal = File::open("/dev/tty").is_ok();
        let is_same = is_same_file(&out, &err);
        let (out, err) =
            (Stream::of_process(out, acts, has_terminal), Stream::of_process(err, acts, has_terminal));
        let log = syslog_outlet(Syslog::default());
        let syslog = |stream: &Stream| (stream.place == Place::StreamAndSyslog).then(|| log.clone());
        let (out_syslog, err_syslog) = (syslog(&out), syslog(&err));
        let (out_outlet, err_outlet, number) = if is_same {
            let both = outlet(vec![out, err]);
            (both.clone(), both, 1)
        } else {
            (outlet(vec![out]), outlet(vec![err]), 0)
        };
        (
            Sink { outlet: out_outlet, number: 0, syslog: out_syslog },
            Sink { outlet: err_outlet, number, syslog: err_syslog },
        )
    }

    /// Queues one line, which is written in one piece.
    pub(super) fn line(&self, level: Level, text: &str) {
        self.outlet.push(self.number, Item::Line(level, text.to_owned()));
        self.log(level, text);
    }

    /// Queues a line that is only to be found in the log of the system: the stream is kept for something else.
    pub(super) fn log(&self, level: Level, text: &str) {
        if let Some(syslog) = &self.syslog {
            syslog.push(0, Item::Line(level, text.to_owned()));
        }
    }

    /// Writes what is not a line, such as a table, and waits until it is written, at most so long.
    pub(super) fn answer(&self, text: &str, limit: Option<Duration>) -> io::Result<()> {
        let done = self.outlet.answer(self.number, text.as_bytes().to_vec());
        match limit {
            Some(limit) => done.recv_timeout(limit).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?,
            None => done.recv().map_err(io::Error::other)?,
        }
    }

    /// Queues bytes that are written as they are, and may be left out.
    pub(super) fn bytes(&self, bytes: Vec<u8>) {
        self.outlet.push(self.number, Item::Bytes(bytes));
    }

    /// Returns whether the reader of the stream does not keep up.
    pub(super) fn is_behind(&self) -> bool {
        self.outlet.is_behind()
    }

    /// Waits until everything is written, at most until then.
    pub(super) fn flush(&self, deadline: Instant) {
        for outlet in std::iter::once(&self.outlet).chain(&self.syslog) {
            outlet.flush(deadline);
        }
    }

    /// Ends the threads that write, when everything is written.
    pub(super) fn close(&self) {
        for outlet in std::iter::once(&self.outlet).chain(&self.syslog) {
            outlet.close();
        }
    }
}

fn outlet(mut streams: Vec<Stream>) -> Outlet {
    Outlet::new(Box::new(move |number, item| {
        if let Some(stream) = streams.get_mut(number) {
            stream.write(item);
        }
    }))
}

fn syslog_outlet(mut syslog: Syslog) -> Outlet {
    Outlet::new(Box::new(move |_, item| {
        if let Item::Line(level, text) = item {
            syslog.send(level, &one_line(&text));
        }
    }))
}

impl Stream {
    fn of_process(stream: impl Write + AsFd + Send + 'static, acts: bool, has_terminal: bool) -> Stream {
        let journal = std::env::var_os("JOURNAL_STREAM");
        let is_journal = journal.is_some_and(|journal| is_stream(&stream, &journal));
        let place = place(is_journal, acts, has_terminal);
        let journal = if place == Place::Journal { Journal::of_process() } else { None };
        Stream { stream: Box::new(stream), place, journal }
    }

    /// That nobody reads a line (a closed pipe, a full disk under a log) is no reason to leave guests alone, and there is no
    /// place left to say it.
    fn write(&mut self, item: Item) {
        match item {
            Item::Line(level, text) => self.line(level, &text),
            Item::Bytes(bytes) => drop(self.bytes(&bytes)),
            // Whoever has waited for it may have given up.
            Item::Answer(bytes, done) => drop(done.send(self.bytes(&bytes))),
        }
    }

    fn line(&mut self, level: Level, text: &str) {
        if let Some(journal) = &self.journal {
            if journal.send(level, &one_line(text)).is_ok() {
                return;
            }
        }
        let mut line = match self.place {
            Place::Journal => format!("<{}>", level as u8),
            Place::Stream | Place::StreamAndSyslog => String::new(),
        };
        line.push_str(&one_line(text));
        line.push('\n');
        let _ = self.bytes(line.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush())
    }
}

fn is_same_file(one: &impl AsFd, other: &impl AsFd) -> bool {
    let file = |stream: &dyn AsFd| rustix::fs::fstat(stream.as_fd()).map(|stat| (stat.st_dev, stat.st_ino));
    matches!((file(one), file(other)), (Ok(one), Ok(other)) if one == other)
}

/// Whether the stream is the one that `$JOURNAL_STREAM` names, as `DEVICE:INODE`; see systemd.exec(5). The variable alone
/// says nothing: who has directed the output elsewhere has left it as it was.
fn is_stream(stream: &impl AsFd, variable: &OsStr) -> bool {
    let named = variable.to_str().and_then(|text| {
        let (device, inode) = text.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    });
    let stat = rustix::fs::fstat(stream);
    stat.is_ok_and(|stat| named == Some((stat.st_dev, stat.st_ino)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::super::Buffer;
    use super::*;

    #[test]
    fn lines_go_where_the_table_says() {
        for (is_journal, acts, has_terminal, expected) in [
            (true, true, true, Place::Journal),
            (true, true, false, Place::Journal),
            (true, false, true, Place::Journal),
            (true, false, false, Place::Journal),
            (false, true, false, Place::StreamAndSyslog),
            (false, true, true, Place::Stream),
            (false, false, false, Place::Stream),
            (false, false, true, Place::Stream),
        ] {
            assert_eq!(place(is_journal, acts, has_terminal), expected, "{is_journal} {acts} {has_terminal}");
        }
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        let stat = |file: &File| rustix::fs::fstat(file).expect("stat");
        let (file, other) = (tempfile::tempfile().expect("file"), tempfile::tempfile().expect("file"));
        let name = |stat: &rustix::fs::Stat| format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_stream(&file, OsStr::new(&name(&stat(&file)))));
        assert!(!is_stream(&file, OsStr::new(&name(&stat(&other)))));
        for odd in ["", "1", ":", "a:b", "1:2:3"] {
            assert!(!is_stream(&file, OsStr::new(odd)), "{odd}");
        }
    }

    #[test]
    fn each_place_gets_a_line_as_it_wants_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let log = UnixDatagram::bind(&path).expect("bind");
        for (place, expected) in [
            (Place::Stream, "no; kernel\n"),
            (Place::Journal, "<3>no; kernel\n"),
            (Place::StreamAndSyslog, "no; kernel\n"),
        ] {
            let buffer = Buffer::default();
            let syslog = (place == Place::StreamAndSyslog).then(|| syslog_outlet(Syslog::at(&path)));
            let stream = Stream { stream: Box::new(buffer.clone()), place, journal: None };
            let sink = Sink { outlet: outlet(vec![stream]), number: 0, syslog };
            sink.line(Level::Error, "no\nkernel\n");
            sink.flush(Instant::now() + Duration::from_secs(20));
            assert_eq!(buffer.text(), expected);
        }
        let mut got = [0; 100];
        let length = log.recv(&mut got).expect("a message");
        let text = String::from_utf8_lossy(&got[..length]);
        assert!(text.starts_with("<27>xendomains[") && text.ends_with("]: no; kernel"), "{text}");
        log.set_nonblocking(true).expect("set");
        assert!(log.recv(&mut got).is_err(), "it came once");
    }
}
