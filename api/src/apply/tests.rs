use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::Kinds;

mod custom;

const T1: &str = "2026-01-01T00:00:01Z";
const T2: &str = "2026-01-01T00:00:02Z";

fn config_map(data: Value) -> Object {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}, "data": data})
}

/// An object of the core or `apps` group, as it would be stored.
fn stored(kind: &Kind, mut object: Object) -> Object {
    object.set_meta("uid", "u");
    kind.write(&mut object);
    object
}

fn with_kind<T>(name: &str, then: impl FnOnce(&Kind, &FieldManager<'_>) -> T) -> T {
    let kinds = Kinds::builtin();
    let group = if name == "Deployment" { "apps" } else { "" };
    let kind = kinds.by_kind(group, "v1", name).unwrap();
    then(kind, &FieldManager::new(kind, "", &OneVersion))
}

fn managers(object: &Object) -> Vec<&str> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries.into_iter().flatten().filter_map(|entry| entry["manager"].as_str()).collect()
}

#[test]
fn what_nobody_applies_any_more_goes_unless_another_owns_it() {
    with_kind("ConfigMap", |kind, fields| {
        let apply = |live: Option<&Object>, data: Value, who: &str| {
            stored(kind, fields.apply(live, &config_map(data), who, Force::No, T1).unwrap())
        };
        let first = apply(None, json!({"a": "1", "b": "1", "c": "1"}), "m1");
        let second = apply(Some(&first), json!({"b": "1"}), "m2");
        assert_eq!(second["data"], json!({"a": "1", "b": "1", "c": "1"}), "both want the same of b");
        let third = apply(Some(&second), json!({"a": "1"}), "m1");
        assert_eq!(third["data"], json!({"a": "1", "b": "1"}), "c was m1's alone");
    });
}

#[test]
fn a_conflict_names_the_manager_and_the_field_and_force_takes_it() {
    with_kind("ConfigMap", |kind, fields| {
        let mut live = config_map(json!({"a": "1"}));
        fields.update(None, &mut live, "editor", T1);
        let live = stored(kind, live);
        let wanted = config_map(json!({"a": "2"}));
        let error = fields.apply(Some(&live), &wanted, "m", Force::No, T2).unwrap_err();
        let status = Status::from(error);
        assert_eq!(
            (status.code, &*status.message),
            (409, r#"Apply failed with 1 conflict: conflict with "editor" using v1: .data.a"#)
        );
        let cause = &status.details.unwrap().causes[0];
        assert_eq!((cause.reason, &*cause.field), ("FieldManagerConflict", ".data.a"));
        assert_eq!(cause.message, r#"conflict with "editor" using v1"#);
        let taken = fields.apply(Some(&live), &wanted, "m", Force::Yes, T2).unwrap();
        assert_eq!(taken["data"]["a"], "2");
        assert_eq!(managers(&taken), ["m", "editor"]);
        assert_eq!(taken["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:data": {"f:a": {}}}));
        assert_eq!(taken["metadata"]["managedFields"][1]["fieldsV1"], json!({"f:data": {}}));
    });
}

#[test]
fn an_object_without_managers_is_owned_by_one_from_before_once_it_is_applied_to() {
    with_kind("ConfigMap", |kind, fields| {
        let live = stored(kind, config_map(json!({"a": "1"})));
        let mut updated = live.clone();
        updated["data"]["a"] = "2".into();
        fields.update(Some(&live), &mut updated, "editor", T1);
        assert!(managers(&updated).is_empty(), "who changes it is not kept");
        let applied = fields.apply(Some(&live), &config_map(json!({"b": "1"})), "m", Force::No, T1).unwrap();
        assert_eq!(managers(&applied), ["m", "before-first-apply"]);
    });
}

#[test]
fn what_has_become_one_whole_is_owned_as_one() {
    with_kind("Deployment", |kind, fields| {
        let owned = json!({"f:spec": {"f:replicas": {}, "f:selector": {"f:matchLabels": {"f:app": {}}}}});
        let live = stored(
            kind,
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "d", "namespace": "n", "managedFields": [
                    {"manager": "old", "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": owned},
                    {"manager": "older", "operation": "Update", "apiVersion": "extensions/v1beta1", "fieldsType": "FieldsV1", "fieldsV1": owned},
                ]},
                "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "d"}}, "template": {}},
            }),
        );
        let mut new = live.clone();
        fields.update(Some(&live), &mut new, "m", T1);
        assert_eq!(managers(&new), ["old"], "one is of a version that is gone");
        let fitting = json!({"f:spec": {"f:replicas": {}, "f:selector": {}}});
        assert_eq!(new["metadata"]["managedFields"][0]["fieldsV1"], fitting);
    });
}

#[test]
fn the_oldest_of_many_updaters_become_one() {
    with_kind("ConfigMap", |kind, fields| {
        let mut live: Option<Object> = None;
        for n in 0..30 {
            let mut new = live.clone().unwrap_or_else(|| config_map(json!({})));
            new["data"][format!("k{n}")] = "1".into();
            fields.update(live.as_ref(), &mut new, &format!("m{n:02}"), &format!("2026-01-01T00:00:{n:02}Z"));
            live = Some(stored(kind, new));
        }
        let live = live.unwrap();
        let managers = managers(&live);
        assert_eq!((managers.len(), managers[0], managers[9]), (10, "ancient-changes", "m29"));
        let oldest = live["metadata"]["managedFields"][0]["fieldsV1"]["f:data"].as_object().unwrap();
        assert_eq!(oldest.len(), 1 + 30 - 9, "nothing is lost");
    });
}

#[test]
fn what_kubectl_applied_itself_it_may_apply_here() {
    with_kind("ConfigMap", |kind, fields| {
        let mut live = config_map(json!({"a": "1", "b": "1"}));
        let annotation = config_map(json!({"a": "1"})).to_string();
        live["metadata"]["annotations"] =
            json!({"kubectl.kubernetes.io/last-applied-configuration": annotation});
        fields.update(None, &mut live, "kubectl-client-side-apply", T1);
        let live = stored(kind, live);
        let wanted = config_map(json!({"a": "2"}));
        assert!(fields.apply(Some(&live), &wanted, "other", Force::No, T2).is_err());
        let applied = fields.apply(Some(&live), &wanted, "kubectl", Force::No, T2).unwrap();
        assert_eq!(applied["data"], json!({"a": "2", "b": "1"}));
        let text =
            applied["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].as_str();
        assert_eq!(
            serde_json::from_str::<Value>(text.unwrap()).unwrap(),
            wanted,
            "kubectl can go on from it"
        );
        let not_its_own = config_map(json!({"a": "2", "b": "2"}));
        let error = fields.apply(Some(&live), &not_its_own, "kubectl", Force::No, T2).unwrap_err();
        assert!(error.to_string().ends_with("using v1: .data.b"), "{error}");
    });
}

#[test]
fn a_list_of_fifty_thousand_items_is_applied_at_once() {
    with_kind("ConfigMap", |kind, fields| {
        let document = |numbers: &mut dyn Iterator<Item = usize>| {
            let mut object =
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "n"}});
            let finalizers: Vec<String> = numbers.map(|n| format!("example.com/{n}")).collect();
            object["metadata"]["finalizers"] = finalizers.into();
            object
        };
        let live = fields.apply(None, &document(&mut (0..50_000).rev()), "m1", Force::No, T1).unwrap();
        let live = stored(kind, live);
        let wanted = document(&mut (25_000..75_000));
        let applied = fields.apply(Some(&live), &wanted, "m2", Force::No, T2).unwrap();
        assert_eq!(applied["metadata"]["finalizers"].as_array().unwrap().len(), 75_000);
        let fewer = document(&mut (0..10));
        let applied = fields.apply(Some(&applied), &fewer, "m1", Force::No, T2).unwrap();
        assert_eq!(applied["metadata"]["finalizers"].as_array().unwrap().len(), 50_010);
    });
}

#[test]
fn documents_are_read_as_json_and_as_yaml() {
    let read = |text: &str, validation| read(text.as_bytes(), validation);
    assert_eq!(read("a:\n- b: 1\n", FieldValidation::Strict).unwrap().object, json!({"a": [{"b": 1}]}));
    let twice = r#"{"a": 1, "a": 2}"#;
    assert_eq!(read(twice, FieldValidation::Warn).unwrap().warnings, [r#"duplicate field "a""#]);
    assert_eq!(read(twice, FieldValidation::Strict).unwrap_err().code, 400);
    for text in ["", "- a", "{", "text", "a: [", &"[".repeat(100_000)] {
        assert_eq!(
            read(text, FieldValidation::Ignore).unwrap_err().code,
            400,
            "{}",
            &text[..text.len().min(9)]
        );
    }
}

/// Nothing in it is empty: that would be gone once it is read again.
fn deployment() -> impl Strategy<Value = Object> {
    let container =
        (0..3usize, prop::option::of(0..2u8), prop::collection::vec((0..3u16, any::<bool>()), 1..3));
    let containers = prop::collection::vec(container, 1..3);
    (containers, prop::option::of(0..3u8), prop::collection::btree_map("[abc]", "[12]", 1..3)).prop_map(
        |(containers, replicas, labels)| {
            let mut met = std::collections::BTreeSet::new();
            let containers: Vec<Value> = containers
                .into_iter()
                .filter(|(name, ..)| met.insert(*name))
                .map(|(name, image, ports)| {
                    let ports: std::collections::BTreeSet<_> = ports.into_iter().collect();
                    let ports: Vec<Value> = ports
                        .into_iter()
                        .map(|(port, is_udp)| {
                            if is_udp {
                                json!({"containerPort": port + 1, "protocol": "UDP"})
                            } else {
                                json!({"containerPort": port + 1})
                            }
                        })
                        .collect();
                    let mut container = json!({"name": format!("c{name}"), "ports": ports});
                    if let Some(image) = image {
                        container["image"] = format!("i:{image}").into();
                    }
                    container
                })
                .collect();
            let mut spec = json!({"template": {"spec": {"containers": containers}}});
            if let Some(replicas) = replicas {
                spec["replicas"] = replicas.into();
            }
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "d", "namespace": "n", "labels": labels}, "spec": spec,
            })
        },
    )
}

proptest! {
    #[test]
    fn applying_the_same_again_changes_nothing(documents in prop::collection::vec((deployment(), 0..3u8), 1..5)) {
        with_kind("Deployment", |kind, fields| {
            let mut live = None;
            for (document, who) in &documents {
                let who = format!("m{who}");
                let object = fields.apply(live.as_ref(), document, &who, Force::Yes, T1).unwrap();
                let object = stored(kind, object);
                let again = fields.apply(Some(&object), document, &who, Force::No, T2).unwrap();
                assert_eq!(again, object);
                live = Some(object);
            }
        });
    }

    #[test]
    fn what_was_applied_stands_in_the_object(documents in prop::collection::vec((deployment(), 0..3u8), 1..5)) {
        with_kind("Deployment", |kind, fields| {
            let mut live = None;
            for (document, who) in &documents {
                let object = fields.apply(live.as_ref(), document, &format!("m{who}"), Force::Yes, T1).unwrap();
                let said = walk::fields(Type::of_object(&kind.schema.schema, kind.schema.id), document);
                let standing = fields.updater().agreeing(document, &object);
                assert!(said.clone().difference(&standing).is_empty(), "{document} in {object}");
                live = Some(stored(kind, object));
            }
        });
    }
}
