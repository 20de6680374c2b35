//! Requests of every verb, one after the other, while a cluster is under load: what a person's kubectl would feel.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use rand::Rng as _;
use serde_json::json;
use skiff_client::ObjectKey;

use crate::api::{Caller, is_gone};
use crate::census::Census;
use crate::latency::Call;
use crate::pod::Pod;

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(200);
/// Lists are large: each this many rounds.
const LIST_ROUNDS: u64 = 5;
const LIST_ALL_ROUNDS: u64 = 25;
const CREATE: Call = Call::new("POST", "configmaps");
const GET: Call = Call::new("GET", "configmaps");
const UPDATE: Call = Call::new("PUT", "configmaps");
const PATCH: Call = Call::new("PATCH", "configmaps");
const LIST: Call = Call::new("LIST", "configmaps");
const DELETE: Call = Call::new("DELETE", "configmaps");
/// From the update's being sent to its event.
const WATCH: Call = Call::new("WATCH", "configmaps (update to event)");
const GET_POD: Call = Call::new("GET", "pods");
const LIST_NODE_PODS: Call = Call::new("LIST", "pods of a node");
const LIST_NAMESPACE_PODS: Call = Call::new("LIST", "pods of a namespace");
const LIST_NODES: Call = Call::new("LIST", "nodes");
const LIST_ALL_PODS: Call = Call::new("LIST", "pods of the cluster");

pub(crate) struct Probe {
    pub(crate) caller: Caller,
    /// Exists, and holds pods of the run.
    pub(crate) namespace: String,
    pub(crate) fleet: String,
    pub(crate) n_nodes: u32,
    pub(crate) census: Arc<Census>,
}

/// Updates that were sent and whose event has not come: by name and value.
type Sent = Arc<Mutex<HashMap<String, Instant>>>;
/// More than this are lost, not late.
const MAX_SENT: usize = 1000;

impl Probe {
    /// Probes until dropped.
    pub(crate) async fn run(self) {
        let sent = Sent::default();
        let watching = watch(self.caller.clone(), self.namespace.clone(), sent.clone());
        let probing = async {
            for round in 0.. {
                if let Err(error) = self.round(round, &sent).await {
                    tracing::debug!(round, %error, "a probe failed");
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        futures::join!(watching, probing);
    }

    async fn round(&self, round: u64, sent: &Sent) -> kube::Result<()> {
        self.change_one(round, sent).await?;
        let client = self.caller.client();
        if let Some(key) = self.any_pod() {
            let pods: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
            match self.caller.once(GET_POD, pods.get(&key.name)).await {
                Err(error) if !is_gone(&error) => return Err(error),
                _ => {}
            }
        }
        let node = rand::rng().random_range(0..self.n_nodes);
        let of_node = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}-{node:05}", self.fleet);
        self.caller.once(LIST_NODE_PODS, read(&client, &of_node)).await?;
        if round.is_multiple_of(LIST_ROUNDS) {
            let of_namespace = format!("/api/v1/namespaces/{}/pods", self.namespace);
            self.caller.once(LIST_NAMESPACE_PODS, read(&client, &of_namespace)).await?;
            self.caller.once(LIST_NODES, read(&client, "/api/v1/nodes")).await?;
        }
        if round % LIST_ALL_ROUNDS == LIST_ALL_ROUNDS - 1 {
            self.caller.once(LIST_ALL_PODS, read(&client, "/api/v1/pods")).await?;
        }
        Ok(())
    }

    /// An object's whole life.
    async fn change_one(&self, round: u64, sent: &Sent) -> kube::Result<()> {
        let name = format!("probe-{round}");
        let maps: Api<ConfigMap> = Api::namespaced(self.caller.client(), &self.namespace);
        let map =
            serde_json::from_value(json!({"metadata": {"name": name}, "data": {"value": "x".repeat(512)}}));
        let map: ConfigMap = map.map_err(kube::Error::SerdeError)?;
        self.caller.once(CREATE, maps.create(&PostParams::default(), &map)).await?;
        let mut map = self.caller.once(GET, maps.get(&name)).await?;
        map.data = Some([("stamp".to_owned(), name.clone())].into());
        {
            let mut sent = sent.lock();
            if sent.len() >= MAX_SENT {
                sent.clear();
            }
            sent.insert(name.clone(), Instant::now());
        }
        self.caller.once(UPDATE, maps.replace(&name, &PostParams::default(), &map)).await?;
        let patch = Patch::Merge(json!({"data": {"more": "y"}}));
        self.caller.once(PATCH, maps.patch(&name, &PatchParams::default(), &patch)).await?;
        self.caller.once(LIST, maps.list(&ListParams::default())).await?;
        self.caller.once(DELETE, maps.delete(&name, &DeleteParams::default())).await.map(drop)
    }

    fn any_pod(&self) -> Option<ObjectKey> {
        let keys = self.census.keys();
        (!keys.is_empty()).then(|| keys[rand::rng().random_range(0..keys.len())].clone())
    }
}

/// Reads a whole answer without keeping it: what a client makes of it is not the server's time.
async fn read(client: &Client, path: &str) -> kube::Result<()> {
    let request = http::Request::get(path)
        .header(http::header::ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(kube::Error::HttpError)?;
    let response = client.send(request).await?;
    let status = response.status();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    if status.is_success() {
        return Ok(());
    }
    let refusal = kube::core::Status { code: status.as_u16(), ..kube::core::Status::default() };
    Err(kube::Error::Api(Box::new(refusal)))
}

/// Times the events of updates.
async fn watch(caller: Caller, namespace: String, sent: Sent) {
    let maps: Api<ConfigMap> = Api::namespaced(caller.client(), &namespace);
    let mut events = std::pin::pin!(watcher(maps, watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        let Ok(watcher::Event::Apply(map)) = event else { continue };
        let stamp = map.data.as_ref().and_then(|data| data.get("stamp"));
        let sent_at = stamp.and_then(|stamp| sent.lock().remove(stamp));
        if let Some(sent_at) = sent_at {
            caller.latencies().record(WATCH, sent_at.elapsed(), Ok(()));
        }
    }
}
