//! The query parameters of operations, as far as clients look them up.

use serde_json::{Map, Value, json};

/// In the order of their names: a parameter, its type, and what it does.
const PARAMETERS: [(&str, &str, &str); 11] = [
    ("continue", "string", "Where the server goes on with a list: what it gave out with the chunk before."),
    ("dryRun", "string", "With \"All\" everything is done but the last step: nothing is stored."),
    ("fieldManager", "string", "Who makes the change, for those who ask which field is whose."),
    (
        "fieldSelector",
        "string",
        "Fields and their values, to which the list of returned objects is narrowed.",
    ),
    ("fieldValidation", "string", "What is done with unknown and doubled fields: Ignore, Warn or Strict."),
    ("force", "boolean", "Whether to apply fields that others manage too. They lose them."),
    ("gracePeriodSeconds", "integer", "How many seconds the object has to end by itself; 0 is at once."),
    (
        "labelSelector",
        "string",
        "Labels and their values, to which the list of returned objects is narrowed.",
    ),
    ("limit", "integer", "How many objects a chunk of a list has at most."),
    ("propagationPolicy", "string", "What becomes of the objects' own: Orphan, Background or Foreground."),
    (
        "watch",
        "boolean",
        "Watch for changes to the described resources: they are streamed as they happen, after what there is.",
    ),
];

fn text(name: &str) -> Option<(&'static str, &'static str)> {
    let found = PARAMETERS.iter().find(|(known, ..)| *known == name);
    found.map(|(_, type_, text)| (*type_, *text))
}

/// A parameter of an operation.
pub(super) fn v3(name: &str) -> Value {
    let mut out = json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    if let Some((type_, text)) = text(name) {
        out["description"] = text.into();
        out["schema"]["type"] = type_.into();
    }
    out
}

/// All of them, by name.
pub(super) fn v2() -> Map<String, Value> {
    PARAMETERS
        .iter()
        .map(|(name, type_, text)| {
            let parameter =
                json!({"name": name, "in": "query", "type": type_, "description": text, "uniqueItems": true});
            ((*name).to_owned(), parameter)
        })
        .collect()
}
