use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use skiff_cgroup::Cgroups;
use skiff_images::Images;

/// What an [`crate::OciRuntime`] works with.
#[derive(Clone)]
pub struct OciConfig {
    /// The name in statuses: `runc`, `crun`.
    pub name: &'static str,
    /// The OCI runtime's binary: a path, or a name to be found in `PATH`.
    pub runc: PathBuf,
    /// Where the binary keeps its own state (`--root`): on a tmpfs, so that a reboot clears it.
    pub root: PathBuf,
    /// Where the containers' directories lie: on a disk that can be an overlay's upper layer.
    pub state_dir: PathBuf,
    /// How a shim is started: a program and its first arguments, which must lead to
    /// [`crate::shim::main`].
    pub shim_command: Vec<OsString>,
    pub images: Arc<Images>,
    pub cgroups: Cgroups,
    /// The cgroup of all shims, relative to every hierarchy's root. In the one of whoever started this process they would end
    /// with its unit or its login.
    pub shim_cgroup: String,
    /// The most processes a container may have; `None` leaves it to the pod's own limit.
    pub pids_limit: Option<i64>,
    /// How many files a container's process may have open, soft and hard. This process may have given itself more than
    /// programs expect: a soft limit above 1,024 breaks those that use `select`.
    pub open_files: OpenFiles,
}

/// A limit of open files, as `setrlimit` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    pub soft: u64,
    pub hard: u64,
}
