//! What we refuse although xl takes it: where xl goes on with something else than the file says. And what we take although
//! an older xl dies of it.

use crate::answer::says;

/// A reason for which we refuse what xl takes.
#[derive(Debug)]
pub struct Deviation {
    /// The key that our message is about; nothing for any key.
    pub key: &'static str,
    /// What our message says.
    pub message: &'static str,
    /// What xl does.
    pub xl: &'static str,
}

const fn deviation(key: &'static str, message: &'static str, xl: &'static str) -> Deviation {
    Deviation { key, message, xl }
}

/// All of them. Each has a file in `tests/configs/stricter`.
pub const ALL: &[Deviation] = &[
    deviation(
        "",
        "is out of range",
        "cuts the number to the size of libxl's field, or goes on with an impossible one",
    ),
    deviation("", "is a list; a string is expected", "drops the rest of the list"),
    deviation("", "the value is not UTF-8 text", "prints what is no JSON"),
    deviation("", "this escape is not accepted", "puts a random byte for an octal escape"),
    deviation("", "nested deeper than", "takes memory without bound"),
    deviation("name", "the guest's name is empty", "leaves it to libxl to fail"),
    deviation("uuid", "is not a UUID like", "gives another UUID than the file says, if that is all zeroes"),
    deviation("disk", "is not a port", "takes any number for a port"),
    deviation("vif", "is not a MAC address", "goes on with a part of the address, or with a random one"),
    deviation("cpus", "the number is too big", "takes another CPU, or none"),
    deviation("cpus_soft", "the number is too big", "takes another CPU, or none"),
    deviation("ioports", "the second number is lower than the first", "gives nearly all ports"),
    deviation("vnuma", "the second number is lower than the first", "leaves the node without CPUs"),
    deviation("vnuma", "there are only", "writes past the end of an array"),
    deviation("llc_colors", "not a number", "drops what follows the number"),
    deviation("cpuid", "is too big", "cuts the number of the leaf"),
    deviation("cpuid", "is not accepted in", "leaves it to Xen to fail"),
    deviation("cpuid", "is not a number", "drops what follows the number"),
];

/// The reason that a message of ours is about.
#[must_use]
pub fn find(message: &str) -> Option<&'static Deviation> {
    let about = |key: &str| key.is_empty() || message.contains(&format!(": {key}: "));
    ALL.iter().find(|deviation| about(deviation.key) && message.contains(deviation.message))
}

/// What xl of a release dies of, although it means to take it: the words of the file, and what is wrong.
const DEADLY: &[([&str; 2], &str)] =
    &[(["pci", ".*"], "since 4.14.1 and before 4.15 it stops itself at all functions of a PCI device")];

/// What xl may die of in a file.
#[must_use]
pub fn deadly(text: &[u8]) -> Option<&'static str> {
    DEADLY.iter().find(|(words, _)| words.iter().all(|word| says(text, word))).map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_may_be_that_of_one_key_only() {
        let key = |message: &str| find(message).map(|deviation| deviation.key);
        assert_eq!(key("a.cfg:3: cap: 5 is out of range; accepted: 0 to 4"), Some(""));
        assert_eq!(key("a.cfg:3: ioports: in `2-1`: the second number is lower than the first"), Some("ioports"));
        assert_eq!(key("a.cfg:3: cpus: in `2-1`: the second number is lower than the first"), None);
    }
}
