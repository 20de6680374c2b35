//! What servers use with nothing to do.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value};

use crate::figures::Figures;
use crate::meter::Groups;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// The figures, and the memory of each program in MiB.
pub async fn run(groups: &Groups, options: &Options) -> Result<(Figures, Value)> {
    let (before, written) = (groups.cpu()?, groups.written_bytes());
    let time = Duration::from_secs(options.seconds);
    tokio::time::sleep(time).await;
    let used = groups.cpu()?.saturating_sub(before);
    let written = groups.written_bytes().saturating_sub(written);
    let memory = groups.pss_kib();
    let mut figures = Figures::default();
    figures.set("percent_of_a_core", used.as_secs_f64() / time.as_secs_f64() * 100.0);
    figures.set("pss_mib", memory.values().sum::<u64>() as f64 / 1024.0);
    figures.set("written_mb_a_day", written as f64 / 1e6 * (DAY.as_secs_f64() / time.as_secs_f64()));
    figures.set("processes", groups.processes().len() as f64);
    let parts: Map<String, Value> =
        memory.into_iter().map(|(name, kib)| (name, (kib / 1024).into())).collect();
    Ok((figures, parts.into()))
}
