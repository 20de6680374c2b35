use std::path::{Path, PathBuf};

use crate::group::{Backend, Freeze, Version};
use crate::limits::{DEFAULT_CPU_PERIOD_US, weight_of_shares};
use crate::tree::{self, THIS_THREAD, keyed};
use crate::{Error, GroupPath, Limits, Usage};

/// The controllers handed down to every group, where the kernel has them.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// Those without which no limit that pods are given would bind.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// Those that a threaded group can have.
const THREADED: [&str; 3] = ["cpu", "cpuset", "pids"];

/// cgroup v2's one hierarchy.
#[derive(Debug)]
pub struct V2 {
    root: PathBuf,
}

/// The group of what was in the root of this cgroup namespace.
const ROOTS_PROCESSES: &str = "init";

/// How often the root's processes are moved: what they start meanwhile is in the root again.
const N_MOVES: usize = 20;

/// Enables controllers, all at once if the kernel takes them so. One that it refuses, as `hugetlb` in some containers, must
/// not take the others with it.
fn enable(missing: &[&str], write: impl Fn(&str) -> Result<(), Error>) -> Result<(), Error> {
    let text = |names: &[&str]| names.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
    if write(&text(missing)).is_ok() {
        return Ok(());
    }
    for name in missing {
        match write(&text(&[*name])) {
            Err(err) if !NEEDED.contains(name) => {
                tracing::debug!("going without the controller {name}: {err}")
            }
            other => other?,
        }
    }
    Ok(())
}

impl V2 {
    /// The hierarchy mounted at `root`.
    pub fn detect(root: &Path) -> Result<V2, Error> {
        let has = tree::read(&root.join("cgroup.controllers"))?;
        let missing: Vec<_> =
            NEEDED.into_iter().filter(|name| !has.split_whitespace().any(|known| known == *name)).collect();
        match missing.is_empty() {
            true => Ok(V2 { root: root.to_owned() }),
            false => Err(Error::MissingControllers { root: root.to_owned(), missing: missing.join(", ") }),
        }
    }

    fn file(&self, path: &GroupPath, file: &str) -> PathBuf {
        self.root.join(path).join(file)
    }

    /// Hands those of `wanted` that `directory` has itself down to its children.
    fn delegate(&self, directory: &Path, wanted: &[&str]) -> Result<(), Error> {
        let has = tree::read(&directory.join("cgroup.controllers"))?;
        let handed = tree::read(&directory.join("cgroup.subtree_control"))?;
        let missing: Vec<_> = has
            .split_whitespace()
            .filter(|name| wanted.contains(name) && !handed.split_whitespace().any(|given| given == *name))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        enable(&missing, |text| tree::write(&directory.join("cgroup.subtree_control"), text))
    }

    /// The processes right in the root that can be named. Those of another PID namespace show as 0.
    fn in_root(&self) -> Result<Vec<u32>, Error> {
        let text = tree::read(&self.root.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect())
    }

    /// A number of a file that not every kernel or group has.
    fn optional(&self, path: &GroupPath, file: &str) -> Result<u64, Error> {
        match tree::read_u64(&self.file(path, file)) {
            Err(err) if err.is_not_found() => Ok(0),
            other => other,
        }
    }

    fn optional_text(&self, path: &GroupPath, file: &str) -> Result<String, Error> {
        match tree::read(&self.file(path, file)) {
            Err(err) if err.is_not_found() => Ok(String::new()),
            other => other,
        }
    }
}

impl Backend for V2 {
    fn version(&self) -> Version {
        Version::V2
    }

    fn require_writable(&self) -> Result<(), Error> {
        tree::require_writable(&self.root)
    }

    fn make_room(&self) -> Result<(), Error> {
        // The kernel's own root has no type, and hands down whatever is in it.
        if !self.root.join("cgroup.type").exists() {
            return Ok(());
        }
        let child = self.root.join(ROOTS_PROCESSES);
        for _ in 0..N_MOVES {
            let pids = self.in_root()?;
            if pids.is_empty() {
                return Ok(());
            }
            tree::create(&child)?;
            for pid in pids {
                match tree::write(&child.join("cgroup.procs"), &pid.to_string()) {
                    // It ended meanwhile.
                    Err(err) if err.is_not_found() => {}
                    other => other?,
                }
            }
        }
        match self.in_root()? {
            pids if pids.is_empty() => Ok(()),
            pids => Err(Error::BusyRoot { root: self.root.clone(), pids }),
        }
    }

    fn create(&self, path: &GroupPath) -> Result<(), Error> {
        let mut parent = self.root.clone();
        for prefix in path.prefixes() {
            self.delegate(&parent, &CONTROLLERS)?;
            parent = self.root.join(prefix);
            tree::create(&parent)?;
        }
        Ok(())
    }

    fn create_threaded(&self, path: &GroupPath) -> Result<(), Error> {
        let directory = self.root.join(path);
        tree::create(&directory)?;
        // First the type, then the controllers: a group with processes may only hand controllers down to
        // threaded children.
        if tree::read(&directory.join("cgroup.type"))?.trim() != "threaded" {
            tree::write(&directory.join("cgroup.type"), "threaded")?;
        }
        match directory.parent() {
            Some(domain) => self.delegate(domain, &THREADED),
            None => Ok(()),
        }
    }

    fn set(&self, path: &GroupPath, limits: &Limits) -> Result<(), Error> {
        if let Some(shares) = limits.cpu_shares {
            tree::write(&self.file(path, "cpu.weight"), &weight_of_shares(shares).to_string())?;
        }
        if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
            let period = limits.cpu_period_us.filter(|period| *period > 0).unwrap_or(DEFAULT_CPU_PERIOD_US);
            let quota = match limits.cpu_quota_us {
                Some(quota) if quota > 0 => quota.to_string(),
                Some(_) => "max".to_owned(),
                None => {
                    let now = tree::read(&self.file(path, "cpu.max"))?;
                    now.split_whitespace().next().unwrap_or("max").to_owned()
                }
            };
            tree::write(&self.file(path, "cpu.max"), &format!("{quota} {period}"))?;
        }
        let or_max = |limit: i64| if limit <= 0 { "max".to_owned() } else { limit.to_string() };
        if let Some(bytes) = limits.memory_bytes {
            tree::write(&self.file(path, "memory.max"), &or_max(bytes))?;
        }
        if let Some(bytes) = limits.swap_bytes {
            let bytes = if bytes < 0 { "max".to_owned() } else { bytes.to_string() };
            match tree::write(&self.file(path, "memory.swap.max"), &bytes) {
                // A kernel that swaps for nobody.
                Err(err) if err.is_not_found() => {}
                other => other?,
            }
        }
        if let Some(pids) = limits.pids {
            tree::write(&self.file(path, "pids.max"), &or_max(pids))?;
        }
        Ok(())
    }

    fn usage(&self, path: &GroupPath) -> Result<Usage, Error> {
        let cpu = tree::read(&self.file(path, "cpu.stat"))?;
        // A threaded group has no memory controller: its memory is the domain's.
        let memory_bytes = self.optional(path, "memory.current")?;
        let stat = self.optional_text(path, "memory.stat")?;
        let events = self.optional_text(path, "memory.events")?;
        Ok(Usage {
            cpu_ns: keyed(&cpu, "usage_usec").saturating_mul(1000),
            memory_bytes,
            working_set_bytes: memory_bytes.saturating_sub(keyed(&stat, "inactive_file")),
            memory_peak_bytes: self.optional(path, "memory.peak")?,
            rss_bytes: keyed(&stat, "anon"),
            page_faults: keyed(&stat, "pgfault"),
            major_page_faults: keyed(&stat, "pgmajfault"),
            n_pids: self.optional(path, "pids.current")?,
            n_oom_kills: keyed(&events, "oom_kill"),
        })
    }

    fn adopt(&self, path: &GroupPath) -> Result<(), Error> {
        tree::write(&self.file(path, "cgroup.procs"), THIS_THREAD)
    }

    fn add_process(&self, path: &GroupPath, pid: u32) -> Result<(), Error> {
        tree::write(&self.file(path, "cgroup.procs"), &pid.to_string())
    }

    fn add_this_thread(&self, path: &GroupPath) -> Result<(), Error> {
        tree::write(&self.file(path, "cgroup.threads"), THIS_THREAD)
    }

    fn freeze(&self, path: &GroupPath, freeze: Freeze) -> Result<(), Error> {
        let value = match freeze {
            Freeze::Frozen => "1",
            Freeze::Thawed => "0",
        };
        tree::write(&self.file(path, "cgroup.freeze"), value)
    }

    fn kill(&self, path: &GroupPath) -> Result<bool, Error> {
        match tree::write(&self.file(path, "cgroup.kill"), "1") {
            Ok(()) => Ok(true),
            // Before Linux 5.14.
            Err(err) if err.is_not_found() => Ok(false),
            Err(err) => Err(err),
        }
    }

    fn directories(&self, path: &GroupPath) -> Vec<PathBuf> {
        vec![self.root.join(path)]
    }

    fn remove(&self, path: &GroupPath) -> Result<(), Error> {
        tree::remove(&self.root.join(path))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io;

    use super::*;

    fn refuses(refused: &'static str, written: &RefCell<Vec<String>>) -> impl Fn(&str) -> Result<(), Error> {
        move |text| {
            written.borrow_mut().push(text.to_owned());
            let source = || io::Error::from_raw_os_error(2);
            match text.contains(refused) {
                true => Err(Error::Write { file: "f".into(), value: text.to_owned(), source: source() }),
                false => Ok(()),
            }
        }
    }

    #[test]
    fn a_controller_that_the_kernel_refuses_does_not_take_the_others_with_it() {
        let written = RefCell::default();
        enable(&["cpu", "hugetlb", "memory"], refuses("hugetlb", &written)).unwrap();
        assert_eq!(*written.borrow(), ["+cpu +hugetlb +memory", "+cpu", "+hugetlb", "+memory"]);
        enable(&["cpu", "memory"], refuses("memory", &written)).unwrap_err();
    }
}
