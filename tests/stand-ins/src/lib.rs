//! Programs that stand in for the commands of Xen in tests. They are not these commands: they do what the sources and
//! documents of these say, as far as somebody who only runs them can tell.

pub mod xl;
pub mod xm;
