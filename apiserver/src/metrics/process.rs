//! The process, under the names that Prometheus' libraries give it. On Linux; elsewhere nothing is told.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

#[derive(Debug)]
pub(super) struct Process;

/// What the kernel says.
#[derive(Debug, PartialEq)]
struct Seen {
    cpu_s: f64,
    resident_bytes: u64,
    virtual_bytes: u64,
    /// Since the boot of the machine.
    started_s: f64,
}

impl Seen {
    /// Of `/proc/self/stat`, whose second field is a name that may hold anything but its end.
    fn parse(stat: &str, ticks_per_s: f64, page_bytes: u64) -> Option<Seen> {
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first of them is the third of all.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Seen {
            cpu_s: (number(14)? + number(15)?) as f64 / ticks_per_s,
            resident_bytes: number(24)?.saturating_mul(page_bytes),
            virtual_bytes: number(23)?,
            started_s: number(22)? as f64 / ticks_per_s,
        })
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let (ticks, page) =
            (rustix::param::clock_ticks_per_second() as f64, rustix::param::page_size() as u64);
        if let Some(seen) = Seen::parse(&stat, ticks, page) {
            let help = "Time on processors, in and outside of the kernel";
            let family = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seen.cpu_s).encode(family)?;
            let mut gauge = |name: &str, help: &str, value: f64| {
                ConstGauge::new(value).encode(encoder.encode_descriptor(
                    name,
                    help,
                    None,
                    MetricType::Gauge,
                )?)
            };
            gauge("process_resident_memory_bytes", "Memory that is in use", seen.resident_bytes as f64)?;
            gauge("process_virtual_memory_bytes", "Addresses that are in use", seen.virtual_bytes as f64)?;
            if let Some(booted_s) = booted_s() {
                gauge("process_start_time_seconds", "When it started", booted_s + seen.started_s)?;
            }
        }
        let mut gauge = |name: &str, help: &str, value: u64| {
            ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder.encode_descriptor(
                name,
                help,
                None,
                MetricType::Gauge,
            )?)
        };
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            gauge("process_open_fds", "Files that are open", open.count() as u64)?;
        }
        if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
            gauge("process_max_fds", "Files that may be open", most)?;
        }
        Ok(())
    }
}

/// When the machine was booted, by its clock of today.
fn booted_s() -> Option<f64> {
    let up = fs::read_to_string("/proc/uptime").ok()?;
    let up_s: f64 = up.split(' ').next()?.parse().ok()?;
    Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64() - up_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let mut fields: Vec<String> = (4..=52).map(|n: u32| n.to_string()).collect();
        fields[14 - 4] = "150".into();
        fields[15 - 4] = "50".into();
        let stat = format!("1 (a) b (c) S {}", fields.join(" "));
        let wanted = Seen { cpu_s: 2.0, resident_bytes: 24 * 4096, virtual_bytes: 23, started_s: 0.22 };
        assert_eq!(Seen::parse(&stat, 100.0, 4096), Some(wanted));
        assert_eq!(Seen::parse("1 (a) S 1", 100.0, 4096), None);
    }
}
