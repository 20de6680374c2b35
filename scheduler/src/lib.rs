//! The scheduler: gives every pod without a node the node that fits it best.
//!
//! ```text
//!  informers ─► cluster.rs (what each node holds) ─┐
//!      └──────► queue.rs (who is next) ─► framework.rs: filter, score ─► bind
//!                    ▲                                   │ nothing fits
//!                    └──── back-off, or until the cluster changes ◄──┘
//! ```
//!
//! One task takes one pod at a time from the queue and decides; binding runs beside it, the pod counted on its node
//! from the decision on ("assumed").
//!
//! # Guarantees
//! - A decision is a pure function of the pod and the nodes ([`framework::decide`]).
//! - A pod that fits nowhere says why as upstream says it, and is looked at again when the cluster changes in a way
//!   that may help, or after five minutes.
//!
//! # Caveats
//! - No pod is preempted: where upstream would, the reason says so.
//! - By default pods are spread among those of their Services and their ReplicaSet; other owners are not asked.

mod affinity;
mod cluster;
mod framework;
mod plugins;
mod queue;
mod resources;
mod run;
mod spread;

pub use run::run;
