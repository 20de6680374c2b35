/// What a group and everything below it uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since the group was made.
    pub cpu_ns: u64,
    /// Memory charged, page cache included.
    pub memory_bytes: u64,
    /// Memory less the inactive file cache, which the kernel would reclaim at once.
    pub working_set_bytes: u64,
    /// The most memory ever charged; 0 where the kernel does not tell.
    pub memory_peak_bytes: u64,
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// Page faults, all and those that had to read.
    pub page_faults: u64,
    /// See [`Usage::page_faults`].
    pub major_page_faults: u64,
    /// Processes and threads.
    pub n_pids: u64,
    /// Processes killed because the group ran into its memory limit.
    pub n_oom_kills: u64,
}
