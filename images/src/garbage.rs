//! What no image needs any more, and how it is told from what somebody is about to need.
//!
//! ```text
//!  record ──┬─ not removed, or a container is made from it ──▶ its blobs and layers stay
//!           └─ removed, used by nobody ──▶ forgotten (durably), then its content is like that of no record
//!  content of no record ──┬─ pinned: a pull, an import or the making of a container relies on it ──▶ stays
//!                         ├─ a layer that a mount names ──▶ stays
//!                         └─ otherwise ──▶ gone
//! ```
//!
//! # Guarantees
//! - Whoever pins looks for content only afterwards, and the collector looks for pins, then for records and containers, under the
//!   same lock as it takes names away: nothing goes while it is looked for.
//! - Pins are of one process. Content is removed only by who has the store to itself, which stays so until it is done.
//!
//! # Caveats
//! - Overlays of many layers name them by descriptors, so that mounts do not tell: of those, records of containers do.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::Error;
use crate::doomed::Doomed;
use crate::images::{Image, Images};
use crate::mounts::Mounts;
use crate::name::Digest;

/// What a garbage collection freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub n_images: usize,
    pub n_blobs: usize,
    pub n_layers: usize,
    /// Compressed and unpacked bytes together.
    pub n_bytes: u64,
}

impl Images {
    /// Frees the content that no image needs any more. `is_in_use` says of an image's ID whether containers are made from it: then
    /// it stays, removed or not. While another process has the store open nothing is freed. Blocks while files are removed.
    pub fn collect_garbage(&self, is_in_use: impl Fn(&str) -> bool) -> Result<Collected, Error> {
        let fail = |err: io::Error| Error::Io {
            operation: "collect garbage in",
            path: self.root.clone(),
            source: err,
        };
        let mut lock = self.lock.lock();
        if !lock.try_alone()? {
            tracing::debug!("the image store is open elsewhere, nothing is freed");
            lock.share()?;
            return Ok(Collected::default());
        }
        let mut graves = Vec::new();
        let collected = self.unlink(&is_in_use, &mut graves).map_err(fail);
        lock.share()?;
        // Names are gone. Files may take their time: nobody waits for them.
        drop(lock);
        graves.into_iter().try_for_each(Doomed::close).map_err(fail)?;
        collected
    }

    /// Takes the names of all garbage away.
    fn unlink(&self, is_in_use: &dyn Fn(&str) -> bool, graves: &mut Vec<Doomed>) -> io::Result<Collected> {
        let mut collected = Collected::default();
        for image in self.records.all().into_iter().filter(|image| image.removed) {
            let pins = self.pins.lock();
            let is_pinned = image.content().any(|digest| pins.contains_key(digest));
            if !is_pinned && !is_in_use(&image.id) {
                self.records.forget(&image.id).map_err(|cause| io::Error::other(cause.to_string()))?;
                collected.n_images += 1;
            }
        }
        let is_garbage = |digest: &Digest| {
            let pins = self.pins.lock();
            // The lock comes with the answer, to be held over the removal.
            (!pins.contains_key(digest) && !self.records.refers_to(digest)).then_some(pins)
        };
        let (blobs, layers) = self.blobs.all()?;
        for digest in blobs {
            if let Some(_pins) = is_garbage(&digest) {
                collected.n_bytes += self.blobs.remove_blob(&digest)?;
                collected.n_blobs += 1;
            }
        }
        let mut mounts = None;
        for chain_id in layers {
            if is_garbage(&chain_id).is_none() {
                continue;
            }
            // Asked for once, and only if there is anything to be removed.
            let mounts = match &mounts {
                Some(mounts) => mounts,
                None => mounts.insert(Mounts::read()?),
            };
            if mounts.name(chain_id.hex()) {
                continue;
            }
            if let Some(_pins) = is_garbage(&chain_id) {
                let n_bytes = self.blobs.layer_size(&chain_id).bytes;
                graves.push(self.blobs.remove_layer(&chain_id)?);
                collected.n_bytes += n_bytes;
                collected.n_layers += 1;
            }
        }
        for chain_id in self.blobs.sizes_without_layers()? {
            if let Some(_pins) = is_garbage(&chain_id) {
                self.blobs.remove_layer_size(&chain_id)?;
            }
        }
        Ok(collected)
    }

    /// Keeps an image's content for who is about to be known as its user. `None` if the image is no longer here.
    pub fn hold(self: &Arc<Self>, id: &str) -> Option<Held> {
        let image = self.records.get(id)?;
        let pins = image.content().map(|digest| self.pin(digest)).collect();
        // Pinned first: what is still here now stays.
        self.records.get(id).map(|_| Held { _pins: pins })
    }

    /// Keeps a digest from garbage collection. Look for its content only while holding this.
    pub(crate) fn pin(self: &Arc<Self>, digest: &Digest) -> Pin {
        *self.pins.lock().entry(digest.clone()).or_default() += 1;
        Pin { images: self.clone(), digest: digest.clone() }
    }
}

impl Image {
    fn content(&self) -> impl Iterator<Item = &Digest> {
        self.blobs.iter().chain(&self.layers)
    }
}

/// An image whose content stays.
pub struct Held {
    _pins: Vec<Pin>,
}

pub(crate) struct Pin {
    images: Arc<Images>,
    digest: Digest,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.images.pins.lock();
        if let Some(n) = pins.get_mut(&self.digest) {
            *n -= 1;
            if *n == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

/// Who has the store open: shared by all of them, but for who wants to be alone for a moment. A lock of the open file, not of the
/// process, so that two stores of one process are two; unlike `flock`, wanting more and not getting it loses nothing.
pub(crate) struct StoreLock {
    file: File,
    path: PathBuf,
}

impl StoreLock {
    pub(crate) fn open(root: &Path) -> Result<StoreLock, Error> {
        fs::create_dir_all(root).map_err(Error::io("create", root))?;
        let path = root.join("lock");
        let open = File::options().create(true).read(true).append(true).open(&path);
        Ok(StoreLock { file: open.map_err(Error::io("open", &path))?, path })
    }

    /// Whether nobody else has the store open, which is so until [`StoreLock::share`].
    pub(crate) fn try_alone(&mut self) -> Result<bool, Error> {
        match self.set(libc::F_WRLCK, |lock| FcntlArg::F_OFD_SETLK(lock)) {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(err) => Err(Error::io("lock", &self.path)(err.into())),
        }
    }

    /// Waits for who is alone, which takes no longer than taking names away.
    pub(crate) fn share(&mut self) -> Result<(), Error> {
        loop {
            match self.set(libc::F_RDLCK, |lock| FcntlArg::F_OFD_SETLKW(lock)) {
                Err(Errno::EINTR) => {}
                set => return set.map_err(|err| Error::io("lock", &self.path)(err.into())),
            }
        }
    }

    fn set(&self, kind: libc::c_int, how: impl Fn(&libc::flock) -> FcntlArg<'_>) -> Result<(), Errno> {
        let whole = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&self.file, how(&whole)).map(drop)
    }
}
