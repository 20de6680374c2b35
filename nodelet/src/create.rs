//! What the runtime is asked for: a pod's spec turned into CRI configurations. Pure; what has to be
//! fetched or made on disk comes in from outside.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext};
use skiff_cri::v1::*;

use crate::config::Config;
use crate::dns::{hostname_and_domain, kernel_hostname};
use crate::env::expand;
use crate::pod::{PodExt, containers, init_containers};
use crate::resources;
use crate::snapshot::{container_annotations, container_labels, sandbox_labels};

type ApiContainer = Container;

pub(crate) fn namespaces(pod: &Pod) -> NamespaceOption {
    let flag = |value: Option<bool>| value.unwrap_or(false);
    let spec = pod.spec.clone().unwrap_or_default();
    let host = |on: bool| if on { NamespaceMode::Node } else { NamespaceMode::Pod };
    let pid = match (flag(spec.host_pid), flag(spec.share_process_namespace)) {
        (true, _) => NamespaceMode::Node,
        (false, true) => NamespaceMode::Pod,
        (false, false) => NamespaceMode::Container,
    };
    NamespaceOption {
        network: host(pod.is_host_network()).into(),
        ipc: host(flag(spec.host_ipc)).into(),
        pid: pid.into(),
        // The runtime says whether it can.
        userns_options: (spec.host_users == Some(false)).then(UserNamespace::default),
        ..NamespaceOption::default()
    }
}

/// The sandbox of a pod. Fails if the pod's names do not make a host name.
pub(crate) fn sandbox_config(
    config: &Config,
    pod: &Pod,
    attempt: u32,
    dns: DnsConfig,
) -> Result<PodSandboxConfig, String> {
    let hostname = match pod.is_host_network() {
        true => String::new(),
        false => {
            let (hostname, domain) = hostname_and_domain(&config.cluster_domain, pod)?;
            kernel_hostname(pod, &hostname, &domain)?
        }
    };
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            namespace: pod.namespace().to_owned(),
            attempt,
        }),
        hostname,
        log_directory: config
            .pod_log_dir(pod.namespace(), pod.name(), pod.uid())
            .to_string_lossy()
            .into_owned(),
        dns_config: Some(dns),
        port_mappings: port_mappings(pod),
        labels: sandbox_labels(pod),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: Some(sandbox_linux(config, pod)),
    })
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let ports = containers(pod).iter().chain(init_containers(pod)).flat_map(|c| c.ports.iter().flatten());
    let mapping = |port: &k8s_openapi::api::core::v1::ContainerPort| PortMapping {
        protocol: match port.protocol.as_deref() {
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            _ => Protocol::Tcp,
        }
        .into(),
        container_port: port.container_port,
        host_port: port.host_port.unwrap_or(0),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    };
    ports.map(mapping).collect()
}

fn sandbox_linux(config: &Config, pod: &Pod) -> LinuxPodSandboxConfig {
    let security = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let privileged = |c: &ApiContainer| c.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
    let sysctls = security.sysctls.iter().flatten();
    LinuxPodSandboxConfig {
        cgroup_parent: resources::cgroup_parent(&config.cgroup_root, pod),
        // Slashes are an older spelling of the dots.
        sysctls: sysctls.map(|s| (crate::sysctl::dotted(&s.name), s.value.clone())).collect(),
        resources: Some(resources::pod_resources(pod)),
        security_context: Some(LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(pod)),
            run_as_user: security.run_as_user.map(|value| Int64Value { value }),
            run_as_group: security.run_as_group.map(|value| Int64Value { value }),
            supplemental_groups: supplemental_groups(&security),
            supplemental_groups_policy: groups_policy(&security).into(),
            // Of an ephemeral container nothing is known yet.
            privileged: containers(pod).iter().chain(init_containers(pod)).any(privileged),
            seccomp: Some(SecurityProfile {
                profile_type: security_profile::ProfileType::RuntimeDefault.into(),
                ..SecurityProfile::default()
            }),
            ..LinuxSandboxSecurityContext::default()
        }),
        ..LinuxPodSandboxConfig::default()
    }
}

fn supplemental_groups(security: &PodSecurityContext) -> Vec<i64> {
    security.fs_group.into_iter().chain(security.supplemental_groups.iter().flatten().copied()).collect()
}

fn groups_policy(security: &PodSecurityContext) -> SupplementalGroupsPolicy {
    match security.supplemental_groups_policy.as_deref() {
        Some("Strict") => SupplementalGroupsPolicy::Strict,
        _ => SupplementalGroupsPolicy::Merge,
    }
}

/// What one container is made from, beside its spec.
pub(crate) struct ContainerInputs<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a ApiContainer,
    pub(crate) restart_count: i32,
    pub(crate) image: &'a ImageInfo,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) memory_capacity: i64,
    /// The ID of the container whose processes this one sees.
    pub(crate) target_id: Option<String>,
}

/// The image a container runs, as the runtime knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageInfo {
    pub(crate) image_ref: String,
    pub(crate) uid: Option<i64>,
    pub(crate) username: String,
}

/// The container's configuration, or why its spec allows none (`CreateContainerConfigError`).
pub(crate) fn container_config(inputs: ContainerInputs<'_>) -> Result<ContainerConfig, String> {
    let ContainerInputs { pod, container, restart_count, image, env, mounts, memory_capacity, target_id } =
        inputs;
    let security = effective_security(pod, container);
    verify_run_as_non_root(pod, container, &security, image)?;
    let variables: BTreeMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter()
            .flatten()
            .map(|arg| expand(arg, |name| variables.get(name).map(|v| (*v).to_owned())))
            .collect()
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: container.name.clone(),
            attempt: restart_count.unsigned_abs(),
        }),
        image: Some(ImageSpec {
            image: image.image_ref.clone(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        }),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: env.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
        mounts,
        labels: container_labels(pod, container),
        annotations: container_annotations(pod, container, restart_count),
        log_path: format!("{}/{restart_count}.log", container.name),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources::container_resources(pod, container, memory_capacity)),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(match target_id {
                    Some(target_id) => {
                        NamespaceOption { pid: NamespaceMode::Target.into(), target_id, ..namespaces(pod) }
                    }
                    None => namespaces(pod),
                }),
                ..security_context(pod, container, &security, image)?
            }),
        }),
        stop_signal: stop_signal(container).into(),
        ..ContainerConfig::default()
    })
}

fn stop_signal(container: &ApiContainer) -> Signal {
    let name = container.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref());
    name.and_then(Signal::from_str_name).unwrap_or(Signal::RuntimeDefault)
}

/// The container's own security context over the pod's.
fn effective_security(pod: &Pod, container: &ApiContainer) -> SecurityContext {
    let mut own = container.security_context.clone().unwrap_or_default();
    if let Some(outer) = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()) {
        own.run_as_user = own.run_as_user.or(outer.run_as_user);
        own.run_as_group = own.run_as_group.or(outer.run_as_group);
        own.run_as_non_root = own.run_as_non_root.or(outer.run_as_non_root);
        own.seccomp_profile = own.seccomp_profile.or_else(|| outer.seccomp_profile.clone());
        own.app_armor_profile = own.app_armor_profile.or_else(|| outer.app_armor_profile.clone());
    }
    own
}

fn verify_run_as_non_root(
    pod: &Pod,
    container: &ApiContainer,
    security: &SecurityContext,
    image: &ImageInfo,
) -> Result<(), String> {
    if security.run_as_non_root != Some(true) {
        return Ok(());
    }
    let whose = format!("(pod: {:?}, container: {})", pod.describe(), container.name);
    match (security.run_as_user, image.uid, image.username.as_str()) {
        (Some(0), _, _) => Err(format!("container's runAsUser breaks non-root policy {whose}")),
        (Some(_), _, _) => Ok(()),
        (None, Some(0), _) => Err(format!("container has runAsNonRoot and image will run as root {whose}")),
        (None, Some(_), _) => Ok(()),
        (None, None, "") => Ok(()),
        (None, None, name) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {whose}"
        )),
    }
}

const MASKED_PATHS: [&str; 10] = [
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
];
const MASKED_SYS_PATHS: [&str; 2] = ["/sys/firmware", "/sys/devices/virtual/powercap"];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn security_context(
    pod: &Pod,
    container: &ApiContainer,
    security: &SecurityContext,
    image: &ImageInfo,
) -> Result<LinuxContainerSecurityContext, String> {
    let pod_security = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let unmasked = security.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    let masked = [paths(&MASKED_PATHS), paths(&MASKED_SYS_PATHS)].concat();
    let caps = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let user = security.run_as_user.or(image.uid);
    let no_new_privs = security.allow_privilege_escalation == Some(false);
    Ok(LinuxContainerSecurityContext {
        capabilities: security.capabilities.as_ref().map(|c| Capability {
            add_capabilities: caps(&c.add),
            drop_capabilities: caps(&c.drop),
            ..Capability::default()
        }),
        privileged: security.privileged.unwrap_or(false),
        run_as_user: user.map(|value| Int64Value { value }),
        run_as_group: security.run_as_group.map(|value| Int64Value { value }),
        run_as_username: if security.run_as_user.is_none() { image.username.clone() } else { String::new() },
        readonly_rootfs: security.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: supplemental_groups(&pod_security),
        supplemental_groups_policy: groups_policy(&pod_security).into(),
        no_new_privs,
        masked_paths: if unmasked { Vec::new() } else { masked },
        readonly_paths: if unmasked { Vec::new() } else { paths(&READONLY_PATHS) },
        seccomp: Some(seccomp(container, security.seccomp_profile.as_ref())?),
        apparmor: security
            .app_armor_profile
            .as_ref()
            .map(|p| profile(&p.type_, p.localhost_profile.as_deref()))
            .transpose()?,
        ..LinuxContainerSecurityContext::default()
    })
}

/// Upstream's kubelet leaves seccomp off where nothing asks for it; Skiff's default is the runtime's
/// own profile (`seccompDefault: true`), as hardening guides have it.
fn seccomp(container: &ApiContainer, wanted: Option<&SeccompProfile>) -> Result<SecurityProfile, String> {
    let privileged = container.security_context.as_ref().and_then(|s| s.privileged) == Some(true);
    match wanted {
        Some(wanted) => profile(&wanted.type_, wanted.localhost_profile.as_deref()),
        None if privileged => profile("Unconfined", None),
        None => profile("RuntimeDefault", None),
    }
}

fn profile(type_: &str, localhost: Option<&str>) -> Result<SecurityProfile, String> {
    use security_profile::ProfileType;
    let (profile_type, localhost_ref) = match (type_, localhost) {
        ("Unconfined", _) => (ProfileType::Unconfined, ""),
        ("Localhost", Some(path)) => (ProfileType::Localhost, path),
        ("Localhost", None) => {
            return Err("localhostProfile must be set if seccompProfile type is Localhost.".to_owned());
        }
        _ => (ProfileType::RuntimeDefault, ""),
    };
    Ok(SecurityProfile { profile_type: profile_type.into(), localhost_ref: localhost_ref.to_owned() })
}

pub(crate) fn propagation(mode: Option<&str>) -> Result<MountPropagation, String> {
    match mode {
        None | Some("None") => Ok(MountPropagation::PropagationPrivate),
        Some("HostToContainer") => Ok(MountPropagation::PropagationHostToContainer),
        Some("Bidirectional") => Ok(MountPropagation::PropagationBidirectional),
        Some(other) => Err(format!("invalid MountPropagation mode: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;

    fn pod_with(container: ApiContainer) -> Pod {
        let mut pod = Pod {
            spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
            ..Pod::default()
        };
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.uid = Some("u1".into());
        pod
    }

    fn config_of(container: ApiContainer, image: ImageInfo) -> Result<ContainerConfig, String> {
        let pod = pod_with(container);
        container_config(ContainerInputs {
            pod: &pod,
            container: &containers(&pod)[0],
            restart_count: 2,
            image: &image,
            env: vec![("WHO".into(), "world".into())],
            mounts: Vec::new(),
            memory_capacity: 1 << 34,
            target_id: None,
        })
    }

    #[test]
    fn command_and_args_see_the_environment() {
        let container = ApiContainer {
            name: "c".into(),
            command: Some(vec!["echo".into(), "hello $(WHO) $$(WHO) $(NOBODY)".into()]),
            ..Default::default()
        };
        let config = config_of(container, ImageInfo::default()).unwrap();
        assert_eq!(config.command, ["echo", "hello world $(WHO) $(NOBODY)"]);
        assert_eq!(config.log_path, "c/2.log");
        assert_eq!(config.annotations["io.kubernetes.container.restartCount"], "2");
    }

    #[test]
    fn run_as_non_root_refuses_root_and_names() {
        let security = SecurityContext { run_as_non_root: Some(true), ..Default::default() };
        let container =
            ApiContainer { name: "c".into(), security_context: Some(security), ..Default::default() };
        let check = |uid, username: &str| {
            config_of(container.clone(), ImageInfo { uid, username: username.into(), ..Default::default() })
                .err()
        };
        assert_eq!(check(Some(101), ""), None);
        assert_eq!(
            check(Some(0), "").unwrap(),
            "container has runAsNonRoot and image will run as root (pod: \"p_ns(u1)\", container: c)"
        );
        assert!(check(None, "www").unwrap().contains("non-numeric user (www)"));
    }

    #[test]
    fn a_sandbox_carries_the_pods_identity_and_cgroup() {
        let pod = pod_with(ApiContainer { name: "c".into(), ..Default::default() });
        let config = Config::new("n", "10.0.0.1".parse().unwrap());
        let sandbox = sandbox_config(&config, &pod, 1, DnsConfig::default()).unwrap();
        assert_eq!(sandbox.hostname, "p");
        assert_eq!(sandbox.labels["io.kubernetes.pod.uid"], "u1");
        assert_eq!(sandbox.log_directory, "/var/log/pods/ns_p_u1");
        assert_eq!(sandbox.linux.unwrap().cgroup_parent, "/skiff/kubepods/besteffort/podu1");
    }
}
