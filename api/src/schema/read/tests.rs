use serde_json::json;

use super::*;

fn read(properties: Value) -> Schema {
    Schema::of_custom(&json!({"type": "object", "properties": properties})).unwrap()
}

fn root(schema: &Schema) -> &ObjectType {
    object(schema, schema.root().unwrap())
}

fn object<'s>(schema: &'s Schema, node: &Node) -> &'s ObjectType {
    match node.shape {
        Shape::Object(id) => schema.get(id),
        ref other => panic!("{other:?}"),
    }
}

fn names(type_: &ObjectType) -> Vec<&str> {
    type_.fields.iter().map(|field| &*field.name).collect()
}

/// The node at a path of field names.
fn node<'s>(schema: &'s Schema, path: &[&str]) -> &'s Node {
    let mut node = schema.root().unwrap();
    for name in path {
        node = match &node.shape {
            Shape::List(inner) | Shape::Map(inner) if *name == "*" => inner,
            _ => &object(schema, node).field(name).unwrap_or_else(|| panic!("{name}")).node,
        };
    }
    node
}

#[test]
fn a_type_becomes_a_shape() {
    let schema = read(json!({
        "s": {"type": "string"}, "i": {"type": "integer", "format": "int32"}, "n": {"type": "number"}, "b": {"type": "boolean"},
        "is": {"x-kubernetes-int-or-string": true}, "any": {"x-kubernetes-preserve-unknown-fields": true},
        "empty": {"type": "object"}, "l": {"type": "array", "items": {"type": "string"}},
        "m": {"type": "object", "additionalProperties": {"type": "integer"}},
        "open": {"type": "object", "additionalProperties": true},
    }));
    let shape = |path: &[&str]| node(&schema, path).shape.clone();
    assert_eq!(shape(&["s"]), Shape::String);
    assert_eq!(shape(&["i"]), Shape::Int64);
    assert_eq!(shape(&["n"]), Shape::Double);
    assert_eq!(shape(&["b"]), Shape::Bool);
    assert_eq!(shape(&["is"]), Shape::IntOrString);
    assert_eq!(shape(&["any"]), Shape::Any);
    assert!(names(object(&schema, node(&schema, &["empty"]))).is_empty());
    assert_eq!(shape(&["l", "*"]), Shape::String);
    assert_eq!(shape(&["m", "*"]), Shape::Int64);
    assert_eq!(shape(&["open", "*"]), Shape::Any);
    assert!(!node(&schema, &["open", "*"]).custom.as_ref().unwrap().preserve);
    assert!(node(&schema, &["any"]).custom.as_ref().unwrap().preserve);
}

#[test]
fn a_resource_and_an_embedded_one_have_the_fields_of_every_object() {
    let schema = read(json!({"spec": {"type": "object", "properties": {"template": {
        "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
        "required": ["kind"],
    }}}}));
    assert_eq!(names(root(&schema)), ["apiVersion", "kind", "metadata", "spec"]);
    assert_eq!(&*root(&schema).name, "");
    let template = object(&schema, node(&schema, &["spec", "template"]));
    assert_eq!(names(template), ["apiVersion", "kind", "metadata"]);
    assert_eq!(&*template.name, "spec.template");
    assert!(template.field("kind").unwrap().required && !template.field("apiVersion").unwrap().required);
    let metadata = &node(&schema, &["metadata"]).shape;
    assert_eq!(*metadata, node(&schema, &["spec", "template", "metadata"]).shape);
    assert_eq!(*metadata, Shape::Object(schema.find(OBJECT_META).unwrap()));
    let owners = node(&schema, &["metadata", "ownerReferences"]);
    assert_eq!((owners.list, &*owners.keys[0]), (ListType::Map, "uid"));
    assert!(object(&schema, node(&schema, &["metadata", "ownerReferences", "*"])).atomic);
    assert!(schema.find("io.k8s.apimachinery.pkg.apis.meta.v1.ManagedFieldsEntry").is_some());
}

#[test]
fn what_is_said_of_metadata_stands_with_the_field() {
    let schema = read(json!({"metadata": {"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "pattern": "^a"}, "generateName": {"type": "string", "maxLength": 5}}}}));
    let custom = node(&schema, &["metadata"]).custom.as_ref().unwrap();
    assert_eq!(&*custom.checks.required, [Box::from("name")]);
    let fields = &custom.checks.all_of[0].fields;
    assert_eq!((&*fields[0].0, fields[0].1.checks.max_length), ("generateName", Some(5)));
    assert_eq!((&*fields[1].0, fields[1].1.checks.pattern.as_deref()), ("name", Some("^a")));
}

#[test]
fn facts_stand_with_the_node() {
    let schema = read(json!({
        "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["b", "a"],
              "items": {"type": "object", "x-kubernetes-map-type": "atomic",
                        "properties": {"a": {"type": "string", "default": "x"}, "b": {"type": "integer"}}}},
        "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "p": {"type": "array", "items": {"type": "string"}},
    }));
    let list = node(&schema, &["l"]);
    assert_eq!((list.list, list.keys.len(), &*list.keys[0]), (ListType::Map, 2, "b"));
    assert!(node(&schema, &["l", "*"]).atomic_map);
    assert_eq!(&*object(&schema, node(&schema, &["l", "*"])).name, "l[*]");
    assert_eq!(node(&schema, &["l", "*", "a"]).default, Some("x".into()));
    assert_eq!(node(&schema, &["s"]).list, ListType::Set);
    assert_eq!(node(&schema, &["p"]).list, ListType::Atomic);
}

#[test]
fn checks_and_rules_are_kept_with_what_is_nested_in_them() {
    let schema = read(json!({"v": {
        "type": "integer", "nullable": true, "format": "int32", "minimum": 1, "exclusiveMinimum": true, "maximum": 9.5, "multipleOf": 2,
        "enum": [2, 4], "allOf": [{"minimum": 0}], "anyOf": [{"maximum": 3}], "oneOf": [{"enum": [2]}],
        "not": {"properties": {"b": {"pattern": "x"}, "a": {"items": {"maxLength": 1}}}},
        "x-kubernetes-validations": [{"rule": "self > 1", "message": "m", "messageExpression": "'e'",
            "reason": "FieldValueInvalid", "fieldPath": ".a", "optionalOldSelf": false}],
    }}));
    let custom = node(&schema, &["v"]).custom.as_ref().unwrap();
    let checks = &custom.checks;
    assert!(custom.nullable && custom.type_.as_deref() == Some("integer"));
    assert_eq!(checks.minimum, Some(Bound { value: 1.0, is_exclusive: true }));
    assert_eq!(checks.maximum, Some(Bound { value: 9.5, is_exclusive: false }));
    assert_eq!((checks.multiple_of, checks.format.as_deref()), (Some(2.0), Some("int32")));
    assert_eq!(&*checks.one_of_values, [json!(2), json!(4)]);
    assert_eq!(checks.all_of[0].checks.minimum, Some(Bound { value: 0.0, is_exclusive: false }));
    assert_eq!(checks.any_of[0].checks.maximum, Some(Bound { value: 3.0, is_exclusive: false }));
    assert_eq!(&*checks.one_of[0].checks.one_of_values, [json!(2)]);
    let not = checks.not.as_ref().unwrap();
    assert_eq!(not.fields.iter().map(|(name, _)| &**name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(not.fields[0].1.items.as_ref().unwrap().checks.max_length, Some(1));
    let rule = Rule {
        rule: "self > 1".into(),
        message: "m".into(),
        message_expression: "'e'".into(),
        reason: Some("FieldValueInvalid".into()),
        field_path: ".a".into(),
        optional_old_self: Some(false),
    };
    assert_eq!(&*custom.rules, [rule]);
}

#[test]
fn what_cannot_be_kept_is_refused() {
    assert_eq!(Schema::of_custom(&json!([])).unwrap_err(), ReadError::NoObject { path: String::new() });
    let error =
        Schema::of_custom(&json!({"type": "object", "properties": {"a": {"type": "array", "items": 1}}}));
    assert_eq!(error.unwrap_err(), ReadError::NoObject { path: "a[*]".into() });
    let mut deep = json!({"type": "string"});
    for _ in 0..80 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    assert_eq!(Schema::of_custom(&deep).unwrap_err(), ReadError::TooDeep(TooDeep));
    let many: Map<String, Value> =
        (0..70_000).map(|n| (format!("f{n}"), json!({"type": "string"}))).collect();
    let error = Schema::of_custom(&json!({"type": "object", "properties": many})).unwrap_err();
    assert_eq!(error, ReadError::TooManyFields { path: String::new() });
}
