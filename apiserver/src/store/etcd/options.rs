//! How etcd is reached.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// URLs of the members.
    pub endpoints: Vec<String>,
    /// For members that speak TLS.
    pub tls: Option<EtcdTls>,
    /// How often the servers compact, and how old what they compact is; upstream's default. Zero: this one never does.
    pub compaction_interval: Duration,
}

impl EtcdOptions {
    pub fn new(endpoints: impl IntoIterator<Item = String>) -> Self {
        EtcdOptions {
            endpoints: endpoints.into_iter().collect(),
            tls: None,
            compaction_interval: Duration::from_secs(5 * 60),
        }
    }
}

/// In PEM.
#[derive(Clone, Default)]
pub struct EtcdTls {
    /// Whose certificates of members count.
    pub ca_pem: Option<Vec<u8>>,
    /// The certificate that is shown to members, and its key.
    pub client_pem: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let EtcdTls { ca_pem, client_pem } = self;
        f.debug_struct("EtcdTls")
            .field("ca", &ca_pem.is_some())
            .field("client", &client_pem.is_some())
            .finish_non_exhaustive()
    }
}
