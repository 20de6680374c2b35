//! Control groups, on the v1 (hybrid) and the v2 hierarchy alike.
//!
//! [`Cgroups::detect`] finds out what the host has. [`Group`] is one path in it, relative to every
//! hierarchy's root (`skiff/kubepods/burstable/pod<uid>`), with all that Skiff does to a group: limits,
//! usage, members, kill, freeze, remove. [`v1`] and [`v2`] implement [`Backend`], the difference.
//!
//! Everything blocks, though rarely for more than microseconds; [`Group::kill`] and [`Group::remove`]
//! wait, bounded, for processes to die. Nothing here mounts or unmounts a hierarchy.

#![warn(missing_docs)]

mod error;
mod group;
mod limits;
mod path;
mod tree;
mod usage;

/// The legacy hierarchies, one mount a controller.
pub mod v1;
/// The unified hierarchy.
pub mod v2;

pub use error::Error;
pub use group::{Backend, Cgroups, Freeze, Group, Version};
pub use limits::{Limits, weight_of_shares};
pub use path::GroupPath;
pub use usage::Usage;
