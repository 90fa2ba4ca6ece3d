//! The program `xendomains`: see the library of the same name.

use std::ffi::c_int;
use std::process::ExitCode;
use std::sync::Arc;
use std::{fs, io, thread};

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

/// From here on SIGTERM, SIGINT and SIGHUP don't end the program but ask it to end. `nohup`, or a shell that runs the
/// program in the background, has the latter two ignored: they stay so, for the processes that libxl starts too. SIGTERM
/// always counts, because stop tells a start to end with it.
fn listen() -> io::Result<Arc<Interrupt>> {
    let interrupt = Arc::new(Interrupt::new()?);
    let ignored = ignored_signals();
    let is_heard = |signal: &c_int| *signal == SIGTERM || ignored & (1 << (signal - 1)) == 0;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP].into_iter().filter(is_heard))?;
    let listener = Arc::clone(&interrupt);
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            listener.ask();
        }
    })?;
    Ok(interrupt)
}

/// The signals that this process ignores, as Linux tells it: a bit for each, from SIGHUP on.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}
