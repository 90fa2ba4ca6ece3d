//! The toolstack over a command, `xl` or `xm`, for hosts without a libxl that can be used.
//!
//! Each call is a process with arguments, never a shell, and what it prints is read as what it is. A command that does not
//! come to its end in time is ended with all that it has started, and its guest is looked at afterwards.
//!
//! What a command can't do as libxl does: nobody tells when a guest has ended, so lists are asked for again and again; and a
//! guest is watched by a process that the command itself leaves behind, or by xend.

mod info;
mod lists;
mod run;
mod same;
mod xl;
mod xl_list;
mod xm;
mod xm_list;

pub use xl::Xl;
pub use xm::Xm;
