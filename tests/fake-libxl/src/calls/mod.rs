//! libxl's functions, by the names that callers look up.

pub mod config;
pub mod domains;
pub mod events;
pub mod lifecycle;
pub mod misc;
