//! Policies are held against the types of what they are about, and told in their status what does not fit.
//!
//! Source: `validatingadmissionpolicystatus` of upstream's controller manager. It only tells; what a policy does is up to admission.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Object, Status};
use skiff_policy::{kinds_to_check, type_check};
use skiff_webhook::admission::{GroupVersionKind, GroupVersionResource};
use tokio_util::sync::CancellationToken;

use super::table::Table;
use crate::cache::Filter;
use crate::heavy::HeavyWork;
use crate::objects::{Next, Objects};
use crate::retry::{Backoff, Follow};

const POLICIES: (&str, &str, &str) = ("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies");

/// Who holds them against the types.
pub(crate) struct TypeChecks {
    pub(crate) objects: Arc<Objects>,
    pub(crate) heavy: Arc<HeavyWork>,
}

#[async_trait]
impl Follow for TypeChecks {
    const WHAT: &'static str = "tell of the types of admission policies";

    async fn once(&self, _: &CancellationToken, backoff: &mut Backoff) -> Result<(), Status> {
        let kind = self.objects.lister.kind(POLICIES.0, POLICIES.1, POLICIES.2)?;
        let cache = self.objects.lister.caches.of(&kind)?;
        let mut watcher = cache.watch(Filter::default(), None)?;
        loop {
            for policy in cache.readable().values().map(|entry| entry.parse()) {
                if policy["status"]["observedGeneration"] == policy["metadata"]["generation"] {
                    continue;
                }
                let table = self.objects.lister.table();
                let checked = policy.clone();
                // Compiling is work.
                let status = self.heavy.own().run(move || status_of(&checked, &table)).await?;
                let written = self
                    .objects
                    .modify(&kind, "", policy.name(), false, |current| {
                        let mut object = current.object.clone();
                        if object["metadata"]["generation"] == policy["metadata"]["generation"] {
                            object["status"]["observedGeneration"] = status["observedGeneration"].clone();
                            object["status"]["typeChecking"] = status["typeChecking"].clone();
                        }
                        Ok(Next::Put(object))
                    })
                    .await;
                match written {
                    Err(status) if status.code != 404 => return Err(status),
                    _ => {}
                }
            }
            backoff.worked();
            if watcher.changes.recv().await.is_none() {
                return Ok(());
            }
            while watcher.changes.try_recv().is_ok() {}
        }
    }
}

fn status_of(policy: &Object, table: &Table) -> Value {
    let kinds_for = |resource: &GroupVersionResource| -> Vec<GroupVersionKind> {
        let kind = table.kinds.by_resource(&resource.group, &resource.version, &resource.resource);
        kind.into_iter().map(|kind| GroupVersionKind::new(&kind.api_version(), &kind.kind)).collect()
    };
    let schema_of = |kind: &GroupVersionKind| {
        table.kinds.by_kind(&kind.group, &kind.version, &kind.kind).map(|kind| kind.schema.clone())
    };
    let kinds = kinds_to_check(policy, &kinds_for);
    let warnings: Vec<Value> = type_check(policy, &kinds, &schema_of)
        .into_iter()
        .map(|found| json!({"fieldRef": found.field_ref, "warning": found.warning}))
        .collect();
    let checked = if warnings.is_empty() { json!({}) } else { json!({ "expressionWarnings": warnings }) };
    json!({"observedGeneration": policy["metadata"]["generation"], "typeChecking": checked})
}
