//! DaemonSets: their pods on every node, and from one template to the next.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::plane::{list, node};
use crate::{ControlPlane, create, is_bound, is_ending, until};

fn daemons(rolling: Value) -> Value {
    json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"app": "d"}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "image:1"}]}}}})
}

fn image(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.containers.first()?.image.as_deref()
}

/// The nodes of the pods that are there to stay, with the image of each.
async fn placed(plane: &ControlPlane) -> Result<Vec<(String, String)>> {
    let pods = plane.pods().await?;
    let staying = pods.iter().filter(|pod| is_bound(pod) && !is_ending(*pod));
    let place = |pod: &Pod| Some((pod.spec.as_ref()?.node_name.clone()?, image(pod)?.to_owned()));
    let mut placed: Vec<_> = staying.filter_map(place).collect();
    placed.sort();
    Ok(placed)
}

fn on(nodes: &[&str], image: &str) -> Vec<(String, String)> {
    nodes.iter().map(|node| ((*node).to_owned(), image.to_owned())).collect()
}

/// Plays the kubelets until the pods lie as wanted and the set says so.
async fn lies(plane: &ControlPlane, wanted: &[(String, String)]) -> Result<()> {
    let sets = plane.api::<DaemonSet>();
    let count = i32::try_from(wanted.len())?;
    until(&format!("daemons on {wanted:?}"), async || {
        plane.run_pods().await?;
        plane.end_pods().await?;
        let set = sets.get("d").await?;
        let status = set.status.context("no status")?;
        let counts =
            |s: &DaemonSetStatus| [s.desired_number_scheduled, s.current_number_scheduled, s.number_ready];
        let is_told = status.observed_generation == set.metadata.generation
            && counts(&status) == [count; 3]
            && status.updated_number_scheduled.unwrap_or(0) == count;
        Ok((is_told && placed(plane).await? == wanted).then_some(()))
    })
    .await
}

async fn start(rolling: Value) -> Result<ControlPlane> {
    let plane = ControlPlane::start().await?;
    plane.add_node(node("n2")).await?;
    create(&plane.api::<DaemonSet>(), daemons(rolling)).await?;
    lies(&plane, &on(&["n1", "n2"], "image:1")).await?;
    Ok(plane)
}

async fn set_image(plane: &ControlPlane, image: &str) -> Result<()> {
    let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    plane.api::<DaemonSet>().patch("d", &PatchParams::default(), &Patch::Strategic(change)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_gets_a_daemon_and_loses_it_when_it_is_no_longer_selected() -> Result<()> {
    let plane = start(json!({"maxUnavailable": 1})).await?;
    plane.add_node(node("n3")).await?;
    lies(&plane, &on(&["n1", "n2", "n3"], "image:1")).await?;

    let nodes = plane.all::<Node>();
    let taint = |taints: Value| Patch::Merge(json!({"spec": {"taints": taints}}));
    let keep_away = json!([{"key": "k", "effect": "NoExecute"}]);
    nodes.patch("n2", &PatchParams::default(), &taint(keep_away)).await?;
    lies(&plane, &on(&["n1", "n3"], "image:1")).await?;
    nodes.patch("n2", &PatchParams::default(), &taint(Value::Null)).await?;
    lies(&plane, &on(&["n1", "n2", "n3"], "image:1")).await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_template_replaces_the_daemons_and_leaves_a_revision_to_go_back_to() -> Result<()> {
    for rolling in [json!({"maxUnavailable": 1}), json!({"maxUnavailable": 0, "maxSurge": 1})] {
        let plane = start(rolling).await?;
        set_image(&plane, "image:2").await?;
        lies(&plane, &on(&["n1", "n2"], "image:2")).await?;
        let revisions = async || {
            let all = list(&plane.api::<ControllerRevision>()).await?;
            let image = |r: &ControllerRevision| {
                r.data.0["spec"]["template"]["spec"]["containers"][0]["image"].clone()
            };
            let mut numbered: Vec<_> = all.iter().map(|r| (r.revision, image(r))).collect();
            numbered.sort_by_key(|(number, _)| *number);
            anyhow::Ok(numbered)
        };
        let both = revisions().await?;
        ensure!(both == [(Some(1), json!("image:1")), (Some(2), json!("image:2"))], "{both:?}");
        // As `kubectl rollout undo` does it.
        set_image(&plane, "image:1").await?;
        lies(&plane, &on(&["n1", "n2"], "image:1")).await?;
        let both = revisions().await?;
        ensure!(both == [(Some(2), json!("image:2")), (Some(3), json!("image:1"))], "{both:?}");
        plane.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_failed_or_was_deleted_is_replaced() -> Result<()> {
    let plane = start(json!({"maxUnavailable": 1})).await?;
    let before = plane.pods().await?;
    let names: Vec<_> = before.iter().filter_map(|pod| pod.metadata.name.clone()).collect();
    let failed = json!({"status": {"phase": "Failed"}});
    let pods = plane.api::<Pod>();
    pods.patch_status(&names[0], &PatchParams::default(), &Patch::Merge(failed)).await?;
    plane.end_pod(&names[1]).await?;
    until("two other daemons", async || {
        plane.run_pods().await?;
        plane.end_pods().await?;
        let now = plane.pods().await?;
        let is_other = |pod: &Pod| pod.metadata.name.as_ref().is_some_and(|name| !names.contains(name));
        Ok((now.len() == 2 && now.iter().all(|pod| is_bound(pod) && is_other(pod))).then_some(()))
    })
    .await?;
    lies(&plane, &on(&["n1", "n2"], "image:1")).await?;
    plane.stop().await
}
