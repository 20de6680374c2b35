//! StatefulSets: pods that keep their names and their storage.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::plane::list;
use crate::{ControlPlane, create, is_bound, is_ending, until};

fn set(more: Value) -> Value {
    let mut set = json!({"metadata": {"name": "web"}, "spec": {"replicas": 3, "serviceName": "svc",
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "image:1"}]}}}});
    if let (Some(spec), Value::Object(more)) = (set["spec"].as_object_mut(), more) {
        spec.extend(more);
    }
    set
}

/// The pods that are there to stay, with the image of each.
fn staying(pods: &[Pod]) -> Vec<(String, String)> {
    let image = |pod: &Pod| pod.spec.as_ref()?.containers.first()?.image.clone();
    let named = |pod: &Pod| Some((pod.metadata.name.clone()?, image(pod)?));
    let mut staying: Vec<_> = pods.iter().filter(|pod| !is_ending(*pod)).filter_map(named).collect();
    staying.sort();
    staying
}

fn of(images: &[&str]) -> Vec<(String, String)> {
    images.iter().enumerate().map(|(n, image)| (format!("web-{n}"), format!("image:{image}"))).collect()
}

/// Plays the kubelets until the pods are as wanted, all are ready, and the set says so.
async fn settles(plane: &ControlPlane, wanted: &[(String, String)]) -> Result<StatefulSet> {
    let (sets, count) = (plane.api::<StatefulSet>(), i32::try_from(wanted.len())?);
    until(&format!("pods {wanted:?}"), async || {
        plane.run_pods().await?;
        plane.end_pods().await?;
        let set = sets.get("web").await?;
        let status = set.status.clone().context("no status")?;
        let is_told = status.observed_generation == set.metadata.generation
            && status.replicas == count
            && status.ready_replicas.unwrap_or(0) == count
            && status.available_replicas == Some(count);
        // It may not have heard yet of what these pods replace.
        let is_updated = |pod: &&Pod| {
            let labels = pod.metadata.labels.as_ref();
            labels.and_then(|labels| labels.get("controller-revision-hash"))
                == status.update_revision.as_ref()
        };
        let pods = plane.pods().await?;
        let n_updated = pods.iter().filter(is_updated).count();
        let is_told = is_told && status.updated_replicas.unwrap_or(0) == i32::try_from(n_updated)?;
        Ok((is_told && staying(&pods) == wanted).then_some(set))
    })
    .await
}

async fn change(plane: &ControlPlane, spec: Value) -> Result<()> {
    let patch = Patch::Strategic(json!({"spec": spec}));
    plane.api::<StatefulSet>().patch("web", &PatchParams::default(), &patch).await?;
    Ok(())
}

fn image(image: &str) -> Value {
    json!({"template": {"spec": {"containers": [{"name": "c", "image": image}]}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_come_one_after_the_other_and_go_the_other_way_round() -> Result<()> {
    let plane = ControlPlane::start().await?;
    create(&plane.api::<StatefulSet>(), set(json!({}))).await?;
    for n in 0..3 {
        let last = format!("web-{n}");
        until(&format!("{last} and none after it"), async || {
            let pods = plane.pods().await?;
            let is_bound = pods.iter().any(|pod| pod.metadata.name.as_ref() == Some(&last) && is_bound(pod));
            Ok((is_bound && pods.len() == n + 1).then_some(()))
        })
        .await?;
        plane.run_pods().await?;
    }
    settles(&plane, &of(&["1", "1", "1"])).await?;
    let pod = plane.api::<Pod>().get("web-1").await?;
    let labels = pod.metadata.labels.context("no labels")?;
    ensure!(labels["statefulset.kubernetes.io/pod-name"] == "web-1", "{labels:?}");
    ensure!(labels["apps.kubernetes.io/pod-index"] == "1", "{labels:?}");
    let spec = pod.spec.context("no spec")?;
    ensure!(spec.hostname.as_deref() == Some("web-1") && spec.subdomain.as_deref() == Some("svc"));
    let message = plane.event("web", "SuccessfulCreate").await?;
    ensure!(
        message.starts_with("Create Pod web-") && message.ends_with(" in StatefulSet web successful"),
        "{message}"
    );

    change(&plane, json!({"replicas": 0})).await?;
    for n in (0..3).rev() {
        let last = format!("web-{n}");
        until(&format!("{last} on its way out and no other"), async || {
            let pods = plane.pods().await?;
            let going: Vec<_> = pods.iter().filter(|pod| is_ending(*pod)).collect();
            let is_it = |pod: &&Pod| pod.metadata.name.as_ref() == Some(&last);
            Ok((pods.len() == n + 1 && going.len() == 1 && going.iter().all(is_it)).then_some(()))
        })
        .await?;
        plane.end_pods().await?;
    }
    settles(&plane, &[]).await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_rolled_out_as_far_as_the_partition_says_and_can_be_taken_back() -> Result<()> {
    let plane = ControlPlane::start().await?;
    create(&plane.api::<StatefulSet>(), set(json!({}))).await?;
    let before = settles(&plane, &of(&["1", "1", "1"])).await?.status.context("no status")?;
    ensure!(before.current_revision.is_some() && before.current_revision == before.update_revision);

    let partition = |n: i32| json!({"updateStrategy": {"rollingUpdate": {"partition": n}}});
    change(&plane, partition(2)).await?;
    change(&plane, image("image:2")).await?;
    let canary = settles(&plane, &of(&["1", "1", "2"])).await?.status.context("no status")?;
    ensure!(canary.current_revision == before.current_revision, "{canary:?}");
    ensure!((canary.current_replicas, canary.updated_replicas) == (Some(2), Some(1)), "{canary:?}");
    // What was there before the canary comes back as it was.
    plane.end_pod("web-0").await?;
    settles(&plane, &of(&["1", "1", "2"])).await?;

    change(&plane, partition(0)).await?;
    settles(&plane, &of(&["2", "2", "2"])).await?;
    let is_complete = async || {
        let status = plane.api::<StatefulSet>().get("web").await?.status.context("no status")?;
        Ok((status.current_revision == canary.update_revision && status.current_replicas == Some(3))
            .then_some(()))
    };
    until("the rollout is complete", is_complete).await?;

    change(&plane, image("image:1")).await?;
    let back = settles(&plane, &of(&["1", "1", "1"])).await?.status.context("no status")?;
    ensure!(back.update_revision == before.update_revision, "a known template has its known revision");
    let mut revisions: Vec<Option<i64>> =
        list(&plane.api::<ControllerRevision>()).await?.iter().map(|r| r.revision).collect();
    revisions.sort_unstable();
    ensure!(revisions == [Some(2), Some(3)], "{revisions:?}");
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_failed_comes_back_under_its_name() -> Result<()> {
    let plane = ControlPlane::start().await?;
    create(&plane.api::<StatefulSet>(), set(json!({"podManagementPolicy": "Parallel"}))).await?;
    settles(&plane, &of(&["1", "1", "1"])).await?;
    let pods = plane.api::<Pod>();
    let before = pods.get("web-1").await?.metadata.uid;
    let failed = json!({"status": {"phase": "Failed"}});
    pods.patch_status("web-1", &PatchParams::default(), &Patch::Merge(failed)).await?;
    until("another web-1", async || {
        plane.end_pods().await?;
        Ok(pods.get_opt("web-1").await?.filter(|pod| pod.metadata.uid != before))
    })
    .await?;
    settles(&plane, &of(&["1", "1", "1"])).await?;
    plane.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_claims_that_are_owned_as_the_set_says() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let template = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let mounts = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "c", "image": "image:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}});
    let more = json!({"replicas": 2, "podManagementPolicy": "Parallel", "volumeClaimTemplates": [template],
        "template": mounts, "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Delete"}});
    create(&plane.api::<StatefulSet>(), set(more)).await?;
    let claims = plane.api::<PersistentVolumeClaim>();
    let owners = async |claim: &str| {
        let owners = claims.get(claim).await?.metadata.owner_references.unwrap_or_default();
        anyhow::Ok(owners.into_iter().map(|owner| (owner.kind, owner.name)).collect::<Vec<_>>())
    };
    let owned_by = async |claim: &str, kind: &str, name: &str| {
        let wanted = [(kind.to_owned(), name.to_owned())];
        until(&format!("{claim} of {name}"), async || Ok((owners(claim).await? == wanted).then_some(())))
            .await
    };
    for claim in ["data-web-0", "data-web-1"] {
        owned_by(claim, "StatefulSet", "web").await?;
        let labels = claims.get(claim).await?.metadata.labels.unwrap_or_default();
        ensure!(labels.get("app").is_some_and(|app| app == "web"), "{labels:?}");
    }
    let pod = until("web-1", async || Ok(plane.api::<Pod>().get_opt("web-1").await?)).await?;
    let volumes = pod.spec.context("no spec")?.volumes.unwrap_or_default();
    let volume = volumes.iter().find(|volume| volume.name == "data").context("no volume")?;
    let claim = volume.persistent_volume_claim.as_ref().context("no claim")?;
    ensure!(claim.claim_name == "data-web-1", "{claim:?}");

    // What goes because the set is smaller takes its storage with it.
    change(&plane, json!({"replicas": 1})).await?;
    until("no data-web-1", async || {
        plane.end_pods().await?;
        Ok(claims.get_opt("data-web-1").await?.is_none().then_some(()))
    })
    .await?;
    change(&plane, json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain"}})).await?;
    until("data-web-0 of nobody", async || Ok(owners("data-web-0").await?.is_empty().then_some(()))).await?;
    plane.stop().await
}
