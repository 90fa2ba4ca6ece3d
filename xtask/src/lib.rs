//! What the developer's commands (`cargo xtask …`) are made of.
//!
//! [`lab`] gives a real Xen host in QEMU; everything else is support for it.

pub mod exec;
pub mod lab;
pub mod packages;
pub mod progress;
