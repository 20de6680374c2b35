//! Judgements against those of upstream's plug-in: `validate.jsonl.gz`, which `xtask/policies` records.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use skiff_policy::{Caller, Policies};
use skiff_webhook::admission::Record;

use crate::world::{Gadgets, Given, Request, Stored, shown, unpacked};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    policies: Vec<Value>,
    bindings: Vec<Value>,
    namespaces: Option<Vec<Value>>,
    params: Vec<Value>,
    attributes: Given,
    error: Option<Value>,
    annotations: BTreeMap<String, String>,
    warnings: Vec<String>,
}

/// Cases that are judged otherwise, and why.
const KNOWN: &[(&str, &str)] = &[
    (
        "an expression 29: variables.worse == 1",
        "upstream's words for a wrong expression show a blank more of it",
    ),
    (
        "an expression 44: variables == variables",
        "variables are made one by one; all of them together are no value",
    ),
];

/// What came of a case: the error as it would be sent, and the record.
async fn run(case: &Case) -> (Option<Value>, Record) {
    let request = Request::new(&case.attributes);
    let attributes = request.attributes(&case.attributes, case.namespaces.as_deref().unwrap_or_default());
    let stored = Stored(&case.params);
    let caller = Caller { host: &Gadgets, params: &stored };
    let policies = Policies::compile(&case.policies, &case.bindings, None);
    let mut record = Record::default();
    let result = policies.validate(caller, &attributes, &mut record).await;
    let error = result.err().map(|status| shown(&status));
    (error, record)
}

#[tokio::test]
async fn policies_judge_as_upstreams_do() {
    let lines = unpacked(include_bytes!("validate.jsonl.gz"));
    let (mut faults, mut n_cases, mut n_known) = (Vec::new(), 0, 0);
    for line in lines.lines() {
        let case: Case = serde_json::from_str(line).expect(line);
        let (error, record) = run(&case).await;
        let annotations: BTreeMap<String, String> =
            record.annotations.into_iter().map(|(key, (_, value))| (key, value)).collect();
        let found = json!([error, annotations, record.warnings]);
        let wanted = json!([case.error, case.annotations, case.warnings]);
        n_cases += 1;
        if KNOWN.iter().any(|(name, _)| *name == case.name) {
            assert_ne!(found, wanted, "{} is the same by now", case.name);
            n_known += 1;
        } else if found != wanted {
            faults.push(format!("{}\n   found {found}\n  wanted {wanted}", case.name));
        }
    }
    assert!(faults.is_empty(), "{} of {n_cases}:\n{}", faults.len(), faults.join("\n"));
    assert!(n_cases > 900, "{n_cases}");
    assert_eq!(n_known, KNOWN.len());
}
