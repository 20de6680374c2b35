//! Upstream's recorded answers, replayed: a second server is not needed, and nothing is left to chance.

use std::collections::BTreeSet;
use std::path::Path;

use skiff_differ::ask::ask;
use skiff_differ::case::Case;
use skiff_differ::compare::{Verdict, compare};
use skiff_differ::sides::Side;
use skiff_differ::{known, objects, record};

const SHOWN: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_requests_are_answered_as_upstream_answered_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded");
    let recorded = record::read(&folder.join("answers.jsonl.gz")).expect("the recorded answers");
    let list = std::fs::read_to_string(folder.join("known.txt")).expect("the list of known differences");
    let known = known::read(&list);
    let subjects = objects::all().expect("the objects");
    let (side, refused) = Side::skiff(&subjects).await.expect("Skiff's API server");
    assert_eq!(refused, Vec::<String>::new(), "objects that upstream accepts");
    let cases: Vec<Case> = recorded.iter().map(|recorded| recorded.case.clone()).collect();
    let answers = ask(&side, &subjects, &cases).await.expect("answers");
    let (mut wrong, mut right, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (recorded, answer) in recorded.iter().zip(&answers) {
        let (id, verdict) = (recorded.case.id(), compare(&recorded.answer, answer));
        match (verdict, known.contains_key(id.as_str())) {
            (Verdict::Same, true) => right.push(id.clone()),
            (Verdict::Same, false) => {}
            (_, true) => {}
            (verdict, false) => wrong.push(format!(
                "{} {}\n  upstream: {} {}\n  skiff:    {} {}",
                verdict.text(),
                recorded.case.text(),
                recorded.answer.code,
                recorded.answer.message,
                answer.code,
                answer.message
            )),
        }
        seen.insert(id);
    }
    let gone: Vec<&str> = known.keys().copied().filter(|id| !seen.contains(*id)).collect();
    assert_eq!(gone, Vec::<&str>::new(), "known differences of no recorded case");
    assert!(right.is_empty(), "these agree now, so take them out of known.txt: {right:?}");
    let shown = wrong.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} of {} differ:\n{shown}", wrong.len(), recorded.len());
}
