//! Saves a domain and destroys it, as `xl save` does but without xl's header: `cargo run --example save -- DOMAIN FILE`, as
//! root, in dom0. If it fails, or takes longer than five minutes, the domain runs on.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use xenlight::{Children, Context, Domid, Library, SaveEnd, SaveFlags};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [name, path] = &arguments[..] else { return Err("usage: save DOMAIN FILE".into()) };
    let context = Context::open(&Library::open_running()?, Children::LibxlReapsOwn, None)?;
    let domid = context.find(name)?.ok_or_else(|| format!("there is no domain {name}"))?;
    // An image has all of the guest's memory in it: nobody else is to read it. One that is there is not overwritten.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    save(&context, domid, file).inspect_err(|_| remove(Path::new(path)))?;
    context.destroy(domid)?.wait()?;
    println!("{name} is in {path}");
    Ok(())
}

/// Suspends the domain and writes its state, so that it is there whatever happens to the host afterwards.
fn save(context: &Context, domid: Domid, file: File) -> Result<()> {
    let operation = context.save(domid, file.into(), SaveFlags::default())?;
    let outcome = operation.wait_until(Instant::now().checked_add(Duration::from_secs(300)));
    match context.end_save(domid, outcome) {
        SaveEnd::Saved(file) => File::from(file).sync_all().or_else(|error| {
            context.resume(domid, true)?.wait()?;
            Err(error.into())
        }),
        SaveEnd::Running(error) => Err(format!("{error}; the domain runs on").into()),
        SaveEnd::Suspended { error, resume } => Err(format!("{error}; the domain is suspended: {resume}").into()),
        other => Err(format!("the domain is gone: {other:?}").into()),
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        eprintln!("{}: {error}", path.display());
    }
}
