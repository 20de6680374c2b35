//! What upstream writes of an object, whatever its author wrote: zeros of the fields that are values in Go, nothing of empty
//! lists and maps, which are not told from absent ones.

use serde_json::{Map, Value, json};

use crate::Object;
use crate::schema::{Field, Presence, Schema, Shape, TypeId};

/// Deeper than any built-in type that is not recursive.
const MAX_DEPTH: usize = 48;

/// Fields that are written although they are not there, because their type says nothing of leaving them out; besides lists
/// that are required.
const NULL_LISTS: [(&str, &str); 12] = [
    ("io.k8s.api.core.v1.ContainerImage", "names"),
    ("io.k8s.api.core.v1.ProjectedVolumeSource", "sources"),
    ("io.k8s.api.core.v1.TypedLocalObjectReference", "apiGroup"),
    ("io.k8s.api.core.v1.TypedObjectReference", "apiGroup"),
    ("io.k8s.api.discovery.v1.EndpointSlice", "endpoints"),
    ("io.k8s.api.flowcontrol.v1.ResourcePolicyRule", "namespaces"),
    ("io.k8s.api.storage.v1.CSINodeDriver", "topologyKeys"),
    ("io.k8s.api.rbac.v1.Role", "rules"),
    ("io.k8s.api.rbac.v1.ClusterRole", "rules"),
    ("io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus", "currentMetrics"),
    ("io.k8s.api.discovery.v1.EndpointSlice", "ports"),
    ("io.k8s.api.resource.v1.DeviceClaim", "requests"),
];

/// Fields of features that are off, of which upstream's types do not say so. Of the others the schema does.
const OFF: [(&str, &str); 7] = [
    ("io.k8s.api.core.v1.NodeSpec", "configSource"),
    ("io.k8s.api.core.v1.NodeStatus", "config"),
    // Of an older version of the kind.
    ("io.k8s.api.discovery.v1.Endpoint", "deprecatedTopology"),
    ("io.k8s.api.coordination.v1.LeaseSpec", "strategy"),
    ("io.k8s.api.coordination.v1.LeaseSpec", "preferredHolder"),
    ("io.k8s.api.core.v1.PodStatus", "nodeAllocatableResourceClaimStatuses"),
    // Of an image alone, which is off.
    ("io.k8s.api.core.v1.VolumeMountStatus", "volumeStatus"),
];

const CONTAINER: &str = "io.k8s.api.core.v1.Container";
const EPHEMERAL_CONTAINER: &str = "io.k8s.api.core.v1.EphemeralContainer";

/// Signals that containers choose are a feature that is off, too; without it nothing may be left.
fn drop_signal(container: &mut Map<String, Value>) {
    if let Some(Value::Object(lifecycle)) = container.get_mut("lifecycle")
        && lifecycle.remove("stopSignal").is_some()
        && lifecycle.values().all(Value::is_null)
    {
        container.remove("lifecycle");
    }
}

/// Brings an object of a built-in type into the form in which upstream stores and answers it.
pub(super) fn write(schema: &Schema, id: TypeId, object: &mut Object, off: Off) {
    let mut walk = Walk { schema, depth: 0, off };
    walk.object(id, object);
}

/// What becomes of the fields of features that are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Off {
    Dropped,
    /// They count as a change before they go.
    Kept,
}

struct Walk<'s> {
    off: Off,
    schema: &'s Schema,
    depth: usize,
}

impl Walk<'_> {
    fn object(&mut self, id: TypeId, value: &mut Value) {
        let Value::Object(map) = value else { return };
        if self.depth == MAX_DEPTH {
            return;
        }
        self.depth += 1;
        let type_ = self.schema.get(id);
        for (of, field) in OFF {
            if of == &*type_.name && self.off == Off::Dropped {
                map.remove(field);
            }
        }
        if &*type_.name == CONTAINER || &*type_.name == EPHEMERAL_CONTAINER {
            drop_signal(map);
        }
        for field in type_.fields.iter().filter(|field| field.off && self.off == Off::Dropped) {
            map.remove(&*field.name);
        }
        let has_nulls = NULL_LISTS.iter().any(|(of, _)| *of == &*type_.name);
        let is_null_list = |field: &Field| {
            (is_list(&field.node.shape) && field.required)
                || (has_nulls && NULL_LISTS.contains(&(&*type_.name, &*field.name)))
        };
        let (is_root, drops) = (self.depth == 1, self.off == Off::Dropped);
        let is_left = |field: &Field| {
            let is_own = is_root && &*field.name == "metadata";
            is_own || matches!(&*field.name, "creationTimestamp" | "kind" | "apiVersion")
        };
        // Both are in the order of names: fields that are not there, which are most, are looked up nowhere.
        let mut fields = type_.fields.iter().peekable();
        let mut absent: Vec<&Field> = Vec::new();
        let mut pass = |field| {
            let is_written = field_is_written(field) || is_null_list(field);
            if is_written && !(field.off && drops) && !is_left(field) {
                absent.push(field);
            }
        };
        map.retain(|name, value| {
            while let Some(field) = fields.next_if(|field| *field.name < **name) {
                pass(field);
            }
            let Some(field) = fields.next_if(|field| *field.name == **name) else { return true };
            if is_left(field) {
                return true;
            }
            self.value(&field.node.shape, value);
            if !is_empty(field, value) {
                return true;
            }
            if is_null_list(field) {
                *value = Value::Null;
            } else if field_is_written(field) {
                *value = self.zero(&field.node.shape);
            } else {
                return false;
            }
            true
        });
        fields.for_each(pass);
        for field in absent {
            let value = if is_null_list(field) { Value::Null } else { self.zero(&field.node.shape) };
            map.insert(field.name.to_string(), value);
        }
        self.depth -= 1;
    }

    fn value(&mut self, shape: &Shape, value: &mut Value) {
        match (shape, value) {
            (Shape::Object(id), value) => self.object(*id, value),
            (Shape::List(inner), Value::Array(items)) => {
                items.iter_mut().for_each(|item| self.value(&inner.shape, item))
            }
            (Shape::Map(inner), Value::Object(map)) => {
                map.values_mut().for_each(|item| self.value(&inner.shape, item))
            }
            _ => {}
        }
    }

    fn zero(&mut self, shape: &Shape) -> Value {
        match shape {
            Shape::String => json!(""),
            Shape::Int32 | Shape::Int64 | Shape::Double | Shape::IntOrString => json!(0),
            Shape::Bool => json!(false),
            Shape::Quantity => json!("0"),
            Shape::Duration => json!("0s"),
            Shape::Object(id) => {
                let mut value = json!({});
                self.object(*id, &mut value);
                value
            }
            _ => Value::Null,
        }
    }
}

/// Whether it is there although nothing is said: a value in Go.
fn field_is_written(field: &Field) -> bool {
    field.presence == Presence::Value
}

fn is_empty(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        // Where anything may be, an empty list is something.
        Value::Array(list) => is_list(&field.node.shape) && list.is_empty(),
        Value::Object(entries) => matches!(field.node.shape, Shape::Map(_)) && entries.is_empty(),
        _ => false,
    }
}

fn is_list(shape: &Shape) -> bool {
    matches!(shape, Shape::List(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::TypeRef;

    #[track_caller]
    fn check(type_: &str, given: Value, wanted: Value) {
        let of = TypeRef::builtin(&format!("io.k8s.api.{type_}")).unwrap();
        let mut object = given;
        write(&of.schema, of.id, &mut object, Off::Dropped);
        assert_eq!(object, wanted);
    }

    #[test]
    fn empty_lists_and_maps_are_left_out_and_empty_objects_stay() {
        check(
            "core.v1.Endpoints",
            json!({"subsets": [{"addresses": [], "ports": [{"port": 1, "name": "a"}]}]}),
            json!({"subsets": [{"ports": [{"port": 1, "name": "a"}]}]}),
        );
        let spec = json!({"containers": [], "nodeSelector": {}, "securityContext": {}, "volumes": []});
        check("core.v1.PodSpec", spec, json!({"containers": null, "securityContext": {}}));
    }

    #[test]
    fn a_default_may_be_an_empty_list() {
        let schema = json!({"type": "array", "default": [], "enum": [], "items": {"default": {}}});
        let of = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        let of = TypeRef::builtin(of).unwrap();
        let mut object = schema;
        write(&of.schema, of.id, &mut object, Off::Dropped);
        assert_eq!(object, json!({"type": "array", "default": [], "items": {"default": {}}}));
    }

    #[test]
    fn zeros_of_values_are_written() {
        check(
            "apps.v1.DaemonSetStatus",
            json!({}),
            json!({"currentNumberScheduled": 0, "numberMisscheduled": 0, "desiredNumberScheduled": 0, "numberReady": 0}),
        );
        check("rbac.v1.Role", json!({}), json!({"rules": null}));
        check(
            "policy.v1.PodDisruptionBudget",
            json!({"spec": {}})["spec"].take(),
            json!({
                "spec": {}, "status": {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0},
            }),
        );
    }
}
