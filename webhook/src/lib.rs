//! Calling out: the webhooks that the API server asks, to convert custom objects and to admit requests.
//!
//! [`Client`] makes the calls, through a [`Resolver`] of the host. [`conversion::Converter`] converts the objects of one custom
//! kind. [`admission::Webhooks`] are those that admit requests, [`authorization::review`] asks one whether a request is allowed.
//!
//! # Guarantees
//! Whatever a webhook answers, or does not, is an error of the request that called it: nothing here panics on it, and time,
//! memory and nesting of an answer are bounded. The words of errors are upstream's where upstream has some.
//!
//! # Caveats
//! A document is written and read on the task that calls; the host moves large ones to where they are in nobody's way.

mod client;
mod document;

pub mod admission;
pub mod authorization;
pub mod conversion;

pub use client::{
    Client, ClientConfig, ConfigError, ConnectError, Connector, DialError, IDLE_TIMEOUT, Identity, Resolver,
    Stream, Target, dial, of_request, verifier,
};
