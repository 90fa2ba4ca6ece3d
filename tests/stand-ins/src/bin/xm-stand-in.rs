//! See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    stand_ins::xm::main(&std::env::args().skip(1).collect::<Vec<_>>())
}
