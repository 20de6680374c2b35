//! `serviceaccounts/token`: a new token, bound to what the request says.

use jiff::Timestamp;
use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Cause, Object, Status};
use skiff_webhook::admission::Operation;

use super::Subresources;
use super::document::read_document;
use crate::auth::SERVICE_ACCOUNT_PREFIX;
use crate::auth::token::{Claims, KubernetesClaims, ObjectClaim, now_s};
use crate::call::Call;
use crate::clock::timestamp;
use crate::respond::Response;

const MIN_EXPIRATION_S: i64 = 600;
const MAX_EXPIRATION_S: i64 = 1 << 32;
const DEFAULT_EXPIRATION_S: i64 = 3600;
/// The pod's mounted token: lives for a year, but counts as stale after the time asked for, as upstream.
const WARN_ONLY_BOUND_S: i64 = 3607;
const EXTENDED_S: i64 = 365 * 24 * 3600;

/// What a token is bound to besides its service account.
#[derive(Default)]
struct Bound {
    pod: Option<ObjectClaim>,
    node: Option<ObjectClaim>,
    secret: Option<ObjectClaim>,
}

impl Subresources {
    pub(super) async fn create_token(&self, mut call: Call) -> Result<Response, Status> {
        let request = read_document(&mut call, "authentication.k8s.io/v1", "TokenRequest").await?;
        let mut request = self
            .registry
            .admission
            .dynamic
            .admit_document(&mut call, Operation::Create, request, false)
            .await?;
        self.registry.objects.lister.caches.wait_for_newest().await?;
        let account = self.object_of(&call).await?;
        let spec = &request["spec"];
        let seconds = check_expiration(&call, spec)?;
        let mut audiences: Vec<String> = spec["audiences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        if audiences.is_empty() {
            audiences.clone_from(&self.authenticator.audiences);
        }
        let bound = self.bound(&call, &account, &spec["boundObjectRef"])?;
        self.check_node_requester(&call, &bound, spec)?;

        let now = now_s();
        // A pod's own token is extended so that clients that never reload it go on; it still dies with the pod.
        let extended = seconds == WARN_ONLY_BOUND_S
            && bound.pod.is_some()
            && audiences.iter().all(|a| self.authenticator.audiences.contains(a));
        let lives_s = if extended { EXTENDED_S } else { seconds };
        let claims = Claims {
            aud: audiences.clone(),
            exp: now + u64::try_from(lives_s).unwrap_or(0),
            iat: now,
            nbf: now,
            iss: self.authenticator.tokens.issuer().to_owned(),
            jti: uuid::Uuid::new_v4().to_string(),
            sub: format!("{SERVICE_ACCOUNT_PREFIX}{}:{}", account.namespace(), account.name()),
            kubernetes: KubernetesClaims {
                namespace: account.namespace().to_owned(),
                node: bound.node,
                pod: bound.pod,
                secret: bound.secret,
                serviceaccount: claim(&account),
                warnafter: extended.then(|| now + u64::try_from(seconds).unwrap_or(0)),
            },
        };
        let token = self.authenticator.tokens.sign(&claims).map_err(Status::internal)?;
        let expires = i64::try_from(now).unwrap_or(0) + seconds;
        let expires = Timestamp::from_second(expires).map_err(Status::internal)?;
        request["kind"] = "TokenRequest".into();
        request["apiVersion"] = "authentication.k8s.io/v1".into();
        request["metadata"] = json!({
            "name": account.name(), "namespace": account.namespace(), "creationTimestamp": timestamp(Timestamp::now()),
        });
        request["spec"]["audiences"] = audiences.into();
        request["spec"]["expirationSeconds"] = seconds.into();
        request["spec"]["boundObjectRef"] = request["spec"]["boundObjectRef"].take();
        request["status"] = json!({"token": token, "expirationTimestamp": timestamp(expires)});
        Ok(call.document(201, &request))
    }

    fn bound(&self, call: &Call, account: &Object, reference: &Value) -> Result<Bound, Status> {
        if reference.is_null() {
            return Ok(Bound::default());
        }
        let name = reference["name"].as_str().unwrap_or_default();
        let kind = reference["kind"].as_str().unwrap_or_default();
        let api_version = reference["apiVersion"].as_str().unwrap_or("v1");
        let plural = match (api_version, kind) {
            ("v1", "Pod") => "pods",
            ("v1", "Secret") => "secrets",
            ("v1", "Node") => "nodes",
            _ => {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to object reference with kind {kind:?}",
                    account.name()
                )));
            }
        };
        let namespaced = plural != "nodes";
        let key = if namespaced { format!("{}/{name}", call.info.namespace) } else { name.to_owned() };
        let found = self
            .registry
            .objects
            .lister
            .cached(plural, &key)?
            .ok_or_else(|| Status::not_found("", plural, name))?
            .parse();
        if let Some(uid) = reference["uid"].as_str().filter(|uid| !uid.is_empty() && *uid != found.uid()) {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Status::conflict("", plural, name, &why));
        }
        let mut bound = Bound::default();
        match plural {
            "pods" => {
                if found["spec"]["serviceAccountName"] != account.name() {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                        account.name()
                    )));
                }
                if let Some(node) = found["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                    let uid = self
                        .registry
                        .objects
                        .lister
                        .cached("nodes", node)?
                        .map(|n| n.parse().uid().to_owned());
                    bound.node = Some(ObjectClaim { name: node.to_owned(), uid: uid.unwrap_or_default() });
                }
                bound.pod = Some(claim(&found));
            }
            "secrets" => bound.secret = Some(claim(&found)),
            _ => bound.node = Some(claim(&found)),
        }
        Ok(bound)
    }

    /// A node gets tokens only for pods that are bound to it, and only for who the pod means to talk to.
    fn check_node_requester(&self, call: &Call, bound: &Bound, spec: &Value) -> Result<(), Status> {
        let Some(node) = call.user.node_name() else { return Ok(()) };
        let forbid = |why: &str| Err(Status::forbidden("", "serviceaccounts/token", &call.info.name, why));
        let Some(pod) = &bound.pod else { return forbid("node requested token not bound to a pod") };
        if spec["boundObjectRef"]["uid"].as_str().is_none_or(str::is_empty) {
            return forbid("node requested token with a pod binding without a uid");
        }
        if bound.node.as_ref().is_none_or(|n| n.name != node) {
            return forbid("node requested token bound to a pod scheduled on a different node");
        }
        let audience = match spec["audiences"].as_array().map(Vec::as_slice).unwrap_or_default() {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => return forbid("node may only request 0 or 1 audiences"),
        };
        let key = format!("{}/{}", call.info.namespace, pod.name);
        let pod =
            self.registry.objects.lister.cached("pods", &key)?.map(|entry| entry.parse()).unwrap_or_default();
        if means_audience(&pod, audience) {
            return Ok(());
        }
        forbid(&format!(
            "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
            call.user.name
        ))
    }
}

/// Whether a projected volume of the pod asks for a token of this audience, `""` for the API server's.
fn means_audience(pod: &Object, audience: &str) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    list(&pod["spec"]["volumes"]).iter().flat_map(|volume| list(&volume["projected"]["sources"])).any(
        |source| {
            let token = &source["serviceAccountToken"];
            token.is_object() && token["audience"].as_str().unwrap_or_default() == audience
        },
    )
}

fn check_expiration(call: &Call, spec: &Value) -> Result<i64, Status> {
    let invalid = |value: &Value, why: &str| {
        let cause = Cause::invalid("spec.expirationSeconds", value, why);
        Err(Status::invalid("authentication.k8s.io", "TokenRequest", &call.info.name, vec![cause]))
    };
    match &spec["expirationSeconds"] {
        Value::Null => Ok(DEFAULT_EXPIRATION_S),
        value => match value.as_i64() {
            Some(seconds) if seconds < MIN_EXPIRATION_S => {
                invalid(value, "may not specify a duration less than 10 minutes")
            }
            Some(seconds) if seconds > MAX_EXPIRATION_S => {
                invalid(value, "may not specify a duration larger than 2^32 seconds")
            }
            Some(seconds) => Ok(seconds),
            None => invalid(value, "must be a number"),
        },
    }
}

fn claim(object: &Object) -> ObjectClaim {
    ObjectClaim { name: object.name().to_owned(), uid: object.uid().to_owned() }
}
