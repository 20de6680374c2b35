//! Aggregation: APIServices, of what this server serves itself and of what others do, which stand behind it.
//!
//! ```text
//!  cache of APIServices ─ changed ─▶ one task ─┬─ those of this server's own groups: kept (register.rs, pure)
//!         table of kinds ─ changed ─▶          ├─ a peer and a keeper for each of the others: started, ended
//!  keepers ─ have heard something ─▶           └─ what is known of the others: published with the table
//!
//!  keeper, one for each of the others ─ now and then, and when its Service changes ─▶ is it there (check.rs), what has it (told.rs)
//!
//!  request ─ authenticated, authorized ─▶ forward.rs ─ who asks, as headers ─ front proxy's certificate ─▶ other server
//! ```
//!
//! # Guarantees
//! - A server that is away, slow, lying or endless costs its own requests, its own keeper and a bounded answer.
//! - It is believed only what is about the group and version of its APIService.
//! - What it is asked for is authorized here first.
//!
//! # Caveats
//! - All of the core group (`v1.`) cannot be served by another. An APIService without a CA bundle has no server: there are no roots
//!   of the host. A server that has OpenAPI of version 2 only has none of version 3.
//!
//! Source: `k8s.io/kube-aggregator`.

mod check;
pub(crate) mod follow;
pub(crate) mod forward;
pub(crate) mod identity;
mod keeper;
mod peer;
pub(crate) mod priorities;
pub(crate) mod reach;
mod register;
mod remotes;
pub(crate) mod told;

pub(crate) use remotes::Aggregated;
