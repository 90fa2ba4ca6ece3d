//! What a scenario is: a host, what is done on it, and what must be true afterwards.
//!
//! It says nothing of whose xendomains it is for. What does not fit is a list of differences, which is what shows that a
//! script has a defect, and what ours must not have.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::dom0::{Beside, Dom0, Ended, Parts, Whose};

/// The directory of images.
const SAVE: &str = "/var/lib/xen/save";

/// The settings that a scenario has unless it says something else: those of the scripts' own files, with no pause
/// between guests, and limits that a test can wait for.
const SETTINGS: &str = "XENDOMAINS_SYSRQ=\"\"
XENDOMAINS_USLEEP=100000
XENDOMAINS_CREATE_USLEEP=0
XENDOMAINS_MIGRATE=\"\"
XENDOMAINS_SAVE=/var/lib/xen/save
XENDOMAINS_SHUTDOWN=\"--wait\"
XENDOMAINS_SHUTDOWN_ALL=\"--all --wait\"
XENDOMAINS_RESTORE=true
XENDOMAINS_AUTO=/etc/xen/auto
XENDOMAINS_AUTO_ONLY=false
XENDOMAINS_STOP_MAXWAIT=10
";

/// A host as it is at first.
#[derive(Default)]
pub struct Host {
    settings: String,
    /// Files with their text.
    files: Vec<(String, String)>,
    domains: Vec<Value>,
    dom0_gives_memory: bool,
}

impl Host {
    /// Lines behind the usual settings.
    pub fn settings(mut self, lines: &str) -> Host {
        self.settings += lines;
        self.settings.push('\n');
        self
    }

    /// A file anywhere.
    pub fn file(mut self, path: &str, text: &str) -> Host {
        self.files.push((path.to_owned(), text.to_owned()));
        self
    }

    /// A file in the directory of guests to start.
    pub fn auto(self, file: &str, guest: &str) -> Host {
        self.file(&format!("/etc/xen/auto/{file}"), &xl_cfg(guest))
    }

    /// A guest that runs.
    pub fn runs(self, name: &str) -> Host {
        self.domain(json!({ "name": name }))
    }

    /// dom0 has no fixed memory but gives some of it to guests.
    pub fn dom0_gives_memory(mut self) -> Host {
        self.dom0_gives_memory = true;
        self
    }

    /// A domain of the fake's kind. It gets the UUID that goes with its name.
    pub fn domain(mut self, mut domain: Value) -> Host {
        if let Some(name) = domain["name"].as_str().map(str::to_owned) {
            domain["uuid"] = uuid_of(&name).to_string().into();
        }
        self.domains.push(domain);
        self
    }
}

/// The UUID that a guest has in every scenario.
pub fn uuid_of(name: &str) -> Uuid {
    let mut bytes = [0x40; 16];
    name.bytes().zip(&mut bytes).for_each(|(byte, place)| *place = byte);
    Uuid::from_bytes(bytes)
}

/// A guest's xl.cfg.
pub fn xl_cfg(name: &str) -> String {
    format!(
        "name = \"{name}\"\nuuid = \"{}\"\ntype = \"pvh\"\nkernel = \"/kernel\"\nmemory = 128\n",
        uuid_of(name)
    )
}

/// What is done.
#[derive(Clone)]
pub enum Action {
    /// `xendomains` with this word.
    Xendomains(&'static str),
    /// The admin runs a command.
    Admin(&'static [&'static str]),
    /// A guest does something.
    Guest(&'static str, &'static str),
    /// The host loses its power and comes up again: no guest runs, and what is in memory (`/var/lock`) is gone.
    PowerCut,
}

/// Something that is done, with what goes wrong meanwhile, and what must be true afterwards.
pub struct Step {
    action: Action,
    faults: Value,
    beside: Option<Beside>,
    limit: u32,
    expected: Vec<Expect>,
}

impl Step {
    fn new(action: Action) -> Step {
        Step { action, faults: json!([]), beside: None, limit: 60, expected: Vec::new() }
    }

    /// A rule of the fake libxl.
    pub fn fault(mut self, rule: Value) -> Step {
        self.faults.as_array_mut().expect("an array").push(rule);
        self
    }

    pub fn beside(mut self, beside: Beside) -> Step {
        self.beside = Some(beside);
        self
    }

    /// How many seconds it may take.
    pub fn within(mut self, seconds: u32) -> Step {
        self.limit = seconds;
        self
    }

    pub fn expect<const N: usize>(mut self, expected: [Expect; N]) -> Step {
        self.expected.extend(expected);
        self
    }
}

pub fn start() -> Step {
    Step::new(Action::Xendomains("start"))
}

pub fn stop() -> Step {
    Step::new(Action::Xendomains("stop"))
}

pub fn status() -> Step {
    Step::new(Action::Xendomains("status"))
}

pub fn admin(command: &'static [&'static str]) -> Step {
    Step::new(Action::Admin(command))
}

pub fn guest(name: &'static str, does: &'static str) -> Step {
    Step::new(Action::Guest(name, does))
}

pub fn power_cut() -> Step {
    Step::new(Action::PowerCut)
}

/// What must be true after a step.
#[derive(Clone, Debug)]
pub enum Expect {
    /// It ends with this code.
    Exit(i32),
    /// It ends with a code that tells of a failure.
    Failure,
    /// These guests run, and no others.
    Run(&'static [&'static str]),
    /// This guest runs, whatever others do.
    Runs(&'static str),
    /// This guest does not run.
    Down(&'static str),
    /// Each of these runs where it was saved, and was not booted.
    Continued(&'static [&'static str]),
    /// These are the images.
    Images(&'static [&'static str]),
    /// No file is in the directory of images that is not a whole image.
    NoPartialImage,
    /// A file has these permissions.
    Mode(&'static str, u32),
    /// What the file held before the step is still in some file of its directory.
    Kept(&'static str),
    /// What it says contains this.
    Says(&'static str),
    /// What it says does not contain this.
    DoesNotSay(&'static str),
    /// This libxl function was called so many times for a guest, counted from the beginning.
    Calls(&'static str, &'static str, usize),
    /// An image that somebody wrote of this guest is whole.
    Saved(&'static str),
}

/// Runs a scenario. Returns what is not as it should be, and all that was said. No guest may ever run twice at a time, or
/// from an image that is not its last state.
pub fn run(parts: &Parts, whose: Whose, host: &Host, steps: &[Step]) -> Result<(Vec<String>, String)> {
    let dom0 = Dom0::new(parts, whose)?;
    for (path, text) in &host.files {
        dom0.write(path, text)?;
    }
    dom0.write("/etc/default/xendomains", &format!("{SETTINGS}{}", host.settings))?;
    dom0.world().host(&json!({ "domains": host.domains }));
    if host.dom0_gives_memory {
        dom0.world().host(&json!({ "xen_commandline": "placeholder" }));
    }
    let (mut differences, mut transcript) = (Vec::new(), String::new());
    for step in steps {
        let before = Before::note(&dom0, step)?;
        let (title, ended) = act(&dom0, step)?;
        let code = ended.code.map_or("killed".to_owned(), |code| format!("exit code {code}"));
        transcript += &format!("# {title}\n{}({code}, {:.1} s)\n", ended.said, ended.took.as_secs_f32());
        if ended.code.is_none() {
            differences.push(format!("{title}: has not ended within {} s", step.limit));
        }
        for expected in &step.expected {
            if let Some(difference) = difference(&dom0, &ended, &before, expected)? {
                differences.push(format!("{title}: {difference}"));
            }
        }
    }
    let violations = &dom0.world().state()["violations"];
    if *violations != json!([]) {
        differences.push(format!("in the end: {violations}"));
    }
    Ok((differences, transcript))
}

fn act(dom0: &Dom0<'_>, step: &Step) -> Result<(String, Ended)> {
    let nothing = || Ended { code: Some(0), said: String::new(), took: std::time::Duration::ZERO };
    Ok(match &step.action {
        Action::Xendomains(word) => {
            ((*word).to_owned(), dom0.xendomains(word, &step.faults, step.beside.as_ref(), step.limit)?)
        }
        Action::Admin(command) => (command.join(" "), dom0.run(command, &step.faults, None, step.limit)?),
        Action::Guest(name, does) => {
            dom0.world().guest(&json!({ "domain": name, "does": does }));
            (format!("{name}: {does}"), nothing())
        }
        Action::PowerCut => {
            for (domid, _) in guests(&dom0.world().state()) {
                dom0.world().guest(&json!({ "domain": domid, "does": "vanish" }));
            }
            fs::remove_dir_all(dom0.path("/var/lock")).context("remove /var/lock")?;
            fs::create_dir(dom0.path("/var/lock")).context("make /var/lock")?;
            ("power cut".to_owned(), nothing())
        }
    })
}

/// What files held before a step.
struct Before(Vec<(&'static str, Vec<u8>)>);

impl Before {
    fn note(dom0: &Dom0<'_>, step: &Step) -> Result<Before> {
        let kept = step.expected.iter().filter_map(|expected| match expected {
            Expect::Kept(path) => Some(*path),
            _ => None,
        });
        let read =
            |path| fs::read(dom0.path(path)).map(|bytes| (path, bytes)).with_context(|| format!("read {path}"));
        kept.map(read).collect::<Result<_>>().map(Before)
    }
}

/// All domains but dom0, by number.
fn guests(world: &Value) -> Vec<(u64, &Value)> {
    let domains = world["domains"].as_object().into_iter().flatten();
    domains
        .filter_map(|(_, domain)| Some((domain["domid"].as_u64()?, domain)))
        .filter(|(domid, _)| *domid > 0)
        .collect()
}

/// The names of the guests that run.
fn running(world: &Value) -> BTreeSet<String> {
    let runs =
        |domain: &Value| domain["shutdown"].is_null() && domain["paused"] == false && domain["dying"] == false;
    let name = |domain: &Value| domain["name"].as_str().unwrap_or("(no name)").to_owned();
    guests(world).into_iter().filter(|(_, domain)| runs(domain)).map(|(_, domain)| name(domain)).collect()
}

/// The visible files of a directory.
fn files(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

fn names(expected: &[&str]) -> BTreeSet<String> {
    expected.iter().map(|name| (*name).to_owned()).collect()
}

/// The bytes with which a whole image ends.
const END: [u8; 8] = [0; 8];

/// What is otherwise than expected.
fn difference(dom0: &Dom0<'_>, ended: &Ended, before: &Before, expected: &Expect) -> Result<Option<String>> {
    let world = dom0.world().state();
    let unless = |is: bool, text: String| (!is).then_some(text);
    let last_run = |name: &str| {
        let runs = world["runs"][uuid_of(name).to_string()].as_array().cloned().unwrap_or_default();
        runs.last().cloned().unwrap_or(Value::Null)
    };
    Ok(match expected {
        Expect::Exit(code) => unless(
            ended.code == Some(*code) || ended.code.is_none(),
            format!("exit code {:?}, not {code}", ended.code.unwrap_or(-1)),
        ),
        Expect::Failure => unless(ended.code != Some(0), "exit code 0 in spite of a failure".into()),
        Expect::Run(expected) => {
            let (real, expected) = (running(&world), names(expected));
            unless(real == expected, format!("{real:?} run, not {expected:?}"))
        }
        Expect::Runs(name) => unless(running(&world).contains(*name), format!("{name} does not run")),
        Expect::Down(name) => unless(!running(&world).contains(*name), format!("{name} runs")),
        Expect::Continued(expected) => {
            let fresh: Vec<_> = expected
                .iter()
                .filter(|name| !running(&world).contains(**name) || last_run(name)["image"].is_null())
                .collect();
            unless(fresh.is_empty(), format!("{fresh:?} did not go on where they were saved"))
        }
        Expect::Images(expected) => {
            let (real, expected) = (files(&dom0.path(SAVE)), names(expected));
            unless(real == expected, format!("the images are {real:?}, not {expected:?}"))
        }
        Expect::NoPartialImage => {
            let partial: Vec<_> = files(&dom0.path(SAVE))
                .into_iter()
                .filter(|name| fs::read(dom0.path(SAVE).join(name)).is_ok_and(|bytes| !bytes.ends_with(&END)))
                .collect();
            unless(partial.is_empty(), format!("part of an image is left: {partial:?}"))
        }
        Expect::Mode(path, mode) => {
            let real = fs::metadata(dom0.path(path)).map_or(0, |metadata| metadata.permissions().mode() & 0o7777);
            unless(real == *mode, format!("{path} has mode {real:o}, not {mode:o}"))
        }
        Expect::Kept(path) => {
            let old = before.0.iter().find(|(known, _)| known == path).map(|(_, bytes)| bytes);
            let path = dom0.path(path);
            let entries = fs::read_dir(path.parent().context("its directory")?).context("read the directory")?;
            let kept = entries.flatten().any(|entry| fs::read(entry.path()).ok().as_ref() == old);
            unless(kept, "the image that was there before is overwritten".into())
        }
        Expect::Says(text) => unless(ended.said.contains(text), format!("says nothing of {text:?}")),
        Expect::DoesNotSay(text) => unless(!ended.said.contains(text), format!("says {text:?}")),
        Expect::Calls(call, guest, count) => {
            let calls = world["calls"].as_array().into_iter().flatten();
            let real = calls.filter(|made| made["call"] == *call && made["name"] == *guest).count();
            unless(real == *count, format!("{real} calls of {call} for {guest}, not {count}"))
        }
        Expect::Saved(name) => {
            let mut images = world["images"].as_object().into_iter().flatten().map(|(_, image)| image);
            let whole = images.any(|image| image["name"] == *name && image["complete"] == true);
            unless(whole, format!("the save of {name} was cut off"))
        }
    })
}
