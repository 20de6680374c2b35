//! Who does the work of scheduler and controllers, and which controllers do theirs.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use crate::{ControlPlane, create, until};

#[tokio::test(flavor = "multi_thread")]
async fn scheduler_and_controllers_hold_upstreams_leases_and_renew_them() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let leases: Api<Lease> = plane.api_in("kube-system");
    for name in ["kube-scheduler", "kube-controller-manager"] {
        let spec = leases.get(name).await?.spec.context("no spec")?;
        ensure!(spec.holder_identity.as_deref() == Some("n1_1"), "{spec:?}");
        ensure!(spec.lease_duration_seconds == Some(12) && spec.lease_transitions == Some(0), "{spec:?}");
        until("a renewal", async || {
            let now = leases.get(name).await?.spec.context("no spec")?;
            ensure!(now.acquire_time == spec.acquire_time);
            Ok((now.renew_time > spec.renew_time).then_some(()))
        })
        .await?;
    }
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_turned_off_leaves_its_work_to_others() -> Result<()> {
    let plane = ControlPlane::start_with("*,-deployment".parse()?).await?;
    let (deployments, sets) = (plane.api::<Deployment>(), plane.api::<ReplicaSet>());
    let labels = json!({"app": "a"});
    let template =
        json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
    let spec = json!({"replicas": 1, "selector": {"matchLabels": labels}, "template": template});
    create(&deployments, json!({"metadata": {"name": "d"}, "spec": spec})).await?;
    create(&sets, json!({"metadata": {"name": "own"}, "spec": spec})).await?;
    until("pods of the set", async || {
        let status = sets.get("own").await?.status;
        Ok(status.is_some_and(|status| status.replicas == 1).then_some(()))
    })
    .await?;
    let names: Vec<_> =
        sets.list(&ListParams::default()).await?.into_iter().filter_map(|s| s.metadata.name).collect();
    ensure!(names == ["own"], "{names:?}");
    ensure!(deployments.get("d").await?.status.is_none_or(|status| status.observed_generation.is_none()));
    plane.stop().await
}
