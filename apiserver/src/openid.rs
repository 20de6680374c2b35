//! What others need to check service-account tokens by themselves: OpenID Connect's discovery document and the keys that
//! tokens are signed with, by this server and by those that it shares its store with.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use jsonwebtoken::jwk::Jwk;
use parking_lot::RwLock;
use serde_json::json;

use crate::auth::token::{TokenKeyError, TokenKeys};
use crate::respond::{self, Response};

pub(crate) const CONFIGURATION_PATH: &str = "/.well-known/openid-configuration";
pub(crate) const KEYS_PATH: &str = "/openid/v1/jwks";
/// A server's key is the same at every start; for so long clients may keep it.
const CACHED: &str = "public, max-age=3600";

/// The two documents.
pub(crate) struct OpenId {
    tokens: Arc<TokenKeys>,
    address: Arc<RwLock<SocketAddr>>,
}

impl OpenId {
    /// `address` is where the API is reached from outside, at the moment.
    ///
    /// # Errors
    /// If the key that tokens are signed with has no public half that can be published.
    pub(crate) fn new(
        tokens: Arc<TokenKeys>,
        address: Arc<RwLock<SocketAddr>>,
    ) -> Result<OpenId, TokenKeyError> {
        tokens.public_jwk()?;
        Ok(OpenId { tokens, address })
    }

    fn keys(&self) -> Vec<Jwk> {
        // It was asked for once, and is the same.
        self.tokens.public_jwks().unwrap_or_default()
    }

    fn configuration(&self) -> String {
        let algorithms: BTreeSet<String> =
            self.keys().iter().filter_map(|key| Some(key.common.key_algorithm?.to_string())).collect();
        json!({
            "issuer": self.tokens.issuer(),
            "jwks_uri": format!("https://{}{KEYS_PATH}", self.address.read()),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
        .to_string()
    }

    /// `None` if the path is neither.
    pub(crate) fn answer(&self, path: &str) -> Option<Response> {
        let (text, media_type) = match path {
            CONFIGURATION_PATH => (self.configuration(), "application/json"),
            KEYS_PATH => (json!({"keys": self.keys()}).to_string(), "application/jwk-set+json"),
            _ => return None,
        };
        let mut response = respond::text(200, text);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(CACHED));
        Some(response)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use jsonwebtoken::jwk::Jwk;
    use jsonwebtoken::{DecodingKey, Validation, decode};
    use serde_json::Value;

    use super::{Arc, OpenId, RwLock, TokenKeys};
    use crate::auth::token::{Claims, KubernetesClaims, ObjectClaim, now_s};

    fn claims(issuer: &str) -> Claims {
        let named = |name: &str| ObjectClaim { name: name.into(), uid: "1".into() };
        let kubernetes = KubernetesClaims {
            namespace: "default".into(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: named("default"),
            warnafter: None,
        };
        let (aud, iss, now) = (vec!["somebody".into()], issuer.into(), now_s());
        let (jti, sub) = ("1".into(), "system:serviceaccount:default:default".into());
        Claims { aud, exp: now + 600, iat: now, iss, jti, kubernetes, nbf: now, sub }
    }

    #[test]
    fn a_token_is_checked_with_nothing_but_what_is_published() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let (private, public) = (pair.serialize_pem(), pair.public_key_pem());
        let tokens = TokenKeys::new("https://issuer.test", private.as_bytes(), public.as_bytes()).unwrap();
        let tokens = Arc::new(tokens);
        let address = Arc::new(RwLock::new("192.0.2.1:6443".parse().unwrap()));
        let documents = OpenId::new(tokens.clone(), address).unwrap();

        let configuration: Value = serde_json::from_str(&documents.configuration()).unwrap();
        assert_eq!(configuration["issuer"], "https://issuer.test");
        assert_eq!(configuration["jwks_uri"], "https://192.0.2.1:6443/openid/v1/jwks");
        assert_eq!(configuration["id_token_signing_alg_values_supported"][0], "ES256");

        let keys: Value = serde_json::json!({"keys": documents.keys()});
        assert_eq!(keys["keys"][0]["use"], "sig");
        // Nothing private: a point of the curve and what names it.
        assert!(keys["keys"][0]["d"].is_null(), "{keys}");
        let token = tokens.sign(&claims("https://issuer.test")).unwrap();
        let header: Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap())
                .unwrap();
        assert_eq!(header["kid"], keys["keys"][0]["kid"]);
        let key: Jwk = serde_json::from_value(keys["keys"][0].clone()).unwrap();
        let mut validation = Validation::new(jsonwebtoken::Algorithm::ES256);
        validation.validate_aud = false;
        let key = DecodingKey::from_jwk(&key).unwrap();
        let claims = decode::<Value>(&token, &key, &validation).unwrap().claims;
        assert_eq!(claims["iss"], "https://issuer.test");
    }
}
