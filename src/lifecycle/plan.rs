//! plan: what start or stop would do now, in which order, and what it takes. Nothing is touched.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::longest::{Member, longest_stop};
use super::order;
use super::start::{Job, planned};
use super::status::duration;
use super::stop::{self, Chain, Stop, shared, step_limit};
use super::{Run, is_alive, is_finished, name};
use crate::guest_config::PerGuest;
use crate::image::SaveDirectory;
use crate::report::one_line;
use crate::settings::ShutdownOptions;
use crate::toolstack::{Domain, Error};

/// What `plan` answers. As JSON, its fields are an interface: they are added to, but not renamed or removed.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// `start` or `stop`.
    command: &'static str,
    /// One after the other; the guests of a level side by side.
    levels: Vec<Level>,
    /// Memory that the guests to be started need, KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_kib: Option<u64>,
    /// Room that images of all guests to be saved may need, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    space_needed: Option<u64>,
    /// Room that there is for them, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    space_available: Option<u64>,
    /// The longest that a stop can take when every step reaches its limit, seconds; null without limit, absent for start.
    #[serde(skip_serializing_if = "Option::is_none")]
    longest_seconds: Option<Option<u64>>,
}

#[derive(Debug, Serialize)]
struct Level {
    /// The number that its guests' files give; null for the guests without one, which start last and stop first.
    order: Option<i32>,
    /// Set if others get their disks or networks from its guests, which therefore start first and stop last.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    driver_domains: bool,
    guests: Vec<Guest>,
}

#[derive(Debug, Serialize)]
struct Guest {
    name: String,
    /// Domain id, of a guest that is to be stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
    /// What is tried one after the other, until something succeeds.
    steps: Vec<Step>,
    /// Why it is neither migrated nor saved, although one of both is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_saved: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Step {
    /// `restore`, `create`; `sysrq`, `migrate`, `save`, `shutdown`, `ask to shut down`, `destroy`, `clean up`.
    action: &'static str,
    /// The image or the file that the guest is started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// The hosts that it is offered to.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Vec<String>>,
    /// How long it may take, seconds; absent for what has no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_seconds: Option<u64>,
    /// How long start waits afterwards, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_seconds: Option<f64>,
}

impl Step {
    fn new(action: &'static str) -> Step {
        Step { action, from: None, to: None, limit_seconds: None, wait_seconds: None }
    }

    fn within(action: &'static str, limit: Option<Duration>) -> Step {
        Step { limit_seconds: limit.map(|limit| limit.as_secs()), ..Step::new(action) }
    }
}

/// What start would do.
pub fn plan_start(run: &Run<'_>) -> Result<Plan, Error> {
    let levels = planned(run)?;
    let all = || levels.iter().flat_map(|level| &level.guests);
    let last = all().count().saturating_sub(1);
    let memory = |job: &Job| {
        let config = job.configuration();
        config.map_or(0, |config| config["b_info"]["target_memkb"].as_u64().unwrap_or_default())
    };
    let memory_kib = all().map(memory).sum();
    let mut number = 0;
    let mut guest = |job: &Job| {
        let usual = run.settings.create_usleep.value;
        let (action, from, usual) = match (&job.image, &job.config) {
            (Some(image), _) => ("restore", Some(&image.path), Duration::ZERO),
            (None, config) => ("create", config.as_ref().map(|config| &config.path), usual),
        };
        let wait = job.delay().unwrap_or(usual);
        let wait = (number < last && !wait.is_zero()).then_some(wait.as_secs_f64());
        number += 1;
        let from = from.map(|path| path.to_string_lossy().into_owned());
        let step = Step { from, wait_seconds: wait, ..Step::new(action) };
        Guest { name: job.identity.name.clone(), id: None, steps: vec![step], not_saved: None }
    };
    let mut level = |level: &order::Level<Job>| Level {
        order: level.key.order,
        driver_domains: level.key.driver.is_some(),
        guests: level.guests.iter().map(&mut guest).collect(),
    };
    Ok(Plan {
        command: "start",
        levels: levels.iter().map(&mut level).collect(),
        memory_kib: Some(memory_kib),
        space_needed: None,
        space_available: None,
        longest_seconds: None,
    })
}

/// What stop would do.
pub fn plan_stop(run: &Run<'_>) -> Result<Plan, Error> {
    let settings = run.settings;
    let stop = Stop::new(run, Instant::now());
    let all = stop.guests()?;
    let selected = stop.select(all.clone());
    let selected: HashSet<_> = selected.iter().map(|guest| guest.domid).collect();
    let chosen = |guest: &Domain| selected.contains(&guest.domid);
    let order = stop.stop_order(&all);
    let saves = |guest: &&stop::Guest<'_>| {
        let chain = Chain::new(settings, &stop.wish(guest.domain), guest.obstacle);
        chosen(guest.domain) && is_alive(guest.domain) && chain.save && !chain.at_once
    };
    let to_save = order.iter().flat_map(|level| &level.guests).filter(saves);
    let space_needed = to_save.map(|guest| guest.domain.memory_kib.saturating_mul(1024)).sum();
    let space_available = match settings.save.value.as_deref().map(SaveDirectory::existing) {
        Some(Ok(Some(directory))) => directory.room().ok(),
        _ => None,
    };
    let migrates = stop.migration().is_some();
    let mut levels = Vec::new();
    let mut members = Vec::new();
    for level in order.into_iter().rev() {
        let beside = level.guests.iter().filter(|guest| chosen(guest.domain)).count();
        let planned: Vec<_> = level
            .guests
            .iter()
            .map(|guest| of_domain(run, &stop, guest, chosen(guest.domain), migrates, beside))
            .filter(|guest| !guest.steps.is_empty())
            .collect();
        if planned.is_empty() {
            continue;
        }
        let met = level.guests.iter().filter(|guest| is_alive(guest.domain));
        let member = |guest: &stop::Guest<'_>| Member {
            wish: stop.wish(guest.domain),
            obstacle: guest.obstacle,
            selected: chosen(guest.domain),
        };
        members.push(met.map(member).collect::<Vec<_>>());
        levels.push(Level { order: level.key.order, driver_domains: level.key.driver.is_some(), guests: planned });
    }
    let over_command = run.toolstack.monitoring().is_none();
    let longest = longest_stop(settings, &members, over_command).map(|longest| longest.as_secs());
    Ok(Plan {
        command: "stop",
        levels,
        memory_kib: None,
        space_needed: Some(space_needed),
        space_available,
        longest_seconds: Some(longest),
    })
}

/// Describes what is done with a guest. One that is not selected is only met by SHUTDOWN_ALL.
fn of_domain(
    run: &Run<'_>,
    stop: &Stop<'_>,
    guest: &stop::Guest<'_>,
    selected: bool,
    migrates: bool,
    beside: usize,
) -> Guest {
    let stop::Guest { domain, obstacle } = *guest;
    let wish = stop.wish(domain);
    let chain = Chain::new(run.settings, &wish, obstacle);
    let not_saved = chain.obstacle.filter(|_| selected && is_alive(domain) && !chain.at_once);
    let steps = steps(run, &wish, &chain, domain, selected, migrates, beside);
    Guest { name: name(domain).to_owned(), id: Some(domain.domid), steps, not_saved }
}

/// Lists the steps for a guest. `migrates`: guests can be migrated. `beside`: so many are stopped side by side.
fn steps(
    run: &Run<'_>,
    wish: &PerGuest,
    chain: &Chain,
    guest: &Domain,
    selected: bool,
    migrates: bool,
    beside: usize,
) -> Vec<Step> {
    let settings = run.settings;
    let limit = step_limit(settings, wish);
    let shutdown = |options: ShutdownOptions| match options.wait {
        true => Step::within("shutdown", limit),
        false => Step::new("ask to shut down"),
    };
    let mut steps = Vec::new();
    if selected && is_finished(guest) {
        return vec![Step::new("clean up")];
    }
    if selected && chain.at_once {
        return vec![Step::new("destroy")];
    }
    if selected && is_alive(guest) {
        if !settings.sysrq.value.is_empty() {
            steps.push(Step::new("sysrq"));
        }
        if let Some(migrate) = settings.migrate.value.as_ref().filter(|_| chain.migrate && migrates) {
            steps.push(Step {
                to: Some(migrate.targets.clone()),
                ..Step::within("migrate", shared(limit, settings.migrate_jobs.value, beside))
            });
        }
        if chain.save {
            steps.push(Step::within("save", shared(limit, settings.save_jobs.value, beside)));
        }
        steps.extend(chain.shutdown.map(shutdown));
    }
    if is_alive(guest) {
        steps.extend(settings.shutdown_all.value.map(shutdown));
    }
    if chain.destroy && (selected || settings.shutdown_all.value.is_some()) {
        steps.push(Step::new("destroy"));
    }
    steps
}

impl Plan {
    /// As JSON, with a newline at the end.
    pub fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self);
        text.map_or_else(|error| format!("{{\"message\": \"{error}\"}}\n"), |text| text + "\n")
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let guests = || self.levels.iter().flat_map(|level| &level.guests);
        let width = guests().map(|guest| one_line(&guest.name).chars().count()).max().unwrap_or_default();
        for (number, level) in self.levels.iter().enumerate() {
            let order = match (level.driver_domains, level.order) {
                (true, _) => "driver domains".to_owned(),
                (false, Some(order)) => format!("order {order}"),
                (false, None) => "no order given".to_owned(),
            };
            let _ = writeln!(text, "{}. {order}", number + 1);
            for guest in &level.guests {
                let _ = write!(text, "   {:<width$}  ", one_line(&guest.name));
                for (number, step) in guest.steps.iter().enumerate() {
                    // SysRq takes nothing off a guest's way down; of the other steps each is for when the one before fails.
                    let link = match number.checked_sub(1).map(|before| guest.steps[before].action) {
                        None => "",
                        Some("sysrq") => ", then ",
                        Some(_) => ", else ",
                    };
                    let _ = write!(text, "{link}{}", step.text());
                }
                if let Some(obstacle) = guest.not_saved {
                    let _ = write!(text, " (neither migrated nor saved: {obstacle})");
                }
                text.push('\n');
            }
        }
        if self.levels.is_empty() {
            let _ = writeln!(text, "nothing to do");
        }
        if let Some(kib) = self.memory_kib.filter(|kib| *kib > 0) {
            let _ = writeln!(text, "memory for the guests: {} MiB", kib / 1024);
        }
        if let Some(needed) = self.space_needed.filter(|needed| *needed > 0) {
            let _ = write!(text, "room for images: {} MiB", needed.div_ceil(1 << 20));
            let _ = match self.space_available {
                Some(available) => writeln!(text, " of {} MiB", available >> 20),
                None => writeln!(text),
            };
        }
        match self.longest_seconds {
            Some(Some(seconds)) if !self.levels.is_empty() => {
                let _ = writeln!(text, "at the longest: {}", duration(Duration::from_secs(seconds)));
            }
            Some(None) if !self.levels.is_empty() => text.push_str("at the longest: no limit\n"),
            _ => {}
        }
        text
    }
}

impl Step {
    fn text(&self) -> String {
        let mut text = self.action.to_owned();
        if let Some(from) = &self.from {
            let _ = write!(text, " from {}", one_line(from));
        }
        if let Some(to) = &self.to {
            let _ = write!(text, " to {}", one_line(&to.join(" or ")));
        }
        if let Some(limit) = self.limit_seconds {
            let _ = write!(text, " (at most {limit} s)");
        }
        if let Some(wait) = self.wait_seconds {
            let _ = write!(text, ", then wait {wait} s");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::mock::Bench;
    use super::*;
    use crate::toolstack::State;

    fn planned(bench: &Bench, plan: impl Fn(&Run<'_>) -> Result<Plan, Error>) -> Plan {
        let mut found = None;
        bench.run(|run| found = Some(plan(run).expect("listed")));
        found.expect("planned")
    }

    fn wishes(bench: &Bench, name: &str, wishes: &str) {
        bench.auto(name, name);
        let file = bench.path("auto").join(name);
        let text = fs::read_to_string(&file).expect("read");
        fs::write(&file, format!("{text}xendomains = [ {wishes} ]\n")).expect("write");
    }

    #[test]
    fn start_says_what_start_then_does() {
        let mut bench = Bench::new();
        bench.settings.push_str("XENDOMAINS_START_JOBS=1\n");
        wishes(&bench, "dns", "'order=1', 'delay=2'");
        bench.auto("web.cfg", "web");
        bench.auto("zz.cfg", "zz");
        bench.image("web");
        bench.toolstack.domain("runs", State::Running);
        bench.auto("runs", "runs");
        let plan = planned(&bench, plan_start);
        let (auto, save) = (bench.path("auto"), bench.path("save"));
        assert_eq!(
            plan.text(),
            format!(
                "1. order 1\n   dns  create from {auto}/dns, then wait 2 s\n2. no order given\n   \
                 web  restore from {save}/web\n   zz   create from {auto}/zz.cfg\nmemory for the guests: 2 MiB\n",
                auto = auto.display(),
                save = save.display()
            )
        );
        assert_eq!(bench.toolstack.calls(), [""; 0]);
        assert_eq!(bench.saved(), ["web"]);
        let json: serde_json::Value = serde_json::from_str(&plan.json()).expect("JSON");
        assert_eq!(json["levels"][0]["guests"][0]["steps"][0]["wait_seconds"], 2.0);
        assert_eq!((&json["memory_kib"], &json["levels"][1]["order"]), (&2048.into(), &serde_json::Value::Null));

        bench.start();
        let mut calls = bench.toolstack.calls();
        calls.retain(|call| !call.starts_with("unpause"));
        assert_eq!(calls, ["create dns", "restore web", "create zz"]);
    }

    #[test]
    fn driver_domains_are_named_as_such() {
        let bench = Bench::new();
        bench.auto("a-web", "a-web");
        bench.auto("store", "store");
        bench.add_line("a-web", "disk = [ 'vdev=xvda,backend=store,target=/dev/vg/x' ]");
        let plan = planned(&bench, plan_start);
        let text = plan.text();
        assert!(text.starts_with("1. driver domains\n   store  create"), "{text}");
        assert!(text.contains("2. no order given\n   a-web  create"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&plan.json()).expect("JSON");
        assert_eq!(
            (&json["levels"][0]["driver_domains"], &json["levels"][1]["driver_domains"]),
            (&true.into(), &serde_json::Value::Null)
        );
    }

    #[test]
    fn an_outdated_image_stays_where_it_is() {
        let bench = Bench::new();
        bench.image("web");
        bench.toolstack.domain("web", State::Running);
        assert_eq!(planned(&bench, plan_start).text(), "nothing to do\n");
        assert_eq!(bench.saved(), ["web"]);
        assert!(bench.err().contains("it would be set aside"), "{}", bench.err());
    }

    #[test]
    fn stop_names_every_step_with_its_limit() {
        let mut bench = Bench::new();
        bench.settings.push_str("XENDOMAINS_STOP_MAXWAIT=10\nXENDOMAINS_SYSRQ=s\nXENDOMAINS_SAVE_JOBS=1\n");
        wishes(&bench, "db", "'order=1', 'stop=shutdown', 'stop_timeout=20', 'destroy=true'");
        for name in ["web", "mail", "db"] {
            bench.toolstack.domain(name, State::Running);
        }
        let plan = planned(&bench, plan_stop);
        let usual = "sysrq, then save (at most 10 s), else shutdown (at most 10 s), else shutdown (at most 10 s)";
        let db = "sysrq, then shutdown (at most 20 s), else shutdown (at most 20 s), else destroy";
        // Two saves in turn with what is beyond their limits, and a shutdown of each level in the chain and in the end; for
        // guests that come back 19 s each time.
        let expected = format!(
            "1. no order given\n   web   {usual}\n   mail  {usual}\n2. order 1\n   db    {db}\n\
             room for images: 2 MiB\nat the longest: 0:12:58\n"
        );
        assert_eq!(plan.text(), expected);
        assert_eq!(bench.toolstack.calls(), [""; 0]);
    }

    #[test]
    fn stop_says_who_can_not_be_saved_and_why() {
        let bench = Bench::new();
        bench.toolstack.domain("web", State::Running);
        bench.toolstack.domain("pci", State::Running);
        bench.toolstack.configure("pci", serde_json::json!({ "pcidevs": [ { "bus": 1 } ] }));
        let plan = planned(&bench, plan_stop);
        let text = plan.text();
        let steps = "shutdown (at most 300 s), else shutdown (at most 300 s)";
        let said = format!("pci  {steps} (neither migrated nor saved: it has PCI devices of this host)\n");
        assert!(text.contains(&said) && text.contains("web  save"), "{text}");
        assert!(text.contains("room for images: 1 MiB"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&plan.json()).expect("JSON");
        let guests = &json["levels"][0]["guests"];
        assert_eq!(guests[0].get("not_saved"), None);
        assert_eq!(guests[1]["not_saved"], "it has PCI devices of this host");
    }

    #[test]
    fn stop_names_the_hosts_that_guests_are_offered_to() {
        let mut bench = Bench::new();
        bench.settings.push_str("XENDOMAINS_MIGRATE='--live far further'\nXENDOMAINS_STOP_MAXWAIT=10\n");
        bench.settings.push_str("XENDOMAINS_MIGRATE_JOBS=1\nXENDOMAINS_SAVE_JOBS=1\n");
        wishes(&bench, "db", "'stop=save'");
        for name in ["web", "mail", "db"] {
            bench.toolstack.domain(name, State::Running);
        }
        let plan = planned(&bench, plan_stop);
        let rest = "save (at most 10 s), else shutdown (at most 10 s), else shutdown (at most 10 s)";
        let usual = format!("migrate to far or further (at most 10 s), else {rest}");
        // Two migrations and three saves in turn with what is beyond their limits, two shutdowns, and guests that come back.
        let expected = format!(
            "1. no order given\n   web   {usual}\n   mail  {usual}\n   db    {rest}\nroom for images: 3 MiB\n\
             at the longest: 0:31:18\n"
        );
        assert_eq!(plan.text(), expected);
        let json: serde_json::Value = serde_json::from_str(&plan.json()).expect("JSON");
        assert_eq!(json["levels"][0]["guests"][0]["steps"][0]["to"], serde_json::json!(["far", "further"]));
        assert_eq!(bench.toolstack.calls(), [""; 0]);
    }

    #[test]
    fn stop_has_no_longest_time_when_a_step_has_no_limit_unless_the_whole_has_one() {
        for (settings, last) in [
            ("XENDOMAINS_STOP_MAXWAIT=0\n", "at the longest: no limit"),
            ("XENDOMAINS_STOP_MAXWAIT=0\nXENDOMAINS_STOP_TIMEOUT=90\n", "at the longest: 0:04:30"),
            ("XENDOMAINS_STOP_TIMEOUT=90\n", "at the longest: 0:04:30"),
        ] {
            let mut bench = Bench::new();
            bench.settings.push_str(settings);
            bench.toolstack.domain("web", State::Running);
            let text = planned(&bench, plan_stop).text();
            assert_eq!(text.lines().last(), Some(last), "{text}");
        }
    }

    #[test]
    fn who_is_not_selected_is_only_met_by_shutdown_all() {
        let mut bench = Bench::new();
        bench.settings.push_str("XENDOMAINS_AUTO_ONLY=true\nXENDOMAINS_SHUTDOWN_ALL=--all\n");
        bench.auto("web", "web");
        bench.toolstack.domain("web", State::Running);
        bench.toolstack.domain("other", State::Running);
        let text = planned(&bench, plan_stop).text();
        assert!(text.contains("\n   other  ask to shut down\n"), "{text}");
        assert!(text.contains("web    save (at most 300 s), else shutdown (at most 300 s), else ask"), "{text}");
    }
}
