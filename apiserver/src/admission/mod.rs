//! Built-in admission: what a request's object is completed with, and what refuses it besides its kind's own
//! rules. What is written in objects is in `dynamic.rs`.

mod claim_resize;
mod default_class;
pub(crate) mod dynamic;
mod latest;
mod limit_ranger;
mod node;
mod params;
mod params_access;
pub(crate) mod plugins;
pub(crate) mod pod;
mod pod_certificate;
mod pod_security;
pub(crate) mod quota;
mod service_account;
mod signing;
mod timed;

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Cause, Kind, Object, Status};
use skiff_webhook::admission::Operation;

use crate::auth::authorize::Authorization;
use crate::auth::rbac::{Grant, grants};
use crate::call::{Call, is_core};
use crate::lister::Lister;
use crate::metrics::Metrics;
use crate::resources::certificates::is_signing_request;
use dynamic::Dynamic;
use params_access::Access;
use plugins::AdmissionPlugin;
use quota::Quotas;
use timed::Timed;

/// Everything that admits. Plug-ins read what there is; only quotas write.
pub(crate) struct Admission {
    pub(crate) lister: Lister,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) authorizer: Arc<Authorization>,
    /// Plug-ins that are turned off.
    pub(crate) disabled: Vec<AdmissionPlugin>,
    pub(crate) dynamic: Dynamic,
    pub(crate) quotas: Quotas,
}

impl Admission {
    fn timed(&self, operation: Operation, type_: &'static str) -> Timed<'_> {
        Timed { metrics: &self.metrics, operation, type_ }
    }

    /// `NamespaceLifecycle`: nothing is created in a namespace that is missing or going.
    pub(crate) async fn check_namespace(&self, call: &Call, object: &Object) -> Result<(), Status> {
        if !call.kind.is_namespaced() {
            return Ok(());
        }
        let timed = self.timed(Operation::Create, "admit");
        timed.of("NamespaceLifecycle", self.check_lifecycle(call, object)).await
    }

    async fn check_lifecycle(&self, call: &Call, object: &Object) -> Result<(), Status> {
        let namespace = object.namespace();
        // A deletion that was acknowledged before this request must be seen.
        self.lister.caches.wait_for_newest().await?;
        let found = self.lister.cached("namespaces", namespace)?;
        let Some(entry) = found else { return Err(Status::not_found("", "namespaces", namespace)) };
        if !entry.parse().is_being_deleted() {
            return Ok(());
        }
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let name = if object.name().is_empty() { object.meta_str("generateName") } else { object.name() };
        let mut status = Status::forbidden(&call.kind.group, &call.kind.plural, name, &why);
        if let Some(details) = &mut status.details {
            details.causes = vec![Cause {
                reason: "NamespaceTerminating",
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            }];
        }
        Err(status)
    }

    /// What mutating admission makes of an update, before it is compared with what there was.
    pub(crate) fn complete_update(&self, call: &Call, new: &mut Object, old: &Object) {
        if call.info.subresource.is_empty() && is_core(&call.kind, "Pod") {
            if self.admits_by(AdmissionPlugin::DefaultTolerationSeconds) {
                pod::add_default_tolerations(new);
            }
            pod::admit_update(new, old);
        }
    }

    fn admits_by(&self, plugin: AdmissionPlugin) -> bool {
        !self.disabled.contains(&plugin)
    }

    /// Completes a new object, or refuses it.
    pub(crate) async fn admit_create(&self, call: &Call, object: &mut Object) -> Result<(), Status> {
        if call.info.subresource.is_empty() && is_core(&call.kind, "Pod") {
            return self.admit_pod(call, object).await;
        }
        let timed = self.timed(Operation::Create, "admit");
        if is_signing_request(&call.kind) {
            let validating = self.timed(Operation::Create, "validate");
            validating.at_once("CertificateSubjectRestriction", || signing::admit_request(call, object))?;
        }
        self.check_grant(call, object, None).await?;
        if let Some(plugin) = default_class::plugin_of(&call.kind) {
            timed.at_once(plugin, || default_class::complete(&self.lister, &call.kind, object))?;
        }
        self.restrict_node(call, object).await?;
        if call.info.subresource.is_empty() && is_core(&call.kind, "Node") {
            timed.at_once("TaintNodesByCondition", || {
                taint_new_node(object);
                Ok(())
            })?;
        }
        Ok(())
    }

    async fn admit_pod(&self, call: &Call, pod: &mut Object) -> Result<(), Status> {
        let timed = self.timed(Operation::Create, "admit");
        self.restrict_node(call, pod).await?;
        timed.at_once("LimitRanger", || limit_ranger::default_limits(&self.lister, pod))?;
        if self.admits_by(AdmissionPlugin::ServiceAccount) {
            timed.of("ServiceAccount", service_account::admit(&self.lister, pod)).await?;
        }
        if self.admits_by(AdmissionPlugin::DefaultTolerationSeconds) {
            timed.at_once("DefaultTolerationSeconds", || {
                pod::add_default_tolerations(pod);
                Ok(())
            })?;
        }
        timed.of("Priority", pod::admit_priority(&self.lister, pod)).await?;
        timed.at_once("PodTopologyLabels", || pod::admit_topology(&self.lister, pod))?;
        timed.of("RuntimeClass", pod::admit_runtime_class(&self.lister, pod)).await
    }

    /// `NodeRestriction` of what a node creates.
    async fn restrict_node(&self, call: &Call, object: &Object) -> Result<(), Status> {
        if call.user.node_name().is_none() {
            return Ok(());
        }
        let restricted = node::restrict_create(&self.lister, &self.authorizer, call, object);
        self.timed(Operation::Create, "admit").of("NodeRestriction", restricted).await
    }

    /// What refuses a new object that its kind's own rules have nothing against.
    pub(crate) async fn validate_create(
        &self,
        call: &Call,
        object: &Object,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        let timed = self.timed(Operation::Create, "validate");
        self.validate_any(&timed, call, object, old).await?;
        if call.info.subresource.is_empty() && is_core(&call.kind, "Pod") {
            timed.of("RuntimeClass", pod::check_overhead(&self.lister, object)).await?;
        }
        self.check_pod_security(&timed, call, object, old)
    }

    /// What is checked of a new object as of one that was changed.
    async fn validate_any(
        &self,
        timed: &Timed<'_>,
        call: &Call,
        new: &Object,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        if is_core(&call.kind, "Service") {
            timed.at_once("DenyServiceExternalIPs", || deny_external_ips(new, old))?;
        }
        if signing::is_bundle(&call.kind) {
            let attested = signing::attest(&self.authorizer, call, new, old);
            timed.of("ClusterTrustBundleAttest", attested).await?;
        }
        Ok(())
    }

    fn check_pod_security(
        &self,
        timed: &Timed<'_>,
        call: &Call,
        new: &Object,
        old: Option<&Object>,
    ) -> Result<(), Status> {
        if !is_core(&call.kind, "Pod") && !is_core(&call.kind, "Namespace") {
            return Ok(());
        }
        let subresource = call.info.subresource.as_str();
        timed.at_once("PodSecurity", || pod_security::check(&self.lister, &call.kind, subresource, new, old))
    }

    /// What a policy or a binding names that its author must not read, if anything.
    ///
    /// # Errors
    /// What the cache of policies fails with.
    pub(crate) async fn unreadable_params(
        &self,
        call: &Call,
        new: &Object,
        old: Option<&Object>,
    ) -> Result<Option<Cause>, Status> {
        let access = Access { lister: &self.lister, authorizer: &self.authorizer };
        access.unreadable(call, new, old).await
    }

    /// Refuses a pod or claim that is outside of what its namespace allows.
    pub(crate) fn check_limits(&self, kind: &Kind, object: &Object) -> Result<(), Status> {
        if !is_core(kind, "Pod") && !is_core(kind, "PersistentVolumeClaim") {
            return Ok(());
        }
        let timed = self.timed(Operation::Create, "validate");
        timed.at_once("LimitRanger", || limit_ranger::check_limits(&self.lister, kind, object))
    }

    /// Devices that others use are for whoever watches over them, in namespaces that are labelled for it.
    ///
    /// Source: `AuthorizedForAdmin` of upstream's `registry/resource`.
    pub(crate) fn device_admins(&self, kind: &Kind, object: &Object) -> Result<Option<Cause>, Status> {
        const LABEL: &str = "resource.kubernetes.io/admin-access";
        let devices = match (kind.group.as_str(), kind.kind.as_str()) {
            ("resource.k8s.io", "ResourceClaim") => &object["spec"]["devices"],
            ("resource.k8s.io", "ResourceClaimTemplate") => &object["spec"]["spec"]["devices"],
            _ => return Ok(None),
        };
        let is_admins = |request: &Value| request["exactly"]["adminAccess"] == true;
        let at = devices["requests"].as_array().and_then(|requests| requests.iter().position(is_admins));
        let Some(at) = at else { return Ok(None) };
        let namespace = self.lister.cached("namespaces", object.namespace())?;
        if namespace.is_some_and(|namespace| namespace.label(LABEL) == Some("true")) {
            return Ok(None);
        }
        let why =
            format!("admin access to devices requires the `{LABEL}: true` label on the containing namespace");
        Ok(Some(Cause::forbidden(format!("spec.devices.requests[{at}].adminAccess"), &why)))
    }

    pub(crate) async fn admit_update(
        &self,
        call: &Call,
        new: &mut Object,
        old: &Object,
    ) -> Result<(), Status> {
        let timed = self.timed(Operation::Update, "validate");
        if is_signing_request(&call.kind) {
            let admitted = signing::admit_update(&self.authorizer, call, new, old);
            match call.info.subresource.as_str() {
                "approval" => timed.of("CertificateApproval", admitted).await?,
                "status" => timed.of("CertificateSigning", admitted).await?,
                _ => {}
            }
        }
        if call.info.subresource.is_empty()
            && is_core(&call.kind, "PersistentVolumeClaim")
            && !old.is_being_deleted()
        {
            timed.at_once("LimitRanger", || limit_ranger::check_limits(&self.lister, &call.kind, new))?;
        }
        if call.info.subresource == "resize" {
            timed.at_once("LimitRanger", || {
                limit_ranger::default_limits(&self.lister, new)?;
                limit_ranger::check_limits(&self.lister, &call.kind, new)
            })?;
        }
        self.check_grant(call, new, Some(old)).await?;
        self.check_pod_security(&timed, call, new, Some(old))?;
        if call.user.node_name().is_none() {
            return Ok(());
        }
        let timed = self.timed(Operation::Update, "admit");
        timed.at_once("NodeRestriction", || node::restrict_update(&self.lister, call, new, old))
    }

    /// Why an update of `status` is not for this user to make, if it is not.
    pub(crate) async fn unsigned(&self, call: &Call, new: &Object, old: &Object) -> Option<Cause> {
        signing::unsigned(&self.authorizer, call, new, old).await
    }

    /// What refuses an update that the rules of its kind have nothing against.
    pub(crate) async fn validate_update(
        &self,
        call: &Call,
        new: &Object,
        old: &Object,
    ) -> Result<(), Status> {
        let timed = self.timed(Operation::Update, "validate");
        self.validate_any(&timed, call, new, Some(old)).await?;
        if call.info.subresource.is_empty() && is_core(&call.kind, "PersistentVolumeClaim") {
            timed.at_once("PersistentVolumeClaimResize", || {
                claim_resize::check(&self.lister, &call.kind, new, old)
            })?;
        }
        Ok(())
    }

    /// What an object that was written most likely does not mean, and what its namespace has against it.
    pub(crate) fn warn(&self, call: &mut Call, new: &Object, old: Option<&Object>) {
        let warnings = call.kind.warnings(new, old);
        call.warnings.extend(warnings);
        let warnings = pod_security::warnings_of(&self.lister, &call.kind, new, old);
        call.warnings.extend(warnings);
    }

    /// Nobody grants what they do not have.
    async fn check_grant(&self, call: &Call, new: &Object, old: Option<&Object>) -> Result<(), Status> {
        if !grants(&call.kind) {
            return Ok(());
        }
        let grant = Grant { user: &call.user, info: &call.info, kind: &call.kind, new, old };
        self.authorizer.check_grant(&grant).await
    }

    pub(crate) async fn restrict_node_eviction(&self, call: &Call) -> Result<(), Status> {
        self.restrict_node(call, &Object::Null).await
    }

    pub(crate) fn admit_delete(&self, call: &Call, object: &Object) -> Result<(), Status> {
        if call.user.node_name().is_none() {
            return Ok(());
        }
        let timed = self.timed(Operation::Delete, "admit");
        timed.at_once("NodeRestriction", || node::restrict_delete(call, object))
    }
}

/// `TaintNodesByCondition`: a new node gets no pods before it says that it is ready, when the controller of nodes takes the
/// taint away. Put on by that controller, it would come after the first pods.
fn taint_new_node(node: &mut Object) {
    let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    match &mut node["spec"]["taints"] {
        Value::Array(taints) => {
            let is_there = |has: &Value| ["key", "effect"].iter().all(|field| has[*field] == taint[*field]);
            if !taints.iter().any(is_there) {
                taints.push(taint);
            }
        }
        taints => *taints = json!([taint]),
    }
}

/// `DenyServiceExternalIPs`: whoever may write a Service could otherwise take over any address
/// (CVE-2020-8554). Addresses that are there already may stay.
fn deny_external_ips(new: &Object, old: Option<&Object>) -> Result<(), Status> {
    fn list(object: &Object) -> HashSet<&str> {
        let ips = object["spec"]["externalIPs"].as_array();
        ips.into_iter().flatten().filter_map(Value::as_str).collect()
    }
    let before = old.map(list).unwrap_or_default();
    if list(new).is_subset(&before) {
        return Ok(());
    }
    Err(Status::forbidden("", "services", new.name(), "Use of external IPs is denied by admission control."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_is_tainted_once() {
        let taint = json!({"effect": "NoSchedule", "key": "node.kubernetes.io/not-ready"});
        let own = json!({"effect": "NoSchedule", "key": "k"});
        let same_key = json!({"effect": "NoExecute", "key": "node.kubernetes.io/not-ready"});
        for (spec, wanted) in [
            (json!(null), json!([taint])),
            (json!({"taints": null}), json!([taint])),
            (json!({"taints": [own]}), json!([own, taint])),
            (json!({"taints": [taint]}), json!([taint])),
            (json!({"taints": [same_key]}), json!([same_key, taint])),
        ] {
            let mut node = json!({"metadata": {"name": "n"}, "spec": spec});
            taint_new_node(&mut node);
            assert_eq!(node["spec"]["taints"], wanted);
        }
    }
}
