//! The program `xendomains`: see the library of the same name.

use std::process::ExitCode;
use std::{io, thread};

use clap::Parser;
use xendomains::cli::Cli;
use xendomains::host::Host;
use xendomains::report::Reporter;
use xendomains::toolstack::libxl::Libxl;
use xendomains::{Program, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let program = Program {
        host: &Host::default(),
        open: &|xl_conf, verbose| Ok(Box::new(Libxl::open(xl_conf, verbose)?)),
        report: &Reporter::new(Box::new(io::stdout()), Box::new(io::stderr())),
        sleep: &thread::sleep,
    };
    run(&program, &cli).into()
}
