//! `drill NAME ROUNDS`: one drill, so often, and its table as JSON. `cargo xtask drills` runs it; `SKIFF_BIN` and
//! `SKIFF_TEST_REGISTRIES` say of which program.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use skiff_tests::drills::FileSystem;
use skiff_tests::rounds::{self, Case, Shape};

/// Longer than a node's Lease is good.
const CLOCK_OFF: Duration = Duration::from_secs(45);
/// Also how long a first boot waits.
const LINK_DOWN: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, n_rounds] = arguments.as_slice() else {
        bail!("usage: drill power|reboot|clock|link|address ROUNDS")
    };
    let n_rounds: usize = n_rounds.parse().with_context(|| format!("{n_rounds:?} is no number of rounds"))?;
    let report = match name.as_str() {
        "power" => rounds::power(&[FileSystem::Ext4, FileSystem::Xfs], n_rounds)?,
        "clock" => {
            let cases: Vec<Case> = (0..n_rounds).flat_map(|_| Case::all()).collect();
            let mut report = rounds::clock(&cases, CLOCK_OFF)?;
            rounds::first_boots(&mut report, &[1970, 2020], LINK_DOWN)?;
            report
        }
        "link" => rounds::link(&[Shape::Segment, Shape::Routed], n_rounds, LINK_DOWN)?,
        "address" => rounds::address(n_rounds)?,
        "reboot" => rounds::reboot(n_rounds)?,
        other => bail!("there is no drill {other:?}"),
    };
    println!("{}", report.to_json());
    Ok(())
}
