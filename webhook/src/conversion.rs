//! Objects of custom kinds, converted between their versions by a webhook.
//!
//! One call converts all objects of a list that are of another version. What comes back is held against what was sent: number,
//! order, version, kind, name, namespace and UID are the same, and of the metadata only labels and annotations are taken.
//!
//! Source: `k8s.io/apiextensions-apiserver/pkg/apiserver/conversion`.

mod check;
mod review;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use skiff_api::{Object, Status};
use tokio::time::Instant;

use crate::client::{CallError, Client, ClientConfig, ConfigError, Limits};
use crate::document::{self, TypeMeta, split};
use review::Version;

/// Upstream gives conversions as long.
const TIMEOUT: Duration = Duration::from_secs(30);
/// An answer may be as large as this, or as [`MAX_GROWTH`] times the request.
const MAX_RESPONSE_BYTES: usize = 8 << 20;
const MAX_GROWTH: usize = 4;

/// Converts the objects of one custom kind.
#[derive(Debug)]
pub struct Converter {
    client: Arc<Client>,
    config: ClientConfig,
    group: String,
    versions: Vec<String>,
    review_versions: Vec<String>,
}

/// Why objects could not be converted. The words are upstream's; as a `Status` it is 500 without a reason, as there.
#[derive(Debug, thiserror::Error)]
pub enum ConversionError {
    #[error("request to convert CR to an invalid group/version: {0}")]
    To(String),
    #[error("request to convert CR from an invalid group/version: {0}")]
    From(String),
    #[error("request to convert CR list failed, list index {index} has invalid group/version: {version}")]
    FromItem { index: usize, version: String },
    #[error("no supported conversion review versions")]
    NoReviewVersion,
    #[error("conversion webhook for {kind} failed: {why}")]
    Failed { kind: String, why: String },
    #[error("conversion webhook for {kind} returned {found} objects, expected {expected}")]
    Number { kind: String, found: usize, expected: usize },
    #[error("conversion webhook for {kind} returned {what}: {why}")]
    Invalid { kind: String, what: String, why: String },
    /// Upstream tells it without saying of what.
    #[error("{0}")]
    NoObject(String),
}

impl From<ConversionError> for Status {
    fn from(error: ConversionError) -> Status {
        Status::new(500, "", error.to_string())
    }
}

impl Converter {
    /// The converter of a `CustomResourceDefinition` whose strategy is `Webhook`.
    ///
    /// # Errors
    /// If its `clientConfig` says nowhere to call.
    pub fn new(client: Arc<Client>, definition: &Object) -> Result<Converter, ConfigError> {
        let spec = &definition["spec"];
        let webhook = &spec["conversion"]["webhook"];
        let texts = |list: &Value| -> Vec<String> {
            let items = list.as_array().into_iter().flatten();
            items
                .filter_map(|item| item.as_str().or_else(|| item["name"].as_str()).map(str::to_owned))
                .collect()
        };
        Ok(Converter {
            client,
            config: ClientConfig::from_json(&webhook["clientConfig"])?,
            group: spec["group"].as_str().unwrap_or_default().to_owned(),
            versions: texts(&spec["versions"]),
            review_versions: texts(&webhook["conversionReviewVersions"]),
        })
    }

    /// The object in the version `to`, such as `example.com/v2`.
    ///
    /// # Errors
    /// If the webhook does not convert it, or into something else.
    pub async fn convert(&self, object: Object, to: &str) -> Result<Object, ConversionError> {
        let said = TypeMeta::of(&object);
        self.check_versions(said.api_version, to)?;
        let kind = said.shown();
        // What has nothing in it has nothing to convert.
        let is_bare = object.as_object().is_some_and(|fields| {
            fields.len() == 2 && fields.contains_key("kind") && fields.contains_key("apiVersion")
        });
        if is_bare {
            let mut object = object;
            object["apiVersion"] = to.into();
            return Ok(object);
        }
        let mut objects = self.convert_all(kind, Form::Object, vec![object], to).await?;
        objects.pop().ok_or_else(|| ConversionError::NoObject("no objects returned".into()))
    }

    /// The items of a list in the version `to`, in their order. Items may be of several versions; `list` is the `apiVersion` and
    /// `kind` that the list has meanwhile, which is what errors speak of.
    ///
    /// # Errors
    /// As [`Converter::convert`]; one item that is not converted fails them all.
    pub async fn convert_list(
        &self,
        list: (&str, &str),
        items: Vec<Object>,
        to: &str,
    ) -> Result<Vec<Object>, ConversionError> {
        self.check_versions(list.0, to)?;
        for (index, item) in items.iter().enumerate() {
            let version = TypeMeta::of(item).api_version;
            if !self.has(version) {
                return Err(ConversionError::FromItem { index, version: version.to_owned() });
            }
        }
        let kind = TypeMeta { api_version: list.0, kind: list.1 }.shown();
        self.convert_all(kind, Form::List, items, to).await
    }

    fn has(&self, api_version: &str) -> bool {
        let (group, version) = split(api_version);
        group == self.group && self.versions.iter().any(|known| known == version)
    }

    fn check_versions(&self, from: &str, to: &str) -> Result<(), ConversionError> {
        if !self.has(to) {
            return Err(ConversionError::To(to.to_owned()));
        }
        if !self.has(from) {
            return Err(ConversionError::From(from.to_owned()));
        }
        Ok(())
    }

    async fn convert_all(
        &self,
        kind: String,
        form: Form,
        mut objects: Vec<Object>,
        to: &str,
    ) -> Result<Vec<Object>, ConversionError> {
        let version = self.review_versions.iter().find_map(|version| Version::parse(version));
        let version = version.ok_or(ConversionError::NoReviewVersion)?;
        let to_convert: Vec<&Object> = objects.iter().filter(|object| object["apiVersion"] != to).collect();
        if to_convert.is_empty() {
            return Ok(objects);
        }
        let uid = uuid::Uuid::new_v4().to_string();
        let failed = |why: String| ConversionError::Failed { kind: kind.clone(), why };
        let request =
            review::request(version, &uid, to, &to_convert).map_err(|error| failed(error.to_string()))?;
        let expected = to_convert.len();
        let limits = Limits {
            deadline: Instant::now() + TIMEOUT,
            max_response_bytes: MAX_RESPONSE_BYTES.max(request.len().saturating_mul(MAX_GROWTH)),
        };
        let answer = self.client.post(&self.config, request.into(), limits).await;
        let document = answer.and_then(|answer| answer.document());
        let document = document.map_err(|error: CallError| failed(error.to_string()))?;
        let converted = review::objects(document, version, &uid).map_err(failed)?;
        if converted.len() != expected {
            return Err(ConversionError::Number { kind, found: converted.len(), expected });
        }
        let mut places = objects.iter_mut().filter(|object| object["apiVersion"] != to);
        for (index, converted) in converted.into_iter().enumerate() {
            let Some(original) = places.next() else { break };
            let checked = check::checked(original, converted, to);
            *original = checked.map_err(|fault| fault.told(kind.clone(), form, index))?;
        }
        Ok(objects)
    }
}

/// What an answer to the request `uid` makes of an object, without a webhook that gives it.
///
/// # Errors
/// What is wrong with the answer.
#[doc(hidden)]
pub fn answered(bytes: &[u8], uid: &str, original: &Object, to: &str) -> Result<Vec<Object>, String> {
    let objects = review::objects(document::parse(bytes)?, Version::V1, uid)?;
    let checked = objects.into_iter().map(|object| check::checked(original, object, to));
    checked.collect::<Result<_, _>>().map_err(|fault| format!("{fault:?}"))
}

/// What is converted, which says how its faults are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Object,
    List,
}
