//! An object with a part laid over it that nobody comes to own: what policies that mutate apply.
//!
//! Source: `ApplyStructuredMergeDiff` of `k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch`.

use serde_json::Value;

use super::element::Element;
use super::form::{Form, Type};
use super::{check, merge, shown_path};
use crate::Object;
use crate::depth::{self, TooDeep};
use crate::schema::TypeRef;

/// Why a part cannot be laid over an object.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigureError {
    #[error(transparent)]
    TooDeep(#[from] TooDeep),
    /// With what is wrong, and where.
    #[error("failed to convert patch object to typed object: {0}")]
    Untyped(String),
    /// With the places of the values that have one owner only.
    #[error("invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {0}")]
    Atomic(String),
}

/// As many places are told.
const MAX_PLACES: usize = 100;

/// The object that a part makes of it. Lists are merged by their keys, and what only stands as a whole is not to be touched.
///
/// # Errors
/// For a part that is not of the object's type.
pub fn configure(schema: &TypeRef, object: &Object, part: &Object) -> Result<Object, ConfigureError> {
    depth::check(part)?;
    let type_ = || Type::of_object(&schema.schema, schema.id);
    check::check(type_(), part).map_err(ConfigureError::Untyped)?;
    let mut walk = Atomics { places: Vec::new(), path: Vec::new() };
    walk.value(&type_(), part);
    if !walk.places.is_empty() {
        return Err(ConfigureError::Atomic(walk.places.join(", ")));
    }
    Ok(merge::merged(type_(), object, part))
}

struct Atomics {
    places: Vec<String>,
    path: Vec<Element>,
}

impl Atomics {
    fn value(&mut self, type_: &Type<'_>, value: &Value) {
        if !value.is_object() && !value.is_array() {
            return;
        }
        if type_.form(value) == Form::Atomic && self.places.len() < MAX_PLACES {
            self.places.push(shown_path(&self.path));
        }
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    // Upstream looks into named fields, not into the values of maps.
                    let Some(entry) = type_.declared(name).and_then(|_| type_.entry(name)) else { continue };
                    self.path.push(Element::field(name));
                    self.value(&entry, value);
                    self.path.pop();
                }
            }
            Value::Array(items) => {
                let Some(item_type) = type_.item() else { return };
                for (at, item) in items.iter().enumerate() {
                    self.path.push(Element::Index(at as _));
                    self.value(&item_type, item);
                    self.path.pop();
                }
            }
            _ => {}
        }
    }
}
