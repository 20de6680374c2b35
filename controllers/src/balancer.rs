//! Services of type LoadBalancer get the addresses of the ready nodes, on which the proxy answers for them.
//!
//! A Service whose port somebody else has on the nodes stays without an address, and an event says who that is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_client::{EventRecorder, EventType, Index, Informer, ObjectKey, Read, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};

mod plan;

use plan::{Port, claims, is_ours, node_ports};

/// Between a change of a node and the Services that have all nodes' addresses.
const NODES_SETTLE: Duration = Duration::from_millis(500);

pub(crate) struct Balancers {
    client: Client,
    services: Informer<Service>,
    /// By the ports that they have of the nodes, or claim.
    by_port: Index<Service, Port>,
    nodes: Informer<Node>,
    endpoints: Informer<Endpoints>,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
}

impl Balancers {
    pub(crate) fn new(context: &Context) -> Self {
        let informers = &context.informers;
        let (services, nodes) = (informers.of::<Service>(), informers.of::<Node>());
        let endpoints = informers.of::<Endpoints>();
        let queue = WorkQueue::default();
        let by_port = services.index(|service| held(service).into_iter().collect());
        let (wake, sharing) = (queue.clone(), by_port.clone());
        services.on_change(move |change| {
            if let Some(service) = change.object() {
                wake.add(key_of(&**service));
            }
            // A port that is let go of may be another's.
            let of = |s: &Option<Arc<Service>>| s.as_deref().map(held).unwrap_or_default();
            for port in of(&change.old).symmetric_difference(&of(&change.new)) {
                sharing.filter(port, is_ours).iter().for_each(|other| wake.add(key_of(&**other)));
            }
        });
        // Nodes that come or go together are one reason, not as many as they are.
        let (wake, all) = (queue.clone(), services.clone());
        nodes.on_change(move |change| {
            let seen = |n: &Option<Arc<Node>>| {
                n.as_ref().map(|node| (plan::address(node), plan::reserved(std::slice::from_ref(node), None)))
            };
            if seen(&change.old) != seen(&change.new) {
                let ours = all.filter(|_, service| is_ours(service));
                ours.iter().for_each(|service| wake.add_after(key_of(&**service), NODES_SETTLE));
            }
        });
        let (wake, all) = (queue.clone(), services.clone());
        endpoints.on_change(move |change| {
            if change.object().is_some_and(|e| key_of(&**e) == api_server()) {
                let ours = all.filter(|_, service| is_ours(service));
                ours.iter().for_each(|service| wake.add(key_of(&**service)));
            }
        });
        let events = context.events("service-lb-controller");
        Balancers { client: context.client.clone(), services, by_port, nodes, endpoints, events, queue }
    }
}

/// Where the API server publishes its own addresses.
fn api_server() -> ObjectKey {
    ObjectKey::new("default", "kubernetes")
}

/// The ports of the nodes that a Service has in any case, and those that it claims.
fn held(service: &Service) -> BTreeSet<Port> {
    let mut held = claims(service);
    held.extend(node_ports(service));
    held
}

fn assigned(service: &Service) -> BTreeSet<String> {
    let ingress =
        service.status.iter().flat_map(|s| s.load_balancer.iter().flat_map(|l| l.ingress.iter().flatten()));
    ingress.filter_map(|i| i.ip.clone()).collect()
}

impl Controller for Balancers {
    const NAME: &'static str = "service-lb";
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.services.synced().await;
        self.nodes.synced().await;
        self.endpoints.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(service) = self.services.get(key) else { return Ok(Outcome::Done) };
        // What somebody else's load balancer wrote is left alone.
        if service.spec.as_ref().is_some_and(|s| s.load_balancer_class.is_some()) {
            return Ok(Outcome::Done);
        }
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        if is_ours(&service) {
            let nodes = self.nodes.list();
            let reserved = plan::reserved(&nodes, self.endpoints.get(&api_server()).as_deref());
            let ports = claims(&service);
            let sharing: Vec<_> = ports.iter().flat_map(|port| self.by_port.get(port)).collect();
            match plan::conflict(&service, &sharing, &reserved) {
                None => wanted = nodes.iter().filter_map(|node| plan::address(node)).collect(),
                Some(conflict) => {
                    let message =
                        format!("Error syncing load balancer: failed to ensure load balancer: {conflict}");
                    self.events.event(&*service, EventType::Warning, "SyncLoadBalancerFailed", &message);
                }
            }
        }
        if assigned(&service) == wanted {
            return Ok(Outcome::Done);
        }
        let ingress: Vec<_> = wanted.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let status = json!({"metadata": {"uid": service.metadata.uid}, "status": {"loadBalancer": {"ingress": ingress}}});
        let api: Api<Read<Service>> = Api::namespaced(self.client.clone(), &key.namespace);
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(status)).await)?;
        if !wanted.is_empty() {
            self.events.event(&*service, EventType::Normal, "EnsuredLoadBalancer", "Ensured load balancer");
        }
        Ok(Outcome::Done)
    }
}
