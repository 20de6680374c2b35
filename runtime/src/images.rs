//! Images that nobody needs any more, given back to the disk.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use skiff_cri::CriError;
use skiff_images::{Collected, Images};
use tracing::{info, warn};

use crate::cri::{State, image_error};

/// How often what pulls have replaced and others have removed is looked for.
const PERIOD: Duration = Duration::from_secs(5 * 60);

impl State {
    /// Whether a container, running or not, is made from an image or has it as a volume.
    fn uses_image(&self, id: &str) -> bool {
        self.containers.values().any(|container| {
            let mut volumes = container.config.mounts.iter().filter_map(|mount| mount.image.as_ref());
            container.image.id == id || volumes.any(|image| image.image == id)
        })
    }
}

/// Frees what no image and no container of this node needs.
pub(crate) async fn sweep(images: Arc<Images>, state: Arc<RwLock<State>>) -> Result<Collected, CriError> {
    let swept = tokio::task::spawn_blocking(move || images.collect_garbage(|id| state.read().uses_image(id)));
    let collected = swept
        .await
        .map_err(|e| CriError::unknown(format!("collecting images that nobody needs: {e}")))?
        .map_err(image_error)?;
    if collected != Collected::default() {
        let Collected { n_images, n_blobs, n_layers, n_bytes } = collected;
        info!(
            "freed {n_bytes} bytes: {n_images} images, {n_blobs} blobs and {n_layers} layers were not needed"
        );
    }
    Ok(collected)
}

/// Sweeps now and then for as long as there is a runtime.
pub(crate) async fn keep_swept(images: Arc<Images>, state: Weak<RwLock<State>>) {
    while let Some(state) = state.upgrade() {
        if let Err(error) = sweep(images.clone(), state).await {
            warn!(%error, "images that nobody needs stay on the disk for now");
        }
        tokio::time::sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::json;
    use skiff_cri::ImageRef;
    use skiff_cri::v1::ContainerConfig;
    use skiff_images::{Image, Registries, fixture};

    use super::*;
    use crate::records::ContainerRecord;

    async fn import(images: &Arc<Images>, root: &Path, name: &str) -> Arc<Image> {
        let layer =
            fixture::Layer::default().file("f", 0o644, name.as_bytes()).and_then(fixture::Layer::finish);
        let archive = root.join("image.tar");
        fixture::image_archive(&archive, name, &json!({}), &[layer.expect("a layer")]).expect("an archive");
        images.import(&archive, None).await.expect("imports").remove(0)
    }

    fn layer_of(images: &Images, image: &Image) -> PathBuf {
        images.rootfs_layers(image).remove(0)
    }

    /// A container that has ended, perhaps.
    fn container(image: &Image) -> Arc<ContainerRecord> {
        Arc::new(ContainerRecord {
            id: "c".into(),
            sandbox_id: "s".into(),
            config: ContainerConfig::default(),
            image: ImageRef { id: image.id.clone(), manifest: image.manifest.clone(), name: String::new() },
            runtime: "runc".into(),
            created_at_ns: 0,
            log_path: None,
        })
    }

    #[tokio::test]
    async fn what_is_removed_is_freed_but_not_below_a_container() {
        let root = tempfile::tempdir().expect("a folder");
        let images = Images::open(&root.path().join("store"), Registries::default()).expect("opens");
        let (used, unused) =
            (import(&images, root.path(), "app:1").await, import(&images, root.path(), "app:2").await);
        let state = Arc::new(RwLock::new(State::default()));
        state.write().containers.insert("c".into(), container(&used));
        images.remove("app:1").expect("removes");
        images.remove("app:2").expect("removes");
        let collected = sweep(images.clone(), state.clone()).await.expect("sweeps");
        assert_eq!((collected.n_images, collected.n_layers), (1, 1));
        assert!(layer_of(&images, &used).exists() && !layer_of(&images, &unused).exists());
        state.write().containers.clear();
        assert_eq!(sweep(images.clone(), state).await.expect("sweeps").n_images, 1);
        assert!(!layer_of(&images, &used).exists());
    }
}
