//! The end of the socket at which the monitor listens.

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::Sender;
use std::thread::{self, Scope};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::protocol::{Answer, Request, line};
use crate::interrupt::Interrupt;

/// Longer than any request: each name in one has at most as many bytes as xenstore allows.
const LONGEST_LINE: u64 = 1 << 20;

/// How long who asks may take to read an answer, and to send a line. The monitor does not wait for anybody.
const PATIENCE: Duration = Duration::from_secs(1);

/// What comes through the socket.
pub enum Heard {
    /// Somebody has connected, and can be answered.
    Connected(u64, UnixStream),
    /// Somebody wants something.
    Asked(u64, Result<Request, String>),
    /// Somebody is gone.
    Closed(u64),
}

/// Begins to listen, in the place of a monitor that is gone.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes everybody in who comes, until the program is asked to end.
pub fn listen<'scope, T: From<Heard> + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    listener: UnixListener,
    interrupt: &'scope Interrupt,
    heard: Sender<T>,
) -> io::Result<()> {
    thread::Builder::new().name("socket".to_owned()).spawn_scoped(scope, move || {
        let mut number = 0;
        while wait(&listener, interrupt) {
            let Ok((stream, _)) = listener.accept() else { continue };
            number += 1;
            // Who can't be served sees the connection end.
            let _ = serve(scope, stream, number, interrupt, heard.clone());
        }
    })?;
    Ok(())
}

/// Waits for something to come. False: the program is asked to end.
fn wait(from: &impl AsFd, interrupt: &Interrupt) -> bool {
    loop {
        let mut fds =
            [PollFd::new(from, PollFlags::IN), PollFd::from_borrowed_fd(interrupt.event(), PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => return fds[1].revents().is_empty(),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn serve<'scope, T: From<Heard> + Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    stream: UnixStream,
    number: u64,
    interrupt: &'scope Interrupt,
    heard: Sender<T>,
) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // For the rest of a line that has begun.
    stream.set_read_timeout(Some(PATIENCE))?;
    let answers = stream.try_clone()?;
    thread::Builder::new().name("client".to_owned()).spawn_scoped(scope, move || {
        // Nobody hears it any more once the monitor ends.
        let tell = |what| heard.send(T::from(what)).is_ok();
        let mut lines = BufReader::new(stream);
        let mut going_on = tell(Heard::Connected(number, answers));
        while going_on && (!lines.buffer().is_empty() || wait(lines.get_ref(), interrupt)) {
            let mut text = String::new();
            let read = (&mut lines).take(LONGEST_LINE).read_line(&mut text);
            if !read.is_ok_and(|bytes| bytes > 0) || !text.ends_with('\n') {
                break;
            }
            going_on = tell(Heard::Asked(number, serde_json::from_str(&text).map_err(|error| error.to_string())));
        }
        tell(Heard::Closed(number));
    })?;
    Ok(())
}

/// Answers. Who does not listen is nobody's concern: a connection that has ended is told by itself.
pub fn answer(mut stream: &UnixStream, answer: &Answer) {
    let _ = stream.write_all(line(answer).as_bytes());
}
