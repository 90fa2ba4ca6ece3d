//! Says when a domain of this host ends, until none is left: `cargo run --example watch`, as root, in dom0.

use xenlight::{Children, Context, DomainChange, Library};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let context = Context::open(&Library::open_running()?, Children::LibxlReapsOwn, None)?;
    let events = context.domain_events();
    let mut left = 0;
    for domain in context.list()?.iter().filter(|domain| domain.domid != 0) {
        events.watch(domain.domid, domain.uuid)?;
        left += 1;
    }
    println!("watching {left} domains");
    // A domain first shuts down, for some reason, and dies when somebody destroys what is left of it.
    while left > 0 {
        let Some(event) = events.next_until(None)? else { break };
        let name = context.name(event.domid).unwrap_or_else(|| event.uuid.to_string());
        println!("domain {} ({name}): {:?}", event.domid, event.change);
        if matches!(event.change, DomainChange::Death) {
            left -= 1;
        }
    }
    Ok(())
}
