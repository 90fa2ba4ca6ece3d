//! The releases 4.FIRST to 4.LAST, whose headers our declarations were compared with. Shared by the build and the library.

/// 14 of "4.14".
pub const FIRST_MINOR: u32 = 14;
/// 20 of "4.20".
pub const LAST_MINOR: u32 = 20;
