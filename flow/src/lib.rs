//! Which request is served when: upstream's API Priority and Fairness (KEP-1040).
//!
//! ```text
//! FlowSchemas, PriorityLevelConfigurations ── config ──► Table ── classify ──► Classified (schema, level, flow)
//!                                                          │                        │
//!                              every 10 s ── share ──► limits of levels       queues ──► Seat
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `config` | the two kinds of objects, read; which schema a request is of |
//! | `bootstrap` | the objects that every cluster has |
//! | `queues` | the fair queues of one level, without a clock of their own |
//! | `share` | how many seats each level has, and who lends to whom |
//! | `control` | levels in use, requests that wait, seats that are taken |
//! | `dropped` | after how long somebody who was refused may come again |
//!
//! # Guarantees
//! - A request that is exempt never waits.
//! - The requests of one flow (one user, or one namespace, of one schema) wait in few of their level's queues, and queues take
//!   turns by the work that they cost: who sends much waits behind himself.
//! - No level is given fewer seats than it does not lend.
//! - Queues are bounded, and so is the time that a request waits.

mod bootstrap;
mod config;
mod control;
mod dropped;
mod queues;
mod share;

pub use bootstrap::{AUTO_UPDATE, Bootstrap, bootstrap};
pub use config::{Config, Dangling, Request};
pub use control::{Classified, Control, LevelReport, Refused, SchemaReport, Seat};
pub use queues::Work;
