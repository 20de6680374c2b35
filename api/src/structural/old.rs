//! The value that was before, as far as it can be told which one that was. What did not change does not fail again.
//!
//! Source: `CorrelatedObject` and `MapList` of apiserver's `pkg/cel/common`.

use std::cell::OnceCell;
use std::collections::HashMap;

use serde_json::Value;

use super::part::Part;

/// The old value at a place.
pub(super) struct Old<'o> {
    pub(super) value: &'o Value,
    part: Part<'o>,
    /// Of a list that is a map: its elements by their keys.
    elements: OnceCell<Elements<'o, 'o>>,
}

/// Elements of a list by the values of their keys; of several with the same the first.
pub(super) struct Elements<'k, 'o> {
    keys: &'k [Box<str>],
    by_key: HashMap<String, &'o Value>,
}

impl<'k, 'o> Elements<'k, 'o> {
    pub(super) fn new(keys: &'k [Box<str>], items: &'o [Value]) -> Elements<'k, 'o> {
        let mut by_key = HashMap::new();
        for item in items {
            if let Some(key) = key_of(keys, item) {
                by_key.entry(key).or_insert(item);
            }
        }
        Elements { keys, by_key }
    }

    pub(super) fn get(&self, element: &Value) -> Option<&'o Value> {
        self.by_key.get(&key_of(self.keys, element)?).copied()
    }
}

/// The values of the keys, one after the other; `None` where one is missing or has parts.
fn key_of(keys: &[Box<str>], element: &Value) -> Option<String> {
    let map = element.as_object()?;
    if keys.is_empty() {
        return None;
    }
    let mut text = String::new();
    for key in keys {
        match map.get(&**key)? {
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
            value => text.push_str(&value.to_string()),
        }
        text.push('\0');
    }
    Some(text)
}

impl<'o> Old<'o> {
    pub(super) fn new(part: Part<'o>, value: &'o Value) -> Old<'o> {
        Old { value, part, elements: OnceCell::new() }
    }

    pub(super) fn field(&self, name: &str) -> Option<Old<'o>> {
        let value = self.value.as_object()?.get(name)?;
        let part = self.part.field(name).or_else(|| self.part.values())?;
        Some(Old::new(part, value))
    }

    /// Of the element of the new list that has the same keys.
    pub(super) fn item(&self, element: &Value) -> Option<Old<'o>> {
        let keys = self.part.list_keys()?;
        let items = self.value.as_array()?;
        let elements = self.elements.get_or_init(|| Elements::new(keys, items));
        Some(Old::new(self.part.items()?, elements.get(element)?))
    }
}

/// Whether a value is as before, elements of lists that are maps by their keys. What no schema speaks of counts as changed.
pub(super) fn is_same(new: &Value, old: &Old<'_>) -> bool {
    match (new, old.value) {
        (Value::Array(new_items), Value::Array(old_items)) => {
            if new_items.len() != old_items.len() {
                return false;
            }
            if old.part.list_keys().is_none() {
                return new_items == old_items;
            }
            new_items.iter().all(|item| old.item(item).is_some_and(|old| is_same(item, &old)))
        }
        (Value::Object(new_map), Value::Object(old_map)) => {
            new_map.len() == old_map.len()
                && new_map.iter().all(|(name, value)| old.field(name).is_some_and(|old| is_same(value, &old)))
        }
        (new, old) => new == old,
    }
}
