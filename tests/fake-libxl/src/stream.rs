//! What a suspended domain is written as: a libxl stream of version 2 around a libxc stream of version 3.
//!
//! The memory inside is made up, but the reader knows it again and notices any missing or changed byte.

use crate::abi::{error, reason};
use crate::runtime::{Cancel, Ctx, End, world};
use crate::script::{Complete, Point, Rule};
use crate::world::{Domain, Image, World};
use serde_json::{Value, json};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

const LIBXL_IDENT: &[u8; 8] = b"LibxlFmt";
const LIBXL_VERSION: u32 = 2;
const LIBXC_IDENT: &[u8; 4] = b"XENF";
const LIBXC_VERSION: u32 = 3;
const CHUNK: usize = 65_536;
/// Longer records than any that are written here.
const TOO_LONG: u32 = 1 << 26;

/// A level of the logger.
pub const DEBUG: i32 = 1;

/// Records of the libxl stream.
mod outer {
    pub const END: u32 = 0;
    pub const LIBXC_CONTEXT: u32 = 1;
    pub const EMULATOR_XENSTORE_DATA: u32 = 2;
    pub const EMULATOR_CONTEXT: u32 = 3;
}

/// Records of the libxc stream.
mod inner {
    pub const END: u32 = 0;
    pub const PAGE_DATA: u32 = 1;
}

/// Why copying stopped.
enum Stop {
    Aborted,
    /// The rule's `partial_bytes` are reached.
    Limit,
    /// errno, or 0 for the end of the file.
    Io(i32),
    Bad(String),
    /// The guest did not do its part.
    Guest(i32, &'static str),
}

/// A descriptor that is copied to or from until somebody cancels or a rule's limit is reached.
struct Pipe<'a> {
    fd: RawFd,
    cancel: &'a Cancel,
    done: u64,
    limit: Option<u64>,
    regular: bool,
    chunk: Duration,
}

impl<'a> Pipe<'a> {
    fn new(fd: RawFd, cancel: &'a Cancel, limit: Option<u64>, rule: &Rule) -> Pipe<'a> {
        // SAFETY: a zeroed stat is a valid one; fstat fills it.
        let regular = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            libc::fstat(fd, &raw mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG
        };
        Pipe { fd, cancel, done: 0, limit, regular, chunk: Duration::from_millis(rule.chunk_ms) }
    }

    /// How many of `wanted` bytes may be copied at once. Not so many that it could block for long.
    fn room(&self, wanted: usize) -> Result<usize, Stop> {
        let most = if self.regular { CHUNK } else { 4096 };
        let left = self.limit.map_or(u64::MAX, |limit| limit - self.done.min(limit));
        if left == 0 {
            return Err(Stop::Limit);
        }
        Ok(wanted.min(most).min(usize::try_from(left).unwrap_or(usize::MAX)))
    }

    /// Takes as long as a rule says for each chunk.
    fn take_time(&self) -> Result<(), Stop> {
        let aborted = !self.chunk.is_zero() && self.cancel.wait(Some(self.chunk));
        if aborted { Err(Stop::Aborted) } else { Ok(()) }
    }

    fn write(&mut self, mut data: &[u8]) -> Result<(), Stop> {
        while !data.is_empty() {
            let room = self.room(data.len())?;
            self.take_time()?;
            if !self.cancel.ready(self.fd, libc::POLLOUT) {
                return Err(Stop::Aborted);
            }
            // SAFETY: writes from a slice at most its length.
            let n = unsafe { libc::write(self.fd, data.as_ptr().cast(), room) };
            data = &data[self.count(n)?..];
        }
        Ok(())
    }

    fn read(&mut self, data: &mut [u8]) -> Result<(), Stop> {
        let mut at = 0;
        while at < data.len() {
            let room = self.room(data.len() - at)?;
            self.take_time()?;
            if !self.cancel.ready(self.fd, libc::POLLIN) {
                return Err(Stop::Aborted);
            }
            // SAFETY: reads into the rest of a slice at most its length.
            let n = unsafe { libc::read(self.fd, data[at..].as_mut_ptr().cast(), room) };
            if n == 0 {
                return Err(Stop::Io(0));
            }
            at += self.count(n)?;
        }
        Ok(())
    }

    fn count(&mut self, n: isize) -> Result<usize, Stop> {
        match usize::try_from(n) {
            Ok(n) => {
                self.done += n as u64;
                Ok(n)
            }
            Err(_) => match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => Ok(0),
                other => Err(Stop::Io(other.unwrap_or(libc::EIO))),
            },
        }
    }

    fn record(&mut self, kind: u32, body: &[u8]) -> Result<(), Stop> {
        let length = u32::try_from(body.len()).expect("records are short");
        let mut bytes = Vec::with_capacity(body.len() + 16);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(length.to_ne_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        self.write(&bytes)
    }

    fn read_record(&mut self) -> Result<(u32, Vec<u8>), Stop> {
        let (kind, length) = (self.read_u32()?, self.read_u32()?);
        if length > TOO_LONG {
            return Err(Stop::Bad(format!("a record of {length} bytes")));
        }
        let mut body = vec![0; (length as usize).next_multiple_of(8)];
        self.read(&mut body)?;
        body.truncate(length as usize);
        Ok((kind, body))
    }

    fn read_u32(&mut self) -> Result<u32, Stop> {
        let mut bytes = [0; 4];
        self.read(&mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }
}

/// The made-up memory at `offset` of image number `seed`.
fn memory(seed: u64, offset: u64, size: usize) -> Vec<u8> {
    let mut state = (seed ^ (offset << 20)) | 1;
    let mut out = Vec::with_capacity(size + 8);
    while out.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_ne_bytes());
    }
    out.truncate(size);
    out
}

/// Asks the guest to suspend itself.
fn suspend_guest(ctx: &Ctx, domid: u32, cancel: &Cancel) -> Result<(), Stop> {
    let said = "issuing PVH/HVM suspend request via XenBus control node";
    ctx.log(DEBUG, -1, &format!("fake_libxl.c:1:suspend: Domain {domid}:{said}"));
    let Some(domain) = world(|w| w.domains.get(&domid).cloned()) else {
        return Err(Stop::Guest(error::FAIL, "domain is gone"));
    };
    let set_request = |asked| {
        world(|w| {
            if let Some(domain) = w.domains.get_mut(&domid).filter(|domain| domain.shutdown.is_none()) {
                domain.asked_to_suspend = asked;
            }
        });
    };
    match domain.shutdown {
        Some(reason::SUSPEND) => return Ok(()),
        Some(_) => return Err(Stop::Guest(error::FAIL, "domain has shut down")),
        None => {}
    }
    let obeys = domain.guest.suspend != "ignore" && !domain.paused;
    let time = if obeys { domain.guest.suspend_ms } else { domain.guest.timeout_ms };
    let asked = Instant::now();
    set_request(true);
    if cancel.wait(Some(Duration::from_millis(time))) {
        if obeys && domain.guest.suspend == "ok" {
            // The request is not taken back: the guest does what it was asked for.
            let left = Duration::from_millis(time).saturating_sub(asked.elapsed());
            world(|w| w.later(u64::try_from(left.as_millis()).unwrap_or(u64::MAX), domid, "suspend"));
        }
        return Err(Stop::Aborted);
    }
    if !obeys {
        // This is what takes it back.
        set_request(false);
        return Err(Stop::Guest(error::GUEST_TIMEDOUT, "guest didn't acknowledge suspend"));
    }
    if domain.guest.suspend == "crash" {
        world(|w| w.shut(domid, reason::CRASH));
        return Err(Stop::Guest(error::FAIL, "guest crashed while suspending"));
    }
    // An earlier request may have been obeyed meanwhile.
    let suspended = |w: &World| w.domains.get(&domid).is_some_and(|d| d.shutdown == Some(reason::SUSPEND));
    if world(|w| w.suspend(domid) || suspended(w)) {
        Ok(())
    } else {
        Err(Stop::Guest(error::FAIL, "domain has shut down"))
    }
}

/// `libxl_domain_suspend_only`'s work.
pub fn suspend_only(ctx: &Ctx, domid: u32, cancel: &Cancel, rule: &Rule) -> End {
    conclude(ctx, domid, cancel, rule, suspend_guest(ctx, domid, cancel))
}

/// The save helper: suspends the guest and writes its image.
pub fn save(ctx: &Ctx, domid: u32, fd: RawFd, live: bool, cancel: &Cancel, rule: &Rule) -> End {
    let Some(domain) = world(|w| w.domains.get(&domid).cloned()) else {
        return End::Error(error::FAIL);
    };
    let payload = rule.payload_bytes.unwrap_or(domain.guest.payload_bytes);
    let (number, image) = world(|w| {
        w.images_made += 1;
        let id = format!("image-{}", w.images_made);
        w.images.insert(
            id.clone(),
            Image {
                uuid: domain.uuid.clone(),
                domid,
                name: domain.name.clone().unwrap_or_default(),
                ..Image::default()
            },
        );
        (w.images_made, id)
    });
    let mut limit = rule.partial_bytes;
    if limit.is_none() && rule.dies(Point::During) {
        limit = Some(payload / 2);
    }
    let about = json!({"image": image, "number": number, "uuid": domain.uuid, "payload": payload});
    let mut pipe = Pipe::new(fd, cancel, limit, rule);
    let result = write_all(ctx, &mut pipe, &domain, live, number, payload, &about);
    if result.is_ok() {
        world(|w| {
            if let Some(image) = w.images.get_mut(&image) {
                image.complete = true;
            }
        });
    }
    conclude(ctx, domid, cancel, rule, result)
}

fn write_all(
    ctx: &Ctx,
    pipe: &mut Pipe<'_>,
    domain: &Domain,
    live: bool,
    number: u64,
    payload: u64,
    about: &Value,
) -> Result<(), Stop> {
    let (domid, kind) = (domain.domid, domain.kind.as_str());
    let hvm = kind == "hvm" || kind == "pvh";
    let mut header = Vec::new();
    header.extend(LIBXL_IDENT);
    header.extend(LIBXL_VERSION.to_be_bytes());
    header.extend((u32::from(cfg!(target_endian = "big"))).to_be_bytes());
    pipe.write(&header)?;
    pipe.record(outer::LIBXC_CONTEXT, &[])?;

    let mut header = vec![0xff; 8];
    header.extend(LIBXC_IDENT);
    header.extend(LIBXC_VERSION.to_be_bytes());
    header.extend([0; 8]);
    header.extend((if hvm { 2u32 } else { 1 }).to_ne_bytes());
    header.extend(12u16.to_ne_bytes());
    header.extend([0; 2]);
    header.extend(crate::runtime::release().major.to_ne_bytes());
    header.extend(crate::runtime::release().minor.to_ne_bytes());
    pipe.write(&header)?;
    if !live {
        suspend_guest(ctx, domid, pipe.cancel)?;
    }
    pipe.record(inner::PAGE_DATA, about.to_string().as_bytes())?;
    let mut offset = 0;
    let mut suspended = !live;
    while offset < payload {
        if !suspended && offset >= payload / 2 {
            suspend_guest(ctx, domid, pipe.cancel)?;
            suspended = true;
        }
        let size = usize::try_from(payload - offset).unwrap_or(CHUNK).min(CHUNK);
        pipe.record(inner::PAGE_DATA, &memory(number, offset, size))?;
        offset += size as u64;
    }
    if !suspended {
        suspend_guest(ctx, domid, pipe.cancel)?;
    }
    pipe.record(inner::END, &[])?;
    if kind == "hvm" {
        pipe.record(outer::EMULATOR_XENSTORE_DATA, &[2, 0, 0, 0, 0, 0, 0, 0])?;
        pipe.record(outer::EMULATOR_CONTEXT, &[2, 0, 0, 0, 0, 0, 0, 0, b'Q', b'E', b'V', b'M'])?;
    }
    pipe.record(outer::END, &[])
}

/// The restore helper: reads an image into a domain that has been made for it.
pub fn restore(ctx: &Ctx, domid: u32, fd: RawFd, cancel: &Cancel, rule: &Rule) -> End {
    let mut limit = rule.partial_bytes;
    if limit.is_none() && rule.dies(Point::During) {
        limit = Some(1024);
    }
    let mut pipe = Pipe::new(fd, cancel, limit, rule);
    let result = read_all(&mut pipe).map(|image| {
        world(|w| {
            if let Some(domain) = w.domains.get_mut(&domid) {
                domain.image = Some(image);
            }
        });
    });
    conclude(ctx, domid, cancel, rule, result)
}

fn read_all(pipe: &mut Pipe<'_>) -> Result<String, Stop> {
    let mut header = [0; 16];
    pipe.read(&mut header)?;
    if header[..8] != *LIBXL_IDENT || header[8..12] != LIBXL_VERSION.to_be_bytes() {
        return Err(Stop::Bad("no libxl stream of version 2".into()));
    }
    let mut image = None;
    loop {
        let (kind, _) = pipe.read_record()?;
        match kind {
            outer::END => break,
            outer::LIBXC_CONTEXT => image = Some(read_memory(pipe)?),
            outer::EMULATOR_XENSTORE_DATA | outer::EMULATOR_CONTEXT => {}
            _ => return Err(Stop::Bad(format!("unknown record {kind}"))),
        }
    }
    image.ok_or_else(|| Stop::Bad("no memory in the stream".into()))
}

fn read_memory(pipe: &mut Pipe<'_>) -> Result<String, Stop> {
    let mut header = [0; 40];
    pipe.read(&mut header)?;
    if header[..8] != [0xff; 8] || header[8..12] != *LIBXC_IDENT {
        return Err(Stop::Bad("no libxc stream".into()));
    }
    let (_, about) = pipe.read_record()?;
    let about: Value = serde_json::from_slice(&about).map_err(|e| Stop::Bad(e.to_string()))?;
    let number = about["number"].as_u64().unwrap_or(0);
    let mut offset = 0;
    loop {
        let (kind, body) = pipe.read_record()?;
        match kind {
            inner::END => break,
            inner::PAGE_DATA => {
                if body != memory(number, offset, body.len()) {
                    return Err(Stop::Bad(format!("wrong memory contents at {offset}")));
                }
                offset += body.len() as u64;
            }
            _ => return Err(Stop::Bad(format!("unknown libxc record {kind}"))),
        }
    }
    if Some(offset) != about["payload"].as_u64() {
        return Err(Stop::Bad("memory is missing".into()));
    }
    Ok(about["image"].as_str().unwrap_or_default().to_owned())
}

/// What a helper's result means for its operation.
fn conclude(ctx: &Ctx, domid: u32, cancel: &Cancel, rule: &Rule, result: Result<(), Stop>) -> End {
    let fail = |text: &str, rc| {
        ctx.error(&rule.call, Some(domid), text);
        End::Error(rc)
    };
    match result {
        Ok(()) => End::Natural,
        Err(Stop::Aborted) => End::Aborted,
        Err(Stop::Guest(rc, text)) => fail(text, rc),
        Err(Stop::Bad(text)) => fail(&text, error::FAIL),
        Err(Stop::Io(0)) => fail("unexpected end of the stream", error::FAIL),
        Err(Stop::Io(errno)) => {
            fail(&format!("copying failed: {}", std::io::Error::from_raw_os_error(errno)), error::FAIL)
        }
        Err(Stop::Limit) => {
            rule.die_at(Point::During);
            if rule.complete == Some(Complete::Never) {
                cancel.wait(None);
                return End::Aborted;
            }
            fail("copying stopped, as scripted", rule.error.unwrap_or(error::FAIL))
        }
    }
}
