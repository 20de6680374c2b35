//! What ginkgo's report says: a table by SIG, lists of names, and a folder for each failure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::suite::LOG;

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// What a run came to.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) tests: Vec<Test>,
    /// Selected, and left out because the time was over: ginkgo does not name them.
    pub(super) n_not_ended: usize,
}

#[derive(Debug)]
pub(super) struct Test {
    pub(super) name: String,
    pub(super) outcome: Outcome,
    seconds: f64,
    /// Why it failed or was skipped.
    pub(super) message: String,
    place: String,
    output: String,
    start: String,
    end: String,
}

#[derive(Default, Debug, Clone, Copy)]
pub(super) struct Count {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    seconds: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<Spec>>,
    #[serde(default)]
    pre_run_stats: Stats,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Stats {
    specs_that_will_run: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    start_time: String,
    end_time: String,
    /// Nanoseconds.
    run_time: u64,
    failure: Failure,
    spec_events: Option<Vec<Event>>,
    captured_ginkgo_writer_output: String,
    captured_std_out_err: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Failure {
    message: String,
    location: Location,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Location {
    file_name: String,
    line_number: u64,
}

/// A step that the test announced.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Event {
    spec_event_type: String,
    message: String,
    timeline_location: TimelineLocation,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct TimelineLocation {
    time: String,
}

const LOG_TAIL_LINES: usize = 40;
/// `2026-01-02T03:04:05`: what the times of ginkgo and of the server have in common.
const SECOND_CHARS: usize = 19;
const MAX_SLUG_CHARS: usize = 80;

/// Reads the reports of a run; fails if the suite did not get as far as its tests.
pub(super) fn read(results: &Path, reports: &[PathBuf]) -> Result<Report> {
    let (mut tests, mut n_not_ended) = (Vec::new(), 0);
    for report in reports {
        let Ok(bytes) = fs::read(report) else {
            bail!("the suite wrote no report; the end of its log:\n{}", log_tail(results));
        };
        let part = parse(&bytes)?;
        tests.extend(part.tests);
        n_not_ended += part.n_not_ended;
    }
    sort(&mut tests);
    if tests.is_empty() {
        bail!("no test ran; the end of the suite's log:\n{}", log_tail(results));
    }
    Ok(Report { tests, n_not_ended })
}

fn log_tail(results: &Path) -> String {
    let text = fs::read(results.join(LOG)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

pub(super) fn parse(bytes: &[u8]) -> Result<Report> {
    let suites: Vec<Suite> = serde_json::from_slice(bytes).context("reading ginkgo's report")?;
    let n_selected: usize = suites.iter().map(|suite| suite.pre_run_stats.specs_that_will_run).sum();
    let mut tests = Vec::new();
    for spec in suites.into_iter().flat_map(|suite| suite.spec_reports.unwrap_or_default()) {
        if spec.leaf_node_type != "It" {
            if !matches!(spec.state.as_str(), "passed" | "skipped") {
                bail!("{} {}: {}", spec.leaf_node_type, spec.state, spec.failure.message);
            }
            continue;
        }
        // What was not selected is "skipped" without a word why.
        if matches!(spec.state.as_str(), "skipped" | "pending") && spec.failure.message.is_empty() {
            continue;
        }
        tests.push(spec.into());
    }
    sort(&mut tests);
    let n_not_ended = n_selected.saturating_sub(tests.len());
    Ok(Report { tests, n_not_ended })
}

fn sort(tests: &mut [Test]) {
    tests.sort_by(|a, b| a.name.cmp(&b.name));
}

impl From<Spec> for Test {
    fn from(spec: Spec) -> Test {
        let steps = spec.spec_events.unwrap_or_default().into_iter();
        let steps = steps.filter(|event| event.spec_event_type == "By" && !event.message.is_empty());
        let steps: String =
            steps.map(|event| format!("{} {}\n", event.timeline_location.time, event.message)).collect();
        let mut name = spec.container_hierarchy_texts.unwrap_or_default();
        name.push(spec.leaf_node_text);
        Test {
            name: name.join(" "),
            outcome: match spec.state.as_str() {
                "passed" => Outcome::Passed,
                "skipped" => Outcome::Skipped,
                _ => Outcome::Failed,
            },
            seconds: spec.run_time as f64 / 1e9,
            message: spec.failure.message,
            place: format!("{}:{}", spec.failure.location.file_name, spec.failure.location.line_number),
            output: format!("{steps}\n{}{}", spec.captured_ginkgo_writer_output, spec.captured_std_out_err),
            start: spec.start_time,
            end: spec.end_time,
        }
    }
}

impl Test {
    fn sig(&self) -> &str {
        let rest = self.name.strip_prefix("[sig-").unwrap_or("other]");
        rest.split(']').next().unwrap_or_default()
    }
}

pub(super) fn by_sig(tests: &[Test]) -> BTreeMap<String, Count> {
    let mut rows: BTreeMap<String, Count> = BTreeMap::new();
    for test in tests {
        let count = rows.entry(test.sig().to_owned()).or_default();
        match test.outcome {
            Outcome::Passed => count.passed += 1,
            Outcome::Failed => count.failed += 1,
            Outcome::Skipped => count.skipped += 1,
        }
        count.seconds += test.seconds;
    }
    rows
}

/// The counts of all, and the table.
pub(super) fn table(rows: &BTreeMap<String, Count>) -> Result<(Count, String)> {
    let mut all = Count::default();
    let mut out = String::new();
    writeln!(out, "{:<20}{:>8}{:>8}{:>8}{:>10}", "SIG", "passed", "failed", "skipped", "seconds")?;
    for (sig, row) in rows {
        writeln!(out, "{sig:<20}{:>8}{:>8}{:>8}{:>10.0}", row.passed, row.failed, row.skipped, row.seconds)?;
        all.passed += row.passed;
        all.failed += row.failed;
        all.skipped += row.skipped;
    }
    Ok((all, out))
}

/// Beside what has passed before: what fails now, and what passes for the first time.
pub(super) fn beside<'a>(tests: &'a [Test], passing: &[String]) -> (Vec<&'a str>, Vec<&'a str>) {
    let known: BTreeSet<&str> = passing.iter().map(String::as_str).collect();
    let of = |outcome, is_known| {
        let tests = tests.iter().filter(move |t| t.outcome == outcome);
        let names = tests.map(|t| t.name.as_str());
        names.filter(|name| known.contains(name) == is_known).collect()
    };
    (of(Outcome::Failed, true), of(Outcome::Passed, false))
}

/// The names of `wanted` that no test has.
pub(super) fn missing<'a>(wanted: &'a [String], tests: &[Test]) -> Vec<&'a str> {
    let ran: BTreeSet<&str> = tests.iter().map(|test| test.name.as_str()).collect();
    wanted.iter().map(String::as_str).filter(|name| !ran.contains(name)).collect()
}

/// `results.tsv`, `passed.txt`, `failed.txt`, and for each failure its log and those of the cluster's processes of that time.
pub(super) fn write(results: &Path, tests: &[Test], logs: &[(String, String)]) -> Result<()> {
    let put = |path: &Path, text: &str| {
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    };
    let mut rows = String::new();
    for test in tests {
        let message = test.message.split_whitespace().collect::<Vec<_>>().join(" ");
        writeln!(rows, "{:?}\t{:.1}\t{}\t{message}", test.outcome, test.seconds, test.name)?;
    }
    put(&results.join("results.tsv"), &rows)?;
    for (file, outcome) in [("passed.txt", Outcome::Passed), ("failed.txt", Outcome::Failed)] {
        let names = tests.iter().filter(|test| test.outcome == outcome);
        put(&results.join(file), &names.map(|test| format!("{}\n", test.name)).collect::<String>())?;
    }
    let failed = tests.iter().filter(|test| test.outcome == Outcome::Failed);
    for (number, test) in failed.enumerate() {
        let folder = results.join("failures").join(format!("{:03}-{}", number + 1, slug(&test.name)));
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let text = format!("{}\n\n{}\n{}\n\n{}", test.name, test.place, test.message, test.output);
        put(&folder.join("test.log"), &text)?;
        for (name, log) in logs {
            put(&folder.join(name), &window(log, &test.start, &test.end))?;
        }
    }
    Ok(())
}

fn slug(name: &str) -> String {
    let name = name.trim_end_matches(" [Conformance]").to_lowercase();
    let words: Vec<&str> =
        name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.join("-").chars().take(MAX_SLUG_CHARS).collect()
}

/// The lines of a log from one time to another. A line without a time belongs to the one before it.
fn window(log: &str, start: &str, end: &str) -> String {
    let second = |time: &str| time.get(..SECOND_CHARS).map(str::to_owned);
    let (Some(start), Some(end)) = (second(start), second(end)) else { return String::new() };
    let mut within = false;
    let mut out = String::new();
    for line in log.lines() {
        if let Some(time) = second(line).filter(|time| is_time(time)) {
            within = start <= time && time <= end;
        }
        if within {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

fn is_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_digit) && bytes.get(10) == Some(&b'T')
}

#[cfg(test)]
mod tests {
    use super::{Outcome, Report, beside, by_sig, missing, parse, slug, table, window};

    const REPORT: &str = r#"[{"PreRunStats": {"TotalSpecs": 9, "SpecsThatWillRun": 5}, "SpecReports": [
        {"LeafNodeType": "SynchronizedBeforeSuite", "State": "passed"},
        {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeText": "run", "State": "passed",
         "RunTime": 1500000000},
        {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeText": "left out",
         "State": "skipped"},
        {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-apps] Jobs"], "LeafNodeText": "hang",
         "State": "timedout", "Failure": {"Message": "too long"}},
        {"LeafNodeType": "It", "ContainerHierarchyTexts": null, "LeafNodeText": "nobody's", "State": "skipped",
         "Failure": {"Message": "needs two nodes"}}
    ]}]"#;

    #[test]
    fn what_was_not_selected_is_not_counted_and_what_timed_out_failed() {
        let Report { tests, n_not_ended } = parse(REPORT.as_bytes()).unwrap();
        assert_eq!(n_not_ended, 2);
        let names: Vec<(&str, Outcome)> = tests.iter().map(|t| (t.name.as_str(), t.outcome)).collect();
        let expected = [
            ("[sig-apps] Jobs hang", Outcome::Failed),
            ("[sig-node] Pods run", Outcome::Passed),
            ("nobody's", Outcome::Skipped),
        ];
        assert_eq!(names, expected);
        let (all, text) = table(&by_sig(&tests)).unwrap();
        assert_eq!((all.passed, all.failed, all.skipped), (1, 1, 1));
        assert!(text.contains("node                       1       0       0         2\n"), "{text}");
        assert_eq!(missing(&["nobody's".to_owned(), "no such".to_owned()], &tests), ["no such"]);
        let passing = ["[sig-apps] Jobs hang".to_owned()];
        assert_eq!(beside(&tests, &passing), (vec!["[sig-apps] Jobs hang"], vec!["[sig-node] Pods run"]));
    }

    #[test]
    fn a_suite_that_cannot_start_is_an_error_and_not_zero_failures() {
        let report = r#"[{"SpecReports": [{"LeafNodeType": "SynchronizedBeforeSuite", "State": "failed",
            "Failure": {"Message": "no nodes"}}]}]"#;
        let error = parse(report.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "SynchronizedBeforeSuite failed: no nodes");
    }

    #[test]
    fn a_failure_has_the_servers_lines_of_its_time() {
        let log =
            "2026-01-02T03:04:05.1Z a\n2026-01-02T03:04:06.1Z b\n  and more\n2026-01-02T03:04:08.1Z c\n";
        let part = window(log, "2026-01-02T03:04:06.9Z", "2026-01-02T03:04:07.0Z");
        assert_eq!(part, "2026-01-02T03:04:06.1Z b\n  and more\n");
        assert_eq!(window(log, "", ""), "");
    }

    #[test]
    fn a_folder_is_named_after_its_test() {
        assert_eq!(slug("[sig-node] Pods should: run [Conformance]"), "sig-node-pods-should-run");
    }
}
