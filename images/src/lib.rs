//! OCI images and Wasm artifacts: from a registry or an archive into one content store that every
//! container runtime of the node reads.
//!
//! [`Images`] is the entry: [`Images::pull`], [`Images::import`], [`Images::resolve`],
//! [`Images::ready`], [`Images::rootfs_layers`], [`Images::wasm_module`], [`Images::remove`],
//! [`Images::collect_garbage`]. An [`Image`] says by its [`ImageKind`] which runtime it is for.
//!
//! ```text
//! <root>/blobs/sha256/<hex>   manifests, configs, layers as they came; complete and checked
//! <root>/images/<hex>.json    one record an image: names, digests, kind, config
//! <root>/layers-2/<hex>/      a layer unpacked, by chain ID: a lower directory of an overlay
//! <root>/ingest/              blobs and layers on their way; emptied by who opens the store alone
//! ```
//!
//! # Guarantees
//! - What is in `blobs` and `layers` was checked against its digest, is complete and was synced before it
//!   got its name; a crash leaves only `ingest` behind.
//! - Content comes from strangers: no name, link or whiteout of a layer reaches a file outside the
//!   layer's directory, and [`Caps`] bound sizes and counts.
//! - What an earlier version unpacked by other rules is not used: it is unpacked again from its blobs behind who opens the store,
//!   and at once for who wants it ([`Images::ready`]).
//! - Nothing goes that an image or a container needs, or that a mount names ([`Images::collect_garbage`]).
//! - Reads ([`Images::resolve`], [`Images::list`]) never wait for a pull.

mod archive;
mod blobs;
mod caps;
mod doomed;
mod error;
mod format;
mod garbage;
mod images;
mod keyed_lock;
mod manifest;
mod mounts;
mod name;
mod platform;
mod progress;
mod pull;
mod records;
mod registries;
mod registry;
mod unpack;

#[doc(hidden)]
pub mod fixture;

pub use caps::Caps;
pub use error::{Error, PullCause};
pub use garbage::{Collected, Held};
pub use images::{FsUsage, Image, Images};
pub use manifest::{Healthcheck, ImageConfig, ImageKind, RunConfig, WasmModule};
pub use name::{Digest, ImageName};
pub use progress::{LayerProgress, Phase, Progress, ProgressSender};
pub use registries::{Auth, Mirror, Registries, RegistryConfig, Tls};
pub use registry::Range;
