//! A range of pod addresses for each node, out of the cluster's.
//!
//! What is taken is read from the nodes themselves at every pass, so nothing is lost when this process ends, and a range
//! is free again once its node is gone.
//!
//! Source: upstream's range allocator.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};
use tracing::warn;

use crate::Context;
use crate::driver::{Controller, Outcome};

mod range;

pub use range::RangeError;
pub(crate) use range::{Cidr, NodeRanges};

/// How long until it is looked again for a range when there was none.
const RETRY: std::time::Duration = std::time::Duration::from_secs(30);

pub(crate) struct NodeCidrs {
    client: Client,
    ranges: NodeRanges,
    nodes: Informer<Node>,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
    given: Mutex<Given>,
}

/// What this process has given away, for as long as its copy of the nodes does not show it.
#[derive(Default)]
struct Given {
    by_node: HashMap<String, Cidr>,
    /// The last one: the search goes on behind it, so that what was freed a moment ago rests a while.
    last: Option<Cidr>,
}

impl NodeCidrs {
    pub(crate) fn new(context: &Context, ranges: NodeRanges) -> Self {
        let queue = WorkQueue::default();
        let nodes = context.informers.of::<Node>();
        let (wake, all) = (queue.clone(), nodes.clone());
        nodes.on_change(move |change| match (&change.old, &change.new) {
            (_, Some(node)) if cidrs(node).is_empty() => wake.add(key_of(&**node)),
            // What it had may be what another waits for.
            (Some(_), None) => {
                let without = all.filter(|_, node| cidrs(node).is_empty());
                without.iter().for_each(|node| wake.add(key_of(&**node)));
                change.old.iter().for_each(|node| wake.add(key_of(&**node)));
            }
            _ => {}
        });
        let events = context.events("cidrAllocator");
        NodeCidrs { client: context.client.clone(), ranges, nodes, events, queue, given: Mutex::default() }
    }

    /// Takes a range for a node. The same one if it was given one that its Node does not show yet.
    fn take(&self, name: &str) -> Option<Cidr> {
        let nodes = self.nodes.list();
        let taken: Vec<Cidr> = nodes.iter().flat_map(|node| cidrs(node)).filter_map(Cidr::parse).collect();
        let mut given = self.given.lock();
        given.by_node.retain(|of, _| {
            nodes.iter().any(|n| n.metadata.name.as_ref() == Some(of) && cidrs(n).is_empty())
        });
        if let Some(cidr) = given.by_node.get(name) {
            return Some(*cidr);
        }
        let in_flight = given.by_node.values().copied();
        let cidr = self.ranges.free(taken.into_iter().chain(in_flight), given.last)?;
        given.by_node.insert(name.to_owned(), cidr);
        given.last = Some(cidr);
        Some(cidr)
    }
}

/// The ranges that a node has.
fn cidrs(node: &Node) -> Vec<&str> {
    let Some(spec) = &node.spec else { return Vec::new() };
    match spec.pod_cidrs.as_deref() {
        Some(all) if !all.is_empty() => all.iter().map(String::as_str).collect(),
        _ => spec.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty()).into_iter().collect(),
    }
}

impl Controller for NodeCidrs {
    const NAME: &'static str = "nodeipam";
    /// One at a time: each has to see what the last one took.
    const WORKERS: usize = 1;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.nodes.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(node) = self.nodes.get(key) else {
            self.given.lock().by_node.remove(&key.name);
            return Ok(Outcome::Done);
        };
        if !cidrs(&node).is_empty() || node.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let Some(cidr) = self.take(&key.name) else {
            warn!(node = key.name, "no range of pod addresses is left for the node");
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.events.event(&*node, EventType::Normal, "CIDRNotAvailable", &message);
            return Ok(Outcome::After(RETRY));
        };
        let text = cidr.to_string();
        let patch = json!({
            // A node that was made anew meanwhile is another one.
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": text, "podCIDRs": [text]},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        api.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests;
