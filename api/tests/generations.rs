//! Which kinds count generations: those of whose objects upstream's API server does (`rows.jsonl.gz`: objects as it stored them).

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::Value;
use skiff_api::Kinds;
use skiff_api::kinds::Generation;

#[test]
fn generations_are_counted_of_the_kinds_of_which_upstream_counts_them() {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("../src/table/rows.jsonl.gz");
    GzDecoder::new(packed).read_to_string(&mut text).expect("a gzipped file");
    let (kinds, mut n_counted, mut wrong) = (Kinds::builtin(), 0, Vec::new());
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let (version, name) = line["of"].as_str().and_then(|of| of.split_once(' ')).expect("a kind");
        let kind =
            kinds.iter().find(|kind| kind.kind == name && kind.api_version() == version).expect("is known");
        let object = &line["object"];
        // Of some kinds the objects here have been changed since they were made, which counts from none.
        let counts = match kind.traits.generation {
            Generation::None | Generation::Changes => false,
            Generation::Spec => !object["spec"].is_null(),
            Generation::One | Generation::Content => true,
        };
        // The rows were recorded of v1.36. Since v1.37 (`HPAGeneration`) autoscalers are counted, too.
        let wanted = !object["metadata"]["generation"].is_null() || name == "HorizontalPodAutoscaler";
        n_counted += usize::from(wanted);
        if counts != wanted {
            wrong.push(format!("{version} {name}: {counts}, upstream {wanted}"));
        }
    }
    assert!(n_counted > 20, "{n_counted}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
