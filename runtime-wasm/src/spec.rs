//! [`ContainerSpec`]: all that a host needs to know about a container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    pub(crate) id: String,
    pub(crate) sandbox_id: String,
    /// The SHA-256 of the Wasm file, in hex: the name of its native code in the AOT cache.
    pub(crate) module: String,
    pub(crate) args: Vec<String>,
    pub(crate) envs: Vec<(String, String)>,
    pub(crate) preopens: Vec<Preopen>,
    /// Single files, each given in a directory of its own making.
    pub(crate) files: Vec<Preopen>,
    /// `None` for a pod on the host's network.
    pub(crate) netns: Option<PathBuf>,
    /// The pod's cgroup, relative to the hierarchies' roots.
    pub(crate) pod_cgroup: String,
    pub(crate) resources: Resources,
    /// What the pod's Wasm containers may have together.
    #[serde(default)]
    pub(crate) pod_memory_bytes: Option<u64>,
    pub(crate) log_path: Option<PathBuf>,
    /// Where a `wasi:http` component is served.
    pub(crate) http_port: u16,
    /// How long a request may take, if anyone asked for a limit.
    #[serde(default)]
    pub(crate) request_timeout_ms: Option<u64>,
    #[serde(default)]
    pub(crate) identity: Identity,
}

/// Who the guest is to the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The primary group among them, as for Linux containers.
    pub(crate) groups: Vec<u32>,
    /// What root may do beyond others. Other users have none of it, as in Linux containers.
    pub(crate) rights: Vec<Right>,
}

/// Of the capabilities of a container those that a Wasm guest has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Right {
    DacOverride,
    Fowner,
    NetBindService,
}

impl Right {
    pub(crate) const ALL: [Right; 3] = [Right::DacOverride, Right::Fowner, Right::NetBindService];

    /// Without `CAP_`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Right::DacOverride => "DAC_OVERRIDE",
            Right::Fowner => "FOWNER",
            Right::NetBindService => "NET_BIND_SERVICE",
        }
    }
}

impl Default for Identity {
    fn default() -> Identity {
        Identity { uid: 0, gid: 0, groups: vec![0], rights: Right::ALL.to_vec() }
    }
}

/// A directory, or a single file, that the guest may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Preopen {
    pub(crate) host_path: PathBuf,
    pub(crate) guest_path: String,
    pub(crate) access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Access {
    ReadOnly,
    ReadWrite,
}

/// `None` leaves a limit as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resources {
    pub(crate) cpu_shares: Option<u64>,
    pub(crate) cpu_quota_us: Option<i64>,
    pub(crate) cpu_period_us: Option<u64>,
    /// Bytes that all of the container's instances may have touched together.
    pub(crate) memory_bytes: Option<u64>,
}

impl Resources {
    /// What the container's CPU group gets. Memory is not the cgroup's business: all containers of a host
    /// share its address space.
    pub(crate) fn limits(&self) -> skiff_cgroup::Limits {
        skiff_cgroup::Limits {
            cpu_shares: self.cpu_shares,
            cpu_quota_us: self.cpu_quota_us,
            cpu_period_us: self.cpu_period_us,
            ..Default::default()
        }
    }
}
