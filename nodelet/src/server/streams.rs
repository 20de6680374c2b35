//! Streams between a client and a container: `exec`, `attach` and `portForward`.
//!
//! | file | what |
//! |---|---|
//! | `query` | what is asked for, in both spellings |
//! | `upgrade` | which protocol a connection is taken over with |
//! | `websocket`, `spdy` | the client's side of an exchange: a message's first byte or a stream of its own names the channel |
//! | `exchange` | carries bytes between a client, whatever it speaks, and a container's streams |
//! | `exec`, `attach`, `port_forward` | what each of them connects to |

pub(super) mod attach;
mod exchange;
pub(super) mod exec;
pub(super) mod port_forward;
mod query;
mod spdy;
mod upgrade;
mod websocket;
