//! `NodeRestriction` of what a node asks for in the name of a pod: it runs there, under the account that is named, and wants a
//! certificate of that signer.
//!
//! Source: upstream's admission plugin of that name. What only says that the node is ahead of this server, or behind it, is no
//! refusal but an error (500, without a reason), after which the node tries again.

use skiff_api::meta::Meta;
use skiff_api::{Kind, Object, Status};

use super::node::MIRROR_ANNOTATION;
use crate::auth::attributes::Attributes;
use crate::auth::authorize::Authorization;
use crate::call::Call;
use crate::lister::Lister;
use crate::resources::certificates::GROUP;

/// What a node may be allowed that asks in the name of an account without a volume that says so.
const VERB: &str = "request-serviceaccounts-podcertificate-signer";

pub(super) fn is_request(kind: &Kind) -> bool {
    kind.group == GROUP && kind.kind == "PodCertificateRequest"
}

pub(super) async fn restrict(
    lister: &Lister,
    authorizer: &Authorization,
    call: &Call,
    node: &str,
    request: &Object,
) -> Result<(), Status> {
    let pod = running(lister, call, node, request)?;
    check_account(lister, call, request, &pod)?;
    let signer = asked(request, "signerName");
    let account = asked(request, "serviceAccountName");
    if wants(&pod, signer) || may_ask(authorizer, call, signer, account).await {
        return Ok(());
    }
    let key = pod_key(call, request);
    let why = format!("pod {key:?} does not mount a podCertificate projected volume for signer {signer:?}");
    Err(forbid(call, request, &why))
}

fn asked<'r>(request: &'r Object, field: &str) -> &'r str {
    request["spec"][field].as_str().unwrap_or_default()
}

fn pod_key(call: &Call, request: &Object) -> String {
    format!("{}/{}", call.info.namespace, asked(request, "podName"))
}

/// The pod, which must run on the node that asks.
fn running(lister: &Lister, call: &Call, node: &str, request: &Object) -> Result<Object, Status> {
    let refuse = |why: String| Err(forbid(call, request, &why));
    let (named, key) = (asked(request, "nodeName"), pod_key(call, request));
    if named != node {
        return refuse(format!(
            "PodCertificateRequest.Spec.NodeName={named:?}, which is not the requesting node {node:?}"
        ));
    }
    let own = get(lister, "nodes", node, &format!("node {node:?}"))?;
    let uid = asked(request, "nodeUID");
    if own.uid() != uid {
        return Err(inconsistent(format!(
            "PodCertificateRequest for pod {key:?} names node UID {uid:?}, inconsistent with the running node ({:?})",
            own.uid()
        )));
    }
    let pod = get(lister, "pods", &key, &format!("pod {key:?}"))?;
    let uid = asked(request, "podUID");
    if pod.uid() != uid {
        return Err(inconsistent(format!(
            "PodCertificateRequest for pod {key:?} contains pod UID ({uid:?}) which differs from running pod {:?}",
            pod.uid()
        )));
    }
    if pod["spec"]["nodeName"] != node {
        return refuse(format!(
            "pod {key:?} is not running on node {node:?} named in the PodCertificateRequest"
        ));
    }
    if !pod.meta()["annotations"][MIRROR_ANNOTATION].is_null() {
        return refuse(format!("pod {key:?} is a mirror pod"));
    }
    Ok(pod)
}

/// Whether the account that is named is the one that the pod runs as.
fn check_account(lister: &Lister, call: &Call, request: &Object, pod: &Object) -> Result<(), Status> {
    let (account, key) = (asked(request, "serviceAccountName"), pod_key(call, request));
    let runs_as = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    if account != runs_as {
        let why = format!(
            "PodCertificateRequest for pod {key:?} contains serviceAccountName ({account:?}) that differs from running pod ({runs_as:?})"
        );
        return Err(forbid(call, request, &why));
    }
    let of = format!("{}/{account}", call.info.namespace);
    let found = get(lister, "serviceaccounts", &of, &format!("service account {of:?}"))?;
    let uid = asked(request, "serviceAccountUID");
    if found.uid() == uid {
        return Ok(());
    }
    Err(inconsistent(format!(
        "PodCertificateRequest for pod {key:?} names service account UID {uid:?}, which differs from the running service account ({:?})",
        found.uid()
    )))
}

/// An object that must be there; that it is not yet is no refusal.
fn get(lister: &Lister, plural: &str, key: &str, what: &str) -> Result<Object, Status> {
    match lister.cached(plural, key)? {
        Some(entry) => Ok(entry.parse()),
        None => {
            let name = key.rsplit('/').next().unwrap_or(key);
            let missing = Status::not_found("", singular(plural), name).message;
            Err(inconsistent(format!(
                "while retrieving {what} named in the PodCertificateRequest: {missing}"
            )))
        }
    }
}

/// What upstream's listers call these kinds when one is missing.
fn singular(plural: &str) -> &str {
    plural.strip_suffix('s').unwrap_or(plural)
}

fn inconsistent(why: String) -> Status {
    Status::new(500, "", why)
}

/// Whether a pod has a volume with a certificate of this signer.
fn wants(pod: &Object, signer: &str) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let mut sources =
        volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    sources.any(|source| source["podCertificate"]["signerName"] == signer)
}

/// Whether a role allows the node to ask for certificates of this signer in the account's name. A name of RBAC has no slashes.
async fn may_ask(authorizer: &Authorization, call: &Call, signer: &str, account: &str) -> bool {
    let signer = signer.replace('/', ":");
    let asked = Attributes {
        version: &call.kind.version,
        namespace: &call.info.namespace,
        name: account,
        ..Attributes::on(&call.user, VERB, GROUP, &signer)
    };
    authorizer.authorize(&asked).await.is_allowed()
}

fn forbid(call: &Call, request: &Object, why: &str) -> Status {
    let names = [call.info.name.as_str(), request.name(), request.meta_str("generateName"), "Unknown"];
    let name = names.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    Status::forbidden(&call.kind.group, &call.kind.plural, name, why)
}
