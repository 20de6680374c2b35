//! Who is asked whether a request is allowed: upstream's flags.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use skiff_apiserver::{AuthorizationFlags, AuthorizationOptions};

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct AuthorizationArgs {
    /// A file (AuthorizationConfiguration of `apiserver.config.k8s.io/v1`) that says who is asked whether a request is allowed, in
    /// which order; it may be changed while the server runs
    #[arg(long, value_name = "FILE")]
    pub(crate) authorization_config: Option<PathBuf>,
    /// Who is asked whether a request is allowed, in this order: `Node`, `RBAC`, `Webhook`, `AlwaysAllow`, `AlwaysDeny`
    /// [default: Node,RBAC]
    #[arg(long, value_name = "MODES", value_delimiter = ',')]
    pub(crate) authorization_mode: Option<Vec<String>>,
    /// The kubeconfig of the webhook of `--authorization-mode Webhook`
    #[arg(long, value_name = "FILE")]
    pub(crate) authorization_webhook_config_file: Option<PathBuf>,
    /// Version of the SubjectAccessReviews that the webhook is sent: `v1` or `v1beta1` [default: v1beta1]
    #[arg(long, value_name = "VERSION")]
    pub(crate) authorization_webhook_version: Option<String>,
    /// How long a request is remembered that the webhook has allowed [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = skiff_apiserver::duration)]
    pub(crate) authorization_webhook_cache_authorized_ttl: Option<Duration>,
    /// How long a request is remembered that it has not allowed [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = skiff_apiserver::duration)]
    pub(crate) authorization_webhook_cache_unauthorized_ttl: Option<Duration>,
}

impl AuthorizationArgs {
    /// # Errors
    /// For a file beside other flags.
    pub(crate) fn options(&self) -> Result<AuthorizationOptions> {
        let flags = AuthorizationFlags {
            config: self.authorization_config.clone(),
            modes: self.authorization_mode.clone(),
            webhook_config: self.authorization_webhook_config_file.clone(),
            webhook_version: self.authorization_webhook_version.clone(),
            authorized_ttl: self.authorization_webhook_cache_authorized_ttl,
            unauthorized_ttl: self.authorization_webhook_cache_unauthorized_ttl,
        };
        flags.options().context("reading the flags of authorization")
    }
}
