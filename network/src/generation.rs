//! Whether somebody has changed nft's rules.
//!
//! The kernel counts the transactions of a network namespace: asking for the count costs one message, where listing rules takes
//! a process. Who has written rules remembers the count; another one is a reason to look at what stands.
//!
//! Source: `linux/netfilter/nf_tables.h`, `NFT_MSG_GETGEN`.

use std::io;

use rustix::net::{SendFlags, send};

use crate::conntrack::{attribute, message, open, replies};

const SUBSYSTEM: u16 = libc::NFNL_SUBSYS_NFTABLES as u16;
const GET_GENERATION: u16 = SUBSYSTEM << 8 | libc::NFT_MSG_GETGEN as u16;
const GENERATION_ID: u16 = 1;

/// How many transactions there have been in the network namespace of the calling thread. The kernel answers at once.
pub(crate) fn generation() -> io::Result<u32> {
    let socket = open()?;
    // With an acknowledgement, which ends the replies.
    send(&socket, &message(GET_GENERATION, libc::NLM_F_ACK, &[]), SendFlags::empty())?;
    let mut found = None;
    replies(&socket, |body| {
        let id = attribute(body, GENERATION_ID).and_then(|id| id.first_chunk());
        found = found.or(id.map(|id| u32::from_be_bytes(*id)));
    })?;
    found.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
