//! What a value says, what differs between two, and a value without some of its parts: walks of values beside their type.
//!
//! Each walk is linear in the values, but for a logarithm. They recurse as deep as the values, which are checked
//! ([`crate::depth`]) before they get here.
//!
//! Source: `typed/tofieldset.go`, `compare.go`, `remove.go` and `reconcile_schema.go` of structured-merge-diff.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::element::{Element, same_value};
use super::form::{Form, Type, indexed};
use super::set::{Node, Set};

/// The parts that a value says something of.
pub(super) fn fields(type_: Type<'_>, value: &Value) -> Set {
    let mut walk = Fields { set: Set::default(), path: Vec::new() };
    walk.value(type_, value);
    walk.set
}

struct Fields {
    set: Set,
    path: Vec<Element>,
}

impl Fields {
    fn value(&mut self, type_: Type<'_>, value: &Value) {
        match (type_.form(value), value) {
            (Form::Scalar | Form::Atomic, _) => self.set.insert(&self.path),
            (Form::List, Value::Array(items)) => self.items(type_, items),
            (Form::Map, Value::Object(map)) => {
                for (name, value) in map {
                    self.entry(type_, name, value);
                }
            }
            _ => {}
        }
    }

    fn entry(&mut self, type_: Type<'_>, name: &str, value: &Value) {
        self.path.push(Element::field(name));
        if let Some(entry) = type_.entry(name) {
            self.value(entry, value);
        }
        let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
        if is_empty || type_.declared(name).is_none() {
            self.set.insert(&self.path);
        }
        self.path.pop();
    }

    /// Items that are there more than once are one whole.
    fn items(&mut self, type_: Type<'_>, items: &[Value]) {
        let Some(item_type) = type_.item() else { return };
        for (element, items) in grouped(type_, items) {
            self.path.push(element);
            if let [item] = items[..] {
                self.value(item_type, item);
            }
            self.set.insert(&self.path);
            self.path.pop();
        }
    }
}

/// The items of a list by what tells them apart.
fn grouped<'v>(type_: Type<'_>, items: &'v [Value]) -> BTreeMap<Element, Vec<&'v Value>> {
    let mut groups: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
    for (element, item) in indexed(&type_, items) {
        groups.entry(element).or_default().push(item);
    }
    groups
}

/// What one value has that another has not, or has differently. No part is in two of the sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) removed: Set,
    pub(super) modified: Set,
    pub(super) added: Set,
}

impl Comparison {
    /// From `old` to `new`, both of one type.
    pub(super) fn of(type_: Type<'_>, old: &Value, new: &Value) -> Comparison {
        let mut walk = Compare { found: Comparison::default(), path: Vec::new() };
        walk.values(type_, Some(old), Some(new));
        walk.found
    }

    /// Without these parts and what lies below them.
    pub(super) fn without(self, set: &Set) -> Comparison {
        Comparison {
            removed: self.removed.recursive_difference(set),
            modified: self.modified.recursive_difference(set),
            added: self.added.recursive_difference(set),
        }
    }
}

struct Compare {
    found: Comparison,
    path: Vec<Element>,
}

/// Whether a pair of values was compared as one whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    AsOne,
    ByParts,
}

impl Compare {
    fn values(&mut self, type_: Type<'_>, old: Option<&Value>, new: Option<&Value>) {
        let compared = match (old, new) {
            (None, None) => return,
            (Some(value), None) | (None, Some(value)) => self.as_form(type_, type_.form(value), old, new),
            (Some(before), Some(after)) => {
                let (form, new_form) = (type_.form(before), type_.form(after));
                if form != new_form {
                    self.as_form(type_, form, old, new);
                }
                self.as_form(type_, new_form, old, new)
            }
        };
        if compared == Compared::ByParts {
            match (old, new) {
                (None, _) => self.found.added.insert(&self.path),
                (_, None) => self.found.removed.insert(&self.path),
                _ => {}
            }
        }
    }

    fn as_form(&mut self, type_: Type<'_>, form: Form, old: Option<&Value>, new: Option<&Value>) -> Compared {
        match form {
            Form::Scalar | Form::Atomic => self.as_one(old, new),
            Form::Map => {
                let (before, after) = (old.and_then(entries_of), new.and_then(entries_of));
                if before.is_none() && after.is_none() {
                    return self.as_one(old, new);
                }
                self.entries(type_, before, after);
                Compared::ByParts
            }
            Form::List => {
                let (before, after) = (old.and_then(items_of), new.and_then(items_of));
                if before.is_none() && after.is_none() {
                    return self.as_one(old, new);
                }
                self.items(type_, before.unwrap_or_default(), after.unwrap_or_default());
                Compared::ByParts
            }
        }
    }

    fn as_one(&mut self, old: Option<&Value>, new: Option<&Value>) -> Compared {
        match (old, new) {
            (None, _) => self.found.added.insert(&self.path),
            (_, None) => self.found.removed.insert(&self.path),
            (Some(old), Some(new)) if !same_value(old, new) => self.found.modified.insert(&self.path),
            _ => {}
        }
        Compared::AsOne
    }

    fn entries(
        &mut self,
        type_: Type<'_>,
        before: Option<&Map<String, Value>>,
        after: Option<&Map<String, Value>>,
    ) {
        for (name, old) in before.into_iter().flatten() {
            let new = after.and_then(|after| after.get(name));
            self.entry(type_, name, Some(old), new);
        }
        for (name, new) in after.into_iter().flatten() {
            if before.is_none_or(|before| !before.contains_key(name)) {
                self.entry(type_, name, None, Some(new));
            }
        }
    }

    fn entry(&mut self, type_: Type<'_>, name: &str, old: Option<&Value>, new: Option<&Value>) {
        let is_scalar = |value: &Value| !value.is_array() && !value.is_object();
        if old == new && old.is_some_and(is_scalar) {
            // Most of an object stays as it is: that costs no path.
            return;
        }
        if let Some(entry) = type_.entry(name) {
            self.path.push(Element::field(name));
            self.values(entry, old, new);
            self.path.pop();
        }
    }

    fn items(&mut self, type_: Type<'_>, before: &[Value], after: &[Value]) {
        let Some(item_type) = type_.item() else { return };
        let (before, mut after) = (grouped(type_, before), grouped(type_, after));
        for (element, old) in before {
            let new = after.remove(&element).unwrap_or_default();
            self.same_items(item_type, element, &old, &new);
        }
        for (element, new) in after {
            self.same_items(item_type, element, &[], &new);
        }
    }

    /// The items of one key: mostly one on each side. Those that are there more than once are one whole.
    fn same_items(&mut self, item_type: Type<'_>, element: Element, old: &[&Value], new: &[&Value]) {
        self.path.push(element);
        match (old, new) {
            ([] | [_], [] | [_]) => self.values(item_type, old.first().copied(), new.first().copied()),
            ([_, _, ..], [_, _, ..]) => {
                let is_same = old.len() == new.len() && old.iter().zip(new).all(|(a, b)| same_value(a, b));
                if !is_same {
                    self.found.modified.insert(&self.path);
                }
            }
            (_, [] | [_]) => {
                self.values(item_type, None, new.first().copied());
                self.found.removed.insert(&self.path);
            }
            ([] | [_], _) => {
                self.values(item_type, old.first().copied(), None);
                self.found.added.insert(&self.path);
            }
        }
        self.path.pop();
    }
}

fn entries_of(value: &Value) -> Option<&Map<String, Value>> {
    value.as_object().filter(|map| !map.is_empty())
}

fn items_of(value: &Value) -> Option<&[Value]> {
    value.as_array().map(Vec::as_slice).filter(|items| !items.is_empty())
}

/// The value without the parts of a set. What loses all its parts is null.
pub(super) fn remove(type_: Type<'_>, value: &Value, set: &Set) -> Value {
    match (type_.form(value), value) {
        (Form::Scalar, value) => value.clone(),
        (Form::List, Value::Array(items)) => {
            let kept: Vec<Value> = items.iter().filter_map(|item| without_item(type_, item, set)).collect();
            if kept.is_empty() { Value::Null } else { Value::Array(kept) }
        }
        (Form::Map, Value::Object(map)) => {
            let kept: Map<String, Value> = map
                .iter()
                .filter_map(|(name, value)| {
                    let element = Element::field(name);
                    let kept = without_element(type_.entry(name), &element, value, set)?;
                    Some((name.clone(), kept))
                })
                .collect();
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        _ => Value::Null,
    }
}

fn without_item(type_: Type<'_>, item: &Value, set: &Set) -> Option<Value> {
    match type_.element(item) {
        Ok(element) => without_element(type_.item(), &element, item, set),
        Err(_) => Some(item.clone()),
    }
}

fn without_element(type_: Option<Type<'_>>, element: &Element, value: &Value, set: &Set) -> Option<Value> {
    if set.has_member(element) {
        return None;
    }
    match (set.below(element), type_) {
        (Some(below), Some(type_)) => Some(remove(type_, value, below)),
        _ => Some(value.clone()),
    }
}

/// The set with the fields of structs that have members below them. Entries of maps and items of lists are not added.
pub(super) fn with_named_fields(type_: Option<Type<'_>>, set: &Set) -> Set {
    let mut named = Set::default();
    for (element, node) in set.nodes() {
        let is_named = match (type_, element) {
            (Some(type_), Element::Field(name)) => type_.declared(name).is_some(),
            _ => false,
        };
        let below_type = match element {
            Element::Field(_) | Element::Key(_) => type_.and_then(|type_| type_.step(element)),
            Element::Value(_) | Element::Index(_) => None,
        };
        let below = with_named_fields(below_type, &node.below);
        let is_member = node.is_member || (is_named && !below.is_empty());
        named.insert_node(element.clone(), Node { is_member, below });
    }
    named
}

/// Whether a set is as the schema of today has it: nothing is owned below what is one whole.
pub(super) fn fits(type_: Type<'_>, set: &Set) -> bool {
    set.nodes().all(|(element, node)| {
        let below = Some(&node.below).filter(|below| !below.is_empty());
        match (granular(type_, element), below) {
            (Some((_, Form::Atomic)), Some(_)) => false,
            (Some((type_, Form::Map | Form::List)), Some(below)) => fits(type_, below),
            _ => true,
        }
    })
}

/// A set as the schema of today has it: what has become one whole is owned as one.
pub(super) fn reconciled(type_: Type<'_>, set: &Set) -> Set {
    let mut fitting = Set::default();
    for (element, node) in set.nodes() {
        let node = match granular(type_, element) {
            _ if node.below.is_empty() => node.clone(),
            Some((_, Form::Atomic)) => Node { is_member: true, below: Set::default() },
            Some((type_, Form::Map | Form::List)) => {
                Node { is_member: node.is_member, below: reconciled(type_, &node.below) }
            }
            _ => node.clone(),
        };
        fitting.insert_node(element.clone(), node);
    }
    fitting
}

/// What a step leads to, if the schema says what that is.
fn granular<'s>(type_: Type<'s>, element: &Element) -> Option<(Type<'s>, Form)> {
    let type_ = type_.step(element).filter(|type_| !type_.is_untyped())?;
    Some((type_, type_.form(&Value::Null)))
}
