use std::io;
use std::path::PathBuf;

/// A failed operation on a control group, with the file or group that it failed on.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("cgroup path {path:?} is not a relative path of plain names")]
    InvalidPath { path: String },
    #[error("no control groups at {root}: mount cgroup2 there, or the cgroup v1 controllers below it")]
    NotMounted { root: PathBuf },
    #[error(
        "control group controllers missing at {root}: {missing}; put cgroup_enable=memory cgroup_memory=1 on the kernel command \
         line and boot again, or have this container given them"
    )]
    MissingControllers { root: PathBuf, missing: String },
    #[error(
        "the control groups at {root} cannot be written; mount them read-write, in a container by running it privileged"
    )]
    NotWritable { root: PathBuf, source: io::Error },
    #[error(
        "processes stay in the root of this cgroup namespace, {root}: {pids:?}; nobody can hand controllers down from there \
         before they are in a group below"
    )]
    BusyRoot { root: PathBuf, pids: Vec<u32> },
    #[error("create cgroup {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("write {value:?} to {file}")]
    Write { file: PathBuf, value: String, source: io::Error },
    #[error("read {file}")]
    Read { file: PathBuf, source: io::Error },
    #[error("{file} does not hold {wanted}")]
    Parse { file: PathBuf, wanted: &'static str },
    #[error("remove cgroup {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("cgroup {path} still has processes after SIGKILL: {pids:?}")]
    StillAlive { path: String, pids: Vec<u32> },
}

impl Error {
    /// Whether the group, or the process that was to be added, is not there.
    pub fn is_not_found(&self) -> bool {
        let (Error::Create { source, .. }
        | Error::Write { source, .. }
        | Error::Read { source, .. }
        | Error::Remove { source, .. }) = self
        else {
            return false;
        };
        // ENODEV is what reads of a file answer whose group has been removed since it was opened; ESRCH is
        // what a write of a dead process's ID to `cgroup.procs` answers.
        source.kind() == io::ErrorKind::NotFound || matches!(source.raw_os_error(), Some(19 | 3))
    }
}
