//! The StorageClass that the cluster comes with. It is made when it is not there, and is then whoever's changes it.

use std::time::Duration;

use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;
use skiff_api::volumes::annotation;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::PROVISIONER_NAME;
use crate::Context;
use crate::driver::exists_is_fine;

const TRY_AGAIN: Duration = Duration::from_secs(5);
const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";

/// The class to make, if there is none of its name. It is the default where there is no other.
fn missing(name: &str, classes: &[StorageClass]) -> Option<StorageClass> {
    if classes.iter().any(|class| class.metadata.name.as_deref() == Some(name)) {
        return None;
    }
    let is_marked = |class: &StorageClass| {
        [DEFAULT, DEFAULT_BETA].iter().any(|mark| annotation(&class.metadata, mark) == Some("true"))
    };
    let mut class = json!({
        "metadata": {"name": name},
        "provisioner": PROVISIONER_NAME,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    });
    if !classes.iter().any(is_marked) {
        class["metadata"]["annotations"] = json!({DEFAULT: "true"});
    }
    serde_json::from_value(class).ok()
}

async fn make(api: &Api<StorageClass>, name: &str) -> Result<(), kube::Error> {
    let classes = api.list(&ListParams::default()).await?;
    if let Some(class) = missing(name, &classes.items) {
        exists_is_fine(api.create(&PostParams::default(), &class).await)?;
        info!(class = name, "the storage class of local volumes was made");
    }
    Ok(())
}

/// Makes the class, trying until it is there.
pub(crate) async fn ensure(context: Context, name: String, stop: CancellationToken) {
    let api: Api<StorageClass> = Api::all(context.client.clone());
    while let Err(error) = make(&api, &name).await {
        warn!(class = name, %error, "cannot make the storage class of local volumes; trying again");
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep(TRY_AGAIN) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(value: serde_json::Value) -> StorageClass {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_class_is_the_default_only_where_there_is_no_other() {
        let made = missing("local", &[]).unwrap();
        assert_eq!(annotation(&made.metadata, DEFAULT), Some("true"));
        assert_eq!(made.volume_binding_mode.as_deref(), Some("WaitForFirstConsumer"));
        assert_eq!(
            (made.allow_volume_expansion, made.reclaim_policy.as_deref()),
            (Some(true), Some("Delete"))
        );
        for mark in [DEFAULT, DEFAULT_BETA] {
            let other =
                class(json!({"metadata": {"name": "o", "annotations": {mark: "true"}}, "provisioner": "p"}));
            assert_eq!(annotation(&missing("local", &[other]).unwrap().metadata, DEFAULT), None);
        }
    }

    #[test]
    fn a_class_of_its_name_is_left_as_it_is() {
        let there = class(json!({"metadata": {"name": "local"}, "provisioner": "somebody.else"}));
        assert_eq!(missing("local", &[there]), None);
    }
}
