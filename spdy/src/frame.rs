//! The layout of frames.
//!
//! ```text
//!  control: │1│ version 15 │ type 16 │ flags 8 │ length 24 │ …      data: │0│ stream 31 │ flags 8 │ length 24 │ …
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use crate::headers::Deflater;

pub(crate) const HEAD_BYTES: usize = 8;
/// What a SYN_STREAM has before its headers: the stream, the one that it belongs to, priority and slot.
pub(crate) const SYN_STREAM_BYTES: usize = 10;
pub(crate) const MAX_DATA_BYTES: usize = (1 << 24) - 1;

pub(crate) const VERSION: u16 = 3;
pub(crate) const SYN_STREAM: u16 = 1;
pub(crate) const SYN_REPLY: u16 = 2;
pub(crate) const RST_STREAM: u16 = 3;
pub(crate) const PING: u16 = 6;
pub(crate) const GOAWAY: u16 = 7;
pub(crate) const HEADERS: u16 = 8;

pub(crate) const FIN: u8 = 1;

/// The top bit of a stream's number, which is not part of it.
const RESERVED: u32 = 1 << 31;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    Control { version: u16, kind: u16, flags: u8, length: usize },
    Data { stream: u32, flags: u8, length: usize },
}

impl Head {
    pub(crate) fn parse(bytes: [u8; HEAD_BYTES]) -> Head {
        let [a, b, c, d, flags, e, f, g] = bytes;
        let length = u32::from_be_bytes([0, e, f, g]) as usize;
        if a & 0x80 == 0 {
            return Head::Data { stream: u32::from_be_bytes([a, b, c, d]), flags, length };
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        Head::Control { version, kind: u16::from_be_bytes([c, d]), flags, length }
    }

    #[cfg(test)]
    pub(crate) fn length(self) -> usize {
        match self {
            Head::Control { length, .. } | Head::Data { length, .. } => length,
        }
    }
}

/// The number that a payload begins with, of a stream or a ping.
pub(crate) fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

pub(crate) fn stream(payload: &[u8]) -> Option<u32> {
    number(payload).map(|number| number & !RESERVED)
}

/// What is to be written, in the order in which it is put in the queue.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Reply { stream: u32 },
    Reset { stream: u32, status: u32 },
    Data { stream: u32, data: Bytes, fin: bool },
    Ping { id: u32 },
    GoAway { last: u32 },
}

impl Outgoing {
    /// The frame's bytes without its data, and the data.
    pub(crate) fn encode(self, deflater: &mut Deflater) -> (Bytes, Bytes) {
        let mut out = BytesMut::with_capacity(32);
        match self {
            Outgoing::Reply { stream } => {
                let block = deflater.no_headers();
                control(&mut out, SYN_REPLY, 4 + block.len());
                out.put_u32(stream);
                out.extend_from_slice(&block);
            }
            Outgoing::Reset { stream, status } => {
                control(&mut out, RST_STREAM, 8);
                out.put_u32(stream);
                out.put_u32(status);
            }
            Outgoing::Ping { id } => {
                control(&mut out, PING, 4);
                out.put_u32(id);
            }
            Outgoing::GoAway { last } => {
                control(&mut out, GOAWAY, 8);
                out.put_u32(last);
                out.put_u32(0);
            }
            Outgoing::Data { stream, mut data, fin } => {
                data.truncate(MAX_DATA_BYTES);
                out.put_u32(stream);
                length(&mut out, if fin { FIN } else { 0 }, data.len());
                return (out.freeze(), data);
            }
        }
        (out.freeze(), Bytes::new())
    }
}

fn control(out: &mut BytesMut, kind: u16, n_bytes: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    length(out, 0, n_bytes);
}

fn length(out: &mut BytesMut, flags: u8, n_bytes: usize) {
    // All are shorter than 24 bits can say: control frames by construction, data as it was cut.
    let n_bytes = u32::try_from(n_bytes).unwrap_or_default();
    out.put_u32(u32::from(flags) << 24 | n_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_told_apart_by_their_first_bit() {
        let data = Outgoing::Data { stream: 5, data: Bytes::from_static(b"abc"), fin: true };
        let (head, data) = data.encode(&mut Deflater::default());
        assert_eq!(data, "abc");
        assert_eq!(
            Head::parse(*head.first_chunk().unwrap()),
            Head::Data { stream: 5, flags: FIN, length: 3 }
        );
        let (reset, _) = Outgoing::Reset { stream: 7, status: 3 }.encode(&mut Deflater::default());
        let head = Head::parse(*reset.first_chunk().unwrap());
        assert_eq!(head, Head::Control { version: 3, kind: RST_STREAM, flags: 0, length: 8 });
        assert_eq!(reset.len(), HEAD_BYTES + 8);
        assert_eq!(stream(&reset[HEAD_BYTES..]), Some(7));
    }
}
