//! A pod's volumes: made before its containers, kept current while it lives, removed when it goes.
//!
//! ```text
//!  <root>/pods/<uid>/volumes/kubernetes.io~<plugin>/<name>     what containers mount
//!  <root>/pods/<uid>/volume-subpaths/<volume>/<container>/<n>  sub paths, bind mounts made by descriptor
//! ```
//!
//! Everything here may be repeated: a pass that finds a volume made and current changes nothing.
//! Secrets, tokens and projections lie on a tmpfs each, as upstream has them, and never reach a disk.

pub(crate) mod atomic;
pub(crate) mod bundle;
pub(crate) mod certificate;
pub(crate) mod claim;
pub(crate) mod host_path;
pub(crate) mod mounts;
pub(crate) mod ownership;
pub(crate) mod payload;
pub(crate) mod sub_path;
pub(crate) mod token;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};

use crate::config::Config;
use crate::env::Downward;
use crate::local_volumes::LocalVolumes;
use crate::objects::Objects;
use crate::pod::PodExt;
use crate::resources;
use bundle::Bundles;
use certificate::Certificates;
use payload::{Payload, PayloadContext};
use token::Tokens;

/// A volume that containers can mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountedVolume {
    pub(crate) path: PathBuf,
    /// Whatever the mount says: API objects' files are the nodelet's to write.
    pub(crate) read_only: bool,
}

pub(crate) type MountedVolumes = BTreeMap<String, MountedVolume>;

/// Why a volume could not be made, worded for a `FailedMount` event.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("{0}")]
    Content(String),
    #[error("{operation} {path}: {source}")]
    Host { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("volume type {0} is not supported by this node")]
    Unsupported(&'static str),
}

impl VolumeError {
    pub(crate) fn host(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
        let path = path.to_owned();
        move |source| VolumeError::Host { operation, path, source }
    }
}

pub(crate) struct Volumes {
    config: Arc<Config>,
    objects: Arc<Objects>,
    tokens: Tokens,
    bundles: Bundles,
    certificates: Certificates,
    client: kube::Client,
    /// Those that this node makes for claims.
    pub(crate) local: LocalVolumes,
}

impl Volumes {
    pub(crate) fn new(config: Arc<Config>, objects: Arc<Objects>, client: kube::Client) -> Volumes {
        Volumes {
            tokens: Tokens::new(client.clone()),
            bundles: Bundles::new(client.clone()),
            certificates: Certificates::new(client.clone(), &config.node_name),
            client,
            local: LocalVolumes::new(&config.root_dir),
            config,
            objects,
        }
    }

    /// Makes and refreshes all of a pod's volumes. Those that fail are named with the reason.
    pub(crate) async fn set_up(
        &self,
        pod: &Pod,
        downward: &Downward<'_>,
    ) -> Result<MountedVolumes, Vec<(String, VolumeError)>> {
        let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        // The runtime mounts an image where it is asked for.
        let results = volumes
            .iter()
            .filter(|volume| volume.image.is_none())
            .map(|volume| async move { (volume, self.set_up_one(pod, volume, downward).await) });
        let (mut mounted, mut failures) = (MountedVolumes::new(), Vec::new());
        for (volume, result) in futures::future::join_all(results).await {
            match result {
                Ok(done) => drop(mounted.insert(volume.name.clone(), done)),
                Err(error) => failures.push((volume.name.clone(), error)),
            }
        }
        if failures.is_empty() { Ok(mounted) } else { Err(failures) }
    }

    async fn set_up_one(
        &self,
        pod: &Pod,
        volume: &Volume,
        downward: &Downward<'_>,
    ) -> Result<MountedVolume, VolumeError> {
        if let Some(source) = &volume.empty_dir {
            return self.empty_dir(pod, volume, source, downward).await;
        }
        if let Some(wanted) = claim::Wanted::of(pod, volume) {
            let target = self.dir(pod, "local-volume", &volume.name);
            return claim::set_up(&self.client, &self.local, pod, &wanted, target).await;
        }
        if let Some(source) = &volume.host_path {
            let (path, type_) = (PathBuf::from(&source.path), source.type_.clone().unwrap_or_default());
            blocking(move || {
                host_path::check(&path, &type_).map(|()| MountedVolume { path, read_only: false })
            })
            .await
        } else {
            self.api_volume(pod, volume, downward).await
        }
    }

    /// The claims that a pod has mounted: the volume's name, the claim's, and where.
    pub(crate) fn claims(&self, pod: &Pod) -> Vec<(String, String, PathBuf)> {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let claims = volumes.filter_map(|volume| {
            let wanted = claim::Wanted::of(pod, volume)?;
            Some((volume.name.clone(), wanted.claim, self.dir(pod, "local-volume", &volume.name)))
        });
        claims.collect()
    }

    /// Where an emptyDir's files lie.
    pub(crate) fn empty_dir_path(&self, pod: &Pod, name: &str) -> PathBuf {
        self.dir(pod, "empty-dir", name)
    }

    fn dir(&self, pod: &Pod, plugin: &str, name: &str) -> PathBuf {
        // Volume names are DNS labels; the API server checks, and a slash must not get past here either.
        let name = name.replace('/', "~");
        self.config.pod_dir(pod.uid()).join("volumes").join(format!("kubernetes.io~{plugin}")).join(name)
    }

    async fn empty_dir(
        &self,
        pod: &Pod,
        volume: &Volume,
        source: &EmptyDirVolumeSource,
        downward: &Downward<'_>,
    ) -> Result<MountedVolume, VolumeError> {
        let path = self.empty_dir_path(pod, &volume.name);
        let medium = source.medium.clone().unwrap_or_default();
        if !matches!(medium.as_str(), "" | "Memory") {
            return Err(VolumeError::Content(format!("unknown storage medium {medium:?}")));
        }
        let wanted = source.size_limit.as_ref().map(resources::value);
        let size = resources::memory_volume_size(downward.allocatable.get("memory"), pod, wanted);
        let group = fs_group(pod);
        blocking(move || {
            let fresh = !path.exists();
            mounts::make_dir(&path, 0o777)?;
            let mounted = medium == "Memory" && mounts::ensure_tmpfs(&path, size, 0o777)?;
            if let (true, Some(group)) = (fresh || mounted, group) {
                ownership::give_to_group(&path, group, ownership::Access::ReadWrite)?;
            }
            Ok(MountedVolume { path, read_only: false })
        })
        .await
    }

    /// Volumes whose files come from the API.
    async fn api_volume(
        &self,
        pod: &Pod,
        volume: &Volume,
        downward: &Downward<'_>,
    ) -> Result<MountedVolume, VolumeError> {
        let context = PayloadContext {
            objects: &self.objects,
            tokens: &self.tokens,
            bundles: &self.bundles,
            certificates: &self.certificates,
            downward,
        };
        let (plugin, payload, in_memory) = if let Some(source) = &volume.config_map {
            ("configmap", context.config_map_volume(source).await?, false)
        } else if let Some(source) = &volume.secret {
            ("secret", context.secret_volume(source).await?, true)
        } else if let Some(source) = &volume.downward_api {
            ("downward-api", context.downward_volume(source)?, true)
        } else if let Some(source) = &volume.projected {
            ("projected", context.projected_volume(&volume.name, source).await?, true)
        } else {
            return Err(VolumeError::Unsupported(type_name(volume)));
        };
        self.write(self.dir(pod, plugin, &volume.name), payload, in_memory, fs_group(pod)).await
    }

    async fn write(
        &self,
        path: PathBuf,
        payload: Payload,
        in_memory: bool,
        group: Option<u32>,
    ) -> Result<MountedVolume, VolumeError> {
        blocking(move || {
            mounts::make_dir(&path, 0o777)?;
            if in_memory {
                mounts::ensure_tmpfs(&path, None, 0o777)?;
            }
            atomic::write(&path, &payload, |fresh| match group {
                Some(group) => ownership::give_to_group(fresh, group, ownership::Access::ReadOnly),
                None => Ok(()),
            })?;
            Ok(MountedVolume { path, read_only: true })
        })
        .await
    }

    /// Unmounts and removes the volumes of a pod that has ended; what its containers left stays.
    pub(crate) async fn remove_volumes(&self, uid: &str) -> Result<(), VolumeError> {
        self.tokens.forget(uid);
        self.certificates.forget(uid);
        let dir = self.config.pod_dir(uid);
        blocking(move || {
            mounts::remove_tree(&dir.join("volume-subpaths"))?;
            mounts::remove_tree(&dir.join("volumes"))
        })
        .await
    }

    /// Unmounts and removes everything of a pod that has no containers any more.
    pub(crate) async fn tear_down(&self, uid: &str) -> Result<(), VolumeError> {
        self.tokens.forget(uid);
        self.certificates.forget(uid);
        let dir = self.config.pod_dir(uid);
        blocking(move || mounts::remove_tree(&dir)).await
    }

    /// A path below a volume, ready to be mounted into a container.
    pub(crate) async fn sub_path(
        &self,
        pod: &Pod,
        volume: (&str, &MountedVolume),
        container: &str,
        index: usize,
        sub_path: &str,
    ) -> Result<PathBuf, VolumeError> {
        let target = self.config.pod_dir(pod.uid()).join("volume-subpaths");
        let target =
            target.join(volume.0.replace('/', "~")).join(container.replace('/', "~")).join(index.to_string());
        let (root, sub_path) = (volume.1.path.clone(), sub_path.to_owned());
        blocking(move || sub_path::bind(&root, &sub_path, &target).map(|()| target)).await
    }

    /// UIDs of pods that have a directory here.
    pub(crate) async fn pods_on_disk(&self) -> Vec<String> {
        let pods = self.config.root_dir.join("pods");
        let list = move || -> io::Result<Vec<String>> {
            let names =
                std::fs::read_dir(pods)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            Ok(names.collect())
        };
        tokio::task::spawn_blocking(list).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(VolumeError::Content(format!("the volume's task failed: {error}"))),
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The name of the source, as the API spells it.
fn type_name(volume: &Volume) -> &'static str {
    const KNOWN: [&str; 12] = [
        "csi",
        "nfs",
        "iscsi",
        "fc",
        "image",
        "flexVolume",
        "cephfs",
        "rbd",
        "azureDisk",
        "azureFile",
        "gcePersistentDisk",
        "awsElasticBlockStore",
    ];
    let value: HashMap<String, serde_json::Value> =
        serde_json::to_value(volume).ok().and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default();
    match value.contains_key("gitRepo") {
        true => "gitRepo",
        false => KNOWN.into_iter().find(|name| value.contains_key(*name)).unwrap_or("unknown"),
    }
}
