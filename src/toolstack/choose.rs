//! Which toolstack a host has.
//!
//! It is libxl where there is one for the hypervisor that runs, else the command `xl`, else `xm`. Where xend runs it is
//! `xm` in any case: two toolstacks on one host know nothing of each other's guests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Toolstack;
use super::command::{Xl, Xm};
use super::libxl::{Libxl, OpenError};
use super::xenstored;
use crate::guest_config::XlConf;
use crate::host::Host;
use crate::interrupt::Interrupt;
use crate::settings::ToolstackChoice;

/// The first release of Xen 4 without xend.
const WITHOUT_XEND: u32 = 5;

/// Why there is no toolstack.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// libxl is there, or was asked for, and can't be used.
    #[error(transparent)]
    Libxl(#[from] OpenError),
    /// A command is not there or does not work.
    #[error("{0}")]
    Command(String),
    /// Something else than `xm` was asked for.
    #[error(
        "{0}: only xm can be used beside xend. Stop xend, or leave the choice of the toolstack to this program"
    )]
    Xend(String),
}

/// Opens the toolstack that was chosen, or chooses one.
///
/// # Errors
/// There is none that works.
pub fn open(
    choice: ToolstackChoice,
    host: &Host,
    xl_conf: &XlConf,
    verbose: bool,
    interrupt: &Arc<Interrupt>,
) -> Result<Box<dyn Toolstack>, Error> {
    // Whatever the toolstack, it would wait.
    xenstored::check().map_err(OpenError::from)?;
    let libxl = || Libxl::open(xl_conf, verbose, Arc::clone(interrupt));
    open_with(libxl, choice, host, verbose, interrupt)
}

/// Tells from why none could be opened whether it may be there a little later: libxl could not connect, which it can't
/// while the host boots and xenstored is not there yet.
pub fn may_come(error: &(dyn std::error::Error + 'static)) -> bool {
    let of_choice = error.downcast_ref().is_some_and(|error| matches!(error, Error::Libxl(OpenError::Connect(_))));
    of_choice || error.downcast_ref().is_some_and(|error| matches!(error, OpenError::Connect(_)))
}

fn open_with<T: Toolstack + 'static>(
    libxl: impl FnOnce() -> Result<T, OpenError>,
    choice: ToolstackChoice,
    host: &Host,
    verbose: bool,
    interrupt: &Arc<Interrupt>,
) -> Result<Box<dyn Toolstack>, Error> {
    let xl = |why: &str| -> Result<Box<dyn Toolstack>, String> {
        let open = |program: &Path| Xl::open(program, why, verbose, Arc::clone(interrupt)).map_err(|e| e.cause);
        first_that_works("xl", host, open).map(|xl| Box::new(xl) as Box<dyn Toolstack>)
    };
    let xm = |why: &str| -> Result<Box<dyn Toolstack>, String> {
        let open = |program: &Path| Xm::open(program, why, verbose, Arc::clone(interrupt)).map_err(|e| e.cause);
        first_that_works("xm", host, open).map(|xm| Box::new(xm) as Box<dyn Toolstack>)
    };
    let asked_for = "it was asked for";
    match (choice, xend(host)) {
        (ToolstackChoice::Libxl | ToolstackChoice::Xl, Some(xend)) => Err(Error::Xend(xend)),
        (ToolstackChoice::Xl, None) => xl(asked_for).map_err(Error::Command),
        (ToolstackChoice::Libxl, None) => Ok(Box::new(libxl()?)),
        (ToolstackChoice::Auto, None) => match libxl() {
            Ok(libxl) => Ok(Box::new(libxl)),
            Err(OpenError::Library(error)) => xl(&error.to_string())
                .or_else(|xl| xm(&format!("{error}; {xl}")).map_err(|xm| format!("{xl}; {xm}")))
                .map_err(|reasons| Error::Command(format!("{error}; {reasons}"))),
            // It is there, and has told why it can't be used. xl has nothing but the same libxl.
            Err(error) => Err(error.into()),
        },
        (ToolstackChoice::Xm, _) => xm(asked_for).map_err(Error::Command),
        (ToolstackChoice::Auto, Some(xend)) => xm(&xend).map_err(|xm| Error::Command(format!("{xend}; {xm}"))),
    }
}

/// Opens the first of the files that a command may be in.
fn first_that_works<T>(name: &str, host: &Host, open: impl Fn(&Path) -> Result<T, String>) -> Result<T, String> {
    let mut reasons = Vec::new();
    for program in candidates(name, host) {
        match open(&program) {
            Ok(opened) => return Ok(opened),
            Err(reason) => reasons.push(format!("{}: {reason}", program.display())),
        }
    }
    if reasons.is_empty() {
        reasons.push(format!("there is no command {name}"));
    }
    Err(reasons.join("; "))
}

/// The files that a command may be in: the usual places, where Debian has a wrapper that looks for the running release,
/// and the places of the releases, the running one's before the newest.
fn candidates(name: &str, host: &Host) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = host.sbin.iter().map(|directory| directory.join(name)).collect();
    let release = |directory: &Path| -> Option<u32> {
        directory.file_name()?.to_str()?.strip_prefix("xen-4.")?.parse().ok()
    };
    let entries = fs::read_dir(&host.usr_lib).into_iter().flatten().flatten();
    let mut releases: Vec<(u32, PathBuf)> =
        entries.filter_map(|entry| Some((release(&entry.path())?, entry.path()))).collect();
    let running = host.xen_release();
    releases.sort_by_key(|(release, _)| (Some(*release) == running, *release));
    found.extend(releases.into_iter().rev().map(|(_, directory)| directory.join("bin").join(name)));
    found.push(host.usr_lib.join("xen/bin").join(name));
    found.retain(|program| program.is_file());
    found
}

/// Whether xend runs, and how that is known. A Xen that has none any more is none that it could work with, but its lock
/// may be left over there.
fn xend(host: &Host) -> Option<String> {
    if host.xen_release().is_some_and(|release| release >= WITHOUT_XEND) {
        return None;
    }
    let locks = [host.subsys_dir.join("xend"), host.lock_dir.join("xend")];
    if let Some(lock) = locks.iter().find(|lock| lock.exists()) {
        return Some(format!("xend runs ({} is there)", lock.display()));
    }
    let processes = fs::read_dir(&host.processes).ok()?;
    processes.flatten().find_map(|process| {
        process.file_name().to_str()?.parse::<u32>().ok()?;
        let command = fs::read(process.path().join("cmdline")).ok()?;
        let mut words = command.split(|&byte| byte == 0).take(3);
        let is_python =
            |word: &[u8]| word.rsplit(|&byte| byte == b'/').next().is_some_and(|name| name.starts_with(b"python"));
        let is_xend = |word: &[u8]| word == b"xend" || word.ends_with(b"/xend");
        let first = words.next()?;
        let runs = is_xend(first) || (is_python(first) && words.any(is_xend));
        runs.then(|| format!("xend runs (process {})", process.file_name().to_string_lossy()))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::guest_config::KNOWN;
    use crate::host::fake_dom0;
    use crate::lifecycle::mock::Mock;

    struct Machine {
        directory: tempfile::TempDir,
        host: Host,
    }

    impl Machine {
        fn new() -> Machine {
            let directory = tempfile::tempdir().expect("a directory");
            let host = fake_dom0(directory.path());
            Machine { directory, host }
        }

        fn file(&self, name: &str, text: &str) {
            let path = self.directory.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(&path, text).expect("a file");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a file of ours");
        }

        /// A command that has no domains, or does not work.
        fn command(&self, name: &str, works: bool) {
            self.file(
                name,
                if works { "#!/bin/sh\necho 'Name   ID'\n" } else { "#!/bin/sh\necho no; exit 127\n" },
            );
        }

        fn open(&self, choice: ToolstackChoice, libxl: Result<Mock, OpenError>) -> Result<String, String> {
            let interrupt = Arc::new(Interrupt::new().expect("a descriptor"));
            let toolstack = open_with(|| libxl, choice, &self.host, false, &interrupt);
            let root = format!("{}/", self.directory.path().display());
            let told = |toolstack: Box<dyn Toolstack>| {
                format!("{}: {}", toolstack.describe(), toolstack.why().unwrap_or_default())
            };
            toolstack
                .map(|toolstack| told(toolstack).replace(&root, ""))
                .map_err(|error| error.to_string().replace(&root, ""))
        }
    }

    fn no_library() -> Result<Mock, OpenError> {
        no_library_of(17)
    }

    fn no_library_of(minor: u32) -> Result<Mock, OpenError> {
        // SAFETY: there is no such file.
        let error =
            unsafe { xenlight::Library::open_in(Path::new("/nonexistent"), xenlight::Release::new(4, minor)) };
        Err(OpenError::Library(error.expect_err("nothing is there")))
    }

    use ToolstackChoice::{Auto, Libxl as Forced, Xl as ForcedXl};

    #[test]
    fn libxl_is_the_first_choice_and_xl_the_second() {
        let machine = Machine::new();
        assert_eq!(machine.open(Auto, Ok(Mock::default())), Ok("mock 1: ".to_owned()));
        let error = machine.open(Auto, no_library()).expect_err("nothing is there");
        assert!(
            error.contains("libxenlight") && error.ends_with("there is no command xl; there is no command xm"),
            "{error}"
        );
        machine.command("sbin/xl", true);
        assert_eq!(machine.open(Auto, Ok(Mock::default())), Ok("mock 1: ".to_owned()));
        let told = machine.open(Auto, no_library()).expect("xl works");
        assert!(told.starts_with("xl (sbin/xl): ") && told.contains("libxenlight"), "{told}");
        assert_eq!(machine.open(ForcedXl, Ok(Mock::default())), Ok("xl (sbin/xl): it was asked for".to_owned()));
        assert!(machine.open(Forced, no_library()).is_err());
    }

    #[test]
    fn a_release_newer_than_the_known_ones_is_left_to_xl() {
        let machine = Machine::new();
        // Of each release whose libxl is opened, guests' files are understood, and the other way round.
        let known = format!("(4.{} to 4.{})", KNOWN.start(), KNOWN.end());
        for minor in [23, 99] {
            let refused =
                format!("Xen 4.{minor} is not among the releases that this program was verified with {known}");
            let error = machine.open(Auto, no_library_of(minor)).expect_err("nothing else is there");
            assert!(error.starts_with(&refused) && error.contains("there is no command xl"), "{error}");
        }
        machine.command("sbin/xl", true);
        for minor in [23, 99] {
            let told = machine.open(Auto, no_library_of(minor)).expect("xl works");
            assert!(told.starts_with(&format!("xl (sbin/xl): Xen 4.{minor} is not among")), "{told}");
            assert!(machine.open(Forced, no_library_of(minor)).is_err(), "4.{minor}");
        }
        // The newest known one is asked for by its name.
        let told = machine.open(Auto, no_library_of(22)).expect("xl works");
        assert!(told.contains("libxenlight.so.4.22 is not installed"), "{told}");
    }

    #[test]
    fn the_xl_that_works_is_taken() {
        let machine = Machine::new();
        machine.command("sbin/xl", false);
        machine.command("lib/xen-4.9/bin/xl", true);
        machine.command("lib/xen-4.17/bin/xl", true);
        machine.command("lib/xen-4.20/bin/xl", true);
        assert!(
            machine.open(ForcedXl, no_library()).is_ok_and(|told| told.starts_with("xl (lib/xen-4.20/bin/xl)"))
        );
        machine.file("version/major", "4\n");
        machine.file("version/minor", "17\n");
        assert!(
            machine.open(ForcedXl, no_library()).is_ok_and(|told| told.starts_with("xl (lib/xen-4.17/bin/xl)"))
        );
        machine.command("lib/xen-4.17/bin/xl", false);
        machine.command("lib/xen-4.20/bin/xl", false);
        machine.command("lib/xen-4.9/bin/xl", false);
        let error = machine.open(ForcedXl, no_library()).expect_err("none works");
        assert!(error.contains("sbin/xl: ") && error.contains("exit code 127"), "{error}");
    }

    #[test]
    fn a_libxl_that_has_told_why_it_cant_be_used_is_believed() {
        let machine = Machine::new();
        machine.command("sbin/xl", true);
        let socket = machine.directory.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let silent = super::super::xenstored::check_at(&socket, std::time::Duration::from_millis(1));
        let error = machine.open(Auto, Err(silent.expect_err("it does not answer").into()));
        assert!(error.is_err_and(|error| error.contains("xenstored does not answer")));
    }

    #[test]
    fn beside_xend_nothing_else_is_used() {
        for (file, text) in [
            ("xend", ""),
            ("subsys/xend", ""),
            ("processes/77/cmdline", "/usr/bin/python2.7\0/usr/sbin/xend\0start\0"),
            ("processes/77/cmdline", "xend\0"),
        ] {
            let machine = Machine::new();
            machine.command("sbin/xl", true);
            machine.file(file, text);
            for choice in [Forced, ForcedXl] {
                let error = machine.open(choice, Ok(Mock::default())).expect_err(file);
                assert!(error.starts_with("xend runs ("), "{error}");
            }
            assert!(machine.open(Auto, Ok(Mock::default())).is_err_and(|error| error.contains("xm")), "{file}");
        }
        // What only looks like it.
        let machine = Machine::new();
        machine.file("xend", "");
        machine.file("version/major", "4\n");
        machine.file("version/minor", "17\n");
        machine.file("processes/78/cmdline", "vi\0/usr/sbin/xend\0");
        machine.file("processes/79/cmdline", "/usr/sbin/xendomains\0stop\0");
        assert_eq!(machine.open(Auto, Ok(Mock::default())), Ok("mock 1: ".to_owned()));
    }
}
