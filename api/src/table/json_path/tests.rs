use serde_json::json;

use super::*;

fn cell(path: &str, type_: &str, object: Value) -> Value {
    JsonPath::parse(path).unwrap().cell(type_, &object, 1_000_000_000)
}

#[test]
fn a_condition_is_found_by_its_type() {
    let object = json!({"status": {"conditions": [{"type": "A", "status": "x"}, {"type": "Ready", "status": "True"}]}});
    for path in [
        r#".status.conditions[?(@.type=="Ready")].status"#,
        r#".status.conditions[?(@.type == 'Ready')].status"#,
        ".status.conditions[-1].status",
        ".status['conditions'][1].status",
        ".status.conditions[1:].status",
    ] {
        assert_eq!(cell(path, "string", object.clone()), "True", "{path}");
    }
    assert_eq!(cell(r#".status.conditions[?(@.type=="None")].status"#, "string", object), Value::Null);
}

#[test]
fn a_cell_is_what_its_type_makes_of_a_value() {
    let object = json!({"n": 3, "f": 2.5, "b": true, "s": "text", "l": ["<", 1.0], "t": "2001-09-09T01:44:40Z", "z": null});
    assert_eq!(cell(".n", "integer", object.clone()), 3);
    assert_eq!(cell(".f", "integer", object.clone()), 2);
    assert_eq!(cell(".f", "string", object.clone()), "2.5");
    assert_eq!(cell(".b", "boolean", object.clone()), true);
    assert_eq!(cell(".s", "integer", object.clone()), Value::Null);
    assert_eq!(cell(".l", "string", object.clone()), r#"["\u003c",1]"#);
    assert_eq!(cell(".t", "date", object.clone()), "2m");
    assert_eq!(cell(".s", "date", object.clone()), "<invalid>");
    assert_eq!(cell(".z", "string", object), "<no value>");
}

#[test]
fn endless_work_is_cut_short() {
    assert_eq!(JsonPath::parse(&format!(".{}", "a".repeat(5000))).unwrap_err(), PathError::TooLong);
    let mut deep = json!([1]);
    for _ in 0..100 {
        deep = json!([deep, deep.clone().get(0)]);
        if deep.to_string().len() > 1 << 16 {
            break;
        }
    }
    let path = JsonPath::parse("...*...*...*...*").unwrap();
    let begin = std::time::Instant::now();
    path.find(&deep);
    assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
}
