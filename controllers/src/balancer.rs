//! Services of type LoadBalancer get the addresses of the ready nodes, on which the proxy answers for them.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};

use crate::Context;
use crate::driver::{Controller, Outcome, gone_is_fine};

pub(crate) struct Balancers {
    client: Client,
    services: Informer<Service>,
    nodes: Informer<Node>,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
}

impl Balancers {
    pub(crate) fn new(context: &Context) -> Self {
        let (services, nodes) = (context.informers.of::<Service>(), context.informers.of::<Node>());
        let queue = WorkQueue::default();
        let wake = queue.clone();
        services.on_change(move |change| {
            if let Some(service) = change.object() {
                wake.add(key_of(&**service));
            }
        });
        let (wake, all) = (queue.clone(), services.clone());
        nodes.on_change(move |change| {
            let before = change.old.iter().filter_map(address).next();
            if before != change.new.iter().filter_map(address).next() {
                all.filter(|_, s| is_ours(s)).iter().for_each(|s| wake.add(key_of(&**s)));
            }
        });
        let events = context.events("service-lb-controller");
        Balancers { client: context.client.clone(), services, nodes, events, queue }
    }
}

/// The internal address of a node that is ready.
fn address(node: &Arc<Node>) -> Option<String> {
    let status = node.status.as_ref()?;
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let internal = status.addresses.iter().flatten().find(|a| a.type_ == "InternalIP")?;
    ready.then(|| internal.address.clone())
}

/// A class names another load balancer.
fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer") && s.load_balancer_class.is_none())
}

fn assigned(service: &Service) -> BTreeSet<String> {
    let ingress =
        service.status.iter().flat_map(|s| s.load_balancer.iter().flat_map(|l| l.ingress.iter().flatten()));
    ingress.filter_map(|i| i.ip.clone()).collect()
}

impl Controller for Balancers {
    const NAME: &'static str = "service-lb";

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.services.synced().await;
        self.nodes.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(service) = self.services.get(key) else { return Ok(Outcome::Done) };
        let wanted: BTreeSet<String> = if is_ours(&service) {
            self.nodes.list().iter().filter_map(address).collect()
        } else {
            BTreeSet::new()
        };
        // What somebody else's load balancer wrote is left alone.
        let class = service.spec.as_ref().and_then(|s| s.load_balancer_class.as_ref());
        if class.is_some() || assigned(&service) == wanted {
            return Ok(Outcome::Done);
        }
        let ingress: Vec<_> = wanted.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        let api: Api<Service> = Api::namespaced(self.client.clone(), &key.namespace);
        gone_is_fine(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(status)).await)?;
        if !wanted.is_empty() {
            self.events.event(&*service, EventType::Normal, "EnsuredLoadBalancer", "Ensured load balancer");
        }
        Ok(Outcome::Done)
    }
}
