//! The abuses themselves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::{Answers, NAMESPACE};
use crate::client::{Connection, Server};
use crate::credentials;
use crate::objects::{pods_path, serving_pod};
use crate::pods::{Seen, Watch};

const JSON: &str = "application/json";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";
const NODE: &str = "abusive";
/// How many clients an abuser has.
const CLIENTS: usize = 4;
const SILENT: usize = 1000;
const SLOW: usize = 400;
const WATCHERS: usize = 10_000;
/// Of how many nodes they are.
const WATCHING_NODES: usize = 10;
/// As many watches as one connection takes.
const PER_CONNECTION: usize = 200;
const EVENTS_PER_S: u64 = 100;
const DEEP_POD: &str = "deep";
const DEEP: usize = 60_000;
/// Whose Wasm pods share the host of the pod that is asked.
const WEB: &str = "web";
const HOARDERS: usize = 8;
const NEXT_NEIGHBOUR: Duration = Duration::from_secs(1);
/// How long a neighbour of the hoarders may take to start, and to be gone.
const NEIGHBOUR: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attack {
    PatchCopy,
    LargeReview,
    ManyFinalizers,
    SilentConnections,
    SlowBodies,
    DeepDirectory,
    Descriptors,
    Reconnection,
    Events,
}

impl Attack {
    pub(super) const ALL: [Attack; 9] = [
        Attack::PatchCopy,
        Attack::LargeReview,
        Attack::ManyFinalizers,
        Attack::SilentConnections,
        Attack::SlowBodies,
        Attack::DeepDirectory,
        Attack::Descriptors,
        Attack::Reconnection,
        Attack::Events,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Attack::PatchCopy => "patch-copy",
            Attack::LargeReview => "large-review",
            Attack::ManyFinalizers => "many-finalizers",
            Attack::SilentConnections => "silent-connections",
            Attack::SlowBodies => "slow-bodies",
            Attack::DeepDirectory => "deep-directory",
            Attack::Descriptors => "descriptors",
            Attack::Reconnection => "reconnection",
            Attack::Events => "events",
        }
    }

    pub(super) fn what(self) -> &'static str {
        match self {
            Attack::PatchCopy => {
                "JSON patches that double a document 24 times, by a node on its own Lease, 4 clients"
            }
            Attack::LargeReview => "review requests of 1.3 MB, by a service account, 4 clients",
            Attack::ManyFinalizers => {
                "strategic merge patches with 20,000 finalizers, by a node on its own Lease, 4 clients"
            }
            Attack::SilentConnections => "1,000 TLS connections that say nothing, or half an HTTP/2 preface",
            Attack::SlowBodies => "400 bodies that come one byte at a time, by a service account",
            Attack::DeepDirectory => "a pod's emptyDir with 60,000 nested directories is deleted",
            Attack::Descriptors => {
                "8 Wasm pods take all descriptors they get, in the host of the pod that is asked, while neighbours start and end"
            }
            Attack::Reconnection => {
                "10,000 watches, of ten nodes, end and begin again at once, over and over"
            }
            Attack::Events => "100 events a second",
        }
    }

    pub(super) fn piles_up(self) -> bool {
        self == Attack::Events
    }

    pub(super) async fn prepare(self, server: &Server) -> Result<()> {
        match self {
            Attack::PatchCopy | Attack::ManyFinalizers => {
                let lease = json!({
                    "metadata": {"name": NODE, "namespace": "kube-node-lease", "annotations": {"a": "x".repeat(200)}},
                    "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 40},
                });
                server.connect().await?.ensure(LEASES, &lease).await
            }
            Attack::DeepDirectory => deep_pod(server).await,
            _ => Ok(()),
        }
    }

    /// Goes on until `end`, or until it is told to stop.
    pub(super) async fn run(
        self,
        server: &Server,
        end: Instant,
        answers: &Answers,
        going: &AtomicBool,
    ) -> Result<()> {
        let go_on = || going.load(Ordering::Relaxed) && Instant::now() < end;
        match self {
            Attack::PatchCopy => {
                let node = credentials::of_node(server, NODE).await?;
                flood(&node, answers, &go_on, Method::PATCH, &own_lease(), JSON_PATCH, copies()).await
            }
            Attack::ManyFinalizers => {
                let node = credentials::of_node(server, NODE).await?;
                let body = json!({"metadata": {"finalizers": finalizers()}}).to_string().into();
                flood(&node, answers, &go_on, Method::PATCH, &own_lease(), STRATEGIC_PATCH, body).await
            }
            Attack::LargeReview => {
                let account = credentials::of_account(server, NAMESPACE, "default").await?;
                flood(&account, answers, &go_on, Method::POST, REVIEWS, JSON, large_review()).await
            }
            Attack::SilentConnections => silent(server, answers, &go_on).await,
            Attack::SlowBodies => {
                slow(&credentials::of_account(server, NAMESPACE, "default").await?, answers, &go_on).await
            }
            Attack::DeepDirectory => {
                let connection = server.connect().await?;
                answers.note(&connection.delete_now(&format!("{}/{DEEP_POD}", pods_path(NAMESPACE))).await);
                while go_on() {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Ok(())
            }
            Attack::Descriptors => hoard(server, answers, &go_on).await,
            Attack::Reconnection => {
                let mut nodes = Vec::with_capacity(WATCHING_NODES);
                for number in 0..WATCHING_NODES {
                    nodes.push(credentials::of_node(server, &format!("{NODE}-{number}")).await?);
                }
                reconnect(&nodes, answers, &go_on).await
            }
            Attack::Events => events(server, answers, &go_on).await,
        }
    }

    pub(super) async fn clean(self, server: &Server) -> Result<()> {
        match self {
            Attack::PatchCopy | Attack::ManyFinalizers => {
                let connection = server.connect().await?;
                let nothing = json!({"metadata": {"finalizers": null}});
                connection.patch(&own_lease(), &nothing).await?;
                connection.delete(&own_lease()).await
            }
            _ => Ok(()),
        }
    }
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

fn own_lease() -> String {
    format!("{LEASES}/{NODE}")
}

/// Each operation copies all that there is into itself.
fn copies() -> Bytes {
    let copy = |n: usize| json!({"op": "copy", "from": "/metadata/annotations", "path": format!("/metadata/annotations/{n}")});
    Value::Array((0..24).map(copy).collect()).to_string().into()
}

fn finalizers() -> Vec<String> {
    (0..20_000).map(|n| format!("example.com/{n}")).collect()
}

fn large_review() -> Bytes {
    let all: Vec<String> = (0..200_000).map(|n| format!("{n:03}")).collect();
    let attributes = json!({"resource": "pods", "verb": "get"});
    json!({"spec": {"resourceAttributes": attributes, "nonsense": {"deeply": {"nested": {"list": all}}}}})
        .to_string()
        .into()
}

/// The same request over and over from each client.
async fn flood(
    server: &Server,
    answers: &Answers,
    go_on: &(impl Fn() -> bool + Sync),
    method: Method,
    path: &str,
    kind: &'static str,
    body: Bytes,
) -> Result<()> {
    let clients = (0..CLIENTS).map(|_| async {
        let connection = server.connect().await?;
        while go_on() {
            let asked = connection.fire(method.clone(), path, kind, body.clone());
            let asked = tokio::time::timeout(Duration::from_secs(70), asked).await;
            answers.note(&asked.context("not answered").flatten());
        }
        anyhow::Ok(())
    });
    futures::future::try_join_all(clients).await.map(drop)
}

async fn silent(server: &Server, answers: &Answers, go_on: &(impl Fn() -> bool + Sync)) -> Result<()> {
    let connections = (0..SILENT).map(|n| async move {
        while go_on() {
            let Ok(mut stream) = server.raw().await else {
                answers.count("not connected");
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            };
            if n % 2 == 0 {
                // The preface, and not the settings that must follow it.
                let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
            }
            let mut rest = [0; 64];
            while go_on() {
                match tokio::time::timeout(Duration::from_millis(500), stream.read(&mut rest)).await {
                    Ok(Ok(read)) if read > 0 => {}
                    Ok(_) => {
                        answers.count("ended by the server");
                        break;
                    }
                    Err(_) => {}
                }
            }
        }
    });
    futures::future::join_all(connections).await;
    Ok(())
}

async fn slow(account: &Server, answers: &Answers, go_on: &(impl Fn() -> bool + Sync)) -> Result<()> {
    let head = account.head_of_post(REVIEWS, 1 << 20);
    let head = &head;
    let bodies = (0..SLOW).map(|_| async move {
        while go_on() {
            let Ok(mut stream) = account.raw_http1().await else {
                answers.count("not connected");
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            };
            let _ = stream.write_all(head.as_bytes()).await;
            let mut rest = [0; 256];
            while go_on() {
                let sent = stream.write_all(b" ").await;
                let read = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut rest)).await;
                match (sent, read) {
                    (Ok(()), Err(_)) => {}
                    (_, Ok(Ok(read))) if read > 12 => {
                        answers.count(&String::from_utf8_lossy(&rest[9..12]));
                        break;
                    }
                    _ => {
                        answers.count("ended by the server");
                        break;
                    }
                }
            }
        }
    });
    futures::future::join_all(bodies).await;
    Ok(())
}

/// Makes the pod and waits until all of its directories are there.
async fn deep_pod(server: &Server) -> Result<()> {
    // No path may be that long: it is made in pieces, each moved to the bottom of the next.
    let script = format!(
        "p=d; i=1; while [ $i -lt 1000 ]; do p=$p/d; i=$((i+1)); done; cd /data && mkdir t; i=0; while [ $i -lt {} ]; do \
         mkdir -p n/$p && mv t n/$p/t && mv n t || exit 1; i=$((i+1)); done; sleep 3600",
        DEEP / 1000
    );
    let pod = json!({
        "metadata": {"name": DEEP_POD},
        "spec": {
            "terminationGracePeriodSeconds": 0, "volumes": [{"name": "data", "emptyDir": {}}],
            "containers": [{
                "name": "c", "image": "busybox:1.36", "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "securityContext": {"capabilities": {"drop": ["ALL"]}},
            }],
        },
    });
    let connection = server.connect().await?;
    let mut watch = Watch::start(server, &pods_path(NAMESPACE)).await?;
    connection.post(&pods_path(NAMESPACE), pod.to_string().into()).await?;
    watch.wait(Seen::Running, 1).await?;
    // They are made within a second or two.
    tokio::time::sleep(Duration::from_secs(10)).await;
    Ok(())
}

/// Hoarders first, and then one neighbour after the other.
async fn hoard(server: &Server, answers: &Answers, go_on: &(impl Fn() -> bool + Sync)) -> Result<()> {
    let connection = server.connect().await?;
    let path = pods_path(WEB);
    let hoarders = (0..HOARDERS).map(|number| format!("hoarder-{number}"));
    for name in hoarders.clone() {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 0, "volumes": [{"name": "data", "emptyDir": {}}],
                "containers": [{"name": "c", "image": "docker.io/skiff/wasm-hoard:v1",
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            },
        });
        connection.post(&path, pod.to_string().into()).await?;
    }
    let neighbour = serving_pod("docker.io/skiff/wasm-http:v1");
    let mut number = 0;
    while go_on() {
        let name = format!("neighbour-{number}");
        number += 1;
        let mut watch = Watch::start(server, &path).await?;
        connection.post(&path, neighbour.named(&name)).await?;
        for (seen, what) in [(Seen::Running, "started"), (Seen::Gone, "ended")] {
            if seen == Seen::Gone {
                connection.delete(&format!("{path}/{name}")).await?;
            }
            let waited = tokio::time::timeout(NEIGHBOUR, watch.wait_for(seen, &name)).await;
            answers.count(&match waited {
                Ok(result) => result.map(|()| format!("neighbour {what}"))?,
                Err(_) => format!("neighbour not {what} in {} s", NEIGHBOUR.as_secs()),
            });
        }
        // Starts of pods are not what is measured.
        tokio::time::sleep(NEXT_NEIGHBOUR).await;
    }
    let mut watch = Watch::start(server, &path).await?;
    for name in hoarders {
        connection.delete(&format!("{path}/{name}")).await?;
        tokio::time::timeout(NEIGHBOUR, watch.wait_for(Seen::Gone, &name))
            .await
            .with_context(|| format!("{name} is not gone"))??;
    }
    Ok(())
}

async fn reconnect(nodes: &[Server], answers: &Answers, go_on: &(impl Fn() -> bool + Sync)) -> Result<()> {
    let mut connections = Vec::with_capacity(WATCHERS / PER_CONNECTION);
    for node in nodes {
        connections.extend(node.connections(WATCHERS / PER_CONNECTION / nodes.len()).await?);
    }
    // What each kubelet and each proxy watches.
    let version = connections[0].version_of("/api/v1/services").await?;
    let path = format!("/api/v1/services?watch=1&resourceVersion={version}");
    while go_on() {
        let mut open = JoinSet::new();
        for connection in &connections {
            for _ in 0..PER_CONNECTION {
                let (connection, path): (Connection, String) = (connection.clone(), path.clone());
                open.spawn(async move { connection.open(Method::GET, &path, JSON, Bytes::new()).await });
            }
        }
        let mut watches = Vec::with_capacity(WATCHERS);
        while let Some(opened) = open.join_next().await {
            let opened = opened?;
            answers.note(&opened.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error}")));
            watches.extend(opened.ok());
        }
        drop(watches);
    }
    Ok(())
}

async fn events(server: &Server, answers: &Answers, go_on: &(impl Fn() -> bool + Sync)) -> Result<()> {
    let connection = server.connect().await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(1000 / EVENTS_PER_S));
    let mut number = 0_u64;
    while go_on() {
        ticks.tick().await;
        number += 1;
        let event = json!({
            "metadata": {"name": format!("abuse-{number}"), "namespace": NAMESPACE},
            "involvedObject": {"kind": "Pod", "namespace": NAMESPACE, "name": "p"},
            "reason": "Abuse", "message": format!("number {number}"), "type": "Normal",
        });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/events");
        let asked = connection.post(&path, event.to_string().into());
        answers.note(&asked.await.map(drop));
    }
    Ok(())
}
