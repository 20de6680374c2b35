//! Calls to a real webhook over TLS, which answers well or lies in some way.

mod client;
mod conversion;
mod server;
