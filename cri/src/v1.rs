//! CRI v1's messages, generated from `proto/cri.proto`. Maps are ordered, so that a message has one
//! encoding.

#![allow(clippy::all, unreachable_pub, clippy::large_enum_variant)]

use std::fmt;

include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}
