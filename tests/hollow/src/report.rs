//! What a run has shown, as JSON and as a table.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::latency::{Line, PhaseLatencies};

/// A part of a run, and the requests made in it.
#[derive(Clone, Debug)]
pub struct Phase {
    pub name: &'static str,
    pub took: Duration,
    pub latencies: PhaseLatencies,
}

#[derive(Clone, Debug)]
pub struct Report {
    pub n_nodes: u32,
    pub n_pods: usize,
    pub watch: &'static str,
    pub phases: Vec<Phase>,
    /// How pods were bound and started.
    pub pods: Value,
    pub processes: Value,
    /// Why the run ended before its end, if it did.
    pub failure: Option<String>,
}

fn seconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 10.0).round() / 10.0
}

impl Report {
    /// The requests of all phases.
    fn all(&self) -> PhaseLatencies {
        let mut all = PhaseLatencies::default();
        self.phases.iter().for_each(|phase| all.add(&phase.latencies));
        all
    }

    pub fn document(&self) -> Value {
        let documents = |lines: Vec<Line>| lines.iter().map(Line::document).collect::<Vec<_>>();
        let phases: Vec<Value> = self
            .phases
            .iter()
            .map(|phase| {
                json!({"name": phase.name, "took_s": seconds(phase.took),
                       "by_verb": documents(phase.latencies.by_verb()),
                       "requests": documents(phase.latencies.lines())})
            })
            .collect();
        json!({
            "nodes": self.n_nodes, "pods": self.n_pods, "watch": self.watch,
            "by_verb": documents(self.all().by_verb()), "phases": phases, "scheduling": self.pods,
            "processes": self.processes, "failure": self.failure,
        })
    }

    /// For a person.
    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "{} hollow nodes, {} pods, pods watched: {}", self.n_nodes, self.n_pods, self.watch)?;
        for phase in &self.phases {
            writeln!(out, "  {:<10} {:>8.1} s", phase.name, phase.took.as_secs_f64())?;
        }
        let rate = &self.pods["bound_per_s"];
        writeln!(
            out,
            "\nscheduling: {} pods/s in the mean, {} in the best second",
            rate["mean"], rate["peak"]
        )?;
        for (what, field) in [
            ("created to bound", "seen_to_bound"),
            ("bound to running", "bound_to_running"),
            ("created to running", "seen_to_running"),
        ] {
            let times = &self.pods[field];
            writeln!(
                out,
                "  {what:<20} p50 {:>9} ms   p99 {:>9} ms   max {:>9} ms",
                times["p50_ms"], times["p99_ms"], times["max_ms"]
            )?;
        }
        writeln!(
            out,
            "lists of pods that the watch began with or fell back to: {}",
            self.pods["watch_lists"]
        )?;
        for process in self.processes.as_array().into_iter().flatten() {
            writeln!(
                out,
                "{}: {} CPU seconds, {} MiB at most",
                process["name"].as_str().unwrap_or_default(),
                process["cpu_s"],
                process["peak_rss_mib"]
            )?;
        }
        for phase in &self.phases {
            writeln!(out, "\n{}", phase.name)?;
            write_lines(out, &phase.latencies.lines())?;
        }
        writeln!(out, "\nall phases, by verb")?;
        write_lines(out, &self.all().by_verb())
    }
}

fn write_lines(out: &mut String, lines: &[Line]) -> std::fmt::Result {
    let head = ["verb", "resource", "n", "p50 ms", "p99 ms", "failed"];
    let [verb, resource, n, p50, p99, failed] = head;
    writeln!(out, "  {verb:<7} {resource:<30} {n:>9} {p50:>10} {p99:>10}  {failed}")?;
    for line in lines {
        let failed: Vec<String> = line.failed.iter().map(|(code, n)| format!("{n}×{code}")).collect();
        let (verb, resource, failed) = (line.verb, line.resource, failed.join(" "));
        let (n, p50, p99) = (line.took.n(), line.took.percentile_ms(50.0), line.took.percentile_ms(99.0));
        writeln!(out, "  {verb:<7} {resource:<30} {n:>9} {p50:>10.1} {p99:>10.1}  {failed}")?;
    }
    Ok(())
}
