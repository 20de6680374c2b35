//! Executes a plan: kills what is to end, makes the sandbox, starts containers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use skiff_cri::CriError;
use skiff_cri::v1::{
    CreateContainerRequest, ImageSpec, Mount, PodSandboxConfig, RunPodSandboxRequest, StartContainerRequest,
    StopPodSandboxRequest,
};

use crate::backoff::go_duration;
use crate::create::{ContainerInputs, ImageInfo, container_config, propagation, sandbox_config};
use crate::dns;
use crate::env::{self, Downward, EnvSources};
use crate::event::EventType;
use crate::hooks;
use crate::images::{ImagePull, StartFailure, pull_secrets};
use crate::plan::{Actions, Kill, KillReason, Starting};
use crate::pod::{PodExt, hash_container, init_containers, is_sidecar, optional};
use crate::snapshot::{PodSnapshot, RunState, read_sandbox};
use crate::status::Waiting;
use crate::termination::{self, Victim};
use crate::volume::{MountedVolumes, VolumeError, blocking};
use crate::worker::held::Sources;
use crate::worker::{RESYNC, Worker};

const CONFIG_ERROR: &str = "CreateContainerConfigError";
/// Why a container is not tried again at once, whatever happens. Pulls and crashes have a back-off of their own.
const HELD: [&str; 5] =
    [CONFIG_ERROR, "CreateContainerError", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError"];
const SHOW_SANDBOX_AFTER: Duration = Duration::from_millis(150);

/// The sandbox that containers are started in.
struct Target<'a> {
    pod: &'a Arc<Pod>,
    snapshot: &'a PodSnapshot,
    volumes: &'a MountedVolumes,
    id: String,
    config: PodSandboxConfig,
    handler: String,
    ips: Vec<String>,
}

impl Worker {
    /// Does what the plan says, and answers when to look again at the latest.
    pub(super) async fn execute(
        &mut self,
        pod: &Arc<Pod>,
        snapshot: &PodSnapshot,
        actions: &Actions,
        volumes: &MountedVolumes,
    ) -> Result<Duration, CriError> {
        if actions.kill_pod {
            let was_live = snapshot.running().next().is_some() || snapshot.sandboxes.iter().any(|s| s.ready);
            self.kill_pod(pod, snapshot, actions).await?;
            if !actions.create_sandbox {
                return Ok(if was_live { Duration::ZERO } else { RESYNC });
            }
        } else {
            self.kill_some(pod, snapshot, &actions.kill).await?;
        }
        let wait = match actions.create_sandbox {
            // Made with what is allocated now.
            true => RESYNC,
            false => self.resize(pod, snapshot, actions).await,
        };
        if actions.to_start(pod).is_empty() {
            return Ok(wait);
        }
        let target = match self.target(pod, snapshot, actions, volumes).await {
            Ok(target) => target,
            Err(retry) => return Ok(retry),
        };
        if actions.create_sandbox {
            self.show_sandbox(pod).await?;
        }
        Ok(self.start_all(&target, actions).await.min(wait))
    }

    /// Shows that the sandbox stands, and its address, if starting the containers takes a while, as it
    /// does where an image is pulled. In the usual case the pod runs before this is due.
    async fn show_sandbox(&mut self, pod: &Arc<Pod>) -> Result<(), CriError> {
        let snapshot = self.read().await?;
        self.refresh_status(pod, &snapshot, false);
        if let Some(status) = self.status.as_ref().filter(|_| !self.phase_is_terminal()) {
            self.writer.set_later(status, SHOW_SANDBOX_AFTER);
        }
        Ok(())
    }

    fn victim(&self, pod: &Arc<Pod>, snapshot: &PodSnapshot, kill: &Kill) -> Victim {
        Victim {
            pod: pod.clone(),
            name: kill.name.clone(),
            id: kill.id.clone(),
            pod_ip: self.pod_ips(pod, snapshot).into_iter().next().unwrap_or_default(),
            message: kill.message.clone(),
            reason: kill.reason,
            // Upstream gives containers of an evicted pod one second.
            grace_override_s: self.evicted.as_ref().map(|_| 1),
        }
    }

    async fn kill_some(
        &self,
        pod: &Arc<Pod>,
        snapshot: &PodSnapshot,
        kills: &[Kill],
    ) -> Result<(), CriError> {
        let victims = kills.iter().map(|kill| self.victim(pod, snapshot, kill)).collect();
        termination::kill_all(&self.shared.cri, &self.shared.events, victims, self.desired.clone()).await
    }

    /// Stops everything that is left of an earlier sandbox.
    async fn kill_pod(
        &self,
        pod: &Arc<Pod>,
        snapshot: &PodSnapshot,
        actions: &Actions,
    ) -> Result<(), CriError> {
        if actions.create_sandbox && !snapshot.sandboxes.is_empty() {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            self.shared.events.pod(pod, EventType::Normal, "SandboxChanged", message);
        }
        self.stop_containers(pod, snapshot).await?;
        self.stop_sandboxes(snapshot).await?;
        if actions.create_sandbox {
            // Init containers run again in the new sandbox, as if for the first time.
            for old in
                snapshot.containers.iter().filter(|c| init_containers(pod).iter().any(|i| i.name == c.name))
            {
                let request = skiff_cri::v1::RemoveContainerRequest { container_id: old.id.clone() };
                self.shared.cri.remove_container(request).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn stop_containers(
        &self,
        pod: &Arc<Pod>,
        snapshot: &PodSnapshot,
    ) -> Result<(), CriError> {
        let kills: Vec<Kill> = snapshot
            .running()
            .map(|c| Kill {
                id: c.id.clone(),
                name: c.name.clone(),
                message: String::new(),
                reason: KillReason::Other,
            })
            .collect();
        self.kill_some(pod, snapshot, &kills).await?;
        // Nobody knows whether anything of these is left: there is nothing to tell of, and no hook could run in them.
        for lost in snapshot.containers.iter().filter(|c| c.state == RunState::Unknown) {
            termination::stop(&*self.shared.cri, &lost.id, 0).await?;
        }
        Ok(())
    }

    pub(super) async fn stop_sandboxes(&self, snapshot: &PodSnapshot) -> Result<(), CriError> {
        for sandbox in &snapshot.sandboxes {
            self.shared
                .cri
                .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() })
                .await?;
        }
        Ok(())
    }

    /// The sandbox to start in, made if the plan says so. Failing answers when to try again.
    async fn target<'a>(
        &mut self,
        pod: &'a Arc<Pod>,
        snapshot: &'a PodSnapshot,
        actions: &Actions,
        volumes: &'a MountedVolumes,
    ) -> Result<Target<'a>, Duration> {
        let left =
            self.no_sandbox_before.and_then(|due| due.checked_duration_since(tokio::time::Instant::now()));
        if let Some(left) = left.filter(|left| actions.create_sandbox && !left.is_zero()) {
            return Err(left);
        }
        let made = self.sandbox(pod, actions).await;
        match made {
            Ok((id, config, handler, ips)) => {
                self.no_sandbox_before = None;
                let ips = if ips.is_empty() { self.pod_ips(pod, snapshot) } else { ips };
                Ok(Target { pod, snapshot, volumes, id, config, handler, ips })
            }
            Err(message) => {
                if !self.desired.borrow().must_end() {
                    let message = format!("Failed to create pod sandbox: {message}");
                    self.shared.events.pod(pod, EventType::Warning, "FailedCreatePodSandBox", &message);
                }
                let wait = self.next_retry();
                // What the failed one leaves is removed, and that wakes this worker.
                self.no_sandbox_before = Some(tokio::time::Instant::now() + wait);
                Err(wait)
            }
        }
    }

    async fn sandbox(
        &self,
        pod: &Arc<Pod>,
        actions: &Actions,
    ) -> Result<(String, PodSandboxConfig, String, Vec<String>), String> {
        let class = pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).filter(|c| !c.is_empty());
        let handler = match class {
            Some(class) => self.shared.objects.runtime_handler(class).await.map_err(|e| e.to_string())?,
            None => String::new(),
        };
        let host_dns = dns::of_host(&self.shared.config.resolv_conf).await?;
        let (dns, warnings) = dns::pod_dns(&self.shared.config, &host_dns, pod);
        let config = sandbox_config(&self.shared.config, pod, actions.attempt, dns)?;
        if let Some(id) = actions.sandbox_id.clone().filter(|_| !actions.create_sandbox) {
            return Ok((id, config, handler, Vec::new()));
        }
        for (reason, message) in warnings {
            self.shared.events.pod(pod, EventType::Warning, reason, &message);
        }
        let log_dir = config.log_directory.clone();
        blocking(move || {
            std::fs::create_dir_all(&log_dir)
                .map_err(VolumeError::host("create the log directory", Path::new(&log_dir)))
        })
        .await
        .map_err(|e| e.to_string())?;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.clone() };
        let id = self.shared.cri.run_pod_sandbox(request).await.map_err(|e| e.to_string())?.pod_sandbox_id;
        self.shared.wakers.note_sandbox(&id, &self.uid);
        let info = read_sandbox(&*self.shared.cri, id.clone()).await.map_err(|e| e.to_string())?;
        let mut ips = info.map(|i| i.ips).unwrap_or_default();
        if pod.is_host_network() {
            ips = self.shared.config.node_ips.iter().map(ToString::to_string).collect();
        }
        Ok((id, config, handler, ips))
    }

    /// Starts what the plan names, in order. Answers when to look again.
    async fn start_all(&mut self, target: &Target<'_>, actions: &Actions) -> Duration {
        let mut wait = RESYNC;
        for starting in actions.to_start(target.pod) {
            if self.desired.borrow().must_end() {
                return Duration::ZERO;
            }
            let (container, is_init) = (&*starting.container, starting.is_init);
            match self.start(target, &starting).await {
                Ok(()) => {
                    self.waiting.remove(&container.name);
                    self.held.release(&container.name);
                    self.given.set(container);
                }
                Err(failure) => {
                    wait = wait.min(failure.retry_after);
                    let waiting = Waiting { reason: failure.reason, message: failure.message };
                    self.waiting.insert(container.name.clone(), waiting);
                    if is_init && !is_sidecar(container) {
                        break;
                    }
                }
            }
        }
        wait
    }

    async fn start(&mut self, target: &Target<'_>, starting: &Starting<'_>) -> Result<(), StartFailure> {
        let container = &*starting.container;
        let hash = hash_container(container);
        if let Some((failure, sources)) = self.held.get((&container.name, hash), tokio::time::Instant::now())
            && (failure.reason != CONFIG_ERROR || sources == self.sources(target, container).await)
        {
            return Err(failure);
        }
        self.check_crash_backoff(target, container)?;
        let started = self.create_and_start(target, starting).await;
        if let Err(failure) = &started
            && HELD.contains(&failure.reason.as_str())
        {
            let sources = self.sources(target, container).await;
            let now = tokio::time::Instant::now();
            self.held.hold((&container.name, hash), sources, failure, now);
        }
        started
    }

    /// Whether the objects that the container's environment comes from are there. One that arrives is no reason to
    /// wait any longer.
    async fn sources(&self, target: &Target<'_>, container: &Container) -> Sources {
        match self.environment(target, container).await {
            Ok(_) => Sources::Complete,
            Err(_) => Sources::Missing,
        }
    }

    async fn create_and_start(
        &mut self,
        target: &Target<'_>,
        starting: &Starting<'_>,
    ) -> Result<(), StartFailure> {
        let container = &*starting.container;
        let fail = |event: String, failure: StartFailure| {
            self.shared.events.container(target.pod, container, EventType::Warning, "Failed", &event);
            failure
        };
        let wanted = Wanted {
            image: container.image.as_deref().unwrap_or_default(),
            policy: container.image_pull_policy.as_deref(),
            container: Some(container),
        };
        let mut volumes = Vec::new();
        let mut image =
            ensure_image(&self.shared, &mut self.pulls, self.desired.clone(), target, &wanted).await;
        for (name, source) in image_volumes(target.pod, container) {
            if image.is_err() {
                break;
            }
            let wanted = Wanted {
                image: source.reference.as_deref().unwrap_or_default(),
                policy: source.pull_policy.as_deref(),
                container: None,
            };
            match ensure_image(&self.shared, &mut self.pulls, self.desired.clone(), target, &wanted).await {
                Ok(found) => volumes.push((name, found.image_ref)),
                Err(failure) => image = Err(failure),
            }
        }
        let image = match image {
            Ok(image) => image,
            Err(failure) => return Err(fail(format!("Error: {}", failure.reason), failure)),
        };
        let config = match self.container_config(target, starting, &image, &volumes).await {
            Ok(config) => config,
            Err(message) => {
                return Err(fail(format!("Error: {message}"), StartFailure::new(CONFIG_ERROR, message)));
            }
        };
        // The runtime opens the log, but the directory is the kubelet's to make.
        let log_dir = Path::new(&target.config.log_directory).join(&container.name);
        if let Err(error) = std::fs::create_dir_all(&log_dir) {
            let message = format!("create container log directory for container {}: {error}", container.name);
            return Err(fail(
                format!("Error: {message}"),
                StartFailure::new("CreateContainerError", message),
            ));
        }
        let create = CreateContainerRequest {
            pod_sandbox_id: target.id.clone(),
            config: Some(config),
            sandbox_config: Some(target.config.clone()),
        };
        let named = |generic: &str, error: &CriError| {
            StartFailure::new(error.reason.unwrap_or(generic), error.to_string())
        };
        let id = match self.shared.cri.create_container(create).await {
            Ok(created) => created.container_id,
            Err(error) => return Err(fail(format!("Error: {error}"), named("CreateContainerError", &error))),
        };
        self.shared.events.container(
            target.pod,
            container,
            EventType::Normal,
            "Created",
            "Container created",
        );
        if let Err(error) =
            self.shared.cri.start_container(StartContainerRequest { container_id: id.clone() }).await
        {
            return Err(fail(format!("Error: {error}"), named("RunContainerError", &error)));
        }
        self.shared.events.container(
            target.pod,
            container,
            EventType::Normal,
            "Started",
            "Container started",
        );
        self.post_start(target, container, &id).await
    }

    fn check_crash_backoff(
        &mut self,
        target: &Target<'_>,
        container: &Container,
    ) -> Result<(), StartFailure> {
        let ended = target
            .snapshot
            .containers
            .iter()
            .find(|c| c.name == container.name && c.state == RunState::Exited);
        let Some(ended) = ended else { return Ok(()) };
        let key = format!("{}/{}", container.name, ended.hash);
        let finished =
            Timestamp::from_nanosecond(i128::from(ended.finished_at_ns)).unwrap_or_else(|_| Timestamp::now());
        let since = self.crashes.failed(&key, finished, Timestamp::now());
        let Some((left, whole)) = self.crashes.remaining(&key, since) else {
            self.crashes.next(&key, since);
            return Ok(());
        };
        let pod = target.pod.describe();
        let event = format!("Back-off restarting failed container {} in pod {pod}", container.name);
        self.shared.events.container(target.pod, container, EventType::Warning, "BackOff", &event);
        let message = format!(
            "back-off {} restarting failed container={} pod={pod}",
            go_duration(whole),
            container.name
        );
        Err(StartFailure { retry_after: left, ..StartFailure::new("CrashLoopBackOff", message) })
    }

    async fn container_config(
        &self,
        target: &Target<'_>,
        starting: &Starting<'_>,
        image: &ImageInfo,
        volumes: &[(&str, String)],
    ) -> Result<skiff_cri::v1::ContainerConfig, String> {
        let container = &*starting.container;
        let seen = match starting.target {
            None => None,
            Some(name) => {
                let found = target.snapshot.container(name);
                Some(found.ok_or_else(|| format!("unable to find target container {name}"))?.id.clone())
            }
        };
        let env = self.environment(target, container).await?;
        let mounts = self.mounts(target, container, &env, volumes).await?;
        container_config(ContainerInputs {
            pod: target.pod,
            container,
            restart_count: self.restart_count(target, container),
            image,
            env,
            mounts,
            memory_capacity: self.shared.memory_capacity,
            target_id: seen,
        })
    }

    /// One more than the last container's; where the runtime has forgotten it, its logs still know.
    fn restart_count(&self, target: &Target<'_>, container: &Container) -> i32 {
        if let Some(last) = target.snapshot.container(&container.name) {
            return last.restart_count + 1;
        }
        let logs = Path::new(&target.config.log_directory).join(&container.name);
        let attempts = std::fs::read_dir(logs).into_iter().flatten().flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.split_once(".log")?.0.parse::<i32>().ok()
        });
        attempts.max().map_or(0, |last| last + 1)
    }

    async fn environment(
        &self,
        target: &Target<'_>,
        container: &Container,
    ) -> Result<Vec<(String, String)>, String> {
        let (pod, objects) = (target.pod, &self.shared.objects);
        let text = |e: crate::objects::ObjectError| e.to_string();
        let mut sources = EnvSources::default();
        let (config_maps, secrets) = env::references(container);
        for name in config_maps {
            let found = objects.config_maps.get(pod.namespace(), &name, &self.uid).await.map_err(text)?;
            sources.config_maps.insert(name, found);
        }
        for name in secrets {
            let found = objects.secrets.get(pod.namespace(), &name, &self.uid).await.map_err(text)?;
            sources.secrets.insert(name, found);
        }
        let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        let services = objects.services().await.map_err(text)?;
        let services = env::service_environment(services.values().map(|s| &**s), pod.namespace(), links);
        let downward = Downward {
            pod,
            pod_ips: &target.ips,
            node_ips: &self.shared.config.node_ips,
            allocatable: &self.shared.allocatable,
        };
        env::environment(container, &sources, &downward, &services).map_err(|e| e.to_string())
    }

    async fn mounts(
        &self,
        target: &Target<'_>,
        container: &Container,
        env: &[(String, String)],
        images: &[(&str, String)],
    ) -> Result<Vec<Mount>, String> {
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            if let Some((_, image)) = images.iter().find(|(name, _)| *name == mount.name) {
                let sub_path = sub_path(mount.sub_path.as_deref(), mount.sub_path_expr.as_deref(), env)?;
                mounts.push(Mount {
                    container_path: absolute(&mount.mount_path),
                    image: Some(ImageSpec { image: image.clone(), ..ImageSpec::default() }),
                    image_sub_path: sub_path.unwrap_or_default(),
                    readonly: true,
                    ..Mount::default()
                });
                continue;
            }
            let volume = target.volumes.get(&mount.name).ok_or_else(|| {
                format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name)
            })?;
            let sub_path = sub_path(mount.sub_path.as_deref(), mount.sub_path_expr.as_deref(), env)?;
            let host_path = match sub_path {
                None => volume.path.clone(),
                Some(sub_path) => {
                    let made = self.shared.volumes.sub_path(
                        target.pod,
                        (&mount.name, volume),
                        &container.name,
                        index,
                        &sub_path,
                    );
                    made.await.map_err(|error| {
                        // The host's paths are not the user's to see; the log has them.
                        tracing::warn!(pod = %target.pod.describe(), %error, "cannot prepare a subPath");
                        format!(
                            "failed to prepare subPath for volumeMount {:?} of container {:?}",
                            mount.name, container.name
                        )
                    })?
                }
            };
            if mount.recursive_read_only.as_deref() == Some("Enabled") {
                return Err("failed to resolve recursive read-only mode: volume does not support recursive read-only mounts".to_owned());
            }
            mounts.push(Mount {
                container_path: absolute(&mount.mount_path),
                host_path: host_path.to_string_lossy().into_owned(),
                readonly: optional(mount.read_only) || volume.read_only,
                propagation: propagation(mount.mount_propagation.as_deref())?.into(),
                ..Mount::default()
            });
        }
        let has_own_hosts = mounts.iter().any(|m| m.container_path == "/etc/hosts");
        if !has_own_hosts && !target.ips.is_empty() {
            mounts.push(self.hosts_mount(target).await?);
        }
        mounts.extend(self.message_mount(target, container).await?);
        Ok(mounts)
    }

    async fn hosts_mount(&self, target: &Target<'_>) -> Result<Mount, String> {
        let (hostname, domain) = dns::hostname_and_domain(&self.shared.config.cluster_domain, target.pod)?;
        let path = self.shared.config.pod_dir(&self.uid).join("etc-hosts");
        let (pod, ips, file) = (target.pod.clone(), target.ips.clone(), path.clone());
        let write = move || {
            let node_hosts = match pod.is_host_network() {
                true => std::fs::read_to_string("/etc/hosts").unwrap_or_default(),
                false => String::new(),
            };
            write_file(&file, &dns::hosts_file(&pod, &ips, &hostname, &domain, &node_hosts), 0o644)
        };
        blocking(write).await.map_err(|e| e.to_string())?;
        Ok(Mount {
            container_path: "/etc/hosts".to_owned(),
            host_path: path.to_string_lossy().into_owned(),
            ..Mount::default()
        })
    }

    /// An empty file of this container's own for its last words.
    async fn message_mount(
        &self,
        target: &Target<'_>,
        container: &Container,
    ) -> Result<Option<Mount>, String> {
        let Some(path) = container.termination_message_path.as_deref().filter(|p| !p.is_empty()) else {
            return Ok(None);
        };
        let dir = self.shared.config.pod_dir(target.pod.uid()).join("containers").join(&container.name);
        let file = dir.join(format!("{:08x}", rand::random::<u32>()));
        let made = file.clone();
        blocking(move || write_file(&made, "", 0o666)).await.map_err(|e| e.to_string())?;
        let host_path = file.to_string_lossy().into_owned();
        Ok(Some(Mount { container_path: absolute(path), host_path, ..Mount::default() }))
    }

    async fn post_start(
        &self,
        target: &Target<'_>,
        container: &Container,
        id: &str,
    ) -> Result<(), StartFailure> {
        let Some(handler) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
            return Ok(());
        };
        let ip = target.ips.first().map(String::as_str).unwrap_or_default();
        let mut desired = self.desired.clone();
        // Both arms only wait: the hook's command may go on in a container that is about to end.
        let result = tokio::select! {
            result = hooks::run(&*self.shared.cri, target.pod, container, id, ip, handler) => result,
            _ = desired.wait_for(|d| d.must_end()) => return Ok(()),
        };
        let Err(message) = result else { return Ok(()) };
        // The message may hold secrets: it is for the pod's status, not for the event.
        let event = "PostStartHook failed";
        self.shared.events.container(target.pod, container, EventType::Warning, "FailedPostStartHook", event);
        let kill = Kill {
            id: id.to_owned(),
            name: container.name.clone(),
            message: "FailedPostStartHook".to_owned(),
            reason: KillReason::Other,
        };
        if let Err(error) = self.kill_some(target.pod, target.snapshot, &[kill]).await {
            tracing::warn!(container = id, %error, "cannot kill a container whose postStart hook failed");
        }
        Err(StartFailure { retry_after: Duration::ZERO, ..StartFailure::new("PostStartHookError", message) })
    }
}

/// An image that a container needs: its own, or one that it mounts.
struct Wanted<'a> {
    image: &'a str,
    policy: Option<&'a str>,
    container: Option<&'a Container>,
}

/// The volumes of images that a container mounts, each once.
fn image_volumes<'p>(pod: &'p Pod, container: &Container) -> Vec<(&'p str, &'p ImageVolumeSource)> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let mounts = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    let images = volumes.iter().filter_map(|volume| Some((volume.name.as_str(), volume.image.as_ref()?)));
    images.filter(|(name, _)| mounts(name)).collect()
}

/// Makes sure of the image; gives up as soon as the pod is to end.
async fn ensure_image(
    shared: &super::Shared,
    pulls: &mut crate::images::PullHistory,
    mut desired: tokio::sync::watch::Receiver<super::Desired>,
    target: &Target<'_>,
    wanted: &Wanted<'_>,
) -> Result<ImageInfo, StartFailure> {
    let (secrets, missing) = pull_secrets(&shared.objects, target.pod).await;
    if !missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            missing.join(", ")
        );
        shared.events.pod(target.pod, EventType::Warning, "FailedToRetrieveImagePullSecret", &message);
    }
    let pull = ImagePull {
        cri: &*shared.cri,
        events: &shared.events,
        pod: target.pod,
        image: wanted.image,
        policy: wanted.policy,
        container: wanted.container,
        handler: &target.handler,
        sandbox_config: &target.config,
        secrets: &secrets,
    };
    // Dropping the pull is safe: what was fetched stays in the image store for the next one.
    tokio::select! {
        image = pull.ensure(pulls) => image,
        _ = desired.wait_for(|d| d.must_end()) => Err(StartFailure::new("ErrImagePull", "the pod is being deleted")),
    }
}

fn sub_path(
    plain: Option<&str>,
    expression: Option<&str>,
    env: &[(String, String)],
) -> Result<Option<String>, String> {
    let Some(expression) = expression.filter(|e| !e.is_empty()) else {
        return Ok(plain.filter(|p| !p.is_empty()).map(str::to_owned));
    };
    let missing = std::cell::RefCell::new(None);
    let expanded = env::expand(expression, |name| {
        let value = env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if value.is_none() {
            missing.replace(Some(name.to_owned()));
        }
        value
    });
    match missing.into_inner() {
        Some(name) => Err(format!("missing value for {name:?}")),
        None => Ok(Some(expanded)),
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), VolumeError> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(parent) = path.parent() {
        crate::volume::mounts::make_dir(parent, 0o750)?;
    }
    // In place: containers that run have this very file mounted.
    let written = std::fs::write(path, text);
    let set = written.and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)));
    set.map_err(VolumeError::host("write", path))
}
