//! What is said through the monitor's socket: JSON, one line each.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::toolstack::Domid;

/// What start, stop and status say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// There is a new guest that has the mark.
    Watch(Guest),
    /// Nothing is to be started any more, until [`Request::Release`] or the end of the connection.
    Hold,
    /// The hold is over, and guests were stopped that are not to come back: those with these names, or all.
    Release {
        /// Their names; `None` for all.
        stopped: Option<Vec<String>>,
    },
    /// Who is watched?
    Status,
    /// Is something done with a guest at present? The answer comes when nothing is any more.
    Settle,
}

/// What the monitor answers, and what it tells who holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// The guest is watched.
    Watching {
        /// Its domain.
        domid: Domid,
    },
    /// It is not.
    NotWatching {
        /// Its domain.
        domid: Domid,
        /// Why.
        why: String,
    },
    /// From now on nothing is started, and no restart is under way.
    Held {
        /// The guests that are watched.
        guests: Vec<Guest>,
    },
    /// The hold is over.
    Released,
    /// Who is watched.
    Status {
        /// The monitor's process.
        pid: u32,
        /// The guests that are watched.
        guests: Vec<Watched>,
    },
    /// Nothing is done with any guest.
    Settled {
        /// Guests that are to be restarted at their time.
        waiting: Vec<Waiting>,
    },
    /// To who holds: a guest has ended.
    Ended {
        /// Which one.
        guest: Guest,
        /// Why; `None`: it is gone.
        reason: Option<String>,
    },
    /// The request was not understood.
    Unknown {
        /// Why.
        why: String,
    },
}

/// A guest that is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its domain.
    pub domid: Domid,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
}

/// What is known of a guest that is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Which one.
    #[serde(flatten)]
    pub guest: Guest,
    /// When it was let run, in seconds since the host was booted. A monitor of an earlier version does not tell.
    pub started: Option<u64>,
    /// How often it has been restarted since it was started from its file or image.
    pub restarts: u32,
    /// Why it was restarted last.
    pub reason: Option<String>,
}

/// A guest that is to be restarted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
}

/// A line of it.
pub fn line(message: &impl Serialize) -> String {
    // Nothing in these can fail to be JSON.
    serde_json::to_string(message).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_what_is_heard() {
        let uuid = Uuid::nil();
        for (request, text) in [
            (
                Request::Watch(Guest { domid: 3, uuid, name: "web".to_owned() }),
                format!(r#"{{"request":"watch","domid":3,"uuid":"{uuid}","name":"web"}}"#),
            ),
            (Request::Hold, r#"{"request":"hold"}"#.to_owned()),
            (Request::Release { stopped: None }, r#"{"request":"release","stopped":null}"#.to_owned()),
        ] {
            assert_eq!(line(&request), text.clone() + "\n");
            assert_eq!(serde_json::from_str::<Request>(&text).expect("a request"), request);
        }
        let answer = Answer::Ended { guest: Guest { domid: 3, uuid, name: "web\n".to_owned() }, reason: None };
        let text = line(&answer);
        assert_eq!(text.matches('\n').count(), 1);
        assert_eq!(serde_json::from_str::<Answer>(&text).expect("an answer"), answer);
        let earlier = format!(r#"{{"domid":3,"uuid":"{uuid}","name":"web","restarts":1,"reason":null}}"#);
        assert_eq!(serde_json::from_str::<Watched>(&earlier).expect("of an earlier version").started, None);
    }
}
