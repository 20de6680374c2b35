//! Plans checked as JSON, as the OCI runtime reads them.

use std::path::PathBuf;

use serde_json::{Value, json};
use skiff_cri::v1::{
    Capability, HugepageLimit, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources, Mount,
    NamespaceOption, SecurityProfile,
};

use super::*;

fn host() -> Host {
    Host {
        cgroup_version: Version::V1,
        capabilities: (1 << 41) - 1,
        oom_score_adj: 0,
        has_apparmor: false,
        has_default_profile: false,
        has_mqueue: true,
        has_swap_accounting: true,
        has_swap_limit: false,
        huge_pages: Vec::new(),
    }
}

fn sandbox() -> Sandbox {
    Sandbox {
        id: "s1".to_owned(),
        config: skiff_cri::v1::PodSandboxConfig { hostname: "pod".to_owned(), ..Default::default() },
        netns: Some(PathBuf::from("/run/netns/pod")),
        ipcns: Some(PathBuf::from("/run/ipcns/pod")),
        utsns: None,
        pause_pid: None,
        cgroup: "skiff/kubepods/podx".to_owned(),
        directory: PathBuf::from("/run/pod"),
    }
}

fn built_on(config: &ContainerConfig, image: &RunConfig, host: &Host) -> Result<Value, String> {
    let spec = build(&Input {
        id: "c1",
        config,
        sandbox: &sandbox(),
        image,
        accounts: &Accounts::parse("root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n", ""),
        rootfs: Path::new("/bundle/rootfs"),
        pid_namespace: PidNamespace::New,
        devices: &[],
        localhost_seccomp: None,
        pids_limit: Some(100),
        open_files: OpenFiles { soft: 1024, hard: 4096 },
        host,
    })?;
    Ok(serde_json::to_value(spec).unwrap())
}

fn built(config: &ContainerConfig) -> Value {
    built_on(config, &image(), &host()).unwrap()
}

fn image() -> RunConfig {
    let text = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    RunConfig {
        entrypoint: text(&["/entry"]),
        cmd: text(&["cmd"]),
        env: text(&["A=image", "B=image"]),
        working_dir: "/work".to_owned(),
        ..Default::default()
    }
}

fn with_security(change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> ContainerConfig {
    let mut security = LinuxContainerSecurityContext::default();
    change(&mut security);
    let linux = LinuxContainerConfig { security_context: Some(security), resources: None };
    ContainerConfig { linux: Some(linux), ..Default::default() }
}

fn granted(config: &ContainerConfig) -> Vec<String> {
    let mut names: Vec<String> =
        serde_json::from_value(built(config)["process"]["capabilities"]["effective"].clone()).unwrap();
    names.sort();
    names
}

#[test]
fn command_and_args_follow_kubernetes_rules() {
    let text = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    for (command, args, expected) in [
        (&[][..], &[][..], json!(["/entry", "cmd"])),
        (&[], &["arg"], json!(["/entry", "arg"])),
        (&["/run"], &[], json!(["/run"])),
        (&["/run"], &["arg"], json!(["/run", "arg"])),
    ] {
        let config = ContainerConfig { command: text(command), args: text(args), ..Default::default() };
        assert_eq!(built(&config)["process"]["args"], expected);
    }
    let err = built_on(&ContainerConfig::default(), &RunConfig::default(), &host()).unwrap_err();
    assert_eq!(err, "failed to generate spec: no command specified");
}

#[test]
fn the_pods_variables_override_the_images() {
    let env = KeyValue { key: "B".to_owned(), value: "pod=1".to_owned() };
    let spec = built(&ContainerConfig { envs: vec![env], ..Default::default() });
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(spec["process"]["env"], json!([path, "HOSTNAME=pod", "A=image", "B=pod=1"]));
    assert_eq!(spec["process"]["cwd"], "/work");
}

#[test]
fn a_container_joins_the_pods_namespaces_and_gets_its_own_mounts_and_processes() {
    let spec = built(&ContainerConfig::default());
    let expected = json!([
        {"type": "mount"},
        {"type": "pid"},
        {"type": "network", "path": "/run/netns/pod"},
        {"type": "ipc", "path": "/run/ipcns/pod"},
    ]);
    assert_eq!(spec["linux"]["namespaces"], expected);
    assert_eq!(spec["linux"]["cgroupsPath"], "/skiff/kubepods/podx/c1");
    assert_eq!(spec.get("hostname"), None);
    let v2 = Host { cgroup_version: Version::V2, ..host() };
    let spec = built_on(&ContainerConfig::default(), &image(), &v2).unwrap();
    assert_eq!(spec["linux"]["namespaces"][4], json!({"type": "cgroup"}));
}

#[test]
fn pid_namespaces_are_new_shared_the_hosts_or_anothers() {
    let mode = |mode: NamespaceMode| {
        with_security(|security| {
            let mut options = NamespaceOption { target_id: "t".to_owned(), ..Default::default() };
            options.set_pid(mode);
            security.namespace_options = Some(options);
        })
    };
    let mut shared = sandbox();
    shared.pause_pid = Some(7);
    let join = |pid: u32| PidNamespace::Join(PathBuf::from(format!("/proc/{pid}/ns/pid")));
    assert_eq!(pid_namespace(&mode(NamespaceMode::Container), &shared, |_| None), Ok(PidNamespace::New));
    assert_eq!(pid_namespace(&mode(NamespaceMode::Pod), &shared, |_| None), Ok(join(7)));
    assert_eq!(pid_namespace(&mode(NamespaceMode::Node), &shared, |_| None), Ok(PidNamespace::Host));
    assert_eq!(pid_namespace(&mode(NamespaceMode::Target), &shared, |_| Some(9)), Ok(join(9)));
    assert!(pid_namespace(&mode(NamespaceMode::Target), &shared, |_| None).is_err());
}

#[test]
fn capabilities_are_containerds_default_plus_added_less_dropped() {
    let with = |add: &[&str], drop: &[&str]| {
        let text = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        with_security(|security| {
            security.capabilities = Some(Capability {
                add_capabilities: text(add),
                drop_capabilities: text(drop),
                ..Default::default()
            });
        })
    };
    assert_eq!(granted(&with(&[], &[])).len(), 14);
    assert_eq!(granted(&with(&["NET_ADMIN"], &["all"])), ["CAP_NET_ADMIN"]);
    assert_eq!(granted(&with(&["ALL"], &[])).len(), 41);
    assert_eq!(granted(&with(&["ALL"], &["ALL"])), Vec::<String>::new());
    assert_eq!(granted(&with(&["ALL", "CHOWN"], &["all"])), ["CAP_CHOWN"]);
    assert!(!granted(&with(&["ALL"], &["NET_RAW"])).contains(&"CAP_NET_RAW".to_owned()));
    assert!(!granted(&with(&[], &["CAP_NET_RAW"])).contains(&"CAP_NET_RAW".to_owned()));
    assert!(built_on(&with(&["NONSENSE"], &[]), &image(), &host()).is_err());
    let spec = built(&with(&[], &[]));
    assert_eq!(spec["process"]["capabilities"]["inheritable"], json!([]));
}

#[test]
fn a_privileged_container_is_not_confined() {
    let config = with_security(|security| security.privileged = true);
    let spec = built(&config);
    assert_eq!(granted(&config).len(), 41);
    assert_eq!(spec["linux"].get("seccomp"), None);
    assert_eq!(spec["linux"]["maskedPaths"], json!([]));
    assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
}

#[test]
fn an_ordinary_container_is_confined_even_if_the_caller_says_nothing() {
    let spec = built(&ContainerConfig::default());
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert!(spec["linux"]["maskedPaths"].as_array().unwrap().contains(&json!("/proc/kcore")));
    assert!(spec["linux"]["readonlyPaths"].as_array().unwrap().contains(&json!("/proc/sys")));
    assert_eq!(spec["linux"]["resources"]["devices"][0]["allow"], false);
    let unconfined = with_security(|security| {
        let mut profile = SecurityProfile::default();
        profile.set_profile_type(ProfileType::Unconfined);
        security.seccomp = Some(profile);
    });
    assert_eq!(built(&unconfined)["linux"].get("seccomp"), None);
}

#[test]
fn system_calls_that_need_a_capability_come_with_it() {
    let names = |capabilities: &[&str]| -> Vec<String> {
        seccomp::default_profile(&capabilities.iter().copied().collect())
            .syscalls()
            .iter()
            .flatten()
            .filter(|syscall| {
                syscall.action() == oci_spec::runtime::LinuxSeccompAction::ScmpActAllow
                    && syscall.args().is_none()
            })
            .flat_map(|syscall| syscall.names().clone())
            .collect()
    };
    let (without, with) = (names(&[]), names(&["SYS_ADMIN"]));
    for name in ["mount", "unshare", "setns", "clone3", "bpf"] {
        assert!(!without.contains(&name.to_owned()) && with.contains(&name.to_owned()), "{name}");
    }
    for name in ["keyctl", "add_key", "kexec_load", "userfaultfd", "io_uring_setup", "swapon"] {
        assert!(!with.contains(&name.to_owned()), "{name}");
    }
}

#[test]
fn the_pods_mounts_replace_defaults_and_are_ordered_outer_first() {
    let mount = |host: &str, container: &str| Mount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        readonly: true,
        ..Default::default()
    };
    let mounts = vec![mount("/h/1", "/data/sub"), mount("/h/2", "/data"), mount("/h/3", "/dev/shm")];
    let spec = built(&ContainerConfig { mounts, ..Default::default() });
    let destinations: Vec<_> =
        spec["mounts"].as_array().unwrap().iter().map(|mount| &mount["destination"]).collect();
    assert_eq!(
        destinations[destinations.len() - 3..],
        ["/data", "/data/sub", "/dev/shm"].map(|path| json!(path)).each_ref()[..]
    );
    assert_eq!(destinations.iter().filter(|path| **path == "/dev/shm").count(), 1);
    let options = &spec["mounts"].as_array().unwrap().last().unwrap()["options"];
    assert_eq!(*options, json!(["rbind", "rprivate", "ro"]));
    for (host, container) in [("relative", "/x"), ("/x", "/a/../../b")] {
        let config = ContainerConfig { mounts: vec![mount(host, container)], ..Default::default() };
        assert!(built_on(&config, &image(), &host_facts()).is_err());
    }
}

#[test]
fn on_cgroup_v2_a_container_does_not_swap_unasked_and_ends_as_a_whole() {
    let v2 = Host { cgroup_version: Version::V2, has_swap_limit: true, ..host() };
    let unified = |asked: LinuxContainerResources, host: &Host| {
        let resources = serde_json::to_value(resources(&asked, host)).unwrap();
        resources["unified"].clone()
    };
    let none = LinuxContainerResources::default;
    assert_eq!(unified(none(), &v2), json!({ "memory.oom.group": "1", "memory.swap.max": "0" }));
    assert_eq!(
        unified(none(), &Host { has_swap_limit: false, ..v2.clone() }),
        json!({ "memory.oom.group": "1" })
    );
    let swaps = LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 96 << 20,
        unified: [("memory.oom.group".to_owned(), "0".to_owned())].into(),
        ..none()
    };
    assert_eq!(unified(swaps, &v2), json!({ "memory.oom.group": "0" }));
    assert_eq!(unified(none(), &host()), Value::Null);
}

fn host_facts() -> Host {
    host()
}

#[test]
fn resources_are_those_that_were_asked_for() {
    let resources = LinuxContainerResources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: -997,
        ..Default::default()
    };
    let linux = LinuxContainerConfig { resources: Some(resources), security_context: None };
    let config = ContainerConfig { linux: Some(linux), ..Default::default() };
    let spec = built(&config);
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["cpu"], json!({"shares": 512, "quota": 50000, "period": 100_000}));
    assert_eq!(resources["memory"], json!({"limit": 64 << 20, "swap": 64 << 20}));
    assert_eq!(resources["pids"], json!({"limit": 100}));
    assert_eq!(spec["process"]["oomScoreAdj"], -997);
    let unprivileged = Host { capabilities: 0, oom_score_adj: 100, ..host() };
    let spec = built_on(&config, &image(), &unprivileged).unwrap();
    assert_eq!(spec["process"]["oomScoreAdj"], 100, "never lower than one's own");
}

#[test]
fn no_huge_pages_but_those_that_were_asked_for() {
    let host = Host { huge_pages: vec!["2MB".to_owned(), "1GB".to_owned()], ..host() };
    let asked = HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 };
    let asked = LinuxContainerResources { hugepage_limits: vec![asked], ..Default::default() };
    let limits = |asked: &LinuxContainerResources| {
        serde_json::to_value(resources(asked, &host)).unwrap()["hugepageLimits"].clone()
    };
    assert_eq!(
        limits(&LinuxContainerResources::default()),
        json!([{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}])
    );
    assert_eq!(
        limits(&asked),
        json!([{"pageSize": "2MB", "limit": 4 << 20}, {"pageSize": "1GB", "limit": 0}])
    );
}

#[test]
fn a_privileged_container_on_cgroup_v2_gets_the_hosts_mount_with_its_options() {
    let mount_of = |privileged| {
        let config = with_security(|security| security.privileged = privileged);
        let v2 = Host { cgroup_version: Version::V2, ..host() };
        let spec = built_on(&config, &image(), &v2).unwrap();
        let mounts = spec["mounts"].as_array().unwrap().clone();
        mounts.into_iter().find(|mount| mount["destination"] == "/sys/fs/cgroup").unwrap()
    };
    let mount = mount_of(true);
    assert_eq!((&mount["type"], &mount["source"]), (&json!("bind"), &json!("/sys/fs/cgroup")));
    assert!(mount["options"].as_array().unwrap().contains(&json!("bind")));
    // It has a cgroup namespace of its own, in which a mount sets nothing of the host's.
    assert_eq!(mount_of(false)["type"], "cgroup");
}

#[test]
fn where_there_is_apparmor_a_container_is_confined_unless_it_asks_not_to_be() {
    let with = Host { has_apparmor: true, has_default_profile: true, ..host() };
    let without = Host { has_apparmor: true, ..host() };
    let profile = |kind: Option<ProfileType>, privileged: bool, host: &Host| {
        let config = with_security(|security| {
            security.privileged = privileged;
            security.apparmor = kind.map(|kind| {
                let mut profile = SecurityProfile { localhost_ref: "mine".to_owned(), ..Default::default() };
                profile.set_profile_type(kind);
                profile
            });
        });
        built_on(&config, &image(), host).unwrap()["process"]["apparmorProfile"].clone()
    };
    assert_eq!(profile(None, false, &with), "skiff-default");
    assert_eq!(profile(Some(ProfileType::RuntimeDefault), false, &with), "skiff-default");
    assert_eq!(profile(Some(ProfileType::RuntimeDefault), false, &without), Value::Null);
    assert_eq!(profile(Some(ProfileType::RuntimeDefault), true, &with), Value::Null);
    assert_eq!(profile(Some(ProfileType::Unconfined), false, &with), Value::Null);
    assert_eq!(profile(Some(ProfileType::Localhost), false, &with), "mine");
}

#[test]
fn what_is_not_supported_is_refused() {
    let userns = with_security(|security| {
        let options = NamespaceOption { userns_options: Some(Default::default()), ..Default::default() };
        security.namespace_options = Some(options);
    });
    assert!(built_on(&userns, &image(), &host()).unwrap_err().contains("user namespaces"));
    let localhost = with_security(|security| {
        let mut profile = SecurityProfile { localhost_ref: "/x".to_owned(), ..Default::default() };
        profile.set_profile_type(ProfileType::Localhost);
        security.apparmor = Some(profile);
        security.run_as_user = Some(Int64Value { value: 1 });
    });
    assert!(built_on(&localhost, &image(), &host()).unwrap_err().contains("apparmor"));
}
