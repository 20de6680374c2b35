//! Controllers have the rights of their own roles: those of them that no other claim is about.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, ResourceQuota};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::Api;
use serde_json::json;

use crate::{ControlPlane, create, until};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_used_of_a_quota_is_counted() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let (quotas, maps) = (plane.api::<ResourceQuota>(), plane.api::<ConfigMap>());
    create(
        &quotas,
        json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/secrets": "2", "configmaps": "9"}}}),
    )
    .await?;
    create(&maps, json!({"metadata": {"name": "m"}})).await?;
    until("its use in the status", async || {
        let used = quotas.get("q").await?.status.and_then(|status| status.used).unwrap_or_default();
        let maps: usize = used.get("configmaps").and_then(|amount| amount.0.parse().ok()).unwrap_or(0);
        Ok((maps >= 1 && used.contains_key("count/secrets")).then_some(()))
    })
    .await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_for_people_have_the_rules_of_those_they_aggregate() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let roles: Api<ClusterRole> = plane.all();
    let has = async |role: &str, resource: &str, verb: &str| -> Result<bool> {
        let rules = roles.get(role).await?.rules.unwrap_or_default();
        Ok(rules.iter().any(|rule| {
            let resources = rule.resources.iter().flatten();
            resources.into_iter().any(|one| one == resource) && rule.verbs.iter().any(|one| one == verb)
        }))
    };
    for (role, resource, verb) in
        [("view", "pods", "get"), ("edit", "secrets", "create"), ("admin", "rolebindings", "create")]
    {
        until(role, async || Ok(has(role, resource, verb).await?.then_some(()))).await?;
    }
    ensure!(!has("view", "secrets", "get").await?, "who may view may read no secrets");
    let mine = json!({
        "metadata": {"name": "mine", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"apiGroups": ["example.com"], "resources": ["things"], "verbs": ["get"]}],
    });
    create(&roles, mine).await?;
    // What may be viewed may be edited and administered, too.
    for role in ["view", "edit", "admin"] {
        until(role, async || Ok(has(role, "things", "get").await?.then_some(()))).await?;
    }
    plane.stop().await
}
