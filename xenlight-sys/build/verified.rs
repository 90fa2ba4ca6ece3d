//! The releases 4.FIRST to 4.LAST, whose headers our declarations were compared with. Shared by the build and the library.

/// 14 of "4.14".
pub const FIRST_MINOR: u32 = 14;
/// 22 of "4.22".
pub const LAST_MINOR: u32 = 22;
