//! Lists the domains of this host, as `xl list` does: `cargo run --example list`, as root, in dom0.

use xenlight::{Children, Context, Library};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let context = Context::open(&Library::open_running()?, Children::LibxlReapsOwn, None)?;
    println!("{:<32} {:>5} {:>9} {:>5}  {:>10}", "Name", "ID", "Mem(KiB)", "VCPUs", "Time(s)");
    for domain in context.list()? {
        let name = context.name(domain.domid).unwrap_or_else(|| "(no name)".into());
        println!(
            "{name:<32} {:>5} {:>9} {:>5}  {:>10.1}",
            domain.domid,
            domain.current_kib + domain.outstanding_kib,
            domain.vcpus_online,
            domain.cpu_time.as_secs_f64(),
        );
    }
    Ok(())
}
