//! Built-in admission: what a request's object is completed with, and what refuses it besides its kind's own
//! rules. Webhooks and policies are not built yet.

mod limit_ranger;
mod node;
mod pod;
pub(crate) mod quota;
mod service_account;

use std::collections::HashSet;

use skiff_api::meta::Meta;
use skiff_api::{Cause, Object, Status};

use crate::api::{Api, Call, is_core};
use crate::certificates::is_signing_request;

/// What mutating admission makes of an update, before it is compared with what there was.
pub(crate) fn complete_update(call: &Call, new: &mut Object, old: &Object) {
    if call.info.subresource.is_empty() && is_core(&call.kind, "Pod") {
        pod::admit_update(new, old);
    }
}

impl Api {
    /// `NamespaceLifecycle`: nothing is created in a namespace that is missing or going.
    pub(crate) async fn check_namespace(&self, call: &Call, object: &Object) -> Result<(), Status> {
        if !call.kind.is_namespaced() {
            return Ok(());
        }
        let namespace = object.namespace();
        // A deletion that was acknowledged before this request must be seen.
        self.caches.wait_for_newest().await?;
        let found = self.cached("namespaces", namespace)?;
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

    /// Completes a new object, or refuses it.
    pub(crate) async fn admit_create(&self, call: &Call, object: &mut Object) -> Result<(), Status> {
        if call.info.subresource.is_empty() && is_core(&call.kind, "Pod") {
            self.restrict_node_create(call, object)?;
            self.default_limits(object)?;
            self.admit_service_account(object).await?;
            pod::add_default_tolerations(object);
            self.admit_priority(object).await?;
            self.admit_topology(object)?;
            return self.admit_runtime_class(object).await;
        }
        if is_signing_request(&call.kind) {
            self.admit_signing_request(call, object)?;
        }
        if is_core(&call.kind, "Service") {
            deny_external_ips(object, None)?;
        }
        self.restrict_node_create(call, object)
    }

    pub(crate) fn admit_update(&self, call: &Call, new: &mut Object, old: &Object) -> Result<(), Status> {
        if is_signing_request(&call.kind) {
            self.admit_signing_update(call, new, old)?;
        }
        if is_core(&call.kind, "Service") {
            deny_external_ips(new, Some(old))?;
        }
        if call.info.subresource.is_empty()
            && is_core(&call.kind, "PersistentVolumeClaim")
            && !old.is_being_deleted()
        {
            self.check_limits(&call.kind, new)?;
        }
        self.restrict_node_update(call, new, old)
    }

    pub(crate) fn restrict_node_eviction(&self, call: &Call) -> Result<(), Status> {
        self.restrict_node_create(call, &Object::Null)
    }

    pub(crate) fn admit_delete(&self, call: &Call, object: &Object) -> Result<(), Status> {
        self.restrict_node_delete(call, object)
    }
}

/// `DenyServiceExternalIPs`: whoever may write a Service could otherwise take over any address
/// (CVE-2020-8554). Addresses that are there already may stay.
fn deny_external_ips(new: &Object, old: Option<&Object>) -> Result<(), Status> {
    fn list(object: &Object) -> HashSet<&str> {
        let ips = object["spec"]["externalIPs"].as_array();
        ips.into_iter().flatten().filter_map(serde_json::Value::as_str).collect()
    }
    let before = old.map(list).unwrap_or_default();
    if list(new).is_subset(&before) {
        return Ok(());
    }
    Err(Status::forbidden("", "services", new.name(), "Use of external IPs is denied by admission control."))
}
