//! Who may do what, by subject: what a decision costs follows what is granted to who asks, not how many bindings there are.
//!
//! Kept by the dispatcher of the caches, which observes the four kinds: a grant counts as soon as its binding can be read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;
use skiff_api::Object;

use super::rule::{PolicyRule, rules_of};
use crate::auth::{SERVICE_ACCOUNT_PREFIX, UserInfo};
use crate::cache::Observer;

pub(super) type Rules = Arc<[PolicyRule]>;

/// A Role, or where the namespace is empty a ClusterRole.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RoleKey {
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
}

impl RoleKey {
    /// Of a binding's reference; `None` for what is no role.
    pub(super) fn referred(reference: &Value, namespace: &str) -> Option<RoleKey> {
        let name = reference["name"].as_str()?.into();
        match reference["kind"].as_str()? {
            "ClusterRole" => Some(RoleKey { namespace: Box::default(), name }),
            "Role" if !namespace.is_empty() => Some(RoleKey { namespace: namespace.into(), name }),
            _ => None,
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        if self.namespace.is_empty() { "ClusterRole" } else { "Role" }
    }

    pub(super) fn plural(&self) -> &'static str {
        if self.namespace.is_empty() { "clusterroles" } else { "roles" }
    }
}

/// In the order in which they are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SubjectKind {
    User,
    /// By its user name.
    Account,
    Group,
}

type Subject = (SubjectKind, Box<str>);
/// Its namespace, if it has one, and its name.
type BindingKey = (Box<str>, Box<str>);
/// The roles that somebody has in each namespace, by which bindings; everywhere, if the namespace is empty.
type Grants = HashMap<Box<str>, BTreeMap<RoleKey, BTreeSet<Box<str>>>>;

#[derive(Default)]
struct State {
    roles: HashMap<RoleKey, Rules>,
    bindings: HashMap<BindingKey, (RoleKey, Vec<Subject>)>,
    /// By kind of subject, then by name.
    granted: [HashMap<Box<str>, Grants>; 3],
}

/// All roles and bindings.
#[derive(Default)]
pub(crate) struct RoleIndex {
    state: RwLock<State>,
}

/// How somebody comes to have a rule.
pub(super) struct Source<'s> {
    kind: SubjectKind,
    subject: &'s str,
    namespace: &'s str,
    binding: &'s str,
    pub(super) role: &'s RoleKey,
}

/// In upstream's words, which people search for.
impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Source { namespace, binding, role, .. } = self;
        if namespace.is_empty() {
            write!(f, "ClusterRoleBinding {binding:?}")?;
        } else {
            write!(f, "RoleBinding {:?}", format!("{binding}/{namespace}"))?;
        }
        write!(f, " of {} {:?} to ", role.kind(), role.name)?;
        match self.kind {
            SubjectKind::User => write!(f, "User {:?}", self.subject),
            SubjectKind::Group => write!(f, "Group {:?}", self.subject),
            SubjectKind::Account => {
                let account = self.subject.strip_prefix(SERVICE_ACCOUNT_PREFIX).unwrap_or(self.subject);
                let (namespace, name) = account.split_once(':').unwrap_or(("", account));
                write!(f, "ServiceAccount {:?}", format!("{name}/{namespace}"))
            }
        }
    }
}

impl RoleIndex {
    /// Shows each role that a user has in a namespace and in the whole cluster, until told to stop. A role that is bound and
    /// is not there has no rules.
    pub(super) fn visit<B>(
        &self,
        user: &UserInfo,
        namespace: &str,
        mut visit: impl FnMut(&Source<'_>, Option<&Rules>) -> ControlFlow<B>,
    ) -> Option<B> {
        let state = self.state.read();
        let named = [(SubjectKind::User, &user.name), (SubjectKind::Account, &user.name)];
        let grouped = user.groups.iter().map(|group| (SubjectKind::Group, group));
        let subjects: Vec<(SubjectKind, &str, &Grants)> = named
            .into_iter()
            .chain(grouped)
            .filter_map(|(kind, name)| {
                let (name, grants) = state.granted[kind as usize].get_key_value(name.as_str())?;
                Some((kind, &**name, grants))
            })
            .collect();
        let places = ["", namespace];
        let n_places = if namespace.is_empty() { 1 } else { 2 };
        for place in places.into_iter().take(n_places) {
            for (kind, subject, grants) in &subjects {
                for (role, bindings) in grants.get(place).into_iter().flatten() {
                    let binding = bindings.first().map_or("", |name| &**name);
                    let source = Source { kind: *kind, subject, namespace: place, binding, role };
                    if let ControlFlow::Break(found) = visit(&source, state.roles.get(role)) {
                        return Some(found);
                    }
                }
            }
        }
        None
    }

    pub(super) fn rules(&self, role: &RoleKey) -> Option<Rules> {
        self.state.read().roles.get(role).cloned()
    }
}

impl State {
    fn bind(&mut self, key: BindingKey, role: RoleKey, subjects: Vec<Subject>) {
        for (kind, name) in &subjects {
            let grants = self.granted[*kind as usize].entry(name.clone()).or_default();
            let roles = grants.entry(key.0.clone()).or_default();
            roles.entry(role.clone()).or_default().insert(key.1.clone());
        }
        self.bindings.insert(key, (role, subjects));
    }

    fn unbind(&mut self, key: &BindingKey) {
        let Some((role, subjects)) = self.bindings.remove(key) else { return };
        for (kind, name) in subjects {
            let granted = &mut self.granted[kind as usize];
            let Some(grants) = granted.get_mut(&name) else { continue };
            if let Some(roles) = grants.get_mut(&key.0) {
                if let Some(bindings) = roles.get_mut(&role) {
                    bindings.remove(&key.1);
                    if bindings.is_empty() {
                        roles.remove(&role);
                    }
                }
                if roles.is_empty() {
                    grants.remove(&key.0);
                }
            }
            if grants.is_empty() {
                granted.remove(&name);
            }
        }
    }
}

/// Whom a binding is for. An account without a namespace is of the binding's.
fn subjects(binding: &Object, namespace: &str) -> Vec<Subject> {
    let all = binding["subjects"].as_array().into_iter().flatten();
    all.filter_map(|subject| {
        let name = subject["name"].as_str()?;
        match subject["kind"].as_str()? {
            "User" => Some((SubjectKind::User, name.into())),
            "Group" => Some((SubjectKind::Group, name.into())),
            "ServiceAccount" => {
                let of = subject["namespace"].as_str().filter(|of| !of.is_empty()).unwrap_or(namespace);
                let user = format!("{SERVICE_ACCOUNT_PREFIX}{of}:{name}");
                (!of.is_empty()).then(|| (SubjectKind::Account, user.into()))
            }
            _ => None,
        }
    })
    .collect()
}

/// What the index sees of one of the four kinds.
struct Seen {
    index: Arc<RoleIndex>,
    are_bindings: bool,
    are_namespaced: bool,
}

/// Those who keep an index, each with the folder of its resource.
pub(crate) fn observers(index: &Arc<RoleIndex>) -> [(&'static str, Arc<dyn Observer>); 4] {
    let seen = |are_bindings, are_namespaced| -> Arc<dyn Observer> {
        Arc::new(Seen { index: index.clone(), are_bindings, are_namespaced })
    };
    [
        ("clusterroles", seen(false, false)),
        ("roles", seen(false, true)),
        ("clusterrolebindings", seen(true, false)),
        ("rolebindings", seen(true, true)),
    ]
}

impl Observer for Seen {
    fn changed(&self, key: &str, object: Option<&Object>) {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let mut state = self.index.state.write();
        if self.are_bindings {
            let key = (namespace.into(), name.into());
            state.unbind(&key);
            let role = object.and_then(|object| RoleKey::referred(&object["roleRef"], namespace));
            if let Some((object, role)) = object.zip(role) {
                state.bind(key, role, subjects(object, namespace));
            }
            return;
        }
        let key = RoleKey { namespace: namespace.into(), name: name.into() };
        match object {
            Some(role) => state.roles.insert(key, rules_of(role)),
            None => state.roles.remove(&key),
        };
    }

    fn cleared(&self) {
        let is_seen = |namespace: &str| namespace.is_empty() != self.are_namespaced;
        let mut state = self.index.state.write();
        if self.are_bindings {
            let seen: Vec<_> =
                state.bindings.keys().filter(|(namespace, _)| is_seen(namespace)).cloned().collect();
            seen.iter().for_each(|key| state.unbind(key));
        } else {
            state.roles.retain(|role, _| !is_seen(&role.namespace));
        }
    }
}
