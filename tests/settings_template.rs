//! The settings file that packages install says what the program does.

use std::fmt::Debug;
use std::fs;

use xendomains::settings::{Setting, Settings};

fn same<T: Debug + PartialEq>(name: &str, template: &Setting<T>, default: &Setting<T>) {
    assert_eq!(template.value, default.value, "{name}: the template names another default");
    assert_ne!(template.origin, default.origin, "{name} is not in the template");
}

#[test]
fn the_template_names_every_setting_that_works_with_its_default() {
    let template = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/xendomains.default"))
        .expect("the template");
    let directory = tempfile::tempdir().expect("a directory");
    let load = |name: &str, text: &str| {
        let file = directory.path().join(name);
        fs::write(&file, text).expect("a file");
        let settings = Settings::load(Some(&file), &[]).expect("there");
        assert_eq!((&settings.warnings, &settings.mistakes), (&vec![], &vec![]));
        settings
    };
    let as_shipped = load("shipped", &template);
    let uncommented = load("uncommented", &template.replace("\n#XENDOMAINS_", "\nXENDOMAINS_"));
    let default = Settings::defaults();
    assert_eq!(as_shipped, default, "as it is shipped it changes nothing");

    macro_rules! check {
        ($($name:ident)*) => { $(same(stringify!($name), &uncommented.$name, &default.$name);)* };
    }
    check!(sysrq usleep create_usleep migrate save shutdown shutdown_all restore auto auto_only stop_maxwait);
    check!(start_maxwait start_jobs save_jobs migrate_jobs stop_timeout destroy restore_failed device_wait toolstack);
    check!(monitor restart_soon restart_burst restart_pause restart_tries);
}
