//! Who may ask for which certificate, approve it, and sign it.
//!
//! Source: upstream's plug-ins `CertificateApproval`, `CertificateSigning` and `CertificateSubjectRestriction`.

use skiff_api::{Object, Status};

use crate::auth::attributes::Attributes;
use crate::auth::authorize::Authorization;
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
pub(super) fn admit_update(
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
    let domain = signer.split_once('/').map_or(String::new(), |(domain, _)| format!("{domain}/*"));
    let may = [signer, &domain].into_iter().any(|name| {
        let asked = Attributes {
            user: &call.user,
            verb,
            is_resource: true,
            group: GROUP,
            resource: "signers",
            subresource: "",
            namespace: "",
            name,
            path: "",
            fields: &[],
        };
        authorizer.authorize(&asked).is_allowed()
    });
    if may {
        return Ok(());
    }
    Err(forbid(call, old, &format!("user not permitted to {verb} requests with signerName {signer:?}")))
}

fn forbid(call: &Call, request: &Object, why: &str) -> Status {
    let name = request["metadata"]["name"].as_str().unwrap_or_default();
    Status::forbidden(&call.kind.group, &call.kind.plural, name, why)
}
