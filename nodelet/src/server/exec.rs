//! `/exec/{namespace}/{pod}/{container}`: a process in a container, over a WebSocket.
//!
//! Every message begins with a byte that names its channel:
//!
//! ```text
//!  0 stdin ▶   1 stdout ◀   2 stderr ◀   3 how it ended (a Status) ◀   4 terminal size ▶
//!  255 (v5 only) ▶ closes the channel that the next byte names
//! ```
//!
//! In the first version of the protocol channel 3 is for an error's text, and says nothing of success.
//!
//! The connection is upgraded before anything else: what goes wrong then reaches the user over channel 3. An HTTP error
//! would make clients try the older SPDY instead and show only that its answer was no.
//!
//! A client that leaves takes its input with it: the process reads the end of it and lives on, its output unread. Only a
//! terminal hangs up, as terminals do.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::json;
use skiff_cri::v1::ExecRequest;
use skiff_cri::{Code, CriError, ExecSession, TerminalSize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::pod::PodExt;
use crate::server::{Api, query_flag};
use crate::snapshot;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const V1: &str = "channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
const BUFFER: usize = 32 * 1024;
const MAX_MESSAGE: usize = 1024 * 1024;
/// For the client to answer the end of an exchange that never began.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default, PartialEq, Eq)]
struct ExecQuery {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// Both the API's names and those that the API server uses towards nodes.
fn parse_query(query: &str) -> ExecQuery {
    let mut parsed = ExecQuery::default();
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(value);
        let on = query_flag(Some(&value));
        match key {
            "command" => parsed.command.push(value),
            "stdin" | "input" => parsed.stdin |= on,
            "stdout" | "output" => parsed.stdout |= on,
            "stderr" | "error" => parsed.stderr |= on,
            "tty" => parsed.tty |= on,
            _ => {}
        }
    }
    // A terminal has one output stream.
    parsed.stderr &= !parsed.tty;
    parsed
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) async fn exec(
    State(api): State<Api>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    let bad = |message: &str| (StatusCode::BAD_REQUEST, message.to_owned()).into_response();
    let asked = headers.get(header::UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if asked.to_ascii_lowercase().starts_with("spdy/") {
        if let Err(error) = find(&api, &namespace, &pod, &container).await {
            return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response();
        }
        return bad("this node does not speak SPDY: ask with a WebSocket (v5.channel.k8s.io)\n");
    }
    let Ok(upgrade) = upgrade else { return bad("you must ask for an upgrade to a WebSocket\n") };
    let query = parse_query(&query.unwrap_or_default());
    if query.command.is_empty() {
        return bad("you must specify at least 1 command\n");
    }
    if !(query.stdin || query.stdout || query.stderr) {
        return bad("you must specify at least 1 of stdin, stdout, stderr\n");
    }
    let first = match &query {
        ExecQuery { stdout: true, .. } => STDOUT,
        ExecQuery { stderr: true, .. } => STDERR,
        _ => ERROR,
    };
    upgrade.max_message_size(MAX_MESSAGE).protocols([V5, V4, V1]).on_upgrade(async move |socket| {
        let version = match socket.protocol().and_then(|p| p.to_str().ok()) {
            Some(V5) => Version::V5,
            Some(V4) => Version::V4,
            _ => Version::V1,
        };
        match open(&api, (&namespace, &pod, &container), &query).await {
            Ok(session) => {
                let departure = if query.tty { Departure::HangUp } else { Departure::EndOfInput };
                Exchange { version, first, departure }.run(socket, session).await;
            }
            Err(error) => refuse(socket, error, version).await,
        }
    })
}

/// The ID of the running container that is meant.
async fn find(api: &Api, namespace: &str, pod: &str, container: &str) -> Result<String, CriError> {
    let missing = |message: &str| CriError::new(Code::NotFound, message.trim_end());
    let found = api.find(namespace, pod, container).map_err(|(_, message)| missing(&message))?;
    let snapshot = snapshot::read(&*api.shared.cri, "", found.pod.uid()).await?;
    let running = snapshot.running().find(|c| c.name == found.container);
    let running = running.ok_or_else(|| missing(&format!("container not found ({container:?})")))?;
    Ok(running.id.clone())
}

async fn open(
    api: &Api,
    (namespace, pod, container): (&str, &str, &str),
    query: &ExecQuery,
) -> Result<ExecSession, CriError> {
    let request = ExecRequest {
        container_id: find(api, namespace, pod, container).await?,
        cmd: query.command.clone(),
        tty: query.tty,
        stdin: query.stdin,
        stdout: query.stdout,
        stderr: query.stderr,
    };
    api.shared.cri.exec(request).await
}

/// Says over channel 3 why there is no process, and ends the exchange as if there had been one.
async fn refuse(socket: WebSocket, error: CriError, version: Version) {
    let (sink, mut stream) = socket.split();
    let (out, out_rx) = mpsc::channel::<Message>(8);
    let writer = tokio::spawn(write_messages(sink, out_rx));
    say_end(&out, &end_status(Err(error)), version).await;
    drop(out);
    let _ = writer.await;
    // The client's own Close, so that the connection ends in order; one that sends none is not waited for.
    let _ =
        tokio::time::timeout(CLOSE_TIMEOUT, async { while let Some(Ok(_)) = stream.next().await {} }).await;
}

type Sink = mpsc::Sender<Message>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V4,
    V5,
}

/// What a client that leaves does to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Departure {
    /// It reads the end of its input.
    EndOfInput,
    /// Its terminal is gone, and it with it.
    HangUp,
}

struct Exchange {
    version: Version,
    /// The channel whose empty message says that the process runs.
    first: u8,
    departure: Departure,
}

impl Exchange {
    async fn run(self, socket: WebSocket, session: ExecSession) {
        let Exchange { version, first, departure } = self;
        let ExecSession { stdin, stdout, stderr, resize, exit } = session;
        let (sink, stream) = socket.split();
        let (out, out_rx) = mpsc::channel::<Message>(8);
        let writer = tokio::spawn(write_messages(sink, out_rx));
        // As upstream tells the client that the stream is open.
        let _ = out.send(framed(first, &[])).await;
        let input = read_messages(stream, stdin, resize, version == Version::V5);
        let (to_stdout, to_stderr) = (out.clone(), out.clone());
        let output = async move {
            tokio::join!(copy(stdout, STDOUT, to_stdout), copy(stderr, STDERR, to_stderr));
            exit.await
        };
        // Reading input is dropped where it stands once the process has ended: what is not read by then nobody wants.
        // When the client leaves first, the output is still read, or the process would wait for a reader for ever.
        let mut output = Box::pin(output);
        let ended = tokio::select! {
            ended = &mut output => Some(ended),
            () = input => match departure {
                Departure::EndOfInput => Some(output.await),
                // Dropping the output's half ends the process.
                Departure::HangUp => {
                    drop(output);
                    None
                }
            },
        };
        if let Some(ended) = ended {
            let status = match ended {
                Ok(result) => end_status(result),
                Err(_) => end_status(Err(CriError::unknown("the runtime lost the process"))),
            };
            say_end(&out, &status, version).await;
        }
        drop(out);
        let _ = writer.await;
    }
}

async fn say_end(out: &Sink, status: &serde_json::Value, version: Version) {
    if let Some(last) = last_words(status, version) {
        let _ = out.send(framed(ERROR, last.as_bytes())).await;
    }
    // kubectl takes any other ending for a broken stream.
    let normal = CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() };
    let _ = out.send(Message::Close(Some(normal))).await;
}

/// What goes over channel 3 at the end.
fn last_words(status: &serde_json::Value, version: Version) -> Option<String> {
    match version {
        Version::V4 | Version::V5 => Some(status.to_string()),
        Version::V1 => status["message"].as_str().map(str::to_owned),
    }
}

fn framed(channel: u8, data: &[u8]) -> Message {
    let mut message = Vec::with_capacity(data.len() + 1);
    message.push(channel);
    message.extend_from_slice(data);
    Message::Binary(Bytes::from(message))
}

async fn write_messages(mut sink: SplitSink<WebSocket, Message>, mut messages: mpsc::Receiver<Message>) {
    while let Some(message) = messages.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
}

async fn copy(from: Option<Box<dyn AsyncRead + Send + Unpin>>, channel: u8, out: Sink) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; BUFFER];
    while let Ok(n_read @ 1..) = from.read(&mut buffer).await {
        // A client that has left reads nothing; the process must be able to write all the same.
        let _left = out.send(framed(channel, &buffer[..n_read])).await;
    }
}

/// Reads until the client leaves. Input ends there at the latest, after all that was sent before.
async fn read_messages(
    mut messages: SplitStream<WebSocket>,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: mpsc::Sender<TerminalSize>,
    has_close: bool,
) {
    while let Some(Ok(message)) = messages.next().await {
        let data = match message {
            Message::Binary(data) => data,
            Message::Text(text) => Bytes::from(text),
            // Reading on sends the answer to it.
            Message::Close(_) => {
                stdin = None;
                continue;
            }
            _ => continue,
        };
        match (data.first(), data.get(1..).unwrap_or_default()) {
            (Some(&STDIN), input) => {
                if let Some(pipe) = &mut stdin {
                    // A process that closed its input is no reason to end the exchange.
                    if pipe.write_all(input).await.is_err() || pipe.flush().await.is_err() {
                        stdin = None;
                    }
                }
            }
            (Some(&RESIZE), size) => {
                if let Some(size) = parse_size(size) {
                    // A size that the runtime has no room for is followed by a newer one.
                    let _ = resize.try_send(size);
                }
            }
            (Some(&CLOSE), [STDIN]) if has_close => stdin = None,
            _ => {}
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

fn parse_size(json: &[u8]) -> Option<TerminalSize> {
    serde_json::from_slice::<Size>(json)
        .ok()
        .map(|size| TerminalSize { width: size.width, height: size.height })
}

/// How a process ended, as `kubectl` reads it for its own exit code.
fn end_status(result: Result<i32, CriError>) -> serde_json::Value {
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
            let message = format!("error executing command in container: {error}");
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
    fn both_spellings_of_a_query_are_understood() {
        let expected = ExecQuery {
            command: vec!["sh".into(), "-c".into(), "echo a b".into()],
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        };
        assert_eq!(
            parse_query(
                "command=sh&command=-c&command=echo%20a+b&stdin=true&stdout=true&stderr=true&tty=true"
            ),
            expected
        );
        assert_eq!(
            parse_query("command=sh&command=-c&command=echo+a%20b&input=1&output=1&error=1&tty=1"),
            expected
        );
    }

    #[test]
    fn booleans_of_a_query_are_false_where_upstreams_are() {
        for (text, expected) in [
            ("tty=false", false),
            ("tty=False", false),
            ("tty=FALSE", false),
            ("tty=0", false),
            ("", false),
            ("tty=true", true),
            ("tty=1", true),
            ("tty=", true),
            ("tty", true),
            ("tty=f", true),
        ] {
            assert_eq!(parse_query(&format!("command=ls&{text}")).tty, expected, "{text:?}");
        }
    }

    #[test]
    fn an_exit_code_is_a_cause_of_the_status() {
        assert_eq!(end_status(Ok(0))["status"], "Success");
        let status = end_status(Ok(3));
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "3" }));
    }

    #[test]
    fn the_first_version_says_errors_in_words_and_nothing_of_success() {
        let (good, bad) = (end_status(Ok(0)), end_status(Ok(3)));
        assert_eq!(last_words(&good, Version::V1), None);
        assert_eq!(last_words(&good, Version::V4).unwrap(), good.to_string());
        let words = last_words(&bad, Version::V1).unwrap();
        assert_eq!(words, "command terminated with non-zero exit code: exit status 3");
    }
}
