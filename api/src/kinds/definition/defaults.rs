//! Whether the defaults of a schema are values of it.
//!
//! Source: apiextensions-apiserver's `pkg/apiserver/schema/defaulting`. Upstream goes through fields in any order; here it is that
//! of their names.

use serde_json::{Value, json};

use super::faults::invalid;
use super::options::Options;
use super::view::at;
use crate::Cause;
use crate::kinds::builtin::rules::path::{Faults, Path, entries, is_true};
use crate::schema::Schema;
use crate::structural::preset;

pub(super) fn check(schema: &Value, options: &Options<'_>, path: &Path<'_>) -> Vec<Cause> {
    let mut walk = Walk { faults: Faults::default(), is_pruned: options.pruned_defaults };
    walk.schema(schema, Place::Root, path);
    walk.faults.causes
}

/// Where a schema stands.
#[derive(Clone, Copy)]
enum Place<'p> {
    Root,
    Inner,
    /// Below `apiVersion`, `kind` or `metadata` of a resource.
    Metadata(&'p Step<'p>),
}

/// How to get from a resource to a value in its metadata.
enum Step<'p> {
    Field(Option<&'p Step<'p>>, &'p str),
    Item(&'p Step<'p>),
}

impl Step<'_> {
    /// A resource with nothing but the value in it.
    fn around(&self, value: Value) -> Value {
        let (mut object, mut step) = (value, Some(self));
        while let Some(at) = step {
            (object, step) = match at {
                Step::Field(before, name) => (json!({ *name: object }), *before),
                Step::Item(before) => (json!([object]), Some(*before)),
            };
        }
        for (name, otherwise) in [("apiVersion", "validation/v1"), ("kind", "Validation")] {
            if object.get(name).is_none() {
                object[name] = otherwise.into();
            }
        }
        object
    }
}

struct Walk {
    faults: Faults,
    is_pruned: bool,
}

impl Walk {
    fn schema(&mut self, schema: &Value, place: Place<'_>, path: &Path<'_>) {
        let is_resource = matches!(place, Place::Root) || is_true(schema, "x-kubernetes-embedded-resource");
        let place = if is_resource && !matches!(place, Place::Root) { Place::Inner } else { place };
        let default = at(schema, "default");
        if !default.is_null() {
            self.default(schema, default, place, &path.child("default"));
        }
        // Below additionalProperties, upstream does not look.
        let items = at(schema, "items");
        if items.is_object() {
            let path = path.child("items");
            match place {
                Place::Metadata(step) => self.schema(items, Place::Metadata(&Step::Item(step)), &path),
                Place::Root | Place::Inner => self.schema(items, Place::Inner, &path),
            }
        }
        let properties = path.child("properties");
        for (name, field) in entries(schema, "properties") {
            let path = properties.key(name);
            let is_meta = is_resource && matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
            match place {
                Place::Metadata(step) => {
                    self.schema(field, Place::Metadata(&Step::Field(Some(step), name)), &path);
                }
                _ if is_meta => self.schema(field, Place::Metadata(&Step::Field(None, name)), &path),
                _ => self.schema(field, Place::Inner, &path),
            }
        }
    }

    fn default(&mut self, schema: &Value, default: &Value, place: Place<'_>, path: &Path<'_>) {
        let read = match place {
            Place::Root => Schema::of_embedded(schema),
            Place::Inner | Place::Metadata(_) => Schema::of_part(schema),
        };
        // Whether a schema can be kept shows where it is read as a whole.
        let Ok(part) = read else { return };
        let base = path.to_string();
        let causes = if let Place::Metadata(step) = place {
            if let Some(why) = preset::metadata_fault(&step.around(default.clone())) {
                let why = format!("must result in valid metadata: {why}");
                return invalid(&mut self.faults, path, default, &why);
            }
            preset::check_values(&part, default, &base)
        } else {
            if self.is_pruned && preset::has_unknown(&part, default) {
                invalid(&mut self.faults, path, default, "must not have unknown fields");
            }
            preset::check(&part, default, &base)
        };
        causes.into_iter().for_each(|cause| self.faults.push(cause));
    }
}

/// Whether a stored schema has a default with fields that it does not know.
pub(super) fn has_unpruned(schema: &Value) -> bool {
    super::structural::is_structural(schema) && has_unpruned_within(schema)
}

fn has_unpruned_within(schema: &Value) -> bool {
    if !schema.is_object() {
        return false;
    }
    let default = at(schema, "default");
    let is_unpruned = !default.is_null()
        && Schema::of_part(schema).is_ok_and(|part| {
            preset::has_unknown(&part, default) || preset::has_unknown_metadata(&part, default)
        });
    is_unpruned
        || [at(schema, "items"), at(schema, "additionalProperties")].into_iter().any(has_unpruned_within)
        || entries(schema, "properties").any(|(_, field)| has_unpruned_within(field))
}
