//! The order in which guests start, and the reverse of it in which they stop.

use std::collections::BTreeMap;

/// Groups guests by their `order`, lowest first; those without one come last. Within a group nothing is moved.
pub(super) fn levels<T>(guests: Vec<T>, order: impl Fn(&T) -> Option<i32>) -> Vec<Vec<T>> {
    let mut levels: BTreeMap<(bool, Option<i32>), Vec<T>> = BTreeMap::new();
    for guest in guests {
        let order = order(&guest);
        levels.entry((order.is_none(), order)).or_default().push(guest);
    }
    levels.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_number_and_those_without_last() {
        let guests = vec![("a", None), ("b", Some(7)), ("c", Some(-1)), ("d", Some(7)), ("e", None)];
        let names: Vec<Vec<_>> = levels(guests, |guest| guest.1)
            .into_iter()
            .map(|level| level.into_iter().map(|guest| guest.0).collect())
            .collect();
        assert_eq!(names, [vec!["c"], vec!["b", "d"], vec!["a", "e"]]);
        assert!(levels(Vec::<Option<i32>>::new(), |order| *order).is_empty());
    }
}
