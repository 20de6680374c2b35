//! The numbers of the last run of each bench: one JSON object a line, the first about the run.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::command::{output, root};

/// What benches write themselves: the one before has changed nothing that is measured.
const RESULTS: &str = ":(exclude)docs/benchmarks*";

fn path(bench: &str) -> PathBuf {
    root().join("docs/benchmarks").join(format!("{bench}.jsonl"))
}

pub(super) fn write(bench: &str, lines: &[Value]) -> Result<()> {
    let path = path(bench);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

/// `None` for a bench that was never run.
pub(super) fn read(bench: &str) -> Result<Option<Vec<Value>>> {
    let path = path(bench);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(None) };
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
    lines.map(Some).with_context(|| format!("reading {}", path.display()))
}

pub(crate) fn date() -> Result<String> {
    Ok(output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?.trim().to_owned())
}

/// Without one in a tree that is not under version control.
pub(crate) fn commit() -> Value {
    let git = |arguments: &[&str]| output(Command::new("git").args(arguments).current_dir(root()));
    let Ok(name) = git(&["describe", "--always"]) else { return Value::Null };
    let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", ".", RESULTS]);
    let is_changed = changed.map_or(true, |files| !files.trim().is_empty());
    format!("{}{}", name.trim(), if is_changed { "-dirty" } else { "" }).into()
}

pub(super) fn machine() -> Value {
    let first = |path: &str, key: &str| -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let memory =
        first("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cpu": first("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory_gib": memory.map(|kib| (kib + (1 << 19)) >> 20),
        "kernel": kernel.split('-').next().unwrap_or_default().trim(),
    })
}
