//! One small record an image, kept in memory and, written atomically, on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, RwLock};

use crate::images::Image;
use crate::name::Digest;
use crate::{Error, PullCause, blobs};

pub(crate) struct Records {
    directory: PathBuf,
    /// By image ID. Writers hold the lock over the disk write, too: a record is a few KiB.
    images: RwLock<BTreeMap<String, Arc<Image>>>,
    /// When the directory had last changed when it was read: another process may add to the same store.
    read_at: Mutex<Option<SystemTime>>,
}

impl Records {
    /// `clean` removes what a crash left half written; only for who has the store to itself.
    pub(crate) fn open(root: &Path, clean: bool) -> Result<Records, Error> {
        let directory = root.join("images");
        fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        let read_at = changed_at(&directory);
        let images = load(&directory, clean)?;
        Ok(Records { directory, images: RwLock::new(images), read_at: Mutex::new(read_at) })
    }

    /// Reads the directory again if it has changed since.
    fn refresh(&self) {
        let mut read_at = self.read_at.lock();
        let now = changed_at(&self.directory);
        if *read_at == now {
            return;
        }
        let mut images = self.images.write();
        match load(&self.directory, false) {
            Ok(found) => {
                *images = found;
                *read_at = now;
            }
            Err(error) => tracing::warn!("cannot read the image records again: {error}"),
        }
    }

    pub(crate) fn all(&self) -> Vec<Arc<Image>> {
        self.refresh();
        self.images.read().values().cloned().collect()
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Image>> {
        self.refresh();
        self.images.read().get(id).cloned()
    }

    /// Adds an image or, if it is there, its names; they leave the images that had them.
    pub(crate) fn add(&self, mut image: Image) -> Result<Arc<Image>, PullCause> {
        let mut images = self.images.write();
        if let Some(before) = images.get(&image.id) {
            image.names.extend(before.names.iter().cloned());
            image.digests.extend(before.digests.iter().cloned());
        }
        self.write(&image)?;
        let losers: Vec<_> = images
            .values()
            .filter(|other| other.id != image.id && !other.names.is_disjoint(&image.names))
            .cloned()
            .collect();
        let image = Arc::new(image);
        images.insert(image.id.clone(), image.clone());
        for loser in losers {
            let mut loser = Arc::unwrap_or_clone(loser);
            loser.names.retain(|name| !image.names.contains(name));
            self.write(&loser)?;
            images.insert(loser.id.clone(), Arc::new(loser));
        }
        Ok(image)
    }

    /// Writes a changed record.
    pub(crate) fn replace(&self, image: Image) -> Result<(), PullCause> {
        let mut images = self.images.write();
        self.write(&image)?;
        images.insert(image.id.clone(), Arc::new(image));
        Ok(())
    }

    pub(crate) fn forget(&self, id: &str) -> Result<(), PullCause> {
        let mut images = self.images.write();
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                return Err(PullCause::io("remove", &path)(err));
            }
            _ => {}
        }
        // Content goes next: after a power cut no record may come back without it.
        blobs::sync_directory(&self.directory)?;
        images.remove(id);
        Ok(())
    }

    /// Whether any record needs the blob or layer.
    pub(crate) fn refers_to(&self, digest: &Digest) -> bool {
        self.images.read().values().any(|image| image.blobs.contains(digest) || image.layers.contains(digest))
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{}.json", id.trim_start_matches("sha256:")))
    }

    fn write(&self, image: &Image) -> Result<(), PullCause> {
        let path = self.path(&image.id);
        let attempt = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
            file.write_all(&serde_json::to_vec(image)?)?;
            file.as_file().sync_data()?;
            file.persist(&path)?;
            Ok(())
        };
        attempt().map_err(PullCause::io("write", &path))?;
        blobs::sync_directory(&self.directory)
    }
}

fn changed_at(directory: &Path) -> Option<SystemTime> {
    directory.metadata().and_then(|m| m.modified()).ok()
}

fn load(directory: &Path, clean: bool) -> Result<BTreeMap<String, Arc<Image>>, Error> {
    let mut images = BTreeMap::<String, Arc<Image>>::new();
    for entry in fs::read_dir(directory).map_err(Error::io("list", directory))? {
        let path = entry.map_err(Error::io("list", directory))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            if clean {
                // A record that was being written when the machine stopped.
                let _gone = fs::remove_file(&path);
            }
            continue;
        }
        let bytes = match fs::read(&path) {
            // Another process has just removed the image.
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.map_err(Error::io("read", &path))?,
        };
        match serde_json::from_slice::<Image>(&bytes) {
            Ok(image) => {
                images.insert(image.id.clone(), Arc::new(image));
            }
            Err(err) => {
                // Its content can be pulled again; what is left of it is garbage to collect.
                tracing::warn!("image record {} is unreadable, forgetting it: {err}", path.display());
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
    }
    settle_names(&mut images);
    Ok(images)
}

/// A name that moved while the machine stopped belongs to the image that got it last.
fn settle_names(images: &mut BTreeMap<String, Arc<Image>>) {
    let owners: Vec<_> = images.values().cloned().collect();
    for image in images.values_mut() {
        let newer = |name: &String| {
            owners.iter().any(|other| {
                other.id != image.id && other.pulled_at_ns > image.pulled_at_ns && other.names.contains(name)
            })
        };
        let kept: BTreeSet<String> = image.names.iter().filter(|name| !newer(name)).cloned().collect();
        if kept.len() != image.names.len() {
            Arc::make_mut(image).names = kept;
        }
    }
}
