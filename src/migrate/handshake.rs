//! The conversation with `xl migrate-receive` on the other host, as a table of states.
//!
//! ```text
//!  us                                                the target
//!                                              <---  BANNER
//!  header of an image, configuration           --->
//!  libxl's stream; the guest is suspended      --->
//!                                              <---  READY: the guest is built there, as NAME--incoming, paused
//!  our domain becomes NAME--migratedaway
//!  GO                                          --->
//!                                                    NAME--incoming becomes NAME and runs
//!                                              <---  REPORT and a status: 0 is success
//!  our domain is destroyed                           or else its domain is destroyed
//!                                              <---  GO: ours may run again
//! ```
//!
//! The target lets the guest run only after GO. So up to the first attempt to write GO every failure means that the
//! guest runs on here. From then on it may be running there whatever we hear, and may run here again only if the target
//! says that it has destroyed its own: there is one [`RunHere`] for each guest, GO takes it away, and only that message
//! gives it back.

use std::time::{Duration, Instant};

/// What the target says when it is ready for a guest. There is no NUL at its end.
pub const BANNER: &[u8] = b"xl migration receiver ready, send binary domain data.\n";
/// What the target says when it has the whole guest.
pub const READY: &[u8] = b"domain received, ready to unpause\0";
/// What lets the other side run the guest.
pub const GO: &[u8] = b"domain is yours, you are cleared to unpause\0";
/// What the target says before its status.
pub const REPORT: &[u8] = b"my copy unpause results are as follows\0";

/// Where a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The connection is being made.
    Connecting,
    /// The target wants to know what guest it is.
    Describing,
    /// libxl sends the guest, which is suspended in the end.
    Streaming,
    /// It is written down that the guest may be there from now on.
    Noting,
    /// The target builds the guest.
    Building,
    /// Our domain gets its other name.
    Renaming,
    /// Whether GO can be written at all is looked at.
    Looking,
    /// GO is written.
    Going,
    /// The target lets the guest run, and says so.
    Reporting,
    /// It says whether it has worked.
    Judging,
    /// It has not worked; the target destroys its domain.
    Returning,
}

/// What is done in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchange {
    /// These bytes must come.
    Read(&'static [u8]),
    /// These bytes are sent.
    Write(&'static [u8]),
    /// The header and the configuration are sent.
    Describe,
    /// libxl sends the guest. If that fails it lets it run again.
    Stream,
    /// The record is written.
    Note,
    /// Our domain is renamed.
    Rename,
    /// It is looked whether the transport still takes something.
    Look,
    /// One byte must come: 0, or something else.
    Status,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The guest runs here; nothing is to be done.
    RunsHere,
    /// It is suspended here, and is let run.
    Resume,
    /// The same, and our domain gets its name back before.
    TakeBack,
    /// It runs there; our domain is destroyed.
    Moved,
    /// It may run there. Our domain stays as it is.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    To(State),
    Ends(End),
}

/// What is done in a state, and what comes after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) state: State,
    pub(super) exchange: Exchange,
    /// When it has worked.
    pub(super) done: Next,
    /// When the target says no; that is something else than a failure only where it can say so.
    pub(super) refused: Next,
    /// When it has not worked, for whatever reason.
    pub(super) failed: End,
}

const fn row(state: State, exchange: Exchange, done: Next, failed: End) -> Row {
    Row { state, exchange, done, refused: Next::Ends(failed), failed }
}

/// All of it. The line is the point of no return.
pub(super) const TABLE: [Row; 11] = {
    use End::{Moved, Resume, RunsHere, TakeBack, Unknown};
    use Exchange::{Describe, Look, Note, Read, Rename, Status, Stream, Write};
    use Next::{Ends, To};
    use State::{
        Building, Connecting, Describing, Going, Judging, Looking, Noting, Renaming, Reporting, Returning,
        Streaming,
    };
    [
        row(Connecting, Read(BANNER), To(Describing), RunsHere),
        row(Describing, Describe, To(Streaming), RunsHere),
        row(Streaming, Stream, To(Noting), RunsHere),
        row(Noting, Note, To(Building), Resume),
        row(Building, Read(READY), To(Renaming), Resume),
        row(Renaming, Rename, To(Looking), Resume),
        row(Looking, Look, To(Going), TakeBack),
        // ------------------------------------------------------------------
        row(Going, Write(GO), To(Reporting), Unknown),
        row(Reporting, Read(REPORT), To(Judging), Unknown),
        Row { state: Judging, exchange: Status, done: Ends(Moved), refused: To(Returning), failed: Unknown },
        row(Returning, Read(GO), Ends(TakeBack), Unknown),
    ]
};

fn row_of(state: State) -> &'static Row {
    // A test sees to it that there is one for each state; a migration that has none does not go on.
    TABLE.iter().find(|row| row.state == state).unwrap_or(&TABLE[0])
}

/// The right to let a guest run on this host. There is one for each migration, and it can't be copied: whoever lets the
/// guest run has to hand it in.
#[derive(Debug)]
pub(super) struct RunHere(());

/// GO may have been given.
#[derive(Debug)]
struct GoneOut(RunHere);

impl RunHere {
    /// To be called before the first byte of GO is written.
    fn give_out(self) -> GoneOut {
        GoneOut(self)
    }
}

impl GoneOut {
    /// To be called when the target has said that its domain is destroyed.
    fn returned(self) -> RunHere {
        self.0
    }
}

enum Right {
    Ours(RunHere),
    Out(GoneOut),
}

/// Why something between the two sides has not worked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("the connection ended")]
    Ended,
    #[error("the other side sent something else (byte {at} is {found:#04x})")]
    Wrong {
        /// Counted from 1.
        at: usize,
        found: u8,
    },
    #[error("{0}")]
    Io(String),
    #[error("the time is over")]
    TimedOut,
    #[error("told to end")]
    ToldToEnd,
}

/// How long something may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// Its end. `None`: none.
    pub(super) deadline: Option<Instant>,
    /// How much longer it may take once the program was told to end.
    pub(super) once_told: Duration,
}

/// The other side, behind whatever connects to it.
pub(super) trait Peer {
    /// Reads what has come, at least one byte and no more than asked for.
    fn read(&mut self, buffer: &mut [u8], limit: Limit) -> Result<usize, Broken>;
    /// Sends all of it.
    fn write(&mut self, bytes: &[u8], limit: Limit) -> Result<(), Broken>;
    /// Whether something could be sent now.
    fn look(&mut self, limit: Limit) -> Result<(), Broken>;
}

/// What is done on this host.
pub(super) trait Local {
    /// The connection is made: the target is there.
    fn connected(&mut self);
    /// The header of an image and the guest's configuration.
    fn description(&mut self) -> Result<Vec<u8>, String>;
    /// Sends the guest, which is suspended afterwards. After an error it runs again, if that can be done.
    fn stream(&mut self) -> Result<(), String>;
    /// Writes down that the guest may be there from now on.
    fn note(&mut self) -> Result<(), String>;
    /// Gives our domain its other name.
    fn rename(&mut self) -> Result<(), String>;
    /// How long what is done in this state may take.
    fn limit(&self, state: State) -> Limit;
}

/// What has become of the guest.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It belongs here.
    Here {
        /// Needed to let it run.
        right: RunHere,
        /// In which way it is here.
        found: Found,
        /// In which state it has failed, and why.
        state: State,
        why: String,
    },
    /// It runs on the target.
    There,
    /// One of the two, and nobody can tell which.
    Unknown {
        /// Why.
        why: String,
    },
}

/// How a guest is that has not been migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It runs, if it could be let run.
    Running,
    /// It is suspended under its own name.
    Suspended,
    /// It is suspended as `--migratedaway`.
    Renamed,
}

enum Answer {
    Done,
    Refused(u8),
}

/// Goes through the table.
pub(super) fn shake_hands(local: &mut dyn Local, peer: &mut dyn Peer) -> Verdict {
    let mut right = Right::Ours(RunHere(()));
    let mut state = TABLE[0].state;
    let mut said_no = None;
    loop {
        let row = row_of(state);
        if state == State::Going {
            right = match right {
                Right::Ours(right) => Right::Out(right.give_out()),
                out @ Right::Out(_) => out,
            };
        }
        let (next, why) = match perform(row, local, peer) {
            Ok(Answer::Done) => (row.done, None),
            Ok(Answer::Refused(status)) => {
                said_no = Some(format!("the target could not let it run (status {status})"));
                (row.refused, said_no.clone())
            }
            Err(why) => (Next::Ends(row.failed), Some(why)),
        };
        match next {
            Next::To(next) => state = next,
            Next::Ends(end) => {
                let why = why.or(said_no).unwrap_or_default();
                return conclude(right, end, state, why);
            }
        }
    }
}

/// Whatever does not fit together means that nothing is known.
fn conclude(right: Right, end: End, state: State, why: String) -> Verdict {
    let here = |right, found| Verdict::Here { right, found, state, why: why.clone() };
    match (right, end) {
        (Right::Ours(right), End::RunsHere) => here(right, Found::Running),
        (Right::Ours(right), End::Resume) => here(right, Found::Suspended),
        (Right::Ours(right), End::TakeBack) => here(right, Found::Renamed),
        (Right::Out(out), End::TakeBack) => here(out.returned(), Found::Renamed),
        (Right::Out(_), End::Moved) => Verdict::There,
        (Right::Ours(_) | Right::Out(_), _) => Verdict::Unknown { why },
    }
}

fn perform(row: &Row, local: &mut dyn Local, peer: &mut dyn Peer) -> Result<Answer, String> {
    let limit = local.limit(row.state);
    let said = |what: &'static str| move |broken: Broken| format!("{broken} {what}");
    match row.exchange {
        Exchange::Read(expected) => read(expected, peer, limit).map_err(said(waits_for(row.state)))?,
        Exchange::Write(bytes) => peer.write(bytes, limit).map_err(said("while it was told to go"))?,
        Exchange::Describe => {
            let description = local.description()?;
            peer.write(&description, limit).map_err(said("while the configuration was sent"))?;
        }
        Exchange::Stream => local.stream()?,
        Exchange::Note => local.note()?,
        Exchange::Rename => local.rename()?,
        Exchange::Look => peer.look(limit).map_err(said("before it was told to go"))?,
        Exchange::Status => {
            let mut status = [0];
            peer.read(&mut status, limit).map_err(said(waits_for(row.state)))?;
            if status[0] != 0 {
                return Ok(Answer::Refused(status[0]));
            }
        }
    }
    if row.state == State::Connecting {
        local.connected();
    }
    Ok(Answer::Done)
}

fn waits_for(state: State) -> &'static str {
    match state {
        State::Connecting => "before the target was ready for a guest",
        State::Building => "before the target had built the guest",
        State::Reporting | State::Judging => "before the target said whether it runs",
        State::Returning => "before the target said that its own is destroyed",
        _ => "on the way",
    }
}

/// The bytes are compared as they come, so that nobody waits for the rest of something else.
fn read(expected: &[u8], peer: &mut dyn Peer, limit: Limit) -> Result<(), Broken> {
    let mut found = vec![0; expected.len()];
    let mut at = 0;
    while at < expected.len() {
        let read = peer.read(&mut found[at..], limit)?;
        for _ in 0..read.min(expected.len() - at) {
            if found[at] != expected[at] {
                return Err(Broken::Wrong { at: at + 1, found: found[at] });
            }
            at += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 11] = [
        State::Connecting,
        State::Describing,
        State::Streaming,
        State::Noting,
        State::Building,
        State::Renaming,
        State::Looking,
        State::Going,
        State::Reporting,
        State::Judging,
        State::Returning,
    ];

    /// The other side as a list of bytes, and this side as one of what was done.
    struct Both {
        /// What comes from the target.
        comes: Vec<u8>,
        /// How it ends when all of that was read.
        then: Broken,
        /// How many bytes come at once.
        at_once: usize,
        /// How much is taken, all in all.
        takes: usize,
        sent: Vec<u8>,
        /// What fails on this side.
        fails: Option<State>,
    }

    struct ThisSide {
        fails: Option<State>,
        did: Vec<&'static str>,
    }

    impl ThisSide {
        fn does(&mut self, what: &'static str, state: State) -> Result<(), String> {
            if self.fails == Some(state) {
                return Err(format!("{what} does not work"));
            }
            self.did.push(what);
            Ok(())
        }
    }

    impl Local for ThisSide {
        fn connected(&mut self) {
            self.did.push("connected");
        }
        fn description(&mut self) -> Result<Vec<u8>, String> {
            self.does("describe", State::Describing).map(|()| b"web".to_vec())
        }
        fn stream(&mut self) -> Result<(), String> {
            self.does("stream", State::Streaming)
        }
        fn note(&mut self) -> Result<(), String> {
            self.does("note", State::Noting)
        }
        fn rename(&mut self) -> Result<(), String> {
            self.does("rename", State::Renaming)
        }
        fn limit(&self, _: State) -> Limit {
            Limit { deadline: None, once_told: Duration::ZERO }
        }
    }

    impl Peer for Both {
        fn read(&mut self, buffer: &mut [u8], _: Limit) -> Result<usize, Broken> {
            let size = self.comes.len().min(buffer.len()).min(self.at_once);
            if size == 0 {
                return Err(self.then.clone());
            }
            buffer[..size].copy_from_slice(&self.comes[..size]);
            self.comes.drain(..size);
            Ok(size)
        }
        fn write(&mut self, bytes: &[u8], _: Limit) -> Result<(), Broken> {
            let size = bytes.len().min(self.takes - self.sent.len());
            self.sent.extend(&bytes[..size]);
            if size < bytes.len() { Err(self.then.clone()) } else { Ok(()) }
        }
        fn look(&mut self, _: Limit) -> Result<(), Broken> {
            if self.fails == Some(State::Looking) { Err(self.then.clone()) } else { Ok(()) }
        }
    }

    impl Both {
        fn new(comes: Vec<u8>) -> Both {
            let (at_once, takes) = (usize::MAX, usize::MAX);
            Both { comes, then: Broken::Ended, at_once, takes, sent: Vec::new(), fails: None }
        }

        /// The fate of the guest, what was done on this side, and what was sent.
        fn run(mut self) -> (Fate, Vec<&'static str>, Vec<u8>) {
            let mut local = ThisSide { fails: self.fails, did: Vec::new() };
            let fate = match shake_hands(&mut local, &mut self) {
                Verdict::Here { found, state, why, .. } => {
                    assert!(!why.is_empty());
                    Fate::Here(found, state)
                }
                Verdict::There => Fate::There,
                Verdict::Unknown { why } => {
                    assert!(!why.is_empty());
                    Fate::Unknown
                }
            };
            (fate, local.did, self.sent)
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fate {
        Here(Found, State),
        There,
        Unknown,
    }

    /// What a target says, message by message.
    fn says(status: u8) -> [&'static [u8]; 5] {
        match status {
            0 => [BANNER, READY, REPORT, &[0], &[]],
            _ => [BANNER, READY, REPORT, &[0xfd], GO],
        }
    }

    /// What is known of the guest when this message is not as it should be.
    const FATES: [Fate; 5] = [
        Fate::Here(Found::Running, State::Connecting),
        Fate::Here(Found::Suspended, State::Building),
        Fate::Unknown,
        Fate::Unknown,
        Fate::Unknown,
    ];

    #[test]
    fn there_is_a_row_for_each_state_and_each_leads_on() {
        let position = |state| TABLE.iter().position(|row| row.state == state);
        assert!(STATES.iter().all(|&state| position(state).is_some()));
        assert_eq!(TABLE.len(), STATES.len());
        let point = position(State::Going).expect("it is there");
        for (at, row) in TABLE.iter().enumerate() {
            // Nothing leads back, so that every migration comes to an end.
            for next in [row.done, row.refused] {
                assert!(!matches!(next, Next::To(state) if position(state) <= Some(at)), "{row:?}");
            }
            // Before the point of no return the guest is here whatever happens, and from there on it is not known.
            let ends = matches!(row.failed, End::RunsHere | End::Resume | End::TakeBack);
            assert_eq!(ends, at < point, "{row:?}");
            assert_eq!(row.failed == End::Unknown, at >= point, "{row:?}");
            // It is moved only when the target has said so, and comes back only when it has said that.
            assert_eq!(row.done == Next::Ends(End::Moved), row.state == State::Judging);
            assert_eq!(row.done == Next::Ends(End::TakeBack), row.state == State::Returning);
        }
    }

    #[test]
    fn the_messages_are_as_long_as_those_of_xl() {
        assert_eq!([BANNER, READY, GO, REPORT].map(<[u8]>::len), [54, 34, 44, 39]);
    }

    #[test]
    fn a_guest_that_is_taken() {
        for at_once in [1, 7, usize::MAX] {
            let both = Both { at_once, ..Both::new(says(0).concat()) };
            let (fate, did, sent) = both.run();
            assert_eq!(fate, Fate::There);
            assert_eq!(did, ["connected", "describe", "stream", "note", "rename"]);
            assert_eq!(sent, [b"web", GO].concat());
        }
    }

    #[test]
    fn a_guest_that_is_given_back() {
        let (fate, did, sent) = Both::new(says(1).concat()).run();
        assert_eq!(fate, Fate::Here(Found::Renamed, State::Returning));
        assert_eq!((did.len(), sent.len()), (5, 3 + GO.len()));
    }

    #[test]
    fn every_byte_that_is_missing_or_wrong() {
        for status in [0, 1] {
            let messages = says(status);
            let whole = messages.concat();
            let mut at = 0;
            for (message, fate) in messages.iter().zip(FATES) {
                for _ in message.iter() {
                    for then in [Broken::Ended, Broken::TimedOut, Broken::ToldToEnd, Broken::Io("reset".into())] {
                        let (found, ..) = Both { then, ..Both::new(whole[..at].to_vec()) }.run();
                        assert_eq!(found, fate, "{status}, cut at byte {at}");
                    }
                    // Of the status every byte means something.
                    if message.len() > 1 {
                        let mut wrong = whole.clone();
                        wrong[at] ^= 1;
                        let (found, ..) = Both::new(wrong).run();
                        assert_eq!(found, fate, "{status}, byte {at} is wrong");
                    }
                    at += 1;
                }
            }
            assert_eq!(at, whole.len());
        }
    }

    #[test]
    fn nothing_else_than_a_zero_is_a_success() {
        for status in 1..=u8::MAX {
            let comes = [BANNER, READY, REPORT, &[status]].concat();
            assert_eq!(Both::new(comes.clone()).run().0, Fate::Unknown, "{status}, and nothing more");
            let (fate, ..) = Both::new([&comes, GO].concat()).run();
            assert_eq!(fate, Fate::Here(Found::Renamed, State::Returning), "{status}");
        }
    }

    #[test]
    fn every_byte_that_is_not_taken() {
        let told = 3 + GO.len();
        for takes in 0..told {
            let (fate, did, sent) = Both { takes, ..Both::new(says(0).concat()) }.run();
            assert_eq!(sent.len(), takes);
            // The configuration, and then GO.
            let expected = if takes < 3 { Fate::Here(Found::Running, State::Describing) } else { Fate::Unknown };
            assert_eq!(fate, expected, "{takes}");
            assert_eq!(did.contains(&"stream"), takes >= 3);
        }
    }

    #[test]
    fn what_goes_wrong_on_this_side() {
        for (state, found) in [
            (State::Describing, Found::Running),
            (State::Streaming, Found::Running),
            (State::Noting, Found::Suspended),
            (State::Renaming, Found::Suspended),
            (State::Looking, Found::Renamed),
        ] {
            let both = Both { fails: Some(state), ..Both::new(says(0).concat()) };
            let (fate, _, sent) = both.run();
            assert_eq!(fate, Fate::Here(found, state));
            assert!(!sent.ends_with(GO), "{state:?}");
        }
    }

    #[test]
    fn the_guest_can_be_let_run_here_only_with_the_right_to() {
        // Whatever ends the table could have, GO without its return never ends with the guest here.
        for end in [End::RunsHere, End::Resume, End::Unknown] {
            let right = Right::Out(RunHere(()).give_out());
            assert!(matches!(conclude(right, end, State::Going, "x".into()), Verdict::Unknown { .. }), "{end:?}");
        }
        for end in [End::Moved, End::Unknown] {
            let right = Right::Ours(RunHere(()));
            assert!(matches!(conclude(right, end, State::Going, "x".into()), Verdict::Unknown { .. }), "{end:?}");
        }
    }
}
