//! The kinds that the server knows at the moment: the built-in ones, and those of CustomResourceDefinitions.
//!
//! ```text
//!  cache of definitions ─ changed ─▶ one task ─┬─ names: who may have which (names.rs, pure)
//!                                              ├─ caches: opened, replaced, closed
//!                                              ├─ table: published; discovery and OpenAPI are rendered when asked for
//!                                              ├─ conditions: written to the definitions
//!                                              └─ instances of what goes: deleted (cleanup.rs)
//! ```
//!
//! # Guarantees
//! - A request sees one table from its beginning to its end.
//! - What a definition says holds once its condition `Established` is true: by then its objects are served.
//! - A definition that cannot be read costs nobody but its own kind.

mod cleanup;
pub(crate) mod follow;
mod names;
mod table;
pub(crate) mod type_checks;

pub(crate) use table::{Live, Table};
