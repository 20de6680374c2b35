//! Skiff alone with many nodes that one process plays: API latency by verb.

use std::fmt::Write as _;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::page::number;
use super::sides::{Skiff, Tools, Who, words};
use super::turns::Book;

const NODES: u32 = 1000;
const PODS: u32 = 30_000;
/// Of each phase; what was measured until then is reported.
const PHASE: Duration = Duration::from_secs(1800);
/// Of all of them.
const RUN: Duration = Duration::from_secs(3600);
/// The phase in which all pods run and nothing but heartbeats and probes goes on.
const STEADY: &str = "steady";

#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Size {
    /// Nodes of `hollow`
    #[arg(long = "hollow-nodes", default_value_t = NODES)]
    nodes: u32,
    /// Pods of `hollow`
    #[arg(long = "hollow-pods", default_value_t = PODS)]
    pods: u32,
}

impl Size {
    /// Why a run of this size is printed and not stored.
    fn unfit(self) -> Option<String> {
        let is_whole = self.nodes >= NODES && self.pods >= PODS;
        (!is_whole).then(|| format!("{} nodes, {} pods are less than {NODES}, {PODS}", self.nodes, self.pods))
    }
}

pub(super) fn hollow(tools: &Tools, book: &mut Book, size: Size) -> Result<()> {
    let skiff = Skiff::up(tools)?;
    // Nothing is cleaned up: the cluster is thrown away. The pods select hollow nodes, so the real one takes none.
    let arguments = words(&format!(
        "scale --nodes {} --pods {} --timeout {} --keep --process skiff={}",
        size.nodes,
        size.pods,
        PHASE.as_secs(),
        skiff.server_pid()?
    ));
    let mut command = skiff.side().hollow(tools, RUN, &arguments);
    // It tells people how far it is.
    let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output();
    let output = output.context("starting skiff-hollow")?;
    // A run that failed reports as well, with why; one that could not begin, or was ended, does not.
    ensure!(!output.stdout.is_empty(), "skiff-hollow has no report: {}", output.status);
    let report = serde_json::from_slice(&output.stdout).context("reading the report of skiff-hollow")?;
    book.keep(Who::Skiff, report, size.unfit());
    skiff.down()
}

/// What the page shows of a run.
pub(super) fn table(report: &Value) -> Result<String> {
    let mut out = format!("{} nodes, {} pods.\n\n", figure(&report["nodes"]), figure(&report["pods"]));
    writeln!(out, "| verb | requests | p50, ms | p99, ms | max, ms | refused | p50, p99 while full, ms |")?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    let phase = |name: &str| report["phases"].as_array().into_iter().flatten().find(|p| p["name"] == name);
    let steady = phase(STEADY).map_or(&Value::Null, |phase| &phase["by_verb"]);
    for line in report["by_verb"].as_array().into_iter().flatten() {
        let full = steady.as_array().into_iter().flatten().find(|full| full["verb"] == line["verb"]);
        let full = full
            .map_or_else(|| "–".into(), |l| format!("{}, {}", figure(&l["p50_ms"]), figure(&l["p99_ms"])));
        let [n, p50, p99, max] = ["n", "p50_ms", "p99_ms", "max_ms"].map(|field| figure(&line[field]));
        let verb = line["verb"].as_str().unwrap_or_default();
        writeln!(out, "| {verb} | {n} | {p50} | {p99} | {max} | {} | {full} |", refused(&line["failed"]))?;
    }
    writeln!(out, "\n{}", summary(report))?;
    if let Some(failure) = report["failure"].as_str() {
        let words: Vec<&str> = failure.split_whitespace().collect();
        writeln!(out, "\nNot reached: {}", words.join(" "))?;
    }
    Ok(out)
}

fn figure(value: &Value) -> String {
    value.as_f64().map_or_else(|| "–".into(), number)
}

/// Refusals by status code, of which 0 is that there was no answer.
fn refused(failed: &Value) -> String {
    let codes = failed.as_object().into_iter().flatten();
    codes.map(|(code, n)| format!("{n} × {code}")).collect::<Vec<_>>().join(", ")
}

fn summary(report: &Value) -> String {
    let phases = report["phases"].as_array().into_iter().flatten();
    let phases =
        phases.map(|p| format!("{} {} s", p["name"].as_str().unwrap_or_default(), figure(&p["took_s"])));
    let pods = &report["scheduling"];
    let rate = &pods["bound_per_s"];
    let times = |name: &str, field: &str| {
        let times = &pods[field];
        format!("{name} p50 {} ms, p99 {} ms", figure(&times["p50_ms"]), figure(&times["p99_ms"]))
    };
    let processes = report["processes"].as_array().into_iter().flatten().map(|process| {
        let name = process["name"].as_str().unwrap_or_default();
        let (cpu, memory) = (figure(&process["cpu_s"]), figure(&process["peak_rss_mib"]));
        format!("process {name}: {cpu} CPU seconds, {memory} MiB at most")
    });
    let mut parts = vec![
        format!("phases: {}", phases.collect::<Vec<_>>().join(", ")),
        format!(
            "{} pods/s were bound in the mean, {} in the best second",
            figure(&rate["mean"]),
            figure(&rate["peak"])
        ),
        times("seen to bound", "seen_to_bound"),
        times("bound to running", "bound_to_running"),
    ];
    parts.extend(processes);
    format!("In this run: {}.", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report() -> Value {
        let verb = |n: u32, p50: f64| json!({"verb": "GET", "resource": "*", "n": n, "p50_ms": p50, "p99_ms": p50 * 10.0, "max_ms": 500.0});
        let mut all = verb(12_000, 1.5);
        all["failed"] = json!({"429": 7});
        json!({
            "nodes": 1000, "pods": 30000, "by_verb": [all],
            "phases": [{"name": "pods", "took_s": 321.4, "by_verb": [verb(1, 1.0)]}, {"name": STEADY, "took_s": 60.0, "by_verb": [verb(9, 0.4)]}],
            "scheduling": {"bound_per_s": {"mean": 100, "peak": 250}, "seen_to_bound": {"p50_ms": 3.0, "p99_ms": 4.0}},
            "processes": [{"name": "skiff", "cpu_s": 200.5, "peak_rss_mib": 900}], "failure": null,
        })
    }

    #[test]
    fn each_verb_is_shown_over_the_whole_run_and_with_the_cluster_full() {
        let text = table(&report()).expect("it is sound");
        assert!(text.starts_with("1,000 nodes, 30,000 pods.\n"), "{text}");
        assert!(text.contains("| GET | 12,000 | 1.5 | 15 | 500 | 7 × 429 | 0.4, 4 |"), "{text}");
        assert!(text.contains("phases: pods 321 s, steady 60 s; 100 pods/s"), "{text}");
        assert!(text.contains("process skiff: 201 CPU seconds"), "{text}");
        assert!(!text.contains("Not reached"), "{text}");
    }

    #[test]
    fn a_run_that_did_not_come_to_its_end_says_so_and_shows_what_it_has() {
        let mut report = report();
        report["failure"] = "in the phase \"pods\": not done\nafter 1800 s".into();
        report["phases"][1]["name"] = "other".into();
        let text = table(&report).expect("it is sound");
        assert!(text.contains("| 7 × 429 | – |"), "{text}");
        assert!(text.ends_with("Not reached: in the phase \"pods\": not done after 1800 s\n"), "{text}");
    }

    #[test]
    fn only_a_run_of_the_whole_size_is_stored() {
        assert_eq!(Size { nodes: NODES, pods: PODS }.unfit(), None);
        let small = Size { nodes: 10, pods: PODS }.unfit().expect("it is small");
        assert_eq!(small, "10 nodes, 30000 pods are less than 1000, 30000");
    }
}
