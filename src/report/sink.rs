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
use std::io::Write;
use std::os::fd::AsFd;

use super::journal::Journal;
use super::one_line;
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
pub(super) struct Sink {
    stream: Box<dyn Write + Send>,
    place: Place,
    syslog: Syslog,
    journal: Option<Journal>,
}

impl Sink {
    /// Only the stream.
    pub(super) fn plain(stream: Box<dyn Write + Send>) -> Sink {
        Sink { stream, place: Place::Stream, syslog: Syslog::default(), journal: None }
    }

    /// A stream that this process was started with. `acts` is whether the command starts or stops guests.
    pub(super) fn of_process(stream: impl Write + AsFd + Send + 'static, acts: bool) -> Sink {
        let journal = std::env::var_os("JOURNAL_STREAM");
        let is_journal = journal.is_some_and(|journal| is_stream(&stream, &journal));
        let has_terminal = File::open("/dev/tty").is_ok();
        let place = place(is_journal, acts, has_terminal);
        let journal = if place == Place::Journal { Journal::of_process() } else { None };
        Sink { place, journal, ..Sink::plain(Box::new(stream)) }
    }

    /// Writes one line in one piece. That nobody reads it (a closed pipe, a full disk under a log) is no reason to leave
    /// guests alone, and there is no place left to say it.
    pub(super) fn line(&mut self, level: Level, text: &str) {
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
        let _ = self.stream.write_all(line.as_bytes()).and_then(|()| self.stream.flush());
        self.log(level, text);
    }

    /// Only what is to be found in the log of the system: the stream is kept for something else.
    pub(super) fn log(&mut self, level: Level, text: &str) {
        if self.place == Place::StreamAndSyslog {
            self.syslog.send(level, &one_line(text));
        }
    }

    /// The stream, for what is not a line.
    pub(super) fn stream(&mut self) -> &mut dyn Write {
        &mut *self.stream
    }
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
        for (place, stream) in [
            (Place::Stream, "no; kernel\n"),
            (Place::Journal, "<3>no; kernel\n"),
            (Place::StreamAndSyslog, "no; kernel\n"),
        ] {
            let buffer = Buffer::default();
            let syslog = Syslog::at(&path);
            let mut sink = Sink { stream: Box::new(buffer.clone()), place, syslog, journal: None };
            sink.line(Level::Error, "no\nkernel\n");
            assert_eq!(buffer.text(), stream);
        }
        let mut got = [0; 100];
        let length = log.recv(&mut got).expect("a message");
        let text = String::from_utf8_lossy(&got[..length]);
        assert!(text.starts_with("<27>xendomains[") && text.ends_with("]: no; kernel"), "{text}");
        log.set_nonblocking(true).expect("set");
        assert!(log.recv(&mut got).is_err(), "it came once");
    }
}
