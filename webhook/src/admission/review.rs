//! The `AdmissionReview`: what is asked, and what of an answer is one.
//!
//! Source: `request/admissionreview.go` of upstream's webhook plug-in.

use base64::Engine as _;
use serde::Serialize;
use serde_json::Value;
use skiff_api::Object;

use super::{Attributes, GroupVersionKind, GroupVersionResource, Phase, UserInfo};
use crate::document::{self, STATUS, Shape, Struct, TypeMeta, Wanted, shortened};

const GROUP: &str = "admission.k8s.io";

/// A version of the review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V1Beta1,
}

impl Version {
    pub(super) fn parse(text: &str) -> Option<Version> {
        match text {
            "v1" => Some(Version::V1),
            "v1beta1" => Some(Version::V1Beta1),
            _ => None,
        }
    }

    fn wanted(self) -> &'static Wanted {
        match self {
            Version::V1 => &WANTED_V1,
            Version::V1Beta1 => &WANTED_V1BETA1,
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Version::V1 => "admission.k8s.io/v1",
            Version::V1Beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

static WANTED_V1: Wanted = Wanted { group: GROUP, version: "v1", shape: &V1 };
static WANTED_V1BETA1: Wanted = Wanted { group: GROUP, version: "v1beta1", shape: &V1BETA1 };
static V1: Struct = Struct {
    name: "AdmissionReview",
    qualified: "v1.AdmissionReview",
    fields: &[
        ("apiVersion", Shape::Text("string")),
        ("kind", Shape::Text("string")),
        ("response", Shape::Object(&V1_RESPONSE)),
    ],
};
static V1BETA1: Struct = Struct {
    name: "AdmissionReview",
    qualified: "v1beta1.AdmissionReview",
    fields: &[
        ("apiVersion", Shape::Text("string")),
        ("kind", Shape::Text("string")),
        ("response", Shape::Object(&V1BETA1_RESPONSE)),
    ],
};
static V1_RESPONSE: Struct = Struct {
    name: "AdmissionResponse",
    qualified: "v1.AdmissionResponse",
    fields: &[
        ("uid", Shape::Text("types.UID")),
        ("allowed", Shape::Bool),
        ("status", Shape::Object(&STATUS)),
        ("patch", Shape::Bytes),
        ("patchType", Shape::Text("v1.PatchType")),
        ("auditAnnotations", Shape::TextByText),
        ("warnings", Shape::Texts),
    ],
};
static V1BETA1_RESPONSE: Struct = Struct {
    name: "AdmissionResponse",
    qualified: "v1beta1.AdmissionResponse",
    fields: &[
        ("uid", Shape::Text("types.UID")),
        ("allowed", Shape::Bool),
        ("status", Shape::Object(&STATUS)),
        ("patch", Shape::Bytes),
        ("patchType", Shape::Text("v1beta1.PatchType")),
        ("auditAnnotations", Shape::TextByText),
        ("warnings", Shape::Texts),
    ],
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'r> {
    kind: &'r str,
    api_version: &'r str,
    request: Request<'r>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'r> {
    uid: &'r str,
    kind: &'r GroupVersionKind,
    resource: &'r GroupVersionResource,
    #[serde(skip_serializing_if = "str::is_empty")]
    sub_resource: &'r str,
    request_kind: &'r GroupVersionKind,
    request_resource: &'r GroupVersionResource,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_sub_resource: &'r str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'r str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'r str,
    operation: &'r str,
    user_info: &'r UserInfo,
    object: Option<&'r Object>,
    old_object: Option<&'r Object>,
    dry_run: bool,
    options: Option<&'r Object>,
}

/// What a webhook is asked about: the request, as the webhook has registered for it.
#[derive(Clone, Copy)]
pub(super) struct Subject<'r> {
    pub(super) kind: &'r GroupVersionKind,
    pub(super) resource: &'r GroupVersionResource,
    pub(super) object: Option<&'r Object>,
    pub(super) old_object: Option<&'r Object>,
}

/// The document that is sent.
pub(super) fn request(
    version: Version,
    uid: &str,
    attributes: &Attributes<'_>,
    subject: &Subject<'_>,
) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Review {
        kind: "AdmissionReview",
        api_version: version.api_version(),
        request: Request {
            uid,
            kind: subject.kind,
            resource: subject.resource,
            sub_resource: attributes.subresource,
            request_kind: attributes.kind,
            request_resource: attributes.resource,
            request_sub_resource: attributes.subresource,
            name: attributes.name,
            namespace: attributes.namespace,
            operation: attributes.operation.as_str(),
            user_info: attributes.user,
            object: subject.object,
            old_object: subject.old_object,
            dry_run: attributes.dry_run,
            options: attributes.options,
        },
    })
}

/// An answer to a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) is_allowed: bool,
    /// Empty if there is none.
    pub(super) patch: Vec<u8>,
    pub(super) patch_type: String,
    /// `Null` if there is none.
    pub(super) status: Value,
    pub(super) warnings: Vec<String>,
    pub(super) annotations: Vec<(String, String)>,
}

/// Why an answer is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is no review of the version.
    Undecodable(String),
    Invalid(String),
}

/// Reads an answer to the request `uid`.
pub(super) fn answer(document: &Value, version: Version, phase: Phase, uid: &str) -> Result<Answer, Fault> {
    document::check(document, version.wanted()).map_err(Fault::Undecodable)?;
    let response = &document["response"];
    if response.is_null() {
        return Err(Fault::Invalid("webhook response was absent".into()));
    }
    if version == Version::V1 {
        check_identity(document, uid).map_err(Fault::Invalid)?;
    }
    let patch = response["patch"].as_str().unwrap_or_default().replace(['\r', '\n'], "");
    let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap_or_default();
    let (patch, patch_type) =
        patched(version, phase, patch, response["patchType"].as_str()).map_err(Fault::Invalid)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let warnings = response["warnings"].as_array().into_iter().flatten();
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    Ok(Answer {
        is_allowed: response["allowed"] == true,
        patch,
        patch_type,
        status: response["status"].clone(),
        warnings: warnings.map(text).collect(),
        annotations: annotations.map(|(key, value)| (key.clone(), text(value))).collect(),
    })
}

fn check_identity(document: &Value, uid: &str) -> Result<(), String> {
    let found = document["response"]["uid"].as_str().unwrap_or_default();
    if found != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", shortened(found)));
    }
    let said = TypeMeta::of(document);
    let expected = TypeMeta { api_version: Version::V1.api_version(), kind: "AdmissionReview" };
    if said != expected {
        let (expected, said) = (expected.shown(), said.shown());
        return Err(format!("expected webhook response of {expected}, got {said}"));
    }
    Ok(())
}

/// The patch with its type, which v1 is strict about.
fn patched(
    version: Version,
    phase: Phase,
    patch: Vec<u8>,
    patch_type: Option<&str>,
) -> Result<(Vec<u8>, String), String> {
    let is_there = !patch.is_empty();
    match (version, phase) {
        (Version::V1Beta1, Phase::Validating) => Ok((Vec::new(), String::new())),
        (Version::V1Beta1, Phase::Mutating) => {
            let patch_type = if is_there { "JSONPatch" } else { "" };
            Ok((patch, patch_type.into()))
        }
        (Version::V1, Phase::Validating) if is_there => {
            Err("validating webhook may not return response.patch".into())
        }
        (Version::V1, Phase::Validating) if patch_type.is_some() => {
            Err("validating webhook may not return response.patchType".into())
        }
        (Version::V1, Phase::Validating) => Ok((Vec::new(), String::new())),
        (Version::V1, Phase::Mutating) => match patch_type {
            None if is_there => Err("webhook returned response.patch but not response.patchType".into()),
            Some(_) if !is_there => Err("webhook returned response.patchType but not response.patch".into()),
            Some("") => Err("webhook returned invalid response.patchType of \"\"".into()),
            patch_type => Ok((patch, patch_type.unwrap_or_default().to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const UID: &str = "u";

    fn review(version: Version) -> Value {
        json!({"apiVersion": version.api_version(), "kind": "AdmissionReview", "response": {
            "uid": UID, "allowed": true, "patch": "W10=", "patchType": "JSONPatch",
            "warnings": ["w"], "auditAnnotations": {"a": "b"},
            "status": {"status": "Failure", "message": "m", "reason": "r", "code": 400, "metadata": {"continue": "c"},
                "details": {"name": "n", "causes": [{"reason": "r", "message": "m", "field": "f"}], "retryAfterSeconds": 1}},
        }})
    }

    /// All places in a document.
    fn places(value: &Value, path: &str, into: &mut Vec<String>) {
        into.push(path.to_owned());
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(key, value)| places(value, &format!("{path}/{key}"), into));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(n, value)| places(value, &format!("{path}/{n}"), into));
            }
            _ => {}
        }
    }

    #[test]
    fn an_answer_with_anything_anywhere_is_read_or_refused() {
        let odd = [
            json!(null),
            json!(true),
            json!(-1),
            json!(1.5),
            json!(u64::MAX),
            json!(""),
            json!("\u{e9}/\u{e9}/$"),
            json!([]),
            json!([null, 1, "a"]),
            json!({}),
            json!({"": null}),
        ];
        let mut all = Vec::new();
        places(&review(Version::V1), "", &mut all);
        let (mut n_read, mut n_refused) = (0, 0);
        for place in &all {
            for value in &odd {
                for (version, phase) in [
                    (Version::V1, Phase::Mutating),
                    (Version::V1, Phase::Validating),
                    (Version::V1Beta1, Phase::Mutating),
                    (Version::V1Beta1, Phase::Validating),
                ] {
                    let mut document = review(version);
                    *document.pointer_mut(place).expect(place) = value.clone();
                    match answer(&document, version, phase, UID) {
                        Ok(answer) => {
                            n_read += 1;
                            let sent = crate::admission::rejected::denied("a", &answer.status);
                            assert!((400..600).contains(&sent.code), "{place} {value}");
                        }
                        Err(_) => n_refused += 1,
                    }
                }
            }
        }
        assert!(n_read > 100 && n_refused > 300, "{n_read} read, {n_refused} refused");
    }
}
