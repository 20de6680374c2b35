//! Strategic merge patch.
//!
//! Source: "Strategic Merge Patch" in the Kubernetes community's API devel guide.

use serde_json::{Map, Value};

use crate::schema::{Field, Schema, Shape, TypeId};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVE: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `target`. `id` is the type of both, `None` where the schema ends: there, maps merge
/// key by key and lists are replaced.
pub(super) fn merge_object(
    schema: &Schema,
    id: Option<TypeId>,
    target: &mut Value,
    patch: &Map<String, Value>,
) -> Result<(), String> {
    match patch.get(PATCH).and_then(Value::as_str) {
        Some("replace") => {
            *target = Value::Object(without_directives(patch));
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(format!("unknown patch type {other:?}")),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return Ok(()) };
    if let Some(keep) = patch.get(RETAIN_KEYS) {
        retain_keys(target, patch, keep)?;
    }
    for (name, value) in patch {
        if let Some(list) = name.strip_prefix(DELETE_PRIMITIVE) {
            delete_primitives(target, list, value)?;
        } else if !name.starts_with('$') {
            let field = id.and_then(|id| schema.get(id).field(name));
            merge_field(schema, field, target, name, value, patch)?;
        }
    }
    // An order may be given for a list that the patch otherwise leaves alone.
    for (name, order) in patch {
        if let Some(list) = name.strip_prefix(ELEMENT_ORDER)
            && !patch.contains_key(list)
        {
            let field = id.and_then(|id| schema.get(id).field(list));
            if let (Some(Value::Array(items)), Value::Array(order)) = (target.get_mut(list), order) {
                let before = items.clone();
                reorder(items, &before, order, field.and_then(|f| f.merge_key.as_deref()));
            }
        }
    }
    Ok(())
}

fn merge_field(
    schema: &Schema,
    field: Option<&Field>,
    target: &mut Map<String, Value>,
    name: &str,
    value: &Value,
    patch: &Map<String, Value>,
) -> Result<(), String> {
    match value {
        Value::Null => {
            target.remove(name);
        }
        Value::Object(inner) => {
            let id = field.and_then(|f| object_type(&f.shape));
            if inner.get(PATCH).and_then(Value::as_str) == Some("delete") {
                target.remove(name);
                return Ok(());
            }
            if let Some(Shape::Map(of)) = field.map(|f| &f.shape)
                && let Some(of) = object_type(of)
            {
                return merge_map_of_objects(schema, of, target, name, inner);
            }
            let at = target.entry(name).or_insert_with(|| Value::Object(Map::new()));
            merge_object(schema, id, at, inner)?;
        }
        Value::Array(items) => {
            let merges = field.filter(|f| f.patch_merge);
            let Some(field) = merges else {
                target.insert(name.into(), Value::Array(items.clone()));
                return Ok(());
            };
            let order = patch.get(&format!("{ELEMENT_ORDER}{name}"));
            let at = target.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            if !at.is_array() {
                *at = Value::Array(Vec::new());
            }
            let Value::Array(current) = at else { return Ok(()) };
            merge_list(schema, field, current, items, order)?;
        }
        scalar => {
            target.insert(name.into(), scalar.clone());
        }
    }
    Ok(())
}

fn merge_map_of_objects(
    schema: &Schema,
    of: TypeId,
    target: &mut Map<String, Value>,
    name: &str,
    patch: &Map<String, Value>,
) -> Result<(), String> {
    let at = target.entry(name).or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(map) = at else { return Err(format!("{name} is not a map")) };
    for (key, value) in patch {
        match value {
            Value::Null => {
                map.remove(key);
            }
            Value::Object(inner) => {
                let at = map.entry(key.as_str()).or_insert_with(|| Value::Object(Map::new()));
                merge_object(schema, Some(of), at, inner)?;
            }
            _ => return Err(format!("{name}.{key} is not an object")),
        }
    }
    Ok(())
}

/// The object type of a shape, or of a list's items.
fn object_type(shape: &Shape) -> Option<TypeId> {
    match shape {
        Shape::Object(id) => Some(*id),
        Shape::List(inner) => object_type(inner),
        _ => None,
    }
}

fn merge_list(
    schema: &Schema,
    field: &Field,
    current: &mut Vec<Value>,
    patch: &[Value],
    order: Option<&Value>,
) -> Result<(), String> {
    // Without an order of their own, the items of the patch are in the patch's.
    let order = order.and_then(Value::as_array).map_or(patch, Vec::as_slice);
    let before = current.clone();
    let Some(key) = field.merge_key.as_deref() else {
        for item in patch {
            if !current.contains(item) {
                current.push(item.clone());
            }
        }
        reorder(current, &before, order, None);
        return Ok(());
    };
    if patch.iter().any(|item| item[PATCH] == "replace") {
        current.clear();
    }
    for item in patch {
        let Value::Object(fields) = item else {
            return Err(format!("an item of {} is not an object", field.name));
        };
        if fields.get(PATCH).and_then(Value::as_str) == Some("replace") {
            let rest = without_directives(fields);
            if !rest.is_empty() {
                current.push(Value::Object(rest));
            }
            continue;
        }
        let id = fields
            .get(key)
            .ok_or_else(|| format!("map: {item} does not contain declared merge key: {key}"))?;
        if fields.get(PATCH).and_then(Value::as_str) == Some("delete") {
            current.retain(|have| have.get(key) != Some(id));
            continue;
        }
        let at = match current.iter().position(|have| have.get(key) == Some(id)) {
            Some(at) => at,
            None => {
                current.push(Value::Object(Map::new()));
                current.len() - 1
            }
        };
        merge_object(schema, object_type(&field.shape), &mut current[at], fields)?;
    }
    reorder(current, &before, order, Some(key));
    Ok(())
}

/// Puts the items that `order` names in that order. Where both were there before, those it does not name (another
/// writer's) stay in front of those that they stood in front of; else what is named comes first.
fn reorder(items: &mut Vec<Value>, before: &[Value], order: &[Value], key: Option<&str>) {
    let identity = |item: &Value| key.map_or_else(|| item.clone(), |key| item[key].clone());
    let place = |item: &Value, list: &[Value]| {
        let id = identity(item);
        list.iter().position(|other| identity(other) == id)
    };
    let mut named: Vec<(usize, Value)> = Vec::new();
    let mut strangers = Vec::new();
    for item in items.drain(..) {
        match place(&item, order) {
            Some(rank) => named.push((rank, item)),
            None => strangers.push(item),
        }
    }
    named.sort_by_key(|(rank, _)| *rank);
    let mut strangers = strangers.into_iter().peekable();
    for (_, item) in named {
        let own = place(&item, before);
        let is_in_front =
            |stranger: &Value| place(stranger, before).zip(own).is_some_and(|(stranger, own)| stranger < own);
        while let Some(stranger) = strangers.next_if(is_in_front) {
            items.push(stranger);
        }
        items.push(item);
    }
    items.extend(strangers);
}

fn retain_keys(
    target: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    keep: &Value,
) -> Result<(), String> {
    let Value::Array(keep) = keep else { return Err(format!("{RETAIN_KEYS} must be a list")) };
    let keep: Vec<&str> = keep.iter().filter_map(Value::as_str).collect();
    if let Some(stray) =
        patch.keys().find(|k| !k.starts_with('$') && !patch[*k].is_null() && !keep.contains(&k.as_str()))
    {
        return Err(format!("{RETAIN_KEYS} does not name {stray:?}, which the patch sets"));
    }
    target.retain(|name, _| keep.contains(&name.as_str()));
    Ok(())
}

fn delete_primitives(target: &mut Map<String, Value>, list: &str, values: &Value) -> Result<(), String> {
    let Value::Array(values) = values else { return Err(format!("{DELETE_PRIMITIVE}{list} must be a list")) };
    if let Some(Value::Array(items)) = target.get_mut(list) {
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .filter(|(name, value)| !name.starts_with('$') && !value.is_null())
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}
