//! Service-account tokens: signed here, bound to an audience, an expiry and, for pods, to the pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// What signs service-account tokens and checks them.
pub(crate) struct TokenKeys {
    issuer: String,
    algorithm: Algorithm,
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
    /// Tokens whose signature was verified, by their digest: a client sends the same one with each request.
    verified: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

#[derive(Debug, Error)]
pub enum TokenKeyError {
    #[error("service-account signing key is neither an EC P-256 nor an RSA private key in PEM")]
    SigningKey(#[source] jsonwebtoken::errors::Error),
    #[error("service-account public key does not fit the signing key's algorithm")]
    VerifyingKey(#[source] jsonwebtoken::errors::Error),
}

/// Tokens are a few hundred bytes; nothing larger is looked at.
const MAX_TOKEN_BYTES: usize = 16 << 10;
/// How many verified tokens are remembered, and how long they may be; past them all are forgotten.
const MAX_VERIFIED: usize = 8192;
const MAX_REMEMBERED_BYTES: usize = 2 << 10;
/// So far in the future a token may begin: a clock may be set back a little just after it was signed. As upstream.
const LEEWAY_S: u64 = 60;

impl TokenKeys {
    /// Reads a key pair in PEM: EC (ES256) or RSA (RS256).
    pub(crate) fn new(
        issuer: &str,
        private_pem: &[u8],
        public_pem: &[u8],
    ) -> Result<TokenKeys, TokenKeyError> {
        let (algorithm, signing) = match EncodingKey::from_ec_pem(private_pem) {
            Ok(key) => (Algorithm::ES256, key),
            Err(_) => {
                let key = EncodingKey::from_rsa_pem(private_pem).map_err(TokenKeyError::SigningKey)?;
                (Algorithm::RS256, key)
            }
        };
        let verifying = match algorithm {
            Algorithm::ES256 => DecodingKey::from_ec_pem(public_pem),
            _ => DecodingKey::from_rsa_pem(public_pem),
        }
        .map_err(TokenKeyError::VerifyingKey)?;
        let key_id = super::authenticate::fingerprint(public_pem);
        let (issuer, verified) = (issuer.to_owned(), Mutex::default());
        Ok(TokenKeys { issuer, algorithm, signing, verifying, key_id, verified })
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The public half of the key, for others to check tokens with.
    pub(crate) fn public_jwk(&self) -> Result<Jwk, TokenKeyError> {
        let mut key =
            Jwk::from_encoding_key(&self.signing, self.algorithm).map_err(TokenKeyError::VerifyingKey)?;
        key.common.public_key_use = Some(PublicKeyUse::Signature);
        key.common.key_id = Some(self.key_id.clone());
        Ok(key)
    }

    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.key_id.clone());
        header.typ = None;
        jsonwebtoken::encode(&header, claims, &self.signing)
    }

    /// Checks signature, issuer, expiry and audience. That what it is bound to still exists is for the caller.
    pub(crate) fn verify(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Arc<Claims>, jsonwebtoken::errors::Error> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(ErrorKind::InvalidToken.into());
        }
        let digest: [u8; 32] = Sha256::digest(token).into();
        let known = self.verified.lock().get(&digest).cloned();
        let claims = match known {
            Some(claims) => claims,
            None => {
                let claims = Arc::new(self.check_signature(token)?);
                if token.len() <= MAX_REMEMBERED_BYTES {
                    let mut verified = self.verified.lock();
                    if verified.len() >= MAX_VERIFIED {
                        verified.clear();
                    }
                    verified.insert(digest, claims.clone());
                }
                claims
            }
        };
        claims.check(audiences, now_s())?;
        Ok(claims)
    }

    /// What never changes of a token: its signature and issuer.
    fn check_signature(&self, token: &str) -> Result<Claims, jsonwebtoken::errors::Error> {
        let mut validation = Validation::new(self.algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // `Claims::check` does these, each time.
        (validation.validate_aud, validation.validate_exp, validation.validate_nbf) = (false, false, false);
        Ok(jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)?.claims)
    }
}

impl Claims {
    fn check(&self, audiences: &[String], now_s: u64) -> Result<(), jsonwebtoken::errors::Error> {
        let refusal = match () {
            () if self.exp <= now_s => ErrorKind::ExpiredSignature,
            () if self.nbf > now_s + LEEWAY_S => ErrorKind::ImmatureSignature,
            () if !self.aud.iter().any(|one| audiences.contains(one)) => ErrorKind::InvalidAudience,
            () => return Ok(()),
        };
        Err(refusal.into())
    }
}

/// The claims of a bound token, as upstream lays them out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) aud: Vec<String>,
    pub(crate) exp: u64,
    pub(crate) iat: u64,
    pub(crate) iss: String,
    pub(crate) jti: String,
    #[serde(rename = "kubernetes.io")]
    pub(crate) kubernetes: KubernetesClaims,
    pub(crate) nbf: u64,
    pub(crate) sub: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct KubernetesClaims {
    pub(crate) namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<ObjectClaim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<ObjectClaim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<ObjectClaim>,
    pub(crate) serviceaccount: ObjectClaim,
    /// After this a client that still uses the token counts as stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) warnafter: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ObjectClaim {
    pub(crate) name: String,
    pub(crate) uid: String,
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> TokenKeys {
        let pair = rcgen::KeyPair::generate().expect("a key");
        let (private, public) = (pair.serialize_pem(), pair.public_key_pem());
        TokenKeys::new("issuer", private.as_bytes(), public.as_bytes()).expect("keys")
    }

    fn claims(exp: u64) -> Claims {
        let bound = ObjectClaim { name: "default".into(), uid: "1".into() };
        let kubernetes = KubernetesClaims {
            namespace: "a".into(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: bound,
            warnafter: None,
        };
        let (iss, jti, sub) =
            ("issuer".to_owned(), "1".to_owned(), "system:serviceaccount:a:default".to_owned());
        Claims { aud: vec!["api".into()], exp, iat: 0, iss, jti, kubernetes, nbf: 0, sub }
    }

    #[test]
    fn a_clock_that_is_set_back_by_less_than_a_minute_refuses_no_token() {
        let keys = keys();
        let api = ["api".to_owned()];
        let begins_in = |seconds: u64| {
            let now = now_s();
            let claims = Claims { nbf: now + seconds, iat: now + seconds, ..claims(now + 600) };
            keys.verify(&keys.sign(&claims).expect("signs"), &api)
        };
        begins_in(50).expect("valid");
        assert_eq!(begins_in(90).expect_err("too early").kind(), &ErrorKind::ImmatureSignature);
    }

    #[test]
    fn a_token_is_verified_once_and_its_time_and_audience_each_time() {
        let keys = keys();
        let token = keys.sign(&claims(now_s() + 600)).expect("signs");
        let api = ["api".to_owned()];
        keys.verify(&token, &api).expect("valid");
        assert_eq!(keys.verified.lock().len(), 1);
        keys.verify(&token, &["other".to_owned()]).expect_err("another audience");
        // As if it had come long ago.
        let old = Arc::new(claims(now_s() - 1));
        keys.verified.lock().values_mut().for_each(|known| *known = old.clone());
        let refused = keys.verify(&token, &api).expect_err("expired");
        assert_eq!(refused.kind(), &ErrorKind::ExpiredSignature);
        let forged = self::keys().sign(&claims(now_s() + 600)).expect("signs");
        keys.verify(&forged, &api).expect_err("another key's");
        assert_eq!(keys.verified.lock().len(), 1, "what is not valid is not remembered");
    }
}
