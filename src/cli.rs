//! The command line: its definition and nothing else, because `build.rs` includes this file to write the man pages and
//! shell completions from it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Starts a Xen host's guests at boot and stops them at shutdown.
///
/// What is done with which guest is written in /etc/default/xendomains or /etc/sysconfig/xendomains: start restores the
/// images that stop has saved and then starts the guests of the AUTO directory; stop migrates, saves or shuts down the
/// guests that run.
#[derive(Debug, Parser)]
#[command(name = "xendomains", version, disable_help_subcommand = true, after_long_help = EXIT_CODES)]
pub struct Cli {
    /// Read this settings file instead of /etc/default/xendomains or /etc/sysconfig/xendomains.
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Show the toolstack's own log too.
    #[arg(short, long, global = true)]
    pub verbose: bool,

    /// Work with this toolstack, whatever XENDOMAINS_TOOLSTACK says.
    ///
    /// auto: libxl of the release of Xen that runs; where there is none that is known here the command xl, else xm. Where
    /// xend runs it is always xm. status -v says which it is, and why.
    #[arg(long, global = true, value_name = "TOOLSTACK")]
    pub toolstack: Option<Toolstack>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Restore saved guests, then start the guests of the AUTO directory that don't run yet.
    Start(Output),
    /// Migrate the guests that run, save them, or shut them down.
    ///
    /// Guests with PCI devices of the host or with virtual NUMA nodes, and all guests on Arm, can't be saved or migrated.
    /// They are shut down at once.
    ///
    /// A guest of which it can't be known whether it runs on the host that it was migrated to stays suspended here and is
    /// not touched any more. start, stop and status say so, and how to decide, until somebody has decided.
    Stop(Output),
    /// Stop, then start.
    Restart(Output),
    /// The same as restart.
    Reload(Output),
    /// List the guests that run, and those that should or are saved.
    Status(Status),
    /// Watch the guests that start has started, and do what their files say when they power off, reboot or crash.
    ///
    /// One monitor does for all these guests what `xl create` leaves a process behind for with each; guests that xl has
    /// made are left to xl, and those of libvirt to libvirt. start sees to it that a monitor runs. It can be ended at any
    /// moment: the next one goes on with what it finds. While a stop is at work it restarts nothing.
    Monitor(Monitor),
    /// Say what start or stop would do now, in which order, and what it takes; touch nothing.
    ///
    /// For stop that is each guest's chain of steps with their limits, the room that the images may need and the longest
    /// time that all of it can take, but for syncing images to a disk, which has no limit.
    Plan(Plan),
    /// Look for mistakes in the settings, the guests' files and the saved images, and touch nothing.
    ///
    /// Keys of a guest's file that nobody knows, which `xl create` passes over in silence, are named with the known key
    /// that is most like them. Works on every machine; the files that a guest is booted from are only looked for on a
    /// Xen host. Drop-ins for the unit that set time limits or commands are named too.
    Check(Check),
    /// Say that the saved images of these guests are their last state: the next start restores them.
    ///
    /// start does not restore an image that it may not be safe to restore: one that an earlier start has left in its place
    /// while the guest's disks don't show whether the guest has run since, or one of whose disks seems to be another one. To go
    /// on with a memory that is older than the disks destroys the file systems on them. So be sure that the guest has not run
    /// since, or remove the image and have the guest booted.
    Accept(Accept),
    /// Print the libxl JSON that a guest configuration file means, as `xl create -n` does.
    Config(Config),
}

/// What talks to the hypervisor.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Toolstack {
    /// The first of the others that works.
    Auto,
    /// The library of Xen, in this process.
    Libxl,
    /// The command xl.
    Xl,
    /// The command xm of Xen 4.4 and earlier, with xend.
    Xm,
}

/// How `start`, `stop` and `check` answer.
#[derive(Debug, Args)]
pub struct Output {
    /// Print one JSON document at the end, instead of lines while guests are worked on.
    ///
    /// It has the fields "exit" (the exit code), "seconds" (how long everything took), "actions" and "messages", the
    /// latter two in the order in which things happened. An action has "guest", "action" (restore, start, sysrq,
    /// migrate, save, shutdown, shutdown-request, clean-up, stop), "result" (done or failed), "seconds" and "reason" (why it failed, or
    /// null). A message has "level" (error, warning or note) and "text". There may be more fields and words in later
    /// versions. What failed or is doubtful is also written to standard error, as without this option.
    #[arg(long)]
    pub json: bool,
}

/// Options of `monitor`.
#[derive(Debug, Args)]
pub struct Monitor {
    /// Leave the session, say when all guests are watched, and give the standard streams up then. For start.
    #[arg(long, hide = true)]
    pub detached: bool,
}

/// Options of `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// Which of the two.
    pub what: Planned,

    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// What can be planned.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Planned {
    /// What start would do.
    Start,
    /// What stop would do.
    Stop,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Look at these guest configuration files (xl.cfg) only, instead of everything that the settings name.
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// How it answers.
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `accept`.
#[derive(Debug, Args)]
pub struct Accept {
    /// The guests' names.
    #[arg(value_name = "GUEST", required = true)]
    pub guests: Vec<String>,
}

/// Arguments of `config`.
#[derive(Debug, Args)]
pub struct Config {
    /// The guest configuration file (xl.cfg).
    pub file: PathBuf,

    /// Read it as the xl of this release of Xen does (4.14 to 4.22), instead of the running one's.
    #[arg(long, value_name = "RELEASE", value_parser = xen_release)]
    pub xen: Option<u32>,
}

/// The minor number of "4.17".
fn xen_release(text: &str) -> Result<u32, String> {
    let minor = text.strip_prefix("4.").and_then(|minor| minor.parse().ok());
    minor.filter(|minor| (14..=22).contains(minor)).ok_or_else(|| "accepted: 4.14 to 4.22".to_owned())
}

const EXIT_CODES: &str = "\
Exit codes of start, stop, restart, reload, monitor, plan, check, accept and config:
  0  everything was done; also: this is not a Xen host (start and stop)
  1  something failed for at least one guest (check: can't be used), the settings are missing (stop) or have mistakes, or
     another xendomains is at work
  2  wrong usage
  4  not root
  5  no usable toolstack
  6  no guest was touched: the settings are missing, or start can't know SAVE, RESTORE or AUTO; check: there are mistakes
     in the settings

Exit codes of status:
  0  guests run, and every guest of the AUTO directory does
  1  guests run, but one of the AUTO directory does not, a saved image waits, or a guest may run on another host
  3  no guest runs
  4  not known: Xen can't be asked, or the settings don't say which guests should run";
