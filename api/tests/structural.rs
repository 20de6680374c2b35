//! Whatever a schema and an object of it are, looking at them ends, and soon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use skiff_api::schema::{Schema, Shape, TypeRef};
use skiff_api::structural;

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "a",
        "b",
        "c",
        "d-e",
        "x.y",
        "if",
        "",
        "ä",
        "metadata",
        "kind",
        "apiVersion",
        "spec",
        "status",
    ])
    .prop_map(str::to_owned)
}

fn value() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-3_i64..10).prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
        name().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(name(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
    .boxed()
}

/// One keyword with what may stand behind it, right or wrong.
fn keyword(inner: BoxedStrategy<Value>) -> BoxedStrategy<(String, Value)> {
    let word =
        |words: &[&str]| prop::sample::select(words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
    let schemas = prop::collection::btree_map(name(), inner.clone(), 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()));
    let types = word(&["object", "array", "string", "integer", "number", "boolean", "null", "odd"]);
    let rules = prop::sample::select(vec![
        "self == oldSelf",
        "self.a == self.b",
        "self.all(x, x == x)",
        "self.size() < 3",
        "self[0] == self[1]",
        "self",
        "(",
        "self.metadata.name == 'a'",
        "self.matches('a*')",
        "self + self == self",
        "has(self.a)",
        "oldSelf.hasValue()",
    ]);
    prop_oneof![
        types.prop_map(|type_| ("type".to_owned(), type_.into())),
        schemas.prop_map(|schemas| ("properties".to_owned(), schemas)),
        (word(&["items", "additionalProperties", "not"]), inner.clone()),
        (word(&["allOf", "anyOf", "oneOf"]), prop::collection::vec(inner, 0..3).prop_map(Value::from)),
        (word(&["default", "enum", "items", "minimum"]), value()),
        (
            word(&[
                "nullable",
                "uniqueItems",
                "additionalProperties",
                "exclusiveMaximum",
                "x-kubernetes-preserve-unknown-fields",
                "x-kubernetes-embedded-resource",
                "x-kubernetes-int-or-string",
            ]),
            any::<bool>().prop_map(Value::from)
        ),
        (
            word(&[
                "maximum",
                "minimum",
                "multipleOf",
                "maxLength",
                "minLength",
                "maxItems",
                "minItems",
                "maxProperties",
                "minProperties",
            ]),
            prop_oneof![
                any::<i64>().prop_map(Value::from),
                any::<f64>().prop_map(Value::from),
                Just(json!(2))
            ]
        ),
        word(&[
            "uri",
            "email",
            "date-time",
            "duration",
            "byte",
            "hostname",
            "cidr",
            "mac",
            "int32",
            "float",
            "isbn"
        ])
        .prop_map(|format| ("format".to_owned(), format.into())),
        word(&["^a", "(", "[", "a{1000}", "\\pL", "\\Qa"])
            .prop_map(|pattern| ("pattern".to_owned(), pattern.into())),
        word(&["set", "map", "atomic"]).prop_map(|type_| ("x-kubernetes-list-type".to_owned(), type_.into())),
        prop::collection::vec(name(), 0..3)
            .prop_map(|keys| ("x-kubernetes-list-map-keys".to_owned(), keys.into())),
        prop::collection::vec(name(), 0..3).prop_map(|names| ("required".to_owned(), names.into())),
        (rules, any::<Option<bool>>(), name()).prop_map(|(rule, optional, field)| {
            let rule = json!({"rule": rule, "messageExpression": "'a'", "optionalOldSelf": optional,
                              "fieldPath": format!(".{field}['a']")});
            ("x-kubernetes-validations".to_owned(), json!([rule]))
        }),
    ]
    .boxed()
}

fn schema() -> BoxedStrategy<Value> {
    let keywords = |inner| {
        prop::collection::vec(keyword(inner), 0..7)
            .prop_map(|words| Value::Object(words.into_iter().collect::<Map<_, _>>()))
    };
    Just(json!({})).boxed().prop_recursive(4, 40, 4, move |inner| keywords(inner.boxed())).boxed()
}

fn kind_schema(schema: &Value) -> Option<TypeRef> {
    let schema = Schema::of_custom(schema).ok()?;
    let Shape::Object(id) = schema.root()?.shape else { return None };
    Some(TypeRef { schema: Arc::new(schema), id })
}

fn look_at(schema: &TypeRef, object: &Value, old: &Value) {
    let decoded = |object: &Value| {
        let mut object = object.clone();
        structural::prune(&schema.schema, &mut object).map(|_| {
            structural::default(&schema.schema, &mut object);
            object
        })
    };
    let (Ok(object), Ok(old)) = (decoded(object), decoded(old)) else { return };
    structural::validate(schema, &object, None);
    structural::judge(schema, &object, Some(&old));
    structural::judge_status(schema, &object, &old);
    // Nulls may make way for defaults only once they are decoded.
    let again = decoded(&object);
    assert_eq!(again.as_ref().map(&decoded), again.as_ref().map(|again| Ok(again.clone())), "it stays so");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_schema_and_no_object_of_it_panics(schema in schema(), object in value(), old in value(), is_bare in any::<bool>()) {
        let mut schema = schema;
        if let (true, Value::Object(words)) = (is_bare, &mut schema) {
            words.insert("type".into(), "object".into());
        }
        if let Some(schema) = kind_schema(&schema) {
            structural::check_rules(&schema.schema, "base");
            look_at(&schema, &object, &old);
            let wrapped = |value: &Value| json!({"spec": value, "status": value, "a": value, "metadata": {"name": "a"}});
            look_at(&schema, &wrapped(&object), &wrapped(&old));
        }
    }
}

/// As much as a body may hold, with a fault in each part.
#[test]
fn a_large_object_full_of_faults_is_told_of_at_once() {
    let schema = kind_schema(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {
            "type": "object", "required": ["more"], "properties": {"name": {"type": "string", "maxLength": 1},
            "value": {"type": "integer", "maximum": 3, "x-kubernetes-validations": [{"rule": "self < 2"}]}}}},
        "texts": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string", "pattern": "^a"}}}}}}))
    .unwrap();
    let items: Vec<Value> = (0..60_000).map(|n| json!({"name": format!("n{}", n / 2), "value": n})).collect();
    let texts: Vec<String> = (0..60_000).map(|n| format!("b{}", n / 2)).collect();
    let object = json!({"spec": {"items": items, "texts": texts}});
    let mut changed = object.clone();
    changed["spec"]["items"][7]["value"] = json!(8);
    let start = Instant::now();
    let causes = structural::validate(&schema, &object, None);
    assert!(causes.len() > 10_000, "{}", causes.len());
    structural::judge(&schema, &changed, Some(&object));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

/// As deep as documents may be.
#[test]
fn deep_schemas_and_objects_are_looked_at() {
    let (mut schema, mut object) = (json!({"type": "integer"}), json!("text"));
    for _ in 0..50 {
        schema = json!({"type": "object", "properties": {"a": schema},
                        "x-kubernetes-validations": [{"rule": "self == oldSelf"}]});
        object = json!({"a": object});
    }
    let schema = kind_schema(&schema).unwrap();
    look_at(&schema, &object, &object);
    let causes = structural::validate(&schema, &object, None);
    assert!(causes.iter().any(|cause| cause.message.contains("must be of type integer")), "{causes:?}");
}
