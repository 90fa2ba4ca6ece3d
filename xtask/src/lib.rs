//! What the developer's commands (`cargo xtask …`) are made of.
//!
//! [`lab`] gives a real Xen host in QEMU; [`demo`] and [`mod@test`] are what is done with it.
//! [`fuzz`] is for the parsers, [`shipped`] for what distributions get.

pub mod counter;
pub mod demo;
pub mod exec;
pub mod fuzz;
pub mod lab;
pub mod packages;
pub mod program;
pub mod progress;
pub mod real_libxl;
pub mod shipped;
pub mod test;
