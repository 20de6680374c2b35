//! Authorities that a volume shows: those of one ClusterTrustBundle, or of all of a signer's that a selector picks, each once.
//!
//! Source: upstream's trust bundle manager.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;
use kube::api::ListParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::Value;
use skiff_api::{LabelSelector, x509};

use crate::pod::optional;

/// For how long an answer serves: volumes are refreshed more often than bundles change.
const SERVES: Duration = Duration::from_secs(30);
/// Answers that are kept. Beyond it each pass asks anew.
const MAX_KEPT: usize = 256;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    #[error("while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {0:?} not found")]
    NotFound(String),
    #[error("combination of signerName and labelSelector matched zero ClusterTrustBundles")]
    NoneSelected,
    #[error("while parsing label selector: {0}")]
    Selector(String),
    #[error("while getting ClusterTrustBundles: {0}")]
    Request(#[source] Box<kube::Error>),
}

/// What is asked for: it makes the answer.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Wanted {
    Name(String),
    /// A signer, and the selector as JSON.
    Signer(String, String),
}

/// The bundles of an answer, in PEM; none is an answer, too.
type Texts = Vec<String>;

pub(crate) struct Bundles {
    client: Client,
    kept: Mutex<HashMap<Wanted, (Instant, Texts)>>,
}

impl Bundles {
    pub(crate) fn new(client: Client) -> Bundles {
        Bundles { client, kept: Mutex::default() }
    }

    /// What a projection shows: certificates in PEM, or nothing where it may be nothing.
    pub(crate) async fn get(&self, source: &ClusterTrustBundleProjection) -> Result<Vec<u8>, BundleError> {
        let wanted = match (&source.name, &source.signer_name) {
            (Some(name), _) => Wanted::Name(name.clone()),
            (None, signer) => {
                let selector = serde_json::to_string(&source.label_selector).unwrap_or_default();
                Wanted::Signer(signer.clone().unwrap_or_default(), selector)
            }
        };
        let texts = self.texts(&wanted, source).await?;
        if !texts.is_empty() || optional(source.optional) {
            return Ok(anchors(&texts));
        }
        Err(match wanted {
            Wanted::Name(name) => BundleError::NotFound(name),
            Wanted::Signer(..) => BundleError::NoneSelected,
        })
    }

    async fn texts(
        &self,
        wanted: &Wanted,
        source: &ClusterTrustBundleProjection,
    ) -> Result<Texts, BundleError> {
        let kept = self.kept.lock().get(wanted).cloned();
        if let Some((_, texts)) = kept.as_ref().filter(|(at, _)| at.elapsed() < SERVES) {
            return Ok(texts.clone());
        }
        match (self.ask(wanted, source).await, kept) {
            (Ok(texts), _) => {
                let mut kept = self.kept.lock();
                kept.retain(|_, (at, _)| at.elapsed() < SERVES);
                if kept.len() < MAX_KEPT {
                    kept.insert(wanted.clone(), (Instant::now(), texts.clone()));
                }
                Ok(texts)
            }
            // What was known serves while the API server is away.
            (Err(BundleError::Request(_)), Some((_, texts))) => Ok(texts),
            (Err(error), _) => Err(error),
        }
    }

    async fn ask(
        &self,
        wanted: &Wanted,
        source: &ClusterTrustBundleProjection,
    ) -> Result<Texts, BundleError> {
        let api = Api::<ClusterTrustBundle>::all(self.client.clone());
        let failed = |error| BundleError::Request(Box::new(error));
        match wanted {
            Wanted::Name(name) => {
                let found = api.get_opt(name).await.map_err(failed)?;
                Ok(found.into_iter().map(|bundle| bundle.spec.trust_bundle).collect())
            }
            Wanted::Signer(signer, _) => {
                // Without a selector nothing is meant, and by an empty one everything.
                let Some(selector) = &source.label_selector else { return Ok(Texts::new()) };
                let selector = serde_json::to_value(selector).unwrap_or(Value::Null);
                let selector = LabelSelector::from_json(&selector)
                    .map_err(|status| BundleError::Selector(status.message))?;
                let of_signer = ListParams::default().fields(&format!("spec.signerName={signer}"));
                let list = api.list(&of_signer).await.map_err(failed)?;
                let picked = list.items.into_iter().filter(|bundle| {
                    let labels = bundle.metadata.labels.as_ref();
                    selector.matches(|key| labels?.get(key).map(String::as_str))
                });
                Ok(picked.map(|bundle| bundle.spec.trust_bundle).collect())
            }
        }
    }
}

/// The certificates of all bundles, each once.
fn anchors(texts: &Texts) -> Vec<u8> {
    let known: BTreeSet<Vec<u8>> =
        texts.iter().flat_map(|text| x509::pem(text)).map(|block| block.der).collect();
    known.iter().map(|der| x509::to_pem("CERTIFICATE", der)).collect::<String>().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_several_bundles_is_shown_once_and_without_what_stands_around_it() {
        let block = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        let shown = anchors(&vec![format!("a note\n{}", block("BBBB")), block("AAAA") + &block("BBBB")]);
        assert_eq!(String::from_utf8(shown).unwrap(), block("AAAA") + &block("BBBB"));
    }
}
