//! Nodes that were off for longer than their certificate lasted.
//!
//! Source: none upstream, where such a node needs a new bootstrap token and somebody who brings it. Why the grace is none unless
//! it is asked for: `docs/decisions/0012-certificates-that-have-ended.md`.
//!
//! # Guarantees
//! - Without a grace, a certificate that has ended is nobody's.
//! - Within it, it lets its node ask for the next one and see whether it is given, and nothing else.
//! - Only while the Node is still there, was there before the certificate ended, and does not renew its Lease: what was taken
//!   out of the cluster, or has been replaced by another of its name, stays out.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};
use skiff_api::Object;
use thiserror::Error;

use crate::auth::UserInfo;
use crate::auth::authenticate::PeerCertificate;
use crate::auth::validity::Validity;
use crate::lister::Lister;
use crate::request::RequestInfo;

const LEASES: &str = "kube-node-lease";
/// How long after its last renewal of its Lease a node counts as living: the Lease's own length.
const ALIVE: SignedDuration = SignedDuration::from_secs(40);
const SAY_EVERY: Duration = Duration::from_secs(60);

/// The client certificate of a connection, if it is a node's, as a request extension. Of its chain holds what holds of every
/// [`PeerCertificate`]'s: it was good at the certificate's end.
#[derive(Clone)]
pub(crate) struct NodeCertificate {
    peer: PeerCertificate,
    validity: Validity,
}

/// A node's certificate that has ended.
struct Lapsed<'c> {
    user: &'c UserInfo,
    node: &'c str,
    ended_s: u64,
    ago: Duration,
}

impl NodeCertificate {
    pub(crate) fn of(certificate: &CertificateDer<'_>, peer: &PeerCertificate) -> Option<NodeCertificate> {
        Some(NodeCertificate { peer: peer.clone(), validity: Validity::of(certificate)? })
    }

    fn lapsed(&self, now: UnixTime) -> Option<Lapsed<'_>> {
        let end = self.validity.nearest_to(now);
        let ago = now.as_secs().checked_sub(end.as_secs()).filter(|ago| *ago > 0)?;
        let user = self.peer.user_at(end)?;
        let node = user.node_name()?;
        Some(Lapsed { user, node, ended_s: end.as_secs(), ago: Duration::from_secs(ago) })
    }
}

/// How long after its end a node's certificate may be shown to get the next one.
pub(crate) struct Grace {
    lasts: Duration,
    /// When it was last said that somebody was refused.
    said: Mutex<Option<Instant>>,
}

#[derive(Debug, Error)]
enum Refusal {
    #[error("its certificate ended {} days ago, and the server's grace is {} days", days(.ago), days(.grace))]
    TooLate { ago: Duration, grace: Duration },
    #[error("its Node is not there")]
    NoNode,
    #[error("its Node was made after its certificate had ended: it is another node of its name")]
    OtherNode,
    #[error("a node of its name is alive")]
    Alive,
}

fn days(of: &Duration) -> u64 {
    of.as_secs() / 86_400
}

impl Grace {
    pub(crate) fn new(lasts: Duration) -> Grace {
        Grace { lasts, said: Mutex::default() }
    }

    fn is_to_be_said(&self) -> bool {
        let mut said = self.said.lock();
        let is_due = said.is_none_or(|said| said.elapsed() >= SAY_EVERY);
        if is_due {
            *said = Some(Instant::now());
        }
        is_due
    }

    /// Who asks, if it is a node whose certificate has ended and that may ask for the next one with it.
    pub(crate) fn lapsed_node(
        &self,
        lister: &Lister,
        extensions: &http::Extensions,
        info: &RequestInfo,
    ) -> Option<UserInfo> {
        let certificate = extensions.get::<NodeCertificate>().filter(|_| is_for_a_certificate(info))?;
        let lapsed = certificate.lapsed(UnixTime::now())?;
        let found = |group: &str, plural: &str, key: &str| {
            let cache = lister.cache(group, "v1", plural).ok()?;
            Some(cache.get(key).ok()??.parse())
        };
        let node = found("", "nodes", lapsed.node);
        let lease = found("coordination.k8s.io", "leases", &format!("{LEASES}/{}", lapsed.node));
        match self.refusal(&lapsed, node.as_ref(), lease.as_ref(), Timestamp::now()) {
            None => Some(lapsed.user.clone()),
            Some(why) => {
                if self.is_to_be_said() {
                    tracing::warn!(
                        node = lapsed.node,
                        %why,
                        "a node whose certificate has ended asks for another and is refused; a longer \
                         --node-certificate-grace lets it have one, as does a new --token at the node"
                    );
                }
                None
            }
        }
    }

    /// Why a node is not let in at `now`, by its Node and its Lease.
    fn refusal(
        &self,
        lapsed: &Lapsed<'_>,
        node: Option<&Object>,
        lease: Option<&Object>,
        now: Timestamp,
    ) -> Option<Refusal> {
        if lapsed.ago > self.lasts {
            return Some(Refusal::TooLate { ago: lapsed.ago, grace: self.lasts });
        }
        let Some(node) = node else { return Some(Refusal::NoNode) };
        let made_s = time(&node["metadata"]["creationTimestamp"]).map(Timestamp::as_second);
        if made_s.and_then(|made_s| u64::try_from(made_s).ok()).is_none_or(|made_s| made_s > lapsed.ended_s) {
            return Some(Refusal::OtherNode);
        }
        let renewed = lease.and_then(|lease| time(&lease["spec"]["renewTime"]));
        // Of a time to come nobody can say how old it is.
        if renewed.is_some_and(|renewed| now.duration_since(renewed) < ALIVE) {
            return Some(Refusal::Alive);
        }
        None
    }
}

fn time(value: &serde_json::Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// Whether a request is one of those by which a node gets its next certificate.
fn is_for_a_certificate(info: &RequestInfo) -> bool {
    info.is_resource
        && info.group == "certificates.k8s.io"
        && info.resource == "certificatesigningrequests"
        && info.subresource.is_empty()
        && matches!(info.verb.as_str(), "create" | "get" | "list" | "watch")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DAY_S: u64 = 86_400;
    const ENDED_S: u64 = 20_000 * DAY_S;

    fn at(second: u64) -> Timestamp {
        Timestamp::from_second(second.cast_signed()).expect("a time")
    }

    fn node(made_s: u64) -> Object {
        json!({"metadata": {"name": "a", "creationTimestamp": at(made_s).to_string()}})
    }

    fn lease(renewed_s: u64) -> Object {
        json!({"spec": {"renewTime": at(renewed_s).to_string()}})
    }

    /// What a server with a year of grace says so many days after the end.
    fn refusal(days_ago: u64, node: Option<&Object>, lease: Option<&Object>) -> Option<String> {
        let user = UserInfo::new("system:node:a", &["system:nodes"]);
        let ago = Duration::from_secs(days_ago * DAY_S);
        let lapsed = Lapsed { user: &user, node: "a", ended_s: ENDED_S, ago };
        let grace = Grace::new(Duration::from_secs(365 * DAY_S));
        let now = at(ENDED_S + days_ago * DAY_S);
        grace.refusal(&lapsed, node, lease, now).map(|why| why.to_string())
    }

    #[test]
    fn a_node_that_was_off_is_let_in_within_the_grace_while_it_is_the_node_that_it_was() {
        let (own, other) = (node(ENDED_S - 300 * DAY_S), node(ENDED_S + DAY_S));
        let stale = lease(ENDED_S - DAY_S);
        assert_eq!(refusal(35, Some(&own), Some(&stale)), None);
        assert_eq!(refusal(35, Some(&own), None), None);
        let too_late = "its certificate ended 366 days ago, and the server's grace is 365 days";
        assert_eq!(refusal(366, Some(&own), Some(&stale)).as_deref(), Some(too_late));
        assert_eq!(refusal(35, None, Some(&stale)).as_deref(), Some("its Node is not there"));
        assert!(refusal(35, Some(&other), None).is_some_and(|why| why.contains("another node of its name")));
        let alive = "a node of its name is alive";
        assert_eq!(refusal(35, Some(&own), Some(&lease(ENDED_S + 35 * DAY_S - 10))).as_deref(), Some(alive));
        assert_eq!(refusal(35, Some(&own), Some(&lease(ENDED_S + 36 * DAY_S))).as_deref(), Some(alive));
    }

    #[test]
    fn a_certificate_that_has_ended_is_good_for_asking_for_the_next_one_and_nothing_else() {
        let is_let_in = |method: &str, path: &str| {
            is_for_a_certificate(&RequestInfo::parse(method, path, &crate::request::Query::parse("")))
        };
        let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        assert!(is_let_in("POST", requests));
        assert!(is_let_in("GET", requests));
        assert!(is_let_in("GET", &format!("{requests}/csr-a")));
        for (method, path) in [
            ("DELETE", format!("{requests}/csr-a")),
            ("PUT", format!("{requests}/csr-a/approval")),
            ("GET", "/api/v1/nodes/a".into()),
            ("POST", "/api/v1/nodes".into()),
            ("GET", "/apis".into()),
        ] {
            assert!(!is_let_in(method, &path), "{method} {path}");
        }
    }
}
