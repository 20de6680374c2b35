//! Upstream's own programs as one cluster, in namespaces of its own.
//!
//! ```text
//!  programs      tests/peers/*/go.mod, crates.io, Debian → the cache            once a version
//!  certificates  one authority, one kubeconfig for each program                 once a version
//!  space         network, mounts, pids, cgroup: what the cluster can touch      each time
//!  parts         how each program is started
//! ```
//!
//! Nothing of it reaches the host's network, and the end of the first process of its namespace is the end of all others.
//! What the machine itself is changed in, such as the sysctls that a kubelet sets, is recorded before and put back; a run
//! that was killed is cleaned up by its record when the next one begins.

mod certificates;
mod containers;
mod parts;
mod programs;
mod space;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::command::{cache, output};
use crate::fixtures::Served;
use certificates::Certificates;
pub(crate) use parts::{NODE_IP, Part};
pub(crate) use programs::Programs;
use space::{Running, Space};
pub(crate) use space::{accounting_root, in_group, remove_group};

/// A cluster of some of upstream's programs, or just its namespaces.
pub(crate) struct Peers {
    programs: Programs,
    certificates: Certificates,
    space: Space,
    running: BTreeMap<Part, Running>,
    /// Programs that are no part of a cluster.
    others: Vec<Running>,
}

const SOCKET_TIMEOUT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Peers {
    /// Namespaces and an empty store; nothing runs yet. Builds what of the programs is not there. `served` is what
    /// containerd pulls from.
    pub(crate) fn prepare(programs: &Programs, parts: &[Part], served: Option<&Served>) -> Result<Peers> {
        parts.iter().try_for_each(|part| programs.require(part.program()))?;
        let certificates = Certificates::make(&programs.dir.join("pki"))?;
        let images = match (parts.contains(&Part::Containerd), served) {
            (true, Some(served)) => Some(containers::images(programs, served)?),
            (true, None) => bail!("containerd needs a registry with images"),
            (false, _) => None,
        };
        let space = Space::make(programs, &run_dir()?)?;
        let (running, others) = (BTreeMap::new(), Vec::new());
        let peers = Peers { programs: programs.clone(), certificates, space, running, others };
        if let Some(images) = images {
            containers::use_images(&images, &peers.space.dir)?;
        }
        Ok(peers)
    }

    /// Starts parts in the order in which they need each other: clients that would give up wait for `api_ready`.
    pub(crate) fn launch(&mut self, parts: &[Part], api_ready: impl FnOnce() -> Result<()>) -> Result<()> {
        let wanted = |early: bool| parts.iter().filter(move |part| part.waits_for_api() != early);
        for part in wanted(true) {
            if *part == Part::Kubelet {
                self.await_containerd()?;
            }
            self.start(*part)?;
        }
        if parts.contains(&Part::ApiServer) {
            api_ready().with_context(|| self.log_of(Part::ApiServer))?;
        }
        wanted(false).try_for_each(|part| self.start(*part))
    }

    fn start(&mut self, part: Part) -> Result<()> {
        let arguments = part.prepare(&self.programs, &self.certificates, &self.space.dir)?;
        let running = self.space.start(part.program(), &self.programs.path(part.program()), &arguments)?;
        self.running.insert(part, running);
        Ok(())
    }

    /// Without its runtime's socket the kubelet ends at once; a service manager would start it again.
    fn await_containerd(&self) -> Result<()> {
        let socket = self.space.path(containers::SOCKET);
        let end = Instant::now() + SOCKET_TIMEOUT;
        while !socket.exists() {
            if Instant::now() > end {
                bail!("containerd has no socket; {}", self.log_of(Part::Containerd));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn log_of(&self, part: Part) -> String {
        format!("the log of {} ends:\n{}", part.program(), self.space.log_end(part.program()))
    }

    /// Starts a program that is no part of a cluster.
    pub(crate) fn run(&mut self, name: &str, program: &Path, arguments: &[String]) -> Result<()> {
        self.others.push(self.space.start(name, program, arguments)?);
        Ok(())
    }

    /// Ends what [`Peers::run`] has started.
    pub(crate) fn end_others(&mut self) -> Result<()> {
        self.others.drain(..).try_for_each(Running::end)
    }

    pub(crate) fn netns(&self) -> PathBuf {
        space::netns()
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.certificates.kubeconfig("admin")
    }

    pub(crate) fn group(&self) -> PathBuf {
        space::group()
    }

    /// Ends every program and undoes the namespaces.
    pub(crate) fn down(mut self) -> Result<()> {
        self.undo()
    }

    fn undo(&mut self) -> Result<()> {
        // Those that use others first.
        let ended = self.running.keys().rev().copied().collect::<Vec<_>>().into_iter();
        let ended: Vec<Result<()>> =
            ended.filter_map(|part| self.running.remove(&part)).map(Running::end).collect();
        self.space.undo()?;
        ended.into_iter().collect()
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // After `down` there is nothing to do; a bench that failed has its own error to report.
        if let Err(error) = self.undo() {
            eprintln!("cleaning up after upstream's programs: {error:#}");
        }
    }
}

fn run_dir() -> Result<PathBuf> {
    Ok(cache()?.join("peers/run"))
}

/// Removes what a run that was killed has left.
pub(crate) fn clean() -> Result<()> {
    space::clean(&run_dir()?)
}

/// Sends a signal to a process of ours.
fn signal(name: &str, pid: u32) -> Result<()> {
    output(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string())).map(drop)
}
