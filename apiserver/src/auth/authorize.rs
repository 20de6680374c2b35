//! Whether they may.
//!
//! ```text
//! masters ─ Node ─ RBAC ─ Webhook … in the order of the configuration; the first with an opinion decides
//!           └─ answer at once ─┘└─ asks somebody, and is awaited
//! ```
//!
//! # Guarantees
//! - Nothing is awaited before it is its turn: what masters, nodes or roles decide does not wait for a webhook behind them.
//! - A chain is replaced as a whole: a question is answered by one chain from its beginning to its end.
//!
//! Source: apiserver's `authorization/union`, `authorizerfactory`, and kube-apiserver's `authorizer/reload.go`.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use serde_json::json;
use skiff_api::Status;

use super::attributes::{Attributes, Authorizer, Decision, Opinion, RuleList};
use super::node::NodeAuthorizer;
use super::rbac::{Grant, Rbac};
use super::webhook::WebhookAuthorizer;
use super::{MASTERS, UserInfo};
use crate::metrics::authorization::Decisions;
use crate::request::RequestInfo;

/// One that is asked, in its turn.
pub(crate) struct Link {
    /// Stands before its reasons.
    pub(super) name: String,
    pub(super) decides: Decides,
    pub(super) decisions: Decisions,
}

pub(super) enum Decides {
    Node,
    Rbac,
    AlwaysAllow,
    AlwaysDeny,
    Webhook(Box<WebhookAuthorizer>),
}

/// All that are asked, in order.
pub(crate) struct Chain(pub(super) Vec<Link>);

impl Chain {
    fn asks_others(&self) -> bool {
        self.0.iter().any(|link| matches!(link.decides, Decides::Webhook(_)))
    }
}

/// All that is asked whether somebody may.
pub(crate) struct Authorization {
    chain: ArcSwap<Chain>,
    node: NodeAuthorizer,
    rbac: Rbac,
}

/// What those have said who had no opinion.
#[derive(Default)]
struct Said {
    reasons: Vec<String>,
    errors: Vec<String>,
}

impl Said {
    /// What counts, if the link has an opinion.
    fn heed(&mut self, link: &Link, decision: Decision) -> Option<Decision> {
        link.decisions.count(decision.opinion);
        if decision.opinion != Opinion::None {
            return Some(decision);
        }
        if !decision.reason.is_empty() {
            self.reasons.push(format!("{}: {}", link.name, decision.reason));
        }
        self.errors.extend(decision.error);
        None
    }

    fn no_opinion(self) -> Decision {
        Decision { error: together(self.errors), ..Decision::none(self.reasons.join("\n")) }
    }
}

/// Several errors as one, each once.
fn together(mut errors: Vec<String>) -> Option<String> {
    let mut said = std::collections::HashSet::new();
    errors.retain(|error| said.insert(error.clone()));
    match errors.len() {
        0 | 1 => errors.pop(),
        _ => Some(format!("[{}]", errors.join(", "))),
    }
}

/// Where a chain cannot be gone through at once.
struct Stopped {
    at: usize,
    said: Said,
}

impl Authorization {
    pub(crate) fn new(node: NodeAuthorizer, rbac: Rbac, chain: Chain) -> Authorization {
        Authorization { chain: ArcSwap::from_pointee(chain), node, rbac }
    }

    /// From now on others are asked.
    pub(crate) fn replace(&self, chain: Chain) {
        self.chain.store(Arc::new(chain));
    }

    /// Whether an answer may have to be waited for.
    pub(crate) fn asks_others(&self) -> bool {
        self.chain.load().asks_others()
    }

    pub(crate) async fn authorize(&self, asked: &Attributes<'_>) -> Decision {
        if let Some(decision) = privileged(asked) {
            return decision;
        }
        let chain = self.chain.load();
        let stopped = match self.go_on(&chain, 0, Said::default(), asked) {
            Ok(decision) => return decision,
            Err(stopped) => stopped,
        };
        let chain = Guard::into_inner(chain);
        // Of a size of its own, that nobody pays for who is not to wait.
        Box::pin(self.ask(&chain, stopped, asked)).await
    }

    /// The same, if nobody has to be asked for it.
    pub(crate) fn at_once(&self, asked: &Attributes<'_>) -> Option<Decision> {
        privileged(asked).or_else(|| self.go_on(&self.chain.load(), 0, Said::default(), asked).ok())
    }

    /// Goes through the chain from a link on, as far as that can be done at once.
    fn go_on(
        &self,
        chain: &Chain,
        from: usize,
        mut said: Said,
        asked: &Attributes<'_>,
    ) -> Result<Decision, Stopped> {
        for (at, link) in chain.0.iter().enumerate().skip(from) {
            let decision = match &link.decides {
                Decides::Node => self.node.authorize(asked),
                Decides::Rbac => self.rbac.authorize(asked),
                Decides::AlwaysAllow => Decision::allow(""),
                Decides::AlwaysDeny => Decision::none("Everything is forbidden."),
                Decides::Webhook(_) => return Err(Stopped { at, said }),
            };
            if let Some(decision) = said.heed(link, decision) {
                return Ok(decision);
            }
        }
        Ok(said.no_opinion())
    }

    async fn ask(&self, chain: &Chain, mut stopped: Stopped, asked: &Attributes<'_>) -> Decision {
        while let Some(link) = chain.0.get(stopped.at) {
            if let Decides::Webhook(webhook) = &link.decides
                && let Some(decision) = stopped.said.heed(link, webhook.authorize(asked).await)
            {
                return decision;
            }
            stopped = match self.go_on(chain, stopped.at + 1, stopped.said, asked) {
                Ok(decision) => return decision,
                Err(stopped) => stopped,
            };
        }
        stopped.said.no_opinion()
    }

    /// What a user may do in a namespace, as far as that can be listed.
    pub(crate) fn rules_of(&self, user: &UserInfo, namespace: &str) -> RuleList {
        let mut all = RuleList::default();
        let mut errors = Vec::new();
        for link in &self.chain.load().0 {
            let one = match &link.decides {
                Decides::Node => self.node.rules_of(user, namespace),
                Decides::Rbac => self.rbac.rules_of(user, namespace),
                Decides::AlwaysAllow => RuleList {
                    resources: vec![json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]})],
                    paths: vec![json!({"verbs": ["*"], "nonResourceURLs": ["*"]})],
                    ..RuleList::default()
                },
                Decides::AlwaysDeny => RuleList::default(),
                Decides::Webhook(_) => RuleList {
                    incomplete: true,
                    error: Some("webhook authorizer does not support user rule resolution".to_owned()),
                    ..RuleList::default()
                },
            };
            all.resources.extend(one.resources);
            all.paths.extend(one.paths);
            all.incomplete |= one.incomplete;
            errors.extend(one.error);
        }
        all.error = together(errors);
        all
    }

    /// Asks for the verb `create` on top of that of a request's method.
    ///
    /// # Errors
    /// 403 where the user may not, 500 where that could not be found out.
    pub(crate) async fn check_may_create(&self, user: &UserInfo, info: &RequestInfo) -> Result<(), Status> {
        let attributes = Attributes { verb: "create", ..Attributes::of(user, info) };
        self.check(&attributes).await
    }

    /// # Errors
    /// 403 where the user may not, 500 where that could not be found out.
    pub(crate) async fn check(&self, asked: &Attributes<'_>) -> Result<(), Status> {
        let decision = self.authorize(asked).await;
        match decision.error {
            _ if decision.opinion == Opinion::Allow => Ok(()),
            Some(error) => Err(Status::internal(error)),
            None => Err(asked.forbidden(&decision.reason)),
        }
    }

    /// # Errors
    /// 403 where a role or a binding would grant what its writer does not have.
    pub(crate) async fn check_grant(&self, grant: &Grant<'_>) -> Result<(), Status> {
        let Some(asked) = grant.asked() else { return Ok(()) };
        if self.authorize(&asked.attributes(grant)).await.is_allowed() {
            return Ok(());
        }
        self.rbac.check_held(grant, &asked)
    }
}

/// The server's own calls, and administrators by certificate: nothing that was deleted, changed or configured keeps them out.
fn privileged(asked: &Attributes<'_>) -> Option<Decision> {
    asked.user.is_in(MASTERS).then(|| Decision::allow(""))
}
