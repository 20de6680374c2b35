//! `/attach/{namespace}/{pod}/{container}`: the streams of the container's own process, from now on.
//!
//! Whether there is a terminal is the container's matter, whatever the request says. A runtime that keeps nothing but the
//! log shows what is added to that.

use std::path::PathBuf;

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Container;
use skiff_cri::v1::AttachRequest;
use skiff_cri::{Code, CriError, ExecSession};
use tokio::io::AsyncRead;
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::StreamReader;

use super::exchange::Departure;
use super::query::StreamQuery;
use super::upgrade::{Upgrade, accept, bad};
use crate::logs::{LogOptions, Stream, follow};
use crate::pod::{PodExt, find_container};
use crate::server::Api;
use crate::snapshot::{self, ContainerInfo};

const DOING: &str = "attaching to";
/// Sizes of a terminal that nobody takes.
const N_SIZES: usize = 1;

pub(in crate::server) async fn attach(
    State(api): State<Api>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    let (mut parts, _) = request.into_parts();
    let query = StreamQuery::parse(parts.uri.query().unwrap_or_default());
    let upgrade = match Upgrade::of(&mut parts).await {
        Ok(upgrade) => upgrade,
        Err(refusal) => return refusal,
    };
    if !query.has_streams() {
        return bad("you must specify at least 1 of stdin, stdout, stderr\n");
    }
    if let Upgrade::Spdy(_) = upgrade
        && let Err(error) = super::exec::find(&api, &namespace, &pod, &container).await
    {
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response();
    }
    accept(upgrade, query, async move |client, query| {
        match open(&api, (&namespace, &pod, &container), &query).await {
            Ok(session) => client.run(session, Departure::End, DOING).await,
            Err(error) => client.refuse(error, DOING).await,
        }
    })
}

async fn open(
    api: &Api,
    (namespace, pod, container): (&str, &str, &str),
    query: &StreamQuery,
) -> Result<ExecSession, CriError> {
    let missing = |message: &str| CriError::new(Code::NotFound, message.trim_end());
    let found = api.find(namespace, pod, container).map_err(|(_, message)| missing(&message))?;
    let spec = find_container(&found.pod, container)
        .ok_or_else(|| missing(&format!("container not found ({container:?})")))?;
    let spec = &*spec;
    let tty = spec.tty.unwrap_or(false);
    let snapshot = snapshot::read(&*api.shared.cri, "", found.pod.uid()).await?;
    let running = snapshot.running().find(|c| c.name == found.container);
    let running = running.ok_or_else(|| missing(&format!("container not found ({container:?})")))?;
    let request = AttachRequest {
        container_id: running.id.clone(),
        tty,
        // Nobody reads the input of a container that was given none.
        stdin: query.stdin && spec.stdin.unwrap_or(false),
        stdout: query.stdout,
        stderr: query.stderr && !tty,
    };
    let (stdin, asked) = (request.stdin, query);
    match api.shared.cri.attach(request).await {
        Err(error) if error.code == Code::Unimplemented && !stdin => {
            let logs = api.shared.config.pod_log_dir(namespace, pod, found.pod.uid());
            Ok(from_log(api, logs, found.pod.uid(), spec, running, asked))
        }
        answered => answered,
    }
}

/// What the container writes to its log from now on.
fn from_log(
    api: &Api,
    logs: PathBuf,
    uid: &str,
    container: &Container,
    running: &ContainerInfo,
    asked: &StreamQuery,
) -> ExecSession {
    let output = |stream: Stream| -> Box<dyn AsyncRead + Send + Unpin> {
        let below: PathBuf = [&container.name, &format!("{}.log", running.restart_count)].iter().collect();
        let options = LogOptions { follow: true, tail_lines: Some(0), stream, ..LogOptions::default() };
        let (shared, id, uid) = (api.shared.clone(), running.id.clone(), uid.to_owned());
        let ended = async move || match snapshot::read(&*shared.cri, "", &uid).await {
            Ok(now) => !now.running().any(|c| c.id == id),
            Err(_) => false,
        };
        let (sender, mut pieces) = mpsc::channel(4);
        tokio::spawn(follow::stream(logs.clone(), below, options, ended, sender));
        let pieces = futures::stream::poll_fn(move |context| pieces.poll_recv(context));
        Box::new(StreamReader::new(pieces.boxed()))
    };
    let (ended, exit) = oneshot::channel();
    // An output ends when the container has: there is nothing else to wait for.
    let _unread = ended.send(Ok(0));
    ExecSession {
        stdin: None,
        stdout: asked.stdout.then(|| output(Stream::Stdout)),
        stderr: asked.stderr.then(|| output(Stream::Stderr)),
        resize: mpsc::channel(N_SIZES).0,
        exit,
    }
}
