#![doc = include_str!("../README.md")]

mod abi;
mod calls;
mod config;
mod exports;
mod fatal;
mod handle;
mod runtime;
mod script;
mod stream;
mod world;

pub use handle::{Control, StateFile, built, install};
