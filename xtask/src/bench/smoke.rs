//! `cargo xtask bench smoke`: Skiff alone, against what it means to be and against bare runc.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{page, store};
use crate::command::{cache, cargo, output, program, run};
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
    print!("{}", table(&report)?);
    store::write("smoke", &[json!({"bench": "smoke", "date": store::date()?, "report": report})])?;
    page::render()
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

/// The measured beside the aims.
pub(super) fn table(report: &Value) -> Result<String> {
    let p50 = |field: &str| {
        let v = &report[field];
        format!("{} ({}–{}, n={})", v["p50"], v["min"], v["max"], v["n"])
    };
    let over = |bare: &str| {
        let p50 = |field: &str| report[field]["p50"].as_f64().unwrap_or_default();
        p50("linux_bound_to_running_ms") - p50(bare)
    };
    let idle = &report["idle"];
    let rows = [
        ("`skiff up`: exec → node Ready, ms", p50("start_ms"), "≤ 1000"),
        (
            "PSS of all processes, idle, MiB",
            format!("{} ({} processes)", idle["pss_mib"], idle["n_processes"]),
            "≤ 80",
        ),
        ("CPU over 60 s, idle, % of a core", idle["cpu_percent_of_a_core"].to_string(), "≤ 0.8"),
        ("bare `runc run --detach`, as `runc spec` has it, ms", p50("runc_run_ms"), ""),
        ("… with the spec Skiff makes (default seccomp profile), ms", p50("runc_run_same_ms"), ""),
        ("Linux pod, bound → Running, cached image, ms", p50("linux_bound_to_running_ms"), "runc + 30"),
        (
            "… more than bare runc, p50, ms",
            format!("{:.1}; with the same spec {:.1}", over("runc_run_ms"), over("runc_run_same_ms")),
            "≤ 30",
        ),
        ("Wasm pod, bound → first 200, warm cache, ms", p50("wasm_bound_to_200_ms"), "≤ 15"),
        ("durable creates/s of small objects, 64 clients", report["creates_per_s"].to_string(), "≥ 1900"),
    ];
    let mut out = "| what | measured | aim |\n|---|---|---|\n".to_owned();
    for (what, measured, aim) in rows {
        writeln!(out, "| {what} | {measured} | {aim} |")?;
    }
    writeln!(
        out,
        "\nTimes are a client's: from the watch event that shows the pod bound to the one that shows it running, or to"
    )?;
    writeln!(
        out,
        "the first answer. Linux pods and bare runc take turns. Medians, with minimum and maximum."
    )?;
    Ok(out)
}
