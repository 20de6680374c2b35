//! The provisioner that comes with the cluster: directories of nodes, which the nodes make, limit and remove.
//!
//! ```text
//!  claim, marked for us ─ its node (the scheduler's choice) ─ PUT volumes/pvc-UID ─ volume made, bound by the binder
//!  claim asks for more ─ PUT with more ─ capacity of the volume ─ capacity of the claim
//!  volume released, policy Delete ─ DELETE volumes/pvc-UID ─ object deleted, finalizer off
//! ```
//!
//! # Guarantees
//! - What is asked of a node is idempotent: whoever ends in between is begun again.
//! - A volume's object is there for as long as its directory is, unless the node is gone for good and the directory with it.
//! - Nothing is removed before the API was asked itself what has become of the volume.
//!
//! # Caveats
//! A claim that is deleted after its node has made the directory, while this process ends before the object is there, leaves
//! the directory behind.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use skiff_api::volumes::{
    PROVISIONED_BY, PROVISIONER, SELECTED_NODE, annotate, annotation, class_of_claim, delays_binding,
    requested, volume_of,
};
use skiff_client::{Backoff, EventRecorder, EventType, Index, Informer, ObjectKey, Read, WorkQueue, key_of};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Writer, drop_finalizer, has_finalizer, names};
use crate::Context;
use crate::driver::{Controller, Outcome, exists_is_fine, gone_is_fine};
use crate::objects::uid;

pub(crate) mod class;
mod node;
mod plan;

use node::{Made, NodeError, NodeProxy, NodeVolumes};
use plan::{ClaimStep, VolumeStep};

/// What classes name for it, and volumes are marked with.
pub(crate) const PROVISIONER_NAME: &str = "skiff.dev/local";
/// Keeps a volume's object until its directory is gone.
const FINALIZER: &str = "skiff.dev/local-volume";
/// On a volume: the node that has it, and what bounds what is written to it.
const NODE: &str = "skiff.dev/local-volume-node";
const LIMIT: &str = "skiff.dev/local-volume-limit";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// A node may be missing because it is being registered again.
const QUARANTINE: Duration = Duration::from_secs(40);
/// A claim that any node will do for looks again for one.
const NO_NODE_WAIT: Duration = Duration::from_secs(15);
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(250), max: Duration::from_secs(60) };

pub(crate) struct LocalVolumes<N = NodeProxy> {
    client: Client,
    writer: Writer,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    node_volumes: N,
    /// When each node was first found to be missing.
    missing_since: Mutex<HashMap<String, Instant>>,
    events: EventRecorder,
    /// Claims, which are in namespaces, and volumes.
    queue: WorkQueue<ObjectKey>,
}

/// What has become of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeState {
    There,
    /// It may come back within this time.
    Missing(Duration),
    Gone,
}

fn is_ours(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, PROVISIONED_BY) == Some(PROVISIONER_NAME)
}

fn node_of(volume: &PersistentVolume) -> &str {
    annotation(&volume.metadata, NODE).unwrap_or_default()
}

impl LocalVolumes {
    pub(crate) fn new(context: &Context) -> Self {
        LocalVolumes::with(context, NodeProxy::new(context.client.clone()))
    }
}

impl<N: NodeVolumes> LocalVolumes<N> {
    fn with(context: &Context, node_volumes: N) -> Self {
        let informers = &context.informers;
        let local = LocalVolumes {
            client: context.client.clone(),
            writer: Writer(context.client.clone()),
            claims: informers.of::<PersistentVolumeClaim>(),
            volumes: informers.of::<PersistentVolume>(),
            classes: informers.of::<StorageClass>(),
            nodes: informers.of::<Node>(),
            node_volumes,
            missing_since: Mutex::default(),
            events: context.events(PROVISIONER_NAME),
            queue: WorkQueue::new(BACKOFF),
        };
        local.listen();
        local
    }

    fn listen(&self) {
        let wake = self.queue.clone();
        self.claims.on_change(move |change| {
            let is_for_us = |claim: &PersistentVolumeClaim| {
                annotation(&claim.metadata, PROVISIONER) == Some(PROVISIONER_NAME)
            };
            let Some(claim) = change.new.as_ref().filter(|claim| is_for_us(claim)) else { return };
            let key = key_of(&**claim);
            // One that failed is looked at again anyway; that its node was taken back is no reason to do so at once.
            if wake.n_failures(&key) == 0 {
                wake.add(key);
            }
        });
        let wake = self.queue.clone();
        self.volumes.on_change(move |change| {
            if let Some(volume) = change.new.as_ref().filter(|volume| is_ours(volume)) {
                wake.add(key_of(&**volume));
            }
        });
        let of_node: Index<PersistentVolume, String> = self.volumes.index(|volume| match is_ours(volume) {
            true => vec![node_of(volume).to_owned()],
            false => Vec::new(),
        });
        let wake = self.queue.clone();
        self.nodes.on_change(move |change| {
            let (Some(node), None) = (&change.old, &change.new) else { return };
            let (_, name) = names(&node.metadata);
            of_node.get(&name.to_owned()).iter().for_each(|volume| wake.add(key_of(&**volume)));
        });
    }

    fn told(&self, claim: &PersistentVolumeClaim, type_: EventType, reason: &str, message: &str) {
        self.events.event(claim, type_, reason, message);
    }

    fn provisioning_failed(&self, claim: &PersistentVolumeClaim, why: &str) {
        let message =
            format!("failed to provision volume with StorageClass {:?}: {why}", class_of_claim(claim));
        self.told(claim, EventType::Warning, "ProvisioningFailed", &message);
    }

    /// A node, as the API has it where the copy has none.
    async fn node(&self, name: &str) -> Result<Option<Arc<Node>>, kube::Error> {
        if let Some(node) = self.nodes.get(&ObjectKey::new("", name)) {
            return Ok(Some(node));
        }
        let nodes: Api<Read<Node>> = Api::all(self.client.clone());
        Ok(nodes.get_opt(name).await?.map(|node| Arc::new(node.0)))
    }

    async fn node_state(&self, name: &str) -> Result<NodeState, kube::Error> {
        if self.node(name).await?.is_some() {
            self.missing_since.lock().remove(name);
            return Ok(NodeState::There);
        }
        let since = *self.missing_since.lock().entry(name.to_owned()).or_insert_with(Instant::now);
        let left = QUARANTINE.checked_sub(since.elapsed()).filter(|left| !left.is_zero());
        Ok(left.map_or(NodeState::Gone, NodeState::Missing))
    }

    async fn sync_claim(
        &self,
        key: &ObjectKey,
        claim: &PersistentVolumeClaim,
    ) -> Result<Outcome, kube::Error> {
        let class = self.classes.get(&ObjectKey::new("", class_of_claim(claim)));
        let volume = self.volumes.get(&ObjectKey::new("", volume_of(claim)));
        match plan::claim_step(claim, class.as_deref(), volume.as_deref()) {
            ClaimStep::Nothing => Ok(Outcome::Done),
            ClaimStep::Refuse(why) => {
                self.provisioning_failed(claim, &why);
                Ok(Outcome::Done)
            }
            ClaimStep::RefuseExpansion(why) => {
                self.told(claim, EventType::Warning, "VolumeResizeFailed", &why);
                Ok(Outcome::Done)
            }
            ClaimStep::ChooseNode => self.choose_node(key, claim, class.as_deref()).await,
            ClaimStep::Make { node, class } => self.make(claim, &node, &class).await,
            ClaimStep::Expand(volume) => self.expand(claim, *volume).await,
        }
    }

    /// The choice is written down before the node is asked: another pass is to ask the same one.
    async fn choose_node(
        &self,
        key: &ObjectKey,
        claim: &PersistentVolumeClaim,
        class: Option<&StorageClass>,
    ) -> Result<Outcome, kube::Error> {
        let nodes = self.nodes.list();
        let n_failures = self.queue.n_failures(key);
        let Some(node) = plan::any_node(claim, class, &nodes, n_failures) else {
            self.provisioning_failed(claim, "no node is ready and takes pods");
            return Ok(Outcome::After(NO_NODE_WAIT));
        };
        let Some(class) = class else { return Ok(Outcome::Done) };
        let mut new = claim.clone();
        annotate(&mut new.metadata, SELECTED_NODE, node);
        let claim = self.writer.put_claim(&new).await?;
        self.make(&claim, node, class).await
    }

    async fn make(
        &self,
        claim: &PersistentVolumeClaim,
        node_name: &str,
        class: &StorageClass,
    ) -> Result<Outcome, kube::Error> {
        let name = plan::volume_name(claim);
        if self.writer.volume(&name).await?.is_some() {
            return Ok(Outcome::Done);
        }
        let Some(node) = self.node(node_name).await? else {
            self.provisioning_failed(
                claim,
                &format!("failed to get target node: nodes {node_name:?} not found"),
            );
            self.give_node_back(claim).await?;
            return Ok(Outcome::Done);
        };
        let (namespace, claim_name) = names(&claim.metadata);
        let message =
            format!("External provisioner is provisioning volume for claim \"{namespace}/{claim_name}\"");
        self.told(claim, EventType::Normal, "Provisioning", &message);
        let bytes = u64::try_from(requested(claim).units()).unwrap_or_default();
        let made = match self.node_volumes.make(node_name, &name, bytes).await {
            Ok(made) => made,
            Err(error) => return self.not_made(claim, class, error).await,
        };
        let volume = new_volume(claim, class, &node, &made);
        exists_is_fine(self.writer.volumes().create(&PostParams::default(), &volume).await)?;
        info!(volume = name, node = node_name, path = made.path, "a volume was made");
        let message = format!("Successfully provisioned volume {name}");
        self.told(claim, EventType::Normal, "ProvisioningSucceeded", &message);
        Ok(Outcome::Done)
    }

    /// A node that cannot be reached is asked again; where one refuses, the scheduler looks for another.
    async fn not_made(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        error: NodeError,
    ) -> Result<Outcome, kube::Error> {
        self.provisioning_failed(claim, &error.to_string());
        if error.is_refusal() {
            self.give_node_back(claim).await?;
            if delays_binding(class) {
                return Ok(Outcome::Done);
            }
        }
        Err(kube::Error::Service(Box::new(error)))
    }

    async fn give_node_back(&self, claim: &PersistentVolumeClaim) -> Result<(), kube::Error> {
        let mut new = claim.clone();
        let had = new.metadata.annotations.as_mut().and_then(|all| all.remove(SELECTED_NODE));
        if had.is_some() {
            gone_is_fine(self.writer.put_claim(&new).await)?;
        }
        Ok(())
    }

    /// The node first, then the volume, then the claim: each says what is so already.
    async fn expand(
        &self,
        claim: &PersistentVolumeClaim,
        mut volume: PersistentVolume,
    ) -> Result<Outcome, kube::Error> {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let wanted = requested(claim);
        if skiff_api::volumes::capacity(&volume) < wanted {
            let message = format!("External resizer is resizing volume {name}");
            self.told(claim, EventType::Normal, "Resizing", &message);
            let bytes = u64::try_from(wanted.units()).unwrap_or_default();
            if let Err(error) = self.node_volumes.make(node_of(&volume), &name, bytes).await {
                let message =
                    format!("resize volume {name:?} by resizer {PROVISIONER_NAME:?} failed: {error}");
                self.told(claim, EventType::Warning, "VolumeResizeFailed", &message);
                return Err(kube::Error::Service(Box::new(error)));
            }
            let spec = volume.spec.get_or_insert_default();
            spec.capacity = Some(storage(Quantity(wanted.to_string())));
            volume = self.writer.put_volume(&volume).await?;
        }
        let mut new = claim.clone();
        new.status.get_or_insert_default().capacity = volume.spec.and_then(|spec| spec.capacity);
        self.writer.put_claim_status(&new).await?;
        self.told(claim, EventType::Normal, "VolumeResizeSuccessful", "Resize volume succeeded");
        Ok(Outcome::Done)
    }

    async fn sync_volume(&self, seen: &PersistentVolume) -> Result<Outcome, kube::Error> {
        match plan::volume_step(seen) {
            VolumeStep::Nothing => Ok(Outcome::Done),
            VolumeStep::Watch => self.watch(seen).await,
            VolumeStep::Remove | VolumeStep::LetGo => {
                let (_, name) = names(&seen.metadata);
                let Some(volume) = self.writer.volume(name).await? else { return Ok(Outcome::Done) };
                let is_it = volume.metadata.uid == seen.metadata.uid && is_ours(&volume);
                match plan::volume_step(&volume) {
                    VolumeStep::Remove if is_it => self.remove(volume).await,
                    VolumeStep::LetGo if is_it => self.let_go(volume).await,
                    _ => Ok(Outcome::Done),
                }
            }
        }
    }

    /// Says of a volume in use that its node is gone, once that is for good.
    async fn watch(&self, volume: &PersistentVolume) -> Result<Outcome, kube::Error> {
        let node = node_of(volume);
        match self.node_state(node).await? {
            NodeState::There => Ok(Outcome::Done),
            NodeState::Missing(left) => Ok(Outcome::After(left)),
            NodeState::Gone => {
                let reference = skiff_api::volumes::claim_of(volume);
                let message = format!(
                    "node {node:?}, which has volume {:?}, no longer exists, and what was on it is lost: delete the claim and \
                     the pods that use it to begin with an empty one",
                    volume.metadata.name.as_deref().unwrap_or_default()
                );
                if let Some(reference) = reference {
                    let about = reference.clone();
                    self.events.event_about(about, EventType::Warning, "VolumeNodeGone", &message);
                }
                Ok(Outcome::Done)
            }
        }
    }

    async fn remove(&self, volume: PersistentVolume) -> Result<Outcome, kube::Error> {
        let node = node_of(&volume).to_owned();
        let name = volume.metadata.name.clone().unwrap_or_default();
        match self.node_state(&node).await? {
            NodeState::Missing(left) => return Ok(Outcome::After(left)),
            NodeState::Gone => warn!(volume = name, node, "a volume went with its node"),
            NodeState::There => {
                if let Err(error) = self.node_volumes.remove(&node, &name).await {
                    self.events.event(&volume, EventType::Warning, "VolumeFailedDelete", &error.to_string());
                    return Err(kube::Error::Service(Box::new(error)));
                }
                info!(volume = name, node, "a volume was removed");
            }
        }
        if volume.metadata.deletion_timestamp.is_none() {
            let it =
                Preconditions { uid: Some(uid(&volume.metadata).to_owned()), ..Preconditions::default() };
            let params = DeleteParams { preconditions: Some(it), ..DeleteParams::default() };
            gone_is_fine(self.writer.volumes().delete(&name, &params).await)?;
        }
        match self.writer.volume(&name).await? {
            Some(left) if left.metadata.uid == volume.metadata.uid => self.let_go(left).await,
            _ => Ok(Outcome::Done),
        }
    }

    async fn let_go(&self, mut volume: PersistentVolume) -> Result<Outcome, kube::Error> {
        if has_finalizer(&volume.metadata, FINALIZER) {
            drop_finalizer(&mut volume.metadata, FINALIZER);
            gone_is_fine(self.writer.put_volume(&volume).await)?;
        }
        Ok(Outcome::Done)
    }
}

fn storage(amount: Quantity) -> BTreeMap<String, Quantity> {
    BTreeMap::from([("storage".to_owned(), amount)])
}

fn new_volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: &Node,
    made: &Made,
) -> PersistentVolume {
    let capacity = match u64::try_from(requested(claim).units()) {
        Ok(bytes) if bytes == made.capacity_bytes => requested(claim).to_string(),
        _ => made.capacity_bytes.to_string(),
    };
    plan::volume(claim, class, node, made, Quantity(capacity))
}

impl<N: NodeVolumes> Controller for LocalVolumes<N> {
    const NAME: &'static str = "local-volume-provisioner";
    /// Nodes take their time.
    const WORKERS: usize = 8;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.nodes.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        if key.namespace.is_empty() {
            let Some(volume) = self.volumes.get(key) else { return Ok(Outcome::Done) };
            return self.sync_volume(&volume).await;
        }
        let Some(claim) = self.claims.get(key) else { return Ok(Outcome::Done) };
        self.sync_claim(key, &claim).await
    }
}

#[cfg(test)]
mod tests;
