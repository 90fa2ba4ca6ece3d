//! Tells the scenarios, which are those of the program over libxl, that they are run over a command.

fn main() {
    println!("cargo::rustc-cfg=over_command");
}
