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

use serde_json::{Map, Value};

use super::element::{Element, ReadError};

/// Ordered by element, each there once: a set is read and made much more often than it is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set(Vec<(Element, Node)>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) is_member: bool,
    pub(super) below: Set,
}

impl Node {
    pub(super) const MEMBER: Node = Node { is_member: true, below: Set(Vec::new()) };

    pub(super) fn is_empty(&self) -> bool {
        !self.is_member && self.below.is_empty()
    }
}

impl Set {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The set of these fields of objects: `["metadata", "name"]`.
    pub fn of_fields(paths: &[&[&str]]) -> Set {
        paths.iter().fold(Set::default(), |set, path| {
            let member = path.iter().rev().fold(Node::MEMBER, |below, name| Node {
                is_member: false,
                below: Set(vec![(Element::field(name), below)]),
            });
            set.union(member.below)
        })
    }

    /// Adds what is known of one element, which comes after all that are there.
    pub(super) fn push(&mut self, element: Element, node: Node) {
        debug_assert!(self.0.last().is_none_or(|(last, _)| *last < element), "elements come in their order");
        if !node.is_empty() {
            self.0.push((element, node));
        }
    }

    fn find(&self, element: &Element) -> Option<&Node> {
        let at = self.0.binary_search_by(|(own, _)| own.cmp(element)).ok()?;
        self.0.get(at).map(|(_, node)| node)
    }

    pub fn has(&self, path: &[Element]) -> bool {
        let Some((last, above)) = path.split_last() else { return false };
        let mut at = self;
        for element in above {
            match at.find(element) {
                Some(node) => at = &node.below,
                None => return false,
            }
        }
        at.has_member(last)
    }

    pub(super) fn has_member(&self, element: &Element) -> bool {
        self.find(element).is_some_and(|node| node.is_member)
    }

    /// What lies below one element, if anything does.
    pub(super) fn below(&self, element: &Element) -> Option<&Set> {
        self.find(element).map(|node| &node.below).filter(|below| !below.is_empty())
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (&Element, &Node)> {
        self.0.iter().map(|(element, node)| (element, node))
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
        if other.is_empty() {
            return;
        }
        let mut all = Vec::with_capacity(self.0.len() + other.0.len());
        let mut others = other.0.into_iter().peekable();
        for (element, mut node) in std::mem::take(&mut self.0) {
            while let Some(before) = others.next_if(|(other, _)| *other < element) {
                all.push(before);
            }
            if let Some((_, same)) = others.next_if(|(other, _)| *other == element) {
                node.add(same);
            }
            all.push((element, node));
        }
        all.extend(others);
        self.0 = all;
    }

    pub fn intersection(&self, other: &Set) -> Set {
        let mut both = Set::default();
        let mut others = other.0.iter().peekable();
        for (element, node) in &self.0 {
            while others.next_if(|(other, _)| other < element).is_some() {}
            if let Some((_, of_other)) = others.next_if(|(other, _)| other == element) {
                let is_member = node.is_member && of_other.is_member;
                let below = node.below.intersection(&of_other.below);
                both.push_with(element, Node { is_member, below });
            }
        }
        both
    }

    /// The same for an element that is somebody else's.
    pub(super) fn push_with(&mut self, element: &Element, node: Node) {
        if !node.is_empty() {
            self.push(element.clone(), node);
        }
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
        let mut others = other.0.iter().peekable();
        self.0.retain_mut(|(element, node)| {
            while others.next_if(|(other, _)| *other < *element).is_some() {}
            let Some((_, of_other)) = others.next_if(|(other, _)| *other == *element) else { return true };
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

impl Node {
    pub(super) fn add(&mut self, other: Node) {
        self.is_member |= other.is_member;
        self.below.add(other.below);
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
        let below = &mut node.below.0;
        for (text, fields) in fields.as_object().unwrap_or(&no_fields) {
            if text == "." {
                node.is_member = true;
            } else if let Some(element) = Element::read(text)? {
                below.push((element, Node::from_json(fields)?));
            }
        }
        // The texts are in order, which is that of the elements but for numbers; texts that differ may be the same step.
        below.sort_by(|(a, _), (b, _)| a.cmp(b));
        below.dedup_by(|(later, of_later), (element, node)| {
            let is_same = later.cmp(&element).is_eq();
            if is_same {
                node.add(std::mem::take(of_later));
            }
            is_same
        });
        if below.is_empty() {
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
                let steps = path.iter().rev().map(|text| Element::read(text).unwrap().unwrap());
                let member = steps.fold(Node::MEMBER, |below, step| Node {
                    is_member: false,
                    below: Set(vec![(step, below)]),
                });
                set.add(member.below);
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
