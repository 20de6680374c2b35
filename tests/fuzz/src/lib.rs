//! Hostile input for everything that reads what others wrote: decoders, patches, selectors, expressions, schemas, field sets, answers of
//! webhooks, and whole requests.
//!
//! ```text
//!  corpus/TARGET/*  ─ mutate (by seed) ─▶ target ─▶ no panic, no overflow of a small stack, no more memory than MAX_BYTES
//! ```
//!
//! The corpus is run in CI with a fixed number of mutations (`tests/corpus.rs`); `cargo xtask fuzz` goes on for as long as it is told.
//! An input that breaks something becomes a file of the corpus with the change that mends it.
//!
//! # Guarantees
//! What a seed makes is the same on every machine: a failure names target, seed and number, which are enough to see it again.

mod mutate;
pub mod run;
mod server;
pub mod targets;

pub use mutate::Mutator;
pub use targets::{TARGETS, Target};
