//! Gives targets input for as long as it is told: `cargo xtask fuzz`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use skiff_fuzz::TARGETS;
use skiff_fuzz::run::{End, run};

#[derive(Parser)]
#[command(about = "Gives targets hostile input")]
struct Options {
    /// The targets; all if none is named
    targets: Vec<String>,
    /// How long each goes on, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Which inputs are made; another gives others
    #[arg(long, default_value_t = 2)]
    seed: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    for name in &options.targets {
        TARGETS.iter().find(|target| target.name == name).with_context(|| {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            format!("no target {name:?}; there are {}", names.join(", "))
        })?;
    }
    for target in TARGETS {
        if options.targets.is_empty() || options.targets.iter().any(|name| name == target.name) {
            let end = Instant::now() + Duration::from_secs(options.seconds);
            let n = run(target, options.seed, End::At(end))?;
            println!("{}: {n} inputs, nothing broke", target.name);
        }
    }
    Ok(())
}
