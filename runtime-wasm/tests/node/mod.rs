//! A node's surroundings of a runtime: directories, images, a pod, and that nothing of it is left.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use skiff_cri::v1::{
    ContainerConfig, ContainerMetadata, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount, PodSandboxConfig, PodSandboxMetadata,
};
use skiff_cri::{
    ContainerRuntime, CreateContainer, CriError, ImageRef, RuntimeContainer, RuntimeState, Sandbox,
};
use skiff_images::{Images, Registries, fixture};
use skiff_runtime_wasm::{WasmConfig, WasmRuntime};

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Node {
    pub runtime: Arc<WasmRuntime>,
    directory: tempfile::TempDir,
    images: Arc<Images>,
    cgroup: String,
}

#[derive(Clone, Default)]
pub struct Options<'a> {
    pub args: &'a [&'a str],
    pub env: &'a [(&'a str, &'a str)],
    /// Host path, guest path, read-only.
    pub mounts: &'a [(&'a str, &'a str, bool)],
    pub memory: i64,
    /// The image is for Linux, and has the module under these names; the first of them is its entrypoint.
    pub files: &'a [&'a str],
    pub command: &'a [&'a str],
    /// Of the pod.
    pub annotations: &'a [(&'a str, &'a str)],
    pub security: Option<LinuxContainerSecurityContext>,
    pub netns: Option<PathBuf>,
}

impl Node {
    pub async fn new() -> Node {
        // Below /tmp, whatever TMPDIR says: a socket's path must be short.
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let images = Images::open(&directory.path().join("images"), Registries::default()).unwrap();
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("skiff-wasm-test-{}-{n}", std::process::id());
        let runtime = open(&directory, &images, &cgroup).await;
        Node { runtime, directory, images, cgroup }
    }

    /// As if nodelet had been restarted.
    pub async fn reopen(&mut self) {
        self.runtime = open(&self.directory, &self.images, &self.cgroup).await;
    }

    pub async fn create(&self, id: &str, module: &[u8], options: Options<'_>) -> Result<(), CriError> {
        let archive = self.directory.path().join(format!("{id}.tar"));
        let name = format!("docker.io/skiff/{id}:v1");
        match options.files {
            [] => fixture::wasm_archive(&archive, &name, module).unwrap(),
            [program, ..] => {
                let add = |layer: fixture::Layer, name: &&str| layer.file(name, 0o644, module).unwrap();
                let layer = options.files.iter().fold(fixture::Layer::default(), add).finish().unwrap();
                let run = serde_json::json!({"Entrypoint": [program], "WorkingDir": "/"});
                fixture::image_archive(&archive, &name, &run, &[layer]).unwrap();
            }
        }
        let images = self.images.import(&archive, None).await.unwrap();
        let image = &images[0];
        let sandbox = Sandbox {
            id: format!("sandbox-{id}"),
            config: PodSandboxConfig {
                metadata: Some(PodSandboxMetadata { namespace: "default".to_owned(), ..Default::default() }),
                annotations: options
                    .annotations
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
                ..Default::default()
            },
            netns: options.netns,
            ipcns: None,
            utsns: None,
            pause_pid: None,
            cgroup: format!("{}/pod", self.cgroup),
            directory: self.directory.path().join("sandbox"),
        };
        let key_value =
            |(key, value): &(&str, &str)| KeyValue { key: (*key).to_owned(), value: (*value).to_owned() };
        let volume = |(host_path, container_path, readonly): &(&str, &str, bool)| Mount {
            host_path: (*host_path).to_owned(),
            container_path: (*container_path).to_owned(),
            readonly: *readonly,
            ..Default::default()
        };
        let resources = LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: options.memory,
            ..Default::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: id.to_owned(), attempt: 0 }),
            command: options.command.iter().map(|word| (*word).to_owned()).collect(),
            args: options.args.iter().map(|arg| (*arg).to_owned()).collect(),
            envs: options.env.iter().map(key_value).collect(),
            mounts: options.mounts.iter().map(volume).collect(),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources),
                security_context: options.security,
            }),
            ..Default::default()
        };
        self.runtime
            .create(CreateContainer {
                id: id.to_owned(),
                sandbox: Arc::new(sandbox),
                config,
                image: ImageRef { id: image.id.clone(), manifest: image.manifest.clone(), name },
                handler: String::new(),
                log_path: Some(self.log_path(id)),
            })
            .await
    }

    pub async fn run(&self, id: &str, module: &[u8], options: Options<'_>) {
        self.create(id, module, options).await.unwrap();
        self.runtime.start(id).await.unwrap();
    }

    pub async fn wait_exit(&self, id: &str) -> RuntimeContainer {
        let mut events = self.runtime.events();
        loop {
            let status = self.runtime.status(id).await.unwrap();
            if status.state == RuntimeState::Exited {
                return status;
            }
            events.recv().await.unwrap();
        }
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// What hosts have in the run directory.
    pub fn run_files(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.directory.path().join("run")).unwrap();
        files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub fn n_host_groups(&self) -> usize {
        let parent = format!("{}/wasm", self.cgroup);
        skiff_cgroup::Cgroups::detect().unwrap().group(&parent).unwrap().children().unwrap().len()
    }

    /// Whether a container has a group: in its pod's, on cgroup v2 in its host's.
    pub fn has_group(&self, id: &str) -> bool {
        let group = |path: &str| skiff_cgroup::Cgroups::detect().unwrap().group(path).unwrap();
        let hosts = group(&format!("{}/wasm", self.cgroup));
        let hosts = hosts.children().unwrap().into_iter().map(|name| hosts.child(&name).unwrap());
        let parents = hosts.chain([group(&format!("{}/pod", self.cgroup))]);
        parents.into_iter().any(|parent| parent.child(id).unwrap().exists())
    }

    /// What the group above all hosts weighs, and after it each host's; on cgroup v1.
    pub fn host_shares(&self) -> Vec<String> {
        let parent = PathBuf::from(format!("/sys/fs/cgroup/cpu/{}/wasm", self.cgroup));
        let read = |group: PathBuf| std::fs::read_to_string(group.join("cpu.shares")).unwrap_or_default();
        let hosts = std::fs::read_dir(&parent).unwrap().map(|entry| entry.unwrap().path());
        let hosts = hosts.filter(|path| path.is_dir());
        [parent.clone()].into_iter().chain(hosts).map(|group| read(group).trim().to_owned()).collect()
    }

    fn log_path(&self, id: &str) -> PathBuf {
        self.directory.path().join(format!("{id}.log"))
    }

    /// The lines without their times.
    pub fn log(&self, id: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.log_path(id)).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    /// PIDs of processes that were started as hosts of this node.
    pub fn hosts(&self) -> Vec<i32> {
        let run_dir = self.directory.path().join("run").to_str().unwrap().to_owned();
        let is_host = |pid: &i32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&run_dir))
        };
        let processes = std::fs::read_dir("/proc").unwrap();
        let pids = processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        pids.filter(is_host).collect()
    }

    /// Ends everything; fails if a process or a group is left.
    pub async fn end(self) {
        for container in self.runtime.list().await.unwrap() {
            self.runtime.remove(&container.id).await.unwrap();
        }
        self.runtime.shutdown_hosts().await.unwrap();
        assert_eq!(self.hosts(), Vec::<i32>::new());
        assert_eq!(std::fs::read_dir(self.directory.path().join("run")).unwrap().count(), 0);
        let cgroups = skiff_cgroup::Cgroups::detect().unwrap();
        assert!(!cgroups.group(&format!("{}/wasm", self.cgroup)).unwrap().exists());
        cgroups.group(&self.cgroup).unwrap().remove().unwrap();
    }
}

/// After a failed test: what [`Node::end`] did not come to.
impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for pid in self.hosts() {
                _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            let group = skiff_cgroup::Cgroups::detect().and_then(|cgroups| cgroups.group(&self.cgroup));
            _ = group.and_then(|group| group.remove());
        }
    }
}

async fn open(directory: &tempfile::TempDir, images: &Arc<Images>, cgroup: &str) -> Arc<WasmRuntime> {
    let this = std::env::current_exe().unwrap();
    let command = |role: &str| vec![this.clone().into_os_string(), role.into()];
    let config = WasmConfig {
        state_dir: directory.path().join("state"),
        run_dir: directory.path().join("run"),
        images: images.clone(),
        host_command: command("wasm-host"),
        compile_command: command("wasm-compile"),
        cgroup_root: cgroup.to_owned(),
    };
    WasmRuntime::open(config).await.unwrap()
}

/// Memory that a process shares with no other.
pub fn private_kib(pid: i32) -> usize {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap();
    rollup.lines().filter(|line| line.starts_with("Private_")).map(of).sum()
}

/// What a process has in memory, and the most that it had.
pub fn resident(pid: i32) -> (usize, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// Code in a process's address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Empty for memory that is no file's.
    pub file: String,
    /// What the process has changed, and therefore has for itself.
    pub private_dirty_kib: usize,
}

/// All that a process could execute.
pub fn executable(pid: i32) -> Vec<Mapped> {
    let mut found: Vec<Mapped> = Vec::new();
    let mut is_code = false;
    for line in std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [range, permissions, _, _, _, ref file @ ..] if range.contains('-') => {
                is_code = permissions.contains('x');
                if is_code {
                    found.push(Mapped { file: file.join(" "), private_dirty_kib: 0 });
                }
            }
            ["Private_Dirty:", kib, _] if is_code => {
                found.last_mut().unwrap().private_dirty_kib = kib.parse().unwrap();
            }
            _ => {}
        }
    }
    found
}

/// A network namespace with its loopback up, held by a bind mount as a sandbox's is.
pub struct Netns {
    pub path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Netns {
    pub fn new() -> Netns {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let path = directory.path().join("netns");
        std::fs::write(&path, "").unwrap();
        let target = path.clone();
        let make = move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.unwrap().success());
            let none = None::<&str>;
            mount(Some("/proc/thread-self/ns/net"), &target, none, MsFlags::MS_BIND, none).unwrap();
        };
        std::thread::spawn(make).join().unwrap();
        Netns { path, _directory: directory }
    }

    /// What a server in it answers to one request.
    pub fn get(&self, port: u16) -> String {
        self.inside(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET /x HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    }

    /// What comes for some bytes until the server closes the connection, and how it closed it.
    pub fn ask(&self, port: u16, request: &str) -> (String, std::io::Result<()>) {
        self.inside(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = Vec::new();
            let ended = stream.read_to_end(&mut answer).map(drop);
            (String::from_utf8_lossy(&answer).into_owned(), ended)
        })
    }

    /// The status and the body of one request of HTTP/1.1, and whether it was whole.
    pub fn fetch(&self, port: u16, path: &str) -> (u16, String, bool) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: pod\r\nconnection: close\r\n\r\n");
        let (answer, _) = self.ask(port, &request);
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (0, answer, false) };
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let head = head.to_lowercase();
        if head.contains("transfer-encoding: chunked") {
            let parts = body.split("\r\n").collect::<Vec<_>>();
            let text = parts.chunks(2).filter_map(|part| part.get(1)).copied().collect::<String>();
            return (status, text, body.ends_with("0\r\n\r\n"));
        }
        let length = head.split("content-length: ").nth(1).map(|rest| rest.lines().next().unwrap());
        let length: usize = length.unwrap_or("0").parse().unwrap();
        (status, body.to_owned(), body.len() == length)
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let netns = std::fs::File::open(&self.path).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
    }
}
