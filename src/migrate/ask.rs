//! Asking another host which guests it has.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::handshake::Limit;
use super::transport::{command, converse};
use super::{CONNECT, with_farewell};
use crate::interrupt::Interrupt;
use crate::settings::{Migrate, TransportKind};
use crate::toolstack::AWAY;

/// More than the list of the guests of any host.
const LIST_LIMIT: usize = 1 << 20;

/// The guests of another host, by UUID and name.
#[derive(Debug, PartialEq, Eq)]
pub struct GuestsThere(Vec<(Uuid, String)>);

impl GuestsThere {
    /// Looks for a guest, unless it is only half there: on its way to that host, or away from it.
    pub fn has(&self, uuid: Uuid) -> bool {
        let is_half = |name: &str| name.ends_with("--incoming") || name.ends_with(AWAY);
        self.0.iter().any(|(found, name)| *found == uuid && !is_half(name))
    }
}

/// Asks a host that guests were migrated to, in the way in which they are migrated now.
///
/// # Errors
/// Why it can't be known.
pub fn guests_there(
    options: Option<&Migrate>,
    target: &str,
    interrupt: &Interrupt,
) -> Result<GuestsThere, String> {
    let kind = options.map_or(TransportKind::Ssh { port: None }, |options| options.transport.clone());
    if kind == TransportKind::Target {
        return Err("what connects to it is good for nothing but a migration".to_owned());
    }
    let limit = Limit { deadline: Instant::now().checked_add(CONNECT), once_told: Duration::ZERO };
    let asked = converse(&mut command(&kind, target, &["xl", "vm-list"]), interrupt, &|_| {}, |peer| {
        peer.close();
        peer.read_to_end(LIST_LIMIT, limit)
    });
    match asked {
        Err(error) => Err(error.to_string()),
        Ok((Err(broken), farewell)) => Err(with_farewell(broken.to_string(), &farewell)),
        Ok((Ok(list), farewell)) if farewell.status.is_none() => {
            read(&String::from_utf8_lossy(&list)).ok_or_else(|| "its answer is no list of guests".to_owned())
        }
        Ok((Ok(_), farewell)) => Err(with_farewell("xl vm-list failed".to_owned(), &farewell)),
    }
}

/// Reads what `xl vm-list` prints: a line of headings, then each guest's UUID, number and name.
fn read(list: &str) -> Option<GuestsThere> {
    let mut lines = list.lines();
    lines.next().filter(|headings| headings.starts_with("UUID"))?;
    let guest = |line: &str| {
        let (uuid, rest) = line.split_once(' ')?;
        let (_, name) = rest.trim_start().split_once(' ')?;
        Some((Uuid::try_parse(uuid).ok()?, name.trim().to_owned()))
    };
    lines.map(guest).collect::<Option<_>>().map(GuestsThere)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_xl_is_read_and_nothing_else() {
        let [web, db] = [7, 8].map(Uuid::from_u128);
        let headings = "UUID                                  ID    name\n";
        let list = format!("{headings}{web}  12    web                           \n{db}  3    db--incoming\n");
        let list = read(&list).expect("a list");
        assert_eq!(list, GuestsThere(vec![(web, "web".to_owned()), (db, "db--incoming".to_owned())]));
        assert!(list.has(web) && !list.has(db) && !list.has(Uuid::nil()));
        assert_eq!(read(headings), Some(GuestsThere(Vec::new())));
        for text in ["", "xl migration receiver ready, send binary domain data.\n", &format!("{headings}oops\n")] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
