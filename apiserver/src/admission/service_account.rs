//! `ServiceAccount`: every pod runs as one, and gets its token mounted.

use rand::Rng;
use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Object, Status};

use super::pod::forbidden;
use crate::lister::Lister;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// One hour and seven seconds, as upstream, so that it can be told from what users ask for.
const EXPIRATION_S: i64 = 3607;
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

pub(super) async fn admit(lister: &Lister, pod: &mut Object) -> Result<(), Status> {
    if !pod.meta()["annotations"][MIRROR_ANNOTATION].is_null() {
        return check_mirror(pod);
    }
    if pod["spec"]["serviceAccountName"].as_str().is_none_or(str::is_empty) {
        pod["spec"]["serviceAccountName"] = "default".into();
    }
    let name = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
    pod["spec"]["serviceAccount"] = name.as_str().into();
    let key = format!("{}/{name}", pod.namespace());
    let Some(account) = lister.cached_or_newest("serviceaccounts", &key).await? else {
        let why = format!("error looking up service account {key}: serviceaccount {name:?} not found");
        return Err(forbidden(pod, &why, None));
    };
    let account = account.parse();
    if automounts(pod, &account) {
        mount_token(pod);
    }
    let secrets = &account["imagePullSecrets"];
    if pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
        && secrets.as_array().is_some_and(|list| !list.is_empty())
    {
        pod["spec"]["imagePullSecrets"] = secrets.clone();
    }
    Ok(())
}

/// The pod's own word counts, then the account's, then yes.
fn automounts(pod: &Object, account: &Object) -> bool {
    pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true)
}

/// A mirror pod stands for what a node runs anyway; it may not reach for anything of the cluster.
fn check_mirror(pod: &Object) -> Result<(), Status> {
    let refuse = |what: &str| Err(forbidden(pod, &format!("a mirror pod may not reference {what}"), None));
    let spec = &pod["spec"];
    if spec["serviceAccountName"].as_str().is_some_and(|name| !name.is_empty()) {
        return refuse("service accounts");
    }
    let mut volumes = spec["volumes"].as_array().into_iter().flatten();
    if volumes.any(|v| !v["secret"].is_null() || !v["projected"].is_null() || !v["configMap"].is_null()) {
        return refuse("secrets, config maps or projected volumes");
    }
    Ok(())
}

fn is_ours(volume: &Value) -> bool {
    volume["name"].as_str().is_some_and(|name| name.starts_with(VOLUME_PREFIX))
}

/// Adds the projected volume and mounts it in every container that has nothing there.
fn mount_token(pod: &mut Object) {
    let existing = pod["spec"]["volumes"].as_array().into_iter().flatten().find(|v| is_ours(v));
    let known = existing.and_then(|v| v["name"].as_str().map(str::to_owned));
    let is_new = known.is_none();
    let mut random = rand::rng();
    let volume = known.unwrap_or_else(|| skiff_api::name::generate(VOLUME_PREFIX, || random.random()));
    let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
    let mut used = false;
    for field in ["initContainers", "containers"] {
        // Looking a field up by index would leave a null where there is none.
        let containers = pod["spec"].get_mut(field).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mounts = &mut container["volumeMounts"];
            if !mounts.is_array() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if !mounts.iter().any(|m| m["mountPath"] == MOUNT_PATH) {
                mounts.push(mount.clone());
                used = true;
            }
        }
    }
    if used && is_new {
        let volumes = &mut pod["spec"]["volumes"];
        if !volumes.is_array() {
            *volumes = json!([]);
        }
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.push(token_volume(&volume));
        }
    }
}

fn token_volume(name: &str) -> Value {
    let namespace = json!({
        "path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
    });
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": EXPIRATION_S, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [namespace]}},
            ],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_mounted_once_and_only_where_nothing_is() {
        let mut pod = json!({"spec": {"containers": [
            {"name": "a"},
            {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]},
        ]}});
        mount_token(&mut pod);
        let name = pod["spec"]["volumes"][0]["name"].clone();
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], name);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().map(Vec::len), Some(1));
        let once = pod.clone();
        mount_token(&mut pod);
        assert_eq!(pod, once);
    }
}
