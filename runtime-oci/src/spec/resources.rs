//! What a container may use.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};
use skiff_cgroup::Version;
use skiff_cri::v1::{LinuxContainerResources, LinuxContainerSecurityContext};

use super::{Input, devices};
use crate::host::Host;

pub(super) fn of_container(input: &Input<'_>, security: &LinuxContainerSecurityContext) -> LinuxResources {
    let asked = input.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let mut resources = resources(&asked, input.host);
    resources.set_devices(Some(devices::rules(input.devices, security.privileged)));
    if let Some(limit) = input.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    resources
}

/// Files of cgroup v2, as upstream's kubelet sets them: a container does not swap unless it is asked to, and ends as a whole
/// when it has no more memory. Its first process would else go on without the one that was killed.
fn unified(asked: &LinuxContainerResources, host: &Host) -> HashMap<String, String> {
    let mut files: HashMap<String, String> = [("memory.oom.group".to_owned(), "1".to_owned())].into();
    if host.has_swap_limit && asked.memory_swap_limit_in_bytes == 0 {
        files.insert("memory.swap.max".to_owned(), "0".to_owned());
    }
    files.extend(asked.unified.clone());
    files
}

/// CRI's figures in OCI's form; zero is "not said" in both. Also what an update sends.
pub fn resources(asked: &LinuxContainerResources, host: &Host) -> LinuxResources {
    let said = |value: i64| (value != 0).then_some(value);
    let unsigned = |value: i64| u64::try_from(value).ok().filter(|value| *value != 0);
    let text = |value: &String| (!value.is_empty()).then(|| value.clone());

    let mut cpu = LinuxCpu::default();
    cpu.set_shares(unsigned(asked.cpu_shares));
    cpu.set_quota(said(asked.cpu_quota));
    cpu.set_period(unsigned(asked.cpu_period));
    cpu.set_cpus(text(&asked.cpuset_cpus));
    cpu.set_mems(text(&asked.cpuset_mems));

    let mut memory = LinuxMemory::default();
    if let Some(limit) = said(asked.memory_limit_in_bytes) {
        memory.set_limit(Some(limit));
        if host.has_swap_accounting {
            // Memory and swap together: equal to the limit, there is no swap.
            memory.set_swap(Some(said(asked.memory_swap_limit_in_bytes).unwrap_or(limit)));
        }
    }

    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    resources.set_cpu(Some(cpu));
    resources.set_memory(Some(memory));
    if !host.huge_pages.is_empty() {
        let limits = host.huge_pages.iter().map(|size| {
            let asked = asked.hugepage_limits.iter().find(|asked| asked.page_size == *size);
            let mut limit = LinuxHugepageLimit::default();
            limit.set_page_size(size.clone());
            limit.set_limit(asked.map_or(0, |asked| i64::try_from(asked.limit).unwrap_or(i64::MAX)));
            limit
        });
        resources.set_hugepage_limits(Some(limits.collect()));
    }
    if host.cgroup_version == Version::V2 {
        resources.set_unified(Some(unified(asked, host)));
    }
    resources
}
