//! Opening: what succeeds, and what each failure says.

use std::error::Error as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use xenlight_sys::{Library, OpenError, Release, Utility};

const RELEASE: Release = Release::new(4, 17);

/// A shared library that has these functions and nothing else.
fn build_library(path: &Path, functions: &[&str]) {
    let source = path.with_extension("c");
    let text: String = functions.iter().map(|name| format!("int {name}(void) {{ return 42; }}\n")).collect();
    fs::write(&source, text).unwrap();
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(path).arg(source).status().unwrap();
    assert!(status.success());
}

/// The functions that a header declares, found by another way than the build's: whatever stands before a "(" at the end
/// of a declaration's first words.
fn declared(header: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vendor-headers").join(header);
    let text = fs::read_to_string(path).unwrap();
    let mut names = Vec::new();
    let mut in_comment = false;
    for line in text.lines() {
        in_comment |= line.starts_with("/*");
        if !in_comment && line.starts_with(|c: char| c.is_ascii_alphabetic()) && !line.starts_with("typedef") {
            let before = line.split('(').next().unwrap();
            names.push(before.rsplit([' ', '*']).next().unwrap().to_owned());
        }
        in_comment &= !line.ends_with("*/");
    }
    names
}

#[test]
fn opens_a_library_with_all_declared_functions() {
    let dir = tempfile::tempdir().unwrap();
    let functions = declared("xenlight/functions.h");
    assert!(functions.len() >= 80, "found only {}", functions.len());
    let names: Vec<&str> = functions.iter().map(String::as_str).collect();
    build_library(&dir.path().join("libxenlight.so.4.17"), &names);

    // SAFETY: a library that the test has built, or none.
    let library = unsafe { Library::open_in(dir.path(), RELEASE) }.unwrap();
    assert_eq!(library.release(), RELEASE);
    assert_eq!(library.path(), dir.path().join("libxenlight.so.4.17"));
    // SAFETY: the function that we built ignores its arguments.
    let rc = unsafe { library.libxl_ctx_free(std::ptr::null_mut()) };
    assert_eq!(rc, 42);
    assert!(format!("{library:?}").contains("libxenlight.so.4.17"));

    // Never closed: what was taken from it still works.
    let free = library.libxl_ctx_free;
    drop(library);
    // SAFETY: as before.
    assert_eq!(unsafe { free(std::ptr::null_mut()) }, 42);
}

#[test]
fn opens_the_utility_library_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let functions = declared("xenlutil/functions.h");
    assert!(functions.len() >= 14, "found only {}", functions.len());
    let names: Vec<&str> = functions.iter().map(String::as_str).collect();
    build_library(&dir.path().join("libxlutil.so.4.17"), &names);

    // SAFETY: a library that the test has built, or none.
    let utility = unsafe { Utility::open_in(dir.path(), RELEASE) }.unwrap();
    assert_eq!((utility.release(), utility.path()), (RELEASE, &*dir.path().join("libxlutil.so.4.17")));
    // SAFETY: the function that we built ignores its arguments.
    assert_eq!(unsafe { utility.xlu_cfg_readfile(std::ptr::null_mut(), std::ptr::null()) }, 42);
    // SAFETY: a library that the test has built, or none.
    assert!(matches!(unsafe { Library::open_in(dir.path(), RELEASE) }, Err(OpenError::NotInstalled { .. })));
}

#[test]
fn names_the_function_that_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    build_library(&dir.path().join("libxenlight.so.4.17"), &["libxl_ctx_alloc", "libxl_ctx_free"]);
    // SAFETY: a library that the test has built, or none.
    let error = unsafe { Library::open_in(dir.path(), RELEASE) }.unwrap_err();
    assert!(matches!(error, OpenError::MissingFunction { .. }), "{error:?}");
    assert!(error.to_string().contains("lacks a function"), "{error}");
    let source = error.source().unwrap().to_string();
    assert!(source.contains("undefined symbol: libxl_"), "{source}");
}

#[test]
fn says_which_package_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    // SAFETY: a library that the test has built, or none.
    let error = unsafe { Library::open_in(dir.path(), RELEASE) }.unwrap_err();
    assert!(matches!(error, OpenError::NotInstalled { release: RELEASE, .. }), "{error:?}");
    let text = error.to_string();
    for part in
        [dir.path().to_str().unwrap(), "libxenlight.so.4.17 is not installed", "libxenmisc4.17", "xen-libs"]
    {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(error.source().unwrap().to_string().contains("No such file"));

    // SAFETY: a library that the test has built, or none.
    let error = unsafe { Utility::open_in(dir.path(), RELEASE) }.unwrap_err();
    assert!(error.to_string().contains("libxlutil.so.4.17 is not installed"), "{error}");
}

#[test]
fn tells_a_damaged_library_from_a_missing_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("libxenlight.so.4.17"), "no library").unwrap();
    // SAFETY: a library that the test has built, or none.
    let error = unsafe { Library::open_in(dir.path(), RELEASE) }.unwrap_err();
    assert!(matches!(error, OpenError::Unusable { .. }), "{error:?}");
    assert!(error.to_string().contains("can't be loaded"), "{error}");
}

#[test]
fn tells_a_missing_dependency_from_a_missing_library() {
    let dir = tempfile::tempdir().unwrap();
    let needed = dir.path().join("libneeded-by-xen.so");
    build_library(&needed, &["needed"]);
    let library = dir.path().join("libxenlight.so.4.17");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(compiler)
        .args(["-shared", "-Wl,--no-as-needed", "-o"])
        .arg(&library)
        .arg("-L")
        .arg(dir.path())
        .arg("-lneeded-by-xen")
        .status()
        .unwrap();
    assert!(status.success());
    fs::remove_file(needed).unwrap();

    // SAFETY: a library that the test has built, or none.
    let error = unsafe { Library::open_in(dir.path(), RELEASE) }.unwrap_err();
    assert!(matches!(error, OpenError::Unusable { .. }), "{error:?}");
    assert!(error.source().unwrap().to_string().contains("libneeded-by-xen.so"));
}

#[test]
fn refuses_releases_that_were_not_verified() {
    let dir = tempfile::tempdir().unwrap();
    for (major, minor) in [(4, 13), (4, 23), (4, 99), (3, 17), (5, 14)] {
        let release = Release::new(major, minor);
        for error in [
            // SAFETY: a library that the test has built, or none.
            unsafe { Library::open_in(dir.path(), release) }.unwrap_err(),
            Library::open(release).unwrap_err(),
            Utility::open(release).unwrap_err(),
        ] {
            assert!(matches!(error, OpenError::Unverified { .. }), "{error:?}");
            assert!(error.to_string().contains("4.14 to 4.22"), "{error}");
        }
    }
}

#[test]
fn handles_and_errors_can_be_shared_by_threads() {
    fn check<T: Send + Sync + 'static>() {}
    check::<Library>();
    check::<Utility>();
    check::<OpenError>();
    check::<xenlight_sys::ReleaseError>();
}
