//! What was reported, as one JSON document.

use std::time::Instant;

use serde::Serialize;

use super::sink::Level;
use super::{Action, Exit};

/// Collects it. Its fields are an interface, described in the manual page: they are added to, but not renamed or removed.
pub(super) struct Record {
    begun: Instant,
    actions: Vec<Done>,
    messages: Vec<Message>,
}

#[derive(Serialize)]
struct Document<'a> {
    exit: u8,
    seconds: f64,
    actions: &'a [Done],
    messages: &'a [Message],
}

#[derive(Serialize)]
struct Done {
    guest: String,
    action: Action,
    result: &'static str,
    seconds: f64,
    reason: Option<String>,
}

#[derive(Serialize)]
struct Message {
    level: &'static str,
    text: String,
}

impl Record {
    pub(super) fn new() -> Record {
        Record { begun: Instant::now(), actions: Vec::new(), messages: Vec::new() }
    }

    /// `reason` is why it has failed.
    pub(super) fn action(&mut self, action: Action, guest: &str, seconds: f64, reason: Option<&str>) {
        let result = if reason.is_some() { "failed" } else { "done" };
        let (guest, reason) = (guest.to_owned(), reason.map(str::to_owned));
        self.actions.push(Done { guest, action, result, seconds, reason });
    }

    pub(super) fn message(&mut self, level: Level, text: &str) {
        let level = match level {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info => "note",
        };
        self.messages.push(Message { level, text: text.to_owned() });
    }

    /// The document, with a newline at the end.
    pub(super) fn json(&self, exit: Exit) -> String {
        let seconds = self.begun.elapsed().as_secs_f64();
        let document = Document { exit: exit.code(), seconds, actions: &self.actions, messages: &self.messages };
        // Of these types none can fail to be written.
        serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
    }
}
