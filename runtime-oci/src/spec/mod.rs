//! What a container gets: the OCI runtime spec of one CRI container. Pure, but for looks at the image's
//! `/etc/passwd` and at devices, which the caller hands in.

mod capabilities;
mod devices;
mod mounts;
mod process;
mod resources;
mod seccomp;
mod user;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, Process, Root, Spec};
use skiff_cgroup::Version;
use skiff_cri::v1::{
    ContainerConfig, LinuxContainerSecurityContext, NamespaceMode, security_profile::ProfileType,
};
use skiff_cri::{ExecProcess, Sandbox};
use skiff_images::RunConfig;

pub use crate::config::OpenFiles;
pub use crate::host::Host;
pub use devices::HostDevice;
pub use resources::resources;
pub use user::{Accounts, User};

/// What a container may see but not read, unless it says otherwise or is privileged: upstream's list.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// What a container may read but not write, likewise.
pub const READONLY_PATHS: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// All that the spec is made from.
pub struct Input<'a> {
    pub id: &'a str,
    pub config: &'a ContainerConfig,
    pub sandbox: &'a Sandbox,
    pub image: &'a RunConfig,
    /// The image's own users and groups.
    pub accounts: &'a Accounts,
    /// Where the root filesystem is mounted.
    pub rootfs: &'a Path,
    /// The PID namespace to join instead of a new one, such as that of a targeted container.
    pub pid_namespace: PidNamespace,
    /// The host's devices that the container asks for; all of them if it is privileged.
    pub devices: &'a [HostDevice],
    /// The profile that a `Localhost` seccomp profile names.
    pub localhost_seccomp: Option<LinuxSeccomp>,
    pub pids_limit: Option<i64>,
    pub open_files: OpenFiles,
    pub host: &'a Host,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PidNamespace {
    New,
    Host,
    Join(PathBuf),
}

/// The PID namespace that the configuration asks for. `target` knows the init process of another container.
pub fn pid_namespace(
    config: &ContainerConfig,
    sandbox: &Sandbox,
    target: impl FnOnce(&str) -> Option<u32>,
) -> Result<PidNamespace, String> {
    let security = security(config);
    let options = security.namespace_options.unwrap_or_default();
    let of_pid = |pid: u32| PidNamespace::Join(PathBuf::from(format!("/proc/{pid}/ns/pid")));
    Ok(match options.pid() {
        NamespaceMode::Container => PidNamespace::New,
        NamespaceMode::Node => PidNamespace::Host,
        // Zero is also what says nothing; a pod that shares no namespace has no pause process.
        NamespaceMode::Pod => sandbox.pause_pid.map_or(PidNamespace::New, of_pid),
        NamespaceMode::Target => target(&options.target_id)
            .map(of_pid)
            .ok_or_else(|| format!("target container {:?} is not running", options.target_id))?,
    })
}

/// The spec, or why there can be none: a sentence for the pod's event.
pub fn build(input: &Input<'_>) -> Result<Spec, String> {
    let security = security(input.config);
    if let Some(userns) =
        security.namespace_options.as_ref().and_then(|options| options.userns_options.as_ref())
        && userns.mode() == NamespaceMode::Pod
    {
        return Err("user namespaces are not supported".to_owned());
    }
    let mut root = Root::default();
    root.set_path(input.rootfs.to_owned());
    root.set_readonly(Some(security.readonly_rootfs));

    let (mounts, rootfs_propagation) = mounts::mounts(input, &security)?;
    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces(input, &security)));
    linux.set_devices(Some(devices::nodes(input.devices)));
    linux.set_resources(Some(resources::of_container(input, &security)));
    linux.set_cgroups_path(Some(PathBuf::from(format!("/{}/{}", input.sandbox.cgroup, input.id))));
    linux.set_seccomp(seccomp(input, &security)?);
    linux.set_rootfs_propagation(rootfs_propagation.map(ToOwned::to_owned));
    let (masked, readonly) = protected_paths(&security);
    linux.set_masked_paths(Some(masked));
    linux.set_readonly_paths(Some(readonly));

    let mut spec = Spec::default();
    spec.set_version("1.0.2".to_owned());
    spec.set_root(Some(root));
    spec.set_hostname(None);
    spec.set_mounts(Some(mounts));
    spec.set_process(Some(process::process(input, &security)?));
    spec.set_linux(Some(linux));
    spec.set_annotations(Some(
        [("io.kubernetes.cri.sandbox-id".to_owned(), input.sandbox.id.clone())].into_iter().collect(),
    ));
    Ok(spec)
}

/// The process that `exec` runs: the container's own with another command line.
pub fn exec_process(own: &Process, exec: &ExecProcess) -> Process {
    process::exec(own, exec)
}

fn security(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default()
}

fn namespaces(input: &Input<'_>, security: &LinuxContainerSecurityContext) -> Vec<LinuxNamespace> {
    let namespace = |kind, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace.set_path(path);
        namespace
    };
    let mut namespaces = vec![namespace(LinuxNamespaceType::Mount, None)];
    match &input.pid_namespace {
        PidNamespace::New => namespaces.push(namespace(LinuxNamespaceType::Pid, None)),
        PidNamespace::Join(path) => namespaces.push(namespace(LinuxNamespaceType::Pid, Some(path.clone()))),
        PidNamespace::Host => {}
    }
    // A namespace that the pod does not have is the host's.
    let shared = [
        (LinuxNamespaceType::Network, &input.sandbox.netns),
        (LinuxNamespaceType::Ipc, &input.sandbox.ipcns),
        (LinuxNamespaceType::Uts, &input.sandbox.utsns),
    ];
    for (kind, path) in shared {
        if path.is_some() {
            namespaces.push(namespace(kind, path.clone()));
        }
    }
    if input.host.cgroup_version == Version::V2 && !security.privileged {
        namespaces.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    namespaces
}

/// Both lists empty counts as not said: a caller that forgets them must not open `/proc` to the container.
fn protected_paths(security: &LinuxContainerSecurityContext) -> (Vec<String>, Vec<String>) {
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    if security.privileged {
        return (Vec::new(), Vec::new());
    }
    if security.masked_paths.is_empty() && security.readonly_paths.is_empty() {
        return (owned(MASKED_PATHS), owned(READONLY_PATHS));
    }
    (security.masked_paths.clone(), security.readonly_paths.clone())
}

fn seccomp(
    input: &Input<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<Option<LinuxSeccomp>, String> {
    if security.privileged {
        return Ok(None);
    }
    let kind =
        security.seccomp.as_ref().map_or(ProfileType::RuntimeDefault, |profile| profile.profile_type());
    match kind {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => {
            Ok(Some(seccomp::default_profile(&capabilities::granted(security, input.host)?)))
        }
        ProfileType::Localhost => {
            input.localhost_seccomp.clone().map(Some).ok_or_else(|| "seccomp profile is missing".to_owned())
        }
    }
}

/// The file of a `Localhost` seccomp profile, if the container wants one.
pub fn localhost_seccomp_path(config: &ContainerConfig) -> Option<PathBuf> {
    let security = security(config);
    let profile = security.seccomp.filter(|_| !security.privileged)?;
    (profile.profile_type() == ProfileType::Localhost).then(|| PathBuf::from(profile.localhost_ref))
}

#[cfg(test)]
mod tests;
