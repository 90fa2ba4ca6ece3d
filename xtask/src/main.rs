//! `cargo xtask …`: the developer's commands.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use xtask::lab::{Host, Lab, Machine, Release, Threads};
use xtask::shipped;
use xtask::test::Tier;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The developer's commands")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// A real Xen host in QEMU, to try things by hand
    #[command(subcommand)]
    Lab(LabTask),
    /// Boot a Xen host in a box and show the main job on it: start, status, stop, start
    Demo,
    /// Feed random input to everything that parses, two parsers at a time
    Fuzz {
        /// For so long each
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Only this one
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
    },
    /// Build what a distribution ships, without network, under target/packages
    Package {
        /// Which one
        kind: Kind,
    },
    /// Run everything that CI runs; the last line counts
    Test {
        /// Run this part only; can be given more than once
        #[arg(long = "tier", value_name = "NAME", value_enum)]
        tiers: Vec<Tier>,
    },
    /// Time the same work on a Xen host in a box: by this program, by the scripts, and by libxl's calls alone
    Bench {
        /// How many guests; several numbers are measured one after the other
        #[arg(long, value_delimiter = ',', default_value = "1,4,8,16,50")]
        guests: Vec<usize>,
        /// How often each does everything
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Leave the scripts out, which take minutes each time
        #[arg(long)]
        without_scripts: bool,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Kind {
    /// Debian's
    Deb,
    /// RPM, with its source package
    Rpm,
    /// Both, and looks at what is in them; CI does so with the Debian package
    Check,
}

#[derive(Args)]
struct Name {
    /// Which host
    #[arg(short = 'n', long = "name", default_value = "lab", value_name = "NAME")]
    value: String,
}

#[derive(Subcommand)]
enum LabTask {
    /// Start a host (the first time builds it) and leave it running
    Up {
        #[command(flatten)]
        name: Name,
        /// The release of Xen: 4.14, 4.17 or 4.20
        #[arg(long, default_value_t = Release::V4_17, value_name = "RELEASE")]
        xen: Release,
        /// Processors; HVM guests boot with one only, and with more PVH guests die now and then
        #[arg(long, default_value_t = Machine::default().cpus, value_name = "NUMBER")]
        cpus: u32,
        /// Memory of the whole host, MiB
        #[arg(long, default_value_t = Machine::default().memory, value_name = "MIB")]
        memory: u32,
        /// Memory of dom0, MiB
        #[arg(long, default_value_t = Machine::default().dom0_memory, value_name = "MIB")]
        dom0_memory: u32,
        /// What runs the processors: one thread for all, or each its own, which is faster and for PV guests only
        #[arg(long, value_enum, default_value_t)]
        threads: Threads,
    },
    /// End a host; its disk is forgotten, its logs stay
    Down {
        #[command(flatten)]
        name: Name,
        /// Every host
        #[arg(long, conflicts_with = "value")]
        all: bool,
    },
    /// A shell in dom0
    Ssh {
        #[command(flatten)]
        name: Name,
    },
    /// Run a command in dom0's shell, with this command's input, output and exit code
    Run {
        #[command(flatten)]
        name: Name,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Copy a file to dom0
    Push {
        #[command(flatten)]
        name: Name,
        /// Permissions, octal; otherwise those of the file
        #[arg(long, value_parser = octal)]
        mode: Option<u32>,
        local: PathBuf,
        remote: String,
    },
    /// Copy a file from dom0
    Pull {
        #[command(flatten)]
        name: Name,
        remote: String,
        local: PathBuf,
    },
    /// Show a host's console, of hypervisor and dom0
    Log {
        #[command(flatten)]
        name: Name,
        /// Go on with what comes
        #[arg(short, long)]
        follow: bool,
    },
    /// Bring a host back to what it was after `up`
    Reset {
        #[command(flatten)]
        name: Name,
    },
    /// Cut a host's power: the disk stays as it was at that moment
    PowerCut {
        #[command(flatten)]
        name: Name,
    },
    /// Boot a host that is off from its disk
    Boot {
        #[command(flatten)]
        name: Name,
    },
    /// Name all hosts
    List,
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| "permissions are octal, as in 755".to_owned())
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Lab(task) => lab(task),
        Task::Demo => workspace().and_then(|root| xtask::demo::run(&root)).map(|()| ExitCode::SUCCESS),
        Task::Fuzz { seconds, target } => workspace()
            .and_then(|root| xtask::fuzz::run(&root, seconds, target.as_deref()))
            .map(|(_, failed)| verdict(failed == 0)),
        Task::Bench { guests, rounds, without_scripts } => {
            workspace().and_then(|root| xtask::test::bench(&root, &guests, rounds, !without_scripts)).map(verdict)
        }
        Task::Package { kind } => workspace().and_then(|root| package(&root, kind)),
        Task::Test { tiers } => workspace().and_then(|root| xtask::test::run(&root, &tiers)).map(verdict),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn package(workspace: &Path, kind: Kind) -> Result<ExitCode> {
    match kind {
        Kind::Deb => println!("{}", shipped::debian::build(workspace)?.deb.display()),
        Kind::Rpm => println!("{}", shipped::rpm::build(workspace)?.display()),
        Kind::Check => {
            let (passed, failed) = shipped::check::run(workspace, true);
            println!("{passed} passed, {failed} failed");
            return Ok(verdict(failed == 0));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn verdict(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn lab(task: LabTask) -> Result<ExitCode> {
    let lab = Lab::open(&workspace()?)?;
    match task {
        LabTask::Up { name, xen, cpus, memory, dom0_memory, threads } => {
            let machine = Machine { cpus, memory, dom0_memory, threads };
            let host = lab.host(&name.value, xen)?.machine(machine).detached().up()?;
            say_usage(&host);
        }
        LabTask::Down { name, all } => {
            let names = if all { lab.names()? } else { vec![name.value] };
            for name in names {
                lab.attach(&name)?.down()?;
            }
        }
        LabTask::Ssh { name } => return replace(lab.attach(&name.value)?.shell()?),
        LabTask::Run { name, command } => {
            return replace(lab.attach(&name.value)?.command(&command.join(" "))?);
        }
        LabTask::Push { name, mode, local, remote } => lab.attach(&name.value)?.push(&local, &remote, mode)?,
        LabTask::Pull { name, remote, local } => lab.attach(&name.value)?.pull(&remote, &local)?,
        LabTask::Log { name, follow } => {
            let mut command = Command::new("tail");
            command.args(["-n", "+1"]);
            if follow {
                command.arg("-F");
            }
            command.arg(lab.attach(&name.value)?.serial_log());
            return replace(command);
        }
        LabTask::Reset { name } => {
            let mut host = lab.attach(&name.value)?;
            xtask::progress::step(&format!("resetting host {}", name.value), || host.reset())?;
        }
        LabTask::PowerCut { name } => lab.attach(&name.value)?.power_cut()?,
        LabTask::Boot { name } => lab.attach(&name.value)?.boot()?,
        LabTask::List => {
            for name in lab.names()? {
                let host = lab.attach(&name)?;
                let state = if host.is_running()? { "running" } else { "off" };
                println!("{name}\tXen {}\t{state}\tssh port {}", host.release(), host.port());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn say_usage(host: &Host) {
    let option = if host.name() == "lab" { String::new() } else { format!(" --name {}", host.name()) };
    println!("Xen {} is up.", host.release());
    for (command, what) in [
        ("ssh", "a shell in dom0"),
        ("run xl list", "one command in dom0"),
        ("log", "its console"),
        ("reset", "as it is now, in seconds"),
        ("down", "end it"),
    ] {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        println!("  {:<48} {what}", format!("cargo xtask lab {verb}{option} {rest}").trim_end());
    }
}

/// Becomes another program, so that terminal, signals and exit code are that program's.
fn replace(mut command: Command) -> Result<ExitCode> {
    let program = command.get_program().to_string_lossy().into_owned();
    Err(command.exec()).with_context(|| format!("start {program}"))
}

/// The workspace's folder.
fn workspace() -> Result<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).context("xtask is not inside a workspace")
}
