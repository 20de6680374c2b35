//! What an earlier boot, a power cut or a crash left of a node's sandboxes. Real namespaces, mounts and control groups; the
//! network and the containers are in memory. Needs root.
#![allow(clippy::unwrap_used)] // a test may panic

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_cgroup::{Cgroups, Limits};
use skiff_cri::v1::*;
use skiff_cri::{
    Attach, ContainerEvent, ContainerRuntime, CreateContainer, Cri, CriError, ExecProcess, ExecSession,
    RuntimeContainer, RuntimeState, Usage,
};
use skiff_images::{Images, Registries, fixture};
use skiff_runtime::{NodeRuntime, PortForward, RuntimeConfig, SandboxNetwork};
use tokio::sync::broadcast;

/// A namespace is a file.
struct Network;

#[async_trait]
impl SandboxNetwork for Network {
    async fn up(
        &self,
        _: &str,
        netns: &Path,
        _: &[PortForward],
        _: &PodSandboxConfig,
    ) -> Result<Vec<IpAddr>, CriError> {
        std::fs::write(netns, "").unwrap();
        Ok(vec!["10.1.0.2".parse().unwrap()])
    }

    async fn down(&self, _: &str, netns: &Path) -> Result<(), CriError> {
        let _not_there = std::fs::remove_file(netns);
        Ok(())
    }

    fn holds(&self, netns: &Path) -> bool {
        netns.exists()
    }
}

/// Containers are names.
#[derive(Default)]
struct Containers(Mutex<BTreeMap<String, RuntimeContainer>>);

#[async_trait]
impl ContainerRuntime for Containers {
    fn name(&self) -> &'static str {
        "runc"
    }

    async fn create(&self, container: CreateContainer) -> Result<(), CriError> {
        let made = RuntimeContainer {
            id: container.id.clone(),
            sandbox_id: container.sandbox.id.clone(),
            state: RuntimeState::Running,
            pid: None,
            created_at_ns: 1,
            started_at_ns: 1,
            finished_at_ns: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
        };
        self.0.lock().insert(container.id, made);
        Ok(())
    }

    async fn start(&self, _: &str) -> Result<(), CriError> {
        Ok(())
    }

    async fn stop(&self, _: &str, _: Duration) -> Result<(), CriError> {
        Ok(())
    }

    async fn remove(&self, id: &str) -> Result<(), CriError> {
        self.0.lock().remove(id);
        Ok(())
    }

    async fn status(&self, id: &str) -> Result<RuntimeContainer, CriError> {
        self.0.lock().get(id).cloned().ok_or_else(|| CriError::not_found("container", id))
    }

    async fn list(&self) -> Result<Vec<RuntimeContainer>, CriError> {
        Ok(self.0.lock().values().cloned().collect())
    }

    async fn usage(&self, _: &str) -> Result<Usage, CriError> {
        Ok(Usage::default())
    }

    async fn update_resources(&self, _: &str, _: LinuxContainerResources) -> Result<(), CriError> {
        Ok(())
    }

    async fn reopen_log(&self, _: &str) -> Result<(), CriError> {
        Ok(())
    }

    async fn exec(&self, _: &str, _: ExecProcess) -> Result<ExecSession, CriError> {
        Err(CriError::unknown("no exec in memory"))
    }

    async fn attach(&self, _: &str, _: Attach) -> Result<ExecSession, CriError> {
        Err(CriError::unknown("no attach in memory"))
    }

    fn events(&self) -> broadcast::Receiver<ContainerEvent> {
        broadcast::Sender::new(1).subscribe()
    }
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Which of its node's namespaces a pod shares.
#[derive(Clone, Copy)]
enum Shares {
    Nothing,
    Network,
    NetworkAndIpc,
}

struct Node {
    directory: tempfile::TempDir,
    images: Arc<Images>,
    containers: Arc<Containers>,
    runtime: Arc<NodeRuntime>,
    cgroups: Cgroups,
    root: String,
}

impl Node {
    async fn new() -> Node {
        let directory = tempfile::tempdir().unwrap();
        let images = Images::open(&directory.path().join("images"), Registries::default()).unwrap();
        let archive = directory.path().join("image.tar");
        fixture::busybox_archive(&archive, "busybox:latest", &json!({})).unwrap();
        images.import(&archive, None).await.unwrap();
        let root = format!("skiff-boots-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let containers = Arc::new(Containers::default());
        let runtime = open(directory.path(), &images, &containers, &root).await;
        Node { runtime, images, containers, directory, cgroups: Cgroups::detect().unwrap(), root }
    }

    /// As after a restart of the process.
    async fn reopen(&mut self) {
        self.runtime = open(self.directory.path(), &self.images, &self.containers, &self.root).await;
    }

    fn pod_cgroup(&self, name: &str) -> String {
        format!("{}/kubepods/burstable/pod{name}", self.root)
    }

    async fn run(&self, name: &str, shares: Shares) -> String {
        let mode = |shared: bool| if shared { NamespaceMode::Node } else { NamespaceMode::Pod };
        let options = NamespaceOption {
            network: mode(!matches!(shares, Shares::Nothing)).into(),
            ipc: mode(matches!(shares, Shares::NetworkAndIpc)).into(),
            pid: NamespaceMode::Container.into(),
            ..Default::default()
        };
        let linux = LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", self.pod_cgroup(name)),
            resources: Some(LinuxContainerResources { cpu_shares: 307, ..Default::default() }),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: name.to_owned(), ..Default::default() }),
            hostname: name.to_owned(),
            dns_config: Some(DnsConfig { servers: vec!["10.1.0.10".to_owned()], ..Default::default() }),
            linux: Some(linux),
            ..Default::default()
        };
        let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        self.runtime.run_pod_sandbox(request).await.unwrap().pod_sandbox_id
    }

    async fn container(&self, sandbox: &str) -> String {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "app".to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: "busybox:latest".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            ..Default::default()
        };
        let id = self.runtime.create_container(request).await.unwrap().container_id;
        let group = self.cgroups.group(&format!("{}/{id}", self.cgroup_of(sandbox).await)).unwrap();
        group.create().unwrap();
        id
    }

    async fn cgroup_of(&self, sandbox: &str) -> String {
        let record = std::fs::read(self.record("sandbox", sandbox)).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        let parent = record["config"]["linux"]["cgroup_parent"].as_str().unwrap();
        parent.trim_start_matches('/').to_owned()
    }

    fn record(&self, kind: &str, id: &str) -> PathBuf {
        self.directory.path().join(format!("runtime/{kind}-records/{id}.json"))
    }

    fn held(&self, id: &str, name: &str) -> PathBuf {
        self.directory.path().join("run").join(id).join(name)
    }

    fn files(&self, id: &str) -> PathBuf {
        self.directory.path().join("runtime/sandboxes").join(id)
    }

    async fn is_ready(&self, id: &str) -> bool {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), ..Default::default() };
        let status = self.runtime.pod_sandbox_status(request).await.unwrap().status.unwrap();
        status.state == i32::from(PodSandboxState::SandboxReady)
    }

    /// The record says that it was made in another boot.
    fn age(&self, id: &str) {
        let path = self.record("sandbox", id);
        let mut record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert!(record["boot_id"].as_str().is_some_and(|boot| !boot.is_empty()), "{record}");
        record["boot_id"] = "an earlier one".into();
        std::fs::write(path, record.to_string()).unwrap();
    }

    async fn remove_all(&self) {
        let listed = self.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap();
        for sandbox in listed.items {
            let request = RemovePodSandboxRequest { pod_sandbox_id: sandbox.id };
            self.runtime.remove_pod_sandbox(request).await.unwrap();
        }
    }

    /// Whether nothing lies anywhere.
    fn is_bare(&self) -> bool {
        let is_empty = |path: &str| match std::fs::read_dir(self.directory.path().join(path)) {
            Ok(mut entries) => entries.next().is_none(),
            Err(_) => true,
        };
        let directories =
            ["runtime/sandbox-records", "runtime/container-records", "runtime/sandboxes", "run"];
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        directories.iter().all(|path| is_empty(path))
            && !mounts.contains(self.directory.path().to_str().unwrap())
            && self.containers.0.lock().is_empty()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for line in std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
            let target = Path::new(line.split(' ').nth(4).unwrap());
            if target.starts_with(self.directory.path()) {
                nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH).unwrap();
            }
        }
        self.cgroups.group(&self.root).unwrap().remove().unwrap();
    }
}

async fn open(
    directory: &Path,
    images: &Arc<Images>,
    containers: &Arc<Containers>,
    root: &str,
) -> Arc<NodeRuntime> {
    let linux: Arc<dyn ContainerRuntime> = containers.clone();
    let config = RuntimeConfig {
        root: directory.join("runtime"),
        run: directory.join("run"),
        images: images.clone(),
        network: Arc::new(Network),
        linux: [("runc".to_owned(), linux)].into(),
        cgroup_root: root.to_owned(),
        default_handler: "runc".to_owned(),
        wasm: Arc::new(Containers::default()),
    };
    NodeRuntime::open(config).await.unwrap()
}

#[tokio::test]
async fn no_sandbox_outlives_a_boot_whatever_of_its_node_it_shares() {
    let mut node = Node::new().await;
    let mut ids = Vec::new();
    for (name, shares) in
        [("own", Shares::Nothing), ("network", Shares::Network), ("ipc", Shares::NetworkAndIpc)]
    {
        ids.push(node.run(name, shares).await);
    }
    node.reopen().await;
    for id in &ids {
        assert!(node.is_ready(id).await, "a restart of the process is no boot");
        node.age(id);
    }
    node.reopen().await;
    for id in &ids {
        assert!(!node.is_ready(id).await);
        let request = CreateContainerRequest { pod_sandbox_id: id.clone(), ..Default::default() };
        node.runtime.create_container(request).await.unwrap_err();
    }
    node.remove_all().await;
    assert!(node.is_bare());
}

#[tokio::test]
async fn each_thing_that_a_sandbox_holds_is_looked_at() {
    let mut node = Node::new().await;
    let unmount = |path: &Path| nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let names = ["net", "ipc", "uts", "shm", "hostname", "resolv.conf"];
    let mut ids = Vec::new();
    for name in names {
        ids.push(node.run(name, Shares::Nothing).await);
    }
    let whole = node.run("whole", Shares::Nothing).await;
    for (name, id) in names.iter().zip(&ids) {
        match *name {
            "net" => std::fs::remove_file(node.held(id, name)).unwrap(),
            "ipc" | "uts" => unmount(&node.held(id, name)),
            "shm" => unmount(&node.files(id).join(name)),
            file => std::fs::remove_file(node.files(id).join(file)).unwrap(),
        }
    }
    node.reopen().await;
    for (name, id) in names.iter().zip(&ids) {
        assert!(!node.is_ready(id).await, "{name}");
    }
    assert!(node.is_ready(&whole).await);
    node.remove_all().await;
    assert!(node.is_bare());
}

#[tokio::test]
async fn the_control_group_of_a_pod_that_stands_is_made_again_with_its_limits() {
    let mut node = Node::new().await;
    let id = node.run("web", Shares::Network).await;
    let group = node.cgroups.group(&node.pod_cgroup("web")).unwrap();
    group.remove().unwrap();
    node.reopen().await;
    assert!(node.is_ready(&id).await && group.exists());
    if node.cgroups.version() == skiff_cgroup::Version::V1 {
        let file = format!("/sys/fs/cgroup/cpu/{}/cpu.shares", node.pod_cgroup("web"));
        assert_eq!(std::fs::read_to_string(file).unwrap().trim(), "307");
    }
    node.remove_all().await;
}

#[tokio::test]
async fn what_no_record_names_is_removed_at_the_start_and_the_rest_stays() {
    let mut node = Node::new().await;
    let (empty, torn, whole) = (
        node.run("empty", Shares::Nothing).await,
        node.run("torn", Shares::Network).await,
        node.run("whole", Shares::Nothing).await,
    );
    let orphan = node.container(&empty).await;
    let damaged = node.container(&whole).await;
    let kept = node.container(&whole).await;
    std::fs::write(node.record("sandbox", &empty), "").unwrap();
    let text = std::fs::read(node.record("sandbox", &torn)).unwrap();
    std::fs::write(node.record("sandbox", &torn), &text[..text.len() / 2]).unwrap();
    std::fs::write(node.record("container", &damaged), "{").unwrap();
    node.cgroups.create(&node.pod_cgroup("nobody"), &Limits::default()).unwrap();
    node.reopen().await;

    let listed = node.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.unwrap().items;
    assert_eq!(listed.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), [whole.as_str()]);
    assert!(node.is_ready(&whole).await);
    for id in [&empty, &torn] {
        assert!(!node.record("sandbox", id).exists() && !node.files(id).exists(), "the files of {id}");
        assert!(!node.held(id, "ipc").exists(), "the namespaces of {id}");
    }
    let containers = node.runtime.list_containers(ListContainersRequest::default()).await.unwrap().containers;
    assert_eq!(containers.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), [kept.as_str()]);
    let in_runtime: Vec<String> = node.containers.0.lock().keys().cloned().collect();
    assert_eq!(in_runtime, std::slice::from_ref(&kept));
    assert!(!node.record("container", &orphan).exists() && !node.record("container", &damaged).exists());
    for name in ["empty", "torn", "nobody"] {
        assert!(!node.cgroups.group(&node.pod_cgroup(name)).unwrap().exists(), "the group of {name}");
    }
    let pod = node.cgroups.group(&node.pod_cgroup("whole")).unwrap();
    assert_eq!(pod.children().unwrap(), [kept]);
    node.remove_all().await;
    assert!(node.is_bare());
}

#[tokio::test]
async fn what_a_record_may_name_that_the_disk_does_not_give_is_left_alone() {
    let mut node = Node::new().await;
    let id = node.run("web", Shares::Nothing).await;
    let app = node.container(&id).await;
    let hide = |kind: &str, id: &str| {
        let (path, aside) = (node.record(kind, id), node.directory.path().join(id));
        std::fs::rename(&path, &aside).unwrap();
        // Reading it fails, and not because there is nothing.
        std::fs::create_dir(&path).unwrap();
        (path, aside)
    };
    let hidden = [hide("sandbox", &id), hide("container", &app)];
    node.reopen().await;
    for (path, aside) in hidden {
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(aside, path).unwrap();
    }
    node.reopen().await;
    assert!(node.is_ready(&id).await);
    let pod = node.cgroups.group(&node.pod_cgroup("web")).unwrap();
    assert_eq!(pod.children().unwrap(), std::slice::from_ref(&app));
    assert!(node.containers.0.lock().contains_key(&app));
    node.remove_all().await;
    assert!(node.is_bare());
}
