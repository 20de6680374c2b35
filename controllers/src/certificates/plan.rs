//! Which requests are approved without asking anybody, which can be signed, and which are old.
//!
//! Source: upstream's `approver`, `signer` and `cleaner`. Upstream leaves serving certificates to an administrator;
//! [`serving`] says on what grounds they are approved here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::Node;

use super::x509::{Request, not_after};
use crate::node_ipam::Cidr;

pub(super) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(super) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
pub(super) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";

const MAX_LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
const MIN_LIFE: SignedDuration = SignedDuration::from_mins(10);

const DECIDED_KEPT: SignedDuration = SignedDuration::from_hours(1);
const PENDING_KEPT: SignedDuration = SignedDuration::from_hours(24);

/// How long after its last renewal of its lease a node counts as living: the lease's own length.
pub(super) const ALIVE: SignedDuration = SignedDuration::from_secs(40);

fn spec_usages(csr: &CertificateSigningRequest) -> BTreeSet<&str> {
    csr.spec.usages.iter().flatten().map(String::as_str).collect()
}

/// Required usages with and without key encipherment, which only RSA needs.
fn usages_are(csr: &CertificateSigningRequest, auth: &str) -> bool {
    let usages = spec_usages(csr);
    usages == BTreeSet::from(["digital signature", auth])
        || usages == BTreeSet::from(["digital signature", "key encipherment", auth])
}

/// The one name of a node that a subject is of.
fn node_of(request: &Request) -> Result<&str, &'static str> {
    if request.organizations != [NODES] {
        return Err("subject organization is not system:nodes");
    }
    match request.common_names.as_slice() {
        [name] => name.strip_prefix(NODE_PREFIX).filter(|name| !name.is_empty()),
        // Whoever reads the certificate might take any of several.
        _ => None,
    }
    .ok_or("subject common name does not begin with system:node:")
}

/// Why a request is not one for a node's client certificate.
fn client_fault<'r>(csr: &CertificateSigningRequest, request: &'r Request) -> Result<&'r str, String> {
    let node = node_of(request)?;
    if !request.dns_names.is_empty() {
        return Err("DNS subjectAltNames are not allowed".into());
    }
    if request.n_emails > 0 {
        return Err("Email subjectAltNames are not allowed".into());
    }
    if !request.ips.is_empty() {
        return Err("IP subjectAltNames are not allowed".into());
    }
    if request.n_uris > 0 {
        return Err("URI subjectAltNames are not allowed".into());
    }
    if request.n_others > 0 {
        return Err("other subjectAltNames are not allowed".into());
    }
    if !usages_are(csr, "client auth") {
        return Err("usages did not match [client auth digital signature key encipherment]".into());
    }
    Ok(node)
}

/// Why a request is not one for a node's serving certificate.
fn serving_fault<'r>(csr: &CertificateSigningRequest, request: &'r Request) -> Result<&'r str, String> {
    let node = node_of(request)?;
    if request.dns_names.is_empty() && request.ips.is_empty() {
        return Err("DNS or IP subjectAltName is required".into());
    }
    if request.n_emails > 0 {
        return Err("Email subjectAltNames are not allowed".into());
    }
    if request.n_uris > 0 {
        return Err("URI subjectAltNames are not allowed".into());
    }
    if request.n_others > 0 {
        return Err("other subjectAltNames are not allowed".into());
    }
    if !usages_are(csr, "server auth") {
        return Err("usages did not match [digital signature key encipherment server auth]".into());
    }
    Ok(node)
}

/// Why an approved request cannot be signed by its signer.
pub(super) fn signing_fault(csr: &CertificateSigningRequest, request: &Request) -> Option<String> {
    match csr.spec.signer_name.as_str() {
        KUBELET_CLIENT => client_fault(csr, request).err(),
        KUBELET_SERVING => serving_fault(csr, request).err(),
        _ => {
            let usages = spec_usages(csr);
            let other = usages
                .iter()
                .find(|u| !matches!(**u, "digital signature" | "key encipherment" | "client auth"));
            if let Some(other) = other {
                return Some(format!("invalid usage for client certificate: {other}"));
            }
            if !usages.contains("client auth") {
                return Some("missing required usage for client certificate: client auth".into());
            }
            (request.common_names.len() > 1)
                .then(|| "more than one subject common name is not allowed".into())
        }
    }
}

/// Whether a signer of the cluster is asked.
pub(super) fn is_ours(csr: &CertificateSigningRequest) -> bool {
    matches!(csr.spec.signer_name.as_str(), KUBELET_CLIENT | KUBELET_SERVING | CLIENT)
}

/// How long a certificate lives.
pub(super) fn life(csr: &CertificateSigningRequest) -> SignedDuration {
    let asked = csr.spec.expiration_seconds.map(|s| SignedDuration::from_secs(i64::from(s)));
    asked.map_or(MAX_LIFE, |asked| asked.clamp(MIN_LIFE, MAX_LIFE))
}

/// What the one who asks must be allowed to do, and what is said if they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permission {
    /// The subresource of requests that they must be allowed to create.
    pub(super) subresource: &'static str,
    pub(super) message: &'static str,
}

/// On what grounds a request for a node's client certificate would be approved, the first that holds.
pub(super) fn permissions(csr: &CertificateSigningRequest, request: &Request) -> Vec<Permission> {
    if csr.spec.signer_name != KUBELET_CLIENT || client_fault(csr, request).is_err() {
        return Vec::new();
    }
    let mut permissions = Vec::new();
    if csr.spec.username.as_ref() == request.common_names.first() {
        permissions.push(Permission {
            subresource: "selfnodeclient",
            message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
        });
    }
    permissions.push(Permission {
        subresource: "nodeclient",
        message: "Auto approving kubelet client certificate after SubjectAccessReview.",
    });
    permissions
}

/// The node whose name somebody else asks to bear: not who renews their own certificate.
pub(super) fn claimed_node<'r>(csr: &CertificateSigningRequest, request: &'r Request) -> Option<&'r str> {
    if csr.spec.signer_name != KUBELET_CLIENT || csr.spec.username.as_ref() == request.common_names.first() {
        return None;
    }
    client_fault(csr, request).ok()
}

/// What approving a serving certificate depends on.
pub(super) struct Cluster<'c> {
    /// All that declare an address that is asked for.
    pub(super) nodes: &'c [&'c Node],
    /// Names and addresses of the API server and others that no node may have.
    pub(super) reserved_names: &'c [String],
    pub(super) reserved_ips: &'c [IpAddr],
    pub(super) reserved_ranges: &'c [Cidr],
}

/// Whether a node gets a serving certificate: the answer, or why not.
///
/// A node writes its own addresses, so what its Node says proves nothing against a node that lies. What keeps it
/// from standing in for others is the rest: it must ask for itself, with its own certificate; its only DNS name is its
/// own; each address is one it has declared, that no other node declares, and that is neither the API server's, nor a pod's
/// or Service's, nor reserved. An external address that somebody else claims does not count against an internal one, so that
/// no node can keep another from renewing. Until it has declared addresses it gets none.
pub(super) fn serving(
    csr: &CertificateSigningRequest,
    request: &Request,
    cluster: &Cluster<'_>,
) -> Result<&'static str, String> {
    let name = serving_fault(csr, request)?;
    if csr.spec.username.as_deref() != request.common_names.first().map(String::as_str)
        || !csr.spec.groups.iter().flatten().any(|group| group == NODES)
    {
        return Err("a node asks for its own serving certificate only".into());
    }
    if let Some(other) = request.dns_names.iter().find(|dns| *dns != name) {
        return Err(format!("DNS name {other:?} is not the node's name"));
    }
    if request.dns_names.len() > 1 || has_duplicates(&request.ips) {
        return Err("a subjectAltName is given twice".into());
    }
    let reserved = |reserved: &String| reserved.eq_ignore_ascii_case(name);
    let is_service = name == "kubernetes" || name.starts_with("kubernetes.") || name == "localhost";
    if is_service || cluster.reserved_names.iter().any(reserved) {
        return Err(format!("DNS name {name:?} is not for nodes"));
    }
    let (own, others): (Vec<&Node>, Vec<&Node>) =
        cluster.nodes.iter().partition(|node| node.metadata.name.as_deref() == Some(name));
    for ip in &request.ips {
        let is_reserved = cluster.reserved_ips.contains(ip)
            || cluster.reserved_ranges.iter().any(|range| range.contains(*ip))
            || ip.is_loopback()
            || ip.is_unspecified()
            || ip.is_multicast();
        if is_reserved {
            return Err(format!("address {ip} is not for nodes"));
        }
        let Some(claim) = own.iter().filter_map(|node| claim(node, *ip)).min() else {
            return Err(format!("address {ip} is not in the status of node {name:?}"));
        };
        if let Some(other) =
            others.iter().find(|other| self::claim(other, *ip).is_some_and(|its| its <= claim))
        {
            let other = other.metadata.name.as_deref().unwrap_or_default();
            return Err(format!("address {ip} is also in the status of node {other:?}"));
        }
    }
    Ok("Auto approving kubelet serving certificate: its names and addresses are the node's own.")
}

fn has_duplicates(ips: &[IpAddr]) -> bool {
    ips.iter().collect::<BTreeSet<_>>().len() < ips.len()
}

/// The addresses that a node says are its own.
pub(super) fn declared(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let ips = addresses.filter(|a| matches!(a.type_.as_str(), "InternalIP" | "ExternalIP"));
    ips.filter_map(|a| address_of(&a.address)).collect()
}

/// An address however it is written.
fn address_of(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|ip: IpAddr| ip.to_canonical())
}

/// As what a node declares an address; the stronger claim first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    Internal,
    External,
}

fn claim(node: &Node, ip: IpAddr) -> Option<Claim> {
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let of_this = addresses.filter(|a| address_of(&a.address) == Some(ip));
    of_this
        .filter_map(|a| match a.type_.as_str() {
            "InternalIP" => Some(Claim::Internal),
            "ExternalIP" => Some(Claim::External),
            _ => None,
        })
        .min()
}

pub(super) fn has_condition(csr: &CertificateSigningRequest, type_: &str) -> bool {
    csr.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == type_)
}

pub(super) fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}

/// When a request, as it stands, is deleted.
pub(super) fn due(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let status = csr.status.as_ref();
    let conditions = || status.and_then(|s| s.conditions.as_deref()).unwrap_or_default().iter();
    let mut due: Vec<Timestamp> = Vec::new();
    let mut after = |since: Option<Timestamp>, kept: SignedDuration| {
        due.extend(since.and_then(|since| since.checked_add(kept).ok()));
    };
    if conditions().next().is_none() {
        after(csr.metadata.creation_timestamp.as_ref().map(|t| t.0), PENDING_KEPT);
    }
    for condition in conditions() {
        let since = condition.last_update_time.as_ref().map(|t| t.0);
        match condition.type_.as_str() {
            "Denied" | "Failed" => after(since, DECIDED_KEPT),
            "Approved" if is_issued(csr) => after(since, DECIDED_KEPT),
            "Approved" => after(since, PENDING_KEPT),
            _ => {}
        }
    }
    if has_condition(csr, "Approved") {
        let certificate = status.and_then(|s| s.certificate.as_ref());
        due.extend(certificate.and_then(|c| not_after(&c.0)));
    }
    due.into_iter().min()
}

#[cfg(test)]
mod tests;
