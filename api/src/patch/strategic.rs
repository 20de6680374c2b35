//! Strategic merge patch: lists merge by their keys; `$patch`, `$retainKeys`, `$deleteFromPrimitiveList/…` and
//! `$setElementOrder/…` direct it.
//!
//! Items are found by hashes of their keys, so that the cost is that of reading both documents, however long their lists are.
//! Recursion is as deep as the patch, which was read under [`crate::depth::MAX_DEPTH`].
//!
//! Source: apimachinery's `util/strategicpatch`, and "Strategic Merge Patch" in the community's API devel guide.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::schema::{Field, Schema, Shape, TypeId};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVE: &str = "$deleteFromPrimitiveList";
const ELEMENT_ORDER: &str = "$setElementOrder";

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("unknown patch type: {directive} in map: $patch is \"replace\" or \"delete\"")]
    Directive { directive: String },
    #[error("invalid patch format of retainKeys: {why}")]
    RetainKeys { why: String },
    #[error(
        "patch content doesn't match retainKeys list: {RETAIN_KEYS} does not name {stray:?}, which the patch sets"
    )]
    NotRetained { stray: String },
    #[error("invalid patch format of primitive list: {name} names no list")]
    PrimitiveList { name: String },
    #[error("invalid patch format of setElementOrder list: {name} names no list")]
    ElementOrder { name: String },
    #[error("{name}: expected a list")]
    NoList { name: String },
    #[error("{name}: list element types are not identical")]
    MixedList { name: String },
    #[error("{name}: lists of lists are not supported")]
    ListOfLists { name: String },
    #[error("{name}: map: {item} does not contain declared merge key: {key}")]
    NoMergeKey { name: String, item: String, key: String },
    #[error(
        "{name}: more than {MAX_REPEATS} elements of a patch are about an element that the patch has already changed"
    )]
    Repeated { name: String },
    #[error("{name}: cannot merge lists without merge key")]
    NoKeyDeclared { name: String },
    #[error("{name}: the order in the patch list doesn't match the $setElementOrder list")]
    OrderMismatch { name: String },
}

/// How upstream answers an error.
///
/// Source: `interpretStrategicMergePatchError` of apiserver's `endpoints/handlers/patch.go`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    BadRequest,
    Unprocessable,
    /// As an error that it does not know.
    Unknown,
}

impl Error {
    pub(super) fn class(&self) -> Class {
        match self {
            Error::RetainKeys { .. }
            | Error::PrimitiveList { .. }
            | Error::ElementOrder { .. }
            | Error::Repeated { .. } => Class::BadRequest,
            Error::NotRetained { .. } | Error::ListOfLists { .. } => Class::Unprocessable,
            Error::Directive { .. }
            | Error::NoList { .. }
            | Error::MixedList { .. }
            | Error::NoMergeKey { .. }
            | Error::NoKeyDeclared { .. }
            | Error::OrderMismatch { .. } => Class::Unknown,
        }
    }
}

/// How often a patch of a list may come back to elements that it has changed before: each time costs what the element weighs, and
/// nobody means it.
const MAX_REPEATS: usize = 16;

/// How the items of a list are told apart.
#[derive(Clone, Copy)]
struct Identity<'f> {
    /// The list's name, for messages.
    name: &'f str,
    /// `None` for scalars, which are what they are.
    key: Option<&'f str>,
}

impl Identity<'_> {
    fn of(self, item: &Value) -> Result<String, Error> {
        let Some(key) = self.key else { return Ok(item.to_string()) };
        let id = item.get(key).ok_or_else(|| self.no_key(item, key))?;
        Ok(id.to_string())
    }

    fn no_key(self, item: &Value, key: &str) -> Error {
        let item = item.to_string().chars().take(200).collect();
        Error::NoMergeKey { name: self.name.to_owned(), item, key: key.to_owned() }
    }

    /// The place of each item, the first where several are alike.
    fn places(self, items: &[Value]) -> Result<HashMap<String, usize>, Error> {
        let mut places = HashMap::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            places.entry(self.of(item)?).or_insert(at);
        }
        Ok(places)
    }
}

/// Merges `patch` into `target`. `id` is the type of both, `None` where the schema ends: there, maps merge
/// key by key and lists are replaced.
pub(super) fn merge(
    schema: &Schema,
    id: Option<TypeId>,
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), Error> {
    if let Some(directive) = patch.get(PATCH) {
        target.clear();
        return match directive.as_str() {
            Some("replace") => {
                let rest = patch.iter().filter(|(name, _)| *name != PATCH);
                target.extend(rest.map(|(name, value)| (name.clone(), value.clone())));
                Ok(())
            }
            Some("delete") => Ok(()),
            _ => Err(Error::Directive { directive: directive.to_string() }),
        };
    }
    if let Some(keep) = patch.get(RETAIN_KEYS) {
        retain_keys(target, patch, keep)?;
    }
    let field = |name: &str| id.and_then(|id| schema.get(id).field(name));
    let mut ordered = HashSet::new();
    for (name, order) in patch.iter().filter(|(name, _)| name.starts_with(ELEMENT_ORDER)) {
        let list = directed(name, ELEMENT_ORDER).ok_or_else(|| Error::ElementOrder { name: name.clone() })?;
        let Value::Array(order) = order else { return Err(Error::NoList { name: name.clone() }) };
        merge_ordered(schema, field(list), target, list, patch.get(list), order)?;
        ordered.insert(list);
    }
    for (name, value) in patch {
        if name == RETAIN_KEYS || name.starts_with(ELEMENT_ORDER) || ordered.contains(name.as_str()) {
            continue;
        }
        if name.starts_with(DELETE_PRIMITIVE) {
            let list = directed(name, DELETE_PRIMITIVE)
                .ok_or_else(|| Error::PrimitiveList { name: name.clone() })?;
            delete_primitives(target, list, value)?;
        } else {
            merge_field(schema, field(name), target, name, value)?;
        }
    }
    Ok(())
}

/// The list that a directive is about.
fn directed<'n>(name: &'n str, directive: &str) -> Option<&'n str> {
    name.strip_prefix(directive)?.strip_prefix('/')
}

fn merge_field(
    schema: &Schema,
    field: Option<&Field>,
    target: &mut Map<String, Value>,
    name: &str,
    value: &Value,
) -> Result<(), Error> {
    if value.is_null() {
        target.remove(name);
        return Ok(());
    }
    match (target.get_mut(name), value) {
        (Some(Value::Object(target)), Value::Object(patch))
            if field.is_some_and(|field| field.patch_replace) =>
        {
            *target = patch.clone();
            Ok(())
        }
        (Some(Value::Object(target)), Value::Object(patch)) => match field.map(|field| &field.node.shape) {
            Some(Shape::Map(of)) if object_type(&of.shape).is_some() => {
                for (key, value) in patch {
                    merge_entry(schema, object_type(&of.shape), target, key, value)?;
                }
                Ok(())
            }
            shape => merge(schema, shape.and_then(object_type), target, patch),
        },
        (Some(Value::Array(target)), Value::Array(patch)) => {
            let merged = merge_list(schema, field, name, std::mem::take(target), patch)?;
            *target = merged;
            Ok(())
        }
        _ => {
            match taken(value, Nulls::Dropped) {
                Some(value) => target.insert(name.to_owned(), value),
                None => target.remove(name),
            };
            Ok(())
        }
    }
}

/// An entry of a map whose values have fields.
fn merge_entry(
    schema: &Schema,
    of: Option<TypeId>,
    target: &mut Map<String, Value>,
    key: &str,
    value: &Value,
) -> Result<(), Error> {
    if let (Some(Value::Object(target)), Value::Object(patch)) = (target.get_mut(key), value) {
        return merge(schema, of, target, patch);
    }
    merge_field(schema, None, target, key, value)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Nulls {
    /// They go when the result is read as its type.
    Kept,
    Dropped,
}

/// What a patch sets where there was nothing to merge with: without the maps that only direct.
fn taken(value: &Value, nulls: Nulls) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(PATCH) => None,
        Value::Object(map) => {
            let set = map.iter().filter(|(_, value)| nulls == Nulls::Kept || !value.is_null());
            let taken = set.filter_map(|(name, value)| Some((name.clone(), taken(value, nulls)?)));
            Some(Value::Object(taken.collect()))
        }
        Value::Array(items) => {
            Some(Value::Array(items.iter().filter_map(|item| taken(item, nulls)).collect()))
        }
        scalar => Some(scalar.clone()),
    }
}

/// The object type of a shape, or of a list's items.
fn object_type(shape: &Shape) -> Option<TypeId> {
    match shape {
        Shape::Object(id) => Some(*id),
        Shape::List(inner) => object_type(&inner.shape),
        _ => None,
    }
}

/// A list whose order the patch gives, whether or not it changes its items.
fn merge_ordered(
    schema: &Schema,
    field: Option<&Field>,
    target: &mut Map<String, Value>,
    name: &str,
    patch: Option<&Value>,
    order: &[Value],
) -> Result<(), Error> {
    let no_list = || Error::NoList { name: name.to_owned() };
    let patch = match patch {
        None => None,
        Some(Value::Array(items)) => Some(items.as_slice()),
        Some(_) => return Err(no_list()),
    };
    let identity = Identity { name, key: field.and_then(|field| field.merge_key.as_deref()) };
    follows(identity, patch.unwrap_or_default(), order)?;
    let (before, merged) = match (target.get_mut(name), patch) {
        (None, None) => return Ok(()),
        (None, Some(patch)) => {
            (Vec::new(), patch.iter().filter_map(|item| taken(item, Nulls::Kept)).collect())
        }
        (Some(Value::Array(items)), None) => (items.clone(), std::mem::take(items)),
        (Some(Value::Array(items)), Some(patch)) => {
            let before = items.clone();
            (before, merge_list(schema, field, name, std::mem::take(items), patch)?)
        }
        (Some(_), _) => return Err(no_list()),
    };
    one_type(name, &[&merged])?;
    target.insert(name.to_owned(), Value::Array(reorder(identity, merged, &before, order)?));
    Ok(())
}

/// Whether the items of a patch, but those it deletes, come in the order that it gives.
fn follows(identity: Identity<'_>, patch: &[Value], order: &[Value]) -> Result<(), Error> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut order = order.iter();
    for item in patch.iter().filter(|item| item.get(PATCH).is_none()) {
        let id = identity.of(item)?;
        loop {
            let Some(next) = order.next() else {
                return Err(Error::OrderMismatch { name: identity.name.to_owned() });
            };
            if identity.of(next)? == id {
                break;
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Items {
    Objects,
    Scalars,
}

/// What all items of some lists are; `None` if there are none.
fn one_type(name: &str, lists: &[&[Value]]) -> Result<Option<Items>, Error> {
    let mut first = None;
    for item in lists.iter().copied().flatten() {
        if first.is_none() && item.is_array() {
            return Err(Error::ListOfLists { name: name.to_owned() });
        }
        let kind = std::mem::discriminant(item);
        if *first.get_or_insert(kind) != kind || item.is_null() {
            return Err(Error::MixedList { name: name.to_owned() });
        }
    }
    let item = lists.iter().copied().flatten().next();
    Ok(item.map(|item| if item.is_object() { Items::Objects } else { Items::Scalars }))
}

fn merge_list(
    schema: &Schema,
    field: Option<&Field>,
    name: &str,
    target: Vec<Value>,
    patch: &[Value],
) -> Result<Vec<Value>, Error> {
    let Some(field) = field.filter(|field| field.patch_merge) else { return Ok(patch.to_vec()) };
    match one_type(name, &[&target, patch])? {
        None => Ok(target),
        Some(Items::Scalars) => {
            let identity = Identity { name, key: None };
            let before = target.clone();
            let mut met = HashSet::new();
            let all = target.into_iter().chain(patch.iter().cloned());
            let joined = all.filter(|item| met.insert(item.to_string())).collect();
            reorder(identity, joined, &before, patch)
        }
        Some(Items::Objects) => {
            let key = field.merge_key.as_deref();
            let key = key.ok_or_else(|| Error::NoKeyDeclared { name: name.to_owned() })?;
            let identity = Identity { name, key: Some(key) };
            merge_objects(schema, object_type(&field.node.shape), identity, key, target, patch)
        }
    }
}

fn merge_objects(
    schema: &Schema,
    of: Option<TypeId>,
    identity: Identity<'_>,
    key: &str,
    mut target: Vec<Value>,
    patch: &[Value],
) -> Result<Vec<Value>, Error> {
    let (mut deleted, mut replaces, mut changes) = (HashSet::new(), false, Vec::new());
    for item in patch {
        match item.get(PATCH) {
            None => changes.push(item),
            Some(Value::String(delete)) if delete == "delete" => {
                deleted.insert(identity.of(item)?);
            }
            Some(Value::String(replace)) if replace == "replace" => replaces = true,
            Some(other) => return Err(Error::Directive { directive: other.to_string() }),
        }
    }
    if replaces {
        let items: Vec<Value> = changes.into_iter().cloned().collect();
        identity.places(&items)?;
        return Ok(items);
    }
    if !deleted.is_empty() {
        target.retain(|item| item.get(key).is_none_or(|id| !deleted.contains(&id.to_string())));
    }
    let before = target.clone();
    let mut places = identity.places(&target)?;
    let mut order = Vec::with_capacity(changes.len());
    let (mut changed, mut n_repeats) = (HashSet::with_capacity(changes.len()), 0);
    for item in changes {
        if !changed.insert(identity.of(item)?) {
            n_repeats += 1;
            if n_repeats > MAX_REPEATS {
                return Err(Error::Repeated { name: identity.name.to_owned() });
            }
        }
        order.push(item.clone());
        match (places.get(&identity.of(item)?), item) {
            (Some(&at), Value::Object(fields)) => {
                if let Value::Object(target) = &mut target[at] {
                    merge(schema, of, target, fields)?;
                }
            }
            _ => {
                places.insert(identity.of(item)?, target.len());
                target.push(item.clone());
            }
        }
    }
    reorder(identity, target, &before, &order)
}

/// Puts the items that `order` names in that order. Where both were there before, those it does not name (another
/// writer's) stay in front of those that they stood in front of; else what is named comes first.
fn reorder(
    identity: Identity<'_>,
    items: Vec<Value>,
    before: &[Value],
    order: &[Value],
) -> Result<Vec<Value>, Error> {
    let (ranks, before) = (identity.places(order)?, identity.places(before)?);
    let mut sorted = Vec::with_capacity(items.len());
    let (mut named, mut strangers) = (Vec::new(), Vec::new());
    for item in items {
        let id = identity.of(&item)?;
        let own = before.get(&id).copied();
        match ranks.get(&id) {
            Some(&rank) => named.push((rank, own, item)),
            None => strangers.push((own, item)),
        }
    }
    named.sort_by_key(|(rank, ..)| *rank);
    let mut strangers = strangers.into_iter().peekable();
    for (_, own, item) in named {
        let is_in_front = |(stranger, _): &(Option<usize>, Value)| {
            stranger.zip(own).is_some_and(|(stranger, own)| stranger < own)
        };
        while let Some((_, stranger)) = strangers.next_if(is_in_front) {
            sorted.push(stranger);
        }
        sorted.push(item);
    }
    sorted.extend(strangers.map(|(_, stranger)| stranger));
    Ok(sorted)
}

fn retain_keys(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    keep: &Value,
) -> Result<(), Error> {
    let Value::Array(keep) = keep else {
        return Err(Error::RetainKeys { why: format!("{RETAIN_KEYS} must be a list") });
    };
    let keep: HashSet<&str> = keep.iter().filter_map(Value::as_str).collect();
    let is_directive =
        |name: &str| [RETAIN_KEYS, DELETE_PRIMITIVE, ELEMENT_ORDER].iter().any(|d| name.starts_with(d));
    let mut set = patch.iter().filter(|(name, value)| !value.is_null() && !is_directive(name));
    if let Some((stray, _)) = set.find(|(name, _)| !keep.contains(name.as_str())) {
        return Err(Error::NotRetained { stray: stray.clone() });
    }
    target.retain(|name, _| keep.contains(name.as_str()));
    Ok(())
}

fn delete_primitives(target: &mut Map<String, Value>, list: &str, values: &Value) -> Result<(), Error> {
    if values.is_null() {
        target.remove(list);
        return Ok(());
    }
    let (Some(Value::Array(items)), Value::Array(values)) = (target.get_mut(list), values) else {
        return Ok(());
    };
    if let Some(Items::Objects) = one_type(list, &[items, values])? {
        return Err(Error::PrimitiveList { name: list.to_owned() });
    }
    let values: HashSet<String> = values.iter().map(Value::to_string).collect();
    items.retain(|item| !values.contains(&item.to_string()));
    Ok(())
}
