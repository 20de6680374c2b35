//! The object model: every kind, built-in or custom, as data.
//!
//! One [`Kind`] is one row of the kinds table ([`kinds`]): its names, scope, subresources, printer
//! columns, selectable fields and [`Strategy`]. Its shape is a [`schema::TypeRef`] into one compact
//! [`schema::Schema`]. Decoding, pruning, defaulting, patching, printing, protobuf and OpenAPI all walk
//! that schema; nothing here is written once per kind but the strategies' own rules.
//!
//! Pure: no IO, no clock of its own, no HTTP.

pub mod schema;

pub mod apply;
pub mod cel;
pub mod decode;
pub mod default;
pub mod depth;
pub mod duration;
pub mod encode;
pub mod kinds;
pub mod kubernetes;
pub mod meta;
pub mod name;
pub mod openapi;
pub mod patch;
pub mod paths;
pub mod placement;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod resources;
pub mod schedule;
pub mod selector;
pub mod status;
pub mod strategy;
pub mod structural;
pub mod table;
pub mod time;
pub mod volumes;
pub mod x509;

pub use kinds::{Kind, Kinds, Scope};
pub use selector::{FieldSelector, LabelSelector};
pub use status::{Cause, Status};
pub use strategy::Strategy;

/// An object of the API: its JSON document. Maps are ordered by key.
pub type Object = serde_json::Value;
