//! Nobody grants what they do not have: who writes a role must hold all of its rules, or have the verb `escalate` on it; who
//! writes a binding all of the role's, or the verb `bind`.
//!
//! Source: upstream's policy-based storage of the four kinds.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status};

use super::Rbac;
use super::index::RoleKey;
use super::rule::{ANY, Names, PolicyRule, covers_path, has, names, rules_of};
use crate::auth::attributes::Attributes;
use crate::auth::{MASTERS, UserInfo};
use crate::request::RequestInfo;

const GROUP: &str = "rbac.authorization.k8s.io";
/// Pairs of a verb and an object that one role may be taken apart into: a small document can name very many.
const MAX_PARTS: usize = 50_000;
/// How many rules a refusal names.
const MAX_NAMED: usize = 100;

/// A role names more than can be compared.
#[derive(Debug)]
pub(super) struct TooMany;

/// What is to be written, and by whom.
pub(crate) struct Grant<'a> {
    pub(crate) user: &'a UserInfo,
    pub(crate) info: &'a RequestInfo,
    pub(crate) kind: &'a Kind,
    pub(crate) new: &'a Object,
    pub(crate) old: Option<&'a Object>,
}

/// Whether writing objects of a kind grants something.
pub(crate) fn grants(kind: &Kind) -> bool {
    kind.group == GROUP
}

/// What lets somebody grant more than they hold, if they may do it.
pub(crate) struct Exempt {
    /// `bind` on the role that is bound; `None` is `escalate` on the role that is written.
    bound: Option<RoleKey>,
}

impl Exempt {
    /// The question that all authorizers are asked.
    pub(crate) fn attributes<'a>(&'a self, grant: &Grant<'a>) -> Attributes<'a> {
        let (verb, resource, name) = match &self.bound {
            None => ("escalate", grant.kind.plural.as_str(), grant.info.name.as_str()),
            Some(role) => ("bind", role.plural(), &*role.name),
        };
        let namespace = grant.info.namespace.as_str();
        Attributes { namespace, name, ..Attributes::on(grant.user, verb, GROUP, resource) }
    }
}

impl Rbac {
    /// Compares with the rules that the writer holds, which only roles say: no other authorizer can list what it allows.
    ///
    /// # Errors
    /// 403 with the rules that the writer does not hold, 404 for a role that is not there.
    pub(crate) fn check_held(&self, grant: &Grant<'_>, unless: &Exempt) -> Result<(), Status> {
        let Some(role) = &unless.bound else { return self.check_role(grant) };
        let Some(rules) = self.index.rules(role) else {
            return Err(Status::not_found(GROUP, role.plural(), &role.name));
        };
        self.check_rules(grant, &rules)
    }

    fn check_role(&self, grant: &Grant<'_>) -> Result<(), Status> {
        let wanted: Vec<PolicyRule> = rules_of(grant.new);
        self.check_rules(grant, &wanted)?;
        let aggregates = |role: &Object| {
            role["aggregationRule"]["clusterRoleSelectors"].as_array().is_some_and(|all| !all.is_empty())
        };
        if (aggregates(grant.new) || grant.old.is_some_and(aggregates))
            && self.check_rules(grant, &everything()).is_err()
        {
            return Err(grant.forbidden("must have cluster-admin privileges to use the aggregationRule"));
        }
        Ok(())
    }

    fn check_rules(&self, grant: &Grant<'_>, wanted: &[PolicyRule]) -> Result<(), Status> {
        let (held, unresolved) = self.held(grant.user, &grant.info.namespace);
        let held: Vec<PolicyRule> = held.iter().flat_map(|rules| rules.iter().cloned()).collect();
        let lacking = missing(&held, wanted).map_err(|TooMany| {
            grant.forbidden("the role combines more verbs, groups, resources and names than can be compared")
        })?;
        if lacking.is_empty() {
            return Ok(());
        }
        let user = grant.user;
        let lines: BTreeSet<String> = compact(lacking).iter().map(said).collect();
        let more = lines.len().saturating_sub(MAX_NAMED);
        let mut lines: Vec<String> = lines.into_iter().take(MAX_NAMED).collect();
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        let mut why = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            quoted(user.groups.iter().map(String::as_str)),
            lines.join("\n")
        );
        if !unresolved.is_empty() {
            why = format!("{why}; resolution errors: [{}]", super::together(unresolved));
        }
        Err(grant.forbidden(&why))
    }
}

impl Grant<'_> {
    /// What is to be asked first; `None` if anybody may write this who may write at all.
    pub(crate) fn asked(&self) -> Option<Exempt> {
        if self.user.is_in(MASTERS) || self.old.is_some_and(|old| only_for_collection(self.new, old)) {
            return None;
        }
        if !self.kind.plural.ends_with("bindings") {
            return Some(Exempt { bound: None });
        }
        // What is no role is refused by the rules of the kind.
        let role = RoleKey::referred(&self.new["roleRef"], &self.info.namespace)?;
        Some(Exempt { bound: Some(role) })
    }

    fn forbidden(&self, why: &str) -> Status {
        Status::forbidden(GROUP, &self.kind.plural, self.new.name(), why)
    }
}

/// Whether an update is only what the garbage collector does: owners and finalizers.
pub(crate) fn only_for_collection(new: &Object, old: &Object) -> bool {
    let rest = |object: &Object| {
        let mut rest = object.clone();
        if let Some(metadata) = rest["metadata"].as_object_mut() {
            for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion", "generation"] {
                metadata.remove(field);
            }
        }
        rest
    };
    rest(new) == rest(old)
}

/// What an aggregated role may come to have.
fn everything() -> [PolicyRule; 2] {
    let any = || names([ANY]);
    [
        PolicyRule { verbs: any(), groups: any(), resources: any(), ..PolicyRule::default() },
        PolicyRule { verbs: any(), paths: any(), ..PolicyRule::default() },
    ]
}

/// What of some rules others do not cover, in rules of one verb and one thing each.
pub(super) fn missing(held: &[PolicyRule], wanted: &[PolicyRule]) -> Result<Vec<PolicyRule>, TooMany> {
    let mut lacking = Vec::new();
    let mut parts = 0_usize;
    for rule in wanted {
        // A list that is empty costs a look all the same: what a rule must have is checked later.
        let lists = [&rule.groups, &rule.resources, &rule.names].map(|list| list.len().max(1));
        let things = lists.into_iter().fold(1_usize, usize::saturating_mul).saturating_add(rule.paths.len());
        parts = parts.saturating_add(things.saturating_mul(rule.verbs.len()));
        if parts > MAX_PARTS {
            return Err(TooMany);
        }
        for verb in &rule.verbs {
            let of_verb: Vec<&PolicyRule> = held.iter().filter(|held| has(&held.verbs, verb)).collect();
            for group in &rule.groups {
                let of_group: Vec<&PolicyRule> =
                    of_verb.iter().filter(|held| has(&held.groups, group)).copied().collect();
                lacking.extend(missing_resources(&of_group, rule, verb, group));
            }
            let paths = rule.paths.iter().filter(|path| {
                !of_verb.iter().any(|held| held.paths.iter().any(|pattern| covers_path(pattern, path)))
            });
            lacking.extend(paths.map(|path| PolicyRule {
                verbs: names([&**verb]),
                paths: names([&**path]),
                ..PolicyRule::default()
            }));
        }
    }
    Ok(lacking)
}

/// The same for the resources of one rule, of one verb and group.
fn missing_resources(held: &[&PolicyRule], rule: &PolicyRule, verb: &str, group: &str) -> Vec<PolicyRule> {
    let mut lacking = Vec::new();
    for resource in &rule.resources {
        let of_resource: Vec<&&PolicyRule> =
            held.iter().filter(|held| covers_resource(&held.resources, resource)).collect();
        if of_resource.iter().any(|held| held.names.is_empty()) {
            continue;
        }
        let part = |name: Option<&str>| PolicyRule {
            verbs: names([verb]),
            groups: names([group]),
            resources: names([&**resource]),
            names: names(name),
            paths: Box::default(),
        };
        if rule.names.is_empty() {
            lacking.push(part(None));
        }
        let not_held =
            rule.names.iter().filter(|name| !of_resource.iter().any(|held| held.names.contains(name)));
        lacking.extend(not_held.map(|name| part(Some(name))));
    }
    lacking
}

fn covers_resource(held: &[Box<str>], wanted: &str) -> bool {
    has(held, wanted)
        || wanted.split_once('/').is_some_and(|(_, sub)| {
            held.iter().any(|one| one.split_once('/').is_some_and(|(of, s)| of == ANY && s == sub))
        })
}

/// Puts the verbs for one thing together.
fn compact(rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut verbs: BTreeMap<[Names; 4], Vec<Box<str>>> = BTreeMap::new();
    let mut compacted = Vec::new();
    for rule in rules {
        if rule.paths.is_empty() {
            let thing = [rule.groups, rule.resources, rule.names, rule.paths];
            verbs.entry(thing).or_default().extend(rule.verbs);
        } else {
            compacted.push(rule);
        }
    }
    compacted.extend(verbs.into_iter().map(|([groups, resources, names, paths], verbs)| PolicyRule {
        verbs: verbs.into(),
        groups,
        resources,
        names,
        paths,
    }));
    compacted
}

/// A rule as upstream's refusals write it.
fn said(rule: &PolicyRule) -> String {
    let lists = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.paths),
        ("ResourceNames", &rule.names),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> = lists
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted(list.iter().map(|one| &**one))))
        .collect();
    format!("{{{}}}", parts.join(", "))
}

fn quoted<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    let quoted: Vec<String> = texts.map(|text| Value::from(text).to_string()).collect();
    format!("[{}]", quoted.join(" "))
}
