//! Authentication, authorization, certificates, coordination, RBAC and policy.

use serde_json::Value;

use super::kind;
use crate::strategy::Strategy;
use crate::table::Column;
use crate::table::cell::{
    self, duration, int, int_or_string, items_at, joined, since, str_at, text, text_or,
};
use crate::{Cause, Kind, Object};

pub(super) fn kinds() -> Vec<Kind> {
    let mut kinds = reviews();
    kinds.extend([
        kind("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests")
            .cluster()
            .short(&["csr"])
            .subresources(&["approval", "status"])
            .fields(&["spec.signerName"])
            .columns(signing_request_columns()),
        kind("certificates.k8s.io", "v1", "ClusterTrustBundle", "clustertrustbundles")
            .cluster()
            .fields(&["spec.signerName"])
            .columns(vec![
                Column::name(),
                Column::new("SignerName", "string", |o, _| text_or(o, "/spec/signerName", cell::NONE)),
            ]),
        kind("certificates.k8s.io", "v1", "PodCertificateRequest", "podcertificaterequests")
            .subresources(&["status"])
            .fields(&["spec.nodeName", "spec.podName", "spec.signerName"])
            .columns(pod_request_columns()),
        kind("coordination.k8s.io", "v1", "Lease", "leases").columns(vec![
            Column::name(),
            Column::new("Holder", "string", |o, _| text(o, "/spec/holderIdentity")),
            Column::age(),
        ]),
        kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
            .short(&["pdb"])
            .subresources(&["status"])
            .columns(vec![
                Column::name(),
                Column::new("Min Available", "string", |o, _| {
                    int_or_string(o, "/spec/minAvailable", "N/A").into()
                }),
                Column::new("Max Unavailable", "string", |o, _| {
                    int_or_string(o, "/spec/maxUnavailable", "N/A").into()
                }),
                Column::new("Allowed Disruptions", "integer", |o, _| int(o, "/status/disruptionsAllowed")),
                Column::age(),
            ]),
    ]);
    kinds.extend(rbac());
    kinds
}

fn reviews() -> Vec<Kind> {
    let authorization =
        |name: &str, plural: &str| kind("authorization.k8s.io", "v1", name, plural).unstored();
    vec![
        kind("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews").cluster().unstored(),
        kind("authentication.k8s.io", "v1", "TokenReview", "tokenreviews").cluster().unstored(),
        authorization("LocalSubjectAccessReview", "localsubjectaccessreviews"),
        authorization("SelfSubjectAccessReview", "selfsubjectaccessreviews").cluster(),
        authorization("SelfSubjectRulesReview", "selfsubjectrulesreviews").cluster(),
        authorization("SubjectAccessReview", "subjectaccessreviews").cluster(),
    ]
}

fn rbac() -> Vec<Kind> {
    let rbac = |name: &str, plural: &str| kind("rbac.authorization.k8s.io", "v1", name, plural);
    let binding_columns = || {
        vec![
            Column::name(),
            Column::new("Role", "string", |o, _| {
                format!("{}/{}", str_at(o, "/roleRef/kind"), str_at(o, "/roleRef/name")).into()
            }),
            Column::age(),
            Column::new("Users", "string", |o, _| subjects(o, "User")).wide(),
            Column::new("Groups", "string", |o, _| subjects(o, "Group")).wide(),
            Column::new("ServiceAccounts", "string", |o, _| subjects(o, "ServiceAccount")).wide(),
        ]
    };
    let role_columns = || vec![Column::name(), Column::created_at()];
    vec![
        rbac("ClusterRoleBinding", "clusterrolebindings")
            .cluster()
            .strategy(&Bindings)
            .columns(binding_columns()),
        rbac("ClusterRole", "clusterroles").cluster().columns(role_columns()),
        rbac("RoleBinding", "rolebindings").strategy(&Bindings).columns(binding_columns()),
        rbac("Role", "roles").columns(role_columns()),
    ]
}

fn subjects(binding: &Object, kind: &str) -> Value {
    let names: Vec<String> = items_at(binding, "/subjects")
        .iter()
        .filter(|s| s["kind"] == kind)
        .map(|s| match (kind, str_at(s, "/namespace")) {
            ("ServiceAccount", namespace) if !namespace.is_empty() => {
                format!("{}/{}", namespace, str_at(s, "/name"))
            }
            _ => str_at(s, "/name").to_owned(),
        })
        .collect();
    joined(names.iter().map(String::as_str), "").into()
}

fn signing_request_columns() -> Vec<Column> {
    vec![
        Column::name(),
        Column::new("Age", "string", |o, now| since(o, "/metadata/creationTimestamp", now)),
        Column::new("SignerName", "string", |o, _| text(o, "/spec/signerName")),
        Column::new("Requestor", "string", |o, _| text(o, "/spec/username")),
        Column::new("RequestedDuration", "string", |o, _| {
            o["spec"]["expirationSeconds"].as_i64().map_or(cell::NONE.into(), |s| duration(s).into())
        }),
        Column::new("Condition", "string", |o, _| condition(o)),
    ]
}

fn pod_request_columns() -> Vec<Column> {
    let state = |o: &Object, _| {
        let mut types = items_at(o, "/status/conditions").iter().map(|c| str_at(c, "/type"));
        let end = types.rfind(|type_| matches!(*type_, "Issued" | "Denied" | "Failed"));
        end.unwrap_or("Pending").into()
    };
    vec![
        Column::name(),
        Column::new("PodName", "string", |o, _| text(o, "/spec/podName")),
        Column::new("ServiceAccountName", "string", |o, _| text(o, "/spec/serviceAccountName")),
        Column::new("NodeName", "string", |o, _| text(o, "/spec/nodeName")),
        Column::new("SignerName", "string", |o, _| text(o, "/spec/signerName")),
        Column::new("State", "string", state),
        Column::new("UnverifiedUserAnnotations", "string", |o, _| {
            cell::labels(o, "/spec/unverifiedUserAnnotations")
        }),
    ]
}

fn condition(request: &Object) -> Value {
    let has = |type_: &str| items_at(request, "/status/conditions").iter().any(|c| c["type"] == type_);
    let mut parts = Vec::new();
    if has("Denied") {
        parts.push("Denied");
    } else if has("Approved") {
        parts.push("Approved");
    } else {
        parts.push("Pending");
    }
    if has("Failed") {
        parts.push("Failed");
    }
    if text_or(request, "/status/certificate", "") != "" {
        parts.push("Issued");
    }
    parts.join(",").into()
}

struct Bindings;

impl Strategy for Bindings {
    /// Subjects without a group get the one of their kind.
    fn default(&self, object: &mut Object) {
        if object["roleRef"]["apiGroup"].as_str().is_none_or(str::is_empty) {
            object["roleRef"]["apiGroup"] = "rbac.authorization.k8s.io".into();
        }
        let Some(Value::Array(subjects)) = object.get_mut("subjects") else { return };
        for subject in subjects {
            let named = matches!(str_at(subject, "/kind"), "User" | "Group");
            if named && str_at(subject, "/apiGroup").is_empty() {
                subject["apiGroup"] = "rbac.authorization.k8s.io".into();
            }
        }
    }

    fn validate_update(&self, new: &Object, old: &Object) -> Vec<Cause> {
        if new["roleRef"] == old["roleRef"] {
            return Vec::new();
        }
        vec![Cause::invalid("roleRef", &new["roleRef"], "field is immutable")]
    }
}
