//! Processes that Skiff starts and ends: known by their pid and start time, never by name.

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// A process that was started, as it is written to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Started {
    pub(crate) pid: i32,
    /// In clock ticks after the machine's start: tells a process from a later one with its pid.
    start_ticks: u64,
    /// Which start that was; 0 in records of earlier versions.
    #[serde(default)]
    boot: u64,
}

impl Started {
    pub(crate) fn of(pid: u32) -> Result<Started> {
        let pid = i32::try_from(pid).context("a pid out of range")?;
        let start_ticks = start_ticks(pid).with_context(|| format!("process {pid} has already ended"))?;
        Ok(Started { pid, start_ticks, boot: boot() })
    }

    pub(crate) fn runs(&self) -> bool {
        // The machine that boots alike each time may give its pids at the same ticks.
        let is_of_this_boot = self.boot == 0 || self.boot == boot();
        is_of_this_boot && start_ticks(self.pid) == Some(self.start_ticks) && !is_zombie(self.pid)
    }

    /// Asks the process to end, and kills it if it has not ended within `grace`.
    pub(crate) fn end(&self, grace: Duration) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.runs()) else { return Ok(()) };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        // Between the look and the open the pid may have become another process's.
        if !self.runs() {
            return Ok(());
        }
        for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, Duration::from_secs(10))] {
            match pidfd_send_signal(&handle, signal) {
                Ok(()) => {}
                Err(rustix::io::Errno::SRCH) => return Ok(()),
                Err(error) => return Err(error).with_context(|| format!("ending process {}", self.pid)),
            }
            if ended(&handle, patience)? {
                return Ok(());
            }
        }
        anyhow::bail!("process {} does not end, even killed", self.pid)
    }
}

/// A pidfd becomes readable when its process has ended.
fn ended(handle: &impl std::os::fd::AsFd, patience: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    loop {
        let mut fds = [PollFd::new(handle, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(n) => return Ok(n > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Tells this start of the machine from others: the first half of what the kernel drew for it; 0 where it does not say.
fn boot() -> u64 {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or(0)
}

fn stat(pid: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

fn start_ticks(pid: i32) -> Option<u64> {
    // The name, in parentheses, may hold anything; the start time is the 20th field after it.
    stat(pid)?.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn is_zombie(pid: i32) -> bool {
    stat(pid).and_then(|s| Some(s.rsplit_once(')')?.1.trim_start().starts_with('Z'))).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ended_once_and_a_later_one_with_its_pid_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let started = Started::of(child.id()).unwrap();
        assert!(started.runs());
        let other = Started { start_ticks: started.start_ticks + 1, ..started };
        other.end(Duration::ZERO).unwrap();
        assert!(started.runs(), "a process with another start time was ended");
        let of_last_boot = Started { boot: started.boot ^ 1, ..started };
        assert!(!of_last_boot.runs(), "a process of before the machine's restart is taken for one of now");
        of_last_boot.end(Duration::ZERO).unwrap();
        assert!(started.runs());
        started.end(Duration::from_secs(5)).unwrap();
        child.wait().unwrap();
        assert!(!started.runs());
    }
}
