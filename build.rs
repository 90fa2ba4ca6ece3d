//! Writes the man pages of the commands (`xendomains.8`, `xendomains-start.8`, …) and the completions for bash, zsh and
//! fish from the definition of the command line, and that of the settings (`xendomains.5`) from their template.
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
#[allow(dead_code)]
#[path = "src/settings/known.rs"]
mod known;
#[path = "build/settings_page.rs"]
mod settings_page;

/// What the definition of the command line does not say.
const SECTIONS: &str = "packaging/man/sections.8";
const TEMPLATE: &str = "packaging/xendomains.default";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    for file in ["build/settings_page.rs", "src/cli.rs", "src/settings/known.rs", SECTIONS, TEMPLATE] {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::rerun-if-env-changed=XENDOMAINS_ASSET_DIR");
    let out_dir = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    write_assets(&PathBuf::from(out_dir).join("assets"))?;
    if let Some(dir) = env::var_os("XENDOMAINS_ASSET_DIR") {
        write_assets(Path::new(&dir))?;
        // It may be removed while what cargo has built is kept.
        println!("cargo::rerun-if-changed={}", Path::new(&dir).display());
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
    write_man_page(&command, dir, &fs::read_to_string(SECTIONS)?)?;
    for subcommand in command.get_subcommands() {
        write_man_page(subcommand, dir, "")?;
    }
    let settings = settings_page::settings_page(&fs::read_to_string(TEMPLATE)?, env!("CARGO_PKG_VERSION"));
    fs::write(dir.join("xendomains.5"), settings)
}

fn write_man_page(command: &clap::Command, dir: &Path, sections: &str) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let page = clap_mangen::Man::new(command.clone().name(name.clone())).section("8");
    let mut text = Vec::new();
    page.render(&mut text)?;
    // What comes after all help is about exit codes.
    let text = String::from_utf8_lossy(&text).replace(".SH EXTRA\n", ".SH \"EXIT STATUS\"\n");
    fs::write(dir.join(format!("{name}.8")), text + sections)
}
