//! The texts beside those that upstream publishes with its own sources.
//!
//! `cargo xtask test` names the document in `SKIFF_TEST_SWAGGER`; without that nothing is compared.

use serde_json::Value;
use skiff_api::openapi::Texts as _;
use skiff_api::schema::Schema;
use skiff_texts::Reader;

#[test]
fn every_text_is_what_upstream_publishes() {
    let Some(path) = std::env::var_os("SKIFF_TEST_SWAGGER") else {
        println!("SKIFF_TEST_SWAGGER names no document of upstream: nothing is compared");
        return;
    };
    let text = std::fs::read(path).expect("upstream's document");
    let document: Value = serde_json::from_slice(&text).expect("JSON");
    let reader = Reader::default();
    let (mut n_compared, mut differ) = (0, Vec::new());
    let mut compare = |ours: Option<String>, theirs: &Value, whose: String| {
        n_compared += 1;
        if ours.as_deref() != theirs["description"].as_str() {
            differ.push(whose);
        }
    };
    for type_ in Schema::builtin().types() {
        // What upstream's document leaves out nobody can compare.
        let Some(theirs) = document["definitions"].get(&*type_.name) else { continue };
        compare(reader.of_type(&type_.name), theirs, type_.name.to_string());
        for field in &type_.fields {
            let ours = reader.of_field(&type_.name, &field.name);
            compare(ours, &theirs["properties"][&*field.name], format!("{}.{}", type_.name, field.name));
        }
    }
    println!("{n_compared} texts compared");
    assert!(n_compared > 2_000, "{n_compared}");
    assert!(differ.is_empty(), "{differ:#?}");
}
