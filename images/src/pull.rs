//! A pull, and the part of it that an import shares: from a manifest whose blobs are here to an [`Image`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use crate::PullCause;
use crate::format;
use crate::garbage::Pin;
use crate::images::{Image, Images};
use crate::manifest::{self, Descriptor, Document, ImageConfig, ImageKind, Manifest, WasmModule};
use crate::name::{Digest, ImageName, Version};
use crate::platform::Host;
use crate::progress::{Phase, Reporter};
use crate::registries::Auth;
use crate::registry::{self, Remote};

/// Blobs on their way at once, as containerd.
const N_PARALLEL: usize = 3;
/// Connections tried for one blob. Each goes on where the last broke off.
const N_TRIES: u32 = 4;
/// Chunks between network and disk: with hyper's chunks at most about 1 MiB.
const N_CHUNKS: usize = 16;
/// What Wasm artifacts without a config of their own refer to: `{}`, or nothing.
const MAX_EMPTY_CONFIG_BYTES: u64 = 2;

pub(crate) async fn pull(
    images: &Arc<Images>,
    name: &ImageName,
    auth: Option<&Auth>,
    report: Reporter<'_>,
) -> Result<Arc<Image>, PullCause> {
    report.phase(Phase::Resolving);
    let caps = images.caps;
    let (remote, bytes, target) = registry::resolve(&images.registries, name, auth, &caps).await?;
    let mut pins = vec![images.pin(&target)];
    let mut kept = vec![put(images, bytes.clone()).await?];
    let (manifest, digest) = descend(images, &remote, &target, bytes, &mut pins, &mut kept).await?;
    check(&manifest, &digest, images)?;
    pins.extend(manifest.layers.iter().chain([&manifest.config]).map(|blob| images.pin(&blob.digest)));

    report.layers(manifest.layers.iter().map(|layer| (layer.digest.to_string(), layer.size)));
    report.phase(Phase::Downloading);
    fetch(images, &remote, &manifest.config, &|_| {}).await?;
    futures::stream::iter(manifest.layers.iter().cloned().enumerate())
        .map(|(index, layer)| {
            let remote = &remote;
            async move { fetch(images, remote, &layer, &|done| report.layer(index, done)).await }
        })
        .buffer_unordered(N_PARALLEL)
        .try_collect::<()>()
        .await?;
    report.phase(Phase::Unpacking);
    let named = Named { name: Some(name.clone()), target };
    let image = finish(images, manifest, digest, named, kept, pins).await?;
    report.phase(Phase::Done);
    Ok(image)
}

/// Documents that are asked for on the way from an index to a manifest.
const MAX_DOCUMENTS: usize = 16;
/// Indexes inside indexes, as buildkit writes them.
const MAX_INDEX_DEPTH: usize = 4;

/// From what a name stands for to the manifest of this platform, through indexes and indexes in them.
async fn descend(
    images: &Arc<Images>,
    remote: &Remote,
    target: &Digest,
    mut bytes: Bytes,
    pins: &mut Vec<Pin>,
    kept: &mut Vec<Digest>,
) -> Result<(Manifest, Digest), PullCause> {
    let (mut digest, mut depth) = (target.clone(), 0);
    let mut ahead: Vec<(Digest, u64, usize)> = Vec::new();
    for _ in 0..MAX_DOCUMENTS {
        match manifest::parse(&bytes, &digest)? {
            Document::Manifest(manifest) => return Ok((*manifest, digest)),
            Document::Index(_) if depth >= MAX_INDEX_DEPTH => {
                return Err(invalid_manifest(&digest, "indexes are nested too deeply"));
            }
            Document::Index(index) => {
                let candidates = index.candidates(Host::this());
                ahead.extend(
                    candidates.into_iter().rev().map(|entry| (entry.digest.clone(), entry.size, depth + 1)),
                );
            }
        }
        let next = ahead.pop().ok_or_else(|| PullCause::NoPlatform { digest: target.to_string() })?;
        let size;
        (digest, size, depth) = next;
        pins.push(images.pin(&digest));
        bytes = remote.manifest(&Version::Digest(digest.clone()), &images.caps).await?.0;
        if bytes.len() as u64 != size {
            return Err(invalid_manifest(
                &digest,
                &format!("{} bytes, where its index has {size}", bytes.len()),
            ));
        }
        kept.push(put(images, bytes.clone()).await?);
    }
    Err(invalid_manifest(target, "an index leads through too many others"))
}

/// What an image is to be called.
pub(crate) struct Named {
    pub(crate) name: Option<ImageName>,
    /// The digest that the name stands for: of the index, if there is one, or of the manifest.
    pub(crate) target: Digest,
}

/// From a manifest whose blobs are all here: decides the kind, unpacks, records. `kept` are documents above
/// the manifest that belong to the image; `pins` hold everything until the record does.
pub(crate) async fn finish(
    images: &Arc<Images>,
    manifest: Manifest,
    digest: Digest,
    named: Named,
    kept: Vec<Digest>,
    mut pins: Vec<Pin>,
) -> Result<Arc<Image>, PullCause> {
    let config = read_config(images, &manifest).await?;
    let kind = manifest::kind(&manifest, &config, &digest)?;
    let diff_ids = match &kind {
        ImageKind::Wasm { module: WasmModule::Blob { .. } } => Vec::new(),
        _ => config.rootfs.diff_ids.clone(),
    };
    // What a layer is unpacked to depends on those below it, so it is kept by all of them.
    let mut layers: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in &diff_ids {
        layers.push(Digest::chained(layers.last(), diff_id));
    }
    if !layers.is_empty() || kind == ImageKind::Linux {
        if layers.len() != manifest.layers.len() {
            let detail = format!("{} layers but {} diff IDs", manifest.layers.len(), layers.len());
            return Err(invalid_manifest(&digest, &detail));
        }
        pins.extend(layers.iter().map(|chain_id| images.pin(chain_id)));
        for (at, (layer, diff_id)) in manifest.layers.iter().zip(&diff_ids).enumerate() {
            unpack_once(images, &layer.digest, diff_id, &layers[..=at]).await?;
        }
    }
    let no_config = manifest.config.size <= MAX_EMPTY_CONFIG_BYTES;
    let mut blobs = kept;
    blobs.push(digest.clone());
    blobs.extend(manifest.layers.iter().chain([&manifest.config]).map(|blob| blob.digest.clone()));
    let mut sizes: BTreeSet<(&str, u64)> = BTreeSet::new();
    sizes.extend(
        manifest.layers.iter().chain([&manifest.config]).map(|blob| (blob.digest.as_str(), blob.size)),
    );
    let image = Image {
        id: if no_config { digest.to_string() } else { manifest.config.digest.to_string() },
        manifest: digest.to_string(),
        names: named.name.iter().filter(|name| is_tag(name)).map(ToString::to_string).collect(),
        digests: named.name.iter().map(|name| format!("{}@{}", name.repository(), named.target)).collect(),
        size_bytes: sizes.iter().map(|(_, size)| size).sum(),
        pulled_at_ns: now_ns(),
        kind,
        config,
        layers,
        blobs,
        removed: false,
    };
    let images = images.clone();
    blocking(move || {
        let image = images.records.add(image);
        drop(pins);
        image
    })
    .await
}

/// What must hold before anything is fetched for a manifest.
pub(crate) fn check(manifest: &Manifest, digest: &Digest, images: &Images) -> Result<(), PullCause> {
    let caps = &images.caps;
    if manifest.schema_version != 2 {
        return Err(invalid_manifest(digest, &format!("schema version {}", manifest.schema_version)));
    }
    let too_large = |what: &str, limit| PullCause::TooLarge { what: what.to_owned(), limit };
    if manifest.layers.len() > caps.n_layers {
        return Err(too_large("number of layers", caps.n_layers as u64));
    }
    if manifest.config.size > caps.config_bytes {
        return Err(too_large("config", caps.config_bytes));
    }
    if manifest.layers.iter().any(|layer| layer.size > caps.blob_bytes) {
        return Err(too_large("layer", caps.blob_bytes));
    }
    Ok(())
}

async fn read_config(images: &Arc<Images>, manifest: &Manifest) -> Result<ImageConfig, PullCause> {
    let (images, config) = (images.clone(), manifest.config.clone());
    blocking(move || {
        let bytes = images.blobs.read(&config.digest, "config", images.caps.config_bytes)?;
        if bytes.is_empty() {
            return Ok(ImageConfig::default());
        }
        serde_json::from_slice(&bytes).map_err(|err| PullCause::Invalid {
            what: "config",
            digest: config.digest.to_string(),
            detail: err.to_string(),
        })
    })
    .await
}

/// Fetches a blob unless it is here; if another pull is fetching it, waits for that.
async fn fetch(
    images: &Arc<Images>,
    remote: &Remote,
    blob: &Descriptor,
    report: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), PullCause> {
    let _alone = images.in_work.lock(blob.digest.as_str()).await;
    if !images.blobs.has_blob(&blob.digest) {
        download(images, remote, blob, report).await?;
    }
    report(blob.size);
    Ok(())
}

/// Streams a blob to disk. Every byte is hashed as it is written; a connection that breaks is replaced by one
/// that goes on from there.
async fn download(
    images: &Arc<Images>,
    remote: &Remote,
    blob: &Descriptor,
    report: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), PullCause> {
    let mut tries = 0;
    loop {
        // Without ranges a registry starts over, and so does the writer.
        let (sender, receiver) = mpsc::channel::<Bytes>(N_CHUNKS);
        let writer = {
            let (blobs, digest) = (images.blobs.clone(), blob.digest.clone());
            tokio::task::spawn_blocking(move || write_chunks(&blobs, &digest, receiver))
        };
        let end = transfer(remote, blob, &sender, &mut tries, report).await;
        match end {
            Ok(Transfer::Complete) => {
                drop(sender);
                return writer.await.map_err(|_| PullCause::Worker)?;
            }
            // Dropping the sender without the end makes the writer throw its file away.
            Ok(Transfer::StartOver) => abandon(sender, writer).await,
            Err(cause) => {
                // A writer that failed is the reason for a channel that closed.
                let writer_failed = sender.is_closed();
                abandon_quietly(&sender).await;
                drop(sender);
                return match writer.await {
                    Ok(Err(write_cause)) if writer_failed => Err(write_cause),
                    _ => Err(cause),
                };
            }
        }
    }
}

enum Transfer {
    Complete,
    StartOver,
}

type Writer = tokio::task::JoinHandle<Result<(), PullCause>>;

async fn abandon(sender: mpsc::Sender<Bytes>, writer: Writer) {
    abandon_quietly(&sender).await;
    drop(sender);
    let _thrown_away = writer.await;
}

/// An empty chunk tells the writer that the blob will not be completed.
async fn abandon_quietly(sender: &mpsc::Sender<Bytes>) {
    let _writer_gone = sender.send(Bytes::new()).await;
}

async fn transfer(
    remote: &Remote,
    blob: &Descriptor,
    sender: &mpsc::Sender<Bytes>,
    tries: &mut u32,
    report: &(dyn Fn(u64) + Send + Sync),
) -> Result<Transfer, PullCause> {
    let failed = |detail: String| PullCause::Fetch { digest: blob.digest.to_string(), detail };
    let mut done = 0;
    loop {
        *tries += 1;
        let mut response = match remote.blob(&blob.digest, done).await {
            Ok(response) => response,
            // A refusal will not turn into consent; a broken connection is tried again.
            Err(cause) if *tries >= N_TRIES || done == 0 => return Err(cause),
            Err(_) => continue,
        };
        if response.offset != done {
            return Ok(Transfer::StartOver);
        }
        let broken = loop {
            match response.stream.next().await {
                None => break None,
                Some(Err(err)) => break Some(err.to_string()),
                Some(Ok(chunk)) if chunk.is_empty() => {}
                Some(Ok(chunk)) => {
                    done += chunk.len() as u64;
                    if done > blob.size {
                        return Err(failed(format!("longer than the {} bytes of its manifest", blob.size)));
                    }
                    sender.send(chunk).await.map_err(|_| PullCause::Worker)?;
                    report(done);
                }
            }
        };
        match broken {
            // Whether they are the right bytes the writer says, whatever the client thought of them.
            _ if done == blob.size => return Ok(Transfer::Complete),
            _ if *tries < N_TRIES => tokio::time::sleep(Duration::from_millis(100 << *tries)).await,
            None => return Err(failed(format!("ended after {done} of {} bytes", blob.size))),
            Some(detail) => return Err(failed(detail)),
        }
    }
}

fn write_chunks(
    blobs: &crate::blobs::Blobs,
    digest: &Digest,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<(), PullCause> {
    let mut writer = blobs.writer()?;
    while let Some(chunk) = chunks.blocking_recv() {
        if chunk.is_empty() {
            return Ok(());
        }
        writer.write(&chunk)?;
    }
    // A caller that was cancelled closes the channel, too: then the digest does not match.
    writer.commit(Some(digest), "blob").map(|_| ())
}

/// Unpacks a layer unless it is here. `chain` are those it lies on and itself, the lowest first.
pub(crate) async fn unpack_once(
    images: &Arc<Images>,
    blob: &Digest,
    diff_id: &Digest,
    chain: &[Digest],
) -> Result<(), PullCause> {
    let Some(own) = chain.last() else { return Ok(()) };
    let alone = images.in_work.lock(&format::layer_key(own)).await;
    let (images, blob, diff_id, chain) = (images.clone(), blob.clone(), diff_id.clone(), chain.to_vec());
    blocking(move || {
        // Held by the thread: a caller that is cancelled does not let another in beside it.
        let _alone = alone;
        format::unpack_layer(&images.blobs, &images.caps, &blob, &diff_id, &chain)
    })
    .await
}

pub(crate) async fn put(images: &Arc<Images>, bytes: Bytes) -> Result<Digest, PullCause> {
    let blobs = images.blobs.clone();
    blocking(move || blobs.put(&bytes)).await
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullCause> + Send + 'static,
) -> Result<T, PullCause> {
    tokio::task::spawn_blocking(work).await.map_err(|_| PullCause::Worker)?
}

pub(crate) fn invalid_manifest(digest: &Digest, detail: &str) -> PullCause {
    PullCause::Invalid { what: "manifest", digest: digest.to_string(), detail: detail.to_owned() }
}

fn is_tag(name: &ImageName) -> bool {
    matches!(name.version, Version::Tag(_))
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
