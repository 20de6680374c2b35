//! What single kinds need of the server beyond what their declaration and their strategy say: hooks, which the verbs call without
//! knowing whose they are.

pub(crate) mod certificates;
mod hooks;
mod namespaces;
mod pod_certificates;
mod services;
mod taint_rules;
mod volumes;

use skiff_api::Kind;

use hooks::{Hooks, Plain};

/// The hooks of a kind. A custom kind of the same name has none.
pub(crate) fn hooks_of(kind: &Kind) -> &'static dyn Hooks {
    if kind.custom().is_some() {
        return &Plain;
    }
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "namespaces") => &namespaces::Namespaces,
        ("", "services") => &services::Services,
        ("", "persistentvolumes") => &volumes::Volumes,
        (certificates::GROUP, "certificatesigningrequests") => &certificates::Requests,
        (certificates::GROUP, "podcertificaterequests") => &pod_certificates::Requests,
        ("resource.k8s.io", "devicetaintrules") => &taint_rules::TaintRules,
        _ => &Plain,
    }
}
