//! Where files lie. Everything of one node is below a data directory, a run directory and a log directory, so that several
//! nodes share a machine.

use std::path::{Path, PathBuf};

use clap::Args;

/// Directories of one node.
#[derive(Args, Clone, Debug)]
pub(crate) struct Layout {
    /// Where the cluster's state and the node's images and containers are kept
    #[arg(long, default_value = "/var/lib/skiff", env = "SKIFF_DATA_DIR")]
    pub(crate) data_dir: PathBuf,
    /// Sockets and held namespaces; gone after a restart of the machine
    #[arg(long, default_value = "/run/skiff", env = "SKIFF_RUN_DIR")]
    pub(crate) run_dir: PathBuf,
    /// Containers' logs
    #[arg(long, default_value = "/var/log/pods")]
    pub(crate) log_dir: PathBuf,
    /// Mirrors and credentials of registries, in k3s's format
    #[arg(long, default_value = "/etc/skiff/registries.yaml", env = "SKIFF_REGISTRIES")]
    pub(crate) registries: PathBuf,
    /// The cgroup that holds all pods, relative to every hierarchy's root
    #[arg(long, default_value = "skiff")]
    pub(crate) cgroup_root: String,
}

impl Layout {
    pub(crate) fn pki(&self) -> PathBuf {
        self.data_dir.join("pki")
    }
    pub(crate) fn database(&self) -> PathBuf {
        self.data_dir.join("state.db")
    }
    pub(crate) fn images(&self) -> PathBuf {
        self.data_dir.join("images")
    }
    pub(crate) fn runtime(&self) -> PathBuf {
        self.data_dir.join("runtime")
    }
    pub(crate) fn oci(&self) -> PathBuf {
        self.data_dir.join("oci")
    }
    pub(crate) fn wasm(&self) -> PathBuf {
        self.data_dir.join("wasm")
    }
    pub(crate) fn nodelet(&self) -> PathBuf {
        self.data_dir.join("nodelet")
    }
    pub(crate) fn addresses(&self) -> PathBuf {
        self.data_dir.join("addresses")
    }
    /// What a teardown must know.
    pub(crate) fn node_record(&self) -> PathBuf {
        self.data_dir.join("node.json")
    }
    /// What an agent knows of its cluster, and its certificates.
    pub(crate) fn agent(&self) -> PathBuf {
        self.data_dir.join("agent")
    }
    pub(crate) fn namespaces(&self) -> PathBuf {
        self.run_dir.join("ns")
    }
    pub(crate) fn runc_root(&self) -> PathBuf {
        self.run_dir.join("runc")
    }
    /// The sockets of Wasm hosts.
    pub(crate) fn wasm_run(&self) -> PathBuf {
        self.run_dir.join("wasm")
    }

    /// The cgroup of the processes that supervise Linux containers.
    pub(crate) fn shim_cgroup(&self) -> String {
        match self.cgroup_root.trim_matches('/') {
            "" => "skiff-shims".to_owned(),
            root => format!("{root}/shims"),
        }
    }

    /// The layout of a throw-away cluster.
    pub(crate) fn of_cluster(name: &str, registries: &Path) -> Layout {
        let data_dir = PathBuf::from("/var/lib/skiff/clusters").join(name);
        Layout {
            run_dir: PathBuf::from("/run/skiff/clusters").join(name),
            log_dir: data_dir.join("logs"),
            registries: registries.to_owned(),
            cgroup_root: format!("skiff-{name}"),
            data_dir,
        }
    }

    /// The layout of one more node of a throw-away cluster.
    pub(crate) fn of_node(&self, number: u8) -> Layout {
        let below = Path::new("nodes").join(number.to_string());
        let data_dir = self.data_dir.join(&below);
        Layout {
            run_dir: self.run_dir.join(below),
            log_dir: data_dir.join("logs"),
            registries: self.registries.clone(),
            // No cluster's name has a dot.
            cgroup_root: format!("{}.{number}", self.cgroup_root),
            data_dir,
        }
    }
}
