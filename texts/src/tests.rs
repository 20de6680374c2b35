use skiff_api::openapi::Texts as _;
use skiff_api::schema::Schema;

use super::*;
use crate::described::{self, Described};

/// The fields of built-in types that have a text, of all. Upstream has none for the others, which are those of JSON
/// schemas and of metadata all but a few: lower neither.
const FIELDS_WITH_TEXTS: f64 = 0.979;
/// What the texts may add to the program.
const MAX_PACKED_BYTES: usize = 172_000;

#[test]
fn nearly_every_field_of_a_built_in_type_has_a_text() {
    let reader = Reader::default();
    let fields: Vec<(&str, &str)> = Schema::builtin()
        .types()
        .flat_map(|type_| type_.fields.iter().map(|field| (&*type_.name, &*field.name)))
        .collect();
    let without: Vec<_> = fields.iter().filter(|(of, field)| reader.of_field(of, field).is_none()).collect();
    let share = 1.0 - without.len() as f64 / fields.len() as f64;
    println!("{} of {} fields have no text ({:.2} % have one)", without.len(), fields.len(), 100.0 * share);
    assert!(share >= FIELDS_WITH_TEXTS, "{share}: {without:?}");
    let without = Schema::builtin().types().filter(|type_| reader.of_type(&type_.name).is_none());
    let without: Vec<&str> = without.map(|type_| type_.short_name()).collect();
    // Upstream's document does not have them.
    assert_eq!(without, ["PartialObjectMetadata", "PartialObjectMetadataList"]);
}

#[test]
fn the_texts_are_small() {
    println!("{} bytes", packed_bytes());
    assert!(packed_bytes() <= MAX_PACKED_BYTES, "{}", packed_bytes());
}

#[test]
fn only_the_package_that_is_asked_for_is_unpacked() {
    let reader = Reader::default();
    assert_eq!(reader.of_type("io.k8s.api.none.v1.None"), None);
    assert_eq!(reader.of_type("none"), None);
    assert!(reader.open.borrow().is_empty());
    assert!(
        reader.of_type("io.k8s.api.apps.v1.Deployment").is_some_and(|text| text.starts_with("Deployment "))
    );
    assert_eq!(reader.of_field("io.k8s.api.apps.v1.Deployment", "none"), None);
    assert_eq!(reader.of_type("io.k8s.api.apps.v1.None"), None);
    assert_eq!(reader.open.borrow().keys().collect::<Vec<_>>(), [&"io.k8s.api.apps.v1"]);
}

#[test]
fn a_type_is_read_from_its_json_schema() {
    let source = r#"
/// Escaped \[for rustdoc\].
impl crate::schemars::JsonSchema for Thing {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "io.example.v1.Thing".into()
    }

    fn json_schema(__gen: &mut crate::schemars::SchemaGenerator) -> crate::schemars::Schema {
        crate::schemars::json_schema!({
            "description": "A thing.\n\n\t\"quoted\" \\ [plain]",
            "type": "object",
            "properties": {
                "bare": {
                    "type": "string",
                },
                "description": {
                    "description": "Of the field that is named so.",
                    "type": "string",
                },
                "spec": ({
                    let mut schema_obj = __gen.subschema_for::<crate::Spec>();
                    schema_obj.ensure_object().insert("description".into(), "What is wanted.".into());
                    schema_obj
                }),
                "list": {
                    "description": "Several.",
                    "items": {
                        "description": "Not of the field.",
                    },
                },
            },
            "required": [
                "spec",
            ],
        })
"#;
    let field = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let expected = Described {
        name: "io.example.v1.Thing".to_owned(),
        text: "A thing.\n\n\t\"quoted\" \\ [plain]".to_owned(),
        fields: vec![
            field("description", "Of the field that is named so."),
            field("spec", "What is wanted."),
            field("list", "Several."),
        ],
    };
    assert_eq!(described::read(source), Ok(Some(expected)));
    assert_eq!(described::read("pub struct Nothing;"), Ok(None));
    let unknown = source.replace("\\n", "\\u{a}");
    assert!(described::read(&unknown).is_err_and(|fault| fault.contains("an unknown escape")));
}
