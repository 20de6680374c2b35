//! Judges Skiff's API server by upstream's: the same mutated requests for both, and what differs in the answers.
//!
//! ```text
//!  objects/*.yaml ─ objects ─ mutate ─┬─ sides: upstream, by its kubeconfig ──┐
//!   (rich, ours)    (schema-guided,   └─ sides: Skiff's server, in process ───┴─ answer ─ compare ─ report
//!                    seeded)                                          record: upstream's answers, to be replayed
//! ```
//!
//! # Guarantees
//! A seed and the objects determine the requests. Every request is a dry run, or creates an object under a name of its own that
//! is read and deleted again, so that no case depends on another.
//!
//! # Caveats
//! What is only seen under contention, such as two that are given one address, is not seen.

pub mod objects;

pub mod mutate;

pub mod answer;
pub mod case;
pub mod sides;
pub mod wide;

pub mod ask;

pub mod compare;
pub mod known;
pub mod record;
pub mod report;
