//! A toolstack in memory: it keeps domains, does what it is told, writes down every call, and fails where a test says
//! so.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::Run;
use crate::guest_config::{Cpus, GuestConfig, XenHost};
use crate::host::{Host, fake_dom0};
use crate::image::{Guest, Image, NewImage, SaveDirectory, Saved};
use crate::interrupt::Interrupt;
use crate::report::{Buffer, Exit, Reporter};
use crate::settings::Settings;
use crate::toolstack::{AfterSave, Domain, Domid, Ending, Error, Made, Note, ShutdownReason, State, Toolstack};

/// How a call goes wrong, or differently.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// It fails.
    Fails,
    /// It fails so many times, for a reason that passes.
    IsBusy(u32),
    /// It fails at its deadline.
    TimesOut,
    /// It fails and leaves the guest suspended.
    LeavesSuspended,
    /// (shutdown) The guest comes back with a new id.
    Reboots,
    /// The same, each time.
    KeepsRebooting,
    /// (sysrq, request_shutdown) The guest shuts down.
    PowersOff,
}

#[derive(Default)]
pub(crate) struct Mock {
    world: Mutex<World>,
    /// The SAVE directory, to see whether an image is in place when its guest begins to run.
    save: PathBuf,
    /// `None`: suspended.
    pub(super) after_save: Option<AfterSave>,
}

#[derive(Default)]
struct World {
    domains: Vec<Domain>,
    last_domid: Domid,
    calls: Vec<String>,
    faults: HashMap<String, Fault>,
    /// By name.
    configurations: HashMap<String, Value>,
    /// The time that each save and shutdown was given.
    limits: HashMap<String, Option<Duration>>,
}

/// The same name gets the same UUID.
pub(super) fn uuid_of(name: &str) -> Uuid {
    Uuid::from_u128(name.bytes().fold(1, |sum: u128, byte| sum.wrapping_mul(31) + u128::from(byte)))
}

impl World {
    fn add(&mut self, name: &str, uuid: Uuid, state: State) -> Domid {
        self.last_domid += 1;
        self.domains.push(Domain {
            domid: self.last_domid,
            uuid,
            name: Some(name.to_owned()),
            state,
            never_stop: false,
            stubdom: false,
            memory_kib: 1024,
            max_memory_kib: 2048,
            vcpus: 1,
            cpu_time: Duration::from_millis(1500),
            uptime: Some(Duration::from_secs(90061)),
        });
        self.last_domid
    }

    /// A domain that has not run yet.
    fn make(&mut self, name: &str, uuid: Uuid, made: &Made) -> Domid {
        let domid = self.add(name, uuid, State::Paused);
        self.domains.iter_mut().filter(|domain| domain.domid == domid).for_each(|domain| {
            domain.cpu_time = Duration::ZERO;
        });
        made(domid);
        domid
    }

    fn name(&self, domid: Domid) -> String {
        let domain = self.domains.iter().find(|domain| domain.domid == domid);
        domain.and_then(|domain| domain.name.clone()).unwrap_or_else(|| format!("gone {domid}"))
    }

    fn set(&mut self, domid: Domid, state: State) {
        for domain in self.domains.iter_mut().filter(|domain| domain.domid == domid) {
            domain.state = state;
        }
    }

    /// Writes the call down, and fails if a test wants that.
    fn call(&mut self, action: &'static str, name: &str) -> Result<Option<Fault>, Error> {
        self.calls.push(format!("{action} {name}"));
        let call = format!("{action} {name}");
        let fault = self.faults.get(&call).copied();
        match fault {
            Some(Fault::IsBusy(0 | 1)) => drop(self.faults.remove(&call)),
            Some(Fault::IsBusy(times)) => drop(self.faults.insert(call, Fault::IsBusy(times - 1))),
            _ => {}
        }
        match fault {
            Some(fault @ (Fault::Fails | Fault::IsBusy(_) | Fault::TimesOut | Fault::LeavesSuspended)) => {
                Err(Error {
                    action,
                    cause: format!("{fault:?}"),
                    timed_out: fault == Fault::TimesOut,
                    left_suspended: fault == Fault::LeavesSuspended,
                    transient: matches!(fault, Fault::IsBusy(_) | Fault::TimesOut),
                })
            }
            fault => Ok(fault),
        }
    }
}

impl Mock {
    pub(crate) fn domain(&self, name: &str, state: State) -> Domid {
        self.with(|world| world.add(name, uuid_of(name), state))
    }

    pub(super) fn change(&self, domid: Domid, change: impl FnOnce(&mut Domain)) {
        self.with(|world| world.domains.iter_mut().find(|domain| domain.domid == domid).map(change));
    }

    pub(super) fn fault(&self, call: &str, fault: Fault) {
        self.with(|world| world.faults.insert(call.to_owned(), fault));
    }

    pub(super) fn get(&self, domid: Domid) -> Domain {
        self.with(|world| world.domains.iter().find(|domain| domain.domid == domid).cloned().expect("known"))
    }

    pub(super) fn get_by_name(&self, name: &str) -> Domain {
        let is_it = |domain: &&Domain| domain.name.as_deref() == Some(name);
        self.with(|world| world.domains.iter().find(is_it).cloned().expect("known"))
    }

    pub(super) fn configure(&self, name: &str, configuration: Value) {
        self.with(|world| world.configurations.insert(name.to_owned(), configuration));
    }

    pub(super) fn no_fault(&self, call: &str) {
        self.with(|world| world.faults.remove(call));
    }

    /// What was called, without looking at the list of domains.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.with(|world| world.calls.clone())
    }

    /// What was called for this guest.
    pub(super) fn calls_of(&self, guest: &str) -> Vec<String> {
        let mut calls = self.calls();
        calls.retain(|call| call.split(' ').nth(1) == Some(guest));
        calls
    }

    pub(super) fn limit(&self, call: &str) -> Option<Duration> {
        self.with(|world| world.limits[call])
    }

    /// `name state`, sorted.
    pub(super) fn left(&self) -> Vec<String> {
        let mut left = self.with(|world| {
            let shown = |domain: &Domain| format!("{} {:?}", domain.name.as_deref().unwrap_or("-"), domain.state);
            world.domains.iter().map(shown).collect::<Vec<_>>()
        });
        left.sort();
        left
    }

    fn with<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.world.lock().expect("whole"))
    }
}

impl Toolstack for Mock {
    fn describe(&self) -> String {
        "mock 1".to_owned()
    }

    fn after_save(&self) -> AfterSave {
        self.after_save.unwrap_or(AfterSave::Suspended)
    }

    fn xen_release(&self) -> Option<u32> {
        None
    }

    fn cpus(&self) -> Result<Cpus, Error> {
        self.with(|world| {
            let result = world.call("ask", "cpus");
            world.calls.pop();
            result?;
            Ok(Cpus { count: 4, online: 4, nodes: vec![vec![0, 1], vec![2, 3]], from_xen: true })
        })
    }

    fn domains(&self) -> Result<Vec<Domain>, Error> {
        self.with(|world| {
            let result = world.call("list", "domains");
            world.calls.pop();
            result?;
            let mut domains = world.domains.clone();
            let mut dom0 = domains.first().cloned().unwrap_or_else(|| {
                world.add("x", Uuid::nil(), State::Running);
                world.domains.pop().expect("just added")
            });
            dom0.domid = 0;
            dom0.uuid = Uuid::nil();
            dom0.name = Some("Domain-0".to_owned());
            dom0.state = State::Running;
            domains.insert(0, dom0);
            Ok(domains)
        })
    }

    fn create(&self, guest: &GuestConfig, _: Option<Instant>, _: Note<'_>, made: Made) -> Result<Domid, Error> {
        self.with(|world| {
            world.call("create", &guest.name)?;
            Ok(world.make(&guest.name, guest.uuid, &made))
        })
    }

    fn restore(&self, image: &Image, _: Option<Instant>, _: Note<'_>, made: Made) -> Result<Domid, Error> {
        self.with(|world| {
            world.call("restore", &image.name)?;
            Ok(world.make(&image.name, image.uuid, &made))
        })
    }

    fn unpause(&self, domid: Domid) -> Result<(), Error> {
        self.with(|world| {
            let name = world.name(domid);
            if self.save.join(&name).exists() {
                world.calls.push(format!("image-in-place {name}"));
            }
            world.call("unpause", &name)?;
            world.set(domid, State::Running);
            Ok(())
        })
    }

    fn save(&self, domain: &Domain, target: &mut NewImage, deadline: Option<Instant>) -> Result<(), Error> {
        self.with(|world| {
            let name = domain.name.as_deref().unwrap_or_default();
            let limit = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            world.limits.insert(format!("save {name}"), limit);
            if let Err(error) = world.call("save", name) {
                if error.left_suspended {
                    world.set(domain.domid, State::Shutdown(ShutdownReason::Suspend));
                }
                return Err(error);
            }
            write_image(target, domain);
            world.set(domain.domid, State::Shutdown(ShutdownReason::Suspend));
            Ok(())
        })
    }

    fn send(&self, domain: &Domain, stream: OwnedFd, _: bool, deadline: Option<Instant>) -> Result<(), Error> {
        let name = domain.name.as_deref().unwrap_or_default();
        let limit = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.with(|world| {
            world.limits.insert(format!("send {name}"), limit);
            world.call("send", name)?;
            world.set(domain.domid, State::Shutdown(ShutdownReason::Suspend));
            Ok(())
        })?;
        std::fs::File::from(stream).write_all(b"memory\n").map_err(|error| Error::new("send", error.to_string()))
    }

    fn rename(&self, domid: Domid, from: &str, to: &str) -> Result<(), Error> {
        self.with(|world| {
            world.call("rename", &format!("{from} {to}"))?;
            world.domains.iter_mut().filter(|d| d.domid == domid).for_each(|d| d.name = Some(to.to_owned()));
            Ok(())
        })
    }

    fn resume(&self, domid: Domid) -> Result<(), Error> {
        self.with(|world| {
            let name = world.name(domid);
            world.call("resume", &name)?;
            world.set(domid, State::Running);
            Ok(())
        })
    }

    fn request_shutdown(&self, domain: &Domain) -> Result<(), Error> {
        self.with(|world| {
            let name = domain.name.as_deref().unwrap_or_default();
            if world.call("request", name)? == Some(Fault::PowersOff) {
                world.set(domain.domid, State::Shutdown(ShutdownReason::Poweroff));
            }
            Ok(())
        })
    }

    fn shutdown(&self, domain: &Domain, deadline: Option<Instant>) -> Result<Ending, Error> {
        self.with(|world| {
            let name = domain.name.as_deref().unwrap_or_default();
            let limit = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            world.limits.insert(format!("shutdown {name}"), limit);
            let fault = world.call("shutdown", name)?;
            if let Some(Fault::Reboots | Fault::KeepsRebooting) = fault {
                world.domains.retain(|known| known.domid != domain.domid);
                world.add(name, domain.uuid, State::Running);
                if fault == Some(Fault::Reboots) {
                    world.faults.remove(&format!("shutdown {name}"));
                }
                return Ok(Ending::Gone);
            }
            world.set(domain.domid, State::Shutdown(ShutdownReason::Poweroff));
            Ok(Ending::Shutdown(ShutdownReason::Poweroff))
        })
    }

    fn destroy(&self, domid: Domid) -> Result<(), Error> {
        self.with(|world| {
            let name = world.name(domid);
            world.call("destroy", &name)?;
            world.domains.retain(|domain| domain.domid != domid);
            Ok(())
        })
    }

    fn configuration(&self, domid: Domid) -> Result<Value, Error> {
        self.with(|world| Ok(world.configurations.get(&world.name(domid)).cloned().unwrap_or_default()))
    }

    fn sysrq(&self, domid: Domid, letter: char) -> Result<(), Error> {
        self.with(|world| {
            let name = world.name(domid);
            if world.call("sysrq", &format!("{name} {letter}"))? == Some(Fault::PowersOff) {
                world.set(domid, State::Shutdown(ShutdownReason::Poweroff));
            }
            Ok(())
        })
    }
}

/// So that a test can look at what it has handed over.
impl Toolstack for Arc<Mock> {
    fn describe(&self) -> String {
        (**self).describe()
    }
    fn xen_release(&self) -> Option<u32> {
        (**self).xen_release()
    }
    fn cpus(&self) -> Result<Cpus, Error> {
        (**self).cpus()
    }
    fn domains(&self) -> Result<Vec<Domain>, Error> {
        (**self).domains()
    }
    fn create(
        &self,
        guest: &GuestConfig,
        deadline: Option<Instant>,
        note: Note<'_>,
        made: Made,
    ) -> Result<Domid, Error> {
        (**self).create(guest, deadline, note, made)
    }
    fn restore(
        &self,
        image: &Image,
        deadline: Option<Instant>,
        note: Note<'_>,
        made: Made,
    ) -> Result<Domid, Error> {
        (**self).restore(image, deadline, note, made)
    }
    fn unpause(&self, domid: Domid) -> Result<(), Error> {
        (**self).unpause(domid)
    }
    fn save(&self, domain: &Domain, target: &mut NewImage, deadline: Option<Instant>) -> Result<(), Error> {
        (**self).save(domain, target, deadline)
    }
    fn send(&self, domain: &Domain, stream: OwnedFd, debug: bool, deadline: Option<Instant>) -> Result<(), Error> {
        (**self).send(domain, stream, debug, deadline)
    }
    fn rename(&self, domid: Domid, from: &str, to: &str) -> Result<(), Error> {
        (**self).rename(domid, from, to)
    }
    fn resume(&self, domid: Domid) -> Result<(), Error> {
        (**self).resume(domid)
    }
    fn request_shutdown(&self, domain: &Domain) -> Result<(), Error> {
        (**self).request_shutdown(domain)
    }
    fn shutdown(&self, domain: &Domain, deadline: Option<Instant>) -> Result<Ending, Error> {
        (**self).shutdown(domain, deadline)
    }
    fn destroy(&self, domid: Domid) -> Result<(), Error> {
        (**self).destroy(domid)
    }
    fn configuration(&self, domid: Domid) -> Result<Value, Error> {
        (**self).configuration(domid)
    }
    fn sysrq(&self, domid: Domid, letter: char) -> Result<(), Error> {
        (**self).sysrq(domid, letter)
    }
}

pub(super) fn write_image(target: &mut NewImage, domain: &Domain) {
    write_image_with(target, domain, json!({}));
}

fn write_image_with(target: &mut NewImage, domain: &Domain, mut config: Value) {
    config["c_info"] = json!({"type": "pvh", "name": domain.name, "uuid": domain.uuid});
    target.write_header(&config).expect("writable");
    // The shortest stream of libxl: its header and its END record.
    target.file().write_all(b"LibxlFmt\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0").expect("writable");
}

/// A machine in a directory with a mock, and what was said and slept on it.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    pub(super) host: Host,
    pub(super) toolstack: Mock,
    pub(super) settings: String,
    out: Buffer,
    err: Buffer,
    slept: Mutex<Vec<Duration>>,
    pub(super) interrupt: Interrupt,
}

impl Bench {
    /// With an empty AUTO directory and a SAVE directory.
    pub(super) fn new() -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        let (auto, save) = (dir.path().join("auto"), dir.path().join("save"));
        std::fs::create_dir(&auto).expect("directory");
        Bench {
            host: fake_dom0(dir.path()),
            toolstack: Mock { save: save.clone(), ..Mock::default() },
            settings: format!("XENDOMAINS_AUTO={}\nXENDOMAINS_SAVE={}\n", auto.display(), save.display()),
            out: Buffer::default(),
            err: Buffer::default(),
            slept: Mutex::default(),
            interrupt: Interrupt::new().expect("a descriptor"),
            dir,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds a line to a guest's file.
    pub(super) fn add_line(&self, file: &str, line: &str) {
        let path = self.path("auto").join(file);
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::write(path, format!("{text}{line}\n")).expect("write");
    }

    /// Puts a guest into AUTO.
    pub(super) fn auto(&self, file: &str, name: &str) {
        let kernel = self.path("kernel");
        std::fs::write(&kernel, "").expect("write");
        let (kernel, uuid) = (kernel.display(), uuid_of(name));
        let text =
            format!("name = \"{name}\"\nuuid = \"{uuid}\"\ntype = \"pvh\"\nkernel = \"{kernel}\"\nmemory = 1\n");
        std::fs::write(self.path("auto").join(file), text).expect("write");
    }

    /// Puts a guest into AUTO whose file is a copy of this one's, with another name.
    pub(super) fn copied_auto(&self, of: &str, name: &str) {
        let text = std::fs::read_to_string(self.path("auto").join(of)).expect("read");
        let text = text.replace(&format!("name = \"{of}\""), &format!("name = \"{name}\""));
        std::fs::write(self.path("auto").join(name), text).expect("write");
    }

    /// Puts an image of a guest into SAVE.
    pub(super) fn image(&self, name: &str) {
        self.image_with(name, json!({}));
    }

    /// The same of a guest with a disk, which is this file.
    pub(super) fn image_on(&self, name: &str, disk: &Path) {
        std::fs::write(disk, "disk").expect("write");
        let disk = json!({"vdev": "xvda", "pdev_path": disk, "format": "raw", "readwrite": 1});
        self.image_with(name, json!({"disks": [disk]}));
    }

    /// Changes what the record of the one image says of its disk.
    pub(super) fn change_recorded_disk(&self, change: impl FnOnce(&mut Value)) {
        let save = self.path("save");
        let record = files(&save).into_iter().find(|name| name.ends_with(".record")).expect("a record");
        let path = save.join(record);
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
        change(&mut json["disks"][0]);
        std::fs::write(&path, json.to_string()).expect("write");
    }

    /// The same with these devices.
    pub(super) fn image_with(&self, name: &str, devices: Value) {
        let directory = SaveDirectory::open(&self.path("save")).expect("directory");
        let id = self.toolstack.domain(name, State::Running);
        let domain = self.toolstack.with(|world| {
            let place = world.domains.iter().position(|domain| domain.domid == id).expect("just added");
            world.domains.remove(place)
        });
        let guest =
            Guest { name: name.to_owned(), uuid: domain.uuid, domid: domain.domid, boot_id: "b00709".into() };
        let mut image = directory.begin(&guest, 4096).expect("room");
        write_image_with(&mut image, &domain, devices);
        image.commit().and_then(Saved::destroyed).expect("image");
    }

    /// The names of the files in SAVE, but for the records beside the images.
    pub(super) fn saved(&self) -> Vec<String> {
        let mut names = files(&self.path("save"));
        names.retain(|name| !name.ends_with(".record"));
        names
    }

    pub(super) fn has_mark(&self) -> bool {
        self.host.mark_file().exists()
    }

    pub(super) fn run(&self, what: impl FnOnce(&Run<'_>)) -> Exit {
        let report = Reporter::new(Box::new(self.out.clone()), Box::new(self.err.clone()));
        let settings = Settings::parse(Path::new("settings"), self.settings.as_bytes());
        assert_eq!(settings.mistakes, [""; 0]);
        what(&Run {
            host: &self.host,
            settings: &settings,
            xen_host: &XenHost::default(),
            toolstack: &self.toolstack,
            report: &report,
            interrupt: &self.interrupt,
            sleep: &|time| self.slept.lock().expect("whole").push(time),
            spawn_monitor: None,
        });
        report.exit()
    }

    pub(super) fn start(&self) -> Exit {
        self.run(super::start)
    }

    pub(super) fn stop(&self) -> Exit {
        self.run(super::stop)
    }

    pub(super) fn out(&self) -> String {
        self.out.text()
    }

    pub(super) fn err(&self) -> String {
        self.err.text()
    }

    pub(super) fn slept(&self) -> Vec<Duration> {
        self.slept.lock().expect("whole").clone()
    }
}

fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.expect("entry").file_name();
    let mut names: Vec<_> = entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
