//! What a value says, what differs between two, and a value without some of its parts: walks of values beside their type.
//!
//! Each walk is linear in the values, but for a logarithm. They recurse as deep as the values, which are checked
//! ([`crate::depth`]) before they get here.
//!
//! Source: `typed/tofieldset.go`, `compare.go`, `remove.go` and `reconcile_schema.go` of structured-merge-diff.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::element::{Element, same_value};
use super::form::{Form, Type, indexed};
use super::set::{Node, Set};

/// The parts that a value says something of.
pub(super) fn fields(type_: Type<'_>, value: &Value) -> Set {
    fields_of(type_, value).below
}

/// What a value says something of: itself, parts of it, or both.
fn fields_of(type_: Type<'_>, value: &Value) -> Node {
    let mut node = Node::default();
    match (type_.form(value), value) {
        (Form::Scalar | Form::Atomic, _) => node.is_member = true,
        (Form::List, Value::Array(items)) => {
            let Some(item_type) = type_.item() else { return node };
            let items = in_order(type_, items);
            for same in items.chunk_by(|(a, _), (b, _)| a == b) {
                let of_item = match same {
                    [(element, item)] => Some((element, fields_of(item_type, item).below)),
                    // Items that are there more than once are one whole.
                    several => several.first().map(|(element, _)| (element, Set::default())),
                };
                if let Some((element, below)) = of_item {
                    node.below.push(element.clone(), Node { is_member: true, below });
                }
            }
        }
        (Form::Map, Value::Object(map)) => {
            for (name, value) in map {
                let mut of_entry =
                    type_.entry(name).map_or_else(Node::default, |entry| fields_of(entry, value));
                let is_empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                of_entry.is_member |= is_empty || type_.declared(name).is_none();
                if !of_entry.is_empty() {
                    node.below.push(Element::field(name), of_entry);
                }
            }
        }
        _ => {}
    }
    node
}

/// The items of a list by what tells them apart.
fn in_order<'v>(type_: Type<'_>, items: &'v [Value]) -> Vec<(Element, &'v Value)> {
    let mut items = indexed(&type_, items);
    items.sort_by(|(a, _), (b, _)| a.cmp(b));
    items
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
        let found = Found::of(type_, Some(old), Some(new));
        Comparison { removed: found.removed.below, modified: found.modified.below, added: found.added.below }
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

/// The same of one place: itself, and what lies below it.
#[derive(Default)]
struct Found {
    removed: Node,
    modified: Node,
    added: Node,
}

/// Whether a pair of values was compared as one whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    AsOne,
    ByParts,
}

impl Found {
    fn of(type_: Type<'_>, old: Option<&Value>, new: Option<&Value>) -> Found {
        let mut found = Found::default();
        let compared = match (old, new) {
            (None, None) => return found,
            (Some(value), None) | (None, Some(value)) => found.as_form(type_, type_.form(value), old, new),
            (Some(before), Some(after)) => {
                let (form, new_form) = (type_.form(before), type_.form(after));
                if form != new_form {
                    found.as_form(type_, form, old, new);
                }
                found.as_form(type_, new_form, old, new)
            }
        };
        if compared == Compared::ByParts {
            match (old, new) {
                (None, _) => found.added.is_member = true,
                (_, None) => found.removed.is_member = true,
                _ => {}
            }
        }
        found
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
            (None, _) => self.added.is_member = true,
            (_, None) => self.removed.is_member = true,
            (Some(old), Some(new)) => self.modified.is_member |= !same_value(old, new),
        }
        Compared::AsOne
    }

    fn entries(
        &mut self,
        type_: Type<'_>,
        before: Option<&Map<String, Value>>,
        after: Option<&Map<String, Value>>,
    ) {
        let (before, after) = (before.into_iter().flatten(), after.into_iter().flatten());
        let mut below = Found::default();
        for (old, new) in beside(before, after, |(a, _), (b, _)| a.cmp(b)) {
            let Some((name, _)) = old.or(new) else { continue };
            let (old, new) = (old.map(|(_, value)| value), new.map(|(_, value)| value));
            let is_scalar = |value: &Value| !value.is_array() && !value.is_object();
            if old == new && old.is_some_and(is_scalar) {
                // Most of an object stays as it is.
                continue;
            }
            if let Some(entry) = type_.entry(name) {
                below.put(|| Element::field(name), Found::of(entry, old, new));
            }
        }
        self.add(below);
    }

    fn items(&mut self, type_: Type<'_>, before: &[Value], after: &[Value]) {
        let Some(item_type) = type_.item() else { return };
        let (before, after) = (in_order(type_, before), in_order(type_, after));
        let mut below = Found::default();
        let (before, after) =
            (before.chunk_by(|(a, _), (b, _)| a == b), after.chunk_by(|(a, _), (b, _)| a == b));
        for (old, new) in beside(before, after, |a, b| element_of(a).cmp(&element_of(b))) {
            let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
            if let Some(element) = element_of(old).or(element_of(new)) {
                below.put(|| element.clone(), Found::of_items(item_type, old, new));
            }
        }
        self.add(below);
    }

    /// Of the items of one key: mostly one on each side. Those that are there more than once are one whole.
    fn of_items(item_type: Type<'_>, old: &[(Element, &Value)], new: &[(Element, &Value)]) -> Found {
        match (old, new) {
            ([] | [_], [] | [_]) => Found::of(item_type, value_of(old), value_of(new)),
            ([_, _, ..], [_, _, ..]) => {
                let is_same =
                    old.len() == new.len() && old.iter().zip(new).all(|((_, a), (_, b))| same_value(a, b));
                Found { modified: Node { is_member: !is_same, ..Node::default() }, ..Found::default() }
            }
            (_, [] | [_]) => {
                let mut found = Found::of(item_type, None, value_of(new));
                found.removed.is_member = true;
                found
            }
            ([] | [_], _) => {
                let mut found = Found::of(item_type, value_of(old), None);
                found.added.is_member = true;
                found
            }
        }
    }

    /// Takes in what was found at one element, which comes after those that were put before.
    fn put(&mut self, element: impl Fn() -> Element, found: Found) {
        let own = [&mut self.removed, &mut self.modified, &mut self.added];
        for (own, found) in own.into_iter().zip([found.removed, found.modified, found.added]) {
            if !found.is_empty() {
                own.below.push(element(), found);
            }
        }
    }

    fn add(&mut self, other: Found) {
        self.removed.add(other.removed);
        self.modified.add(other.modified);
        self.added.add(other.added);
    }
}

fn element_of<'i>(items: &'i [(Element, &Value)]) -> Option<&'i Element> {
    items.first().map(|(element, _)| element)
}

fn value_of<'v>(items: &[(Element, &'v Value)]) -> Option<&'v Value> {
    items.first().map(|(_, item)| *item)
}

/// Two sequences in one order, with what is the same in both side by side.
fn beside<T: Copy>(
    a: impl Iterator<Item = T>,
    b: impl Iterator<Item = T>,
    order: impl Fn(&T, &T) -> Ordering,
) -> impl Iterator<Item = (Option<T>, Option<T>)> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || {
        let next = match (a.peek(), b.peek()) {
            (Some(of_a), Some(of_b)) => order(of_a, of_b),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let of_a = if next.is_le() { a.next() } else { None };
        let of_b = if next.is_ge() { b.next() } else { None };
        Some((of_a, of_b))
    })
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
        named.push_with(element, Node { is_member, below });
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
        fitting.push_with(element, node);
    }
    fitting
}

/// What a step leads to, if the schema says what that is.
fn granular<'s>(type_: Type<'s>, element: &Element) -> Option<(Type<'s>, Form)> {
    let type_ = type_.step(element).filter(|type_| !type_.is_untyped())?;
    Some((type_, type_.form(&Value::Null)))
}
