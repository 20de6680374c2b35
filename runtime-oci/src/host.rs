//! What this host and this process can do, read once.

use std::path::Path;

use skiff_cgroup::Version;

/// The facts that [`crate::spec`] decides by.
#[derive(Clone, Debug)]
pub struct Host {
    pub cgroup_version: Version,
    /// This process's capability bounding set, as a bit mask: nobody can give more.
    pub capabilities: u64,
    /// This process's own score; without CAP_SYS_RESOURCE no child may have a lower one.
    pub oom_score_adj: i64,
    pub has_apparmor: bool,
    pub has_mqueue: bool,
    /// Whether swap is accounted, so that a memory limit can include it.
    pub has_swap_accounting: bool,
    /// Whether a group of cgroup v2 can be kept from swapping.
    pub has_swap_limit: bool,
    pub has_hugetlb: bool,
}

const CAP_SYS_RESOURCE: u64 = 24;

impl Host {
    /// Reads `/proc` and `/sys`. What cannot be read counts as absent.
    pub fn detect(cgroup_version: Version) -> Host {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let status = read("/proc/self/status");
        let capabilities = status
            .lines()
            .find_map(|line| u64::from_str_radix(line.strip_prefix("CapBnd:")?.trim(), 16).ok())
            .unwrap_or_default();
        let v2 = cgroup_version == Version::V2;
        Host {
            cgroup_version,
            capabilities,
            oom_score_adj: read("/proc/self/oom_score_adj").trim().parse().unwrap_or_default(),
            has_apparmor: read("/sys/module/apparmor/parameters/enabled").trim() == "Y",
            has_mqueue: read("/proc/filesystems").lines().any(|line| line.ends_with("\tmqueue")),
            has_swap_accounting: v2
                || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
            has_swap_limit: v2 && has_swap_limit(Path::new("/sys/fs/cgroup")),
            has_hugetlb: v2 || Path::new("/sys/fs/cgroup/hugetlb").exists(),
        }
    }

    pub(crate) fn can_lower_oom_score(&self) -> bool {
        self.capabilities & (1 << CAP_SYS_RESOURCE) != 0
    }
}

/// The root's own group has no such file: any other has, or none.
fn has_swap_limit(root: &Path) -> bool {
    let groups = std::fs::read_dir(root).into_iter().flatten().flatten();
    groups.into_iter().any(|group| group.path().join("memory.swap.max").exists())
}
