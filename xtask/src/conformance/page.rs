//! `docs/conformance.md` and `docs/conformance-beyond.md`: what the last whole run came to, with its failures by cause.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::report::{Count, Outcome, Report, Test};
use super::set::Set;

/// Why tests fail, as people have found out: `part of the names<TAB>cause`, the first that fits.
pub(super) struct Causes(Vec<(String, String)>);

const MAX_REASON_CHARS: usize = 100;
const UNKNOWN: &str = "not looked into yet";

impl Causes {
    pub(super) fn read(path: &Path) -> Result<Causes> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let parse = |line: &str| match line.split_once('\t') {
            Some((part, cause)) => Ok((part.to_owned(), cause.to_owned())),
            None => bail!("{}: no tab in the line {line:?}", path.display()),
        };
        Ok(Causes(lines.map(parse).collect::<Result<_>>()?))
    }

    fn of(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(part, _)| name.contains(part.as_str()));
        found.map_or(UNKNOWN, |(_, cause)| cause.as_str())
    }
}

/// What a run was of.
pub(super) struct Run<'a> {
    pub(super) set: &'a Set,
    pub(super) date: &'a str,
    pub(super) commit: &'a str,
    pub(super) kubernetes: &'a str,
    pub(super) n_nodes: u8,
}

pub(super) fn page(
    run: &Run<'_>,
    report: &Report,
    rows: &BTreeMap<String, Count>,
    causes: &Causes,
    vacuous: &[String],
) -> Result<String> {
    let tests = &report.tests;
    let mut out = String::new();
    let Run { set, date, commit, kubernetes, n_nodes } = run;
    writeln!(out, "# {}\n", set.title)?;
    writeln!(
        out,
        "Written by `{}` on {date}, at commit {commit}: {} (k8s.io/kubernetes {kubernetes})\n\
         against a cluster of {n_nodes} nodes. {}\n",
        set.command, set.what, set.note
    )?;
    let of = |outcome| tests.iter().filter(move |t| t.outcome == outcome);
    let (passed, failed) = (of(Outcome::Passed).count(), of(Outcome::Failed).count());
    writeln!(out, "**{passed} passed, {failed} failed, {} skipped.**\n", of(Outcome::Skipped).count())?;
    if report.n_not_ended > 0 {
        writeln!(
            out,
            "{} more had not ended when the run's time was over, and are not counted.\n",
            report.n_not_ended
        )?;
    }
    let vacuous: Vec<&Test> = of(Outcome::Passed).filter(|t| vacuous.contains(&t.name)).collect();
    if !vacuous.is_empty() {
        writeln!(
            out,
            "Of those that passed, {} say nothing: they return if what they are about is not served.\n",
            vacuous.len()
        )?;
        list(&mut out, &vacuous)?;
        writeln!(out)?;
    }
    writeln!(out, "| SIG | passed | failed | skipped |\n|---|--:|--:|--:|")?;
    for (sig, row) in rows {
        writeln!(out, "| {sig} | {} | {} | {} |", row.passed, row.failed, row.skipped)?;
    }
    let by_cause = groups(of(Outcome::Failed), |test| causes.of(&test.name).to_owned());
    section(&mut out, "What the others wait for", "cause", &by_cause)?;
    let by_reason = groups(of(Outcome::Skipped), |test| first_line(&test.message));
    if !by_reason.is_empty() {
        section(&mut out, "What upstream's tests skip by themselves", "reason", &by_reason)?;
    }
    Ok(out)
}

/// Tests by what they have in common, most first.
fn groups<'t>(
    tests: impl Iterator<Item = &'t Test>,
    key: impl Fn(&Test) -> String,
) -> Vec<(String, Vec<&'t Test>)> {
    let mut groups: BTreeMap<String, Vec<&Test>> = BTreeMap::new();
    for test in tests {
        groups.entry(key(test)).or_default().push(test);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, tests)| std::cmp::Reverse(tests.len()));
    groups
}

/// A table of how many, and then which.
fn section(out: &mut String, title: &str, of: &str, groups: &[(String, Vec<&Test>)]) -> Result<()> {
    writeln!(out, "\n## {title}\n\n| {of} | tests |\n|---|--:|")?;
    for (name, tests) in groups {
        writeln!(out, "| {} | {} |", name.replace('|', "\\|"), tests.len())?;
    }
    for (name, tests) in groups {
        writeln!(out, "\n### {name}\n")?;
        list(out, tests)?;
    }
    Ok(())
}

fn list(out: &mut String, tests: &[&Test]) -> Result<()> {
    for test in tests {
        writeln!(out, "- {}", test.name.trim_end_matches(" [Conformance]"))?;
    }
    Ok(())
}

/// Some go on with all that they have looked at.
fn first_line(message: &str) -> String {
    let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    line.chars().take(MAX_REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::{Causes, Run, page};
    use crate::conformance::report::{self, Report};
    use crate::conformance::set::BEYOND;

    #[test]
    fn a_page_says_what_failed_why_what_was_skipped_and_what_had_not_ended() {
        let text = r#"[{"PreRunStats": {"SpecsThatWillRun": 5}, "SpecReports": [
            {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-apps] Job"], "LeafNodeText": "runs", "State": "passed"},
            {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-cli] exec"], "LeafNodeText": "a", "State": "failed"},
            {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-cli] attach"], "LeafNodeText": "b", "State": "timedout"},
            {"LeafNodeType": "It", "ContainerHierarchyTexts": ["[sig-node] dump"], "LeafNodeText": "c", "State": "skipped",
             "Failure": {"Message": "\nOnly supported for providers [gce] (not skeleton)\nmore"}}
        ]}]"#;
        let report: Report = report::parse(text.as_bytes()).unwrap();
        let rows = report::by_sig(&report.tests);
        let causes = Causes(vec![("attach".into(), "attaching".into())]);
        let run = Run { set: &BEYOND, date: "D", commit: "C", kubernetes: "v1", n_nodes: 2 };
        let page = page(&run, &report, &rows, &causes, &[]).unwrap();
        for part in [
            "**1 passed, 2 failed, 1 skipped.**",
            "\n1 more had not ended",
            "| cli | 0 | 2 | 0 |",
            "### attaching\n\n- [sig-cli] attach b\n",
            "### not looked into yet\n\n- [sig-cli] exec a\n",
            "### Only supported for providers [gce] (not skeleton)\n\n- [sig-node] dump c\n",
        ] {
            assert!(page.contains(part), "{part:?} is not in\n{page}");
        }
    }

    #[test]
    fn the_first_cause_that_fits_a_name_is_its_cause() {
        let causes = Causes(vec![("CronJob".into(), "a".into()), ("Job".into(), "b".into())]);
        assert_eq!(causes.of("[sig-apps] CronJob runs"), "a");
        assert_eq!(causes.of("[sig-apps] Job runs"), "b");
        assert_eq!(causes.of("[sig-apps] Deployment runs"), super::UNKNOWN);
    }
}
