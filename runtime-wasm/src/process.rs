//! Processes by boot, PID and start time, and signals through pidfds: a recycled PID is never touched. Whether a process has
//! ended is asked of its pidfd: one whose first thread has ended is shown as a zombie while its other threads go on.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat`.
    pub(crate) start_time: u64,
    /// The boot it belongs to, since after another one a process may well have the same PID at the same tick; 0 in records of
    /// versions that did not say.
    #[serde(default)]
    pub(crate) boot: u64,
}

impl ProcessId {
    pub(crate) fn current() -> io::Result<ProcessId> {
        let pid = std::process::id();
        match start_time(pid)? {
            Some(start_time) => Ok(ProcessId { pid, start_time, boot: boot()? }),
            None => Err(io::Error::other("this process is not in /proc")),
        }
    }

    /// Whether a thread of this very process still runs. What cannot be found out counts as running.
    pub(crate) fn is_alive(&self) -> bool {
        match self.open() {
            Ok(Some(pidfd)) => await_end(&pidfd, Duration::ZERO).is_err(),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Whether it was a process of this boot.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        self.boot == 0 || boot().map_or(true, |now| now == self.boot)
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
        if !self.is_of_this_boot() {
            return Ok(None);
        }
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            other => other?,
        };
        // Asked after the pidfd was opened: it refers to the process whose start time this is.
        Ok(start_time(self.pid)?.is_some_and(|start| start == self.start_time).then_some(pidfd))
    }
}

fn await_end(pidfd: &OwnedFd, patience: Duration) -> io::Result<()> {
    let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// The first digits of this boot's identity, as a number.
fn boot() -> io::Result<u64> {
    static BOOT: OnceLock<u64> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(*boot);
    }
    let id = skiff_cri::keep::boot_id()?;
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    let boot = u64::from_str_radix(&digits, 16).map_err(io::Error::other)?;
    Ok(*BOOT.get_or_init(|| boot))
}

/// `None` if there is no such process.
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(err) if err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(libc::ESRCH) => {
            return Ok(None);
        }
        other => other?,
    };
    // The name, in parentheses, may hold anything; the fields after it start with the third, the state.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields).unwrap_or_default();
    match fields.split(' ').nth(19).and_then(|field| field.parse().ok()) {
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
        let other = ProcessId { pid: child.id(), start_time: start_time + 1, boot: 0 };
        other.kill(Duration::from_secs(5)).unwrap();
        let before = ProcessId { pid: child.id(), start_time, boot: boot().unwrap() ^ 1 };
        before.kill(Duration::from_secs(5)).unwrap();
        let process = ProcessId { pid: child.id(), start_time, boot: boot().unwrap() };
        assert!(process.is_alive() && !other.is_alive() && !before.is_alive());
        process.kill(Duration::from_secs(5)).unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }

    /// A process whose first thread ends and whose second goes on until it is killed.
    const LEADERLESS: &str = "
import ctypes, threading
threading.Thread(target=threading.Event().wait).start()
print('up', flush=True)
ctypes.CDLL(None).pthread_exit(None)
";

    #[test]
    fn a_process_whose_first_thread_has_ended_is_alive_until_its_last_one_has() {
        use std::io::BufRead as _;
        let mut python = std::process::Command::new("python3");
        python.args(["-c", LEADERLESS]).stdout(std::process::Stdio::piped());
        let mut child = python.spawn().unwrap();
        let mut said = String::new();
        io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let start_time = start_time(child.id()).unwrap().unwrap();
        let process = ProcessId { pid: child.id(), start_time, boot: 0 };
        let is_zombie = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('Z')
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !is_zombie() {
            assert!(std::time::Instant::now() < deadline, "its first thread ends");
            std::thread::yield_now();
        }
        assert!(process.is_alive());
        assert_eq!(process.wait(Duration::ZERO).unwrap_err().kind(), io::ErrorKind::TimedOut);
        process.kill(Duration::from_secs(5)).unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
