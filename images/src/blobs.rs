//! Files of the store: blobs by digest, layers by chain ID, and what is on its way to either.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::doomed::{self, Doomed};
use crate::format::LAYERS;
use crate::name::Digest;
use crate::{Error, PullCause};

#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    root: PathBuf,
}

/// What an unpacked layer takes on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerSize {
    pub(crate) bytes: u64,
    pub(crate) n_entries: u64,
}

impl Blobs {
    /// Makes the directories. `clean` removes what a crash left half done; only for who has the store to itself.
    pub(crate) fn open(root: &Path, clean: bool) -> Result<Blobs, Error> {
        let blobs = Blobs { root: root.to_owned() };
        let ingest = blobs.ingest();
        if clean {
            doomed::remove(&ingest).map_err(Error::io("clear", &ingest))?;
        }
        for directory in [root.join("blobs/sha256"), root.join(LAYERS), ingest, blobs.empty_layer()] {
            fs::create_dir_all(&directory).map_err(Error::io("create", &directory))?;
        }
        // Layers hold files of any owner and mode, set-user-ID ones among them.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(root, private).map_err(Error::io("protect", root))?;
        Ok(blobs)
    }

    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn layer(&self, chain_id: &Digest) -> PathBuf {
        self.root.join(LAYERS).join(chain_id.hex())
    }

    fn layer_size_file(&self, chain_id: &Digest) -> PathBuf {
        self.root.join(LAYERS).join(format!("{}.json", chain_id.hex()))
    }

    /// What an image without layers is mounted from.
    pub(crate) fn empty_layer(&self) -> PathBuf {
        self.root.join(LAYERS).join("empty")
    }

    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob(digest).exists()
    }

    pub(crate) fn has_layer(&self, chain_id: &Digest) -> bool {
        self.layer(chain_id).exists()
    }

    pub(crate) fn blob_size(&self, digest: &Digest) -> u64 {
        fs::metadata(self.blob(digest)).map_or(0, |metadata| metadata.len())
    }

    pub(crate) fn layer_size(&self, chain_id: &Digest) -> LayerSize {
        fs::read(self.layer_size_file(chain_id))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    /// Reads a small blob whole.
    pub(crate) fn read(&self, digest: &Digest, what: &'static str, limit: u64) -> Result<Vec<u8>, PullCause> {
        let path = self.blob(digest);
        let file = File::open(&path).map_err(PullCause::io("open", &path))?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(PullCause::io("read", &path))?;
        if bytes.len() as u64 > limit {
            return Err(PullCause::TooLarge { what: what.to_owned(), limit });
        }
        Ok(bytes)
    }

    /// Stores small content that is in memory already.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Digest, PullCause> {
        let digest = Digest::of(bytes);
        if self.has_blob(&digest) {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        writer.write(bytes)?;
        writer.commit(Some(&digest), "blob")
    }

    pub(crate) fn writer(&self) -> Result<BlobWriter, PullCause> {
        let ingest = self.ingest();
        let file =
            tempfile::NamedTempFile::new_in(&ingest).map_err(PullCause::io("create a file in", &ingest))?;
        Ok(BlobWriter { blobs: self.clone(), file, hash: Sha256::new(), n_bytes: 0 })
    }

    /// Gives an unpacked layer its name, once all of it is on disk.
    pub(crate) fn commit_layer(
        &self,
        unpacked: Doomed,
        chain_id: &Digest,
        size: LayerSize,
    ) -> Result<(), PullCause> {
        // Its size first: what is synced below is then all of it.
        let size_file = self.layer_size_file(chain_id);
        let text = serde_json::to_vec(&size).unwrap_or_default();
        fs::write(&size_file, text).map_err(PullCause::io("write", &size_file))?;
        let sync =
            || -> io::Result<()> { rustix::fs::syncfs(File::open(unpacked.path())?).map_err(Into::into) };
        sync().map_err(PullCause::io("sync", unpacked.path()))?;
        let target = self.layer(chain_id);
        match fs::rename(unpacked.path(), &target) {
            // It is no longer where it would be removed.
            Ok(()) => unpacked.keep(),
            // Another process has unpacked the same meanwhile.
            Err(_) if self.has_layer(chain_id) => {}
            Err(err) => return Err(PullCause::io("rename to", &target)(err)),
        }
        sync_directory(&self.root.join(LAYERS))
    }

    pub(crate) fn remove_blob(&self, digest: &Digest) -> io::Result<u64> {
        let n_bytes = self.blob_size(digest);
        fs::remove_file(self.blob(digest))?;
        Ok(n_bytes)
    }

    /// Takes a layer's name away at once; its files go afterwards, when the result is dropped.
    pub(crate) fn remove_layer(&self, chain_id: &Digest) -> io::Result<Doomed> {
        let grave = Doomed::new_in(&self.ingest())?;
        fs::rename(self.layer(chain_id), grave.path().join("layer"))?;
        self.remove_layer_size(chain_id)?;
        Ok(grave)
    }

    /// Nothing there is success: a crash may have left the layer without it, or it without the layer.
    pub(crate) fn remove_layer_size(&self, chain_id: &Digest) -> io::Result<()> {
        match fs::remove_file(self.layer_size_file(chain_id)) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Sizes whose layers are not there: what was written of layers that a crash kept from their names.
    pub(crate) fn sizes_without_layers(&self) -> io::Result<Vec<Digest>> {
        let mut lost = Vec::new();
        for entry in fs::read_dir(self.root.join(LAYERS))? {
            let name = entry?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let digest = hex.and_then(|hex| Digest::parse(&format!("sha256:{hex}")));
            lost.extend(digest.filter(|chain_id| !self.has_layer(chain_id)));
        }
        Ok(lost)
    }

    /// The digests of all blobs, and the chain IDs of all layers.
    pub(crate) fn all(&self) -> io::Result<(Vec<Digest>, Vec<Digest>)> {
        let names = |directory: PathBuf| -> io::Result<Vec<Digest>> {
            let mut digests = Vec::new();
            for entry in fs::read_dir(directory)? {
                let name = entry?.file_name();
                digests.extend(name.to_str().and_then(|hex| Digest::parse(&format!("sha256:{hex}"))));
            }
            Ok(digests)
        };
        Ok((names(self.root.join("blobs/sha256"))?, names(self.root.join(LAYERS))?))
    }
}

/// A blob being written and hashed; dropped before [`BlobWriter::commit`] it leaves nothing.
pub(crate) struct BlobWriter {
    blobs: Blobs,
    file: tempfile::NamedTempFile,
    hash: Sha256,
    pub(crate) n_bytes: u64,
}

impl BlobWriter {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), PullCause> {
        self.hash.update(bytes);
        self.n_bytes += bytes.len() as u64;
        self.file.write_all(bytes).map_err(PullCause::io("write", self.file.path()))
    }

    /// The digest of what has been written so far.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of_hash(&self.hash.clone().finalize())
    }

    /// Checks the digest, syncs, and only then gives the blob its name.
    pub(crate) fn commit(self, expected: Option<&Digest>, what: &'static str) -> Result<Digest, PullCause> {
        let digest = Digest::of_hash(&self.hash.finalize());
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(PullCause::WrongDigest {
                what,
                digest: expected.to_string(),
                found: digest.to_string(),
            });
        }
        let target = self.blobs.blob(&digest);
        self.file.as_file().sync_data().map_err(PullCause::io("sync", self.file.path()))?;
        self.file.persist(&target).map_err(|err| PullCause::io("rename to", &target)(err.error))?;
        sync_directory(&self.blobs.root.join("blobs/sha256"))?;
        Ok(digest)
    }
}

pub(crate) fn sync_directory(directory: &Path) -> Result<(), PullCause> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(PullCause::io("sync", directory))
}
