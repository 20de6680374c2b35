//! The order of fields in JSON, against documents that upstream's own encoder wrote (`golden.jsonl.gz`).

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::Value;
use skiff_api::{Kinds, encode};

#[test]
fn every_object_is_written_in_the_order_of_upstreams_types() {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("golden.jsonl.gz");
    GzDecoder::new(packed).read_to_string(&mut text).expect("a gzipped file");
    let kinds = Kinds::builtin();
    let (mut n_compared, mut wrong) = (0, Vec::new());
    for line in text.lines() {
        let (wanted, _) = line.split_once('\t').expect("two columns");
        let document: Value = serde_json::from_str(wanted).expect("JSON");
        let kind = document["kind"].as_str().expect("a kind");
        let is_known = kinds
            .iter()
            .any(|known| known.kind == kind && document["apiVersion"] == known.api_version().as_str());
        if !is_known && kind != "Status" {
            continue;
        }
        n_compared += 1;
        let written = String::from_utf8(encode::json(&document)).expect("text");
        if written.trim_end() != wanted {
            let at = written.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
            let around = |text: &str| text.chars().skip(at.saturating_sub(40)).take(100).collect::<String>();
            wrong.push(format!("{kind}: {}\n  upstream: {}", around(&written), around(wanted)));
        }
    }
    assert!(n_compared > 130, "{n_compared}");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
