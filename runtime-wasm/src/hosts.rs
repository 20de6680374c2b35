//! Host processes from nodelet's side: started, found again, listened to, ended.

mod weight;

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use skiff_cgroup::{Cgroups, Group};
use skiff_cri::ContainerEvent;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::lock;
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
    #[error("the Wasm host {name} did not answer within {seconds} s")]
    Late { name: String, seconds: u64 },
    #[error("find Wasm hosts in {path}: {source}")]
    Find { path: PathBuf, source: io::Error },
    #[error("remove what the Wasm host {name} left: {source}")]
    Clear { name: String, source: io::Error },
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
    patience: Patience,
    /// Hosts that a task listens to.
    watched: Mutex<HashMap<String, ()>>,
    starting: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while it is cleared up after a host.
    clearing: Mutex<()>,
    /// Asks for the groups' weights to be set again.
    weigh: Arc<Notify>,
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
    pub(crate) patience: Patience,
}

/// How long a host may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For an answer, besides what the request itself is given.
    pub(crate) answer: Duration,
    /// To say that it is there, which costs it nothing.
    pub(crate) sign_of_life: Duration,
    /// The same for hosts found at the start, which the node must not wait for. They get the longer time after it.
    pub(crate) at_start: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            answer: Duration::from_secs(30),
            sign_of_life: Duration::from_secs(5),
            at_start: Duration::from_secs(1),
        }
    }
}

impl Hosts {
    /// Finds the hosts that run already and listens to them. One that gives no sign of life holds nothing up: it is
    /// replaced meanwhile.
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
            patience: config.patience,
            watched: Mutex::default(),
            starting: Mutex::default(),
            clearing: Mutex::default(),
            weigh: Arc::default(),
            _cancel: cancelled.clone().drop_guard(),
            cancelled,
        });
        let (keep, ended) = (weight::keep(Arc::downgrade(&hosts)), hosts.cancelled.clone());
        tokio::spawn(async move { ended.run_until_cancelled(keep).await });
        let mut alive = Vec::new();
        for host in hosts.found()? {
            if host.process.is_alive() {
                alive.push(host.name);
            } else if let Err(err) = hosts.bury(&host) {
                // Its record stays until it is: the next start finds it again.
                tracing::warn!(host = host.name, %err, "a Wasm host's leftovers are not removed yet");
            }
        }
        hosts.sweep(&alive);
        hosts.weigh();
        let watches = alive.iter().map(|name| hosts.watch_within(name, hosts.patience.at_start));
        let watched = futures::future::join_all(watches).await;
        for (name, _) in alive.into_iter().zip(watched).filter(|(_, is_watched)| !is_watched) {
            let (hosts, cancelled) = (hosts.clone(), hosts.cancelled.clone());
            tokio::spawn(async move { cancelled.run_until_cancelled(hosts.judge(&name)).await });
        }
        Ok(hosts)
    }

    /// Listens to a host that was slow to answer, or replaces it.
    async fn judge(self: &Arc<Self>, name: &str) {
        let judged = self.process_of(name);
        if !self.watch(name).await
            && self.is_silent(name).await
            && let Err(err) = self.replace(name, judged).await
        {
            tracing::warn!(host = name, %err, "a Wasm host that does not answer could not be ended");
        }
        // What it did before it was listened to.
        let (hosts, host) = (self.clone(), name.to_owned());
        let looked = tokio::task::spawn_blocking(move || hosts.look_again(&host)).await;
        if let Ok(Err(err)) = looked {
            tracing::warn!(host = name, %err, "look at the containers of a Wasm host");
        }
    }

    /// Whether a host gives no sign of life for as long as it may take to answer. That this process cannot ask is none of
    /// its faults.
    async fn is_silent(&self, name: &str) -> bool {
        use io::ErrorKind::{
            BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, TimedOut, UnexpectedEof,
        };
        let asked = self.subscribe_within(name, self.patience.answer).await;
        let silence = [BrokenPipe, ConnectionRefused, ConnectionReset, NotFound, TimedOut, UnexpectedEof];
        asked.is_err_and(|err| silence.contains(&err.kind()))
    }

    /// The process that has a name just now. Who judges a host asks for it first: while he waits, another may put a new
    /// one in its place, which has done nothing wrong.
    fn process_of(&self, name: &str) -> Option<ProcessId> {
        let text = fs::read(self.files(name).record).ok()?;
        serde_json::from_slice::<HostRecord>(&text).ok().map(|host| host.process)
    }

    /// Ends a host that does not answer: its containers have ended with it, and the next start makes another.
    async fn replace(self: &Arc<Self>, name: &str, judged: Option<ProcessId>) -> Result<(), HostError> {
        let Some(judged) = judged else { return Ok(()) };
        tracing::warn!(
            host = name,
            pid = judged.pid,
            "the Wasm host does not answer; it is ended and its containers with it"
        );
        let (hosts, host) = (self.clone(), name.to_owned());
        match tokio::task::spawn_blocking(move || hosts.kill(&host, judged)).await {
            Ok(killed) => killed,
            Err(err) => std::panic::resume_unwind(err.into_panic()),
        }
    }

    /// Blocks.
    fn kill(&self, name: &str, judged: ProcessId) -> Result<(), HostError> {
        for host in self.found()?.into_iter().filter(|host| host.name == name && host.process == judged) {
            host.process.kill(KILL_PATIENCE).map_err(|source| HostError::Kill {
                name: host.name.clone(),
                pid: host.process.pid,
                source,
            })?;
            self.bury(&host)?;
            self.watched.lock().remove(name);
        }
        Ok(())
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

    /// Asks a host that runs. One that gives no answer in time and no sign of life either is ended; so is one that
    /// cannot even stop a container, for nothing else would.
    pub(crate) async fn ask(self: &Arc<Self>, name: &str, request: &Request) -> Result<Reply, HostError> {
        let own_time = match request {
            Request::Stop { grace_ms, .. } => Duration::from_millis(*grace_ms),
            _ => Duration::ZERO,
        };
        let patience = self.patience.answer.saturating_add(own_time);
        let asked = self.process_of(name);
        if let Ok(reply) = tokio::time::timeout(patience, self.exchange(name, request)).await {
            return reply;
        }
        if matches!(request, Request::Stop { .. }) || self.is_silent(name).await {
            self.replace(name, asked).await?;
        }
        Err(HostError::Late { name: name.to_owned(), seconds: patience.as_secs() })
    }

    async fn exchange(&self, name: &str, request: &Request) -> Result<Reply, HostError> {
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
        if self.found()?.iter().any(|host| host.name == name && host.process.is_alive()) {
            // It has the name.
            let judged = self.process_of(name);
            if self.is_silent(name).await {
                self.replace(name, judged).await?;
            } else if self.watch(name).await {
                return Ok(());
            } else {
                return Err(HostError::Late {
                    name: name.to_owned(),
                    seconds: self.patience.answer.as_secs(),
                });
            }
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
            .kill_on_drop(true)
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
        self.watch_within(name, self.patience.sign_of_life).await
    }

    async fn watch_within(self: &Arc<Self>, name: &str, patience: Duration) -> bool {
        let Ok(stream) = self.subscribe_within(name, patience).await else { return false };
        if self.watched.lock().insert(name.to_owned(), ()).is_none() {
            let task = listen(Arc::downgrade(self), name.to_owned(), stream);
            let cancelled = self.cancelled.clone();
            tokio::spawn(async move { cancelled.run_until_cancelled(task).await });
        }
        true
    }

    async fn subscribe(&self, name: &str) -> io::Result<UnixStream> {
        self.subscribe_within(name, self.patience.sign_of_life).await
    }

    async fn subscribe_within(&self, name: &str, patience: Duration) -> io::Result<UnixStream> {
        tokio::time::timeout(patience, self.subscribe_at_leisure(name)).await?
    }

    async fn subscribe_at_leisure(&self, name: &str) -> io::Result<UnixStream> {
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
        let mut n_lost = 0;
        for record in self.records.all()?.into_iter().filter(|record| record.process == host.process) {
            let was_live = record.is_live();
            let record = self.settle(record)?;
            if was_live {
                n_lost += 1;
                self.announce(&record.container.sandbox_id, &record.container.id);
            }
        }
        if n_lost > 0 {
            let words = last_words(&self.files(&host.name).log);
            tracing::warn!(host = host.name, n_lost, words, "a Wasm host ended and containers with it");
        }
        self.clear(&host.name, &host.cgroup)
    }

    /// Removes the group and the files of a host that is no more; the record last, so that whoever comes next knows of what
    /// could not be removed. What belongs to a successor stays.
    fn clear(&self, name: &str, cgroup: &str) -> Result<(), HostError> {
        let files = self.files(name);
        let _one_at_a_time = self.clearing.lock();
        let group = self.cgroups.group(cgroup)?;
        if !group.exists() && !files.all().iter().any(|path| path.exists()) {
            // Taking the lock would make one.
            return Ok(());
        }
        let clear = |source| HostError::Clear { name: name.to_owned(), source };
        let Some(_lock) = lock::take(&files.lock).map_err(clear)? else { return Ok(()) };
        group.remove()?;
        for path in [&files.socket, &files.log, &files.record, &files.lock] {
            match fs::remove_file(path) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(clear(err)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Clears after hosts that left files or a group and no record, all but those in `alive`.
    fn sweep(&self, alive: &[String]) {
        let left = match self.names() {
            Ok(left) => left,
            Err(err) => return tracing::warn!(%err, "look for what Wasm hosts left"),
        };
        // The records of those that are to be buried name their groups.
        let recorded = |name: &String| alive.contains(name) || self.files(name).record.exists();
        for name in left.into_iter().filter(|name| !recorded(name)) {
            if let Err(err) = self.clear(&name, &self.cgroup(&name)) {
                tracing::warn!(host = name, %err, "a Wasm host's leftovers are not removed yet");
            }
        }
    }

    /// The names of hosts that have files or a group here.
    fn names(&self) -> Result<BTreeSet<String>, HostError> {
        let fail = |source| HostError::Find { path: self.run_dir.clone(), source };
        let mut names: BTreeSet<String> = self.parent()?.children()?.into_iter().collect();
        for entry in fs::read_dir(&self.run_dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if self.files(stem).all().contains(&&path) {
                names.insert(stem.to_owned());
            }
        }
        Ok(names)
    }

    /// The group that all hosts have theirs in.
    fn parent(&self) -> Result<Group, HostError> {
        let of_one = self.cgroup("x");
        Ok(self.cgroups.group(of_one.trim_end_matches("/x"))?)
    }

    fn announce(&self, sandbox_id: &str, container_id: &str) {
        self.weigh();
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
        for name in self.names()? {
            self.clear(&name, &self.cgroup(&name))?;
        }
        Ok(self.parent()?.remove()?)
    }
}

/// The end of a host's log, which is about to be removed.
fn last_words(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(MAX_MESSAGE_BYTES);
        io::Seek::seek(&mut file, io::SeekFrom::Start(from))?;
        let mut words = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_MESSAGE_BYTES), &mut words)?;
        Ok(words)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_cri::{RuntimeContainer, RuntimeState};

    const QUICK: Patience = Patience {
        answer: Duration::from_millis(200),
        sign_of_life: Duration::from_millis(200),
        at_start: Duration::from_millis(50),
    };
    const NAME: &str = "silent";

    /// A host that takes connections and never says a word, with one container. Needs root, for its control group.
    struct Silent {
        child: std::process::Child,
        process: ProcessId,
        directory: tempfile::TempDir,
        records: Records,
        /// Connections wait in its backlog.
        _listener: std::os::unix::net::UnixListener,
    }

    fn silent() -> Silent {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let start_time = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
        let process = ProcessId { pid: child.id(), start_time, boot: 0 };
        let files = HostFiles::new(directory.path(), NAME);
        let listener = std::os::unix::net::UnixListener::bind(&files.socket).unwrap();
        let cgroup = format!("skiff-wasm-silent/wasm/{}", child.id());
        let record = HostRecord { name: NAME.to_owned(), process, cgroup };
        fs::write(&files.record, serde_json::to_vec(&record).unwrap()).unwrap();
        let records = Records::open(directory.path()).unwrap();
        let container = RuntimeContainer {
            id: "c".to_owned(),
            sandbox_id: "s".to_owned(),
            state: RuntimeState::Running,
            pid: None,
            created_at_ns: 0,
            started_at_ns: 0,
            finished_at_ns: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
        };
        let record =
            Record { container, host: NAME.to_owned(), process, cgroup: String::new(), cpu_shares: 0 };
        records.store(&record).unwrap();
        Silent { child, process, directory, records, _listener: listener }
    }

    impl Silent {
        async fn open(&self) -> (Arc<Hosts>, broadcast::Receiver<ContainerEvent>) {
            let events = broadcast::Sender::new(16);
            let heard = events.subscribe();
            let config = HostsConfig {
                run_dir: self.directory.path().to_owned(),
                state_dir: self.directory.path().to_owned(),
                command: Vec::new(),
                cgroup_root: "skiff-wasm-silent".to_owned(),
                cgroups: Cgroups::detect().unwrap(),
                records: self.records.clone(),
                events,
                patience: QUICK,
            };
            let opened = tokio::time::timeout(Duration::from_secs(20), Hosts::open(config)).await;
            (opened.unwrap().unwrap(), heard)
        }

        fn state(&self) -> RuntimeState {
            self.records.load("c").unwrap().unwrap().container.state
        }
    }

    impl Drop for Silent {
        fn drop(&mut self) {
            _ = self.child.kill();
            _ = self.child.wait();
        }
    }

    async fn hear_of_the_end(silent: &Silent, mut heard: broadcast::Receiver<ContainerEvent>) {
        let ended = async {
            while silent.state() != RuntimeState::Exited {
                heard.recv().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
        assert!(!silent.process.is_alive());
    }

    #[tokio::test]
    async fn a_host_found_silent_does_not_hold_up_the_start_and_is_replaced() {
        let silent = silent();
        // The host is still there when this answers: the node does not wait for its end.
        let (_hosts, heard) = silent.open().await;
        hear_of_the_end(&silent, heard).await;
    }

    #[tokio::test]
    async fn a_host_that_falls_silent_is_replaced_by_whoever_asks_it() {
        let silent = silent();
        let (hosts, heard) = silent.open().await;
        let asked = hosts.ask(NAME, &Request::Usage { id: "c".to_owned() }).await;
        // Either this call was late or the judgement at the start was there first.
        assert!(matches!(
            asked,
            Err(HostError::Late { .. } | HostError::BrokeOff { .. } | HostError::Speak { .. })
        ));
        hear_of_the_end(&silent, heard).await;
    }

    #[tokio::test]
    async fn a_silent_host_is_ended_before_another_is_started_in_its_name() {
        let silent = silent();
        let (hosts, heard) = silent.open().await;
        let started = hosts.start_and_ask(NAME, &Request::Usage { id: "c".to_owned() }).await;
        // There is no command here to start another with, but the silent one is gone by then.
        assert!(matches!(started, Err(HostError::NoCommand)), "{started:?}");
        hear_of_the_end(&silent, heard).await;
    }

    #[tokio::test]
    async fn only_the_host_that_was_judged_is_ended_and_not_one_that_has_its_name_by_then() {
        let silent = silent();
        let record = HostFiles::new(silent.directory.path(), NAME).record;
        let text = fs::read(&record).unwrap();
        // Nobody else judges it: at the start it is not there yet.
        fs::remove_file(&record).unwrap();
        let (hosts, heard) = silent.open().await;
        fs::write(&record, text).unwrap();
        let before = ProcessId { start_time: silent.process.start_time - 1, ..silent.process };
        hosts.replace(NAME, Some(before)).await.unwrap();
        assert!(silent.process.is_alive() && record.exists());
        hosts.replace(NAME, Some(silent.process)).await.unwrap();
        hear_of_the_end(&silent, heard).await;
    }
}
