//! `cargo xtask drills NAME`: a fault again and again, and what it cost; writes its section of docs/reliability.md.
//!
//! What is done is in `tests/src/rounds`, which `tests/tests/drills` runs a few rounds of.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::bench::{alone, commit, date};
use crate::command::{cargo, program, run as execute};
use crate::reliability::{self, Section};
use crate::{fixtures, setup, test};

#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(value_enum)]
    name: Name,
    /// How often; a run of fewer rounds than it has by itself is printed and not stored
    #[arg(long)]
    rounds: Option<usize>,
    /// Try this program instead of a release build of the work tree
    #[arg(long)]
    skiff: Option<PathBuf>,
    /// Try a debug build of the work tree; it is printed and not stored
    #[arg(long, conflicts_with = "skiff")]
    debug: bool,
    /// Bring about nothing, and take what `drill` has printed elsewhere, of a program that was given by hand
    #[arg(long, conflicts_with_all = ["skiff", "debug", "rounds"])]
    from: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// The disk's power is cut while the API takes writes
    Power,
    /// The machine is restarted, as far as the cluster can tell
    Reboot,
    /// The clocks of server and agents are set and set right again
    Clock,
    /// A node's link goes down and comes up
    Link,
    /// A node is given another address
    Address,
}

impl Name {
    fn argument(self) -> &'static str {
        match self {
            Name::Power => "power",
            Name::Reboot => "reboot",
            Name::Clock => "clock",
            Name::Link => "link",
            Name::Address => "address",
        }
    }

    fn section(self) -> Section {
        match self {
            Name::Power => Section::Power,
            Name::Reboot => Section::Reboot,
            Name::Clock => Section::Clock,
            Name::Link => Section::Link,
            Name::Address => Section::Address,
        }
    }

    fn rounds(self) -> usize {
        match self {
            Name::Power => 200,
            Name::Reboot => 5,
            Name::Clock => 1,
            Name::Link | Name::Address => 20,
        }
    }

    /// What was done, for who reads the page.
    fn about(self) -> &'static str {
        match self {
            Name::Power => {
                "The data directory of a cluster lies on a disk of its own. While four clients create objects, the server is held, \
                 the file system\nis shut down by ioctl without its log being written, and the server killed; then the disk is \
                 mounted again, the cluster started, and\nall that is stored compared with all that was acknowledged. Heartbeats \
                 (renewals of Leases) may be a minute old after a cut, and are\nnot counted."
            }
            Name::Reboot => {
                "Two nodes with two pods of each runtime and one on each node's own network. All processes of the cluster are killed at \
                 once, its\nmounts, namespaces and control groups ended, what it has in `/run` removed, and another boot ID shown; \
                 then `skiff up` starts it again.\nA pod is back when it is ready in containers that it did not have before. The \
                 first row is from before the first restart."
            }
            Name::Clock => {
                "Two nodes with a pod on each; server and agent have a wall clock each (libfaketime), which is set and, after a while, \
                 set right.\nThe cluster is whole when both nodes are ready and have renewed their Leases, each node reaches the \
                 other's pod, and `kubectl exec` gets\ninto both. Nothing is restarted."
            }
            Name::Link => {
                "Two nodes with a pod on each. The second one's link goes down and comes up; the machine's own default route is put \
                 back, as its network\nmanager does. The cluster is whole when both nodes are ready, each reaches the other's \
                 pod, and `kubectl exec` gets into both. Nothing is\nrestarted."
            }
            Name::Address => {
                "A machine is given another address and loses the one it had: first an agent's, of two nodes with a pod on each, then a \
                 server's.\nBoth run without `--node-ip`. The cluster is whole when the Node says the new address, `kubectl exec` gets \
                 into the pods, and each node\nreaches the other's pod; the server's, when the Service `kubernetes` leads to it. \
                 Nothing is restarted."
            }
        }
    }

    fn aims(self) -> &'static str {
        match self {
            Name::Power => "nothing acknowledged is lost, nothing is there twice, every start succeeds",
            Name::Reboot => {
                "all pods back within 10 s; after the last restart the same control groups, disk and files within × 1.05, memory within \
                 × 1.2"
            }
            Name::Clock => "whole within 60 s, no pod moves or starts anew, no process ends",
            Name::Link | Name::Address => "whole within 30 s, no pod moves or starts anew",
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let n_rounds = options.rounds.unwrap_or(options.name.rounds());
    ensure!(n_rounds > 0, "--rounds must be at least 1");
    let found = match &options.from {
        Some(path) => fs::read(path).with_context(|| format!("reading {}", path.display()))?,
        None => drill(options, n_rounds)?,
    };
    let report: Value = serde_json::from_slice(&found).context("reading what the drill found")?;
    let built = match (&options.skiff, &options.from, options.debug) {
        (None, None, true) => "of the debug profile",
        (None, None, false) => "of the release profile",
        _ => "given by hand, which may be of another commit",
    };
    let body = body(options.name, &report, built)?;
    println!("{body}");
    if options.debug || n_rounds < options.name.rounds() {
        eprintln!("not stored: that takes {} rounds of a release build", options.name.rounds());
        return missed(&report);
    }
    reliability::write(options.name.section(), &body)?;
    missed(&report)
}

/// Brings the fault about; answers what was found.
fn drill(options: &Options, n_rounds: usize) -> Result<Vec<u8>> {
    let _alone = alone()?;
    setup::run()?;
    setup::kubectl()?;
    let registries = fixtures::run()?;
    let (skiff, drill) = programs(options)?;
    let output = Command::new(&drill)
        .args([options.name.argument(), &n_rounds.to_string()])
        .env("SKIFF_BIN", &skiff)
        .env("SKIFF_TEST_REGISTRIES", registries)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", drill.display()))?;
    ensure!(output.status.success(), "the drill {} failed: {}", options.name.argument(), output.status);
    Ok(output.stdout)
}

/// The program that is tried, and the one that does it.
fn programs(options: &Options) -> Result<(PathBuf, PathBuf)> {
    if options.debug || options.skiff.is_some() {
        let built = test::debug_build()?;
        let drill = built.with_file_name("drill");
        return Ok((options.skiff.clone().unwrap_or(built), drill));
    }
    execute(cargo().args(["build", "--release", "-p", "skiff", "-p", "skiff-tests", "--bins"]))?;
    let built = program("release")?;
    let drill = built.with_file_name("drill");
    Ok((built, drill))
}

fn body(name: Name, report: &Value, built: &str) -> Result<String> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let columns = texts(&report["columns"]);
    ensure!(!columns.is_empty(), "the drill told nothing");
    let commit = commit();
    let mut out = format!("Written by `cargo xtask drills {}`. {}\n\n", name.argument(), name.about());
    writeln!(out, "{}, commit {}, program {built}.\n", date()?, commit.as_str().unwrap_or("unknown"))?;
    writeln!(out, "| {} |", columns.join(" | "))?;
    writeln!(out, "|{}", "---|".repeat(columns.len()))?;
    for row in report["rows"].as_array().into_iter().flatten() {
        writeln!(out, "| {} |", texts(row).join(" | "))?;
    }
    let missed = texts(&report["missed"]);
    let outcome =
        if missed.is_empty() { "All are met.".to_owned() } else { format!("Missed: {}.", missed.join("; ")) };
    writeln!(out, "\nAims: {}. {outcome}", name.aims())?;
    Ok(out)
}

fn missed(report: &Value) -> Result<()> {
    match report["missed"].as_array().map(Vec::len) {
        Some(0) => Ok(()),
        Some(n) => bail!("{n} aims were missed"),
        None => bail!("the drill does not say which aims were missed"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_section_has_a_row_for_each_that_the_drill_told_and_names_what_was_missed() {
        let report = json!({"columns": ["a", "b"], "rows": [["1", "2"], ["3", "4"]], "missed": ["one"]});
        let body = body(Name::Power, &report, "given by hand").unwrap();
        assert!(body.contains("| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n"), "{body}");
        assert!(body.contains("every start succeeds. Missed: one."), "{body}");
        assert!(missed(&report).is_err());
        missed(&json!({"missed": []})).unwrap();
    }
}
