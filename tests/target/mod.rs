//! Another host, to which guests can be migrated: a fake libxl of its own, and a thread that receives as `xl
//! migrate-receive` does, and goes wrong where a test wants that.
//!
//! What stands in the place of ssh is a script that joins its standard input and output to the thread with two named
//! pipes, which are new ones each time.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fake_libxl::Control;
use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use xenlight::{Children, Context, DomainConfig, Library, Operation, Release};

const BANNER: &[u8] = b"xl migration receiver ready, send binary domain data.\n";
const READY: &[u8] = b"domain received, ready to unpause\0";
const GO: &[u8] = b"domain is yours, you are cleared to unpause\0";
const REPORT: &[u8] = b"my copy unpause results are as follows\0";

const RELAY: &str = "#!/bin/sh
dir=${0%/*}
case \"$3\" in info | vm-list) exec cat \"$dir/$1.$3\" ;; esac
echo \"connecting to $1: $*\" >&2
if ! [ -p \"$dir/$1.calls\" ]; then
    echo x >>\"$dir/$1.tried\"
    echo \"no route to $1\" >&2
    exit 255
fi
up=\"$dir/$$.up\" down=\"$dir/$$.down\"
mkfifo \"$up\" \"$down\"
# Open in both directions until the thread has them too, nobody waits for the other to open them.
exec 3<>\"$up\" 4<>\"$down\"
echo $$ >\"$dir/$1.calls\"
read -r opened <&4
cat <\"$down\" 3>&- 4>&- &
exec cat >\"$up\" 3>&- 4>&-
";

/// Makes the script. It is called with a host's name and the command to be run there.
pub fn relay(directory: &Path) -> PathBuf {
    let path = directory.join("relay");
    fs::write(&path, RELAY).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script");
    path
}

/// What goes wrong with one guest.
#[derive(Clone, Debug, Default)]
pub struct Wrong {
    /// It dies when it has said so many bytes.
    pub dies_after: Option<usize>,
    /// This byte of what it says is another one.
    pub byte: Option<usize>,
    /// It waits before it says this byte.
    pub waits: Option<(usize, Duration)>,
    /// It reads only so much of what it is sent and then waits for ever, or dies.
    pub reads: Option<(u64, bool)>,
    /// It can't let the guest run, and destroys it.
    pub cant_unpause: bool,
    /// It has no memory for it.
    pub no_memory: bool,
}

/// The other host.
pub struct Target {
    calls: File,
    pub control: Control,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    plans: VecDeque<Wrong>,
    /// Guests that it was offered.
    offers: usize,
    busy: bool,
    /// Nobody waits any more.
    over: bool,
}

impl Target {
    /// A host of this name, for the script in `directory`.
    pub fn new(directory: &Path, name: &str) -> Target {
        let own = directory.join(format!("{name}.host"));
        fs::create_dir(&own).expect("a directory");
        let path = fake_libxl::install(&own, "4.17");
        // SAFETY: the fake behaves like libxl.
        let library = unsafe { Library::open_in(&own, Release::new(4, 17)) }.expect("the fake opens");
        let calls = directory.join(format!("{name}.calls"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &calls, Mode::RWXU).expect("a named pipe");
        // Open in both directions it never comes to an end.
        let calls = File::options().read(true).write(true).open(&calls).expect("the named pipe");
        let lines = calls.try_clone().expect("a descriptor");
        let shared = Arc::new(Shared::default());
        let list = directory.join(format!("{name}.vm-list"));
        let (directory, of_thread) = (directory.to_owned(), Arc::clone(&shared));
        let thread = thread::spawn(move || {
            let context = Context::open(&library, Children::LibxlReapsOwn, None).expect("a connection");
            for line in BufReader::new(lines).lines() {
                let line = line.expect("a line");
                if line == "end" {
                    return;
                }
                let wrong = of_thread.begin();
                if let Ok((up, down)) = join(&directory, &line) {
                    let mut receiver =
                        Receiver { context: &context, up, down: Some(down), said: 0, wrong, shared: &of_thread };
                    let _ = receiver.receive();
                }
                fs::write(&list, guests_by_xl(&context)).expect("a file");
                of_thread.end();
            }
        });
        Target { calls, control: Control::open(&path), shared, thread: Some(thread) }
    }

    /// What goes wrong with the next guest, and with the one after that.
    pub fn next(&self, wrong: Wrong) {
        self.shared.state.lock().expect("not poisoned").plans.push_back(wrong);
    }

    /// Waits until it has done with all that it was offered, and tells how many guests that were.
    pub fn offers(&self) -> usize {
        let state = self.shared.state.lock().expect("not poisoned");
        let state = self.shared.changed.wait_while(state, |state| state.busy).expect("not poisoned");
        state.offers
    }

    /// The guests that are there: name, and whether each runs.
    pub fn guests(&self) -> Vec<(String, bool)> {
        self.offers();
        guests(&self.control.state())
    }
}

/// What `xl vm-list` says there.
fn guests_by_xl(context: &Context) -> String {
    let line = |domain: &xenlight::DomainInfo| {
        let name = context.name(domain.domid).unwrap_or_default();
        format!("{}  {}    {name}\n", domain.uuid, domain.domid)
    };
    let domains = context.list().expect("a list");
    let guests: String = domains.iter().filter(|domain| domain.domid != 0).map(line).collect();
    format!("UUID                                  ID    name\n{guests}")
}

/// This end of the pipes of a script that has said its number. It may have been killed since.
fn join(directory: &Path, number: &str) -> std::io::Result<(File, File)> {
    let open = |way: &str, flags| -> std::io::Result<File> {
        let file =
            rustix::fs::open(directory.join(format!("{number}.{way}")), flags | OFlags::NONBLOCK, Mode::empty())?;
        rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
        Ok(file.into())
    };
    let up = open("up", OFlags::RDONLY)?;
    let mut down = open("down", OFlags::WRONLY)?;
    down.write_all(b"opened\n")?;
    Ok((up, down))
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.state.lock().expect("not poisoned").over = true;
        self.shared.changed.notify_all();
        let _ = self.calls.write_all(b"end\n");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn begin(&self) -> Wrong {
        let mut state = self.state.lock().expect("not poisoned");
        state.busy = true;
        state.offers += 1;
        state.plans.pop_front().unwrap_or_default()
    }

    fn end(&self) {
        self.state.lock().expect("not poisoned").busy = false;
        self.changed.notify_all();
    }

    /// Waits, but not longer than the test lasts.
    fn wait(&self, time: Duration) {
        let state = self.state.lock().expect("not poisoned");
        let _ = self.changed.wait_timeout_while(state, time, |state| !state.over).expect("not poisoned");
    }
}

/// `xl migrate-receive`. An error is its death.
struct Receiver<'a> {
    context: &'a Context,
    up: File,
    down: Option<File>,
    said: usize,
    wrong: Wrong,
    shared: &'a Shared,
}

struct Dead;

impl From<std::io::Error> for Dead {
    fn from(_: std::io::Error) -> Dead {
        Dead
    }
}

impl From<xenlight::Error> for Dead {
    fn from(_: xenlight::Error) -> Dead {
        Dead
    }
}

impl Receiver<'_> {
    fn say(&mut self, message: &[u8]) -> Result<(), Dead> {
        for &byte in message {
            let at = self.said;
            if self.wrong.dies_after == Some(at) {
                self.down = None;
                return Err(Dead);
            }
            if let Some((_, time)) = self.wrong.waits.filter(|(when, _)| *when == at) {
                self.shared.wait(time);
            }
            let byte = if self.wrong.byte == Some(at) { byte ^ 0x20 } else { byte };
            self.down.as_mut().ok_or(Dead)?.write_all(&[byte])?;
            self.said += 1;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Dead> {
        self.say(BANNER)?;
        let mut header = [0; 52];
        self.up.read_exact(&mut header)?;
        let length = u32::from_ne_bytes([header[48], header[49], header[50], header[51]]) as usize;
        let mut text = vec![0; length];
        self.up.read_exact(&mut text)?;
        let mut config: Value = serde_json::from_slice(text.strip_suffix(b"\0").ok_or(Dead)?).map_err(|_| Dead)?;
        if self.wrong.no_memory {
            return Err(Dead);
        }
        if let Some((bytes, for_ever)) = self.wrong.reads {
            std::io::copy(&mut (&self.up).take(bytes), &mut std::io::sink())?;
            if for_ever {
                self.shared.wait(Duration::from_secs(600));
            }
            return Err(Dead);
        }
        let name = config["c_info"]["name"].as_str().ok_or(Dead)?.to_owned();
        let incoming = format!("{name}--incoming");
        config["c_info"]["name"] = incoming.clone().into();
        let config = DomainConfig::from_json(config)?;
        let domid = self.context.restore(&config, self.up.try_clone()?.into())?.wait()?;
        self.say(READY)?;
        let mut go = [0; 44];
        let told = self.up.read_exact(&mut go).is_ok() && go == GO;
        let runs = told && !self.wrong.cant_unpause && {
            self.context.rename(domid, Some(&incoming), &name)?;
            self.context.unpause(domid)?.wait()?;
            true
        };
        self.say(REPORT)?;
        if runs {
            return self.say(&[0]);
        }
        self.say(&[0xfd])?;
        self.context.destroy(domid).and_then(Operation::wait)?;
        self.say(GO)
    }
}

/// The guests of a fake host: name, and whether each runs (and is not suspended, shut down or paused).
pub fn guests(state: &Value) -> Vec<(String, bool)> {
    let mut guests: Vec<_> = state["domains"]
        .as_object()
        .expect("domains")
        .values()
        .filter(|domain| domain["domid"] != 0)
        .map(|domain| {
            let runs = domain["shutdown"].is_null() && domain["paused"] == false;
            (domain["name"].as_str().unwrap_or("(none)").to_owned(), runs)
        })
        .collect();
    guests.sort();
    guests
}
