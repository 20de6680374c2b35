//! Who pulls: Skiff's crate `images`, and containerd.

mod containerd;
mod skiff;

use crate::tree::Tree;
pub use containerd::Containerd;
pub use skiff::Skiff;

/// What came of an image.
#[derive(Clone, Debug)]
pub enum Outcome {
    Tree(Tree),
    /// With the reason given.
    Refused(String),
}
