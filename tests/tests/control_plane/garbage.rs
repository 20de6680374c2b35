//! What becomes of dependents when their owners go.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PropagationPolicy};
use serde_json::{Value, json};
use skiff_apiserver::store::{Expect, Write, Written};

use crate::plane::list;
use crate::workloads::deployment;
use crate::{ControlPlane, create, is_bound, is_ending, until};

const N_PODS: usize = 3;

/// A Deployment whose pods are all bound, so that none of them goes before it is ended.
async fn deploy(plane: &ControlPlane) -> Result<Api<Deployment>> {
    let deployments = plane.api::<Deployment>();
    create(&deployments, deployment("web", i32::try_from(N_PODS)?)).await?;
    until("bound pods", async || {
        let pods = plane.pods().await?;
        Ok((pods.len() == N_PODS && pods.iter().all(is_bound)).then_some(()))
    })
    .await?;
    Ok(deployments)
}

fn map(name: &str, owners: &[Value]) -> Value {
    json!({"metadata": {"name": name, "ownerReferences": owners}})
}

fn owner(map: &ConfigMap) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": map.metadata.name, "uid": map.metadata.uid,
        "blockOwnerDeletion": true})
}

async fn is_gone(maps: &Api<ConfigMap>, name: &str) -> Result<()> {
    until(&format!("the end of {name}"), async || Ok(maps.get_opt(name).await?.is_none().then_some(()))).await
}

/// Returns when the collector has come to what it had to do after all that was there before.
async fn collector_has_passed(maps: &Api<ConfigMap>) -> Result<()> {
    let nobody = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "passed"});
    create(maps, map("last", &[nobody])).await?;
    is_gone(maps, "last").await
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_stay_without_an_owner() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let (deployments, sets) = (deploy(&plane).await?, plane.api::<ReplicaSet>());
    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    deployments.delete("web", &orphan).await?;
    until("the end of the Deployment", async || {
        Ok(deployments.get_opt("web").await?.is_none().then_some(()))
    })
    .await?;
    collector_has_passed(&plane.api()).await?;
    let set = list(&sets).await?.pop().context("the set went with its owner")?;
    ensure!(!is_ending(&set) && set.metadata.owner_references.is_none_or(|o| o.is_empty()));
    let pods = plane.pods().await?;
    ensure!(pods.len() == N_PODS && !pods.iter().any(is_ending), "its pods are still the set's");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn foreground_deletion_keeps_the_owner_until_the_last_dependent_is_gone() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let deployments = deploy(&plane).await?;
    deployments.delete("web", &DeleteParams::foreground()).await?;
    until("pods on their way out", async || Ok(plane.pods().await?.iter().all(is_ending).then_some(())))
        .await?;
    let (last, others) = {
        let mut names: Vec<String> =
            plane.pods().await?.into_iter().filter_map(|p| p.metadata.name).collect();
        (names.pop().context("no pods")?, names)
    };
    for name in &others {
        plane.end_pod(name).await?;
    }
    collector_has_passed(&plane.api()).await?;
    let kept = deployments.get_opt("web").await?.context("gone before its pods")?;
    ensure!(kept.metadata.finalizers == Some(vec!["foregroundDeletion".into()]), "{:?}", kept.metadata);
    ensure!(list(&plane.api::<ReplicaSet>()).await?.len() == 1, "the set went before its pods");
    plane.end_pod(&last).await?;
    until("the end of all", async || {
        let sets = list(&plane.api::<ReplicaSet>()).await?;
        Ok((sets.is_empty() && deployments.get_opt("web").await?.is_none()).then_some(()))
    })
    .await?;
    ensure!(plane.pods().await?.is_empty());
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn background_deletion_takes_the_owner_at_once_and_the_dependents_after_it() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let deployments = deploy(&plane).await?;
    deployments.delete("web", &DeleteParams::background()).await?;
    ensure!(deployments.get_opt("web").await?.is_none());
    until("the end of all", async || {
        plane.end_pods().await?;
        let sets = list(&plane.api::<ReplicaSet>()).await?;
        Ok((sets.is_empty() && plane.pods().await?.is_empty()).then_some(()))
    })
    .await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_circle_of_owners_does_not_wait_for_itself() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let maps = plane.api::<ConfigMap>();
    let first = create(&maps, map("first", &[])).await?;
    let second = create(&maps, map("second", &[owner(&first)])).await?;
    let owned = json!({"metadata": {"ownerReferences": [owner(&second)]}});
    maps.patch("first", &PatchParams::default(), &Patch::Merge(owned)).await?;
    maps.delete("first", &DeleteParams::foreground()).await?;
    is_gone(&maps, "first").await?;
    is_gone(&maps, "second").await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_an_owner_that_never_was_is_deleted() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let maps = plane.api::<ConfigMap>();
    let namesake = create(&maps, map("namesake", &[])).await?;
    let mut another = owner(&namesake);
    another["uid"] = json!("that-of-an-earlier-one");
    let absent = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "absent", "uid": "none"});
    create(&maps, map("of-absent", std::slice::from_ref(&absent))).await?;
    create(&maps, map("of-earlier", &[another])).await?;
    create(&maps, map("of-both", &[absent, owner(&namesake)])).await?;
    is_gone(&maps, "of-absent").await?;
    is_gone(&maps, "of-earlier").await?;
    ensure!(!is_ending(&maps.get("of-both").await?), "one of its owners is there");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_two_owners_goes_with_the_last_of_them() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let maps = plane.api::<ConfigMap>();
    let first = create(&maps, map("first", &[])).await?;
    let last = create(&maps, map("last-owner", &[])).await?;
    create(&maps, map("both", &[owner(&first), owner(&last)])).await?;
    maps.delete("first", &DeleteParams::foreground()).await?;
    is_gone(&maps, "first").await?;
    let left = maps.get("both").await?.metadata.owner_references.unwrap_or_default();
    ensure!(left.len() == 1 && left[0].name == "last-owner", "{left:?}");
    maps.delete("last-owner", &DeleteParams::background()).await?;
    is_gone(&maps, "both").await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_cannot_be_read_costs_its_dependents_nothing() -> Result<()> {
    let plane = ControlPlane::start().await?;
    deploy(&plane).await?;
    let sets = plane.api::<ReplicaSet>();
    let before = list(&sets).await?;
    let damaged = Write::put("/registry/deployments/default/web", "no object any more", Expect::Any);
    let written = plane.store.write(damaged).await?;
    ensure!(matches!(written, Written::Done { .. }), "{written:?}");
    // Something about the set changes, so that its owner is looked for.
    let touch = json!({"metadata": {"annotations": {"looked": "at"}}});
    let name = before[0].metadata.name.as_deref().context("no name")?;
    sets.patch(name, &PatchParams::default(), &Patch::Merge(touch)).await?;
    collector_has_passed(&plane.api()).await?;
    let listed = list(&plane.api::<Deployment>()).await;
    let refused = listed.map(drop).err().context("the list leaves it out")?;
    ensure!(format!("{refused:#}").contains("failed to read one or more deployments.apps"), "{refused:#}");
    let after = list(&sets).await?;
    ensure!(after.len() == before.len() && !after.iter().any(is_ending), "{after:?}");
    let pods = plane.pods().await?;
    ensure!(pods.len() == N_PODS && !pods.iter().any(is_ending), "{pods:?}");
    plane.stop().await
}
