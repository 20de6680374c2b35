//! `cargo xtask guest`: Skiff on the machines that users have.
//!
//! ```text
//!  disk      Debian by mmdebstrap, with its own kernel and systemd → the cache     once a list of packages
//!  share     the program, fixtures, kubectl, units, tests/guest → a 9p share       each time
//!  machine   qemu, which boots the disk and throws away what it changes            each time
//!  page      what the guest wrote into the share → docs/platforms                  each time
//! ```
//!
//! The guest runs `tests/guest/run.sh` by a unit of its own and switches itself off. It has no network but its own card.

mod disk;
mod machine;
mod page;
mod share;

use anyhow::{Result, bail, ensure};

use crate::command::cache;
use crate::{fixtures, setup};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Boot this program instead of building one
    #[arg(long)]
    program: Option<std::path::PathBuf>,
    /// Only these claims, as `oom,reboot`; the page is left as it is
    #[arg(long)]
    only: Option<String>,
}

/// The processors of the guest, as Debian calls them. For ARM64 neither a program nor images are built yet.
const ARCHITECTURE: &str = "amd64";

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run()?;
    ensure!(cfg!(target_arch = "x86_64"), "the guest is made for x86-64 machines only yet");
    setup::guest()?;
    setup::kubectl()?;
    let dir = cache()?.join("guest").join(ARCHITECTURE);
    fixtures::run()?;
    let disk = disk::Disk::build(&dir)?;
    let share = share::Share::fill(options, &dir)?;
    machine::run(&disk, &share, &dir)?;
    let results = page::Results::read(&share)?;
    results.print();
    if options.only.is_none() {
        results.record()?;
        page::write()?;
    }
    match results.n_failed() {
        0 => Ok(()),
        n => bail!("{n} claims failed; what the guest said is in {}", share.out().display()),
    }
}
