//! Typing mistakes.

/// The known word that is most like this one, if one is near enough to have been meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = known.into_iter().map(|known| (strsim::damerau_levenshtein(known, word), known));
    distances.min().filter(|(distance, _)| *distance <= word.len().div_ceil(3)).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_and_far() {
        let known = ["memory", "maxmem", "name", "vif", "pci"];
        for (word, expected) in [
            ("memroy", Some("memory")),
            ("memory_", Some("memory")),
            ("vfi", Some("vif")),
            ("naem", Some("name")),
            ("x", None),
            ("entirely_else", None),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
        assert_eq!(nearest("vif", []), None);
    }
}
