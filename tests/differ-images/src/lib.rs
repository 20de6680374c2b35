//! Judges the crate `images` by containerd: the same odd images for both, and what differs in the trees that come of them.
//!
//! ```text
//!                                  ┌─ sides::skiff: the crate `images` and an overlay ───────────┐
//!  generate ─ case ─ tar, build ─ registry (moods)                                            walk: tree ─ judge ─ report
//!   (seeded)                       └─ sides::containerd: a process of its own, `ctr` ────────────┘
//! ```
//!
//! # Guarantees
//! - A seed determines the images. Nothing but loopback is spoken to; both sides get the same bytes.
//! - All that is made lies on a file system in memory that is mounted in a namespace of this process: mounts and files end with it,
//!   however it ends, and so does containerd.
//!
//! # Caveats
//! - containerd's `overlayfs` snapshotter is the judge, as it is what nodes have.
//! - What differs on purpose is listed in [`known`], each with its reason: a case counts as known only if it is alike once just that
//!   is taken out of it.

pub mod case;
pub mod random;

pub mod generate;

pub mod build;
pub mod tar;

pub mod registry;
pub mod sides;
pub mod tree;

pub mod judge;
pub mod known;
pub mod minimal;

pub mod report;
