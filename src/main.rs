//! The program `xendomains`: see the library of the same name.

use std::process::ExitCode;
use std::sync::Arc;
use std::{io, thread};

use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xendomains::cli::{Cli, Command};
use xendomains::host::Host;
use xendomains::interrupt::Interrupt;
use xendomains::report::Exit;
use xendomains::toolstack::choose;
use xendomains::{PATIENCE, Program, monitor, reporter, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(&cli.command, Command::Monitor(options) if options.detached) {
        if let Err(error) = monitor::detach() {
            eprintln!("error: can't be detached: {error}");
            return Exit::Failed.into();
        }
    }
    let report = reporter(&cli);
    let interrupt = match listen() {
        Ok(interrupt) => interrupt,
        Err(error) => {
            report.error(&format!("can't wait for signals: {error}"));
            return Exit::Failed.into();
        }
    };
    let host = Host::default();
    let program = Program {
        host: &host,
        open: &|choice, xl_conf, verbose| Ok(choose::open(choice, &host, xl_conf, verbose, &interrupt)?),
        report: &report,
        interrupt: &interrupt,
        sleep: &|time| interrupt.pause(time),
        patience: PATIENCE,
        spawn_monitor: Some(&monitor::spawn),
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
