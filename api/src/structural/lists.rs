//! Lists that are sets or maps: nothing stands in them twice.
//!
//! Source: `pkg/apiserver/schema/listtype` of apiextensions-apiserver. Upstream goes through fields in any order; here it is that of
//! their names.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::fault::MAX_FAULTS;
use super::part::{declared, is_metadata, items, said, values};
use super::place::Place;
use super::words;
use crate::schema::{ListType, Node, Schema, Shape};
use crate::{Cause, Object};

/// What stands twice in the lists of an object.
pub(super) fn check(schema: &Schema, object: &Object) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(root) = schema.root() {
        walk(schema, root, object, &Place::Root, &mut causes);
    }
    causes
}

fn walk(schema: &Schema, node: &Node, value: &Value, place: &Place<'_>, causes: &mut Vec<Cause>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let Some(field) = declared(schema, node, name) {
                    if !is_metadata(schema, field) {
                        walk(schema, field, value, &Place::Field(place, name), causes);
                    }
                } else if let Some(values) = values(node).and_then(said) {
                    walk(schema, values, value, &Place::Key(place, name), causes);
                }
            }
        }
        Value::Array(all) => {
            if matches!(node.shape, Shape::List(_)) {
                match node.list {
                    ListType::Set => elements(all, place, causes),
                    ListType::Map => keyed(&node.keys, all, place, causes),
                    ListType::Atomic => {}
                }
            }
            if let Some(items) = items(node) {
                for (at, value) in all.iter().enumerate() {
                    walk(schema, items, value, &Place::Item(place, at), causes);
                }
            }
        }
        _ => {}
    }
}

/// Where values stand that stood before: each second one, not the third.
fn repeated<'v>(values: impl Iterator<Item = std::borrow::Cow<'v, Value>>) -> Vec<(usize, Value)> {
    let (mut times, mut repeated) = (HashMap::new(), Vec::new());
    for (at, value) in values.enumerate() {
        let n_times = times.entry(value.to_string()).or_insert(0_usize);
        *n_times += 1;
        if *n_times == 2 {
            repeated.push((at, value.into_owned()));
        }
    }
    repeated
}

pub(super) fn has_twice(values: &[Value]) -> bool {
    !repeated(values.iter().map(std::borrow::Cow::Borrowed)).is_empty()
}

fn elements(values: &[Value], place: &Place<'_>, causes: &mut Vec<Cause>) {
    let room = MAX_FAULTS.saturating_sub(causes.len());
    for (at, value) in repeated(values.iter().map(std::borrow::Cow::Borrowed)).into_iter().take(room) {
        causes.push(duplicate(&Place::Item(place, at), &value));
    }
}

/// An element without a key has one that is not set, and differs from those that have it.
fn keyed(keys: &[Box<str>], values: &[Value], place: &Place<'_>, causes: &mut Vec<Cause>) {
    if let Some(at) = values.iter().position(|value| !value.is_null() && !value.is_object()) {
        let shown = words::shown(&values[at]);
        let message = format!("Invalid value: {shown}: must be an object for an array of list-type map");
        causes.push(Cause::new("FieldValueInvalid", Place::Item(place, at).field(), message));
        return;
    }
    let key_of = |value: &Value| {
        let of_key = |key: &str| Some((key.to_owned(), value.get(key)?.clone()));
        std::borrow::Cow::Owned(Value::Object(
            keys.iter().filter_map(|key| of_key(key)).collect::<Map<_, _>>(),
        ))
    };
    let room = MAX_FAULTS.saturating_sub(causes.len());
    for (at, key) in repeated(values.iter().map(key_of)).into_iter().take(room) {
        causes.push(duplicate(&Place::Item(place, at), &key));
    }
}

fn duplicate(place: &Place<'_>, value: &Value) -> Cause {
    Cause::new("FieldValueDuplicate", place.field(), format!("Duplicate value: {}", words::shown(value)))
}
