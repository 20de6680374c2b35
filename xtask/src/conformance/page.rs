//! `docs/conformance.md`: what the last whole run came to, with its failures by cause.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::report::{Count, Outcome, Test};

/// Why tests fail, as people have found out: `part of the names<TAB>cause`, the first that fits.
pub(super) struct Causes(Vec<(String, String)>);

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
    pub(super) date: &'a str,
    pub(super) commit: &'a str,
    pub(super) kubernetes: &'a str,
    pub(super) n_nodes: u8,
}

pub(super) fn page(
    run: &Run<'_>,
    tests: &[Test],
    rows: &BTreeMap<String, Count>,
    causes: &Causes,
    vacuous: &[String],
) -> Result<String> {
    let mut out = String::new();
    let count = |outcome| tests.iter().filter(|t| t.outcome == outcome).count();
    let (passed, failed, skipped) = (count(Outcome::Passed), count(Outcome::Failed), count(Outcome::Skipped));
    writeln!(out, "# Conformance\n")?;
    writeln!(
        out,
        "Written by `cargo xtask conformance` on {}, at commit {}: upstream's whole suite (k8s.io/kubernetes {})\n\
         against a cluster of {} nodes.\n",
        run.date, run.commit, run.kubernetes, run.n_nodes
    )?;
    writeln!(out, "**{passed} passed, {failed} failed, {skipped} skipped.**\n")?;
    let vacuous: Vec<&Test> =
        tests.iter().filter(|t| t.outcome == Outcome::Passed && vacuous.contains(&t.name)).collect();
    if !vacuous.is_empty() {
        writeln!(
            out,
            "Of those that passed, {} say nothing: they return if what they are about is not served.\n",
            vacuous.len()
        )?;
        for test in vacuous {
            writeln!(out, "- {}", test.name.trim_end_matches(" [Conformance]"))?;
        }
        writeln!(out)?;
    }
    writeln!(out, "| SIG | passed | failed | skipped |\n|---|--:|--:|--:|")?;
    for (sig, row) in rows {
        writeln!(out, "| {sig} | {} | {} | {} |", row.passed, row.failed, row.skipped)?;
    }
    let mut by_cause: BTreeMap<&str, Vec<&Test>> = BTreeMap::new();
    for test in tests.iter().filter(|t| t.outcome == Outcome::Failed) {
        by_cause.entry(causes.of(&test.name)).or_default().push(test);
    }
    let mut by_cause: Vec<(&str, Vec<&Test>)> = by_cause.into_iter().collect();
    by_cause.sort_by_key(|(_, tests)| std::cmp::Reverse(tests.len()));
    writeln!(out, "\n## What the others wait for\n\n| cause | tests |\n|---|--:|")?;
    for (cause, tests) in &by_cause {
        writeln!(out, "| {cause} | {} |", tests.len())?;
    }
    for (cause, tests) in &by_cause {
        writeln!(out, "\n### {cause}\n")?;
        for test in tests {
            writeln!(out, "- {}", test.name.trim_end_matches(" [Conformance]"))?;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::Causes;

    #[test]
    fn the_first_cause_that_fits_a_name_is_its_cause() {
        let causes = Causes(vec![("CronJob".into(), "a".into()), ("Job".into(), "b".into())]);
        assert_eq!(causes.of("[sig-apps] CronJob runs"), "a");
        assert_eq!(causes.of("[sig-apps] Job runs"), "b");
        assert_eq!(causes.of("[sig-apps] Deployment runs"), super::UNKNOWN);
    }
}
