//! The host's state and its socket: requests in, records and events out.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use skiff_cgroup::{Cgroups, Group, Version};
use skiff_cri::{RuntimeContainer, RuntimeState};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, broadcast, mpsc, watch};

use super::budget::Budget;
use super::container::{self, Ended, Launch, Phase};
use super::descriptors::Descriptors;
use super::guest::{Guest, Instances, Load, Loader, Paths};
use super::log::ContainerLog;
use super::ticker::Ticker;
use crate::aot;
use crate::engine::Engines;
use crate::process::ProcessId;
use crate::protocol::{self, Event, Failure, FailureKind, Reply, Request};
use crate::record::{Record, Records, is_id, now_ns};
use crate::spec::{ContainerSpec, Resources};

/// Listeners that lag further behind are told to look at everything, by closing their connection.
const EVENT_BACKLOG: usize = 1024;
/// What a running container takes besides its guest's memory: its thread, runtime and stack.
const OVERHEAD_BYTES: u64 = 64 << 10;

pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) process: ProcessId,
    pub(crate) state_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) compatibility: String,
    pub(crate) engines: Engines,
    pub(crate) loader: Loader,
    pub(crate) ticker: Ticker,
    pub(crate) records: Records,
    pub(crate) cgroups: Cgroups,
    /// The host's own group.
    pub(crate) group: Group,
    pub(crate) containers: Mutex<HashMap<String, Arc<Container>>>,
    /// Loaded modules by digest, for as long as a container has them.
    pub(crate) guests: Mutex<HashMap<String, Weak<Guest>>>,
    /// What pods with a limit of their own have together, by sandbox.
    pub(crate) pods: Mutex<HashMap<String, Weak<Budget>>>,
    pub(crate) events: broadcast::Sender<Event>,
    /// Connections with a request under way.
    pub(crate) n_busy: AtomicUsize,
    pub(crate) changed: Notify,
}

pub(crate) struct Container {
    spec: Arc<ContainerSpec>,
    guest: Arc<Guest>,
    budget: Arc<Budget>,
    log: Arc<ContainerLog>,
    cgroup: Group,
    record: Mutex<Record>,
    phase: watch::Sender<Phase>,
    /// Turns true once the end has been recorded.
    exited: watch::Sender<bool>,
}

pub(crate) fn events() -> broadcast::Sender<Event> {
    broadcast::Sender::new(EVENT_BACKLOG)
}

impl Host {
    /// Serves until there has been nothing to do for `idle`.
    pub(crate) async fn serve(
        self: Arc<Self>,
        listener: UnixListener,
        mut loads: mpsc::Receiver<Load>,
        idle: Duration,
    ) {
        loop {
            let is_idle = self.is_idle();
            // All may be cancelled: accepting takes a connection, and receiving a load, only when they return it.
            tokio::select! {
                Some(load) = loads.recv() => load.run(&self.engines),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => _ = tokio::spawn(self.clone().converse(stream)),
                    Err(err) => {
                        tracing::warn!(%err, "accept");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                () = tokio::time::sleep(idle), if is_idle => if self.is_idle() { return },
                () = self.changed.notified() => {}
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.n_busy.load(Ordering::Relaxed) == 0
            && !self.containers.lock().values().any(|container| container.record.lock().is_live())
    }

    async fn converse(self: Arc<Self>, mut stream: UnixStream) {
        // The socket's mode says the same; this holds even if someone changes that.
        let ours = rustix::process::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == ours) {
            return;
        }
        while let Ok(Some(request)) = protocol::read::<Request>(&mut stream).await {
            if matches!(request, Request::Subscribe) {
                return self.tell(stream).await;
            }
            self.n_busy.fetch_add(1, Ordering::Relaxed);
            let reply = match self.answer(request).await {
                Ok(reply) => reply,
                Err(failure) => Reply::Failed(failure),
            };
            let sent = protocol::write(&mut stream, &reply).await;
            self.n_busy.fetch_sub(1, Ordering::Relaxed);
            self.changed.notify_one();
            if sent.is_err() {
                return;
            }
        }
    }

    async fn tell(&self, mut stream: UnixStream) {
        let mut events = self.events.subscribe();
        // The subscriber waits for this: from here on it misses nothing.
        if protocol::write(&mut stream, &Reply::Done).await.is_err() {
            return;
        }
        while let Ok(event) = events.recv().await {
            if protocol::write(&mut stream, &event).await.is_err() {
                return;
            }
        }
    }

    async fn answer(self: &Arc<Self>, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::Create(spec) => self.create(*spec)?,
            Request::Start { id } => self.start(&id).await?,
            Request::Stop { id, grace_ms } => self.stop(&id, Duration::from_millis(grace_ms)).await?,
            Request::Remove { id } => self.remove(&id)?,
            Request::Usage { id } => return self.usage(&id),
            Request::Update { id, resources } => self.update(&id, resources)?,
            Request::ReopenLog { id } => self.find(&id)?.log.reopen().map_err(Failure::host)?,
            Request::Subscribe => return Err(Failure::new(FailureKind::State, "already served")),
        }
        Ok(Reply::Done)
    }

    fn find(&self, id: &str) -> Result<Arc<Container>, Failure> {
        self.containers.lock().get(id).cloned().ok_or_else(|| Failure::not_found(id))
    }

    fn create(&self, spec: ContainerSpec) -> Result<(), Failure> {
        if !is_id(&spec.id) || !spec.module.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Failure::invalid(format!("{:?} is no container ID", spec.id)));
        }
        if self.containers.lock().contains_key(&spec.id) {
            let message = format!("container {:?} exists already", spec.id);
            return Err(Failure::new(FailureKind::AlreadyExists, message));
        }
        let guest = self.guest(&spec.module)?;
        let budget = self.budget(&spec);
        let log = ContainerLog::open(spec.log_path.clone()).map_err(|err| {
            Failure::new(FailureKind::Host, format!("open the log {:?}: {err}", spec.log_path))
        })?;
        let cgroup = self.cgroup(&spec).map_err(Failure::host)?;
        let record = Record {
            container: RuntimeContainer {
                id: spec.id.clone(),
                sandbox_id: spec.sandbox_id.clone(),
                state: RuntimeState::Created,
                pid: None,
                created_at_ns: now_ns(),
                started_at_ns: 0,
                finished_at_ns: 0,
                exit_code: 0,
                reason: String::new(),
                message: String::new(),
            },
            host: self.name.clone(),
            process: self.process,
            cgroup: cgroup.path().to_owned(),
            cpu_shares: spec.resources.cpu_shares.unwrap_or_default(),
        };
        self.records.store(&record).map_err(|err| {
            _ = cgroup.remove();
            Failure::host(err)
        })?;
        let container = Container {
            spec: Arc::new(spec),
            guest,
            budget,
            log,
            cgroup,
            record: Mutex::new(record),
            phase: watch::Sender::new(Phase::Run),
            exited: watch::Sender::new(false),
        };
        let id = container.spec.id.clone();
        self.containers.lock().insert(id, Arc::new(container));
        Ok(())
    }

    /// With that of its pod, which lives for as long as a container of the pod does.
    fn budget(&self, spec: &ContainerSpec) -> Arc<Budget> {
        let pod = spec.pod_memory_bytes.map(|limit| {
            let mut pods = self.pods.lock();
            pods.retain(|_, budget| budget.strong_count() > 0);
            pods.get(&spec.sandbox_id).and_then(Weak::upgrade).unwrap_or_else(|| {
                let budget = Budget::in_pod(Some(limit), None);
                pods.insert(spec.sandbox_id.clone(), Arc::downgrade(&budget));
                budget
            })
        });
        let budget = Budget::in_pod(spec.resources.memory_bytes, pod);
        budget.heap.stops(&self.engines);
        budget
    }

    fn guest(&self, module: &str) -> Result<Arc<Guest>, Failure> {
        let mut guests = self.guests.lock();
        if let Some(guest) = guests.get(module).and_then(Weak::upgrade) {
            return Ok(guest);
        }
        guests.retain(|_, guest| guest.strong_count() > 0);
        let code = aot::cached(&self.state_dir, &self.compatibility, module);
        let guest = Arc::new(Guest::load(&self.engines, &self.loader, &code).map_err(Failure::invalid)?);
        guests.insert(module.to_owned(), Arc::downgrade(&guest));
        Ok(guest)
    }

    /// On v1 a thread may join any group of `cpu`, so the container's lies in its pod's. On v2 it must stay
    /// in its process's domain, so there it lies in the host's.
    fn cgroup(&self, spec: &ContainerSpec) -> Result<Group, skiff_cgroup::Error> {
        let group = match self.cgroups.version() {
            Version::V1 => {
                let group = self.cgroups.group(&spec.pod_cgroup)?.child(&spec.id)?;
                group.create()?;
                group
            }
            Version::V2 => self.group.create_threaded(&spec.id)?,
        };
        group.set(&spec.resources.limits()).inspect_err(|_| _ = group.remove())?;
        Ok(group)
    }

    async fn start(self: &Arc<Self>, id: &str) -> Result<(), Failure> {
        let container = self.find(id)?;
        {
            let mut record = container.record.lock();
            if record.container.state != RuntimeState::Created {
                let message = format!("container {id:?} is {:?}, not created", record.container.state);
                return Err(Failure::new(FailureKind::State, message));
            }
            // Before the thread starts, so that no second call starts another.
            record.container.state = RuntimeState::Running;
            record.container.started_at_ns = now_ns();
        }
        let launch = Launch {
            guest: container.guest.clone(),
            instances: Instances {
                spec: container.spec.clone(),
                budget: container.budget.clone(),
                log: container.log.clone(),
                descriptors: Descriptors::new(),
                paths: Paths::Container,
            },
            cgroup: container.cgroup.clone(),
            scratch: self.run_dir.clone(),
            ticker: self.ticker.clone(),
            phase: container.phase.subscribe(),
        };
        match container::launch(launch).await {
            Ok(running) => {
                let record = container.record.lock().clone();
                self.records.store(&record).unwrap_or_else(|err| tracing::warn!(%err, "container started"));
                self.announce(&container);
                let host = self.clone();
                tokio::spawn(async move {
                    let ended = running.ended.await.unwrap_or_else(|_| Ended {
                        exit_code: 1,
                        reason: "Error",
                        message: "the container's thread panicked".to_owned(),
                    });
                    // It has sent its last word: this waits for microseconds, and the cgroup is empty then.
                    _ = running.thread.join();
                    host.ended(&container, ended);
                });
                Ok(())
            }
            Err(err) => {
                self.ended(&container, Ended::not_started(skiff_cri::whole(&err)));
                Err(Failure::host(err))
            }
        }
    }

    fn ended(&self, container: &Container, ended: Ended) {
        let record = {
            let mut record = container.record.lock();
            record.container.state = RuntimeState::Exited;
            record.container.finished_at_ns = now_ns();
            record.container.exit_code = ended.exit_code;
            record.container.reason = ended.reason.to_owned();
            record.container.message = ended.message;
            record.clone()
        };
        self.records.store(&record).unwrap_or_else(|err| tracing::warn!(%err, "container exited"));
        // Its threads have left. Should one be late, the group goes with the container.
        if let Err(err) = container.cgroup.remove() {
            tracing::warn!(error = skiff_cri::whole(&err), "the group of a container that ended stays");
        }
        container.exited.send_replace(true);
        self.announce(container);
        self.changed.notify_one();
    }

    fn announce(&self, container: &Container) {
        // An error means that no one listens.
        _ = self.events.send(Event {
            sandbox_id: container.spec.sandbox_id.clone(),
            container_id: container.spec.id.clone(),
        });
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), Failure> {
        let container = self.find(id)?;
        let state = container.record.lock().container.state;
        match state {
            RuntimeState::Exited | RuntimeState::Unknown => return Ok(()),
            RuntimeState::Created => {
                let message = "stopped before it was started".to_owned();
                self.ended(&container, Ended { exit_code: crate::record::KILLED, reason: "Error", message });
                return Ok(());
            }
            RuntimeState::Running => {}
        }
        let mut exited = container.exited.subscribe();
        let raise = |to: Phase| {
            container.phase.send_if_modified(|phase| {
                let higher = to > *phase;
                *phase = if higher { to } else { *phase };
                higher
            })
        };
        if !grace.is_zero() {
            raise(Phase::Stop);
            if tokio::time::timeout(grace, exited.wait_for(|exited| *exited)).await.is_ok() {
                return Ok(());
            }
        }
        raise(Phase::Kill);
        _ = exited.wait_for(|exited| *exited).await;
        Ok(())
    }

    fn remove(&self, id: &str) -> Result<(), Failure> {
        let mut containers = self.containers.lock();
        let Some(container) = containers.get(id) else { return Ok(()) };
        if container.record.lock().container.state == RuntimeState::Running {
            return Err(Failure::new(FailureKind::State, format!("container {id:?} is running")));
        }
        container.cgroup.remove().map_err(Failure::host)?;
        self.records.remove(id).map_err(Failure::host)?;
        containers.remove(id);
        Ok(())
    }

    fn usage(&self, id: &str) -> Result<Reply, Failure> {
        let container = self.find(id)?;
        let used = u64::try_from(container.budget.touched()).unwrap_or(u64::MAX);
        let running = container.record.lock().container.state == RuntimeState::Running;
        let cpu_ns = match container.cgroup.usage() {
            // It went with the container's end.
            Err(err) if err.is_not_found() => 0,
            other => other.map_err(Failure::host)?.cpu_ns,
        };
        Ok(Reply::Usage {
            cpu_ns,
            memory_bytes: if running { used.saturating_add(OVERHEAD_BYTES) } else { 0 },
        })
    }

    fn update(&self, id: &str, resources: Resources) -> Result<(), Failure> {
        let container = self.find(id)?;
        container.cgroup.set(&resources.limits()).map_err(Failure::host)?;
        if let Some(bytes) = resources.memory_bytes {
            container.budget.set_limit(bytes);
        }
        if let Some(shares) = resources.cpu_shares {
            let record = {
                let mut record = container.record.lock();
                record.cpu_shares = shares;
                record.clone()
            };
            self.records.store(&record).map_err(Failure::host)?;
        }
        Ok(())
    }
}
