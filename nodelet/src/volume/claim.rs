//! Claims: the volume that one is bound to, mounted into the pod's directory.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use kube::Api;

use crate::local_volumes::LocalVolumes;
use crate::pod::PodExt;
use crate::volume::{MountedVolume, VolumeError, blocking, fs_group, host_path, mounts, ownership};

/// What a pod's volume asks of a claim.
pub(super) struct Wanted<'v> {
    pub(super) claim: String,
    read_only: bool,
    /// The claim was made for this pod alone.
    is_ephemeral: bool,
    volume: &'v Volume,
}

impl<'v> Wanted<'v> {
    /// `None` if the volume is not by a claim.
    pub(super) fn of(pod: &Pod, volume: &'v Volume) -> Option<Wanted<'v>> {
        if let Some(source) = &volume.persistent_volume_claim {
            let read_only = source.read_only.unwrap_or(false);
            return Some(Wanted { claim: source.claim_name.clone(), read_only, is_ephemeral: false, volume });
        }
        volume.ephemeral.as_ref()?;
        let claim = format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name);
        Some(Wanted { claim, read_only: false, is_ephemeral: true, volume })
    }
}

/// The files of a bound volume.
enum Source {
    Local(PathBuf),
    HostPath { path: PathBuf, type_: String },
}

/// Mounts what the claim is bound to at `target`, unless it is mounted there already.
pub(super) async fn set_up(
    client: &kube::Client,
    local: &LocalVolumes,
    pod: &Pod,
    wanted: &Wanted<'_>,
    target: PathBuf,
) -> Result<MountedVolume, VolumeError> {
    let at = target.clone();
    let read_only = wanted.read_only;
    if blocking(move || Ok(at.exists() && mounts::is_mounted(&at)?)).await? {
        return Ok(MountedVolume { path: target, read_only });
    }
    match bound(client, pod, wanted).await? {
        Source::HostPath { path, type_ } => {
            blocking(move || host_path::check(&path, &type_).map(|()| MountedVolume { path, read_only }))
                .await
        }
        Source::Local(path) => {
            if let Some(name) = local.name_of(&path) {
                local.mount(name).await.map_err(|error| VolumeError::Content(error.to_string()))?;
            }
            let (group, policy) = (fs_group(pod), on_mismatch_only(pod));
            blocking(move || {
                if !path.is_dir() {
                    return Err(VolumeError::Content(format!(
                        "path {:?} does not exist, or is no directory",
                        path.display()
                    )));
                }
                if let Some(group) = group.filter(|group| !(policy && ownership::is_of_group(&path, *group)))
                {
                    ownership::give_to_group(&path, group, ownership::Access::ReadWrite)?;
                }
                mounts::make_dir(&target, 0o750)?;
                mounts::bind(&path, &target)?;
                Ok(MountedVolume { path: target, read_only })
            })
            .await
        }
    }
}

fn on_mismatch_only(pod: &Pod) -> bool {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|context| context.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
}

async fn bound(client: &kube::Client, pod: &Pod, wanted: &Wanted<'_>) -> Result<Source, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let (name, volume) = (&wanted.claim, &wanted.volume.name);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let failed =
        |why: String| VolumeError::Content(format!("error processing PVC {namespace}/{name}: {why}"));
    let claim = claims.get(name).await;
    let claim =
        claim.map_err(|error| failed(format!("failed to fetch PVC from API server: {}", said(&error))))?;
    if wanted.is_ephemeral && !is_made_for(&claim, pod) {
        return Err(failed(format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
            pod.metadata.name.as_deref().unwrap_or_default()
        )));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(failed("PVC is being deleted".to_owned()));
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    let bound =
        claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
    let Some(bound) = bound.filter(|_| phase == Some("Bound")) else {
        return Err(failed("PVC is not bound".to_owned()));
    };
    let found = Api::<PersistentVolume>::all(client.clone()).get(bound).await;
    let found = found
        .map_err(|error| failed(format!("failed to fetch PV {bound} from API server: {}", said(&error))))?;
    let spec = found.spec.unwrap_or_default();
    let claimed_by = spec.claim_ref.as_ref().and_then(|claim| claim.uid.as_deref());
    if claimed_by.is_none() || claimed_by != claim.metadata.uid.as_deref() {
        return Err(failed(format!("PV {bound} is bound to another PVC")));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(VolumeError::Content(format!(
            "volume {volume:?}: this node offers no volumes as block devices"
        )));
    }
    if let Some(local) = spec.local {
        return Ok(Source::Local(local.path.into()));
    }
    if let Some(host) = spec.host_path {
        return Ok(Source::HostPath { path: host.path.into(), type_: host.type_.unwrap_or_default() });
    }
    Err(VolumeError::Content(format!(
        "volume {volume:?}: PV {bound} is of a type that this node does not mount: it mounts local and hostPath"
    )))
}

/// The API's own words, where it answered.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn is_made_for(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| owner.controller == Some(true) && owner.uid == pod.uid())
}
