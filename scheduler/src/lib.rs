//! The scheduler: gives every pod without a node the node that fits it best.
//!
//! ```text
//!  informers ─► inbox (what has changed) ─► desk.rs ─┬─ cluster.rs (what each node holds)
//!                                             ▲      ├─ queue.rs (who is next)
//!                    binding failed ──────────┤      └─ framework.rs: filter, score ─► bind
//!                                             │                        │ nothing fits
//!                                             │      preemption.rs: whom to delete, and where ─► delete
//!                                             │                        │
//!                                             └── back-off, or until a change may help
//! ```
//!
//! One task owns the desk. A pass runs on a thread of its own, off those that serve requests: it hears what has changed and
//! decides about one pod after the other. Binding runs beside it, the pod counted on its node from the decision on
//! ("assumed"). So does deleting those that are to make room for another, which waits for its node meanwhile
//! ("nominated"): pods of no higher priority leave it the room.
//!
//! Where a pod's claims wait for it, they are bound, or given to their provisioner with the node, before the pod is
//! ([`volumes`], `run/volumes.rs`); it counts on its node meanwhile, and they as taken.
//!
//! What makes a decision quick where there are thousands of nodes: labels of nodes are columns of numbers
//! ([`topology`]); pods that nobody can tell apart are matched as one ([`alike`]); of the nodes only as many are looked at
//! as upstream looks at.
//!
//! # Guarantees
//! - A decision is a pure function of the pod and the cluster as it was heard of ([`framework::decide`]), also the one to
//!   preempt.
//! - A pod that fits nowhere says why as upstream says it, counted over all nodes, and is looked at again when the cluster
//!   changes in a way that may help it, or after five minutes.
//! - Preemption is looked into only for a pod that fits nowhere and is more important than another that is placed.
//! - No more than 64 bindings, reports and preemptions are under way at once, each with one request at a time; and no more
//!   than 512 pods wait for volumes that are being bound or made.
//!
//! # Caveats
//! - Nodes are looked through one after the other for whom to preempt, not many at once as upstream does.
//! - By default pods are spread among those of their Services and their ReplicaSet; other owners are not asked.

mod affinity;
mod alike;
mod budgets;
mod cluster;
mod desk;
mod framework;
mod nominations;
mod plugins;
mod preemption;
mod queue;
mod resources;
mod run;
mod spread;
mod topology;
mod volumes;

pub use run::run;
