//! Our headers say the same as Xen's, and the proof of it notices every difference.
//!
//! The headers of real releases are taken from directories named in a variable, as cargo xtask test gives it:
//! `XENLIGHT_PROOF_HEADERS="4.14=/somewhere/usr/include:4.17=/elsewhere/usr/include"`, unpacked `libxen-dev` packages. Without
//! them a stand-in, made of our own declarations, shows at least that the proof can fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use xenlight_sys::Release;

#[path = "../build/compile.rs"]
mod compile;

const VARIABLE: &str = "XENLIGHT_PROOF_HEADERS";

/// Xen's headers of one release.
struct Theirs {
    release: Release,
    dir: PathBuf,
}

/// Our header files, as text: path below `vendor-headers`, content.
#[derive(Clone)]
struct Ours(Vec<(&'static str, String)>);

impl Ours {
    fn read() -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("vendor-headers");
        let files = [
            "xenlight/types.h",
            "xenlight/layouts.h",
            "xenlight/functions.h",
            "xenlutil/types.h",
            "xenlutil/functions.h",
        ];
        Self(files.map(|file| (file, fs::read_to_string(dir.join(file)).unwrap())).into())
    }

    fn text(&self, file: &str) -> &str {
        &self.0.iter().find(|(name, _)| *name == file).unwrap().1
    }

    fn write(&self, dir: &Path) {
        for (file, text) in &self.0 {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
}

/// Compiles the proof that the build generated.
fn prove(ours: &Path, theirs: &Theirs) -> Result<(), String> {
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    let proof = Path::new(env!("OUT_DIR")).join("proof.c");
    compile::check(&mut compiler, &proof, ours, &[&theirs.dir], theirs.release.minor)
}

/// How many of something the proof says that it covers.
fn covered(what: &str) -> usize {
    let proof = fs::read_to_string(Path::new(env!("OUT_DIR")).join("proof.c")).unwrap();
    let line = proof.lines().find_map(|line| line.strip_prefix(&format!("/* {what} "))).unwrap();
    line.trim_end_matches(" */").parse().unwrap()
}

/// The releases that the variable names.
fn given() -> Vec<Theirs> {
    let value = std::env::var(VARIABLE).unwrap_or_else(|_| panic!("set {VARIABLE}, see the start of this file"));
    let releases: Vec<Theirs> = value
        .split(':')
        .map(|entry| {
            let (release, dir) = entry.split_once('=').expect("RELEASE=DIRECTORY");
            Theirs { release: release.parse().unwrap(), dir: dir.into() }
        })
        .collect();
    for theirs in &releases {
        let header = theirs.dir.join("libxl.h");
        assert!(header.exists(), "{} is missing", header.display());
        assert!(theirs.release.is_verified(), "{} is not in the range that we promise", theirs.release);
    }
    releases
}

// ---- the stand-in ----

/// Our own declarations in the guise of Xen's, completed where ours end early.
fn stand_in(dir: &Path) -> Theirs {
    let ours = Ours::read();
    let change = |text: &str, from: &str, to: &str| {
        assert_eq!(text.matches(from).count(), 1, "{from:?}");
        text.replacen(from, to, 1)
    };

    // Without the part that is our own.
    let types = ours.text("xenlight/types.h");
    let types = &types[types.find("/* ---- xentoollog ---- */").unwrap()..];
    let layouts = change(ours.text("xenlight/layouts.h"), "xenlight_rest disk;", "libxl_device_disk disk;");
    let layouts = change(
        &layouts,
        "    uint32_t cpupool;\n",
        "    uint32_t cpupool;\n    uint8_t gpaddr_bits;\n    libxl_domain_type domain_type;\n",
    );
    let head = "#pragma once\n#include <poll.h>\n#include <stdarg.h>\n#include <stdbool.h>\n#include <stdint.h>\n\
                #include <sys/time.h>\n#include <sys/types.h>\n#include <stdio.h>\n\
                #define XENLIGHT_LAYOUT(name) name\n#define XENLIGHT_PREFIX(name) name\n";
    let tail = "#undef XENLIGHT_LAYOUT\n#undef XENLIGHT_PREFIX\n";
    let opaque = "struct libxl_device_disk { char *path; long more[16]; };\n\
                  struct libxl_domain_create_info { char *name; };\n\
                  struct libxl_domain_config { libxl_domain_create_info c_info; long more[100]; };\n";
    let functions = ours.text("xenlight/functions.h");
    fs::write(dir.join("libxl.h"), [head, types, opaque, &layouts, functions, tail].concat()).unwrap();
    let utility = [head, ours.text("xenlutil/types.h"), ours.text("xenlutil/functions.h"), tail].concat();
    fs::write(dir.join("libxlutil.h"), utility).unwrap();
    for header in ["libxl_event.h", "libxl_utils.h", "xenctrl.h", "xentoollog.h"] {
        fs::write(dir.join(header), "#include <libxl.h>\n").unwrap();
    }
    Theirs { release: Release::new(4, 17), dir: dir.to_path_buf() }
}

// ---- deliberate mistakes ----

/// One line of one of our headers, changed.
struct Mistake {
    file: &'static str,
    line: usize,
    wrong: String,
    /// What the compiler must complain about.
    name: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Constant,
    Number,
    Member,
    Function,
    Size,
}

impl Mistake {
    fn apply(&self, ours: &Ours) -> Ours {
        let mut ours = ours.clone();
        let text = &mut ours.0.iter_mut().find(|(file, _)| *file == self.file).unwrap().1;
        let mut lines: Vec<&str> = text.lines().collect();
        lines[self.line] = &self.wrong;
        *text = lines.join("\n") + "\n";
        ours
    }
}

/// Every mistake of these kinds that can be made: each constant, each number, each member, each function.
fn mistakes(ours: &Ours, release: Release) -> Vec<Mistake> {
    let mut list = Vec::new();
    for (file, text) in &ours.0 {
        let mut in_comment = false;
        for (number, line) in text.lines().enumerate() {
            let code = line.trim_start();
            in_comment |= code.starts_with("/*");
            if !in_comment {
                mistakes_in_line(file, line, release, |name, kind, wrong| {
                    list.push(Mistake { file, line: number, wrong, name: name.to_owned(), kind });
                });
            }
            in_comment &= !line.trim_end().ends_with("*/");
        }
    }
    list
}

fn mistakes_in_line(file: &str, line: &str, release: Release, add: impl FnMut(&str, Kind, String)) {
    match file.rsplit('/').next() {
        Some("types.h") => mistakes_in_type(line.trim(), release, add),
        Some("layouts.h") if line.starts_with("    ") => mistakes_in_member(line.trim(), add),
        Some("functions.h") if line.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            mistakes_in_function(line, add);
        }
        _ => {}
    }
}

fn mistakes_in_type(code: &str, release: Release, mut add: impl FnMut(&str, Kind, String)) {
    if let Some((name, value)) = code.strip_suffix(',').and_then(|code| code.split_once(" = ")) {
        if !name.starts_with("XENLIGHT_") {
            add(name, Kind::Constant, format!("{name} = ({value}) + 1,"));
        } else if name == "XENLIGHT_BLOCK_SIZE" {
            add("block", Kind::Size, format!("{name} = 64,"));
        } else if name.contains("_DOMINFO_") && name.ends_with("_4_14") == (release < Release::new(4, 16)) {
            add("libxl_dominfo", Kind::Size, format!("{name} = ({value}) + 1,"));
        }
    } else if let Some((_, name)) = code.strip_suffix(" {").and_then(|code| code.split_once("enum ")) {
        // Fits no int any more.
        add(name, Kind::Number, format!("{code} xenlight_large = 0x100000000ll,"));
    } else if let Some(rest) = code.strip_prefix("typedef uint") {
        let name = rest.split(' ').next_back().unwrap().trim_end_matches(';');
        if name != "xenlight_rest" {
            add(name, Kind::Number, format!("typedef int{rest}"));
        }
    }
}

fn mistakes_in_member(code: &str, mut add: impl FnMut(&str, Kind, String)) {
    if let Some((before, after)) = code.split_once("(*") {
        let name = after.split(')').next().unwrap();
        add(name, Kind::Member, format!("long double (*{after}"));
        add(name, Kind::Member, format!("{before}(*{}", after.replacen(")(", ")(char *extra, ", 1)));
        return;
    }
    let Some(declaration) = code.strip_suffix(';') else { return };
    if code.starts_with('}') || code.contains(')') {
        return;
    }
    let name = declaration.rsplit([' ', '*']).next().unwrap().split('[').next().unwrap();
    if code.starts_with("xenlight_rest") {
        add(name, Kind::Member, format!("long before; {code}"));
    } else {
        add(name, Kind::Member, format!("{declaration}[3];"));
    }
}

fn mistakes_in_function(line: &str, mut add: impl FnMut(&str, Kind, String)) {
    let (before, after) = line.split_once('(').unwrap();
    let name = before.rsplit([' ', '*']).next().unwrap();
    let typedef = if line.starts_with("typedef") { "typedef " } else { "" };
    add(name, Kind::Function, format!("{typedef}long double {name}({after}"));
    add(name, Kind::Function, format!("{before}(char *extra, {after}"));
}

/// Makes each mistake, and returns the kinds of those made.
fn every_mistake_fails(theirs: &Theirs) -> Vec<Kind> {
    let ours = Ours::read();
    let work = Mutex::new(mistakes(&ours, theirs.release));
    let kinds = work.lock().unwrap().iter().map(|mistake| mistake.kind).collect();
    let unnoticed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let dir = tempfile::tempdir().unwrap();
                loop {
                    let Some(mistake) = work.lock().unwrap().pop() else { break };
                    mistake.apply(&ours).write(dir.path());
                    let noticed = match prove(dir.path(), theirs) {
                        Ok(()) => false,
                        // For the right reason.
                        Err(said) => said.contains(&mistake.name),
                    };
                    if !noticed {
                        unnoticed.lock().unwrap().push(format!("{}: {}", mistake.file, mistake.wrong));
                    }
                }
            });
        }
    });
    let unnoticed = unnoticed.into_inner().unwrap();
    assert!(unnoticed.is_empty(), "not noticed with {}: {unnoticed:#?}", theirs.release);
    kinds
}

fn count(kinds: &[Kind], kind: Kind) -> usize {
    kinds.iter().filter(|&&k| k == kind).count()
}

// ---- tests ----

#[test]
fn proof_succeeds_with_equal_and_fails_with_every_other_declaration() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = stand_in(dir.path());
    let ours = tempfile::tempdir().unwrap();
    Ours::read().write(ours.path());
    prove(ours.path(), &theirs).unwrap_or_else(|said| panic!("equal declarations:\n{said}"));

    let kinds = every_mistake_fails(&theirs);
    // Nothing was left out, on either side.
    assert_eq!(count(&kinds, Kind::Constant), covered("constants"));
    assert_eq!(count(&kinds, Kind::Number), covered("scalars"));
    assert_eq!(count(&kinds, Kind::Function), 2 * (covered("functions") + covered("callbacks")));
    assert_eq!(count(&kinds, Kind::Size), 3);
    // Two of each callback; unions and structs without a name are members in the proof, not here.
    let callbacks = Ours::read().text("xenlight/layouts.h").matches("(*").count();
    let unnamed = Ours::read().text("xenlight/layouts.h").matches("\n    } ").count()
        + Ours::read().text("xenlight/layouts.h").matches("\n        } ").count();
    assert_eq!(count(&kinds, Kind::Member), covered("fields") - unnamed + callbacks);
}

#[test]
fn proof_fails_without_xen_s_declarations() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = stand_in(dir.path());
    let ours = tempfile::tempdir().unwrap();
    Ours::read().write(ours.path());
    let header = dir.path().join("libxl.h");
    let text = fs::read_to_string(&header).unwrap();
    for name in ["libxl_domain_pause", "LIBXL_TRIGGER_POWER", "libxl_vminfo", "libxl_domid"] {
        // Declared under another name: what ours adds must not hide that.
        fs::write(&header, text.replace(name, &format!("renamed_{name}"))).unwrap();
        let said = prove(ours.path(), &theirs).expect_err(name);
        assert!(said.contains(name), "{said}");
    }
    fs::write(&header, text + "#define libxl_domain_pause libxl_domain_unpause\n").unwrap();
    let said = prove(ours.path(), &theirs).unwrap_err();
    assert!(said.contains("libxl_domain_pause is a macro"), "{said}");
}

#[test]
#[ignore = "needs Xen's headers in XENLIGHT_PROOF_HEADERS, see the start of this file"]
fn declarations_match_every_release_given() {
    let ours = tempfile::tempdir().unwrap();
    Ours::read().write(ours.path());
    for theirs in given() {
        prove(ours.path(), &theirs).unwrap_or_else(|said| panic!("Xen {}:\n{said}", theirs.release));
        println!("Xen {}: {} functions", theirs.release, covered("functions"));
        println!("  {} constants, {} numbers", covered("constants"), covered("scalars"));
        println!("  {} structs, {} fields", covered("structs"), covered("fields"));
    }
}

#[test]
#[ignore = "needs Xen's headers in XENLIGHT_PROOF_HEADERS, see the start of this file"]
fn every_mistake_is_noticed_with_every_release_given() {
    for theirs in given() {
        println!("Xen {}: {} mistakes noticed", theirs.release, every_mistake_fails(&theirs).len());
    }
}
