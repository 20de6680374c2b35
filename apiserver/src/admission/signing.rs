//! Who may ask for which certificate, approve it, and sign it; and who vouches for a signer's authorities.
//!
//! Source: upstream's plug-ins `CertificateApproval`, `CertificateSigning`, `CertificateSubjectRestriction` and
//! `ClusterTrustBundleAttest`, and its strategy of what pods ask for.

use std::collections::BTreeMap;

use serde_json::Value;
use skiff_api::{Cause, Kind, Object, Status};

use super::pod_certificate;
use crate::auth::UserInfo;
use crate::auth::attributes::Attributes;
use crate::auth::authorize::Authorization;
use crate::auth::rbac::only_for_collection;
use crate::call::Call;
use crate::resources::certificates::{GROUP, conditions, is_signing_request, parse};

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const MASTERS: &str = "system:masters";

/// Refuses requests for what must never be signed, and of nodes in the name of others.
pub(super) fn admit_request(call: &Call, request: &Object) -> Result<(), Status> {
    if !is_signing_request(&call.kind) {
        return Ok(());
    }
    let signer = request["spec"]["signerName"].as_str().unwrap_or_default();
    let node = call.user.node_name().filter(|_| matches!(signer, KUBELET_CLIENT | KUBELET_SERVING));
    if signer != CLIENT && node.is_none() {
        return Ok(());
    }
    // What cannot be read is refused by validation, which says why.
    let Ok(subject) = parse(request) else { return Ok(()) };
    if let Some(node) = node
        && subject.common_name != format!("system:node:{node}")
    {
        let why = format!("can only create a node CSR with CN=system:node:{node}");
        return Err(forbid(call, request, &why));
    }
    if signer == CLIENT && subject.organizations.iter().any(|group| group == MASTERS) {
        let why = format!("use of {CLIENT} signer with {MASTERS} group is not allowed");
        return Err(forbid(call, request, &why));
    }
    Ok(())
}

/// To approve and to sign need a permission for the signer, besides that for the subresource.
pub(super) async fn admit_update(
    authorizer: &Authorization,
    call: &Call,
    new: &Object,
    old: &Object,
) -> Result<(), Status> {
    if !is_signing_request(&call.kind) {
        return Ok(());
    }
    let verb = match call.info.subresource.as_str() {
        "approval" => "approve",
        "status"
            if new["status"]["certificate"] != old["status"]["certificate"]
                || conditions(new) != conditions(old) =>
        {
            "sign"
        }
        _ => return Ok(()),
    };
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    if may(authorizer, &call.user, verb, signer).await {
        return Ok(());
    }
    Err(forbid(call, old, &format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

/// Why a signer's answer to a pod's request is not for this user to write, if it is not.
pub(super) async fn unsigned(
    authorizer: &Authorization,
    call: &Call,
    new: &Object,
    old: &Object,
) -> Option<Cause> {
    if !pod_certificate::is_request(&call.kind) || call.info.subresource != "status" {
        return None;
    }
    if said(&new["status"]) == said(&old["status"]) {
        return None;
    }
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    if may(authorizer, &call.user, "sign", signer).await {
        return None;
    }
    let why = format!("User {:?} is not permitted to \"sign\" for signer {signer:?}", call.user.name);
    Some(Cause::forbidden("spec.signerName", &why))
}

/// The fields of a status that say something.
fn said(status: &Value) -> BTreeMap<&str, &Value> {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    let fields = status.as_object().into_iter().flatten().filter(|(_, value)| !is_empty(value));
    fields.map(|(field, value)| (field.as_str(), value)).collect()
}

/// Whoever writes the authorities of a signer vouches for them. What collects garbage changes none.
pub(super) async fn attest(
    authorizer: &Authorization,
    call: &Call,
    new: &Object,
    old: Option<&Object>,
) -> Result<(), Status> {
    let signer = new["spec"]["signerName"].as_str().unwrap_or_default();
    if !is_bundle(&call.kind)
        || signer.is_empty()
        || old.is_some_and(|old| only_for_collection(new, old))
        || may(authorizer, &call.user, "attest", signer).await
    {
        return Ok(());
    }
    Err(forbid(call, new, &format!("user not permitted to attest for signerName {signer:?}")))
}

pub(super) fn is_bundle(kind: &Kind) -> bool {
    kind.group == GROUP && kind.kind == "ClusterTrustBundle"
}

/// Whether a user may do something for a signer, or for all of its domain.
async fn may(authorizer: &Authorization, user: &UserInfo, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    for name in [signer, &format!("{domain}/*")] {
        let asked = Attributes { name, ..Attributes::on(user, verb, GROUP, "signers") };
        if authorizer.authorize(&asked).await.is_allowed() {
            return true;
        }
    }
    false
}

fn forbid(call: &Call, request: &Object, why: &str) -> Status {
    let name = request["metadata"]["name"].as_str().unwrap_or_default();
    Status::forbidden(&call.kind.group, &call.kind.plural, name, why)
}
