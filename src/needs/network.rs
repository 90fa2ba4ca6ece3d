//! Looking at network devices, and hearing of their changes, over the kernel's route netlink.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, netdevice, recv, send, socket_with};

/// `RTMGRP_LINK`: devices come, go and change.
const LINKS: u32 = 0x1;
/// `RTMGRP_IPV4_IFADDR`: so do addresses.
const IPV4_ADDRESSES: u32 = 0x10;

/// Message types and flags of rtnetlink(7).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const AF_INET: u8 = 2;

/// The length of a message's header.
const HEADER: usize = 16;

/// Whether there is a network device of this name.
pub(super) fn is_there(name: &str) -> bool {
    index(name).is_ok()
}

/// Whether there is a network device of this name that has an IPv4 address.
pub(super) fn has_ipv4_address(name: &str) -> bool {
    index(name).and_then(has_address).unwrap_or(false)
}

/// A socket that becomes readable when a device or an address changes.
pub(super) fn changes() -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::NONBLOCK)?;
    bind(&socket, &SocketAddrNetlink::new(0, LINKS | IPV4_ADDRESSES))?;
    Ok(socket)
}

/// Takes away what has been heard. What it was is looked at elsewhere, so that it does not matter if some was lost.
pub(super) fn drain(changes: &OwnedFd) {
    let mut buffer = [0; 4096];
    // An overrun is reported once, between messages.
    while matches!(
        recv(changes, &mut buffer, RecvFlags::empty()),
        Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR)
    ) {}
}

fn socket(family: AddressFamily, kind: SocketType, flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(family, kind, flags | SocketFlags::CLOEXEC, None)?)
}

fn index(name: &str) -> io::Result<u32> {
    let any = socket(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::empty())?;
    Ok(netdevice::name_to_index(any, name)?)
}

/// Asks for all IPv4 addresses, and looks for one of this device.
fn has_address(device: u32) -> io::Result<bool> {
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::empty())?;
    send(&socket, &request(), SendFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (length, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        for (kind, body) in messages(&buffer[..length]) {
            match kind {
                NLMSG_DONE | NLMSG_ERROR => return Ok(false),
                RTM_NEWADDR if body.first() == Some(&AF_INET) && number(body, 4) == Some(device) => {
                    return Ok(true);
                }
                _ => {}
            }
        }
    }
}

/// The header and a `struct ifaddrmsg` of which only the family counts.
fn request() -> [u8; HEADER + 8] {
    let mut request = [0; HEADER + 8];
    request[..4].copy_from_slice(&(HEADER as u32 + 8).to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETADDR.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request[HEADER] = AF_INET;
    request
}

/// Splits what was received into messages: their type and what follows the header.
fn messages(received: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = received;
    std::iter::from_fn(move || {
        let length = usize::try_from(number(rest, 0)?).ok()?;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let body = rest.get(HEADER..length)?;
        // Each begins at a multiple of four.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_where_they_end_and_odd_ones_are_the_end() {
        let mut bytes = Vec::new();
        for (kind, body) in [(20u16, &b"abcde"[..]), (3, b"")] {
            bytes.extend((u32::try_from(HEADER + body.len()).expect("short")).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all, [(20, &b"abcde"[..]), (3, &b""[..])]);
        assert_eq!(messages(&bytes[..30]).count(), 1);
        assert_eq!(messages(&bytes[..19]).count(), 0);
        // A length that is too short to be one.
        assert_eq!(messages(&[1; 3]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
