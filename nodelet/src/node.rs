//! This node in the API: its Node object, its status, its lease.
//!
//! The node is registered at once and its status written in the same breath: a node is ready within
//! one round trip of its nodelet's start. After that the lease, every ten seconds, says that it
//! lives; the status is written when it changes and every five minutes.

pub(crate) mod machine;
pub(crate) mod pressure;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_cri::Cri;
use tokio::sync::Notify;

use crate::config::Config;
use crate::error::Error;
use crate::event::{EventSink, EventType, node_ref};
use crate::eviction::Pressure;
use machine::{Machine, go_arch};
use status::{Facts, NodeStatusMaker};

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_DURATION_S: i32 = 40;
const LEASE_RENEW: Duration = Duration::from_secs(10);
/// How often the machine and the runtime are looked at.
const STATUS_CHECK: Duration = Duration::from_secs(10);
/// How often the status is written though nothing changed.
const STATUS_REPORT: Duration = Duration::from_secs(5 * 60);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(7);
/// Registration is given up after this many tries: whoever started nodelet shall see why.
const REGISTER_TRIES: u32 = 12;

pub(crate) struct NodeAgent {
    pub(crate) config: Arc<Config>,
    pub(crate) client: Client,
    pub(crate) cri: Arc<dyn Cri>,
    pub(crate) sink: Arc<dyn EventSink>,
    pub(crate) machine: Arc<Machine>,
    /// The node API's real port.
    pub(crate) port: u16,
    pub(crate) pressure: Arc<Pressure>,
    /// Rung when the images or the pressure of this node may have changed.
    pub(crate) look: Arc<Notify>,
}

/// The labels that this node has by itself.
pub(crate) fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", config.node_name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", go_arch()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", go_arch()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

impl NodeAgent {
    fn api(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Registers the node and writes its first status. Bounded tries.
    pub(crate) async fn register(&self) -> Result<Node, Error> {
        let mut wait = RETRY_FIRST;
        let mut n_tries = 0;
        loop {
            n_tries += 1;
            match self.try_register().await {
                Ok(node) => return Ok(node),
                Err(source) if n_tries >= REGISTER_TRIES => {
                    return Err(Error::Register {
                        node: self.config.node_name.clone(),
                        source: Box::new(source),
                    });
                }
                Err(error) => tracing::info!(%error, "cannot register the node yet, trying again"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn try_register(&self) -> Result<Node, kube::Error> {
        let node = Node {
            metadata: ObjectMeta {
                name: Some(self.config.node_name.clone()),
                labels: Some(labels(&self.config)),
                annotations: Some(BTreeMap::from([(
                    "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                    "true".to_owned(),
                )])),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                taints: Some(self.config.taints.clone()).filter(|t| !t.is_empty()),
                pod_cidr: self.config.pod_cidr.clone(),
                pod_cidrs: self.config.pod_cidr.clone().map(|cidr| vec![cidr]),
                ..NodeSpec::default()
            }),
            ..Node::default()
        };
        match self.api().create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(status)) if status.code == 409 => self.reconcile().await,
            created => created,
        }
    }

    /// A node that is registered already keeps what others wrote; its own labels are made right.
    async fn reconcile(&self) -> Result<Node, kube::Error> {
        let existing = self.api().get(&self.config.node_name).await?;
        let has = existing.metadata.labels.clone().unwrap_or_default();
        let missing: BTreeMap<_, _> =
            labels(&self.config).into_iter().filter(|(k, v)| has.get(k) != Some(v)).collect();
        let has_cidr = existing.spec.as_ref().is_some_and(|s| s.pod_cidr.is_some());
        let cidr = self.config.pod_cidr.as_ref().filter(|_| !has_cidr);
        if missing.is_empty() && cidr.is_none() {
            return Ok(existing);
        }
        let mut patch = json!({ "metadata": { "labels": missing } });
        if let Some(cidr) = cidr {
            patch["spec"] = json!({ "podCIDR": cidr, "podCIDRs": [cidr] });
        }
        self.api().patch(&self.config.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await
    }

    fn event(&self, type_: EventType, reason: &str, message: &str) {
        self.sink.event(&node_ref(&self.config.node_name), type_, reason, message);
    }

    /// Writes the first status, and tells of the start.
    pub(crate) async fn announce(&self, node: Node) -> Result<(), Error> {
        self.event(EventType::Normal, "Starting", "Starting kubelet.");
        let failed =
            |source| Error::Register { node: self.config.node_name.clone(), source: Box::new(source) };
        self.report(node, true).await.map_err(failed)?;
        self.event(
            EventType::Normal,
            "NodeAllocatableEnforced",
            "Updated Node Allocatable limit across pods",
        );
        Ok(())
    }

    /// Writes the status if it is not what the API has, or if it is due. Tells of conditions that changed.
    async fn report(&self, node: Node, due: bool) -> Result<bool, kube::Error> {
        let maker = NodeStatusMaker::new(node.status.unwrap_or_default());
        let facts = Facts::read(&self.config, &*self.cri, &self.machine, self.port, &self.pressure).await;
        let (status, reasons) = maker.make(&facts, Timestamp::now());
        let Some(patch) = maker.patch(&status, due) else { return Ok(false) };
        let patch = Patch::Strategic(json!({ "status": patch }));
        self.api().patch_status(&self.config.node_name, &PatchParams::default(), &patch).await?;
        for reason in reasons {
            let message = format!("Node {} status is now: {reason}", self.config.node_name);
            self.event(EventType::Normal, reason, &message);
        }
        Ok(true)
    }

    /// Keeps the status current for as long as the nodelet runs.
    pub(crate) async fn keep_status(&self) {
        let mut reported_at = tokio::time::Instant::now();
        loop {
            // Both arms only wait.
            tokio::select! {
                () = tokio::time::sleep(STATUS_CHECK) => {}
                () = self.look.notified() => {}
            }
            let is_due = reported_at.elapsed() >= STATUS_REPORT;
            // Read again each time: while a node was silent, others may have spoken for it.
            let reported = async { self.report(self.api().get(&self.config.node_name).await?, is_due).await };
            match reported.await {
                Ok(true) => reported_at = tokio::time::Instant::now(),
                Ok(false) => {}
                // Someone deleted the node: it registers again.
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    if let Err(error) = self.register().await {
                        tracing::warn!(%error, "cannot register the node again");
                    }
                    self.look.notify_one();
                }
                Err(error) => tracing::warn!(%error, "cannot write the node's status, trying again"),
            }
        }
    }

    /// Renews the node's lease for as long as the nodelet runs.
    pub(crate) async fn keep_lease(&self, node_uid: Option<String>) {
        let mut wait = RETRY_FIRST;
        loop {
            match self.renew_lease(node_uid.as_deref()).await {
                Ok(()) => {
                    wait = RETRY_FIRST;
                    tokio::time::sleep(LEASE_RENEW).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot renew the node's lease, trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn renew_lease(&self, node_uid: Option<&str>) -> Result<(), kube::Error> {
        let api = Api::<Lease>::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let name = &self.config.node_name;
        let spec = LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_DURATION_S),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        };
        let patch = Patch::Merge(json!({ "spec": spec }));
        match api.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            patched => return patched.map(drop),
        }
        let owner = node_uid.map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: name.clone(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        });
        let metadata = ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await.map(drop)
    }
}
