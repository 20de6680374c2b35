//! A kind is one declaration, or one POST: `docs/adding-a-kind.md`. What holds of the one holds of the other, which the same checks show
//! for a built-in kind that only this test declares and for one of a CustomResourceDefinition.

use anyhow::{Context, Result, ensure};
use futures::TryStreamExt;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Request, StatusCode};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ResourceQuota};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, PropagationPolicy,
    WatchEvent, WatchParams,
};
use serde_json::{Value, json};
use skiff_apiserver::{Kind, Kinds};

use crate::{ControlPlane, create, until};

/// A kind whose objects are those of a ReplicationController.
struct Subject {
    group: &'static str,
    is_builtin: bool,
}

const SUBJECTS: [Subject; 2] = [
    Subject { group: "declared.example", is_builtin: true },
    Subject { group: "posted.example", is_builtin: false },
];

/// The one declaration.
fn declared() -> Result<Kind> {
    let kind = Kind::declared(
        "declared.example",
        "v1",
        "Fleet",
        "fleets",
        "io.k8s.api.core.v1.ReplicationController",
    );
    Ok(kind
        .context("the type is known")?
        .folder("declared.example/fleets")
        .short(&["fl"])
        .category("ships")
        .subresources(&["scale", "status"])
        .fields(&["status.replicas"]))
}

/// The one POST.
fn posted() -> Value {
    let any = || json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let number = || json!({"type": "integer"});
    json!({
        "metadata": {"name": "fleets.posted.example"},
        "spec": {
            "group": "posted.example", "scope": "Namespaced",
            "names": {
                "plural": "fleets", "singular": "fleet", "kind": "Fleet", "listKind": "FleetList",
                "shortNames": ["fl"], "categories": ["ships"],
            },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "replicas": number(), "minReadySeconds": number(),
                        "selector": any(), "template": any(),
                    }},
                    "status": {"type": "object", "properties": {"replicas": number()}},
                }}},
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"},
                },
                "selectableFields": [{"jsonPath": ".status.replicas"}],
            }],
        },
    })
}

impl Subject {
    fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.into(),
            version: "v1".into(),
            api_version: format!("{}/v1", self.group),
            kind: "Fleet".into(),
            plural: "fleets".into(),
        }
    }

    fn api(&self, plane: &ControlPlane, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(plane.client().clone(), namespace, &self.resource())
    }

    fn fleet(&self, name: &str) -> Value {
        json!({
            "apiVersion": format!("{}/v1", self.group), "kind": "Fleet",
            "metadata": {"name": name, "labels": {"of": name}},
            "spec": {
                "replicas": 2, "selector": {"of": name},
                "template": {
                    "metadata": {"labels": {"of": name}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        })
    }

    fn path(&self, namespace: &str, rest: &str) -> String {
        format!("/apis/{}/v1/namespaces/{namespace}/fleets{rest}", self.group)
    }
}

async fn asked(plane: &ControlPlane, path: &str, accept: &str) -> Result<(StatusCode, String, Vec<u8>)> {
    let request = Request::get(path).header(ACCEPT, accept).body(kube::client::Body::empty())?;
    let answer = plane.client().send(request).await?;
    let kind = answer.headers().get(CONTENT_TYPE).map(|v| v.to_str().map(str::to_owned)).transpose()?;
    let code = answer.status();
    let body = answer.into_body().collect_bytes().await?;
    Ok((code, kind.unwrap_or_default(), body.to_vec()))
}

async fn json_of(plane: &ControlPlane, path: &str, accept: &str) -> Result<Value> {
    let (code, _, body) = asked(plane, path, accept).await?;
    ensure!(code == StatusCode::OK, "{path}: {code}: {}", String::from_utf8_lossy(&body));
    Ok(serde_json::from_slice(&body)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_is_one_declaration_or_one_post() -> Result<()> {
    let mut kinds = Kinds::builtin();
    kinds.insert(declared()?);
    let plane = ControlPlane::start_knowing(kinds).await?;
    let definitions = plane.all::<CustomResourceDefinition>();
    create(&definitions, posted()).await?;
    until("an established definition", async || {
        let definition = definitions.get("fleets.posted.example").await?;
        let conditions = definition.status.and_then(|status| status.conditions).unwrap_or_default();
        Ok(conditions.iter().any(|c| c.type_ == "Established" && c.status == "True").then_some(()))
    })
    .await?;
    for subject in &SUBJECTS {
        let of = || format!("of {}", subject.group);
        is_discovered(&plane, subject).await.with_context(of)?;
        is_created_and_watched(&plane, subject).await.with_context(of)?;
        is_applied(&plane, subject).await.with_context(of)?;
        is_printed_and_selected(&plane, subject).await.with_context(of)?;
        is_scaled(&plane, subject).await.with_context(of)?;
        is_sent_in_its_formats(&plane, subject).await.with_context(of)?;
        is_counted_and_goes_with_its_namespace(&plane, subject).await.with_context(of)?;
        owns_and_is_owned(&plane, subject).await.with_context(of)?;
    }
    plane.stop().await
}

async fn is_discovered(plane: &ControlPlane, subject: &Subject) -> Result<()> {
    let list = json_of(plane, &format!("/apis/{}/v1", subject.group), "application/json").await?;
    let found = list["resources"].as_array().into_iter().flatten().find(|one| one["name"] == "fleets");
    let found = found.context("fleets are listed")?;
    ensure!(found["shortNames"] == json!(["fl"]) && found["categories"] == json!(["ships"]), "{found}");
    ensure!(found["kind"] == "Fleet" && found["namespaced"] == true, "{found}");
    let names: Vec<&str> =
        list["resources"].as_array().into_iter().flatten().filter_map(|one| one["name"].as_str()).collect();
    ensure!(names.contains(&"fleets/scale") && names.contains(&"fleets/status"), "{names:?}");
    let document =
        json_of(plane, &format!("/openapi/v3/apis/{}/v1", subject.group), "application/json").await?;
    let path = format!("/apis/{}/v1/namespaces/{{namespace}}/fleets/{{name}}", subject.group);
    ensure!(document["paths"][&path]["get"].is_object(), "{path} is described");
    Ok(())
}

async fn is_created_and_watched(plane: &ControlPlane, subject: &Subject) -> Result<()> {
    let fleets = subject.api(plane, "default");
    let watch = fleets.watch(&WatchParams::default().labels("of=first"), "0").await?;
    let mut watch = std::pin::pin!(watch);
    create(&fleets, subject.fleet("other")).await?;
    let mut fleet = subject.fleet("first");
    // Nobody but its controller says what has become of it.
    fleet["status"] = json!({"replicas": 7});
    let created = create(&fleets, fleet).await?;
    ensure!(created.metadata.uid.is_some() && created.metadata.generation == Some(1), "{created:?}");
    ensure!(created.data["status"]["replicas"] != 7, "{:?}", created.data);
    let managed = created.metadata.managed_fields.unwrap_or_default();
    ensure!(managed.len() == 1, "{managed:?}");
    let change = json!({"spec": {"replicas": 3}});
    let changed = fleets.patch("first", &PatchParams::default(), &Patch::Merge(change)).await?;
    ensure!(changed.metadata.generation == Some(2), "{changed:?}");
    let told = json!({"spec": {"replicas": 9}, "status": {"replicas": 3}});
    let told = fleets.patch_status("first", &PatchParams::default(), &Patch::Merge(told)).await?;
    ensure!(told.data["spec"]["replicas"] == 3 && told.data["status"]["replicas"] == 3, "{:?}", told.data);
    ensure!(told.metadata.generation == Some(2), "a status is no change of the object");
    fleets.delete("first", &DeleteParams::background()).await?;
    let mut seen = Vec::new();
    while let Some(event) = watch.try_next().await? {
        match event {
            WatchEvent::Added(object) => {
                seen.push(format!("ADDED {}", object.metadata.name.unwrap_or_default()))
            }
            WatchEvent::Modified(_) => seen.push("MODIFIED".to_owned()),
            WatchEvent::Deleted(_) => {
                seen.push("DELETED".to_owned());
                break;
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
    ensure!(seen == ["ADDED first", "MODIFIED", "MODIFIED", "DELETED"], "{seen:?}");
    fleets.delete("other", &DeleteParams::background()).await?;
    Ok(())
}

async fn is_applied(plane: &ControlPlane, subject: &Subject) -> Result<()> {
    let fleets = subject.api(plane, "default");
    let document = subject.fleet("applied");
    let by = |manager: &str| PatchParams::apply(manager);
    fleets.patch("applied", &by("ann"), &Patch::Apply(&document)).await?;
    let before = fleets.get("applied").await?.metadata.resource_version;
    let after =
        fleets.patch("applied", &by("ann"), &Patch::Apply(&document)).await?.metadata.resource_version;
    ensure!(before == after, "what is applied twice is written once");
    let mut other = document.clone();
    other["spec"]["replicas"] = 5.into();
    let refused = fleets.patch("applied", &by("bob"), &Patch::Apply(&other)).await.err();
    let why = refused.as_ref().map(ToString::to_string).unwrap_or_default();
    ensure!(why.contains("conflict with \"ann\"") && why.contains(".spec.replicas"), "{why}");
    let taken = fleets.patch("applied", &by("bob").force(), &Patch::Apply(&other)).await?;
    ensure!(taken.data["spec"]["replicas"] == 5, "{:?}", taken.data);
    fleets.delete("applied", &DeleteParams::background()).await?;
    Ok(())
}

async fn is_printed_and_selected(plane: &ControlPlane, subject: &Subject) -> Result<()> {
    let fleets = subject.api(plane, "default");
    create(&fleets, subject.fleet("seen")).await?;
    let told = json!({"status": {"replicas": 4}});
    fleets.patch_status("seen", &PatchParams::default(), &Patch::Merge(told)).await?;
    create(&fleets, subject.fleet("unseen")).await?;
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let printed =
        json_of(plane, &subject.path("default", "?fieldSelector=metadata.name%3Dseen"), table).await?;
    let columns: Vec<&str> = printed["columnDefinitions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|column| column["name"].as_str())
        .collect();
    ensure!(columns == ["Name", "Age"] && printed["rows"][0]["cells"][0] == "seen", "{printed}");
    for (selector, wanted) in [("status.replicas=4", ["seen"]), ("metadata.name=unseen", ["unseen"])] {
        let found = fleets.list(&ListParams::default().fields(selector)).await?;
        let names: Vec<String> = found.items.into_iter().filter_map(|one| one.metadata.name).collect();
        ensure!(names == wanted, "{selector}: {names:?}");
    }
    let refused = fleets.list(&ListParams::default().fields("spec.replicas=2")).await.err();
    ensure!(refused.is_some(), "a field that is not selectable");
    fleets.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    ensure!(fleets.list(&ListParams::default()).await?.items.is_empty());
    Ok(())
}

async fn is_scaled(plane: &ControlPlane, subject: &Subject) -> Result<()> {
    let fleets = subject.api(plane, "default");
    create(&fleets, subject.fleet("scaled")).await?;
    let scale = json_of(plane, &subject.path("default", "/scaled/scale"), "application/json").await?;
    ensure!(scale["kind"] == "Scale" && scale["spec"]["replicas"] == 2, "{scale}");
    let change = json!({"spec": {"replicas": 6}});
    fleets.patch_scale("scaled", &PatchParams::default(), &Patch::Merge(change)).await?;
    let scaled = fleets.get("scaled").await?;
    ensure!(scaled.data["spec"]["replicas"] == 6 && scaled.metadata.generation == Some(2), "{scaled:?}");
    fleets.delete("scaled", &DeleteParams::background()).await?;
    Ok(())
}

/// Protobuf and strategic merge patches are for what has a Go type.
async fn is_sent_in_its_formats(plane: &ControlPlane, subject: &Subject) -> Result<()> {
    const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
    let fleets = subject.api(plane, "default");
    create(&fleets, subject.fleet("sent")).await?;
    let path = subject.path("default", "/sent");
    let (code, kind, body) = asked(plane, &path, PROTOBUF).await?;
    if subject.is_builtin {
        ensure!(code == StatusCode::OK && kind == PROTOBUF && body.starts_with(b"k8s\0"), "{code} {kind}");
    } else {
        ensure!(code == StatusCode::NOT_ACCEPTABLE, "{code} {kind}");
    }
    let (_, kind, body) = asked(plane, &path, "application/yaml").await?;
    ensure!(kind == "application/yaml" && String::from_utf8_lossy(&body).contains("kind: Fleet"));
    let change = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}});
    let patched = fleets.patch("sent", &PatchParams::default(), &Patch::Strategic(change)).await;
    match patched {
        Ok(patched) => {
            let image = &patched.data["spec"]["template"]["spec"]["containers"][0]["image"];
            ensure!(subject.is_builtin && *image == "j", "{image}");
        }
        Err(kube::Error::Api(status)) => ensure!(!subject.is_builtin && status.code == 415, "{status:?}"),
        Err(other) => return Err(other.into()),
    }
    fleets.delete("sent", &DeleteParams::background()).await?;
    Ok(())
}

async fn is_counted_and_goes_with_its_namespace(plane: &ControlPlane, subject: &Subject) -> Result<()> {
    let namespaces = plane.all::<Namespace>();
    let name = format!("of-{}", subject.group.replace('.', "-"));
    create(&namespaces, json!({"metadata": {"name": name}})).await?;
    let quotas = plane.api_in::<ResourceQuota>(&name);
    let counted = format!("count/fleets.{}", subject.group);
    create(&quotas, json!({"metadata": {"name": "few"}, "spec": {"hard": {counted.clone(): "1"}}})).await?;
    until("a counted quota", async || {
        let used = quotas.get("few").await?.status.and_then(|status| status.used).unwrap_or_default();
        Ok(used.get(&counted).is_some_and(|used| used.0 == "0").then_some(()))
    })
    .await?;
    let fleets = subject.api(plane, &name);
    create(&fleets, subject.fleet("one")).await?;
    let two: DynamicObject = serde_json::from_value(subject.fleet("two"))?;
    let refused = fleets.create(&PostParams::default(), &two).await.err().map(|error| error.to_string());
    ensure!(refused.as_ref().is_some_and(|why| why.contains("exceeded quota: few")), "{refused:?}");
    namespaces.delete(&name, &DeleteParams::default()).await?;
    until("the end of the namespace", async || Ok(namespaces.get_opt(&name).await?.is_none().then_some(())))
        .await?;
    ensure!(fleets.get_opt("one").await?.is_none());
    Ok(())
}

async fn owns_and_is_owned(plane: &ControlPlane, subject: &Subject) -> Result<()> {
    let (fleets, maps) = (subject.api(plane, "default"), plane.api::<ConfigMap>());
    let owned_by = |api_version: &str, kind: &str, name: &str, uid: Option<&String>| json!([{"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "blockOwnerDeletion": true}]);
    let first = create(&fleets, subject.fleet("owner")).await?;
    let owners = owned_by(&format!("{}/v1", subject.group), "Fleet", "owner", first.metadata.uid.as_ref());
    let map = create(&maps, json!({"metadata": {"name": "between", "ownerReferences": owners}})).await?;
    let mut last = subject.fleet("owned");
    last["metadata"]["ownerReferences"] = owned_by("v1", "ConfigMap", "between", map.metadata.uid.as_ref());
    create(&fleets, last).await?;
    let foreground =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
    fleets.delete("owner", &foreground).await?;
    until("the end of all three", async || {
        let left =
            (fleets.get_opt("owner").await?, maps.get_opt("between").await?, fleets.get_opt("owned").await?);
        Ok(matches!(left, (None, None, None)).then_some(()))
    })
    .await
}
