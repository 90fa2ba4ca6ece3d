//! bindgen: our headers to Rust.

use std::path::Path;

use bindgen::{Builder, EnumVariation, Formatter, RustEdition, RustTarget};

use crate::Build;
use crate::proof::{Inventory, Part};

const NO_LIBCLANG: &str = "\
xenlight-sys needs libclang at build time, to read its C headers, and can't load it.
Install it with your distribution's package:
  Debian, Ubuntu: libclang-dev    Fedora: clang-devel    openSUSE: clang-devel    Arch: clang
or set LIBCLANG_PATH to the directory of libclang.so.";

/// Writes `libxl.rs`, `xlu.rs` and `logger.rs` into the output directory, and returns what they declare.
pub fn generate(build: &Build) -> Result<Inventory, String> {
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");
    clang_sys::load().map_err(|e| format!("{NO_LIBCLANG}\nThe error was: {e}"))?;

    let headers = build.headers();
    let mut inventory = Inventory::default();

    let libxl = base(build, &headers.join("xenlight.h"))
        .allowlist_file(format!("{}/xenlight/.*", headers.display()))
        .dynamic_library_name("Libxenlight")
        .dynamic_link_require_all(true)
        // Types of the C library come from the crate that everyone uses for them.
        .blocklist_type("pid_t|__pid_t|pollfd|timeval|__time_t|__suseconds_t")
        .raw_line("use libc::{pid_t, pollfd, timeval};");
    inventory.add(Part::Libxl, &write(build, libxl, "libxl.rs")?)?;

    let xlu = base(build, &headers.join("xenlutil.h"))
        .allowlist_file(format!("{}/xenlutil/.*", headers.display()))
        .dynamic_library_name("Libxlutil")
        .dynamic_link_require_all(true)
        .blocklist_type("FILE|_IO_.*")
        .raw_line("use libc::FILE;");
    inventory.add(Part::Xlu, &write(build, xlu, "xlu.rs")?)?;

    let logger = base(build, &build.root.join("csrc/logger.h"))
        .allowlist_file(format!("{}/csrc/logger.h", build.root.display()))
        .blocklist_file(format!("{}/.*", headers.display()))
        .blocklist_type("pid_t|__pid_t|va_list|__builtin_va_list|__gnuc_va_list|__va_list_tag")
        .raw_line("use libc::pid_t;")
        .raw_line("use crate::libxl::{xentoollog_level, xentoollog_logger};");
    write(build, logger, "logger.rs")?;

    inventory.mark_prefixes(&headers.join("xenlight/layouts.h"))?;
    Ok(inventory)
}

/// What all three have in common.
fn base(build: &Build, header: &Path) -> Builder {
    bindgen::builder()
        .header(header.to_string_lossy())
        .clang_arg(format!("-I{}", build.headers().display()))
        // A value that a future release adds must not be undefined behaviour: numbers, not Rust enums.
        .default_enum_style(EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .layout_tests(true)
        .merge_extern_blocks(true)
        .sort_semantically(true)
        .wrap_unsafe_ops(true)
        .rust_edition(RustEdition::Edition2024)
        .rust_target(RustTarget::stable(85, 0).expect("1.85 is a version of Rust"))
        .formatter(Formatter::Prettyplease)
        .disable_header_comment()
}

fn write(build: &Build, builder: Builder, name: &str) -> Result<String, String> {
    let text = builder
        .generate()
        .map_err(|e| format!("bindgen can't read the headers for {name}: {e}"))?
        .to_string();
    let path = build.out.join(name);
    std::fs::write(&path, &text).map_err(|e| format!("can't write {}: {e}", path.display()))?;
    Ok(text)
}
