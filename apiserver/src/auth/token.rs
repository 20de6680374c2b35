//! Service-account tokens: signed here, bound to an audience, an expiry and, for pods, to the pod.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What signs service-account tokens and checks them.
pub(crate) struct TokenKeys {
    issuer: String,
    algorithm: Algorithm,
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
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
        Ok(TokenKeys { issuer: issuer.to_owned(), algorithm, signing, verifying, key_id })
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
    ) -> Result<Claims, jsonwebtoken::errors::Error> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(jsonwebtoken::errors::ErrorKind::InvalidToken.into());
        }
        let mut validation = Validation::new(self.algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(audiences);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = 0;
        Ok(jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation)?.claims)
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
