//! accept: the admin's word that an image is its guest's last state.

use super::directories::images;
use crate::host::Host;
use crate::report::Reporter;
use crate::runs::Runs;
use crate::settings::Settings;

/// Remembers that no guest is started now, although images may wait.
pub fn skip(host: &Host, report: &Reporter) {
    if let Err(error) = Runs::of(host).skip() {
        report.warn(&format!("that no guest was started can't be remembered: {error}"));
    }
}

/// Makes the next start restore the images of these guests, whatever was seen of them and of their disks.
pub fn accept(settings: &Settings, host: &Host, guests: &[String], report: &Reporter) {
    let Some(directory) = settings.save.value.as_deref() else {
        return report.error("SAVE is empty: there are no images");
    };
    let found = images(Some(directory));
    found.messages.failures.iter().for_each(|message| report.warn(message));
    if let Err(error) = Runs::of(host).take_skipped(&found.images) {
        return report.error(&error.to_string());
    }
    for guest in guests {
        let Some(image) = found.images.iter().find(|image| image.name == *guest) else {
            report.error(&format!("{guest}: there is no image of it in {}", directory.display()));
            continue;
        };
        if let Err(error) = image.accept() {
            report.error(&format!("{guest}: {error}"));
        } else if let Err(error) = Runs::of(host).accept(guest) {
            report.error(&format!("{guest}: {error}"));
        } else {
            report.note(&format!("{guest}: the next start restores {}", image.path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::mock::{Bench, Fault};
    use super::super::{check, overview};
    use super::*;
    use crate::report::Exit;
    use crate::toolstack::State;

    /// An image of a guest with a disk of which nobody sees whether it was written to.
    fn with_blind_disk(settings: &str) -> Bench {
        let mut bench = Bench::new();
        bench.settings.push_str(settings);
        let disk = json!({"vdev": "xvda", "pdev_path": "iqn", "script": "block-iscsi", "readwrite": 1});
        bench.image_with("web", json!({"disks": [disk]}));
        bench
    }

    fn say_so(bench: &Bench, guest: &str) -> Exit {
        bench.run(|run| accept(run.settings, run.host, &[guest.to_owned()], run.report))
    }

    fn expect_refused(bench: &Bench) {
        let before = bench.toolstack.calls();
        bench.run(|run| {
            let seen = overview(run.host, run.settings, run.xen_host, run.toolstack, run.report).expect("seen");
            let json: serde_json::Value = serde_json::from_str(&seen.json()).expect("JSON");
            assert_eq!(json["guests"][0]["image_fate"], "keep");
            check(run.host, run.settings, run.xen_host, false, &[], run.report);
        });
        assert!(
            bench.err().contains("start would keep it: an earlier start did not restore it"),
            "{}",
            bench.err()
        );
        for _ in 0..2 {
            assert_eq!(bench.start(), Exit::Failed);
            assert!(bench.err().contains("disk xvda (iqn): it can't be looked at"), "{}", bench.err());
            assert!(bench.err().contains("`xendomains accept web`"), "{}", bench.err());
        }
        assert_eq!((bench.toolstack.calls(), bench.saved()), (before, vec!["web".to_owned()]));
    }

    fn expect_restored_after_a_word(bench: &Bench) {
        assert_eq!(say_so(bench, "web"), Exit::Done, "{}", bench.err());
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        assert_eq!((bench.toolstack.left(), bench.saved()), (vec!["web Running".to_owned()], vec![]));
    }

    #[test]
    fn after_a_failed_restore_an_image_whose_disks_tell_nothing_waits_for_a_word() {
        let bench = with_blind_disk("");
        bench.toolstack.fault("restore web", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        bench.toolstack.no_fault("restore web");
        expect_refused(&bench);
        expect_restored_after_a_word(&bench);
    }

    #[test]
    fn so_it_does_after_a_start_that_restored_nothing_or_did_nothing() {
        let mut bench = with_blind_disk("XENDOMAINS_RESTORE=false\n");
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        bench.settings.push_str("XENDOMAINS_RESTORE=true\n");
        expect_refused(&bench);
        expect_restored_after_a_word(&bench);

        let bench = with_blind_disk("");
        bench.run(|run| skip(run.host, run.report));
        expect_refused(&bench);
        expect_restored_after_a_word(&bench);
    }

    #[test]
    fn a_first_start_and_disks_that_tell_need_no_word() {
        let bench = with_blind_disk("");
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
        let bench = Bench::new();
        bench.image_on("web", &bench.path("disk"));
        bench.toolstack.fault("restore web", Fault::Fails);
        assert_eq!(bench.start(), Exit::Failed);
        bench.toolstack.no_fault("restore web");
        assert_eq!(bench.start(), Exit::Done, "{}", bench.err());
    }

    #[test]
    fn without_its_image_the_guest_is_booted_if_the_settings_say_so() {
        let bench = with_blind_disk("XENDOMAINS_RESTORE_FAILED=start\n");
        bench.run(|run| skip(run.host, run.report));
        bench.auto("web", "web");
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(bench.toolstack.calls(), ["create web", "unpause web"]);
    }

    #[test]
    fn an_image_of_a_guest_that_was_seen_running_since_is_set_aside() {
        for command in ["status", "start", "stop"] {
            let bench = with_blind_disk("");
            // Where it is when the guest is seen.
            let (save, away) = (bench.path("save"), bench.path("away"));
            std::fs::rename(&save, &away).expect("renamed");
            let domid = bench.toolstack.domain("web", State::Running);
            match command {
                "status" => {
                    bench.run(|run| {
                        drop(overview(run.host, run.settings, run.xen_host, run.toolstack, run.report));
                    });
                }
                "start" => drop(bench.start()),
                _ => drop(bench.stop()),
            }
            let _ = crate::toolstack::Toolstack::destroy(&bench.toolstack, domid);
            let _ = std::fs::remove_dir_all(&save);
            std::fs::rename(&away, &save).expect("renamed");
            bench.auto("web", "web");
            assert_eq!(bench.start(), Exit::Done, "{command}: {}", bench.err());
            assert!(
                bench.err().contains("save/web: its guest has run since, and was seen at 20"),
                "{}",
                bench.err()
            );
            assert!(bench.toolstack.calls().contains(&"create web".to_owned()), "{:?}", bench.toolstack.calls());
            assert!(!bench.toolstack.calls().contains(&"restore web".to_owned()), "{:?}", bench.toolstack.calls());
        }
    }

    #[test]
    fn another_disk_is_accepted_too_and_what_has_no_image_is_named() {
        let bench = Bench::new();
        bench.image_on("web", &bench.path("disk"));
        bench.change_recorded_disk(|disk| {
            disk["kind"] = "block".into();
            disk["identity"] = "LVM-abc".into();
        });
        assert_eq!(bench.start(), Exit::Failed);
        assert_eq!(say_so(&bench, "db"), Exit::Failed);
        assert!(bench.err().contains("db: there is no image of it in "), "{}", bench.err());
        expect_restored_after_a_word(&bench);
    }
}
