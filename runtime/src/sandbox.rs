//! Making and removing what all containers of a pod share.
//!
//! ```text
//!  Starting ──► Ready ──► Stopped ──► (removed)
//!      └───────── a failure ─────────────▲
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff_cgroup::{Cgroups, Limits};
use skiff_cri::v1::{
    DnsConfig, LinuxContainerResources, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
};
use skiff_cri::{Code, CriError, Sandbox};

use crate::namespaces;
use crate::network::{PortForward, SandboxNetwork};
use crate::pause::{self, Process};
use crate::records::{SandboxRecord, failed};

/// Makes sandboxes. Knows where everything of one lies; keeps no state of its own.
pub(crate) struct Sandboxes {
    /// Files of sandboxes, `<root>/<id>/`.
    pub(crate) root: PathBuf,
    /// Held namespaces, `<run>/<id>/{net,ipc,uts}`: on a tmpfs, gone after a restart of the machine.
    pub(crate) run: PathBuf,
    pub(crate) cgroups: Cgroups,
    pub(crate) network: Arc<dyn SandboxNetwork>,
    /// The machine's present boot.
    pub(crate) boot_id: String,
}

impl Sandboxes {
    /// The sandbox as container runtimes see it.
    pub(crate) fn describe(&self, id: &str, config: &PodSandboxConfig) -> Sandbox {
        let options = namespace_options(config);
        let held =
            |name: &str, mode: NamespaceMode| (mode != NamespaceMode::Node).then(|| self.namespace(id, name));
        let cgroup = config.linux.as_ref().map(|l| l.cgroup_parent.trim_matches('/')).unwrap_or_default();
        Sandbox {
            id: id.to_owned(),
            config: config.clone(),
            netns: held("net", options.network()),
            ipcns: held("ipc", options.ipc()),
            // The host name goes with the network, as everywhere in Kubernetes.
            utsns: held("uts", options.network()),
            pause_pid: shares_processes(config)
                .then(|| Process::read(&self.pause_record(id)))
                .flatten()
                .map(|process| process.pid),
            cgroup: if cgroup.is_empty() { format!("skiff/{id}") } else { cgroup.to_owned() },
            directory: self.root.join(id),
        }
    }

    fn namespace(&self, id: &str, name: &str) -> PathBuf {
        self.run.join(id).join(name)
    }

    fn pause_record(&self, id: &str) -> PathBuf {
        self.run.join(id).join("pause")
    }

    /// Starts the process that holds the PID namespace that the pod's containers share.
    fn start_pause(&self, sandbox: &Sandbox) -> Result<(), CriError> {
        let failed = |error: &dyn std::error::Error| {
            CriError::caused("failed to start the pod's pause process", error)
        };
        let namespaces = [&sandbox.netns, &sandbox.ipcns, &sandbox.utsns];
        let namespaces: Vec<&Path> = namespaces.into_iter().flatten().map(PathBuf::as_path).collect();
        let root = sandbox.directory.join("pause");
        let process =
            pause::start(&root, &namespaces, &self.pause_record(&sandbox.id)).map_err(|e| failed(&e))?;
        // Beside the groups of the pod's containers: it outlives whoever started it.
        let group = self.cgroups.create(&format!("{}/pause", sandbox.cgroup), &Limits::default());
        group.and_then(|group| group.add_process(process.pid)).map_err(|e| failed(&e))
    }

    /// Refuses what this node cannot do, before anything is made.
    pub(crate) fn check(&self, config: &PodSandboxConfig) -> Result<(), CriError> {
        let options = namespace_options(config);
        if config.metadata.is_none() {
            return Err(CriError::invalid("the sandbox config has no metadata"));
        }
        let is_unknown = |ip: &str| !ip.is_empty() && ip.parse::<Ipv4Addr>().is_err();
        if let Some(mapping) = config.port_mappings.iter().find(|m| m.host_port > 0 && is_unknown(&m.host_ip))
        {
            return Err(CriError::new(
                Code::Unimplemented,
                format!("hostIP {:?} is not supported: only IPv4 is", mapping.host_ip),
            ));
        }
        if options.userns_options.as_ref().is_some_and(|userns| userns.mode() == NamespaceMode::Pod) {
            return Err(CriError::new(
                Code::Unimplemented,
                "user namespaces (hostUsers: false) are not supported",
            ));
        }
        let (host_network, host_ipc) =
            (options.network() == NamespaceMode::Node, options.ipc() == NamespaceMode::Node);
        for name in config.linux.iter().flat_map(|l| l.sysctls.keys()) {
            if !namespaces::is_namespaced(name, host_network, host_ipc) {
                return Err(CriError::invalid(format!(
                    "sysctl {name:?} is not namespaced, or its namespace is the host's"
                )));
            }
        }
        Ok(())
    }

    /// Makes everything of a sandbox and answers its addresses.
    pub(crate) async fn create(&self, id: &str, config: &PodSandboxConfig) -> Result<Vec<IpAddr>, CriError> {
        let sandbox = self.describe(id, config);
        self.make_files(&sandbox)?;
        self.make_cgroup(&sandbox)?;
        let mut held = Vec::new();
        namespaces::create(sandbox.ipcns.as_deref(), sandbox.utsns.as_deref(), &hostname(config))
            .map_err(|e| CriError::unknown(format!("failed to create the sandbox's namespaces: {e}")))?;
        held.extend(sandbox.ipcns.clone());
        let mut ips = Vec::new();
        if let Some(netns) = &sandbox.netns {
            ips = self.network.up(id, netns, &port_forwards(config), config).await?;
            held.push(netns.clone());
        }
        if shares_processes(config) {
            self.start_pause(&sandbox)?;
        }
        let sysctls = config.linux.iter().flat_map(|l| l.sysctls.clone()).collect::<Vec<_>>();
        if !sysctls.is_empty() {
            namespaces::set_sysctls(&held, sysctls).map_err(|e| CriError::invalid(e.to_string()))?;
        }
        Ok(ips)
    }

    fn make_files(&self, sandbox: &Sandbox) -> Result<(), CriError> {
        let directory = &sandbox.directory;
        for path in [directory.clone(), self.run.join(&sandbox.id)] {
            fs::create_dir_all(&path).map_err(|e| failed("create", &path, &e))?;
        }
        if sandbox.ipcns.is_some() {
            let shm = directory.join("shm");
            namespaces::mount_shm(&shm).map_err(|e| failed("mount", &shm, &e))?;
        }
        let write = |name: &str, text: String| {
            let path = directory.join(name);
            fs::write(&path, text).map_err(|e| failed("write", &path, &e))
        };
        write("hostname", format!("{}\n", hostname(&sandbox.config)))?;
        if let Some(dns) = &sandbox.config.dns_config {
            write("resolv.conf", resolv_conf(dns))?;
        }
        Ok(())
    }

    fn make_cgroup(&self, sandbox: &Sandbox) -> Result<(), CriError> {
        let resources = sandbox.config.linux.as_ref().and_then(|l| l.resources.as_ref());
        let limits = resources.map(limits).unwrap_or_default();
        match self.cgroups.create(&sandbox.cgroup, &limits) {
            Ok(_) => Ok(()),
            Err(error) => Err(CriError::caused("failed to create the pod's cgroup", &error)),
        }
    }

    /// What a sandbox that is said to be ready lacks; `None` if it stands. None outlives a boot, whatever seems to be
    /// there: a pod on the host's network holds nothing that would be seen to be gone. Its control group is no part
    /// of this: that can be made again.
    pub(crate) fn lacks(&self, record: &SandboxRecord) -> Option<&'static str> {
        if !record.boot_id.is_empty() && record.boot_id != self.boot_id {
            return Some("it was made in another boot");
        }
        let sandbox = self.describe(&record.id, &record.config);
        let gone = |path: &Option<PathBuf>, stands: &dyn Fn(&Path) -> bool| {
            path.as_ref().is_some_and(|path| !stands(path))
        };
        let has_file = |name: &str| sandbox.directory.join(name).is_file();
        if gone(&sandbox.netns, &|path: &Path| self.network.holds(path)) {
            Some("its network namespace is gone")
        } else if gone(&sandbox.ipcns, &namespaces::is_held) {
            Some("its IPC namespace is gone")
        } else if gone(&sandbox.utsns, &namespaces::is_held) {
            Some("its UTS namespace is gone")
        } else if sandbox.ipcns.is_some() && !namespaces::is_mounted(&sandbox.directory.join("shm")) {
            Some("its /dev/shm is gone")
        } else if shares_processes(&record.config) && sandbox.pause_pid.is_none() {
            Some("its pause process is gone")
        } else if !has_file("hostname") || record.config.dns_config.is_some() && !has_file("resolv.conf") {
            Some("its files are gone")
        } else {
            None
        }
    }

    /// Makes the control group of a sandbox that stands, if it is not there.
    pub(crate) fn keep_cgroup(&self, sandbox: &Sandbox) -> Result<(), CriError> {
        match self.cgroups.group(&sandbox.cgroup).map_err(CriError::of)?.exists() {
            true => Ok(()),
            false => self.make_cgroup(sandbox),
        }
    }

    /// Gives the sandbox's control group other limits; what is not said is no limit.
    pub(crate) fn resize(
        &self,
        sandbox: &Sandbox,
        resources: &LinuxContainerResources,
    ) -> Result<(), CriError> {
        let limits = limits(resources);
        let all = Limits {
            cpu_quota_us: limits.cpu_quota_us.or(Some(-1)),
            memory_bytes: limits.memory_bytes.or(Some(-1)),
            ..limits
        };
        let group = self.cgroups.group(&sandbox.cgroup).map_err(CriError::of)?;
        group.set(&all).map_err(|error| CriError::caused("failed to resize the pod's cgroup", &error))
    }

    /// Takes the network and the namespaces away; files and cgroup stay for a look at what was.
    pub(crate) async fn stop(&self, id: &str, config: &PodSandboxConfig) -> Result<(), CriError> {
        let sandbox = self.describe(id, config);
        if let Some(netns) = &sandbox.netns {
            self.network.down(id, netns).await?;
        }
        self.release(id)
    }

    /// Lets go of the namespaces and of `/dev/shm`, those that there are.
    fn release(&self, id: &str) -> Result<(), CriError> {
        let pause = self.pause_record(id);
        pause::end(&pause).map_err(|e| failed("end the process of", &pause, &e))?;
        for path in ["ipc", "uts"].map(|name| self.namespace(id, name)) {
            namespaces::remove(&path).map_err(|e| failed("remove", &path, &e))?;
        }
        let shm = self.root.join(id).join("shm");
        namespaces::unmount(&shm).map_err(|e| failed("unmount", &shm, &e))
    }

    /// The IDs that something lies here for.
    pub(crate) fn on_disk(&self) -> Result<BTreeSet<String>, CriError> {
        let mut ids = BTreeSet::new();
        for directory in [&self.root, &self.run] {
            let entries = match fs::read_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(|e| failed("list", directory, &e))?,
            };
            for entry in entries {
                let entry = entry.map_err(|e| failed("list", directory, &e))?;
                ids.extend(entry.file_name().into_string().ok());
            }
        }
        Ok(ids)
    }

    /// Removes what lies here of a sandbox that has no record.
    pub(crate) async fn discard(&self, id: &str) -> Result<(), CriError> {
        self.network.down(id, &self.namespace(id, "net")).await?;
        self.release(id)?;
        self.remove_files(id)
    }

    fn remove_files(&self, id: &str) -> Result<(), CriError> {
        for path in [self.root.join(id), self.run.join(id)] {
            skiff_tree::remove(&path).map_err(|error| failed("remove", &path, &error.into()))?;
        }
        Ok(())
    }

    /// Removes what `stop` left. The pod's cgroup goes too, unless another sandbox of the pod still uses it.
    pub(crate) fn remove(
        &self,
        id: &str,
        config: &PodSandboxConfig,
        last_of_pod: bool,
    ) -> Result<(), CriError> {
        let sandbox = self.describe(id, config);
        if last_of_pod {
            let group = self.cgroups.group(&sandbox.cgroup).map_err(CriError::of)?;
            if group.exists() {
                group.kill().and_then(|()| group.remove()).map_err(CriError::of)?;
            }
        }
        self.remove_files(id)
    }
}

/// Whether the pod's containers see each other's processes.
fn shares_processes(config: &PodSandboxConfig) -> bool {
    namespace_options(config).pid() == NamespaceMode::Pod
}

pub(crate) fn namespace_options(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    // CRI's default for PIDs is the container's own namespace; the message's zero value would be the pod's.
    context.and_then(|c| c.namespace_options.clone()).unwrap_or_else(|| NamespaceOption {
        pid: NamespaceMode::Container.into(),
        ..NamespaceOption::default()
    })
}

fn hostname(config: &PodSandboxConfig) -> String {
    if !config.hostname.is_empty() {
        return config.hostname.clone();
    }
    // A pod on the host's network has the host's name.
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

fn port_forwards(config: &PodSandboxConfig) -> Vec<PortForward> {
    config
        .port_mappings
        .iter()
        .filter_map(|mapping| {
            let protocol = match mapping.protocol {
                0 => "tcp",
                1 => "udp",
                _ => return None,
            };
            let host_port = u16::try_from(mapping.host_port).ok().filter(|p| *p > 0)?;
            let container_port = u16::try_from(mapping.container_port).ok()?;
            let host_ip = mapping.host_ip.parse().ok().filter(|ip: &Ipv4Addr| !ip.is_unspecified());
            Some(PortForward { protocol, host_ip, host_port, container_port })
        })
        .collect()
}

fn resolv_conf(dns: &DnsConfig) -> String {
    let mut out = String::new();
    if !dns.searches.is_empty() {
        out.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        out.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        out.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    out
}

/// The files that every container of a sandbox finds, unless the pod mounts something else there.
pub(crate) fn file_mounts(sandbox: &Sandbox, mounts: &[Mount]) -> Vec<Mount> {
    [("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
        .iter()
        .map(|(file, path)| (sandbox.directory.join(file), *path))
        .filter(|(file, path)| {
            file.exists() && !mounts.iter().any(|m| Path::new(&m.container_path) == Path::new(path))
        })
        .map(|(file, path)| Mount {
            container_path: path.to_owned(),
            host_path: file.to_string_lossy().into_owned(),
            ..Mount::default()
        })
        .collect()
}

fn limits(resources: &LinuxContainerResources) -> Limits {
    let positive = |value: i64| (value > 0).then_some(value);
    Limits {
        cpu_shares: positive(resources.cpu_shares).and_then(|v| u64::try_from(v).ok()),
        cpu_quota_us: positive(resources.cpu_quota),
        cpu_period_us: positive(resources.cpu_period).and_then(|v| u64::try_from(v).ok()),
        memory_bytes: positive(resources.memory_limit_in_bytes),
        ..Limits::default()
    }
}
