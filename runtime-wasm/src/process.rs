//! Processes by PID and start time, and signals through pidfds: a recycled PID is never touched.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    pub(crate) start_time: u64,
}

impl ProcessId {
    pub(crate) fn current() -> io::Result<ProcessId> {
        let pid = std::process::id();
        match start_time(pid)? {
            Some(start_time) => Ok(ProcessId { pid, start_time }),
            None => Err(io::Error::other("this process is not in /proc")),
        }
    }

    /// Whether this very process still runs; a zombie does not.
    pub(crate) fn is_alive(&self) -> bool {
        matches!(start_time(self.pid), Ok(Some(start_time)) if start_time == self.start_time)
    }

    /// Kills the process and waits for its end. Succeeds if it is gone already. Blocks.
    pub(crate) fn kill(&self, patience: Duration) -> io::Result<()> {
        let Some(pidfd) = self.open()? else { return Ok(()) };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            other => other?,
        }
        await_end(&pidfd, patience)
    }

    /// Waits for the process's end: a process closes its sockets a moment before it is gone. Blocks.
    pub(crate) fn wait(&self, patience: Duration) -> io::Result<()> {
        match self.open()? {
            Some(pidfd) => await_end(&pidfd, patience),
            None => Ok(()),
        }
    }

    /// `None` if the process is gone.
    fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            other => other?,
        };
        // Asked after the pidfd was opened: it refers to the process whose start time this is.
        Ok(self.is_alive().then_some(pidfd))
    }
}

fn await_end(pidfd: &OwnedFd, patience: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// `None` if there is no such process or it is a zombie.
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(err) if err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(libc::ESRCH) => {
            return Ok(None);
        }
        other => other?,
    };
    // The name, in parentheses, may hold anything; the fields after it start with the third, the state.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
    let mut fields = fields.split(' ');
    if matches!(fields.next(), Some("Z" | "X")) {
        return Ok(None);
    }
    match fields.nth(18).and_then(|field| field.parse().ok()) {
        Some(start_time) => Ok(Some(start_time)),
        None => Err(io::Error::other(format!("/proc/{pid}/stat has no start time"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_is_not_alive_and_its_recycled_pid_is_not_touched() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let start_time = start_time(child.id()).unwrap().unwrap();
        let other = ProcessId { pid: child.id(), start_time: start_time + 1 };
        other.kill(Duration::from_secs(5)).unwrap();
        let process = ProcessId { pid: child.id(), start_time };
        assert!(process.is_alive() && !other.is_alive());
        process.kill(Duration::from_secs(5)).unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
