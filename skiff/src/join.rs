//! Joining a cluster, as kubeadm and kubelets do it.
//!
//! ```text
//!  1. cluster-info, from whoever answers   signed with the token's secret, and its authority has the token's hash
//!  2. a client certificate                 asked for with the token, signed by the cluster
//!  3. the Node, and its range of pods      with the node's own certificate from here on
//!  4. a serving certificate                for the addresses that the Node has
//! ```
//!
//! Nothing secret is sent before step 1 has shown that it is the right cluster; the token's secret itself is first sent
//! over TLS with the authority that the token pins.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::json;

use crate::pki::Pair;
use crate::token::{Token, ca_hash};

/// A cluster's certificates are good from five minutes before they are made.
const MAX_CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_mins(4);
/// How long the cluster may take to sign a certificate, or to give a range of addresses.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster, and why it may be trusted.
#[derive(Clone, Debug)]
pub(crate) struct Trusted {
    pub(crate) server: http::Uri,
    pub(crate) ca_pem: String,
}

fn config(server: &http::Uri) -> kube::Config {
    let mut config = kube::Config::new(server.clone());
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // The cluster is never behind the proxy that images come through.
    config.proxy_url = None;
    config
}

impl Trusted {
    /// A client that shows a token.
    fn with_token(&self, token: &Token) -> Result<Client> {
        let mut config = config(&self.server);
        config.root_cert = Some(vec![authority(&self.ca_pem)?]);
        config.auth_info.token = Some(token.bearer().into());
        Ok(Client::try_from(config)?)
    }
}

fn authority(pem: &str) -> Result<Vec<u8>> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes());
    Ok(der.context("the cluster's authority is damaged")?.to_vec())
}

/// What whoever answers at an address says of itself: nothing of it is to be believed yet.
async fn hearsay(server: &http::Uri) -> Result<(Option<SignedDuration>, Option<ConfigMap>)> {
    let mut config = config(server);
    config.accept_invalid_certs = true;
    let client = Client::try_from(config)?;
    let request = http::Request::get("/api/v1/namespaces/kube-public/configmaps/cluster-info")
        .body(kube::client::Body::empty())?;
    let answer = tokio::time::timeout(2 * CONNECT_TIMEOUT, client.send(request)).await;
    let hint = || format!("cannot reach {server}; is the server running, and is this its address?");
    let response = answer.map_err(|_| anyhow!("no answer in time")).with_context(hint)?;
    let response = response.with_context(hint)?;
    let date = response.headers().get(http::header::DATE).and_then(|d| d.to_str().ok());
    let ahead = date.and_then(|date| {
        let server_time = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
        Some(Timestamp::now().duration_since(server_time))
    });
    let body = kube_body(response).await.with_context(hint)?;
    Ok((ahead, serde_json::from_slice(&body).ok()))
}

async fn kube_body(response: http::Response<kube::client::Body>) -> Result<bytes::Bytes> {
    use http_body_util::BodyExt as _;
    const MAX_BYTES: usize = 1 << 20;
    let body = http_body_util::Limited::new(response.into_body(), MAX_BYTES).collect();
    let body = tokio::time::timeout(CONNECT_TIMEOUT, body).await.map_err(|_| anyhow!("no answer in time"))?;
    Ok(body.map_err(|e| anyhow!("{e}"))?.to_bytes())
}

/// How far this machine's clock is ahead of a server's.
pub(crate) async fn clock_ahead(server: &http::Uri) -> Result<Option<SignedDuration>> {
    Ok(hearsay(server).await?.0)
}

/// Fails if this machine's clock is too far from the server's for certificates to be any good.
pub(crate) fn check_clock(ahead: Option<SignedDuration>) -> Result<()> {
    let Some(ahead) = ahead.filter(|a| a.abs() > MAX_CLOCK_DIFFERENCE) else { return Ok(()) };
    let side = if ahead.is_negative() { "behind" } else { "ahead of" };
    bail!(
        "this machine's clock is {} s {side} the server's, and certificates depend on the time; set it, for example with \
         systemd-timesyncd or chrony",
        ahead.abs().as_secs()
    )
}

/// Finds out whether a server is the cluster that a token is of.
pub(crate) async fn discover(server: &http::Uri, token: &Token) -> Result<Trusted> {
    let (ahead, info) = hearsay(server).await?;
    check_clock(ahead)?;
    let info = info.and_then(|i| i.data).with_context(|| {
        format!(
            "what answers at {server} is no cluster that nodes can join: it has no kube-public/cluster-info"
        )
    })?;
    let ca_pem = authority_of(verified(&info, token)?)?;
    let found = ca_hash(ca_pem.as_bytes())?;
    ensure!(
        found == token.ca_hash,
        "{server} is not the cluster that the token is of: its authority has the hash {found}, the token names {}",
        token.ca_hash
    );
    Ok(Trusted { server: server.clone(), ca_pem })
}

/// The authority that the kubeconfig of a cluster-info names.
fn authority_of(kubeconfig: &str) -> Result<String> {
    use base64::Engine as _;
    let parsed = kube::config::Kubeconfig::from_yaml(kubeconfig).context("reading the cluster-info")?;
    let data = parsed.clusters.iter().find_map(|c| c.cluster.as_ref()?.certificate_authority_data.clone());
    let bytes = data.and_then(|data| base64::engine::general_purpose::STANDARD.decode(data).ok());
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).context("the cluster-info names no authority")
}

/// Another certificate of the authority that is trusted, if it has been given one. Asked of whom that authority vouches for, and
/// only one of the same key is believed.
pub(crate) async fn newest_authority(trusted: &Trusted) -> Result<Option<String>> {
    let mut config = config(&trusted.server);
    config.root_cert = Some(vec![authority(&trusted.ca_pem)?]);
    let maps: Api<ConfigMap> = Api::namespaced(Client::try_from(config)?, "kube-public");
    let asked = tokio::time::timeout(2 * CONNECT_TIMEOUT, maps.get("cluster-info")).await;
    let info =
        asked.map_err(|_| anyhow!("no answer in time"))?.context("reading kube-public/cluster-info")?;
    let data = info.data.unwrap_or_default();
    let found = authority_of(data.get("kubeconfig").context("the cluster-info holds no kubeconfig")?)?;
    if found == trusted.ca_pem {
        return Ok(None);
    }
    let (kept, shown) = (ca_hash(trusted.ca_pem.as_bytes())?, ca_hash(found.as_bytes())?);
    ensure!(
        kept == shown,
        "the cluster-info names another authority: its key has the hash {shown}, not {kept}"
    );
    Ok(Some(found))
}

/// The kubeconfig in a cluster-info, if the token's secret has signed it.
fn verified<'i>(info: &'i BTreeMap<String, String>, token: &Token) -> Result<&'i str> {
    use base64::Engine as _;
    let kubeconfig = info.get("kubeconfig").context("the cluster-info holds no kubeconfig")?;
    let signature = info.get(&format!("jws-kubeconfig-{}", token.id)).with_context(|| {
        format!(
            "the server knows no token {}: it has expired, was deleted, or is another cluster's; make one with: skiff \
             token create",
            token.id
        )
    })?;
    let forged = || {
        format!(
            "the secret of token {} is wrong; copy it whole, or make another with: skiff token create",
            token.id
        )
    };
    let (header, signature) = signature.split_once("..").with_context(forged)?;
    let encoding = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let algorithm: serde_json::Value =
        encoding.decode(header).ok().and_then(|h| serde_json::from_slice(&h).ok()).with_context(forged)?;
    ensure!(algorithm["alg"] == "HS256" && algorithm["kid"] == token.id.as_str(), forged());
    let signed = format!("{header}.{}", encoding.encode(kubeconfig));
    let key = jsonwebtoken::DecodingKey::from_secret(token.secret().as_bytes());
    let is_good =
        jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &key, jsonwebtoken::Algorithm::HS256);
    ensure!(is_good.unwrap_or(false), forged());
    Ok(kubeconfig)
}

/// What a node's two certificates are for.
#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Client,
    Serving(Ipv4Addr),
}

impl Purpose {
    fn signer(&self) -> &'static str {
        match self {
            Purpose::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Purpose::Serving(_) => "kubernetes.io/kubelet-serving",
        }
    }

    fn usages(&self) -> Vec<String> {
        let auth = match self {
            Purpose::Client => "client auth",
            Purpose::Serving(_) => "server auth",
        };
        vec!["digital signature".into(), auth.into()]
    }
}

/// The first certificate, for a token.
pub(crate) async fn first_certificate(trusted: &Trusted, token: &Token, node: &str) -> Result<Pair> {
    let client = trusted.with_token(token)?;
    certificate(&client, node, &Purpose::Client).await.context("joining the cluster with the token")
}

/// Makes a key, and has the cluster sign a certificate for it.
pub(crate) async fn certificate(client: &Client, node: &str, purpose: &Purpose) -> Result<Pair> {
    let key = KeyPair::generate().context("making a key")?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let csr = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request(&key, node, purpose)?.into_bytes()),
            signer_name: purpose.signer().into(),
            usages: Some(purpose.usages()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let made = api.create(&PostParams::default(), &csr).await.context("asking for a certificate")?;
    let name = made.metadata.name.unwrap_or_default();
    let decided = await_condition(api.clone(), &name, |csr: Option<&CertificateSigningRequest>| {
        csr.is_none_or(|csr| outcome(csr).is_some())
    });
    let waited = tokio::time::timeout(PATIENCE, decided).await.map_err(|_| {
        anyhow!(
            "nobody has signed certificate request {name} within {} s; look at it with: kubectl describe csr {name}, \
             and approve it with: kubectl certificate approve {name}",
            PATIENCE.as_secs()
        )
    })?;
    let csr = waited.with_context(|| format!("waiting for certificate request {name}"))?;
    let csr = csr.with_context(|| format!("certificate request {name} was deleted"))?;
    let certificate_pem =
        outcome(&csr).unwrap_or_else(|| Err(anyhow!("certificate request {name} is undecided")))?;
    Ok(Pair { certificate_pem, key_pem: key.serialize_pem() })
}

fn request(key: &KeyPair, node: &str, purpose: &Purpose) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    if let Purpose::Serving(ip) = purpose {
        let name = node.try_into().with_context(|| format!("{node:?} is no DNS name"))?;
        params.subject_alt_names = vec![SanType::DnsName(name), SanType::IpAddress((*ip).into())];
    }
    Ok(params.serialize_request(key).context("making a certificate request")?.pem()?)
}

/// The certificate, or why there will be none; `None` while it is undecided.
fn outcome(csr: &CertificateSigningRequest) -> Option<Result<String>> {
    let status = csr.status.as_ref()?;
    let name = csr.metadata.name.as_deref().unwrap_or_default();
    let ended = status.conditions.iter().flatten().find(|c| matches!(&*c.type_, "Denied" | "Failed"));
    if let Some(condition) = ended {
        let (reason, message) =
            (condition.reason.clone().unwrap_or_default(), condition.message.clone().unwrap_or_default());
        return Some(Err(match &*condition.type_ {
            "Denied" => anyhow!("the cluster refuses this node: {message} ({reason})"),
            _ => anyhow!("the cluster cannot sign certificate request {name}: {message} ({reason})"),
        }));
    }
    let certificate = status.certificate.as_ref()?;
    Some(String::from_utf8(certificate.0.clone()).context("the certificate is damaged"))
}

/// Makes the Node if there is none, with the addresses that its serving certificate is to have, and waits for its range of
/// pod addresses.
pub(crate) async fn register(client: &Client, name: &str, ip: Ipv4Addr) -> Result<String> {
    let api: Api<Node> = Api::all(client.clone());
    let addresses = json!([{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}]);
    let node = json!({"metadata": {"name": name}, "status": {"addresses": addresses}});
    let node: Node = serde_json::from_value(node)?;
    match api.create(&PostParams::default(), &node).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = Patch::Strategic(json!({"status": {"addresses": addresses}}));
            let patched = api.patch_status(name, &PatchParams::default(), &patch).await;
            patched.with_context(|| format!("writing the addresses of node {name}"))?;
        }
        Err(error) => return Err(error).with_context(|| format!("registering node {name}")),
    }
    let cidr = |node: &Node| node.spec.as_ref()?.pod_cidr.clone();
    let has_range = |node: Option<&Node>| node.is_none_or(|n| cidr(n).is_some());
    let waited = tokio::time::timeout(PATIENCE, await_condition(api, name, has_range)).await.map_err(|_| {
        anyhow!(
            "the cluster has given this node no range of pod addresses within {} s; see: kubectl describe node {name}",
            PATIENCE.as_secs()
        )
    })?;
    let node = waited.with_context(|| format!("waiting for the range of node {name}"))?;
    node.as_ref().and_then(cidr).with_context(|| format!("node {name} was deleted while it joined"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_an_hour_off_is_said_with_the_side_and_the_amount() {
        check_clock(None).unwrap();
        check_clock(Some(SignedDuration::from_mins(3))).unwrap();
        let ahead = check_clock(Some(SignedDuration::from_hours(1))).unwrap_err().to_string();
        assert!(ahead.contains("3600 s ahead of the server's"), "{ahead}");
        let behind = check_clock(Some(SignedDuration::from_hours(-1))).unwrap_err().to_string();
        assert!(behind.contains("3600 s behind the server's"), "{behind}");
    }

    fn token(id: &str, secret: &str) -> Token {
        format!("{id}.{secret}@sha256:{}", "0a".repeat(32)).parse().unwrap()
    }

    /// As the server signs it.
    fn info(id: &str, secret: &str) -> BTreeMap<String, String> {
        use base64::Engine as _;
        let encoding = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let header = encoding.encode(format!(r#"{{"alg":"HS256","kid":"{id}"}}"#));
        let signed = format!("{header}.{}", encoding.encode("kubeconfig"));
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        let signature =
            jsonwebtoken::crypto::sign(signed.as_bytes(), &key, jsonwebtoken::Algorithm::HS256).unwrap();
        let signature = format!("{header}..{signature}");
        BTreeMap::from([
            ("kubeconfig".to_owned(), "kubeconfig".to_owned()),
            (format!("jws-kubeconfig-{id}"), signature),
        ])
    }

    #[test]
    fn only_a_cluster_that_knows_the_tokens_secret_is_believed() {
        let right = info("abcdef", "0123456789abcdef");
        assert_eq!(verified(&right, &token("abcdef", "0123456789abcdef")).unwrap(), "kubeconfig");
        let error = verified(&right, &token("abcdef", "ffffffffffffffff")).unwrap_err().to_string();
        assert!(error.contains("the secret of token abcdef is wrong"), "{error}");
        let error = verified(&right, &token("fedcba", "0123456789abcdef")).unwrap_err().to_string();
        assert!(error.contains("the server knows no token fedcba"), "{error}");
        let mut changed = right;
        changed.insert("kubeconfig".into(), "another".into());
        assert!(verified(&changed, &token("abcdef", "0123456789abcdef")).is_err());
    }

    #[test]
    fn a_denied_request_says_why() {
        let csr: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": {"name": "csr-x"},
            "spec": {"request": "", "signerName": "s"},
            "status": {"conditions": [
                {"type": "Denied", "status": "True", "reason": "NodeNameInUse", "message": "it lives"}]},
        }))
        .unwrap();
        let error = outcome(&csr).unwrap().unwrap_err().to_string();
        assert_eq!(error, "the cluster refuses this node: it lives (NodeNameInUse)");
    }
}
