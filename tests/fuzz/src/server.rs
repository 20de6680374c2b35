//! A server in this process, for whole requests.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use skiff_apiserver::store::{SqliteOptions, SqliteStore};
use skiff_apiserver::{ApiServer, ApiService, Config, Kinds, KubeletConfig, ServiceAccountConfig, UserInfo};
use tokio::runtime::Runtime;

pub(crate) struct Server {
    server: ApiServer,
    pub(crate) runtime: Runtime,
    /// How long an answer may take to begin.
    pub(crate) patience: Duration,
    _folder: tempfile::TempDir,
}

impl Server {
    pub(crate) fn start() -> Result<Server> {
        let folder = tempfile::tempdir()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let entered = runtime.enter();
        let signing = rcgen::KeyPair::generate()?;
        let kubelet = rcgen::generate_simple_self_signed(["kubelet".to_owned()])?;
        let certificate_pem: Vec<u8> = kubelet.cert.pem().into();
        let config = Config {
            store: Arc::new(SqliteStore::open(SqliteOptions::new(folder.path().join("state.db")))?),
            tls: None,
            front_proxy: None,
            advertise: "192.0.2.1".parse()?,
            port: 6443,
            service_cidr: "10.96.0.0/16".parse()?,
            cluster_domain: "cluster.local".into(),
            kinds: Kinds::builtin(),
            event_ttl: skiff_apiserver::EVENT_TTL,
            node_certificate_grace: Duration::ZERO,
            disabled_admission: Vec::new(),
            authorization: skiff_apiserver::AuthorizationOptions::default(),
            on_long_thread: || (),
            service_account: ServiceAccountConfig {
                private_key_pem: signing.serialize_pem().into(),
                public_key_pem: signing.public_key_pem().into(),
                issuer: None,
            },
            kubelet: KubeletConfig {
                ca_pem: certificate_pem.clone(),
                certificate_pem,
                key_pem: kubelet.signing_key.serialize_pem().into(),
                allow_loopback: false,
            },
        };
        drop(entered);
        let server = runtime.block_on(ApiServer::start(config))?;
        // More than a request may take.
        Ok(Server { server, runtime, patience: Duration::from_secs(70), _folder: folder })
    }

    pub(crate) fn service(&self) -> ApiService {
        self.server.service_for(UserInfo::new("admin", &["system:masters"]))
    }
}
