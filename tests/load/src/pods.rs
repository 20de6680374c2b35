//! Many pods made at once, and a watch that sees what becomes of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http::Method;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::client::{Connection, Lines, Server};
use crate::objects::Template;

/// What one request took.
pub async fn create(connection: &Connection, path: &str, body: Bytes) -> Result<Duration> {
    let start = Instant::now();
    connection.fire(Method::POST, path, "application/json", body).await?;
    Ok(start.elapsed())
}

/// Creates `count` objects, named by their number, from one client for each connection; the first failure ends it.
pub async fn create_all(
    connections: &[Connection],
    path: &str,
    template: Template,
    prefix: &str,
    count: usize,
) -> Result<Vec<Duration>> {
    let next = Arc::new(AtomicUsize::new(0));
    let shared = Arc::new((path.to_owned(), template, prefix.to_owned()));
    let clients = connections.iter().map(|connection| {
        let (next, shared, connection) = (next.clone(), shared.clone(), connection.clone());
        tokio::spawn(async move {
            let (path, template, prefix) = &*shared;
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(times);
                }
                times.push(create(&connection, path, template.named(&format!("{prefix}{number}"))).await?);
            }
        })
    });
    let mut times = Vec::with_capacity(count);
    for client in futures::future::join_all(clients).await {
        times.extend(client??);
    }
    Ok(times)
}

#[derive(Debug, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Pod,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Pod {
    metadata: Metadata,
    spec: Spec,
    status: Status,
    /// Of an error.
    message: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    resource_version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
}

/// When something was first seen of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    Bound,
    Running,
    Gone,
}

/// Follows the pods of a namespace.
pub struct Watch {
    events: mpsc::Receiver<Result<(Instant, Event)>>,
    first: HashMap<(Seen, String), Instant>,
    addresses: HashMap<String, String>,
}

const QUEUED_EVENTS: usize = 100_000;
/// A server may end the watch of a slow client; it goes on where it was.
const MAX_RESUMES: usize = 100;

impl Watch {
    /// Sees everything that happens from now on.
    pub async fn start(server: &Server, path: &str) -> Result<Watch> {
        let connection = server.connect().await?;
        let version = connection.version_of(path).await?;
        let (send, events) = mpsc::channel(QUEUED_EVENTS);
        let path = path.to_owned();
        tokio::spawn(async move {
            if let Err(error) = follow(&connection, &path, version, &send).await {
                let _ = send.send(Err(error.context(format!("watching {path}")))).await;
            }
        });
        Ok(Watch { events, first: HashMap::new(), addresses: HashMap::new() })
    }

    /// Waits until `count` pods have been seen so.
    pub async fn wait(&mut self, what: Seen, count: usize) -> Result<()> {
        while self.first.keys().filter(|(seen, _)| *seen == what).count() < count {
            self.next().await?;
            // Counting is not free; look at everything that is there first.
            while let Ok(event) = self.events.try_recv() {
                self.note(event?);
            }
        }
        Ok(())
    }

    /// Waits until one pod has been seen so.
    pub async fn wait_for(&mut self, what: Seen, name: &str) -> Result<()> {
        while self.at(what, name).is_none() {
            self.next().await?;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<()> {
        let event = self.events.recv().await.context("the watch has ended")??;
        self.note(event);
        Ok(())
    }

    fn note(&mut self, (at, event): (Instant, Event)) {
        let name = event.object.metadata.name;
        let mut note = |seen| {
            self.first.entry((seen, name.clone())).or_insert(at);
        };
        if event.kind == "DELETED" {
            note(Seen::Gone);
        }
        if event.object.spec.node_name.is_some_and(|node| !node.is_empty()) {
            note(Seen::Bound);
        }
        if event.object.status.phase.as_deref() == Some("Running") {
            note(Seen::Running);
        }
        if let Some(address) = event.object.status.pod_ip {
            self.addresses.insert(name, address);
        }
    }

    pub fn at(&self, what: Seen, name: &str) -> Option<Instant> {
        self.first.get(&(what, name.to_owned())).copied()
    }

    pub fn times(&self, what: Seen) -> Vec<Instant> {
        self.first.iter().filter(|((seen, _), _)| *seen == what).map(|(_, at)| *at).collect()
    }

    /// The addresses of pods that were seen running.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.values().cloned().collect()
    }
}

async fn follow(
    connection: &Connection,
    path: &str,
    mut version: String,
    send: &mpsc::Sender<Result<(Instant, Event)>>,
) -> Result<()> {
    for _ in 0..MAX_RESUMES {
        let at = format!("{path}?watch=1&timeoutSeconds=1800&resourceVersion={version}");
        let mut lines = Lines::new(connection.open(Method::GET, &at, "", Bytes::new()).await?);
        while let Ok(Some(line)) = lines.next().await {
            let event: Event = serde_json::from_slice(line).context("reading an event")?;
            if event.kind == "ERROR" {
                bail!("{}", event.object.message.unwrap_or_default());
            }
            event.object.metadata.resource_version.clone_into(&mut version);
            if send.send(Ok((Instant::now(), event))).await.is_err() {
                return Ok(());
            }
        }
    }
    bail!("the server has ended it {MAX_RESUMES} times")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, spec: &str, status: &str) -> (Instant, Event) {
        let text = format!(
            r#"{{"type":"{kind}","object":{{"metadata":{{"name":"a","resourceVersion":"7"}},"spec":{spec},"status":{status}}}}}"#
        );
        (Instant::now(), serde_json::from_str(&text).expect("an event"))
    }

    #[test]
    fn what_counts_is_when_a_pod_was_first_seen_so() {
        let (_send, events) = mpsc::channel(1);
        let mut watch = Watch { events, first: HashMap::new(), addresses: HashMap::new() };
        watch.note(event("ADDED", "{}", r#"{"phase":"Pending"}"#));
        assert_eq!(watch.at(Seen::Bound, "a"), None);
        let (first, bound) = event("MODIFIED", r#"{"nodeName":"n"}"#, r#"{"phase":"Pending"}"#);
        watch.note((first, bound));
        watch.note(event("MODIFIED", r#"{"nodeName":"n"}"#, r#"{"phase":"Running","podIP":"10.0.0.1"}"#));
        assert_eq!(watch.at(Seen::Bound, "a"), Some(first));
        assert!(watch.at(Seen::Running, "a").is_some_and(|at| at >= first));
        assert_eq!(watch.addresses(), ["10.0.0.1"]);
        assert_eq!(watch.times(Seen::Gone).len(), 0);
        watch.note(event("DELETED", r#"{"nodeName":"n"}"#, "{}"));
        assert_eq!(watch.times(Seen::Gone).len(), 1);
    }
}
