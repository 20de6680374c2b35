//! Wasm containers: [`WasmRuntime`] implements [`skiff_cri::ContainerRuntime`] over wasmtime.
//!
//! ```text
//!  nodelet                       wasm host (one a namespace, or one a pod)
//!  ┌─────────────┐ unix socket   ┌──────────────────────────────────────────────┐
//!  │ WasmRuntime ├──────────────▶│ server ──┬─ container thread: pod's netns,   │
//!  │  plan, aot, │◀── events ────┤          │   pod's cpu cgroup, own tokio     │
//!  │  hosts      │               │ ticker   └─ container thread …               │
//!  └──────┬──────┘               └──────┬───────────────────────────────────────┘
//!         │ starts                      │ writes
//!   skiff wasm-compile           <state>/containers/<id>.json
//!   <state>/aot/<engine>/<digest>.cwasm, .sha256
//! ```
//!
//! - [`runtime`]: the calls. [`plan`]: from a CRI container and its image to a [`spec::ContainerSpec`].
//! - [`aot`] and [`compile`]: native code, made in a capped process of its own, once per digest and engine.
//! - [`hosts`]: starts, finds and ends host processes; [`protocol`]: what is said to them.
//! - [`record`]: a container's life on disk, written by its host. [`lock`]: whose a host's name is.
//! - [`host`]: the host process itself. [`tool`]: modules without a node.
//!
//! # Guarantees
//! - Containers outlive nodelet: only their host process keeps them, and their records are files.
//! - Guests of different namespaces never share a process.
//! - A guest sees its volumes, its arguments and its pod's network, and nothing else of the node: it has a root of its
//!   own, looks up names as its pod does, and its thread may ask the kernel for little.
//!
//! # Caveats
//! - `wasi:http/outgoing-handler` speaks plain HTTP; `https` is refused.
//! - A file that is mounted into a directory that is itself mounted is not seen.

pub mod compile;
pub mod host;
pub mod tool;

mod aot;
mod engine;
mod hosts;
mod lock;
mod plan;
mod process;
mod protocol;
mod record;
mod runtime;
mod spec;

pub use aot::AotError;
pub use host::CountingAllocator;
pub use hosts::HostError;
pub use record::RecordError;
pub use runtime::{OpenError, WasmConfig, WasmRuntime};
