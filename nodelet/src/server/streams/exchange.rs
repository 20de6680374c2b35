//! Bytes between a client, whatever it speaks, and the streams of a container.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};
use skiff_cri::{CriError, ExecSession, TerminalSize};
use skiff_spdy::Writer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{spdy, websocket};

const BUFFER: usize = 32 * 1024;
/// Of what a client sends: a message of a WebSocket is a megabyte at most.
pub(super) const MAX_WAITING_INPUTS: usize = 2;
/// For a client to end its side of an exchange that is over.
pub(super) const CLOSE_TIME: Duration = Duration::from_secs(5);

/// What a client sends.
pub(super) enum Input {
    Stdin(Bytes),
    /// No more input; the client may still be there.
    EndOfStdin,
    Resize(TerminalSize),
}

/// How much a client's version of the protocol can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// Errors in words, nothing of success.
    Words,
    /// A `Status` at the end.
    Status,
}

/// A client that was answered.
pub(super) struct Client {
    /// Ends when the client has left.
    pub(super) input: mpsc::Receiver<Input>,
    pub(super) stdout: Channel,
    pub(super) stderr: Channel,
    pub(super) ending: Ending,
}

/// Where an output goes.
pub(super) enum Channel {
    WebSocket(websocket::Channel),
    Spdy(Writer),
    /// The client wants none of it.
    None,
}

/// What ends an exchange.
pub(super) enum Ending {
    WebSocket(websocket::Ending),
    Spdy(spdy::Ending),
}

/// What a client that leaves does to the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// It reads the end of its input, and its output is read on.
    EndOfInput,
    /// It ends: a terminal hangs up, what was attached is detached.
    End,
}

impl Client {
    /// Until the session or the client has ended.
    pub(super) async fn run(self, session: ExecSession, departure: Departure, doing: &str) {
        let Client { input, stdout, stderr, ending } = self;
        let ExecSession { stdin, stdout: from_stdout, stderr: from_stderr, resize, exit } = session;
        let input = pass_on(input, stdin, resize);
        let output = async move {
            tokio::join!(copy(from_stdout, stdout), copy(from_stderr, stderr));
            exit.await
        };
        // Reading input is dropped where it stands once the session has ended: what is not read by then nobody wants.
        // When the client leaves first, a process's output is still read, or it would wait for a reader for ever.
        let mut output = Box::pin(output);
        let ended = tokio::select! {
            ended = &mut output => Some(ended),
            () = input => match departure {
                Departure::EndOfInput => Some(output.await),
                Departure::End => {
                    drop(output);
                    None
                }
            },
        };
        let status = ended.map(|ended| {
            end_status(
                ended.unwrap_or_else(|_| Err(CriError::unknown("the runtime lost the process"))),
                doing,
            )
        });
        ending.say(status).await;
    }

    /// Says why there is no session, and ends the exchange as if there had been one.
    pub(super) async fn refuse(self, error: CriError, doing: &str) {
        // The channels go first: what is written ends with the last of them.
        let Client { input: _not_read, stdout, stderr, ending } = self;
        drop((stdout, stderr));
        ending.say(Some(end_status(Err(error), doing))).await;
    }
}

impl Channel {
    async fn send(&mut self, data: Bytes) {
        // A client that has left reads nothing; the process must be able to write all the same.
        match self {
            Channel::WebSocket(channel) => channel.send(&data).await,
            Channel::Spdy(writer) => {
                if writer.write(data).await.is_err() {
                    *self = Channel::None;
                }
            }
            Channel::None => {}
        }
    }

    async fn finish(self) {
        if let Channel::Spdy(writer) = self {
            let _left = writer.finish().await;
        }
    }
}

impl Ending {
    async fn say(self, status: Option<Value>) {
        match self {
            Ending::WebSocket(ending) => ending.say(status).await,
            Ending::Spdy(ending) => ending.say(status).await,
        }
    }
}

/// What a version says at the end.
pub(super) fn last_words(status: &Value, version: Version) -> Option<String> {
    match version {
        Version::Status => Some(status.to_string()),
        Version::Words => status["message"].as_str().map(str::to_owned),
    }
}

async fn copy(from: Option<Box<dyn AsyncRead + Send + Unpin>>, mut to: Channel) {
    if let Some(mut from) = from {
        let mut buffer = BytesMut::with_capacity(BUFFER);
        while let Ok(1..) = from.read_buf(&mut buffer).await {
            to.send(buffer.split().freeze()).await;
            buffer.reserve(BUFFER);
        }
    }
    to.finish().await;
}

/// Until the client leaves. Input ends there at the latest, after all that was sent before.
async fn pass_on(
    mut input: mpsc::Receiver<Input>,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: mpsc::Sender<TerminalSize>,
) {
    while let Some(input) = input.recv().await {
        match input {
            Input::Stdin(data) => {
                if let Some(pipe) = &mut stdin {
                    // A process that closed its input is no reason to end the exchange.
                    if pipe.write_all(&data).await.is_err() || pipe.flush().await.is_err() {
                        stdin = None;
                    }
                }
            }
            Input::EndOfStdin => stdin = None,
            Input::Resize(size) => {
                // A size that the runtime has no room for is followed by a newer one.
                let _ = resize.try_send(size);
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// The first size of `json`, and how many bytes it takes.
pub(super) fn parse_size(json: &[u8]) -> Option<(TerminalSize, usize)> {
    let mut sizes = serde_json::Deserializer::from_slice(json).into_iter::<Size>();
    let size = sizes.next()?.ok()?;
    Some((TerminalSize { width: size.width, height: size.height }, sizes.byte_offset()))
}

/// How a process ended, as `kubectl` reads it for its own exit code.
fn end_status(result: Result<i32, CriError>, doing: &str) -> Value {
    match result {
        Ok(0) => json!({ "metadata": {}, "status": "Success" }),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(error) => {
            let message = format!("error {doing} container: {error}");
            json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": { "causes": [{ "message": message }] },
                "code": 500,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_a_cause_of_the_status() {
        assert_eq!(end_status(Ok(0), "attaching to")["status"], "Success");
        let status = end_status(Ok(3), "executing command in");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "3" }));
    }

    #[test]
    fn older_versions_say_errors_in_words_and_nothing_of_success() {
        let (good, bad) = (end_status(Ok(0), "attaching to"), end_status(Ok(3), "executing command in"));
        assert_eq!(last_words(&good, Version::Words), None);
        assert_eq!(last_words(&good, Version::Status).unwrap(), good.to_string());
        let words = last_words(&bad, Version::Words).unwrap();
        assert_eq!(words, "command terminated with non-zero exit code: exit status 3");
    }

    #[test]
    fn sizes_follow_each_other_in_a_stream() {
        let text = br#"{"Width":80,"Height":24}{"Width":1,"Hei"#;
        let (size, taken) = parse_size(text).unwrap();
        assert_eq!((size.width, size.height), (80, 24));
        assert!(parse_size(&text[taken..]).is_none());
    }
}
