//! What a cluster of upstream's programs can touch: a network, mounts, pids and a cgroup of its own.
//!
//! ```text
//!  setpriv ─ nsenter ─ unshare ─ pause     ends with xtask; its end is the end of all below
//!                                  ├─ etcd, kube-apiserver, kubelet, …
//!                                  └─ containerd ─ shims ─ pods
//! ```
//!
//! The network's one link is a pair with both ends inside, so that no packet can leave.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::parts::NODE_IP;
use super::programs::Programs;
use super::signal;
use crate::command::{output, run};

const NETNS: &str = "skiff-peers";
pub(super) const GROUP: &str = "skiff-peers";
const CGROUPS: &str = "/sys/fs/cgroup";
/// What a kubelet sets for the whole machine.
const SYSCTLS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
const START_TIMEOUT: Duration = Duration::from_secs(10);
const END_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
const LOG_LINES: usize = 20;

/// What must be undone, written before it is done.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The first process and when it started, by which a later one of the same number is known.
    holder: Option<(u32, String)>,
    sysctls: BTreeMap<String, String>,
}

pub(super) struct Space {
    pub(super) dir: PathBuf,
    wrapper: Child,
    holder: u32,
    is_undone: bool,
}

pub(super) fn netns() -> PathBuf {
    Path::new("/run/netns").join(NETNS)
}

/// Where the CPU and the processes of the whole cluster are counted.
pub(super) fn group() -> PathBuf {
    accounting_root().join(GROUP)
}

/// The hierarchy that accounts CPU: cgroup v1's, or the one there is.
pub(crate) fn accounting_root() -> PathBuf {
    let v1 = ["cpuacct", "cpu,cpuacct"].map(|name| Path::new(CGROUPS).join(name));
    v1.into_iter().find(|path| path.join("cgroup.procs").exists()).unwrap_or_else(|| CGROUPS.into())
}

/// Every hierarchy; with cgroup v2 alone, its root.
fn hierarchies() -> Vec<PathBuf> {
    if Path::new(CGROUPS).join("cgroup.procs").exists() {
        return vec![CGROUPS.into()];
    }
    let entries = fs::read_dir(CGROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.join("cgroup.procs").exists()).collect()
}

/// A command whose process, and all that it starts, is counted in a group.
pub(crate) fn in_group(group: &Path, mut command: Command, program: &Path) -> Command {
    command.args(["sh", "-c", "echo 0 >\"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs")).arg(program);
    command
}

/// Removes a group and those below it, once the kernel is done with the processes that have ended.
pub(crate) fn remove_group(group: &Path) -> Result<()> {
    let end = Instant::now() + END_TIMEOUT;
    loop {
        match remove_tree(group) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > end => {
                return Err(error).with_context(|| format!("removing {}", group.display()));
            }
            Err(_) => std::thread::sleep(LOOK_AGAIN),
            Ok(()) => return Ok(()),
        }
    }
}

fn remove_tree(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

impl Space {
    /// Makes it anew in an empty folder.
    pub(super) fn make(programs: &Programs, dir: &Path) -> Result<Space> {
        programs.require("pause")?;
        clean(dir)?;
        for folder in ["log", "lib", "varlog"] {
            fs::create_dir_all(dir.join(folder)).with_context(|| format!("creating {}", dir.display()))?;
        }
        let mut record = Record::default();
        for name in SYSCTLS {
            if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(name)) {
                record.sysctls.insert(name.to_owned(), value.trim().to_owned());
            }
        }
        save(dir, &record)?;
        let made = Self::fill(programs, dir, record);
        if made.is_err()
            && let Err(error) = clean(dir)
        {
            eprintln!("cleaning up: {error:#}");
        }
        made
    }

    fn fill(programs: &Programs, dir: &Path, mut record: Record) -> Result<Space> {
        network()?;
        groups()?;
        let log = File::create(dir.join("log/holder.log"))?;
        let mut wrapper = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nsenter"])
            .arg(format!("--net={}", netns().display()))
            .args(["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--propagation=private"])
            .arg(programs.path("pause"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting setpriv, of the package util-linux")?;
        let holder =
            child_of(&mut wrapper, "pause").context("starting the first process of the namespaces")?;
        record.holder = start_time(holder).map(|time| (holder, time));
        save(dir, &record)?;
        let space = Space { dir: dir.to_owned(), wrapper, holder, is_undone: false };
        space.mounts()?;
        Ok(space)
    }

    /// The machine's files with a /run, /var/lib and /var/log of its own, and mounts that pods may share.
    fn mounts(&self) -> Result<()> {
        let mount = |arguments: &[&str]| output(self.enter(Path::new("mount")).args(arguments)).map(drop);
        let path = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        mount(&["-t", "proc", "proc", "/proc"])?;
        mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
        mount(&["--bind", &path("lib"), "/var/lib"])?;
        mount(&["--bind", &path("varlog"), "/var/log"])?;
        mount(&["--make-rshared", "/"])
    }

    /// A command in all of the namespaces.
    pub(super) fn enter(&self, program: &Path) -> Command {
        let mut command = self.nsenter();
        command.arg(program);
        command
    }

    fn nsenter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--net", "--pid", "--target"]).arg(self.holder.to_string()).arg("--");
        command
    }

    /// A path as the programs see it.
    pub(super) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.holder))
    }

    /// Starts a program, counted in the cluster's group.
    pub(super) fn start(&self, name: &str, program: &Path, arguments: &[String]) -> Result<Running> {
        let path = self.log(name);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("creating {}", path.display()))?;
        // containerd finds its shim beside itself.
        let beside = program.parent().map(|dir| dir.display().to_string()).unwrap_or_default();
        let search = std::env::var("PATH").unwrap_or_default();
        let mut wrapper = in_group(&group().join("system"), self.nsenter(), program)
            .args(arguments)
            .env("PATH", format!("{beside}:{search}:/usr/sbin:/sbin"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting nsenter, of the package util-linux")?;
        let pid = child_of(&mut wrapper, "").with_context(|| format!("starting {name}"))?;
        Ok(Running { name: name.to_owned(), wrapper, pid })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    pub(super) fn log_end(&self, name: &str) -> String {
        let text = fs::read_to_string(self.log(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    pub(super) fn undo(&mut self) -> Result<()> {
        if self.is_undone {
            return Ok(());
        }
        self.is_undone = true;
        clean(&self.dir)?;
        self.wrapper.wait().context("waiting for the first process of the namespaces").map(drop)
    }
}

/// A program within the namespaces.
pub(super) struct Running {
    name: String,
    wrapper: Child,
    /// As the machine sees it.
    pid: u32,
}

impl Running {
    /// Asks it to end, and ends it if it does not.
    pub(super) fn end(mut self) -> Result<()> {
        // One that has ended by itself is a fault, and its number may be another's by now.
        if let Some(status) = self.wrapper.try_wait()? {
            bail!("{} has ended by itself: {status}", self.name);
        }
        signal("TERM", self.pid)?;
        let end = Instant::now() + END_TIMEOUT;
        while self.wrapper.try_wait()?.is_none() {
            if Instant::now() > end {
                signal("KILL", self.pid)?;
                self.wrapper.wait()?;
                break;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

/// The one child of a wrapper, once it is there and is the program of that name.
fn child_of(wrapper: &mut Child, program: &str) -> Result<u32> {
    let id = wrapper.id();
    let end = Instant::now() + START_TIMEOUT;
    while Instant::now() < end {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        if let Some(pid) = children.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if program.is_empty() || name.trim() == program {
                return Ok(pid);
            }
        }
        if let Some(status) = wrapper.try_wait()? {
            bail!("it has ended: {status}");
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    bail!("it has not started")
}

fn network() -> Result<()> {
    run(Command::new("ip").args(["netns", "add", NETNS]))?;
    let address = format!("{NODE_IP}/24");
    for arguments in [
        &["link", "set", "lo", "up"][..],
        &["link", "add", "node0", "type", "veth", "peer", "name", "node0x"],
        &["address", "add", &address, "dev", "node0"],
        &["link", "set", "node0", "up"],
        &["link", "set", "node0x", "up"],
        &["route", "add", "default", "dev", "node0"],
    ] {
        run(Command::new("ip").args(["-n", NETNS]).args(arguments))?;
    }
    let forward = ["netns", "exec", NETNS, "sysctl", "-qw", "net.ipv4.ip_forward=1"];
    run(Command::new("ip").args(forward))
}

/// The kubelet wants its root in every hierarchy; programs are counted in one.
fn groups() -> Result<()> {
    for hierarchy in hierarchies() {
        let group = hierarchy.join(GROUP);
        fs::create_dir_all(&group).with_context(|| format!("creating {}", group.display()))?;
        // An empty set of processors takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(hierarchy.join(file))
                && group.join(file).exists()
            {
                fs::write(group.join(file), value).with_context(|| format!("writing {file}"))?;
            }
        }
    }
    let system = group().join("system");
    fs::create_dir_all(&system).with_context(|| format!("creating {}", system.display()))
}

fn save(dir: &Path, record: &Record) -> Result<()> {
    let path = dir.join("record.json");
    fs::write(&path, serde_json::to_vec(record)?).with_context(|| format!("writing {}", path.display()))
}

/// Undoes what a folder's record says, and removes the folder.
pub(super) fn clean(dir: &Path) -> Result<()> {
    let Ok(text) = fs::read(dir.join("record.json")) else {
        ensure!(!netns().exists(), "{} is there, and nobody has recorded why", netns().display());
        return Ok(());
    };
    let record: Record = serde_json::from_slice(&text).unwrap_or_default();
    if let Some((holder, started)) = &record.holder
        && start_time(*holder).as_ref() == Some(started)
    {
        signal("KILL", *holder)?;
        let end = Instant::now() + END_TIMEOUT;
        while start_time(*holder).as_ref() == Some(started) && !is_zombie(*holder) {
            ensure!(Instant::now() < end, "process {holder} does not end");
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    if netns().exists() {
        run(Command::new("ip").args(["netns", "delete", NETNS]))?;
    }
    for hierarchy in hierarchies() {
        remove_group(&hierarchy.join(GROUP))?;
    }
    for (name, value) in &record.sysctls {
        let path = Path::new("/proc/sys").join(name);
        let is_changed = fs::read_to_string(&path).is_ok_and(|now| now.trim() != value);
        if is_changed {
            fs::write(&path, value).with_context(|| format!("putting {} back", path.display()))?;
        }
    }
    fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))
}

/// Its parent may be busy with us.
fn is_zombie(pid: u32) -> bool {
    stat(pid).is_some_and(|rest| rest.starts_with('Z'))
}

fn start_time(pid: u32) -> Option<String> {
    stat(pid)?.split(' ').nth(19).map(str::to_owned)
}

/// What follows the name in the process's status.
fn stat(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned())
}
