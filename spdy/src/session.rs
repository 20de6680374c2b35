//! A connection and its streams: one task reads, one writes.
//!
//! ```text
//!   connection ─▶ read ─┬─ new streams ─▶ Session::accept ─▶ Incoming ─┬─▶ Reader
//!                       └─ data of each stream ────────────────────────┘
//!   connection ◀─ write ◀── one queue of frames ◀── Writers, answers to pings
//! ```

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::frame::{self, FIN, HEAD_BYTES, Head, Outgoing};
use crate::headers::{Deflater, HeaderError, Headers, Inflater};

/// Read at a time, and so the size of a piece of data.
const PIECE_BYTES: usize = 32 << 10;
/// Pieces that wait for the reader of a stream; more hold up the connection.
const MAX_PIECES: usize = 16;
/// Frames that wait to be written; more hold up who writes.
const MAX_FRAMES: usize = 16;
/// Streams that nobody has looked at yet.
const MAX_WAITING: usize = 16;
const MAX_STREAMS: usize = 8192;
/// Control frames are short: headers are the longest.
const MAX_CONTROL_BYTES: usize = (16 << 10) + frame::SYN_STREAM_BYTES;
/// For the other side to read what was written and to hang up.
const CLOSE_TIME: Duration = Duration::from_secs(5);

const PROTOCOL_ERROR: u32 = 1;
const INVALID_STREAM: u32 = 2;
const REFUSED_STREAM: u32 = 3;
const CANCEL: u32 = 5;

const OPEN: u8 = 0;
const FINISHED: u8 = 1;
const RESET: u8 = 2;

/// The stream, or the whole connection, was given up by the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream was reset or its connection was lost")]
pub struct Lost;

/// Why a stream is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its headers do not say what they must.
    Protocol,
    /// There are too many.
    Refused,
}

/// Why a connection ends before its client ends it.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("read: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Headers(#[from] HeaderError),
    #[error("version {0} of SPDY is not spoken")]
    Version(u16),
    #[error("a control frame of kind {kind} has {length} bytes")]
    Length { kind: u16, length: usize },
    /// This side has closed it.
    #[error("closed")]
    Closed,
}

/// The accepting side of a connection. Dropping it ends the connection.
pub struct Session {
    incoming: mpsc::Receiver<Incoming>,
    out: mpsc::Sender<Outgoing>,
    reading: AbortOnDropHandle<()>,
    writing: AbortOnDropHandle<()>,
    last: u32,
}

/// A stream that the other side wants to open.
pub struct Incoming {
    pub id: u32,
    pub headers: Headers,
    reader: Reader,
    out: mpsc::Sender<Outgoing>,
}

/// What the other side sends over a stream.
#[derive(Debug)]
pub struct Reader {
    pieces: mpsc::Receiver<Bytes>,
    state: Arc<AtomicU8>,
}

/// What is sent over a stream. Dropping it before its end resets the stream.
#[derive(Debug)]
pub struct Writer {
    id: u32,
    out: mpsc::Sender<Outgoing>,
    state: Arc<AtomicU8>,
    ended: bool,
}

impl Session {
    /// Takes over a connection after the answer that says so was sent. Must be called within a Tokio runtime.
    pub fn new<T>(connection: T) -> Session
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read_half, write_half) = tokio::io::split(connection);
        let (out, frames) = mpsc::channel(MAX_FRAMES);
        let (incoming_sender, incoming) = mpsc::channel(MAX_WAITING);
        let streams = Streams {
            inflater: Inflater::default(),
            open: HashMap::new(),
            last: 0,
            gone_away: false,
            incoming: incoming_sender,
            out: out.clone(),
        };
        let reading = tokio::spawn(async move {
            if let Err(error) = streams.read(BufReader::with_capacity(PIECE_BYTES, read_half)).await {
                tracing::debug!(%error, "a SPDY connection ends");
            }
        });
        let writing = tokio::spawn(async move {
            if let Err(error) = write(frames, write_half).await {
                tracing::debug!(%error, "writing to a SPDY connection");
            }
        });
        Session {
            incoming,
            out,
            reading: AbortOnDropHandle::new(reading),
            writing: AbortOnDropHandle::new(writing),
            last: 0,
        }
    }

    /// The next stream, in the order in which they were asked for; `None` once the connection has ended.
    pub async fn accept(&mut self) -> Option<Incoming> {
        let incoming = self.incoming.recv().await?;
        self.last = incoming.id;
        Some(incoming)
    }

    /// Sends what is still to be sent, says goodbye, and waits a while for the other side to hang up: whoever reads late
    /// would otherwise lose the end.
    pub async fn close(self) {
        let Session { incoming, out, mut reading, mut writing, last } = self;
        drop(incoming);
        let ended = async {
            let _lost = out.send(Outgoing::GoAway { last }).await;
            drop(out);
            // The reader has a sender of the queue, too: the writer ends with GOAWAY.
            let _ = (&mut writing).await;
            let _ = (&mut reading).await;
        };
        let _ = tokio::time::timeout(CLOSE_TIME, ended).await;
    }
}

impl Incoming {
    /// Takes the stream.
    pub async fn accept(self) -> Result<(Reader, Writer), Lost> {
        let Incoming { id, reader, out, .. } = self;
        out.send(Outgoing::Reply { stream: id }).await.map_err(|_| Lost)?;
        let writer = Writer { id, out, state: reader.state.clone(), ended: false };
        Ok((reader, writer))
    }

    pub async fn refuse(self, why: Refusal) {
        let status = match why {
            Refusal::Protocol => PROTOCOL_ERROR,
            Refusal::Refused => REFUSED_STREAM,
        };
        let _lost = self.out.send(Outgoing::Reset { stream: self.id, status }).await;
    }
}

impl Reader {
    /// The next piece; `None` at the end that the other side gave it.
    pub async fn read(&mut self) -> Result<Option<Bytes>, Lost> {
        match self.pieces.recv().await {
            Some(piece) => Ok(Some(piece)),
            None if self.state.load(Ordering::Acquire) == FINISHED => Ok(None),
            None => Err(Lost),
        }
    }
}

impl Writer {
    /// Waits for room in the connection.
    pub async fn write(&mut self, data: Bytes) -> Result<(), Lost> {
        self.send(data, false).await
    }

    /// Ends this half of the stream.
    pub async fn finish(mut self) -> Result<(), Lost> {
        self.ended = true;
        self.send(Bytes::new(), true).await
    }

    /// Gives the whole stream up.
    pub async fn reset(mut self) {
        self.ended = true;
        let _lost = self.out.send(Outgoing::Reset { stream: self.id, status: CANCEL }).await;
    }

    async fn send(&mut self, data: Bytes, fin: bool) -> Result<(), Lost> {
        if self.state.load(Ordering::Acquire) == RESET {
            return Err(Lost);
        }
        self.out.send(Outgoing::Data { stream: self.id, data, fin }).await.map_err(|_| Lost)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.ended {
            // Where the queue is full the other side learns of it by the connection's end.
            let _full = self.out.try_send(Outgoing::Reset { stream: self.id, status: CANCEL });
        }
    }
}

async fn write(
    mut frames: mpsc::Receiver<Outgoing>,
    mut connection: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut deflater = Deflater::default();
    while let Some(frame) = frames.recv().await {
        let is_last = matches!(frame, Outgoing::GoAway { .. });
        let (head, data) = frame.encode(&mut deflater);
        connection.write_all_buf(&mut head.chain(data)).await?;
        if is_last || frames.is_empty() {
            connection.flush().await?;
        }
        if is_last {
            break;
        }
    }
    connection.shutdown().await
}

/// What is known of the streams by who reads.
struct Streams {
    inflater: Inflater,
    open: HashMap<u32, Open>,
    last: u32,
    gone_away: bool,
    incoming: mpsc::Sender<Incoming>,
    out: mpsc::Sender<Outgoing>,
}

/// A stream whose other side has not ended it.
struct Open {
    pieces: mpsc::Sender<Bytes>,
    state: Arc<AtomicU8>,
}

impl Streams {
    async fn read(mut self, mut connection: impl AsyncRead + Unpin) -> Result<(), ReadError> {
        let mut head = [0; HEAD_BYTES];
        loop {
            match connection.read_exact(&mut head).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            match Head::parse(head) {
                Head::Data { stream, flags, length } => {
                    self.data(&mut connection, stream, length).await?;
                    if flags & FIN != 0 {
                        self.end(stream, FINISHED);
                    }
                }
                Head::Control { version, .. } if version != frame::VERSION => {
                    return Err(ReadError::Version(version));
                }
                Head::Control { kind, flags, length, .. } => {
                    if length > MAX_CONTROL_BYTES {
                        return Err(ReadError::Length { kind, length });
                    }
                    let mut payload = vec![0; length];
                    connection.read_exact(&mut payload).await?;
                    self.control(kind, flags, &payload).await?;
                }
            }
        }
    }

    async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) -> Result<(), ReadError> {
        let short = || ReadError::Length { kind, length: payload.len() };
        match kind {
            frame::SYN_STREAM => {
                let id = frame::stream(payload).ok_or_else(short)?;
                let block = payload.get(frame::SYN_STREAM_BYTES..).ok_or_else(short)?;
                let headers = self.inflater.headers(block)?;
                self.open(id, headers, flags & FIN != 0).await
            }
            // They continue the one compressed stream, whatever they say.
            frame::HEADERS => {
                let id = frame::stream(payload).ok_or_else(short)?;
                self.inflater.headers(payload.get(4..).ok_or_else(short)?)?;
                if flags & FIN != 0 {
                    self.end(id, FINISHED);
                }
                Ok(())
            }
            frame::RST_STREAM => {
                self.end(frame::stream(payload).ok_or_else(short)?, RESET);
                Ok(())
            }
            frame::PING => {
                let id = frame::number(payload).ok_or_else(short)?;
                // Even ones would be answers to this side's, which sends none.
                if id % 2 == 1 { self.send(Outgoing::Ping { id }).await } else { Ok(()) }
            }
            frame::GOAWAY => {
                self.gone_away = true;
                Ok(())
            }
            // SETTINGS, WINDOW_UPDATE, CREDENTIAL.
            _ => Ok(()),
        }
    }

    async fn open(&mut self, id: u32, headers: Headers, has_ended: bool) -> Result<(), ReadError> {
        if self.gone_away {
            return Ok(());
        }
        // A client's are odd and grow.
        if id.is_multiple_of(2) || id <= self.last {
            return self.send(Outgoing::Reset { stream: id, status: PROTOCOL_ERROR }).await;
        }
        self.last = id;
        if self.open.len() >= MAX_STREAMS {
            self.open.retain(|_, stream| !stream.pieces.is_closed());
        }
        if self.open.len() >= MAX_STREAMS {
            return self.send(Outgoing::Reset { stream: id, status: REFUSED_STREAM }).await;
        }
        let (sender, pieces) = mpsc::channel(MAX_PIECES);
        let state = Arc::new(AtomicU8::new(if has_ended { FINISHED } else { OPEN }));
        let reader = Reader { pieces, state: state.clone() };
        if !has_ended {
            self.open.insert(id, Open { pieces: sender, state });
        }
        let incoming = Incoming { id, headers, reader, out: self.out.clone() };
        self.incoming.send(incoming).await.map_err(|_| ReadError::Closed)
    }

    /// Takes the data of a frame from the connection piece by piece, whether somebody wants it or not.
    async fn data(
        &mut self,
        connection: &mut (impl AsyncRead + Unpin),
        stream: u32,
        mut left: usize,
    ) -> Result<(), ReadError> {
        if left > 0 && stream > self.last {
            self.send(Outgoing::Reset { stream, status: INVALID_STREAM }).await?;
        }
        while left > 0 {
            let mut piece = BytesMut::with_capacity(left.min(PIECE_BYTES));
            let n_read = connection.take(left.min(PIECE_BYTES) as u64).read_buf(&mut piece).await?;
            if n_read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            left -= n_read;
            if let Some(open) = self.open.get(&stream)
                && open.pieces.send(piece.freeze()).await.is_err()
            {
                // Nobody reads it any more: what else comes is passed over.
                self.open.remove(&stream);
            }
        }
        Ok(())
    }

    fn end(&mut self, stream: u32, how: u8) {
        if let Some(open) = self.open.remove(&stream) {
            open.state.store(how, Ordering::Release);
        }
    }

    async fn send(&self, frame: Outgoing) -> Result<(), ReadError> {
        self.out.send(frame).await.map_err(|_| ReadError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut as _;
    use tokio::io::DuplexStream;

    use super::*;

    /// A client that speaks in frames.
    struct Client {
        connection: DuplexStream,
        begun: bool,
    }

    impl Client {
        fn pair() -> (Client, Session) {
            let (connection, server) = tokio::io::duplex(1 << 20);
            (Client { connection, begun: false }, Session::new(server))
        }

        async fn open(&mut self, id: u32, headers: &[(&str, &str)], flags: u8) {
            let mut text = BytesMut::new();
            text.put_u32(u32::try_from(headers.len()).unwrap());
            for part in headers.iter().flat_map(|(name, value)| [name, value]) {
                text.put_u32(u32::try_from(part.len()).unwrap());
                text.extend_from_slice(part.as_bytes());
            }
            let mut block = BytesMut::new();
            if !std::mem::replace(&mut self.begun, true) {
                block.extend_from_slice(&[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2]);
            }
            let length = u16::try_from(text.len()).unwrap();
            block.put_u8(0);
            block.put_u16_le(length);
            block.put_u16_le(!length);
            block.extend_from_slice(&text);
            let mut payload = BytesMut::new();
            payload.put_u32(id);
            payload.put_bytes(0, 6);
            payload.extend_from_slice(&block);
            self.control(frame::SYN_STREAM, flags, &payload).await;
        }

        async fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) {
            let mut frame = BytesMut::new();
            frame.put_u16(0x8003);
            frame.put_u16(kind);
            frame.put_u32(u32::from(flags) << 24 | u32::try_from(payload.len()).unwrap());
            frame.extend_from_slice(payload);
            self.connection.write_all(&frame).await.unwrap();
        }

        async fn data(&mut self, stream: u32, data: &[u8], flags: u8) {
            self.connection.write_u32(stream).await.unwrap();
            let head = u32::from(flags) << 24 | u32::try_from(data.len()).unwrap();
            self.connection.write_u32(head).await.unwrap();
            self.connection.write_all(data).await.unwrap();
        }

        async fn frame(&mut self) -> Option<(Head, Vec<u8>)> {
            let mut head = [0; HEAD_BYTES];
            self.connection.read_exact(&mut head).await.ok()?;
            let head = Head::parse(head);
            let mut payload = vec![0; head.length()];
            self.connection.read_exact(&mut payload).await.ok()?;
            Some((head, payload))
        }

        /// The next frame's kind and stream, of one that is no data.
        async fn answer(&mut self) -> (u16, u32) {
            let (head, payload) = self.frame().await.unwrap();
            let Head::Control { kind, .. } = head else { panic!("{head:?}") };
            (kind, frame::stream(&payload).unwrap())
        }
    }

    #[tokio::test]
    async fn a_stream_goes_both_ways_and_each_way_ends_by_itself() {
        let (mut client, mut session) = Client::pair();
        client.open(1, &[("streamType", "data"), ("port", "80")], 0).await;
        let incoming = session.accept().await.unwrap();
        assert_eq!(
            (incoming.headers.get("streamtype"), incoming.headers.get("port")),
            (Some("data"), Some("80"))
        );
        let (mut reader, mut writer) = incoming.accept().await.unwrap();
        assert_eq!(client.answer().await, (frame::SYN_REPLY, 1));
        client.data(1, b"question", FIN).await;
        assert_eq!(reader.read().await.unwrap().unwrap(), "question");
        assert_eq!(reader.read().await, Ok(None));
        writer.write(Bytes::from_static(b"answer")).await.unwrap();
        writer.finish().await.unwrap();
        let data = |flags, length| Head::Data { stream: 1, flags, length };
        assert_eq!(client.frame().await, Some((data(0, 6), b"answer".to_vec())));
        assert_eq!(client.frame().await, Some((data(FIN, 0), Vec::new())));
        let closing = tokio::spawn(session.close());
        assert_eq!(client.answer().await, (frame::GOAWAY, 1));
        assert_eq!(client.frame().await, None);
        drop(client);
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn a_large_frame_comes_in_pieces_and_none_is_lost() {
        let (mut client, mut session) = Client::pair();
        client.open(1, &[], 0).await;
        let (mut reader, writer) = session.accept().await.unwrap().accept().await.unwrap();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[2]).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            client.data(1, &sent, FIN).await;
            client
        });
        let mut seen = Vec::new();
        while let Some(piece) = reader.read().await.unwrap() {
            assert!(piece.len() <= PIECE_BYTES);
            seen.extend_from_slice(&piece);
        }
        assert!(seen == expected);
        drop(writer);
        let mut client = sending.await.unwrap();
        assert_eq!(client.answer().await, (frame::SYN_REPLY, 1));
        assert_eq!(
            client.answer().await,
            (frame::RST_STREAM, 1),
            "a writer that is dropped resets the stream"
        );
    }

    #[tokio::test]
    async fn a_reset_ends_both_halves_and_an_end_of_the_connection_is_no_end_of_a_stream() {
        let (mut client, mut session) = Client::pair();
        client.open(1, &[], 0).await;
        client.open(3, &[], 0).await;
        let (mut first, mut writer) = session.accept().await.unwrap().accept().await.unwrap();
        let (mut second, _writer) = session.accept().await.unwrap().accept().await.unwrap();
        client.control(frame::RST_STREAM, 0, &[0, 0, 0, 1, 0, 0, 0, 5]).await;
        assert_eq!(first.read().await, Err(Lost));
        assert_eq!(writer.write(Bytes::from_static(b"x")).await, Err(Lost));
        drop(client);
        assert_eq!(second.read().await, Err(Lost));
        assert!(session.accept().await.is_none());
    }

    #[tokio::test]
    async fn what_nobody_reads_of_one_stream_does_not_stand_before_another() {
        let (mut client, mut session) = Client::pair();
        client.open(1, &[], 0).await;
        client.open(3, &[], FIN).await;
        let (reader, _writer) = session.accept().await.unwrap().accept().await.unwrap();
        drop(reader);
        for _ in 0..4 * MAX_PIECES {
            client.data(1, &[0; 1024], 0).await;
        }
        let (mut ended, _other) = session.accept().await.unwrap().accept().await.unwrap();
        assert_eq!(ended.read().await, Ok(None));
        client.control(frame::PING, 0, &[0, 0, 0, 7]).await;
        assert_eq!(client.answer().await, (frame::SYN_REPLY, 1));
        assert_eq!(client.answer().await, (frame::SYN_REPLY, 3));
        assert_eq!(client.answer().await, (frame::PING, 7));
    }

    #[tokio::test]
    async fn streams_are_bounded_and_their_numbers_grow() {
        let (mut client, mut session) = Client::pair();
        let holding = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(incoming) = session.accept().await {
                held.push(incoming);
            }
            held.len()
        });
        let n_streams = u32::try_from(MAX_STREAMS).unwrap();
        for number in 0..n_streams {
            client.open(2 * number + 1, &[], 0).await;
        }
        client.open(2 * n_streams + 1, &[], 0).await;
        assert_eq!(client.answer().await, (frame::RST_STREAM, 2 * n_streams + 1));
        client.open(3, &[], 0).await;
        assert_eq!(client.answer().await, (frame::RST_STREAM, 3));
        client.open(4, &[], 0).await;
        assert_eq!(client.answer().await, (frame::RST_STREAM, 4));
        drop(client);
        assert_eq!(holding.await.unwrap(), MAX_STREAMS);
    }

    #[tokio::test]
    async fn what_is_no_spdy_ends_the_connection() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n\r\n\r\n\r\n"[..],
            &[0x80, 2, 0, 1, 0, 0, 0, 0],
            &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        ] {
            let (mut client, mut session) = Client::pair();
            client.connection.write_all(bytes).await.unwrap();
            client.connection.shutdown().await.unwrap();
            assert!(session.accept().await.is_none());
        }
    }
}
