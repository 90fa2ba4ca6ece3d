//! A library with libxl's interface whose guests, faults and timing tests can script.

mod abi;
mod calls;
mod config;
mod exports;
mod handle;
mod runtime;
mod script;
mod stream;
mod world;

pub use handle::{Control, StateFile, built, install};
