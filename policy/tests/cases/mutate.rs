//! Mutations against those of upstream's plug-in: `mutate.jsonl.gz`, which `xtask/policies` records.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use skiff_api::schema::{Schema, Shape, TypeRef};
use skiff_policy::{Caller, Policies};
use skiff_webhook::admission::{GroupVersionKind, Reinvocation};

use crate::world::{Gadgets, Given, Request, Stored, shown, unpacked};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    policies: Vec<Value>,
    bindings: Vec<Value>,
    namespaces: Option<Vec<Value>>,
    params: Vec<Value>,
    attributes: Given,
    between: Option<Value>,
    error: Option<Value>,
    object: Value,
    #[serde(default)]
    reinvoked: bool,
}

/// Cases that end otherwise, and why.
const KNOWN: &[(&str, &str)] = &[
    (
        "a patch 21 Fail: [JSONPatch{op: 'add', path: '/spec/n', nothing: 1}]",
        "a field that patches do not have is one without a type to upstream; it is none",
    ),
    ("a patch 27 Fail: [JSONPatch{", "fewer of the signs are told that might follow"),
    (
        "a part 30 Fail: Object{spec: Object.spec{inner: null}}",
        "null is refused before it is held against a type, in words that do not show how it is kept",
    ),
    ("one of them fails, Fail", "our engine of JSON patches has words of its own"),
];

/// The gadgets of `xtask/policies`.
const SCHEMA: &str = r#"{"type": "object", "properties": {
    "apiVersion": {"type": "string"}, "kind": {"type": "string"},
    "metadata": {"type": "object", "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "generateName": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}}, "annotations": {"type": "object", "additionalProperties": {"type": "string"}}}},
    "spec": {"type": "object", "properties": {
        "n": {"type": "integer", "format": "int64"}, "name": {"type": "string"}, "flag": {"type": "boolean"},
        "list": {"type": "array", "items": {"type": "integer", "format": "int64"}},
        "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
        "ports": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "port": {"type": "integer", "format": "int64"},
            "tags": {"type": "array", "items": {"type": "string"}}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        "map": {"type": "object", "additionalProperties": {"type": "string"}},
        "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
        "inner": {"type": "object", "properties": {"x": {"type": "string"}, "y": {"type": "integer", "format": "int64"}}}}}}}"#;

/// What came of a case: the error as it would be sent, the object, and whether there was a second round.
async fn run(case: &Case, gadget: &TypeRef) -> (Option<Value>, Value, bool) {
    let request = Request::new(&case.attributes);
    let attributes = request.attributes(&case.attributes, case.namespaces.as_deref().unwrap_or_default());
    let stored = Stored(&case.params);
    let caller = Caller { host: &Gadgets, params: &stored };
    let policies = Policies::compile(&case.policies, &case.bindings, None);
    let schema_of = |kind: &GroupVersionKind| (kind.kind == "Gadget").then(|| gadget.clone());
    let (mut reinvocation, mut was_reinvoked) = (Reinvocation::default(), false);
    let object = case.attributes.object.clone();
    let mut result = policies.mutate(caller, &schema_of, &attributes, object, &mut reinvocation).await;
    if let Ok(object) = &result
        && reinvocation.is_wanted()
    {
        was_reinvoked = true;
        reinvocation.begin_again();
        let object = case.between.clone().or_else(|| object.clone());
        result = policies.mutate(caller, &schema_of, &attributes, object, &mut reinvocation).await;
    }
    match result {
        Ok(object) => (None, object.unwrap_or_default(), was_reinvoked),
        Err(status) => (Some(shown(&status)), Value::Null, was_reinvoked),
    }
}

#[tokio::test]
async fn policies_mutate_as_upstreams_do() {
    let lines = unpacked(include_bytes!("mutate.jsonl.gz"));
    let schema = Schema::of_custom(&serde_json::from_str(SCHEMA).expect("JSON")).expect("a schema");
    let Some(Shape::Object(id)) = schema.root().map(|root| root.shape.clone()) else {
        panic!("gadgets are objects");
    };
    let gadget = TypeRef { schema: Arc::new(schema), id };
    let (mut faults, mut n_cases, mut n_known) = (Vec::new(), 0, 0);
    for line in lines.lines() {
        let case: Case = serde_json::from_str(line).expect(line);
        let (error, object, was_reinvoked) = run(&case, &gadget).await;
        let wanted_object = if case.error.is_some() { &Value::Null } else { &case.object };
        let found = json!([error, object, was_reinvoked]);
        let wanted = json!([case.error, wanted_object, case.reinvoked]);
        n_cases += 1;
        if KNOWN.iter().any(|(name, _)| *name == case.name) {
            assert_ne!(found, wanted, "{} is the same by now", case.name);
            n_known += 1;
        } else if found != wanted {
            faults.push(format!("{}\n   found {found}\n  wanted {wanted}", case.name));
        }
    }
    assert!(faults.is_empty(), "{} of {n_cases}:\n{}", faults.len(), faults.join("\n"));
    assert!(n_cases > 200, "{n_cases}");
    assert_eq!(n_known, KNOWN.len());
}
