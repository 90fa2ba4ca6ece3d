//! The whole program over the fake libxl, in this process.

use std::error::Error;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use clap::Parser;
use xendomains::cli::Cli;
use xendomains::guest_config::XlConf;
use xendomains::host::Host;
use xendomains::interrupt::Interrupt;
use xendomains::report::Reporter;
use xendomains::settings::ToolstackChoice;
use xendomains::toolstack::Toolstack;
use xendomains::toolstack::libxl::Libxl;
use xendomains::{OpenToolstack, PATIENCE, Program, run};
use xenlight::Library;

/// What the program has said, which can be read while it runs.
#[derive(Clone, Default)]
pub struct Said(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Said {
    /// What writes to it.
    pub fn reporter(&self) -> Reporter {
        Reporter::new(Box::new(self.clone()), Box::new(self.clone()))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.0.lock().expect("not poisoned").clone()).expect("UTF-8")
    }

    /// Waits until this has been said so many times.
    #[track_caller]
    pub fn wait_for(&self, words: &str, times: usize) {
        let (said, more) = &*self.0;
        let not_yet = |said: &mut Vec<u8>| String::from_utf8_lossy(said).matches(words).count() < times;
        let said = said.lock().expect("not poisoned");
        let (said, waited) =
            more.wait_timeout_while(said, Duration::from_secs(20), not_yet).expect("not poisoned");
        assert!(!waited.timed_out(), "{words:?} is missing in:\n{}", String::from_utf8_lossy(&said));
    }
}

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (said, more) = &*self.0;
        let written = said.lock().expect("not poisoned").write(bytes);
        more.notify_all();
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens libxl from this file, whatever was chosen.
pub fn libxl(
    library: &Library,
    interrupt: &Arc<Interrupt>,
) -> impl Fn(ToolstackChoice, &XlConf, bool) -> Result<Box<dyn Toolstack>, Box<dyn Error>> {
    move |_, xl_conf, verbose| {
        Ok(Box::new(Libxl::with_library(library.clone(), xl_conf, verbose, Arc::clone(interrupt))?))
    }
}

/// Runs the program with these words, and gives its exit code. It starts no monitor.
pub fn program(
    host: &Host,
    open: OpenToolstack<'_>,
    words: &[&str],
    interrupt: &Arc<Interrupt>,
    report: &Reporter,
) -> u8 {
    let cli = Cli::try_parse_from([&["xendomains"], words].concat()).expect("usage");
    let program = Program {
        host,
        open,
        report,
        interrupt,
        sleep: &std::thread::sleep,
        patience: PATIENCE,
        spawn_monitor: None,
    };
    run(&program, &cli).code()
}
