//! Judges Skiff's API server by upstream's: the same mutated requests for both, and what differs in the answers.
//!
//! ```text
//!  objects/*.yaml ─ objects ─ mutate ─┬─ sides: upstream, by its kubeconfig ──┐
//!   (rich, ours)    (schema-guided,   └─ sides: Skiff's server, in process ───┴─ answer ─ compare ─ report
//!                    seeded)                                          record: upstream's answers, to be replayed
//! ```
//!
//! # Guarantees
//! A seed and the objects determine the requests. Every request is a dry run, so that no case depends on another.
//!
//! # Caveats
//! Dry runs do not show what is only seen once an object is stored, such as allocation under contention.

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
