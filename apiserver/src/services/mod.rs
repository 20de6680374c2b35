//! Addresses and ports of Services: given out by this server, one at a time (`allocator.rs`), and recorded in the store; where
//! several servers share that, before they are given out (`claims.rs`).

mod addresses;
pub(crate) mod allocator;
pub(crate) mod cidr;
mod claims;
mod ports;
pub(crate) mod seen;

use std::sync::Arc;

use allocator::ServiceAllocator;

use crate::objects::Objects;

/// Gives out what Services have.
pub(crate) struct Services {
    objects: Arc<Objects>,
    allocator: ServiceAllocator,
    /// Held while this server writes the range of node ports.
    turns: tokio::sync::Mutex<()>,
}

impl Services {
    pub(crate) fn new(objects: Arc<Objects>, allocator: ServiceAllocator) -> Services {
        Services { objects, allocator, turns: tokio::sync::Mutex::default() }
    }
}
