//! Label selectors that are told apart by what they say, and an index that finds those that select something. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use skiff_api::LabelSelector;

pub(crate) type Labels = BTreeMap<String, String>;

/// A selector. Two that ask for the same in the same order are equal. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Selector(Arc<Inner>);

struct Inner {
    text: String,
    selector: LabelSelector,
}

impl Selector {
    /// One that selects everything.
    pub(crate) fn everything() -> Selector {
        Selector::new(LabelSelector::default())
    }

    /// `None` for one that cannot be read: what it would select is not known.
    pub(crate) fn of(selector: &meta::LabelSelector) -> Option<Selector> {
        let value = serde_json::to_value(selector).ok()?;
        LabelSelector::from_json(&value).ok().map(Selector::new)
    }

    fn new(selector: LabelSelector) -> Selector {
        let mut text = String::new();
        for (key, operator, values) in selector.requirements() {
            // Keys and values have neither spaces nor commas.
            let _ = write!(text, "{key} {operator} {};", values.join(","));
        }
        Selector(Arc::new(Inner { text, selector }))
    }

    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.0.selector.matches(|key| labels.get(key).map(String::as_str))
    }

    /// A label, and the values of which it must have one: what the selector can be found by.
    pub(crate) fn anchor(&self) -> Option<(&str, &[String])> {
        let requirements = self.0.selector.requirements().into_iter();
        let mut equalities = requirements.filter(|(_, operator, _)| *operator == "In");
        equalities.next().map(|(key, _, values)| (key, values))
    }

    pub(crate) fn text(&self) -> &str {
        &self.0.text
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Selector) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Selector {}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Selector) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Selector {
    fn cmp(&self, other: &Selector) -> std::cmp::Ordering {
        self.text().cmp(other.text())
    }
}

impl Hash for Selector {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text().hash(state);
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}", self.text())
    }
}

/// Finds what selects some labels. Selectors that ask for a value lie under it, so that those for other values are not looked at.
#[derive(Debug)]
pub(crate) struct SelectorIndex<T> {
    /// By label and value.
    anchored: HashMap<String, HashMap<String, HashSet<(Selector, T)>>>,
    others: HashSet<(Selector, T)>,
}

impl<T> Default for SelectorIndex<T> {
    fn default() -> SelectorIndex<T> {
        SelectorIndex { anchored: HashMap::new(), others: HashSet::new() }
    }
}

impl<T: Clone + Eq + Hash> SelectorIndex<T> {
    pub(crate) fn insert(&mut self, selector: &Selector, what: &T) {
        let entry = (selector.clone(), what.clone());
        let Some((label, values)) = selector.anchor() else {
            self.others.insert(entry);
            return;
        };
        let of_label = self.anchored.entry(label.to_owned()).or_default();
        for value in values {
            of_label.entry(value.clone()).or_default().insert(entry.clone());
        }
    }

    pub(crate) fn remove(&mut self, selector: &Selector, what: &T) {
        let entry = (selector.clone(), what.clone());
        let Some((label, values)) = selector.anchor() else {
            self.others.remove(&entry);
            return;
        };
        let Some(of_label) = self.anchored.get_mut(label) else { return };
        for value in values {
            if let Some(entries) = of_label.get_mut(value) {
                entries.remove(&entry);
                if entries.is_empty() {
                    of_label.remove(value);
                }
            }
        }
        if of_label.is_empty() {
            self.anchored.remove(label);
        }
    }

    /// Each once, in no order.
    pub(crate) fn matching<'i>(&'i self, labels: &'i Labels) -> impl Iterator<Item = &'i T> {
        // A label has one value: no selector is met under two.
        let anchored = labels.iter().filter_map(|(label, value)| self.anchored.get(label)?.get(value));
        let all = anchored.flatten().chain(&self.others);
        all.filter(|(selector, _)| selector.matches(labels)).map(|(_, what)| what)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.anchored.is_empty() && self.others.is_empty()
    }
}
