//! Hollow nodes: nodes that are nothing but what a kubelet tells the API, any number of them in one process, to see what
//! an API server, a scheduler and controllers bear. Test-only.
//!
//! ```text
//!  kubeconfig ─▶ Caller (places, latencies, back-off)
//!     ├─ Fleet ─┬─ heartbeat: a task a node registers it, renews its lease, keeps its status
//!     │         └─ watch: pods ─▶ Pods: by node ─▶ queue of keys ─▶ workers ─▶ plan ─▶ PATCH, DELETE
//!     ├─ Census: how far each pod of a run has come, and when
//!     └─ scale: Deployments, waits, probes of every verb, report
//! ```
//!
//! # Guarantees
//! - What is written is what a kubelet writes: conditions, container statuses, addresses, and a pod that is being deleted
//!   is ended, shown ended and then deleted for good, under its UID. One that is annotated with [`ENDS`] ends by itself.
//! - A latency is of one request, from when it is sent to when its whole answer is here; waiting for a place among the
//!   requests in flight and back-off are not part of it.
//! - Every retry, queue and wait has a limit.
//!
//! # Caveats
//! - A request goes over HTTP/1.1 and a connection that is shared by all nodes: a kubelet has its own.
//! - Nothing listens at a hollow node's address: logs, exec and probes of pods are not there.

pub mod api;
pub mod census;
pub mod fleet;
mod heartbeat;
pub mod latency;
mod node;
mod plan;
mod pod;
mod pods;
mod probe;
mod process;
pub mod report;
pub mod scale;

pub use pod::ENDS;
