//! The way in for programs: an address on the loopback, an authority, and kubeconfigs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use skiff_apiserver::TlsConfig;
use tokio::net::TcpListener;

/// How a control plane is reached, by whom.
pub(crate) struct Access {
    pub(crate) port: u16,
    folder: PathBuf,
    authority: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

struct Pair {
    certificate_pem: String,
    key_pem: String,
}

impl Access {
    /// A free port, and an authority of its own. What is written is written to the folder.
    pub(crate) async fn open(folder: &Path) -> Result<(TcpListener, Access)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test-ca");
        let authority = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
        let port = listener.local_addr()?.port();
        Ok((listener, Access { port, folder: folder.to_owned(), authority }))
    }

    fn issue(&self, name: &str, groups: &[&str]) -> Result<Pair> {
        let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, *group);
        }
        let key = rcgen::KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        Ok(Pair { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.authority.pem()
    }

    /// What the server shows, and whom it knows.
    pub(crate) fn tls(&self) -> Result<TlsConfig> {
        let serving = self.issue("skiff-apiserver", &[])?;
        Ok(TlsConfig {
            certificate_chain_pem: serving.certificate_pem.into(),
            key_pem: serving.key_pem.into(),
            client_ca_pem: self.authority.pem().into(),
        })
    }

    /// A kubeconfig of a user whom the authority vouches for.
    pub(crate) fn kubeconfig(&self, name: &str, groups: &[&str]) -> Result<PathBuf> {
        let pair = self.issue(name, groups)?;
        let encode = |pem: &str| STANDARD.encode(pem);
        let user = json!({
            "client-certificate-data": encode(&pair.certificate_pem), "client-key-data": encode(&pair.key_pem),
        });
        self.write(name, &user)
    }

    /// The same, of who has a token.
    pub(crate) fn kubeconfig_of_token(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.write(name, &json!({"token": token}))
    }

    fn write(&self, name: &str, user: &serde_json::Value) -> Result<PathBuf> {
        let cluster = json!({
            "server": format!("https://127.0.0.1:{}", self.port),
            "certificate-authority-data": STANDARD.encode(self.authority.pem()),
        });
        // YAML is more than JSON.
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        let path = self.folder.join(format!("{}.kubeconfig", name.replace([':', '/'], "-")));
        std::fs::write(&path, config.to_string()).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}
