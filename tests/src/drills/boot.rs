//! A restart of the machine, as far as a cluster can tell: its processes, mounts, namespaces and control groups are gone, what lay
//! in `/run` too, and the kernel draws another boot ID.
//!
//! The boot ID is that of whoever was started on the thread that made the [`Boot`], which must have mounts of its own
//! ([`super::in_own_mounts`]). Page caches stay: what a disk loses with its power is another drill.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::Process;
use crate::{LOOK_AGAIN, PATIENCE, TestCluster};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const GROUPS: &str = "/sys/fs/cgroup";
/// Processes that start others while they are looked for are found by the next look.
const MAX_LOOKS: usize = 20;
/// Deeper than any group of a pod.
const MAX_DEPTH: usize = 16;

/// What the kernel has drawn for this start of the machine. Dropping it shows the real one again.
#[derive(Debug)]
pub struct Boot {
    id: tempfile::NamedTempFile,
}

impl Boot {
    pub fn new() -> Result<Boot> {
        let boot = Boot { id: tempfile::NamedTempFile::new().context("making a boot ID")? };
        boot.draw()?;
        let none = None::<&str>;
        mount(Some(boot.id.path()), BOOT_ID, none, MsFlags::MS_BIND, none)
            .context("showing another boot ID")?;
        Ok(boot)
    }

    /// In place: the file is what is mounted.
    fn draw(&self) -> Result<()> {
        let text = format!("{:08x}-0000-4000-8000-{:012x}\n", rand::random::<u32>(), rand::random::<u32>());
        fs::write(self.id.path(), text).context("drawing a boot ID")
    }

    /// Ends all of a cluster that a restart of the machine ends.
    ///
    /// # Errors
    /// If something of it does not end.
    pub fn restart(&self, cluster: &TestCluster) -> Result<()> {
        let groups = groups(cluster)?;
        let mut all = vec![cluster.server()?, cluster.forwarder()?];
        for number in 2..=u8::try_from(cluster.nodes().len())? {
            all.push(cluster.agent(number)?);
        }
        Process::kill_all(all)?;
        let mut n_looks = 0;
        loop {
            let left = processes(&groups)?;
            if left.is_empty() {
                break;
            }
            n_looks += 1;
            ensure!(n_looks <= MAX_LOOKS, "processes of the cluster do not end: {left:?}");
            // One that has ended meanwhile is what is wanted.
            Process::kill_all(left.into_iter().filter_map(|pid| Process::open(pid).ok()).collect())?;
        }
        let run = cluster.netns().parent().context("no directory")?.to_owned();
        for below in [&run, &cluster.data_dir()] {
            unmount_below(below)?;
        }
        fs::remove_dir_all(&run).with_context(|| format!("removing {}", run.display()))?;
        for group in &groups {
            remove_group(group, MAX_DEPTH)?;
        }
        self.draw()
    }
}

impl Drop for Boot {
    fn drop(&mut self) {
        let _ = umount2(BOOT_ID, MntFlags::MNT_DETACH);
    }
}

/// The uppermost control groups of a cluster, in all hierarchies.
pub(crate) fn groups(cluster: &TestCluster) -> Result<Vec<PathBuf>> {
    let hierarchies = fs::read_dir(GROUPS).context("listing the hierarchies")?.flatten().map(|e| e.path());
    let roots: Vec<PathBuf> = hierarchies.chain([PathBuf::from(GROUPS)]).collect();
    let of_node =
        |node: crate::NodePaths| roots.iter().map(|root| root.join(&node.cgroup)).collect::<Vec<_>>();
    Ok(cluster.nodes().into_iter().flat_map(of_node).filter(|group| group.is_dir()).collect())
}

/// Those below a group.
pub(crate) fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn processes(groups: &[PathBuf]) -> Result<Vec<i32>> {
    let (mut found, mut left) = (Vec::new(), groups.to_vec());
    while let Some(group) = left.pop() {
        let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for line in listed.lines() {
            found.push(line.parse().with_context(|| format!("{} lists {line:?}", group.display()))?);
        }
        left.extend(children(&group));
    }
    found.sort_unstable();
    found.dedup();
    // Those of another process namespace are listed as 0.
    found.retain(|pid| *pid > 0);
    Ok(found)
}

/// The deepest first.
fn remove_group(group: &Path, depth: usize) -> Result<()> {
    ensure!(depth > 0, "{} is deeper than a pod's groups are", group.display());
    for child in children(group) {
        remove_group(&child, depth - 1)?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            // A hierarchy may be seen by two names.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // What was killed is not waited for yet.
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(LOOK_AGAIN);
            }
            Err(error) => bail!("removing the control group {}: {error}", group.display()),
        }
    }
}

fn unmount_below(directory: &Path) -> Result<()> {
    // Of this thread: the process's other threads may see others.
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").context("reading the mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let mut below: Vec<&str> = points.filter(|point| Path::new(point).starts_with(directory)).collect();
    below.sort_unstable();
    for point in below.into_iter().rev() {
        match umount2(point, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error).with_context(|| format!("unmounting {point}")),
        }
    }
    Ok(())
}
