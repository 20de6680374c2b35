//! Admission registration, custom resources and aggregation.

use super::kind;
use crate::kinds::definition;
use crate::table::Column;
use crate::table::cell::{UNSET, condition, count, str_at, text, text_or};
use crate::{Kind, Object};

/// The kinds that extend the API itself, which discovery lists before the workloads.
pub(super) fn registrations() -> Vec<Kind> {
    vec![
        kind("apiregistration.k8s.io", "v1", "APIService", "apiservices")
            .cluster()
            .category("api-extensions")
            .subresources(&["status"])
            .columns(vec![
                Column::name(),
                Column::new("Service", "string", |o, _| match str_at(o, "/spec/service/name") {
                    "" => "Local".into(),
                    name => format!("{}/{name}", str_at(o, "/spec/service/namespace")).into(),
                }),
                Column::new("Available", "string", |o, _| {
                    condition(o, "Available").map_or("Unknown".into(), |c| match str_at(c, "/status") {
                        "True" => "True".into(),
                        status => format!("{status} ({})", str_at(c, "/reason")).into(),
                    })
                }),
                Column::age(),
            ]),
    ]
}

pub(super) fn kinds() -> Vec<Kind> {
    let admission = |name: &str, plural: &str| {
        kind("admissionregistration.k8s.io", "v1", name, plural).cluster().category("api-extensions")
    };
    let webhooks = || {
        vec![
            Column::name(),
            Column::new("Webhooks", "integer", |o, _| count(o, "/webhooks").into()),
            Column::age(),
        ]
    };
    let policies = || {
        vec![
            Column::name(),
            Column::new("Validations", "integer", |o, _| count(o, "/spec/validations").into()),
            Column::new("ParamKind", "string", |o, _| param_kind(o)),
            Column::age(),
        ]
    };
    let bindings = || {
        vec![
            Column::name(),
            Column::new("PolicyName", "string", |o, _| text(o, "/spec/policyName")),
            Column::new("ParamRef", "string", |o, _| text_or(o, "/spec/paramRef/name", UNSET)),
            Column::age(),
        ]
    };
    vec![
        admission("MutatingAdmissionPolicy", "mutatingadmissionpolicies").columns(vec![
            Column::name(),
            Column::new("Mutations", "integer", |o, _| count(o, "/spec/mutations").into()),
            Column::new("ParamKind", "string", |o, _| param_kind(o)),
            Column::age(),
        ]),
        admission("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings").columns(bindings()),
        admission("MutatingWebhookConfiguration", "mutatingwebhookconfigurations").columns(webhooks()),
        admission("ValidatingAdmissionPolicy", "validatingadmissionpolicies")
            .subresources(&["status"])
            .columns(policies()),
        admission("ValidatingAdmissionPolicyBinding", "validatingadmissionpolicybindings")
            .columns(bindings()),
        admission("ValidatingWebhookConfiguration", "validatingwebhookconfigurations").columns(webhooks()),
        kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions")
            .cluster()
            .short(&["crd", "crds"])
            .category("api-extensions")
            .subresources(&["status"])
            .strategy(&definition::Definitions)
            .columns(vec![Column::name(), Column::created_at()]),
    ]
}

fn param_kind(policy: &Object) -> serde_json::Value {
    match str_at(policy, "/spec/paramKind/kind") {
        "" => UNSET.into(),
        kind => format!("{}/{kind}", str_at(policy, "/spec/paramKind/apiVersion")).into(),
    }
}
