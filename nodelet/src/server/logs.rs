//! `GET /containerLogs/{namespace}/{pod}/{container}`

use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::logs::{LogOptions, Stream, follow};
use crate::pod::PodExt;
use crate::server::{Api, query_flag};
use crate::snapshot::{self, ContainerInfo, PodSnapshot, RunState};

/// `PodLogOptions`, as the API server passes them on.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct LogQuery {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<usize>,
    limit_bytes: Option<u64>,
    since_seconds: Option<u64>,
    since_time: Option<String>,
    stream: Option<String>,
}

fn flag(value: &Option<String>) -> bool {
    query_flag(value.as_deref())
}

fn options(query: &LogQuery) -> Result<LogOptions, String> {
    let since_time = match query.since_time.as_deref() {
        Some(text) => Some(text.parse::<Timestamp>().map_err(|e| format!("sinceTime: {e}"))?),
        None => None,
    };
    let ago = |seconds| Timestamp::now().checked_sub(Duration::from_secs(seconds)).ok();
    Ok(LogOptions {
        follow: flag(&query.follow),
        previous: flag(&query.previous),
        timestamps: flag(&query.timestamps),
        tail_lines: query.tail_lines,
        limit_bytes: query.limit_bytes,
        since: since_time.or_else(|| query.since_seconds.and_then(ago)),
        stream: match query.stream.as_deref() {
            None | Some("All" | "") => Stream::All,
            Some("Stdout") => Stream::Stdout,
            Some("Stderr") => Stream::Stderr,
            Some(other) => return Err(format!("unknown stream {other:?}: it is one of All, Stdout, Stderr")),
        },
    })
}

pub(super) async fn container_logs(
    State(api): State<Api>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Query<LogQuery>,
) -> Response {
    let found = match api.find(&namespace, &pod, &container) {
        Ok(found) => found,
        Err(refusal) => return refusal.into_response(),
    };
    let bad = |message: String| (StatusCode::BAD_REQUEST, message).into_response();
    let options = match options(&query) {
        Ok(options) => options,
        Err(message) => return bad(message),
    };
    let shared = api.shared.clone();
    let read = snapshot::read(&*shared.cri, &shared.runtime_name, found.pod.uid()).await;
    let snapshot = match read {
        Ok(snapshot) => snapshot,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    let waiting = waiting_reason(&found.pod, &found.container);
    let which = match pick(&snapshot, &found.container, &pod, options.previous, waiting.as_deref()) {
        Ok(which) => which,
        Err(message) => return bad(message),
    };
    let dir = shared.config.pod_log_dir(&namespace, &pod, found.pod.uid());
    let below: PathBuf = [&found.container, &format!("{}.log", which.restart_count)].iter().collect();
    let (tx, mut rx) = mpsc::channel(4);
    let (id, uid) = (which.id.clone(), found.pod.uid().to_owned());
    let ended = async move || match snapshot::read(&*shared.cri, "", &uid).await {
        Ok(now) => !now.running().any(|c| c.id == id),
        Err(_) => false,
    };
    tokio::spawn(follow::stream(dir, below, options, ended, tx));
    // The first piece tells whether the log could be opened at all, while a status can still say so.
    let first = match rx.recv().await {
        Some(Err(error)) => {
            let message =
                format!("failed to open the log of container {container:?} in pod {pod:?}: {error}");
            return (StatusCode::INTERNAL_SERVER_ERROR, message).into_response();
        }
        // Nothing but the word that it could.
        Some(Ok(piece)) if piece.is_empty() => None,
        first => first,
    };
    let rest = futures::stream::unfold(rx, async |mut rx| rx.recv().await.map(|item| (item, rx)));
    let body = Body::from_stream(futures::stream::iter(first).chain(rest.boxed()));
    ([(header::CONTENT_TYPE, "text/plain")], body).into_response()
}

fn waiting_reason(pod: &k8s_openapi::api::core::v1::Pod, container: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    let mut all = lists.into_iter().flat_map(|list| list.iter().flatten());
    let waiting = all.find(|s| s.name == container)?.state.as_ref()?.waiting.as_ref()?;
    waiting.reason.clone()
}

/// The container whose log is meant, or why there is none, in upstream's words.
fn pick<'a>(
    snapshot: &'a PodSnapshot,
    container: &str,
    pod: &str,
    previous: bool,
    waiting: Option<&str>,
) -> Result<&'a ContainerInfo, String> {
    let mut all = snapshot.containers.iter().filter(|c| c.name == container && c.state != RunState::Created);
    if previous {
        // With the newest one ended and waiting to start again, that one is the previous.
        let is_waiting = waiting.is_some();
        let has_ended = |c: &&ContainerInfo| matches!(c.state, RunState::Exited | RunState::Unknown);
        let newest = all.next().filter(|c| is_waiting && has_ended(c));
        return newest
            .or_else(|| all.find(has_ended))
            .ok_or_else(|| format!("previous terminated container {container:?} in pod {pod:?} not found"));
    }
    all.next().ok_or_else(|| {
        let why = match waiting {
            Some("ErrImagePull") => "image can't be pulled",
            Some("ImagePullBackOff") => "trying and failing to pull image",
            Some(reason) => reason,
            None => "no logs yet",
        };
        let separator = if waiting.is_none() { " -" } else { ":" };
        format!("container {container:?} in pod {pod:?} is waiting to start{separator} {why}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(states: &[(i32, RunState)]) -> PodSnapshot {
        let containers = states.iter().map(|(restart_count, state)| ContainerInfo {
            name: "c".into(),
            restart_count: *restart_count,
            state: *state,
            ..ContainerInfo::default()
        });
        PodSnapshot { containers: containers.collect(), ..PodSnapshot::default() }
    }

    #[test]
    fn the_previous_log_is_that_of_the_last_container_that_ended() {
        let running = snapshot(&[(2, RunState::Running), (1, RunState::Exited)]);
        assert_eq!(pick(&running, "c", "p", false, None).unwrap().restart_count, 2);
        assert_eq!(pick(&running, "c", "p", true, None).unwrap().restart_count, 1);
        let crashed = snapshot(&[(2, RunState::Exited), (1, RunState::Exited)]);
        assert_eq!(pick(&crashed, "c", "p", true, Some("CrashLoopBackOff")).unwrap().restart_count, 2);
        let lost = snapshot(&[(2, RunState::Running), (1, RunState::Unknown)]);
        assert_eq!(pick(&lost, "c", "p", true, None).unwrap().restart_count, 1);
        let fresh = snapshot(&[(0, RunState::Running)]);
        assert_eq!(
            pick(&fresh, "c", "p", true, None).unwrap_err(),
            "previous terminated container \"c\" in pod \"p\" not found"
        );
    }

    #[test]
    fn a_container_that_has_not_started_says_what_it_waits_for() {
        let none = PodSnapshot::default();
        assert_eq!(
            pick(&none, "c", "p", false, Some("ImagePullBackOff")).unwrap_err(),
            "container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image"
        );
        assert_eq!(
            pick(&none, "c", "p", false, Some("ContainerCreating")).unwrap_err(),
            "container \"c\" in pod \"p\" is waiting to start: ContainerCreating"
        );
    }
}
