//! What clients do with the documents of OpenAPI.

use std::sync::Arc;

use serde_json::json;
use skiff_api::kinds::{Kind, Kinds};
use skiff_api::openapi;

#[test]
fn no_operation_has_an_empty_list_of_parameters() {
    let kinds: Vec<Arc<Kind>> = Kinds::builtin().iter().cloned().collect();
    let document = openapi::v3(&kinds, "apps", "v1", &());
    let paths = document["paths"].as_object().expect("paths");
    let operations = paths.values().flat_map(|path| path.as_object().expect("operations"));
    let mut n_without = 0;
    for (verb, operation) in operations {
        assert_ne!(operation.get("parameters"), Some(&json!([])), "{verb} {operation}");
        n_without += usize::from(operation.get("parameters").is_none());
    }
    assert!(n_without > 0, "an operation without parameters, such as get, is among them");
}
