//! bindgen: our headers to Rust.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bindgen::{Builder, EnumVariation, Formatter, RustEdition, RustTarget};

use crate::Build;
use crate::inventory::Inventory;

const PACKAGES: &str = "Debian, Ubuntu: libclang-dev; Fedora: clang-devel; openSUSE: clang-devel; Arch: clang";

/// Writes `libxl.rs`, `xlu.rs` and `logger.rs` into the output directory, and returns what they declare.
pub fn generate(build: &Build) -> Result<Inventory, String> {
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");
    clang_sys::load().map_err(|e| {
        format!(
            "xenlight-sys needs libclang at build time, to read its C headers, and can't load it.\n\
             Install your distribution's package ({PACKAGES}),\n\
             or set LIBCLANG_PATH to the directory of libclang.so.\n\
             The error was: {e}"
        )
    })?;

    let headers = build.headers();
    let mut inventory = Inventory::default();

    let libxl = base(build, &headers.join("xenlight.h"))
        .allowlist_file(in_dir(&headers.join("xenlight")))
        .dynamic_library_name("Libxenlight")
        .dynamic_link_require_all(true)
        // Types of the C library come from the crate that everyone uses for them.
        .blocklist_type("pid_t|pollfd|timeval")
        .raw_line("use libc::{pid_t, pollfd, timeval};");
    let text = document(&generate_text(libxl, "libxl.rs")?, &headers.join("xenlight/functions.h"))?;
    inventory.add(&text, &headers.join("xenlight/types.h"))?;
    write(build, "libxl.rs", &text)?;

    let xlu = base(build, &headers.join("xenlutil.h"))
        .allowlist_file(in_dir(&headers.join("xenlutil")))
        .dynamic_library_name("Libxlutil")
        .dynamic_link_require_all(true)
        .blocklist_type("FILE|_IO_.*")
        .raw_line("use libc::FILE;");
    let text = document(&generate_text(xlu, "xlu.rs")?, &headers.join("xenlutil/functions.h"))?;
    inventory.add(&text, &headers.join("xenlutil/types.h"))?;
    write(build, "xlu.rs", &text)?;

    let logger = base(build, &build.root.join("csrc/logger.h"))
        .allowlist_file(in_dir(&build.root.join("csrc")))
        .blocklist_file(in_dir(&headers))
        .blocklist_type("pid_t|va_list|__builtin_va_list|__gnuc_va_list|__va_list_tag")
        .raw_line("use libc::pid_t;")
        .raw_line("use crate::libxl::{xentoollog_level, xentoollog_logger};");
    write(build, "logger.rs", &generate_text(logger, "logger.rs")?)?;

    inventory.mark_prefixes(&headers.join("xenlight/layouts.h"))?;
    Ok(inventory)
}

/// What all three have in common.
fn base(build: &Build, header: &Path) -> Builder {
    bindgen::builder()
        .header(header.to_string_lossy())
        .clang_arg(format!("-I{}", build.headers().display()))
        // What stands behind the C library's types.
        .blocklist_type("__[a-z0-9_]+_t")
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

/// Matches the files in a directory, whatever characters its path has.
fn in_dir(dir: &Path) -> String {
    let mut pattern = String::new();
    for c in dir.to_string_lossy().chars() {
        if c.is_ascii_punctuation() {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern + "/.*"
}

fn generate_text(builder: Builder, name: &str) -> Result<String, String> {
    let bindings = builder.generate().map_err(|e| {
        format!(
            "bindgen can't read the headers for {name}: {e}\n\
             If a header of the C language itself (stddef.h) is missing, the package with libclang is incomplete: {PACKAGES}"
        )
    })?;
    Ok(bindings.to_string())
}

/// Puts the headers' comments on functions into the bindings: for functions opened at run time bindgen leaves them out.
fn document(rust: &str, functions_h: &Path) -> Result<String, String> {
    let header =
        fs::read_to_string(functions_h).map_err(|e| format!("can't read {}: {e}", functions_h.display()))?;
    let comments = comments(&header);
    let mut text = String::new();
    for line in rust.lines() {
        if let Some(rest) = line.strip_prefix("    pub unsafe fn ") {
            let name = rest.split(['(', '<']).next().unwrap_or(rest);
            if let Some(comment) = comments.get(name) {
                for line in comment {
                    text.push_str(&format!("    /// {line}\n"));
                }
            } else if name != "new" && name != "from_library" {
                return Err(format!("{}: {name} has no comment", functions_h.display()));
            }
        }
        if line.starts_with("pub struct Lib") {
            text.push_str(
                "/// The functions of the library, as methods; the fields are the plain function pointers.\n",
            );
        }
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// The lines of each comment that stands directly before a function.
fn comments(header: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut found = BTreeMap::new();
    for block in header.split("/**").skip(1) {
        let Some((comment, rest)) = block.split_once("*/") else { continue };
        let Some((declaration, _)) = rest.split_once('(') else { continue };
        let name = declaration.rsplit([' ', '*', '\n']).next().unwrap_or_default();
        let lines = comment.lines().map(|line| line.trim_start().trim_start_matches('*').trim());
        found.insert(name, lines.filter(|line| !line.is_empty()).collect());
    }
    found
}

fn write(build: &Build, name: &str, text: &str) -> Result<(), String> {
    let path = build.out.join(name);
    fs::write(&path, text).map_err(|e| format!("can't write {}: {e}", path.display()))
}
