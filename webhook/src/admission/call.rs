//! One call of one webhook.

use std::time::Duration;

use skiff_api::Status;
use tokio::time::Instant;

use super::compile::{SideEffects, Webhook};
use super::review::{self, Answer, Fault, Subject, Version};
use super::{Attributes, Phase, Record, rejected};
use crate::client::{CallError, Client, ConfigError, Limits};

/// Upstream gives as long to webhooks that do not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest patch is of an object of 3 MiB, in base64.
const MAX_RESPONSE_BYTES: usize = 8 << 20;

/// Why a webhook has not allowed a request.
#[derive(Debug)]
pub(super) enum CallFailure {
    /// It was not asked, or gave no answer: its failure policy decides.
    Failed(Failure),
    /// It said no, or what it said cannot be done.
    Rejected(Status),
}

#[derive(Debug, thiserror::Error)]
#[error("failed calling webhook {webhook:?}: {why}")]
pub(super) struct Failure {
    pub(super) webhook: String,
    pub(super) why: String,
}

impl Webhook {
    pub(super) fn failed(&self, why: impl Into<String>) -> CallFailure {
        CallFailure::Failed(Failure { webhook: self.name.clone(), why: why.into() })
    }

    /// Asks the webhook. What it says besides yes and no is recorded whatever it says.
    pub(super) async fn call(
        &self,
        client: &Client,
        phase: Phase,
        attributes: &Attributes<'_>,
        subject: &Subject<'_>,
        record: &mut Record,
    ) -> Result<Answer, CallFailure> {
        if attributes.dry_run {
            match self.side_effects {
                None => return Err(self.failed("Webhook SideEffects is nil")),
                Some(SideEffects::Some) => {
                    let message = format!("admission webhook {:?} does not support dry run", self.name);
                    return Err(CallFailure::Rejected(Status::bad_request(message)));
                }
                Some(SideEffects::NoneOnDryRun) => {}
            }
        }
        let version = self.review_versions.iter().find_map(|version| Version::parse(version));
        let Some(version) = version else {
            return Err(self.failed(
                "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)",
            ));
        };
        let answer = self.ask(client, version, phase, attributes, subject).await?;
        for (key, value) in &answer.annotations {
            let key = format!("{}/{key}", self.name);
            record.annotate(key, super::AuditLevel::Metadata, value.clone());
        }
        record.warn(answer.warnings.iter().cloned());
        if answer.is_allowed {
            return Ok(answer);
        }
        Err(CallFailure::Rejected(rejected::denied(&self.name, &answer.status)))
    }

    async fn ask(
        &self,
        client: &Client,
        version: Version,
        phase: Phase,
        attributes: &Attributes<'_>,
        subject: &Subject<'_>,
    ) -> Result<Answer, CallFailure> {
        let no_client = |error: &ConfigError| match error {
            ConfigError::NoTarget => self.failed(format!(
                "could not get REST client: failed calling webhook {:?}: {error}",
                self.name
            )),
            error => self.failed(format!("could not get REST client: {error}")),
        };
        let config = self.client.as_ref().map_err(no_client)?;
        let uid = uuid::Uuid::new_v4().to_string();
        let request = review::request(version, &uid, attributes, subject)
            .map_err(|error| self.failed(format!("could not create admission objects: {error}")))?;
        let timeout =
            self.timeout_seconds.map_or(DEFAULT_TIMEOUT, |seconds| Duration::from_secs(seconds.into()));
        let own = Instant::now() + timeout;
        let limits = Limits {
            deadline: attributes.deadline.map_or(own, |given| given.min(own)),
            max_response_bytes: MAX_RESPONSE_BYTES,
        };
        let document = client.post(config, request.into(), limits).await.and_then(|answer| answer.document());
        let document = document.map_err(|error| match error {
            CallError::Config(error) => no_client(&error),
            error => self.failed(format!("failed to call webhook: {error}")),
        })?;
        review::answer(&document, version, phase, &uid).map_err(|fault| match fault {
            Fault::Undecodable(why) => self.failed(format!("failed to call webhook: {why}")),
            Fault::Invalid(why) => self.failed(format!("received invalid webhook response: {why}")),
        })
    }
}

/// Whether the request itself has been given up.
pub(super) fn is_over(attributes: &Attributes<'_>) -> bool {
    attributes.deadline.is_some_and(|deadline| Instant::now() >= deadline)
}
