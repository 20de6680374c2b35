//! From a CRI container and its image to a [`ContainerSpec`], and to the host that is to run it. Pure.

use std::io;
use std::path::PathBuf;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use skiff_cri::v1::{ContainerConfig, LinuxContainerResources};
use skiff_cri::{CreateContainer, CriError, Sandbox};
use skiff_images::RunConfig;

use crate::spec::{Access, ContainerSpec, Preopen, Resources};

/// The RuntimeClass handler, and the pod annotation with its value, that give a pod a host of its own.
const DEDICATED_HANDLER: &str = "wasmtime-dedicated";
const HOST_ANNOTATION: &str = "skiff.dev/wasm-host";
const DEDICATED: &str = "dedicated";
/// The container's ports as nodelet hands them down, in JSON.
const PORTS_ANNOTATION: &str = "io.kubernetes.container.ports";
const DEFAULT_PORT: u16 = 8080;

/// The host that runs the sandbox's containers: one a namespace, or one a pod. Hosts of different engines
/// have different names, since they cannot run each other's native code.
pub(crate) fn host_name(sandbox: &Sandbox, handler: &str, compatibility: &str) -> String {
    let annotation = sandbox.config.annotations.get(HOST_ANNOTATION).map(String::as_str);
    let (kind, domain) = if handler == DEDICATED_HANDLER || annotation == Some(DEDICATED) {
        ("pod", sandbox.id.as_str())
    } else {
        let metadata = sandbox.config.metadata.as_ref();
        ("ns", metadata.map_or("", |metadata| metadata.namespace.as_str()))
    };
    // A namespace's name may be too long for a socket's path.
    let digest = Sha256::digest(format!("{domain}\n{compatibility}"));
    format!("{kind}-{}", hex::encode(&digest[..8]))
}

/// `is_directory` looks at a path of the node.
pub(crate) fn spec(
    create: &CreateContainer,
    image: &RunConfig,
    module: String,
    is_directory: impl Fn(&str) -> io::Result<bool>,
) -> Result<ContainerSpec, CriError> {
    let config = &create.config;
    let envs = envs(image, config);
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let (mut preopens, mut files) = (Vec::new(), Vec::new());
    for mount in &config.mounts {
        let preopen = Preopen {
            host_path: PathBuf::from(&mount.host_path),
            guest_path: mount.container_path.clone(),
            access: if mount.readonly { Access::ReadOnly } else { Access::ReadWrite },
        };
        match is_directory(&mount.host_path) {
            Ok(true) => preopens.push(preopen),
            Ok(false) => files.push(preopen),
            Err(err) => {
                let (guest, host) = (&mount.container_path, &mount.host_path);
                return Err(CriError::unknown(format!("volume mount {guest:?}: {host}: {err}")));
            }
        }
    }
    Ok(ContainerSpec {
        id: create.id.clone(),
        sandbox_id: create.sandbox.id.clone(),
        module,
        args: args(image, config),
        http_port: http_port(config, &envs)?,
        envs,
        preopens,
        files,
        netns: create.sandbox.netns.clone(),
        pod_cgroup: create.sandbox.cgroup.clone(),
        resources: resources.map(self::resources).unwrap_or_default(),
        pod_memory_bytes: pod_memory_bytes(&create.sandbox),
        log_path: create.log_path.clone(),
    })
}

fn pod_memory_bytes(sandbox: &Sandbox) -> Option<u64> {
    resources(sandbox.config.linux.as_ref()?.resources.as_ref()?).memory_bytes
}

/// 0 means "not set" in CRI, except that no memory limit is asked for by it too.
pub(crate) fn resources(resources: &LinuxContainerResources) -> Resources {
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    Resources {
        cpu_shares: positive(resources.cpu_shares),
        cpu_quota_us: Some(resources.cpu_quota).filter(|quota| *quota != 0),
        cpu_period_us: positive(resources.cpu_period),
        memory_bytes: positive(resources.memory_limit_in_bytes),
    }
}

/// As for any container: `command` replaces the entrypoint and drops the image's `cmd`, `args` replaces
/// `cmd`. Artifacts have no entrypoint; their guest finds the container's name as its own.
fn args(image: &RunConfig, config: &ContainerConfig) -> Vec<String> {
    let (program, rest) = match (config.command.as_slice(), config.args.as_slice()) {
        ([], []) => (image.entrypoint.as_slice(), image.cmd.as_slice()),
        ([], args) => (image.entrypoint.as_slice(), args),
        (command, args) => (command, args),
    };
    let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let name = program.is_empty().then_some(name);
    name.into_iter().chain(program.iter().cloned()).chain(rest.iter().cloned()).collect()
}

fn envs(image: &RunConfig, config: &ContainerConfig) -> Vec<(String, String)> {
    let of_image = image.env.iter().filter_map(|env| env.split_once('='));
    let of_container = config.envs.iter().map(|env| (env.key.as_str(), env.value.as_str()));
    let mut envs: Vec<(String, String)> = Vec::new();
    for (key, value) in of_image.chain(of_container) {
        match envs.iter_mut().find(|(known, _)| known == key) {
            Some(known) => known.1 = value.to_owned(),
            None => envs.push((key.to_owned(), value.to_owned())),
        }
    }
    envs
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    container_port: u16,
}

fn http_port(config: &ContainerConfig, envs: &[(String, String)]) -> Result<u16, CriError> {
    if let Some((_, port)) = envs.iter().find(|(key, _)| key == "PORT") {
        return match port.parse() {
            Ok(0) | Err(_) => {
                Err(CriError::invalid(format!("the environment variable PORT is {port:?}, not a port")))
            }
            Ok(port) => Ok(port),
        };
    }
    let Some(ports) = config.annotations.get(PORTS_ANNOTATION) else { return Ok(DEFAULT_PORT) };
    let ports: Vec<Port> = serde_json::from_str(ports)
        .map_err(|err| CriError::invalid(format!("the annotation {PORTS_ANNOTATION}: {err}")))?;
    Ok(ports.first().map_or(DEFAULT_PORT, |port| port.container_port))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skiff_cri::ImageRef;
    use skiff_cri::v1::{
        ContainerMetadata, KeyValue, LinuxPodSandboxConfig, Mount, PodSandboxConfig, PodSandboxMetadata,
    };

    use super::*;

    fn strings(words: &str) -> Vec<String> {
        words.split_whitespace().map(str::to_owned).collect()
    }

    fn sandbox(namespace: &str) -> Sandbox {
        let metadata = PodSandboxMetadata { namespace: namespace.to_owned(), ..Default::default() };
        Sandbox {
            id: "s".to_owned(),
            config: PodSandboxConfig { metadata: Some(metadata), ..Default::default() },
            netns: None,
            ipcns: None,
            utsns: None,
            pause_pid: None,
            cgroup: "pod".to_owned(),
            directory: PathBuf::new(),
        }
    }

    fn plan(config: ContainerConfig, image: &RunConfig) -> Result<ContainerSpec, CriError> {
        let create = CreateContainer {
            id: "c".to_owned(),
            sandbox: Arc::new(sandbox("default")),
            config,
            image: ImageRef { id: String::new(), manifest: String::new(), name: String::new() },
            handler: String::new(),
            log_path: None,
        };
        spec(&create, image, "00".to_owned(), |path| Ok(!path.ends_with("file")))
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd_as_in_any_pod() {
        for (entrypoint, cmd, command, args, want) in [
            ("/a.wasm", "x y", "", "", "/a.wasm x y"),
            ("/a.wasm", "x y", "", "z", "/a.wasm z"),
            ("/a.wasm", "x y", "/b", "", "/b"),
            ("/a.wasm", "x y", "/b", "z", "/b z"),
            ("", "", "", "z", "name z"),
        ] {
            let image =
                RunConfig { entrypoint: strings(entrypoint), cmd: strings(cmd), ..Default::default() };
            let config = ContainerConfig {
                metadata: Some(ContainerMetadata { name: "name".to_owned(), attempt: 0 }),
                command: strings(command),
                args: strings(args),
                ..Default::default()
            };
            assert_eq!(plan(config, &image).unwrap().args, strings(want));
        }
    }

    #[test]
    fn a_pods_own_memory_limit_goes_with_each_of_its_containers() {
        let mut sandbox = sandbox("default");
        assert_eq!(pod_memory_bytes(&sandbox), None);
        let resources = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
        let linux = LinuxPodSandboxConfig { resources: Some(resources), ..Default::default() };
        sandbox.config.linux = Some(linux);
        assert_eq!(pod_memory_bytes(&sandbox), Some(64 << 20));
    }

    #[test]
    fn the_containers_environment_wins_over_the_images() {
        let image = RunConfig { env: strings("A=1 B=2"), ..Default::default() };
        let envs = vec![KeyValue { key: "B".to_owned(), value: "3".to_owned() }];
        let spec = plan(ContainerConfig { envs, ..Default::default() }, &image).unwrap();
        assert_eq!(spec.envs, [("A".into(), "1".into()), ("B".into(), "3".into())]);
    }

    #[test]
    fn a_component_is_served_on_port_env_then_the_first_container_port_then_8080() {
        let ports = [(PORTS_ANNOTATION.to_owned(), r#"[{"containerPort":9000}]"#.to_owned())];
        let port = |env: &str, annotated: bool| {
            let annotations = if annotated { ports.clone().into() } else { Default::default() };
            let image = RunConfig { env: strings(env), ..Default::default() };
            plan(ContainerConfig { annotations, ..Default::default() }, &image).map(|spec| spec.http_port)
        };
        assert_eq!(port("PORT=81", true).unwrap(), 81);
        assert_eq!(port("", true).unwrap(), 9000);
        assert_eq!(port("", false).unwrap(), 8080);
        assert!(port("PORT=http", false).unwrap_err().message.contains("PORT"));
    }

    #[test]
    fn directories_are_preopened_and_files_kept_apart() {
        let mount = |host: &str, guest: &str| Mount {
            host_path: host.to_owned(),
            container_path: guest.to_owned(),
            readonly: true,
            ..Default::default()
        };
        let mounts = vec![mount("/v/hosts-file", "/etc/hosts"), mount("/v/data", "/data")];
        let spec = plan(ContainerConfig { mounts, ..Default::default() }, &RunConfig::default()).unwrap();
        let [preopen] = spec.preopens.as_slice() else { panic!("{:?}", spec.preopens) };
        assert_eq!((preopen.guest_path.as_str(), preopen.access), ("/data", Access::ReadOnly));
        let [file] = spec.files.as_slice() else { panic!("{:?}", spec.files) };
        assert_eq!((file.guest_path.as_str(), file.access), ("/etc/hosts", Access::ReadOnly));
    }

    #[test]
    fn namespaces_never_share_a_host_and_a_dedicated_pod_has_its_own() {
        let shared = host_name(&sandbox("a"), "", "e");
        assert_eq!(shared, host_name(&sandbox("a"), "wasmtime", "e"));
        assert_ne!(shared, host_name(&sandbox("b"), "", "e"));
        assert_ne!(shared, host_name(&sandbox("a"), DEDICATED_HANDLER, "e"));
        assert_ne!(shared, host_name(&sandbox("a"), "", "other engine"));
        let mut annotated = sandbox("a");
        annotated.config.annotations.insert(HOST_ANNOTATION.to_owned(), DEDICATED.to_owned());
        assert_eq!(host_name(&annotated, "", "e"), host_name(&sandbox("a"), DEDICATED_HANDLER, "e"));
    }
}
