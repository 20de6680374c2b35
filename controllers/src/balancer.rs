//! Services of type LoadBalancer get the addresses of the ready nodes, on which the proxy answers for them.
//!
//! A Service whose port somebody else has on the nodes stays without an address, and an event says who that is.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Node, Service};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};

mod plan;

use plan::{claims, is_ours, node_ports};

pub(crate) struct Balancers {
    client: Client,
    services: Informer<Service>,
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
        let all = services.clone();
        let to = queue.clone();
        let wake_all = Arc::new(move || {
            all.filter(|_, s| is_ours(s)).iter().for_each(|s| to.add(key_of(&**s)));
        });
        let (wake, wake_others) = (queue.clone(), wake_all.clone());
        services.on_change(move |change| {
            if let Some(service) = change.object() {
                wake.add(key_of(&**service));
            }
            // A port that is let go of may be another's.
            let held = |s: &Option<Arc<Service>>| s.as_ref().map(|s| (claims(s), node_ports(s)));
            if held(&change.old) != held(&change.new) {
                wake_others();
            }
        });
        let wake_others = wake_all.clone();
        nodes.on_change(move |change| {
            let seen = |n: &Option<Arc<Node>>| {
                let node = n.as_deref()?;
                Some((plan::address(node), plan::reserved(&[Arc::new(node.clone())], None)))
            };
            if seen(&change.old) != seen(&change.new) {
                wake_others();
            }
        });
        endpoints.on_change(move |change| {
            if change.object().is_some_and(|e| key_of(&**e) == api_server()) {
                wake_all();
            }
        });
        let events = context.events("service-lb-controller");
        Balancers { client: context.client.clone(), services, nodes, endpoints, events, queue }
    }
}

/// Where the API server publishes its own addresses.
fn api_server() -> ObjectKey {
    ObjectKey::new("default", "kubernetes")
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
            match plan::conflict(&service, &self.services.list(), &reserved) {
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
        let api: Api<Service> = Api::namespaced(self.client.clone(), &key.namespace);
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(status)).await)?;
        if !wanted.is_empty() {
            self.events.event(&*service, EventType::Normal, "EnsuredLoadBalancer", "Ensured load balancer");
        }
        Ok(Outcome::Done)
    }
}
