//! Sets of fields: which parts of an object somebody owns.
//!
//! A set is a tree of [`Element`]s. A node may be a member itself, have members below it, or both; those of neither are
//! not kept. As `FieldsV1` it is JSON, where `.` marks a member that has others below it:
//!
//! ```json
//! {"f:spec": {"f:replicas": {}, "f:selector": {".": {}, "f:app": {}}}}
//! ```
//!
//! Everything here is linear in the sets, but for a logarithm, and recurses no deeper than the object that is described.
//!
//! Source: `fieldpath/set.go` and `serialize.go` of structured-merge-diff.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value};

use super::element::{Element, ReadError};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set(BTreeMap<Element, Node>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) is_member: bool,
    pub(super) below: Set,
}

impl Node {
    const MEMBER: Node = Node { is_member: true, below: Set(BTreeMap::new()) };

    fn is_empty(&self) -> bool {
        !self.is_member && self.below.is_empty()
    }
}

impl Set {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The set of these fields of objects: `["metadata", "name"]`.
    pub fn of_fields(paths: &[&[&str]]) -> Set {
        let mut set = Set::default();
        for path in paths {
            set.insert(&path.iter().map(|name| Element::field(name)).collect::<Vec<_>>());
        }
        set
    }

    /// Adds one part. The whole is nobody's: an empty path adds nothing.
    pub(super) fn insert(&mut self, path: &[Element]) {
        let Some((first, rest)) = path.split_first() else { return };
        if !self.0.contains_key(first) {
            self.0.insert(first.clone(), Node::default());
        }
        let Some(mut at) = self.0.get_mut(first) else { return };
        for element in rest {
            let below = &mut at.below.0;
            if !below.contains_key(element) {
                below.insert(element.clone(), Node::default());
            }
            let Some(next) = below.get_mut(element) else { return };
            at = next;
        }
        at.is_member = true;
    }

    pub(super) fn insert_node(&mut self, element: Element, node: Node) {
        if !node.is_empty() {
            self.0.insert(element, node);
        }
    }

    pub fn has(&self, path: &[Element]) -> bool {
        let Some((last, above)) = path.split_last() else { return false };
        let mut at = self;
        for element in above {
            match at.0.get(element) {
                Some(node) => at = &node.below,
                None => return false,
            }
        }
        at.has_member(last)
    }

    pub(super) fn has_member(&self, element: &Element) -> bool {
        self.0.get(element).is_some_and(|node| node.is_member)
    }

    /// What lies below one element, if anything does.
    pub(super) fn below(&self, element: &Element) -> Option<&Set> {
        self.0.get(element).map(|node| &node.below).filter(|below| !below.is_empty())
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Element, &Node)> {
        self.0.iter()
    }

    pub fn union(mut self, other: Set) -> Set {
        self.add(other);
        self
    }

    fn add(&mut self, other: Set) {
        if self.is_empty() {
            *self = other;
            return;
        }
        for (element, node) in other.0 {
            match self.0.entry(element) {
                Entry::Vacant(place) => _ = place.insert(node),
                Entry::Occupied(place) => {
                    let own = place.into_mut();
                    own.is_member |= node.is_member;
                    own.below.add(node.below);
                }
            }
        }
    }

    pub fn intersection(&self, other: &Set) -> Set {
        let mut both = Set::default();
        for (element, node) in &self.0 {
            if let Some(of_other) = other.0.get(element) {
                both.insert_node(
                    element.clone(),
                    Node {
                        is_member: node.is_member && of_other.is_member,
                        below: node.below.intersection(&of_other.below),
                    },
                );
            }
        }
        both
    }

    /// The members of this set that are not members of the other; what lies below those of the other stays.
    pub fn difference(self, other: &Set) -> Set {
        self.without(other, Below::Stays)
    }

    /// The same, but what lies below the members of the other goes too.
    pub fn recursive_difference(self, other: &Set) -> Set {
        self.without(other, Below::Goes)
    }

    fn without(mut self, other: &Set, below: Below) -> Set {
        if other.is_empty() {
            return self;
        }
        self.0.retain(|element, node| {
            let Some(of_other) = other.0.get(element) else { return true };
            if of_other.is_member {
                if below == Below::Goes {
                    return false;
                }
                node.is_member = false;
            }
            node.below = std::mem::take(&mut node.below).without(&of_other.below, below);
            !node.is_empty()
        });
        self
    }

    /// The path of every member, those of one level before those below it.
    pub fn paths(&self) -> Vec<Vec<Element>> {
        let (mut paths, mut at) = (Vec::new(), Vec::new());
        self.collect(&mut at, &mut paths);
        paths
    }

    fn collect(&self, at: &mut Vec<Element>, paths: &mut Vec<Vec<Element>>) {
        for (element, _) in self.0.iter().filter(|(_, node)| node.is_member) {
            let mut path = at.clone();
            path.push(element.clone());
            paths.push(path);
        }
        for (element, node) in self.0.iter().filter(|(_, node)| !node.below.is_empty()) {
            at.push(element.clone());
            node.below.collect(at, paths);
            at.pop();
        }
    }

    /// Reads `FieldsV1`. Steps of kinds that are not known are left out.
    pub fn from_json(fields: &Value) -> Result<Set, ReadError> {
        Ok(Node::from_json(fields)?.below)
    }

    /// As `FieldsV1`.
    pub fn to_json(&self) -> Value {
        Value::Object(self.0.iter().map(|(element, node)| (element.text(), node.to_json())).collect())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Below {
    Stays,
    Goes,
}

impl Node {
    fn from_json(fields: &Value) -> Result<Node, ReadError> {
        let (mut node, no_fields) = (Node::default(), Map::new());
        for (text, below) in fields.as_object().unwrap_or(&no_fields) {
            if text == "." {
                node.is_member = true;
            } else if let Some(element) = Element::read(text)? {
                let below = Node::from_json(below)?;
                // Texts that differ may be the same step.
                node.below.add(Set(BTreeMap::from([(element, below)])));
            }
        }
        if node.below.is_empty() {
            node.is_member = true;
        }
        Ok(node)
    }

    fn to_json(&self) -> Value {
        if self.below.is_empty() {
            return Value::Object(Map::new());
        }
        let mut fields = self.below.to_json();
        if let (true, Value::Object(map)) = (self.is_member, &mut fields) {
            map.insert(".".into(), Node::MEMBER.to_json());
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn set(fields: Value) -> Set {
        Set::from_json(&fields).unwrap()
    }

    #[test]
    fn sets_are_written_as_they_were_read() {
        let fields =
            json!({"f:a": {".": {}, "k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}, "f:b": {"v:1": {}}});
        assert_eq!(set(fields.clone()).to_json(), fields);
        assert_eq!(set(json!({"f:a": {"r:later": {}}})).to_json(), json!({"f:a": {}}));
        assert_eq!(
            set(json!({"f:a": {"v:1": {}, "v:1.0": {"f:b": {}}}})).to_json(),
            json!({"f:a": {"v:1": {".": {}, "f:b": {}}}})
        );
        assert!(Set::from_json(&json!({"f:a": {"k:x": {}}})).is_err());
    }

    #[test]
    fn a_difference_leaves_what_lies_below_unless_it_is_asked_to_take_it() {
        let all = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let a = set(json!({"f:a": {}}));
        assert_eq!(all.clone().difference(&a), set(json!({"f:a": {"f:b": {}}, "f:c": {}})));
        assert_eq!(all.clone().recursive_difference(&a), set(json!({"f:c": {}})));
        assert_eq!(
            all.clone().difference(&set(json!({"f:a": {"f:b": {}}}))),
            set(json!({"f:a": {}, "f:c": {}}))
        );
        assert_eq!(
            all.intersection(&set(json!({"f:a": {"f:b": {}}, "f:d": {}}))),
            set(json!({"f:a": {"f:b": {}}}))
        );
    }

    #[test]
    fn paths_are_told_level_by_level() {
        let all = set(json!({"f:a": {"f:b": {}}, "f:c": {}}));
        let shown: Vec<String> = all.paths().iter().map(|path| super::super::shown_path(path)).collect();
        assert_eq!(shown, [".c", ".a.b"]);
    }

    fn any_set() -> impl Strategy<Value = Set> {
        let step = prop_oneof![Just("f:a"), Just("f:b"), Just("k:{\"n\":1}"), Just("v:2")];
        let path = prop::collection::vec(step, 1..4);
        prop::collection::vec(path, 0..8).prop_map(|paths| {
            let mut set = Set::default();
            for path in paths {
                let path: Vec<Element> =
                    path.iter().map(|text| Element::read(text).unwrap().unwrap()).collect();
                set.insert(&path);
            }
            set
        })
    }

    proptest! {
        #[test]
        fn sets_are_sets(a in any_set(), b in any_set()) {
            let has = |set: &Set, path: &[Element]| set.has(path);
            let all = a.clone().union(b.clone());
            for path in all.paths() {
                let (in_a, in_b) = (has(&a, &path), has(&b, &path));
                prop_assert!(in_a || in_b);
                prop_assert_eq!(has(&a.intersection(&b), &path), in_a && in_b);
                prop_assert_eq!(has(&a.clone().difference(&b), &path), in_a && !in_b);
            }
            prop_assert!(a.clone().difference(&a).is_empty());
            prop_assert_eq!(Set::from_json(&all.to_json()).unwrap(), all);
        }
    }
}
