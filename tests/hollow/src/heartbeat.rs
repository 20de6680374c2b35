//! A hollow node's registration, lease and status.
//!
//! ```text
//!  register ─▶ whole status ─▶ lease ─▶ every 10 s: renew ─┐
//!                                 ▲  └─ every 5 min, or when someone else wrote another Ready: status
//!                                 └──────── 404: someone deleted the node: register again
//! ```

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use rand::Rng as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::{Caller, code};
use crate::latency::Call;
use crate::node::{LEASE_NAMESPACE, Node};

const RENEW_EVERY: Duration = Duration::from_secs(10);
/// How much later than that a renewal may be, as the kubelet spreads them.
const RENEW_JITTER: f64 = 0.04;
const REPORT_EVERY: Duration = Duration::from_secs(5 * 60);
const CREATE_NODE: Call = Call::new("POST", "nodes");
const GET_NODE: Call = Call::new("GET", "nodes");
const PATCH_NODE_STATUS: Call = Call::new("PATCH", "nodes/status");
const CREATE_LEASE: Call = Call::new("POST", "leases");
const GET_LEASE: Call = Call::new("GET", "leases");
const RENEW_LEASE: Call = Call::new("PUT", "leases");

/// Keeps one node alive.
pub(crate) struct Heartbeat {
    pub(crate) node: Arc<Node>,
    pub(crate) caller: Caller,
    /// Rung when the API shows the node otherwise than it is.
    pub(crate) look: Arc<Notify>,
    pub(crate) since: Timestamp,
}

/// A registered node's objects as last seen.
pub(crate) struct Registered {
    uid: Option<String>,
    lease: Lease,
}

impl Heartbeat {
    fn nodes(&self) -> Api<core::Node> {
        Api::all(self.caller.client())
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.caller.client(), LEASE_NAMESPACE)
    }

    /// Registers the node: its object, its status, its lease.
    pub(crate) async fn register(&self) -> kube::Result<Registered> {
        let document = from_json(self.node.document())?;
        let (nodes, params) = (self.nodes(), PostParams::default());
        let created = self.caller.insist(CREATE_NODE, || nodes.create(&params, &document)).await;
        let node = match created {
            // It was registered by an earlier process.
            Err(error) if code(&error) == 409 => {
                self.caller.insist(GET_NODE, || nodes.get(&self.node.name)).await?
            }
            created => created?,
        };
        self.report(true).await?;
        let uid = node.metadata.uid;
        let lease = self.create_lease(uid.as_deref()).await?;
        Ok(Registered { uid, lease })
    }

    async fn report(&self, whole: bool) -> kube::Result<()> {
        let now = Timestamp::now();
        let status =
            if whole { self.node.status(self.since, now) } else { self.node.heartbeat(self.since, now) };
        let (nodes, params, patch) = (self.nodes(), PatchParams::default(), Patch::Strategic(status));
        let write = || nodes.patch_status(&self.node.name, &params, &patch);
        self.caller.insist(PATCH_NODE_STATUS, write).await.map(drop)
    }

    async fn create_lease(&self, uid: Option<&str>) -> kube::Result<Lease> {
        let lease = from_json(self.node.lease(uid, Timestamp::now()))?;
        let (leases, params) = (self.leases(), PostParams::default());
        match self.caller.insist(CREATE_LEASE, || leases.create(&params, &lease)).await {
            Err(error) if code(&error) == 409 => {
                let lease = self.caller.insist(GET_LEASE, || leases.get(&self.node.name)).await?;
                self.renewed(uid, lease).await
            }
            created => created,
        }
    }

    /// Renews what was seen last, as client-go's lease controller does: without reading it again.
    async fn renewed(&self, uid: Option<&str>, mut lease: Lease) -> kube::Result<Lease> {
        let wanted: Lease = from_json(self.node.lease(uid, Timestamp::now()))?;
        lease.spec = wanted.spec;
        lease.metadata.owner_references = wanted.metadata.owner_references;
        let (leases, params) = (self.leases(), PostParams::default());
        self.caller.insist(RENEW_LEASE, || leases.replace(&self.node.name, &params, &lease)).await
    }

    /// Lives until dropped. `offset` is how long after now the first renewal is due.
    pub(crate) async fn live(self, mut registered: Registered, offset: Duration) {
        let mut renew_at = Instant::now() + offset;
        let mut report_at = renew_at + REPORT_EVERY;
        loop {
            // All arms only wait.
            let outcome = tokio::select! {
                () = tokio::time::sleep_until(renew_at) => {
                    let late = rand::rng().random_range(0.0..RENEW_JITTER);
                    renew_at = Instant::now() + RENEW_EVERY.mul_f64(1.0 + late);
                    self.renew(&mut registered).await
                }
                () = tokio::time::sleep_until(report_at) => {
                    // As the kubelet: nodes that started together drift apart.
                    report_at = Instant::now() + REPORT_EVERY.mul_f64(rand::rng().random_range(0.5..1.5));
                    self.report(false).await
                }
                () = self.look.notified() => self.report(true).await,
            };
            match outcome {
                Ok(()) => {}
                Err(error) if code(&error) == 404 => match self.register().await {
                    Ok(again) => registered = again,
                    Err(error) => {
                        tracing::warn!(node = self.node.name, %error, "cannot register the node again")
                    }
                },
                Err(error) => tracing::warn!(node = self.node.name, %error, "a heartbeat was not written"),
            }
        }
    }

    async fn renew(&self, registered: &mut Registered) -> kube::Result<()> {
        let uid = registered.uid.as_deref();
        let renewed = match self.renewed(uid, registered.lease.clone()).await {
            Ok(lease) => Ok(lease),
            Err(error) if code(&error) == 409 => {
                let leases = self.leases();
                let lease = self.caller.insist(GET_LEASE, || leases.get(&self.node.name)).await?;
                self.renewed(uid, lease).await
            }
            // The lease goes with its node: whether that is still there shows when its status is written.
            Err(error) if code(&error) == 404 => {
                self.report(true).await?;
                self.create_lease(uid).await
            }
            Err(error) => Err(error),
        };
        registered.lease = renewed?;
        Ok(())
    }
}

fn from_json<T: serde::de::DeserializeOwned>(document: serde_json::Value) -> kube::Result<T> {
    serde_json::from_value(document).map_err(kube::Error::SerdeError)
}
