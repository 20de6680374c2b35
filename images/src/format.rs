//! Layers that an earlier version of this program unpacked, by other rules than today's.
//!
//! ```text
//! open ─ images whose layers are not in `LAYERS` ─ unpacked again from their blobs ─┬─ done
//!                                                                                   └─ failed: the image is forgotten
//!      └ folders of layers of other formats ─ each layer that no mount uses is removed; the rest when opened next
//! ```
//!
//! # Guarantees
//! - A running container keeps what it is mounted from: its layers of the old format stay for as long as they are mounted.
//! - Nothing is fetched: the blobs are here.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::blobs::Blobs;
use crate::doomed::Doomed;
use crate::images::Image;
use crate::manifest::{self, Document};
use crate::name::Digest;
use crate::pull::invalid_manifest;
use crate::records::Records;
use crate::{Caps, Error, PullCause, unpack};

/// The folder of unpacked layers. Its number goes up whenever the same blob comes to other files than before; there was none
/// at first.
pub(crate) const LAYERS: &str = "layers-2";

/// Makes sure that every image has its layers in today's format, and removes those of others. Blocks; only for who has the store to
/// itself.
pub(crate) fn renew(root: &Path, blobs: &Blobs, records: &Records, caps: &Caps) -> Result<(), Error> {
    for image in records.all() {
        if image.layers.iter().all(|chain_id| blobs.has_layer(chain_id)) {
            continue;
        }
        if let Err(cause) = unpack_again(blobs, caps, &image) {
            let name = image.names.first().unwrap_or(&image.id);
            tracing::warn!(
                "image {name} cannot be unpacked by this version, forgetting it: {cause}; pull it again"
            );
            let fail = |cause: PullCause| Error::Io {
                operation: "forget an image in",
                path: root.to_owned(),
                source: io::Error::other(cause.to_string()),
            };
            records.forget(&image.id).map_err(fail)?;
        }
    }
    if let Err(err) = remove_stale(root, &blobs.ingest()) {
        tracing::warn!(
            "layers of another format are left in {}, until the store is opened next: {err}",
            root.display()
        );
    }
    Ok(())
}

fn unpack_again(blobs: &Blobs, caps: &Caps, image: &Image) -> Result<(), PullCause> {
    let digest =
        Digest::parse(&image.manifest).ok_or_else(|| PullCause::NotFound { name: image.manifest.clone() })?;
    let bytes = blobs.read(&digest, "manifest", caps.manifest_bytes)?;
    let Document::Manifest(manifest) = manifest::parse(&bytes, &digest)? else {
        return Err(invalid_manifest(&digest, "is an index"));
    };
    let diff_ids = &image.config.rootfs.diff_ids;
    if manifest.layers.len() != image.layers.len() || diff_ids.len() != image.layers.len() {
        return Err(invalid_manifest(&digest, "has other layers than its image"));
    }
    for (at, (layer, diff_id)) in manifest.layers.iter().zip(diff_ids).enumerate() {
        unpack_layer(blobs, caps, &layer.digest, diff_id, &image.layers[..=at])?;
    }
    Ok(())
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

fn remove_stale(root: &Path, ingest: &Path) -> io::Result<()> {
    let mut mounts = None;
    for folder in fs::read_dir(root)? {
        let folder = folder?;
        let name = folder.file_name();
        let of_layers = name.to_str().is_some_and(|name| name == "layers" || name.starts_with("layers-"));
        if !of_layers || name == LAYERS {
            continue;
        }
        // Asked for once, and only if there is anything to be removed.
        let mounts = match &mounts {
            Some(mounts) => mounts,
            None => mounts.insert(all_mounts()?),
        };
        let mut is_empty = true;
        for layer in fs::read_dir(folder.path())? {
            let layer = layer?;
            if is_mounted(mounts, &layer.file_name().to_string_lossy()) {
                is_empty = false;
                continue;
            }
            let grave = Doomed::new_in(ingest)?;
            fs::rename(layer.path(), grave.path().join("stale"))?;
            grave.close()?;
        }
        if is_empty {
            fs::remove_dir(folder.path())?;
        }
    }
    Ok(())
}

/// The mounts of all namespaces: those of an earlier process of this program may not be ours, those of a container never are.
fn all_mounts() -> io::Result<String> {
    let (mut namespaces, mut mounts) = (HashSet::new(), fs::read_to_string("/proc/self/mountinfo")?);
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        // Most of what is there is a process, and any of them may have ended meanwhile.
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
        if namespaces.insert(namespace)
            && let Ok(more) = fs::read_to_string(process.join("mountinfo"))
        {
            mounts.push_str(&more);
        }
    }
    Ok(mounts)
}

/// Whether a layer, or what is kept of its size, may be below a mount. An overlay of many layers names them by descriptors: then nobody
/// can tell.
fn is_mounted(mounts: &str, name: &str) -> bool {
    let layer = name.trim_end_matches(".json");
    let is_named = |line: &str| line.contains(&format!("/{layer}"));
    mounts
        .lines()
        .any(|line| is_named(line) || (line.contains(" overlay ") && line.contains("=/proc/self/fd/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_in_use_while_a_mount_names_it_or_might() {
        let overlay = "36 35 0:40 / /run/a/rootfs rw - overlay overlay rw,lowerdir=/s/layers/aa:/s/layers/bb,upperdir=/u,workdir=/w\n";
        let bind = "37 35 254:0 /s/layers/cc /run/volume ro - ext4 /dev/vda rw\n";
        let by_descriptor =
            "38 35 0:41 / /x rw - overlay overlay rw,lowerdir=/proc/self/fd/5:/proc/self/fd/6\n";
        let mounts = format!("{overlay}{bind}");
        for (name, in_use) in [("aa", true), ("bb", true), ("bb.json", true), ("cc", true), ("dd", false)] {
            assert_eq!(is_mounted(&mounts, name), in_use, "{name}");
        }
        assert!(is_mounted(&format!("{mounts}{by_descriptor}"), "dd"));
    }
}
