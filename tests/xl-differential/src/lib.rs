//! Whether our reading of guests' files is xl's.
//!
//! `tests/configs` has guests' files, written by hand, in three directories: `accepted` are those that xl and we take,
//! with the same result, value by value; `refused` those that both refuse; `stricter` those that xl takes and makes
//! something else of than they say, which we refuse. The first lines of each file say what it shows. A file `x.cfg`
//! with an `x.xl.conf` beside it is read as on a host with that xl.conf.
//!
//! The directory is what xl of the newest release does. Older ones have to agree with us too, whatever they do.

pub mod answer;
pub mod corpus;
pub mod stricter;
