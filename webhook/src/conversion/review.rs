//! The `ConversionReview`: what is asked, and what of an answer is one.

use serde::Serialize;
use serde_json::{Value, json};
use skiff_api::Object;

use crate::document::{self, STATUS, Shape, Struct, TypeMeta, Wanted, shortened};

const GROUP: &str = "apiextensions.k8s.io";

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
}

static WANTED_V1: Wanted = Wanted { group: GROUP, version: "v1", shape: &V1 };
static WANTED_V1BETA1: Wanted = Wanted { group: GROUP, version: "v1beta1", shape: &V1BETA1 };
static V1: Struct = Struct {
    name: "ConversionReview",
    qualified: "v1.ConversionReview",
    fields: &[
        ("apiVersion", Shape::Text("string")),
        ("kind", Shape::Text("string")),
        ("response", Shape::Object(&V1_RESPONSE)),
    ],
};
static V1BETA1: Struct = Struct {
    name: "ConversionReview",
    qualified: "v1beta1.ConversionReview",
    fields: &[
        ("apiVersion", Shape::Text("string")),
        ("kind", Shape::Text("string")),
        ("response", Shape::Object(&V1BETA1_RESPONSE)),
    ],
};
static V1_RESPONSE: Struct =
    Struct { name: "ConversionResponse", qualified: "v1.ConversionResponse", fields: RESPONSE };
static V1BETA1_RESPONSE: Struct =
    Struct { name: "ConversionResponse", qualified: "v1beta1.ConversionResponse", fields: RESPONSE };
const RESPONSE: &[(&str, Shape)] = &[
    ("uid", Shape::Text("types.UID")),
    ("convertedObjects", Shape::Anything),
    ("result", Shape::Object(&STATUS)),
];

/// The document that is sent. Upstream's has an empty response, too.
pub(super) fn request(
    version: Version,
    uid: &str,
    to: &str,
    objects: &[&Object],
) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Review<'r> {
        kind: &'r str,
        api_version: String,
        request: Request<'r>,
        response: Value,
    }
    #[derive(Serialize)]
    struct Request<'r> {
        uid: &'r str,
        #[serde(rename = "desiredAPIVersion")]
        desired_api_version: &'r str,
        objects: &'r [&'r Object],
    }
    let wanted = version.wanted();
    serde_json::to_vec(&Review {
        kind: wanted.shape.name,
        api_version: format!("{}/{}", wanted.group, wanted.version),
        request: Request { uid, desired_api_version: to, objects },
        response: json!({"uid": "", "convertedObjects": null, "result": {"metadata": {}}}),
    })
}

/// The objects of an answer that is one to this request.
pub(super) fn objects(mut document: Value, version: Version, uid: &str) -> Result<Vec<Value>, String> {
    let wanted = version.wanted();
    document::check(&document, wanted)?;
    let is_strict = version == Version::V1;
    if is_strict {
        let said = TypeMeta::of(&document);
        let expected = TypeMeta { api_version: "apiextensions.k8s.io/v1", kind: "ConversionReview" };
        if said != expected {
            let (expected, said) = (expected.shown(), said.shown());
            return Err(format!("expected webhook response of {expected}, got {said}"));
        }
    }
    let response = &document["response"];
    if response.is_null() {
        return Err("no response provided".into());
    }
    let found = response["uid"].as_str().unwrap_or_default();
    if is_strict && found != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", shortened(found)));
    }
    let text = |field: &str| shortened(response["result"][field].as_str().unwrap_or_default());
    let (status, message) = (text("status"), text("message"));
    if status != "Success" {
        return Err(match message.as_str() {
            "" => format!("response.result.status was '{status}', not 'Success'"),
            _ => message,
        });
    }
    Ok(match document["response"]["convertedObjects"].take() {
        Value::Array(objects) => objects,
        _ => Vec::new(),
    })
}
