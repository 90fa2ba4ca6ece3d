//! A stand-in for `xl`, for the scripts and for this program: the commands that they use, over the fake libxl.
//!
//! It does what xl's source of Xen 4.17 does, in the same order and with the same exit codes, where one can tell the
//! difference: what is printed and how it is laid out, what happens to files and guests when a call fails, what a signal
//! leaves behind, which locks are waited for. `resume`, which only 4.20 has, is there if `XL_STAND_IN_RESUMES` is set.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::FlockOperation;
use serde_json::Value;
use xendomains::guest_config::{GuestConfig, XenHost};
use xenlight::{
    Children, Context, DomainConfig, DomainInfo, Domid, ErrorCode, Library, Operation, Release, SaveFlags,
    ShutdownReason, Trigger,
};

/// Says why a command has failed, for standard error, and with which exit code it ends.
struct Failure(u8, String);

/// Where the libxl is, if it is not that of the hypervisor that runs.
const LIBRARY: &str = "XL_STAND_IN_LIBRARY";

type Done = Result<(), Failure>;

fn fail<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure(1, why.into()))
}

impl From<xenlight::Error> for Failure {
    fn from(error: xenlight::Error) -> Failure {
        Failure(1, error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure(1, error.to_string())
    }
}

/// Runs `xl` with these arguments.
pub fn main(arguments: &[String]) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, why)) => {
            eprintln!("{why}");
            code.into()
        }
    }
}

fn run(arguments: &[String]) -> Done {
    let Some((command, arguments)) = arguments.split_first() else { return fail("which command?") };
    let no_context = |why: String| Failure(1, format!("cannot init xl context: {why}"));
    let library = match std::env::var_os(LIBRARY) {
        // SAFETY: the fake behaves like libxl.
        Some(directory) => unsafe { Library::open_in(Path::new(&directory), Release::new(4, 17)) },
        None => Library::open_running(),
    };
    let library = library.map_err(|e| no_context(e.to_string()))?;
    let xl = Context::open(&library, Children::LibxlReapsOwn, None).map_err(|e| no_context(e.to_string()))?;
    end_powered_off_guests(&xl)?;
    let with = |flags: &str, long: &[(&str, char)]| Options::parse(arguments, flags, long);
    match command.as_str() {
        "list" => list(&xl, &with("lv", &[("long", 'l'), ("verbose", 'v')])?),
        "domid" => domid(&xl, &with("", &[])?),
        "create" => create(&xl, &with("qnpf:", &[("quiet", 'q'), ("dryrun", 'n'), ("defconfig", 'f')])?),
        "restore" => restore(&xl, &with("p", &[])?),
        "save" => save(&xl, &with("cp", &[])?),
        "migrate" => migrate(&xl, &with("es:C:", &[("live", 'l'), ("debug", 'd')])?),
        "pause" => Ok(xl.pause(find(&xl, with("", &[])?.word(0)?)?)?.wait()?),
        "unpause" => Ok(xl.unpause(find(&xl, with("", &[])?.word(0)?)?)?.wait()?),
        "destroy" => destroy(&xl, &with("f", &[])?),
        "rename" => rename(&xl, &with("", &[])?),
        "info" => info(&xl),
        "resume" if std::env::var_os("XL_STAND_IN_RESUMES").is_some() => {
            let _ = xl.resume(find(&xl, with("", &[])?.word(0)?)?, true).and_then(Operation::wait);
            Ok(())
        }
        "shutdown" => shutdown(&xl, &with("awF", &[("all", 'a'), ("wait", 'w')])?),
        "sysrq" => {
            let options = with("", &[])?;
            let letter = options.word(1)?.chars().next().unwrap_or(' ');
            Ok(xl.sysrq(find(&xl, options.word(0)?)?, letter)?)
        }
        _ => fail("command not implemented"),
    }
}

/// What xl's daemons do, one of which waits for each guest that `xl` has started: a guest that has powered off or
/// crashed is destroyed. Nobody can tell whether that happened just now or when the guest ended.
fn end_powered_off_guests(xl: &Context) -> Done {
    // That there is no list is for the command to find out.
    for domain in xl.list().unwrap_or_default() {
        if let (Some(ShutdownReason::Poweroff | ShutdownReason::Crash), false) = (domain.shutdown, domain.dying) {
            // Another of them may do the same at the same time.
            let _ = xl.destroy(domain.domid).and_then(Operation::wait);
        }
    }
    Ok(())
}

/// A command's options, wherever they stand, and its other words.
struct Options {
    flags: Vec<(char, String)>,
    words: Vec<String>,
}

impl Options {
    /// As getopt_long: a letter of `flags` that has a colon behind it takes a value.
    fn parse(arguments: &[String], flags: &str, long: &[(&str, char)]) -> Result<Options, Failure> {
        let mut options = Options { flags: Vec::new(), words: Vec::new() };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let letters: Vec<char> = match (argument.strip_prefix("--"), argument.strip_prefix('-')) {
                (Some(name), _) => long.iter().filter(|(known, _)| *known == name).map(|(_, c)| *c).collect(),
                (None, Some(letters)) if !letters.is_empty() => letters.chars().collect(),
                _ => {
                    options.words.push(argument.clone());
                    continue;
                }
            };
            let known = |letter: &char| *letter != ':' && flags.contains(*letter);
            if letters.is_empty() || !letters.iter().all(known) {
                return Err(Failure(2, format!("option `{argument}' not supported.")));
            }
            for letter in letters {
                let takes_value = flags.contains(&format!("{letter}:"));
                let value =
                    if takes_value { arguments.next().cloned().unwrap_or_default() } else { String::new() };
                options.flags.push((letter, value));
            }
        }
        Ok(options)
    }

    fn has(&self, letter: char) -> bool {
        self.value(letter).is_some()
    }

    fn value(&self, letter: char) -> Option<&str> {
        self.flags.iter().rev().find(|(flag, _)| *flag == letter).map(|(_, value)| value.as_str())
    }

    fn word(&self, number: usize) -> Result<&str, Failure> {
        self.words.get(number).map(String::as_str).ok_or_else(|| Failure(2, "too few arguments".into()))
    }
}

/// The domain of that number, which need not exist, or of that name.
fn find(xl: &Context, word: &str) -> Result<Domid, Failure> {
    if let Ok(domid) = word.parse() {
        return Ok(domid);
    }
    match xl.find(word)? {
        Some(domid) => Ok(domid),
        None => fail(format!("{word} is an invalid domain identifier")),
    }
}

fn list(xl: &Context, options: &Options) -> Done {
    let Ok(domains) = xl.list() else { return fail("libxl_list_domain failed.") };
    if !options.has('l') {
        print!("Name                                        ID   Mem VCPUs\tState\tTime(s)");
        println!(
            "{}",
            if options.has('v') { "   UUID                            Reason-Code\tSecurity Label" } else { "" }
        );
        for domain in domains {
            let name = xl.name(domain.domid).unwrap_or_else(|| "(null)".into());
            print!("{name:<40} {:>5} {:>5} ", domain.domid, (domain.current_kib + domain.outstanding_kib) / 1024);
            let seconds = domain.cpu_time.as_secs_f64();
            print!("{:>5}     {}  {seconds:>8.1}", domain.vcpus_online, state(&domain));
            if options.has('v') {
                let reason = domain.shutdown.map_or("-".to_owned(), |why| format!("{:x}", code(why)));
                print!(" {} {reason:>8} {:>16}", domain.uuid, "-");
            }
            println!();
        }
        return Ok(());
    }
    let mut domains = domains;
    if let Ok(word) = options.word(0) {
        let wanted = find(xl, word)?;
        domains.retain(|domain| domain.domid == wanted);
    }
    let mut details = Vec::new();
    for domain in domains {
        // A domain that libxl has no configuration of is not shown. One with a device model never has one.
        if xl.stubdom_target(domain.domid).is_some() {
            continue;
        }
        let config = xl.configuration(domain.domid).and_then(Operation::wait);
        if let Ok(config) = config {
            let entry = [("domid", domain.domid.into()), ("config", config.into_json())];
            details.push(Value::Object(entry.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()));
        }
    }
    println!("{}", json_text(&Value::Array(details)));
    Ok(())
}

/// A shutdown's reason as libxl numbers it.
fn code(why: ShutdownReason) -> i32 {
    match why {
        ShutdownReason::Poweroff => 0,
        ShutdownReason::Reboot => 1,
        ShutdownReason::Suspend => 2,
        ShutdownReason::Crash => 3,
        ShutdownReason::Watchdog => 4,
        ShutdownReason::SoftReset => 5,
        ShutdownReason::Other(code) => code,
        _ => -1,
    }
}

/// The six letters of the table.
fn state(domain: &DomainInfo) -> String {
    let flag = |is: bool, letter: char| if is { letter } else { '-' };
    let why = domain.shutdown.map_or(0, code);
    let why = usize::try_from(why).ok().and_then(|why| "-rscwS".chars().nth(why)).unwrap_or('?');
    let is_down = domain.shutdown.is_some();
    [
        '-',
        flag(!is_down && !domain.paused && !domain.dying, 'b'),
        flag(domain.paused, 'p'),
        flag(is_down, 's'),
        why,
        flag(domain.dying, 'd'),
    ]
    .iter()
    .collect()
}

fn destroy(xl: &Context, options: &Options) -> Done {
    let domid = find(xl, options.word(0)?)?;
    xl.destroy(domid).and_then(Operation::wait).map_err(|e| Failure(1, format!("{e}\ndestroy failed")))
}

fn rename(xl: &Context, options: &Options) -> Done {
    let (domid, name) = (find(xl, options.word(0)?)?, options.word(1)?);
    Ok(xl.rename(domid, None, name)?)
}

fn info(xl: &Context) -> Done {
    let host = xl.host_cpus()?;
    println!("host                   : dom0\nnr_cpus                : {}", host.online);
    println!("max_cpu_id             : {}\nnr_nodes               : {}", host.count.saturating_sub(1), host.nodes);
    println!("cpu_topology           :\ncpu:    core    socket     node");
    for (cpu, node) in host.node_of.iter().enumerate() {
        if let Some(node) = node {
            println!("{cpu:3}:    {cpu:4}     {node:4}     {node:4}");
        }
    }
    println!("device topology        :\ndevice           node\nNo device topology data available");
    Ok(())
}

fn domid(xl: &Context, options: &Options) -> Done {
    match xl.find(options.word(0)?)? {
        Some(domid) => println!("{domid}"),
        None => return fail("Can't get domid of domain name, maybe this domain does not exist."),
    }
    Ok(())
}

/// JSON as libxl prints it. The scripts read it line by line, so that the order of keys counts: libxl's, for those that
/// they look at.
fn json_text(value: &Value) -> String {
    let mut text = String::new();
    write_json(&mut text, value, "\n");
    text
}

/// `line` is the break that leads to the line on which the value begins, with its indentation.
fn write_json(text: &mut String, value: &Value, line: &str) {
    const ORDER: &[&str] = &["domid", "config", "c_info", "b_info", "type", "devid", "name", "uuid"];
    let place = |key: &str| ORDER.iter().position(|known| *known == key).unwrap_or(ORDER.len());
    let (open, close, parts): (char, char, Vec<(String, &Value)>) = match value {
        Value::Object(object) => {
            let mut members: Vec<_> = object.iter().collect();
            members.sort_by_key(|(key, _)| place(key));
            ('{', '}', members.into_iter().map(|(key, value)| (format!("\"{key}\": "), value)).collect())
        }
        Value::Array(elements) => ('[', ']', elements.iter().map(|value| (String::new(), value)).collect()),
        plain => return text.push_str(&plain.to_string()),
    };
    text.push(open);
    let inner = format!("{line}    ");
    for (number, (key, part)) in parts.into_iter().enumerate() {
        text.push_str(if number > 0 { "," } else { "" });
        text.push_str(&inner);
        text.push_str(&key);
        write_json(text, part, &inner);
    }
    text.push_str(line);
    text.push(close);
}

/// xl's lock, under which it takes memory from dom0 and builds a guest, on a host whose dom0 has no fixed memory. It is
/// waited for without limit.
fn lock_memory(xl: &Context) -> Result<Option<File>, Failure> {
    if xl.version()?.commandline.contains("dom0_mem") {
        return Ok(None);
    }
    let file = OpenOptions::new().create(true).truncate(false).write(true).open("/var/lock/xl")?;
    rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive).map_err(std::io::Error::from)?;
    Ok(Some(file))
}

fn create(xl: &Context, options: &Options) -> Done {
    let path = match options.value('f') {
        Some(path) => path,
        None => options.word(0)?,
    };
    let mut text = std::fs::read(path)?;
    // Settings on the command line come behind the file.
    for word in options.words.iter().filter(|word| word.contains('=')) {
        text.extend(format!("\n{word}\n").bytes());
    }
    let host = XenHost::default();
    let config = GuestConfig::parse(Path::new(path), &text, &host).map_err(|e| Failure(1, e.to_string()))?;
    if options.has('n') {
        println!("{}", json_text(&config.json));
        return Ok(());
    }
    let lock = lock_memory(xl)?;
    let config = DomainConfig::from_json(config.json)?;
    // The exit code is libxl's error without its sign.
    let failed = |e: xenlight::Error| Failure(3, e.to_string());
    let domid = xl.create(&config).and_then(Operation::wait).map_err(failed)?;
    drop(lock);
    let_run(xl, domid, options)
}

/// Unless it is to stay paused.
fn let_run(xl: &Context, domid: Domid, options: &Options) -> Done {
    if options.has('p') {
        return Ok(());
    }
    Ok(xl.unpause(domid)?.wait()?)
}

/// What stands at the start of an image.
const MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";

fn restore(xl: &Context, options: &Options) -> Done {
    let mut file = File::open(options.word(0)?)?;
    let mut header = [0; 48];
    file.read_exact(&mut header)?;
    if header[..32] != *MAGIC {
        return fail("File has wrong magic number - corrupt or for a different tool?");
    }
    let length = u32::from_ne_bytes([header[44], header[45], header[46], header[47]]);
    let mut data = vec![0; length as usize];
    file.read_exact(&mut data)?;
    let text = data.get(4..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
    let config = DomainConfig::from_text(&String::from_utf8_lossy(text))?;
    let lock = lock_memory(xl)?;
    let domid = xl.restore(&config, file.into())?.wait()?;
    drop(lock);
    let_run(xl, domid, options)
}

/// The configuration that a save or a migration sends along.
fn configuration(xl: &Context, domid: Domid) -> Result<Value, Failure> {
    let config = xl.configuration(domid).and_then(Operation::wait);
    config.map(DomainConfig::into_json).map_err(|_| Failure(1, "unable to retrieve domain configuration".into()))
}

/// What comes before libxl's stream.
fn header(config: &Value) -> Result<Vec<u8>, Failure> {
    let text = config.to_string();
    let length = u32::try_from(text.len() + 1).map_err(|_| Failure(1, "too long".into()))?;
    let mut header = MAGIC.to_vec();
    for word in [0x0102_0304, 3, 0, length + 4, length] {
        header.extend(u32::to_ne_bytes(word));
    }
    header.extend(text.as_bytes());
    header.push(0);
    Ok(header)
}

fn save(xl: &Context, options: &Options) -> Done {
    let (domid, path) = (find(xl, options.word(0)?)?, options.word(1)?);
    let config = match options.words.get(2) {
        None => configuration(xl, domid)?,
        Some(file) => GuestConfig::read(Path::new(file), &XenHost::default())
            .map(|config| config.json)
            .map_err(|_| Failure(1, "unable to read overridden config file".into()))?,
    };
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.write_all(&header(&config)?)?;
    if let Err(error) = xl.save(domid, file.into(), SaveFlags::default()).and_then(Operation::wait) {
        eprintln!("Failed to save domain, resuming domain");
        let _ = xl.resume(domid, true).and_then(Operation::wait);
        return Err(error.into());
    }
    if options.has('p') || options.has('c') {
        if options.has('p') {
            let _ = xl.pause(domid).and_then(Operation::wait);
        }
        let _ = xl.resume(domid, true).and_then(Operation::wait);
        return Ok(());
    }
    let _ = xl.destroy(domid).and_then(Operation::wait);
    Ok(())
}

const BANNER: &[u8] = b"xl migration receiver ready, send binary domain data.\n";
const READY: &[u8] = b"domain received, ready to unpause\0";
const GO: &[u8] = b"domain is yours, you are cleared to unpause\0";
const REPORT: &[u8] = b"my copy unpause results are as follows\0";

/// Migrates to what `-s` names.
fn migrate(xl: &Context, options: &Options) -> Done {
    let (domid, host) = (find(xl, options.word(0)?)?, options.word(1)?);
    let config = configuration(xl, domid)?;
    let ssh = options.value('s').unwrap_or("ssh");
    let command =
        if ssh.is_empty() { format!("exec {host}") } else { format!("exec {ssh} {host} xl migrate-receive") };
    let mut child =
        Command::new("sh").args(["-c", &command]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (to, from) = (child.stdin.take(), child.stdout.take());
    let (Some(mut to), Some(mut from)) = (to, from) else { return fail("no pipes") };
    let mut expect = |message: &[u8], what: &str| -> Done {
        let mut found = vec![0; message.len()];
        let read = from.read_exact(&mut found);
        if read.is_ok() && found == message {
            return Ok(());
        }
        fail(format!("libxl: error: reading {what} from migration receiver stream"))
    };
    expect(BANNER, "banner")?;
    to.write_all(&header(&config)?)?;
    let stream = to.as_fd().try_clone_to_owned()?;
    let run_on = |why: &str| -> Done {
        eprintln!("Migration failed, resuming at sender.");
        let _ = xl.resume(domid, true).and_then(Operation::wait);
        fail(why)
    };
    if let Err(error) = xl.save(domid, stream, SaveFlags { live: true, debug: false }).and_then(Operation::wait) {
        drop(to);
        return run_on(&error.to_string());
    }
    if let Err(Failure(_, why)) = expect(READY, "ready message") {
        drop(to);
        return run_on(&why);
    }
    let name = xl.name(domid).unwrap_or_default();
    let away = format!("{name}--migratedaway");
    if let Err(error) = xl.rename(domid, Some(&name), &away) {
        drop(to);
        return run_on(&error.to_string());
    }
    let badly = |why: String| -> Done {
        fail(format!("** Migration failed during final handshake **\nDomain state is now undefined !\n{why}"))
    };
    if let Err(error) = to.write_all(GO) {
        return badly(error.to_string());
    }
    let mut status = [0];
    if let Err(Failure(_, why)) = expect(REPORT, "success/failure report message") {
        return badly(why);
    }
    if let Err(error) = from.read_exact(&mut status) {
        return badly(error.to_string());
    }
    if status != [0] {
        let mut permission = vec![0; GO.len()];
        if from.read_exact(&mut permission).is_err() || permission != GO {
            return badly("permission for sender to resume is missing".to_owned());
        }
        let _ = xl.rename(domid, Some(&away), &name);
        return run_on("target reports that it can't let the domain run");
    }
    let _ = xl.destroy(domid).and_then(Operation::wait);
    drop(to);
    let _ = child.wait();
    Ok(())
}

/// An error as libxl numbers it.
fn number(code: Option<ErrorCode>) -> i32 {
    (-40..0).find(|&raw| Some(ErrorCode::from_raw(raw)) == code).unwrap_or(-3)
}

/// Asks one guest; with `all`, one guest after the other. The first that can't be asked ends it.
fn shutdown(xl: &Context, options: &Options) -> Done {
    let domains = if options.has('a') {
        let Ok(mut domains) = xl.list() else { return fail("libxl_list_domain failed.") };
        domains.retain(|domain| domain.domid != 0 && !domain.never_stop);
        domains.into_iter().map(|domain| domain.domid).collect()
    } else {
        vec![find(xl, options.word(0)?)?]
    };
    let events = xl.domain_events();
    for domid in &domains {
        eprintln!("Shutting down domain {domid}");
        let uuid = xl.info(*domid).map(|info| info.uuid).unwrap_or_default();
        match xl.shutdown(*domid).and_then(Operation::wait) {
            Err(e) if e.code() == Some(ErrorCode::NoParavirt) && options.has('F') => {
                xl.trigger(*domid, Trigger::Power, 0)?.wait()?;
            }
            Err(e) => return fail(format!("{e}\nshutdown failed (rc={})", number(e.code()))),
            Ok(()) => {}
        }
        if options.has('w') {
            events.watch(*domid, uuid)?;
        }
    }
    let mut waiting: HashSet<Domid> = domains.into_iter().filter(|_| options.has('w')).collect();
    while !waiting.is_empty() {
        if let Some(event) = events.next_until(None)? {
            waiting.remove(&event.domid);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_laid_out_as_the_scripts_expect_it() {
        let domain = json!({"config": {"c_info": {"name": "web", "type": "pv", "uuid": "u"}}, "domid": 1});
        let expected = r#"[
    {
        "domid": 1,
        "config": {
            "c_info": {
                "type": "pv",
                "name": "web",
                "uuid": "u"
            }
        }
    }
]"#;
        assert_eq!(json_text(&json!([domain])), expected);
    }

    #[test]
    fn options_stand_anywhere() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            Options::parse(&words, "qnf:w", &[("quiet", 'q'), ("defconfig", 'f'), ("wait", 'w')])
        };
        let Ok(options) = parse("1 --wait -qn --defconfig file") else { panic!("it is known") };
        assert!(options.has('w') && options.has('q') && options.has('n') && !options.has('x'));
        assert_eq!((options.words, options.flags.last()), (vec!["1".to_owned()], Some(&('f', "file".to_owned()))));
        assert!(parse("--halt").is_err_and(|failure| failure.0 == 2));
    }
}
