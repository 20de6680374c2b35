//! Deployments, their ReplicaSets and their pods.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::plane::list;
use crate::{ControlPlane, create, is_bound, is_ending, until};

pub(crate) fn deployment(name: &str, replicas: i32) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "image:1"}]}}}})
}

fn image(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.containers.first()?.image.as_deref()
}

/// Plays the kubelet until the Deployment's rollout is complete.
async fn rolled_out(plane: &ControlPlane, name: &str, replicas: i32) -> Result<()> {
    let deployments = plane.api::<Deployment>();
    until(&format!("the rollout of {name}"), async || {
        plane.run_pods().await?;
        plane.end_pods().await?;
        let now = deployments.get(name).await?;
        let (generation, status) = (now.metadata.generation, now.status.context("no status")?);
        let all = [status.replicas, status.updated_replicas, status.available_replicas];
        let is_told = status.conditions.iter().flatten().any(|c| {
            c.type_.as_deref() == Some("Progressing") && c.reason.as_deref() == Some("NewReplicaSetAvailable")
        });
        let is_current = status.observed_generation == generation;
        Ok((is_current && is_told && all == [Some(replicas); 3]).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_ends_with_every_pod_of_the_new_template_on_a_node() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let deployments = plane.api::<Deployment>();
    create(&deployments, deployment("web", 4)).await?;
    rolled_out(&plane, "web", 4).await?;
    let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "image:2"}]}}}});
    deployments.patch("web", &PatchParams::default(), &Patch::Strategic(change)).await?;
    rolled_out(&plane, "web", 4).await?;

    let pods: Vec<Pod> = plane.pods().await?.into_iter().filter(|p| !is_ending(p)).collect();
    ensure!(pods.len() == 4, "{} pods", pods.len());
    ensure!(pods.iter().all(|p| is_bound(p) && image(p) == Some("image:2")), "{pods:?}");
    let size = |s: &ReplicaSet| s.spec.replicas;
    let mut sizes: Vec<_> = list(&plane.api::<ReplicaSet>()).await?.iter().map(size).collect();
    sizes.sort_unstable();
    ensure!(sizes == [Some(0), Some(4)], "the old set is kept for going back, empty: {sizes:?}");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_never_has_fewer_pods_available_than_it_may() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let deployments = plane.api::<Deployment>();
    create(&deployments, deployment("web", 4)).await?;
    rolled_out(&plane, "web", 4).await?;
    let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "image:2"}]}}}});
    deployments.patch("web", &PatchParams::default(), &Patch::Strategic(change)).await?;

    // A quarter may be missing and a quarter too many; no new pod gets ready, so that it stops there.
    let of =
        |pods: &[Pod], wanted| pods.iter().filter(|p| !is_ending(*p) && image(p) == Some(wanted)).count();
    until("three old pods and two new ones", async || {
        let pods = plane.pods().await?;
        Ok((of(&pods, "image:1") == 3 && of(&pods, "image:2") == 2).then_some(()))
    })
    .await?;
    let is_counted = async || {
        let status = deployments.get("web").await?.status.context("no status")?;
        let seen = |s: &DeploymentStatus| (s.updated_replicas, s.available_replicas, s.unavailable_replicas);
        Ok((seen(&status) == (Some(2), Some(3), Some(2))).then_some(()))
    };
    until("two unavailable pods", is_counted).await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_on_their_way_out_are_counted_until_they_are_gone() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let (deployments, sets) = (plane.api::<Deployment>(), plane.api::<ReplicaSet>());
    create(&deployments, deployment("web", 30)).await?;
    until("30 bound pods", async || {
        let pods = plane.pods().await?;
        Ok((pods.iter().filter(|p| is_bound(p)).count() == 30).then_some(()))
    })
    .await?;
    // Of the Deployment and of its set: how many there are, and how many that are on their way out.
    let counts = async || {
        let set = list(&sets).await?.pop().context("no set")?.status.context("no status")?;
        let status = deployments.get("web").await?.status.context("no status")?;
        anyhow::Ok([
            (status.replicas, status.terminating_replicas),
            (Some(set.replicas), set.terminating_replicas),
        ])
    };
    let scale = json!({"spec": {"replicas": 5}});
    deployments.patch("web", &PatchParams::default(), &Patch::Merge(scale)).await?;
    until("25 terminating pods", async || Ok((counts().await? == [(Some(5), Some(25)); 2]).then_some(())))
        .await?;
    plane.end_pods().await?;
    until("none terminating", async || Ok((counts().await? == [(Some(5), Some(0)); 2]).then_some(())))
        .await?;
    ensure!(plane.pods().await?.len() == 5);
    plane.stop().await
}
