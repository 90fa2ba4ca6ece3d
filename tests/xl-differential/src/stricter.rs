//! What we refuse although xl takes it: where xl goes on with something else than the file says.

/// A reason for which we refuse what xl takes.
#[derive(Debug)]
pub struct Deviation {
    /// What our message says.
    pub message: &'static str,
    /// What xl does.
    pub xl: &'static str,
}

const fn deviation(message: &'static str, xl: &'static str) -> Deviation {
    Deviation { message, xl }
}

/// All of them. Each has a file in `tests/configs/stricter`.
pub const ALL: &[Deviation] = &[
    deviation(
        "is out of range",
        "cuts the number to the size of libxl's field, or goes on with an impossible one",
    ),
    deviation("the guest's name is empty", "leaves it to libxl to fail"),
    deviation("is not a UUID like", "gives another UUID than the file says, if that is all zeroes"),
    deviation("is not a MAC address", "goes on with a part of the address, or with a random one"),
    deviation("is not a port", "takes any number for a port"),
    deviation("is a list; a string is expected", "drops the rest of the list"),
    deviation("the value is not UTF-8 text", "prints no valid JSON"),
    deviation("this escape is not accepted", "puts a random byte for an octal escape"),
    deviation("nested deeper than", "takes memory without bound"),
];

/// The reason that a message of ours is about.
#[must_use]
pub fn find(message: &str) -> Option<&'static Deviation> {
    ALL.iter().find(|deviation| message.contains(deviation.message))
}
