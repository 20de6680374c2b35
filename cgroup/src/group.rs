use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::{Error, GroupPath, Limits, Usage, v1, v2};

/// Where every distribution mounts control groups.
const DEFAULT_ROOT: &str = "/sys/fs/cgroup";

/// Rounds of SIGKILL before a group counts as unkillable: with the waits between them, about five seconds.
const N_KILL_ROUNDS: u32 = 90;

/// Which hierarchy a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy a controller, perhaps with an empty v2 beside them (hybrid).
    V1,
    /// The unified hierarchy alone.
    V2,
}

/// Whether the processes of a group run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freeze {
    /// They stand still.
    Frozen,
    /// They run.
    Thawed,
}

/// What differs between the two hierarchies.
pub trait Backend: Send + Sync + std::fmt::Debug + 'static {
    /// Which of them it is.
    fn version(&self) -> Version;
    /// Fails if no group can be made.
    fn require_writable(&self) -> Result<(), Error>;
    /// Sees to it that the root can hand its controllers down.
    fn make_room(&self) -> Result<(), Error>;
    /// Makes the group and those above it where they are missing.
    fn create(&self, path: &GroupPath) -> Result<(), Error>;
    /// Makes a group for threads of processes that are in the group above.
    fn create_threaded(&self, path: &GroupPath) -> Result<(), Error>;
    /// Sets what is `Some`.
    fn set(&self, path: &GroupPath, limits: &Limits) -> Result<(), Error>;
    /// Reads what the group uses.
    fn usage(&self, path: &GroupPath) -> Result<Usage, Error>;
    /// Moves the calling process in, which has one thread, in every hierarchy that there is.
    fn adopt(&self, path: &GroupPath) -> Result<(), Error>;
    /// Moves a whole process in.
    fn add_process(&self, path: &GroupPath, pid: u32) -> Result<(), Error>;
    /// Moves the calling thread in, for CPU only.
    fn add_this_thread(&self, path: &GroupPath) -> Result<(), Error>;
    /// Stops or resumes every process of the group.
    fn freeze(&self, path: &GroupPath, freeze: Freeze) -> Result<(), Error>;
    /// Sends SIGKILL to all at once, if the kernel can: `false` if it cannot.
    fn kill(&self, path: &GroupPath) -> Result<bool, Error>;
    /// The directories that make up the group; the first is the one whose members count.
    fn directories(&self, path: &GroupPath) -> Vec<PathBuf>;
    /// Removes the group and all below it.
    fn remove(&self, path: &GroupPath) -> Result<(), Error>;
}

/// The host's control groups.
#[derive(Clone, Debug)]
pub struct Cgroups {
    backend: Arc<dyn Backend>,
}

impl Cgroups {
    /// Finds the host's hierarchies below `/sys/fs/cgroup`.
    pub fn detect() -> Result<Cgroups, Error> {
        Cgroups::at(Path::new(DEFAULT_ROOT))
    }

    /// Finds the hierarchies below `root`: v2 if `root` itself is one, else v1's mounts.
    pub fn at(root: &Path) -> Result<Cgroups, Error> {
        if root.join("cgroup.controllers").exists() {
            return Ok(Cgroups { backend: Arc::new(v2::V2::detect(root)?) });
        }
        Ok(Cgroups { backend: Arc::new(v1::V1::detect(root)?) })
    }

    /// Which hierarchy this is.
    pub fn version(&self) -> Version {
        self.backend.version()
    }

    /// Fails if groups cannot be made here at all, as on a tree that is mounted read-only.
    pub fn require_writable(&self) -> Result<(), Error> {
        self.backend.require_writable()
    }

    /// What has to be done once, before a node makes its first group. In a cgroup namespace of its own, as in a privileged
    /// container, the root is a group like any other: while it has processes it hands no controllers down. They move to a child,
    /// `init`, as with k3s and kind.
    pub fn prepare(&self) -> Result<(), Error> {
        self.require_writable()?;
        self.backend.make_room()
    }

    /// The group at `path`, which may not exist yet.
    pub fn group(&self, path: &str) -> Result<Group, Error> {
        Ok(Group { backend: self.backend.clone(), path: GroupPath::new(path)? })
    }

    /// Makes the group at `path`, if it is not there, and sets its limits.
    pub fn create(&self, path: &str, limits: &Limits) -> Result<Group, Error> {
        let group = self.group(path)?;
        group.create()?;
        group.set(limits)?;
        Ok(group)
    }
}

/// One control group, in all hierarchies that it needs.
#[derive(Clone, Debug)]
pub struct Group {
    backend: Arc<dyn Backend>,
    path: GroupPath,
}

impl Group {
    /// Its path below the root, without a leading slash.
    pub fn path(&self) -> &str {
        self.path.as_str()
    }

    /// The group called `name` inside this one.
    pub fn child(&self, name: &str) -> Result<Group, Error> {
        Ok(Group { backend: self.backend.clone(), path: self.path.join(name)? })
    }

    /// The names of the groups right below, in whichever hierarchies they are; none if it does not exist.
    pub fn children(&self) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        for directory in self.backend.directories(&self.path) {
            names.extend(crate::tree::children(&directory)?);
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.backend.directories(&self.path).first().is_some_and(|directory| directory.is_dir())
    }

    /// Makes it and the groups above where they are missing.
    pub fn create(&self) -> Result<(), Error> {
        self.backend.create(&self.path)
    }

    /// Makes a group for threads of the processes that are in this one. On v2 it is a threaded group, and
    /// this one becomes its domain; on v1 any group takes threads.
    pub fn create_threaded(&self, name: &str) -> Result<Group, Error> {
        let child = self.child(name)?;
        self.backend.create_threaded(&child.path)?;
        Ok(child)
    }

    /// Sets the limits that are `Some`.
    pub fn set(&self, limits: &Limits) -> Result<(), Error> {
        self.backend.set(&self.path, limits)
    }

    /// What it and the groups below use.
    pub fn usage(&self) -> Result<Usage, Error> {
        self.backend.usage(&self.path)
    }

    /// Makes the group and moves the calling process in, which must have no second thread yet: in every hierarchy, also
    /// in those that limit nothing. By these an init system knows whom to end with a unit or a login.
    pub fn adopt_this_process(&self) -> Result<(), Error> {
        self.create()?;
        self.backend.adopt(&self.path)
    }

    /// Moves a process in, with all its threads.
    pub fn add_process(&self, pid: u32) -> Result<(), Error> {
        self.backend.add_process(&self.path, pid)
    }

    /// Moves the calling thread in, as far as CPU time and its accounting go. On v2 the group must be threaded
    /// and lie in the domain that the thread's process is in.
    ///
    /// Only the calling thread, because that is cheap: to move another, the kernel first waits until no thread of
    /// the machine is being made, some 10 ms.
    pub fn add_this_thread(&self) -> Result<(), Error> {
        self.backend.add_this_thread(&self.path)
    }

    /// The processes in it and in the groups below; none if it does not exist.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        match self.backend.directories(&self.path).first() {
            Some(directory) => crate::tree::pids(directory),
            None => Ok(Vec::new()),
        }
    }

    /// Stops or resumes all processes.
    pub fn freeze(&self, freeze: Freeze) -> Result<(), Error> {
        self.backend.freeze(&self.path, freeze)
    }

    /// Kills every process in it and below, and waits until they are gone. Succeeds if there are none.
    pub fn kill(&self) -> Result<(), Error> {
        if !self.exists() {
            return Ok(());
        }
        let all_at_once = self.backend.kill(&self.path)?;
        let mut wait = Duration::from_millis(1);
        for round in 0..N_KILL_ROUNDS {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            if !all_at_once {
                self.kill_each(&pids, round);
            }
            thread::sleep(wait);
            wait = (wait * 2).min(Duration::from_millis(64));
        }
        Err(Error::StillAlive { path: self.path.to_string(), pids: self.pids()? })
    }

    /// Removes it and everything below; its processes must be gone or going. Succeeds if it is not there.
    pub fn remove(&self) -> Result<(), Error> {
        self.backend.remove(&self.path)
    }

    /// One round of SIGKILL. From the second round on the group is frozen meanwhile, so that a process that
    /// forks faster than it is killed cannot get away.
    fn kill_each(&self, pids: &[u32], round: u32) {
        let frozen = round > 0 && self.freeze(Freeze::Frozen).is_ok();
        let fresh = if frozen { self.pids().unwrap_or_default() } else { Vec::new() };
        for &pid in if frozen { &fresh } else { pids } {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // A process that is gone already needs no signal.
                let _gone = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        if frozen && let Err(err) = self.freeze(Freeze::Thawed) {
            tracing::warn!(cgroup = %self.path, "thaw after kill: {err}");
        }
    }
}
