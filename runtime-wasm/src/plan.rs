//! From a CRI container and its image to a [`ContainerSpec`], and to the host that is to run it. Pure.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use skiff_cri::v1::{ContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext};
use skiff_cri::{CreateContainer, CriError, Sandbox};
use skiff_images::RunConfig;

use crate::spec::{Access, ContainerSpec, Identity, Preopen, Resources, Right};

/// The RuntimeClass handler, and the pod annotation with its value, that give a pod a host of its own.
const DEDICATED_HANDLER: &str = "wasmtime-dedicated";
const HOST_ANNOTATION: &str = "skiff.dev/wasm-host";
const DEDICATED: &str = "dedicated";
/// The pod annotation that limits how long a request may take.
const REQUEST_TIMEOUT_ANNOTATION: &str = "skiff.dev/wasm-request-timeout";
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

/// What an image has of Wasm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// One module, and no file system.
    Artifact,
    /// Files, of which the container's command, or the image's, names one.
    Files,
}

/// `is_directory` looks at a path of the node.
pub(crate) fn spec(
    create: &CreateContainer,
    image: &RunConfig,
    source: Source,
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
        args: args(image, config, source),
        http_port: http_port(config, &envs)?,
        envs,
        preopens,
        files,
        netns: create.sandbox.netns.clone(),
        pod_cgroup: create.sandbox.cgroup.clone(),
        resources: resources.map(self::resources).unwrap_or_default(),
        pod_memory_bytes: pod_memory_bytes(&create.sandbox),
        log_path: create.log_path.clone(),
        request_timeout_ms: request_timeout_ms(&create.sandbox)?,
        identity: identity(config, image).map_err(CriError::invalid)?,
    })
}

fn request_timeout_ms(sandbox: &Sandbox) -> Result<Option<u64>, CriError> {
    let Some(text) = sandbox.config.annotations.get(REQUEST_TIMEOUT_ANNOTATION) else { return Ok(None) };
    match duration(text) {
        Some(timeout) => Ok(Some(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))),
        None => Err(CriError::invalid(format!(
            "the annotation {REQUEST_TIMEOUT_ANNOTATION} is {text:?}, not a duration like 30s, 5m or 1h"
        ))),
    }
}

/// A whole number of `ms`, `s`, `m` or `h`, and not none of them.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    let seconds_each = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    Some(Duration::from_secs(number.checked_mul(seconds_each)?))
}

/// As for a Linux container: what the pod says, else what the image says, else root. A name is known to no one but the
/// image's file system, of which a guest has nothing; but root has the same number everywhere.
fn identity(config: &ContainerConfig, image: &RunConfig) -> Result<Identity, String> {
    let none = LinuxContainerSecurityContext::default();
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).unwrap_or(&none);
    let id = |id: i64| u32::try_from(id).map_err(|_| format!("user or group ID {id} is out of range"));
    let (user, group) = match &security.run_as_user {
        Some(uid) => (id(uid.value)?.to_string(), ""),
        None if !security.run_as_username.is_empty() => (security.run_as_username.clone(), ""),
        None => {
            let (user, group) = image.user.split_once(':').unwrap_or((&image.user, ""));
            (user.to_owned(), group)
        }
    };
    let number = |name: &str, what: &str| match name {
        "" | "root" => Ok(0),
        name => name.parse().map_err(|_| {
            format!("unable to find {what} {name}: a Wasm container knows users and groups by number only")
        }),
    };
    let gid = match &security.run_as_group {
        Some(gid) => id(gid.value)?,
        None => number(group, "group")?,
    };
    let mut groups = vec![gid];
    for gid in &security.supplemental_groups {
        groups.push(id(*gid)?);
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Identity { uid: number(&user, "user")?, gid, groups, rights: rights(security) })
}

/// What is added and dropped by name is dropped, and dropping all leaves only what is added by name.
fn rights(security: &LinuxContainerSecurityContext) -> Vec<Right> {
    let Some(capabilities) = security.capabilities.as_ref().filter(|_| !security.privileged) else {
        return Right::ALL.to_vec();
    };
    let has = |names: &[String], wanted: &str| {
        names.iter().any(|name| {
            let name = name.to_uppercase();
            name.strip_prefix("CAP_").unwrap_or(&name) == wanted
        })
    };
    let (add, drop) = (&capabilities.add_capabilities, &capabilities.drop_capabilities);
    let is_granted =
        |right: &Right| !has(drop, right.name()) && (!has(drop, "ALL") || has(add, right.name()));
    Right::ALL.into_iter().filter(is_granted).collect()
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

/// As for any container: `command` replaces the entrypoint and drops the image's `cmd`, `args` replaces `cmd`. The first
/// word names the program, if there is one: artifacts have no entrypoint as a rule.
pub(crate) fn command<'a>(image: &'a RunConfig, config: &'a ContainerConfig) -> (&'a [String], &'a [String]) {
    match (config.command.as_slice(), config.args.as_slice()) {
        ([], []) => (&image.entrypoint, &image.cmd),
        ([], args) => (&image.entrypoint, args),
        (command, args) => (command, args),
    }
}

/// The guest of an artifact that names no program finds the container's name as its own.
fn args(image: &RunConfig, config: &ContainerConfig, source: Source) -> Vec<String> {
    let (program, rest) = command(image, config);
    let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let name = (program.is_empty() && source == Source::Artifact).then_some(name);
    name.into_iter().chain(program.iter().chain(rest).cloned()).collect()
}

/// Where in the image the program may lie, the likeliest first: its path, from the working directory unless it is a whole one.
pub(crate) fn programs(image: &RunConfig, config: &ContainerConfig) -> Vec<String> {
    let (program, rest) = command(image, config);
    let Some(program) = program.iter().chain(rest).next().filter(|program| !program.is_empty()) else {
        return Vec::new();
    };
    let directory = if config.working_dir.is_empty() { &image.working_dir } else { &config.working_dir };
    match program.starts_with('/') || directory.is_empty() {
        true => vec![program.clone()],
        false => vec![format!("{directory}/{program}"), program.clone()],
    }
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
        spec(&create, image, Source::Artifact, "00".to_owned(), |path| Ok(!path.ends_with("file")))
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
    fn the_program_of_an_image_of_files_is_where_a_linux_container_would_have_it() {
        let found = |image: [&str; 3], pod: [&str; 3]| {
            let [entrypoint, cmd, working_dir] = image;
            let (entrypoint, cmd) = (strings(entrypoint), strings(cmd));
            let image =
                RunConfig { entrypoint, cmd, working_dir: working_dir.to_owned(), ..Default::default() };
            let [command, args, working_dir] = pod;
            let (command, args) = (strings(command), strings(args));
            let pod =
                ContainerConfig { command, args, working_dir: working_dir.to_owned(), ..Default::default() };
            (programs(&image, &pod).join(" "), super::args(&image, &pod, Source::Files).join(" "))
        };
        let check = |image, pod, program: &str, args: &str| {
            assert_eq!(found(image, pod), (program.to_owned(), args.to_owned()));
        };
        check(["/app.wasm", "a b", ""], ["", "", ""], "/app.wasm", "/app.wasm a b");
        check(["/app.wasm", "a b", "/w"], ["", "c", ""], "/app.wasm", "/app.wasm c");
        check(["/app.wasm", "a b", ""], ["other.wasm", "c", ""], "other.wasm", "other.wasm c");
        check(["app.wasm", "", "/w"], ["", "", ""], "/w/app.wasm app.wasm", "app.wasm");
        check(["app.wasm", "", "/w"], ["", "", "/p"], "/p/app.wasm app.wasm", "app.wasm");
        check(["", "/app.wasm a", ""], ["", "", ""], "/app.wasm", "/app.wasm a");
        check(["", "/app.wasm a", ""], ["", "/b.wasm", ""], "/b.wasm", "/b.wasm");
        check(["", "", ""], ["", "", ""], "", "");
    }

    #[test]
    fn a_guest_is_who_its_pod_says_else_its_image_else_root() {
        use skiff_cri::v1::{Capability, Int64Value, LinuxContainerConfig};
        let plan = |user: &str, security: LinuxContainerSecurityContext| {
            let image = RunConfig { user: user.to_owned(), ..Default::default() };
            let linux = LinuxContainerConfig { security_context: Some(security), ..Default::default() };
            plan(ContainerConfig { linux: Some(linux), ..Default::default() }, &image).map(|spec| {
                (spec.identity.uid, spec.identity.gid, spec.identity.groups, spec.identity.rights)
            })
        };
        let none = LinuxContainerSecurityContext::default;
        let all = Right::ALL.to_vec();
        assert_eq!(plan("", none()).unwrap(), (0, 0, vec![0], all.clone()));
        assert_eq!(plan("7:8", none()).unwrap(), (7, 8, vec![8], all.clone()));
        assert_eq!(plan("root", none()).unwrap(), (0, 0, vec![0], all.clone()));
        let security = LinuxContainerSecurityContext {
            run_as_user: Some(Int64Value { value: 1000 }),
            run_as_group: Some(Int64Value { value: 30 }),
            supplemental_groups: vec![20, 30],
            ..none()
        };
        assert_eq!(plan("7:8", security).unwrap(), (1000, 30, vec![20, 30], all));
        let err = plan("app", none()).unwrap_err();
        assert!(err.message.starts_with("unable to find user app: "), "{err}");
        let with = |add: &str, drop: &str| {
            let (add_capabilities, drop_capabilities) = (strings(add), strings(drop));
            let capabilities = Capability { add_capabilities, drop_capabilities, ..Default::default() };
            plan("", LinuxContainerSecurityContext { capabilities: Some(capabilities), ..none() }).unwrap().3
        };
        assert_eq!(with("", "dac_override"), [Right::Fowner, Right::NetBindService]);
        assert_eq!(with("CAP_NET_BIND_SERVICE", "ALL"), [Right::NetBindService]);
        assert_eq!(with("ALL FOWNER", "all FOWNER"), []);
    }

    #[test]
    fn a_request_may_take_as_long_as_it_likes_unless_its_pod_says_otherwise() {
        for (text, expected) in
            [("250ms", Some(250)), ("30s", Some(30_000)), ("5m", Some(300_000)), ("1h", Some(3_600_000))]
        {
            assert_eq!(duration(text).map(|d| d.as_millis()), expected, "{text}");
        }
        for text in ["", "0s", "5", "s", "-1s", "1.5s", "1d", "99999999999999999999s", "9999999999999999999h"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
        let mut sandbox = sandbox("default");
        assert_eq!(request_timeout_ms(&sandbox).unwrap(), None);
        sandbox.config.annotations.insert(REQUEST_TIMEOUT_ANNOTATION.to_owned(), "soon".to_owned());
        assert!(request_timeout_ms(&sandbox).unwrap_err().message.contains("\"soon\", not a duration"));
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
