//! One call of one webhook.

use std::time::Duration;

use skiff_api::Status;
use tokio::time::Instant;

use super::compile::{FailurePolicy, SideEffects, Webhook};
use super::review::{self, Answer, Fault, Subject, Version};
use super::{Attributes, CallEnd, Called, Host, Operation, Phase, Record, rejected};
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
    /// It said no.
    Denied(Status),
    /// It may not be asked, or what it said cannot be done.
    Internal(Status),
}

#[derive(Debug, thiserror::Error)]
#[error("failed calling webhook {webhook:?}: {why}")]
pub(super) struct Failure {
    pub(super) webhook: String,
    pub(super) why: String,
    /// What upstream counts it under.
    pub(super) code: u16,
}

const BAD_REQUEST: u16 = 400;
const INTERNAL: u16 = 500;
const UNAVAILABLE: u16 = 503;

/// What a call comes to for the request.
#[derive(Debug)]
pub(super) enum Settled {
    Goes,
    /// The webhook failed, and that is ignored.
    FailedOpen,
    Fails(Status),
}

impl Webhook {
    /// What the webhook has answered is none.
    pub(super) fn failed(&self, why: impl Into<String>) -> CallFailure {
        self.failed_with(UNAVAILABLE, why)
    }

    fn failed_with(&self, code: u16, why: impl Into<String>) -> CallFailure {
        CallFailure::Failed(Failure { webhook: self.name.clone(), why: why.into(), code })
    }

    /// What a call comes to for the request: nothing, or why it fails. The host is told.
    pub(super) fn settle<T>(
        &self,
        host: &dyn Host,
        phase: Phase,
        operation: Operation,
        duration: Duration,
        result: Result<T, CallFailure>,
    ) -> Settled {
        let (end, code, settled) = match result {
            Ok(_) => (CallEnd::Allowed, 200, Settled::Goes),
            Err(CallFailure::Denied(status)) => (CallEnd::Denied, status.code, Settled::Fails(status)),
            Err(CallFailure::Internal(status)) => (CallEnd::Internal, 0, Settled::Fails(status)),
            Err(CallFailure::Failed(failure)) if self.failure_policy == FailurePolicy::Ignore => {
                tracing::warn!(%failure, "failing open");
                (CallEnd::FailedOpen, failure.code, Settled::FailedOpen)
            }
            Err(CallFailure::Failed(failure)) => {
                let status = rejected::internal(&failure.to_string());
                (CallEnd::Failed, failure.code, Settled::Fails(status))
            }
        };
        host.called(&Called { webhook: &self.name, phase, operation, duration, end, code });
        settled
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
                None => return Err(self.failed_with(BAD_REQUEST, "Webhook SideEffects is nil")),
                Some(SideEffects::Some) => {
                    let message = format!("admission webhook {:?} does not support dry run", self.name);
                    return Err(CallFailure::Internal(Status::bad_request(message)));
                }
                Some(SideEffects::NoneOnDryRun) => {}
            }
        }
        let version = self.review_versions.iter().find_map(|version| Version::parse(version));
        let Some(version) = version else {
            return Err(self.failed_with(
                BAD_REQUEST,
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
        Err(CallFailure::Denied(rejected::denied(&self.name, &answer.status)))
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
            error => self.failed_with(INTERNAL, format!("could not get REST client: {error}")),
        };
        let config = self.client.as_ref().map_err(no_client)?;
        let uid = uuid::Uuid::new_v4().to_string();
        let request = review::request(version, &uid, attributes, subject).map_err(|error| {
            self.failed_with(BAD_REQUEST, format!("could not create admission objects: {error}"))
        })?;
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
            CallError::Answered(status) => {
                self.failed_with(status.code, format!("failed to call webhook: {}", status.message))
            }
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
