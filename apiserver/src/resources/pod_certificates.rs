//! What pods ask certificates for, as far as it takes keys or a clock to judge it. All else about the kind is a rule of its types;
//! who may sign is for admission.
//!
//! Source: upstream's validation of the kind.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use skiff_api::x509::{self, Key, SignedRequest};
use skiff_api::{Cause, Object};

use super::hooks::Hooks;
use crate::call::Part;
use crate::tls;

/// How far from now a certificate may begin to hold.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

pub(super) struct Requests;

impl Hooks for Requests {
    fn validate_create(&self, request: &Object) -> Vec<Cause> {
        unproved(request).into_iter().collect()
    }

    fn validate_update(&self, part: Part, new: &Object, old: &Object) -> Vec<Cause> {
        match part {
            Part::Status => untimely(new, old, Timestamp::now()).into_iter().collect(),
            _ => Vec::new(),
        }
    }
}

/// Whoever asks must have the key. What is no request, or is of a key that is none of those allowed, was refused already.
fn unproved(request: &Object) -> Option<Cause> {
    let spec = &request["spec"];
    if spec["maxExpirationSeconds"].is_null() {
        return None; // Upstream looks no further.
    }
    let der = STANDARD.decode(spec["stubPKCS10Request"].as_str()?).ok()?;
    let signed = x509::signed_request(&der)?;
    let is_allowed = matches!(
        signed.key.kind,
        Key::Ed25519 | Key::P256 | Key::P384 | Key::P521 | Key::Rsa { bits: 3072 | 4096 }
    );
    if !is_allowed || is_signed(&signed) {
        return None;
    }
    Some(Cause::invalid_together("spec.stubPKCS10Request", "invalid signature"))
}

/// Whether the request is signed with the key that it is about.
fn is_signed(request: &SignedRequest<'_>) -> bool {
    let known = tls::provider().signature_verification_algorithms.all;
    let mut fitting = known.iter().filter(|algorithm| {
        algorithm.public_key_alg_id().as_ref() == request.key_algorithm
            && algorithm.signature_alg_id().as_ref() == request.algorithm
    });
    fitting.any(|algorithm| {
        algorithm.verify_signature(request.key_bits, request.signed, request.signature).is_ok()
    })
}

/// A certificate that is issued begins to hold now: what the status says so is that of the certificate, or was refused already.
fn untimely(new: &Object, old: &Object, now: Timestamp) -> Option<Cause> {
    let (status, was) = (&new["status"], &old["status"]);
    if !is_issued(status) || has_ended(was) {
        return None;
    }
    let begins: Timestamp = status["notBefore"].as_str()?.parse().ok()?;
    let chain = x509::pem(status["certificateChain"].as_str()?);
    let leaf = x509::certificate(&chain.first()?.der)?;
    if begins.as_second() != leaf.not_before_s || begins.duration_since(now).abs() < SKEW {
        return None;
    }
    let why = "must be set to within 5 minutes of kube-apiserver's current time";
    Some(Cause::invalid("status.notBefore", &status["notBefore"], why))
}

fn is_issued(status: &Value) -> bool {
    is_one_of(status, &["Issued"])
}

fn has_ended(status: &Value) -> bool {
    is_one_of(status, &["Issued", "Denied", "Failed"])
}

fn is_one_of(status: &Value, types: &[&str]) -> bool {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions
        .any(|c| c["status"] == "True" && c["type"].as_str().is_some_and(|type_| types.contains(&type_)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A request of a new key of an algorithm.
    fn made(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.serialize_request(&key).expect("a request").der().to_vec()
    }

    fn fault(der: &[u8]) -> Option<Cause> {
        unproved(&json!({"spec": {"maxExpirationSeconds": 3600, "stubPKCS10Request": STANDARD.encode(der)}}))
    }

    #[test]
    fn a_request_is_signed_with_its_key_whatever_key_it_is() {
        for algorithm in [
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ECDSA_P521_SHA512,
        ] {
            let mut der = made(algorithm);
            assert_eq!(fault(&der), None, "{algorithm:?}");
            let key_at = x509::signed_request(&der).map(|r| r.key_bits.as_ptr() as usize).expect("a request");
            let in_key = key_at - der.as_ptr() as usize + 20;
            der[in_key] ^= 1;
            let cause = fault(&der).expect("another key has not signed it");
            assert_eq!(
                (cause.field.as_str(), cause.message.as_str()),
                ("spec.stubPKCS10Request", "Invalid value: invalid signature")
            );
        }
    }

    #[test]
    fn a_request_may_be_signed_with_rsa() {
        let pem = include_str!("../../../api/src/x509/request.pem");
        let mut der = x509::pem(pem).remove(0).der;
        assert_eq!(fault(&der), None);
        if let Some(last) = der.last_mut() {
            *last ^= 1;
        }
        assert!(fault(&der).is_some());
    }

    #[test]
    fn a_certificate_begins_to_hold_now() {
        let chain = include_str!("../../../api/src/x509/leaf.pem");
        let leaf = x509::certificate(&x509::pem(chain)[0].der).expect("a certificate");
        let begins = Timestamp::from_second(leaf.not_before_s).expect("a time");
        let status = |type_: &str| {
            json!({"status": {
                "conditions": [{"type": type_, "status": "True"}],
                "certificateChain": chain, "notBefore": begins.to_string(),
            }})
        };
        let (issued, open) = (status("Issued"), json!({}));
        let at = |s: i64| begins + SignedDuration::from_secs(s);
        for now_s in [-299, 0, 299] {
            assert_eq!(untimely(&issued, &open, at(now_s)), None, "{now_s}");
        }
        for now_s in [-300, 300, 86_400] {
            let cause = untimely(&issued, &open, at(now_s)).expect("too far");
            assert_eq!(cause.field, "status.notBefore");
            assert!(
                cause.message.ends_with("within 5 minutes of kube-apiserver's current time"),
                "{cause:?}"
            );
        }
        assert_eq!(untimely(&issued, &issued, at(86_400)), None, "what was issued is not looked at again");
        assert_eq!(untimely(&status("Denied"), &open, at(86_400)), None);
    }
}
