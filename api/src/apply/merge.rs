//! A live value with what was applied laid over it.
//!
//! Nothing of the live value is lost but what is one whole to its owners. Where a list is owned item by item, items keep the
//! order of the live list as far as the applied one says nothing else; items that both have follow the applied order.
//!
//! Source: `typed/merge.go` of structured-merge-diff.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::element::Element;
use super::form::{Form, Type, indexed};

/// Both values are of the type; the second is what was applied.
pub(super) fn merged(type_: Type<'_>, live: &Value, applied: &Value) -> Value {
    both(type_, Some(live), Some(applied)).unwrap_or(Value::Null)
}

fn both(type_: Type<'_>, live: Option<&Value>, applied: Option<&Value>) -> Option<Value> {
    let decisive = applied.or(live)?;
    match type_.form(decisive) {
        Form::Scalar | Form::Atomic => Some(decisive.clone()),
        Form::Map => {
            let (live, applied) = (live.and_then(Value::as_object), applied.and_then(Value::as_object));
            if live.is_none_or(Map::is_empty) && applied.is_none_or(Map::is_empty) {
                // Nothing and null stay what they are.
                return Some(decisive.clone());
            }
            Some(Value::Object(entries_of_both(type_, live, applied)))
        }
        Form::List => {
            let live = live.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let applied = applied.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            if live.is_empty() && applied.is_empty() {
                return Some(decisive.clone());
            }
            Some(Value::Array(Lists::new(type_, live, applied).merged()))
        }
    }
}

fn entries_of_both(
    type_: Type<'_>,
    live: Option<&Map<String, Value>>,
    applied: Option<&Map<String, Value>>,
) -> Map<String, Value> {
    let names: BTreeSet<&String> = [live, applied].into_iter().flatten().flat_map(Map::keys).collect();
    let mut out = Map::new();
    for name in names {
        let (live, applied) = (live.and_then(|map| map.get(name)), applied.and_then(|map| map.get(name)));
        let merged = match type_.entry(name) {
            Some(entry) => both(entry, live, applied),
            None => applied.or(live).cloned(),
        };
        if let Some(merged) = merged {
            out.insert(name.clone(), merged);
        }
    }
    out
}

/// Two lists whose items are told apart by elements.
struct Lists<'v, 's> {
    item_type: Option<Type<'s>>,
    live: Vec<(Element, &'v Value)>,
    applied: Vec<(Element, &'v Value)>,
    /// Which of `live` an element is; none where there are several, which are merged with nothing.
    in_live: BTreeMap<Element, Option<usize>>,
    in_applied: BTreeSet<Element>,
}

impl<'v, 's> Lists<'v, 's> {
    fn new(type_: Type<'s>, live: &'v [Value], applied: &'v [Value]) -> Lists<'v, 's> {
        let (live, applied) = (indexed(&type_, live), indexed(&type_, applied));
        let mut in_live = BTreeMap::new();
        for (at, (element, _)) in live.iter().enumerate() {
            match in_live.entry(element.clone()) {
                Entry::Vacant(place) => _ = place.insert(Some(at)),
                Entry::Occupied(mut place) => _ = place.insert(None),
            }
        }
        let in_applied = applied.iter().map(|(element, _)| element.clone()).collect();
        Lists { item_type: type_.item(), live, applied, in_live, in_applied }
    }

    fn merged(&self) -> Vec<Value> {
        let mut out = Vec::with_capacity(self.live.len().max(self.applied.len()));
        // Elements of both lists that are still to come, in the applied order.
        let mut shared =
            self.applied.iter().map(|(element, _)| element).filter(|e| self.in_live.contains_key(e));
        let mut next_shared = shared.next();
        let mut done: BTreeSet<&Element> = BTreeSet::new();
        let (mut at_live, mut at_applied) = (0, 0);
        while at_live < self.live.len() || at_applied < self.applied.len() {
            let (live, applied) = (self.live.get(at_live), self.applied.get(at_applied));
            if let (Some((element, _)), Some((wanted, _))) = (live, applied) {
                if element == wanted {
                    done.insert(element);
                    out.extend(self.item(at_applied));
                    (at_live, at_applied, next_shared) = (at_live + 1, at_applied + 1, shared.next());
                    continue;
                }
                if self.in_applied.contains(element) && next_shared.is_some_and(|next| next != element) {
                    // It comes later, where the applied list has it.
                    at_live += 1;
                    continue;
                }
            }
            if let Some((element, item)) = live {
                if !self.in_applied.contains(element) {
                    out.push((*item).clone());
                    at_live += 1;
                    continue;
                }
                if done.contains(element) {
                    at_live += 1;
                }
            }
            if let Some((element, _)) = applied {
                done.insert(element);
                out.extend(self.item(at_applied));
                at_applied += 1;
                if next_shared == Some(element) {
                    next_shared = shared.next();
                }
            }
        }
        out
    }

    /// One of the applied items, laid over the live one.
    fn item(&self, at_applied: usize) -> Option<Value> {
        let (element, applied) = self.applied.get(at_applied)?;
        let live = self.in_live.get(element).copied().flatten().and_then(|at| self.live.get(at));
        match self.item_type {
            Some(type_) => both(type_, live.map(|(_, item)| *item), Some(applied)),
            None => Some((*applied).clone()),
        }
    }
}
