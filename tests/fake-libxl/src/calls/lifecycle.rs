//! What makes, changes and ends domains.

use super::config as blocks;
use crate::abi::{self, AsyncopHow, AsyncprogressHow, INVALID_DOMID, MEMKB_DEFAULT, RestoreParams, error, reason};
use crate::config;
use crate::fatal;
use crate::runtime::{Ctx, End, Io, Parts, operation, refuse, simple, world};
use crate::script::{Complete, Point, Rule};
use crate::stream;
use crate::world::{Domain, World, now_ms};
use serde_json::{Value, json};
use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;

/// An operation that changes the world at its end and does nothing before.
fn change(
    rule: &Rule,
    children: bool,
    effect: impl FnOnce(&mut World) -> c_int + Send + 'static,
) -> Result<Parts, c_int> {
    let effect_anyway = rule.effect;
    Ok(Parts {
        children,
        delay_ms: 0,
        io: None,
        until: None,
        finish: Box::new(move |end| match end {
            End::Natural => world(effect),
            End::Error(rc) => {
                if effect_anyway {
                    world(effect);
                }
                rc
            }
            End::Aborted => error::ABORTED,
        }),
    })
}

/// A change of one domain; `missing` if there is no such domain.
fn change_domain(
    rule: &Rule,
    domid: u32,
    missing: c_int,
    effect: impl FnOnce(&mut Domain) -> c_int + Send + 'static,
) -> Result<Parts, c_int> {
    change(rule, false, move |w| {
        let rc = w.domains.get_mut(&domid).map_or(missing, effect);
        w.went_live(domid);
        rc
    })
}

// ---- creating

struct Making {
    call: &'static str,
    block: *mut c_void,
    domid_out: *mut u32,
    how: *const AsyncopHow,
    console: *const AsyncprogressHow,
    restore_fd: Option<c_int>,
}

fn text_of(value: &Value, section: &str, key: &str) -> Option<String> {
    config::get(value, section, key)?.as_str().map(str::to_owned)
}

fn number_of(value: &Value, section: &str, key: &str) -> Option<u64> {
    config::get(value, section, key)?.as_u64().filter(|&n| n != MEMKB_DEFAULT)
}

/// The domain that a configuration asks for, or what libxl would say against it.
fn make_domain(w: &mut World, value: &Value) -> Result<u32, (c_int, String)> {
    let bad = |text: &str| Err((error::INVAL, text.to_owned()));
    let Some(kind) = text_of(value, "c_info", "type") else {
        return bad("invalid domain type");
    };
    let Some(name) = text_of(value, "c_info", "name") else {
        return bad("New domain name not specified");
    };
    let build = value.get("b_info").and_then(Value::as_object);
    if !build.is_some_and(|b| b.contains_key(&format!("type.{kind}"))) {
        return bad("c_info.type and b_info.type differ");
    }
    let max_kb = number_of(value, "b_info", "max_memkb").unwrap_or(32 * 1024);
    let target_kb = number_of(value, "b_info", "target_memkb").unwrap_or(max_kb);
    if target_kb > max_kb {
        return bad("target memory above maximum");
    }
    if w.by_name(&name).is_some() {
        return bad(&format!("Domain with name {name:?} already exists."));
    }
    if target_kb > w.free_kb {
        return Err((error::FAIL, "not enough free memory".into()));
    }
    let wanted = number_of(value, "c_info", "domid").and_then(|d| u32::try_from(d).ok());
    let domid = match wanted.filter(|d| (1..0x7ff0).contains(d)) {
        Some(domid) if w.domains.contains_key(&domid) => return bad("domain id in use"),
        Some(domid) => domid,
        None => w.next_domid,
    };
    w.next_domid = w.next_domid.max(domid + 1);
    w.free_kb -= target_kb;
    let guest = w.behaviour(Some(&name));
    w.domains.insert(
        domid,
        Domain {
            domid,
            uuid: text_of(value, "c_info", "uuid").unwrap_or_else(|| uuid::Uuid::nil().to_string()),
            name: Some(name),
            kind,
            config: Some(value.clone()),
            memory_kb: target_kb,
            max_kb,
            target_kb,
            vcpus: number_of(value, "b_info", "max_vcpus").and_then(|n| u32::try_from(n).ok()).unwrap_or(1),
            paused: true,
            building: true,
            start_time: now_ms() / 1000,
            cpu_time_ns: 0,
            guest,
            ..Domain::default()
        },
    );
    Ok(domid)
}

fn create(ctx: *mut c_void, making: Making) -> c_int {
    let Making { call, block, domid_out, how, console, restore_fd } = making;
    let Some((number, value)) = blocks::read(block, call) else {
        return error::INVAL;
    };
    blocks::expect_survival(fatal::creating(&value), call);
    let name = text_of(&value, "c_info", "name");
    let args = json!({"config": value, "fd": restore_fd});
    // SAFETY: NULL or the caller's struct, which is copied.
    let console = unsafe { console.as_ref() }.copied();
    let out = domid_out as usize;
    operation(ctx, call, INVALID_DOMID, name.as_deref(), how, args, |ctx, rule| {
        let made = world(|w| make_domain(w, &value));
        if let Ok(domid) = &made {
            let said =
                if restore_fd.is_some() { "restoring, not running bootloader" } else { "running bootloader" };
            ctx.log(stream::DEBUG, -1, &format!("fake_libxl.c:1:{call}: Domain {domid}:{said}"));
        }
        rule_death_while_building(rule, restore_fd.is_none());
        let (domid, refusal) = match made {
            Ok(domid) => (domid, None),
            Err((rc, why)) => {
                ctx.error(call, None, &why);
                (INVALID_DOMID, Some(rc))
            }
        };
        let io: Option<Io> = restore_fd.filter(|_| refusal.is_none()).map(|fd| {
            let (ctx, rule) = (ctx.clone(), rule.clone());
            Box::new(move |cancel: &_| stream::restore(&ctx, domid, fd, cancel, &rule)) as Io
        });
        let restoring = restore_fd.is_some();
        let effect = rule.effect;
        let ctx: Arc<Ctx> = ctx.clone();
        Ok(Parts {
            children: true,
            delay_ms: 0,
            io,
            until: None,
            finish: Box::new(move |end| {
                let (rc, keep) = match (refusal, end) {
                    (Some(rc), _) => (rc, false),
                    (None, End::Natural) => (0, true),
                    (None, End::Error(rc)) => (rc, effect),
                    // libxl cleans up after a restore whose stream was cut, but not after any other abort.
                    (None, End::Aborted) if restoring => (error::FAIL, false),
                    (None, End::Aborted) => (error::ABORTED, true),
                };
                let built = rc == 0 || effect;
                let still_there = world(|w| {
                    if let Some(domain) = w.domains.get_mut(&domid).filter(|_| built) {
                        domain.building = false;
                    }
                    if !keep && domid != INVALID_DOMID {
                        w.destroy(domid);
                    }
                    w.domains.contains_key(&domid)
                });
                if rc == 0 && still_there {
                    ctx.console_available(console, domid);
                }
                let mut stored = value.clone();
                if rc == 0 {
                    fill_in_defaults(&mut stored);
                }
                blocks::store(number, stored, call);
                if out == 0 {
                    refuse(&format!("{call} with nowhere to put the domid"));
                } else {
                    // SAFETY: the caller's pointer, which by contract is valid until the operation ends.
                    unsafe { *(out as *mut u32) = if keep { domid } else { INVALID_DOMID } };
                }
                if rc == 0 && !still_there { error::FAIL } else { rc }
            }),
        })
    })
}

fn rule_death_while_building(rule: &Rule, no_stream: bool) {
    if no_stream {
        rule.die_at(Point::During);
    }
}

/// Some of what libxl writes into the caller's configuration.
fn fill_in_defaults(value: &mut Value) {
    for (section, key, default) in [
        ("c_info", "run_hotplug_scripts", json!("True")),
        ("b_info", "max_vcpus", json!(1)),
        ("b_info", "claim_mode", json!("False")),
    ] {
        if config::get(value, section, key).is_none() {
            config::set(value, section, key, Some(default));
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_create_new(
    ctx: *mut c_void,
    block: *mut c_void,
    domid_out: *mut u32,
    how: *const AsyncopHow,
    console: *const AsyncprogressHow,
) -> c_int {
    let call = "libxl_domain_create_new";
    create(ctx, Making { call, block, domid_out, how, console, restore_fd: None })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_create_restore(
    ctx: *mut c_void,
    block: *mut c_void,
    domid_out: *mut u32,
    restore_fd: c_int,
    _send_back_fd: c_int,
    params: *const RestoreParams,
    how: *const AsyncopHow,
    console: *const AsyncprogressHow,
) -> c_int {
    let call = "libxl_domain_create_restore";
    // SAFETY: NULL or the caller's struct.
    match unsafe { params.as_ref() } {
        None => {
            refuse("libxl_domain_create_restore without parameters");
            return error::INVAL;
        }
        Some(p) if p.stream_version != 2 => {
            refuse("libxl_domain_create_restore of a stream that is not of version 2");
            return error::INVAL;
        }
        Some(_) => {}
    }
    create(ctx, Making { call, block, domid_out, how, console, restore_fd: Some(restore_fd) })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_soft_reset(
    ctx: *mut c_void,
    block: *mut c_void,
    domid: u32,
    how: *const AsyncopHow,
    _console: *const AsyncprogressHow,
) -> c_int {
    let call = "libxl_domain_soft_reset";
    if !how.is_null() {
        refuse(
            "libxl_domain_soft_reset with a completion request: libxl writes the domid to a stack that is gone",
        );
        return error::INVAL;
    }
    if blocks::read(block, call).is_none() {
        return error::INVAL;
    }
    operation(ctx, call, domid, None, how, json!({}), |_, rule| {
        change_domain(rule, domid, error::FAIL, |d| {
            if d.kind != "hvm" || d.shutdown != Some(reason::SOFT_RESET) {
                return error::INVAL;
            }
            d.shutdown = None;
            d.paused = true;
            0
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_restore_params_init(params: *mut RestoreParams) {
    // SAFETY: the caller's struct, which may hold anything yet.
    unsafe {
        params.write(RestoreParams {
            checkpointed_stream: 0,
            stream_version: 1,
            colo_proxy_script: std::ptr::null_mut(),
            userspace_colo_proxy: 0,
        });
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_restore_params_dispose(params: *mut RestoreParams) {
    // SAFETY: an initialised struct by contract; the string, if any, was malloc'ed.
    unsafe { libc::free((*params).colo_proxy_script.cast()) };
}

// ---- suspending

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_suspend(
    ctx: *mut c_void,
    domid: u32,
    fd: c_int,
    flags: c_int,
    how: *const AsyncopHow,
) -> c_int {
    let args = json!({"flags": flags, "fd": fd});
    operation(ctx, "libxl_domain_suspend", domid, None, how, args, |ctx, rule| {
        // SAFETY: asks about a number.
        let open = unsafe { libc::fcntl(fd, libc::F_GETFL) } >= 0;
        if !open || !world(|w| w.domains.contains_key(&domid)) {
            ctx.error("libxl_domain_suspend", Some(domid), "no such domain or descriptor");
            return Err(error::FAIL);
        }
        let (ctx, rule) = (ctx.clone(), rule.clone());
        let live = flags & abi::SUSPEND_LIVE != 0;
        Ok(suspension(Box::new(move |cancel| stream::save(&ctx, domid, fd, live, cancel, &rule))))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_suspend_only(ctx: *mut c_void, domid: u32, how: *const AsyncopHow) -> c_int {
    operation(ctx, "libxl_domain_suspend_only", domid, None, how, json!({}), |ctx, rule| {
        if !world(|w| w.domains.contains_key(&domid)) {
            return Err(error::FAIL);
        }
        let (ctx, rule) = (ctx.clone(), rule.clone());
        Ok(suspension(Box::new(move |cancel| stream::suspend_only(&ctx, domid, cancel, &rule))))
    })
}

fn suspension(io: Io) -> Parts {
    Parts {
        children: true,
        delay_ms: 0,
        io: Some(io),
        until: None,
        finish: Box::new(|end| match end {
            End::Natural => 0,
            End::Error(rc) => rc,
            End::Aborted => error::ABORTED,
        }),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_resume(
    ctx: *mut c_void,
    domid: u32,
    suspend_cancel: c_int,
    how: *const AsyncopHow,
) -> c_int {
    let args = json!({"suspend_cancel": suspend_cancel});
    operation(ctx, "libxl_domain_resume", domid, None, how, args, |_, rule| {
        change_domain(rule, domid, error::FAIL, |d| {
            if d.shutdown != Some(reason::SUSPEND) {
                return error::FAIL;
            }
            d.shutdown = None;
            0
        })
    })
}

// ---- requests to guests

/// The guest has cleared the request, or is gone.
fn acknowledged(w: &World, domid: u32) -> bool {
    w.domains.get(&domid).is_none_or(|d| d.request.is_none())
}

fn request(ctx: *mut c_void, call: &'static str, domid: u32, how: *const AsyncopHow, what: &'static str) -> c_int {
    operation(ctx, call, domid, None, how, json!({}), |ctx, rule| {
        // With a rule nobody watches for the acknowledgement, so the time is the one that it takes.
        let by_rule =
            rule.error.is_some() || matches!(rule.complete, Some(Complete::BeforeReturn | Complete::OtherThread));
        let (delay, rc) = world(|w| {
            let Some(domain) = w.domains.get_mut(&domid) else {
                return (0, error::FAIL);
            };
            let guest = domain.guest.clone();
            if domain.kind == "hvm" && !guest.pv_drivers {
                return (0, error::NOPARAVIRT);
            }
            domain.request = Some(what.into());
            let reaction = if what == "reboot" { &guest.reboot } else { &guest.shutdown };
            // A guest that is down does not read it.
            let reacts = reaction != "ignore" && domain.shutdown.is_none();
            if reacts {
                w.later(guest.ack_ms, domid, "ack");
                if reaction != "ack_only" {
                    w.later(guest.ack_ms + guest.down_ms, domid, reaction);
                }
            }
            let soon = by_rule && (reacts || rule.error.is_some());
            (if soon { guest.ack_ms + 1 } else { guest.timeout_ms }, 0)
        });
        if rc != 0 {
            ctx.error(call, Some(domid), "control request not possible");
            return Err(rc);
        }
        let ctx = ctx.clone();
        Ok(Parts {
            children: false,
            delay_ms: delay,
            io: None,
            until: Some(acknowledged),
            finish: Box::new(move |end| {
                let rc = match end {
                    End::Natural if world(|w| acknowledged(w, domid)) => 0,
                    End::Natural => error::TIMEDOUT,
                    End::Error(rc) => rc,
                    End::Aborted => error::ABORTED,
                };
                if rc != 0 {
                    ctx.error(call, Some(domid), &format!("guest didn't acknowledge control request: {rc}"));
                }
                rc
            }),
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_shutdown(ctx: *mut c_void, domid: u32, how: *const AsyncopHow) -> c_int {
    request(ctx, "libxl_domain_shutdown", domid, how, "poweroff")
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_reboot(ctx: *mut c_void, domid: u32, how: *const AsyncopHow) -> c_int {
    request(ctx, "libxl_domain_reboot", domid, how, "reboot")
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_send_trigger(
    ctx: *mut c_void,
    domid: u32,
    trigger: u32,
    vcpuid: u32,
    how: *const AsyncopHow,
) -> c_int {
    let name = ["unknown", "power", "sleep", "nmi", "init", "reset", "s3resume"]
        .get(trigger as usize)
        .copied()
        .unwrap_or("unknown");
    let args = json!({"trigger": name, "vcpuid": vcpuid});
    operation(ctx, "libxl_send_trigger", domid, None, how, args, |_, rule| {
        change(rule, false, move |w| {
            let Some(domain) = w.domains.get_mut(&domid).filter(|d| d.kind == "hvm") else {
                return error::FAIL;
            };
            domain.triggers.push(name.to_owned());
            let (down_ms, reaction) = match name {
                "power" => (domain.guest.down_ms, domain.guest.power_button.clone()),
                "reset" => (domain.guest.down_ms, domain.guest.reset_button.clone()),
                _ => return 0,
            };
            if reaction != "ignore" && domain.shutdown.is_none() {
                w.later(down_ms, domid, &reaction);
            }
            0
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_send_sysrq(ctx: *mut c_void, domid: u32, sysrq: c_char) -> c_int {
    let letter = char::from(sysrq.to_ne_bytes()[0]);
    let args = json!({"sysrq": letter.to_string()});
    simple(ctx, "libxl_send_sysrq", Some(domid), args, false, |_| {
        world(|w| {
            if let Some(domain) = w.domains.get_mut(&domid) {
                domain.sysrq.push(letter);
            }
        });
        0
    })
}

// ---- the rest of a domain's life

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_destroy(ctx: *mut c_void, domid: u32, how: *const AsyncopHow) -> c_int {
    operation(ctx, "libxl_domain_destroy", domid, None, how, json!({}), |_, rule| {
        if rule.error.is_none() || rule.effect {
            // Gone from xenstore first: for a while the domain is there without its name.
            world(|w| {
                if let Some(domain) = w.domains.get_mut(&domid).filter(|d| d.domid != 0) {
                    domain.name = None;
                    domain.config = None;
                    domain.userdata.clear();
                    domain.paused = true;
                }
            });
        }
        rule.die_at(Point::During);
        change(rule, true, move |w| match w.domains.get(&domid) {
            Some(_) if domid == 0 => error::INVAL,
            Some(d) if d.dying => 0,
            Some(_) => {
                w.destroy(domid);
                0
            }
            None => error::DOMAIN_NOTFOUND,
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_pause(ctx: *mut c_void, domid: u32, how: *const AsyncopHow) -> c_int {
    operation(ctx, "libxl_domain_pause", domid, None, how, json!({}), |_, rule| {
        change_domain(rule, domid, error::FAIL, |d| {
            d.paused = true;
            0
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_unpause(ctx: *mut c_void, domid: u32, how: *const AsyncopHow) -> c_int {
    operation(ctx, "libxl_domain_unpause", domid, None, how, json!({}), |_, rule| {
        change_domain(rule, domid, error::FAIL, |d| {
            d.paused = false;
            0
        })
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_rename(
    ctx: *mut c_void,
    domid: u32,
    old_name: *const c_char,
    new_name: *const c_char,
) -> c_int {
    // SAFETY: NULL or strings by the function's contract.
    let (old, new) = unsafe { (abi::text(old_name), abi::text(new_name)) };
    let args = json!({"old": old, "new": new});
    simple(ctx, "libxl_domain_rename", Some(domid), args, false, |ctx| {
        let rc = world(|w| rename(w, domid, old.as_deref(), new.as_deref().unwrap_or_default()));
        if rc != 0 {
            ctx.error("libxl_domain_rename", Some(domid), "can't be renamed so");
        }
        rc
    })
}

fn rename(w: &mut World, domid: u32, old: Option<&str>, new: &str) -> c_int {
    if new.is_empty() || w.by_name(new).is_some_and(|d| d != domid) {
        return error::INVAL;
    }
    match w.domains.get_mut(&domid) {
        Some(d) if old.is_none() || d.name.as_deref() == old => {
            d.name = Some(new.to_owned());
            0
        }
        _ => error::FAIL,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_preserve(
    ctx: *mut c_void,
    domid: u32,
    info: *mut c_void,
    suffix: *const c_char,
    new_uuid: abi::Uuid,
) -> c_int {
    let call = "libxl_domain_preserve";
    // The create info is the first thing in a configuration.
    let Some((_, value)) = blocks::read(info, call) else {
        return error::INVAL;
    };
    let old = text_of(&value, "c_info", "name").unwrap_or_default();
    // SAFETY: a string by the function's contract.
    let suffix = unsafe { abi::text(suffix) }.unwrap_or_default();
    let new_uuid = uuid::Uuid::from_bytes(new_uuid.bytes).to_string();
    let args = json!({"suffix": suffix, "uuid": new_uuid});
    simple(ctx, call, Some(domid), args, false, |_| {
        world(|w| rename(w, domid, Some(&old), &format!("{old}{suffix}")))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_domain_core_dump(
    ctx: *mut c_void,
    domid: u32,
    filename: *const c_char,
    how: *const AsyncopHow,
) -> c_int {
    // SAFETY: a string by the function's contract.
    let path = unsafe { abi::text(filename) }.unwrap_or_default();
    let args = json!({"path": path});
    operation(ctx, "libxl_domain_core_dump", domid, None, how, args, |_, rule| {
        // Within this call, as libxl does it.
        let there = world(|w| w.domains.contains_key(&domid));
        let rc = match rule.error {
            Some(rc) => rc,
            None if there && std::fs::write(&path, b"fake core\n").is_ok() => 0,
            None => error::FAIL,
        };
        change(rule, false, move |_| rc)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn libxl_cdrom_insert(
    ctx: *mut c_void,
    domid: u32,
    disk: *mut c_void,
    how: *const AsyncopHow,
) -> c_int {
    let raw = abi::Raw(disk.cast());
    // SAFETY: a disk has these fields, which hold strings or NULL.
    let (vdev, path) = unsafe { (abi::text(raw.get(abi::disk::VDEV)), abi::text(raw.get(abi::disk::PDEV_PATH))) };
    let args = json!({"vdev": vdev, "path": path});
    operation(ctx, "libxl_cdrom_insert", domid, None, how, args, |_, rule| {
        change_domain(rule, domid, error::FAIL, |d| if d.kind == "hvm" { 0 } else { error::INVAL })
    })
}
