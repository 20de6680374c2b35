//! Who is asked whether a request is allowed, as flags or a file say it.
//!
//! ```text
//! --authorization-config FILE ─ read ─ validate ─┐
//! --authorization-mode … ────────────────────────┴─▶ Configuration ─ build ─▶ Chain
//! ```
//!
//! Source: `apis/apiserver` of apiserver, `kubeapiserver/options/authorization.go` and `kubeapiserver/authorizer` of kube-apiserver.

mod duration;
mod read;
mod validate;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use skiff_webhook::{Client, ClientConfig, ConfigError};
use thiserror::Error;

use super::attributes::Opinion;
use super::authorize::{Chain, Decides, Link};
use super::webhook::kubeconfig::{self, KubeconfigError};
use super::webhook::{Condition, Settings, Version, WebhookAuthorizer};
use crate::metrics::authorization::AuthorizationMetrics;

pub(super) use validate::validate;

/// How long a webhook has to answer that was named by a flag.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The name of a webhook that was named by a flag.
const DEFAULT_NAME: &str = "default";

/// Who is asked whether a request is allowed.
#[derive(Clone, Debug)]
pub enum AuthorizationOptions {
    /// In the order of `--authorization-mode`.
    Modes(AuthorizationModes),
    /// As a file says, which may change while the server runs: `--authorization-config`.
    File(PathBuf),
}

impl Default for AuthorizationOptions {
    fn default() -> Self {
        AuthorizationOptions::Modes(AuthorizationModes::default())
    }
}

/// What `--authorization-mode` and the flags of its webhook say.
#[derive(Clone, Debug)]
pub struct AuthorizationModes {
    pub modes: Vec<String>,
    /// The kubeconfig of the webhook.
    pub webhook_config: Option<PathBuf>,
    /// `v1` or `v1beta1`, of the reviews that the webhook is sent.
    pub webhook_version: String,
    /// How long an allowed request is remembered.
    pub authorized_ttl: Duration,
    /// How long a request is remembered that was not allowed.
    pub unauthorized_ttl: Duration,
}

impl Default for AuthorizationModes {
    fn default() -> Self {
        AuthorizationModes {
            modes: vec!["Node".to_owned(), "RBAC".to_owned()],
            webhook_config: None,
            webhook_version: "v1beta1".to_owned(),
            authorized_ttl: Duration::from_secs(5 * 60),
            unauthorized_ttl: Duration::from_secs(30),
        }
    }
}

/// The same without what was not said: flags of which none was given say nothing.
#[derive(Clone, Debug, Default)]
pub struct AuthorizationFlags {
    pub config: Option<PathBuf>,
    pub modes: Option<Vec<String>>,
    pub webhook_config: Option<PathBuf>,
    pub webhook_version: Option<String>,
    pub authorized_ttl: Option<Duration>,
    pub unauthorized_ttl: Option<Duration>,
}

impl AuthorizationFlags {
    /// # Errors
    /// For a file beside other flags.
    pub fn options(self) -> Result<AuthorizationOptions, AuthorizationError> {
        let is_any = self.modes.is_some()
            || self.webhook_config.is_some()
            || self.webhook_version.is_some()
            || self.authorized_ttl.is_some()
            || self.unauthorized_ttl.is_some();
        if let Some(file) = self.config {
            return if is_any { Err(AuthorizationError::Both) } else { Ok(AuthorizationOptions::File(file)) };
        }
        let default = AuthorizationModes::default();
        Ok(AuthorizationOptions::Modes(AuthorizationModes {
            modes: self.modes.unwrap_or(default.modes),
            webhook_config: self.webhook_config,
            webhook_version: self.webhook_version.unwrap_or(default.webhook_version),
            authorized_ttl: self.authorized_ttl.unwrap_or(default.authorized_ttl),
            unauthorized_ttl: self.unauthorized_ttl.unwrap_or(default.unauthorized_ttl),
        }))
    }
}

/// Why nobody knows whom to ask.
#[derive(Debug, Error)]
pub enum AuthorizationError {
    #[error(
        "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined"
    )]
    Both,
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// What is wrong with the document, before it is looked at as a whole.
    #[error("failed to load AuthorizationConfiguration from file: {0}")]
    Unreadable(String),
    /// All that is wrong with it.
    #[error("{}", together(.0))]
    Invalid(Vec<String>),
    #[error("authorizer type {type_} is not allowed if it was not enabled at initial server startup")]
    Added { type_: &'static str },
    #[error("authorizer {name:?}: cannot use its kubeconfig {}", path.display())]
    Kubeconfig { name: String, path: PathBuf, source: KubeconfigError },
    #[error("authorizer {name:?}: its webhook cannot be called")]
    Webhook { name: String, source: ConfigError },
    #[error("authorizer {name:?}: {why}")]
    Condition { name: String, why: String },
    #[error(
        "authorizer {name:?}: connectionInfo of the type InClusterConfig is not built: name the webhook by a KubeConfigFile"
    )]
    InCluster { name: String },
}

/// Several errors as one, as upstream prints them.
fn together(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// Who is asked, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Configuration(pub(super) Vec<Configured>);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Configured {
    /// `Node`, `RBAC`, `AlwaysAllow` or `AlwaysDeny`, whose names are their types in lower case.
    BuiltIn(BuiltIn),
    Webhook(Webhook),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum BuiltIn {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
}

impl BuiltIn {
    pub(super) fn parse(text: &str) -> Option<BuiltIn> {
        Some(match text {
            "AlwaysAllow" => BuiltIn::AlwaysAllow,
            "AlwaysDeny" => BuiltIn::AlwaysDeny,
            "Node" => BuiltIn::Node,
            "RBAC" => BuiltIn::Rbac,
            _ => return None,
        })
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            BuiltIn::AlwaysAllow => "AlwaysAllow",
            BuiltIn::AlwaysDeny => "AlwaysDeny",
            BuiltIn::Node => "Node",
            BuiltIn::Rbac => "RBAC",
        }
    }

    pub(super) fn name(self) -> String {
        self.as_str().to_ascii_lowercase()
    }
}

/// A webhook as it is configured, valid in itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Webhook {
    pub(super) name: String,
    pub(super) timeout: Duration,
    /// Zero where it is not remembered.
    pub(super) authorized_ttl: Duration,
    pub(super) unauthorized_ttl: Duration,
    pub(super) version: Version,
    pub(super) on_error: Opinion,
    /// `None` where the webhook is to be found as pods find the API.
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) conditions: Vec<String>,
}

/// What a chain is built with.
pub(crate) struct Builder {
    pub(crate) client: Arc<Client>,
    pub(crate) metrics: AuthorizationMetrics,
}

impl Configuration {
    /// The types that are not webhooks.
    pub(super) fn built_in(&self) -> BTreeSet<BuiltIn> {
        let built_in = self.0.iter().filter_map(|one| match one {
            Configured::BuiltIn(built_in) => Some(*built_in),
            Configured::Webhook(_) => None,
        });
        built_in.collect()
    }

    /// Where the webhooks are, as their kubeconfigs say now.
    pub(super) fn webhooks(&self) -> Result<Vec<ClientConfig>, AuthorizationError> {
        let webhooks = self.0.iter().filter_map(|one| match one {
            Configured::BuiltIn(_) => None,
            Configured::Webhook(webhook) => Some(webhook.client_config()),
        });
        webhooks.collect()
    }

    /// The chain, with webhooks that are where `webhooks` says.
    pub(super) fn build(
        &self,
        webhooks: &[ClientConfig],
        builder: &Builder,
    ) -> Result<Chain, AuthorizationError> {
        let mut webhooks = webhooks.iter();
        let mut links = Vec::new();
        for configured in &self.0 {
            let (type_, name, decides) = match configured {
                Configured::BuiltIn(built_in) => {
                    let decides = match built_in {
                        BuiltIn::AlwaysAllow => Decides::AlwaysAllow,
                        BuiltIn::AlwaysDeny => Decides::AlwaysDeny,
                        BuiltIn::Node => Decides::Node,
                        BuiltIn::Rbac => Decides::Rbac,
                    };
                    (built_in.as_str(), built_in.name(), decides)
                }
                Configured::Webhook(webhook) => {
                    let Some(config) = webhooks.next() else { continue };
                    let authorizer = Box::new(webhook.build(config.clone(), builder)?);
                    ("Webhook", webhook.name.clone(), Decides::Webhook(authorizer))
                }
            };
            let decisions = builder.metrics.decisions(type_, &name);
            links.push(Link { name, decides, decisions });
        }
        Ok(Chain(links))
    }
}

impl Webhook {
    fn client_config(&self) -> Result<ClientConfig, AuthorizationError> {
        let name = || self.name.clone();
        let Some(path) = &self.kubeconfig else {
            return Err(AuthorizationError::InCluster { name: name() });
        };
        let unusable = |source| AuthorizationError::Kubeconfig { name: name(), path: path.clone(), source };
        kubeconfig::load(path).map_err(unusable)
    }

    fn build(
        &self,
        config: ClientConfig,
        builder: &Builder,
    ) -> Result<WebhookAuthorizer, AuthorizationError> {
        let name = || self.name.clone();
        let unusable = |source| AuthorizationError::Webhook { name: name(), source };
        builder.client.check(&config).map_err(unusable)?;
        let conditions: Result<Vec<Condition>, String> =
            self.conditions.iter().map(|expression| Condition::compile(expression)).collect();
        let settings = Settings {
            config,
            version: self.version,
            timeout: self.timeout,
            authorized_ttl: self.authorized_ttl,
            unauthorized_ttl: self.unauthorized_ttl,
            on_error: self.on_error,
            conditions: conditions.map_err(|why| AuthorizationError::Condition { name: name(), why })?,
        };
        let metrics = builder.metrics.of_webhook(&self.name);
        Ok(WebhookAuthorizer::new(settings, builder.client.clone(), metrics))
    }
}

/// What the flags say.
///
/// # Errors
/// All that is wrong with them, in upstream's words.
pub(super) fn of_modes(flags: &AuthorizationModes) -> Result<Configuration, AuthorizationError> {
    let mut errors = Vec::new();
    if flags.modes.is_empty() {
        errors.push("at least one authorization-mode must be passed".to_owned());
    }
    let has_webhook = flags.modes.iter().any(|mode| mode == "Webhook");
    for mode in flags.modes.iter().filter(|mode| *mode != "Webhook" && BuiltIn::parse(mode).is_none()) {
        errors.push(format!("authorization-mode {mode:?} is not a valid mode"));
    }
    if has_webhook && flags.webhook_config.is_none() {
        errors.push("authorization-mode Webhook's authorization config file not passed".to_owned());
    }
    if !has_webhook && flags.webhook_config.is_some() {
        errors.push("cannot specify --authorization-webhook-config-file without mode Webhook".to_owned());
    }
    let distinct: BTreeSet<&String> = flags.modes.iter().collect();
    if distinct.len() < flags.modes.len() {
        let all: Vec<String> = flags.modes.iter().map(|mode| format!("{mode:?}")).collect();
        let all = all.join(" ");
        errors.push(format!("authorization-mode [{all}] has mode specified more than once"));
    }
    let version = Version::parse(&flags.webhook_version);
    if has_webhook && version.is_none() {
        errors.push(format!(
            "unsupported webhook authorizer version {:?}, supported versions are \"v1\", \"v1beta1\"",
            flags.webhook_version
        ));
    }
    if !errors.is_empty() {
        return Err(AuthorizationError::Invalid(errors));
    }
    let configured = flags.modes.iter().filter_map(|mode| match BuiltIn::parse(mode) {
        Some(built_in) => Some(Configured::BuiltIn(built_in)),
        None => Some(Configured::Webhook(Webhook {
            name: DEFAULT_NAME.to_owned(),
            timeout: TIMEOUT,
            authorized_ttl: flags.authorized_ttl,
            unauthorized_ttl: flags.unauthorized_ttl,
            version: version?,
            on_error: Opinion::None,
            kubeconfig: flags.webhook_config.clone(),
            conditions: Vec::new(),
        })),
    });
    Ok(Configuration(configured.collect()))
}

/// What a file says. On a reload all types that are built in must stay, which are `required`.
///
/// # Errors
/// All that is wrong with it, in upstream's words.
pub(super) fn of_file(
    text: &[u8],
    required: &BTreeSet<BuiltIn>,
) -> Result<Configuration, AuthorizationError> {
    let document = read::read(text).map_err(AuthorizationError::Unreadable)?;
    let configuration = validate(&document).map_err(|causes| {
        let told = causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message));
        AuthorizationError::Invalid(told.collect())
    })?;
    let mut errors = read::misnamed(&document);
    let missing: Vec<&str> =
        required.difference(&configuration.built_in()).map(|built_in| built_in.as_str()).collect();
    if !missing.is_empty() {
        errors.push(format!("missing required types: [{}]", missing.join(" ")));
    }
    if errors.is_empty() { Ok(configuration) } else { Err(AuthorizationError::Invalid(errors)) }
}

#[cfg(test)]
mod tests;
