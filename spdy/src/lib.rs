//! SPDY/3.1 as far as Kubernetes clients speak it to a node: the accepting side of a connection with many streams.
//!
//! - [`Session`] takes a connection that was upgraded and gives the streams that the client opens.
//! - [`Reader`] and [`Writer`] are the two halves of a stream; each ends by itself.
//!
//! Clients of Kubernetes keep no flow-control windows, so none are kept here: a stream that is not read holds up its
//! connection once its queue is full, as with a kubelet. Nothing grows with what the other side sends.
//!
//! Source: SPDY Protocol Draft 3.1.

mod frame;
mod headers;
mod session;

pub use headers::{HeaderError, Headers};
pub use session::{Incoming, Lost, Reader, Refusal, Session, Writer};
