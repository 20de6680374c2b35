//! Certificates of pods: a key that is made here, and what a signer makes of a request with it.
//!
//! ```text
//!  nothing ──ask──▶ asked ──issued──▶ issued ──time to renew, ask──▶ issued and asked ──issued──▶ issued
//!     ▲               ├──denied, failed──▶ refused for good ◀──denied, failed──────┤
//!     └── the request is gone and ten minutes are over ◀───────────────────────────┘ (what was issued stays)
//! ```
//!
//! Keys are held in memory and in the volume: a nodelet that starts anew asks anew.
//!
//! Source: upstream's `pkg/kubelet/podcertificate`.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, RsaKeySize};
use skiff_api::x509;

use crate::pod::PodExt;

/// A request that is not found for so long was deleted.
const ABANDON_AFTER: Duration = Duration::from_secs(600);
/// Nodes do not all renew at once.
const MAX_JITTER: Duration = Duration::from_secs(300);
/// How long a new pod waits for its first certificate before its volume fails and is tried again.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("credential bundle is not issued yet")]
    NotIssued,
    #[error("PodCertificateRequest was permanently {what}: reason={reason:?} message={message:?}")]
    Refused { what: &'static str, reason: String, message: String },
    #[error("unknown key type {0:?}")]
    KeyType(String),
    #[error("while generating keypair: {0}")]
    Key(String),
    #[error("while {doing}: {why}")]
    Request { doing: &'static str, why: String },
}

/// A key and the certificates for it, both in PEM.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) key: String,
    pub(crate) chain: String,
}

/// Pod, volume, and which of its sources.
type Key = (String, String, usize);

#[derive(Clone, Default)]
struct Held {
    issued: Option<Issued>,
    asked: Option<Asked>,
    refused: Option<CertificateError>,
}

#[derive(Clone)]
struct Issued {
    credentials: Credentials,
    renew_at: Timestamp,
}

#[derive(Clone)]
struct Asked {
    name: String,
    key: String,
    abandon_at: Timestamp,
}

/// What became of a request.
enum Outcome {
    Issued(Issued),
    Refused(CertificateError),
    Waiting,
    Gone,
}

pub(crate) struct Certificates {
    client: Client,
    node: String,
    held: Mutex<HashMap<Key, Held>>,
}

fn failed(doing: &'static str) -> impl FnOnce(kube::Error) -> CertificateError {
    move |error| CertificateError::Request { doing, why: error.to_string() }
}

impl Certificates {
    pub(crate) fn new(client: Client, node: &str) -> Certificates {
        Certificates { client, node: node.to_owned(), held: Mutex::default() }
    }

    pub(crate) async fn get(
        &self,
        pod: &Pod,
        volume: &str,
        index: usize,
        source: &PodCertificateProjection,
    ) -> Result<Credentials, CertificateError> {
        let key = (pod.uid().to_owned(), volume.to_owned(), index);
        let mut held = self.held.lock().get(&key).cloned().unwrap_or_default();
        if let Some(refused) = held.refused {
            return Err(refused);
        }
        let is_due = held.issued.as_ref().is_none_or(|issued| Timestamp::now() >= issued.renew_at);
        if held.asked.is_none() && is_due {
            match self.ask(pod, source).await {
                Ok(asked) => held.asked = Some(asked),
                // What is there serves while nobody can be asked.
                Err(error) if held.issued.is_some() => {
                    tracing::warn!(pod = pod.name(), volume, %error, "cannot ask for another certificate");
                }
                Err(error) => return Err(error),
            }
            self.held.lock().insert(key.clone(), held.clone());
        }
        if let Some(asked) = &held.asked {
            let patience = if held.issued.is_none() { PATIENCE } else { Duration::ZERO };
            match self.outcome(pod, asked, patience).await {
                Ok(Outcome::Issued(issued)) => held = Held { issued: Some(issued), ..Held::default() },
                Ok(Outcome::Refused(error)) => held.refused = Some(error),
                Ok(Outcome::Gone) => held.asked = None,
                Ok(Outcome::Waiting) => {}
                Err(error) if held.issued.is_some() => {
                    tracing::warn!(pod = pod.name(), volume, %error, "cannot see whether there is another certificate");
                }
                Err(error) => return Err(error),
            }
            self.held.lock().insert(key, held.clone());
        }
        match (held.refused, held.issued) {
            (Some(refused), _) => Err(refused),
            (None, Some(issued)) => Ok(issued.credentials),
            (None, None) => Err(CertificateError::NotIssued),
        }
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.held.lock().retain(|(pod, ..), _| pod != uid);
    }

    async fn ask(&self, pod: &Pod, source: &PodCertificateProjection) -> Result<Asked, CertificateError> {
        let type_ = source.key_type.clone();
        let made = tokio::task::spawn_blocking(move || key_and_request(&type_)).await;
        let (key, request) = made.map_err(|error| CertificateError::Key(error.to_string()))??;
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
        let account = account.filter(|a| !a.is_empty()).unwrap_or("default");
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), pod.namespace());
        let account_uid =
            accounts.get(account).await.map_err(failed("fetching service account"))?.metadata.uid;
        let nodes = Api::<Node>::all(self.client.clone());
        let node_uid = nodes.get(&self.node).await.map_err(failed("getting node object"))?.metadata.uid;
        let request = PodCertificateRequest {
            metadata: ObjectMeta {
                generate_name: Some("req-".to_owned()),
                namespace: Some(pod.namespace().to_owned()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Pod".to_owned(),
                    name: pod.name().to_owned(),
                    uid: pod.uid().to_owned(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: PodCertificateRequestSpec {
                signer_name: source.signer_name.clone(),
                pod_name: pod.name().to_owned(),
                pod_uid: pod.uid().to_owned(),
                service_account_name: account.to_owned(),
                service_account_uid: account_uid.unwrap_or_default(),
                node_name: self.node.clone(),
                node_uid: node_uid.unwrap_or_default(),
                max_expiration_seconds: source.max_expiration_seconds,
                stub_pkc_s10_request: ByteString(request),
                unverified_user_annotations: source.user_annotations.clone(),
            },
            status: None,
        };
        let made = self.requests(pod).create(&PostParams::default(), &request).await;
        let made = made.map_err(failed("creating PodCertificateRequest"))?;
        let abandon_at = Timestamp::now() + ABANDON_AFTER;
        Ok(Asked { name: made.metadata.name.unwrap_or_default(), key, abandon_at })
    }

    fn requests(&self, pod: &Pod) -> Api<PodCertificateRequest> {
        Api::namespaced(self.client.clone(), pod.namespace())
    }

    /// Looks at least once.
    async fn outcome(
        &self,
        pod: &Pod,
        asked: &Asked,
        patience: Duration,
    ) -> Result<Outcome, CertificateError> {
        let end = tokio::time::Instant::now() + patience;
        loop {
            let found = self.requests(pod).get_opt(&asked.name).await;
            let outcome = match found.map_err(failed("getting PodCertificateRequest"))? {
                Some(request) => outcome_of(&request, &asked.key),
                None if Timestamp::now() > asked.abandon_at => Outcome::Gone,
                None => Outcome::Waiting,
            };
            if !matches!(outcome, Outcome::Waiting) || tokio::time::Instant::now() >= end {
                return Ok(outcome);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

fn outcome_of(request: &PodCertificateRequest, key: &str) -> Outcome {
    let Some(status) = &request.status else { return Outcome::Waiting };
    for condition in status.conditions.iter().flatten() {
        let refused = |what| {
            let (reason, message) = (condition.reason.clone(), condition.message.clone());
            Outcome::Refused(CertificateError::Refused { what, reason, message })
        };
        match condition.type_.as_str() {
            "Denied" => return refused("denied"),
            "Failed" => return refused("failed"),
            "Issued" => {
                let begin = status.begin_refresh_at.as_ref().map_or_else(Timestamp::now, |time| time.0);
                let renew_at = begin + MAX_JITTER.mul_f64(rand::random::<f64>());
                let chain = clean(status.certificate_chain.as_deref().unwrap_or_default());
                let credentials = Credentials { key: key.to_owned(), chain };
                return Outcome::Issued(Issued { credentials, renew_at });
            }
            _ => {}
        }
    }
    Outcome::Waiting
}

/// The certificates without what stands around them.
fn clean(chain: &str) -> String {
    x509::pem(chain).iter().map(|block| x509::to_pem("CERTIFICATE", &block.der)).collect()
}

/// A new key in PEM, and a request that is signed with it and says nothing else.
fn key_and_request(type_: &str) -> Result<(String, Vec<u8>), CertificateError> {
    let key = match type_ {
        "RSA3072" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072),
        "RSA4096" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_4096),
        "ECDSAP256" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        "ECDSAP384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        "ECDSAP521" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        "ED25519" => KeyPair::generate_for(&rcgen::PKCS_ED25519),
        other => return Err(CertificateError::KeyType(other.to_owned())),
    };
    let failed = |error: rcgen::Error| CertificateError::Key(error.to_string());
    let key = key.map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(failed)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::api::FakeApi;
    use crate::testing::pod;

    const CHAIN: &str = "note\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    fn source(type_: &str) -> PodCertificateProjection {
        let source = json!({"signerName": "example.com/s", "keyType": type_, "maxExpirationSeconds": 3600});
        serde_json::from_value(source).unwrap()
    }

    fn prepared() -> (FakeApi, Certificates, Pod) {
        let api = FakeApi::default();
        api.put("/api/v1/nodes/n1", json!({"metadata": {"name": "n1", "uid": "uid-n1"}}));
        let account = json!({"metadata": {"name": "default", "namespace": "default", "uid": "uid-a"}});
        api.put("/api/v1/namespaces/default/serviceaccounts/default", account);
        let certificates = Certificates::new(api.client(), "n1");
        let mut pod: Pod = serde_json::from_value(pod("p", json!({}))).unwrap();
        pod.metadata.uid = Some("uid-p".to_owned());
        (api, certificates, pod)
    }

    const REQUEST: &str = "/apis/certificates.k8s.io/v1/namespaces/default/podcertificaterequests/";

    fn answer(api: &FakeApi, type_: &str, begin: &str) -> String {
        let at = api.paths(REQUEST).pop().unwrap();
        let mut request = api.get(&at).unwrap();
        request["status"] = json!({
            "conditions": [{"type": type_, "status": "True", "reason": "Why", "message": "so", "lastTransitionTime": begin}],
            "certificateChain": CHAIN, "beginRefreshAt": begin, "notBefore": begin, "notAfter": begin,
        });
        api.put(&at, request);
        at
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_asked_for_once_and_has_what_was_issued_until_it_is_renewed() {
        let (api, certificates, pod) = prepared();
        let source = source("ECDSAP256");
        let get = || certificates.get(&pod, "v", 0, &source);
        assert!(matches!(get().await, Err(CertificateError::NotIssued)));
        let asked = api.get(&api.paths(REQUEST)[0]).unwrap();
        assert_eq!(asked["spec"]["nodeUID"], "uid-n1");
        assert_eq!(asked["spec"]["serviceAccountUID"], "uid-a");
        assert_eq!(asked["metadata"]["ownerReferences"][0]["uid"], "uid-p");
        let first = answer(&api, "Issued", "2999-01-01T00:00:00Z");
        let issued = get().await.unwrap();
        assert!(issued.key.starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_eq!(issued.chain, CHAIN.trim_start_matches("note\n"));
        assert_eq!(get().await.unwrap().key, issued.key);
        assert_eq!(api.paths(REQUEST).len(), 1);

        // Due long ago: what is there stays until another is issued.
        api.remove(&first);
        certificates.forget("uid-p");
        assert!(matches!(get().await, Err(CertificateError::NotIssued)));
        let second = answer(&api, "Issued", "2001-01-01T00:00:00Z");
        let old = get().await.unwrap();
        api.remove(&second);
        assert_eq!(get().await.unwrap().key, old.key);
        answer(&api, "Issued", "2999-01-01T00:00:00Z");
        assert_ne!(get().await.unwrap().key, old.key);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_not_asked_for_again() {
        let (api, certificates, pod) = prepared();
        let source = source("ED25519");
        let get = || certificates.get(&pod, "v", 0, &source);
        assert!(get().await.is_err());
        answer(&api, "Denied", "2999-01-01T00:00:00Z");
        let why = "PodCertificateRequest was permanently denied: reason=\"Why\" message=\"so\"";
        for _ in 0..2 {
            assert_eq!(get().await.err().map(|error| error.to_string()).as_deref(), Some(why));
        }
        assert_eq!(api.paths(REQUEST).len(), 1);
    }

    #[test]
    fn every_type_of_key_signs_a_request_that_can_be_read() {
        for type_ in ["RSA3072", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"] {
            let (key, request) = key_and_request(type_).unwrap();
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "{type_}");
            assert!(x509::request(&request).is_some(), "{type_}");
        }
        assert!(matches!(key_and_request("DSA"), Err(CertificateError::KeyType(_))));
    }
}
