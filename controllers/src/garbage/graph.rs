//! Who owns whom, as far as the watches have told.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use skiff_client::ServedResource;

use super::plan::{FOREGROUND, ORPHAN};

/// One object, as far as ownership goes.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) kind: Arc<ServedResource>,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    pub(super) finalizers: Vec<String>,
}

impl Entry {
    pub(super) fn has_finalizer(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| f == finalizer)
    }

    /// Being deleted in the foreground: it goes after its dependents.
    pub(super) fn waits_for_dependents(&self) -> bool {
        self.deleting && self.has_finalizer(FOREGROUND)
    }

    /// Being deleted, and waiting for the collector.
    pub(super) fn waits_for_us(&self) -> bool {
        self.deleting && (self.has_finalizer(FOREGROUND) || self.has_finalizer(ORPHAN))
    }

    /// Whether it blocks the deletion of an owner that waits for its dependents.
    pub(super) fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|o| o.uid == owner && o.block_owner_deletion == Some(true))
    }

    /// Whether a reference of `dependent`'s names this object, and not only its uid.
    fn is_named_by(&self, dependent: &Entry, owner: &OwnerReference) -> bool {
        let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
        self.name == owner.name
            && self.kind.kind == owner.kind
            && self.kind.group == group
            && (self.namespace.is_none() || self.namespace == dependent.namespace)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Awaited {
    /// Dependents that nobody has begun to delete.
    pub(super) remaining: Vec<String>,
    /// Whether the owner has to wait for any.
    pub(super) blocks: bool,
}

#[derive(Default)]
pub(super) struct Graph {
    entries: HashMap<String, Entry>,
    /// Owner's uid to its dependents' uids; an owner need not be known.
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Entry> {
        self.entries.get(uid)
    }

    /// Takes an object's newest state. Answers whose look it is worth: its own, and that of owners that wait for
    /// their dependents.
    pub(super) fn put(&mut self, uid: String, entry: Entry) -> Vec<String> {
        // An owner that was let go of may have waited for just this one.
        let mut owners: HashSet<String> = self.unlink(&uid).into_iter().collect();
        for owner in &entry.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            owners.insert(owner.uid.clone());
        }
        let mut look = self.waiting_among(owners);
        if entry.waits_for_us() || !self.all_solid(&entry) {
            look.push(uid.clone());
        }
        self.entries.insert(uid, entry);
        look
    }

    /// Answers whose look an object's end is worth: its dependents', and that of owners that wait.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<String> {
        let owners = self.unlink(uid);
        self.entries.remove(uid);
        let mut look = self.waiting_among(owners);
        look.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        look
    }

    /// The objects of a kind that a complete list does not hold.
    pub(super) fn not_among(&self, kind: &Arc<ServedResource>, listed: &HashSet<String>) -> Vec<String> {
        let stale = |(uid, entry): &(&String, &Entry)| {
            Arc::ptr_eq(&entry.kind, kind) && !listed.contains(uid.as_str())
        };
        self.entries.iter().filter(stale).map(|(uid, _)| uid.clone()).collect()
    }

    /// What an owner that waits for its dependents still waits for. There may be thousands of them, and it is asked each time
    /// that one is gone.
    pub(super) fn awaited_by(&self, uid: &str) -> Awaited {
        let mut awaited = Awaited::default();
        for dependent in self.dependents.get(uid).into_iter().flatten() {
            let Some(entry) = self.entries.get(dependent) else { continue };
            awaited.blocks |= entry.blocks(uid);
            if !entry.deleting {
                awaited.remaining.push(dependent.clone());
            }
        }
        awaited
    }

    /// Whether an object has dependents, and whether one of them waits for its own.
    pub(super) fn below(&self, uid: &str) -> (bool, bool) {
        let mut known =
            self.dependents.get(uid).into_iter().flatten().filter_map(|u| self.entries.get(u)).peekable();
        (known.peek().is_some(), known.any(Entry::waits_for_dependents))
    }

    pub(super) fn dependents_of(&self, uid: &str) -> Vec<(String, Entry)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|u| Some((u.clone(), self.entries.get(u)?.clone()))).collect()
    }

    /// An owner as a reference names it; `None` if it is not known under that name.
    pub(super) fn owner(&self, dependent: &Entry, owner: &OwnerReference) -> Option<&Entry> {
        self.entries.get(&owner.uid).filter(|known| known.is_named_by(dependent, owner))
    }

    /// Whether every owner is known to be there, and to wait for nobody.
    pub(super) fn all_solid(&self, entry: &Entry) -> bool {
        entry.owners.iter().all(|o| self.owner(entry, o).is_some_and(|known| !known.waits_for_dependents()))
    }

    fn waiting_among(&self, owners: impl IntoIterator<Item = String>) -> Vec<String> {
        owners.into_iter().filter(|o| self.entries.get(o).is_some_and(Entry::waits_for_us)).collect()
    }

    /// Takes an object off its owners; answers them.
    fn unlink(&mut self, uid: &str) -> Vec<String> {
        let Some(old) = self.entries.get(uid) else { return Vec::new() };
        let owners: Vec<String> = old.owners.iter().map(|o| o.uid.clone()).collect();
        for owner in &owners {
            if let Some(set) = self.dependents.get_mut(owner) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
        owners
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::discovery;

    fn entry(owners: &[&str]) -> Entry {
        let resources = discovery().now().unwrap();
        let pods = resources.preferred().find(|resource| resource.name() == "pods").unwrap();
        let reference = |uid: &&str| OwnerReference {
            uid: (*uid).into(),
            name: (*uid).into(),
            kind: "Pod".into(),
            api_version: "v1".into(),
            ..OwnerReference::default()
        };
        Entry {
            kind: pods.clone(),
            namespace: Some("d".into()),
            name: "p".into(),
            owners: owners.iter().map(reference).collect(),
            deleting: false,
            finalizers: Vec::new(),
        }
    }

    fn named(name: &str) -> Entry {
        Entry { name: name.into(), ..entry(&[]) }
    }

    #[test]
    fn the_graph_follows_changes_of_owners() {
        let mut graph = Graph::default();
        graph.put("pod".into(), entry(&["a", "b"]));
        assert_eq!(graph.dependents_of("a").len(), 1, "an owner need not be known");
        graph.put("pod".into(), entry(&["b"]));
        assert!(graph.dependents_of("a").is_empty());
        graph.remove("pod");
        assert!(graph.dependents.is_empty() && graph.entries.is_empty());
    }

    #[test]
    fn an_object_is_looked_at_only_where_an_owner_may_be_gone() {
        let mut graph = Graph::default();
        graph.put("a".into(), named("a"));
        assert!(graph.put("pod".into(), entry(&["a"])).is_empty(), "its owner is known");
        assert_eq!(graph.put("pod".into(), entry(&["a", "b"])), ["pod"]);
        assert_eq!(graph.remove("a"), ["pod"]);
        let elsewhere = Entry { namespace: Some("other".into()), ..named("a") };
        graph.put("a".into(), elsewhere);
        assert_eq!(graph.put("pod".into(), entry(&["a"])), ["pod"], "an owner of another namespace is none");
    }

    #[test]
    fn an_owner_that_waits_is_looked_at_when_its_dependent_lets_go_of_it() {
        let mut graph = Graph::default();
        let waiting = Entry { deleting: true, finalizers: vec![FOREGROUND.into()], ..named("a") };
        graph.put("pod".into(), entry(&["a"]));
        assert_eq!(graph.put("a".into(), waiting), ["a"]);
        assert_eq!(graph.put("pod".into(), entry(&[])), ["a"]);
    }

    #[test]
    fn an_owner_waits_for_those_that_block_it_and_has_the_others_deleted() {
        let mut graph = Graph::default();
        let mut blocking = entry(&["a"]);
        blocking.owners[0].block_owner_deletion = Some(true);
        graph.put("going".into(), Entry { deleting: true, ..blocking });
        graph.put("free".into(), entry(&["a"]));
        assert_eq!(graph.awaited_by("a"), Awaited { remaining: vec!["free".into()], blocks: true });
        graph.remove("going");
        assert!(!graph.awaited_by("a").blocks);
        assert_eq!(graph.awaited_by("nobody"), Awaited::default());
        let waiting = Entry { deleting: true, finalizers: vec![FOREGROUND.into()], ..entry(&["a"]) };
        assert_eq!((graph.below("a"), graph.below("free")), ((true, false), (false, false)));
        graph.put("waiting".into(), waiting);
        assert_eq!(graph.below("a"), (true, true));
    }
}
