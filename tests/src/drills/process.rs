//! Killing and stopping a process, by a pidfd: a process ID may be another's by the time it is used.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::{LOOK_AGAIN, PATIENCE};

/// A process of a test's own.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    fd: OwnedFd,
}

impl Process {
    pub fn open(pid: i32) -> Result<Process> {
        let raw = Pid::from_raw(pid).context("no process has this ID")?;
        let fd =
            pidfd_open(raw, PidfdFlags::empty()).with_context(|| format!("looking for process {pid}"))?;
        Ok(Process { pid, fd })
    }

    /// What it was started with, its own name first.
    pub fn arguments(&self) -> Result<Vec<String>> {
        let path = format!("/proc/{}/cmdline", self.pid);
        let bytes = std::fs::read(&path).with_context(|| format!("reading {path}"))?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.split_terminator('\0').map(str::to_owned).collect())
    }

    /// Ends it without a warning, and waits until it is gone.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait()
    }

    /// The same for several, all at once.
    pub fn kill_all(all: Vec<Process>) -> Result<()> {
        for process in &all {
            match process.signal(Signal::KILL) {
                // It has ended by itself.
                Err(error) if error.downcast_ref() == Some(&rustix::io::Errno::SRCH) => {}
                sent => sent?,
            }
        }
        all.iter().try_for_each(Process::wait)
    }

    fn wait(&self) -> Result<()> {
        let patience = Timespec { tv_sec: PATIENCE.as_secs().try_into()?, tv_nsec: 0 };
        let n_ended = poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&patience))?;
        ensure!(n_ended == 1, "process {} does not end", self.pid);
        Ok(())
    }

    /// Makes it stand still until the guard is dropped.
    pub fn stop(&self) -> Result<Stopped<'_>> {
        self.signal(Signal::STOP)?;
        // From here on it is let go again, whatever happens.
        let stopped = Stopped { process: self };
        for _ in 0..PATIENCE.as_millis() / LOOK_AGAIN.as_millis() {
            if self.is_stopped()? {
                return Ok(stopped);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        anyhow::bail!("process {} does not stop", self.pid)
    }

    /// Whether all of its threads stand still.
    fn is_stopped(&self) -> Result<bool> {
        let tasks = format!("/proc/{}/task", self.pid);
        for task in std::fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
            let stat = std::fs::read_to_string(task?.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            // One that has just ended does not stand in the way.
            if state.is_some_and(|state| state != 'T') {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let sent = pidfd_send_signal(&self.fd, signal);
        sent.with_context(|| format!("sending {signal:?} to process {}", self.pid))
    }

    /// Whether it ends within a time.
    pub fn ends_within(&self, time: Duration) -> Result<bool> {
        let time = Timespec { tv_sec: time.as_secs().try_into()?, tv_nsec: time.subsec_nanos().into() };
        Ok(poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&time))? == 1)
    }
}

/// A process that stands still. Dropping it lets the process go on.
#[derive(Debug)]
pub struct Stopped<'p> {
    process: &'p Process,
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        // One that was killed meanwhile has nothing to go on with.
        let _ = self.process.signal(Signal::CONT);
    }
}

/// A process that a test starts by hand in place of one of a cluster's, ended with the test.
#[derive(Debug)]
pub struct Started(Child);

impl Started {
    /// The same again, in the network namespace of a node, with its log in a file.
    pub fn like(
        arguments: &[String],
        netns: &Path,
        log: &Path,
        environment: &[(String, String)],
    ) -> Result<Started> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", netns.display())).arg("env");
        command.args(environment.iter().map(|(name, value)| format!("{name}={value}")));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        let log = std::fs::File::create(log).context("creating the log")?;
        Ok(Started(command.stderr(log).spawn().context("starting it by hand")?))
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};

    use super::*;

    /// A process that answers each line with itself.
    fn echo() -> Child {
        Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    }

    fn of(child: &Child) -> Process {
        Process::open(i32::try_from(child.id()).unwrap()).unwrap()
    }

    #[test]
    fn a_stopped_process_answers_once_it_goes_on() {
        let mut child = echo();
        let process = of(&child);
        let stopped = process.stop().unwrap();
        assert!(process.is_stopped().unwrap());
        child.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
        drop(stopped);
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "hello\n");
        process.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_stopped_process_can_be_killed_and_then_is_gone() {
        let mut child = echo();
        let (process, killer) = (of(&child), of(&child));
        let stopped = process.stop().unwrap();
        assert!(!killer.ends_within(Duration::ZERO).unwrap());
        killer.kill().unwrap();
        drop(stopped);
        assert!(!child.wait().unwrap().success());
        assert!(Process::open(i32::try_from(child.id()).unwrap()).is_err());
    }
}
