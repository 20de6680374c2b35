//! Skiff under abuse: what one client or one pod can do to an administrator and to another pod. Writes its section of
//! docs/reliability.md.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::page::number;
use super::sides::{Skiff, Tools, words};
use super::store;
use crate::reliability::{self, Section};

/// A component that answers at once.
const IMAGE: &str = "docker.io/skiff/wasm-http:v1";
const RUN: Duration = Duration::from_secs(3600);
const PODS: Duration = Duration::from_secs(120);
/// Within an hour nothing would be seen of whether expiry keeps pace.
const EVENT_TTL: &str = "1m";
/// The aims: p99 against that of quiet, and memory afterwards against that before.
const P99_AIM: f64 = 2.0;
const MEMORY_AIM: f64 = 1.2;

#[derive(clap::Args, Clone, Debug)]
#[group(id = "abuse")]
pub(super) struct Size {
    /// Seconds of each phase of `abuse`
    #[arg(long = "abuse-seconds", default_value_t = 30)]
    seconds: u64,
    /// Seconds of the case of `abuse` that piles up
    #[arg(long = "abuse-long-seconds", default_value_t = 600)]
    long_seconds: u64,
    /// A case of `abuse`; all of them if none is named. A run of some is printed and not stored
    #[arg(long = "abuse-case")]
    cases: Vec<String>,
}

pub(super) fn abuse(tools: &Tools, size: &Size) -> Result<()> {
    let skiff = Skiff::up_with(tools, &[("SKIFF_EVENT_TTL", EVENT_TTL)])?;
    let side = skiff.side();
    let pods =
        side.ask(tools, PODS, &words(&format!("web-pods --namespace web --image {IMAGE} --count 1")))?;
    let pod = pods["addresses"][0].as_str().context("the pod has no address")?.to_owned();
    let mut arguments = words(&format!(
        "abuse --address {pod}:80 --seconds {} --long-seconds {}",
        size.seconds, size.long_seconds
    ));
    for case in &size.cases {
        arguments.extend(["--case".to_owned(), case.clone()]);
    }
    let report = side.ask(tools, RUN, &arguments)?;
    let cases = report["cases"].as_array().context("the report has no cases")?;
    let page = page(cases, tools)?;
    print!("{page}");
    skiff.down()?;
    ensure!(!cases.is_empty(), "no such case: {}", size.cases.join(", "));
    if size.cases.is_empty() {
        reliability::write(Section::Abuse, &page)?;
    }
    Ok(())
}

fn page(cases: &[Value], tools: &Tools) -> Result<String> {
    let mut out = String::from(
        "Written by `cargo xtask bench abuse`. A cluster of one node is abused in one way at a time, \
         while an administrator\nreads and writes and a Wasm pod is asked, 20 times a second each. Who asks runs before everybody \
         else (`SCHED_FIFO`), who abuses when nobody\nelse wants to (`SCHED_IDLE`): both stand for machines of their own. Abusers have \
         credentials of their own: certificates of nodes,\ntokens of service accounts. Events are kept for a minute here. Times are p99 \
         in milliseconds; memory is the PSS of all of Skiff's\nprocesses in MiB, afterwards as soon as it is back, two minutes later at \
         the latest.\n\n",
    );
    let commit = store::commit();
    writeln!(
        out,
        "{}, commit {}, program {}.\n",
        store::date()?,
        commit.as_str().unwrap_or("unknown"),
        if tools.is_release() { "of the release profile" } else { "given by hand" }
    )?;
    writeln!(
        out,
        "| abuse | administrator, quiet → abused | pod, quiet → abused | memory before → most → after | probes that failed | answers to the abuser |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|")?;
    let mut missed = Vec::new();
    for case in cases {
        let value = |name: &str| case["values"][name].as_f64().unwrap_or_default();
        let pair = |who: &str| {
            let [quiet, abused] = ["quiet", "abused"].map(|when| value(&format!("{who}_{when}_p99_ms")));
            (format!("{} → {} (× {:.1})", number(quiet), number(abused), abused / quiet), abused / quiet)
        };
        let ((admin, admin_ratio), (pod, pod_ratio)) = (pair("admin"), pair("pod"));
        let memory = ["before_mib", "most_mib", "after_mib"].map(|name| number(value(name))).join(" → ");
        let answers = case["answers"].as_object().into_iter().flatten();
        let answers: Vec<String> = answers.map(|(what, n)| format!("{n} × {what}")).collect();
        let what = case["what"].as_str().unwrap_or_default();
        writeln!(
            out,
            "| {what} | {admin} | {pod} | {memory} | {} | {} |",
            value("failed_probes"),
            answers.join(", ")
        )?;
        for (aim, reached) in [
            ("the administrator's p99", admin_ratio <= P99_AIM),
            ("the pod's p99", pod_ratio <= P99_AIM),
            ("memory", value("after_mib") <= value("before_mib") * MEMORY_AIM),
            ("every probe answered", value("failed_probes") == 0.0),
        ] {
            if !reached {
                missed.push(format!("{}: {aim}", case["case"].as_str().unwrap_or_default()));
            }
        }
    }
    writeln!(
        out,
        "\nAims: both p99 at most × {P99_AIM} of quiet, memory back within × {MEMORY_AIM}, every probe answered. {}",
        if missed.is_empty() { "All are met.".to_owned() } else { format!("Missed: {}.", missed.join("; ")) }
    )?;
    Ok(out)
}
