//! What this crate's tests run against: a runtime and an API server in memory.
//!
//! Both keep the rules that matter to a nodelet (states, filters, watches, preconditions), so that the
//! tests drive the real workers. End-to-end tests with real runtimes are in `tests/`.

pub(crate) mod api;
pub(crate) mod cri;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Config, EventSink, EventType, Nodelet};
use api::FakeApi;
use cri::FakeCri;

/// Events in the order they were recorded: type, reason, message.
#[derive(Default)]
pub(crate) struct Recorded(Mutex<Vec<(String, String, String)>>);

impl EventSink for Recorded {
    fn event(&self, _object: &ObjectReference, type_: EventType, reason: &str, message: &str) {
        self.0.lock().push((type_.as_str().to_owned(), reason.to_owned(), message.to_owned()));
    }
}

impl Recorded {
    pub(crate) fn messages(&self, reason: &str) -> Vec<String> {
        self.0.lock().iter().filter(|(_, r, _)| r == reason).map(|(_, _, m)| m.clone()).collect()
    }
}

/// What groups were given last, by path.
#[derive(Default)]
pub(crate) struct Groups(pub(crate) Mutex<BTreeMap<String, (u64, Option<i64>)>>);

impl crate::PodCgroups for Groups {
    fn set(&self, path: &str, cpu_shares: u64, memory_bytes: Option<i64>) -> Result<(), String> {
        self.0.lock().insert(path.to_owned(), (cpu_shares, memory_bytes));
        Ok(())
    }
}

/// A nodelet on a node of its own.
pub(crate) struct Node {
    pub(crate) api: FakeApi,
    pub(crate) cri: Arc<FakeCri>,
    pub(crate) events: Arc<Recorded>,
    pub(crate) config: Config,
    running: Option<(DropGuard, tokio::task::JoinHandle<()>)>,
    _dir: tempfile::TempDir,
}

impl Node {
    /// A node with an API server and a runtime, on which no nodelet runs yet.
    pub(crate) fn new() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new("n1", "127.0.0.1".parse().unwrap());
        config.root_dir = dir.path().join("nodelet");
        config.log_root = dir.path().join("logs");
        // However full the machine of the tests is.
        config.eviction_hard = "".parse().unwrap();
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        Node {
            api: FakeApi::default(),
            cri: Arc::new(FakeCri::default()),
            events: Arc::default(),
            config,
            running: None,
            _dir: dir,
        }
    }

    pub(crate) async fn started() -> Node {
        let mut node = Node::new();
        node.start().await;
        node
    }

    pub(crate) async fn start(&mut self) {
        let started =
            Nodelet::start(self.config.clone(), self.api.client(), self.cri.clone(), self.events.clone());
        let nodelet = started.await.unwrap();
        let stop = CancellationToken::new();
        let run = nodelet.run(stop.clone());
        let task = tokio::spawn(async move { run.await.unwrap() });
        self.running = Some((stop.drop_guard(), task));
    }

    /// Ends the nodelet, as a restart of its process would.
    pub(crate) async fn stop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            drop(stop);
            task.await.unwrap();
        }
    }

    pub(crate) fn pod_dir(&self, uid: &str) -> std::path::PathBuf {
        self.config.pod_dir(uid)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Volumes of pods that a test left running.
        let _ = crate::volume::mounts::remove_tree(&self.config.root_dir);
    }
}

/// A pod bound to the test's node, with `spec` over a plain one.
pub(crate) fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1 },
        "spec": {
            "nodeName": "n1",
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "enableServiceLinks": true,
            "containers": [{ "name": "app", "image": "app:1" }],
        },
        "status": { "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "True" }] },
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

pub(crate) fn typed(pod: Value) -> Pod {
    serde_json::from_value(pod).unwrap()
}

/// Waits until `check` answers, looking again whenever other tasks have run. Fails after ten seconds.
pub(crate) async fn eventually<T>(what: &str, check: impl AsyncFn() -> Option<T>) -> T {
    let looked = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), looked)
        .await
        .unwrap_or_else(|_| panic!("{what} did not come about"))
}

impl Node {
    /// Waits until the pod's status passes the test.
    pub(crate) async fn pod_status(&self, name: &str, test: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        let last = Mutex::new(Value::Null);
        let status = async || {
            let status = self.api.get(&path)?["status"].clone();
            *last.lock() = status.clone();
            test(&status).then_some(status)
        };
        match tokio::time::timeout(Duration::from_secs(8), eventually("the status", status)).await {
            Ok(status) => status,
            Err(_) => {
                panic!("pod {name} has the status {:#} and events {:#?}", last.lock(), self.events.0.lock())
            }
        }
    }

    pub(crate) async fn phase(&self, name: &str, phase: &str) -> Value {
        self.pod_status(name, |s| s["phase"] == phase).await
    }

    pub(crate) async fn pod_gone(&self, name: &str) {
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        eventually("the pod's end", async || self.api.get(&path).is_none().then_some(())).await;
    }
}

/// A condition of a status.
pub(crate) fn condition<'a>(status: &'a Value, type_: &str) -> &'a Value {
    let list = status["conditions"].as_array().unwrap();
    list.iter().find(|c| c["type"] == type_).unwrap_or(&Value::Null)
}

pub(crate) type Labels = BTreeMap<String, String>;
