//! What a server is started from, and why it may not start.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use skiff_api::{Kinds, Status};
use thiserror::Error;

use crate::admission::plugins::AdmissionPlugin;
use crate::auth::configuration::{AuthorizationError, AuthorizationOptions};
use crate::auth::rbac::PolicyError;
use crate::auth::token::TokenKeyError;
use crate::proxy::kubelet::KubeletConfig;
use crate::services::cidr::ServiceCidr;
use crate::store::{Store, StoreError};
use crate::tls::{FrontProxyConfig, TlsConfig, TlsError};

/// How long events are kept, as upstream's `--event-ttl` if it is not given.
pub const EVENT_TTL: Duration = Duration::from_secs(3600);

pub struct Config {
    pub store: Arc<dyn Store>,
    /// Without it the server only answers in process.
    pub tls: Option<TlsConfig>,
    /// Without it the server shows no certificate to API servers that stand behind it, and knows no proxies before it.
    pub front_proxy: Option<FrontProxyConfig>,
    /// The address and port that endpoints of the `kubernetes` Service show.
    pub advertise: IpAddr,
    pub port: u16,
    pub service_cidr: ServiceCidr,
    /// `cluster.local`
    pub cluster_domain: String,
    /// What is built in: [`Kinds::builtin`], and whatever else was declared.
    pub kinds: Kinds,
    /// How long events are kept after they were last written.
    pub event_ttl: Duration,
    /// How long after its end the certificate of a node that is still known lets it ask for the next one.
    pub node_certificate_grace: Duration,
    /// Plug-ins of admission that are turned off.
    pub disabled_admission: Vec<AdmissionPlugin>,
    /// Who is asked whether a request is allowed.
    pub authorization: AuthorizationOptions,
    pub service_account: ServiceAccountConfig,
    pub kubelet: KubeletConfig,
    /// What each thread calls first that may keep the administrators and the cluster's own components waiting: those that
    /// serve nodes and everybody else, and those of heavy work.
    pub on_long_thread: fn(),
}

/// The key pair of service-account tokens.
pub struct ServiceAccountConfig {
    /// EC P-256 or RSA, PKCS#8, PEM.
    pub private_key_pem: Vec<u8>,
    pub public_key_pem: Vec<u8>,
    /// `https://kubernetes.default.svc.<cluster domain>` if unset.
    pub issuer: Option<String>,
}

#[derive(Debug, Error)]
pub enum Error {
    #[error("cannot read the store")]
    Store(#[from] StoreError),
    #[error("cannot use the TLS files")]
    Tls(#[from] TlsError),
    #[error("cannot use the service-account keys")]
    TokenKeys(#[from] TokenKeyError),
    #[error("cannot use the configuration of authorization")]
    Authorization(#[from] AuthorizationError),
    #[error("cannot create the cluster's first objects")]
    Bootstrap(#[source] Status),
    #[error("the server was configured without TLS and cannot listen")]
    NoTls,
    #[error("the server was configured without a front proxy's certificate and shows none")]
    NoFrontProxy,
    #[error("cannot read the roles that every cluster has")]
    Policy(#[from] PolicyError),
    #[error("cannot start the threads that serve connections")]
    Threads(#[source] io::Error),
}
