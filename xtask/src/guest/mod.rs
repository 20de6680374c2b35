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

use anyhow::{Result, bail};

use crate::command::cache;
use crate::{fixtures, setup};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The processors of the guest
    #[arg(long, default_value = "x86-64")]
    arch: Arch,
    /// Boot this program instead of building one
    #[arg(long)]
    program: Option<std::path::PathBuf>,
    /// Only these claims, as `oom,reboot`; the page is left as it is
    #[arg(long)]
    only: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    #[value(name = "x86-64")]
    X86,
    #[value(name = "arm64")]
    Arm,
}

impl Arch {
    fn name(self) -> &'static str {
        match self {
            Arch::X86 => "x86-64",
            Arch::Arm => "arm64",
        }
    }

    /// As Debian calls it.
    fn debian(self) -> &'static str {
        match self {
            Arch::X86 => "amd64",
            Arch::Arm => "arm64",
        }
    }

    pub(crate) fn is_own(self) -> bool {
        matches!(self, Arch::X86) == cfg!(target_arch = "x86_64")
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run()?;
    setup::guest(options.arch)?;
    setup::kubectl()?;
    let dir = cache()?.join("guest").join(options.arch.name());
    let registry = fixtures::registry_for(options.arch.debian())?;
    let disk = disk::Disk::build(options.arch, &dir)?;
    let share = share::Share::fill(options, &dir, &registry)?;
    machine::run(options.arch, &disk, &share, &dir)?;
    let results = page::Results::read(&share, options.arch)?;
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
