//! Directory trees that somebody else made: removed, walked, measured, copied.
//!
//! A container fills its volumes as it likes: sixty thousand directories in each other, a million side by side,
//! links to anywhere, names that change while they are read. Whoever recurses over such a tree overflows the
//! stack, whoever keeps each level open runs out of descriptors, whoever writes its paths out meets `PATH_MAX`.
//!
//! - [`remove()`]: what `rm -rf` does.
//! - [`walk()`]: shows each entry to a [`Visitor`], directories before and after what is in them.
//! - [`measure()`]: blocks and inodes in use, as `du` counts.
//! - [`copy()`]: an exact copy with owners, modes, times and extended attributes.
//!
//! # Guarantees
//! - No recursion, and never more than some 40 descriptors, whatever the depth and width.
//! - Work is linear in the number of entries: no level is reached from the top again.
//! - Everything is done by descriptor and single name. No symbolic link is followed and no mount point crossed,
//!   not even if the tree changes meanwhile.
//! - Removing needs memory for no more than a window of levels; a walk needs some hundred bytes a level.
//!
//! # Caveats
//! - A walk finds its way up by `..`, and notices when that is no longer where it came from. What it then misses is
//!   told by [`Visitor::lost`].

mod copy;
mod error;
mod ladder;
mod measure;
mod remove;
mod walk;

pub use copy::copy;
pub use error::Error;
pub use measure::{Usage, measure};
pub use remove::remove;
pub use walk::{Descend, Entry, Lost, Visitor, open_root, walk};
