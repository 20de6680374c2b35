//! `/portForward/{namespace}/{pod}`: connections to ports of a pod, as its own containers reach them on its loopback.
//!
//! Over SPDY a pair of streams for each connection, `data` and `error`, with the headers `port` and `requestID`. Over a
//! WebSocket one connection for each port of the query: channel 2i has its data, 2i + 1 its errors, and both begin with the
//! port, two bytes, little endian.

use std::collections::HashMap;
use std::time::Instant;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use skiff_cri::{Code, CriError, PodConnection};
use skiff_spdy::{Incoming, Reader, Refusal, Session, Writer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::query;
use super::spdy::STREAMS_TIME;
use super::upgrade::{Upgrade, bad};
use super::websocket::{self, Outgoing, Received};
use crate::pod::PodExt;
use crate::server::Api;
use crate::snapshot;

const PROTOCOL: &str = "portforward.k8s.io";
const BUFFER: usize = 32 * 1024;
/// Of one client at a time.
const MAX_CONNECTIONS: usize = 4096;
/// Channels are named by a byte.
const MAX_PORTS: usize = 127;
/// Pieces that wait for a pod that reads slowly.
const MAX_PIECES: usize = 4;
/// Pairs of which one half is still to come.
const MAX_HALVES: usize = 64;

pub(in crate::server) async fn port_forward(
    State(api): State<Api>,
    Path((namespace, pod)): Path<(String, String)>,
    request: Request,
) -> Response {
    let (mut parts, _) = request.into_parts();
    let upgrade = match Upgrade::of(&mut parts).await {
        Ok(upgrade) => upgrade,
        Err(refusal) => return refusal,
    };
    let target = match Target::find(&api, &namespace, &pod).await {
        Ok(target) => target,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    };
    match upgrade {
        Upgrade::Spdy(upgrade) => {
            upgrade.run(&[PROTOCOL], async move |session, _| over_spdy(target, session).await)
        }
        Upgrade::WebSocket(upgrade) => match ports(parts.uri.query().unwrap_or_default()) {
            Ok(ports) => over_websocket(target, upgrade, ports),
            Err(message) => bad(&message),
        },
    }
}

/// The pod that connections lead to.
#[derive(Clone)]
struct Target {
    api: Api,
    pod: String,
    uid: String,
}

impl Target {
    async fn find(api: &Api, namespace: &str, name: &str) -> Result<Target, CriError> {
        let found = api.index.read().get(&(namespace.to_owned(), name.to_owned())).cloned();
        let found = found.ok_or_else(|| {
            CriError::new(Code::NotFound, format!("pod {name:?} not found in namespace {namespace:?}"))
        })?;
        let target = Target { api: api.clone(), pod: name.to_owned(), uid: found.uid().to_owned() };
        target.sandbox().await?;
        Ok(target)
    }

    /// The newest, which may be another than when the client came.
    async fn sandbox(&self) -> Result<String, CriError> {
        let snapshot = snapshot::read(&*self.api.shared.cri, "", &self.uid).await?;
        let sandbox = snapshot.sandboxes.first().filter(|sandbox| sandbox.ready);
        let sandbox = sandbox.ok_or_else(|| {
            CriError::new(Code::NotFound, format!("pod {:?} has no sandbox that runs", self.pod))
        })?;
        Ok(sandbox.id.clone())
    }

    async fn connect(&self, port: u16) -> Result<PodConnection, CriError> {
        self.api.shared.cri.port_forward(&self.sandbox().await?, port).await
    }

    fn explain(&self, port: u16, error: &dyn std::fmt::Display) -> String {
        format!("error forwarding port {port} to pod {}, uid {}: {error}", self.pod, self.uid)
    }
}

/// The first half of a pair, until the other comes.
struct Half {
    since: Instant,
    port: u16,
    kind: Kind,
    reader: Reader,
    writer: Writer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// What the headers of a stream say.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    kind: Kind,
    port: u16,
    request: String,
}

impl Asked {
    fn of(incoming: &Incoming) -> Option<Asked> {
        let header = |name| incoming.headers.get(name).filter(|value: &&str| !value.is_empty());
        let kind = match header("streamtype")? {
            "data" => Kind::Data,
            "error" => Kind::Error,
            _ => return None,
        };
        let port = header("port")?.parse().ok().filter(|port| *port > 0)?;
        let request = match (header("requestid"), kind) {
            (Some(request), _) => request.to_owned(),
            // Old clients name no request: the stream for errors comes first, that for data is the next.
            (None, Kind::Error) => incoming.id.to_string(),
            (None, Kind::Data) => incoming.id.saturating_sub(2).to_string(),
        };
        Some(Asked { kind, port, request })
    }
}

async fn over_spdy(target: Target, mut session: Session) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = session.accept() => incoming,
            Some(_) = connections.join_next() => continue,
        };
        let Some(incoming) = incoming else { break };
        halves.retain(|_, half| half.since.elapsed() < STREAMS_TIME);
        let Some(asked) = Asked::of(&incoming) else {
            incoming.refuse(Refusal::Protocol).await;
            continue;
        };
        if halves.len() >= MAX_HALVES || connections.len() >= MAX_CONNECTIONS {
            incoming.refuse(Refusal::Refused).await;
            continue;
        }
        if halves.get(&asked.request).is_some_and(|half| half.kind == asked.kind) {
            incoming.refuse(Refusal::Protocol).await;
            continue;
        }
        let Ok((reader, writer)) = incoming.accept().await else { break };
        match halves.remove(&asked.request) {
            None => {
                let (port, kind) = (asked.port, asked.kind);
                halves.insert(asked.request, Half { since: Instant::now(), port, kind, reader, writer });
            }
            Some(first) => {
                let second = Half { since: first.since, port: asked.port, kind: asked.kind, reader, writer };
                let (data, error) = if first.kind == Kind::Data { (first, second) } else { (second, first) };
                connections.spawn(forward(target.clone(), data, error));
            }
        }
    }
    connections.shutdown().await;
    session.close().await;
}

/// One connection, from its streams to the pod and back.
async fn forward(target: Target, data: Half, error: Half) {
    let Half { port, mut reader, mut writer, .. } = data;
    let mut told = error.writer;
    let connection = match target.connect(port).await {
        Ok(connection) => connection,
        Err(why) => {
            let message = target.explain(port, &why);
            tracing::debug!(message, "port forwarding");
            let _left = told.write(Bytes::from(message)).await;
            let _left = told.finish().await;
            return writer.reset().await;
        }
    };
    let (from_pod, to_pod) = tokio::io::split(connection);
    let up = to_pod_of(&mut reader, to_pod);
    let down = async {
        let mut from_pod = Pieces::new(from_pod);
        while let Some(piece) = from_pod.next().await? {
            writer.write(piece).await.map_err(|_| ())?;
        }
        writer.finish().await.map_err(|_| ())
    };
    // A half that ends leaves the other open, as TCP does; a half that breaks breaks both.
    let _broken = tokio::try_join!(up, down);
    let _left = told.finish().await;
}

async fn to_pod_of(reader: &mut Reader, mut pod: WriteHalf<PodConnection>) -> Result<(), ()> {
    while let Some(piece) = reader.read().await.map_err(|_| ())? {
        pod.write_all(&piece).await.map_err(|_| ())?;
    }
    pod.shutdown().await.map_err(|_| ())
}

/// What the pod sends, piece by piece.
struct Pieces {
    pod: ReadHalf<PodConnection>,
    buffer: BytesMut,
}

impl Pieces {
    fn new(pod: ReadHalf<PodConnection>) -> Pieces {
        Pieces { pod, buffer: BytesMut::new() }
    }

    /// `None` at its end.
    async fn next(&mut self) -> Result<Option<Bytes>, ()> {
        self.buffer.reserve(BUFFER);
        let n_read = self.pod.read_buf(&mut self.buffer).await.map_err(|_| ())?;
        Ok((n_read > 0).then(|| self.buffer.split().freeze()))
    }
}

/// The ports of a query, each as often as it is named.
fn ports(query: &str) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for (_, value) in query::pairs(query).filter(|(key, _)| matches!(*key, "port" | "ports")) {
        for text in value.split(',') {
            match text.parse() {
                Ok(port) if port > 0 => ports.push(port),
                _ => return Err(format!("unable to parse {value:?} as a port\n")),
            }
        }
    }
    if ports.is_empty() {
        return Err("query parameter \"port\" is required\n".to_owned());
    }
    if ports.len() > MAX_PORTS {
        return Err(format!("at most {MAX_PORTS} ports can be forwarded over one connection\n"));
    }
    Ok(ports)
}

fn over_websocket(target: Target, upgrade: WebSocketUpgrade, ports: Vec<u16>) -> Response {
    websocket::accept_channels(upgrade, async move |mut incoming, out, writer| {
        let mut connections = JoinSet::new();
        let mut to_pods = Vec::new();
        for (number, port) in (0_u8..).zip(ports) {
            let (sender, pieces) = mpsc::channel(MAX_PIECES);
            to_pods.push(sender);
            connections.spawn(forward_channel(target.clone(), port, number * 2, pieces, out.clone()));
        }
        let read = async {
            while let Some(received) = incoming.next().await {
                match received {
                    Received::Closing => to_pods.clear(),
                    Received::Data(channel, data) if channel.is_multiple_of(2) => {
                        if let Some(pod) = to_pods.get(usize::from(channel / 2)) {
                            // One that has closed reads nothing.
                            let _closed = pod.send(data).await;
                        }
                    }
                    Received::Data(..) => {}
                }
            }
        };
        let all = async { while connections.join_next().await.is_some() {} };
        let has_left = tokio::select! {
            () = read => true,
            () = all => false,
        };
        connections.shutdown().await;
        if !has_left {
            out.close().await;
        }
        drop(out);
        let _ = writer.await;
    })
}

async fn forward_channel(
    target: Target,
    port: u16,
    channel: u8,
    mut pieces: mpsc::Receiver<Bytes>,
    out: Outgoing,
) {
    out.send(channel, &port.to_le_bytes()).await;
    out.send(channel + 1, &port.to_le_bytes()).await;
    let connection = match target.connect(port).await {
        Ok(connection) => connection,
        Err(why) => return out.send(channel + 1, target.explain(port, &why).as_bytes()).await,
    };
    let (from_pod, mut to_pod) = tokio::io::split(connection);
    let up = async {
        while let Some(piece) = pieces.recv().await {
            to_pod.write_all(&piece).await.map_err(|_| ())?;
        }
        to_pod.shutdown().await.map_err(|_| ())
    };
    let mut from_pod = Pieces::new(from_pod);
    let down = async {
        while let Ok(Some(piece)) = from_pod.next().await {
            out.send(channel, &piece).await;
        }
    };
    // The channel cannot say that only the pod's half has ended: the connection ends with it.
    tokio::select! {
        () = down => {}
        Err(()) = up => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_in_every_form_that_clients_use() {
        assert_eq!(ports("port=80&port=81"), Ok(vec![80, 81]));
        assert_eq!(ports("ports=80,81&x=y"), Ok(vec![80, 81]));
        assert_eq!(ports("port=80%2C81"), Ok(vec![80, 81]));
        for wrong in ["", "port=", "port=0", "port=65536", "port=80,x", "port=-1"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
        let many = vec!["port=80"; MAX_PORTS + 1].join("&");
        assert!(ports(&many).unwrap_err().contains("at most"));
    }
}
