//! An authorizer that asks a webhook.
//!
//! ```text
//! question ─ match conditions ─ what it said of late ─ a place ─ SubjectAccessReview ─┬─ opinion
//!              (no: no opinion)                            ▲        up to 5 times     │
//!                                                          └────── back-off ──────────┘ failed: by its failure policy
//! ```
//!
//! # Guarantees
//! - A question takes no longer than [`ATTEMPTS`] time-outs and the pauses between them, and holds up nobody else's but by its
//!   [place](places); one that waits for a place in vain for the time of one call fails as a call does.
//! - What is remembered is bounded, in number and in the length of each.
//! - Only what is likely to pass is tried again: 429, 500, 504, and a connection that was reset.
//!
//! Source: `plugin/pkg/authorizer/webhook` and `util/webhook` of apiserver.

mod conditions;
mod decisions;
pub(crate) mod kubeconfig;
mod places;
mod review;

use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use parking_lot::Mutex;
use rand::Rng as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use skiff_webhook::authorization::{self, Answer};
use skiff_webhook::{Client, ClientConfig};
use tokio::time::Instant;

use super::attributes::{Attributes, Decision, Opinion};
use crate::metrics::authorization::WebhookMetrics;

pub(crate) use conditions::Condition;
pub(crate) use review::Version;

use conditions::Matched;
use decisions::{Key, Remembrance};
use places::Places;

/// As often is a webhook asked one question, as upstream.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const FACTOR: f64 = 1.5;
const JITTER: f64 = 0.2;
/// What is asked by a requester whose own words are longer is not remembered.
const MAX_REMEMBERED_BYTES: usize = 10_000;

/// How a webhook is asked, and what its answers count for.
pub(crate) struct Settings {
    pub(crate) config: ClientConfig,
    pub(crate) version: Version,
    pub(crate) timeout: Duration,
    /// Zero where allowed requests are not remembered.
    pub(crate) authorized_ttl: Duration,
    pub(crate) unauthorized_ttl: Duration,
    /// What it is taken to say where it fails: `Deny` or `None`.
    pub(crate) on_error: Opinion,
    pub(crate) conditions: Vec<Condition>,
}

pub(crate) struct WebhookAuthorizer {
    settings: Settings,
    client: Arc<Client>,
    metrics: WebhookMetrics,
    remembered: Mutex<Remembrance>,
    places: Places,
}

impl WebhookAuthorizer {
    pub(crate) fn new(settings: Settings, client: Arc<Client>, metrics: WebhookMetrics) -> WebhookAuthorizer {
        let (remembered, places) = (Mutex::default(), Places::default());
        WebhookAuthorizer { settings, client, metrics, remembered, places }
    }

    pub(crate) async fn authorize(&self, asked: &Attributes<'_>) -> Decision {
        let spec = review::spec(asked);
        match self.is_wanted(&spec) {
            Ok(true) => {}
            Ok(false) => return Decision::none(""),
            Err(why) => return self.failed(why),
        }
        let document = review::document(spec, self.settings.version).to_string();
        let key: Key = Sha256::digest(&document).into();
        let known = self.remembered.lock().get(&key);
        let answer = match known {
            Some(answer) => answer,
            None => match self.ask(&asked.user.name, document.into()).await {
                Ok(answer) => {
                    self.remember(asked, key, &answer);
                    answer
                }
                Err(why) => return self.failed(why),
            },
        };
        opinion(answer)
    }

    /// Whether its match conditions want it asked.
    fn is_wanted(&self, spec: &Value) -> Result<bool, String> {
        if self.settings.conditions.is_empty() {
            return Ok(true);
        }
        let begun = Clock::now();
        let matched = conditions::matches(&self.settings.conditions, spec);
        let has_failed = matches!(matched, Matched::Failed(_) | Matched::No { has_failed: true });
        self.metrics.conditions(begun.elapsed(), has_failed, matches!(matched, Matched::No { .. }));
        match matched {
            Matched::Yes => Ok(true),
            Matched::No { .. } => Ok(false),
            Matched::Failed(why) => Err(why),
        }
    }

    fn failed(&self, why: String) -> Decision {
        Decision { opinion: self.settings.on_error, reason: String::new(), error: Some(why) }
    }

    fn remember(&self, asked: &Attributes<'_>, key: Key, answer: &Answer) {
        let controlled = [
            asked.namespace,
            asked.verb,
            asked.group,
            asked.version,
            asked.resource,
            asked.subresource,
            asked.name,
            asked.path,
        ];
        if controlled.iter().map(|text| text.len()).sum::<usize>() < MAX_REMEMBERED_BYTES {
            let Settings { authorized_ttl, unauthorized_ttl, .. } = self.settings;
            let ttl = if answer.is_allowed { authorized_ttl } else { unauthorized_ttl };
            self.remembered.lock().insert(key, answer.clone(), ttl);
        }
    }

    /// Asks until there is an answer, or an error that will not pass.
    async fn ask(&self, user: &str, document: bytes::Bytes) -> Result<Answer, String> {
        let (mut n_attempts, mut pause) = (0, FIRST_PAUSE);
        loop {
            n_attempts += 1;
            let (error, result) = match self.ask_once(user, document.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if error.is_passing && n_attempts < ATTEMPTS {
                let jittered = pause.mul_f64(1.0 + JITTER * rand::rng().random::<f64>());
                tokio::time::sleep(jittered).await;
                pause = pause.mul_f64(FACTOR);
                continue;
            }
            let why = error.to_string();
            tracing::error!(why, "an authorization webhook gave no answer");
            if self.settings.on_error == Opinion::None {
                self.metrics.failed_open(result);
            }
            return Err(why);
        }
    }

    async fn ask_once(
        &self,
        user: &str,
        document: bytes::Bytes,
    ) -> Result<Answer, (authorization::Error, &'static str)> {
        let Settings { config, version, timeout, .. } = &self.settings;
        let (call, deadline) = (self.metrics.call(), Instant::now() + *timeout);
        let answer = match tokio::time::timeout_at(deadline, self.places.take(user)).await {
            Ok(_place) => {
                authorization::review(&self.client, config, version.as_str(), document, deadline).await
            }
            Err(_) => Err(authorization::Error::crowded()),
        };
        let result = match &answer {
            Ok(_) => "success",
            Err(error) if error.is_timeout => "timeout",
            Err(_) => "error",
        };
        call.ended(result);
        answer.map_err(|error| (error, result))
    }
}

fn opinion(answer: Answer) -> Decision {
    let (opinion, error) = match (answer.is_denied, answer.is_allowed) {
        (true, true) => {
            let why = "webhook subject access review returned both allow and deny response";
            (Opinion::Deny, Some(why.to_owned()))
        }
        (true, false) => (Opinion::Deny, None),
        (false, true) => (Opinion::Allow, None),
        (false, false) => (Opinion::None, None),
    };
    Decision { opinion, reason: answer.reason, error }
}
