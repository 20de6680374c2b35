use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::group::{Backend, Freeze, Version};
use crate::limits::{DEFAULT_CPU_PERIOD_US, MAX_SHARES, MIN_SHARES};
use crate::tree::{self, THIS_THREAD, keyed};
use crate::{Error, GroupPath, Limits, Usage};

/// The controllers that Skiff itself needs. Those that only a runtime uses (devices, blkio, …) it leaves to
/// the runtime, but removes their directories with the rest.
const NEEDED: [&str; 5] = ["memory", "cpu", "cpuacct", "cpuset", "pids"];

/// Used where it is there.
const FREEZER: &str = "freezer";

/// cgroup v1's hierarchies below one directory, as distributions mount them: `cpu`, `memory`, or several
/// controllers in one, `cpu,cpuacct`.
#[derive(Debug)]
pub struct V1 {
    /// The mount of each controller that Skiff uses.
    controllers: BTreeMap<&'static str, PathBuf>,
    /// All mounts, named hierarchies and hybrid's v2 included: runtimes make groups there too.
    mounts: Vec<PathBuf>,
}

impl V1 {
    /// Reads the mounts from the names of the directories below `root`.
    pub fn detect(root: &Path) -> Result<V1, Error> {
        let entries = fs::read_dir(root).map_err(|_| Error::NotMounted { root: root.to_owned() })?;
        let mut controllers = BTreeMap::new();
        let mut mounts = Vec::new();
        for entry in entries.flatten() {
            // `cpu` is a link to `cpu,cpuacct` on some hosts: not a mount of its own.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let Ok(name) = entry.file_name().into_string() else { continue };
            for controller in name.split(',') {
                if let Some(known) = NEEDED.iter().chain(&[FREEZER]).find(|known| **known == controller) {
                    controllers.insert(*known, entry.path());
                }
            }
            mounts.push(entry.path());
        }
        let missing: Vec<_> = NEEDED.into_iter().filter(|name| !controllers.contains_key(name)).collect();
        match missing.len() {
            0 => Ok(V1 { controllers, mounts }),
            n if n == NEEDED.len() => Err(Error::NotMounted { root: root.to_owned() }),
            _ => Err(Error::MissingControllers { root: root.to_owned(), missing: missing.join(", ") }),
        }
    }

    fn directory(&self, controller: &str, path: &GroupPath) -> PathBuf {
        // `detect` has made sure of every needed controller; the freezer is asked for by `get`.
        self.controllers.get(controller).map(|mount| mount.join(path)).unwrap_or_default()
    }

    fn file(&self, controller: &str, path: &GroupPath, file: &str) -> PathBuf {
        self.directory(controller, path).join(file)
    }

    /// A mount may carry several controllers: each directory once, memory's first.
    fn mounts_used(&self) -> Vec<&PathBuf> {
        let mut used = Vec::new();
        for controller in NEEDED.iter().chain(&[FREEZER]) {
            if let Some(mount) = self.controllers.get(controller)
                && !used.contains(&mount)
            {
                used.push(mount);
            }
        }
        used
    }

    /// A new cpuset is empty, and no process may enter it until it has CPUs and memory nodes.
    fn fill_cpuset(&self, path: &GroupPath) -> Result<(), Error> {
        let Some(mount) = self.controllers.get("cpuset") else { return Ok(()) };
        for prefix in path.prefixes() {
            let directory = mount.join(prefix);
            let parent = directory.parent().unwrap_or(mount);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if tree::read(&directory.join(file))?.trim().is_empty() {
                    tree::write(&directory.join(file), tree::read(&parent.join(file))?.trim())?;
                }
            }
        }
        Ok(())
    }
}

/// The file by which a process of one thread moves itself. Where there are threads' files it is theirs: a move by
/// `cgroup.procs` waits until no thread of the machine is being made. Hybrid's v2 has the other only.
fn own_members(mount: &Path) -> &'static str {
    if mount.join("cgroup.controllers").exists() { "cgroup.procs" } else { "tasks" }
}

impl Backend for V1 {
    fn version(&self) -> Version {
        Version::V1
    }

    fn require_writable(&self) -> Result<(), Error> {
        self.mounts_used().into_iter().try_for_each(|mount| tree::require_writable(mount))
    }

    fn make_room(&self) -> Result<(), Error> {
        // Every group of v1 may have processes and children both.
        Ok(())
    }

    fn create(&self, path: &GroupPath) -> Result<(), Error> {
        for mount in self.mounts_used() {
            for prefix in path.prefixes() {
                tree::create(&mount.join(prefix))?;
            }
        }
        self.fill_cpuset(path)
    }

    fn create_threaded(&self, path: &GroupPath) -> Result<(), Error> {
        for controller in ["cpu", "cpuacct"] {
            if let Some(mount) = self.controllers.get(controller) {
                for prefix in path.prefixes() {
                    tree::create(&mount.join(prefix))?;
                }
            }
        }
        Ok(())
    }

    fn set(&self, path: &GroupPath, limits: &Limits) -> Result<(), Error> {
        if let Some(shares) = limits.cpu_shares {
            let shares = shares.clamp(MIN_SHARES, MAX_SHARES);
            tree::write(&self.file("cpu", path, "cpu.shares"), &shares.to_string())?;
        }
        if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
            let period = limits.cpu_period_us.filter(|period| *period > 0).unwrap_or(DEFAULT_CPU_PERIOD_US);
            tree::write(&self.file("cpu", path, "cpu.cfs_period_us"), &period.to_string())?;
        }
        if let Some(quota) = limits.cpu_quota_us {
            let quota = if quota <= 0 { -1 } else { quota };
            tree::write(&self.file("cpu", path, "cpu.cfs_quota_us"), &quota.to_string())?;
        }
        if let Some(bytes) = limits.memory_bytes {
            tree::write(&self.file("memory", path, "memory.limit_in_bytes"), &bytes.max(-1).to_string())?;
        }
        if let Some(pids) = limits.pids {
            let text = if pids <= 0 { "max".to_owned() } else { pids.to_string() };
            tree::write(&self.file("pids", path, "pids.max"), &text)?;
        }
        Ok(())
    }

    fn usage(&self, path: &GroupPath) -> Result<Usage, Error> {
        let memory_bytes = tree::read_u64(&self.file("memory", path, "memory.usage_in_bytes"))?;
        let stat = tree::read(&self.file("memory", path, "memory.stat"))?;
        let oom = tree::read(&self.file("memory", path, "memory.oom_control"))?;
        Ok(Usage {
            cpu_ns: tree::read_u64(&self.file("cpuacct", path, "cpuacct.usage"))?,
            memory_bytes,
            working_set_bytes: memory_bytes.saturating_sub(keyed(&stat, "total_inactive_file")),
            memory_peak_bytes: tree::read_u64(&self.file("memory", path, "memory.max_usage_in_bytes"))?,
            rss_bytes: keyed(&stat, "total_rss"),
            page_faults: keyed(&stat, "total_pgfault"),
            major_page_faults: keyed(&stat, "total_pgmajfault"),
            n_pids: tree::read_u64(&self.file("pids", path, "pids.current"))?,
            n_oom_kills: keyed(&oom, "oom_kill"),
        })
    }

    fn adopt(&self, path: &GroupPath) -> Result<(), Error> {
        let needed = self.mounts_used();
        for mount in &self.mounts {
            let moved = path
                .prefixes()
                .try_for_each(|prefix| tree::create(&mount.join(prefix)))
                .and_then(|()| tree::write(&mount.join(path).join(own_members(mount)), THIS_THREAD));
            match moved {
                // Not ours to make groups in, such as a hierarchy that is mounted read-only.
                Err(err) if !needed.contains(&mount) => tracing::debug!("{err}"),
                other => other?,
            }
        }
        Ok(())
    }

    fn add_process(&self, path: &GroupPath, pid: u32) -> Result<(), Error> {
        for mount in self.mounts_used() {
            tree::write(&mount.join(path).join("cgroup.procs"), &pid.to_string())?;
        }
        Ok(())
    }

    fn add_this_thread(&self, path: &GroupPath) -> Result<(), Error> {
        tree::write(&self.file("cpu", path, "tasks"), THIS_THREAD)?;
        if self.directory("cpuacct", path) != self.directory("cpu", path) {
            tree::write(&self.file("cpuacct", path, "tasks"), THIS_THREAD)?;
        }
        Ok(())
    }

    fn freeze(&self, path: &GroupPath, freeze: Freeze) -> Result<(), Error> {
        let Some(mount) = self.controllers.get(FREEZER) else {
            let missing = FREEZER.to_owned();
            return Err(Error::MissingControllers { root: self.directory("memory", path), missing });
        };
        let state = match freeze {
            Freeze::Frozen => "FROZEN",
            Freeze::Thawed => "THAWED",
        };
        tree::write(&mount.join(path).join("freezer.state"), state)
    }

    fn kill(&self, _path: &GroupPath) -> Result<bool, Error> {
        Ok(false)
    }

    fn directories(&self, path: &GroupPath) -> Vec<PathBuf> {
        let mut directories: Vec<_> = self.mounts_used().iter().map(|mount| mount.join(path)).collect();
        let others = self.mounts.iter().map(|mount| mount.join(path));
        let new: Vec<_> = others.filter(|other| !directories.contains(other)).collect();
        directories.extend(new);
        directories
    }

    fn remove(&self, path: &GroupPath) -> Result<(), Error> {
        self.directories(path).iter().try_for_each(|directory| tree::remove(directory))
    }
}
