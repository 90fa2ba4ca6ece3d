//! A stand-in for `xm` and for the xend behind it: the commands that this program uses, over the fake libxl.
//!
//! This is NOT xm. There is no xm any more that could be run; this one was written from the source of Xen 4.2 and from
//! what users have published of their sessions: what is printed and how it is laid out, what happens to guests and files,
//! and with which exit code a command ends. As with xend,
//! - a guest that has come to its end is removed by xend, and one that reboots is built anew;
//! - a save removes the guest as soon as its image is written, and resumes it when that fails;
//! - a list also has the domains that are only defined: those of the file that `XM_STAND_IN_MANAGED` names;
//! - a guest's file is a program. Of Python, it knows lines that assign texts put together with `+`.
//!
//! What is not as with xend: when the command is killed, nobody goes on with what it was doing.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;
use xendomains::guest_config::{GuestConfig, XenHost};
use xendomains::sxp::Sxp;
use xenlight::{Children, Context, DomainConfig, Domid, Library, Operation, Release, SaveFlags, ShutdownReason};

type Done = Result<(), String>;

/// Runs `xm` with these arguments.
pub fn main(arguments: &[String]) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("Error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Done {
    let Some((command, arguments)) = arguments.split_first() else { return Err("which command?".into()) };
    let unable = |why: xenlight::Error| format!("Unable to connect to xend: {why}");
    let directory = std::env::var("XL_STAND_IN_LIBRARY").map_err(|e| e.to_string())?;
    // SAFETY: the fake behaves like libxl.
    let library =
        unsafe { Library::open_in(Path::new(&directory), Release::new(4, 17)) }.map_err(|e| e.to_string())?;
    let xend = Context::open(&library, Children::LibxlReapsOwn, None).map_err(unable)?;
    end_guests(&xend);
    let (options, words): (Vec<&String>, Vec<&String>) = arguments.iter().partition(|word| word.starts_with('-'));
    let has = |option: &str| options.iter().any(|word| *word == option);
    let word = |number: usize| words.get(number).map(|word| word.as_str()).ok_or("Wrong number of parameters");
    match command.as_str() {
        "list" if has("-l") => list(&xend),
        "info" => info(&xend),
        "create" => create(&xend, word(0)?, &words[1..], has("-n"), has("-p")),
        "restore" => restore(&xend, word(0)?, has("-p")),
        "save" => save(&xend, find(&xend, word(0)?)?, word(1)?),
        "unpause" => done(xend.unpause(find(&xend, word(0)?)?)),
        "destroy" => done(xend.destroy(find(&xend, word(0)?)?)),
        // Whether the guest hears it is not waited for.
        "shutdown" if has("--halt") => xend.shutdown(find(&xend, word(0)?)?).map(drop).map_err(text),
        "rename" => xend.rename(find(&xend, word(0)?)?, None, word(1)?).map_err(text),
        "sysrq" => xend.sysrq(find(&xend, word(0)?)?, word(1)?.chars().next().unwrap_or(' ')).map_err(text),
        _ => Err(format!("Subcommand {command} not found!")),
    }
}

fn text(error: xenlight::Error) -> String {
    error.to_string()
}

fn done<T: Send>(operation: xenlight::Result<Operation<T>>) -> Done {
    operation.and_then(Operation::wait).map(drop).map_err(text)
}

/// What xend does all the time, and this only when a command is given.
fn end_guests(xend: &Context) {
    for domain in xend.list().unwrap_or_default() {
        let ended = domain.shutdown.is_some_and(|why| why != ShutdownReason::Suspend);
        if ended && !domain.dying {
            // Another command may do the same at the same time.
            let _ = xend.destroy(domain.domid).and_then(Operation::wait);
        }
    }
}

fn find(xend: &Context, word: &str) -> Result<Domid, String> {
    let known = |domid: &Domid| xend.info(*domid).is_ok();
    let number = word.parse().ok().filter(known);
    let found = number.or_else(|| xend.find(word).ok().flatten());
    found.ok_or_else(|| format!("Domain '{word}' does not exist."))
}

/// A text as an atom.
fn atom(text: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "-_./:@".contains(letter);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n"))
}

fn describe(xend: &Context, domid: Domid) -> Result<String, String> {
    let info = xend.info(domid).map_err(text)?;
    let flag = |is: bool, letter: char| if is { letter } else { '-' };
    let suspended = info.shutdown.is_some();
    let letters: String = [
        '-',
        flag(!suspended && !info.paused, 'b'),
        flag(info.paused, 'p'),
        flag(suspended, 's'),
        flag(info.shutdown == Some(ShutdownReason::Crash), 'c'),
        flag(info.dying, 'd'),
    ]
    .iter()
    .collect();
    let mut sxp = String::new();
    let _ = write!(
        sxp,
        "(domain\n    (domid {domid})\n    (cpu_weight 256)\n    (bootloader )\n    (uuid {})\n    (vcpus {})\n    (name {})\n    \
         (cpus (()))\n    (maxmem {})\n    (memory {})\n    (features '')\n    (cpu_time {:.9})\n    (online_vcpus {})\n    \
         (image (linux (kernel '')))\n    (status 2)\n    (state {letters})\n",
        info.uuid,
        info.vcpus_online,
        atom(&xend.name(domid).unwrap_or_default()),
        info.max_kib / 1024,
        info.current_kib / 1024,
        info.cpu_time.as_secs_f64(),
        info.vcpus_online,
    );
    Ok(sxp + ")")
}

fn list(xend: &Context) -> Done {
    let domains = xend.list().map_err(text)?;
    for domain in domains {
        // It may go away meanwhile.
        if let Ok(sxp) = describe(xend, domain.domid) {
            println!("{sxp}");
        }
    }
    if let Some(managed) = std::env::var_os("XM_STAND_IN_MANAGED") {
        print!("{}", std::fs::read_to_string(managed).unwrap_or_default());
    }
    Ok(())
}

fn info(xend: &Context) -> Done {
    let host = xend.host_cpus().map_err(text)?;
    println!(
        "host                   : dom0\nnr_cpus                : {}\nnr_nodes               : 1",
        host.online
    );
    println!("node_to_cpu            : node0:0-{}", host.online.saturating_sub(1));
    Ok(())
}

/// Reads a guest's file: with the grammar of xl, which is a part of Python's, or else as little of Python as is needed.
fn read(path: &str, settings: &[&String]) -> Result<GuestConfig, String> {
    let mut text = std::fs::read_to_string(path).map_err(|_| format!("Unable to open config file: {path}"))?;
    let host = XenHost::default();
    if GuestConfig::parse(Path::new(path), text.as_bytes(), &host).is_err() {
        text = text.lines().map(evaluate).collect::<Result<Vec<_>, _>>()?.join("\n");
    }
    for (name, value) in settings.iter().filter_map(|setting| setting.split_once('=')) {
        let _ = write!(text, "\n{name} = \"{value}\"\n");
    }
    GuestConfig::parse(Path::new(path), text.as_bytes(), &host).map_err(|e| e.to_string())
}

/// `a = 'b' + "c"` becomes `a = "bc"`.
fn evaluate(line: &str) -> Result<String, String> {
    let Some((name, value)) = line.split_once('=') else {
        let known = line.trim().is_empty() || line.starts_with("import ") || line.starts_with('#');
        return if known { Ok(String::new()) } else { Err(format!("invalid syntax: {line}")) };
    };
    if !value.contains('+') {
        return Ok(line.to_owned());
    }
    let part = |part: &str| {
        let part = part.trim();
        let quote = part.chars().next().filter(|quote| "'\"".contains(*quote))?;
        part.strip_prefix(quote)?.strip_suffix(quote).map(str::to_owned)
    };
    let parts: Option<String> = value.split('+').map(part).collect();
    let text = parts.ok_or_else(|| format!("name is not defined: {line}"))?;
    Ok(format!("{name}= \"{text}\""))
}

fn create(xend: &Context, path: &str, settings: &[&String], dry: bool, paused: bool) -> Done {
    let guest = read(path, settings)?;
    println!("Using config file \"{path}\".");
    if dry {
        let uuid = if guest.uuid_given { format!("\n    (uuid {})", guest.uuid) } else { String::new() };
        println!(
            "(vm\n    (name {})\n    (memory 128){uuid}\n    (image (linux (kernel /boot/vmlinuz)))\n)",
            atom(&guest.name)
        );
        return Ok(());
    }
    let config = DomainConfig::from_json(guest.json).map_err(text)?;
    let domid = xend.create(&config).and_then(Operation::wait).map_err(text)?;
    println!("Started domain {} (id={domid})", guest.name);
    if paused { Ok(()) } else { done(xend.unpause(domid)) }
}

const MAGIC: &[u8; 16] = b"LinuxGuestRecord";

fn save(xend: &Context, domid: Domid, path: &str) -> Done {
    let config = xend.configuration(domid).and_then(Operation::wait).map_err(text)?.into_json();
    let mut sxp = describe(xend, domid)?;
    sxp.pop();
    // What the fake needs to build the guest again.
    let _ = write!(sxp, "    (stand_in {}))", atom(&config.to_string()));
    let length = u32::try_from(sxp.len()).map_err(|e| e.to_string())?;
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        file.write_all(MAGIC)?;
        file.write_all(&length.to_be_bytes())?;
        file.write_all(sxp.as_bytes())?;
        Ok::<_, std::io::Error>(file)
    };
    let file = write().map_err(|e| format!("could not write guest state file: {e}"))?;
    if let Err(error) = xend.save(domid, file.into(), SaveFlags::default()).and_then(Operation::wait) {
        let _ = xend.resume(domid, true).and_then(Operation::wait);
        return Err(format!("/usr/lib/xen/bin/xc_save failed: {error}"));
    }
    done(xend.destroy(domid))
}

fn restore(xend: &Context, path: &str, paused: bool) -> Done {
    let unable = |why: &dyn std::fmt::Display| format!("Restore failed: {why}");
    let mut file = File::open(path).map_err(|_| format!("xm restore: Unable to read file {path}"))?;
    let mut header = [0; 20];
    file.read_exact(&mut header).map_err(|e| unable(&e))?;
    if header[..16] != *MAGIC {
        return Err("not a valid guest state file: found no signature".into());
    }
    let length = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    let mut sxp = vec![0; length as usize];
    file.read_exact(&mut sxp).map_err(|e| unable(&e))?;
    let all = Sxp::parse_all(&sxp)?;
    let config = all.first().and_then(|domain| domain.value("stand_in")).ok_or("no configuration in it")?;
    let config: Value = serde_json::from_str(config).map_err(|e| unable(&e))?;
    let config = DomainConfig::from_json(config).map_err(|e| unable(&e))?;
    let domid = xend.restore(&config, file.into()).and_then(Operation::wait).map_err(|e| unable(&e))?;
    if paused { Ok(()) } else { done(xend.unpause(domid)) }
}
