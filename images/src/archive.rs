//! Images from a file: an OCI layout, what `docker save` writes, or a Wasm module or component by itself.
//!
//! Every file of the archive becomes a blob under its own hash as it streams past, so that nothing is
//! unpacked by a name that the archive chose. Blobs that no image turns out to need are garbage.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use crate::garbage::Pin;
use crate::images::{Image, Images};
use crate::manifest::{
    Descriptor, Document, Index, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, WASM_CONFIG, WASM_LAYER,
};
use crate::name::{Digest, ImageName, Version};
use crate::pull::{self, Named};
use crate::unpack::{Kind, TarStream, decompressed};
use crate::{PullCause, manifest};

/// What containerd names an image by.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// What the OCI layout names it by; some writers put only the tag there.
const OCI_NAME: &str = "org.opencontainers.image.ref.name";

const MAX_ENTRIES: usize = 10_000;
const MAX_LINK_STEPS: usize = 8;
/// Indexes inside indexes, as buildkit writes them.
const MAX_INDEX_DEPTH: usize = 3;
const COPY_BYTES: usize = 256 << 10;

/// An archive's files: the digest of each, by path.
#[derive(Default)]
struct Contents {
    files: BTreeMap<String, Digest>,
    links: BTreeMap<String, String>,
    pins: Vec<Pin>,
}

/// An entry of `docker save`'s `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(crate) async fn import(
    images: &Arc<Images>,
    path: &Path,
    name: Option<ImageName>,
) -> Result<Vec<Arc<Image>>, PullCause> {
    // Held to the end: until an image is recorded nothing else keeps its blobs.
    let (found, _pins) = {
        let (images, path) = (images.clone(), path.to_owned());
        pull::blocking(move || {
            if let Some((file, system)) = wasm(&path)? {
                let mut contents = Contents::default();
                let found = from_wasm(&images, &mut contents, file, system)?;
                return Ok((vec![found], contents.pins));
            }
            let mut contents =
                if path.is_dir() { read_directory(&images, &path)? } else { read_tar(&images, &path)? };
            let found = manifests(&images, &mut contents)?;
            Ok((found, contents.pins))
        })
        .await?
    };
    if found.is_empty() {
        return Err(refused("holds no image for this platform".to_owned()));
    }
    let mut imported = Vec::new();
    for found in found {
        pull::check(&found.manifest, &found.digest, images)?;
        let names = if found.names.is_empty() { name.iter().cloned().collect() } else { found.names };
        let names = if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
        let mut image = None;
        for name in names {
            let named = Named { name, target: found.target.clone() };
            let kept = vec![found.target.clone()];
            let (manifest, digest) = (found.manifest.clone(), found.digest.clone());
            image = Some(pull::finish(images, manifest, digest, named, kept, Vec::new()).await?);
        }
        imported.extend(image);
    }
    Ok(imported)
}

/// A Wasm file, and for which system it is: the fifth to eighth bytes tell a module from a component.
fn wasm(path: &Path) -> Result<Option<(File, &'static str)>, PullCause> {
    let io = PullCause::io("read", path);
    if path.is_dir() {
        return Ok(None);
    }
    let mut file = File::open(path).map_err(PullCause::io("open", path))?;
    let mut start = Vec::new();
    file.by_ref().take(8).read_to_end(&mut start).and_then(|_| file.rewind()).map_err(io)?;
    let system = match start.as_slice() {
        b"\0asm\x01\0\0\0" => "wasip1",
        b"\0asm\x0d\0\x01\0" => "wasip2",
        _ => return Ok(None),
    };
    Ok(Some((file, system)))
}

/// An artifact as registries have them, made for the file.
fn from_wasm(
    images: &Arc<Images>,
    contents: &mut Contents,
    mut file: File,
    system: &str,
) -> Result<Found, PullCause> {
    let module = store(images, contents, &mut file)?;
    let config = serde_json::json!({"architecture": "wasm", "os": system, "layerDigests": [module]});
    let config = serde_json::to_vec(&config).map_err(|err| refused(err.to_string()))?;
    let config = store(images, contents, &mut config.as_slice())?;
    let descriptor = |digest: &Digest, media_type: &str| Descriptor {
        media_type: media_type.to_owned(),
        size: images.blobs.blob_size(digest),
        digest: digest.clone(),
        platform: None,
        annotations: BTreeMap::new(),
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: descriptor(&config, WASM_CONFIG),
        layers: vec![descriptor(&module, WASM_LAYER)],
        annotations: BTreeMap::new(),
    };
    let digest = put_manifest(images, contents, &manifest)?;
    Ok(Found { manifest, target: digest.clone(), digest, names: Vec::new() })
}

fn put_manifest(
    images: &Arc<Images>,
    contents: &mut Contents,
    manifest: &Manifest,
) -> Result<Digest, PullCause> {
    let bytes = serde_json::to_vec(manifest).map_err(|err| refused(err.to_string()))?;
    let digest = Digest::of(&bytes);
    contents.pins.push(images.pin(&digest));
    images.blobs.put(&bytes)?;
    Ok(digest)
}

struct Found {
    manifest: Manifest,
    digest: Digest,
    target: Digest,
    names: Vec<ImageName>,
}

fn read_tar(images: &Arc<Images>, path: &Path) -> Result<Contents, PullCause> {
    let corrupt = |err: std::io::Error| refused(format!("is no readable tar archive: {err}"));
    let file = File::open(path).map_err(PullCause::io("open", path))?;
    let mut stream = TarStream::new(decompressed(file).map_err(corrupt)?);
    let mut contents = Contents::default();
    for _ in 0..MAX_ENTRIES {
        let Some(entry) = stream.next_entry().map_err(corrupt)? else { return Ok(contents) };
        let Some(name) = plain(&String::from_utf8_lossy(&entry.path)) else { continue };
        match entry.kind {
            Kind::File => {
                let digest = store(images, &mut contents, &mut stream)?;
                contents.files.insert(name, digest);
            }
            Kind::Symlink | Kind::Hardlink => {
                let link = String::from_utf8_lossy(&entry.link).into_owned();
                let target = match (entry.kind, name.rsplit_once('/')) {
                    (Kind::Symlink, Some((directory, _))) => joined(directory, &link),
                    _ => plain(&link),
                };
                contents.links.extend(target.map(|target| (name, target)));
            }
            _ => {}
        }
    }
    Err(PullCause::TooLarge { what: "number of files in the archive".to_owned(), limit: MAX_ENTRIES as u64 })
}

/// An OCI layout as a directory.
fn read_directory(images: &Arc<Images>, path: &Path) -> Result<Contents, PullCause> {
    let mut contents = Contents::default();
    let index = path.join("index.json");
    let mut file = File::open(&index).map_err(PullCause::io("open", &index))?;
    let digest = store(images, &mut contents, &mut file)?;
    contents.files.insert("index.json".to_owned(), digest);
    let blobs = path.join("blobs/sha256");
    for entry in std::fs::read_dir(&blobs).map_err(PullCause::io("list", &blobs))?.take(MAX_ENTRIES) {
        let entry = entry.map_err(PullCause::io("list", &blobs))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let mut file = File::open(entry.path()).map_err(PullCause::io("open", &entry.path()))?;
            let digest = store(images, &mut contents, &mut file)?;
            contents.files.insert(format!("blobs/sha256/{}", entry.file_name().to_string_lossy()), digest);
        }
    }
    Ok(contents)
}

/// Keeps what `content` gives under its hash, safe from garbage collection.
fn store(images: &Arc<Images>, contents: &mut Contents, content: &mut dyn Read) -> Result<Digest, PullCause> {
    let mut writer = images.blobs.writer()?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let n = content.read(&mut buffer).map_err(|err| refused(format!("cannot be read: {err}")))?;
        if n == 0 {
            break;
        }
        writer.write(&buffer[..n])?;
        if writer.n_bytes > images.caps.blob_bytes {
            return Err(PullCause::TooLarge { what: "file".to_owned(), limit: images.caps.blob_bytes });
        }
    }
    let digest = writer.digest();
    contents.pins.push(images.pin(&digest));
    if images.blobs.has_blob(&digest) {
        return Ok(digest);
    }
    writer.commit(Some(&digest), "file")
}

/// The images of the archive that this machine can run.
fn manifests(images: &Arc<Images>, contents: &mut Contents) -> Result<Vec<Found>, PullCause> {
    let limit = images.caps.manifest_bytes;
    if let Some(digest) = contents.files.get("index.json") {
        let bytes = images.blobs.read(digest, "index.json", limit)?;
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|err| refused(format!("has an invalid index.json: {err}")))?;
        let mut found = Vec::new();
        for entry in &index.manifests {
            found.extend(from_layout(images, contents, entry, 0)?);
        }
        return Ok(found);
    }
    let Some(digest) = contents.files.get("manifest.json") else {
        return Err(refused(
            "has neither index.json (OCI layout) nor manifest.json (docker save)".to_owned(),
        ));
    };
    let bytes = images.blobs.read(digest, "manifest.json", limit)?;
    let entries: Vec<DockerImage> = serde_json::from_slice(&bytes)
        .map_err(|err| refused(format!("has an invalid manifest.json: {err}")))?;
    entries.iter().map(|entry| from_docker(images, contents, entry)).collect()
}

/// One entry of an index; `None` if it is for another platform.
fn from_layout(
    images: &Arc<Images>,
    contents: &Contents,
    entry: &Descriptor,
    depth: usize,
) -> Result<Option<Found>, PullCause> {
    let digest = &entry.digest;
    let path = format!("blobs/sha256/{}", digest.hex());
    match contents.files.get(&path) {
        // Archives of one platform still list the others.
        None => return Ok(None),
        Some(stored) if stored != digest => {
            return Err(PullCause::WrongDigest {
                what: "blob",
                digest: digest.to_string(),
                found: stored.to_string(),
            });
        }
        Some(_) => {}
    }
    let bytes = images.blobs.read(digest, "manifest", images.caps.manifest_bytes)?;
    let mut found = match manifest::parse(&bytes, digest)? {
        Document::Manifest(manifest) => {
            Found { manifest: *manifest, digest: digest.clone(), target: digest.clone(), names: Vec::new() }
        }
        Document::Index(_) if depth >= MAX_INDEX_DEPTH => {
            return Err(pull::invalid_manifest(digest, "indexes are nested too deeply"));
        }
        Document::Index(index) => {
            let Ok(chosen) = index.choose(digest) else { return Ok(None) };
            match from_layout(images, contents, chosen, depth + 1)? {
                Some(found) => Found { target: digest.clone(), ..found },
                None => return Ok(None),
            }
        }
    };
    for blob in found.manifest.layers.iter().chain([&found.manifest.config]) {
        if !images.blobs.has_blob(&blob.digest) {
            return Err(refused(format!("lacks blob {}", blob.digest)));
        }
    }
    let given = entry.annotations.get(CONTAINERD_NAME).or_else(|| entry.annotations.get(OCI_NAME));
    // A bare tag says nothing about the repository.
    let whole = given.filter(|name| name.contains(['/', ':']));
    found.names.extend(whole.and_then(|name| ImageName::parse(name).ok()));
    Ok(Some(found))
}

/// An image of `docker save`: it has no manifest, so one is made for it.
fn from_docker(
    images: &Arc<Images>,
    contents: &mut Contents,
    entry: &DockerImage,
) -> Result<Found, PullCause> {
    let descriptor = |path: &str, media_type: &str| -> Result<Descriptor, PullCause> {
        let digest = contents.find(path).ok_or_else(|| refused(format!("lacks {path:?}")))?;
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            size: images.blobs.blob_size(&digest),
            digest,
            platform: None,
            annotations: BTreeMap::new(),
        })
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: descriptor(&entry.config, OCI_CONFIG)?,
        layers: entry.layers.iter().map(|path| descriptor(path, OCI_LAYER)).collect::<Result<_, _>>()?,
        annotations: BTreeMap::new(),
    };
    let digest = put_manifest(images, contents, &manifest)?;
    let tags = entry.repo_tags.iter().flatten();
    let names = tags
        .filter_map(|tag| ImageName::parse(tag).ok())
        .filter(|name| matches!(name.version, Version::Tag(_)))
        .collect();
    Ok(Found { manifest, target: digest.clone(), digest, names })
}

impl Contents {
    /// A file by path, through the archive's own links.
    fn find(&self, path: &str) -> Option<Digest> {
        let mut path = plain(path)?;
        for _ in 0..MAX_LINK_STEPS {
            match self.links.get(&path) {
                Some(next) => path.clone_from(next),
                None => return self.files.get(&path).cloned(),
            }
        }
        None
    }
}

/// A path as a key: without `.` and leading slashes; `None` if it leaves the archive.
fn plain(path: &str) -> Option<String> {
    joined("", path)
}

fn joined(directory: &str, path: &str) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for name in directory.split('/').chain(path.split('/')) {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names.join("/"))
}

fn refused(detail: String) -> PullCause {
    PullCause::Archive { detail }
}
