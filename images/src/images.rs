//! [`Images`], the store as its users see it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::blobs::Blobs;
use crate::garbage::StoreLock;
use crate::keyed_lock::KeyedLock;
use crate::manifest::{ImageConfig, ImageKind, WasmModule};
use crate::name::{Digest, ImageName, Version};
use crate::progress::{ProgressSender, Reporter};
use crate::records::Records;
use crate::registries::{Auth, Registries};
use crate::{Caps, Error, PullCause, archive, format, pull};

/// An image that is here, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// The digest of the config, `sha256:…`; of the manifest for an artifact without a config.
    pub id: String,
    /// The digest of this platform's manifest, `sha256:…`.
    pub manifest: String,
    /// Whole names with tags: `docker.io/library/nginx:alpine`. Empty once another image has taken them.
    pub names: BTreeSet<String>,
    /// Whole names with digests, of what the registry gave for a name: the index if there is one.
    pub digests: BTreeSet<String>,
    /// Bytes as transferred.
    pub size_bytes: u64,
    pub pulled_at_ns: i64,
    pub kind: ImageKind,
    pub config: ImageConfig,
    /// The chain IDs of its layers, the lowest first; none for a Wasm artifact.
    pub(crate) layers: Vec<Digest>,
    /// All that it needs in the blob store.
    pub(crate) blobs: Vec<Digest>,
    /// Removed, but perhaps still below a container: no one sees it but the garbage collector.
    #[serde(default)]
    pub(crate) removed: bool,
}

/// What the store takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsUsage {
    pub used_bytes: u64,
    pub inodes_used: u64,
}

/// The image store of a node.
pub struct Images {
    pub(crate) root: PathBuf,
    pub(crate) registries: Registries,
    pub(crate) caps: Caps,
    pub(crate) blobs: Blobs,
    pub(crate) records: Records,
    /// One download and one unpacking of a digest at a time.
    pub(crate) in_work: KeyedLock,
    /// Digests that somebody relies on without a record of it yet: safe from garbage collection.
    pub(crate) pins: Mutex<HashMap<Digest, usize>>,
    pub(crate) lock: Mutex<StoreLock>,
    /// Unpacks again what another version had unpacked.
    pub(crate) renewal: Mutex<Option<JoinHandle<()>>>,
}

impl Images {
    /// Opens the store below `root`, making it if need be. What a crash left half done is removed, and what another version unpacked
    /// is unpacked again behind it ([`Images::ready`]), unless somebody else has the store open.
    pub fn open(root: &Path, registries: Registries) -> Result<Arc<Images>, Error> {
        Images::with_caps(root, registries, Caps::default())
    }

    /// [`Images::open`] with other limits than the usual.
    pub fn with_caps(root: &Path, registries: Registries, caps: Caps) -> Result<Arc<Images>, Error> {
        let mut lock = StoreLock::open(root)?;
        let alone = lock.try_alone()?;
        let blobs = Blobs::open(root, alone)?;
        let records = Records::open(root, alone)?;
        lock.share()?;
        let (in_work, pins, lock) = (KeyedLock::default(), Mutex::default(), Mutex::new(lock));
        let root = root.to_owned();
        let renewal = Mutex::default();
        let images =
            Arc::new(Images { root, registries, caps, blobs, records, in_work, pins, lock, renewal });
        if alone {
            format::renew_behind(&images);
        }
        Ok(images)
    }

    /// Where the store lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Brings an image here: asks its registry what the name stands for now, fetches what is missing, checks
    /// and unpacks it. `auth` goes to the registry itself, never to a mirror.
    pub async fn pull(
        self: &Arc<Self>,
        name: &str,
        auth: Option<&Auth>,
        progress: Option<&ProgressSender>,
    ) -> Result<Arc<Image>, Error> {
        let name = ImageName::parse(name)?;
        pull::pull(self, &name, auth, Reporter(progress))
            .await
            .map_err(|cause| Error::Pull { name: name.to_string(), cause })
    }

    /// Brings in the images of an archive: an OCI layout (a directory or a tar, perhaps compressed) or what
    /// `docker save` writes. A Wasm file is an image, too. `name` names an image that the file does not.
    pub async fn import(self: &Arc<Self>, path: &Path, name: Option<&str>) -> Result<Vec<Arc<Image>>, Error> {
        let name = name.map(ImageName::parse).transpose()?;
        archive::import(self, path, name)
            .await
            .map_err(|cause| Error::Import { path: path.to_owned(), cause })
    }

    /// The image that a name, a name with digest, an ID (`sha256:…` or its hexadecimal digits) or a manifest
    /// digest stands for.
    pub fn resolve(&self, reference: &str) -> Option<Arc<Image>> {
        let visible = |image: &Arc<Image>| !image.removed;
        let id = if reference.starts_with("sha256:") {
            reference.to_owned()
        } else {
            format!("sha256:{reference}")
        };
        if Digest::parse(&id).is_some() {
            return self.records.get(&id).filter(visible).or_else(|| {
                let manifest = |image: &Arc<Image>| visible(image) && image.manifest == id;
                self.records.all().into_iter().find(manifest)
            });
        }
        let name = ImageName::parse(reference).ok()?;
        let whole = name.to_string();
        let own_manifest = match &name.version {
            Version::Digest(digest) => Some(digest.as_str().to_owned()),
            Version::Tag(_) => None,
        };
        self.records.all().into_iter().filter(visible).find(|image| {
            let same_repository =
                || image.digests.iter().any(|given| given.starts_with(&format!("{}@", name.repository())));
            image.names.contains(&whole)
                || image.digests.contains(&whole)
                || own_manifest.as_ref().is_some_and(|digest| *digest == image.manifest && same_repository())
        })
    }

    /// All images.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.records.all().into_iter().filter(|image| !image.removed).collect()
    }

    /// Forgets an image, all its names at once, as CRI has it. Succeeds if there is none. Its content stays
    /// until [`Images::collect_garbage`] finds that no container uses it.
    pub fn remove(&self, reference: &str) -> Result<(), Error> {
        let Some(image) = self.resolve(reference) else { return Ok(()) };
        let mut image = Arc::unwrap_or_clone(image);
        (image.removed, image.names, image.digests) = (true, BTreeSet::new(), BTreeSet::new());
        let path = self.root.join("images");
        self.records.replace(image).map_err(|cause| match cause {
            PullCause::Io { operation, path, source } => Error::Io { operation, path, source },
            other => Error::Io { operation: "write", path, source: std::io::Error::other(other.to_string()) },
        })
    }

    /// What blobs and layers take.
    pub fn usage(&self) -> FsUsage {
        let Ok((blobs, layers)) = self.blobs.all() else { return FsUsage::default() };
        let mut usage = FsUsage::default();
        for digest in blobs {
            usage.used_bytes += self.blobs.blob_size(&digest);
            usage.inodes_used += 1;
        }
        for chain_id in layers {
            let size = self.blobs.layer_size(&chain_id);
            usage.used_bytes += size.bytes;
            usage.inodes_used += size.n_entries + 1;
        }
        usage
    }

    /// The lower directories of the image's root filesystem, the lowest first; at least one. A layer that
    /// occurs twice is given once, where it is highest: overlayfs refuses it twice, and what is higher wins.
    pub fn rootfs_layers(&self, image: &Image) -> Vec<PathBuf> {
        let mut seen = BTreeSet::new();
        let mut layers: Vec<_> = image
            .layers
            .iter()
            .rev()
            .filter(|chain_id| seen.insert(chain_id.as_str()))
            .map(|chain_id| self.blobs.layer(chain_id))
            .collect();
        layers.reverse();
        if layers.is_empty() {
            layers.push(self.blobs.empty_layer());
        }
        layers
    }

    /// The file of a Wasm image's module.
    pub fn wasm_module(&self, image: &Image) -> Result<PathBuf, Error> {
        match &image.kind {
            ImageKind::Linux => Err(Error::NotWasm { name: display_name(image) }),
            ImageKind::Wasm { module: WasmModule::Blob { digest } } => Ok(self.blobs.blob(digest)),
            ImageKind::Wasm { module: WasmModule::File { path } } => self.file(image, path),
        }
    }

    /// A regular file of the image's layers, such as a module that a pod's `command` names. Links are not
    /// followed.
    pub fn file(&self, image: &Image, path: &str) -> Result<PathBuf, Error> {
        let missing = || Error::NoModule { name: display_name(image), path: path.to_owned() };
        let names: Vec<&str> = path.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
        if names.is_empty() || names.contains(&"..") {
            return Err(missing());
        }
        for layer in self.rootfs_layers(image).iter().rev() {
            match look_up(layer, &names) {
                LookedUp::File(found) => return Ok(found),
                LookedUp::Hidden => return Err(missing()),
                LookedUp::Below => {}
            }
        }
        Err(missing())
    }
}

enum LookedUp {
    File(PathBuf),
    /// A whiteout, an opaque directory or something that is no directory or regular file.
    Hidden,
    /// Nothing here: a lower layer may have it.
    Below,
}

/// Layers never change once they have their name, so that walking them by path is as good as by descriptor.
fn look_up(layer: &Path, names: &[&str]) -> LookedUp {
    let mut path = layer.to_owned();
    let mut opaque = false;
    for (i, name) in names.iter().enumerate() {
        path.push(name);
        let Ok(metadata) = path.symlink_metadata() else {
            return if opaque { LookedUp::Hidden } else { LookedUp::Below };
        };
        if i + 1 == names.len() {
            return if metadata.is_file() { LookedUp::File(path) } else { LookedUp::Hidden };
        }
        if !metadata.is_dir() {
            return LookedUp::Hidden;
        }
        let mut value = [0_u8; 1];
        opaque |= rustix::fs::lgetxattr(path.as_os_str().as_bytes(), "trusted.overlay.opaque", &mut value)
            .is_ok_and(|n| n == 1 && value == *b"y");
    }
    LookedUp::Hidden
}

pub(crate) fn display_name(image: &Image) -> String {
    image.names.first().or(image.digests.first()).unwrap_or(&image.id).clone()
}

/// Labels of an image, for those who show them.
impl Image {
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.config.config.labels
    }
}
