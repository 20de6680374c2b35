//! Certificate signing requests: whose they are, and which are well-formed. Who may approve and sign them is for admission.
//!
//! Source: upstream's strategy and validation of the kind.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use skiff_api::{Cause, Kind, Object};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;

use super::hooks::Hooks;
use crate::auth::UserInfo;
use crate::call::Part;
use crate::clock::now;

mod validate;

pub(crate) const GROUP: &str = "certificates.k8s.io";
const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";

pub(crate) fn is_signing_request(kind: &Kind) -> bool {
    kind.group == GROUP && kind.kind == "CertificateSigningRequest"
}

pub(super) struct Requests;

impl Hooks for Requests {
    /// Who asks is who the server saw asking, whatever the request says.
    fn prepare_create(&self, user: &UserInfo, request: &mut Object) {
        if let Some(spec) = request["spec"].as_object_mut() {
            for field in ["username", "uid", "groups", "extra"] {
                spec.remove(field);
            }
            spec.insert("username".into(), user.name.as_str().into());
            if !user.uid.is_empty() {
                spec.insert("uid".into(), user.uid.as_str().into());
            }
            if !user.groups.is_empty() {
                spec.insert("groups".into(), json!(user.groups));
            }
            if !user.extra.is_empty() {
                spec.insert("extra".into(), json!(user.extra));
            }
        }
        request["status"] = json!({});
    }

    /// What an update of a part may not touch is put back, and conditions get their times.
    fn prepare_update(&self, part: Part, new: &mut Object, old: &Object) {
        match part {
            Part::Main => {
                new["spec"] = old["spec"].clone();
            }
            Part::Status => {
                for type_ in [APPROVED, DENIED] {
                    keep_conditions(new, old, type_);
                }
                set_times(new, old);
            }
            Part::Approval => set_times(new, old),
            Part::Finalize | Part::EphemeralContainers | Part::Resize => {}
        }
    }

    fn validate_create(&self, request: &Object) -> Vec<Cause> {
        validate::validate_create(request)
    }

    fn validate_update(&self, part: Part, new: &Object, old: &Object) -> Vec<Cause> {
        validate::validate_update(part, new, old)
    }
}

pub(crate) fn conditions(request: &Object) -> &[Value] {
    request["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn conditions_of<'r>(request: &'r Object, type_: &'r str) -> impl Iterator<Item = &'r Value> {
    conditions(request).iter().filter(move |c| c["type"] == type_)
}

/// Puts the old values of a type back, unless some were added or taken away: validation refuses that.
fn keep_conditions(new: &mut Object, old: &Object, type_: &str) {
    let before: Vec<Value> = conditions_of(old, type_).cloned().collect();
    if before.len() != conditions_of(new, type_).count() {
        return;
    }
    let all = new.get_mut("status").and_then(|s| s.get_mut("conditions")).and_then(Value::as_array_mut);
    for (condition, value) in all.into_iter().flatten().filter(|c| c["type"] == type_).zip(before) {
        *condition = value;
    }
}

fn set_times(new: &mut Object, old: &Object) {
    let before = conditions(old).to_vec();
    // Looking a field up by index would leave a null where there is none.
    let all = new.get_mut("status").and_then(|s| s.get_mut("conditions")).and_then(Value::as_array_mut);
    for condition in all.into_iter().flatten() {
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = now();
        }
        if condition["lastTransitionTime"].is_null() {
            let same = before.iter().find(|c| {
                c["type"] == condition["type"]
                    && c["status"] == condition["status"]
                    && !c["lastTransitionTime"].is_null()
            });
            condition["lastTransitionTime"] = same.map_or_else(now, |c| c["lastTransitionTime"].clone());
        }
    }
}

/// What a request for a certificate says of its subject.
pub(crate) struct Subject {
    pub(crate) common_name: String,
    pub(crate) organizations: Vec<String>,
}

/// Reads `spec.request`: one PEM block with a request that whoever holds the key has signed.
///
/// # Errors
/// A sentence for the one who sent it.
pub(crate) fn parse(request: &Object) -> Result<Subject, String> {
    let not_pem = || "PEM block type must be CERTIFICATE REQUEST".to_owned();
    let bytes =
        STANDARD.decode(request["spec"]["request"].as_str().unwrap_or_default()).map_err(|_| not_pem())?;
    let (pem, _) = Pem::read(std::io::Cursor::new(bytes)).map_err(|_| not_pem())?;
    if pem.label != "CERTIFICATE REQUEST" {
        return Err(not_pem());
    }
    let (rest, parsed) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|_| "the PEM block holds no PKCS#10 certificate request".to_owned())?;
    if !rest.is_empty() {
        return Err("trailing data after the certificate request".to_owned());
    }
    parsed.verify_signature().map_err(|e| format!("the signature of the request is not valid: {e}"))?;
    let subject = &parsed.certification_request_info.subject;
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        value.as_str().map(str::to_owned).map_err(|_| "the subject of the request is not text".to_owned())
    };
    Ok(Subject {
        // Of several the last counts, as upstream reads them.
        common_name: subject.iter_common_name().last().map(text).transpose()?.unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect::<Result<_, _>>()?,
    })
}
