//! Forgetting tracked UDP flows, through ctnetlink.
//!
//! A UDP client that keeps sending from one port keeps its tracked flow alive, and with it the address of an
//! endpoint that may no longer exist, or be somebody else's by now. TCP heals by itself: the next connection is a new
//! flow.
//!
//! Source: `linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

#[derive(Debug, thiserror::Error)]
#[error("cannot {action} tracked flows")]
pub(crate) struct ConntrackError {
    action: &'static str,
    source: io::Error,
}

/// One tracked UDP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Where the client sends to.
    pub(crate) to: SocketAddrV4,
    /// Who answers: the same, unless the destination is translated.
    pub(crate) answered_by: SocketAddrV4,
}

/// The kernel answers at once; this only keeps a thread from waiting for ever.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Deletes the UDP flows that are `stale` and answers how many there were. Works in the network namespace of the
/// calling thread.
pub(crate) async fn forget_udp(
    stale: impl Fn(&Flow) -> bool + Send + 'static,
) -> Result<usize, ConntrackError> {
    // Made here: a thread of the pool may be in another namespace.
    let socket = open().map_err(|source| ConntrackError { action: "ask for", source })?;
    let work = move || -> Result<usize, ConntrackError> {
        let mut tracked = Vec::new();
        let found = list(&socket, |flow, handle| {
            if stale(&flow) {
                tracked.push(handle);
            }
        });
        found.map_err(|source| ConntrackError { action: "list", source })?;
        for handle in &tracked {
            delete(&socket, handle).map_err(|source| ConntrackError { action: "delete", source })?;
        }
        Ok(tracked.len())
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ConntrackError { action: "delete", source: io::Error::other(error) })?
}

/// A socket to netfilter in the network namespace of the calling thread.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
    Ok(socket)
}

const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_CTNETLINK as u16;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// Inside of a tuple, and inside of its two parts.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_SOURCE: u16 = 1;
const IP_DESTINATION: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const PORT_SOURCE: u16 = 2;
const PORT_DESTINATION: u16 = 3;
/// Bits of an attribute's kind that are not its number.
const FLAGS: u16 = 0xc000;

const HEADER_BYTES: usize = 16;
/// Family, version and resource.
const GENERIC_BYTES: usize = 4;

pub(crate) fn message(kind: u16, flags: i32, attributes: &[u8]) -> Vec<u8> {
    let length = (HEADER_BYTES + GENERIC_BYTES + attributes.len()) as u32;
    let mut out = Vec::with_capacity(length as usize);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    // One request at a time: neither sequence nor sender need a number.
    out.extend([0; 8]);
    out.extend([libc::AF_INET as u8, 0, 0, 0]);
    out.extend(attributes);
    out
}

/// Calls `each` with every UDP flow and what names it to the kernel.
fn list(socket: impl AsFd, mut each: impl FnMut(Flow, Vec<u8>)) -> io::Result<()> {
    send(&socket, &message(GET, libc::NLM_F_DUMP, &[]), SendFlags::empty())?;
    replies(socket, |body| {
        if let Some((flow, handle)) = flow_of(body) {
            each(flow, handle);
        }
    })
}

/// A flow that has ended meanwhile is no error.
fn delete(socket: impl AsFd, handle: &[u8]) -> io::Result<()> {
    send(&socket, &message(DELETE, libc::NLM_F_ACK, handle), SendFlags::empty())?;
    match replies(socket, |_| {}) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Reads until the kernel says that it is done, and hands on the attributes of each message.
pub(crate) fn replies(socket: impl AsFd, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        let (n_bytes, _) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        let mut rest = &buffer[..n_bytes];
        while let Some((kind, body, after)) = next_message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => return answer_of(body),
                _ => each(body.get(GENERIC_BYTES..).unwrap_or_default()),
            }
            rest = after;
        }
    }
}

/// An error message holds a negative errno; zero is an acknowledgement.
fn answer_of(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|b| i32::from_ne_bytes(*b)) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER_BYTES..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The attributes of a body: number, whole attribute, payload.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & !FLAGS;
        let (whole, payload) = (bytes.get(..length)?, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, whole, payload))
    })
}

pub(crate) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, ..)| *kind == wanted).map(|(.., payload)| payload)
}

fn flow_of(body: &[u8]) -> Option<(Flow, Vec<u8>)> {
    let to = end_of(attribute(body, TUPLE_ORIGINAL)?, IP_DESTINATION, PORT_DESTINATION)?;
    let answered_by = end_of(attribute(body, TUPLE_REPLY)?, IP_SOURCE, PORT_SOURCE)?;
    let mut handle = Vec::new();
    // With its ID: a new flow between the same two is another one.
    for (_, whole, _) in attributes(body).filter(|(kind, ..)| [TUPLE_ORIGINAL, ID, ZONE].contains(kind)) {
        handle.extend(whole);
        handle.resize(handle.len().next_multiple_of(4), 0);
    }
    Some((Flow { to, answered_by }, handle))
}

/// One end of a UDP tuple.
fn end_of(tuple: &[u8], ip: u16, port: u16) -> Option<SocketAddrV4> {
    let protocol = attribute(tuple, TUPLE_PROTOCOL)?;
    if attribute(protocol, PROTOCOL_NUMBER)? != [libc::IPPROTO_UDP as u8] {
        return None;
    }
    let ip: [u8; 4] = *attribute(attribute(tuple, TUPLE_IP)?, ip)?.first_chunk()?;
    let port = u16::from_be_bytes(*attribute(protocol, port)?.first_chunk()?);
    Some(SocketAddrV4::new(Ipv4Addr::from(ip), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_message_makes_the_parser_stumble(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = flow_of(&bytes);
            let _ = next_message(&bytes);
        }
    }
}
