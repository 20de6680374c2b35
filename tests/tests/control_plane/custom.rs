//! Custom resources among the controllers: owners and dependents, quotas, namespaces that go.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ResourceQuota};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, PostParams, PropagationPolicy};
use serde_json::{Value, json};

use crate::{ControlPlane, create, until};

fn foos(plane: &ControlPlane, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "example.com".into(),
        version: "v1".into(),
        api_version: "example.com/v1".into(),
        kind: "Foo".into(),
        plural: "foos".into(),
    };
    Api::namespaced_with(plane.client().clone(), namespace, &resource)
}

async fn define(plane: &ControlPlane) -> Result<()> {
    let definitions = plane.all::<CustomResourceDefinition>();
    let definition = json!({
        "metadata": {"name": "foos.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            }}}],
        },
    });
    create(&definitions, definition).await?;
    until("an established definition", async || {
        let definition = definitions.get("foos.example.com").await?;
        let conditions = definition.status.and_then(|status| status.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(()))
    })
    .await
}

fn foo(name: &str, owners: &[Value]) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Foo", "metadata": {"name": name, "ownerReferences": owners}})
}

fn owner(api_version: &str, kind: &str, name: &str, uid: Option<&String>) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "blockOwnerDeletion": true})
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_own_and_are_owned() -> Result<()> {
    let plane = ControlPlane::start().await?;
    define(&plane).await?;
    let (foos, maps) = (foos(&plane, "default"), plane.api::<ConfigMap>());
    let first = create(&foos, foo("first", &[])).await?;
    let of_first = owner("example.com/v1", "Foo", "first", first.metadata.uid.as_ref());
    let map = create(&maps, json!({"metadata": {"name": "second", "ownerReferences": [of_first]}})).await?;
    let of_second = owner("v1", "ConfigMap", "second", map.metadata.uid.as_ref());
    create(&foos, foo("third", &[of_second])).await?;
    let foreground =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
    foos.delete("first", &foreground).await?;
    until("the end of all three", async || {
        let left =
            (foos.get_opt("first").await?, maps.get_opt("second").await?, foos.get_opt("third").await?);
        Ok(matches!(left, (None, None, None)).then_some(()))
    })
    .await?;

    // They have no strategic patches: what orphans them is a merge.
    let map = create(&maps, json!({"metadata": {"name": "owner"}})).await?;
    let of_map = owner("v1", "ConfigMap", "owner", map.metadata.uid.as_ref());
    create(&foos, foo("orphan", &[of_map])).await?;
    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    maps.delete("owner", &orphan).await?;
    until("the end of the owner", async || Ok(maps.get_opt("owner").await?.is_none().then_some(()))).await?;
    let left = foos.get("orphan").await?;
    ensure!(left.metadata.owner_references.is_none_or(|owners| owners.is_empty()));
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_resources_count_and_go_with_their_namespace() -> Result<()> {
    let plane = ControlPlane::start().await?;
    define(&plane).await?;
    let namespaces = plane.all::<Namespace>();
    create(&namespaces, json!({"metadata": {"name": "a"}})).await?;
    let quotas = plane.api_in::<ResourceQuota>("a");
    create(&quotas, json!({"metadata": {"name": "few"}, "spec": {"hard": {"count/foos.example.com": "1"}}}))
        .await?;
    until("a counted quota", async || {
        let used = quotas.get("few").await?.status.and_then(|status| status.used).unwrap_or_default();
        Ok(used.get("count/foos.example.com").is_some_and(|used| used.0 == "0").then_some(()))
    })
    .await?;
    let foos = foos(&plane, "a");
    create(&foos, foo("one", &[])).await?;
    let two: DynamicObject = serde_json::from_value(foo("two", &[]))?;
    let refused = foos.create(&PostParams::default(), &two).await.err().map(|error| error.to_string());
    ensure!(refused.as_ref().is_some_and(|why| why.contains("exceeded quota: few")), "{refused:?}");
    namespaces.delete("a", &DeleteParams::default()).await?;
    until("the end of the namespace", async || Ok(namespaces.get_opt("a").await?.is_none().then_some(())))
        .await?;
    ensure!(foos.get_opt("one").await?.is_none());
    plane.stop().await
}
