//! The version of Kubernetes that Skiff is like. Written by `cargo xtask codegen --kubernetes`; do not edit.

/// Upstream's release.
pub const RELEASE: &str = "v1.37.2";
pub const MAJOR: &str = "1";
pub const MINOR: &str = "37";
/// What servers and nodes say that they are.
pub const VERSION: &str = "v1.37.2+skiff";
