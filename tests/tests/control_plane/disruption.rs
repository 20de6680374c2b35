//! Pods that somebody was about to disrupt.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::{ControlPlane, create, pod, until};

#[tokio::test(flavor = "multi_thread")]
async fn that_a_pod_was_to_go_is_taken_back_if_it_stays() -> Result<()> {
    let plane = ControlPlane::start().await?;
    let pods = plane.api::<Pod>();
    create(&pods, pod("kept", "p", json!({}))).await?;
    plane.node_of("kept").await?;
    let told = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let told = Patch::Strategic(json!({"status": {"conditions": [told]}}));
    pods.patch_status("kept", &PatchParams::default(), &told).await?;
    let condition = until("the end of the disruption", async || {
        let conditions = pods.get("kept").await?.status.and_then(|s| s.conditions).unwrap_or_default();
        Ok(conditions.into_iter().find(|c| c.type_ == "DisruptionTarget" && c.status == "False"))
    })
    .await?;
    ensure!(condition.reason.is_none() && condition.message.is_none(), "{condition:?}");
    plane.stop().await
}
