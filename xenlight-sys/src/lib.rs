//! Raw interface to libxl (libxenlight), libxlutil and xentoollog, the libraries with which a Xen host is managed.
//!
//! Use this crate to build a binding of your own, or to stand in for libxl in tests. To manage guests from Rust use
//! `xenlight`, the safe wrapper built on this one: here every call is `unsafe`, and nothing keeps libxl's rules for you.
//!
//! # One program for every release of Xen
//!
//! libxl makes no promise between releases: each has a soname of its own, and talks only to the hypervisor of the same
//! release. After a package upgrade the *old* hypervisor runs until the next boot. A program linked to libxl in the usual way
//! therefore belongs to one release, and fails on a host that was just upgraded.
//!
//! So this crate isn't linked to libxl. It asks the kernel which Xen runs ([`Release::running`]) and opens the library of
//! exactly that release ([`Library::open`]):
//!
//! | Xen | libxl | libxlutil | `libxl_dominfo` in an array |
//! |---|---|---|---|
//! | 4.14, 4.15 | `libxenlight.so.4.14`, `.4.15` | `libxlutil.so.4.14`, `.4.15` | 112 bytes |
//! | 4.16 to 4.22 | `libxenlight.so.4.16` to `.4.22` | `libxlutil.so.4.16` to `.4.22` | 120 bytes |
//! | others | refused: [`OpenError::Unverified`] | refused | |
//!
//! That works because all functions declared here have the same signature in each of these releases, and because structs
//! are only declared as far as they are the same. The declarations are our own, in `vendor-headers`; a build needs libclang
//! and no Xen package. Where Xen's headers are installed, the build compares every function, constant and field with them
//! and fails on a difference.
//!
//! # Example
//!
//! ```no_run
//! use std::ptr;
//!
//! use xenlight_sys::libxl::{LIBXL_VERSION, xentoollog_logger};
//! use xenlight_sys::{Library, Release};
//!
//! # fn example(logger: *mut xentoollog_logger) -> Result<(), Box<dyn std::error::Error>> {
//! // `logger`: the address of a `logger::xenlight_logger`'s vtable. libxl can't do without.
//! let libxl = Library::open(Release::running()?)?;
//! let mut ctx = ptr::null_mut();
//! // SAFETY: `ctx` is ours to fill, and `logger` outlives the context.
//! let rc = unsafe { libxl.libxl_ctx_alloc(&raw mut ctx, LIBXL_VERSION as i32, 0, logger) };
//! assert_eq!(rc, 0);
//! // SAFETY: allocated above, and no operation is under way.
//! unsafe { libxl.libxl_ctx_free(ctx) };
//! # Ok(())
//! # }
//! ```
//!
//! # Rules
//!
//! - **Structs that differ by release** are opaque or end early: [`libxl_domain_config`](libxl::libxl_domain_config),
//!   [`libxl_dominfo`](libxl::libxl_dominfo), [`libxl_physinfo`](libxl::libxl_physinfo). libxl writes more than the declared
//!   type holds, so give it a [`Block`]. Walk the array of `libxl_list_domain` in steps of [`Release::dominfo_stride`].
//! - **Numbers, not enums**: libxl may return values that no header here knows.
//! - **Libraries stay open.** The first context registers fork handlers that point into libxl; a closed library would crash
//!   the next fork. Dropping a [`Library`] closes nothing.
//! - **Logging happens in forked children too**, where a lock may be held for ever. Use the [`logger`], which is made for it.
//! - **libxl forks children that go on inside it** (the one that has the hypervisor destroy a domain, for example). The
//!   libraries below it have mutexes for all contexts of a process: a child that is forked while another thread holds one, with
//!   whatever context, waits for it for ever. A program with several threads in libxl gives `libxl_childproc_setmode` a
//!   `fork_replacement` whose child proves that it can take them (`xc_interface_open`, `xc_strerror`, `xc_interface_close`)
//!   before it returns; the parent kills one that can't and forks another.
//! - **`libxl_domain_soft_reset` only without a `how`**: with one, it writes to a stack frame that is gone.
//! - **An asynchronous call** that returns 0 reports its end exactly once, perhaps before it returns, on any thread; one that
//!   returns something else never does. All its arguments except the `how` must stay alive until then.
//! - **Always install `disaster`** (`libxl_event_register_callbacks`), else libxl ends the process when events are lost.
//! - **SIGCHLD** has one owner: choose with `libxl_childproc_setmode` before the first operation.

#![deny(missing_docs)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("xenlight-sys: sizes of libxl's structs were only compared on 64-bit Linux");

mod block;
mod library;
pub mod logger;
mod note;
mod release;

pub use block::Block;
pub use library::{Library, OpenError, Utility};
pub use note::DLOPEN_NOTE;
pub use release::{Release, ReleaseError, VERIFIED};

/// libxl and xentoollog: types, constants, and [`Libxenlight`](libxl::Libxenlight) with the functions.
pub mod libxl {
    #![allow(
        missing_docs,
        non_camel_case_types,
        non_upper_case_globals,
        clippy::all,
        clippy::undocumented_unsafe_blocks,
        clippy::semicolon_if_nothing_returned,
        reason = "generated by bindgen; the docs are our headers' comments, and a few helper types have none"
    )]
    include!(concat!(env!("OUT_DIR"), "/libxl.rs"));
}

/// libxlutil: types, constants, and [`Libxlutil`](xlu::Libxlutil) with the functions.
pub mod xlu {
    #![allow(
        missing_docs,
        non_camel_case_types,
        non_upper_case_globals,
        clippy::all,
        clippy::undocumented_unsafe_blocks,
        clippy::semicolon_if_nothing_returned,
        reason = "generated by bindgen; the docs are our headers' comments, and a few helper types have none"
    )]
    include!(concat!(env!("OUT_DIR"), "/xlu.rs"));
}
