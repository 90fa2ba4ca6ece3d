//! check: what start and stop would find wrong, without touching anything.

use super::Copied;
use super::backends::{Backend, Party, Service, backends, services};
use super::directories::{auto_guests, images};
use super::libvirt::warn_of_libvirt;
use super::longest::{Member, warn_of_long_stop};
use super::save_place::{look_at_save, warn_of_early_unmount};
use super::status::{RESTORE, age, duration, fate};
use super::stop::Chain;
use super::unsavable::obstacle;
use crate::guest_config::{GuestConfig, XenHost};
use crate::host::Host;
use crate::image::Image;
use crate::needs;
use crate::report::Reporter;
use crate::settings::{Settings, ToolstackChoice, TransportKind};
use crate::toolstack::Domain;

/// Looks through the AUTO and SAVE directories. What can't be used counts as a failure. `on_host` says that this is the
/// machine on which the guests will run, so that what they need must be here; `domains` are there now, as far as that is known.
pub fn check(
    host: &Host,
    settings: &Settings,
    xen_host: &XenHost,
    on_host: bool,
    domains: &[Domain],
    report: &Reporter,
) {
    let found = auto_guests(settings.auto.value.as_deref(), xen_host);
    found.guests.iter().for_each(|guest| check_guest(guest, on_host, report));
    found.messages.tell(report);
    let guests = found.guests;
    for guest in &guests {
        if let Some(obstacle) = Chain::new(settings, &guest.per_guest, obstacle(&guest.json)).obstacle {
            report.note(&format!("{}: stop neither migrates nor saves it: {obstacle}", guest.path.display()));
        }
    }
    if on_host {
        let over_command = matches!(settings.toolstack.value, ToolstackChoice::Xl | ToolstackChoice::Xm);
        let members = guests.iter().map(Member::of_auto).collect();
        warn_of_long_stop(host, settings, members, 0, over_command, report);
        warn_of_libvirt(host, report);
        if let Some(save) = &settings.save.value {
            match look_at_save(host, save, report) {
                Ok(()) => warn_of_early_unmount(host, save, report),
                Err(why) => report.error(&why),
            }
        }
    }

    check_migrate(settings, xen_host, report);

    let found = images(settings.save.value.as_deref());
    check_backends(&guests, &found.images, report);
    let copied = Copied::new(&guests, &found.images, domains);
    found.images.iter().for_each(|image| check_image(image, host, domains, &copied, report));
    found.messages.tell(report);
    for path in &found.superseded {
        report.warn(&format!("{}: an older image of a guest that has a newer one", path.display()));
    }
}

/// Says which guests start before the others, because these get their disks or networks from them.
fn check_backends(guests: &[GuestConfig], images: &[Image], report: &Reporter) {
    let of_guest = |guest| {
        let guest: &GuestConfig = guest;
        (&guest.path, Party { name: Some(&guest.name), domid: None, configuration: &guest.json })
    };
    let has_file = |image: &&Image| guests.iter().any(|guest| guest.name == image.name);
    let of_image = |image| {
        let image: &Image = image;
        (&image.path, Party { name: Some(&image.name), domid: None, configuration: &image.config })
    };
    let (paths, parties): (Vec<_>, Vec<_>) =
        guests.iter().map(of_guest).chain(images.iter().filter(|image| !has_file(image)).map(of_image)).unzip();
    for ((path, party), service) in paths.iter().zip(&parties).zip(services(&parties)) {
        let path = path.display();
        match service {
            Service::None => {}
            Service::Driver(_) => {
                report.note(&format!(
                    "{path}: a driver domain: starts before the guests that it serves, stops after them"
                ));
            }
            Service::Circle(way) => {
                let way = way.join(", ");
                report.error(&format!("{path}: its disks or networks come from a circle of guests: {way}"));
            }
        }
        for backend in backends(party.configuration) {
            if !parties.iter().any(|other| other.name.is_some_and(|name| backend == Backend::Name(name))) {
                report.warn(&format!(
                    "{path}: {backend} serves its disks or networks; start starts no such guest, it must run by then"
                ));
            }
        }
    }
}

/// Says where guests would be migrated to. Whether anybody is there is not tried.
fn check_migrate(settings: &Settings, xen_host: &XenHost, report: &Reporter) {
    let Some(migrate) = &settings.migrate.value else { return };
    let over = match &migrate.transport {
        TransportKind::Ssh { port: None } => "over ssh".to_owned(),
        TransportKind::Ssh { port: Some(port) } => format!("over ssh, port {port}"),
        TransportKind::Command(command) => format!("over `{command}`"),
        TransportKind::Target => "each of which is a command".to_owned(),
    };
    let origin = &settings.migrate.origin;
    report.note(&format!("{origin}: stop migrates guests to {}, {over}", migrate.targets.join(" or ")));
    if let Some(path) = migrate.config.as_deref() {
        match GuestConfig::read(path, xen_host) {
            Ok(guest) => {
                report.note(&format!("{origin}: {} there becomes what {} says", guest.name, path.display()));
            }
            Err(error) => report.error(&format!("{origin}: -C: {error}")),
        }
    }
}

/// Looks at one guest's file. A typing mistake in a key is not seen by xl; here it is named.
pub fn check_guest(guest: &GuestConfig, on_host: bool, report: &Reporter) {
    guest.warnings.iter().for_each(|warning| report.warn(&warning.to_string()));
    let path = guest.path.display();
    for key in &guest.unknown_keys {
        let hint = key.nearest.map_or(String::new(), |nearest| format!(", did you mean {nearest}?"));
        report.warn(&format!("{path}:{}: {}: unknown{hint}", key.line, key.name));
    }
    if on_host {
        for missing in needs::missing(&needs::needs(&guest.json)) {
            report.error(&format!("{path}: {missing} is not there"));
        }
    }
    report.note(&describe_guest(guest));
}

fn describe_guest(guest: &GuestConfig) -> String {
    let kind = guest.json["c_info"]["type"].as_str().unwrap_or_default();
    let build = &guest.json["b_info"];
    let mut parts = vec![kind.to_owned()];
    if let Some(kib) = build["target_memkb"].as_u64() {
        parts.push(format!("{} MiB", kib / 1024));
    }
    // Without a number libxl gives it one.
    let vcpus = build["avail_vcpus"].as_array().map_or(1, Vec::len);
    parts.push(format!("{vcpus} {}", if vcpus == 1 { "VCPU" } else { "VCPUs" }));
    for (list, one, many) in [("disks", "disk", "disks"), ("nics", "network card", "network cards")] {
        match guest.json[list].as_array().map_or(0, Vec::len) {
            0 => {}
            1 => parts.push(format!("1 {one}")),
            count => parts.push(format!("{count} {many}")),
        }
    }
    format!("{}: guest {} ({})", guest.path.display(), guest.name, parts.join(", "))
}

/// Says what an image is, and what start would do with it.
fn check_image(image: &Image, host: &Host, domains: &[Domain], copied: &Copied, report: &Reporter) {
    let size = image.size.div_ceil(1 << 20);
    let age = age(image).map_or("in the future".to_owned(), |age| format!("{} ago", duration(age)));
    let path = image.path.display();
    report.note(&format!("{path}: image of {} ({size} MiB, saved {age})", image.name));
    match fate(image, host, domains, copied) {
        (fate, Some(why)) if fate != RESTORE => report.warn(&format!("{path}: start would {fate} it: {why}")),
        (fate, Some(what)) => report.note(&format!("{path}: start would {fate} it, but {what}")),
        (_, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::mock::Bench;
    use super::*;
    use crate::lifecycle::overview;
    use crate::report::Exit;
    use crate::toolstack::State;

    fn checked(bench: &Bench, on_host: bool) -> Exit {
        bench.run(|run| {
            let domains = if on_host { run.toolstack.domains().expect("listed") } else { Vec::new() };
            check(run.host, run.settings, run.xen_host, on_host, &domains, run.report);
        })
    }

    #[test]
    fn what_is_fine_is_described() {
        let bench = Bench::new();
        bench.auto("web.cfg", "web");
        bench.image("db");
        assert_eq!(checked(&bench, true), Exit::Done);
        let (auto, save) = (bench.path("auto"), bench.path("save"));
        let out = bench.out();
        assert!(out.contains(&format!("{}/web.cfg: guest web (pvh, 1 MiB, 1 VCPU)\n", auto.display())), "{out}");
        let image = format!("{}/db: image of db (1 MiB, saved 0:00:0", save.display());
        assert!(out.contains(&image) && out.ends_with(" ago)\n"), "{out}");
        assert_eq!(bench.err(), "");
        assert_eq!(bench.saved(), ["db"]);
    }

    #[test]
    fn status_check_and_start_agree_about_an_image_whose_guest_is_there() {
        for (state, fate, why) in [
            (State::Running, "set aside", "its guest runs already, as domain 2"),
            (State::Paused, "keep", "domain 2 (web) is in the way: it is paused"),
        ] {
            let bench = Bench::new();
            bench.image("web");
            bench.toolstack.domain("web", state);
            bench.run(|run| {
                let seen =
                    overview(run.host, run.settings, run.xen_host, run.toolstack, run.report).expect("seen");
                let json: serde_json::Value = serde_json::from_str(&seen.json()).expect("JSON");
                let guest = &json["guests"][0];
                assert_eq!((&guest["image_fate"], &guest["image_reason"]), (&fate.into(), &why.into()));
            });
            checked(&bench, true);
            assert!(bench.err().contains(&format!("start would {fate} it: {why}")), "{}", bench.err());
            bench.start();
            assert_eq!(bench.saved() == ["web"], fate == "keep", "{:?}", bench.saved());
        }
    }

    #[test]
    fn where_guests_would_be_migrated_to_is_said() {
        for (value, said) in [
            ("far", "settings:3: stop migrates guests to far, over ssh\n"),
            ("far further -p 7", "settings:3: stop migrates guests to far or further, over ssh, port 7\n"),
            ("far -s /bin/mine", "settings:3: stop migrates guests to far, over `/bin/mine`\n"),
        ] {
            let mut bench = Bench::new();
            bench.settings.push_str(&format!("XENDOMAINS_MIGRATE='{value}'\n"));
            assert_eq!(checked(&bench, true), Exit::Done);
            assert!(bench.out().contains(said), "{}", bench.out());
        }
        let mut bench = Bench::new();
        let file = bench.path("web.cfg");
        bench.settings.push_str(&format!("XENDOMAINS_MIGRATE='far -C {}'\n", file.display()));
        fs::write(&file, "name = ").expect("write");
        assert_eq!(checked(&bench, true), Exit::Failed);
        assert!(bench.err().contains("settings:3: -C: "), "{}", bench.err());
        bench.toolstack.domain("web", crate::toolstack::State::Running);
        assert_eq!(bench.stop(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["save web", "destroy web"], "only that step is left out");
        assert!(bench.err().contains("settings:3: XENDOMAINS_MIGRATE: -C: "), "{}", bench.err());
        fs::remove_file(&file).expect("remove");
        assert_eq!(checked(&bench, true), Exit::Failed);
    }

    #[test]
    fn who_can_not_be_saved_is_said() {
        for (settings, said) in [("", true), ("XENDOMAINS_SAVE=\n", false)] {
            let mut bench = Bench::new();
            bench.settings.push_str(settings);
            bench.auto("web", "web");
            bench.add_line("web", "pci = [ '01:00.0' ]");
            assert_eq!(checked(&bench, false), Exit::Done, "{}", bench.err());
            let out = bench.out();
            assert_eq!(out.contains("auto/web: stop neither migrates nor saves it: it has PCI"), said, "{out}");
        }
    }

    #[test]
    fn who_serves_whom_is_said_and_a_circle_is_a_failure() {
        let bench = Bench::new();
        for name in ["db", "store", "web"] {
            bench.auto(name, name);
        }
        bench.add_line("web", "disk = [ 'vdev=xvda,backend=store,target=/dev/vg/x' ]");
        bench.add_line("db", "vif = [ 'backend=net' ]");
        assert_eq!(checked(&bench, false), Exit::Done, "{}", bench.err());
        assert!(bench.out().contains("auto/store: a driver domain: starts before"), "{}", bench.out());
        assert!(
            bench.err().contains("auto/db: net serves its disks or networks; start starts no such"),
            "{}",
            bench.err()
        );
        bench.add_line("store", "vif = [ 'backend=web' ]");
        assert_eq!(checked(&bench, false), Exit::Failed);
        assert!(
            bench.err().contains("auto/web: its disks or networks come from a circle of guests: web, store, web"),
            "{}",
            bench.err()
        );
    }

    #[test]
    fn typing_mistakes_are_named_and_are_no_failure() {
        let bench = Bench::new();
        bench.auto("web.cfg", "web");
        let file = bench.path("auto/web.cfg");
        let text = fs::read_to_string(&file).expect("read");
        fs::write(&file, text + "memroy = 5\nfrobnicate_all = 1\n").expect("write");
        assert_eq!(checked(&bench, true), Exit::Done);
        let path = file.display();
        assert_eq!(
            bench.err(),
            format!(
                "warning: {path}:6: memroy: unknown, did you mean memory?\n\
                 warning: {path}:7: frobnicate_all: unknown\n"
            )
        );
    }

    #[test]
    fn what_cannot_be_used_is_a_failure() {
        for (file, text, word) in [
            ("auto/bad", "name = ", "auto/bad:1: "),
            ("auto/bad", "name = 'x'\n", "kernel"),
            ("save/bad", "no image", "save/bad: "),
        ] {
            let bench = Bench::new();
            bench.image("db");
            fs::write(bench.path(file), text).expect("write");
            assert_eq!(checked(&bench, false), Exit::Failed, "{text}");
            assert!(bench.err().contains(word), "{}", bench.err());
            assert_eq!(fs::read_to_string(bench.path(file)).expect("read"), text);
        }
    }

    #[test]
    fn files_must_be_there_where_the_guest_will_run() {
        let bench = Bench::new();
        bench.auto("web.cfg", "web");
        fs::remove_file(bench.path("kernel")).expect("remove");
        assert_eq!(checked(&bench, false), Exit::Done, "{}", bench.err());
        assert_eq!(checked(&bench, true), Exit::Failed);
        assert!(
            bench.err().contains("web.cfg: kernel: ") && bench.err().contains("is not there"),
            "{}",
            bench.err()
        );
    }
}
