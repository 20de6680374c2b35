//! What servers use, by the cgroups they run in: the work of processes that have ended counts too, such as runc's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::figures::Figures;

/// At least so long between two looks at the memory, and so many times what a look takes: looking must not be the load.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LOOK_COST_LIMIT: u32 = 50;
const STOP_CHECK: Duration = Duration::from_millis(10);
const SETTLE_CHECK: Duration = Duration::from_secs(1);
const SETTLES_IN: Duration = Duration::from_secs(20);
const KIB_PER_MIB: f64 = 1024.0;

/// The groups of everything that one side runs.
#[derive(Clone, Debug, Default)]
pub struct Groups(Vec<PathBuf>);

impl Groups {
    pub fn new(directories: Vec<PathBuf>) -> Groups {
        Groups(directories)
    }

    /// CPU used since the groups were made; a group that is not there yet has used none.
    pub fn cpu(&self) -> Result<Duration> {
        self.0.iter().filter(|dir| dir.exists()).map(|dir| cpu_of(dir)).sum()
    }

    /// Each once: on cgroup v1 a process is in every group that one of its threads is in, as a Wasm host in those of all its
    /// containers.
    pub fn processes(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        for directory in &self.0 {
            collect(directory, &mut found);
        }
        found
    }

    /// What the processes have written to disks so far, in bytes; those that have ended do not count.
    pub fn written_bytes(&self) -> u64 {
        self.processes().into_iter().filter_map(written_bytes).sum()
    }

    /// Proportional share of memory of all processes, by program, in KiB.
    pub fn pss_kib(&self) -> BTreeMap<String, u64> {
        let mut by_program = BTreeMap::new();
        for pid in self.processes() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            *by_program.entry(name.trim().to_owned()).or_default() += pss_kib(pid).unwrap_or_default();
        }
        by_program
    }

    /// The memory of all processes once they have next to nothing to do, or when they had that for too long.
    pub async fn settled_pss_kib(&self) -> Result<u64> {
        let end = Instant::now() + SETTLES_IN;
        loop {
            let before = self.cpu()?;
            tokio::time::sleep(SETTLE_CHECK).await;
            if self.cpu()?.saturating_sub(before) < SETTLE_CHECK / 10 || Instant::now() > end {
                return Ok(self.pss_kib().values().sum());
            }
        }
    }
}

fn cpu_of(directory: &Path) -> Result<Duration> {
    let v1 = directory.join("cpuacct.usage");
    if v1.exists() {
        let text = fs::read_to_string(&v1).with_context(|| format!("reading {}", v1.display()))?;
        return Ok(Duration::from_nanos(
            text.trim().parse().with_context(|| format!("reading {}", v1.display()))?,
        ));
    }
    let v2 = directory.join("cpu.stat");
    let text = fs::read_to_string(&v2).with_context(|| format!("reading {}", v2.display()))?;
    let microseconds = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok());
    Ok(Duration::from_micros(microseconds.with_context(|| format!("{} has no usage", v2.display()))?))
}

fn collect(directory: &Path, found: &mut BTreeSet<u32>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        }
    }
}

/// A page counts when it becomes dirty, be it written to the disk then or later.
fn written_bytes(pid: u32) -> Option<u64> {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.trim().parse().ok())
}

fn pss_kib(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    rollup.lines().find_map(|l| l.strip_prefix("Pss:"))?.trim().trim_end_matches(" kB").parse().ok()
}

/// Runs beside a measurement.
pub struct Meter {
    groups: Groups,
    cpu: Duration,
    start: Instant,
    stop: Arc<AtomicBool>,
    peak_kib: Arc<AtomicU64>,
    sampler: JoinHandle<()>,
}

impl Meter {
    pub fn start(groups: &Groups) -> Result<Meter> {
        ensure!(!groups.processes().is_empty(), "no process runs in {:?}", groups.0);
        let (stop, peak_kib) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let sampler = {
            let (groups, stop, peak_kib) = (groups.clone(), stop.clone(), peak_kib.clone());
            std::thread::spawn(move || sample(&groups, &stop, &peak_kib))
        };
        Ok(Meter {
            cpu: groups.cpu()?,
            groups: groups.clone(),
            start: Instant::now(),
            stop,
            peak_kib,
            sampler,
        })
    }

    /// Adds `cpu_s` and `peak_pss_mib`; answers how long the measurement took.
    pub fn stop(self, figures: &mut Figures) -> Result<Duration> {
        let elapsed = self.start.elapsed();
        figures.set("cpu_s", self.groups.cpu()?.saturating_sub(self.cpu).as_secs_f64());
        self.stop.store(true, Ordering::Relaxed);
        // It only loops over files; there is nothing it could fail with.
        let _ = self.sampler.join();
        figures.set("peak_pss_mib", self.peak_kib.load(Ordering::Relaxed) as f64 / KIB_PER_MIB);
        Ok(elapsed)
    }
}

/// A last look is taken after the stop, so that the shortest measurement has one.
fn sample(groups: &Groups, stop: &AtomicBool, peak_kib: &AtomicU64) {
    loop {
        let last = stop.load(Ordering::Relaxed);
        let start = Instant::now();
        peak_kib.fetch_max(groups.pss_kib().values().sum(), Ordering::Relaxed);
        if last {
            return;
        }
        let next = Instant::now() + LOOK_EVERY.max(start.elapsed() * LOOK_COST_LIMIT);
        while Instant::now() < next && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(STOP_CHECK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_read_from_either_version_of_cgroups() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("cpu.stat"), "usage_usec 2500000\nuser_usec 1\n").expect("a file");
        let groups = Groups::new(vec![dir.path().into(), dir.path().join("not-there")]);
        assert_eq!(groups.cpu().expect("it is there"), Duration::from_millis(2500));
        fs::write(dir.path().join("cpuacct.usage"), "1000000000\n").expect("a file");
        assert_eq!(groups.cpu().expect("it is there"), Duration::from_secs(1));
    }

    #[test]
    fn processes_of_groups_below_count() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("pods")).expect("a folder");
        let own = std::process::id();
        fs::write(dir.path().join("pods/cgroup.procs"), format!("{own}\n")).expect("a file");
        let groups = Groups::new(vec![dir.path().into()]);
        assert_eq!(groups.processes(), [own].into());
        assert!(groups.pss_kib().values().sum::<u64>() > 0);
        let before = groups.written_bytes();
        fs::write(dir.path().join("written"), vec![1_u8; 1 << 20]).expect("writes");
        // A file system in memory has no disk.
        let is_counted = groups.written_bytes() >= before + (1 << 20);
        assert!(is_counted || rustix::fs::statfs(dir.path()).is_ok_and(|fs| fs.f_type == 0x0102_1994));
    }

    #[test]
    fn a_process_with_threads_in_many_groups_counts_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let own = std::process::id();
        let groups = ["", "pod-1", "pod-2"].map(|name| dir.path().join(name));
        for group in &groups {
            fs::create_dir_all(group).expect("a folder");
            fs::write(group.join("cgroup.procs"), format!("{own}\n{own}\n")).expect("a file");
        }
        assert_eq!(Groups::new(groups.to_vec()).processes(), [own].into());
    }

    #[test]
    fn a_meter_without_processes_refuses() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(Meter::start(&Groups::new(vec![dir.path().into()])).is_err());
    }
}
