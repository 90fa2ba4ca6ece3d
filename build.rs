//! Writes the man pages (`xendomains.8`, `xendomains-start.8`, …) and the completions for bash, zsh and fish from the
//! definition of the command line.
//!
//! They are put into `OUT_DIR/assets`. A packager who wants them at a known place names a directory in the environment
//! variable `XENDOMAINS_ASSET_DIR` during the build; it is made if it does not exist.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

#[allow(dead_code)]
#[path = "src/cli.rs"]
mod cli;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/cli.rs");
    println!("cargo::rerun-if-env-changed=XENDOMAINS_ASSET_DIR");
    let out_dir = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    write_assets(&PathBuf::from(out_dir).join("assets"))?;
    if let Some(dir) = env::var_os("XENDOMAINS_ASSET_DIR") {
        write_assets(Path::new(&dir))?;
    }
    Ok(())
}

fn write_assets(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut command = cli::Cli::command();
    for shell in Shell::value_variants() {
        if matches!(shell, Shell::Bash | Shell::Zsh | Shell::Fish) {
            clap_complete::generate_to(*shell, &mut command, "xendomains", dir)?;
        }
    }
    // Gives the subcommands the global options, and their full names.
    command.build();
    write_man_page(&command, dir)?;
    for subcommand in command.get_subcommands() {
        write_man_page(subcommand, dir)?;
    }
    Ok(())
}

fn write_man_page(command: &clap::Command, dir: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let page = clap_mangen::Man::new(command.clone().name(name.clone())).section("8");
    let mut text = Vec::new();
    page.render(&mut text)?;
    fs::write(dir.join(format!("{name}.8")), text)
}
