//! What every client component needs over kube-rs.
//!
//! - [`Informers`]: one watch per kind and field selector, shared by all in a process who ask for it. Each keeps a complete,
//!   current copy ([`Informer`]) and calls its listeners on every change. An [`Index`] finds objects by what they say. Some are kept on the disk (`kept`).
//! - [`WorkQueue`]: keys to look at, each held once, never handed to two workers at a time, with back-off.
//! - [`watched`], [`Read`]: objects as Go's clients read them, so that no odd object ends the watch of all others.
//! - [`view`]: objects as the control plane holds them, without what nobody there reads.
//! - [`lead`]: of several processes that could do a job, one does it.
//! - [`Discovery`]: which resources there are, for who acts on all kinds.
//! - [`EventRecorder`], [`SeriesRecorder`]: what `kubectl describe` shows, counted rather than repeated.
//!
//! Nothing here knows whether the API server is in this process or across TLS: that is the `kube::Client`'s.

mod discovery;
mod events;
mod index;
mod informer;
mod kept;
mod leader;
mod queue;
mod read;
pub mod view;

pub use discovery::{Discovery, Resources, ServedResource};
pub use events::{EventRecorder, EventType, SeriesRecorder, reference};
pub use index::Index;
pub use informer::{Change, Informer, Informers, ObjectKey, key_of};
pub use leader::{Candidate, lead};
pub use queue::{Backoff, WorkQueue};
pub use read::{Read, watched};
