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
    /// Whether Skiff's own AppArmor profile is loaded.
    pub has_default_profile: bool,
    pub has_mqueue: bool,
    /// Whether swap is accounted, so that a memory limit can include it.
    pub has_swap_accounting: bool,
    /// Whether a group of cgroup v2 can be kept from swapping.
    pub has_swap_limit: bool,
    /// The sizes of huge pages that groups can be kept from, such as `2MB`. A container has none but those it asks for.
    pub huge_pages: Vec<String>,
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
            has_default_profile: false,
            has_mqueue: read("/proc/filesystems").lines().any(|line| line.ends_with("\tmqueue")),
            has_swap_accounting: v2
                || Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
            has_swap_limit: v2 && has_swap_limit(Path::new("/sys/fs/cgroup")),
            huge_pages: huge_pages(Path::new("/sys/fs/cgroup"), Path::new("/sys/kernel/mm/hugepages")),
        }
    }

    pub(crate) fn can_lower_oom_score(&self) -> bool {
        self.capabilities & (1 << CAP_SYS_RESOURCE) != 0
    }
}

/// By the names that control groups have for them; none if there is no such controller.
fn huge_pages(groups: &Path, pages: &Path) -> Vec<String> {
    let controllers = std::fs::read_to_string(groups.join("cgroup.controllers")).unwrap_or_default();
    if !groups.join("hugetlb").is_dir() && !controllers.split_whitespace().any(|name| name == "hugetlb") {
        return Vec::new();
    }
    let entries = std::fs::read_dir(pages).into_iter().flatten().flatten();
    let kib = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()
    });
    let mut kib: Vec<u64> = kib.collect();
    kib.sort_unstable();
    let named = |kib: u64| match kib {
        0..1024 => format!("{kib}KB"),
        1024..1_048_576 => format!("{}MB", kib / 1024),
        _ => format!("{}GB", kib / 1_048_576),
    };
    kib.into_iter().map(named).collect()
}

/// The root's own group has no such file: any other has, or none.
fn has_swap_limit(root: &Path) -> bool {
    let groups = std::fs::read_dir(root).into_iter().flatten().flatten();
    groups.into_iter().any(|group| group.path().join("memory.swap.max").exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_huge_pages_are_named_as_control_groups_name_them() {
        let root = tempfile::tempdir().unwrap();
        let (groups, pages) = (root.path().join("groups"), root.path().join("pages"));
        for size in ["1048576kB", "2048kB", "64kB"] {
            std::fs::create_dir_all(pages.join(format!("hugepages-{size}"))).unwrap();
        }
        std::fs::create_dir_all(&groups).unwrap();
        std::fs::write(groups.join("cgroup.controllers"), "cpu memory\n").unwrap();
        assert_eq!(huge_pages(&groups, &pages), [""; 0]);
        std::fs::write(groups.join("cgroup.controllers"), "cpu hugetlb memory\n").unwrap();
        assert_eq!(huge_pages(&groups, &pages), ["64KB", "2MB", "1GB"]);
    }
}
