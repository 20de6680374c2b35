//! Service-account tokens: signed here, bound to an audience, an expiry and, for pods, to the pod.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::digest::fingerprint;

use arc_swap::ArcSwap;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, KeyAlgorithm, PublicKeyUse};
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
    /// Keys that other servers sign with.
    others: ArcSwap<Vec<Other>>,
    /// Tokens whose signature was verified, by their digest: a client sends the same one with each request.
    verified: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

/// The public half of another server's key.
struct Other {
    jwk: Jwk,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Other {
    /// `None` for what is no key that signs tokens here.
    fn new(jwk: Jwk) -> Option<Other> {
        let algorithm = match jwk.common.key_algorithm? {
            KeyAlgorithm::ES256 => Algorithm::ES256,
            KeyAlgorithm::RS256 => Algorithm::RS256,
            _ => return None,
        };
        jwk.common.key_id.as_ref()?;
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Other { jwk, algorithm, key })
    }
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
        let key_id = fingerprint(public_pem);
        let (issuer, verified, others) = (issuer.to_owned(), Mutex::default(), ArcSwap::default());
        Ok(TokenKeys { issuer, algorithm, signing, verifying, key_id, others, verified })
    }

    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Has tokens count that other servers signed. What is no key is left out, and said.
    pub(crate) fn accept(&self, keys: Vec<Jwk>) {
        let own = Some(&self.key_id);
        let others = keys.into_iter().filter(|key| key.common.key_id.as_ref() != own);
        let others = others.filter_map(|key| {
            let named = key.common.key_id.clone();
            let other = Other::new(key);
            if other.is_none() {
                tracing::warn!(
                    key = named,
                    "what another server published is no key of service-account tokens"
                );
            }
            other
        });
        self.others.store(Arc::new(others.collect()));
        // What one of them signed that is gone does not count any more.
        self.verified.lock().clear();
    }

    /// The public halves of all keys whose tokens count, this server's first.
    pub(crate) fn public_jwks(&self) -> Result<Vec<Jwk>, TokenKeyError> {
        let mut all = vec![self.public_jwk()?];
        all.extend(self.others.load().iter().map(|other| other.jwk.clone()));
        Ok(all)
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
        let named = jsonwebtoken::decode_header(token)?.kid;
        let others = self.others.load();
        let other = others.iter().find(|other| named.is_some() && other.jwk.common.key_id == named);
        let (algorithm, key) = match other {
            Some(other) => (other.algorithm, &other.key),
            None => (self.algorithm, &self.verifying),
        };
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // `Claims::check` does these, each time.
        (validation.validate_aud, validation.validate_exp, validation.validate_nbf) = (false, false, false);
        Ok(jsonwebtoken::decode::<Claims>(token, key, &validation)?.claims)
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
    fn tokens_of_servers_whose_keys_are_known_count_and_of_no_others() {
        let (mine, theirs, stranger) = (keys(), keys(), keys());
        let api = ["api".to_owned()];
        let token = theirs.sign(&claims(now_s() + 600)).expect("signs");
        mine.verify(&token, &api).expect_err("not known yet");
        mine.accept(vec![theirs.public_jwk().expect("a key"), mine.public_jwk().expect("a key")]);
        mine.verify(&token, &api).expect("signed by another server");
        mine.verify(&mine.sign(&claims(now_s() + 600)).expect("signs"), &api).expect("its own");
        assert_eq!(mine.public_jwks().expect("keys").len(), 2, "each once");
        let foreign = stranger.sign(&claims(now_s() + 600)).expect("signs");
        mine.verify(&foreign, &api).expect_err("a stranger's");
        // One that names another's key is checked with that.
        let mut lying = Header::new(Algorithm::ES256);
        lying.kid = Some(theirs.key_id);
        let lie = jsonwebtoken::encode(&lying, &claims(now_s() + 600), &stranger.signing).expect("signs");
        mine.verify(&lie, &api).expect_err("not signed by whom it names");
        mine.accept(Vec::new());
        mine.verify(&token, &api).expect_err("taken away");
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
