//! What a node needs that wants to join and knows no more than a token: `kube-public/cluster-info`, which tells how to
//! reach and trust the cluster, with a signature for each token; and the end of tokens that have expired.
//!
//! Source: upstream's `bootstrapsigner` and `tokencleaner`, and what kubeadm writes into `cluster-info`.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_client::{Informer, ObjectKey, WorkQueue, key_of};
use tokio::sync::watch;

use crate::Context;
use crate::driver::{Controller, Outcome, exists_is_fine, gone_is_fine, is_conflict};
use crate::joining::Reached;

const PUBLIC: &str = "kube-public";
const SYSTEM: &str = "kube-system";
const CLUSTER_INFO: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";
const SECRET_PREFIX: &str = "bootstrap-token-";
const TOKENS: &str = "type=bootstrap.kubernetes.io/token";

/// How the cluster is reached from elsewhere.
pub(crate) struct Config {
    pub(crate) reached: watch::Receiver<Reached>,
    pub(crate) ca_pem: String,
}

/// Keeps `cluster-info`.
pub(crate) struct ClusterInfo {
    client: Client,
    config: Config,
    config_maps: Informer<ConfigMap>,
    secrets: Informer<Secret>,
    queue: WorkQueue<ObjectKey>,
}

impl ClusterInfo {
    pub(crate) fn new(context: &Context, config: Config) -> Self {
        let queue = WorkQueue::default();
        let key = ObjectKey::new(PUBLIC, CLUSTER_INFO);
        let config_maps = context.informers.with_fields::<ConfigMap>("metadata.name=cluster-info");
        let (wake, one) = (queue.clone(), key.clone());
        config_maps.on_change(move |change| {
            if change.object().is_some_and(|map| key_of(&**map) == one) {
                wake.add(one.clone());
            }
        });
        let secrets = context.informers.with_fields::<Secret>(TOKENS);
        let (wake, one) = (queue.clone(), key.clone());
        secrets.on_change(move |_| wake.add(one.clone()));
        // It is made where there is none, which no event tells of.
        queue.add(key);
        ClusterInfo { client: context.client.clone(), config, config_maps, secrets, queue }
    }

    /// Has it written anew whenever the server is reached elsewhere, for as long as that may happen.
    pub(crate) fn moved(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut reached, queue) = (self.config.reached.clone(), self.queue.clone());
        async move {
            while reached.changed().await.is_ok() {
                queue.add(ObjectKey::new(PUBLIC, CLUSTER_INFO));
            }
            std::future::pending::<()>().await;
        }
    }

    fn signatures(&self, kubeconfig: &str) -> BTreeMap<String, String> {
        let (tokens, now) = (self.secrets.list_in(SYSTEM), Timestamp::now());
        let signed = tokens.iter().filter_map(|secret| {
            let (id, secret) = signing_token(secret, now)?;
            let signature = detached_signature(kubeconfig, &id, &secret)?;
            Some((format!("{SIGNATURE_PREFIX}{id}"), signature))
        });
        signed.collect()
    }
}

impl Controller for ClusterInfo {
    const NAME: &'static str = "bootstrapsigner";
    const WORKERS: usize = 1;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.config_maps.synced().await;
        self.secrets.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), PUBLIC);
        let kubeconfig = kubeconfig(&self.config.reached.borrow().server, &self.config.ca_pem);
        let mut wanted = self.signatures(&kubeconfig);
        wanted.insert(KUBECONFIG.to_owned(), kubeconfig);
        let Some(map) = self.config_maps.get(key) else {
            let metadata = ObjectMeta { name: Some(CLUSTER_INFO.into()), ..ObjectMeta::default() };
            let map = ConfigMap { metadata, data: Some(wanted), ..ConfigMap::default() };
            return exists_is_fine(api.create(&PostParams::default(), &map).await).map(|()| Outcome::Done);
        };
        let found = map.data.clone().unwrap_or_default();
        if let Some(changes) = changes(&found, &wanted) {
            let version = &map.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": version}, "data": changes});
            api.patch(CLUSTER_INFO, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        // A signature ends with its token, whether or not the secret is deleted in time.
        let now = Timestamp::now();
        let ends = self.secrets.list_in(SYSTEM).iter().filter_map(|s| time_left(s, now)).min();
        Ok(ends.map_or(Outcome::Done, Outcome::After))
    }
}

/// What has to change of `cluster-info`, as a merge patch: keys of others stay.
fn changes(found: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> Option<Value> {
    let mut changes = serde_json::Map::new();
    for key in found.keys().filter(|key| key.starts_with(SIGNATURE_PREFIX) && !wanted.contains_key(*key)) {
        changes.insert(key.clone(), Value::Null);
    }
    for (key, value) in wanted.iter().filter(|(key, value)| found.get(*key) != Some(*value)) {
        changes.insert(key.clone(), value.as_str().into());
    }
    (!changes.is_empty()).then_some(Value::Object(changes))
}

fn kubeconfig(server: &str, ca_pem: &str) -> String {
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    server: {}\n  name: \"\"\n\
         contexts: null\ncurrent-context: \"\"\nkind: Config\nusers: null\n",
        STANDARD.encode(ca_pem),
        server
    )
}

fn field(secret: &Secret, key: &str) -> String {
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    value.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok()).unwrap_or_default()
}

/// The parts of a token that may sign.
fn signing_token(secret: &Secret, now: Timestamp) -> Option<(String, String)> {
    let (id, key) = (field(secret, "token-id"), field(secret, "token-secret"));
    let named = secret.metadata.name.as_deref()?.strip_prefix(SECRET_PREFIX)?;
    let is_id = id.len() == 6 && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let may = field(secret, "usage-bootstrap-signing") == "true";
    let good = named == id && is_id && !key.is_empty() && may && !has_expired(secret, now);
    good.then_some((id, key))
}

/// What cannot be read counts as expired; what is not set never expires.
fn has_expired(secret: &Secret, now: Timestamp) -> bool {
    let expiration = field(secret, "expiration");
    !expiration.is_empty() && expiration.parse::<Timestamp>().map_or(true, |at| at <= now)
}

/// How long until a token that is good expires, if ever.
fn time_left(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let at: Timestamp = field(secret, "expiration").parse().ok()?;
    let left = at.duration_since(now);
    left.is_positive().then(|| left.unsigned_abs())
}

/// A compact JWS over `content` without the content, as kubeadm checks it.
fn detached_signature(content: &str, id: &str, secret: &str) -> Option<String> {
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &key, Algorithm::HS256).ok()?;
    Some(format!("{header}..{signature}"))
}

/// Deletes tokens that have expired.
pub(crate) struct ExpiredTokens {
    client: Client,
    secrets: Informer<Secret>,
    queue: WorkQueue<ObjectKey>,
}

impl ExpiredTokens {
    pub(crate) fn new(context: &Context) -> Self {
        let queue = WorkQueue::default();
        let secrets = context.informers.with_fields::<Secret>(TOKENS);
        let wake = queue.clone();
        secrets.on_change(move |change| {
            if let Some(secret) =
                change.new.as_ref().filter(|s| s.metadata.namespace.as_deref() == Some(SYSTEM))
            {
                wake.add(key_of(&**secret));
            }
        });
        ExpiredTokens { client: context.client.clone(), secrets, queue }
    }
}

impl Controller for ExpiredTokens {
    const NAME: &'static str = "tokencleaner";
    const WORKERS: usize = 1;
    type Key = ObjectKey;

    fn queue(&self) -> &WorkQueue<ObjectKey> {
        &self.queue
    }

    async fn synced(&self) {
        self.secrets.synced().await;
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Outcome, kube::Error> {
        let Some(secret) = self.secrets.get(key) else { return Ok(Outcome::Done) };
        let now = Timestamp::now();
        if !has_expired(&secret, now) {
            return Ok(time_left(&secret, now).map_or(Outcome::Done, Outcome::After));
        }
        let uid = Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM);
        match api.delete(&key.name, &params).await {
            // Another has taken its place, and comes with an event of its own.
            Err(error) if is_conflict(&error) => Ok(Outcome::Done),
            deleted => gone_is_fine(deleted).map(|()| Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests;
