//! Who asks, and whether they may.

use std::sync::Arc;

use skiff_api::Status;
use tokio::sync::SemaphorePermit;

use super::Pipeline;
use crate::auth::UserInfo;
use crate::auth::attributes::{Attributes, Opinion};
use crate::auth::authenticate::PeerAddress;
use crate::auth::impersonate::impersonated;
use crate::limits::connections::Connection;
use crate::request::RequestInfo;

impl Pipeline {
    /// Who asks, and whether they may. The turn, where one was waited for, is given back before anybody else is asked.
    pub(super) async fn identify(
        &self,
        headers: &http::HeaderMap,
        extensions: &http::Extensions,
        info: &RequestInfo,
        turn: Option<SemaphorePermit<'_>>,
    ) -> Result<UserInfo, Status> {
        let user = match self.authenticator.authenticate(headers, extensions) {
            Ok(user) => Ok(user),
            Err(refused) => self.grace.lapsed_node(self.lister(), extensions, info).ok_or(refused),
        };
        self.metrics.authenticated(user.is_ok());
        let user = user?;
        if let Some(connection) = extensions.get::<Arc<Connection>>() {
            connection.identify(&user)?;
        }
        if let (Some(node), Some(PeerAddress(peer))) = (user.node_name(), extensions.get()) {
            self.subresources.proxies.destinations.kubelet.heard_from(node, peer.ip());
        }
        // As upstream: who acts as somebody else takes that one's seats.
        let turn = turn.filter(|_| !self.authorizer().asks_others());
        let user = impersonated(self.authorizer(), user, headers).await?;
        let attributes = Attributes::of(&user, info);
        let decision = self.authorizer().authorize(&attributes).await;
        drop(turn);
        self.metrics.authorized(match (decision.opinion, &decision.error) {
            (Opinion::Allow, _) => "allowed",
            (_, Some(_)) => "error",
            (Opinion::Deny, None) => "denied",
            (Opinion::None, None) => "no-opinion",
        });
        if !decision.is_allowed() {
            if let Some(error) = decision.error {
                tracing::warn!(user = user.name, error, "cannot find out whether a request is allowed");
                return Err(Status::internal(error));
            }
            let refusal = attributes.forbidden(&decision.reason);
            // Most clients try again without a word; the cluster's own are not meant to be refused.
            if user.is_component() {
                tracing::debug!(why = refusal.message, "a component was refused");
            }
            return Err(refusal);
        }
        Ok(user)
    }
}
