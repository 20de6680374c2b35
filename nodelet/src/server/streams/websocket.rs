//! The client's side of an exchange over a WebSocket. Every message begins with what names its channel:
//!
//! ```text
//!  0 stdin ▶   1 stdout ◀   2 stderr ◀   3 how it ended ◀   4 terminal size ▶
//!  255 (v5 only) ▶ closes the channel that the next byte names
//! ```
//!
//! A byte in binary messages, a digit in those of `base64` protocols.

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::exchange::{self, CLOSE_TIME, Client, Input, MAX_WAITING_INPUTS, Version, last_words, parse_size};

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const V4_BASE64: &str = "v4.base64.channel.k8s.io";
const V1: &str = "channel.k8s.io";
const V1_BASE64: &str = "base64.channel.k8s.io";
const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
const MAX_MESSAGE: usize = 1024 * 1024;
const MAX_WAITING_MESSAGES: usize = 8;

/// What messages are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Binary,
    Base64,
}

impl Form {
    fn encode(self, channel: u8, data: &[u8]) -> Message {
        match self {
            Form::Binary => {
                let mut message = Vec::with_capacity(data.len() + 1);
                message.push(channel);
                message.extend_from_slice(data);
                Message::Binary(Bytes::from(message))
            }
            Form::Base64 => {
                let mut message = String::from(char::from(b'0'.saturating_add(channel)));
                STANDARD.encode_string(data, &mut message);
                Message::Text(message.into())
            }
        }
    }

    /// The channel and the data of a message; `None` if it is none of this form.
    fn decode(self, message: Bytes) -> Option<(u8, Bytes)> {
        let first = *message.first()?;
        let data = message.slice(1..);
        match self {
            Form::Binary => Some((first, data)),
            Form::Base64 => Some((first.checked_sub(b'0')?, STANDARD.decode(&data).ok()?.into())),
        }
    }
}

/// What comes in.
pub(super) enum Received {
    Data(u8, Bytes),
    /// The client's Close. Reading on sends the answer to it.
    Closing,
}

/// The half of a WebSocket that is read.
pub(super) struct Incoming {
    messages: SplitStream<WebSocket>,
    form: Form,
}

/// The half that is written, by a task of its own.
#[derive(Clone)]
pub(super) struct Outgoing {
    messages: mpsc::Sender<Message>,
    form: Form,
}

impl Incoming {
    /// The next message that has a channel; `None` once the client has gone.
    pub(super) async fn next(&mut self) -> Option<Received> {
        loop {
            let data = match self.messages.next().await?.ok()? {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => return Some(Received::Closing),
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            if let Some((channel, data)) = self.form.decode(data) {
                return Some(Received::Data(channel, data));
            }
        }
    }

    async fn drain(mut self) {
        while let Some(Ok(_)) = self.messages.next().await {}
    }
}

impl Outgoing {
    /// To nobody, once the client has gone.
    pub(super) async fn send(&self, channel: u8, data: &[u8]) {
        let _left = self.messages.send(self.form.encode(channel, data)).await;
    }

    pub(super) async fn close(&self) {
        // kubectl takes any other ending for a broken stream.
        let normal = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
        let _left = self.messages.send(Message::Close(Some(normal))).await;
    }
}

pub(super) fn split(socket: WebSocket, form: Form) -> (Incoming, Outgoing, JoinHandle<()>) {
    let (sink, messages) = socket.split();
    let (sender, to_write) = mpsc::channel(MAX_WAITING_MESSAGES);
    let writer = tokio::spawn(write(sink, to_write));
    (Incoming { messages, form }, Outgoing { messages: sender, form }, writer)
}

async fn write(mut sink: SplitSink<WebSocket, Message>, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

/// An output of a process.
pub(super) struct Channel {
    number: u8,
    out: Outgoing,
}

impl Channel {
    pub(super) async fn send(&self, data: &[u8]) {
        self.out.send(self.number, data).await;
    }
}

pub(super) struct Ending {
    version: Version,
    out: Outgoing,
    writer: JoinHandle<()>,
    reader: JoinHandle<()>,
}

impl Ending {
    /// Says how it ended, if it has; then the connection is closed in order. A client that sends no Close of its own is not
    /// waited for.
    pub(super) async fn say(self, status: Option<Value>) {
        let Ending { version, out, writer, mut reader } = self;
        if let Some(status) = status {
            if let Some(last) = last_words(&status, version) {
                out.send(ERROR, last.as_bytes()).await;
            }
            out.close().await;
        } else {
            reader.abort();
        }
        drop(out);
        let _ = writer.await;
        if tokio::time::timeout(CLOSE_TIME, &mut reader).await.is_err() {
            reader.abort();
        }
    }
}

/// Answers the handshake, and has `work` done with the client. `first` is the channel whose empty message says that it was
/// taken.
pub(super) fn accept<W>(
    upgrade: WebSocketUpgrade,
    first: u8,
    work: impl FnOnce(Client) -> W + Send + 'static,
) -> Response
where
    W: Future<Output = ()> + Send,
{
    let protocols = [V5, V4, V4_BASE64, V1, V1_BASE64];
    upgrade.max_message_size(MAX_MESSAGE).protocols(protocols).on_upgrade(async move |socket| {
        let protocol = socket.protocol().and_then(|protocol| protocol.to_str().ok()).unwrap_or_default();
        let version = if matches!(protocol, V5 | V4 | V4_BASE64) { Version::Status } else { Version::Words };
        let form = if matches!(protocol, V4_BASE64 | V1_BASE64) { Form::Base64 } else { Form::Binary };
        let has_close = protocol == V5;
        let (incoming, out, writer) = split(socket, form);
        // As upstream tells the client that the stream is open.
        out.send(first, &[]).await;
        let (inputs, input) = mpsc::channel(MAX_WAITING_INPUTS);
        let reader = tokio::spawn(read(incoming, inputs, has_close));
        let channel = |number| exchange::Channel::WebSocket(Channel { number, out: out.clone() });
        let client = Client {
            input,
            stdout: channel(STDOUT),
            stderr: channel(STDERR),
            ending: exchange::Ending::WebSocket(Ending { version, out: out.clone(), writer, reader }),
        };
        drop(out);
        work(client).await;
    })
}

/// Until the client leaves.
async fn read(mut incoming: Incoming, inputs: mpsc::Sender<Input>, has_close: bool) {
    while let Some(received) = incoming.next().await {
        let input = match received {
            Received::Closing => Input::EndOfStdin,
            Received::Data(STDIN, data) => Input::Stdin(data),
            Received::Data(RESIZE, size) => match parse_size(&size) {
                Some((size, _)) => Input::Resize(size),
                None => continue,
            },
            Received::Data(CLOSE, channel) if has_close && *channel == [STDIN] => Input::EndOfStdin,
            Received::Data(..) => continue,
        };
        if inputs.send(input).await.is_err() {
            // The exchange is over; the client's Close is still to come.
            return incoming.drain().await;
        }
    }
}

/// Answers the handshake of a client that has its own channels.
pub(super) fn accept_channels<W>(
    upgrade: WebSocketUpgrade,
    work: impl FnOnce(Incoming, Outgoing, JoinHandle<()>) -> W + Send + 'static,
) -> Response
where
    W: Future<Output = ()> + Send,
{
    upgrade.max_message_size(MAX_MESSAGE).protocols([V4, V4_BASE64]).on_upgrade(async move |socket| {
        let is_base64 = socket.protocol().is_some_and(|protocol| protocol == V4_BASE64);
        let form = if is_base64 { Form::Base64 } else { Form::Binary };
        let (incoming, out, writer) = split(socket, form);
        work(incoming, out, writer).await;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_what_it_was_in_either_form() {
        for form in [Form::Binary, Form::Base64] {
            let data = match form.encode(STDERR, b"\xffwords") {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::from(text),
                other => panic!("{other:?}"),
            };
            assert_eq!(form.decode(data), Some((STDERR, Bytes::from_static(b"\xffwords"))));
        }
        assert_eq!(Form::Base64.encode(STDOUT, b"a"), Message::Text("1YQ==".into()));
        for wrong in [&b""[..], b"1$", b"\x011"] {
            assert_eq!(Form::Base64.decode(Bytes::copy_from_slice(wrong)), None);
        }
    }
}
