//! The limit of open files. A server of thousands of nodes needs as many as it may have; what it runs for others gets
//! what there was.

use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use skiff_runtime_oci::OpenFiles;

static FOUND: OnceLock<Rlimit> = OnceLock::new();

fn as_found() -> &'static Rlimit {
    FOUND.get_or_init(|| getrlimit(Resource::Nofile))
}

/// What this process was started with.
pub(crate) fn found() -> OpenFiles {
    let limit = as_found();
    // No limit is the greatest there is.
    OpenFiles { soft: limit.current.unwrap_or(u64::MAX), hard: limit.maximum.unwrap_or(u64::MAX) }
}

/// Lets this process open as many files as it may.
pub(crate) fn raise() -> Result<()> {
    let most = as_found().maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
        .context("raising the limit of open files")
}
