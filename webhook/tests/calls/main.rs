//! Calls to a real webhook over TLS, which answers well or lies in some way.

mod admission;
mod client;
mod conversion;
mod host;
mod server;
mod time;
