//! Persistent volumes: who binds them, makes them, keeps them and removes them.
//!
//! ```text
//!  claim ─ binder ─┬─ a volume that is there ──────────────────────────────┬─ bound
//!                  └─ annotated with its class's provisioner ─ provisioner ─┘
//!                        ▲ first, where the class says so: the scheduler has chosen a node
//!  pod ─ ephemeral ─ claim                      released ─ reclaimed as the volume says
//! ```
//!
//! - [`binder`]: claims and volumes to each other; phases; what becomes of volumes that are released.
//! - [`protection`]: nothing goes that is in use.
//! - [`ephemeral`]: claims for volumes of pods that ask for one of their own.
//! - [`expansion`]: says who is to make a volume larger.
//! - [`local`]: the provisioner that comes with the cluster, of directories of nodes.
//!
//! # Guarantees
//! - What is written goes over the version that was decided about, or is refused: two claims cannot both have a volume.
//! - Nothing is said to be lost, or released, before the API was asked itself.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::PostParams;
use kube::{Api, Client};
use skiff_client::ObjectKey;

pub(crate) mod binder;
pub(crate) mod ephemeral;
pub(crate) mod expansion;
pub(crate) mod local;
pub(crate) mod protection;

/// Writes claims and volumes as they are to be, over the version that they were read in.
#[derive(Clone)]
struct Writer(Client);

impl Writer {
    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.0.clone())
    }

    fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.0.clone(), namespace)
    }

    /// What the API says itself, which the copy may not know yet.
    async fn claim(&self, key: &ObjectKey) -> Result<Option<PersistentVolumeClaim>, kube::Error> {
        self.claims(&key.namespace).get_opt(&key.name).await
    }

    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, kube::Error> {
        self.volumes().get_opt(name).await
    }

    async fn put_claim(&self, claim: &PersistentVolumeClaim) -> Result<PersistentVolumeClaim, kube::Error> {
        let (namespace, name) = names(&claim.metadata);
        self.claims(namespace).replace(name, &PostParams::default(), claim).await
    }

    async fn put_claim_status(
        &self,
        claim: &PersistentVolumeClaim,
    ) -> Result<PersistentVolumeClaim, kube::Error> {
        let (namespace, name) = names(&claim.metadata);
        let api = self.claims(namespace);
        api.replace_subresource("status", name, &PostParams::default(), claim).await
    }

    async fn put_volume(&self, volume: &PersistentVolume) -> Result<PersistentVolume, kube::Error> {
        let (_, name) = names(&volume.metadata);
        self.volumes().replace(name, &PostParams::default(), volume).await
    }

    async fn put_volume_status(&self, volume: &PersistentVolume) -> Result<PersistentVolume, kube::Error> {
        let (_, name) = names(&volume.metadata);
        self.volumes().replace_subresource("status", name, &PostParams::default(), volume).await
    }
}

type Meta = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Namespace and name.
fn names(meta: &Meta) -> (&str, &str) {
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn phase_of_claim(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn phase_of_volume(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn has_finalizer(meta: &Meta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|one| one == finalizer)
}

fn drop_finalizer(meta: &mut Meta, finalizer: &str) {
    if let Some(finalizers) = &mut meta.finalizers {
        finalizers.retain(|one| one != finalizer);
    }
}
