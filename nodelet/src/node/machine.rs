//! What this machine is: read once when nodelet starts.

use std::fs;
use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::NodeSystemInfo;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::pressure::EvictionHard;
use crate::error::Error;
use crate::resources::ResourceList;

pub(crate) struct Machine {
    pub(crate) n_cpus: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) storage_bytes: u64,
    pub(crate) info: NodeSystemInfo,
}

impl Machine {
    /// Reads the machine. `root` is on the file system that pods' data lies on.
    pub(crate) fn read(root: &Path, runtime_version: String) -> Result<Machine, Error> {
        let failed = |what| move |source: io::Error| Error::Machine { what, source };
        let meminfo = fs::read_to_string("/proc/meminfo").map_err(failed("memory"))?;
        let total_kib = meminfo
            .lines()
            .find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
        let total_kib =
            total_kib.ok_or_else(|| failed("memory")(io::Error::other("/proc/meminfo has no MemTotal")))?;
        let storage = rustix::fs::statvfs(root).map_err(|e| failed("storage")(e.into()))?;
        let cpus = std::thread::available_parallelism().map_err(failed("processors"))?;
        let line = |path: &str| fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
        let machine_id = line("/etc/machine-id");
        let info = NodeSystemInfo {
            architecture: go_arch().to_owned(),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: runtime_version,
            kernel_version: line("/proc/sys/kernel/osrelease"),
            kube_proxy_version: String::new(),
            kubelet_version: skiff_api::kubernetes::VERSION.to_owned(),
            operating_system: "linux".to_owned(),
            running_in_user_namespace: None,
            os_image: os_image().unwrap_or_else(|| "Unknown".to_owned()),
            swap: None,
            // Reading the firmware's UUID needs root; without it the machine's own ID serves.
            system_uuid: Some(line("/sys/class/dmi/id/product_uuid"))
                .filter(|s| !s.is_empty())
                .unwrap_or_else(|| machine_id.clone()),
            machine_id,
        };
        Ok(Machine {
            n_cpus: cpus.get(),
            memory_bytes: total_kib * 1024,
            storage_bytes: storage.f_blocks * storage.f_frsize,
            info,
        })
    }

    pub(crate) fn capacity(&self, max_pods: u32) -> ResourceList {
        let quantity = |q: String| Quantity(q);
        ResourceList::from([
            ("cpu".to_owned(), quantity(self.n_cpus.to_string())),
            ("memory".to_owned(), quantity(format!("{}Ki", self.memory_bytes / 1024))),
            ("ephemeral-storage".to_owned(), quantity(format!("{}Ki", self.storage_bytes / 1024))),
            ("hugepages-1Gi".to_owned(), quantity("0".to_owned())),
            ("hugepages-2Mi".to_owned(), quantity("0".to_owned())),
            ("pods".to_owned(), quantity(max_pods.to_string())),
        ])
    }

    /// What pods may ask for: memory and storage less what must stay free.
    pub(crate) fn allocatable(&self, max_pods: u32, eviction_hard: &EvictionHard) -> ResourceList {
        let memory =
            self.memory_bytes.saturating_sub(eviction_hard.reserved_memory(self.memory_bytes)) / 1024;
        let storage = self.storage_bytes.saturating_sub(eviction_hard.reserved_storage(self.storage_bytes));
        let mut list = self.capacity(max_pods);
        list.insert("memory".to_owned(), Quantity(format!("{memory}Ki")));
        list.insert("ephemeral-storage".to_owned(), Quantity(storage.to_string()));
        list
    }
}

/// The processor's name as Go spells it.
pub(crate) fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn os_image() -> Option<String> {
    let text =
        fs::read_to_string("/etc/os-release").or_else(|_| fs::read_to_string("/usr/lib/os-release")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches('"').to_owned())
}
