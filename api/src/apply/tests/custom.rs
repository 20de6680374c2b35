//! Of custom resources, whose types are read from their definitions.

use super::*;
use crate::kinds::kinds_of;

fn kind() -> Kind {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "ports": {
                "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
                "items": {"type": "object", "required": ["port"], "properties": {
                    "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"},
                    "names": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                }},
            },
            "lists": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
            "whole": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "free": {"type": "object"},
            "open": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"inner": {"type": "object", "properties": {"known": {"type": "string"}}}},
            },
            "time": {"type": "string", "format": "date-time"},
            "amount": {"x-kubernetes-int-or-string": true},
            "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"size": {"type": "integer"}}},
        }},
    }});
    let names = json!({"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"});
    let definition = json!({
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "versions": [{
            "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
        }]},
        "status": {"acceptedNames": names},
    });
    kinds_of(&definition).unwrap().remove(0)
}

fn thing(spec: Value) -> Object {
    json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t", "namespace": "n"}, "spec": spec})
}

fn owned<'o>(object: &'o Object, manager: &str) -> &'o Value {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    &entries.iter().find(|entry| entry["manager"] == manager).unwrap()["fieldsV1"]
}

fn apply(live: Option<&Object>, document: &Object, manager: &str) -> Result<Object, String> {
    let kind = kind();
    let fields = FieldManager::new(&kind, "", &OneVersion);
    fields.apply(live, document, manager, Force::No, T1).map_err(|error| error.to_string())
}

#[test]
fn a_definition_says_what_is_owned_by_itself() {
    let object = apply(
        None,
        &thing(json!({
            "ports": [{"port": 1, "names": ["a"]}], "lists": [["x"], ["y"]], "whole": {"a": "1"}, "labels": {"l": "1"},
            "free": {"f": {"g": 1}}, "open": {"o": {"p": [1]}, "inner": {"known": "k", "unknown": 2}}, "time": "2026-01-01T00:00:00Z",
            "template": {"apiVersion": "v1", "kind": "K", "size": 1, "metadata": {
                "labels": {"a": "b"}, "finalizers": ["f"], "ownerReferences": [{"apiVersion": "v1", "kind": "P", "name": "p", "uid": "u"}]}},
        })),
        "m",
    );
    assert_eq!(
        owned(&object.unwrap(), "m")["f:spec"],
        json!({
            "f:ports": {r#"k:{"port":1,"protocol":"TCP"}"#: {".": {}, "f:port": {}, "f:names": {r#"v:"a""#: {}}}},
            "f:lists": {}, "f:whole": {}, "f:labels": {"f:l": {}}, "f:free": {"f:f": {".": {}, "f:g": {}}},
            "f:open": {"f:o": {".": {}, "f:p": {}}, "f:inner": {"f:known": {}, "f:unknown": {}}}, "f:time": {},
            "f:template": {"f:apiVersion": {}, "f:kind": {}, "f:size": {}, "f:metadata": {
                "f:labels": {"f:a": {}}, "f:finalizers": {r#"v:"f""#: {}}, "f:ownerReferences": {r#"k:{"uid":"u"}"#: {}}}},
        })
    );
}

#[test]
fn two_appliers_share_what_a_definition_takes_apart() {
    let one =
        apply(None, &thing(json!({"ports": [{"port": 1, "names": ["a"]}], "whole": {"a": "1"}})), "one")
            .unwrap();
    let both = apply(Some(&one), &thing(json!({"ports": [{"port": 1, "names": ["b"]}, {"port": 2}]})), "two")
        .unwrap();
    assert_eq!(
        both["spec"]["ports"],
        json!([{"port": 1, "protocol": "TCP", "names": ["a", "b"]}, {"port": 2, "protocol": "TCP"}])
    );
    let error = apply(Some(&both), &thing(json!({"whole": {"b": "2"}})), "two").unwrap_err();
    assert_eq!(error, r#"Apply failed with 1 conflict: conflict with "one": .spec.whole"#);
    let gone = apply(Some(&both), &thing(json!({"whole": {"a": "1"}})), "one").unwrap();
    assert_eq!(gone["spec"]["ports"][0]["names"], json!(["b"]), "what one does not apply any more goes");
}

#[test]
fn metadata_is_owned_as_that_of_built_in_kinds() {
    let metadata = json!({
        "name": "t", "namespace": "n", "labels": {"a": "b"}, "annotations": {"c": "d"}, "finalizers": ["example.com/f"],
        "ownerReferences": [{"apiVersion": "v1", "kind": "P", "name": "p", "uid": "u"}],
    });
    let mut custom = thing(json!({}));
    custom["metadata"] = metadata.clone();
    let custom = apply(None, &custom, "m").unwrap();
    let built_in = with_kind("ConfigMap", |_, fields| {
        let document = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
        fields.apply(None, &document, "m", Force::No, T1).unwrap()
    });
    assert_eq!(owned(&custom, "m")["f:metadata"], owned(&built_in, "m")["f:metadata"]);
}

#[test]
fn a_field_that_no_definition_names_cannot_be_applied() {
    let refused = |spec: Value| apply(None, &thing(spec), "m").unwrap_err();
    let error = refused(json!({"unknown": 1}));
    assert!(error.ends_with(".spec.unknown: field not declared in schema"), "{error}");
    let error = refused(json!({"template": {"unknown": 1}}));
    assert!(error.ends_with(".spec.template.unknown: field not declared in schema"), "{error}");
    let error = refused(json!({"open": {"inner": {"known": 1}}}));
    assert!(error.contains(".spec.open.inner.known: expected string"), "{error}");
    let error = refused(json!({"time": {}}));
    assert!(error.contains(".spec.time: expected any scalar"), "{error}");
    let error = refused(json!({"ports": [{"protocol": "UDP"}, {"port": 1}, {"port": 1, "protocol": "TCP"}]}));
    assert!(error.contains(r#"duplicate entries for key [port=1,protocol="TCP"]"#), "{error}");
    assert!(apply(None, &thing(json!({"amount": "5%", "open": {"inner": {"unknown": 1}}})), "m").is_ok());
}
