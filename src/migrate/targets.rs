//! The hosts that guests can be migrated to: which of them a guest is offered to first, and which are not there.
//!
//! A guest is offered to one host after the other until one takes it. A host that can't be reached is tried once, not once
//! for each guest: while the first connection to it is being made, others wait for its outcome.
//!
//! When several guests are migrated at once to several hosts, each is asked once, with `xl info`, how much memory it has
//! free, and each guest is offered first to the host that has most left when those under way are counted.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// All of them.
pub(super) struct Targets {
    list: Mutex<Vec<Target>>,
    /// One of them has been reached, or given up.
    changed: Condvar,
}

struct Target {
    name: String,
    contact: Contact,
    /// `None`: not known.
    free_kib: Option<u64>,
    /// For guests that are under way or there.
    promised_kib: u64,
}

enum Contact {
    NotYet,
    /// Somebody is making the first connection.
    UnderWay,
    Reached,
    Dead(String),
}

/// How to go on with a host.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Approach {
    /// It was reached before.
    Reached,
    /// Nobody has tried it yet, and everybody waits for [`Targets::reached`], [`Targets::dead`] or [`Targets::not_known`].
    First,
    /// It can't be reached, for this reason.
    Dead(String),
    /// The time was over before that was known.
    TooLate,
}

impl Targets {
    pub(super) fn new(names: &[String]) -> Targets {
        let target = |name: &String| Target {
            name: name.clone(),
            contact: Contact::NotYet,
            free_kib: None,
            promised_kib: 0,
        };
        Targets { list: Mutex::new(names.iter().map(target).collect()), changed: Condvar::new() }
    }

    /// The host to offer a guest of this size to, of those that it was not offered to yet. The memory counts as used until
    /// [`give_back`](Self::give_back).
    pub(super) fn choose(&self, offered: &[usize], need_kib: u64) -> Option<(usize, String)> {
        let mut list = self.lock();
        let left = |target: &Target| target.free_kib.map(|free| free.saturating_sub(target.promised_kib));
        let candidates = list.iter().enumerate().filter(|(place, _)| !offered.contains(place));
        // Of the same memory the first: of equal ones `max_by_key` takes the last.
        let (place, _) = candidates.rev().max_by_key(|(_, target)| left(target))?;
        list[place].promised_kib += need_kib;
        Some((place, list[place].name.clone()))
    }

    /// The guest is not there.
    pub(super) fn give_back(&self, place: usize, need_kib: u64) {
        let mut list = self.lock();
        list[place].promised_kib = list[place].promised_kib.saturating_sub(need_kib);
    }

    /// Whether a host can be reached, as far as is known. Waits for whoever is finding out.
    pub(super) fn approach(&self, place: usize, deadline: Option<Instant>) -> Approach {
        let mut list = self.lock();
        loop {
            match &list[place].contact {
                Contact::Reached => return Approach::Reached,
                Contact::Dead(why) => return Approach::Dead(why.clone()),
                Contact::NotYet => {
                    list[place].contact = Contact::UnderWay;
                    return Approach::First;
                }
                Contact::UnderWay => {}
            }
            list = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(list).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return Approach::TooLate,
                Some(left) => self.changed.wait_timeout(list, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// It is there.
    pub(super) fn reached(&self, place: usize) {
        self.set(place, Contact::Reached);
    }

    /// It is not there, so that nobody need try again.
    pub(super) fn dead(&self, place: usize, why: &str) {
        self.set(place, Contact::Dead(why.to_owned()));
    }

    /// Who was finding out has not come to an end.
    pub(super) fn not_known(&self, place: usize) {
        let mut list = self.lock();
        if matches!(list[place].contact, Contact::UnderWay) {
            list[place].contact = Contact::NotYet;
        }
        drop(list);
        self.changed.notify_all();
    }

    /// How much memory it has.
    pub(super) fn has_free(&self, place: usize, kib: u64) {
        self.lock()[place].free_kib = Some(kib);
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.lock().iter().map(|target| target.name.clone()).collect()
    }

    fn set(&self, place: usize, contact: Contact) {
        self.lock()[place].contact = contact;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Target>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The free memory that `xl info` tells, in KiB.
pub(super) fn free_memory_kib(info: &str) -> Option<u64> {
    let value = info.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "free_memory").then(|| value.trim())
    })?;
    value.parse::<u64>().ok().and_then(|mib| mib.checked_mul(1024))
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn targets(names: &[&str]) -> Targets {
        Targets::new(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    fn chosen(targets: &Targets, offered: &[usize]) -> Option<usize> {
        targets.choose(offered, 100).map(|(place, _)| place)
    }

    #[test]
    fn without_knowing_more_they_are_taken_in_their_order() {
        let three = targets(&["a", "b", "c"]);
        assert_eq!(three.choose(&[], 1), Some((0, "a".to_owned())));
        assert_eq!(
            (chosen(&three, &[]), chosen(&three, &[0]), chosen(&three, &[1, 0])),
            (Some(0), Some(1), Some(2))
        );
        assert_eq!(chosen(&three, &[0, 1, 2]), None);
    }

    #[test]
    fn the_one_with_most_memory_left_comes_first() {
        let three = targets(&["a", "b", "c"]);
        three.has_free(0, 150);
        three.has_free(1, 230);
        // Of the third nothing is known.
        let order: Vec<_> = (0..4).filter_map(|_| chosen(&three, &[])).collect();
        assert_eq!(order, [1, 0, 1, 0]);
        three.give_back(1, 100);
        three.give_back(1, 100);
        assert_eq!(chosen(&three, &[]), Some(1));
        assert_eq!(chosen(&three, &[0, 1]), Some(2));
    }

    #[test]
    fn one_tries_and_the_others_wait_for_the_outcome() {
        for dead in [false, true] {
            let one = targets(&["a"]);
            assert_eq!(one.approach(0, None), Approach::First);
            assert_eq!(one.approach(0, Some(Instant::now())), Approach::TooLate);
            thread::scope(|scope| {
                let waiting = scope.spawn(|| one.approach(0, Some(Instant::now() + Duration::from_secs(60))));
                if dead {
                    one.dead(0, "no route");
                } else {
                    one.reached(0);
                }
                let expected = if dead { Approach::Dead("no route".to_owned()) } else { Approach::Reached };
                assert_eq!(waiting.join().unwrap(), expected);
            });
        }
        let one = targets(&["a"]);
        assert_eq!(one.approach(0, None), Approach::First);
        one.not_known(0);
        assert_eq!(one.approach(0, None), Approach::First);
    }

    #[test]
    fn what_xl_info_says() {
        let info = "host                   : b\nfree_memory            : 1234\nsharing_freed_memory   : 7\n";
        assert_eq!(free_memory_kib(info), Some(1234 * 1024));
        for info in ["", "free_memory : many", "total_memory : 4"] {
            assert_eq!(free_memory_kib(info), None, "{info}");
        }
    }
}
