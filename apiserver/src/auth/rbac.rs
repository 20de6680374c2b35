//! Role-based access control: what a user may do is what the roles allow that are bound to them, to their groups or to the
//! service account that they are.
//!
//! | file | what |
//! |---|---|
//! | `rule` | one rule of a role, and what it allows |
//! | `index` | all roles and bindings, by subject |
//! | `escalation` | nobody grants what they do not have |
//! | `policy` | the roles and bindings that every cluster has |
//!
//! Source: upstream's RBAC authorizer, to the wording of its reasons.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::UserInfo;
use super::attributes::{Attributes, Authorizer, Decision, RuleList};

mod escalation;
mod index;
mod policy;
mod rule;

pub(crate) use escalation::{Grant, grants, only_for_collection};
pub(crate) use index::{RoleIndex, observers};
pub use policy::PolicyError;
pub(crate) use policy::{Expected, Policy, completed};
pub(crate) use rule::PolicyRule;

/// How many roles that are not there are named in a refusal.
const MAX_NAMED: usize = 20;

pub(crate) struct Rbac {
    index: Arc<RoleIndex>,
}

impl Rbac {
    pub(crate) fn new(index: Arc<RoleIndex>) -> Rbac {
        Rbac { index }
    }

    /// The rules that a user has, those of one role together, and which roles are bound to them and are not there.
    fn held(&self, user: &UserInfo, namespace: &str) -> (Vec<Arc<[PolicyRule]>>, Vec<String>) {
        let (mut held, mut missing) = (Vec::new(), Vec::new());
        self.index.visit::<()>(user, namespace, |source, rules| {
            match rules {
                Some(rules) => held.push(rules.clone()),
                None => missing.push(not_found(source)),
            }
            ControlFlow::Continue(())
        });
        (held, missing)
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, asked: &Attributes<'_>) -> Decision {
        let mut missing = Vec::new();
        let allowed = self.index.visit(asked.user, asked.namespace, |source, rules| match rules {
            Some(rules) if rules.iter().any(|rule| rule.allows(asked)) => {
                ControlFlow::Break(format!("RBAC: allowed by {source}"))
            }
            Some(_) => ControlFlow::Continue(()),
            None => {
                if missing.len() < MAX_NAMED {
                    missing.push(not_found(source));
                }
                ControlFlow::Continue(())
            }
        });
        match allowed {
            Some(reason) => Decision::allow(reason),
            None if missing.is_empty() => Decision::none(""),
            None => Decision::none(format!("RBAC: {}", together(missing))),
        }
    }

    fn rules_of(&self, user: &UserInfo, namespace: &str) -> RuleList {
        let (held, missing) = self.held(user, namespace);
        let mut list = RuleList::default();
        for rule in held.iter().flat_map(|rules| rules.iter()) {
            if !rule.resources.is_empty() {
                list.resources.push(PolicyRule { paths: Box::default(), ..rule.clone() }.to_json());
            }
            if !rule.paths.is_empty() {
                let paths = PolicyRule {
                    verbs: rule.verbs.clone(),
                    paths: rule.paths.clone(),
                    ..PolicyRule::default()
                };
                list.paths.push(paths.to_json());
            }
        }
        if !missing.is_empty() {
            list.error = Some(together(missing));
        }
        list
    }
}

fn not_found(source: &index::Source<'_>) -> String {
    let role = source.role;
    format!("{}.rbac.authorization.k8s.io {:?} not found", role.kind().to_lowercase(), role.name)
}

/// Several errors as one, each once.
fn together(mut errors: Vec<String>) -> String {
    let mut said = std::collections::HashSet::new();
    errors.retain(|error| said.insert(error.clone()));
    match &errors[..] {
        [one] => one.clone(),
        _ => format!("[{}]", errors.join(", ")),
    }
}

#[cfg(test)]
mod tests;
