//! From a certificate or a token to a [`UserInfo`].

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use skiff_api::{Kinds, Status};

use super::token::{Claims, ObjectClaim, TokenKeys};
use super::validity::Validity;
use super::{AUTHENTICATED, SERVICE_ACCOUNT_PREFIX, SERVICE_ACCOUNTS, UserInfo, bootstrap_token};
use crate::aggregation::identity;
use crate::cache::Caches;
use crate::digest::hex_of;
use crate::tls::Vouched;

/// How long after its `deletionTimestamp` an object keeps the tokens that are bound to it, as upstream.
const BOUND_LEEWAY_S: i64 = 60;

/// The client certificate of a connection, as a request extension. TLS has verified its chain, but not that this is its
/// time.
#[derive(Clone)]
pub(crate) struct PeerCertificate {
    /// Whom it names, and what for who signed it vouches.
    named: Option<UserInfo>,
    vouched: Vouched,
    /// `None` if it cannot be read: then it is never valid.
    validity: Option<Validity>,
}

impl PeerCertificate {
    /// Reads a certificate, once a connection.
    pub(crate) fn new(certificate: &CertificateDer<'_>, vouched: Vouched) -> PeerCertificate {
        let (named, validity) = (user_of_certificate(certificate), Validity::of(certificate));
        PeerCertificate { named, vouched, validity }
    }

    /// Whose it is, if it is valid at that time.
    pub(crate) fn user_at(&self, now: UnixTime) -> Option<&UserInfo> {
        self.named.as_ref().filter(|_| self.vouched.as_client && self.is_valid_at(now))
    }

    /// Whether it is a front proxy's that may say who asks.
    fn may_tell_at(&self, now: UnixTime, allowed_names: &[String]) -> bool {
        let is_allowed = |named: &UserInfo| allowed_names.is_empty() || allowed_names.contains(&named.name);
        self.vouched.as_front_proxy && self.is_valid_at(now) && self.named.as_ref().is_some_and(is_allowed)
    }

    fn is_valid_at(&self, now: UnixTime) -> bool {
        self.validity.is_some_and(|validity| validity.nearest_to(now) == now)
    }
}

/// Where a connection comes from, as a request extension.
#[derive(Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

pub(crate) struct Authenticator {
    pub(crate) tokens: Arc<TokenKeys>,
    pub(crate) caches: Arc<Caches>,
    pub(crate) kinds: Arc<Kinds>,
    /// Audiences of the API server itself.
    pub(crate) audiences: Vec<String>,
    /// The names of front proxies that may say who asks; empty: of all.
    pub(crate) front_proxies: Vec<String>,
}

impl Authenticator {
    /// Who sent the request. A token that is not valid is a 401, not an anonymous request; so is a certificate outside its
    /// time, unless there is a token beside it.
    pub(crate) fn authenticate(
        &self,
        headers: &HeaderMap,
        extensions: &http::Extensions,
    ) -> Result<UserInfo, Status> {
        if let Some(user) = extensions.get::<UserInfo>() {
            return Ok(user.clone());
        }
        let certificate = extensions.get::<PeerCertificate>();
        let now = UnixTime::now();
        if certificate.is_some_and(|certificate| certificate.may_tell_at(now, &self.front_proxies))
            && let Some(user) = identity::told(headers)
        {
            return Ok(user);
        }
        if let Some(user) = certificate.and_then(|certificate| certificate.user_at(now)) {
            return Ok(user.clone());
        }
        match bearer(headers) {
            Some(token) => {
                let (user, _) = self.user_of_token(&token, &self.audiences)?;
                Ok(user)
            }
            None if certificate.is_some_and(|certificate| !certificate.is_valid_at(now)) => {
                tracing::debug!("a client certificate is not yet valid, or no longer");
                Err(Status::unauthorized())
            }
            None if certificate.is_some_and(|certificate| !certificate.vouched.as_client) => {
                tracing::debug!("a front proxy says of nobody that it may name who asks");
                Err(Status::unauthorized())
            }
            None => Ok(UserInfo::anonymous()),
        }
    }

    /// The user of a token that is valid for one of `audiences`, and for which of them: a service account, or who
    /// bootstraps a node.
    pub(crate) fn user_of_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(UserInfo, Vec<String>), Status> {
        let refuse = |why: &dyn std::fmt::Display| {
            tracing::debug!(%why, "token refused");
            Status::unauthorized()
        };
        if let Some((id, secret)) = bootstrap_token::parse(token) {
            // These know of no audience: they are for this server alone.
            let accepted: Vec<String> =
                audiences.iter().filter(|a| self.audiences.contains(a)).cloned().collect();
            if accepted.is_empty() {
                return Err(refuse(&"a bootstrap token is only for the API server"));
            }
            let user = self.user_of_bootstrap_token(id, secret).map_err(|why| refuse(&why))?;
            return Ok((user, accepted));
        }
        let claims = self.tokens.verify(token, audiences).map_err(|e| refuse(&e))?;
        self.check_bindings(&claims).map_err(|why| refuse(&why))?;
        let accepted = audiences.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        Ok((user_of_claims(&claims), accepted))
    }

    /// A token dies with its service account, and with its pod, secret or node: when that is gone, or has been due to go
    /// for a minute.
    fn check_bindings(&self, claims: &Claims) -> Result<(), String> {
        let bound = &claims.kubernetes;
        let expected = format!("{SERVICE_ACCOUNT_PREFIX}{}:{}", bound.namespace, bound.serviceaccount.name);
        if claims.sub != expected {
            return Err(format!("subject {} is not {expected}", claims.sub));
        }
        self.check_exists("serviceaccounts", &bound.namespace, &bound.serviceaccount)?;
        if let Some(pod) = &bound.pod {
            self.check_exists("pods", &bound.namespace, pod)?;
        }
        if let Some(secret) = &bound.secret {
            self.check_exists("secrets", &bound.namespace, secret)?;
        }
        if let (Some(node), None) = (&bound.node, &bound.pod) {
            self.check_exists("nodes", "", node)?;
        }
        Ok(())
    }

    fn check_exists(&self, plural: &str, namespace: &str, bound: &ObjectClaim) -> Result<(), String> {
        let gone = || format!("{plural} {namespace}/{} is gone", bound.name);
        let kind = self.kinds.by_resource("", "v1", plural).ok_or_else(gone)?;
        let cache = self.caches.of(kind).map_err(|_| gone())?;
        let key =
            if namespace.is_empty() { bound.name.clone() } else { format!("{namespace}/{}", bound.name) };
        let entry = cache.get(&key).ok().flatten().ok_or_else(gone)?;
        let is_leaving = entry.deletion_s.is_some_and(|at_s| at_s + BOUND_LEEWAY_S < signed_now_s());
        if *entry.uid == *bound.uid && !is_leaving { Ok(()) } else { Err(gone()) }
    }
}

fn signed_now_s() -> i64 {
    i64::try_from(super::token::now_s()).unwrap_or(i64::MAX)
}

fn user_of_claims(claims: &Claims) -> UserInfo {
    let bound = &claims.kubernetes;
    let mut user = UserInfo {
        name: claims.sub.clone(),
        uid: bound.serviceaccount.uid.clone(),
        groups: vec![
            SERVICE_ACCOUNTS.into(),
            format!("system:serviceaccounts:{}", bound.namespace),
            AUTHENTICATED.into(),
        ],
        ..UserInfo::default()
    };
    let mut extra = |key: &str, value: String| {
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
    };
    extra("credential-id", format!("JTI={}", claims.jti));
    if let Some(pod) = &bound.pod {
        extra("pod-name", pod.name.clone());
        extra("pod-uid", pod.uid.clone());
    }
    if let Some(node) = &bound.node {
        extra("node-name", node.name.clone());
        extra("node-uid", node.uid.clone());
    }
    user
}

/// Common name and organisations of a certificate whose chain TLS has verified.
fn user_of_certificate(certificate: &CertificateDer<'_>) -> Option<UserInfo> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    // Of several the last counts, as upstream reads them.
    let name = subject.iter_common_name().last()?.as_str().ok()?;
    if name.is_empty() {
        return None;
    }
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    let mut user = UserInfo::new(name, &groups);
    user.extra.insert(
        "authentication.kubernetes.io/credential-id".into(),
        vec![format!("X509SHA256={}", hex_of(&Sha256::digest(certificate)))],
    );
    Some(user)
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(http::header::AUTHORIZATION) {
        let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned());
    }
    // Browsers cannot set headers on a WebSocket; upstream takes the token as a subprotocol.
    let protocols = headers.get(http::header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded =
        protocols.split(',').find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    let decoded = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, encoded).ok()?;
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::threads::Class;

    fn issued(from: i32, to: i32) -> PeerCertificate {
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let key = rcgen::KeyPair::generate().expect("a key");
        let vouched = Vouched { as_client: true, as_front_proxy: false };
        PeerCertificate::new(params.self_signed(&key).expect("a certificate").der(), vouched)
    }

    #[test]
    fn outside_its_time_a_certificate_names_nobody_and_gets_nobodys_threads() {
        // 2000-01-01
        let now = UnixTime::since_unix_epoch(Duration::from_secs(946_684_800));
        for (from, to, class) in
            [(1999, 2001, Class::Own), (1990, 1999, Class::Others), (2001, 2010, Class::Others)]
        {
            let certificate = issued(from, to);
            assert_eq!(Class::of(certificate.user_at(now)), class, "{from} to {to}");
            assert_eq!(certificate.user_at(now).is_some(), class == Class::Own);
        }
    }
}
