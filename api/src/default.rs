//! Defaults, as upstream sets them on decoding.

use serde_json::Value;

use crate::schema::{Schema, Shape};
use crate::{Kind, Object, quantity, structural};

mod pod;

pub(crate) use pod::{pod, resources_of_the_whole};

/// Fills in the defaults of `kind`: those that stand in the schema, then those of its strategy.
pub fn apply(kind: &Kind, object: &mut Object) {
    if kind.schema.schema.root().is_some() {
        structural::default(&kind.schema.schema, object);
        return kind.strategy.default(object);
    }
    kind.write_early(object);
    walk(&kind.schema.schema, &Shape::Object(kind.schema.id), object);
    kind.strategy.default(object);
}

/// Where maps of quantities are `ResourceList`s: of these alone upstream rounds the amounts.
const CORE: &str = "io.k8s.api.core.v1.";

/// Wherever one is, in whatever kind.
const TEMPLATE: &str = "io.k8s.api.core.v1.PodTemplateSpec";

fn is_resource_list(shape: &Shape) -> bool {
    matches!(shape, Shape::Map(of) if of.shape == Shape::Quantity)
}

/// To whole thousandths, which is as fine as amounts of resources are kept.
fn round_up(amounts: &mut Value) {
    for amount in amounts.as_object_mut().into_iter().flat_map(|amounts| amounts.values_mut()) {
        if let Some(rounded) = amount.as_str().and_then(quantity::rounded_up_to_thousandths) {
            *amount = rounded.into();
        }
    }
}

/// Parents before children, so that a default that is an object gets defaults of its own.
fn walk(schema: &Schema, shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(map)) => {
            let type_ = schema.get(*id);
            for field in &type_.fields {
                if let Some(default) = &field.node.default
                    && map.get(&*field.name).is_none_or(|value| field.is_unset(value))
                {
                    map.insert(field.name.as_ref().into(), default.clone());
                }
                if let Some(value) = map.get_mut(&*field.name) {
                    if type_.name.starts_with(CORE) && is_resource_list(&field.node.shape) {
                        round_up(value);
                    }
                    walk(schema, &field.node.shape, value);
                }
            }
            if &*type_.name == TEMPLATE
                && let Some(Value::Object(spec)) = map.get_mut("spec")
            {
                pod::spec_of_any(spec);
            }
        }
        (Shape::List(inner), Value::Array(items)) => {
            items.iter_mut().for_each(|v| walk(schema, &inner.shape, v))
        }
        (Shape::Map(inner), Value::Object(map)) => {
            map.values_mut().for_each(|v| walk(schema, &inner.shape, v))
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::Kinds;

    #[test]
    fn amounts_of_resources_are_rounded_up_to_thousandths() {
        let kinds = Kinds::builtin();
        let defaulted = |group: &str, kind: &str, mut object: serde_json::Value| {
            super::apply(kinds.by_kind(group, "v1", kind).unwrap(), &mut object);
            object
        };
        let pod = json!({"spec": {"overhead": {"cpu": "1u"}, "containers": [
            {"name": "c", "resources": {"limits": {"cpu": "100u", "memory": "1500u"}}}]}});
        let pod = defaulted("", "Pod", pod);
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"], json!({"cpu": "1m", "memory": "2m"}));
        assert_eq!(
            pod["spec"]["containers"][0]["resources"]["requests"],
            json!({"cpu": "1m", "memory": "2m"})
        );
        assert_eq!(pod["spec"]["overhead"], json!({"cpu": "1m"}));
        let quota = defaulted("", "ResourceQuota", json!({"spec": {"hard": {"cpu": "1000001u"}}}));
        assert_eq!(quota["spec"]["hard"]["cpu"], "1001m");
        let volume = defaulted("", "PersistentVolume", json!({"spec": {"capacity": {"storage": "1n"}}}));
        assert_eq!(volume["spec"]["capacity"]["storage"], "1m");
        let class = json!({"handler": "h", "overhead": {"podFixed": {"cpu": "100u"}}});
        let class = defaulted("node.k8s.io", "RuntimeClass", class);
        assert_eq!(class["overhead"]["podFixed"]["cpu"], "100u", "of another group's they are not");
    }
}
