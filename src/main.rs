//! The program `xendomains`: see the library of the same name.

use std::process::ExitCode;
use std::thread;

use clap::Parser;
use xendomains::cli::Cli;
use xendomains::host::Host;
use xendomains::toolstack::libxl::Libxl;
use xendomains::{Program, reporter, run};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let program = Program {
        host: &Host::default(),
        open: &|verbose| Ok(Box::new(Libxl::open(verbose)?)),
        report: &reporter(&cli),
        sleep: &thread::sleep,
    };
    run(&program, &cli).into()
}
