//! Whether xenstored answers. libxl waits for it without a limit, so one that is there and does not answer (stopped, stuck
//! on its disk) would hold up everything for ever.
//!
//! The question is the smallest of its protocol: read the node `domid`, which every domain has. Any answer will do.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// Where xenstored listens, if it is a process of this domain.
const SOCKET: &str = "/var/run/xenstored/socket";

/// How long it may take: it serves all guests in turn, and a loaded host is slow.
const LIMIT: Duration = Duration::from_secs(30);

/// XS_READ of xs_wire.h.
const READ: u32 = 2;

/// No message is longer.
const PAYLOAD_LIMIT: u32 = 4096;

/// It does not answer.
#[derive(Debug, thiserror::Error)]
#[error(
    "xenstored does not answer: nothing came from {} within {} s. No guest was touched. See whether the process \
     xenstored (or oxenstored) is stopped or waits for its disk; it can't be started anew without rebooting the host",
    socket.display(), limit.as_secs()
)]
pub struct NoAnswer {
    socket: PathBuf,
    limit: Duration,
}

/// Asks xenstored something. Where it is no process of this domain, or refuses the connection, libxl itself says so.
///
/// # Errors
/// No answer has come within half a minute.
pub fn check() -> Result<(), NoAnswer> {
    check_at(Path::new(SOCKET), LIMIT)
}

pub(super) fn check_at(socket: &Path, limit: Duration) -> Result<(), NoAnswer> {
    match ask(socket, limit, "domid") {
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            Err(NoAnswer { socket: socket.to_owned(), limit })
        }
        _ => Ok(()),
    }
}

/// What a node has. `None`: it is not there, or can't be asked for.
pub fn read(node: &str) -> Option<String> {
    ask(Path::new(SOCKET), LIMIT, node).ok().flatten()
}

/// Asks for a node. `Ok(None)`: there is no such node.
fn ask(socket: &Path, limit: Duration, node: &str) -> io::Result<Option<String>> {
    // Not by `UnixStream::connect`, which waits without a limit where too many others wait to be let in.
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    for which in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&stream, which, Some(limit))?;
    }
    connect(&stream, &SocketAddrUnix::new(socket)?)?;
    let mut stream = UnixStream::from(stream);
    let path = [node.as_bytes(), b"\0"].concat();
    let length = u32::try_from(path.len()).map_err(io::Error::other)?;
    let (request, transaction) = (0u32, 0u32);
    let mut message = Vec::with_capacity(16 + path.len());
    for number in [READ, request, transaction, length] {
        message.extend(number.to_ne_bytes());
    }
    message.extend(path);
    stream.write_all(&message)?;
    let mut header = [0; 16];
    stream.read_exact(&mut header)?;
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let mut value = vec![0; word(12).min(PAYLOAD_LIMIT) as usize];
    stream.read_exact(&mut value)?;
    Ok((word(0) == READ).then(|| String::from_utf8_lossy(&value).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const SOON: Duration = Duration::from_millis(100);

    #[test]
    fn any_answer_will_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let xenstored = thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("a client");
            let mut question = [0; 22];
            client.read_exact(&mut question).expect("a question");
            client.write_all(&[0; 16]).expect("an answer");
            question
        });
        check_at(&socket, Duration::from_secs(60)).expect("it answers");
        let question = xenstored.join().expect("no panic");
        assert_eq!(question[..4], 2u32.to_ne_bytes());
        assert_eq!(question[12..16], 6u32.to_ne_bytes());
        assert_eq!(&question[16..], b"domid\0");
    }

    #[test]
    fn silence_is_an_error_also_where_too_many_wait_to_be_let_in() {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("socket");
        // Connections are made and nobody takes them, up to 128 of them; those after that are not even made.
        let _listener = UnixListener::bind(&socket).expect("a socket");
        let error = check_at(&socket, SOON).expect_err("nobody answers");
        assert!(error.to_string().contains(&socket.display().to_string()), "{error}");
        let listener =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
        let narrow = directory.path().join("narrow");
        rustix::net::bind(&listener, &SocketAddrUnix::new(&narrow).expect("an address")).expect("bound");
        rustix::net::listen(&listener, 0).expect("listens");
        let _first = UnixStream::connect(&narrow).expect("one is let in");
        check_at(&narrow, SOON).expect_err("nobody answers");
    }

    #[test]
    fn what_is_not_there_is_libxl_s_to_report() {
        let directory = tempfile::tempdir().expect("a directory");
        check_at(&directory.path().join("socket"), SOON).expect("no socket");
        let socket = directory.path().join("closed");
        drop(UnixListener::bind(&socket).expect("a socket"));
        check_at(&socket, SOON).expect("refused");
    }
}
