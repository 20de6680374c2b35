//! `pods/binding`, and `bindings`, the same with the pod's name in the body.

use serde_json::{Value, json};
use skiff_api::meta::Meta;
use skiff_api::{Cause, Object, Status};
use skiff_webhook::admission::Operation;

use super::Subresources;
use super::document::read_document;
use crate::admission::pod::topology_labels;
use crate::call::Call;
use crate::clock::now;
use crate::objects::{Next, Objects};
use crate::registry::options::WriteOptions;
use crate::respond::Response;

impl Subresources {
    pub(super) async fn bind_pod(&self, mut call: Call) -> Result<Response, Status> {
        let options = WriteOptions::parse(&call)?;
        let binding = read_document(&mut call, "v1", "Binding").await?;
        let binding = self
            .registry
            .admission
            .dynamic
            .admit_document(&mut call, Operation::Create, binding, options.dry_run)
            .await?;
        let bound = bind(&self.registry.objects, &call, &binding, options.dry_run).await?;
        Ok(call.document(201, &bound))
    }
}

/// Binds a pod to a node, once; what is answered.
pub(crate) async fn bind(
    objects: &Objects,
    call: &Call,
    binding: &Object,
    dry_run: bool,
) -> Result<Value, Status> {
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    let mut causes = Vec::new();
    if !matches!(target["kind"].as_str(), None | Some("" | "Node")) {
        causes.push(Cause::not_supported("target.kind", &target["kind"], &["Node", "<empty>"]));
    }
    if node.is_empty() {
        causes.push(Cause::required("target.name", ""));
    }
    let name = if call.info.name.is_empty() { binding.name() } else { &call.info.name };
    if !causes.is_empty() {
        return Err(Status::invalid("", "Binding", name, causes));
    }
    let topology = topology_labels(&objects.lister, node)?;
    let pods = objects.lister.kind("", "v1", "pods")?;
    let conflict = |why: String| Status::conflict("", "pods/binding", name, &why);
    objects
        .modify(&pods, &call.info.namespace, name, dry_run, |current| {
            let pod = &current.object;
            let uid = binding.uid();
            if !uid.is_empty() && uid != pod.uid() {
                return Err(conflict(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    pod.uid()
                )));
            }
            let version = binding.resource_version();
            if !version.is_empty() && version != pod.resource_version() {
                return Err(Status::modified("", "pods", name));
            }
            if pod.is_being_deleted() {
                return Err(conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
            }
            if let Some(bound) = pod["spec"]["nodeName"].as_str().filter(|bound| !bound.is_empty()) {
                return Err(conflict(format!("pod {name} is already assigned to node {bound:?}")));
            }
            if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
                return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
            }
            Ok(Next::Put(bound(pod, node, binding, &topology)))
        })
        .await?;
    Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
}

/// The pod on its node: with the binding's annotations and labels, those that tell where the node is, and the condition
/// that it is scheduled.
fn bound(pod: &Object, node: &str, binding: &Object, topology: &[(&str, String)]) -> Object {
    let mut pod = pod.clone();
    pod["spec"]["nodeName"] = node.into();
    for field in ["annotations", "labels"] {
        for (key, value) in binding.meta()[field].as_object().into_iter().flatten() {
            pod["metadata"][field][key] = value.clone();
        }
    }
    for (key, value) in topology {
        pod["metadata"]["labels"][*key] = value.as_str().into();
    }
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now(),
        "observedGeneration": pod["metadata"]["generation"],
    });
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|c| c["type"] != "PodScheduled");
    conditions.push(condition);
    pod["status"]["conditions"] = conditions.into();
    // It waits for no node any more.
    if let Some(status) = pod["status"].as_object_mut() {
        status.remove("nominatedNodeName");
    }
    pod
}
