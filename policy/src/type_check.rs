//! Whether the expressions of a policy fit the types of what it matches, as its status says it.
//!
//! Types come from schemas, one object at a time as an expression asks for its fields: schemas may be recursive.
//!
//! Source: `validating/typechecking.go` of upstream's policy plug-in, `k8s.io/apiserver/pkg/cel/common/schemas.go`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use skiff_api::Object;
use skiff_api::cel::Objects;
use skiff_api::schema::{Node, Schema, Shape, TypeId, TypeRef};
use skiff_cel::{Environment, Type, Types, unescape};
use skiff_webhook::admission::{GroupVersionKind, GroupVersionResource};

use crate::expression::{Declared, VARIABLES, VARIABLES_TYPE};

/// An entry of `status.typeChecking.expressionWarnings`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionWarning {
    /// The field of the policy that has the expression.
    pub field_ref: String,
    pub warning: String,
}

/// A policy is held against no more kinds than this of one of its rules.
const MAX_KINDS: usize = 10;

/// The kinds that a policy is held against: those that its rules name without a wildcard.
pub fn kinds_to_check(
    policy: &Object,
    kinds_for: &dyn Fn(&GroupVersionResource) -> Vec<GroupVersionKind>,
) -> Vec<GroupVersionKind> {
    let mut kinds = BTreeSet::new();
    for rule in policy["spec"]["matchConstraints"]["resourceRules"].as_array().into_iter().flatten() {
        let names = |field: &str| -> Vec<&str> {
            let mut names: Vec<&str> =
                rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            names.sort_unstable();
            names
        };
        let (groups, versions, mut resources) =
            (names("apiGroups"), names("apiVersions"), names("resources"));
        if groups.iter().chain(&versions).any(|name| name.contains('*')) {
            continue;
        }
        resources.retain(|name| !name.contains(['*', '/']));
        let mut n_kinds = 0;
        for group in &groups {
            for version in &versions {
                for resource in &resources {
                    let resource = GroupVersionResource {
                        group: (*group).to_owned(),
                        version: (*version).to_owned(),
                        resource: (*resource).to_owned(),
                    };
                    for GroupVersionKind { group, version, kind } in kinds_for(&resource) {
                        kinds.insert((group, version, kind));
                        n_kinds += 1;
                        // Upstream looks at no further rule, either.
                        if n_kinds == MAX_KINDS {
                            return listed(kinds);
                        }
                    }
                }
            }
        }
    }
    listed(kinds)
}

fn listed(kinds: BTreeSet<(String, String, String)>) -> Vec<GroupVersionKind> {
    kinds.into_iter().map(|(group, version, kind)| GroupVersionKind { group, version, kind }).collect()
}

/// Holds the validations of a policy and their messages against the types of these kinds, and of its params. `schema_of` knows the
/// type of a kind; what it does not know is left out.
pub fn type_check(
    policy: &Object,
    kinds: &[GroupVersionKind],
    schema_of: &dyn Fn(&GroupVersionKind) -> Option<TypeRef>,
) -> Vec<ExpressionWarning> {
    let spec = &policy["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let param_kind = &spec["paramKind"];
    let params = (!param_kind.is_null())
        .then(|| GroupVersionKind::new(&text(&param_kind["apiVersion"]), &text(&param_kind["kind"])));
    let params = params.map(|kind| (schema_of(&kind), kind.kind));
    let checkers: Vec<(&GroupVersionKind, Environment)> = kinds
        .iter()
        .filter_map(|kind| Some((kind, environment(spec, &kind.kind, schema_of(kind)?, params.as_ref()))))
        .collect();
    let mut warnings = Vec::new();
    for (at, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        for field in ["expression", "messageExpression"] {
            let expression = text(&validation[field]);
            if expression.is_empty() && field == "messageExpression" {
                continue;
            }
            let faults: Vec<String> = checkers
                .iter()
                .filter_map(|(kind, environment)| {
                    let rejected = environment.compile(&expression).err()?;
                    let GroupVersionKind { group, version, kind } = kind;
                    Some(format!("{group}/{version}, Kind={kind}: {rejected}\n"))
                })
                .collect();
            if !faults.is_empty() {
                warnings.push(ExpressionWarning {
                    field_ref: format!("spec.validations[{at}].{field}"),
                    warning: faults.join("\n"),
                });
            }
        }
    }
    warnings
}

/// The names that expressions may use where the object is of one kind, with the variables that the policy declares.
fn environment(
    spec: &Value,
    kind: &str,
    schema: TypeRef,
    params: Option<&(Option<TypeRef>, String)>,
) -> Environment {
    let mut declared = Declared::default();
    let mut known = HashMap::new();
    // No two objects have one name.
    let object = format!("{kind}0");
    known.insert(object.clone(), (schema.schema, schema.id));
    let params = params.map(|(schema, kind)| {
        let Some(schema) = schema else { return Type::Dyn };
        let name = format!("{kind}1");
        known.insert(name.clone(), (schema.schema.clone(), schema.id));
        Type::object(&name)
    });
    let types = Schemas { known: Mutex::new(known), declared: declared.clone() };
    let mut environment = Environment::default()
        .types(types)
        .variable("object", Type::object(&object))
        .variable("oldObject", Type::object(&object))
        .variable("namespaceObject", Type::object("kubernetes.Namespace"))
        .variable("request", Type::object("kubernetes.AdmissionRequest"))
        .variable("authorizer", Type::object("kubernetes.authorization.Authorizer"))
        // Upstream forgets it here, and warns of all who use it.
        .variable("authorizer.requestResource", Type::object("kubernetes.authorization.ResourceCheck"))
        .variable(VARIABLES, Type::object(VARIABLES_TYPE));
    if let Some(params) = params {
        environment = environment.variable("params", params);
    }
    for variable in spec["variables"].as_array().into_iter().flatten() {
        let text = |field: &str| variable[field].as_str().unwrap_or_default();
        let program = environment.compile(text("expression")).ok();
        declared.declare(text("name"), program.as_ref().map(skiff_cel::Program::output));
    }
    environment
}

/// Objects by the names of their types, which are their paths: those that were asked for, and the parts of these.
struct Schemas {
    known: Mutex<HashMap<String, (Arc<Schema>, TypeId)>>,
    declared: Declared,
}

impl Types for Schemas {
    fn field(&self, object: &str, field: &str) -> Option<Type> {
        if object == VARIABLES_TYPE {
            return self.declared.field(field);
        }
        let Some((schema, id)) = self.known.lock().get(object).cloned() else {
            return Objects.field(object, field);
        };
        // Fields are declared by their escaped names: what can only stand in backticks is none of them.
        let is_name = field.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let property = if is_name { unescape(field)? } else { return None };
        let node = &schema.get(id).field(&property)?.node;
        self.type_of(&schema, node, format!("{object}.{field}"))
    }
}

impl Schemas {
    /// The type of a value that stands at a path; `None` where its schema says too little for upstream.
    fn type_of(&self, schema: &Arc<Schema>, node: &Node, path: String) -> Option<Type> {
        let format = node.custom.as_ref().and_then(|custom| custom.checks.format.as_deref());
        Some(match &node.shape {
            Shape::String => match format {
                Some("byte") => Type::Bytes,
                Some("duration") => Type::Duration,
                Some("date" | "date-time") => Type::Timestamp,
                _ => Type::String,
            },
            Shape::Int32 | Shape::Int64 => Type::Int,
            Shape::Bool => Type::Bool,
            Shape::Double => Type::Double,
            Shape::Bytes => Type::Bytes,
            Shape::Time | Shape::MicroTime => Type::Timestamp,
            Shape::Duration => Type::Duration,
            Shape::IntOrString => Type::Dyn,
            // Its schema says one of two types.
            Shape::Quantity | Shape::SchemaOr(..) => return None,
            Shape::Any => match node.custom.as_ref().map(|custom| custom.type_.as_deref()) {
                None | Some(Some("object")) => Type::object(&path),
                Some(_) => return None,
            },
            Shape::Object(id) => {
                self.known.lock().insert(path.clone(), (schema.clone(), *id));
                Type::object(&path)
            }
            Shape::List(items) => Type::list(self.type_of(schema, items, format!("{path}.@idx"))?),
            Shape::Map(values) => {
                Type::map(Type::String, self.type_of(schema, values, format!("{path}.@elem"))?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Whether an expression is warned of where the object is of a built-in type.
    #[track_caller]
    fn checked(type_name: &str, expression: &str, wanted: Option<&str>) {
        let kind = GroupVersionKind::new("example.com/v1", "Thing");
        let policy = json!({"spec": {"validations": [{"expression": expression}]}});
        let schema_of = |_: &GroupVersionKind| TypeRef::builtin(type_name);
        let warnings = type_check(&policy, &[kind], &schema_of);
        let found = warnings.first().map(|warning| warning.warning.as_str());
        match (found, wanted) {
            (None, None) => {}
            (Some(found), Some(wanted)) if found.contains(wanted) => {}
            _ => panic!("{expression}: {found:?}, wanted {wanted:?}"),
        }
    }

    #[test]
    fn built_in_types_are_known() {
        let deployment = "io.k8s.api.apps.v1.Deployment";
        checked(deployment, "object.spec.replicas > 1 && object.metadata.labels['a'] == 'b'", None);
        checked(deployment, "object.spec.replicas > 'a'", Some("'_>_' applied to '(int, string)'"));
        checked(deployment, "object.spec.template.spec.containers.all(c, c.image == 'x')", None);
        checked(
            deployment,
            "object.spec.template.spec.containers.all(c, c.none == 'x')",
            Some("undefined field 'none'"),
        );
        checked(deployment, "object.metadata.creationTimestamp < timestamp('2024-01-01T00:00:00Z')", None);
        checked("io.k8s.api.core.v1.Service", "object.spec.ports[0].targetPort == 'a'", None);
    }

    #[test]
    fn types_without_an_end_are_followed_as_far_as_an_expression_goes() {
        let properties = ".properties['a']".repeat(20);
        let schema = "object.spec.versions[0].schema.openAPIV3Schema";
        let definition = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition";
        checked(definition, &format!("{schema}{properties}.type == 'x'"), None);
        checked(definition, &format!("{schema}{properties}.none == 'x'"), Some("undefined field 'none'"));
    }
}
