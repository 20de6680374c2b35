//! What an earlier process, or an earlier boot of the machine, left in the runtime's directories.
//!
//! A directory with a record is a container: one whose shim answers runs on, one whose shim is silent has ended. A directory
//! without one, or with one that is damaged, is what a crash or a power cut left of a container that nobody knows; so is a
//! state of the OCI runtime without a directory. Both are removed. What cannot be read just now is left alone.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures::future::join_all;
use tokio::process::Command;
use tokio::time::timeout;

use super::{Container, OciRuntime, run, watch_shim};
use crate::Error;
use crate::bundle::Bundle;
use crate::client::ANSWER_TIME;
use crate::protocol::{Exit, ShimConfig};
use crate::record::Record;
use crate::runc;

/// What lies in the state directory.
struct Directories {
    containers: Vec<Arc<Container>>,
    /// Names whose record the disk did not give.
    unread: HashSet<String>,
}

impl OciRuntime {
    /// The containers of an earlier life, those that still run listened to.
    pub(super) async fn find(&self) -> Result<Vec<Arc<Container>>, Error> {
        let found = self.read_directories().await?;
        join_all(found.containers.iter().map(|container| self.attach(container))).await;
        self.sweep_runc(&found).await;
        Ok(found.containers)
    }

    async fn read_directories(&self) -> Result<Directories, Error> {
        let directory = &self.config.state_dir;
        let mut found = Directories { containers: Vec::new(), unread: HashSet::new() };
        for entry in std::fs::read_dir(directory).map_err(Error::io("list", directory))? {
            let path = entry.map_err(Error::io("list", directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let bundle = Bundle { directory: path };
            match Record::read(&bundle.directory).map(|record| self.known(&bundle, record)) {
                Ok(Ok(container)) => found.containers.push(container),
                Ok(Err(err)) => self.discard(&name, &bundle, &err.to_string()).await,
                Err(err) if is_damage(&err) => self.discard(&name, &bundle, &err.to_string()).await,
                Err(err) => {
                    tracing::error!(container = name, "its record cannot be read: {err}");
                    found.unread.insert(name);
                }
            }
        }
        Ok(found)
    }

    fn known(&self, bundle: &Bundle, record: Record) -> Result<Arc<Container>, Error> {
        let group = self.config.cgroups.group(&record.cgroup)?;
        let exit = Exit::read(&bundle.directory).unwrap_or_default();
        Ok(Container::new(group, bundle.clone(), record, exit))
    }

    /// Removes a container that has no record: a create that did not come to its end, or what a power cut damaged. Should
    /// anything of it run, its shim's orders say in which group.
    async fn discard(&self, name: &str, bundle: &Bundle, why: &str) {
        tracing::warn!(container = name, "removing a container without a record: {why}");
        let shim = timeout(ANSWER_TIME, watch_shim(&bundle.directory)).await;
        let orders = std::fs::read(bundle.directory.join("shim.json"));
        let orders = orders.ok().and_then(|text| serde_json::from_slice::<ShimConfig>(&text).ok());
        if let Some(group) = orders.and_then(|orders| self.config.cgroups.group(&orders.cgroup).ok()) {
            let ended = super::blocking(move || {
                group.kill()?;
                Ok(group.remove()?)
            });
            told(name, ended.await.map_err(|err| err.to_string()));
        }
        if let Ok(Ok((mut shim, ..))) = shim {
            // It writes how its container ended before it goes; only then is the directory nobody's.
            let _late = timeout(ANSWER_TIME, async { while let Ok(Some(_)) = shim.receive().await {} }).await;
        }
        if self.config.root.join(name).exists() {
            told(name, self.runc_delete(name).await);
        }
        let bundle = bundle.clone();
        told(name, super::blocking(move || bundle.remove()).await.map_err(|err| err.to_string()));
    }

    /// States of the OCI runtime that belong to no container. After a reboot there are none.
    async fn sweep_runc(&self, found: &Directories) {
        for entry in std::fs::read_dir(&self.config.root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if found.unread.contains(&name) || found.containers.iter().any(|known| known.id == name) {
                continue;
            }
            tracing::warn!(container = name, "removing a state of the OCI runtime without a container");
            told(&name, self.runc_delete(&name).await);
        }
    }

    async fn runc_delete(&self, id: &str) -> Result<(), String> {
        let mut command = Command::from(runc::command(&self.config.runc, &self.config.root, None));
        command.args(["delete", "--force", id]);
        run(command, None).await
    }

    /// Takes up a container of an earlier life.
    async fn attach(&self, container: &Arc<Container>) {
        let (may_run, has_ended) = {
            let state = container.state.lock();
            let may_run = state.record.start_attempted && state.record.start_error.is_none();
            (may_run && state.exit.is_none(), state.exit.is_some())
        };
        if has_ended {
            crate::watch::let_go(container).await;
        }
        if !may_run {
            return;
        }
        let watching = timeout(ANSWER_TIME, watch_shim(container.directory())).await;
        match watching {
            Ok(Ok((connection, pid, started_at_ns))) => {
                container.started(pid, started_at_ns).await;
                crate::watch::spawn(container.clone(), connection, None, self.events.clone());
            }
            _ => {
                container.ended(crate::watch::after_silence(container).await);
                crate::watch::let_go(container).await;
            }
        }
    }
}

/// Whether a record is not there or is none, rather than one that the disk did not give.
fn is_damage(err: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotADirectory, NotFound, UnexpectedEof};
    matches!(err.kind(), InvalidData | NotADirectory | NotFound | UnexpectedEof)
}

fn told(name: &str, removed: Result<(), String>) {
    if let Err(err) = removed {
        tracing::warn!(container = name, "not removed, it is tried again at the next start: {err}");
    }
}

/// The directory that a name lies in, for those that must last.
pub(super) fn sync_parent(directory: &Path) -> io::Result<()> {
    directory.parent().map_or(Ok(()), skiff_cri::keep::sync_directory)
}
