//! Linux containers: an OCI runtime (runc, or crun and youki in its place) behind a small supervisor.
//!
//! [`OciRuntime`] implements [`skiff_cri::ContainerRuntime`]. For each container it keeps a directory:
//!
//! ```text
//! <state>/<id>/container.json   what the container is and how far it has come
//!              bundle/          config.json and rootfs/, the overlay of the image's layers and upper/
//!              shim.json        what its shim is to do
//!              shim.sock        the running shim's socket
//!              exit.json        how it ended, written once, atomically
//! ```
//!
//! The flow of a start, in which only the middle column is a process of its own:
//!
//! ```text
//!   OciRuntime::start ──spawn──▶ shim ──spawn──▶ runc run --detach ──▶ the container's init
//!        ▲      ▲                 │ parent of init (subreaper), owner of its stdio
//!        │      └──"running"──────┤
//!   watcher ◀────shim.sock────────┘ exit.json, then "exited"
//! ```
//!
//! # Guarantees
//! - Containers do not notice when the process that holds [`OciRuntime`] dies: the shim has their stdio and
//!   their exit status. [`OciRuntime::open`] finds them again.
//! - A shim that is killed takes its container with it: what has nobody to record its end is ended.
//! - What a power cut or a crash left without a record is removed when the runtime is opened.
//!
//! Where to read on: [`spec`] decides what a container gets (no IO), [`bundle`] makes it, [`shim`] supervises,
//! [`runtime`] ties them together.

mod apparmor;
mod attach;
mod bundle;
mod client;
mod config;
mod error;
mod exec;
mod host;
mod protocol;
mod record;
mod runc;
mod runtime;
mod watch;

pub mod shim;
pub mod spec;

pub use config::{OciConfig, OpenFiles};
pub use error::Error;
pub use runc::RuncVersion;
pub use runtime::OciRuntime;
