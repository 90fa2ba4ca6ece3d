//! The order in which guests start, and the reverse of it in which they stop.

use std::collections::BTreeMap;

/// The place of a guest in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Among the driver domains, which come first. `None`: it is none.
    pub(super) driver: Option<usize>,
    /// The `order` that its file gives.
    pub(super) order: Option<i32>,
}

/// Guests that start side by side.
#[derive(Debug)]
pub(super) struct Level<T> {
    pub(super) key: Key,
    pub(super) guests: Vec<T>,
}

/// Groups guests: first driver domains, those that serve others of them first, then the others; both by their `order`,
/// lowest first and those without one last. Within a group nothing is moved.
pub(super) fn levels<T>(guests: impl IntoIterator<Item = (T, Key)>) -> Vec<Level<T>> {
    let mut levels = BTreeMap::new();
    for (guest, key) in guests {
        let Key { driver, order } = key;
        let place = (driver.is_none(), driver, order.is_none(), order);
        levels.entry(place).or_insert_with(|| Level { key, guests: Vec::new() }).guests.push(guest);
    }
    levels.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(guests: &[(&'static str, Option<usize>, Option<i32>)]) -> Vec<Vec<&'static str>> {
        let guests = guests.iter().map(|&(name, driver, order)| (name, Key { driver, order }));
        levels(guests).into_iter().map(|level| level.guests).collect()
    }

    #[test]
    fn by_number_and_those_without_last() {
        let guests = [("a", None), ("b", Some(7)), ("c", Some(-1)), ("d", Some(7)), ("e", None)];
        let guests = guests.map(|(name, order)| (name, None, order));
        assert_eq!(shown(&guests), [vec!["c"], vec!["b", "d"], vec!["a", "e"]]);
        assert!(shown(&[]).is_empty());
    }

    #[test]
    fn driver_domains_come_first_and_those_that_serve_them_before_them() {
        let guests = [
            ("web", None, Some(-9)),
            ("net", Some(1), Some(1)),
            ("store", Some(0), None),
            ("other", Some(0), Some(3)),
        ];
        assert_eq!(shown(&guests), [["other"], ["store"], ["net"], ["web"]]);
    }
}
