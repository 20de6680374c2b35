//! Certificates for nodes and users: requests are approved where that needs nobody's judgement, signed with the
//! cluster's authority once they are approved, and deleted when they are old.
//!
//! A node that joins asks with a bootstrap token for its client certificate, and with that one for its serving
//! certificate and for each next one. See [`plan::permissions`] and [`plan::serving`] for what is approved.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{Index, Informer, ObjectKey, WorkQueue, key_of};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};
use crate::joining::Reached;

mod der;
mod plan;
mod x509;

pub(crate) use x509::Authority;
pub use x509::AuthorityError;

use crate::node_ipam::Cidr;
use x509::Request;

const LEASES: &str = "kube-node-lease";

/// What certificates are signed with, and what none may be for.
pub(crate) struct Config {
    pub(crate) authority: Arc<Authority>,
    /// DNS names of the API server and others that no node may have as its own.
    pub(crate) reserved_names: Vec<String>,
    /// Whose addresses are the API server's.
    pub(crate) reached: watch::Receiver<Reached>,
    /// Of pods and Services: a node that serves as one of their addresses stands in for any of them.
    pub(crate) reserved_ranges: Vec<Cidr>,
}

pub(crate) struct SigningRequests {
    client: Client,
    config: Config,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    /// By the addresses that they declare.
    by_ip: Index<Node, IpAddr>,
    leases: Informer<Lease>,
    queue: WorkQueue<ObjectKey>,
    /// When each node's lease was last seen to change: a node's own clock may be wrong.
    seen: Arc<Mutex<HashMap<String, Instant>>>,
}

/// A condition to be added.
struct Verdict {
    type_: &'static str,
    reason: &'static str,
    message: String,
}

impl SigningRequests {
    pub(crate) fn new(context: &Context, config: Config) -> Self {
        let informers = &context.informers;
        let queue = WorkQueue::default();
        let requests = informers.of::<CertificateSigningRequest>();
        let wake = queue.clone();
        requests.on_change(move |change| {
            if let Some(request) = &change.new {
                wake.add(key_of(&**request));
            }
        });
        let leases = informers.of::<Lease>();
        let seen: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
        let times = seen.clone();
        leases.on_change(move |change| {
            let Some(lease) = change.object().filter(|l| l.metadata.namespace.as_deref() == Some(LEASES))
            else {
                return;
            };
            let name = lease.metadata.name.clone().unwrap_or_default();
            match (&change.old, &change.new) {
                // Seen for the first time, it may be as old as it says.
                (None, _) => {}
                (_, Some(_)) => _ = times.lock().insert(name, Instant::now()),
                (_, None) => _ = times.lock().remove(&name),
            }
        });
        // A serving certificate may wait for the node to declare its addresses.
        let nodes = informers.of::<Node>();
        let by_ip = nodes.index(plan::declared);
        let pending = requests.index(|request| if is_decided(request) { Vec::new() } else { vec![()] });
        let wake = queue.clone();
        nodes.on_change(move |change| {
            let addresses =
                |n: &Option<Arc<Node>>| n.as_ref().and_then(|n| n.status.as_ref()?.addresses.clone());
            if addresses(&change.old) != addresses(&change.new) {
                pending.get(&()).iter().for_each(|r| wake.add(key_of(&**r)));
            }
        });
        let client = context.client.clone();
        SigningRequests { client, config, requests, nodes, by_ip, leases, queue, seen }
    }

    fn api(&self) -> Api<CertificateSigningRequest> {
        Api::all(self.client.clone())
    }

    /// Approves or denies what needs nobody's judgement.
    async fn decide(&self, csr: &CertificateSigningRequest, request: &Request) -> Result<(), kube::Error> {
        let approved = |message: &str| Verdict {
            type_: "Approved",
            reason: "AutoApproved",
            message: message.to_owned(),
        };
        if csr.spec.signer_name == plan::KUBELET_SERVING {
            // Its own and, if there are, those that claim an address of its own.
            let nodes: Vec<Arc<Node>> = request.ips.iter().flat_map(|ip| self.by_ip.get(ip)).collect();
            let nodes: Vec<&Node> = nodes.iter().map(|node| &**node).collect();
            let cluster = plan::Cluster {
                nodes: &nodes,
                reserved_names: &self.config.reserved_names,
                reserved_ips: &self.config.reached.borrow().ips.clone(),
                reserved_ranges: &self.config.reserved_ranges,
            };
            return match plan::serving(csr, request, &cluster) {
                Ok(message) => self.add_condition("approval", csr, approved(message)).await,
                Err(why) => {
                    let name = csr.metadata.name.as_deref().unwrap_or_default();
                    info!(name, why, "a serving certificate waits for an administrator's approval");
                    Ok(())
                }
            };
        }
        for permission in plan::permissions(csr, request) {
            if !self.is_allowed(csr, permission.subresource).await? {
                continue;
            }
            let verdict = match plan::claimed_node(csr, request).and_then(|node| self.living(node)) {
                Some(message) => Verdict { type_: "Denied", reason: "NodeNameInUse", message },
                None => approved(permission.message),
            };
            return self.add_condition("approval", csr, verdict).await;
        }
        Ok(())
    }

    async fn is_allowed(
        &self,
        csr: &CertificateSigningRequest,
        subresource: &str,
    ) -> Result<bool, kube::Error> {
        let spec = SubjectAccessReviewSpec {
            user: csr.spec.username.clone(),
            uid: csr.spec.uid.clone(),
            groups: csr.spec.groups.clone(),
            extra: csr.spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(subresource.into()),
                verb: Some("create".into()),
                version: Some("*".into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review = api.create(&PostParams::default(), &review).await?;
        Ok(review.status.is_some_and(|status| status.allowed))
    }

    /// That a node of this name lives, if it does, as a sentence for whoever wants to be it too.
    fn living(&self, node: &str) -> Option<String> {
        self.nodes.get(&ObjectKey::new("", node))?;
        let lease = self.leases.get(&ObjectKey::new(LEASES, node));
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|t| t.0));
        let said = renewed.map(|at| Timestamp::now().duration_since(at));
        let seen = self.seen.lock().get(node).map(Instant::elapsed);
        let lives = said.is_some_and(|ago| ago < plan::ALIVE)
            || seen.is_some_and(|ago| ago < plan::ALIVE.unsigned_abs());
        lives.then(|| {
            format!(
                "a node named {node:?} is a living member of this cluster (it renewed its lease less than {} s ago): \
                 join under another name, or stop that node and delete its Node object first",
                plan::ALIVE.as_secs()
            )
        })
    }

    async fn sign(&self, csr: &CertificateSigningRequest, request: &Request) -> Result<(), kube::Error> {
        let failed = |message| Verdict { type_: "Failed", reason: "SignerValidationFailure", message };
        if let Some(fault) = plan::signing_fault(csr, request) {
            return self.add_condition("status", csr, failed(fault)).await;
        }
        let usages = csr.spec.usages.clone().unwrap_or_default();
        let name = csr.metadata.name.clone().unwrap_or_default();
        match self.config.authority.sign(request, &usages, plan::life(csr), Timestamp::now()) {
            Ok(pem) => {
                let certificate = ByteString(pem.into_bytes());
                let patch = json!({
                    "metadata": {"resourceVersion": csr.metadata.resource_version},
                    "status": {"certificate": certificate},
                });
                self.api().patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
            }
            // The authority is at fault, and stays so: what is approved can be signed once that is mended.
            Err(error) => {
                warn!(name, %error, "cannot sign a certificate");
                Ok(())
            }
        }
    }

    async fn add_condition(
        &self,
        subresource: &str,
        csr: &CertificateSigningRequest,
        verdict: Verdict,
    ) -> Result<(), kube::Error> {
        let name = csr.metadata.name.clone().unwrap_or_default();
        info!(name, verdict.type_, verdict.message, "a certificate signing request is decided");
        let mut conditions = csr.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        conditions.push(CertificateSigningRequestCondition {
            type_: verdict.type_.into(),
            status: "True".into(),
            reason: Some(verdict.reason.into()),
            message: Some(verdict.message),
            last_update_time: Some(Time(Timestamp::now())),
            last_transition_time: None,
        });
        let patch = json!({
            "metadata": {"resourceVersion": csr.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        self.api().patch_subresource(subresource, &name, &params, &patch).await.map(drop)
    }

    async fn delete(&self, csr: &CertificateSigningRequest) -> Result<(), kube::Error> {
        let uid = Preconditions { uid: csr.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
        let name = csr.metadata.name.as_deref().unwrap_or_default();
        gone_is_fine(self.api().delete(name, &params).await)
    }
}

fn is_decided(csr: &CertificateSigningRequest) -> bool {
    plan::is_issued(csr) || plan::has_condition(csr, "Approved") || plan::has_condition(csr, "Denied")
}

impl Controller for SigningRequests {
    const NAME: &'static str = "certificatesigningrequest";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.requests.synced().await;
        self.nodes.synced().await;
        self.leases.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(csr) = self.requests.get(key) else { return Ok(Outcome::Done) };
        let due = plan::due(&csr);
        let left = due.map(|due| due.duration_since(Timestamp::now()));
        if left.is_some_and(|left| !left.is_positive()) {
            return self.delete(&csr).await.map(|()| Outcome::Done);
        }
        let outcome =
            left.map_or(Outcome::Done, |left| Outcome::After(left.unsigned_abs() + Duration::from_secs(1)));
        let is_settled = plan::is_issued(&csr) || plan::has_condition(&csr, "Failed");
        if is_settled || plan::has_condition(&csr, "Denied") || !plan::is_ours(&csr) {
            return Ok(outcome);
        }
        let request = match Request::parse(&csr.spec.request.0) {
            Ok(request) => request,
            Err(error) => {
                warn!(%key, %error, "a certificate signing request cannot be read");
                return Ok(outcome);
            }
        };
        // What a pass writes comes back through the informer.
        if plan::has_condition(&csr, "Approved") {
            self.sign(&csr, &request).await?;
        } else {
            self.decide(&csr, &request).await?;
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests;
