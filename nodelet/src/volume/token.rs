//! Service-account tokens for pods: bound to the pod, renewed before they end.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

use crate::pod::PodExt;

const DEFAULT_EXPIRATION_S: i64 = 3600;
/// Long-lived tokens are renewed after a day all the same.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("failed to fetch token: {0}")]
    Request(#[source] Box<kube::Error>),
    #[error("failed to fetch token: the API server answered without a token")]
    Empty,
}

/// Pod, audience and lifetime.
type Key = (String, Option<String>, i64);

struct Token {
    token: String,
    renew_at: Timestamp,
    expires_at: Timestamp,
}

pub(crate) struct Tokens {
    client: Client,
    cache: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    pub(crate) fn new(client: Client) -> Tokens {
        Tokens { client, cache: Mutex::default() }
    }

    pub(crate) async fn get(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        expiration: Option<i64>,
    ) -> Result<String, TokenError> {
        let audience = audience.filter(|a| !a.is_empty()).map(str::to_owned);
        let seconds = expiration.unwrap_or(DEFAULT_EXPIRATION_S);
        let key = (pod.uid().to_owned(), audience.clone(), seconds);
        let now = Timestamp::now();
        if let Some(token) = self.cache.lock().get(&key).filter(|t| now < t.renew_at) {
            return Ok(token.token.clone());
        }
        match self.request(pod, audience, seconds).await {
            Ok(token) => {
                let text = token.token.clone();
                self.cache.lock().insert(key, token);
                Ok(text)
            }
            // A token that is still good serves while the API server is away.
            Err(error) => match self.cache.lock().get(&key).filter(|t| now < t.expires_at) {
                Some(token) => Ok(token.token.clone()),
                None => Err(error),
            },
        }
    }

    async fn request(&self, pod: &Pod, audience: Option<String>, seconds: i64) -> Result<Token, TokenError> {
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
        let account = account.filter(|a| !a.is_empty()).unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audience.into_iter().collect()),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let api = Api::<ServiceAccount>::namespaced(self.client.clone(), pod.namespace());
        let asked_at = Timestamp::now();
        let answer: Result<TokenRequest, _> =
            api.create_subresource("token", account, &PostParams::default(), &request).await;
        let status = answer.map_err(|e| TokenError::Request(Box::new(e)))?.status.ok_or(TokenError::Empty)?;
        let token = status.token.filter(|t| !t.is_empty()).ok_or(TokenError::Empty)?;
        let expires_at = status.expiration_timestamp.ok_or(TokenError::Empty)?.0;
        Ok(Token { token, renew_at: renew_at(asked_at, expires_at), expires_at })
    }

    pub(crate) fn forget(&self, uid: &str) {
        self.cache.lock().retain(|(pod, _, _), _| pod != uid);
    }
}

/// After 80 % of the token's life, and after a day at the latest.
fn renew_at(asked_at: Timestamp, expires_at: Timestamp) -> Timestamp {
    let life = Duration::try_from(expires_at.duration_since(asked_at)).unwrap_or_default();
    asked_at.checked_add(life.mul_f64(0.8).min(MAX_AGE)).unwrap_or(asked_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_four_fifths_of_their_life() {
        let at = |s| Timestamp::from_second(s).unwrap();
        assert_eq!(renew_at(at(0), at(1000)), at(800));
        assert_eq!(renew_at(at(0), at(31_536_000)), at(86_400));
        assert_eq!(renew_at(at(100), at(0)), at(100));
    }
}
