//! Agreement by kind and class, the differences, and the page.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::case::{Case, Scope};
use crate::compare::{Verdict, compare};

/// One case with both answers.
pub struct Judged {
    pub case: Case,
    pub kind: String,
    pub upstream: Answer,
    pub skiff: Answer,
    pub verdict: Verdict,
}

impl Judged {
    pub fn new(case: Case, kind: String, upstream: Answer, skiff: Answer) -> Judged {
        let verdict = compare(&upstream, &skiff);
        Judged { case, kind, upstream, skiff, verdict }
    }

    /// One line of the file of differences.
    pub fn to_json(&self) -> Value {
        json!({
            "verdict": self.verdict.text(), "text": self.case.text(), "case": self.case,
            "upstream": self.upstream, "skiff": self.skiff,
        })
    }
}

#[derive(Clone, Copy, Default)]
pub struct Tally {
    pub refused: usize,
    pub refused_here_too: usize,
    pub refused_alike: usize,
    pub accepted: usize,
    pub accepted_here_too: usize,
    pub objects_equal: usize,
    pub warnings_differ: usize,
}

impl Tally {
    fn add(&mut self, judged: &Judged) {
        let is = |verdict| usize::from(judged.verdict == verdict);
        if judged.upstream.is_accepted() {
            self.accepted += 1;
            self.accepted_here_too += 1 - is(Verdict::Refused);
            self.objects_equal += is(Verdict::Same) + is(Verdict::Warnings);
            self.warnings_differ += is(Verdict::Warnings);
        } else {
            self.refused += 1;
            self.refused_here_too += 1 - is(Verdict::Accepted);
            self.refused_alike += is(Verdict::Same);
        }
    }
}

pub struct Report {
    /// By kind and scope, as tables call them.
    pub kinds: BTreeMap<String, Tally>,
    pub totals: BTreeMap<Scope, Tally>,
}

impl Report {
    pub fn of(all: &[Judged]) -> Report {
        let mut report = Report { kinds: BTreeMap::new(), totals: BTreeMap::new() };
        for judged in all {
            let scope = judged.case.scope;
            report.kinds.entry(format!("{}{}", judged.kind, scope.text())).or_default().add(judged);
            report.totals.entry(scope).or_default().add(judged);
        }
        report
    }

    /// The table, as Markdown that reads well as it is.
    pub fn table(&self) -> String {
        let mut out = String::from(
            "| kind | refused by upstream | refused here too | for the same | accepted by upstream | accepted here too | stored alike | warnings differ |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        let rows = self.kinds.iter().map(|(kind, tally)| (kind.clone(), tally));
        let totals = self.totals.iter().map(|(scope, tally)| (format!("all{}", scope.text()), tally));
        for (kind, t) in rows.chain(totals) {
            let _ = writeln!(
                out,
                "| {kind} | {} | {} | {} | {} | {} | {} | {} |",
                t.refused,
                share(t.refused_here_too, t.refused),
                share(t.refused_alike, t.refused),
                t.accepted,
                share(t.accepted_here_too, t.accepted),
                share(t.objects_equal, t.accepted),
                t.warnings_differ,
            );
        }
        out
    }
}

fn share(part: usize, of: usize) -> String {
    if of == 0 { "–".into() } else { format!("{:.1} %", 100.0 * part as f64 / of as f64) }
}

/// Differences of one sort, the most frequent first: kind, verdict, what upstream and Skiff said, how often, an example.
pub fn sorts(all: &[Judged]) -> Vec<(usize, String, String)> {
    let mut groups: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for judged in all.iter().filter(|judged| judged.verdict != Verdict::Same) {
        let key = sort(judged);
        let words =
            if judged.upstream.is_accepted() { &judged.skiff.message } else { &judged.upstream.message };
        let words: String = words.chars().take(220).collect();
        let group = groups.entry(key).or_insert_with(|| (0, format!("{} -> {words}", judged.case.text())));
        group.0 += 1;
    }
    let mut sorted: Vec<(usize, String, String)> =
        groups.into_iter().map(|(key, (count, example))| (count, key, example)).collect();
    sorted.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    sorted
}

/// Of which sort a difference is: verdict, kind, what upstream said and what Skiff did.
pub fn sort(judged: &Judged) -> String {
    let said = |answer: &Answer| {
        let field = |(field, why): &(String, String)| {
            format!("{} {}", general(field), why.trim_start_matches("FieldValue"))
        };
        let fields: Vec<String> = answer.causes.iter().map(field).collect();
        format!("{} {} [{}]", answer.code, answer.reason, fields.join(", "))
    };
    let what = match judged.verdict {
        Verdict::Object => differences(&judged.upstream.object, &judged.skiff.object),
        Verdict::Warnings => format!("{:?} / {:?}", judged.upstream.warnings, judged.skiff.warnings),
        _ => format!("{} / {}", said(&judged.upstream), said(&judged.skiff)),
    };
    format!("{} | {}{} | {what}", judged.verdict.text(), judged.kind, judged.case.scope.text())
}

/// A field's path without its indexes and keys.
fn general(field: &str) -> String {
    let (mut out, mut depth) = (String::new(), 0_usize);
    for c in field.chars() {
        match c {
            '[' => {
                depth += 1;
                if depth == 1 {
                    out.push_str("[]");
                }
            }
            ']' => depth = depth.saturating_sub(1),
            c if depth == 0 => out.push(c),
            _ => {}
        }
    }
    out
}

/// The first few places where two objects differ.
fn differences(upstream: &Value, skiff: &Value) -> String {
    let mut found = Vec::new();
    difference("", upstream, skiff, &mut found);
    found.join(", ")
}

const MOST_DIFFERENCES: usize = 3;

fn difference(path: &str, upstream: &Value, skiff: &Value, found: &mut Vec<String>) {
    if upstream == skiff || found.len() == MOST_DIFFERENCES {
        return;
    }
    match (upstream, skiff) {
        (Value::Object(a), Value::Object(b)) => {
            let missing = b.keys().filter(|key| !a.contains_key(*key));
            for key in a.keys().chain(missing) {
                let path = format!("{path}.{key}");
                match (a.get(key), b.get(key)) {
                    (Some(left), Some(right)) => difference(&path, left, right, found),
                    (left, right) if found.len() < MOST_DIFFERENCES => {
                        found.push(format!("{path}: {} / {}", brief(left), brief(right)));
                    }
                    _ => {}
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).for_each(|(a, b)| difference(&format!("{path}[]"), a, b, found));
        }
        (a, b) => found.push(format!("{path}: {} / {}", brief(Some(a)), brief(Some(b)))),
    }
}

fn brief(value: Option<&Value>) -> String {
    value.map_or("none".into(), |value| value.to_string().chars().take(60).collect())
}
