//! What the monitor needs, over libxl.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use uuid::Uuid;
use xenlight::futures_core::Stream;
use xenlight::{DomainChange, DomainConfig, DomainEvents, EjectedDisk, ErrorCode, Operation};

use super::{Libxl, block_until, failed, reason, state};
use crate::interrupt::Interrupt;
use crate::toolstack::{Change, Domid, Ejected, Error, Event, Monitoring, Note, State, Watch, without_domid};

/// Under which name libxl keeps a domain's configuration.
const CONFIGURATION: &str = "libxl-json";

struct Events {
    events: DomainEvents,
    interrupt: Arc<Interrupt>,
}

struct Drive(EjectedDisk);

impl Ejected for Drive {
    fn vdev(&self) -> &str {
        self.0.vdev()
    }

    fn take_out(self: Box<Self>) -> Result<(), Error> {
        let taken = self.0.take_medium_out().and_then(Operation::wait);
        taken.map_err(|e| failed("take medium out", &e))
    }
}

impl Watch for Events {
    fn add(&self, domid: Domid, uuid: Uuid) -> Result<(), Error> {
        self.events.watch(domid, uuid).map_err(|e| failed("watch", &e))
    }

    fn add_drive(&self, domid: Domid, vdev: &str) -> Result<(), Error> {
        self.events.watch_drive(domid, vdev).map_err(|e| failed("watch drive", &e))
    }

    fn remove(&self, domid: Domid) {
        self.events.unwatch(domid);
    }

    fn next(&self) -> Option<Result<Event, Error>> {
        let mut events = &self.events;
        let next = std::future::poll_fn(|cx| Pin::new(&mut events).poll_next(cx));
        // The stream has no end of its own.
        let event = block_until(next, None, Some(&self.interrupt))??;
        Some(event.map_err(|e| failed("watch", &e)).map(|event| Event {
            domid: event.domid,
            uuid: event.uuid,
            change: match event.change {
                DomainChange::Shutdown(why) => Change::Shutdown(reason(why)),
                DomainChange::Death => Change::Gone,
                DomainChange::Ejected(disk) => Change::Ejected(Box::new(Drive(disk))),
            },
        }))
    }
}

impl Monitoring for Libxl {
    fn watch(&self) -> Box<dyn Watch> {
        Box::new(Events { events: self.context.domain_events(), interrupt: Arc::clone(&self.interrupt) })
    }

    fn look(&self, domid: Domid) -> Result<Option<(Uuid, State)>, Error> {
        match self.context.info(domid) {
            Ok(info) => Ok(Some((info.uuid, state(&info)))),
            Err(e) if e.code() == Some(ErrorCode::DomainNotFound) => Ok(None),
            Err(e) => Err(failed("look at the domain", &e)),
        }
    }

    fn kept_configuration(&self, domid: Domid) -> Result<Option<Value>, Error> {
        let Some(text) = self.userdata(domid, CONFIGURATION)? else { return Ok(None) };
        // libxl keeps the byte that ends the text in C.
        let text = text.strip_suffix(b"\0").unwrap_or(&text);
        let config = serde_json::from_slice(text);
        config.map(Some).map_err(|e| Error::new("read the configuration", e.to_string()))
    }

    fn userdata(&self, domid: Domid, id: &str) -> Result<Option<Vec<u8>>, Error> {
        self.context.userdata(domid, id).map_err(|e| failed("read what is kept with the domain", &e))
    }

    fn keep_userdata(&self, domid: Domid, id: &str, data: &[u8]) -> Result<(), Error> {
        self.context.store_userdata(domid, id, data).map_err(|e| failed("keep something with the domain", &e))
    }

    fn preserve(&self, domid: Domid, name: &str, suffix: &str) -> Result<(), Error> {
        self.context.preserve(domid, name, suffix, Uuid::new_v4()).map_err(|e| failed("preserve", &e))
    }

    fn dump_core(&self, domid: Domid, file: &Path) -> Result<(), Error> {
        const ACTION: &str = "dump core";
        // It takes long, with the context locked.
        let context = self.builder(ACTION, None)?;
        context.dump_core(domid, file).and_then(Operation::wait).map_err(|e| failed(ACTION, &e))
    }

    fn soft_reset(
        &self,
        domid: Domid,
        config: Value,
        deadline: Option<Instant>,
        note: Note<'_>,
    ) -> Result<(), Error> {
        const ACTION: &str = "soft reset";
        let config = DomainConfig::from_json(without_domid(config)).map_err(|e| failed(ACTION, &e))?;
        let lock = self.memory.as_ref().map(|memory| memory.lock(deadline, note)).transpose();
        let _lock = lock.map_err(|e| Error { timed_out: e.timed_out(), ..Error::new(ACTION, e.to_string()) })?;
        let (outcome, timed_out) = self.within(self.context.soft_reset(domid, &config), || deadline);
        outcome.map_err(|e| Error { timed_out, ..failed(ACTION, &e) })
    }
}
