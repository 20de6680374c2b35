//! The node's container runtime: [`skiff_cri::Cri`] in this process.
//!
//! ```text
//!             NodeRuntime (cri.rs) ── what nodelet calls; load.rs finds what was there before
//!       ┌───────────┼──────────────────────┐
//!  sandbox.rs   records.rs            ContainerRuntime, one a kind
//!  namespaces,  what was made,        runtime-oci (runc)         
//!  cgroup, net  on disk               runtime-wasm (wasmtime)
//! ```
//!
//! A sandbox is made once for a pod, whatever runs in it. Each container then goes to the runtime of what its image
//! is: a Wasm module to wasmtime, everything else to the Linux runtime that the pod's RuntimeClass names.
//!
//! # Guarantees
//! - What was made is on disk before a call answers, and is found again by a new process over the same directories.
//! - No sandbox outlives a boot. What lies on the disk or in the kernel and has no record is removed at the start.
//! - Stopping and removing may be repeated, and clean up what an interrupted call left behind.
//!
//! # Caveats
//! - A PID namespace shared by a pod's containers is refused.

mod cri;
mod dispatch;
mod forward;
mod images;
mod load;
mod namespaces;
mod network;
mod pause;
mod records;
mod sandbox;
mod usage;

pub use cri::{NodeRuntime, RuntimeConfig};
pub use dispatch::RUNTIME_ANNOTATION;
pub use network::{PortForward, SandboxNetwork};
