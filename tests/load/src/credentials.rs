//! Credentials of others than the administrator, got as an operator gets them: who asks with them comes over connections of
//! his own and is known by nothing else.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use serde_json::json;

use crate::client::Server;

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
/// How long it may take until an approved request is signed.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The server as a node of that name asks it: with a certificate that was requested, approved and signed.
pub async fn of_node(server: &Server, node: &str) -> Result<Server> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    let request = params.serialize_request(&key)?.pem()?;
    let admin = server.connect().await?;
    let object = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "load-"},
        "spec": {"request": STANDARD.encode(request), "signerName": SIGNER, "usages": ["client auth"]},
    });
    let mut object = admin.post(REQUESTS, object.to_string().into()).await?;
    let name = object["metadata"]["name"].as_str().context("the request has no name")?.to_owned();
    let path = format!("{REQUESTS}/{name}");
    object["status"]["conditions"] =
        json!([{"type": "Approved", "status": "True", "reason": "Load", "message": "For a measurement"}]);
    admin.put(&format!("{path}/approval"), &object).await?;
    let end = Instant::now() + PATIENCE;
    let chain = loop {
        let object = admin.get(&path).await?;
        if let Some(chain) = object["status"]["certificate"].as_str() {
            break STANDARD.decode(chain).context("decoding the certificate")?;
        }
        ensure!(Instant::now() < end, "{name} was not signed: {}", object["status"]);
        tokio::time::sleep(LOOK_AGAIN).await;
    };
    server.by_certificate((chain, key.serialize_pem().into_bytes()))
}

/// The server as a service account asks it: with a token of an hour.
pub async fn of_account(server: &Server, namespace: &str, account: &str) -> Result<Server> {
    let admin = server.connect().await?;
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
    let answer = admin.post(&path, request.to_string().into()).await?;
    server.by_token(answer["status"]["token"].as_str().context("the answer has no token")?)
}
