//! How a namespace ends.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::{ControlPlane, create, is_bound, is_ending, pod, until};

async fn namespace(plane: &ControlPlane) -> Result<Api<Namespace>> {
    let namespaces = plane.all::<Namespace>();
    create(&namespaces, json!({"metadata": {"name": "team"}})).await?;
    plane.has_account("team").await?;
    Ok(namespaces)
}

/// Waits until a condition holds; answers its reason and its message.
async fn told(namespaces: &Api<Namespace>, condition: &str) -> Result<(String, String)> {
    until(condition, async || {
        let status = namespaces.get("team").await?.status.context("no status")?;
        let held =
            status.conditions.into_iter().flatten().find(|c| c.type_ == condition && c.status == "True");
        Ok(held.and_then(|c| Some((c.reason?, c.message?))))
    })
    .await
}

async fn is_gone(namespaces: &Api<Namespace>) -> Result<()> {
    until("the end of the namespace", async || Ok(namespaces.get_opt("team").await?.is_none().then_some(())))
        .await
}

fn words(reason: &str, message: &str) -> (String, String) {
    (reason.to_owned(), message.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_keeps_what_its_pods_may_need_until_they_are_gone() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let namespaces = namespace(&plane).await?;
    let (pods, secrets) = (plane.api_in::<Pod>("team"), plane.api_in::<Secret>("team"));
    create(&pods, pod("p", "p", Value::Null)).await?;
    create(&secrets, json!({"metadata": {"name": "s"}})).await?;
    until("a bound pod", async || Ok(is_bound(&pods.get("p").await?).then_some(()))).await?;

    namespaces.delete("team", &DeleteParams::default()).await?;
    let remaining =
        words("SomeResourcesRemain", "Some resources are remaining: pods. has 1 resource instances");
    let found = told(&namespaces, "NamespaceContentRemaining").await?;
    ensure!(found == remaining, "{found:?}");
    ensure!(is_ending(&pods.get("p").await?), "the pod stays");
    ensure!(!is_ending(&secrets.get("s").await?), "the secret goes before the pod");
    pods.delete("p", &DeleteParams::default().grace_period(0)).await?;
    is_gone(&namespaces).await?;
    ensure!(secrets.get_opt("s").await?.is_none(), "the secret outlived its namespace");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finalizer_holds_its_namespace_and_is_named() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let namespaces = namespace(&plane).await?;
    let maps = plane.api_in::<ConfigMap>("team");
    create(&maps, json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}})).await?;
    namespaces.delete("team", &DeleteParams::default()).await?;
    let held = words(
        "SomeFinalizersRemain",
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances",
    );
    let found = told(&namespaces, "NamespaceFinalizersRemaining").await?;
    ensure!(found == held, "{found:?}");
    let released = json!({"metadata": {"finalizers": null}});
    maps.patch("held", &PatchParams::default(), &Patch::Merge(released)).await?;
    is_gone(&namespaces).await?;
    plane.stop().await
}
