//! The client's side of an exchange over SPDY: a stream for each channel, named by its header `streamType`.

use std::time::Duration;

use axum::response::Response;
use bytes::{Bytes, BytesMut};
use serde_json::Value;
use skiff_spdy::{Reader, Refusal, Session, Writer};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::exchange::{
    Channel, Client, Ending as AnyEnding, Input, MAX_WAITING_INPUTS, Version, last_words, parse_size,
};
use super::query::StreamQuery;
use super::upgrade::SpdyUpgrade;

const V4: &str = "v4.channel.k8s.io";
const V3: &str = "v3.channel.k8s.io";
const V2: &str = "v2.channel.k8s.io";
const V1: &str = "channel.k8s.io";
/// For a client to open all streams that its request names.
pub(super) const STREAMS_TIME: Duration = Duration::from_secs(30);
/// Of a terminal's size, in JSON.
const MAX_SIZE_BYTES: usize = 1024;

pub(super) struct Ending {
    version: Version,
    error: Option<Writer>,
    /// The halves that this side says nothing on. A client takes the end of one for that of the process, and ends its input.
    silent: Vec<Writer>,
    /// Tells who waits for the client's end to close the connection.
    close: oneshot::Sender<()>,
    attending: JoinHandle<()>,
}

impl Ending {
    pub(super) async fn say(self, status: Option<Value>) {
        let Ending { version, error, silent, close, attending } = self;
        if let (Some(status), Some(mut error)) = (status, error) {
            let last = last_words(&status, version).unwrap_or_default();
            // A client that has left does not hear it.
            if !last.is_empty() {
                let _left = error.write(Bytes::from(last)).await;
            }
            let _left = error.finish().await;
        }
        for writer in silent {
            let _left = writer.finish().await;
        }
        let _ = close.send(());
        let _ = attending.await;
    }
}

/// Answers the handshake, and has `work` done with the client once its streams are there.
pub(super) fn accept<W>(
    upgrade: SpdyUpgrade,
    mut wanted: Wanted,
    work: impl FnOnce(Client) -> W + Send + 'static,
) -> Response
where
    W: Future<Output = ()> + Send,
{
    upgrade.run(&[V4, V3, V2, V1], async move |mut session, protocol| {
        wanted.resize &= matches!(protocol, V4 | V3);
        let Ok(Some(streams)) = tokio::time::timeout(STREAMS_TIME, wanted.open(&mut session)).await else {
            tracing::debug!("a client of SPDY has not opened the streams that it asked for");
            return session.close().await;
        };
        let version = if protocol == V4 { Version::Status } else { Version::Words };
        let client = streams.into_client(session, version);
        work(client).await;
    })
}

/// The streams that are still to come.
pub(super) struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    resize: bool,
}

#[derive(Default)]
struct Streams {
    error: Option<Writer>,
    stdin: Option<(Reader, Writer)>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    resize: Option<(Reader, Writer)>,
}

impl Wanted {
    pub(super) fn of(query: &StreamQuery) -> Wanted {
        Wanted { stdin: query.stdin, stdout: query.stdout, stderr: query.stderr, resize: query.tty }
    }

    fn are_all_there(&self, streams: &Streams) -> bool {
        streams.error.is_some()
            && streams.stdin.is_some() == self.stdin
            && streams.stdout.is_some() == self.stdout
            && streams.stderr.is_some() == self.stderr
            && streams.resize.is_some() == self.resize
    }

    /// `None` if the client leaves first.
    async fn open(&self, session: &mut Session) -> Option<Streams> {
        let mut streams = Streams::default();
        while !self.are_all_there(&streams) {
            let incoming = session.accept().await?;
            let kind = incoming.headers.get("streamtype").unwrap_or_default();
            let is_wanted = match kind {
                "error" => streams.error.is_none(),
                "stdin" => self.stdin && streams.stdin.is_none(),
                "stdout" => self.stdout && streams.stdout.is_none(),
                "stderr" => self.stderr && streams.stderr.is_none(),
                "resize" => self.resize && streams.resize.is_none(),
                _ => false,
            };
            if !is_wanted {
                incoming.refuse(Refusal::Protocol).await;
                continue;
            }
            let kind = kind.to_owned();
            let (reader, writer) = incoming.accept().await.ok()?;
            match kind.as_str() {
                "error" => streams.error = Some(writer),
                "stdout" => streams.stdout = Some(writer),
                "stderr" => streams.stderr = Some(writer),
                "stdin" => streams.stdin = Some((reader, writer)),
                _ => streams.resize = Some((reader, writer)),
            }
        }
        Some(streams)
    }
}

impl Streams {
    fn into_client(self, session: Session, version: Version) -> Client {
        let Streams { error, stdin, stdout, stderr, resize } = self;
        let (inputs, input) = mpsc::channel(MAX_WAITING_INPUTS);
        let mut silent = Vec::new();
        if let Some((reader, writer)) = stdin {
            tokio::spawn(read_stdin(reader, inputs.clone()));
            silent.push(writer);
        }
        if let Some((reader, writer)) = resize {
            tokio::spawn(read_sizes(reader, inputs.clone()));
            silent.push(writer);
        }
        let (close, closed) = oneshot::channel();
        let attending = tokio::spawn(attend(session, inputs, closed));
        let channel = |writer: Option<Writer>| writer.map_or(Channel::None, Channel::Spdy);
        let ending = AnyEnding::Spdy(Ending { version, error, silent, close, attending });
        Client { input, stdout: channel(stdout), stderr: channel(stderr), ending }
    }
}

/// Holds the connection until the client leaves or the exchange is over. `inputs` ends with it: that is how the exchange
/// learns that the client has left.
async fn attend(mut session: Session, inputs: mpsc::Sender<Input>, mut closed: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            incoming = session.accept() => match incoming {
                Some(incoming) => incoming.refuse(Refusal::Refused).await,
                None => break,
            },
            _ = &mut closed => break,
        }
    }
    drop(inputs);
    session.close().await;
}

async fn read_stdin(mut stdin: Reader, inputs: mpsc::Sender<Input>) {
    while let Ok(piece) = stdin.read().await {
        let is_end = piece.is_none();
        let input = piece.map_or(Input::EndOfStdin, Input::Stdin);
        if inputs.send(input).await.is_err() || is_end {
            return;
        }
    }
}

async fn read_sizes(mut sizes: Reader, inputs: mpsc::Sender<Input>) {
    let mut text = BytesMut::new();
    while let Ok(Some(piece)) = sizes.read().await {
        text.extend_from_slice(&piece);
        while let Some((size, taken)) = parse_size(&text) {
            let _read = text.split_to(taken);
            if inputs.send(Input::Resize(size)).await.is_err() {
                return;
            }
        }
        if text.len() > MAX_SIZE_BYTES {
            tracing::debug!("a client sends sizes of its terminal that are none");
            return;
        }
    }
}
