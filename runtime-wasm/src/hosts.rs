//! Host processes from nodelet's side: started, found again, listened to, ended.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use skiff_cgroup::Cgroups;
use skiff_cri::ContainerEvent;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::process::ProcessId;
use crate::protocol::{self, Event, Reply, Request};
use crate::record::{Record, RecordError, Records};

/// A host answers within milliseconds of being started; on a machine that is busy, within this.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// A host that ends as we connect leaves its lock a moment later.
const N_CONNECT_TRIES: u32 = 5;
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
const KILL_PATIENCE: Duration = Duration::from_secs(10);
const MAX_MESSAGE_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("no command to start a Wasm host is configured")]
    NoCommand,
    #[error("start the Wasm host {name}: {detail}")]
    Start { name: String, detail: String },
    #[error("speak with the Wasm host {name}: {source}")]
    Speak { name: String, source: io::Error },
    #[error("the Wasm host {name} broke off")]
    BrokeOff { name: String },
    #[error("find Wasm hosts in {path}: {source}")]
    Find { path: PathBuf, source: io::Error },
    #[error("end the Wasm host {name} (PID {pid}): {source}")]
    Kill { name: String, pid: u32, source: io::Error },
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Cgroup(#[from] skiff_cgroup::Error),
}

/// Where a host's files lie in the run directory.
#[derive(Clone, Debug)]
pub(crate) struct HostFiles {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
    pub(crate) record: PathBuf,
    pub(crate) lock: PathBuf,
    pub(crate) log: PathBuf,
}

impl HostFiles {
    pub(crate) fn new(run_dir: &Path, name: &str) -> HostFiles {
        let file = |suffix: &str| run_dir.join(format!("{name}.{suffix}"));
        HostFiles {
            name: name.to_owned(),
            socket: file("sock"),
            record: file("json"),
            lock: file("lock"),
            log: file("log"),
        }
    }

    fn all(&self) -> [&PathBuf; 4] {
        [&self.socket, &self.record, &self.lock, &self.log]
    }
}

/// What a host says of itself in its `.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    pub(crate) name: String,
    pub(crate) process: ProcessId,
    pub(crate) cgroup: String,
}

pub(crate) struct Hosts {
    run_dir: PathBuf,
    state_dir: PathBuf,
    command: Vec<OsString>,
    cgroup_root: String,
    cgroups: Cgroups,
    records: Records,
    events: broadcast::Sender<ContainerEvent>,
    /// Hosts that a task listens to.
    watched: Mutex<HashMap<String, ()>>,
    starting: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Ends the listening tasks with this object.
    cancelled: CancellationToken,
    _cancel: DropGuard,
}

pub(crate) struct HostsConfig {
    pub(crate) run_dir: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) command: Vec<OsString>,
    pub(crate) cgroup_root: String,
    pub(crate) cgroups: Cgroups,
    pub(crate) records: Records,
    pub(crate) events: broadcast::Sender<ContainerEvent>,
}

impl Hosts {
    /// Finds the hosts that run already and listens to them.
    pub(crate) async fn open(config: HostsConfig) -> Result<Arc<Hosts>, HostError> {
        let cancelled = CancellationToken::new();
        let hosts = Arc::new(Hosts {
            run_dir: config.run_dir,
            state_dir: config.state_dir,
            command: config.command,
            cgroup_root: config.cgroup_root,
            cgroups: config.cgroups,
            records: config.records,
            events: config.events,
            watched: Mutex::default(),
            starting: Mutex::default(),
            _cancel: cancelled.clone().drop_guard(),
            cancelled,
        });
        for host in hosts.found()? {
            if host.process.is_alive() {
                hosts.watch(&host.name).await;
            } else {
                hosts.bury(&host)?;
            }
        }
        Ok(hosts)
    }

    fn files(&self, name: &str) -> HostFiles {
        HostFiles::new(&self.run_dir, name)
    }

    /// The hosts that have left their record here, dead or alive.
    fn found(&self) -> Result<Vec<HostRecord>, HostError> {
        let fail = |source| HostError::Find { path: self.run_dir.clone(), source };
        let mut hosts = Vec::new();
        for entry in fs::read_dir(&self.run_dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.extension().is_some_and(|extension| extension == "json")
                && let Ok(text) = fs::read(&path)
            {
                hosts.extend(serde_json::from_slice::<HostRecord>(&text).ok());
            }
        }
        Ok(hosts)
    }

    /// Asks a host that runs.
    pub(crate) async fn ask(&self, name: &str, request: &Request) -> Result<Reply, HostError> {
        let speak = |source| HostError::Speak { name: name.to_owned(), source };
        let mut stream = UnixStream::connect(self.files(name).socket).await.map_err(speak)?;
        protocol::write(&mut stream, request).await.map_err(speak)?;
        let reply = protocol::read(&mut stream).await.map_err(speak)?;
        reply.ok_or_else(|| HostError::BrokeOff { name: name.to_owned() })
    }

    /// Sees to it that the host runs and is listened to, then asks it. A host that ends for want of work
    /// just now is replaced, which is why `request` must be one that may be repeated.
    pub(crate) async fn start_and_ask(
        self: &Arc<Self>,
        name: &str,
        request: &Request,
    ) -> Result<Reply, HostError> {
        let mut tries = 0;
        loop {
            if !self.is_watched(name) {
                self.start(name).await?;
            }
            match self.ask(name, request).await {
                Err(HostError::Speak { .. } | HostError::BrokeOff { .. }) if tries < N_CONNECT_TRIES => {
                    tries += 1;
                    self.watched.lock().remove(name);
                    tokio::time::sleep(CONNECT_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    fn is_watched(&self, name: &str) -> bool {
        self.watched.lock().contains_key(name)
    }

    async fn start(self: &Arc<Self>, name: &str) -> Result<(), HostError> {
        let lock = self.starting.lock().entry(name.to_owned()).or_default().clone();
        let _turn = lock.lock().await;
        if self.is_watched(name) || self.watch(name).await {
            return Ok(());
        }
        let start = |detail: String| HostError::Start { name: name.to_owned(), detail };
        let (program, args) = self.command.split_first().ok_or(HostError::NoCommand)?;
        let mut launcher = Command::new(program)
            .args(args)
            .args(["--name", name])
            .arg("--state-dir")
            .arg(&self.state_dir)
            .arg("--run-dir")
            .arg(&self.run_dir)
            .arg("--cgroup")
            .arg(self.cgroup(name))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|err| start(format!("{program:?}: {err}")))?;
        let stderr = launcher.stderr.take();
        let run = async {
            let mut said = String::new();
            if let Some(stderr) = stderr {
                stderr.take(MAX_MESSAGE_BYTES).read_to_string(&mut said).await?;
            }
            Ok::<_, io::Error>((launcher.wait().await?, said))
        };
        let ended = tokio::time::timeout(START_PATIENCE, run).await;
        let (status, said) = ended
            .map_err(|_| start(format!("no answer after {} s", START_PATIENCE.as_secs())))?
            .map_err(|err| start(err.to_string()))?;
        if !status.success() {
            return Err(start(format!("{} ({status})", said.trim())));
        }
        self.watch(name).await;
        Ok(())
    }

    fn cgroup(&self, name: &str) -> String {
        let root = self.cgroup_root.trim_matches('/');
        if root.is_empty() { format!("skiff-wasm/{name}") } else { format!("{root}/wasm/{name}") }
    }

    /// Listens to a host until it ends; false if it does not answer.
    async fn watch(self: &Arc<Self>, name: &str) -> bool {
        let Ok(stream) = self.subscribe(name).await else { return false };
        if self.watched.lock().insert(name.to_owned(), ()).is_none() {
            let task = listen(Arc::downgrade(self), name.to_owned(), stream);
            let cancelled = self.cancelled.clone();
            tokio::spawn(async move { cancelled.run_until_cancelled(task).await });
        }
        true
    }

    async fn subscribe(&self, name: &str) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.files(name).socket).await?;
        protocol::write(&mut stream, &Request::Subscribe).await?;
        match protocol::read(&mut stream).await? {
            Some(Reply::Done) => Ok(stream),
            _ => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// The record, put right if its host is no more.
    pub(crate) fn settle(&self, record: Record) -> Result<Record, RecordError> {
        if !record.is_live() || record.process.is_alive() {
            return Ok(record);
        }
        // Read again now that no one writes: its last words may have come since.
        let id = record.container.id.clone();
        let mut record = self.records.load(&id)?.unwrap_or(record);
        if record.is_live() {
            record.host_died();
            self.records.store(&record)?;
        }
        Ok(record)
    }

    /// Settles what a dead host leaves behind and removes its files and group.
    fn bury(&self, host: &HostRecord) -> Result<(), HostError> {
        for record in self.records.all()?.into_iter().filter(|record| record.process == host.process) {
            let was_live = record.is_live();
            let record = self.settle(record)?;
            if was_live {
                self.announce(&record.container.sandbox_id, &record.container.id);
            }
        }
        let group = self.cgroups.group(&host.cgroup)?;
        if group.exists() && group.pids()?.is_empty() {
            group.remove()?;
        }
        let files = self.files(&host.name);
        // Unless a successor has put its own there.
        let same = fs::read(&files.record).is_ok_and(|text| {
            serde_json::from_slice::<HostRecord>(&text).is_ok_and(|now| now.process == host.process)
        });
        if same {
            _ = fs::remove_file(&files.record);
        }
        Ok(())
    }

    fn announce(&self, sandbox_id: &str, container_id: &str) {
        // An error means that no one listens.
        _ = self.events.send(ContainerEvent {
            sandbox_id: sandbox_id.to_owned(),
            container_id: container_id.to_owned(),
        });
    }

    /// Ends every host and removes what it left behind. Blocks.
    pub(crate) fn shut_down(&self) -> Result<(), HostError> {
        for host in self.found()? {
            host.process.kill(KILL_PATIENCE).map_err(|source| HostError::Kill {
                name: host.name.clone(),
                pid: host.process.pid,
                source,
            })?;
            self.bury(&host)?;
            self.watched.lock().remove(&host.name);
        }
        // Hosts that ended by themselves have left these.
        let fail = |source| HostError::Find { path: self.run_dir.clone(), source };
        for entry in fs::read_dir(&self.run_dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if self.files(stem).all().contains(&&path) {
                _ = fs::remove_file(&path);
                let group = self.cgroups.group(&self.cgroup(stem))?;
                if group.exists() {
                    group.remove()?;
                }
            }
        }
        let parent = self.cgroup("x");
        let parent = self.cgroups.group(parent.trim_end_matches("/x"))?;
        if parent.exists() {
            parent.remove()?;
        }
        Ok(())
    }
}

/// Passes a host's events on. When it breaks off, everything it ran is looked at again.
async fn listen(hosts: Weak<Hosts>, name: String, mut stream: UnixStream) {
    loop {
        while let Ok(Some(event)) = protocol::read::<Event>(&mut stream).await {
            let Some(hosts) = hosts.upgrade() else { return };
            hosts.announce(&event.sandbox_id, &event.container_id);
        }
        let Some(hosts) = hosts.upgrade() else { return };
        // It lives and only found this listener too slow: listen again, then look at all it runs.
        if let Ok(again) = hosts.subscribe(&name).await {
            stream = again;
        } else {
            hosts.watched.lock().remove(&name);
        }
        let (ended, host) = (hosts.clone(), name.clone());
        let settled = tokio::task::spawn_blocking(move || ended.look_again(&host)).await;
        if let Ok(Err(err)) = settled {
            tracing::warn!(host = name, %err, "the Wasm host broke off");
        }
        if !hosts.is_watched(&name) {
            return;
        }
    }
}

impl Hosts {
    fn look_again(&self, name: &str) -> Result<(), HostError> {
        for host in self.found()?.into_iter().filter(|host| host.name == name) {
            // One that lives and was only too busy to answer is found again when it is next needed.
            if self.is_watched(name) || host.process.wait(KILL_PATIENCE).is_err() {
                continue;
            }
            self.bury(&host)?;
        }
        for record in self.records.all()?.into_iter().filter(|record| record.host == name) {
            let record = self.settle(record)?;
            self.announce(&record.container.sandbox_id, &record.container.id);
        }
        Ok(())
    }
}
