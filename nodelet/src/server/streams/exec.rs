//! `/exec/{namespace}/{pod}/{container}`: a process in a container.
//!
//! The connection is upgraded before anything else: what goes wrong then reaches the user over the error channel. Over a
//! WebSocket an HTTP error would make clients try SPDY instead and show only that its answer was no.
//!
//! A client that leaves takes its input with it: the process reads the end of it and lives on, its output unread. Only a
//! terminal hangs up, as terminals do.

use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use skiff_cri::v1::ExecRequest;
use skiff_cri::{Code, CriError, ExecSession};

use super::exchange::Departure;
use super::query::StreamQuery;
use super::upgrade::{Upgrade, accept, bad};
use crate::pod::PodExt;
use crate::server::Api;
use crate::snapshot;

const DOING: &str = "executing command in";

pub(in crate::server) async fn exec(
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
    if query.command.is_empty() {
        return bad("you must specify at least 1 command\n");
    }
    if !query.has_streams() {
        return bad("you must specify at least 1 of stdin, stdout, stderr\n");
    }
    let departure = if query.tty { Departure::End } else { Departure::EndOfInput };
    if let Upgrade::Spdy(_) = upgrade
        && let Err(error) = find(&api, &namespace, &pod, &container).await
    {
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response();
    }
    accept(upgrade, query, async move |client, query| {
        match open(&api, (&namespace, &pod, &container), &query).await {
            Ok(session) => client.run(session, departure, DOING).await,
            Err(error) => client.refuse(error, DOING).await,
        }
    })
}

/// The ID of the running container that is meant.
pub(super) async fn find(api: &Api, namespace: &str, pod: &str, container: &str) -> Result<String, CriError> {
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
    query: &StreamQuery,
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
