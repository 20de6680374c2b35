//! Who may ask what of the node API, as with a kubelet that has no anonymous users.
//!
//! ```text
//!  certificate of the API server, or of an administrator ──────────────────────────────▶ everything
//!  another certificate of the cluster's ──▶ its name and groups ─┐
//!  bearer token ──▶ TokenReview ──▶ the API's word for who it is ─┴▶ SubjectAccessReview ─▶ allowed, or 403
//!  neither ────────────────────────────────────────────────────────────────────────────▶ 401
//! ```
//!
//! Answers of the API are kept for as long as a kubelet keeps them. What the API server itself asks needs no answer of the
//! API: otherwise `exec` and logs would stand still with it.
//!
//! Source: `pkg/kubelet/server/auth.go` with the gate KubeletFineGrainedAuthz.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

const KNOWN_FOR: Duration = Duration::from_secs(120);
const ALLOWED_FOR: Duration = Duration::from_secs(300);
const DENIED_FOR: Duration = Duration::from_secs(30);
/// Of each kind of answer.
const MAX_KEPT: usize = 1024;
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// Of each kind at a time; others wait. Tokens that nobody knows cost the API a review each, and are not to hold up who is
/// known already, by a certificate or a token that was reviewed.
const MAX_REVIEWS: usize = 8;
const MAX_TOKEN_BYTES: usize = 16 << 10;

/// Who a connection is from, by its certificate.
#[derive(Clone)]
pub(super) enum Peer {
    /// The API server, or an administrator.
    Trusted,
    Certified(Arc<UserInfo>),
    /// Whoever it is, each request tells.
    Unknown,
}

pub(super) struct Access {
    client: Client,
    node: String,
    users: Mutex<Kept<UserInfo>>,
    decisions: Mutex<Kept<bool>>,
    identities: Semaphore,
    rights: Semaphore,
}

impl Access {
    pub(super) fn new(client: Client, node: &str) -> Access {
        Access {
            client,
            node: node.to_owned(),
            users: Mutex::default(),
            decisions: Mutex::default(),
            identities: Semaphore::new(MAX_REVIEWS),
            rights: Semaphore::new(MAX_REVIEWS),
        }
    }

    /// Who has a token; `None` if the API does not know it.
    async fn user_of(&self, token: &str) -> Result<Option<UserInfo>, Unanswered> {
        let key = digest(token.as_bytes());
        if let Some(user) = self.users.lock().get(&key) {
            return Ok(Some(user));
        }
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let status = self.ask(&self.identities, &review).await?.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true));
        if let Some(user) = &user {
            self.users.lock().keep(key, user.clone(), KNOWN_FOR);
        }
        Ok(user)
    }

    async fn may(&self, user: &UserInfo, verb: &str, subresource: &str) -> Result<bool, Unanswered> {
        let spec = SubjectAccessReviewSpec {
            user: user.username.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            extra: user.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                version: Some("v1".to_owned()),
                resource: Some("nodes".to_owned()),
                subresource: Some(subresource.to_owned()),
                name: Some(self.node.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        };
        let key = digest(&serde_json::to_vec(&spec).map_err(|error| Unanswered(error.to_string()))?);
        if let Some(decision) = self.decisions.lock().get(&key) {
            return Ok(decision);
        }
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let allowed = self.ask(&self.rights, &review).await?.status.is_some_and(|status| status.allowed);
        self.decisions.lock().keep(key, allowed, if allowed { ALLOWED_FOR } else { DENIED_FOR });
        Ok(allowed)
    }

    /// Has the API fill in a review.
    async fn ask<K>(&self, turns: &Semaphore, review: &K) -> Result<K, Unanswered>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let reviews: Api<K> = Api::all(self.client.clone());
        let options = PostParams::default();
        let asked = async {
            let _turn = turns.acquire().await.map_err(|error| error.to_string())?;
            reviews.create(&options, review).await.map_err(|error| error.to_string())
        };
        match tokio::time::timeout(REVIEW_TIMEOUT, asked).await {
            Ok(answer) => answer.map_err(Unanswered),
            Err(_) => Err(Unanswered(format!("no answer within {} s", REVIEW_TIMEOUT.as_secs()))),
        }
    }
}

/// Why the API has not said who somebody is, or what they may.
#[derive(Debug, thiserror::Error)]
#[error("asking the API: {0}")]
struct Unanswered(String);

/// Lets a request through, or says why not.
pub(super) async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let user = match request.extensions().get::<Peer>() {
        Some(Peer::Trusted) => return next.run(request).await,
        Some(Peer::Certified(user)) => user.clone(),
        Some(Peer::Unknown) | None => match by_token(&access, request.headers()).await {
            Some(user) => Arc::new(user),
            None => return (StatusCode::UNAUTHORIZED, "Unauthorized").into_response(),
        },
    };
    let (verb, subresources) = (verb(request.method()), subresources(request.uri().path()));
    let name = user.username.as_deref().unwrap_or_default();
    for subresource in subresources {
        match access.may(&user, verb, subresource).await {
            Ok(true) => return next.run(request).await,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(user = name, %error, "cannot tell whether a request may use the node API");
                let asked = format!("user={name}, verb={verb}, resource=nodes, subresource={subresource}");
                let message = format!("Authorization error ({asked})");
                return (StatusCode::INTERNAL_SERVER_ERROR, message).into_response();
            }
        }
    }
    let all = subresources.join(" ");
    let message = format!("Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{all}])\n");
    (StatusCode::FORBIDDEN, message).into_response()
}

async fn by_token(access: &Access, headers: &HeaderMap) -> Option<UserInfo> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    match access.user_of(token).await {
        Ok(user) => user,
        Err(error) => {
            tracing::warn!(%error, "cannot tell whose token a request of the node API has");
            None
        }
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// By which subresources of a node a path may be asked for: any of them will do.
fn subresources(path: &str) -> &'static [&'static str] {
    let first = path.strip_prefix('/').unwrap_or(path).split('/').next().unwrap_or_default();
    match first {
        "pods" | "allocatedPods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        _ => &["proxy"],
    }
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Answers that are good for a while.
struct Kept<V>(HashMap<[u8; 32], (Instant, V)>);

impl<V> Default for Kept<V> {
    fn default() -> Kept<V> {
        Kept(HashMap::new())
    }
}

impl<V: Clone> Kept<V> {
    fn get(&self, key: &[u8; 32]) -> Option<V> {
        let (end, value) = self.0.get(key)?;
        (Instant::now() < *end).then(|| value.clone())
    }

    /// Where there is no room, what is over goes, or all.
    fn keep(&mut self, key: [u8; 32], value: V, time: Duration) {
        let now = Instant::now();
        if self.0.len() >= MAX_KEPT {
            self.0.retain(|_, (end, _)| now < *end);
        }
        if self.0.len() >= MAX_KEPT {
            self.0.clear();
        }
        self.0.insert(key, (now + time, value));
    }
}

/// Who a certificate names.
pub(super) fn certified(name: String, mut groups: Vec<String>) -> UserInfo {
    groups.push("system:authenticated".to_owned());
    UserInfo { username: Some(name), groups: Some(groups), uid: None, extra: None::<BTreeMap<_, _>> }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_asked_for_as_a_kubelet_has_it_asked_for() {
        for (path, expected) in [
            ("/pods", &["pods", "proxy"][..]),
            ("/runningpods/", &["pods", "proxy"]),
            ("/healthz/syncloop", &["healthz", "proxy"]),
            ("/metrics/resource", &["metrics"]),
            ("/metricsx", &["proxy"]),
            ("/stats/summary", &["stats"]),
            ("/logs/", &["log"]),
            ("/exec/default/web/app", &["proxy"]),
            ("/", &["proxy"]),
        ] {
            assert_eq!(subresources(path), expected, "{path}");
        }
    }

    #[test]
    fn no_more_answers_are_kept_than_there_is_room_for_and_none_for_longer_than_it_holds() {
        let mut kept = Kept::default();
        for number in 0..MAX_KEPT + 1 {
            kept.keep(digest(&number.to_be_bytes()), number, Duration::from_secs(60));
        }
        assert_eq!(kept.0.len(), 1);
        assert_eq!(kept.get(&digest(&MAX_KEPT.to_be_bytes())), Some(MAX_KEPT));
        kept.keep(digest(b"over"), 1, Duration::ZERO);
        assert_eq!(kept.get(&digest(b"over")), None);
    }

    /// An API that never answers for a token, and allows everything.
    fn api() -> Client {
        let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
            if request.uri().path().ends_with("/tokenreviews") {
                std::future::pending::<()>().await;
            }
            let body = serde_json::json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {},
                "status": {"allowed": true}});
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(
                body.to_string().into_bytes(),
            )))
        });
        Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_that_nobody_knows_do_not_hold_up_who_is_known() {
        let access = Arc::new(Access::new(api(), "n"));
        let floods: Vec<_> = (0..4 * MAX_REVIEWS)
            .map(|number| {
                let access = access.clone();
                tokio::spawn(async move { access.user_of(&format!("made-up-{number}")).await.is_ok() })
            })
            .collect();
        while access.identities.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let user = UserInfo { username: Some("known".to_owned()), ..UserInfo::default() };
        assert!(access.may(&user, "get", "metrics").await.unwrap());
        for flood in floods {
            assert!(!flood.await.unwrap(), "nobody answers for a made-up token");
        }
    }
}
