//! Printer columns of custom resources against upstream's table convertor: `columns.jsonl.gz` holds what it shows for many paths.
//! `xtask/definitions` makes it anew.

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::Value;
use skiff_api::table::JsonPath;

const TYPES: [&str; 5] = ["string", "integer", "number", "boolean", "date"];
/// When the times in the objects are as many years ago as they were when they were recorded.
const NOW_S: i64 = 1_796_000_000;

/// Known to be otherwise: the bytes of texts.
fn is_left_out(path: &str) -> bool {
    path.ends_with(".name.*")
}

#[test]
fn columns_show_what_upstream_shows() {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("columns.jsonl.gz");
    GzDecoder::new(packed).read_to_string(&mut text).expect("a gzipped file");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let objects: Vec<&Value> = lines.iter().filter_map(|line| line.get("object")).collect();
    let (mut all, mut left_out, mut different) = (0, 0, Vec::new());
    for line in lines.iter().filter(|line| line["object"].is_null()) {
        all += 1;
        let path = line["path"].as_str().expect("a path");
        let made = match JsonPath::parse(path) {
            Err(_) => Value::Null,
            Ok(parsed) => objects
                .iter()
                .map(|object| {
                    TYPES.map(|type_| parsed.cell(type_, object, NOW_S)).into_iter().collect::<Value>()
                })
                .collect(),
        };
        if made == line["cells"] {
            continue;
        }
        if is_left_out(path) {
            left_out += 1;
        } else {
            different.push(format!("{path:?}: {made}\n  upstream {}", line["cells"]));
        }
    }
    assert!(all > 5000, "{all} paths");
    assert_eq!(left_out, 2, "as many are otherwise on purpose");
    assert!(
        different.is_empty(),
        "{} of {all} differ:\n{}",
        different.len(),
        different[..different.len().min(40)].join("\n")
    );
}
