//! The seam between a nodelet and whatever runs its containers: CRI v1.
//!
//! [`v1`] holds the messages, made at build time from `proto/cri.proto`. [`Cri`] is what a nodelet
//! calls: sandboxes, containers and images, one method a CRI call. `skiff-runtime` implements it in
//! this process; a remote containerd or CRI-O could over a socket, which is not built. [`ContainerRuntime`] is the
//! smaller seam inside `skiff-runtime`: what one kind of container (runc, wasmtime) must do once a
//! sandbox stands. [`keep`] is how all of them write what they must find again.

pub mod keep;
pub mod v1;

mod container;
mod error;
mod service;
mod stream;

pub use container::{
    Attach, ContainerRuntime, CreateContainer, ExecProcess, ImageRef, Notice, RuntimeContainer, RuntimeState,
    Sandbox, Usage,
};
pub use error::{Code, CriError, whole};
pub use service::{ContainerEvent, Cri};
pub use stream::{Connection, ExecSession, PodConnection, TerminalSize};
