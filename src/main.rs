//! The program `xendomains`: see the library of the same name.

use std::process::ExitCode;
use std::sync::Arc;
use std::{io, thread};

use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xendomains::cli::Cli;
use xendomains::host::Host;
use xendomains::interrupt::Interrupt;
use xendomains::report::Exit;
use xendomains::toolstack::libxl::Libxl;
use xendomains::{PATIENCE, Program, reporter, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let report = reporter(&cli);
    let interrupt = match listen() {
        Ok(interrupt) => interrupt,
        Err(error) => {
            report.error(&format!("can't wait for signals: {error}"));
            return Exit::Failed.into();
        }
    };
    let program = Program {
        host: &Host::default(),
        open: &|xl_conf, verbose| Ok(Box::new(Libxl::open(xl_conf, verbose, Arc::clone(&interrupt))?)),
        report: &report,
        interrupt: &interrupt,
        sleep: &|time| interrupt.pause(time),
        patience: PATIENCE,
    };
    run(&program, &cli).into()
}

/// From here on SIGTERM, SIGINT and SIGHUP don't end the program but ask it to end.
fn listen() -> io::Result<Arc<Interrupt>> {
    let interrupt = Arc::new(Interrupt::new()?);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let listener = Arc::clone(&interrupt);
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            listener.ask();
        }
    })?;
    Ok(interrupt)
}
