//! A range of pod addresses for each node, out of the cluster's.
//!
//! ```text
//!  nodes, as they change ──► book: who has which range ──► a patch of spec.podCIDR
//!                              │ freed
//!                              └──► nodes that wait, as many as there are ranges
//! ```
//!
//! What is taken is read from the nodes themselves, so nothing is lost when this process ends, and a range is free again
//! once its node is gone.
//!
//! A range that a node brings along is its own, as upstream has it: `spec.podCIDR` cannot be changed. If it is another
//! node's already, both are told apart by their age, and an event at the younger says what to do.
//!
//! Source: upstream's range allocator.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use skiff_client::{EventRecorder, EventType, Informer, ObjectKey, WorkQueue, key_of};
use tracing::{error, warn};

use crate::Context;
use crate::driver::{Controller, Outcome, is_conflict, is_not_found};

mod book;
mod range;

use book::Book;
pub use range::RangeError;
pub(crate) use range::{Cidr, NodeRanges};

pub(crate) struct NodeCidrs {
    client: Client,
    nodes: Informer<Node>,
    events: EventRecorder,
    queue: WorkQueue<ObjectKey>,
    seen: Seen,
}

/// The book, and whom to wake when it changes. Cloning shares it.
#[derive(Clone)]
struct Seen {
    book: Arc<Mutex<Book>>,
    queue: WorkQueue<ObjectKey>,
}

impl Seen {
    /// Takes a change of a node.
    fn follow(&self, old: Option<&Node>, new: Option<&Node>) {
        let Some(name) = new.or(old).and_then(|node| node.metadata.name.as_deref()) else { return };
        let woken = self.book.lock().follow(name, new.map(ranges_of));
        self.wake(&woken);
        // That a node reports is no reason to look: one that waits is woken.
        let of = |node: &Node| (node.metadata.uid.clone(), ranges_of(node));
        if new.is_none() || old.map(of) != new.map(of) {
            self.queue.add(ObjectKey::new("", name));
        }
    }

    fn wake(&self, names: &[String]) {
        names.iter().for_each(|name| self.queue.add(ObjectKey::new("", name)));
    }
}

impl NodeCidrs {
    pub(crate) fn new(context: &Context, ranges: NodeRanges) -> Self {
        let queue = WorkQueue::default();
        let nodes = context.informers.of::<Node>();
        let seen = Seen { book: Arc::new(Mutex::new(Book::new(ranges))), queue: queue.clone() };
        let follows = seen.clone();
        nodes.on_change(move |change| follows.follow(change.old.as_deref(), change.new.as_deref()));
        let events = context.events("cidrAllocator");
        NodeCidrs { client: context.client.clone(), nodes, events, queue, seen }
    }

    /// Takes a range for a node. Without any, it is told and woken when there is one.
    fn give(&self, node: &Node) -> Option<Cidr> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let cidr = self.seen.book.lock().give(name);
        if cidr.is_none() {
            warn!(node = name, "no range of pod addresses is left for the node");
            self.tell(node, "CIDRNotAvailable");
        }
        cidr
    }

    fn tell(&self, node: &Node, status: &str) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        self.events.event(node, EventType::Normal, status, &format!("Node {name} status is now: {status}"));
    }

    /// A range that two nodes have leads the pods' packets to one of them: people have to know.
    fn report_shared(&self, node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let sharers: Vec<(String, Cidr)> = {
            let book = self.seen.book.lock();
            book.sharers(name).into_iter().map(|(other, cidr)| (other.to_owned(), cidr)).collect()
        };
        for (other, cidr) in sharers {
            let Some(other) = self.nodes.get(&ObjectKey::new("", &other)) else { continue };
            let (wrong, right) = if is_younger(node, &other) { (node, &*other) } else { (&*other, node) };
            let (wrong_name, right) = (key_of(wrong).name, key_of(right).name);
            error!(node = wrong_name, range = %cidr, holder = right, "a node has a range of pod addresses that is another node's");
            let message = format!(
                "Node {wrong_name} has pod CIDR {cidr}, which is node {right}'s already: delete node {wrong_name} and let it \
                 register again without a pod CIDR"
            );
            self.events.event(wrong, EventType::Warning, "CIDRAssignmentFailed", &message);
        }
    }

    /// Hands on a turn that was not used.
    fn pass_on(&self) {
        let woken = self.seen.book.lock().woken();
        self.seen.wake(&woken);
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

fn ranges_of(node: &Node) -> Vec<Cidr> {
    cidrs(node).into_iter().filter_map(Cidr::parse).collect()
}

/// Whether a node came after another; of two that were made in the same second, the one with the later name.
fn is_younger(node: &Node, other: &Node) -> bool {
    let age = |node: &Node| {
        let created = node.metadata.creation_timestamp.as_ref().map(|at| at.0);
        (created, node.metadata.name.clone(), node.metadata.uid.clone())
    };
    age(node) > age(other)
}

impl Controller for NodeCidrs {
    const NAME: &'static str = "nodeipam";
    /// A pass waits for its write and for nothing else: who has what is in the book.
    const WORKERS: usize = 8;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.nodes.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(node) = self.nodes.get(key).filter(|node| node.metadata.deletion_timestamp.is_none()) else {
            self.pass_on();
            return Ok(Outcome::Done);
        };
        if !cidrs(&node).is_empty() {
            self.report_shared(&node);
            self.pass_on();
            return Ok(Outcome::Done);
        }
        let Some(cidr) = self.give(&node) else { return Ok(Outcome::Done) };
        let text = cidr.to_string();
        let patch = json!({
            // A node that was made anew meanwhile is another one.
            "metadata": {"uid": node.metadata.uid},
            "spec": {"podCIDR": text, "podCIDRs": [text]},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        let written = api.patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        if written.as_ref().is_err_and(|error| !is_conflict(error) && !is_not_found(error)) {
            self.tell(&node, "CIDRAssignmentFailed");
        }
        written.map(|_| Outcome::Done)
    }
}

#[cfg(test)]
mod tests;
