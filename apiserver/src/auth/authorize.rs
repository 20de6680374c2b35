//! Whether they may.

use std::sync::Arc;

use skiff_api::Status;

use super::attributes::{Attributes, Authorizer, Decision, Opinion, RuleList};
use super::node::NodeAuthorizer;
use super::rbac::{Grant, Rbac};
use super::{MASTERS, UserInfo};
use crate::request::RequestInfo;

/// Several authorizers: the first with an opinion decides.
struct Union(Vec<Box<dyn Authorizer>>);

impl Authorizer for Union {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let mut reasons = Vec::new();
        for authorizer in &self.0 {
            let decision = authorizer.authorize(attributes);
            if decision.opinion != Opinion::None {
                return decision;
            }
            reasons.extend(Some(decision.reason).filter(|reason| !reason.is_empty()));
        }
        Decision::none(reasons.join("\n"))
    }

    fn rules_of(&self, user: &UserInfo, namespace: &str) -> RuleList {
        let mut all = RuleList::default();
        let mut errors = Vec::new();
        for one in self.0.iter().map(|authorizer| authorizer.rules_of(user, namespace)) {
            all.resources.extend(one.resources);
            all.paths.extend(one.paths);
            all.incomplete |= one.incomplete;
            errors.extend(one.error);
        }
        all.error = match errors.len() {
            0 | 1 => errors.pop(),
            _ => Some(format!("[{}]", errors.join(", "))),
        };
        all
    }
}

/// All that is asked whether somebody may.
pub(crate) struct Authorization {
    all: Union,
    rbac: Arc<Rbac>,
}

impl Authorization {
    pub(crate) fn new(node: NodeAuthorizer, rbac: Rbac) -> Authorization {
        let rbac = Arc::new(rbac);
        Authorization { all: Union(vec![Box::new(Masters), Box::new(node), Box::new(rbac.clone())]), rbac }
    }

    pub(crate) fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        self.all.authorize(attributes)
    }

    pub(crate) fn rules_of(&self, user: &UserInfo, namespace: &str) -> RuleList {
        self.all.rules_of(user, namespace)
    }

    /// Asks for the verb `create` on top of that of a request's method.
    ///
    /// # Errors
    /// 403 where the user may not.
    pub(crate) fn check_may_create(&self, user: &UserInfo, info: &RequestInfo) -> Result<(), Status> {
        let attributes = Attributes { verb: "create", ..Attributes::of(user, info) };
        let decision = self.authorize(&attributes);
        if decision.is_allowed() { Ok(()) } else { Err(attributes.forbidden(&decision.reason)) }
    }

    /// # Errors
    /// 403 where a role or a binding would grant what its writer does not have.
    pub(crate) fn check_grant(&self, grant: &Grant<'_>) -> Result<(), Status> {
        self.rbac.check_grant(&self.all, grant)
    }
}

/// The server's own calls, and administrators by certificate: no role that was deleted or changed keeps them out.
struct Masters;

impl Authorizer for Masters {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.is_in(MASTERS) { Decision::allow("") } else { Decision::none("") }
    }

    fn rules_of(&self, _: &UserInfo, _: &str) -> RuleList {
        RuleList::default()
    }
}
