//! What processes cost: of the server, say, while it is under load.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Ticks of `/proc/PID/stat`; the same on every Linux.
const TICKS_PER_S: u64 = 100;

/// A process that is being watched.
#[derive(Debug)]
pub(crate) struct Watched {
    name: String,
    pid: u32,
    cpu_before: Duration,
}

impl Watched {
    /// Looks from now on; the kernel's record of the most memory starts over.
    pub(crate) fn start(name: &str, pid: u32) -> Result<Watched> {
        let cpu_before = cpu_time(pid).with_context(|| format!("looking at the process {pid} ({name})"))?;
        // Only root, and the process's own user, may; without it the peak is since the process began.
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        Ok(Watched { name: name.to_owned(), pid, cpu_before })
    }

    /// CPU seconds and the most memory since the start; what has ended meanwhile has neither.
    pub(crate) fn document(&self) -> Value {
        let cpu = cpu_time(self.pid).ok().map(|now| now.saturating_sub(self.cpu_before).as_secs_f64());
        let peak_mib = kib(self.pid, "VmHWM:").map(|kib| kib / 1024);
        let now_mib = kib(self.pid, "VmRSS:").map(|kib| kib / 1024);
        json!({"name": self.name, "cpu_s": cpu, "peak_rss_mib": peak_mib, "rss_mib": now_mib})
    }
}

fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // A program's name may hold anything, also a parenthesis.
    let (_, fields) = text.rsplit_once(')').context("no name in it")?;
    let ticks = |at: usize| fields.split_whitespace().nth(at).and_then(|field| field.parse::<u64>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).context("no times in it")?;
    Ok(Duration::from_millis((user + system) * 1000 / TICKS_PER_S))
}

fn kib(pid: u32, field: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(field))?.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_time_and_memory() {
        let watched = Watched::start("me", std::process::id()).unwrap();
        let document = watched.document();
        assert!(document["cpu_s"].is_f64() && document["peak_rss_mib"].as_u64().unwrap() > 0, "{document}");
        assert!(Watched::start("nobody", u32::MAX).is_err());
    }
}
