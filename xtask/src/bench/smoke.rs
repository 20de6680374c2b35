//! `cargo xtask bench smoke`: the figures that say whether Skiff is as small and as fast as it means to be.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::command::{cache, cargo, output, program, root, run};
use crate::{fixtures, setup};

const NAME: &str = "bench";
const N_STARTS: usize = 5;

pub(crate) fn smoke() -> Result<()> {
    setup::run()?;
    run(cargo().args(["build", "--release", "-p", "skiff", "-p", "skiff-tests", "--bins"]))?;
    let registries = fixtures::run()?;
    let skiff = program("release")?;
    let up = || -> Result<f64> {
        let start = Instant::now();
        output(Command::new(&skiff).args(["up", "--name", NAME, "--registries"]).arg(&registries))?;
        Ok(start.elapsed().as_secs_f64() * 1000.0)
    };
    let down = || output(Command::new(&skiff).args(["down", "--name", NAME])).map(drop);
    let mut starts = Vec::new();
    for _ in 0..N_STARTS {
        starts.push(up()?);
        down()?;
    }
    starts.sort_by(f64::total_cmp);
    up()?;
    let smoke = skiff.with_file_name("smoke");
    let measured = output(Command::new(smoke).arg(NAME).arg(bundle()?));
    down()?;
    let mut report: Value = serde_json::from_str(&measured?).context("reading the measurements")?;
    report["start_ms"] = json!({"p50": starts[N_STARTS / 2].round(), "min": starts[0].round(),
        "max": starts[N_STARTS - 1].round(), "n": N_STARTS});
    let text = table(&report)?;
    print!("{text}");
    let path = root().join("docs/benchmarks.md");
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// A bundle of busybox that sleeps, for `runc run` without Skiff.
fn bundle() -> Result<PathBuf> {
    let bundle = cache()?.join("fixtures/bundle");
    if bundle.exists() {
        std::fs::remove_dir_all(&bundle)?;
    }
    std::fs::create_dir_all(bundle.join("rootfs"))?;
    let archive = cache()?.join("fixtures/busybox.tar");
    output(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(bundle.join("rootfs")))?;
    output(Command::new("runc").arg("spec").current_dir(&bundle))?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["process"]["args"] = json!(["sh", "-c", "trap exit TERM; sleep 3600 & wait"]);
    config["process"]["terminal"] = false.into();
    std::fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(bundle)
}

fn table(report: &Value) -> Result<String> {
    let p50 = |field: &str| {
        let v = &report[field];
        format!("{} ({}–{}, n={})", v["p50"], v["min"], v["max"], v["n"])
    };
    let over = |bare: &str| {
        let p50 = |field: &str| report[field]["p50"].as_f64().unwrap_or_default();
        p50("linux_bound_to_running_ms") - p50(bare)
    };
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let mut out = String::new();
    writeln!(out, "# Benchmarks\n")?;
    writeln!(
        out,
        "Written by `cargo xtask bench smoke` on {}. One run, on a shared virtual machine with two",
        date.trim()
    )?;
    writeln!(out, "cores: figures differ between machines and runs; medians, with minimum and maximum.\n")?;
    writeln!(out, "| what | measured | aim | upstream, on such a machine |")?;
    writeln!(out, "|---|---|---|---|")?;
    writeln!(out, "| `skiff up`: exec → node Ready, ms | {} | ≤ 1000 | 8000 |", p50("start_ms"))?;
    writeln!(
        out,
        "| PSS of all processes, idle, MiB | {} ({} processes) | ≤ 80 | 654 |",
        report["idle"]["pss_mib"], report["idle"]["n_processes"]
    )?;
    writeln!(
        out,
        "| CPU over 60 s, idle, % of a core | {} | ≤ 0.8 | 7.8 |",
        report["idle"]["cpu_percent_of_a_core"]
    )?;
    writeln!(out, "| bare `runc run --detach`, as `runc spec` has it, ms | {} | | |", p50("runc_run_ms"))?;
    writeln!(
        out,
        "| … with the spec Skiff makes (default seccomp profile), ms | {} | | |",
        p50("runc_run_same_ms")
    )?;
    writeln!(
        out,
        "| Linux pod, bound → Running, cached image, ms | {} | runc + 30 | |",
        p50("linux_bound_to_running_ms")
    )?;
    writeln!(
        out,
        "| … more than bare runc, p50, ms | {:.1}; with the same spec {:.1} | ≤ 30 | |",
        over("runc_run_ms"),
        over("runc_run_same_ms")
    )?;
    writeln!(
        out,
        "| Wasm pod, bound → first 200, warm cache, ms | {} | ≤ 15 | |",
        p50("wasm_bound_to_200_ms")
    )?;
    writeln!(out, "| durable creates/s, 64 clients | {} | ≥ 1900 | 630 |", report["creates_per_s"])?;
    writeln!(
        out,
        "\nTimes are a client's: from the watch event that shows the pod bound to the one that shows it running, or to"
    )?;
    writeln!(
        out,
        "the first answer. Linux pods and bare runc take turns. The upstream figures are of an earlier run of"
    )?;
    writeln!(out, "kube-apiserver, etcd, kubelet and containerd on such a machine, given here for scale.")?;
    Ok(out)
}
