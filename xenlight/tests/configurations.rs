//! Configurations on which libxl would end the process: they are refused before it sees them.

use fake_libxl::Control;
use serde_json::{Value, json};
use tempfile::TempDir;
use xenlight::{Cause, Children, Context, DomainConfig, Library, Release};

fn fake() -> (TempDir, Control, Context) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = fake_libxl::install(directory.path(), "4.17");
    // SAFETY: the file is the fake, which has libxl's functions.
    let library = unsafe { Library::open_in(directory.path(), Release::new(4, 17)) }.expect("the fake opens");
    let control = Control::open(&path);
    control.host(json!({"domains": []}));
    let context = Context::open(&library, Children::LibxlReapsOwn, None).expect("a context");
    (directory, control, context)
}

fn fine() -> Value {
    json!({
        "c_info": {"type": "pv", "name": "web", "uuid": "c57b1d5e-7e2f-4f0b-8d7c-0d9b5c0f2f11"},
        "b_info": {"max_vcpus": 1, "max_memkb": 131072, "target_memkb": 131072, "kernel": "/k", "type.pv": {}},
        "disks": [{"vdev": "xvda", "pdev_path": "/dev/x"}],
    })
}

#[test]
fn libxl_never_sees_what_would_end_the_process() {
    let (_directory, control, context) = fake();
    let change = |changes: &[(&str, Value)]| {
        let mut config = fine();
        for (place, value) in changes {
            let (parent, name) = place.rsplit_once('/').expect("a place");
            config.pointer_mut(parent).expect("it is there")[name] = value.clone();
        }
        config
    };
    let deep = (0..60).fold(json!(0), |inner, _| json!([inner]));
    let bits = "x".repeat(32);
    for (config, place) in [
        (change(&[("/b_info/type.hvm", json!({}))]), "/b_info/type.pv: "),
        (change(&[("/b_info/type.hvm\0", json!({}))]), "/b_info/type.hvm\0: "),
        (change(&[("/c_info/type", json!("hvm"))]), "/b_info/type.pv: "),
        (change(&[("/c_info", json!({"name": "web"}))]), "/b_info/type.pv: "),
        (change(&[("/channels", json!([{"connection.pty": {}, "connection.socket": {}}]))]), "/channels/0/"),
        (change(&[("/b_info/avail_vcpus", json!([-100]))]), "/b_info/avail_vcpus/0: "),
        (change(&[("/b_info/nodemap", json!([0, i32::MAX]))]), "/b_info/nodemap/1: "),
        (
            change(&[("/b_info/vcpu_hard_affinity", json!([[0], [1_u64 << 40]]))]),
            "/b_info/vcpu_hard_affinity/1/0: ",
        ),
        (change(&[("/b_info/cpumap", json!([0]))]), "/b_info/cpumap: "),
        (change(&[("/b_info/max_vcpus", json!(-1))]), "/b_info/max_vcpus: "),
        (change(&[("/b_info/cpuid", json!([{"leaf": 1, "eax": "x"}]))]), "/b_info/cpuid/0/eax: "),
        (change(&[("/b_info/cpuid", json!([{"leaf": -1, "eax": bits}]))]), "/b_info/cpuid/0/leaf: "),
        (change(&[("/b_info/vnuma_nodes", json!([{"vcpus": [0]}]))]), "/b_info/vnuma_nodes/0: "),
        (change(&[("/b_info/vnuma_nodes", json!([{"vcpus": [9], "distances": [10]}]))]), "/b_info/vnuma_nodes/0/"),
        (change(&[("/disks", json!([{"pdev_path": "/dev/x"}]))]), "/disks/0/vdev: "),
        (change(&[("/dtdevs", json!([{}]))]), "/dtdevs/0/path: "),
        (change(&[("/c_info/xsdata", json!({"a": "b\0c"}))]), "/c_info/xsdata/a: "),
        (change(&[("/deep", deep)]), "/deep/0/0"),
        (change(&[("/long", json!("x".repeat(3 << 20)))]), "it is longer than 2 MiB"),
    ] {
        let config = DomainConfig::from_json(config).expect("an object");
        for error in [
            config.check(&context).expect_err(place),
            context.needed_memory_kib(&config).expect_err(place),
            context.create(&config).map(drop).expect_err(place),
        ] {
            let Cause::BadConfig(why) = error.cause() else { panic!("{place}: {error}") };
            assert!(why.starts_with(place), "{place}: {why}");
        }
    }
    assert_eq!(context.list().expect("a list").len(), 1, "only domain 0");
    assert_eq!(control.state()["refusals"], json!([]));
    DomainConfig::from_json(fine()).expect("an object").check(&context).expect("nothing is wrong with it");
}

#[test]
fn a_leaf_that_is_asked_for_with_another_value_never_ends_the_process() {
    let (_directory, control, context) = fake();
    // Each at the edge of what libxl survives, and of a type or at a place that it does not look at, so that it is
    // asked for with another value.
    let mut config = fine();
    config["b_info"]["max_vcpus"] = json!(0);
    config["b_info"]["avail_vcpus"] = json!([7, 3]);
    config["b_info"]["cpuid"] = json!({"cpuid": [{"leaf": 0, "eax": "x".repeat(32)}]});
    config["b_info"]["type.pv"]["type.hvm"] = json!({"viridian_enable": [0]});
    config["on_poweroff"] = json!("destroy");
    let error =
        DomainConfig::from_json(config).expect("an object").check(&context).expect_err("a part is ignored");
    let Cause::ConfigDropped(dropped) = error.cause() else { panic!("{error}") };
    assert_eq!(dropped, &["/b_info/type.pv/type.hvm/viridian_enable/0"]);
    assert_eq!(control.state()["refusals"], json!([]));
}

#[test]
fn many_ignored_parts_are_not_all_named() {
    let (_directory, _control, context) = fake();
    let mut config = fine();
    config["more"] = (0..1000).map(Value::from).collect();
    let error = DomainConfig::from_json(config).expect("an object").check(&context).expect_err("ignored");
    let Cause::ConfigDropped(dropped) = error.cause() else { panic!("{error}") };
    assert_eq!(dropped.len(), 20);
}
