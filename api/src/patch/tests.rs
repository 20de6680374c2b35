use serde_json::json;

use super::*;

fn pod_spec() -> TypeRef {
    TypeRef::builtin("io.k8s.api.core.v1.PodSpec").unwrap()
}

#[track_caller]
fn check(mut object: Value, patch: Value, wanted: Value) {
    strategic(&pod_spec(), &mut object, &patch).unwrap();
    assert_eq!(object, wanted);
}

#[test]
fn containers_merge_by_name() {
    check(
        json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}),
        json!({"containers": [{"name": "b", "image": "z"}, {"name": "c", "image": "w"}]}),
        json!({"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "z"}, {"name": "c", "image": "w"}]}),
    );
}

#[test]
fn a_delete_directive_removes_one_item() {
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b"}]}),
    );
}

#[test]
fn a_replace_directive_replaces_the_list() {
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "c"}, {"$patch": "replace"}]}),
        json!({"containers": [{"name": "c"}]}),
    );
}

#[test]
fn element_order_is_kept_and_strangers_stay_in_front_of_whom_they_were() {
    check(
        json!({"containers": [{"name": "a"}, {"name": "stranger"}, {"name": "b"}]}),
        json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "image": "i"}]}),
        json!({"containers": [{"name": "stranger"}, {"name": "b", "image": "i"}, {"name": "a"}]}),
    );
}

#[test]
fn what_a_patch_adds_comes_before_what_it_does_not_name() {
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "c", "image": "i"}]}),
        json!({"containers": [{"name": "c", "image": "i"}, {"name": "a"}, {"name": "b"}]}),
    );
    check(
        json!({"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}),
        json!({"containers": [{"name": "d"}, {"name": "b", "image": "i"}]}),
        json!({"containers": [{"name": "d"}, {"name": "a"}, {"name": "b", "image": "i"}, {"name": "c"}]}),
    );
}

#[test]
fn retain_keys_drops_the_others() {
    check(
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "emptyDir"], "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
    );
}

#[test]
fn null_removes_a_field_and_maps_merge() {
    check(
        json!({"nodeSelector": {"a": "1", "b": "2"}, "hostname": "h"}),
        json!({"nodeSelector": {"a": null, "c": "3"}, "hostname": null}),
        json!({"nodeSelector": {"b": "2", "c": "3"}}),
    );
}

#[test]
fn lists_without_a_merge_key_are_replaced_and_sets_are_joined() {
    let schema = TypeRef::builtin("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap();
    let mut meta = json!({"finalizers": ["a", "b"]});
    strategic(&schema, &mut meta, &json!({"finalizers": ["b", "c"]})).unwrap();
    assert_eq!(meta, json!({"finalizers": ["a", "b", "c"]}));
    strategic(&schema, &mut meta, &json!({"$deleteFromPrimitiveList/finalizers": ["a"]})).unwrap();
    assert_eq!(meta, json!({"finalizers": ["b", "c"]}));
    check(
        json!({"containers": [{"name": "a", "args": ["1", "2"]}]}),
        json!({"containers": [{"name": "a", "args": ["3"]}]}),
        json!({"containers": [{"name": "a", "args": ["3"]}]}),
    );
}

#[test]
fn an_item_without_its_merge_key_is_a_bad_request() {
    let error =
        strategic(&pod_spec(), &mut json!({"containers": []}), &json!({"containers": [{"image": "x"}]}));
    assert_eq!(error.unwrap_err().code, 400);
}

#[test]
fn a_failed_json_patch_leaves_an_invalid_status() {
    let mut object = json!({"a": 1});
    json(&mut object, &json!([{"op": "replace", "path": "/a", "value": 2}])).unwrap();
    assert_eq!(object["a"], 2);
    assert_eq!(json(&mut object, &json!([{"op": "test", "path": "/a", "value": 9}])).unwrap_err().code, 422);
    assert_eq!(json(&mut object, &json!({"op": "x"})).unwrap_err().code, 400);
}
