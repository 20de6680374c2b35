//! Layers that are not there as they should be: an earlier version of this program unpacked them, by other rules than today's, or
//! they were lost.
//!
//! ```text
//! open ─ behind it, image by image ─┬─ layers missing in `LAYERS` ─ unpacked again from their blobs ─┬─ done
//! a container wants the image now ──┘                                                                └─ failed: the image is forgotten
//!      └ then: folders of layers of other formats ─ each layer that no mount uses is removed; the rest when opened next
//! ```
//!
//! # Guarantees
//! - Nobody waits for an image but who wants that image ([`Images::ready`]).
//! - A running container keeps what it is mounted from: its layers of the old format stay for as long as they are mounted.
//! - Nothing is fetched: the blobs are here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use crate::blobs::Blobs;
use crate::doomed::Doomed;
use crate::images::{Image, Images, display_name};
use crate::manifest::{self, Document, ImageKind, WasmModule};
use crate::mounts::Mounts;
use crate::name::Digest;
use crate::pull::{blocking, invalid_manifest, unpack_once};
use crate::{Caps, Error, PullCause, unpack};

/// The folder of unpacked layers. Its number goes up whenever the same blob comes to other files than before; there was none
/// at first.
pub(crate) const LAYERS: &str = "layers-2";

impl Images {
    /// Makes sure that an image is whole, as a container needs it: unpacks what an earlier version had unpacked by other rules. One
    /// for which that fails is forgotten, so that it may be pulled again.
    pub async fn ready(self: &Arc<Self>, image: &Image) -> Result<(), Error> {
        if is_whole(&self.blobs, image) {
            return Ok(());
        }
        let again = async {
            let (images, wanted) = (self.clone(), image.clone());
            for (at, (blob, diff_id)) in
                blocking(move || parts(&images.blobs, &images.caps, &wanted)).await?.iter().enumerate()
            {
                unpack_once(self, blob, diff_id, &image.layers[..=at]).await?;
            }
            Ok::<(), PullCause>(())
        };
        again.await.map_err(|cause| self.lose(image, cause))
    }

    /// Waits until nothing is unpacked again any more. For tests: whoever wants an image waits for that alone.
    #[doc(hidden)]
    pub fn wait_for_renewal(&self) {
        if let Some(thread) = self.renewal.lock().take() {
            // What it could not do it has said, and a panic is on the standard error.
            let _ended = thread.join();
        }
    }

    /// The same for who may wait, and has no runtime.
    fn renew(&self, image: &Image) -> Result<(), Error> {
        let again = || {
            for (at, (blob, diff_id)) in parts(&self.blobs, &self.caps, image)?.iter().enumerate() {
                let chain = &image.layers[..=at];
                let Some(own) = chain.last() else { continue };
                let _alone = futures::executor::block_on(self.in_work.lock(&layer_key(own)));
                unpack_layer(&self.blobs, &self.caps, blob, diff_id, chain)?;
            }
            Ok::<(), PullCause>(())
        };
        again().map_err(|cause| self.lose(image, cause))
    }

    /// Forgets an image that cannot be made whole.
    fn lose(&self, image: &Image, cause: PullCause) -> Error {
        let name = display_name(image);
        if let Err(error) = self.records.forget(&image.id) {
            tracing::warn!("image {name} is not whole and cannot be forgotten either: {error}");
        }
        Error::Incomplete { name, cause }
    }
}

/// What the lock of a layer's unpacking is called.
pub(crate) fn layer_key(chain_id: &Digest) -> String {
    format!("layer {chain_id}")
}

fn is_whole(blobs: &Blobs, image: &Image) -> bool {
    let has_module = match &image.kind {
        ImageKind::Wasm { module: WasmModule::Blob { digest } } => blobs.has_blob(digest),
        _ => true,
    };
    has_module && image.layers.iter().all(|chain_id| blobs.has_layer(chain_id))
}

/// Unpacks behind whoever opened the store what is not in today's format, and removes what is in another.
pub(crate) fn renew_behind(images: &Arc<Images>) {
    let wanted = images.records.all().into_iter().filter(|image| !image.removed);
    let stale: Vec<Arc<Image>> = wanted.filter(|image| !is_whole(&images.blobs, image)).collect();
    if stale.is_empty() && folders_of_others(&images.root).is_ok_and(|folders| folders.is_empty()) {
        return;
    }
    tracing::info!("{} images are unpacked again, as an earlier version of Skiff unpacked them", stale.len());
    let behind = Arc::downgrade(images);
    match std::thread::Builder::new().name("images".into()).spawn(move || renew_all(&behind, &stale)) {
        Ok(thread) => *images.renewal.lock() = Some(thread),
        // Each is unpacked once it is wanted.
        Err(err) => tracing::warn!("no thread to unpack images again: {err}"),
    }
}

/// Ends early when the store is closed.
fn renew_all(images: &Weak<Images>, stale: &[Arc<Image>]) {
    for image in stale {
        let Some(images) = images.upgrade() else { return };
        if let Err(error) = images.renew(image) {
            tracing::warn!("{error}");
        }
    }
    let Some(images) = images.upgrade() else { return };
    if let Err(err) = remove_stale(&images.root, &images.blobs.ingest()) {
        tracing::warn!(
            "layers of another format are left in {}, until the store is opened next: {err}",
            images.root.display()
        );
    }
}

/// The blobs of an image's layers and what they are once decompressed, the lowest first.
fn parts(blobs: &Blobs, caps: &Caps, image: &Image) -> Result<Vec<(Digest, Digest)>, PullCause> {
    let digest =
        Digest::parse(&image.manifest).ok_or_else(|| PullCause::NotFound { name: image.manifest.clone() })?;
    let bytes = blobs.read(&digest, "manifest", caps.manifest_bytes)?;
    let Document::Manifest(manifest) = manifest::parse(&bytes, &digest)? else {
        return Err(invalid_manifest(&digest, "is an index"));
    };
    if let ImageKind::Wasm { module: WasmModule::Blob { digest: module } } = &image.kind
        && !blobs.has_blob(module)
    {
        return Err(invalid_manifest(&digest, "has a module that is no longer here"));
    }
    if image.layers.is_empty() {
        return Ok(Vec::new());
    }
    let diff_ids = &image.config.rootfs.diff_ids;
    if manifest.layers.len() != image.layers.len() || diff_ids.len() != image.layers.len() {
        return Err(invalid_manifest(&digest, "has other layers than its image"));
    }
    Ok(manifest.layers.into_iter().map(|layer| layer.digest).zip(diff_ids.iter().cloned()).collect())
}

/// Unpacks a layer unless it is here. `chain` are those it lies on and itself, the lowest first.
pub(crate) fn unpack_layer(
    blobs: &Blobs,
    caps: &Caps,
    blob: &Digest,
    diff_id: &Digest,
    chain: &[Digest],
) -> Result<(), PullCause> {
    let Some((own, lower)) = chain.split_last() else { return Ok(()) };
    if blobs.has_layer(own) {
        return Ok(());
    }
    let lower: Vec<PathBuf> = lower.iter().rev().map(|chain_id| blobs.layer(chain_id)).collect();
    let ingest = blobs.ingest();
    let into = Doomed::new_in(&ingest).map_err(PullCause::io("create a directory in", &ingest))?;
    let size = unpack::unpack(&blobs.blob(blob), diff_id, into.path(), &lower, caps)?;
    blobs.commit_layer(into, own, size)
}

/// Folders of layers of other formats than today's.
fn folders_of_others(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in fs::read_dir(root)? {
        let folder = folder?;
        let name = folder.file_name();
        let of_layers = name.to_str().is_some_and(|name| name == "layers" || name.starts_with("layers-"));
        if of_layers && name != LAYERS {
            found.push(folder.path());
        }
    }
    Ok(found)
}

fn remove_stale(root: &Path, ingest: &Path) -> io::Result<()> {
    let mut mounts = None;
    for folder in folders_of_others(root)? {
        // Asked for once, and only if there is anything to be removed.
        let mounts = match &mounts {
            Some(mounts) => mounts,
            None => mounts.insert(Mounts::read()?),
        };
        let mut is_empty = true;
        for layer in fs::read_dir(&folder)? {
            let layer = layer?;
            // No record is of these any more, so that what the mounts say is all there is to know.
            let name = layer.file_name().to_string_lossy().trim_end_matches(".json").to_owned();
            if mounts.name(&name) || mounts.are_in_part_unknown() {
                is_empty = false;
                continue;
            }
            let grave = Doomed::new_in(ingest)?;
            fs::rename(layer.path(), grave.path().join("stale"))?;
            grave.close()?;
        }
        if is_empty {
            fs::remove_dir(&folder)?;
        }
    }
    Ok(())
}
