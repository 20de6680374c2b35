//! `metrics.k8s.io`: what nodes and pods use, read from the nodes and answered as metrics-server answers.
//!
//! ```text
//!  request ─ asked ─▶ one task ─ every INTERVAL, all nodes at once ─▶ /metrics/resource of each kubelet (scrape.rs, page.rs)
//!     ▲                  │
//!     └─ answer.rs ◀─ the last two points of each container, as numbers (points.rs)
//! ```
//!
//! # Guarantees
//! - Nothing is read of the nodes while nobody asks. Who asks first waits for two rounds; from [`scrape::IDLE_AFTER`] after the last
//!   question on nothing is read, and nothing kept.
//! - A node speaks for itself and for the pods that are bound to it, and for no other.
//! - A node that is slow, endless or lying costs one bounded answer a round.
//!
//! # Caveats
//! - Each of several servers that is asked reads the nodes for itself.
//!
//! Source: metrics-server 0.9.

mod answer;
mod page;
mod points;
mod scrape;

pub(crate) use answer::ResourceMetrics;
